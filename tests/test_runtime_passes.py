"""Passes over graphs: what goes into products, and transposes that cancel."""

import numpy as np
import pytest

from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.encoding import Raw
from fastvq.runtime.fuse import fused
from fastvq.runtime.layout import settled
from fastvq.runtime.ops import operators
from fastvq.runtime.recognize import recognized

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # channels to the first, and to the last place


def random(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


class Building:
    """A graph of which the last value is the output; constants are given as arrays."""

    def __init__(self, *shape):
        self.input, self.nodes, self.constants = Value("x", "float32", shape), [], {}
        self.last = "x"

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants[name] = Raw(array)
        return name

    def add(self, operator, *inputs, **attributes):
        """A node on names, or arrays; the last value where there are none."""
        inputs = inputs or (self.last,)
        names = [i if isinstance(i, str) else self.constant(np.asarray(i)) for i in inputs]
        self.last = f"v{len(self.nodes)}"
        self.nodes.append(Node(operator, names, (self.last,), attributes))
        return self.last

    def first(self, operator, *inputs, **attributes):
        """A node that wants channels last, between two transposes, as importers write it."""
        turned = self.add("Transpose", inputs[0], order=LAST)
        self.add(operator, turned, *inputs[1:], **attributes)
        return self.add("Transpose", order=FIRST)

    def graph(self, n_dimensions, *outputs):
        names = outputs or (self.last,)
        values = [
            Value(n, "float32", tuple(f"d{n}{i}" for i in range(n_dimensions))) for n in names
        ]
        return Graph(self.nodes, [self.input], values, self.constants)


def by_definition(graph, x):
    """Every node as it stands."""
    values = {"x": x, **{name: tensor.decode() for name, tensor in graph.constants.items()}}
    for node in graph.nodes:
        inputs = [values[name] if name else None for name in node.inputs]
        outputs = operators()[node.operator].run(inputs, node.attributes)
        values.update(zip(node.outputs, outputs, strict=False))
    return [values[value.name] for value in graph.outputs]


def kinds(graph):
    return [node.operator for node in graph.nodes]


def check(graph, changed, x, expected):
    """The graph means what it meant, and has nodes of these operators left."""
    for before, after in zip(by_definition(graph, x), by_definition(changed, x), strict=True):
        assert before.shape == after.shape
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())
    assert kinds(changed) == expected
    found = CompressedModel(graph).run({"x": x})
    for before, after in zip(by_definition(graph, x), found, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


# ---- what goes into products -------------------------------------------------------------------


def test_bias_factors_and_activation_go_into_a_convolution():
    build = Building("N", 6, 7, 3)
    build.add("Conv", "x", random(0, 8, 3, 3, 3))
    build.add("Binary", build.last, random(1, 8), function="add")
    build.add("Binary", random(2, 1, 1, 1, 8), build.last, function="multiply")
    build.add("Binary", build.last, random(3, 8), function="subtract")
    build.add("Binary", build.last, np.float32(1.5), function="divide")
    build.add("Unary", function="clip", alpha=0.0, beta=6.0)
    graph = build.graph(4)
    check(graph, fused(graph), random(4, 2, 6, 7, 3), ["Conv"])


def test_a_product_with_a_constant_is_a_dense_layer():
    build = Building("N", 9)
    build.add("MatMul", "x", random(0, 9, 7))
    build.add("Binary", build.last, random(1, 7), function="add")
    build.add("Unary", function="relu")
    build.add("MatMul", build.last, random(2, 5, 7), transpose_b=True)
    graph = build.graph(2)
    check(graph, fused(graph), random(3, 4, 9), ["Dense", "Dense"])


def test_what_is_no_bias_stays():
    x = random(9, 4, 6, 7)
    for other, function in [
        (random(1, 6, 7), "add"),
        (random(1, 6, 1), "multiply"),
        (random(1, 2, 1, 1, 7), "add"),
        (random(1, 7), "power"),
        (np.zeros(7, np.float32), "divide"),
    ]:
        build = Building("N", 6, 7)
        build.add("Dense", "x", random(0, 7, 7))
        build.add("Binary", build.last, other, function=function)
        graph = build.graph(max(3, other.ndim))
        assert kinds(fused(graph)) == ["Dense", "Binary"]
    build = Building("N", 6, 7)
    build.add("Dense", "x", random(0, 7, 7))
    build.add("Binary", random(1, 7), build.last, function="subtract")
    graph = build.graph(3)
    check(graph, fused(graph), x, ["Dense", "Binary"])


def test_a_value_that_others_read_stays():
    build = Building("N", 7)
    dense = build.add("Dense", "x", random(0, 7, 7))
    relu = build.add("Unary", function="relu")
    build.add("Binary", dense, relu, function="add")
    graph = build.graph(2)
    check(graph, fused(graph), random(1, 3, 7), ["Dense", "Unary", "Binary"])
    outputs = [Value(n, "float32", ("N", 7)) for n in (dense, relu)]
    graph = Graph(graph.nodes[:2], graph.inputs, outputs, graph.constants)
    check(graph, fused(graph), random(1, 3, 7), ["Dense", "Unary"])


# ---- functions in several nodes ----------------------------------------------------------------


def gelu_of(build, x, order):
    """x · ½ · (1 + erf(x / √2)), in the orders that exporters write it in."""
    half, one = np.float32(0.5), np.float32(1)
    if order == "multiplied":
        build.add("Binary", x, np.float32(np.sqrt(0.5)), function="multiply")
    else:
        build.add("Binary", x, np.float32(np.sqrt(2)), function="divide")
    build.add("Unary", function="erf")
    gate = build.add("Binary", build.last, one, function="add")
    if order == "half of x":
        scaled = build.add("Binary", x, half, function="multiply")
        return build.add("Binary", scaled, gate, function="multiply")
    if order == "half of the gate":
        scaled = build.add("Binary", gate, half, function="multiply")
        return build.add("Binary", x, scaled, function="multiply")
    build.add("Binary", x, gate, function="multiply")
    return build.add("Binary", half, build.last, function="multiply")


@pytest.mark.parametrize("order", ["last", "multiplied", "half of x", "half of the gate"])
def test_gelu_is_recognized(order):
    build = Building("N", 9)
    gelu_of(build, build.add("Dense", "x", random(0, 7, 9)), order)
    graph = build.graph(2)
    found = recognized(graph)
    assert found.nodes[-1].attributes == {"function": "gelu"}
    check(graph, fused(found), random(1, 3, 9), ["Dense"])


@pytest.mark.parametrize(
    ("wanted", "gate"),
    [
        ("silu", [{"function": "sigmoid"}]),
        ("hard_swish", [{"function": "hard_sigmoid", "alpha": 1 / 6, "beta": 0.5}]),
        ("mish", [{"function": "softplus"}, {"function": "tanh"}]),
    ],
)
def test_gates_are_recognized(wanted, gate):
    for swapped in (False, True):
        build = Building("N", 9)
        x = build.add("Dense", "x", random(0, 7, 9))
        for attributes in gate:
            build.add("Unary", **attributes)
        build.add("Binary", *(x, build.last)[:: -1 if swapped else 1], function="multiply")
        graph = build.graph(2)
        found = recognized(graph)
        assert found.nodes[-1].attributes == {"function": wanted}
        check(graph, fused(found), random(1, 3, 9), ["Dense"])


def test_what_only_looks_alike_stays():
    other = np.float32(0.6)
    for change in ({"divide": 1.4}, {"add": 2.0}, {"multiply": 0.6}):
        build = Building("N", 9)
        build.add("Binary", "x", np.float32(change.get("divide", np.sqrt(2))), function="divide")
        build.add("Unary", function="erf")
        build.add("Binary", build.last, np.float32(change.get("add", 1)), function="add")
        build.add("Binary", "x", build.last, function="multiply")
        half = np.float32(change.get("multiply", 0.5))
        build.add("Binary", build.last, half, function="multiply")
        graph = build.graph(2)
        assert kinds(recognized(graph)) == kinds(graph)
    build = Building("N", 9)  # a gate of something else
    build.add("Binary", "x", other, function="multiply")
    build.add("Unary", function="sigmoid")
    build.add("Binary", "x", build.last, function="multiply")
    graph = build.graph(2)
    assert kinds(recognized(graph)) == kinds(graph)


# ---- transposes --------------------------------------------------------------------------------


def test_a_chain_of_channels_first_has_one_transpose():
    build = Building("N", 3, 12, 10)
    build.first("Conv", "x", random(0, 8, 3, 3, 3), pads=(1, 1, 1, 1))
    build.add("Binary", build.last, random(1, 8, 1, 1), function="multiply")
    build.add("Binary", build.last, random(2, 1, 8, 1, 1), function="add")
    relu = build.add("Unary", function="relu")
    build.first("Conv", relu, random(3, 8, 3, 3, 8), pads=(1, 1, 1, 1))
    total = build.add("Binary", relu, build.last, function="add")
    pooled = build.first("Pool", total, function="max", kernel=(2, 2), strides=(2, 2))
    build.add("Pad", pooled, np.array([0, 0, 1, 0, 0, 0, 0, 2]))
    padded = build.last
    build.add("Concat", padded, padded, axis=1)
    build.add("Softmax", axis=1)
    build.add("Flatten")
    build.add("Dense", build.last, random(4, 5, 16 * 7 * 7), random(5, 5))
    graph = build.graph(2)
    x = random(6, 3, 3, 12, 10)
    found = settled(graph)
    assert kinds(found).count("Transpose") == 1
    check(graph, fused(found), x, [
        "Transpose", "Conv", "Conv", "Binary", "Pool", "Pad", "Concat", "Softmax", "Flatten",
        "Dense",
    ])  # fmt: skip


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axes", [(2, 3), (1,), (-1,), (0, 2), None])
def test_reductions_in_another_order(axes, keep):
    build = Building("N", 3, 5, 4)
    build.first("Conv", "x", random(0, 6, 1, 1, 3))
    axes = () if axes is None else (np.array(axes),)
    build.add("Reduce", build.last, *axes, function="mean", keep=keep)
    rank = 4 if keep else 4 - (len(axes[0]) if axes else 4)
    graph = build.graph(rank)
    x = random(1, 2, 3, 5, 4)
    np.testing.assert_allclose(
        by_definition(settled(graph), x)[0], by_definition(graph, x)[0], rtol=1e-5, atol=1e-6
    )


def test_gates_of_a_squeezed_picture():
    """Values of one shape (N, C, 1, 1) that are spread over another."""
    build = Building("N", 4, 5, 6)
    value = build.first("Conv", "x", random(0, 8, 3, 3, 4))
    build.add("Reduce", value, np.array([2, 3]), function="mean")
    gate = build.first("Conv", build.last, random(1, 8, 1, 1, 8))
    gate = build.add("Unary", gate, function="sigmoid")
    build.add("Binary", value, gate, function="multiply")
    graph = build.graph(4)
    check(graph, settled(graph), random(2, 3, 4, 5, 6),
          ["Transpose", "Conv", "Reduce", "Conv", "Unary", "Binary", "Transpose"])  # fmt: skip


def test_what_does_not_know_orders_gets_its_own():
    build = Building("N", 3, 5, 4)
    value = build.first("Conv", "x", random(0, 6, 1, 1, 3))
    build.add("Reshape", value, np.array([-1, 10, 12]))
    graph = build.graph(3)
    check(
        graph, settled(graph), random(1, 2, 3, 5, 4), ["Transpose", "Conv", "Transpose", "Reshape"]
    )
    # A flattening that nobody reads but the outside, and one whose weight others read too.
    build = Building("N", 3, 5, 4)
    value = build.first("Conv", "x", random(0, 6, 1, 1, 3))
    flat = build.add("Flatten", value)
    graph = build.graph(2)
    check(
        graph, settled(graph), random(1, 2, 3, 5, 4), ["Transpose", "Conv", "Transpose", "Flatten"]
    )
    weight = build.constant(random(2, 120, 120))
    build.add("Dense", flat, weight)
    build.add("Dense", build.last, weight)
    graph = build.graph(2)
    check(graph, settled(graph), random(1, 2, 3, 5, 4),
          ["Transpose", "Conv", "Transpose", "Flatten", "Dense", "Dense"])  # fmt: skip


def test_outputs_keep_their_names_and_order():
    build = Building("N", 3, 5, 4)
    one = build.first("Conv", "x", random(0, 6, 1, 1, 3))
    two = build.add("Unary", function="relu")
    back = build.add("Transpose", "x", order=(0, 1, 2, 3))
    graph = build.graph(4, two, one, back)
    x = random(1, 2, 3, 5, 4)
    found = settled(graph)
    assert [value.name for value in found.outputs] == [two, one, back]
    for a, b in zip(by_definition(graph, x), by_definition(found, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_transposes_of_other_kinds():
    for order in [(), (1, 0), (0, 1)]:
        build = Building("N", 7)
        build.add("Transpose", "x", order=order)
        build.add("Unary", function="relu")
        build.add("Transpose", order=order)
        graph = build.graph(2)
        x = random(0, 3, 7)
        np.testing.assert_array_equal(by_definition(settled(graph), x)[0], np.maximum(x, 0))
