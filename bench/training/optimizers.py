"""Optimizers that remember in bytes, and weights that are whole numbers, beside floats.

LeNet-5, from the same start, the same batches; accuracies on the test pictures.
"""

from __future__ import annotations

import functools

from bench.training import Target, accuracy, as_batches, loses, trained
from bench.training.qat import lenet

TITLE = "Optimizers of few bits: accuracy, percent"

ROWS, EPOCHS, RATE = 60_000, 2, 1e-3

TARGETS = [
    Target("Adam in bytes, points lost", loses("Adam, bytes", "Adam"), 0.5),
    Target("momentum in bytes, points lost", loses("momentum, bytes", "momentum"), 0.5),
    Target("weights of 8 bits throughout, points lost", loses("integers", "momentum"), 2.0),
]


def run(seed: int, quick: bool) -> dict[str, float]:
    import torch

    from fastvq.neural import EightBit, IntegerSGD, classification_loss

    x, y, x_test, y_test = as_batches(2000 if quick else ROWS)
    adam = functools.partial(torch.optim.Adam, lr=RATE)
    momentum = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    rules = {
        "Adam": adam,
        "Adam, bytes": lambda p: EightBit(adam(p)),
        "Adam, bytes, no feedback": lambda p: EightBit(adam(p), feedback=False),
        "momentum": momentum,
        "momentum, bytes": lambda p: EightBit(momentum(p)),
        "integers": lambda p: IntegerSGD(p, lr=0.05, momentum=0.9, bits=8),
    }
    figures = {}
    for name, make in rules.items():
        torch.manual_seed(seed)
        network = trained(
            lenet(), classification_loss, (x, y), epochs=1 if quick else EPOCHS, rate=RATE,
            seed=seed, optimizer=make,
        )  # fmt: skip
        figures[name] = accuracy(network, x_test, y_test)
    return figures
