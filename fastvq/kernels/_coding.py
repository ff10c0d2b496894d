"""Codes as bytes: packed to their bits, or entropy coded by rANS."""

import numpy as np

from fastvq import reference
from fastvq._kernels import active_level, load
from fastvq.kernels._call import CODE_DTYPES, calls, thread_count

# Symbols that an entropy coding call takes, some 0.1 s of them.
_CALL_SYMBOLS = 1 << 24
# Where the decoder looks for the symbol of a slot: so many places at least, and so many a symbol.
_LEAST_BUCKETS = 1 << 12
_BUCKETS_PER_SYMBOL = 2


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
    for start, stop in calls(len(codes), 8 * len(widths)):
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
    for start, stop in calls(len(codes), 8 * len(widths)):
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
    for start, stop in calls(len(symbols), 1, most=_CALL_SYMBOLS):
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
    if active_level() == "numpy":  # files of models are read there, too
        return reference.rans_decode(words, lengths, frequencies, symbols, block=block)
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


def _block_calls(n, block):
    """Slices of n symbols, whole blocks but for the last, that one call may take."""
    step = max(1, _CALL_SYMBOLS // block) * block
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def _symbols(symbols):
    """Symbols as the kernels take them: address, stride and size."""
    if symbols.ndim != 1 or symbols.dtype not in CODE_DTYPES[:3]:
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
