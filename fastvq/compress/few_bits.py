"""`WeightQuantizer`: a trained model in, the same model with weights of few bits out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from fastvq._schemes import FEW_BITS
from fastvq.compress._importing import imported
from fastvq.compress.budgets import Allocation, schemes_of
from fastvq.compress.examples import examples_of, first_rows, halves, outputs_of
from fastvq.compress.schemes.codebook import CodebookScheme
from fastvq.compress.schemes.grouped import GroupedScheme
from fastvq.compress.schemes.outliers import OutlierScheme
from fastvq.compress.schemes.product import ProductScheme
from fastvq.compress.schemes.sign import SignScheme
from fastvq.compress.scores import judge_of, latencies, scores, told, weight_bytes
from fastvq.compress.writing import Writing
from fastvq.runtime import CompressedModel, Graph
from fastvq.runtime.coded import CODERS
from fastvq.runtime.encoding import Raw

__all__ = ["Quantizer", "WeightQuantizer"]


class Quantizer(BaseEstimator):
    """What quantizers of whole models share: examples, `fit` and `transform` at once, and back."""

    def fit_transform(self, model, X=None, y=None):
        """`fit`, then `transform`."""
        return self.fit(model, X, y).transform(model)

    def inverse_transform(self, compressed):
        """The float model again, with the values that the small one's weights stand for.

        Returns
        -------
        model : CompressedModel
            With weights of float32.
        """
        check_is_fitted(self, "layers_")
        return self._restored(compressed)

    def _examined(self, model, X, y):
        """The float model, and the examples of its inputs that are used, with their y."""
        graph, metadata = imported(model, first_rows(X))
        whole = CompressedModel(graph, metadata, n_threads=self.n_threads)
        return whole, *examples_of(whole, X, y, self.max_samples)


class WeightQuantizer(Quantizer):
    """Writes the weights of trained models in few bits.

    Parameters
    ----------
    scheme : {"int4", "codebook", "product", "sign", "auto"}, or a mapping
        "int4": evenly spaced levels, with a scale for each group of inputs. "codebook": levels
        anywhere, the best for the weights. "product": blocks of inputs as codewords. "sign": a bit
        and a scale. "auto": for each weight what serves `size_budget` or `max_drop` best. A mapping
        has patterns of names of layers, or of their weights (as in a shell: ``*``, ``?``), and the
        scheme of each; the first that fits counts, and layers without one stay float32.
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
    outliers : float
        "int4" and "codebook": the share of the values, those that lie farthest out in their
        groups, that are kept as they are beside the codes; each takes 32 bits. Layers of such
        weights compute in float32.
    coder : {"raw", "rans"}
        How the file holds codes: with a fixed number of bits, or entropy coded, in fewer bytes and
        never more. That makes the file smaller, by a twentieth for "int4"; in memory a model takes
        what it takes with "raw". "auto" then chooses from levels without end, whose codes take
        what they are worth: 2 to 3 dB more in as many bytes. Such weights run as those of 4 to 8
        bits do, and to load them takes about a second for 200 million.
    activations : {"float", "dynamic"}
        "float": layers compute with the decoded weights in float32. "dynamic": dense layers turn
        their rows into bytes as they come and multiply whole numbers, with weights that are looked
        up in registers; for "int4" and for "codebook" per tensor. Those of "product" up to 8 bits
        stay floats; large ones, where that is faster for single rows, are sums of products of the
        row's blocks with all codewords. LSTM and GRU multiply whole numbers with rows of bytes that
        are made of their weights when the model starts; for any scheme.
    compensate : bool
        Make up for the rounding of one input by the rounding of the next (GPTQ; needs X), and fit
        scales to what a layer gives.
    bias_correction : bool
        Take back in biases what rounded weights shift the means of outputs by (needs X).
    size_budget : int, optional
        "auto": bytes of the file, which it does not exceed and uses up to 3 %, if weights permit.
    max_drop : float, optional
        "auto": how much of the score may be lost, with a one-sided confidence of 95 %, on examples
        that are held out: every second one. The score is accuracy or R² by y; without y, agreement
        with the float model's classes, or R² of its numbers.
    score : callable, optional
        A score in its place: ``score(y, predicted)``, more being better, such as
        ``sklearn.metrics.f1_score``; its confidence is found by drawing examples again.
    keep : sequence of str
        Patterns of names of layers, or of their weights, that stay float32.
    max_samples : int or None
        The most rows of X that are used, evenly spread over it; None: all.
    n_threads : int, optional

    Attributes
    ----------
    layers_ : list of dict
        What became of each weight: "layer", "tensor", "scheme", "bits" (a value, all in), "reason"
        and "SQNR dB" of the weight.
    next_kilobyte_ : float
        "auto": the share of the expected damage that another 1000 bytes would take away. The
        model's report tells it too, and for which layer.
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
        outliers=0.0,
        coder="raw",
        activations="float",
        compensate=True,
        bias_correction=True,
        size_budget=None,
        max_drop=None,
        score=None,
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
        self.outliers = outliers
        self.coder = coder
        self.activations = activations
        self.compensate = compensate
        self.bias_correction = bias_correction
        self.size_budget = size_budget
        self.max_drop = max_drop
        self.score = score
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
        self._check(X, y)
        for name in ("next_kilobyte_", "_frontier"):  # of an earlier fit
            vars(self).pop(name, None)
        whole, arrays, y = self._examined(model, X, y)
        judged = arrays
        if self.max_drop is not None:
            arrays, judged, y = halves(whole, arrays, y)
        writing = Writing(self, whole.graph, whole.metadata, arrays)
        notes = {}
        if self.scheme == "auto":
            notes = self._allocate(writing, whole, judged, y)
        else:
            self._schemes = self._chosen(writing)
        compressed = writing.model(self._schemes)
        compressed.metadata["compression"]["settings"] = notes
        self.layers_ = writing.layers(self._schemes)
        self.scores_ = self.latencies_ = {}
        if judged is not None:
            self.scores_ = scores(whole, compressed, judged, y, self.score)
            self.latencies_ = latencies(whole, compressed, judged)
        before = weight_bytes(whole.graph)
        told(compressed, self.scores_, before, self.latencies_)
        self.nbytes_ = before, compressed.nbytes
        self._fitted = model, compressed, arrays
        return self

    def resized(self, size_budget):
        """The fitted model in another number of bytes; of scheme="auto".

        Nothing is measured again, and weights that keep their scheme are not written again.

        Parameters
        ----------
        size_budget : int

        Returns
        -------
        compressed : CompressedModel

        Raises
        ------
        ValueError
            Where the budget cannot be kept: it says what can.
        """
        allocation = self._allocation("resized")
        choice = allocation.within_bytes(_whole("size_budget", size_budget, 1, 1 << 50))
        small = allocation.model(schemes_of(choice))
        small.metadata["compression"]["settings"] = {}
        return told(small, {}, self.nbytes_[0], {})

    def _allocation(self, what):
        check_is_fitted(self, "layers_")
        if not hasattr(self, "_frontier"):
            raise ValueError(f"{what} is for scheme='auto': others have one size")
        return self._frontier[0]

    def _allocate(self, writing, whole, judged, y):
        """Schemes for the budget or the drop; what is told of them in the report."""
        allocation = Allocation(writing, whole)
        judge = None
        if judged is not None:
            judge = judge_of(whole, y, self.score, outputs_of(whole, judged))
        if self.size_budget is not None:
            choice = allocation.within_bytes(self.size_budget)
        else:
            choice = allocation.within_drop(self.max_drop, judge, judged)
        self._schemes, self._frontier = schemes_of(choice), (allocation, judge, judged)
        self.next_kilobyte_ = (
            min(1.0, 1000 * choice.price / choice.damage) if choice.damage else 0.0
        )
        if choice.next is None:
            return {"another 1000 bytes": "would buy nothing"}
        name, candidate = choice.next
        tensor = writing.tensor(name, candidate.scheme)
        label = writing.weights[name].label
        return {
            "another 1000 bytes": f"{self.next_kilobyte_:.2%} less damage: {label} in "
            f"{tensor.scheme}"
        }

    def frontier(self, n_points=6):
        """Sizes that the fitted model can have, and its score at each; of scheme="auto".

        Returns
        -------
        frontier : Frontier
            A dict of lists: "bytes", "expected dB", "score" (on the examples of the fit, with
            `max_drop` on those held out); it makes and runs as many models.
        """
        return self._allocation("a frontier").frontier(n_points, *self._frontier[1:])

    def plot(self, ax=None, n_points=6):
        """Draw :meth:`frontier`, and where the fitted model lies; needs matplotlib.

        Returns
        -------
        ax : matplotlib Axes
        """
        ax = self.frontier(n_points).plot(ax)
        if self.scores_:
            ax.plot([self.nbytes_[1]], [self.scores_["after"]], "*", ms=12, label="fitted")
            ax.legend()
        return ax

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
        writing = Writing(self, *imported(model, rows), arrays)
        if set(writing.names) != set(self._schemes):
            raise ValueError("this model has other weights than the one that was fitted")
        small = writing.model(self._schemes)
        return told(small, self.scores_, self.nbytes_[0], self.latencies_)

    # ---- below -------------------------------------------------------------------------------

    def _check(self, X, y):
        """A ValueError names the parameter that is wrong."""
        single = (self.scheme,) if isinstance(self.scheme, str) else ()
        for scheme in single or self._patterns().values():
            if scheme not in (FEW_BITS if single else FEW_BITS[:-1]):
                allowed = ", ".join(FEW_BITS if single else FEW_BITS[:-1])
                raise ValueError(f"scheme must be one of {allowed}, got {scheme!r}")
            if scheme != "auto":
                self._scheme(scheme)
        if self.coder not in CODERS:
            raise ValueError(f"coder must be one of {', '.join(CODERS)}, got {self.coder!r}")
        if self.activations not in ("float", "dynamic"):
            raise ValueError(f"activations must be float or dynamic, got {self.activations!r}")
        if self.score is not None and not callable(self.score):
            raise TypeError(f"score must be callable, got {self.score!r}")
        if self.score is not None and y is None and X is not None:
            raise ValueError("score compares predictions with y, what the examples are: give y")
        if self.scheme == "auto":
            self._check_goal(X)
        elif self.size_budget is not None or self.max_drop is not None:
            raise ValueError(
                "size_budget and max_drop are for scheme='auto', which chooses by them; "
                f"got scheme={self.scheme!r}"
            )

    def _patterns(self):
        if not isinstance(self.scheme, Mapping):
            raise ValueError(
                f"scheme must be one of {', '.join(FEW_BITS)}, or a mapping of patterns to such; "
                f"got {self.scheme!r}"
            )
        return self.scheme

    def _chosen(self, writing):
        """The scheme of each weight, as the parameters have it."""
        if isinstance(self.scheme, str):
            return dict.fromkeys(writing.names, self._scheme(self.scheme))
        found = {}
        for name, weight in writing.weights.items():
            fits = (s for p, s in self.scheme.items() if weight.is_named(p))
            if scheme := next(fits, None):
                found[name] = self._scheme(scheme)
        return found

    def _scheme(self, name):
        """A scheme with the bits, group and so on of the parameters."""
        if not 0 <= self.outliers < 1:
            raise ValueError(f"outliers must be from 0 to below 1, got {self.outliers!r}")
        if self.outliers and name not in ("int4", "codebook"):
            raise ValueError(f"outliers are kept beside int4 and codebook, not {name}")
        scheme = self._plain_scheme(name)
        return OutlierScheme(scheme, self.outliers) if self.outliers else scheme

    def _plain_scheme(self, name):
        low, high, usual = {"int4": (2, 8, 4), "product": (1, 12, 8)}.get(name, (1, 8, 4))
        bits = usual if self.bits is None else _whole("bits", self.bits, low, high)
        group = 64 if self.group is None else _whole("group", self.group, 0, 1 << 30)
        if name == "int4":
            return GroupedScheme(bits, group, bool(self.symmetric))
        if name == "sign":
            if self.bits not in (None, 1):
                raise ValueError(f"bits must be 1 for scheme='sign', got {self.bits!r}")
            return SignScheme(group)
        if name == "codebook":
            if self.per not in ("tensor", "row", "group"):
                raise ValueError(f"per must be tensor, row or group, got {self.per!r}")
            return CodebookScheme(bits, group, self.per)
        block = 8 if self.group is None else _whole("group", self.group, 1, 256)
        return ProductScheme(block, bits, _whole("stages", self.stages, 1, 8))

    def _restored(self, compressed):
        graph = compressed.graph
        floats = {
            name: Raw(np.array(tensor.decode()))
            for name, tensor in graph.constants.items()
            if np.dtype(tensor.dtype).kind == "f"
        }
        nodes = [replace(n, operator=n.operator.removeprefix("Coded")) for n in graph.nodes]
        metadata = {k: v for k, v in compressed.metadata.items() if k != "compression"}
        whole = Graph(nodes, graph.inputs, graph.outputs, {**graph.constants, **floats})
        return CompressedModel(whole, metadata, n_threads=compressed.n_threads)

    def _check_goal(self, X):
        if (self.size_budget is None) == (self.max_drop is None):
            raise ValueError("scheme='auto' has either a size_budget or a max_drop")
        if self.max_drop is not None:
            if X is None:
                raise ValueError("max_drop is measured on examples: give X")
            if not 0 < self.max_drop < (math.inf if self.score else 1):
                most = "" if self.score else " and below 1"
                raise ValueError(f"max_drop must be above 0{most}, got {self.max_drop!r}")
        else:
            _whole("size_budget", self.size_budget, 1, 1 << 50)


def _whole(name, value, low, high):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    return int(value)
