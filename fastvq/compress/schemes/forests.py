"""Ensembles of trees in few bits: thresholds, and what leaves give, as codes of shared values.

What has few different values anyway (thresholds of histogram boosting or of whole numbers, leaves
of pure classes) is kept as it is, in codes of as many bits as there are values for. Else values are
drawn together, to 256 of them or some more, as long as that changes no more of the model's answers
on the examples than it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from fastvq import kernels
from fastvq.compress import stats
from fastvq.runtime import CompressedModel, Graph
from fastvq.runtime.codebook import Codebook
from fastvq.runtime.definitions.trees import ABOVE
from fastvq.runtime.encoding import EncodedTensor, decoded

__all__ = ["stored"]

_BITS = (8, 10, 12, 14, 16)
_THRESHOLD, _VALUES, _TEST = 3, 4, 7  # places among the inputs of a TreeEnsemble
_MOST_EXAMPLES = 4096
_MOST_CHANGED = 1e-3


def stored(
    graph: Graph, arrays: Sequence[np.ndarray] | None, most: float | None = None
) -> dict[str, tuple[EncodedTensor, str]]:
    """Constants of tree ensembles in fewer bits: of each its name, tensor and node.

    Parameters
    ----------
    graph : Graph
    arrays : sequence of ndarray, optional
        Examples of the graph's inputs. Without them all values stay as they are.
    most : float, optional
        The share of predicted labels that may change, and of the variance of other answers: by
        default a thousandth.
    """
    judge = None if arrays is None else _Judge(graph, arrays, most)
    found: dict = {}
    for node in graph.nodes:
        if node.operator != "TreeEnsemble":
            continue
        for place in (_THRESHOLD, _VALUES):
            name = node.inputs[place]
            if name not in graph.constants or name in found:
                continue
            values = np.asarray(decoded(graph.constants[name]))
            for candidate in _candidates(graph, node, place, values, judge is not None):
                smaller = Codebook.of_values(candidate)
                if smaller.nbytes >= graph.constants[name].nbytes:
                    continue
                chosen = {name: smaller}
                others = {n: tensor for n, (tensor, _) in found.items()}
                if candidate is values or judge.bears({**others, **chosen}):
                    found[name] = smaller, node.name
                    break
    return found


def _candidates(graph, node, place, values, may_move):
    """The values in more and more bits, up to as many as they need as they are."""
    distinct = len(np.unique(values))
    may_move = may_move and bool(np.isfinite(values).all())
    for bits in _BITS:
        if distinct <= 1 << bits:
            yield values
            return
        if place == _VALUES and may_move:
            yield _nearest(values, kernels.optimal_codebook(values.ravel(), 1 << bits))
        elif place == _THRESHOLD and may_move and _are_limits(graph, node):
            yield _shared(values, 1 << bits)


def _are_limits(graph, node):
    """Whether all thresholds are limits: equal numbers and numbers of sets cannot be moved."""
    name = node.inputs[_TEST] if len(node.inputs) > _TEST else ""
    return not name or bool((decoded(graph.constants[name]) <= ABOVE).all())


def _nearest(values, codebook):
    middles = (codebook[1:].astype(np.float64) + codebook[:-1]) / 2
    return codebook[np.searchsorted(middles, values)]


def _shared(values, count):
    """As many values in the place of each `count`-th part of them, in order: that in its middle.

    Features may have units of any size, so that parts of equal number tell more than parts of
    equal width.
    """
    order = np.argsort(values, kind="stable")
    edges = np.linspace(0, len(values), count + 1).astype(np.intp)
    middles = (edges[:-1] + np.maximum(edges[1:] - 1, edges[:-1])) // 2
    shared = np.empty_like(values)
    shared[order] = np.repeat(values[order][middles], np.diff(edges))
    return shared


class _Judge:
    """What a model answers on examples, and whether it still does with other constants."""

    def __init__(self, graph, arrays, most):
        self._graph, self._most = graph, _MOST_CHANGED if most is None else most
        step = -(-max(len(a) if a.ndim else 1 for a in arrays) // _MOST_EXAMPLES)
        self._arrays = [a[::step] if a.ndim else a for a in arrays]

    @cached_property
    def _answers(self):
        return self._answers_of({})

    def bears(self, constants):
        """Whether the answers are the same, as far as they have to be."""
        return all(map(self._near, self._answers, self._answers_of(constants)))

    def _answers_of(self, constants):
        graph = self._graph
        model = CompressedModel(graph.with_constants(constants))
        parts = [
            model.run(dict(zip(model.input_names, batch, strict=True)))
            for batch in stats.batches_of(graph, self._arrays, 256)
        ]
        return [np.concatenate(p) if p[0].ndim else p[0] for p in zip(*parts, strict=True)]

    def _near(self, before, after):
        if before.dtype.kind != "f":
            return np.mean(before != after) <= self._most
        moved = np.square(after - before, dtype=np.float64).mean()
        return moved <= self._most * np.var(before, dtype=np.float64)
