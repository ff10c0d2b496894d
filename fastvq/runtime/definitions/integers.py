"""Layers of 8-bit integers: what comes in, what is multiplied and what goes out are integers.

`real = scale * (q - zero_point)`. Scales do not appear in these operators, but what is made of
them: a layer's sum s = Σ (x - x_zero_point) · w + bias counts in units of x's scale times the
weight's, and becomes

    q = clamp(rne(float32(s) · multiplier) + y_zero_point),

one float32 multiplication, rounded to the nearest integer, of two to the even one; `multiplier` is
worked out in float64 and stored as float32, for each channel. So the integers are the same
everywhere. All values are int8 unless it says otherwise; sums may not leave 32 bits, which is
looked at where a layer is made.
"""

from __future__ import annotations

import math

import numpy as np

from fastvq.runtime import functions
from fastvq.runtime.ops import operator

_WIDEST = 1 << 16  # products of 255 · 128 in 32 bits


def rounded(real, zero_point, dtype=np.int8, low=None, high=None):
    """clamp(rne(real) + zero_point)."""
    limits = np.iinfo(dtype)
    low = limits.min if low is None else max(low, limits.min)
    high = limits.max if high is None else min(high, limits.max)
    q = np.rint(real) + np.float32(zero_point)
    return np.clip(q, np.float32(low), np.float32(high)).astype(dtype)


def product(a, b):
    """a (..., m, k) @ b (..., k, n) of integers up to 255 and 128, exactly, as int32.

    In float32, which BLAS is fast at: 256 of the products stay below 2^24, exact in any order.
    """
    total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]),
                     np.int32)  # fmt: skip
    for start in range(0, a.shape[-1], 256):
        part = slice(start, start + 256)
        total += np.matmul(
            a[..., part].astype(np.float32), b[..., part, :].astype(np.float32)
        ).astype(np.int32)
    return total


def finished(sums, multiplier, bias, table, dtype, y_zero_point, low, high):
    """What a layer makes of its sums (..., n)."""
    sums = sums if bias is None else sums + bias
    real = sums.astype(np.float32) * np.asarray(multiplier, np.float32)
    if dtype == "float32":
        return real
    q = rounded(real, y_zero_point, np.dtype(dtype), low, high)
    return q if table is None else table[q.astype(np.intp) + 128]


def _check_layer(x, weight, multiplier, bias, table, dtype):
    if x.dtype != np.int8 or weight.dtype != np.int8:
        raise ValueError(f"x and weight must be int8, got {x.dtype} and {weight.dtype}")
    n = weight.shape[:1]
    if multiplier.shape not in (n, (), (1,)) or multiplier.dtype != np.float32:
        raise ValueError(f"multiplier must be float32 of shape {n}, got {multiplier.shape}")
    if bias is not None and (bias.shape != n or bias.dtype != np.int32):
        raise ValueError(f"bias must be int32 of shape {n}, got {bias.shape} of {bias.dtype}")
    if table is not None and (table.shape != (256,) or table.dtype != np.int8):
        raise ValueError(f"table must be int8 of shape (256,), got {table.shape} of {table.dtype}")
    if dtype not in ("int8", "float32", "int16"):
        raise ValueError(f"dtype must be int8, int16 or float32, got {dtype!r}")
    if dtype == "int16" and table is not None:
        raise ValueError("a table has no values for int16")
    check_sums(weight, bias)


def check_sums(weight, bias):
    """255 times the sum of |w| and the bias of a column must fit in 32 bits."""
    width, most = math.prod(weight.shape[1:]), np.iinfo(np.int32).max
    if width > _WIDEST:
        raise ValueError(f"sums of more than {_WIDEST} products could overflow 32 bits")
    if bias is None or bias.value is None or not bias.value.size:
        return
    sizes = np.abs(bias.value.astype(np.int64))
    if sizes.max() + 255 * 128 * width > most and weight.value is not None:
        weights = np.abs(weight.value.reshape(len(sizes), width).astype(np.int16))
        if (sizes + 255 * weights.sum(axis=1, dtype=np.int64)).max() > most:
            raise ValueError("bias and products together could overflow 32 bits")


# ---- to integers and back -----------------------------------------------------------------------


@operator("Quantize")
def quantize(x, scale, zero_point=None, *, dtype="int8"):
    """clamp(rne(x / scale) + zero_point): int8 or int16; scale (), or (C,) along the last axis.

    The division is float32's. NaN becomes the zero point, which stands for 0.
    """
    real = x.astype(np.float32, copy=False) / scale
    real = np.where(np.isnan(real), np.float32(0), real)
    return rounded(real, 0 if zero_point is None else zero_point, np.dtype(dtype))


@quantize.shape
def _(x, scale, zero_point=None, *, dtype="int8"):
    if dtype not in ("int8", "int16"):
        raise ValueError(f"dtype must be int8 or int16, got {dtype!r}")
    _check_scale(x, scale, zero_point)
    return x.shape, dtype


@operator("Dequantize")
def dequantize(x, scale, zero_point=None):
    """float32(x - zero_point) · scale: float32; scale (), or (C,) along the last axis."""
    x = x.astype(np.int32)
    return (x if zero_point is None else x - zero_point).astype(np.float32) * scale


@dequantize.shape
def _(x, scale, zero_point=None):
    _check_scale(x, scale, zero_point)
    return x.shape, np.float32


def _check_scale(x, scale, zero_point):
    allowed = ((), (1,), x.shape[-1:])
    for what, form in (("scale", scale), ("zero_point", zero_point)):
        if form is not None and form.shape not in allowed:
            raise ValueError(f"{what} must have shape () or {x.shape[-1:]}, got {form.shape}")
    if scale.dtype != np.float32 or (zero_point is not None and zero_point.dtype.kind not in "iu"):
        raise ValueError("scale must be float32 and zero_point whole numbers")


@operator("Requantize")
def requantize(x, multiplier, zero_point=None, *, x_zero_point=0):
    """int16 as int8: clamp(rne(float32(x - x_zero_point) · multiplier) + zero_point).

    multiplier, x's scale by that of the result, and zero_point: (), or (C,) along the last axis.
    """
    real = (x.astype(np.int32) - x_zero_point).astype(np.float32) * multiplier
    return rounded(real, 0 if zero_point is None else zero_point)


@requantize.shape
def _(x, multiplier, zero_point=None, **_):
    if x.dtype != np.int16:
        raise ValueError(f"x must be int16, got {x.dtype}")
    _check_scale(x, multiplier, zero_point)
    return x.shape, np.int8


@operator("QTable")
def table(x, values):
    """values[x + 128]: any function of one int8, its table (256,) of any dtype."""
    return values[x.astype(np.intp) + 128]


@table.shape
def _(x, values):
    if x.dtype != np.int8 or values.shape != (256,):
        raise ValueError(f"x must be int8 and values (256,), got {x.dtype} and {values.shape}")
    return x.shape, values.dtype


# ---- products -----------------------------------------------------------------------------------


@operator("QDense", weights=(1,))
def dense(
    x, weight, multiplier, bias=None, table=None, *, dtype="int8", x_zero_point=0, y_zero_point=0,
    low=-32768, high=32767,
):  # fmt: skip
    """Dense layer: x (..., n_in), weight (n_out, n_in) int8, bias (n_out,) int32.

    As float32 the result is float32(s) · multiplier; as int16 it has finer steps. A table (256,) is
    looked up last, by int8.
    """
    sums = product(x.astype(np.int16).reshape(-1, x.shape[-1]) - np.int16(x_zero_point), weight.T)
    sums = sums.reshape(*x.shape[:-1], -1)
    return finished(sums, multiplier, bias, table, dtype, y_zero_point, low, high)


@dense.shape
def _(x, weight, multiplier, bias=None, table=None, *, dtype="int8", **_):
    _check_layer(x, weight, multiplier, bias, table, dtype)
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {x.shape} does not go with a weight {weight.shape}")
    return (*x.shape[:-1], weight.shape[0]), dtype


def quantized_rows(x):
    """Rows (m, k) of floats as int8, scale and zero point: the range of each, with zero, in 255.

    A row with NaN or infinity has no range: its scale is NaN.
    """
    finite = np.isfinite(x).all(axis=1)
    x = np.where(finite[:, None], x, np.float32(0))
    low, high = x.min(axis=1, initial=0), x.max(axis=1, initial=0)
    scale = np.maximum(high / np.float32(255) - low / np.float32(255), np.float32(2.0**-126))
    inverse = np.float32(1) / scale
    zero_point = -128 - np.rint(low * inverse).astype(np.int32)
    q = np.clip(np.rint(x * inverse[:, None]) + zero_point[:, None], -128, 127).astype(np.int16)
    return q, np.where(finite, scale, np.float32(np.nan)), zero_point


def integer_product(x, weight, scale):
    """Rows x (m, k) of floats, in steps of their own, times int8 rows that stand for themselves ·
    scale (n,): (float32(Σ (q - zero_point) · w) · scale) · row's scale, each step in float32."""
    q, row_scale, zero_point = quantized_rows(x)
    sums = product(q - zero_point[:, None].astype(np.int16), weight.T)
    return sums.astype(np.float32) * scale * row_scale[:, None]


def _bounded(y, activation, alpha, beta):
    return functions.apply(activation, y, alpha, beta)


def _check_dynamic(x, weight, scale, bias, activation):
    n = weight.shape[:1]
    if x.dtype != np.float32 or weight.dtype != np.int8 or scale.dtype != np.float32:
        raise ValueError("x and scale must be float32, weight int8")
    if scale.shape not in (n, (), (1,)) or (bias is not None and bias.shape != n):
        raise ValueError(f"scale and bias must have shape {n}")
    if activation not in ("identity", "relu", "clip"):
        raise ValueError(f"activation must be identity, relu or clip, got {activation!r}")
    if math.prod(weight.shape[1:]) > _WIDEST:
        raise ValueError(f"sums of more than {_WIDEST} products could overflow 32 bits")


@operator("DynamicDense", weights=(1,))
def dynamic_dense(x, weight, scale, bias=None, *, activation="identity", alpha=0.0, beta=0.0):
    """Dense layer in integers whose input's steps are found as it runs, for each row.

    x (..., n_in) float32, weight (n_out, n_in) int8 that stands for weight · scale[:, None], bias
    float32. Rows are cut into 255 steps from their least to their largest value, zero included:
    y = (float32(Σ (q - zero_point) · w) · scale) · row's scale + bias, each step in float32. So for
    any finite row nothing but y itself can be beyond float32: what could be with a large scale is
    known when a layer is made. A row with NaN or infinity gives NaN.
    """
    y = integer_product(x.reshape(-1, x.shape[-1]), weight, scale)
    y = (y if bias is None else y + bias).reshape(*x.shape[:-1], -1)
    return _bounded(y, activation, alpha, beta)


@dynamic_dense.shape
def _(x, weight, scale, bias=None, *, activation="identity", **_):
    _check_dynamic(x, weight, scale, bias, activation)
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {x.shape} does not go with a weight {weight.shape}")
    return (*x.shape[:-1], weight.shape[0]), np.float32


@operator("QMatMul")
def matmul(
    a, b, *, multiplier, transpose_b=False, dtype="int8", a_zero_point=0, b_zero_point=0,
    y_zero_point=0,
):  # fmt: skip
    """Products of two batches of matrices, a (..., m, k) and b (..., k, n), as numpy.matmul.

    b is (..., n, k) where `transpose_b`. The result is float32 or int8, with one multiplier.
    """
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    # 9 bits on either side: blocks of 64 products of 255 · 255 stay below 2^24.
    a, b = a.astype(np.float32) - a_zero_point, b.astype(np.float32) - b_zero_point
    sums = sum(
        np.matmul(a[..., i : i + 64], b[..., i : i + 64, :]).astype(np.int32)
        for i in range(0, a.shape[-1], 64)
    )
    sums = np.zeros(np.matmul(a, b).shape, np.int32) if isinstance(sums, int) else sums
    return finished(sums, np.float32(multiplier), None, None, dtype, y_zero_point, -128, 127)


@matmul.shape
def _(a, b, *, transpose_b=False, dtype="int8", **_):
    if a.dtype != np.int8 or b.dtype != np.int8 or dtype not in ("int8", "float32"):
        raise ValueError(f"a and b must be int8, got {a.dtype} and {b.dtype}")
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise ValueError(f"a {a.shape} and b {b.shape} must be matrices")
    k, n = b.shape[:-3:-1] if transpose_b else b.shape[-2:]
    if a.shape[-1] != k:
        raise ValueError(f"a {a.shape} does not go with b {b.shape}")
    if k > _WIDEST // 2:
        raise ValueError(f"sums of more than {_WIDEST // 2} products could overflow 32 bits")
    return (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], n), dtype


# ---- windows ------------------------------------------------------------------------------------


def window(shape, kernel, strides, dilations, pads):
    """Of a convolution or pooling over x of `shape` (N, ..., C): all settings, output sizes."""
    n = len(kernel)
    if len(shape) != n + 2 or n not in (1, 2):
        raise ValueError(f"x {shape} must have one or two dimensions between the first and last")
    strides, dilations = tuple(strides) or (1,) * n, tuple(dilations) or (1,) * n
    pads = tuple(pads) or (0,) * 2 * n
    if len(strides) != n or len(dilations) != n or len(pads) != 2 * n:
        raise ValueError(f"strides, dilations and pads do not go with {n} dimensions")
    if min(*strides, *dilations, *kernel) < 1 or min(pads) < 0:
        raise ValueError("strides, dilations and kernel must be positive, pads not negative")
    sizes = []
    for i, size in enumerate(shape[1:-1]):
        room = size + pads[i] + pads[n + i] - dilations[i] * (kernel[i] - 1) - 1
        if room < 0:
            raise ValueError(f"x {shape} is smaller than the kernel {tuple(kernel)}")
        sizes.append(room // strides[i] + 1)
    return strides, dilations, pads, tuple(sizes)


def patches(x, kernel, strides, dilations, pads, padding):
    """What each place of the output sees of x (N, ..., C): (N, *sizes, *kernel, C)."""
    strides, dilations, pads, _ = window(x.shape, kernel, strides, dilations, pads)
    n = len(kernel)
    around = [s + pads[i] + pads[n + i] for i, s in enumerate(x.shape[1:-1])]
    room = np.full((len(x), *around, x.shape[-1]), padding, x.dtype)
    inner = tuple(slice(pads[i], pads[i] + s) for i, s in enumerate(x.shape[1:-1]))
    room[(slice(None), *inner)] = x
    seen = np.lib.stride_tricks.sliding_window_view(
        room,
        [dilations[i] * (k - 1) + 1 for i, k in enumerate(kernel)],
        axis=tuple(range(1, n + 1)),
    )  # (N, *places, C, *spans)
    steps = tuple(slice(None, None, s) for s in strides)
    spans = tuple(slice(None, None, d) for d in dilations)
    return np.moveaxis(seen[(slice(None), *steps, slice(None), *spans)], n + 1, -1)


def _convolved(x, weight, strides, dilations, pads, groups):
    """Sums (N, *sizes, C_out) of x (int16, less its zero point)."""
    seen = patches(x, weight.shape[1:-1], strides, dilations, pads, 0)
    lead, taps = seen.shape[: len(x.shape) - 1], math.prod(weight.shape[1:-1])
    rows = seen.reshape(-1, taps, groups, weight.shape[-1])
    rows = rows.transpose(2, 0, 1, 3).reshape(groups, len(rows), -1)
    columns = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
    sums = product(rows, columns)
    return sums.transpose(1, 0, 2).reshape(*lead, weight.shape[0])


def _check_convolution(x, weight, strides, dilations, pads, groups):
    sizes = window(x.shape, weight.shape[1:-1], strides, dilations, pads)[-1]
    if groups < 1 or weight.shape[0] % groups or x.shape[-1] != groups * weight.shape[-1]:
        raise ValueError(f"x {x.shape} and weight {weight.shape} do not go with {groups} groups")
    return (x.shape[0], *sizes, weight.shape[0])


@operator("QConv", weights=(1,))
def convolution(
    x, weight, multiplier, bias=None, table=None, *, strides=(), dilations=(), pads=(), groups=1,
    dtype="int8", x_zero_point=0, y_zero_point=0, low=-32768, high=32767,
):  # fmt: skip
    """Convolution of x (N, [height,] width, C) with weight (C_out, *kernel, C / groups).

    Outside of x lies its zero point. Otherwise as QDense. pads: those before, then those after.
    """
    x = x.astype(np.int16) - np.int16(x_zero_point)
    sums = _convolved(x, weight, strides, dilations, pads, groups)
    return finished(sums, multiplier, bias, table, dtype, y_zero_point, low, high)


@convolution.shape
def _(
    x, weight, multiplier, bias=None, table=None, *, strides, dilations, pads, groups, dtype, **_
):  # fmt: skip
    _check_layer(x, weight, multiplier, bias, table, dtype)
    return _check_convolution(x, weight, strides, dilations, pads, groups), dtype


@operator("DynamicConv", weights=(1,))
def dynamic_convolution(
    x, weight, scale, bias=None, *, strides=(), dilations=(), pads=(), groups=1,
    activation="identity", alpha=0.0, beta=0.0,
):  # fmt: skip
    """Convolution in integers whose input's steps are found as it runs, for each picture.

    x (N, [height,] width, C) float32; weight, scale and bias as in DynamicDense.
    """
    q, picture_scale, zero_point = quantized_rows(x.reshape(len(x), math.prod(x.shape[1:])))
    shape = (-1, *[1] * (x.ndim - 1))
    q = q.reshape(x.shape) - zero_point.reshape(shape).astype(np.int16)
    sums = _convolved(q, weight, strides, dilations, pads, groups)
    y = sums.astype(np.float32) * scale * picture_scale.reshape(shape)
    return _bounded(y if bias is None else y + bias, activation, alpha, beta)


@dynamic_convolution.shape
def _(x, weight, scale, bias=None, *, strides, dilations, pads, groups, activation, **_):
    _check_dynamic(x, weight, scale, bias, activation)
    return _check_convolution(x, weight, strides, dilations, pads, groups), np.float32


@operator("QPool")
def pool(
    x, *, function, kernel=(), strides=(), dilations=(), pads=(), count_padding=False,
    multiplier=1.0, x_zero_point=0, y_zero_point=0,
):  # fmt: skip
    """Largest or mean value of each window of x (N, [height,] width, C); of all where no kernel.

    "max" leaves values as they are. "average" is clamp(rne(float32(Σ (x - x_zero_point)) · f) +
    y_zero_point), f = float32(multiplier / number of values): those inside of x, or all of the
    window where `count_padding`. Outside of x lies nothing for a maximum, and 0 for a mean.
    """
    kernel = tuple(kernel) or x.shape[1:-1]
    axes = tuple(range(-1 - len(kernel), -1))
    if function == "max":
        return patches(x, kernel, strides, dilations, pads, -128).max(axis=axes)
    x = x.astype(np.int32) - x_zero_point
    sums = patches(x, kernel, strides, dilations, pads, 0).sum(axis=axes, dtype=np.int32)
    if count_padding:
        counts = np.full((1,), math.prod(kernel))
    else:
        ones = np.ones((1, *x.shape[1:-1], 1), np.int32)
        counts = patches(ones, kernel, strides, dilations, pads, 0).sum(axis=axes)
    factor = (multiplier / np.maximum(counts, 1)).astype(np.float32)
    return rounded(sums.astype(np.float32) * factor, y_zero_point)


@pool.shape
def _(x, *, function, kernel, strides, dilations, pads, **_):
    if x.dtype != np.int8 or function not in ("max", "average"):
        raise ValueError(f"x must be int8, function max or average: {x.dtype}, {function!r}")
    sizes = window(x.shape, tuple(kernel) or x.shape[1:-1], strides, dilations, pads)[-1]
    return (x.shape[0], *sizes, x.shape[-1]), np.int8


# ---- sums of layers -----------------------------------------------------------------------------


@operator("QAdd")
def add(
    a, b, *, a_multiplier, b_multiplier, shift, a_zero_point=0, b_zero_point=0, y_zero_point=0,
    dtype="int8", low=-32768, high=32767,
):  # fmt: skip
    """clamp((((a - za) · ma + (b - zb) · mb + 2^(shift-1)) >> shift) + zy): integers only.

    a and b are int8 or int16, of equal shapes; ma and mb at most 2^14 in size where both are int8,
    2^13 else, so that nothing leaves 32 bits. Of two nearest the larger: ties go up.
    """
    total = (a.astype(np.int32) - a_zero_point) * a_multiplier
    total += (b.astype(np.int32) - b_zero_point) * b_multiplier
    limits = np.iinfo(dtype)
    q = ((total + (1 << (shift - 1))) >> shift) + y_zero_point
    return np.clip(q, max(low, limits.min), min(high, limits.max)).astype(dtype)


@add.shape
def _(a, b, *, a_multiplier, b_multiplier, shift, dtype, **_):
    if a.shape != b.shape or not {a.dtype, b.dtype} <= {np.dtype("int8"), np.dtype("int16")}:
        raise ValueError(f"a {a.shape} {a.dtype} and b {b.shape} {b.dtype} cannot be added")
    most = 1 << (14 if a.dtype == b.dtype == np.int8 else 13)
    if max(abs(a_multiplier), abs(b_multiplier)) > most or not 1 <= shift <= 30:
        raise ValueError(f"multipliers go up to {most}, shift from 1 to 30")
    if dtype not in ("int8", "int16"):
        raise ValueError(f"dtype must be int8 or int16, got {dtype!r}")
    return a.shape, dtype
