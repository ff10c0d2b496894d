"""Nearest codewords, and the distances to them."""

from time import perf_counter

import numpy as np

from fastvq._kernels import load
from fastvq.kernels._call import (
    Source,
    aligned,
    as_codes,
    calls,
    room_for_codes,
    thread_count,
    workspace_for,
)
from fastvq.kernels._codebook import prepare, two_nearest, unscaled_squares

# Work from which it pays to try screening, and rows (a thread) of a trial at least.
_TRIAL_WORK = 2_000_000_000
_TRIAL_ROWS = 256


def assign(X, codebook, *, rows=None, codes=None, others=None, n_threads=None):
    """Index of the nearest codeword of each row.

    The code is the lowest index that minimises sum_f (x_f - c_f)^2, summed over features in order
    in the codebook's precision: it depends on the row and the codebook alone.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    codebook : ndarray of shape (k, d), or Prepared
    rows : ndarray of intp, shape (m,), optional
        Rows to take, in this order; all by default.
    codes : ndarray of uint8, uint16, uint32 or int32, shape (m,), optional
        Where to write; a new int32 array by default.
    others : ndarray of the codebook's dtype, shape (m,), optional
        Filled with a lower bound of the squared distance to every codeword but the nearest, 0
        where there is none to be had cheaply.
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (m,)

    Notes
    -----
    m k d multiply-adds, half the arithmetic of differences, where |c|^2 - 2 x.c is exact enough
    to decide; the rows for which it is not are decided by differences. With a codebook that was
    prepared for screening, and enough rows, the quicker of the plain way and screening is found by
    timing both on the first rows. Many rows of up to four features are looked up in a grid of
    cells, which rule out most codewords, where a sample tells that this pays. Memory: a packed
    block of rows a thread (and, screening, a value for each codeword and row of it; in a grid, up
    to 5 MB, and a bit for each codeword and cell, up to 4 MB).
    """
    book = prepare(codebook)
    source = book.source(X, rows)
    codes = room_for_codes(codes, (source.n,), book.n_codewords)
    threads = thread_count(n_threads, source.n * book.codebook.size)
    if others is None and (grid := book.grid(source, n_threads)):
        grid.assign(source, codes, threads)
        return codes
    plain = _Plain(source, book, codes, others, threads)
    done = 0
    if source.n * book.codebook.size >= _TRIAL_WORK and others is None and book.screen():
        screened = _Screened(source, book, book.screen(), None, None, codes, None, threads)
        done, plain = _quicker(plain, screened)
    plain.run(done, source.n)
    if others is not None and book.scale != 1:
        _unscale_bounds(others, book)
    return codes


def assign_screened(
    X,
    codebook,
    screen,
    *,
    short_rows=None,
    guesses=None,
    rows=None,
    codes=None,
    distances=None,
    n_threads=None,
):
    """What :func:`assign` returns, found by screening whatever that costs.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 codebook of shape (k, d) or Prepared
    screen : fastvq._screen.Screen
        Made from this codebook.
    short_rows : ndarray of float32, shape (n, n_all + 2), optional
        What :func:`project` made of X in the screen's directions; made on the way by default.
    guesses : ndarray of int32, shape (m,), optional
        Codes close to the right ones, such as those of the iteration before.
    distances : ndarray of float32, shape (m,), optional
        Filled with what :func:`distances` returns for these codes.
    rows, codes, n_threads
        As for :func:`assign`.
    """
    book = prepare(codebook)
    if book.scale != 1:
        raise ValueError("codebook must not need scaling to be screened: use assign")
    source = book.source(X, rows)
    codes = room_for_codes(codes, (source.n,), book.n_codewords)
    threads = thread_count(n_threads, source.n * book.codebook.size // 16)
    _Screened(source, book, screen, short_rows, guesses, codes, distances, threads).run(0, source.n)
    return codes


def project(X, directions, *, rows=None, n_threads=None):
    """Coordinates of rows in a few directions, and two lengths: see fastvq._screen.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    directions : fastvq._screen.Directions
    rows : ndarray of intp, shape (m,), optional
    n_threads : int, optional

    Returns
    -------
    ndarray of float32, shape (m, n_all + 2)
    """
    d = X.shape[1]
    source = Source(X, d, rows)
    out = np.empty((source.n, directions.n_all + 2), np.float32)
    threads = thread_count(n_threads, source.n * d * directions.n_all)
    workspace = aligned((threads, directions.workspace_bytes(d, 0)), np.dtype(np.uint8))
    for start, stop in calls(source.n, d * directions.n_all):
        directions.project(source, start, stop, out[start:stop], workspace, threads)
    return out


class _Plain:
    """Assignment by the tile: expanded values, and differences where those leave doubt."""

    def __init__(self, source, book, codes, others, threads):
        self.source, self.book, self.codes, self.threads = source, book, codes, threads
        self.others = others
        self._workspace = workspace_for("assign", book.codebook.shape[1], book.dtype, threads)

    def run(self, first, last):
        for start, stop in calls(last - first, self.book.codebook.size):
            self._call(first + start, first + stop)

    def _call(self, start, stop):
        source, book, part = self.source, self.book, self.codes[start:stop]
        others = None if self.others is None else self.others[start:stop]
        if book.panels is None:
            if others is not None:
                others[:] = 0
            _direct(source, start, stop, book, part, self._workspace, self.threads)
            return
        doubtful = np.empty(stop - start, np.uint8)
        bad = load("assign").assign_expanded(
            source.fields, start, stop, book.scale, book.shift, book.codebook, book.panels,
            book.radius, book.rounding, part.ctypes.data, part.itemsize, doubtful,
            np.empty(0, book.dtype) if others is None else others, self._workspace, self.threads,
        )  # fmt: skip
        source.check(bad, book)
        if others is not None:
            others[doubtful.view(bool)] = 0  # it may be the expanded nearest that is second
        settle(source, start, book, part, doubtful, self.threads)


class _Screened:
    """Assignment by screening; see fastvq._screen."""

    def __init__(self, source, book, screen, short_rows, guesses, codes, distances, threads):
        self.source, self.book, self.codes, self.threads = source, book, codes, threads
        self._distances = distances
        self._screen, self._short_rows, self._guesses = screen, short_rows, guesses
        size = screen.directions.workspace_bytes(book.codebook.shape[1], book.n_codewords)
        self._workspace = aligned((threads, size), np.dtype(np.uint8))

    def run(self, first, last):
        for start, stop in calls(last - first, self.book.codebook.size):
            self._call(first + start, first + stop)

    def _call(self, start, stop):
        source, part = self.source, self.codes[start:stop]
        doubtful = np.empty(stop - start, np.uint8)
        near = None if self._distances is None else self._distances[start:stop]
        bad = self._screen.assign(
            source, start, stop, self._short_rows, self._guesses, part, doubtful, near,
            self._workspace, self.threads,
        )  # fmt: skip
        source.check(bad, self.book)
        settled = settle(source, start, self.book, part, doubtful, self.threads)
        if near is not None and len(settled):
            rest = source.taken(settled + start)
            near[settled] = distances(rest.X, self.book, part[settled], rows=rest.rows)


def _quicker(*plans):
    """Time each plan on as many of the first rows; how many are done, and the quickest plan."""
    n = plans[0].source.n
    step = max(_TRIAL_ROWS * plans[0].threads, n // 256)
    if len(plans) * step > n:  # too few rows to tell
        return 0, plans[0]
    done, best = 0, []
    for plan in plans:
        began = perf_counter()
        plan.run(done, done + step)
        done += step
        best.append(perf_counter() - began)
    return done, plans[best.index(min(best))]


def assign_two(X, codebook, *, rows=None, n_threads=None):
    """The two nearest codewords of each row, and the squared distances to them.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    codebook : ndarray of shape (k, d) with k >= 2, or Prepared
    rows : ndarray of intp, shape (m,), optional
    n_threads : int, optional

    Returns
    -------
    codes : ndarray of int32, shape (m, 2)
        Nearest first; of equally near codewords the lower index first.
    distances : ndarray of the codebook's dtype, shape (m, 2)
    """
    book = prepare(codebook)
    if book.n_codewords < 2:
        raise ValueError("assign_two needs at least two codewords")
    source = book.source(X, rows)
    codes = np.empty((source.n, 2), np.int32)
    nearest = np.empty((source.n, 2), book.dtype)
    work = book.codebook.size
    threads = thread_count(n_threads, source.n * work)
    for start, stop in calls(source.n, work):
        part = codes[start:stop], nearest[start:stop]
        bad = two_nearest(source, book, start, stop, *part, threads)
        source.check(bad, book)
    return codes, unscaled_squares(nearest, book)


def distances(X, codebook, codes, *, rows=None, out=None, n_threads=None):
    """Squared distance of each row to the codeword that its code names.

    Taken from the differences, sum_f (x_f - c_f)^2, in the codebook's precision.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    codebook : ndarray of shape (k, d), or Prepared
    codes : ndarray of int32, shape (m,)
    rows : ndarray of intp, shape (m,), optional
        Row of each code; by default code i belongs to row i.
    out : ndarray of shape (m,), optional
        Where to write, contiguous and of the dtype of the result.
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (m,)
        Of the codebook's dtype; float64 where the codebook's values are so large or small that
        their squares would leave the range of float32.
    """
    book = prepare(codebook)
    source = book.source(X, rows)
    codes = as_codes(codes, source.n, np.zeros(book.n_codewords, np.int64))
    out = _room_for_squares(out, source.n, book)
    squares = out if book.scale == 1 else np.empty(source.n, book.dtype)
    d = book.codebook.shape[1]
    threads = thread_count(n_threads, source.n * d)
    workspace = workspace_for("distances", d, book.dtype, threads)
    for start, stop in calls(source.n, d):
        bad = load("distances").to_codewords(
            source.fields, start, stop, book.scale, book.codebook, codes[start:stop],
            squares[start:stop], workspace, threads,
        )  # fmt: skip
        source.check(bad, book)
    if squares is not out:
        out[:] = unscaled_squares(squares, book)
    return out


def pairwise(X, codebook, *, n_threads=None):
    """Squared distance of every row to every codeword, (n, k), from the differences."""
    book = prepare(codebook)
    source = book.source(X)
    out = np.empty((source.n, book.n_codewords), book.dtype)
    work = book.codebook.size
    threads = thread_count(n_threads, source.n * work)
    workspace = workspace_for("distances", book.codebook.shape[1], book.dtype, threads)
    for start, stop in calls(source.n, work):
        bad = load("distances").to_all(
            source.fields, start, stop, book.scale, book.codebook, out[start:stop],
            workspace, threads,
        )  # fmt: skip
        source.check(bad, book)
    return unscaled_squares(out, book)


def _direct(source, start, stop, book, codes, workspace, threads):
    bad = load("assign").assign_direct(
        source.fields, start, stop, book.scale, book.codebook, codes.ctypes.data, codes.itemsize,
        workspace, threads,
    )  # fmt: skip
    source.check(bad, book)


def settle(source, start, book, codes, doubtful, threads):
    """Decide by definition the rows marked among positions start ..; which of them those were."""
    doubtful = np.flatnonzero(doubtful.view(bool))  # ten times as fast as on integers
    if len(doubtful):
        rest = source.taken(doubtful + start)
        settled = np.empty(rest.n, codes.dtype)
        workspace = workspace_for("assign", source.n_padded, book.dtype, threads)
        for first, last in calls(rest.n, book.codebook.size):
            _direct(rest, first, last, book, settled[first:last], workspace, threads)
        codes[doubtful] = settled
    return doubtful


def _room_for_squares(out, n, book):
    """Where squared distances go: float64 where those of a scaled codebook need its range."""
    dtype = book.dtype if book.scale == 1 else np.dtype(np.float64)
    if out is None:
        return np.empty(n, dtype)
    if out.shape != (n,) or out.dtype != dtype:
        raise ValueError(
            f"out must have shape ({n},) and dtype {dtype}, got {out.shape} of {out.dtype}"
        )
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be contiguous and writeable")
    return out


def _unscale_bounds(bounds, book):
    """Lower bounds in the units of the input; 0 for those that their dtype cannot hold."""
    exact = unscaled_squares(bounds, book)
    limits = np.finfo(bounds.dtype)
    exact[~((exact >= limits.tiny) & (exact <= limits.max))] = 0
    bounds[:] = exact
