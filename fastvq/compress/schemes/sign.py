"""One bit a weight: its sign, and a scale for each group of columns.

The best scale for given signs is the weighted mean of the absolute values (Rastegari et al.,
"XNOR-Net: ImageNet classification using binary convolutional neural networks", ECCV 2016).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastvq.compress.schemes.grids import Grid, Groups, ScaledGrid, inverse
from fastvq.runtime.coded import packed
from fastvq.runtime.grouped import Signs

__all__ = ["SignScheme"]


class SignScheme(NamedTuple):
    """Signs with a scale for each group of columns; 0: for each row."""

    group: int = 64

    def fit(self, matrix, importance=None) -> Grid:
        groups = Groups(matrix.shape[1], self.group)
        weights = groups.weights(importance)
        total = inverse(weights.sum(axis=1))
        scales = groups.by_rows(matrix, lambda part: (np.abs(part) * weights).sum(axis=2) * total)
        return _SignGrid(groups, scales)


class _SignGrid(ScaledGrid):
    def nearest(self, first, values):
        return (values >= 0).astype(np.uint8)

    def levels(self, first, codes):
        return codes * np.float32(2) - np.float32(1)

    def tensor(self, shape, codes, leading=1):
        _, bits = packed(codes, 1)
        return Signs(
            tuple(shape), bits, scales=self._halves, group=self._groups.group,
            exponent=self._exponent, leading=leading,
        )  # fmt: skip
