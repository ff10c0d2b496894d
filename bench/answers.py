"""Are two answers the same answer? Worked out apart from every contestant, in float64.

Codes of two correct methods may differ where two codewords are equally near up to float32 rounding,
so distances are compared instead of codes: an answer is right when every row's codeword is as near
as the nearest that anyone found, within `TOLERANCE` of the data's scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

#: largest excess of a squared distance, relative to |x|² + |c|² of that row: the scale whose
#: rounding (2**-24 a step) the usual expansion |x|² − 2 x·c + |c|² cannot avoid. Summing d terms in
#: any order loses a few roundings more, not hundreds.
TOLERANCE = 1e-5

#: rows that are also compared with all codewords in float64
SAMPLED_ROWS = 64

BLOCK_ROWS = 4096


def direct_distances(X: np.ndarray, codebook: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Squared distance of each row to its codeword, Σ(x − c)², in float64; (n,)."""
    distances = np.empty(len(X))
    for start in range(0, len(X), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        difference = X[part].astype(np.float64) - codebook[codes[part]]
        distances[part] = np.einsum("ij,ij->i", difference, difference)
    return distances


def excesses(X: np.ndarray, codebook: np.ndarray, answers: Mapping[str, np.ndarray]):
    """How much farther than the nearest codeword each answer's worst row is.

    Returns
    -------
    dict of name to float
        Largest (distance − nearest distance) / (|x|² + |c|²) of that row.
    """
    codes = {name: np.asarray(answer).ravel().astype(np.intp) for name, answer in answers.items()}
    for name, each in codes.items():
        if len(each) != len(X) or each.min() < 0 or each.max() >= len(codebook):
            raise ValueError(f"{name} returned {len(each)} codes in [{each.min()}, {each.max()}]")
    first = next(iter(codes.values()))
    differing = np.flatnonzero(np.any([each != first for each in codes.values()], axis=0))
    sampled = np.random.default_rng(0).integers(0, len(X), SAMPLED_ROWS)
    rows = np.concatenate([sampled, differing])

    found = {name: direct_distances(X[rows], codebook, each[rows]) for name, each in codes.items()}
    nearest = np.min(list(found.values()), axis=0)
    for place, row in enumerate(sampled):
        nearest[place] = min(nearest[place], _nearest_of_all(X[row], codebook))
    scale = _square(X[rows]) + _square(codebook)[first[rows]] + np.finfo(np.float32).tiny
    return {name: float(np.max((each - nearest) / scale)) for name, each in found.items()}


def _nearest_of_all(row: np.ndarray, codebook: np.ndarray) -> float:
    return _square(codebook - row.astype(np.float64)).min()


def _square(rows: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", rows, rows, dtype=np.float64)


def inertia(X: np.ndarray, codebook: np.ndarray) -> float:
    """Σ over rows of the squared distance to the nearest codeword, float64."""
    from bench.peers import numpy_assigner

    codebook = np.ascontiguousarray(codebook, np.float32)
    return float(direct_distances(X, codebook, numpy_assigner(codebook)(X)).sum())


def mean_squared_error(X: np.ndarray, decoded: np.ndarray) -> float:
    """Mean over the rows of the squared distance to what they were decoded to, float64."""
    total = 0.0
    for start in range(0, len(X), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        total += float(_square(X[part].astype(np.float64) - decoded[part]).sum())
    return total / len(X)
