"""Which steps a value is cut into, and the second moments of what layers read."""

import numpy as np
import pytest

from fastvq.compress import moments, stats
from fastvq.compress.schemes.steps import channel_steps, wide_scale
from fastvq.runtime import Graph, Node, Value
from fastvq.runtime.encoding import Raw
from fastvq.runtime.ops import operators

RNG = np.random.default_rng(0)
SIZES = np.array([4.0, 1.0, 0.01, 0.0, 2.5])


def rounded(x, steps):
    q = np.clip(np.rint(x / steps.scale) + steps.zero_point, -128, 127)
    return (q - steps.zero_point) * np.float64(steps.scale)


@pytest.mark.parametrize("free_zero", [False, True])
@pytest.mark.parametrize("low", [0.0, -0.25, -1.0])
def test_channels(low, free_zero):
    """Every channel is covered, to half a step of its own; a dead one does no harm."""
    whole = (low * 4, 4.0)
    steps = channel_steps(low * SIZES, SIZES, 1 << 40, whole, SIZES**2, [], free_zero)
    x = SIZES * RNG.uniform(low, 1, (1000, 5))
    reach = SIZES * (1 - low if free_zero or low == 0 else 2)
    assert (np.abs(rounded(x, steps) - x) <= 0.51 * 1.02 * reach / 254 + 1e-9).all()
    assert np.ndim(steps.zero_point) == (1 if free_zero and low else 0) or free_zero
    assert np.isfinite(steps.scale).all() and (steps.scale > 0).all()


def test_few_values_are_given_room():
    few, many = (
        channel_steps(-SIZES, SIZES, n, (-9.0, 9.0), SIZES**2, [], False).scale for n in (10, 10**6)
    )
    assert (few[:2] > 1.1 * many[:2]).all()
    bound = channel_steps(0 * SIZES, SIZES, 10, (0.0, 4.0), SIZES**2, [], False)
    assert bound.scale.max() <= np.float32(4 / 255)  # none beyond that of all together


def test_weights_pay_for_steps():
    """Steps of its own for a channel make its weights smaller than those of the others."""
    sizes = np.array([1.0, 1e-3])
    large, small = np.array([[[1.0, 1.0]]]), np.array([[[1.0, 1e3]]])
    alone, other = (
        channel_steps(0 * sizes, sizes, 1 << 40, (0.0, 1.0), sizes**2, [weight], False).scale
        for weight in (small, large)
    )
    assert alone[1] / alone[0] == pytest.approx(1e-3, rel=0.03)  # and the margin of extremes
    assert other[1] >= alone[1]


def test_nothing_but_zeros():
    zeros = np.zeros(3)
    assert channel_steps(zeros, zeros, 5, (0.0, 0.0), zeros, [], False) == (1.0, 0)
    assert wide_scale(0.0, 0.0) > 0


LAYERS = {
    "dense": ("Dense", (50, 7, 12), (5, 12), {}),
    "conv": ("Conv", (6, 9, 8, 4), (5, 3, 3, 4), {"pads": (1, 1, 1, 1), "strides": (2, 1)}),
    "same": ("Conv", (6, 9, 8, 4), (5, 3, 2, 4), {"same": "upper", "dilations": (1, 2)}),
    "groups": ("Conv", (6, 9, 8, 6), (4, 3, 3, 3), {"groups": 2}),
    "depthwise": ("Conv", (6, 9, 8, 6), (6, 3, 3, 1), {"groups": 6, "pads": (1, 1, 1, 1)}),
    "sequence": ("Conv", (6, 31, 6), (4, 3, 6), {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_read(name):
    """Times the weight they are what the layer gives."""
    operator, shape, weight_shape, attributes = LAYERS[name]
    x, weight = (RNG.normal(size=s).astype("f4") for s in (shape, weight_shape))
    node = Node(operator, ["x", "w"], ["y"], attributes)
    (y,) = operators()[operator].run([x, weight], attributes)
    rows = moments.rows_read(node, x, weight_shape, 1 << 20)
    groups = len(rows)
    found = rows @ weight.reshape(groups, len(weight) // groups, -1).swapaxes(1, 2)
    np.testing.assert_allclose(found.transpose(1, 0, 2).reshape(y.shape), y, atol=1e-4)
    assert moments.rows_read(node, x, weight_shape, 4).shape[1] <= 9 * len(x)


def test_moments_do_not_depend_on_batches(monkeypatch):
    x, weight = RNG.normal(size=(40, 9, 8, 6)).astype("f4"), np.ones((6, 3, 3, 1), "f4")
    node = Node("Conv", ["x", "w"], ["y"], {"groups": 6})
    graph = Graph(
        [node],
        [Value("x", "float32", ("N", 9, 8, 6))],
        [Value("y", "float32", ("N", 7, 6, 6))],
        {"w": Raw(weight)},
    )
    ranges = stats.observe(graph, [x], ["x"])
    whole = moments.grams(graph, [x], [node], ranges)["y"]
    monkeypatch.setattr(stats, "_MEMORY", 1)
    parts = moments.grams(graph, [x], [node], ranges)["y"]
    np.testing.assert_array_equal(parts, whole)
    rows = moments.rows_read(node, x, weight.shape, 1 << 20).astype("f8")
    exact = np.swapaxes(rows, 1, 2) @ rows / rows.shape[1]
    np.testing.assert_allclose(whole, exact, atol=0.02)
    monkeypatch.setattr(moments, "_MOST_NUMBERS", 10)
    assert moments.grams(graph, [x], [node], ranges) == {}
