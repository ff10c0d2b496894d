"""Weights alone in few bits: the graph stays as it is, and its constants are written down shorter.

Which constants these are, how much an error in each of their columns weighs, and the graph with
others in their place. `fastvq/compress/schemes` has the ways to write them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from fastvq.compress import stats
from fastvq.runtime.definitions.codes import has_levels, has_tables, levels_fit
from fastvq.runtime.encoding import EncodedTensor, Raw
from fastvq.runtime.graph import Graph, Node
from fastvq.runtime.ops import operators

__all__ = [
    "MOVES", "RECURRENT", "SMALLEST", "Weight", "coded_layers", "compared", "importances",
    "replaced", "values_read", "weights_of",
]  # fmt: skip

SMALLEST = 1024  # values of a weight that is worth a codebook or scales
# Give again what they read, in another place or shape.
MOVES = frozenset(
    ("Expand", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
     "Unsqueeze")
)  # fmt: skip
RECURRENT = ("LSTM", "GRU", "RNN")


class Weight(NamedTuple):
    """A constant that is read as weights and nothing else.

    Attributes
    ----------
    name : str
    values : ndarray of float32
    leading : int
        Axes that count rows.
    readers : tuple of (Node, place among its inputs)
    """

    name: str
    values: np.ndarray
    leading: int
    readers: tuple[tuple[Node, int], ...]

    @property
    def label(self) -> str:
        """The layer's name."""
        return self.readers[0][0].name if self.readers else self.name

    def is_named(self, pattern: str) -> bool:
        """Whether the layer's name or its own is like the pattern, as in a shell."""
        return any(fnmatchcase(name, pattern) for name in (self.label, self.name))

    @property
    def key(self) -> str | None:
        """The first output of the layer."""
        return self.readers[0][0].outputs[0] if self.readers else None


def weights_of(graph: Graph, smallest: int = SMALLEST) -> list[Weight]:
    """The weights that could be written in few bits, in the order of the graph's constants.

    Those of float32, finite, of two dimensions or more and not small, all of whose readers take
    them as weights and need not be exact (`compared`); of an embedding its rows. What is given out
    has no reader beside.
    """
    exact = compared(graph)
    uses: dict[str, list] = {}
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            uses.setdefault(name, []).append((node, place))
    given = {value.name for value in graph.outputs}
    found = []
    for name, tensor in graph.constants.items():
        readers = tuple(uses.get(name, ()))
        if not isinstance(tensor, Raw) or tensor.values.dtype != np.float32:
            continue
        if len(tensor.shape) < 2 or math.prod(tensor.shape) < smallest:
            continue
        if not all(map(_is_weight, readers)) or (name in given) == bool(readers):
            continue
        if any(not exact.isdisjoint(node.outputs) for node, _ in readers):
            continue
        if not np.isfinite(tensor.values).all():
            continue
        recurrent = any(node.operator in RECURRENT for node, _ in readers)
        found.append(Weight(name, tensor.values, 2 if recurrent else 1, readers))
    return found


def compared(graph: Graph) -> set[str]:
    """Names of values that are asked whether they are equal to others, as numbers of bins are."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.operator == "Binary" and node.attributes["function"] == "equal":
            found.update(node.inputs)
        elif node.operator in MOVES and not found.isdisjoint(node.outputs):
            found.add(node.inputs[0])
    return found


def _is_weight(reader):
    node, place = reader
    if place not in operators()[node.operator].weights:
        return False
    return node.operator != "Gather" or node.attributes.get("axis", 0) == 0


def importances(
    graph: Graph, arrays, weights: list[Weight], n_threads=1, mask=None, limits=None
) -> dict:
    """The mean square of what is read in each column of a weight, by name: float64 (width,).

    Weights of which that is not known are left out: embeddings. Places of a sequence of which the
    input `mask` has 0 do not count, and examples as far as their `limits` say.
    """
    wanted = {w.name: values_read(w) for w in weights}
    names = [*dict.fromkeys(name for many in wanted.values() for name in many)]
    if not names:
        return {}
    sums = dict.fromkeys(names, 0.0)
    rows = dict.fromkeys(names, 0)
    for places, values in stats.masked_runs(graph, arrays, names, n_threads, mask, limits):
        for name, value in zip(names, values, strict=True):
            value = stats.counted(value, places)
            flat = value.reshape(-1, value.shape[-1]).astype(np.float64)
            sums[name] = sums[name] + (flat * flat).sum(axis=0)
            rows[name] += len(flat)
    found = {}
    for weight in weights:
        n_in = weight.values.shape[-1]
        seen = [sums[name] / rows[name] for name in wanted[weight.name] if rows[name]]
        seen = [square for square in seen if square.shape == (n_in,)]
        if seen and all(np.isfinite(square).all() for square in seen):
            width = math.prod(weight.values.shape[weight.leading :])
            found[weight.name] = np.tile(np.mean(seen, axis=0), width // n_in)
    return found


def values_read(weight: Weight) -> list[str]:
    """The values whose last axis runs along the columns of a weight, one for each such reader.

    Of recurrent weights these are the states that a layer gives: those of all steps but the last
    are what it reads again.
    """
    found = [
        node.inputs[0] if place == 1 else node.outputs[0]
        for node, place in weight.readers
        if (place == 1 and node.operator in ("Dense", "Conv", "ConvTranspose", *RECURRENT))
        or (place == 2 and node.operator in RECURRENT)
    ]
    return [*filter(None, found)]


def replaced(graph: Graph, tensors: Mapping[str, EncodedTensor]) -> Graph:
    """The graph with these constants in place of those of the same names."""
    return graph.with_constants(tensors)


def coded_layers(graph: Graph) -> Graph:
    """The graph with layers that multiply whole numbers, where their weights are such."""
    return Graph(
        [_coded(node, graph) for node in graph.nodes], graph.inputs, graph.outputs, graph.constants
    )


def _coded(node, graph):
    takes = {"Dense": _dense_takes, "LSTM": _recurrence_takes, "GRU": _recurrence_takes}
    if node.operator not in takes or not takes[node.operator](node, graph):
        return node
    return replace(node, operator=f"Coded{node.operator}")


def _dense_takes(node, graph):
    weight, *bias = (graph.constants.get(name) for name in node.inputs[1:] if name)
    if weight is None or not (has_tables(weight) or (has_levels(weight) and levels_fit(weight))):
        return False
    return all(isinstance(b, Raw) and b.dtype == np.float32 for b in bias)


def _recurrence_takes(node, graph):
    """Whether both matrices are of few bits, and all else but the sequence is known, in float32."""
    places = 4 if node.operator == "LSTM" else 5
    matrices, biases = node.inputs[1:3], node.inputs[3:places]
    known = [graph.constants.get(name) for name in (*matrices, *biases) if name]
    return all(c is not None and c.dtype == np.float32 for c in known) and all(
        not isinstance(graph.constants[name], Raw) for name in matrices
    )
