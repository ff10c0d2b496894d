"""What networks lose by becoming smaller, and what they learn in spite of it.

A part is a module with

- ``TITLE``
- ``run(seed, quick)``: the figures of one seed, a dict of names and numbers
- ``TARGETS``: what is asked of them, each a `Target`

All train on Fashion-MNIST with one thread. Whatever is compared starts from the same weights and
sees the same batches, equally often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bench.data import MissingData

BATCH = 128


@dataclass(frozen=True)
class Target:
    """A number that is made of the figures of a seed, and its bound.

    Attributes
    ----------
    text : str
    value : callable
        Of a seed's figures.
    most : float
        What the mean over seeds may be at most.
    """

    text: str
    value: Callable[[dict], float]
    most: float


def loses(name: str, to: str) -> Callable[[dict], float]:
    """By how many points of accuracy one is worse than another."""
    return lambda figures: figures[to] - figures[name]


@lru_cache(maxsize=2)
def pictures(part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST: (n, 28, 28) of uint8 and labels (n,); "train" or "t10k"."""
    from fastvq.demo.fashion import load_fashion_mnist

    try:
        return load_fashion_mnist(part)
    except FileNotFoundError as error:
        raise MissingData(str(error)) from None


def as_batches(n_rows: int | None = None):
    """Tensors for networks: training pictures, labels, test pictures, labels.

    Pixels are from 0 to 1: where nothing is negative, a grid of few bits has a use for all codes.
    """
    import torch

    def tensors(part, n):
        x, y = (array[:n] for array in pictures(part))
        x = x[:, None] / np.float32(255)
        return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))

    return *tensors("train", n_rows), *tensors("t10k", None)


def trained(network, loss, data, *, epochs: int, rate: float, seed: int, **options):
    """The network after so many epochs of Adam (or another) at a rate that falls to nothing."""
    import torch

    from fastvq.neural import Trainer

    network.to(memory_format=torch.channels_last)  # LeNet-5: 27 ms a step instead of 37
    n_steps = epochs * -(-len(data[0]) // BATCH)
    options.setdefault("optimizer", lambda parameters: torch.optim.Adam(parameters, lr=rate))
    trainer = Trainer(
        network,
        loss,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps),
        schedule_by="step",
        max_epochs=epochs,
        batch_size=BATCH,
        random_state=seed,
        **options,
    )
    return trainer.fit(*data).model


def accuracy(network, x, y) -> float:
    """Percent of the rows that a network of PyTorch names rightly."""
    import torch

    network.eval()
    with torch.no_grad():
        return right(torch.cat([network(block) for block in x.split(1000)]).numpy(), y)


def right(logits, y) -> float:
    """Percent of the rows whose largest logit is that of their class."""
    return 100 * float((logits.argmax(axis=1) == np.asarray(y)).mean())
