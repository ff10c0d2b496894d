"""Sums, norms and extremes of rows, and the passes of k-means++ over them."""

import math

import numpy as np

from fastvq._kernels import load
from fastvq.kernels._call import (
    NO_CODES,
    NO_MARKS,
    Source,
    aligned,
    as_codes,
    as_weight,
    calls,
    equal_shares,
    period,
    power_of_two,
    precision_of,
    thread_count,
    workspace_for,
)


def sums(X, codes, n_codewords, *, sample_weight=None, rows=None, n_threads=None):
    """Weighted sum and total weight of the rows of each codeword, in float64 and in row order.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    codes : ndarray of int32, shape (m,)
    n_codewords : int
    sample_weight : ndarray of float64, shape (m,), optional
        Weight of each code's row; 1 by default.
    rows : ndarray of intp, shape (m,), optional
    n_threads : int, optional

    Returns
    -------
    sums : ndarray of float64, shape (k, d)
    weights : ndarray of float64, shape (k,)
        The same bits at any number of threads.
    """
    source = Source(X, X.shape[1], rows)
    d = X.shape[1]
    counts = np.zeros(n_codewords, np.int64)
    codes = as_codes(codes, source.n, counts)
    threads = thread_count(n_threads, source.n * d)
    owner = equal_shares(counts, threads)
    like = np.zeros(1, precision_of(X))
    workspace = workspace_for("sums", d, like.dtype, threads)
    weight = as_weight(sample_weight, source.n)
    totals, weights = np.zeros((n_codewords, d)), np.zeros(n_codewords)
    for start, stop in calls(source.n, d):
        load("sums").add(
            source.fields, start, stop, like, codes[start:stop], weight[start:stop], owner,
            totals, weights, workspace,
        )  # fmt: skip
    return totals, weights


def row_norms(X, *, squared=False, rows=None, n_threads=None):
    """Euclidean norm of each row, or its square.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    squared : bool
    rows : ndarray of intp, shape (m,), optional
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (m,)
        float64 for float64 rows, else float32; accumulated in float64.
    """
    source = Source(X, X.shape[1], rows)
    out = np.empty(source.n, precision_of(X))
    threads = thread_count(n_threads, source.n * X.shape[1])
    workspace = workspace_for("distances", X.shape[1], out.dtype, threads)
    for start, stop in calls(source.n, X.shape[1]):
        bad = load("distances").norms(
            source.fields, start, stop, 1.0, squared, out[start:stop], workspace,
            threads,
        )  # fmt: skip
        source.check(bad, out.dtype)
    return out


def safe_scale(X, *, n_threads=None):
    """The power of two by which to multiply rows so that their squares are safe; mostly 1.

    Reads all rows once, and so is also the check that they are finite.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    n_threads : int, optional

    Returns
    -------
    float
    """
    source = Source(X, X.shape[1])
    like = np.zeros(1, precision_of(X))
    threads = thread_count(n_threads, source.n * X.shape[1])
    workspace = workspace_for("distances", X.shape[1], like.dtype, threads)
    largest = 0.0
    for start, stop in calls(source.n, X.shape[1]):
        most = load("distances").largest(source.fields, start, stop, like, workspace, threads)
        source.check(math.isinf(most), like.dtype)
        largest = max(largest, most)
    return power_of_two(largest, like.dtype)


def seed_gains(
    X, candidates, closest, *, nearest=None, reach=None, nearer=None, sample_weight=None,
    rows=None, scale=1.0, n_threads=None,
):  # fmt: skip
    """By how much each candidate would lower the potential: sum_i w_i max(closest_i - d_i, 0).

    Parameters
    ----------
    X : ndarray of shape (n, d)
    candidates : ndarray of shape (L, d), float32 or float64: the precision of the arithmetic
    closest : ndarray of the candidates' dtype, shape (m,)
        Squared distance of each row to the nearest codeword so far, times ``scale`` squared.
        Finite.
    nearest : ndarray of int32, shape (m,), optional
        Which codeword that is.
    reach : ndarray of the candidates' dtype, shape (k,), optional
        With ``nearest``: rows whose ``closest`` is at most the reach of their codeword are known
        to be no nearer to any candidate, and are not read. Results are the same without.
    nearer : ndarray of uint8, shape (ceil(L / 8), m), optional
        Filled with which candidates are nearer than ``closest``: bit ``j % 8`` of row ``j // 8``.
    sample_weight : ndarray of float64, shape (m,), optional
    rows : ndarray of intp, shape (m,), optional
        Which rows of X; by default all.
    scale : float
        Power of two that rows and candidates are multiplied by (:func:`safe_scale`).
    n_threads : int, optional

    Returns
    -------
    ndarray of float64, shape (L,)
        In units of ``scale`` squared. The same bits at any number of threads.
    """
    source = Source(X, candidates.shape[1], rows)
    d, dtype = candidates.shape[1], candidates.dtype
    weight = as_weight(sample_weight, source.n)
    _check_closest(closest, source.n)
    n_groups = -(-len(candidates) // 8)
    if nearer is None:
        nearer = np.empty((n_groups, source.n), np.uint8)
    elif nearer.shape != (n_groups, source.n):
        raise ValueError(f"nearer must have shape {n_groups, source.n}, got {nearer.shape}")
    if nearest is None:
        nearest, reach = NO_CODES, np.empty(0, dtype)
    else:
        nearest = np.ascontiguousarray(nearest, np.int32)
        if nearest.shape != (source.n,):
            raise ValueError(f"nearest must have shape ({source.n},), got {nearest.shape}")
        if source.n and not (nearest.min() >= 0 and nearest.max() < len(reach)):
            raise ValueError(f"nearest must lie between 0 and {len(reach) - 1}")
    threads = thread_count(n_threads, source.n * d * 8)
    workspace = workspace_for("seed", d, dtype, threads)
    kernel = load("seed")
    result = []
    for first in range(0, len(candidates), 8):
        lanes = aligned((d, 8), dtype)
        lanes[:] = candidates[first : first + 1].T  # pads what is less than eight
        group = candidates[first : first + 8]
        lanes[:, : len(group)] = group.T
        lanes *= dtype.type(scale)
        parts = [np.empty((0, 8))]
        for start, stop in calls(source.n, 8 * d, kernel.task_rows()):
            part = np.empty((-(-(stop - start) // kernel.task_rows()), 8))
            bad = kernel.gains(
                source.fields, start, stop, scale, lanes, closest[start:stop],
                weight[start:stop], nearest[start:stop], reach, nearer[first // 8, start:stop],
                part, workspace, threads,
            )  # fmt: skip
            source.check(bad, dtype)
            parts.append(part)
        result.append(np.add.reduce(np.concatenate(parts), axis=0)[: len(group)])
    return np.concatenate(result)


def seed_update(
    X, candidate, closest, *, nearer=None, bit=0, nearest=None, code=0, rows=None, scale=1.0,
    n_threads=None,
):  # fmt: skip
    """Lower ``closest`` by the distances to a new codeword.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    candidate : ndarray of shape (d,), float32 or float64: the precision of the arithmetic
    closest : ndarray of the candidate's dtype, shape (m,)
        Changed in place; infinity before the first codeword.
    nearer : ndarray of uint8, shape (m,), optional
        A row of what :func:`seed_gains` filled: only the rows with this ``bit`` are read.
    nearest : ndarray of int32, shape (m,), optional
        Set to ``code`` where ``closest`` is lowered.
    rows, scale, n_threads
        As for :func:`seed_gains`.
    """
    source = Source(X, len(candidate), rows)
    d, dtype = len(candidate), candidate.dtype
    _check_closest(closest, source.n)
    nearer = NO_MARKS if nearer is None else nearer
    nearest = NO_CODES if nearest is None else nearest
    for name, array in (("nearer", nearer), ("nearest", nearest)):
        if len(array) and array.shape != (source.n,):
            raise ValueError(f"{name} must have shape ({source.n},), got {array.shape}")
    n_read = np.count_nonzero(nearer & (1 << bit)) if len(nearer) else source.n
    threads = thread_count(n_threads, source.n // 8 + n_read * d)
    workspace = workspace_for("seed", d, dtype, threads)
    candidate = np.ascontiguousarray(candidate) * dtype.type(scale)
    for start, stop in calls(source.n, d, load("seed").task_rows()):
        bad = load("seed").update(
            source.fields, start, stop, scale, candidate, nearer[start:stop], bit,
            closest[start:stop], nearest[start:stop], code, workspace, threads,
        )  # fmt: skip
        source.check(bad, dtype)


def extremes(X, *, rows=None, n_threads=None):
    """Least and largest value of each feature; and so the check that all values are finite.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    rows : ndarray of intp, shape (m,), optional
    n_threads : int, optional

    Returns
    -------
    least, most : ndarray of shape (d,)
        float64 for float64 rows, else float32.
    """
    source, d, dtype = Source(X, X.shape[1], rows), X.shape[1], precision_of(X)
    threads = thread_count(n_threads, source.n * d)
    least = np.full((threads, period(d)), np.inf, dtype)
    most = -least
    workspace = workspace_for("scalar", d, dtype, threads)
    for start, stop in calls(source.n, 8 * d):
        bad = load("scalar").extremes(source.fields, start, stop, least, most, workspace, threads)
        source.check_finite(bad, dtype)
    return least.reshape(-1, d).min(axis=0), most.reshape(-1, d).max(axis=0)


def _check_closest(closest, n):
    if closest.shape != (n,):
        raise ValueError(f"closest must have shape ({n},), got {closest.shape}")
