"""Judges of models: scores, and how much of them may be lost at the most."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score

from fastvq.compress.scores import judge_of
from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.encoding import Raw


def model_of(width, **metadata):
    nodes = [Node("Dense", ("x", "w"), ("y",))]
    graph = Graph(nodes, [Value("x", "float32", ("N", 2))], [Value("y", "float32", ("N", width))],
                  {"w": Raw(np.ones((width, 2), "f4"))})  # fmt: skip
    return CompressedModel(graph, metadata)


def draws(kind, n, rng):
    """(model, y, outputs before, outputs after, what is lost of the score in truth)."""
    if kind == "R2":
        y = rng.normal(size=n)
        before = [(y + rng.normal(size=n) / 4)[:, None]]
        after = [before[0] + rng.normal(size=(n, 1)) / 3]
        return model_of(1, task="regressor"), y, before, after, 1 / 9
    y = rng.integers(0, 3, n)
    right = np.eye(3)[y]
    flipped = rng.uniform(size=n) < 0.04
    other = np.eye(3)[(y + 1) % 3]
    model = model_of(3, classes=[0, 1, 2], task="classifier")
    return model, y, [right], [np.where(flipped[:, None], other, right)], 0.04


@pytest.mark.parametrize("kind", ["accuracy", "R2", "own"])
def test_bounds_hold_95_times_in_100(kind):
    rng = np.random.default_rng(0)
    held, total = 0, 100 if kind == "own" else 400

    def share(y, predicted):
        return np.mean(y == predicted)

    for _ in range(total):
        model, y, before, after, truth = draws(kind, 300, rng)
        judge = judge_of(model, y, share if kind == "own" else None)
        bound = judge.most_lost(before, after)
        held += bound >= truth
        assert bound < truth + 0.15
    # 0.95 less two deviations of such a share.
    assert held / total >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / total)


def test_scores():
    rng = np.random.default_rng(0)
    for kind, own in (("R2", r2_score), ("accuracy", balanced_accuracy_score)):
        model, y, before, after, _ = draws(kind, 100, rng)
        judge = judge_of(model, y)
        assert judge.name == kind
        wanted = own(y, after[0][:, 0]) if kind == "R2" else np.mean(after[0].argmax(1) == y)
        assert judge.score(after) == pytest.approx(wanted)
        assert judge.score(before) > judge.score(after)
        given = judge_of(model, y, own)
        assert given.name == own.__name__ and given.score(before) >= given.score(after)


def test_without_y_the_float_model_is_what_counts():
    rng = np.random.default_rng(0)
    scores, numbers = [rng.normal(size=(50, 4))], [rng.normal(size=(50, 1))]
    for outputs, name in ((scores, "agreement"), (numbers, "explained")):
        judge = judge_of(model_of(outputs[0].shape[1]), outputs=outputs)
        assert judge.name == name and judge.score(outputs) == 1
        assert judge.most_lost(outputs, [o + 0.5 * rng.normal(size=o.shape) for o in outputs]) > 0
    assert judge_of(model_of(2)) is None


def test_what_no_row_shows():
    model, y, before, _, _ = draws("accuracy", 100, np.random.default_rng(0))
    assert judge_of(model, y).most_lost(before, before) == pytest.approx(0.03)
    one = [before[0][:1]]
    assert judge_of(model, y[:1]).most_lost(one, one) == np.inf


def test_scores_that_are_none():
    model, y, before, *_ = draws("accuracy", 20, np.random.default_rng(0))
    judge = judge_of(model, y, lambda y, predicted: np.nan)
    with pytest.raises(ValueError, match="finite number"):
        judge.score(before)
    with pytest.raises(ValueError, match="needs y"):
        judge_of(model, None, r2_score)
