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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import TransformerMixin
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data
from torch import nn

from fastvq import kernels
from fastvq._validation import as_count, as_rows, as_word
from fastvq.neural.estimators import TrainedEstimator
from fastvq.neural.networks import AutoencoderNetwork, Scaling, convolutional, dense
from fastvq.vq._base import column_names, random_state_of

__all__ = [
    "Autoencoder",
    "AutoencoderCompressor",
    "GenerativeAutoencoder",
    "as_image",
    "own_loss",
]

ARCHITECTURES = {"dense": ("mlp",), "convolutional": ("conv", "cnn")}


@dataclass(eq=False, repr=False, kw_only=True)
class Autoencoder(TransformerMixin, TrainedEstimator):
    """What this one, the `VariationalAutoencoder` and the `VQVAE` share.

    They define `_network(rows, scaling)`.

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
            history = self._train(network, own_loss, rows, seed=seed, learning=learning)
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
        shape = as_image(shape)
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


@dataclass(eq=False, repr=False, kw_only=True)
class GenerativeAutoencoder(Autoencoder):
    """An autoencoder that has a density over its latents or codes, and so draws new rows.

    Classes define `_drawn(n)`: n rows of latents or codes, from PyTorch's global generator.
    """

    def sample(self, n_samples: int = 1, random_state: Any = None) -> NDArray[np.float32]:
        """New rows: what the decoder makes of latents or codes that are drawn from the prior.

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
            lambda block: self.network_.decode(self._drawn(len(block))),
            places,
            random_state=random_state,
        )


def as_image(shape):
    """(channels, height, width), of which the first may be left out."""
    return tuple(shape) if len(shape) == 3 else (1, *shape)


def own_loss(network, batch):
    """The loss that a network has of its own, as a `Trainer` wants it."""
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
