"""Plans that assign all rows in every iteration of a fit and skip what cannot have changed.

Each has the one method `step(codebook) -> codes, distances` of `PlainAssigner`, and gives its very
bits: what is skipped is skipped by a proof that allows for rounding, and what cannot be proven is
assigned by the definition. So algorithm="auto" and "lloyd" end with the same codebook, and which
plan is the quicker one may be found by timing.

Bounds between iterations (Hamerly 2010): a row stays with its codeword as long as that is nearer
than a lower bound of the distance to all others, which shrinks by how far those have moved.

Boxes: rows of few features lie in boxes of neighbours, and are compared with the codewords that
their box does not rule out; see fastvq/_kernels/boxes.h.

Screening: the leading coordinates of all rows are kept, and the code of the iteration before is
the first guess; see fastvq/_kernels/screen.pyx.
"""

import math
from time import perf_counter

import numpy as np

from fastvq import _screen, kernels

__all__ = ["BoundedAssigner", "BoxedAssigner", "PlainAssigner", "ScreenedAssigner", "choose"]

# Screening is tried from this much work an iteration on, on this many rows a thread.
_SCREEN_WORK = 500_000_000
_TRIAL_ROWS = 512
# With more than this share of the rows in doubt, all are assigned: gathering rows costs as well.
_MOSTLY = 0.7
# Looking at every so many-th row tells that share.
_GLANCE = 64
# Codewords from which a pass over the rows to see which are in doubt is little beside assigning.
_BOUNDED_CODEWORDS = 32
# Bytes of a row that are copied into boxes: with all else a fit keeps, less than 32 a row. In more
# features than these are, a box rules out little.
_BOXED_BYTES = 12
_BOXED_ROWS = 10_000
# Making boxes takes as long as some iterations: a fit that is soon done does without.
_BEFORE_BOXES = 4
_MOST_SLOW = 3


def choose(rows, codebook):
    """The quickest plan for `rows` in a fit that starts from `codebook`."""
    work = len(rows) * codebook.size
    if not rows.plain:
        return PlainAssigner(rows)
    complete = codebook.shape[1] == rows.n_features
    if work >= _SCREEN_WORK and complete and _screen.suits(codebook):
        directions = _screen.Directions(rows.take(_spread(len(rows), _screen.SAMPLE)))
        if directions.worth_trying and _screening_wins(rows, codebook, directions):
            return ScreenedAssigner(rows, directions)
    if len(codebook) >= _BOUNDED_CODEWORDS:
        fits = rows.n_features * rows.dtype.itemsize <= _BOXED_BYTES
        boxed = fits and complete and _BOXED_ROWS <= len(rows) < 2**31
        return BoxedAssigner(rows) if boxed else BoundedAssigner(rows)
    return PlainAssigner(rows)


class PlainAssigner:
    """Assigns all rows by the plain tile, in every iteration."""

    def __init__(self, rows):
        self._rows = rows
        self._codes = np.empty(len(rows), np.int32)
        self._distances = np.empty(len(rows), rows.dtype)

    def step(self, codebook):
        """Codes (n,) int32 and squared distances (n,) of all rows; valid until the next step."""
        book = self._rows.prepare(codebook)
        self._rows.assign(book, self._codes)
        self._rows.distances(book, self._codes, self._distances)
        return self._codes, self._distances


class BoundedAssigner(PlainAssigner):
    """Assigns the rows that a lower bound does not keep with their codeword.

    Beside codes and distances it keeps the bound: 4 bytes a row, 8 in float64.
    """

    def __init__(self, rows):
        super().__init__(rows)
        self._lower = np.empty(len(rows), rows.dtype)
        self._codebook = None
        self._full_seconds = 0.0  # what assigning all rows took last
        self._pause = 0  # iterations for which looking at the bounds is not worth its time
        self._next_pause = 1

    def step(self, codebook):
        began = perf_counter()
        book = self._rows.prepare(codebook, bounds=True)
        doubtful = self._in_doubt(codebook, book)
        self._codebook = codebook
        if doubtful is None:
            self._assign_all(book)
            self._full_seconds = perf_counter() - began
        else:
            self._assign_some(book, doubtful)
            if perf_counter() - began > self._full_seconds:
                self._pause, self._next_pause = self._next_pause, 2 * self._next_pause
            else:
                self._next_pause = 1
        return self._codes, self._distances

    def _assign_all(self, book):
        self._rows.assign(book, self._codes, self._lower)
        np.sqrt(self._lower, out=self._lower)
        self._rows.distances(book, self._codes, self._distances)

    def _assign_some(self, book, doubtful):
        if len(doubtful) == 0:
            return
        some = self._rows.subset(doubtful)
        bound = np.empty(len(some), self._rows.dtype)
        new = some.assign(book, others=bound)
        self._lower[doubtful] = np.sqrt(bound)
        changed = new != self._codes[doubtful]
        doubtful, new = doubtful[changed], new[changed]
        self._codes[doubtful] = new
        self._distances[doubtful] = self._rows.subset(doubtful).distances(book, new)

    def _in_doubt(self, codebook, book):
        """Positions of rows that may have another code now, or None: most of them, or not worth it.

        Also takes the distances of all rows to the codeword they had, unless it answers None.
        """
        if self._codebook is None or self._pause:
            self._pause = max(0, self._pause - 1)
            return None
        rows, codes, lower = self._rows, self._codes, self._lower
        # Rounding: of the square roots and of this subtraction, relative to what is subtracted
        # from; of the distance, as assign defines it and as it is taken here, relative to itself.
        eps = np.finfo(rows.dtype).eps
        moved = _moved_by_others(self._codebook, codebook) * (1 + 4 * eps)
        moved = moved.astype(rows.dtype)
        for span in _spans(len(rows)):
            lower[span] *= 1 - 2 * eps
            lower[span] -= moved[codes[span]]
        margin = 1 + eps * (2 * codebook.shape[1] + 32)
        glance = np.arange(0, len(rows), _GLANCE)
        near = rows.subset(glance).distances(book, codes[glance])
        if np.mean(~(np.sqrt(near) * margin < lower[glance])) > _MOSTLY:
            return None
        rows.distances(book, codes, self._distances)
        parts = [
            np.flatnonzero(~(np.sqrt(self._distances[span]) * margin < lower[span])) + span.start
            for span in _spans(len(rows))
        ]
        return np.concatenate(parts)


class BoxedAssigner(BoundedAssigner):
    """Assigns rows of few features box by box, once a fit has lasted for some iterations.

    In place of bounds it then keeps the rows in the order of their boxes, and that order: 4 bytes a
    row and feature, 8 in float64, and 4 a row.
    """

    def __init__(self, rows):
        super().__init__(rows)
        self._boxes = None
        self._left = _BEFORE_BOXES  # iterations until there are boxes
        self._slow = 0  # of them in a row that took longer than assigning all rows

    def step(self, codebook):
        if self._left:
            self._left -= 1
            return super().step(codebook)
        if self._rows.prepare(codebook).scale != 1:
            return PlainAssigner.step(self, codebook)
        if self._boxes is None:
            self._codebook = self._lower = None
            self._boxes = self._rows.boxes(self._codes)
        began = perf_counter()
        self._boxes.assign(codebook, self._codes, self._distances)
        self._slow = self._slow + 1 if perf_counter() - began > self._full_seconds else 0
        if self._slow == _MOST_SLOW:  # these boxes rule out too little
            self._boxes, self._left = None, math.inf
            self._lower = np.empty(len(self._rows), self._rows.dtype)
        return self._codes, self._distances


class ScreenedAssigner(PlainAssigner):
    """Assigns by screening with the codes of the iteration before as guesses.

    Beside codes and distances it keeps the leading coordinates: an eighth of the features, and
    eight bytes a row.
    """

    def __init__(self, rows, directions):
        super().__init__(rows)
        self._directions = directions
        self._short_rows = rows.project(directions)
        self._guesses = None

    def step(self, codebook):
        book = kernels.prepare(codebook)
        screen = _screen.Screen(book.codebook, self._directions)
        self._rows.assign_screened(
            book, screen, self._short_rows, self._guesses, self._codes, self._distances
        )
        self._guesses = self._codes  # each guess is read before its code is written
        return self._codes, self._distances


def _screening_wins(rows, codebook, directions):
    """Time both ways on a few rows; a fit screens with good guesses, this trial with none."""
    book = kernels.prepare(codebook)
    screen = _screen.Screen(book.codebook, directions)
    some = rows.subset(_spread(len(rows), _TRIAL_ROWS * kernels.thread_count(rows.n_threads)))
    short_rows = some.project(directions)
    codes = np.empty(len(some), np.int32)
    began = perf_counter()
    some.assign(book, codes)
    middle = perf_counter()
    some.assign_screened(book, screen, short_rows, None, codes)
    return perf_counter() - middle < middle - began


def _moved_by_others(before, after):
    """For each codeword, how far the one of the others that moved farthest did, in float64."""
    moved = np.empty(len(before))
    for some in _spans(len(before), 256):
        moved[some] = np.square(after[some].astype(np.float64) - before[some]).sum(axis=1)
    np.sqrt(moved, out=moved)
    farthest = int(moved.argmax())
    result = np.full(len(moved), moved[farthest])
    result[farthest] = np.delete(moved, farthest).max(initial=0)  # a single one has no others
    return result


def _spread(n, size):
    """About `size` positions, evenly spaced over n."""
    return np.arange(0, n, max(1, n // size))


def _spans(n, step=1 << 18):
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
