"""Evenly spaced levels for groups of columns: "int4" and its neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastvq.compress.schemes.grids import Grid, Groups, ScaledGrid, inverse
from fastvq.runtime.bits import packed_size
from fastvq.runtime.grouped import Grouped

__all__ = ["GroupedGrid", "GroupedScheme"]

# Shares of the range that are tried. Few levels do better on a part of it: on Gaussian groups of 64
# the best share is about 0.95 at 4 bits and 0.65 at 2.
_SHARES = np.linspace(1.1, 0.4, 29)
_REFINED = 2  # times that codes and scale are fitted to each other after that


class GroupedScheme(NamedTuple):
    """Whole numbers with a scale, and without `symmetric` a zero point, for each group.

    Attributes
    ----------
    bits : int from 2 to 8
    group : int
        Columns of a group; 0: a scale for each row.
    symmetric : bool

    Notes
    -----
    Scales have the least squared error of those that are tried: shares of the range, and then what
    least squares gives for the codes of the best. A symmetric group has one level more on the one
    side; it lies where the largest value does, as a scale may be negative.
    """

    bits: int = 4
    group: int = 64
    symmetric: bool = True

    def nbytes(self, n_rows, width) -> int:
        """Bytes of a weight of this form."""
        n_rows, groups = round(n_rows), Groups(width, self.group)
        points = 0 if self.symmetric else packed_size(n_rows * groups.n, self.bits)
        return packed_size(n_rows * width, self.bits) + 2 * n_rows * groups.n + points

    def fit(self, matrix, importance=None) -> Grid:
        groups = Groups(matrix.shape[1], self.group)
        weights = groups.weights(importance)
        search = self._symmetric if self.symmetric else self._with_zero_points
        scales, points = groups.by_rows(matrix, lambda part: search(part.astype("f8"), weights))
        return GroupedGrid(self, groups, scales, None if self.symmetric else points)

    def _symmetric(self, cut, weights):
        half = 1 << (self.bits - 1)
        largest = np.take_along_axis(cut, np.abs(cut).argmax(axis=2)[:, :, None], 2)[:, :, 0]
        best = _Best(cut, weights, np.full(largest.shape, half, np.uint8), 2 * half - 1)
        for share in _SHARES:
            best.offer(-largest / half * share)
        best.refine()
        return best.scales, best.points

    def _with_zero_points(self, cut, weights):
        most = (1 << self.bits) - 1
        low, high = cut.min(axis=2, initial=0), cut.max(axis=2, initial=0)
        span = high - low
        points = np.rint(-low * inverse(span) * most).astype(np.uint8)
        best = _Best(cut, weights, points, most)
        for share in _SHARES:
            best.offer(span / most * share)
        best.refine()
        return best.scales, best.points


class _Best:
    """The scales with the least squared error so far, of groups (n_rows, n, size)."""

    def __init__(self, cut, weights, points, most):
        self._cut, self._weights, self.points, self._most = cut, weights, points, most
        self.scales = np.zeros(points.shape)
        self._errors = np.full(points.shape, np.inf)

    def offer(self, scales):
        levels = self._levels(scales)
        errors = ((levels * scales[:, :, None] - self._cut) ** 2 * self._weights).sum(axis=2)
        better = errors < self._errors
        self._errors = np.where(better, errors, self._errors)
        self.scales = np.where(better, scales, self.scales)

    def refine(self):
        for _ in range(_REFINED):
            levels = self._levels(self.scales)
            weighted = levels * self._weights
            above, below = (weighted * self._cut).sum(axis=2), (weighted * levels).sum(axis=2)
            self.offer(above * inverse(below))

    def _levels(self, scales):
        points = self.points[:, :, None].astype(np.float64)
        q = np.rint(self._cut * inverse(scales)[:, :, None]) + points
        return np.clip(q, 0, self._most) - points


class GroupedGrid(ScaledGrid):
    """Levels of a :class:`GroupedScheme`, with these scales and zero points (n_rows, n_groups)."""

    def __init__(self, scheme, groups, scales, points):
        super().__init__(groups, scales)
        self._scheme, self._points = scheme, points

    def _zero(self, first, count):
        if self._points is None:
            return np.float32(1 << (self._scheme.bits - 1))
        return self._groups.spread(self._points, first, count).astype(np.float32)

    def nearest(self, first, values):
        count = values.shape[1]
        scales = self._groups.spread(self._scales, first, count)
        q = np.rint(values * inverse(scales)) + self._zero(first, count)
        return np.clip(q, 0, (1 << self._scheme.bits) - 1).astype(np.uint8)

    def levels(self, first, codes):
        return codes.astype(np.float32) - self._zero(first, codes.shape[1])

    def tensor(self, shape, codes, leading=1):
        return Grouped.of(
            codes.reshape(shape), self._halves, self._points, bits=self._scheme.bits,
            group=self._groups.group, exponent=self._exponent, leading=leading,
        )  # fmt: skip
