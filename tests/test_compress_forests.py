"""Ensembles of trees in few bits: what becomes of their answers, and of their size."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, make_classification, make_regression
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)

import fastvq


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


def schemes(model):
    return {n: e.scheme for n, e in model.graph.constants.items() if e.kind == "codebook"}


def test_few_values_are_kept_as_they_are(digits, tmp_path):
    """Without examples to judge by, nothing may move."""
    X, y = digits
    forest = RandomForestClassifier(30, random_state=0).fit(X, y)
    whole, small = fastvq.compress(forest), fastvq.compress(forest, scheme="int8")
    assert schemes(small)["values"] == "codebook 1 bit"
    assert small.nbytes < 0.25 * whole.nbytes
    np.testing.assert_array_equal(small.predict_proba(X), whole.predict_proba(X))
    small.save(tmp_path / "forest.fvq")
    again = fastvq.load(tmp_path / "forest.fvq")
    np.testing.assert_array_equal(again.predict_proba(X), whole.predict_proba(X))


def test_labels_hold_on_examples_and_beyond():
    X, y = make_classification(3000, 20, n_informative=9, n_classes=4, random_state=0)
    X = (X * np.logspace(-3, 3, 20)).astype(np.float32)  # units of any size
    forest = RandomForestClassifier(50, max_depth=12, random_state=0).fit(X[:1500], y[:1500])
    whole = fastvq.compress(forest)
    small = fastvq.compress(forest, X[:1500], scheme="int8")
    assert small.nbytes < 0.5 * whole.nbytes
    assert np.mean(small.predict(X[:1500]) != whole.predict(X[:1500])) <= 1e-3
    before, after = (np.mean(m.predict(X[1500:]) == y[1500:]) for m in (whole, small))
    assert after > before - 0.01
    report = str(small.report())
    assert "codebook" in report and "threshold" in report


def test_more_may_be_asked(digits):
    X, y = make_regression(2000, 10, noise=5, random_state=0)
    forest = RandomForestRegressor(20, random_state=0).fit(X, y)
    X, whole = X.astype(np.float32), fastvq.compress(forest)
    sizes = []
    for most in (1e-5, 1e-3, 5e-2):
        small = fastvq.compress(forest, X, scheme="int8", max_drop=most)
        sizes.append(small.nbytes)
        moved = np.square(small.predict(X) - whole.predict(X)).mean()
        assert moved <= most * whole.predict(X).var()
    assert sizes[0] > sizes[1] > sizes[2]


def test_sets_and_equal_numbers_do_not_move():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.integers(0, 40, 2000), rng.normal(size=2000)])
    y = (X[:, 0] % 3 == 0) ^ (X[:, 1] > 0)
    boosted = HistGradientBoostingClassifier(max_iter=30, categorical_features=[0]).fit(X, y)
    whole = fastvq.compress(boosted)
    small = fastvq.compress(boosted, X, scheme="int8", max_drop=0.5)
    names = [n for n in whole.graph.constants if n.startswith("threshold")]
    for name in names:
        tensors = [model.graph.constants[name].decode() for model in (whole, small)]
        np.testing.assert_array_equal(*tensors)
    assert names
