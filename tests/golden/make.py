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
from fastvq.runtime.encoding import Raw

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


MODELS = {"mlp_1": mlp_1}


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
