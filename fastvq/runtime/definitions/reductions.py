"""Sums and extremes along axes, and what is made of them: softmax, normalisation."""

from __future__ import annotations

import operator as python_operator

import numpy as np

from fastvq.runtime.ops import known, operator

# ---- sums and extremes ---------------------------------------------------------------------------


def _lowest(dtype):
    return -np.inf if dtype.kind == "f" else dtype.kind != "b" and np.iinfo(dtype).min


def _highest(dtype):
    return np.inf if dtype.kind == "f" else dtype.kind == "b" or np.iinfo(dtype).max


def _sum(x, **along):
    return np.sum(x, dtype=x.dtype, **along)


def _mean(x, **along):
    total = _sum(x, **along)
    count = x.size // total.size if total.size else 0
    if x.dtype.kind == "f":
        return total / x.dtype.type(count)
    return np.trunc(total / np.float64(count))


def _log_sum_exp(x, axis, keepdims):
    x = x.astype(np.result_type(x.dtype, np.float32))
    top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    total = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return total if keepdims else np.squeeze(total, axis)


_REDUCTIONS = {
    "sum": _sum,
    "mean": _mean,
    "max": lambda x, **along: np.max(x, initial=_lowest(x.dtype), **along),
    "min": lambda x, **along: np.min(x, initial=_highest(x.dtype), **along),
    "product": lambda x, **along: np.prod(x, dtype=x.dtype, **along),
    "l1": lambda x, **along: _sum(np.abs(x), **along),
    "l2": lambda x, **along: np.sqrt(_sum(x * x, **along)),
    "sum_square": lambda x, **along: _sum(x * x, **along),
    "log_sum": lambda x, **along: np.log(_sum(x, **along)),
    "log_sum_exp": _log_sum_exp,
}


@operator("Reduce")
def reduce(x, axes=None, *, function, keep=True):
    """Sum, mean, max, min, product, l1, l2, sum_square, log_sum or log_sum_exp over axes.

    Over no axes, () that is, each value is a sum by itself; None stands for all axes. Of nothing,
    sums are 0, products 1, extremes those of the dtype, means NaN. Means of whole numbers are cut
    towards zero.
    """
    found = _REDUCTIONS[function](x, axis=_axes_of(axes, x.ndim), keepdims=keep)
    return np.asarray(found).astype(x.dtype)


@reduce.shape
def _(x, axes=None, *, function, keep):
    if function not in _REDUCTIONS:
        raise ValueError(f"there is no function {function!r}")
    if x.dtype == np.bool_ and function not in ("max", "min"):
        raise ValueError(f"function {function!r} does not take bool")
    found = _axes_of(None if axes is None else known(axes, "axes"), len(x.shape))
    kept = [1 if i in found else n for i, n in enumerate(x.shape) if keep or i not in found]
    return kept, x.dtype


@operator("ArgMax")
def arg_max(x, *, axis=0, keep=True, last=False, least=False):
    """Where along the axis the largest value stands (or the `least`), as int64.

    Of equal values the first, or the `last`. NaN counts as the largest and as the least.
    """
    choose = np.argmin if least else np.argmax
    if last:
        found = x.shape[axis] - 1 - choose(np.flip(x, axis), axis=axis, keepdims=keep)
    else:
        found = choose(x, axis=axis, keepdims=keep)
    return np.asarray(found, np.int64)


@arg_max.shape
def _(x, *, axis, keep, **_):
    axis = _axis_of(axis, len(x.shape))
    if not x.shape[axis]:
        raise ValueError(f"along axis {axis} of {x.shape} there is nothing to choose from")
    return (*x.shape[:axis], *((1,) if keep else ()), *x.shape[axis + 1 :]), np.int64


@operator("TopK", n_outputs=2)
def top_k(x, k, *, axis=-1, largest=True, sorted=True):
    """The k largest (or least) values along the axis, and where they stand, as int64.

    In order, the first of equal ones first, whether `sorted` asks for it or not. NaN counts as
    larger than all.
    """
    count = x.shape[axis]
    if largest:
        order = count - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    order = np.take(order, np.arange(_number(k)), axis=axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


@top_k.shape
def _(x, k, *, axis, **_):
    axis, k = _axis_of(axis, len(x.shape)), _number(known(k, "k"))
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"{k} values along axis {axis} of {x.shape}")
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return [(shape, x.dtype), (shape, np.int64)]


@operator("CumSum")
def cumulative_sum(x, axis, *, exclusive=False, reverse=False):
    """Sums of all values up to each along the axis, itself included unless `exclusive`."""
    axis = _number(axis)
    x = np.flip(x, axis) if reverse else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    if exclusive:
        total = np.roll(total, 1, axis)
        np.moveaxis(total, axis, 0)[:1] = 0
    return np.flip(total, axis) if reverse else total


@cumulative_sum.shape
def _(x, axis, **_):
    _axis_of(_number(known(axis, "axis")), len(x.shape))
    return x.shape, x.dtype


# ---- softmax and normalisation -------------------------------------------------------------------


@operator("Softmax")
def softmax(x, *, axis=-1, log=False):
    """exp(x) / Σ exp(x) along the axis, or the logarithm of that; free of overflow."""
    # The smallest finite number: of nothing there is no largest, and -inf - -inf were NaN too.
    x = x - np.max(x, axis=axis, keepdims=True, initial=np.finfo(x.dtype).min)
    e = np.exp(x)
    total = np.sum(e, axis=axis, keepdims=True)
    return x - np.log(total) if log else e / total


@softmax.shape
def _(x, *, axis, **_):
    _axis_of(axis, len(x.shape))
    _check_float(x)
    return x.shape, x.dtype


@operator("LayerNorm")
def layer_norm(x, scale=None, bias=None, *, axis=-1, epsilon=1e-5):
    """(x - mean) / √(variance + epsilon) · scale + bias, over the axes from `axis` to the last.

    (Ba, Kiros, Hinton, "Layer Normalization", 2016)
    """
    axes = tuple(range(axis % x.ndim, x.ndim))
    centred = x - np.mean(x, axis=axes, keepdims=True)
    variance = np.mean(centred * centred, axis=axes, keepdims=True)
    y = centred / np.sqrt(variance + x.dtype.type(epsilon))
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


@layer_norm.shape
def _(x, scale=None, bias=None, *, axis, **_):
    _axis_of(axis, len(x.shape))
    _check_float(x)
    for name, form in (("scale", scale), ("bias", bias)):
        if form is not None and not (form.dtype == x.dtype and _spreads(form.shape, x.shape)):
            raise ValueError(f"{name} {form.shape} of {form.dtype} does not go with x {x.shape}")
    return x.shape, x.dtype


def _spreads(shape, over):
    """Whether an array of this shape is broadcast over one of the other, which stays as it is."""
    pairs = zip(reversed(shape), reversed(over), strict=False)
    return len(shape) <= len(over) and all(n in (1, m) for n, m in pairs)


def _axis_of(axis, n_axes):
    if not -n_axes <= axis < n_axes:
        raise ValueError(f"there is no axis {axis} among {n_axes}")
    return axis % n_axes


def _axes_of(axes, n_axes):
    """Which axes are meant, each once."""
    if axes is None:
        return tuple(range(n_axes))
    found = tuple(_axis_of(int(axis), n_axes) for axis in np.ravel(axes))
    if len(set(found)) != len(found):
        raise ValueError(f"axes {found} name one of them twice")
    return found


def _number(value):
    """The whole number that an array of one holds."""
    if np.size(value) != 1:
        raise ValueError(f"wanted one whole number, got {np.size(value)}")
    return python_operator.index(np.ravel(value)[0])


def _check_float(x):
    if np.dtype(x.dtype).kind != "f":
        raise ValueError(f"takes floats, got {x.dtype}")
