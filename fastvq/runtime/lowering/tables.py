"""Lowering of dense layers of codewords: large ones by tables, others decoded (tables.h)."""

from __future__ import annotations

import numpy as np

from fastvq._memory import aligned, lasting
from fastvq.runtime import registry
from fastvq.runtime.lowering import products
from fastvq.runtime.registry import KernelCall, workers

_THREAD_LOOKUPS = 1 << 17  # that are worth waking a thread for
_THREAD_TABLES = 1 << 19  # multiply-adds
_BEYOND_CACHES = 1 << 24  # bytes of a decoded weight that are read from memory, or nearly
_MOST_LOOKUPS = 3 / 8  # for a decoded weight's value, that take the time in which it is read


def dense(node, inputs, outputs, bounds, plan):
    """Calls that run a dense layer whose weight is of codewords; its outputs keep to the bounds."""
    x, weight, bias = inputs
    rows = x.size // weight.shape[1]
    if not pays(weight.encoded):
        return products.dense(node, inputs, outputs, plan)
    packed = plan.packed(weight, f"tables, bias {bias and bias.name}", lambda t: _Packed(t, bias))
    n, width = weight.shape
    tables = plan.scratch(4 * rows * packed.entries * packed.room)
    lookups = rows * n * packed.entries
    threads = workers(plan, lookups, _THREAD_LOOKUPS)
    stages, d, room = packed.words.shape
    fill = KernelCall(
        "tables.fill",
        [x, packed.words, tables],
        [rows, width, d, stages, room],
        threads=workers(plan, rows * packed.entries * d * room, _THREAD_TABLES),
    )
    add = KernelCall(
        "tables.add",
        [tables, packed.codes, packed.scales, packed.bias, outputs[0]],
        [rows, packed.entries, room, n, _task_panels(n, threads)],
        bounds,
        threads=threads,
    )
    return [fill, add]


def pays(weight) -> bool:
    """Whether sums of looked-up numbers take less time for a row than reading the decoded weight.

    The number of rows has no say: a row has the same bits in any batch. Zen 4, one thread, a row
    times 4096 x 4096: 2.6 ms decoded, 0.65 with blocks of 8, 1.1 of 4; each row more costs as much
    again, and decoded 0.2 to 0.4 ms. Times 1024 x 1024, which stays in caches: 0.052, 0.043 and
    0.069 ms.
    """
    stages, _, d = weight.codewords.shape
    large = 4 * weight.n_rows * weight.width >= _BEYOND_CACHES
    return large and stages <= _MOST_LOOKUPS * d


class _Packed:
    """A weight as tables.h reads it."""

    def __init__(self, tensor, bias):
        weight, kernel = tensor.encoded, registry.module("tables")
        stages, n_codewords, d = weight.codewords.shape
        self.entries, self.room = weight.codes_per_row, -(-n_codewords // kernel.STEP) * kernel.STEP
        self.words = aligned((stages, d, self.room), np.float32)
        self.words[...] = 0
        self.words[:, :, :n_codewords] = weight.codewords.swapaxes(1, 2)
        self.codes = _ordered(weight, kernel)
        self.scales = None
        if weight.scales is not None:
            scales = np.broadcast_to(weight.float_scales(), (weight.n_rows, 1))
            self.scales = np.ascontiguousarray(scales[:, 0])
        self.bias = None if bias is None else np.ascontiguousarray(bias.value, np.float32)


def _ordered(weight, kernel):
    """Codes (chunks, panels, entries of a chunk, outputs of a panel)."""
    entries, each = weight.codes_per_row, kernel.OUTPUTS
    chunks, panels = -(-entries // kernel.CHUNK), -(-weight.n_rows // each)
    ordered = lasting((chunks, panels, kernel.CHUNK, each), np.uint8)
    wide = np.zeros((each, chunks * kernel.CHUNK), np.uint8)
    for panel in range(panels):
        codes = weight.row_codes(panel * each, min(weight.n_rows, (panel + 1) * each))
        wide[len(codes) :] = 0
        wide[: len(codes), :entries] = codes
        ordered[:, panel] = wide.reshape(each, chunks, kernel.CHUNK).transpose(1, 2, 0)
    return ordered


def _task_panels(n, threads):
    """Panels of a task: enough tasks for the threads."""
    kernel = registry.module("tables")
    panels = -(-n // kernel.OUTPUTS)
    return max(1, min(kernel.PANELS, -(-panels // (4 * threads)) if threads > 1 else panels))
