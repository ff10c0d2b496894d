"""Weights of 8-bit integers as the kernels read them, with what belongs to each column of sums.

AVX2 has three forms of a weight (dot.h). In two of them neighbours are added in 16 bits, which is
exact as long as no two are larger than 128 together: as they stand, or in an order that is found
for each panel (pairing.h). Where that takes too many groups the weight stays as on other levels.
"""

import numpy as np

from fastvq._kernels import load
from fastvq._memory import aligned, lasting

__all__ = ["LARGEST_WIDTH", "Packed", "check_sums"]

# Values of a row, at most: |x - zero point| <= 255 and |w| <= 128, and 65536 such products still
# fit in 32 bits. What a bias adds is looked at column by column in `check_sums`.
LARGEST_WIDTH = 1 << 16

# What a picked weight may take, in groups, for each that there would be if all were full: one of
# four takes 0.88 of the time of two groups of two. A double saves this much of its two groups, and
# what is picked takes so many times the time of what stands in order, or with few rows would.
MOST_GROUPS, DOUBLE_SAVES, PICKING = 1.1, 0.4, 1.25


class Packed:
    """A weight (groups, n, k) of int8, packed for the active level.

    Parameters
    ----------
    weight : ndarray of int8, shape (n, k) or (groups, n, k)

    Attributes
    ----------
    form : number of the form: WHOLE, PAIRED or PICKED of the kernel's module
    operands : list of the weight in that form: panels, spans, orders (these None unless picked)
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
        self.form, groups = self._planned(weight, kernel)
        if self.form == kernel.PICKED:
            self.operands = self._picked(weight, kernel, *groups)
        else:
            self.operands = self._in_order(weight, kernel)
        self._offset = kernel.offset(self.form)
        self.column_sums = self.per_column(self.sums, np.int32)
        self._starts = {}
        self._scratch = 0, 0

    def scratch_bytes(self, rows):
        """What a thread needs for itself for so many rows; the last answer is kept."""
        known, size = self._scratch
        if known != rows:
            size = load("int8").scratch_bytes(self.form, rows, self.k)
            self._scratch = rows, size
        return size

    def _in_order(self, weight, kernel):
        group = kernel.group(self.form)
        size = -(-self.n // self._columns) * self._columns * -(-self.k // group) * group
        panels = lasting((self.groups * size,), np.int8)
        parts = panels.reshape(self.groups, -1)
        for values, part, sums in zip(weight, parts, self.sums, strict=True):
            kernel.pack(self.form, values, part, sums)
        return [panels, None, None]

    def _planned(self, weight, kernel):
        """The form; of a picked weight, groups of each 32 values: orders, how many, doubles."""
        if not kernel.CAN_PAIR:
            return kernel.WHOLE, None
        shape = self.groups, -(-self.n // self._columns), -(-self.k // kernel.CHOICE)
        orders = np.empty((*shape, kernel.GROUPS), np.uint32)
        counts, doubles = np.empty((2, *shape), np.int8)
        for values, *planned in zip(weight, orders, counts, doubles, strict=True):
            kernel.plan_pairs(np.ascontiguousarray(values), *planned)
        full = -(-self.k // 4) * shape[0] * shape[1]
        work = counts.sum(dtype=np.int64) - DOUBLE_SAVES * doubles.sum(dtype=np.int64)
        if work * PICKING > full and _in_pairs(weight):
            return kernel.PAIRED, None
        return (kernel.PICKED, (orders, counts, doubles)) if work <= MOST_GROUPS * full else (
            kernel.WHOLE, None
        )  # fmt: skip

    def _picked(self, weight, kernel, orders, counts, doubles):
        """Panels; where each lies; orders, as picks (dot.h): of each 32 values one, or two."""
        shape = counts.shape
        numbers = np.arange(kernel.GROUPS // kernel.PICK)
        sizes = np.clip(counts[..., None] - kernel.PICK * numbers, 0, kernel.PICK)
        picks = np.empty((*shape, len(numbers), 1 + kernel.PICK), np.uint32)
        last = counts[..., None] <= kernel.PICK * (numbers + 1)
        picks[..., 0] = sizes + (kernel.CHOICE << kernel.ADVANCE) * last
        picks[..., 0, 0] += doubles.astype(np.uint32) << kernel.DOUBLES
        picks[..., 1:] = orders.reshape(*shape, len(numbers), kernel.PICK)
        there = (np.arange(1 + kernel.PICK) <= sizes[..., None]) & (sizes > 0)[..., None]
        told = np.append(picks[there], np.zeros(2 * picks.shape[-1], np.uint32))  # is read ahead
        groups = counts.sum(axis=-1, dtype=np.int64)
        steps = (sizes > 0).sum(axis=(-2, -1))
        spans = np.stack([_before(groups), _before(groups + steps), steps], axis=-1)
        panels = lasting((int(groups.sum()) * 4 * self._columns,), np.int8)
        panels[:] = 0
        for values, part, sums in zip(weight, spans, self.sums, strict=True):
            kernel.pack_picked(np.ascontiguousarray(values), part, told, panels, sums)
        return [panels, spans, told]

    def per_column(self, values, dtype):
        """Values of all columns, (groups * n,) or one for all, with room up to whole panels."""
        whole = self.groups == 1 and self.n % self._columns == 0
        if whole and values.__class__ is np.ndarray and values.shape == (self.n,):
            return np.ascontiguousarray(values, dtype)  # no copy where there is nothing to add
        values = np.broadcast_to(np.ravel(values), self.groups * self.n)
        padded = -(-self.n // self._columns) * self._columns
        out = aligned((self.groups, padded), dtype)
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


def _in_pairs(weight):
    """Whether all neighbours may be added: weights of few bits."""
    pairs = weight[..., : weight.shape[-1] // 2 * 2].reshape(*weight.shape[:-1], -1, 2)
    return bool((np.abs(pairs.sum(axis=-1, dtype=np.int16)) <= 128).all())


def _before(sizes):
    """Where each begins of what lies one after another."""
    return (np.cumsum(sizes) - sizes.ravel()).reshape(sizes.shape)
