"""ONNX's operators of quantized models.

Each is written down as what it means: numbers that stand for floats become floats, the float
operator follows, and its result becomes numbers again; :mod:`fastvq.compress.qdq` then finds the
layers that may stay in integers. Constants keep their 8 bits (:meth:`Builder.evenly_spaced`).
uint8 is int8 here, less 128.

ONNX's dynamic quantization has one scale for all rows of a batch. Rows must not depend on the rows
beside them here, so products of such inputs become DynamicDense and DynamicConv, which have one for
each row or picture: nearer to the float model, and the same for a row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastvq.compress.importers.onnx_operators import OPERATORS, binary, cast, element, imports

__all__: list[str] = []

_MICROSOFT = "com.microsoft"


# ---- to integers and back ------------------------------------------------------------------------


@imports("DequantizeLinear")
@imports("DequantizeLinear", domain=_MICROSOFT)
def dequantize_linear(b, node):
    return _dequantized(b, node, 0, 1, 2)


@imports("QuantizeLinear")
@imports("QuantizeLinear", domain=_MICROSOFT)
def quantize_linear(b, node):
    x, zero = node.input(0), node.input(2)
    dtype = node.dtype(2) if zero else "uint8"
    if not zero and node.attributes.get("output_dtype"):
        dtype = element(node.attributes["output_dtype"])
    x = x if node.dtype(0) == "float32" else b.add("Cast", x, dtype="float32")
    return _quantized(b, node, x, 1, 2, dtype)


def _dequantized(b, node, x, scale, zero):
    """The floats that input x stands for; the arguments are the places of inputs."""
    name, dtype = node.input(x), node.dtype(zero) if node.input(zero) else node.dtype(x)
    steps = _steps(b, node, scale, zero, dtype)
    if b.value(name) is not None and dtype in ("int8", "uint8"):
        scales, zeros = (node.constant(place, "steps") for place in (scale, zero))
        if scales is not None and (zeros is not None or not node.input(zero)):
            return _constant(b, node, name, scales, zeros)
    if steps and dtype in ("int8", "uint8"):
        return b.add("Dequantize", _as_int8(b, name, dtype), *steps)
    scale, zero = _along_channels(b, node, x, scale, zero)
    y = b.add("Cast", name, dtype="float32")
    if zero:
        y = b.binary("subtract", y, b.add("Cast", zero, dtype="float32"))
    return b.binary("multiply", y, scale)


def _quantized(b, node, x, scale, zero, dtype):
    """The value x as steps of that dtype; scale and zero are the places of inputs."""
    steps = _steps(b, node, scale, zero, dtype)
    if steps and dtype in ("int8", "uint8"):
        return _as_dtype(b, b.add("Quantize", x, *steps), dtype)
    scale, zero = _along_channels(b, node, 0, scale, zero)
    y = b.unary("round", b.binary("divide", x, scale))
    if zero:
        y = b.binary("add", y, b.add("Cast", zero, dtype="float32"))
    limits = np.iinfo(dtype)
    return b.add("Cast", b.unary("clip", y, limits.min, limits.max), dtype=dtype)


def _steps(b, node, scale, zero, dtype):
    """Names of one scale and one zero point of int8, where they are constants; else None."""
    scales, zeros = b.value(node.input(scale)), b.value(node.input(zero))
    if scales is None or scales.size != 1 or (node.input(zero) and zeros is None):
        return None
    zeros = np.zeros((), dtype or "uint8") if zeros is None else zeros
    if zeros.size != 1 or zeros.dtype not in (np.int8, np.uint8):
        return None
    return [
        b.constant(scales.reshape(()).astype(np.float32)),
        b.constant(_less_128(zeros).reshape(())),
    ]


def _less_128(array):
    """uint8 as int8: as far from their least value."""
    return array if array.dtype == np.int8 else (array ^ np.uint8(128)).view(np.int8)


def _as_int8(b, name, dtype):
    """The same steps as int8."""
    if dtype == "int8":
        return name
    if name not in b.notes:
        if b.value(name) is not None:
            return b.constant(_less_128(b.value(name)), name)
        wide = b.binary("subtract", b.add("Cast", name, dtype="int32"), b.constant(np.int32(128)))
        b.notes[name] = b.add("Cast", wide, dtype="int8")
    return b.notes[name]


def _as_dtype(b, name, dtype):
    """Steps of int8 as those of ONNX: uint8 ones remember what they are made of."""
    if dtype == "int8":
        return name
    wide = b.binary("add", b.add("Cast", name, dtype="int32"), b.constant(np.int32(128)))
    unsigned = b.add("Cast", wide, dtype="uint8")
    b.notes[unsigned] = name
    return unsigned


def _constant(b, node, name, scales, zeros):
    """Steps that are constants, with a scale for all, for each channel or each block of one."""
    values = b.value(name)
    zeros = np.zeros_like(scales, values.dtype) if zeros is None else zeros
    if scales.size == 1:
        scales, zeros = scales.reshape(()), zeros.reshape(())
    else:
        axis, block = (
            node.attributes.get("axis", 1) % values.ndim,
            node.attributes.get("block_size"),
        )
        scales, zeros = (_spread(a, values.shape, axis, block) for a in (scales, zeros))
    scales = scales.astype(np.float32, copy=False)
    return b.evenly_spaced(_less_128(values), scales, _less_128(zeros), name)


def _spread(array, shape, axis, block):
    if not block:
        return array.reshape(-1, *[1] * (len(shape) - 1 - axis))
    return np.take(array, np.arange(shape[axis]) // block, axis=axis)


def _along_channels(b, node, x, scale, zero):
    """Scale and zero point with the shape in which they go with x."""
    if node.attributes.get("block_size"):
        raise ValueError("scales of blocks (block_size) are supported for constants alone")
    names, shape = (node.input(scale), node.input(zero)), node.shape(scale)
    if shape is None or len(shape) == 0 or shape == (1,):
        return names
    rank = node.rank(x)
    axis = node.attributes.get("axis", 1) % rank
    wide = [-1, *[1] * (rank - 1 - axis)]
    return [name and b.reshape(name, *wide) for name in names]


def _of_unsigned(row):
    """The row of an operator that moves or compares values, which takes uint8 as their int8."""

    def moved(b, node):
        twin = b.notes.get(node.input(0))
        if not isinstance(twin, str):
            return row(b, node)
        node.inputs[0] = twin
        return _as_dtype(b, row(b, node), "uint8")

    return moved


for _name in ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Gather"):
    OPERATORS["", _name] = _of_unsigned(OPERATORS["", _name])


# ---- layers of integers, as what they mean -------------------------------------------------------


def _layer(b, node, operator, operands, more, result, **attributes):
    """An operator of floats on what integers stand for, and its result as integers.

    operands : places of (x, scale, zero point); more : names of further inputs of the operator,
    which are floats; result : places of scale and zero point, whose dtype is the result's.
    """
    floats = [_dequantized(b, node, *places) for places in operands]
    places = [*(places[0] for places in operands), *[0] * len(more)]
    row = OPERATORS["", operator]
    y = row(b, node.reading(operator, [*floats, *more], places, **attributes))
    if not node.input(result[0]):
        return y
    dtype = node.dtype(result[1]) if node.input(result[1]) else node.dtype(operands[0][0])
    return _quantized(b, node, y, *result, dtype or "uint8")


def _bias(b, node, place, x_scale, weight_scale):
    """A bias in steps of the scales of x and weight, as floats."""
    if not node.input(place):
        return ""
    steps = b.binary("multiply", node.input(x_scale), node.input(weight_scale))
    return b.binary("multiply", b.add("Cast", node.input(place), dtype="float32"),
                    b.reshape(steps, -1))  # fmt: skip


@imports("QLinearConv")
def q_linear_conv(b, node):
    node.attributes["axis"] = 0
    bias = _bias(b, node, 8, 1, 4)
    return _layer(b, node, "Conv", [(0, 1, 2), (3, 4, 5)], [bias], (6, 7))


@imports("QLinearMatMul")
@imports("QLinearMatMul", domain=_MICROSOFT)
def q_linear_mat_mul(b, node):
    node.attributes["axis"] = -1
    return _layer(b, node, "MatMul", [(0, 1, 2), (3, 4, 5)], [], (6, 7))


@imports("QGemm", domain=_MICROSOFT)
def q_gemm(b, node):
    turned = node.attributes.get("transB", 0)
    node.attributes["axis"] = 0 if turned else 1
    bias = _bias(b, node, 6, 1, 4)
    settings = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": turned}
    return _layer(b, node, "Gemm", [(0, 1, 2), (3, 4, 5)], [bias], (7, 8),
                  **{**settings, **node.attributes})  # fmt: skip


@imports("QLinearAdd", "QLinearMul", domain=_MICROSOFT)
def q_linear_binary(b, node):
    operator = node.operator.removeprefix("QLinear")
    return _layer(b, node, operator, [(0, 1, 2), (3, 4, 5)], [], (6, 7))


_FUNCTIONS = {
    "Sigmoid": {},
    "LeakyRelu": {"alpha": 0.01},
    "Softmax": {"axis": -1},
    "AveragePool": {"auto_pad": "NOTSET", "ceil_mode": 0, "count_include_pad": 0},
    "GlobalAveragePool": {},
}


@imports(*(f"QLinear{name}" for name in _FUNCTIONS), domain=_MICROSOFT)
def q_linear_function(b, node):
    operator = node.operator.removeprefix("QLinear")
    if node.attributes.get("channels_last"):
        raise ValueError("its pictures have their channels last")
    settings = {**_FUNCTIONS[operator], **node.attributes}
    return _layer(b, node, operator, [(0, 1, 2)], [], (3, 4), **settings)


@imports("QLinearConcat", domain=_MICROSOFT)
def q_linear_concat(b, node):
    operands = [(i, i + 1, i + 2) for i in range(2, len(node.inputs), 3)]
    return _layer(b, node, "Concat", operands, [], (0, 1))


# ---- integers whose steps are found as the model runs --------------------------------------------


class _Steps(NamedTuple):
    """Of a value: it is `real` in steps of `scale` around `zero`."""

    real: str
    scale: str
    zero: str


class _Sums(NamedTuple):
    """Of a value: it is what `layer` gives of such a one, in steps of `scale` and of a weight's."""

    scale: str
    layer: Callable


@imports("DynamicQuantizeLinear")
def dynamic_quantize_linear(b, node):
    x, zero = node.input(0), b.constant(np.float32(0))
    least, most = (
        b.binary(f"{name}imum", b.reduce(name, x, keep=False), zero) for name in ("min", "max")
    )
    scale = b.binary("divide", b.binary("subtract", most, least), b.constant(np.float32(255)))
    point = b.unary("round", b.binary("divide", b.binary("subtract", zero, least), scale))
    point = b.unary("clip", point, 0, 255)
    q = b.binary("add", b.unary("round", b.binary("divide", x, scale)), point)
    q = b.add("Cast", b.unary("clip", q, 0, 255), dtype="uint8")
    point = b.add("Cast", point, dtype="uint8")
    b.notes[q] = _Steps(x, scale, point)
    return [q, scale, point]


def _integer_layer(b, node, dynamic, flat, weight_axis):
    """MatMulInteger, ConvInteger: sums as int32.

    dynamic : makes the layer of (floats, weight of int8, scales); flat : the ONNX operator of it.
    """
    x, weight, zeros = node.input(0), node.input(1), node.constant(3, "zero points")
    array, note = b.value(weight), b.notes.get(x)
    if array is None:
        a, w = (_centred(b, node, i) for i in (0, 1))
        sums = OPERATORS["", flat](b, node.reading(flat, [a, w], [0, 1]))
        return b.add("Cast", sums, dtype="int32")
    ones = np.ones((), np.float32)
    zeros = np.zeros((), array.dtype) if zeros is None else zeros
    if zeros.size > 1:
        zeros = _spread(zeros, array.shape, weight_axis % array.ndim, 0)
    zeros = zeros if zeros.size > 1 else zeros.reshape(())

    def real(scales):
        return b.evenly_spaced(_less_128(array), scales, _less_128(zeros), weight)

    def layer(scales):
        if _less_128(zeros).any() or array.ndim < 2 or (flat == "MatMul" and array.ndim > 2):
            wide = _spread(scales, array.shape, weight_axis % array.ndim, 0)
            wide = wide if scales.size > 1 else scales.reshape(())
            inputs = [note.real, real(wide)]
            return OPERATORS["", flat](b, node.reading(flat, inputs, [0, 1]))
        return dynamic(b, node, note.real, _as_int8(b, weight, array.dtype.name),
                       b.constant(scales.reshape(-1)))  # fmt: skip

    inputs = [_centred(b, node, 0), real(ones)]
    sums = OPERATORS["", flat](b, node.reading(flat, inputs, [0, 1]))
    sums = b.add("Cast", sums, dtype="int32")
    if isinstance(note, _Steps) and note.zero == node.input(2):
        b.notes[sums] = _Sums(note.scale, layer)
    return sums


def _centred(b, node, place):
    """An operand less its zero point, as floats."""
    zero = node.input(place + 2)
    x = b.add("Cast", node.input(place), dtype="float32")
    return b.binary("subtract", x, b.add("Cast", zero, dtype="float32")) if zero else x


@imports("MatMulInteger")
def mat_mul_integer(b, node):
    def dynamic(b, node, x, weight, scales):
        return b.add("DynamicDense", x, b.transpose(weight, (1, 0)), scales)

    return _integer_layer(b, node, dynamic, "MatMul", -1)


@imports("ConvInteger")
def conv_integer(b, node):
    def dynamic(b, node, x, weight, scales):
        # The float layer says how the window walks.
        flat = node.reading("Conv", [x, b.add("Cast", weight, dtype="float32")], [0, 1])
        y = OPERATORS["", "Conv"](b, flat)
        made = b.maker(y)
        made = b.maker(made.inputs[0]) if made.operator == "Transpose" else made
        if made.attributes.get("same") or node.rank(1) > 4:
            y_scales = b.reshape(scales, -1, *[1] * (node.rank(1) - 2))
            return b.binary("multiply", y, y_scales)
        rank = node.rank(1)
        y = b.add("DynamicConv", made.inputs[0], b.channels_last(weight, rank), scales,
                  **made.attributes)  # fmt: skip
        return b.channels_first(y, rank)

    return _integer_layer(b, node, dynamic, "Conv", 0)


@imports("Cast")
def cast_sums(b, node):
    """Sums remain what they are as floats."""
    y = cast(b, node)
    if isinstance(b.notes.get(node.input(0)), _Sums):
        b.notes[y] = b.notes[node.input(0)]
    return y


@imports("Mul")
def multiply(b, node):
    """Sums times the scales of what was multiplied are the layer's floats."""
    for i in (0, 1):
        sums, factor = b.notes.get(node.input(i)), node.input(1 - i)
        if isinstance(sums, _Sums) and node.dtype(1 - i) != "int32":
            scales = _scale_beside(b, factor, sums.scale)
            if scales is not None:
                return sums.layer(scales)
    return binary(b, node)


def _scale_beside(b, factor, scale):
    """What is multiplied with the scale, where the factor is such a product of a constant."""
    if factor == scale:
        return np.ones((), np.float32)
    made = b.maker(factor)
    if made is None or made.attributes.get("function") != "multiply" or scale not in made.inputs:
        return None
    other = next((name for name in made.inputs if name != scale), scale)
    return b.value(other)


@imports("Add")
def add(b, node):
    """The bias of a dynamic convolution goes into it."""
    for i in (0, 1):
        moved, bias = b.maker(node.input(i)), b.value(node.input(1 - i))
        made = b.maker(moved.inputs[0]) if moved is not None and moved.inputs else None
        if bias is None or made is None or not node.alone(i) or len(made.inputs) > 3:
            continue
        if (moved.operator, made.operator) != ("Transpose", "DynamicConv"):
            continue
        n_out, *kernel, _ = b.value(made.inputs[1]).shape
        if bias.shape in ((1, n_out, *[1] * len(kernel)), (n_out, *[1] * len(kernel))):
            bias = b.reshape(node.input(1 - i), -1)
            y = b.add("DynamicConv", *made.inputs, bias, **made.attributes)
            return b.channels_first(y, len(kernel) + 2)
    return binary(b, node)


# ---- weights of few bits -------------------------------------------------------------------------


@imports("MatMulNBits", domain=_MICROSOFT)
def mat_mul_n_bits(b, node):
    """x (..., K) times the transpose of (N, K) in blocks of K, each with a scale of its own."""
    K, N, bits, block = (node.attributes[name] for name in ("K", "N", "bits", "block_size"))
    if bits not in (2, 4, 8) or node.input(4):
        raise ValueError("weights of 2, 4 and 8 bits are supported, and no reordered groups")
    n_blocks = -(-K // block)
    packed, scales = node.constant(1, "weights"), node.constant(2, "scales")
    q = _unpacked(packed.reshape(N, n_blocks, -1), bits).reshape(N, n_blocks * block)
    scales, zeros = scales.astype(np.float32).reshape(N, n_blocks), node.constant(3, "zero points")
    middle = 1 << (bits - 1)
    if zeros is None:
        zeros = np.full((N, n_blocks), middle, np.uint8)
    elif zeros.dtype == np.uint8:
        zeros = _unpacked(zeros.reshape(N, -1), bits)[:, :n_blocks]
    spread = np.arange(K) // block
    if zeros.dtype == np.uint8:
        weight = b.evenly_spaced(
            *(
                _spread_columns(a, spread)
                for a in (_shifted(q[:, :K], middle), scales, _shifted(zeros, middle))
            ),
            node.input(1),
        )
    else:  # zero points of any size, between the steps
        zeros = zeros.astype(np.float32).reshape(N, n_blocks)[:, spread]
        weight = b.constant((q[:, :K] - zeros) * scales[:, spread])
    return b.add("Dense", node.input(0), weight, node.input(5))


def _spread_columns(array, spread):
    return array if array.shape[1] == len(spread) else array[:, spread]


def _unpacked(packed, bits):
    """Numbers of `bits` bits of bytes (..., n), the low bits first: (..., n · 8 / bits)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return numbers.reshape(*packed.shape[:-1], -1)


def _shifted(numbers, middle):
    return (numbers.astype(np.int16) - middle).astype(np.int8)
