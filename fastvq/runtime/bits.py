"""Codes of a few bits, one after the other without gaps, each lowest bit first.

In NumPy, as a model's weights have to be read where nothing is compiled. Eight codes of b bits fill
b bytes, so that any eighth code begins at a byte.
"""

from __future__ import annotations

import numpy as np

__all__ = ["pack", "packed_size", "unpack"]

_AT_ONCE = 1 << 17  # units of eight codes that are taken apart at a time: they stay in the cache


def packed_size(count: int, bits: int) -> int:
    """Bytes that so many codes take."""
    return -(-count * bits // 8)


def pack(codes, bits: int) -> np.ndarray:
    """Codes below 2**bits, in C order, as bytes.

    Parameters
    ----------
    codes : ndarray of whole numbers
    bits : int from 1 to 16

    Returns
    -------
    ndarray of uint8, shape (packed_size(codes.size, bits),)
    """
    flat = np.ravel(codes)
    if flat.size and not 0 <= flat.min() <= flat.max() < 1 << bits:
        raise ValueError(f"codes must be from 0 to {(1 << bits) - 1}, got {flat.max()}")
    units = np.zeros((-(-flat.size // 8), 8), np.uint32)
    units.reshape(-1)[: flat.size] = flat
    packed = np.zeros((len(units), bits), np.uint8)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        code = units[:, i] << np.uint32(shift)
        for place in range(byte, min(byte + 3, bits)):
            packed[:, place] |= code.astype(np.uint8)
            code = code >> np.uint32(8)
    return packed.reshape(-1)[: packed_size(flat.size, bits)]


def unpack(packed, bits: int, first: int, stop: int) -> np.ndarray:
    """Codes number `first` up to `stop`.

    Parameters
    ----------
    packed : ndarray of uint8, as `pack` gives it
    bits : int from 1 to 16
    first, stop : int

    Returns
    -------
    ndarray of uint8, above 8 bits of uint16, shape (stop - first,)
    """
    skip = first % 8
    units = -(-stop // 8) - first // 8 if stop > first else 0
    codes = np.empty((units, 8), np.uint8 if bits <= 8 else np.uint16)
    begin = first // 8 * bits
    for at in range(0, units, _AT_ONCE):
        count = min(_AT_ONCE, units - at)
        part = packed[begin + at * bits : begin + (at + count) * bits]
        if part.size < count * bits:  # the last unit may lack codes
            part = np.pad(part, (0, count * bits - part.size))
        _unpack_units(part.reshape(count, bits), bits, codes[at : at + count])
    return codes.reshape(-1)[skip : skip + stop - first]


def _unpack_units(units, bits, codes):
    """units (n, bits) of bytes as codes (n, 8)."""
    if bits == 8:
        codes[...] = units
        return
    mask = (1 << bits) - 1
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        if shift + bits <= 8:
            codes[:, i] = (units[:, byte] >> shift) & mask
            continue
        wide = units[:, byte].astype(np.uint32)
        for n, place in enumerate(range(byte + 1, (i * bits + bits - 1) // 8 + 1), 1):
            wide |= units[:, place].astype(np.uint32) << np.uint32(8 * n)
        codes[:, i] = (wide >> np.uint32(shift)) & np.uint32(mask)
