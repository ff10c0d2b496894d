"""What passes over graphs share: a graph taken apart, and put together anew node by node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastvq.runtime.encoding import EncodedTensor, Raw
from fastvq.runtime.graph import Graph, Node

__all__ = ["Derived", "Rewriting"]


class Derived(EncodedTensor):
    """A tensor made of another one whenever it is read: passes keep no second copy of weights."""

    def __init__(self, base: EncodedTensor, shape: tuple, function: Callable):
        self.base, self.shape, self.dtype = base, tuple(shape), base.dtype
        self._function = function

    def decode(self):
        return np.ascontiguousarray(self._function(self.base.decode()), self.dtype)


class Rewriting:
    """The nodes and constants of a graph in the making.

    Attributes
    ----------
    nodes : list of Node
    constants : dict of name to EncodedTensor
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self.constants: dict[str, EncodedTensor] = dict(graph.constants)
        self.nodes: list[Node] = []
        self._names = {value.name for value in graph.inputs} | set(graph.constants)
        self._names |= {name for node in graph.nodes for name in node.outputs}

    def new_name(self, like: str) -> str:
        """A name that no value has yet."""
        number, name = 1, f"{like}'"
        while name in self._names:
            number += 1
            name = f"{like}'{number}"
        self._names.add(name)
        return name

    def new_constant(self, like: str, values) -> str:
        name = self.new_name(like)
        self.constants[name] = Raw(values)
        return name

    def derive(self, name: str, shape: tuple, function: Callable) -> str:
        """A constant that is a function of another one's values."""
        derived = self.new_name(name)
        self.constants[derived] = Derived(self.constants[name], shape, function)
        return derived

    def is_raw(self, name: str) -> bool:
        """Whether this is a constant that is stored as it is, or is made of such a one."""
        tensor = self.constants.get(name)
        while isinstance(tensor, Derived):
            tensor = tensor.base
        return isinstance(tensor, Raw)

    def raw(self, name: str) -> np.ndarray | None:
        """The values of a constant that is stored as it is; None of any other."""
        return self.constants[name].decode() if self.is_raw(name) else None

    def finished(self) -> Graph:
        """The graph, without constants that nothing reads any more."""
        read = {name for node in self.nodes for name in node.inputs}
        read |= {value.name for value in self._graph.outputs}
        constants = {name: tensor for name, tensor in self.constants.items() if name in read}
        return Graph(self.nodes, self._graph.inputs, self._graph.outputs, constants)
