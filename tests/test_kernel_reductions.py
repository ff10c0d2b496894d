"""Sums, extremes, softmax and normalisation by kernels: against definitions, and the promises."""

import itertools

import numpy as np
import pytest
from nodes import compiled, defined, level, plan_of  # noqa: F401 - a fixture
from oracles import FUSED, SIZES, THREADS

from fastvq import _kernels
from fastvq.runtime.lowering import reductions
from fastvq.runtime.registry import KernelCall

FUNCTIONS = ["sum", "mean", "sum_square", "l2", "l1", "max", "min"]
LENGTHS = [*SIZES, 4096, 4097, 10_001]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(reductions, "FUNCTION_WORK", 1)
    monkeypatch.setattr(reductions, "MEMORY_WORK", 1)


def some(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def agree(found, wanted, scale=1.0):
    """As the promise says: 1e-5, relative to what is added up."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_reductions_of_rows(function, level):  # noqa: F811
    for n, threads in zip(LENGTHS, itertools.cycle(THREADS), strict=False):
        x, axes = some(5, n, seed=n), np.array([1])
        found = compiled("Reduce", [x, axes], [1], threads, function=function)
        agree(found, defined("Reduce", [x, axes], function=function), n**0.5)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("keep", [True, False])
def test_reductions_of_pictures(function, keep, level):  # noqa: F811
    for size, channels in [(1, 1), (7, 3), (9, 17), (14, 64), (3, 31)]:
        x, axes = some(3, size, size + 1, channels), np.array([1, -2])
        found = compiled("Reduce", [x, axes], [1], 2, function=function, keep=keep)
        agree(found, defined("Reduce", [x, axes], function=function, keep=keep), size)


@pytest.mark.parametrize("axes", [None, [0], [0, 1], [], [2, 1], [3]])
def test_axes(axes):
    x = some(3, 1, 4, 5)
    axes = None if axes is None else np.array(axes, np.int64)
    inputs = [x] if axes is None else [x, axes]
    for function in FUNCTIONS:
        found = compiled("Reduce", inputs, [1][: len(inputs) - 1], function=function)
        agree(found, defined("Reduce", inputs, function=function), 10)


def test_axes_that_lie_apart_run_by_definition():
    x, axes = some(3, 4, 5), np.array([0, 2])
    plan = plan_of("Reduce", [x, axes], [1], function="sum")
    assert not any(isinstance(step, KernelCall) for step in plan.steps)
    agree(plan.run([x])[0], x.sum((0, 2), keepdims=True))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_infinity_and_nothing(function, level):  # noqa: F811
    x = some(70, 70)
    x[3, ::9] = np.nan
    x[4, 50], x[5, 69], x[6, 0] = np.inf, -np.inf, np.nan
    for axis in (0, 1):
        for part in (x, x[:, :5].copy(), x[:0], x[:, :0].copy()):
            inputs = [part, np.array([axis])]
            found = compiled("Reduce", inputs, [1], function=function)
            agree(found, defined("Reduce", inputs, function=function), 10)


def test_long_sums_keep_their_digits(level):  # noqa: F811
    """Half a unit in the last place for each of the sums that are taken one after the other."""
    x = np.full((1, 300_000), 0.1, np.float32)
    for part, axis, block in [(x, 1, 4096), (x[:, :90_000].reshape(-1, 3), 0, 128)]:
        found = compiled("Reduce", [part, np.array([axis])], [1], function="sum")
        one_by_one = 128 + -(-part.shape[axis] // block) + 5
        bound = one_by_one * 2.0**-24
        np.testing.assert_allclose(found.ravel(), part.sum(axis, np.float64).ravel(), rtol=bound)


@pytest.mark.parametrize("log", [False, True])
def test_softmax(log, level):  # noqa: F811
    for n, threads in zip(LENGTHS, itertools.cycle(THREADS), strict=False):
        x = 3 * some(3, n, seed=n)
        agree(compiled("Softmax", [x], (), threads, log=log), defined("Softmax", [x], log=log))
        x = 3 * some(2, 7, n % 100, seed=n)
        agree(
            compiled("Softmax", [x], (), threads, log=log, axis=1),
            defined("Softmax", [x], log=log, axis=1),
        )


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_of_masked_and_extreme_values(log, axis, level):  # noqa: F811
    x = some(40, 40)
    x[x > 1] = -np.inf
    x[3], x[:, 4] = -np.inf, -np.inf
    x[5, 5], x[6, 6], x[7, 7], x[8, 8] = np.nan, np.inf, 3e38, -3e38
    agree(compiled("Softmax", [x], log=log, axis=axis), defined("Softmax", [x], log=log, axis=axis))


def test_layer_norm(level):  # noqa: F811
    for n, threads in zip(LENGTHS, itertools.cycle(THREADS), strict=False):
        x, scale, bias = 100 + some(5, n, seed=n), some(n), some(n, seed=1)
        for inputs in ([x], [x, scale], [x, scale, bias], [x, None, bias]):
            found = compiled("LayerNorm", inputs, (), threads, epsilon=1e-3)
            exact = defined(
                "LayerNorm",
                [None if a is None else a.astype(np.float64) for a in inputs],
                epsilon=1e-3,
            )
            # A mean of about 100 is right to 1e-5, and so is what is left of x without it.
            np.testing.assert_allclose(found, exact, rtol=1e-4, atol=5e-5)


def test_layer_norm_over_several_axes():
    x, scale = some(3, 4, 5), some(4, 5)
    agree(compiled("LayerNorm", [x, scale], axis=1), defined("LayerNorm", [x, scale], axis=1))
    x[0, 0, 0] = np.nan
    found = compiled("LayerNorm", [x], axis=-2)
    assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_arg_max(last, least, axis):
    rng = np.random.default_rng(2)
    x = rng.integers(-3, 4, (7, 9, 11)).astype(np.float32)
    x[rng.random(x.shape) < 0.02] = np.nan
    x[3], x[4] = np.inf, -np.inf
    attributes = {"axis": axis, "last": last, "least": least, "keep": False}
    found = compiled("ArgMax", [x], (), 2, **attributes)
    np.testing.assert_array_equal(found, defined("ArgMax", [x], **attributes))


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_top_k(largest, axis, level):  # noqa: F811
    """Equal values, both zeros, infinity and NaN, in order; the first of equal ones first."""
    rng = np.random.default_rng(3)
    x = rng.integers(-3, 4, (9, 33, 17)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.1] = -0.0
    x[3], x[4, :5] = np.inf, -np.inf
    x[5] = rng.standard_normal(x.shape[1:]) * 1e-40
    for k, threads in zip((1, 2, 7, 9, 0), itertools.cycle(THREADS), strict=False):
        inputs, attributes = [x, np.array([k])], {"axis": axis, "largest": largest}
        found = (compiled if k else ran)("TopK", inputs, [1], threads, **attributes)
        for part, wanted in zip(found, defined("TopK", inputs, **attributes), strict=True):
            assert part.dtype == wanted.dtype
            np.testing.assert_array_equal(part, wanted)


def test_top_k_of_long_rows():
    x = some(3, 10_001)
    for k in (1, 100, 10_001):
        inputs = [x, np.array([k])]
        for part, wanted in zip(
            compiled("TopK", inputs, [1]), defined("TopK", inputs), strict=True
        ):
            np.testing.assert_array_equal(part, wanted)


def ran(operator, inputs, known, threads, **attributes):
    """By the definition, within a plan."""
    return plan_of(operator, inputs, known, threads, **attributes).run(inputs[:1])


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_running_sums(dtype, axis, level):  # noqa: F811
    x = (2e8 * some(5, 33, 17)).astype(dtype)  # sums pass the end of int32
    x[0, 0, 0] = np.nan if dtype == "float32" else 7
    for exclusive, reverse in itertools.product([False, True], repeat=2):
        attributes = {"exclusive": exclusive, "reverse": reverse}
        found = compiled("CumSum", [x, np.array(axis)], [1], 2, **attributes)
        wanted = defined("CumSum", [x, np.array(axis)], **attributes)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


CALLS = [
    ("Softmax", {}),
    ("Softmax", {"log": True}),
    ("LayerNorm", {}),
    *[("Reduce", {"function": function}) for function in FUNCTIONS],
]


@pytest.mark.parametrize(("operator", "attributes"), CALLS)
def test_a_row_alone_gets_the_same_bits(operator, attributes):
    for n in (7, 33, 97, 5000):
        x = some(13, n)
        rest = [np.array([1])] if operator == "Reduce" else []
        wanted = compiled(operator, [x, *rest], [1][: len(rest)], **attributes)
        for threads in THREADS:
            again = compiled(operator, [x, *rest], [1][: len(rest)], threads, **attributes)
            assert again.tobytes() == wanted.tobytes()
        for row in (0, 6, 12):
            alone = compiled(operator, [x[row : row + 1], *rest], [1][: len(rest)], **attributes)
            assert alone.tobytes() == wanted[row : row + 1].tobytes()


@pytest.mark.skipif(not FUSED, reason="this level has no fused multiply-add")
@pytest.mark.parametrize(("operator", "attributes"), CALLS)
def test_levels_that_fuse_give_the_same_bits(operator, attributes, monkeypatch):
    x = some(5, 5000)
    rest = [np.array([1])] if operator == "Reduce" else []
    found = set()
    for name in set(_kernels.levels_runnable()) - {"x86_64_v1"}:
        monkeypatch.setattr(_kernels, "_ACTIVE", name)
        found.add(compiled(operator, [x, *rest], [1][: len(rest)], **attributes).tobytes())
    assert len(found) == 1
