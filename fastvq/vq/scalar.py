"""Scalar quantization: every value by itself, as the number of a level.

A row of d features becomes d codes of `n_bits` bits. Levels are shared by all features, by groups
of them, or belong to one feature each, and are

- evenly spaced ("uniform"): level q is ``scale · (q − zero_point)``, two numbers a group;
- the means of parts of equal weight ("quantile");
- those with the least squared error that there can be ("optimal"): k-means in one dimension,
  solved exactly (Grønlund et al. 2017; see `fastvq/_optimal.py`). For a density f and many levels
  the error falls to (∫ f^⅓)³ / (12 k²) (Panter & Dite 1951).

What is learnt from values is in `_values`, the loops over them in `_kernels/scalar.pyx`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.metaestimators import available_if

from fastvq import _threads, kernels
from fastvq._validation import as_count, as_nonnegative, as_weights, as_word
from fastvq.vq._base import BaseQuantizer
from fastvq.vq._pool import in_threads
from fastvq.vq._search import Parts
from fastvq.vq._values import Distribution

__all__ = ["ScalarQuantizer"]

SCHEMES = {
    "uniform": ("affine", "linear"),
    "quantile": ("quantiles",),
    "optimal": ("kmeans", "lloyd-max"),
}
GRANULARITIES = {
    "tensor": ("array",),
    "feature": ("channel", "column"),
    "group": ("groups",),
}
CALIBRATIONS = {
    "minmax": (),
    "percentile": (),
    "mse": ("least squares",),
}

_MOST_BITS = 16
# Bytes for each value of the groups at work: sorted with its weight and sums; cut into segments.
_SORTED_BYTES, _CUT_BYTES = 120, 180
# Squared errors of larger values than 2**480 add up to more than float64 can hold.
_LARGEST = 2.0**480
# Between these, steps and values can be worked on in a dtype without overflow or loss of digits.
_ORDINARY = {
    np.dtype(np.float32): (2.0**-100, 2.0**100),
    np.dtype(np.float64): (2.0**-900, 2.0**900),
}


def _streams(estimator):
    scheme = as_word(estimator.scheme, "scheme", SCHEMES)
    calibration = as_word(estimator.calibration, "calibration", CALIBRATIONS)
    return (scheme, calibration) == ("uniform", "minmax")


class ScalarQuantizer(BaseQuantizer):
    """Quantizer of single values.

    Parameters
    ----------
    n_bits : int, default=8
        Bits of a code, from 1 to 16.
    scheme : {"uniform", "quantile", "optimal"}, default="uniform"
        "uniform": evenly spaced levels over a range, see `calibration`. "quantile": the means of
        parts of equal weight. "optimal": the levels with the least squared error.
    granularity : {"tensor", "feature", "group"}, default="feature"
        What shares its levels: all features; none; or `group_size` neighbouring ones.
    symmetric : bool, default=False
        Only for "uniform": whether the range is symmetric about zero and zero a level. Then
        `zero_point_` is 2**(n_bits - 1) and code 0 is not used. (With one bit, the levels are plus
        and minus the same number, and `zero_point_` is 0.5.)
    group_size : int, optional
        Features of a group; the last one may have fewer. Needed for "group" and for nothing else.
    calibration : {"minmax", "percentile", "mse"}, default="minmax"
        Only for "uniform": the range of the levels. "minmax": from the smallest to the largest
        value. "percentile": the middle of the values that holds `percentile` percent of the weight.
        "mse": the range with the least squared error, by a search from several ranges that ends in
        a local minimum, never worse than "minmax".
    percentile : float, default=99.9
        Above 0 and up to 100. (With `symmetric`, of the absolute values.)
    n_threads : int, optional
        By default what `fastvq.set_num_threads`, the environment or OpenMP say. Results do not
        depend on it.

    Attributes
    ----------
    scale_, zero_point_ : ndarray of float64 of shape (n_groups,)
        Only with "uniform": level q of a group is ``scale_ * (q - zero_point_)``. Any real number
        may be a zero point: the first level is the lower end of the range, to the last digit.
    range_ : ndarray of shape (n_groups, 2)
        Only with "uniform": first and last level that values may get; a value outside gets the one
        or the other. A group of a single value has both there, and a scale of 1.
    codebooks_ : ndarray of shape (n_groups, 2**n_bits)
        Only with "quantile" and "optimal": the levels in ascending order. Where there are fewer
        distinct values than levels, the largest is repeated, and its first place is its code.
    n_bits_ : int
    group_size_ : int
        Features of a group.
    code_size_ : int
        Bytes of one packed row: n_features · n_bits / 8, rounded up.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Only where the rows came with names.

    Notes
    -----
    The code of a value is a function of that value and the levels alone. Uniform: with o the value
    of level 0, it is (x − o) · (1 / scale) rounded to the nearest integer, of two to the even one,
    and clamped to the codes of `range_`; both operations in float32, or in float64 where fitted on
    float64. Otherwise: the nearest level in exact arithmetic, of two the lower.

    `partial_fit` exists where the range can grow with the rows: for "uniform" with "minmax".

    "minmax" reads the rows once and copies nothing. All else sorts the values of a group: a copy of
    them, and for "optimal" some 100 bytes for each distinct value, a group for each thread at a
    time. Rows of float16, uint8 and int8 are counted instead, and never copied.

    References
    ----------
    P. F. Panter, W. Dite, "Quantization distortion in pulse-count modulation with nonuniform
    spacing of levels", Proc. IRE 39 (1951).
    S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28 (1982).
    A. Grønlund et al., "Fast exact k-means, k-medians and Bregman divergence clustering in 1D",
    2017.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq import ScalarQuantizer
    >>> X = np.array([[0.0, -1.0], [0.5, 1.0], [2.0, 0.2]], dtype=np.float32)
    >>> sq = ScalarQuantizer(n_bits=2).fit(X)
    >>> sq.transform(X)
    array([[0, 0],
           [1, 3],
           [3, 2]], dtype=uint8)
    >>> sq.inverse_transform([[1, 2]]).round(3)
    array([[0.667, 0.333]], dtype=float32)
    >>> ScalarQuantizer(n_bits=1, scheme="optimal").fit(X).codebooks_
    array([[ 0.25,  2.  ],
           [-1.  ,  0.6 ]], dtype=float32)
    """

    _compiled_of = ("codebooks_", "scale_", "zero_point_", "range_", "n_bits_", "group_size_")

    def __init__(
        self,
        n_bits: int = 8,
        *,
        scheme: str = "uniform",
        granularity: str = "feature",
        symmetric: bool = False,
        group_size: int | None = None,
        calibration: str = "minmax",
        percentile: float = 99.9,
        n_threads: int | None = None,
    ) -> None:
        self.n_bits = n_bits
        self.scheme = scheme
        self.granularity = granularity
        self.symmetric = symmetric
        self.group_size = group_size
        self.calibration = calibration
        self.percentile = percentile
        self.n_threads = n_threads

    @classmethod
    def _of_steps(cls, scale, zero_point, ends, n_features, n_bits, granularity):
        """The quantizer with these `scale_`, `zero_point_` and `range_`; nothing is fitted."""
        quantizer = cls(n_bits, granularity=granularity)
        quantizer.n_features_in_ = n_features
        quantizer.scale_, quantizer.zero_point_, quantizer.range_ = scale, zero_point, ends
        quantizer._keep_sizes(quantizer._settings(n_features))
        return quantizer

    def fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> "ScalarQuantizer":
        """Fit the levels.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional
            To give a row the weight 2 is to have it twice.

        Returns
        -------
        self : ScalarQuantizer

        Raises
        ------
        ValueError, TypeError
            For input that is not a finite 2-D array of numbers, and for parameters out of range.
        """
        with self._all_or_nothing():
            rows = self._checked(X, reset=True)
            weight = as_weights(sample_weight, len(rows))
            settings = self._settings(rows.shape[1])
            ends = self._extremes(rows, weight, settings)
            self._forget("scale_", "zero_point_", "range_", "codebooks_")
            if settings.scheme == "uniform":
                if settings.calibration != "minmax":
                    ends = self._calibrated(rows, weight, settings, ends.dtype)
                self._keep_range(ends, settings)
            else:
                self._keep_levels(self._levels(rows, weight, settings, ends.dtype), settings)
        return self

    @available_if(_streams)
    def partial_fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> "ScalarQuantizer":
        """Widen the ranges to those of one more batch of rows.

        After all batches the levels are those that `fit` would have found on all rows at once. Rows
        that were encoded before must be encoded again.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional
            Rows without weight do not count; else it makes no difference.

        Returns
        -------
        self : ScalarQuantizer
        """
        with self._all_or_nothing():
            first = "range_" not in vars(self)
            rows = self._checked(X, reset=first)
            weight = as_weights(sample_weight, len(rows))
            settings = self._settings(rows.shape[1])
            ends = self._extremes(rows, weight, settings)
            if not first:
                ends = _united(self.range_, ends)
            self._forget("codebooks_")
            self._keep_range(ends, settings)
        return self

    # ---- how it is fitted ------------------------------------------------------------------

    def _settings(self, n_features):
        """The parameters of a fit, checked."""
        n_bits = as_count(self.n_bits, "n_bits")
        if n_bits > _MOST_BITS:
            raise ValueError(f"n_bits must be from 1 to {_MOST_BITS}, got {n_bits}")
        scheme = as_word(self.scheme, "scheme", SCHEMES)
        calibration = as_word(self.calibration, "calibration", CALIBRATIONS)
        percentile = as_nonnegative(self.percentile, "percentile")
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile must be above 0 and up to 100, got {self.percentile!r}")
        if not isinstance(self.symmetric, (bool, np.bool_)):
            raise TypeError(f"symmetric must be True or False, got {self.symmetric!r}")
        if self.symmetric and scheme != "uniform":
            raise ValueError(f"symmetric=True is for scheme='uniform', got scheme={self.scheme!r}")
        _threads.effective(self.n_threads)  # say now what is wrong with it
        return _Settings(
            n_bits, scheme, calibration, percentile, bool(self.symmetric),
            self._features_of_a_group(n_features), n_features,
        )  # fmt: skip

    def _features_of_a_group(self, n_features):
        granularity = as_word(self.granularity, "granularity", GRANULARITIES)
        if granularity == "group":
            return min(as_count(self.group_size, "group_size"), n_features)
        if self.group_size is not None:
            raise ValueError(
                f"group_size is for granularity='group', got group_size={self.group_size!r} with "
                f"granularity={self.granularity!r}"
            )
        return n_features if granularity == "tensor" else 1

    def _extremes(self, X, weight, settings):
        """Smallest and largest value of each group, (n_groups, 2)."""
        least, most = kernels.extremes(X, n_threads=self.n_threads)
        if weight is not None and not weight.all():
            rows = np.flatnonzero(weight)
            least, most = kernels.extremes(X, rows=rows, n_threads=self.n_threads)
        starts = np.arange(0, X.shape[1], settings.group_size)
        ends = np.column_stack(
            [np.minimum.reduceat(least, starts), np.maximum.reduceat(most, starts)]
        )
        if float(np.abs(ends).max()) > _LARGEST:
            raise ValueError(
                f"X holds values above {_LARGEST:.3g}, whose squared errors overflow float64: "
                "divide X by a constant first"
            )
        if settings.symmetric:
            ends = np.abs(ends).max(axis=1, keepdims=True) * np.array([-1, 1], ends.dtype)
        return ends

    def _calibrated(self, X, weight, settings, dtype):
        """Ends of each group's range, (n_groups, 2), found from the distribution of its values."""

        def ends(values):
            if settings.calibration == "percentile":
                return values.percentile_range(settings.percentile, settings.symmetric)
            return values.least_squares_range(settings.n_steps, settings.symmetric)

        return np.array(self._of_groups(X, weight, settings, dtype, ends), dtype)

    def _levels(self, X, weight, settings, dtype):
        def levels(values):
            if settings.scheme == "quantile":
                return values.quantile_levels(1 << settings.n_bits)
            return values.optimal_levels(1 << settings.n_bits)

        return np.array(self._of_groups(X, weight, settings, dtype, levels), dtype)

    def _of_groups(self, X, weight, settings, dtype, learn):
        """``learn(distribution)`` for each group: several at a time, each by one thread."""

        def learn_group(start):
            return learn(Distribution(X[:, start : start + settings.group_size], weight, dtype))

        starts = range(0, X.shape[1], settings.group_size)
        return in_threads(learn_group, starts, _threads.effective(self.n_threads))

    def _forget(self, *attributes):
        """Drop what a fit with another scheme has left."""
        for name in attributes:
            if name in vars(self):
                delattr(self, name)

    def _keep_range(self, ends, settings):
        """Become the quantizer with even levels over these ranges."""
        low, high = ends.astype(np.float64).T
        first, last = settings.codes_in_use
        tiny = np.finfo(np.float64).smallest_subnormal
        scale = np.where(high > low, np.maximum((high - low) / (last - first), tiny), 1.0)
        zero_point = settings.symmetric_zero if settings.symmetric else -low / scale
        self.scale_, self.range_ = scale, ends
        self.zero_point_ = np.broadcast_to(zero_point, scale.shape).copy()
        self._keep_sizes(settings)

    def _keep_levels(self, codebooks, settings):
        self.codebooks_ = codebooks
        self._keep_sizes(settings)

    def _keep_sizes(self, settings):
        self.n_bits_, self.group_size_ = settings.n_bits, settings.group_size
        self._settle()

    # ---- how it encodes --------------------------------------------------------------------

    @property
    def _code_bits(self):
        return (self.n_bits_,) * self.n_features_in_

    @property
    def _code_range(self):
        return 1 << self.n_bits_

    @property
    def _codebook_dtype(self):
        return (self.codebooks_ if "codebooks_" in vars(self) else self.range_).dtype

    def _encode(self, X, codes):
        compiled = self._ready()
        if compiled.steps is not None:
            kernels.encode_even(X, compiled.steps, codes=codes, n_threads=self.n_threads)
            return
        kernels.encode_levels(X, compiled.levels, codes=codes, n_threads=self.n_threads)
        if compiled.ends is not None:
            np.clip(codes, *compiled.ends, out=codes)

    def _decode(self, codes, out):
        compiled = self._ready()
        codes = np.ascontiguousarray(codes, np.uint8 if self.n_bits_ <= 8 else np.uint16)
        if compiled.steps is not None:
            kernels.decode_even(codes, compiled.steps, out=out, n_threads=self.n_threads)
        else:
            kernels.decode_levels(codes, compiled.levels, out=out, n_threads=self.n_threads)

    def _parts(self):
        """A codebook for each feature: its levels."""
        n_levels, d = self._code_range, self.n_features_in_
        levels = np.empty((n_levels, d), self._codebook_dtype)
        self._decode(np.repeat(np.arange(n_levels)[:, None], d, axis=1), levels)
        return Parts([levels[:, [f]] for f in range(d)], [slice(f, f + 1) for f in range(d)])

    def _memory(self, n_rows, n_features, itemsize):
        settings = self._settings(n_features)
        threads = _threads.effective(self.n_threads)
        n_groups = -(-n_features // settings.group_size)
        # Rows converted; parameters of each feature, repeated.
        fit = transform = threads * 128 * 1024 + (threads + 4) * 8 * (n_features + 128) * itemsize
        if (settings.scheme, settings.calibration) != ("uniform", "minmax"):
            each = _CUT_BYTES if settings.scheme == "optimal" else _SORTED_BYTES
            fit += min(threads, n_groups) * settings.group_size * n_rows * each
        if settings.scheme != "uniform":
            tables = n_groups * (1 << settings.n_bits) * (4 * itemsize + 16)
            fit, transform = fit + tables, transform + tables
        codes = n_rows * n_features * (1 if settings.n_bits <= 8 else 2)
        return fit, transform + codes

    def _compile(self):
        group = np.arange(self.n_features_in_) // self.group_size_
        if "codebooks_" in vars(self):
            return _Compiled(levels=kernels.Levels(self.codebooks_, group))
        place = self.range_.astype(np.float64) / self.scale_[:, None] + self.zero_point_[:, None]
        ends = np.clip(np.rint(place), 0, self._code_range - 1).T
        smallest, largest = _ORDINARY[self.range_.dtype]
        if self.scale_.min() >= smallest and np.abs(self.range_).max() <= largest:
            scale, zero_point = self.scale_[group], self.zero_point_[group]
            steps = kernels.Steps(scale, zero_point, *ends[:, group], self.range_.dtype)
            return _Compiled(steps=steps)
        # The same levels, found by comparing: differences would overflow or lose their digits.
        levels = self.scale_[:, None] * (np.arange(self._code_range) - self.zero_point_[:, None])
        limit = np.finfo(self.range_.dtype).max
        levels = np.clip(levels, -limit, limit).astype(self.range_.dtype)
        ends = ends[:, group].astype(np.uint8 if self.n_bits_ <= 8 else np.uint16)
        return _Compiled(levels=kernels.Levels(levels, group), ends=ends)


class _Settings(NamedTuple):
    n_bits: int
    scheme: str
    calibration: str
    percentile: float
    symmetric: bool
    group_size: int
    n_features: int

    @property
    def codes_in_use(self):
        """First and last code of even levels."""
        return int(self.symmetric and self.n_bits > 1), (1 << self.n_bits) - 1

    @property
    def n_steps(self):
        first, last = self.codes_in_use
        return last - first

    @property
    def symmetric_zero(self):
        return sum(self.codes_in_use) / 2


class _Compiled(NamedTuple):
    """What is made from the fitted arrays once, for this CPU: either steps or levels."""

    steps: kernels.Steps | None = None
    levels: kernels.Levels | None = None
    ends: np.ndarray | None = None  # first and last code of each feature, where levels need that


def _united(ends, others):
    """The ranges that hold both, in the dtype of the first."""
    if ends.shape != others.shape:
        raise ValueError(
            f"partial_fit goes on with {len(ends)} groups of features, but granularity and "
            f"group_size now make {len(others)}"
        )
    low, high = np.minimum(ends[:, 0], others[:, 0]), np.maximum(ends[:, 1], others[:, 1])
    with np.errstate(over="ignore"):
        united = np.column_stack([low, high]).astype(ends.dtype)
    if not np.isfinite(united).all():
        raise ValueError(f"X holds values that {ends.dtype} cannot, with which the fit began")
    return united
