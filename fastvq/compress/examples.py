"""Examples of a model's inputs: which rows are used, and what a model gives for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastvq.compress import stats
from fastvq.runtime.model import _check_shapes as check_shapes

__all__ = ["examples_of", "first_rows", "halves", "mask_of", "outputs_of"]


def first_rows(X):
    """Two rows of the examples: enough to trace a model with."""
    if isinstance(X, Mapping):
        return X
    if isinstance(X, tuple):
        return tuple(a[:2] for a in X)
    return X if X is None else X[:2]


def examples_of(model, X, y, max_samples=None):
    """The model's inputs, of as many rows as are used, and y of those; None without X.

    Parameters
    ----------
    model : CompressedModel
    X : array-like, tuple or mapping of them, or None
    y : array-like or None
    max_samples : int or None
        The most rows, evenly spread; None: all.

    Returns
    -------
    arrays : list of ndarray, or None
    y : ndarray or None

    Raises
    ------
    ValueError
        For shapes that are not the model's, no rows, or y of another number of rows.
    """
    if X is None or not model.graph.inputs:
        return None, y
    if isinstance(X, Mapping):
        inputs = dict(X)
    else:
        inputs = model._inputs(X if isinstance(X, tuple) else (X,), {})
    arrays = model._checked(inputs)
    check_shapes(model.graph.inputs, [a.shape for a in arrays])
    first = model.graph.inputs[0].shape[:1]
    if not first or not isinstance(first[0], str):
        return arrays, y
    n = len(arrays[0])
    if n == 0:
        raise ValueError("calibration needs examples: X has no rows")
    if y is not None:
        y = np.asarray(y)
        if len(y) != n:
            raise ValueError(f"X has {n} rows, y has {len(y)}")
    if max_samples is None or n <= max_samples:
        return arrays, y
    chosen = np.arange(max_samples) * n // max_samples
    return _rows(model, arrays, chosen), None if y is None else y[chosen]


def halves(model, arrays, y):
    """Examples to fit on, and others to judge by: every second one, with its y."""
    if arrays is None or not arrays[0].ndim or len(arrays[0]) < 2:
        raise ValueError("max_drop needs two examples or more: one half is held out")
    found = [_rows(model, arrays, slice(start, None, 2)) for start in (0, 1)]
    return *found, None if y is None else y[1::2]


def _rows(model, arrays, chosen):
    """These rows of the inputs that have rows."""
    first = model.graph.inputs[0].shape[:1]
    batched = [value.shape[:1] == first for value in model.graph.inputs]
    return [a[chosen] if b else a for a, b in zip(arrays, batched, strict=True)]


def mask_of(metadata, graph):
    """The input that says which places of a text count, where the model's tokenizer makes one."""
    inputs = (metadata.get("preprocess") or {}).get("inputs", {})
    name = inputs.get("mask") if isinstance(inputs, Mapping) else None
    return name if name in {value.name for value in graph.inputs} else None


def outputs_of(model, arrays):
    """The outputs of a model, of all rows: list of ndarray."""
    inputs = model.graph.inputs
    parts = [
        model.run(dict(zip([v.name for v in inputs], batch, strict=True)))
        for batch in stats.batches_of(model.graph, arrays, 256)
    ]
    return [np.concatenate(p) if p[0].ndim else p[0] for p in zip(*parts, strict=True)]
