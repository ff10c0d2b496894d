"""What integers in a layer do to the outputs of the whole model, the rest of it being float.

A layer's own noise tells little: a token of a thousand times the size of all others makes every
ratio look well, and noise that goes to places that are masked out behind is none.

What comes before the layer gives what it gives in the float model. So that model goes ahead, as far
as the next layer in question, and what follows is run from there: half of the work, in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from fastvq.compress import stats
from fastvq.runtime.graph import Graph, Value
from fastvq.runtime.plan import Plan

__all__ = ["damages"]

_BYTES = 1 << 25  # of a model's values that outputs are compared on
# What layers do that do much on more rows, and do not seem to on so many: 2 % of all harm in MiniLM
# (beside 40 rows), 5 % in MobileNetV2, whose values leave room for 3 rows (beside 64).
_ROWS = 16


def damages(
    graph: Graph, arrays, ways: Mapping[object, Callable[[], Graph]], n_threads=1, most_rows=_ROWS,
    most_bytes=_BYTES,
) -> dict[object, float]:  # fmt: skip
    """The noise of the float outputs of other graphs, as a share of what this one gives.

    Parameters
    ----------
    graph : Graph
    arrays : list of ndarray
        Inputs; some rows are taken, evenly spread.
    ways : mapping of anything to a function that gives a graph of the same inputs and outputs
        Best in the order of the nodes in which they differ.
    most_rows, most_bytes : int
        Of examples, and of a graph's values on these.

    Returns
    -------
    shares : dict
        Σ (found - wanted)² / Σ wanted², of all rows or of the middle one, whichever is worse, and
        of the worst of the outputs; nothing where none is float.
        Costs two runs of this graph, and of each other one what follows its first own node.
    """
    ahead = _Ahead(graph, _sample(graph, arrays, n_threads, most_rows, most_bytes), n_threads)
    wanted = _floats(ahead.outputs(graph))
    if not wanted:
        return {}
    return {
        key: max(map(_share, _floats(ahead.outputs(make())), wanted)) for key, make in ways.items()
    }


def _sample(graph, arrays, n_threads, most_rows, most_bytes):
    """So many rows that memory stays bounded, whatever machine this is."""
    one = next(stats.batches_of(graph, arrays, 1))
    plan = Plan(graph, dict(zip(_names(graph), (a.shape for a in one), strict=True)), {}, n_threads)
    count = int(max(1, min(most_rows, most_bytes // max(plan.arena_bytes, 1))))
    n = len(arrays[0]) if arrays and arrays[0].ndim else 1
    spread = [a[:: max(1, n // count)] if a.ndim and len(a) == n else a for a in arrays]
    return next(stats.batches_of(graph, spread, count))


def _names(graph):
    return [value.name for value in graph.inputs]


class _Ahead:
    """A graph that has run as far as others, which begin as it does, part from it."""

    def __init__(self, graph, rows, n_threads):
        self._graph, self._threads = graph, n_threads
        self._nodes, self._data = {*map(id, graph.nodes)}, _data(graph)
        self._packed: dict = {}  # weights that stay as they are need to be packed once
        self._inputs = dict(zip(_names(graph), rows, strict=True))
        self._values: dict[str, np.ndarray] = {}  # where the last one parted

    def outputs(self, other):
        """What another graph gives, by name; not what it only passes on."""
        ready, parting = self._inputs | self._values, self._parting(other)
        self._values = self._run(self._graph, parting, ready, self._packed)
        made = {name for node in other.nodes for name in node.outputs}
        names = [value.name for value in other.outputs if value.name in made]
        return self._run(other, names, self._inputs | self._values, self._packed_alike(other))

    def _packed_alike(self, other):
        """A copy of what is packed: others may have other constants of the same names."""
        return {
            key: packed
            for key, packed in self._packed.items()
            if other.constants.get(key[0]) is self._graph.constants.get(key[0])
        }

    def _parting(self, other):
        """Names of what both make alike of the inputs, and nodes of the other one's own read."""
        same = {*self._inputs}
        same |= {n for n, c in other.constants.items() if self._graph.constants.get(n) is c}
        read = {value.name for value in other.outputs}
        for node in other.nodes:
            if id(node) in self._nodes and same.issuperset(filter(None, node.inputs)):
                same.update(node.outputs)
            else:
                read.update(node.inputs)
        return [name for name in self._data if name in read and name in same]

    def _run(self, graph, names, ready, packed):
        """These values of a graph: as they are ready, or made of others that are."""
        wanted, nodes = {*names}, []
        for node in reversed(graph.nodes):
            if any(name in wanted and name not in ready for name in node.outputs):
                wanted.update(node.inputs)
                nodes.append(node)
        made = {name for node in nodes for name in node.outputs}
        begin = {name: a for name, a in ready.items() if name in wanted and name not in made}
        missing = [name for name in names if name in made]
        part = Graph(
            nodes[::-1],
            [Value(name, a.dtype.name, a.shape) for name, a in begin.items()],
            [Value(name, "float32", ()) for name in missing],
            {name: c for name, c in graph.constants.items() if name in wanted},
        )
        plan = Plan(part, {name: a.shape for name, a in begin.items()}, packed, self._threads)
        found = plan.run([np.asarray(a, order="C") for a in begin.values()])
        found = dict(zip(missing, found, strict=True))
        return {name: found[name] if name in found else ready[name] for name in names}


def _data(graph):
    """Names of what depends on the values of inputs, in order; the others are known by shapes."""
    found = dict.fromkeys(_names(graph))
    for node in graph.nodes:
        if node.operator != "Shape" and not found.keys().isdisjoint(node.inputs):
            found |= dict.fromkeys(filter(None, node.outputs))
    return found


def _floats(outputs):
    return [a.astype(np.float64) for a in outputs.values() if a.dtype.kind == "f"]


def _share(found, wanted):
    """Noise of all rows beside all of what was wanted; or of the middle row, where that is worse:
    beside one row of huge values the noise of all others would be nothing."""
    noise, signal = (
        (a**2).reshape(len(a), -1).sum(axis=1) if a.ndim else a[None] ** 2
        for a in (found - wanted, wanted)
    )
    if not np.isfinite(noise).all():
        return math.inf
    return max(_ratio(noise.sum(), signal.sum()), float(np.median([*map(_ratio, noise, signal)])))


def _ratio(noise, signal):
    return float(noise / signal) if signal else float(noise > 0)
