"""Curves of columns: quantiles as uniform or normal values, splines, isotonic calibration."""

from __future__ import annotations

import numpy as np
from scipy.linalg import block_diag
from scipy.special import ndtri
from sklearn.preprocessing import QuantileTransformer, SplineTransformer

from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    transformer,
)

# ---- quantiles -----------------------------------------------------------------------------------

# scikit-learn's least distance from the probabilities 0 and 1.
_LEAST = float(ndtri(1e-7 - np.spacing(1)))


@transformer(QuantileTransformer)
def quantiles(b, est, columns):
    """The share of training values below, as it is or as the quantile of a normal distribution.

    That is worked out from the smaller of both tails, of which float32 has all digits.
    """
    x = b.plain(columns)
    below = b.curves(x, [_shares(q, est.references_) for q in est.quantiles_.T])
    if est.output_distribution == "uniform":
        return Columns(below, columns.n)
    above = b.curves(x, [_shares(q, 1 - est.references_) for q in est.quantiles_.T])
    z = b.unary("normal_quantile", b.binary("minimum", below, above))
    z = b.add("Unary", z, function="clip", alpha=_LEAST, beta=0.0)
    lower_half = b.binary("less", below, above)
    return Columns(b.add("Where", lower_half, z, b.unary("negative", z)), columns.n)


def _shares(quantiles, references):
    """The curve of one column.

    A value that stands for several quantiles has the mean of the first and the last reference, at
    the ends the outermost; float32 right beside it lies on the lines that lead there.
    """
    points, first = np.unique(quantiles.astype(np.float32), return_index=True)
    low, high = references[first], references[np.append(first[1:], len(references)) - 1]
    middle = (low + high) / 2
    middle[-1], middle[0] = references[-1], references[0]
    xs, ys = [], []
    for i, point in enumerate(points):
        before, after = np.nextafter(point, np.float32([-np.inf, np.inf]))
        if i > 0 and low[i] != middle[i] and before > points[i - 1]:
            xs.append(before), ys.append(low[i])
        xs.append(point), ys.append(middle[i])
        last = i == len(points) - 1
        if high[i] != middle[i] and (last or after < points[i + 1]):
            xs.append(after), ys.append(high[i])
    return xs, ys


# ---- splines -------------------------------------------------------------------------------------


@transformer(SplineTransformer)
def splines(b, est, columns):
    """Bases of B-splines, degree by degree (de Boor, "A Practical Guide to Splines", 1978).

    With a = (x - t_i) / (t_(i+r) - t_i), a basis i of degree r - 1 gives a of itself to basis i of
    degree r, the rest to basis i - 1.
    """
    if getattr(est, "handle_missing", "error") != "error":
        raise UnsupportedEstimator("SplineTransformer with handle_missing='zeros'")
    degree, curves = est.degree, est.bsplines_
    ends = np.array([(s.t[degree], s.t[-degree - 1]) for s in curves]).T
    x = b.plain(columns)
    if est.extrapolation == "periodic":
        low, high = ends
        moved = b.binary("subtract", x, b.real(low))
        inside = b.binary("modulo", moved, b.real(high - low))
        inside = b.binary("add", inside, b.real(low))
    elif est.extrapolation == "continue":
        inside = x
    else:
        inside = b.binary("minimum", b.binary("maximum", x, b.real(ends[0])), b.real(ends[1]))
    y = _bases(b, inside, curves, degree)
    if est.extrapolation == "linear":
        outside = b.binary("subtract", x, inside)
        for end, side in zip(ends, ("minimum", "maximum"), strict=True):
            slopes = [s(at, nu=1)[:, None] for s, at in zip(curves, end, strict=True)]
            part = b.binary(side, outside, b.real(0.0))
            y = b.binary("add", y, b.matrix(part, block_diag(*slopes)))
    kept = [(s.c if est.include_bias else s.c[:, :-1]).T for s in curves]
    n = sum(map(len, kept))
    straight = all(np.array_equal(c, np.eye(c.shape[1])) for c in kept)
    return Columns(y if straight else b.matrix(y, block_diag(*kept)), n)


def _bases(b, x, curves, degree):
    """Values of all bases of all columns; beyond its ends the outermost pieces of each go on."""
    inner = len(curves[0].t) - 2 * degree - 1  # pieces of each curve
    features = np.repeat(np.arange(len(curves)), inner)
    if inner > 1:
        starts = np.concatenate([s.t[degree + 1 : degree + inner] for s in curves])
        begun = b.pick(x, np.repeat(np.arange(len(curves)), inner - 1), len(curves))
        begun = b.as_real(b.binary("greater_equal", begun, b.real(starts)))
        # 1 in the piece that has begun while the next has not.
        one = np.eye(inner, inner - 1, -1) - np.eye(inner, inner - 1)
        constant = np.tile(np.eye(inner)[0], len(curves))
        y = b.matrix(begun, block_diag(*[one] * len(curves)), constant)
    else:
        y = b.matrix(x, np.zeros((len(curves), len(curves))), np.ones(len(curves)))
    for r in range(1, degree + 1):
        count = inner + r - 1
        features = np.repeat(np.arange(len(curves)), count)
        first = degree - r + 1
        low = np.concatenate([s.t[first : first + count] for s in curves])
        high = np.concatenate([s.t[first + r : first + r + count] for s in curves])
        a = Columns(b.pick(x, features, len(curves)), len(features)).affine(low, 1 / (high - low))
        up = b.binary("multiply", b.plain(a), y)
        down = b.binary("subtract", y, up)
        to_up, to_down = np.eye(count + 1, count, -1), np.eye(count + 1, count)
        both = [block_diag(*[m] * len(curves)) for m in (to_up, to_down)]
        y = b.matrix(b.concat([up, down], axis=1), np.hstack(both))
    return y
