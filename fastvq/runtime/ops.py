"""The operators: what each computes, in plain NumPy, and which shape comes out.

A function in `fastvq.runtime.definitions` IS an operator's meaning; compiled kernels are tested
against it, and the level "numpy" runs it. Its positional arguments are the node's inputs (None
where one is left out), its keyword arguments the node's attributes; the type of a default is the
attribute's type, and without a default an attribute has to be given. The shape rule beside it takes
the same arguments, with inputs of which only ``shape`` and ``dtype`` are sure, and ``value`` where
it is known before the model runs; it returns (shape, dtype), or a list of them.

Pictures and sequences have their channels last: (N, height, width, C), (N, length, C).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

__all__ = ["Form", "Operator", "known", "operator", "operators"]


class Form(NamedTuple):
    """What is known of a value before the model runs."""

    shape: tuple[int, ...]
    dtype: np.dtype
    value: np.ndarray | None = None


class Operator:
    """A row of the table: the meaning, the shape rule, and what a node of it may look like."""

    def __init__(self, name: str, compute: Callable, weights: tuple, n_outputs: int, encoded=()):
        self.name, self.compute, self.weights, self.n_outputs = name, compute, weights, n_outputs
        self.encoded = encoded
        self.__doc__ = compute.__doc__
        parameters = inspect.signature(compute).parameters.values()
        places = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.most = None if self.any_number else len(places)
        self.least = sum(p.default is p.empty for p in places)
        self.attributes = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.shape_rule: Callable = None  # type: ignore[assignment]

    def shape(self, rule: Callable) -> Callable:
        """Decorator of the shape rule."""
        self.shape_rule = rule
        return rule

    def forms(self, inputs, attributes: Mapping) -> list[Form]:
        """Shape and dtype of each output; a ValueError where the inputs do not go together."""
        found = self.shape_rule(*inputs, **self.complete(attributes))
        found = found if isinstance(found, list) else [found]
        return [Form(tuple(int(n) for n in shape), np.dtype(dtype)) for shape, dtype in found]

    def run(self, arrays, attributes: Mapping) -> list[np.ndarray]:
        """Compute by the definition; infinity and NaN come and go without a warning."""
        with np.errstate(all="ignore"):
            found = self.compute(*arrays, **self.complete(attributes))
        return [np.asarray(a) for a in (found if isinstance(found, (list, tuple)) else [found])]

    def complete(self, attributes: Mapping) -> dict:
        """The attributes with the defaults of those that are not given."""
        return {**self.attributes, **attributes}

    def check(self, inputs, outputs, attributes: Mapping) -> None:
        """A ValueError where a node of these is none of this operator."""
        most = len(inputs) if self.any_number else self.most
        needed = inputs if self.any_number else inputs[: self.least]
        if not self.least <= len(inputs) <= most or "" in needed:
            raise ValueError(f"takes {self.least} to {self.most} inputs, got {len(inputs)}")
        if self.n_outputs and not 1 <= len(outputs) <= self.n_outputs:
            raise ValueError(f"has up to {self.n_outputs} outputs, got {len(outputs)}")
        if not outputs:
            raise ValueError("has no output")
        if unknown := set(attributes) - set(self.attributes):
            raise ValueError(f"has no attribute {', '.join(sorted(unknown))}")
        for name, default in self.attributes.items():
            if name not in attributes:
                if default is inspect.Parameter.empty:
                    raise ValueError(f"needs the attribute {name!r}")
            elif not _fits(attributes[name], default):
                wanted = type(default).__name__
                raise ValueError(f"attribute {name!r} is {attributes[name]!r}, wanted: {wanted}")


_OPERATORS: dict[str, Operator] = {}


def operators() -> dict[str, Operator]:
    """All operators, by name."""
    from fastvq.runtime import definitions  # noqa: F401 - enters them, by the decorator below

    return _OPERATORS


def operator(
    name: str, *, weights: tuple[int, ...] = (), n_outputs: int = 1, encoded: tuple[int, ...] = ()
):
    """Decorator that makes a NumPy function an operator; `n_outputs` 0 is any number.

    Inputs at the places `encoded` come as they are stored: as EncodedTensor, not as arrays.
    """

    def enter(compute):
        _OPERATORS[name] = Operator(name, compute, weights, n_outputs, encoded)
        return _OPERATORS[name]

    return enter


def _fits(value, default):
    """Whether an attribute has the type of its default; sequences are of whole numbers."""
    if default is inspect.Parameter.empty or default is None:
        return isinstance(value, (bool, int, float, str, list, tuple, type(None)))
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and all(type(n) is int for n in value)
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)


def known(form, what):
    """The value of an input that has to be known before the model runs."""
    if form.value is None:
        raise ValueError(f"its {what} depends on data: it has to be known before the model runs")
    return form.value
