"""Evenly spaced levels without end, for codes that a file holds entropy coded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastvq.compress.schemes.grids import Grid, Groups, inverse
from fastvq.compress.schemes.grouped import GroupedGrid, GroupedScheme

__all__ = ["SteppedScheme"]


class SteppedScheme(NamedTuple):
    """Whole numbers of steps, a step for each row.

    Attributes
    ----------
    step : float
        In root mean squares of the row.
    most : int up to 127
        Steps that a value may be from 0. Whole numbers up to 63 are what layers multiply
        (`activations="dynamic"`).

    Notes
    -----
    Evenly spaced levels whose codes take as many bits as their entropy come within a quarter of a
    bit of what any quantizer of many levels can do (Gish and Pierce, "Asymptotically efficient
    quantizing", 1968): 4 bits have 2 to 3 dB more than levels that share 4 bits evenly. Nothing is
    clipped, and rare values may be far out: their codes are long, not wrong. Steps are made larger
    where a value would lie beyond `most` of them.
    """

    step: float
    most: int = 127

    group = 0

    def nbytes(self, n_rows, width) -> int:
        """Bytes of a weight of this form without its codes, which are worth their entropy."""
        return 2 * round(n_rows)

    def fit(self, matrix, importance=None) -> Grid:
        matrix = matrix.astype(np.float64)
        reach = np.abs(matrix).max(axis=1, initial=0)
        spread = np.sqrt(np.square(matrix).mean(axis=1)) if matrix.size else reach
        steps = np.maximum(self.step * spread, reach / self.most)
        most = round(float((reach * inverse(steps)).max(initial=0)))
        bits = max(2, most.bit_length() + 1)
        groups = Groups(matrix.shape[1], 0)
        return GroupedGrid(GroupedScheme(bits, 0), groups, steps[:, None], None)
