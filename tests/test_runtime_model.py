"""`CompressedModel`: what goes in, what comes out, what it tells of itself."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import fastvq
from fastvq import CompressedModel
from fastvq.runtime import Graph, Node, Value
from fastvq.runtime.encoding import Raw

RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(size=(3, 4)).astype("f4"), RNG.normal(size=3).astype("f4")
X = RNG.normal(size=(6, 4)).astype("f4")
LABELS = ["ant", "bee", "cat"]


def classifier(**metadata):
    """Scores by one dense layer; the largest is the prediction."""
    graph = Graph(
        [Node("Dense", ("x", "w", "b"), ("scores",)), Node("Unary", ("scores",), ("p",), SIGMOID)],
        [Value("x", "float32", ("N", 4))],
        [Value("scores", "float32", ("N", 3)), Value("p", "float32", ("N", 3))],
        {"w": Raw(WEIGHT), "b": Raw(BIAS)},
    )
    methods = {"predict": "scores", "decision_function": "scores", "predict_proba": "p"}
    return CompressedModel(graph, {"methods": methods, "classes": LABELS, **metadata})


def adder(dtype="float32"):
    """Two inputs that share a dimension, and another without."""
    graph = Graph(
        [Node("Binary", ("a", "b"), ("y",), {"function": "add"})],
        [Value("a", dtype, ("N", 2)), Value("b", dtype, ("N", 2))],
        [Value("y", dtype, ("N", 2))],
        {},
    )
    return CompressedModel(graph)


SIGMOID = {"function": "sigmoid"}
SCORES = X @ WEIGHT.T + BIAS


class TestMethods:
    def test_predict_gives_labels(self):
        wanted = np.array(LABELS)[SCORES.argmax(axis=1)]
        assert list(classifier().predict(X)) == list(wanted)

    def test_predict_of_class_numbers(self):
        graph = Graph([], [Value("i", "int64", ("N",))], [Value("i", "int64", ("N",))], {})
        metadata = {"methods": {"predict": "i"}, "classes": np.array([10, 20, 30])}
        found = CompressedModel(graph, metadata).predict([2, 0])
        assert found.dtype == np.int64 and list(found) == [30, 10]

    def test_several_outputs(self):
        model = classifier(
            methods={"predict": ["scores", "p"], "predict_proba": ["scores", "p"]},
            classes=[LABELS, [7, 8, 9]],
        )
        assert model.predict(X).shape == (6, 2)
        graph = Graph([], [Value("i", "int64", ("N", 2))], [Value("i", "int64", ("N", 2))], {})
        metadata = {"methods": {"predict": "i"}, "classes": [[10, 20], [7, 8, 9]]}
        found = CompressedModel(graph, metadata).predict([[0, 2], [1, 0]])
        assert found.tolist() == [[10, 9], [20, 7]]
        assert [p.shape for p in model.predict_proba(X)] == [(6, 3)] * 2

    def test_probabilities_and_scores(self):
        model = classifier()
        np.testing.assert_allclose(model.decision_function(X), SCORES, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.predict_proba(X), 1 / (1 + np.exp(-SCORES)), rtol=1e-5)

    def test_only_what_is_asked_for_is_computed(self):
        model = classifier()
        model.decision_function(X)
        (plan,) = model._plans.values()
        assert [node.operator for node in plan.labels] == ["Dense"]
        assert model.run({"x": X}, ["p"])[0].shape == (6, 3)
        with pytest.raises(ValueError, match="no output q, only .*scores"):
            model.run({"x": X}, ["q"])

    def test_a_method_that_the_model_has_not(self):
        with pytest.raises(AttributeError, match="no transform; its methods: predict, dec"):
            classifier().transform(X)
        with pytest.raises(AttributeError, match="none: call the model itself"):
            adder().predict(X)

    def test_methods_of_outputs_that_are_none(self):
        with pytest.raises(ValueError, match="predict is to give 'z'"):
            classifier(methods={"predict": "z"})
        with pytest.raises(TypeError, match="no name"):
            classifier(methods={"predict": 3})


class TestInputs:
    @pytest.mark.parametrize(
        "rows",
        [
            X.astype(np.float64),
            X.astype(np.float16),
            np.asfortranarray(X),
            np.repeat(X, 2, axis=0)[::2],
            X.tolist(),
            X.astype(object),
            pd.DataFrame(X),
        ],
        ids=["float64", "float16", "Fortran", "strided", "list", "object", "DataFrame"],
    )
    def test_forms(self, rows):
        np.testing.assert_allclose(classifier()(rows)[0], SCORES, rtol=2e-3, atol=2e-3)

    def test_integers_and_bools_pass(self):
        ones = classifier()(np.ones((2, 4)))[0]
        for dtype in (int, np.uint8, bool):
            np.testing.assert_array_equal(classifier()(np.ones((2, 4), dtype))[0], ones)

    def test_names(self):
        a, b = X[:, :2], X[:, 2:]
        for found in (adder()(a, b), adder()(a, b=b), adder()(b=b, a=a)):
            np.testing.assert_array_equal(found, a + b)

    @pytest.mark.parametrize(
        ("arrays", "named", "said"),
        [
            ((X,), {}, "input b is missing"),
            ((), {}, "input a, b is missing"),
            ((X, X, X), {}, r"takes 2 inputs \(a, b\), got 3"),
            ((X, X), {"a": X}, "input a is given twice"),
            ((X, X), {"c": X}, "no input c, only a, b"),
        ],
    )
    def test_missing_and_extra(self, arrays, named, said):
        with pytest.raises(TypeError, match=said):
            adder()(*arrays, **named)

    @pytest.mark.parametrize("shape", [(6, 5), (4,), (1, 6, 4), (), (6, 0)])
    def test_wrong_shapes(self, shape):
        with pytest.raises(ValueError, match=r"input 'x' must have shape \(N, 4\), got"):
            classifier()(np.zeros(shape))

    def test_named_dimensions_are_one_number(self):
        with pytest.raises(ValueError, match=r"'b' must have shape \(N, 2\) with N = 6, got"):
            adder()(X[:, :2], X[:3, :2])

    @pytest.mark.parametrize("rows", [X.astype(complex), X.astype(str), [["a"] * 4], [[{}] * 4]])
    def test_wrong_dtypes(self, rows):
        with pytest.raises(TypeError, match="input 'x' "):
            classifier()(rows)

    def test_real_numbers_are_no_integers(self):
        with pytest.raises(TypeError, match="input 'a' must be int64, got float32"):
            adder("int64")(X[:, :2], X[:, :2])

    def test_ragged_and_sparse(self):
        with pytest.raises(ValueError, match="not an array"):
            classifier()([[1, 2], [3]])
        with pytest.raises(TypeError, match="toarray"):
            classifier()(scipy.sparse.csr_array(X))

    def test_no_rows(self):
        assert classifier()(np.zeros((0, 4)))[0].shape == (0, 3)

    def test_columns_are_those_of_the_fit(self):
        model = classifier(feature_names=["p", "q", "r", "s"])
        table = pd.DataFrame(X, columns=["p", "q", "r", "s"])
        np.testing.assert_array_equal(model(table)[0], model(X)[0])
        with pytest.raises(ValueError, match="columns must be p, q, r, s, in this order"):
            model(table[["q", "p", "r", "s"]])

    def test_nan_and_infinity_pass_through(self):
        rows = X.copy()
        rows[1, 2], rows[3, 0] = np.nan, np.inf
        found = classifier()(rows)[0]
        assert np.isnan(found[1]).all() and np.isinf(found[3]).all()
        clean = [0, 2, 4, 5]
        np.testing.assert_array_equal(found[clean], classifier()(X)[0][clean])

    def test_the_input_is_not_written_into(self):
        rows = X.copy()
        rows.flags.writeable = False
        first = classifier()(rows)[0]
        first[:] = 0
        np.testing.assert_array_equal(rows, X)


class TestPromises:
    def test_a_row_alone_and_in_any_batch_at_any_thread_count(self):
        rows = RNG.normal(size=(700, 4)).astype("f4")
        model = classifier()
        whole = model(rows, n_threads=1)[1]
        for n_threads in (2, 5):
            np.testing.assert_array_equal(model(rows, n_threads=n_threads)[1], whole)
        alone = np.concatenate([model(row[None])[1] for row in rows[:50]])
        np.testing.assert_array_equal(alone, whole[:50])

    def test_threads_that_call_one_model(self):
        model = classifier()
        batches = [RNG.normal(size=(n, 4)).astype("f4") for n in (1, 2, 3, 50) * 50]
        wanted = [model(batch)[1] for batch in batches]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda batch: model(batch)[1], batches))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_plans_of_many_shapes_are_not_kept_for_ever(self):
        model = classifier()
        for n in range(40):
            model(np.zeros((n, 4)))
        assert len(model._plans) <= 16


class TestItself:
    def test_what_it_is(self):
        model = classifier()
        assert [v.name for v in model.inputs] == ["x"] and len(model.outputs) == 2
        assert repr(model) == (
            "CompressedModel(x: float32 (N, 4) -> scores: float32 (N, 3), p: float32 (N, 3); "
            "2 nodes, 15 values)"
        )

    def test_n_threads(self):
        model = CompressedModel(classifier().graph, n_threads=3)
        assert model.plan([(2, 4)]).threads == 3
        assert model.plan([(2, 4)], 1).threads == 1
        with pytest.raises(ValueError, match="n_threads"):
            model(X, n_threads=0)

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies(self, again):
        model = classifier()
        model(X)
        other = again(model)
        assert not other._plans
        np.testing.assert_array_equal(other(X)[1], model(X)[1])
        assert list(other.predict(X)) == list(model.predict(X))

    def test_a_loaded_model_is_pickled_whole(self, tmp_path):
        classifier().save(tmp_path / "m")
        blob = pickle.dumps(fastvq.load(tmp_path / "m"))
        (tmp_path / "m").unlink()
        np.testing.assert_array_equal(pickle.loads(blob)(X)[1], classifier()(X)[1])

    def test_report(self):
        report = classifier().report()
        assert report.column("tensor") == ["w", "b"]
        assert report[0]["shape"] == (3, 4) and report[0]["bits"] == 32
        assert report.totals["bytes of the file"] == classifier().nbytes
        assert "3 x 4" in repr(report) and "float32" in repr(report)

    def test_profile(self):
        profile = classifier().profile(X, seconds=0.01)
        assert profile.column("operator") == ["Dense", "Unary"]
        assert profile.column("weight bytes")[0] >= WEIGHT.nbytes
        assert all(row["us"] >= 0 for row in profile) and sum(profile.column("share")) <= 1
        assert profile.totals["runs"] >= 3
        lines = repr(profile).splitlines()
        assert lines[0].split()[:4] == ["layer", "operator", "kernel", "us"]

    def test_compare(self):
        model = classifier()
        same = model.compare(X, reference=model)
        assert same.column("max |difference|") == [0, 0]
        assert same.column("SQNR dB") == [math.inf] * 2 and same.column("agreement") == [1, 1]
        shifted = SCORES.copy()
        shifted[0] = -10 * shifted[0]
        (row,) = CompressedModel(
            Graph(model.graph.nodes[:1], model.inputs, model.outputs[:1], model.graph.constants)
        ).compare(X, reference=shifted)
        assert row["max |difference|"] == pytest.approx(abs(SCORES - shifted).max(), rel=1e-5)
        assert row["agreement"] == pytest.approx(5 / 6)
        with pytest.raises(ValueError, match="2 outputs, and a reference of 1"):
            model.compare(X, reference=SCORES)

    def test_comparison_of_values_that_are_not_finite(self):
        graph = Graph([], [Value("x", "float32", ("N",))], [Value("x", "float32", ("N",))], {})
        values = np.array([np.nan, np.inf, -np.inf, 1], "f4")
        (row,) = CompressedModel(graph).compare(values, reference=values)
        assert row["max |difference|"] == 0 and row["SQNR dB"] == math.inf
        (row,) = CompressedModel(graph).compare(values, reference=np.zeros(4))
        assert math.isnan(row["max |difference|"]) or row["max |difference|"] == math.inf


class TestCompress:
    @pytest.mark.parametrize(
        "before",
        [
            "",
            "import fastvq.compress",
            "from fastvq.compress import importers",
            "import fastvq.cli",
        ],
    )
    def test_the_name_is_a_function_whatever_is_imported_first(self, run_python, before):
        code = f"""
{before}
import inspect
import fastvq
from fastvq import compress
import numpy as np
assert compress is fastvq.compress
assert "scheme" in inspect.signature(compress).parameters
print(fastvq.compress({{"a": np.ones(2)}})())
from fastvq.compress import compress as function
assert function({{"a": np.ones(2)}}).nbytes == fastvq.compress({{"a": np.ones(2)}}).nbytes
"""
        assert run_python(code).stdout == "[1. 1.]\n"

    def test_float16(self):
        model = classifier()
        halved = fastvq.compress(model, scheme="float16", metadata={"task": "classification"})
        constants = halved.graph.constants
        assert constants["w"].scheme == "float16" and constants["b"].scheme == "float32"
        assert halved.metadata["classes"] == LABELS and halved.metadata["task"]
        np.testing.assert_array_equal(halved(X)[0].dtype, np.float32)
        assert halved.compare(X, reference=model)[0]["SQNR dB"] > 55

    def test_values_beyond_float16_stay(self):
        model = fastvq.compress({"a": np.array([1e6], "f4"), "b": np.ones(3, "f4")})
        report = fastvq.compress(model, scheme="float16").report()
        assert report.column("scheme") == ["float32", "float16"]

    def test_a_mapping(self, tmp_path):
        arrays = {"a/b": X, "c": np.arange(3), "d": np.array(2.5)}
        fastvq.compress(arrays).save(tmp_path / "w")
        found = fastvq.load(tmp_path / "w")()
        for one, other in zip(found, arrays.values(), strict=True):
            np.testing.assert_array_equal(one, other)
        with pytest.raises(TypeError, match="names of weights"):
            fastvq.compress({1: X})

    def test_what_is_no_model(self):
        with pytest.raises(TypeError, match="model must be .*, got list"):
            fastvq.compress([1, 2])
        with pytest.raises(ValueError, match="scheme must be one of float32, float16"):
            fastvq.compress({}, scheme="tea")


def test_values_known_beforehand_are_read_as_they_are():
    """A definition may give a view: kernels would read past what it shows."""
    graph = Graph(
        [
            Node("Expand", ("row", "shape"), ("rows",)),
            Node("Transpose", ("rows",), ("columns",), {"order": (1, 0)}),
            Node("Binary", ("x", "columns"), ("y",), {"function": "add"}),
        ],
        [Value("x", "float32", ("N", 3, 4))],
        [Value("y", "float32", ("N", 3, 4))],
        {"row": Raw(np.array([1, 2, 3], np.float32)), "shape": Raw(np.array([4, 3]))},
    )
    y = CompressedModel(graph)(np.zeros((2, 3, 4), np.float32))
    np.testing.assert_array_equal(y, np.broadcast_to([[1], [2], [3]], (2, 3, 4)))
