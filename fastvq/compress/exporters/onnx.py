"""Graphs of fastvq as ONNX models, of standard operators alone.

What the importer ends, begins here: channels go first around convolutions and pooling, weights are
turned into ONNX's order, and what ONNX's operators do not do by themselves becomes several of them.
:data:`EXPORTS` has a function for every operator of :mod:`fastvq.runtime.ops`. Weights are written
decoded, except that those stored as float16 stay so, with a Cast behind them.
"""

from __future__ import annotations

import json
import math

import numpy as np

from fastvq.runtime.graph import DTYPES, Graph, GraphError
from fastvq.runtime.ops import operators
from fastvq.runtime.plan import Plan

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise ImportError("writing ONNX needs the onnx package: pip install fastvq[onnx]") from error

__all__ = ["EXPORTS", "save", "to_onnx"]

OPSET, ML_OPSET, IR = 20, 3, 9
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
            self.domains[domain] = ML_OPSET
        return names[0] if len(names) == 1 else names

    def constant(self, values, dtype=None):
        """An initializer of these values."""
        name = self.new()
        array = np.asarray(values, dtype)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
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
            if encoded.scheme == "float16":
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
        array = self.value(name) if array is None else array
        if array is None:
            return self.add("Transpose", name, perm=order)
        half = self.graph.constants[name].scheme == "float16"
        turned = np.transpose(array, order)
        stored = self.constant(turned, np.float16 if half else None)
        return self.cast(stored, "float32") if half else stored

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


@_exports("Dense")
def _dense(export, node, *, activation, alpha, beta):
    x, weight, bias = [*node.inputs, ""][:3]
    y = export.add("MatMul", x, export.turned(weight, (1, 0)))
    y = export.add("Add", y, bias) if bias else y
    _ending(export, y, activation, alpha, beta, node.outputs[0])


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


# ---- layers with a state -----------------------------------------------------------------------


def _recurrent(export, node, operator, inputs, n_gates, **attributes):
    """X, bias pair, lengths and states in ONNX's order; y and the states back in ours."""
    x, weight, recurrent, bias, recurrent_bias, lengths, *states = inputs
    both = ""
    if bias or recurrent_bias:
        D, rows, _ = export.graph.constants[weight].shape
        zeros = export.constant(np.zeros((D, rows), export.dtype(x)))
        both = export.add("Concat", bias or zeros, recurrent_bias or zeros, axis=1)
    if lengths:
        lengths = export.made("Cast", [export.read(lengths)], to=TensorProto.INT32)
    swapped = [export.add("Transpose", s, perm=[1, 0, 2]) if s else "" for s in states]
    hidden = export.graph.constants[recurrent].shape[-1]
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


@_exports("LSTM")
def _lstm(export, node, *, direction):
    x, weight, recurrent, bias, lengths, h, c = [*node.inputs, *[""] * 4][:7]
    inputs = [x, weight, recurrent, bias, "", lengths, h, c]
    _recurrent(export, node, "LSTM", inputs, 4, direction=direction)


@_exports("GRU")
def _gru(export, node, *, direction, linear_before_reset):
    inputs = [*node.inputs, *[""] * 4][:7]
    attributes = {"direction": direction, "linear_before_reset": int(linear_before_reset)}
    _recurrent(export, node, "GRU", inputs, 3, **attributes)


@_exports("RNN")
def _rnn(export, node, *, direction, activation):
    x, weight, recurrent, bias, lengths, h = [*node.inputs, *[""] * 3][:6]
    count = 2 if direction == "bidirectional" else 1
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
