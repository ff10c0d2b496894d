"""The compiled kernels, and the choice of their instruction-set level.

Each kernel `<kernel>.pyx` is compiled once per level of `_levels.py`, as the extension module
`fastvq._kernels.<level>.<kernel>`. The level is chosen here, once, when this package is imported:
the best one that is built and that this CPU can run, or the one that the environment variable
FASTVQ_LEVEL names. It is chosen *before* a module of it is imported: the initialisation of a
module may itself hold instructions that another CPU lacks, so trying would end the process.

A kernel is fetched with `load`: one that the active level lacks is an error, never silently
another level's, because scalar code in its place costs an order of magnitude and nobody notices.

The level "numpy" has no kernels at all. Models run on it by the definitions of their operators,
exactly and slowly; what needs a kernel says so. It is the level of a wheel that was built without
compiled parts, and anywhere else of FASTVQ_LEVEL=numpy.
"""

import json
import os
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from fastvq._kernels._levels import LEVELS

_HERE = Path(__file__).parent


def build_record():
    """What setup.py noted of the build: compiler, flags, levels; None where nothing was built."""
    path = _HERE / "_build.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _without_kernels():
    """Whether there are to be none: so it was built, or so it is wanted."""
    record = build_record() or {}
    return os.environ.get("FASTVQ_LEVEL") == "numpy" or record.get("levels") == {}


try:
    from fastvq._kernels import _cpu  # type: ignore[attr-defined]
except ImportError as error:
    if not _without_kernels():
        raise ImportError(
            f"fastvq's kernels are not built in {_HERE}: {error}. If that is the source tree, "
            "build it in place with `pip install -e .`, or install it with `pip install .` and run "
            "Python from another directory"
        ) from error
    _cpu = None


def levels_built():
    """Names of the levels whose modules are installed, ascending."""
    return tuple(level.name for level in LEVELS if _is_built(level))


def levels_runnable():
    """Names of the built levels that this CPU can run, ascending; "numpy" is none of them."""
    if _cpu is None:
        return ()
    machine, features = _cpu.machine(), _cpu.features()
    return tuple(
        level.name
        for level in LEVELS
        if level.machine == machine and features.issuperset(level.features) and _is_built(level)
    )


def active_level():
    """Name of the level that `load` takes its kernels from."""
    return _ACTIVE


def load(kernel):
    """The module of a kernel, from the active level: `load("assign")`."""
    module = _LOADED.get((_ACTIVE, kernel))
    if module is None:
        module = _LOADED[_ACTIVE, kernel] = _load(kernel)
    return module


# A look here takes a tenth of a microsecond, import_module several, and some calls no more.
_LOADED: dict = {}


def _load(kernel):
    if _ACTIVE == "numpy":
        raise ImportError(
            "quantizers and fastvq.kernels need compiled kernels, and there are none: "
            + (
                "this installation of fastvq was built without them"
                if _cpu is None
                else "FASTVQ_LEVEL is numpy"
            )
            + " (models run without)"
        )
    try:
        return import_module(f"fastvq._kernels.{_ACTIVE}.{kernel}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"kernel {kernel!r} is not built for level {_ACTIVE!r}: reinstall fastvq"
        ) from error


def _is_built(level):
    # The first suffix is that of this Python version alone: others' modules do not count.
    return any((_HERE / level.name).glob(f"*{EXTENSION_SUFFIXES[0]}"))


def _choose(forced):
    """The best runnable level, or `forced`; an ImportError that lists the choices if it cannot."""
    if forced == "numpy" or (_cpu is None and not forced):
        return "numpy"
    runnable = levels_runnable()
    choices = f"runnable here: {', '.join(runnable) or 'none'}"
    if not forced:
        if not runnable:
            raise ImportError(f"fastvq is installed without a level that this CPU runs ({choices})")
        return runnable[-1]
    if forced in runnable:
        return forced
    if forced not in [level.name for level in LEVELS]:
        problem = "is not the name of a level"
    elif forced not in levels_built():
        problem = "is not built in this installation"
    else:
        problem = "needs CPU features that are missing here"
    raise ImportError(f"FASTVQ_LEVEL={forced!r} {problem} ({choices})")


_ACTIVE = _choose(os.environ.get("FASTVQ_LEVEL"))
