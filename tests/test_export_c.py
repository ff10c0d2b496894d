"""`to_c`: headers compile without a warning, and compute what the model computes."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

import fastvq
from fastvq.compress.exporters import c
from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.affine import Affine
from fastvq.runtime.encoding import Raw

COMPILER = shutil.which(os.environ.get("CC", "cc"))
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O1"]
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler: cc")

# Reads rows and writes the outputs of each, by a loop in C over the function for one.
LOOP = """
#define {guard}_IMPLEMENTATION
#include "{name}.h"
#include "{name}.h"

void rows(long n, {parameters});
void rows(long n, {parameters})
{{
    for (long row = 0; row < n; row++) {{
        {name}_run({arguments});
    }}
}}
"""


def compiled(model, folder, name="model"):
    """A function that gives the outputs of the model in C for rows of its only input."""
    folder = Path(tempfile.mkdtemp(dir=folder))  # a library that is loaded may not be overwritten
    source = c.to_c(model.graph, model.metadata, name)
    model.to_c(folder / f"{name}.h")
    values = [*model.graph.inputs, *model.graph.outputs]
    types = [c.TYPES[value.dtype] for value in values]
    sizes = [int(np.prod([n for n in value.shape if not isinstance(n, str)])) for value in values]
    parameters = [f"{t} *a{i}" for i, t in enumerate(types)]
    arguments = [f"a{i} + row * {size}" for i, size in enumerate(sizes)]
    (folder / "loop.c").write_text(LOOP.format(
        name=source.name, guard=source.name.upper(), parameters=", ".join(parameters),
        arguments=", ".join(arguments),
    ))  # fmt: skip
    library = folder / "loop.so"
    command = [COMPILER, *FLAGS, "-fPIC", "-shared", "loop.c", "-o", library, "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    rows = ctypes.CDLL(str(library)).rows

    def run(x):
        x = np.ascontiguousarray(x, model.graph.inputs[0].dtype)
        shapes = [[len(x) if isinstance(n, str) else n for n in v.shape] for v in values[1:]]
        found = [np.empty(shape, v.dtype) for shape, v in zip(shapes, values[1:], strict=True)]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, *found)]
        rows(ctypes.c_long(len(x)), *pointers)
        return found

    return run


def check(model, x, folder, *, exactly=False, rtol=1e-5, labels=0.0):
    """Outputs of the header against those of the runtime."""
    x = np.asarray(x, model.graph.inputs[0].dtype)
    wanted = model.run({model.input_names[0]: x})
    for found, value in zip(compiled(model, folder)(x), wanted, strict=True):
        if value.dtype.kind != "f":
            assert np.mean(found != value) <= labels
        elif exactly:
            np.testing.assert_array_equal(found, value)
        else:
            np.testing.assert_allclose(found, value, rtol=rtol, atol=rtol * np.abs(value).max())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Histogram boosting waits long for threads of a busy machine."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype("f4")[:700], y[:700]


@pytest.fixture(scope="module")
def mlp(digits):
    return MLPClassifier((70, 33), max_iter=8, random_state=0).fit(*digits)


@needs_compiler
class TestNetworks:
    @pytest.mark.parametrize(
        "settings",
        [
            {"scheme": "float32"}, {"scheme": "float16"}, {"scheme": "int4"},
            {"scheme": "int4", "bits": 3, "group": 24, "symmetric": False},
            {"scheme": "int4", "bits": 7, "group": 0}, {"scheme": "codebook", "bits": 3},
            {"scheme": "codebook", "per": "row"}, {"scheme": "codebook", "per": "group", "bits": 5},
            {"scheme": "product", "group": 3, "bits": 9, "stages": 2},
            {"scheme": "product", "group": 8}, {"scheme": "sign", "group": 30},
            {"scheme": "int4", "bits": 3, "outliers": 0.02},
            {"scheme": "auto", "size_budget": 6500},
        ],
        ids=str,
    )  # fmt: skip
    def test_schemes(self, mlp, digits, settings, tmp_path):
        examples = {} if "float" in settings["scheme"] else {"X": digits[0][:200]}
        check(fastvq.compress(mlp, **examples, **settings), digits[0][:99], tmp_path)

    @pytest.mark.parametrize(
        "settings",
        [
            {"scheme": "int8"}, {"scheme": "int8", "activations": "static"},
            {"scheme": "int8", "activations": "static", "steps": "tensor"},
            {"scheme": "int4", "activations": "dynamic"},
            {"scheme": "codebook", "activations": "dynamic", "group": 24, "bits": 3},
        ],
        ids=str,
    )  # fmt: skip
    def test_whole_numbers(self, mlp, digits, settings, tmp_path):
        """Only the last layer is of floats: sums before it are exact, so that steps agree."""
        model = fastvq.compress(mlp, *digits, **settings)
        check(model, digits[0][:99], tmp_path)

    @pytest.mark.parametrize("activation", ["tanh", "logistic", "identity"])
    def test_activations_and_two_classes(self, digits, activation, tmp_path):
        X, y = digits
        model = MLPClassifier((9,), activation=activation, max_iter=3, random_state=0)
        check(fastvq.compress(model.fit(X, y > 4)), X[:99], tmp_path)

    @pytest.mark.parametrize(
        "estimator",
        [
            make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(7,), max_iter=5)),
            make_pipeline(MinMaxScaler(), Ridge()), Ridge(),
        ],
    )  # fmt: skip
    def test_regression(self, estimator, tmp_path):
        X, y = load_diabetes(return_X_y=True)
        check(fastvq.compress(estimator.fit(X, y)), X[:99], tmp_path)

    def test_linear(self, digits, tmp_path):
        X, y = digits
        labels = np.array([*"abcdefghi", '"?\\ \n?=é/*'])[y]
        model = fastvq.compress(LogisticRegression(max_iter=20).fit(X, labels), scheme="float16")
        check(model, X[:99], tmp_path)
        assert '"\\042\\077\\134 \\012\\077=\\303\\251/*"' in model.to_c()

    def test_affine_weights(self, tmp_path):
        rng = np.random.default_rng(0)
        q = rng.integers(-8, 8, (5, 12)).astype(np.int8)
        scales = rng.uniform(0.1, 1, 5).astype("f4")
        for weight in (
            Affine(q, scales), Affine(q, scales[:1], np.int8([3])),
            Affine(q, scales, np.arange(5, dtype=np.int8)),
        ):  # fmt: skip
            check(dense(weight), rng.normal(size=(9, 12)), tmp_path)

    def test_infinite_values(self, mlp, digits, tmp_path):
        """A row that is not finite is told as such, and does not touch another one."""
        x = digits[0][:4].copy()
        x[1, 3], x[2, 5] = np.inf, np.nan
        for settings in ({}, {"scheme": "int8"}, {"scheme": "int4", "activations": "dynamic"}):
            model = fastvq.compress(mlp, digits[0], **settings) if settings else None
            model = model or fastvq.compress(mlp)
            (_, found), wanted = compiled(model, tmp_path)(x), model.predict_proba(x)
            np.testing.assert_allclose(found[[0, 3]], wanted[[0, 3]], rtol=1e-5, atol=1e-6)


def dense(weight, **attributes):
    n_out, n_in = weight.shape
    return CompressedModel(Graph(
        [Node("Dense", ("x", "w"), ("y",), attributes)], [Value("x", "float32", ("N", n_in))],
        [Value("y", "float32", ("N", n_out))], {"w": weight},
    ))  # fmt: skip


@needs_compiler
class TestTrees:
    @pytest.mark.parametrize(
        "estimator",
        [
            RandomForestClassifier(12, max_depth=6, random_state=0),
            GradientBoostingClassifier(n_estimators=3, random_state=0),
            HistGradientBoostingClassifier(max_iter=2, random_state=0),
            DecisionTreeClassifier(random_state=0),
        ],
        ids=lambda e: type(e).__name__,
    )  # fmt: skip
    @pytest.mark.parametrize("scheme", ["float32", "float16", "int8"])
    def test_classifiers(self, digits, estimator, scheme, tmp_path):
        X, y = digits
        examples = {"X": X, "y": y} if scheme == "int8" else {}
        model = fastvq.compress(estimator.fit(X, y), **examples, scheme=scheme)
        check(model, X[:200], tmp_path, rtol=1e-6)

    def test_regressors(self, tmp_path):
        X, y = load_diabetes(return_X_y=True)
        for estimator in (
            ExtraTreesRegressor(7, max_depth=7, random_state=0),
            HistGradientBoostingRegressor(max_iter=4),
        ):
            check(fastvq.compress(estimator.fit(X, y)), X[:99], tmp_path, rtol=1e-6)

    def test_missing_values_and_categories(self, tmp_path):
        rng = np.random.default_rng(0)
        X = rng.integers(0, 30, (600, 4)).astype("f4")
        y = (X[:, 0] % 3 == 1) * 4 + X[:, 1] / 9 + rng.normal(size=600) / 5
        X[rng.uniform(size=X.shape) < 0.1] = np.nan
        estimator = HistGradientBoostingRegressor(max_iter=4, categorical_features=[0, 2])
        model = fastvq.compress(estimator.fit(X, y))
        X[:5, 0] = [300, -1, 0.5, np.inf, 255]
        check(model, X, tmp_path, rtol=1e-6)


@needs_compiler
class TestOperators:
    def run(self, nodes, size, constants, outputs, folder, x=None):
        rng = np.random.default_rng(0)
        graph = Graph(nodes, [Value("x", "float32", ("N", *size))], outputs,
                      {name: Raw(np.asarray(a)) for name, a in constants.items()})  # fmt: skip
        x = rng.normal(size=(9, *size)).astype("f4") if x is None else x
        check(CompressedModel(graph), x, folder)

    @pytest.mark.parametrize("function", sorted(c._UNARY))
    def test_functions_of_one_value(self, function, tmp_path):
        if function == "not":
            nodes = [Node("Cast", ("x",), ("b",), {"dtype": "bool"}),
                     Node("Unary", ("b",), ("y",), {"function": "not"})]  # fmt: skip
        else:
            nodes = [Node("Unary", ("x",), ("y",), {"function": function, "alpha": 0.25,
                                                    "beta": 0.75})]  # fmt: skip
        kind = "bool" if function in ("not", "isnan", "isinf") else "float32"
        low = 1.1 if function in ("log", "sqrt", "acosh") else -0.9
        x = np.linspace(low, low + 1.8, 40, dtype="f4").reshape(10, 4)
        self.run(nodes, (4,), {}, [Value("y", kind, ("N", 4))], tmp_path, x)

    @pytest.mark.parametrize("function", sorted(c._BINARY))
    def test_functions_of_two_values(self, function, tmp_path):
        nodes, kind = [], "float32"
        names = "x", "other"
        if function in ("and", "or", "xor"):
            nodes = [
                Node("Binary", ("x", "other"), ("b",), {"function": "greater"}),
                Node("Unary", ("b",), ("d",), {"function": "not"}),
            ]
            names, kind = ("b", "d"), "bool"
        if function in ("equal", "less", "less_equal", "greater", "greater_equal"):
            kind = "bool"
        nodes.append(Node("Binary", names, ("y",), {"function": function}))
        x = np.random.default_rng(0).uniform(0.1, 3, (9, 3, 4)).astype("f4")
        self.run(nodes, (3, 4), {"other": np.float32([[1], [2], [0.5]])},
                 [Value("y", kind, ("N", 3, 4))], tmp_path, x)  # fmt: skip

    def test_movement(self, tmp_path):
        nodes = [
            Node("Transpose", ("x",), ("t",), {"order": (0, 2, 1)}),
            Node("Slice", ("t", "one", "four", "two"), ("s",)),
            Node("Gather", ("s", "places"), ("g",), {"axis": 2}),
            Node("Split", ("x",), ("a", "b"), {"axis": 2, "sizes": (1, 4)}),
            Node("Flatten", ("g",), ("f",)), Node("Flatten", ("b",), ("e",)),
            Node("Flatten", ("a",), ("d",)),
            Node("Concat", ("f", "e", "d"), ("y",), {"axis": 1}),
            Node("Tile", ("d", "twice"), ("z",)),
            Node("Where", ("c", "z", "zero"), ("w",)),
            Node("Binary", ("z", "zero"), ("c",), {"function": "greater"}),
            Node("Reduce", ("x", "axes"), ("m",), {"function": "mean"}),
            Node("Reduce", ("x", "two"), ("n",), {"function": "max", "keep": False}),
            Node("Softmax", ("x",), ("l",), {"log": True}),
        ]  # fmt: skip
        constants = {
            "one": [1], "four": [4], "two": [2], "places": [1, 0, 0], "twice": [1, 2],
            "axes": [1, 2], "zero": np.float32([0]),
        }  # fmt: skip
        outputs = [Value("y", "float32", ("N", 15 + 12 + 3)), Value("w", "float32", ("N", 6)),
                   Value("m", "float32", ("N", 1, 1)), Value("n", "float32", ("N", 3)),
                   Value("l", "float32", ("N", 3, 5))]  # fmt: skip
        self.run(nodes, (3, 5), constants, outputs, tmp_path)

    def test_several_rows_of_a_layer(self, digits, tmp_path):
        """As sequences of a fixed length have."""
        rng = np.random.default_rng(0)
        constants = {"w": Raw(rng.normal(size=(40, 64)).astype("f4")),
                     "v": Raw(rng.normal(size=(40, 40)).astype("f4"))}  # fmt: skip
        graph = Graph(
            [Node("Dense", ("x", "w"), ("h",), {"activation": "relu"}),
             Node("Dense", ("h", "v"), ("double",), {"activation": "tanh"})],
            [Value("x", "float32", ("N", 3, 64))], [Value("double", "float32", ("N", 3, 40))],
            constants,
        )  # fmt: skip
        model, x = CompressedModel(graph), rng.normal(size=(20, 3, 64)).astype("f4")
        check(model, x, tmp_path)
        for settings in ({"scheme": "int8"}, {"scheme": "int4", "activations": "dynamic"}):
            check(fastvq.compress(model, x, **settings), x, tmp_path)


class TestSources:
    def test_arrays_are_those_of_the_header(self, mlp, digits, tmp_path):
        model = fastvq.compress(mlp, digits[0], scheme="int4")
        model.to_c(tmp_path / "digits.h")
        with np.load(tmp_path / "digits.npz") as arrays:
            for tensor, name in (("weight", "digits_weight_codes"), ("bias", "digits_bias")):
                part = model.graph.constants[tensor].parts()
                np.testing.assert_array_equal(arrays[name], part.get("codes", part.get("")))
            total = sum(array.nbytes for array in arrays.values())
        text = (tmp_path / "digits.h").read_text()
        assert f"{total:,} bytes of constants" in text and "digits_run" in text
        assert all(len(line) <= 120 for line in text.splitlines())

    def test_names(self, mlp, tmp_path):
        assert "void n2_rows_run(const float *x" in fastvq.compress(mlp).to_c(name="2 rows")
        weight = Raw(np.ones((2, 3), "f4"))
        for odd in ("for", "exp", "row", "a.b/c", "-", "x y"):
            nodes = [Node("Dense", (odd, "dot"), ("run",))]
            graph = Graph(nodes, [Value(odd, "float32", ("N", 3))],
                          [Value("run", "float32", ("N", 2))], {"dot": weight})  # fmt: skip
            model = CompressedModel(graph)
            assert "float model_dot_2[6]" in model.to_c()
            if COMPILER:
                check(model, np.ones((2, 3)), tmp_path)

    def test_what_cannot_be_written(self, digits):
        X, y = digits
        with pytest.raises(ValueError, match=r"KNeighbors\w+.*C does not write"):
            fastvq.compress(KNeighborsClassifier(1).fit(X[:50], y[:50])).to_c()
        nodes = [Node("Dense", ("x", "w"), ("y",), name="layer one")]
        weight = Raw(np.ones((2, 3), "f4"))
        graph = Graph(nodes, [Value("x", "float32", ("N", "T", 3))],
                      [Value("y", "float32", ("N", "T", 2))], {"w": weight})  # fmt: skip
        with pytest.raises(ValueError, match="fixed size"):
            CompressedModel(graph).to_c()
        graph = Graph(nodes, [Value("x", "float32", ("N", 3)), Value("w", "float32", (2, 3))],
                      [Value("y", "float32", ("N", 2))], {})  # fmt: skip
        with pytest.raises(ValueError, match="layer one.*no constant weight"):
            CompressedModel(graph).to_c()
