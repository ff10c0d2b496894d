"""Levels anywhere: a codebook of single values for a tensor, or for each row or group of columns.

Of a codebook for all rows, scales of groups make one shape out of many; scales and codewords are
fitted in turns, the codewords as the exact optimum for numbers (`fastvq.kernels.optimal_codebook`).
A codebook of whole numbers within 7 bits is what runs fast: codes are looked up and multiplied in
registers. Its rounding costs some 0.1 dB at 4 bits (step of the codewords 2.7/63 of a Gaussian's
deviation: 1.5e-4 of its variance, beside an error of 95e-4).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastvq import kernels
from fastvq.compress.compensation import output_error, refitted_codewords
from fastvq.compress.schemes.grids import Grid, Groups, ScaledGrid, inverse
from fastvq.runtime.bits import packed_size
from fastvq.runtime.codebook import Codebook

__all__ = ["CodebookScheme"]

_ROUNDS = 4
_SAMPLE = 1 << 18  # values that a shared codebook is fitted to: it has up to 256 codewords
# From the least to the largest codeword: in 7 bits after rounding. Of 2 bits in 5, which need fewer
# instructions in registers: rounding costs 0.1 % of their error.
_SPREAD, _NARROW = 126, 30


class CodebookScheme(NamedTuple):
    """A codebook with up to 2**bits codewords.

    Attributes
    ----------
    bits : int from 1 to 8
    group : int
        Columns of a group; 0: the whole row. With `per` "tensor" each has a scale.
    per : {"tensor", "row", "group"}
        What has a codebook of its own. Those of rows or groups have float32 codewords, no scales.
    """

    bits: int = 4
    group: int = 64
    per: str = "tensor"

    def nbytes(self, n_rows, width) -> int:
        """Bytes of a weight of this form; of one codebook."""
        n_rows, groups = round(n_rows), Groups(width, self.group)
        return packed_size(n_rows * width, self.bits) + 2 * n_rows * groups.n + (1 << self.bits)

    def fit(self, matrix, importance=None) -> Grid:
        groups = Groups(matrix.shape[1], self.group)
        if self.per == "tensor":
            return _SharedFit(self, groups, matrix, importance).grid()
        return _OwnGrid(self, groups, _own_codebooks(self, groups, matrix, importance))


# ---- one codebook, scales of groups --------------------------------------------------------------


class _SharedFit:
    def __init__(self, scheme, groups, matrix, importance):
        self._scheme, self._groups, self._matrix = scheme, groups, matrix
        self._weights = groups.weights(importance)
        self._count = 1 << scheme.bits
        self._scales = groups.by_rows(matrix, self._deviations)
        self._choose_sample()

    def grid(self):
        for _ in range(_ROUNDS):
            self._fit_codewords()
            self._fit_scales()
        self._fit_codewords()
        spread = _SPREAD if self._scheme.bits > 2 else _NARROW
        whole = np.float64(spread) / max(float(np.ptp(self._codewords)), 1e-30)
        whole = min(whole, 127 / max(float(np.abs(self._codewords).max()), 1e-30))
        self._codewords = np.rint(self._codewords * whole)
        self._scales = self._scales / whole
        self._fit_scales()
        return _SharedGrid(self._scheme, self._groups, self._codewords, self._scales)

    def _deviations(self, cut):
        total = inverse(self._weights.sum(axis=1))
        return np.sqrt((cut.astype(np.float64) ** 2 * self._weights).sum(axis=2) * total)

    def _choose_sample(self):
        """Values at even steps through the matrix, their groups, and what their errors weigh."""
        n = self._matrix.size
        places = np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64))
        rows, columns = np.divmod(places, max(self._groups.width, 1))
        self._places = rows, columns // self._groups.size
        self._sampled = self._matrix[rows, columns].astype(np.float64)
        self._counts = self._weights[columns // self._groups.size, columns % self._groups.size]

    def _fit_codewords(self):
        scales = self._scales[self._places]
        used = scales != 0
        if not used.any():
            self._codewords = np.zeros(1)
            return
        scaled = self._sampled[used] / scales[used]
        weights = self._counts[used] * scales[used] ** 2
        weights *= inverse(weights.max())
        self._codewords = kernels.optimal_codebook(scaled, self._count, sample_weight=weights)

    def _fit_scales(self):
        """By least squares for the codes that values have; no scale that fits worse is taken."""
        self._scales = self._groups.by_rows(self._matrix, self._better_scales, self._scales)

    def _better_scales(self, cut, scales):
        cut = cut.astype(np.float64)
        levels = self._levels(cut, scales)
        weighted = levels * self._weights
        above, below = (weighted * cut).sum(axis=2), (weighted * levels).sum(axis=2)
        other = above * inverse(below)
        better = self._errors(cut, other) < self._errors(cut, scales)
        return np.where(better & (other > 0), other, scales)

    def _levels(self, cut, scales):
        return self._codewords[nearest_codes(self._codewords, cut * inverse(scales)[:, :, None])]

    def _errors(self, cut, scales):
        found = self._levels(cut, scales) * scales[:, :, None]
        return ((found - cut) ** 2 * self._weights).sum(axis=2)


class _SharedGrid(ScaledGrid):
    def __init__(self, scheme, groups, codewords, scales):
        super().__init__(groups, scales)
        self._scheme, self._codewords = scheme, np.unique(codewords).astype(np.int8)

    def nearest(self, first, values):
        scales = self._groups.spread(self._scales, first, values.shape[1])
        return nearest_codes(self._codewords.astype(np.float64), values * inverse(scales))

    def levels(self, first, codes):
        return self._codewords.astype(np.float32)[codes]

    def tensor(self, shape, codes, leading=1):
        return Codebook.of(
            codes.reshape(shape), self._codewords[None], bits=self._scheme.bits,
            group=self._groups.group, scales=self._halves, exponent=self._exponent,
            leading=leading,
        )  # fmt: skip


def nearest_codes(codewords, values):
    """Number of the nearest of ascending codewords for each value, of two the lower."""
    middles = (codewords[1:] + codewords[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8)


# ---- codebooks of rows, or of groups of columns --------------------------------------------------


def _own_codebooks(scheme, groups, matrix, importance):
    """(n, 2**bits) float32: the best for the values of each row, or of each group of columns."""
    counts = groups.weights(importance).reshape(-1)[: groups.width]
    if scheme.per == "row":
        parts = [(row, counts) for row in matrix]
    else:
        cuts = [slice(g * groups.size, (g + 1) * groups.size) for g in range(groups.n)]
        parts = [
            (matrix[:, cut].ravel(), np.tile(counts[cut], len(matrix))) for cut in cuts
        ]  # fmt: skip
    found = [
        kernels.optimal_codebook(values.astype(np.float32), 1 << scheme.bits, sample_weight=weights)
        for values, weights in parts
    ]
    return np.array(found, np.float32)


class _OwnGrid(Grid):
    def __init__(self, scheme, groups, codebooks):
        self._scheme, self._groups, self._codebooks = scheme, groups, codebooks

    def nearest(self, first, values):
        codes = np.empty(values.shape, np.uint8)
        if self._scheme.per == "row":
            for i, book in enumerate(self._codebooks):
                codes[i] = nearest_codes(book.astype(np.float64), values[i])
            return codes
        for g, columns in self._columns(first, values.shape[1]):
            book = self._codebooks[g].astype(np.float64)
            codes[:, columns] = nearest_codes(book, values[:, columns])
        return codes

    def values(self, first, codes):
        if self._scheme.per == "row":
            return np.take_along_axis(self._codebooks, codes.astype(np.intp), axis=1)
        values = np.empty(codes.shape, np.float32)
        for g, columns in self._columns(first, codes.shape[1]):
            values[:, columns] = self._codebooks[g][codes[:, columns]]
        return values

    def refit(self, codes, matrix, gram, kept=None):
        """By least squares, where codewords stay in their order and keep the outputs better."""
        size = self._codebooks.shape[1]
        numbers = codes.astype(np.intp) + size * self._owners(codes.shape)
        free, matrix = np.ones(codes.shape), matrix.astype(np.float64)
        if kept is not None:
            places, values = kept
            free[places] = 0
            matrix[places] -= values

        def spread(books):
            return books.ravel()[numbers] * free

        def gathered(values):
            sums = np.bincount(numbers.ravel(), (values * free).ravel(), self._codebooks.size)
            return sums.reshape(self._codebooks.shape)

        before = self._codebooks
        moved = refitted_codewords(matrix, before, spread, gathered, gram).astype(np.float32)
        ordered = (np.diff(moved, axis=1) >= 0).all(axis=1)[:, None]
        moved = np.where(ordered, moved, before)
        errors = [output_error(matrix, spread(books), gram) for books in (before, moved)]
        if self._scheme.per == "row":
            self._codebooks = np.where((errors[1] < errors[0])[:, None], moved, before)
        elif errors[1].sum() < errors[0].sum():
            self._codebooks = moved

    def _owners(self, shape):
        """Which codebook each value has."""
        if self._scheme.per == "row":
            return np.arange(shape[0])[:, None]
        return np.arange(shape[1])[None] // self._groups.size

    def _columns(self, first, count):
        of_column = np.arange(first, first + count) // self._groups.size
        return [(g, of_column == g) for g in np.unique(of_column)]

    def tensor(self, shape, codes, leading=1):
        return Codebook.of(
            codes.reshape(shape), self._codebooks, bits=self._scheme.bits, per=self._scheme.per,
            group=self._groups.group if self._scheme.per == "group" else 0, leading=leading,
        )  # fmt: skip
