"""How well a compressed model does beside the float one, and how sure that is.

A judge turns outputs into a score: accuracy or R² by what the examples are, a score of the caller's
own, or nearness to the float model where nothing is known of the examples. Of two models it also
says how much of the score may be lost at the most, with a one-sided confidence of 95 %, taking the
examples as drawn at random and both models as judged by the same ones.
"""

from __future__ import annotations

import math
from time import perf_counter

import numpy as np

from fastvq.compress import stats
from fastvq.compress.examples import outputs_of
from fastvq.runtime.measure import compare

__all__ = ["judge_of", "latencies", "plain", "scores", "told", "weight_bytes"]

_CONFIDENT = 1.645  # one-sided, 95 %
_RESAMPLED = 200  # times that examples are drawn again for a score of the caller's
_TIMED = (1, 32)  # rows of a call whose time is told
_LONGEST = 1e5  # microseconds of a call that is not waited for


# ---- judges --------------------------------------------------------------------------------------


def judge_of(model, y=None, score=None, outputs=None):
    """What judges outputs of a model and of its likes.

    Parameters
    ----------
    model : CompressedModel
        The float one.
    y : ndarray or None
    score : callable, optional
        ``score(y, predicted)``, more being better.
    outputs : list of ndarray, optional
        The float model's, by which others are judged where y is no help.

    Returns
    -------
    judge : with `name`, `score(outputs)`, and `most_lost(before, after)`; None where there is
        nothing to judge by.
    """
    names, output = model.output_names, model.metadata.get("methods", {}).get("predict")
    place = names.index(output) if isinstance(output, str) else 0
    if score is not None:
        if y is None:
            raise ValueError("a score of predictions needs y, what the examples are")
        return _Custom(score, model, place, y)
    if y is not None:
        classes, y = model.metadata.get("classes"), np.asarray(y)
        if classes is not None and not (len(classes) and isinstance(classes[0], (list, tuple))):
            return _Right("accuracy", place, y, np.asarray(classes))
        if y.dtype.kind in "iub" and y.ndim == 1 and classes is None and output is None:
            return _Right("accuracy", place, y)
        if y.dtype.kind in "fiu" and model.metadata.get("task") in (None, "", "regressor"):
            return _Explained("R2", place, y)
    return None if outputs is None else _nearness(outputs)


def _nearness(outputs):
    """A judge by the outputs of the float model: its classes, or else its numbers."""
    kinds = [o.dtype.kind == "f" and o.ndim > 1 and o.shape[-1] > 1 for o in outputs]
    if any(kinds):
        place = kinds.index(True)
        if outputs[place].ndim == 2:
            return _Right("agreement", place, outputs[place].argmax(axis=-1))
    floats = [i for i, o in enumerate(outputs) if o.dtype.kind == "f" and o.ndim]
    if floats:
        return _Explained("explained", floats[0], outputs[floats[0]])
    return _Right("agreement", 0, outputs[0])


class _Right:
    """The share of examples of which a model says what they are.

    Parameters
    ----------
    place : int
        The output that tells the class: as numbers of classes, or as scores of each.
    wanted : ndarray (n,)
    classes : ndarray, optional
        What numbers of classes stand for; themselves by default.
    """

    def __init__(self, name, place, wanted, classes=None):
        self.name, self._place, self._wanted, self._classes = name, place, wanted, classes

    def _right(self, outputs):
        found = outputs[self._place]
        many = found.ndim > self._wanted.ndim or (self._classes is not None and _is_float(found))
        found = found.argmax(axis=-1) if many else found
        found = found if self._classes is None else self._classes[found]
        return (found == self._wanted).astype(np.float64)

    def score(self, outputs):
        return float(np.mean(self._right(outputs)))

    def most_lost(self, before, after):
        """What may be lost at the most: the mean, by its deviation, and 3 / n, as what no row of n
        shows may still befall 3 in n of others."""
        lost = (self._right(before) - self._right(after)).ravel()
        return _upper(lost) + 3 / len(lost) if len(lost) > 1 else math.inf


class _Explained:
    """R²: the share of the variance of y that a model explains."""

    def __init__(self, name, place, y):
        self.name, self._place = name, place
        self._y = y.astype(np.float64).reshape(len(y), -1)
        self._spread = ((self._y - self._y.mean(axis=0)) ** 2).sum(axis=1)

    def _errors(self, outputs):
        found = outputs[self._place].reshape(self._y.shape)
        return ((found - self._y) ** 2).sum(axis=1)

    def score(self, outputs):
        rest, spread = self._errors(outputs).sum(), self._spread.sum()
        return float(1 - rest / spread) if spread else float(rest == 0)

    def most_lost(self, before, after):
        """A ratio of means, of the errors that came on and of the spread, by the delta method."""
        more, spread = self._errors(after) - self._errors(before), self._spread.mean()
        if len(more) < 2 or not spread:
            return math.inf
        lost = more.mean() / spread
        return float(lost + _upper((more - lost * self._spread) / spread))


class _Custom:
    """A score of the caller's: ``score(y, predicted)``."""

    def __init__(self, score, model, place, y):
        self.name = getattr(score, "__name__", "score")
        self._function, self._place, self._y = score, place, np.asarray(y)
        classes = model.metadata.get("classes")
        self._classes = None if classes is None else np.asarray(classes)

    def _predicted(self, outputs):
        found = outputs[self._place]
        if self._classes is None or self._classes.ndim != 1:
            return found
        return self._classes[found.argmax(axis=-1) if _is_float(found) else found]

    def _of(self, predicted, rows=slice(None)):
        found = float(self._function(self._y[rows], predicted[rows]))
        if not math.isfinite(found):
            raise ValueError(f"{self.name} gave {found}: it is to give a finite number")
        return found

    def score(self, outputs):
        return self._of(self._predicted(outputs))

    def most_lost(self, before, after):
        """The loss that 95 % of samples stay below that are drawn from the examples, with
        replacement (Efron, "Bootstrap methods", 1979); always the same samples."""
        before, after = self._predicted(before), self._predicted(after)
        n, rng = len(self._y), np.random.default_rng(0)
        if n < 2:
            return math.inf
        lost = []
        for _ in range(_RESAMPLED):
            rows = rng.integers(0, n, n)
            lost.append(self._of(before, rows) - self._of(after, rows))
        return float(np.quantile(lost, 0.95))


def _is_float(array):
    return array.dtype.kind == "f"


def _upper(values):
    """What a mean stays below with 95 % confidence, by the normal distribution."""
    return float(values.mean() + _CONFIDENT * values.std(ddof=1) / math.sqrt(len(values)))


# ---- what is told of both models -----------------------------------------------------------------


def scores(whole, small, arrays, y, score=None) -> dict:
    """The score of both models on the examples, and how near they are."""
    before, after = outputs_of(whole, arrays), outputs_of(small, arrays)
    table = compare(after, whole.output_names, before)
    noise = [n for n in table.column("SQNR dB") if n is not None]
    agreements = [a for a in table.column("agreement") if a is not None]
    found = {
        "SQNR dB": min(noise, default=None),
        "agreement": min(agreements, default=None),
    }
    judge = judge_of(whole, y, score)
    if judge is not None:
        return {
            "score": judge.name, "before": judge.score(before), "after": judge.score(after), **found
        }  # fmt: skip
    if agreements:
        return {"score": "agreement", "before": 1.0, "after": found["agreement"], **found}
    # The share of what the float model gives that is not noise.
    explained = 1 - 10 ** (-min(noise) / 10) if noise else 1.0
    return {"score": "explained", "before": 1.0, "after": explained, **found}


def latencies(whole, small, arrays) -> dict:
    """Microseconds of a call of both, side by side, by rows; nothing that takes too long."""
    found: dict = {}
    for rows in _TIMED:
        batch = next(stats.batches_of(whole.graph, arrays, rows))
        n = len(batch[0]) if batch and batch[0].ndim else 1
        last = found[max(found)] if found else {"before": 0.0}
        if n in found or last["before"] * n > _LONGEST:
            continue
        inputs = dict(zip(whole.input_names, batch, strict=True))
        times: dict = {"before": [], "after": []}
        until = perf_counter() + 0.05
        while len(times["after"]) < 3 or (perf_counter() < until and len(times["after"]) < 50):
            for which, model in (("before", whole), ("after", small)):
                began = perf_counter()
                model.run(inputs)
                times[which].append(1e6 * (perf_counter() - began))
        found[n] = {which: float(np.median(t[1:])) for which, t in times.items()}
    return found


def weight_bytes(graph) -> int:
    """Bytes of the graph's floats, in float32."""
    return sum(
        math.prod(c.shape) * 4 for c in graph.constants.values() if np.dtype(c.dtype).kind == "f"
    )


def plain(value):
    """A number as JSON knows it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def told(compressed, scores, nbytes, times):
    """The model with what was found of it beside it, for its report."""
    compressed.metadata["compression"] |= {
        "score": {name: plain(value) for name, value in scores.items()},
        "bytes before": nbytes,
    }
    compressed.latencies = times
    return compressed
