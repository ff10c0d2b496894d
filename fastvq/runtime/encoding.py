"""Weights as they are stored: a tensor and the way its values are written down.

An operator reads weights only through :class:`EncodedTensor`. An encoding supplies what the class
declares and nothing else; whoever adds one adds no operator, and whoever adds an operator adds no
encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import numpy as np

__all__ = ["ENCODINGS", "EncodedTensor", "Raw", "decoded"]


class EncodedTensor:
    """A tensor as it is stored.

    Attributes
    ----------
    kind : str
        Name of the encoding in files.
    coder : {"raw", "rans"}
        How files hold codes: as they are used, or entropy coded.
    shape : tuple of int
    dtype : dtype of the decoded values
    """

    kind = ""
    coder = "raw"
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def scheme(self) -> str:
        """What a report calls the way in which the values are stored."""
        return self.kind

    @property
    def nbytes(self) -> int:
        """Bytes that the parts take in a file."""
        return sum(part.nbytes for part in self.parts().values())

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that are stored, by name; "" names the only one."""
        raise NotImplementedError

    def attributes(self) -> dict:
        """What is stored besides, as JSON knows it."""
        return {}

    @classmethod
    def from_parts(cls, parts: Mapping[str, np.ndarray], attributes: Mapping) -> EncodedTensor:
        """The tensor again; a ValueError where parts and attributes do not fit together."""
        raise NotImplementedError

    def decode(self) -> np.ndarray:
        """The values, of `shape` and `dtype`: C-contiguous, not to be written into."""
        raise NotImplementedError

    def rows(self, first: int, stop: int) -> np.ndarray | None:
        """Values of the rows from `first` up to `stop`, to be read once; None: decode all."""
        return None

    def with_coder(self, coder: str) -> EncodedTensor:
        """The same values, for files that hold their codes so, where it takes fewer bytes."""
        return self

    def release(self) -> None:
        """Give back the memory of what can be read from the disk again: it has been packed."""


class Raw(EncodedTensor):
    """The values themselves; floats may be stored as float16 and are read as float32.

    Parameters
    ----------
    values : ndarray
        Kept as it is where it is C-contiguous: a memory-mapped one stays on disk until read.
    """

    kind = "raw"

    def __init__(self, values):
        self.values = np.ascontiguousarray(values).reshape(np.shape(values))
        self.shape = self.values.shape
        stored = self.values.dtype
        self.dtype = np.dtype(np.float32) if stored == np.float16 else stored

    @property
    def scheme(self):
        return self.values.dtype.name

    def parts(self):
        return {"": self.values}

    @classmethod
    def from_parts(cls, parts, attributes):
        if [*parts] != [""] or attributes:
            raise ValueError(f"raw values are one array, got parts {[*parts]}, {dict(attributes)}")
        return cls(parts[""])

    def decode(self):
        values = self.values.astype(self.dtype, copy=False)
        values.flags.writeable = False if values is not self.values else values.flags.writeable
        return values

    def rows(self, first, stop):
        part = self.values[first:stop]
        values = part.astype(self.dtype)
        _forget_pages(part)
        return values

    def release(self):
        _forget_pages(self.values)


def _forget_pages(array):
    """Drop the pages of a memory-mapped array from memory; they are read again when touched."""
    base = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = array.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages that are this array's alone
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        base.madvise(mmap.MADV_DONTNEED, first, last - first)


# By the name that files know them under; each module of an encoding adds its own.
ENCODINGS: dict[str, type[EncodedTensor]] = {Raw.kind: Raw}


def decoded(tensor):
    """The values of a constant, whether it is encoded or an array."""
    return tensor.decode() if isinstance(tensor, EncodedTensor) else np.asarray(tensor)
