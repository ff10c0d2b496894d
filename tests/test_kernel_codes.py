"""Products with weights of few bits: kernels against the definition, bit for bit, by level."""

import numpy as np
import pytest
from nodes import level  # noqa: F401 - a fixture

from fastvq.runtime.codebook import Codebook
from fastvq.runtime.definitions.codes import has_levels, quantized_groups
from fastvq.runtime.graph import Graph, Node, Value
from fastvq.runtime.grouped import Grouped, Signs
from fastvq.runtime.ops import operators
from fastvq.runtime.plan import Plan
from fastvq.runtime.product import Product
from fastvq.runtime.registry import KernelCall


def grouped(rng, n, width, bits, group=0, symmetric=True):
    groups = -(-width // group) if group else 1
    scales = (rng.normal(size=(n, groups)) * 0.1).astype("f2")
    zeros = None if symmetric else rng.integers(0, 1 << bits, (n, groups))
    codes = rng.integers(0, 1 << bits, (n, width))
    return Grouped.of(codes, scales, zeros, bits=bits, group=group, exponent=-2)


def codebook(rng, n, width, bits, group=0, spread=127):
    groups = -(-width // group) if group else 1
    words = np.sort(rng.integers(0, spread + 1, (1, 1 << bits))) - spread // 3
    scales = rng.uniform(size=(n, groups)).astype("f2")
    codes = rng.integers(0, 1 << bits, (n, width))
    return Codebook.of(codes, words.astype("i1"), bits=bits, group=group, scales=scales)


def run(weight, x, bias=None, threads=1, **attributes):
    names = ("x", "weight", "bias")[: 2 + (bias is not None)]
    constants = {"weight": weight}
    if bias is not None:
        from fastvq.runtime.encoding import Raw

        constants["bias"] = Raw(bias)
    graph = Graph(
        [Node("CodedDense", names, ("y",), attributes)],
        [Value("x", "float32", x.shape)],
        [Value("y", "float32", (*x.shape[:-1], weight.shape[0]))],
        constants,
    )
    plan = Plan(graph, {"x": x.shape}, {}, threads)
    assert all(isinstance(step, KernelCall) for step in plan.steps)
    (y,) = plan.run([np.ascontiguousarray(x)])
    return y


def defined(weight, x, bias=None, **attributes):
    (y,) = operators()["CodedDense"].run([x, weight, bias], attributes)
    return y


def rows(rng, m, width):
    return rng.normal(size=(m, width)).astype("f4")


@pytest.mark.usefixtures("level")
class TestEveryLevel:
    @pytest.mark.parametrize("bits", range(1, 8))
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_bits(self, bits, symmetric):
        rng = np.random.default_rng(bits)
        weight = grouped(rng, 37, 150, bits, 64, symmetric)
        x, bias = rows(rng, 7, 150), rows(rng, 1, 37)[0]
        wanted = defined(weight, x, bias)
        np.testing.assert_array_equal(run(weight, x, bias), wanted, strict=True)

    @pytest.mark.parametrize("bits", range(1, 8))
    @pytest.mark.parametrize("spread", [15, 30, 64, 100, 127])
    def test_codebooks(self, bits, spread):
        rng = np.random.default_rng(bits)
        weight = codebook(rng, 21, 70, bits, 32, spread)
        x = rows(rng, 5, 70)
        np.testing.assert_array_equal(run(weight, x), defined(weight, x), strict=True)

    @pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 33])
    @pytest.mark.parametrize("width", [1, 31, 32, 33, 97, 4096])
    @pytest.mark.parametrize("group", [0, 5, 32, 96])
    def test_shapes(self, n, width, group):
        rng = np.random.default_rng(n * width)
        weight = grouped(rng, n, width, 4, group if group < width else 0)
        x = rows(rng, 3, width)
        np.testing.assert_array_equal(run(weight, x), defined(weight, x), strict=True)

    def test_the_largest_sums(self):
        weight = Codebook.of(
            np.ones((9, 65536), int), np.array([[-64, 63]], "i1"), scales=np.ones((9, 1), "f2")
        )
        x = np.ones((2, 65536), "f4")
        np.testing.assert_array_equal(run(weight, x), defined(weight, x), strict=True)
        np.testing.assert_allclose(run(weight, x), 65536 * 63)

    def test_no_sum_of_two_products_saturates(self):
        weight = Codebook.of(
            np.ones((9, 64), int), np.array([[0, 127]], "i1"), bits=4, scales=np.ones((9, 1), "f2")
        )
        x = np.full((1, 64), -2, "f4")
        np.testing.assert_allclose(run(weight, x), -2 * 64 * 127, rtol=1e-6)

    @pytest.mark.parametrize("bits", [2, 4, 6])
    def test_rows_alone_in_any_batch_at_any_number_of_threads(self, bits):
        rng = np.random.default_rng(0)
        weight, x = grouped(rng, 600, 256, bits, 128), rows(rng, 19, 256)
        whole = run(weight, x)
        np.testing.assert_array_equal(whole, defined(weight, x), strict=True)
        for m in (*range(1, 9), 11, 19):
            for threads in (1, 2, 5):
                np.testing.assert_array_equal(run(weight, x[:m], threads=threads), whole[:m])
        np.testing.assert_array_equal(run(weight, x[5:6]), whole[5:6])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_row_with_nan_or_infinity(self, bad):
        rng = np.random.default_rng(0)
        weight, x = grouped(rng, 10, 64, 4, 32), rows(rng, 3, 64)
        x[1, 40] = bad
        y = run(weight, x)
        assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()
        np.testing.assert_array_equal(y, defined(weight, x))

    @pytest.mark.parametrize("size", [0, 1e-44, 1e-37, 1e30])
    def test_rows_of_any_size(self, size):
        rng = np.random.default_rng(0)
        weight, x = grouped(rng, 10, 64, 4, 32), rows(rng, 3, 64) * np.float32(size)
        np.testing.assert_array_equal(run(weight, x), defined(weight, x))

    @pytest.mark.parametrize("exponent", [-20, -2, 0])
    def test_finite_rows_of_any_size_give_finite_answers(self, exponent):
        """Sums times the row's step are large, and what they are scaled by later is small."""
        scales = np.full((9, 2), np.float16(2**-14))
        weight = Grouped.of(np.full((9, 128), 15), scales, bits=4, group=64, exponent=exponent)
        x = np.full((1, 128), 3e38, "f4")
        exact = x.astype("f8") @ weight.decode().T.astype("f8")
        assert exact.max() < 3e38
        y = run(weight, x)
        np.testing.assert_allclose(y, exact, rtol=1e-6)
        np.testing.assert_array_equal(y, defined(weight, x), strict=True)

    @pytest.mark.parametrize(
        "attributes",
        [{"activation": "relu"}, {"activation": "clip", "alpha": -0.5, "beta": 6.0}],
    )
    def test_activations(self, attributes):
        rng = np.random.default_rng(0)
        weight, x = grouped(rng, 10, 64, 4), rows(rng, 2, 64).reshape(1, 2, 64)
        wanted = defined(weight, x, **attributes)
        np.testing.assert_array_equal(run(weight, x, **attributes), wanted)


def signs(rng, n, width, group=0):
    groups = -(-width // group) if group else 1
    scales = rng.uniform(size=(n, groups)).astype("f2")
    return Signs.of(rng.normal(size=(n, width)), scales, group=group)


def product(rng, n, width, d, bits, stages, dtype="f2"):
    books = (rng.normal(size=(stages, 1 << bits, d)) * 9).astype(dtype)
    codes = rng.integers(0, 1 << bits, (n, -(-width // d), stages))
    scales = rng.uniform(size=(n, 1)).astype("f4")
    return Product.of((n, width), codes, books, bits=bits, scales=scales)


def tables(rng, n, width):
    scales = rng.uniform(size=(1, 1)).astype("f4")
    yield grouped(rng, n, width, 4)
    yield grouped(rng, n, width, 3, 8)
    yield grouped(rng, n, width, 5, 8, symmetric=False)
    yield codebook(rng, n, width, 6, 16)
    yield Codebook.of(rng.integers(0, 9, (n, width)), rng.normal(size=(1, 9)).astype("f4"))
    yield Codebook.of(rng.integers(0, 999, (n, width)), rng.normal(size=(1, 999)).astype("f4"))
    yield Codebook.of(
        rng.integers(0, 2, (n, width)), np.array([[-3, 7]], "i1"), scales=scales, exponent=3
    )
    yield signs(rng, n, width, 8)
    yield product(rng, n, width, 4, 5, 1)
    yield product(rng, n, width, 3, 7, 2, "f4")


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("width", [1, 7, 33, 64])
@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_rows_of_a_table_are_decoded_as_they_are_asked_for(width, dtype):
    rng = np.random.default_rng(width)
    indices = rng.integers(-40, 40, (5, 6)).astype(dtype)
    for table in tables(rng, 40, width):
        graph = Graph(
            [Node("Gather", ("table", "i"), ("y",))],
            [Value("i", np.dtype(dtype).name, indices.shape)],
            [Value("y", "float32", (5, 6, width))],
            {"table": table},
        )
        for threads in (1, 3):
            plan = Plan(graph, {"i": indices.shape}, {}, threads)
            assert [step.kernel for step in plan.steps] == ["coded_rows.take"]
            (y,) = plan.run([indices])
            np.testing.assert_array_equal(y, table.decode()[indices], strict=True)
        with pytest.raises(IndexError, match="index number 0 is out of range"):
            plan.run([np.full((5, 6), 40, dtype)])


def test_steps_of_rows():
    q, steps = quantized_groups(np.array([[254, -127, 1, 0, 0]], "f4"), 2)
    np.testing.assert_array_equal(q, [[[127, -64], [127, 0], [0, 0]]])
    np.testing.assert_allclose(steps[0, :2], [2, 1 / 127])


def test_near_the_float_layer():
    rng = np.random.default_rng(0)
    weight, x = grouped(rng, 64, 512, 4, 32), rows(rng, 8, 512)
    wanted = x.astype("f8") @ weight.decode().T.astype("f8")
    error = np.linalg.norm(run(weight, x) - wanted) / np.linalg.norm(wanted)
    assert error < 0.006


def test_what_has_no_levels():
    rng = np.random.default_rng(0)
    books = Codebook.of(np.zeros((4, 4), int), np.zeros((1, 2), "f4"))
    assert has_levels(grouped(rng, 4, 4, 4)) and not has_levels(books)
    with pytest.raises(ValueError, match="levels"):
        defined(books, rows(rng, 1, 4))
