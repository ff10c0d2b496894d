"""Autoencoders as scikit-learn's transformers: rows to latents or codes, and back.

`fit` trains a network of `networks` with the `Trainer`; ``estimator.network_`` is that module, and
``estimator.encoder_`` and ``estimator.decoder_`` are its two halves as modules of their own, in the
units of the rows, to be exported and compressed.

PyTorch's matrix products round differently in batches of different size. So latents of a row agree
between batches up to rounding only, and a code of `VQVAE` may differ where two codewords are as
near as each other to within that: fastvq's promise about codes holds for its quantizers, not for
networks before them.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import TransformerMixin
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data
from torch import nn

from fastvq import kernels
from fastvq._validation import as_codes, as_count, as_nonnegative, as_rows, as_word
from fastvq.neural.estimators import LAST_RATE, TrainedEstimator
from fastvq.neural.layers import Frozen, ProductVectorQuantize
from fastvq.neural.networks import (
    AutoencoderNetwork,
    CodePrior,
    Scaling,
    VariationalNetwork,
    VQNetwork,
    convolutional,
    convolutional_codes,
    dense,
    dense_codes,
    draw,
    principal_directions,
    squares,
)
from fastvq.neural.trainer import as_tensor
from fastvq.vq._base import code_bits, code_dtype, column_names, random_state_of

__all__ = ["VQVAE", "AutoencoderCompressor", "VariationalAutoencoder"]

ARCHITECTURES = {"dense": ("mlp",), "convolutional": ("conv", "cnn")}
LIKELIHOODS = {"bernoulli": (), "gaussian": ("normal",)}
CODEBOOKS = {"joint": (), "frozen": ()}
PRIORS = {"autoregressive": ("ar",), "positions": ("independent", "empirical")}

_BLOCK = 1024  # rows in flight
_START_ROWS = 32  # vectors for each codeword, that codebooks start from
_DIRECTION_ROWS = 20_000  # that principal directions are taken of
# Of `impute`. Squared error of a missing pixel, lower halves of 300 pictures of Fashion-MNIST:
# 0.0377 (PCA 0.0404); trusting at once 0.0409 after 300 steps, 0.0520 after 100 at half the rate.
_ASCENT_STEPS, _ASCENT_RATE, _GUESSES = 200, 0.1, 16
_FIRST_TRUST = 0.05  # in what was seen, at first; all of it in the second half of the steps


@dataclass(eq=False, repr=False, kw_only=True)
class Autoencoder(TransformerMixin, TrainedEstimator):
    """What the three share. They define `_network(rows, scaling)`.

    Parameters
    ----------
    architecture : {"dense", "convolutional"}, default="dense"
        `hidden` are the widths of the encoder's layers, or the channels of its convolutions, each
        of which halves height and width. The decoder has them in reverse.
    image_shape : (channels, height, width) or (height, width), optional
        For convolutions; by default square and of one channel.

    Attributes
    ----------
    encoder_, decoder_ : Module
        The halves of `network_`, in the units of the rows.
    """

    architecture: str = "dense"
    image_shape: Sequence[int] | None = None

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        tags.non_deterministic = False
        return tags

    def fit(self, X: ArrayLike, y: object = None):
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Read batch by batch: 8-bit and memory-mapped arrays are not copied to floats.
        y : Ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            For input that is not a finite 2-D array of numbers, and for parameters out of range.
        Diverged
            Where the loss becomes NaN; the estimator is as it was before.
        """
        rows = as_rows(X)
        self._check(rows)
        scaling = self._scaling(rows, *kernels.extremes(rows))  # which finds NaN and infinity
        with self._training() as seed:
            network = self._network(rows, scaling)
            learning = self._learning(network)
            history = self._train(network, _own_loss, rows, seed=seed, learning=learning)
            more = self._finish(network, rows, seed)
        validate_data(self, X, reset=True, skip_check_array=True)
        self.network_, self.history_, self.seed_ = network, history, seed
        vars(self).update(more)
        return self

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray:
        """Names of the columns of `transform`."""
        check_is_fitted(self)
        _check_feature_names_in(self, input_features)
        return column_names(self, self._n_columns)

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Latents of rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        Z : ndarray of float32 of shape (n_samples, n_components)
        """
        rows = self._checked(X)
        return self._by_blocks(self.network_.encode, rows)

    def inverse_transform(self, Z: ArrayLike) -> NDArray[np.float32]:
        """Rows of latents.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)

        Returns
        -------
        X : ndarray of float32 of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        Z = as_rows(Z, "Z")
        if Z.shape[1] != self._n_columns:
            raise ValueError(f"Z must have {self._n_columns} columns, got {Z.shape[1]}")
        return self._by_blocks(self.network_.decode, Z.astype(np.float32, copy=False))

    def reconstruct(self, X: ArrayLike) -> NDArray[np.float32]:
        """``inverse_transform(transform(X))``: what is left of the rows."""
        return self.inverse_transform(self.transform(X))

    def distortion(self, X: ArrayLike) -> float:
        """Mean over the rows of Σ_f (x_f − x̂_f)²."""
        rows = self._checked(X)
        difference = rows.astype(np.float64) - self.reconstruct(X)
        return float((difference**2).sum(axis=1).mean())

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Minus the distortion."""
        return -self.distortion(X)

    @property
    def encoder_(self) -> nn.Module:
        """From rows to latents."""
        check_is_fitted(self)
        return nn.Sequential(self.network_.scaling, self.network_.encoder).eval()

    @property
    def decoder_(self) -> nn.Module:
        """From latents to rows."""
        check_is_fitted(self)
        return nn.Sequential(self.network_.decoder, self.network_.scaling.back()).eval()

    # ---- what subclasses may change ------------------------------------------------------------

    @property
    def _n_columns(self):
        return self.n_components

    def _scaling(self, rows, least, most):
        """Centred, with variance 1 over all numbers: features keep their proportions."""
        mean = float(np.mean(rows, dtype=np.float64))
        deviation = float(np.std(rows, dtype=np.float64))
        return Scaling(mean, deviation or 1.0)

    def _learning(self, network):
        """The part of the network that learns."""
        return network

    def _finish(self, network, rows, seed):
        """Fitted attributes that need more than the network."""
        return {}

    # ---- shared --------------------------------------------------------------------------------

    def _check(self, rows):
        as_word(self.architecture, "architecture", ARCHITECTURES)
        self._widths()
        self._image_shape(rows.shape[1])

    def _convolves(self):
        return as_word(self.architecture, "architecture", ARCHITECTURES) == "convolutional"

    def _image_shape(self, n_features):
        shape = self.image_shape
        if shape is None:
            if not self._convolves():
                return None
            side = math.isqrt(n_features)
            shape = (side, side)
        shape = _as_image(shape)
        if math.prod(shape) != n_features:
            raise ValueError(
                f"image_shape must multiply to the {n_features} features, got {self.image_shape}"
            )
        return shape

    def _halves(self, n_features, n_latents, n_out=None):
        """Encoder and decoder between rows and a vector."""
        if self._convolves():
            shape = self._image_shape(n_features)
            return convolutional(shape, self.hidden, n_latents, n_out)
        return dense(n_features, self.hidden, n_latents, n_out)

    def _checked(self, X):
        check_is_fitted(self)
        rows = as_rows(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        kernels.extremes(rows)  # which finds NaN and infinity
        return rows

    def _by_blocks(self, function, *arrays):
        self.network_.eval()
        return super()._by_blocks(function, *arrays)

    def _seeded(self, function, *arrays, random_state=None):
        """The same, with the global generator of PyTorch in a known state."""
        check_is_fitted(self)
        seed = self.seed_
        if random_state is not None:
            seed = random_state_of(random_state).randint(2**31 - 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._by_blocks(function, *arrays)


def _as_image(shape):
    """(channels, height, width), of which the first may be left out."""
    return tuple(shape) if len(shape) == 3 else (1, *shape)


def _some(rows, n):
    """At most n of the rows, at even steps, as a tensor."""
    return as_tensor(rows[:: -(-len(rows) // n)])


def _own_loss(network, batch):
    return network.loss(batch)


@dataclass(eq=False, repr=False)
class AutoencoderCompressor(Autoencoder):
    """Rows as a few numbers, by a network that is trained to restore them.

    Parameters
    ----------
    n_components : int, default=16
    architecture, image_shape
        As of `Autoencoder`.
    hidden, max_epochs, batch_size, learning_rate, random_state, n_threads, verbose
        As of `TrainedEstimator`.

    Attributes
    ----------
    network_ : AutoencoderNetwork

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fastvq.neural import AutoencoderCompressor
    >>> X = load_digits().data
    >>> auto = AutoencoderCompressor(
    ...     8, hidden=(64,), max_epochs=10, learning_rate=0.01, random_state=0
    ... ).fit(X)
    >>> auto.transform(X).shape, auto.inverse_transform(auto.transform(X)).shape
    ((1797, 8), (1797, 64))
    >>> bool(auto.distortion(X) < 0.4 * X.var(axis=0).sum())
    True
    """

    n_components: int = 16

    def _network(self, rows, scaling):
        n_latents = as_count(self.n_components, "n_components")
        return AutoencoderNetwork(*self._halves(rows.shape[1], n_latents), scaling)


@dataclass(eq=False, repr=False)
class VariationalAutoencoder(Autoencoder):
    """A probability density over rows, with a few latent numbers; to sample, score and complete.

    Parameters
    ----------
    n_components : int, default=16
    likelihood : {"bernoulli", "gaussian"}, default="bernoulli"
        Of a feature given the latents. "bernoulli": features from 0 to 1; for values between, the
        cross entropy stands for a density, as is usual. "gaussian": any numbers, and one variance
        that is learnt.
    beta : float, default=1.0
        Weight of the divergence; 1 gives the bound itself.
    architecture, image_shape
        As of `Autoencoder`.
    hidden, max_epochs, batch_size, learning_rate, random_state, n_threads, verbose
        As of `TrainedEstimator`.

    Attributes
    ----------
    network_ : VariationalNetwork
    encoder_ : Module
        To means and log variances, (n, 2 n_components).

    Notes
    -----
    `transform` gives the posterior means; `score` is the evidence lower bound in nats a row.

    References
    ----------
    D. P. Kingma, M. Welling, "Auto-encoding variational Bayes", ICLR 2014.
    D. J. Rezende, S. Mohamed, D. Wierstra, "Stochastic backpropagation and approximate inference in
    deep generative models", ICML 2014.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fastvq.neural import VariationalAutoencoder
    >>> X = load_digits().data / 16
    >>> vae = VariationalAutoencoder(8, hidden=(64,), max_epochs=10, random_state=0).fit(X)
    >>> vae.sample(3).shape
    (3, 64)
    >>> bool(vae.score(X) <= vae.log_likelihood(X, n_samples=20).mean())
    True
    """

    n_components: int = 16
    _: KW_ONLY
    likelihood: str = "bernoulli"
    beta: float = 1.0

    def score(self, X: ArrayLike, y: object = None, n_samples: int = 1) -> float:
        """Evidence lower bound in nats, mean over the rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        n_samples : int, default=1
            Latents drawn for a row, from the same seed in every call.

        Returns
        -------
        elbo : float
        """
        n_samples = as_count(n_samples, "n_samples")

        def bound(x):
            parts = [self.network_.bound(x) for _ in range(n_samples)]
            return torch.stack([likelihood - kl for likelihood, kl in parts]).double().mean(0)

        return float(self._seeded(bound, self._unit(self._checked(X))).mean())

    def log_likelihood(self, X: ArrayLike, n_samples: int = 100) -> NDArray[np.float64]:
        """log p of each row in nats, by importance sampling: a tighter bound than `score`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        n_samples : int, default=100

        Returns
        -------
        log_p : ndarray of float64 of shape (n_samples,)

        References
        ----------
        Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.
        """
        n_samples = as_count(n_samples, "n_samples")

        def bound(x):
            weights = torch.stack([self.network_.importance(x) for _ in range(n_samples)])
            return weights.double().logsumexp(0) - math.log(n_samples)

        return self._seeded(bound, self._unit(self._checked(X)))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> NDArray[np.float32]:
        """New rows: means given latents that are drawn from the prior.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState, Generator or None, default=None
            None: from the seed of the fit, the same in every call.

        Returns
        -------
        X : ndarray of float32 of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        places = np.empty((as_count(n_samples, "n_samples"), 0), np.float32)
        return self._seeded(
            lambda block: self.network_.decode(torch.randn(len(block), self.n_components)),
            places,
            random_state=random_state,
        )

    def impute(self, X: ArrayLike) -> NDArray[np.float32]:
        """Rows with what is missing filled in.

        The encoder knows whole rows only. So its q(z|x), of the row with averages in the gaps, is
        where gradient ascent starts for each row, on E_q[log p(seen features|z)] − KL(q ‖ p(z));
        what is missing is then the mean over draws of z (Y. Kim et al., "Semi-amortized variational
        autoencoders", ICML 2018, with the features that are there). The likelihood counts little at
        first and wholly in the end: a wrong guess of what a row is would be hard to leave otherwise
        (S. Mandt et al., "Variational tempering", AISTATS 2016).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            NaN: missing.

        Returns
        -------
        X : ndarray of float32 of shape (n_samples, n_features)
            What was seen is returned as it came.
        """
        check_is_fitted(self)
        rows = as_rows(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        rows = rows.astype(np.float32)
        missing = np.isnan(rows)
        filled = np.where(missing, self.mean_, rows)
        kernels.extremes(filled)
        return self._seeded(self._complete, self._unit(filled), ~missing)

    def _complete(self, x, seen):
        network = self.network_
        posterior = [part.requires_grad_() for part in network.posterior(x)]
        ascent = torch.optim.Adam(posterior, lr=_ASCENT_RATE)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
            ascent, _ASCENT_STEPS, LAST_RATE * _ASCENT_RATE
        )
        trust = np.linspace(_FIRST_TRUST, 2 - _FIRST_TRUST, _ASCENT_STEPS).clip(max=1)
        with torch.enable_grad():
            for share in trust:
                z, divergence = draw(*posterior)
                loss = (divergence - share * network.log_likelihood(x, z, seen)).sum()
                gradients = torch.autograd.grad(loss, posterior)
                for part, gradient in zip(posterior, gradients, strict=True):
                    part.grad = gradient
                ascent.step(), cosine.step()
        guesses = [network.decode(draw(*posterior)[0]) for _ in range(_GUESSES)]
        return torch.where(seen, x, torch.stack(guesses).mean(0))

    @property
    def decoder_(self) -> nn.Module:
        """From latents to means of rows."""
        check_is_fitted(self)
        if self.network_.likelihood == "bernoulli":
            return nn.Sequential(self.network_.decoder, nn.Sigmoid()).eval()
        return super().decoder_

    def _check(self, rows):
        super()._check(rows)
        as_word(self.likelihood, "likelihood", LIKELIHOODS)
        as_nonnegative(self.beta, "beta")

    def _scaling(self, rows, least, most):
        if as_word(self.likelihood, "likelihood", LIKELIHOODS) == "gaussian":
            return super()._scaling(rows, least, most)
        self._within(least.min(), most.max())
        return Scaling()

    def _within(self, least, most):
        if not (least >= 0 and most <= 1):
            raise ValueError(
                "X must be from 0 to 1 for the Bernoulli likelihood, got values from "
                f"{least:.6g} to {most:.6g}: divide by the largest, or use likelihood='gaussian'"
            )

    def _unit(self, rows):
        if self.network_.likelihood == "bernoulli":
            self._within(rows.min(), rows.max())
        return rows

    def _network(self, rows, scaling):
        n_latents = as_count(self.n_components, "n_components")
        halves = self._halves(rows.shape[1], n_latents, 2 * n_latents)
        likelihood = as_word(self.likelihood, "likelihood", LIKELIHOODS)
        return VariationalNetwork(*halves, scaling, likelihood, float(self.beta))

    def _finish(self, network, rows, seed):
        return {"mean_": np.mean(rows, axis=0, dtype=np.float64).astype(np.float32)}


@dataclass(eq=False, repr=False)
class VQVAE(Autoencoder):
    """Rows as a few codes, learnt together with what makes and reads them.

    Each position has a codebook of its own. Before training the whole is a product quantizer; what
    networks before and behind it learn comes on top.

    Parameters
    ----------
    n_codewords : int, default=256
    code_features : int, default=16
        Features of a codeword.
    n_positions : int, default=16
        Codes of a row, for a dense network: of its principal directions, dealt so that all have as
        much to say, or, with an `image_shape`, of so many squares. A convolutional one has squares
        of the side 2^len(hidden).
    codebook : {"joint", "frozen"}, default="joint"
        "frozen": encoder and codebooks stay as they start, and the decoder alone learns.
    gradient : {"straight-through", "rotation"}, default="straight-through"
        A rotation stretches gradients by the ratio of lengths of codeword and vector, which is
        large where vectors are almost zero, as empty patches are: there it lets codewords die.
    hidden : sequence of int, default=(512,)
        Widths, or channels, of what corrects a row or its squares before they are coded, and of
        what corrects them afterwards.
    update, decay, commitment, metric
        As of `VectorQuantize`; `commitment` is 1, with which pictures of 49 codes lost a
        sixteenth less than with a quarter (error 5.54 against 5.91 after two epochs).
    prior : {"autoregressive", "positions"}, default="autoregressive"
        What `sample` draws codes from and `bits` measures them by. "positions": how frequent each
        code was at each position, one more counted for all. "autoregressive": a recurrent network
        over the positions, trained on the codes after the rest.
    prior_epochs : int, default=5
    architecture, image_shape
        As of `Autoencoder`.
    max_epochs, batch_size, learning_rate, random_state, n_threads, verbose
        As of `TrainedEstimator`.

    Attributes
    ----------
    network_ : VQNetwork
    prior_ : CodePrior, or Tensor of shape (n_positions, n_codewords) of log probabilities
    n_positions_ : int
    code_size_ : int
        Bytes of a row's codes, packed.
    perplexity_ : float
        As how many equally likely codewords of a codebook the fitted rows use, mean over these.
    dead_share_ : float
        Share of the codewords that no fitted row uses.
    encoder_ : Module
        To the vectors that are quantized, (n, n_positions · code_features).
    decoder_ : Module
        From codewords, of that shape.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fastvq.neural import VQVAE
    >>> X = load_digits().data
    >>> vq = VQVAE(16, code_features=4, n_positions=6, hidden=(64,), max_epochs=10, prior_epochs=1,
    ...            random_state=0).fit(X)
    >>> codes = vq.transform(X)
    >>> codes.shape, codes.dtype, vq.code_size_
    ((1797, 6), dtype('uint8'), 3)
    >>> vq.inverse_transform(codes).shape, vq.sample(2).shape
    ((1797, 64), (2, 64))
    >>> vq.bits(X) < 6 * 4
    True
    """

    n_codewords: int = 256
    _: KW_ONLY
    code_features: int = 16
    n_positions: int = 16
    codebook: str = "joint"
    gradient: str = "straight-through"
    hidden: Sequence[int] = (512,)
    update: str = "average"
    decay: float = 0.99
    commitment: float = 1.0
    metric: str = "euclidean"
    prior: str = "autoregressive"
    prior_epochs: int = 5

    def transform(self, X: ArrayLike) -> NDArray:
        """Codes of rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        codes : ndarray of shape (n_samples, n_positions)
            In the smallest unsigned dtype that holds them. Codes are labels, not quantities.
        """
        return self._codes(self._checked(X)).astype(code_dtype((code_bits(self.n_codewords),)))

    def inverse_transform(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Rows of codes.

        Parameters
        ----------
        codes : array-like of integers of shape (n_samples, n_positions)

        Returns
        -------
        X : ndarray of float32 of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        codes = as_codes(codes, self.n_codewords, self.n_positions_)
        return self._by_blocks(self.network_.decode, codes.astype(np.int64))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> NDArray[np.float32]:
        """New rows, of codes that are drawn from the prior.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState, Generator or None, default=None
            None: from the seed of the fit, the same in every call.

        Returns
        -------
        X : ndarray of float32 of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        places = np.empty((as_count(n_samples, "n_samples"), 0), np.float32)
        return self._seeded(
            lambda block: self.network_.decode(self._draw(len(block))),
            places,
            random_state=random_state,
        )

    def bits(self, X: ArrayLike) -> float:
        """Bits of the codes of a row under the prior, mean over the rows.

        What an entropy coder driven by the prior would need, but for a fraction of a bit; without
        one it is ``n_positions_ * log2(n_codewords)``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        bits : float
        """
        codes = self._codes(self._checked(X))
        return float(self._by_blocks(self._nats, codes).mean() / math.log(2))

    def _codes(self, rows):
        return self._by_blocks(self.network_.encode, rows)

    def _nats(self, codes):
        if isinstance(self.prior_, CodePrior):
            return self.prior_.nats(codes).sum(1)
        return -self.prior_.T.gather(0, codes).sum(1)

    def _draw(self, n):
        if isinstance(self.prior_, CodePrior):
            return self.prior_.draw(n)
        return torch.multinomial(self.prior_.exp(), n, replacement=True).T

    @property
    def _n_columns(self):
        return self.n_positions_

    def _check(self, rows):
        super()._check(rows)
        as_word(self.prior, "prior", PRIORS)
        as_word(self.codebook, "codebook", CODEBOOKS)
        if not isinstance(self.n_codewords, Integral) or self.n_codewords < 2:
            raise ValueError(f"n_codewords must be at least 2, got {self.n_codewords!r}")

    def _network(self, rows, scaling):
        features = as_count(self.code_features, "code_features")
        if self._convolves():
            shape = self._image_shape(rows.shape[1])
            encoder, decoder, n = convolutional_codes(shape, self._widths(), features)
        else:
            n = as_count(self.n_positions, "n_positions")
            start = self._start(scaling(_some(rows, _DIRECTION_ROWS)), n, features)
            encoder, decoder = dense_codes(start, self._widths())
        quantizer = ProductVectorQuantize(
            n * features,
            n,
            self.n_codewords,
            gradient=self.gradient,
            update=self.update,
            decay=self.decay,
            commitment=self.commitment,
            metric=self.metric,
            start_rows=1,
        )
        sample = _some(rows, _START_ROWS * self.n_codewords)
        with torch.no_grad():
            quantizer(encoder(scaling(sample)))  # whose codebooks start from it
        return VQNetwork(encoder, quantizer, decoder, scaling)

    def _finish(self, network, rows, seed):
        with torch.no_grad():
            network.eval()
            starts = range(0, len(rows), _BLOCK)
            codes = torch.cat([network.encode(as_tensor(rows[i : i + _BLOCK])) for i in starts])
        n_positions = codes.shape[1]
        counts = torch.stack([torch.bincount(b, minlength=self.n_codewords) for b in codes.T])
        shares = counts / counts.sum(1, keepdim=True)
        return {
            "prior_": self._fit_prior(codes, seed),
            "n_positions_": n_positions,
            "code_size_": -(-n_positions * code_bits(self.n_codewords) // 8),
            "perplexity_": float(torch.special.entr(shares).sum(1).exp().mean()),
            "dead_share_": float((counts == 0).float().mean()),
        }

    def _start(self, rows, n_positions, features):
        if self.image_shape is None:
            return principal_directions(rows, n_positions, features)
        return squares(_as_image(self.image_shape), n_positions, features, rows.mean(0))

    def _learning(self, network):
        if as_word(self.codebook, "codebook", CODEBOOKS) == "joint":
            return network
        network.quantizer = Frozen(network.quantizer)
        network.encoder.requires_grad_(False)
        return network.decoder

    def _fit_prior(self, codes, seed):
        n_positions = codes.shape[1]
        if as_word(self.prior, "prior", PRIORS) == "autoregressive":
            prior = CodePrior(self.n_codewords, n_positions)
            epochs = as_count(self.prior_epochs, "prior_epochs")
            self._train(prior, _own_loss, codes, seed=seed, max_epochs=epochs)
            return prior
        counts = torch.nn.functional.one_hot(codes, self.n_codewords).sum(0).double() + 1
        return (counts / counts.sum(1, keepdim=True)).log()
