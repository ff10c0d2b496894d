"""What encodings of a few bits share: packed codes, and scales of rows or of groups of columns.

A tensor is taken as a matrix: its first `leading` axes, mostly one, count the rows, in which a
layer's weights for one output lie in the order of its inputs. Columns may stand in groups of
`group` each, the last of which may have fewer; 0 is one group of all.

A file may hold the codes entropy coded (`fastvq.entropy`); in memory they are packed, a fixed
number of bits each, as kernels read them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from fastvq import entropy
from fastvq.runtime.bits import pack, packed_size, unpack
from fastvq.runtime.encoding import EncodedTensor, _forget_pages

__all__ = ["CODERS", "Coded", "float16_scales"]

CODERS = ("raw", "rans")

_MOST_VALUES = 1 << 56  # as files have it
_LARGEST_EXPONENT = 126
_MOST_CODES = 64  # for each byte of entropy coded ones: no small file may grow into a large one


class Coded(EncodedTensor):
    """Codes of a few bits; a subclass says what they stand for.

    Parameters
    ----------
    shape : tuple of int, of one dimension or more
    codes : ndarray of uint8
        As :func:`fastvq.runtime.bits.pack` gives them, in C order.
    bits : int from 1 to 16
    group : int
    scales : ndarray of float32 or float16, shape (n_rows or 1, n_groups), optional
        What the levels of a row and group are multiplied by, in float32.
    exponent : int
        Scales stand for scales · 2**exponent: so that any fit into float16.
    leading : int
    coder : {"raw", "rans"}
    """

    dtype = np.dtype(np.float32)
    #: what `attributes` has beside those that all have
    _own_attributes: tuple[str, ...] = ()
    #: names of the parts, and those of them that may be missing
    _part_names: tuple[str, ...] = ("codes", "scales")
    _optional_parts: tuple[str, ...] = ("scales",)

    def __init__(
        self, shape, codes, *, bits, group=0, scales=None, exponent=0, leading=1, coder="raw"
    ):
        self.shape, self.bits, self.group, self.leading = tuple(shape), bits, group, leading
        self.codes, self.coder = codes, coder
        self.scales, self.exponent = scales, exponent
        self._check_form()
        self._check_codes()
        self._check_scales()

    # ---- what is stored ------------------------------------------------------------------------

    @property
    def scheme(self):
        return f"{self._form}{', entropy coded' if self.coder == 'rans' else ''}"

    @property
    def _form(self) -> str:
        """What codes stand for."""
        raise NotImplementedError

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[: self.leading])

    @property
    def width(self) -> int:
        """Values of a row."""
        return math.prod(self.shape[self.leading :])

    @property
    def codes_per_row(self) -> int:
        return self.width

    @property
    def n_groups(self) -> int:
        return -(-self.width // self.group) if self.group and self.width else 1

    def parts(self):
        found = {name: getattr(self, name) for name in self._part_names}
        if self.coder == "rans":
            found["codes"] = self._entropy_coded
        return {name: part for name, part in found.items() if part is not None}

    def attributes(self):
        names = ("bits", "group", "exponent", "leading", *self._own_attributes)
        found = {"shape": [*self.shape], **{name: getattr(self, name) for name in names}}
        return found if self.coder == "raw" else {**found, "coder": self.coder}

    @classmethod
    def from_parts(cls, parts, attributes):
        needed = set(cls._part_names) - set(cls._optional_parts)
        if not needed <= set(parts) <= set(cls._part_names):
            raise ValueError(f"{cls.kind} values have other parts than {sorted(parts)}")
        wanted = {"shape", "bits", "group", "exponent", "leading", *cls._own_attributes}
        if not isinstance(attributes, Mapping) or set(attributes) - {"coder"} != wanted:
            raise ValueError(f"{cls.kind} values have the attributes {', '.join(sorted(wanted))}")
        if not isinstance(attributes["shape"], list):
            raise ValueError(f"shape must be a list, got {attributes['shape']!r:.80}")
        if attributes.get("coder", "raw") == "raw":
            return cls(**{**attributes, **parts})
        stored = parts["codes"]
        found = cls(**{**attributes, **parts, "codes": _unpacked(stored, attributes)})
        vars(found)["_entropy_coded"] = stored
        return found

    def with_coder(self, coder):
        found = copy.copy(self)
        found.coder = coder
        if coder == "rans":
            vars(found).pop("_entropy_coded", None)
            count, stored = self.n_rows * self.codes_per_row, found._entropy_coded.nbytes
            if not count / _MOST_CODES <= stored < self.codes.nbytes:
                found.coder = "raw"
        return found

    @cached_property
    def _entropy_coded(self):
        codes = unpack(self.codes, self.bits, 0, self.n_rows * self.codes_per_row)
        return np.frombuffer(entropy.encode(codes), np.uint8)

    # ---- what it stands for --------------------------------------------------------------------

    def decode(self):
        values = self.rows(0, self.shape[0])
        values.flags.writeable = False
        return values

    def rows(self, first, stop):
        first, stop, _ = slice(first, stop).indices(self.shape[0])
        within = math.prod(self.shape[1 : self.leading])
        return self._matrix(first * within, stop * within).reshape(stop - first, *self.shape[1:])

    def _matrix(self, first, stop):
        values = self._levels(self.row_codes(first, stop), first)
        if self.scales is not None:
            values *= self._spread(self.float_scales(first, stop))
        return values

    def row_codes(self, first, stop) -> np.ndarray:
        """Codes of some rows, (stop - first, codes_per_row)."""
        each = self.codes_per_row
        found = unpack(self.codes, self.bits, first * each, stop * each)
        return found.reshape(stop - first, each)

    def float_scales(self, first=0, stop=None) -> np.ndarray:
        """The scales of some rows in float32, (stop - first or 1, n_groups)."""
        part = self.scales if len(self.scales) == 1 else self.scales[first:stop]
        return np.ldexp(part.astype(np.float32), self.exponent)

    def release(self):
        _forget_pages(self.codes)

    def _levels(self, codes, first):
        """What codes of the rows from `first` on stand for before scaling: (n, width), to keep."""
        raise NotImplementedError

    def _spread(self, values):
        """Values (n, n_groups) of groups as (n, width) of columns, or (n, 1) of rows."""
        if not self.group:
            return values
        return np.repeat(values, self.group, axis=1)[:, : self.width]

    # ---- whether it can be ---------------------------------------------------------------------

    def _check_form(self):
        shape = self.shape
        if not shape or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"shape must be one or more sizes, got {shape!r:.80}")
        if math.prod(max(n, 1) for n in shape) >= _MOST_VALUES:
            raise ValueError(f"shape {shape!r:.80} is absurd")
        if type(self.leading) is not int or not 1 <= self.leading <= len(shape):
            raise ValueError(f"leading must be 1 to {len(shape)}, got {self.leading!r:.20}")
        _check_bits(self.bits)
        if self.coder not in CODERS:
            raise ValueError(f"coder must be one of {', '.join(CODERS)}, got {self.coder!r:.20}")
        if type(self.group) is not int or not 0 <= self.group < _MOST_VALUES:
            raise ValueError(f"group must be a number of columns, or 0, got {self.group!r:.20}")
        exponent = self.exponent
        if type(exponent) is not int or abs(exponent) > _LARGEST_EXPONENT:
            raise ValueError(f"exponent must be within {_LARGEST_EXPONENT}, got {exponent!r:.20}")

    def _check_codes(self):
        wanted = packed_size(self.n_rows * self.codes_per_row, self.bits)
        if self.codes.dtype != np.uint8 or self.codes.shape != (wanted,):
            raise ValueError(
                f"codes must be uint8 of shape {(wanted,)}, got {self.codes.shape} of "
                f"{self.codes.dtype}"
            )

    def _check_scales(self):
        scales = self.scales
        if scales is None:
            return
        allowed = [(rows, self.n_groups) for rows in (self.n_rows, 1)]
        if scales.dtype not in (np.float32, np.float16) or scales.shape not in allowed:
            raise ValueError(
                f"scales must be float32 or float16 of shape {allowed[0]}, got {scales.shape} of "
                f"{scales.dtype}"
            )
        if not np.isfinite(scales).all():
            raise ValueError("scales must be finite")

    def _check_range(self, most):
        """No code may be that of a level which is not there."""
        if most == 1 << self.bits or not self.codes.size:
            return
        step = max(1, (1 << 24) // max(self.codes_per_row, 1))
        for first in range(0, self.n_rows, step):
            codes = self.row_codes(first, min(first + step, self.n_rows))
            if codes.size and codes.max() >= most:
                raise ValueError(f"codes must be below {most}, got {codes.max()}")


def _unpacked(stored, attributes):
    """Packed codes of entropy coded ones, which a file cannot make absurdly many of."""
    _check_bits(attributes["bits"])
    if stored.dtype != np.uint8 or stored.ndim != 1:
        raise ValueError("entropy coded codes must be bytes")
    codes = entropy.decode(memoryview(stored), max_codes=_MOST_CODES * stored.nbytes)
    return pack(codes, attributes["bits"])


def _check_bits(bits):
    if type(bits) is not int or not 1 <= bits <= 16:
        raise ValueError(f"bits must be 1 to 16, got {bits!r:.20}")


def float16_scales(scales) -> tuple[np.ndarray, int]:
    """Scales as float16 and the exponent that they share: the largest lies near 2**15.

    A scale a billion times smaller than the largest still has all its digits.
    """
    scales = np.asarray(scales, np.float64)
    largest = float(np.abs(scales).max(initial=0))
    exponent = int(np.clip(np.frexp(largest)[1] - 15, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))
    exponent = exponent if largest else 0
    return np.ldexp(scales, -exponent).astype(np.float16), exponent


def packed(codes, bits):
    """Codes for `Coded`, and the shape that it is told."""
    return tuple(int(n) for n in np.shape(codes)), pack(codes, bits)
