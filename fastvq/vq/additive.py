"""Additive quantization by local search: a sum of codewords with no order among the codebooks.

Starts from a residual quantizer and takes its order away: codebooks and codes are improved in turn,
codebooks by least squares for the codes that rows have, codes by conditional modes with random
jumps (LSQ, Martinez et al. 2016). Codebooks are shaken on the way, less and less (LSQ++, 2018).
For the same number of bits the error is lower than that of product and residual quantizers, and
encoding takes several times as long.

The search is in _kernels/additive.pyx; what is shared with residual quantizers in `_stages`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastvq import kernels
from fastvq._progress import Progress
from fastvq._validation import as_count, as_nonnegative
from fastvq.vq._base import BaseQuantizer, random_state_of
from fastvq.vq._rows import spans
from fastvq.vq._stages import SumMixin, inertia_of, least_squares
from fastvq.vq.residual import StageSettings, fit_stages, training_rows

__all__ = ["AdditiveQuantizer"]

_SWEEPS = 4  # over the codebooks after a jump, at most: as in the papers
_REFINE_ITER = 5  # of the residual quantizer to start from
_BLOCK_BYTES = 1 << 22


class AdditiveQuantizer(SumMixin, BaseQuantizer):
    """Additive quantizer: a sum of codewords of several codebooks, found by local search.

    Parameters
    ----------
    n_codebooks : int, default=8
        Codebooks, and codes of a row.
    n_bits : int or sequence of int, default=8
        Bits of a code, from 1 to 16, of all codebooks or of each.
    n_jumps : int, default=16
        How often the search for a row's codes jumps, in `transform`; half as often in `fit`, which
        goes on from the codes of the iteration before. More jumps lower the error and cost time.
    n_replaced : int, default=4
        Codes that a jump replaces; at most all of them.
    shake : float, default=0.25
        Deviation of what is added to codebooks while they are fitted, at the first iteration, in
        units of the features' standard deviations over `n_codebooks`; it shrinks to nothing at the
        last iteration. 0: none.
    beam_width : int, default=4
        Width of the beam search from whose codes the local search starts.
    max_iter : int, default=25
        Updates of the codebooks, beside those of the residual quantizer that they start from, each
        stage of which also gets so many iterations of k-means at most.
    tol : float, default=1e-4
        As in `ResidualQuantizer`, for what the fit starts from.
    init, algorithm
        As in `ResidualQuantizer`.
    max_samples : int or float, optional
        Fit on so many rows drawn at random (a float in (0, 1]: that share of them). By default all
        rows count: nothing else subsamples.
    random_state : int, RandomState, Generator or None, default=None
    n_threads : int, optional
        By default what `fastvq.set_num_threads`, the environment or OpenMP say. Results do not
        depend on it.
    verbose : int, default=0
        Whether `fit` shows progress.

    Attributes
    ----------
    codebooks_ : ndarray of shape (n_codebooks, 2**n_bits, n_features), or list of ndarray
        A list where codebooks differ in bits. float64 where fitted on float64, else float32.
        Read-only: assign new arrays to change them.
    inertia_ : float
        Σ w·|x − x̂|² over the rows fitted on, encoded as `transform` does.
    inertia_history_ : ndarray
        First what the residual quantizer has at its end, then the inertia after each update, at
        the codes that the fit had; the last is `inertia_`.
    n_iter_ : int
        Updates of the codebooks after the residual quantizer.
    code_size_ : int
        Bytes of the packed codes of a row.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Only where the rows came with names.

    Notes
    -----
    The codes of a row depend on that row and the codebooks alone: jumps are the same for all rows.
    A fit ends with the best codebooks that it met, those of the residual quantizer among them, and
    the inertia is never above that one's.

    A conditional mode costs an addition for each codeword and other codebook, by way of a table of
    (Σ 2**n_bits)² numbers. Where that would take more than 256 MB, or would not have the digits
    (residuals far shorter than rows), it costs d multiply-adds for each codeword.

    References
    ----------
    A. Babenko, V. Lempitsky, "Additive quantization for extreme vector compression", CVPR 2014.
    J. Martinez, J. Clement, H. H. Hoos, J. J. Little, "Revisiting additive quantization", ECCV
    2016; J. Martinez, S. Zakhmi, H. H. Hoos, J. J. Little, "LSQ++: lower running time and higher
    recall in multi-codebook quantization", ECCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq import AdditiveQuantizer
    >>> X = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    >>> aq = AdditiveQuantizer(n_codebooks=4, n_bits=4, max_iter=5, random_state=0).fit(X)
    >>> codes = aq.transform(X)
    >>> codes.shape, codes.dtype, aq.code_size_
    ((2000, 4), dtype('uint8'), 2)
    >>> bool(aq.inertia_ <= aq.inertia_history_[0])
    True
    """

    def __init__(
        self,
        n_codebooks: int = 8,
        n_bits: int | ArrayLike = 8,
        *,
        n_jumps: int = 16,
        n_replaced: int = 4,
        shake: float = 0.25,
        beam_width: int = 4,
        max_iter: int = 25,
        tol: float = 1e-4,
        init: str = "auto",
        algorithm: str = "auto",
        max_samples: int | float | None = None,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        n_threads: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_codebooks = n_codebooks
        self.n_bits = n_bits
        self.n_jumps = n_jumps
        self.n_replaced = n_replaced
        self.shake = shake
        self.beam_width = beam_width
        self.max_iter = max_iter
        self.tol = tol
        self.init = init
        self.algorithm = algorithm
        self.max_samples = max_samples
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose

    def fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> "AdditiveQuantizer":
        """Fit the codebooks.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : AdditiveQuantizer

        Raises
        ------
        ValueError, TypeError
            For input that is not a finite 2-D array of numbers, and for parameters out of range.

        Warns
        -----
        ConvergenceWarning
            Where there are fewer rows than codewords in a codebook, some of which are repeated.
        """
        with self._all_or_nothing():
            X = self._checked(X, reset=True)
            settings = StageSettings.checked(
                self.n_codebooks, self.n_bits, "n_codebooks", beam_width=self.beam_width,
                max_iter=self.max_iter, tol=self.tol, refine_iter=_REFINE_ITER, init=self.init,
                algorithm=self.algorithm,
            )  # fmt: skip
            search, shake = self._search(), as_nonnegative(self.shake, "shake")
            rng = random_state_of(self.random_state)
            training = training_rows(X, sample_weight, self.max_samples, self.n_threads, rng)
            total = len(settings.bits) + settings.refine_iter + settings.max_iter
            with Progress("fit", total, self.verbose) as progress:
                start = fit_stages(training, settings, rng, progress)
                improved = _improve(
                    training, start, search, shake, settings.max_iter, rng, progress
                )
            self._keep(training, *improved)
        return self

    def _search(self):
        return Search(
            as_count(self.beam_width, "beam_width"),
            as_count(self.n_jumps, "n_jumps", minimum=0),
            as_count(self.n_replaced, "n_replaced"),
        )

    def _encode(self, X, codes):
        search, stages = self._search(), self._ready()
        step = max(1, _BLOCK_BYTES // (8 * stages.n_features))
        for span in spans(len(X), step if stages.crossed is None else len(X)):
            codes[span] = search.encode(X[span], stages, n_threads=self.n_threads)


class Search(NamedTuple):
    """How codes are searched for."""

    beam_width: int
    n_jumps: int
    n_replaced: int

    def encode(self, X, stages, **options):
        """Codes (n, n_stages) int32 of rows, which depend on the row and the stages alone."""
        codes = kernels.beam_search(X, stages, beam_width=self.beam_width, **options)[:, 0]
        jumps = self.jumps(stages.size, self.n_jumps, np.random.RandomState(0))
        return self.improve(X, stages, np.ascontiguousarray(codes), jumps, **options)

    def improve(self, X, stages, codes, jumps, **options):
        """Better codes, or the same."""
        search = _search_plain if stages.crossed is None else kernels.local_search
        return search(X, stages, codes, jumps, sweeps=_SWEEPS, **options)

    def jumps(self, sizes, n_jumps, rng):
        """Which codes to replace, and by what: (n_jumps, n_replaced, 2) int32."""
        n_replaced = min(self.n_replaced, len(sizes))
        stages = [rng.permutation(len(sizes))[:n_replaced] for _ in range(n_jumps)]
        stages = np.array(stages, np.intp).reshape(n_jumps, n_replaced)
        codes = rng.randint(0, np.asarray(sizes)[stages])
        return np.stack([stages, codes], axis=-1).astype(np.int32)


def _improve(training, start, search, shake, max_iter, rng, progress):
    """Codebooks and codes improved in turn: (codebooks, history, n_iter) of the best."""
    stages, codes = kernels.Stages(start.codebooks), start.codes
    best, history = start.codebooks, [start.history[-1]]
    least, n_iter = np.inf, 0
    deviation = _deviation(training, start.codebooks)
    while n_iter < max_iter and history[-1] > 0:
        n_iter += 1
        codebooks = least_squares(training, stages.codebooks, codes)
        strength = shake * np.sqrt(1 - n_iter / max_iter)  # as in LSQ++, with p = 1/2
        stages = kernels.Stages(_shaken(codebooks, strength * deviation, rng))
        jumps = search.jumps(stages.size, -(-search.n_jumps // 2), rng)
        codes = search.improve(training.X, stages, codes.copy(), jumps, **training.options)
        history.append(inertia_of(training, stages, codes))
        progress.step(inertia=history[-1])
        if history[-1] < least:
            least, best = history[-1], stages.codebooks
    # What counts is how the rows are encoded in the end: from a fresh start, as in transform.
    final = {}
    for name, codebooks in {"start": start.codebooks, "best": best}.items():
        stages = kernels.Stages(codebooks)
        found = search.encode(training.X, stages, **training.options)
        final[name] = inertia_of(training, stages, found), codebooks
    inertia, codebooks = min(final.values(), key=lambda each: each[0])
    return codebooks, [*history, inertia], n_iter


def _deviation(training, codebooks):
    """Standard deviation of each feature over the number of codebooks, in the input's scale."""
    total, square, weights = 0.0, 0.0, 0.0
    for span, block in training.kind.pieces(n_rows=4096):
        weight = np.ones(len(block)) if training.weight is None else training.weight[span]
        exact = np.ascontiguousarray(block, np.float64)  # of one layout: sums of one order
        total = total + np.einsum("n,nd->d", weight, exact)
        square = square + np.einsum("n,nd,nd->d", weight, exact, exact)
        weights += weight.sum()
    mean = total / weights
    variance = np.maximum(square / weights - mean * mean, 0)
    return np.ldexp(np.sqrt(variance), training.exponent) / len(codebooks)


def _shaken(codebooks, deviation, rng):
    if not deviation.any():
        return codebooks
    return [
        (book + deviation * rng.standard_normal(book.shape)).astype(book.dtype)
        for book in codebooks
    ]


def _search_plain(X, stages, codes, jumps, *, sweeps, rows=None, n_threads=None):
    """What kernels.local_search finds, from residuals and without a table."""
    step = max(1, _BLOCK_BYTES // (8 * stages.n_features))
    books = [kernels.prepare(book) for book in stages.codebooks]
    for span in spans(len(codes), step):
        block = X[span if rows is None else rows[span]].astype(stages.dtype)
        least = _distances(block, stages, codes[span], n_threads)
        for jump in [np.empty((0, 2), np.int32), *jumps]:
            tried = codes[span].copy()
            tried[:, jump[:, 0]] = jump[:, 1]
            _settle(block, stages, books, tried, sweeps, n_threads)
            found = _distances(block, stages, tried, n_threads)
            better = found < least
            codes[span][better] = tried[better]
            least[better] = found[better]
    return codes


def _settle(block, stages, books, codes, sweeps, n_threads):
    """Conditional modes, each an assignment of what the other codes leave."""
    for _ in range(sweeps):
        before = codes.copy()
        for m, book in enumerate(books):
            others = [*range(m), *range(m + 1, len(books))]
            left = block
            if others:
                left = block - kernels.decode_sums(
                    codes[:, others], stages.joined, columns=others, n_threads=n_threads
                )
            codes[:, m] = kernels.assign(left, book, n_threads=n_threads)
        if np.array_equal(codes, before):
            break


def _distances(block, stages, codes, n_threads):
    return kernels.distances_to_sums(
        block, stages.joined, codes, scale=stages.scale, n_threads=n_threads
    )
