"""Models as graphs: named values, and nodes that make values out of values.

A graph is in static single assignment form: every value has one origin, which is an input, a
constant or one node's output, and nodes stand in an order in which each finds its inputs made.
Dimensions of inputs and outputs are numbers or names; equal names mean equal numbers in one call.
The operators are those of :mod:`fastvq.runtime.ops`, not those of any exchange format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastvq.runtime.encoding import EncodedTensor
from fastvq.runtime.ops import operators

__all__ = ["DTYPES", "Graph", "GraphError", "Node", "Value"]

# Element types of values, by name.
DTYPES = {
    name: np.dtype(name)
    for name in ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
}
_MOST_DIMENSIONS = 16
_LARGEST_DIMENSION = 1 << 40


class GraphError(ValueError):
    """A graph that is none: a cycle, a value without an origin, an operator that is not there."""


@dataclass(frozen=True)
class Value:
    """An input or output: its name, element type, and dimensions, each a number or a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.dtype not in DTYPES:
            raise GraphError(
                f"value {self.name!r} has dtype {self.dtype!r}, not one of {[*DTYPES]}"
            )
        if len(self.shape) > _MOST_DIMENSIONS or not all(map(_is_dimension, self.shape)):
            raise GraphError(f"value {self.name!r} has dimensions that cannot be: {self.shape}")


@dataclass(frozen=True)
class Node:
    """One operation. An input that is left out is the empty name."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping = field(default_factory=dict)
    name: str = ""

    def __post_init__(self):
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "outputs", tuple(self.outputs))
        object.__setattr__(self, "name", self.name or self.outputs[0] if self.outputs else "")

    def __str__(self):
        return f"{self.operator} {self.name!r}"


class Graph:
    """Nodes in order, with what goes in and what comes out.

    Parameters
    ----------
    nodes : sequence of Node
        In any order: they are put into one that can be run.
    inputs, outputs : sequences of Value
    constants : mapping of name to EncodedTensor

    Raises
    ------
    GraphError
        If the whole is not a graph that could be run; the error names the node and the value.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        constants: Mapping[str, EncodedTensor],
    ):
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.constants = dict(constants)
        self._check_origins(nodes)
        for node in nodes:
            _check_node(node)
        self.nodes = self._in_order(nodes)

    def users(self) -> dict[str, list[Node]]:
        """The nodes that read each value."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        return users

    def with_constants(self, changed: Mapping[str, EncodedTensor]) -> Graph:
        """The same graph with other tensors for some of its constants."""
        return Graph(self.nodes, self.inputs, self.outputs, {**self.constants, **changed})

    def _check_origins(self, nodes):
        made = [value.name for value in self.inputs] + [*self.constants]
        made += [name for node in nodes for name in node.outputs if name]
        if len(set(made)) != len(made):
            twice = sorted({name for name in made if made.count(name) > 1})
            raise GraphError(f"values made more than once: {', '.join(twice)}")
        if "" in self.constants or any(not value.name for value in self.inputs):
            raise GraphError("a value without a name")
        known = set(made)
        for node in nodes:
            for name in node.inputs:
                if name and name not in known:
                    raise GraphError(f"{node} reads {name!r}, which nothing makes")
        for value in self.outputs:
            if value.name not in known:
                raise GraphError(f"output {value.name!r} is made by nothing")

    def _in_order(self, nodes):
        """The nodes so that each comes after those it reads from; the given order where it can."""
        made = {value.name for value in self.inputs} | set(self.constants) | {""}
        waiting: dict[str, list[int]] = {}
        missing = []
        for number, node in enumerate(nodes):
            wanted = {name for name in node.inputs if name not in made}
            missing.append(len(wanted))
            for name in wanted:
                waiting.setdefault(name, []).append(number)
        ready = [number for number, count in enumerate(missing) if not count]
        ordered = []
        for number in ready:  # grows while it is walked
            ordered.append(number)
            for name in nodes[number].outputs:
                for follower in waiting.get(name, []):
                    missing[follower] -= 1
                    if not missing[follower]:
                        ready.append(follower)
        if len(ordered) < len(nodes):
            stuck = next(node for number, node in enumerate(nodes) if missing[number] > 0)
            raise GraphError(f"the graph has a cycle through {stuck}")
        if all(missing_before(nodes, made)):
            return tuple(nodes)
        return tuple(nodes[number] for number in ordered)


def missing_before(nodes, made):
    """For each node, whether all its inputs are made by those before it."""
    made = set(made)
    for node in nodes:
        yield all(name in made for name in node.inputs)
        made.update(node.outputs)


def _is_dimension(size):
    if isinstance(size, str):
        return bool(size)
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= _LARGEST_DIMENSION


def _check_node(node):
    operator = operators().get(node.operator)
    if operator is None:
        raise GraphError(f"node {node.name!r} has the operator {node.operator!r}, unknown here")
    try:
        operator.check(node.inputs, node.outputs, node.attributes)
    except ValueError as error:
        raise GraphError(f"{node}: {error}") from None
