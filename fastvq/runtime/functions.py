"""Functions of one and two values: the meaning of activations and arithmetic, in NumPy."""

from __future__ import annotations

import numpy as np

__all__ = ["BINARY", "COMPARISONS", "UNARY", "apply", "result_dtype"]


def sigmoid(x):
    """1 / (1 + exp(-x)), from the side on which exp cannot overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


# Each takes the value and the two parameters that a node may have; most ignore them.
UNARY = {
    "identity": lambda x, a, b: x,
    "relu": lambda x, a, b: np.maximum(x, x.dtype.type(0)),
    "clip": lambda x, a, b: np.clip(x, x.dtype.type(a), x.dtype.type(b)),
    "leaky_relu": lambda x, a, b: np.where(x >= 0, x, x * x.dtype.type(a)),
    "sigmoid": lambda x, a, b: sigmoid(x),
    "tanh": lambda x, a, b: np.tanh(x),
    "negative": lambda x, a, b: -x,
    "not": lambda x, a, b: np.logical_not(x),
}
BINARY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "equal": np.equal,
}
COMPARISONS = {"equal"}


def apply(function, x, alpha=0.0, beta=0.0):
    """The function of that name, value by value."""
    if function not in UNARY:
        raise ValueError(f"there is no function {function!r}")
    return UNARY[function](x, alpha, beta)


def result_dtype(function, dtype):
    """The dtype that comes out where `dtype` goes in."""
    if function not in UNARY:
        raise ValueError(f"there is no function {function!r}")
    return np.dtype(bool) if function == "not" else dtype
