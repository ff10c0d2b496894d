"""Curves of columns, probabilities of pairs, by kernels: against definitions, and the promises."""

import itertools

import numpy as np
import pytest
from nodes import compiled, defined, level, plan_of  # noqa: F401 - a fixture
from oracles import SIZES, THREADS

from fastvq.runtime.graph import GraphError
from fastvq.runtime.lowering import scores


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(scores, "_CURVE_WORK", 1)
    monkeypatch.setattr(scores, "_PAIR_WORK", 1)


def curves(rng, sizes):
    """first, points and values of curves of so many points."""
    points = [np.unique(rng.standard_normal(n).astype(np.float32)) for n in sizes]
    first = np.cumsum([0, *map(len, points)])
    return first, np.concatenate(points), rng.standard_normal(first[-1]).astype(np.float32)


@pytest.mark.parametrize("n", [1, 7, 33])
def test_curves(n, level):  # noqa: F811
    rng = np.random.default_rng(n)
    first, points, values = curves(rng, SIZES[: n % 9 + 1])
    x = (2 * rng.standard_normal((n, len(first) - 1))).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[0, 0], x[-1, -1] = np.inf, -np.inf
    found = compiled("Interpolate", [x, first, points, values], [1, 2, 3], 2)
    wanted = defined("Interpolate", [x, first, points, values])
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_curves_at_their_points(level):  # noqa: F811
    """Values are met exactly, beyond the ends too."""
    points = np.array([-3, -1e-30, 0, 1e-30, 2, 2.0000002, 3e38], np.float32)
    values = np.array([5, 4, -1, 3, 7, -7, 1], np.float32)
    first = np.array([0, 7])
    x = np.concatenate([points, [-np.inf, -3e38, np.inf]]).astype(np.float32)[:, None]
    found = compiled("Interpolate", [x, first, points, values], [1, 2, 3])
    np.testing.assert_array_equal(found[:, 0], [*values, 5, 5, 1])


@pytest.mark.parametrize(
    ("first", "n_values", "message"),
    [
        ([0, 2, 2, 5], 5, "every curve has a point"),
        ([0, 2, 3, 6], 5, "every curve has a point"),
        ([1, 2, 3, 5], 5, "every curve has a point"),
        ([0, 2, 5], 5, "3 curves have 4 ends"),
        ([0, 2, 3, 5], 4, "do not go together"),
    ],
)
def test_curves_that_are_none(first, n_values, message):
    x, points = np.zeros((2, 3), np.float32), np.arange(5, dtype=np.float32)
    with pytest.raises(GraphError, match=message):
        plan_of("Interpolate", [x, np.array(first), points, points[:n_values]], [1, 2, 3])


def pairs_of(rng, n, k):
    """Some near 1/2, some near the ends."""
    x = 3 * rng.standard_normal((n, k * (k - 1) // 2)) * rng.choice([0.01, 1, 3], (n, 1))
    return np.clip(1 / (1 + np.exp(-x)), 1e-7, 1 - 1e-7).astype(np.float32)


@pytest.mark.parametrize("k", [2, 3, 4, 10, 33])
def test_pairs(k, level):  # noqa: F811
    rng = np.random.default_rng(k)
    pairs = pairs_of(rng, 40, k)
    found = compiled("Couple", [pairs], (), 2)
    np.testing.assert_allclose(found, defined("Couple", [pairs]), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_pairs_that_no_number_of_classes_has():
    for shape in ((3, 2), (3, 0), (3, 4), (3,)):
        with pytest.raises(GraphError, match="are not probabilities of pairs"):
            plan_of("Couple", [np.zeros(shape, np.float32)])


def test_a_row_alone_gets_the_same_bits():
    rng = np.random.default_rng(5)
    pairs = pairs_of(rng, 97, 5)
    first, points, values = curves(rng, [3, 17, 64])
    x = rng.standard_normal((97, 3)).astype(np.float32)
    cases = [("Couple", [pairs], ()), ("Interpolate", [x, first, points, values], (1, 2, 3))]
    for operator, (x, *rest), known in cases:
        whole = compiled(operator, [x, *rest], known)
        for n, threads in zip((1, 7, 33, 97), itertools.cycle(THREADS), strict=False):
            part = compiled(operator, [x[:n], *rest], known, threads)
            assert part.tobytes() == whole[:n].tobytes()
