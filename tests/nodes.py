"""One node as a model: what the tests of the runtime's operators share."""

import numpy as np
import pytest

from fastvq import _kernels
from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph, Node, Value
from fastvq.runtime.ops import operators
from fastvq.runtime.plan import Plan
from fastvq.runtime.registry import KernelCall


@pytest.fixture(params=_kernels.levels_runnable())
def level(request, monkeypatch):
    """Kernels of each level that runs here, one after the other."""
    monkeypatch.setattr(_kernels, "_ACTIVE", request.param)
    return request.param


def plan_of(operator, arrays, known=(), threads=1, **attributes):
    """A plan of one node; inputs at the places `known` are constants of the model."""
    names = ["" if a is None else f"input {i}" for i, a in enumerate(arrays)]
    given = [i for i, a in enumerate(arrays) if a is not None and i not in known]
    inputs = [Value(names[i], str(arrays[i].dtype), arrays[i].shape) for i in given]
    constants = {names[i]: Raw(arrays[i]) for i in known}
    wanted = operators()[operator]
    outputs = [f"output {i}" for i in range(wanted.n_outputs)]
    graph = Graph(
        [Node(operator, names, outputs, attributes)],
        inputs,
        [Value(name, "float32", ()) for name in outputs],
        constants,
    )
    return Plan(graph, {names[i]: arrays[i].shape for i in given}, {}, threads)


def compiled(operator, arrays, known=(), threads=1, **attributes):
    """Outputs by the kernels; an error where the node has none."""
    plan = plan_of(operator, arrays, known, threads, **attributes)
    assert all(isinstance(step, KernelCall) for step in plan.steps), f"{operator} has no kernel"
    found = plan.run(
        [np.ascontiguousarray(a) for i, a in enumerate(arrays) if a is not None and i not in known]
    )
    return found if len(found) > 1 else found[0]


def defined(operator, arrays, **attributes):
    """Outputs by the definition."""
    found = operators()[operator].run(arrays, attributes)
    return found if len(found) > 1 else found[0]
