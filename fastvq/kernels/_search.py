"""The nearest of coded rows: by tables of distances, and by bits."""

import numpy as np

from fastvq._kernels import load
from fastvq.kernels._call import calls, thread_count

# Queries from which interleaved tables are used, also where lanes stay empty.
_FEWEST_TOGETHER = 3
_LOOKUP_WORK = 8  # multiply-adds that a look-up is counted as, for threads and calls


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
    for start, stop in calls(n, int(work * _LOOKUP_WORK), multiple):
        offer(start, stop, (values, rows), threads)
    values, rows = (a.transpose(1, 0, 2).reshape(n_queries, -1) for a in (values, rows))
    order = np.lexsort((rows, values))[:, :k]
    # Zero is added for the sign of zero, which depends on how a sum was started.
    return np.take_along_axis(values, order, 1) + np.float32(0), np.take_along_axis(rows, order, 1)
