"""Integer layers: the compiled kernels give what the definitions give, bit for bit."""

import itertools

import numpy as np
import pytest
from oracles import THREADS, assert_same_bits

from fastvq.runtime import CompressedModel, Graph, GraphError, Node, Value
from fastvq.runtime.affine import Affine
from fastvq.runtime.encoding import ENCODINGS, Raw
from fastvq.runtime.ops import operators
from fastvq.runtime.plan import Plan
from fastvq.runtime.registry import KernelCall, compiled


def run(operator, arrays, n_data, attributes, threads=1):
    """A model of one node: its first `n_data` inputs come with the call, the rest are constants."""
    names = [f"in{i}" if a is not None else "" for i, a in enumerate(arrays)]
    inputs = [
        Value(name, a.dtype.name, a.shape)
        for name, a in zip(names[:n_data], arrays[:n_data], strict=True)
    ]
    constants = {n: Raw(a) for n, a in zip(names, arrays, strict=True) if n}
    constants = {n: a for n, a in constants.items() if n not in {v.name for v in inputs}}
    shape, dtype = operators()[operator].run(arrays, attributes)[0].shape, None
    dtype = operators()[operator].run(arrays, attributes)[0].dtype
    graph = Graph(
        [Node(operator, names, ["y"], attributes)],
        inputs,
        [Value("y", dtype.name, shape)],
        constants,
    )
    plan = Plan(graph, {v.name: v.shape for v in inputs}, {}, threads)
    if compiled():
        assert all(isinstance(step, KernelCall) for step in plan.steps), "no kernel runs this"
    return plan.run([np.ascontiguousarray(a) for a in arrays[:n_data]])[0]


def check(operator, arrays, n_data=1, **attributes):
    with np.errstate(all="ignore"):
        expected = operators()[operator].run(arrays, attributes)[0]
    for threads in THREADS:
        found = run(operator, arrays, n_data, attributes, threads)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, str(attributes))


def some_bytes(rng, *shape):
    return rng.integers(-128, 128, shape, dtype=np.int8)


def constants_for(rng, n, k):
    multiplier = (rng.random(n) * 0.02 / np.sqrt(k)).astype(np.float32)
    return multiplier, rng.integers(-5000, 5000, n, dtype=np.int32), some_bytes(rng, 256)


LAYERS = [
    {},
    {"x_zero_point": -128, "y_zero_point": 7, "low": 7},
    {"dtype": "float32", "x_zero_point": 5},
]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 50, 300), (7, 17, 33), (300, 49, 64)], ids=str)
def test_dense(shape):
    rng = np.random.default_rng(0)
    m, n, k = shape
    x, weight = some_bytes(rng, m, k), some_bytes(rng, n, k)
    multiplier, bias, table = constants_for(rng, n, k)
    for attributes in LAYERS:
        check("QDense", [x, weight, multiplier, bias], **attributes)
    check("QDense", [x[None], weight, multiplier], **attributes)
    check("QDense", [x, weight, multiplier[:1], None, table], x_zero_point=127)
    real = rng.standard_normal((m, k), np.float32)
    check("DynamicDense", [real, weight, multiplier])
    bias = rng.standard_normal(n, np.float32)
    check("DynamicDense", [real, weight, multiplier, bias], activation="relu")
    check("DynamicDense", [real, weight, multiplier, bias], activation="clip", alpha=-0.1, beta=0.3)


WINDOWS = [
    {},
    {"strides": (2, 1), "pads": (1, 0, 2, 1)},
    {"dilations": (1, 2), "pads": (1, 3, 0, 2)},
    {"strides": (3, 3), "pads": (2, 2, 2, 2), "dilations": (2, 1)},
]


@pytest.mark.parametrize(("window", "groups"), [*itertools.product(WINDOWS, [1, 2, 6])])
def test_convolution(window, groups):
    """Dense, grouped, and with a filter for each channel."""
    rng = np.random.default_rng(1)
    for channels, per_group, kernel, size in [(6, 1, (3, 3), (9, 8)), (12, 19, (2, 3), (7, 7))]:
        x = some_bytes(rng, 3, *size, channels)
        weight = some_bytes(rng, groups * per_group, *kernel, channels // groups)
        multiplier, bias, table = constants_for(rng, len(weight), 30)
        for attributes in LAYERS:
            check("QConv", [x, weight, multiplier, bias], groups=groups, **window, **attributes)
        check("QConv", [x, weight, multiplier, None, table], groups=groups, **window)
        real = (x * rng.random((3, 1, 1, 1))).astype(np.float32)
        shift = rng.standard_normal(len(weight), np.float32)
        more = {"groups": groups, **window}
        check("DynamicConv", [real, weight, multiplier, shift], activation="relu", **more)
        real[1, 2, 3, 0] = np.nan
        check("DynamicConv", [real, weight, multiplier], **more)


def test_pointwise_and_sequence_convolutions():
    rng = np.random.default_rng(2)
    x, weight = some_bytes(rng, 2, 5, 9, 24), some_bytes(rng, 40, 1, 1, 24)
    multiplier, bias, _ = constants_for(rng, 40, 24)
    for strides in ((1, 1), (2, 2)):
        check("QConv", [x, weight, multiplier, bias], strides=strides, x_zero_point=3)
    x, weight = some_bytes(rng, 3, 31, 5), some_bytes(rng, 40, 4, 5)
    check("QConv", [x, weight, multiplier, bias], strides=(2,), pads=(1, 2), x_zero_point=-3)
    for channels in (1, 15, 16, 17, 63, 64, 65, 130):  # a filter each, around the lanes
        x, weight = some_bytes(rng, 2, 6, 5, channels), some_bytes(rng, channels, 3, 3, 1)
        multiplier, bias, _ = constants_for(rng, channels, 9)
        check("QConv", [x, weight, multiplier, bias], groups=channels, pads=(1, 1, 1, 1),
              x_zero_point=-100)  # fmt: skip


@pytest.mark.parametrize("transpose_b", [False, True])
def test_two_activations(transpose_b):
    rng = np.random.default_rng(3)
    for batch, other, m, k, n in [((), (), 1, 1, 1), ((2, 3), (2, 3), 17, 33, 50),
                                  ((4, 1), (5,), 20, 64, 7)]:  # fmt: skip
        a = some_bytes(rng, *batch, m, k)
        b = some_bytes(rng, *other, *((n, k) if transpose_b else (k, n)))
        for attributes in ({}, {"dtype": "float32", "a_zero_point": -128}, {"a_zero_point": 9}):
            check("QMatMul", [a, b], 2, multiplier=0.003, transpose_b=transpose_b, **attributes)


def test_two_activations_with_two_zero_points():
    rng = np.random.default_rng(4)
    a, b = some_bytes(rng, 3, 200), some_bytes(rng, 200, 5)
    found = operators()["QMatMul"].run(
        [a, b], {"multiplier": 1.0, "a_zero_point": -128, "b_zero_point": 127, "dtype": "float32"}
    )[0]
    expected = (a.astype(np.int64) + 128) @ (b.astype(np.int64) - 127)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_to_integers_and_back():
    rng = np.random.default_rng(5)
    for shape in [(1,), (5, 33), (700, 64), (3, 4, 97)]:
        x = (rng.standard_normal(shape) * 3).astype(np.float32)
        x.flat[:: max(1, x.size // 5)] = np.resize([np.nan, np.inf, -np.inf, 1e30, 0.125], 1)
        one, zero = np.array(0.05, np.float32), np.array(-20, np.int8)
        many = rng.random(shape[-1], np.float32) + np.float32(0.01)
        zeros = some_bytes(rng, shape[-1])
        for scale, point in [(one, None), (one, zero), (many, None), (many, zeros)]:
            check("Quantize", [x, scale, point])
            check("Dequantize", [some_bytes(rng, *shape), scale, point])
    half = np.array([0.5, 1.5, -0.5, -1.5, 2.5], np.float32)
    assert operators()["Quantize"].run([half, one * 0 + 1], {})[0].tolist() == [0, 2, 0, -2, 2]


def test_sixteen_bits():
    """Of layers, to floats and back, and to 8 bits channel by channel."""
    rng = np.random.default_rng(10)
    for m, n, k in [(1, 1, 1), (7, 17, 33), (300, 24, 40), (40, 1000, 9)]:
        x, weight = some_bytes(rng, m, k), some_bytes(rng, n, k)
        multiplier, bias, _ = constants_for(rng, n, k)
        multiplier *= 200  # some beyond the range
        for more in ({}, {"x_zero_point": -128, "low": 0}, {"y_zero_point": 99, "high": 5000}):
            check("QDense", [x, weight, multiplier, bias], dtype="int16", **more)
        check("QDense", [x, weight, multiplier[:1]], dtype="int16")
        wide = rng.integers(-32768, 32768, (3, m, n), dtype=np.int16)
        zeros = some_bytes(rng, n)
        for factor in (multiplier, multiplier[:1], np.array(0.004, np.float32)):
            check("Requantize", [wide, factor, zeros], x_zero_point=-300)
            check("Requantize", [wide, factor])
            check("Requantize", [wide, factor, zeros[0]])
        scale = rng.random(n, np.float32) + np.float32(0.01)
        real = (rng.standard_normal((m, n)) * 10.0 ** rng.integers(-3, 6, (m, n))).astype("f4")
        real.flat[:: max(1, real.size // 5)] = np.resize([np.nan, np.inf, -np.inf, 0.5], 1)
        for steps in (scale, scale[0]):
            check("Quantize", [real, steps, np.full(1, -5, np.int16)], dtype="int16")
            check("Dequantize", [wide, steps])
    x, weight = some_bytes(rng, 2, 9, 8, 12), some_bytes(rng, 12, 3, 3, 1)
    multiplier, bias, _ = constants_for(rng, 12, 9)
    check("QConv", [x, weight, multiplier, bias], groups=12, dtype="int16", pads=(1, 1, 1, 1))
    for groups in (1, 2):
        weight = some_bytes(rng, 20, 3, 3, 12 // groups)
        multiplier, bias, _ = constants_for(rng, 20, 30)
        check("QConv", [x, weight, multiplier, bias], groups=groups, dtype="int16", strides=(2, 1))


@pytest.mark.parametrize("dtypes", [*itertools.product(["int8", "int16"], repeat=3)], ids=str)
def test_sums(dtypes):
    rng = np.random.default_rng(6)
    for size in (1, 31, 20_000):
        a, b = (
            rng.integers(np.iinfo(t).min, np.iinfo(t).max + 1, size, dtype=t) for t in dtypes[:2]
        )
        for ma, mb, shift in [(1, 1, 1), (8191, 5000, 14), (3, -8192, 9)]:
            check("QAdd", [a, b], 2, a_multiplier=ma, b_multiplier=mb, shift=shift,
                  a_zero_point=-7, b_zero_point=90, y_zero_point=-3, dtype=dtypes[2])  # fmt: skip
    check("QAdd", [a, b], 2, a_multiplier=1, b_multiplier=1, shift=1, low=-5, high=60)


def test_ties_of_sums_go_up():
    a, b = np.array([1, -1, 3, -3], np.int8), np.zeros(4, np.int8)
    found = operators()["QAdd"].run([a, b], {"a_multiplier": 1, "b_multiplier": 1, "shift": 1})[0]
    assert found.tolist() == [1, 0, 2, -1]


@pytest.mark.parametrize("function", ["max", "average"])
def test_pools(function):
    rng = np.random.default_rng(7)
    x = some_bytes(rng, 3, 9, 8, 37)
    for window in (
        {},
        {"kernel": (2, 3)},
        {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
        {"kernel": (2, 2), "dilations": (2, 1), "pads": (0, 1, 1, 0)},
    ):
        for padding in (False, True):
            check("QPool", [x], function=function, count_padding=padding, multiplier=0.7,
                  x_zero_point=-11, y_zero_point=4, **window)  # fmt: skip
    check("QPool", [x[0]], function=function, kernel=(4,), strides=(3,))


def test_tables():
    rng = np.random.default_rng(8)
    x, table = some_bytes(rng, 3, 700), some_bytes(rng, 256)
    check("QTable", [x, table])
    check("QTable", [some_bytes(rng, 20_000), table])
    assert operators()["QTable"].run([x, np.arange(-128, 128)], {})[0].tolist() == x.tolist()


def test_requantization_does_not_depend_on_batch_or_threads():
    """A small network of all of it, picture by picture and all at once."""
    rng = np.random.default_rng(9)
    constants, nodes = {}, []
    shapes = {"c1": (16, 3, 3, 3), "c2": (16, 3, 3, 1), "c3": (16, 1, 1, 16)}
    source = "x"
    for name, shape in shapes.items():
        multiplier, bias, _ = constants_for(rng, 16, 20)
        constants |= {f"{name} w": some_bytes(rng, *shape), f"{name} m": multiplier,
                      f"{name} b": bias}  # fmt: skip
        groups = 16 if shape[-1] == 1 else 1
        attributes = {"groups": groups, "pads": (shape[1] // 2, shape[2] // 2) * 2,
                      "x_zero_point": 3, "y_zero_point": 3}  # fmt: skip
        inputs = [source, *(f"{name} {part}" for part in "wmb")]
        nodes.append(Node("QConv", inputs, [name], attributes))
        source = name
    attributes = {"a_multiplier": 9000, "b_multiplier": 8000, "shift": 14}
    nodes.append(Node("QAdd", ["c1", "c3"], ["sum"], attributes))
    nodes.append(Node("QPool", ["sum"], ["pool"], {"function": "average"}))
    graph = Graph(
        nodes, [Value("x", "int8", ("N", 11, 9, 3))], [Value("pool", "int8", ("N", 1, 1, 16))],
        {name: Raw(a) for name, a in constants.items()},
    )  # fmt: skip
    model = CompressedModel(graph)
    x = some_bytes(rng, 9, 11, 9, 3)
    whole = model(x, n_threads=1)
    assert len(np.unique(whole)) > 20
    for threads in THREADS:
        assert_same_bits(model(x, n_threads=threads), whole)
        for i in range(len(x)):
            assert_same_bits(model(x[i : i + 1], n_threads=threads)[0], whole[i])


@pytest.mark.parametrize(
    ("operator", "shapes", "attributes", "message"),
    [
        ("QDense", [(2, 5), (3, 4)], {}, "does not go"),
        ("QDense", [(2, 65537), (3, 65537)], {}, "overflow"),
        ("QConv", [(1, 5, 5, 4), (3, 3, 3, 4)], {"groups": 3}, "groups"),
        ("QConv", [(1, 2, 5, 4), (3, 3, 3, 4)], {}, "smaller"),
        ("QConv", [(1, 5, 5, 4), (3, 3, 3, 4)], {"strides": (0, 1)}, "positive"),
    ],
)
def test_refused(operator, shapes, attributes, message):
    arrays = [np.zeros(shape, np.int8) for shape in shapes]
    graph = Graph(
        [Node(operator, ["x", "w", "m"], ["y"], attributes)],
        [Value("x", "int8", shapes[0])],
        [Value("y", "int8", ("a",) * len(shapes[0]))],
        {"w": Raw(arrays[1]), "m": Raw(np.ones(3, np.float32))},
    )
    with pytest.raises(GraphError, match=message):
        CompressedModel(graph).plan([shapes[0]])


def test_a_bias_that_could_overflow_is_refused():
    constants = {"w": Raw(np.full((2, 1000), 127, np.int8)), "m": Raw(np.ones(2, np.float32)),
                 "b": Raw(np.array([0, 2**31 - 1], np.int32))}  # fmt: skip
    graph = Graph(
        [Node("QDense", ["x", "w", "m", "b"], ["y"])], [Value("x", "int8", ("N", 1000))],
        [Value("y", "int8", ("N", 2))], constants,
    )  # fmt: skip
    with pytest.raises(GraphError, match="overflow"):
        CompressedModel(graph).plan([(1, 1000)])


class TestAffine:
    def test_values(self):
        values = np.array([[1, -2], [3, 127]], np.int8)
        weight = Affine(values, np.array([0.5, 2], np.float32), np.array([1, 0], np.int8))
        assert weight.decode().tolist() == [[0, -1.5], [6, 254]]
        assert (weight.shape, weight.dtype) == ((2, 2), np.float32)
        with pytest.raises(ValueError, match="zero points"):
            weight.int8()
        values, scales = Affine(values, np.array([0.5], np.float32)).int8()
        assert scales.tolist() == [0.5, 0.5]

    def test_parts(self):
        weight = Affine(np.full((2, 3, 1), -2, np.int8), np.ones(2, np.float32), bits=2)
        again = ENCODINGS["affine"].from_parts(weight.parts(), weight.attributes())
        assert_same_bits(again.decode(), weight.decode())
        assert again.bits == 2 and weight.nbytes == 6 + 8

    @pytest.mark.parametrize(
        ("parts", "bits", "message"),
        [
            ({"values": np.zeros((2, 2), np.uint8)}, 8, "int8"),
            ({"values": np.full((2, 2), 4, np.int8)}, 3, "3 bits"),
            ({}, 9, "bits"),
            ({}, "8", "bits"),
            ({"scales": np.ones(3, np.float32)}, 8, "scales"),
            ({"scales": np.array([1, np.nan], np.float32)}, 8, "finite"),
            ({"scales": np.array([1, -1], np.float32)}, 8, "negative"),
            ({"zero_points": np.zeros(1, np.int8)}, 8, "zero_points"),
            ({"more": np.zeros(1, np.int8)}, 8, "parts"),
        ],
    )
    def test_bad_parts(self, parts, bits, message):
        whole = {"values": np.zeros((2, 2), np.int8), "scales": np.ones(2, np.float32)}
        with pytest.raises(ValueError, match=message):
            Affine.from_parts(whole | parts, {"bits": bits})
