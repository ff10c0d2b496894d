"""Compressed models as estimators of scikit-learn, and models of scikit-learn compressed."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits, make_classification, make_regression
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastvq
from fastvq import CompressedClassifier, CompressedRegressor, ModelQuantizer

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@parametrize_with_checks(
    [
        CompressedClassifier(LogisticRegression()),
        CompressedRegressor(Ridge()),
        CompressedRegressor(Ridge(), ModelQuantizer(activations="static")),
        CompressedClassifier(LogisticRegression(), ModelQuantizer("int4")),
        CompressedRegressor(Ridge(), ModelQuantizer("codebook", activations="float")),
        CompressedClassifier(LogisticRegression(), ModelQuantizer("product")),
        CompressedRegressor(Ridge(), ModelQuantizer("auto", size_budget=10**6)),
    ]
)
def test_conventions(estimator, check):
    check(estimator)


def test_a_search_over_calibrations():
    X, y = load_digits(return_X_y=True)
    X, y = X[:400], y[:400]
    inner = make_pipeline(MinMaxScaler(), MLPClassifier((48,), max_iter=60, random_state=0))
    search = GridSearchCV(
        CompressedClassifier(inner, ModelQuantizer(activations="static")),
        {"quantizer__calibration": ["minmax", "mse"]},
        cv=2,
    ).fit(X, y)
    assert search.best_params_["quantizer__calibration"] in ("minmax", "mse")
    best = search.best_estimator_
    assert best.score(X, y) > 0.85 and best.predict_proba(X[:3]).shape == (3, 10)
    assert {row["scheme"] for row in best.quantizer_.layers_} <= {"int8", "float32"}


@pytest.mark.parametrize(
    "settings",
    [
        {"scheme": "int4"}, {"scheme": "codebook", "bits": 3}, {"scheme": "product", "group": 4},
        {"scheme": "auto", "size_budget": 9000}, {"scheme": "auto", "max_drop": 0.05},
        {"scheme": {"*": "int4"}, "bits": 5},
    ],
    ids=str,
)  # fmt: skip
def test_quantizers_of_few_bits(settings):
    X, y = load_digits(return_X_y=True)
    X = X.astype("f4") / 16
    model = MLPClassifier((90, 40), max_iter=25, random_state=0).fit(X[:1200], y[:1200])
    quantizer = ModelQuantizer(**settings)
    small = quantizer.fit_transform(model, X[:1200], y[:1200])
    assert np.mean(small.predict(X[1200:]) == y[1200:]) > model.score(X[1200:], y[1200:]) - 0.05
    assert small.nbytes == quantizer.nbytes_[1] < 0.3 * quantizer.nbytes_[0]
    assert (
        quantizer.scores_["score"] == "accuracy" and quantizer.layers_ and quantizer.ranges_ == {}
    )
    wanted = fastvq.compress(
        model, X[:1200], y[:1200], **{"activations": "dynamic", "max_samples": 4096, **settings}
    )
    np.testing.assert_array_equal(small.predict_proba(X), wanted.predict_proba(X))
    assert quantizer.inverse_transform(small).nbytes > 2 * small.nbytes
    assert hasattr(quantizer, "next_kilobyte_") == (settings["scheme"] == "auto")
    quantizer.set_params(scheme="int8", size_budget=None, max_drop=None).fit(model, X[:100])
    assert not hasattr(quantizer, "next_kilobyte_")
    with pytest.raises(ValueError, match="one size"):
        quantizer.plot()


def test_a_search_over_schemes():
    X, y = load_digits(return_X_y=True)
    inner = MLPClassifier((48,), max_iter=20, random_state=0)
    search = GridSearchCV(
        CompressedClassifier(inner, ModelQuantizer()),
        {"quantizer__scheme": ["int8", "int4", "sign"]}, cv=2,
    ).fit(X[:400] / 16, y[:400])  # fmt: skip
    assert search.best_params_["quantizer__scheme"] in ("int8", "int4")


def test_parameters_of_the_default_quantizer():
    model = CompressedClassifier(LogisticRegression())
    assert model.quantizer is None
    model.set_params(quantizer__calibration="minmax", estimator__C=2.0)
    assert model.quantizer.calibration == "minmax" and model.estimator.C == 2.0


def test_methods_of_the_estimator():
    X, y = load_digits(return_X_y=True)
    fitted = CompressedClassifier(RidgeClassifier()).fit(X, np.array([f"digit {i}" for i in y]))
    assert not hasattr(fitted, "predict_proba") and fitted.decision_function(X[:2]).shape == (2, 10)
    assert fitted.predict(X[:1])[0].startswith("digit")


CLASSIFIERS = [
    LogisticRegression(max_iter=200),
    RidgeClassifier(),
    SGDClassifier(random_state=0),
    SVC(random_state=0),
    KNeighborsClassifier(),
    MLPClassifier((64, 32), max_iter=40, random_state=0),
    RandomForestClassifier(20, random_state=0),
    BaggingClassifier(LogisticRegression(), 5, random_state=0),
    VotingClassifier([("a", LogisticRegression()), ("b", MLPClassifier((40,), max_iter=30))]),
]
REGRESSORS = [
    Ridge(),
    SVR(),
    KNeighborsRegressor(),
    MLPRegressor(hidden_layer_sizes=(64, 32), max_iter=150, random_state=0),
]


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", CLASSIFIERS, ids=lambda m: type(m).__name__)
def test_classifiers_lose_little(model, seed, activations):
    rng = np.random.default_rng(seed)
    n_features, n_classes = int(rng.integers(10, 120)), int(rng.integers(2, 12))
    X, y = make_classification(
        900, n_features, n_informative=8, n_classes=n_classes, class_sep=1.5, random_state=seed
    )
    scale = np.exp(rng.normal(scale=seed, size=n_features))  # columns of unlike sizes
    lost = _lost(make_pipeline(StandardScaler(), model), X * scale, y, activations)
    assert lost <= 0.01


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("model", REGRESSORS, ids=lambda m: type(m).__name__)
def test_regressors_lose_little(model, activations):
    X, y = make_regression(600, 60, n_informative=20, noise=5, random_state=0)
    y = (y - y.mean()) / y.std()
    assert _lost(make_pipeline(StandardScaler(), model), X, y, activations) <= 0.01


def _lost(model, X, y, activations):
    """What of the score on rows that nobody saw is lost."""
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    small = fastvq.compress(model, X, y, scheme="int8", activations=activations)
    found = small.predict(X_test.astype("f4"))
    if y.dtype.kind == "f":
        after = 1 - ((found - y_test) ** 2).sum() / ((y_test - y_test.mean()) ** 2).sum()
    else:
        after = np.mean(found == y_test)
    return model.score(X_test, y_test) - after
