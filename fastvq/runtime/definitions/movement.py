"""Values that move, or are only seen in another shape; nothing is computed."""

from __future__ import annotations

import numpy as np

from fastvq.runtime.ops import known, operator


@operator("Shape")
def shape(x, *, start=0, end=None):
    """Dimensions start .. end of x, as int64; known before the model runs."""
    return np.array(np.shape(x)[start:end], np.int64)


@shape.shape
def _(x, *, start=0, end=None):
    return (len(x.shape[start:end]),), np.int64


@operator("Reshape")
def reshape(x, shape):
    """x with another shape, in which -1 stands for what is left; nothing is moved."""
    return np.reshape(x, tuple(shape))


@reshape.shape
def _(x, shape):
    wanted = [int(n) for n in known(shape, "shape")]
    size = int(np.prod(x.shape, dtype=object))
    if wanted.count(-1) > 1 or min(wanted, default=0) < -1:
        raise ValueError(f"shape {wanted} is none")
    rest = int(np.prod([n for n in wanted if n != -1], dtype=object))
    if -1 in wanted and rest:
        wanted[wanted.index(-1)] = size // rest
    if int(np.prod(wanted, dtype=object)) != size:
        raise ValueError(f"{x.shape} cannot become {wanted}")
    return wanted, x.dtype
