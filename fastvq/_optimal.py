"""The exact one-dimensional codebook: which price per codeword buys the number that is wanted.

Let C_k be the least Σ w·(x − c)² that k codewords reach. In one dimension every codeword serves a
segment of the sorted values, and the cost of a segment has Monge's property; hence C_k is convex in
k (Aggarwal, Schieber & Tokuyama, "Finding a minimum-weight k-link path in graphs with the concave
Monge property and applications", 1994), and each k is the best number at *some* price per codeword
(Grønlund et al., "Fast exact k-means, k-medians and Bregman divergence clustering in 1D", 2017).
The best cut for a given price takes O(n log n) at worst, and hardly more than n steps on most data
(`_kernels/optimal.pyx`); about ten prices are tried.

Where C is straight around k, no price singles k out: the cheapest cuts for that price include one
with fewer segments and one with more. Two such are spliced into one of exactly k segments, which
costs the same by Monge's property.
"""

from typing import NamedTuple

import numpy as np

from fastvq._kernels import load

__all__ = ["Cut", "Values", "optimal_codebook", "optimal_cut"]

# Positions that one call of the kernel takes: some 0.1 s at most.
_CALL = 1 << 18
# Two costs that differ by less, relative to the larger, are taken for equal: rounding of the sums
# over segments that the kernel compares.
_ROUNDING = 2.0**-45


def optimal_codebook(distinct, weight, n_codewords):
    """The best codewords (float64) for more distinct values, ascending, and their weights."""
    if len(distinct) >= 1 << 31:
        raise ValueError(f"values must have less than 2**31 distinct ones, got {len(distinct)}")
    values = Values(distinct, weight)
    return values.released(optimal_cut(values, n_codewords))


class Cut(NamedTuple):
    """Distinct sorted values cut into segments."""

    starts: np.ndarray  # (k,) int32, ascending from 0: where segments begin
    cost: float  # Σ w·(x − mean of its segment)²
    means: np.ndarray  # (k,) float64

    @property
    def n(self):
        return len(self.starts)


class Values:
    """Distinct values in ascending order with their weights, as the kernel reads them.

    They are centred and brought near 1 by a power of two, so that squares neither overflow nor
    vanish.
    """

    def __init__(self, values, weight=None):
        self.values = np.asarray(values, np.float64)
        low, high = self.values[0], self.values[-1]
        self.centre = low / 2 + high / 2
        self.exponent = int(np.frexp(high - self.centre)[1])
        centred = np.ldexp(self.values - self.centre, -self.exponent)
        weight = np.empty(0) if weight is None else np.ascontiguousarray(weight, np.float64)
        self.sums = np.empty((len(centred) + 1, 6))
        load("optimal").prefix_sums(centred, weight, self.sums)

    def __len__(self):
        return len(self.values)

    def cut_at(self, starts):
        """The cut with segments that begin there."""
        starts = np.ascontiguousarray(starts, np.int32)
        means = np.empty(len(starts))
        cost = load("optimal").measure(self.sums, starts, means)
        return Cut(starts, cost, means)

    def released(self, cut):
        """The means of a cut in the scale of the values: never beside their segment's range."""
        means = np.ldexp(cut.means, self.exponent) + self.centre
        ends = np.append(cut.starts[1:], len(self)) - 1
        return np.clip(means, self.values[cut.starts], self.values[ends])


def optimal_cut(values, n_segments):
    """The cut of `Values` into `n_segments` segments that costs least.

    `n_segments` is from 1 to the number of values.
    """
    bracket = _Bracket(values, n_segments)
    search = _Search(values)
    # What the k-th codeword is worth for values spread evenly from -1 to 1.
    price = 2 * values.sums[-1, 0] / (3 * n_segments**3)
    while (found := bracket.found()) is None:
        guessed = bracket.low < price < bracket.high and bracket.many.n - bracket.few.n > 2
        price = price if guessed else bracket.chord()
        cut = search.cheapest(price)
        if not guessed and not bracket.has_below(cut):
            few, many = bracket.few.starts, bracket.many.starts
            return values.cut_at(_spliced(few, many, n_segments, len(values)))
        bracket.narrow(cut, price)
        price = bracket.guess(cut, price)
    return found


class _Bracket:
    """Two cuts with no more and no fewer segments than wanted, and prices at which they win."""

    def __init__(self, values, n_segments):
        self.wanted = n_segments
        self.few, self.many = values.cut_at([0]), values.cut_at(np.arange(len(values)))
        self.high, self.low = np.inf, 0.0
        self._misses = 0  # times in a row that a cut had too few segments; negative: too many

    def found(self):
        return next((cut for cut in (self.few, self.many) if cut.n == self.wanted), None)

    def chord(self):
        """The price at which both cuts cost the same: it finds the cut between, if there is one."""
        return (self.few.cost - self.many.cost) / (self.many.n - self.few.n)

    def has_below(self, cut):
        """Whether a cut lies below the straight line from one to the other, rounding aside."""
        if not self.few.n < cut.n < self.many.n:
            return False
        line = self.few.cost - (cut.n - self.few.n) * self.chord()
        return cut.cost < line - _ROUNDING * self.few.cost

    def narrow(self, cut, price):
        """Take a cut that is cheapest at a price."""
        if cut.n <= self.wanted:
            self.high = min(self.high, price)
            self.few = cut if cut.n > self.few.n else self.few
            self._misses = max(self._misses, 0) + 1
        if cut.n >= self.wanted:
            self.low = max(self.low, price)
            self.many = cut if cut.n < self.many.n else self.many
            self._misses = min(self._misses, 0) - 1

    def guess(self, cut, price):
        """A price for the number wanted, taken for a power of it.

        C_k falls about as 1/k² (Panter & Dite, "Quantization distortion in pulse-count modulation
        with nonuniform spacing of levels", 1951), and so the price of the k-th codeword as 1/k³;
        between two known prices the power follows from them. Misses on one side make us aim beyond
        the mark, to have it between two close cuts.
        """
        power = 3.0
        if 0 < self.low < self.high < np.inf and self.few.n < self.many.n:
            power = np.log(self.high / self.low) / np.log(self.many.n / self.few.n)
        beyond = np.sign(self._misses) * (2 ** min(abs(self._misses) - 1, 30) - 1)
        return price * (cut.n / max(self.wanted + beyond, 1)) ** power


class _Search:
    """The kernel with its memory."""

    def __init__(self, values):
        n = len(values)
        self._values = values
        self._best = np.empty(n + 1)
        self._before, self._place, self._since = np.empty((3, n + 1), np.int32)

    def cheapest(self, price):
        """The cut that costs least where each segment costs `price` besides."""
        n, ends = len(self._values), np.zeros(2, np.int32)
        for start in range(1, n + 1, _CALL):
            load("optimal").cut(
                self._values.sums, price, start, min(start + _CALL, n + 1), self._best,
                self._before, self._place, self._since, ends,
            )  # fmt: skip
        starts = self._place[:n]  # the queue is done with
        n_segments = load("optimal").path(self._before, starts)
        return self._values.cut_at(starts[n - n_segments :].copy())


def _spliced(few, many, n_segments, n):
    """A cut of exactly `n_segments` segments, made of the beginning of one and the end of another.

    Both are cheapest at one price; a < k < b are their numbers of segments. With u the places of
    the longer cut and v those of the shorter, there is an i with v_i ≤ u_{i+k−a} and
    u_{i+k−a+1} ≤ v_{i+1}: by Monge's property, changing over from u to v there, and the remaining
    halves joined, cost no more than the two cuts did. So each of them is cheapest too.
    """
    extra = n_segments - len(few)
    v, u = np.append(few, n), np.append(many, n)[extra:]
    i = int(np.argmax(u[1 : len(v)] <= v[1:]))
    return np.concatenate([many[: i + extra + 1], few[i + 1 :]])
