"""How good codes are: recall of a search, and distortion over seeds with its uncertainty."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Interval", "RatePoint", "mean_interval", "rate_distortion", "recall_at_k"]

_BLOCK_PAIRS = 1 << 22  # of found and true neighbours, compared at a time


class Interval(NamedTuple):
    """A mean, and where the true one lies with the confidence that was asked for."""

    mean: float
    low: float
    high: float


class RatePoint(NamedTuple):
    """What a quantizer costs and loses: a point of a rate–distortion curve."""

    quantizer: object  # as it was given, not fitted
    bytes_per_vector: int  # `code_size_`: the codes, without the codebook
    distortion: Interval  # of the mean over seeds
    distortions: tuple[float, ...]  # one for each seed


def recall_at_k(found: ArrayLike, truth: ArrayLike, k: int) -> float:
    """The share of true neighbours that a search returned among its first k.

    Parameters
    ----------
    found : array-like of integers of shape (n_queries, at least k)
        Indices of neighbours, best first. Negative ones stand for "none".
    truth : array-like of integers of shape (n_queries, n_true) or (n_queries,)
        Indices of the true neighbours, nearest first. The first k count; with one column, recall
        is how often the nearest of all is among the k found ("1-recall at k").
    k : int

    Returns
    -------
    recall : float
        From 0 to 1: mean over queries of |found[:k] ∩ truth[:k]| / min(k, n_true).

    Examples
    --------
    >>> recall_at_k(found=[[4, 7, 1], [3, 0, 2]], truth=[[7, 4, 0], [3, 5, 6]], k=2)
    0.75
    >>> recall_at_k(found=[[4, 7, 1], [3, 0, 2]], truth=[7, 5], k=2)
    0.5
    """
    have, want = _as_indices(found, "found"), _as_indices(truth, "truth")
    if not 1 <= k <= have.shape[1]:
        raise ValueError(f"k must be from 1 to the {have.shape[1]} columns of found, got {k}")
    if len(have) != len(want) or not want.size:
        raise ValueError(
            f"found and truth must have a row for each query, got {have.shape} and {want.shape}"
        )
    have, want = have[:, :k, None], want[:, None, :k]
    if want.min() < 0:
        raise ValueError("truth must not be negative among the first k")
    step = max(1, _BLOCK_PAIRS // (k * want.shape[2]))
    blocks = [slice(start, start + step) for start in range(0, len(want), step)]
    hits = [np.count_nonzero((have[block] == want[block]).any(axis=1)) for block in blocks]
    return int(sum(hits)) / want.size


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean of repeated measurements, with Student's t-interval.

    Parameters
    ----------
    values : array-like of shape (n,)
        At least two independent measurements, taken to be normally distributed.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    interval : Interval
        mean ± t·s/√n, with s from n − 1 degrees of freedom.

    Examples
    --------
    >>> mean, low, high = mean_interval([9.0, 10.0, 11.0])
    >>> mean, round(low, 2), round(high, 2)
    (10.0, 7.52, 12.48)
    """
    from scipy.special import stdtrit  # the quantiles of t

    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2 or not np.isfinite(sample).all():
        raise ValueError(f"values must be at least two finite numbers, got {values!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    n, mean = len(sample), float(sample.mean())
    margin = float(stdtrit(n - 1, (1 + confidence) / 2) * sample.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - margin, mean + margin)


def rate_distortion(
    quantizers: Sequence,
    X: ArrayLike,
    X_test: ArrayLike | None = None,
    *,
    seeds: int | Iterable[int] = 5,
    confidence: float = 0.95,
) -> list[RatePoint]:
    """Fit quantizers with several seeds each, and measure what they cost and lose.

    Parameters
    ----------
    quantizers : sequence of estimators
        Not changed: clones of them are fitted. One without `random_state` gives the same distortion
        for each seed.
    X : array-like of shape (n_samples, n_features)
        Rows to fit on.
    X_test : array-like of shape (n_test_samples, n_features), optional
        Rows to measure the distortion on; by default those of the fit.
    seeds : int or iterable of int
        As many seeds, from 0, or the seeds themselves; at least two.
    confidence : float
        Of the intervals.

    Returns
    -------
    points : list of RatePoint
        In the order of the quantizers.

    Examples
    --------
    >>> from fastvq import VectorQuantizer
    >>> X = np.random.RandomState(0).randn(500, 4)
    >>> few, many = rate_distortion([VectorQuantizer(2), VectorQuantizer(32)], X, seeds=3)
    >>> few.distortion.low > many.distortion.high
    True
    """
    from sklearn.base import clone

    each_seed = list(range(seeds) if isinstance(seeds, int) else seeds)
    if len(each_seed) < 2:
        raise ValueError(f"seeds must be at least two for an interval, got {seeds}")
    X_test = X if X_test is None else X_test
    points = []
    for quantizer in quantizers:
        fitted, distortions = clone(quantizer), []
        for seed in each_seed:
            if "random_state" in fitted.get_params():
                fitted.set_params(random_state=seed)
            distortions.append(float(fitted.fit(X).distortion(X_test)))
        interval = mean_interval(distortions, confidence)
        points.append(RatePoint(quantizer, fitted.code_size_, interval, tuple(distortions)))
    return points


def _as_indices(indices, name):
    array = np.asarray(indices)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise ValueError(f"{name} must have a row for each query, got shape {array.shape}")
    return array
