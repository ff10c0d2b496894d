"""The largest values of a weight kept as they are, beside the codes of all others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastvq.compress.schemes.grids import Grid, Groups, inverse
from fastvq.runtime.patched import Patched

__all__ = ["OutlierScheme"]

_BYTES = 4  # of a value that is kept, with its place
_LEAST_HALF, _MOST_HALF = 2.0**-14, 6e4  # what float16 has all its digits for


class OutlierScheme(NamedTuple):
    """Another scheme, and a share of the values that it has no part in.

    Attributes
    ----------
    scheme : GroupedScheme or CodebookScheme
    share : float
        Of the values: the largest beside the deviation of their group, by the importance of their
        column.

    Notes
    -----
    Where errors are made up for, a value that is kept takes part: it moves as it should, without
    being rounded to a level.
    """

    scheme: NamedTuple
    share: float = 0.005

    @property
    def group(self):
        return self.scheme.group

    def nbytes(self, n_rows, width) -> int:
        """Bytes of a weight of this form; places nearer to each other than 65536."""
        return self.scheme.nbytes(n_rows, width) + _BYTES * self._count(round(n_rows) * width)

    def _count(self, size):
        return min(size, round(self.share * size))

    def fit(self, matrix, importance=None) -> Grid:
        places = self._places(matrix, importance)
        rest = np.array(matrix)
        rest.reshape(-1)[places] = 0
        return _OutlierGrid(self.scheme.fit(rest, importance), matrix, places)

    def _places(self, matrix, importance):
        """Which values are kept, in C order; of equals the first."""
        count = self._count(matrix.size)
        if not count:
            return np.empty(0, np.intp)
        groups = Groups(matrix.shape[1], self.group)
        weights = groups.weights(importance)
        sizes = groups.by_rows(matrix, lambda part: _sizes(part.astype("f8"), weights))
        sizes = sizes.reshape(len(matrix), -1)[:, : matrix.shape[1]].ravel()
        least = np.partition(sizes, -count)[-count]
        above = np.flatnonzero(sizes > least)
        equal = np.flatnonzero(sizes == least)[: count - len(above)]
        return np.sort(np.concatenate([above, equal]))


def _sizes(cut, weights):
    """How far values (n_rows, n, size) lie out, in deviations of their group."""
    square = (cut**2 * weights).sum(axis=2) * inverse(weights.sum(axis=1))
    return np.abs(cut) * np.sqrt(weights) * inverse(np.sqrt(square))[:, :, None]


class _OutlierGrid(Grid):
    """Codes of another grid; the values that are kept are those that were last asked for codes."""

    def __init__(self, base, matrix, places):
        self.step, self._base, self._width = base.step, base, matrix.shape[1]
        self._places = places
        self._rows, self._columns = np.divmod(places, max(self._width, 1))
        self._by_column = np.argsort(self._columns, kind="stable")
        self._sorted = self._columns[self._by_column]
        sizes = np.abs(matrix.reshape(-1)[places])
        fit = ((sizes > _LEAST_HALF) & (sizes < _MOST_HALF)) | (sizes == 0)
        self._kept = np.zeros(len(places), np.float16 if fit.all() else np.float32)

    def _within(self, first, count):
        """Which of the kept values stand in these columns, and where."""
        here = self._by_column[slice(*np.searchsorted(self._sorted, (first, first + count)))]
        return here, (self._rows[here], self._columns[here] - first)

    def nearest(self, first, values):
        here, places = self._within(first, values.shape[1])
        self._kept[here] = values[places]
        return self._base.nearest(first, values)

    def values(self, first, codes):
        found = np.array(self._base.values(first, codes))
        here, places = self._within(first, found.shape[1])
        found[places] = self._kept[here]
        return found

    def refit(self, codes, matrix, gram, kept=None):
        places = self._rows, self._columns
        self._base.refit(codes, matrix, gram, (places, self._kept.astype(np.float64)))

    def tensor(self, shape, codes, leading=1):
        return Patched.of(self._base.tensor(shape, codes, leading), self._places, self._kept)
