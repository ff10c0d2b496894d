"""`show_config`: what this installation is made of, and what is in force now."""

import json
import platform
from pathlib import Path

import numpy as np

import fastvq
from fastvq import _kernels, _threads
from fastvq._kernels import _openmp  # type: ignore[attr-defined]


def show_config(mode: str = "print") -> dict | None:
    """Show how fastvq was built and what it runs with.

    Parameters
    ----------
    mode : {"print", "dict"}, default="print"
        Whether to print, or to return the same as a dictionary.

    Returns
    -------
    config : dict or None
        With mode "dict", the keys `version`, `python`, `numpy`; `levels_built`, `levels_runnable`
        (lists, ascending) and `level_active`; `compiler`, `flags` (those of the active level),
        `openmp` (bool); `threads` (what a call uses that is given no `n_threads`).

    Raises
    ------
    ValueError
        If `mode` is neither "print" nor "dict".

    Examples
    --------
    >>> import fastvq
    >>> config = fastvq.show_config(mode="dict")
    >>> config["level_active"] in config["levels_runnable"]
    True
    """
    if mode not in ("print", "dict"):
        raise ValueError(f'mode must be "print" or "dict", got {mode!r}')
    build = json.loads(Path(_kernels.__file__).with_name("_build.json").read_text("utf-8"))
    active = _kernels.active_level()
    config = {
        "version": fastvq.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "levels_built": list(_kernels.levels_built()),
        "levels_runnable": list(_kernels.levels_runnable()),
        "level_active": active,
        "compiler": build["compiler"],
        "flags": " ".join([*build["flags"], *build["levels"][active]["flags"]]),
        "openmp": _openmp.enabled,
        "threads": _threads.effective(),
    }
    if mode == "dict":
        return config
    for key, value in config.items():
        print(f"{key.replace('_', ' '):<16} {_readable(value)}")
    return None


def _readable(value):
    if isinstance(value, bool):
        return "yes" if value else "no: kernels run on one thread"
    return " ".join(value) if isinstance(value, list) else value
