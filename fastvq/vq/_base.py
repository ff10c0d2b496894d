"""What all quantizers share: scikit-learn's conventions, around a codebook of any kind.

A quantizer derives from `BaseQuantizer`, fits inside ``with self._all_or_nothing():``, and defines

- ``_code_bits``: the bits of each code of a row, in order (a VectorQuantizer has one code), and
  ``_code_range``: the number of values that a code can have, one for all or one for each;
- ``_codebook_dtype``: the dtype of what codes stand for;
- ``_encode(rows, codes)``: the codes of checked rows, written into an array;
- ``_decode(codes, out)``: what checked codes stand for, written into an array;
- ``fit``, and ``partial_fit`` where the method allows it;
- ``_memory(n_rows, n_features, itemsize)``: the bytes of `memory_estimate`, for codewords of so
  many bytes a number;
- ``_parts()``: what codes stand for, as a sum of codewords, for `search` (see `_search.Parts`);
- ``_compile()``: what is made of fitted arrays once, for this CPU, and ``_compiled_of``: the names
  of what that reads. A fit calls ``_settle()`` when these are in place, and the methods above take
  what was made from ``_ready()``.

What it can do better than by encoding and decoding, it overrides (``_squared_error``). Private
state that a fit leaves and `save` must keep, it lists in ``_saved``.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from fastvq import kernels
from fastvq._validation import as_bytes, as_codes, as_count, as_out, as_rows, as_weights
from fastvq.vq._rows import ordered_sum, spans
from fastvq.vq._search import Index

__all__ = [
    "BaseQuantizer",
    "MemoryEstimate",
    "code_bits",
    "code_dtype",
    "codebook_dtype",
    "column_names",
    "packed_size",
    "random_state_of",
]

_BLOCK_BYTES = 1 << 22  # of rows in flight where work goes block by block


class MemoryEstimate(NamedTuple):
    """Bytes that calls need beside their input."""

    fit: int  # at its peak, with what stays
    transform: int  # at its peak, with the codes


class BaseQuantizer(TransformerMixin, BaseEstimator):
    """Base class of the quantizers."""

    _saved: ClassVar[tuple[str, ...]] = ()
    # Fitted attributes (arrays, lists of arrays), and parameters that are numbers or text.
    _compiled_of: ClassVar[tuple[str, ...]] = ()

    # These steer a call and say nothing about rows: no metadata to route.
    __metadata_request__fit: ClassVar = {"callback": UNUSED}
    __metadata_request__transform: ClassVar = {"out": UNUSED}
    __metadata_request__inverse_transform: ClassVar = {"codes": UNUSED, "out": UNUSED}

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __getstate__(self):
        # What is made from the codebook for this CPU is left out, and made again when loaded.
        state = dict(super().__getstate__())
        state.pop("_compiled", None)
        return {**state, "_fastvq_version": _version()}

    def __setstate__(self, state):
        state = dict(state)
        pickled_by = state.pop("_fastvq_version", "unknown")
        if pickled_by != _version():
            warnings.warn(
                f"{type(self).__name__} was pickled by fastvq {pickled_by} and is loaded by "
                f"{_version()}: if it behaves oddly, fit it again",
                UserWarning,
                stacklevel=2,
            )
        super().__setstate__(state)
        if "code_size_" in vars(self):
            self._keep_compiled()

    def transform(self, X: ArrayLike, out: NDArray | None = None) -> NDArray:
        """Encode rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        out : ndarray of shape (n_samples, n_codes), optional
            Where to write, of exactly the dtype of the result and in C order.

        Returns
        -------
        codes : ndarray of shape (n_samples, n_codes)
            In the smallest unsigned dtype that holds them. Codes are labels, not quantities:
            ``codes * 256`` raises or wraps around in so small a dtype.
        """
        rows = self._checked(X)
        codes = self._new_codes(len(rows), out)
        self._encode(rows, codes)
        return codes

    def inverse_transform(self, codes: ArrayLike, out: NDArray | None = None) -> NDArray:
        """The vectors that codes stand for.

        Parameters
        ----------
        codes : array-like of integers of shape (n_samples, n_codes)
        out : ndarray of shape (n_samples, n_features), optional
            Where to write, of exactly the dtype of the result and in C order.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)

        Raises
        ------
        ValueError, TypeError
            For numbers that are no codes of this quantizer.
        """
        check_is_fitted(self)
        rows = as_codes(codes, self._code_range, len(self._code_bits))
        out = as_out(out, (len(rows), self.n_features_in_), self._codebook_dtype)
        self._decode(rows, out)
        return out

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray:
        """Names of the columns that `transform` gives.

        Parameters
        ----------
        input_features : array-like of str, optional
            Checked against the names that `fit` saw.

        Returns
        -------
        names : ndarray of str objects
            ``productquantizer0``, ``productquantizer1``, ...
        """
        check_is_fitted(self)
        _check_feature_names_in(self, input_features)
        return column_names(self, len(self._code_bits))

    def distortion(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Mean over the rows of their squared distance to what their code stands for.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        distortion : float
            Σ w·Σ_f (x_f − x̂_f)² / Σ w.
        """
        rows = self._checked(X)
        weight = as_weights(sample_weight, len(rows))
        error = self._squared_error(rows, weight)
        return error / (len(rows) if weight is None else float(weight.sum()))

    def score(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Minus the distortion, so that more is better.

        A mean, where scikit-learn's KMeans.score gives the negative *sum*: scores of samples of
        different sizes compare.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        score : float
        """
        return -self.distortion(X, sample_weight)

    def encode_blocks(
        self, blocks: ArrayLike | Iterable[ArrayLike], out: NDArray | None = None
    ) -> NDArray:
        """Codes of more rows than fit in memory.

        Parameters
        ----------
        blocks : ndarray or memmap of shape (n_samples, n_features), or iterable of arrays
            All rows, read block by block, or blocks of rows in order.
        out : ndarray or memmap of shape (n_samples, n_codes), optional
            Where the codes go, in the dtype that `transform` gives; needed only where the codes
            themselves are too many for memory. From an iterable it may be longer than needed.

        Returns
        -------
        codes : ndarray of shape (n_samples, n_codes)
            `out`, or the part of it that was filled.
        """
        check_is_fitted(self)
        if hasattr(blocks, "shape"):
            rows = self._checked(blocks)
            out = self._new_codes(len(rows), out)
            n_rows = _BLOCK_BYTES // (rows.shape[1] * rows.itemsize)
            self._by_blocks(rows, n_rows, lambda span: self._encode(rows[span], out[span]))
            return out
        return self._encode_iterable(blocks, out)

    def pack(self, codes: ArrayLike) -> NDArray[np.uint8]:
        """Codes as bytes: `code_size_` of them a row, bits lowest first, as faiss packs.

        Parameters
        ----------
        codes : array-like of integers of shape (n_samples, n_codes)

        Returns
        -------
        packed : ndarray of uint8 of shape (n_samples, code_size_)
            The codes of a row one after the other, without gaps; the last byte is filled with
            zero bits.
        """
        check_is_fitted(self)
        bits = self._code_bits
        rows = as_codes(codes, self._code_range, len(bits))
        packed = np.empty((len(rows), self.code_size_), np.uint8)
        n_threads = getattr(self, "n_threads", None)
        for span in spans(len(rows), _BLOCK_BYTES // len(bits) + 1):
            block = np.ascontiguousarray(rows[span], code_dtype(bits))
            packed[span] = kernels.pack_codes(block, bits, n_threads=n_threads)
        return packed

    def unpack(self, packed: NDArray[np.uint8] | bytes) -> NDArray:
        """The codes that `pack` made these bytes of.

        Parameters
        ----------
        packed : ndarray of uint8 of shape (n_samples, code_size_), or bytes

        Returns
        -------
        codes : ndarray of shape (n_samples, n_codes)
            In the dtype that `transform` gives.

        Raises
        ------
        ValueError
            Where the bytes hold a number that is no code of this quantizer.
        """
        check_is_fitted(self)
        bits = self._code_bits
        rows = as_bytes(packed, self.code_size_)
        rows, n_threads = np.ascontiguousarray(rows), getattr(self, "n_threads", None)
        codes = kernels.unpack_codes(rows, bits, code_dtype(bits), n_threads=n_threads)
        return as_codes(codes, self._code_range, len(bits), name="packed codes")

    def memory_estimate(
        self, n_samples: int, n_features: int, dtype: DTypeLike = np.float32
    ) -> MemoryEstimate:
        """About how much memory `fit` and `transform` take for so many rows, at most.

        Nothing needs to be fitted, and nothing is allocated: parameters and sizes decide.

        Parameters
        ----------
        n_samples, n_features : int
        dtype : dtype, default=float32
            Of the rows; they are not counted, whatever it is, unless it must be converted: float32,
            float64, float16, 8-bit integers and bool are read as they are.

        Returns
        -------
        estimate : MemoryEstimate
            ``estimate.fit`` and ``estimate.transform``, in bytes.
        """
        n_samples, n_features = as_count(n_samples, "n_samples"), as_count(n_features, "n_features")
        given = np.zeros((1, 1), dtype)
        read = as_rows(given)
        copied = 0 if np.shares_memory(given, read) else n_samples * n_features * read.itemsize
        fit, transform = self._memory(n_samples, n_features, 8 if read.dtype == np.float64 else 4)
        return MemoryEstimate(int(fit + copied), int(transform + copied))

    def save(self, path: str | os.PathLike) -> None:
        """Write this quantizer to a file, from which `fastvq.load` makes it again, bit for bit.

        The file is a safetensors container (`fastvq.container`) with the parameters, the fitted
        attributes and a checksum of everything. It takes the place of `path` once it is whole: a
        crash or a full disk leaves what was there. It holds no code: a class of yours that derives
        from a quantizer of fastvq is found by its name, and must be imported before loading.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        NotFittedError
            Where there is nothing to save yet.
        ValueError
            For a parameter that is no number, text or array, such as a function as `init`: replace
            it first. A RandomState or Generator is kept in the state that it is in. Arrays in any
            form (lists aside) come back as NumPy arrays.
        OSError
            Where the file cannot be written.
        """
        from fastvq.vq import _saving  # which knows all quantizers, and so this module

        _saving.save(self, path)

    def build_index(self, codes: ArrayLike) -> Index:
        """An index of coded rows, to be searched many times.

        Parameters
        ----------
        codes : array-like of integers of shape (n_samples, n_codes)

        Returns
        -------
        index : Index
            With a method ``search(queries, k=10, metric="l2")``. It has a copy of the codes.

        Raises
        ------
        ValueError, TypeError
            For numbers that are no codes of this quantizer, and for no codes at all.
        """
        check_is_fitted(self)
        return self._index(as_codes(codes, self._code_range, len(self._code_bits)))

    def search(
        self, queries: ArrayLike, codes: ArrayLike, k: int = 10, **options: Any
    ) -> tuple[NDArray, NDArray[np.int64]]:
        """The coded rows that are nearest to each query, by an index that is used once.

        Parameters
        ----------
        queries : array-like of shape (n_queries, n_features)
        codes : array-like of integers of shape (n_samples, n_codes)
        k : int, default=10
        **options
            As for the index's `search`: `metric`, `rerank`, `n_candidates`, `n_threads`.

        Returns
        -------
        distances : ndarray of shape (n_queries, k)
        indices : ndarray of int64 of shape (n_queries, k)
        """
        return self.build_index(codes).search(queries, k, **options)

    def _index(self, codes):
        return Index(self._parts(), codes, self.n_threads)

    @contextlib.contextmanager
    def _all_or_nothing(self):
        """Whatever ends the block early, Ctrl-C included, the estimator is as it was before.

        Fitted arrays are replaced and never written into, so that keeping them is enough.
        """
        before = dict(vars(self))
        generator = _generator_state(before.get("random_state"))
        try:
            yield
        except BaseException:
            self.__dict__ = before
            _restore_generator(before.get("random_state"), generator)
            raise

    def _compile(self):
        return None

    def _settle(self):
        """The fitted arrays are in place: what follows from them is made here."""
        self.code_size_ = packed_size(self._code_bits)
        self._keep_compiled()

    def _keep_compiled(self):
        sources = self._sources()
        for source in sources:
            if isinstance(source, np.ndarray):
                source.flags.writeable = False  # or what was made of it could become stale
        self._compiled = sources, self._compile()

    def _ready(self):
        """What `_compile` makes of the attributes as they are.

        An array that a user has put in place of a fitted one is theirs to write into: what is made
        of that serves a single call.
        """
        kept, made = vars(self).get("_compiled", (None, None))
        sources = self._sources()
        if kept is not None and len(kept) == len(sources) and all(map(_same, kept, sources)):
            return made
        return self._compile()

    def _sources(self):
        sources = []
        for name in self._compiled_of:
            value = vars(self).get(name)
            sources += value if isinstance(value, list) else [value]
        return sources

    def _checked(self, X, reset=False):
        """Rows of `X` as an array that kernels read; their number of features and its names."""
        if not reset and "n_features_in_" not in vars(self):
            check_is_fitted(self)
        rows = as_rows(X)
        # scikit-learn takes 40 µs to look for feature names: too long where a call takes 50 µs.
        nameless = type(X) is np.ndarray and not reset and "feature_names_in_" not in vars(self)
        if not (nameless and rows.shape[1] == self.n_features_in_):
            validate_data(self, X, reset=reset, skip_check_array=True)
        return rows

    def _by_blocks(self, rows, n_rows, work):
        """``work(span)`` for consecutive blocks of about `n_rows` rows."""
        for span in spans(len(rows), max(64, n_rows)):
            try:
                work(span)
            except ValueError:
                if span.start:  # an error names a row of the block: let it be one of all rows
                    self._encode(rows, self._new_codes(len(rows)))
                raise

    def _squared_error(self, X, weight):
        """Weighted sum of Σ_f (x − x̂)² over checked rows."""
        errors = []

        def add(span):
            codes = self._new_codes(span.stop - span.start)
            self._encode(X[span], codes)
            decoded = np.empty(X[span].shape, self._codebook_dtype)
            self._decode(codes, decoded)
            error = np.subtract(X[span], decoded, dtype=np.float64)
            squared = np.einsum("nd,nd->n", error, error)
            errors.append(ordered_sum(squared, None if weight is None else weight[span]))

        self._by_blocks(X, _BLOCK_BYTES // (8 * X.shape[1]), add)
        return sum(errors)

    def _new_codes(self, n_rows, out=None):
        shape = (n_rows, len(self._code_bits))
        return as_out(out, shape, code_dtype(self._code_bits))

    def _encode_iterable(self, blocks, out):
        parts, filled = [], 0
        for block in blocks:
            if len(block) == 0:
                continue
            rows = self._checked(block)
            part = None if out is None else out[filled : filled + len(rows)]
            if part is not None and len(part) < len(rows):
                raise ValueError(f"out has {len(out)} rows, fewer than the blocks have in all")
            codes = self._new_codes(len(rows), part)
            self._encode(rows, codes)
            parts.append(codes)
            filled += len(rows)
        if out is not None:
            return out[:filled].reshape(filled, len(self._code_bits))
        if not parts:
            raise ValueError("blocks is empty: there is nothing to encode")
        return np.concatenate(parts)


def code_bits(n_codewords):
    """Bits that hold a code of a codebook of this size."""
    return max(1, (n_codewords - 1).bit_length())


def codebook_dtype(X):
    """The dtype of a codebook fitted on these rows."""
    return np.dtype(np.float64 if X.dtype == np.float64 else np.float32)


def code_dtype(bits):
    """The smallest unsigned dtype that holds codes of these numbers of bits."""
    return np.min_scalar_type(2 ** max(bits) - 1)


def packed_size(bits):
    """Bytes of a packed row of codes of these numbers of bits."""
    return -(-sum(bits) // 8)


def column_names(estimator, n_columns):
    """The names that scikit-learn gives to columns which are no features of the input."""
    stem = type(estimator).__name__.lower()
    return np.array([f"{stem}{column}" for column in range(n_columns)], dtype=object)


def random_state_of(random_state):
    """A RandomState: as scikit-learn takes it, or one that draws from a NumPy Generator."""
    if isinstance(random_state, np.random.Generator):
        return np.random.RandomState(random_state.bit_generator)
    return check_random_state(random_state)


def _same(a, b):
    """The very same object, or an equal number or text."""
    return a is b or (np.isscalar(a) and np.isscalar(b) and a == b)


def _generator_state(random_state):
    if isinstance(random_state, np.random.Generator):
        return random_state.bit_generator.state
    return random_state.get_state() if isinstance(random_state, np.random.RandomState) else None


def _restore_generator(random_state, state):
    if isinstance(random_state, np.random.Generator):
        random_state.bit_generator.state = state
    elif isinstance(random_state, np.random.RandomState):
        random_state.set_state(state)


def _version():
    # Not imported: this floor does not lean on the package's front door.
    return sys.modules["fastvq"].__version__
