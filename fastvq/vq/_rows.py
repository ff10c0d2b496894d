"""The rows that a codebook meets, and the kernels on them.

A fit reads its rows through one of these, whatever the metric, and whether it fits all rows or a
sample of them. `Rows` hands the caller's own memory to the kernels, which convert it block by
block. Where the rows must be changed first, `UnitRows` (cosine) and `ScaledRows` (squares that
would overflow or vanish) do it in a scratch block that stays in cache: the input is never copied
whole.

Every result depends on the rows and the codebook alone: sums run in row order, whatever the number
of threads.
"""

from functools import cached_property

import numpy as np
from sklearn.utils.random import sample_without_replacement

from fastvq import kernels
from fastvq._validation import as_count

__all__ = [
    "Rows",
    "ScaledRows",
    "UnitRows",
    "draw_positions",
    "ordered_sum",
    "rows_of",
    "sample_positions",
    "sample_size",
    "spans",
]

# Rows that are gathered or changed are so in blocks of this size: large enough to hide what a call
# costs, small enough for the second-level cache.
_PIECE_BYTES = 1 << 21
_SUM_ROWS = 1 << 16

# Shorter rows than this are scaled before their squares are added up.
_SHORTEST = 2.0**-100
# One divided by the length of such a row overflows float64. (All of float32 but zero is larger.)
_ZERO = 2.0**-1000
# Squared distances of larger values than 2**480 add up to an inertia that float64 cannot hold.
_LARGEST_EXPONENT = 480


def rows_of(X, rows=None, weight=None, *, metric, dtype, codebook=None, n_threads=None):
    """The right kind of rows for `X`: one whose squared distances neither overflow nor vanish.

    `dtype` is that of the codebook to be, and `codebook` holds codewords to compare with, if there
    are some already. Rows of float32 with extreme values are worked on in float64, where their
    squares fit; rows of float64 with extreme values are scaled by a power of two, which is exact.
    """
    if metric == "cosine":
        return UnitRows(X, rows, weight, dtype=dtype, n_threads=n_threads)
    exponent = _extreme_exponent(X, rows, n_threads)
    if codebook is not None and exponent < 0:
        exponent = min(0, max(exponent, _exponent(codebook)))
    if exponent > _LARGEST_EXPONENT:
        raise ValueError(
            f"X holds values of 2**{exponent - 1} and more, whose squared distances overflow "
            "float64: divide X by a constant first"
        )
    if X.dtype == np.float64 and exponent:
        return ScaledRows(X, rows, weight, exponent=exponent, n_threads=n_threads)
    if X.dtype == np.float64 or exponent:
        dtype = np.float64
    return Rows(X, rows, weight, dtype=dtype, ordinary=True, n_threads=n_threads)


def ordered_sum(values, weight=None):
    """Sum of (weighted) values in float64, in an order that depends on their number alone."""
    total = 0.0
    for span in spans(len(values), _SUM_ROWS):
        part = values[span] if weight is None else values[span] * weight[span]
        total += float(part.sum(dtype=np.float64))
    return total


def draw_positions(n, size, rng):
    """`size` of the numbers below `n`, without replacement, ascending."""
    return np.sort(sample_without_replacement(n, size, random_state=rng)).astype(np.intp)


def sample_positions(max_samples, n_rows, rng):
    """Which rows to fit on, ascending; None for all."""
    size = sample_size(max_samples, n_rows)
    return None if size == n_rows else draw_positions(n_rows, size, rng)


def sample_size(max_samples, n_rows):
    """How many rows to fit on: a number of them or, as a float, a share; all where it is None."""
    if max_samples is None:
        return n_rows
    if isinstance(max_samples, (float, np.floating)):
        if not 0 < max_samples <= 1:
            raise ValueError(
                f"max_samples must be an integer, or a float above 0 and up to 1, got {max_samples}"
            )
        max_samples = max(1, round(max_samples * n_rows))
    return min(n_rows, as_count(max_samples, "max_samples"))


def spans(n, step):
    """Consecutive slices of at most `step` that cover `n`."""
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


class Rows:
    """Rows of `X` (all, or the ascending `rows` of it), with their weights.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Of any dtype and strides that the kernels read.
    rows : ndarray of intp, optional
        Which rows of `X`; all where it is None.
    weight : ndarray of float64, optional
        A weight for each of *these* rows.
    dtype : float32 or float64
        What codewords and distances are computed in.
    ordinary : bool
        Whether the largest value is known to be one whose square fits the dtype.
    n_threads : int, optional
    """

    plain = True  # the kernels see the rows of X as they are

    def __init__(self, X, rows=None, weight=None, *, dtype, ordinary=False, n_threads=None):
        self.X = X
        self.rows = rows
        self.weight = weight
        self.dtype = np.dtype(dtype)
        self.ordinary = ordinary
        self.n_threads = n_threads

    def __len__(self):
        return len(self.X if self.rows is None else self.rows)

    @property
    def n_features(self):
        return self.X.shape[1]

    @cached_property
    def total_weight(self):
        return float(len(self)) if self.weight is None else ordered_sum(self.weight)

    def subset(self, positions):
        """The rows at these ascending positions, as an object of the same kind."""
        rows = positions if self.rows is None else self.rows[positions]
        weight = None if self.weight is None else self.weight[positions]
        return self._like(self.X, rows, weight)

    def sample(self, size, rng):
        """`size` of the rows that have weight, or all rows where there are not more."""
        if size >= len(self):
            return self
        if self.weight is None:
            return self.subset(draw_positions(len(self), size, rng))
        heavy = np.flatnonzero(self.weight)
        return self.subset(heavy[draw_positions(len(heavy), min(size, len(heavy)), rng)])

    def pieces(self, n_rows=None):
        """Consecutive blocks (slice, array); an array is valid until the next one is asked for."""
        if self.rows is None and n_rows is None:
            yield slice(0, len(self)), self.X
            return
        for span in spans(len(self), min(n_rows or len(self), self._piece_rows)):
            yield span, self.X[span if self.rows is None else self.rows[span]]

    def take(self, positions):
        """Copies of the rows at these positions, in the dtype of codewords."""
        rows = positions if self.rows is None else self.rows[positions]
        return self.X[rows].astype(self.dtype)

    def admit(self, codewords):
        """Codewords given in the input's scale, as these rows see them."""
        return np.array(codewords, dtype=self.dtype, order="C")

    def release(self, codebook, dtype):
        """Codewords of these rows, in the input's scale and the dtype to keep."""
        with np.errstate(over="ignore"):
            codebook = codebook.astype(dtype, copy=False)
        if not np.isfinite(codebook).all():
            raise ValueError(f"X holds values that a codebook of {np.dtype(dtype)} cannot")
        return codebook

    def releases_unchanged(self, dtype):
        """Whether `release` keeps the bits, so that codes stay those of the codebook."""
        return self.dtype == dtype

    def release_inertia(self, inertia):
        """Squared distances of these rows, in the input's scale."""
        return inertia

    def admit_inertia(self, inertia):
        """Squared distances in the input's scale, as these rows see them."""
        return inertia

    def comparable(self, codebook):
        """The codebook as the kernels can compare all rows with it.

        The kernels scale a codebook of tiny values up and refuse rows that are far larger, but a
        fit may well start among the smallest of its rows. Beside rows of ordinary size, what is
        tiny in float64 is zero.
        """
        book = kernels.widened(self.prepare(codebook))
        tiny = book.scale > 1
        return self.prepare(np.zeros_like(book.codebook)) if tiny and self.ordinary else book

    def prepare(self, codebook, **wishes):
        """The codebook for the kernels; it may have more features than these rows."""
        return kernels.prepare(codebook, n_row_features=self.n_features, **wishes)

    def assign(self, codebook, codes=None, others=None):
        """Nearest codeword of each row: (n,) int32, or the dtype of `codes`.

        `others` is filled with lower bounds of the squared distances to all others.
        """
        book = self.comparable(codebook)
        if others is not None and others.dtype != book.dtype:
            others.fill(0)
            others = None
        return kernels.assign(
            self.X, book, rows=self.rows, codes=codes, others=others, n_threads=self.n_threads
        )

    def project(self, directions):
        """Leading coordinates of each row, for `assign_screened`."""
        return kernels.project(self.X, directions, rows=self.rows, n_threads=self.n_threads)

    def assign_screened(self, codebook, screen, short_rows, guesses, codes, distances=None):
        """What `assign` and `distances` give, found by screening."""
        if codebook.scale != 1:
            self.assign(codebook, codes)
            return codes if distances is None else self.distances(codebook, codes, distances)
        return kernels.assign_screened(
            self.X, codebook, screen, short_rows=short_rows, guesses=guesses, rows=self.rows,
            codes=codes, distances=distances, n_threads=self.n_threads,
        )  # fmt: skip

    def distances(self, codebook, codes, out=None):
        """Squared distance of each row to its codeword, (n,)."""
        book = self.comparable(codebook)
        fits = out is not None and out.dtype == book.dtype and book.scale == 1
        squared = kernels.distances(
            self.X,
            book,
            codes,
            rows=self.rows,
            out=out if fits else None,
            n_threads=self.n_threads,
        )
        if out is None or fits:
            return squared
        out[...] = squared
        return out

    def boxes(self, codes):
        """The rows in boxes of neighbours, first grouped by these codes."""
        X = self.X if self.rows is None else self.take(slice(None))
        return kernels.Boxes(X, codes, dtype=self.dtype, n_threads=self.n_threads)

    def sums(self, codes, n_codewords):
        """Weighted sum (k, d) and weight (k,) of the rows of each codeword, float64."""
        return self._sums(codes, n_codewords, self.weight)

    def centroids(self, sums, counts, codebook):
        """The codebook that these sums give; codewords without a row stay where they are."""
        updated, counts = codebook.copy(), counts[:, None]
        # In float64, and rounded as it is written: no copy of the sums.
        np.divide(sums, counts, out=updated, where=counts > 0, casting="same_kind")
        return updated

    def counts(self, codes, n_codewords):
        """Total weight of the rows of each codeword, (k,) float64."""
        counts = np.zeros(n_codewords)
        for span in spans(len(self), max(_SUM_ROWS, n_codewords)):
            weight = None if self.weight is None else self.weight[span]
            counts += np.bincount(codes[span], weight, minlength=n_codewords)
        return counts

    def inertia(self, distances):
        """Weighted sum of these squared distances."""
        return ordered_sum(distances, self.weight)

    def seed_gains(self, candidates, closest, nearest, reach, nearer):
        """By how much each candidate would lower the potential; fills `nearer` with where.

        Rows that `reach` rules out are not looked at; None where that is not worth it.
        """
        return kernels.seed_gains(
            self.X, candidates, closest, nearest=None if reach is None else nearest, reach=reach,
            nearer=nearer, sample_weight=self.weight, rows=self.rows, n_threads=self.n_threads,
        )  # fmt: skip

    def seed_update(self, candidate, closest, nearer, bit, nearest, code):
        """Adopt a candidate as codeword `code` of the rows where this bit of `nearer` is set."""
        kernels.seed_update(
            self.X, candidate, closest, nearer=nearer, bit=bit, nearest=nearest, code=code,
            rows=self.rows, n_threads=self.n_threads,
        )  # fmt: skip

    def _like(self, X, rows, weight):
        return type(self)(
            X, rows, weight, dtype=self.dtype, ordinary=self.ordinary, n_threads=self.n_threads
        )

    def _sums(self, codes, n_codewords, weight):
        return kernels.sums(
            self.X,
            codes,
            n_codewords,
            sample_weight=weight,
            rows=self.rows,
            n_threads=self.n_threads,
        )

    @property
    def _piece_rows(self):
        return max(16, _PIECE_BYTES // (self.n_features * self.dtype.itemsize))


class _ChangedRows(Rows):
    """Rows that are changed before the kernels see them, one scratch block at a time."""

    plain = False

    def _change(self, block, first=0):
        """Change the rows of `block` in place; `first` is the number of its first row in X."""
        raise NotImplementedError

    @cached_property
    def _scratch(self):
        return np.empty((min(len(self), self._piece_rows), self.n_features), self.dtype)

    def pieces(self, n_rows=None):
        for span, block in self._unchanged_pieces(n_rows):
            self._change(block, span.start)
            yield span, block

    def _unchanged_pieces(self, n_rows=None):
        for span in spans(len(self), min(n_rows or len(self), len(self._scratch))):
            block = self._scratch[: span.stop - span.start]
            block[...] = self.X[span if self.rows is None else self.rows[span]]
            yield span, block

    def take(self, positions):
        rows = super().take(positions)
        self._change(rows)
        return rows

    def admit(self, codewords):
        codebook = super().admit(codewords)
        self._change(codebook)
        return codebook

    def assign(self, codebook, codes=None):
        if codes is None:
            codes = np.empty(len(self), np.int32)
        book = self.comparable(codebook)
        for span, X in self.pieces():
            kernels.assign(X, book, codes=codes[span], n_threads=self.n_threads)
        return codes

    def distances(self, codebook, codes, out=None):
        if out is None:
            out = np.empty(len(self), self.dtype)
        book = self.comparable(codebook)
        for span, X in self.pieces():
            out[span] = kernels.distances(X, book, codes[span], n_threads=self.n_threads)
        return out

    def seed_gains(self, candidates, closest, nearest, reach, nearer):
        if reach is not None:  # changing a row costs as much as comparing it
            some = np.flatnonzero(closest > reach[nearest])
            marks = np.empty((len(nearer), len(some)), np.uint8)
            gains = self.subset(some).seed_gains(candidates, closest[some], None, None, marks)
            nearer.fill(0)
            nearer[:, some] = marks
            return gains
        return sum(
            kernels.seed_gains(
                X, candidates, closest[span], nearer=nearer[:, span],
                sample_weight=None if self.weight is None else self.weight[span],
                n_threads=self.n_threads,
            )
            for span, X in self.pieces()
        )  # fmt: skip

    def seed_update(self, candidate, closest, nearer, bit, nearest, code):
        for span in spans(len(self), _SUM_ROWS):
            won = span.start + np.flatnonzero(nearer[span] & (1 << bit))
            if len(won):
                some = self.subset(won)
                distances = some.distances(candidate[None], np.zeros(len(won), np.int32))
                closest[won] = np.minimum(closest[won], distances)
                nearest[won] = code


class UnitRows(_ChangedRows):
    """Each row divided by its length: the nearest by cosine is then the nearest by Euclid."""

    def _change(self, block, first=0):
        """Also returns the lengths that the rows had, float64."""
        lengths, exponents = self._lengths(block), 0
        if lengths is None:
            exponents = _scale_each(block, first if self.rows is None else None)
            lengths = self._lengths(block)
        block /= lengths[:, None]
        return np.ldexp(lengths.astype(np.float64), exponents)

    def _lengths(self, block):
        """Lengths of these rows, or None where some square may overflow or vanish."""
        try:
            lengths = kernels.row_norms(block, n_threads=self.n_threads)
        except ValueError:
            return None
        return lengths if lengths.min() > _SHORTEST else None

    def sums(self, codes, n_codewords):
        # A weight of w / |x| on the rows as they are gives the sums of the unit rows.
        sums, _ = self._sums(codes, n_codewords, self._weight_by_length)
        return sums, self.counts(codes, n_codewords)

    def centroids(self, sums, counts, codebook):
        lengths = np.linalg.norm(sums, axis=1)
        filled = (counts > 0) & (lengths > 0)
        updated = codebook.copy()
        updated[filled] = sums[filled] / lengths[filled, None]
        return updated

    @cached_property
    def _weight_by_length(self):
        weight = np.empty(len(self))
        for span, block in self._unchanged_pieces():
            weight[span] = 1 / self._change(block, span.start)
        if self.weight is not None:
            weight *= self.weight
        return weight


class ScaledRows(_ChangedRows):
    """Rows of float64 times 2**-exponent, which is exact and brings the largest near 1."""

    def __init__(self, X, rows=None, weight=None, *, exponent, n_threads=None):
        super().__init__(X, rows, weight, dtype=np.float64, ordinary=True, n_threads=n_threads)
        self.exponent = exponent

    def _change(self, block, first=0):
        np.ldexp(block, -self.exponent, out=block)

    def release(self, codebook, dtype):
        return super().release(np.ldexp(codebook, self.exponent), dtype)

    def releases_unchanged(self, dtype):
        return False

    def release_inertia(self, inertia):
        return np.ldexp(inertia, 2 * self.exponent)

    def admit_inertia(self, inertia):
        return np.ldexp(inertia, -2 * self.exponent)

    def sums(self, codes, n_codewords):
        # By way of the weights, so that no product vanishes; 2**1000 is all that they can take.
        step = max(self.exponent, -1000)
        weight = np.ones(len(self)) if self.weight is None else self.weight
        sums, _ = self._sums(codes, n_codewords, np.ldexp(weight, -step))
        return np.ldexp(sums, step - self.exponent), self.counts(codes, n_codewords)

    def _like(self, X, rows, weight):
        return type(self)(X, rows, weight, exponent=self.exponent, n_threads=self.n_threads)


def _extreme_exponent(X, rows, n_threads):
    """The e of the largest value, 2**(e-1) <= |x| < 2**e, where squares may leave the range; or 0.

    NaN and infinity are found on the way.
    """
    whole = Rows(X, rows, dtype=np.float64)
    scales = [kernels.safe_scale(piece, n_threads=n_threads) for _, piece in whole.pieces()]
    return -int(np.log2(min(scales)))


def _exponent(codebook):
    return int(np.frexp(np.abs(codebook).max())[1])


def _scale_each(block, first):
    """Bring the largest value of each row near 1, in place; the powers of two taken out.

    That is exact: a row has the same direction, bit for bit, as it would have without.
    """
    largest = np.abs(block).max(axis=1)
    usable = (largest > _ZERO) & (largest < np.inf)
    if not usable.all():
        bad = int(np.argmin(usable))
        zeros = "a row of zeros, which has no direction (metric='cosine')"
        problem = zeros if largest[bad] <= _ZERO else "NaN or infinity"
        where = "" if first is None else f", first in row {first + bad}"
        raise ValueError(f"Input X contains {problem}{where}")
    exponents = np.frexp(largest)[1]
    np.ldexp(block, -exponents[:, None], out=block)
    return exponents
