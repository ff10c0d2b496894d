"""Graph -> Graph: floats between integers become integers.

Models that were quantized elsewhere say with Dequantize and Quantize which values are integers, and
leave the operators between them as they were. Here a product between the two becomes one of
integers, a function of one value a table, a sum and a mean what integers do for them, and what only
moves values moves integers. All that is not such a pattern stays as it is, in floats. Results are
those of the floats up to the rounding of a sum, a step at most.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastvq.runtime.affine import Affine
from fastvq.runtime.definitions.integers import check_sums, rounded
from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph, Node
from fastvq.runtime.layout import forms, settled
from fastvq.runtime.ops import Form, operators
from fastvq.runtime.rewrite import Derived, Rewriting

__all__ = ["in_integers"]

# Operators whose first input is moved, and no value of it changed.
_MOVES = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Expand",
                    "Tile", "Gather", "GatherND", "GatherElements"])  # fmt: skip
_PRODUCTS = {"Dense": "QDense", "Conv": "QConv", "MatMul": "QMatMul"}
_LEVELS = np.arange(-128, 128, dtype=np.int8)


def in_integers(graph: Graph) -> Graph:
    """The graph with integer layers where Dequantize and Quantize stand around float ones.

    Parameters
    ----------
    graph : Graph
        Without products that have an activation inside (as importers write it).
    """
    if not any(node.operator == "Dequantize" for node in graph.nodes):
        return graph
    work = _Integers(settled(graph))
    for node in work.source.nodes:
        work.take(node)
    return work.done()


class _Steps(NamedTuple):
    """What stands behind a float value: scale · (codes - zero_point)."""

    codes: str
    scale: np.float32
    zero_point: int


class _Table(NamedTuple):
    """What stands behind a value that is a function of one int8: values[codes + 128]."""

    codes: str
    values: np.ndarray


class _Integers(Rewriting):
    """Every float node is written as it is, with integers beside it: what nobody reads goes."""

    def __init__(self, graph):
        super().__init__(graph)
        self.source = graph
        self._steps: dict[str, _Steps] = {}
        self._tables: dict[str, _Table] = {}
        self._maker: dict[str, Node] = {}
        self._same: dict[str, str] = {}  # values that are another one
        self._factors: dict[str, np.ndarray] = {}  # of integer products, in float64
        self._weights: dict[str, str] = {}
        self._sizes = [forms(graph, number) for number in (2, 3)]

    def take(self, node):
        inputs = [self._same.get(name, name) for name in node.inputs]
        node = Node(node.operator, inputs, node.outputs, node.attributes, node.name)
        rule = {
            **dict.fromkeys(_MOVES, self._move),
            **dict.fromkeys(_PRODUCTS, self._product),
            "Dequantize": self._dequantize,
            "Quantize": self._quantize,
            "Concat": self._concat,
            "Pad": self._pad,
            "Pool": self._pool,
            "Unary": self._function,
            "Binary": self._function,
        }.get(node.operator)
        if not (rule and rule(node)):
            self._write(node)

    def done(self):
        wanted = {value.name for value in self.source.outputs}
        for name in wanted & set(self._same):
            self._write(Node("Unary", (self._same[name],), (name,), {"function": "identity"}))
        needed = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                wanted.update(node.inputs)
                needed.append(node)
        self.nodes = needed[::-1]
        graph = self.finished()
        graph.constants.update(
            (name, Raw(tensor.decode()))
            for name, tensor in graph.constants.items()
            if isinstance(tensor, Derived)
        )
        return graph

    # ---- writing ---------------------------------------------------------------------------------

    def _write(self, node):
        self.nodes.append(node)
        self._maker.update(dict.fromkeys(node.outputs, node))

    def _beside(self, node, operator, inputs, attributes, steps):
        """A node of integers whose result stands behind that of a float node."""
        name = self.new_name(node.outputs[0])
        self._write(Node(operator, inputs, (name,), attributes, node.name))
        self._stand(node.outputs[0], steps._replace(codes=name))

    def _stand(self, name, steps):
        self._steps[name] = steps
        real = (_LEVELS.astype(np.float32) - np.float32(steps.zero_point)) * steps.scale
        codes, values = steps.codes, real
        if codes in self._tables:  # a function of a function
            codes, table = self._tables[codes]
            values = real[table.astype(np.intp) + 128]
        self._tables[name] = _Table(codes, values)

    def _one(self, name):
        """The number that a constant is, else None."""
        values = self.raw(name) if name else np.zeros((), np.int8)
        return values.reshape(())[()] if values is not None and values.size == 1 else None

    def _scale_and_zero(self, node):
        scale, zero = (self._one([*node.inputs, ""][i]) for i in (1, 2))
        if scale is None or zero is None or not (np.isfinite(scale) and scale > 0):
            return None
        return scale, int(zero)

    # ---- to integers and back --------------------------------------------------------------------

    def _dequantize(self, node):
        steps = self._scale_and_zero(node)
        form = self._sizes[0].get(node.inputs[0])
        made = self._maker.get(node.inputs[0])
        wide = made is not None and made.attributes.get("dtype") == "int16"
        if steps and not wide and (form is None or form.dtype == np.int8):
            self._stand(node.outputs[0], _Steps(node.inputs[0], *steps))

    def _quantize(self, node):
        steps = self._scale_and_zero(node)
        if steps is None or node.attributes.get("dtype", "int8") != "int8":
            return False
        x, (y,) = node.inputs[0], node.outputs
        if x in self._steps and self._steps[x][1:] == steps:
            self._same[y] = self._steps[x].codes
            return True
        if x in self._tables:
            codes, values = self._tables[x]
            values = operators()["Quantize"].run([values, *map(np.asarray, steps)], {})[0]
            self._write(Node("QTable", (codes, self.new_constant(f"{y} table", values)), (y,)))
            self._tables[y] = _Table(codes, values)
            return True
        x, limits = self._unlimited(x, steps)
        made = self._maker.get(x)
        found = None
        if x in self._factors:
            found = self._requantized(made, steps, limits)
        elif made is not None and limits is not None:
            finish = {"Pool": self._mean, "Reduce": self._whole_mean, "Binary": self._sum}
            finish = finish.get(made.operator)
            found = finish(made, steps, limits) if finish else None
        if found is None:
            return False
        operator, inputs, attributes, shape = found
        name = y if shape is None else self.new_name(y)
        self._write(Node(operator, inputs, (name,), attributes, node.name))
        if shape is not None:
            shape = self.new_constant(f"{y} shape", np.array(shape, np.int64))
            self._write(Node("Reshape", (name, shape), (y,), {"zero_copies": True}))
        return True

    def _unlimited(self, x, steps):
        """What is quantized before activations that only cut values off, and the steps they cut."""
        low, high = -128, 127
        while (made := self._maker.get(x)) is not None and made.operator == "Unary":
            bounds = {"relu": (0.0, np.inf), "identity": (-np.inf, np.inf)}
            bounds["clip"] = tuple(made.attributes.get(name, 0.0) for name in ("alpha", "beta"))
            bounds = bounds.get(made.attributes["function"])
            if bounds is None or made.inputs[0] in self._tables:
                break
            with np.errstate(over="ignore"):
                ends = rounded(np.array(bounds, np.float32) / steps[0], steps[1])
            low, high = (int(np.clip(end, low, high)) for end in ends)
            x = made.inputs[0]
        return x, (low, high)

    # ---- what moves ------------------------------------------------------------------------------

    def _move(self, node):
        if node.inputs[0] in self._steps:
            steps = self._steps[node.inputs[0]]
            inputs = steps.codes, *node.inputs[1:]
            self._beside(node, node.operator, inputs, node.attributes, steps)

    def _concat(self, node):
        parts = [self._steps.get(name) for name in node.inputs]
        if None not in parts and len({steps[1:] for steps in parts}) == 1:
            codes = [steps.codes for steps in parts]
            self._beside(node, "Concat", codes, node.attributes, parts[0])

    def _pad(self, node):
        x, pads, value, *axes = [*node.inputs, ""][: max(3, len(node.inputs))]
        plain = node.attributes.get("mode", "constant") == "constant" and self._one(value) == 0
        if x in self._steps and plain:
            steps = self._steps[x]
            zero = self.new_constant(f"{node.name} zero", np.int8(steps.zero_point))
            inputs = steps.codes, pads, zero, *axes
            self._beside(node, "Pad", inputs, node.attributes, steps)

    def _pool(self, node):
        window, x = self._window(node), node.inputs[0]
        if not window or node.attributes["function"] != "max":
            return False
        window.pop("count_padding", None)
        if x in self._steps:
            self._beside(node, "QPool", [self._steps[x].codes], window, self._steps[x])
            return False
        form = self._sizes[0].get(x)
        if form is None or form.dtype != np.int8:
            return False
        self._write(Node("QPool", (x,), node.outputs, window, node.name))
        return True

    def _window(self, node):
        """The attributes of a pooling or convolution that integers can do, else None."""
        attributes = dict(node.attributes)
        if attributes.pop("ceil", False) or attributes.pop("same", ""):
            return None
        spatial = attributes.get("kernel", ())
        return attributes if len(spatial) <= 2 else None

    # ---- functions -------------------------------------------------------------------------------

    def _function(self, node):
        """A function of one int8, which the operands are functions of or constants."""
        known = [self._tables.get(name) for name in node.inputs]
        codes = {table.codes for table in known if table is not None}
        if len(codes) != 1:
            return
        arrays = []
        for name, table in zip(node.inputs, known, strict=True):
            array = self._one(name) if table is None else table.values
            if array is None or np.ndim(self.constants[name].shape if table is None else 0) > 1:
                return
            arrays.append(np.asarray(array))
        values = operators()[node.operator].run(arrays, node.attributes)[0]
        if values.dtype == np.float32:
            self._tables[node.outputs[0]] = _Table(codes.pop(), values)

    # ---- products --------------------------------------------------------------------------------

    def _product(self, node):
        """A product of integers, with floats as its result; Quantize makes integers of them."""
        x = self._steps.get(node.inputs[0])
        if x is None or node.attributes.get("activation", "identity") != "identity":
            return False
        if node.operator == "MatMul":
            return self._product_of_two(node, x)
        weight = self.constants.get(node.inputs[1])
        attributes = self._window(node)
        plain = isinstance(weight, Affine) and (
            weight.zero_points is None or not weight.zero_points.any()
        )
        if not plain or attributes is None or not 2 <= len(weight.shape) <= 4:
            return False
        values, scales = weight.int8()
        factor = np.float64(x.scale) * scales.astype(np.float64)
        bias = self._whole_bias(node, values, factor)
        if bias is None:
            return False
        self._layer(
            Node(
                _PRODUCTS[node.operator],
                (x.codes, self._kept(node.inputs[1], values), "", bias),
                node.outputs,
                {**attributes, "x_zero_point": x.zero_point, "dtype": "float32"},
                node.name,
            ),
            factor,
        )
        return True

    def _kept(self, name, values):
        if name not in self._weights:
            self._weights[name] = self.new_constant(name, values)
        return self._weights[name]

    def _whole_bias(self, node, values, factor):
        """Name of the bias in steps of the sums, "" where there is none; None where none fits."""
        bias = np.zeros(len(values), np.float64)
        given = node.inputs[2] if len(node.inputs) > 2 else ""
        if given:
            raw = self.raw(given)
            if raw is None or not factor.all():
                return None
            bias = np.rint(raw.astype(np.float64) / factor)
        if not (abs(bias) < 2.0**31).all():
            return None
        whole = bias.astype(np.int32)
        try:
            check_sums(*(Form(a.shape, a.dtype, a) for a in (values, whole)))
        except ValueError:
            return None
        return self.new_constant(given, whole) if given else ""

    def _product_of_two(self, node, a):
        b = self._steps.get(node.inputs[1])
        attributes = dict(node.attributes)
        ranks = [len(self._sizes[0].get(name, Form((), None)).shape) for name in node.inputs]
        if b is None or attributes.pop("transpose_a", False) or min(ranks) < 2:
            return False
        attributes |= {"a_zero_point": a.zero_point, "b_zero_point": b.zero_point}
        self._layer(
            Node("QMatMul", (a.codes, b.codes), node.outputs,
                 {**attributes, "dtype": "float32"}, node.name),
            np.float64(a.scale) * np.float64(b.scale),
        )  # fmt: skip
        return True

    def _layer(self, node, factor):
        self._factors[node.outputs[0]] = factor
        self._write(self._with_factor(node, factor))

    def _with_factor(self, node, factor):
        """The product with its multiplier, which QMatMul has as an attribute."""
        with np.errstate(over="ignore"):
            multiplier = np.asarray(factor, np.float32)
        if node.operator == "QMatMul":
            attributes = {**node.attributes, "multiplier": float(multiplier)}
            return Node(node.operator, node.inputs, node.outputs, attributes, node.name)
        x, weight, _, bias = node.inputs
        name = self.new_constant(f"{node.name} multiplier", multiplier)
        inputs = (x, weight, name, bias) if bias else (x, weight, name)
        return Node(node.operator, inputs, node.outputs, node.attributes, node.name)

    def _requantized(self, made, steps, limits):
        scale, zero_point = steps
        low, high = limits
        attributes = {**made.attributes, "dtype": "int8", "y_zero_point": zero_point}
        if made.operator == "QMatMul":
            if limits != (-128, 127):
                return None
        elif limits != (-128, 127):
            attributes |= {"low": low, "high": high}
        inputs = made.inputs
        if made.operator != "QMatMul":
            inputs = (*inputs[:2], "", *inputs[3:], *[""] * (4 - len(inputs)))
        node = Node(made.operator, inputs, ("y",), attributes, made.name)
        node = self._with_factor(node, self._factors[made.outputs[0]] / np.float64(scale))
        return node.operator, node.inputs, node.attributes, None

    # ---- means and sums --------------------------------------------------------------------------

    def _mean(self, made, steps, limits):
        x, window = self._steps.get(made.inputs[0]), self._window(made)
        if x is None or window is None or limits != (-128, 127):
            return None
        return "QPool", [x.codes], {**window, **_between(x, steps)}, None

    def _whole_mean(self, made, steps, limits):
        """A mean over all places of a picture or sequence."""
        x, axes = self._steps.get(made.inputs[0]), self.raw([*made.inputs, ""][1])
        form = self._sizes[0].get(made.inputs[0])
        if x is None or axes is None or form is None or made.attributes["function"] != "mean":
            return None
        rank = len(form.shape)
        places = sorted(int(axis) % rank for axis in axes.ravel())
        if rank not in (3, 4) or places != [*range(1, rank - 1)] or limits != (-128, 127):
            return None
        shape = None if made.attributes.get("keep", True) else (0, form.shape[-1])
        return "QPool", [x.codes], {"function": "average", **_between(x, steps)}, shape

    def _sum(self, made, steps, limits):
        a, b = (self._steps.get(name) for name in made.inputs)
        if a is None or b is None or made.attributes["function"] not in ("add", "subtract"):
            return None
        for sizes in self._sizes:
            shapes = {sizes[name].shape if name in sizes else None for name in made.inputs}
            if len(shapes) > 1 or None in shapes:
                return None
        factors = np.array([a.scale, b.scale], np.float64) / np.float64(steps[0])
        # The larger multiplier takes all the room there is, 2^14.
        shift = 14 - int(np.ceil(np.log2(factors.max())))
        if not 1 <= shift <= 30:
            return None
        multipliers = [int(m) for m in np.rint(factors * 2.0**shift)]
        sign = -1 if made.attributes["function"] == "subtract" else 1
        low, high = limits
        return "QAdd", [a.codes, b.codes], {
            "a_multiplier": multipliers[0],
            "b_multiplier": sign * multipliers[1],
            "shift": shift,
            "a_zero_point": a.zero_point,
            "b_zero_point": b.zero_point,
            "y_zero_point": steps[1],
            "low": low,
            "high": high,
        }, None  # fmt: skip


def _between(x, steps):
    """Attributes that take steps of x to others."""
    return {
        "multiplier": float(np.float64(x.scale) / np.float64(steps[0])),
        "x_zero_point": x.zero_point,
        "y_zero_point": steps[1],
    }
