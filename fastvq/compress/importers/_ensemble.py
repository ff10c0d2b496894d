"""Trees of other libraries, node by node in any order, as one TreeEnsemble."""

from __future__ import annotations

import numpy as np

from fastvq.runtime.definitions.trees import ABOVE, CATEGORY, EQUAL, NOT_ABOVE

__all__ = ["Ensemble", "at_most"]


def at_most(threshold):
    """The greatest float32 not above each number: x <= t is the same for every float32 x."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(threshold).astype(np.float32)
    above = rounded > threshold
    return np.where(above, np.nextafter(rounded, np.float32(-np.inf)), rounded)


class Ensemble:
    """Collects trees; `node` writes down the operator."""

    def __init__(self):
        self._trees = []
        self._sets = {}

    def add(
        self,
        left,
        right,
        feature,
        threshold,
        values,
        *,
        mode=None,
        missing_left=None,
        asks_category=None,
        left_sets=None,
        known_sets=None,
        target=0,
    ):
        """One tree, its root the node 0.

        Parameters
        ----------
        left, right : (n,) whole numbers
            Children by number; -1 (left) for a leaf. A row goes left where the test holds.
        feature : (n,) whole numbers
        threshold : (n,) float
        values : (n, width) float
            Read for leaves.
        mode : (n,) of "<=", "<", ">", ">=", "==", "!=", optional
            The test of each node; all "<=" where left out.
        missing_left : (n,) bool, optional
            Whether NaN goes left. Where left out, it goes right; except that NaN is "!=".
        asks_category : (n,) bool, optional
            Which nodes ask for membership in `left_sets` instead; of what is not in `known_sets`
            either (both (n, 32) uint8 bitsets), `missing_left` decides.
        target : int
            The first output that it adds to.
        """
        left, right = np.array(left, np.int64), np.array(right, np.int64)
        n = len(left)
        mode = np.full(n, "<=") if mode is None else np.asarray(mode)
        missing_left = np.zeros(n, bool) if missing_left is None else np.asarray(missing_left)
        test, limit, swap = _tests(mode, np.asarray(threshold, np.float64), missing_left)
        if asks_category is not None and asks_category.any():
            test[asks_category] = CATEGORY
            swap[asks_category] = missing_left[asks_category]
            for node in np.flatnonzero(asks_category):
                asked = left_sets[node]
                if missing_left[node]:  # ask who goes right: all others, unknown ones too, go left
                    asked = known_sets[node] & ~asked
                limit[node] = self._sets.setdefault(asked.tobytes(), len(self._sets))
        inner = left >= 0
        swap &= inner
        left[swap], right[swap] = right[swap], left[swap]
        order = _breadth_first(left, right)
        leaf = ~inner[order]
        self._trees.append(
            (
                np.where(leaf, -1, np.asarray(feature)[order]),
                np.where(leaf, np.float32(0), limit[order]),
                np.where(leaf, 0, test[order]),
                np.asarray(values)[order[leaf]],
                target,
            )
        )

    def node(self, b, x, base=None, *, aggregate="sum"):
        """The operation on x; base is 0 for each of the outputs that trees add to, if None."""
        features, limits, tests, values, targets = zip(*self._trees, strict=True)
        if base is None:
            base = np.zeros(max(targets) + values[0].shape[1])
        feature, test = np.concatenate(features), np.concatenate(tests).astype(np.uint8)
        small = np.min_scalar_type(-1 - max(0, int(feature.max())))  # signed, for the -1 of leaves
        roots = np.cumsum([0, *map(len, features[:-1])])
        sets = np.frombuffer(b"".join(self._sets), np.uint8).reshape(-1, 32)
        return b.add(
            "TreeEnsemble",
            x,
            b.constant(roots.astype(np.int32), "roots"),
            b.constant(feature.astype(small), "feature"),
            b.constant(np.concatenate(limits).astype(np.float32), "threshold"),
            b.constant(np.concatenate(values).astype(np.float32), "values"),
            b.constant(np.asarray(base, np.float64), "base"),
            b.constant(np.array(targets, np.int32), "target") if any(targets) else None,
            b.constant(test, "test") if test.any() else None,
            b.constant(sets, "categories") if len(sets) else None,
            **({} if aggregate == "sum" else {"aggregate": aggregate}),
        )


def _tests(mode, threshold, missing_left):
    """Test, float32 threshold and whether children are swapped, for each node.

    NaN passes no test here. So where NaN goes left, the contrary is asked and children swapped.
    """
    limit = at_most(threshold)
    strict = np.isin(mode, ["<", ">="])
    exact = strict & (limit == threshold)  # below t: at most the float32 before it
    limit[exact] = np.nextafter(limit[exact], np.float32(-np.inf))
    equality = np.isin(mode, ["==", "!="])
    limit[equality & (limit != threshold)] = np.nan  # no float32 is equal
    not_above = np.isin(mode, ["<=", "<"])
    test = np.where(not_above != missing_left, NOT_ABOVE, ABOVE)
    test[equality] = EQUAL
    swap = missing_left.copy()
    swap[equality] = mode[equality] == "!="
    if ((mode == "==") & missing_left).any():
        raise ValueError("missing values that pass for equal to something are not supported")
    return test, limit, swap


def _breadth_first(left, right):
    """Numbers of nodes level by level, children side by side."""
    levels, here, seen = [], np.zeros(1, np.int64), 0
    while len(here):
        seen += len(here)
        if seen > len(left):
            raise ValueError("a tree whose nodes have more than one parent")
        levels.append(here)
        inner = here[left[here] >= 0]
        here = np.stack([left[inner], right[inner]], axis=1).ravel()
    return np.concatenate(levels)
