"""The best quantizer for a budget: of bytes a vector, or of distortion.

Which kind of quantizer serves data best, and at which settings, is measured: every candidate is
fitted on a sample of the rows and judged on other rows that it has not seen. The better half is
fitted again on a sample four times as large, and so on (successive halving: Jamieson & Talwalkar,
"Non-stochastic best arm identification", AISTATS 2016), until the samples end or one is left. That
one is fitted on all rows. A codebook of many codewords joins when a sample is large enough for it.

The candidates come from one table, `CANDIDATES`: a function for each kind of quantizer, of the
numbers of features and of bytes.
"""

import itertools
from numbers import Integral
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from fastvq._validation import as_nonnegative, as_rows
from fastvq.vq._base import BaseQuantizer, random_state_of
from fastvq.vq._curve import RateCurve
from fastvq.vq.additive import AdditiveQuantizer
from fastvq.vq.product import ProductQuantizer
from fastvq.vq.residual import ResidualQuantizer
from fastvq.vq.scalar import ScalarQuantizer
from fastvq.vq.vector import VectorQuantizer

__all__ = ["fit_to_budget", "plot_curve"]

_FIRST_ROWS, _GROWTH = 4096, 4
_KEPT = 0.5
_HELD_OUT = 4096  # rows to judge on, but no more than a quarter of all
_BYTES = (1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # tried for a distortion
_ROWS_A_CODEWORD = 8  # fewer rows say little about a codebook on its own
_MANY_CODEWORDS = (
    1 << 14
)  # from here on codes are approximate: in a fit of all rows, 20 times faster


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
    for n_codewords in {1: (256,), 2: (4096, 65536), 3: (1 << 20,)}.get(size, ()):
        assign = "exact" if n_codewords < _MANY_CODEWORDS else "approximate"
        yield VectorQuantizer(n_codewords, assign=assign)


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
        residual, additive and vector quantizers of many sizes: a VectorQuantizer of up to 256
        codewords for one byte, 65536 for two and 2**20 for three, where there are eight rows for
        each codeword.
    random_state : int, RandomState, Generator or None, default=None
        Draws the samples, and is given to candidates that have none of their own.
    n_threads : int, optional

    Returns
    -------
    quantizer : the best candidate, fitted on all rows
        Its ``curve_`` holds what was measured, a dict of lists as long as there were measurements:
        "kind", "parameters", "rows" (fitted on), "bytes", "distortion" (on the rows held out),
        "seconds" (to encode a row) and "error": what a candidate raised that could not be measured,
        which is then left out. ``curve_.plot()`` draws it.

    Raises
    ------
    ValueError
        Where no candidate meets the budget: the message says what the best one reaches. And what
        the first candidate raised, where all fail.

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
            if _rows_wanted(each) <= max(len(rows), _FIRST_ROWS)
        ]
    rng = random_state_of(random_state)
    seed, order = rng.randint(2**31 - 1), rng.permutation(len(rows))
    field = [_prepared(each, seed, n_threads) for each in candidates]
    best, curve = _filter(field, rows, order, goal)
    best = clone(best).fit(X)
    best.curve_ = curve
    return best


def plot_curve(quantizer: Any, ax: Any = None) -> Any:
    """The same as ``quantizer.curve_.plot(ax)``, for what `fit_to_budget` returned."""
    return quantizer.curve_.plot(ax)


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
    curve, first_error = RateCurve(), None
    n_rows = min(_FIRST_ROWS, len(pool))
    kept, waiting = [], list(field)
    while True:
        enough = [n_rows == len(pool) or _rows_wanted(each) <= n_rows for each in waiting]
        field = [*kept, *itertools.compress(waiting, enough)]
        waiting = [each for each, joins in zip(waiting, enough, strict=True) if not joins]
        sample, measured = rows[np.sort(pool[:n_rows])], []
        for each in field:
            point, error = _measure(each, sample, judges)
            first_error = first_error or error
            for name, value in point.items():
                curve.setdefault(name, []).append(value)
            if error is None:
                measured.append((goal.key(point), point, each))
        measured.sort(key=lambda each: each[0])
        last = n_rows == len(pool) or (len(field) == 1 and not waiting)
        if last and not measured:
            raise first_error
        if last:
            _, point, best = measured[0]
            goal.check(point)
            return best, curve
        kept = [each for *_, each in measured[: max(1, round(_KEPT * len(measured)))]]
        n_rows = min(_GROWTH * n_rows, len(pool))


def _measure(candidate, sample, judges):
    """A point of the curve, and the error for want of which there is none."""
    point = {
        "kind": type(candidate).__name__,
        "parameters": _described(candidate),
        "rows": len(sample),
        "bytes": None,
        "distortion": None,
        "seconds": None,
        "error": None,
    }
    try:
        quantizer = clone(candidate).fit(sample)
        began = perf_counter()
        quantizer.transform(judges)
        point["seconds"] = (perf_counter() - began) / len(judges)
        point["bytes"] = int(quantizer.code_size_)
        point["distortion"] = float(quantizer.distortion(judges))
    except Exception as error:  # of any kind: the other candidates are still to be measured
        return {**point, "error": f"{type(error).__name__}: {error}"}, error
    return point, None


def _rows_wanted(candidate):
    """Rows of a sample that is worth fitting this candidate on."""
    if isinstance(candidate, VectorQuantizer) and isinstance(candidate.n_codewords, Integral):
        return _ROWS_A_CODEWORD * candidate.n_codewords
    return 1


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
