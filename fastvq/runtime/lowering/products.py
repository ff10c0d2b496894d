"""Lowerings of products: dense layers, matrices, convolutions, pooling.

All products but depthwise convolutions are calls of one kernel, `gemm.product`: rows that are read
where they lie, in runs, times a packed matrix. See `_kernels/gemm.h`.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from fastvq._memory import aligned, lasting
from fastvq.runtime import registry
from fastvq.runtime.definitions.products import Windows, spread, window_counts
from fastvq.runtime.graph import Node
from fastvq.runtime.lowering.pointwise import function_number
from fastvq.runtime.registry import KernelCall, lowering, workers

# Multiply-adds that are worth a thread, some 2 us: where weights come from the last-level cache two
# cores read them in six tenths of the time, and a thread that is awake takes one to join.
_THREAD_WORK = 100_000
_PACKED_AT_ONCE = 1 << 20  # bytes of panels that are put in order at a time
# Values that are worth one where they are only moved or compared.
_THREAD_VALUES = 50_000


@lowering("Dense")
def dense(node, inputs, outputs, plan):
    x, weight, bias = [*inputs, None][:3]
    if not _all_float32(x, weight, bias):
        return None
    n_out, k = weight.shape
    rows = x.size // k if k else math.prod(x.shape[:-1])
    if not _known(weight, bias):
        batch = _Batch(rows, n_out, k, (k, 1), (k, 1))
        calls = batch.calls(x, weight, outputs[0], plan, bias, node)
        return _activated(node, calls, outputs, plan)
    panels = plan.packed(
        weight, _layout("panels", bias), lambda t: _panels(t.rows, (1, n_out, k), bias)
    )
    product = _Product(
        size=(1, 1, rows), x_strides=(0, 0, k), y_strides=(0, 0, n_out), n_out=n_out,
        runs=[(0, k)],
    )  # fmt: skip
    return _activated(node, [product.call(node, x, panels, outputs[0], plan)], outputs, plan)


@lowering("MatMul")
def matmul(node, inputs, outputs, plan):
    a, b = inputs
    if not _all_float32(a, b) or not outputs[0].size:
        return None
    flip_a, flip_b = (node.attributes.get(f"transpose_{which}", False) for which in "ab")
    a_shape = a.shape if len(a.shape) > 1 else (1, *a.shape)
    b_shape = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    rows, k = a_shape[:-3:-1] if flip_a else a_shape[-2:]
    columns = b_shape[-2] if flip_b else b_shape[-1]
    # Strides from row to row and from feature to feature of a; of b from column to column.
    by_row = (1, rows) if flip_a else (k, 1)
    by_column = (k, 1) if flip_b else (1, columns)
    shape = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    places = [
        np.broadcast_to(np.arange(math.prod(s[:-2])).reshape(s[:-2]), shape).ravel()
        for s in (a_shape, b_shape)
    ]
    return _Batch(rows, columns, k, by_row, by_column, *places).calls(a, b, outputs[0], plan)


@lowering("Conv")
def conv(node, inputs, outputs, plan):
    x, weight, bias = [*inputs, None][:3]
    if not (_all_float32(x, weight, bias) and _known(weight, bias)) or len(x.shape) > 4:
        return None
    get = node.attributes.get
    windows = _two_dimensional(
        x, weight.shape[1:-1], get("strides", ()), get("dilations", ()), get("pads", ()),
        get("same", ""),
    )  # fmt: skip
    groups = get("groups", 1)
    if groups > 1 and weight.shape[-1] == 1 and weight.shape[0] == groups:
        return _activated(
            node, [_depthwise(node, x, weight, bias, outputs[0], windows, plan)], outputs, plan
        )
    borders = (*windows.begins, *windows.ends)
    picture = _Picture(x, borders, plan)
    height, width, channels = picture.shape
    n_out, n_in = weight.shape[0], weight.shape[-1]
    matrices = groups, n_out // groups, math.prod(weight.shape[1:])
    panels = plan.packed(
        weight, _layout(f"panels, {groups} groups", bias),
        lambda t: _panels(t.rows, matrices, bias),
    )  # fmt: skip
    offsets = [
        (i * windows.dilations[0] * width + j * windows.dilations[1]) * channels
        for i in range(windows.kernel[0])
        for j in range(windows.kernel[1])
    ]
    rows, columns = windows.sizes
    product = _Product(
        size=(x.shape[0], rows, columns),
        x_strides=(
            height * width * channels,
            windows.strides[0] * width * channels,
            windows.strides[1] * channels,
        ),
        y_strides=(rows * columns * n_out, columns * n_out, n_out),
        n_out=n_out // groups, runs=_merged([(at, n_in) for at in offsets]),
        places=[(g * n_in, g * (n_out // groups)) for g in range(groups)],
    )  # fmt: skip
    calls = [*picture.calls, product.call(node, picture.tensor, panels, outputs[0], plan)]
    return _activated(node, calls, outputs, plan)


@lowering("ConvTranspose")
def conv_transpose(node, inputs, outputs, plan):
    """A convolution for each phase: outputs a stride apart are reached by the same taps."""
    x, weight, bias = [*inputs, None][:3]
    if not (_all_float32(x, weight, bias) and _known(weight, bias)) or len(x.shape) > 4:
        return None
    get = node.attributes.get
    windows, _ = spread(
        x, weight, get("strides", ()), get("dilations", ()), get("pads", ()),
        get("output_pads", ()),
    )  # fmt: skip
    groups, n_out, n_in = get("groups", 1), weight.shape[0], weight.shape[-1]
    flat = len(x.shape) == 3
    one = (1,) if flat else ()
    kernel, strides = one + windows.kernel, one + windows.strides
    dilations = one + windows.dilations
    pads = tuple(get("pads", ()))[: len(x.shape) - 2] or (0,) * (len(x.shape) - 2)
    begins = (0,) * flat + pads
    out = one + outputs[0].shape[1:-1]
    spatial = one + x.shape[1:-1]
    phases = [_phases(*each) for each in zip(out, kernel, strides, dilations, begins, strict=True)]
    borders = [_reach(each, size) for each, size in zip(phases, spatial, strict=True)]
    picture = _Picture(x, (*[b for b, _ in borders], *[e for _, e in borders]), plan)
    height, width, channels = picture.shape
    calls = [*picture.calls]
    for row_phase, row_count, row_taps in phases[0]:
        for phase, count, taps in phases[1]:
            tapped = [
                (((borders[0][0] + dy) * width + borders[1][0] + dx) * channels, i, j)
                for dy, i in row_taps
                for dx, j in taps
            ]
            chosen = [(i, j) for _, i, j in tapped]
            matrices = groups, n_out // groups, len(chosen) * n_in

            def make(tensor, chosen=chosen, matrices=matrices):
                taps = _taps(tensor.value, kernel, chosen)
                return _panels(lambda first, stop: taps[first:stop], matrices, bias)

            panels = plan.packed(
                weight, _layout(f"phase {row_phase, phase}, {strides, dilations, begins}", bias),
                make,
            )  # fmt: skip
            start = (row_phase * out[1] + phase) * n_out
            product = _Product(
                size=(x.shape[0], row_count, count),
                x_strides=(height * width * channels, width * channels, channels),
                y_strides=(out[0] * out[1] * n_out, strides[0] * out[1] * n_out,
                           strides[1] * n_out),
                n_out=n_out // groups, runs=_merged([(at, n_in) for at, _, _ in tapped]),
                places=[(g * n_in, start + g * (n_out // groups)) for g in range(groups)],
            )  # fmt: skip
            calls.append(product.call(node, picture.tensor, panels, outputs[0], plan))
    return _activated(node, calls, outputs, plan)


@lowering("Pool")
def pool(node, inputs, outputs, plan):
    (x,) = inputs
    if not _all_float32(x) or len(x.shape) > 4:
        return None
    get = node.attributes.get
    windows = _two_dimensional(
        x, get("kernel"), get("strides", ()), get("dilations", ()), get("pads", ()),
        get("same", ""), get("ceil", False),
    )  # fmt: skip
    counts = None
    spatial = (1, *x.shape[1:-1])[-2:]
    if get("function") == "average":
        counts = window_counts(spatial, windows, get("count_padding", False)).astype(np.float32)
    sizes = _window_sizes(x, windows)
    threads = workers(plan, outputs[0].size * math.prod(windows.kernel), _THREAD_VALUES)
    return [KernelCall("pool.pool", [x, counts, outputs[0]], sizes, threads=threads)]


def _depthwise(node, x, weight, bias, y, windows, plan):
    channels = x.shape[-1]

    def make(tensor):
        rows = tensor.value.reshape(channels, -1).T
        starts = np.zeros(channels) if bias is None else bias.value
        packed = aligned((1 + len(rows), channels), np.float32)
        packed[0], packed[1:] = starts, rows
        return packed

    packed = plan.packed(weight, _layout("depthwise", bias), make)
    function, values = _fused(node)
    work = y.size * math.prod(windows.kernel)
    return KernelCall(
        "depthwise.convolve", [x, packed, y], [*_window_sizes(x, windows), function], values,
        threads=workers(plan, 4 * work, _THREAD_WORK),
    )  # fmt: skip


def _window_sizes(x, windows):
    height, width = (1, *x.shape[1:-1])[-2:]
    return [
        x.shape[0], height, width, x.shape[-1], *windows.sizes, *windows.kernel, *windows.strides,
        *windows.dilations, *windows.begins,
    ]  # fmt: skip


# ---- the parts of a product --------------------------------------------------------------------


class _Product:
    """A call of gemm.product, but for its tensors: where rows lie, and of what they consist."""

    def __init__(self, *, size, x_strides, y_strides, n_out, runs, places=((0, 0),)):
        self.size, self.strides, self.n_out = size, (*x_strides, *y_strides), n_out
        self.k = sum(length for _, length in runs)
        self.runs = _limited(runs)
        panels = -(-n_out // _gemm()[2])
        step = panels * _gemm()[2] * (self.k + 1)
        self.panels = panels
        self.places = np.array([(a, i * step, b) for i, (a, b) in enumerate(places)], np.int64)

    def call(self, node, x, panels, y, plan):
        function, values = _fused(node)
        work = len(self.places) * math.prod(self.size) * self.n_out * max(self.k, 1)
        threads = workers(plan, work, _THREAD_WORK)
        task_rows, task_panels = self._tasks(threads)
        sizes = [
            len(self.places), *self.size, *self.strides, self.n_out, self.k, len(self.runs),
            function, task_rows, task_panels,
        ]  # fmt: skip
        return KernelCall(
            "gemm.product", [x, panels, self.runs, self.places, y], sizes, values, threads
        )

    def _tasks(self, threads):
        """Rows and panels of a task: enough tasks for the threads, tiles that are full."""
        tile, block, _, _ = _gemm()
        rows, panels = math.prod(self.size), max(self.panels, 1)
        n_blocks = max(-(-rows // block), 1)
        missing = -(-2 * threads // (n_blocks * len(self.places))) if threads > 1 else 1
        parts = min(missing, max(panels // 4, 1))
        n_blocks *= -(-missing // parts)
        task_rows = -(-max(rows, 1) // n_blocks)
        return -(-task_rows // tile) * tile, -(-panels // parts)


class _Batch:
    """Products of matrices that both come with the data: the right one is packed in each call."""

    def __init__(self, rows, columns, k, by_row, by_column, a_places=(0,), b_places=(0,)):
        self.rows, self.columns, self.k = rows, columns, k
        self.by_row, self.by_column = by_row, by_column
        self.a_places, self.b_places = np.asarray(a_places), np.asarray(b_places)

    def calls(self, a, b, y, plan, bias=None, node=None):
        panel = _gemm()[2]
        step = -(-self.columns // panel) * panel * (self.k + 1)
        n = int(self.b_places.max(initial=0)) + 1
        room = plan.scratch(n * step * 4)
        starts = np.arange(n, dtype=np.int64) * (self.columns * self.k)
        calls = [self._pack(b, bias, starts, room, self.columns, self.by_column, plan)]
        left, row_step = a, self.k
        if self.by_row[1] != 1:  # its features lie apart: turned into rows first
            left = plan.scratch(4 * a.size)
            calls.append(_turned(a, left, self.rows, self.k, plan))
        product = _Product(
            size=(1, 1, self.rows), x_strides=(0, 0, row_step), y_strides=(0, 0, self.columns),
            n_out=self.columns, runs=[(0, self.k)],
            places=[(int(i) * self.rows * self.k, j * self.rows * self.columns)
                    for j, i in enumerate(self.a_places)],
        )  # fmt: skip
        product.places[:, 1] = self.b_places * step
        return [*calls, product.call(node, left, room, y, plan)]

    def _pack(self, b, bias, starts, room, columns, by_column, plan):
        sizes = [len(starts), columns, self.k, *by_column]
        threads = workers(plan, len(starts) * columns * self.k, _THREAD_VALUES)
        return KernelCall("gemm.pack", [b, bias, starts, room], sizes, threads=threads)


def _turned(a, out, rows, k, plan):
    """(n, k, rows) as (n, rows, k)."""
    sizes = [a.size // max(rows * k, 1), k, rows]
    return KernelCall("gemm.turn", [a, out], sizes, threads=workers(plan, a.size, _THREAD_VALUES))


class _Picture:
    """x with borders of zeros: as it is where they are empty, else a padded copy in scratch."""

    def __init__(self, x, borders, plan):
        n, *spatial, channels = x.shape
        height, width = (1, *spatial)[-2:]
        top, left, bottom, right = borders
        self.shape = height + top + bottom, width + left + right, channels
        self.tensor, self.calls = x, []
        if any(borders):
            nbytes = 4 * n * math.prod(self.shape)
            self.tensor = plan.scratch(nbytes)
            sizes = [n, height, width, channels, *borders]
            threads = workers(plan, nbytes // 4, _THREAD_VALUES)
            self.calls = [KernelCall("gemm.pad", [x, self.tensor], sizes, threads=threads)]


def _panels(rows, shape, bias):
    """Matrices as panels: starting values, then the weights of each feature.

    `rows(first, stop)` gives rows of all the matrices (n, n_out, k), one below the other; reading
    few at a time keeps a second copy of a large weight out of memory.
    """
    n, n_out, k = shape
    columns = _gemm()[2]
    n_panels = -(-n_out // columns)
    packed = lasting((n, n_panels, k + 1, columns), np.float32)
    step = max(1, _PACKED_AT_ONCE // (4 * columns * (k + 1)))
    for i, first in itertools.product(range(n), range(0, n_panels, step)):
        panels = packed[i, first : first + step]
        wide = np.zeros((len(panels) * columns, k + 1), np.float32)
        count = min(len(wide), n_out - first * columns)
        start = i * n_out + first * columns
        if bias is not None:
            wide[:count, 0] = bias.value[start : start + count]
        wide[:count, 1:] = rows(start, start + count).reshape(count, k)
        panels[...] = wide.reshape(len(panels), columns, k + 1).swapaxes(1, 2)
    return packed


def _taps(weight, kernel, chosen):
    """The weights of some places in the kernel, as a matrix."""
    n_out, n_in = weight.shape[0], weight.shape[-1]
    weight = weight.reshape(n_out, *kernel, n_in)
    parts = [weight[:, i, j] for i, j in chosen]
    return np.concatenate([np.empty((n_out, 0), np.float32), *parts], axis=1)


def _phases(out, kernel, stride, dilation, begin):
    """(first output, how many, taps as (input offset, place in the kernel)) of each phase.

    Output o takes x[i] · w[t] for all i·stride + t·dilation = o + begin.
    """
    phases = []
    for first in range(min(stride, out)):
        reached = [
            ((first + begin - t * dilation) // stride, t)
            for t in range(kernel)
            if (first + begin - t * dilation) % stride == 0
        ]
        phases.append((first, -(-(out - first) // stride), sorted(reached)))
    return phases


def _reach(phases, size):
    """How far the taps of all phases reach beyond the beginning and the end of `size` inputs."""
    ats = [(at, count) for _, count, taps in phases for at, _ in taps]
    begin = max([0, *[-at for at, _ in ats]])
    return begin, max([0, *[at + count - size for at, count in ats]])


def _merged(runs):
    """Runs of which one begins where another ends, as one."""
    merged = []
    for offset, length in runs:
        if merged and sum(merged[-1]) == offset:
            merged[-1] = merged[-1][0], merged[-1][1] + length
        else:
            merged.append((offset, length))
    return merged


def _limited(runs):
    """Runs no longer than what a block of rows takes of a panel at once."""
    limit = _gemm()[3]
    short = []
    for offset, length in runs:
        n = max(-(-length // limit), 1)
        cuts = [length * i // n for i in range(n + 1)]
        short += [(offset + a, b - a) for a, b in itertools.pairwise(cuts)]
    return np.array(short, np.int64).reshape(-1, 2)


def _two_dimensional(x, kernel, strides, dilations, pads, same, ceil=False):
    """The windows, where a sequence is a picture of height 1."""
    if len(x.shape) == 4:
        return Windows(x.shape[1:-1], kernel, strides, dilations, pads, same, ceil)
    pads = (0, pads[0], 0, pads[1]) if pads else ()
    strides, dilations = ((1, *s) if s else () for s in (strides, dilations))
    return Windows((1, x.shape[1]), (1, *kernel), strides, dilations, pads, same, ceil)


# ---- activations, threads ----------------------------------------------------------------------


def _fused(node):
    """Number and parameters of the activation that a kernel applies; identity where it has none."""
    attributes = node.attributes if node is not None else {}
    values = attributes.get("alpha", 0.0), attributes.get("beta", 0.0)
    number = function_number(attributes.get("activation", "identity"), values[0])
    return number or 0, tuple(map(float, values))


def _activated(node, calls, outputs, plan):
    """The calls, and after them that of an activation which they do not apply themselves."""
    get = node.attributes.get
    activation = get("activation", "identity")
    if function_number(activation, get("alpha", 0.0)) is not None:
        return calls
    attributes = {"function": activation, "alpha": get("alpha", 0.0), "beta": get("beta", 0.0)}
    unary = Node("Unary", node.outputs, node.outputs, attributes, node.name)
    lower = registry.lowering_of("Unary")
    last = lower(unary, outputs, outputs, plan) if lower else None
    return None if last is None else [*calls, *last]


def _gemm():
    """Rows of a tile and of a block, columns of a panel, features of a block."""
    return registry.module("gemm").shapes()


def _layout(name, bias):
    return f"{name}, bias {bias.name}" if bias is not None else name


def _known(weight, bias):
    return weight.known and (bias is None or bias.known)


def _all_float32(*tensors):
    return all(t is None or t.dtype == np.float32 for t in tensors)
