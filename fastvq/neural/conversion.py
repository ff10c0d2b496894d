"""A network that was trained on grids, as integer layers of the runtime.

The rules of `fastvq.neural.integers`, carried out by writing nodes. A quantized layer becomes one
node that gives the codes of the next layer's grid: `multiplier` = this layer's worth of a sum / the
next scale, bounds for what a ReLU cuts off. Images lie with their channels last, as the runtime has
them.

What comes out equals `simulate_exact` bit for bit, on every level and where only NumPy is there.
Layers without a twin in integers come in through the importer of `fastvq.compress`, in float32;
there the runtime rounds in another order than PyTorch.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import fx, nn

from fastvq.neural.integers import Rules, Traced, each, next_scale, scale_of
from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.encoding import Raw

__all__ = ["convert"]

_PADDING = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # PyTorch's to ours


def convert(model: nn.Module, x: torch.Tensor | tuple[torch.Tensor, ...]) -> CompressedModel:
    """The network as a `CompressedModel` of integer layers.

    Parameters
    ----------
    model : Module
        From `prepare_qat`, trained, and such that `torch.fx` can trace it. Linear layers, 1-D and
        2-D convolutions, ReLU and other cuts, maxima and means of windows, additions,
        concatenations, changes of shape and dropout have twins that give the same bits; all else
        that `fastvq.compress` can import stays in float32, and a warning says so.
    x : Tensor of float32, or tuple of these
        A batch as the network takes it; only its shape counts.

    Returns
    -------
    CompressedModel
        From float32 input `x` to float32 output `y`, or several: `x0`, `x1`, ..., `y0`, `y1`, ...;
        `save` keeps it in a file that runs with NumPy alone. Weights take a byte each, whatever
        their bits.

    Raises
    ------
    NotImplementedError
        For convolutions over three axes, and for pooling that gives places of maxima.
    ValueError
        For more or fewer tensors than the network has inputs.
    fastvq.compress.UnsupportedModel
        For a float32 layer that cannot be imported.

    Warns
    -----
    UserWarning
        Where layers stay in float32. Results then agree with `simulate_exact` up to the rounding
        of these, and where it decides between two codes by a step of theirs.

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
    traced = Traced(model, x)
    written = Written(traced)
    rules = Rules(traced, written)
    with torch.no_grad():
        found = rules.results()
    if rules.floats:
        warnings.warn(
            f"in integers there is no {', '.join(sorted(set(rules.floats)))}: "
            "that stays in float32, and results agree with simulate_exact up to its rounding",
            stacklevel=2,
        )
    return CompressedModel(written.graph(found))


class _Written(NamedTuple):
    """A value of the graph, and how it lies."""

    name: str
    ndim: int
    channels_last: bool = False
    is_codes: bool = False


class Written:
    """The rules as nodes of the runtime."""

    def __init__(self, traced):
        self.traced = traced
        self.nodes, self.constants, self._turned = [], {}, {}
        self._n_names = 0
        self._inputs = _names("x", len(traced.inputs))

    def graph(self, outputs):
        """All nodes; what is given is named y, or y0, y1, ..."""
        wanted = _names("y", len(outputs))
        names = {name: name for name in self._inputs}
        for value, name in zip(outputs, wanted, strict=True):
            laid = self._laid(value, False)
            if laid.name in names:  # what is given twice, or as it came
                laid = self._add("Unary", [laid], like=laid, function="identity")
            names[laid.name] = name
        nodes = [
            Node(
                node.operator,
                [names.get(name, name) for name in node.inputs],
                [names.get(name, name) for name in node.outputs],
                node.attributes,
            )
            for node in self.nodes
        ]
        inputs, given = (
            [
                Value(name, "float32", ("N", *self.traced.shape(node)[1:]))
                for name, node in zip(names, ends, strict=True)
            ]
            for names, ends in (
                (self._inputs, self.traced.inputs),
                (wanted, self.traced.outputs),
            )
        )
        return Graph(nodes, inputs, given, self.constants)

    # ---- what the rules call -------------------------------------------------------------------

    def given(self, place):
        ndim = len(self.traced.shape(self.traced.inputs[place]))
        return _Written(self._inputs[place], ndim)

    def quantized(self, x, grid, bounds):
        scale = np.array(scale_of(grid), np.float32)
        codes = self._add("Quantize", [x], scale, np.array(grid.zero_point, np.int8), like=x)
        return self._bounded(codes._replace(is_codes=True), bounds)

    def layer(self, node, codes, grid, bounds):
        module, name = self.traced.called(node), self.traced.name(node)
        own, layer = self.traced.integers_of(node), module.layer
        flat = isinstance(layer, nn.Linear)
        arrays = [
            (own.weight if flat else own.weight.movedim(1, -1)).numpy(),
            (module.worth() / next_scale(grid)).float().numpy(),
            own.bias.numpy(),
        ]
        attributes = dict(x_zero_point=own.input_zero_point, **_finish(grid, bounds))
        like = codes._replace(is_codes=grid is not None, channels_last=not flat)
        codes = self._laid(codes, not flat)
        if flat:
            return self._add("QDense", [codes], *arrays, like=like, **attributes)
        if codes.ndim > 4:
            raise NotImplementedError(f"integers have no convolution over three axes, as {name}")
        begins, ends = _paddings(layer)
        if layer.padding_mode != "zeros":
            sides = np.array([0, *begins, 0, 0, *ends, 0], np.int64)
            codes = self._add("Pad", [codes], sides, like=codes, mode=_PADDING[layer.padding_mode])
            begins = ends = (0,) * len(begins)
        return self._add(
            "QConv", [codes], *arrays, like=like, strides=layer.stride, dilations=layer.dilation,
            pads=(*begins, *ends), groups=layer.groups, **attributes,
        )  # fmt: skip

    def mean(self, node, codes, grid, bounds):
        pool = self.traced.called(node)
        codes, shape = self._laid(codes, True), self.traced.shape(node.args[0])
        kernel, n = pool.kernel(shape), len(shape) - 2
        stride = each(getattr(pool.pool, "stride", 1), n)  # of one window, where there is none
        padding = each(getattr(pool.pool, "padding", 0), n)
        window = dict(strides=stride, pads=(*padding, *padding))
        worth = scale_of(pool.input_grid) / next_scale(grid)
        zero = pool.input_grid.zero_point
        if grid is None:  # a convolution of each channel with ones gives numbers
            ones = np.ones((shape[1], *kernel, 1), np.int8)
            factor = np.full(shape[1], worth / math.prod(kernel), np.float32)
            like = codes._replace(is_codes=False)
            return self._add(
                "QConv", [codes], ones, factor, like=like, groups=shape[1], x_zero_point=zero,
                dtype="float32", **window,
            )  # fmt: skip
        mean = self._add(
            "QPool", [codes], like=codes, function="average", kernel=kernel, count_padding=True,
            multiplier=worth, x_zero_point=zero, y_zero_point=grid.zero_point, **window,
        )  # fmt: skip
        return self._bounded(mean, bounds)

    def maximum(self, value, kernel, stride, pads, dilation):
        value = self._laid(value, True)
        return self._add(
            "QPool" if value.is_codes else "Pool", [value], like=value, function="max",
            kernel=kernel, strides=stride, pads=pads, dilations=dilation,
        )  # fmt: skip

    def reshaped(self, value, shape):
        value = self._laid(value, False)
        like = value._replace(ndim=1 + len(shape))
        if len(shape) == 1:
            return self._add("Flatten", [value], like=like, axis=1)
        wanted = np.array([0, *shape], np.int64)
        return self._add("Reshape", [value], wanted, like=like, zero_copies=True)

    def joined(self, values, axis):
        values = self._alike(values)
        like = values[0]
        if like.channels_last:
            axis = {0: 0, 1: like.ndim - 1}.get(axis, axis - 1)
        return self._add("Concat", values, like=like, axis=axis)

    def cut(self, x, low, high):
        if (low, high) == (0, math.inf):
            return self._add("Unary", [x], like=x, function="relu")
        return self._add("Unary", [x], like=x, function="clip", alpha=low, beta=high)

    def added(self, a, b):
        values = self._alike([a, b])
        return self._add("Binary", values, like=values[0], function="add")

    def floating(self, node, value_of):
        """The nodes that the importer makes of one node of PyTorch's graph."""
        from fastvq.compress.importers.torch import from_torch

        sources, module = _island(node, self.traced)
        examples = tuple(torch.zeros(self.traced.shape(source)) for source in sources)
        graph, _ = from_torch(module, examples)
        names = {
            given.name: self._laid(value_of(source), False).name
            for given, source in zip(graph.inputs, sources, strict=True)
        }
        made = [*graph.constants, *(name for part in graph.nodes for name in part.outputs)]
        names |= {name: self._new_name() for name in made if name}
        self.constants |= {names[name]: tensor for name, tensor in graph.constants.items()}
        for part in graph.nodes:
            inputs, outputs = (
                [names.get(name, name) for name in side] for side in (part.inputs, part.outputs)
            )
            self.nodes.append(Node(part.operator, inputs, outputs, part.attributes))
        return _Written(names[graph.outputs[0].name], len(self.traced.shape(node)))

    # ---- inside --------------------------------------------------------------------------------

    def _new_name(self):
        self._n_names += 1
        return f"v{self._n_names}"

    def _add(self, operator, values, *constants, like, **attributes):
        """A node of values and constants; what it gives lies as `like` does."""
        inputs = [value.name for value in values]
        for array in constants:
            inputs.append(self._new_name())
            self.constants[inputs[-1]] = Raw(np.ascontiguousarray(array))
        name = self._new_name()
        self.nodes.append(Node(operator, inputs, [name], attributes))
        return like._replace(name=name)

    def _bounded(self, codes, bounds):
        """Codes that an operator left in all of a byte."""
        if bounds == (-128, 127):
            return codes
        table = np.arange(-128, 128).clip(*bounds).astype(np.int8)
        return self._add("QTable", [codes], table, like=codes)

    def _laid(self, value, channels_last):
        """The value with its channels there; what has none of its own is as it is."""
        if value.channels_last == channels_last:
            return value
        if value.ndim < 3:
            return value._replace(channels_last=channels_last)
        if value.name not in self._turned:
            first, *rest = range(1, value.ndim)
            order = (*rest, first) if channels_last else (value.ndim - 1, first, *rest[:-1])
            like = value._replace(channels_last=channels_last)
            turned = self._add("Transpose", [value], like=like, order=(0, *order))
            self._turned[value.name] = turned
        return self._turned[value.name]

    def _alike(self, values):
        last = any(value.channels_last for value in values)
        return [self._laid(value, last) for value in values]


def _names(letter, n):
    """x, or x0, x1, ..."""
    return [letter] if n == 1 else [f"{letter}{i}" for i in range(n)]


def _paddings(layer):
    """What a convolution puts before and behind each axis; "same" and "valid" in numbers."""
    sides = layer._reversed_padding_repeated_twice  # last axis first, before and behind in turn
    return tuple(sides[-2::-2]), tuple(sides[::-2])


def _finish(grid, bounds):
    """What a layer makes of its sums."""
    if grid is None:
        return dict(dtype="float32")
    return dict(y_zero_point=grid.zero_point, low=bounds[0], high=bounds[1])


def _island(node, traced):
    """A node of the graph as a module, with all before it up to the nearest tensors.

    Returns
    -------
    sources : list of Node
        Those tensors.
    module : GraphModule
    """
    graph, copies, sources = fx.Graph(), {}, []

    def copied(source):
        if source not in copies:
            is_input = source.op != "get_attr" and traced.shape(source) is not None
            if is_input and source is not node:
                sources.append(source)
                copies[source] = graph.placeholder(f"x{len(sources)}")
            else:
                for before in source.all_input_nodes:
                    copied(before)
                copies[source] = graph.node_copy(source, copies.__getitem__)
        return copies[source]

    graph.output(copied(node))
    return sources, fx.GraphModule(traced.module, graph)
