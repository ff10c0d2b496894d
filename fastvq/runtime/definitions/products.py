"""Products: dense layers, matrices, convolutions, and pooling, which walks as they do.

Paddings are (begins..., ends...) over the spatial dimensions; `same` works them out instead, so
that a stride s leaves ceil(size / s) outputs, and puts an odd one at the end ("upper") or at the
beginning ("lower").
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from fastvq.runtime import functions
from fastvq.runtime.ops import operator

__all__ = ["Windows", "row_by_row"]


class Windows:
    """Where the windows of a convolution or pooling lie, for each spatial dimension.

    Attributes
    ----------
    kernel, strides, dilations, begins, ends : tuples of int
    sizes : tuple of int
        How many windows there are.
    """

    def __init__(self, spatial, kernel, strides, dilations, pads, same="", ceil=False):
        n = len(spatial)
        self.kernel = tuple(kernel)
        self.strides, self.dilations = tuple(strides) or (1,) * n, tuple(dilations) or (1,) * n
        lists = self.kernel, self.strides, self.dilations
        if any(len(values) != n or min(values, default=1) < 1 for values in lists):
            raise ValueError(
                f"kernel {self.kernel}, strides {self.strides} and dilations {self.dilations} "
                f"have to be {n} positive numbers each"
            )
        spans = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        if same:
            if same not in ("upper", "lower"):
                raise ValueError(f"same is {same!r}, not one of '', 'upper', 'lower'")
            pads = _same(spatial, spans, self.strides, same)
        pads = tuple(pads) or (0,) * 2 * n
        if len(pads) != 2 * n or min(pads, default=0) < 0:
            raise ValueError(f"pads {pads} are not {2 * n} numbers from 0 on")
        self.begins, self.ends = pads[:n], pads[n:]
        room = [sum(p) for p in zip(spatial, self.begins, self.ends, strict=True)]
        if any(r < span for r, span in zip(room, spans, strict=True)):
            raise ValueError(f"a window of {spans} does not fit into {room}")
        self.sizes = tuple(
            _count(r - span, s, ceil, size + begin)
            for r, span, s, size, begin in zip(
                room, spans, self.strides, spatial, self.begins, strict=True
            )
        )

    def taps(self):
        """For each place in the kernel: an index of it, and one of what it reads of a padded input.

        Both are for arrays whose first dimension is another one (outputs, the batch).
        """
        for tap in itertools.product(*map(range, self.kernel)):
            walk = zip(tap, self.dilations, self.strides, self.sizes, strict=True)
            parts = [slice(t * d, t * d + (size - 1) * s + 1, s) for t, d, s, size in walk]
            yield (slice(None), *tap), (slice(None), *parts)

    def padded(self, x, value=0):
        """x with its borders, wide enough for the last window."""
        ends = [
            max(end, (n - 1) * s + d * (k - 1) + 1 - begin - size)
            for end, n, s, d, k, begin, size in zip(
                self.ends, self.sizes, self.strides, self.dilations, self.kernel, self.begins,
                x.shape[1:-1], strict=True,
            )
        ]  # fmt: skip
        pads = [(0, 0), *zip(self.begins, ends, strict=True), (0, 0)]
        return np.pad(x, pads, constant_values=value)


def _same(spatial, spans, strides, same):
    total = [
        max((-(-size // s) - 1) * s + span - size, 0)
        for size, span, s in zip(spatial, spans, strides, strict=True)
    ]
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return (*less, *more) if same == "upper" else (*more, *less)


def _count(room, stride, ceil, inside):
    """Windows with `room` to move in; with `ceil` a last one may stick out, if it begins inside."""
    if not ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - ((count - 1) * stride >= inside)


# ---- dense layers and matrices -----------------------------------------------------------------


def row_by_row(x, matrix):
    """x @ matrix, each row of a batch x (N, n_in) by itself.

    A matrix product of the whole batch would be faster, but BLAS may then round a row otherwise
    than it does alone. Where x has more dimensions, NumPy multiplies each sample by itself anyway.
    """
    if x.ndim != 2:
        return np.matmul(x, matrix)
    return np.matmul(np.ascontiguousarray(x)[:, None], matrix)[:, 0]


@operator("Dense", weights=(1,))
def dense(x, weight, bias=None, *, activation="identity", alpha=0.0, beta=0.0):
    """activation(x @ weightᵀ + bias): x (..., n_in), weight (n_out, n_in), bias (n_out,)."""
    y = row_by_row(x, weight.T)
    return functions.apply(activation, y if bias is None else y + bias, alpha, beta)


@dense.shape
def _(x, weight, bias=None, *, activation="identity", alpha=0.0, beta=0.0):
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {x.shape} does not go with a weight {weight.shape}")
    _check_bias(bias, weight.shape[0])
    functions.result_dtype(activation, x.dtype)
    return (*x.shape[:-1], weight.shape[0]), x.dtype


@operator("MatMul")
def matmul(a, b, *, transpose_a=False, transpose_b=False):
    """a @ b as numpy.matmul has it, after swapping the last two dimensions of one or both."""
    a = np.swapaxes(a, -1, -2) if transpose_a else a
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    return row_by_row(a, b) if b.ndim == 2 else np.matmul(a, b)


@matmul.shape
def _(a, b, *, transpose_a=False, transpose_b=False):
    left, right = list(a.shape), list(b.shape)
    if not left or not right or transpose_a > len(left) - 1 or transpose_b > len(right) - 1:
        raise ValueError(f"{a.shape} and {b.shape} are no matrices")
    if transpose_a:
        left[-2:] = left[:-3:-1]
    if transpose_b:
        right[-2:] = right[:-3:-1]
    if left[-1] != right[-2 if len(right) > 1 else -1]:
        raise ValueError(f"{tuple(left)} does not go with {tuple(right)}")
    batch = np.broadcast_shapes(tuple(left[:-2]), tuple(right[:-2]))
    return (*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else [])), a.dtype


# ---- convolutions ------------------------------------------------------------------------------


@operator("Conv", weights=(1,))
def conv(
    x, weight, bias=None, *, strides=(), dilations=(), pads=(), groups=1, same="",
    activation="identity", alpha=0.0, beta=0.0,
):  # fmt: skip
    """activation(convolution + bias): x (N, *spatial, C), weight (C_out, *kernel, C / groups)."""
    windows = Windows(x.shape[1:-1], weight.shape[1:-1], strides, dilations, pads, same)
    x = windows.padded(x)
    y = np.zeros((len(x), *windows.sizes, len(weight)), x.dtype)
    for tap, part in windows.taps():
        y += _grouped(x[part], weight[tap], groups)
    return functions.apply(activation, y if bias is None else y + bias, alpha, beta)


@conv.shape
def _(
    x, weight, bias=None, *, strides=(), dilations=(), pads=(), groups=1, same="",
    activation="identity", alpha=0.0, beta=0.0,
):  # fmt: skip
    _check_groups(x, weight, groups)
    if weight.shape[0] % groups:
        raise ValueError(f"weight {weight.shape} cannot be divided into {groups} groups")
    _check_bias(bias, weight.shape[0])
    functions.result_dtype(activation, x.dtype)
    windows = Windows(x.shape[1:-1], weight.shape[1:-1], strides, dilations, pads, same)
    return (x.shape[0], *windows.sizes, weight.shape[0]), x.dtype


def _grouped(x, weight, groups):
    """x (..., C) times weight (C_out, C / groups), group by group."""
    n_out, n_in = weight.shape
    if groups == 1:
        return np.matmul(x, weight.T)
    x = x.reshape(*x.shape[:-1], groups, n_in)
    weight = weight.reshape(groups, n_out // groups, n_in)
    if n_in == 1:
        return (x * weight[..., 0]).reshape(*x.shape[:-2], n_out)
    y = np.matmul(x[..., None, :], weight.swapaxes(1, 2))
    return y.reshape(*x.shape[:-2], n_out)


@operator("ConvTranspose", weights=(1,))
def conv_transpose(
    x, weight, bias=None, *, strides=(), dilations=(), pads=(), output_pads=(), groups=1,
    activation="identity", alpha=0.0, beta=0.0,
):  # fmt: skip
    """activation(transposed convolution + bias): weight (C_out, *kernel, C / groups).

    Every input value is spread over a window of the output, of which `pads` are cut off and to
    whose end `output_pads` are added.
    """
    windows, whole = spread(x, weight, strides, dilations, pads, output_pads)
    y = np.zeros((len(x), *whole, len(weight)), x.dtype)
    for tap, part in windows.taps():
        y[part] += _grouped(x, weight[tap], groups)
    n = len(windows.sizes)
    pads = tuple(pads) or (0,) * 2 * n
    sizes = transposed_sizes(whole, pads, output_pads)
    inside = [slice(b, b + size) for b, size in zip(pads[:n], sizes, strict=True)]
    y = y[(slice(None), *inside)]
    return functions.apply(activation, y if bias is None else y + bias, alpha, beta)


@conv_transpose.shape
def _(
    x, weight, bias=None, *, strides=(), dilations=(), pads=(), output_pads=(), groups=1,
    activation="identity", alpha=0.0, beta=0.0,
):  # fmt: skip
    _check_groups(x, weight, groups)
    if weight.shape[0] % groups:
        raise ValueError(f"weight {weight.shape} cannot be divided into {groups} groups")
    _check_bias(bias, weight.shape[0])
    functions.result_dtype(activation, x.dtype)
    _, whole = spread(x, weight, strides, dilations, pads, output_pads)
    sizes = transposed_sizes(whole, pads, output_pads)
    return (x.shape[0], *sizes, weight.shape[0]), x.dtype


def spread(x, weight, strides, dilations, pads, output_pads):
    """The windows over which a transposed convolution spreads its inputs, and its whole room."""
    spatial, kernel = x.shape[1:-1], weight.shape[1:-1]
    n = len(spatial)
    strides, dilations = tuple(strides) or (1,) * n, tuple(dilations) or (1,) * n
    extra = tuple(output_pads) or (0,) * n
    pads = tuple(pads) or (0,) * 2 * n
    if len(strides) != n or len(dilations) != n or len(extra) != n or len(pads) != 2 * n:
        raise ValueError(f"strides, dilations, pads or output_pads are not for {n} dimensions")
    if min(spatial, default=1) < 1 or min(*extra, *pads, 0) < 0:
        raise ValueError(f"x {x.shape}, pads {pads} and output_pads {extra} cannot be")
    whole = [
        (size - 1) * s + d * (k - 1) + 1
        for size, s, d, k in zip(spatial, strides, dilations, kernel, strict=True)
    ]
    windows = Windows(whole, kernel, strides, dilations, ())
    return windows, tuple(size + e for size, e in zip(whole, extra, strict=True))


def transposed_sizes(whole, pads, output_pads):
    """What is left of the room of a transposed convolution."""
    n = len(whole)
    pads = tuple(pads) or (0,) * 2 * n
    sizes = tuple(w - b - e for w, b, e in zip(whole, pads[:n], pads[n:], strict=True))
    if min(sizes, default=1) < 1:
        raise ValueError(f"pads {pads} leave nothing of {whole}")
    return sizes


def _check_groups(x, weight, groups):
    if len(weight.shape) != len(x.shape) or not 3 <= len(x.shape) <= 5:
        raise ValueError(f"x {x.shape} does not go with a weight {weight.shape}")
    if groups < 1 or x.shape[-1] != weight.shape[-1] * groups:
        raise ValueError(f"x {x.shape} is not {groups} groups of {weight.shape[-1]} channels")


def _check_bias(bias, n_out):
    if bias is not None and bias.shape != (n_out,):
        raise ValueError(f"bias {bias.shape} does not go with {n_out} outputs")


# ---- pooling -----------------------------------------------------------------------------------


@operator("Pool")
def pool(
    x, *, function, kernel=(), strides=(), dilations=(), pads=(), ceil=False,
    count_padding=False, same="",
):  # fmt: skip
    """The maximum or average of each window of x (N, *spatial, C), channel by channel.

    A padded place has no value: it never is the maximum, and is left out of an average unless
    `count_padding`. What a last window covers beyond the padding (`ceil`) is never counted. NaN is
    larger than anything.
    """
    windows = Windows(x.shape[1:-1], kernel, strides, dilations, pads, same, ceil)
    if function == "max":
        x = windows.padded(x, -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min)
        return _reduced(np.maximum, [x[part] for _, part in windows.taps()])
    total = _reduced(np.add, [windows.padded(x)[part] for _, part in windows.taps()])
    counts = window_counts(x.shape[1:-1], windows, count_padding)
    return total / counts[..., None].astype(x.dtype)


@pool.shape
def _(
    x, *, function, kernel=(), strides=(), dilations=(), pads=(), ceil=False,
    count_padding=False, same="",
):  # fmt: skip
    if function not in ("max", "average"):
        raise ValueError(f"there is no pooling by {function!r}, only by 'max' and 'average'")
    if not 3 <= len(x.shape) <= 5:
        raise ValueError(f"x {x.shape} has no spatial dimensions")
    windows = Windows(x.shape[1:-1], kernel, strides, dilations, pads, same, ceil)
    return (x.shape[0], *windows.sizes, x.shape[-1]), x.dtype


def window_counts(spatial, windows, count_padding):
    """How many places count in each window."""
    counts = []
    for i, size in enumerate(spatial):
        begin, end = windows.begins[i], windows.ends[i]
        starts = np.arange(windows.sizes[i]) * windows.strides[i] - begin
        places = starts[:, None] + np.arange(windows.kernel[i]) * windows.dilations[i]
        first, stop = (-begin, size + end) if count_padding else (0, size)
        counts.append(((places >= first) & (places < stop)).sum(axis=1))
    return math.prod(np.ix_(*counts))


def _reduced(function, arrays):
    total = arrays[0].copy()
    for array in arrays[1:]:
        function(total, array, out=total)
    return total
