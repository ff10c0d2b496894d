"""The best quantizer for a budget: of bytes a vector, or of distortion.

Which kind of quantizer serves data best, and at which settings, is measured: every candidate is
fitted on a sample of the rows and judged on other rows that it has not seen. The better half is
fitted again on a sample four times as large, and so on (successive halving: Jamieson & Talwalkar,
"Non-stochastic best arm identification", AISTATS 2016), until the samples end or one is left. That
one is fitted on all rows.

The candidates come from one table, `CANDIDATES`: a function for each kind of quantizer, of the
number of features and of bytes.
"""

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from fastvq._validation import as_nonnegative, as_rows
from fastvq.vq._base import BaseQuantizer, random_state_of
from fastvq.vq.additive import AdditiveQuantizer
from fastvq.vq.product import ProductQuantizer
from fastvq.vq.residual import ResidualQuantizer
from fastvq.vq.scalar import ScalarQuantizer
from fastvq.vq.vector import VectorQuantizer

__all__ = ["fit_to_budget", "plot_curve"]

_FIRST_ROWS, _GROWTH = 4096, 4
_KEPT = 0.5
_HELD_OUT = 4096  # rows to judge on, but no more than a quarter of all
_BYTES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # tried for a distortion


def _scalar(d, size):
    bits = min(8 * size // d, 16)
    if bits:
        yield ScalarQuantizer(bits)
        yield ScalarQuantizer(bits, scheme="quantile")


def _product(d, size):
    if size <= d:
        yield ProductQuantizer(size)
        yield ProductQuantizer(size, rotation="opq")
    if 2 * size <= d:
        yield ProductQuantizer(2 * size, n_bits=4)


def _vector(d, size):
    if size == 1:
        yield VectorQuantizer(256)
    if size == 2:
        yield VectorQuantizer(4096)


def _residual(d, size):
    if size <= 32:
        yield ResidualQuantizer(size)


def _additive(d, size):
    if size <= 16:
        yield AdditiveQuantizer(size)


# By kind: candidates of at most `size` bytes a vector, for `d` features.
CANDIDATES = {
    "scalar": _scalar,
    "product": _product,
    "residual": _residual,
    "additive": _additive,
    "vector": _vector,
}


def fit_to_budget(
    X: ArrayLike,
    *,
    bytes_per_vector: float | None = None,
    distortion: float | None = None,
    candidates: list[BaseQuantizer] | None = None,
    random_state: int | np.random.RandomState | np.random.Generator | None = None,
    n_threads: int | None = None,
) -> Any:
    """Fit the quantizer that serves best within a budget.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
    bytes_per_vector : float, optional
        Find the least distortion at so many bytes a vector (`code_size_`) at most.
    distortion : float, optional
        Find the fewest bytes a vector at so much distortion (on rows held out) at most. Exactly one
        of the two must be given.
    candidates : list of quantizers, optional
        Not fitted; they are copied. By default scalar, product (also rotated),
        residual, additive and vector quantizers of many sizes.
    random_state : int, RandomState, Generator or None, default=None
        Draws the samples, and is given to candidates that have none of their own.
    n_threads : int, optional

    Returns
    -------
    quantizer : the best candidate, fitted on all rows
        Its ``curve_`` holds what was measured, a dict of lists as long as there were measurements:
        "kind", "parameters", "bytes", "distortion" (on the rows held out), "seconds" (to encode
        a row) and "rows" (fitted on). `plot_curve` draws it.

    Raises
    ------
    ValueError
        Where no candidate meets the budget: the message says what the best one reaches.

    Examples
    --------
    >>> import numpy as np
    >>> import fastvq
    >>> X = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
    >>> q = fastvq.fit_to_budget(X, bytes_per_vector=4, random_state=0)
    >>> q.code_size_ <= 4
    True
    """
    if (bytes_per_vector is None) == (distortion is None):
        raise ValueError("exactly one of bytes_per_vector and distortion must be given")
    rows = as_rows(X)
    goal = _Bytes(bytes_per_vector) if distortion is None else _Distortion(distortion)
    if candidates is None:
        candidates = [
            each
            for make in CANDIDATES.values()
            for size in goal.sizes()
            for each in make(rows.shape[1], size)
        ]
    rng = random_state_of(random_state)
    seed, order = rng.randint(2**31 - 1), rng.permutation(len(rows))
    field = [_prepared(each, seed, n_threads) for each in candidates]
    best, curve = _filter(field, rows, order, goal)
    best = clone(best).fit(X)
    best.curve_ = curve
    return best


def plot_curve(quantizer: Any, ax: Any = None) -> Any:
    """Draw the points that `fit_to_budget` measured: distortion over bytes a vector.

    Parameters
    ----------
    quantizer : what `fit_to_budget` returned
    ax : matplotlib Axes, optional

    Returns
    -------
    ax : matplotlib Axes

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError('plot_curve needs matplotlib: pip install "fastvq[plot]"') from error
    if ax is None:
        ax = pyplot.subplots()[1]
    curve = quantizer.curve_
    last = _latest(curve)
    for kind in sorted({curve["kind"][i] for i in last}):
        points = sorted(
            (curve["bytes"][i], curve["distortion"][i]) for i in last if curve["kind"][i] == kind
        )
        ax.plot(*zip(*points, strict=True), "o-", label=kind)
    ax.set(xlabel="bytes a vector", ylabel="distortion", xscale="log", yscale="log")
    ax.legend()
    return ax


class _Bytes:
    """The least distortion at so many bytes at most."""

    def __init__(self, limit):
        self._limit = as_nonnegative(limit, "bytes_per_vector")

    def sizes(self):
        size = int(self._limit)
        return [size] if size else []

    def admits(self, size):
        return size <= self._limit

    def key(self, point):
        return (not self.admits(point["bytes"]), point["distortion"], point["bytes"])

    def check(self, point):
        if not self.admits(point["bytes"]):
            raise ValueError(
                f"bytes_per_vector={self._limit:g} cannot be met: the smallest candidate takes "
                f"{point['bytes']}"
            )


class _Distortion:
    """The fewest bytes at so much distortion at most; else the least distortion."""

    def __init__(self, limit):
        self._limit = as_nonnegative(limit, "distortion")

    def sizes(self):
        return _BYTES

    def key(self, point):
        if point["distortion"] <= self._limit:
            return (False, point["bytes"], point["distortion"])
        return (True, point["distortion"], point["bytes"])

    def check(self, point):
        if point["distortion"] > self._limit:
            raise ValueError(
                f"distortion={self._limit:g} cannot be met: the best candidate reaches "
                f"{point['distortion']:.6g} with {point['bytes']} bytes a vector"
            )


def _filter(field, rows, order, goal):
    """The best of the candidates, and all that was measured on the way."""
    n_judges = max(1, min(_HELD_OUT, len(rows) // 4))
    judges, pool = rows[np.sort(order[:n_judges])], order[n_judges:]
    if not field or not len(pool):
        raise ValueError("the budget cannot be met: there are no candidates for it")
    curve: dict = {}
    n_rows = min(_FIRST_ROWS, len(pool))
    while True:
        sample = rows[np.sort(pool[:n_rows])]
        points = [_measure(each, sample, judges) for each in field]
        for point in points:
            for name, value in point.items():
                curve.setdefault(name, []).append(value)
        ranking = sorted(range(len(field)), key=lambda i: goal.key(points[i]))
        if len(field) == 1 or n_rows == len(pool):
            goal.check(points[ranking[0]])
            return field[ranking[0]], curve
        field = [field[i] for i in ranking[: max(1, round(_KEPT * len(field)))]]
        n_rows = min(_GROWTH * n_rows, len(pool))


def _measure(candidate, sample, judges):
    quantizer = clone(candidate).fit(sample)
    began = perf_counter()
    quantizer.transform(judges)
    seconds = perf_counter() - began
    return {
        "kind": type(quantizer).__name__,
        "parameters": _described(quantizer),
        "bytes": int(quantizer.code_size_),
        "distortion": float(quantizer.distortion(judges)),
        "seconds": seconds / len(judges),
        "rows": len(sample),
    }


def _described(quantizer):
    """The parameters that are not the default ones, as text."""
    return repr(clone(quantizer).set_params(**_unset(quantizer)))


def _unset(quantizer):
    return {name: None for name in ("random_state", "n_threads") if name in quantizer.get_params()}


def _prepared(candidate, seed, n_threads):
    candidate, known = clone(candidate), candidate.get_params()
    wanted = {"random_state": seed, "n_threads": n_threads}
    return candidate.set_params(
        **{name: wanted[name] for name in wanted if name in known and known[name] is None}
    )


def _latest(curve):
    """The last measurement of each candidate: on most rows."""
    keys = zip(curve["kind"], curve["parameters"], strict=True)
    return list({key: i for i, key in enumerate(keys)}.values())
