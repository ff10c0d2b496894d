"""Product quantization: features in blocks, a codebook for each.

With M codebooks of k codewords a row is one of k^M vectors, at the price of M·k codewords (Jégou,
Douze & Schmid, "Product quantization for nearest neighbor search", TPAMI 2011). The error is the
sum of the errors in the subspaces, so that each is fitted for itself, as a VectorQuantizer is.

A rotation before the split makes the subspaces share the variance and the dependence of features;
`_opq` finds one. Rotated rows are taken block by block, by a kernel in which the result for a row
does not depend on its company: so neither does its code.
"""

import itertools
import threading
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning

from fastvq import _threads, kernels
from fastvq._progress import Progress
from fastvq._validation import (
    as_codebook,
    as_count,
    as_nonnegative,
    as_rows,
    as_weights,
    as_word,
)
from fastvq.vq._base import BaseQuantizer, code_dtype, codebook_dtype, random_state_of
from fastvq.vq._fit import Settings, fit_rows, step
from fastvq.vq._opq import Frame, opq, random_rotation, start_bytes
from fastvq.vq._pool import in_threads
from fastvq.vq._rows import rows_of, sample_positions, sample_size
from fastvq.vq._search import Parts
from fastvq.vq._seeding import INITS

__all__ = ["ProductQuantizer"]

ROTATIONS = {
    "opq": ("optimized",),
    "random": ("random orthogonal",),
}
_MOST_BITS = 16
# For `memory_estimate`: amply what a thread packs and a block of rotated rows; rows of a call.
_SCRATCH_BYTES, _CALL_ROWS = 1 << 21, 1 << 20
# How far products of columns of a rotation that was given may be from 0 and 1.
_ORTHOGONAL = 1e-3

# Rows drawn at random end, after 25 iterations, where faiss's fits do (0.00 and 0.05 % above, means
# of 5 seeds, 65536×128 with a power-law spectrum and 65536×64 blobs). Greedy k-means++ on 16 rows a
# codeword ends 0.05 and 0.2 % lower and doubles the time of the fit (Zen 3, one thread).
_AUTO_INIT = "random"


class ProductQuantizer(BaseQuantizer):
    """Product quantizer: a codebook for each block of features, fitted by k-means.

    Parameters
    ----------
    n_subspaces : int, default=8
        Blocks of consecutive features, and codes of a row. Where it does not divide the number of
        features, the first blocks are longer by one.
    n_bits : int or sequence of int, default=8
        Bits of a code, 1 to 16: a subspace has ``2**n_bits`` codewords. One number for all
        subspaces, or one for each.
    rotation : {None, "opq", "random"}, default=None
        What rows are multiplied by before they are split: nothing; the orthogonal matrix that
        optimised product quantization finds for these rows and codebooks; or a random one.
    init : {"auto", "k-means++", "k-means||", "random"}, array or sequence, default="auto"
        Where each codebook starts, as in `VectorQuantizer`, but that "auto" means "random", rows
        drawn at random: in so few features it costs hardly any error. Or the codebooks themselves,
        in the form of `codebooks_`; not with ``rotation="opq"``, which moves the subspaces.
    n_init : int, default=1
        Runs in each subspace from different seeds; the one with the lowest inertia is kept.
    max_iter : int, default=25
        Updates of the codebooks, at most; with "opq" also of codebooks and rotation together,
        before those of the codebooks alone.
    tol : float, default=1e-4
        A fit ends when an update lowers the inertia by less than this share of it.
    max_samples : int or float, optional
        Fit on so many rows drawn at random (a float in (0, 1]: that share of them); the fitted
        attributes then speak of these. By default all rows count: beside it nothing subsamples
        but the 16384 rows (8 a feature if that is more) whose covariance is where "opq" starts.
    feature_weight : array-like of shape (n_features,), optional
        Importance of each feature, above 0: codebooks and codes minimise Σ_f w_f (x_f − x̂_f)².
    random_state : int, RandomState, Generator or None, default=None
    n_threads : int, optional
        By default what `fastvq.set_num_threads`, the environment or OpenMP say. Results do not
        depend on it.
    verbose : int, default=0
        Whether `fit` shows progress.

    Attributes
    ----------
    codebooks_ : ndarray of shape (n_subspaces, n_codewords, n_subspace_features), or list of arrays
        Codewords of each subspace, in the coordinates ``(x * feature_scale_) @ rotation_``; a list
        where subspaces differ in features or bits. float64 where fitted on float64 (and on
        integers of more than 16 bits), else float32. Read-only.
    rotation_ : ndarray of shape (n_features, n_features)
        Orthogonal. Only where `rotation` is given.
    feature_scale_ : ndarray of shape (n_features,)
        Square roots of `feature_weight`. Only where that is given.
    counts_ : ndarray of shape (n_subspaces, n_codewords), or list of arrays
        Total weight of the rows behind each codeword.
    inertia_ : float
        Σ w·|x − x̂|² over the rows fitted on, features weighted.
    inertia_history_ : ndarray
        The inertia at the start and after each update; the last is `inertia_`.
    n_iter_ : int
        Updates: of the subspace that took most.
    code_size_ : int
        Bytes of a packed row.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Only where the rows came with names.

    Notes
    -----
    The code of a row depends on that row, the codebooks and the rotation alone, and a fit with a
    given `random_state` gives the same at any number of threads.

    An iteration takes n·k·d multiply-adds, with "opq" n·d² more, and so does encoding. Beside the
    input a fit needs a copy of the features of one subspace for each thread, in the dtype of `X`
    (rotated: of the codebooks), and some 12 bytes a row; "opq" n_subspaces codes a row. The rows
    are never rotated as a whole.

    References
    ----------
    H. Jégou, M. Douze, C. Schmid, "Product quantization for nearest neighbor search", TPAMI 2011.
    T. Ge, K. He, Q. Ke, J. Sun, "Optimized product quantization", TPAMI 2014 (CVPR 2013).

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq import ProductQuantizer
    >>> X = np.random.default_rng(0).standard_normal((1000, 12)).astype(np.float32)
    >>> pq = ProductQuantizer(n_subspaces=3, n_bits=5, random_state=0).fit(X)
    >>> codes = pq.transform(X)
    >>> codes.shape, codes.dtype, pq.code_size_
    ((1000, 3), dtype('uint8'), 2)
    >>> pq.inverse_transform(codes).shape
    (1000, 12)
    >>> bool(pq.distortion(X) < 0.5 * np.square(X).sum(axis=1).mean())
    True
    """

    _compiled_of = ("codebooks_", "rotation_", "feature_scale_")

    def __init__(
        self,
        n_subspaces: int = 8,
        n_bits: int | Sequence[int] = 8,
        *,
        rotation: str | None = None,
        init: str | ArrayLike | Sequence[ArrayLike] = "auto",
        n_init: int = 1,
        max_iter: int = 25,
        tol: float = 1e-4,
        max_samples: int | float | None = None,
        feature_weight: ArrayLike | None = None,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        n_threads: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_subspaces = n_subspaces
        self.n_bits = n_bits
        self.rotation = rotation
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.max_samples = max_samples
        self.feature_weight = feature_weight
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose

    @classmethod
    def from_codebooks(
        cls,
        codebooks: Sequence[ArrayLike],
        rotation: ArrayLike | None = None,
        **parameters: Any,
    ) -> "ProductQuantizer":
        """A quantizer with these codewords, made elsewhere: nothing is fitted.

        Parameters
        ----------
        codebooks : sequence of array-like of shape (2**n_bits, n_subspace_features)
            One for each subspace, in the form of `codebooks_`.
        rotation : array-like of shape (n_features, n_features), optional
            What rows are multiplied by before they are split: orthogonal, as `rotation_`. The
            parameter `rotation` becomes "opq".
        **parameters
            Any other of the class's but `n_subspaces`, `n_bits` and `feature_weight`.

        Returns
        -------
        quantizer : ProductQuantizer
            Of float64 where a codebook is, else float32; `counts_` are zero, and no inertia is
            known.

        Examples
        --------
        >>> pq = ProductQuantizer.from_codebooks([[[0.0], [1.0]], [[5.0, 5.0], [7.0, 7.0]]])
        >>> pq.transform([[0.9, 5.5, 5.2], [0.3, 6.5, 6.9]])
        array([[1, 0],
               [0, 1]], dtype=uint8)
        """
        if "feature_weight" in parameters:
            raise TypeError("feature_weight is not to be given: codebooks would have to be scaled")
        rows = [as_rows(codebook, f"codebooks[{m}]") for m, codebook in enumerate(codebooks)]
        if not rows:
            raise ValueError("codebooks must be one for each subspace, got none")
        dtype = np.result_type(*map(codebook_dtype, rows))
        codewords = [
            as_codebook(each, len(each), each.shape[1], dtype, "codebooks") for each in rows
        ]
        bits = [(len(each) - 1).bit_length() for each in codewords]
        if any(len(each) != 2**width for each, width in zip(codewords, bits, strict=True)):
            sizes = ", ".join(str(len(each)) for each in codewords)
            raise ValueError(f"codebooks must have 2, 4, 8, ... 65536 codewords, got {sizes}")
        n_features = sum(each.shape[1] for each in codewords)
        quantizer = cls(
            len(codewords),
            bits[0] if len(set(bits)) == 1 else bits,
            rotation=None if rotation is None else "opq",
            **parameters,
        )
        _bits(bits, len(bits))  # 1 to 16
        if rotation is not None:
            quantizer.rotation_ = _orthogonal(rotation, n_features, dtype)
        quantizer.n_features_in_ = n_features
        quantizer.counts_ = _together([np.zeros(len(each)) for each in codewords])
        quantizer.inertia_history_, quantizer.n_iter_ = np.empty(0), 0
        quantizer.codebooks_ = _together(codewords)
        quantizer._settle()
        return quantizer

    # ---- fitting ---------------------------------------------------------------------------

    def fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> "ProductQuantizer":
        """Fit the codebooks, and the rotation.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : ProductQuantizer

        Raises
        ------
        ValueError, TypeError
            For input that is not a finite 2-D array of numbers, for fewer features than
            subspaces, and for parameters out of range.

        Warns
        -----
        ConvergenceWarning
            Where a subspace has fewer distinct rows than codewords: its codebook then holds these
            rows, sorted, and repeats them.
        """
        with self._all_or_nothing():
            rows = self._checked(X, reset=True)
            dtype = codebook_dtype(rows)
            subspaces = self._subspaces_of(rows.shape[1], dtype)
            scale = _feature_scale(self.feature_weight, rows.shape[1], dtype)
            rng = random_state_of(self.random_state)
            weight = as_weights(sample_weight, len(rows))
            # Says which value is not finite, by its place in X and not in what is made of it.
            kernels.safe_scale(rows, n_threads=self.n_threads)
            sample = sample_positions(self.max_samples, len(rows), rng)
            if sample is not None:
                rows = rows[sample]
                weight = None if weight is None else as_weights(weight[sample], len(rows))
            fit = _Fit(rows, weight, subspaces, dtype, rng, _threads.effective(self.n_threads))
            steps = sum(subspace.settings.most_iterations for subspace in subspaces)
            with Progress("fit", steps, self.verbose) as progress:
                frame, history = self._frame(fit, scale, rng)
                outcomes = fit.run(frame, lambda: progress.step())
            self._keep(frame, outcomes, history)
            _warn_few(outcomes, subspaces)
        return self

    def partial_fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> "ProductQuantizer":
        """Go on fitting with one more batch of rows.

        The first batch is fitted as `fit` does it, and has the rotation: let it be large, and the
        rows like those to come. From then on each codeword is the running mean of the rows that
        came to it, and one that wins hardly any moves to where rows are badly served, as with
        `VectorQuantizer.partial_fit`. It also goes on after `fit`, with the counts of that fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : ProductQuantizer
            With the `inertia_` of this batch before the codebooks moved towards it.
        """
        if "codebooks_" not in vars(self):
            return self.fit(X, y, sample_weight)
        with self._all_or_nothing():
            rows = self._checked(X)
            weight = as_weights(sample_weight, len(rows))
            kernels.safe_scale(rows, n_threads=self.n_threads)
            self._absorb(rows, weight)
        return self

    def _absorb(self, rows, weight):
        """One mini-batch."""
        _, frame = self._ready()
        n_threads = _threads.effective(self.n_threads)
        shared = max(1, n_threads // len(self.codebooks_))

        def absorb(m):
            features, codebook = self.subspaces_[m], self.codebooks_[m]
            block = frame.subspace(rows, features, codebook.dtype, shared)
            some = rows_of(
                block, None, weight, metric="euclidean", dtype=codebook.dtype,
                codebook=codebook, n_threads=shared,
            )  # fmt: skip
            moved, counts, inertia = step(some, some.admit(codebook), self.counts_[m])
            return some.release(moved, codebook.dtype), counts, some.release_inertia(inertia)

        codebooks, counts, inertias = zip(
            *in_threads(absorb, range(len(self.codebooks_)), n_threads), strict=True
        )
        self.counts_, self.n_iter_ = _together(counts), self.n_iter_ + 1
        self.inertia_ = float(sum(inertias))
        self.inertia_history_ = np.append(self.inertia_history_, self.inertia_)
        self.codebooks_ = _together(codebooks)
        self._settle()

    def _subspaces_of(self, n_features, dtype):
        """Features and settings of each subspace; the parameters are checked on the way."""
        n_subspaces = as_count(self.n_subspaces, "n_subspaces")
        if n_subspaces > n_features:
            raise ValueError(
                f"n_subspaces must be at most n_features={n_features}, got {n_subspaces}"
            )
        bits = _bits(self.n_bits, n_subspaces)
        slices = _split(n_features, n_subspaces)
        inits, n_init = self._inits(slices, bits, dtype), as_count(self.n_init, "n_init")
        max_iter, tol = as_count(self.max_iter, "max_iter"), as_nonnegative(self.tol, "tol")
        return [
            _Subspace(
                features,
                Settings(
                    n_codewords=2**width,
                    init=init,
                    n_init=n_init if isinstance(init, str) else 1,
                    algorithm="auto",
                    batch_size=0,
                    max_iter=max_iter,
                    tol=tol,
                ),
            )
            for features, width, init in zip(slices, bits, inits, strict=True)
        ]

    def _inits(self, slices, bits, dtype):
        """Where each subspace starts: a word, or an array."""
        if isinstance(self.init, str):
            word = as_word(self.init, "init", INITS, ", or the codebooks")
            return [_AUTO_INIT if word == "auto" else word] * len(slices)
        if self._rotation() == "opq":
            raise ValueError("init must be a word with rotation='opq', which moves the subspaces")
        if not hasattr(self.init, "__len__") or len(self.init) != len(slices):
            raise ValueError(f"init must be a word or {len(slices)} codebooks, one a subspace")
        return [
            as_codebook(init, 2**width, features.stop - features.start, dtype, f"init[{m}]")
            for m, (init, width, features) in enumerate(zip(self.init, bits, slices, strict=True))
        ]

    def _rotation(self):
        return None if self.rotation is None else as_word(self.rotation, "rotation", ROTATIONS)

    def _frame(self, fit, scale, rng):
        """The coordinates in which codebooks are fitted, and the inertia on the way to them."""
        rotation = self._rotation()
        if rotation is None:
            return Frame(None, scale), []
        if rotation == "random":
            return Frame(random_rotation(fit.X.shape[1], rng).astype(fit.dtype), scale), []
        return opq(fit, scale)

    def _keep(self, frame, outcomes, history):
        """Become what a fit ended with."""
        for name in ("rotation_", "feature_scale_"):
            vars(self).pop(name, None)
        if frame.rotation is not None:
            self.rotation_ = frame.rotation
        if frame.scale is not None:
            self.feature_scale_ = frame.scale
        self.counts_ = _together([outcome.counts for outcome in outcomes])
        self.inertia_history_ = np.concatenate([history, _total([o.history for o in outcomes])])
        self.inertia_ = float(self.inertia_history_[-1])
        self.n_iter_ = len(history) + max(outcome.n_iter for outcome in outcomes)
        self.codebooks_ = _together([outcome.codebook for outcome in outcomes])
        self._settle()

    # ---- how it encodes and decodes ----------------------------------------------------------

    @property
    def subspaces_(self) -> list[slice]:
        """The (rotated) features of each subspace."""
        return _slices([codebook.shape[1] for codebook in self.codebooks_])

    @property
    def _code_bits(self):
        return tuple((len(codebook) - 1).bit_length() for codebook in self.codebooks_)

    @property
    def _code_range(self):
        return [len(codebook) for codebook in self.codebooks_]

    @property
    def _codebook_dtype(self):
        return self.codebooks_[0].dtype

    def _compile(self):
        frame = Frame(vars(self).get("rotation_"), vars(self).get("feature_scale_"))
        return kernels.prepare_subspaces([*self.codebooks_]), frame

    def _parts(self):
        rotation, scale = vars(self).get("rotation_"), vars(self).get("feature_scale_")
        if scale is None:
            return Parts([*self.codebooks_], self.subspaces_, rotation)
        places = zip(self.codebooks_, self.subspaces_, strict=True)
        if rotation is None:
            return Parts([book / scale[place] for book, place in places], self.subspaces_)
        back = rotation.T.astype(np.float64)
        # Where weighted features are rotated, no distance is a sum over subspaces.
        books = [np.einsum("kf,fd->kd", book, back[place] / scale) for book, place in places]
        return Parts([book.astype(self._codebook_dtype) for book in books])

    def _encode(self, rows, codes):
        books, frame = self._ready()
        for span, block in frame.blocks(rows, self._codebook_dtype, self.n_threads):
            kernels.assign_subspaces(block, books, codes=codes[span], n_threads=self.n_threads)

    def _decode(self, codes, out):
        books, frame = self._ready()
        if frame.plain:
            kernels.decode_subspaces(codes, books, out=out, n_threads=self.n_threads)
            return
        for span, block in frame.scratch(len(codes), out.shape[1], out.dtype):
            kernels.decode_subspaces(codes[span], books, out=block, n_threads=self.n_threads)
            frame.back(block, out[span], self.n_threads)

    def _memory(self, n_rows, n_features, itemsize):
        subspaces = self._subspaces_of(n_features, np.dtype(f"f{itemsize}"))
        threads, M = _threads.effective(self.n_threads), len(subspaces)
        widths = [features.stop - features.start for features, _ in subspaces]
        sizes = [settings.n_codewords for _, settings in subspaces]
        codebooks = sum(k * d for k, d in zip(sizes, widths, strict=True)) * itemsize
        code = code_dtype([(k - 1).bit_length() for k in sizes]).itemsize
        shared = 3 * codebooks + threads * _SCRATCH_BYTES
        if self._rotation() is not None:
            shared += 5 * 8 * n_features**2
        sample = sample_size(self.max_samples, n_rows)
        # A subspace at work: its features; codes, distances and bounds; codewords and their sums.
        each = sample * (max(widths) * itemsize + (32 if itemsize == 4 else 40))
        fit = min(threads, M) * (each + 12 * max(sizes) * max(widths) * itemsize)
        if self._rotation() == "opq":
            turn = sample * (M * code + M + 8) + 16 * n_features * sum(sizes)
            fit = max(fit, turn, start_bytes(sample, n_features))
        if sample < n_rows:
            fit += 8 * n_rows + sample * n_features * itemsize
        return fit + shared, n_rows * M * code + min(n_rows, _CALL_ROWS) * M + shared


class _Subspace(NamedTuple):
    """Features of a subspace, and how its codebook is fitted."""

    features: slice
    settings: Settings


class _Fit:
    """The rows of a fit, and the fits of the codebooks on them: some subspaces at a time.

    Each subspace draws from a generator of its own, so that their order does not matter.
    """

    def __init__(self, X, weight, subspaces, dtype, rng, n_threads):
        self.X, self.weight, self.subspaces, self.dtype = X, weight, subspaces, dtype
        self.n_threads = n_threads
        self._seeds = rng.randint(2**31 - 1, size=len(subspaces))

    def run(self, frame, step=lambda: None, starts=None, max_iter=None):
        """The outcome of each subspace; `starts`: codebooks to start from."""
        n_threads = max(1, self.n_threads // len(self.subspaces))  # of each subspace
        stop = threading.Event()

        def watch(*_):
            step()
            return stop.is_set()

        def fit_one(m):
            features, settings = self.subspaces[m]
            if starts is not None:
                settings = settings._replace(init=starts[m], n_init=1)
            if max_iter is not None:
                settings = settings._replace(max_iter=max_iter, n_init=1)
            rows = rows_of(
                frame.subspace(self.X, features, self.dtype, n_threads),
                None,
                self.weight,
                metric="euclidean",
                dtype=self.dtype,
                codebook=settings.init if isinstance(settings.init, np.ndarray) else None,
                n_threads=n_threads,
            )
            outcome = fit_rows(rows, settings, np.random.RandomState(self._seeds[m]), watch)
            return outcome._replace(
                codebook=rows.release(outcome.codebook, self.dtype),
                history=rows.release_inertia(np.array(outcome.history)),
                codes=None,
            )

        return in_threads(fit_one, range(len(self.subspaces)), self.n_threads, stop)


def _bits(n_bits, n_subspaces):
    """Bits of each subspace."""
    if isinstance(n_bits, (list, tuple, np.ndarray)):
        if len(n_bits) != n_subspaces:
            raise ValueError(
                f"n_bits must be one number or one for each of {n_subspaces} subspaces, "
                f"got {len(n_bits)}"
            )
        widths = [as_count(width, "n_bits") for width in n_bits]
    else:
        widths = [as_count(n_bits, "n_bits")] * n_subspaces
    if max(widths) > _MOST_BITS:
        raise ValueError(f"n_bits must be from 1 to {_MOST_BITS}, got {max(widths)}")
    return widths


def _orthogonal(matrix, n_features, dtype):
    """A given rotation, checked."""
    matrix = as_rows(matrix, "rotation").astype(dtype)
    if matrix.shape != (n_features, n_features):
        raise ValueError(
            f"rotation must have shape (n_features, n_features) = ({n_features}, {n_features}), "
            f"got {matrix.shape}"
        )
    off = np.abs(matrix.T.astype(np.float64) @ matrix - np.eye(n_features)).max()
    if not off < _ORTHOGONAL:
        raise ValueError(f"rotation must be orthogonal, but its columns are not, by {off:.3g}")
    matrix.flags.writeable = False
    return matrix


def _feature_scale(feature_weight, n_features, dtype):
    """Square roots of the weights of features, or None."""
    if feature_weight is None:
        return None
    weight = np.asarray(feature_weight)
    if weight.ndim != 1 or len(weight) != n_features:
        raise ValueError(
            f"feature_weight must have shape (n_features,) = ({n_features},), got {weight.shape}"
        )
    scale = np.sqrt(as_rows(weight[None], "feature_weight")[0].astype(np.float64).clip(0))
    scale = scale.astype(dtype)
    with np.errstate(divide="ignore"):
        if not (np.isfinite(scale) & (1 / scale < 2.0**40) & (scale < 2.0**40)).all():
            raise ValueError("feature_weight must be finite and above 0, within 2**-80 and 2**80")
    return scale


def _split(n_features, n_subspaces):
    """Consecutive blocks of features, as equal as can be, the longer ones first."""
    size, longer = divmod(n_features, n_subspaces)
    return _slices([size + (m < longer) for m in range(n_subspaces)])


def _slices(sizes):
    return [slice(*pair) for pair in itertools.pairwise((0, *itertools.accumulate(sizes)))]


def _together(arrays):
    """One array where all have one shape, else the list."""
    same = len({array.shape for array in arrays}) == 1
    return np.stack(arrays) if same else list(arrays)


def _total(histories):
    """Sum of the inertias; a subspace that has settled counts with its last one."""
    total = np.zeros(max(map(len, histories)))
    for history in histories:
        total[: len(history)] += history
        total[len(history) :] += history[-1]
    return total


def _warn_few(outcomes, subspaces):
    short = [m for m, outcome in enumerate(outcomes) if outcome.n_distinct is not None]
    if short:
        m = short[0]
        warnings.warn(
            f"X has fewer distinct rows than codewords in {len(short)} of {len(outcomes)} "
            f"subspaces (in subspace {m} {outcomes[m].n_distinct}, fewer than "
            f"{subspaces[m].settings.n_codewords}): codebooks_ holds each of them and repeats them",
            ConvergenceWarning,
            stacklevel=3,
        )
