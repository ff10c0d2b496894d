"""Second moments of what layers read on examples, for weights rounded by their outputs' errors."""

from __future__ import annotations

import math

import numpy as np

from fastvq.compress import stats
from fastvq.compress.compensation import Gram
from fastvq.runtime.definitions.integers import patches
from fastvq.runtime.definitions.products import Windows

__all__ = ["grams", "rows_read"]

_ROWS = 1 << 14
_MOST_NUMBERS = 1 << 24  # of a layer's moments: what has more is rounded as it is


def grams(
    graph, arrays, layers, ranges, n_threads=1, n_rows=_ROWS, mask=None, limits=None
) -> dict[str, np.ndarray]:
    """E[x xᵀ] of the inputs of dense layers and convolutions, by a layer's first output.

    Parameters
    ----------
    graph : Graph
    arrays : list of ndarray
        The graph's inputs, of all examples.
    layers : iterable of Node
    ranges : mapping of value name to Statistics
        Of what the layers read.
    n_rows : int
        About how many rows of each layer's inputs are looked at, evenly spread over examples.
    mask : str, optional
        The input that says which places of a sequence count.
    limits : dict, optional
        How far each example counts (:func:`fastvq.compress.stats.limits_of`).

    Returns
    -------
    moments : dict of ndarray (groups, k, k)
        k runs over taps, then channels of a group, as a row of the weight does.
    """
    alike: dict[tuple, list] = {}  # layers that read the same, as those of attention do
    for node in layers:
        if _numbers(graph, node) <= _MOST_NUMBERS:
            alike.setdefault(_reading(graph, node), []).append(node)
    if not alike:
        return {}
    found = {reading: Gram(_reach(graph, nodes[0], ranges)) for reading, nodes in alike.items()}
    names = [*dict.fromkeys(nodes[0].inputs[0] for nodes in alike.values())]
    n_places = max(1, n_rows // len(arrays[0])) if arrays[0].ndim else n_rows
    for places, values in stats.masked_runs(graph, arrays, names, n_threads, mask, limits):
        by_name = dict(zip(names, values, strict=True))
        for reading, (node, *_) in alike.items():
            shape = graph.constants[node.inputs[1]].shape
            rows = rows_read(node, by_name[node.inputs[0]], shape, n_places, places)
            found[reading].add(rows)
    means = {reading: gram.mean() for reading, gram in found.items()}
    return {node.outputs[0]: means[r] for r, nodes in alike.items() for node in nodes}


def _reading(graph, node):
    """What moments depend on: which value a layer reads, and in which windows."""
    taps = _taps(graph, node)
    names = "strides", "dilations", "pads", "same", "groups"
    return node.operator, node.inputs[0], taps, *map(node.attributes.get, names)


def _taps(graph, node):
    """What a row of the weight is multiplied with."""
    shape = graph.constants[node.inputs[1]].shape
    return shape[-1:] if node.operator == "Dense" else shape[1:]


def _numbers(graph, node):
    return node.attributes.get("groups", 1) * math.prod(_taps(graph, node)) ** 2


def _reach(graph, node, ranges):
    """The largest size of each input of a layer's groups, (groups, k)."""
    *taps, width = _taps(graph, node)
    seen = ranges[node.inputs[0]]
    reach = np.maximum(-seen.channel_low, seen.channel_high).reshape(-1, width)
    return np.tile(reach, math.prod(taps))


def rows_read(node, x, shape, n_places, places=None) -> np.ndarray:
    """What a layer multiplies its weight by: (groups, rows, k), at most about so many an example.

    Places are taken evenly over each example by itself, so that batches make no difference.
    """
    if node.operator == "Dense":
        rows = x.reshape(len(x), -1, shape[-1]) if x.ndim > 1 else x[None, None]
        step = -(-rows.shape[1] // n_places)
        rows = rows[:, ::step]
        if places is not None and x.shape[:-1] == places.shape:
            rows = rows[places[:, ::step] != 0]
        return np.ascontiguousarray(rows).reshape(1, -1, shape[-1])
    attributes, kernel = node.attributes, shape[1:-1]
    settings = [attributes.get(name, ()) for name in ("strides", "dilations", "pads")]
    windows = Windows(x.shape[1:-1], kernel, *settings, attributes.get("same", ""))
    pads = (*windows.begins, *windows.ends)
    seen = patches(x, kernel, settings[0], settings[1], pads, 0)
    n = len(kernel)
    sizes = seen.shape[1 : 1 + n]
    step = math.ceil((math.prod(sizes) / n_places) ** (1 / n))
    chosen = tuple(slice(min(step // 2, size - 1), None, step) for size in sizes)
    seen = seen[(slice(None), *chosen)]
    groups = attributes.get("groups", 1)
    rows = seen.reshape(-1, math.prod(kernel), groups, shape[-1])
    return np.ascontiguousarray(rows.transpose(2, 0, 1, 3)).reshape(groups, len(rows), -1)
