"""Makes the golden files: small models as files of format 1, with inputs and outputs, as text.

    python tests/golden/make.py

writes those that are missing. One that is there is never written anew: a file of format 1 has to
load for ever as it is. A new version of the format gets files of its own.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.codebook import Codebook
from fastvq.runtime.encoding import Raw
from fastvq.runtime.grouped import Grouped, Signs
from fastvq.runtime.patched import Patched
from fastvq.runtime.preprocess import describe_picture, describe_wordpiece
from fastvq.runtime.product import Product

HERE = Path(__file__).parent


class Model:
    """A graph in the making: constants of random small numbers."""

    def __init__(self):
        self.nodes, self.constants = [], {}
        self.rng = np.random.default_rng(0)

    def weight(self, *shape, dtype="float32"):
        name = f"c{len(self.constants)}"
        values = self.rng.integers(-8, 8, shape) / 8
        self.constants[name] = Raw(values.astype(dtype))
        return name

    def coded(self, encoded):
        name = f"c{len(self.constants)}"
        self.constants[name] = encoded
        return name

    def node(self, operator, *inputs, n_outputs=1, **attributes):
        names = [f"v{len(self.nodes)}.{i}" for i in range(n_outputs)]
        self.nodes.append(Node(operator, inputs, names, attributes))
        return names[0] if n_outputs == 1 else names

    def constant(self, values):
        name = f"c{len(self.constants)}"
        self.constants[name] = Raw(np.asarray(values))
        return name

    def done(self, inputs, outputs, metadata=None):
        graph = Graph(self.nodes, inputs, outputs, self.constants)
        return CompressedModel(graph, metadata)


def mlp_1():
    m = Model()
    h = m.node("Dense", "x", m.weight(6, 4), m.weight(6))
    h = m.node("Unary", h, function="relu")
    y = m.node("Dense", h, m.weight(3, 6, dtype="float16"), m.weight(3))
    metadata = {
        "task": "classification",
        "classes": np.array(["a", "b", "c"]),
        "feature_names": ["p", "q", "r", "s"],
        "methods": {"predict": y},
    }
    return m.done([Value("x", "float32", ("N", 4))], [Value(y, "float32", ("N", 3))], metadata)


def cnn_1():
    m = Model()
    y = m.node("Conv", "x", m.weight(4, 3, 3, 3), m.weight(4), same="upper", activation="relu")
    y = m.node("Pool", y, function="max", kernel=(2, 2), strides=(2, 2))
    y = m.node("Conv", y, m.weight(4, 3, 3, 1), m.weight(4), groups=4, pads=(1, 1, 1, 1))
    y = m.node("Unary", y, function="clip", alpha=0.0, beta=6.0)
    y = m.node("Dense", m.node("Flatten", y), m.weight(3, 36), m.weight(3))
    y = m.node("Softmax", y)
    metadata = {"preprocess": describe_picture("x", resize=6, crop=6)}
    inputs = [Value("x", "float32", ("N", 6, 6, 3))]
    return m.done(inputs, [Value(y, "float32", ("N", 3))], metadata)


def forest_1():
    m = Model()
    tree = [np.array(a) for a in ([0, 3], [1, -1, -1, 0, 2, -1, -1, -1])]
    thresholds = np.array([0.5, 0, 0, 1.0, 0.25, 0, 0, 0], np.float32)
    inputs = [*map(m.constant, (*tree, thresholds)), m.weight(5, 2), m.weight(2)]
    y = m.node("TreeEnsemble", "x", *inputs, aggregate="mean")
    label = m.node("ArgMax", y, axis=1, keep=False)
    metadata = {
        "task": "classifier",
        "classes": [3, 7],
        "methods": {"predict": label, "predict_proba": y},
    }
    outputs = [Value(label, "int64", ("N",)), Value(y, "float32", ("N", 2))]
    return m.done([Value("x", "float32", ("N", 3))], outputs, metadata)


def lstm_1():
    m = Model()
    weights = m.weight(2, 12, 4), m.weight(2, 12, 3), m.weight(2, 12)
    _, h, _ = m.node("LSTM", "x", *weights, n_outputs=3, direction="bidirectional")
    y = m.node("Dense", m.node("Flatten", h), m.weight(2, 6), m.weight(2))
    inputs = [Value("x", "float32", ("N", "T", 4))]
    return m.done(inputs, [Value(y, "float32", ("N", 2))])


def transformer_1():
    """One head over embedded tokens, of which the mean is taken where the mask is."""
    m = Model()
    x = m.node("Gather", m.weight(9, 4, dtype="float16"), "ids")
    query, key, value = (m.node("Dense", x, m.weight(4, 4), m.weight(4)) for _ in range(3))
    scores = m.node("MatMul", query, key, transpose_b=True)
    mask = m.node("Cast", "mask", dtype="float32")
    absent = m.node("Binary", mask, m.constant(np.float32(1)), function="subtract")
    absent = m.node("Binary", absent, m.constant(np.float32(100)), function="multiply")
    scores = m.node("Binary", scores, m.node("Unsqueeze", absent, axes=(1,)), function="add")
    y = m.node("MatMul", m.node("Softmax", scores), value)
    y = m.node("Binary", x, y, function="add")
    y = m.node("LayerNorm", y, m.weight(4), m.weight(4))
    y = m.node("Unary", y, function="gelu")
    y = m.node("Binary", y, m.node("Unsqueeze", mask, axes=(2,)), function="multiply")
    y = m.node("Reduce", y, m.constant(np.array([1])), function="sum", keep=False)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##b", "c", "."]
    options = {"ids": "ids", "mask": "mask", "types": None, "special": ()}
    metadata = {"methods": {"transform": y}, "preprocess": describe_wordpiece(tokens, **options)}
    inputs = [Value("ids", "int64", ("N", "T")), Value("mask", "int64", ("N", "T"))]
    return m.done(inputs, [Value(y, "float32", ("N", 4))], metadata)


def codebook_1():
    m = Model()
    books = m.rng.integers(-8, 8, (1, 7)) / 8
    weight = Codebook.of(m.rng.integers(0, 7, (6, 4)), books.astype("f4"))
    h = m.node("Dense", "x", m.coded(weight), activation="relu")
    scales, books = np.full((5, 2), 0.5, "f2"), m.rng.integers(-64, 64, (2, 16)).astype("i1")
    codes = m.rng.integers(0, 16, (5, 6))
    weight = Codebook.of(codes, books, per="group", group=4, scales=scales, exponent=-3)
    y = m.node("Dense", h, m.coded(weight))
    return m.done([Value("x", "float32", ("N", 4))], [Value(y, "float32", ("N", 5))])


def grouped_1():
    m = Model()
    scales = 2.0 ** m.rng.integers(-2, 2, (6, 2))
    weight = Grouped.of(m.rng.integers(0, 16, (6, 7)), scales.astype("f2"), bits=4, group=4)
    h = m.node("Dense", "x", m.coded(weight), activation="relu")
    codes, zeros = m.rng.integers(0, 8, (5, 6)), m.rng.integers(0, 8, (5, 2))
    weight = Grouped.of(codes, scales[:5].astype("f4"), zeros, bits=3, group=3)
    y = m.node("Dense", h, m.coded(weight))
    return m.done([Value("x", "float32", ("N", 7))], [Value(y, "float32", ("N", 5))])


def sign_1():
    m = Model()
    weight = Signs.of(m.rng.normal(size=(6, 9)), np.full((6, 2), 0.25, "f2"), group=8)
    y = m.node("Dense", "x", m.coded(weight))
    return m.done([Value("x", "float32", ("N", 9))], [Value(y, "float32", ("N", 6))])


def product_1():
    m = Model()
    books = m.rng.integers(-8, 8, (2, 5, 4)) / 8
    codes = m.rng.integers(0, 5, (6, 3, 2))
    weight = Product.of((6, 10), codes, books.astype("f2"), scales=np.full((6, 1), 0.5, "f4"))
    y = m.node("Dense", "x", m.coded(weight))
    return m.done([Value("x", "float32", ("N", 10))], [Value(y, "float32", ("N", 6))])


def patched_1():
    m = Model()
    codes = m.rng.integers(0, 8, (6, 9))
    base = Grouped.of(codes, np.full((6, 3), 0.25, "f2"), bits=3, group=4)
    weight = Patched.of(base, [2, 11, 12, 53], np.float16([9, -7.5, 6, 20]))
    y = m.node("Dense", "x", m.coded(weight))
    return m.done([Value("x", "float32", ("N", 9))], [Value(y, "float32", ("N", 6))])


def entropy_coded_1():
    m = Model()
    codes = np.clip(np.rint(m.rng.normal(8, 1.5, (40, 7))), 0, 15).astype(int)
    weight = Grouped.of(codes, np.full((40, 1), 0.25, "f2"), bits=4).with_coder("rans")
    y = m.node("Dense", "x", m.coded(weight))
    return m.done([Value("x", "float32", ("N", 7))], [Value(y, "float32", ("N", 40))])


def all_codes():
    """A model of five features with a weight in each of these encodings; no golden file of it."""
    m = Model()
    scales = np.full((6, 1), 0.5, "f2")
    codes = m.rng.integers(0, 16, (6, 5))
    weights = [
        Codebook.of(codes, m.rng.integers(-8, 8, (1, 16)).astype("f4")),
        Grouped.of(codes, scales, scales * 8, bits=4),
        Signs.of(codes - 8, scales),
        Product.of((6, 5), codes[:, :2, None], m.rng.integers(-8, 8, (1, 16, 4)).astype("f4")),
        Patched.of(Grouped.of(codes, scales, bits=4), [1, 9, 29], np.float16([3, 4, 5])),
        Grouped.of(np.resize([8, 8, 8, 9, 7], (60, 5)), np.ones((60, 1), "f2"), bits=4),
    ]
    weights[-1] = weights[-1].with_coder("rans")
    h = [m.node("Dense", "x", m.coded(weight)) for weight in weights]
    y = m.node("Concat", *h, axis=1)
    return m.done([Value("x", "float32", ("N", 5))], [Value(y, "float32", ("N", 90))])


_OF_FLOATS = mlp_1, cnn_1, forest_1, lstm_1, transformer_1
_OF_CODES = codebook_1, grouped_1, sign_1, product_1, patched_1, entropy_coded_1
MODELS = {model.__name__: model for model in (*_OF_FLOATS, *_OF_CODES)}


def record(model):
    """A model as text: its file, inputs, and what it makes of them."""
    rng = np.random.default_rng(1)
    sizes = {"N": 2, "T": 5}
    inputs = {}
    for value in model.inputs:
        shape = [sizes.get(n, n) for n in value.shape]
        inputs[value.name] = (rng.integers(0, 8, shape) / 4).astype(value.dtype)
    outputs = model.run(inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.fvq"
        model.save(path)
        text = base64.b64encode(path.read_bytes()).decode()
    return {
        "file": [text[i : i + 90] for i in range(0, len(text), 90)],
        "inputs": {name: form(array) for name, array in inputs.items()},
        "outputs": [form(array) for array in outputs],
    }


def form(array):
    return [array.dtype.name, list(array.shape), array.reshape(-1).tolist()]


def array(form):
    dtype, shape, values = form
    return np.array(values, dtype).reshape(shape)


def main():
    for name, make in MODELS.items():
        path = HERE / f"{name}.json"
        if not path.exists():
            text = json.dumps(record(make()), separators=(",", ":"))
            path.write_text(text.replace('",', '",\n').replace("],", "],\n") + "\n")
            print(f"{path.name}: {path.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
