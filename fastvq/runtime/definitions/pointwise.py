"""Element by element."""

from __future__ import annotations

import numpy as np

from fastvq.runtime import functions
from fastvq.runtime.graph import DTYPES
from fastvq.runtime.ops import operator


@operator("Unary")
def unary(x, *, function, alpha=0.0, beta=0.0):
    """A function of :mod:`fastvq.runtime.functions`, value by value."""
    return functions.apply(function, x, alpha, beta)


@unary.shape
def _(x, *, function, **_):
    return x.shape, functions.result_dtype(function, x.dtype)


@operator("Binary")
def binary(a, b, *, function):
    """A function of two values, with NumPy's broadcasting."""
    return functions.combine(function, a, b)


@binary.shape
def _(a, b, *, function):
    dtype = functions.combined_dtype(function, a.dtype, b.dtype)
    return np.broadcast_shapes(a.shape, b.shape), dtype


@operator("Where")
def where(condition, a, b):
    """a where the condition holds, else b, with NumPy's broadcasting."""
    return np.where(condition, a, b)


@where.shape
def _(condition, a, b):
    if condition.dtype != np.bool_:
        raise ValueError(f"a condition is bool, got {condition.dtype}")
    if a.dtype != b.dtype:
        raise ValueError(f"takes two of one dtype, got {a.dtype} and {b.dtype}")
    return np.broadcast_shapes(condition.shape, a.shape, b.shape), a.dtype


@operator("Cast")
def cast(x, *, dtype="float32"):
    """x as another dtype; what a whole number cannot hold is cut towards zero.

    Values beyond the range of a dtype of whole numbers, and NaN, become any number.
    """
    return x.astype(dtype)


@cast.shape
def _(x, *, dtype):
    if dtype not in DTYPES:
        raise ValueError(f"there is no dtype {dtype!r}, only {', '.join(DTYPES)}")
    return x.shape, DTYPES[dtype]
