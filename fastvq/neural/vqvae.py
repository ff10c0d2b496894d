"""A VQ-VAE as an estimator: rows as a few codes, and a prior over these."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from fastvq._validation import as_codes, as_count, as_word
from fastvq.neural.autoencoders import GenerativeAutoencoder, as_image, own_loss
from fastvq.neural.codebook import METRICS
from fastvq.neural.estimators import TrainedEstimator
from fastvq.neural.layers import (
    AtPositions,
    Frozen,
    ProductResidualVectorQuantize,
    ProductVectorQuantize,
    ResidualVectorQuantize,
    VectorQuantize,
)
from fastvq.neural.networks import (
    CodePrior,
    VQNetwork,
    convolutional_codes,
    dense_codes,
    principal_directions,
    rectangles,
)
from fastvq.neural.trainer import as_tensor
from fastvq.vq._base import code_bits, code_dtype

__all__ = ["VQVAE"]

CODEBOOKS = {"joint": (), "frozen": ()}
PRIORS = {"autoregressive": ("ar",), "positions": ("independent", "empirical")}

_START_ROWS = 32  # vectors for each codeword, that codebooks start from
_DIRECTION_ROWS = 20_000  # that principal directions are taken of


@dataclass(eq=False, repr=False)
class VQVAE(GenerativeAutoencoder):
    """Rows as a few codes, learnt together with what makes and reads them.

    Each position has codebooks of its own, unless they are shared: one, or several whose codewords
    are summed. Before training the whole is a product quantizer, or one of residuals; what networks
    before and behind it learn comes on top.

    Parameters
    ----------
    n_codewords : int, default=256
    code_features : int, default=16
        Features of a codeword.
    n_positions : int, default=16
        Parts of a row that are coded by themselves, for a dense network: of its principal
        directions, dealt so that all have as much to say, or, with an `image_shape`, of so many
        rectangles. A convolutional one has squares of the side 2^len(hidden).
    n_stages : int, default=1
        Codes of a position, whose codewords are summed.
    beam_width : int, default=4
        Of the search for these sums; as of `ResidualVectorQuantize`.
    shared : bool, default=False
        One set of codebooks for all positions, which sees so many times the vectors: for positions
        that are alike, as parts of a picture, and codebooks that are large for the rows there are.
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
        code was at each position, one more counted for all. "autoregressive": a network that sees
        the codes before, trained on the codes after the rest.
    prior_epochs : int, default=5
    architecture, image_shape
        As of `Autoencoder`.
    max_epochs, batch_size, learning_rate, random_state, n_threads, verbose
        As of `TrainedEstimator`.

    Attributes
    ----------
    network_ : VQNetwork
    prior_ : CodePrior, or Tensor of shape (n_codes, n_codewords) of log probabilities
    n_codes_ : int
        Codes of a row: those of the first position, of the second, ...
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
    n_stages: int = 1
    beam_width: int = 4
    shared: bool = False
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
        codes : ndarray of shape (n_samples, n_codes)
            In the smallest unsigned dtype that holds them. Codes are labels, not quantities.
        """
        return self._codes(self._checked(X)).astype(code_dtype((code_bits(self.n_codewords),)))

    def inverse_transform(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Rows of codes.

        Parameters
        ----------
        codes : array-like of integers of shape (n_samples, n_codes)

        Returns
        -------
        X : ndarray of float32 of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        codes = as_codes(codes, self.n_codewords, self.n_codes_)
        return self._by_blocks(self.network_.decode, codes.astype(np.int64))

    def bits(self, X: ArrayLike) -> float:
        """Bits of the codes of a row under the prior, mean over the rows.

        What an entropy coder driven by the prior would need, but for a fraction of a bit; without
        one it is ``n_codes_ * log2(n_codewords)``.

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

    def _drawn(self, n):
        if isinstance(self.prior_, CodePrior):
            return self.prior_.draw(n)
        return torch.multinomial(self.prior_.exp(), n, replacement=True).T

    @property
    def _n_columns(self):
        return self.n_codes_

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
        with torch.no_grad():
            sample = encoder(scaling(_some(rows, _START_ROWS * self.n_codewords)))
            quantizer = self._quantizer(sample, n)
        return VQNetwork(encoder, quantizer, decoder, scaling)

    def _quantizer(self, sample, n_positions):
        """The layer for vectors of all positions side by side, whose codebooks start from some."""
        n_stages = as_count(self.n_stages, "n_stages")
        options = dict(
            gradient=self.gradient,
            update=self.update,
            decay=self.decay,
            commitment=self.commitment,
        )
        if n_stages > 1:
            if as_word(self.metric, "metric", METRICS) != "euclidean":
                raise ValueError(f"metric must be 'euclidean' with n_stages > 1, got {self.metric}")
            one, each = ResidualVectorQuantize, ProductResidualVectorQuantize
            sizes, more = (n_stages, self.n_codewords), {"beam_width": self.beam_width}
        else:
            one, each = VectorQuantize, ProductVectorQuantize
            sizes, more = (self.n_codewords,), {"metric": self.metric}
        if self.shared:
            vectors = sample.reshape(len(sample) * n_positions, -1)
            return AtPositions(one.fitted(vectors, *sizes, **options, **more), n_positions)
        return each.fitted(sample, n_positions, *sizes, **options, **more)

    def _finish(self, network, rows, seed):
        codes = torch.from_numpy(TrainedEstimator._by_blocks(self, network.eval().encode, rows))
        counts = torch.stack([torch.bincount(c, minlength=self.n_codewords) for c in codes.T])
        if self.shared:  # positions follow each other, stages of one do so within
            counts = counts.unflatten(0, (-1, self.n_stages)).sum(0)
        shares = counts / counts.sum(1, keepdim=True)
        return {
            "prior_": self._fit_prior(codes, seed),
            "n_codes_": codes.shape[1],
            "code_size_": -(-codes.shape[1] * code_bits(self.n_codewords) // 8),
            "perplexity_": float(torch.special.entr(shares).sum(1).exp().mean()),
            "dead_share_": float((counts == 0).float().mean()),
        }

    def _start(self, rows, n_positions, features):
        if self.image_shape is None:
            return principal_directions(rows, n_positions, features)
        return rectangles(as_image(self.image_shape), n_positions, features, rows.mean(0))

    def _learning(self, network):
        if as_word(self.codebook, "codebook", CODEBOOKS) == "joint":
            return network
        network.quantizer = Frozen(network.quantizer)
        network.encoder.requires_grad_(False)
        return network.decoder

    def _fit_prior(self, codes, seed):
        if as_word(self.prior, "prior", PRIORS) == "autoregressive":
            prior = CodePrior(self.n_codewords, codes.shape[1])
            epochs = as_count(self.prior_epochs, "prior_epochs")
            self._train(prior, own_loss, codes, seed=seed, max_epochs=epochs)
            return prior
        counts = torch.nn.functional.one_hot(codes, self.n_codewords).sum(0).double() + 1
        return (counts / counts.sum(1, keepdim=True)).log()


def _some(rows, n):
    """n of the rows, or all that there are, evenly spaced, as a tensor."""
    if len(rows) > n:
        rows = rows[np.linspace(0, len(rows) - 1, n).astype(np.intp)]
    return as_tensor(rows)
