"""Values that move, or are only seen in another shape; nothing is computed but blends of pixels."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from fastvq.runtime.ops import known, operator

# ---- Shapes as values, and values in another shape -----------------------------------------------


@operator("Shape")
def shape(x, *, start=0, end=None):
    """Dimensions start .. end of x, as int64; known before the model runs."""
    return np.array(np.shape(x)[start:end], np.int64)


@shape.shape
def _(x, *, start=0, end=None):
    return (len(x.shape[start:end]),), np.int64


@operator("Size")
def size(x):
    """The number of values in x, as int64."""
    return np.array(math.prod(np.shape(x)), np.int64)


@size.shape
def _(x):
    return (), np.int64


@operator("Reshape")
def reshape(x, shape, *, zero_copies=False):
    """x with another shape; nothing is moved.

    -1 stands for what is left, and with `zero_copies` a 0 for the dimension of x in its place.
    """
    return np.reshape(x, _wanted_shape(np.shape(x), shape, zero_copies))


@reshape.shape
def _(x, shape, *, zero_copies=False):
    return _wanted_shape(x.shape, known(shape, "shape"), zero_copies), x.dtype


def _wanted_shape(shape, wanted, zero_copies):
    wanted = [int(n) for n in wanted]
    if zero_copies:
        if any(n == 0 and i >= len(shape) for i, n in enumerate(wanted)):
            raise ValueError(f"shape {wanted} copies a dimension that {shape} has not")
        wanted = [n or shape[i] for i, n in enumerate(wanted)]
    if wanted.count(-1) > 1 or min(wanted, default=0) < -1:
        raise ValueError(f"shape {wanted} is none")
    rest = math.prod(n for n in wanted if n != -1)
    if -1 in wanted and rest:
        wanted[wanted.index(-1)] = math.prod(shape) // rest
    if math.prod(wanted) != math.prod(shape):
        raise ValueError(f"{shape} cannot become {wanted}")
    return wanted


@operator("Flatten")
def flatten(x, *, axis=1):
    """x as a matrix: the dimensions before `axis`, and those from it on, each taken together."""
    return np.reshape(x, _flat_shape(np.shape(x), axis))


@flatten.shape
def _(x, *, axis=1):
    return _flat_shape(x.shape, axis), x.dtype


def _flat_shape(shape, axis):
    if not -len(shape) <= axis <= len(shape):
        raise ValueError(f"axis {axis} does not cut the dimensions {shape}")
    axis += len(shape) if axis < 0 else 0
    return math.prod(shape[:axis]), math.prod(shape[axis:])


@operator("Squeeze")
def squeeze(x, *, axes=()):
    """x without the dimensions `axes`, all of which are 1; without all that are 1 where () ."""
    return np.reshape(x, _squeezed(np.shape(x), axes))


@squeeze.shape
def _(x, *, axes=()):
    return _squeezed(x.shape, axes), x.dtype


def _squeezed(shape, axes):
    axes = _axes(axes, len(shape)) if axes else [i for i, n in enumerate(shape) if n == 1]
    if any(shape[i] != 1 for i in axes):
        raise ValueError(f"axes {axes} of {shape} are not all 1")
    return [n for i, n in enumerate(shape) if i not in axes]


@operator("Unsqueeze")
def unsqueeze(x, *, axes):
    """x with dimensions of 1 put in, so that the result has them at `axes`."""
    return np.reshape(x, _unsqueezed(np.shape(x), axes))


@unsqueeze.shape
def _(x, *, axes):
    return _unsqueezed(x.shape, axes), x.dtype


def _unsqueezed(shape, axes):
    rank = len(shape) + len(axes)
    places, rest = _axes(axes, rank), iter(shape)
    return [1 if i in places else next(rest) for i in range(rank)]


# ---- The same values in other places -------------------------------------------------------------


@operator("Transpose")
def transpose(x, *, order=()):
    """x with its axes in another order; reversed where the order is ()."""
    return np.transpose(x, order or None)


@transpose.shape
def _(x, *, order=()):
    order = order or range(len(x.shape))[::-1]
    if sorted(order) != [*range(len(x.shape))]:
        raise ValueError(f"order {order} does not name each axis of {x.shape} once")
    return [x.shape[i] for i in order], x.dtype


@operator("Concat")
def concat(*xs, axis):
    """One after the other along an axis."""
    return np.concatenate(xs, axis)


@concat.shape
def _(*xs, axis):
    if not xs:
        raise ValueError("nothing to put together")
    axis = _axis(axis, len(xs[0].shape))
    rests = {(*x.shape[:axis], None, *x.shape[axis + 1 :]) for x in xs}
    if len(rests) > 1 or len({x.dtype for x in xs}) > 1:
        raise ValueError(f"shapes {[x.shape for x in xs]} do not meet at axis {axis}")
    first = xs[0].shape
    return (*first[:axis], sum(x.shape[axis] for x in xs), *first[axis + 1 :]), xs[0].dtype


@operator("Split", n_outputs=0)
def split(x, *, parts=0, axis=0, sizes=()):
    """Pieces along an axis: of these sizes, or `parts` of one size, the last maybe smaller."""
    return np.split(x, np.cumsum(_split_sizes(x.shape, axis, parts, sizes))[:-1], axis)


@split.shape
def _(x, *, parts=0, axis=0, sizes=()):
    axis = _axis(axis, len(x.shape))
    return [
        ((*x.shape[:axis], n, *x.shape[axis + 1 :]), x.dtype)
        for n in _split_sizes(x.shape, axis, parts, sizes)
    ]


def _split_sizes(shape, axis, parts, sizes):
    n = shape[_axis(axis, len(shape))]
    if not sizes and parts > 0:
        each = -(-n // parts)
        sizes = [max(0, min(each, n - i * each)) for i in range(parts)]
    if not sizes or sum(sizes) != n or min(sizes) < 0:
        raise ValueError(f"axis {axis} of {shape} cannot be cut into {sizes or parts}")
    return [*sizes]


@operator("Slice")
def slice_(x, starts, ends, axes=None, steps=None):
    """x[start:end:step] along each of the axes; all from the first on where they are left out."""
    return x[slices(x.shape, starts, ends, axes, steps)]


@slice_.shape
def _(x, starts, ends, axes=None, steps=None):
    limits = [
        None if form is None else known(form, what)
        for form, what in ((starts, "starts"), (ends, "ends"), (axes, "axes"), (steps, "steps"))
    ]
    cuts = slices(x.shape, *limits)
    return [len(range(n)[cut]) for n, cut in zip(x.shape, cuts, strict=True)], x.dtype


def slices(shape, starts, ends, axes=None, steps=None):
    """A Python slice for every axis; limits beyond the ends mean the ends, as ONNX has them."""
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cuts = [slice(None)] * len(shape)
    for axis, start, end, step in zip(_axes(axes, len(shape)), starts, ends, steps, strict=True):
        if not step:
            raise ValueError("a step of 0")
        cuts[axis] = slice(int(start), int(end), int(step))
    return tuple(cuts)


@operator("Expand")
def expand(x, shape):
    """x broadcast together with a shape."""
    return np.broadcast_to(x, np.broadcast_shapes(np.shape(x), tuple(int(n) for n in shape)))


@expand.shape
def _(x, shape):
    return np.broadcast_shapes(x.shape, tuple(int(n) for n in known(shape, "shape"))), x.dtype


@operator("Tile")
def tile(x, repeats):
    """x repeated along each axis."""
    return np.tile(x, tuple(int(n) for n in repeats))


@tile.shape
def _(x, repeats):
    repeats = [int(n) for n in known(repeats, "repeats")]
    if len(repeats) != len(x.shape) or min(repeats, default=0) < 0:
        raise ValueError(f"repeats {repeats} do not go with {x.shape}")
    return [n * r for n, r in zip(x.shape, repeats, strict=True)], x.dtype


@operator("Pad")
def pad(x, pads, value=None, axes=None, *, mode="constant"):
    """x with more (or, negative, fewer) rows at the ends of axes.

    pads : beginnings of all axes, then ends. mode: "constant" (`value`, or 0), "edge", "reflect"
    (without repeating the edge), "wrap". What is negative is cut off first.
    """
    widths = pad_widths(np.shape(x), pads, axes)
    cut = tuple(
        slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape, widths, strict=True)
    )
    more = [(max(0, a), max(0, b)) for a, b in widths]
    if mode == "constant":
        return np.pad(x[cut], more, constant_values=0 if value is None else np.ravel(value)[0])
    return np.pad(x[cut], more, mode=mode)


@pad.shape
def _(x, pads, value=None, axes=None, *, mode="constant"):
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise ValueError(f"there is no mode {mode!r}")
    axes = None if axes is None else known(axes, "axes")
    widths = pad_widths(x.shape, known(pads, "pads"), axes)
    out = [n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)]
    if min(out, default=0) < 0:
        raise ValueError(f"pads {widths} take more from {x.shape} than there is")
    return out, x.dtype


def pad_widths(shape, pads, axes=None):
    axes = _axes(range(len(shape)) if axes is None else axes, len(shape))
    if len(pads) != 2 * len(axes):
        raise ValueError(f"pads {[*pads]} are not two for each of the axes {axes}")
    widths = [(0, 0)] * len(shape)
    for i, axis in enumerate(axes):
        widths[axis] = int(pads[i]), int(pads[len(axes) + i])
    return widths


@operator("Trilu")
def trilu(x, k=None, *, upper=True):
    """The triangle of the last two axes above (below) the k-th diagonal, itself included."""
    k = 0 if k is None else int(k)
    return np.triu(x, k) if upper else np.tril(x, k)


@trilu.shape
def _(x, k=None, **_):
    if len(x.shape) < 2:
        raise ValueError(f"{x.shape} has no two axes")
    return x.shape, x.dtype


# ---- Values by their indices ---------------------------------------------------------------------


@operator("Gather", weights=(0,))
def gather(x, indices, *, axis=0):
    """x taken at indices along an axis, those below 0 from the end: rows of an embedding."""
    return np.take(x, indices, axis)


@gather.shape
def _(x, indices, *, axis=0):
    axis = _axis(axis, len(x.shape))
    _whole_numbers(indices)
    return (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype


@operator("GatherElements")
def gather_elements(x, indices, *, axis=0):
    """y[..., i, ...] = x[..., indices[..., i, ...], ...] along an axis."""
    axis = _axis(axis, np.ndim(x))
    return x[_places(np.shape(x), indices, axis)]


@gather_elements.shape
def _(x, indices, *, axis=0):
    _whole_numbers(indices)
    _within(x.shape, indices.shape, _axis(axis, len(x.shape)))
    return indices.shape, x.dtype


@operator("GatherND")
def gather_nd(x, indices, *, batch_dims=0):
    """Slices of x: the last axis of `indices` holds places along its axes after `batch_dims`."""
    lead = np.indices(indices.shape[:-1])[:batch_dims]
    return x[(*lead, *np.moveaxis(indices, -1, 0))]


@gather_nd.shape
def _(x, indices, *, batch_dims=0):
    _whole_numbers(indices)
    depth = batch_dims + (indices.shape[-1] if indices.shape else 0)
    if (
        not 0 <= batch_dims < len(indices.shape)
        or depth > len(x.shape)
        or x.shape[:batch_dims] != indices.shape[:batch_dims]
    ):
        raise ValueError(f"indices {indices.shape} do not lead into {x.shape}")
    return (*indices.shape[:-1], *x.shape[depth:]), x.dtype


@operator("ScatterElements")
def scatter_elements(x, indices, updates, *, axis=0, reduction="none"):
    """x with updates written at, added, multiplied, ... to the places of GatherElements."""
    return _scattered(x, _places(np.shape(x), indices, _axis(axis, np.ndim(x))), updates, reduction)


@scatter_elements.shape
def _(x, indices, updates, *, axis=0, reduction="none"):
    _whole_numbers(indices)
    _within(x.shape, indices.shape, _axis(axis, len(x.shape)))
    if indices.shape != updates.shape or reduction not in _REDUCTIONS:
        raise ValueError(f"{reduction} of updates {updates.shape} at indices {indices.shape}")
    return x.shape, x.dtype


@operator("ScatterND")
def scatter_nd(x, indices, updates, *, reduction="none"):
    """x with slices written at, added, multiplied, ... to the places of GatherND."""
    return _scattered(x, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)


@scatter_nd.shape
def _(x, indices, updates, *, reduction="none"):
    _whole_numbers(indices)
    depth = indices.shape[-1] if indices.shape else 0
    wanted = (*indices.shape[:-1], *x.shape[depth:])
    if depth > len(x.shape) or updates.shape != wanted or reduction not in _REDUCTIONS:
        raise ValueError(f"{reduction} of updates {updates.shape} at indices {indices.shape}")
    return x.shape, x.dtype


_REDUCTIONS = {
    "none": None,
    "add": np.add,
    "mul": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}


def _scattered(x, places, updates, reduction):
    result = np.array(x)
    if reduction == "none":
        result[places] = updates
    else:
        _REDUCTIONS[reduction].at(result, places, updates)
    return result


def _places(shape, indices, axis):
    """Indices for every axis of x, of the shape of `indices`."""
    places = [*np.indices(indices.shape, sparse=True)]
    if indices.size and not -shape[axis] <= indices.min() <= indices.max() < shape[axis]:
        raise IndexError(f"an index is out of range for axis {axis} of {shape}")
    places[axis] = indices
    return tuple(places)


@operator("OneHot")
def one_hot(indices, depth, values, *, axis=-1):
    """values[1] where the new axis is at the index, values[0] elsewhere, also out of range."""
    depth = int(np.ravel(depth)[0])
    axis += np.ndim(indices) + 1 if axis < 0 else 0
    at = np.where(indices < 0, indices + depth, indices)
    steps = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(np.ndim(at) + 1)])
    return np.where(np.expand_dims(at, axis) == steps, values[1], values[0])


@one_hot.shape
def _(indices, depth, values, *, axis=-1):
    depth = int(np.ravel(known(depth, "depth"))[0])
    axis = _axis(axis, len(indices.shape) + 1)
    if values.shape != (2,) or depth < 0:
        raise ValueError(f"values {values.shape} are not two, or depth {depth} is negative")
    return (*indices.shape[:axis], depth, *indices.shape[axis:]), values.dtype


# ---- Values out of nothing -----------------------------------------------------------------------


@operator("Range")
def range_(start, stop, step):
    """start, start + step, ... before stop."""
    count = _range_length(start, stop, step)
    return (start + np.arange(count) * step).astype(np.asarray(start).dtype)


@range_.shape
def _(start, stop, step):
    limits = [
        known(form, what)
        for form, what in zip((start, stop, step), ("start", "stop", "step"), strict=True)
    ]
    return (_range_length(*limits),), start.dtype


def _range_length(start, stop, step):
    start, stop, step = (np.asarray(v).reshape(()).item() for v in (start, stop, step))
    if not step:
        raise ValueError("a step of 0")
    return max(0, math.ceil((stop - start) / step))


@operator("Fill")
def fill(shape, *, value=0.0, dtype="float32"):
    """One value in every place."""
    return np.full(tuple(int(n) for n in shape), value, dtype)


@fill.shape
def _(shape, *, value=0.0, dtype="float32"):
    wanted = [int(n) for n in known(shape, "shape")]
    if min(wanted, default=0) < 0:
        raise ValueError(f"shape {wanted} is none")
    return wanted, np.dtype(dtype)


# ---- Pictures of another size --------------------------------------------------------------------


@operator("Resize")
def resize(
    x,
    scales=None,
    sizes=None,
    region=None,
    *,
    axes=(),
    mode="nearest",
    coordinates="half_pixel",
    rounding="round_prefer_floor",
    cubic=-0.75,
    inside=False,
    antialias=False,
    outside=0.0,
    policy="stretch",
):
    """x sampled anew along axes (all, where ()), one axis after the other.

    Parameters
    ----------
    scales, sizes : one number for each of the axes; the one or the other
    region : for `coordinates` "tf_crop_and_resize": begins of the axes, then ends, from 0 to 1
    mode : "nearest", "linear" or "cubic" with the coefficient `cubic`
    coordinates, rounding, policy : the words of ONNX's Resize
    inside : leave pixels outside of the picture out of a blend, rather than repeat the edge
    antialias : a wider blend where the picture shrinks
    outside : the value beyond the region's picture
    """
    blend = Blend(mode, coordinates, rounding, cubic, inside, antialias, outside)
    y = x
    for axis, n_out, scale, begin, end in resized(x.shape, scales, sizes, region, axes, policy):
        if n_out != x.shape[axis] or scale != 1 or coordinates == "tf_crop_and_resize":
            y = blend.along(y, axis, n_out, scale, (begin, end))
    return y.astype(x.dtype, copy=False)


@resize.shape
def _(x, scales=None, sizes=None, region=None, *, axes=(), policy="stretch", **_):
    limits = [
        None if form is None or not math.prod(form.shape) else known(form, what)
        for form, what in ((scales, "scales"), (sizes, "sizes"), (region, "region"))
    ]
    shape = [*x.shape]
    for axis, n_out, *_ in resized(x.shape, *limits, axes, policy):
        shape[axis] = n_out
    return shape, x.dtype


def how_to_resize(attributes):
    """The blend, the axes and the policy that a node's attributes ask for."""
    given = resize.complete(attributes)
    axes, policy = given.pop("axes"), given.pop("policy")
    return Blend(**given), axes, policy


def resized(shape, scales, sizes, region, axes, policy):
    """(axis, its new length, scale, begin and end of the region) for each of the axes."""
    axes = _axes(axes or range(len(shape)), len(shape))
    old = [shape[i] for i in axes]
    if scales is not None and np.size(scales):
        scales = [float(s) for s in scales]
        sizes = [math.floor(n * s) for n, s in zip(old, scales, strict=True)]
    elif sizes is not None and np.size(sizes):
        sizes = [int(n) for n in sizes]
        scales = [m / n if n else 1.0 for n, m in zip(old, sizes, strict=True)]
        if policy != "stretch":
            scale = min(scales) if policy == "not_larger" else max(scales)
            scales = [scale] * len(old)
            sizes = [math.floor(scale * n + 0.5) for n in old]
    else:
        raise ValueError("either scales or sizes are needed")
    if min(sizes, default=0) < 0 or min(scales, default=1) < 0:
        raise ValueError(f"sizes {sizes} are none")
    region = [0.0] * len(axes) + [1.0] * len(axes) if region is None or not len(region) else region
    begins, ends = region[: len(axes)], region[len(axes) :]
    return [*zip(axes, sizes, scales, begins, ends, strict=True)]


class Blend:
    """How a new pixel is made of old ones, along one axis."""

    def __init__(self, mode, coordinates, rounding, cubic, inside, antialias, outside):
        self.mode, self.coordinates, self.rounding = mode, coordinates, rounding
        self.cubic, self.inside, self.antialias = cubic, inside, antialias
        self.outside = outside

    def along(self, x, axis, n_out, scale, region):
        at, weights, beyond = self.taps(x.shape[axis], n_out, scale, region)
        pieces = [
            np.take(x, at[:, t], axis) * _along(weights[:, t], axis, x.ndim)
            for t in range(at.shape[1])
        ]
        y = reduce(np.add, pieces)
        return np.where(_along(beyond, axis, x.ndim), self.outside, y) if beyond.any() else y

    def taps(self, n, n_out, scale, region):
        """Places (n_out, taps), their weights, and which new pixels lie beyond the picture."""
        x = self._positions(n, n_out, scale, *region)
        left = np.ceil(x) - 1  # the pixel before x, never x itself: so that ties can be told
        if self.mode == "nearest":
            return self._nearest(x, n), np.ones((n_out, 1)), self._beyond(x, n)
        reach = {"linear": 1, "cubic": 2}[self.mode]
        shrink = min(scale, 1.0) if self.antialias else 1.0
        first = math.floor(-reach / shrink) + 1
        at = left[:, None] + np.arange(first, 2 - first)
        weights = self._weights((at - x[:, None]) * shrink)
        if self.inside:
            weights = np.where((at >= 0) & (at < n), weights, 0)
        weights = weights / weights.sum(axis=1, keepdims=True)
        return np.clip(at, 0, n - 1).astype(np.int64), weights, self._beyond(x, n)

    def _beyond(self, x, n):
        return (self.coordinates == "tf_crop_and_resize") & ((x < 0) | (x > n - 1))

    def _positions(self, n, n_out, scale, begin, end):
        """Where each new pixel lies among the old ones."""
        i = np.arange(n_out, dtype=np.float64)
        length = scale * n
        if self.coordinates == "align_corners":
            return i * (n - 1) / (length - 1) if length != 1 else i * 0
        if self.coordinates == "asymmetric":
            return i / scale
        if self.coordinates == "tf_crop_and_resize":
            span = (end - begin) * (n - 1)
            return begin * (n - 1) + (i * span / (length - 1) if length != 1 else i * 0 + span / 2)
        if self.coordinates == "pytorch_half_pixel" and length == 1:
            return i * 0 - 0.5
        x = (i + 0.5) / scale - 0.5
        if self.coordinates == "half_pixel_symmetric":
            return x + n / 2 * (1 - n_out / length)
        if self.coordinates not in ("half_pixel", "pytorch_half_pixel"):
            raise ValueError(f"there are no coordinates {self.coordinates!r}")
        return x

    def _nearest(self, x, n):
        rule = {
            "round_prefer_floor": lambda x: np.ceil(x - 0.5),
            "round_prefer_ceil": lambda x: np.floor(x + 0.5),
            "floor": np.floor,
            "ceil": np.ceil,
        }[self.rounding]
        return np.clip(rule(x), 0, n - 1).astype(np.int64)[:, None]

    def _weights(self, distance):
        d = np.abs(distance)
        if self.mode == "linear":
            return np.clip(1 - d, 0, 1)
        a = self.cubic  # Keys, "Cubic convolution interpolation", 1981, eq. 4
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _along(vector, axis, rank):
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


# ---- What several of them need -------------------------------------------------------------------


def _axis(axis, rank):
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} among {rank}")
    return int(axis) % rank


def _axes(axes, rank):
    found = [_axis(int(axis), rank) for axis in axes]
    if len(set(found)) < len(found):
        raise ValueError(f"axes {[*axes]} name one twice")
    return found


def _whole_numbers(indices):
    if indices.dtype.kind not in "iu":
        raise ValueError(f"indices must be whole numbers, got {indices.dtype}")


def _within(shape, indices, axis):
    """Whether an array of indices fits into x beside the axis that it runs along."""
    beside = [(n, m) for i, (n, m) in enumerate(zip(shape, indices, strict=False)) if i != axis]
    if len(shape) != len(indices) or any(m > n for n, m in beside):
        raise ValueError(f"indices {indices} do not fit into {shape}")
