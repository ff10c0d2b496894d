"""Weights as evenly spaced levels: real = scale · (q − zero_point)."""

from __future__ import annotations

import numpy as np

from fastvq.runtime.encoding import ENCODINGS, EncodedTensor

__all__ = ["Affine"]

_FEWEST_BITS, _MOST_BITS = 2, 8


class Affine(EncodedTensor):
    """Whole numbers with a scale for each row, or one for all.

    Parameters
    ----------
    values : ndarray of int8
        Within `bits` bits, two's complement.
    scales : ndarray of float32, shape (len(values),) or (1,)
        Finite and not negative. A row is `values[i]`: the output channel of a Dense or Conv weight.
    zero_points : ndarray of int8 of the shape of `scales`, optional
        Zeros where left out.
    bits : int from 2 to 8
        What the values need. They are stored in bytes.
    """

    kind = "affine"
    dtype = np.dtype(np.float32)

    def __init__(self, values, scales, zero_points=None, bits=8):
        self.values, self.scales = np.ascontiguousarray(values), np.ascontiguousarray(scales)
        self.zero_points = None if zero_points is None else np.ascontiguousarray(zero_points)
        self.bits = bits
        self.shape = self.values.shape
        self._check()

    def parts(self):
        parts = {"values": self.values, "scales": self.scales}
        if self.zero_points is not None:
            parts["zero_points"] = self.zero_points
        return parts

    def attributes(self):
        return {"bits": self.bits}

    @classmethod
    def from_parts(cls, parts, attributes):
        if not {"values", "scales"} <= set(parts) <= {"values", "scales", "zero_points"}:
            raise ValueError(f"affine values have other parts than {sorted(parts)}")
        if set(attributes) != {"bits"}:
            raise ValueError(f"affine values have the attribute bits, got {dict(attributes)}")
        return cls(parts["values"], parts["scales"], parts.get("zero_points"), attributes["bits"])

    def decode(self):
        """float32(q − zero_point) · scale, in float32."""
        levels = self.rows(0, len(self.values))
        levels.flags.writeable = False
        return levels

    def rows(self, first, stop):
        across = (-1, *[1] * (len(self.shape) - 1))
        part = slice(first, stop) if len(self.scales) == len(self.values) else slice(None)
        levels = self.values[first:stop].astype(np.float32)
        if self.zero_points is not None:
            levels -= self.zero_points[part].astype(np.float32).reshape(across)
        levels *= self.scales[part].reshape(across)
        return levels

    def int8(self):
        """Values, and the scale of each row, for kernels; a ValueError if it has zero points."""
        if self.zero_points is not None and self.zero_points.any():
            raise ValueError("integer kernels take weights without zero points")
        return self.values, np.broadcast_to(self.scales, self.shape[:1])

    def _check(self):
        if type(self.bits) is not int or not _FEWEST_BITS <= self.bits <= _MOST_BITS:
            raise ValueError(f"bits must be {_FEWEST_BITS} to {_MOST_BITS}, got {self.bits!r}")
        if self.values.dtype != np.int8 or not self.shape:
            raise ValueError(f"values must be int8 rows, got {self.shape} of {self.values.dtype}")
        most = 1 << (self.bits - 1)
        if self.values.size and not -most <= self.values.min() <= self.values.max() < most:
            raise ValueError(f"values do not fit in {self.bits} bits")
        sizes = (self.shape[:1], (1,))
        if self.scales.dtype != np.float32 or self.scales.shape not in sizes:
            raise ValueError(f"scales must be float32 of shape {sizes[0]}, got {self.scales.shape}")
        if not (np.isfinite(self.scales).all() and (self.scales >= 0).all()):
            raise ValueError("scales must be finite and not negative")
        points = self.zero_points
        if points is not None and (points.dtype != np.int8 or points.shape != self.scales.shape):
            raise ValueError(f"zero_points must be int8 of shape {self.scales.shape}")


ENCODINGS[Affine.kind] = Affine
