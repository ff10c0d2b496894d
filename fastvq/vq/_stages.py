"""What quantizers have in common whose codes stand for a sum of codewords, one of each codebook.

The rows that such a fit meets (`ResidualRows`), the codebooks that are best for given codes
(`least_squares`), and what the estimators share. Encoding is in fastvq/_kernels/stages.h.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from fastvq import _threads, kernels
from fastvq._validation import as_codebook, as_codes, as_count, as_rows
from fastvq.vq._base import codebook_dtype
from fastvq.vq._rows import Rows, _ChangedRows, ordered_sum, rows_of, spans
from fastvq.vq._search import Parts

__all__ = [
    "ResidualRows",
    "SumMixin",
    "Training",
    "as_bits",
    "inertia_of",
    "least_squares",
]

# Residuals of fewer bytes are kept, others made anew, block by block, whenever they are read.
_KEPT_BYTES = 1 << 28
_BLOCK_BYTES = 1 << 22

# Beside the weight of an average row: how firmly least squares holds codewords where they were.
# Without it the equations are singular (a vector may move from one codebook to another).
_RIDGE = 1e-3
# Unknowns, up to which the equations are solved by Cholesky decomposition (8 bytes times their
# number squared), and steps of conjugate gradients above.
_MOST_UNKNOWNS = 8192
_GRADIENT_STEPS = 30

MOST_BITS = 16


def as_bits(n_bits, n_stages):
    """Bits of each stage, checked: a tuple of n_stages integers from 1 to 16."""
    bits = [n_bits] * n_stages if np.ndim(n_bits) == 0 else list(n_bits)
    if len(bits) != n_stages:
        raise ValueError(
            f"n_bits must be an integer or {n_stages} of them, one a codebook, got {n_bits!r}"
        )
    bits = tuple(as_count(each, "n_bits") for each in bits)
    if max(bits) > MOST_BITS:
        raise ValueError(f"n_bits must be from 1 to {MOST_BITS}, got {n_bits!r}")
    return bits


class Training(NamedTuple):
    """The rows of a fit: which, their weights, and in what they are worked on."""

    X: np.ndarray
    rows: np.ndarray | None
    weight: np.ndarray | None
    kind: Rows  # knows the scale of the rows
    n_threads: int

    @classmethod
    def of(cls, X, rows, weight, dtype, n_threads):
        kind = rows_of(X, rows, weight, metric="euclidean", dtype=dtype, n_threads=n_threads)
        return cls(X, rows, weight, kind, n_threads)

    @property
    def options(self):
        return {"rows": self.rows, "n_threads": self.n_threads}

    @property
    def exponent(self):
        """Rows are worked on times two to minus this."""
        return getattr(self.kind, "exponent", 0)

    def residuals(self, codebooks, codes):
        """What codes of shape (n, m) leave of the rows, or (n, b, m) of each row b times."""
        rows, weight = self.rows, self.weight
        if codes.ndim == 3:
            n, copies, m = codes.shape
            rows = np.arange(n) if rows is None else rows
            rows = np.repeat(rows, copies)
            weight = np.repeat(np.ones(n) if weight is None else weight, copies) / copies
            codes = codes.reshape(n * copies, m)
        return ResidualRows(
            self.X, rows, weight, codebooks=codebooks, codes=codes, exponent=self.exponent,
            dtype=self.kind.dtype, n_threads=self.n_threads,
        )  # fmt: skip


class ResidualRows(_ChangedRows):
    """Rows less the sums that their codes stand for, times 2**-exponent."""

    def __init__(self, X, rows, weight, *, codebooks, codes, exponent, dtype, n_threads):
        super().__init__(X, rows, weight, dtype=dtype, ordinary=True, n_threads=n_threads)
        self.joined = kernels.join_codebooks(codebooks) if codebooks else None
        self.codes, self.exponent = codes, exponent

    def kept(self):
        """The same rows in memory, where they are not too many."""
        if len(self) * self.n_features * self.dtype.itemsize > _KEPT_BYTES:
            return self
        residuals = np.empty((len(self), self.n_features), self.dtype)
        for span, block in self.pieces():
            residuals[span] = block
        return Rows(residuals, None, self.weight, dtype=self.dtype, n_threads=self.n_threads)

    def subset(self, positions):
        rows = positions if self.rows is None else self.rows[positions]
        weight = None if self.weight is None else self.weight[positions]
        return ResidualRows(
            self.X, rows, weight, codebooks=self.joined, codes=self.codes[positions],
            exponent=self.exponent, dtype=self.dtype, n_threads=self.n_threads,
        )  # fmt: skip

    def take(self, positions):
        rows = Rows.take(self, positions)
        self._subtract(rows, self.codes[positions])
        return rows

    def sums(self, codes, n_codewords):
        sums, counts = np.zeros((n_codewords, self.n_features)), np.zeros(n_codewords)
        for span, block, weight in self.weighted_pieces():
            some = kernels.sums(
                block, codes[span], n_codewords, sample_weight=weight, n_threads=self.n_threads
            )
            sums += some[0]
            counts += some[1]
        return sums, counts

    def weighted_pieces(self):
        for span, block in self.pieces():
            yield span, block, None if self.weight is None else self.weight[span]

    def _change(self, block, first=0):
        self._subtract(block, self.codes[first : first + len(block)])

    def _subtract(self, block, codes):
        if self.joined:
            block -= kernels.decode_sums(codes, self.joined, n_threads=self.n_threads)
        if self.exponent:
            np.ldexp(block, -self.exponent, out=block)

    def release(self, codebook, dtype):
        return super().release(np.ldexp(codebook, self.exponent), dtype)


def inertia_of(training, stages, codes):
    """Weighted squared error of these codes, in the scale in which the rows are worked on."""
    squared = kernels.distances_to_sums(
        training.X, stages.joined, codes, scale=stages.scale, **training.options
    )
    unit = float(np.ldexp(stages.scale, training.exponent))
    return ordered_sum(squared, training.weight) / unit / unit


def least_squares(training, codebooks, codes):
    """Codebooks that leave these rows with these codes the least squared error.

    With B the (n, k) matrix of ones where a row has a code, and w the weights, the step from where
    the codebooks are solves (B'wB + r) step = B'w (x - decoded): B'wB counts how often two codes
    meet, and a small ridge r keeps codewords of no rows in place. The error never rises but for
    rounding. (Martinez et al. 2018, section 3.1, there with r holding codewords near zero.)

    A constant that two codebooks could share in any way goes to the first one, so that decoding
    a prefix of the codes has no bias.
    """
    residuals = training.residuals(codebooks, codes)
    sizes = [len(book) for book in codebooks]
    wanted = _sums_of(residuals, codes, sizes)
    ridge = _RIDGE * residuals.total_weight / len(residuals)
    if sum(sizes) <= _MOST_UNKNOWNS:
        step = _solve(_meetings(codes, sizes, residuals.weight), wanted, ridge)
    else:
        step = _descend(residuals, codes, sizes, wanted, ridge)
    step = np.ldexp(step, residuals.exponent)
    ends = np.cumsum(sizes)
    exact = [
        book.astype(np.float64) + part
        for book, part in zip(codebooks, np.split(step, ends[:-1]), strict=True)
    ]
    for column, book in enumerate(exact[1:], 1):
        counts = np.bincount(codes[:, column], residuals.weight, len(book))
        mean = np.einsum("k,kd->d", counts / counts.sum(), book)
        book -= mean
        exact[0] += mean
    return [Rows.release(residuals, book, codebooks[0].dtype) for book in exact]


def _sums_of(rows, codes, sizes):
    """Weighted sums of the rows of each code, those of all codebooks one after the other."""
    totals = [np.zeros((size, rows.n_features)) for size in sizes]
    for span, block, weight in rows.weighted_pieces():
        for column, total in enumerate(totals):
            total += kernels.sums(
                block, codes[span, column], len(total), sample_weight=weight,
                n_threads=rows.n_threads,
            )[0]  # fmt: skip
    return np.concatenate(totals)


def _meetings(codes, sizes, weight):
    """Weight of the rows in which two codes meet, (k, k) for k codewords of all codebooks."""
    ends = np.cumsum(sizes)
    places = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    table = np.zeros((ends[-1], ends[-1]))
    for i, row in enumerate(places):
        first = codes[:, i].astype(np.intp)
        np.fill_diagonal(table[row, row], np.bincount(first, weight, sizes[i]))
        for j, column in enumerate(places[:i]):
            both = first * sizes[j] + codes[:, j]
            counts = np.bincount(both, weight, sizes[i] * sizes[j])
            table[row, column] = counts.reshape(sizes[i], sizes[j])
            table[column, row] = table[row, column].T
    return table


def _solve(table, wanted, ridge):
    table[np.diag_indices_from(table)] += ridge
    with _threads.one_blas_thread():  # the bits must not depend on threads
        return linalg.solve(table, wanted, assume_a="pos", overwrite_a=True)


def _descend(rows, codes, sizes, wanted, ridge):
    """The same by conjugate gradients, for which B'wB need not be in memory."""
    weight = np.ones(len(rows)) if rows.weight is None else rows.weight
    ends = np.cumsum(sizes)
    diagonal = np.concatenate(
        [np.bincount(codes[:, m], weight, size) for m, size in enumerate(sizes)]
    )
    diagonal = (diagonal + ridge)[:, None]

    def product(step):
        books = kernels.JoinedCodebooks(np.ascontiguousarray(step), ends - sizes, sizes)
        result = np.split(ridge * step, ends[:-1])
        for span in spans(len(codes), max(1, _BLOCK_BYTES // (8 * step.shape[1]))):
            sums = kernels.decode_sums(codes[span], books, n_threads=rows.n_threads)
            for column, total in enumerate(result):
                total += kernels.sums(
                    sums, codes[span, column], len(total), sample_weight=weight[span],
                    n_threads=rows.n_threads,
                )[0]  # fmt: skip
        return np.concatenate(result)

    step, left = np.zeros_like(wanted), wanted.copy()
    direction = left / diagonal
    slope = np.einsum("kd,kd->d", left, direction)
    for _ in range(_GRADIENT_STEPS):
        along = product(direction)
        curve = np.einsum("kd,kd->d", direction, along)
        if not curve.any():
            break
        size = np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
        step += size * direction
        left -= size * along
        scaled = left / diagonal
        before, slope = slope, np.einsum("kd,kd->d", left, scaled)
        turn = np.divide(slope, before, out=np.zeros_like(slope), where=before > 0)
        direction = scaled + turn * direction
    return step


class SumMixin:
    """What both estimators have beside `BaseQuantizer`, which comes after it among their bases.

    They define `_encode`, and `fit`, which ends in `_keep`.
    """

    _compiled_of: ClassVar[tuple[str, ...]] = ("codebooks_",)

    @classmethod
    def from_codebooks(cls, codebooks: Sequence[ArrayLike], **parameters: Any) -> Any:
        """A quantizer with these codewords, made elsewhere: nothing is fitted.

        Parameters
        ----------
        codebooks : sequence of array-like of shape (2**n_bits, n_features)
            In the form of `codebooks_`.
        **parameters
            Any of the class's but the number of codebooks and `n_bits`.

        Returns
        -------
        quantizer : of this class
            Of float64 where a codebook is, else float32; no inertia is known.
        """
        rows = [as_rows(codebook, f"codebooks[{m}]") for m, codebook in enumerate(codebooks)]
        if not rows:
            raise ValueError("codebooks must be at least one, got none")
        dtype = np.result_type(*map(codebook_dtype, rows))
        n_features = rows[0].shape[1]
        books = [as_codebook(each, len(each), n_features, dtype, "codebooks") for each in rows]
        bits = [(len(book) - 1).bit_length() for book in books]
        if any(len(book) != 2**width for book, width in zip(books, bits, strict=True)):
            sizes = ", ".join(str(len(book)) for book in books)
            raise ValueError(f"codebooks must have 2, 4, 8, ... 65536 codewords, got {sizes}")
        as_bits(bits, len(bits))  # 1 to 16
        make: Any = cls  # whose first parameters are these
        quantizer = make(len(books), bits[0] if len(set(bits)) == 1 else bits, **parameters)
        quantizer.n_features_in_ = n_features
        quantizer.inertia_history_, quantizer.n_iter_ = np.empty(0), 0
        quantizer._set_codebooks(books)
        return quantizer

    @property
    def _codebooks(self):
        """The codebooks as a list, in whichever form the attribute is."""
        return list(self.codebooks_)

    @property
    def _code_bits(self):
        return tuple((len(book) - 1).bit_length() for book in self.codebooks_)

    @property
    def _code_range(self):
        return tuple(len(book) for book in self.codebooks_)

    @property
    def _codebook_dtype(self):
        return self.codebooks_[0].dtype

    def _compile(self):
        return kernels.Stages(self.codebooks_)

    def _set_codebooks(self, codebooks):
        same = len({len(book) for book in codebooks}) == 1
        self.codebooks_ = np.stack(codebooks) if same else list(codebooks)
        self._settle()

    def _keep(self, training, codebooks, history, n_iter):
        """Become what a fit ended with."""
        self._set_codebooks(codebooks)
        self.inertia_history_ = training.kind.release_inertia(np.array(history))
        self.inertia_ = float(self.inertia_history_[-1])
        self.n_iter_ = n_iter

    def _memory(self, n_rows, n_features, itemsize):
        n_stages = getattr(self, "n_stages", None) or self.n_codebooks
        bits = as_bits(self.n_bits, n_stages)
        n_codewords = sum(2**each for each in bits)
        width = n_codewords + 16 * n_stages + 48  # padded
        books = 3 * width * n_features * itemsize
        table = width**2 * itemsize
        books += table if table <= kernels.CROSSED_BYTES else 0
        codes = n_rows * n_stages
        residuals = min(n_rows * self.beam_width * n_features * itemsize, _KEPT_BYTES)
        squares = 3 * 8 * min(n_codewords, _MOST_UNKNOWNS) ** 2
        fit = 2 * books + residuals + squares + 12 * codes * self.beam_width + 64 * n_rows
        return fit, books + codes * (9 if max(bits) <= 8 else 10) + (1 << 24)

    def _parts(self):
        return Parts(self._codebooks)

    def _decode(self, codes, out):
        kernels.decode_sums(codes, self._ready().joined, out=out, n_threads=self.n_threads)

    def _squared_error(self, X, weight):
        stages, errors = self._ready(), []

        def add(span):
            codes = self._new_codes(span.stop - span.start)
            self._encode(X[span], codes)
            squared = kernels.distances_to_sums(
                X[span], stages.joined, codes, scale=stages.scale, n_threads=self.n_threads
            )
            errors.append(ordered_sum(squared, None if weight is None else weight[span]))

        self._by_blocks(X, _BLOCK_BYTES // (8 * X.shape[1]), add)
        return sum(errors) / stages.scale / stages.scale

    def _prefix_codes(self, codes):
        """Codes of the first so many stages, checked."""
        n_columns = len(self._code_bits)
        if np.ndim(codes) == 2:
            n_columns = min(max(1, np.shape(codes)[1]), n_columns)
        return as_codes(codes, self._code_range[:n_columns], n_columns)
