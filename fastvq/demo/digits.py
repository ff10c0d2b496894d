"""scikit-learn's MLP and forest on the 8 x 8 digits, as files that run with NumPy alone."""

import os
import pickle

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastvq
from fastvq.demo._alone import run_alone, seconds_per_call

__all__ = ["run"]


def models(random_state):
    """The models that are compressed, by name, not yet fitted."""
    network = MLPClassifier((128, 64), max_iter=200, random_state=random_state)
    forest = RandomForestClassifier(100, max_depth=12, random_state=random_state)
    return {"MLP": make_pipeline(StandardScaler(), network), "forest": forest}


def run(output_dir, *, n_threads=None, random_state=0, echo=print):
    """See `fastvq.demo`."""
    X, y = load_digits(return_X_y=True)
    X_fit, X_test, y_fit, y_test = train_test_split(
        X.astype(np.float32), y, stratify=y, random_state=random_state
    )
    os.makedirs(output_dir, exist_ok=True)
    echo("                bytes                 accuracy     same     one row, us     450 rows, us")
    echo("model      pickle   fastvq  sklearn  fastvq    label  sklearn  fastvq  sklearn  fastvq")
    for name, model in models(random_state).items():
        model.fit(X_fit, y_fit)
        path = os.path.join(output_dir, f"digits-{name}.fvq")
        fastvq.compress(model).save(path)
        echo(_line(name, model, path, X_test, y_test, n_threads))
    echo("")
    _, seconds = run_alone(path, X_test[:1], method="predict")
    echo(f"Start of a process with NumPy alone to the forest's first answer: {seconds:.2f} s")
    echo(f"Files: {os.path.abspath(output_dir)}")


def _line(name, model, path, X, y, n_threads):
    compressed = fastvq.load(path)
    theirs, ours = model.predict(X), compressed.predict(X)

    def predict(rows):
        return compressed.predict(rows, n_threads=n_threads)

    times = [
        1e6 * seconds_per_call(method, rows)
        for rows in (X[:1], X)
        for method in (model.predict, predict)
    ]
    return (
        f"{name:<8}{len(pickle.dumps(model)):>9,}{os.path.getsize(path):>9,}"
        f"{np.mean(theirs == y):>9.1%}{np.mean(ours == y):>8.1%}{np.mean(theirs == ours):>9.1%}"
        f"{times[0]:>9.0f}{times[1]:>8.0f}{times[2]:>9.0f}{times[3]:>8.0f}"
    )
