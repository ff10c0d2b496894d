"""Weights of 8-bit integers as the kernels read them, with what belongs to each column of sums.

On AVX2 a weight may lie in groups of four, of which neighbours are added in 16 bits (dot.h): twice
as many products with an instruction, exact as long as no two neighbours are larger than 128
together. Where some are, their group comes twice in its panel, and if that happens too often the
weight stays as it is on other levels.
"""

import numpy as np

from fastvq._kernels import load

__all__ = ["LARGEST_WIDTH", "Packed", "check_sums"]

# Values of a row, at most: |x - zero point| <= 255 and |w| <= 128, and 65536 such products still
# fit in 32 bits. What a bias adds is looked at column by column in `check_sums`.
LARGEST_WIDTH = 1 << 16

# Groups of a paired weight, at most, for each that it would have if none came twice.
MOST_GROUPS = 1.15


class Packed:
    """A weight (groups, n, k) of int8, packed for the active level.

    Parameters
    ----------
    weight : ndarray of int8, shape (n, k) or (groups, n, k)

    Attributes
    ----------
    form : number of the form, WHOLE or PAIRED of the kernel's module
    operands : list of the weight in that form: panels, spans, numbers (these None unless paired)
    sums : ndarray of int32, shape (groups, n): of each row of the weight
    """

    def __init__(self, weight):
        weight = np.asarray(weight)
        if weight.dtype != np.int8 or weight.ndim not in (2, 3) or 0 in weight.shape:
            raise ValueError(
                f"weight must be int8 of shape (n, k), not empty, got {weight.shape} of "
                f"{weight.dtype}"
            )
        weight = weight if weight.ndim == 3 else weight[None]
        self.groups, self.n, self.k = weight.shape
        if self.k > LARGEST_WIDTH:
            raise ValueError(
                f"rows of {self.k} values could overflow 32 bits: {LARGEST_WIDTH} at most"
            )
        kernel = load("int8")
        self._columns = kernel.COLUMNS
        self.sums = np.empty((self.groups, self.n), np.int32)
        paired = self._paired(weight, kernel) if kernel.CAN_PAIR else None
        self.form = kernel.WHOLE if paired is None else kernel.PAIRED
        self.operands = self._whole(weight, kernel) if paired is None else paired
        self._offset = kernel.offset(self.form)
        self.column_sums = self.per_column(self.sums, np.int32)
        self._starts = {}

    def _whole(self, weight, kernel):
        group = kernel.group(kernel.WHOLE)
        size = -(-self.n // self._columns) * self._columns * -(-self.k // group) * group
        panels = _aligned(self.groups * size, np.int8)
        parts = panels.reshape(self.groups, -1)
        for values, part, sums in zip(weight, parts, self.sums, strict=True):
            kernel.pack(values, part, sums)
        return [panels, None, None]

    def _paired(self, weight, kernel):
        """The same in pairs; None where too many groups would come twice."""
        weight = np.ascontiguousarray(weight)
        n_panels, n_numbers = -(-self.n // self._columns), -(-self.k // 4)
        split = np.empty((self.groups, n_panels, n_numbers), np.bool_)
        for values, marks in zip(weight, split, strict=True):
            kernel.mark_pairs(values, marks.view(np.int8))
        if split.mean() > MOST_GROUPS - 1:
            return None
        # A panel in which none comes twice has the numbers 0, 1, ..., which stand first.
        plain = np.arange(n_numbers, dtype=np.uint16)
        numbers, spans = [plain], np.zeros((self.groups * n_panels, 3), np.int64)
        place = n_numbers
        for span, marks in zip(spans, split.reshape(-1, n_numbers), strict=True):
            span[2] = n_numbers
            if marks.any():
                numbers.append(np.repeat(plain, 1 + marks))
                span[1:] = place, len(numbers[-1])
                place += span[2]
        spans[1:, 0] = np.cumsum(spans[:-1, 2])
        numbers = np.concatenate(numbers)
        panels = _aligned(4 * self._columns * spans[:, 2].sum(), np.int8)
        panels[:] = 0
        parts = spans.reshape(self.groups, n_panels, 3)
        for values, part, sums in zip(weight, parts, self.sums, strict=True):
            kernel.pack_paired(values, part, numbers, panels, sums)
        return [panels, spans, numbers]

    def per_column(self, values, dtype):
        """Values of all columns, (groups * n,) or one for all, with room up to whole panels."""
        whole = self.groups == 1 and self.n % self._columns == 0
        if whole and values.__class__ is np.ndarray and values.shape == (self.n,):
            return np.ascontiguousarray(values, dtype)  # no copy where there is nothing to add
        values = np.broadcast_to(np.ravel(values), self.groups * self.n)
        padded = -(-self.n // self._columns) * self._columns
        out = _aligned(self.groups * padded, dtype).reshape(self.groups, padded)
        out[:] = 0
        out[:, : self.n] = values.reshape(self.groups, self.n)
        return out.ravel()

    def start(self, zero_point, bias):
        """What every sum starts from: the bias, less what zero point and offset have added."""
        if bias is None and zero_point in self._starts:
            return self._starts[zero_point]
        total = -(zero_point + self._offset) * self.sums.astype(np.int64)
        if bias is not None:
            total += np.asarray(bias, np.int64).reshape(self.groups, self.n)
        start = self.per_column(total.astype(np.uint32).view(np.int32), np.int32)
        if bias is None:
            self._starts = {zero_point: start}  # the last: callers change it rarely
        return start


def check_sums(weight, bias, what="bias"):
    """Raise where a sum could leave 32 bits: 255 times the sum of |w| and the bias together."""
    rows = np.asarray(weight).reshape(len(weight), -1)
    if rows.shape[1] > LARGEST_WIDTH:
        raise ValueError(f"sums of {rows.shape[1]} products, more than {LARGEST_WIDTH}")
    if bias is None:
        return
    most = 255 * np.abs(rows, dtype=np.int32).sum(axis=1, dtype=np.int64) + np.abs(
        np.asarray(bias, np.int64)
    )
    if most.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"{what} and products of column {most.argmax()} could overflow 32 bits")


def _aligned(size, dtype):
    nbytes = size * np.dtype(dtype).itemsize
    memory = np.empty(nbytes + 128, np.uint8)
    skip = -memory.ctypes.data % 64
    return memory[skip : skip + nbytes].view(dtype)
