"""Students ten times smaller than their teachers, alone and taught; labels for a part of the rows.

The teacher learns from the labelled pictures, a student alone does as well; a taught one hears the
teacher, about the pictures without a label too. Students take equally many steps, taught or alone.
The gap is that between teacher and student alone.

Few labels are where teaching has something to give: small and large networks then differ in what
they make of them, and the teacher has an opinion about all the other pictures.
"""

from __future__ import annotations

import numpy as np

from bench.training import Target, accuracy, as_batches, trained
from bench.training.qat import lenet

TITLE = "Distillation: accuracy of students, percent"

LABELLED, ROWS = 5_000, 60_000
# Of all rows. The teacher has heard of its own 48 times by then; who imitates needs patience (Beyer
# et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022).
TEACHERS_EPOCHS, STUDENTS_EPOCHS = 4, 8
# Of 10,000 training pictures that no one was trained on, a student taught at 6e-3 is right in
# 86.4 %, at 3e-3 in 86.0 (86.7 after twice as many epochs), alone in 84.8, its teacher in 87.3.
RATE, STUDENTS_RATE = 2e-3, 6e-3
FOREST_LABELLED, FOREST_EPOCHS = 3_000, 20


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


def large():
    """`lenet`, its 76,898 weights kept from learning few pictures by heart."""
    from torch import nn

    *convolutions, hidden, relu, last = lenet()
    return nn.Sequential(*convolutions, nn.Dropout(0.3), hidden, relu, nn.Dropout(0.3), last)


def small():
    """7,662 weights."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 12, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(192, 28), nn.ReLU(), nn.Linear(28, 10),
    )  # fmt: skip


def run(seed: int, quick: bool) -> dict[str, float]:
    x, y, x_test, y_test = as_batches(2000 if quick else ROWS)
    return _networks(x, y, x_test, y_test, seed, quick) | _forest(x, y, x_test, y_test, seed, quick)


def _networks(x, y, x_test, y_test, seed, quick):
    import torch

    from fastvq.neural import classification_loss, soft_target_loss

    n = min(len(x) // 2, LABELLED)
    times = len(x) // n  # that labelled rows are seen while all are seen once
    teachers, students = (1, 1) if quick else (TEACHERS_EPOCHS, STUDENTS_EPOCHS)
    known = x[:n], y[:n]
    torch.manual_seed(seed)
    teacher = trained(
        large(), classification_loss, known, epochs=teachers * times, rate=RATE, seed=seed
    )
    with torch.no_grad():
        targets = torch.cat([teacher(rows).softmax(1) for rows in x.split(1000)])

    def student(loss, data, epochs):
        torch.manual_seed(seed)
        network = trained(small(), loss, data, epochs=epochs, rate=STUDENTS_RATE, seed=seed)
        return accuracy(network, x_test, y_test)

    def taught(model, x, targets):
        return soft_target_loss(model(x), targets)

    return {
        "teacher": accuracy(teacher, x_test, y_test),
        "taught": student(taught, (x, targets), students),
        "alone": student(classification_loss, known, students * times),
    }


def _forest(x, y, x_test, y_test, seed, quick):
    from sklearn.ensemble import RandomForestClassifier

    from fastvq.neural import DistilledClassifier

    (rows, test), n = (part.flatten(1).numpy() for part in (x, x_test)), FOREST_LABELLED
    n = min(n, len(rows) // 2)
    labels, wanted = y.numpy(), y_test.numpy()
    forest = RandomForestClassifier(200, random_state=seed).fit(rows[:n], labels[:n])
    # 8 units: with more, a perceptron alone is as good as the forest, and with 100 better.
    options = dict(prefit=True, hidden=(8,), random_state=seed, n_threads=1)
    epochs = 2 if quick else FOREST_EPOCHS

    def student(more, epochs, **choices):
        classifier = DistilledClassifier(forest, max_epochs=epochs, **options, **choices)
        classifier.fit(rows[:n], labels[:n], X_unlabelled=more)
        return 100 * float(np.mean(classifier.predict(test) == wanted))

    return {
        "forest": 100 * forest.score(test, wanted),
        "MLP alone": student(None, epochs * len(rows) // n, alpha=0.0),
        "MLP alone, a fourth of the steps": student(None, epochs * len(rows) // n // 4, alpha=0.0),
        "MLP taught": student(rows[n:], epochs),
    }
