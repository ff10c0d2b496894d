"""Blocks of features, each with a codebook of its own; rotations."""

import itertools

import numpy as np

from fastvq._kernels import load
from fastvq._panels import pack_panels
from fastvq.kernels._assign import settle
from fastvq.kernels._call import (
    CHANGED,
    DECODED_DTYPES,
    Source,
    address,
    calls,
    room_for_codes,
    thread_count,
    workspace_for,
)
from fastvq.kernels._codebook import prepare, unscaled_codebook


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
            [address(array) for array in (book.codebook, book.panels, book.shift)]
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
    source = Source(X, books.n_features)
    most = max(book.n_codewords for book in books.books)
    codes = room_for_codes(codes, (source.n, len(books)), most)
    threads = thread_count(n_threads, source.n * books.size)
    sizes = {book.codebook.shape[1] for book in books.books}
    workspace = max((workspace_for("assign", d, books.dtype, threads) for d in sizes), key=np.size)
    like = np.zeros(1, books.dtype)
    for start, stop in calls(source.n, books.size):
        part = codes[start:stop]
        doubtful = np.empty((len(books), stop - start), np.uint8)
        bad = load("assign").assign_subspaces(
            source.fields, start, stop, like, books._places, books._addresses, books._numbers,
            part.ctypes.data, part.itemsize, doubtful, workspace, threads,
        )  # fmt: skip
        parts = [
            Source(X[:, features], features.stop - features.start, first_feature=features.start)
            for features in books.slices
        ]
        if bad:
            complaints = map(Source.complaint, parts, books.books)
            raise ValueError(next(filter(None, complaints), CHANGED))
        for m, (narrow, book) in enumerate(zip(parts, books.books, strict=True)):
            settle(narrow, start, book, part[:, m], doubtful[m], threads)
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
    codebooks = [unscaled_codebook(book) for book in books.books]
    addresses = np.array([address(codebook) for codebook in codebooks], np.uintp)
    threads = thread_count(n_threads, codes.size * 16)
    valid = True
    for start, stop in calls(len(codes), books.n_features):
        part = codes[start:stop]
        if part.dtype not in DECODED_DTYPES:
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
    source = Source(X, d)
    first, last, _ = (span or slice(None)).indices(source.n)
    if out is None:
        out = np.empty((last - first, width), matrix.dtype)
    threads = thread_count(n_threads, (last - first) * d * width)
    workspace = workspace_for("product", d, matrix.dtype, threads, width)
    for start, stop in calls(last - first, d * width):
        bad = load("product").rotate(
            source.fields, first + start, first + stop, matrix.panels, out[start:stop],
            workspace, threads,
        )  # fmt: skip
        source.check(bad, matrix.dtype)
    return out
