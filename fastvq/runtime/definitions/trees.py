"""Ensembles of decision trees: forests, boosted trees.

A tree is written down breadth first, its two children side by side. Then nothing need say where
children are: those of the i-th node that is no leaf (from 0) are the nodes 1 + 2i and 2 + 2i of its
tree. A row goes to the first child where the test of a node holds, and to the second where it does
not; NaN passes no test. Every comparison of other libraries, and every way in which they send
missing values, is one of the four tests with its children in one or the other order.
"""

from __future__ import annotations

import numpy as np

from fastvq.runtime.ops import operator

__all__ = ["AGGREGATES", "TESTS", "Forest"]

# What `test` means for a value v and a threshold t; CATEGORY asks whether v is a member of the set
# number t.
TESTS = NOT_ABOVE, ABOVE, EQUAL, CATEGORY = range(4)
AGGREGATES = ("sum", "mean", "minimum", "maximum")
_BLOCK = 1 << 20  # rows x trees that walk at once


@operator("TreeEnsemble")
def tree_ensemble(
    x,
    roots,
    feature,
    threshold,
    values,
    base,
    target=None,
    test=None,
    categories=None,
    *,
    aggregate="sum",
):
    """base + what the leaves give that a row reaches, added up in float64 in the order of trees.

    Parameters
    ----------
    x : (N, F)
    roots : (n_trees,) whole numbers
        The place of each tree's first node; trees lie one after the other.
    feature : (n_nodes,) whole numbers
        Which feature a node looks at; -1 for a leaf.
    threshold : (n_nodes,) float
    values : (n_leaves, width) float
        What leaves give, in the order of nodes.
    base : (n_outputs,) float
        The answer before any tree.
    target : (n_trees,) whole numbers, optional
        The first of the `width` outputs that a tree adds to; 0 where left out.
    test : (n_nodes,) uint8, optional
        0: v <= t, 1: v > t, 2: v == t, 3: v is in set number t. 0 where left out.
    categories : (n_sets, 32) uint8, optional
        Sets of the numbers 0 .. 255: bit c % 8 of byte c // 8 tells of c.
    aggregate : "sum", "mean" (over all trees), "minimum", "maximum"
    """
    forest = Forest(roots, feature, threshold, values, base, target, test, categories)
    forest.check(x.shape[1])
    y = np.empty((len(x), len(base)), x.dtype)
    block = max(1, _BLOCK // max(len(roots), 1))
    for start in range(0, len(x), block):
        rows = slice(start, start + block)
        y[rows] = forest.gathered(forest.leaves(x[rows]), aggregate)
    return y


@tree_ensemble.shape
def _(x, roots, feature, threshold, values, base, *_, aggregate="sum"):
    ranks = [len(form.shape) for form in (x, roots, feature, threshold, values, base)]
    if ranks != [2, 1, 1, 1, 2, 1]:
        raise ValueError(f"inputs have {ranks} dimensions, wanted: [2, 1, 1, 1, 2, 1]")
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate is {aggregate!r}, not one of {AGGREGATES}")
    if x.dtype.kind != "f":
        raise ValueError(f"x must be of floats, got {x.dtype}")
    return (x.shape[0], base.shape[0]), x.dtype


class Forest:
    """The arrays of a TreeEnsemble with what follows from them.

    Attributes
    ----------
    leaf : (n_nodes,) bool
    first : (n_nodes,) int64
        The node of the first child, the second follows it; a leaf's own number.
    leaf_row : (n_nodes,) int64
        The row of `values`; of no meaning where a node is no leaf.
    depth : (n_trees,) int64
        Steps from the root to the farthest leaf.
    """

    def __init__(
        self, roots, feature, threshold, values, base, target=None, test=None, categories=None
    ):
        self.roots, self.feature = roots.astype(np.int64), feature.astype(np.int64)
        self.threshold, self.values, self.base = threshold, values, base
        self.target = np.zeros(len(roots), np.int64) if target is None else target.astype(np.int64)
        self.test = np.zeros(len(feature), np.uint8) if test is None else test
        self.categories = np.zeros((0, 32), np.uint8) if categories is None else categories
        self._check_trees()
        self.leaf = self.feature < 0
        self.leaf_row = np.cumsum(self.leaf) - 1
        self.sizes = np.diff(self.roots, append=len(self.feature))
        inner_before = np.cumsum(~self.leaf) - ~self.leaf
        start = np.repeat(self.roots, self.sizes)
        numbers = np.arange(len(self.feature))
        self.first = np.where(
            self.leaf, numbers, start + 1 + 2 * (inner_before - inner_before[start])
        )
        self._check_children(numbers)
        self.depth = self._depths()

    def _check_trees(self):
        """A ValueError where the arrays do not fit together; nothing here is taken on trust."""
        n, trees = len(self.feature), self.roots
        if self.threshold.shape != (n,) or self.test.shape != (n,):
            raise ValueError(f"{n} nodes need as many thresholds and tests")
        if not n or not len(trees) or trees[0] != 0 or (np.diff(trees, append=n) < 1).any():
            raise ValueError("roots must begin at 0 and rise, within the nodes")
        width = self.values.shape[1]
        last = len(self.base) - width
        if self.target.shape != trees.shape or self.target.min() < 0 or self.target.max() > last:
            raise ValueError(f"targets must be {len(trees)} numbers from 0 to {last}")
        if self.test.max() > CATEGORY or self.categories.shape[1:] != (32,):
            raise ValueError("tests must be 0 to 3, and sets of categories 32 bytes each")
        sets = self.threshold[self.test == CATEGORY]
        if not ((sets >= 0) & (sets < len(self.categories))).all():
            raise ValueError(f"a node asks for a set beyond the {len(self.categories)} there are")
        if np.count_nonzero(self.feature < 0) != len(self.values):
            raise ValueError(f"{np.count_nonzero(self.feature < 0)} leaves need as many values")

    def _check_children(self, numbers):
        """Of n inner nodes each tree has 2n + 1 nodes, and children follow their parents."""
        inner = np.add.reduceat(~self.leaf, self.roots)
        if (self.sizes != 2 * inner + 1).any():
            raise ValueError(
                f"tree {np.argmax(self.sizes != 2 * inner + 1)} is none: nodes missing"
            )
        if ((self.first <= numbers) & ~self.leaf).any():
            raise ValueError("nodes are not in breadth-first order")

    def _depths(self):
        depth, here = np.zeros(len(self.roots), np.int64), self.roots
        owner = np.arange(len(self.roots))
        while True:
            inner = ~self.leaf[here]
            here, owner = self.first[here[inner]], owner[inner]
            if not len(here):
                return depth
            depth[owner] += 1  # once, however often a tree is in `owner`
            here, owner = np.concatenate([here, here + 1]), np.concatenate([owner, owner])

    def check(self, n_features):
        """A ValueError where a node looks at a feature that is not there."""
        if self.feature.max() >= max(n_features, 1) or not n_features:
            raise ValueError(f"a node looks at feature {self.feature.max()} of {n_features}")

    def leaves(self, x):
        """The leaf of each row in each tree, as rows of `values`: (N, n_trees)."""
        node = np.tile(self.roots, (len(x), 1))
        rows = np.arange(len(x))[:, None]
        for _ in range(int(self.depth.max())):
            value = x[rows, np.maximum(self.feature[node], 0)]
            second = ~self._holds(value, node) & ~self.leaf[node]
            node = self.first[node] + second
        return self.leaf_row[node]

    def _holds(self, value, node):
        test, t = self.test[node], self.threshold[node]
        if not self.test.any():
            return value <= t
        tests = [test == kind for kind in (ABOVE, EQUAL)]
        holds = np.select(tests, [value > t, value == t], value <= t)
        if len(self.categories):
            asks = test == CATEGORY
            holds[asks] = self._is_member(value[asks], t[asks].astype(np.int64))
        return holds

    def _is_member(self, value, number):
        inside = (value >= 0) & (value < 256)  # False for NaN
        c = np.where(inside, value, 0).astype(np.int64)
        return inside & (c == value) & (self.categories[number, c // 8] >> (c % 8) & 1).astype(bool)

    def gathered(self, leaves, aggregate):
        """base + the values of leaves, in float64: (N, n_outputs)."""
        width = self.values.shape[1]
        total = np.full((len(leaves), len(self.base)), _START.get(aggregate, 0.0))
        combine = _COMBINE.get(aggregate, np.add)
        for tree, first in enumerate(self.target):
            part = total[:, first : first + width]
            combine(part, self.values[leaves[:, tree]], out=part)
        if aggregate == "mean":
            total /= len(self.roots)
        return self.base + total


_START = {"minimum": np.inf, "maximum": -np.inf}
_COMBINE = {"minimum": np.minimum, "maximum": np.maximum}
