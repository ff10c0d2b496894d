"""Models of 8-bit integers: what they are made of, how near they stay, and what is refused."""

import numpy as np
import pytest

import fastvq
from fastvq import _kernels
from fastvq.cli import main
from fastvq.compress import ModelQuantizer, passes
from fastvq.compress.stats import CALIBRATIONS
from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.encoding import Raw

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def drawn_anew():
    """What a test draws does not depend on those before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def normal(*shape, scale=1.0):
    return RNG.normal(scale=scale, size=shape).astype("f4")


class Drawing:
    """A graph drawn node by node, weights at random."""

    def __init__(self, *shape, dtype="float32"):
        self.nodes, self.constants = [], {}
        self.inputs = [Value("x", dtype, shape)]

    def add(self, operator, *inputs, **attributes):
        inputs = [self.constant(a) if isinstance(a, np.ndarray) else a for a in inputs]
        name = f"v{len(self.nodes)}"
        outputs = (name, f"{name} h", f"{name} c")[: 3 if operator == "LSTM" else 1]
        self.nodes.append(Node(operator, inputs, outputs, attributes, f"layer {len(self.nodes)}"))
        return name

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants[name] = Raw(array)
        return name

    def dense(self, x, n_in, n_out, **attributes):
        weight = normal(n_out, n_in, scale=(2 / n_in) ** 0.5)
        return self.add("Dense", x, weight, normal(n_out, scale=0.1), **attributes)

    def conv(self, x, n_in, n_out, kernel=3, groups=1, **attributes):
        shape = n_out, kernel, kernel, n_in // groups
        weight = normal(*shape, scale=(2 / np.prod(shape[1:])) ** 0.5)
        pads = (kernel // 2,) * 4
        groups = {"groups": groups} if groups > 1 else {}
        return self.add(
            "Conv", x, weight, normal(n_out, scale=0.1), pads=pads, **groups, **attributes
        )

    def model(self, output, rank=2):
        outputs = [Value(output, "float32", ("N", *("D" * i for i in range(1, rank))))]
        return CompressedModel(Graph(self.nodes, self.inputs, outputs, self.constants))


def mlp():
    d = Drawing("N", 40)
    h = d.dense("x", 40, 64, activation="relu")
    h = d.add("Unary", d.dense(h, 64, 64), function="tanh")
    h = d.dense(h, 64, 64, activation="leaky_relu", alpha=0.1)
    return d.model(d.dense(h, 64, 20)), normal(300, 40)


def residual_network():
    d = Drawing("N", 12, 12, 3)
    x = d.conv("x", 3, 16, activation="relu")
    a = d.conv(x, 16, 16, groups=16, activation="clip", beta=6.0)
    x = d.add("Unary", d.add("Binary", x, d.conv(a, 16, 16, 1), function="add"), function="relu")
    x = d.add("Pool", x, function="max", kernel=(2, 2), strides=(2, 2))
    b = d.conv(x, 16, 8, 1)
    x = d.add("Concat", x, b, axis=-1)
    x = d.conv(x, 24, 32, activation="relu", strides=(2, 2))
    x = d.add("Pool", x, function="average", kernel=(2, 2), strides=(1, 1))
    x = d.conv(x, 32, 64, activation="relu")
    x = d.add("Reduce", x, np.array([1, 2]), function="mean", keep=False)
    return d.model(d.dense(x, 64, 20)), normal(60, 12, 12, 3)


def attention():
    d = Drawing("N", 6, 32)
    spread = np.exp(normal(32))  # channels of very different sizes, as trained ones have
    x = d.add("LayerNorm", "x", spread.astype("f4"), normal(32))
    parts = []
    for order in ((0, 2, 1, 3), (0, 2, 1, 3), (0, 2, 1, 3)):
        part = d.add("Reshape", d.dense(x, 32, 32), np.array([-1, 6, 4, 8]))
        parts.append(d.add("Transpose", part, order=order))
    scores = d.add("Softmax", d.add("MatMul", *parts[:2], transpose_b=True))
    mixed = d.add("Transpose", d.add("MatMul", scores, parts[2]), order=(0, 2, 1, 3))
    out = d.dense(d.add("Reshape", mixed, np.array([-1, 6, 32])), 32, 32)
    return d.model(d.add("Binary", out, x, function="add"), rank=3), normal(80, 6, 32)


HARD = "attention", "static"
MODELS = {"mlp": mlp, "residual": residual_network, "attention": attention}


def noise(small, whole, x):
    wanted, found = np.float64(whole(x)), np.float64(small(x))
    return 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum())


def operators_of(model):
    return {node.operator for node in model.graph.nodes}


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_near_the_float_model(name, activations):
    model, x = MODELS[name]()
    half = len(x) // 2
    small = fastvq.compress(model, x[:half], scheme="int8", activations=activations)
    # Two products of activations with a softmax between: static steps tell there.
    assert noise(small, model, x[half:]) > (20 if (name, activations) == HARD else 24)
    made = {"dynamic": "Dynamic", "static": "Q"}[activations]
    assert any(operator.startswith(made) for operator in operators_of(small))


def test_integers_flow_from_layer_to_layer():
    """Between the first layer and the last nothing is float."""
    model, x = residual_network()
    small = fastvq.compress(model, x, scheme="int8", activations="static")
    operators = [node.operator for node in small.graph.nodes]
    assert operators.count("Quantize") == 1 and "Dequantize" not in operators
    assert {"QConv", "QAdd", "QPool", "Concat", "QDense"} <= {*operators}
    assert not {"Conv", "Dense", "Binary", "Pool", "Unary", "Reduce"} & {*operators}


def test_sums_of_layers_keep_16_bits():
    model, x = residual_network()
    small = fastvq.compress(model, x, scheme="int8", activations="static")
    (add,) = (node for node in small.graph.nodes if node.operator == "QAdd")
    assert add.attributes["dtype"] == "int16" and add.attributes["low"] == 0
    makers = {name: node for node in small.graph.nodes for name in node.outputs}
    assert {makers[name].attributes["dtype"] for name in add.inputs} == {"int16"}
    readers = [node.operator for node in small.graph.nodes if add.outputs[0] in node.inputs]
    assert {*readers} == {"Requantize"}
    settings = {"scheme": "int8", "activations": "static", "skips": "int8"}
    plain = fastvq.compress(model, x, **settings)
    assert "Requantize" not in operators_of(plain)
    assert "dtype" not in next(n for n in plain.graph.nodes if n.operator == "QAdd").attributes


def uneven(model, *pairs):
    """The same function, whose channels between layers have very different sizes."""
    constants = dict(model.graph.constants)
    for weight, bias, after, axis in pairs:
        sizes = np.exp(1.5 * normal(constants[weight].shape[0])).astype("f4")
        for name, factors, along in (
            (weight, sizes, 0),
            (bias, sizes, 0),
            (after, 1 / sizes, axis),
        ):
            values = np.moveaxis(constants[name].decode().copy(), along, -1) * factors
            constants[name] = Raw(np.ascontiguousarray(np.moveaxis(values, -1, along)))
    graph = model.graph
    return CompressedModel(Graph(graph.nodes, graph.inputs, graph.outputs, constants))


def test_steps_of_channels():
    d = Drawing("N", 8, 8, 6)
    x = d.conv("x", 6, 24, 1, activation="relu")
    x = d.conv(x, 24, 24, groups=24, activation="relu")
    model = d.model(d.conv(x, 24, 12, 1), rank=4)
    # Scales of what a depthwise filter reads are free, and those of what it gives nearly so.
    model, x = uneven(model, ("c0", "c1", "c2", 0), ("c2", "c3", "c4", -1)), normal(60, 8, 8, 6)
    found = {
        steps: noise(
            fastvq.compress(model, x[:30], scheme="int8", activations="static", steps=steps),
            model, x[30:],
        )
        for steps in ("tensor", "channel")
    }  # fmt: skip
    assert found["channel"] > found["tensor"] + 4


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_compensation(activations):
    """Weights lie farther from the float ones, and outputs nearer."""
    d = Drawing("N", 64)
    weight = normal(32, 64)
    model = d.model(d.add("Dense", "x", weight, normal(32)))
    x = (normal(400, 12) @ normal(12, 64)).astype("f4")
    kept = {}
    for compensate in (False, True):
        quantizer = ModelQuantizer(activations=activations, compensate=compensate)
        back = quantizer.fit(model, x[:300]).inverse_transform(quantizer.transform(model))
        found = back.graph.constants["c0"].decode()
        kept[compensate] = noise(back, model, x[300:]), ((found - weight) ** 2).sum()
    assert kept[True][0] > kept[False][0] + 3 and kept[True][1] > kept[False][1]


def test_activations_go_into_tables():
    model, _ = mlp()
    x = RNG.uniform(-1, 1, (300, 40)).astype("f4")  # rows of one range: steps of their own are none
    small = fastvq.compress(model, x, scheme="int8", activations="static")
    assert [node.operator for node in small.graph.nodes] == ["Quantize", *["QDense"] * 4]
    assert [len(node.inputs) for node in small.graph.nodes[1:]] == [4, 5, 5, 4]


@pytest.mark.parametrize("name", MODELS)
def test_same_integers_everywhere(name, monkeypatch):
    """In any batch, at any number of threads, and at every level, NumPy's included."""
    model, x = MODELS[name]()
    small = fastvq.compress(model, x, scheme="int8", activations="static")
    if name == "attention":
        wanted = small(x)
        np.testing.assert_array_equal(np.concatenate([small(x[:7]), small(x[7:])]), wanted)
        return  # its softmax is float
    wanted = small(x, n_threads=1)
    np.testing.assert_array_equal(small(x, n_threads=2), wanted)
    np.testing.assert_array_equal(np.concatenate([small(row[None]) for row in x]), wanted)
    for level in _kernels.levels_runnable():
        monkeypatch.setattr(_kernels, "_ACTIVE", level)
        np.testing.assert_array_equal(CompressedModel(small.graph)(x), wanted)
    monkeypatch.setattr("fastvq.runtime.registry.lowering_of", lambda operator: None)
    np.testing.assert_array_equal(CompressedModel(small.graph)(x), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_steps_of_rows_do_not_depend_on_other_rows(name):
    model, x = MODELS[name]()
    small = fastvq.compress(model, x, scheme="int8")
    wanted = small(x, n_threads=1)
    for n_threads in (2, 5):
        np.testing.assert_array_equal(small(x, n_threads=n_threads), wanted)
    np.testing.assert_array_equal(np.concatenate([small(row[None]) for row in x]), wanted)


def in_parts(model, x):
    return np.concatenate([model(x[i : i + 500]).argmax(axis=-1) for i in range(0, len(x), 500)])


def test_the_same_class_everywhere(monkeypatch):
    """Where layers are float too levels differ in last bits: in classes of one row in 10,000."""
    rows = {"mlp": (12_000, 40), "attention": (600, 6, 32), "residual": (300, 12, 12, 3)}
    asked = []
    for name, shape in rows.items():
        model, x = MODELS[name]()
        found = (
            fastvq.compress(model, x, scheme="int8", activations=activations)
            for activations in ("dynamic", "static")
        )
        asked += [(small, normal(*shape)) for small in found]
    classes = {}
    for level in (*_kernels.levels_runnable(), "numpy"):
        if level == "numpy":
            monkeypatch.setattr("fastvq.runtime.registry.lowering_of", lambda operator: None)
        else:
            monkeypatch.setattr(_kernels, "_ACTIVE", level)
        found = [in_parts(CompressedModel(small.graph), x).ravel() for small, x in asked]
        classes[level] = np.concatenate(found)
    for found in classes.values():
        assert (found != classes["numpy"]).mean() <= 1e-4


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_settings(calibration, granularity):
    model, x = mlp()
    small = fastvq.compress(
        model, x, scheme="int8", activations="static", calibration=calibration,
        granularity=granularity,
    )  # fmt: skip
    assert noise(small, model, x) > 20


def test_a_file_and_back(tmp_path):
    model, x = residual_network()
    small = fastvq.compress(model, x, scheme="int8", activations="static")
    small.save(tmp_path / "m.fvq")
    again = fastvq.load(tmp_path / "m.fvq")
    np.testing.assert_array_equal(again(x), small(x))
    assert (tmp_path / "m.fvq").stat().st_size == small.nbytes
    assert "before" in repr(again.report())


def test_a_quarter_of_the_size():
    d = Drawing("N", 256)
    model = d.model(d.dense(d.dense("x", 256, 256, activation="relu"), 256, 64))
    for settings in ({}, {"X": normal(50, 256), "activations": "static"}):
        small = fastvq.compress(model, scheme="int8", **settings)
        assert small.nbytes <= 0.27 * 4 * (256 * 256 + 256 * 64 + 320)


def test_without_examples():
    model, x = mlp()
    assert noise(fastvq.compress(model, scheme="int8"), model, x) > 30


def test_transform_takes_other_weights():
    model, x = mlp()
    quantizer = ModelQuantizer(activations="static").fit(model, x)
    constants = {n: Raw(c.decode() * np.float32(0.99)) for n, c in model.graph.constants.items()}
    graph = model.graph
    other = CompressedModel(Graph(graph.nodes, graph.inputs, graph.outputs, constants))
    assert noise(quantizer.transform(other), other, x) > 20
    with pytest.raises(ValueError, match="other layers"):
        quantizer.transform(residual_network()[0])


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_back_to_floats(activations):
    model, x = mlp()
    quantizer = ModelQuantizer(activations=activations, bias_correction=False).fit(model, x)
    small = quantizer.transform(model)
    back = quantizer.inverse_transform(small)
    assert noise(back, model, x) > 35 and noise(small, back, x) > 24
    assert operators_of(back) == {"Dense", "Unary"}
    with pytest.raises(ValueError, match="not made by"):
        quantizer.inverse_transform(residual_network()[0])


def test_layers_that_stay_float():
    model, x = mlp()
    quantizer = ModelQuantizer(keep=["layer 1", "*3"]).fit(model, x)
    schemes = {row["layer"]: row["scheme"] for row in quantizer.layers_}
    assert schemes["layer 1"] == schemes["layer 3"] == "float32" and schemes["layer 0"] == "int8"
    d = Drawing("N", 10)
    small = fastvq.compress(d.model(d.dense("x", 10, 5)), scheme="int8")
    assert operators_of(small) == {"Dense"}
    assert "nothing to gain" in repr(small.report())


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_features_of_unlike_sizes(activations):
    """A row's steps would be those of its largest feature: the layer's own noise tells."""
    d = Drawing("N", 64)
    size = (10.0 ** RNG.uniform(-6, 6, 64)).astype("f4")
    weight, x = normal(32, 64) / size, (normal(100, 64) + 3) * size
    model = d.model(d.add("Dense", "x", weight))
    quantizer = ModelQuantizer(activations=activations).fit(model, x)
    assert quantizer.layers_[0]["scheme"] == "int8"
    assert noise(quantizer.transform(model), model, x) > 30


def test_a_layer_beyond_integers():
    d = Drawing("N", 8, 64)
    model = d.model(d.add("Conv", "x", normal(32, 3, 64)), rank=3)
    x = normal(20, 8, 64)
    x[..., 0] *= 1e6
    model.graph.constants["c0"].values[..., 0] = 0
    quantizer = ModelQuantizer().fit(model, x)
    assert quantizer.layers_[0]["scheme"] == "float32"
    assert "dB in integers" in quantizer.layers_[0]["reason"]


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_values_that_are_compared_stay_exact(activations):
    """The number of a bin that is a little off is equal to none."""
    d = Drawing("N", 40)
    counts = d.dense("x", 40, 32)
    d.constants["c0"].values[...] = RNG.integers(0, 2, (32, 40))
    d.constants["c1"].values[...] = 0
    picked = d.add("Gather", counts, np.arange(32).repeat(4), axis=1)
    equal = d.add("Binary", picked, np.tile(np.arange(18, 22, dtype="f4"), 32), function="equal")
    model = d.model(d.dense(d.add("Cast", equal, dtype="float32"), 128, 20))
    x = RNG.integers(0, 2, (100, 40)).astype("f4")
    quantizer = ModelQuantizer(activations=activations).fit(model, x)
    assert [row["layer"] for row in quantizer.layers_] == ["layer 4"]
    assert noise(quantizer.transform(model), model, x) > 35


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_max_drop(activations):
    model, x = mlp()
    quantizer = ModelQuantizer(activations=activations, granularity="tensor", max_drop=0.0)
    quantizer.fit(model, x)
    assert quantizer.scores_["after"] >= quantizer.scores_["before"]


def test_weights_alone():
    """Plain recurrence, embeddings, distances and weights without a model: int8 in the file."""
    d = Drawing("N", 5, dtype="int64")
    x = d.add("Gather", normal(100, 16), "x")
    y = d.add("RNN", x, normal(1, 80, 16, scale=0.2), normal(1, 80, 80, scale=0.1))
    model = d.model(y, rank=4)
    rows = RNG.integers(0, 100, (30, 5))
    quantizer = ModelQuantizer().fit(model, rows)
    small = quantizer.transform(model)
    assert noise(small, model, rows) > 30
    assert small.nbytes < 0.5 * model.nbytes
    assert {row["scheme"] for row in quantizer.layers_} == {"int8 weights"}
    assert noise(quantizer.inverse_transform(small), model, rows) > 30
    d = Drawing("N", 30)
    spread = (10.0 ** np.arange(-3, 3).repeat(5)).astype("f4")
    model = d.model(d.add("Distances", "x", normal(200, 30) * spread))
    x = normal(40, 30) * spread
    assert noise(fastvq.compress(model, x, scheme="int8"), model, x) > 30
    weights = {"a": normal(50, 40), "b": normal(7), "c": np.full((40, 40), np.nan, "f4")}
    small = fastvq.compress(weights, scheme="int8")
    a, b, c = small()
    np.testing.assert_allclose(a, weights["a"], atol=0.02)
    assert (b == weights["b"]).all() and np.isnan(c).all()
    assert small.nbytes < 0.8 * fastvq.compress(weights).nbytes


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_layers_with_a_state(activations):
    """LSTM and GRU multiply integers, between whatever is before and behind them."""
    d = Drawing("N", 7, 40)
    x = d.dense("x", 40, 48, activation="relu")
    y = d.add("LSTM", x, normal(2, 80, 48, scale=0.2), normal(2, 80, 20, scale=0.2),
              normal(2, 80), direction="bidirectional")  # fmt: skip
    y = d.add("Reshape", y, np.array([0, 0, 40]), zero_copies=True)
    y = d.add("GRU", y, normal(1, 90, 40, scale=0.2), normal(1, 90, 30, scale=0.2),
              normal(1, 90), normal(1, 90), linear_before_reset=True)  # fmt: skip
    y = d.add("Reshape", y, np.array([0, 0, 30]), zero_copies=True)
    model = d.model(d.dense(y, 30, 40), rank=3)
    rows = normal(60, 7, 40)
    quantizer = ModelQuantizer(activations=activations).fit(model, rows)
    small = quantizer.transform(model)
    assert {"DynamicLSTM", "DynamicGRU"} <= {node.operator for node in small.graph.nodes}
    assert {row["scheme"] for row in quantizer.layers_} == {"int8"}
    assert noise(small, model, rows) > 25
    assert small.nbytes < 0.5 * model.nbytes
    assert noise(quantizer.inverse_transform(small), model, rows) > 30


def test_dead_channels_and_constants():
    d = Drawing("N", 40)
    weight, bias = normal(64, 40), normal(64)
    weight[::3], bias[::6] = 0, 0
    bias[3] = 1e6  # of a dead channel: nothing but a bias
    h = d.add("Dense", "x", weight, bias, activation="relu")
    model = d.model(d.dense(h, 64, 20))
    x = normal(50, 40)
    x[:, 5] = 0
    for settings in ({}, {"activations": "static"}):
        small = fastvq.compress(model, x, scheme="int8", **settings)
        assert np.isfinite(small(x)).all() and noise(small, model, x) > 24
    zeros = fastvq.compress(model, np.zeros((3, 40), "f4"), scheme="int8", activations="static")
    assert np.isfinite(zeros(x)).all()


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_one_example(name, activations):
    model, x = MODELS[name]()
    small = fastvq.compress(model, x[:1], scheme="int8", activations=activations)
    assert np.isfinite(small(x)).all()
    assert noise(small, model, x) > (20 if activations == "dynamic" else 0)


@pytest.mark.parametrize(
    ("settings", "X", "message"),
    [
        ({"activations": "static"}, None, "give X"),
        ({"max_drop": 0.1}, None, "give X"),
        ({"activations": "static"}, np.zeros((0, 40)), "no rows"),
        ({"activations": "static"}, np.full((3, 40), np.nan), "NaN or infinite"),
        ({"activations": "static"}, np.full((3, 40), np.inf), "NaN or infinite"),
        ({"activations": "sometimes"}, None, "activations must be one of"),
        ({"calibration": "best"}, None, "calibration must be one of"),
        ({"granularity": "row"}, None, "granularity must be one of"),
        ({"smoothing": 2}, None, "smoothing must be"),
        ({"steps": "row"}, None, "steps must be one of"),
        ({"skips": "int4"}, None, "skips must be one of"),
        ({"max_samples": 0}, None, "max_samples must be"),
        ({"size_budget": 1000}, None, "bytes at int8, not 1,000"),
        ({}, np.zeros((3, 41)), "must have shape"),
    ],
)
def test_refused(settings, X, message):
    with pytest.raises(ValueError, match=message):
        fastvq.compress(mlp()[0], X, scheme="int8", **settings)


def test_settings_of_other_schemes():
    with pytest.raises(TypeError, match="no setting activations"):
        fastvq.compress(mlp()[0], activations="static")


# ---- input that is hard -------------------------------------------------------------------------


def two_layers(n_in=40, weight=None, bias=None):
    d = Drawing("N", n_in)
    weight = normal(64, n_in, scale=(2 / n_in) ** 0.5) if weight is None else weight
    bias = normal(64, scale=0.1) if bias is None else bias
    h = d.add("Dense", "x", weight, bias, activation="relu")
    return d.model(d.dense(h, 64, 20))


def filters(n_in=4, weight=None, bias=None, size=6):
    """A convolution, a filter for each of its channels, and another convolution."""
    d = Drawing("N", size, size, n_in)
    weight = normal(16, 3, 3, n_in, scale=(0.2 / n_in) ** 0.5) if weight is None else weight
    x = d.add("Conv", "x", weight, normal(16) if bias is None else bias, pads=(1,) * 4)
    return d.model(d.conv(d.conv(x, 16, 16, groups=16), 16, 8, 1), rank=4)


def sizes(low, high, n):
    return (10.0 ** np.linspace(low, high, n)).astype("f4")[:, None]


ZEROS = np.zeros((64, 40), "f4")
PICTURES = np.random.default_rng(0).normal(size=(40, 6, 6, 4)).astype("f4")
CHANNELS = (10.0 ** np.arange(-2, 2)).astype("f4")
HARD_INPUT = {
    "a layer of zeros": lambda: (two_layers(weight=ZEROS), normal(60, 40)),
    "only a bias": lambda: (two_layers(weight=ZEROS, bias=ZEROS[:, 0]), normal(60, 40)),
    "constant rows": lambda: (two_layers(), np.full((60, 40), 3.7, "f4")),
    "denormal rows": lambda: (two_layers(bias=ZEROS[:, 0]), normal(60, 40) * np.float32(1e-38)),
    "large rows": lambda: (two_layers(), normal(60, 40) * np.float32(1e30)),
    "rows of all sizes": lambda: (two_layers(), normal(60, 40) * sizes(-30, 30, 60)),
    "weights of all sizes": lambda: (
        two_layers(weight=normal(64, 40) * sizes(-38, 30, 64)), normal(60, 40) * np.float32(1e-5),
    ),
    "as many inputs as sums hold": lambda: (two_layers(1 << 15), normal(20, 1 << 15)),
    "more inputs than sums hold": lambda: (two_layers((1 << 15) + 1), normal(20, (1 << 15) + 1)),
    "filters of zeros": lambda: (filters(weight=ZEROS[:16, :36].reshape(16, 3, 3, 4)), PICTURES),
    "dead filters": lambda: (
        filters(weight=normal(16, 3, 3, 4) * (np.arange(16) % 3 > 0)[:, None, None, None]),
        PICTURES,
    ),
    "pictures of one value": lambda: (filters(), np.full_like(PICTURES, -2.5)),
    "channels of all sizes": lambda: (
        filters(weight=normal(16, 3, 3, 4) / CHANNELS), normal(40, 6, 6, 4) * CHANNELS,
    ),
    "filters of all sizes": lambda: (
        filters(weight=normal(16, 3, 3, 4) * sizes(-30, 30, 16)[..., None, None]), PICTURES,
    ),
    "more inputs than sums of filters hold": lambda: (filters(3641, size=3), normal(9, 3, 3, 3641)),
}  # fmt: skip


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("name", HARD_INPUT)
def test_hard_input(name, activations):
    model, x = HARD_INPUT[name]()
    quantizer = ModelQuantizer(activations=activations).fit(model, x)
    small = quantizer.transform(model)
    wanted, found = np.float64(model(x)), np.float64(small(x))
    assert np.isfinite(found).all() and ((found - wanted) ** 2).sum() <= 1e-3 * (wanted**2).sum()
    beyond = quantizer.layers_[0]["reason"].startswith("no integer")
    assert beyond == name.startswith("more inputs")


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("value", [1e4, 1e30, 3e38])
def test_one_value_far_out(value, activations):
    """Nothing that is fitted is made for it: other rows are as near as without it."""
    model, x = two_layers(), normal(60, 40)
    x[7, 3] = value
    quantizer = ModelQuantizer(activations=activations).fit(model, x)
    small, others = quantizer.transform(model), np.delete(x, 7, axis=0)
    wanted, found = np.float64(model(others)), np.float64(small(others))
    assert ((found - wanted) ** 2).sum() < 10**-3.5 * (wanted**2).sum()
    assert {row["scheme"] for row in quantizer.layers_} == {"int8"}


def convolutions():
    d = Drawing("N", 8, 8, 4)
    x = d.conv(d.conv("x", 4, 32, activation="relu"), 32, 32, groups=32)
    return d.model(d.conv(x, 32, 8, 1), rank=4), normal(60, 8, 8, 4)


@pytest.mark.parametrize("made", [lambda: (two_layers(), normal(60, 40)), convolutions])
@pytest.mark.parametrize("largest", [1e30, 1e37, 3e38])
def test_finite_rows_give_finite_answers(made, largest):
    """Larger than any example by far: steps are found as the model runs."""
    model, x = made()
    small = fastvq.compress(model, x, scheme="int8")
    x /= np.abs(x).max()
    x[3] *= largest / 8
    x[7].flat[3] = largest
    wanted, found = np.float64(model(x)), np.float64(small(x))
    axes = (*range(1, wanted.ndim),)
    assert np.isfinite(wanted).all() and np.isfinite(found).all()
    assert (((found - wanted) ** 2).sum(axes) < 1e-2 * (wanted**2).sum(axes)).all()


def test_weights_beyond_the_range_of_sums_stay_float():
    model, x = two_layers(weight=normal(64, 40) * np.float32(1e36)), normal(60, 40) * 1e-30
    quantizer = ModelQuantizer().fit(model, x)
    assert quantizer.layers_[0]["scheme"] == "int8 weights"
    assert noise(quantizer.transform(model), model, x) > 24


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_no_numbers(bad):
    """NaN where steps are found as a model runs; else the end of the range, and for NaN 0."""
    d = Drawing("N", 40)
    model, x = d.model(d.dense(d.dense("x", 40, 64), 64, 20)), normal(60, 40)
    examples = RNG.uniform(-1, 1, (300, 40)).astype("f4")  # whose rows have the same range
    static = fastvq.compress(model, examples, scheme="int8", activations="static")
    assert "DynamicDense" not in operators_of(static)
    x[3, 5] = bad
    found = fastvq.compress(model, scheme="int8")(x)
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, axis=0)).all()
    instead = x.copy()
    instead[3, 5] = np.nan_to_num(bad)
    np.testing.assert_array_equal(static(x), static(instead))


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_calibration_that_is_none(bad, activations):
    model, x = residual_network()
    x[3, 2, 2, 1] = bad
    with pytest.raises(ValueError, match="'x' has values that are NaN or infinite"):
        ModelQuantizer(activations=activations).fit(model, x)
    with pytest.raises(ValueError, match="no rows"):
        ModelQuantizer(activations=activations).fit(model, x[:0])


# ---- passes -------------------------------------------------------------------------------------


def test_equalised():
    d = Drawing("N", 8, 8, 4)
    x = d.conv("x", 4, 12, activation="relu")
    x = d.conv(x, 12, 12, groups=12, activation="relu")
    model, x = d.model(d.conv(x, 12, 6, 1), rank=4), normal(5, 8, 8, 4)
    scale = np.exp(2 * normal(12))
    graph = model.graph
    first = {"c0": scale[:, None, None, None], "c1": scale}
    constants = {
        n: Raw((c.decode() * first.get(n, 1)).astype("f4")) for n, c in graph.constants.items()
    }
    model = CompressedModel(Graph(graph.nodes, graph.inputs, graph.outputs, constants))
    prepared = passes.prepared(model.graph)
    assert len(passes.equalised_pairs(prepared)) == 2
    even = passes.equalised(prepared)
    np.testing.assert_allclose(CompressedModel(even)(x), model(x), rtol=1e-3, atol=1e-4)
    settings = {"scheme": "int8", "granularity": "tensor", "activations": "static"}
    plain = fastvq.compress(model, x, **settings)
    assert noise(fastvq.compress(model, x, equalize=True, **settings), model, x) > noise(
        plain, model, x
    )


def test_smoothed():
    model, x = attention()
    x[..., 3] *= 50
    prepared = passes.prepared(model.graph)
    (pair,) = passes.smoothed_norms(prepared)
    assert len(pair[1]) == 3
    reach = np.abs(normal(32)) + 0.1
    smooth = passes.smoothed(prepared, {pair[0].outputs[0]: reach})
    np.testing.assert_allclose(CompressedModel(smooth)(x), model(x), rtol=1e-3, atol=1e-4)
    with_it = fastvq.compress(model, x, scheme="int8")
    without = fastvq.compress(model, x, scheme="int8", smoothing=None)
    assert noise(with_it, model, x) > noise(without, model, x) - 0.5


def test_bias_correction_takes_back_means():
    d = Drawing("N", 200)
    model, x = d.model(d.dense("x", 200, 50)), np.abs(normal(500, 200)) + 1
    wanted = model(x).mean(axis=0)
    errors = [
        np.abs(
            fastvq.compress(model, x, scheme="int8", bias_correction=b)(x).mean(axis=0) - wanted
        ).mean()
        for b in (False, True)
    ]
    assert errors[1] < 0.3 * errors[0]


# ---- command line -------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    model, x = mlp()
    paths = {name: str(tmp_path / name) for name in ("m.fvq", "x.npy", "o.fvq")}
    model.save(paths["m.fvq"])
    np.save(paths["x.npy"], x)
    command = ["compress", paths["m.fvq"], "-o", paths["o.fvq"]]
    settings = ["--calibrate", paths["x.npy"], "--activations", "static", "--keep", "layer 3"]
    assert main([*command, "--scheme", "int8", *settings, "--report"]) == 0
    out = capsys.readouterr().out
    assert "layers in float32: 1" in out and "layers in int8: 3" in out
    assert noise(fastvq.load(paths["o.fvq"]), model, x) > 24
    assert main([*command, *settings]) == 2
    assert "--scheme int8" in capsys.readouterr().err
