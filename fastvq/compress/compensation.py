"""Rounding of weights in which later inputs make up for what rounding earlier ones did.

Weights are rounded input by input. What rounding input j adds to a layer's output is taken back, as
far as least squares can, by the inputs that are still to be rounded: for inputs x with the second
moments H = E[x xᵀ], the error that counts is tr((W − Q) H (W − Q)ᵀ), not the size of W − Q.

How a column becomes what can be stored is the caller's: steps of a row, steps of a group, the
codewords of a codebook, or several columns at a time as one codeword. The walk is GPTQ's (Frantar
et al., "GPTQ: Accurate post-training quantization for generative pre-trained transformers", ICLR
2023), after Hassibi and Stork's "Optimal Brain Surgeon" (1993). What it needs of the inputs is
:class:`Gram`, gathered batch by batch and exactly: its sums do not depend on batches or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg import lapack, solve_triangular
from threadpoolctl import threadpool_limits

__all__ = [
    "Gram", "certain_shift", "compensated", "compensated_groups", "output_error",
    "refitted_codewords", "refitted_scales", "rounded_again",
]  # fmt: skip

# Of the mean of the diagonal. GPTQ has 0.01, which believes examples more than they are worth:
# MobileNetV2 at 4.25 bits has 14.1 dB by it on photographs of another kind, 14.3 by 0.1, 14.5 by
# 0.3; MiniLM in 14 MB a cosine of 0.99843, 0.99840 and 0.99836.
_DAMPING = 0.1
_PASSES = 2  # over the groups of a weight whose scales are fitted
_DIRECTIONS = 12  # in which codewords are moved: more gain under a hundredth of the error
_BLOCK = 32  # columns between two updates of all that is still to come: 128 take twice the time
_STEPS = 127
_LEAST = 2.0**-126  # step of an input: float32 has its inverse
_EXACT = 1024  # rows whose products of 127 · 127 stay below 2^24, exact in float32 in any order


class Gram:
    """Second moments of a layer's inputs, streamed in constant memory.

    Each input is cut into steps of 1/127 of its reach, and products of steps are summed as whole
    numbers: in float32, which BLAS is fast at, for as many rows as stay exact. So the sums are
    those of any other division into batches, of any number of threads and any BLAS.

    Parameters
    ----------
    reach : array-like (..., k)
        The largest size of each input; what goes beyond is cut off. Groups of inputs that are never
        multiplied with each other lie along the first dimensions.

    Attributes
    ----------
    n_rows : int

    Notes
    -----
    k² numbers of memory. The steps add a twelfth of their square to the diagonal, as integer inputs
    of a layer do; off it they add nothing, in the mean.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.compress.compensation import Gram
    >>> rows = np.array([[1.0, -1.0], [0.5, 1.0]], np.float32)
    >>> gram = Gram(np.abs(rows).max(axis=0))
    >>> gram.add(rows)
    >>> gram.mean().round(2)
    array([[ 0.63, -0.25],
           [-0.25,  1.  ]])
    """

    def __init__(self, reach):
        reach = np.asarray(reach, np.float64)
        self._step = np.where(reach > 0, np.maximum(reach / _STEPS, _LEAST), 1.0)
        self._sums = np.zeros((*reach.shape, reach.shape[-1]), np.int64)
        self.n_rows = 0

    def add(self, rows):
        """Take in rows (..., m, k) of finite float32."""
        inverse = (1 / self._step).astype(np.float32)[..., None, :]
        for start in range(0, rows.shape[-2], _EXACT):
            steps = np.rint(rows[..., start : start + _EXACT, :] * inverse)
            np.clip(steps, -_STEPS, _STEPS, out=steps)
            self._sums += (np.swapaxes(steps, -1, -2) @ steps).astype(np.int64)
        self.n_rows += rows.shape[-2]

    def mean(self) -> np.ndarray:
        """E[x xᵀ], (..., k, k) float64; zeros if there were no rows."""
        unit = self._step[..., :, None] * self._step[..., None, :]
        return self._sums * unit / max(self.n_rows, 1)


def compensated(
    weight,
    gram,
    rounding: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    parts: Sequence[np.ndarray] | None = None,
    damping: float = _DAMPING,
    ordered: bool = True,
) -> np.ndarray:
    """Round a matrix of weights, errors made up for by what is rounded later.

    Parameters
    ----------
    weight : ndarray (n, k)
        A row for each output.
    gram : ndarray (k, k)
        E[x xᵀ] of the inputs, up to a factor. It may be singular.
    rounding : callable
        ``rounding(values, columns)`` gives what is stored in place of `values` (n, b) float64, the
        present weights of these `columns` (b,), in the same form. Called once for each part.
    parts : sequence of ndarray of int, optional
        Columns that are rounded together, each in one part. None: each by itself.
    damping : float
        Of the mean of the diagonal, added to it: how far the moments are mistrusted. Where they are
        singular all the same it is raised tenfold until they are not.
    ordered : bool
        Whether parts with the strongest inputs come first, as nothing makes up for the last.

    Returns
    -------
    rounded : ndarray (n, k) of float64
        What `rounding` gave, column for column.

    Raises
    ------
    ValueError
        If shapes do not go together, values are not finite, or a column is not in one part.

    Notes
    -----
    Inputs that are always 0 are rounded as they are, and make up for nothing. O(n k² + k³); the
    same bits at any number of threads.

    Examples
    --------
    Whole numbers, for two inputs that are nearly the same: one error takes back the other.

    >>> import numpy as np
    >>> from fastvq.compress.compensation import compensated
    >>> gram = np.array([[1.0, 0.99], [0.99, 1.0]])
    >>> compensated(np.array([[0.4, 0.4]]), gram, lambda values, columns: np.rint(values))
    array([[0., 1.]])
    """
    with threadpool_limits(1, user_api="blas"):  # the bits must not depend on threads
        return _compensated(weight, gram, rounding, parts, damping, ordered)


def compensated_groups(weights, grams, rounding, *, damping: float = _DAMPING) -> np.ndarray:
    """`compensated` of groups of rows that have inputs of their own, as filters of channels do.

    Parameters
    ----------
    weights : ndarray (g, n, k)
    grams : ndarray (g, k, k)
    rounding : callable
        As for `compensated`; with the values (g, n) of a column of every group, and which columns
        those are, (g,): each group has its own order.
    damping : float

    Returns
    -------
    rounded : ndarray (g, n, k) of float64
    """
    weights, grams = np.array(weights, np.float64), np.asarray(grams, np.float64)
    g, _, k = weights.shape
    if grams.shape != (g, k, k):
        raise ValueError(f"weights {weights.shape} and grams {grams.shape} do not go together")
    _check_finite(weights, grams)
    with threadpool_limits(1, user_api="blas"):
        if g == 1:
            one = _compensated(
                weights[0], grams[0], lambda v, c: rounding(v.T, c).T, None, damping, True
            )
            return one[None]
        order = np.argsort(-np.einsum("gii->gi", grams), axis=1, kind="stable")
        grams = np.take_along_axis(grams, order[:, :, None], axis=1)
        grams = np.take_along_axis(grams, order[:, None, :], axis=2)
        factors = np.stack([_inverse_factor(gram, damping) for gram in grams])
    weights = np.take_along_axis(weights, order[:, None, :], axis=2)
    rounded = np.empty_like(weights)
    for j in range(k):
        rounded[:, :, j] = rounding(weights[:, :, j], order[:, j])
        errors = (weights[:, :, j] - rounded[:, :, j]) / factors[:, j, j, None]
        weights[:, :, j + 1 :] -= errors[:, :, None] * factors[:, None, j, j + 1 :]
    np.put_along_axis(weights, order[:, None, :], rounded, axis=2)
    return weights


def _check_finite(weight, gram):
    if not (np.isfinite(weight).all() and np.isfinite(gram).all()):
        raise ValueError("weight and gram must be finite")


def _compensated(weight, gram, rounding, parts, damping, ordered):
    weight, gram = np.array(weight, np.float64), np.asarray(gram, np.float64)
    k = weight.shape[-1]
    if weight.ndim != 2 or gram.shape != (k, k):
        raise ValueError(f"weight {weight.shape} and gram {gram.shape} do not go together")
    _check_finite(weight, gram)
    parts = _in_order(parts, np.diagonal(gram), ordered)
    order = np.concatenate([*parts, np.empty(0, np.intp)])
    if len(order) != k or (np.sort(order) != np.arange(k)).any():
        raise ValueError(f"parts must hold each of {k} columns once")
    factor = _inverse_factor(gram[np.ix_(order, order)], damping)
    rounded = np.empty_like(weight)
    rounded[:, order] = _walked(weight[:, order], factor, parts, rounding)
    return rounded


def refitted_scales(weight, levels, scales, gram, size, *, damping: float = _DAMPING):
    """Scales of groups of columns that keep a layer's outputs best, for levels that stay.

    Least squares of E[((w − s l) · x)²], one group after the other, each as the others are then.

    Parameters
    ----------
    weight, levels : ndarray (n, k)
    scales : ndarray (n, ceil(k / size))
        Where to begin.
    gram : ndarray (k, k)
    size : int
        Columns of a group.

    Returns
    -------
    scales : ndarray of float64

    Notes
    -----
    O(n k²) for each of two passes; the same bits at any number of threads.
    """
    levels, scales = np.asarray(levels, np.float64), np.array(scales, np.float64)
    k = levels.shape[1]
    gram = gram + damping * np.trace(gram) / max(k, 1) * np.eye(k)
    with threadpool_limits(1, user_api="blas"):
        rest = np.asarray(weight, np.float64) - levels * np.repeat(scales, size, axis=1)[:, :k]
        pull = rest @ gram
        for _ in range(_PASSES):
            for g in range(scales.shape[1]):
                columns = slice(g * size, (g + 1) * size)
                part = levels[:, columns]
                power = np.einsum("nk,nk->n", part @ gram[columns, columns], part)
                along = np.einsum("nk,nk->n", part, pull[:, columns])
                step = np.divide(along, power, out=np.zeros_like(along), where=power > 0)
                scales[:, g] += step
                pull -= (step[:, None] * part) @ gram[columns]
    return scales


def refitted_codewords(
    weight, codewords, spread: Callable[[np.ndarray], np.ndarray],
    gathered: Callable[[np.ndarray], np.ndarray], gram, *, damping: float = _DAMPING,
) -> np.ndarray:  # fmt: skip
    """Codewords that keep a layer's outputs best, for codes that stay.

    Least squares of E[((w - q) · x)²] by conjugate gradients (Hestenes and Stiefel, 1952): what
    codes make of codewords is linear in these. No step makes the error larger.

    Parameters
    ----------
    weight : ndarray (n, k)
    codewords : ndarray
        Where to begin.
    spread : callable
        ``spread(codewords)`` gives the weights that they stand for, (n, k).
    gathered : callable
        Its transpose: ``gathered(values)``, of (n, k), has for each number in the codewords the sum
        of the values that it has a part in.
    gram : ndarray (k, k)

    Returns
    -------
    codewords : ndarray of float64

    Notes
    -----
    O(n k²) for each of a dozen steps; the same bits at any number of threads.
    """
    codewords, k = np.array(codewords, np.float64), len(gram)
    gram = gram + damping * np.trace(gram) / max(k, 1) * np.eye(k)
    with threadpool_limits(1, user_api="blas"):
        pull = gathered((np.asarray(weight, np.float64) - spread(codewords)) @ gram)
        step, size = pull, (pull**2).sum()
        for _ in range(_DIRECTIONS):
            pushed = gathered(spread(step) @ gram)
            power = (step * pushed).sum()
            if not power > 0 or not np.isfinite(size / power):
                break
            codewords = codewords + size / power * step
            pull = pull - size / power * pushed
            before, size = size, (pull**2).sum()
            step = pull + size / before * step
    return codewords


def rounded_again(
    weight, rounded, gram, rounding: Callable[[np.ndarray, int], np.ndarray], *,
    damping: float = _DAMPING,
) -> np.ndarray:  # fmt: skip
    """Round every column once more, for what all the others have become.

    GPTQ rounds a column for those that are rounded already and for exact ones behind; when it is
    done those behind are not exact any more. With all others fixed, the error of an output is a
    parabola in one weight: the level nearest to its lowest point is the best, and no step makes the
    error larger (coordinate descent: Behdin et al., "QuantEase: Optimization-based quantization
    for language models", 2023).

    Parameters
    ----------
    weight, rounded : ndarray (n, k)
    gram : ndarray (k, k)
    rounding : callable
        ``rounding(values, column)`` gives the levels nearest to values (n,).

    Returns
    -------
    rounded : ndarray (n, k) of float64

    Notes
    -----
    O(n k²); the same bits at any number of threads.
    """
    gram, k = np.asarray(gram, np.float64), gram.shape[1]
    gram = gram + damping * np.trace(gram) / max(k, 1) * np.eye(k)
    now = np.array(np.asarray(rounded, np.float64).T, order="C")
    if not (np.diagonal(gram) > 0).all():  # nothing is read
        return now.T
    with threadpool_limits(1, user_api="blas"):
        pull = gram @ (np.asarray(weight, np.float64).T - now)
        for first in range(0, k, _BLOCK):
            block = slice(first, min(first + _BLOCK, k))
            inside, here = gram[block, block], pull[block].copy()
            moved = np.empty_like(here)
            for j in range(len(here)):
                found = rounding(now[first + j] + here[j] / inside[j, j], first + j)
                moved[j] = found - now[first + j]
                now[first + j] = found
                here[j + 1 :] -= inside[j + 1 :, j, None] * moved[j]
            pull -= gram[:, block] @ moved
    return now.T


def output_error(weight, rounded, gram) -> np.ndarray:
    """E[((w − q) · x)²] of each output, (n,) float64."""
    error = np.asarray(rounded, np.float64) - weight
    with threadpool_limits(1, user_api="blas"):
        return np.einsum("nk,nk->n", error @ gram, error)


def certain_shift(weight, rounded, mean, variance, groups=1) -> np.ndarray:
    """What rounding adds to the mean of each output: (rounded - weight) · mean of the inputs.

    Biases take it back (Nagel et al., "Data-free quantization through weight equalization and bias
    correction", ICCV 2019), where it is certain: 0 where it lies within two standard errors of 0,
    as one value far out makes a mean that no other row has anything of.

    Parameters
    ----------
    weight, rounded : ndarray (n_out, *taps, C / groups)
    mean, variance : ndarray (C,)
        Of the examples' mean of each input channel, and how uncertain that is
        (:class:`fastvq.compress.stats.Statistics`).
    groups : int

    Returns
    -------
    shift : ndarray (n_out,) of float64
        0 where the channels are not those of the weight.
    """
    n_out, n_in = weight.shape[0], weight.shape[-1]
    if len(mean) != n_in * groups:
        return np.zeros(n_out)
    error = (rounded.astype(np.float64) - weight).reshape(n_out, -1, n_in).sum(axis=1)
    mean, variance = (
        a.reshape(groups, n_in).repeat(n_out // groups, axis=0) for a in (mean, variance)
    )
    shift = (error * mean).sum(axis=1)
    return np.where(shift**2 > 4 * (error**2 * variance).sum(axis=1), shift, 0.0)


def _in_order(parts, strength, ordered):
    """The parts as arrays, those with the strongest inputs first, of equals the first."""
    if parts is None:
        parts = np.arange(len(strength))[:, None]
    parts = [np.asarray(part, np.intp).ravel() for part in parts]
    parts = [part for part in parts if part.size]
    if not ordered:
        return parts
    if any(part.min() < 0 or part.max() >= len(strength) for part in parts):
        raise ValueError(f"parts must hold each of {len(strength)} columns once")
    means = [strength[part].mean() for part in parts]
    return [parts[i] for i in np.argsort(np.negative(means), kind="stable")]


def _inverse_factor(gram, damping):
    """U, upper triangular, with UᵀU the inverse of the damped moments.

    With rows and columns in reverse order the factor L of H gives R, upper, H = R Rᵀ; U is R⁻¹.
    """
    gram = gram.copy()
    diagonal = np.einsum("ii->i", gram)
    mean = diagonal.mean() if len(diagonal) else 0.0
    diagonal[diagonal <= 0] = mean or 1.0  # of an input that is always 0; the rest of its row is 0
    while True:
        diagonal += damping * (mean or 1.0)
        try:
            lower = np.linalg.cholesky(gram[::-1, ::-1])
            break
        except np.linalg.LinAlgError:
            damping = max(10 * damping, 1e-8)
    upper = lower[::-1, ::-1]
    return lapack.dtrtri(upper)[0]


def _walked(weight, factor, parts, rounding):
    """Round the columns of `weight`, which lie in the order of the parts.

    Columns are worked on as rows of memory: twice as quick.
    """
    weight = np.ascontiguousarray(weight.T)
    rounded = np.empty_like(weight)
    for block in _blocks(parts):
        first, last = block[0][0].start, block[-1][0].stop
        errors = np.empty((last - first, weight.shape[1]))
        for here, columns in block:
            values = weight[here].T
            rounded[here] = rounding(values, columns).T
            error = _divided(values - rounded[here].T, factor[here, here]).T
            errors[here.start - first : here.stop - first] = error
            weight[here.stop : last] -= factor[here, here.stop : last].T @ error
        weight[last:] -= factor[first:last, last:].T @ errors
    return rounded.T


def _blocks(parts):
    """Runs of parts of about _BLOCK columns, each part as (where it lies, which columns it is)."""
    block, first, at = [], 0, 0
    for part in parts:
        block.append((slice(at, at + len(part)), part))
        at += len(part)
        if at - first >= _BLOCK:
            yield block
            block, first = [], at
    if block:
        yield block


def _divided(error, factor):
    """error · factor⁻¹, factor upper triangular."""
    if factor.shape == (1, 1):
        return error / factor[0, 0]
    return solve_triangular(factor, error.T, trans="T", lower=False).T
