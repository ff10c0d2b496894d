"""Entropy-constrained vector quantization: codewords at the price of their codes.

A code of probability p takes −log2 p bits of an entropy coder. With a price λ of a bit, what is
minimised is Σ w·(|x − c|² + λ·length(c)) instead of the inertia (Chou, Lookabaugh & Gray,
"Entropy-constrained vector quantization", IEEE Trans. ASSP 37, 1989), by the same descent: each
row takes the codeword of least cost, codewords move to the means of their rows, and lengths become
−log2 of their shares of the rows. No step raises the cost. A codeword that no row chooses would
have an infinite length, and is gone for good.

The cost is a squared distance in one more dimension, in which rows are 0 and codewords
√(λ·length): so every exact plan of assigning works for it as it stands.
"""

import numpy as np

from fastvq.vq._fit import Outcome
from fastvq.vq._plans import choose

__all__ = ["at_a_price", "fit_rates", "lengths_of"]


def fit_rates(rows, outcome, price, watch, *, max_iter, tol):
    """Go on from a fitted codebook; the outcome, whose history is of costs, and the lengths.

    `price` is that of a bit, in the rows' squared distances. It ends as Lloyd's iterations do;
    ``watch(iteration, codebook, cost)`` may end it, too.
    """
    codebook, counts = outcome.codebook, outcome.counts
    history, assigner = [], None
    while True:
        chosen = counts > 0
        if not chosen.all():
            codebook, counts, assigner = codebook[chosen], counts[chosen], None
        lengths = lengths_of(counts)
        priced = at_a_price(codebook, price * lengths)
        assigner = assigner or choose(rows, priced)
        codes, costs = assigner.step(priced)
        history.append(rows.inertia(costs))
        stopped = watch(len(history) - 1, codebook, history[-1]) or len(history) > max_iter
        if stopped or _settled(history, tol):
            counts = rows.counts(codes, len(codebook))
            return Outcome(codebook, codes, counts, history, len(history) - 1), lengths
        sums, counts = rows.sums(codes, len(codebook))
        codebook = rows.centroids(sums, counts, codebook)


def at_a_price(codebook, prices):
    """Codewords whose squared distance to rows, 0 in the last feature, has the price added."""
    return np.column_stack([codebook, np.sqrt(prices).astype(codebook.dtype)])


def lengths_of(counts):
    """−log2 of each share."""
    return np.log2(counts.sum()) - np.log2(counts)


def _settled(history, tol):
    return len(history) > 1 and history[-2] - history[-1] <= tol * history[-2]
