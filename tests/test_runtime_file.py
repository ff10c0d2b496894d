"""Files of models: the same model comes back, and nothing else does."""

import base64
import json
import math
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from golden import make as golden
from safetensors.numpy import load_file

import fastvq
from fastvq import CompressedModel, FileFormatError, container
from fastvq.runtime import Graph, Node, Value, file
from fastvq.runtime.encoding import Raw

METADATA = {
    "task": "classification",
    "classes": np.array(["no", "yes", "perhaps"]),
    "numbers": [1, 2.5, math.inf, None, {"deep": [True]}],
    "table": np.arange(6.0).reshape(2, 3),
    "methods": {"predict": "y"},
}


def some_model(hidden=8, features=5):
    rng = np.random.default_rng(0)
    constants = {
        "layer.0/weight": Raw(rng.normal(size=(hidden, features)).astype("f4")),
        "layer.0/bias": Raw(rng.normal(size=hidden).astype("f4")),
        "layer.1/weight": Raw(rng.normal(size=(3, hidden)).astype("f2")),
        "unused": Raw(np.array([True, False])),
        "empty": Raw(np.zeros((0, 3), np.int16)),
    }
    nodes = [
        Node("Dense", ("x", "layer.0/weight", "layer.0/bias"), ("h",)),
        Node("Unary", ("h",), ("r",), {"function": "clip", "alpha": 0.0, "beta": math.inf}),
        Node("Dense", ("r", "layer.1/weight"), ("y",), name="last"),
    ]
    inputs, outputs = [Value("x", "float32", ("N", features))], [Value("y", "float32", ("N", 3))]
    return CompressedModel(Graph(nodes, inputs, outputs, constants), METADATA)


X = np.random.default_rng(1).normal(size=(7, 5)).astype("f4")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.fvq"


@pytest.fixture
def saved(path):
    some_model().save(path)
    return path


@pytest.fixture(params=["floats", "codes"])
def any_saved(request, path):
    """A model of floats, or one of all encodings of few bits."""
    model = some_model() if request.param == "floats" else golden.all_codes()
    model.save(path)
    return path


def assert_same_model(model, other, rows=X):
    assert model.inputs == other.inputs and model.outputs == other.outputs
    assert model.graph.nodes == other.graph.nodes
    assert model.graph.constants.keys() == other.graph.constants.keys()
    for name, encoded in model.graph.constants.items():
        again = other.graph.constants[name]
        assert (again.kind, again.shape, again.attributes()) == (
            encoded.kind,
            encoded.shape,
            encoded.attributes(),
        )
        for part, array in encoded.parts().items():
            np.testing.assert_array_equal(again.parts()[part], array, strict=True)
    np.testing.assert_equal(other.metadata, model.metadata)
    np.testing.assert_array_equal(model(rows), other(rows), strict=True)


class TestRoundTrip:
    def test_everything_comes_back(self, saved):
        again = fastvq.load(saved)
        assert type(again) is CompressedModel
        assert_same_model(some_model(), again)
        assert again.metadata["classes"].dtype == METADATA["classes"].dtype
        assert list(again.predict(X)) == list(some_model().predict(X))

    def test_a_file_of_a_loaded_model_has_the_same_bytes(self, saved):
        before = saved.read_bytes()
        fastvq.load(saved).save(saved)
        assert saved.read_bytes() == before

    @pytest.mark.parametrize("hidden", [1, 8, 1024, 4096, 4099])
    def test_sizes(self, path, hidden):
        """Parts in the blob, beginning at a line or not, and as tensors of their own."""
        model = some_model(hidden, 64)
        model.save(path)
        rows = np.ones((2, 64), "f4")
        again = fastvq.load(path)
        assert_same_model(model, again, rows)
        for encoded in again.graph.constants.values():
            assert encoded.values.ctypes.data % (64 if encoded.nbytes >= 4096 else 8) == 0
            assert not encoded.values.flags.writeable

    def test_nbytes_is_the_size_of_the_file(self, saved):
        assert some_model().nbytes == fastvq.load(saved).nbytes == saved.stat().st_size

    def test_the_overhead_is_small(self, saved):
        model = some_model()
        weights = sum(encoded.nbytes for encoded in model.graph.constants.values())
        graph = container.inspect(saved).tensors["graph"].nbytes
        assert saved.stat().st_size - weights - graph < 650

    def test_large_weights_are_mapped(self, path):
        some_model(1024, 64).save(path)
        base = fastvq.load(path).graph.constants["layer.0/weight"].values
        while isinstance(base, np.ndarray):
            base = base.base
        assert "mmap" in str(type(getattr(base, "obj", base)))

    def test_the_safetensors_library_reads_it(self, path):
        model = some_model(1024, 64)
        model.save(path)
        tensors = load_file(path)
        assert sorted(tensors) == ["blob", "graph", "weights.0"]
        weight = model.graph.constants["layer.0/weight"].values
        np.testing.assert_array_equal(tensors["weights.0"], weight)
        assert json.loads(zlib.decompress(tensors["graph"]))["nodes"][0][0] == "Dense"

    def test_weights_that_cannot_be_stored(self, path):
        graph = Graph([], [], [], {"a": Raw(np.ones(2, complex))})
        with pytest.raises(TypeError, match="complex128"):
            CompressedModel(graph).save(path)
        with pytest.raises(TypeError, match="no set"):
            CompressedModel(Graph([], [], [], {}), {"classes": {1, 2}}).save(path)
        assert not path.exists()

    def test_a_vocabulary_of_thousands_deflates(self, path):
        words = [f"word{i}" for i in range(20_000)]
        CompressedModel(Graph([], [], [], {}), {"words": words}).save(path)
        assert fastvq.load(path).metadata["words"] == words
        CompressedModel(Graph([], [], [], {}), {"words": ["a"] * 3_000_000}).save(path)
        assert len(fastvq.load(path).metadata["words"]) == 3_000_000

    def test_sklearn_is_not_imported(self, saved, run_python):
        code = (
            "import sys, fastvq, numpy as np\n"
            f"print(fastvq.load({str(saved)!r})(np.ones((1, 5))).shape)\n"
            "print({'sklearn', 'scipy', 'onnx', 'torch'} & set(sys.modules))"
        )
        assert run_python(code).stdout.split("\n")[:2] == ["(1, 3)", "set()"]


class TestMemory:
    CODE = """
import resource, sys
import numpy as np
import fastvq

def high():
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

small = fastvq.load(sys.argv[1])
small(np.ones((1, 5), "f4"))
before = high()
model = fastvq.load(sys.argv[2])
model(np.ones((1, 1024), "f4"))
print(high() - before)
"""

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    @pytest.mark.parametrize("stored", ["f4", "f2"])
    @pytest.mark.parametrize("sizes", [[1024] * 17, [1024, 16384]], ids=["16 layers", "1 layer"])
    def test_loading_peaks_at_little_more_than_the_weights(
        self, stored, sizes, saved, tmp_path, run_python
    ):
        large = tmp_path / "large.fvq"
        random = np.random.default_rng(0)
        shapes = [*zip(sizes[1:], sizes[:-1], strict=True)]
        constants = {
            f"w{i}": Raw(random.normal(size=s).astype(stored)) for i, s in enumerate(shapes)
        }
        nodes = [Node("Dense", (f"v{i}", f"w{i}"), (f"v{i + 1}",)) for i in range(len(shapes))]
        ends = [
            Value("v0", "float32", ("N", 1024)),
            Value(nodes[-1].outputs[0], "float32", ("N", sizes[-1])),
        ]
        CompressedModel(Graph(nodes, ends[:1], ends[1:], constants)).save(large)
        code = f"import sys; sys.argv[1:] = [{str(saved)!r}, {str(large)!r}]\n{self.CODE}"
        packed = 1 << 26  # in float32, whatever they are stored as
        assert int(run_python(code).stdout) < 1.2 * packed


# ---- what is no model ------------------------------------------------------------------------


def signed(path, document=None, attributes=None, kind=file.KIND, **tensors):
    """Change a file, and make its checksums right."""
    contents = container.read(path)
    tensors = {**contents.tensors, **tensors}
    if document is not None:
        text = json.dumps(document).encode()
        tensors["graph"] = np.frombuffer(zlib.compress(text), np.uint8)
    attributes = contents.attributes if attributes is None else attributes
    container.write(path, kind, {k: v for k, v in tensors.items() if v is not None}, attributes)


def document_of(path):
    return json.loads(zlib.decompress(container.read(path).tensors["graph"]))


def refused(path, said):
    with pytest.raises(FileFormatError, match=f"^{re.escape(str(path))}: .*{said}"):
        fastvq.load(path)


class TestHostile:
    def test_a_later_format(self, saved):
        signed(saved, attributes={"format": 2, "requires": []})
        refused(saved, "format 2.*--upgrade")

    def test_a_feature_that_is_not_known(self, saved):
        signed(saved, attributes={"format": 1, "requires": ["encoding raw", "encoding tea"]})
        refused(saved, "requires encoding tea.*--upgrade")

    def test_another_kind(self, saved):
        signed(saved, kind="Elephant")
        refused(saved, "Elephant")

    @pytest.mark.parametrize("attributes", [{}, {"format": "1", "requires": []}, {"format": 1}])
    def test_attributes(self, saved, attributes):
        signed(saved, attributes=attributes)
        refused(saved, "")

    def test_a_copy_by_another_program(self, saved):
        content = saved.read_bytes()
        assert content.count(b" " * 8) > 0
        saved.write_bytes(content.replace(b" " * 8, b"\t" * 8, 1))
        container.read(saved)  # means the same
        refused(saved, "header is changed")

    @pytest.mark.parametrize("shape", [[1 << 62], [1 << 30, 1 << 30, 0], [-1], [2.0], [True], "x"])
    def test_absurd_shapes_of_constants(self, saved, shape):
        document = document_of(saved)
        document["constants"][0][3][0][2] = shape
        signed(saved, document)
        refused(saved, "")

    @pytest.mark.parametrize("shape", [[1 << 50], [-1], [""], [None], [[1]], [1] * 40, 3])
    def test_absurd_shapes_of_inputs(self, saved, shape):
        document = document_of(saved)
        document["inputs"][0][2] = shape
        signed(saved, document)
        refused(saved, "")

    def test_a_cycle(self, saved):
        document = document_of(saved)
        document["nodes"][0][1][0] = "r"
        signed(saved, document)
        refused(saved, "cycle")

    def test_an_unknown_operator(self, saved):
        document = document_of(saved)
        document["nodes"][1][0] = "Teleport"
        signed(saved, document)
        refused(saved, "Teleport")

    def test_an_unknown_encoding(self, saved):
        document = document_of(saved)
        document["constants"][1][1] = "origami"
        signed(saved, document)
        refused(saved, "origami")

    @pytest.mark.parametrize("size", [0, 100, 1 << 20])
    def test_a_blob_of_another_size(self, saved, size):
        signed(saved, blob=np.zeros(size, np.uint8))
        refused(saved, "blob")

    def test_tensors_too_many_or_too_few(self, saved):
        signed(saved, more=np.zeros(3))
        refused(saved, "more")
        signed(saved, more=None, blob=None)
        refused(saved, "blob")
        signed(saved, graph=None)
        refused(saved, "graph")

    def test_bools_of_other_bytes(self, saved):
        blob = np.full(container.read(saved).tensors["blob"].shape, 7, np.uint8)
        signed(saved, blob=blob)
        refused(saved, "bools")

    def test_a_bomb(self, saved):
        """A little that inflates to a lot is not inflated."""
        deflate = zlib.compressobj(9)
        bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(64)) + deflate.flush()
        signed(saved, graph=np.frombuffer(bomb, np.uint8))
        refused(saved, "absurdly large")

    @pytest.mark.parametrize("bytes_", [b"", b"{}", zlib.compress(b"{"), zlib.compress(b"[]") * 2])
    def test_a_graph_that_is_none(self, saved, bytes_):
        signed(saved, graph=np.frombuffer(bytes_, np.uint8))
        refused(saved, "")

    def test_shapes_that_overflow_are_refused_when_the_model_is_called(self, saved):
        document = document_of(saved)
        document["inputs"].append(["n", "float32", ["M", 1]])
        document["nodes"] += [["Binary", ["y", "n"], ["z"], {"dict": {"function": "add"}}, ""]]
        document["outputs"] = [["z", "float32", ["M", "N"]]]
        document["nodes"] += [["Reshape", ["z", "huge"], ["w"], {"dict": {}}, ""]]
        signed(saved, document)
        refused(saved, "huge")


KINDS_OF_MUTATION = 8


def mutated(whole, rng):
    """The bytes of a file with something wrong about them."""
    content = bytearray(whole)
    start = int(rng.integers(len(content)))
    end = min(len(content), start + int(rng.integers(1, 40)))
    kind = rng.integers(KINDS_OF_MUTATION)
    if kind == 0:
        content[start] ^= 1 << rng.integers(8)
    elif kind == 1:
        content[start:end] = rng.bytes(end - start)
    elif kind == 2:
        del content[start:end]
    elif kind == 3:
        content[start:start] = rng.bytes(end - start)
    elif kind == 4:
        del content[start:]
    elif kind == 5:
        content[start:end] = bytes(end - start)
    elif kind == 6:
        content += rng.bytes(end - start)
    else:
        content[start:start] = content[start:end]
    return bytes(content)


def test_no_change_of_the_bytes_goes_unnoticed(any_saved):
    """Ten thousand damaged files: each is refused as such, also where the change means nothing."""
    whole, rng = any_saved.read_bytes(), np.random.default_rng(0)
    for _ in range(10_000):
        content = mutated(whole, rng)
        if content == whole:
            continue
        any_saved.write_bytes(content)
        with pytest.raises(FileFormatError):
            fastvq.load(any_saved)


def test_no_graph_crashes(any_saved):
    """Graphs with a value changed and their checksums right: an error, or a model that runs."""
    saved, rng = any_saved, np.random.default_rng(0)
    text = zlib.decompress(container.read(saved).tensors["graph"])
    tokens = re.findall(rb'"[^"]*"|-?\d+|.', text)
    others = [b"0", b"1", b"-1", b"99999999999999999999", b'""', b'"x"', b'"N"', b"null", b"[]"]
    outcomes = {"refused": 0, "an error when called": 0, "runs": 0}
    for _ in range(2500):
        changed = list(tokens)
        for _ in range(rng.integers(1, 3)):
            pool = others if rng.integers(2) else tokens
            changed[rng.integers(len(changed))] = pool[rng.integers(len(pool))]
        graph = np.frombuffer(zlib.compress(b"".join(changed), 1), np.uint8)
        signed(saved, graph=graph)
        try:
            model = fastvq.load(saved)
        except FileFormatError:
            outcomes["refused"] += 1
            continue
        try:
            model(X)
            outcomes["runs"] += 1
        except (ValueError, TypeError):
            outcomes["an error when called"] += 1
    assert all(outcomes.values()), outcomes


# ---- files of this version, for ever -----------------------------------------------------------

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


@pytest.mark.parametrize("golden_path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files_load_for_ever(golden_path, path):
    record = json.loads(golden_path.read_text())
    path.write_bytes(base64.b64decode("".join(record["file"])))
    outputs = fastvq.load(path).run(
        {name: golden.array(form) for name, form in record["inputs"].items()}
    )
    for found, form in zip(outputs, record["outputs"], strict=True):
        wanted = golden.array(form)
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_there_is_a_golden_file_of_each_example():
    assert {path.stem for path in GOLDEN} == set(golden.MODELS)
    assert all(path.stat().st_size < 4096 for path in GOLDEN)
