"""Which layers are integers, and in which steps: by the harm they do to outputs, and by cost."""

import numpy as np
import pytest

import fastvq
from fastvq import _kernels
from fastvq.compress import ModelQuantizer, sensitivity, stats
from fastvq.compress.schemes import cost_table, costs, int8_dynamic
from fastvq.runtime import CompressedModel, Graph, Node, Value, preprocess
from fastvq.runtime.encoding import Raw

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def drawn_anew():
    """What a test draws does not depend on those before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def normal(*shape, scale=1.0):
    return RNG.normal(scale=scale, size=shape).astype("f4")


def weight(n, k):
    return Raw(normal(n, k, scale=k**-0.5))


def noise(small, whole, *x):
    wanted, found = np.float64(whole(*x)), np.float64(small(*x))
    return 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum())


# ---- harm ---------------------------------------------------------------------------------------


def test_damages():
    def graph(scale):
        name = f"w {scale}"
        nodes = [Node("Dense", ("x", name), ("y",), {}), Node("ArgMax", ("y",), ("z",), {})]
        outputs = [Value("y", "float32", ("N", 3)), Value("z", "int64", ("N",))]
        constants = {name: Raw(np.float32(scale) * np.eye(3, 4, dtype="f4"))}
        return Graph(nodes, [Value("x", "float32", ("N", 4))], outputs, constants)

    x = [normal(100, 4)]
    found = sensitivity.damages(graph(1), x, {"same": lambda: graph(1), "half": lambda: graph(0.5)})
    assert found["same"] == 0 and abs(found["half"] - 0.25) < 1e-6
    whole = graph(1)
    half = whole.with_constants({"w 1": Raw(np.float32(0.5) * np.eye(3, 4, dtype="f4"))})
    ways = {"half": lambda: half, "same": lambda: whole, "again": lambda: half}
    found = sensitivity.damages(whole, x, ways)
    assert found["again"] == found["half"] > 0.2 and found["same"] == 0
    labels = Graph(whole.nodes, whole.inputs, whole.outputs[1:], whole.constants)
    assert sensitivity.damages(labels, x, {"same": lambda: labels}) == {}


def test_only_what_follows_runs_again(monkeypatch):
    """Branches, sizes that are known, an output on the way: bit for bit as if all were run."""
    nodes = [
        Node("Dense", ("x", "a"), ("h",), {}, "first"),
        Node("Shape", ("h",), ("s",), {}, "sizes"),
        Node("Unary", ("h",), ("t",), {"function": "tanh"}, "bend"),
        Node("Dense", ("t", "b"), ("g",), {}, "second"),
        Node("Binary", ("g", "h"), ("sum",), {"function": "add"}, "sum"),
        Node("Reshape", ("sum", "s"), ("r",), {}, "shape"),
        Node("Dense", ("r", "a"), ("y",), {}, "third"),
    ]
    outputs = [Value(name, "float32", ("N", 48)) for name in ("y", "t")]
    constants = {"a": weight(48, 48), "b": weight(48, 48)}
    graph = Graph(nodes, [Value("x", "float32", ("N", 48))], outputs, constants)
    x, ran = normal(16, 48), []

    class Counting(sensitivity.Plan):
        def __init__(self, *args):
            super().__init__(*args)
            ran.append(len(self.steps))

    monkeypatch.setattr(sensitivity, "Plan", Counting)
    keys = ["h", "g", "y"]
    ways = {key: lambda key=key: int8_dynamic.dynamic(graph, {key}).graph for key in keys}
    found = sensitivity.damages(graph, [x], ways)
    whole, *others = (CompressedModel(g) for g in (graph, *(ways[key]() for key in keys)))
    for key, other in zip(keys, others, strict=True):
        shares = [((np.float64(f) - w) ** 2).sum() / (np.float64(w) ** 2).sum()
                  for f, w in zip(other(x), whole(x), strict=True)]  # fmt: skip
        assert found[key] >= max(shares) > 0.5 * found[key]
    # The sample, the float model, and then what leads to each layer and what follows it.
    assert ran[0] == ran[1] == 5 and ran[3:] == [0, 5, 2, 3, 2, 1]
    assert sensitivity.damages(graph, [x], dict(reversed(ways.items()))) == found


def test_dynamic_layers_are_asked_of_together():
    """One run of all tells that none does much; of each it is asked where all together do."""
    graph = spread_tokens().graph
    x = normal(60, 8, 48)
    assert ModelQuantizer().fit(CompressedModel(graph), x)._fitting.harm == {}
    x[:, :, 0] *= 1e5  # beside which steps of a row are too wide for all others
    convolution = Node("Conv", ("x", "c"), ("h",), {}, "first")
    graph = Graph([convolution, *graph.nodes[1:]], graph.inputs, graph.outputs,
                  {**graph.constants, "c": Raw(normal(64, 1, 48))})  # fmt: skip
    graph.constants["c"].values[..., 0] = 0
    quantizer = ModelQuantizer().fit(CompressedModel(graph), x)
    assert {*quantizer._fitting.harm} == {"h", "y"}
    assert [row["scheme"] for row in quantizer.layers_] == ["float32", "int8"]


def spread_tokens():
    """A token a hundred times as large as all others, as transformers have; a norm behind."""
    nodes = [
        Node("Dense", ("x", "a"), ("h",), {}, "first"),
        Node("Binary", ("h", "size"), ("big",), {"function": "multiply"}, "size"),
        Node("Dense", ("big", "b"), ("y",), {}, "second"),
        Node("LayerNorm", ("y", "ones"), ("z",), {}, "norm"),
    ]
    size = np.ones((8, 1), "f4")
    size[0] = 100
    constants = {"a": weight(64, 48), "b": weight(48, 64), "size": Raw(size),
                 "ones": Raw(np.ones(48, "f4"))}  # fmt: skip
    graph = Graph(nodes, [Value("x", "float32", ("N", 8, 48))],
                  [Value("z", "float32", ("N", 8, 48))], constants)  # fmt: skip
    return CompressedModel(graph)


def test_steps_of_rows_where_static_ones_do_harm():
    model, x = spread_tokens(), normal(420, 8, 48)
    quantizer = ModelQuantizer(activations="static").fit(model, x[:400])
    reasons = {row["layer"]: row["reason"] for row in quantizer.layers_}
    assert "steps of rows" in reasons["second"] and reasons["first"] == ""
    small = quantizer.transform(model)
    assert [n.operator for n in small.graph.nodes if "Dense" in n.operator] == [
        "QDense", "DynamicDense",
    ]  # fmt: skip
    assert noise(small, model, x[400:]) > 36
    assert noise(quantizer.inverse_transform(small), model, x[400:]) > 37


def test_a_function_of_a_wide_range_stays_float():
    """Most of what GELU bends lies within a few of 255 steps."""

    def model(function, size):
        nodes = [
            Node("Dense", ("x", "a"), ("h",), {}, "first"),
            Node("Unary", ("h",), ("g",), {"function": function}, "function"),
            Node("Dense", ("g", "b"), ("y",), {}, "second"),
        ]
        rows = weight(64, 48).values * np.float32(size)
        rows[1:] /= np.float32(size)
        constants = {"a": Raw(rows), "b": weight(48, 64)}
        return CompressedModel(Graph(nodes, [Value("x", "float32", ("N", 48))],
                                     [Value("y", "float32", ("N", 48))], constants))  # fmt: skip

    x = normal(300, 48)
    for function, size, apart in (("tanh", 1, False), ("gelu", 40, True)):
        quantizer = ModelQuantizer(activations="static").fit(model(function, size), x)
        operators = {n.operator for n in quantizer.transform(model(function, size)).graph.nodes}
        assert ("Unary" in operators) == apart


# ---- places that count --------------------------------------------------------------------------


def test_counted():
    places = np.array([[1, 1, 0], [1, 0, 0]])
    value = normal(2, 3, 4)
    np.testing.assert_array_equal(stats.counted(value, places), value[places == 1])
    heads = normal(2, 5, 3, 4)
    np.testing.assert_array_equal(stats.counted(heads, places), heads.swapaxes(1, 2)[places == 1])
    for other in (normal(2, 7), normal(2, 5, 4), normal(3, 3, 4)):
        assert stats.counted(other, places) is other
    assert stats.counted(value, None) is value


def test_padding_is_not_calibrated_for():
    """Padding far larger than what counts: steps and weights are made for what counts."""
    nodes = [
        Node("Dense", ("x", "a"), ("h",), {}, "layer"),
        Node("Cast", ("m",), ("f",), {"dtype": "float32"}, "cast"),
        Node("Unsqueeze", ("f",), ("u",), {"axes": (2,)}, "places"),
        Node("Binary", ("h", "u"), ("y",), {"function": "multiply"}, "mask"),
    ]
    graph = Graph(
        nodes,
        [Value("x", "float32", ("N", "T", 48)), Value("m", "int64", ("N", "T"))],
        [Value("y", "float32", ("N", "T", 64))],
        {"a": weight(64, 48)},
    )
    x, mask = normal(50, 12, 48), np.ones((50, 12), np.int64)
    mask[:, 4:] = 0
    x[:, 4:] *= 50
    found = {}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = preprocess.describe_wordpiece(words, ids="x", mask="m", types=None, max_length=12)
    for metadata in ({}, {"preprocess": tokens}):
        model = CompressedModel(graph, metadata)
        quantizer = ModelQuantizer(activations="static", max_samples=40).fit(model, (x, mask))
        small = quantizer.transform(model)
        found[bool(metadata)] = noise(small, model, x[:, :4], mask[:, :4])
        assert (np.abs(quantizer.ranges_["x"].high) < 10) == bool(metadata)
    assert found[True] > 30


# ---- cost ---------------------------------------------------------------------------------------


def test_the_table_of_costs():
    assert {"x86_64_v1", "x86_64_v3"} <= set(cost_table.MICROSECONDS)
    for table in cost_table.MICROSECONDS.values():
        assert {kind: [*shapes] for kind, shapes in table.items()} == costs._SHAPES
    level = "x86_64_v3"
    floats, _, integers = cost_table.MICROSECONDS[level]["dense"][1, 1024, 256]
    for known in (level, "numpy"):
        gain = costs.gain("dense", (1, 1000, 300), "static", known)
        assert gain == pytest.approx(floats / integers)


def test_pictures_have_more_places_than_were_measured():
    """What takes long is told by the work, not by the time of the measured shape."""
    node = Node("Conv", ("x", "w"), ("y",), {}, "wide")
    forms = {"w": Value("w", "float32", (20, 5, 5, 1)), "y": Value("y", "float32", (1, 8, 8, 20))}
    assert costs.gain_of(node, [forms], "dynamic") is None
    forms["y"] = Value("y", "float32", (32, 24, 24, 20))
    assert costs.gain_of(node, [forms], "dynamic") > 0


@pytest.mark.skipif(not _kernels.levels_runnable(), reason="measures compiled kernels")
def test_the_table_can_be_measured(monkeypatch):
    some = {"dense": [(4, 16, 16)], "patches": [(49, 25, 16)], "depthwise": [(49, 9, 32)]}
    monkeypatch.setattr(costs, "_SHAPES", some)
    for shapes in costs.measured(0.0).values():
        for times in shapes.values():
            assert len(times) == 3 and min(times) > 0


def test_layers_that_integers_make_slower(monkeypatch):
    """They are multiplied as floats, and stored in a quarter all the same where that tells."""
    nodes = [
        Node("Dense", ("x", "a"), ("h",), {}, "large"),
        Node("Dense", ("h", "b"), ("y",), {}, "small"),
    ]
    constants = {"a": weight(64, 48), "b": weight(10, 64)}
    graph = Graph(nodes, [Value("x", "float32", ("N", 48))], [Value("y", "float32", ("N", 10))],
                  constants)  # fmt: skip
    monkeypatch.setattr(costs, "_TELLS", 0.0)
    monkeypatch.setattr(costs, "gain", lambda *_: 0.3)
    quantizer = ModelQuantizer().fit(CompressedModel(graph), normal(50, 48))
    schemes = {row["layer"]: row["scheme"] for row in quantizer.layers_}
    assert schemes == {"large": "int8 weights", "small": "float32"}
    small = quantizer.transform(CompressedModel(graph))
    assert {node.operator for node in small.graph.nodes} == {"Dense"}
    assert noise(small, CompressedModel(graph), normal(20, 48)) > 35
    monkeypatch.setattr(costs, "gain", lambda *_: 3.0)
    small = fastvq.compress(CompressedModel(graph), normal(50, 48), scheme="int8")
    assert {node.operator for node in small.graph.nodes} == {"DynamicDense"}
