"""Networks trained on grids of few bits, beside the same ones trained on in floating point.

Each seed trains a network in floating point; from there everything goes on for the same epochs:
floats, and every kind of grid.
"""

from __future__ import annotations

import copy

from bench.training import Target, accuracy, as_batches, loses, right, trained

TITLE = "Quantization-aware training: points of accuracy lost to float"

ROWS, EPOCHS, MORE_EPOCHS = 60_000, 4, 3
RATE, FINE_RATE = 2e-3, 3e-3
# Of grids of 2 and 3 bits, whose weights have a long way from one level to the next. W2A2 is right
# in 87.4, 87.7, 87.9 and 87.8 % of 10,000 training pictures that it was not trained on, at rates of
# 1e-3, 3e-3, 6e-3 and 1e-2.
COARSE_RATE = 6e-3

SIMULATED = 500  # test pictures of which integers and their simulation are compared, bit by bit

_MINMAX = dict(weights="minmax", activations="average")

#: name: bits of weights and activations, and what else the spec says
GRIDS = {
    "W8A8": (8, {}),
    "W4A4": (4, {}),
    "W3A3": (3, {}),
    "W2A2": (2, {}),
    "W2A2, outer layers 8": (2, dict(outer_bits=8)),
    "W3A3 min-max": (3, _MINMAX),
    "W2A2 min-max": (2, _MINMAX),
}

SEPARABLE = "depthwise-separable, "

TARGETS = [
    Target("LeNet-5, W8A8", loses("W8A8", "float"), 0.15),
    Target("LeNet-5, W4A4", loses("W4A4", "float"), 0.5),
    Target("LeNet-5, W2A2, outer layers 8", loses("W2A2, outer layers 8", "float"), 1.0),
    Target("LeNet-5, W2A2", loses("W2A2", "float"), 2.2),
    Target(SEPARABLE + "W4A4", loses(SEPARABLE + "W4A4", SEPARABLE + "float"), 1.5),
    Target("LSQ less min-max, W3A3", loses("W3A3", "W3A3 min-max"), 0.0),
    Target("LSQ less min-max, W2A2", loses("W2A2", "W2A2 min-max"), 0.0),
    Target("logits other than simulated", lambda figures: figures["differ"], 0),
    Target("separable: logits other than simulated", lambda f: f[SEPARABLE + "differ"], 0),
]


def lenet():
    """LeNet-5, somewhat wider: 76,898 weights."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 12, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def separable():
    """Depthwise and pointwise convolutions in turn, as MobileNet has them."""
    from torch import nn

    def block(n_in, n_out, stride):
        return [
            nn.Conv2d(n_in, n_in, 3, stride, 1, groups=n_in, bias=False),
            nn.BatchNorm2d(n_in), nn.ReLU(),
            nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(),
        ]  # fmt: skip

    first = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [*block(16, 32, 2), *block(32, 64, 1), *block(64, 64, 1), *block(64, 128, 2)]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def run(seed: int, quick: bool) -> dict[str, float]:
    """Accuracies in percent on the test pictures, those of grids by the integers of `convert`."""
    data = as_batches(2000 if quick else ROWS)
    figures = _compared(lenet, GRIDS, data, seed, quick)
    few = {"W4A4": GRIDS["W4A4"]}
    found = _compared(separable, few, data, seed, quick)
    return figures | {SEPARABLE + name: value for name, value in found.items()}


def _compared(make, grids, data, seed, quick):
    import torch

    from fastvq.neural import QATSpec, classification_loss, convert, prepare_qat, simulate_exact

    x, y, x_test, y_test = data
    more = dict(epochs=1 if quick else MORE_EPOCHS, seed=seed + 1)
    torch.manual_seed(seed)
    start = trained(
        make(), classification_loss, (x, y), epochs=1 if quick else EPOCHS, rate=RATE, seed=seed
    )
    network = trained(copy.deepcopy(start), classification_loss, (x, y), rate=FINE_RATE, **more)
    figures = {"start": accuracy(start, x_test, y_test), "float": accuracy(network, x_test, y_test)}
    for name, (bits, options) in grids.items():
        network = prepare_qat(start, QATSpec(bits, bits, **options)).train()
        network(x[:512])  # the scales start from it
        rate = FINE_RATE if bits > 3 else COARSE_RATE
        network = trained(network, classification_loss, (x, y), rate=rate, **more)
        logits = convert(network, x_test[:1])(x_test.numpy())
        figures[name] = right(logits, y_test)
        some = x_test[:SIMULATED]
        same = simulate_exact(network, some).numpy() == logits[:SIMULATED]
        figures["differ"] = figures.get("differ", 0) + int((~same).sum())
    return figures
