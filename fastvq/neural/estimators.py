"""What estimators share whose `fit` trains a network: parameters, seeds, the training itself.

Parameters stand here once, as fields of a dataclass: a class that derives from these adds its own,
and its ``__init__`` has them all by name, which is what scikit-learn reads.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from fastvq._validation import as_count, as_nonnegative
from fastvq.neural.trainer import Trainer, as_tensor, threads_of_torch
from fastvq.vq._base import random_state_of

__all__ = ["LAST_RATE", "NetworkClassifier", "TrainedEstimator"]

_BLOCK = 1024  # rows in flight
LAST_RATE = 0.01  # of the first


@dataclass(eq=False, repr=False, kw_only=True)
class TrainedEstimator(BaseEstimator):
    """An estimator that trains a network.

    Parameters
    ----------
    hidden : sequence of int, default=(256, 128)
        Widths of the network's layers, or the channels of its convolutions.
    max_epochs : int, default=20
    batch_size : int, default=128
    learning_rate : float, default=3e-3
        Of Adam, falling along a cosine to a hundredth.
    random_state : int, RandomState, Generator or None, default=None
    n_threads : int, optional
        PyTorch's.
    verbose : int, default=0

    Attributes
    ----------
    network_ : Module
    history_ : list of dict
        As of `Trainer`.
    n_features_in_ : int
    feature_names_in_ : ndarray
        Only where the rows came with names.
    """

    hidden: Sequence[int] = (256, 128)
    max_epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 3e-3
    random_state: Any = None
    n_threads: int | None = None
    verbose: int = 0

    @contextlib.contextmanager
    def _training(self) -> Iterator[int]:
        """PyTorch seeded and with its threads, both for a while only; gives the seed."""
        if as_nonnegative(self.learning_rate, "learning_rate") == 0:
            raise ValueError("learning_rate must be above 0")
        seed = random_state_of(self.random_state).randint(2**31 - 1)
        with torch.random.fork_rng(devices=[]), threads_of_torch(self.n_threads):
            torch.manual_seed(seed)
            yield seed

    def _widths(self) -> list[int]:
        return [as_count(width, "hidden") for width in self.hidden]

    def _train(
        self,
        network: torch.nn.Module,
        loss: Callable,
        *data: Any,
        seed: int,
        learning: torch.nn.Module | None = None,
        max_epochs: int | None = None,
    ) -> list[dict[str, float]]:
        """Train a network, or the part of it that is learning; its history."""
        max_epochs = as_count(self.max_epochs if max_epochs is None else max_epochs, "max_epochs")
        batch_size = as_count(self.batch_size, "batch_size")
        n_steps = max_epochs * -(-len(data[0]) // batch_size)
        rate, learning = self.learning_rate, network if learning is None else learning
        trainer = Trainer(
            network,
            loss,
            optimizer=lambda _: torch.optim.Adam(learning.parameters(), lr=rate),
            scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, T_max=n_steps, eta_min=LAST_RATE * rate
            ),
            schedule_by="step",
            max_epochs=max_epochs,
            batch_size=batch_size,
            random_state=seed,
            verbose=self.verbose,
        )
        return trainer.fit(*data).history_

    @torch.no_grad()
    def _by_blocks(self, function: Callable, *arrays: Any) -> NDArray:
        """What a function of tensors makes of rows, a block at a time."""
        parts = []
        with threads_of_torch(self.n_threads):
            for start in range(0, len(arrays[0]), _BLOCK):
                blocks = [as_tensor(array[start : start + _BLOCK]) for array in arrays]
                parts.append(function(*blocks).numpy())
        return np.concatenate(parts)


@dataclass(eq=False, repr=False, kw_only=True)
class NetworkClassifier(ClassifierMixin, TrainedEstimator):
    """A classifier whose `network_` gives logits.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    """

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities of the classes, (n_samples, n_classes)."""
        rows = self._checked(X)
        return self._by_blocks(lambda x: self.network_(x).softmax(1), rows)

    def predict(self, X: ArrayLike) -> NDArray:
        """The most probable class of each row."""
        places = self.predict_proba(X).argmax(axis=1)
        return self.classes_[places]

    def _rows_and_labels(self, X, y):
        """Rows, the classes, and the number of each row's class."""
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y must have two classes or more, got one class: {classes[0]!r}")
        return X, classes, labels

    def _checked(self, X):
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
