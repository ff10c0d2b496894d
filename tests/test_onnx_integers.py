"""Layers of integers to ONNX and back: what onnxruntime computes is what we compute, to a step.

On CPUs without VNNI onnxruntime's products of u8 and s8 saturate at 16 bits, so weights are kept
within ±64 here (its `reduce_range`): then they cannot.
"""

from collections import Counter

import numpy as np
import pytest
import test_compress_int8 as networks

import fastvq
from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.affine import Affine
from fastvq.runtime.encoding import Raw
from fastvq.runtime.layout import forms
from fastvq.runtime.ops import operators

onnx = pytest.importorskip("onnx", reason="needs the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)


def session(model, plain=False):
    """plain: without onnxruntime's own rewriting, each node computed as ONNX says."""
    options = onnxruntime.SessionOptions()
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    source = str(model) if not isinstance(model, onnx.ModelProto) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def answers(model, plain=False, **inputs):
    return session(model, plain).run(None, inputs)[0]


def assert_near(ours, theirs, step=1.0):
    """At most a step apart, on 99.9 % of the values."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    assert (apart > 1.001 * step).mean() <= 1e-3, apart.max()


# ---- out -----------------------------------------------------------------------------------------


def whole(*shape, low=-128, high=127, dtype=np.int8):
    return RNG.integers(low, high + 1, shape, dtype=dtype)


def real(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def layer(n_out, *rest):
    """Weight, multiplier and bias of a layer whose results fill int8."""
    weight = whole(n_out, *rest, low=-64, high=64)
    width = np.prod(rest)
    multiplier = (RNG.uniform(0.5, 1, n_out) / (40 * np.sqrt(width))).astype(np.float32)
    return [[weight], [multiplier], [whole(n_out, low=-9999, high=9999, dtype=np.int32)]]


X, PICTURE, SEQUENCE = whole(300, 70), whole(2, 11, 9, 12), whole(3, 20, 12)
WIDE = whole(3, 20, 12, low=-9999, high=9999, dtype=np.int16)
TABLE = [whole(256)]
WINDOW = {"strides": (2, 1), "pads": (1, 0, 2, 1)}
ONE, MANY = [np.float32(0.03)], [RNG.uniform(0.01, 0.05, 12).astype(np.float32)]
CASES = {
    "quantize": ("Quantize", real(2, 7, 12), ONE, [np.int8(-9)], {}),
    "quantize without zero": ("Quantize", real(2, 7, 12), ONE, {}),
    "quantize channels": ("Quantize", real(2, 7, 12), MANY, [whole(12)], {}),
    "quantize to 16 bits": ("Quantize", real(2, 7, 12), ONE, {"dtype": "int16"}),
    "dequantize": ("Dequantize", SEQUENCE, ONE, [np.int8(-9)], {}),
    "dequantize channels": ("Dequantize", SEQUENCE, MANY, {}),
    "dequantize 16 bits": ("Dequantize", SEQUENCE.astype(np.int16), ONE, [np.int16(300)], {}),
    "16 bits to 8": ("Requantize", WIDE, ONE, [np.int8(5)], {"x_zero_point": 7}),
    "16 bits to 8, channels": ("Requantize", WIDE, MANY, [whole(12)], {}),
    "table": ("QTable", X, TABLE, {}),
    "table of floats": ("QTable", X, [real(256)], {}),
    "dense": ("QDense", X, *layer(50, 70), {"x_zero_point": 3, "y_zero_point": -20}),
    "dense, relu": ("QDense", X, *layer(50, 70), {"y_zero_point": -20, "low": -20, "high": 90}),
    "dense, table": ("QDense", X, *layer(50, 70), TABLE, {"x_zero_point": -128}),
    "dense to floats": ("QDense", X, *layer(50, 70)[:2], {"dtype": "float32"}),
    "dense to 16 bits": ("QDense", X, *layer(50, 70), {"dtype": "int16", "low": 0}),
    "conv to 16 bits": ("QConv", PICTURE, *layer(7, 3, 2, 12), {"dtype": "int16", **WINDOW}),
    "dense of sequences": ("QDense", SEQUENCE, *layer(7, 12), {}),
    "conv": ("QConv", PICTURE, *layer(7, 3, 2, 12), {"x_zero_point": -100, **WINDOW}),
    "conv, groups": ("QConv", PICTURE, *layer(8, 3, 3, 3), {"groups": 4, "dilations": (2, 1)}),
    "depthwise": ("QConv", PICTURE, *layer(12, 3, 3, 1), {"groups": 12, "low": 0}),
    "conv, table": ("QConv", PICTURE, *layer(7, 3, 2, 12), TABLE, {}),
    "conv of sequences": ("QConv", SEQUENCE, *layer(7, 3, 12), {"pads": (1, 1)}),
    "conv to floats": ("QConv", PICTURE, *layer(7, 1, 1, 12), {"dtype": "float32"}),
    "matmul": ("QMatMul", whole(2, 9, 20), whole(2, 20, 8, low=-64, high=64),
               {"multiplier": 1e-3, "a_zero_point": 5, "y_zero_point": 9}),
    "matmul transposed": ("QMatMul", whole(2, 9, 20), whole(2, 8, 20, low=-64, high=64),
                          {"multiplier": 1e-3, "transpose_b": True, "dtype": "float32"}),
    "max pool": ("QPool", PICTURE, {"function": "max", "kernel": (3, 2), **WINDOW}),
    "max of all": ("QPool", PICTURE, {"function": "max"}),
    "mean pool": ("QPool", PICTURE, {"function": "average", "kernel": (3, 2), "x_zero_point": 9,
                                     "y_zero_point": -9, "multiplier": 1.3, **WINDOW}),
    "mean with padding": ("QPool", PICTURE, {"function": "average", "kernel": (3, 2),
                                             "count_padding": True, **WINDOW}),
    "mean of all": ("QPool", PICTURE, {"function": "average", "multiplier": 2.0}),
    "sum": ("QAdd", X, X[::-1], {"a_multiplier": 9000, "b_multiplier": 15000, "shift": 14,
                                 "a_zero_point": 7, "y_zero_point": 4, "low": 4}),
    "difference": ("QAdd", X, X[::-1], {"a_multiplier": 9000, "b_multiplier": -7000, "shift": 13}),
    "wide sum": ("QAdd", X, whole(300, 70, low=-9999, high=9999, dtype=np.int16),
                 {"a_multiplier": 8000, "b_multiplier": 7000, "shift": 13, "dtype": "int16"}),
    "dynamic dense": ("DynamicDense", real(300, 70), *layer(50, 70)[:2], [real(50)],
                      {"activation": "relu"}),
    "dynamic conv": ("DynamicConv", real(2, 11, 9, 12), *layer(7, 3, 2, 12)[:2], [real(7)],
                     {"activation": "clip", "alpha": -0.5, "beta": 0.5, **WINDOW}),
    "dynamic depthwise": ("DynamicConv", real(2, 11, 9, 12), *layer(12, 3, 3, 1)[:2],
                          {"groups": 12}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operators_out(case):
    operator, *inputs, attributes = CASES[case]
    names = [f"x{i}" for i in range(len(inputs))]
    given = {n: np.ascontiguousarray(a) for n, a in zip(names, inputs, strict=True)
             if not isinstance(a, list)}  # fmt: skip
    constants = {n: Raw(a[0]) for n, a in zip(names, inputs, strict=True) if isinstance(a, list)}
    arrays = [a[0] if isinstance(a, list) else a for a in inputs]
    expected = operators()[operator].run(arrays, attributes)[0]
    model = CompressedModel(
        Graph(
            [Node(operator, names, ["y"], attributes)],
            [Value(n, a.dtype.name, ("N", *a.shape[1:])) for n, a in given.items()],
            [Value("y", expected.dtype.name, ("N", *expected.shape[1:]))],
            constants,
        )
    )
    proto = model.to_onnx()
    onnx.checker.check_model(proto, full_check=True)
    theirs, ours = answers(proto, **given), model(**given)
    if expected.dtype == np.float32:
        assert_near(ours, theirs, 1e-5 * np.abs(ours).max())
    elif attributes.get("activation") or "table" in case:
        assert (ours != theirs).mean() < 1e-3  # a step before a table is any number of them behind
    else:
        assert_near(ours, theirs)
        assert len(np.unique(ours)) > 4  # it is no comparison of what saturates


def test_every_integer_operator_is_exported_and_tried():
    prefixes = ("Q", "Dynamic")
    names = {name for name in operators() if name.startswith(prefixes)}
    names |= {"Quantize", "Requantize", "Dequantize"}
    assert {case[0] for case in CASES.values()} | set(RECURRENT) == names


# Gates that the rows of a weight hold, and bias vectors.
RECURRENT = {"DynamicLSTM": (4, 1), "DynamicGRU": (3, 2)}


@pytest.mark.parametrize("operator", RECURRENT)
def test_layers_with_a_state_out(operator):
    """In ONNX their weights are the same, while rows and states are not rounded there."""
    gates, biases = RECURRENT[operator]
    n_rows, n_in, units = 2 * gates * 9, 12, 9
    weights = [whole(n_rows, n_in), whole(n_rows, units)]
    scales = [RNG.uniform(0.5, 1, n_rows).astype(np.float32) / 300 for _ in weights]
    starts = [real(2, gates * units) / 4 for _ in range(biases)]
    arrays = [*weights, *scales, *starts]
    names = [f"c{i}" for i in range(len(arrays))]
    x, attributes = real(30, 6, n_in), {"direction": "bidirectional"}
    model = CompressedModel(
        Graph(
            [Node(operator, ["x", *names], ["y"], attributes)],
            [Value("x", "float32", ("N", 6, n_in))],
            [Value("y", "float32", ("N", 6, 2, units))],
            {name: Raw(a) for name, a in zip(names, arrays, strict=True)},
        )
    )
    ours, theirs = model(x), answers(model.to_onnx(), x=x)
    assert np.square(ours - theirs).mean() < 1e-3 * np.square(theirs).mean()
    assert np.square(theirs).mean() > 0.01


@pytest.mark.parametrize("zeros", [None, whole(6)])
def test_steps_of_weights_stay_in_onnx(zeros):
    dense = Affine(whole(6, 40), real(6) ** 2, zeros)
    conv = Affine(whole(5, 3, 3, 6), np.array([0.01], np.float32))
    model = CompressedModel(
        Graph(
            [Node("Conv", ["x", "conv"], ["h"]), Node("Dense", ["z", "dense"], ["y"])],
            [Value("x", "float32", ("N", 9, 9, 6)), Value("z", "float32", ("N", 40))],
            [Value("h", "float32", ("N", 7, 7, 5)), Value("y", "float32", ("N", 6))],
            {"dense": dense, "conv": conv},
        )
    )
    proto = model.to_onnx()
    stored = [numpy_helper.to_array(t) for t in proto.graph.initializer]
    assert sum(a.nbytes for a in stored) < 700
    inputs = {"x": real(2, 9, 9, 6), "z": real(2, 40)}
    for ours, theirs in zip(model(**inputs), session(proto).run(None, inputs), strict=True):
        assert_near(ours, theirs, 1e-5 * np.abs(ours).max())
    again = fastvq.compress(proto)
    assert Counter(t.kind for t in again.graph.constants.values())["affine"] == 2
    assert_near(again(**inputs)[1], model(**inputs)[1], 1e-6)


LAYERS = {"Quantize", "Requantize", "Dequantize", "QDense", "QConv", "QPool", "QAdd"}


@pytest.mark.parametrize("made", [networks.mlp, networks.residual_network])
def test_layers_of_whole_models_out(made):
    """Weights fill 8 bits here: onnxruntime computes what is written, node by node, and not with
    its own products, which saturate where a CPU has no VNNI. Each layer reads what ours gave."""
    model, x = made()
    small = fastvq.compress(model, x, scheme="int8", activations="static")
    graph, values = small.graph, {"x": x}
    known, tried = forms(graph, len(x)), Counter()
    for node in graph.nodes:
        arrays = [values[n] if n in values else decoded(graph, n) for n in node.inputs]
        ours = operators()[node.operator].run(arrays, node.attributes)[0]
        values[node.outputs[0]] = ours
        if node.operator not in LAYERS:
            continue
        given = {name: values[name] for name in node.inputs if name in values}
        theirs = answers(alone(graph, node, known).to_onnx(), plain=True, **given)
        if len(node.inputs) > 4:  # a table: a step before it is any number of them behind
            assert (ours != theirs).mean() <= 1e-3
        else:
            assert_near(ours, theirs, 1.0 if ours.dtype.kind == "i" else 1e-5 * ours.max())
        tried[node.operator] += 1
    assert tried["QDense"] + tried["QConv"] >= 3
    wanted = small(x)
    np.testing.assert_array_equal(values[graph.outputs[0].name], wanted)
    theirs = answers(small.to_onnx(), plain=True, x=x)
    assert np.square(theirs - wanted).mean() < 1e-3 * np.square(wanted).mean()


def decoded(graph, name):
    return graph.constants[name].decode() if name else None


def alone(graph, node, known):
    """A model of one node of another."""

    def value(name):
        return Value(name, known[name].dtype.name, ("N", *known[name].shape[1:]))

    data = [name for name in node.inputs if name and name not in graph.constants]
    constants = {name: graph.constants[name] for name in node.inputs if name in graph.constants}
    return CompressedModel(
        Graph([node], [*map(value, data)], [*map(value, node.outputs)], constants)
    )


# ---- in: models quantized by onnxruntime ---------------------------------------------------------


def onnx_model(nodes, constants, x_shape, y_shape):
    graph = helper.make_graph(
        [helper.make_node(op, ins.split(), outs.split(), **more) for op, ins, outs, more in nodes],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *x_shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *y_shape])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def mlp():
    constants = {"w1": real(64, 256) / 8, "b1": real(256), "w2": real(256, 128) / 16,
                 "b2": real(128), "w3": real(10, 128) / 11, "b3": real(10)}  # fmt: skip
    nodes = [
        ("MatMul", "x w1", "a", {}), ("Add", "a b1", "b", {}), ("Relu", "b", "c", {}),
        ("Gemm", "c w2 b2", "d", {}), ("Sigmoid", "d", "s", {}), ("Mul", "d s", "e", {}),
        ("Gemm", "e w3 b3", "y", {"transB": 1}),
    ]  # fmt: skip
    return onnx_model(nodes, constants, (64,), (10,)), (64,)


def cnn():
    constants = {"w1": real(16, 3, 3, 3) / 5, "b1": real(16) / 4, "w2": real(16, 1, 3, 3) / 3,
                 "b2": real(16) / 4, "w3": real(16, 16, 1, 1) / 4, "w4": real(256, 64) / 16,
                 "b4": real(64) / 4, "w5": real(64, 10) / 8, "b5": real(10)}  # fmt: skip
    square = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    half = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        ("Conv", "x w1 b1", "a", square), ("Relu", "a", "b", {}), ("MaxPool", "b", "c", half),
        ("Conv", "c w2 b2", "d", {**square, "group": 16}), ("Relu", "d", "e", {}),
        ("Conv", "e w3", "f", {"kernel_shape": [1, 1]}), ("Add", "f c", "g", {}),
        ("AveragePool", "g", "h", half), ("Flatten", "h", "i", {}), ("Gemm", "i w4 b4", "j", {}),
        ("Relu", "j", "k", {}), ("Gemm", "k w5 b5", "y", {}),
    ]  # fmt: skip
    return onnx_model(nodes, constants, (3, 16, 16), (10,)), (3, 16, 16)


MODELS = {"mlp": mlp, "cnn": cnn}
FORMATS = {
    "QDQ s8": dict(quant_format="QDQ", activation_type="QInt8"),
    "QDQ u8, channels": dict(quant_format="QDQ", activation_type="QUInt8", per_channel=True),
    "QOperator u8": dict(quant_format="QOperator", activation_type="QUInt8"),
    "QOperator u8 u8": dict(
        quant_format="QOperator", activation_type="QUInt8", weight_type="QUInt8"
    ),
}


def written(name, tmp_path):
    model, shape = MODELS[name]()
    path = tmp_path / "float.onnx"
    onnx.save(model, path)
    return path, tmp_path / "whole.onnx", shape


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_static_models(name, form, tmp_path):
    from onnxruntime import quantization

    path, made, shape = written(name, tmp_path)
    batches = iter([{"x": real(16, *shape)} for _ in range(4)])

    class Batches(quantization.CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    settings = {"weight_type": "QInt8", **FORMATS[form]}
    settings = {k: getattr(getattr(quantization, _OF[k]), v) if k in _OF else v
                for k, v in settings.items()}  # fmt: skip
    quantization.quantize_static(path, made, Batches(), reduce_range=True, **settings)
    check_model(path, made, shape)
    counts = Counter(node.operator for node in fastvq.compress(made).graph.nodes)
    if form == "QOperator u8 u8":  # weights that lie unevenly around 0 are multiplied as floats
        assert counts["QDense"] + counts["QConv"] + counts["Dense"] + counts["Conv"] in (3, 5)
        return
    assert not {"Dense", "Conv", "Pool", "Cast"} & set(counts)
    if name == "cnn":
        assert counts == {"Quantize": 1, "Transpose": counts["Transpose"], "QConv": 3, "QPool": 2,
                          "QAdd": 1, "Flatten": 1, "QDense": 2, "Dequantize": 1}  # fmt: skip


_OF = {"quant_format": "QuantFormat", "activation_type": "QuantType", "weight_type": "QuantType"}


def check_model(path, made, shape):
    """As near to the model's meaning as onnxruntime, whose own two readings of it differ."""
    x = real(200, *shape)
    model = fastvq.compress(made)
    ours, floats = model(x), answers(path, x=x)
    plain, rewritten = answers(made, plain=True, x=x), answers(made, x=x)

    def apart(a, b):
        return np.sqrt(np.mean((a - b) ** 2))

    noise = apart(plain, floats)
    assert apart(ours, plain) < max(1.05 * apart(rewritten, plain), 0.5 * noise)
    assert apart(ours, floats) < 1.05 * noise
    assert model.nbytes <= 0.3 * fastvq.compress(path).nbytes
    np.testing.assert_array_equal(model(x[7:8])[0], ours[7])
    loaded = made.with_suffix(".fvq")
    model.save(loaded)
    np.testing.assert_array_equal(fastvq.load(loaded)(x), ours)
    return model


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_dynamic_models(name, per_channel, tmp_path):
    from onnxruntime import quantization

    path, made, shape = written(name, tmp_path)
    quantization.quantize_dynamic(path, made, per_channel=per_channel, reduce_range=True,
                                  weight_type=quantization.QuantType.QInt8)  # fmt: skip
    x, model = real(20, *shape), fastvq.compress(made)
    counts = Counter(node.operator for node in model.graph.nodes)
    assert counts["DynamicDense"] + counts["DynamicConv"] == {"mlp": 3, "cnn": 5}[name]
    assert model.nbytes <= 0.3 * fastvq.compress(path).nbytes
    # onnxruntime's steps are those of a whole batch, ours of each row: they agree on one row.
    run = session(made)
    theirs = np.concatenate([run.run(None, {"x": row[None]})[0] for row in x])
    for other in (theirs, answers(model.to_onnx(), x=x)):  # and back again
        # A sum that is rounded otherwise may be a step further in the layer behind it.
        assert (np.abs(model(x) - other) > 1e-4).mean() <= 0.1
        assert np.abs(model(x) - other).max() < 0.02


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name, tmp_path):
    """What we write of a model of integers runs in onnxruntime and comes in as integers again."""
    from onnxruntime import quantization

    path, made, shape = written(name, tmp_path)
    batches = iter([{"x": real(16, *shape)} for _ in range(2)])
    reader = type("Batches", (quantization.CalibrationDataReader,),
                  {"get_next": lambda self: next(batches, None)})  # fmt: skip
    quantization.quantize_static(path, made, reader(), reduce_range=True)
    model, x = fastvq.compress(made), real(200, *shape)
    proto = model.to_onnx()
    again = fastvq.compress(proto)
    counts, before = (Counter(n.operator for n in m.graph.nodes) for m in (again, model))
    assert counts["QDense"] == before["QDense"] and counts["QConv"] == before["QConv"]
    scale = max(float(np.diff(np.unique(model(x))).min()), 1e-6)
    for theirs in (answers(proto, x=x), again(x)):
        apart = np.abs(theirs - model(x))
        assert apart.mean() < 0.5 * scale and np.quantile(apart, 0.9) < 1.01 * scale


# ---- in: one operator ----------------------------------------------------------------------------


def one(operator, inputs, shape, domain="", opset=21, **attributes):
    """A model of one node, of x and constants."""
    names = [f"c{i}" if a is not None else "" for i, a in enumerate(inputs)]
    names = ["x" if isinstance(a, str) else n for n, a in zip(names, inputs, strict=True)]
    pairs = [(n, np.asarray(a)) for n, a in zip(names, inputs, strict=True) if n[:1] == "c"]
    constants = [numpy_helper.from_array(a, n) for n, a in pairs]
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    kinds = {"f": TensorProto.FLOAT, "u": TensorProto.UINT8, "s": TensorProto.INT8,
             "i": TensorProto.INT32}  # fmt: skip
    x = next(a for a in inputs if isinstance(a, str))
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", kinds[x[0]], ["N", *shape])],
        [helper.make_tensor_value_info("y", kinds[x[1]], None)], constants,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


F = np.float32
WEIGHT = whole(12, 7, low=-64, high=64)
ROWS = {"f": real(30, 12), "u": whole(30, 12, low=0, high=255, dtype=np.uint8), "s": whole(30, 12)}
SINGLE = {
    "quantize to u8": ("QuantizeLinear", ["fu", F(0.02), np.uint8(100)], {}),
    "quantize to s8": ("QuantizeLinear", ["fs", F(0.02), np.int8(-100)], {}),
    "quantize columns": ("QuantizeLinear", ["fu", F(0.02) + real(12) ** 2, whole(12).view("u1")],
                         {"axis": 1}),
    "dequantize u8": ("DequantizeLinear", ["uf", F(0.02), np.uint8(3)], {}),
    "dequantize s8": ("DequantizeLinear", ["sf", F(0.02)], {}),
    "dequantize columns": ("DequantizeLinear", ["sf", real(12) ** 2, whole(12)], {}),
    "matmul of integers": ("MatMulInteger", ["ui", WEIGHT, np.uint8(9), np.int8(0)], {}),
    "matmul, zero points": ("MatMulInteger", ["ui", WEIGHT.view("u1"), np.uint8(9),
                                              whole(7).view("u1")], {}),
    "matmul, linear": ("QLinearMatMul", ["uu", F(0.1), np.uint8(90), WEIGHT, F(0.02), np.int8(0),
                                         F(0.3), np.uint8(130)], {}),
    "matmul, linear, columns": ("QLinearMatMul", ["ss", F(0.1), np.int8(9), WEIGHT,
                                                  F(0.01) + real(7) ** 2 / 99, np.zeros(7, "i1"),
                                                  F(0.3), np.int8(13)], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", SINGLE)
def test_operators_in(case):
    operator, inputs, attributes = SINGLE[case]
    proto, x = one(operator, inputs, (12,), **attributes), ROWS[inputs[0][0]]
    ours, theirs = fastvq.compress(proto)(x), answers(proto, x=x)
    if theirs.dtype in (np.float32, np.int32):
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert_near(ours, theirs)


@pytest.mark.parametrize("types", ["us", "uu", "ss"])
@pytest.mark.parametrize("groups", [1, 3])
def test_convolutions_in(types, groups):
    bytes_of = {"u": np.uint8, "s": np.int8}
    x = whole(2, 6, 9, 8).view(bytes_of[types[0]])
    weight = whole(9, 6 // groups, 3, 2, low=-64, high=64)
    zero = bytes_of[types[1]](0)
    if types[1] == "u":
        weight, zero = (weight + 64).astype(np.uint8), np.uint8(64)
    scales = F(0.01) if types[1] == "u" else F(0.01) + real(9) ** 2 / 50
    zero = zero if types[1] == "u" else np.zeros(9, np.int8)
    point, walk = bytes_of[types[0]](77), {"pads": [1, 0, 1, 1], "strides": [1, 2], "group": groups}
    inputs = [types[0] * 2, F(0.1), point, weight, scales, zero, F(0.2), point,
              whole(9, low=-999, high=999, dtype=np.int32)]  # fmt: skip
    proto = one("QLinearConv", inputs, x.shape[1:], **walk)
    assert_near(fastvq.compress(proto)(x), answers(proto, x=x))
    if types[0] == "u" and types[1] == "u":
        proto = one("ConvInteger", ["ui", weight, point, zero], x.shape[1:], **walk)
        np.testing.assert_array_equal(fastvq.compress(proto)(x), answers(proto, x=x))


def test_dynamic_steps_in():
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    kinds = [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8]
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 50])],
        [helper.make_tensor_value_info(n, k, s)
         for n, k, s in zip("qsz", kinds, [[4, 50], [], []], strict=True)],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for x in (real(4, 50), real(4, 50) ** 2 + 1, -(real(4, 50) ** 2)):
        for ours, theirs in zip(
            fastvq.compress(proto)(x), session(proto).run(None, {"x": x}), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def packed(numbers, bits):
    """Numbers (..., n) in bytes, the first in the low bits."""
    per = 8 // bits
    room = np.zeros((*numbers.shape[:-1], -(-numbers.shape[-1] // per) * per), np.uint8)
    room[..., : numbers.shape[-1]] = numbers
    parts = room.reshape(*room.shape[:-1], -1, per)
    return (parts << (np.arange(per, dtype=np.uint8) * bits)).sum(axis=-1, dtype=np.uint8)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "K", "block"), [(4, 128, 32), (4, 100, 16), (8, 128, 64)])
def test_blocks_of_few_bits(bits, K, block, zeros):
    N, n_blocks = 96, -(-K // block)
    q = whole(N, n_blocks, block, low=0, high=(1 << bits) - 1, dtype=np.uint8)
    inputs = ["ff", packed(q, bits), np.abs(real(N * n_blocks)) / 30]
    if zeros:
        points = whole(N, n_blocks, low=0, high=(1 << bits) - 1, dtype=np.uint8)
        inputs.append(packed(points, bits).ravel())
    settings = {"K": K, "N": N, "bits": bits, "block_size": block}
    proto = one("MatMulNBits", inputs, (K,), domain="com.microsoft", **settings)
    x, model = real(5, K), fastvq.compress(proto)
    theirs = answers(proto, x=x)
    np.testing.assert_allclose(model(x), theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
    if not K % block:
        assert sum(t.nbytes for t in model.graph.constants.values()) <= 0.32 * 4 * N * K


def test_what_is_no_pattern_stays_exact():
    """Steps of channels, results that others read too, steps that are computed."""
    nodes = [
        ("QuantizeLinear", "x s z", "q", {}), ("DequantizeLinear", "q s z", "d", {}),
        ("MatMul", "d w", "h", {}), ("QuantizeLinear", "h s z", "hq", {}),
        ("DequantizeLinear", "hq s z", "hd", {}), ("Softmax", "h", "p", {}),
        ("Add", "hd p", "y", {}),
    ]  # fmt: skip
    constants = {"s": F(0.05), "z": np.uint8(128), "w": real(12, 7)}
    proto = onnx_model(nodes, {k: np.asarray(v) for k, v in constants.items()}, (12,), (7,))
    x = real(50, 12)
    np.testing.assert_allclose(fastvq.compress(proto)(x), answers(proto, x=x), atol=1e-5)


def test_scales_that_are_no_constants():
    nodes = [
        ("ReduceMax", "x", "m", {"keepdims": 0}), ("Div", "m c", "s", {}),
        ("QuantizeLinear", "x s z", "q", {}), ("DequantizeLinear", "q s z", "y", {}),
    ]  # fmt: skip
    constants = {"c": np.array(100, F), "z": np.array(128, np.uint8)}
    proto, x = onnx_model(nodes, constants, (12,), (12,)), real(5, 12)
    np.testing.assert_allclose(fastvq.compress(proto)(x), answers(proto, x=x), atol=1e-5)
