"""Functions of one and two values: the meaning of activations and arithmetic, in NumPy."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.polynomial import Chebyshev

__all__ = ["BINARY", "COMPARISONS", "UNARY", "apply", "combine", "combined_dtype", "result_dtype"]


# ---- one value ---------------------------------------------------------------------------------


def sigmoid(x):
    """1 / (1 + exp(-x)), from the side on which exp cannot overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def softplus(x):
    """log(1 + exp(x))."""
    return np.logaddexp(x, x.dtype.type(0))


@cache
def _erf_series(bound):
    """erf(x) / x on 0 .. bound as a series in x²: entire there, so that few terms are exact."""
    quotient = np.vectorize(lambda t: math.erf(math.sqrt(t)) / math.sqrt(t), otypes=[float])
    # The nodes of Chebyshev's interpolation lie within the domain, never on 0.
    return Chebyshev.interpolate(quotient, 24 if bound == 4 else 64, domain=[0, bound**2])


def erf(x):
    """2/√π · ∫₀ˣ exp(-t²) dt, right to the last bit of float32, to 1e-13 of float64."""
    bound = 4 if x.dtype == np.float32 else 6  # from where on erf rounds to ±1
    y = np.clip(x, -bound, bound).astype(np.float64)
    y = np.where(np.abs(y) < bound, y * _erf_series(bound)(y * y), np.sign(y))
    return y.astype(x.dtype)


def gelu(x):
    """x · Φ(x), Φ being the normal distribution (Hendrycks and Gimpel, 2016)."""
    wide = x.astype(np.float64)
    return (0.5 * wide * (1 + erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def gelu_tanh(x):
    """GELU with the approximation of Φ by tanh that came with it."""
    wide = x.astype(np.float64)
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1 + np.tanh(inner))).astype(x.dtype)


@cache
def _normal_slopes():
    """z / (2p - 1) with Φ(z) = p as series: in w = -log(4p (1 - p)) up to 6; beyond, t times it, in
    t = 1 / √w (Giles, "Approximating the erfinv function", 2010)."""

    def slope(w):
        x = math.sqrt(-math.expm1(-w))
        return NormalDist().inv_cdf(math.exp(-w) / (2 * (1 + x))) / -x

    near = np.vectorize(slope, otypes=[float])
    far = np.vectorize(lambda t: t * slope(t**-2), otypes=[float])
    most = -math.log(np.finfo(np.float64).tiny)
    return (
        Chebyshev.interpolate(near, 24, domain=[0, 6]),
        Chebyshev.interpolate(far, 40, domain=[most**-0.5, 6**-0.5]),
    )


def normal_quantile(p):
    """z with Φ(z) = p, Φ being the normal distribution; of 0 and 1 infinite, beyond them NaN."""
    near, far = _normal_slopes()
    wide = p.astype(np.float64)
    w = -np.log(4 * wide * (1 - wide))
    root = np.sqrt(np.maximum(w, 6))
    z = (2 * wide - 1) * np.where(w < 6, near(np.minimum(w, 6)), root * far(1 / root))
    z = np.where((wide > 0) & (wide < 1), z, np.where(wide == 1, np.inf, np.nan))
    return np.where(wide == 0, -np.inf, z).astype(p.dtype)


def _clip(x, low, high):
    if x.dtype.kind in "iu":
        limits = np.iinfo(x.dtype)
        low, high = (int(min(max(v, limits.min), limits.max)) for v in (low, high))
    return np.minimum(np.maximum(x, x.dtype.type(low)), x.dtype.type(high))


def _relu(x):
    return np.maximum(x, x.dtype.type(0))


def _hard_sigmoid(x, a, b):
    return _clip(x * x.dtype.type(a) + x.dtype.type(b), 0, 1)


def _elu(x, a):
    return np.where(x > 0, x, x.dtype.type(a) * np.expm1(np.minimum(x, x.dtype.type(0))))


def _celu(x, a):
    a = x.dtype.type(a)
    return np.where(x > 0, x, a * np.expm1(np.minimum(x, x.dtype.type(0)) / a))


# Each takes the value and the two parameters that a node may have; most ignore them.
UNARY = {
    "identity": lambda x, a, b: x,
    # activations
    "relu": lambda x, a, b: _relu(x),
    "clip": _clip,
    "leaky_relu": lambda x, a, b: np.where(x >= 0, x, x * x.dtype.type(a)),
    "thresholded_relu": lambda x, a, b: np.where(x <= a, x.dtype.type(0), x),
    "elu": lambda x, a, b: _elu(x, a),
    "selu": lambda x, a, b: x.dtype.type(b) * _elu(x, a),
    "celu": lambda x, a, b: _celu(x, a),
    "softplus": lambda x, a, b: softplus(x),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda x, a, b: x * _hard_sigmoid(x, 1 / 6, 0.5),
    "sigmoid": lambda x, a, b: sigmoid(x),
    "silu": lambda x, a, b: x * sigmoid(x),
    "mish": lambda x, a, b: x * np.tanh(softplus(x)),
    "tanh": lambda x, a, b: np.tanh(x),
    "erf": lambda x, a, b: erf(x),
    "gelu": lambda x, a, b: gelu(x),
    "gelu_tanh": lambda x, a, b: gelu_tanh(x),
    "normal_quantile": lambda x, a, b: normal_quantile(x),
    # arithmetic
    "exp": lambda x, a, b: np.exp(x),
    "log": lambda x, a, b: np.log(x),
    "sqrt": lambda x, a, b: np.sqrt(x),
    "reciprocal": lambda x, a, b: 1 / x,
    "abs": lambda x, a, b: np.abs(x),
    "negative": lambda x, a, b: -x,
    "sign": lambda x, a, b: np.sign(x),
    "floor": lambda x, a, b: np.floor(x),
    "ceil": lambda x, a, b: np.ceil(x),
    "round": lambda x, a, b: np.rint(x),  # half to even
    # trigonometry
    "sin": lambda x, a, b: np.sin(x),
    "cos": lambda x, a, b: np.cos(x),
    "tan": lambda x, a, b: np.tan(x),
    "asin": lambda x, a, b: np.arcsin(x),
    "acos": lambda x, a, b: np.arccos(x),
    "atan": lambda x, a, b: np.arctan(x),
    "sinh": lambda x, a, b: np.sinh(x),
    "cosh": lambda x, a, b: np.cosh(x),
    "asinh": lambda x, a, b: np.arcsinh(x),
    "acosh": lambda x, a, b: np.arccosh(x),
    "atanh": lambda x, a, b: np.arctanh(x),
    # bits and questions
    "not": lambda x, a, b: np.logical_not(x),
    "bit_not": lambda x, a, b: np.invert(x),
    "isnan": lambda x, a, b: np.isnan(x),
    "isinf": lambda x, a, b: np.isinf(x),
}
# Element types that go in, as NumPy's kinds; floats alone where nothing is said.
_UNARY_KINDS = {
    "identity": "fiub",
    **dict.fromkeys(("relu", "clip", "abs", "negative", "sign"), "fiu"),
    "not": "b",
    "bit_not": "iu",
}
_QUESTIONS = frozenset(["not", "isnan", "isinf"])


def apply(function, x, alpha=0.0, beta=0.0):
    """The function of that name, value by value."""
    return _found(UNARY, function)(x, alpha, beta).astype(result_dtype(function, x.dtype))


def result_dtype(function, dtype):
    """The dtype that comes out where `dtype` goes in."""
    _found(UNARY, function)
    _check_kind(function, dtype, _UNARY_KINDS.get(function, "f"))
    return np.dtype(bool) if function in _QUESTIONS else np.dtype(dtype)


# ---- two values --------------------------------------------------------------------------------


def _divide(a, b):
    """a / b; whole numbers are cut towards zero, and by zero give 0."""
    if a.dtype.kind == "f":
        return np.divide(a, b)
    quotient = np.floor_divide(a, b)
    cut = (quotient < 0) & (np.remainder(a, b) != 0)
    return quotient + cut.astype(a.dtype)


def _power(a, b):
    """a to the power of b, in the dtype of a."""
    if a.dtype.kind in "iu" and (b.dtype.kind == "f" or np.any(b < 0)):
        return np.power(a.astype(np.float64), b)
    return np.power(a, b)


BINARY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": _divide,
    "power": _power,
    "minimum": np.minimum,  # of a number and NaN: NaN
    "maximum": np.maximum,
    "modulo": np.mod,  # has the sign of b
    "remainder": np.fmod,  # has the sign of a
    "prelu": lambda a, b: np.where(a < 0, a * b, a),
    "equal": np.equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "bit_and": np.bitwise_and,
    "bit_or": np.bitwise_or,
    "bit_xor": np.bitwise_xor,
    "shift_left": np.left_shift,
    "shift_right": np.right_shift,
}
COMPARISONS = frozenset(["equal", "less", "less_equal", "greater", "greater_equal"])
# Numbers, of whatever kind, where nothing is said.
_BINARY_KINDS = {
    "equal": "fiub",
    **dict.fromkeys(("and", "or", "xor"), "b"),
    **dict.fromkeys(("bit_and", "bit_or", "bit_xor", "shift_left", "shift_right"), "iu"),
}


def combine(function, a, b):
    """The function of that name of two arrays, with NumPy's broadcasting."""
    dtype = combined_dtype(function, a.dtype, b.dtype)
    return _found(BINARY, function)(a, b).astype(dtype)


def combined_dtype(function, a, b):
    """The dtype that comes out where the dtypes a and b go in."""
    _found(BINARY, function)
    if a != b and function != "power":
        raise ValueError(f"function {function!r} takes two of one dtype, got {a} and {b}")
    for dtype in (a, b):
        _check_kind(function, dtype, _BINARY_KINDS.get(function, "fiu"))
    return np.dtype(bool) if function in COMPARISONS else np.dtype(a)


def _found(table, function):
    if function not in table:
        raise ValueError(f"there is no function {function!r}")
    return table[function]


def _check_kind(function, dtype, kinds):
    if np.dtype(dtype).kind not in kinds:
        raise ValueError(f"function {function!r} does not take {np.dtype(dtype)}")
