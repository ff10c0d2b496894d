"""Lowerings of sums and extremes, softmax and normalisation, the first in order."""

from __future__ import annotations

import math

import numpy as np

from fastvq.runtime.lowering.pointwise import FUNCTION_WORK, MEMORY_WORK
from fastvq.runtime.registry import KernelCall, lowering, workers

# What a kernel adds up (the order of reductions.h), whether it is divided by the number of values,
# whether the root is taken.
_REDUCTIONS = {
    "sum": (0, False, False),
    "mean": (0, True, False),
    "sum_square": (1, False, False),
    "l2": (1, False, True),
    "l1": (2, False, False),
    "max": (3, False, False),
    "min": (4, False, False),
}


@lowering("Reduce")
def reduce(node, inputs, outputs, plan):
    x, axes = [*inputs, None][:2]
    (y,) = outputs
    function = node.attributes["function"]
    parts = _split(x.shape, None if axes is None else axes.value)
    if x.dtype != np.float32 or function not in _REDUCTIONS or parts is None:
        return None
    what, divide, root = _REDUCTIONS[function]
    sizes, divisor = [*parts, what, root], float(parts[1]) if divide else 1.0
    threads = workers(plan, x.size, MEMORY_WORK)
    return [KernelCall("reductions.reduce", [x, y], sizes, [divisor], threads)]


@lowering("Softmax")
def softmax(node, inputs, outputs, plan):
    (x,), (y,) = inputs, outputs
    if x.dtype != np.float32:
        return None
    sizes = [*_split(x.shape, [node.attributes.get("axis", -1)]), node.attributes.get("log", False)]
    threads = workers(plan, x.size, FUNCTION_WORK)
    return [KernelCall("reductions.softmax", [x, y], sizes, threads=threads)]


@lowering("LayerNorm")
def layer_norm(node, inputs, outputs, plan):
    x, scale, bias = [*inputs, None, None][:3]
    (y,) = outputs
    normal = x.shape[node.attributes.get("axis", -1) % len(x.shape) :]
    n = math.prod(normal)
    for factor in (scale, bias):
        if factor is not None and _without_ones(factor.shape) != _without_ones(normal):
            return None
    if x.dtype != np.float32 or not n:
        return None
    sizes, epsilon = [x.size // n, n], node.attributes.get("epsilon", 1e-5)
    threads = workers(plan, x.size, FUNCTION_WORK)
    return [KernelCall("reductions.layer_norm", [x, scale, bias, y], sizes, [epsilon], threads)]


@lowering("ArgMax")
def arg_max(node, inputs, outputs, plan):
    (x,), (y,) = inputs, outputs
    if x.dtype != np.float32:
        return None
    parts = _split(x.shape, [node.attributes.get("axis", 0)])
    sizes = [*parts, *(node.attributes.get(name, False) for name in ("last", "least"))]
    threads = workers(plan, x.size, MEMORY_WORK)
    return [KernelCall("reductions.arg_max", [x, y], sizes, threads=threads)]


@lowering("TopK")
def top_k(node, inputs, outputs, plan):
    x, values, places = inputs[0], *outputs
    outer, n, inner = _split(x.shape, [node.attributes.get("axis", -1)])
    if x.dtype != np.float32 or not values.size or n >= 1 << 32:
        return None
    k = values.size // (outer * inner)
    threads = workers(plan, x.size, FUNCTION_WORK)
    sizes = [outer, n, inner, k, node.attributes.get("largest", True)]
    operands = [x, values, places, plan.scratch(8 * threads * k)]
    return [KernelCall("reductions.top_k", operands, sizes, threads=threads)]


@lowering("CumSum")
def running_sum(node, inputs, outputs, plan):
    (x, axis), (y,) = inputs, outputs
    kinds = {"float32": 0, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8}
    if x.dtype.name not in kinds or not x.size:
        return None
    how = (node.attributes.get(name, False) for name in ("exclusive", "reverse"))
    sizes = [*_split(x.shape, axis.value), kinds[x.dtype.name], *how]
    threads = workers(plan, x.size, MEMORY_WORK)
    return [KernelCall("reductions.running_sum", [x, y], sizes, threads=threads)]


def _split(shape, axes):
    """(outer, n, inner): before the axes, along them, and behind; None where they lie apart.

    Axes of length 1 are no hindrance, wherever they lie.
    """
    axes = range(len(shape)) if axes is None else {int(a) % len(shape) for a in np.ravel(axes)}
    along = [i for i in axes if shape[i] != 1]
    if not along:
        return math.prod(shape), 1, 1
    first, last = min(along), max(along) + 1
    if any(shape[i] != 1 and i not in axes for i in range(first, last)):
        return None
    return math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])


def _without_ones(shape):
    """The dimensions that count for where values lie, the last first."""
    return [n for n in shape if n != 1]
