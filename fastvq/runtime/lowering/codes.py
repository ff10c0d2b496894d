"""Lowerings of layers with weights of few bits: codes are looked up in registers (codes.h), and
those of codewords in tables (tables.py).
"""

from __future__ import annotations

import math

import numpy as np

from fastvq._memory import CACHE_LINE, aligned, lasting
from fastvq.runtime import registry
from fastvq.runtime.codebook import Codebook
from fastvq.runtime.coded import Coded
from fastvq.runtime.definitions.codes import has_levels, has_tables, levels_fit
from fastvq.runtime.grouped import Signs
from fastvq.runtime.lowering import tables
from fastvq.runtime.product import Product
from fastvq.runtime.registry import KernelCall, lowering, workers

_THREAD_WEIGHTS = 1 << 19  # codes times rows that are worth a thread
_THREAD_VALUES = 1 << 15  # of a row that becomes bytes
_MOST_STAGES = 8  # as coded_rows.pyx has room for
_AT_ONCE = 1 << 22  # codes that are put in order at a time


@lowering("CodedDense")
def dense(node, inputs, outputs, plan):
    x, weight, bias = [*inputs, None][:3]
    if x.dtype != np.float32 or not (bias is None or bias.known) or not x.size:
        return None
    if has_tables(weight.encoded):
        bounds = _bounds(node.attributes)
        return tables.dense(node, [x, weight, bias], outputs, bounds, plan)
    if not has_levels(weight.encoded) or not levels_fit(weight.encoded):
        return None
    packed = plan.packed(weight, f"codes, bias {bias and bias.name}", lambda t: _packed(t, bias))
    n, width = weight.shape
    rows = x.size // width
    codes = plan.scratch(rows * packed.stride)
    scales, sums = (plan.scratch(4 * rows * packed.groups) for _ in range(2))
    quantize = KernelCall(
        "codes.quantize",
        [x, codes, scales, sums],
        [rows, width, packed.groups, packed.size, packed.room, packed.stride],
        threads=workers(plan, x.size, _THREAD_VALUES),
    )
    multiply = KernelCall(
        "codes.multiply",
        [codes, scales, sums, *packed.operands, outputs[0]],
        [rows, packed.groups, packed.room // _kernel().BLOCK, n, packed.stride, *packed.sizes],
        [packed.unit, *_bounds(node.attributes)],
        threads=workers(plan, n * width * (1 + rows // 4), _THREAD_WEIGHTS),
    )
    return [quantize, multiply]


def can_take(weight) -> bool:
    """Whether rows of a constant can be decoded as they are asked for."""
    return (
        isinstance(weight, Coded)
        and weight.leading == 1
        and weight.dtype == np.float32
        and (not isinstance(weight, Codebook) or weight.per == "tensor")
        and (not isinstance(weight, Product) or len(weight.codewords) <= _MOST_STAGES)
    )


def taken_codes(weight, indices, y, plan) -> KernelCall:
    """Rows at indices, decoded from where the codes lie: the table stays as small as its file."""
    words, points, origin = _codewords(weight)
    scales = weight.scales
    return KernelCall(
        "coded_rows.take",
        [indices, weight.codes, words, scales, points, y],
        [
            *(indices.size, indices.dtype.itemsize, weight.n_rows, weight.width, weight.bits),
            *(words.shape[1], words.shape[2], words.shape[0]),
            *(weight.n_groups, weight.group or max(weight.width, 1)),
            *((0, 0) if scales is None else (scales.itemsize, len(scales))),
        ],
        [2.0**weight.exponent, origin],
        threads=workers(plan, y.size, _THREAD_VALUES),
        failure=lambda answer: IndexError(
            f"index number {answer - 1} is out of range for axis 0 of {weight.shape}"
        ),
    )


def _codewords(weight):
    """Codewords float32 (stages, codewords, d), origins of rows and groups or None, the origin."""
    if isinstance(weight, Product):
        return weight.codewords.astype(np.float32), None, 0.0
    if isinstance(weight, Codebook):
        return weight.codewords[0].astype(np.float32)[None, :, None], None, 0.0
    if isinstance(weight, Signs):
        return np.array([-1, 1], np.float32)[None, :, None], None, 0.0
    levels = np.arange(1 << weight.bits, dtype=np.float32)[None, :, None]
    if weight.zero_points is None:
        return levels, None, float(1 << (weight.bits - 1))
    return levels, weight.points(), 0.0


class _Packed:
    """A weight as codes.h reads it."""

    def __init__(self, weight, bias, levels, points):
        kernel = _kernel()
        self.size, self.groups = weight.group or weight.width, weight.n_groups
        self.room = -(-self.size // kernel.BLOCK) * kernel.BLOCK
        # An odd number of cache lines: rows a power of two apart would share a few sets.
        self.stride = (-(-self.groups * self.room // CACHE_LINE) | 1) * CACHE_LINE
        most = int(levels.max())
        self.unit = 2.0**weight.exponent
        bits = next(b for b in (2, 4, 8) if weight.bits <= b)
        bits = bits if kernel.SHUFFLE else 8
        table = _table(levels, bits)
        depth = next(d for d in (8, 4, 2, 1) if 254 * most * d < 1 << 15)
        of_codes = levels if bits == 8 else np.arange(256, dtype=np.uint8)
        panels = _panels(weight, of_codes, bits, self.room)
        scales = self._by_lanes(weight.scales.view(np.uint16))
        origins = None if points.size == 1 else self._by_lanes(points)
        start = None if bias is None else self._by_lanes(bias.value[:, None])
        self.operands = [panels, table, scales, origins, start]
        self.sizes = [bits, depth, int(points.flat[0]) if origins is None else 0]

    def _by_lanes(self, values):
        """(n_rows, n) as (panels, n, lanes)."""
        lanes = _kernel().COLUMNS
        padded = np.zeros((-(-len(values) // lanes) * lanes, values.shape[1]), values.dtype)
        padded[: len(values)] = values
        by_panel = padded.reshape(-1, lanes, values.shape[1]).swapaxes(1, 2)
        found = aligned(by_panel.shape, values.dtype)
        found[...] = by_panel
        return found


def _table(levels, bits):
    """What bytes are looked up in, (2, 16); None where codes are levels."""
    if bits == 8 or (bits == 4 and np.array_equal(levels, np.arange(len(levels)))):
        return None
    table, codes = np.zeros((2, 16), np.uint8), np.arange(16)
    if bits == 2:  # one nibble has two codes
        table[...] = np.resize(levels, 4)[codes & 3], np.resize(levels, 4)[codes >> 2]
    else:
        table[0, : len(levels)] = levels
    return table


def _packed(tensor, bias):
    weight = tensor.encoded
    if isinstance(weight, Codebook):
        words = weight.codewords[0].astype(np.int64)
        levels, points = words - words.min(), np.array([-words.min()])
    else:
        levels = np.arange(1 << weight.bits)
        points = (
            weight.points() if weight.zero_points is not None else levels[len(levels) // 2 :][:1]
        )
    return _Packed(weight, bias, levels.astype(np.uint8), points)


def _panels(weight, levels, bits, room):
    """Codes, or their levels, in the order of codes.h."""
    kernel = _kernel()
    lanes, quads = kernel.COLUMNS, kernel.BLOCK // 4
    size, groups = weight.group or weight.width, weight.n_groups
    n_panels, blocks = -(-weight.n_rows // lanes), groups * room // kernel.BLOCK
    panels = lasting((n_panels, blocks, quads * bits // 8, lanes, 4), np.uint8)
    step = max(1, _AT_ONCE // (lanes * groups * room))
    for first in range(0, n_panels, step):
        part = panels[first : first + step]
        stop = min(weight.n_rows, (first + len(part)) * lanes)
        wide = np.zeros((len(part) * lanes, groups, room), np.uint8)
        codes = levels[weight.row_codes(first * lanes, stop)]
        cut = np.zeros((len(codes), groups * size), np.uint8)
        cut[:, : weight.width] = codes
        wide[: len(codes), :, :size] = cut.reshape(len(codes), groups, size)
        ordered = wide.reshape(len(part), lanes, blocks, quads, 4).transpose(0, 2, 3, 1, 4)
        each = 8 // bits
        part[...] = ordered[:, :, ::each]
        for i in range(1, each):
            part |= ordered[:, :, i::each] << (i * bits)
    return panels


def _bounds(attributes):
    activation = attributes.get("activation", "identity")
    if activation == "clip":
        return [attributes.get("alpha", 0.0), attributes.get("beta", 0.0)]
    return [0.0 if activation == "relu" else -math.inf, math.inf]


def _kernel():
    return registry.module("codes")
