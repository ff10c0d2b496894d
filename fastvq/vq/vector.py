"""Vector quantization with one codebook: k-means, and what encodes and decodes with it.

A codebook C of k codewords is fitted to rows x by minimising the inertia Σ w·min_c |x − c|²
(Lloyd 1982; Gersho & Gray, *Vector Quantization and Signal Compression*, 1992). A row is then
stored as the number of its nearest codeword, log2 k bits, and read back as that codeword.

The loops are in `_fit`, the first codewords in `_seeding`, the rows and their metric in `_rows`.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted

from fastvq import _screen, _threads, kernels
from fastvq._progress import Progress
from fastvq._validation import (
    as_codebook,
    as_count,
    as_labels,
    as_nonnegative,
    as_out,
    as_rows,
    as_weights,
    as_word,
)
from fastvq.vq._base import (
    BaseQuantizer,
    code_bits,
    code_dtype,
    codebook_dtype,
    column_names,
    random_state_of,
)
from fastvq.vq._fit import Outcome, Settings, fit_rows, step
from fastvq.vq._probes import Probes, group_codewords, probes_for
from fastvq.vq._rate import at_a_price, fit_rates, lengths_of
from fastvq.vq._rows import Rows, UnitRows, rows_of, sample_positions, sample_size
from fastvq.vq._search import Parts
from fastvq.vq._seeding import INITS

__all__ = ["FitState", "VectorQuantizer"]

ALGORITHMS = {
    "auto": (),
    "lloyd": ("full",),
    "minibatch": (),
    "growing": ("nested",),
}
METRICS = {
    "euclidean": ("l2", "sqeuclidean"),
    "cosine": ("cos", "spherical", "angular"),
}
ASSIGNS = {"exact": (), "approximate": ("approx",)}
OUTPUTS = {
    "codes": ("code", "labels"),
    "onehot": ("onehot-sparse",),
    "onehot-dense": (),
    "distances": ("distance",),
    "reconstruction": ("reconstructed",),
}

_BLOCK_BYTES = 1 << 22
_BLOCK_ROWS = 1 << 16
_SCRATCH_BYTES = 1 << 21  # amply what a thread packs and sums in

# How far the length of a codeword of the cosine metric may be from 1: float32's rounding, amply.
_UNIT_TOLERANCE = 1e-4

# The first rows of a stream are few: more iterations than this on them would fit their noise.
_FIRST_BATCH_ITERATIONS = 10


class FitState(NamedTuple):
    """What a callback of `VectorQuantizer.fit` is given after each iteration."""

    run: int  # from 0: which of the n_init runs; with a rate_weight one more follows them
    iteration: int  # from 0: updates of the codebook so far in this run
    inertia: float  # of `codebook` (an estimate of it while only samples or batches are seen)
    codebook: np.ndarray  # read-only; it is replaced, not written into, by the next iteration


class VectorQuantizer(BaseQuantizer):
    """Vector quantizer with one codebook, fitted by k-means.

    Parameters
    ----------
    n_codewords : int, default=256
        Size of the codebook.
    init : {"auto", "k-means++", "k-means||", "random", "grouped", "principal"}, array or callable
        Where the fit starts; "auto" by default. "k-means++" is greedy, as scikit-learn's.
        "k-means||" draws many rows at a time, for large codebooks; "grouped" seeds √k groups of
        rows one by one, for codebooks of hundreds of thousands; "principal" starts from clusters
        among the 8 leading principal directions, for rows without clusters in many dimensions.
        "auto": "k-means++" up to 4096 codewords; up to 65536 "k-means||" on a sample of 32 rows a
        codeword; above that "grouped" on 8 rows a codeword. An array of shape (n_codewords,
        n_features) is the codebook to start from; a callable ``init(X, n_codewords,
        random_state)`` returns one. With "minibatch" and "growing", a sample of the
        rows is seeded on.
    n_init : int, default=1
        Runs from different seeds; the one with the lowest inertia is kept. 1 with an array.
    algorithm : {"auto", "lloyd", "minibatch", "growing"}, default="auto"
        "lloyd" assigns all rows in every iteration. "auto" gives the same codebook, bit for bit,
        by whichever exact plan is fastest on the data. "growing" runs on samples that double until
        all rows are in; "minibatch" on batches drawn at random, and is the least exact.
    batch_size : int, optional
        Rows of a mini-batch; by default the larger of 1024 and 4 times `n_codewords`.
    max_samples : int or float, optional
        Fit on so many rows drawn at random (a float in (0, 1]: that share of them); the fitted
        attributes then speak of these. By default all rows count: nothing else subsamples.
    max_iter : int, default=100
        Updates of the codebook, at most (passes over the rows for "minibatch").
    tol : float, default=1e-4
        The fit ends when an update lowers the inertia by less than this share of it; 0: when no
        code changes.
    metric : {"euclidean", "cosine"}, default="euclidean"
        With "cosine" (spherical k-means) rows are divided by their length inside, and codewords
        have length 1.
    output : {"codes", "onehot", "onehot-dense", "distances", "reconstruction"}, default="codes"
        What `transform` gives.
    random_state : int, RandomState, Generator or None, default=None
    n_threads : int, optional
        By default what `fastvq.set_num_threads`, the environment or OpenMP say. Results do not
        depend on it.
    verbose : int, default=0
        Whether `fit` shows progress.
    rate_weight : float, default=0.0
        Price of a bit in units of squared distance. Above 0 (entropy-constrained vector
        quantization), rows are encoded with the codeword that minimises squared distance +
        `rate_weight`·length, where a codeword that serves a share p of the rows has the length
        −log2 p, which is what `fastvq.entropy` makes of its code. The fit goes on from the codebook
        that it would end with otherwise. Codewords that are not worth their price vanish:
        `codebook_` may hold fewer than `n_codewords`.
    assign : {"exact", "approximate"}, default="exact"
        "approximate" looks for the nearest codeword in a few groups of codewords only, in the fit
        and after it: for codebooks of many thousands. The code of a row still depends on that row
        and the codebook alone. Not together with a `rate_weight`, and with algorithm "auto" or
        "lloyd" (which are then the same).
    assign_recall : float, default=0.99
        Share of the rows that are to get their nearest codeword when `assign` is "approximate";
        the number of groups to look into is chosen for it on up to 2048 rows.

    Attributes
    ----------
    codebook_ : ndarray of shape (n_codewords, n_features)
        Codewords; float64 where fitted on float64 (and on integers of more than 16 bits), else
        float32. Read-only: assign a new array to change it.
    counts_ : ndarray of shape (n_codewords,)
        Total weight of the rows behind each codeword.
    inertia_ : float
        Σ w·|x − c|² over the rows fitted on, from the differences themselves. After `partial_fit`:
        that of the latest batch, before the codebook moved towards it.
    inertia_history_ : ndarray
        The inertia at the start and after each iteration; the last is `inertia_`. Estimates, where
        an iteration saw only a sample.
    n_iter_ : int
        Updates of the codebook: iterations, or batches.
    code_size_ : int
        Bytes of one packed code.
    code_lengths_ : ndarray of shape (n_codewords,)
        Only with a `rate_weight`: bits that each code is taken to cost.
    entropy_ : float
        Only with a `rate_weight`: bits a row that the codes of the rows fitted on have on average.
        `inertia_` and its history are then those of the cost, distances and bits.
    groups_ : ndarray of int32 of shape (n_codewords,)
        Only where `assign` is "approximate": the group of each codeword.
    n_probes_ : int
        Only then: groups that a row looks into.
    assign_recall_ : float
        Only then: share of rows of a sample, other than the one that `n_probes_` was chosen on,
        that get their nearest codeword.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Only where the rows came with names.

    Notes
    -----
    The code of a row depends on that row and the codebook alone, and a fit with a given
    `random_state` gives the same codebook at any number of threads.

    An iteration takes n·k·d multiply-adds, greedy seeding (2 + ln k) times as many; beside the
    input and the codebook a fit needs at most 32 bytes a row.

    References
    ----------
    S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28 (1982).
    D. Arthur, S. Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    B. Bahmani et al., "Scalable k-means++", VLDB 2012.
    P. A. Chou, T. Lookabaugh, R. M. Gray, "Entropy-constrained vector quantization", IEEE Trans.
    ASSP 37 (1989).
    D. Sculley, "Web-scale k-means clustering", WWW 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq import VectorQuantizer
    >>> X = np.array([[0.0, 0.0], [0.2, 0.0], [5.0, 5.0], [5.2, 5.0]])
    >>> vq = VectorQuantizer(n_codewords=2, random_state=0).fit(X)
    >>> codes = vq.transform(X)
    >>> codes.shape, codes.dtype
    ((4, 1), dtype('uint8'))
    >>> round(vq.distortion(X), 3)
    0.01
    >>> vq.inverse_transform(codes)[2].round(1)
    array([5.1, 5. ])
    """

    _saved = ("_gathering",)
    _compiled_of = ("codebook_", "code_lengths_", "groups_", "rate_weight", "assign")

    def __init__(
        self,
        n_codewords: int = 256,
        *,
        init: str | ArrayLike | Callable[..., ArrayLike] = "auto",
        n_init: int = 1,
        algorithm: str = "auto",
        batch_size: int | None = None,
        max_samples: int | float | None = None,
        max_iter: int = 100,
        tol: float = 1e-4,
        metric: str = "euclidean",
        output: str = "codes",
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        n_threads: int | None = None,
        verbose: int = 0,
        rate_weight: float = 0.0,
        assign: str = "exact",
        assign_recall: float = 0.99,
    ) -> None:
        self.n_codewords = n_codewords
        self.init = init
        self.n_init = n_init
        self.algorithm = algorithm
        self.batch_size = batch_size
        self.max_samples = max_samples
        self.max_iter = max_iter
        self.tol = tol
        self.metric = metric
        self.output = output
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose
        self.rate_weight = rate_weight
        self.assign = assign
        self.assign_recall = assign_recall

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        if self.output != "codes":
            tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # ---- fitting ---------------------------------------------------------------------------

    @classmethod
    def from_codebook(cls, codebook: ArrayLike, **parameters: Any) -> "VectorQuantizer":
        """A quantizer with these codewords, made elsewhere: nothing is fitted.

        `partial_fit` goes on from them as from an array given as `init`.

        Parameters
        ----------
        codebook : array-like of shape (n_codewords, n_features)
            With ``metric="cosine"`` of length 1.
        **parameters
            Any of the class's but `n_codewords`.

        Returns
        -------
        quantizer : VectorQuantizer
            With `codebook_`, of float64 where `codebook` is, else float32; `counts_` are zero, and
            no inertia is known.

        Examples
        --------
        >>> vq = VectorQuantizer.from_codebook([[0, 0], [1, 1]])
        >>> vq.predict([[0.9, 0.7], [0.1, 0.2]])
        array([1, 0], dtype=int32)
        """
        rows = as_rows(codebook, "codebook")
        k, d = rows.shape
        codewords = as_codebook(rows, k, d, codebook_dtype(rows), "codebook")
        quantizer = cls(k, **parameters)
        if quantizer._metric() == "cosine":
            lengths = np.linalg.norm(codewords.astype(np.float64), axis=1)
            if abs(lengths - 1).max() > _UNIT_TOLERANCE:
                raise ValueError(
                    "codebook must have codewords of length 1 for the cosine metric, got lengths "
                    f"from {lengths.min():.6g} to {lengths.max():.6g}"
                )
        quantizer._set_codebook(codewords)
        quantizer.n_features_in_ = d
        quantizer.counts_, quantizer.inertia_history_ = np.zeros(k), np.empty(0)
        quantizer.n_iter_, quantizer._gathering = 0, False
        return quantizer

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        *,
        callback: Callable[[FitState], object] | None = None,
    ) -> "VectorQuantizer":
        """Fit the codebook.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional
        callback : callable, optional
            Called as ``callback(state)`` with a `FitState` after every iteration; the fit ends
            there if it returns something true. An exception it raises, or Ctrl-C, leaves the
            estimator as it was before.

        Returns
        -------
        self : VectorQuantizer

        Raises
        ------
        ValueError, TypeError
            For input that is not a finite 2-D array of numbers, and for parameters out of range.
        MemoryError
            Where the codebook does not fit in memory.

        Warns
        -----
        ConvergenceWarning
            Where there are fewer distinct rows than codewords: `codebook_` then holds these rows,
            sorted, and repeats them.
        """
        self._fit(X, sample_weight, callback)
        return self

    def fit_transform(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> NDArray | sparse.csr_matrix:
        """Fit the codebook and transform the same rows, for less than the price of both.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        Z : ndarray or scipy sparse matrix
            What ``fit(X).transform(X)`` gives.
        """
        rows, codes = self._fit(X, sample_weight)
        return self._transform(rows, codes=codes)

    def fit_predict(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> NDArray[np.int32]:
        """Fit the codebook; the codes of the same rows, as `predict` gives them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        codes : ndarray of int32 of shape (n_samples,)
        """
        rows, codes = self._fit(X, sample_weight)
        return self._predict(rows) if codes is None else codes

    def partial_fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> "VectorQuantizer":
        """Go on fitting with one more batch of rows.

        The first batches may be smaller than the codebook: while there are fewer distinct rows
        than codewords, the codebook is these rows, and with the batch that brings enough, it is
        seeded and fitted on all of them. From then on each codeword is the running mean of the
        rows that came to it; one that wins hardly any moves to where rows are badly served. With
        an array as `init`, this holds from the first row on. It also goes on after `fit`, with
        the counts of that fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : VectorQuantizer
        """
        with self._all_or_nothing():
            if as_nonnegative(self.rate_weight, "rate_weight"):
                raise ValueError(
                    "partial_fit knows no lengths of codes: rate_weight must be 0, "
                    f"got {self.rate_weight}"
                )
            first = "codebook_" not in vars(self)
            rows = self._checked(X, reset=first)
            weight = as_weights(sample_weight, len(rows))
            if first:
                self._begin(rows)
            if self._gathering:
                self._gather(rows, weight)
            else:
                self._absorb(rows, weight)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.int32]:
        """Code of each row, as an array of integers that can be counted with.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        codes : ndarray of int32 of shape (n_samples,)
        """
        return self._predict(self._checked(X))

    # ---- encoding and decoding -------------------------------------------------------------

    def transform(self, X: ArrayLike, out: NDArray | None = None) -> NDArray | sparse.csr_matrix:
        """Encode rows, as `output` says.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        out : ndarray, optional
            Where to write a dense result, of exactly its shape and dtype and in C order; codes
            may also go into an array of shape (n_samples,).

        Returns
        -------
        Z : ndarray or scipy sparse matrix
            - "codes": (n_samples, 1), the smallest of uint8, uint16 and uint32 that holds them.
              Codes are labels, not quantities: arithmetic on them means nothing, and
              ``codes * 256`` raises or wraps around in so small a dtype. Use `predict` to count.
            - "onehot": (n_samples, n_codewords) sparse, and "onehot-dense", in the dtype of
              `codebook_`.
            - "distances": (n_samples, n_codewords), to every codeword: Euclidean (not squared),
              or 1 − cos with the cosine metric.
            - "reconstruction": (n_samples, n_features), the nearest codeword.
        """
        return self._transform(self._checked(X), out)

    def inverse_transform(
        self, codes: ArrayLike | sparse.spmatrix, out: NDArray | None = None
    ) -> NDArray:
        """The codewords that codes stand for.

        Parameters
        ----------
        codes : array-like of shape (n_samples, 1), (n_samples,) or (n_samples, n_codewords)
            Integers of any dtype, or one-hot rows, sparse or dense. With
            ``output="reconstruction"``, its (n_samples, n_features) floats come back as they are.
        out : ndarray of shape (n_samples, n_features), optional
            Where to write, of exactly the dtype of `codebook_` and in C order.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)

        Raises
        ------
        ValueError, TypeError
            For numbers that are no codes of this codebook. Distances cannot be inverted.
        """
        check_is_fitted(self)
        if self._output() == "reconstruction" and np.asarray(codes).dtype.kind == "f":
            rows = self._checked(codes)
            if out is None:
                return rows
            out = as_out(out, rows.shape, self.codebook_.dtype)
            out[:] = rows
            return out
        labels = as_labels(codes, len(self.codebook_)).astype(np.intp, copy=False)
        out = as_out(out, (len(labels), self.n_features_in_), self.codebook_.dtype)
        return np.take(self.codebook_, labels, axis=0, out=out, mode="clip")  # "raise" copies out

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray:
        """Names of the columns that `transform` gives.

        Parameters
        ----------
        input_features : array-like of str, optional
            Names of the features, where they were not known when fitting.

        Returns
        -------
        names : ndarray of str objects
            The input's for "reconstruction", else ``vectorquantizer0``, ...
        """
        check_is_fitted(self)
        names = _check_feature_names_in(self, input_features)
        output = self._output()
        if output == "reconstruction":
            return names
        return column_names(self, 1 if output == "codes" else len(self.codebook_))

    # ---- how it is fitted ------------------------------------------------------------------

    def _fit(self, X, sample_weight, callback=None):
        """Fit; the checked rows, and their codes where all of them were fitted on."""
        with self._all_or_nothing():
            X = self._checked(X, reset=True)
            settings = self._settings(X)
            rng = random_state_of(self.random_state)
            dtype = codebook_dtype(X)
            weight = as_weights(sample_weight, len(X))
            sample = sample_positions(self.max_samples, len(X), rng)
            if sample is not None and weight is not None:
                weight = as_weights(weight[sample], len(sample))
            rows = self._rows(X, sample, weight, dtype, settings.init)
            lengths, price = None, as_nonnegative(self.rate_weight, "rate_weight")
            with Progress("fit", settings.most_iterations, self.verbose) as progress:
                watch = _watch(rows, dtype, callback, progress)
                outcome = fit_rows(rows, settings, rng, watch)
                if price:
                    outcome, lengths = fit_rates(
                        rows, outcome, rows.admit_inertia(price), partial(watch, settings.n_init),
                        max_iter=settings.max_iter, tol=settings.tol,
                    )  # fmt: skip
            self._keep(rows, outcome, dtype, lengths=lengths)
            if settings.recall is not None:
                codes = self._group(self._source(X, weight, sample), settings.recall)
                return X, codes if sample is None else None
            if outcome.n_distinct is not None:
                _warn_few(outcome.n_distinct, settings.n_codewords)
            codes = outcome.codes
            if not rows.releases_unchanged(dtype):
                codes = self._measure(self._source(X, weight, sample))
            return X, codes if sample is None else None

    def _settings(self, X):
        """The parameters of a fit, checked."""
        n_codewords = as_count(self.n_codewords, "n_codewords")
        init, n_init = self.init, as_count(self.n_init, "n_init")
        if isinstance(init, str):
            init = as_word(init, "init", INITS, ", an array or a callable")
        elif not callable(init):
            init = as_codebook(init, n_codewords, X.shape[1], codebook_dtype(X))
            n_init = 1
        batch_size = self.batch_size
        if batch_size is None:
            batch_size = max(1024, 4 * n_codewords)
        self._metric(), self._output()  # say now what is wrong with them
        return Settings(
            n_codewords=n_codewords,
            init=init,
            n_init=n_init,
            algorithm=as_word(self.algorithm, "algorithm", ALGORITHMS),
            batch_size=as_count(batch_size, "batch_size"),
            max_iter=as_count(self.max_iter, "max_iter"),
            tol=as_nonnegative(self.tol, "tol"),
            recall=self._recall(),
        )

    def _recall(self):
        """The recall that is asked for; None for exact codes."""
        if as_word(self.assign, "assign", ASSIGNS) == "exact":
            return None
        if self.rate_weight:
            raise ValueError("assign must be 'exact' with a rate_weight, got 'approximate'")
        if as_word(self.algorithm, "algorithm", ALGORITHMS) not in ("auto", "lloyd"):
            raise ValueError(
                "algorithm must be 'auto' or 'lloyd' where assign is 'approximate', "
                f"got {self.algorithm!r}"
            )
        recall = as_nonnegative(self.assign_recall, "assign_recall")
        if not 0 < recall <= 1:
            raise ValueError(f"assign_recall must be above 0 and at most 1, got {recall}")
        return recall

    def _rows(self, X, sample, weight, dtype, codebook=None):
        return rows_of(
            X,
            sample,
            weight,
            metric=self._metric(),
            dtype=dtype,
            codebook=codebook if isinstance(codebook, np.ndarray) else None,
            n_threads=_threads.effective(self.n_threads),
        )

    def _begin(self, X):
        """A stream of which no row was seen yet, beside codewords that the user gives."""
        settings, dtype = self._settings(X), codebook_dtype(X)
        self._gathering = not isinstance(settings.init, np.ndarray)
        self.codebook_ = np.empty((0, X.shape[1]), dtype)
        if not self._gathering:
            rows = self._rows(X, None, None, dtype, settings.init)
            self.codebook_ = rows.release(rows.admit(settings.init), dtype)
        self.counts_, self.inertia_history_ = np.zeros(len(self.codebook_)), np.empty(0)
        self.n_iter_ = 0

    def _gather(self, X, weight):
        """Rows of a stream before the codebook is full: what was seen is all in the codebook."""
        settings, dtype = self._settings(X), self.codebook_.dtype
        seen = self.counts_ > 0
        if seen.any():
            settings = settings._replace(n_codewords=len(self.codebook_))
            new = np.ones(len(X)) if weight is None else weight
            weight = np.concatenate([self.counts_[seen], new])
            X = np.concatenate([self.codebook_[seen], X], dtype=dtype, casting="unsafe")
        iterations = min(settings.max_iter, _FIRST_BATCH_ITERATIONS)
        settings = settings._replace(n_init=1, algorithm="lloyd", max_iter=iterations)
        rows = self._rows(X, None, weight, dtype, settings.init)
        rng = random_state_of(self.random_state)
        outcome = fit_rows(rows, settings, rng, lambda *_: False)
        outcome = outcome._replace(history=[outcome.history[-1]], n_iter=1)
        self._keep(rows, outcome, dtype, self.inertia_history_, self.n_iter_)

    def _absorb(self, X, weight):
        """One mini-batch."""
        dtype = self.codebook_.dtype
        rows = self._rows(X, None, weight, dtype, self.codebook_)
        codebook, counts, inertia = step(rows, rows.admit(self.codebook_), self.counts_)
        outcome = Outcome(codebook, None, counts, [inertia], 1)
        self._keep(rows, outcome, dtype, self.inertia_history_, self.n_iter_)

    def _keep(self, rows, outcome, dtype, history=(), n_iter=0, lengths=None):
        """Become what a fit ended with, after `n_iter` earlier updates."""
        latest = rows.release_inertia(np.array(outcome.history))
        self._set_codebook(rows.release(outcome.codebook, dtype), lengths)
        self.counts_ = outcome.counts
        self._set_entropy()
        self.inertia_ = float(latest[-1])
        self.inertia_history_ = np.concatenate([history, latest])
        self.n_iter_ = n_iter + outcome.n_iter
        self._gathering = outcome.n_distinct is not None

    def _measure(self, rows):
        """Take counts and inertia of the codebook as it is kept; the codes of these rows."""
        codes = self._assign(rows)
        self.counts_ = rows.counts(codes, len(self.codebook_))
        self._set_entropy()
        self.inertia_ = rows.inertia(rows.distances(self._prepared(), codes))
        self.inertia_history_[-1] = self.inertia_
        return codes

    def _set_codebook(self, codebook, lengths=None):
        self.codebook_ = codebook
        vars(self).pop("code_lengths_", None)
        if lengths is not None:
            self.code_lengths_ = lengths
        if len(vars(self).get("groups_", codebook)) != len(codebook):
            del self.groups_
        self._settle()

    def _group(self, rows, recall):
        """Group the codewords and find how many groups to look into; the codes of the rows."""
        self.groups_ = group_codewords(self.codebook_, n_threads=self.n_threads)
        self.n_probes_ = len(self.codebook_)
        self._settle()
        probes = self._ready().probes
        self.n_probes_, self.assign_recall_ = probes_for(probes, rows, self.codebook_, recall)
        return self._measure(rows)

    def _set_entropy(self):
        vars(self).pop("entropy_", None)
        if "code_lengths_" in vars(self):
            counts = self.counts_[self.counts_ > 0]
            self.entropy_ = float(counts @ lengths_of(counts) / counts.sum())

    # ---- how it encodes --------------------------------------------------------------------

    @property
    def _code_bits(self):
        return (code_bits(len(self.codebook_)),)

    @property
    def _code_range(self):
        return len(self.codebook_)

    def _parts(self):
        return Parts([self.codebook_], [slice(0, self.codebook_.shape[1])])

    def _metric(self):
        return as_word(self.metric, "metric", METRICS)

    def _output(self):
        return as_word(self.output, "output", OUTPUTS)

    def _prepared(self):
        """The codebook, prices included, as kernels want it to encode rows."""
        return self._ready().priced

    def _compile(self):
        codebook = self.codebook_
        lengths, price = self._rates()
        plain = kernels.widened(kernels.prepare(codebook, screen=True))
        priced = plain
        if price:
            if len(lengths) != len(codebook):
                raise ValueError(
                    f"code_lengths_ must have the length of codebook_, {len(codebook)}, "
                    f"got {len(lengths)}"
                )
            prices = at_a_price(codebook, price * lengths)
            priced = kernels.widened(
                kernels.prepare(prices, screen=True, n_row_features=codebook.shape[1])
            )
        probes, groups = None, vars(self).get("groups_")
        if groups is not None and as_word(self.assign, "assign", ASSIGNS) == "approximate":
            if len(groups) != len(codebook):
                raise ValueError(
                    f"groups_ must have the length of codebook_, {len(codebook)}, got {len(groups)}"
                )
            probes = Probes(codebook, groups, self.n_threads)
        return _Compiled(plain, priced, probes)

    def _rates(self):
        """The lengths of the codes and the price of a bit; None and 0 where they do not count."""
        lengths = vars(self).get("code_lengths_")
        price = as_nonnegative(self.rate_weight, "rate_weight") if lengths is not None else 0.0
        return lengths, price

    def _memory(self, n_rows, n_features, itemsize):
        k, threads = as_count(self.n_codewords, "n_codewords"), _threads.effective(self.n_threads)
        codebook = k * n_features * itemsize
        sample = sample_size(self.max_samples, n_rows)
        fit = 12 * codebook + (32 if itemsize == 4 else 40) * sample
        fit += 8 * n_rows if sample < n_rows else 0  # which rows
        if self.algorithm == "auto" and itemsize == 4 and n_features >= _screen.FEATURES:
            fit += 4 * sample * (max(16, n_features // 8) + 2)  # leading coordinates of all rows
        # Panels, and what screening needs (directions, short codewords; values of a block's rows).
        screen = codebook // 2 + 2 * n_features**2
        scratch = threads * (_SCRATCH_BYTES + 256 * min(k, _screen.MOST_CODEWORDS))
        codes = n_rows * (code_dtype((code_bits(k),)).itemsize + 1)
        return fit + screen + scratch, codebook + codes + screen + scratch

    def _source(self, X, weight=None, sample=None):
        """Rows to be encoded."""
        kind = UnitRows if self._metric() == "cosine" else Rows
        return kind(X, sample, weight, dtype=self.codebook_.dtype, n_threads=self.n_threads)

    def _encode(self, X, codes):
        self._assign(self._source(X), codes[:, 0])

    def _predict(self, X):
        return self._assign(self._source(X))

    def _assign(self, rows, codes=None):
        probes = self._ready().probes
        if probes is not None:
            return probes.assign(rows, self.n_probes_, codes)
        return rows.assign(self._prepared(), codes)

    def _squared_error(self, X, weight):
        errors, codebook = [], self._ready()

        def add(span):
            rows = self._source(X[span], None if weight is None else weight[span])
            codes = self._assign(rows)
            errors.append(rows.inertia(rows.distances(codebook.plain, codes)))

        self._by_blocks(X, _BLOCK_ROWS, add)
        return sum(errors)

    def _transform(self, X, out=None, codes=None):
        """Checked rows in the form that `output` says; `codes` where they are known already."""
        output, k = self._output(), len(self.codebook_)
        if output == "codes":
            return self._codes(X, out, codes)
        if output == "onehot":
            return self._onehot(X, out, codes)
        n_columns = X.shape[1] if output == "reconstruction" else k
        out = as_out(out, (len(X), n_columns), self.codebook_.dtype)
        fill = {
            "onehot-dense": self._fill_onehot,
            "distances": self._fill_distances,
            "reconstruction": self._fill_reconstruction,
        }[output]
        self._by_blocks(
            X, _BLOCK_BYTES // (n_columns * out.itemsize), lambda span: fill(X[span], out[span])
        )
        return out

    def _codes(self, X, out, codes):
        out = self._new_codes(len(X), out)
        if codes is None:
            self._encode(X, out)
        else:
            out[:, 0] = codes
        return out

    def _onehot(self, X, out, codes):
        if out is not None:
            raise ValueError("out cannot hold a sparse result: use output='onehot-dense'")
        codes = self._predict(X) if codes is None else codes
        ones = np.ones(len(X), self.codebook_.dtype)
        ends = np.arange(len(X) + 1, dtype=np.int32 if len(X) < 2**31 - 1 else np.int64)
        return sparse.csr_matrix((ones, codes, ends), shape=(len(X), len(self.codebook_)))

    def _fill_onehot(self, X, out):
        out.fill(0)
        out[np.arange(len(X)), self._predict(X)] = 1

    def _fill_reconstruction(self, X, out):
        np.take(self.codebook_, self._predict(X), axis=0, out=out, mode="clip")

    def _fill_distances(self, X, out):
        codebook = self._ready().plain
        scale = codebook.scale
        if scale != 1:  # squares of such values would overflow or vanish
            X = X.astype(np.float64) * scale
            codebook = kernels.prepare(codebook.codebook)
        for span, rows in self._source(X).pieces():
            squared = kernels.pairwise(rows, codebook, n_threads=self.n_threads)
            if self._metric() == "cosine":
                out[span] = squared / 2  # |x − c|² = 2 − 2 cos for unit vectors
            else:
                out[span] = np.sqrt(squared, out=squared) / scale


class _Compiled(NamedTuple):
    """What is made from a codebook once, for this CPU."""

    plain: kernels.Prepared  # the codebook
    priced: kernels.Prepared  # the same where codes cost nothing
    probes: Probes | None  # where codes are approximate


def _watch(rows, dtype, callback, progress):
    """What a fit calls after each iteration: shows progress, asks the user's callback."""

    def watch(run, iteration, codebook, inertia):
        inertia = float(rows.release_inertia(inertia))
        progress.step(inertia=inertia)
        if callback is None:
            return False
        codebook = rows.release(codebook, dtype).view()
        codebook.flags.writeable = False
        return callback(FitState(run, iteration, inertia, codebook))

    return watch


def _warn_few(n_distinct, n_codewords):
    warnings.warn(
        f"X has {n_distinct} distinct rows, fewer than n_codewords={n_codewords}: codebook_ holds "
        "each of them and repeats them",
        ConvergenceWarning,
        stacklevel=4,
    )
