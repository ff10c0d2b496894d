"""What layers cost in integers and in floats, as measured: on some shapes, for each level.

    python -m fastvq.compress.schemes.costs

times the kernels of the active level, one thread, and prints its rows of the table. A model's own
shapes are taken for the nearest measured one: the question is only which side is quicker, and that
turns where rows are few and narrow. A choice by a table gives the same file on any machine; one by
timing while a model is made would not.
"""

from __future__ import annotations

import math
from time import perf_counter

import numpy as np

from fastvq import _kernels
from fastvq.compress.schemes import cost_table
from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph, Node, Value
from fastvq.runtime.plan import Plan

__all__ = ["gain", "gain_of", "measured", "shape_of"]

_LEVEL = "x86_64_v3"  # for those that nobody has measured, and where there are no kernels
# (rows, inputs, outputs) of dense layers; of convolutions (places, values of a window, outputs),
# their windows as in `_window`; and (places, taps, channels) of filters of channels.
_SHAPES = {
    "dense": [(m, k, n) for m in (1, 32, 1024) for k in (16, 64, 256, 1024) for n in (16, 256)],
    "patches": [(m, k, n) for m in (49, 784) for k in (25, 27, 144, 576) for n in (16, 64)],
    "depthwise": [(m, 9, c) for m in (49, 784, 12544) for c in (32, 384) if m * c < 1 << 20],
}
_TELLS = 100.0  # microseconds
_WAYS = ("float32", "dynamic", "static")


def gain(kind: str, shape: tuple[int, int, int], way: str, level: str | None = None) -> float:
    """How many times as quick integers are as floats, by the table.

    Parameters
    ----------
    kind : {"dense", "patches", "depthwise"}
    shape : (int, int, int)
        Rows, inputs and outputs of a product; output places, taps and channels.
    way : {"dynamic", "static"}
    level : str, optional
        The active one by default.
    """
    times = _nearest(kind, shape, level)
    return times["float32"] / times[way]


def _nearest(kind, shape, level=None):
    """The microseconds of each way, by the measured shape that is nearest by its logarithms.

    Scaled by what there is to multiply: a picture has more places than any shape was measured with.
    """
    level = _kernels.active_level() if level is None else level
    table = cost_table.MICROSECONDS.get(level, cost_table.MICROSECONDS[_LEVEL])[kind]
    place = np.log(np.maximum(shape, 1))
    nearest = min(table, key=lambda known: ((np.log(known) - place) ** 2).sum())
    scale = math.prod(shape) / math.prod(nearest)
    return {way: scale * time for way, time in zip(_WAYS, table[nearest], strict=True)}


def gain_of(node, forms, way: str) -> float | None:
    """`gain` of a layer where all values have these forms; the mean where there are several.

    None where sizes are not known, and of layers so quick that no one would tell.
    """
    places = [shape_of(node, some) for some in forms]
    if None in places or max(_nearest(*place)["float32"] for place in places) < _TELLS:
        return None
    gains = [gain(*place, way) for place in places]
    return math.exp(sum(map(math.log, gains)) / len(gains))


def shape_of(node, forms) -> tuple[str, tuple[int, int, int]] | None:
    """Kind and shape of a dense layer or convolution; None where sizes are not known."""
    if node.operator not in ("Dense", "Conv"):
        return None
    weight, y = (forms.get(name) for name in (node.inputs[1], node.outputs[0]))
    if weight is None or y is None:
        return None
    groups = node.attributes.get("groups", 1)
    rows, width = math.prod(y.shape[:-1]), math.prod(weight.shape[1:])
    if groups == weight.shape[0] and weight.shape[-1] == 1:
        return "depthwise", (rows, width, groups)
    kind = "dense" if math.prod(weight.shape[1:-1]) == 1 else "patches"
    return kind, (rows * groups, width, weight.shape[0] // groups)


# ---- measuring ----------------------------------------------------------------------------------


def measured(seconds: float = 0.02) -> dict:
    """Microseconds of all shapes at the active level: kind to shape to one for each of the ways."""
    return {
        kind: {
            shape: tuple(round(_time(_layer(kind, shape, way), seconds), 2) for way in _WAYS)
            for shape in shapes
        }
        for kind, shapes in _SHAPES.items()
    }


def _layer(kind, shape, way):
    """A graph of one layer, and what it reads."""
    rng, (rows, k, n) = np.random.default_rng(0), shape
    if kind == "dense":
        operator, x_shape, shape, attributes = "Dense", (rows, k), (n, k), {}
    else:
        side, window, channels = math.isqrt(rows), *_window(k)
        groups = n if kind == "depthwise" else 1
        operator, x_shape = "Conv", (1, side, side, channels * groups)
        shape = n, window, window, channels
        attributes = {"groups": groups, "pads": (window // 2,) * 4}
    weight = rng.normal(size=shape) / 3
    x, small = rng.normal(size=x_shape).astype(np.float32), np.clip(weight * 127, -127, 127)
    steps = Raw(np.full(n, 1e-3, np.float32))
    constants = {"w": Raw(small.astype(np.int8)), "s": steps}
    if way == "float32":
        node = Node(operator, ("x", "w"), ("y",), attributes, "layer")
        constants = {"w": Raw(weight.astype(np.float32))}
    elif way == "dynamic":
        node = Node(f"Dynamic{operator}", ("x", "w", "s"), ("y",), attributes, "layer")
    else:
        node = Node(f"Q{operator}", ("x", "w", "s"), ("y",), attributes, "layer")
        x = np.clip(x * 40, -128, 127).astype(np.int8)
    graph = Graph([node], [Value("x", x.dtype.name, x.shape)], [Value("y", "float32", ())],
                  constants)  # fmt: skip
    return Plan(graph, {"x": x.shape}, {}, 1), x


def _window(values):
    """Side and channels of a window of so many values: 3 x 3, or 5 x 5 x 1."""
    return (3, values // 9) if values % 9 == 0 else (5, values // 25)


def _time(job, seconds):
    """The least microseconds of a plan's steps: what else a machine does only adds to them."""
    plan, x = job
    found, until = [], perf_counter() + seconds
    while len(found) < 5 or perf_counter() < until:
        times = np.zeros(len(plan.steps))
        plan.run([x], times)
        found.append(times.sum())
    return 1e6 * float(min(found))


if __name__ == "__main__":
    print(f'    "{_kernels.active_level()}": {{')
    for _kind, _table in measured().items():
        print(f'        "{_kind}": {{')
        for _shape, _times in _table.items():
            print(f"            {_shape}: {_times},")
        print("        },")
    print("    },")
