"""`WeightQuantizer`: a trained model in, the same model with weights of few bits out."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from fastvq import _threads
from fastvq.compress import passes
from fastvq.compress._importing import imported
from fastvq.compress.quantizer import (
    ModelQuantizer,
    _first_rows,
    _latencies,
    _plain,
    _scores,
    _weight_bytes,
)
from fastvq.compress.schemes.codebook import CodebookScheme
from fastvq.compress.schemes.grids import encoded
from fastvq.compress.schemes.grouped import GroupedScheme
from fastvq.compress.schemes.product import ProductScheme
from fastvq.compress.schemes.sign import SignScheme
from fastvq.compress.weights import importances, replaced, weights_of
from fastvq.runtime import CompressedModel
from fastvq.runtime.encoding import Raw

__all__ = ["SCHEMES", "WeightQuantizer", "noise"]

SCHEMES = ("int4", "codebook", "product", "sign")


class WeightQuantizer(BaseEstimator):
    """Writes the weights of trained models in few bits; what flows between layers stays float.

    Parameters
    ----------
    scheme : {"int4", "codebook", "product", "sign"}
        "int4": evenly spaced levels, with a scale for each group of inputs. "codebook": levels
        anywhere, the best for the weights. "product": blocks of inputs as codewords. "sign": a bit
        and a scale.
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
    scores_, latencies_, nbytes_
        As :class:`ModelQuantizer` has them.

    Notes
    -----
    With X, an error in a column of a weight counts as much as the mean square of what the layer
    reads there. Weights of fewer than 1024 values, biases and norms stay as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.compress.few_bits import WeightQuantizer
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
            model compute NaN or infinity.
        """
        scheme = self._scheme()
        graph, metadata = imported(model, _first_rows(X))
        whole = CompressedModel(graph, metadata, n_threads=self.n_threads)
        arrays, y = ModelQuantizer._examples(self, whole, X, y)
        self._arrays = arrays
        compressed = self._written(graph, metadata, scheme)
        self.nbytes_ = _weight_bytes(graph), compressed.nbytes
        self.scores_ = {} if arrays is None else _scores(whole, compressed, arrays, y)
        self.latencies_ = {} if arrays is None else _latencies(whole, compressed, arrays)
        self._compressed = model, self._told(compressed)
        return self

    def transform(self, model):
        """The small model of this one, or of one with other weights.

        Returns
        -------
        compressed : CompressedModel
        """
        check_is_fitted(self, "layers_")
        fitted, compressed = self._compressed
        if fitted is model:
            return compressed
        rows = None if self._arrays is None else tuple(a[:2] for a in self._arrays)
        graph, metadata = imported(model, rows)
        return self._told(self._written(graph, metadata, self._scheme()))

    def fit_transform(self, model, X=None, y=None):
        """`fit`, then `transform`."""
        return self.fit(model, X, y).transform(model)

    # ---- below -------------------------------------------------------------------------------

    def _scheme(self):
        """The parameters as a scheme; a ValueError names the one that is wrong."""
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
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

    def _written(self, graph, metadata, scheme):
        graph = passes.prepared(graph)
        weights = weights_of(graph)
        kept = [w for w in weights if any(fnmatchcase(w.label, p) for p in self.keep)]
        chosen = [w for w in weights if w not in kept]
        threads = _threads.effective(self.n_threads)
        counts = {} if self._arrays is None else importances(graph, self._arrays, chosen, threads)
        tensors = {
            w.name: _smaller(w, encoded(scheme, w.values, importance=counts.get(w.name),
                                        leading=w.leading))
            for w in chosen
        }  # fmt: skip
        self.layers_ = [_row(w, tensors.get(w.name)) for w in weights]
        made = {
            w.name: [w.values.nbytes, row["SQNR dB"], w.key]
            for w, row in zip(weights, self.layers_, strict=True)
        }
        layers = {
            w.key or w.name: [row["scheme"], row["reason"], None]
            for w, row in zip(weights, self.layers_, strict=True)
        }
        known = {"scheme": self.scheme, "layers": layers, "tensors": made}
        small = replaced(graph, tensors)
        return CompressedModel(small, {**metadata, "compression": known}, n_threads=self.n_threads)

    def _told(self, compressed):
        compressed.metadata["compression"] |= {
            "score": {k: _plain(v) for k, v in self.scores_.items()},
            "bytes before": self.nbytes_[0],
        }
        compressed.latencies = self.latencies_
        return compressed


def _smaller(weight, tensor):
    """The tensor, or the values as they are where codebook and scales take more than they save."""
    return tensor if tensor.nbytes < weight.values.nbytes else Raw(weight.values)


def _row(weight, tensor):
    if tensor is None or isinstance(tensor, Raw):
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
