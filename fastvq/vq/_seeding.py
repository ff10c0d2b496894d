"""Where a fit starts: the ways to choose the first codewords.

- "k-means++" (Arthur & Vassilvitskii 2007): each codeword is a row drawn with probability
  proportional to w·D², its weight times its squared distance to the nearest codeword so far; the
  expected inertia is within O(log k) of the best. Greedy, as scikit-learn's: of 2 + ⌊ln k⌋ rows
  drawn, the one that lowers the potential Σ w·D² most.
- "k-means||" (Bahmani et al. 2012): a few rounds that draw many rows at once by the same rule;
  then each is weighted by the rows nearest to it, and k of this pool are chosen by greedy
  k-means++. It costs as much as a few iterations, where k-means++ on all rows costs 2 + ln k.
- "random": rows drawn by weight, without replacement.
- "grouped": for hundreds of thousands of codewords, where even the pool of k-means|| takes k
  passes. The rows are clustered into √k groups, each of which gets its share of the codewords by
  greedy k-means++ on its own rows: √k passes over the rows in all.
- "principal": greedy k-means++ and a few of Lloyd's iterations on the rows as they are seen from
  their 8 leading principal directions; each codeword is the mean of the rows that end together.
  Rows without clusters in many dimensions (the residuals of a residual quantizer) are all about as
  far from each other: of codewords that begin as rows, a few move near the mean and take nearly
  all rows, and the others keep their one row for ever. In the directions of most variance, which
  hold what k-means could find anyway (Ding & He, "K-means clustering via principal component
  analysis", ICML 2004), there are no such distances.

A group's share follows from what codewords can do for it. The least inertia of k_g codewords falls
as I_g·k_g^(−2/d) in d dimensions (Zador 1982), where I_g is that of one codeword for groups of like
shape. Under Σ k_g = k, the sum over the groups is least where k_g ∝ I_g^(d/(d+2)). (It is also the
density of the best codewords, f^(d/(d+2)), of Gersho, "Asymptotically optimal block quantization",
1979.)

Draws come from one generator in one order and potentials are summed in row order, so that a seed
gives the same codewords at any number of threads.
"""

import numpy as np

from fastvq import _threads, kernels
from fastvq._validation import allocate, as_codebook
from fastvq.vq._rows import Rows, draw_positions, spans

__all__ = ["GREEDY_LIMIT", "INITS", "draw_by_potential", "seed"]

INITS = {
    "auto": (),
    "k-means++": ("kmeans pp", "kmeans plus plus"),
    "k-means||": ("k-means parallel", "scalable k-means++", "kmeans ll"),
    "random": ("sample", "rows"),
    "grouped": ("groups",),
    "principal": ("pca",),
}

# Greedy k-means++ makes 2 + ln k passes over the rows for each codeword; up to here that is
# affordable beside the iterations that follow it.
GREEDY_LIMIT = 4096
# Above it, "auto" seeds on so many rows for each codeword, at most.
_SAMPLE_PER_CODEWORD = 32
# Above this, it seeds in groups, on so many rows for each codeword at most. Lloyd's iterations that
# bring the groups' centres in place need not end: groups are a division of labour.
_UNGROUPED_LIMIT = 1 << 16
_GROUPED_PER_CODEWORD = 8
_GROUP_ROUNDS = 5
# Rows of a group, up to which a table of all their distances (64 MB) makes its codewords cheaper.
_TABLE_ROWS = 4096

# "principal": directions, iterations among them, and rows that they are found on, at most.
_DIRECTIONS = 8
_PRINCIPAL_ROUNDS = 10
_PRINCIPAL_ROWS, _PRINCIPAL_ROWS_PER_FEATURE = 4096, 8

# k-means||: rounds, and rows drawn in each in units of n_codewords. 2 is the paper's choice and
# gives the potential of greedy k-means++; 1/2 gives one 2 to 4 % higher (0 to 1.4 % after ten
# iterations; blobs, Gaussian data and picture blocks, k = 1000), but leaves a quarter of the pool
# to choose from, and choosing takes k passes over the pool.
_ROUNDS = 5
_MOST_ROUNDS = 50
_OVERSAMPLING = 2
_OVERSAMPLING_LARGE = 0.5

# What is in reach is found out anew for each codeword while fewer than this share of the rows are,
# judged by so many; else it is looked at again so many codewords later.
_MOST = 0.9
_GLANCE = 1024
_PAUSE = 8

_BLOCK = 256  # rows whose potentials are summed together when rows are drawn


def seed(rows, n_codewords, init, rng):
    """The codebook to start from, (n_codewords, n_features) in the dtype of `rows`.

    `init` is a word of `INITS`, an array of codewords, or a callable
    ``init(X, n_codewords, random_state)`` that returns one.
    """
    if isinstance(init, str):
        if init == "auto":
            init, per_codeword = _automatic(n_codewords)
            if per_codeword is not None:
                rows = rows.sample(per_codeword * n_codewords, rng)
        return _WAYS[init](rows, n_codewords, rng)
    if callable(init):
        X = rows.X if rows.rows is None else rows.X[rows.rows]
        init = init(X, n_codewords, random_state=rng)
    dtype = np.float64 if rows.X.dtype == np.float64 else rows.dtype
    return rows.admit(as_codebook(init, n_codewords, rows.n_features, dtype))


def _automatic(n_codewords):
    """How "auto" seeds so many codewords, and on how many rows for each."""
    if n_codewords <= GREEDY_LIMIT:
        return "k-means++", None
    if n_codewords <= _UNGROUPED_LIMIT:
        return "k-means||", _SAMPLE_PER_CODEWORD
    return "grouped", _GROUPED_PER_CODEWORD


def _greedy(rows, n_codewords, rng):
    """Greedy k-means++: one pass over the rows for each codeword.

    The pass finds what each candidate would gain and notes the rows to which it would be nearer;
    adopting the best one reads only those. Bits do not depend on which rows `_reach` rules out.
    """
    n_trials = 2 + int(np.log(n_codewords))
    codebook = allocate((n_codewords, rows.n_features), rows.dtype, "the codebook")
    closest = np.ones(len(rows), rows.dtype)
    nearest = np.zeros(len(rows), np.int32)
    codebook[0] = rows.take(draw_by_potential(rng.random_sample(1), rows, closest))[0]
    rows.distances(codebook[:1], nearest, closest)
    nearer = np.empty((-(-n_trials // 8), len(rows)), np.uint8)
    look_at = 1
    for i in range(1, n_codewords):
        drawn = draw_by_potential(rng.random_sample(n_trials), rows, closest)
        if not len(drawn):  # every row is a codeword already: repeat some
            codebook[i:] = np.resize(codebook[:i], codebook[i:].shape)
            break
        candidates, reach = rows.take(drawn), None
        if i >= look_at:
            reach = _reach(rows, candidates, codebook[:i], nearest, closest)
            look_at = i + (1 if reach is not None else _PAUSE)
        gains = rows.seed_gains(candidates, closest, nearest, reach, nearer)
        best = int(np.argmax(gains))
        codebook[i] = candidates[best]
        rows.seed_update(codebook[i], closest, nearer[best // 8], best % 8, nearest, i)
    return codebook


def most_useful(rows, candidates, closest, count):
    """`count` of the candidates: each lowers the potential most, after those before it."""
    closest, nearest = closest.copy(), np.zeros(len(rows), np.int32)
    nearer = np.empty((-(-len(candidates) // 8), len(rows)), np.uint8)
    chosen = []
    for i in range(count):
        gains = rows.seed_gains(candidates, closest, None, None, nearer)
        best = int(np.argmax(gains))
        chosen.append(best)
        rows.seed_update(candidates[best], closest, nearer[best // 8], best % 8, nearest, i)
    return candidates[chosen]


def _reach(rows, candidates, codebook, nearest, closest):
    """For each codeword, the distance up to which its rows have no nearer candidate, squared.

    None where few rows are as close. By the triangle inequality, a row at distance r from its
    codeword is at least |candidate − codeword| − r from the candidate, and so no nearer where that
    gap is 2·r or more (Raff, "Exact acceleration of k-means++ and k-means||", IJCAI 2021).
    """
    gaps = kernels.pairwise(codebook, rows.comparable(candidates)).min(axis=1)
    # Three distances were rounded, each by less than (d + 3)·eps of it.
    rounding = 4 * (rows.n_features + 3) * np.finfo(closest.dtype).eps
    reach = (gaps * (0.25 * (1 - rounding))).astype(closest.dtype)
    glance = slice(None, None, max(1, len(closest) // _GLANCE))
    share = np.mean(closest[glance] > reach[nearest[glance]])
    return reach if share < _MOST else None


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


def _grouped(rows, n_codewords, rng):
    """√k groups of rows, and in each its share of the codewords by greedy k-means++."""
    groups, inertias = _groups(rows, max(1, round(n_codewords**0.5)), rng)
    weighted = [group if rows.weight is None else group[rows.weight[group] > 0] for group in groups]
    d = rows.n_features
    sizes = _shares(inertias ** (d / (d + 2)), list(map(len, weighted)), n_codewords)
    codebook = allocate((n_codewords, d), rows.dtype, "the codebook")
    ends = np.cumsum(sizes)
    seeds = rng.randint(2**31 - 1, size=len(groups))  # a group's draws are its own
    for group, size, end, own in zip(weighted, sizes, ends, seeds, strict=True):
        if size:
            weight = None if rows.weight is None else rows.weight[group]
            some = Rows(rows.take(group), None, weight, dtype=rows.dtype, n_threads=rows.n_threads)
            greedy = _greedy_by_table if len(some) <= _TABLE_ROWS else _greedy
            codebook[end - size : end] = greedy(some, size, np.random.RandomState(own))
    return codebook


def _principal(rows, n_codewords, rng):
    """Clusters of rows as seen from their leading principal directions: means of the rows."""
    if rows.n_features <= _DIRECTIONS:
        return _greedy(rows, n_codewords, rng)
    short = _seen_from(rows, _leading_directions(rows))
    centres = _greedy(short, n_codewords, rng)
    for _ in range(_PRINCIPAL_ROUNDS):
        codes = short.assign(kernels.prepare(centres))
        centres = short.centroids(*short.sums(codes, n_codewords), centres)
    codes = short.assign(kernels.prepare(centres))
    # A codeword without a row stays one that was drawn, which takes what is badly served.
    return rows.centroids(*rows.sums(codes, n_codewords), _random(rows, n_codewords, rng))


def _leading_directions(rows):
    """The principal directions (8, d) of most variance, of rows evenly spaced among all."""
    positions = np.arange(len(rows)) if rows.weight is None else np.flatnonzero(rows.weight)
    most = max(_PRINCIPAL_ROWS, _PRINCIPAL_ROWS_PER_FEATURE * rows.n_features)
    positions = positions[:: -(-len(positions) // most)]
    sample = rows.take(positions).astype(np.float64)
    weight = np.ones(len(sample)) if rows.weight is None else rows.weight[positions]
    sample -= np.average(sample, axis=0, weights=weight)
    sample *= np.sqrt(weight / weight.max())[:, None]
    with _threads.one_blas_thread():
        directions = np.linalg.eigh(sample.T @ sample)[1]
    return directions[:, : -_DIRECTIONS - 1 : -1].T


def _seen_from(rows, directions):
    """The rows' coordinates in these directions."""
    matrix = kernels.Rotation(np.ascontiguousarray(directions.T, rows.dtype))
    short = allocate((len(rows), len(directions)), rows.dtype, "leading coordinates")
    for span, block in rows.pieces():
        kernels.rotate(block, matrix, out=short[span], n_threads=rows.n_threads)
    return Rows(short, None, rows.weight, dtype=rows.dtype, n_threads=rows.n_threads)


def _greedy_by_table(rows, n_codewords, rng):
    """Greedy k-means++ among few rows, by a table of their distances.

    A codeword then takes no pass over rows and hardly any calls: a tenth of the time of `_greedy`.
    """
    values = rows.take(np.arange(len(rows)))
    table = kernels.pairwise(values, values, n_threads=rows.n_threads)
    weight = np.ones(len(rows)) if rows.weight is None else rows.weight
    draws = rng.random_sample((n_codewords, 2 + int(np.log(n_codewords))))
    chosen = np.empty(n_codewords, np.intp)
    closest, potential = np.array(np.inf, table.dtype), weight
    for i, uniforms in enumerate(draws):
        edges = np.cumsum(potential)
        if not edges[-1] > 0:  # every row is a codeword already: repeat some
            chosen[i:] = np.resize(chosen[:i], n_codewords - i)
            break
        trials = uniforms if i else uniforms[:1]  # the first is a draw by weight alone
        drawn = np.searchsorted(edges, trials * edges[-1], side="right")
        if drawn.max() == len(rows):  # rounding put a target at the very end
            drawn = np.minimum(drawn, np.flatnonzero(potential)[-1])
        lowered = np.minimum(table[drawn], closest)
        best = int(np.argmin(np.einsum("tn,n->t", lowered, weight)))
        chosen[i], closest = drawn[best], lowered[best]
        potential = closest * weight
    return values[chosen]


def _groups(rows, n_groups, rng):
    """Ascending positions of the rows of each group, and its inertia."""
    sample = rows.sample(_SAMPLE_PER_CODEWORD * n_groups, rng)
    centres = _greedy(sample, n_groups, rng)
    for _ in range(_GROUP_ROUNDS):
        codes = sample.assign(kernels.prepare(centres))
        centres = sample.centroids(*sample.sums(codes, n_groups), centres)
    codes = rows.assign(kernels.prepare(centres))
    potential = rows.distances(centres, codes).astype(np.float64)
    if rows.weight is not None:
        potential *= rows.weight
    inertias = np.bincount(codes, potential, minlength=n_groups)
    bounds = np.cumsum(np.bincount(codes, minlength=n_groups))[:-1]
    return np.split(np.argsort(codes, kind="stable"), bounds), inertias


def _shares(wanted, most, total):
    """`total` in whole shares that are nearly proportional to `wanted`.

    From 1 to `most` of each (0 where that is 0); the first takes what is too much for all.
    """
    most = np.asarray(most)
    shares = np.minimum(most, 1)
    while shares.sum() < total:
        left, room = total - shares.sum(), most - shares
        if not room.any():
            shares[0] += left
            break
        weight = np.where(room > 0, wanted, 0)
        if not weight.any():
            weight = room
        more = np.minimum(np.floor(left * (weight / weight.sum())).astype(np.intp), room)
        if not more.any():
            more[np.argsort(-weight, kind="stable")[:left]] = 1
            more = np.minimum(more, room)
        shares = shares + more
    return shares


def draw_by_potential(uniforms, rows, closest):
    """Positions drawn with probability in proportion to w·closest, one for each uniform number.

    Found in two steps, block and row, so that a draw costs one pass over `closest` and no array
    of its size. A row without potential is never drawn; none is, where no row has any.
    """
    block_sums = _block_sums(rows, closest)
    if not block_sums.any():
        return np.empty(0, np.intp)
    edges = np.cumsum(block_sums)
    targets = uniforms * edges[-1]
    # Where rounding puts a target at the very end, the last block that has potential.
    blocks = np.minimum(
        np.searchsorted(edges, targets, side="right"), np.flatnonzero(block_sums)[-1]
    )
    shares = (targets - edges[blocks] + block_sums[blocks]) / block_sums[blocks]
    positions = blocks[:, None] * _BLOCK + np.arange(_BLOCK)
    potentials = _potential(rows, closest, np.minimum(positions, len(closest) - 1))
    potentials[positions >= len(closest)] = 0
    edges = np.cumsum(potentials, axis=1)
    found = (edges <= shares[:, None] * edges[:, -1:]).sum(axis=1)
    last = _BLOCK - 1 - np.argmax(potentials[:, ::-1] > 0, axis=1)
    return positions[:, 0] + np.minimum(found, last)


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


_WAYS = {
    "k-means++": _greedy,
    "k-means||": _parallel,
    "random": _random,
    "grouped": _grouped,
    "principal": _principal,
}
