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

`simulate_exact` then does what integers do: sums of products of codes, a bias of 32 bits, and one
multiplication by a float32 to get to the codes of the next layer.
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
from torch.nn import functional as F
from torch.nn.utils import fusion

from fastvq._validation import as_count, as_word

__all__ = [
    "FakeQuantize",
    "IntegerLayer",
    "QATSpec",
    "integer_layers",
    "prepare_qat",
    "simulate_exact",
]

WEIGHTS = {"minmax": ("min-max",), "lsq": ()}
ACTIVATIONS = {"minmax": ("min-max",), "average": ("ema", "moving"), "lsq": (), "pact": ()}
GRANULARITIES = {"channel": (), "tensor": ()}

_START_NUMBERS, _START_STEPS = 1 << 16, 46  # numbers that a learnt step starts from; candidates
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
        if method in ("lsq", "pact"):
            self.step = nn.Parameter(torch.ones(self.n_scales))
        else:
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("high", torch.zeros(()))

    @property
    def zero_point(self):
        return int(self._zero_point)

    @property
    def scale(self):
        """The scale as it is; of weights that follow extremes, as of the latest forward."""
        if self.method == "lsq":
            return self.step.abs().clamp_min(_TINY)
        if self.method == "pact":
            return self.step.abs().clamp_min(_TINY) / (self.most - self.least)
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
        if self.training or not self.started:
            self._watch(v.detach())
        if self.method == "pact":
            clipped = torch.minimum(v.relu(), self.step.abs())
            return clipped + (self._grid(v.detach()) - clipped).detach()
        scale = self._shaped(self.scale_for(v), v)
        if self.method == "lsq":
            count = v.numel() / self.n_scales
            scale = _with_gradient_times(scale, 1 / math.sqrt(count * max(1, self.most)))
        shifted = (v / scale).clamp(self.least - self.zero_point, self.most - self.zero_point)
        return (shifted + (shifted.round() - shifted).detach()) * scale

    def _grid(self, v):
        return (self.codes(v) - self.zero_point) * self._shaped(self.scale.detach(), v)

    def _shaped(self, scale, v):
        return scale if self.n_scales == 1 else scale.reshape(-1, *[1] * (v.ndim - 1))

    @torch.no_grad()
    def _watch(self, v):
        """Learn from what passes, or start from it."""
        if not torch.isfinite(v).all():
            return  # the loss will tell; ranges stay what they were
        if self.method in ("lsq", "pact"):
            if not self.started:
                self._start(v)
        elif not self.weights:
            self._widen(v.min().clamp_max(0), v.max().clamp_min(0))
        self.started.fill_(True)

    def _start(self, v):
        never_negative = not self.weights and v.min() >= 0
        if self.method == "pact":
            if not never_negative:
                raise ValueError("PACT clips at zero, and there are negative activations: use lsq")
            self.step.fill_(v.max().clamp_min(_TINY))
        else:
            self.step.copy_(self._best_step(v, self.least if never_negative else 0))
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
        return steps.gather(1, best)[:, 0].to(self.step)

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
        x, weight = self.input_grid(x), self.weight_grid(self.layer.weight)
        bias = self.layer.bias
        if bias is not None:  # a whole number of the products' unit: coarse, where bits are few
            on_grid = (self.bias_codes() * self.worth()).to(bias.dtype)
            bias = bias + (on_grid - bias).detach()
        return self.apply(x, weight, bias)

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


def prepare_qat(model: nn.Module, spec: QATSpec | None = None) -> nn.Module:
    """A copy of a network whose linear and convolutional layers train on grids.

    Batch norms that directly follow such a layer in a `Sequential` are folded into it first.

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
    names = [name for name, layer in model.named_modules() if _is_layer(layer)]
    if not names:
        raise ValueError("model has no linear or convolutional layer to quantize")
    unknown = [p for p in spec.layers if not any(fnmatchcase(name, p) for name in names)]
    if unknown:
        raise ValueError(f"layers has patterns that fit no layer: {unknown}; there are {names}")
    if names == [""]:
        own = spec.of("", True)
        return model if own is None else QuantizedLayer(model, own)
    for name in names:
        own = spec.of(name, name in (names[0], names[-1]))
        if own is not None:
            parent, _, leaf = name.rpartition(".")
            layer = model.get_submodule(name)
            setattr(model.get_submodule(parent), leaf, QuantizedLayer(layer, own))
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
    return {name: _integers(layer, name) for name, layer in layers.items()}


@torch.no_grad()
def simulate_exact(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the network gives with integer arithmetic, bit by bit, computed in float64.

    Codes are multiplied and added exactly; ``clamp(rne(float32(acc + bias) · m) + zero_point)``
    with m = input scale · weight scale / next scale, taken in float64 and rounded to float32,
    gives the codes of the next layer. ReLU, maximum pooling and reshaping in between work on sums,
    which they commute with.

    Parameters
    ----------
    model : Module
        From `prepare_qat`, trained; it must be traceable by `torch.fx`.
    x : Tensor
        What the network takes.

    Returns
    -------
    Tensor of float32

    Raises
    ------
    NotImplementedError
        Where something else than the above stands between quantized layers (additions, means):
        that takes an operator on integers of its own, which is not settled here.
    OverflowError
        Where a sum does not fit in 32 bits.
    """
    integer_layers(model)  # which says what is wrong with it
    model = copy.deepcopy(model).eval()
    out = _Exact(fx.GraphModule(nn.Sequential(model), trace(model))).run(x)
    return out.real() if isinstance(out, _Sums) else out


# ---- inside --------------------------------------------------------------------------------


def _is_layer(module):
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _folded(model):
    """Batch norms taken into the layers before them; in place, in evaluation."""
    for child in model.children():
        _folded(child)
    if isinstance(model, nn.Sequential):
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        names = list(model._modules)
        for name, after in pairwise(names):
            layer, norm = model._modules[name], model._modules[after]
            if _is_layer(layer) and isinstance(norm, norms):
                linear = isinstance(layer, nn.Linear)
                fuse = fusion.fuse_linear_bn_eval if linear else fusion.fuse_conv_bn_eval
                model._modules[name] = fuse(layer, norm)
                model._modules[after] = nn.Identity()
    return model


def _with_gradient_times(x, factor):
    return (x - x * factor).detach() + x * factor


@torch.no_grad()
def _integers(layer, name):
    weights, inputs = layer.weight_grid, layer.input_grid
    if not inputs.started:
        raise ValueError(f"layer {name!r} has seen no batch yet: its scales are not known")
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


class _Sums(NamedTuple):
    """Sums of products of codes: whole numbers, and what one of them is worth."""

    whole: torch.Tensor  # float64
    worth: torch.Tensor  # float64, of a shape that broadcasts

    def real(self):
        return (self.whole.float() * self.worth.float()).float()

    def codes(self, grid, input_scale):
        factor = (self.worth / input_scale).float()
        scaled = (self.whole.float() * factor).round().double() + grid.zero_point
        return scaled.clamp(grid.least, grid.most)

    def both(self, reshape):
        """The same change of shape of both parts."""
        worth = self.worth.expand_as(self.whole)
        return _Sums(reshape(self.whole), reshape(worth))


def trace(model):
    """The graph of ``nn.Sequential(model)``, in which a single layer is a leaf as any other."""
    return _Tracer().trace(nn.Sequential(model))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, QuantizedLayer) or super().is_leaf_module(module, name)


RELU = (nn.ReLU, F.relu, torch.relu, "relu")
POOL = (nn.MaxPool1d, nn.MaxPool2d, F.max_pool1d, F.max_pool2d, torch.max_pool2d)
SHAPE = (nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, "flatten", "view", "reshape")
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, "contiguous")


class _Exact(fx.Interpreter):
    """Runs a graph on sums of codes."""

    def call_module(self, target, args, kwargs):
        module = self.fetch_attr(target)
        if isinstance(module, QuantizedLayer):
            return _exact_layer(module, target.removeprefix("0."), args[0])
        return self._through(type(module), module, args, kwargs, target.removeprefix("0."))

    def call_function(self, target, args, kwargs):
        return self._through(target, target, args, kwargs, getattr(target, "__name__", target))

    def call_method(self, target, args, kwargs):
        def method(value, *rest, **named):
            return getattr(value, target)(*rest, **named)

        return self._through(target, method, args, kwargs, target)

    def _through(self, kind, function, args, kwargs, name):
        sums = [value for value in args if isinstance(value, _Sums)]
        if not sums:
            return function(*args, **kwargs)
        (value, *rest) = args
        if len(sums) == 1 and isinstance(value, _Sums):
            if kind in NOTHING:
                return value
            if kind in RELU:
                return _Sums(value.whole.clamp_min(0), value.worth)
            if kind in POOL:
                return _Sums(function(value.whole, *rest, **kwargs), value.worth)
            if kind in SHAPE:
                return value.both(lambda part: function(part, *rest, **kwargs))
            if kind in ("size", "dim"):
                return function(value.whole, *rest, **kwargs)
        raise NotImplementedError(f"simulate_exact knows no integer arithmetic for {name}")


def _exact_layer(layer, name, x):
    integers, grid = _integers(layer, name), layer.input_grid
    if isinstance(x, _Sums):
        codes = x.codes(grid, integers.input_scale)
    else:
        codes = grid.codes(x.float()).double()
    # Padding adds zeros, which have the code of zero: so it is taken off before.
    centred = codes - integers.input_zero_point
    whole = layer.apply(centred, integers.weight.double(), integers.bias.double())
    if whole.numel() and whole.abs().max() >= 2**31:
        raise OverflowError(f"sums of layer {name!r} do not fit in 32 bits")
    worth = layer.worth()
    if len(worth) > 1 and not isinstance(layer.layer, nn.Linear):
        worth = worth.reshape(-1, *[1] * (whole.ndim - 2))
    return _Sums(whole, worth)
