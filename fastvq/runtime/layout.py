"""Graph -> Graph: transposes sink through what does not mind them, until they cancel.

Models that come from elsewhere have their channels first, and their importer puts each convolution
between two transposes. Here no transpose is written at once: of each value it is remembered under
which name it is there in another order of axes, and nodes that can work in any order take it so.
One that cannot gets the transpose before it. So a chain of convolutions, activations, additions,
concatenations and pooling has one transpose at its beginning, and a flattening at its end puts
the order into the weights of the dense layer behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastvq.runtime.graph import DTYPES, Graph, Node
from fastvq.runtime.ops import Form, operators
from fastvq.runtime.rewrite import Derived, Rewriting

__all__ = ["forms", "settled"]

_ELEMENTWISE = frozenset(["Unary", "Cast", "Binary", "Where", "QAdd"])
# Those whose constants are the same for every element, or belong to the last axis.
_STEPS = frozenset(["Quantize", "Dequantize", "Requantize"])
_DENSE = frozenset(["Dense", "MatMul", "QDense", "DynamicDense"])
# Operators with one attribute that names an axis, all of whose inputs are of one shape but there.
_ALONG = frozenset(["Concat", "Softmax", "Split"])


def settled(graph: Graph) -> Graph:
    """The graph with as few transposes as this module knows to do with."""
    if not any(node.operator == "Transpose" for node in graph.nodes):
        return graph
    work = _Sinking(graph)
    for node in graph.nodes:
        work.take(node)
    return work.done()


class _There(NamedTuple):
    """A value that is the transpose of another: axis i of it is axis order[i] of `name`."""

    name: str
    order: tuple[int, ...]

    @property
    def plain(self):
        return self.order == tuple(range(len(self.order)))


class _Sinking(Rewriting):
    def __init__(self, graph):
        super().__init__(graph)
        self._graph = graph
        self._there: dict[str, _There] = {}
        self._same: dict[str, _There] = {}  # what transposes gave that cancel
        self._made: set[str] = set()  # of those, the ones that were written after all
        self._users = graph.users()
        self._shapes: dict | None = None

    def take(self, node):
        """Add a node, in the order of axes in which its inputs lie, if it can do with that."""
        inputs = [self._same[n].name if n in self._same else n for n in node.inputs]
        node = Node(node.operator, inputs, node.outputs, node.attributes, node.name)
        if node.operator == "Transpose":
            self._remember(node)
            return
        if any(name in self._there for name in node.inputs):
            rule = {
                **dict.fromkeys(_ELEMENTWISE, self._elementwise),
                **dict.fromkeys(_ALONG, self._along),
                **dict.fromkeys(_STEPS, self._steps),
                "QTable": self._table,
                "Pad": self._pad,
                "Reduce": self._reduce,
                "Flatten": self._flatten,
                "Reshape": self._flatten,
            }.get(node.operator)
            if rule and rule(node):
                return
        inputs = tuple(self._as_wanted(name) for name in node.inputs)
        self.nodes.append(Node(node.operator, inputs, node.outputs, node.attributes, node.name))

    def done(self):
        for value in self._graph.outputs:
            self._as_wanted(value.name)
        return self.finished()

    def _remember(self, node):
        source = node.inputs[0]
        order = tuple(node.attributes.get("order", ()))
        there = self._there.get(source)
        if not order and there is None:  # reversed, but nobody knows how many axes there are
            self.nodes.append(node)
            return
        order = order or tuple(range(len(there.order)))[::-1]
        if there is not None:
            source, order = there.name, tuple(there.order[i] for i in order)
        there = _There(source, order)
        (self._same if there.plain else self._there)[node.outputs[0]] = there

    def _as_wanted(self, name):
        """A value in its own order of axes; written now, if it is not there yet."""
        there = self._there.get(name) or self._same.get(name)
        if there is None or name in self._made:
            return name
        self.nodes.append(Node("Transpose", (there.name,), (name,), {"order": there.order}))
        self._made.add(name)
        return name

    def _add(self, node, inputs, order, attributes=None):
        """The node on inputs in another order, which its outputs have too."""
        names = [self.new_name(name) for name in node.outputs]
        attributes = node.attributes if attributes is None else attributes
        self.nodes.append(Node(node.operator, inputs, names, attributes, node.name))
        for name, other in zip(node.outputs, names, strict=True):
            self._there[name] = _There(other, order)

    def _common_order(self, names):
        """The order that all of these have but constants, which can be put into any; or None."""
        orders = {
            self._there[n].order if n in self._there else None
            for n in names
            if n not in self.constants
        }
        return orders.pop() if len(orders) == 1 else None

    def _lying(self, name, order):
        """A value in this order, or None: a constant that is broadcast is put into it."""
        if name in self._there:
            return self._there[name].name
        shape = self.constants[name].shape
        if not shape:
            return name
        values = self.raw(name)
        if values is None or len(shape) > len(order):
            return None
        values = values.reshape((1,) * (len(order) - len(shape)) + shape)
        return self.new_constant(name, np.transpose(values, np.argsort(order)))

    def _elementwise(self, node):
        order = self._common_order(node.inputs)
        if order is None:
            return False
        inputs = [self._lying(name, order) for name in node.inputs]
        if None in inputs:
            return False
        self._add(node, inputs, order)
        return True

    def _steps(self, node):
        return not any(self._has_axes(n) for n in node.inputs[1:]) and self._elementwise(node)

    def _has_axes(self, name):
        return name and (name not in self.constants or self.constants[name].shape != ())

    def _table(self, node):
        x, table = node.inputs
        if x not in self._there or table in self._there:
            return False
        self._add(node, [self._there[x].name, table], self._there[x].order)
        return True

    def _along(self, node):
        order = self._common_order(node.inputs)
        if order is None or any(name in self.constants for name in node.inputs):
            return False
        axis = node.attributes.get("axis", -1 if node.operator == "Softmax" else 0)
        inputs = [self._lying(name, order) for name in node.inputs]
        self._add(node, inputs, order, {**node.attributes, "axis": order[axis]})
        return True

    def _pad(self, node):
        x, pads, *rest = node.inputs
        widths = self._whole_numbers(pads)
        order = self._there[x].order if x in self._there else None
        if order is None or widths is None or any(rest[1:]) or len(widths) != 2 * len(order):
            return False
        back = np.argsort(order)
        moved = widths.reshape(2, -1)[:, back].ravel()
        self._add(node, [self._there[x].name, self.new_constant(pads, moved), *rest], order)
        return True

    def _reduce(self, node):
        x, *axes = node.inputs
        order = self._there[x].order if x in self._there else None
        if order is None:
            return False
        keep = node.attributes.get("keep", True)
        if axes and axes[0]:
            wanted = self._whole_numbers(axes[0])
            if wanted is None:
                return False
            moved = {order[axis] for axis in wanted.ravel()}
            axes = [self.new_constant(axes[0], np.array(sorted(moved), np.int64))]
        else:
            moved = set(order)
        left = order
        if not keep:
            rest = [axis for axis in order if axis not in moved]
            left = tuple(sorted(rest).index(axis) for axis in rest)
        self._add(node, [self._there[x].name, *axes], left)
        return True

    def _flatten(self, node):
        """(N, C, H, W) to (N, C·H·W), before dense layers only: their weights are put in order."""
        x = node.inputs[0]
        users = self._users.get(node.outputs[0], [])
        shape = self._shape(x) if x in self._there else None
        if shape is None or None in shape[1:] or self._there[x].order[0] != 0 or not users:
            return False
        n_features = int(np.prod(shape[1:], dtype=object))
        if not self._flattens(node, n_features):
            return False
        there = self._there[x]
        places = np.arange(n_features).reshape(shape[1:])
        # Feature i of the new order was feature order[i] of the old one.
        order = np.transpose(places, np.argsort(np.array(there.order[1:]))).ravel()
        if (order != places.ravel()).any():
            weights = [self._dense_weight(user, node.outputs[0], n_features) for user in users]
            if None in weights or self._is_output(node.outputs[0]):
                return False
            for weight in {*weights}:
                self._reorder(weight, order)
        inputs = there.name, *node.inputs[1:]
        self.nodes.append(Node(node.operator, inputs, node.outputs, node.attributes, node.name))
        return True

    def _flattens(self, node, n_features):
        if node.operator == "Flatten":
            return node.attributes.get("axis", 1) == 1
        wanted = self._whole_numbers(node.inputs[1])
        return wanted is not None and len(wanted) == 2 and wanted[1] in (-1, n_features)

    def _dense_weight(self, user, value, n_features):
        """(name, its axis of features) of the matrix of a dense layer that nobody else reads."""
        if user.operator not in _DENSE or user.inputs[0] != value:
            return None
        name = user.inputs[1]
        readers = self._users.get(name, [])
        if not self.is_raw(name) or len(readers) != 1 or self._is_output(name):
            return None
        matrix = self.constants[name]
        if len(matrix.shape) != 2:
            return None
        flipped = user.attributes.get("transpose_b", False)
        if user.attributes.get("transpose_a", False):
            return None
        axis = 0 if user.operator == "MatMul" and not flipped else 1
        return (name, axis) if matrix.shape[axis] == n_features else None

    def _reorder(self, weight, order):
        name, axis = weight
        matrix = self.constants[name]
        self.constants[name] = Derived(matrix, matrix.shape, lambda m: np.take(m, order, axis))

    def _is_output(self, name):
        return any(value.name == name for value in self._graph.outputs)

    def _whole_numbers(self, name):
        values = self.raw(name)
        return values if values is not None and values.dtype.kind == "i" else None

    def _shape(self, name) -> Sequence | None:
        if self._shapes is None:
            self._shapes = _shapes(self._graph)
        return self._shapes.get(name)


def _shapes(graph):
    """Shapes of values, with None for dimensions that depend on named ones.

    The shape rules are run for two choices of the named dimensions; what agrees does not depend.
    """
    first, second = forms(graph, 2), forms(graph, 3)
    return {
        name: tuple(
            a if a == b else None for a, b in zip(form.shape, second[name].shape, strict=True)
        )
        for name, form in first.items()
        if name in second and len(form.shape) == len(second[name].shape)
    }


def forms(graph: Graph, number: int) -> dict[str, Form]:
    """What is known of the values where all named dimensions are that number."""
    known: dict[str, Form] = {}
    for value in graph.inputs:
        shape = [number if isinstance(n, str) else n for n in value.shape]
        known[value.name] = Form(tuple(shape), DTYPES[value.dtype])
    for name, tensor in graph.constants.items():
        small = tensor.dtype.kind != "f"
        known[name] = Form(tensor.shape, tensor.dtype, tensor.decode() if small else None)
    for node in graph.nodes:
        inputs = [known.get(name) if name else None for name in node.inputs]
        if any(name and form is None for name, form in zip(node.inputs, inputs, strict=True)):
            continue
        operator = operators()[node.operator]
        try:
            found = operator.forms(inputs, node.attributes)
            if all(form is None or form.value is not None for form in inputs):
                arrays = [None if form is None else form.value for form in inputs]
                values = operator.run(arrays, node.attributes)
                found = [Form(v.shape, v.dtype, v) for v in values]
        except (ValueError, TypeError, IndexError, KeyError):
            continue  # what it makes is not known; whoever runs the graph hears of the error
        known.update(zip(node.outputs, found, strict=False))
    return known
