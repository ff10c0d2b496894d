"""Lowerings of layers with weights of few bits: codes are looked up in registers (codes.h)."""

from __future__ import annotations

import math

import numpy as np

from fastvq.runtime import registry
from fastvq.runtime.codebook import Codebook
from fastvq.runtime.definitions.codes import has_levels, levels_fit
from fastvq.runtime.registry import KernelCall, lowering, workers

_THREAD_WEIGHTS = 1 << 19  # codes times rows that are worth a thread
_THREAD_VALUES = 1 << 15  # of a row that becomes bytes
_AT_ONCE = 1 << 22  # codes that are put in order at a time


@lowering("CodedDense")
def dense(node, inputs, outputs, plan):
    x, weight, bias = [*inputs, None][:3]
    if x.dtype != np.float32 or not (bias is None or bias.known) or not x.size:
        return None
    if not has_levels(weight.encoded) or not levels_fit(weight.encoded):
        return None
    packed = plan.packed(weight, f"codes, bias {bias and bias.name}", lambda t: _packed(t, bias))
    n, width = weight.shape
    rows = x.size // width
    codes, scales, sums = (
        plan.scratch(rows * packed.groups * size) for size in (packed.room, 4, 4)
    )
    quantize = KernelCall(
        "codes.quantize",
        [x, codes, scales, sums],
        [rows, width, packed.groups, packed.size, packed.room],
        threads=workers(plan, x.size, _THREAD_VALUES),
    )
    multiply = KernelCall(
        "codes.multiply",
        [codes, scales, sums, *packed.operands, outputs[0]],
        [rows, packed.groups, packed.room // _kernel().BLOCK, n, *packed.sizes],
        [packed.unit, *_bounds(node.attributes)],
        threads=workers(plan, n * width * (1 + rows // 4), _THREAD_WEIGHTS),
    )
    return [quantize, multiply]


class _Packed:
    """A weight as codes.h reads it."""

    def __init__(self, weight, bias, levels, points):
        kernel = _kernel()
        self.size, self.groups = weight.group or weight.width, weight.n_groups
        self.room = -(-self.size // kernel.BLOCK) * kernel.BLOCK
        most = int(levels.max())
        self.unit = 2.0**weight.exponent
        bits = next(b for b in (2, 4, 8) if weight.bits <= b)
        bits = bits if kernel.SHUFFLE else 8
        table = None
        if bits < 8 and not np.array_equal(levels, np.arange(len(levels))):
            table = np.zeros(16, np.uint8)
            table[: len(levels)] = levels
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
        by_panel = padded.reshape(-1, lanes, values.shape[1])
        return np.ascontiguousarray(by_panel.swapaxes(1, 2))


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
    panels = np.empty((n_panels, blocks, quads * bits // 8, lanes, 4), np.uint8)
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
