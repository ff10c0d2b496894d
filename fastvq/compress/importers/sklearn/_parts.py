"""What importers of estimators share: columns with a pending scale, predictions, the two tables.

An importer is a function (builder, estimator, columns) for one or several classes of estimators:

    @transformer(PCA)
    def pca(b, est, columns) -> Columns

    @predictor(KMeans)
    def k_means(b, est, columns) -> Prediction

It is chosen by the exact class: a subclass may compute something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.feature_selection import SelectorMixin

from fastvq.compress.importers.builder import Builder

__all__ = [
    "PREDICTORS",
    "TRANSFORMERS",
    "Columns",
    "EstimatorBuilder",
    "Prediction",
    "UnsupportedEstimator",
    "classifier",
    "importer_of",
    "inverse_transform",
    "name_of",
    "one_against_one",
    "predict",
    "predictor",
    "regressor",
    "transform",
    "transformer",
    "undoing",
    "votes",
]

PREDICTORS: dict[type, Callable] = {}
TRANSFORMERS: dict[type, Callable] = {}
UNDOING: dict[type, Callable] = {}  # transformers of targets
# Up to so many scales off zero, centring may be left to the bias of the layer that follows: float32
# then loses two of its 24 bits.
_NEAR = 4.0


class UnsupportedEstimator(NotImplementedError):
    """An estimator, or a setting of one, that cannot be imported; the message names it."""


def transformer(*classes):
    """Decorator: this function imports the transform of these classes."""

    def enter(function):
        TRANSFORMERS.update(dict.fromkeys(classes, function))
        return function

    return enter


def predictor(*classes):
    """Decorator: this function imports predict and its relatives of these classes."""

    def enter(function):
        PREDICTORS.update(dict.fromkeys(classes, function))
        return function

    return enter


def undoing(*classes):
    """Decorator: this function imports the inverse_transform of these classes."""

    def enter(function):
        UNDOING.update(dict.fromkeys(classes, function))
        return function

    return enter


def name_of(estimator):
    return type(estimator).__name__


def transform(b: EstimatorBuilder, estimator, columns: Columns) -> Columns:
    """The columns that an estimator's transform makes of columns."""
    if estimator is None or (isinstance(estimator, str) and estimator == "passthrough"):
        return columns
    return _imported(TRANSFORMERS, b, estimator, columns)


def predict(b: EstimatorBuilder, estimator, columns: Columns) -> Prediction:
    """What an estimator predicts for columns."""
    return _imported(PREDICTORS, b, estimator, columns)


def inverse_transform(b: EstimatorBuilder, estimator, columns: Columns) -> Columns:
    """The columns of which an estimator's transform makes these."""
    return _imported(UNDOING, b, estimator, columns)


def importer_of(table, estimator):
    """The importer of an estimator in a table, or None; all selectors of features share one."""
    function = table.get(type(estimator))
    if function is None and isinstance(estimator, SelectorMixin):
        function = table.get(SelectorMixin)
    return function


def _imported(table, b, estimator, columns):
    function = importer_of(table, estimator)
    if function is None:
        raise UnsupportedEstimator(f"{name_of(estimator)} cannot be imported here")
    before, b.label = b.label, name_of(estimator)
    try:
        return function(b, estimator, columns)
    finally:
        b.label = before


@dataclass(frozen=True)
class Columns:
    """A matrix of the graph with what is still to be done to each column of it, in float64.

    It stands for (value - centre) * scale + shift. A layer that follows takes scale and shift into
    its weights; what is not taken is made by :meth:`EstimatorBuilder.plain`.
    """

    value: str
    n: int
    centre: np.ndarray | None = None
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None

    def affine(self, centre=None, scale=None, shift=None) -> Columns:
        """(self - centre) * scale + shift, for numbers, rows of `n`, or None for none."""
        centre, scale, shift = (None if a is None else self._row(a) for a in (centre, scale, shift))
        first = self.scale is None and self.shift is None
        if centre is not None and first:
            total = centre if self.centre is None else self.centre + centre
            return replace(self, centre=total, scale=scale, shift=shift)
        moved = self._or(self.shift, 0.0) - self._or(centre, 0.0)
        factor = self._or(scale, 1.0)
        return replace(
            self,
            scale=self._or(self.scale, 1.0) * factor,
            shift=moved * factor + self._or(shift, 0.0),
        )

    def _row(self, numbers):
        return np.broadcast_to(np.asarray(numbers, np.float64), (self.n,))

    def _or(self, row, value):
        return np.full(self.n, value) if row is None else row


@dataclass
class Prediction:
    """What a final estimator gives.

    Attributes
    ----------
    task : "classifier", "regressor", "transformer" or ""
    methods : mapping of scikit-learn's method name to a value, or to a list of them
    classes : array, or a list of arrays for several outputs; None where there are none
    """

    task: str
    methods: dict = field(default_factory=dict)
    classes: object = None


def regressor(value):
    return Prediction("regressor", {"predict": value})


def classifier(classes, label, probabilities=None, decision=None):
    methods = {"predict": label, "predict_proba": probabilities, "decision_function": decision}
    given = {method: value for method, value in methods.items() if value is not None}
    return Prediction("classifier", given, classes)


def votes(b, second, n):
    """Votes for n classes (N, n) by pairs in the order (0, 1), (0, 2), ...: 1 where the second of a
    pair won it, else 0."""
    gain = _of_pairs(n)
    return b.matrix(second, gain, (gain < 0).sum(axis=1))


def one_against_one(b, second, confidence, n):
    """Votes as above, and confidence in the second ones, whose sums are squeezed below a third of a
    vote to break ties."""
    total = b.matrix(confidence, _of_pairs(n))
    size = b.binary("add", b.unary("abs", total), b.real(1.0))
    squeezed = b.binary("divide", total, b.binary("multiply", size, b.real(3.0)))
    return b.binary("add", votes(b, second, n), squeezed)


def _of_pairs(n):
    """1 where a class is the second of a pair, -1 where it is the first: (n, number of pairs)."""
    first, second = np.triu_indices(n, 1)
    return (np.arange(n)[:, None] == second).astype(float) - (np.arange(n)[:, None] == first)


class EstimatorBuilder(Builder):
    """Operations that many estimators are made of."""

    def real(self, array, name="constant"):
        """A float32 constant."""
        return self.constant(np.ascontiguousarray(array, np.float32), name)

    # ---- columns ---------------------------------------------------------------------------

    def plain(self, columns: Columns) -> str:
        """The matrix itself, nothing pending."""
        value, shift = columns.value, columns.shift
        if columns.centre is not None and columns.centre.any():
            value, left = self._centred(columns)
            left = left if columns.scale is None else left * columns.scale
            shift = left if shift is None else shift + left
        if columns.scale is not None and (columns.scale != 1).any():
            value = self.binary("multiply", value, self.real(columns.scale, "scale"))
        if shift is not None and _counts(shift, columns.scale):
            value = self.binary("add", value, self.real(shift, "shift"))
        return value

    def _centred(self, columns):
        """value - centre in float32, and what rounding of the centre leaves to be added."""
        rounded = columns.centre.astype(np.float32)
        value = self.binary("subtract", columns.value, self.real(rounded, "centre"))
        return value, rounded - columns.centre

    def dense(self, columns: Columns, weight, bias=None, **activation) -> str:
        """activation(columns @ weightᵀ + bias), worked out in float64 where it is constant."""
        weight = np.atleast_2d(np.asarray(weight, np.float64))
        bias = np.broadcast_to(np.asarray(0.0 if bias is None else bias, np.float64), len(weight))
        value, scale = columns.value, columns.scale
        if columns.shift is not None:
            bias = bias + weight @ columns.shift
        if scale is not None:
            weight = weight * scale
        if columns.centre is not None and columns.centre.any():
            if scale is not None and np.abs(columns.centre * scale).max() <= _NEAR:
                bias = bias - weight @ columns.centre
            else:
                value, left = self._centred(columns)
                bias = bias + weight @ left
        bias = self.real(bias, "bias") if bias.any() else None
        return self.add("Dense", value, self.real(weight, "weight"), bias, **activation)

    def pick(self, value, which, n) -> str:
        """Columns of a matrix of n, by number."""
        which = np.asarray(which, np.int64)
        if np.array_equal(which, np.arange(n)):
            return value
        return self.add("Gather", value, self.constant(which, "columns"), axis=1)

    def matrix(self, value, weight, bias=None, **activation) -> str:
        """activation(value @ weightᵀ + bias) of a plain matrix."""
        return self.dense(Columns(value, np.shape(weight)[-1]), weight, bias, **activation)

    def flat(self, value) -> str:
        """A matrix of one column as a vector."""
        return self.reshape(value, -1)

    def as_real(self, value) -> str:
        return self.add("Cast", value, dtype="float32")

    def curves(self, value, curves) -> str:
        """Each column of a matrix along lines between its (points, values)."""
        points, values = ([np.ravel(each) for each in part] for part in zip(*curves, strict=True))
        first = np.cumsum([0, *map(len, points)])
        return self.add(
            "Interpolate",
            value,
            self.constant(first.astype(np.int64), "first"),
            self.real(np.concatenate(points), "points"),
            self.real(np.concatenate(values), "values"),
        )

    # ---- decisions ---------------------------------------------------------------------------

    def largest(self, scores) -> str:
        """The number of the largest of each row, the first of equal ones."""
        return self.add("ArgMax", scores, axis=1, keep=False)

    def above(self, value, limit=0.0) -> str:
        """1 where the value is above the limit, else 0, as int64."""
        return self.add("Cast", self.binary("greater", value, self.real(limit)), dtype="int64")

    def both(self, probability) -> str:
        """Probabilities of two classes from that of the second, (N, 1)."""
        return self.matrix(probability, [[-1.0], [1.0]], [1.0, 0.0])

    def both_sigmoids(self, decision, factor=1.0) -> str:
        """sigmoid of -decision and of decision, (N, 1)."""
        return self.matrix(decision, [[-factor], [factor]], activation="sigmoid")

    def normalised(self, scores, n) -> str:
        """Rows divided by their sums; rows of zeros become even."""
        total = self.reduce("sum", scores, [1])
        none = self.as_real(self.binary("equal", total, self.real(0.0)))
        total = self.binary("add", total, self.binary("multiply", none, self.real(float(n))))
        return self.binary("divide", self.binary("add", scores, none), total)

    def squared_distances(self, columns: Columns, points, scale=None) -> str:
        scale = None if scale is None else self.real(scale, "scale")
        return self.add("Distances", self.plain(columns), self.real(points, "points"), scale)


def _counts(shift, scale):
    """Whether adding this changes anything that float32 could show at the scale of the columns."""
    return (shift != 0).any() if scale is None else (np.abs(shift) > 1e-9).any()
