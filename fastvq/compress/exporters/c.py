"""Models as C for small devices: dense layers and decision trees, with weights as they are stored.

A model becomes one header of C99, which needs libm alone: its weights as arrays of constants, in
their few bits, and a function that computes the outputs of one row, layer by layer, in plain loops.
Weights are decoded a row at a time, where they are read. The functions that this takes stand in
`device.h`, beside this file, and those that a model needs are copied from there.

All sizes are known: the function is written for a batch of one. Numbers are those of the runtime;
whole numbers are the same, and floats differ by the order in which sums are rounded.
"""

from __future__ import annotations

import io
import math
import os
import re

import numpy as np

from fastvq._files import replacing
from fastvq.compress.exporters.c_source import TYPES, Source, Writer, identifier, number
from fastvq.runtime.affine import Affine
from fastvq.runtime.codebook import Codebook
from fastvq.runtime.coded import Coded
from fastvq.runtime.definitions.codes import has_tables
from fastvq.runtime.definitions.trees import ABOVE, CATEGORY, EQUAL, Forest
from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph
from fastvq.runtime.grouped import Grouped, Signs
from fastvq.runtime.ops import operators
from fastvq.runtime.patched import Patched
from fastvq.runtime.product import Product

__all__ = ["EXPORTS", "Source", "save", "to_c"]

EXPORTS = {}
_MOST_BYTES = 1 << 29  # of codes: their bits are counted in 32 bits


def to_c(graph: Graph, metadata=None, name="model") -> Source:
    """The graph as a header of C.

    Parameters
    ----------
    graph : Graph
        Whose inputs have fixed sizes, but for the number of rows.
    metadata : mapping, optional
        Of a classifier its "classes" are written too.
    name : str
        What all names in the header begin with; made a name of C.

    Raises
    ------
    ValueError
        For a node that this does not write; the error names it.
    """
    _check_sizes(graph)
    return Writer(graph, dict(metadata or {}), identifier(name)).written(EXPORTS)


def save(source: Source, path) -> None:
    """Write the header to `path`, and its arrays beside it, in a file that ends in ``.npz``."""
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **source.arrays)
    with replacing(os.path.splitext(path)[0] + ".npz") as file:
        file.write(arrays.getvalue())
    with replacing(path) as file:
        file.write(source.header.encode())


def _check_sizes(graph):
    """Names of dimensions are rows: the first dimension of inputs, and one name for all."""
    rows = {value.shape[0] for value in graph.inputs if value.shape} - {1}
    for value in graph.inputs:
        named = [n for n in value.shape[1:] if isinstance(n, str)]
        if named or len({n for n in rows if isinstance(n, str)}) > 1:
            raise ValueError(
                f"input {value.name!r} has the shape {value.shape}: C is written for rows of a "
                "fixed size"
            )


def _exports(*names):
    def enter(function):
        EXPORTS.update(dict.fromkeys(names, function))
        return function

    return enter


# ---- weights -------------------------------------------------------------------------------------


class _Rows:
    """A weight of two dimensions, of which C decodes one row after the other."""

    def __init__(self, writer, name):
        self._writer, self._name = writer, name
        tensor = writer.graph.constants.get(name)
        if tensor is None or len(tensor.shape) != 2 or 0 in tensor.shape:
            raise ValueError(f"{name!r} is no constant weight of two dimensions")
        self._patches = self._patches_of(tensor) if isinstance(tensor, Patched) else None
        tensor = tensor.base if self._patches else tensor
        self.tensor, self.width = tensor, tensor.shape[1]
        if isinstance(tensor, Coded) and tensor.codes.nbytes > _MOST_BYTES:
            raise ValueError(f"{name!r} has {tensor.codes.nbytes:,} bytes of codes: too many")
        self._parts = {
            part: writer.array(f"{name} {part}" if part else name, array)
            for part, array in tensor.parts().items()
            if part != "codewords" or not isinstance(tensor, (Codebook, Product))
        }

    def _patches_of(self, tensor):
        """Values that are kept beside codes, as arrays: where rows begin, columns, values."""
        n_rows, width = tensor.shape
        rows, columns = np.divmod(tensor.places, width)
        if not len(rows) or width > 1 << 16:
            raise ValueError(f"{self._name!r} keeps values of rows that are too wide, or none")
        starts = np.searchsorted(rows, np.arange(n_rows + 1)).astype(np.uint32)
        arrays = starts, columns.astype(np.uint16), tensor.patches.astype(np.float32)
        labels = "starts", "columns", "kept"
        return [
            self._writer.array(f"{self._name} {label}", array)
            for label, array in zip(labels, arrays, strict=True)
        ]

    def decoded(self, i):
        """Where row number `i` (an expression) lies as floats, after lines that make it so."""
        row = self._decoded(i)
        if self._patches:
            self._writer.put(self._writer.call("put", row, i, *self._patches) + ";")
        return row

    def _decoded(self, i):
        tensor, writer = self.tensor, self._writer
        if isinstance(tensor, Raw) and tensor.values.dtype == np.float32:
            return f"{self._parts['']} + {i} * {self.width}"
        row = writer.scratch("float", "row", self.width)
        if isinstance(tensor, Raw) and tensor.values.dtype == np.float16:
            at = f"{self._parts['']} + {i} * {self.width}"
            writer.put(writer.call("row_of_halves", row, at, self.width) + ";")
        elif isinstance(tensor, Affine):
            writer.put(self._bytes(row, i))
        elif isinstance(tensor, Coded) and tensor.leading == 1 and tensor.dtype == np.float32:
            self.levels(i)
            if tensor.scales is not None:
                writer.put(self._scaled(row, i))
        else:
            raise ValueError(f"weights in {tensor.scheme} are not written in C")
        return row

    def _bytes(self, row, i):
        tensor, one = self.tensor, len(self.tensor.scales) == 1
        zero = (
            f"{self._parts['zero_points']}[{0 if one else i}]"
            if tensor.zero_points is not None
            else 0
        )
        return self._writer.call(
            "row_of_bytes", row, f"{self._parts['values']} + {i} * {self.width}", self.width,
            zero, f"{self._parts['scales']}[{0 if one else i}]",
        ) + ";"  # fmt: skip

    def levels(self, i):
        """Write the row's levels, before they are scaled, into the scratch row."""
        tensor, writer = self.tensor, self._writer
        row = writer.scratch("float", "row", self.width)
        common = row, i, self.width, self._parts["codes"], tensor.bits
        group = tensor.group or self.width
        if isinstance(tensor, Grouped):
            if tensor.zero_points is None:
                text = writer.call("row_of_numbers", *common)
            else:
                points = self._parts["zero_points"]
                text = writer.call("row_with_points", *common, points, group)
        elif isinstance(tensor, Signs):
            text = writer.call("row_of_levels", *common, self._words(np.int8([-1, 1])))
        elif isinstance(tensor, Product):
            text = self._product(common)
        else:
            text = self._codewords(common, group, i)
        writer.put(text + ";")

    def _codewords(self, common, group, i):
        tensor, writer = self.tensor, self._writer
        words = self._words(tensor.codewords)
        n = tensor.codewords.shape[1]
        if tensor.codewords.dtype == np.int8 and tensor.per == "tensor":
            return writer.call("row_of_levels", *common, words)
        if tensor.codewords.dtype == np.int8:
            raise ValueError(f"codebooks of bytes per {tensor.per} are not written in C")
        if tensor.per == "row":
            words = f"{words} + {i} * {n}"
        apart = n if tensor.per == "group" else 0
        return writer.call("row_of_codewords", *common, words, apart, group)

    def _product(self, common):
        books = self.tensor.codewords
        halves = books.dtype == np.float16
        words = self._words(books if halves else books.astype(np.float32))
        function = "row_of_products" if halves else "row_of_float_products"
        return self._writer.call(function, *common, words, *books.shape)

    def _words(self, words):
        if "words" not in self._parts:
            self._parts["words"] = self._writer.array(f"{self._name} codewords", words)
        return self._parts["words"]

    def scales(self, i):
        """Where the scales of row `i` lie."""
        groups = self.tensor.n_groups
        return self._parts["scales"] + (f" + {i} * {groups}" if len(self.tensor.scales) > 1 else "")

    def _scaled(self, row, i):
        tensor = self.tensor
        function = "scale" if tensor.scales.dtype == np.float16 else "scale_by_floats"
        group = tensor.group or self.width
        return self._writer.call(
            function, row, self.width, self.scales(i), group, tensor.exponent
        ) + ";"  # fmt: skip


# ---- layers --------------------------------------------------------------------------------------


def _rows_of(writer, x, width):
    """How many rows a layer's input has."""
    return writer.size(x) // width


def _finished(writer, out, y, activation, alpha, beta, suffix="f"):
    """The lines that put the value of `y`, an expression, through the activation."""
    kind = "float" if suffix else "double"
    if activation == "identity":
        writer.put(f"{out} = {y};")
        return
    writer.put(f"const {kind} v = {y};")
    writer.put(f"{out} = {_unary_text('v', activation, alpha, beta, suffix)};")


class _EachOutput:
    """The loops of a layer: over outputs, and within over rows where there are several."""

    def __init__(self, writer, node, n, rows):
        self._writer, self._rows = writer, rows
        self.y = writer.make(node.outputs[0])
        self.place = f"{self.y}[i]" if rows == 1 else f"{self.y}[r * {n} + i]"
        writer.put(f"for (uint32_t i = 0; i < {n}; i++) {{")

    def row(self, x, width):
        """Begin with a row: where it lies."""
        if self._rows == 1:
            return x
        self._writer.put(f"for (uint32_t r = 0; r < {self._rows}; r++) {{")
        return f"{x} + r * {width}"

    def end(self):
        self._writer.put(*["}"] * (1 + (self._rows > 1)))


def _bias(writer, node, place, index="i"):
    """The text that adds a bias, where there is one."""
    name = node.inputs[place] if len(node.inputs) > place else ""
    return f" + {writer.read(name)}[{index}]" if name else ""


@_exports("Dense")
def _dense(writer, node, *, activation, alpha, beta):
    if writer.form(node.inputs[0]).dtype != np.float32:
        raise ValueError("in C dense layers are of float32")
    x, rows, bias = (
        writer.read(node.inputs[0]),
        _Rows(writer, node.inputs[1]),
        _bias(writer, node, 2),
    )
    each = _EachOutput(
        writer, node, rows.tensor.shape[0], _rows_of(writer, node.inputs[0], rows.width)
    )
    weight = rows.decoded("i")
    dot = writer.call("dot", each.row(x, rows.width), weight, rows.width)
    _finished(writer, each.place, f"{dot}{bias}", activation, alpha, beta)
    each.end()


@_exports("CodedDense")
def _coded_dense(writer, node, *, activation, alpha, beta):
    if has_tables(writer.graph.constants.get(node.inputs[1])):  # decoded row by row
        _dense(writer, node, activation=activation, alpha=alpha, beta=beta)
        return
    x, rows, bias = (
        writer.read(node.inputs[0]),
        _Rows(writer, node.inputs[1]),
        _bias(writer, node, 2),
    )
    tensor, width = rows.tensor, rows.width
    group, count = tensor.group or width, _rows_of(writer, node.inputs[0], width)
    q = writer.scratch("int8_t", "q", count * width)
    steps = writer.scratch("float", "steps", count * tensor.n_groups)
    for r in range(count):
        writer.put(writer.call(
            "round_groups", f"{x} + {r * width}", width, group, f"{q} + {r * width}",
            f"{steps} + {r * tensor.n_groups}",
        ) + ";")  # fmt: skip
    each = _EachOutput(writer, node, tensor.shape[0], count)
    rows.levels("i")
    dot = writer.call(
        "dot_of_groups", "row", each.row(q, width), _row_number(steps, count, tensor.n_groups),
        rows.scales("i"), _real(2.0**tensor.exponent), width, group,
    )  # fmt: skip
    writer.put(f"const float real = {dot};")
    _finished(writer, each.place, f"real{bias}", activation, alpha, beta)
    each.end()


def _row_number(array, count, width):
    return array if count == 1 else f"{array} + r * {width}"


@_exports("DynamicDense")
def _dynamic_dense(writer, node, *, activation, alpha, beta):
    x, weight, scale = (writer.read(name) for name in node.inputs[:3])
    n, width = writer.form(node.inputs[1]).shape
    bias, count = _bias(writer, node, 3), _rows_of(writer, node.inputs[0], width)
    q = writer.scratch("int8_t", "q", count * width)
    steps = writer.scratch("float", "steps", count)
    zeros = writer.scratch("int32_t", "zeros", count)
    for r in range(count):
        rounded = writer.call(
            "round_row", f"{x} + {r * width}", width, f"{q} + {r * width}", f"&{zeros}[{r}]"
        )
        writer.put(f"{steps}[{r}] = {rounded};")
    each = _EachOutput(writer, node, n, count)
    row, r = each.row(q, width), 0 if count == 1 else "r"
    dot = writer.call("dot_of_bytes", row, f"{weight} + i * {width}", width, f"{zeros}[{r}]")
    each_scale = f"{scale}[{'i' if writer.size(node.inputs[2]) > 1 else 0}]"
    writer.put(f"const float real = (float){dot} * {each_scale} * {steps}[{r}];")
    _finished(writer, each.place, f"real{bias}", activation, alpha, beta)
    each.end()


@_exports("QDense")
def _q_dense(writer, node, *, dtype, x_zero_point, y_zero_point, low, high):
    x, weight, multiplier = (writer.read(name) for name in node.inputs[:3])
    n, width = writer.form(node.inputs[1]).shape
    bias = _bias(writer, node, 3)
    each = _EachOutput(writer, node, n, _rows_of(writer, node.inputs[0], width))
    row = each.row(x, width)
    dot = writer.call("dot_of_bytes", row, f"{weight} + i * {width}", width, x_zero_point)
    factor = f"{multiplier}[{'i' if writer.size(node.inputs[2]) > 1 else 0}]"
    writer.put(f"const float real = (float)({dot}{bias}) * {factor};")
    if dtype == "float32":
        writer.put(f"{each.place} = real;")
    else:
        q = _rounded(writer, "real", y_zero_point, dtype, low, high)
        if len(node.inputs) > 4 and node.inputs[4]:
            q = f"{writer.read(node.inputs[4])}[(int){q} + 128]"
        writer.put(f"{each.place} = ({TYPES[dtype]}){q};")
    each.end()


def _rounded(writer, real, zero, dtype, low=None, high=None):
    limits = np.iinfo(dtype)
    low = limits.min if low is None else max(low, limits.min)
    high = limits.max if high is None else min(high, limits.max)
    return writer.call("round", real, zero, low, high)


# ---- bytes and floats ----------------------------------------------------------------------------


def _of_channel(writer, name, last, i="i"):
    """The text of a scale or zero point: of all, or of the channel that value number i is of."""
    if not name:
        return "0"
    n = writer.size(name)
    return f"{writer.read(name)}[{0 if n == 1 else i if n == last else f'{i} % {n}'}]"


def _each_value(writer, node, text):
    """y[i] = text for all values of the output."""
    y, n = writer.make(node.outputs[0]), writer.size(node.outputs[0])
    lines = [text] if isinstance(text, str) else text
    *before, last = lines
    writer.put(f"for (uint32_t i = 0; i < {n}; i++) {{", *before, f"{y}[i] = {last};", "}")


def _third(node, place=2):
    return node.inputs[place] if len(node.inputs) > place else ""


@_exports("Quantize")
def _quantize(writer, node, *, dtype):
    x, n = writer.read(node.inputs[0]), writer.size(node.inputs[0])
    scale, zero = (_of_channel(writer, name, n) for name in (node.inputs[1], _third(node)))
    rounded = _rounded(writer, "isnan(real) ? 0 : real", zero, dtype)
    _each_value(
        writer, node, [f"const float real = {x}[i] / {scale};", f"({TYPES[dtype]}){rounded}"]
    )


@_exports("Dequantize")
def _dequantize(writer, node):
    x, n = writer.read(node.inputs[0]), writer.size(node.inputs[0])
    scale, zero = (_of_channel(writer, name, n) for name in (node.inputs[1], _third(node)))
    _each_value(writer, node, f"(float)({x}[i] - {zero}) * {scale}")


@_exports("Requantize")
def _requantize(writer, node, *, x_zero_point):
    x, n = writer.read(node.inputs[0]), writer.size(node.inputs[0])
    scale, zero = (_of_channel(writer, name, n) for name in (node.inputs[1], _third(node)))
    rounded = _rounded(writer, "real", zero, "int8")
    _each_value(
        writer, node,
        [f"const float real = (float)({x}[i] - {x_zero_point}) * {scale};", f"(int8_t){rounded}"],
    )  # fmt: skip


@_exports("QTable")
def _table(writer, node):
    x, table = (writer.read(name) for name in node.inputs)
    _each_value(writer, node, f"{table}[{x}[i] + 128]")


# ---- value by value ------------------------------------------------------------------------------

# Functions of a value x; {f} ends the names of libm's functions, {a} and {b} are the parameters.
_UNARY = {
    "identity": "x",
    "relu": "x < 0 ? 0 : x",
    "clip": "x < {a} ? {a} : x > {b} ? {b} : x",
    "leaky_relu": "x >= 0 ? x : x * {a}",
    "thresholded_relu": "x <= {a} ? 0 : x",
    "elu": "x > 0 ? x : {a} * expm1{f}(x)",
    "selu": "{b} * (x > 0 ? x : {a} * expm1{f}(x))",
    "celu": "x > 0 ? x : {a} * expm1{f}(x / {a})",
    "softplus": "(x > 0 ? x : 0) + log1p{f}(exp{f}(-fabs{f}(x)))",
    "softsign": "x / (1 + fabs{f}(x))",
    "hard_sigmoid": "fmin{f}(fmax{f}(x * {a} + {b}, 0), 1)",
    "hard_swish": "x * fmin{f}(fmax{f}(x / 6 + {half}, 0), 1)",
    "sigmoid": "1 / (1 + exp{f}(-x))",
    "silu": "x / (1 + exp{f}(-x))",
    "gelu": "{half} * x * (1 + erf{f}(x * {root}))",
    "reciprocal": "1 / x",
    "abs": "fabs{f}(x)",
    "negative": "-x",
    "sign": "(x > 0) - (x < 0)",
    "round": "rint{f}(x)",
    "not": "!x",
    "isnan": "isnan(x) != 0",
    "isinf": "isinf(x) != 0",
    **{name: f"{name}{{f}}(x)" for name in ("tanh", "erf", "exp", "log", "sqrt", "floor", "ceil")},
    **{name: f"{name}{{f}}(x)" for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh")},
    **{name: f"{name}{{f}}(x)" for name in ("cosh", "asinh", "acosh", "atanh")},
}
# Those that numbers of any type go through.
_OF_ANY = frozenset(["identity", "relu", "negative", "not", "sign"])


def _real(value, suffix="f"):
    return number((np.float32 if suffix else np.float64)(value))


def _unary_text(x, function, alpha, beta, suffix):
    parameters = {"a": alpha, "b": beta, "half": 0.5, "root": math.sqrt(0.5)}
    texts = {name: _real(value, suffix) for name, value in parameters.items()}
    return re.sub(r"\bx\b", x, _UNARY[function]).format(f=suffix, **texts)


@_exports("Unary")
def _unary(writer, node, *, function, alpha, beta):
    (name,) = node.inputs
    x = f"{writer.read(name)}[i]"
    suffix = "" if function in _OF_ANY else writer.suffix(name)
    _each_value(writer, node, _unary_text(x, function, alpha, beta, suffix))


_BINARY = {
    **dict(add="a + b", subtract="a - b", multiply="a * b", divide="a / b"),
    **dict(minimum="a < b || a != a ? a : b", maximum="a > b || a != a ? a : b"),
    **dict(prelu="a < 0 ? a * b : a", power="pow{f}(a, b)", remainder="fmod{f}(a, b)"),
    **dict(equal="a == b", less="a < b", less_equal="a <= b"),
    **dict(greater="a > b", greater_equal="a >= b", xor="a != b"),
    **{"and": "a && b", "or": "a || b"},
}
_OF_FLOATS = frozenset(["divide", "power", "remainder"])


@_exports("Binary")
def _binary(writer, node, *, function):
    a, b = node.inputs
    suffix = writer.suffix(a) if function in _OF_FLOATS else ""
    shape = writer.form(node.outputs[0]).shape
    texts = {key: _broadcast(writer, name, shape) for key, name in (("a", a), ("b", b))}
    text = _BINARY[function].format(f=suffix)
    _each_value(writer, node, re.sub(r"\b[ab]\b", lambda match: texts[match.group()], text))


@_exports("Where")
def _where(writer, node):
    shape = writer.form(node.outputs[0]).shape
    condition, a, b = (_broadcast(writer, name, shape) for name in node.inputs)
    _each_value(writer, node, f"{condition} ? {a} : {b}")


@_exports("Cast")
def _cast(writer, node, *, dtype):
    x = f"{writer.read(node.inputs[0])}[i]"
    _each_value(writer, node, f"{x} != 0" if dtype == "bool" else f"({TYPES[dtype]}){x}")


def _broadcast(writer, name, shape):
    """The text of the value that meets value number i of this shape."""
    numbers = np.arange(writer.size(name)).reshape(writer.form(name).shape)
    return _taken(writer, name, np.broadcast_to(numbers, shape).ravel())


def _taken(writer, name, numbers):
    """The text of value number numbers[i]: of a plain rule, or else of a table."""
    x, n = writer.read(name), writer.size(name)
    i = np.arange(len(numbers))
    step = int(numbers[1] - numbers[0]) if len(numbers) > 1 else 1
    first = int(numbers[0]) if len(numbers) else 0
    if np.array_equal(numbers, first + step * i):
        rule = "i" if step == 1 else f"i * {step}" if step else ""
        rule = f"{first} + {rule}" if first and rule else rule or str(first)
        return f"{x}[{rule}]"
    if np.array_equal(numbers, i % n):
        return f"{x}[i % {n}]"
    table = writer.array(f"{name} places", numbers.astype(np.uint16 if n < 1 << 16 else np.uint32))
    return f"{x}[{table}[i]]"


# ---- movement ------------------------------------------------------------------------------------


@_exports("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Slice", "Split",
          "Transpose", "Gather")  # fmt: skip
def _move(writer, node, **_):
    """Values in other places: which, the definition tells, of their numbers."""
    name, *others = node.inputs
    arrays = [writer.value(other) if other else None for other in others]
    if any(other and array is None for other, array in zip(others, arrays, strict=True)):
        raise ValueError("what moves its values depends on data")
    numbers = np.arange(writer.size(name)).reshape(writer.form(name).shape)
    found = operators()[node.operator].run([numbers, *arrays], node.attributes)
    for output, places in zip(node.outputs, found, strict=False):
        places = places.ravel()
        if np.array_equal(places, numbers.ravel()):
            writer.alias(output, name)
            continue
        y, text = writer.make(output), _taken(writer, name, places)
        writer.put(f"for (uint32_t i = 0; i < {len(places)}; i++) {{", f"{y}[i] = {text};", "}")


@_exports("Concat")
def _concat(writer, node, *, axis):
    sizes = [writer.size(name) for name in node.inputs]
    starts = np.cumsum([0, *sizes])
    numbers = [
        np.arange(first, first + size).reshape(writer.form(name).shape)
        for first, size, name in zip(starts, sizes, node.inputs, strict=False)
    ]
    whole = np.concatenate(numbers, axis).ravel()
    y = writer.make(node.outputs[0])
    for first, size, name in zip(starts, sizes, node.inputs, strict=False):
        (places,) = np.nonzero((whole >= first) & (whole < first + size))
        if len(places) and (np.diff(places) != 1).any():
            raise ValueError("in C values are put together along the last axis alone")
        if len(places):
            writer.put(f"memcpy({y} + {places[0]}, {writer.read(name)}, sizeof(*{y}) * {size});")


# ---- along an axis -------------------------------------------------------------------------------


def _last_axis(writer, name, axis):
    """Values that lie beside each other along an axis, and how many such runs there are."""
    shape = writer.form(name).shape
    axis %= len(shape)
    if math.prod(shape[axis + 1 :]) != 1:
        raise ValueError("in C only the last axis is walked along")
    return shape[axis], math.prod(shape[:axis])


@_exports("ArgMax")
def _arg_max(writer, node, *, axis, keep, last, least):
    x, y = writer.read(node.inputs[0]), writer.make(node.outputs[0])
    n, runs = _last_axis(writer, node.inputs[0], axis)
    sign = ("<" if least else ">") + "=" * bool(last)
    writer.put(
        f"for (uint32_t i = 0; i < {runs}; i++) {{",
        f"{y}[i] = 0;",
        f"for (uint32_t k = 1; k < {n}; k++) {{",
        f"if ({x}[i * {n} + k] {sign} {x}[i * {n} + {y}[i]]) {{",
        f"{y}[i] = k;",
        "}", "}", "}",
    )  # fmt: skip


@_exports("Softmax")
def _softmax(writer, node, *, axis, log):
    (name,) = node.inputs
    x, y, kind, f = (
        writer.read(name),
        writer.make(node.outputs[0]),
        writer.type(name),
        writer.suffix(name),
    )
    n, runs = _last_axis(writer, name, axis)
    place = f"[i * {n} + k]"
    each = f"for (uint32_t k = 0; k < {n}; k++) {{"
    ending = f"{y}{place} -= log{f}(total);" if log else f"{y}{place} /= total;"
    power = f"exp{f}({x}{place} - most)"
    writer.put(
        f"for (uint32_t i = 0; i < {runs}; i++) {{",
        f"{kind} most = {x}[i * {n}], total = 0;",
        each, f"most = fmax{f}(most, {x}{place});", "}",
        each, f"{y}{place} = {f'{x}{place} - most' if log else power};",
        f"total += {f'exp{f}({y}{place})' if log else f'{y}{place}'};", "}",
        each, ending, "}", "}",
    )  # fmt: skip


_REDUCE = {
    "sum": ("0", "v + x"),
    "mean": ("0", "v + x"),
    "max": ("-INFINITY", "x > v || x != x ? x : v"),
    "min": ("INFINITY", "x < v || x != x ? x : v"),
    "product": ("1", "v * x"),
    "sum_square": ("0", "v + x * x"),
    "l2": ("0", "v + x * x"),
    "l1": ("0", "v + fabs{f}(x)"),
}


@_exports("Reduce")
def _reduce(writer, node, *, function, keep):
    name = node.inputs[0]
    start, text = _REDUCE[function]
    axes = writer.value(node.inputs[1]) if _third(node, 1) else None
    shape, f = writer.form(name).shape, writer.suffix(name)
    axes = range(len(shape)) if axes is None else sorted(int(a) % len(shape) for a in axes.ravel())
    n = math.prod(shape[a] for a in axes)
    if any(shape[a] != 1 for a in range(len(shape)) if a not in axes and a > min(axes, default=0)):
        raise ValueError("in C only the last axes are walked along")
    x, y, count = writer.read(name), writer.make(node.outputs[0]), writer.size(node.outputs[0])
    text = re.sub(r"\bx\b", f"{x}[i * {n} + k]", text).format(f=f)
    ends = {"mean": f"v / {n}", "l2": f"sqrt{f}(v)"}
    writer.put(
        f"for (uint32_t i = 0; i < {count}; i++) {{",
        f"{writer.type(name)} v = {start};",
        f"for (uint32_t k = 0; k < {n}; k++) {{", f"v = {text};", "}",
        f"{y}[i] = {ends.get(function, 'v')};", "}",
    )  # fmt: skip


# ---- trees ---------------------------------------------------------------------------------------

_TESTS = {
    0: "v <= {t}",
    ABOVE: "v > {t}",
    EQUAL: "v == {t}",
    CATEGORY: "{member}",
}
_GATHER = {"minimum": "fmin", "maximum": "fmax"}


@_exports("TreeEnsemble")
def _trees(writer, node, *, aggregate):
    """Each row walks down each tree: a node holds its feature and its first child, a leaf -1 and
    the place of its values."""
    inputs = [*node.inputs, *[""] * (9 - len(node.inputs))]
    forest = Forest(*(writer.value(name) if name else None for name in inputs[1:]))
    forest.check(writer.form(inputs[0]).shape[-1])
    if writer.size(node.outputs[0]) != len(forest.base):
        raise ValueError("in C ensembles of trees take one row")
    names = _tree_arrays(writer, node, forest, inputs)
    x, y = writer.read(inputs[0]), writer.make(node.outputs[0])
    width, outputs, trees = forest.values.shape[1], len(forest.base), len(forest.roots)
    value = _one(writer, inputs[4], f"({names['child']}[node] * {width} + k)")
    target = f"{names['target']}[tree] + k" if "target" in names else "k"
    sum_ = f"total[{target}] += {value};"
    if aggregate in _GATHER:
        sum_ = f"total[{target}] = {_GATHER[aggregate]}(total[{target}], {value});"
    start = {"minimum": "INFINITY", "maximum": "-INFINITY"}.get(aggregate, "0")
    writer.stack += 8 * outputs
    writer.put(
        "{", f"double total[{outputs}];",
        f"for (uint32_t k = 0; k < {outputs}; k++) {{", f"total[k] = {start};", "}",
        f"for (uint32_t tree = 0; tree < {trees}; tree++) {{",
        f"uint32_t node = {names['roots']}[tree];",
        f"while ({names['feature']}[node] >= 0) {{",
        f"const {writer.type(inputs[0])} v = {x}[{names['feature']}[node]];",
        f"node = {names['child']}[node] + !({_holds(writer, forest, inputs, names)});", "}",
        f"for (uint32_t k = 0; k < {width}; k++) {{", sum_, "}", "}",
        f"for (uint32_t k = 0; k < {outputs}; k++) {{",
        f"{y}[k] = ({writer.type(node.outputs[0])})({names['base']}[k] + total[k]"
        f"{f' / {trees}' if aggregate == 'mean' else ''});", "}", "}",
    )  # fmt: skip


def _tree_arrays(writer, node, forest, inputs):
    """The arrays of constants of an ensemble, by what they hold."""
    label = node.name
    child = np.where(forest.leaf, forest.leaf_row, forest.first)
    arrays = {
        "roots": _narrow(forest.roots),
        "feature": _narrow(forest.feature, signed=True),
        "child": _narrow(child),
        "base": forest.base.astype(np.float64),
    }
    if forest.target.any():
        arrays["target"] = _narrow(forest.target)
    if forest.test.any():
        arrays["test"] = forest.test.astype(np.uint8)
    if len(forest.categories):
        arrays["categories"] = forest.categories
    return {key: writer.array(f"{label} {key}", array) for key, array in arrays.items()}


def _narrow(values, signed=False):
    """Whole numbers in the smallest type that holds them."""
    kinds = ("int8", "int16", "int32") if signed else ("uint8", "uint16", "uint32")
    kind = next(k for k in kinds if values.max(initial=0) <= np.iinfo(k).max)
    return values.astype(kind)


def _holds(writer, forest, inputs, names):
    """The text of a node's test."""
    threshold = _one(writer, inputs[3], "node")
    if not forest.test.any():
        return _TESTS[0].format(t=threshold)
    kinds = [int(kind) for kind in np.unique(forest.test[~forest.leaf])]
    parameters = {"t": threshold}
    if CATEGORY in kinds:
        place = f"{names['categories']} + 32 * (uint32_t){threshold}"
        parameters["member"] = writer.call("is_member", "v", place)
    texts = {kind: _TESTS[kind].format(**parameters) for kind in kinds}
    *some, last = kinds or [0]
    asked = [f"{names['test']}[node] == {kind} ? {texts[kind]} : " for kind in some]
    return "".join(asked) + texts.get(last, _TESTS[0].format(**parameters))


def _one(writer, name, i):
    """The text of value number `i` of a constant of numbers, decoded where it is read."""
    tensor = writer.graph.constants.get(name)
    if isinstance(tensor, Codebook) and tensor.per == "tensor" and tensor.scales is None:
        codes = writer.array(f"{name} codes", tensor.codes)
        words = writer.array(f"{name} codewords", tensor.codewords[0])
        return f"{words}[{writer.call('code', codes, i, tensor.bits)}]"
    if isinstance(tensor, Raw) and tensor.values.dtype == np.float16:
        return writer.call("half", f"{writer.array(name, tensor.values)}[{i}]")
    return f"{writer.read(name)}[{i}]"
