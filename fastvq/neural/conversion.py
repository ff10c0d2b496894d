"""A network that was trained on grids, as integer layers of the runtime.

The graph that `torch.fx` traces is walked as a chain. A quantized layer becomes one node that gives
the codes of the next layer's grid: `multiplier` = this layer's worth of a sum / the next scale, and
a ReLU in between is a lower bound at the code of zero. Maxima of codes are codes of maxima, so that
pooling follows. Images lie with their channels last, as the runtime has them.

What comes out equals `simulate_exact` bit for bit, on every level and where only NumPy is there.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fastvq.neural.qat import (
    NOTHING,
    POOL,
    RELU,
    QuantizedLayer,
    integer_layers,
    trace,
)
from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.encoding import Raw

__all__ = ["convert"]


def convert(model: nn.Module, x: torch.Tensor) -> CompressedModel:
    """The network as a `CompressedModel` of integer layers.

    Parameters
    ----------
    model : Module
        From `prepare_qat`, trained: a chain of quantized layers (linear and 1-D or 2-D
        convolutions), with ReLU, maximum pooling, flattening and dropout between them.
    x : Tensor of float32
        A batch as the network takes it; only its shape counts.

    Returns
    -------
    CompressedModel
        From float32 input to float32 output; `save` keeps it in a file that runs with NumPy alone.
        Weights take a byte each, whatever their bits.

    Raises
    ------
    NotImplementedError
        Where something else stands in the chain, or it branches.

    Examples
    --------
    >>> import torch
    >>> from fastvq.neural import QATSpec, convert, prepare_qat, simulate_exact
    >>> seed = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> x = torch.randn(64, 8)
    >>> quantized = prepare_qat(net, QATSpec(4, 4))
    >>> out = quantized(x)  # the scales start from it
    >>> compressed = convert(quantized, x)
    >>> bool((compressed(x.numpy()) == simulate_exact(quantized, x).numpy()).all())
    True
    """
    integers = integer_layers(model)
    chain = _chain(model)
    with torch.no_grad():
        y = model.eval()(x)
    graph = _Graph(x.ndim)
    graph.begin(chain[0], integers)
    for i, stage in enumerate(chain):
        follower = next((s for s in chain[i + 1 :] if s.kind == "layer"), None)
        _EMIT[stage.kind](graph, chain[i:], follower, integers)
    inputs = [Value("x", "float32", ("N", *x.shape[1:]))]
    outputs = [Value("y", "float32", ("N", *y.shape[1:]))]
    return CompressedModel(Graph(graph.renamed("y"), inputs, outputs, graph.constants))


class _Stage(NamedTuple):
    kind: str  # layer, relu, pool, flatten
    name: str
    module: Any  # or None for a function
    arguments: tuple  # of the function, without the value


def _chain(model):
    """The stages of a network, in order."""
    graph, stages, last = trace(model), [], None
    modules = dict(nn.Sequential(model).named_modules())
    for node in graph.nodes:
        if node.op == "placeholder":
            last = node
            continue
        if node.op == "output":
            break
        name = str(node.target).removeprefix("0.")
        if node.op == "get_attr" or list(node.all_input_nodes) != [last] or len(last.users) != 1:
            raise NotImplementedError(f"convert takes chains of layers, not a branch at {name}")
        module = modules[node.target] if node.op == "call_module" else None
        kind = _kind(module, node.target)
        if kind is None:
            raise NotImplementedError(f"convert knows no integer layer for {name}")
        last = node
        if kind != "nothing":
            stages.append(_Stage(kind, name, module, (node.args[1:], dict(node.kwargs))))
    if not stages or stages[0].kind != "layer":
        raise NotImplementedError("convert takes networks that begin with a quantized layer")
    return stages


def _kind(module, target):
    what = target if module is None else type(module)
    if isinstance(module, QuantizedLayer):
        return "layer"
    for kind, known in (("nothing", NOTHING), ("relu", RELU), ("pool", POOL)):
        if what in known:
            return kind
    return "flatten" if what in (nn.Flatten, torch.flatten, "flatten") else None


class _Graph:
    """Nodes as they are made, and how the latest value lies."""

    def __init__(self, ndim):
        self.nodes, self.constants, self.last = [], {}, "x"
        self.ndim, self.channels_last = ndim, False

    def add(self, operator, *constants, **attributes):
        names = []
        for array in constants:
            names.append(f"c{len(self.constants)}")
            self.constants[names[-1]] = Raw(np.ascontiguousarray(array))
        out = f"v{len(self.nodes)}"
        self.nodes.append(Node(operator, [self.last, *names], [out], attributes))
        self.last = out

    def renamed(self, name):
        """The nodes, the last of which gives this value."""
        *rest, node = self.nodes
        return [*rest, Node(node.operator, node.inputs, [name], node.attributes)]

    def begin(self, stage, integers):
        """Codes of the first layer's grid."""
        first, grid = integers[_key(stage, integers)], stage.module.input_grid
        self.add(
            "Quantize", np.array(first.input_scale, np.float32),
            np.array(first.input_zero_point, np.int8),
        )  # fmt: skip
        if first.input_bits < 8:  # the operator clips at bytes
            codes = np.arange(-128, 128).clip(grid.least, grid.most)
            self.add("QTable", codes.astype(np.int8))
        if not isinstance(stage.module.layer, nn.Linear):
            self.move_channels(last=True)

    def move_channels(self, last):
        if self.channels_last != last:
            first, *rest = range(1, self.ndim)
            order = (*rest, first) if last else (self.ndim - 1, first, *rest[:-1])
            self.add("Transpose", order=(0, *order))
            self.channels_last = last


def _key(stage, integers):
    return stage.name if stage.name in integers else ""  # a single layer has no name


def _layer(graph, chain, follower, integers):
    stage = chain[0]
    layer, own = stage.module.layer, integers[_key(stage, integers)]
    rectified = _is_rectified(chain)
    if follower is None:
        if any(later.kind != "relu" for later in chain[1:]):
            raise NotImplementedError("convert takes nothing but a ReLU after the last layer")
        attributes = dict(dtype="float32")
        multiplier = stage.module.worth().float()
    else:
        grid, other = follower.module.input_grid, integers[_key(follower, integers)]
        zero = other.input_zero_point
        low = max(grid.least, zero) if rectified else grid.least
        attributes = dict(y_zero_point=zero, low=low, high=grid.most)
        multiplier = (stage.module.worth() / other.input_scale).float()
    arrays = [_channels_last(own.weight, layer), multiplier.numpy(), own.bias.numpy()]
    attributes["x_zero_point"] = own.input_zero_point
    if isinstance(layer, nn.Linear):
        graph.add("QDense", *arrays, **attributes)
        return
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros" or graph.ndim > 4:
        raise NotImplementedError(f"convert takes no padding or size like that of {stage.name}")
    graph.add(
        "QConv", *arrays, strides=layer.stride, dilations=layer.dilation,
        pads=(*layer.padding, *layer.padding), groups=layer.groups, **attributes,
    )  # fmt: skip


def _is_rectified(chain):
    """Whether a ReLU follows before the next layer; with maxima and shapes it commutes."""
    for stage in chain[1:]:
        if stage.kind == "layer":
            return False
        if stage.kind == "relu":
            return True
    return False


def _relu(graph, chain, follower, integers):
    if follower is None:  # of floats; else it is in the layer before
        graph.add("Unary", function="relu")


def _pool(graph, chain, follower, integers):
    stage = chain[0]
    size, stride, padding, dilation = _pooling(stage)
    n = graph.ndim - 2
    kernel, padding = _each(size, n), _each(padding, n)
    graph.add(
        "QPool", function="max", kernel=kernel, strides=_each(stride or size, n),
        pads=(*padding, *padding), dilations=_each(dilation, n),
    )  # fmt: skip


def _pooling(stage):
    if stage.module is not None:
        module = stage.module
        if module.ceil_mode or module.return_indices:
            raise NotImplementedError(f"convert takes no pooling like that of {stage.name}")
        return module.kernel_size, module.stride, module.padding, module.dilation
    positional, named = stage.arguments
    names = ("kernel_size", "stride", "padding", "dilation")
    given = {**dict(zip(names, positional, strict=False)), **named}
    if given.get("ceil_mode") or given.get("return_indices") or len(positional) > len(names):
        raise NotImplementedError(f"convert takes no pooling like that of {stage.name}")
    stride, padding = given.get("stride"), given.get("padding", 0)
    return given["kernel_size"], stride, padding, given.get("dilation", 1)


def _flatten(graph, chain, follower, integers):
    stage = chain[0]
    if stage.module is not None:
        bounds = stage.module.start_dim, stage.module.end_dim
    else:
        positional, named = stage.arguments
        given = {**dict(zip(("start_dim", "end_dim"), positional, strict=False)), **named}
        bounds = given.get("start_dim", 0), given.get("end_dim", -1)
    if bounds != (1, -1):
        raise NotImplementedError("convert flattens everything but the batch, or nothing")
    graph.move_channels(last=False)
    graph.add("Flatten", axis=1)
    graph.ndim = 2


_EMIT = {"layer": _layer, "relu": _relu, "pool": _pool, "flatten": _flatten}


def _each(value, n):
    return (value,) * n if isinstance(value, int) else tuple(value)


def _channels_last(weight, layer):
    return (weight if isinstance(layer, nn.Linear) else weight.movedim(1, -1)).numpy()
