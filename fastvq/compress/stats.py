"""What values of a model look like on examples: ranges for 8-bit steps, in constant memory.

The float graph runs over the examples batch by batch, with the values in question as its outputs.
Of each a :class:`Statistics` stays: extremes, sums, and a histogram whose bins are powers of two
wide and begin at 0, so that halving its resolution when something larger comes is exact: the counts
do not depend on how the examples were divided into batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from fastvq.runtime.graph import Graph, Value
from fastvq.runtime.plan import Plan

__all__ = [
    "CALIBRATIONS", "Statistics", "batches_of", "counted", "limits_of", "observe", "parameters",
]  # fmt: skip

CALIBRATIONS = ("minmax", "moving", "percentile", "mse", "entropy")

_SIDE = 4096  # bins on either side of 0
_MEMORY = 1 << 26  # bytes of observed values that one batch may take
_KEPT = 0.9  # of the moving range, at every batch
_PERCENT = 99.99
_SHRUNK = np.linspace(1.0, 0.2, 41)  # shares of the whole range that are tried
_STEPS = 255
_MOST = 16  # times the mean square of the middle example that any example counts for


def batches_of(graph: Graph, arrays: Sequence[np.ndarray], n_rows: int):
    """Cut the inputs of a graph into batches of `n_rows`, or of what the graph is made for.

    Raises
    ------
    ValueError
        If there is not a single row, or not one whole batch of a graph with a fixed size.
    """
    first = graph.inputs[0].shape[:1] if graph.inputs else ()
    if not first:
        yield [*arrays]
        return
    rows = [i for i, value in enumerate(graph.inputs) if value.shape[:1] == first]
    total, step = len(arrays[0]), n_rows if isinstance(first[0], str) else first[0]
    if total == 0 or step == 0:
        raise ValueError("calibration needs examples: X has no rows")
    for start in range(0, total, step):
        yield [a[start : start + step] if i in rows else a for i, a in enumerate(arrays)]


def observe(
    graph, arrays, names: Iterable[str], *, histograms=True, n_threads=1, mask=None, limits=None
) -> dict:
    """Statistics of float values of a graph over examples, by name.

    Parameters
    ----------
    graph : Graph
    arrays : list of ndarray
        The graph's inputs, of all examples.
    names : iterable of str
        Values to look at: inputs or what nodes make.
    histograms : bool
        Whether "percentile", "mse" and "entropy" will be asked for.
    mask : str, optional
        The input that says which places of a sequence count (`counted`).
    limits : dict, optional
        What `limits_of` gives: how far each example counts.

    Raises
    ------
    ValueError
        If there are no rows, or a value is NaN or infinite; the error names it.
    """
    names = [*dict.fromkeys(names)]
    found = {name: Statistics(name, histograms) for name in names}
    for places, values in masked_runs(graph, arrays, names, n_threads, mask, limits):
        for name, value in zip(names, values, strict=True):
            found[name].add(counted(value, places))
    return found


def limits_of(graph, arrays, names, n_threads=1, mask=None) -> dict[str, np.ndarray]:
    """What values of each example are multiplied by, that no example counts for much more than
    others do: one value far out would be all that second moments tell of.

    Returns
    -------
    limits : dict of value name to ndarray (n_examples,) of float32
        Of values with examples whose mean square lies above `_MOST` times the middle one: it is
        brought down to that.
    """
    names = [*dict.fromkeys(names)]
    powers: dict[str, list] = {name: [] for name in names}
    for places, values in masked_runs(graph, arrays, names, n_threads, mask):
        for name, value in zip(names, values, strict=True):
            powers[name] += _powers(value, places)
    n, found = len(arrays[0]) if arrays[0].ndim else 1, {}
    for name, each in powers.items():
        power = np.array(each)
        most = _MOST * np.median(power[power > 0]) if (power > 0).any() else np.inf
        if len(power) == n and power.max() > most:  # values without a row for each example stay
            found[name] = np.sqrt(most / np.maximum(power, most)).astype(np.float32)
    return found


def _powers(value, places):
    """The mean square of each example, of places that count."""
    masks = [None] * len(value) if places is None or len(places) != len(value) else places
    rows = [
        counted(row[None], None if mask is None else mask[None])
        for row, mask in zip(value, masks, strict=True)
    ]
    return [float(np.square(row, dtype=np.float64).sum()) / max(row.size, 1) for row in rows]


def counted(value, places):
    """The rows of a value whose places in a sequence count; all where it has no such places.

    Parameters
    ----------
    value : ndarray (N, T, ..., C), or (N, heads, T, C)
    places : ndarray (N, T) or None
        0 where a place does not count. Padding behind short texts is most of what a model sees of a
        batch, and none of what it gives: steps and weights are not to be made for it.
    """
    if places is None or value.ndim < 3 or value.shape[0] != places.shape[0]:
        return value
    if value.ndim == 4 and value.shape[2] == places.shape[1]:
        return value.swapaxes(1, 2)[places != 0]
    return value[places != 0] if value.shape[1] == places.shape[1] else value


def masked_runs(graph, arrays, names, n_threads=1, mask=None, limits=None):
    """`runs`, each with the batch of the input `mask`, or None; by their limits, if any."""
    left = dict(limits or {})
    for values in runs(graph, arrays, [*names, mask] if mask else names, n_threads):
        places = values.pop() if mask else None
        for i, name in enumerate(names):
            if name in left:
                here, left[name] = np.split(left[name], [len(values[i])])
                values[i] = values[i] * here.reshape(-1, *[1] * (values[i].ndim - 1))
        yield places, values


def runs(graph, arrays, names, n_threads=1):
    """The named values for each batch of the inputs; batches are as large as memory allows."""
    given = [value.name for value in graph.inputs]
    made = [name for name in names if name not in given]
    watched = Graph(
        graph.nodes, graph.inputs, [Value(n, "float32", ()) for n in made], graph.constants
    )
    plans, packed = {}, {}

    def plan_for(batch):
        shapes = tuple(a.shape for a in batch)
        if shapes not in plans:
            by_name = dict(zip(given, shapes, strict=True))
            plans[shapes] = Plan(watched, by_name, packed, n_threads)
        return plans[shapes]

    one = plan_for(next(batches_of(graph, arrays, 1)))
    size = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in one.outputs)
    n_rows = max(1, min(256, _MEMORY // max(size + one.arena_bytes, 1)))
    for batch in batches_of(graph, arrays, n_rows):
        values = dict(zip(given, batch, strict=True))
        if made:
            batch = [np.ascontiguousarray(a) for a in batch]
            values |= zip(made, plan_for(batch).run(batch), strict=True)
        yield [values[name] for name in names]


class Statistics:
    """What was seen of one value.

    Attributes
    ----------
    count, n_rows : int
        Of values, and of those of one channel.
    low, high : float
        Extremes.
    moving : (float, float)
        Extremes of batches, in which the past fades by a tenth with every batch.
    channel_low, channel_high : ndarray (C,)
        Extremes for each channel, the last axis.
    channel_mean, channel_power : ndarray (C,) of float64
        Means of values, and of their squares.
    mean_variance : ndarray (C,) of float64
        How uncertain those means are: their variance, of independent values.
    """

    def __init__(self, name="", histogram=True):
        self.name, self.count = name, 0
        self.low, self.high, self.moving = math.inf, -math.inf, None
        self.channel_low = self.channel_high = self._sums = self._squares = None
        self.n_rows = 0
        self._counts = np.zeros(2 * _SIDE, np.int64) if histogram else None
        self._exponent = -149  # bins are 2^exponent wide

    @property
    def channel_mean(self):
        return self._sums / max(self.n_rows, 1)

    @property
    def channel_power(self):
        return self._squares / max(self.n_rows, 1)

    @property
    def mean_variance(self):
        variance = self.channel_power - self.channel_mean**2
        return np.maximum(variance, 0) / max(self.n_rows, 1)

    def add(self, values):
        """Take in a batch of values (..., C)."""
        values = np.asarray(values)
        if not values.size:
            return
        rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
        low, high = rows.min(axis=0), rows.max(axis=0)
        least, most = float(low.min()), float(high.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            raise ValueError(f"calibration: {self.name!r} has values that are NaN or infinite")
        self.count += values.size
        self.n_rows += len(rows)
        self.low, self.high = min(self.low, least), max(self.high, most)
        if self.moving is None:
            self.moving = least, most
        else:
            pairs = zip(self.moving, (least, most), strict=True)
            self.moving = tuple(_KEPT * old + (1 - _KEPT) * new for old, new in pairs)
        squares = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        self._add_channels(low, high, rows.sum(axis=0, dtype=np.float64), squares)
        if self._counts is not None:
            self._coarsen(_exponent_for(max(-least, most)))
            places = np.floor(rows.astype(np.float64).ravel() * 2.0**-self._exponent)
            places = places.astype(np.int64) + _SIDE
            self._counts += np.bincount(places, minlength=2 * _SIDE)

    def _add_channels(self, low, high, sums, squares):
        if self._sums is None:
            self.channel_low, self.channel_high = low, high
            self._sums, self._squares = sums, squares
        elif self._sums.shape == sums.shape:
            self.channel_low = np.minimum(self.channel_low, low)
            self.channel_high = np.maximum(self.channel_high, high)
            self._sums, self._squares = self._sums + sums, self._squares + squares

    def _coarsen(self, exponent):
        """Make bins at least so wide: neighbours become one; 0 stays between two bins."""
        if exponent <= self._exponent:
            return
        wide = 1 << min(exponent - self._exponent, _SIDE.bit_length())
        places, counts = np.flatnonzero(self._counts) - _SIDE, self._counts[self._counts > 0]
        self._counts, self._exponent = np.zeros(2 * _SIDE, np.int64), exponent
        np.add.at(self._counts, places // wide + _SIDE, counts)

    @classmethod
    def merged(cls, parts):
        """What several have seen together: for values that are to have the same steps."""
        parts = [part for part in parts if part.count]
        whole = cls(parts[0].name if parts else "", all(p._counts is not None for p in parts))
        if not parts:
            return whole
        whole.count = sum(part.count for part in parts)
        whole.low = min(part.low for part in parts)
        whole.high = max(part.high for part in parts)
        whole.moving = min(p.moving[0] for p in parts), max(p.moving[1] for p in parts)
        if len({np.shape(part.channel_low) for part in parts}) == 1:
            for part in parts:
                whole.n_rows += part.n_rows
                whole._add_channels(part.channel_low, part.channel_high, part._sums, part._squares)
        if whole._counts is not None:
            exponent = max(part._exponent for part in parts)
            for part in parts:
                coarse = cls()
                coarse._counts, coarse._exponent = part._counts, part._exponent
                coarse._coarsen(exponent)
                whole._counts = whole._counts + coarse._counts
            whole._exponent = exponent
        return whole

    # ---- ranges ------------------------------------------------------------------------------

    def range(self, method="mse", symmetric=False):
        """The range (low, high) that steps are to cover; 0 is always in it.

        Parameters
        ----------
        method : {"minmax", "moving", "percentile", "mse", "entropy"}
            All that was seen; batches' extremes averaged over time; all but one in 10,000; the
            range with the least squared error; that with the least Kullback-Leibler divergence
            between the values and their steps (Migacz, "8-bit inference with TensorRT", 2017).
        symmetric : bool
            Whether 0 is to be in the middle.
        """
        if not self.count:
            return 0.0, 0.0
        if method == "moving":
            low, high = self.moving
        elif method == "minmax" or self.low == self.high:
            low, high = self.low, self.high
        else:
            choose = {"percentile": self._percentile, "mse": self._best, "entropy": self._best}
            low, high = choose[method](method, symmetric)
        low, high = min(low, 0.0), max(high, 0.0)
        return (-max(-low, high), max(-low, high)) if symmetric else (low, high)

    def _bins(self):
        """Middles and counts of the bins in use."""
        places = np.flatnonzero(self._counts)
        width = 2.0**self._exponent
        return (places - _SIDE + 0.5) * width, self._counts[places].astype(np.float64)

    def _percentile(self, method, symmetric):
        middles, counts = self._bins()
        share = np.cumsum(counts) / counts.sum()
        rest = (1 - _PERCENT / 100) / 2
        low = middles[np.searchsorted(share, rest)]
        high = middles[min(np.searchsorted(share, 1 - rest), len(middles) - 1)]
        return max(float(low), self.low), min(float(high), self.high)

    def _best(self, method, symmetric):
        """The best of ranges with both ends drawn in, then one of the ends."""
        middles, counts = self._bins()
        middles = np.clip(middles, self.low, self.high)
        if method == "entropy":
            # Exact zeros, as a ReLU leaves them, are a step of their own in any range: their mass
            # would drown what the others tell.
            near = np.abs(middles) <= 2.0**self._exponent
            counts = np.where(near, np.minimum(counts, np.median(counts)), counts)
        cost = _squared_error if method == "mse" else _divergence
        low, high = min(self.low, 0.0), max(self.high, 0.0)

        def best(candidates):
            costs = [cost(middles, counts, *parameters(*c, symmetric)) for c in candidates]
            return candidates[int(np.argmin(costs))]

        low, high = best([(low * s, high * s) for s in _SHRUNK])
        near = _SHRUNK[:: 2 if low and high else 41]
        low, high = best([(low * s, high) for s in near])
        return best([(low, high * s) for s in near])


def parameters(low, high, symmetric=False):
    """(scale, zero_point) of int8 steps that cover a range, 0 exactly among them.

    The scale is a float32 as a Python float. A range without width, all values 0, has the scale 1.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if low == high:
        return 1.0, 0
    if symmetric:
        return _as_scale(max(-low, high) / 127), 0
    scale = _as_scale(high / _STEPS - low / _STEPS)
    return scale, int(np.clip(-128 - np.rint(low / scale), -128, 127))


def _as_scale(scale):
    return float(np.float32(max(scale, 2.0**-126)))


def _exponent_for(largest):
    """The narrowest bins that hold values up to this size."""
    if not largest:
        return -149
    return max(math.frexp(largest)[1] - _SIDE.bit_length() + 1, -149)


def _squared_error(middles, counts, scale, zero_point):
    steps = np.clip(np.rint(middles / scale) + zero_point, -128, 127) - zero_point
    return float((counts * (middles - steps * scale) ** 2).sum())


def _divergence(middles, counts, scale, zero_point):
    """Kullback-Leibler divergence of the clipped values from what their steps tell of them."""
    steps = np.rint(middles / scale).astype(np.int64) + zero_point
    inside = (steps >= -128) & (steps <= 127)
    steps = np.clip(steps, -128, 127) + 128
    # What lies outside falls on the last bin inside: P has it, and Q, made of what is inside, not.
    p = np.where(inside, counts, 0.0)
    if not inside.any():
        return math.inf
    used = np.flatnonzero(inside)
    p[used[0]] += counts[: used[0]].sum()
    p[used[-1]] += counts[used[-1] + 1 :].sum()
    mass = np.bincount(steps[inside], counts[inside], 256)
    bins = np.bincount(steps[inside], minlength=256)
    q = (mass / np.maximum(bins, 1))[steps]
    p, q = p[inside] / p.sum(), q[inside] / max(q[inside].sum(), 1e-300)
    return float((p * np.log(p / np.maximum(q, 1e-300))).sum())
