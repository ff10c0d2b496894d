"""Lowering of distances to points that stay."""

import numpy as np

from fastvq.runtime.registry import KernelCall, lowering, module, workers

_THREAD_WORK = 100_000  # differences that are worth a thread


@lowering("Distances")
def distances(node, inputs, outputs, plan):
    x, points, scale = [*inputs, None][:3]
    operands = [x, points] if scale is None else [x, points, scale]
    if any(t.dtype != np.float32 for t in operands) or not outputs[0].size:
        return None
    if not (points.known and (scale is None or scale.known)):
        return None
    kernels = module("points")
    (n, k), d = outputs[0].shape, x.shape[1]
    panels = plan.packed(
        points, f"panels of points, scaled by {scale and scale.name}",
        lambda _: _panels(points, scale, kernels.width),
    )  # fmt: skip
    metric = kernels.METRICS[node.attributes.get("metric", "squared")]
    return [
        KernelCall(
            "points.distances",
            [x, panels, outputs[0]],
            [n, d, k, scale is not None, metric],
            threads=workers(plan, n * k * d, _THREAD_WORK),
        )
    ]


def _panels(points, scale, width):
    """Points in lanes, feature by feature; behind each feature of theirs its scales, if any."""
    k, d = points.shape
    parts = [points.value] if scale is None else [points.value, scale.value]
    panels = np.zeros((-(-k // width), d, len(parts), width), np.float32)
    for i, part in enumerate(parts):
        rows = np.zeros((len(panels) * width, d), np.float32)
        rows[:k] = part  # a scale (1, d) is that of all
        panels[:, :, i] = rows.reshape(len(panels), width, d).swapaxes(1, 2)
    return panels
