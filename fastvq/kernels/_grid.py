"""Rows of few features, looked up in a grid of cells that rule out most codewords."""

import math

import numpy as np

from fastvq._kernels import load
from fastvq.kernels._call import aligned, calls, thread_count

# Features in which cells are small enough to rule much out.
_MOST_FEATURES = 4
# Cells: few enough for what is known of them to stay in the second-level cache, and for making them
# to be little beside looking up so many rows.
_MOST_CELLS, _ROWS_OF_A_CELL = 8192, 32
_MOST_BITS = 1 << 25  # of all cells, one for each codeword
# Rows that a thread puts in order at a time, and bytes that these and their places take.
_TASK_ROWS, _TASK_BYTES = 1 << 17, 4_000_000
# Rows that tell where rows lie, and cells that tell what cells rule out.
_SAMPLE, _TRIED_CELLS = 512, 128
_LEFT_OUT = 0.005  # of the rows at each end of each feature: the grid need not reach them

# Nanoseconds, on Zen 3 with AVX2; their ratios matter. Comparing a row with a codeword takes
# _COMPARED + d * _FEATURE, and about twice as much where the rows of a cell fill a block in part.
_COMPARED, _FEATURE, _IN_PART = 0.04, 0.04, 2.0
_LOOKED_UP, _PUT_IN_ORDER = 4.5, 9.0
_RULED_OUT = 1.9  # or not: a codeword in a cell
_WORTHWHILE = 10_000_000  # of comparing: below, seeing whether a grid pays is no longer little
_LEAD = 1.3  # by which a grid has to be ahead


class Grid:
    """Cells over the room in which codewords and most rows lie, and who can win in each.

    Parameters
    ----------
    book : Prepared
        Of few features, not scaled.
    n : int
        Rows to be assigned, about.
    sample : ndarray of float64, shape (m, d)
        Some of them, finite.

    Notes
    -----
    A cell takes 5 k d operations, of at most 8192, and a bit for each codeword. A row is compared
    with the codewords that its cell does not rule out, some 20 of 256 for white data of four
    features; and with none where one alone is left. The test is that of :class:`Boxes`, so that
    codes are those of comparing with all.
    """

    @classmethod
    def where_it_pays(cls, book, n, sample, n_threads=None):
        """A grid for such rows; None where comparing them with all codewords is about as fast."""
        grid = cls(book, n, sample)
        cells = grid._cells(sample[:: -(-len(sample) // _TRIED_CELLS)])
        inside = cells < grid.n_cells
        counts = np.full(len(cells), len(book.codebook), np.int32)
        _, counts[inside], _ = grid._made(cells[inside], 1)
        if not grid._ahead(counts, making=grid.n_cells * len(book.codebook) * _RULED_OUT / n):
            return None
        grid._fill(n_threads)
        return grid

    def __init__(self, book, n, sample):
        self._codebook, self._dtype = book.codebook, book.dtype
        self._low, self._side, self._axis = _laid_out(book.codebook, n, sample)
        self.n_cells = math.prod(self._axis.tolist())
        self._masks = self._counts = self._only = None

    def pays(self, sample):
        """Whether rows like these are looked up sooner than compared with all codewords."""
        return self._ahead(self._counts[self._cells(sample)])

    def assign(self, source, codes, threads):
        """Codes of the rows of a source, into `codes`."""
        d = len(self._axis)
        task = min(_TASK_ROWS, _TASK_BYTES // (d * self._dtype.itemsize + 12))
        task = min(task, max(1024, -(-source.n // threads)))
        low, per_unit = self._low.astype(self._dtype), (1 / self._side).astype(self._dtype)
        workspace = self._workspace(task, threads)
        for start, stop in calls(source.n, self._codebook.size):
            part = codes[start:stop]
            bad = load("grid").assign(
                source.fields, start, stop, low, per_unit, self._axis, self._masks, self._only,
                self._codebook, task, part.ctypes.data, part.itemsize, workspace, threads,
            )  # fmt: skip
            source.check(bad, self._dtype)

    def _fill(self, n_threads):
        # The last cell is for rows that lie in no other: there any codeword may win.
        k = len(self._codebook)
        work = self.n_cells * self._codebook.size * 4
        threads = thread_count(n_threads, work)
        made = self._made(np.arange(self.n_cells + 1, dtype=np.int32), threads)
        self._masks, self._counts, self._only = made
        self._masks[-1] = 0xFFFFFFFF
        self._masks[-1, -1] >>= np.uint32(-k % 32)
        self._counts[-1], self._only[-1] = k, -1

    def _made(self, cells, threads):
        """Of cells: a bit for each codeword that may win, their number, and the one if it is one,
        else -1."""
        kernel, (k, d) = load("grid"), self._codebook.shape
        step = kernel.step(self._dtype.itemsize)
        features = aligned((d, -(-k // step) * step), self._dtype)
        features[:, :k], features[:, k:] = self._codebook.T, self._codebook[-1:].T
        masks = np.empty((len(cells), -(-k // 32)), np.uint32)
        counts, only = np.empty((2, len(cells)), np.int32)
        kernel.fill(
            self._low, self._side, self._axis, self._reach(), features, k, cells, masks, counts,
            only, self._workspace(0, threads), threads,
        )  # fmt: skip
        return masks, counts, only

    def _workspace(self, task_rows, threads):
        kernel, (k, d) = load("grid"), self._codebook.shape
        step, size = kernel.step(self._dtype.itemsize), self._dtype.itemsize
        n_bytes = kernel.workspace_bytes(d, size, -(-k // step) * step, self.n_cells + 1, task_rows)
        return aligned((threads, n_bytes), np.dtype(np.uint8))

    def _reach(self):
        """Half a cell, and what rounding can add: of a row's place, of a cell's centre."""
        eps = float(np.finfo(self._dtype).eps)
        range_ = self._side * self._axis
        slack = 8 * eps * (np.abs(self._low) + np.abs(self._low + range_) + range_)
        return ((self._side / 2 + slack) * (1 + 4 * eps)).astype(self._dtype)

    def _cells(self, sample):
        """The cells of these rows, int32; the last for those outside."""
        place = np.floor((sample - self._low) / self._side)
        inside = ((place >= 0) & (place < self._axis)).all(axis=1)
        cells = np.full(len(sample), self.n_cells, np.int32)
        cells[inside] = np.ravel_multi_index(place[inside].astype(np.int32).T, self._axis)
        return cells

    def _ahead(self, counts, making=0.0):
        """Whether rows of cells with so many candidates are looked up sooner."""
        k, d = self._codebook.shape
        compare, waits = _COMPARED + d * _FEATURE, counts > 1
        waiting = _PUT_IN_ORDER * waits.mean() + _IN_PART * compare * (counts * waits).mean()
        return k * compare > _LEAD * (_LOOKED_UP + waiting + making)


def grid_may_pay(book, source):
    """Whether there is so much to do, in so few features, that it pays to look whether it does."""
    k, d = book.codebook.shape
    alike = book.scale == 1 and book.n_row_features == d
    return (
        alike
        and d <= _MOST_FEATURES
        and k * (_COMPARED + d * _FEATURE) > _LEAD * _LOOKED_UP
        and source.n * k * (_COMPARED + d * _FEATURE) > _WORTHWHILE
    )


def sampled(source):
    """Some rows of a source, as float64; those with NaN or infinity left out."""
    at = np.arange(0, source.n, -(-source.n // _SAMPLE))
    sample = source.X[at if source.rows is None else source.rows[at]].astype(np.float64)
    return sample[np.isfinite(sample).all(axis=1)]


def _laid_out(codebook, n, sample):
    """Where cells begin, their sides, and how many there are along each axis: nearly cubes."""
    ends = np.sort(sample, axis=0)[[int(p * (len(sample) - 1)) for p in (_LEFT_OUT, 1 - _LEFT_OUT)]]
    low = np.minimum(codebook.min(axis=0), ends[0]).astype(np.float64)
    high = np.maximum(codebook.max(axis=0), ends[1]).astype(np.float64)
    smallest = np.finfo(codebook.dtype).tiny / np.finfo(codebook.dtype).eps
    range_ = np.maximum(high - low, smallest)
    most = max(1, min(_MOST_CELLS, n // _ROWS_OF_A_CELL, _MOST_BITS // len(codebook)))
    side = (range_.prod() / most) ** (1 / len(range_))
    while np.ceil(range_ / side).prod() > most:
        side *= 1.02
    axis = np.ceil(range_ / side)
    return low, range_ / axis, axis.astype(np.int32)
