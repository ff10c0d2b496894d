"""8-bit integers: a float graph becomes one whose layers multiply integers.

Three things happen to a layer. It stays float; its weights alone become int8 and are multiplied as
floats; or it becomes an integer layer. Of integer layers there are two kinds:

dynamic   reads and gives floats; the steps of its input are found as it runs (`int8_dynamic`).
static    reads and gives int8 in steps that calibration found; what lies between such layers works
          on int8 too, and values change form at the borders only (`int8_static`).

Here is what both share: which layers may be integer, and how weights are rounded and written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fastvq.compress import compensation
from fastvq.compress.weights import compared
from fastvq.runtime.affine import Affine
from fastvq.runtime.definitions.products import Windows
from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph, Node
from fastvq.runtime.layout import forms as forms_of
from fastvq.runtime.ops import operators
from fastvq.runtime.rewrite import Rewriting

__all__ = [
    "ACTIVATION", "Knowledge", "Quantized", "Rounded", "Writing", "candidates", "pads_of",
    "recurrent_of", "rounded_rows", "window",
]  # fmt: skip

_WIDEST = 1 << 16  # products of a sum, as definitions.integers has it
_RECURRENT = ("LSTM", "GRU", "RNN")
# What a layer does to its sums.
ACTIVATION = ("activation", "alpha", "beta")


class Quantized(NamedTuple):
    """A graph with integers, and what stands for the weights of the float graph in it.

    Attributes
    ----------
    graph : Graph
    weights : dict of name of a constant of the float graph to what it became, with `decode`
    stored : dict of name of a constant of the float graph to that in `graph`
    """

    graph: Graph
    weights: dict[str, Affine | Rounded | Raw]
    stored: dict[str, str]


class Rounded(NamedTuple):
    """Weights of an integer layer: rows of `values` times `scales`, columns by `factors`.

    Attributes
    ----------
    values : ndarray of int8
    scales : ndarray (n,) of float32
    factors : ndarray that broadcasts to values, or None
        The steps of the layer's input that went into the weights.
    """

    values: np.ndarray
    scales: np.ndarray
    factors: np.ndarray | None = None

    def decode(self):
        real = self.values.astype(np.float32)
        real *= self.scales.reshape(-1, *[1] * (real.ndim - 1))
        return real if self.factors is None else (real / self.factors).astype(np.float32)


@dataclass(frozen=True)
class Knowledge:
    """What examples tell of a graph.

    Attributes
    ----------
    means : mapping of value name to (ndarray (C,), ndarray (C,))
        The mean of each channel, and its variance: biases take back what rounding shifts.
    grams : mapping of a layer's first output to ndarray (groups, k, k)
        Second moments of its inputs: weights are rounded so that errors make up for each other.
    """

    means: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    grams: Mapping[str, np.ndarray] = field(default_factory=dict)
    rounded: dict = field(default_factory=dict, repr=False)

    def rows(self, key, weight, granularity, least, gram):
        """`rounded_rows` of a layer; remembered, as a model is made several times."""
        if gram is None:
            return rounded_rows(weight, granularity, least)
        digest = hashlib.blake2b(np.ascontiguousarray(weight), digest_size=16)
        digest.update(b"" if least is None else np.ascontiguousarray(least))
        name = key, digest.digest()
        if name not in self.rounded:
            self.rounded[name] = rounded_rows(weight, granularity, least, gram)
        return self.rounded[name]


def candidates(graph: Graph, activations: str) -> dict[str, Node]:
    """The layers that could be multiplied in integers, by the name of their first output.

    Dense layers and convolutions of one or two dimensions, LSTM and GRU with float32 weights, and,
    where activations are "static", products of two activations; none whose values have to be exact
    (`compared`).
    """
    forms, exact = forms_of(graph, 96), compared(graph)
    found = {}
    for node in graph.nodes:
        if not exact.isdisjoint(node.outputs):
            continue
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
    if node.attributes.get("same") and pads_of(node, forms) is None:
        return False
    return math.prod(weight.shape[1:]) <= _WIDEST // 2 and _in_range(weight.decode())


def _is_constant(graph, node, forms):
    """Whether all but the sequence that an LSTM or GRU reads is known."""
    known = [graph.constants.get(name) for name in node.inputs[1:] if name]
    return node.inputs[0] not in graph.constants and all(
        isinstance(c, Raw) and c.dtype == np.float32 and _in_range(c.decode()) for c in known
    )


def _in_range(weight):
    """Whether sums of these weights times whole numbers up to 255 are: no row makes them infinite.

    False where the weights are NaN or infinite themselves.
    """
    rows = np.abs(weight.reshape(len(weight), -1)).sum(axis=1, dtype=np.float64)
    return bool(255 * rows.max(initial=0) < np.finfo(np.float32).max)


def recurrent_of(graph, integer):
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


def rounded_rows(weight, granularity="channel", least=None, gram=None):
    """Weights as int8 from -127 to 127 and float32 scales (n,), of each row or all alike.

    A row of zeros has the scale `least`, where that is given, or 1; no scale is below `least`. With
    a gram (groups, k, k) of the inputs of each group of rows errors make up for each other.
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
    steps = rows / scales[:, None].astype(np.float64)
    if gram is None:
        values = _nearest(steps)
    else:
        values = compensation.compensated_groups(
            steps.reshape(len(gram), -1, rows.shape[1]), gram, lambda values, _: _nearest(values)
        )
    return values.astype(np.int8).reshape(weight.shape), scales


def _nearest(steps):
    return np.clip(np.rint(steps), -127, 127)


def _affine(values, scales):
    return Affine(values, scales if len(scales) > 1 else scales[:1])


class Writing(Rewriting):
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
    known : Knowledge, optional
    """

    def __init__(self, graph, integer, stored=(), granularity="channel", known=None):
        super().__init__(graph)
        self._recurrent = recurrent_of(graph, integer)
        self._integer = set(integer) - self._recurrent
        self._graph, self._alone = graph, set(stored)
        self._granularity, self._known = granularity, known or Knowledge()
        self._weights: dict[str, Affine | Rounded | Raw] = {}
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

    def weight_of(self, node, least=None, factors=None):
        """Name of a layer's int8 weights in the new graph, the scales, and its bias, corrected.

        `factors` (C,), the steps of the layer's input, go into the weights.
        """
        name, groups = node.inputs[1], node.attributes.get("groups", 1)
        weight = self._graph.constants[name].decode()
        spread = None if factors is None else _spread(factors, weight, groups)
        scaled = weight if spread is None else weight * spread
        gram = self._known.grams.get(node.outputs[0])
        if gram is not None and spread is not None:
            taps = np.broadcast_to(spread, weight.shape).reshape(groups, -1, gram.shape[-1])[:, 0]
            gram = gram / (taps[:, :, None] * taps[:, None, :])
        values, scales = self._known.rows(node.outputs[0], scaled, self._granularity, least, gram)
        rounded = Rounded(values, scales, spread)
        bias = None
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = self._graph.constants[node.inputs[2]].decode()
        known = self._known.means.get(node.inputs[0])
        if known is not None:
            shift = compensation.certain_shift(weight, rounded.decode(), *known, groups)
            bias = (0 if bias is None else bias) - shift
            bias = bias.astype(np.float32)
        stored = self.constant(name, values)
        self._weights[name], self._stored[name] = rounded, stored
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


def _spread(factors, weight, groups):
    """Factors of all input channels as they belong to a weight (n, *taps, C / groups)."""
    own = np.asarray(factors, np.float64).reshape(groups, -1).repeat(len(weight) // groups, axis=0)
    return own.reshape(len(weight), *[1] * (weight.ndim - 2), -1)


def window(node, forms):
    """The attributes of a convolution, `same` worked out; of a dense layer none."""
    kept = {k: v for k, v in node.attributes.items() if k in ("strides", "dilations", "groups")}
    if node.operator == "Conv":
        pads = pads_of(node, forms)
        kept |= {"pads": pads} if any(pads or ()) else {}
    return kept


def pads_of(node, forms):
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
