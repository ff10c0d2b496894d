"""Distances of rows to points: nearest codewords, neighbours, kernels of support vectors."""

from __future__ import annotations

import numpy as np

from fastvq.runtime.ops import operator

_BLOCK = 1 << 20  # values at once


@operator("Distances", weights=(1,))
def distances(x, points, scale=None, *, metric="squared"):
    """Distances of each row of x (N, d) to each of the points (k, d): (N, k).

    "squared" is Σ ((x - p) · scale)², features in order, "euclidean" its root, "manhattan"
    Σ |x - p| · scale, "chebyshev" max |x - p| · scale. A scale (k, d) or (1, d) is 1 where left
    out. Differences are taken first, so nothing cancels far from zero.
    """
    y = np.empty((len(x), len(points)), x.dtype)
    block = max(1, _BLOCK // max(points.size, 1))
    for start in range(0, len(x), block):
        difference = x[start : start + block, None] - points
        if scale is not None:
            difference *= scale
        y[start : start + block] = _METRICS[metric](difference)
    return y


@distances.shape
def _(x, points, scale=None, *, metric="squared"):
    if len(x.shape) != 2 or len(points.shape) != 2 or x.shape[1] != points.shape[1]:
        raise ValueError(f"rows {x.shape} and points {points.shape} do not go together")
    if scale is not None and tuple(scale.shape) not in (tuple(points.shape), (1, x.shape[1])):
        raise ValueError(f"a scale {scale.shape} does not go with points {points.shape}")
    if metric not in _METRICS or x.dtype.kind != "f":
        raise ValueError(f"metric {metric!r} of {x.dtype}: known are {[*_METRICS]}, of floats")
    return (x.shape[0], points.shape[0]), x.dtype


def _squared(difference):
    return np.einsum("nkd,nkd->nk", difference, difference)


_METRICS = {
    "squared": _squared,
    "euclidean": lambda difference: np.sqrt(_squared(difference)),
    "manhattan": lambda difference: np.abs(difference).sum(axis=2),
    "chebyshev": lambda difference: np.abs(difference).max(axis=2, initial=0),
}
