"""A hundred random models of scikit-learn in 8-bit integers: what is lost, where they load."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.datasets import make_classification, make_regression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_import_sklearn import CLASSIFIERS, REGRESSORS
from threadpoolctl import threadpool_limits

import fastvq

N_MODELS, N_TEST = 100, 1000
MOST_LOST = 0.01

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
    models = [*CLASSIFIERS, *REGRESSORS]
    model = clone(models[seed % len(models)])
    n_features = int(np.exp(rng.uniform(0, np.log(501))))
    n_train = int(rng.integers(300, 900))
    shared = {"n_samples": n_train + N_TEST, "n_features": n_features, "random_state": seed}
    informative = max(1, min(n_features, int(rng.integers(2, 20))))
    if is_classifier(model):
        n_classes = min(int(rng.integers(2, 51)), 1 << min(informative, 6))
        X, y = make_classification(
            n_informative=informative, n_redundant=0, n_repeated=0, n_classes=n_classes,
            n_clusters_per_class=1, class_sep=2.0, **shared,
        )  # fmt: skip
    else:
        X, y = make_regression(n_informative=informative, noise=1.0, **shared)
        y = (y - y.mean()) / y.std()
    X = (X * np.exp(rng.normal(scale=rng.integers(0, 3), size=n_features))).astype(np.float32)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        model = make_pipeline(StandardScaler(), model).fit(X[:n_train], y[:n_train])
    return model, X, y, n_train


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(N_MODELS))
def test_little_is_lost(seed, files):
    model, X, y, n_train = drawn(seed)
    small = fastvq.compress(
        model, X[:n_train], y[:n_train], scheme="int8", activations=("dynamic", "static")[seed % 2]
    )
    found = small.predict(X[n_train:])
    if is_classifier(model):
        score = np.mean(found == y[n_train:])
    else:
        errors, spread = found - y[n_train:], y[n_train:] - y[n_train:].mean()
        score = 1 - (errors**2).sum() / (spread**2).sum()
    small.save(files / f"{seed}.fvq")
    np.savez(files / f"{seed}.npz", X=X[n_train:], y=found)
    lost = model.score(X[n_train:], y[n_train:]) - score
    assert round(lost, 6) <= MOST_LOST


def test_all_load_where_only_numpy_is(files):
    saved = sorted(path.stem for path in files.glob("*.fvq"))
    assert saved
    command = [sys.executable, "-c", BARE, str(files)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert sorted(result.stdout.split()) == saved
