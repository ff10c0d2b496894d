"""Dense layers of codewords by tables: beside decoded weights and the definition, by level."""

import numpy as np
import pytest
from nodes import level  # noqa: F401 - a fixture

from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph, Node, Value
from fastvq.runtime.lowering import tables
from fastvq.runtime.ops import operators
from fastvq.runtime.plan import Plan
from fastvq.runtime.product import Product

RNG = np.random.default_rng(0)


def weight_of(n, width, d=4, bits=8, stages=1, scales="rows", dtype="f2"):
    books = (RNG.normal(size=(stages, (1 << bits) - (bits > 4), d)) * 9).astype(dtype)
    codes = RNG.integers(0, books.shape[1], (n, -(-width // d), stages))
    shape = {"rows": (n, 1), "one": (1, 1), None: None}[scales]
    scales = None if shape is None else RNG.uniform(0.1, 1, shape).astype("f4")
    return Product.of((n, width), codes, books, bits=bits, scales=scales)


def plan_of(weight, x, bias=None, threads=1, **attributes):
    constants = {"weight": weight} | ({} if bias is None else {"bias": Raw(bias)})
    graph = Graph(
        [Node("CodedDense", ("x", *constants), ("y",), attributes)],
        [Value("x", "float32", x.shape)],
        [Value("y", "float32", (*x.shape[:-1], weight.shape[0]))],
        constants,
    )
    return Plan(graph, {"x": x.shape}, {}, threads)


def run(weight, x, *more, **settings):
    plan = plan_of(weight, x, *more, **settings)
    assert [step.kernel for step in plan.steps] == ["tables.fill", "tables.add"]
    return plan.run([x])[0]


def rows(m, width):
    return RNG.normal(size=(m, width)).astype("f4")


def close(found, wanted, size):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6 * size)


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """By tables, with as many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(tables, "pays", lambda weight: True)
    monkeypatch.setattr(tables, "_THREAD_LOOKUPS", 1)
    monkeypatch.setattr(tables, "_THREAD_TABLES", 1)


@pytest.mark.usefixtures("level")
class TestEveryLevel:
    @pytest.mark.parametrize("n", [1, 7, 8, 9, 33, 2050])
    @pytest.mark.parametrize("width", [1, 4, 31, 64, 65, 97])
    def test_shapes(self, n, width):
        weight, x, bias = weight_of(n, width), rows(3, width), rows(1, n)[0]
        exact = x.astype("f8") @ weight.decode().T.astype("f8") + bias
        size = np.abs(exact).max()
        (wanted,) = operators()["CodedDense"].run([x, weight, bias], {})
        found = run(weight, x, bias)
        assert found.dtype == wanted.dtype == np.float32
        close(found, exact, size)
        close(wanted, exact, size)

    @pytest.mark.parametrize("bits", [1, 3, 4, 7, 8])
    @pytest.mark.parametrize(("d", "stages"), [(1, 1), (8, 1), (5, 3), (16, 2)])
    @pytest.mark.parametrize("scales", ["rows", "one", None])
    def test_codewords(self, bits, d, stages, scales):
        weight, x = weight_of(20, 70, d, bits, stages, scales), rows(2, 70)
        exact = x.astype("f8") @ weight.decode().T.astype("f8")
        close(run(weight, x), exact, np.abs(exact).max())

    def test_rows_alone_in_any_batch_at_any_number_of_threads(self):
        weight, x = weight_of(2100, 256, 8), rows(5, 256)
        whole = run(weight, x)
        for threads in (1, 2, 5):
            np.testing.assert_array_equal(run(weight, x, threads=threads), whole, strict=True)
            for i in range(5):
                np.testing.assert_array_equal(
                    run(weight, x[i : i + 1], threads=threads), whole[i : i + 1]
                )

    def test_activations(self):
        weight, x = weight_of(40, 64), rows(2, 64).reshape(1, 2, 64)
        y = run(weight, x)
        assert y.shape == (1, 2, 40)
        np.testing.assert_array_equal(run(weight, x, activation="relu"), np.maximum(y, 0))
        clipped = run(weight, x, activation="clip", alpha=-0.5, beta=6.0)
        np.testing.assert_array_equal(clipped, np.clip(y, -0.5, 6))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_row_with_nan_or_infinity(self, bad):
        weight, x = weight_of(10, 64), rows(3, 64)
        x[1, 40] = bad
        y = run(weight, x)
        assert not np.isfinite(y[1]).any() and np.isfinite(y[[0, 2]]).all()


def test_where_tables_pay(monkeypatch):
    monkeypatch.undo()
    large, small = weight_of(4096, 1024, 8, 1), weight_of(64, 64, 8, 1)
    assert tables.pays(large) and not tables.pays(small)
    x = rows(40, 1024)
    exact = x.astype("f8") @ large.decode().T.astype("f8")
    plan = plan_of(large, x)
    assert [step.kernel for step in plan.steps] == ["tables.fill", "tables.add"]
    (found,) = plan.run([x])
    close(found, exact, np.abs(exact).max())
    (alone,) = plan_of(large, x[:1]).run([x[:1]])
    np.testing.assert_array_equal(alone, found[:1])
