"""What a scalar quantizer learns from the values of a group of features: ranges and levels.

A `Distribution` holds the distinct values of a group in ascending order with their weights, so that
weighting a row is repeating it, and everything below is a function of it.
"""

from functools import cached_property

import numpy as np

from fastvq import kernels
from fastvq.vq._rows import spans

__all__ = ["Distribution"]

_BLOCK_VALUES = 1 << 20

# Shares of the weight beyond either end, and shares of the range, at which the search for the range
# of least error begins: the first suit outliers, the others short tails.
_TAILS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.05)
_SHRINKS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
# The search ends when a step brings less than this share of the error, or after so many steps.
_LEAST_GAIN = 1e-4
_MOST_STEPS = 60


class Distribution:
    """Distinct values with their weights.

    Parameters
    ----------
    X : ndarray of shape (n, m)
        Of any dtype and strides that the kernels read; finite.
    weight : ndarray of float64, shape (n,), or None
    dtype : float32 or float64

    Attributes
    ----------
    values : ndarray of `dtype`, ascending
    weight : ndarray of float64

    Notes
    -----
    Small types are counted by their bits, block by block; others are copied and sorted.
    """

    def __init__(self, X, weight, dtype):
        if X.dtype.itemsize <= 2:
            values, weight = _count_bits(X, weight)
            values = values.astype(dtype)
        else:
            values = X.astype(dtype).ravel()
            weight = None if weight is None else np.repeat(weight, X.shape[1])
        self.values, self.weight = kernels.distinct_values(values, weight)

    @cached_property
    def reached(self):
        """Total weight of the values up to each."""
        return np.cumsum(self.weight)

    def quantile(self, share):
        """The smallest value up to which there is this share of the weight."""
        place = np.searchsorted(self.reached, share * self.reached[-1])
        return self.values[min(place, len(self.values) - 1)]

    def quantile_levels(self, n_levels):
        """Means of `n_levels` parts of equal weight, ascending; a value may belong to several."""
        # The sum of the smallest values is linear in their weight between one value and the next.
        centred, scale = self._centred
        sums = np.concatenate([[0.0], np.cumsum(self.weight * centred)])
        ends = np.linspace(0, self.reached[-1], n_levels + 1)
        reached = np.concatenate([[0.0], self.reached])
        means = np.diff(np.interp(ends, reached, sums)) * (n_levels / self.reached[-1])
        # Within the values of its part, which rounding could leave.
        places = np.searchsorted(self.reached, ends)
        low, high = self.values[np.clip([places[:-1], places[1:]], 0, len(self.values) - 1)]
        levels = (means * scale + self._centre).astype(self.values.dtype)
        return np.maximum.accumulate(np.clip(levels, low, high))

    def optimal_levels(self, n_levels):
        """The levels with the least squared error."""
        return kernels.optimal_codebook(self.values, n_levels, sample_weight=self.weight)

    def percentile_range(self, percentile, symmetric):
        """The middle of the distribution that holds this share, in percent, of the weight."""
        if symmetric:
            share = percentile / 100
            folded = object.__new__(Distribution)
            folded.values, folded.weight = kernels.distinct_values(np.abs(self.values), self.weight)
            most = folded.quantile(share)
            return -most, most
        tail = (1 - percentile / 100) / 2
        return self.quantile(tail), self.quantile(1 - tail)

    def least_squares_range(self, n_steps, symmetric):
        """The range whose even division into `n_steps` steps has the least squared error found.

        From the best of some ranges on, two steps alternate that can only lower the error: every
        value goes to its nearest level; offset and step are fitted to the values by linear
        regression on their codes. It ends in a local minimum, never worse than the whole range.
        """
        if len(self.values) == 1:
            return self.percentile_range(100, symmetric)
        centre = 0.0 if symmetric else None
        search = _StepSearch(self, n_steps, centre)
        ranges = [self.percentile_range(100 - 200 * tail, symmetric) for tail in _TAILS]
        low, high = ranges[0]
        middle = low / 2 + high / 2
        ranges += [(middle + (low - middle) * s, middle + (high - middle) * s) for s in _SHRINKS]
        return search.descend(min(ranges, key=search.error))

    @property
    def _centre(self):
        return float(self.values[0]) / 2 + float(self.values[-1]) / 2

    @cached_property
    def _centred(self):
        """Values about their middle, near 1, and by what to multiply them: squares are safe."""
        half = float(self.values[-1]) - self._centre
        scale = 2.0 ** max(int(np.frexp(half)[1]), -1000)
        return (self.values.astype(np.float64) - self._centre) / scale, scale


class _StepSearch:
    """Squared error of even levels on a distribution, and its descent."""

    def __init__(self, distribution, n_steps, centre):
        self._n_steps, self._symmetric = n_steps, centre is not None
        self._values, self._scale = distribution._centred
        self._origin = distribution._centre
        if self._symmetric:  # about zero, where the levels are
            self._values = self._values + self._origin / self._scale
            self._origin = 0.0
        weight = distribution.weight
        sums = (weight, weight * self._values)
        self._sums = np.array([np.concatenate([[0.0], np.cumsum(part)]) for part in sums])
        self._square = float(weight @ self._values**2)
        self._codes = np.arange(n_steps + 1.0)

    def error(self, ends):
        """Squared error of the range with these ends, less a constant."""
        return self._error(*self._as_steps(ends))

    def descend(self, ends):
        best, (low, step) = ends, self._as_steps(ends)
        error = self._error(low, step)
        for _ in range(_MOST_STEPS):
            low, step = self._regression(low, step)
            if not step > 0:
                break
            lowered = self._error(low, step)
            if not lowered < error:
                break
            best = self._as_ends(low, step)
            if error - lowered < _LEAST_GAIN * max(lowered, 0):
                break
            error = lowered
        return best

    def _as_steps(self, ends):
        low, high = ((float(end) - self._origin) / self._scale for end in ends)
        return low, (high - low) / self._n_steps

    def _as_ends(self, low, step):
        return tuple(end * self._scale + self._origin for end in (low, low + step * self._n_steps))

    def _cells(self, low, step):
        """Weight of the values nearest to each level, and their sum."""
        thresholds = low + (self._codes[1:] - 0.5) * step
        places = np.searchsorted(self._values, thresholds, side="right")
        ends = np.concatenate([[0], places, [len(self._values)]])
        return np.diff(self._sums[:, ends], axis=1)

    def _error(self, low, step):
        weight, total = self._cells(low, step)
        levels = low + self._codes * step
        return self._square + float(levels @ (levels * weight - 2 * total))

    def _regression(self, low, step):
        """Offset and step that fit the values best, their codes given."""
        weight, total = self._cells(low, step)
        if self._symmetric:
            codes = self._codes - self._n_steps / 2
            step = float(codes @ total) / max(float(codes**2 @ weight), 1e-300)
            return -step * self._n_steps / 2, step
        mean = float(self._codes @ weight) / float(weight.sum())
        codes = self._codes - mean
        spread = float(codes**2 @ weight)
        step = float(codes @ total) / spread if spread > 0 else 0.0
        return float(total.sum()) / float(weight.sum()) - mean * step, step


def _count_bits(X, weight):
    """All values that a type of one or two bytes can have and that occur, with their weights."""
    bits = np.dtype(f"u{X.dtype.itemsize}")
    counts = np.zeros(256**X.dtype.itemsize)
    for span in spans(len(X), max(1, _BLOCK_VALUES // X.shape[1])):
        block = np.ascontiguousarray(X[span]).view(bits)
        weights = None if weight is None else np.repeat(weight[span], X.shape[1])
        counts += np.bincount(block.ravel(), weights, len(counts))
    found = np.flatnonzero(counts)
    return found.astype(bits).view(X.dtype), counts[found]
