"""What a network trained on grids computes with integers: one set of rules, carried out twice.

The graph that `torch.fx` traces is asked backwards, from its output. A value is wanted as numbers,
or as codes of the grid of the layer that reads it, and hands that wish on:

- a quantized layer wants codes of its own grid, adds products of them, and makes of a sum the code
  that is wanted, by one multiplication, or a number;
- maxima, changes of shape and concatenations of codes are codes of the same grid, and what a ReLU
  cuts off lies below the code of zero;
- means have a grid of their own, whose codes are summed exactly;
- additions are of float32 numbers: a skip connection stays as wide as it was in training;
- what has no twin in integers stays in float32.

A value that is wanted in several forms is made once, as numbers, and quantized for each.

`Rules` calls the operations by name. `Simulated` carries them out on tensors, with sums of products
exact in float64; `fastvq.neural.conversion` writes them as nodes of the runtime. As both round
where the rules say, and nowhere else, both give the same bits.
"""

import copy
import math
import operator

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn import functional as F

from fastvq.neural.qat import QuantizedLayer, QuantizedPool, integer_layers, trace

__all__ = ["Rules", "Simulated", "Traced", "simulate_exact"]

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, F.dropout, "contiguous")
_MAXIMUM = (nn.MaxPool1d, nn.MaxPool2d, F.max_pool1d, F.max_pool2d, torch.max_pool2d)
_SHAPE = (
    *(nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze),
    *("flatten", "view", "reshape", "squeeze", "unsqueeze"),
)
_JOINED = (torch.cat, torch.concat)
_ADDED = (operator.add, operator.iadd, torch.add, "add", "add_")
_LIMITS = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu", "relu_"), (0.0, math.inf)),
    **dict.fromkeys((nn.ReLU6, F.relu6), (0.0, 6.0)),
}
#: kinds whose codes are made of the codes of what they read
_THROUGH = ("nothing", "maximum", "shape", "joined", "cut")


def simulate_exact(model: nn.Module, x: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What the network gives with integer arithmetic, bit by bit, computed in float64.

    Codes are multiplied and added exactly; ``clamp(rne(float32(acc + bias) · m) + zero_point)``
    with m = input scale · weight scale / next scale, taken in float64 and rounded to float32,
    gives the codes of the next layer. The rules are those of the module.

    Parameters
    ----------
    model : Module
        From `prepare_qat`, trained; it must be traceable by `torch.fx`.
    x : Tensor of float32, or tuple of these
        What the network takes.

    Returns
    -------
    Tensor of float32
        Or a tuple, list or dict of such, as the network gives them.

    Raises
    ------
    NotImplementedError
        For a network that gives anything but tensors.
    ValueError
        For more or fewer tensors than the network has inputs.
    OverflowError
        Where a sum does not fit in 32 bits.
    """
    traced = Traced(model, x)
    with torch.no_grad():
        found = iter(Rules(traced, Simulated(traced, x)).results())
    return fx.node.map_arg(traced.output, lambda _: next(found))


class Traced:
    """A network as a graph, in evaluation: its modules, and what its values look like.

    Parameters
    ----------
    model : Module
        From `prepare_qat`.
    x : Tensor, or tuple of these
        What the network takes, of which only the shapes count.

    Attributes
    ----------
    inputs : list of Node
    output : Node, or a structure of nodes
        What the network gives.
    outputs : list of Node
        Those nodes, in order.
    """

    def __init__(self, model, x):
        self.integers = integer_layers(model)  # which says what is wrong with it
        root = nn.Sequential(copy.deepcopy(model)).eval()
        self.module = fx.GraphModule(root, trace(model))
        self._modules = dict(self.module.named_modules())
        self.inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        given = as_inputs(x)
        if len(given) != len(self.inputs):
            raise ValueError(
                f"x must be as many tensors as the network takes, {len(self.inputs)}, "
                f"got {len(given)}"
            )
        with torch.no_grad():  # two rows: what is one is no row
            ShapeProp(self.module).propagate(*(torch.zeros(2, *one.shape[1:]) for one in given))
        self.output = next(n for n in self.module.graph.nodes if n.op == "output").args[0]
        self.outputs = []
        fx.node.map_arg(self.output, self.outputs.append)
        if not self.outputs or any(self.shape(node) is None for node in self.outputs):
            raise NotImplementedError(f"integers give tensors, the network {self.output}")

    def called(self, node):
        """The module that a node calls, else None."""
        return self._modules[node.target] if node.op == "call_module" else None

    def name(self, node):
        return str(node.target if node.op == "call_module" else node.name).removeprefix("0.")

    def integers_of(self, node):
        """The integers of the layer that a node calls."""
        return self.integers.get(self.name(node), self.integers.get(""))  # "": the whole network

    def shape(self, node):
        """The shape of a tensor, with two rows; None for what is no tensor."""
        meta = node.meta.get("tensor_meta")
        return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None

    def kind(self, node):
        """Which of the rules is that of a node."""
        module = self.called(node)
        what = node.target if module is None else type(module)
        if node.op in ("placeholder", "output"):
            return node.op
        for kind, known in (
            ("layer", (QuantizedLayer,)), ("mean", (QuantizedPool,)), ("nothing", _NOTHING),
            ("maximum", _MAXIMUM), ("joined", _JOINED),
        ):  # fmt: skip
            if what in known:
                return kind
        if what in _SHAPE and self._keeps_rows(node):
            return "shape"
        if self.limits(node) is not None:
            return "cut"
        return "added" if what in _ADDED and self._adds_alike(node) else "float"

    def limits(self, node):
        """What a node cuts its values off at, else None."""
        module = self.called(node)
        if type(module) is nn.Hardtanh:
            return float(module.min_val), float(module.max_val)
        return _LIMITS.get(node.target if module is None else type(module))

    def _keeps_rows(self, node):
        return (self.shape(node) or (0,))[0] == (self.shape(node.args[0]) or (1,))[0] == 2

    def _adds_alike(self, node):
        plain = len(node.args) == 2 and not node.kwargs
        if not plain or not all(isinstance(arg, fx.Node) for arg in node.args):
            return False
        return self.shape(node.args[0]) == self.shape(node.args[1]) is not None

    def window(self, node):
        """Kernel, stride, padding (beginnings, then ends) and dilation of a maximum, a tuple each.

        Where sizes are rounded up, the last window sticks out: that is more padding at the end.
        """
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        module = self.called(node)
        if module is None:
            given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        else:
            given = {name: getattr(module, name) for name in names}
        if given.get("return_indices"):
            raise NotImplementedError(f"integers have no places of maxima, as {self.name(node)}")
        size = given["kernel_size"]
        parts = size, given.get("stride") or size, given.get("padding", 0), given.get("dilation", 1)
        sizes_in, sizes_out = (self.shape(one)[2:] for one in (node.args[0], node))
        kernel, stride, begins, dilation = (each(part, len(sizes_in)) for part in parts)
        ends = [
            max(p, (n_out - 1) * s + d * (k - 1) + 1 - p - n_in)
            for k, s, p, d, n_in, n_out in zip(
                kernel, stride, begins, dilation, sizes_in, sizes_out, strict=True
            )
        ]
        return kernel, stride, (*begins, *ends), dilation


class Rules:
    """The rules of this module, for one network and one way to carry them out.

    Parameters
    ----------
    traced : Traced
    do
        What carries them out: `Simulated`, or what writes nodes.

    Attributes
    ----------
    floats : list of str
        Names of what stays in float32 as it has no twin in integers, after `result`.
    """

    def __init__(self, traced, do):
        self.traced, self.do = traced, do
        self.floats, self._made, self._forms = [], {}, {}

    def results(self):
        """What the network gives, as numbers: a list."""
        for node in self.traced.module.graph.nodes:  # in this order nothing nests deeply
            if len(self._wanted_forms(node)) > 1:
                self.real(node)
        return [self.real(node) for node in self.traced.outputs]

    def codes(self, node, grid, bounds=None):
        """A value as codes of a grid, cut off at two of its codes."""
        bounds = (grid.least, grid.most) if bounds is None else bounds
        key = node, grid, bounds
        if key not in self._made:
            several = len(self._wanted_forms(node)) > 1
            kind = "several" if several else self.traced.kind(node)
            self._made[key] = self._codes(kind, node, grid, bounds)
        return self._made[key]

    def real(self, node):
        """A value as float32 numbers."""
        if node not in self._made:
            self._made[node] = self._real(self.traced.kind(node), node)
        return self._made[node]

    def _codes(self, kind, node, grid, bounds):
        if kind in ("layer", "mean"):
            return self._summed(node, grid, bounds)
        if kind not in _THROUGH:
            return self.do.quantized(self.real(node), grid, bounds)
        if kind == "cut":
            cuts = grid.codes(torch.tensor(self.traced.limits(node))).tolist()
            bounds = tuple(int(min(max(cut, bounds[0]), bounds[1])) for cut in cuts)
            return self.codes(node.args[0], grid, bounds)
        return self._moved(kind, node, lambda source: self.codes(source, grid, bounds))

    def _real(self, kind, node):
        if kind == "placeholder":
            return self.do.given(self.traced.inputs.index(node))
        if kind in ("layer", "mean"):
            return self._summed(node, None, None)
        if kind == "cut":
            return self.do.cut(self.real(node.args[0]), *self.traced.limits(node))
        if kind == "added":
            return self.do.added(*map(self.real, node.args))
        if kind in _THROUGH:
            return self._moved(kind, node, self.real)
        if self.traced.shape(node) is not None and node.op != "get_attr":
            self.floats.append(self.traced.name(node))
        return self.do.floating(node, self.real)

    def _summed(self, node, grid, bounds):
        module = self.traced.called(node)
        codes = self.codes(node.args[0], module.input_grid)
        sums = self.do.layer if isinstance(module, QuantizedLayer) else self.do.mean
        return sums(node, codes, grid, bounds)

    def _moved(self, kind, node, value_of):
        """What becomes of codes as it does of numbers."""
        if kind == "joined":
            parts, axis = (*node.args, node.kwargs.get("dim", 0))[:2]
            axis %= len(self.traced.shape(node))
            return self.do.joined([value_of(part) for part in parts], axis)
        value = value_of(node.args[0])
        if kind == "maximum":
            return self.do.maximum(value, *self.traced.window(node))
        if kind == "shape":
            return self.do.reshaped(value, self.traced.shape(node)[1:])
        return value

    def _wanted_forms(self, node):
        """The grids that read a value, and None where it is read as numbers."""
        if node not in self._forms:
            forms = set()
            for user in node.users:
                kind = self.traced.kind(user)
                if kind in ("layer", "mean"):
                    forms.add(self.traced.called(user).input_grid)
                elif kind in _THROUGH:
                    forms |= self._wanted_forms(user)
                elif user.op == "output" or self.traced.shape(user) is not None:
                    forms.add(None)
            self._forms[node] = forms
        return self._forms[node]


class Simulated:
    """The rules on tensors: codes are whole float64 numbers, numbers are float32."""

    def __init__(self, traced, x):
        self.traced, self.x = traced, as_inputs(x)

    def given(self, place):
        return self.x[place].float()

    def quantized(self, x, grid, bounds):
        return grid.codes(x).double().clamp(*bounds)

    def layer(self, node, codes, grid, bounds):
        layer, name = self.traced.called(node), self.traced.name(node)
        integers = self.traced.integers_of(node)
        # Padding adds zeros, which have the code of zero: so it is taken off before.
        centred = codes - integers.input_zero_point
        whole = layer.apply(centred, integers.weight.double(), integers.bias.double())
        if whole.numel() and whole.abs().max() >= 2**31:
            raise OverflowError(f"sums of layer {name!r} do not fit in 32 bits")
        worth = layer.worth()
        if len(worth) > 1 and not isinstance(layer.layer, nn.Linear):
            worth = worth.reshape(-1, *[1] * (whole.ndim - 2))
        return self._finished(whole, worth / next_scale(grid), grid, bounds)

    def mean(self, node, codes, grid, bounds):
        pool = self.traced.called(node)
        count = math.prod(pool.kernel(codes.shape))
        sums = (pool.pool(codes - pool.input_grid.zero_point) * count).round()
        worth = scale_of(pool.input_grid) / next_scale(grid) / count
        return self._finished(sums, torch.tensor(worth, dtype=torch.float64), grid, bounds)

    def _finished(self, whole, factor, grid, bounds):
        real = whole.float() * factor.float()
        if grid is None:
            return real
        return (real.round().double() + grid.zero_point).clamp(*bounds)

    def maximum(self, value, kernel, stride, pads, dilation):
        n = len(kernel)
        sides = [pads[i] for axis in reversed(range(n)) for i in (axis, n + axis)]
        pool = F.max_pool1d if n == 1 else F.max_pool2d
        return pool(F.pad(value, sides, value=-math.inf), kernel, stride, 0, dilation)

    def reshaped(self, value, shape):
        return value.reshape(len(value), *shape)

    def joined(self, values, axis):
        return torch.cat(values, axis)

    def cut(self, x, low, high):
        return x.clamp(low, high)

    def added(self, a, b):
        return a + b

    def floating(self, node, value_of):
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self.traced.module)
        args = fx.node.map_arg(node.args, value_of)
        named = fx.node.map_arg(node.kwargs, value_of)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **named)
        function = self.traced.called(node) if node.op == "call_module" else node.target
        return function(*args, **named)


def as_inputs(x):
    """One tensor or several, as a tuple."""
    return (x,) if torch.is_tensor(x) else tuple(x)


def scale_of(grid):
    """The one scale of a grid of activations, as files keep it: a float32."""
    return float(grid.scale.detach().float()[0])


def next_scale(grid):
    """What sums are divided by on their way to the codes of a grid; or to numbers, without one."""
    return 1.0 if grid is None else scale_of(grid)


def each(value, n):
    return (value,) * n if isinstance(value, int) else tuple(value)
