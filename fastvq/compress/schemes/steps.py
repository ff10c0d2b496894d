"""Which steps a value is cut into: one size for all of it, or one for each channel.

Where a layer gives a value and only layers read it, each channel may have steps of its own, and a
model that runs does not notice: the layer that gives it has a multiplier for each channel anyway,
and the size of an input's steps goes into the weights that it is multiplied by. A filter that
reads one channel alone loses nothing by it. One that reads them all has weights of less even sizes
then, and they are rounded too: how much of the spread of channels goes into them is chosen by the
noise that both together are expected to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastvq.compress import stats

__all__ = ["Steps", "channel_steps", "wide_scale"]

_SHARES = np.linspace(0, 1, 9)  # of the spread of channels that go into weights
_LEAST = 2.0**-12  # of the largest channel's steps: what is smaller is as good as dead
_HEADROOM = 2.0  # of 16-bit steps, for values larger than the examples'
_MARGIN = 0.5  # of extremes, by the logarithm of how many values they are the extremes of


class Steps(NamedTuple):
    """real = scale · (q − zero_point): both numbers, or arrays (C,) along the last axis."""

    scale: float | np.ndarray
    zero_point: int | np.ndarray

    @property
    def of_channels(self) -> bool:
        return np.ndim(self.scale) > 0 or np.ndim(self.zero_point) > 0

    @property
    def factors(self) -> np.ndarray | None:
        """Scales of channels, that a weight takes in; None where there is one for all."""
        return np.asarray(self.scale, np.float64) if np.ndim(self.scale) else None


def wide_scale(low: float, high: float) -> float:
    """The scale of 16-bit steps around 0 for a range, with headroom."""
    return float(np.float32(max(-low, high, 2.0**-100) * _HEADROOM / 32767))


def channel_steps(
    low, high, n_rows: int, whole: tuple[float, float], power, readers: Sequence[np.ndarray],
    free_zero: bool,
) -> Steps:  # fmt: skip
    """Steps of channels that cover their ranges, for a value that these weights read.

    Parameters
    ----------
    low, high : ndarray (C,)
        The range of each channel.
    n_rows : int
        Of how many values: the fewer, the farther others will lie beyond.
    whole : (float, float)
        The range that one size of steps for all would cover: no channel's goes beyond.
    power : ndarray (C,)
        The mean square of each channel.
    readers : sequence of ndarray (n, taps, C)
        Weights of layers that read all channels.
    free_zero : bool
        Whether each channel may have a zero point of its own.

    Returns
    -------
    steps : Steps
        Of scales (C,); of zero points too where those are free and needed.

    Notes
    -----
    With x cut into steps of size s_c, and weights times s_c rounded to 127 steps of size t_o of
    their row, an output is expected to be off by Σ (s_c w_oc)² / 12 + Σ (t_o x_c / s_c)² / 12.
    What is tried is s_c between the widest channel's size for all and its own for each.
    """
    margin = 1 + _MARGIN / np.log(n_rows + 2)
    low = np.minimum(np.maximum(np.float64(low) * margin, whole[0]), 0)
    high = np.maximum(np.minimum(np.float64(high) * margin, whole[1]), 0)
    signed, count = low.any() and not free_zero, 255
    reach = high - low
    if signed:  # around 0: the wider side counts
        reach, count = 2 * np.maximum(-low, high), 254
    most = reach.max(initial=0)
    if most == 0:
        return Steps(1.0, 0)
    shares = np.maximum(reach / most, _LEAST)
    sizes = [most / count * shares**share for share in _SHARES]
    costs = [_noise(size, power, readers) for size in sizes]
    # Of equals the last: where nobody pays for it steps are as small as they can be.
    best = len(costs) - 1 - int(np.argmin(costs[::-1]))
    scale = np.maximum(sizes[best], 2.0**-126).astype(np.float32)
    if signed:
        return Steps(scale, 0)
    if free_zero:
        return Steps(scale, np.clip(-128 - np.rint(low / scale), -128, 127).astype(np.int8))
    return Steps(scale, -128)


def _noise(scale, power, readers):
    """Expected squared error that steps of an input, and the weights rounded for it, make."""
    total = 0.0
    for weight in readers:
        scaled = np.abs(weight.astype(np.float64)) * scale
        signal = (weight.astype(np.float64) ** 2).sum(axis=(0, 1)) @ power
        step = scaled.max(axis=(1, 2)) / 127
        of_input = (scaled**2).sum()
        of_weight = (step**2).sum() * weight.shape[1] * (power / scale**2).sum()
        total += (of_input + of_weight) / max(signal, 1e-300)
    return total


def whole_steps(seen: stats.Statistics, method: str, symmetric: bool) -> Steps:
    """One size of steps for all of a value, by a calibration method."""
    return Steps(*stats.parameters(*seen.range(method, symmetric), symmetric))
