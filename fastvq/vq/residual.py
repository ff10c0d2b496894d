"""Residual quantization: each stage quantizes what the stages before it have left.

A row is stored as one code for each of M codebooks and read back as the sum of their codewords;
the first few codes alone give a coarser sum. Codebooks are fitted one after the other by k-means on
the residuals (Juang & Gray 1982). Rows are encoded by beam search: several choices for the first
stages are kept, because the nearest codeword is not always the best beginning of a sum (Babenko &
Lempitsky 2014). At last all codebooks together are moved to where, for the codes that rows have,
the squared error is least, and rows are encoded again.

What residual and additive quantizers share is in `_stages`, the search in _kernels/residual.pyx.
"""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from fastvq import _threads, kernels
from fastvq._progress import Progress
from fastvq._validation import as_count, as_nonnegative, as_out, as_weights, as_word
from fastvq.vq._base import BaseQuantizer, codebook_dtype, random_state_of
from fastvq.vq._fit import Settings, fit_rows
from fastvq.vq._rows import sample_positions
from fastvq.vq._seeding import GREEDY_LIMIT, INITS
from fastvq.vq._stages import SumMixin, Training, as_bits, inertia_of, least_squares
from fastvq.vq.vector import ALGORITHMS

__all__ = ["ResidualQuantizer"]


class ResidualQuantizer(SumMixin, BaseQuantizer):
    """Residual quantizer: a sum of codewords, one of each stage.

    Parameters
    ----------
    n_stages : int, default=8
        Codebooks, and codes of a row.
    n_bits : int or sequence of int, default=8
        Bits of a code, from 1 to 16, of all stages or of each: a stage of b bits has 2**b
        codewords.
    beam_width : int, default=4
        Choices that are kept from stage to stage while a row is encoded, in `fit` and later. More
        of them lower the error and cost time in proportion.
    max_iter : int, default=25
        Updates of each codebook by k-means, at most.
    tol : float, default=1e-4
        k-means on a stage ends when an update lowers the inertia by less than this share of it.
    refine_iter : int, default=5
        How often all codebooks are re-estimated together by least squares, at most; it ends as
        soon as that does not lower the error on the rows fitted on. 0: not at all.
    init : {"auto", "k-means++", "k-means||", "random", "principal"}, default="auto"
        Where k-means starts, as in `VectorQuantizer`; "auto" is "principal" here, up to 12 bits.
    algorithm : {"auto", "lloyd", "growing", "minibatch"}, default="auto"
        How k-means runs, as in `VectorQuantizer`.
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
    codebooks_ : ndarray of shape (n_stages, 2**n_bits, n_features), or list of ndarray
        A list where stages differ in bits. float64 where fitted on float64, else float32.
        Read-only: assign new arrays to change them.
    inertia_ : float
        Σ w·|x − x̂|² over the rows fitted on.
    inertia_history_ : ndarray
        The inertia after each stage, encoded by the stages so far, then after each re-estimation
        that was kept; the last is `inertia_`.
    n_iter_ : int
        Re-estimations that were kept.
    code_size_ : int
        Bytes of the packed codes of a row.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Only where the rows came with names.

    Notes
    -----
    The codes of a row depend on that row and the codebooks alone. Encoding costs d multiply-adds
    for each of the Σ 2**n_bits codewords and, for each entry of the beam, an addition for each
    codeword and earlier stage, by way of a table of (Σ 2**n_bits)² numbers. Where that would take
    more than 256 MB, or where residuals are so short beside rows that it would not have the
    digits, every entry of the beam costs d multiply-adds for each codeword.

    A fit keeps the residuals of `beam_width` entries for each row, where these take up to 256 MB,
    and works on them block by block else.

    References
    ----------
    B.-H. Juang, A. H. Gray, "Multiple stage vector quantization for speech coding", ICASSP 1982.
    A. Babenko, V. Lempitsky, "Additive quantization for extreme vector compression", CVPR 2014.
    Y. Chen, T. Guan, C. Wang, "Approximate nearest neighbor search by residual vector
    quantization", Sensors 10 (2010).

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq import ResidualQuantizer
    >>> X = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    >>> rq = ResidualQuantizer(n_stages=4, n_bits=4, random_state=0).fit(X)
    >>> codes = rq.transform(X)
    >>> codes.shape, codes.dtype, rq.code_size_
    ((2000, 4), dtype('uint8'), 2)
    >>> whole, coarse = rq.inverse_transform(codes), rq.inverse_transform(codes[:, :2])
    >>> bool(((X - whole) ** 2).sum() < ((X - coarse) ** 2).sum())
    True
    """

    def __init__(
        self,
        n_stages: int = 8,
        n_bits: int | ArrayLike = 8,
        *,
        beam_width: int = 4,
        max_iter: int = 25,
        tol: float = 1e-4,
        refine_iter: int = 5,
        init: str = "auto",
        algorithm: str = "auto",
        max_samples: int | float | None = None,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        n_threads: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_stages = n_stages
        self.n_bits = n_bits
        self.beam_width = beam_width
        self.max_iter = max_iter
        self.tol = tol
        self.refine_iter = refine_iter
        self.init = init
        self.algorithm = algorithm
        self.max_samples = max_samples
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose

    def fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> "ResidualQuantizer":
        """Fit the codebooks.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : ResidualQuantizer

        Raises
        ------
        ValueError, TypeError
            For input that is not a finite 2-D array of numbers, and for parameters out of range.

        Warns
        -----
        ConvergenceWarning
            Where there are fewer rows than codewords in a stage, some of which are then repeated.
        """
        with self._all_or_nothing():
            X = self._checked(X, reset=True)
            settings = StageSettings.checked(
                self.n_stages, self.n_bits, "n_stages", beam_width=self.beam_width,
                max_iter=self.max_iter, tol=self.tol, refine_iter=self.refine_iter,
                init=self.init, algorithm=self.algorithm,
            )  # fmt: skip
            rng = random_state_of(self.random_state)
            training = training_rows(X, sample_weight, self.max_samples, self.n_threads, rng)
            total = len(settings.bits) + settings.refine_iter
            with Progress("fit", total, self.verbose) as progress:
                outcome = fit_stages(training, settings, rng, progress)
            n_refined = len(outcome.history) - len(settings.bits)
            self._keep(training, outcome.codebooks, outcome.history, n_refined)
        return self

    def inverse_transform(self, codes: ArrayLike, out: NDArray | None = None) -> NDArray:
        """The vectors that codes, or the first few codes of each row, stand for.

        Parameters
        ----------
        codes : array-like of integers of shape (n_samples, m), 1 <= m <= n_stages
            Codes of the first m stages: ``codes[:, :3]`` gives what three stages tell.
        out : ndarray of shape (n_samples, n_features), optional
            Where to write, of exactly the dtype of the result and in C order.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)

        Raises
        ------
        ValueError, TypeError
            For numbers that are no codes of this quantizer, and for more codes than stages.
        """
        check_is_fitted(self)
        prefix = self._prefix_codes(codes)
        out = as_out(out, (len(prefix), self.n_features_in_), self._codebook_dtype)
        self._decode(prefix, out)
        return out

    def _encode(self, X, codes):
        kernels.beam_search(
            X, self._ready(), beam_width=as_count(self.beam_width, "beam_width"), codes=codes,
            n_threads=self.n_threads,
        )  # fmt: skip


class StageSettings(NamedTuple):
    """The checked parameters of `fit_stages`."""

    bits: tuple
    beam_width: int
    max_iter: int
    tol: float
    refine_iter: int
    init: str
    algorithm: str

    @classmethod
    def checked(
        cls, n_stages, n_bits, name, *, beam_width, max_iter, tol, refine_iter, init, algorithm
    ):
        return cls(
            bits=as_bits(n_bits, as_count(n_stages, name)),
            beam_width=as_count(beam_width, "beam_width"),
            max_iter=as_count(max_iter, "max_iter"),
            tol=as_nonnegative(tol, "tol"),
            refine_iter=as_count(refine_iter, "refine_iter", minimum=0),
            init=as_word(init, "init", INITS),
            algorithm=as_word(algorithm, "algorithm", ALGORITHMS),
        )

    def of_stage(self, bits):
        # Residuals have no clusters that codewords could begin in.
        principal = self.init == "auto" and 2**bits <= GREEDY_LIMIT
        init = "principal" if principal else self.init
        return Settings(
            n_codewords=2**bits, init=init, n_init=1, algorithm=self.algorithm,
            batch_size=max(1024, 4 * 2**bits), max_iter=self.max_iter, tol=self.tol,
        )  # fmt: skip


class StageOutcome(NamedTuple):
    """What `fit_stages` ends with; codes and the last inertia belong to these codebooks."""

    codebooks: list
    codes: np.ndarray
    history: list


def training_rows(X, sample_weight, max_samples, n_threads, rng):
    """The rows to fit on, of a checked X."""
    weight = as_weights(sample_weight, len(X))
    sample = sample_positions(max_samples, len(X), rng)
    if sample is not None and weight is not None:
        weight = as_weights(weight[sample], len(sample))
    return Training.of(X, sample, weight, codebook_dtype(X), _threads.effective(n_threads))


def fit_stages(training, settings, rng, progress):
    """Codebooks one after the other, then all of them together."""
    dtype = codebook_dtype(training.X)
    n_rows = len(training.kind)
    beams, codebooks, history = np.empty((n_rows, 1, 0), np.int32), [], []
    if n_rows < 2 ** max(settings.bits):
        warnings.warn(
            f"X has {n_rows} rows, fewer than a codebook of {max(settings.bits)} bits has "
            "codewords: some of these are repeated",
            ConvergenceWarning,
            stacklevel=3,
        )
    for bits in settings.bits:
        residuals = training.residuals(codebooks, beams).kept()
        outcome = fit_rows(residuals, settings.of_stage(bits), rng, lambda *_: False)
        codebook = training.kind.release(outcome.codebook, dtype)
        codebooks = [*codebooks, codebook]
        stages = kernels.Stages(codebooks)
        n_out = int(min(settings.beam_width, np.prod([float(len(book)) for book in codebooks])))
        beams = kernels.beam_search(
            training.X, stages, beam_width=settings.beam_width, n_out=n_out, **training.options
        )
        history.append(inertia_of(training, stages, beams[:, 0]))
        progress.step(inertia=history[-1])
    return refine(training, codebooks, beams[:, 0].copy(), history, settings, progress)


def refine(training, codebooks, codes, history, settings, progress):
    """Alternate least squares and encoding, as long as that lowers the error."""
    for _ in range(settings.refine_iter):
        if history[-1] == 0:
            break
        moved = least_squares(training, codebooks, codes)
        stages = kernels.Stages(moved)
        found = kernels.beam_search(
            training.X, stages, beam_width=settings.beam_width, **training.options
        )[:, 0]
        inertia = inertia_of(training, stages, found)
        progress.step(inertia=inertia)
        if not inertia < history[-1]:
            break
        codebooks, codes, history = moved, found, [*history, inertia]
    return StageOutcome(codebooks, codes, history)
