"""Distillation: a small model learns what a large one says, not only what the labels say.

With logits u of the teacher and v of the student, soft targets are softmax(u / T), and the loss is

    α · T² · KL(softmax(u / T) ‖ softmax(v / T)) + (1 − α) · cross entropy(v, y),

T² keeping gradients of one size whatever T (Hinton, Vinyals, Dean, "Distilling the knowledge in a
neural network", arXiv:1503.02531). Other losses: logits themselves (Ba & Caruana, NeurIPS 2014) and
features in between, through a linear map (Romero et al., "FitNets", ICLR 2015).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn
from torch.nn import functional as F

from fastvq._validation import as_count, as_nonnegative
from fastvq.neural.trainer import Trainer, classification_loss, threads_of_torch
from fastvq.vq._base import random_state_of

__all__ = [
    "DistilledClassifier",
    "distillation_loss",
    "feature_loss",
    "logit_loss",
    "soft_target_loss",
]

_LEAST_PROBABILITY = 1e-6  # of a forest's classes, where the logarithm is taken


def soft_target_loss(logits, targets, temperature=1.0):
    """T² · KL(targets ‖ softmax(logits / T)), mean over the rows.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        The student's.
    targets : Tensor of shape (n, n_classes)
        Probabilities, softened already.
    temperature : float, default=1.0

    Returns
    -------
    Tensor, a scalar
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of the logits, {tuple(logits.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    found = F.log_softmax(logits / temperature, dim=1)
    return temperature**2 * F.kl_div(found, targets.to(found.dtype), reduction="batchmean")


def logit_loss(logits, targets):
    """Mean squared difference of logits; a row's mean, which says nothing, is taken off first."""
    if logits.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of the logits, {tuple(logits.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    difference = logits - targets
    return (difference - difference.mean(1, keepdim=True)).square().mean()


def feature_loss(student, teacher, mapping=None):
    """Mean squared difference of features, the student's through `mapping` where sizes differ."""
    student = student if mapping is None else mapping(student)
    if student.shape != teacher.shape:
        raise ValueError(
            f"features must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}: "
            "give a mapping, such as a linear layer that is trained with the student"
        )
    return F.mse_loss(student, teacher)


def distillation_loss(
    teacher: Callable, *, temperature: float = 4.0, alpha: float = 0.9, hard: bool = True
) -> Callable:
    """A loss for a `Trainer`: the teacher is asked for each batch, without a gradient.

    Parameters
    ----------
    teacher : Module or callable
        Gives logits of shape (n, n_classes). A module is put into evaluation.
    temperature : float, default=4.0
    alpha : float, default=0.9
        Weight of the soft targets, from 0 to 1.
    hard : bool, default=True
        False: there are no labels; the loss takes (model, X) and is that of the soft targets.

    Returns
    -------
    loss : callable
        ``loss(model, X, y)``, or ``loss(model, X)``.

    Examples
    --------
    >>> import torch
    >>> from fastvq.neural import Trainer, distillation_loss
    >>> seed = torch.manual_seed(0)
    >>> teacher, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    >>> loss = distillation_loss(teacher, hard=False)
    >>> X = torch.randn(500, 4)
    >>> history = Trainer(student, loss, max_epochs=5).fit(X).history_
    >>> history[-1]["loss"] < history[0]["loss"]
    True
    """
    temperature, alpha = _checked(temperature, alpha)
    if isinstance(teacher, nn.Module):
        teacher.eval()

    def soft(logits, X):
        with torch.no_grad():
            targets = (teacher(X) / temperature).softmax(1)
        return soft_target_loss(logits, targets, temperature)

    if not hard:
        return lambda model, X: soft(model(X), X)

    def loss(model, X, y):
        logits = model(X)
        plain, facts = classification_loss(lambda _: logits, X, y)
        return alpha * soft(logits, X) + (1 - alpha) * plain, facts

    return loss


class DistilledClassifier(ClassifierMixin, BaseEstimator):
    """A perceptron that learns from another classifier's probabilities.

    Parameters
    ----------
    teacher : estimator with `predict_proba`
        A clone of it is fitted, unless it is fitted already and `prefit` says so.
    prefit : bool, default=False
    hidden : sequence of int, default=(64,)
    temperature : float, default=2.0
        Of both sides; the teacher's logits are the logarithms of its probabilities.
    alpha : float, default=0.9
        Weight of the teacher beside the labels.
    max_epochs : int, default=50
    batch_size : int, default=128
    learning_rate : float, default=1e-3
    random_state : int, RandomState, Generator or None, default=None
    n_threads : int, optional
    verbose : int, default=0

    Attributes
    ----------
    network_ : Module
        Standardises rows and gives logits.
    teacher_ : estimator
    classes_ : ndarray of shape (n_classes,)
    history_ : list of dict
    n_features_in_ : int
    feature_names_in_ : ndarray
        Only where the rows came with names.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from fastvq.neural import DistilledClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> forest = RandomForestClassifier(50, random_state=0)
    >>> small = DistilledClassifier(forest, hidden=(16,), max_epochs=30, random_state=0)
    >>> bool(small.fit(X[:1400], y[:1400]).score(X[1400:], y[1400:]) > 0.85)
    True
    """

    def __init__(
        self,
        teacher: Any,
        *,
        prefit: bool = False,
        hidden: Sequence[int] = (64,),
        temperature: float = 2.0,
        alpha: float = 0.9,
        max_epochs: int = 50,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        random_state: Any = None,
        n_threads: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.teacher = teacher
        self.prefit = prefit
        self.hidden = hidden
        self.temperature = temperature
        self.alpha = alpha
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, X_unlabelled: ArrayLike | None = None):
        """Fit the teacher, where it is to be, and then the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        X_unlabelled : array-like of shape (n_more, n_features), optional
            More rows, of which the teacher alone says what they are.

        Returns
        -------
        self : DistilledClassifier
        """
        temperature, alpha = _checked(self.temperature, self.alpha)
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        teacher = self.teacher if self.prefit else clone(self.teacher).fit(X, y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y must have two classes or more, got one class: {classes[0]!r}")
        if not np.array_equal(teacher.classes_, classes):
            raise ValueError(f"teacher knows the classes {teacher.classes_}, y has {classes}")
        if X_unlabelled is not None:
            more = validate_data(self, X_unlabelled, reset=False, dtype=np.float64)
            X = np.concatenate([X, more])
            labels = np.concatenate([labels, np.full(len(more), -1)])
        targets = np.log(teacher.predict_proba(X).clip(_LEAST_PROBABILITY, 1))
        soft = torch.from_numpy(targets / temperature).float().softmax(1)
        seed = random_state_of(self.random_state).randint(2**31 - 1)
        with torch.random.fork_rng(devices=[]), threads_of_torch(self.n_threads):
            torch.manual_seed(seed)
            network = perceptron(X, [as_count(h, "hidden") for h in self.hidden], len(classes))
            trainer = Trainer(
                network,
                _mixed_loss(temperature, alpha),
                optimizer=lambda p: torch.optim.Adam(p, lr=self.learning_rate),
                max_epochs=self.max_epochs,
                batch_size=self.batch_size,
                random_state=seed,
                verbose=self.verbose,
            ).fit(torch.from_numpy(X).float(), torch.from_numpy(labels), soft)
        self.network_, self.teacher_, self.classes_ = network, teacher, classes
        self.history_ = trainer.history_
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities of the classes, (n_samples, n_classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        with torch.no_grad(), threads_of_torch(self.n_threads):
            return self.network_.eval()(torch.from_numpy(X).float()).softmax(1).numpy()

    def predict(self, X: ArrayLike) -> NDArray:
        """The most probable class of each row."""
        places = self.predict_proba(X).argmax(axis=1)
        return self.classes_[places]


class Standardised(nn.Module):
    """(x − mean) / deviation of each feature, kept with the network."""

    def __init__(self, X):
        super().__init__()
        deviation = np.std(X, axis=0, dtype=np.float64)
        deviation[deviation == 0] = 1
        mean = np.mean(X, axis=0, dtype=np.float64)
        self.register_buffer("mean", torch.from_numpy(mean).float())
        self.register_buffer("deviation", torch.from_numpy(deviation).float())

    def forward(self, x):
        return (x.float() - self.mean) / self.deviation


def perceptron(X, hidden, n_out):
    """Rows, standardised, through ReLU layers of these widths."""
    layers, width = [Standardised(X)], X.shape[1]
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, n_out))


def _mixed_loss(temperature, alpha):
    """Of rows with labels, or −1 where there is none, and soft targets made before."""

    def loss(model, X, y, targets):
        logits = model(X)
        known = y >= 0
        plain = F.cross_entropy(logits[known], y[known], reduction="sum") / len(y)
        return alpha * soft_target_loss(logits, targets, temperature) + (1 - alpha) * plain

    return loss


def _checked(temperature, alpha):
    temperature = as_nonnegative(temperature, "temperature")
    alpha = as_nonnegative(alpha, "alpha")
    if temperature == 0 or alpha > 1:
        raise ValueError(
            "temperature must be above 0 and alpha at most 1, "
            f"got temperature={temperature}, alpha={alpha}"
        )
    return temperature, alpha
