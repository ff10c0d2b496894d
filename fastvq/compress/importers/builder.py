"""A graph that grows operation by operation.

An operation whose inputs are all constants is computed at once and leaves a constant behind: so an
importer writes down what an operator means, transposed weights and sums of biases included, and
needs no second path for what is known already.
"""

from __future__ import annotations

import numpy as np

from fastvq.runtime.affine import Affine
from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph, Node
from fastvq.runtime.ops import operators

__all__ = ["Builder"]

# Results larger than this, and larger than twice what they are made of, are left to the plan:
# zeros of some shape need not travel in a file.
_SMALL = 1 << 16
# Operators behind which steps are still known.
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")
# Values in a row that may share a scale where not the whole row does.
_BLOCKS = (256, 128, 64, 32, 16, 8)


class Builder:
    """The nodes and constants of a graph in the making; values go by their names.

    Attributes
    ----------
    label : str
        The name that nodes get while it stands.
    notes : dict
        What an importer wants to remember of a value, by its name.
    """

    def __init__(self):
        self.label = ""
        self.notes: dict[str, object] = {}
        self._nodes: list[Node] = []
        self._maker: dict[str, Node] = {}
        self._constants: dict[str, np.ndarray] = {}
        self._origin: dict[str, str] = {}  # of a computed constant, the one it was made of
        self._folded: dict[tuple, tuple[str, ...]] = {}
        self._names: dict[str, str] = {}  # better names, for the end
        self._taken: set[str] = set()
        # Of constants that are scale · (q - zero point): q, scales, zero points, all of one shape.
        self._steps: dict[str, tuple[np.ndarray, ...]] = {}

    # ---- values ------------------------------------------------------------------------------

    def reserve(self, names):
        """Keep these names for values that will be named so."""
        self._taken.update(names)

    def enter(self, name, array):
        """A constant under a name of the model's own."""
        self._constants[name] = np.asarray(array)
        return name

    def constant(self, array, name="constant"):
        """A constant; the same small one is entered once."""
        array = np.asarray(array)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if array.nbytes > _SMALL or key not in self._folded:
            self._folded[key] = (self.enter(self._fresh(name), array),)
        return self._folded[key][0]

    def evenly_spaced(self, values, scales, zero_points, name):
        """The constant scale · (values - zero point), which stays 8 bits wide in files.

        Parameters
        ----------
        values : ndarray of int8
        scales, zero_points : ndarrays of float32 and int8 that broadcast to the shape of `values`
        name : str
            The constant that it was made of.
        """
        levels = values.astype(np.float32) - zero_points.astype(np.float32)
        fresh = self.enter(self._fresh(f"{name}.real"), levels * scales)
        self._origin[fresh] = self._origin.get(name, name)
        self._steps[fresh] = tuple(
            np.broadcast_to(a, values.shape) for a in (values, scales, zero_points)
        )
        return fresh

    def value(self, name):
        """The array of a constant, else None."""
        return self._constants.get(name)

    def maker(self, name):
        """The node that makes a value, else None."""
        return self._maker.get(name)

    def call(self, name, better):
        """Give a value that a node makes its final name; a name given before is kept."""
        if name in self._maker and name not in self._names:
            self._names[name] = better

    # ---- operations --------------------------------------------------------------------------

    def add(self, operator, *inputs, n_outputs=1, **attributes):
        """The output of an operation, or a tuple of `n_outputs`."""
        inputs = [name or "" for name in inputs]
        while inputs and not inputs[-1]:
            inputs.pop()
        if all(not name or name in self._constants for name in inputs):
            found = self._compute(operator, tuple(inputs), n_outputs, attributes)
            if found is not None:
                return found[0] if n_outputs == 1 else found
        outputs = tuple(self._fresh(f"{self.label}.{operator.lower()}") for _ in range(n_outputs))
        node = Node(operator, tuple(inputs), outputs, attributes, self.label)
        self._nodes.append(node)
        self._maker.update(dict.fromkeys(outputs, node))
        return outputs[0] if n_outputs == 1 else outputs

    def unary(self, function, x, alpha=0.0, beta=0.0):
        attributes = {"alpha": float(alpha)} if alpha else {}
        attributes |= {"beta": float(beta)} if beta else {}
        return self.add("Unary", x, function=function, **attributes)

    def binary(self, function, a, b):
        return self.add("Binary", a, b, function=function)

    def integers(self, *values):
        return self.constant(np.array(values, np.int64))

    def concat(self, values, axis=0):
        return values[0] if len(values) == 1 else self.add("Concat", *values, axis=axis)

    def reshape(self, x, *dimensions):
        """x in another shape; a dimension may be a number, 0 for that of x, or a vector's name."""
        if all(isinstance(n, int) for n in dimensions):
            zero = {"zero_copies": True} if 0 in dimensions else {}
            return self.add("Reshape", x, self.integers(*dimensions), **zero)
        parts = [self.integers(n) if isinstance(n, int) else n for n in dimensions]
        return self.add("Reshape", x, self.concat(parts))

    def dimensions(self, x, start, end):
        """Dimensions start .. end of x as a vector."""
        return self.add("Shape", x, start=start, end=end)

    def transpose(self, x, order):
        """x with its axes in another order; one transposition after another is one, or none."""
        made = self.maker(x)
        if made is not None and made.operator == "Transpose" and made.attributes.get("order"):
            order = [made.attributes["order"][i] for i in order]
            x = made.inputs[0]
        if [*order] == [*range(len(order))]:
            return x
        return self.add("Transpose", x, order=tuple(int(i) for i in order))

    def channels_last(self, x, rank):
        return self.transpose(x, (0, *range(2, rank), 1)) if rank > 2 else x

    def channels_first(self, x, rank):
        return self.transpose(x, (0, rank - 1, *range(1, rank - 1))) if rank > 2 else x

    def reduce(self, function, x, axes=None, keep=True):
        axes = None if axes is None else self.integers(*axes)
        return self.add("Reduce", x, axes, function=function, **({} if keep else {"keep": False}))

    # ---- the end -----------------------------------------------------------------------------

    def graph(self, inputs, outputs, stored=None):
        """The graph of what the outputs depend on.

        Parameters
        ----------
        inputs : sequence of Value
        outputs : sequence of (Value, str)
            Each with the value that it is.
        stored : callable, optional
            Gives the array that is stored for a constant.
        """
        stored = stored or (lambda array: array)
        nodes = [*self._nodes]
        given = {value.name for value in inputs}
        for value, made_as in outputs:
            if self._names.get(made_as) != value.name and value.name not in given:
                nodes.append(Node("Unary", (made_as,), (value.name,), {"function": "identity"}))
            elif value.name in given and made_as != value.name:
                raise ValueError(f"output {value.name!r} has the name of an input")
        nodes = _needed(nodes, {value.name for value, _ in outputs}, self._names)
        read = {name for node in nodes for name in node.inputs}
        constants = {name: array for name, array in self._constants.items() if name in read}
        names = self._names | self._original_names(constants)
        renamed = [
            Node(
                node.operator,
                tuple(names.get(n, n) for n in node.inputs),
                tuple(names.get(n, n) for n in node.outputs),
                node.attributes,
                node.name,
            )
            for node in nodes
        ]
        kept, unfolding = {}, []
        for name, array in constants.items():
            encoded = _affine(*self._steps[name]) if name in self._steps else None
            encoded, final = encoded or Raw(stored(array)), names.get(name, name)
            if encoded.shape == array.shape:
                kept[final] = encoded
                continue
            blocks, shape = self._fresh(f"{final}.blocks"), self._fresh(f"{final}.shape")
            kept[blocks], kept[shape] = encoded, Raw(np.array(array.shape, np.int64))
            unfolding.append(Node("Reshape", (blocks, shape), (final,)))
        return Graph([*unfolding, *renamed], inputs, [value for value, _ in outputs], kept)

    def _original_names(self, constants):
        """A computed constant takes the name of what it was made of where that is not needed."""
        names, given = {}, set(constants)
        for name in constants:
            origin = self._origin.get(name)
            if origin and origin not in given:
                names[name] = origin
                given.add(origin)
        return names

    def _compute(self, operator, inputs, n_outputs, attributes):
        """Constants for what an operation gives of constants; None where they would be large."""
        key = (operator, inputs, n_outputs, repr(sorted(attributes.items())))
        if key in self._folded:
            return self._folded[key]
        arrays = [self._constants[name] if name else None for name in inputs]
        with np.errstate(all="ignore"):
            found = operators()[operator].run(arrays, attributes)
        room = max(_SMALL, 2 * sum(a.nbytes for a in arrays if a is not None))
        if sum(a.nbytes for a in found) > room:
            return None
        origin = next((name for name in inputs if name), "")
        origin = self._origin.get(origin, origin)
        names = []
        for array in found[:n_outputs]:
            name = self._fresh(f"{origin or self.label}.{operator.lower()}")
            names.append(self.enter(name, np.ascontiguousarray(array).reshape(array.shape)))
            self._origin[name] = origin
        if operator in _MOVES and inputs[0] in self._steps:
            self._steps[names[0]] = tuple(
                operators()[operator].run([a, *arrays[1:]], attributes)[0]
                for a in self._steps[inputs[0]]
            )
        self._folded[key] = tuple(names)
        return self._folded[key]

    def _fresh(self, name):
        fresh, number = name, 1
        while fresh in self._taken:
            number += 1
            fresh = f"{name}{number}"
        self._taken.add(fresh)
        return fresh


def _needed(nodes, wanted, names):
    """Those of the nodes on which a wanted value depends."""
    wanted, needed = set(wanted), []
    for node in reversed(nodes):
        if any(name in wanted or names.get(name) in wanted for name in node.outputs):
            wanted.update(node.inputs)
            needed.append(node)
    return needed[::-1]


def _affine(values, scales, zero_points):
    """Steps whose scales are the same in a row, or in each block of it; None where they are not.

    Blocks become the rows.
    """
    if values.ndim < 2 or not values.size or not (np.isfinite(scales) & (scales >= 0)).all():
        return None
    width = values.size // len(values)
    for block in (width, *(b for b in _BLOCKS if b < width and not width % b)):
        by_block = [a.reshape(-1, block) for a in (scales, zero_points)]
        if any((a != a[:, :1]).any() for a in by_block):
            continue
        per_row = [np.ascontiguousarray(a[:, 0]) for a in by_block]
        if all((a == a[0]).all() for a in per_row):
            per_row = [a[:1] for a in per_row]
        points = per_row[1] if per_row[1].any() else None
        values = values if block == width else values.reshape(-1, block)
        return Affine(values, per_row[0], points)
    return None
