"""Graph -> Graph before weights are rounded: what makes rounding cost less.

None of these changes what the float model computes, beyond the rounding of float32.
"""

from __future__ import annotations

import numpy as np

from fastvq.runtime.encoding import Raw
from fastvq.runtime.fuse import fused
from fastvq.runtime.graph import Graph, Node
from fastvq.runtime.layout import settled
from fastvq.runtime.rewrite import Derived, Rewriting

__all__ = ["centred", "equalised", "equalised_pairs", "prepared", "smoothed", "smoothed_norms"]

# Of a layer's largest and smallest factor: beyond, a channel is as good as dead.
_MOST_FACTOR = 1e4
BOUNDS = ("identity", "relu", "clip")  # activations that clamp steps
_ACTIVATION = ("activation", "alpha", "beta")
_HOMOGENEOUS = ("identity", "relu")  # f(s x) = s f(x) for s > 0


def prepared(graph: Graph) -> Graph:
    """The graph as it runs: channels last, batch norms inside of the layers, and activations.

    Those that are no bounds come after their layer: integers reach them by a table.
    """
    graph = _parted(fused(settled(graph)))
    constants = {
        name: Raw(tensor.decode()) if isinstance(tensor, Derived) else tensor
        for name, tensor in graph.constants.items()
    }
    return Graph(graph.nodes, graph.inputs, graph.outputs, constants)


def _parted(graph):
    """The graph with activations other than bounds as nodes of their own."""
    work = Rewriting(graph)
    for node in graph.nodes:
        function = node.attributes.get("activation", "identity")
        if node.operator not in ("Dense", "Conv") or function in BOUNDS:
            work.nodes.append(node)
            continue
        rest = {k: v for k, v in node.attributes.items() if k not in _ACTIVATION}
        given = {k: v for k, v in node.attributes.items() if k in _ACTIVATION[1:]}
        before = work.new_name(node.outputs[0])
        unary = Node("Unary", (before,), node.outputs, {"function": function, **given}, node.name)
        work.nodes += [Node(node.operator, node.inputs, (before,), rest, node.name), unary]
    return work.finished()


class _Scaling(Rewriting):
    """Constants multiplied along an axis, each use getting its own where there are several."""

    def __init__(self, graph):
        super().__init__(graph)
        self.nodes = list(graph.nodes)

    def scale(self, node, place, factors, axis):
        """The node with its constant input times factors along an axis, in float64 and rounded."""
        values = self.raw(node.inputs[place])
        shape = [1] * values.ndim
        shape[axis] = len(factors)
        scaled = (values.astype(np.float64) * factors.reshape(shape)).astype(np.float32)
        inputs = [*node.inputs]
        inputs[place] = self.new_constant(node.inputs[place], scaled)
        return Node(node.operator, inputs, node.outputs, node.attributes, node.name)

    def replace(self, old, new):
        places = [i for i, node in enumerate(self.nodes) if node.outputs == old.outputs]
        self.nodes[places[0]] = new

    def give_back(self, name, factors, layers):
        """Let all readers of a value but these read it times the factors."""
        scaled_by = {node.outputs for node in layers}
        others = [n for n in self.nodes if name in n.inputs and n.outputs not in scaled_by]
        if not others:
            return
        whole = self.new_name(name)
        constant = self.new_constant(name, factors.astype(np.float32))
        place = next(i for i, n in enumerate(self.nodes) if name in n.outputs)
        multiply = Node("Binary", (name, constant), (whole,), {"function": "multiply"})
        self.nodes.insert(place + 1, multiply)
        for node in others:
            inputs = [whole if n == name else n for n in node.inputs]
            self.replace(
                node, Node(node.operator, inputs, node.outputs, node.attributes, node.name)
            )

    def current(self, node):
        return next(n for n in self.nodes if n.outputs == node.outputs)


# ---- cross-layer equalisation -------------------------------------------------------------------


def equalised_pairs(graph: Graph):
    """Pairs of layers between which the scale of a channel is free.

    The second alone reads what the first gives, and the activation between is homogeneous.
    """
    users, outputs = graph.users(), {value.name for value in graph.outputs}
    pairs = []
    for first in graph.nodes:
        name = first.outputs[0]
        if not _is_layer(graph, first) or name in outputs or len(users.get(name, [])) != 1:
            continue
        (second,) = users[name]
        if first.attributes.get("activation", "identity") not in _HOMOGENEOUS:
            continue
        if _is_layer(graph, second) and second.inputs[0] == name and _in_axis(graph, second):
            pairs.append((first, second))
    return pairs


def equalised(graph: Graph, rounds: int = 4) -> Graph:
    """Scale channels between pairs of layers so that both sides have equal ranges of weights.

    s = sqrt(r1 · r2) / r2 for the ranges of a channel's weights before and after (Nagel et al.,
    "Data-free quantization through weight equalization and bias correction", ICCV 2019, eq. 11).
    """
    pairs = equalised_pairs(graph)
    work = _Scaling(graph)
    for _ in range(rounds if pairs else 0):
        for first, second in pairs:
            first, second = work.current(first), work.current(second)
            before = _sizes(work.raw(first.inputs[1]), 0)
            depthwise = _in_axis(work, second) == "depthwise"
            after = _sizes(work.raw(second.inputs[1]), 0 if depthwise else -1)
            if len(before) != len(after):
                continue
            usable = (before > 0) & (after > 0)
            factors = np.ones(len(before))
            factors[usable] = np.sqrt(after[usable] / before[usable])
            factors = np.clip(factors, 1 / _MOST_FACTOR, _MOST_FACTOR)
            scaled = work.scale(first, 1, factors, 0)
            if len(first.inputs) > 2 and first.inputs[2]:
                scaled = work.scale(scaled, 2, factors, 0)
            work.replace(first, scaled)
            work.replace(second, work.scale(second, 1, 1 / factors, 0 if depthwise else -1))
    return work.finished()


def _is_layer(graph, node):
    if node.operator not in ("Dense", "Conv"):
        return False
    constants = [graph.constants.get(name) for name in node.inputs[1:] if name]
    return all(isinstance(c, Raw) and c.dtype == np.float32 for c in constants)


def _in_axis(graph, node):
    """Where the weights of a layer have their input channels: last, or first of a depthwise one."""
    groups, weight = node.attributes.get("groups", 1), graph.constants[node.inputs[1]]
    if groups == 1:
        return "last"
    return "depthwise" if groups == weight.shape[0] and weight.shape[-1] == 1 else None


def _sizes(weight, axis):
    """The largest size of the weights of each channel."""
    return np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(axis=1)


# ---- features of unlike sizes -------------------------------------------------------------------


def centred(graph: Graph, ranges) -> Graph:
    """Let dense layers read features of equal size: (x - centre) / reach, and weights the rest.

    The steps of a row are otherwise those of its largest feature, and a scaler in front of the
    model is gone: fusing put it into the weights.

    Parameters
    ----------
    graph : Graph
    ranges : mapping of a dense layer's output to (low, high), each (C,)
        Of the features that it reads.
    """
    work = _Scaling(graph)
    for key, (low, high) in ranges.items():
        node = next(n for n in work.nodes if n.outputs[0] == key)
        low, high = np.float64(low), np.float64(high)
        centre, reach = (low + high) / 2, (high - low) / 2
        reach[reach == 0] = 1
        centre, reach = centre.astype(np.float32), reach.astype(np.float32)
        weight = work.raw(node.inputs[1]).astype(np.float64)
        bias = work.raw(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else 0.0
        x, middle, even = node.inputs[0], work.new_name(key), work.new_name(key)
        inputs = (
            even,
            work.new_constant(node.inputs[1], (weight * reach).astype(np.float32)),
            work.new_constant(f"{node.name} bias", (bias + weight @ centre).astype(np.float32)),
        )
        work.replace(node, Node("Dense", inputs, node.outputs, node.attributes, node.name))
        place = next(i for i, n in enumerate(work.nodes) if n.outputs[0] == key)
        steps = ((x, centre, middle, "subtract"), (middle, 1 / reach, even, "multiply"))
        work.nodes[place:place] = [
            Node("Binary", (a, work.new_constant(f"{key} {function}", b)), (y,),
                 {"function": function}, node.name)
            for a, b, y, function in steps
        ]  # fmt: skip
    return work.finished()


# ---- smoothing ----------------------------------------------------------------------------------


def smoothed_norms(graph: Graph):
    """Layer norms that dense layers read, with those; whoever else reads gets channels back."""
    users, outputs = graph.users(), {value.name for value in graph.outputs}
    found = []
    for norm in graph.nodes:
        if norm.operator != "LayerNorm" or len(norm.inputs) < 2 or norm.outputs[0] in outputs:
            continue
        scales = [graph.constants.get(name) for name in norm.inputs[1:] if name]
        if not scales or not all(isinstance(s, Raw) and len(s.shape) == 1 for s in scales):
            continue
        readers = users.get(norm.outputs[0], [])
        layers = [n for n in readers if n.operator == "Dense" and _is_layer(graph, n)]
        if layers:
            found.append((norm, layers))
    return found


def smoothed(graph: Graph, sizes, strength: float = 0.5) -> Graph:
    """Move the spread of channels from what a layer norm gives into the weights behind it.

    Channel j is divided by s_j = max|x_j|^a / max|W_j|^(1-a), and column j of the weights
    multiplied by it (Xiao et al., "SmoothQuant", ICML 2023, eq. 4).

    Parameters
    ----------
    graph : Graph
    sizes : mapping of value name to ndarray (C,)
        max |x_j| of what each norm of `smoothed_norms` gives.
    strength : float
        a, from 0 (nothing is moved but what the weights ask for) to 1.
    """
    work = _Scaling(graph)
    for norm, layers in smoothed_norms(graph):
        reach = np.asarray(sizes[norm.outputs[0]], np.float64)
        weights = np.max([_sizes(work.raw(node.inputs[1]), -1) for node in layers], axis=0)
        usable = (reach > 0) & (weights > 0)
        factors = np.ones(len(reach))
        factors[usable] = reach[usable] ** strength / weights[usable] ** (1 - strength)
        factors = np.clip(factors / np.exp(np.log(factors).mean()), 1 / _MOST_FACTOR, _MOST_FACTOR)
        scaled = work.scale(norm, 1, 1 / factors, 0)
        if len(norm.inputs) > 2 and norm.inputs[2]:
            scaled = work.scale(scaled, 2, 1 / factors, 0)
        work.replace(norm, scaled)
        for node in layers:
            work.replace(node, work.scale(work.current(node), 1, factors, -1))
        work.give_back(norm.outputs[0], factors, layers)
    return work.finished()
