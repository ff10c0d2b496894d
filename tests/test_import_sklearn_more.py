"""Estimators beside the common ones, against scikit-learn itself: what tells outliers, mixtures,
curves, estimators around estimators. And that every importer is tried."""

import numpy as np
import pytest
from sklearn import ensemble as en
from sklearn import linear_model as lm
from sklearn import naive_bayes as nb
from sklearn import preprocessing as pre
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import AffinityPropagation, Birch, FeatureAgglomeration, MeanShift
from sklearn.compose import TransformedTargetRegressor
from sklearn.covariance import EllipticEnvelope
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import FactorAnalysis, KernelPCA, MiniBatchSparsePCA, SparsePCA
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as gp
from sklearn.kernel_approximation import SkewedChi2Sampler
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsOneClassifier, OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, RegressorChain
from sklearn.neighbors import LocalOutlierFactor, NeighborhoodComponentsAnalysis
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import SVC, LinearSVC, NuSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier
from test_import_sklearn import (
    CLASSIFIERS,
    REGRESSORS,
    TRANSFORMERS,
    assert_near,
    assert_same,
    one_thread,  # noqa: F401 - a fixture
    outputs_of,
    seeds,
    short,
    some_data,
)

import fastvq
from fastvq.compress.importers.sklearn import UnsupportedEstimator, from_sklearn, supported

pytestmark = pytest.mark.filterwarnings("ignore")


def within(low, high, then):
    """What is defined for some values only, behind a scaler to these."""
    return make_pipeline(pre.MinMaxScaler((low, high), clip=True), then)


# ---- without targets -----------------------------------------------------------------------------

UNSUPERVISED = [
    en.IsolationForest(n_estimators=20, **seeds),
    en.IsolationForest(
        n_estimators=20, max_features=0.5, max_samples=50, contamination=0.1, **seeds
    ),
    OneClassSVM(),
    lm.SGDOneClassSVM(**seeds),
    EllipticEnvelope(**seeds),
    LocalOutlierFactor(novelty=True),
    LocalOutlierFactor(7, novelty=True, metric="manhattan", contamination=0.1),
    *(GaussianMixture(3, covariance_type=c, **seeds) for c in ("full", "tied", "diag")),
    GaussianMixture(2, covariance_type="spherical", **seeds),
    BayesianGaussianMixture(n_components=3, **seeds),
    BayesianGaussianMixture(
        n_components=3, weight_concentration_prior_type="dirichlet_distribution", **seeds
    ),
    *(pre.QuantileTransformer(n_quantiles=n) for n in (2, 100, 240)),
    pre.QuantileTransformer(n_quantiles=100, output_distribution="normal"),
    pre.QuantileTransformer(n_quantiles=240, output_distribution="normal"),
    pre.SplineTransformer(),
    pre.SplineTransformer(extrapolation="linear", include_bias=False),
    pre.SplineTransformer(extrapolation="linear", degree=1, n_knots=2),
    pre.SplineTransformer(extrapolation="continue", degree=2, n_knots=4, knots="quantile"),
    pre.SplineTransformer(extrapolation="periodic"),
    *(KernelPCA(4, kernel=k) for k in ("linear", "rbf", "poly")),
    KernelPCA(3, kernel="sigmoid", gamma=0.05),
    SparsePCA(3, max_iter=20, **seeds),
    MiniBatchSparsePCA(3, max_iter=20, **seeds),
    FactorAnalysis(3),
    NeighborhoodComponentsAnalysis(3, max_iter=5, **seeds),
    FeatureAgglomeration(3),
    within(0, 1, BernoulliRBM(5, n_iter=3, **seeds)),
    within(0, 1, SkewedChi2Sampler(n_components=8, **seeds)),
    make_pipeline(pre.Binarizer(), TfidfTransformer()),
    make_pipeline(pre.Binarizer(), TfidfTransformer(sublinear_tf=True, norm="l1", use_idf=False)),
    *(
        pre.FunctionTransformer(f)
        for f in (np.expm1, np.square, np.floor, np.arctan, np.sinh, np.cosh, np.arcsinh, np.rint)
    ),
    *(within(1.5, 3, pre.FunctionTransformer(f)) for f in (np.arccosh, np.log2, np.reciprocal)),
    *(
        within(-0.9, 0.9, pre.FunctionTransformer(f))
        for f in (np.arctanh, np.arcsin, np.arccos, np.tan)
    ),
    MeanShift(),
    Birch(n_clusters=4, threshold=1.0),
    AffinityPropagation(**seeds),
]


@pytest.mark.parametrize("estimator", UNSUPERVISED, ids=short)
def test_without_targets(estimator):
    X, other, labels, _ = some_data()
    assert_same(clone(estimator).fit(X, labels), other)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_quantiles_that_values_share(distribution):
    """Whole numbers, a column of one value, values beyond those seen, and none."""
    random = np.random.RandomState(0)
    X = np.hstack([random.poisson(2, (300, 2)), np.full((300, 1), 3), random.randn(300, 1)])
    X = X.astype(np.float32)
    X[::3, 3] = X[0, 3]
    estimator = pre.QuantileTransformer(n_quantiles=77, output_distribution=distribution).fit(X)
    other = np.concatenate([X, X + 1, X - 1, X / 2, np.float32([[np.nan] * 4, [1e9, -1e9, 4, 2]])])
    _, found = outputs_of(estimator, other)
    assert_near(found["transform"], estimator.transform(other.astype(np.float64)), 1e-5)


def test_quantiles_far_out_in_the_tails():
    """From 1e-7 on, each row to 1e-5: beside 1 float32 would not have the digits."""
    X = np.linspace(0, 1, 1000)
    tails = np.logspace(-6, -3, 300).astype(np.float32)
    X, other = (np.stack([x, -x], axis=1) for x in (X, tails))
    estimator = pre.QuantileTransformer(output_distribution="normal").fit(X)
    _, found = outputs_of(estimator, other)
    expected = estimator.transform(other.astype(np.float64))
    np.testing.assert_allclose(found["transform"], expected, rtol=1e-5)


def test_outliers_of_a_file(tmp_path):
    X, other, _, _ = some_data()
    estimator = en.IsolationForest(n_estimators=30, contamination=0.2, **seeds).fit(X)
    fastvq.compress(estimator).save(tmp_path / "m.fvq")
    model = fastvq.load(tmp_path / "m.fvq")
    np.testing.assert_array_equal(model.predict(other), estimator.predict(other))
    np.testing.assert_allclose(
        model.score_samples(other), estimator.score_samples(other), rtol=1e-6
    )


# ---- regressors ----------------------------------------------------------------------------------

MORE_REGRESSORS = [
    *(
        GaussianProcessRegressor(k, alpha=0.1, optimizer=None, normalize_y=True)
        for k in (
            *(None, gp.RBF(np.arange(1.0, 10.0)) * 2 + gp.WhiteKernel()),
            *(gp.Matern(nu=1.5) + gp.DotProduct(), gp.RationalQuadratic() ** 2),
            *(gp.Matern(2.0, nu=2.5), gp.Matern(3.0, nu=0.5), gp.Matern(nu=np.inf) + 1.0),
        )
    ),
    CCA(1),
    en.AdaBoostRegressor(n_estimators=9, **seeds),
    en.AdaBoostRegressor(lm.Ridge(), n_estimators=4, **seeds),
    lm.RANSACRegressor(**seeds),
    DummyRegressor(strategy="median"),
    FrozenEstimator(lm.Ridge()),
    *(
        TransformedTargetRegressor(lm.Ridge(), transformer=t)
        for t in (pre.StandardScaler(), pre.MinMaxScaler(), pre.RobustScaler(), pre.MaxAbsScaler())
    ),
    TransformedTargetRegressor(lm.Ridge(), func=np.sinh, inverse_func=np.arcsinh),
    TransformedTargetRegressor(lm.Ridge()),
]


@pytest.mark.parametrize("estimator", MORE_REGRESSORS, ids=short)
def test_regressors(estimator):
    X, other, _, y = some_data()
    if isinstance(estimator, FrozenEstimator):
        estimator.estimator.fit(X, y)
    else:
        estimator = clone(estimator).fit(X, y)
    assert assert_same(estimator, other, 2e-5)["task"] == "regressor"


def test_regressors_of_several_targets():
    X, other, _, Y = some_data(n_targets=3)
    for estimator in (
        TransformedTargetRegressor(lm.Ridge(), transformer=pre.StandardScaler()),
        RegressorChain(lm.Ridge(), order=[2, 0, 1]),
        GaussianProcessRegressor(gp.RBF(3.0), alpha=0.1, optimizer=None, normalize_y=True),
        DummyRegressor(),
    ):
        assert_same(estimator.fit(X, Y), other, 2e-5)


def test_weights_that_cancel_are_refused():
    X, _, _, y = some_data()
    estimator = GaussianProcessRegressor(gp.RBF(30.0), alpha=1e-9, optimizer=None).fit(X, y)
    with pytest.raises(UnsupportedEstimator, match="cancel beyond float32"):
        from_sklearn(estimator)


# ---- classifiers ---------------------------------------------------------------------------------

MORE_CLASSIFIERS = [
    SVC(probability=True, **seeds),
    SVC(probability=True, kernel="linear", decision_function_shape="ovo", **seeds),
    NuSVC(nu=0.1, probability=True, **seeds),
    *(
        CalibratedClassifierCV(each, cv=2, method=method)
        for each in (LinearSVC(**seeds), nb.GaussianNB())
        for method in ("isotonic", "temperature")
    ),
    OneVsOneClassifier(lm.LogisticRegression()),
    OneVsOneClassifier(DecisionTreeClassifier(max_depth=3)),
    OutputCodeClassifier(lm.LogisticRegression(), code_size=4, random_state=2),
    SelfTrainingClassifier(lm.LogisticRegression()),
    *(DummyClassifier(strategy=strategy) for strategy in ("prior", "most_frequent")),
    DummyClassifier(strategy="constant", constant="beech"),
]


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("estimator", MORE_CLASSIFIERS, ids=short)
def test_classifiers(estimator, n_classes):
    X, other, labels, _ = some_data(n_classes=n_classes)
    if isinstance(estimator, CalibratedClassifierCV) and estimator.method == "temperature":
        pytest.importorskip("sklearn", minversion="1.8", reason="temperature came with 1.8")
    names = np.array(["ash", "beech", "cedar", "fir"])
    estimator = clone(estimator)
    estimator.fit(X, labels if isinstance(estimator, SelfTrainingClassifier) else names[labels])
    assert assert_same(estimator, other)["task"] == "classifier"


def test_probabilities_of_support_vectors_are_those_of_libsvm():
    """Row by row and class by class to 1e-4, of ten classes that overlap."""
    X, other, labels, _ = some_data(n_features=6, n_classes=10, n=400)
    estimator = SVC(probability=True, **seeds).fit(X, labels)
    _, found = outputs_of(estimator, other)
    expected = estimator.predict_proba(other.astype(np.float64))
    np.testing.assert_allclose(found["predict_proba"], expected, rtol=1e-4)


def test_thresholds():
    X, other, labels, _ = some_data(n_classes=2)
    names = np.array(["ash", "beech"])[labels]
    by_decision = {"pos_label": "beech", "response_method": "decision_function", "threshold": 0.3}
    for estimator, y in (
        (FixedThresholdClassifier(lm.LogisticRegression(), threshold=0.3, pos_label="ash"), names),
        (FixedThresholdClassifier(lm.LogisticRegression(), **by_decision), names),
        (TunedThresholdClassifierCV(lm.LogisticRegression(), cv=2), labels),
    ):
        assert_same(estimator.fit(X, y), other)


def test_categories():
    X = np.random.RandomState(0).randint(0, 4, (200, 4)).astype(np.float32)
    labels = X[:, 0].astype(int) % 3
    assert_same(nb.CategoricalNB().fit(X, labels), X)
    unknown = X.copy()
    unknown[::5, 1] = 9
    for y in (labels, labels % 2, X @ np.arange(1.0, 5.0)):
        assert_same(pre.TargetEncoder(**seeds).fit(X, y), unknown)


def test_chains_of_classifiers():
    X, other, labels, _ = some_data()
    marks = np.stack([labels > 1, X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
    for attributes in ({"order": [1, 2, 0]}, {"chain_method": "predict_proba"}):
        estimator = ClassifierChain(lm.LogisticRegression(), **attributes).fit(X, marks)
        assert_same(estimator, other)


# ---- all of them ---------------------------------------------------------------------------------


def test_every_importer_is_tested():
    tested = {type(e).__name__ for e in everything()}
    elsewhere = {
        *("MultiTaskLasso", "MultiTaskLassoCV", "MultiTaskElasticNet", "MultiTaskElasticNetCV"),
        *("MultiOutputRegressor", "MultiOutputClassifier", "ColumnTransformer", "OneHotEncoder"),
        *("OrdinalEncoder", "MissingIndicator", "PoissonRegressor", "GammaRegressor"),
        *("TweedieRegressor", "PLSCanonical", "PLSSVD", "MiniBatchKMeans"),
        *("PassiveAggressiveRegressor", "RegressorChain", "ClassifierChain", "TargetEncoder"),
        *("CategoricalNB", "FixedThresholdClassifier", "TunedThresholdClassifierCV"),
    }
    untested = set(supported()) - tested - elsewhere
    assert not {name for name in untested if not name.startswith(("RFE", "Select"))}


def everything():
    waiting = [*TRANSFORMERS, *REGRESSORS, *CLASSIFIERS]
    waiting += [*UNSUPERVISED, *MORE_REGRESSORS, *MORE_CLASSIFIERS]
    while waiting:
        estimator = waiting.pop()
        yield estimator
        if hasattr(estimator, "steps"):
            waiting += [step for _, step in estimator.steps]
