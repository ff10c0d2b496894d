"""A model that runs: a graph with its weights, and plans for the shapes it has met."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import numpy as np

from fastvq import _threads
from fastvq.runtime.graph import DTYPES, Graph
from fastvq.runtime.plan import Plan

__all__ = ["CompressedModel"]

_KEPT_PLANS = 16


class CompressedModel:
    """A graph with its weights, callable on arrays, from several threads at once."""

    def __init__(self, graph: Graph, metadata: dict | None = None):
        self.graph = graph
        self.metadata = dict(metadata or {})
        self._packed: dict = {}
        self._plans: OrderedDict = OrderedDict()
        self._lock = Lock()

    def __call__(self, *arrays, n_threads=None, **named):
        """Outputs for inputs given in order or by name: an array, or a tuple of several."""
        found = self.run(self._named(arrays, named), n_threads=n_threads)
        return found[0] if len(found) == 1 else tuple(found)

    def run(self, inputs: dict, *, n_threads=None) -> list[np.ndarray]:
        arrays = self._checked(inputs)
        plan = self.plan([a.shape for a in arrays], n_threads)
        return plan.run(arrays)

    def plan(self, shapes, n_threads=None) -> Plan:
        """The plan for inputs of these shapes, made where it is not kept."""
        threads = _threads.effective(n_threads)
        key = (*map(tuple, shapes), threads)
        with self._lock:
            plan = self._plans.get(key)
            if plan is None:
                names = [value.name for value in self.graph.inputs]
                plan = Plan(
                    self.graph, dict(zip(names, shapes, strict=True)), self._packed, threads
                )
                self._plans[key] = plan
                if len(self._plans) > _KEPT_PLANS:
                    self._plans.popitem(last=False)
            else:
                self._plans.move_to_end(key)
        return plan

    def _named(self, arrays, named):
        names = [value.name for value in self.graph.inputs]
        if len(arrays) > len(names):
            raise TypeError(f"the model takes {len(names)} inputs ({', '.join(names)})")
        given = dict(zip(names, arrays, strict=False))
        if twice := set(given) & set(named):
            raise TypeError(f"input {', '.join(sorted(twice))} is given twice")
        return given | named

    def _checked(self, inputs):
        """Arrays in the graph's order, of its dtypes and dimensions."""
        names = [value.name for value in self.graph.inputs]
        if missing := [name for name in names if name not in inputs]:
            raise TypeError(f"input {', '.join(missing)} is missing")
        if extra := [name for name in inputs if name not in names]:
            raise TypeError(f"the model has no input {', '.join(extra)}, only {', '.join(names)}")
        sizes: dict[str, int] = {}
        return [_as_input(inputs[value.name], value, sizes) for value in self.graph.inputs]


def _as_input(array, value, sizes):
    array = np.asarray(array)
    dtype = DTYPES[value.dtype]
    if not np.can_cast(array.dtype, dtype, "same_kind") and array.dtype != np.bool_:
        raise TypeError(f"input {value.name!r} must be {dtype}, got {array.dtype}")
    if len(array.shape) != len(value.shape):
        raise ValueError(f"input {value.name!r} must have shape {value.shape}, got {array.shape}")
    for wanted, size in zip(value.shape, array.shape, strict=True):
        wanted = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
        if wanted != size:
            raise ValueError(
                f"input {value.name!r} must have shape {value.shape}, got {array.shape}"
            )
    return np.ascontiguousarray(array, dtype).reshape(array.shape)
