"""ONNX models as graphs: ONNX's own node tests, random graphs against onnxruntime, whole models."""

import re
import warnings
from functools import cache

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install fastvq[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fastvq.compress.importers.onnx import (  # noqa: E402
    OPSETS,
    UnsupportedModel,
    from_onnx,
    missing,
    supported,
)
from fastvq.compress.importers.onnx_operators import OPERATORS  # noqa: E402
from fastvq.runtime import CompressedModel  # noqa: E402

# ---- ONNX's node tests ---------------------------------------------------------------------------

# What an error may say where a case is not claimed. Every other case has to pass.
REFUSALS = (
    "the operator is not supported",
    "control flow is",
    "values of type",  # strings, float8, complex, 4 bits, unsigned numbers beyond uint8
    "is no tensor",  # sequences and optional values
    "the model uses opset",  # below 11
    "the indices of its maxima",
    "peepholes (P) are not supported",
    "as in training",
    "scales of blocks",
    "takes a diagonal",
)
# Cases whose values cannot be had, or stand in a precision that is not ours.
LISTED = {
    r"test_.*(FLOAT16|BFLOAT16|_fp16|_bf16|_bfloat16).*": "16-bit floats are computed as float32",
    r"test_cast(like)?_(FLOAT|DOUBLE)_to_(FLOAT|DOUBLE)(_expanded)?": "the data are objects",
    r"test_training_dropout_.*_mask.*": "as in training",
}


@cache
def node_cases():
    """(name, model, inputs, outputs, case) of ONNX's tests of single operators."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in load_model_tests(kind="node") if case.model is not None]
    return [
        (case.name, _at_least_opset_11(case.model), *data, case)
        for case in cases
        for data in case.data_sets
    ]


def _at_least_opset_11(model):
    """The model in opset 11 where its operators mean there what they meant before."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for opset in copy.opset_import:
        names = {node.op_type for node in model.graph.node}
        if opset.domain == "" and opset.version < OPSETS[0]:
            since = [
                {onnx.defs.get_schema(name, v).since_version for v in (opset.version, OPSETS[0])}
                for name in names
            ]
            if all(len(versions) == 1 for versions in since):
                opset.version = OPSETS[0]
    return copy


def run_case(model, inputs):
    """Outputs of a case; inputs that have to be known before a run become constants."""
    names = [proto.name for proto in model.graph.input]
    given = dict(zip(names, inputs, strict=False))
    try:
        return imported(model).run(given)
    except UnsupportedModel as error:
        if "wanted: constants" not in str(error):
            raise
    except ValueError as error:
        if "has to be known before" not in str(error):
            raise
    known = onnx.ModelProto()
    known.CopyFrom(model)
    whole = [
        name
        for name, array in given.items()
        if array.dtype.kind in "iu" or array.ndim == 0 or (array.size <= 8 and name != names[0])
    ]
    for name in whole:
        known.graph.initializer.append(numpy_helper.from_array(given.pop(name), name))
    return imported(known).run(given)


def imported(model):
    return CompressedModel(from_onnx(model)[0])


def test_node_tests_of_onnx():
    passed, operators, failed = 0, set(), []
    for name, model, inputs, outputs, case in node_cases():
        if any(re.fullmatch(pattern, name) for pattern in LISTED):
            continue
        try:
            found = run_case(model, inputs)
            for array, wanted in zip(found, outputs, strict=True):
                check_output(array, np.asarray(wanted), case)
            passed += 1
            operators |= {("", node.op_type) for node in model.graph.node}
        except Exception as error:
            if not any(words in str(error) for words in REFUSALS):
                failed.append(f"{name}: {type(error).__name__}: {str(error).strip()[:200]}")
    assert not failed, f"{len(failed)} of ONNX's cases:\n" + "\n".join(failed)
    assert passed > 1250
    claimed = {key for key in OPERATORS if key[0] == ""}
    assert claimed - operators <= {("", "GlobalLpPool"), ("", "Scatter")}


def check_output(array, wanted, case):
    assert array.shape == wanted.shape
    if wanted.dtype.name not in ("float16", "bfloat16"):
        assert array.dtype == wanted.dtype
    if wanted.dtype.kind == "b":
        assert (array == wanted).all()
    else:
        np.testing.assert_allclose(
            array.astype(float), wanted.astype(float), rtol=case.rtol, atol=max(case.atol, 1e-7)
        )


# ---- random graphs against onnxruntime -----------------------------------------------------------


class RandomModel:
    """A chain of operators chosen at random, for inputs (N, C, H, W), (N, T, C) or (N, C)."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.opset = int(self.choice([13, 15, 17, 18, 20, 22]))
        self.nodes, self.constants = [], []
        rank = int(self.choice([2, 3, 4]))
        self.shape = (2, *(int(n) for n in self.random.integers(3, 9, rank - 1)))
        self.inner, self.name = self.shape, "x"
        steps = [step for step in STEPS if not self.random.integers(2)] or STEPS
        for _ in range(int(self.random.integers(1, 5))):
            self.try_step(steps[self.random.integers(len(steps))])
        if not self.nodes:
            self.node("Relu", [self.name])

    def choice(self, values):
        return values[self.random.integers(len(values))]

    def try_step(self, step):
        before = self.nodes[:], self.constants[:], self.name, self.inner
        try:
            step(self)
            self.inner = self.known_shape()
        except Inapplicable:
            self.nodes, self.constants, self.name, self.inner = before

    def floats(self, *shape, low=-1.0, high=1.0):
        return self.constant(self.random.uniform(low, high, shape).astype(np.float32))

    def whole(self, *values):
        return self.constant(np.array(values, np.int64))

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator, inputs, n_outputs=1, **attributes):
        outputs = [f"v{len(self.nodes)}_{i}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        self.name = outputs[0]
        return outputs

    def model(self):
        batch = ["N", *self.shape[1:]]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, batch)],
            [helper.make_tensor_value_info(self.name, TensorProto.FLOAT, None)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def known_shape(self):
        """The shape of the last value; Inapplicable where ONNX says that there is none."""
        model = self.model()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = self.shape[0]
        try:
            found = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError:
            raise Inapplicable from None
        dims = found.graph.output[0].type.tensor_type.shape.dim
        shape = tuple(d.dim_value for d in dims)
        if min(shape, default=1) < 1 or np.prod(shape) > 20000 or shape[:1] != self.shape[:1]:
            raise Inapplicable
        return shape


class Inapplicable(Exception):
    """A step that cannot follow here."""


def need(condition):
    if not condition:
        raise Inapplicable


UNARY = """
    Relu LeakyRelu Elu Selu Celu Softplus Softsign HardSigmoid HardSwish Sigmoid Tanh Erf Exp Abs
    Neg Floor Ceil Sign Sin Cos Atan Sinh Asinh ThresholdedRelu Identity Mish Gelu
"""


def unary(g):
    name = g.choice(UNARY.split())
    need(name != "Gelu" or g.opset >= 20)
    need(name != "Mish" or g.opset >= 18)
    given = {"alpha": 0.3} if name in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu") else {}
    given |= {"approximate": g.choice(["none", "tanh"])} if name == "Gelu" else {}
    g.node(name, [g.name], **given)


def binary(g):
    name = g.choice(["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Sum", "Mean"])
    shape = [n if g.random.integers(2) else 1 for n in g.inner[1:]]
    other = g.floats(*shape[int(g.random.integers(len(shape))) if shape else 0 :], low=0.5, high=2)
    flip = g.random.integers(2) and name != "PRelu"
    g.node(name, [other, g.name] if flip else [g.name, other])


def compare(g):
    operator = g.choice(["Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
    x = g.name
    (mask,) = g.node(operator, [x, g.floats()])
    if g.random.integers(2):
        (mask,) = g.node("Not", [mask])
    g.node("Where", [mask, x, g.floats(g.inner[-1])])


def clip(g):
    limits = [g.constant(np.float32(-0.5)), g.constant(np.float32(0.75))]
    g.node("Clip", [g.name, *[limit if g.random.integers(3) else "" for limit in limits]])


def gemm(g):
    need(len(g.inner) == 2)
    n = int(g.random.integers(1, 9))
    turned = int(g.random.integers(2))
    weight = g.floats(*((n, g.inner[1]) if turned else (g.inner[1], n)))
    bias = g.choice([[], [g.floats(n)], [g.floats(1, n)], [g.floats(1)]])
    given = {"alpha": 0.5, "beta": 2.0} if g.random.integers(2) else {}
    g.node("Gemm", [g.name, weight, *bias], transB=turned, **given)


def mat_mul(g):
    weight = g.floats(g.inner[-1], int(g.random.integers(1, 9)))
    g.node("MatMul", [g.name, weight])
    if g.random.integers(2):
        g.node("Add", [g.name, g.floats(g.constants[-1].dims[1])])


def attention(g):
    need(len(g.inner) == 3)
    x = g.name
    (keys,) = g.node("Transpose", [x], perm=[0, 2, 1])
    (scores,) = g.node("MatMul", [x, keys])
    (weights,) = g.node("Softmax", [scores], axis=-1)
    g.node("MatMul", [weights, x])


def window(g, kernel):
    spatial = len(kernel)
    if g.random.integers(3) == 0:
        given = {"auto_pad": g.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])}
    else:
        given = {"pads": [int(g.random.integers(0, k)) for k in (*kernel, *kernel)]}
    given["strides"] = [int(g.random.integers(1, 4)) for _ in range(spatial)]
    return given


def conv(g):
    need(len(g.inner) > 2)
    channels, spatial = g.inner[1], g.inner[2:]
    kernel = [int(g.random.integers(1, min(n, 4) + 1)) for n in spatial]
    groups = g.choice([n for n in (1, 2, 3, channels) if channels % n == 0])
    n_out = groups * int(g.random.integers(1, 4))
    weight = g.floats(n_out, channels // groups, *kernel)
    given = window(g, kernel)
    if "pads" in given:
        given["dilations"] = [int(g.random.integers(1, 3)) for _ in kernel]
    bias = [g.floats(n_out)] if g.random.integers(2) else []
    g.node("Conv", [g.name, weight, *bias], group=groups, kernel_shape=kernel, **given)
    if g.random.integers(2):
        batch_norm(g, n_out)


def conv_transpose(g):
    need(len(g.inner) > 2)
    channels = g.inner[1]
    kernel = [int(g.random.integers(1, 4)) for _ in g.inner[2:]]
    groups = g.choice([n for n in (1, 2, channels) if channels % n == 0])
    weight = g.floats(channels, int(g.random.integers(1, 4)), *kernel)
    strides = [int(g.random.integers(1, 4)) for _ in kernel]
    more = [int(g.random.integers(0, s)) for s in strides]
    pads = [int(g.random.integers(0, (k + 1) // 2)) for k in (*kernel, *kernel)]
    given = {"strides": strides, "output_padding": more, "pads": pads}
    g.node("ConvTranspose", [g.name, weight], group=groups, kernel_shape=kernel, **given)


def batch_norm(g, channels=None):
    channels = channels or g.inner[1]
    vectors = [g.floats(channels) for _ in range(3)] + [g.floats(channels, low=0.5, high=2)]
    g.node("BatchNormalization", [g.name, *vectors], epsilon=1e-3)


def pool(g):
    need(len(g.inner) > 2)
    kernel = [int(g.random.integers(1, min(n, 4) + 1)) for n in g.inner[2:]]
    given = window(g, kernel)
    if "pads" in given:
        given["ceil_mode"] = int(g.random.integers(2))
    if g.random.integers(2):
        given["count_include_pad"] = int(g.random.integers(2))
        # onnxruntime divides by what a window that ceil_mode lets hang over does not cover.
        need(not (given.get("ceil_mode") and given["count_include_pad"]))
        g.node("AveragePool", [g.name], kernel_shape=kernel, **given)
    else:
        # onnxruntime 1.32 takes what "same" leaves between windows for padding below 0: see below.
        apart = any(k < s for k, s in zip(kernel, given.get("strides", kernel), strict=True))
        need(not (apart and "auto_pad" in given))
        g.node("MaxPool", [g.name], kernel_shape=kernel, **given)


def global_pool(g):
    need(len(g.inner) > 2)
    g.node(g.choice(["GlobalAveragePool", "GlobalMaxPool"]), [g.name])


def reduce(g):
    names = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"]
    name = "Reduce" + g.choice(names)
    axis = int(g.random.integers(1, len(g.inner)))
    axis = axis if g.random.integers(2) else axis - len(g.inner)
    keep = int(g.random.integers(2)) if len(g.inner) > 2 else 1
    if g.opset >= 18 or name == "ReduceSum":
        g.node(name, [g.name, g.whole(axis)], keepdims=keep)
    else:
        g.node(name, [g.name], axes=[axis], keepdims=keep)


def softmax(g):
    g.node(g.choice(["Softmax", "LogSoftmax"]), [g.name], axis=int(g.choice([-1, 1])))


def norm(g):
    kind = g.choice(["layer", "instance", "group", "lp", "lrn"])
    rank, channels = len(g.inner), g.inner[1]
    if kind == "layer":
        need(g.opset >= 17)
        shape = g.inner[int(g.random.integers(1, rank)) :]
        given = [g.floats(*shape) for _ in range(int(g.choice([1, 2])))]
        g.node("LayerNormalization", [g.name, *given], axis=-len(shape))
    elif kind == "instance":
        need(rank > 2 and np.prod(g.inner[2:]) > 3)  # of few values that are equal, noise is left
        g.node("InstanceNormalization", [g.name, g.floats(channels), g.floats(channels)])
    elif kind == "group":
        need(rank > 2 and g.opset >= 21 and channels % 2 == 0 and np.prod(g.inner[2:]) > 3)
        given = [g.floats(channels), g.floats(channels)]
        g.node("GroupNormalization", [g.name, *given], num_groups=2)
    elif kind == "lp":
        g.node("LpNormalization", [g.name], axis=1, p=int(g.choice([1, 2])))
    else:
        need(rank == 4)
        g.node("LRN", [g.name], size=int(g.choice([3, 5])), alpha=0.1, beta=0.6, bias=1.5)


def recurrent(g):
    need(len(g.inner) == 3)
    name, hidden = g.choice(["LSTM", "GRU", "RNN"]), int(g.random.integers(1, 6))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[name] * hidden
    direction = g.choice(["forward", "reverse", "bidirectional"])
    d = 2 if direction == "bidirectional" else 1
    g.node("Transpose", [g.name], perm=[1, 0, 2])
    inputs = [g.name, g.floats(d, gates, g.inner[2]), g.floats(d, gates, hidden)]
    inputs += [g.floats(d, 2 * gates)] if g.random.integers(2) else []
    given = {"linear_before_reset": int(g.random.integers(2))} if name == "GRU" else {}
    given |= {"activations": ["Relu"] * d} if name == "RNN" and g.random.integers(2) else {}
    y, _ = g.node(name, inputs, 2, direction=direction, hidden_size=hidden, **given)
    g.node("Transpose", [y], perm=[2, 0, 1, 3])
    g.node("Reshape", [g.name, g.whole(0, 0, -1)])


def shape_steps(g):
    kind, rank = g.choice(["flatten", "turn", "squeeze", "reshape", "computed"]), len(g.inner)
    if kind == "flatten":
        g.node("Flatten", [g.name], axis=1)
    elif kind == "turn":
        g.node("Transpose", [g.name], perm=[0, *(1 + g.random.permutation(rank - 1)).tolist()])
    elif kind == "squeeze":
        g.node("Unsqueeze", [g.name, g.whole(1)])
        g.node("Relu", [g.name])
        g.node("Squeeze", [g.name, g.whole(1)])
    elif kind == "reshape":
        g.node("Reshape", [g.name, g.whole(0, -1, 1)])
    else:  # as torch writes x.view(x.shape[0], -1)
        x = g.name
        (shape,) = g.node("Shape", [x])
        (batch,) = g.node("Gather", [shape, g.whole(0)], axis=0)
        (wanted,) = g.node("Concat", [batch, g.whole(-1)], axis=0)
        g.node("Reshape", [x, wanted])


def movement(g):
    rank = len(g.inner)
    axis = int(g.random.integers(1, rank))
    n = g.inner[axis]
    kind = g.choice(["slice", "concat", "split", "gather", "pad", "expand", "tile", "trilu"])
    x = g.name
    if kind == "slice":
        step = int(g.choice([1, 2, -1]))
        ends = (0, 1 << 60) if step > 0 else (-1, -(1 << 60))
        start, end = (1, n) if step > 0 and n > 1 else ends
        g.node("Slice", [x, *(g.whole(v) for v in (start, end, axis, step))])
    elif kind == "concat":
        (other,) = g.node("Neg", [x])
        g.node("Concat", [x, other, x], axis=axis)
    elif kind == "split":
        need(n > 1)
        parts = g.node("Split", [x, g.whole(1, n - 1)], 2, axis=axis)
        g.node("Concat", parts[::-1], axis=axis)
    elif kind == "gather":
        g.node("Gather", [x, g.whole(*g.random.integers(-n, n, 3).tolist())], axis=axis)
    elif kind == "pad":
        mode = g.choice(["constant", "edge", "reflect"])
        pads = [0, *g.random.integers(0, 3, rank - 1).tolist()] * 2
        need(mode == "constant" or max(pads) < min(g.inner[1:]))
        g.node("Pad", [x, g.whole(*pads)], mode=mode)
    elif kind == "expand":
        g.node("Unsqueeze", [x, g.whole(axis)])
        g.node("Expand", [g.name, g.whole(1, *[1] * (axis - 1), 3, *[1] * (rank - axis))])
        g.node("ReduceMax" if g.opset >= 18 else "ReduceSum", [g.name, g.whole(axis)], keepdims=0)
    elif kind == "tile":
        g.node("Tile", [x, g.whole(1, *g.random.integers(1, 3, rank - 1).tolist())])
    else:
        need(rank > 2)
        g.node("Trilu", [x, g.constant(np.int64(1))], upper=int(g.random.integers(2)))


def resize(g):
    need(len(g.inner) == 4)
    mode = g.choice(["nearest", "linear"])
    coordinates = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    given = {"mode": mode, "coordinate_transformation_mode": g.choice(coordinates)}
    given |= (
        {"nearest_mode": g.choice(["floor", "round_prefer_floor"])} if mode == "nearest" else {}
    )
    # By a part, onnxruntime aligns the corners of the rounded size; ONNX's own data do not round.
    aligned = given["coordinate_transformation_mode"] == "align_corners"
    sizes = [2, 3] if aligned else [0.5, 1.5, 2, 3]
    scales = g.constant(np.array([1, 1, g.choice(sizes), g.choice(sizes)], np.float32))
    g.node("Resize", [g.name, "", scales], **given)


def choose(g):
    axis = int(g.random.integers(1, len(g.inner)))
    if g.random.integers(2):
        k = int(g.random.integers(1, g.inner[axis] + 1))
        g.node("TopK", [g.name, g.whole(k)], 2, axis=axis, largest=int(g.random.integers(2)))
    else:
        g.node(g.choice(["ArgMax", "ArgMin"]), [g.name], axis=axis)
        g.node("Cast", [g.name], to=TensorProto.FLOAT)


def einsum(g):
    equations = {2: ["ab->ba", "ab,cb->ac"], 3: ["abc->cab", "abc,dc->abd", "abc,abd->acd"],
                 4: ["abcd,ed->abce", "abcd,abed->abce"]}[len(g.inner)]  # fmt: skip
    equation = g.choice(equations)
    need(not equation.endswith(("ba", "cab")))
    second = equation.split(",")[1].split("->")[0]
    inputs = [g.name] if second.startswith("ab") else [g.floats(3, g.inner[-1])]
    g.node("Einsum", [g.name, *inputs], equation=equation)


def cumulative(g):
    flags = {"exclusive": int(g.random.integers(2)), "reverse": int(g.random.integers(2))}
    g.node("CumSum", [g.name, g.constant(np.int64(1))], **flags)


STEPS = [unary, binary, compare, clip, gemm, mat_mul, attention, conv, conv_transpose, batch_norm,
         pool, global_pool, reduce, softmax, norm, recurrent, shape_steps, movement, resize, choose,
         einsum, cumulative]  # fmt: skip


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_random_graphs(first):
    for seed in range(first, first + 50):
        made = RandomModel(seed)
        model = made.model()
        ours = imported(model)
        theirs = onnxruntime.InferenceSession(model.SerializeToString(), quiet())
        for n in (made.shape[0], 1):
            x = made.random.normal(size=(n, *made.shape[1:])).astype(np.float32)
            assert_close(ours(x), theirs.run(None, {"x": x})[0], f"seed {seed}: {made.nodes}")


def test_same_windows_that_lie_apart_need_no_padding():
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
    node = helper.make_node(
        "MaxPool", ["x"], ["y"], auto_pad="SAME_LOWER", kernel_shape=[2, 1], strides=[3, 2]
    )
    found = imported(small([node], inputs=[("x", ["N", 3, 6, 6])]))(x)
    windows = x.reshape(2, 3, 2, 3, 3, 2)[:, :, :, :2, :, 0]
    np.testing.assert_array_equal(found, windows.max(axis=3))


def quiet():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


def assert_close(found, wanted, what="", relative=1e-4):
    assert found.shape == wanted.shape, what
    finite = np.isfinite(wanted)
    assert (np.isfinite(found) == finite).all(), what
    most = np.abs(wanted[finite]).max(initial=0)
    assert np.abs(found - wanted)[finite].max(initial=0) <= relative * max(most, 1e-30), what


# ---- whole models, from both of torch's exporters ------------------------------------------------


def torch_models():
    torch = pytest.importorskip("torch", reason="needs torch: pip install fastvq[torch]")
    nn = torch.nn

    class Last(nn.Module):
        """A classifier on the last output of a recurrent layer."""

        def __init__(self, layer, n):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(n, 5)

        def forward(self, x):
            return self.head(self.layer(x)[0][:, -1])

    class Encoder(nn.Module):
        """Words in, classes out."""

        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(50, 16), nn.Parameter(torch.randn(7, 16))
            layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.layers(self.words(x) + self.places).mean(1))

    mlp = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4), nn.Softmax(-1))
    lenet = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(200, 20), nn.SiLU(), nn.Linear(20, 10),
    )  # fmt: skip
    upscale = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.GELU(), nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.Hardswish(), nn.PixelShuffle(2),
    )  # fmt: skip
    lstm = Last(nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True), 12)
    gru = Last(nn.GRU(4, 6, batch_first=True), 6)
    return {
        "mlp": (mlp, torch.randn(3, 9)),
        "lenet": (lenet, torch.randn(3, 1, 28, 28)),
        "upscale": (upscale, torch.randn(2, 3, 6, 5)),
        "lstm": (lstm, torch.randn(3, 7, 4)),
        "gru": (gru, torch.randn(3, 7, 4)),
        "transformer": (Encoder(), torch.randint(0, 50, (3, 7))),
    }


@pytest.mark.parametrize("dynamo", [False, True], ids=["trace", "dynamo"])
@pytest.mark.parametrize("name", ["mlp", "lenet", "upscale", "lstm", "gru", "transformer"])
def test_torch_models(name, dynamo):
    torch = pytest.importorskip("torch", reason="needs torch: pip install fastvq[torch]")
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch's new exporter needs onnxscript")
    from fastvq.compress.importers.torch import export

    torch.manual_seed(0)
    module, example = torch_models()[name]
    module.eval()
    ours = imported(export(module, example, dynamo))
    for rows in (1, len(example), 5):
        x = example[torch.arange(rows) % len(example)]
        with torch.no_grad():
            wanted = module(x).numpy()
        assert_close(ours(x.numpy()), wanted)


def test_from_torch_leaves_the_module_as_it_was():
    torch = pytest.importorskip("torch", reason="needs torch: pip install fastvq[torch]")
    from fastvq.compress.importers.torch import from_torch

    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)).train()
    x = np.ones((1, 4), np.float32)
    graph, metadata = from_torch(module, x)
    assert module.training
    assert [v.shape for v in graph.inputs] == [("N", 4)]
    assert "pytorch" in metadata["producer"]
    y = CompressedModel(graph)(x)
    assert_close(y, module.eval()(torch.from_numpy(x)).detach().numpy())


# ---- what a model may hold, and what is refused --------------------------------------------------


def small(nodes, inputs=(("x", ["N", 4]),), outputs=("y",), constants=(), opset=18, domain=None):
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(constants).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="hand")


def test_the_table_is_the_documentation():
    table = supported()
    assert {"Conv", "Gemm", "LSTM", "Softmax", "Gather"} <= set(table["ai.onnx"])
    assert {"LinearClassifier", "TreeEnsembleRegressor"} <= set(table["ai.onnx.ml"])
    assert {"MatMulNBits", "QLinearAdd"} <= set(table.pop("com.microsoft"))
    for domain, names in table.items():
        for name in names:
            assert onnx.defs.has(name, domain="" if domain == "ai.onnx" else domain), name


def test_what_is_missing_is_named_node_by_node():
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="after"),
        helper.make_node("NonZero", ["b"], ["y"], name="last"),
    ]
    model = small(nodes)
    assert [(m.node, m.operator) for m in missing(model)] == [("first", "Det"), ("last", "NonZero")]
    with pytest.raises(UnsupportedModel, match=r"2 of the model's nodes.*\n.*Det 'first'"):
        from_onnx(model)
    assert missing(small([helper.make_node("Relu", ["x"], ["y"])])) == []


def test_control_flow_is_refused_but_for_a_constant_condition():
    branch = [
        helper.make_graph(
            [helper.make_node(name, ["x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("Neg", "Abs")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1])
    x = np.array([[1, -2, 3, -4]], np.float32)
    for condition, wanted in ((True, -x), (False, np.abs(x))):
        model = small([node], constants={"c": np.array(condition)})
        np.testing.assert_array_equal(imported(model)(x), wanted)
    given = small([node], inputs=(("x", ["N", 4]), ("z", [1])))
    given.graph.node.insert(0, helper.make_node("Cast", ["z"], ["c"], to=TensorProto.BOOL))
    assert "constant condition" in str(missing(given)[0])


@pytest.mark.parametrize("opset", [10, 29])
def test_opsets_beyond_those_known_are_refused(opset):
    with pytest.raises(ValueError, match=f"opset {opset} .* 11 to 28"):
        from_onnx(small([helper.make_node("Relu", ["x"], ["y"])], opset=opset))


def test_names_dimensions_and_metadata_are_kept(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="dense"),
        helper.make_node("Add", ["h", "b"], ["y"], name="bias"),
    ]
    constants = {"w": np.ones((4, 3), np.float32), "b": np.arange(3, dtype=np.float32)}
    model = small(nodes, constants=constants)
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [3]))
    path = tmp_path / "model.onnx"
    copy = onnx.load_model_from_string(model.SerializeToString())  # `save` changes what it saves
    onnx.save(copy, path, save_as_external_data=True, location="weights", size_threshold=0)
    for source in (path, str(path), model.SerializeToString(), model):
        graph, metadata = from_onnx(source)
        assert [(v.name, v.shape) for v in graph.inputs] == [("x", ("N", 4))]
        assert [v.name for v in graph.outputs] == ["y"]
        assert [(n.operator, n.name) for n in graph.nodes] == [("Dense", "bias")]
        assert sorted(graph.constants) == ["b", "w"]
        assert metadata == {"producer": "hand", "name": "small", "opset": 18}
    with pytest.raises(ValueError, match="files of their own"):
        from_onnx(onnx.load(path, load_external_data=False))


def test_float16_constants_stay_so_in_files():
    weight = np.linspace(0, 1, 12).reshape(4, 3).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    graph, _ = from_onnx(small(nodes, constants={"w": weight}))
    (tensor,) = graph.constants.values()
    assert tensor.values.dtype == np.float16
    np.testing.assert_array_equal(tensor.decode(), weight.T.astype(np.float32))


def test_batch_norm_goes_into_the_convolution():
    rng = np.random.default_rng(0)
    vectors = {name: rng.uniform(0.5, 1.5, 6).astype(np.float32) for name in "sbmv"}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *"sbmv"], ["y"]),
    ]
    weight = rng.normal(size=(6, 3, 3, 3)).astype(np.float32)
    graph, _ = from_onnx(small(nodes, [("x", ["N", 3, 8, 8])], constants={"w": weight, **vectors}))
    assert [n.operator for n in graph.nodes] == ["Transpose", "Conv", "Transpose"]


def test_the_same_value_may_be_several_outputs():
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["y"], ["z"])]
    nodes += [helper.make_node("Identity", ["x"], ["same"])]
    model = small(nodes, outputs=("y", "z", "same"), constants={})
    x = np.array([[1, -2, 3, -4]], np.float32)
    y, z, same = imported(model)(x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(z, y)
    np.testing.assert_array_equal(same, x)


def sklearn_estimators():
    from sklearn import ensemble, linear_model, neural_network, preprocessing, tree
    from sklearn.pipeline import make_pipeline

    scaled = make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    return {
        "logistic": linear_model.LogisticRegression(),
        "scaled": scaled,
        "ridge": linear_model.RidgeClassifier(),
        "mlp": neural_network.MLPClassifier((8,), max_iter=20),
        "tree": tree.DecisionTreeClassifier(random_state=0),
        "forest": ensemble.RandomForestClassifier(7, random_state=0),
        "boosted": ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
    }


@pytest.mark.parametrize("classes", [2, 3, "words"])
@pytest.mark.parametrize(
    "name", ["logistic", "scaled", "ridge", "mlp", "tree", "forest", "boosted"]
)
@pytest.mark.filterwarnings("ignore")
def test_models_of_skl2onnx(name, classes):
    skl2onnx = pytest.importorskip("skl2onnx", reason="needs skl2onnx")
    random = np.random.default_rng(0)
    X = random.normal(size=(90, 5)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int) + (0 if classes == 2 else X[:, 1] > 0)
    y = np.array(["no", "maybe", "yes"])[y] if classes == "words" else y
    model = skl2onnx.to_onnx(sklearn_estimators()[name].fit(X, y), X[:1], target_opset=18)
    session = onnxruntime.InferenceSession(model.SerializeToString(), quiet())
    labels, scores = session.run(None, {"X": X})
    graph, metadata = from_onnx(model)
    ours = CompressedModel(graph).run({"X": X})
    label_name = session.get_outputs()[0].name
    if classes == "words":
        ours[0] = np.array(metadata["labels"][label_name])[ours[0]]
    assert (ours[0] == labels).all()
    if isinstance(scores, list):
        scores = np.array([list(row.values()) for row in scores])
    assert_close(ours[1], scores, relative=1e-5)


def tree_attributes(rng, mode):
    """Three trees of 7 inner nodes each, whose nodes have numbers of no order and come in none."""
    nodes = {name: [] for name in ("treeids", "nodeids", "modes", "featureids", "values")}
    nodes |= {name: [] for name in ("truenodeids", "falsenodeids", "missing_value_tracks_true")}
    target = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    for tree in (4, 0, 2):
        ids = rng.permutation(40)[:15].tolist()
        for i in [0, *(1 + rng.permutation(14))]:
            leaf = i > 6
            nodes["treeids"].append(tree)
            nodes["nodeids"].append(ids[i])
            nodes["modes"].append("LEAF" if leaf else mode)
            nodes["featureids"].append(int(rng.integers(3)))
            nodes["values"].append(float(rng.integers(-2, 3)))
            nodes["truenodeids"].append(0 if leaf else ids[2 * i + 1])
            nodes["falsenodeids"].append(0 if leaf else ids[2 * i + 2])
            nodes["missing_value_tracks_true"].append(int(rng.integers(2)) * (mode != "BRANCH_EQ"))
            if leaf:
                leaf_of = (tree, ids[i], int(rng.integers(2)), float(rng.normal()))
                for values, value in zip(target.values(), leaf_of, strict=True):
                    values.append(value)
    attributes = {f"nodes_{name}": values for name, values in nodes.items()}
    return attributes | {f"target_{name}": values for name, values in target.items()}


def model_of_trees(attributes):
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=2, **attributes
    )
    ends = [helper.make_tensor_value_info(name, 1, ["N", n]) for name, n in (("x", 3), ("y", 2))]
    graph = helper.make_graph([node], "trees", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", ["LEQ", "LT", "GTE", "GT", "EQ", "NEQ"])
def test_trees_in_any_order(mode, seed):
    rng = np.random.default_rng(seed)
    model = model_of_trees(tree_attributes(rng, f"BRANCH_{mode}"))
    X = rng.integers(-3, 4, (60, 3)).astype(np.float32)
    X[::5, 1] = np.nan
    session = onnxruntime.InferenceSession(model.SerializeToString(), quiet())
    np.testing.assert_allclose(imported(model)(X), session.run(None, {"x": X})[0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["nodes_truenodeids"].__setitem__(0, 99), "does not have"),
        (lambda a: a["target_nodeids"].__setitem__(0, 99), "does not have"),
        (lambda a: a["nodes_nodeids"].__setitem__(1, a["nodes_nodeids"][0]), "comes twice"),
        (lambda a: a["nodes_truenodeids"].__setitem__(0, a["nodes_nodeids"][0]), "one parent"),
        (lambda a: a["nodes_modes"].__setitem__(0, "BRANCH_MEMBER"), "BRANCH_MEMBER"),
    ],
)
def test_trees_that_are_none(change, message):
    attributes = tree_attributes(np.random.default_rng(0), "BRANCH_LEQ")
    change(attributes)
    with pytest.raises(UnsupportedModel, match=message):
        from_onnx(model_of_trees(attributes))
