"""Graphs of fastvq as ONNX models, of standard operators alone.

What the importer ends, begins here: channels go first around convolutions and pooling, weights are
turned into ONNX's order, and what ONNX's operators do not do by themselves becomes several of them.
:data:`EXPORTS` has a function for every operator of :mod:`fastvq.runtime.ops`. Weights are written
decoded, except that those stored as float16 stay so, with a Cast behind them, and those of 8 bits,
with a DequantizeLinear. Layers of integers are float layers between DequantizeLinear and
QuantizeLinear, which onnxruntime makes integer layers of. Their scales are not in our graph, only
what is made of them: inputs and outputs are written in units of their steps.

Weights of few bits are written decoded too, but for two kinds: a codebook of a whole tensor is its
codes and codewords, with a Gather behind them; and a dense layer of 4 bits in groups of 16 to 256
is onnxruntime's MatMulNBits, the one operator here that is no standard one.
"""

from __future__ import annotations

import json
import math

import numpy as np

from fastvq.runtime.affine import Affine
from fastvq.runtime.codebook import Codebook
from fastvq.runtime.graph import DTYPES, Graph, GraphError
from fastvq.runtime.grouped import Grouped
from fastvq.runtime.ops import Form, operators
from fastvq.runtime.plan import Plan

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise ImportError("writing ONNX needs the onnx package: pip install fastvq[onnx]") from error

__all__ = ["EXPORTS", "save", "to_onnx"]

OPSET, ML_OPSET, IR = 20, 3, 9
_MICROSOFT = "com.microsoft"
EXPORTS = {}


def to_onnx(graph: Graph, metadata=None) -> onnx.ModelProto:
    """The graph as an ONNX model with the same names of inputs and outputs.

    Parameters
    ----------
    graph : Graph
    metadata : mapping, optional
        What JSON can hold of it becomes metadata of the model.

    Raises
    ------
    ValueError
        For a node that standard ONNX cannot express; the error names it.
    """
    export = _Export(graph)
    for node in graph.nodes:
        if node.operator not in EXPORTS:
            raise ValueError(f"{node}: ONNX has nothing for this operator")
        attributes = operators()[node.operator].complete(node.attributes)
        try:
            EXPORTS[node.operator](export, node, **attributes)
        except KeyError as error:
            raise ValueError(f"{node}: ONNX has nothing for {error}") from None
        except ValueError as error:
            raise ValueError(f"{node}: {error}") from None
    model = export.model()
    for key, value in (metadata or {}).items():
        value = value.tolist() if isinstance(value, np.ndarray) else value
        try:
            text = json.dumps(value)
        except TypeError:
            continue
        model.metadata_props.append(onnx.StringStringEntryProto(key=f"fastvq.{key}", value=text))
    return model


def save(model, path):
    """Write the model to a file."""
    onnx.save(model, path)


class _Export:
    """An ONNX graph in the making."""

    def __init__(self, graph):
        self.graph = graph
        self.nodes, self.initializers = [], []
        self.domains = {"": OPSET}
        self._names = {value.name for value in graph.inputs} | set(graph.constants)
        self._names |= {name for node in graph.nodes for name in node.outputs}
        self._known = set()
        self._forms = _forms(graph)

    def add(self, operator, *inputs, to=None, n_outputs=1, domain="", **attributes):
        """A node; its output, or a list of them; `to` gives them their names."""
        names = [to] if isinstance(to, str) else to or [self.new() for _ in range(n_outputs)]
        inputs = [self.read(name) for name in inputs]
        while inputs and not inputs[-1]:
            inputs.pop()
        attributes = {key: value for key, value in attributes.items() if value is not None}
        node = helper.make_node(operator, inputs, names, domain=domain, **attributes)
        self.nodes.append(node)
        if domain:
            self.domains[domain] = 1 if domain == _MICROSOFT else ML_OPSET
        return names[0] if len(names) == 1 else names

    def constant(self, values, dtype=None):
        """An initializer of these values."""
        name = self.new()
        array = np.asarray(values, dtype)
        self.initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        self._known.add(name)
        return name

    def whole(self, *numbers):
        """An int64 vector."""
        return self.constant(numbers, np.int64)

    def value(self, name):
        """The array of a constant of the graph, or None."""
        encoded = self.graph.constants.get(name)
        return None if encoded is None else encoded.decode()

    def dtype(self, name):
        """The dtype of a value; float32 where it cannot be told."""
        return self._forms[name].dtype if name in self._forms else np.dtype(np.float32)

    def rank(self, name):
        if name not in self._forms:
            raise ValueError(f"the number of dimensions of {name!r} cannot be told")
        return len(self._forms[name].shape)

    def read(self, name):
        """A name of ONNX for a value of the graph; its constants are written when first read."""
        if name in self.graph.constants and name not in self._known:
            self._known.add(name)
            encoded = self.graph.constants[name]
            if isinstance(encoded, Affine):
                self.steps(encoded, range(len(encoded.shape)), to=name)
            elif _is_looked_up(encoded):
                self.looked_up(encoded, to=name)
            elif encoded.scheme == "float16":
                half = self.constant(encoded.parts()[""])
                self.made("Cast", [half], name, to=TensorProto.FLOAT)
            else:
                array = np.ascontiguousarray(encoded.decode()).reshape(encoded.shape)
                self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def new(self):
        name = f"_{len(self._names)}"
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def turned(self, name, order, array=None):
        """A weight with its axes in another order: in the file, where it is a constant."""
        encoded = self.graph.constants.get(name)
        if array is None and isinstance(encoded, Affine):
            return self.steps(encoded, order)
        if array is None and _is_looked_up(encoded):
            return self.add("Transpose", name, perm=list(order))
        array = self.value(name) if array is None else array
        if array is None:
            return self.add("Transpose", name, perm=order)
        half = self.graph.constants[name].scheme == "float16"
        turned = np.transpose(array, order)
        stored = self.constant(turned, np.float16 if half else None)
        return self.cast(stored, "float32") if half else stored

    def steps(self, encoded, order, to=None):
        """Floats of a constant of evenly spaced steps, with its axes in another order."""
        parts, order = encoded.parts(), list(order)
        single = len(encoded.scales) == 1
        zeros = parts.get("zero_points", np.zeros(encoded.scales.shape, np.int8))
        return self.add(
            "DequantizeLinear",
            self.constant(np.transpose(encoded.values, order)),
            *(self.constant(a[0] if single else a) for a in (encoded.scales, zeros)),
            to=to,
            axis=None if single else order.index(0),
        )

    def looked_up(self, encoded, to):
        """Floats of a constant of codes: its codewords, gathered, times the scales of groups."""
        codes = self.constant(encoded.row_codes(0, encoded.n_rows))
        words = self.constant(encoded.codewords[0].astype(np.float32))
        values = self.add("Gather", words, self.made("Cast", [codes], to=TensorProto.INT32))
        if encoded.scales is not None:
            shape = (-1, encoded.n_groups, encoded.group or encoded.width)
            values = self.add("Reshape", values, self.whole(*shape))
            values = self.add("Mul", values, self.constant(encoded.float_scales()[:, :, None]))
        return self.add("Reshape", values, self.whole(*encoded.shape), to=to)

    def cast(self, name, dtype):
        element = helper.np_dtype_to_tensor_dtype(DTYPES[dtype])
        return self.made("Cast", [name], to=element)

    def made(self, operator, inputs, output=None, **attributes):
        """As `add`, for operators with an attribute `to`."""
        name = output or self.new()
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def model(self):
        outputs = []
        inputs = {value.name for value in self.graph.inputs}
        for value in self.graph.outputs:
            name = value.name
            if name in inputs or name in self.graph.constants:
                name = self.add("Identity", name, to=f"{name}_output")
            outputs.append(_value_info(name, value))
        graph = helper.make_graph(
            self.nodes,
            "fastvq",
            [_value_info(value.name, value) for value in self.graph.inputs],
            outputs,
            self.initializers,
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="fastvq")


def _is_looked_up(encoded):
    """Whether a weight is written as codes: in bytes, of groups that are all of one size."""
    return (
        isinstance(encoded, Codebook)
        and encoded.per == "tensor"
        and encoded.bits <= 8
        and encoded.dtype == np.float32
        and 0 not in encoded.shape
        and not (encoded.group and encoded.width % encoded.group)
    )


def _value_info(name, value):
    element = helper.np_dtype_to_tensor_dtype(DTYPES[value.dtype])
    return helper.make_tensor_value_info(name, element, list(value.shape))


def _forms(graph):
    """Shapes and dtypes of all values, for some sizes of the named dimensions that go together."""
    names = {n for value in graph.inputs for n in value.shape if isinstance(n, str)}
    for size in (2, 1, 8, 32, 224):
        shapes = {
            value.name: tuple(size if n in names else n for n in value.shape)
            for value in graph.inputs
        }
        try:
            return Plan(graph, shapes, {})._tensors
        except GraphError:
            continue
    return {}


def _exports(*names):
    def enter(function):
        EXPORTS.update(dict.fromkeys(names, function))
        return function

    return enter


# ---- element by element ----------------------------------------------------------------------

_UNARY = {
    **dict(relu="Relu", sigmoid="Sigmoid", tanh="Tanh", erf="Erf", exp="Exp", log="Log"),
    **dict(sqrt="Sqrt", reciprocal="Reciprocal", abs="Abs", negative="Neg", floor="Floor"),
    **dict(ceil="Ceil", round="Round", sign="Sign", sin="Sin", cos="Cos", tan="Tan", asin="Asin"),
    **dict(acos="Acos", atan="Atan", sinh="Sinh", cosh="Cosh", asinh="Asinh", acosh="Acosh"),
    **dict(atanh="Atanh", isnan="IsNaN", isinf="IsInf", bit_not="BitwiseNot", mish="Mish"),
    **dict(softplus="Softplus", softsign="Softsign", hard_swish="HardSwish", identity="Identity"),
    **{"not": "Not"},
}
# Those with parameters, and which of them are alpha and beta.
_UNARY_WITH = {
    "leaky_relu": ("LeakyRelu", "alpha"),
    "elu": ("Elu", "alpha"),
    "celu": ("Celu", "alpha"),
    "thresholded_relu": ("ThresholdedRelu", "alpha"),
    "selu": ("Selu", "alpha", "gamma"),
    "hard_sigmoid": ("HardSigmoid", "alpha", "beta"),
}
_BINARY = {
    **dict(add="Add", subtract="Sub", multiply="Mul", divide="Div", power="Pow", minimum="Min"),
    **dict(maximum="Max", prelu="PRelu", equal="Equal", less="Less", less_equal="LessOrEqual"),
    **dict(greater="Greater", greater_equal="GreaterOrEqual", xor="Xor", bit_and="BitwiseAnd"),
    **dict(bit_or="BitwiseOr", bit_xor="BitwiseXor"),
    **{"and": "And", "or": "Or"},
}


@_exports("Unary")
def _unary(export, node, *, function, alpha, beta):
    _function(export, node.inputs[0], function, alpha, beta, node.outputs[0])


def _function(export, x, function, alpha, beta, to=None):
    """A function of one value; the value that comes out."""
    if function in _UNARY:
        return export.add(_UNARY[function], x, to=to)
    if function in _UNARY_WITH:
        operator, *names = _UNARY_WITH[function]
        return export.add(operator, x, to=to, **dict(zip(names, (alpha, beta), strict=False)))
    if function in ("gelu", "gelu_tanh"):
        return export.add("Gelu", x, to=to, approximate="tanh" if "tanh" in function else "none")
    if function == "silu":
        return export.add("Mul", x, export.add("Sigmoid", x), to=to)
    if function != "clip":
        raise KeyError(function)
    dtype = export.dtype(x)
    limits = [
        export.constant(limit, dtype) if math.isfinite(limit) else "" for limit in (alpha, beta)
    ]
    return export.add("Clip", x, *limits, to=to)


@_exports("Binary")
def _binary(export, node, *, function):
    a, b = node.inputs
    (to,) = node.outputs
    if function in _BINARY:
        export.add(_BINARY[function], a, b, to=to)
    elif function in ("shift_left", "shift_right"):
        direction = function.removeprefix("shift_").upper()
        export.add("BitShift", a, b, to=to, direction=direction)
    elif function == "remainder" or (function == "modulo" and export.dtype(a).kind in "iu"):
        export.add("Mod", a, b, to=to, fmod=int(function == "remainder"))
    elif function == "modulo":
        whole = export.add("Floor", export.add("Div", a, b))
        export.add("Sub", a, export.add("Mul", whole, b), to=to)
    else:
        raise KeyError(function)


@_exports("Where")
def _where(export, node):
    export.add("Where", *node.inputs, to=node.outputs[0])


@_exports("Cast")
def _cast(export, node, *, dtype):
    element = helper.np_dtype_to_tensor_dtype(DTYPES[dtype])
    export.made("Cast", [export.read(node.inputs[0])], node.outputs[0], to=element)


# ---- products --------------------------------------------------------------------------------


def _ending(export, y, activation, alpha, beta, to):
    """The activation behind a product, under the name of the node's output."""
    return _function(export, y, activation, alpha, beta, to)


def _real_matrix(export, matrix):
    """A matrix of steps for a product with floats.

    Straight behind its DequantizeLinear, onnxruntime would take such a product for one of few
    bits, and round the floats to 8 bits too.
    """
    deep = export.add("Unsqueeze", matrix, export.whole(0))
    return export.add("Squeeze", deep, export.whole(0))


_BLOCKS = (16, 32, 64, 128, 256)  # that MatMulNBits knows


@_exports("Dense", "CodedDense")
def _dense(export, node, *, activation, alpha, beta):
    x, weight, bias = [*node.inputs, ""][:3]
    encoded = export.graph.constants.get(weight)
    if isinstance(encoded, Grouped) and encoded.bits == 4 and encoded.group in _BLOCKS:
        y = _of_four_bits(export, x, encoded, 4 if node.operator == "CodedDense" else 0)
        y = export.add("Add", y, bias) if bias else y
        _ending(export, y, activation, alpha, beta, node.outputs[0])
        return
    matrix = export.turned(weight, (1, 0))
    if isinstance(export.graph.constants.get(weight), Affine):
        matrix = _real_matrix(export, matrix)
    y = export.add("MatMul", x, matrix)
    y = export.add("Add", y, bias) if bias else y
    _ending(export, y, activation, alpha, beta, node.outputs[0])


def _of_four_bits(export, x, encoded, accuracy):
    """MatMulNBits: two codes to a byte, the first in its lower half; 4 rounds rows to bytes."""
    n, blocks, size = encoded.n_rows, encoded.n_groups, encoded.group
    codes = np.zeros((n, blocks * size), np.uint8)
    codes[:, : encoded.width] = encoded.row_codes(0, n)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(n, blocks, size // 2)
    points = np.zeros((n, blocks + blocks % 2), np.uint8)
    points[:, :blocks] = encoded.points()
    scales = np.broadcast_to(encoded.float_scales(), (n, blocks))
    return export.add(
        "MatMulNBits", x, export.constant(packed), export.constant(scales.ravel()),
        export.constant((points[:, ::2] | points[:, 1::2] << 4).ravel()), domain=_MICROSOFT,
        K=encoded.width, N=n, bits=4, block_size=size, accuracy_level=accuracy,
    )  # fmt: skip


@_exports("MatMul")
def _matmul(export, node, *, transpose_a, transpose_b):
    operands = [
        export.add("Einsum", name, equation="...ij->...ji") if transposed else name
        for name, transposed in zip(node.inputs, (transpose_a, transpose_b), strict=True)
    ]
    export.add("MatMul", *operands, to=node.outputs[0])


def _walking(strides, dilations, pads, same=""):
    """The attributes that convolutions and pooling share."""
    found = {"strides": strides, "dilations": dilations, "pads": pads}
    found = {key: list(value) for key, value in found.items() if value}
    if same:
        found["auto_pad"] = f"SAME_{same.upper()}"
        found.pop("pads", None)
    return found


def _to_first(export, x, rank):
    return export.add("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])


def _to_last(export, x, rank, to=None):
    return export.add("Transpose", x, perm=[0, *range(2, rank), 1], to=to)


@_exports("Conv")
def _conv(
    export, node, *, strides, dilations, pads, groups, same, activation, alpha, beta
):  # fmt: skip
    x, weight, bias = [*node.inputs, ""][:3]
    rank = len(export.graph.constants[weight].shape) if export.value(weight) is not None else None
    rank = rank or export.rank(x)
    kernel = export.turned(weight, (0, rank - 1, *range(1, rank - 1)))
    walking = _walking(strides, dilations, pads, same)
    y = export.add("Conv", _to_first(export, x, rank), kernel, bias, group=groups, **walking)
    y = _to_last(export, y, rank)
    _ending(export, y, activation, alpha, beta, node.outputs[0])


@_exports("ConvTranspose")
def _conv_transpose(
    export, node, *, strides, dilations, pads, output_pads, groups, activation, alpha, beta
):  # fmt: skip
    x, weight, bias = [*node.inputs, ""][:3]
    array = export.value(weight)
    if array is None:
        raise ValueError("its weight is not a constant")
    rank, kernel = array.ndim, array.shape[1:-1]
    split = array.reshape(groups, len(array) // groups, *kernel, array.shape[-1])
    turned = np.moveaxis(split, -1, 1).reshape(-1, len(array) // groups, *kernel)
    walking = _walking(strides, dilations, pads)
    if output_pads:
        walking["output_padding"] = list(output_pads)
    turned = export.turned(weight, range(rank), turned)
    y = export.add(
        "ConvTranspose", _to_first(export, x, rank), turned, bias, group=groups, **walking
    )
    y = _to_last(export, y, rank)
    _ending(export, y, activation, alpha, beta, node.outputs[0])


@_exports("Pool")
def _pool(
    export, node, *, function, kernel, strides, dilations, pads, ceil, count_padding, same
):  # fmt: skip
    rank = len(kernel) + 2
    operator = {"max": "MaxPool", "average": "AveragePool"}[function]
    attributes = {"kernel_shape": list(kernel), "ceil_mode": int(ceil)}
    attributes |= _walking(strides, dilations, pads, same)
    if function == "average":
        attributes["count_include_pad"] = int(count_padding)
    y = export.add(operator, _to_first(export, node.inputs[0], rank), **attributes)
    _to_last(export, y, rank, node.outputs[0])


@_exports("Distances")
def _distances(export, node, *, metric):
    x, points, scale = [*node.inputs, ""][:3]
    (to,) = node.outputs
    difference = export.add("Sub", export.add("Unsqueeze", x, export.whole(1)), points)
    if scale:
        difference = export.add("Mul", difference, scale)
    if metric == "chebyshev":
        largest = export.add("Abs", difference)
        export.add("ReduceMax", largest, export.whole(2), to=to, keepdims=0)
    else:
        operator = {"squared": "SumSquare", "euclidean": "L2", "manhattan": "L1"}[metric]
        export.add(f"Reduce{operator}", difference, export.whole(2), to=to, keepdims=0)


# ---- integers ------------------------------------------------------------------------------------


def _from_steps(export, x, zero_point=0, scale=1.0):
    """The floats of steps of int8, or wider ones, which DequantizeLinear does not know."""
    if export.dtype(x) == np.int8:
        steps = export.constant(scale, np.float32), export.constant(zero_point, np.int8)
        return export.add("DequantizeLinear", x, *steps)
    y = export.cast(export.read(x), "float32")
    y = export.add("Sub", y, export.constant(zero_point, np.float32)) if zero_point else y
    return y if scale == 1 else export.add("Mul", y, export.constant(scale, np.float32))


def _to_steps(export, y, zero_point, to, dtype="int8", low=-(2**15), high=2**15 - 1):
    """Floats in units of steps as integers; to is the name of the result, None for a new one."""
    limits = np.iinfo(dtype)
    low, high = max(low, limits.min), min(high, limits.max)
    if dtype == "int8":
        if (low, high) != (limits.min, limits.max):
            ends = (export.constant(end - zero_point, np.float32) for end in (low, high))
            y = export.add("Clip", y, *ends)
        steps = export.constant(1, np.float32), export.constant(zero_point, np.int8)
        return export.add("QuantizeLinear", y, *steps, to=to)
    y = export.add("Add", export.add("Round", y), export.constant(zero_point, np.float32))
    y = export.add("Clip", y, *(export.constant(end, np.float32) for end in (low, high)))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return export.made("Cast", [y], to, to=element)


def _finished(export, y, table, node, dtype, y_zero_point, low=-(2**15), high=2**15 - 1):
    """A layer's floats in units of its steps as what it gives."""
    (to,) = node.outputs
    if dtype == "float32":
        export.add("Identity", y, to=to)
    elif table:
        _looked_up(export, _to_steps(export, y, y_zero_point, None, "int8", low, high), table, to)
    else:
        _to_steps(export, y, y_zero_point, to, dtype, low, high)


def _looked_up(export, x, table, to):
    place = export.add("Add", export.cast(x, "int64"), export.constant(128, np.int64))
    export.add("Gather", table, place, to=to)


def _whole_weight(export, weight, multiplier, bias, order):
    """Weight, with its axes in that order, and bias as floats in units of a layer's output."""
    values, scales = export.value(weight), export.value(multiplier)
    if values is None or scales is None or (bias and export.value(bias) is None):
        raise ValueError("its weights are not constants")
    scales = np.ascontiguousarray(np.broadcast_to(scales.ravel(), values.shape[:1]))
    turned = export.steps(Affine(values, scales), order)
    if not bias:
        return turned, ""
    zeros = export.constant(np.zeros(len(scales), np.int32))
    steps = export.constant(export.value(bias)), export.constant(scales), zeros
    return turned, export.add("DequantizeLinear", *steps, axis=0)


@_exports("Quantize")
def _quantize(export, node, *, dtype):
    x, scale, zero = [*node.inputs, ""][:3]
    if dtype == "int8":
        steps = _one_or_many(export, scale, zero)
        export.add("QuantizeLinear", x, *steps, to=node.outputs[0], axis=-1)
        return
    y = export.add("Round", export.add("Div", x, scale))
    y = export.add("Add", y, export.cast(export.read(zero), "float32")) if zero else y
    limits = np.iinfo(dtype)
    y = export.add("Clip", y, *(export.constant(n, np.float32) for n in (limits.min, limits.max)))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    export.made("Cast", [y], node.outputs[0], to=element)


@_exports("Dequantize")
def _dequantize(export, node):
    x, scale, zero = [*node.inputs, ""][:3]
    if export.dtype(x) == np.int8:
        steps = _one_or_many(export, scale, zero)
        export.add("DequantizeLinear", x, *steps, to=node.outputs[0], axis=-1)
        return
    y = export.cast(export.read(x), "float32")
    y = export.add("Sub", y, export.cast(export.read(zero), "float32")) if zero else y
    export.add("Mul", y, scale, to=node.outputs[0])


def _one_or_many(export, scale, zero):
    """Scale and zero point of one shape, () or (C,)."""
    scales, zeros = export.value(scale), export.value(zero)
    if scales is None or (zero and zeros is None):
        raise ValueError("its steps are not constants")
    zeros = np.zeros((), np.int8) if zeros is None else zeros
    if zeros.size and not -128 <= zeros.min() <= zeros.max() <= 127:
        raise ValueError("its zero points are no int8")
    pair = [a.ravel() for a in np.broadcast_arrays(scales, zeros.astype(np.int8))]
    return [export.constant(a.reshape(()) if a.size == 1 else a) for a in pair]


@_exports("Requantize")
def _requantize(export, node, *, x_zero_point):
    x, multiplier, zero = [*node.inputs, ""][:3]
    y = export.add("Mul", _from_steps(export, x, x_zero_point), multiplier)
    factors, zeros = export.value(multiplier), export.value(zero) if zero else np.zeros((), np.int8)
    if factors is None or zeros is None:
        raise ValueError("its steps are not constants")
    one = np.broadcast_to(np.float32(1), np.broadcast_shapes(factors.shape, zeros.shape))
    steps = [export.constant(np.broadcast_to(a, one.shape)) for a in (one, zeros.astype(np.int8))]
    export.add("QuantizeLinear", y, *steps, to=node.outputs[0], axis=-1 if one.ndim else None)


@_exports("QTable")
def _table(export, node):
    x, table = node.inputs
    _looked_up(export, export.read(x), table, node.outputs[0])


@_exports("QDense")
def _q_dense(export, node, *, dtype, x_zero_point, y_zero_point, low, high):
    x, weight, multiplier, bias, table = [*node.inputs, "", ""][:5]
    matrix, bias = _whole_weight(export, weight, multiplier, bias, (1, 0))
    y = export.add("MatMul", _from_steps(export, x, x_zero_point), matrix)
    y = export.add("Add", y, bias) if bias else y
    _finished(export, y, table, node, dtype, y_zero_point, low, high)


@_exports("QConv")
def _q_conv(
    export, node, *, strides, dilations, pads, groups, dtype, x_zero_point, y_zero_point, low, high
):  # fmt: skip
    x, weight, multiplier, bias, table = [*node.inputs, "", ""][:5]
    rank = len(export.graph.constants[weight].shape)
    order = (0, rank - 1, *range(1, rank - 1))
    kernel, bias = _whole_weight(export, weight, multiplier, bias, order)
    # Transposed as integers: so that the float layer stands between its integers alone.
    first = _from_steps(export, _typed(export, _to_first(export, x, rank), "int8"), x_zero_point)
    y = export.add("Conv", first, kernel, bias, group=groups, **_walking(strides, dilations, pads))
    if dtype == "float32":
        _to_last(export, y, rank, node.outputs[0])
        return
    y = _to_steps(export, y, y_zero_point, None, dtype, low, high)
    y = _to_last(export, y, rank, None if table else node.outputs[0])
    if table:
        _looked_up(export, y, table, node.outputs[0])


def _typed(export, name, dtype):
    """A new value whose dtype is known."""
    export._forms[name] = Form((), np.dtype(dtype))
    return name


@_exports("QMatMul")
def _q_matmul(
    export, node, *, multiplier, transpose_b, dtype, a_zero_point, b_zero_point, y_zero_point
):  # fmt: skip
    a, b = node.inputs
    if transpose_b:
        b = export.add("Transpose", b, perm=_last_two(export.rank(b)))
    b = _typed(export, b, "int8")
    y = export.add(
        "MatMul", _from_steps(export, a, a_zero_point, multiplier),
        _from_steps(export, b, b_zero_point),
    )  # fmt: skip
    _finished(export, y, "", node, dtype, y_zero_point)


def _last_two(rank):
    return [*range(rank - 2), rank - 1, rank - 2]


@_exports("QPool")
def _q_pool(
    export, node, *, function, kernel, strides, dilations, pads, count_padding, multiplier,
    x_zero_point, y_zero_point,
):  # fmt: skip
    (x,), (to,) = node.inputs, node.outputs
    rank = export.rank(x)
    first = _typed(export, _to_first(export, x, rank), "int8")
    walking = _walking(strides, dilations, pads)
    if function == "max":
        if kernel:
            y = export.add("MaxPool", first, kernel_shape=list(kernel), **walking)
        else:
            y = export.add("ReduceMax", first, export.whole(*range(2, rank)))
        _to_last(export, y, rank, to)
        return
    real = _from_steps(export, first, x_zero_point, multiplier)
    if kernel:
        walking["count_include_pad"] = int(count_padding)
        y = export.add("AveragePool", real, kernel_shape=list(kernel), **walking)
    else:
        y = export.add("GlobalAveragePool", real)
    _to_last(export, _to_steps(export, y, y_zero_point, None), rank, to)


@_exports("QAdd")
def _q_add(
    export, node, *, a_multiplier, b_multiplier, shift, a_zero_point, b_zero_point, y_zero_point,
    dtype, low, high,
):  # fmt: skip
    a, b = (
        _signed_steps(export, name, zero_point, multiplier / 2.0**shift)
        for name, zero_point, multiplier in zip(
            node.inputs, (a_zero_point, b_zero_point), (a_multiplier, b_multiplier), strict=True
        )
    )
    y = export.add("Add", a, b)
    _to_steps(export, y, y_zero_point, node.outputs[0], dtype, low, high)


def _signed_steps(export, x, zero_point, scale):
    """As _from_steps, for scales below zero, which DequantizeLinear does not take."""
    y = _from_steps(export, x, zero_point, abs(scale) or 1.0)
    return y if scale > 0 else export.add("Mul", y, export.constant(np.sign(scale), np.float32))


def _found_steps(export, x, axes):
    """Float x as whole numbers around 0 and their scales, found over these axes: as floats."""
    axes, zero = export.whole(*axes), export.constant(0, np.float32)
    low = export.add("Min", export.add("ReduceMin", x, axes), zero)
    high = export.add("Max", export.add("ReduceMax", x, axes), zero)
    shares = (export.add("Div", end, export.constant(255, np.float32)) for end in (high, low))
    scale = export.add("Sub", *shares)
    scale = export.add("Max", scale, export.constant(2.0**-126, np.float32))
    inverse = export.add("Reciprocal", scale)
    point = export.add("Round", export.add("Mul", low, inverse))
    # Less the zero point, -128 - point: from point to point + 255.
    q = export.add("Round", export.add("Mul", x, inverse))
    most = export.add("Add", point, export.constant(255, np.float32))
    q = export.add("Min", export.add("Max", q, point), most)
    return q, scale


@_exports("DynamicDense")
def _dynamic_dense(export, node, *, activation, alpha, beta):
    x, weight, scale, bias = [*node.inputs, ""][:4]
    matrix, _ = _whole_weight(export, weight, scale, "", (1, 0))
    q, row_scale = _found_steps(export, x, [-1])
    y = export.add("Mul", export.add("MatMul", q, _real_matrix(export, matrix)), row_scale)
    y = export.add("Add", y, bias) if bias else y
    _ending(export, y, activation, alpha, beta, node.outputs[0])


@_exports("DynamicConv")
def _dynamic_conv(
    export, node, *, strides, dilations, pads, groups, activation, alpha, beta
):  # fmt: skip
    x, weight, scale, bias = [*node.inputs, ""][:4]
    rank = len(export.graph.constants[weight].shape)
    kernel, _ = _whole_weight(export, weight, scale, "", (0, rank - 1, *range(1, rank - 1)))
    q, picture_scale = _found_steps(export, _to_first(export, x, rank), range(1, rank))
    walking = _walking(strides, dilations, pads)
    y = export.add("Conv", q, kernel, group=groups, **walking)
    y = _to_last(export, export.add("Mul", y, picture_scale), rank)
    y = export.add("Add", y, bias) if bias else y
    _ending(export, y, activation, alpha, beta, node.outputs[0])


# ---- sums, extremes, normalisation -------------------------------------------------------------

_REDUCE = {
    **dict(sum="ReduceSum", mean="ReduceMean", max="ReduceMax", min="ReduceMin", l1="ReduceL1"),
    **dict(product="ReduceProd", l2="ReduceL2", sum_square="ReduceSumSquare"),
    **dict(log_sum="ReduceLogSum", log_sum_exp="ReduceLogSumExp"),
}


@_exports("Reduce")
def _reduce(export, node, *, function, keep):
    x, axes = [*node.inputs, ""][:2]
    none = axes and export.value(axes) is not None and not export.value(axes).size
    attributes = {"keepdims": int(keep), "noop_with_empty_axes": 0}
    if none:  # ONNX takes an empty list for all axes: over one of 1 that is put in, it is none
        x, axes = export.add("Unsqueeze", x, export.whole(0)), export.whole(0)
        attributes["keepdims"] = 0
    export.add(_REDUCE[function], x, axes, to=node.outputs[0], **attributes)


@_exports("ArgMax")
def _arg_max(export, node, *, axis, keep, last, least):
    attributes = {"axis": axis, "keepdims": int(keep), "select_last_index": int(last)}
    export.add("ArgMin" if least else "ArgMax", node.inputs[0], to=node.outputs[0], **attributes)


@_exports("TopK")
def _top_k(export, node, *, axis, largest, sorted):
    x, k = node.inputs
    k = export.add("Reshape", k, export.whole(1))
    k = export.made("Cast", [k], to=TensorProto.INT64)
    names = [name or export.new() for name in (*node.outputs, "")[:2]]
    export.add("TopK", x, k, to=names, axis=axis, largest=int(largest), sorted=1)


@_exports("CumSum")
def _cumulative_sum(export, node, *, exclusive, reverse):
    x, axis = node.inputs
    axis = export.add("Reshape", axis, export.whole())
    attributes = {"exclusive": int(exclusive), "reverse": int(reverse)}
    export.add("CumSum", x, axis, to=node.outputs[0], **attributes)


@_exports("Softmax")
def _softmax(export, node, *, axis, log):
    export.add("LogSoftmax" if log else "Softmax", node.inputs[0], to=node.outputs[0], axis=axis)


@_exports("LayerNorm")
def _layer_norm(export, node, *, axis, epsilon):
    x, scale, bias = [*node.inputs, "", ""][:3]
    if not scale:
        normal = export._forms[x].shape[axis:] if x in export._forms else ()
        scale = export.constant(np.ones(normal, export.dtype(x)))
    inputs = [x, scale, bias]
    export.add("LayerNormalization", *inputs, to=node.outputs[0], axis=axis, epsilon=epsilon)


# ---- what scores become ------------------------------------------------------------------------


@_exports("Interpolate")
def _interpolate(export, node):
    """Tables of one length, whose rows end in repetitions; a count of points tells the place."""
    x, *names = node.inputs
    first, points, values = map(export.value, names)
    sizes = np.diff(first)
    place = np.minimum(np.arange(sizes.max()), sizes[:, None] - 1) + first[:-1, None]
    points, values = points[place].astype(np.float64), values[place].astype(np.float64)
    run, rise = np.diff(points), np.diff(values)
    slope = np.divide(rise, run, out=np.zeros_like(run), where=run > 0)
    slope = np.pad(slope, ((0, 0), (0, 1)))
    kind = export.dtype(x)
    x = export.add("Max", x, export.constant(points[:, 0], kind))
    x = export.add("Min", x, export.constant(points[:, -1], kind))
    wide = export.add("Unsqueeze", x, export.whole(2))
    passed = export.add("GreaterOrEqual", wide, export.constant(points[:, 1:], kind))
    passed = export.made("Cast", [passed], to=TensorProto.INT64)
    count = export.add("ReduceSum", passed, export.whole(2), keepdims=0)
    last = export.constant(np.maximum(sizes - 2, 0), np.int64)
    starts = export.constant(np.arange(len(sizes)) * points.shape[1], np.int64)
    at = export.add("Add", export.add("Min", count, last), starts)
    point, value, slope = (
        export.add("Gather", export.constant(table.ravel(), kind), at)
        for table in (points, values, slope)
    )
    rise = export.add("Mul", export.add("Sub", x, point), slope)
    export.add("Add", value, rise, to=node.outputs[0])


@_exports("Couple")
def _couple(export, node):
    raise ValueError("descent of so many steps as a row needs is none of its operators")


# ---- layers with a state -----------------------------------------------------------------------


def _recurrent(export, node, operator, inputs, n_gates, **attributes):
    """X, bias pair, lengths and states in ONNX's order; y and the states back in ours."""
    x, weight, recurrent, bias, recurrent_bias, lengths, *states = inputs
    both, hidden = "", export.graph.constants[node.inputs[2]].shape[-1]
    if bias or recurrent_bias:
        D = _directions(attributes["direction"])
        zeros = export.constant(np.zeros((D, n_gates * hidden), export.dtype(x)))
        both = export.add("Concat", bias or zeros, recurrent_bias or zeros, axis=1)
    if lengths:
        lengths = export.made("Cast", [export.read(lengths)], to=TensorProto.INT32)
    swapped = [export.add("Transpose", s, perm=[1, 0, 2]) if s else "" for s in states]
    found = export.add(
        operator,
        *[export.add("Transpose", x, perm=[1, 0, 2]), weight, recurrent, both, lengths, *swapped],
        n_outputs=1 + len(states),
        hidden_size=hidden,
        **attributes,
    )
    orders = [[2, 0, 1, 3], *[[1, 0, 2]] * len(states)]
    for y, order, name in zip(found, orders, node.outputs, strict=False):
        if name:
            export.add("Transpose", y, perm=order, to=name)


def _directions(direction):
    return 2 if direction == "bidirectional" else 1


def _of_rows(export, node, direction):
    """The float weights that the rows of a layer of integers stand for. ONNX has no such layer:
    what comes in and the states are not rounded there."""
    D, real = _directions(direction), []
    for rows, scale in zip(node.inputs[1:3], node.inputs[3:5], strict=True):
        y = export.add("DequantizeLinear", rows, scale, axis=0)
        width = export.graph.constants[rows].shape[-1]
        real.append(export.add("Reshape", y, export.whole(D, -1, width)))
    return real


@_exports("DynamicLSTM")
def _dynamic_lstm(export, node, *, direction):
    x, *_, bias, lengths, h, c = [*node.inputs, *[""] * 4][:9]
    inputs = [x, *_of_rows(export, node, direction), bias, "", lengths, h, c]
    _recurrent(export, node, "LSTM", inputs, 4, direction=direction)


@_exports("DynamicGRU")
def _dynamic_gru(export, node, *, direction, linear_before_reset):
    x, *_, bias, recurrent_bias, lengths, h = [*node.inputs, *[""] * 4][:9]
    inputs = [x, *_of_rows(export, node, direction), bias, recurrent_bias, lengths, h]
    attributes = {"direction": direction, "linear_before_reset": int(linear_before_reset)}
    _recurrent(export, node, "GRU", inputs, 3, **attributes)


@_exports("LSTM", "CodedLSTM")
def _lstm(export, node, *, direction):
    x, weight, recurrent, bias, lengths, h, c = [*node.inputs, *[""] * 4][:7]
    inputs = [x, weight, recurrent, bias, "", lengths, h, c]
    _recurrent(export, node, "LSTM", inputs, 4, direction=direction)


@_exports("GRU", "CodedGRU")
def _gru(export, node, *, direction, linear_before_reset):
    inputs = [*node.inputs, *[""] * 4][:7]
    attributes = {"direction": direction, "linear_before_reset": int(linear_before_reset)}
    _recurrent(export, node, "GRU", inputs, 3, **attributes)


@_exports("RNN")
def _rnn(export, node, *, direction, activation):
    x, weight, recurrent, bias, lengths, h = [*node.inputs, *[""] * 3][:6]
    count = _directions(direction)
    attributes = {"direction": direction, "activations": [activation.title()] * count}
    _recurrent(export, node, "RNN", [x, weight, recurrent, bias, "", lengths, h], 1, **attributes)


# ---- values that move ----------------------------------------------------------------------------


@_exports("Shape")
def _shape(export, node, *, start, end):
    export.add("Shape", *node.inputs, to=node.outputs[0], start=start, end=end)


@_exports("Reshape")
def _reshape(export, node, *, zero_copies=False):
    export.add("Reshape", *node.inputs, to=node.outputs[0], allowzero=int(not zero_copies))


@_exports("Flatten")
def _flatten(export, node, *, axis):
    export.add("Flatten", *node.inputs, to=node.outputs[0], axis=axis)


@_exports("Squeeze", "Unsqueeze")
def _squeeze(export, node, *, axes):
    axes = export.whole(*axes) if axes else ""
    export.add(node.operator, node.inputs[0], axes, to=node.outputs[0])


@_exports("Transpose")
def _transpose(export, node, *, order):
    export.add("Transpose", *node.inputs, to=node.outputs[0], perm=list(order) or None)


@_exports("Concat")
def _concat(export, node, *, axis):
    export.add("Concat", *node.inputs, to=node.outputs[0], axis=axis)


@_exports("Split")
def _split(export, node, *, parts=0, axis, sizes):
    names = [name or export.new() for name in node.outputs]
    sizes = export.whole(*sizes) if sizes else ""
    count = None if sizes else parts or len(names)
    export.add("Split", node.inputs[0], sizes, to=names, axis=axis, num_outputs=count)


@_exports("GatherElements", "Gather")
def _gather(export, node, *, axis):
    export.add(node.operator, *node.inputs, to=node.outputs[0], axis=axis)


@_exports("GatherND")
def _gather_nd(export, node, *, batch_dims):
    export.add("GatherND", *node.inputs, to=node.outputs[0], batch_dims=batch_dims)


@_exports("ScatterElements", "ScatterND")
def _scatter(export, node, **attributes):
    export.add(node.operator, *node.inputs, to=node.outputs[0], **attributes)


@_exports("Size", "Expand", "Tile", "Range")
def _same(export, node):
    export.add(node.operator, *node.inputs, to=node.outputs[0])


@_exports("Slice")
def _slice(export, node):
    export.add("Slice", *node.inputs, to=node.outputs[0])


@_exports("Pad")
def _pad(export, node, *, mode):
    export.add("Pad", *node.inputs, to=node.outputs[0], mode=mode)


@_exports("Trilu")
def _trilu(export, node, *, upper):
    export.add("Trilu", *node.inputs, to=node.outputs[0], upper=int(upper))


@_exports("OneHot")
def _one_hot(export, node, *, axis):
    export.add("OneHot", *node.inputs, to=node.outputs[0], axis=axis)


@_exports("Fill")
def _fill(export, node, *, value, dtype):
    tensor = numpy_helper.from_array(np.array([value], DTYPES[dtype]))
    export.add("ConstantOfShape", *node.inputs, to=node.outputs[0], value=tensor)


@_exports("Resize")
def _resize(
    export, node, *, axes, mode, coordinates, rounding, cubic, inside, antialias, outside, policy
):  # fmt: skip
    x, scales, sizes, region = [*node.inputs, "", "", ""][:4]
    inputs = [x, region, "" if sizes else scales, sizes]
    export.add(
        "Resize",
        *inputs,
        to=node.outputs[0],
        axes=list(axes) or None,
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode=rounding if mode == "nearest" else None,
        cubic_coeff_a=cubic,
        exclude_outside=int(inside),
        antialias=int(antialias),
        extrapolation_value=outside,
        keep_aspect_ratio_policy=policy,
    )


# ---- trees -----------------------------------------------------------------------------------

_TESTS = ("BRANCH_LEQ", "BRANCH_GT", "BRANCH_EQ")


@_exports("TreeEnsemble")
def _tree_ensemble(export, node, *, aggregate):
    from fastvq.runtime.definitions.trees import Forest

    x, *names = node.inputs
    arrays = [export.value(name) if name else None for name in names]
    forest = Forest(*arrays)
    if (forest.test >= len(_TESTS)).any():
        raise ValueError("sets of categories have no test in TreeEnsembleRegressor")
    tree = np.repeat(np.arange(len(forest.roots)), forest.sizes)
    number = np.arange(len(tree)) - np.repeat(forest.roots, forest.sizes)
    first = np.where(forest.leaf, 0, forest.first - np.repeat(forest.roots, forest.sizes))
    leaves = np.flatnonzero(forest.leaf)
    width = forest.values.shape[1]
    modes = [
        "LEAF" if leaf else _TESTS[test]
        for leaf, test in zip(forest.leaf, forest.test, strict=True)
    ]
    targets = forest.target[tree[leaves], None] + np.arange(width)
    name = {"sum": "SUM", "mean": "AVERAGE", "minimum": "MIN", "maximum": "MAX"}[aggregate]
    export.add(
        "TreeEnsembleRegressor",
        x,
        to=node.outputs[0],
        domain="ai.onnx.ml",
        aggregate_function=name,
        base_values=[float(b) for b in forest.base],
        n_targets=len(forest.base),
        nodes_falsenodeids=np.where(forest.leaf, 0, first + 1).tolist(),
        nodes_featureids=np.maximum(forest.feature, 0).tolist(),
        nodes_modes=modes,
        nodes_nodeids=number.tolist(),
        nodes_treeids=tree.tolist(),
        nodes_truenodeids=first.tolist(),
        nodes_values=_below(forest.threshold).tolist(),
        target_ids=targets.reshape(-1).tolist(),
        target_nodeids=np.repeat(number[leaves], width).tolist(),
        target_treeids=np.repeat(tree[leaves], width).tolist(),
        target_weights=forest.values.reshape(-1).astype(float).tolist(),
    )


def _below(thresholds):
    """The largest float32 not above each: no float32 lies between, so no test changes."""
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)
