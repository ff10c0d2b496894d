"""Students ten times smaller than their teachers, alone and taught; labels for a part of the rows.

The teacher learns from the labelled pictures. A student alone does as well; a taught one hears the
teacher, about these pictures, or about those without a label too. All students take equally many
steps. The gap is that between teacher and student alone.
"""

from __future__ import annotations

import numpy as np

from bench.training import Target, accuracy, as_batches, trained
from bench.training.qat import lenet

TITLE = "Distillation: accuracy of students, percent"

LABELLED, ROWS, EPOCHS, RATE = 10_000, 60_000, 4, 2e-3  # epochs are of all rows
FOREST_LABELLED = 3_000


def closed(student: str, alone: str, teacher: str):
    """Minus the share of the gap that teaching closes."""
    return lambda f: -(f[student] - f[alone]) / (f[teacher] - f[alone])


TARGETS = [
    Target("CNN: minus the share of the gap", closed("taught", "alone", "teacher"), -0.5),
    Target(
        "forest: minus the share of the gap",
        closed("MLP taught", "MLP alone", "forest"),
        -0.5,
    ),
]


def small():
    """12,180 weights."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def run(seed: int, quick: bool) -> dict[str, float]:
    x, y, x_test, y_test = as_batches(2000 if quick else ROWS)
    return _networks(x, y, x_test, y_test, seed, quick) | _forest(x, y, x_test, y_test, seed, quick)


def _networks(x, y, x_test, y_test, seed, quick):
    import torch

    from fastvq.neural import classification_loss, distillation_loss

    n = min(len(x) // 2, LABELLED)
    epochs = 1 if quick else EPOCHS
    labelled = dict(epochs=epochs * len(x) // n, rate=RATE, seed=seed)
    torch.manual_seed(seed)
    teacher = trained(lenet(), classification_loss, (x[:n], y[:n]), **labelled)

    def student(loss, data, epochs):
        torch.manual_seed(seed)
        network = trained(small(), loss, data, epochs=epochs, rate=RATE, seed=seed)
        return accuracy(network, x_test, y_test)

    return {
        "teacher": accuracy(teacher, x_test, y_test),
        "alone": student(classification_loss, (x[:n], y[:n]), labelled["epochs"]),
        "taught, labelled rows": student(
            distillation_loss(teacher), (x[:n], y[:n]), labelled["epochs"]
        ),
        "taught": student(distillation_loss(teacher, hard=False), (x,), epochs),
    }


def _forest(x, y, x_test, y_test, seed, quick):
    from sklearn.ensemble import RandomForestClassifier

    from fastvq.neural import DistilledClassifier

    (rows, test), n = (part.flatten(1).numpy() for part in (x, x_test)), FOREST_LABELLED
    n = min(n, len(rows) // 2)
    labels, wanted = y.numpy(), y_test.numpy()
    forest = RandomForestClassifier(200, random_state=seed).fit(rows[:n], labels[:n])
    options = dict(prefit=True, hidden=(32,), random_state=seed, n_threads=1)
    epochs = 2 if quick else EPOCHS

    def student(more, epochs, **choices):
        classifier = DistilledClassifier(forest, max_epochs=epochs, **options, **choices)
        classifier.fit(rows[:n], labels[:n], X_unlabelled=more)
        return 100 * float(np.mean(classifier.predict(test) == wanted))

    return {
        "forest": 100 * forest.score(test, wanted),
        "MLP alone": student(None, epochs * len(rows) // n, alpha=0.0),
        "MLP taught, labelled rows": student(None, epochs * len(rows) // n),
        "MLP taught": student(rows[n:], epochs),
    }
