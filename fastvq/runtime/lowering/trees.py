"""Lowering of tree ensembles."""

import numpy as np

from fastvq.runtime.definitions.trees import ABOVE, AGGREGATES, CATEGORY, EQUAL, Forest
from fastvq.runtime.registry import KernelCall, lowering, workers

_NODE = np.dtype([("threshold", np.float32), ("word", np.uint32)])
_WALKS, _KIND_BITS = 8, 2  # as in trees.h
_BLOCK_BYTES, _MOST_GROUPS = 1 << 15, 32
_STEP_SECONDS, _THREAD_SECONDS = 1.0e-9, 20e-6


@lowering("TreeEnsemble")
def tree_ensemble(node, inputs, outputs, plan):
    x, roots, feature, threshold, values, base, target, test, categories = [*inputs, *[None] * 3][
        :9
    ]
    constants = [t for t in inputs[1:] if t is not None]
    if x.dtype != np.float32 or not all(t.known for t in constants) or not x.size:
        return None
    arrays = roots, feature, threshold, values, base, target, test, categories
    packed = plan.packed(
        feature,
        f"trees of {node.name}",
        lambda _: _Packed(Forest(*(None if a is None else a.value for a in arrays)), x.shape[1]),
    )
    if packed.nodes is None:
        return None
    n, n_outputs = outputs[0].shape
    row_bytes = _WALKS * 4 * packed.n_columns
    groups = int(np.clip(_BLOCK_BYTES // row_bytes, 1, min(_MOST_GROUPS, -(-n // _WALKS))))
    room = -(-groups * (row_bytes + _WALKS * 8 * n_outputs) // 64) * 64
    blocks = -(-n // (groups * _WALKS))
    seconds = n * packed.steps * _STEP_SECONDS
    threads = workers(plan, seconds, _THREAD_SECONDS, tasks=blocks)
    aggregate = AGGREGATES.index(node.attributes.get("aggregate", "sum"))
    return [
        KernelCall(
            "trees.trees",
            [x, outputs[0], plan.scratch(threads * room), *packed.operands],
            [
                *(n, x.shape[1], packed.n_columns, len(packed.roots), n_outputs, values.shape[1]),
                *(aggregate, packed.mask, packed.shift, packed.kinds, groups, room),
            ],
            threads=threads,
        )
    ]


class _Packed:
    """A forest as the kernel reads it; `nodes` is None where 32 bits are too few for its words."""

    def __init__(self, forest: Forest, n_features: int):
        forest.check(n_features)
        above = forest.test == ABOVE
        self.kinds = bool((forest.test >= EQUAL).any())
        self.n_columns = n_features + 1 + (n_features if above.any() else 0)
        self.shift = (self.n_columns - 1).bit_length()
        self.mask = (1 << self.shift) - 1
        self.roots = forest.roots
        self.steps = int(forest.depth.sum())
        numbers = np.arange(len(forest.feature))
        distance = np.where(forest.leaf, 0, forest.first + 1 - numbers)
        kind_bits = _KIND_BITS if self.kinds else 0
        self.nodes = None
        if int(distance.max()).bit_length() + self.shift + kind_bits > 32:
            return
        column = np.where(forest.leaf, n_features, forest.feature)
        column += np.where(above & ~forest.leaf, n_features + 1, 0)
        word = (distance << self.shift | column) << kind_bits
        if self.kinds:
            word |= np.select([forest.test == EQUAL, forest.test == CATEGORY], [1, 2], 0)
            word = np.where(forest.leaf, word >> kind_bits << kind_bits, word)
        self.nodes = np.empty(len(numbers), _NODE)
        self.nodes["word"] = word
        self.nodes["threshold"] = self._payload(forest)
        self.operands = [
            self.nodes,
            self.roots,
            forest.depth.astype(np.int32),
            forest.target.astype(np.int32),
            np.ascontiguousarray(forest.values, np.float32),
            forest.base.astype(np.float64),
            np.ascontiguousarray(forest.categories, np.uint8),
        ]

    @staticmethod
    def _payload(forest):
        """Thresholds; of leaves the value or the row of values; numbers of sets as integers."""
        threshold = forest.threshold.astype(np.float32)
        above = (forest.test == ABOVE) & ~forest.leaf
        below = np.nextafter(-threshold, np.float32(-np.inf))
        # Nothing is above infinity: a NaN passes no test.
        below[np.isposinf(threshold)] = np.nan
        threshold = np.where(above, below, threshold)
        number = np.where(forest.leaf, forest.leaf_row, 0)
        asks = (forest.test == CATEGORY) & ~forest.leaf
        number[asks] = forest.threshold[asks].astype(np.int64)
        as_number = asks | (forest.leaf if forest.values.shape[1] > 1 else np.False_)
        if forest.values.shape[1] == 1:
            threshold[forest.leaf] = forest.values[:, 0]
        bits = np.where(as_number, number.astype(np.int32), threshold.view(np.int32))
        return bits.view(np.float32)
