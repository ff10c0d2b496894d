"""`show_config`: what this installation is made of, and what is in force now."""

import platform

import numpy as np

import fastvq
from fastvq import _kernels, _threads


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
    build = _kernels.build_record() or {"compiler": "none", "flags": [], "levels": {}}
    active = _kernels.active_level()
    flags = [*build["flags"], *build["levels"][active]["flags"]] if active != "numpy" else []
    config = {
        "version": fastvq.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "levels_built": list(_kernels.levels_built()),
        "levels_runnable": list(_kernels.levels_runnable()),
        "level_active": active,
        "compiler": build["compiler"],
        "flags": " ".join(flags),
        "openmp": _threads._openmp.enabled,
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
