"""Definitions of pointwise, reducing and recurrent operators: shape rules, edges, onnxruntime."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from fastvq.runtime import functions
from fastvq.runtime.ops import Form, operators


def run(name, *arrays, **attributes):
    """Outputs by the definition, whose shapes and dtypes have to be those of the shape rule."""
    operator = operators()[name]
    forms = operator.forms(
        [None if a is None else Form(a.shape, a.dtype, a) for a in arrays], attributes
    )
    found = operator.run(arrays, attributes)
    assert [(f.shape, f.dtype) for f in forms] == [(a.shape, a.dtype) for a in found]
    return found if len(found) > 1 else found[0]


def refused(message, name, *arrays, **attributes):
    operator = operators()[name]
    with pytest.raises(ValueError, match=message):
        operator.forms([Form(a.shape, a.dtype, a) for a in arrays], operator.complete(attributes))


X = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)


# Pointwise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", functions.UNARY)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8", "bool"])
def test_unary_keeps_its_dtype_or_refuses(function, dtype):
    x = (3 * X).astype(dtype)
    try:
        expected = functions.result_dtype(function, x.dtype)
    except ValueError:
        refused("does not take", "Unary", x, function=function)
        return
    assert run("Unary", x, function=function, alpha=0.5, beta=0.75).dtype == expected


def test_unknown_functions_are_refused():
    refused("no function 'no'", "Unary", X, function="no")
    refused("no function 'no'", "Binary", X, X, function="no")
    refused("no function 'no'", "Reduce", X, function="no")


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1.2e-7), (np.float64, 1e-12)])
def test_quantiles_of_the_normal_distribution(dtype, error):
    p = np.concatenate([np.linspace(0.001, 0.999, 999), np.logspace(-44, -3, 301)]).astype(dtype)
    expected = np.array([NormalDist().inv_cdf(v) for v in p.astype(float)])
    np.testing.assert_allclose(functions.normal_quantile(p), expected, rtol=error, atol=1e-16)
    with np.errstate(all="ignore"):
        edges = functions.normal_quantile(np.array([0, 0.5, 1, -1, 2, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(edges, [-np.inf, 0, np.inf, *[np.nan] * 4])


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1.2e-7), (np.float64, 1e-13)])
def test_erf_is_that_of_the_standard_library(dtype, error):
    x = np.concatenate([np.linspace(-7, 7, 5001), np.logspace(-30, 0, 301)]).astype(dtype)
    expected = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(functions.erf(x), expected, rtol=error)
    edges = functions.erf(np.array([np.inf, -np.inf, np.nan], dtype))
    np.testing.assert_array_equal(edges, np.array([1, -1, np.nan]))


def test_stable_functions_do_not_overflow():
    x = np.float32([-1000, -100, 0, 100, 1000])
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_array_equal(functions.sigmoid(x)[[0, 2, 4]], [0, 0.5, 1])
        np.testing.assert_allclose(functions.softplus(x)[[0, 3, 4]], [0, 100, 1000])
        np.testing.assert_array_equal(
            run("Unary", x, function="elu", alpha=2.0)[[0, 4]], [-2, 1000]
        )


@pytest.mark.parametrize("function", ["relu", "clip", "leaky_relu", "sigmoid", "tanh", "gelu"])
def test_nan_passes(function):
    assert np.isnan(run("Unary", np.float32([np.nan]), function=function, alpha=-1.0, beta=1.0))


def test_whole_numbers():
    a, b = np.array([7, -7, 7, -7, 5]), np.array([2, 2, -2, -2, 0])
    np.testing.assert_array_equal(run("Binary", a, b, function="divide"), [3, -3, -3, 3, 0])
    np.testing.assert_array_equal(run("Binary", a, b, function="modulo"), [1, 1, -1, -1, 0])
    np.testing.assert_array_equal(run("Binary", a, b, function="remainder"), [1, -1, 1, -1, 0])
    np.testing.assert_array_equal(run("Binary", a, b, function="power"), [49, 49, 0, 0, 1])
    low, high = -math.inf, 6.0
    np.testing.assert_array_equal(
        run("Unary", a, function="clip", alpha=low, beta=high), [6, -7, 6, -7, 5]
    )


def test_dtypes_that_do_not_go_together():
    refused("of one dtype", "Binary", X, X.astype(np.int64), function="add")
    refused("does not take bool", "Binary", X > 0, X > 0, function="add")
    refused("does not take float32", "Binary", X, X, function="and")
    refused("bool", "Where", X, X, X)
    refused("no dtype 'complex64'", "Cast", X, dtype="complex64")
    assert run("Binary", X, np.int64([2]), function="power").dtype == np.float32


# Reductions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [None, [1], [-1, 0], []])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_reductions_beside_their_formulas(axes, keep, dtype):
    x = (4 * np.abs(X)).astype(dtype) + np.ones(1, dtype)
    wide = x.astype(np.float64)
    along = {"axis": None if axes is None else tuple(axes), "keepdims": keep}
    formulas = {
        "sum": wide.sum(**along),
        "mean": wide.mean(**along),
        "max": wide.max(**along),
        "min": wide.min(**along),
        "product": wide.prod(**along),
        "l1": np.abs(wide).sum(**along),
        "l2": np.sqrt((wide**2).sum(**along)),
        "sum_square": (wide**2).sum(**along),
        "log_sum": np.log(wide.sum(**along)),
        "log_sum_exp": np.log(np.exp(wide).sum(**along)),
    }
    axes = None if axes is None else np.array(axes, np.int64)
    for function, expected in formulas.items():
        found = run("Reduce", x, axes, function=function, keep=keep)
        if dtype == "int32":
            if function == "product":
                continue  # overflows
            expected = expected.astype(np.int32)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_reductions_of_nothing():
    nothing = np.zeros((0, 2), np.float32)
    wanted = {"sum": 0, "product": 1, "max": -np.inf, "min": np.inf, "mean": np.nan}
    for function, value in wanted.items():
        found = run("Reduce", nothing, np.array([0]), function=function, keep=False)
        np.testing.assert_array_equal(found, [value, value])


def test_axes_that_are_not_there():
    refused("no axis 3", "Reduce", X, np.array([3]), function="sum")
    refused("twice", "Reduce", X, np.array([1, -2]), function="sum")
    refused("no axis", "Softmax", X, axis=3)
    refused("floats", "Softmax", X.astype(np.int64))
    refused("nothing to choose", "ArgMax", X[:0])
    refused("6 values", "TopK", X, np.array(6))
    refused("does not go", "LayerNorm", X, X[0, 0, :3])


def test_ties_and_nan():
    x = np.float32([[1, 3, 3], [np.nan, 1, 1]])
    np.testing.assert_array_equal(run("ArgMax", x, axis=1, keep=False), [1, 0])
    np.testing.assert_array_equal(run("ArgMax", x, axis=1, keep=False, last=True), [2, 0])
    np.testing.assert_array_equal(run("ArgMax", x, axis=1, keep=False, least=True), [0, 0])
    values, places = run("TopK", x, np.array([2]))
    np.testing.assert_array_equal(places, [[1, 2], [0, 1]])
    np.testing.assert_array_equal(values, [[3, 3], [np.nan, 1]])
    np.testing.assert_array_equal(run("TopK", x, np.array([2]), largest=False)[1], [[0, 1], [1, 2]])


def test_cumulative_sums():
    x = np.float32([1, 2, 3])
    axis = np.array(0)
    for exclusive, reverse, wanted in [
        (False, False, [1, 3, 6]),
        (True, False, [0, 1, 3]),
        (False, True, [6, 5, 3]),
        (True, True, [5, 3, 0]),
    ]:
        found = run("CumSum", x, axis, exclusive=exclusive, reverse=reverse)
        np.testing.assert_array_equal(found, wanted)


def test_softmax_of_masked_rows():
    x = np.float32([[-np.inf, 0, 1000], [-np.inf, -np.inf, -np.inf], [0, np.nan, 1]])
    np.testing.assert_array_equal(run("Softmax", x)[0], [0, 0, 1])
    assert run("Softmax", x, log=True)[0, 2] == 0


# Recurrent layers --------------------------------------------------------------------------------


def test_rows_that_end_early_are_as_alone():
    rng = np.random.default_rng(1)
    shapes = [(2, 12, 5), (2, 12, 3), (2, 12)]
    parts = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    lengths = np.array([4, 2, 0], np.int32)
    y, h, c = run("LSTM", X, *parts, lengths, direction="bidirectional")
    for row, length in enumerate(lengths):
        alone = run("LSTM", X[row : row + 1, :length], *parts, direction="bidirectional")
        np.testing.assert_allclose(y[row, :length], alone[0][0], rtol=1e-5)
        np.testing.assert_array_equal(y[row, length:], 0)
        np.testing.assert_allclose(h[row], alone[1][0], rtol=1e-5)
        np.testing.assert_allclose(c[row], alone[2][0], rtol=1e-5)


def test_shapes_of_recurrent_layers_are_checked():
    W, R = np.zeros((1, 12, 5), np.float32), np.zeros((1, 12, 3), np.float32)
    refused("direction", "LSTM", X, W, R, direction="sideways")
    refused("weight", "LSTM", X, W, R, direction="bidirectional")
    refused("weight", "GRU", X, W, R)
    refused("wanted floats", "LSTM", X[0], W, R)
    refused("bias", "LSTM", X, W, R, np.zeros((1, 3), np.float32))
    refused("activation", "RNN", X, W[:, :3], R[:, :3], activation="gelu")
