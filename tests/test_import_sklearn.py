"""Every estimator that can be imported, against scikit-learn itself; some against skl2onnx too."""

import warnings

import numpy as np
import pytest
from sklearn import ensemble as en
from sklearn import feature_selection as fs
from sklearn import linear_model as lm
from sklearn import naive_bayes as nb
from sklearn import preprocessing as pre
from sklearn.base import BaseEstimator, RegressorMixin, clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import DBSCAN, KMeans, MiniBatchKMeans
from sklearn.compose import ColumnTransformer
from sklearn.cross_decomposition import PLSSVD, PLSCanonical, PLSRegression
from sklearn.decomposition import PCA, FastICA, IncrementalPCA, TruncatedSVD
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.exceptions import NotFittedError
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR, NuSVC, NuSVR
from sklearn.tree import (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreeClassifier,
    ExtraTreeRegressor,
)
from threadpoolctl import threadpool_limits

from fastvq import VectorQuantizer
from fastvq.compress.importers.sklearn import (
    UnsupportedEstimator,
    from_sklearn,
    missing,
    supported,
)
from fastvq.runtime import CompressedModel


@pytest.fixture(autouse=True)
def one_thread():
    """The fits are small, and threads of several libraries wait for each other."""
    with threadpool_limits(1):
        yield


# ---- data and comparison -------------------------------------------------------------------------


def some_data(n_features=9, n_classes=4, n=240, seed=0, n_targets=1):
    """Rows that float32 holds exactly, more of them, and classes and targets of the first."""
    random = np.random.RandomState(seed)
    X = random.randn(2 * n, n_features).astype(np.float32)
    mixed = X @ random.randn(n_features, max(n_classes, n_targets)) + random.randn(
        2 * n, max(n_classes, n_targets)
    )
    labels = mixed[:, :n_classes].argmax(axis=1)
    labels[:n_classes] = np.arange(n_classes)
    y = mixed[:, 0] if n_targets == 1 else mixed[:, :n_targets]
    return X[:n].astype(np.float64), X[n:], labels[:n], y[:n]


def outputs_of(estimator, X):
    """What the imported model gives for each of scikit-learn's methods."""
    graph, metadata = from_sklearn(estimator)
    model = CompressedModel(graph, metadata)
    names = [value.name for value in graph.outputs]
    found = dict(zip(names, model.run({"x": X}), strict=True))
    for value in graph.outputs:
        assert found[value.name].shape == (len(X), *value.shape[1:]), value
    methods = metadata["methods"].items()
    return metadata, {
        method: found[name] if isinstance(name, str) else [found[n] for n in name]
        for method, name in methods
    }


def assert_same(estimator, X, tolerance=1e-5):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metadata, found = outputs_of(estimator, X)
    assert found
    for method, values in found.items():
        expected = getattr(estimator, method)(X.astype(np.float64))
        if method == "predict" and metadata["classes"] is not None:
            assert_same_labels(metadata["classes"], values, expected)
        elif isinstance(values, list):
            for one, wanted in zip(values, expected, strict=True):
                assert_near(one, wanted, tolerance)
        elif method == "predict" and metadata["task"] == "":
            assert np.mean(values == expected) > 0.999
        else:
            expected = expected.toarray() if hasattr(expected, "toarray") else expected
            assert_near(values, expected, tolerance, method)
    return metadata


def assert_same_labels(classes, labels, expected):
    assert labels.dtype == np.int64
    assert labels.shape == expected.shape
    if labels.ndim == 2:
        for i, each in enumerate(classes):
            assert np.mean(np.take(each, labels[:, i]) == expected[:, i]) >= 0.999
    else:
        assert np.mean(np.take(classes, labels) == expected) >= 0.999


def assert_near(values, expected, tolerance, what=""):
    assert values.shape == expected.shape, (what, values.shape, expected.shape)
    expected = np.asarray(expected, np.float64)
    assert (np.isnan(values) == np.isnan(expected)).all()
    error = np.nanmax(np.abs(values - expected), initial=0)
    assert error <= tolerance * max(1e-30, np.nanmax(np.abs(expected), initial=0)), (what, error)


seeds = {"random_state": 0}

# ---- transformers --------------------------------------------------------------------------------

TRANSFORMERS = [
    pre.StandardScaler(),
    pre.StandardScaler(with_mean=False),
    pre.StandardScaler(with_std=False),
    pre.MinMaxScaler((-2, 3)),
    pre.MinMaxScaler(clip=True),
    pre.MaxAbsScaler(),
    pre.RobustScaler(),
    pre.RobustScaler(with_centering=False),
    *(pre.Normalizer(norm) for norm in ("l1", "l2", "max")),
    pre.Binarizer(threshold=0.25),
    pre.PolynomialFeatures(3),
    pre.PolynomialFeatures(2, include_bias=False),
    pre.PolynomialFeatures((2, 3), interaction_only=True),
    pre.FunctionTransformer(),
    pre.FunctionTransformer(np.exp),
    pre.PowerTransformer(),
    pre.PowerTransformer(standardize=False),
    pre.KBinsDiscretizer(4, encode="ordinal"),
    pre.KBinsDiscretizer(5, encode="onehot", strategy="uniform"),
    pre.KBinsDiscretizer(3, encode="onehot-dense", strategy="kmeans"),
    PCA(4),
    PCA(3, whiten=True),
    IncrementalPCA(3),
    TruncatedSVD(3),
    FastICA(3, max_iter=2000, **seeds),
    GaussianRandomProjection(5, **seeds),
    SparseRandomProjection(5, **seeds),
    RBFSampler(n_components=20, **seeds),
    Nystroem(n_components=10, gamma=0.1, **seeds),
    SimpleImputer(),
    SimpleImputer(strategy="median", add_indicator=True),
    fs.VarianceThreshold(0.9),
    fs.SelectKBest(k=3),
    fs.SelectPercentile(percentile=50),
    fs.SelectFromModel(lm.Ridge()),
    fs.RFE(lm.Ridge(), n_features_to_select=4),
    LinearDiscriminantAnalysis(n_components=2),
    PLSRegression(2),
    KMeans(5, n_init=1, **seeds),
    FeatureUnion([("a", PCA(2)), ("b", pre.StandardScaler())], transformer_weights={"a": 0.5}),
    make_pipeline(pre.StandardScaler(), pre.MinMaxScaler(), PCA(4), pre.MaxAbsScaler()),
    *(
        VectorQuantizer(6, output=output, random_state=0)
        for output in ("codes", "distances", "onehot-dense", "reconstruction")
    ),
]


def short(estimator):
    return repr(estimator).replace("\n", "")[:60]


@pytest.mark.parametrize("estimator", TRANSFORMERS, ids=short)
def test_transformers(estimator):
    X, other, labels, _ = some_data()
    estimator = clone(estimator).fit(X, labels)
    assert_same(estimator, other, tolerance=1e-5)


def test_transformers_of_two_blocks():
    X, other, _, y = some_data(n_targets=3)
    for estimator in (PLSCanonical(2), PLSSVD(2)):
        _, found = outputs_of(estimator.fit(X, y), other)
        assert_near(
            found["transform"] if "transform" in found else found["predict"],
            getattr(estimator, "transform" if "transform" in found else "predict")(other),
            1e-5,
        )


def test_positive_powers():
    X, other, _, _ = some_data()
    estimator = pre.PowerTransformer("box-cox").fit(np.abs(X) + 0.1)
    assert_same(estimator, np.abs(other) + np.float32(0.1))


def test_missing_values_are_filled():
    X, other, _, _ = some_data()
    for marker in (np.nan, -1.0):
        holes, more = X.copy(), other.copy()
        holes[::3, 2] = holes[5:80, 4] = more[::2, 4] = more[::5, 0] = marker
        for strategy in ("mean", "most_frequent", "constant"):
            estimator = SimpleImputer(
                missing_values=marker, strategy=strategy, add_indicator=strategy == "mean"
            )
            assert_same(estimator.fit(holes), more)
    holes = X.copy()
    holes[:, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keep in (False, True):
            estimator = SimpleImputer(keep_empty_features=keep).fit(holes)
            assert_same(estimator, other)
    indicator = MissingIndicator(features="all").fit(holes)
    _, found = outputs_of(indicator, holes)
    np.testing.assert_array_equal(found["transform"], indicator.transform(holes))


def whole_numbers(missing=False):
    X = np.random.RandomState(3).randint(-2, 3, (200, 4)).astype(np.float32)
    if missing:
        X[::7, 1] = np.nan
    return X


@pytest.mark.parametrize(
    "estimator",
    [
        pre.OneHotEncoder(),
        pre.OneHotEncoder(drop="first"),
        pre.OneHotEncoder(handle_unknown="ignore"),
        pre.OrdinalEncoder(),
        pre.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    ],
    ids=short,
)
@pytest.mark.parametrize("holes", [False, True])
def test_encoders_of_numbers(estimator, holes):
    X = whole_numbers(holes)
    estimator = clone(estimator).fit(X)
    other = X.copy()
    if "handle_unknown" in repr(estimator):
        other[::5] += 3
    assert_same(estimator, other)


def test_columns_are_found_by_name_number_and_mask():
    pandas = pytest.importorskip("pandas")
    X, other, _, y = some_data(5)
    frames = [pandas.DataFrame(a, columns=list("abcde")) for a in (X, other)]
    chosen = ColumnTransformer(
        [
            ("scale", pre.StandardScaler(), ["b", "a"]),
            ("gone", "drop", ["c"]),
            ("pca", make_pipeline(pre.RobustScaler(), PCA(1)), ["d", "e"]),
        ],
        remainder="passthrough",
    )
    estimator = make_pipeline(chosen, lm.Ridge()).fit(frames[0], y)
    graph, metadata = from_sklearn(estimator)
    assert metadata["feature_names"] == list("abcde")
    assert_near(CompressedModel(graph)(other), estimator.predict(frames[1]), 1e-5)
    by_number = ColumnTransformer(
        [("a", pre.MinMaxScaler(), [3, 0]), ("b", "passthrough", slice(1, 3))]
    )
    assert_same(by_number.fit(X), other)
    by_mask = ColumnTransformer(
        [("a", pre.MinMaxScaler(), [True, False, False, True, False])], remainder=PCA(2)
    )
    assert_same(by_mask.fit(X), other)


# ---- regressors ----------------------------------------------------------------------------------

REGRESSORS = [
    lm.LinearRegression(),
    lm.LinearRegression(fit_intercept=False),
    *(lm.Ridge(), lm.RidgeCV(), lm.Lasso(0.01), lm.LassoCV(), lm.ElasticNet(0.01)),
    *(lm.ElasticNetCV(), lm.Lars(), lm.LarsCV(), lm.LassoLars(0.001), lm.LassoLarsCV()),
    *(lm.LassoLarsIC(), lm.OrthogonalMatchingPursuit(), lm.OrthogonalMatchingPursuitCV()),
    *(lm.BayesianRidge(), lm.ARDRegression(), lm.HuberRegressor(), lm.TheilSenRegressor()),
    *(lm.QuantileRegressor(alpha=0.01), lm.SGDRegressor(**seeds)),
    *(LinearSVR(**seeds), SVR(), SVR(kernel="linear"), SVR(kernel="poly"), NuSVR()),
    SVR(kernel="sigmoid", gamma=0.05),
    *(KernelRidge(kernel=k, gamma=0.1) for k in ("rbf", "linear", "poly")),
    PLSRegression(3),
    *(
        MLPRegressor(hidden_layer_sizes=(12,), activation=a, max_iter=30, **seeds)
        for a in ("identity", "logistic", "tanh", "relu")
    ),
    MLPRegressor(hidden_layer_sizes=(8, 7, 6), max_iter=30, **seeds),
    DecisionTreeRegressor(),
    DecisionTreeRegressor(max_depth=3),
    ExtraTreeRegressor(),
    en.RandomForestRegressor(13, **seeds),
    en.ExtraTreesRegressor(7, max_depth=4, **seeds),
    en.GradientBoostingRegressor(n_estimators=20, **seeds),
    en.GradientBoostingRegressor(n_estimators=5, init="zero", loss="huber", **seeds),
    en.HistGradientBoostingRegressor(max_iter=20, **seeds),
    en.BaggingRegressor(lm.Ridge(), 3, max_features=0.5, **seeds),
    en.VotingRegressor([("a", lm.Ridge()), ("b", DecisionTreeRegressor())], weights=[1, 3]),
    en.StackingRegressor([("a", lm.Ridge()), ("b", DecisionTreeRegressor())], passthrough=True),
    KNeighborsRegressor(4),
    KNeighborsRegressor(4, weights="distance"),
    KNeighborsRegressor(3, metric="manhattan"),
    GridSearchCV(lm.Ridge(), {"alpha": [0.1, 1]}, cv=2),
    make_pipeline(
        pre.StandardScaler(), PCA(5), MLPRegressor(hidden_layer_sizes=(9,), max_iter=20, **seeds)
    ),
    make_pipeline(pre.PolynomialFeatures(2), pre.StandardScaler(), lm.Ridge()),
    make_pipeline(KMeans(6, n_init=1, **seeds), lm.Ridge()),
    make_pipeline(VectorQuantizer(6, output="onehot-dense", random_state=0), lm.Ridge()),
]
SEVERAL = (
    *("LinearRegression", "Ridge", "MLPRegressor", "DecisionTreeRegressor", "PLSRegression"),
    *("RandomForestRegressor", "KNeighborsRegressor", "ExtraTreesRegressor", "KernelRidge"),
)


@pytest.mark.parametrize("estimator", REGRESSORS, ids=short)
@pytest.mark.filterwarnings("ignore")
def test_regressors(estimator):
    X, other, _, y = some_data()
    estimator = clone(estimator).fit(X, y)
    assert assert_same(estimator, other)["task"] == "regressor"
    if type(estimator).__name__ in SEVERAL:
        Y = np.stack([y, X[:, 0] ** 2, X[:, 1]], axis=1)
        assert_same(clone(estimator).fit(X, Y), other)


@pytest.mark.parametrize(
    "estimator",
    [
        *(lm.MultiTaskLasso(0.01), lm.MultiTaskElasticNet(0.01), lm.MultiTaskLassoCV()),
        *(lm.MultiTaskElasticNetCV(), MultiOutputRegressor(lm.Ridge()), PLSCanonical(2)),
        MultiOutputRegressor(en.GradientBoostingRegressor(n_estimators=3)),
    ],
    ids=short,
)
def test_regressors_of_several_targets(estimator):
    X, other, _, Y = some_data(n_targets=3)
    estimator = clone(estimator).fit(X, Y)
    _, found = outputs_of(estimator, other)
    assert_near(found["predict"], estimator.predict(other), 1e-5)


@pytest.mark.parametrize(
    "estimator",
    [
        *(lm.PoissonRegressor(), lm.GammaRegressor(), lm.TweedieRegressor(power=1.5)),
        lm.TweedieRegressor(power=0),
        en.HistGradientBoostingRegressor(loss="poisson", max_iter=10),
    ],
    ids=short,
)
def test_regressors_of_positive_targets(estimator):
    X, other, _, y = some_data()
    assert_same(clone(estimator).fit(X, np.exp(y / 5)), other)


# ---- classifiers ---------------------------------------------------------------------------------

CLASSIFIERS = [
    lm.LogisticRegression(),
    lm.LogisticRegressionCV(cv=2, Cs=2),
    *(lm.SGDClassifier(loss=loss, **seeds) for loss in ("hinge", "log_loss", "modified_huber")),
    *(lm.RidgeClassifier(), lm.RidgeClassifierCV(), lm.Perceptron(**seeds), LinearSVC(**seeds)),
    LinearDiscriminantAnalysis(),
    LinearDiscriminantAnalysis(solver="lsqr"),
    QuadraticDiscriminantAnalysis(),
    nb.GaussianNB(),
    nb.BernoulliNB(),
    make_pipeline(pre.MinMaxScaler(clip=True), nb.MultinomialNB()),
    make_pipeline(pre.MinMaxScaler(clip=True), nb.ComplementNB()),
    *(
        MLPClassifier((12,), activation=a, max_iter=30, **seeds)
        for a in ("identity", "logistic", "tanh", "relu")
    ),
    *(SVC(kernel=k) for k in ("rbf", "linear", "poly")),
    SVC(kernel="sigmoid", gamma=0.05),
    SVC(decision_function_shape="ovo"),
    NuSVC(nu=0.1),
    KNeighborsClassifier(5),
    KNeighborsClassifier(4, weights="distance"),
    NearestCentroid(),
    DecisionTreeClassifier(),
    DecisionTreeClassifier(max_depth=2),
    ExtraTreeClassifier(),
    en.RandomForestClassifier(17, **seeds),
    en.RandomForestClassifier(9, max_depth=4, class_weight="balanced", **seeds),
    en.ExtraTreesClassifier(8, max_depth=5, **seeds),
    en.GradientBoostingClassifier(n_estimators=8, **seeds),
    en.HistGradientBoostingClassifier(max_iter=8, **seeds),
    en.AdaBoostClassifier(n_estimators=8, **seeds),
    en.AdaBoostClassifier(lm.LogisticRegression(), n_estimators=3, **seeds),
    en.BaggingClassifier(DecisionTreeClassifier(max_depth=3), 4, max_features=0.5, **seeds),
    en.BaggingClassifier(lm.Perceptron(), 3, **seeds),
    en.VotingClassifier([("a", lm.LogisticRegression()), ("b", DecisionTreeClassifier())]),
    en.VotingClassifier(
        [("a", lm.LogisticRegression()), ("b", nb.GaussianNB())], voting="soft", weights=[2, 1]
    ),
    en.StackingClassifier([("a", lm.LogisticRegression()), ("b", LinearSVC())], cv=2),
    OneVsRestClassifier(lm.LogisticRegression()),
    OneVsRestClassifier(DecisionTreeClassifier(max_depth=3)),
    OneVsRestClassifier(LinearSVC(**seeds)),
    CalibratedClassifierCV(LinearSVC(**seeds), cv=2),
    CalibratedClassifierCV(nb.GaussianNB(), cv=2, ensemble=False),
    RandomizedSearchCV(lm.LogisticRegression(), {"C": [1, 2]}, n_iter=2, cv=2),
    make_pipeline(pre.StandardScaler(), MLPClassifier((10,), max_iter=20, **seeds)),
    make_pipeline(fs.SelectKBest(k=4), en.RandomForestClassifier(5, **seeds)),
    *(getattr(lm, name)(**seeds) for name in ("PassiveAggressiveClassifier",) if hasattr(lm, name)),
]


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=short)
@pytest.mark.filterwarnings("ignore")
def test_classifiers(estimator, n_classes):
    X, other, labels, _ = some_data(n_classes=n_classes)
    names = np.array(["ash", "beech", "cedar", "fir"])
    estimator = clone(estimator).fit(X, names[labels])
    metadata = assert_same(estimator, other)
    assert metadata["task"] == "classifier"
    assert metadata["classes"] == [*names[:n_classes]]


def test_binary_losses():
    X, other, labels, _ = some_data(n_classes=2)
    estimator = en.GradientBoostingClassifier(n_estimators=8, loss="exponential")
    assert_same(estimator.fit(X, labels), other)
    assert_same(lm.LogisticRegression(solver="liblinear").fit(X, labels), other)


@pytest.mark.parametrize(("n_features", "n_classes"), [(1, 2), (60, 20), (3, 7)])
@pytest.mark.filterwarnings("ignore")
def test_sizes(n_features, n_classes):
    X, other, labels, y = some_data(n_features, n_classes, 400)
    for estimator in (
        *(lm.LogisticRegression(), MLPClassifier((7,), max_iter=9), nb.GaussianNB()),
        *(en.RandomForestClassifier(5), en.HistGradientBoostingClassifier(max_iter=3)),
        make_pipeline(pre.StandardScaler(), KNeighborsClassifier(3)),
    ):
        assert_same(estimator.fit(X, labels), other)
    for estimator in (
        lm.Ridge(),
        en.RandomForestRegressor(5),
        MLPRegressor(hidden_layer_sizes=(5,), max_iter=9),
    ):
        assert_same(estimator.fit(X, y), other)


@pytest.mark.filterwarnings("ignore")
def test_several_labels_at_once():
    X, other, labels, _ = some_data(n_classes=3)
    Y = np.stack([labels, X[:, 0] > 0, labels % 2], axis=1)
    for estimator in (
        *(DecisionTreeClassifier(max_depth=4), en.RandomForestClassifier(5, max_depth=5)),
        *(KNeighborsClassifier(3), MultiOutputClassifier(lm.LogisticRegression())),
    ):
        metadata = assert_same(estimator.fit(X, Y), other)
        assert metadata["classes"] == [[0, 1, 2], [0, 1], [0, 1]]
    marks = (Y[:, 1:] > 0).astype(int)
    assert_same(MLPClassifier((5,), max_iter=9).fit(X, marks), other)


@pytest.mark.parametrize(
    "estimator", [KMeans(7, n_init=1), MiniBatchKMeans(7, n_init=1)], ids=short
)
def test_clusters(estimator):
    X, other, _, _ = some_data()
    metadata = assert_same(estimator.fit(X), other)
    assert [*metadata["methods"]] == ["predict", "transform"]


# ---- trees and missing values --------------------------------------------------------------------


def with_holes(X, seed=0):
    X = X.copy()
    X[np.random.RandomState(seed).rand(*X.shape) < 0.15] = np.nan
    return X


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(),
        en.RandomForestClassifier(9, **seeds),
        en.ExtraTreesClassifier(5, **seeds),
        en.HistGradientBoostingClassifier(max_iter=10),
    ],
    ids=short,
)
def test_trees_send_missing_values_where_they_were_told(estimator):
    X, other, labels, _ = some_data(5, 3, 300)
    holes, more = with_holes(X), with_holes(other, 1)
    assert_same(clone(estimator).fit(holes, labels), more)
    if "Hist" in repr(estimator):
        more[::9, 1], more[1::9, 1] = np.inf, -np.inf
        assert_same(clone(estimator).fit(X, labels), more)


def test_categories():
    random = np.random.RandomState(0)
    X = random.randint(0, 12, (600, 4)).astype(np.float32)
    X[:, 2] = random.randn(600)
    X[::11, 1] = np.nan
    y = np.sin(3 * X[:, 0]) + X[:, 2] + np.nan_to_num(X[:, 1]) % 3
    estimator = en.HistGradientBoostingRegressor(categorical_features=[0, 1, 3], max_iter=20)
    other = X.copy()
    other[::5, 0] += 40  # unknown ones
    estimator.fit(X, y)
    assert_same(estimator, other)
    graph, _ = from_sklearn(estimator)
    node = next(node for node in graph.nodes if node.operator == "TreeEnsemble")
    assert graph.constants[node.inputs[8]].shape[1] == 32


def test_rows_next_to_a_threshold():
    """Thresholds are float64: rows just below, at and above their float32 neighbours."""
    random = np.random.RandomState(0)
    X = random.rand(400, 1)
    estimator = DecisionTreeRegressor().fit(X, random.rand(400))
    t = estimator.tree_.threshold[estimator.tree_.feature >= 0].astype(np.float32)
    near = [t, np.nextafter(t, np.float32(9)), np.nextafter(t, np.float32(-9))]
    rows = np.concatenate(near)[:, None]
    _, found = outputs_of(estimator, rows)
    np.testing.assert_array_equal(found["predict"], estimator.predict(rows).astype(np.float32))


def test_scalers_far_from_zero():
    """Offsets of 1e5 scales: centring comes first, so that float32 is enough."""
    X, other, labels, _ = some_data()
    offset = np.float32(2.0**17)
    X, other = X + offset, other + offset  # in float32: rows that it holds
    for estimator in (
        make_pipeline(pre.StandardScaler(), lm.LogisticRegression()),
        make_pipeline(pre.MinMaxScaler(), MLPClassifier((5,), max_iter=50, **seeds)),
        make_pipeline(PCA(4), lm.LogisticRegression()),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(estimator.fit(X.astype(np.float64), labels), other)


def test_a_scaler_goes_into_the_next_layer():
    X, _, labels, _ = some_data()
    estimator = make_pipeline(pre.StandardScaler(), lm.LogisticRegression()).fit(X, labels)
    graph, _ = from_sklearn(estimator)
    assert [node.operator for node in graph.nodes] == ["Dense", "ArgMax", "Softmax"]


# ---- what cannot be imported ---------------------------------------------------------------------


class Unknown(RegressorMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return X

    def predict(self, X):
        return X[:, 0]


def test_the_unknown_is_refused_by_name():
    X, _, _, y = some_data()
    estimator = make_pipeline(pre.StandardScaler(), Unknown(), lm.Ridge()).fit(X, y)
    assert missing(estimator) == ["Unknown"]
    with pytest.raises(UnsupportedEstimator, match="Unknown cannot be imported; what can: .*Ridge"):
        from_sklearn(estimator)
    assert missing(make_pipeline(pre.StandardScaler(), lm.Ridge())) == []
    assert "RandomForestClassifier" in supported()


def test_a_subclass_may_compute_something_else():
    class Twice(lm.Ridge):
        def predict(self, X):
            return 2 * super().predict(X)

    X, _, _, y = some_data()
    with pytest.raises(UnsupportedEstimator, match="Twice"):
        from_sklearn(Twice().fit(X, y))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (pre.FunctionTransformer(np.cbrt), "FunctionTransformer of"),
        (SVC(kernel="rbf", break_ties=True), "break_ties"),
        (KNeighborsClassifier(metric="cosine"), "metric"),
        (en.GradientBoostingClassifier(init=nb.GaussianNB(), n_estimators=2), "init"),
        (DBSCAN(), "DBSCAN"),
    ],
    ids=short,
)
def test_settings_that_are_refused(estimator, message):
    X, _, labels, _ = some_data()
    with pytest.raises(UnsupportedEstimator, match=message):
        from_sklearn(estimator.fit(X, labels))


def test_only_fitted_estimators():
    with pytest.raises(NotFittedError):
        from_sklearn(lm.Ridge())
    with pytest.raises(TypeError, match="dict"):
        from_sklearn({})


# ---- another importer as judge -------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(pre.StandardScaler(), lm.LogisticRegression()),
        make_pipeline(pre.MinMaxScaler(), MLPClassifier((9,), max_iter=20, **seeds)),
        en.RandomForestClassifier(9, max_depth=6, **seeds),
        en.GradientBoostingClassifier(n_estimators=9, **seeds),
        en.GradientBoostingRegressor(n_estimators=9, **seeds),
        lm.BayesianRidge(),
    ],
    ids=short,
)
@pytest.mark.filterwarnings("ignore")
def test_onnx_agrees(estimator):
    onnxruntime = pytest.importorskip("onnxruntime")
    skl2onnx = pytest.importorskip("skl2onnx")
    from skl2onnx.common.data_types import FloatTensorType

    X, other, labels, y = some_data(n_classes=3)
    estimator = clone(estimator)
    estimator.fit(X, y if is_regressor(estimator) else labels)
    options = {"zipmap": False} if is_classifier(estimator) else None
    converted = skl2onnx.convert_sklearn(
        estimator,
        initial_types=[("x", FloatTensorType([None, X.shape[1]]))],
        options=options and {id(estimator): options},
    )
    session = onnxruntime.InferenceSession(
        converted.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    judged = session.run(None, {"x": other})
    _, found = outputs_of(estimator, other)
    if is_regressor(estimator):
        assert_near(found["predict"], judged[0].ravel(), 1e-5)
    else:
        np.testing.assert_array_equal(found["predict"], judged[0])
        assert_near(found["predict_proba"], judged[1], 1e-5)
