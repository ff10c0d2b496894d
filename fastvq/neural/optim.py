"""Optimizers of few bits: bytes for gradients and moments, and weights that are whole numbers.

`EightBit` wraps any of PyTorch's optimizers that treat numbers one by one (SGD with and without
momentum, Adagrad, RMSprop, Adam). Between steps it keeps what these remember in bytes: blocks of
numbers with a scale each, on a grid that is finer near zero (after Dettmers et al., "8-bit
optimizers via block-wise quantization", ICLR 2022, with powers in place of their table).

A moment changes by less in a step than such a grid can express: v ← 0.999 v + 0.001 g² would never
move. So rounding must not lose anything. Either its error is fed back - kept in a second byte, in
shares of a step of the grid, and added before the next rounding (Seide et al., Interspeech 2014;
Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019) - or rounding is stochastic.

`IntegerSGD` minimises f(w) over w ∈ scale·ℤᵈ: weights never leave the grid, and a fraction of a
step is a whole one with that probability, so that the mean is that of gradient descent (Gupta et
al., "Deep learning with limited numerical precision", ICML 2015).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.optim import Optimizer

from fastvq._validation import as_count, as_nonnegative

__all__ = ["EightBit", "IntegerSGD"]

#: names under which PyTorch's optimizers keep means and sums of squares: never negative
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
_REST_STEPS = 254  # of a byte, from end to end of a step of the grid


class EightBit(Optimizer):
    """An optimizer that is given gradients of 8 bits, and that remembers in 8 bits.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Whose rule is elementwise. It shares its learning rates with this one, and is not to be
        called any more.
    gradients, states : bool, default=True
        What is rounded.
    feedback : bool, default=True
        Feed rounding errors back; each costs a byte. False: gradients are rounded to the nearest,
        moments at random.
    block : int, default=256
        Numbers that share a scale.

    Examples
    --------
    >>> import torch
    >>> from fastvq.neural import EightBit
    >>> w = torch.nn.Parameter(torch.ones(1000))
    >>> optimizer = EightBit(torch.optim.Adam([w], lr=0.05))
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     w.square().sum().backward()
    ...     optimizer.step()
    >>> bool(w.abs().max() < 0.05), optimizer.state_bytes() / w.numel() < 6.1
    (True, True)
    """

    def __init__(self, optimizer, *, gradients=True, states=True, feedback=True, block=256):
        self.inner = optimizer
        self.gradients, self.states, self.feedback = gradients, states, feedback
        self.block = as_count(block, "block")
        super().__init__(optimizer.param_groups, {})
        self.param_groups = optimizer.param_groups  # the same ones: rates are set in either
        for parameter in list(optimizer.state):
            self._keep(self.state[parameter], optimizer.state.pop(parameter), parameter)

    @torch.no_grad()
    def step(self, closure=None):
        """One step, parameter by parameter: only one has its state in full at a time."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = [(p, p.grad) for group in self.param_groups for p in group["params"]]
        for parameter, _ in held:
            parameter.grad = None
        for parameter, gradient in held:
            if gradient is not None:
                self._step_one(parameter, gradient)
        for parameter, gradient in held:
            parameter.grad = gradient
        return loss

    def state_bytes(self) -> int:
        """Bytes of all that is kept between steps."""
        tensors = [t for state in self.state.values() for t in state.values()]
        return sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t))

    def load_state_dict(self, state_dict):
        """As of any optimizer; PyTorch alone would make floats of the bytes."""
        super().load_state_dict(state_dict)
        self.inner.param_groups = self.param_groups
        numbered = [p for group in self.param_groups for p in group["params"]]
        for number, kept in state_dict["state"].items():
            self.state[numbered[number]] = {
                name: value.clone() if torch.is_tensor(value) else value
                for name, value in kept.items()
            }

    def _step_one(self, parameter, gradient):
        state = self.state[parameter]
        if self.gradients:
            gradient = self._rounded_gradient(gradient, state)
        self.inner.state[parameter].update(self._read(state, parameter))
        parameter.grad = gradient
        self.inner.step()
        parameter.grad = None
        self._keep(state, self.inner.state.pop(parameter, {}), parameter)

    def _rounded_gradient(self, gradient, state):
        """The gradient on an even grid; what rounding takes off is added to the next one."""
        whole = gradient
        if "gradient shares" in state:
            shares = state["gradient shares"]
            lost = _Grid(torch.zeros_like(shares), shares, state["gradient scales"])
            whole = gradient + lost.read(1, self.block, gradient)
        grid = _Grid.of(whole, 1, self.block, "feedback" if self.feedback else "nearest")
        if self.feedback:
            state["gradient shares"], state["gradient scales"] = grid.shares, grid.scales
        return grid._replace(shares=None).read(1, self.block, gradient)

    def _keep(self, state, full, parameter):
        for name, value in full.items():
            whole = torch.is_tensor(value) and value.shape == parameter.shape and value.ndim
            if self.states and whole and value.is_floating_point():
                rounding = "feedback" if self.feedback else "random"
                grid = _Grid.of(value, _power(name), self.block, rounding)
                for part, tensor in grid._asdict().items():
                    if tensor is not None:
                        state[f"{name} {part}"] = tensor
            else:
                state[name] = value

    def _read(self, state, parameter):
        """What the inner optimizer kept, in full."""
        found = {}
        for name, value in state.items():
            stem, _, part = name.rpartition(" ")
            if not part or not stem:
                found[name] = value
            elif part == "codes":
                grid = _Grid(value, state.get(f"{stem} shares"), state[f"{stem} scales"])
                found[stem] = grid.read(_power(stem), self.block, parameter)
        return found


class _Grid(NamedTuple):
    """Numbers as bytes: sign(y)·|y / 127|^power · scale of the block, y = codes + shares / 254."""

    codes: torch.Tensor  # int8, (n,)
    shares: torch.Tensor | None  # int8, (n,): what rounding took off, in shares of a step
    scales: torch.Tensor  # float32, (blocks,): the largest number of each

    @classmethod
    def of(cls, x, power, block, rounding):
        """x on the grid; rounding: "nearest", "random" with x as the mean, or "feedback"."""
        rows = _in_blocks(x.float(), block)
        scales = rows.abs().amax(1)
        part = rows.abs() / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        sign, place = rows.sign(), 127 * part ** (1 / power)
        if rounding == "random":
            low = place.floor().clamp_max(126)
            ends = (low / 127) ** power, ((low + 1) / 127) ** power
            up = torch.rand_like(part) * (ends[1] - ends[0]) < part - ends[0]
            whole = low + up
            if power > 2:  # a square that is lost would make a step of any length
                whole = whole.clamp_min(1)
        else:
            whole = place.round()
        n, shares = x.numel(), None
        if rounding == "feedback":
            shares = (sign * (place - whole) * _REST_STEPS).round().to(torch.int8)
            shares = shares.reshape(-1)[:n].clone()
        return cls((sign * whole).to(torch.int8).reshape(-1)[:n].clone(), shares, scales)

    def read(self, power, block, like):
        """The numbers, in the shape and dtype of `like`."""
        place = self.codes.float()
        if self.shares is not None:
            place = place + self.shares.float() / _REST_STEPS
        rows = _in_blocks(place / 127, block)
        found = rows.sign() * rows.abs() ** power * self.scales[:, None]
        return found.reshape(-1)[: like.numel()].reshape(like.shape).to(like.dtype)


def _power(name):
    """Squares span twice as many orders of magnitude as what they are squares of."""
    return 4 if name in _SQUARES else 2


def _in_blocks(x, block):
    """All numbers in rows of a block each, the last one filled with zeros."""
    x = x.reshape(-1)
    return F.pad(x, (0, -len(x) % block)).reshape(-1, block)


class IntegerSGD(Optimizer):
    """Gradient descent on weights that are whole multiples of a scale, before and after each step.

    A step of u = rate · gradient / scale multiples is u rounded at random, so that its mean is u,
    and clipped at random: no weight moves further than a number that is drawn for it, evenly from
    1 to 2 · `clip`. So a large gradient moves a weight by about `clip`, and weights with equally
    large gradients do not all jump at once.

    Parameters
    ----------
    params : iterable of Parameter, or of groups
        Each group may have values of its own for what follows. Weights are rounded to the grid.
    lr : float, default=0.1
    scale : float, optional
        By default such that the largest weight of a parameter takes half of the multiples.
    bits : int from 2 to 16, default=8
        Multiples are from −2^(bits−1) to 2^(bits−1) − 1.
    momentum : float, default=0
        Of the gradients, whose mean is a float.
    clip : int, default=4

    Examples
    --------
    >>> import torch
    >>> from fastvq.neural import IntegerSGD
    >>> seed = torch.manual_seed(0)
    >>> w = torch.nn.Parameter(torch.zeros(50))
    >>> optimizer = IntegerSGD([w], lr=0.05, scale=0.25)
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     (w - 3.1).square().sum().backward()
    ...     optimizer.step()
    >>> bool((w % 0.25 == 0).all()), bool((w - 3.1).abs().mean() < 0.25)
    (True, True)
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.1,
        *,
        scale: float | None = None,
        bits: int = 8,
        momentum: float = 0.0,
        clip: int = 4,
    ) -> None:
        as_nonnegative(lr, "lr")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be from 0 to 1, 1 excluded, got {momentum}")
        if not 2 <= as_count(bits, "bits") <= 16:
            raise ValueError(f"bits must be from 2 to 16, got {bits}")
        if scale is not None and not as_nonnegative(scale, "scale"):
            raise ValueError("scale must be above 0")
        as_count(clip, "clip")
        super().__init__(params, dict(lr=lr, scale=scale, bits=bits, momentum=momentum, clip=clip))
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    self._begin(weight, group)

    def _begin(self, weight, group):
        scale, most = group["scale"], 2 ** (group["bits"] - 1) - 1
        if scale is None:
            scale = 2 * float(weight.abs().max()) / most or 1.0 / most
        self.state[weight]["scale"] = torch.tensor(scale)
        _put(weight, (weight / scale).round(), scale, most)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)
        return loss

    def integers(self, weight: torch.Tensor) -> torch.Tensor:
        """The multiples that a parameter consists of, int16."""
        return (weight.detach() / self.state[weight]["scale"]).round().to(torch.int16)

    def _move(self, weight, group):
        state, gradient = self.state[weight], weight.grad
        if group["momentum"]:
            mean = state.setdefault("momentum", torch.zeros_like(weight))
            gradient = mean.mul_(group["momentum"]).add_(gradient)
        scale, most = float(state["scale"]), 2 ** (group["bits"] - 1) - 1
        wanted = group["lr"] * gradient / scale
        steps = (wanted + torch.rand_like(wanted)).floor()
        limit = torch.randint(1, 2 * group["clip"] + 1, wanted.shape).to(wanted)
        steps = steps.clamp(-limit, limit)
        _put(weight, (weight / scale).round() - steps, scale, most)


def _put(weight, multiples, scale, most):
    weight.copy_(multiples.clamp(-most - 1, most) * scale)
