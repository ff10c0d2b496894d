"""A classifier that sees a row through a few codes: standardise, encode, quantize, classify.

What is stored or sent of a row is its codes, n_positions · log2(n_codewords) bits. Trained jointly,
the codes keep what tells the classes apart, where k-means of a finished network's features keeps
what varies.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from fastvq._validation import as_codes, as_count, as_word
from fastvq.neural.distill import perceptron
from fastvq.neural.layers import Frozen, ProductVectorQuantize
from fastvq.neural.trainer import Trainer, as_tensor, classification_loss, threads_of_torch
from fastvq.vq._base import code_bits, code_dtype, random_state_of

__all__ = ["VQClassifier"]

CODEBOOKS = {"joint": (), "frozen": ("k-means", "post-hoc"), "none": ()}

_BLOCK = 1024  # rows in flight


class VQClassifier(ClassifierMixin, BaseEstimator):
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
    batch_size : int, default=128
    learning_rate : float, default=1e-3
    gradient : {"rotation", "straight-through"}, default="rotation"
    random_state : int, RandomState, Generator or None, default=None
    n_threads : int, optional
        PyTorch's.
    verbose : int, default=0

    Attributes
    ----------
    network_ : Module
        Rows to logits.
    classes_ : ndarray of shape (n_classes,)
    code_size_ : int
        Bytes of a row's codes, packed; of its features in float32 where nothing is quantized.
    history_ : list of dict
    n_features_in_ : int
    feature_names_in_ : ndarray
        Only where the rows came with names.

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

    def __init__(
        self,
        n_positions: int = 8,
        n_codewords: int = 16,
        *,
        code_features: int = 4,
        codebook: str = "joint",
        hidden: Sequence[int] = (128,),
        max_epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        gradient: str = "rotation",
        random_state: Any = None,
        n_threads: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_positions = n_positions
        self.n_codewords = n_codewords
        self.code_features = code_features
        self.codebook = codebook
        self.hidden = hidden
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.gradient = gradient
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose

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
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y must have two classes or more, got one class: {classes[0]!r}")
        seed = random_state_of(self.random_state).randint(2**31 - 1)
        with torch.random.fork_rng(devices=[]), threads_of_torch(self.n_threads):
            torch.manual_seed(seed)
            network = learning = self._network(X, len(classes))
            history = self._train(network, learning, X, labels, seed)
            if codebook != "none":
                network.quantizer = self._fitted_quantizer(network, X)
            if codebook == "frozen":
                network.quantizer, learning = Frozen(network.quantizer), network.head
                network.encoder.requires_grad_(False)
            history = history + self._train(network, learning, X, labels, seed)
        self.network_, self.classes_, self.history_ = network.eval(), classes, history
        bits = 32 * self.code_features if network.quantizer is None else code_bits(self.n_codewords)
        self.code_size_ = -(-self.n_positions * bits // 8)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities of the classes, (n_samples, n_classes)."""
        rows = self._checked(X)
        return self._by_blocks(lambda x: self.network_(x).softmax(1), rows)

    def predict(self, X: ArrayLike) -> NDArray:
        """The most probable class of each row."""
        places = self.predict_proba(X).argmax(axis=1)
        return self.classes_[places]

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
        hidden = [as_count(wide, "hidden") for wide in self.hidden]
        encoder = perceptron(X, hidden, width)
        # A linear classifier of the features themselves would leave the codebooks nothing to do.
        head = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, n_classes))
        return _Network(encoder, None, head)

    def _quantizer(self, init):
        return ProductVectorQuantize(
            self.n_positions * self.code_features,
            self.n_positions,
            self.n_codewords,
            gradient=self.gradient,
            init=init,
        )

    def _fitted_quantizer(self, network, X):
        """Codebooks fitted to the features of all rows by k-means."""
        network.eval()
        with torch.no_grad():
            blocks = as_tensor(X).split(_BLOCK)
            features = torch.cat([network.encoder(block) for block in blocks])
            quantizer = self._quantizer("k-means")
            for codebook in quantizer.codebooks:
                codebook.start_rows = 1
            quantizer(features)
            books = torch.stack([codebook.codewords for codebook in quantizer.codebooks])
        return self._quantizer(books)

    def _train(self, network, learning, X, labels, seed):
        return (
            Trainer(
                network,
                lambda module, x, y: module.loss(x, y),
                optimizer=lambda _: torch.optim.Adam(learning.parameters(), lr=self.learning_rate),
                max_epochs=self.max_epochs,
                batch_size=self.batch_size,
                random_state=seed,
                verbose=self.verbose,
            )
            .fit(X, labels)
            .history_
        )

    def _need_codes(self):
        if self.network_.quantizer is None:
            raise ValueError("there are no codes with codebook='none'")

    def _checked(self, X):
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=[np.float32, np.float64])

    @torch.no_grad()
    def _by_blocks(self, function, rows):
        with threads_of_torch(self.n_threads):
            blocks = as_tensor(rows).split(_BLOCK)
            return torch.cat([function(block) for block in blocks]).numpy()


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
