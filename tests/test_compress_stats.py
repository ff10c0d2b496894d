"""Ranges of values on examples: exact where they can be, the same however examples are cut."""

import numpy as np
import pytest

from fastvq.compress.stats import CALIBRATIONS, Statistics, batches_of, observe, parameters
from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph, Node, Value


def seen(*batches):
    statistics = Statistics("x")
    for batch in batches:
        statistics.add(np.asarray(batch, np.float32))
    return statistics


def squared_error(x, low, high):
    scale, zero_point = parameters(low, high)
    steps = np.clip(np.rint(x / scale) + zero_point, -128, 127) - zero_point
    return ((steps * scale - x) ** 2).mean()


@pytest.mark.parametrize("cuts", [[], [1], [500], [1, 2, 3, 999]])
def test_batches_make_no_difference(cuts):
    x = np.random.default_rng(0).standard_cauchy((1000, 3)).astype("f4")
    whole, parts = seen(x), seen(*np.split(x, cuts))
    for method in ("minmax", "percentile", "mse", "entropy"):
        assert whole.range(method) == parts.range(method)
    np.testing.assert_allclose(whole.channel_mean, parts.channel_mean, rtol=1e-12)
    assert (whole.channel_high == x.max(axis=0)).all()


def test_merged_is_as_if_seen_together():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(50, 2)), 1000 * rng.normal(size=(70, 2))
    merged, together = Statistics.merged([seen(a), seen(b)]), seen(a, b)
    for method in ("minmax", "percentile", "mse", "entropy"):
        assert merged.range(method) == together.range(method)


def test_least_squared_error_leaves_outliers_out():
    x = np.random.default_rng(2).laplace(size=100_000).astype("f4")
    least, whole = seen(x).range("mse"), seen(x).range("minmax")
    assert whole == (x.min(), x.max())
    assert squared_error(x, *least) < 0.9 * squared_error(x, *whole)
    candidates = [squared_error(x, whole[0] * s, whole[1] * s) for s in np.linspace(0.1, 1, 91)]
    assert squared_error(x, *least) < 1.02 * min(candidates)


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_every_method_keeps_zero_and_the_bulk(method):
    x = np.random.default_rng(3).gamma(2.0, size=(4000, 5)).astype("f4")
    low, high = seen(x).range(method)
    assert low == 0 and np.quantile(x, 0.95) < high <= x.max()
    low, high = seen(x - 2).range(method, symmetric=True)
    assert low == -high


@pytest.mark.parametrize("method", CALIBRATIONS)
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-30, 3e38, -1e-45])
def test_constants_are_exact(method, value):
    scale, zero_point = parameters(*seen(np.full((4, 2), value)).range(method))
    step = np.clip(np.rint(np.float32(value) / scale) + zero_point, -128, 127) - zero_point
    assert abs(step * scale - np.float32(value)) <= max(1e-6 * abs(value), 2.0**-126)


def test_a_huge_range():
    scale, zero_point = parameters(*seen([[1e-38, 1.0, 3e38, -3e38]]).range("mse"))
    assert np.isfinite(scale) and -128 <= zero_point <= 127


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_none(bad):
    with pytest.raises(ValueError, match="'x' has values that are NaN or infinite"):
        seen([[1.0, bad]])


def test_observed_on_a_graph():
    rng = np.random.default_rng(4)
    x, weight = rng.normal(size=(600, 4)).astype("f4"), rng.normal(size=(3, 4)).astype("f4")
    graph = Graph(
        [Node("Dense", ("x", "w"), ("h",)), Node("Unary", ("h",), ("y",), {"function": "tanh"})],
        [Value("x", "float32", ("N", 4))],
        [Value("y", "float32", ("N", 3))],
        {"w": Raw(weight)},
    )
    found = observe(graph, [x], ["x", "h"])
    assert found["x"].low == x.min() and found["x"].count == x.size
    np.testing.assert_allclose(found["h"].high, (x @ weight.T).max(), rtol=1e-5)
    with pytest.raises(ValueError, match="no rows"):
        observe(graph, [x[:0]], ["h"])


def test_batches_of_a_graph_with_a_fixed_size():
    graph = Graph([], [Value("x", "float32", (2, 3))], [Value("x", "float32", (2, 3))], {})
    assert [len(b) for (b,) in batches_of(graph, [np.zeros((4, 3), "f4")], 100)] == [2, 2]
