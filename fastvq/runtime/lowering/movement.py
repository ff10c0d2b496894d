"""Lowerings of what only moves: copies of strided arrays, rows by their indices, resized pictures.

All copies are calls of one kernel, `movement.copy`: where a value comes from and goes to are two
sets of strides over one shape. Axes over which both walk on evenly are taken together first.
"""

from __future__ import annotations

import math

import numpy as np

from fastvq.runtime.definitions import movement as definitions
from fastvq.runtime.lowering.codes import can_take, taken_codes
from fastvq.runtime.registry import KernelCall, lowering, workers

_RANK = 8  # axes that the kernel knows
_TASK_BYTES = 1 << 16  # of a task: a thread asks for the next while it writes some 5 us
_THREAD_BYTES = 1 << 18  # that are worth waking a thread for, some 20 us of copying


@lowering("Transpose")
def transpose(node, inputs, outputs, plan):
    (x,) = inputs
    order = node.attributes.get("order") or range(len(x.shape))[::-1]
    steps = _strides(x.shape)
    return _copied(x, outputs[0], outputs[0].shape, [steps[i] for i in order], plan)


@lowering("Concat")
def concat(node, inputs, outputs, plan):
    y = outputs[0]
    axis = node.attributes["axis"] % len(y.shape)
    steps, start, copies = _strides(y.shape), 0, []
    for x in inputs:
        at = start * steps[axis]
        copies.append(_copied(x, y, x.shape, _strides(x.shape), plan, to_y=steps, y_start=at))
        start += x.shape[axis]
    return None if None in copies else [call for calls in copies for call in calls]


@lowering("Split")
def split(node, inputs, outputs, plan):
    (x,) = inputs
    axis = node.attributes.get("axis", 0) % len(x.shape)
    steps, start, copies = _strides(x.shape), 0, []
    for y in outputs:
        copies.append(_copied(x, y, y.shape, steps, plan, x_start=start * steps[axis]))
        start += y.shape[axis]
    return None if None in copies else [call for calls in copies for call in calls]


@lowering("Slice")
def slice_(node, inputs, outputs, plan):
    x = inputs[0]
    limits = [None if t is None else t.value for t in inputs[1:]]
    cuts = definitions.slices(x.shape, *limits)
    walks = [range(n)[cut] for n, cut in zip(x.shape, cuts, strict=True)]
    steps = _strides(x.shape)
    start = sum(walk.start * step for walk, step in zip(walks, steps, strict=True))
    steps = [walk.step * step for walk, step in zip(walks, steps, strict=True)]
    return _copied(x, outputs[0], outputs[0].shape, steps, plan, x_start=start)


@lowering("Expand")
def expand(node, inputs, outputs, plan):
    x, shape = inputs[0], outputs[0].shape
    lead = len(shape) - len(x.shape)
    steps = [0] * lead + [
        0 if n == 1 else step for n, step in zip(x.shape, _strides(x.shape), strict=True)
    ]
    return _copied(x, outputs[0], shape, steps, plan)


@lowering("Tile")
def tile(node, inputs, outputs, plan):
    x, repeats = inputs
    shape, steps = [], []
    for n, step, times in zip(x.shape, _strides(x.shape), repeats.value, strict=True):
        shape += [int(times), n]
        steps += [0, step]
    return _copied(x, outputs[0], shape, steps, plan)


@lowering("Pad")
def pad(node, inputs, outputs, plan):
    x, pads, value, axes = [*inputs, None, None][:4]
    y = outputs[0]
    axes = None if axes is None else axes.value
    widths = definitions.pad_widths(x.shape, pads.value, axes)
    mode = node.attributes.get("mode", "constant")
    if mode != "constant":
        return _mirrored(x, y, widths, mode, plan)
    value = np.zeros(1, x.dtype) if value is None else value
    if not isinstance(value, np.ndarray) and (value.dtype != x.dtype or value.size != 1):
        return None
    from_x, to_y = _strides(x.shape), _strides(y.shape)
    kept = [n + min(a, 0) + min(b, 0) for n, (a, b) in zip(x.shape, widths, strict=True)]
    x_start = sum(max(0, -a) * step for (a, _), step in zip(widths, from_x, strict=True))
    y_start = sum(max(0, a) * step for (a, _), step in zip(widths, to_y, strict=True))
    filled = KernelCall("movement.fill", [value, y], [x.dtype.itemsize, y.size])
    kept = [max(0, n) for n in kept]
    copied = _copied(x, y, kept, from_x, plan, to_y, x_start, y_start)
    return None if copied is None else [filled, *copied]


def _mirrored(x, y, widths, mode, plan):
    """y = x with more of its own values at the ends: taken at indices, axis by axis."""
    left = [n + min(a, 0) + min(b, 0) for n, (a, b) in zip(x.shape, widths, strict=True)]
    if min(left, default=0) < 1 or not y.size:  # nothing is there to be repeated
        return None
    axes = [axis for axis, width in enumerate(widths) if any(width)]
    if not axes:
        return _copied(x, y, x.shape, _strides(x.shape), plan)
    calls, source, shape, itemsize = [], x, x.shape, x.dtype.itemsize
    for axis in axes:
        places = definitions.pad.compute(np.arange(shape[axis]), widths[axis], mode=mode)
        after = (*shape[:axis], len(places), *shape[axis + 1 :])
        into = y if axis == axes[-1] else plan.scratch(itemsize * math.prod(after))
        calls.append(_taken(source, shape, places, into, axis, len(places), plan, itemsize))
        source, shape = into, after
    return calls


def _copied(x, y, shape, from_x, plan, to_y=None, x_start=0, y_start=0):
    """Calls that copy values of that shape from x to y; None if y is empty, or of too many axes."""
    if not math.prod(shape):
        return [] if y.size else None
    to_y = _strides(shape) if to_y is None else to_y
    axes = _planes(_taken_together(shape, from_x, to_y))
    if len(axes) > _RANK or x.dtype.itemsize not in (1, 2, 4, 8):
        return None
    axes = [(1, 0, 0)] * (_RANK - len(axes)) + axes
    shape, from_x, to_y = zip(*axes, strict=True)
    *outer, rows, columns = shape
    row_bytes = columns * x.dtype.itemsize
    task_rows = min(rows, max(1, _TASK_BYTES // row_bytes))
    task_planes = max(1, _TASK_BYTES // (rows * row_bytes)) if task_rows == rows else 1
    tasks = -(-math.prod(outer) // task_planes) * -(-rows // task_rows)
    return [
        KernelCall(
            "movement.copy",
            [x, y],
            [x.dtype.itemsize, *shape, *from_x, *to_y, x_start, y_start, task_planes, task_rows],
            threads=workers(plan, math.prod(shape) * x.dtype.itemsize, _THREAD_BYTES, tasks=tasks),
        )
    ]


def _taken_together(shape, from_x, to_y):
    """(length, step in x, step in y) of axes: those of 1 dropped, even ones merged."""
    axes = []
    for n, a, b in zip(shape, from_x, to_y, strict=True):
        if n == 1:
            continue
        if axes and axes[-1][1] == n * a and axes[-1][2] == n * b:
            axes[-1] = axes[-1][0] * n, a, b
        else:
            axes.append((n, a, b))
    return axes


def _planes(axes):
    """The axes with a plane last, of two: rows along which x lies together, or its longest axis."""
    axes = [(1, 0, 0)] * (2 - len(axes)) + axes
    *outer, last = axes
    if last[1] != 1:
        together = [axis for axis in outer if axis[1] == 1]
        if together:
            outer.remove(together[0])
            outer.append(together[0])
    return [*outer, last]


def _strides(shape):
    """Steps between neighbours along each axis, in values."""
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


# ---- along an axis -------------------------------------------------------------------------------


@lowering("Gather")
def gather(node, inputs, outputs, plan):
    x, indices = inputs
    if indices.dtype.itemsize not in (4, 8) or not outputs[0].size:
        return None
    if x.known and node.attributes.get("axis", 0) == 0 and can_take(x.encoded):
        return [taken_codes(x.encoded, indices, outputs[0], plan)]
    rows = plan.packed(x, "rows", lambda t: t.value) if x.known else x
    axis = node.attributes.get("axis", 0) % len(x.shape)
    itemsize = x.dtype.itemsize
    return [_taken(rows, x.shape, indices, outputs[0], axis, indices.size, plan, itemsize)]


@lowering("Resize")
def resize(node, inputs, outputs, plan):
    x, scales, sizes, region = [*inputs, None, None, None][:4]
    blend, axes, policy = definitions.how_to_resize(node.attributes)
    if blend.coordinates == "tf_crop_and_resize" or x.dtype != np.float32 or not outputs[0].size:
        return None
    limits = [None if t is None else t.value for t in (scales, sizes, region)]
    axes = definitions.resized(x.shape, *limits, axes, policy)
    axes = [a for a in axes if a[1] != x.shape[a[0]] or a[2] != 1]
    if not axes:
        return _copied(x, outputs[0], x.shape, _strides(x.shape), plan)
    calls, source, shape = [], x, x.shape
    for axis, n_out, scale, *region in axes:
        after = (*shape[:axis], n_out, *shape[axis + 1 :])
        last = len(calls) == len(axes) - 1
        y = outputs[0] if last else plan.scratch(4 * math.prod(after))
        at, weights, _ = blend.taps(shape[axis], n_out, scale, region)
        if blend.mode == "nearest":
            at = np.ascontiguousarray(at[:, 0])
            calls.append(_taken(source, shape, at, y, axis, n_out, plan))
        else:
            calls.append(_blended(source, shape, at, weights, y, axis, plan))
        source, shape = y, after
    return calls


def _taken(x, shape, indices, y, axis, count, plan, itemsize=4):
    """y = x, of that shape, taken at indices along an axis."""
    outer, length = math.prod(shape[:axis]), shape[axis]
    inner = math.prod(shape[axis + 1 :]) * itemsize
    task = max(1, _TASK_BYTES // max(inner, 1))
    return KernelCall(
        "movement.take",
        [x, indices, y],
        [outer, length, count, inner, indices.dtype.itemsize, task],
        threads=workers(plan, outer * count * inner, _THREAD_BYTES, -(-outer * count // task)),
        failure=lambda answer: IndexError(
            f"index number {answer - 1} is out of range for axis {axis} of {shape}"
        ),
    )


def _blended(x, shape, at, weights, y, axis, plan):
    """y = sums of neighbours of x, of that shape, along an axis."""
    count, taps = at.shape
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    task = max(1, _TASK_BYTES // max(4 * inner, 1))
    return KernelCall(
        "movement.blend",
        [x, np.ascontiguousarray(at), np.ascontiguousarray(weights, np.float32), y],
        [outer, shape[axis], count, inner, taps, task],
        threads=workers(
            plan, 4 * outer * count * inner * taps, _THREAD_BYTES, -(-outer * count // task)
        ),
    )
