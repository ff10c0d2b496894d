"""Quantization-aware training: networks that learn with the rounding that integers will bring.

A real number v stands on a grid of b bits as q = clamp(rne(v / s) + z, −2^(b−1), 2^(b−1) − 1), and
is read back as s·(q − z); rne rounds to nearest, ties to even. In training the forward direction
does both at once (`FakeQuantize`), and the gradient passes rounding unchanged where nothing was
clipped. What differs is where the scale s comes from:

- "minmax": the extremes, of the weights as they are now, of the activations as they were so far;
- "average": moving averages of the extremes of batches (Jacob et al., CVPR 2018);
- "lsq": s learns, with the gradient of v̂ in s (Esser et al., "Learned step size quantization",
  ICLR 2020);
- "pact": the upper clipping value of activations learns (Choi et al., arXiv:1805.06085).

Weights are symmetric (z = 0), for each output channel or the whole tensor; activations have one
scale and zero point, and those that are never negative use all codes for what is there.

What integers then make of it - sums of products of codes, a bias of 32 bits, and one multiplication
by a float32 to get to the codes of the next layer - is the matter of `fastvq.neural.integers`.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.utils import fusion

from fastvq._validation import as_count, as_word

__all__ = [
    "FakeQuantize",
    "IntegerLayer",
    "QATSpec",
    "integer_layers",
    "prepare_qat",
]

WEIGHTS = {"minmax": ("min-max",), "lsq": ()}
ACTIVATIONS = {"minmax": ("min-max",), "average": ("ema", "moving"), "lsq": (), "pact": ()}
GRANULARITIES = {"channel": (), "tensor": ()}

_START_NUMBERS, _START_STEPS = 1 << 16, 46  # numbers that a learnt step starts from; candidates
_LEARNT = ("lsq", "pact")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_TINY = 1e-12  # the least scale: of weights that are all zero


@dataclass(frozen=True)
class QATSpec:
    """How to quantize the layers of a network.

    Parameters
    ----------
    weight_bits, activation_bits : int from 2 to 8, default=8
        `activation_bits` are those of what goes into a layer.
    weights : {"lsq", "minmax"}, default="lsq"
    activations : {"lsq", "average", "minmax", "pact"}, default="lsq"
    granularity : {"channel", "tensor"}, default="channel"
        Of the weights' scales.
    outer_bits : int, optional
        Bits of weights and activations of the first and last layer, where they differ: these have
        few weights, and suffer most.
    layers : mapping of pattern to mapping, default={}
        Other values for layers whose name a pattern (`fnmatch`) fits, the last one that does:
        ``{"head*": {"weight_bits": 4}}``; None for a layer that stays as it is.

    Examples
    --------
    >>> spec = QATSpec(4, 4, outer_bits=8, layers={"body.3": {"weight_bits": 2}})
    """

    weight_bits: int = 8
    activation_bits: int = 8
    weights: str = "lsq"
    activations: str = "lsq"
    granularity: str = "channel"
    outer_bits: int | None = None
    layers: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("weight_bits", "activation_bits", "outer_bits"):
            bits = getattr(self, name)
            if bits is not None and not 2 <= as_count(bits, name) <= 8:
                raise ValueError(f"{name} must be from 2 to 8, got {bits}")
        as_word(self.weights, "weights", WEIGHTS)
        as_word(self.activations, "activations", ACTIVATIONS)
        as_word(self.granularity, "granularity", GRANULARITIES)

    def of(self, name, outer):
        """The spec of the layer of this name; None where it stays as it is."""
        spec = self
        if outer and self.outer_bits is not None:
            bits = self.outer_bits
            spec = replace(self, weight_bits=bits, activation_bits=bits)
        for pattern, changes in self.layers.items():
            if fnmatchcase(name, pattern):
                if changes is None:
                    return None
                spec = replace(spec, **changes)
        return spec


class FakeQuantize(nn.Module):
    """Numbers put on a grid and read back.

    Parameters
    ----------
    bits : int
    method : {"minmax", "average", "lsq", "pact"}
    channels : int, optional
        Scales, one for each index of the first axis; by default one in all.
    weights : bool, default=False
        Symmetric, and "minmax" is of the tensor as it is, not of all there were.
    decay : float, default=0.9
        Of moving averages.

    Attributes
    ----------
    least, most : int
        The codes that there are.
    scale : Tensor of shape (channels or 1,)
    zero_point : int
    """

    def __init__(self, bits, method, *, channels=None, weights=False, decay=0.9):
        super().__init__()
        self.bits, self.method, self.weights, self.decay = bits, method, weights, decay
        self.least, self.most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.n_scales = 1 if channels is None else channels
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("_zero_point", torch.tensor(0))
        if method in _LEARNT:
            # What learns is the ratio to where it started. Adam moves every parameter by about its
            # rate, whatever the size: it would throw a step of 0.002 about.
            self.register_buffer("unit", torch.ones(self.n_scales))
            self.ratio = nn.Parameter(torch.ones(self.n_scales))
        else:
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("high", torch.zeros(()))

    @property
    def zero_point(self):
        return int(self._zero_point)

    @property
    def learns_scale(self):
        """Whether autograd wants the gradient of LSQ's scale."""
        return self.method == "lsq" and self.ratio.requires_grad and torch.is_grad_enabled()

    @property
    def scale(self):
        """The scale as it is; of weights that follow extremes, as of the latest forward."""
        if self.method == "lsq":
            return self._learnt()
        if self.method == "pact":
            return self._learnt() / (self.most - self.least)
        return self._even_scale()

    def scale_for(self, v):
        """The scale for these numbers."""
        if self.weights and self.method == "minmax":
            return (v.detach().abs().reshape(self.n_scales, -1).amax(1) / self.most).clamp_min(
                _TINY
            )
        return self.scale

    def codes(self, v):
        """Codes of `v` as floating point numbers."""
        scale = self._shaped(self.scale_for(v), v).detach()
        return (v / scale).round().add(self.zero_point).clamp(self.least, self.most)

    def forward(self, v):
        if not self.started or (self.training and self.method not in _LEARNT):
            self._watch(v.detach())
        if self.method == "pact":
            clipped = torch.minimum(v.relu(), self._learnt(1.0))
            return clipped + (self._grid(v.detach()) - clipped).detach()
        return _OnGrid.apply(v, self._scale_that_learns(v), *self._clipping())

    def with_slopes(self, v):
        """`v` on the grid, and the gradient that its learnt scale has from each number of it.

        Neither is known to autograd. The third is the scale, which is.
        """
        if not self.started:
            self._watch(v)
        with torch.no_grad():
            whole, _, slopes = _rounded(v, self.scale, *self._clipping())
            on_grid = whole * self.scale
        return on_grid, slopes, self._scale_that_learns(v)

    def _scale_that_learns(self, v):
        """The scale, in the shape of what multiplies `v`, and with LSQ's gradient if it learns."""
        if self.method != "lsq":
            return self._shaped(self.scale_for(v), v)
        count = v.numel() / self.n_scales
        return self._shaped(self._learnt(1 / math.sqrt(count * max(1, self.most))), v)

    def _clipping(self):
        return self.least - self.zero_point, self.most - self.zero_point

    def _learnt(self, share=1.0):
        """What learns; plain gradient descent moves it by `share` times its own gradient."""
        ratio = _ScaledGradient.apply(self.ratio, share / self.unit**2)
        return (self.unit * ratio.abs()).clamp_min(_TINY)

    def _grid(self, v):
        return (self.codes(v) - self.zero_point) * self._shaped(self.scale.detach(), v)

    def _shaped(self, scale, v):
        return scale if self.n_scales == 1 else scale.reshape(-1, *[1] * (v.ndim - 1))

    @torch.no_grad()
    def _watch(self, v):
        """Learn from what passes, or start from it."""
        if not torch.isfinite(v).all():
            return  # the loss will tell; ranges stay what they were
        if self.method in _LEARNT:
            self._start(v)
        elif not self.weights:
            self._widen(v.min().clamp_max(0), v.max().clamp_min(0))
        self.started.fill_(True)

    def _start(self, v):
        never_negative = not self.weights and v.min() >= 0
        if self.method == "pact":
            if not never_negative:
                raise ValueError("PACT clips at zero, and there are negative activations: use lsq")
            self.unit.fill_(v.max().clamp_min(_TINY))
        else:
            self.unit.copy_(self._best_step(v, self.least if never_negative else 0))
        self._zero_point.fill_(self.least if never_negative else 0)

    def _best_step(self, v, zero_point):
        """The step of least squared error among shares of the one that clips nothing.

        The paper starts at 2 mean |v| / √Q, which at 8 bits leaves most codes unused.
        """
        rows = v.reshape(self.n_scales, -1)
        rows = rows[:, :: -(-rows.shape[1] // _START_NUMBERS)]
        low, high = self.least - zero_point, self.most - zero_point
        widest = (rows.abs().amax(1, keepdim=True) / high).clamp_min(_TINY)
        steps = widest * torch.linspace(1, 0.1, _START_STEPS).to(widest)
        errors = [
            ((rows / step).round().clamp(low, high) * step - rows).square().sum(1)
            for step in steps.T[:, :, None]
        ]
        best = torch.stack(errors, dim=1).argmin(1, keepdim=True)
        return steps.gather(1, best)[:, 0].to(self.unit)

    def _widen(self, low, high):
        if not self.started:
            self.low.copy_(low), self.high.copy_(high)
        elif self.method == "average":
            self.low.lerp_(low, 1 - self.decay), self.high.lerp_(high, 1 - self.decay)
        else:
            self.low.copy_(torch.minimum(self.low, low))
            self.high.copy_(torch.maximum(self.high, high))
        self._zero_point.copy_(self.least - (self.low / self._even_scale()[0]).round())

    def _even_scale(self):
        return ((self.high - self.low) / (self.most - self.least)).clamp_min(_TINY).reshape(1)

    def extra_repr(self):
        return f"{self.bits} bits, {self.method}, {self.n_scales} scale(s)"


class QuantizedLayer(nn.Module):
    """A linear or convolutional layer whose input and weights are put on grids.

    Parameters
    ----------
    layer : Linear or Conv1d, Conv2d, Conv3d
    spec : QATSpec
    """

    def __init__(self, layer, spec):
        super().__init__()
        self.layer = layer
        channels = layer.weight.shape[0] if spec.granularity == "channel" else None
        self.weight_grid = FakeQuantize(
            spec.weight_bits,
            as_word(spec.weights, "weights", WEIGHTS),
            channels=channels,
            weights=True,
        )
        method = as_word(spec.activations, "activations", ACTIVATIONS)
        self.input_grid = FakeQuantize(spec.activation_bits, method)

    def forward(self, x):
        weight, bias = self.weight_grid(self.layer.weight), self.layer.bias
        # Of the first layer's input the scale alone learns.
        by_slopes = not x.requires_grad and self.input_grid.learns_scale
        x, *of_scale = self.input_grid.with_slopes(x) if by_slopes else (self.input_grid(x),)
        if bias is not None:  # a whole number of the products' unit: coarse, where bits are few
            on_grid = (self.bias_codes() * self.worth()).to(bias.dtype)
            bias = bias + (on_grid - bias).detach()
        y = self.apply(x, weight, bias)
        if by_slopes:
            # dy/ds = product(slopes): forward costs less than the gradient of all numbers of x
            slopes, scale = of_scale
            y = _WithScale.apply(y, scale, self.apply(slopes, weight.detach(), None))
        return y

    def worth(self):
        """What one of a sum of products of codes stands for: float64, (channels,) or (1,)."""
        weight_scale = self.weight_grid.scale_for(self.layer.weight).detach().float()
        return weight_scale.double() * self.input_grid.scale.detach().float().double()

    def bias_codes(self):
        """The bias in units of `worth`, whole float64 numbers that fit in 32 bits."""
        limit = 2.0**31 - 1
        return (self.layer.bias.detach().double() / self.worth()).round().clamp(-limit, limit)

    def apply(self, x, weight, bias):
        """The layer's product with other numbers in it."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)


class QuantizedPool(nn.Module):
    """An average pooling whose input is put on a grid of 8 bits, and then summed exactly.

    Parameters
    ----------
    pool : AvgPool1d, AvgPool2d, AdaptiveAvgPool1d or AdaptiveAvgPool2d
    spec : QATSpec
    """

    def __init__(self, pool, spec):
        super().__init__()
        self.pool = pool
        method = as_word(spec.activations, "activations", ACTIVATIONS)
        self.input_grid = FakeQuantize(8, "lsq" if method == "pact" else method)

    def forward(self, x):
        return self.pool(self.input_grid(x))

    def kernel(self, shape):
        """The window over values of this shape (N, channels, ...)."""
        if isinstance(self.pool, _ADAPTIVE):
            return tuple(shape[2:])
        size = self.pool.kernel_size
        return (size,) * (len(shape) - 2) if isinstance(size, int) else tuple(size)


def prepare_qat(model: nn.Module, spec: QATSpec | None = None) -> nn.Module:
    """A copy of a network whose linear and convolutional layers train on grids.

    Batch norms that follow such a layer are folded into it first: those that `torch.fx` finds, or,
    in a network that it cannot trace, those next to it in a `Sequential`. Average pooling modules
    get a grid of 8 bits for what they sum.

    Parameters
    ----------
    model : Module
        Best trained already, in floating point.
    spec : QATSpec, optional

    Returns
    -------
    Module
        To be trained on, by a `Trainer` or otherwise. Learnt scales start from the first batch that
        passes; so let one pass before the optimizer is made only if it is to own other parameters
        than ``model.parameters()``.

    Examples
    --------
    >>> import torch
    >>> seed = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> quantized = prepare_qat(net, QATSpec(4, 4))
    >>> x = torch.randn(64, 8)
    >>> error = (quantized(x) - net(x)).norm() / net(x).norm()
    >>> bool(0.01 < error < 0.3)
    True
    """
    spec = QATSpec() if spec is None else spec
    model = _folded(copy.deepcopy(model).eval()).train(model.training)
    layers = {name: layer for name, layer in model.named_modules() if _is_layer(layer)}
    pools = {name: pool for name, pool in model.named_modules() if _is_mean(pool)}
    if not layers:
        raise ValueError("model has no linear or convolutional layer to quantize")
    names = list(layers)
    unknown = [p for p in spec.layers if not any(fnmatchcase(n, p) for n in [*names, *pools])]
    if unknown:
        raise ValueError(f"layers has patterns that fit no layer: {unknown}; there are {names}")
    for name, module in (layers | pools).items():
        own = spec.of(name, name in (names[0], names[-1]))
        if own is not None:
            kind = QuantizedLayer if name in layers else QuantizedPool
            model = _with(model, name, kind(module, own))
    return model


def _with(model, name, module):
    """The model with another module of that name; the module itself where the name is empty."""
    if not name:
        return module
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
    return model


class IntegerLayer(NamedTuple):
    """What a file keeps of a trained layer: real = scale · (code − zero point)."""

    weight: torch.Tensor  # int8, of the layer's shape
    weight_scale: torch.Tensor  # float32, (channels,) or (1,)
    weight_bits: int
    bias: torch.Tensor  # int32, in units of input_scale · weight_scale
    input_scale: float
    input_zero_point: int
    input_bits: int


def integer_layers(model: nn.Module) -> dict[str, IntegerLayer]:
    """The integers of each layer that `prepare_qat` made.

    Parameters
    ----------
    model : Module

    Returns
    -------
    layers : dict of name to IntegerLayer
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    if not layers:
        raise ValueError("model has no quantized layer: it must come from prepare_qat")
    for name, pool in model.named_modules():
        if isinstance(pool, QuantizedPool):
            _check_started(pool.input_grid, name)
    return {name: _integers(layer, name) for name, layer in layers.items()}


# ---- inside --------------------------------------------------------------------------------


def _is_layer(module):
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _is_mean(module):
    """Whether a module sums windows of one size, outside of which there is nothing or zeros."""
    if isinstance(module, _ADAPTIVE):
        return set(_tuple(module.output_size)) == {1}
    if not isinstance(module, (nn.AvgPool1d, nn.AvgPool2d)) or module.ceil_mode:
        return False
    padded = any(_tuple(module.padding)) and not module.count_include_pad
    return not padded and getattr(module, "divisor_override", None) is None


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


def _folded(model):
    """Batch norms taken into the layers before them; in place, in evaluation."""
    for name, after in _followed_by_norms(model):
        layer, norm = model.get_submodule(name), model.get_submodule(after)
        linear = isinstance(layer, nn.Linear)
        fuse = fusion.fuse_linear_bn_eval if linear else fusion.fuse_conv_bn_eval
        _with(model, name, fuse(layer, norm))
        _with(model, after, nn.Identity())
    return model


def _followed_by_norms(model):
    """Names of layers, each with that of a norm which alone reads what it gives."""
    try:
        graph = trace(model)
    except Exception:  # fx raises whatever the model's own code makes of a proxy
        return [
            (f"{name}.{a}" if name else a, f"{name}.{b}" if name else b)
            for name, part in model.named_modules()
            if isinstance(part, nn.Sequential)
            for a, b in pairwise(part._modules)
            if _is_layer(part._modules[a]) and isinstance(part._modules[b], _NORMS)
        ]
    modules = dict(nn.Sequential(model).named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    return [
        (node.args[0].target.removeprefix("0."), node.target.removeprefix("0."))
        for node in calls
        if isinstance(modules[node.target], _NORMS)
        and node.args[0].op == "call_module"
        and _is_layer(modules[node.args[0].target])
        and len(node.args[0].users) == 1
        and targets.count(node.target) == targets.count(node.args[0].target) == 1
    ]


def _rounded(v, scale, low, high):
    """v/s in whole numbers, where nothing is clipped, and the gradients in s of s times them.

    These are rne(v/s) − v/s inside, and the bound itself outside (LSQ, equation 3).
    """
    ratio = v / scale
    whole = ratio.round().clamp_(low, high)
    inside = (ratio >= low) & (ratio <= high)
    return whole, inside, torch.where(inside, whole - ratio, whole)


class _OnGrid(Function):
    """v on the grid of whole multiples of a scale from `low` to `high`.

    The gradient passes to v where nothing is clipped; that of the scale is the sum over its
    numbers.
    """

    @staticmethod
    def forward(ctx, v, scale, low, high):
        whole, inside, slopes = _rounded(v, scale, low, high)
        ctx.save_for_backward(inside, slopes)
        ctx.shape = scale.shape
        # With the strides of v: a convolution's kernels tell it by them whether channels are last.
        return torch.mul(whole, scale, out=torch.empty_like(v))

    @staticmethod
    def backward(ctx, gradient):
        inside, slopes = ctx.saved_tensors
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = (gradient * slopes).sum_to_size(ctx.shape)
        return gradient * inside, of_scale, None, None


class _WithScale(Function):
    """y, which also depends on a scale, with these derivatives."""

    @staticmethod
    def forward(ctx, y, scale, derivatives):
        ctx.save_for_backward(derivatives)
        ctx.shape = scale.shape
        return y.view_as(y)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, (gradient * ctx.saved_tensors[0]).sum_to_size(ctx.shape), None


class _ScaledGradient(Function):
    """x, with its gradient times a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def _check_started(grid, name):
    if not grid.started:
        raise ValueError(f"layer {name!r} has seen no batch yet: its scales are not known")


@torch.no_grad()
def _integers(layer, name):
    weights, inputs = layer.weight_grid, layer.input_grid
    _check_started(inputs, name)
    weight = layer.layer.weight
    bias = weight.new_zeros(len(weight)) if layer.layer.bias is None else layer.bias_codes()
    return IntegerLayer(
        weights.codes(weight).to(torch.int8),
        weights.scale_for(weight).detach().float(),
        weights.bits,
        bias.to(torch.int32),
        float(inputs.scale.detach()[0]),
        inputs.zero_point,
        inputs.bits,
    )


def trace(model):
    """The graph of ``nn.Sequential(model)``, in which a single layer is a leaf as any other.

    It has all inputs of the model, where a `Sequential` hands on one.
    """
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):
        return tracer.trace(nn.Sequential(model))
    graph = tracer.trace(model)
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = f"0.{node.target}"
    return graph


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        ours = isinstance(module, (QuantizedLayer, QuantizedPool))
        return ours or super().is_leaf_module(module, name)
