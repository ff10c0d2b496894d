"""More than a hundred random models of scikit-learn in 8-bit integers, each predictor among them:
what is lost, and where they load."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn import linear_model as lm
from sklearn import naive_bayes as nb
from sklearn.base import clone, is_classifier
from sklearn.compose import TransformedTargetRegressor
from sklearn.cross_decomposition import CCA, PLSCanonical
from sklearn.datasets import make_classification, make_regression
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import AdaBoostRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsOneClassifier, OutputCodeClassifier
from sklearn.multioutput import (
    ClassifierChain,
    MultiOutputClassifier,
    MultiOutputRegressor,
    RegressorChain,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils import all_estimators
from test_import_sklearn import CLASSIFIERS, REGRESSORS
from threadpoolctl import threadpool_limits

import fastvq
from fastvq.compress.importers.sklearn import supported

# Predictors that the lists of test_import_sklearn have not.
COUNTS = [nb.MultinomialNB(), nb.ComplementNB()]
OTHERS = [
    AdaBoostRegressor(n_estimators=9, random_state=0),
    DummyClassifier(),
    DummyRegressor(),
    GaussianProcessRegressor(RBF(20.0), alpha=0.1, optimizer=None, normalize_y=True),
    OneVsOneClassifier(lm.LogisticRegression()),
    OutputCodeClassifier(lm.LogisticRegression(), code_size=4, random_state=0),
    SelfTrainingClassifier(lm.LogisticRegression()),
    TransformedTargetRegressor(lm.Ridge(), transformer=StandardScaler()),
    lm.PassiveAggressiveRegressor(random_state=0),
    lm.RANSACRegressor(lm.Ridge(), min_samples=0.5, random_state=0),
    *(make_pipeline(MinMaxScaler(clip=True), bayes) for bayes in COUNTS),
    make_pipeline(KBinsDiscretizer(4, encode="ordinal"), nb.CategoricalNB(min_categories=4)),
]
OF_POSITIVE = [lm.PoissonRegressor(), lm.GammaRegressor(), lm.TweedieRegressor(power=1.5)]
OF_TWO_CLASSES = [
    FixedThresholdClassifier(lm.LogisticRegression(), threshold=0.4),
    TunedThresholdClassifierCV(lm.LogisticRegression(), cv=2),
]
OF_SEVERAL = [
    *(CCA(1), PLSCanonical(1), MultiOutputRegressor(lm.Ridge()), RegressorChain(lm.Ridge())),
    *(lm.MultiTaskLasso(0.01), lm.MultiTaskLassoCV(cv=2)),
    *(lm.MultiTaskElasticNet(0.01), lm.MultiTaskElasticNetCV(cv=2)),
    *(ClassifierChain(lm.LogisticRegression()), MultiOutputClassifier(lm.LogisticRegression())),
]
MODELS = [*CLASSIFIERS, *REGRESSORS, *OTHERS, *OF_POSITIVE, *OF_TWO_CLASSES, *OF_SEVERAL]
N_TEST, MOST_LOST = 1000, 0.01

# Where scikit-learn and all that it needs cannot be imported.
BARE = """
import sys
for name in ("sklearn", "scipy", "joblib", "pandas", "torch", "onnx"):
    sys.modules[name] = None
from pathlib import Path
import numpy as np
import fastvq
for path in sorted(Path(sys.argv[1]).glob("*.fvq")):
    stored = np.load(path.with_suffix(".npz"))
    np.testing.assert_array_equal(fastvq.load(path).predict(stored["X"]), stored["y"], str(path))
    print(path.stem)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def drawn(seed):
    """A model that is fitted on something random, with rows and answers that it has not seen."""
    rng = np.random.default_rng(seed)
    wanted = MODELS[seed]
    model, several = clone(wanted), wanted in OF_SEVERAL
    n_features = int(np.exp(rng.uniform(0, np.log(501))))
    n_train = int(rng.integers(300, 900))
    shared = {"n_samples": n_train + N_TEST, "n_features": n_features, "random_state": seed}
    informative = max(1, min(n_features, int(rng.integers(2, 20))))
    if is_classifier(model):
        n_classes = min(int(rng.integers(2, 51)), 1 << min(informative, 6))
        n_classes = 2 if several or wanted in OF_TWO_CLASSES else n_classes
        X, y = make_classification(
            n_informative=informative, n_redundant=0, n_repeated=0, n_classes=n_classes,
            n_clusters_per_class=1, class_sep=2.0, **shared,
        )  # fmt: skip
        y = np.stack([y, X[:, 0] > 0, X[:, -1] > 1], axis=1).astype(int) if several else y
    else:
        n_targets = 3 if several else 1
        X, y = make_regression(n_informative=informative, n_targets=n_targets, noise=1.0, **shared)
        y = (y - y.mean(axis=0)) / y.std(axis=0)
        y = np.exp(y) if wanted in OF_POSITIVE else y
    X = (X * np.exp(rng.normal(scale=rng.integers(0, 3), size=n_features))).astype(np.float32)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        model = make_pipeline(StandardScaler(), model).fit(X[:n_train], y[:n_train])
    return model, X, y, n_train


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(len(MODELS)))
def test_little_is_lost(seed, files):
    model, X, y, n_train = drawn(seed)
    small = fastvq.compress(
        model, X[:n_train], y[:n_train], scheme="int8", activations=("dynamic", "static")[seed % 2]
    )
    found = small.predict(X[n_train:])
    small.save(files / f"{seed}.fvq")
    np.savez(files / f"{seed}.npz", X=X[n_train:], y=found)
    before, after = (
        score(model, predicted, y[n_train:]) for predicted in (model.predict(X[n_train:]), found)
    )
    assert round(before - after, 6) <= MOST_LOST


def score(model, found, y):
    """Accuracy, of all labels of a row together, or R²: of some models `score` is another."""
    if is_classifier(model):
        return np.mean((found == y).reshape(len(y), -1).all(axis=1))
    errors, spread = found - y, y - y.mean(axis=0)
    return 1 - np.mean((errors**2).sum(axis=0) / (spread**2).sum(axis=0))


def test_every_predictor_is_among_them():
    kinds = all_estimators(type_filter=["classifier", "regressor"])
    tried = {type(getattr(model, "steps", [("", model)])[-1][1]).__name__ for model in MODELS}
    assert {name for name, _ in kinds} & {*supported()} <= tried and len(MODELS) >= 100


def test_all_load_where_only_numpy_is(files):
    saved = sorted(path.stem for path in files.glob("*.fvq"))
    assert saved
    command = [sys.executable, "-c", BARE, str(files)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert sorted(result.stdout.split()) == saved
