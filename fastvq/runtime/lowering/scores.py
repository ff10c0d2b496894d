"""Lowerings of what scores become."""

from __future__ import annotations

import numpy as np

from fastvq.runtime.registry import KernelCall, lowering, workers

_CURVE_WORK = 1 << 11  # values, some 20 ns each, that are worth waking a thread for
_PAIR_WORK = 1 << 12  # numbers of a row's matrix, passed some ten times


@lowering("Interpolate")
def interpolate(node, inputs, outputs, plan):
    x, *_ = inputs
    (y,) = outputs
    if x.dtype != np.float32:
        return None
    threads = workers(plan, x.size, _CURVE_WORK)
    return [KernelCall("scores.interpolate", [*inputs, y], x.shape, threads=threads)]


@lowering("Couple")
def couple(node, inputs, outputs, plan):
    (pairs,), (y,) = inputs, outputs
    if pairs.dtype != np.float32:
        return None
    n, k = y.shape
    threads = workers(plan, n * k * k, _PAIR_WORK)
    room = plan.scratch(threads * (k + 2) * k * 8)
    return [KernelCall("scores.couple", [pairs, y, room], [n, k], threads=threads)]
