"""Classifiers that see pictures through codes: a perceptron with a code layer, and an LSTM.

The perceptron's codes are 4 bytes a picture; "joint" trains them with the rest, "frozen" fits them
to a finished network. The LSTM reads a picture line by line.
"""

from __future__ import annotations

import numpy as np

from bench.training import BATCH, Target, loses, pictures

TITLE = "Classifiers through codes: accuracy, percent"

ROWS, EPOCHS = 20_000, 6
LSTM_EPOCHS = 3

TARGETS = [
    Target("joint codes, points below frozen ones", loses("joint", "frozen"), 0.0),
    Target("LSTM: stored numbers, percent of float", lambda f: f["LSTM, numbers, percent"], 70.0),
    Target("LSTM: points lost by codes", loses("LSTM, codes", "LSTM, float"), 1.0),
]


def run(seed: int, quick: bool) -> dict[str, float]:
    from fastvq.neural import VQClassifier, VQLSTMClassifier

    (x, y), (x_test, y_test) = (
        (rows.reshape(-1, 784).astype(np.float32), labels)
        for rows, labels in map(pictures, ("train", "t10k"))
    )
    n = 2000 if quick else ROWS
    x, y = x[:n], y[:n]
    shared = dict(batch_size=BATCH, random_state=seed, n_threads=1)
    figures = {}
    for codebook in ("joint", "frozen", "none"):
        classifier = VQClassifier(
            8, 16, codebook=codebook, max_epochs=1 if quick else EPOCHS, **shared
        ).fit(x, y)
        figures |= _figures(codebook, classifier.predict(x_test), y_test)
    for name, codebook in (("LSTM, float", "none"), ("LSTM, codes", "joint")):
        lstm = VQLSTMClassifier(
            28, 64, codebook=codebook, max_epochs=1 if quick else LSTM_EPOCHS,
            learning_rate=3e-3, **shared,
        ).fit(x, y)  # fmt: skip
        figures |= _figures(name, lstm.predict(x_test), y_test)
    figures["LSTM, numbers, percent"] = 100 * lstm.stored_numbers_ / lstm.float_numbers_
    figures["LSTM, bits of a state"] = lstm.state_bits_
    return figures


def _figures(name, found, wanted):
    """Accuracy, the precision of the worst class, and the largest share of one that is another."""
    from sklearn.metrics import confusion_matrix

    confusion = confusion_matrix(wanted, found)
    precision = confusion.diagonal() / np.maximum(confusion.sum(axis=0), 1)
    mistaken = confusion / confusion.sum(axis=1, keepdims=True)
    np.fill_diagonal(mistaken, 0)
    return {
        name: 100 * float(np.mean(found == wanted)),
        f"{name}: least precision": 100 * float(precision.min()),
        f"{name}: most mistaken": 100 * float(mistaken.max()),
    }
