"""Search among coded rows, which are never decoded for it.

Codes stand for a sum of codewords, x̂ = Σ_m c_m, and what a query q has to do with x̂ then is a sum
too, of terms that depend on one code each. They are looked up in tables made for the query ("ADC":
Jégou, Douze & Schmid, "Product quantization for nearest neighbor search", TPAMI 2011):

- codewords of different features (product, scalar and plain vector quantizers):
  |q − x̂|² = Σ_m |q_m − c_m|²;
- codewords of all features (residual, additive, binary): |q − x̂|² = |q|² − 2 Σ_m q·c_m + |x̂|²,
  where |x̂|² is known for each row. Both sides are centred first, so that little cancels;
- inner products: q·x̂ = Σ_m q·c_m; and for cosines the rows' 1/|x̂| as a factor.

Tables are taken in the precision of the codewords and added up in float32, code after code: the
value of a row depends on it and on the query alone. Equal values are ordered by row.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastvq import kernels
from fastvq._validation import as_count, as_rows, as_word
from fastvq.vq._rows import spans

__all__ = ["BinaryIndex", "Index", "Parts"]

METRICS = {
    "l2": ("euclidean",),
    "ip": ("inner product", "dot"),
    "cosine": ("cos", "angular"),
}
BINARY_METRICS = {"hamming": (), **METRICS}

_CANDIDATES = 4  # times k rows are ranked again, unless told
_TABLE_BYTES = 1 << 26  # of the tables that exist at a time
_MOST_QUERIES = 256
_ORDINARY = 30  # exponent of values that need no scaling
_SHORT = 16  # codewords whose tables fit a register
_BLOCK_BYTES = 1 << 22


class Parts(NamedTuple):
    """What the codes of a quantizer stand for, as a sum of codewords: one for each column.

    ``codebooks[m]`` of shape (K_m, d_m) is for the features ``subspaces[m]``, none of which are
    shared; or every codebook is for all features, where `subspaces` is None. The features are those
    of rows times `rotation`, an orthogonal matrix, where there is one.
    """

    codebooks: Sequence[NDArray]
    subspaces: Sequence[slice] | None = None
    rotation: NDArray | None = None


class Index:
    """Coded rows, ready to be searched: what `build_index` returns. Threads may share it.

    Attributes
    ----------
    n_rows : int
    n_features : int
        Of queries.
    """

    _metrics = METRICS

    def __init__(self, parts: Parts, codes: NDArray, n_threads: int | None = None) -> None:
        if not len(codes):
            raise ValueError("codes must not be empty: there is nothing to search")
        self._n_threads = n_threads
        self._books = _Books(parts)
        self.n_rows, self.n_features = len(codes), self._books.n_features
        sizes = self._books.sizes
        few = parts.subspaces is not None and max(sizes) <= _SHORT and len(sizes) <= 2048
        self._packed = kernels.pack_short(codes) if few else None
        if not few:
            # A copy: kernels rely on codes that were checked.
            self._coded = kernels.Coded(np.array(codes, order="C"), sizes)

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        metric: str = "l2",
        *,
        rerank: ArrayLike | None = None,
        n_candidates: int | None = None,
        n_threads: int | None = None,
    ) -> tuple[NDArray, NDArray[np.int64]]:
        """The rows that are nearest to each query.

        Parameters
        ----------
        queries : array-like of shape (n_queries, n_features)
        k : int, default=10
            Rows to find for each query; not more than there are.
        metric : {"l2", "ip", "cosine"}, default="l2"
            "l2": the least Euclidean distance to what a code stands for; "ip": the largest inner
            product with it; "cosine": the least 1 − cos, which counts as 1 where a code stands for
            zero.
        rerank : array-like of shape (n_rows, n_features), optional
            The rows themselves (an array on disk, mapped into memory, will do), to rank the best
            candidates by their own distances.
        n_candidates : int, optional
            How many rows are found by their codes and then ranked again; by default 4 k.
        n_threads : int, optional
            By default that of the quantizer.

        Returns
        -------
        distances : ndarray of shape (n_queries, k)
            Best first: Euclidean distances (not squared), inner products, or 1 − cos. In
            the dtype of the codebooks, added up in float32; with `rerank` float64 where those rows
            are, else float32.
        indices : ndarray of int64 of shape (n_queries, k)
            Of equally good rows those of lower number, in ascending order.

        Raises
        ------
        ValueError, TypeError
            For queries that are not finite rows of `n_features` numbers; zero queries with
            "cosine"; `k` or `n_candidates` out of range.

        Notes
        -----
        One look-up for each code and query; with codewords of 16 and fewer in subspaces, sixteen
        rows and more at once. Results do not depend on `n_threads`, or on other queries.
        """
        rows = as_rows(queries, "queries")
        if rows.shape[1] != self.n_features:
            raise ValueError(f"queries must have {self.n_features} features, got {rows.shape[1]}")
        metric = as_word(metric, "metric", self._metrics)
        k = self._as_number(k, "k")
        threads = self._n_threads if n_threads is None else n_threads
        if metric == "cosine" and not kernels.row_norms(rows).all():
            raise ValueError("queries must not be zero with metric='cosine'")
        if rerank is None:
            if n_candidates is not None:
                raise ValueError("n_candidates is of use with rerank only: give the rows")
            return self._find(rows, k, metric, threads)
        originals = self._as_originals(rerank)
        wanted = min(_CANDIDATES * k, self.n_rows) if n_candidates is None else n_candidates
        wanted = self._as_number(wanted, "n_candidates", k)
        candidates = self._find(rows, wanted, metric, threads)[1]
        return _ranked(rows, originals, candidates, k, metric)

    def _as_number(self, value, name, minimum=1):
        value = as_count(value, name, minimum)
        if value > self.n_rows:
            raise ValueError(f"{name} must be at most {self.n_rows}, the rows there are: {value}")
        return value

    def _as_originals(self, rerank):
        originals = as_rows(rerank, "rerank")
        if originals.shape != (self.n_rows, self.n_features):
            raise ValueError(
                f"rerank must hold the rows that were coded, shape "
                f"({self.n_rows}, {self.n_features}), got {originals.shape}"
            )
        return originals

    def _find(self, rows, k, metric, n_threads):
        """Distances and indices by codes alone."""
        results = [
            self._find_some(rows[span], k, metric, n_threads)
            for span in spans(len(rows), self._books.queries_at_once())
        ]
        distances, indices = (np.concatenate(parts) for parts in zip(*results, strict=True))
        return distances, indices

    def _find_some(self, rows, k, metric, n_threads):
        tables, rest, finish = self._books.tables(rows, metric, n_threads)
        scale, offset = self._terms(metric)
        if scale is None and self._packed is not None:
            tables = _widened(tables, self._books.sizes)
            values, indices = kernels.nearest_by_short_tables(
                self._packed, self.n_rows, tables, k, n_threads=n_threads
            )
        else:
            values, indices = kernels.nearest_by_tables(
                self._coded,
                tables,
                self._books.sizes,
                k,
                scale=scale,
                offset=offset,
                n_threads=n_threads,
            )
        distances = finish(values.astype(np.float64) + rest[:, None])
        return distances.astype(self._books.dtype, copy=False), indices

    def _terms(self, metric):
        """Factor and summand of each row, or None and None."""
        if metric == "cosine":
            return self._cosine_terms
        return self._l2_terms if metric == "l2" else (None, None)

    @cached_property
    def _l2_terms(self):
        if self._books.subspaces is not None:
            return None, None
        squares = self._squares(self._books.centred)
        return np.ones(self.n_rows, np.float32), squares.astype(np.float32)

    @cached_property
    def _cosine_terms(self):
        lengths = np.sqrt(self._squares(self._books.codebooks))
        inverse = np.divide(1, lengths, out=np.zeros(self.n_rows), where=lengths > 1e-30)
        return inverse.astype(np.float32), np.ones(self.n_rows, np.float32)

    def _squares(self, codebooks):
        """|x̂|² of all rows, float64."""
        codes, squares = self._coded.codes, np.zeros(self.n_rows)
        for span in spans(self.n_rows, _BLOCK_BYTES // (8 * self.n_features) + 1):
            columns = zip(codebooks, codes[span].T, strict=True)
            if self._books.subspaces is None:
                total = sum(book[column].astype(np.float64) for book, column in columns)
                squares[span] = np.einsum("nd,nd->n", total, total)
            else:
                for book, column in columns:
                    exact = book.astype(np.float64)
                    squares[span] += np.einsum("kd,kd->k", exact, exact)[column]
        return squares

    @cached_property
    def _coded(self):
        """The codes one by one, where they are kept packed."""
        pairs = np.stack([self._packed & 15, self._packed >> 4], axis=2)
        codes = pairs.transpose(0, 3, 1, 2).reshape(-1, 2 * self._packed.shape[1])
        return kernels.Coded(codes[: self.n_rows, : len(self._books.sizes)], self._books.sizes)


class BinaryIndex(Index):
    """The index of a BinaryQuantizer, which knows Hamming distances too."""

    _metrics = BINARY_METRICS

    def __init__(
        self, parts: Parts, codes: NDArray, encode: Callable, n_threads: int | None = None
    ) -> None:
        super().__init__(parts, codes, n_threads)
        self._encode = encode
        self._words = kernels.as_words(self._coded.codes)

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        metric: str = "hamming",
        *,
        rerank: ArrayLike | None = None,
        n_candidates: int | None = None,
        n_threads: int | None = None,
    ) -> tuple[NDArray, NDArray[np.int64]]:
        """As `Index.search`, with one more metric.

        Parameters
        ----------
        queries : array-like of shape (n_queries, n_features)
        k : int, default=10
        metric : {"hamming", "l2", "ip", "cosine"}, default="hamming"
            "hamming": the queries are coded as well, and bits that differ are counted; distances
            are int32. Else the queries stay as they are, and are compared with what the codes stand
            for: slower, and more exact.
        rerank : array-like of shape (n_rows, n_features), optional
            With "hamming", the best candidates are ranked by their Euclidean distances.
        n_candidates : int, optional
        n_threads : int, optional

        Returns
        -------
        distances : ndarray of shape (n_queries, k)
        indices : ndarray of int64 of shape (n_queries, k)
        """
        return super().search(
            queries, k, metric, rerank=rerank, n_candidates=n_candidates, n_threads=n_threads
        )

    def _find(self, rows, k, metric, n_threads):
        if metric != "hamming":
            return super()._find(rows, k, metric, n_threads)
        codes = kernels.as_words(self._encode(rows))
        return kernels.nearest_by_bits(self._words, codes, k, n_threads=n_threads)


class _Books:
    """Codebooks in float32, scaled by a power of two where squares would leave its range."""

    def __init__(self, parts):
        self.subspaces = parts.subspaces
        self.dtype = np.result_type(*{book.dtype for book in parts.codebooks})
        self.sizes = [len(book) for book in parts.codebooks]
        self.scale = _power(max(float(np.abs(book).max()) for book in parts.codebooks))
        self._rotation = None if parts.rotation is None else kernels.Rotation(parts.rotation)
        exact = [np.asarray(book, np.float64) * self.scale for book in parts.codebooks]
        self.codebooks = [book.astype(np.float32) for book in exact]
        if self.subspaces is None:
            self.n_features = parts.codebooks[0].shape[1]
            means = [book.mean(axis=0) for book in exact]
            self._centre = sum(means)
            self.centred = [(b - m).astype(np.float32) for b, m in zip(exact, means, strict=True)]
        else:
            shapes = [book.shape for book in parts.codebooks]
            self.n_features = sum(d for _, d in shapes)
            self._values = np.concatenate([book.ravel() for book in self.codebooks])
            self._places = np.array(
                [(s.start, d, k) for s, (k, d) in zip(self.subspaces, shapes, strict=True)], np.intp
            )

    def queries_at_once(self):
        fitting = _TABLE_BYTES // (4 * sum(self.sizes))
        return min(max(fitting // 8 * 8, fitting, 1), _MOST_QUERIES)

    def tables(self, rows, metric, n_threads):
        """For some queries: tables of what is to be minimised, what to add to sums, and a function
        that makes of these what users see."""
        rows, scale = self._turned(rows, n_threads), self.scale
        rest = np.zeros(len(rows))
        if metric == "l2":
            if self.subspaces is None:
                rows = (rows.astype(np.float64) - self._centre).astype(np.float32)
                rest += kernels.row_norms(rows, squared=True, n_threads=n_threads)
                tables = -2 * kernels.rotate(rows, self._centred_panels, n_threads=n_threads)
            else:
                tables = self._in_subspaces(rows, False, n_threads)
            return tables, rest, lambda values: np.sqrt(np.maximum(values, 0)) / scale
        if self.subspaces is None:
            tables = -kernels.rotate(rows, self._panels, n_threads=n_threads)
        else:
            tables = -self._in_subspaces(rows, True, n_threads)
        if metric == "ip":
            return tables, rest, lambda values: (0 - values) / scale / scale
        tables /= kernels.row_norms(rows, n_threads=n_threads)[:, None]
        return tables, rest, lambda values: np.clip(values, 0, 2)

    def _turned(self, rows, n_threads):
        """Queries in the coordinates of the codewords, as float32 in C order; they are finite."""
        if self._rotation is not None:
            rows = kernels.rotate(rows, self._rotation, n_threads=n_threads)
        if self.scale != 1:
            rows = rows.astype(np.float64) * self.scale
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(rows, np.float32)
        kernels.row_norms(rows, n_threads=n_threads)
        return rows

    def _in_subspaces(self, rows, products, n_threads):
        return kernels.subspace_tables(
            rows, self._values, self._places, products=products, n_threads=n_threads
        )

    @cached_property
    def _panels(self):
        return kernels.Rotation(np.concatenate(self.codebooks).T)

    @cached_property
    def _centred_panels(self):
        return kernels.Rotation(np.concatenate(self.centred).T)


def _power(largest):
    """The power of two to multiply by; 1 unless squares could leave the range of float32."""
    exponent = math.frexp(largest)[1]
    return 1.0 if abs(exponent) <= _ORDINARY else 2.0 ** -max(exponent, -1000)


def _widened(tables, sizes):
    """Tables (n_queries, Σ sizes) as (n_queries, M, 16): the last entry of a short one repeated."""
    starts = np.cumsum([0, *sizes[:-1]])[:, None]
    entries = np.minimum(np.arange(_SHORT), np.array(sizes)[:, None] - 1)
    return tables[:, starts + entries]


def _ranked(queries, originals, candidates, k, metric):
    """The best k candidates of each query, by the rows themselves."""
    distances, indices = [], []
    for query, found in zip(queries, np.sort(candidates, axis=1), strict=True):
        near = _measured(originals[found], query[None], metric)
        best = np.argsort(-near if metric == "ip" else near, kind="stable")[:k]
        distances.append(near[best])
        indices.append(found[best])
    return np.stack(distances), np.stack(indices)


def _measured(rows, query, metric):
    """What `search` returns of rows and one query, in the precision of the rows."""
    dtype = np.float64 if rows.dtype == np.float64 else np.float32
    query = query.astype(dtype, copy=False)
    if metric in ("l2", "hamming"):
        return np.sqrt(kernels.pairwise(rows, query)[:, 0]).astype(dtype)
    products = kernels.rotate(rows, query.T)[:, 0]
    if metric == "ip":
        return products
    lengths = kernels.row_norms(rows).astype(dtype) * kernels.row_norms(query).astype(dtype)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.clip(1 - cosines, 0, 2)
