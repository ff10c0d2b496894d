"""Products: dense layers, matrices, convolutions, and pooling, which walks as they do."""

from __future__ import annotations

import numpy as np

from fastvq.runtime import functions
from fastvq.runtime.ops import operator


@operator("Dense", weights=(1,))
def dense(x, weight, bias=None, *, activation="identity", alpha=0.0, beta=0.0):
    """activation(x @ weightᵀ + bias): x (..., n_in), weight (n_out, n_in), bias (n_out,)."""
    y = np.matmul(x, weight.T)
    return functions.apply(activation, y if bias is None else y + bias, alpha, beta)


@dense.shape
def _(x, weight, bias=None, **_):
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {x.shape} does not go with a weight {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {bias.shape} does not go with a weight {weight.shape}")
    return (*x.shape[:-1], weight.shape[0]), x.dtype
