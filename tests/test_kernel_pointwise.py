"""Functions, arithmetic, choice and casts by kernels: against definitions, and the promises."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from nodes import compiled, defined, level, plan_of  # noqa: F401 - a fixture
from oracles import SIZES, THREADS

from fastvq import _kernels
from fastvq.runtime import functions
from fastvq.runtime.lowering import pointwise
from fastvq.runtime.registry import KernelCall

KERNELS = _kernels.load("pointwise")
FUNCTIONS = sorted({**KERNELS.functions, **KERNELS.functions_wide})
BINARIES = sorted(KERNELS.binaries)
TYPES = ["float32", "int64", "int32", "bool"]

# Every order of magnitude, the middle in detail, subnormal numbers, and what is no number.
VALUES = np.concatenate(
    [
        np.linspace(-110, 110, 20011),
        np.linspace(-10, 10, 20011),
        np.linspace(-1, 1, 5001),
        np.float32(1) - np.logspace(-8, 0, 301),
        *(sign * np.logspace(-45, 38.5, 5001) for sign in (1, -1)),
        [0, 0.5, 1.5, 2.5, -0.5, -1.5, 2.0**23 - 0.5, 2.0**24, np.inf, -np.inf, np.nan],
    ]
).astype(np.float32)
ALPHA, BETA = np.float32(0.7), np.float32(1.05)
# Most units in the last place; where a sum of alpha and beta cancels only its own scale counts.
ULPS = {"gelu": 8, **dict.fromkeys(KERNELS.functions_wide, 0.51), "normal_quantile": 1}


@pytest.fixture
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(pointwise, "FUNCTION_WORK", 1)
    monkeypatch.setattr(pointwise, "MEMORY_WORK", 1)


def true_value(function, x):
    """The definition in float64, but for tails in which that would cancel."""
    if function == "gelu":
        tails = np.array([math.erfc(v) for v in np.abs(x) * math.sqrt(0.5)])
        return x * np.where(x >= 0, 2 - tails, tails) / 2
    if function == "gelu_tanh":
        return x * functions.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return functions.UNARY[function](x, float(ALPHA), float(BETA))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_are_right_to_their_last_places(function, level):  # noqa: F811
    y = compiled("Unary", [VALUES], function=function, alpha=float(ALPHA), beta=float(BETA))
    with np.errstate(all="ignore"):
        exact = true_value(function, VALUES.astype(np.float64))
        expected = exact.astype(np.float32)
    for is_so in (np.isnan, np.isinf):
        np.testing.assert_array_equal(is_so(y), is_so(expected))
    finite = np.isfinite(expected)
    # A product with a number below the smallest normal one has its absolute rounding times x.
    scale = np.maximum(np.abs(expected), 2.0**-126 * np.clip(np.abs(VALUES), 1, 200))
    if function in ("hard_sigmoid", "hard_swish"):
        scale = np.maximum(1, scale)
    if function in ("gelu", "gelu_tanh"):
        # exp of an argument a rounds to about |a| units; beyond, tails have the rounding of x².
        with np.errstate(over="ignore"):
            scale = scale * np.maximum(1, VALUES**2)
        finite &= np.abs(VALUES) < 12
    error = np.abs(y[finite] - exact[finite]) / np.spacing(scale[finite].astype(np.float32))
    assert error.max() <= ULPS.get(function, 4)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_definitions_and_kernels_agree(function):
    x = VALUES[np.abs(VALUES) < 50]
    attributes = {"function": function, "alpha": 0.5, "beta": 0.75}
    wanted = defined("Unary", [x], **attributes)
    found = compiled("Unary", [x], **attributes)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_value_is_the_same_wherever_it_lies(function, threads_at_once):
    attributes = {"function": function, "alpha": 0.5, "beta": 0.75}
    x = np.random.default_rng(0).permutation(VALUES)[:1009]
    whole = compiled("Unary", [x], **attributes)
    for n, first, threads in zip(SIZES, range(100), itertools.cycle(THREADS), strict=False):
        part = compiled("Unary", [x[first : first + n]], threads=threads, **attributes)
        assert part.tobytes() == whole[first : first + n].tobytes()


@pytest.mark.parametrize("function", ["isnan", "isinf"])
def test_questions(function, level):  # noqa: F811
    np.testing.assert_array_equal(
        compiled("Unary", [VALUES], function=function),
        defined("Unary", [VALUES], function=function),
    )
    truth = VALUES > 0
    np.testing.assert_array_equal(compiled("Unary", [truth], function="not"), ~truth)


# Two values --------------------------------------------------------------------------------------


def numbers(rng, shape, dtype):
    if dtype == "float32":
        x = rng.standard_normal(shape).astype(np.float32)
        x[rng.random(shape) < 0.1] = np.nan
        return np.where(rng.random(shape) < 0.2, np.float32(0.5), x)
    return rng.integers(-3, 4, shape).astype(dtype)


SHAPES = [
    [(1,), (1,)],
    [(), ()],
    [(17,), ()],
    [(), (33,)],
    [(3, 0, 2), (2,)],
    [(5, 7), (7,)],
    [(5, 7), (5, 1)],
    [(5, 1), (1, 7)],
    [(2, 3, 1, 5), (3, 4, 1)],
    [(2, 1, 3, 1, 2, 1), (1, 2, 1, 3, 1, 2)],
    [(40_000,), (40_000,)],
]


@pytest.mark.parametrize(("function", "kind"), BINARIES)
def test_functions_of_two(function, kind, level, threads_at_once):  # noqa: F811
    rng = np.random.default_rng(1)
    for shapes, threads in zip(SHAPES, itertools.cycle(THREADS), strict=False):
        a, b = (numbers(rng, shape, TYPES[kind]) for shape in shapes)
        wanted = defined("Binary", [a, b], function=function)
        found = compiled("Binary", [a, b], threads=threads, function=function)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


@settings(deadline=None, max_examples=60)
@given(
    mutually_broadcastable_shapes(num_shapes=3, max_dims=5, max_side=5, min_side=0),
    st.sampled_from(THREADS),
)
def test_shapes_are_broadcast_as_by_numpy(found, threads):
    rng = np.random.default_rng(2)
    condition, a, b = (numbers(rng, shape, "int32") for shape in found.input_shapes)
    np.testing.assert_array_equal(
        compiled("Binary", [a, b], threads=threads, function="subtract"), a - b
    )
    np.testing.assert_array_equal(
        compiled("Where", [condition > 0, a, b], threads=threads), np.where(condition > 0, a, b)
    )


def test_division_of_the_least_number_by_minus_one():
    for dtype in ("int32", "int64"):
        least = np.array([np.iinfo(dtype).min, 5, 5], dtype)
        by = np.array([-1, 0, -1], dtype)
        np.testing.assert_array_equal(
            compiled("Binary", [least, by], function="divide"), [least[0], 0, -5]
        )


@pytest.mark.parametrize("exponent", [4, 3, 2, 1, 0.5, -1])
def test_known_powers(exponent):
    x = np.abs(VALUES[:100]) + 1 if exponent < 1 else VALUES[::500]
    e = np.array([exponent], np.float32)
    found = compiled("Binary", [x, e], known=[1], function="power")
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(found, x ** np.float32(exponent), rtol=1e-6)


def test_what_has_no_kernel_runs_by_definition():
    x = np.abs(VALUES[:10]).astype(np.float64)
    plan = plan_of("Unary", [x], function="exp")
    assert not any(isinstance(step, KernelCall) for step in plan.steps)
    a, b = np.ones((1, 2) * 4, np.float32), np.ones((2, 1) * 4, np.float32)
    plan = plan_of("Binary", [a, b], function="add")  # more dimensions than a walk has
    assert not any(isinstance(step, KernelCall) for step in plan.steps)


# Choice and casts --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*TYPES, "float64", "uint8"])
def test_where(dtype, level, threads_at_once):  # noqa: F811
    rng = np.random.default_rng(3)
    shapes = [(4, 9), (9,), (4, 1), ()]
    for c, a, b in itertools.product(shapes, repeat=3):
        condition = rng.random(c) < 0.5
        yes, no = (rng.integers(0, 2, shape).astype(dtype) for shape in (a, b))
        np.testing.assert_array_equal(
            compiled("Where", [condition, yes, no], threads=2), np.where(condition, yes, no)
        )


@pytest.mark.parametrize("source", [*TYPES, "uint8"])
@pytest.mark.parametrize("target", TYPES)
def test_casts(source, target, level):  # noqa: F811
    rng = np.random.default_rng(4)
    x = (100 * rng.standard_normal(101) * (rng.random(101) < 0.8)).astype(source)
    np.testing.assert_array_equal(compiled("Cast", [x], dtype=target), x.astype(target))
