"""Source text of C: a header in the making, its constants, and the functions that it needs.

What becomes of each operator stands in `c.py`.
"""

from __future__ import annotations

import math
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from fastvq.runtime.layout import forms as forms_of
from fastvq.runtime.ops import operators

__all__ = ["TYPES", "Source", "Writer", "identifier", "number"]

_WIDTH = 96
TYPES = {
    **{name: f"{name}_t" for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32")},
    **{"int64": "int64_t", "float32": "float", "float64": "double", "bool": "uint8_t"},
}


class Source(NamedTuple):
    """A model in C.

    Attributes
    ----------
    name : str
        What all names of it begin with.
    header : str
    arrays : dict of str to ndarray
        The constants, by their names in the header; float16 as its bits.
    """

    name: str
    header: str
    arrays: dict[str, np.ndarray]


class Writer:
    """A header in the making."""

    def __init__(self, graph, metadata, name):
        self.graph, self.metadata, self.name = graph, metadata, name
        self.arrays: dict[str, np.ndarray] = {}
        self.stack = 0
        self._forms = forms_of(graph, 1)
        self._lines: list[str] = []
        self._functions: set[str] = set()
        self._names: dict[str, str] = {}  # of values, in C
        own = (*_functions(), "run", "classes")
        self._taken = {*_RESERVED, *(f"{name}_{each}" for each in own)}
        self._scratch: dict[str, int] = {}

    def written(self, exports) -> Source:
        for value in self.graph.inputs:
            self._names[value.name] = self._new(value.name)
        given = [self._new(value.name) for value in self.graph.outputs]
        for node in self.graph.nodes:
            if not all(self._is_known(name) for name in node.outputs):
                self._write(node, exports)
        for value, pointer in zip(self.graph.outputs, given, strict=True):
            self._give(value.name, pointer)
        return Source(self.name, self._header(given), self.arrays)

    def _write(self, node, exports):
        if node.operator not in exports:
            raise ValueError(f"{node}: the export to C does not write this operator")
        if missing := [n for n in (*node.inputs, *node.outputs) if n and n not in self._forms]:
            raise ValueError(f"{node}: the shape of {missing[0]!r} cannot be told")
        self.put("", f"/* {_comment(str(node))} */")
        try:
            exports[node.operator](
                self, node, **operators()[node.operator].complete(node.attributes)
            )
        except KeyError as error:
            raise ValueError(f"{node}: the export to C does not write {error}") from None
        except ValueError as error:
            raise ValueError(f"{node}: {error}") from None

    # ---- values ------------------------------------------------------------------------------

    def form(self, name):
        return self._forms[name]

    def size(self, name):
        return math.prod(self._forms[name].shape)

    def suffix(self, name):
        """What the functions of libm for values of this type end in."""
        return {"float32": "f", "float64": ""}[self._forms[name].dtype.name]

    def type(self, name):
        return TYPES[self._forms[name].dtype.name]

    def value(self, name):
        """The values of a constant, or of what follows from constants; None of others."""
        if name in self.graph.constants:
            return self.graph.constants[name].decode()
        return self._forms[name].value

    def _is_known(self, name):
        return name in self._forms and self._forms[name].value is not None

    def read(self, name):
        """Where the values of a name lie, in C."""
        if name not in self._names:
            value = self.value(name)
            if value is None:
                raise ValueError(f"nothing has made {name!r}")
            self._names[name] = self.array(name, value)
        return self._names[name]

    def make(self, name):
        """Room for the values of a name, in C."""
        self._names[name] = c = self._new(name)
        self.put(f"{self.type(name)} {c}[{max(self.size(name), 1)}];")
        self.stack += self.size(name) * self._forms[name].dtype.itemsize
        return c

    def alias(self, name, other):
        """One value lies where another does."""
        self._names[name] = self.read(other)

    def scratch(self, kind, name, size):
        """An array that layers share: `name`, as large as the largest of them needs."""
        self._scratch[f"{kind} {name}"] = max(self._scratch.get(f"{kind} {name}", 0), size)
        return name

    # ---- text --------------------------------------------------------------------------------

    def put(self, *lines):
        """Lines of the function; a line that ends in a brace begins a block."""
        self._lines += lines

    def call(self, function, *arguments):
        """A call of a function of `device.h`, which is then part of the header."""
        self._functions.add(function)
        return f"fvq_{function}({', '.join(map(str, arguments))})"

    def array(self, name, values):
        """The name of an array of constants."""
        values = np.ascontiguousarray(values)
        if not values.size:
            raise ValueError(f"{name!r} is empty")
        c = self._new(f"{self.name}_{identifier(name)}")
        self.arrays[c] = values.view(np.uint16) if values.dtype == np.float16 else values
        return c

    def _new(self, name):
        c = base = identifier(name)
        number = 2
        while c in self._taken:
            c, number = f"{base}_{number}", number + 1
        self._taken.add(c)
        return c

    def _give(self, name, pointer):
        self.put("", f"if ({pointer} != NULL) {{",
                 f"memcpy({pointer}, {self.read(name)}, sizeof(*{pointer}) * {self.size(name)});",
                 "}")  # fmt: skip

    def _header(self, given):
        guard = self.name.upper()
        values = [*self.graph.inputs, *self.graph.outputs]
        names = [*(self._names[value.name] for value in self.graph.inputs), *given]
        sizes = {c: self.size(v.name) for c, v in zip(names, values, strict=True)}
        form = f"void {self.name}_run({self._parameters(given)})"
        constants = sum(array.nbytes for array in self.arrays.values())
        scratch = [f"{key}[{size}];" for key, size in sorted(self._scratch.items())]
        room = sum(
            size * (1 if key.startswith("int8") else 4) for key, size in self._scratch.items()
        )
        functions = [self._named(text) for text in _needed(self._functions)]
        body = self._named(_indented([*scratch, *self._lines], 1))
        parts = [
            _ABOUT.format(name=self.name, guard=guard, constants=f"{constants:,}",
                          stack=f"{self.stack + room:,}"),
            f"#ifndef {guard}_H\n#define {guard}_H\n\n#include <stdint.h>",
            "\n".join(f"#define {guard}_{c.upper()}_SIZE {n}" for c, n in sizes.items()),
            '#ifdef __cplusplus\nextern "C" {\n#endif',
            f"/* The outputs for one row; of an output that is not wanted: NULL. */\n{form};",
            *self._classes(guard, "extern"),
            "#ifdef __cplusplus\n}\n#endif",
            f"#endif /* {guard}_H */",
            f"#ifdef {guard}_IMPLEMENTATION",
            "#include <math.h>\n#include <stddef.h>\n#include <string.h>",
            *self._classes(guard, ""),
            *(_constant(c, array) for c, array in self.arrays.items()),
            *functions,
            f"{form}\n{{\n{body}\n}}",
            f"#undef {guard}_IMPLEMENTATION /* it may be included again */\n#endif",
        ]  # fmt: skip
        return "\n\n".join(parts) + "\n"

    def _named(self, text):
        """The text with the model's name in those of functions."""
        return re.sub(r"\bfvq_(?=\w+\()", f"{self.name}_", text)

    def _parameters(self, given):
        inputs = [f"const {self.type(v.name)} *{self._names[v.name]}" for v in self.graph.inputs]
        outputs = [
            f"{self.type(v.name)} *{c}" for v, c in zip(self.graph.outputs, given, strict=True)
        ]
        return ", ".join([*inputs, *outputs]) or "void"

    def _classes(self, guard, storage):
        """What the numbers of classes stand for."""
        classes = self.metadata.get("classes")
        if classes is None or not len(classes) or isinstance(classes[0], (list, tuple, np.ndarray)):
            return []
        n = len(classes)
        if storage:
            return [
                f"#define {guard}_CLASSES {n}\n"
                f"extern const char *const {self.name}_classes[{guard}_CLASSES];"
            ]
        names = _wrapped([_string(str(each)) for each in classes])
        return [f"const char *const {self.name}_classes[{guard}_CLASSES] = {{\n{names}\n}};"]


_ABOUT = """\
/* {name}: a model, written by fastvq.

   In one source file of a program:

       #define {guard}_IMPLEMENTATION
       #include "{name}.h"

   and in others the second line alone. C99; link libm (-lm).
   {constants} bytes of constants; {name}_run keeps {stack} bytes on the stack. */"""

# What C and C++ keep for themselves, what libm has, and what lines of the function use.
_WORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int
long register restrict return short signed sizeof static struct switch typedef union unsigned void
volatile while bool class new delete this template namespace operator private public protected
virtual friend using try catch throw true false main memcpy exp expm1 log log1p sqrt fabs fmin fmax
fmod pow rint floor ceil tanh erf sin cos tan asin acos atan sinh cosh asinh acosh atanh isnan isinf
isfinite ldexp NULL NAN INFINITY i k r v total tree node row q steps zeros real most
"""
_RESERVED = frozenset(_WORDS.split())


# A comment that ends on the line before, and the function up to the brace at the start of a line.
_FUNCTION = r"^(?:/\*(?:(?!\*/).)*\*/\n)?static [^;]*?\bfvq_(?P<name>\w+)\(.*?^}"


@cache
def _functions():
    """The functions of `device.h`, by name, in order, each with the comment before it."""
    text = files(__package__).joinpath("device.h").read_text()
    found = re.finditer(_FUNCTION, text, re.M | re.S)
    return {match["name"]: match.group() for match in found}


def _needed(names):
    """Functions of these names and those that they call, in the order of `device.h`."""
    known, wanted = _functions(), set()
    waiting = [*names]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += re.findall(r"fvq_(\w+)\(", known[name])
    return [text for name, text in known.items() if name in wanted]


def _indented(lines, depth):
    found = []
    for line in lines:
        depth -= line.startswith("}")
        found.append("    " * depth + line if line else "")
        depth += line.endswith("{")
    return "\n".join(found)


def _constant(name, array):
    numbers = _wrapped([number(value) for value in array.ravel()])
    return f"static const {TYPES[array.dtype.name]} {name}[{array.size}] = {{\n{numbers}\n}};"


def _wrapped(items):
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > _WIDTH:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return "\n".join([*lines, line])


def number(value):
    """A number as C has it."""
    value = np.asarray(value)[()]
    if value.dtype.kind != "f":
        return "INT64_MIN" if value == np.iinfo(np.int64).min else str(int(value))
    if not np.isfinite(value):
        return "NAN" if np.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"
    return str(value) + ("f" if value.dtype == np.float32 else "")


def identifier(name):
    """A name that C takes."""
    found = re.sub(r"\W+", "_", str(name), flags=re.ASCII).strip("_") or "value"
    return found if not found[0].isdigit() else f"n{found}"


def _comment(text):
    text = text.encode("ascii", "backslashreplace").decode()
    return text.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?").replace("\n", " ")


def _string(text):
    """A string of C, in UTF-8; every escape is of three digits, so that none runs on."""
    plain = [
        chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode()
    ]
    return f'"{"".join(plain)}"'
