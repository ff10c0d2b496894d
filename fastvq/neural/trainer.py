"""Training on the CPU that repeats and resumes: a loop around PyTorch's optimizers, no framework.

What a run depends on is its data, the model it starts from and `random_state`. Everything that an
epoch changes is in the checkpoint that is written after it: weights, moments, schedules, the state
of the random generators. So an interrupted run, resumed, ends in the same bits as one that was not
interrupted. (At another number of threads PyTorch itself adds in another order.)
"""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from fastvq._progress import Progress
from fastvq._validation import as_count, as_nonnegative, as_word
from fastvq.neural.codebook import NotFiniteError

__all__ = ["Diverged", "TrainState", "Trainer", "classification_loss", "regression_loss"]

SCHEDULES = {"epoch": (), "step": ("batch",)}

_EVALUATION_ROWS = 1024  # at a time; larger batches leave the caches
_SEED_OFFSET = 0x5EED  # the order of rows is drawn from another stream than what the model draws


class Diverged(RuntimeError):
    """The loss or the weights are not finite any more.

    Attributes
    ----------
    epoch, step : int
        Where, both from 0; the step within the epoch.
    checkpoint : Path or None
        The last good one.
    """

    def __init__(self, what, epoch, step, checkpoint):
        kept = (
            f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint is kept"
        )
        super().__init__(f"{what} in epoch {epoch}, step {step}: {kept}")
        self.epoch, self.step, self.checkpoint = epoch, step, checkpoint


class TrainState(NamedTuple):
    """What a callback of `Trainer` is given after each epoch."""

    epoch: int  # from 0
    model: torch.nn.Module
    history: list[dict[str, float]]  # the last entry is this epoch's


class Trainer:
    """Trains a module by mini-batches.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.
    loss : callable
        ``loss(model, *batch)`` gives a scalar tensor, the mean over the batch, or that and a dict
        of numbers to be kept in the history. `classification_loss`, `regression_loss`, or yours.
    optimizer : callable, default=torch.optim.Adam
        Makes the optimizer of the parameters: ``functools.partial(torch.optim.SGD, lr=0.1)``.
    scheduler : callable, optional
        Makes a scheduler of the optimizer; it steps after each epoch (`ReduceLROnPlateau` by the
        validation loss), or as `schedule_by` says.
    schedule_by : {"epoch", "step"}, default="epoch"
        "step": the scheduler steps after every step of the optimizer.
    max_epochs : int, default=20
    batch_size : int, default=128
        Rows of a step; the last batch of an epoch may have fewer.
    patience : int, optional
        Stop when the validation loss (that of training, without validation data) has not fallen for
        so many epochs.
    min_improvement : float, default=0
        By how much it must fall to count.
    keep_best : bool, default=True
        End with the weights of the best epoch, where there are validation data.
    after_step : iterable of callables, default=()
        ``f(model)`` after every step of the optimizer, without gradients: masks, constraints. What
        has `state_dict` and `load_state_dict` is kept in checkpoints.
    callback : callable, optional
        ``callback(state)`` with a `TrainState` after each epoch; something true ends the training.
    checkpoint : path, optional
        File that is replaced after each epoch, whole or not at all.
    max_gradient : float, optional
        Gradients longer than this, over all parameters, are shortened to it.
    log_dir : path, optional
        Where to log for TensorBoard (extra "tensorboard").
    random_state : int, default=0
        Seeds the order of rows and, for the time of `fit`, PyTorch's global generator.
    n_threads : int, optional
        PyTorch's threads for the time of `fit`; by default as they are.
    verbose : int, default=0

    Attributes
    ----------
    history_ : list of dict
        For each epoch "loss", "validation_loss" where there are such data, "rate" (the first
        group's), what `loss` added, and the same of validation after "validation\\_".
    best_epoch_ : int

    Examples
    --------
    >>> import torch
    >>> from fastvq.neural import Trainer, regression_loss
    >>> seed = torch.manual_seed(0)
    >>> x = torch.randn(256, 3)
    >>> y = x @ torch.tensor([[1.0], [2.0], [3.0]])
    >>> trainer = Trainer(torch.nn.Linear(3, 1), regression_loss, max_epochs=30,
    ...                   optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    >>> history = trainer.fit(x, y).history_
    >>> len(history), history[-1]["loss"] < 1e-6
    (30, True)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Callable[..., Any],
        *,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] = torch.optim.Adam,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        schedule_by: str = "epoch",
        max_epochs: int = 20,
        batch_size: int = 128,
        patience: int | None = None,
        min_improvement: float = 0.0,
        keep_best: bool = True,
        after_step: Iterable[Callable[[torch.nn.Module], object]] = (),
        callback: Callable[[TrainState], object] | None = None,
        checkpoint: str | os.PathLike | None = None,
        max_gradient: float | None = None,
        log_dir: str | os.PathLike | None = None,
        random_state: int = 0,
        n_threads: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.model, self.loss = model, loss
        self.optimizer = optimizer([p for p in model.parameters() if p.requires_grad])
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        self.schedule_by = as_word(schedule_by, "schedule_by", SCHEDULES)
        self.max_epochs = as_count(max_epochs, "max_epochs")
        self.batch_size = as_count(batch_size, "batch_size")
        self.patience = None if patience is None else as_count(patience, "patience")
        self.min_improvement = as_nonnegative(min_improvement, "min_improvement")
        self.keep_best = keep_best
        self.after_step = list(after_step)
        self.callback = callback
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.max_gradient = max_gradient
        self.log_dir = log_dir
        self.random_state = as_count(random_state, "random_state", minimum=0)
        self.n_threads = n_threads
        self.verbose = verbose

    def fit(self, *data, validation=None, resume=False) -> "Trainer":
        """Train.

        Parameters
        ----------
        *data : arrays or tensors of equal length
            A batch of each goes to `loss`: (X,) or (X, y), ...
        validation : tuple of the same, optional
        resume : bool, default=False
            Go on from the checkpoint, where there is one: the model and everything else become
            what they were after that epoch.

        Returns
        -------
        self : Trainer

        Raises
        ------
        ValueError
            For data of different lengths, and for a checkpoint of another model.
        Diverged
            Where loss or weights become NaN or infinite. The checkpoint is that of the epoch
            before.
        """
        data = _tensors(data, "data")
        validation = None if validation is None else _tensors(validation, "validation")
        if validation is not None and len(validation) != len(data):
            raise ValueError(
                f"validation must have {len(data)} arrays as the data have, got {len(validation)}"
            )
        n_steps = -(-len(data[0]) // self.batch_size)
        with (
            torch.random.fork_rng(devices=[]),
            threads_of_torch(self.n_threads),
            _Log(self.log_dir) as log,
            Progress("train", self.max_epochs * n_steps, self.verbose) as progress,
        ):
            self._begin(resume)
            while not self._ended():
                self._epoch(data, validation, log, progress)
        if self.keep_best and validation is not None:
            self.model.load_state_dict(self._best_model)
        self.model.eval()
        return self

    def evaluate(self, *data) -> dict[str, float]:
        """Mean loss, and what `loss` adds to it, of the model in evaluation.

        Parameters
        ----------
        *data : arrays or tensors of equal length

        Returns
        -------
        means : dict
            "loss" and others.
        """
        data, was_training = _tensors(data, "data"), self.model.training
        self.model.eval()
        means = _Means()
        with torch.no_grad():
            for start in range(0, len(data[0]), _EVALUATION_ROWS):
                batch = [part[start : start + _EVALUATION_ROWS] for part in data]
                means.add(*_with_metrics(self.loss(self.model, *batch)), len(batch[0]))
        self.model.train(was_training)
        return means.result()

    # ---- one run -----------------------------------------------------------------------------

    def _begin(self, resume):
        torch.manual_seed(self.random_state)
        self._order = torch.Generator().manual_seed(self.random_state + _SEED_OFFSET)
        self.history_, self.best_epoch_, self._best_loss = [], -1, math.inf
        self._best_model, self._stopped = None, False
        if resume:
            if self.checkpoint is None:
                raise ValueError("resume needs a checkpoint, the path of the file to go on from")
            if self.checkpoint.exists():
                self._load()

    def _ended(self):
        epoch = len(self.history_)
        waited = epoch - 1 - self.best_epoch_
        impatient = self.patience is not None and waited >= self.patience
        return self._stopped or epoch >= self.max_epochs or impatient

    def _epoch(self, data, validation, log, progress):
        epoch, means = len(self.history_), _Means()
        self.model.train()
        order = torch.randperm(len(data[0]), generator=self._order)
        for step, places in enumerate(order.split(self.batch_size)):
            try:
                loss, metrics = self._step([part[places] for part in data])
            except NotFiniteError as error:
                raise Diverged(str(error), epoch, step, self._kept()) from error
            if not math.isfinite(loss):
                raise Diverged(f"loss is {loss}", epoch, step, self._kept())
            means.add(loss, metrics, len(places))
            progress.step(epoch=epoch, loss=loss)
        self._check_weights(epoch, step)
        facts = {**means.result(), "rate": self.optimizer.param_groups[0]["lr"]}
        if validation is not None:
            found = self.evaluate(*validation)
            facts |= {f"validation_{name}": value for name, value in found.items()}
        self._end_epoch(facts, log)

    def _step(self, batch):
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics = _with_metrics(self.loss(self.model, *batch))
        value = loss.item()
        if not math.isfinite(value):
            return value, metrics  # the weights stay as they were before
        loss.backward()
        if self.max_gradient is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_gradient)
        self.optimizer.step()
        if self.scheduler is not None and self.schedule_by == "step":
            self.scheduler.step()
        with torch.no_grad():
            for constrain in self.after_step:
                constrain(self.model)
        return value, metrics

    def _check_weights(self, epoch, step):
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                raise Diverged(f"{name} is not finite", epoch, step, self._kept())

    def _end_epoch(self, facts, log):
        epoch = len(self.history_)
        self.history_.append(facts)
        watched = facts.get("validation_loss", facts["loss"])
        if watched < self._best_loss - self.min_improvement:
            self.best_epoch_, self._best_loss = epoch, watched
            if self.keep_best and "validation_loss" in facts:
                self._best_model = _copied(self.model.state_dict())
        if self.scheduler is not None and self.schedule_by == "epoch":
            plateau = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*[watched] if plateau else [])
        log.write(facts, epoch)
        if self.callback is not None:
            self._stopped = bool(self.callback(TrainState(epoch, self.model, self.history_)))
        if self.checkpoint is not None:
            self._save()

    # ---- checkpoints -------------------------------------------------------------------------

    def _kept(self):
        path = self.checkpoint
        return path if path is not None and self.history_ and path.exists() else None

    def _stateful(self):
        return [hook for hook in self.after_step if hasattr(hook, "state_dict")]

    def _save(self):
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "after_step": [hook.state_dict() for hook in self._stateful()],
            "random": torch.get_rng_state(),
            "order": self._order.get_state(),
            "history": self.history_,
            "best": (self.best_epoch_, self._best_loss, self._best_model),
            "stopped": self._stopped,
        }
        unfinished = self.checkpoint.with_name(f"{self.checkpoint.name}.{os.getpid()}.part")
        try:
            torch.save(state, unfinished)
            os.replace(unfinished, self.checkpoint)
        finally:
            unfinished.unlink(missing_ok=True)

    def _load(self):
        state = torch.load(self.checkpoint, weights_only=True)  # runs no code of the file's
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"checkpoint {self.checkpoint} is of another model: {error}") from None
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        for hook, kept in zip(self._stateful(), state["after_step"], strict=True):
            hook.load_state_dict(kept)
        torch.set_rng_state(state["random"])
        self._order.set_state(state["order"])
        self.history_ = state["history"]
        self.best_epoch_, self._best_loss, self._best_model = state["best"]
        self._stopped = state["stopped"]


def classification_loss(model, X, y):
    """Cross entropy, with the accuracy beside it.

    Parameters
    ----------
    model : callable
        Gives logits of shape (n, n_classes).
    X : Tensor of shape (n, ...)
    y : integer Tensor of shape (n,)
        From 0 to n_classes − 1.

    Returns
    -------
    loss : Tensor, a scalar
    metrics : dict
        "accuracy".

    Raises
    ------
    ValueError, TypeError
        For logits or labels of other shapes, labels that are no integers or out of range.
    """
    logits = model(X)
    if logits.ndim != 2 or len(logits) != len(X):
        raise ValueError(
            f"model must give logits of shape ({len(X)}, n_classes), got {tuple(logits.shape)}"
        )
    if y.shape != (len(X),):
        raise ValueError(f"y must have the shape ({len(X)},), got {tuple(y.shape)}")
    if y.is_floating_point() or y.is_complex():
        raise TypeError(f"y must be integers, the numbers of classes, got {y.dtype}")
    y = y.long()
    if len(y) and not (y.min() >= 0 and y.max() < logits.shape[1]):
        raise ValueError(
            f"y must be from 0 to {logits.shape[1] - 1}, the classes that the model has, got "
            f"labels from {int(y.min())} to {int(y.max())}"
        )
    accuracy = (logits.detach().argmax(1) == y).float().mean().item()
    return F.cross_entropy(logits, y), {"accuracy": accuracy}


def regression_loss(model, X, y):
    """Mean squared error; shapes must be equal, nothing is broadcast.

    Parameters
    ----------
    model : callable
    X : Tensor of shape (n, ...)
    y : Tensor of the shape of ``model(X)``

    Returns
    -------
    loss : Tensor, a scalar
    """
    found = model(X)
    if found.shape != y.shape:
        raise ValueError(
            f"y must have the shape that the model gives, {tuple(found.shape)}, "
            f"got {tuple(y.shape)}"
        )
    return F.mse_loss(found, y.to(found.dtype))


class _Means:
    """Means over rows of what batches report."""

    def __init__(self):
        self._sums, self._n = {}, 0

    def add(self, loss, metrics, n):
        self._n += n
        for name, value in {"loss": loss, **metrics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * n

    def result(self):
        return {name: total / self._n for name, total in self._sums.items()}


class _Log:
    """Numbers for TensorBoard, where a directory was given."""

    def __init__(self, directory):
        self._writer = None
        if directory is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError('log_dir needs: pip install "fastvq[tensorboard]"') from error
            self._writer = SummaryWriter(str(directory))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._writer is not None:
            self._writer.close()

    def write(self, facts, epoch):
        if self._writer is not None:
            for name, value in facts.items():
                self._writer.add_scalar(name, value, epoch)


@contextlib.contextmanager
def threads_of_torch(n_threads):
    before = torch.get_num_threads()
    if n_threads is not None:
        torch.set_num_threads(as_count(n_threads, "n_threads"))
    try:
        yield
    finally:
        if n_threads is not None:
            torch.set_num_threads(before)


def _tensors(data, name):
    tensors = [as_tensor(part) for part in data]
    if not tensors or not all(part.ndim and len(part) for part in tensors):
        raise ValueError(f"{name} must be arrays with at least one row each")
    lengths = [len(part) for part in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name} must have equally many rows in each array, got {lengths}")
    return tensors


def as_tensor(array):
    """An array as a tensor of the same memory wherever PyTorch can express it; nobody writes."""
    if torch.is_tensor(array):
        return array
    array = np.asarray(array)
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(array)


def _with_metrics(found):
    loss, metrics = found if isinstance(found, tuple) else (found, {})
    if loss.numel() != 1:
        raise ValueError(f"loss must be a scalar, got a tensor of shape {tuple(loss.shape)}")
    return loss, metrics


def _copied(state):
    """A state dict that later steps do not change."""
    return {
        name: value.clone() if torch.is_tensor(value) else value for name, value in state.items()
    }
