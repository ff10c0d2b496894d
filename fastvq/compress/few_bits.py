"""`WeightQuantizer`: a trained model in, the same model with weights of few bits out."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from fastvq import _threads
from fastvq.compress import moments, passes, stats
from fastvq.compress._importing import imported
from fastvq.compress.allocate import Candidate, allocated
from fastvq.compress.compensation import compensated, output_error
from fastvq.compress.quantizer import (
    ModelQuantizer,
    _first_rows,
    _judge,
    _latencies,
    _outputs,
    _plain,
    _scores,
    _weight_bytes,
)
from fastvq.compress.schemes.codebook import CodebookScheme
from fastvq.compress.schemes.grids import encoded, matrix_of
from fastvq.compress.schemes.grouped import GroupedScheme
from fastvq.compress.schemes.product import ProductScheme
from fastvq.compress.schemes.sign import SignScheme
from fastvq.compress.weights import SMALLEST, coded_layers, importances, replaced, weights_of
from fastvq.runtime import CompressedModel
from fastvq.runtime.encoding import Raw
from fastvq.runtime.measure import compare

__all__ = ["SCHEMES", "WeightQuantizer", "noise"]

SCHEMES = ("int4", "codebook", "product", "sign", "auto")

# What "auto" chooses from.
_GROUPS = (0, 128, 64, 48, 32, 24)
_CANDIDATES = (
    *(GroupedScheme(bits, group) for bits in range(2, 9) for group in _GROUPS),
    *(GroupedScheme(8, group) for group in (16, 8, 4)),  # towards float16
    *(CodebookScheme(bits, group) for bits in (2, 3, 4) for group in (0, 128, 64, 32)),
)
_PROBE = GroupedScheme(3, 64)  # what a weight is stored in while its layer's damage is measured
_PROBED = 64  # examples on which that is measured
_SAMPLED = 1 << 14  # values of a weight on which candidates are compared
_UNUSED = 0.01  # of a budget that may be left; 3 % are promised where weights permit
_ATTEMPTS = 8  # at a file of just the size; at the smallest one that keeps the score
_TOLD = 192  # bytes for the scores, which are told in the file and come last
_SMALLEST = 256  # values of a weight that "auto" writes in few bits
_CONFIDENT = 1.645  # one-sided, 95 %


class WeightQuantizer(BaseEstimator):
    """Writes the weights of trained models in few bits.

    Parameters
    ----------
    scheme : {"int4", "codebook", "product", "sign", "auto"}
        "int4": evenly spaced levels, with a scale for each group of inputs. "codebook": levels
        anywhere, the best for the weights. "product": blocks of inputs as codewords. "sign": a bit
        and a scale. "auto": for each weight what serves `size_budget` or `max_drop` best.
    bits : int, optional
        Of a code: 4, for "product" 8, by default. "int4" takes 2 to 8, "codebook" 1 to 8,
        "product" 1 to 12.
    group : int, optional
        Inputs that share a scale, 64 by default, and 0 for all of a row. For "product": the inputs
        of a block, 8 by default.
    symmetric : bool
        "int4": without zero points.
    per : {"tensor", "row", "group"}
        "codebook": what has a codebook of its own.
    stages : int
        "product": codewords that add up to a block.
    activations : {"float", "dynamic"}
        "float": layers compute with the decoded weights in float32. "dynamic": dense layers turn
        their rows into bytes as they come and multiply whole numbers, with weights that are looked
        up in registers; for "int4" and for "codebook" per tensor.
    compensate : bool
        Make up for the rounding of one input by the rounding of the next (GPTQ; needs X).
    size_budget : int, optional
        "auto": bytes of the file, which it does not exceed and uses up to 3 %, if weights permit.
    max_drop : float, optional
        "auto": how much of the score may be lost, with a confidence of 95 %, on examples that are
        held out: every second one. Accuracy by y; without y, agreement with the float model.
    keep : sequence of str
        Patterns of names of layers that stay float32 (as in a shell: ``*``, ``?``).
    max_samples : int or None
        The most rows of X that are used, evenly spread over it; None: all.
    n_threads : int, optional

    Attributes
    ----------
    layers_ : list of dict
        What became of each weight: "layer", "tensor", "scheme", "bits" (a value, all in), "reason"
        and "SQNR dB" of the weight.
    next_kilobyte_ : float
        "auto": the share of the expected damage that another 1000 bytes would take away.
    scores_, latencies_, nbytes_
        As :class:`ModelQuantizer` has them.

    Notes
    -----
    With X, an error in a column of a weight counts as much as the mean square of what the layer
    reads there. Weights of fewer than 1024 values ("auto": 256), biases and norms
    stay as they are.

    "auto" stores one weight after the other in 3 bits and looks at what that does to the outputs;
    other candidates are taken to do damage in the ratio of their squared errors, which are measured
    on a sample of the weight's rows. Deterministic.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.compress import WeightQuantizer
    >>> weights = {"w": np.random.default_rng(0).normal(size=(64, 128)).astype("f4")}
    >>> small = WeightQuantizer("int4", group=32).fit_transform(weights)
    >>> small.report()[0]["bits"]
    4.5
    """

    def __init__(
        self,
        scheme="int4",
        *,
        bits=None,
        group=None,
        symmetric=True,
        per="tensor",
        stages=1,
        activations="float",
        compensate=True,
        size_budget=None,
        max_drop=None,
        keep=(),
        max_samples=512,
        n_threads=None,
    ):
        self.scheme = scheme
        self.bits = bits
        self.group = group
        self.symmetric = symmetric
        self.per = per
        self.stages = stages
        self.activations = activations
        self.compensate = compensate
        self.size_budget = size_budget
        self.max_drop = max_drop
        self.keep = keep
        self.max_samples = max_samples
        self.n_threads = n_threads

    def fit(self, model, X=None, y=None):
        """Write the weights of a model, looking at what its layers read on examples.

        Parameters
        ----------
        model, X, y
            As :meth:`ModelQuantizer.fit` takes them.

        Raises
        ------
        ValueError
            For a parameter that is none of its values; for examples without rows, or that make the
            model compute NaN or infinity; where a budget cannot be kept: it says what can.
        """
        scheme = self._scheme(X)
        graph, metadata = imported(model, _first_rows(X))
        whole = CompressedModel(graph, metadata, n_threads=self.n_threads)
        arrays, y = ModelQuantizer._examples(self, whole, X, y)
        judged = None
        if self.max_drop is not None:
            arrays, judged, y = _halves(whole, arrays, y)
        writing = _Writing(self, graph, metadata, arrays)
        if scheme is not None:
            self._schemes = dict.fromkeys(writing.names, scheme)
        else:
            choice = _Allocation(writing, whole, self).choice(judged, y)
            self._schemes = _schemes_of(choice)
            self.next_kilobyte_ = (
                min(1.0, 1000 * choice.price / choice.damage) if choice.damage else 0.0
            )
        compressed = writing.model(self._schemes)
        self.layers_ = writing.layers(self._schemes)
        self.nbytes_ = _weight_bytes(graph), compressed.nbytes
        seen = arrays if judged is None else judged
        self.scores_ = {} if seen is None else _scores(whole, compressed, seen, y)
        self.latencies_ = {} if seen is None else _latencies(whole, compressed, seen)
        self._fitted = model, self._told(compressed), arrays
        return self

    def transform(self, model):
        """The small model of this one, or of one with other weights, in the same schemes.

        Returns
        -------
        compressed : CompressedModel
        """
        check_is_fitted(self, "layers_")
        fitted, compressed, arrays = self._fitted
        if fitted is model:
            return compressed
        rows = None if arrays is None else tuple(a[:2] for a in arrays)
        writing = _Writing(self, *imported(model, rows), arrays)
        if set(writing.names) != set(self._schemes):
            raise ValueError("this model has other weights than the one that was fitted")
        return self._told(writing.model(self._schemes))

    def fit_transform(self, model, X=None, y=None):
        """`fit`, then `transform`."""
        return self.fit(model, X, y).transform(model)

    # ---- below -------------------------------------------------------------------------------

    def _scheme(self, X):
        """The parameters as a scheme, None for "auto"; a ValueError names the one that is wrong."""
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if self.activations not in ("float", "dynamic"):
            raise ValueError(f"activations must be float or dynamic, got {self.activations!r}")
        if self.scheme == "auto":
            self._check_goal(X)
            return None
        if self.size_budget is not None or self.max_drop is not None:
            raise ValueError(
                "size_budget and max_drop are for scheme='auto', which chooses by them; "
                f"got scheme={self.scheme!r}"
            )
        low, high, usual = {"int4": (2, 8, 4), "product": (1, 12, 8)}.get(self.scheme, (1, 8, 4))
        bits = usual if self.bits is None else _whole("bits", self.bits, low, high)
        group = 64 if self.group is None else _whole("group", self.group, 0, 1 << 30)
        if self.scheme == "int4":
            return GroupedScheme(bits, group, bool(self.symmetric))
        if self.scheme == "sign":
            if self.bits not in (None, 1):
                raise ValueError(f"bits must be 1 for scheme='sign', got {self.bits!r}")
            return SignScheme(group)
        if self.scheme == "codebook":
            if self.per not in ("tensor", "row", "group"):
                raise ValueError(f"per must be tensor, row or group, got {self.per!r}")
            return CodebookScheme(bits, group, self.per)
        block = 8 if self.group is None else _whole("group", self.group, 1, 256)
        return ProductScheme(block, bits, _whole("stages", self.stages, 1, 8))

    def _check_goal(self, X):
        if (self.size_budget is None) == (self.max_drop is None):
            raise ValueError("scheme='auto' has either a size_budget or a max_drop")
        if self.max_drop is not None:
            if X is None:
                raise ValueError("max_drop is measured on examples: give X")
            if not 0 < self.max_drop < 1:
                raise ValueError(f"max_drop must be between 0 and 1, got {self.max_drop!r}")
        else:
            _whole("size_budget", self.size_budget, 1, 1 << 50)

    def _told(self, compressed):
        compressed.metadata["compression"] |= {
            "score": {k: _plain(v) for k, v in self.scores_.items()},
            "bytes before": self.nbytes_[0],
        }
        compressed.latencies = self.latencies_
        return compressed


def _halves(model, arrays, y):
    """Examples to fit on, and others to judge by: every second one, with its y."""
    if arrays is None or not arrays[0].ndim or len(arrays[0]) < 2:
        raise ValueError("max_drop needs two examples or more: one half is held out")
    first = model.graph.inputs[0].shape[:1]
    batched = [value.shape[:1] == first for value in model.graph.inputs]
    halves = [
        [a[start::2] if b else a for a, b in zip(arrays, batched, strict=True)] for start in (0, 1)
    ]
    return *halves, None if y is None else y[1::2]


class _Writing:
    """A graph whose weights are written, each in any scheme: what was made once is kept."""

    def __init__(self, settings, graph, metadata, arrays):
        self._settings, self._metadata, self.arrays = settings, metadata, arrays
        self.graph = passes.prepared(graph)
        self.threads = _threads.effective(settings.n_threads)
        smallest = _SMALLEST if settings.scheme == "auto" else SMALLEST
        every = weights_of(self.graph, smallest)
        kept = [w for w in every if any(fnmatchcase(w.label, p) for p in settings.keep)]
        self._every, self.weights = every, {w.name: w for w in every if w not in kept}
        chosen = [*self.weights.values()]
        self.counts = (
            {} if arrays is None else importances(self.graph, arrays, chosen, self.threads)
        )
        self._grams = self._moments() if arrays is not None and settings.compensate else {}
        self._tensors: dict[tuple, object] = {}

    @property
    def names(self):
        return [*self.weights]

    def _moments(self):
        """E[x xᵀ] of what dense layers and convolutions read, by the name of their weight."""
        layers = {
            w.key: (w, w.readers[0][0])
            for w in self.weights.values()
            if len(w.readers) == 1 and w.readers[0][0].operator in ("Dense", "Conv")
            and w.readers[0][0].inputs[0] not in self.graph.constants
        }  # fmt: skip
        nodes = [node for _, node in layers.values()]
        read = [node.inputs[0] for node in nodes]
        seen = stats.observe(
            self.graph, self.arrays, read, histograms=False, n_threads=self.threads
        )
        found = moments.grams(self.graph, self.arrays, nodes, seen, self.threads)
        return {layers[key][0].name: gram[0] for key, gram in found.items() if len(gram) == 1}

    def tensor(self, name, scheme):
        """A weight in a scheme; as it was where that takes no fewer bytes."""
        if (name, scheme) not in self._tensors:
            self._tensors[name, scheme] = self._made(self.weights[name], scheme)
        return self._tensors[name, scheme]

    def _made(self, weight, scheme):
        importance, gram = self.counts.get(weight.name), self._grams.get(weight.name)
        if gram is not None and hasattr(scheme, "fit"):
            tensor = _made_up_for(weight, scheme, importance, gram)
        else:
            tensor = encoded(scheme, weight.values, importance=importance, leading=weight.leading)
        return tensor if tensor.nbytes < weight.values.nbytes else Raw(weight.values)

    def model(self, schemes) -> CompressedModel:
        """The model with every weight in its scheme."""
        tensors = {name: self.tensor(name, scheme) for name, scheme in schemes.items()}
        small = replaced(self.graph, tensors)
        if self._settings.activations == "dynamic":
            small = coded_layers(small)
        rows = {row["tensor"]: row for row in self.layers(schemes)}
        known = {
            "scheme": self._settings.scheme,
            "layers": {
                w.key or w.name: [rows[w.name]["scheme"], rows[w.name]["reason"], None]
                for w in self._every
            },
            "tensors": {
                w.name: [w.values.nbytes, rows[w.name]["SQNR dB"], w.key] for w in self._every
            },
        }
        metadata = {**self._metadata, "compression": known}
        return CompressedModel(small, metadata, n_threads=self._settings.n_threads)

    def layers(self, schemes):
        """What became of each weight."""
        made = {name: self.tensor(name, scheme) for name, scheme in schemes.items()}
        return [_row(w, made.get(w.name)) for w in self._every]


def _made_up_for(weight, scheme, importance, gram):
    """A weight in which the rounding of later columns makes up for that of earlier ones."""
    matrix = matrix_of(weight.values, weight.leading)
    grid = scheme.fit(matrix, importance)
    codes = {}

    def rounding(values, columns):
        first = int(columns[0])
        codes[first] = grid.nearest(first, values)
        return grid.values(first, codes[first])[:, : len(columns)]

    width = matrix.shape[1]
    parts = [np.arange(i, min(i + grid.step, width)) for i in range(0, width, grid.step)]
    found = compensated(matrix, gram, rounding, parts=parts)
    plain = grid.nearest(0, matrix)
    near = grid.values(0, plain)[:, :width]
    if output_error(matrix, near, gram).sum() <= output_error(matrix, found, gram).sum():
        return grid.tensor(weight.values.shape, plain, weight.leading)
    whole = np.concatenate([codes[first] for first in sorted(codes)], axis=1)
    return grid.tensor(weight.values.shape, whole, weight.leading)


# ---- "auto" -------------------------------------------------------------------------------------


class _Half(NamedTuple):
    """float16, as a candidate: for budgets beyond 8 bits."""

    def encode(self, weight):
        with np.errstate(over="ignore"):
            half = weight.astype(np.float16)
        return Raw(weight if (np.isinf(half) & np.isfinite(weight)).any() else half)


class _Allocation:
    """The best schemes for a budget, or for a score."""

    def __init__(self, writing, whole, settings):
        self._writing, self._whole = writing, whole
        self._budget, self._most_drop = settings.size_budget, settings.max_drop
        if not writing.names:
            raise ValueError(
                f"the model has no weight of {_SMALLEST} values or more to be made smaller"
            )
        self._candidates = self._all_candidates()
        smallest = self._model_within(self._least())
        self._smallest, self._rest = smallest.nbytes, smallest.nbytes - self._least()

    def choice(self, judged, y):
        if self._budget is not None:
            return self._within_budget()
        return self._within_drop(judged, y)

    def _least(self):
        return sum(min(c.nbytes for c in some) for some in self._candidates.values())

    # ---- candidates --------------------------------------------------------------------------

    def _all_candidates(self):
        """Of each weight: true bytes, and the damage that is expected."""
        found, damages = {}, self._damages()
        for name, weight in self._writing.weights.items():
            part, share = _sampled(weight)
            importance = self._writing.counts.get(name)

            def error(scheme, part=part, importance=importance):
                return _error(part, scheme, importance)

            probe = error(_PROBE)
            unit = damages[name] / probe if probe else 0.0
            schemes = [s for s in _CANDIDATES if not s.group or s.group < part.shape[1]]
            found[name] = [
                Candidate(s, s.nbytes(len(part) * share, part.shape[1]), unit * error(s))
                for s in schemes
            ]
            found[name].append(Candidate(_Half(), 2 * weight.values.size, 0.0))
        return found

    def _damages(self):
        """What storing a weight in the probe's scheme does to the outputs: noise to signal.

        Without examples, what it does to the weight itself.
        """
        arrays = self._writing.arrays
        if arrays is None:
            return {
                name: 10 ** (-noise(w.values, encoded(_PROBE, w.values, leading=w.leading)) / 10)
                for name, w in self._writing.weights.items()
            }
        some = next(stats.batches_of(self._whole.graph, arrays, _PROBED))
        wanted = _outputs(self._whole, some)
        found = {}
        for name, weight in self._writing.weights.items():
            importance = self._writing.counts.get(name)
            tensor = encoded(_PROBE, weight.values, importance=importance, leading=weight.leading)
            graph = replaced(self._writing.graph, {name: tensor})
            table = compare(
                _outputs(CompressedModel(graph, n_threads=self._writing.threads), some),
                self._whole.output_names, wanted,
            )  # fmt: skip
            ratios = [10 ** (-dB / 10) for dB in table.column("SQNR dB") if dB is not None]
            found[name] = max(sum(ratios), 1e-12)
        return found

    # ---- goals -------------------------------------------------------------------------------

    def _model_within(self, budget):
        """The model with the best schemes of so many bytes, which are kept as the last ones."""
        self._last = allocated(self._candidates, budget)
        return self._writing.model(_schemes_of(self._last))

    def _within_budget(self):
        """Aim at the budget until the file is just below it."""
        budget = self._budget - _TOLD
        if self._smallest > budget:
            raise ValueError(
                f"size_budget={self._budget:,} cannot be kept: the smallest file that these "
                f"schemes make takes {self._smallest + _TOLD:,} bytes"
            )
        fits, best, too_many = self._least(), None, math.inf
        aim = budget - self._rest
        for _ in range(_ATTEMPTS):
            left = budget - self._model_within(aim).nbytes
            if left >= 0:
                fits, best = max(fits, aim), self._last
                if left <= _UNUSED * budget:
                    break
            else:
                too_many = min(too_many, aim)
            # What lies between parts is not counted in theirs, nor is what tells of the schemes.
            aim = self._last.nbytes + left
            if not fits < aim < too_many:
                aim = (fits + min(too_many, budget)) // 2
        if best is None:
            self._model_within(self._least())
            best = self._last
        return best

    def _within_drop(self, judged, y):
        """The smallest file found that keeps the score, by halving the range of sizes."""
        before = _right(self._whole, judged, y, self._whole)
        least, most = (
            self._least(),
            sum(max(c.nbytes for c in some) for some in self._candidates.values()),
        )
        bound = self._drop(self._model_within(most), judged, y, before)
        if bound > self._most_drop:
            raise ValueError(
                f"max_drop={self._most_drop} cannot be shown on {len(judged[0])} examples that "
                f"were held out: even in float16 up to {bound:.3g} may be lost; give more"
            )
        best = self._last
        for _ in range(_ATTEMPTS):
            middle = int(math.sqrt(least * most))
            if self._drop(self._model_within(middle), judged, y, before) <= self._most_drop:
                most, best = middle, self._last
            else:
                least = middle
        return best

    def _drop(self, small, judged, y, before):
        """What may be lost, at the most, with 95 % confidence."""
        lost = before - _right(small, judged, y, self._whole)
        n = len(lost)
        if n < 2:
            return math.inf
        # Where nothing is lost in n rows, 3 in n may still be lost.
        return float(lost.mean() + _CONFIDENT * lost.std(ddof=1) / math.sqrt(n) + 3 / n)


def _schemes_of(choice):
    return {name: candidate.scheme for name, candidate in choice.chosen.items()}


def _right(model, arrays, y, whole):
    """For each example whether the model is right, as numbers; without y: as the whole model is."""
    outputs = _outputs(model, arrays)
    if y is not None:
        name, _ = _judge(whole, np.asarray(y))
        if name == "accuracy":
            scores = next(o for o in outputs if o.ndim == 2)
            classes = whole.metadata.get("classes")
            labels = scores.argmax(axis=1)
            labels = labels if classes is None else np.asarray(classes)[labels]
            return (labels == np.asarray(y)).astype(np.float64)
    scores = [o for o in outputs if o.dtype.kind == "f" and o.ndim == 2 and o.shape[1] > 1]
    if not scores:
        raise ValueError("max_drop wants a model with scores of classes")
    wanted = next(o for o in _outputs(whole, arrays) if o.dtype.kind == "f" and o.ndim == 2)
    return (scores[0].argmax(axis=1) == wanted.argmax(axis=1)).astype(np.float64)


def _sampled(weight):
    """Some rows of a weight, evenly spread, and how many rows each stands for."""
    matrix = matrix_of(weight.values, weight.leading)
    n = max(1, min(len(matrix), max(4, _SAMPLED // matrix.shape[1])))
    return matrix[np.arange(n) * len(matrix) // n], len(matrix) / n


def _error(matrix, scheme, importance):
    grid = scheme.fit(matrix, importance)
    error = (grid.values(0, grid.nearest(0, matrix)) - matrix.astype(np.float64)) ** 2
    return float((error if importance is None else error * importance).sum())


# ---- what is told -------------------------------------------------------------------------------


def _row(weight, tensor):
    if tensor is None or (isinstance(tensor, Raw) and tensor.values.dtype == np.float32):
        reason = "kept by name" if tensor is None else "no smaller in codes"
        found = {"scheme": "float32", "bits": 32.0, "reason": reason, "SQNR dB": None}
    else:
        found = {
            "scheme": tensor.scheme,
            "bits": 8 * tensor.nbytes / weight.values.size,
            "reason": "",
            "SQNR dB": _plain(noise(weight.values, tensor)),
        }
    return {"layer": weight.label, "tensor": weight.name, **found}


def noise(values, tensor) -> float:
    """Signal to noise of a tensor's values, in dB."""
    error = float(((tensor.decode().astype(np.float64) - values) ** 2).sum())
    signal = float((values.astype(np.float64) ** 2).sum())
    if not signal or not error:
        return math.inf if not error else -math.inf
    return 10 * math.log10(signal / error)


def _whole(name, value, low, high):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    return int(value)
