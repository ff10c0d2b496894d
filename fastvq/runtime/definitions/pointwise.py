"""Element by element."""

from __future__ import annotations

import numpy as np

from fastvq.runtime import functions
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
    return functions.BINARY[function](a, b)


@binary.shape
def _(a, b, *, function):
    if function not in functions.BINARY:
        raise ValueError(f"there is no function {function!r}")
    shape = np.broadcast_shapes(a.shape, b.shape)
    return shape, np.dtype(bool) if function in functions.COMPARISONS else a.dtype
