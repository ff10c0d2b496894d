"""Numbers one by one: even steps, levels anywhere, and the best codebook of numbers."""

import numpy as np

from fastvq import _optimal
from fastvq._kernels import load
from fastvq.kernels._call import (
    CODE_DTYPES,
    LIMITS,
    Source,
    as_weight,
    calls,
    period,
    thread_count,
    workspace_for,
)


class Steps:
    """Evenly spaced levels for each feature, as the kernels want them.

    Level q of a feature is ``scale * (q - zero_point)``.

    Parameters
    ----------
    scale, zero_point : array of float64, shape (d,)
        scale > 0.
    first, last : array of integers from 0 to 65535, shape (d,)
        The codes that values may get.
    dtype : float32 or float64
        The precision of the arithmetic.
    """

    __slots__ = ("decoding", "dtype", "encoding", "n_features")

    def __init__(self, scale, zero_point, first, last, dtype):
        scale = np.asarray(scale, np.float64)
        self.dtype, self.n_features = np.dtype(dtype), len(scale)
        repeats = period(len(scale)) // len(scale)
        origin = -scale * zero_point  # the value of level 0
        self.encoding = np.tile(np.array([origin, 1 / scale, first, last], dtype), repeats)
        self.decoding = np.tile(np.array([origin, scale], dtype), repeats)


def encode_even(X, steps, *, codes=None, n_threads=None):
    """Code of each value among evenly spaced levels.

    With o the value of level 0, the code is (x - o) · (1 / scale), rounded to the nearest integer
    (to the even one of two) and clamped: both operations in the precision of the steps, each
    rounded. It depends on the value and its feature's step alone.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    steps : Steps
    codes : ndarray of uint8 or uint16, shape (n, d), optional
        Where to write; a new uint16 array by default.
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (n, d)
    """
    source, d = Source(X, steps.n_features), steps.n_features
    codes = _room_for_table(codes, (source.n, d))
    threads = thread_count(n_threads, source.n * d)
    workspace = workspace_for("scalar", d, steps.dtype, threads)
    for start, stop in calls(source.n, 8 * d):
        bad = load("scalar").encode_even(
            source.fields, start, stop, steps.encoding, codes[start:stop], workspace, threads
        )
        source.check_finite(bad, steps.dtype)
    return codes


def decode_even(codes, steps, *, out=None, n_threads=None):
    """The levels that codes stand for: scale · q + o, fused where the CPU can, else rounded twice.

    Parameters
    ----------
    codes : C-contiguous ndarray of uint8 or uint16, shape (n, d)
    steps : Steps
    out : C-contiguous ndarray of the steps' dtype, shape (n, d), optional
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (n, d)
    """
    out = _room_for_values(out, codes, steps.n_features, steps.dtype)
    threads = thread_count(n_threads, codes.size)
    for start, stop in calls(len(codes), 8 * steps.n_features):
        load("scalar").decode_even(codes[start:stop], steps.decoding, out[start:stop], threads)
    return out


class Levels:
    """Levels of any spacing for each group of features, as the kernels want them.

    The code of a value x is the number of thresholds below x, and the threshold between two levels
    a < b is the largest number t of their dtype with t - a <= b - t, in exact arithmetic: so x gets
    the nearest level, the lower one of two, whatever rounding does to differences. Of equal levels
    the first is used.

    Parameters
    ----------
    levels : ndarray of float32 or float64, shape (n_groups, k)
        Each row ascending; k from 1 to 65536.
    group : array of integers, shape (d,)
        The row that belongs to each feature.
    """

    __slots__ = (
        "base",
        "below",
        "buckets",
        "dtype",
        "group",
        "halvings",
        "levels",
        "n_features",
        "thresholds",
    )

    def __init__(self, levels, group):
        self.levels = np.ascontiguousarray(levels)
        self.dtype, self.n_features = self.levels.dtype, len(group)
        self.group = np.ascontiguousarray(group, np.int32)
        repeats = period(len(group)) // len(group)
        self.base = np.tile(self.group.astype(np.int64) * levels.shape[1], repeats)
        self._find_buckets(_thresholds(self.levels))

    def _find_buckets(self, thresholds):
        """The tables of `encode_levels` (see _kernels/scalar.h)."""
        n_groups, n_thresholds = thresholds.shape
        n_buckets = int(np.clip(4 << n_thresholds.bit_length(), 64, 1 << 16))
        self.buckets = np.empty((n_groups, 2), self.dtype)
        self.below = np.empty((n_groups, n_buckets), np.uint16)
        self.halvings = np.empty(n_groups, np.int32)
        for g, finite in enumerate(row[np.isfinite(row)] for row in thresholds):
            buckets = self._buckets_of(g, finite, n_buckets)
            self.below[g] = np.searchsorted(buckets, np.arange(n_buckets))
            self.halvings[g] = int(np.bincount(buckets, minlength=1).max()).bit_length()
        width = n_thresholds + (1 << int(self.halvings.max()))
        self.thresholds = np.full((n_groups, width), np.inf, self.dtype)
        self.thresholds[:, :n_thresholds] = thresholds

    def _buckets_of(self, g, thresholds, n_buckets):
        """Choose the buckets of a group; those of its thresholds, by the kernel's arithmetic."""
        low, high = thresholds[[0, -1]].astype(np.float64) if len(thresholds) else (0.0, 0.0)
        limits = np.finfo(self.dtype)
        width = max((high - low) / n_buckets, 1 / float(limits.max))
        self.buckets[g] = low, np.clip(1 / width, limits.tiny, limits.max)
        origin, inverse = self.buckets[g]
        with np.errstate(over="ignore"):
            place = (thresholds - origin) * inverse
        return np.clip(place, 0, n_buckets - 1).astype(np.intp)


def _thresholds(levels):
    """The largest number nearer to each level than to the next one, or as near."""
    a, b = levels[:, :-1].astype(np.float64), levels[:, 1:].astype(np.float64)
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)  # a + b = total + error, exactly

    def belongs_below(t):
        twice = 2 * t.astype(np.float64)
        return (twice < total) | ((twice == total) & (error >= 0))

    t = (total / 2).astype(levels.dtype)
    t = np.where(belongs_below(t), t, np.nextafter(t, -np.inf, dtype=t.dtype))
    above = np.nextafter(t, np.inf, dtype=t.dtype)
    t = np.where(belongs_below(above), above, t)
    # Equal levels: nothing may lie between them, so all have the threshold of the last one.
    t[a == b] = np.inf
    return np.minimum.accumulate(t[:, ::-1], axis=1)[:, ::-1]


def encode_levels(X, levels, *, codes=None, n_threads=None):
    """Code of the nearest level for each value; of two as near the lower, of equal ones the first.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    levels : Levels
    codes : ndarray of uint8 or uint16, shape (n, d), optional
        Where to write; a new uint16 array by default.
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (n, d)

    Notes
    -----
    A look into a table of buckets and, on most codebooks, one to three comparisons a value.
    """
    source, d = Source(X, levels.n_features), levels.n_features
    codes = _room_for_table(codes, (source.n, d))
    threads = thread_count(n_threads, 4 * source.n * d)
    workspace = workspace_for("scalar", d, levels.dtype, threads)
    for start, stop in calls(source.n, 32 * d):
        bad = load("scalar").encode_levels(
            source.fields, start, stop, levels.thresholds, levels.below, levels.buckets,
            levels.halvings, levels.group, codes[start:stop], workspace, threads,
        )  # fmt: skip
        source.check_finite(bad, levels.dtype)
    return codes


def decode_levels(codes, levels, *, out=None, n_threads=None):
    """The levels that codes stand for.

    Parameters
    ----------
    codes : C-contiguous ndarray of uint8 or uint16, shape (n, d)
    levels : Levels
    out : C-contiguous ndarray of the levels' dtype, shape (n, d), optional
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (n, d)
    """
    k = levels.levels.shape[1]
    if codes.size and np.iinfo(codes.dtype).max >= k and codes.max() >= k:
        raise ValueError(f"codes must be below {k}, got {codes.max()}")
    out = _room_for_values(out, codes, levels.n_features, levels.dtype)
    threads = thread_count(n_threads, codes.size)
    for start, stop in calls(len(codes), 8 * levels.n_features):
        load("scalar").decode_levels(
            codes[start:stop], levels.levels, levels.base, out[start:stop], threads
        )
    return out


def distinct_values(values, sample_weight=None):
    """Distinct values in ascending order, and the total weight of each.

    Parameters
    ----------
    values : ndarray of float32 or float64, shape (n,)
        Finite.
    sample_weight : ndarray of float64, shape (n,), optional

    Returns
    -------
    distinct : ndarray of shape (m,)
    weight : ndarray of float64, shape (m,)
        Added up in the order of the values given. Those without weight are left out.
    """
    if sample_weight is None:
        ordered = np.sort(values)
    else:
        order = np.argsort(values, kind="stable")
        ordered, sample_weight = values[order], sample_weight[order]
    is_first = np.empty(len(ordered), bool)
    is_first[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    if sample_weight is None:
        return ordered[first], np.diff(first, append=len(ordered)).astype(np.float64)
    weight = np.add.reduceat(sample_weight, first) if len(first) else np.empty(0)
    return ordered[first][weight > 0], weight[weight > 0]


def optimal_codebook(values, n_codewords, *, sample_weight=None):
    """The codebook with the least possible inertia Σ w·(x − c)², for numbers: k-means, solved.

    Parameters
    ----------
    values : array of float32 or float64, shape (n,)
        Finite, below 2**1000.
    n_codewords : int
    sample_weight : array of float64, shape (n,), optional
        Not negative, not all zero.

    Returns
    -------
    ndarray of shape (n_codewords,)
        Ascending, in the dtype of the values. Where there are fewer distinct values than codewords
        these are the values, and the largest is repeated.

    Notes
    -----
    Sorting, then about ten passes of n log n steps at worst, mostly hardly more than n; some 100
    bytes for each distinct value. Sums are kept in twice the digits of float64. One thread.

    References
    ----------
    A. Grønlund et al., "Fast exact k-means, k-medians and Bregman divergence clustering in 1D",
    2017. See fastvq/_optimal.py.
    """
    values = np.asarray(values)
    if values.dtype not in LIMITS or values.ndim != 1 or not len(values):
        raise ValueError(
            f"values must be a non-empty 1-D float32 or float64 array, got shape {values.shape} "
            f"of {values.dtype}"
        )
    if not (np.isfinite(values).all() and float(np.abs(values).max()) < 2.0**1000):
        raise ValueError("values must be finite and below 2**1000")
    weight = None if sample_weight is None else as_weight(sample_weight, len(values))
    if weight is not None and not (weight.min() >= 0 and 0 < weight.sum() < np.inf):
        raise ValueError("sample_weight must be finite, not negative, and not zero everywhere")
    distinct, weight = distinct_values(values, weight)
    if len(distinct) <= n_codewords:
        return np.pad(distinct, (0, n_codewords - len(distinct)), mode="edge")
    return _optimal.optimal_codebook(distinct, weight, n_codewords).astype(values.dtype)


def _room_for_table(codes, shape):
    if codes is None:
        return np.empty(shape, np.uint16)
    if codes.shape != shape or codes.dtype not in CODE_DTYPES[:2]:
        raise ValueError(
            f"codes must have shape {shape} and dtype uint8 or uint16, got {codes.shape} of "
            f"{codes.dtype}"
        )
    return codes


def _room_for_values(out, codes, n_features, dtype):
    if codes.ndim != 2 or codes.shape[1] != n_features or codes.dtype not in CODE_DTYPES[:2]:
        raise ValueError(
            f"codes must have shape (n, {n_features}) and dtype uint8 or uint16, got "
            f"{codes.shape} of {codes.dtype}"
        )
    if out is None:
        return np.empty(codes.shape, dtype)
    if out.shape != codes.shape or out.dtype != dtype:
        raise ValueError(
            f"out must have shape {codes.shape} and dtype {dtype}, got {out.shape} of {out.dtype}"
        )
    return out
