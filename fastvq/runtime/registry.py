"""Which kernel runs which operator: the table of lowerings, and the kernels of the active level.

A lowering turns a node whose shapes are known into calls of compiled kernels. It is a function

    @lowering("Dense")
    def dense(node, inputs, outputs, plan) -> list[KernelCall] | None

of tensors of :mod:`fastvq.runtime.plan`. None means that it has no kernel for these (a dtype, say):
then the operator's definition in NumPy runs in its place. Where no kernels are compiled at all, or
FASTVQ_LEVEL is "numpy", every operator runs so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from fastvq import _threads

__all__ = ["KernelCall", "compiled", "kernel", "lowering", "lowering_of", "module", "workers"]

_MODULES = (
    *("products", "pointwise", "movement", "reductions", "recurrent", "distances", "trees"),
    *("integers", "codes", "scores"),
)
_LOWERINGS: dict[str, Callable] = {}


class KernelCall(NamedTuple):
    """A call of a compiled kernel.

    Attributes
    ----------
    kernel : "module.entry", such as "dense.dense"
    operands : tensors of the plan, arrays that stay as they are, or None
    sizes, values : whole numbers, and real ones, in the order that the kernel names them
    threads : how many the work is worth, at most
    failure : the error that an answer other than 0 means
    """

    kernel: str
    operands: Sequence[Any]
    sizes: Sequence[int] = ()
    values: Sequence[float] = ()
    threads: int = 1
    failure: Callable[[int], Exception] = lambda answer: RuntimeError(f"a kernel gave {answer}")


def lowering(*operators: str):
    """Decorator that enters a lowering for these operators."""

    def enter(function):
        for name in operators:
            _LOWERINGS[name] = function
        return function

    return enter


def lowering_of(operator: str) -> Callable | None:
    """The lowering of an operator; None where it has none, or no kernels are there."""
    if not compiled():
        return None
    _fill()
    return _LOWERINGS.get(operator)


@cache
def _fill():
    """Import all modules of lowerings; one of them alone may have been imported before."""
    for name in _MODULES:
        import_module(f"fastvq.runtime.lowering.{name}")


def compiled() -> bool:
    """Whether there are compiled kernels to run on."""
    try:
        from fastvq import _kernels
    except ImportError:
        return False
    return _kernels.active_level() != "numpy"


def kernel(name: str):
    """The capsule of a kernel, of the active level."""
    name, entry = name.split(".")
    return module(name).entries[entry]


def module(name: str):
    """A module of kernels, of the active level: with its tables, if it has any."""
    from fastvq import _kernels

    return _kernels.load(name)


def workers(plan, work: float, worth: float, tasks: int | None = None) -> int:
    """How many threads to wake where `worth` is what one is woken for, and there are `tasks`.

    A program learns whether they pay (`_kernels/habit.h`): `worth` may be little.
    """
    return _threads.team(plan.threads, work // worth) if tasks is None or tasks > 1 else 1
