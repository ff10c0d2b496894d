"""`to_onnx`: what onnxruntime computes of the exported model is what the model computes."""

import re

import numpy as np
import pytest
from golden import make as golden

import fastvq
from fastvq.runtime import Value
from fastvq.runtime.ops import operators

onnx = pytest.importorskip("onnx", reason="needs the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")

RNG = np.random.default_rng(0)


def check(model, *arrays, rtol=1e-4):
    """Ours against theirs, for these inputs and those of another size of the batch."""
    proto = model.to_onnx()
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    feeds = dict(zip(model.input_names, arrays, strict=True))
    for ours, theirs in zip(model.run(feeds), session.run(None, feeds), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        scale = np.abs(ours[np.isfinite(ours)]).max(initial=0) if ours.dtype.kind == "f" else 0
        np.testing.assert_allclose(theirs, ours, rtol=rtol, atol=1e-5 * scale)


def one(operator, *inputs, n_outputs=1, **attributes):
    """A model of one node, and its data: arrays are inputs, lists are constants."""
    m = golden.Model()
    names, values, arrays = [], [], []
    for i, item in enumerate(inputs):
        if item is None:
            names.append("")
        elif isinstance(item, list):
            names.append(m.constant(np.array(item[0])))
        else:
            shape = tuple(f"D{n}" if n == 2 else n for n in item.shape)
            values.append(Value(f"x{i}", item.dtype.name, shape))
            names.append(f"x{i}")
            arrays.append(item)
    outputs = m.node(operator, *names, n_outputs=n_outputs, **attributes)
    outputs = [outputs] if n_outputs == 1 else outputs
    form = operators()[operator]
    found = form.run(
        [None if i is None else np.array(i[0]) if isinstance(i, list) else i for i in inputs],
        attributes,
    )
    results = [
        Value(name, array.dtype.name, tuple(f"O{k}{j}" for j in range(array.ndim)))
        for k, (name, array) in enumerate(zip(outputs, found, strict=False))
    ]
    return m.done(values, results), *arrays


def real(*shape, low=-2.0, high=2.0):
    return RNG.uniform(low, high, shape).astype("f4")


def const(*shape):
    return [real(*shape)]


def words(text):
    return text.split()


WHOLE = RNG.integers(1, 9, (2, 3, 4))
X = real(2, 3, 4)
SEQUENCE = real(2, 5, 3)
PICTURE = real(2, 9, 8, 4)
# Functions of one value, and where they are defined.
UNARY = {
    **dict.fromkeys(
        words(
            "identity relu softplus softsign hard_swish sigmoid silu mish tanh erf gelu "
            "gelu_tanh exp reciprocal abs negative floor ceil round sign sin cos tan atan "
            "sinh cosh asinh isnan isinf"
        ),
        (-2, 2),
    ),
    **dict.fromkeys(["log", "sqrt"], (0.1, 2)),
    **dict.fromkeys(["asin", "acos", "atanh"], (-0.9, 0.9)),
    "acosh": (1.1, 3),
}
PARAMETERS = {
    "clip": (-0.5, 1.0),
    "leaky_relu": (0.1, 0.0),
    "elu": (0.7, 0.0),
    "selu": (1.6, 1.05),
    "celu": (0.8, 0.0),
    "thresholded_relu": (0.5, 0.0),
    "hard_sigmoid": (0.2, 0.5),
}
CASES = {
    **{
        f"unary {f}": ("Unary", real(2, 5, low=a, high=b), dict(function=f))
        for f, (a, b) in UNARY.items()
    },
    **{
        f"unary {f}": ("Unary", real(2, 5), dict(function=f, alpha=a, beta=b))
        for f, (a, b) in PARAMETERS.items()
    },
    "clip of one side": ("Unary", X, dict(function="clip", alpha=0.0, beta=np.inf)),
    "not": ("Unary", X > 0, dict(function="not")),
    "bit_not": ("Unary", WHOLE, dict(function="bit_not")),
    **{
        f"binary {f}": ("Binary", X, real(4), dict(function=f))
        for f in words(
            "add subtract multiply divide minimum maximum modulo remainder prelu equal "
            "less less_equal greater greater_equal"
        )
    },
    "power": ("Binary", abs(X), real(4), dict(function="power")),
    **{
        f"binary {f}": ("Binary", X > 0, real(4) > 0, dict(function=f))
        for f in ("and", "or", "xor")
    },
    **{
        f"whole {f}": ("Binary", WHOLE, WHOLE[:, :, ::-1].copy(), dict(function=f))
        for f in ["add", "divide", "modulo", "remainder", "bit_and", "bit_or", "bit_xor"]
    },
    "shift": (
        "Binary", WHOLE.astype("u1"), WHOLE.astype("u1"), dict(function="shift_left")
    ),
    "where": ("Where", X > 0, X, real(4), {}),
    "cast": ("Cast", X, dict(dtype="int64")),
    "dense": ("Dense", X, const(5, 4), const(5), dict(activation="relu")),
    "dense without bias": ("Dense", X, const(5, 4), {}),
    "dense, weight that is data": ("Dense", X, real(5, 4), {}),
    "matmul": ("MatMul", X, real(2, 4, 3), {}),
    "matmul turned": ("MatMul", X, real(2, 3, 4), dict(transpose_b=True)),
    "matmul turned twice": ("MatMul", X, real(5, 3), dict(transpose_a=True, transpose_b=True)),
    **{
        f"distances {m}": ("Distances", X[0], const(5, 4), const(1, 4), dict(metric=m))
        for m in ("squared", "euclidean", "manhattan", "chebyshev")
    },
    "conv": ("Conv", PICTURE, const(6, 3, 2, 4), const(6), dict(pads=(1, 0, 2, 1), strides=(2, 1))),
    "conv same": (
        "Conv", PICTURE, const(6, 3, 2, 2),
        dict(groups=2, same="lower", activation="clip", beta=6.0),
    ),
    "conv 1d": ("Conv", SEQUENCE, const(4, 3, 3), const(4), dict(dilations=(2,))),
    "conv transpose": (
        "ConvTranspose", PICTURE, const(6, 3, 2, 2), const(6),
        dict(groups=2, strides=(2, 3), pads=(1, 0, 0, 1), output_pads=(1, 1)),
    ),
    "max pool": ("Pool", PICTURE, dict(function="max", kernel=(3, 2), strides=(2, 2), ceil=True)),
    "average pool": (
        "Pool", PICTURE, dict(function="average", kernel=(3, 3), pads=(1, 1, 1, 1))
    ),
    "average pool with padding": (
        "Pool", PICTURE,
        dict(function="average", kernel=(3, 3), pads=(1, 1, 1, 1), count_padding=True),
    ),
    **{
        f"reduce {f}": ("Reduce", abs(X), [[-1, 0]], dict(function=f, keep=f > "m"))
        for f in words(
            "sum mean max min product l1 l2 sum_square log_sum log_sum_exp"
        )
    },
    "reduce all": ("Reduce", X, dict(function="sum")),
    "reduce none": ("Reduce", X, [np.zeros(0, int)], dict(function="sum_square")),
    "argmax": ("ArgMax", X, dict(axis=1, keep=False)),
    "argmin last": ("ArgMax", X.round(), dict(axis=-1, last=True, least=True)),
    "cumsum": ("CumSum", X, [np.array(1)], dict(exclusive=True, reverse=True)),
    "softmax": ("Softmax", X, dict(axis=1)),
    "log softmax": ("Softmax", X, dict(log=True)),
    "layer norm": ("LayerNorm", X, const(4), const(4), {}),
    "layer norm plain": ("LayerNorm", X, dict(axis=1, epsilon=1e-3)),
    "interpolate": (
        "Interpolate", real(9, 3), [np.array([0, 3, 4, 9])],
        [np.array([-1, 0, 1.5, 0, -1.5, -1, 0, 0.25, 2], "f4")], const(9), {},
    ),
    "shape": ("Shape", X, dict(start=1)),
    "size": ("Size", X, {}),
    "reshape": ("Reshape", X, [[-1, 6]], {}),
    "flatten": ("Flatten", X, dict(axis=2)),
    "squeeze": ("Squeeze", X[:, :1], dict(axes=(1,))),
    "unsqueeze": ("Unsqueeze", X, dict(axes=(0, -1))),
    "transpose": ("Transpose", X, dict(order=(1, 2, 0))),
    "transpose all": ("Transpose", X, {}),
    "concat": ("Concat", X, X, const(2, 3, 4), dict(axis=1)),
    "slice": ("Slice", X, [[3, 1]], [[0, 2]], [[2, 1]], [[-1, 1]], {}),
    "expand": ("Expand", X[:, :1], [[3, 1]], {}),
    "tile": ("Tile", X, [[1, 2, 3]], {}),
    "gather": ("Gather", const(9, 4), WHOLE, {}),
    "gather elements": ("GatherElements", X, WHOLE[:, :, :2] % 3, dict(axis=1)),
    "gather nd": ("GatherND", X, np.array([[[0, 1], [2, 3]]]).repeat(2, 0), dict(batch_dims=1)),
    "scatter elements": (
        "ScatterElements", X, WHOLE[:, :1, :2] % 3, real(2, 1, 2), dict(axis=1, reduction="add")
    ),
    "scatter nd": ("ScatterND", X, np.array([[1], [0]]), real(2, 3, 4), {}),
    "pad": ("Pad", X, [[0, 1, 1, 0, 2, 0]], [np.float32(3)], {}),
    "pad edge": ("Pad", X, [[0, 1, 1, 0, 2, 0]], dict(mode="edge")),
    "trilu": ("Trilu", X, [np.array(1)], dict(upper=False)),
    "one hot": ("OneHot", WHOLE, [np.array([9])], [np.array([0, 2], "f4")], dict(axis=1)),
    "fill": ("Fill", [np.array([2, 3])], dict(value=2.5)),
    "resize": (
        "Resize", X, None, [[2, 6, 5]], dict(mode="linear", coordinates="half_pixel")
    ),
    "resize nearest": ("Resize", X, [np.array([1, 2, 2], "f4")], dict(coordinates="asymmetric")),
}  # fmt: skip
MORE_OUTPUTS = {
    "split": ("Split", X, 2, dict(axis=2, sizes=(1, 3))),
    "split evenly": ("Split", X, 3, dict(axis=1, parts=3)),
    "top k": ("TopK", X, [np.array([2])], 2, dict(largest=False)),
    "lstm": (
        "LSTM", SEQUENCE, const(2, 8, 3), const(2, 8, 2), const(2, 8), 3,
        dict(direction="bidirectional"),
    ),
    "lstm with lengths and states": (
        "LSTM", SEQUENCE, const(1, 8, 3), const(1, 8, 2), None, [np.array([5, 3])],
        real(2, 1, 2), real(2, 1, 2), 3, {},
    ),
    "gru": (
        "GRU", SEQUENCE, const(1, 6, 3), const(1, 6, 2), const(1, 6), const(1, 6), 2,
        dict(linear_before_reset=True),
    ),
    "gru reverse": ("GRU", SEQUENCE, const(1, 6, 3), const(1, 6, 2), 2, dict(direction="reverse")),
    "rnn": ("RNN", SEQUENCE, const(1, 2, 3), const(1, 2, 2), 2, dict(activation="relu")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operators(case):
    operator, *inputs, attributes = CASES[case]
    check(*one(operator, *inputs, **attributes))


@pytest.mark.parametrize("case", MORE_OUTPUTS)
def test_operators_of_several_outputs(case):
    operator, *inputs, n_outputs, attributes = MORE_OUTPUTS[case]
    check(*one(operator, *inputs, n_outputs=n_outputs, **attributes))


def test_every_operator_is_exported_and_tried():
    from fastvq.compress.exporters.onnx import EXPORTS

    tried = {case[0] for case in (*CASES.values(), *MORE_OUTPUTS.values())}
    assert set(EXPORTS) == set(operators())
    integers = {"Quantize", "Requantize", "Dequantize"}  # test_onnx_integers.py tries these
    integers |= {name for name in operators() if name.startswith(("Q", "Dynamic"))}
    elsewhere = {"Range", "TreeEnsemble", "Couple"} | {
        name for name in operators() if name.startswith("Coded")
    }
    assert tried | integers | elsewhere == set(operators())


def test_range():
    m = golden.Model()
    y = m.node("Range", m.constant(np.int64(1)), m.constant(np.int64(9)), m.constant(np.int64(3)))
    check(m.done([], [Value(y, "int64", (3,))]))


@pytest.mark.parametrize("kind", ["forest", "regressor", "boosting"])
def test_trees(kind):
    from sklearn import ensemble

    rows, labels = RNG.normal(size=(200, 5)).astype("f4"), RNG.integers(0, 3, 200)
    estimator = {
        "forest": ensemble.RandomForestClassifier(10, max_depth=4, random_state=0),
        "regressor": ensemble.ExtraTreesRegressor(10, max_depth=4, random_state=0),
        "boosting": ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
    }[kind].fit(rows, labels)
    model = fastvq.compress(estimator)
    tests = np.concatenate([rows, RNG.normal(size=(50, 5)).astype("f4")])
    value = model.inputs[0]
    check(model, tests.astype(value.dtype))


def test_whole_models(tmp_path):
    model = golden.MODELS["mlp_1"]()
    check(model, real(7, 4))
    proto = model.to_onnx(tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == proto
    kinds = [t.data_type for t in proto.graph.initializer]
    assert kinds.count(onnx.TensorProto.FLOAT16) == 1  # as small as it is stored
    assert {p.key: p.value for p in proto.metadata_props}["fastvq.classes"] == '["a", "b", "c"]'


def test_inputs_and_constants_as_outputs():
    model = golden.Model().done([Value("x", "float32", ("N",))], [Value("x", "float32", ("N",))])
    check(model, real(3))
    check(fastvq.compress({"a": real(3), "b": real(2)}))


def test_what_onnx_has_nothing_for():
    m = golden.Model()
    feature, threshold = m.constant(np.array([0, -1, -1])), m.constant(np.zeros(3, "f4"))
    test, sets = m.constant(np.array([3, 0, 0], "u1")), m.constant(np.ones((1, 32), "u1"))
    inputs = [m.constant(np.array([0])), feature, threshold, m.weight(2, 1), m.weight(1)]
    y = m.node("TreeEnsemble", "x", *inputs, "", test, sets)
    model = m.done([Value("x", "float32", ("N", 1))], [Value(y, "float32", ("N", 1))])
    with pytest.raises(ValueError, match=re.escape("TreeEnsemble 'v0.0': sets of categories")):
        model.to_onnx()
    model, _ = one("Couple", real(2, 3, low=0.1, high=0.9))
    with pytest.raises(ValueError, match="Couple 'v0.0': descent"):
        model.to_onnx()
    model, _ = one("Unary", real(2, 3, low=0.1, high=0.9), function="normal_quantile")
    with pytest.raises(ValueError, match="nothing for 'normal_quantile'"):
        model.to_onnx()


class TestFewBits:
    """MatMulNBits and gathered codewords, beside the decoded layer and the one of whole numbers."""

    @staticmethod
    def model(weight, operator, activation):
        m = golden.Model()
        m.constants["bias"] = golden.Raw(real(weight.shape[0]))
        y = m.node(operator, "x", m.coded(weight), "bias", activation=activation)
        shape = ("N", weight.shape[1])
        return m.done([Value("x", "float32", shape)], [Value(y, "float32", ("N", weight.shape[0]))])

    @pytest.mark.parametrize("operator", ["Dense", "CodedDense"])
    @pytest.mark.parametrize(("width", "group"), [(64, 16), (96, 32), (100, 32), (70, 0), (60, 20)])
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_grouped(self, operator, width, group, symmetric):
        scales = real(24, -(-width // group) if group else 1, low=0.1).astype("f2")
        points = None if symmetric else RNG.integers(0, 16, scales.shape)
        codes = RNG.integers(0, 16, (24, width))
        weight = golden.Grouped.of(codes, scales, points, bits=4, group=group, exponent=-3)
        rtol = 1e-4 if operator == "Dense" else 0.05  # theirs rounds rows in its own way
        model, x = self.model(weight, operator, "relu"), real(5, width)
        ours, proto = model(x), model.to_onnx()
        assert ("MatMulNBits" in str(proto.graph.node)) == (group in (16, 32))
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        (theirs,) = session.run(None, {"x": x})
        np.testing.assert_allclose(theirs, ours, rtol=rtol, atol=rtol * np.abs(ours).max())

    @pytest.mark.parametrize("group", [0, 20, 32])
    def test_codebooks(self, group):
        scales = real(24, -(-60 // group) if group else 1, low=0.1).astype("f2")
        words = RNG.integers(-64, 64, (1, 16)).astype("i1")
        codes = RNG.integers(0, 16, (24, 60))
        weight = golden.Codebook.of(codes, words, scales=scales, group=group, exponent=-6)
        model, x = self.model(weight, "Dense", "identity"), real(4, 60)
        assert ("Gather" in str(model.to_onnx().graph.node)) == (group != 32)
        check(model, x)
