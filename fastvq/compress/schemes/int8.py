"""8-bit integers: a float graph becomes one whose layers multiply integers.

Three things happen to a layer. It stays float; its weights alone become int8 and are multiplied as
floats; or it becomes an integer layer. Of integer layers there are two kinds:

dynamic   reads and gives floats; the steps of its input are found as it runs (`dynamic`).
static    reads and gives int8 in steps that calibration found; what lies between such layers works
          on int8 too, and values change form at the borders only (`Static`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fastvq.compress import stats
from fastvq.runtime import functions
from fastvq.runtime.affine import Affine
from fastvq.runtime.definitions.products import Windows
from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph, Node
from fastvq.runtime.layout import forms as forms_of
from fastvq.runtime.ops import operators
from fastvq.runtime.rewrite import Rewriting

__all__ = ["Quantized", "Static", "candidates", "dynamic", "rounded_rows"]

_WIDEST = 1 << 16  # products of a sum, as definitions.integers has it
_MOST = np.iinfo(np.int32).max
# Give again what they read, in another place or shape.
_MOVES = frozenset(
    [
        "Expand",
        "Flatten",
        "Gather",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
_RECURRENT = ("LSTM", "GRU", "RNN")


class Quantized(NamedTuple):
    """A graph with integers, and what stands for the weights of the float graph in it.

    Attributes
    ----------
    graph : Graph
    weights : dict of name of a constant of the float graph to Affine
    stored : dict of name of a constant of the float graph to that in `graph`
    """

    graph: Graph
    weights: dict[str, Affine]
    stored: dict[str, str]


def candidates(graph: Graph, activations: str) -> dict[str, Node]:
    """The layers that could be multiplied in integers, by the name of their first output.

    Dense layers and convolutions of one or two dimensions, LSTM and GRU with float32 weights, and,
    where activations are "static", products of two activations.
    """
    forms = forms_of(graph, 96)
    found = {}
    for node in graph.nodes:
        x = forms.get(node.inputs[0]) if node.inputs else None
        if x is not None and x.dtype != np.float32:
            continue
        able = {
            "Dense": _is_plain,
            "Conv": _is_plain,
            "LSTM": _is_constant,
            "GRU": _is_constant,
            "MatMul": _is_attention if activations == "static" else None,
        }.get(node.operator)
        if able and able(graph, node, forms):
            found[node.outputs[0]] = node
    return found


def _is_plain(graph, node, forms):
    weight, *bias = (graph.constants.get(name) for name in node.inputs[1:] if name)
    if not all(isinstance(c, Raw) and c.dtype == np.float32 for c in (weight, *bias)):
        return False
    if node.inputs[0] in graph.constants or 0 in weight.shape or len(weight.shape) > 4:
        return False
    if node.attributes.get("same") and _pads(node, forms) is None:
        return False
    width = math.prod(weight.shape[1:])
    return width <= _WIDEST // 2 and np.isfinite(weight.decode()).all()


def _is_constant(graph, node, forms):
    """Whether all but the sequence that an LSTM or GRU reads is known."""
    known = [graph.constants.get(name) for name in node.inputs[1:] if name]
    return node.inputs[0] not in graph.constants and all(
        isinstance(c, Raw) and c.dtype == np.float32 and np.isfinite(c.decode()).all()
        for c in known
    )


def _recurrent_of(graph, integer):
    return {
        node.outputs[0]
        for node in graph.nodes
        if node.operator in _RECURRENT and node.outputs[0] in integer
    }


def _is_attention(graph, node, forms):
    return not (
        node.attributes.get("transpose_a", False)
        or any(name in graph.constants for name in node.inputs)
    )


def rounded_rows(weight, granularity="channel", least=None):
    """Weights as int8 from -127 to 127 and float32 scales (n,), of each row or all alike.

    A row of zeros has the scale `least`, where that is given, or 1; no scale is below `least`.
    """
    rows = weight.reshape(len(weight), -1)
    largest = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
    if granularity == "tensor":
        largest[:] = largest.max(initial=0)
    scales = largest / 127
    if least is not None:
        scales = np.maximum(scales, least)
    scales[scales == 0] = 1
    scales = np.maximum(scales, 2.0**-126).astype(np.float32)
    # In float64: a quotient by a rounded scale is at most 127 and a little.
    values = np.rint(rows / scales[:, None].astype(np.float64))
    return np.clip(values, -127, 127).astype(np.int8).reshape(weight.shape), scales


def _affine(values, scales):
    return Affine(values, scales if len(scales) > 1 else scales[:1])


class _Writing(Rewriting):
    """What both kinds share: a new graph, the weights in it, and layers whose weights alone change.

    Parameters
    ----------
    graph : Graph
        As `passes.prepared` gives it.
    integer : set of str
        First outputs of the layers that are to be integer.
    stored : set of str
        Names of constants that are to be int8 and are multiplied as floats.
    granularity : {"channel", "tensor"}
    means : mapping of value name to ndarray (C,), optional
        The mean of each channel of a layer's input: biases take back what rounding shifts.
    """

    def __init__(self, graph, integer, stored=(), granularity="channel", means=None):
        super().__init__(graph)
        self._recurrent = _recurrent_of(graph, integer)
        self._integer = set(integer) - self._recurrent
        self._graph, self._alone = graph, set(stored)
        self._granularity, self._means = granularity, means or {}
        self._weights: dict[str, Affine] = {}
        self._stored: dict[str, str] = {}
        self._forms = forms_of(graph, 96)
        self._users = graph.users()
        self._outputs = {value.name for value in graph.outputs}

    def quantized(self) -> Quantized:
        for name in self._outputs & self._alone:  # weights that are given out, as of a mapping
            values, scales = rounded_rows(self._graph.constants[name].decode(), self._granularity)
            self.constants[name] = self._weights[name] = _affine(values, scales)
            self._stored[name] = name
        return Quantized(self.finished(), self._weights, self._stored)

    def add(self, operator, inputs, outputs, attributes, name):
        inputs = [*inputs]
        while inputs and not inputs[-1]:
            inputs.pop()
        self.nodes.append(Node(operator, inputs, outputs, attributes, name))

    def constant(self, like, values):
        return self.new_constant(like, np.asarray(values))

    def weight_of(self, node, least=None):
        """Name of a layer's int8 weights in the new graph, the scales, and its bias, corrected."""
        name = node.inputs[1]
        weight = self._graph.constants[name].decode()
        values, scales = rounded_rows(weight, self._granularity, least)
        bias = None
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = self._graph.constants[node.inputs[2]].decode()
        mean = self._means.get(node.inputs[0])
        if mean is not None:
            shift = _shift(weight, values, scales, mean, node.attributes.get("groups", 1))
            bias = (0 if bias is None else bias) - shift
            bias = bias.astype(np.float32)
        stored = self.constant(name, values)
        self._weights[name], self._stored[name] = _affine(values, scales), stored
        return stored, values, scales, bias

    def pass_on(self, node):
        """A node that stays as it is, but for weights that are stored as int8, and for what an LSTM
        or GRU of integers, which reads and gives floats, does inside."""
        if node.outputs[0] in self._recurrent:
            x, *matrices = node.inputs[:3]
            (weight, scale), (recurrent, recurrent_scale) = map(self._rows_of, matrices)
            inputs = [x, weight, recurrent, scale, recurrent_scale, *node.inputs[3:]]
            operator = f"Dynamic{node.operator}"
            self.add(operator, inputs, node.outputs, node.attributes, node.name)
            return
        for place in operators()[node.operator].weights:
            name = node.inputs[place] if place < len(node.inputs) else ""
            if name in self._alone:
                node = self._with_stored(node, place, name)
        if node is not None:
            self.nodes.append(node)

    def _with_stored(self, node, place, name):
        tensor = self._graph.constants[name]
        weight = tensor.decode()
        if node.operator == "Gather":
            return self._embedding(node, name, weight)
        if name not in self._stored:
            self._store(node.operator, name, weight)
        inputs = [*node.inputs]
        inputs[place] = self._stored[name]
        return Node(node.operator, inputs, node.outputs, node.attributes, node.name)

    def _store(self, operator, name, weight):
        """Weights as int8 in an order in which rows have much in common; made again at a start."""
        if operator == "Distances":  # each feature has its own steps
            values, scales = rounded_rows(np.ascontiguousarray(weight.T))
            rows, again, inputs = values, "Transpose", ()
            attributes = {"order": (1, 0)}
        elif operator in _RECURRENT:  # (D, G·H, C): each gate's row
            values, scales = rounded_rows(weight.reshape(-1, weight.shape[-1]))
            rows, again, attributes = values, "Reshape", {}
            inputs = (self.constant(f"{name} shape", np.array(weight.shape, np.int64)),)
        else:
            values, scales = rounded_rows(weight, self._granularity)
            self._weights[name] = _affine(values, scales)
            self._stored[name] = self.new_name(name)
            self.constants[self._stored[name]] = self._weights[name]
            return
        stored, made = self.new_name(name), self.new_name(name)
        self.constants[stored] = _affine(rows, scales)
        self.add(again, (stored, *inputs), (made,), attributes, f"{name} unpacked")
        decoded = self.constants[stored].decode()
        back = decoded.T if again == "Transpose" else decoded.reshape(weight.shape)
        self._weights[name] = Raw(np.ascontiguousarray(back))
        self._stored[name] = made

    def _rows_of(self, name):
        """Names of the rows of a weight (D, G·H, C) as int8, and of their scales."""
        weight = self._graph.constants[name].decode()
        values, scales = rounded_rows(weight.reshape(-1, weight.shape[-1]))
        self._stored[name] = self.constant(name, values)
        self._weights[name] = Raw(_affine(values, scales).decode().reshape(weight.shape))
        return self._stored[name], self.constant(f"{name} scales", scales)

    def _embedding(self, node, name, table):
        """Rows of int8 are gathered, and then multiplied by theirs, gathered too."""
        if name not in self._stored:
            values, scales = rounded_rows(table)
            self._stored[name] = self.constant(name, values)
            self._weights[name] = _affine(values, scales)
            self._scales = {
                **getattr(self, "_scales", {}),
                name: self.constant(name, scales[:, None]),
            }
        y, indices = node.outputs[0], node.inputs[1]
        steps, real, scale = (self.new_name(y) for _ in range(3))
        self.add("Gather", (self._stored[name], indices), (steps,), {}, node.name)
        self.add("Cast", (steps,), (real,), {"dtype": "float32"}, node.name)
        self.add("Gather", (self._scales[name], indices), (scale,), {}, node.name)
        self.add("Binary", (real, scale), (y,), {"function": "multiply"}, node.name)


def _shift(weight, values, scales, mean, groups):
    """What rounded weights add to the mean of each output: (rounded - weights) · mean of inputs."""
    n_out, n_in = weight.shape[0], weight.shape[-1]
    if len(mean) != n_in * groups:
        return np.zeros(n_out)
    rounded = values.astype(np.float64) * scales.reshape(-1, *[1] * (weight.ndim - 1))
    error = (rounded - weight).reshape(n_out, -1, n_in).sum(axis=1)
    of_group = mean.reshape(groups, n_in).repeat(n_out // groups, axis=0)
    return (error * of_group).sum(axis=1)


# ---- dynamic ------------------------------------------------------------------------------------


def dynamic(graph, integer, stored=(), granularity="channel", means=None) -> Quantized:
    """The graph with these layers in integers that find the steps of their inputs as they run."""
    work = _Writing(graph, integer, stored, granularity, means)
    for node in graph.nodes:
        if node.outputs[0] in work._integer:
            _write_dynamic(work, node)
        else:
            work.pass_on(node)
    return work.quantized()


def _write_dynamic(work, node):
    weight, _, scales, bias = work.weight_of(node)
    inputs = [node.inputs[0], weight, work.constant(f"{node.inputs[1]} scales", scales)]
    inputs.append("" if bias is None else work.constant(f"{node.name} bias", bias))
    attributes = _window(node, work._forms)
    attributes |= {k: node.attributes[k] for k in _ACTIVATION if k in node.attributes}
    work.add(f"Dynamic{node.operator}", inputs, node.outputs, attributes, node.name)


_ACTIVATION = ("activation", "alpha", "beta")


def _as_unary(activation):
    rest = {k: v for k, v in activation.items() if k != "activation"}
    return {"function": activation["activation"], **rest}


def _window(node, forms):
    """The attributes of a convolution, `same` worked out; of a dense layer none."""
    kept = {k: v for k, v in node.attributes.items() if k in ("strides", "dilations", "groups")}
    if node.operator == "Conv":
        pads = _pads(node, forms)
        kept |= {"pads": pads} if any(pads or ()) else {}
    return kept


def _pads(node, forms):
    """The pads of a convolution or pooling; None where `same` depends on sizes nobody knows yet."""
    attributes = node.attributes
    if not attributes.get("same"):
        return tuple(attributes.get("pads", ()))
    form = forms.get(node.inputs[0])
    if form is None:
        return None
    kernel = attributes.get("kernel") or forms[node.inputs[1]].shape[1:-1]
    windows = Windows(
        form.shape[1:-1],
        kernel,
        attributes.get("strides", ()),
        attributes.get("dilations", ()),
        (),
        attributes["same"],
    )
    return (*windows.begins, *windows.ends)


# ---- static -------------------------------------------------------------------------------------


class Static:
    """A graph in whose integer part int8 flows from layer to layer.

    Parameters
    ----------
    graph, integer, stored, granularity : as for `dynamic`

    Attributes
    ----------
    watched : list of str
        The values whose statistics `write` needs.
    """

    def __init__(self, graph, integer: Iterable[str], stored=(), granularity="channel"):
        self._recurrent = _recurrent_of(graph, integer)
        self._graph, self._chosen = graph, set(integer) - self._recurrent
        self._settings = stored, granularity
        self._forms = forms_of(graph, 96)
        self._users = graph.users()
        self._outputs = {value.name for value in graph.outputs}
        self._nodes = self._partition()
        self._groups = _Groups()
        self._sources: list[str] = []
        for node in graph.nodes:
            if node.outputs[0] in self._nodes:
                self._join(node)
        self.watched = [*dict.fromkeys(self._sources)]

    def write(self, statistics: Mapping[str, stats.Statistics], method="mse", means=None):
        """The integer graph, with the ranges that a calibration method finds in the statistics."""
        parts: dict[str, list] = {}
        for name in self.watched:
            parts.setdefault(self._groups.leader(name), []).append(statistics[name])
        groups = {leader: stats.Statistics.merged(seen) for leader, seen in parts.items()}
        symmetric = {self._groups.leader(name) for name in self._symmetric}
        found = {
            leader: stats.parameters(*seen.range(method, leader in symmetric), leader in symmetric)
            for leader, seen in groups.items()
        }
        steps = {name: found[leader] for name, leader in self._groups.all() if leader in found}
        integer = self._nodes | self._recurrent
        writer = _StaticWriting(self._graph, integer, *self._settings, means, steps)
        return writer.written()

    # ---- which nodes work on integers ----------------------------------------------------------

    def _partition(self):
        """First outputs of the nodes that work on int8, chosen layers among them."""
        native, able = set(), set()
        for node in self._graph.nodes:
            if node.outputs[0] in self._chosen or self._can_follow(node, native):
                able.add(node.outputs[0])
                native.update(node.outputs)
        # What no integer layer reads in the end would only be converted twice.
        wanted = set()
        for node in reversed(self._graph.nodes):
            if node.outputs[0] in self._chosen or (
                node.outputs[0] in able
                and any(
                    user.outputs[0] in wanted
                    for name in node.outputs
                    for user in self._users.get(name, [])
                )
            ):
                wanted.add(node.outputs[0])
        return wanted

    def _can_follow(self, node, native):
        """Whether a node that is no layer can work on int8: all it reads is there as such."""
        if not node.inputs or node.inputs[0] not in native:
            return False
        attributes = node.attributes
        if node.operator in _MOVES:
            return not any(name in native for name in node.inputs[1:])
        if node.operator == "Unary":
            return attributes["function"] not in ("not", "isnan", "isinf")
        if node.operator == "Concat":
            return all(name in native for name in node.inputs)
        if node.operator == "Pad":
            value = node.inputs[2] if len(node.inputs) > 2 else ""
            zero = not value or (
                value in self._graph.constants and not self._graph.constants[value].decode().any()
            )
            return zero or attributes.get("mode", "constant") != "constant"
        if node.operator == "Pool":
            return self._is_pool(node)
        if node.operator == "Reduce":
            return self._is_global_mean(node)
        if node.operator == "Binary" and attributes["function"] == "add":
            forms = [self._forms.get(name) for name in node.inputs]
            return (
                node.inputs[1] in native and None not in forms and forms[0].shape == forms[1].shape
            )
        return False

    def _is_pool(self, node):
        form, attributes = self._forms.get(node.inputs[0]), node.attributes
        if form is None or len(form.shape) not in (3, 4) or attributes.get("ceil", False):
            return False
        return _pads(node, self._forms) is not None

    def _is_global_mean(self, node):
        form = self._forms.get(node.inputs[0])
        if form is None or node.attributes["function"] != "mean" or len(form.shape) not in (3, 4):
            return False
        axes = node.inputs[1] if len(node.inputs) > 1 else ""
        axes = self._graph.constants.get(axes)
        rank = len(form.shape)
        return axes is not None and {int(a) % rank for a in axes.decode()} == {*range(1, rank - 1)}

    # ---- which values have the same steps ------------------------------------------------------

    _symmetric: tuple[str, ...] = ()

    def _join(self, node):
        """Enter the values of an integer node: those with steps of their own are looked at."""
        layer = node.outputs[0] in self._chosen
        data = [node.inputs[0]] if layer and node.operator != "MatMul" else [*node.inputs]
        if layer:
            for name in data:
                self._groups.leader(name)
                if not self._made_inside(name):
                    self._sources.append(name)
            if node.operator == "MatMul":
                self._symmetric = (*self._symmetric, node.inputs[1])
        shared = (
            node.operator in (*_MOVES, "Pad", "Concat")
            or (node.operator == "Pool" and node.attributes["function"] == "max")
            or (node.operator == "Unary" and node.attributes["function"] == "identity")
        )
        if shared:
            values = node.inputs if node.operator == "Concat" else node.inputs[:1]
            for name in (*values, *node.outputs):
                self._groups.join(node.outputs[0], name)
        else:
            self._groups.leader(node.outputs[0])
            if _gives_integers(node, self._users, self._nodes):
                self._sources.append(node.outputs[0])

    def _made_inside(self, name):
        if not hasattr(self, "_inside"):
            nodes = [n for n in self._graph.nodes if n.outputs[0] in self._nodes]
            self._inside = {output for n in nodes for output in n.outputs}
        return name in self._inside


def _gives_integers(node, users, integer):
    """Whether any reader of a node's outputs works on int8."""
    return any(u.outputs[0] in integer for name in node.outputs for u in users.get(name, []))


class _Groups:
    """Names in groups, each with a leader (union-find)."""

    def __init__(self):
        self._above: dict[str, str] = {}

    def leader(self, name):
        above = self._above.setdefault(name, name)
        if above != name:
            above = self._above[name] = self.leader(above)
        return above

    def join(self, a, b):
        self._above[self.leader(a)] = self.leader(b)

    def all(self):
        return [(name, self.leader(name)) for name in [*self._above]]


class _StaticWriting(_Writing):
    """Nodes written one by one; a value may be there as floats, as int8, or as both."""

    def __init__(self, graph, integer, stored, granularity, means, steps):
        super().__init__(graph, integer, stored, granularity, means)
        self._steps = steps
        self._int8: dict[str, str] = {}  # of a value of the float graph, its int8 form
        self._floats = {value.name for value in graph.inputs} | set(graph.constants)
        self._inside: set[str] = set()  # nodes that went into the one before

    def written(self):
        for node in self._graph.nodes:
            key = node.outputs[0]
            if key in self._inside:
                continue
            if key in self._integer:
                self._write(node)
            else:
                for name in node.inputs:
                    self.as_float(name)
                self.pass_on(node)
                self._floats.update(node.outputs)
        for name in self._outputs:
            self.as_float(name)
        return self.quantized()

    # ---- forms of values -----------------------------------------------------------------------

    def as_int8(self, name):
        """The int8 form of a value; its floats are quantized where it has none yet."""
        if name not in self._int8:
            made = self.new_name(name)
            inputs = (name, *self._constants_of(name))
            self.add("Quantize", inputs, (made,), {}, f"{name} to int8")
            self._int8[name] = made
        return self._int8[name]

    def as_float(self, name):
        if name and name not in self._floats:
            inputs = (self._int8[name], *self._constants_of(name))
            self.add("Dequantize", inputs, (name,), {}, f"{name} to float32")
            self._floats.add(name)
        return name

    def _constants_of(self, name):
        scale, zero_point = self._steps[name]
        return (
            self.constant(f"{name} scale", np.float32(scale)),
            self.constant(f"{name} zero", np.int8(zero_point)),
        )

    def _new_int8(self, name):
        self._int8[name] = self.new_name(name)
        return self._int8[name]

    # ---- nodes ---------------------------------------------------------------------------------

    def _write(self, node):
        write = {
            "Dense": self._layer,
            "Conv": self._layer,
            "MatMul": self._matmul,
            "Binary": self._sum,
            "Unary": self._unary,
            "Pool": self._pool,
            "Reduce": self._mean,
            "Pad": self._pad,
        }.get(node.operator, self._move)
        write(node)

    def _follower(self, node, functions_=None):
        """The integer activation that alone reads a node, if it is one of these functions."""
        name = node.outputs[0]
        users = self._users.get(name, [])
        if len(users) != 1 or name in self._outputs:
            return None
        (user,) = users
        if user.operator != "Unary" or user.outputs[0] not in self._integer:
            return None
        function = user.attributes["function"]
        if function == "identity" or (functions_ and function not in functions_):
            return None
        return user

    def _layer(self, node):
        x = node.inputs[0]
        x_scale, x_zero = self._steps[x]
        bias_name = node.inputs[2] if len(node.inputs) > 2 else ""
        least = None
        if bias_name:  # so that a bias in units of scale · scale fits in 30 bits
            least = np.abs(self._graph.constants[bias_name].decode().astype(np.float64))
            least = np.maximum(least / (x_scale * 2.0**29), 2.0**-126)
        weight, values, scales, bias = self.weight_of(node, least)
        inputs = [self.as_int8(x), weight, "", ""]
        unit = np.float64(x_scale) * scales.astype(np.float64)
        if bias is not None:
            whole = np.clip(np.rint(bias / unit), -_MOST, _MOST).astype(np.int64)
            room = _MOST - 255 * np.abs(values.reshape(len(values), -1).astype(np.int64)).sum(
                axis=1
            )
            whole = np.clip(whole, -room, room).astype(np.int32)
            inputs[3] = self.constant(f"{node.name} bias", whole)
        attributes = {**_window(node, self._forms), "x_zero_point": x_zero}
        activation = {k: node.attributes[k] for k in _ACTIVATION if k in node.attributes}
        operator = f"Q{node.operator}"
        y = node.outputs[0]
        if not _gives_integers(node, self._users, self._integer):
            inputs[2] = self._multiplier(node, unit)
            attributes["dtype"] = "float32"
            self._floats.add(y)
            if activation.get("activation", "identity") == "identity":
                self.add(operator, inputs, (y,), attributes, node.name)
                return
            before = self.new_name(y)
            self.add(operator, inputs, (before,), attributes, node.name)
            self.add("Unary", (before,), (y,), _as_unary(activation), node.name)
            return
        function, alpha, beta = (
            activation.get(k, d) for k, d in zip(_ACTIVATION, ("identity", 0.0, 0.0), strict=True)
        )
        before, after = self._steps[y], y
        attributes |= _limits(function, alpha, beta, *before)
        follower = self._follower(node) if function == "identity" else None
        table = None
        if follower is not None:
            after = follower.outputs[0]
            self._inside.add(after)
            table = _table(follower.attributes, before, self._steps[after])
        inputs[2] = self._multiplier(node, unit / before[0])
        attributes["y_zero_point"] = before[1]
        if table is not None:
            inputs.append(self.constant(f"{node.name} table", table))
        self.add(operator, inputs, (self._new_int8(after),), attributes, node.name)

    def _multiplier(self, node, values):
        values = np.clip(values, 2.0**-126, np.finfo(np.float32).max).astype(np.float32)
        return self.constant(f"{node.name} multiplier", values)

    def _matmul(self, node):
        a, b = node.inputs
        y, attributes = node.outputs[0], {}
        if node.attributes.get("transpose_b", False):
            attributes["transpose_b"] = True
        multiplier = self._steps[a][0] * self._steps[b][0]
        if _gives_integers(node, self._users, self._integer):
            multiplier /= self._steps[y][0]
            attributes["y_zero_point"] = self._steps[y][1]
            made = self._new_int8(y)
        else:
            attributes["dtype"] = "float32"
            self._floats.add(y)
            made = y
        attributes |= {"a_zero_point": self._steps[a][1], "b_zero_point": self._steps[b][1]}
        attributes["multiplier"] = float(np.float32(multiplier))
        self.add("QMatMul", (self.as_int8(a), self.as_int8(b)), (made,), attributes, node.name)

    def _sum(self, node):
        a, b = node.inputs
        follower = self._follower(node, ("relu", "clip"))
        y = node.outputs[0]
        bounds = {}
        if follower is not None:
            y = follower.outputs[0]
            self._inside.add(y)
            rest = follower.attributes
            bounds = _limits(
                rest["function"], rest.get("alpha", 0.0), rest.get("beta", 0.0), *self._steps[y]
            )
        (sa, za), (sb, zb), (sy, zy) = self._steps[a], self._steps[b], self._steps[y]
        largest = max(sa, sb) / sy
        # The most precise multipliers that stay within 2^14.
        shift = int(np.clip(math.floor(math.log2((1 << 14) / largest)), 1, 30))
        attributes = {
            "a_multiplier": min(round(sa / sy * 2**shift), 1 << 14),
            "b_multiplier": min(round(sb / sy * 2**shift), 1 << 14),
            "shift": shift,
            "a_zero_point": za,
            "b_zero_point": zb,
            "y_zero_point": zy,
            **bounds,
        }
        inputs = self.as_int8(a), self.as_int8(b)
        self.add("QAdd", inputs, (self._new_int8(y),), attributes, node.name)

    def _unary(self, node):
        x, y = node.inputs[0], node.outputs[0]
        if node.attributes["function"] == "identity":
            self._int8[y] = self.as_int8(x)
            return
        table = _table(node.attributes, self._steps[x], self._steps[y])
        inputs = self.as_int8(x), self.constant(f"{node.name} table", table)
        self.add("QTable", inputs, (self._new_int8(y),), {}, node.name)

    def _pool(self, node):
        x, y = node.inputs[0], node.outputs[0]
        names = ("function", "kernel", "strides", "dilations", "count_padding")
        attributes = {k: v for k, v in node.attributes.items() if k in names}
        pads = _pads(node, self._forms)
        attributes |= {"pads": pads} if any(pads) else {}
        self._add_pool(node, x, self._new_int8(y), y, attributes)

    def _add_pool(self, node, x, made, y, attributes):
        if attributes["function"] == "average":
            (sx, zx), (sy, zy) = self._steps[x], self._steps[y]
            attributes |= {"multiplier": sx / sy, "x_zero_point": zx, "y_zero_point": zy}
        self.add("QPool", (self.as_int8(x),), (made,), attributes, node.name)

    def _mean(self, node):
        x, y = node.inputs[0], node.outputs[0]
        attributes = {"function": "average"}
        if node.attributes.get("keep", True):
            self._add_pool(node, x, self._new_int8(y), y, attributes)
            return
        kept = self.new_name(y)
        self._add_pool(node, x, kept, y, attributes)
        axes = tuple(range(1, len(self._forms[x].shape) - 1))
        self.add("Squeeze", (kept,), (self._new_int8(y),), {"axes": axes}, node.name)

    def _pad(self, node):
        x, pads, _, axes = [*node.inputs, "", "", ""][:4]
        zero = self.constant(f"{node.name} zero", np.int8(self._steps[x][1]))
        made = (self._new_int8(node.outputs[0]),)
        self.add("Pad", (self.as_int8(x), pads, zero, axes), made, node.attributes, node.name)

    def _move(self, node):
        data = node.inputs if node.operator == "Concat" else node.inputs[:1]
        for name in node.inputs[len(data) :]:
            self.as_float(name)  # whole numbers; they are there as they are
        inputs = (*(self.as_int8(name) for name in data), *node.inputs[len(data) :])
        made = tuple(self._new_int8(name) if name else "" for name in node.outputs)
        self.add(node.operator, inputs, made, node.attributes, node.name)


def _limits(function, alpha, beta, scale, zero_point):
    """Bounds of steps that do what an activation does."""
    low, high = {"relu": (0.0, math.inf), "clip": (alpha, beta)}.get(function, (None, None))
    found = {}
    if low is not None and low / scale + zero_point > -128:
        found["low"] = int(min(np.rint(low / scale) + zero_point, 127))
    if high is not None and high / scale + zero_point < 127:
        found["high"] = int(max(np.rint(high / scale) + zero_point, -128))
    return found


def _table(attributes, x_steps, y_steps):
    """What a function makes of each int8: (256,) int8."""
    (sx, zx), (sy, zy) = x_steps, y_steps
    x = ((np.arange(-128, 128) - zx) * np.float64(sx)).astype(np.float32)
    with np.errstate(all="ignore"):
        real = functions.apply(
            attributes["function"], x, attributes.get("alpha", 0.0), attributes.get("beta", 0.0)
        )
        q = np.rint(np.nan_to_num(real.astype(np.float64)) / sy) + zy
    return np.clip(q, -128, 127).astype(np.int8)
