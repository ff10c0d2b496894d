"""The loops that move a codebook: Lloyd's, growing samples, mini-batches.

Lloyd (1957, published 1982): assign every row to its nearest codeword, move each codeword to the
mean of its rows, repeat; the inertia Σ w·|x − c|² falls with every step. What assigns is an object
of its own, so that plans which skip work by exact bounds give the same codes, and with them the
same codebook, bit for bit: sums are taken in row order in float64, here, for all of them.

Growing samples: Lloyd on a sample until that settles, then on one of twice the size that holds the
first, until all rows are in. Most iterations are spent where they are cheap.

Mini-batches (Sculley 2010): a codeword is the running mean of all rows that came to it in any
batch, so that n rows move it by the share n / count of their distance.
"""

from typing import NamedTuple

import numpy as np

from fastvq import kernels
from fastvq._validation import allocate
from fastvq.vq._plans import PlainAssigner, choose
from fastvq.vq._probes import ProbingAssigner
from fastvq.vq._rows import spans
from fastvq.vq._seeding import draw_by_potential, most_useful, seed

__all__ = ["Outcome", "Settings", "fit_rows", "step"]

# Growing: rows a codeword in the first sample (and at least so many), and the relative decrease of
# the inertia below which a sample has told what it can.
_FIRST_PER_CODEWORD = 10
_FIRST_ROWS = 4096
_SAMPLE_TOL = 3e-3

# Mini-batches: as in scikit-learn, so many batches without a lower smoothed inertia are the end. A
# codeword with less than this share of the mean count moves elsewhere, once codewords have won so
# many rows on average that chance alone does not explain it.
_PATIENCE = 10
_DEAD_SHARE = 0.01
_DEAD_AFTER = 10

# So many places at least are looked at where codewords without rows are moved.
_FEW_TO_MOVE = 16

_BLOCK_ROWS = 1 << 16
_DISTINCT_BYTES = 1 << 17


class Settings(NamedTuple):
    """The checked parameters of a fit."""

    n_codewords: int
    init: object
    n_init: int
    algorithm: str
    batch_size: int
    max_iter: int
    tol: float
    recall: float | None = None  # of assignment by probing, where that is wanted

    @property
    def most_iterations(self):
        """How often a fit is watched at most, where that is known."""
        known = self.algorithm in ("auto", "lloyd")
        return self.n_init * (self.max_iter + 1) if known else None


class Outcome(NamedTuple):
    """What a fit ends with: codes, counts and the last inertia belong to this very codebook."""

    codebook: np.ndarray
    codes: np.ndarray
    counts: np.ndarray
    history: list
    n_iter: int
    n_distinct: int | None = None  # known where rows have fewer distinct values than codewords


def fit_rows(rows, settings, rng, watch):
    """The best of `n_init` runs; ``watch(run, iteration, codebook, inertia)`` may end a run."""
    distinct = _distinct_rows(rows, settings.n_codewords)
    if distinct is not None:
        return _repeated(rows, distinct, settings.n_codewords)
    best = None
    for run in range(settings.n_init):
        outcome = _run(rows, settings, rng, _Iterations(watch, run))
        if best is None or outcome.history[-1] < best.history[-1]:
            best = outcome
    return best


class _Iterations:
    """Numbers the iterations of one run for who watches it, and remembers that it was ended."""

    def __init__(self, watch, run):
        self._watch, self._run, self._iteration = watch, run, 0
        self.stopped = False

    def __call__(self, codebook, inertia):
        if not self.stopped:
            self.stopped = bool(self._watch(self._run, self._iteration, codebook, inertia))
            self._iteration += 1
        return self.stopped


def _run(rows, settings, rng, watch):
    """One run, from its seeding on."""
    n_codewords, init = settings.n_codewords, settings.init
    limits = {"max_iter": settings.max_iter, "tol": settings.tol}
    if settings.algorithm == "growing":
        return _growing(rows, n_codewords, init, rng, watch, **limits)
    if settings.algorithm == "minibatch":
        return _minibatch(rows, n_codewords, init, rng, watch, settings.batch_size, **limits)
    codebook = seed(rows, n_codewords, init, rng)
    if settings.recall is not None:
        assigner = ProbingAssigner(rows, settings.recall)
    else:
        plain = settings.algorithm == "lloyd"
        assigner = PlainAssigner(rows) if plain else choose(rows, codebook)
    return _lloyd(rows, codebook, assigner, watch, **limits)


def _lloyd(rows, codebook, assigner, watch, *, max_iter, tol):
    """Lloyd's iterations: at most `max_iter` updates of the codebook.

    They end once an update lowers the inertia by less than `tol` of it, or changes no code, or
    ``watch(codebook, inertia)`` returns True. One assignment follows the last update.
    """
    n_codewords = len(codebook)
    history = []
    previous = np.full(len(rows), -1, np.int32)
    while True:
        codes, distances = assigner.step(codebook)
        history.append(rows.inertia(distances))
        stopped = watch(codebook, history[-1]) or len(history) > max_iter
        if stopped or _settled(rows, codes, previous, history, tol, n_codewords):
            counts = rows.counts(codes, n_codewords)
            return Outcome(codebook, codes, counts, history, len(history) - 1)
        previous[:] = codes
        codebook = _moved(rows, codes, distances, codebook)


def _moved(rows, codes, distances, codebook):
    """The codebook with each codeword at the mean of its rows; those without one anew."""
    sums, counts = rows.sums(codes, len(codebook))
    codebook = rows.centroids(sums, counts, codebook)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        found = _badly_served(rows, distances, len(empty))
        codebook[empty[: len(found)]] = found
    return codebook


def _settled(rows, codes, previous, history, tol, n_codewords):
    """Whether the latest update was the last one worth making."""
    if len(history) == 1:
        return False
    same = np.array_equal(codes, previous)
    if not same and history[-2] - history[-1] >= tol * history[-2]:
        return False
    # As long as a codeword has no rows there is something to gain, unless nothing moves at all.
    at_rest = same and history[-1] == history[-2]
    return at_rest or bool(rows.counts(codes, n_codewords).all())


def _badly_served(rows, distances, count):
    """Rows to move `count` codewords to: distinct, and far from their codewords where many are.

    From equal steps of the accumulated potential w·D², as a k-means++ draw without chance would
    be. The farthest rows instead often lie close together: with half of the codewords to move, that
    ended in inertias 4 to 50 % higher (photographs, digits, blobs, heavy tails). Where few are to
    be moved there are several steps for each, and the row is taken that lowers the inertia most, as
    greedy k-means++ does. Fewer rows than asked for where not so many lie off their codewords.
    """
    if not rows.inertia(distances) > 0:
        return rows.take(np.empty(0, np.intp))
    steps = max(count, _FEW_TO_MOVE)
    drawn = draw_by_potential((np.arange(steps) + 0.5) / steps, rows, distances)
    values = rows.take(np.unique(drawn))
    _, first = np.unique(values, axis=0, return_index=True)
    values = values[np.sort(first)]
    return values if len(values) <= count else most_useful(rows, values, distances, count)


# ---- growing samples ----------------------------------------------------------------------


def _growing(rows, n_codewords, init, rng, watch, *, max_iter, tol):
    """Lloyd on samples that double until all rows are in, each from where the last one ended."""
    history, n_iter, codebook = [], 0, None
    for sample in _growing_samples(rows, _first_size(n_codewords), rng):
        if codebook is None:
            codebook = seed(sample, n_codewords, init, rng)
        scale = rows.total_weight / sample.total_weight
        outcome = _lloyd(
            sample,
            codebook,
            choose(sample, codebook),
            lambda codebook, inertia, scale=scale: watch(codebook, inertia * scale),
            max_iter=max_iter,
            tol=tol if sample is rows else max(tol, _SAMPLE_TOL),
        )
        history += [inertia * scale for inertia in outcome.history]
        n_iter += outcome.n_iter
        codebook = outcome.codebook
    return outcome._replace(history=history, n_iter=n_iter)


def _first_size(n_codewords):
    return max(_FIRST_ROWS, _FIRST_PER_CODEWORD * n_codewords)


def _growing_samples(rows, size, rng):
    """Nested samples of about `size`, 2 `size`, ... rows that have weight, then all `rows`."""
    keys = None
    while 2 * size <= len(rows):
        if keys is None:
            keys = _random_keys(rows, rng)
        positions = np.flatnonzero(keys < np.uint32(size / len(rows) * 2**32))
        if len(positions) > size // 2:  # fewer where most rows have no weight
            yield rows.subset(positions)
        size *= 2
    yield rows


def _random_keys(rows, rng):
    """A number of 32 bits for each row: the rows below any bound are a random sample."""
    keys = np.empty(len(rows), np.uint32)
    for span in spans(len(rows), _BLOCK_ROWS):
        keys[span] = rng.randint(2**32, size=span.stop - span.start, dtype=np.uint64)
        if rows.weight is not None:
            keys[span][rows.weight[span] == 0] = 2**32 - 1
    return keys


# ---- mini-batches -------------------------------------------------------------------------


def _minibatch(rows, n_codewords, init, rng, watch, batch_size, *, max_iter, tol):
    """Batches drawn with replacement, at most as many as `max_iter` passes over the rows.

    The inertia of the batches is smoothed over about one pass; the end comes once ten batches in
    a row have not lowered it by `tol` of it.
    """
    n_rows, batch_size = len(rows), min(batch_size, len(rows))
    start = rows.sample(max(3 * batch_size, _first_size(n_codewords)), rng)
    codebook, counts = seed(start, n_codewords, init, rng), np.zeros(n_codewords)
    share = min(1.0, 2 * batch_size / (n_rows + 1))
    history, lowest, stale = [], np.inf, 0
    for _ in range(max(1, max_iter * n_rows // batch_size)):
        batch = rows.subset(np.sort(rng.randint(n_rows, size=batch_size)))
        codebook, counts, inertia = step(batch, codebook, counts)
        inertia *= n_rows / batch_size
        history.append(inertia if not history else history[-1] + share * (inertia - history[-1]))
        if history[-1] < (1 - tol) * lowest:
            lowest, stale = history[-1], 0
        else:
            stale += 1
        if watch(codebook, history[-1]) or stale == _PATIENCE:
            break
    codes, distances = PlainAssigner(rows).step(codebook)
    counts = rows.counts(codes, n_codewords)
    return Outcome(codebook, codes, counts, [*history, rows.inertia(distances)], len(history))


def step(batch, codebook, counts):
    """One mini-batch: the codebook and the counts after it, and its inertia before it."""
    n_codewords = len(codebook)
    codes = batch.assign(kernels.prepare(codebook))
    distances = batch.distances(codebook, codes)
    sums, new = batch.sums(codes, n_codewords)
    merged = counts + new
    moved = batch.centroids(sums + counts[:, None] * codebook, merged, codebook)
    dead = np.flatnonzero(merged < _DEAD_SHARE * merged.mean())[: len(batch) // 2]
    if len(dead) and merged.sum() * len(batch) >= _DEAD_AFTER * n_codewords * batch.total_weight:
        found = _badly_served(batch, distances, len(dead))
        dead = dead[: len(found)]
        moved[dead] = found
        merged[dead] = 2 * _DEAD_SHARE * merged.mean()  # time to win rows before the next verdict
    return moved, merged, batch.inertia(distances)


# ---- fewer distinct rows than codewords ---------------------------------------------------


def _repeated(rows, distinct, n_codewords):
    """The codebook of all distinct rows, repeated until it is full."""
    codebook = allocate((n_codewords, rows.n_features), rows.dtype, "codebook_")
    np.take(distinct, np.arange(n_codewords) % len(distinct), axis=0, out=codebook, mode="clip")
    codes, distances = PlainAssigner(rows).step(codebook)
    counts = rows.counts(codes, n_codewords)
    return Outcome(codebook, codes, counts, [rows.inertia(distances)], 1, len(distinct))


def _distinct_rows(rows, limit):
    """The distinct rows that have weight, sorted, where there are fewer than `limit`; else None.

    Ends as soon as enough are found, which takes little more than `limit` rows of most data.
    """
    hashes = set()
    for block in _blocks_of_bytes(rows):
        hashes.update(map(hash, block))
        if len(hashes) >= limit:
            return None
    found = set()
    for block in _blocks_of_bytes(rows):
        found.update(block)
    values = np.frombuffer(b"".join(found), rows.dtype).reshape(-1, rows.n_features)
    if not np.isfinite(values).all():  # let a kernel say which row it is
        rows.assign(np.zeros((1, rows.n_features), rows.dtype))
    return values[np.lexsort(values.T[::-1])]


def _blocks_of_bytes(rows):
    """The rows that have weight as bytes, a list for each of many small blocks."""
    as_bytes = np.dtype((np.void, rows.n_features * rows.dtype.itemsize))
    # A block is in memory three times, once as Python's objects.
    for span, block in rows.pieces(n_rows=max(16, _DISTINCT_BYTES // as_bytes.itemsize)):
        if rows.weight is not None:
            block = block[rows.weight[span] > 0]
        block = np.ascontiguousarray(block, dtype=rows.dtype) + 0.0  # so that -0.0 equals 0.0
        yield block.view(as_bytes)[:, 0].tolist()
