"""What scores become: curves of columns, and probabilities of classes from those of pairs."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np

from fastvq.runtime.ops import known, operator


@operator("Interpolate")
def interpolate(x, first, points, values):
    """Each column of x (N, n) taken along a curve of its own, of straight lines between points.

    The curve of column c goes through (points[i], values[i]) for first[c] <= i < first[c + 1]
    (first is (n + 1,) int64), points in ascending order; beyond its ends it stays what it is there.
    Worked out in float64. NaN stays NaN.
    """
    y = np.empty_like(x)
    for c, (start, stop) in enumerate(pairwise(first)):
        curve = (a[start:stop].astype(np.float64) for a in (points, values))
        y[:, c] = np.interp(x[:, c].astype(np.float64), *curve)
    return np.where(np.isnan(x), x, y)


@interpolate.shape
def _(x, first, points, values):
    ends = known(first, "first points")
    if len(x.shape) != 2 or x.dtype.kind != "f" or {points.dtype, values.dtype} != {x.dtype}:
        raise ValueError(f"takes rows, points and values of one type of floats, not {x}")
    if tuple(first.shape) != (x.shape[1] + 1,) or first.dtype != np.int64:
        raise ValueError(f"{x.shape[1]} curves have {x.shape[1] + 1} ends, as int64")
    if len(points.shape) != 1 or tuple(points.shape) != tuple(values.shape):
        raise ValueError(f"points {points.shape} and values {values.shape} do not go together")
    if ends[0] != 0 or ends[-1] != points.shape[0] or (np.diff(ends) < 1).any():
        raise ValueError("every curve has a point, and all points belong to one")
    return x.shape, x.dtype


@operator("Couple")
def couple(pairs):
    """Probabilities of k classes (N, k) from those of pairs (N, k (k - 1) / 2), above 0, below 1.

    A pair i < j, in the order (0, 1), (0, 2), ..., has the probability r_ij that the class is i if
    it is one of both; r_ji = 1 - r_ij. Classes get the p of Σ p = 1 that minimises Σ (r_ji p_i -
    r_ij p_j)², by descent along one class after the other, which ends where the gradient is within
    0.005 / k: as LIBSVM does it, whose answers depend on where it ends.

    (Wu, Lin, Weng, "Probability Estimates for Multi-class Classification by Pairwise Coupling",
    2004, algorithm 2)
    """
    k = _classes(pairs.shape[1])
    Q = np.zeros((len(pairs), k, k))
    for r, (i, j) in zip(pairs.T.astype(np.float64), combinations(range(k), 2), strict=True):
        Q[:, i, i] += (1 - r) ** 2
        Q[:, j, j] += r**2
        Q[:, i, j] = Q[:, j, i] = -(1 - r) * r
    p = np.full((len(pairs), k), 1.0 / k)
    open_ = np.arange(len(pairs))  # rows that are not there yet
    for _ in range(max(100, k)):
        Qp = np.einsum("nij,nj->ni", Q[open_], p[open_])
        pQp = np.einsum("ni,ni->n", Qp, p[open_])
        far = ~(np.abs(Qp - pQp[:, None]).max(axis=1) < 0.005 / k)
        open_, Qp, pQp = open_[far], Qp[far], pQp[far]
        if not len(open_):
            break
        for i in range(k):
            row = Q[open_, i]
            step = (pQp - Qp[:, i]) / row[:, i]
            total = 1 + step
            p[open_, i] += step
            pQp = (pQp + step * (step * row[:, i] + 2 * Qp[:, i])) / total / total
            Qp = (Qp + step[:, None] * row) / total[:, None]
            p[open_] /= total[:, None]
    return p.astype(pairs.dtype)


@couple.shape
def _(pairs):
    if len(pairs.shape) != 2 or pairs.dtype.kind != "f" or not _classes(pairs.shape[1]):
        raise ValueError(f"{pairs.shape} of {pairs.dtype} are not probabilities of pairs")
    return (pairs.shape[0], _classes(pairs.shape[1])), pairs.dtype


def _classes(n_pairs):
    """How many classes have so many pairs; 0 where none have."""
    k = (1 + math.isqrt(1 + 8 * n_pairs)) // 2
    return k if n_pairs and k * (k - 1) // 2 == n_pairs else 0
