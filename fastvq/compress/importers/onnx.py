"""ONNX models as graphs of fastvq.

What ONNX says with its own words (channels first, ``auto_pad``, attributes that became inputs, what
an operator meant in an older opset) ends here: :data:`OPERATORS` has a function for every ONNX
operator, which writes it down in operators of :mod:`fastvq.runtime.ops`. Operators that ONNX itself
defines by others (``Attention``, ``RMSNormalization``) need no row of their own.

float16 and bfloat16 are computed as float32; constants stored as float16 stay so in files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from typing import NamedTuple

import numpy as np

try:
    import onnx
    from onnx import defs, helper, shape_inference
    from onnx.external_data_helper import uses_external_data
    from onnx.inliner import inline_local_functions
except ImportError as error:
    raise ImportError(
        "ONNX models need the onnx package: pip install fastvq[onnx]", name=error.name
    ) from error

from fastvq.compress.importers import (  # noqa: F401 - they enter operators into the table
    onnx_integers,
    onnx_ml,
)
from fastvq.compress.importers.builder import Builder
from fastvq.compress.importers.onnx_operators import ELEMENTS, OPERATORS, as_array, element
from fastvq.compress.qdq import in_integers
from fastvq.runtime.graph import Graph, Value

__all__ = ["Missing", "UnsupportedModel", "from_onnx", "missing", "supported"]

OPSETS = range(11, 29)
_ML_OPSETS = range(1, 6)
# Tensors above this are hidden from ONNX's shape inference, which copies the model.
_LARGE = 1 << 12


class Missing(NamedTuple):
    """A node that cannot be imported, and why."""

    node: str
    operator: str
    reason: str

    def __str__(self):
        return f"{self.operator} {self.node!r}: {self.reason}"


class UnsupportedModel(ValueError):
    """A model with nodes that fastvq cannot run; `missing` lists them."""

    def __init__(self, missing):
        self.missing = missing
        shown = "\n  ".join(map(str, missing[:20]))
        more = f"\n  and {len(missing) - 20} more" if len(missing) > 20 else ""
        super().__init__(
            f"{len(missing)} of the model's nodes cannot be imported:\n  {shown}{more}"
        )


def from_onnx(model) -> tuple[Graph, dict]:
    """A graph for an ONNX model, and what else the model says.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        Opsets 11 to 28. Tensors in files of their own are found beside a path.

    Returns
    -------
    graph : Graph
        Inputs and outputs have the model's names; dimensions keep their names, and those that have
        none are named after the input.
    metadata : dict
        "producer", "opset", "name", and "labels": for outputs that are class labels in words, the
        words; the output gives their numbers.

    Raises
    ------
    UnsupportedModel
        If nodes cannot be imported; the error names them all.
    ImportError
        If onnx is not installed.
    """
    translation = _Translation(_loaded(model))
    if translation.missing:
        raise UnsupportedModel(translation.missing)
    return in_integers(translation.graph()), translation.metadata()


def missing(model) -> list[Missing]:
    """The nodes of an ONNX model that cannot be imported, each with the reason; [] if none."""
    return _Translation(_loaded(model)).missing


def supported() -> dict[str, list[str]]:
    """The ONNX operators that can be imported, by domain; see also :func:`missing`."""
    found: dict[str, list[str]] = {}
    for domain, name in OPERATORS:
        found.setdefault(domain or "ai.onnx", []).append(name)
    return {domain: sorted(names) for domain, names in found.items()}


# ---- a node as the table of operators sees it ----------------------------------------------------


class OnnxNode:
    """A node of the model, with its inputs as values of the builder.

    Attributes
    ----------
    operator, name, opset
    inputs : list of names in the builder; "" for one that is left out
    outputs : list of ONNX names; "" for one that nobody wants
    attributes : dict, defaults of the opset included
    """

    _floats = False  # whether it stands for one of integers, and reads what they stand for

    def __init__(self, proto, attributes, inputs, translation, opset, types):
        self.operator, self.outputs = proto.op_type, [*proto.output]
        self.name = proto.name or next(filter(None, proto.output), proto.op_type)
        self.attributes, self.inputs, self.opset = attributes, inputs, opset
        self._proto, self._types, self._translation = proto, types, translation

    def input(self, number):
        """The value at that place; "" where it is left out."""
        return self.inputs[number] if number < len(self.inputs) else ""

    def shape(self, number):
        """Dimensions of an input, None for those not known; None where not even their number is."""
        array = self._translation.build.value(self.input(number))
        if array is not None:
            return array.shape
        return self._types.get(self._proto.input[number], (None, None))[1]

    def rank(self, number):
        shape = self.shape(number)
        if shape is None:
            raise ValueError(
                f"the number of dimensions of {self._proto.input[number]!r} is unknown"
            )
        return len(shape)

    def dtype(self, number):
        """The dtype of an input by name, None where it is not known."""
        array = self._translation.build.value(self.input(number))
        if array is not None:
            return array.dtype.name
        found = self._types.get(self._proto.input[number], (None, None))[0]
        return "float32" if self._floats else found

    def constant(self, number, what):
        """The array of an input that has to be a constant; None where it is left out."""
        name = self.input(number)
        array = self._translation.build.value(name)
        if array is None and name:
            raise ValueError(f"its {what} are computed by the model, wanted: constants")
        return array

    def whole_numbers(self, number, attribute):
        """Whole numbers given as an input or as an attribute; None where they are left out."""
        if self.attributes.get(attribute) is not None:
            return [int(n) for n in self.attributes[attribute]]
        found = self.constant(number, attribute)
        return None if found is None else [int(n) for n in np.ravel(found)]

    def wants(self, number):
        """Whether anybody wants this output."""
        return number < len(self.outputs) and bool(self.outputs[number])

    def words(self, number):
        """The words that an input's numbers stand for, else None."""
        return self._translation.labels.get(self.input(number))

    def label(self, value, words):
        """Remember the words that a value's numbers stand for."""
        self._translation.labels[value] = [*words]

    def alone(self, number):
        """Whether this node alone reads the input."""
        return self._translation.uses.get(self._proto.input[number]) == 1

    def reading(self, operator, inputs, places, **attributes):
        """A node of another operator in its place.

        `places` says of each of its inputs which of this node's it stands for: it has its shape.
        """
        other = copy(self)
        other.operator, other.inputs = operator, [*inputs]
        other.attributes = {**self.attributes, **attributes}
        other._proto = onnx.NodeProto(input=[self._proto.input[i] for i in places])
        other._floats, other.opset = True, self._translation.opsets.get("", 1)
        return other


# ---- the model, node by node ---------------------------------------------------------------------


class _Translation:
    """A model on its way through the table; afterwards `missing` or a graph is there."""

    def __init__(self, model):
        self.model, self.build = model, Builder()
        self.missing: list[Missing] = []
        self.labels: dict[str, list[str]] = {}  # words of labels, by value of the builder
        self.opsets = _opsets(model)
        self.types = _inferred(model)
        self.uses = _uses(model.graph)
        # ONNX name -> value of the builder; None after a node that is missing.
        self.values: dict[str, str | None] = {"": ""}
        self._take_inputs()
        self._take_nodes(model.graph.node, self.values, self.types)

    def graph(self):
        outputs = []
        for proto in self.model.graph.output:
            made_as = self.values.get(proto.name)
            if made_as is None:
                raise ValueError(f"output {proto.name!r} is made by nothing")
            dtype, shape = self.types.get(proto.name, (None, None))
            if made_as in self.labels:
                dtype = "int64"
            shape = [f"{proto.name}_{i}" if n is None else n for i, n in enumerate(shape or ())]
            outputs.append((Value(proto.name, dtype or "float32", tuple(shape)), made_as))
        halved = any(t.data_type == onnx.TensorProto.FLOAT16 for t in self.model.graph.initializer)
        return self.build.graph(self.inputs, outputs, _as_half if halved else None)

    def metadata(self):
        labels = {
            proto.name: self.labels[self.values[proto.name]]
            for proto in self.model.graph.output
            if self.values[proto.name] in self.labels
        }
        return {
            "producer": f"{self.model.producer_name} {self.model.producer_version}".strip(),
            "name": self.model.graph.name,
            "opset": self.opsets.get("", self.opsets.get("ai.onnx.ml", 0)),
            **({"labels": labels} if labels else {}),
        }

    def _take_inputs(self):
        graph = self.model.graph
        self.build.reserve(v.name for v in [*graph.input, *graph.initializer, *graph.output])
        self.build.reserve(name for node in graph.node for name in node.output)
        for tensor in graph.initializer:
            self._enter(tensor.name, tensor)
        if graph.sparse_initializer:
            raise ValueError("the model has sparse constants, which fastvq does not read")
        given = [proto for proto in graph.input if proto.name not in self.values]
        self.inputs = [_as_input(proto) for proto in given]
        self.values.update((value.name, value.name) for value in self.inputs)

    def _enter(self, name, tensor):
        try:
            self.values[name] = self.build.enter(name, self._array(name, tensor))
        except ValueError as error:
            self.missing.append(Missing(name, "constant", str(error)))
            self.values[name] = None

    def _array(self, name, tensor):
        if tensor.data_type != onnx.TensorProto.STRING:
            return as_array(tensor)
        words = [word.decode() for word in tensor.string_data]
        self.labels[name] = words
        return np.arange(len(words)).reshape(tensor.dims)

    def _take_nodes(self, nodes, values, types, label=""):
        for proto in nodes:
            self.build.label = label or proto.name or next(filter(None, proto.output), "")
            try:
                found = self._taken(proto, values, types, label)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                name = self.build.label
                self.missing.append(Missing(name, _operator(proto), _reason(error)))
                found = None
            found = [None] * len(proto.output) if found is None else found
            for name, value in zip(proto.output, found, strict=False):
                values[name] = value
                if value and not label:
                    self.build.call(value, name)

    def _taken(self, proto, values, types, label):
        """The outputs of a node as values of the builder; None where an input is missing."""
        inputs = [values[name] for name in proto.input]
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        function = OPERATORS.get((domain, proto.op_type))
        if proto.op_type == "If" and not domain:
            return self._branch(proto, values, label)
        if function is None:
            return self._defined_by_others(proto, domain, inputs, values, types)
        if None in inputs:
            return None
        attributes = _attributes(proto, domain, self.opsets.get(domain, 1))
        node = OnnxNode(proto, attributes, inputs, self, self.opsets.get(domain, 1), types)
        kept = proto.op_type in _KEEP_WORDS
        if node.words(0) and not kept and proto.op_type != "LabelEncoder":
            raise ValueError("words are not supported here")
        found = function(self.build, node)
        found = [found] if isinstance(found, str) else found
        if node.words(0) and kept:
            node.label(found[0], node.words(0))
        return found

    def _branch(self, proto, values, label):
        """The branch of an If whose condition is a constant."""
        condition = values[proto.input[0]]
        known = None if condition is None else self.build.value(condition)
        if known is None:
            raise ValueError("control flow is supported with a constant condition alone")
        wanted = "then_branch" if np.ravel(known)[0] else "else_branch"
        graph = next(a.g for a in proto.attribute if a.name == wanted)
        inner = dict(values)
        for tensor in graph.initializer:
            inner[tensor.name] = self.build.constant(as_array(tensor), tensor.name)
        self._take_nodes(graph.node, inner, self.types, label=label or self.build.label)
        return [inner[output.name] for output in graph.output]

    def _defined_by_others(self, proto, domain, inputs, values, types):
        """The outputs of an operator whose meaning ONNX gives in terms of others."""
        if domain or proto.op_type in _REFUSED:
            raise ValueError(_REFUSED.get(proto.op_type, "the operator is not supported"))
        body = _definition(proto, self.opsets.get("", 1), types)
        if body is None:
            raise ValueError("the operator is not supported")
        if None in inputs:
            return None
        inner = {"": "", **dict.fromkeys(body.input, "")}
        inner.update(zip(body.input, inputs, strict=False))
        given = _given(proto, body, self.opsets.get("", 1))
        nodes = [_with_attributes(node, given) for node in body.node]
        before, opset = len(self.missing), self.opsets.get("", 1)
        self.opsets[""] = next((o.version for o in body.opset_import if not o.domain), opset)
        known = _inferred(_as_model(body, nodes, [types.get(name) for name in proto.input]))
        try:
            self._take_nodes(nodes, inner, known, label=self.build.label)
        finally:
            self.opsets[""] = opset
        if len(self.missing) > before:
            inside = self.missing[before:]
            del self.missing[before:]
            raise ValueError(f"it is made of what is not supported: {inside[0]}")
        return [inner.get(name) for name in body.output]


def _loaded(model):
    """The model, of a path, bytes or itself, its functions put in place of their calls."""
    beside = isinstance(model, (str, os.PathLike))
    if beside:
        model = onnx.load(os.fspath(model))
    elif isinstance(model, (bytes, bytearray, memoryview)):
        model = onnx.load_model_from_string(bytes(model))
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"wanted an ONNX model, a path or bytes, got {type(model).__name__}")
    if not beside and any(uses_external_data(t) for t in model.graph.initializer):
        raise ValueError("the model's tensors are in files of their own: give the model's path")
    return inline_local_functions(model) if model.functions else model


def _opsets(model):
    found = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    for domain, known in (("", OPSETS), ("ai.onnx.ml", _ML_OPSETS)):
        if domain in found and found[domain] not in known:
            raise ValueError(
                f"the model uses opset {found[domain]} of {domain or 'ai.onnx'}, supported are "
                f"{known[0]} to {known[-1]}: onnx.version_converter may convert it"
            )
    return found


def _inferred(model):
    """(dtype, dimensions) of values by name, each None where it is not known."""
    light = _without_data(model)
    with suppress(Exception):  # inference is a help; where it fails, ranks stay unknown
        light = shape_inference.infer_shapes(light, data_prop=True)
    graph = light.graph
    found = {}
    for proto in [*graph.input, *graph.value_info, *graph.output]:
        if proto.type.HasField("tensor_type"):
            found[proto.name] = ELEMENTS.get(proto.type.tensor_type.elem_type), _dimensions(proto)
    return found


def _without_data(model):
    """The model with inputs in place of its large constants."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    given = {proto.name for proto in graph.input}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= _LARGE and np.prod(tensor.dims) <= _LARGE:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def _uses(graph):
    uses: dict[str, int] = {}
    for name in [name for node in graph.node for name in node.input] + [
        o.name for o in graph.output
    ]:
        uses[name] = uses.get(name, 0) + 1
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                for name, count in _uses(inner).items():
                    uses[name] = uses.get(name, 0) + count
    return uses


def _dimensions(proto):
    if not proto.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or None
        for d in proto.type.tensor_type.shape.dim
    )


def _as_input(proto):
    if not proto.type.HasField("tensor_type"):
        raise ValueError(f"input {proto.name!r} is no tensor")
    dtype, shape = element(proto.type.tensor_type.elem_type), _dimensions(proto)
    if shape is None:
        raise ValueError(f"input {proto.name!r} has no shape: the number of dimensions is needed")
    named = [f"{proto.name}_{i}" if n is None else n for i, n in enumerate(shape)]
    return Value(proto.name, dtype, tuple(named))


def _as_half(array):
    """float16 for what it holds exactly: that is how the model stored it."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array, equal_nan=True) else array


def _attributes(proto, domain, opset):
    """Attributes as Python values, with the defaults that the opset gives them."""
    found = {}
    given = {a.name: _python(a) for a in proto.attribute}
    if not defs.has(proto.op_type, domain):  # operators of onnxruntime: their rows know them
        return given
    schema = defs.get_schema(proto.op_type, opset, domain)
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type:
            found[name] = _python(attribute.default_value)
    found |= given
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in found:
            raise ValueError(f"it has no attribute {name!r}")
    return found


def _python(attribute):
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return value
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [s.decode() for s in value]
    return (
        [*value]
        if not isinstance(value, (int, float, str)) and hasattr(value, "__len__")
        else value
    )


def _definition(proto, opset, types):
    """The function that ONNX defines the operator by, or None."""
    try:
        schema = defs.get_schema(proto.op_type, opset, "")
    except defs.SchemaError:
        return None
    if schema.has_function:
        return schema.function_body
    if not schema.has_context_dependent_function:
        return None
    inputs = [_type_proto(types.get(name, (None, None))) for name in proto.input]
    body = schema.get_context_dependent_function(
        proto.SerializeToString(), [t.SerializeToString() for t in inputs]
    )
    return onnx.FunctionProto.FromString(body) if body else None


def _type_proto(known):
    dtype, shape = known
    if dtype is None:
        return onnx.TypeProto()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_type_proto(kind, shape)


def _as_model(body, nodes, types):
    """The body of a function as a model, for inputs of these types."""
    inputs = [
        onnx.ValueInfoProto(name=name, type=_type_proto(known))
        for name, known in zip(body.input, types, strict=False)
        if known
    ]
    graph = helper.make_graph(nodes, body.name, inputs, [])
    return helper.make_model(graph, opset_imports=body.opset_import)


def _given(proto, body, opset):
    """The attributes of a call, with the defaults that its function or its schema gives."""
    schema = defs.get_schema(proto.op_type, opset, "")
    defaults = {n: a.default_value for n, a in schema.attributes.items() if a.default_value.type}
    defaults |= {a.name: a for a in body.attribute_proto}
    return defaults | {a.name: a for a in proto.attribute}


def _with_attributes(node, given):
    """A node of a function's body with the attributes of the call that it refers to."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    made = onnx.NodeProto()
    made.CopyFrom(node)
    del made.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            made.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            copy = onnx.AttributeProto()
            copy.CopyFrom(given[attribute.ref_attr_name])
            copy.name = attribute.name
            made.attribute.append(copy)
    return made


def _operator(proto):
    return f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type


def _reason(error):
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


# Operators that move words and leave them what they are.
_KEEP_WORDS = frozenset(
    [
        "Identity",
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Gather",
        "ArrayFeatureExtractor",
    ]
)
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), "control flow is not supported"),
    **dict.fromkeys(
        ("SVMClassifier", "SVMRegressor"), "support vector machines with kernels are not supported"
    ),
}
