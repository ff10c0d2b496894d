"""What integers in a layer do to the outputs of the whole model, the rest of it being float.

A layer's own noise tells little: a token of a thousand times the size of all others makes every
ratio look well, and noise that goes to places that are masked out behind is none.
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
_ROWS = 16


def damages(
    graph: Graph, arrays, ways: Mapping[object, Callable[[], Graph]], n_threads=1
) -> dict[object, float]:
    """The noise of the float outputs of other graphs, as a share of what this one gives.

    Parameters
    ----------
    graph : Graph
    arrays : list of ndarray
        Inputs; some rows are taken, evenly spread.
    ways : mapping of anything to a function that gives a graph of the same inputs and outputs
        Where it has constants of the same names, they are the same.

    Returns
    -------
    shares : dict
        Σ (found - wanted)² / Σ wanted², the worst of the outputs; nothing where none is float.
        Costs a run of each graph.
    """
    rows, packed = _sample(graph, arrays, n_threads), {}
    wanted = _outputs(graph, rows, packed, n_threads)
    if not wanted:
        return {}
    # Weights that stay as they are were packed for the first.
    return {
        key: max(map(_share, _outputs(make(), rows, dict(packed), n_threads), wanted))
        for key, make in ways.items()
    }


def _sample(graph, arrays, n_threads):
    """So many rows that memory stays bounded, whatever machine this is."""
    one = next(stats.batches_of(graph, arrays, 1))
    plan = Plan(graph, dict(zip(_names(graph), (a.shape for a in one), strict=True)), {}, n_threads)
    count = int(max(1, min(_ROWS, _BYTES // max(plan.arena_bytes, 1))))
    n = len(arrays[0]) if arrays and arrays[0].ndim else 1
    spread = [a[:: max(1, n // count)] if a.ndim and len(a) == n else a for a in arrays]
    return next(stats.batches_of(graph, spread, count))


def _names(graph):
    return [value.name for value in graph.inputs]


def _outputs(graph, rows, packed, n_threads):
    """The float outputs for these rows."""
    made = {name for node in graph.nodes for name in node.outputs}
    outputs = [value for value in graph.outputs if value.name in made]
    seen = Graph(graph.nodes, graph.inputs, [Value(v.name, v.dtype, ()) for v in outputs],
                 graph.constants)  # fmt: skip
    shapes = dict(zip(_names(graph), (a.shape for a in rows), strict=True))
    found = Plan(seen, shapes, packed, n_threads).run([np.ascontiguousarray(a) for a in rows])
    return [array.astype(np.float64) for array in found if array.dtype.kind == "f"]


def _share(found, wanted):
    noise, signal = ((found - wanted) ** 2).sum(), (wanted**2).sum()
    if not math.isfinite(noise):
        return math.inf
    return float(noise / signal) if signal else float(noise > 0)
