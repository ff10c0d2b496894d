"""Lowerings of what goes element by element."""

from __future__ import annotations

import numpy as np

from fastvq.runtime.registry import KernelCall, lowering, module, workers

# Values that are worth waking a thread for: of a function, and of what only reads and writes.
FUNCTION_WORK = 1 << 14
MEMORY_WORK = 1 << 16
# A power of so many factors is a product, each rounded to half a unit in the last place.
_MOST_FACTORS = 4
# The order of `TYPES` in pointwise.h. A byte is a truth value where it comes out of a comparison.
_TYPES = {np.dtype(name): i for i, name in enumerate(("float32", "int64", "int32", "bool"))}
_QUESTIONS = {"isnan": 0, "isinf": 1, "not": 2}


@lowering("Unary")
def unary(node, inputs, outputs, plan):
    (x,), (y,) = inputs, outputs
    function = node.attributes["function"]
    alpha, beta = (float(node.attributes.get(name, 0.0)) for name in ("alpha", "beta"))
    if function in _QUESTIONS and x.dtype in (np.float32, np.bool_):
        return [KernelCall("pointwise.question", [x, y], [x.size, _QUESTIONS[function]])]
    wide = module("pointwise").functions_wide.get(function)
    if wide is not None and x.dtype == np.float32:
        threads = workers(plan, x.size, FUNCTION_WORK)
        return [KernelCall("pointwise.wide", [x, y], [x.size, wide], threads=threads)]
    return function_call(x, y, function, alpha, beta, plan)


def function_call(x, y, function, alpha, beta, plan):
    """Calls that apply a function of functions.h; None where it is none of those."""
    number = function_number(function, alpha)
    if number is None or x.dtype != np.float32:
        return None
    threads = workers(plan, x.size, FUNCTION_WORK)
    return [KernelCall("pointwise.unary", [x, y], [x.size, number], [alpha, beta], threads)]


def function_number(function, alpha):
    """The number by which kernels know a function of functions.h; None where they do not."""
    if function == "celu" and alpha <= 0:  # a slope that is not positive turns its sides around
        return None
    return module("pointwise").functions.get(function)


@lowering("Binary")
def binary(node, inputs, outputs, plan):
    (a, b), (y,) = inputs, outputs
    function = node.attributes["function"]
    if function == "power":
        return _power(a, b, y, plan)
    number = module("pointwise").binaries.get((function, _TYPES.get(a.dtype)))
    walk = walk_of(y.shape, [a.shape, b.shape])
    if number is None or walk is None or a.dtype != b.dtype:
        return None
    threads = workers(plan, y.size, MEMORY_WORK)
    return [KernelCall("pointwise.binary", [a, b, y], [number, *walk], threads=threads)]


def _power(a, b, y, plan):
    """Powers that are known, and 0.5, -1 or few factors, as models have them; else None."""
    if a.dtype != np.float32 or not b.known or b.size != 1 or y.shape != a.shape:
        return None
    exponent = float(b.value.reshape(()))
    if exponent in range(2, _MOST_FACTORS + 1):
        number = module("pointwise").binaries["multiply", _TYPES[a.dtype]]
        sizes = [number, *walk_of(y.shape, [a.shape, a.shape])]
        threads = workers(plan, y.size, MEMORY_WORK)
        factors = [a] + [y] * (int(exponent) - 2)
        return [
            KernelCall("pointwise.binary", [factor, a, y], sizes, threads=threads)
            for factor in factors
        ]
    function = {1: "identity", 0.5: "sqrt", -1: "reciprocal"}.get(exponent)
    return function and function_call(a, y, function, 0.0, 0.0, plan)


@lowering("Where")
def where(node, inputs, outputs, plan):
    (condition, a, b), (y,) = inputs, outputs
    walk = walk_of(y.shape, [condition.shape, a.shape, b.shape])
    if walk is None or a.dtype.itemsize not in (1, 4, 8):
        return None
    threads = workers(plan, y.size, MEMORY_WORK)
    sizes = [a.dtype.itemsize, *walk]
    return [KernelCall("pointwise.where", [condition, a, b, y], sizes, threads=threads)]


@lowering("Cast")
def cast(node, inputs, outputs, plan):
    (x,), (y,) = inputs, outputs
    # Bytes are read alike, whether they are truth values or numbers.
    source = np.dtype(bool) if x.dtype == np.uint8 else x.dtype
    if source not in _TYPES or y.dtype not in _TYPES:
        return None
    sizes = [x.size, _TYPES[source], _TYPES[y.dtype]]
    return [KernelCall("pointwise.cast", [x, y], sizes)]


def walk_of(shape, shapes):
    """The sizes of a `Walk` (pointwise.h) over a result of this shape; None where it is too long.

    Neighbouring dimensions along which every operand goes on as within one are one.
    """
    operands = [_broadcast_strides(s, shape) for s in shapes]
    operands += [[0] * len(shape)] * (3 - len(operands))
    sizes, strides = [], []  # of dimensions that stay, the last first
    for d in reversed(range(len(shape))):
        here = [operand[d] for operand in operands]
        if shape[d] == 1:
            continue
        if sizes and here == [stride * sizes[-1] for stride in strides[-1]]:
            sizes[-1] *= shape[d]
        else:
            sizes.append(shape[d])
            strides.append(here)
    if not sizes:
        sizes, strides = [1], [[1, 1, 1]]
    most = module("pointwise").most_dimensions
    if len(sizes) > most:
        return None
    rows = [sizes, *([row[i] for row in strides] for i in range(3))]
    return [len(sizes), *(n for row in rows for n in row[::-1] + [0] * (most - len(row)))]


def _broadcast_strides(shape, wanted):
    """Strides, in values, of a C-contiguous array that is broadcast."""
    shape = (1,) * (len(wanted) - len(shape)) + tuple(shape)
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(0 if n == 1 else step)
        step *= n
    return strides[::-1]
