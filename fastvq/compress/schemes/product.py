"""Short vectors of neighbouring weights as the numbers of codewords, in one stage or several.

Codewords and codes are chosen to keep what a layer gives: errors weigh as much as the squares of
what the layer reads in their column. Codewords are fitted by k-means under those weights, which
differ from block to block: a row's block goes to the codeword with the least Σ h (x − c)², and a
codeword moves to the weighted mean, feature by feature. Once all blocks have their codes, least
squares move the codewords by what a layer gives, as far as moments of its inputs are known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastvq import kernels
from fastvq.compress.compensation import output_error, refitted_codewords
from fastvq.compress.schemes.grids import Grid, Groups, inverse
from fastvq.runtime.product import Product
from fastvq.vq import VectorQuantizer

__all__ = ["ProductScheme"]

_ITERATIONS = 8  # of weighted k-means after the unweighted fit
_FITTED = 1 << 17  # blocks that codewords are seeded with


class ProductScheme(NamedTuple):
    """Blocks of `d` columns by codebooks of 2**bits codewords.

    Attributes
    ----------
    d : int
    bits : int from 1 to 12
    stages : int
        Codewords that are added up for a block: bits · stages / d bits a weight.
    """

    d: int = 8
    bits: int = 8
    stages: int = 1

    def fit(self, matrix, importance=None) -> Grid:
        groups = Groups(matrix.shape[1], self.d)
        blocks = Groups(groups.n * self.d, self.d)  # as many whole blocks
        weights = np.zeros(blocks.width)
        weights[: groups.width] = groups.weights(importance).reshape(-1)[: groups.width]
        scales = _row_scales(matrix, weights[: groups.width])
        rest = _cut(matrix * inverse(scales), self.d)
        weights, heights = weights.reshape(-1, self.d), scales[:, 0].astype(np.float64) ** 2
        heights *= inverse(heights.max(initial=0))
        books = []
        for _ in range(self.stages):
            book = _fitted(rest, weights, heights, 1 << self.bits)
            rest = rest - book[_assigned(rest, weights, book)]
            books.append(book)
        return _ProductGrid(self, books, scales, weights)


def _row_scales(matrix, weights):
    """The weighted deviation of each row, float32 (n_rows, 1)."""
    square = (matrix.astype(np.float64) ** 2 * weights).sum(axis=1) * inverse(weights.sum())
    return np.sqrt(square).astype(np.float32)[:, None]


def _as_stored(books):
    """Codewords as float16 has them."""
    most = float(np.finfo(np.float16).max)
    return np.clip(books, -most, most).astype(np.float16).astype(np.float32)


def _cut(matrix, d, dtype=np.float32):
    """(n_rows, width) as (n_rows, n_blocks, d), zeros at the end."""
    n = -(-matrix.shape[1] // d)
    padded = np.zeros((len(matrix), n * d), dtype)
    padded[:, : matrix.shape[1]] = matrix
    return padded.reshape(len(matrix), n, d)


def _fitted(blocks, weights, heights, n_codewords):
    """Codewords float32 (k, d) for blocks (n_rows, n_blocks, d), by weighted k-means."""
    flat = blocks.reshape(-1, blocks.shape[2])
    chosen = np.unique(np.linspace(0, len(flat) - 1, min(len(flat), _FITTED)).astype(np.int64))
    mean = weights.mean(axis=1)
    counts = (heights[:, None] * mean).reshape(-1)[chosen]
    if not counts.any():
        counts = None
    k = min(n_codewords, len(np.unique(flat[chosen], axis=0)))
    quantizer = VectorQuantizer(k, max_iter=10, random_state=0)
    book = quantizer.fit(flat[chosen], sample_weight=counts).codebook_.astype(np.float32)
    for _ in range(_ITERATIONS):
        codes = _assigned(blocks, weights, book)
        book = _means(blocks, weights, heights, codes, book)
    return book


def _assigned(blocks, weights, book):
    """The codeword with the least weighted error for each block: (n_rows, n_blocks)."""
    codes = np.empty(blocks.shape[:2], np.uint16)
    for b, weight in enumerate(np.sqrt(weights).astype(np.float32)):
        codes[:, b] = kernels.assign(blocks[:, b] * weight, book * weight)
    return codes


def _means(blocks, weights, heights, codes, book):
    """Weighted means of the blocks with each code, feature by feature; a lonely one stays."""
    k, d = book.shape
    flat = codes.reshape(-1)
    moved = book.copy()
    for f in range(d):
        weight = (heights[:, None] * weights[:, f]).reshape(-1)
        total = np.bincount(flat, weight, k)
        sums = np.bincount(flat, weight * blocks[:, :, f].reshape(-1), k)
        moved[:, f] = np.where(total > 0, sums * inverse(total), book[:, f])
    return moved


class _ProductGrid(Grid):
    def __init__(self, scheme, books, scales, weights):
        self.step = scheme.d
        self._scheme, self._weights, self._scales = scheme, weights, scales
        room = max(map(len, books))
        padded = [np.pad(book, ((0, room - len(book)), (0, 0)), mode="edge") for book in books]
        self._books = _as_stored(padded)

    def nearest(self, first, values):
        rest = _cut(values * inverse(self._scales), self.step)
        at = first // self.step
        weights = self._weights[at : at + rest.shape[1]]
        codes = []
        for book in self._books:
            codes.append(_assigned(rest, weights, book))
            rest = rest - book[codes[-1]]
        return np.stack(codes, axis=2)

    def values(self, first, codes):
        return self._summed(self._books, codes) * self._scales

    def _summed(self, books, codes):
        """What codes stand for before rows are scaled."""
        found = books[0][codes[:, :, 0]]
        for stage in range(1, codes.shape[2]):
            found = found + books[stage][codes[:, :, stage]]
        return found.reshape(len(codes), -1)

    def refit(self, codes, matrix, gram, kept=None):
        """By least squares, if codewords in float16 keep the outputs better for it."""
        width, n_codewords = matrix.shape[1], self._books.shape[1]
        before = self._books

        def spread(books):
            return self._summed(books, codes)[:, :width] * self._scales

        def gathered(values):
            cut = _cut(values * self._scales, self.step, np.float64)
            return np.array([
                [np.bincount(codes[:, :, stage].ravel(), part.ravel(), n_codewords)
                 for part in np.moveaxis(cut, 2, 0)]
                for stage in range(len(before))
            ]).swapaxes(1, 2)  # fmt: skip

        moved = refitted_codewords(matrix, before, spread, gathered, gram)
        self._books = _as_stored(moved)
        errors = [output_error(matrix, spread(b), gram).sum() for b in (before, self._books)]
        if not errors[1] < errors[0]:
            self._books = before

    def tensor(self, shape, codes, leading=1):
        return Product.of(
            shape, codes, self._books.astype(np.float16), bits=self._scheme.bits,
            scales=self._scales, leading=leading,
        )  # fmt: skip
