"""Where a fit starts: the ways to choose the first codewords.

- "k-means++" (Arthur & Vassilvitskii 2007): each codeword is a row drawn with probability
  proportional to w·D², its weight times its squared distance to the nearest codeword so far; the
  expected inertia is within O(log k) of the best. Greedy, as scikit-learn's: of 2 + ⌊ln k⌋ rows
  drawn, the one that lowers the potential Σ w·D² most.
- "k-means||" (Bahmani et al. 2012): a few rounds that draw many rows at once by the same rule;
  then each is weighted by the rows nearest to it, and k of this pool are chosen by greedy
  k-means++. It costs as much as a few iterations, where k-means++ on all rows costs 2 + ln k.
- "random": rows drawn by weight, without replacement.

Draws come from one generator in one order and potentials are summed in row order, so that a seed
gives the same codewords at any number of threads.
"""

import numpy as np

from fastvq import kernels
from fastvq._validation import allocate, as_codebook
from fastvq.vq._rows import Rows, draw_positions, spans

__all__ = ["GREEDY_LIMIT", "INITS", "draw_by_potential", "seed"]

INITS = {
    "auto": (),
    "k-means++": ("kmeans pp", "kmeans plus plus"),
    "k-means||": ("k-means parallel", "scalable k-means++", "kmeans ll"),
    "random": ("sample", "rows"),
}

# Greedy k-means++ makes 2 + ln k passes over the rows for each codeword; up to here that is
# affordable beside the iterations that follow it.
GREEDY_LIMIT = 4096
# Above it, "auto" seeds on so many rows for each codeword, at most.
_SAMPLE_PER_CODEWORD = 32

# k-means||: rounds, and rows drawn in each in units of n_codewords. 2 is the paper's choice and
# gives the potential of greedy k-means++; 1/2 gives one 2 to 4 % higher (0 to 1.4 % after ten
# iterations; blobs, Gaussian data and picture blocks, k = 1000), but leaves a quarter of the pool
# to choose from, and choosing takes k passes over the pool.
_ROUNDS = 5
_MOST_ROUNDS = 50
_OVERSAMPLING = 2
_OVERSAMPLING_LARGE = 0.5

# Gathering rows costs about as much as the sums over them: it pays for fewer than this share.
_FEW = 0.5
# Of squared distances, relative: those of float32 are right to about half of it.
_ROUNDING = 1e-4

_BLOCK = 1024  # rows whose potentials are summed together when rows are drawn


def seed(rows, n_codewords, init, rng):
    """The codebook to start from, (n_codewords, n_features) in the dtype of `rows`.

    `init` is a word of `INITS`, an array of codewords, or a callable
    ``init(X, n_codewords, random_state)`` that returns one.
    """
    if isinstance(init, str):
        if init == "auto":
            init = "k-means++" if n_codewords <= GREEDY_LIMIT else "k-means||"
            if n_codewords > GREEDY_LIMIT:
                rows = rows.sample(_SAMPLE_PER_CODEWORD * n_codewords, rng)
        chosen = {"k-means++": _greedy, "k-means||": _parallel, "random": _random}[init]
        return chosen(rows, n_codewords, rng)
    if callable(init):
        X = rows.X if rows.rows is None else rows.X[rows.rows]
        init = init(X, n_codewords, random_state=rng)
    dtype = np.float64 if rows.X.dtype == np.float64 else rows.dtype
    return rows.admit(as_codebook(init, n_codewords, rows.n_features, dtype))


def _greedy(rows, n_codewords, rng):
    """Greedy k-means++.

    Rows that no candidate can serve better are left out of the sums, which does not change which
    candidate is best: by the triangle inequality, a row at distance r from its codeword is at
    least |candidate − codeword| − r from the candidate, and so no nearer where that is 2·r or more
    (Raff, "Exact acceleration of k-means++ and k-means||", IJCAI 2021).
    """
    n_trials = 2 + int(np.log(n_codewords))
    codebook = allocate((n_codewords, rows.n_features), rows.dtype, "the codebook")
    closest = np.ones(len(rows), rows.dtype)
    nearest = np.zeros(len(rows), np.int32)
    codebook[0] = rows.take(draw_by_potential(rng.random_sample(1), rows, closest))[0]
    closest.fill(np.inf)
    rows.seed_update(codebook[0], closest)
    for i in range(1, n_codewords):
        drawn = draw_by_potential(rng.random_sample(n_trials), rows, closest)
        if not len(drawn):  # every row is a codeword already: repeat some
            codebook[i:] = np.resize(codebook[:i], codebook[i:].shape)
            break
        candidates = rows.take(drawn)
        doubtful = _in_reach(candidates, codebook[:i], nearest, closest)
        some = rows if doubtful is None else rows.subset(doubtful)
        before = closest if doubtful is None else closest[doubtful]
        codebook[i] = candidates[np.argmin(some.seed_potentials(candidates, before))]
        after = before.copy()
        some.seed_update(codebook[i], after)
        nearer = np.flatnonzero(after < before)
        if doubtful is not None:
            after, nearer = after[nearer], doubtful[nearer]
            closest[nearer] = after
        else:
            closest = after
        nearest[nearer] = i
    return codebook


def _in_reach(candidates, codebook, nearest, closest):
    """Positions of rows to which some candidate may be nearer; None where they are most rows."""
    gaps = kernels.pairwise(candidates, codebook).min(axis=0)
    reach = (gaps * (0.25 * (1 - _ROUNDING))).astype(closest.dtype)
    parts = []
    for span in spans(len(closest), 1 << 16):
        parts.append(span.start + np.flatnonzero(closest[span] > reach[nearest[span]]))
    doubtful = np.concatenate(parts)
    return doubtful if len(doubtful) < _FEW * len(closest) else None


def _parallel(rows, n_codewords, rng):
    """k-means||: rounds of many draws, then k of them by weighted greedy k-means++."""
    share = _OVERSAMPLING if n_codewords <= GREEDY_LIMIT else _OVERSAMPLING_LARGE
    closest = np.ones(len(rows), rows.dtype)
    nearest = np.zeros(len(rows), np.int32)
    pool = rows.take(draw_by_potential(rng.random_sample(1), rows, closest))
    rows.distances(pool, nearest, closest)
    for done in range(_MOST_ROUNDS):
        if done >= _ROUNDS and len(pool) >= n_codewords:
            break
        drawn = rows.take(_draw_each(share * n_codewords, rows, closest, rng))
        if len(drawn) == 0:
            continue
        codes = rows.assign(kernels.prepare(drawn))
        distances = rows.distances(drawn, codes)
        closer = distances < closest
        closest[closer] = distances[closer]
        nearest[closer] = codes[closer] + len(pool)
        pool = np.concatenate([pool, drawn])
    weight = rows.counts(nearest, len(pool))
    pool = Rows(pool, None, weight, dtype=rows.dtype, n_threads=rows.n_threads)
    return _greedy(pool, n_codewords, rng)


def _random(rows, n_codewords, rng):
    """Rows drawn by weight, without replacement."""
    if rows.weight is None:
        return rows.take(draw_positions(len(rows), n_codewords, rng))
    # The rows with the largest log(u) / w are such a draw (Efraimidis & Spirakis 2006).
    keys = np.full(len(rows), -np.inf)
    for span in spans(len(rows), 1 << 16):
        weight = rows.weight[span]
        logs = np.log1p(-rng.random_sample(len(weight)))
        np.divide(logs, weight, out=keys[span], where=weight > 0)
    return rows.take(np.sort(np.argpartition(keys, -n_codewords)[-n_codewords:]))


def draw_by_potential(uniforms, rows, closest):
    """Positions drawn with probability in proportion to w·closest, one for each uniform number.

    Found in two steps, block and row, so that a draw costs one pass over `closest` and no array
    of its size. A row without potential is never drawn; none is, where no row has any.
    """
    block_sums = _block_sums(rows, closest)
    if not block_sums.any():
        return np.empty(0, np.intp)
    positions = []
    for block, share in zip(*_search(block_sums, uniforms), strict=True):
        span = slice(block * _BLOCK, (block + 1) * _BLOCK)
        inner, _ = _search(_potential(rows, closest, span), np.array([share]))
        positions.append(span.start + int(inner[0]))
    return np.array(positions, dtype=np.intp)


def _search(mass, uniforms):
    """Which of these masses each uniform number falls on, and how far into it (in [0, 1])."""
    edges = np.cumsum(mass)
    targets = uniforms * edges[-1]
    found = np.searchsorted(edges, targets, side="right")
    found = np.minimum(found, np.flatnonzero(mass)[-1])  # where rounding puts a target at the end
    return found, np.clip((targets - (edges[found] - mass[found])) / mass[found], 0, 1)


def _draw_each(expected, rows, closest, rng):
    """Ascending positions, each row drawn on its own, about `expected` in all."""
    total = _block_sums(rows, closest).sum()
    drawn = [np.empty(0, np.intp)]
    for span in spans(len(rows), 1 << 16):
        chance = rng.random_sample(span.stop - span.start) * total
        hit = chance < expected * _potential(rows, closest, span)
        drawn.append(span.start + np.flatnonzero(hit))
    return np.concatenate(drawn)


def _block_sums(rows, closest):
    """Potential of each block of rows, and of what is left over at the end, float64."""
    whole = len(closest) // _BLOCK * _BLOCK
    blocks = closest[:whole].reshape(-1, _BLOCK)
    if rows.weight is None:
        sums = blocks.sum(axis=1, dtype=np.float64)
    else:
        sums = np.einsum("ij,ij->i", blocks, rows.weight[:whole].reshape(-1, _BLOCK))
    return np.append(sums, _potential(rows, closest, slice(whole, None)).sum())


def _potential(rows, closest, span):
    """w·closest of the rows at a slice or at positions, float64."""
    potential = closest[span].astype(np.float64)
    return potential if rows.weight is None else potential * rows.weight[span]
