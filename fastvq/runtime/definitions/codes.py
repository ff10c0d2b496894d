"""Dense layers that multiply with weights of few bits as they are stored.

Levels: rows become bytes, group by group. A weight of :class:`Grouped` or :class:`Codebook` is
whole levels times scales of rows and groups of columns. A row's group is cut into 127 steps on
either side of zero; sums of a group are exact, and are put together in float32, one operation after
the other, so that the bits are the same everywhere:

    y = Σ_g (float32(Σ_k q[k] · level[k]) · (scale_g · 2^exponent)) · step_g + bias.

The row's step comes last: what comes before it stays in range for any row.

Codewords: a weight of :class:`Product` gives in float32 what its blocks' codewords give,

    y = (Σ_b Σ_s x_b · codeword[code_bs]) · scale + bias,

summed over blocks and stages in order; x_b · codeword is the same for all outputs.
"""

from __future__ import annotations

import numpy as np

from fastvq.runtime.codebook import Codebook
from fastvq.runtime.coded import Coded
from fastvq.runtime.definitions.integers import _bounded
from fastvq.runtime.grouped import Grouped
from fastvq.runtime.ops import operator
from fastvq.runtime.product import Product

__all__ = ["has_levels", "has_tables", "levels_fit", "levels_of", "quantized_groups"]

_MOST_LEVEL = 127
_WIDEST = 1 << 16  # columns of a group: 127 · 255 each, in 32 bits


def has_levels(weight) -> bool:
    """Whether a weight is whole levels with a float16 scale for every row and group."""
    if not isinstance(weight, (Grouped, Codebook)) or weight.leading != 1 or len(weight.shape) != 2:
        return False
    if isinstance(weight, Codebook) and (
        weight.per != "tensor" or weight.codewords.dtype != np.int8
    ):
        return False
    return (
        weight.scales is not None
        and weight.scales.dtype == np.float16
        and len(weight.scales) == weight.n_rows
        and 0 not in weight.shape
        and (weight.group or weight.width) <= _WIDEST
    )


def has_tables(weight) -> bool:
    """Whether a weight is codewords by codes of up to 8 bits, with at most a scale for each row."""
    return (
        isinstance(weight, Product)
        and weight.leading == 1
        and len(weight.shape) == 2
        and 0 not in weight.shape
        and weight.bits <= 8
        and (weight.scales is None or weight.n_groups == 1)
    )


def by_tables(x, weight):
    """Rows (m, width) times a weight of which `has_tables` is true: (m, n_out) float32."""
    books = weight.codewords.astype(np.float32)
    stages, _, d = books.shape
    blocks = -(-weight.width // d)
    cut = np.zeros((len(x), blocks * d), np.float32)
    cut[:, : weight.width] = x
    tables = np.einsum("mbi,ski->mbsk", cut.reshape(len(x), blocks, d), books)
    codes = weight.row_codes(0, weight.n_rows).reshape(weight.n_rows, blocks, stages)
    total = np.zeros((len(x), weight.n_rows), np.float32)
    for b, s in np.ndindex(blocks, stages):
        total += tables[:, b, s, codes[:, b, s]]
    return total if weight.scales is None else total * weight.float_scales()[:, 0]


def levels_fit(weight) -> bool:
    """Whether levels lie within 7 bits of each other: those that kernels multiply."""
    if isinstance(weight, Codebook):
        return int(np.ptp(weight.codewords.astype(np.int64))) <= _MOST_LEVEL
    return (1 << weight.bits) - 1 <= _MOST_LEVEL


def levels_of(weight: Coded, first=0, stop=None) -> np.ndarray:
    """The levels of some rows, (n, width) of int16: what values are before they are scaled."""
    stop = weight.n_rows if stop is None else stop
    codes = weight.row_codes(first, stop)
    if isinstance(weight, Codebook):
        return weight.codewords[0].astype(np.int16)[codes]
    points = weight.points(first, stop).astype(np.int16)
    return codes.astype(np.int16) - weight._spread(points)


def quantized_groups(x, size):
    """Rows (m, width) in groups of `size`: whole numbers (m, n, size), and their steps (m, n).

    A group with NaN or infinity has the step NaN, and zeros.
    """
    m, width = x.shape
    n = -(-width // size)
    cut = np.zeros((m, n * size), np.float32)
    cut[:, :width] = x
    cut = cut.reshape(m, n, size)
    finite = np.isfinite(cut).all(axis=2)
    cut = np.where(finite[:, :, None], cut, np.float32(0))
    steps = np.maximum(np.abs(cut).max(axis=2, initial=0) / np.float32(127), np.float32(2.0**-126))
    q = np.rint(np.clip(cut * (np.float32(1) / steps)[:, :, None], -127, 127)).astype(np.int16)
    return q, np.where(finite, steps, np.float32(np.nan))


@operator("CodedDense", weights=(1,), encoded=(1,))
def coded_dense(x, weight, bias=None, *, activation="identity", alpha=0.0, beta=0.0):
    """Dense layer that multiplies with a weight of few bits as it is stored.

    x (..., n_in) float32; weight (n_out, n_in) of which `has_levels` or `has_tables` is true; bias
    float32.
    """
    if has_tables(weight):
        y = by_tables(x.reshape(-1, x.shape[-1]), weight)
        y = y if bias is None else y + bias
        return _bounded(y.reshape(*x.shape[:-1], -1), activation, alpha, beta)
    if not has_levels(weight):
        raise ValueError("weight must be int8 levels with float16 scales, of few bits")
    size = weight.group or weight.width
    q, steps = quantized_groups(x.reshape(-1, x.shape[-1]), size)
    total = np.zeros((len(q), weight.n_rows), np.float32)
    levels, scales = levels_of(weight), weight.float_scales()
    for g in range(q.shape[1]):
        part = levels[:, g * size : (g + 1) * size]
        # In float64, exactly: sums stay below 2^53.
        sums = q[:, g, : part.shape[1]].astype(np.float64) @ part.T.astype(np.float64)
        real = sums.astype(np.float32) * scales[:, g]
        total += real * steps[:, g, None]
    y = total if bias is None else total + bias
    return _bounded(y.reshape(*x.shape[:-1], -1), activation, alpha, beta)


@coded_dense.shape
def _(x, weight, bias=None, *, activation="identity", **_):
    if x.dtype != np.float32 or weight.dtype != np.float32:
        raise ValueError(f"x and weight must be float32, got {x.dtype} and {weight.dtype}")
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {x.shape} does not go with a weight {weight.shape}")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != np.float32):
        raise ValueError(f"bias must be float32 of shape {weight.shape[:1]}, got {bias.shape}")
    if activation not in ("identity", "relu", "clip"):
        raise ValueError(f"activation must be identity, relu or clip, got {activation!r}")
    return (*x.shape[:-1], weight.shape[0]), np.float32
