"""Nine tenths of the weights pruned while a network trains on, beside one that keeps them all."""

from __future__ import annotations

import copy

from bench.training import BATCH, Target, accuracy, as_batches, loses, trained
from bench.training.qat import EPOCHS, RATE, ROWS, lenet

TITLE = "Pruning: accuracy, percent"

SPARSITY = 0.9
# What is pruned goes on to learn when floats have done so: of 10,000 training pictures that they
# were not trained on they lose 0.46 points after six epochs at 3e-3, 0.43 after twelve.
MORE_EPOCHS = 12
FINE_RATE = 3e-3

TARGETS = [
    Target("points lost by 90 % zeros", loses("pruned", "float"), 0.5),
    Target("points lost by 90 % zeros, W8A8", loses("pruned, W8A8", "float"), 0.5),
]


def run(seed: int, quick: bool) -> dict[str, float]:
    import torch

    from fastvq.neural import GradualPruning, QATSpec, classification_loss, prepare_qat

    x, y, x_test, y_test = as_batches(2000 if quick else ROWS)
    epochs, more = (1, 1) if quick else (EPOCHS, MORE_EPOCHS)
    torch.manual_seed(seed)
    start = trained(lenet(), classification_loss, (x, y), epochs=epochs, rate=RATE, seed=seed)
    steps = more * -(-len(x) // BATCH)
    figures = {}
    for name in ("float", "pruned", "pruned, W8A8"):
        network = copy.deepcopy(start)
        if name.endswith("W8A8"):
            network = prepare_qat(network, QATSpec(8, 8)).train()
            network(x[:512])
        pruning = GradualPruning(SPARSITY, end=steps // 2, every=max(1, steps // 40))
        hooks = [] if name == "float" else [pruning]
        network = trained(
            network, classification_loss, (x, y), epochs=more, rate=FINE_RATE, seed=seed + 1,
            after_step=hooks,
        )  # fmt: skip
        figures[name] = accuracy(network, x_test, y_test)
        if hooks:
            figures[f"{name}: zeros, percent"] = 100 * _zeros(network, pruning)
    return figures


def _zeros(network, pruning):
    weights = dict(network.named_parameters())
    counts = [(int((weights[name] == 0).sum()), mask.numel()) for name, mask in
              pruning.masks.items()]  # fmt: skip
    return sum(zeros for zeros, _ in counts) / sum(n for _, n in counts)
