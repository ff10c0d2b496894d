"""Entropy coding of codes: as many bytes as their entropy, where `pack` takes fixed bits.

Codes of a quantizer are not equally likely, and a code of probability p is worth −log2 p bits
(Shannon 1948). `encode` writes each column of codes with frequencies of its own, by asymmetric
numeral systems (Duda, "Asymmetric numeral systems", 2013; Giesen, "Interleaved entropy coders",
2014), within half a percent of its empirical entropy and a header. The bytes do not depend on
level, byte order or threads: all that decides about them is integer arithmetic.

The layout, all little-endian: ``FVQE``, version, bytes of a code, number of dimensions, a zero;
rows and columns, 8 bytes each; the columns; CRC-32 of all that. A column begins with a byte,

- 0, then bits: so many bits a code, lowest first; what is short or would not shrink;
- 1, then log2 M (1 byte), symbols in a block (8), size of the alphabet (4): the table of
  frequencies, the words of each block (4 each), and the words (4 each; see _kernels/rans.pyx).

A frequency is as many bits as `int.bit_length` says: those lengths are a column themselves, coded
like any other, and the bits below the leading ones follow, the lowest of all symbols first.
"""

import struct
import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastvq import kernels
from fastvq._validation import allocate, as_count

__all__ = ["decode", "encode", "entropy"]

_MAGIC, _VERSION = b"FVQE", 1
_HEADER = struct.Struct("<4s4BQQ")
_CODED = struct.Struct("<BQI")
_FIXED, _RANS = 0, 1

_DTYPES = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}

_LARGEST_ALPHABET = 1 << 20
_MOST_BITS = 28  # of the sum of frequencies
_LENGTHS = _MOST_BITS + 2  # lengths that frequencies can have
_FEWEST = 64  # codes that frequencies may pay for; also ends the recursion of the tables
# Doubling the sum of frequencies costs memory and time: it has to save this share of the bits.
_WORTH = 1 / 2048
# A block takes 64 bytes for itself: it has so many bits at least (unless it is the only one) ...
_BLOCK_BITS = 1 << 20
# ... and so many symbols at most.
_BLOCK_SYMBOLS = 1 << 24
_LOG_BITS = 24
_SPAN = 1 << 16


def encode(codes: ArrayLike, *, n_threads: int | None = None) -> bytes:
    """Entropy code codes.

    Parameters
    ----------
    codes : array-like of integers of shape (n,) or (n, n_codes)
        Not negative, and below 2**32. Columns are coded one by one: each has its own frequencies.
    n_threads : int, optional
        The bytes do not depend on it.

    Returns
    -------
    data : bytes
        What `decode` turns into the same array, in the smallest of uint8, uint16 and uint32
        where `codes` is of another dtype. Columns whose codes reach 2**20 and beyond take fixed
        bits.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq import entropy
    >>> codes = np.minimum(np.random.default_rng(0).geometric(0.5, 100_000), 255).astype(np.uint8)
    >>> data = entropy.encode(codes)
    >>> 8 * len(data) / entropy.entropy(codes) / len(codes) < 1.01
    True
    >>> bool((entropy.decode(data) == codes).all())
    True
    """
    table, n_dims = _as_table(codes)
    n, n_columns = table.shape
    parts = [_HEADER.pack(_MAGIC, _VERSION, table.itemsize, n_dims, 0, n, n_columns)]
    parts += [_encode_column(table[:, column], n_threads) for column in range(n_columns)]
    data = b"".join(parts)
    return data + struct.pack("<I", zlib.crc32(data))


def decode(
    data: bytes | bytearray | memoryview,
    *,
    max_codes: int | None = None,
    n_threads: int | None = None,
) -> NDArray:
    """The codes that `encode` made these bytes of.

    Parameters
    ----------
    data : bytes-like
    max_codes : int, optional
        An error where there are more. For data that cannot be trusted: a few bytes may well stand
        for billions of equal codes.
    n_threads : int, optional

    Returns
    -------
    codes : ndarray of uint8, uint16 or uint32

    Raises
    ------
    ValueError
        For bytes that are damaged, truncated, of a newer version, or something else. That is
        found out before memory for the codes is taken.
    """
    reader = _checked(data)
    _, version, itemsize, n_dims, zero, n, n_columns = reader.unpack(_HEADER)
    if version > _VERSION:
        raise ValueError(f"data is of version {version}, newer than {_VERSION}: update fastvq")
    if itemsize not in _DTYPES or n_dims not in (1, 2) or zero or (n_dims == 1 and n_columns != 1):
        raise ValueError("data is damaged: its header makes no sense")
    if max_codes is not None and n * n_columns > as_count(max_codes, "max_codes"):
        raise ValueError(f"data holds {n} x {n_columns} codes, more than max_codes={max_codes}")
    if n_columns > len(reader.rest):  # a column takes a byte at least
        raise ValueError(f"data is damaged: no room for {n_columns} columns")
    columns = [_read_column(reader, n, _DTYPES[itemsize], n_threads) for _ in range(n_columns)]
    if len(reader.rest):
        raise ValueError(f"data is damaged: {len(reader.rest)} bytes are left over")
    codes = allocate((n, n_columns), _DTYPES[itemsize], "the codes")
    for column, write in enumerate(columns):
        write(codes[:, column])
    return codes[:, 0] if n_dims == 1 else codes


def entropy(codes: ArrayLike) -> float:
    """Empirical entropy of codes in bits a row: the sum over the columns.

    Parameters
    ----------
    codes : array-like of integers of shape (n,) or (n, n_codes)

    Returns
    -------
    bits : float
        Σ_columns Σ_symbols −p·log2 p; what a row costs where columns are coded one by one.
    """
    table, _ = _as_table(codes)
    bits = 0.0
    for column in table.T if len(table) else ():
        counts = np.unique(column, return_counts=True)[1]
        bits += float((counts / len(table)) @ np.log2(len(table) / counts))
    return bits


# ---- columns ------------------------------------------------------------------------------


def _encode_column(column, n_threads):
    """The shorter of both forms."""
    n, largest = len(column), int(column.max(initial=0))
    width = largest.bit_length()
    if n < _FEWEST or largest >= _LARGEST_ALPHABET:
        return _fixed(column, width)
    counts = kernels.symbol_counts(column, largest + 1)
    frequencies, cost = _frequencies(counts)
    if (cost >> _LOG_BITS) + 8 * _FEWEST >= n * width > 0:
        return _fixed(column, width)
    block = _block_size(n, cost)
    words, lengths = kernels.rans_encode(column, frequencies, block=block, n_threads=n_threads)
    bits = int(frequencies.sum()).bit_length() - 1
    coded = b"".join(
        [
            bytes([_RANS]),
            _CODED.pack(bits, block, len(frequencies)),
            _encode_table(frequencies, n_threads),
            lengths.astype("<u4").tobytes(),
            words.astype("<u4", copy=False).tobytes(),
        ]
    )
    return coded if len(coded) < 2 + -(-n * width // 8) or not width else _fixed(column, width)


def _read_column(reader, n, dtype, n_threads=None, largest_alphabet=_LARGEST_ALPHABET):
    """A function that writes the n symbols of the next column, whose parts are all checked."""
    form = reader.byte()
    if form == _FIXED:
        return _read_fixed(reader, n, dtype)
    if form != _RANS or n < _FEWEST:
        raise ValueError(f"data is damaged: a column of form {form}")
    bits, block, alphabet = reader.unpack(_CODED)
    if not (bits <= _MOST_BITS and block >= 1 and 1 <= alphabet <= largest_alphabet):
        raise ValueError("data is damaged: the settings of a column make no sense")
    if alphabet - 1 > np.iinfo(dtype).max:
        raise ValueError(f"data is damaged: {dtype} cannot hold its codes")
    frequencies = _read_table(reader, alphabet)
    if int(frequencies.sum()) != 1 << bits:
        raise ValueError("data is damaged: frequencies do not add up")
    lengths = reader.words(-(-n // block)).astype(np.int64)
    words = reader.words(int(lengths.sum()))
    # n symbols, each at the price of the cheapest, must fit; rounding is one part of 2^24.
    cheapest = (bits << _LOG_BITS) - int(_log2(frequencies.max(keepdims=True))[0]) - 2
    if n * cheapest > 32 * len(words) << _LOG_BITS:
        raise ValueError(f"data is damaged: {len(words)} words cannot hold {n} codes")

    def write(symbols):
        kernels.rans_decode(
            words, lengths, frequencies, symbols, block=min(block, max(n, 1)), n_threads=n_threads
        )

    return write


def _fixed(column, width):
    parts = [bytes([_FIXED, width])]
    shifts = np.arange(width, dtype=np.uint32)
    for start in range(0, len(column) if width else 0, _SPAN):
        planes = column[start : start + _SPAN, None] >> shifts & 1
        parts.append(np.packbits(planes.astype(np.uint8), bitorder="little").tobytes())
    return b"".join(parts)


def _read_fixed(reader, n, dtype):
    width = reader.byte()
    if width > 8 * dtype.itemsize:
        raise ValueError(f"data is damaged: codes of {width} bits in {dtype}")
    packed = reader.take(-(-n * width // 8))

    def write(symbols):
        shifts = np.arange(width, dtype=dtype)
        for start in range(0, n, _SPAN):
            count = min(_SPAN, n - start)
            some = packed[start * width // 8 : -(-(start + count) * width // 8)]
            planes = np.unpackbits(some, bitorder="little")[: count * width].reshape(count, width)
            symbols[start : start + count] = (planes << shifts).sum(axis=1, dtype=dtype)

    return write


def _block_size(n, cost):
    """Symbols in a block, so that a block has enough bits to be worth its own start."""
    most = n * (_BLOCK_BITS << _LOG_BITS) // max(cost, 1)
    return max(1, min(n, most, _BLOCK_SYMBOLS))


# ---- frequencies --------------------------------------------------------------------------


def _frequencies(counts):
    """Frequencies that add up to a power of two, and what all symbols and the table then cost.

    In units of 2^-24 bits. The sum doubles as long as that pays.
    """
    present = np.flatnonzero(counts)
    some = counts[present]
    n = int(some.sum())
    least = (len(some) - 1).bit_length()
    best = None
    for bits in range(least, max(least, min(_MOST_BITS, n.bit_length() + 1)) + 1):
        shares = _shares(some, n, bits)
        cost = _cost(some, shares, bits)
        if best is not None and best[1] - cost <= _WORTH * best[1]:
            break
        best = shares, cost
    frequencies = np.zeros(len(counts), np.int64)
    frequencies[present] = best[0]
    return frequencies, best[1]


def _shares(counts, n, bits):
    """2^bits in shares that are nearly proportional to `counts` (all positive), at least 1 each."""
    total = 1 << bits
    shares = np.ones(len(counts), np.int64)
    large = np.arange(len(counts))
    while True:  # shares below 1 are raised to 1, at the cost of the others
        rest, weight = total - len(counts) + len(large), int(counts[large].sum())
        scaled = counts[large] * rest
        small = scaled < weight
        if not small.any():
            break
        large = large[~small]
    shares[large] = scaled // weight
    left = rest - int(shares[large].sum())
    order = np.argsort(-(scaled % weight), kind="stable")
    shares[large[order[:left]]] += 1
    return shares


def _cost(counts, shares, bits):
    lengths = (bits << _LOG_BITS) - _log2(shares)
    low, high = counts & (1 << 20) - 1, counts >> 20  # so that no product overflows
    symbols = int(low @ lengths) + (int(high @ lengths) << 20)
    table = int((_bit_lengths(shares) - 1).sum())
    return symbols + (table << _LOG_BITS)


def _log2(values):
    """log2 of positive integers in units of 2^-24, rounded down: in integers, alike everywhere."""
    exponents = _bit_lengths(values) - 1
    mantissas = values.astype(np.uint64) << (31 - exponents).astype(np.uint64)
    result = exponents.astype(np.int64)
    for _ in range(_LOG_BITS):  # the square of a mantissa doubles its logarithm
        mantissas = mantissas * mantissas >> np.uint64(31)
        above = mantissas >> np.uint64(32)
        mantissas >>= above
        result = 2 * result + above.astype(np.int64)
    return result


def _bit_lengths(values):
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _encode_table(frequencies, n_threads):
    lengths = _bit_lengths(frequencies)
    planes = [
        (frequencies[lengths > bit + 1] >> bit & 1).astype(np.uint8)
        for bit in range(int(lengths.max()) - 1)
    ]
    tails = np.packbits(np.concatenate([np.empty(0, np.uint8), *planes]), bitorder="little")
    return _encode_column(lengths.astype(np.uint8), n_threads) + tails.tobytes()


def _read_table(reader, alphabet):
    lengths = np.empty(alphabet, np.uint8)
    _read_column(reader, alphabet, lengths.dtype, largest_alphabet=_LENGTHS)(lengths)
    if lengths.max() >= _LENGTHS:
        raise ValueError("data is damaged: a frequency is too large")
    frequencies = np.where(lengths > 0, np.int64(1) << np.maximum(lengths, 1) - 1, 0)
    places = [np.flatnonzero(lengths > bit + 1) for bit in range(max(int(lengths.max()) - 1, 0))]
    n_bits = sum(map(len, places))
    tails = np.unpackbits(reader.take(-(-n_bits // 8)), bitorder="little")[:n_bits]
    start = 0
    for bit, place in enumerate(places):
        frequencies[place] |= tails[start : start + len(place)].astype(np.int64) << bit
        start += len(place)
    return frequencies


# ---- bytes --------------------------------------------------------------------------------


class _Reader:
    """Bytes that are taken from the front, of which there may be too few."""

    def __init__(self, array):
        self.rest = array

    def take(self, n):
        if n > len(self.rest):
            raise ValueError(f"data is damaged: {n} bytes wanted where {len(self.rest)} are left")
        taken, self.rest = self.rest[:n], self.rest[n:]
        return taken

    def byte(self):
        return int(self.take(1)[0])

    def unpack(self, layout):
        return layout.unpack(self.take(layout.size).tobytes())

    def words(self, n):
        return self.take(4 * n).view("<u4").astype(np.uint32)


def _checked(data):
    """A reader of what lies between the magic bytes and a checksum that is right."""
    try:
        array = np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise TypeError(f"data must be bytes, got {type(data).__name__}") from error
    if array[:4].tobytes() != _MAGIC:
        raise ValueError("data holds no codes of entropy.encode: it begins otherwise")
    if len(array) < _HEADER.size + 4:
        raise ValueError(f"data is damaged: it ends after {len(array)} bytes")
    body = array[:-4]
    if zlib.crc32(body) != int.from_bytes(array[-4:].tobytes(), "little"):
        raise ValueError("data is damaged: its checksum is wrong")
    return _Reader(body)


def _as_table(codes):
    """Codes as an (n, n_codes) array of an unsigned dtype, and how many dimensions they had."""
    array = np.asarray(codes)
    if array.ndim not in (1, 2):
        raise ValueError(f"codes must have 1 or 2 dimensions, got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"codes must be integers, got dtype {array.dtype}")
    if array.dtype not in _DTYPES.values():
        least, most = int(array.min(initial=0)), int(array.max(initial=0))
        if least < 0 or most >= 1 << 32:
            raise ValueError(f"codes must be from 0 to 2**32 - 1, got {least} to {most}")
        array = array.astype(np.min_scalar_type(most))
    return array.reshape(len(array), array.shape[1] if array.ndim == 2 else 1), array.ndim
