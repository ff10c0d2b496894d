"""What each ONNX operator is in operators of fastvq: the table :data:`OPERATORS`.

A row is a function of the graph in the making (`b`, a Builder) and the node; it returns the value,
or values, that the node gives. Whatever hangs on constants alone is computed on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["ELEMENTS", "OPERATORS", "as_array", "element", "imports"]

ELEMENTS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float32",
    onnx.TensorProto.BFLOAT16: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.BOOL: "bool",
}


def element(data_type):
    """Our dtype, by name, for an element type of ONNX; a ValueError where there is none."""
    if data_type not in ELEMENTS:
        name = onnx.TensorProto.DataType.Name(data_type)
        raise ValueError(f"values of type {name} are not supported")
    return ELEMENTS[data_type]


def as_array(tensor):
    """The array of an ONNX tensor, 16-bit floats as float32."""
    return numpy_helper.to_array(tensor).astype(element(tensor.data_type), copy=False)


# The table: (domain, operator) -> function.
OPERATORS: dict[tuple[str, str], Callable] = {}


def imports(*names, domain=""):
    """Decorator that enters a function for these operators of ONNX."""

    def enter(function):
        OPERATORS.update({(domain, name): function for name in names})
        return function

    return enter


# ---- element by element --------------------------------------------------------------------------

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


# ---- products ------------------------------------------------------------------------------------


@imports("MatMul")
def mat_mul(b, node):
    x, weight = node.inputs
    array = b.value(weight)
    if array is not None and array.ndim == 2 and array.dtype.kind == "f":
        return b.add("Dense", x, b.transpose(weight, (1, 0)))
    return b.add("MatMul", x, weight)


@imports("Gemm")
def gemm(b, node):
    x, weight, more = node.input(0), node.input(1), node.input(2)
    alpha, beta = node.attributes["alpha"], node.attributes["beta"]
    x = b.transpose(x, (1, 0)) if node.attributes["transA"] else x
    weight = weight if node.attributes["transB"] else b.transpose(weight, (1, 0))
    weight = _scaled(b, weight, alpha, node.dtype(1))
    more = _scaled(b, more, beta, node.dtype(2)) if more and beta else ""
    rows = b.value(weight)
    if rows is None or rows.dtype.kind != "f":
        y = b.add("MatMul", x, weight, transpose_b=True)
    elif more and (bias := _as_bias(b, more, len(rows))):
        return b.add("Dense", x, weight, bias)
    else:
        y = b.add("Dense", x, weight)
    return b.binary("add", y, more) if more else y


def _scaled(b, x, factor, dtype):
    return x if factor == 1 else b.binary("multiply", x, b.constant(np.array(factor, dtype)))


def _as_bias(b, name, n):
    """A constant as a vector of n, where it is the same for every row; else None."""
    array = b.value(name)
    if array is None or (array.ndim == 2 and array.shape[0] != 1):
        return None
    if array.shape == (n,):
        return name
    return b.add("Expand", b.reshape(name, -1), b.integers(n))


def _window(node, kernel):
    """Attributes that say how a window of that many axes walks."""
    n = len(kernel)
    same = {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}.get(node.attributes["auto_pad"], "")
    pads = node.attributes.get("pads") if node.attributes["auto_pad"] == "NOTSET" else None
    window = {
        "strides": tuple(node.attributes.get("strides") or [1] * n),
        "pads": tuple(pads or [0] * 2 * n),
    }
    dilations = node.attributes.get("dilations")
    if dilations and {*dilations} != {1}:
        window["dilations"] = tuple(dilations)
    return window | ({"same": same} if same else {})


@imports("Conv")
def conv(b, node):
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    rank = node.rank(1)
    weight = b.channels_last(weight, rank)
    window = _window(node, node.shape(1)[2:])
    if node.attributes["group"] != 1:
        window["groups"] = node.attributes["group"]
    y = b.add("Conv", b.channels_last(x, rank), weight, bias, **window)
    return b.channels_first(y, rank)


@imports("ConvTranspose")
def conv_transpose(b, node):
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    rank, groups = node.rank(1), node.attributes["group"]
    kernel = node.shape(1)[2:]
    n_in, n_out = node.shape(1)[:2]
    spatial = range(3, rank + 1)
    weight = b.reshape(weight, groups, n_in // groups, n_out, *kernel)
    weight = b.transpose(weight, (0, 2, *spatial, 1))
    weight = b.reshape(weight, groups * n_out, *kernel, n_in // groups)
    window = _window(node, kernel)
    window.pop("same", None)
    more = tuple(node.attributes.get("output_padding") or [0] * len(kernel))
    window["pads"], more = _pads_of_transposed(node, window, kernel, more)
    if any(more):
        window["output_pads"] = more
    if groups != 1:
        window["groups"] = groups
    y = b.add("ConvTranspose", b.channels_last(x, rank), weight, bias, **window)
    return b.channels_first(y, rank)


def _pads_of_transposed(node, window, kernel, more):
    """Pads, and rows put at the ends, as given, or such that the output has the size wanted."""
    wanted, auto_pad = node.attributes.get("output_shape"), node.attributes["auto_pad"]
    if not wanted and not auto_pad.startswith("SAME"):
        return window["pads"], more
    n = len(kernel)
    sizes = (node.shape(0) or ())[2:]
    if wanted and (len(sizes) != n or not all(isinstance(size, int) for size in sizes)):
        raise ValueError("output_shape needs inputs of a fixed size")
    begins, ends, extra = [], [], []
    for i in range(n):
        stride, dilation = window["strides"][i], window.get("dilations", [1] * n)[i]
        reach = (kernel[i] - 1) * dilation + 1 + more[i]
        # What the windows cover, less what is wanted; "same" wants stride times the input.
        total = (sizes[i] - 1) * stride + reach - wanted[-n:][i] if wanted else reach - stride
        extra.append(more[i] + max(0, -total))
        half = max(0, total) // 2
        rest = max(0, total) - half
        begins.append(half if auto_pad == "SAME_UPPER" else rest)
        ends.append(rest if auto_pad == "SAME_UPPER" else half)
    return (*begins, *ends), tuple(extra)


@imports("MaxPool", "AveragePool", "LpPool")
def pool(b, node):
    if node.wants(1):
        raise ValueError("the indices of its maxima are not supported")
    kernel = node.attributes["kernel_shape"]
    rank = len(kernel) + 2
    window = _window(node, kernel)
    window |= {"ceil": True} if node.attributes.get("ceil_mode") else {}
    x = b.channels_last(node.input(0), rank)
    if node.operator == "LpPool":
        y = _lp_pool(b, x, tuple(kernel), window, node.attributes["p"])
    else:
        function = "max" if node.operator == "MaxPool" else "average"
        window |= {"count_padding": True} if node.attributes.get("count_include_pad") else {}
        y = b.add("Pool", x, function=function, kernel=tuple(kernel), **window)
    return b.channels_first(y, rank)


def _lp_pool(b, x, kernel, window, p):
    """(Σ |x|^p)^(1/p): a mean over whole windows, times their size."""
    power = b.constant(np.float32(p))
    powers = b.binary("power", b.unary("abs", x), power)
    mean = b.add("Pool", powers, function="average", kernel=kernel, count_padding=True, **window)
    total = b.binary("multiply", mean, b.constant(np.float32(np.prod(kernel))))
    return b.binary("power", total, b.constant(np.float32(1 / p)))


@imports("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(b, node):
    rank = node.rank(0)
    function = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}.get(node.operator)
    function = function or {1: "l1", 2: "l2"}.get(node.attributes["p"])
    if function is None:
        raise ValueError(f"p = {node.attributes['p']} is not supported, 1 and 2 are")
    x = b.channels_last(node.input(0), rank)
    return b.channels_first(b.reduce(function, x, range(1, rank - 1)), rank)


@imports("Einsum")
def einsum(b, node):
    terms, result = _einsum_terms(node)
    values = [*node.inputs]
    while len(terms) > 1:
        later = set(result).union(*terms[2:])
        kept = "".join(dict.fromkeys(c for c in terms[0] + terms[1] if c in later))
        values[:2] = [_product_of_two(b, values[:2], terms[:2], kept)]
        terms[:2] = [kept]
    return _summed(b, values[0], terms[0], result)


def _einsum_terms(node):
    """The labels of each input and of the output; "..." written out as capital letters."""
    equation = node.attributes["equation"].replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(node.inputs):
        raise ValueError(f"equation {equation!r} is not for {len(node.inputs)} inputs")
    dots = ""
    for i, term in enumerate(terms):
        if "..." in term:
            width = node.rank(i) - len(term) + 3
            free = "ABCDEFGHIJKLMNOP"[16 - width :]
            terms[i] = term.replace("...", free)
            dots = max(dots, free, key=len)
    if not arrow:
        labels = "".join(terms)
        result = "..." + "".join(sorted(c for c in set(labels) - set(dots) if labels.count(c) == 1))
    if any(len(set(term)) < len(term) for term in terms):
        raise ValueError(f"equation {equation!r} takes a diagonal, which is not supported")
    return terms, result.replace("...", dots)


def _summed(b, x, term, wanted):
    """x with the labels that are not wanted summed, the others in the order wanted."""
    gone = [i for i, c in enumerate(term) if c not in wanted]
    if gone:
        x = b.reduce("sum", x, gone, keep=False)
    left = [c for c in term if c in wanted]
    return b.transpose(x, [left.index(c) for c in wanted])


def _product_of_two(b, values, terms, result):
    """Two factors as one batched matrix product: (batch, left, inner) x (batch, inner, right)."""
    left, right = terms
    batch = [c for c in left if c in right and c in result]
    inner = [c for c in left if c in right and c not in result]
    own = [[c for c in term if c in result and c not in batch] for term in terms]
    x = _summed(b, values[0], left, [*batch, *own[0], *inner])
    y = _summed(b, values[1], right, [*batch, *inner, *own[1]])
    ends = [len(batch), len(batch) + len(own[0]), len(batch) + len(own[0]) + len(inner)]
    middle = ends[0] + len(inner)
    x_own = b.dimensions(x, ends[0], ends[1])
    y_own = b.dimensions(y, middle, middle + len(own[1]))
    lead = [b.dimensions(x, 0, ends[0])] if batch else []
    each = [_product(b, x_own), _product(b, b.dimensions(x, ends[1], ends[2])), _product(b, y_own)]
    x = b.reshape(x, *lead, each[0], each[1])
    y = b.reshape(y, *lead, each[1], each[2])
    z = b.reshape(b.add("MatMul", x, y), *lead, x_own, y_own)
    labels = [*batch, *own[0], *own[1]]
    return b.transpose(z, [labels.index(c) for c in result])


def _product(b, dimensions):
    return b.reduce("product", dimensions)


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


# ---- recurrent -----------------------------------------------------------------------------------

_DEFAULT_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


@imports("LSTM", "GRU", "RNN")
def recurrent(b, node):
    time_first = not node.attributes.get("layout")
    x, weight, hidden, bias, lengths, *states = (node.input(i) for i in range(8))
    direction = node.attributes["direction"]
    states, peepholes = states[: 2 if node.operator == "LSTM" else 1], states[2]
    if peepholes:
        raise ValueError("peepholes (P) are not supported")
    attributes = {"direction": direction, **_cell(node, 2 if direction == "bidirectional" else 1)}
    if time_first:
        x = b.transpose(x, (1, 0, 2))
        states = [state and b.transpose(state, (1, 0, 2)) for state in states]
    biases = _biases(b, node, bias, node.shape(2)[-1])
    found = b.add(
        node.operator, x, weight, hidden, *biases, lengths, *states,
        n_outputs=1 + (2 if node.operator == "LSTM" else 1), **attributes,
    )  # fmt: skip
    if not time_first:
        return found
    return [b.transpose(found[0], (1, 2, 0, 3)), *(b.transpose(s, (1, 0, 2)) for s in found[1:])]


def _cell(node, directions):
    """What kind of cell it is, as attributes; a ValueError for those that are none of ours."""
    if node.attributes.get("clip"):
        raise ValueError("clipped cells (clip) are not supported")
    if node.attributes.get("input_forget"):
        raise ValueError("coupled input and forget gates (input_forget) are not supported")
    default = _DEFAULT_ACTIVATIONS.get(node.operator, ["tanh"])
    given = [name.lower() for name in node.attributes.get("activations") or default * directions]
    if node.operator == "RNN" and len(set(given)) == 1 and given[0] in ("tanh", "relu"):
        return {"activation": given[0]}
    if given != default * directions:
        raise ValueError(f"activations {node.attributes['activations']} are not supported")
    if node.operator == "GRU" and node.attributes["linear_before_reset"]:
        return {"linear_before_reset": True}
    return {}


def _biases(b, node, bias, n_hidden):
    """Those of input and state, which ONNX keeps in one: added up, but for a GRU."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.operator] * n_hidden
    if not bias:
        return ["", ""] if node.operator == "GRU" else [""]
    axis = b.integers(1)
    of_input = b.add("Slice", bias, b.integers(0), b.integers(gates), axis)
    of_state = b.add("Slice", bias, b.integers(gates), b.integers(2 * gates), axis)
    if node.operator == "GRU":
        return [of_input, of_state]
    return [b.binary("add", of_input, of_state)]


# ---- shapes --------------------------------------------------------------------------------------


@imports("Constant")
def constant(b, node):
    for name, make in (
        ("value", as_array),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in node.attributes:
            value = node.attributes[name]
            array = make(value) if name == "value" else np.array(value, make)
            return b.constant(array, node.outputs[0])
    raise ValueError("it holds strings or sparse values, which are not supported")


@imports("ConstantOfShape")
def constant_of_shape(b, node):
    value = node.attributes.get("value")
    array = np.zeros(1, np.float32) if value is None else as_array(value)
    return b.add("Fill", node.input(0), value=array.reshape(()).item(), dtype=array.dtype.name)


@imports("Shape")
def shape(b, node):
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    known = node.shape(0)
    if known is not None and all(isinstance(n, int) for n in known[start:end]):
        return b.integers(*known[start:end])
    cut = {} if end is None else {"end": end}
    return b.add("Shape", node.input(0), **({"start": start} if start else {}), **cut)


@imports("Size")
def size(b, node):
    return b.add("Size", node.input(0))


@imports("Reshape")
def reshape(b, node):
    x, wanted = node.inputs
    array = b.value(wanted)
    copies = not node.attributes.get("allowzero") and (array is None or 0 in array)
    return b.add("Reshape", x, wanted, **({"zero_copies": True} if copies else {}))


@imports("Flatten")
def flatten(b, node):
    return b.add("Flatten", node.input(0), axis=node.attributes["axis"])


@imports("Squeeze")
def squeeze(b, node):
    return b.add("Squeeze", node.input(0), axes=tuple(node.whole_numbers(1, "axes") or ()))


@imports("Unsqueeze")
def unsqueeze(b, node):
    return b.add("Unsqueeze", node.input(0), axes=tuple(node.whole_numbers(1, "axes")))


@imports("Transpose")
def transpose(b, node):
    order = node.attributes.get("perm")
    if order is None:
        return b.add("Transpose", node.input(0))
    return b.transpose(node.input(0), order)


# ---- movement ------------------------------------------------------------------------------------


@imports("Concat")
def concat(b, node):
    return b.concat(node.inputs, node.attributes["axis"])


@imports("Split")
def split(b, node):
    n, axis = len(node.outputs), node.attributes["axis"]
    sizes = node.whole_numbers(1, "split")
    cut = {"parts": n} if sizes is None else {"sizes": tuple(sizes)}
    found = b.add("Split", node.input(0), n_outputs=n, axis=axis, **cut)
    return [found] if n == 1 else found


@imports("Slice")
def slice_(b, node):
    return b.add("Slice", *node.inputs)


@imports("Expand")
def expand(b, node):
    return b.add("Expand", *node.inputs)


@imports("Tile")
def tile(b, node):
    return b.add("Tile", *node.inputs)


@imports("Gather")
def gather(b, node):
    return b.add("Gather", *node.inputs, axis=node.attributes["axis"])


@imports("GatherElements")
def gather_elements(b, node):
    return b.add("GatherElements", *node.inputs, axis=node.attributes["axis"])


@imports("GatherND")
def gather_nd(b, node):
    return b.add("GatherND", *node.inputs, batch_dims=node.attributes["batch_dims"])


@imports("ScatterElements", "ScatterND", "Scatter")
def scatter(b, node):
    given = {"axis": node.attributes["axis"]} if "axis" in node.attributes else {}
    given |= {"reduction": node.attributes.get("reduction", "none")}
    name = "ScatterElements" if node.operator == "Scatter" else node.operator
    return b.add(name, *node.inputs, **given)


@imports("OneHot")
def one_hot(b, node):
    indices, depth, values = node.inputs
    if node.dtype(0) not in ("int64", "int32", "int16", "int8", "uint8"):
        indices = b.add("Cast", indices, dtype="int64")
    depth = b.add("Cast", depth, dtype="int64")
    return b.add("OneHot", indices, depth, values, axis=node.attributes["axis"])


@imports("Trilu")
def trilu(b, node):
    return b.add("Trilu", *node.inputs, upper=bool(node.attributes["upper"]))


@imports("Range")
def range_(b, node):
    return b.add("Range", *node.inputs)


@imports("Pad")
def pad(b, node):
    return b.add("Pad", *node.inputs, mode=node.attributes["mode"])


@imports("Resize")
def resize(b, node):
    x, region, scales, sizes = (node.input(i) for i in range(4))
    rank = node.rank(0)
    axes = [axis % rank for axis in node.attributes.get("axes") or range(rank)]
    if rank > 2:  # where the axes are once channels stand last
        places = [0, rank - 1, *range(1, rank - 1)]
        axes = [places[axis] for axis in axes]
    given = {
        "axes": tuple(axes),
        "mode": node.attributes["mode"],
        "coordinates": node.attributes["coordinate_transformation_mode"],
        "rounding": node.attributes["nearest_mode"],
        "cubic": float(node.attributes["cubic_coeff_a"]),
        "inside": bool(node.attributes["exclude_outside"]),
        "antialias": bool(node.attributes.get("antialias")),
        "outside": float(node.attributes["extrapolation_value"]),
        "policy": node.attributes.get("keep_aspect_ratio_policy", "stretch"),
    }
    if given["coordinates"] != "tf_crop_and_resize":
        region = ""
    y = b.add("Resize", b.channels_last(x, rank), scales, sizes, region, **given)
    return b.channels_first(y, rank)


@imports("DepthToSpace")
def depth_to_space(b, node):
    x, n = node.input(0), node.attributes["blocksize"]
    rows, picture = b.dimensions(x, 0, 1), b.dimensions(x, 2, 4)
    if node.attributes["mode"] == "DCR":
        y = b.transpose(b.reshape(x, rows, n, n, -1, picture), (0, 3, 4, 1, 5, 2))
    else:
        y = b.transpose(b.reshape(x, rows, -1, n, n, picture), (0, 1, 4, 2, 5, 3))
    return b.reshape(y, rows, -1, b.binary("multiply", picture, b.integers(n, n)))


@imports("SpaceToDepth")
def space_to_depth(b, node):
    x, n = node.input(0), node.attributes["blocksize"]
    small = b.binary("divide", b.dimensions(x, 2, 4), b.integers(n, n))
    height, width = (b.add("Gather", small, b.integers(i)) for i in (0, 1))
    y = b.reshape(x, b.dimensions(x, 0, 2), height, n, width, n)
    crd = node.attributes.get("mode") == "CRD"
    y = b.transpose(y, (0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4))
    return b.reshape(y, b.dimensions(x, 0, 1), -1, small)
