"""Weights of few bits as evenly spaced levels for each row and group of columns.

real = scale · (q − zero_point), as :mod:`fastvq.runtime.affine` has it for whole rows and bytes.
"""

from __future__ import annotations

import numpy as np

from fastvq.runtime.bits import pack, packed_size, unpack
from fastvq.runtime.coded import Coded, packed
from fastvq.runtime.encoding import ENCODINGS

__all__ = ["Grouped", "Signs"]


class Grouped(Coded):
    """Whole numbers of 1 to 8 bits: q from 0 to 2**bits − 1.

    Parameters
    ----------
    shape, codes, bits, group, scales, exponent, leading
        As :class:`fastvq.runtime.coded.Coded` takes them; there have to be scales.
    zero_points : ndarray of uint8, optional
        Packed as codes are, of every row and group; 2**(bits − 1) where left out.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.runtime.grouped import Grouped
    >>> scales = np.array([[0.5, 1]], np.float16)
    >>> Grouped.of(np.array([[8, 9, 7, 15]]), scales, bits=4, group=2).decode()
    array([[ 0. ,  0.5, -1. ,  7. ]], dtype=float32)
    """

    kind = "grouped"
    _part_names = ("codes", "scales", "zero_points")
    _optional_parts = ("zero_points",)

    def __init__(self, shape, codes, *, bits, scales, zero_points=None, **rest):
        self.zero_points = zero_points
        super().__init__(shape, codes, bits=bits, scales=scales, **rest)
        if self.bits > 8:
            raise ValueError(f"bits must be 1 to 8, got {self.bits}")
        wanted = packed_size(self.n_rows * self.n_groups, bits)
        if zero_points is not None and (
            zero_points.dtype != np.uint8 or zero_points.shape != (wanted,)
        ):
            raise ValueError(f"zero_points must be uint8 of shape {(wanted,)}")

    @classmethod
    def of(cls, codes, scales, zero_points=None, *, bits, **settings) -> Grouped:
        """The tensor with these codes, of its shape, and zero points (n_rows, n_groups)."""
        points = None if zero_points is None else pack(zero_points, bits)
        return cls(*packed(codes, bits), bits=bits, scales=scales, zero_points=points, **settings)

    @property
    def _form(self):
        group = f", groups of {self.group}" if self.group else ""
        return f"int{self.bits}{', zero points' * (self.zero_points is not None)}{group}"

    def points(self, first=0, stop=None) -> np.ndarray:
        """The zero points of some rows, (stop - first, n_groups) of uint8."""
        stop = self.n_rows if stop is None else stop
        n = self.n_groups
        if self.zero_points is None:
            return np.full((stop - first, n), 1 << (self.bits - 1), np.uint8)
        return unpack(self.zero_points, self.bits, first * n, stop * n).reshape(-1, n)

    def _levels(self, codes, first):
        levels = codes.astype(np.float32)
        if self.zero_points is None:
            levels -= np.float32(1 << (self.bits - 1))
        else:
            levels -= self._spread(self.points(first, first + len(codes)).astype(np.float32))
        return levels


class Signs(Coded):
    """One bit for each value: plus or minus the scale of its row and group.

    Parameters
    ----------
    shape, codes, group, scales, exponent, leading
        As :class:`fastvq.runtime.coded.Coded` takes them; a bit is 0 where the value is negative.
    """

    kind = "sign"
    _optional_parts = ()

    def __init__(self, shape, codes, *, scales, bits=1, **rest):
        if bits != 1:
            raise ValueError(f"signs have one bit, got {bits!r:.20}")
        super().__init__(shape, codes, bits=bits, scales=scales, **rest)

    @classmethod
    def of(cls, values, scales, **settings) -> Signs:
        """The signs of these values; 0 is positive."""
        return cls(*packed(np.asarray(values) >= 0, 1), scales=scales, **settings)

    @property
    def _form(self):
        return f"sign, groups of {self.group}" if self.group else "sign"

    def _levels(self, codes, first):
        return codes.astype(np.float32) * np.float32(2) - np.float32(1)


ENCODINGS[Grouped.kind] = Grouped
ENCODINGS[Signs.kind] = Signs
