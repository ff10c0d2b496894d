"""Element by element."""

from __future__ import annotations

from functools import partial, reduce

import numpy as np

from fastvq.compress.importers.onnx_operators._table import element, imports

# ONNX operator -> function, and the attributes that are its alpha and beta.
_UNARY = {
    "Abs": ("abs",),
    "Acos": ("acos",),
    "Acosh": ("acosh",),
    "Asin": ("asin",),
    "Asinh": ("asinh",),
    "Atan": ("atan",),
    "Atanh": ("atanh",),
    "BitwiseNot": ("bit_not",),
    "Ceil": ("ceil",),
    "Celu": ("celu", "alpha"),
    "Cos": ("cos",),
    "Cosh": ("cosh",),
    "Elu": ("elu", "alpha"),
    "Erf": ("erf",),
    "Exp": ("exp",),
    "Floor": ("floor",),
    "HardSigmoid": ("hard_sigmoid", "alpha", "beta"),
    "HardSwish": ("hard_swish",),
    "IsNaN": ("isnan",),
    "LeakyRelu": ("leaky_relu", "alpha"),
    "Log": ("log",),
    "Mish": ("mish",),
    "Neg": ("negative",),
    "Not": ("not",),
    "Reciprocal": ("reciprocal",),
    "Relu": ("relu",),
    "Round": ("round",),
    "Selu": ("selu", "alpha", "gamma"),
    "Sigmoid": ("sigmoid",),
    "Sign": ("sign",),
    "Sin": ("sin",),
    "Sinh": ("sinh",),
    "Softplus": ("softplus",),
    "Softsign": ("softsign",),
    "Sqrt": ("sqrt",),
    "Tan": ("tan",),
    "Tanh": ("tanh",),
    "ThresholdedRelu": ("thresholded_relu", "alpha"),
}


@imports(*_UNARY)
def unary(b, node):
    function, *parameters = _UNARY[node.operator]
    return b.unary(function, node.input(0), *(node.attributes[name] for name in parameters))


@imports("Gelu")
def gelu(b, node):
    tanh = node.attributes.get("approximate") == "tanh"
    return b.unary("gelu_tanh" if tanh else "gelu", node.input(0))


@imports("Swish")
def swish(b, node):
    x, alpha = node.input(0), node.attributes["alpha"]
    if alpha == 1:
        return b.unary("silu", x)
    scaled = b.binary("multiply", x, b.constant(np.float32(alpha)))
    return b.binary("multiply", x, b.unary("sigmoid", scaled))


@imports("IsInf")
def is_inf(b, node):
    x, signs = node.input(0), [node.attributes[f"detect_{s}"] for s in ("negative", "positive")]
    zero, found = b.constant(np.zeros((), node.dtype(0))), b.unary("isinf", x)
    if not signs[0]:
        found = b.binary("and", found, b.binary("greater", x, zero))
    return found if signs[1] else b.binary("and", found, b.binary("less", x, zero))


@imports("Clip")
def clip(b, node):
    x, low, high = (node.input(i) for i in range(3))
    limits = [b.value(limit) if limit else None for limit in (low, high)]
    floats = [limit for limit in limits if limit is not None and limit.dtype == np.float32]
    if (low or high) and len(floats) == bool(low) + bool(high):
        ends = (float(-np.inf if limits[0] is None else limits[0]),
                float(np.inf if limits[1] is None else limits[1]))  # fmt: skip
        if ends == (0, np.inf):
            return b.unary("relu", x)
        return b.unary("clip", x, *ends)
    x = b.binary("maximum", x, low) if low else x
    return b.binary("minimum", x, high) if high else x


_BINARY = {
    "Add": "add",
    "And": "and",
    "BitwiseAnd": "bit_and",
    "BitwiseOr": "bit_or",
    "BitwiseXor": "bit_xor",
    "Div": "divide",
    "Equal": "equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Mul": "multiply",
    "Or": "or",
    "PRelu": "prelu",
    "Pow": "power",
    "Sub": "subtract",
    "Xor": "xor",
}


@imports(*_BINARY)
def binary(b, node):
    if node.operator == "Add":
        for i in (0, 1):
            if dense := _with_bias(b, node, i):
                return dense
    return b.binary(_BINARY[node.operator], node.input(0), node.input(1))


def _with_bias(b, node, number):
    """The dense layer that makes an input, with the other input as its bias; None if it is none."""
    made, bias = b.maker(node.input(number)), b.value(node.input(1 - number))
    # DynamicDense reads scales before its bias.
    before = {"Dense": 2, "DynamicDense": 3}
    if made is None or len(made.inputs) != before.get(made.operator) or bias is None:
        return None
    if not node.alone(number) or bias.shape != b.value(made.inputs[1]).shape[:1]:
        return None
    return b.add(made.operator, *made.inputs, node.input(1 - number))


@imports("BitShift")
def bit_shift(b, node):
    function = "shift_" + node.attributes["direction"].lower()
    return b.binary(function, node.input(0), node.input(1))


@imports("Mod")
def modulo(b, node):
    function = "remainder" if node.attributes["fmod"] else "modulo"
    return b.binary(function, node.input(0), node.input(1))


@imports("Sum", "Min", "Max", "Mean")
def of_many(b, node):
    function = {"Min": "minimum", "Max": "maximum"}.get(node.operator, "add")
    total = reduce(partial(b.binary, function), node.inputs)
    if node.operator == "Mean":
        total = b.binary("divide", total, b.constant(np.array(len(node.inputs), node.dtype(0))))
    return total if len(node.inputs) > 1 else b.unary("identity", total)


@imports("Where")
def where(b, node):
    return b.add("Where", *node.inputs)


@imports("Cast")
def cast(b, node):
    if node.words(0):
        return node.input(0)
    dtype = element(node.attributes["to"])
    return node.input(0) if node.dtype(0) == dtype else b.add("Cast", node.input(0), dtype=dtype)


@imports("CastLike")
def cast_like(b, node):
    dtype = node.dtype(1)
    if dtype is None:
        raise ValueError("the type to cast to is unknown")
    return b.add("Cast", node.input(0), dtype=dtype)


@imports("Identity")
def identity(b, node):
    return node.input(0)


@imports("Dropout")
def dropout(b, node):
    if (training := node.constant(2, "training_mode")) is not None and training.any():
        raise ValueError("it drops values at random, as in training")
    ones = None
    if node.wants(1):
        shape = b.add("Shape", node.input(0))
        ones = b.add("Fill", shape, value=1, dtype="bool")
    return [node.input(0), ones]
