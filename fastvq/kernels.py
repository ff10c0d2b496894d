"""The compiled kernels as functions on plain arrays; the quantizers are built on these.

Rows ``X`` are a 2-D array of any strides (Fortran order, slices, read-only, memory-mapped) and of
dtype float32, float64, float16, uint8 or int8: a block at a time is converted and packed, never
the whole array. The codebook's dtype, float32 or float64, is the precision of the arithmetic.
NaN, infinity and values too large to square are found while packing and raise ValueError.

:mod:`fastvq.reference` holds a plain NumPy twin of each function.
"""

import itertools
import math
from threading import Lock
from time import perf_counter

import numpy as np

from fastvq import _optimal, _screen, _threads
from fastvq._kernels import load
from fastvq._panels import pack_panels

__all__ = [
    "Coded",
    "Levels",
    "Prepared",
    "Rotation",
    "Stages",
    "Steps",
    "Subspaces",
    "assign",
    "assign_screened",
    "assign_subspaces",
    "assign_two",
    "beam_search",
    "decode_even",
    "decode_levels",
    "decode_subspaces",
    "decode_sums",
    "distances",
    "distances_to_sums",
    "distinct_values",
    "encode_even",
    "encode_levels",
    "extremes",
    "local_search",
    "nearest_by_bits",
    "nearest_by_short_tables",
    "nearest_by_tables",
    "optimal_codebook",
    "pack_codes",
    "pack_short",
    "pairwise",
    "prepare",
    "prepare_subspaces",
    "project",
    "rans_decode",
    "rans_encode",
    "rotate",
    "row_norms",
    "seed_gains",
    "seed_update",
    "stage_values",
    "subspace_tables",
    "sums",
    "symbol_counts",
    "unpack_codes",
]

# Element types of rows, by the number that _kernels/rows.pxd knows them under.
KINDS = {np.dtype(t): i for i, t in enumerate(["float32", "float64", "uint8", "int8", "float16"])}

# Values beyond these (after scaling) could overflow when squared and added up; see rows.pxd.
LIMITS = {np.dtype(np.float32): 2.0**56, np.dtype(np.float64): 2.0**500}

# Codebooks whose largest value lies between 2^-n and 2^n are used as they are.
_UNSCALED = {np.dtype(np.float32): 30, np.dtype(np.float64): 200}

# A kernel call holds Ctrl-C back: at most this many multiply-adds, some 0.02-0.2 s.
_CALL_WORK = 2_000_000_000
_CALL_ROWS = 1 << 20  # and rows, of which a call may keep a byte each
# Below this many a second thread costs more than it brings (waking one takes about 5 us).
_THREAD_WORK = 400_000
# The expanded value pays from this many features on; below, differences are as cheap.
EXPAND_FEATURES = 4
# ... and while rounding, relative to the gaps between codewords, leaves few rows in doubt.
_EXPAND_DOUBT = 0.03
# Work from which it pays to try screening, and rows (a thread) of a trial at least.
_TRIAL_WORK = 2_000_000_000
_TRIAL_ROWS = 256
_GEOMETRY_SAMPLE = 32
# Symbols that an entropy coding call takes, some 0.1 s of them.
_CALL_SYMBOLS = 1 << 24
# Where the decoder looks for the symbol of a slot: so many places at least, and so many a symbol.
_LEAST_BUCKETS = 1 << 12
_BUCKETS_PER_SYMBOL = 2


# A table of the cross terms of all codewords: what it may take, and the least share that a stage
# has of all stages' squared lengths, for fewer digits are lost in them than that.
_CROSSED_BYTES = 1 << 28
_CROSSED_DIGITS = 2.0**8


class Prepared:
    """A codebook as the kernels want it: made once by :func:`prepare`; threads may share it.

    Attributes
    ----------
    codebook : (k, d) C-contiguous array, multiplied by ``scale``
    n_row_features : features that rows have; where d is more, they count as 0 in the others
    scale : power of two that keeps squares from overflowing and underflowing; mostly 1
    shift : (d,) centre of the scaled codebook, subtracted from rows for the expanded values
    panels : the centred codebook packed for the tile, or None where differences serve better
    radius : largest distance of a codeword to the centre
    rounding : what rounding can add to an expanded and a direct value, relative to (|x| + R)^2
    """

    __slots__ = (
        "_lock",
        "_screen",
        "_screen_wanted",
        "codebook",
        "n_row_features",
        "panels",
        "radius",
        "rounding",
        "scale",
        "shift",
    )

    def __init__(self, codebook, screen=False, bounds=False, n_row_features=None):
        codebook = _own(codebook)
        self.n_row_features = codebook.shape[1] if n_row_features is None else n_row_features
        self.scale = _scale(np.abs(codebook).max(), codebook.dtype)
        self.codebook = codebook
        if self.scale != 1:
            self.codebook = codebook * codebook.dtype.type(self.scale)
        self.panels = self.shift = None
        self.radius = self.rounding = 0.0
        n_codewords, n_features = codebook.shape
        if (bounds or n_features >= EXPAND_FEATURES) and n_codewords > 1:
            self._expand(codebook)
        self._screen, self._screen_wanted, self._lock = None, screen, Lock()

    @property
    def n_codewords(self):
        return len(self.codebook)

    @property
    def dtype(self):
        return self.codebook.dtype

    def source(self, X, rows=None):
        """Rows as kernels that compare them with this codebook take them."""
        return _Source(X, self.n_row_features, rows, n_padded=self.codebook.shape[1])

    def _expand(self, unscaled):
        """Make the panels, unless rounding would leave too many rows in doubt."""
        dtype, n_features = self.dtype, self.codebook.shape[1]
        self.shift = self.codebook.mean(axis=0, dtype=np.float64).astype(dtype)
        centred = self.codebook - self.shift
        norms = np.einsum("kd,kd->k", centred, centred, dtype=np.float64)
        self.radius = math.sqrt(norms.max()) * 1.0001
        self.rounding = np.finfo(dtype).eps / 2 * (n_features + 8)
        if 12 * self.rounding * self.radius**2 > _EXPAND_DOUBT * self._separation(unscaled):
            return
        per_group = load("assign").panel_codewords(n_features)
        centred *= -2
        self.panels = pack_panels(centred, norms, per_group)

    def screen(self):
        """What screening needs, made at its first use; None where it is not wanted or no use."""
        with self._lock:
            if self._screen_wanted:
                self._screen_wanted = False
                if self.scale == 1 and _screen.suits(self.codebook):
                    directions = _screen.Directions(self.codebook)
                    if directions.worth_trying:
                        self._screen = _screen.Screen(self.codebook, directions)
        return self._screen

    def _separation(self, unscaled):
        """Median squared distance of a codeword to its nearest neighbour, from a sample."""
        step = max(1, self.n_codewords // _GEOMETRY_SAMPLE)
        sample = unscaled[::step]
        nearest = np.empty((len(sample), 2), self.dtype)
        codes = np.empty((len(sample), 2), np.int32)
        source = _Source(sample, sample.shape[1])
        _two(source, self, 0, len(sample), codes, nearest, 1)
        return np.median(nearest[:, 1])


def prepare(codebook, *, screen=False, bounds=False, n_row_features=None):
    """Pack a codebook for repeated use.

    Parameters
    ----------
    codebook : ndarray of shape (k, d), float32 or float64
    screen : bool
        Whether :func:`assign` may try screening by leading coordinates on large inputs, which
        skips most of the arithmetic where variance lies in few directions. What that needs is
        made at its first use and costs about as much as assigning a few hundred rows.
    bounds : bool
        Whether :func:`assign` shall give lower bounds (``others``) for few features too, where
        it would take differences otherwise, as being no slower.
    n_row_features : int, optional
        Features that rows have, where the codebook has more: rows are 0 in those. One more feature
        of √r turns |x − c|² into |x − c|² + r: codewords at a price each.

    Returns
    -------
    Prepared
        To be passed in place of the codebook, which may change afterwards. Threads may share it.
    """
    if isinstance(codebook, Prepared):
        return codebook
    if codebook.ndim != 2 or 0 in codebook.shape or codebook.dtype not in LIMITS:
        raise ValueError(
            f"codebook must be a non-empty 2-D float32 or float64 array, got shape "
            f"{codebook.shape} of {codebook.dtype}"
        )
    if not np.isfinite(codebook).all():
        raise ValueError("codebook contains NaN or infinity")
    if n_row_features is not None and not 0 < n_row_features <= codebook.shape[1]:
        raise ValueError(
            f"n_row_features must be from 1 to {codebook.shape[1]}, got {n_row_features}"
        )
    return Prepared(codebook, screen, bounds, n_row_features)


def widened(book):
    """A prepared codebook of float32 that is scaled, in float64; any other one as it is.

    Scaling makes room for the codebook's squares, not for those of rows of another size. In float64
    the squares of all float32 values fit.
    """
    if book.scale == 1 or book.dtype == np.float64:
        return book
    wide = book.codebook.astype(np.float64) / book.scale
    return prepare(wide, n_row_features=book.n_row_features)


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
    timing both on the first rows. Memory: a packed block of rows a thread (and, screening, a value
    for each codeword and row of it).
    """
    book = prepare(codebook)
    source = book.source(X, rows)
    codes = _room_for_codes(codes, (source.n,), book.n_codewords)
    threads = thread_count(n_threads, source.n * book.codebook.size)
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
    codes = _room_for_codes(codes, (source.n,), book.n_codewords)
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
    source = _Source(X, d, rows)
    out = np.empty((source.n, directions.n_all + 2), np.float32)
    threads = thread_count(n_threads, source.n * d * directions.n_all)
    workspace = _aligned((threads, directions.workspace_bytes(d, 0)), np.dtype(np.uint8))
    for start, stop in _calls(source.n, d * directions.n_all):
        directions.project(source, start, stop, out[start:stop], workspace, threads)
    return out


class _Plain:
    """Assignment by the tile: expanded values, and differences where those leave doubt."""

    def __init__(self, source, book, codes, others, threads):
        self.source, self.book, self.codes, self.threads = source, book, codes, threads
        self.others = others
        self._workspace = _workspace("assign", book.codebook.shape[1], book.dtype, threads)

    def run(self, first, last):
        for start, stop in _calls(last - first, self.book.codebook.size):
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
        _settle(source, start, book, part, doubtful, self.threads)


class _Screened:
    """Assignment by screening; see fastvq._screen."""

    def __init__(self, source, book, screen, short_rows, guesses, codes, distances, threads):
        self.source, self.book, self.codes, self.threads = source, book, codes, threads
        self._distances = distances
        self._screen, self._short_rows, self._guesses = screen, short_rows, guesses
        size = screen.directions.workspace_bytes(book.codebook.shape[1], book.n_codewords)
        self._workspace = _aligned((threads, size), np.dtype(np.uint8))

    def run(self, first, last):
        for start, stop in _calls(last - first, self.book.codebook.size):
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
        settled = _settle(source, start, self.book, part, doubtful, self.threads)
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
    for start, stop in _calls(source.n, work):
        bad = _two(source, book, start, stop, codes[start:stop], nearest[start:stop], threads)
        source.check(bad, book)
    return codes, _unscaled(nearest, book)


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
    codes = _codes(codes, source.n, np.zeros(book.n_codewords, np.int64))
    out = _room_for_squares(out, source.n, book)
    squares = out if book.scale == 1 else np.empty(source.n, book.dtype)
    d = book.codebook.shape[1]
    threads = thread_count(n_threads, source.n * d)
    workspace = _workspace("distances", d, book.dtype, threads)
    for start, stop in _calls(source.n, d):
        bad = load("distances").to_codewords(
            source.fields, start, stop, book.scale, book.codebook, codes[start:stop],
            squares[start:stop], workspace, threads,
        )  # fmt: skip
        source.check(bad, book)
    if squares is not out:
        out[:] = _unscaled(squares, book)
    return out


def pairwise(X, codebook, *, n_threads=None):
    """Squared distance of every row to every codeword, (n, k), from the differences."""
    book = prepare(codebook)
    source = book.source(X)
    out = np.empty((source.n, book.n_codewords), book.dtype)
    work = book.codebook.size
    threads = thread_count(n_threads, source.n * work)
    workspace = _workspace("distances", book.codebook.shape[1], book.dtype, threads)
    for start, stop in _calls(source.n, work):
        bad = load("distances").to_all(
            source.fields, start, stop, book.scale, book.codebook, out[start:stop],
            workspace, threads,
        )  # fmt: skip
        source.check(bad, book)
    return _unscaled(out, book)


class Subspaces:
    """A codebook for each block of consecutive features: made by :func:`prepare_subspaces`.

    Attributes
    ----------
    books : list of Prepared
        One for each subspace.
    bounds : tuple of int
        Subspace m has the features bounds[m] .. bounds[m + 1].
    dtype : dtype of all codebooks
    """

    __slots__ = ("_addresses", "_numbers", "_places", "books", "bounds", "dtype")

    def __init__(self, codebooks):
        self.books = [prepare(codebook) for codebook in codebooks]
        self.dtype = self.books[0].dtype
        if any(book.dtype != self.dtype for book in self.books):
            raise ValueError("codebooks must all be of one dtype")
        shapes = [book.codebook.shape for book in self.books]
        self.bounds = (0, *itertools.accumulate(d for _, d in shapes))
        places = [(first, d, k) for first, (k, d) in zip(self.bounds, shapes, strict=False)]
        # What lies at these addresses is owned by the books.
        addresses = [
            [_address(array) for array in (book.codebook, book.panels, book.shift)]
            for book in self.books
        ]
        numbers = [(book.scale, book.radius, book.rounding) for book in self.books]
        self._places = np.array(places, np.intp)
        self._addresses = np.array(addresses, np.uintp)
        self._numbers = np.array(numbers, np.float64)

    def __len__(self):
        return len(self.books)

    @property
    def n_features(self):
        return self.bounds[-1]

    @property
    def slices(self):
        """The features of each subspace."""
        return [slice(*pair) for pair in itertools.pairwise(self.bounds)]

    @property
    def size(self):
        """Multiply-adds that a row takes."""
        return sum(book.codebook.size for book in self.books)


def prepare_subspaces(codebooks):
    """Pack the codebooks of consecutive blocks of features for repeated use.

    Parameters
    ----------
    codebooks : sequence of ndarray of shape (k_m, d_m), all float32 or all float64

    Returns
    -------
    Subspaces
        To be passed in place of the codebooks. Threads may share it.
    """
    return codebooks if isinstance(codebooks, Subspaces) else Subspaces(codebooks)


def assign_subspaces(X, codebooks, *, codes=None, n_threads=None):
    """Index of the nearest codeword of each row in every subspace: a product quantizer's code.

    Column m is what :func:`assign` returns for the features of subspace m alone.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    codebooks : sequence of M ndarrays of shape (k_m, d_m), d_m adding up to d, or Subspaces
    codes : ndarray of uint8, uint16, uint32 or int32, shape (n, M), optional
        Where to write; a new int32 array by default.
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (n, M)

    Notes
    -----
    n sum_m k_m d_m multiply-adds; each row is read from memory once. Memory: a packed block of
    rows of one subspace a thread, and M bytes for each row of a call (65536 rows where a row takes
    30000 multiply-adds).
    """
    books = prepare_subspaces(codebooks)
    source = _Source(X, books.n_features)
    most = max(book.n_codewords for book in books.books)
    codes = _room_for_codes(codes, (source.n, len(books)), most)
    threads = thread_count(n_threads, source.n * books.size)
    sizes = {book.codebook.shape[1] for book in books.books}
    workspace = max((_workspace("assign", d, books.dtype, threads) for d in sizes), key=np.size)
    like = np.zeros(1, books.dtype)
    for start, stop in _calls(source.n, books.size):
        part = codes[start:stop]
        doubtful = np.empty((len(books), stop - start), np.uint8)
        bad = load("assign").assign_subspaces(
            source.fields, start, stop, like, books._places, books._addresses, books._numbers,
            part.ctypes.data, part.itemsize, doubtful, workspace, threads,
        )  # fmt: skip
        parts = [
            _Source(X[:, features], features.stop - features.start, first_feature=features.start)
            for features in books.slices
        ]
        if bad:
            complaints = map(_Source.complaint, parts, books.books)
            raise ValueError(next(filter(None, complaints), _CHANGED))
        for m, (narrow, book) in enumerate(zip(parts, books.books, strict=True)):
            _settle(narrow, start, book, part[:, m], doubtful[m], threads)
    return codes


def decode_subspaces(codes, codebooks, *, out=None, n_threads=None):
    """The rows that codes of :func:`assign_subspaces` stand for: codewords side by side.

    Parameters
    ----------
    codes : ndarray of integers, shape (n, M)
    codebooks : sequence of M ndarrays of shape (k_m, d_m), or Subspaces
    out : C-contiguous ndarray of the codebooks' dtype, shape (n, d), optional
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (n, d)

    Raises
    ------
    ValueError
        For a code that names no codeword.
    """
    books = prepare_subspaces(codebooks)
    if codes.ndim != 2 or codes.shape[1] != len(books):
        raise ValueError(f"codes must have shape (n, {len(books)}), got {codes.shape}")
    if out is None:
        out = np.empty((len(codes), books.n_features), books.dtype)
    codebooks = [_unscaled_codebook(book) for book in books.books]
    addresses = np.array([_address(codebook) for codebook in codebooks], np.uintp)
    threads = thread_count(n_threads, codes.size * 16)
    valid = True
    for start, stop in _calls(len(codes), books.n_features):
        part = codes[start:stop]
        if part.dtype not in _DECODED_DTYPES:
            if part.size and not (part.min() >= 0 and part.max() < 2**31):
                valid = False
                break
            part = part.astype(np.uint32)
        valid &= not load("product").decode(
            np.ascontiguousarray(part), books._places, addresses, out[start:stop], threads
        )
    if not valid:
        raise ValueError("codes must name codewords of their codebooks")
    return out


class Rotation:
    """A matrix as :func:`rotate` wants it, for repeated use; threads may share it.

    Parameters
    ----------
    matrix : ndarray of shape (d, D), float32 or float64
    """

    __slots__ = ("dtype", "panels", "shape")

    def __init__(self, matrix):
        self.shape, self.dtype = matrix.shape, matrix.dtype
        columns = np.ascontiguousarray(matrix.T)
        starts = np.zeros(len(columns))
        self.panels = pack_panels(columns, starts, load("product").panel_columns())


def rotate(X, matrix, *, span=None, out=None, n_threads=None):
    """Rows times a matrix, by a kernel whose result for a row depends on that row alone.

    A BLAS rounds a row differently in different company, and on another CPU. Here every value is
    sum_f x_f m_fj, each product added in the order of the features.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    matrix : ndarray of shape (d, D), float32 or float64, or Rotation
        Its dtype is the precision of the arithmetic.
    span : slice, optional
        Consecutive rows of `X` to take; all by default. (An error then names a row of `X`.)
    out : C-contiguous ndarray of the matrix's dtype, shape (m, D), optional
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (m, D)

    Notes
    -----
    m d D multiply-adds, in the register tile.
    """
    if not isinstance(matrix, Rotation):
        matrix = Rotation(matrix)
    d, width = matrix.shape
    source = _Source(X, d)
    first, last, _ = (span or slice(None)).indices(source.n)
    if out is None:
        out = np.empty((last - first, width), matrix.dtype)
    threads = thread_count(n_threads, (last - first) * d * width)
    workspace = _workspace("product", d, matrix.dtype, threads, width)
    for start, stop in _calls(last - first, d * width):
        bad = load("product").rotate(
            source.fields, first + start, first + stop, matrix.panels, out[start:stop],
            workspace, threads,
        )  # fmt: skip
        source.check(bad, matrix.dtype)
    return out


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
    source = _Source(X, X.shape[1], rows)
    d = X.shape[1]
    counts = np.zeros(n_codewords, np.int64)
    codes = _codes(codes, source.n, counts)
    threads = min(thread_count(n_threads, source.n * d), n_codewords)
    owner = _shares(counts, threads)
    like = np.zeros(1, _precision(X))
    workspace = _workspace("sums", d, like.dtype, threads)
    weight = _weight(sample_weight, source.n)
    totals, weights = np.zeros((n_codewords, d)), np.zeros(n_codewords)
    for start, stop in _calls(source.n, d):
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
    source = _Source(X, X.shape[1], rows)
    out = np.empty(source.n, _precision(X))
    threads = thread_count(n_threads, source.n * X.shape[1])
    workspace = _workspace("distances", X.shape[1], out.dtype, threads)
    for start, stop in _calls(source.n, X.shape[1]):
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
    source = _Source(X, X.shape[1])
    like = np.zeros(1, _precision(X))
    threads = thread_count(n_threads, source.n * X.shape[1])
    workspace = _workspace("distances", X.shape[1], like.dtype, threads)
    largest = 0.0
    for start, stop in _calls(source.n, X.shape[1]):
        most = load("distances").largest(source.fields, start, stop, like, workspace, threads)
        source.check(math.isinf(most), like.dtype)
        largest = max(largest, most)
    return _scale(largest, like.dtype)


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
    source = _Source(X, candidates.shape[1], rows)
    d, dtype = candidates.shape[1], candidates.dtype
    weight = _weight(sample_weight, source.n)
    _check_closest(closest, source.n)
    n_groups = -(-len(candidates) // 8)
    if nearer is None:
        nearer = np.empty((n_groups, source.n), np.uint8)
    elif nearer.shape != (n_groups, source.n):
        raise ValueError(f"nearer must have shape {n_groups, source.n}, got {nearer.shape}")
    if nearest is None:
        nearest, reach = _NO_CODES, np.empty(0, dtype)
    else:
        nearest = np.ascontiguousarray(nearest, np.int32)
        if nearest.shape != (source.n,):
            raise ValueError(f"nearest must have shape ({source.n},), got {nearest.shape}")
        if source.n and not (nearest.min() >= 0 and nearest.max() < len(reach)):
            raise ValueError(f"nearest must lie between 0 and {len(reach) - 1}")
    threads = thread_count(n_threads, source.n * d * 8)
    workspace = _workspace("seed", d, dtype, threads)
    kernel = load("seed")
    result = []
    for first in range(0, len(candidates), 8):
        lanes = _aligned((d, 8), dtype)
        lanes[:] = candidates[first : first + 1].T  # pads what is less than eight
        group = candidates[first : first + 8]
        lanes[:, : len(group)] = group.T
        lanes *= dtype.type(scale)
        parts = [np.empty((0, 8))]
        for start, stop in _calls(source.n, 8 * d, kernel.task_rows()):
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
    source = _Source(X, len(candidate), rows)
    d, dtype = len(candidate), candidate.dtype
    _check_closest(closest, source.n)
    nearer = _NO_MARKS if nearer is None else nearer
    nearest = _NO_CODES if nearest is None else nearest
    for name, array in (("nearer", nearer), ("nearest", nearest)):
        if len(array) and array.shape != (source.n,):
            raise ValueError(f"{name} must have shape ({source.n},), got {array.shape}")
    n_read = np.count_nonzero(nearer & (1 << bit)) if len(nearer) else source.n
    threads = thread_count(n_threads, source.n // 8 + n_read * d)
    workspace = _workspace("seed", d, dtype, threads)
    candidate = np.ascontiguousarray(candidate) * dtype.type(scale)
    for start, stop in _calls(source.n, d, load("seed").task_rows()):
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
    source, d, dtype = _Source(X, X.shape[1], rows), X.shape[1], _precision(X)
    threads = thread_count(n_threads, source.n * d)
    least = np.full((threads, _period(d)), np.inf, dtype)
    most = -least
    workspace = _workspace("scalar", d, dtype, threads)
    for start, stop in _calls(source.n, 8 * d):
        bad = load("scalar").extremes(source.fields, start, stop, least, most, workspace, threads)
        source.check_finite(bad, dtype)
    return least.reshape(-1, d).min(axis=0), most.reshape(-1, d).max(axis=0)


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
        repeats = _period(len(scale)) // len(scale)
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
    source, d = _Source(X, steps.n_features), steps.n_features
    codes = _room_for_table(codes, (source.n, d))
    threads = thread_count(n_threads, source.n * d)
    workspace = _workspace("scalar", d, steps.dtype, threads)
    for start, stop in _calls(source.n, 8 * d):
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
    for start, stop in _calls(len(codes), 8 * steps.n_features):
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
        repeats = _period(len(group)) // len(group)
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
    source, d = _Source(X, levels.n_features), levels.n_features
    codes = _room_for_table(codes, (source.n, d))
    threads = thread_count(n_threads, 4 * source.n * d)
    workspace = _workspace("scalar", d, levels.dtype, threads)
    for start, stop in _calls(source.n, 32 * d):
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
    for start, stop in _calls(len(codes), 8 * levels.n_features):
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
    weight = None if sample_weight is None else _weight(sample_weight, len(values))
    if weight is not None and not (weight.min() >= 0 and 0 < weight.sum() < np.inf):
        raise ValueError("sample_weight must be finite, not negative, and not zero everywhere")
    distinct, weight = distinct_values(values, weight)
    if len(distinct) <= n_codewords:
        return np.pad(distinct, (0, n_codewords - len(distinct)), mode="edge")
    return _optimal.optimal_codebook(distinct, weight, n_codewords).astype(values.dtype)


def pack_codes(codes, widths, *, n_threads=None):
    """Codes as rows of bits: one after the other, each lowest bit first, as faiss packs them.

    Parameters
    ----------
    codes : C-contiguous ndarray of uint8, uint16 or uint32, shape (n, m)
        Column c below 2**widths[c].
    widths : array of integers from 1 to 32, shape (m,)
    n_threads : int, optional

    Returns
    -------
    ndarray of uint8, shape (n, ceil(sum(widths) / 8))
        The last byte of a row is filled up with zero bits.
    """
    widths = _widths(widths, codes.shape[1])
    if _is_packed(widths, codes.dtype):
        return codes.astype(codes.dtype.newbyteorder("<")).view(np.uint8)
    packed = np.empty((len(codes), -(-int(widths.sum()) // 8)), np.uint8)
    threads = thread_count(n_threads, codes.size)
    for start, stop in _calls(len(codes), 8 * len(widths)):
        load("pack_codes").pack(codes[start:stop], widths, packed[start:stop], threads)
    return packed


def unpack_codes(packed, widths, dtype, *, n_threads=None):
    """The codes that :func:`pack_codes` made these rows of bits of.

    Parameters
    ----------
    packed : C-contiguous ndarray of uint8, shape (n, ceil(sum(widths) / 8))
    widths : array of integers from 1 to 32, shape (m,)
    dtype : uint8, uint16 or uint32, wide enough
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (n, m)
    """
    widths = _widths(widths, len(widths))
    codes = np.empty((len(packed), len(widths)), dtype)
    if packed.shape[1] != -(-int(widths.sum()) // 8) or widths.max() > 8 * codes.itemsize:
        raise ValueError(
            f"packed must have {-(-int(widths.sum()) // 8)} bytes a row and codes of "
            f"{widths.max()} bits must fit {codes.dtype}, got {packed.shape[1]} bytes"
        )
    if _is_packed(widths, codes.dtype):
        return packed.view(codes.dtype.newbyteorder("<")).astype(codes.dtype)
    threads = thread_count(n_threads, codes.size)
    for start, stop in _calls(len(codes), 8 * len(widths)):
        load("pack_codes").unpack(packed[start:stop], widths, codes[start:stop], threads)
    return codes


def _widths(widths, n_columns):
    widths = np.ascontiguousarray(widths, np.int32)
    if widths.shape != (n_columns,) or not (widths.min() >= 1 and widths.max() <= 32):
        raise ValueError(f"widths must be {n_columns} integers from 1 to 32, got {widths}")
    return widths


def _is_packed(widths, dtype):
    """Whether codes of this dtype fill it, so that their bytes are their packed form."""
    return bool((widths == 8 * dtype.itemsize).all())


def _period(d):
    """A multiple of d features, long enough for a loop over so many values to be a fast one."""
    return d * -(-128 // d)


def _room_for_table(codes, shape):
    if codes is None:
        return np.empty(shape, np.uint16)
    if codes.shape != shape or codes.dtype not in _CODE_DTYPES[:2]:
        raise ValueError(
            f"codes must have shape {shape} and dtype uint8 or uint16, got {codes.shape} of "
            f"{codes.dtype}"
        )
    return codes


def _room_for_values(out, codes, n_features, dtype):
    if codes.ndim != 2 or codes.shape[1] != n_features or codes.dtype not in _CODE_DTYPES[:2]:
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


class Stages:
    """Codebooks of which a row is to be the sum, one codeword of each, as the kernels want them.

    Codewords are centred stage by stage, and rows on the sum of the centres, so that little cancels
    in values such as |c|^2 - 2 x.c; they are numbered through, each stage padded.

    Attributes
    ----------
    codebooks : list of (k_m, d) arrays, as given
    scale : power of two that keeps squares from overflowing and underflowing; mostly 1
    first, size : (n_stages,) intp, number of a stage's first codeword, and of its codewords
    shift : (d,) sum of the centres, of scaled codewords
    codewords : (width, d) scaled and centred
    blocks : the same times -2 behind |c|^2, packed feature-major in blocks of `per_block`
    crossed : (width, width) table of 2 c.c', or None where it would be too large, or where the
        codewords of some stage are so short beside others that it would not have the digits
    """

    def __init__(self, codebooks):
        codebooks = [np.ascontiguousarray(codebook) for codebook in codebooks]
        dtype, d = codebooks[0].dtype, codebooks[0].shape[1]
        if any(book.dtype != dtype or book.shape[1:] != (d,) for book in codebooks):
            raise ValueError("codebooks must have the same dtype and number of features")
        if dtype not in LIMITS or not all(np.isfinite(book).all() for book in codebooks):
            raise ValueError("codebooks must be finite, of dtype float32 or float64")
        self.codebooks = codebooks
        self.dtype, self.n_features = dtype, d
        self.scale = _scale(max(np.abs(book).max() for book in codebooks), dtype)
        per_block, unit, step = load("residual").layout(dtype.itemsize)
        self.size = np.array([len(book) for book in codebooks], np.intp)
        ends = np.cumsum(-(-self.size // step) * step)
        self.first = np.concatenate([[0], ends[:-1]]).astype(np.intp)
        self.width = int(-(-ends[-1] // unit) * unit)
        self._centre()
        self._pack(per_block)
        self.crossed = self._cross() if self._crossed_pays() else None

    def _places(self):
        """The slice of the numbers of each stage's codewords."""
        return [slice(f, f + k) for f, k in zip(self.first, self.size, strict=True)]

    def _centre(self):
        scaled = [book.astype(np.float64) * self.scale for book in self.codebooks]
        self.shift = np.zeros(self.n_features)
        self.codewords = np.zeros((self.width, self.n_features), self.dtype)
        self.energy = []
        for place, book in zip(self._places(), scaled, strict=True):
            centre = book.mean(axis=0)
            self.codewords[place] = book - centre
            self.shift += centre
            self.energy.append(np.square(book - centre).sum(axis=1).mean())
        self.shift = self.shift.astype(self.dtype)

    def _pack(self, per_block):
        d = self.n_features
        packed = np.empty((self.width, 1 + d), self.dtype)
        packed[:, 0] = np.finfo(self.dtype).max / 4  # what fills a stage is never chosen
        exact = self.codewords.astype(np.float64)
        norms = np.einsum("kd,kd->k", exact, exact)
        for place in self._places():
            packed[place, 0] = norms[place]
        packed[:, 1:] = self.codewords * self.dtype.type(-2)
        self.blocks = _aligned((self.width * (1 + d),), self.dtype)
        blocks = self.blocks.reshape(-1, 1 + d, per_block)
        blocks[...] = packed.reshape(-1, per_block, 1 + d).transpose(0, 2, 1)

    def _crossed_pays(self):
        energy = np.array(self.energy)
        short = energy[energy > 0].min(initial=np.inf)
        digits = short / energy.sum() / np.finfo(self.dtype).eps if len(energy) > 1 else np.inf
        return (
            self.width**2 * self.dtype.itemsize <= _CROSSED_BYTES and not digits < _CROSSED_DIGITS
        )

    def _cross(self):
        crossed = _aligned((self.width, self.width), self.dtype)
        nothing = np.zeros(self.n_features, self.dtype)
        _unaries(_Source(-self.codewords, self.n_features), self, crossed, 1, 1.0, nothing, 0.0)
        return crossed


def stage_values(X, stages, *, n_threads=None):
    """|c|^2 - 2 x.c of every row and codeword, all centred as :class:`Stages` says.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    stages : Stages
    n_threads : int, optional

    Returns
    -------
    list of ndarray of shape (n, k_m), one for each stage
    """
    source = _Source(X, stages.n_features)
    out = np.empty((source.n, stages.width), stages.dtype)
    threads = thread_count(n_threads, source.n * stages.codewords.size)
    _unaries(source, stages, out, threads, stages.scale, stages.shift, 1.0)
    return [out[:, place] for place in stages._places()]


def beam_search(X, stages, *, beam_width=1, n_out=1, rows=None, codes=None, n_threads=None):
    """Codes of each row, found stage by stage while the best so many choices are kept.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    stages : Stages
    beam_width : int
    n_out : int
        Entries of the last beam to return, best first: not more than it has,
        min(beam_width, product of the sizes).
    rows : ndarray of intp, shape (m,), optional
        Rows to take, in this order; all by default.
    codes : C-contiguous ndarray of uint8, uint16, uint32 or int32, shape (n, n_stages), optional
        Where to write, with n_out = 1; int32 by default.
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (n, n_out, n_stages), or what `codes` is

    Notes
    -----
    With a table, d multiply-adds for each codeword, and an addition for each entry, codeword and
    earlier stage; without, d multiply-adds for each entry and codeword.
    """
    source = _Source(X, stages.n_features, rows)
    n_stages, d = len(stages.size), stages.n_features
    if codes is None:
        codes = np.empty((source.n, n_out, n_stages), np.int32)
    flat = _room_for_codes(codes.reshape(-1), (codes.size,), int(stages.size.max()))
    if codes.size != source.n * n_out * n_stages:
        raise ValueError(f"codes must have shape ({source.n}, {n_stages}), got {codes.shape}")
    plain = stages.crossed is None
    work = stages.width * (beam_width * d if plain else d + beam_width * n_stages)
    threads = thread_count(n_threads, source.n * work)
    search = load("residual").search_plain if plain else load("residual").search
    workspace = _workspace(
        "residual", d, stages.dtype, threads, stages.first, stages.size, stages.width, beam_width,
        plain, function="search_bytes",
    )  # fmt: skip
    for start, stop in _calls(source.n, work):
        part = flat[start * n_out * n_stages :]
        bad = search(
            source.fields, start, stop, stages.scale, stages.shift, stages.blocks,
            stages.codewords if plain else stages.crossed, stages.first, stages.size, beam_width,
            n_out, part.ctypes.data, part.itemsize, workspace, threads,
        )  # fmt: skip
        source.check(bad, stages)
    return codes


def local_search(X, stages, codes, jumps, *, sweeps=4, rows=None, n_threads=None):
    """Better codes, by conditional modes from where they are and after each of a list of jumps.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    stages : Stages
        With a table.
    codes : C-contiguous ndarray of int32, shape (n, n_stages)
        Changed in place.
    jumps : ndarray of int32, shape (n_jumps, n_replaced, 2)
        Stages, and the codes to put there before the search goes on.
    sweeps : int
        Conditional modes go through all stages so often at most.
    rows : ndarray of intp, shape (m,), optional
        Row of each code; by default those of place i belong to row i.
    n_threads : int, optional
    """
    source = _Source(X, stages.n_features, rows)
    n_stages, d = len(stages.size), stages.n_features
    _check_stage_codes(codes, source.n, stages)
    jumps = np.ascontiguousarray(jumps, np.int32)
    stage, code = jumps[..., 0], jumps[..., 1]
    if jumps.size and not (
        stage.min() >= 0 and stage.max() < n_stages and (code >= 0).all()
        and (code < stages.size[stage]).all()
    ):  # fmt: skip
        raise ValueError("jumps must hold stages and codes of theirs")
    work = stages.width * (d + (1 + len(jumps)) * sweeps * n_stages // 4)
    threads = thread_count(n_threads, source.n * work)
    workspace = _workspace(
        "additive", d, stages.dtype, threads, stages.first, stages.size, stages.width,
        function="search_bytes",
    )  # fmt: skip
    for start, stop in _calls(source.n, work):
        bad = load("additive").local_search(
            source.fields, start, stop, stages.scale, stages.shift, stages.blocks, stages.crossed,
            stages.first, stages.size, jumps, sweeps, codes[start:stop], workspace, threads,
        )  # fmt: skip
        source.check(bad, stages)
    return codes


def decode_sums(codes, codebooks, *, out=None, n_threads=None):
    """Sums of one codeword of each codebook, in order and in the codebooks' precision.

    Parameters
    ----------
    codes : ndarray of integers, shape (n, m)
        Codes of the first m codebooks, in range.
    codebooks : (M, k, d) array, or list of (k_m, d) arrays of one dtype
    out : C-contiguous ndarray of the codebooks' dtype, shape (n, d), optional
    n_threads : int, optional
    """
    flat, first = _joined(codebooks)
    codes = np.ascontiguousarray(codes, np.int32)
    if out is None:
        out = np.empty((len(codes), flat.shape[1]), flat.dtype)
    _check_ranges(codes, [len(book) for book in codebooks])
    threads = thread_count(n_threads, codes.size * flat.shape[1])
    for start, stop in _calls(len(codes), codes.shape[1] * flat.shape[1]):
        load("residual").decode(codes[start:stop], flat, first, out[start:stop], threads)
    return out


def distances_to_sums(X, codebooks, codes, *, rows=None, scale=1.0, n_threads=None):
    """Squared distance of each row to the sum that its codes stand for, from the differences.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    codebooks : (M, k, d) array, or list of (k_m, d) arrays of one dtype, which is the precision of
        the arithmetic
    codes : ndarray of int32, shape (n, m)
    rows : ndarray of intp, shape (n,), optional
        Row of each code; by default those of place i belong to row i.
    scale : float
        Power of two that rows and codebooks are multiplied by.
    n_threads : int, optional

    Returns
    -------
    ndarray of the codebooks' dtype, shape (n,)
        In units of ``scale`` squared.
    """
    flat, first = _joined(codebooks)
    if scale != 1:
        flat = flat * flat.dtype.type(scale)
    source = _Source(X, flat.shape[1], rows)
    codes = np.ascontiguousarray(codes, np.int32)
    _check_ranges(codes, [len(book) for book in codebooks])
    out = np.empty(source.n, flat.dtype)
    threads = thread_count(n_threads, codes.size * flat.shape[1])
    workspace = _workspace("residual", flat.shape[1], flat.dtype, threads, function="errors_bytes")
    for start, stop in _calls(source.n, codes.shape[1] * flat.shape[1]):
        bad = load("residual").errors(
            source.fields, start, stop, scale, codes[start:stop], flat, first, out[start:stop],
            workspace, threads,
        )  # fmt: skip
        source.check(bad, flat)
    return out


def _unaries(source, stages, out, threads, scale, shift, lead):
    d = stages.n_features
    workspace = _workspace(
        "residual", d, stages.dtype, threads, stages.width, function="unaries_bytes"
    )
    for start, stop in _calls(source.n, stages.codewords.size):
        bad = load("residual").unaries(
            source.fields, start, stop, scale, shift, lead, stages.blocks, out[start:stop],
            workspace, threads,
        )  # fmt: skip
        source.check(bad, stages)


def _joined(codebooks):
    """All codewords, one codebook after the other, and where each begins; read only."""
    if isinstance(codebooks, np.ndarray):  # they lie so already: no copy for every few rows
        n_codebooks, k, d = codebooks.shape
        return codebooks.reshape(-1, d), np.arange(n_codebooks, dtype=np.intp) * k
    size = [len(book) for book in codebooks]
    return np.concatenate(codebooks), np.cumsum([0, *size[:-1]], dtype=np.intp)


def _check_stage_codes(codes, n, stages):
    shape = (n, len(stages.size))
    if codes.shape != shape or codes.dtype != np.int32 or not codes.flags.c_contiguous:
        raise ValueError(
            f"codes must be a C-contiguous int32 array of shape {shape}, got {codes.shape} of "
            f"{codes.dtype}"
        )
    _check_ranges(codes, stages.size)


def _check_ranges(codes, sizes):
    if not len(codes):
        return
    least, largest = codes.min(axis=0), codes.max(axis=0)
    if codes.shape[1] > len(sizes) or (least < 0).any() or (largest >= sizes[: len(largest)]).any():
        raise ValueError("codes must lie between 0 and the number of codewords of their stage")


_CHANGED = "Input X changed while it was read"


# ---- entropy coding ------------------------------------------------------------------------


def symbol_counts(symbols, n_symbols):
    """How often each symbol occurs.

    Parameters
    ----------
    symbols : ndarray of uint8, uint16 or uint32, shape (n,), of any stride
    n_symbols : int

    Returns
    -------
    ndarray of int64, shape (n_symbols,)
    """
    counts = np.zeros(n_symbols, np.int64)
    for start, stop in _calls(len(symbols), 1, most=_CALL_SYMBOLS):
        column = _symbols(symbols[start:stop])
        if load("rans").histogram(column, stop - start, counts):
            raise ValueError(f"symbols must be below {n_symbols}, got {symbols.max()}")
    return counts


def rans_encode(symbols, frequencies, *, block, n_threads=None):
    """Entropy code symbols (rANS): see _kernels/rans.pyx.

    Parameters
    ----------
    symbols : ndarray of uint8, uint16 or uint32, shape (n,), of any stride
    frequencies : ndarray of int64, shape (k,)
        Of each symbol; their sum is a power of two, up to 2**28.
    block : int
        Symbols that are coded together; each block costs 64 bytes beside its symbols.
    n_threads : int, optional

    Returns
    -------
    words : ndarray of uint32
        The blocks one after the other: log2(sum / frequency) bits a symbol.
    lengths : ndarray of int64, shape (n_blocks,)
        Words of each block.
    """
    bits = _slot_bits(frequencies)
    slots = np.stack([np.cumsum(frequencies) - frequencies, frequencies], axis=1).astype(np.uint32)
    room = load("rans").block_words(min(block, len(symbols)), bits)
    threads = thread_count(n_threads, 8 * len(symbols))
    pieces, lengths = [], []
    for start, stop in _block_calls(len(symbols), block):
        words = np.empty((-(-(stop - start) // block), room), np.uint32)
        used = np.empty(len(words), np.int64)
        column = _symbols(symbols[start:stop])
        if load("rans").encode(column, stop - start, block, slots, bits, words, used, threads):
            raise ValueError("symbols must have a frequency, got one that has none")
        pieces += [row[room - length :] for row, length in zip(words, used, strict=True)]
        pieces[-len(words) :] = [np.concatenate(pieces[-len(words) :])]  # frees what is not used
        lengths.append(used)
    empty = np.empty(0, np.uint32), np.empty(0, np.int64)
    return np.concatenate([empty[0], *pieces]), np.concatenate([empty[1], *lengths])


def rans_decode(words, lengths, frequencies, symbols, *, block, n_threads=None):
    """The symbols that :func:`rans_encode` made these words of.

    Parameters
    ----------
    words : ndarray of uint32
    lengths : ndarray of int64, shape (n_blocks,)
    frequencies : ndarray of int64, shape (k,)
    symbols : ndarray of uint8, uint16 or uint32, shape (n,), of any stride
        Where to write them.
    block, n_threads
        As for :func:`rans_encode`.

    Returns
    -------
    symbols

    Raises
    ------
    ValueError
        For words that are not such: nothing beyond `words` and `symbols` is touched.
    """
    bits = _slot_bits(frequencies)
    present = np.flatnonzero(frequencies)
    if present[-1] > np.iinfo(symbols.dtype).max:
        raise ValueError(f"symbols of {symbols.dtype} cannot hold {present[-1]}")
    firsts = np.concatenate([[0], np.cumsum(frequencies[present])]).astype(np.uint64)
    entries = firsts << np.uint64(32)
    entries[:-1] |= present.astype(np.uint64)
    n_buckets = max(_LEAST_BUCKETS, _BUCKETS_PER_SYMBOL * len(present))
    shift = max(0, bits - (n_buckets - 1).bit_length())
    slots = np.arange(0, 1 << bits, 1 << shift, dtype=np.uint64)
    buckets = (np.searchsorted(firsts, slots, "right") - 1).astype(np.uint32)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n_blocks = -(-len(symbols) // block)
    if len(lengths) != n_blocks or (n_blocks and lengths.min() < 0) or ends[-1] != len(words):
        raise ValueError("words and lengths do not belong together")
    threads = thread_count(n_threads, 8 * len(symbols))
    for start, stop in _block_calls(len(symbols), block):
        part = ends[start // block : -(-stop // block) + 1]
        column = _symbols(symbols[start:stop])
        if load("rans").decode(
            words, part, entries, buckets, shift, bits, column, stop - start, block, threads
        ):
            raise ValueError("words are damaged: they do not decode to symbols")
    return symbols


# ---- search -------------------------------------------------------------------------------


class Coded:
    """Codes that are known to have an entry in tables of some sizes: kernels do not ask.

    Parameters
    ----------
    codes : ndarray of integers, shape (n, M)
    sizes : sequence of M int
        Every code of column m is smaller than sizes[m].
    """

    __slots__ = ("codes", "sizes")

    def __init__(self, codes, sizes):
        if codes.ndim != 2 or codes.shape[1] != len(sizes):
            raise ValueError(f"codes must have shape (n, {len(sizes)}), got {codes.shape}")
        if codes.dtype.kind not in "iu":
            raise TypeError(f"codes must be integers, got dtype {codes.dtype}")
        any_fits = codes.dtype.kind == "u" and np.iinfo(codes.dtype).max < min(sizes)
        if len(codes) and not any_fits:
            least, most = codes.min(axis=0), codes.max(axis=0)
            if (least < 0).any() or (most >= np.asarray(sizes)).any():
                raise ValueError("codes must be from 0 to the size of their table - 1")
        dtype = np.min_scalar_type(max(sizes) - 1)
        self.codes, self.sizes = np.ascontiguousarray(codes, dtype), tuple(sizes)

    @classmethod
    def of(cls, codes, sizes):
        """The array of codes, checked now or before."""
        coded = codes if isinstance(codes, cls) else cls(codes, sizes)
        if coded.sizes != tuple(sizes):
            raise ValueError(f"tables must have {coded.sizes} entries, got {tuple(sizes)}")
        return coded.codes


def subspace_tables(queries, codebooks, places, *, products=False, n_threads=None):
    """Tables for :func:`nearest_by_tables`: queries against the codewords of each subspace.

    Parameters
    ----------
    queries : C-contiguous ndarray of float32, shape (n_queries, d), finite
    codebooks : ndarray of float32, shape (Σ K_m d_m,)
        Those of all subspaces, codeword after codeword.
    places : ndarray of intp, shape (M, 3)
        Of each subspace its first feature, its number of features d_m, and of codewords K_m.
    products : bool
        Inner products instead of squared distances.
    n_threads : int, optional

    Returns
    -------
    ndarray of float32, shape (n_queries, Σ K_m)
    """
    if (places[:, 0] + places[:, 1]).max() > queries.shape[1] or places.min() < 0:
        raise ValueError("places must lie among the features of the queries")
    if (places[:, 1] * places[:, 2]).sum() != codebooks.size:
        raise ValueError("codebooks must hold as many values as places say")
    out = np.empty((len(queries), places[:, 2].sum()), np.float32)
    threads = thread_count(n_threads, len(queries) * codebooks.size)
    load("search").subspace_tables(queries, codebooks, places, products, out, threads)
    return out


def nearest_by_tables(codes, tables, sizes, k, *, scale=None, offset=None, n_threads=None):
    """The k rows of least value for each query, where values are sums over codes of table entries.

    value = scale_i (((t_0 + t_1) + t_2) + ...) + offset_i in float32, t_m the entry of the query's
    table m for the code m of row i.

    Parameters
    ----------
    codes : ndarray of integers, shape (n, M), or Coded
    tables : ndarray of float32, shape (n_queries, Σ K_m)
        Of each query the tables of all columns, one after another; finite.
    sizes : sequence of M int
        K_m, larger than every code of column m.
    k : int, from 1 to n
    scale, offset : ndarray of float32, shape (n,), optional
        Both or neither.
    n_threads : int, optional

    Returns
    -------
    values : ndarray of float32, shape (n_queries, k)
        Ascending.
    rows : ndarray of int64, shape (n_queries, k)
        Of equal values the lower row comes first, and is found rather.

    Notes
    -----
    Memory: a second copy of the tables, and k pairs for each query and thread.
    """
    codes, n_queries = Coded.of(codes, sizes), len(tables)
    if tables.shape[1] != sum(sizes):
        raise ValueError(f"tables must have {sum(sizes)} entries a query, got {tables.shape[1]}")
    places = np.cumsum([0, *sizes[:-1]]).astype(np.intp)
    lanes = load("search").queries_together() if n_queries >= _FEWEST_TOGETHER else 1
    entries = np.zeros((-(-n_queries // lanes), tables.shape[1], lanes), np.float32)
    for lane in range(lanes):
        part = tables[lane::lanes]
        entries[: len(part), :, lane] = part
    none = np.empty(0, np.float32)
    scale, offset = (none, none) if scale is None else (scale, offset)

    def offer(start, stop, heaps, threads):
        load("search").by_tables(
            codes, start, stop, entries, places, scale, offset, n_queries, *heaps, threads
        )

    lookups = n_queries * len(sizes)
    return _nearest(offer, len(codes), n_queries, len(entries), k, lookups, n_threads)


def pack_short(codes):
    """4-bit codes as :func:`nearest_by_short_tables` reads them, half a byte each.

    Parameters
    ----------
    codes : ndarray of integers below 16, shape (n, M)

    Returns
    -------
    ndarray of uint8, shape (ceil(n / 32), ceil(M / 2), 32)
    """
    codes = Coded.of(codes, [16] * codes.shape[1])
    height = load("search").block_rows()
    packed = np.zeros((-(-len(codes) // height), -(-codes.shape[1] // 2), height), np.uint8)
    load("search").pack_short(codes, packed)
    return packed


def nearest_by_short_tables(packed, n, tables, k, *, n_threads=None):
    """What :func:`nearest_by_tables` finds, bit for bit, for 4-bit codes, several times faster.

    Tables of sixteen entries are rounded down to bytes, which fit into a register each; rows whose
    sums of bytes are too large to matter are skipped, the others added up exactly.

    Parameters
    ----------
    packed : ndarray made by :func:`pack_short` of codes of shape (n, M), M <= 2048
    n : int
    tables : ndarray of float32, shape (n_queries, M, 16)
    k : int, from 1 to n
    n_threads : int, optional

    Returns
    -------
    values, rows : ndarray of shape (n_queries, k)
    """
    n_blocks, n_pairs, height = packed.shape
    n_queries, n_columns, size = tables.shape
    if -(-n // height) != n_blocks or -(-n_columns // 2) != n_pairs or size != 16:
        raise ValueError(f"packed of shape {packed.shape} does not fit n={n} and the tables")
    if n_columns > load("search").most_short_columns():
        raise ValueError(f"tables must have at most {load('search').most_short_columns()} columns")
    tables = np.ascontiguousarray(tables)

    def offer(start, stop, heaps, threads):
        # Zeros: an odd number of columns leaves a table of padding.
        steps = np.zeros((len(heaps[0]), n_queries, 32 * n_pairs), np.uint8)
        load("search").by_short_tables(
            packed, start // height, -(-stop // height), n, tables, *heaps, steps, threads
        )

    groups, lookups = -(-n_queries // 4), n_queries * n_columns / 16
    return _nearest(offer, n, n_queries, groups, k, lookups, n_threads, multiple=height)


def nearest_by_bits(codes, queries, k, *, n_threads=None):
    """The k rows that differ from each query in the fewest bits.

    Parameters
    ----------
    codes : ndarray of uint8, shape (n, n_bytes)
        Fastest where n_bytes is a multiple of 8 and the array C-contiguous: others are copied.
    queries : ndarray of uint8, shape (n_queries, n_bytes)
    k : int, from 1 to n
    n_threads : int, optional

    Returns
    -------
    distances : ndarray of int32, shape (n_queries, k)
        Hamming distances, ascending.
    rows : ndarray of int64, shape (n_queries, k)
        Of equal distances the lower row comes first, and is found rather.
    """
    if codes.ndim != 2 or queries.shape[1:] != codes.shape[1:]:
        raise ValueError(f"queries must have {codes.shape[1]} bytes a row, as the codes have")
    codes, queries = as_words(codes), as_words(queries)
    n_queries = len(queries)

    def offer(start, stop, heaps, threads):
        load("search").by_bits(codes, start, stop, queries, *heaps, threads)

    groups, work = -(-n_queries // 4), n_queries * codes.shape[1]
    values, rows = _nearest(offer, len(codes), n_queries, groups, k, work, n_threads)
    return values.astype(np.int32), rows


def as_words(codes):
    """Rows of bytes as rows of 64-bit words, filled up with zeros."""
    if codes.dtype == np.uint64:
        return codes
    n_words = -(-codes.shape[1] // 8)
    whole = codes.flags.c_contiguous and codes.shape[1] == 8 * n_words
    if whole and codes.ctypes.data % 8 == 0:
        return codes.view(np.uint64)
    padded = np.zeros((len(codes), 8 * n_words), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded.view(np.uint64)


def _nearest(offer, n, n_queries, groups, k, work, n_threads, multiple=1):
    """The best k of all rows, each share of them with heaps of its own, brought together.

    ``offer(start, stop, heaps, threads)`` offers these rows; `work` a row, in look-ups.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to {n}, the number of rows, got {k}")
    threads = thread_count(n_threads, n * work * _LOOKUP_WORK)
    # Rows are shared only as far as queries do not keep the threads busy.
    shares = 1 if groups >= 4 * threads else threads
    values = np.full((shares, n_queries, k), np.inf, np.float32)
    rows = np.full((shares, n_queries, k), np.iinfo(np.int64).max)
    for start, stop in _calls(n, int(work * _LOOKUP_WORK), multiple):
        offer(start, stop, (values, rows), threads)
    values, rows = (a.transpose(1, 0, 2).reshape(n_queries, -1) for a in (values, rows))
    order = np.lexsort((rows, values))[:, :k]
    # Zero is added for the sign of zero, which depends on how a sum was started.
    return np.take_along_axis(values, order, 1) + np.float32(0), np.take_along_axis(rows, order, 1)


# Queries from which interleaved tables are used, also where lanes stay empty.
_FEWEST_TOGETHER = 3
_LOOKUP_WORK = 8  # multiply-adds that a look-up is counted as, for threads and calls


class _Source:
    """Rows as the kernels take them: an address, strides, and maybe a list of positions."""

    def __init__(self, X, n_features, rows=None, first_feature=0, n_padded=None):
        if X.ndim != 2 or X.shape[1] != n_features:
            raise ValueError(f"X must have shape (n, {n_features}), got {X.shape}")
        if X.dtype not in KINDS:
            names = ", ".join(t.name for t in KINDS)
            raise TypeError(
                f"X must be of dtype {names} in this machine's byte order, not {X.dtype}"
            )
        self.X, self.rows, self.n = X, rows, len(X)
        self._first_feature = first_feature  # where X is some columns of the user's: for errors
        index = 0
        if rows is not None:
            self.rows = rows = np.ascontiguousarray(rows, np.intp)
            self.n, index = len(rows), rows.ctypes.data
            if self.n and not (rows.min() >= 0 and rows.max() < len(X)):
                raise ValueError(f"rows must lie between 0 and {len(X) - 1}")
        self.n_padded = n_features if n_padded is None else n_padded
        self.fields = (
            X.ctypes.data, *X.strides, self.n_padded, self.n_padded - n_features, KINDS[X.dtype],
            index,
        )  # fmt: skip

    def taken(self, positions):
        """The rows at these positions."""
        rows = positions if self.rows is None else self.rows[positions]
        return _Source(self.X, self.X.shape[1], rows, n_padded=self.n_padded)

    def check(self, bad, precision):
        """Raise if a kernel met a value that it could not take; `precision`: dtype or Prepared."""
        if bad:
            raise ValueError(self.complaint(precision) or _CHANGED)

    def check_finite(self, bad, dtype):
        """Raise if a kernel that squares nothing met a value that is not finite in `dtype`."""
        if bad:
            raise ValueError(self._complaint(dtype, float(np.finfo(dtype).max)) or _CHANGED)

    def complaint(self, precision):
        """What is wrong with the first row that is out of range; None where none is."""
        dtype = np.dtype(getattr(precision, "dtype", precision))
        return self._complaint(dtype, LIMITS[dtype] / getattr(precision, "scale", 1))

    def _complaint(self, dtype, limit):
        for start in range(0, self.n, 4096):
            block = slice(start, min(start + 4096, self.n))
            at = np.arange(self.n)[block] if self.rows is None else self.rows[block]
            values = self.X[at].astype(np.float64)
            with np.errstate(invalid="ignore"):
                outside = ~(np.abs(values) < limit)
            if not outside.any():
                continue
            row, feature = np.argwhere(outside)[0]
            value = values[row, feature]
            where = f"(row {at[row]}, feature {self._first_feature + feature})"
            if np.isnan(value):
                return f"Input X contains NaN {where}"
            if np.isinf(value):
                return f"Input X contains infinity {where}"
            return (
                f"Input X contains a value too large to be compared with this codebook in "
                f"{dtype.name}: {value:.6g} {where}; the limit is {limit:.3g}"
            )
        long = self._first_long_row(limit)
        if long is not None:
            return (
                f"Input X contains a row too long to be compared with this codebook in "
                f"{dtype.name} (row {long}); the limit of its length is {limit:.3g}"
            )
        return None

    def _first_long_row(self, limit):
        for start in range(0, self.n, 4096):
            block = slice(start, min(start + 4096, self.n))
            at = np.arange(self.n)[block] if self.rows is None else self.rows[block]
            values = self.X[at].astype(np.float64)
            largest = np.maximum(np.abs(values).max(axis=1), 1e-300)
            lengths = largest * np.linalg.norm(values / largest[:, None], axis=1)
            # Distances are to codewords, not to zero: what comes near the limit.
            outside = np.flatnonzero(lengths > limit * 0.99)
            if len(outside):
                return at[outside[0]]
        return None


def _own(codebook):
    """The codebook as a C-contiguous array that nobody will write into."""
    flags = codebook.flags
    shared = flags.writeable or not flags.owndata
    return np.array(codebook, order="C", copy=True) if shared else np.ascontiguousarray(codebook)


def _direct(source, start, stop, book, codes, workspace, threads):
    bad = load("assign").assign_direct(
        source.fields, start, stop, book.scale, book.codebook, codes.ctypes.data, codes.itemsize,
        workspace, threads,
    )  # fmt: skip
    source.check(bad, book)


def _settle(source, start, book, codes, doubtful, threads):
    """Decide by definition the rows marked among positions start ..; which of them those were."""
    doubtful = np.flatnonzero(doubtful.view(bool))  # ten times as fast as on integers
    if len(doubtful):
        rest = source.taken(doubtful + start)
        settled = np.empty(rest.n, codes.dtype)
        workspace = _workspace("assign", source.n_padded, book.dtype, threads)
        for first, last in _calls(rest.n, book.codebook.size):
            _direct(rest, first, last, book, settled[first:last], workspace, threads)
        codes[doubtful] = settled
    return doubtful


def _two(source, book, start, stop, codes, nearest, threads):
    return load("assign").assign_two(
        source.fields, start, stop, book.scale, book.codebook, codes, nearest,
        _workspace("assign", book.codebook.shape[1], book.dtype, threads), threads,
    )  # fmt: skip


def _calls(n, work, multiple=1, most=_CALL_ROWS):
    """Slices of n rows, each of `work` multiply-adds, that one call may take."""
    step = min(max(1024, _CALL_WORK // max(work, 1) // multiple * multiple), most)
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def _block_calls(n, block):
    """Slices of n symbols, whole blocks but for the last, that one call may take."""
    step = max(1, _CALL_SYMBOLS // block) * block
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def _symbols(symbols):
    """Symbols as the kernels take them: address, stride and size."""
    if symbols.ndim != 1 or symbols.dtype not in _CODE_DTYPES[:3]:
        raise ValueError(
            f"symbols must be a 1-D array of uint8, uint16 or uint32, got shape {symbols.shape} "
            f"of {symbols.dtype}"
        )
    return symbols.ctypes.data, symbols.strides[0], symbols.itemsize


def _slot_bits(frequencies):
    """The power of two that these frequencies add up to."""
    total = int(frequencies.sum())
    bits = total.bit_length() - 1
    if frequencies.min() < 0 or total != 1 << bits or bits > 28:
        raise ValueError(f"frequencies must add up to a power of two up to 2**28, got {total}")
    return bits


def thread_count(n_threads, work=math.inf):
    """Threads for a call of so many multiply-adds."""
    return int(max(1, min(_threads.effective(n_threads), work // _THREAD_WORK)))


def _workspace(kernel, d, dtype, threads, *sizes, function="workspace_bytes"):
    size = getattr(load(kernel), function)(d, dtype.itemsize, *sizes)
    return _aligned((threads, size), np.dtype(np.uint8))


def _address(array):
    return 0 if array is None else array.ctypes.data


def _aligned(shape, dtype):
    """An uninitialised array that starts at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    skip = -memory.ctypes.data % 64
    return memory[skip : skip + size].view(dtype).reshape(shape)


_NO_WEIGHT = np.empty(0)
_NO_CODES = np.empty(0, np.int32)
_NO_MARKS = np.empty(0, np.uint8)


def _weight(sample_weight, n):
    """Weights as the kernels take them: float64, or none at all."""
    if sample_weight is None:
        return _NO_WEIGHT
    weight = np.ascontiguousarray(sample_weight, np.float64)
    if weight.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), got {weight.shape}")
    return weight


def _check_closest(closest, n):
    if closest.shape != (n,):
        raise ValueError(f"closest must have shape ({n},), got {closest.shape}")


_DECODED_DTYPES = tuple(np.dtype(t) for t in ("uint8", "uint16", "uint32"))
_CODE_DTYPES = tuple(np.dtype(t) for t in ("uint8", "uint16", "uint32", "int32"))


def _room_for_codes(codes, shape, n_codewords):
    if codes is None:
        return np.empty(shape, np.int32)
    if codes.shape != shape or codes.dtype not in _CODE_DTYPES:
        names = ", ".join(t.name for t in _CODE_DTYPES)
        raise ValueError(
            f"codes must have shape {shape} and dtype {names}, got {codes.shape} of {codes.dtype}"
        )
    if not (codes.flags.c_contiguous and codes.flags.writeable):
        raise ValueError("codes must be contiguous and writeable")
    if np.iinfo(codes.dtype).max < n_codewords - 1:
        raise ValueError(f"codes of dtype {codes.dtype} cannot count {n_codewords} codewords")
    return codes


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


def _codes(codes, n, counts):
    """Codes as the kernels take them: int32, in range; adds them to the histogram `counts`."""
    codes = np.ascontiguousarray(codes, np.int32)
    if codes.shape != (n,):
        raise ValueError(f"codes must have shape ({n},), got {codes.shape}")
    if not load("sums").histogram(codes, counts):
        raise ValueError(f"codes must lie between 0 and {len(counts) - 1}")
    return codes


def _shares(counts, threads):
    """Bounds of `threads` ranges of codewords with about equally many rows each."""
    reached = np.cumsum(counts)
    bounds = np.searchsorted(reached, reached[-1] * np.arange(1, threads) / threads)
    return np.concatenate([[0], bounds, [len(counts)]]).astype(np.int32)


def _precision(X):
    return np.dtype(np.float64 if X.dtype == np.float64 else np.float32)


def _scale(largest, dtype):
    """Power of two that brings `largest` near 1 where squares could leave the range of dtype."""
    if largest == 0 or 2.0 ** -_UNSCALED[dtype] <= largest <= 2.0 ** _UNSCALED[dtype]:
        return 1.0
    most = np.finfo(dtype).maxexp - 2
    return 2.0 ** min(max(-math.frexp(largest)[1], -most), most)


def _unscale_bounds(bounds, book):
    """Lower bounds in the units of the input; 0 for those that their dtype cannot hold."""
    exact = _unscaled(bounds, book)
    limits = np.finfo(bounds.dtype)
    exact[~((exact >= limits.tiny) & (exact <= limits.max))] = 0
    bounds[:] = exact


def _unscaled_codebook(book):
    return book.codebook if book.scale == 1 else book.codebook / book.dtype.type(book.scale)


def _unscaled(squares, book):
    if book.scale == 1:
        return squares
    return squares.astype(np.float64) / book.scale / book.scale
