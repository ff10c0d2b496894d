"""Sums and extremes, normalisation."""

from __future__ import annotations

from functools import partial, reduce

import numpy as np

from fastvq.compress.importers.onnx_operators._table import imports

# ---- normalisation -------------------------------------------------------------------------------


@imports("BatchNormalization")
def batch_norm(b, node):
    if node.attributes.get("training_mode") or node.wants(1):
        raise ValueError("it takes statistics of the batch, as in training")
    x, scale, bias, mean, variance = node.inputs
    epsilon = b.constant(np.array(node.attributes["epsilon"], node.dtype(4)))
    factor = b.binary("divide", scale, b.unary("sqrt", b.binary("add", variance, epsilon)))
    shift = b.binary("subtract", bias, b.binary("multiply", mean, factor))
    rank = node.rank(0)
    folded = _into_product(b, node, factor, shift, rank)
    if folded:
        return folded
    last = b.binary("multiply", b.channels_last(x, rank), factor)
    return b.channels_first(b.binary("add", last, shift), rank)


def _into_product(b, node, factor, shift, rank):
    """The layer before, with every output scaled and shifted; None if there is none to change."""
    turned = b.maker(node.input(0))
    order = turned.attributes.get("order") if turned and turned.operator == "Transpose" else None
    made = b.maker(turned.inputs[0]) if order else turned
    if made is None or made.operator not in ("Conv", "ConvTranspose", "Dense"):
        return None
    if made.operator == "Dense" and rank != 2:
        return None
    weight, bias = made.inputs[1], made.inputs[2] if len(made.inputs) > 2 else ""
    constants = [name for name in (weight, bias, factor, shift) if name]
    if not node.alone(0) or any(b.value(name) is None for name in constants):
        return None
    column = b.reshape(factor, -1, *[1] * (b.value(weight).ndim - 1))
    shift = b.binary("add", b.binary("multiply", bias, factor), shift) if bias else shift
    y = b.add(
        made.operator, made.inputs[0], b.binary("multiply", weight, column), shift,
        **made.attributes,
    )  # fmt: skip
    return b.transpose(y, order) if order else y


@imports("LayerNormalization")
def layer_norm(b, node):
    x, scale, bias = node.input(0), node.input(1), node.input(2)
    axis, epsilon = node.attributes["axis"], node.attributes["epsilon"]
    found = [b.add("LayerNorm", x, scale, bias, axis=axis, epsilon=epsilon), None, None]
    if node.wants(1) or node.wants(2):
        axes = range(axis % node.rank(0), node.rank(0))
        found[1] = b.reduce("mean", x, axes)
        centred = b.binary("subtract", x, found[1])
        variance = b.reduce("mean", b.binary("multiply", centred, centred), axes)
        variance = b.binary("add", variance, b.constant(np.float32(epsilon)))
        found[2] = b.unary("reciprocal", b.unary("sqrt", variance))
    return found


@imports("InstanceNormalization")
def instance_norm(b, node):
    x, scale, bias = node.inputs
    y = b.add("LayerNorm", x, axis=2, epsilon=node.attributes["epsilon"])
    return _scale_and_shift(b, y, scale, bias, node.rank(0))


@imports("GroupNormalization")
def group_norm(b, node):
    x, scale, bias = node.inputs
    groups = node.attributes["num_groups"]
    y = b.add("LayerNorm", b.reshape(x, 0, groups, -1), axis=2, epsilon=node.attributes["epsilon"])
    if node.opset < 21:  # one scale for each group
        scale, bias = (b.reshape(v, -1, 1) for v in (scale, bias))
        y = b.binary("add", b.binary("multiply", y, scale), bias)
        return b.add("Reshape", y, b.add("Shape", x))
    y = b.add("Reshape", y, b.add("Shape", x))
    return _scale_and_shift(b, y, scale, bias, node.rank(0))


def _scale_and_shift(b, x, scale, bias, rank):
    """By channel, channels first."""
    scale, bias = (b.reshape(v, -1, *[1] * (rank - 2)) for v in (scale, bias))
    return b.binary("add", b.binary("multiply", x, scale), bias)


@imports("LRN")
def local_response_norm(b, node):
    """x / (bias + alpha / size · Σ x² over neighbouring channels) ^ beta."""
    x, size = node.input(0), node.attributes["size"]
    before, after = (size - 1) // 2, size // 2
    rank = node.rank(0)
    pads = [0, before, *[0] * (rank - 2), 0, after, *[0] * (rank - 2)]
    squares = b.add("Pad", b.binary("multiply", x, x), b.integers(*pads))
    # Slice i of them starts at channel i and has as many channels as x: it ends size - 1 - i before
    # the last, which counts as past the end where that is 0.
    ends = [i - size + 1 or 1 << 40 for i in range(size)]
    parts = [
        b.add("Slice", squares, b.integers(i), b.integers(end), b.integers(1))
        for i, end in enumerate(ends)
    ]
    total = reduce(partial(b.binary, "add"), parts)
    factor = b.constant(np.float32(node.attributes["alpha"] / size))
    base = b.binary("multiply", total, factor)
    base = b.binary("add", base, b.constant(np.float32(node.attributes["bias"])))
    beta = b.constant(np.float32(node.attributes["beta"]))
    return b.binary("divide", x, b.binary("power", base, beta))


@imports("LpNormalization")
def lp_norm(b, node):
    x, axis = node.input(0), node.attributes["axis"]
    norm = b.reduce({1: "l1", 2: "l2"}[node.attributes["p"]], x, [axis])
    zero, one = (b.constant(np.array(v, node.dtype(0))) for v in (0, 1))
    norm = b.add("Where", b.binary("equal", norm, zero), one, norm)
    return b.binary("divide", x, norm)


@imports("Softmax", "LogSoftmax")
def softmax(b, node):
    x, axis = node.input(0), node.attributes["axis"]
    log = {"log": True} if node.operator == "LogSoftmax" else {}
    if node.opset >= 13 or axis in (-1, node.rank(0) - 1):
        return b.add("Softmax", x, axis=axis, **log)
    flat = b.add("Flatten", x, axis=axis)  # what it meant before: all axes from that one on
    return b.add("Reshape", b.add("Softmax", flat, axis=-1, **log), b.add("Shape", x))


@imports("Hardmax")
def hardmax(b, node):
    x, axis = node.input(0), node.attributes["axis"]
    if node.opset < 13 and axis not in (-1, node.rank(0) - 1):
        flat = b.add("Flatten", x, axis=axis)
        return b.add("Reshape", _hardmax(b, flat, -1, node.dtype(0)), b.add("Shape", x))
    return _hardmax(b, x, axis % node.rank(0), node.dtype(0))


def _hardmax(b, x, axis, dtype):
    best = b.add("ArgMax", x, axis=axis, keep=False)
    depth = b.add("Shape", x, start=axis, end=axis + 1 if axis != -1 else None)
    return b.add("OneHot", best, depth, b.constant(np.array([0, 1], dtype)), axis=axis)


# ---- sums and extremes ---------------------------------------------------------------------------

_REDUCE = {
    "ReduceL1": "l1",
    "ReduceL2": "l2",
    "ReduceLogSum": "log_sum",
    "ReduceLogSumExp": "log_sum_exp",
    "ReduceMax": "max",
    "ReduceMean": "mean",
    "ReduceMin": "min",
    "ReduceProd": "product",
    "ReduceSum": "sum",
    "ReduceSumSquare": "sum_square",
}


@imports(*_REDUCE)
def reduction(b, node):
    x, axes = node.input(0), node.whole_numbers(1, "axes")
    if not axes:
        axes = [] if node.attributes.get("noop_with_empty_axes") else None
    return b.reduce(_REDUCE[node.operator], x, axes, bool(node.attributes["keepdims"]))


@imports("ArgMax", "ArgMin")
def arg_max(b, node):
    return b.add(
        "ArgMax",
        node.input(0),
        axis=node.attributes["axis"],
        keep=bool(node.attributes["keepdims"]),
        last=bool(node.attributes.get("select_last_index")),
        least=node.operator == "ArgMin",
    )


@imports("TopK")
def top_k(b, node):
    axis, largest, order = (node.attributes[name] for name in ("axis", "largest", "sorted"))
    return b.add(
        "TopK", *node.inputs, n_outputs=2, axis=axis, largest=bool(largest), sorted=bool(order)
    )


@imports("CumSum")
def cumulative_sum(b, node):
    flags = {name: bool(node.attributes[name]) for name in ("exclusive", "reverse")}
    return b.add("CumSum", *node.inputs, **flags)
