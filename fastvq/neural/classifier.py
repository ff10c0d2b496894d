"""A classifier that sees a row through a few codes: standardise, encode, quantize, classify.

What is stored or sent of a row is its codes, n_positions · log2(n_codewords) bits. Trained jointly,
the codes keep what tells the classes apart, where k-means of a finished network's features keeps
what varies.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import nn

from fastvq._validation import as_codes, as_count, as_word
from fastvq.neural.distill import perceptron
from fastvq.neural.estimators import NetworkClassifier
from fastvq.neural.layers import Frozen, ProductVectorQuantize
from fastvq.neural.trainer import classification_loss
from fastvq.vq._base import code_bits, code_dtype

__all__ = ["VQClassifier"]

CODEBOOKS = {"joint": (), "frozen": ("k-means", "post-hoc"), "none": ()}


@dataclass(eq=False, repr=False)
class VQClassifier(NetworkClassifier):
    """A perceptron with a quantized layer in the middle.

    Parameters
    ----------
    n_positions : int, default=8
        Codes of a row, each of a codebook of its own.
    n_codewords : int, default=16
    code_features : int, default=4
        Features behind each code.
    codebook : {"joint", "frozen", "none"}, default="joint"
        A network without codebooks is trained, and codebooks are fitted to its features by k-means.
        "joint": then encoder, codebooks and classifier learn together. "frozen": encoder and
        codebooks stay as they are, and the classifier learns once more, behind them. "none":
        nothing is quantized, and the network trains on.
    hidden : sequence of int, default=(128,)
        Widths of the encoder's layers.
    max_epochs : int, default=30
        Of each half of the training, before codebooks are there and with them.
    gradient : {"rotation", "straight-through"}, default="rotation"
    batch_size, learning_rate, random_state, n_threads, verbose
        As of `TrainedEstimator`.

    Attributes
    ----------
    network_ : Module
        Rows to logits.
    classes_ : ndarray of shape (n_classes,)
    code_size_ : int
        Bytes of a row's codes, packed; of its features in float32 where nothing is quantized.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fastvq.neural import VQClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> vq = VQClassifier(4, 16, hidden=(64,), max_epochs=20, random_state=0)
    >>> codes = vq.fit(X[:1400], y[:1400]).encode(X[1400:])
    >>> codes.shape, vq.code_size_
    ((397, 4), 2)
    >>> bool((vq.predict_codes(codes) == vq.predict(X[1400:])).all())
    True
    >>> bool(vq.score(X[1400:], y[1400:]) > 0.85)
    True
    """

    n_positions: int = 8
    n_codewords: int = 16
    _: KW_ONLY
    code_features: int = 4
    codebook: str = "joint"
    hidden: Sequence[int] = (128,)
    max_epochs: int = 30
    gradient: str = "rotation"

    def fit(self, X: ArrayLike, y: ArrayLike) -> "VQClassifier":
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)

        Returns
        -------
        self : VQClassifier
        """
        codebook = as_word(self.codebook, "codebook", CODEBOOKS)
        X, classes, labels = self._rows_and_labels(X, y)
        with self._training() as seed:
            network = learning = self._network(X, len(classes))
            history = self._train(network, _loss, X, labels, seed=seed)
            if codebook != "none":
                network.quantizer = self._fitted_quantizer(network, X)
            if codebook == "frozen":
                network.quantizer, learning = Frozen(network.quantizer), network.head
                network.encoder.requires_grad_(False)
            history += self._train(network, _loss, X, labels, seed=seed, learning=learning)
        self.network_, self.classes_, self.history_ = network.eval(), classes, history
        bits = 32 * self.code_features if network.quantizer is None else code_bits(self.n_codewords)
        self.code_size_ = -(-self.n_positions * bits // 8)
        return self

    def encode(self, X: ArrayLike) -> NDArray:
        """Codes of rows, (n_samples, n_positions), in the smallest unsigned dtype for them."""
        rows, network = self._checked(X), self.network_
        self._need_codes()
        codes = self._by_blocks(lambda x: network.quantizer.encode(network.encoder(x)), rows)
        return codes.astype(code_dtype((code_bits(self.n_codewords),)))

    def predict_codes(self, codes: ArrayLike) -> NDArray:
        """The most probable class of rows of which only the codes are there.

        Parameters
        ----------
        codes : array-like of integers of shape (n_samples, n_positions)
        """
        check_is_fitted(self)
        self._need_codes()
        codes = as_codes(codes, self.n_codewords, self.n_positions).astype(np.int64)
        network = self.network_
        logits = self._by_blocks(lambda c: network.head(network.quantizer.decode(c)), codes)
        return self.classes_[logits.argmax(axis=1)]

    # ---- inside ------------------------------------------------------------------------------

    def _network(self, X, n_classes):
        width = as_count(self.n_positions, "n_positions")
        width *= as_count(self.code_features, "code_features")
        encoder = perceptron(X, self._widths(), width)
        # A linear classifier of the features themselves would leave the codebooks nothing to do.
        head = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, n_classes))
        return _Network(encoder, None, head)

    def _fitted_quantizer(self, network, X):
        """Codebooks fitted to the features of all rows by k-means."""
        network.eval()
        features = torch.from_numpy(self._by_blocks(network.encoder, X))
        return ProductVectorQuantize.fitted(
            features, self.n_positions, self.n_codewords, gradient=self.gradient
        )

    def _need_codes(self):
        if self.network_.quantizer is None:
            raise ValueError("there are no codes with codebook='none'")


def _loss(network, x, y):
    return network.loss(x, y)


class _Network(nn.Module):
    def __init__(self, encoder, quantizer, head):
        super().__init__()
        self.encoder, self.quantizer, self.head = encoder, quantizer, head

    def forward(self, x):
        return self._run(x)[0]

    def loss(self, x, y):
        logits, extra = self._run(x)
        plain, facts = classification_loss(lambda _: logits, x, y)
        return plain + extra, facts

    def _run(self, x):
        features = self.encoder(x)
        if self.quantizer is None:
            return self.head(features), 0.0
        found = self.quantizer(features)
        return self.head(found.values), found.loss
