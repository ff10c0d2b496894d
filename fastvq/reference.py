"""The executable specification: a plain NumPy twin of every function in :mod:`fastvq.kernels`.

Same names, same arguments (less ``n_threads``), same results up to rounding: each twin says in
a few lines of float64 arithmetic what the kernel of that name computes. The tests hold every
instruction-set level to these; read them first when a kernel is unclear.

Distances are squared and Euclidean, ``|x - c|^2 = sum_f (x_f - c_f)^2``, always from the
differences and never from the expansion ``|c|^2 - 2 x.c``, so that nothing cancels.
"""

import numpy as np

__all__ = [
    "assign",
    "assign_two",
    "distances",
    "pairwise",
    "row_norms",
    "seed_potentials",
    "seed_update",
    "sums",
]

_BLOCK = 1 << 22  # elements of a temporary difference tensor: 32 MB of float64


def compute_dtype(X, codebook=None):
    """The dtype a kernel works in: the codebook's, else float64 for float64 rows only."""
    kind = X.dtype if codebook is None else codebook.dtype
    return np.dtype(np.float64 if kind == np.float64 else np.float32)


def pairwise(X, codebook):
    """Squared distance of every row to every codeword, (n, k)."""
    X, codebook = np.asarray(X), np.asarray(codebook)
    out = np.empty((len(X), len(codebook)), compute_dtype(X, codebook))
    codebook = codebook.astype(np.float64)
    step = max(1, _BLOCK // max(1, codebook.size))
    for start in range(0, len(X), step):
        rows = X[start : start + step].astype(np.float64)
        difference = rows[:, None, :] - codebook[None, :, :]
        out[start : start + step] = np.einsum("nkd,nkd->nk", difference, difference)
    return out


def assign(X, codebook, *, rows=None, codes=None):
    """Index of the nearest codeword of each row, (m,) int32; the lowest index wins a tie."""
    X = _take(X, rows)
    nearest = _exact_pairwise(X, codebook).argmin(axis=1)
    if codes is None:
        return nearest.astype(np.int32)
    codes[...] = nearest
    return codes


def assign_two(X, codebook, *, rows=None):
    """Indices (m, 2) int32 of the two nearest codewords, nearest first, and their distances."""
    X = _take(X, rows)
    exact = _exact_pairwise(X, codebook)
    codes = np.argsort(exact, axis=1, kind="stable")[:, :2]
    nearest = np.take_along_axis(exact, codes, axis=1)
    return codes.astype(np.int32), nearest.astype(compute_dtype(X, codebook))


def distances(X, codebook, codes, *, rows=None, out=None):
    """Squared distance of each row to the codeword that its code names, (m,)."""
    X = _take(X, rows)
    difference = X.astype(np.float64) - codebook[codes].astype(np.float64)
    result = np.einsum("nd,nd->n", difference, difference)
    if out is None:
        return result.astype(compute_dtype(X, codebook))
    out[...] = result
    return out


def sums(X, codes, n_codewords, *, sample_weight=None, rows=None):
    """Weighted sum (k, d) and total weight (k,) of the rows of each codeword, both float64."""
    X = _take(X, rows)
    weight = _weights(X, sample_weight)
    totals = np.zeros((n_codewords, X.shape[1]))
    np.add.at(totals, codes, weight[:, None] * X.astype(np.float64))
    return totals, np.bincount(codes, weights=weight, minlength=n_codewords)


def row_norms(X, *, squared=False, rows=None):
    """Euclidean norm of each row, (m,), or its square."""
    X = _take(X, rows)
    exact = X.astype(np.float64)
    norms = np.einsum("nd,nd->n", exact, exact)
    return (norms if squared else np.sqrt(norms)).astype(compute_dtype(X))


def seed_potentials(X, candidates, closest, *, sample_weight=None):
    """What the potential would be with each candidate added: sum_i w_i min(closest_i, d_i)."""
    shrunk = np.minimum(closest[:, None], _exact_pairwise(X, candidates))
    return _weights(X, sample_weight) @ shrunk


def seed_update(X, candidate, closest, *, sample_weight=None):
    """Lower ``closest`` (in place) by the distances to a new codeword; return the potential."""
    np.minimum(closest, pairwise(X, candidate[None, :])[:, 0], out=closest)
    return float(_weights(X, sample_weight) @ closest.astype(np.float64))


def _exact_pairwise(X, codebook):
    return pairwise(X, np.asarray(codebook).astype(np.float64))


def _take(X, rows):
    X = np.asarray(X)
    return X if rows is None else X[rows]


def _weights(X, sample_weight):
    if sample_weight is None:
        return np.ones(len(X))
    return np.asarray(sample_weight, dtype=np.float64)
