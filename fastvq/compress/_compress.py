"""`compress`: which importer reads a model, and how its weights are to be stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastvq._schemes import FEW_BITS, INTEGERS, SCHEMES
from fastvq.compress._importing import imported
from fastvq.compress.weights import compared
from fastvq.runtime import CompressedModel
from fastvq.runtime.encoding import Raw
from fastvq.runtime.ops import operators

__all__ = ["SCHEMES", "compress"]


def compress(
    model,
    X=None,
    y=None,
    *,
    scheme="float32",
    metadata=None,
    dimensions=None,
    n_threads=None,
    **settings,
):
    """Make a model that runs with NumPy alone, and fits into a small file.

    Parameters
    ----------
    model : estimator, ONNX model, torch.nn.Module, mapping or CompressedModel
        A fitted scikit-learn estimator or pipeline; the path of an ONNX file, or an
        onnx.ModelProto; a module of PyTorch; a mapping of names to weights, which are stored and
        come out as the outputs; or a model of fastvq, to be stored in another way.
    X : array-like, or tuple of them, optional
        Examples of the inputs. A module of PyTorch needs them: it is traced with them. "int8"
        finds ranges on them; they should not be those that the model is judged by.
    y : array-like, optional
        What the examples are, by which "int8" tells scores, and keeps to a `max_drop`.
    scheme : {"float32", "float16", "int8", "int4", "codebook", "product", "sign", "auto"}
        How weights are stored; a mapping has patterns of names of layers, with a scheme of few
        bits for each. float16 halves the file; weights are rounded to 11 bits, and
        computed with as float32. A tensor with values beyond its range stays float32. int8 makes
        it four times smaller, and layers multiply integers: see :class:`ModelQuantizer`. The others
        write weights alone in few bits: see :class:`fastvq.compress.WeightQuantizer`.
    metadata : mapping, optional
        More for the file: see :class:`CompressedModel`. Classes of a classifier, what prepares
        pictures or text (:mod:`fastvq.runtime.preprocess`).
    dimensions : sequence of tuples of str or None, optional
        For a module of PyTorch: of each input the names of the dimensions that may differ from
        those of X. By default only the first may, the number of rows; ``[("N", "T")]`` is for
        sequences of any length.
    n_threads : int, optional
        What the model's calls use.
    **settings
        Of "int8": the parameters of :class:`ModelQuantizer`, such as activations="static"; of few
        bits: those of :class:`WeightQuantizer`, such as bits=3, group=32.

    Returns
    -------
    compressed : CompressedModel

    Raises
    ------
    TypeError
        For what is no model.
    ValueError
        For a model with operators that fastvq does not have (the error names the nodes), or a
        scheme that is none.
    ImportError
        Where the package that reads a model of this kind is missing; it names the `pip install`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastvq
    >>> weights = fastvq.compress({"a": np.arange(6.0, dtype="f4")}, scheme="float16")
    >>> weights()
    array([0., 1., 2., 3., 4., 5.], dtype=float32)
    """
    if not isinstance(scheme, Mapping) and scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    few_bits = isinstance(scheme, Mapping) or scheme in FEW_BITS
    if settings and not (few_bits or scheme in INTEGERS):
        raise TypeError(f"scheme={scheme!r} has no setting {', '.join(settings)}")
    graph, known = imported(model, X, dimensions)
    known = {**known, **(metadata or {})}
    if not few_bits and scheme in INTEGERS:
        from fastvq.compress.quantizer import ModelQuantizer

        quantizer = ModelQuantizer(scheme, n_threads=n_threads, **settings)
        return quantizer.fit_transform(CompressedModel(graph, known), X, y)
    if few_bits:
        from fastvq.compress.few_bits import WeightQuantizer

        quantizer = WeightQuantizer(scheme, n_threads=n_threads, **settings)
        return quantizer.fit_transform(CompressedModel(graph, known), X, y)
    if scheme == "float16":
        graph = _halved(graph)
    return CompressedModel(graph, known, n_threads=n_threads)


def _halved(graph):
    """The graph with its weights stored as float16, where they are in its range."""
    halved = {name: _half(graph.constants[name]) for name in _weights(graph)}
    return graph.with_constants(halved)


def _weights(graph):
    """Names of the constants that are read as weights alone, none of which have to be exact, or not
    read but given out."""
    exact = compared(graph)
    uses: dict[str, list[bool]] = {value.name: [True] for value in graph.outputs}
    for node in graph.nodes:
        weights = operators()[node.operator].weights if exact.isdisjoint(node.outputs) else ()
        for place, name in enumerate(node.inputs):
            uses.setdefault(name, []).append(place in weights)
    return [name for name in graph.constants if all(uses.get(name, [False]))]


def _half(encoded):
    if encoded.scheme != "float32":
        return encoded
    values = encoded.decode()
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return encoded if (np.isinf(half) & np.isfinite(values)).any() else Raw(half)
