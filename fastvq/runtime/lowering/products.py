"""Lowerings of products: dense layers, matrices, convolutions."""

import numpy as np

from fastvq.runtime.registry import KernelCall, lowering


@lowering("Dense")
def dense(node, inputs, outputs, plan):
    x, weight, bias = [*inputs, None][:3]
    if x.dtype != np.float32 or node.attributes.get("activation", "identity") != "identity":
        return None
    k = weight.shape[1]
    panels = plan.packed(weight, "float32 panels", lambda t: t.value)
    m = x.size // k if k else 0
    return [KernelCall("dense.dense", [x, panels, bias, outputs[0]], [m, weight.shape[0], k])]
