"""Lowerings of layers with a state: projections of all inputs, then the steps."""

from __future__ import annotations

import numpy as np

from fastvq._memory import aligned
from fastvq.runtime.registry import KernelCall, lowering, module, workers

# Multiply-adds that are worth waking a thread for.
WORK = 1 << 17
# The order of recurrent.h.
_LSTM, _GRU, _GRU_LINEAR, _TANH, _RELU = range(5)


@lowering("LSTM")
def lstm(node, inputs, outputs, plan):
    x, weight, recurrent, bias, lengths, h0, c0 = [*inputs, *[None] * 7][:7]
    direction = node.attributes.get("direction", "forward")
    return _layer(
        _LSTM, 4, x, weight, recurrent, bias, None, lengths, (h0, c0), outputs, direction, plan
    )


@lowering("GRU")
def gru(node, inputs, outputs, plan):
    x, weight, recurrent, bias, extra, lengths, h0 = [*inputs, *[None] * 7][:7]
    direction = node.attributes.get("direction", "forward")
    layer = _GRU_LINEAR if node.attributes.get("linear_before_reset", False) else _GRU
    return _layer(
        layer, 3, x, weight, recurrent, bias, extra, lengths, (h0, None), outputs, direction, plan
    )


@lowering("RNN")
def rnn(node, inputs, outputs, plan):
    x, weight, recurrent, bias, lengths, h0 = [*inputs, *[None] * 6][:6]
    direction = node.attributes.get("direction", "forward")
    layer = _RELU if node.attributes.get("activation", "tanh") == "relu" else _TANH
    return _layer(
        layer, 1, x, weight, recurrent, bias, None, lengths, (h0, None), outputs, direction, plan
    )


def _layer(
    layer, gates, x, weight, recurrent, bias, extra, lengths, states, outputs, direction, plan
):  # fmt: skip
    constants = [t for t in (weight, recurrent, bias, extra) if t is not None]
    if x.dtype != np.float32 or not all(t.known and t.dtype == np.float32 for t in constants):
        return None
    if lengths is not None and lengths.dtype not in (np.int32, np.int64):
        return None
    if any(t is not None and t.dtype != np.float32 for t in states):
        return None
    (n, t, k), (directions, _, units) = x.shape, recurrent.shape
    lanes = module("recurrent").lanes
    groups = -(-units // lanes)
    projected = plan.scratch(4 * directions * n * t * groups * gates * lanes)
    starts = _starts(layer, gates, bias, extra, directions, units)
    project = KernelCall(
        "recurrent.project",
        [x, _panels(weight, gates, plan), _by_lanes(starts[:, :, :, None], lanes), projected],
        [n * t, k, directions, groups, gates],
        threads=workers(plan, n * t * k * gates * units * directions, WORK),
    )
    threads = workers(plan, n * t * units * gates * units * directions, WORK)
    block = min(module("recurrent").state_rows, max(1, -(-n * directions // threads)))
    tasks = directions * -(-n // block)
    room = plan.scratch(4 * tasks * 2 * block * groups * lanes) if layer == _GRU else None
    y, h, c = [*outputs, None][:3]
    recur = KernelCall(
        "recurrent.recur",
        [
            projected,
            *_recurrent_panels(layer, gates, recurrent, extra, plan),
            *(lengths, *states),
            np.zeros(units, np.float32),
            *(y, h, c if layer == _LSTM else None, room),
        ],
        [
            *(layer, n, t, units, directions, gates, direction == "reverse", block),
            lengths is not None and lengths.dtype == np.int64,
        ],
        threads=threads if tasks > 1 else 1,
    )
    return [project, recur]


def _starts(layer, gates, bias, extra, directions, units):
    """What sums of projections begin with (directions, gates, units): all of the biases, but that
    of a GRU's third gate that waits for the reset."""
    starts = np.zeros((directions, gates, units), np.float32)
    if bias is not None:
        starts += bias.value.reshape(starts.shape)
    if extra is not None:
        ready = slice(2 if layer == _GRU_LINEAR else gates)
        starts[:, ready] += extra.value.reshape(starts.shape)[:, ready]
    return starts


def _recurrent_panels(layer, gates, recurrent, extra, plan):
    """Panels, those of a GRU's third gate, and its bias."""
    if layer == _GRU:
        return [_panels(recurrent, 3, plan, 0, 2), _panels(recurrent, 3, plan, 2, 3), None]
    panels = _panels(recurrent, gates, plan)
    if layer != _GRU_LINEAR:
        return [panels, None, None]
    directions, _, units = recurrent.shape
    bias = np.zeros((directions, 1, units), np.float32)
    if extra is not None:
        bias[:, 0] = extra.value.reshape(directions, 3, units)[:, 2]
    return [panels, None, _by_lanes(bias[:, :, :, None], module("recurrent").lanes)]


def _panels(weight, gates, plan, first=0, last=None):
    """Weights (directions, gates · units, k) of some gates as recurrent.h reads them."""
    lanes = module("recurrent").lanes

    def make(tensor):
        directions, rows, k = tensor.shape
        by_gate = tensor.value.reshape(directions, gates, rows // gates, k)
        return _by_lanes(by_gate[:, first:last], lanes)

    return plan.packed(weight, f"recurrent panels {lanes} {gates} {first} {last}", make)


def _by_lanes(values, lanes):
    """(directions, gates, units, k) as (directions, groups, k, gates, lanes), zeros where units
    end."""
    directions, gates, units, k = values.shape
    groups = -(-units // lanes)
    padded = np.zeros((directions, gates, groups * lanes, k), np.float32)
    padded[:, :, :units] = values
    ordered = padded.reshape(directions, gates, groups, lanes, k).transpose(0, 2, 4, 1, 3)
    panels = aligned(ordered.shape, np.float32)
    panels[...] = ordered
    return panels
