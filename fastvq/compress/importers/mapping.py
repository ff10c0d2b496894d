"""Weights by name, and no model around them: a graph whose outputs are its constants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastvq.runtime import Graph, Value
from fastvq.runtime.encoding import Raw

__all__ = ["from_mapping"]


def from_mapping(weights: Mapping) -> Graph:
    """A graph without nodes that gives each of the weights under its name.

    Parameters
    ----------
    weights : mapping of str to array-like

    Raises
    ------
    TypeError, ValueError
        For names that are none, and arrays of other dtypes than values have.
    """
    constants = {}
    for name, values in weights.items():
        if not isinstance(name, str):
            raise TypeError(f"a mapping has names of weights as its keys, got {name!r:.40}")
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float16 else array
        constants[name] = Raw(array)
    outputs = [Value(name, raw.dtype.name, raw.shape) for name, raw in constants.items()]
    return Graph([], [], outputs, constants)
