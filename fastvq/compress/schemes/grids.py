"""Ways to store a weight in few bits, as two steps: what levels there are, and which a value gets.

A scheme looks at a matrix and decides on its levels: that is a :class:`Grid`. The grid then gives
columns their codes, a few at a time if need be: error compensation changes the columns that are
left after each (`fastvq/compress/compensation.py`), and works so with any scheme.

Rows are outputs and columns inputs. `importance` says how much an error in a column weighs: the
mean square of what a layer reads there, the diagonal of its Hessian.
"""

from __future__ import annotations

import math

import numpy as np

from fastvq.compress.compensation import output_error, refitted_scales
from fastvq.runtime.coded import Coded, float16_scales

__all__ = ["Grid", "Groups", "ScaledGrid", "encoded", "matrix_of"]

_AT_ONCE = 1 << 21  # values that are worked on at a time


class Grid:
    """The levels of a matrix.

    Attributes
    ----------
    step : int
        Columns that get their codes together.
    """

    step = 1

    def nearest(self, first: int, values: np.ndarray) -> np.ndarray:
        """Codes of columns from `first` on: (n_rows, columns / step), or more dimensions.

        Parameters
        ----------
        first : int
            A multiple of `step`.
        values : ndarray of float, shape (n_rows, columns)
        """
        raise NotImplementedError

    def values(self, first: int, codes: np.ndarray) -> np.ndarray:
        """What these codes stand for: (n_rows, columns), float32; as the tensor decodes them."""
        raise NotImplementedError

    def tensor(self, shape, codes: np.ndarray, leading=1) -> Coded:
        """The weight of this shape with codes of all columns."""
        raise NotImplementedError

    def refit(self, codes: np.ndarray, matrix: np.ndarray, gram: np.ndarray, kept=None) -> None:
        """Move what levels are scaled by so that a layer's outputs are kept, for these codes.

        Parameters
        ----------
        matrix : ndarray (n_rows, width)
        gram : ndarray (width, width)
            E[x xᵀ] of what the layer reads.
        kept : ((rows, columns), values), optional
            What stands in the place of some levels, and stays.
        """


class ScaledGrid(Grid):
    """Levels times scales of groups of columns, which are stored as float16."""

    def __init__(self, groups, scales):
        self._groups = groups
        self._halves, self._exponent, self._scales = stored(scales)

    def levels(self, first: int, codes: np.ndarray) -> np.ndarray:
        """What codes of columns from `first` on stand for before they are scaled, float32."""
        raise NotImplementedError

    def values(self, first, codes):
        levels = self.levels(first, codes)
        return levels * self._groups.spread(self._scales, first, codes.shape[1])

    def refit(self, codes, matrix, gram, kept=None):
        """By least squares; a row whose outputs that does not help keeps its scales."""
        levels, width = np.array(self.levels(0, codes)), codes.shape[1]
        if kept is not None:
            places, values = kept
            levels[places], matrix = 0, matrix.astype(np.float64)
            matrix[places] -= values
        scales = refitted_scales(matrix, levels, self._scales, gram, self._groups.size)
        _, _, moved = stored(scales)
        before, after = (
            output_error(matrix, levels * self._groups.spread(each, 0, width), gram)
            for each in (self._scales, moved)
        )
        chosen = np.where((after < before)[:, None], moved, self._scales)
        self._halves, self._exponent, self._scales = stored(chosen)


def encoded(scheme, weight, *, importance=None, leading=1) -> Coded:
    """A weight in a scheme: every value as the nearest of the levels.

    Parameters
    ----------
    scheme : with `fit(matrix, importance) -> Grid`, or with `encode(weight) -> EncodedTensor`
    weight : ndarray of float32
    importance : ndarray of float64 (width,), optional
    leading : int
        Axes of the weight that count rows.
    """
    if not hasattr(scheme, "fit"):  # no codes
        return scheme.encode(weight)
    matrix = matrix_of(weight, leading)
    grid = scheme.fit(matrix, importance)
    return grid.tensor(weight.shape, grid.nearest(0, matrix), leading)


def matrix_of(weight, leading=1):
    """A weight as rows, counted by its first axes."""
    return weight.reshape(math.prod(weight.shape[:leading]), -1)


class Groups:
    """Rows cut into groups of columns, and the scale of each.

    Parameters
    ----------
    width, group : int
        Columns, and those of a group; a group as wide as the row, or wider, is the row: 0.
    """

    def __init__(self, width, group):
        self.width = width
        self.group = 0 if not group or group >= width else group
        self.size = self.group or max(width, 1)
        self.n = -(-width // self.size) if width else 1

    def cut(self, matrix):
        """(n_rows, width) as (n_rows, n, size), zeros where the last group ends early."""
        padded = np.zeros((len(matrix), self.n * self.size), matrix.dtype)
        padded[:, : self.width] = matrix
        return padded.reshape(len(matrix), self.n, self.size)

    def weights(self, importance):
        """How much each column counts, (n, size): zero beyond the end."""
        weights = np.ones(self.width) if importance is None else _usable(importance)
        return self.cut(weights[None])[0]

    def spread(self, values, first, count):
        """Values (n_rows, n) of groups for `count` columns from `first` on."""
        of_column = np.arange(first, first + count) // self.size
        return values[:, of_column]

    def by_rows(self, matrix, fit, *arrays):
        """What `fit(part, *parts)` gives for blocks of rows, put together."""
        step = max(1, _AT_ONCE // max(self.width, 1))
        parts = [
            fit(self.cut(matrix[at : at + step]), *(a[at : at + step] for a in arrays))
            for at in range(0, len(matrix), step)
        ]
        if isinstance(parts[0], tuple):
            return tuple(np.concatenate(each) for each in zip(*parts, strict=True))
        return np.concatenate(parts)


def stored(scales):
    """Scales as float16, their exponent, and what both stand for, float32."""
    halves, exponent = float16_scales(scales)
    return halves, exponent, np.ldexp(halves.astype(np.float32), exponent)


def inverse(scales):
    """1 / scale, and 0 of a scale of 0."""
    scales = np.asarray(scales, np.float64)
    return np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)


def _usable(importance):
    """Importance of mean 1 in which no column counts for nothing: dead inputs may wake."""
    importance = np.asarray(importance, np.float64)
    mean = importance.mean() if importance.size else 0.0
    if not mean > 0:
        return np.ones_like(importance)
    return np.maximum(importance / mean, 1e-4)
