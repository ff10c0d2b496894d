"""Models as files, and back: what `CompressedModel.save` writes and `fastvq.load` reads.

A model is a file of :mod:`fastvq.container` of the kind "CompressedModel". Its attributes are
``{"format": 1, "requires": [...]}``: what is required is named, so that a version that lacks it
can say what. Its tensors:

=========== =====================================================================================
graph       JSON, deflated: inputs, outputs, nodes, constants and metadata, as `_document` has them
weights.N   part N of the constants, counted through, where it is large and fills whole lines
blob        all other parts, one after the other, each at a multiple of 8 bytes or of a line
=========== =====================================================================================

No place is stored: where a part lies follows from the shapes and dtypes before it, so that no file
can name a wrong one. Everything is little-endian and in C order, and lies aligned to be used where
it is: `load` reads the file once, to compare checksums, in little memory, and leaves the weights on
the disk until a plan packs or reads them. Nothing in a file is ever run.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping

import numpy as np

from fastvq import container
from fastvq.container import LINE, FileFormatError, as_array
from fastvq.runtime import preprocess
from fastvq.runtime.coded import CODERS
from fastvq.runtime.encoding import ENCODINGS
from fastvq.runtime.graph import Graph, Node, Value

__all__ = ["FORMAT", "KIND", "load", "nbytes", "save"]

KIND = "CompressedModel"
FORMAT = 1

_LARGE = 1 << 16  # bytes from which on a part is worth the 200 that a header spends on a tensor
_LINED = 1 << 12  # bytes from which on a part of the blob begins at a line: gaps stay below 1.6 %
_MOST_TEXT = 1 << 24  # as of a container's header: parsed, it takes up to 30 times as much
_MOST_DEFLATED = 64  # real graphs shrink 5 to 30 times: no small file may grow into a large one
_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    )
}


def save(path, graph: Graph, metadata: Mapping) -> None:
    """Write a model, all of it or nothing; see :meth:`CompressedModel.save`."""
    container.write(path, KIND, *_contents(graph, metadata))


def nbytes(graph: Graph, metadata: Mapping) -> int:
    """The bytes of the file that `save` would write."""
    return container.nbytes_of(KIND, *_contents(graph, metadata))


def load(path) -> tuple[Graph, dict]:
    """Graph and metadata of a file; its large weights stay on the disk until they are used.

    Raises
    ------
    FileFormatError
        A ValueError, for a file that is damaged, cut short, of another kind, of a later version,
        or hostile: before anything large is allocated.
    OSError
        Where there is no such file, or it cannot be read.
    """
    contents = container.read_mapped(path)
    try:
        return _model(contents)
    except MemoryError:
        raise
    except Exception as error:  # a hostile graph may trip over anything
        raise FileFormatError(f"{path}: holds no model that could run: {error}") from error


# ---- the two sides of the format ------------------------------------------------------------


def _contents(graph, metadata):
    """A model as tensors and attributes."""
    parts = [
        _little(part) for encoded in graph.constants.values() for part in encoded.parts().values()
    ]
    tensors = {f"weights.{i}": part for i, part in enumerate(parts) if _alone(part.nbytes)}
    shared = [part for part in parts if not _alone(part.nbytes)]
    blob = np.zeros(_end([part.nbytes for part in shared]), np.uint8)
    for start, part in zip(_places([part.nbytes for part in shared]), shared, strict=True):
        blob[start : start + part.nbytes] = part.reshape(-1).view(np.uint8)
    text = json.dumps(_document(graph, metadata), separators=(",", ":"), allow_nan=False).encode()
    if len(text) > _MOST_TEXT:
        raise ValueError(
            f"graph and metadata take {len(text):,} bytes; {_MOST_TEXT:,} is the limit"
        )
    deflated = _deflated(text)
    tensors |= {"blob": blob, "graph": np.frombuffer(deflated, np.uint8)}
    return tensors, {"format": FORMAT, "requires": _features(graph, metadata)}


def _model(contents):
    """What `_contents` made these of."""
    if contents.kind != KIND:
        raise ValueError(f"it holds a {contents.kind!r}, not a {KIND!r}")
    _check_version(contents.attributes)
    tensors = dict(contents.tensors)
    document = container.parse_json(_inflated(tensors.pop("graph")), "graph")
    rows = document["constants"]
    forms = [_form(dtype, shape) for *_, parts in rows for _, dtype, shape in parts]
    arrays = iter(_taken_apart(forms, tensors))
    constants = {}
    for name, kind, attributes, parts in rows:
        if kind not in ENCODINGS:
            raise ValueError(f"constant {name!r} has the unknown encoding {kind!r}")
        found = {part: next(arrays) for part, *_ in parts}
        constants[name] = ENCODINGS[kind].from_parts(found, _loaded(attributes))
    if len(constants) < len(rows):
        raise ValueError("a constant comes twice")
    graph = Graph(
        [_node(*row) for row in document["nodes"]],
        [Value(*row) for row in document["inputs"]],
        [Value(*row) for row in document["outputs"]],
        constants,
    )
    metadata = _loaded(document["metadata"])
    preprocess.check(metadata.get("preprocess"))
    return graph, metadata


def _document(graph, metadata):
    """A graph as JSON: rows in a fixed order of columns, which deflate well."""
    return {
        "inputs": [[v.name, v.dtype, list(v.shape)] for v in graph.inputs],
        "outputs": [[v.name, v.dtype, list(v.shape)] for v in graph.outputs],
        "nodes": [
            [n.operator, list(n.inputs), list(n.outputs), _plain(dict(n.attributes)), n.name]
            for n in graph.nodes
        ],
        "constants": [
            [
                name,
                encoded.kind,
                _plain(encoded.attributes()),
                [[part, a.dtype.name, list(a.shape)] for part, a in encoded.parts().items()],
            ]
            for name, encoded in graph.constants.items()
        ],
        "metadata": _plain(dict(metadata)),
    }


def _node(operator, inputs, outputs, attributes, name):
    attributes = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in _loaded(attributes).items()
    }
    if not all(isinstance(text, str) for text in (operator, name, *inputs, *outputs)):
        raise ValueError("names of nodes and values are text")
    return Node(operator, inputs, outputs, attributes, name)


def _features(graph, metadata):
    """What a version has to know to run this, beyond what all versions know."""
    encodings = {f"encoding {encoded.kind}" for encoded in graph.constants.values()}
    coders = {f"coder {encoded.coder}" for encoded in graph.constants.values()} - {"coder raw"}
    steps = {f"preprocess {step}" for step in preprocess.kinds_of(metadata.get("preprocess"))}
    return sorted((encodings - {"encoding raw"}) | coders | steps)


def _check_version(attributes):
    version, required = attributes["format"], attributes["requires"]
    if type(version) is not int or version > FORMAT:
        raise ValueError(
            f"it is of format {version}, and this version of fastvq reads up to {FORMAT}: "
            "pip install --upgrade fastvq"
        )
    known = {f"encoding {kind}" for kind in ENCODINGS}
    known |= {f"coder {coder}" for coder in CODERS}
    known |= {f"preprocess {kind}" for kind in preprocess.KINDS}
    if unknown := [feature for feature in required if feature not in known]:
        raise ValueError(
            f"it requires {', '.join(map(str, unknown))}, which this version of fastvq does not "
            "have: pip install --upgrade fastvq"
        )


# ---- parts and their places -----------------------------------------------------------------


def _alone(nbytes):
    """Whether a part is a tensor of its own; then whatever follows it lies at a line, too."""
    return nbytes >= _LARGE and nbytes % LINE == 0


def _places(sizes):
    """Where parts of these many bytes begin in the blob."""
    places, end = [], 0
    for size in sizes:
        places.append(_aligned(end, size))
        end = places[-1] + size
    return places


def _end(sizes):
    return _places([*sizes, 0])[-1] if sizes else 0


def _aligned(place, size):
    step = LINE if size >= _LINED else 8
    return -(-place // step) * step


def _form(dtype, shape):
    """The dtype and shape of a part, believed only where they could be those of one."""
    if dtype not in _DTYPES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"a part of dtype {dtype!r:.20} and shape {shape!r:.80}")
    if math.prod(max(n, 1) for n in shape) >= 1 << 56:
        raise ValueError(f"a part of the absurd shape {shape!r:.80}")
    return _DTYPES[dtype], tuple(shape)


def _taken_apart(forms, tensors):
    """The parts of these forms, as views of the tensors that hold them."""
    sizes = [math.prod(shape) * dtype.itemsize for dtype, shape in forms]
    blob = tensors.pop("blob")
    shared = [size for size in sizes if not _alone(size)]
    if blob.dtype != np.uint8 or blob.shape != (_end(shared),):
        raise ValueError(f"its blob has {blob.nbytes:,} bytes, the graph needs {_end(shared):,}")
    places = iter(_places(shared))
    arrays = []
    for i, ((dtype, shape), size) in enumerate(zip(forms, sizes, strict=True)):
        if _alone(size):
            array = tensors.pop(f"weights.{i}")
            if array.dtype != dtype.newbyteorder("=") or array.shape != shape:
                raise ValueError(f"weights.{i} is not of the dtype and shape that the graph says")
        else:
            start = next(places)
            array = as_array(f"blob, part {i}", blob[start : start + size], dtype, shape)
        arrays.append(array)
    if tensors:
        raise ValueError(f"tensors that the graph does not know: {', '.join(sorted(tensors))}")
    return arrays


def _little(array):
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"a constant of dtype {array.dtype}, which files do not hold")
    return np.asarray(array, _DTYPES[array.dtype.name], order="C")


def _deflated(text):
    """Deflated as small as zlib does, but no smaller than `_inflated` believes."""
    for level in (9, 0):
        deflated = zlib.compress(text, level)
        if len(text) <= _most_inflated(len(deflated)):
            break
    return deflated


def _inflated(deflated):
    stream = zlib.decompressobj()
    text = stream.decompress(deflated.tobytes(), _most_inflated(deflated.nbytes))
    if not stream.eof or stream.unused_data:
        raise ValueError("the graph is not deflated as it should be, or is absurdly large")
    return text


def _most_inflated(nbytes):
    return min(_MOST_TEXT, (1 << 20) + _MOST_DEFLATED * nbytes)


# ---- values ---------------------------------------------------------------------------------


def _plain(value):
    """A value as JSON has it; what JSON has not, as an object with one key, as `_loaded` reads."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {"dict": {key: _plain(item) for key, item in value.items()}}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufUO":
        kind = value.dtype.name if value.dtype.kind in "biuf" else "str"
        return {"array": [kind if value.dtype.kind != "O" else "object", _plain(value.tolist())]}
    raise TypeError(f"files hold numbers, text, lists, dicts and arrays, no {type(value).__name__}")


def _loaded(value):
    if isinstance(value, list):
        return [_loaded(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((form, inner),) = value.items()
    if form == "float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[inner]
    if form == "array":
        dtype, items = inner
        if dtype not in (*_DTYPES, "str", "object"):
            raise ValueError(f"an array of the dtype {dtype!r:.20}")
        return np.array(_loaded(items), dtype)
    if form != "dict":
        raise ValueError(f"a value of the unknown form {form!r:.20}")
    return {key: _loaded(item) for key, item in inner.items()}
