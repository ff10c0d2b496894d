"""Tree ensembles: the kernel against the definition, promises, and forests that are none."""

import numpy as np
import pytest
from oracles import THREADS, assert_same_bits

from fastvq.compress.importers._ensemble import Ensemble
from fastvq.compress.importers.builder import Builder
from fastvq.runtime import CompressedModel, Graph, GraphError, Value
from fastvq.runtime.lowering import trees
from fastvq.runtime.ops import operators
from fastvq.runtime.registry import KernelCall, compiled

MODES = np.array(["<=", "<", ">", ">=", "==", "!="])


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; small blocks."""
    monkeypatch.setattr(trees, "_THREAD_SECONDS", 1e-12)
    monkeypatch.setattr(trees, "_MOST_GROUPS", 2)


def random_tree(random, depth, width, n_features, grow=0.8):
    """Nodes in any order, the root first: left, right, feature, threshold, values."""
    left, right, waiting = [-1], [-1], [(0, 0)]
    while waiting:
        node, level = waiting.pop(random.randint(len(waiting)))
        if level < depth and random.rand() < grow:
            left[node], right[node] = len(left), len(left) + 1
            waiting += [(len(left), level + 1), (len(left) + 1, level + 1)]
            left += [-1, -1]
            right += [-1, -1]
    n = len(left)
    threshold = random.randint(-4, 5, n) / 2
    return left, right, random.randint(0, n_features, n), threshold, random.randn(n, width)


def by_hand(tree, mode, missing_left, x):
    """The values of each row, walked in plain Python."""
    left, right, feature, threshold, values = tree
    tests = {
        "<=": lambda v, t: v <= t,
        "<": lambda v, t: v < t,
        ">": lambda v, t: v > t,
        ">=": lambda v, t: v >= t,
        "==": lambda v, t: v == t,
        "!=": lambda v, t: v != t,
    }
    found = []
    for row in x:
        node = 0
        while left[node] >= 0:
            v = row[feature[node]]
            goes = tests[mode[node]](v, threshold[node])
            if np.isnan(v) and mode[node] not in ("==", "!="):
                goes = missing_left[node]
            node = left[node] if goes else right[node]
        found.append(values[node])
    return np.array(found)


def some_rows(random, n, n_features):
    x = (random.randint(-5, 6, (n, n_features)) / 2).astype(np.float32)
    x[random.rand(*x.shape) < 0.1] = np.nan
    x[random.rand(*x.shape) < 0.03] = np.inf
    x[random.rand(*x.shape) < 0.03] = -np.inf
    return x


def forest_of(
    n_trees, depth, width, n_features, seed=0, modes=MODES[:1], outputs=None, **attributes
):
    """A model, and the trees that it is made of."""
    random, ensemble, trees = np.random.RandomState(seed), Ensemble(), []
    outputs = outputs or width
    for t in range(n_trees):
        tree = random_tree(random, depth, width, n_features)
        mode = random.choice(modes, len(tree[0]))
        missing_left = (random.rand(len(mode)) < 0.5) & (mode != "==")
        target = t % (outputs - width + 1)
        ensemble.add(*tree, mode=mode, missing_left=missing_left, target=target)
        trees.append((tree, mode, missing_left, target))
    b = Builder()
    base = random.randn(outputs)
    y = ensemble.node(b, "x", base, **attributes)
    graph = b.graph(
        [Value("x", "float32", ("N", n_features))],
        [(Value("y", "float32", ("N", outputs)), y)],
    )
    return CompressedModel(graph), trees, base


def check(model, x):
    """The kernel against the definition, the same bits at any number of threads; the answer."""
    node = next(node for node in model.graph.nodes if node.operator == "TreeEnsemble")
    constants = [model.graph.constants[n].decode() if n else None for n in node.inputs[1:]]
    expected = operators()["TreeEnsemble"].run([x, *constants], node.attributes)[0]
    if compiled() and x.size:
        steps = model.plan([x.shape], 1).steps
        assert any(isinstance(s, KernelCall) and s.kernel == "trees.trees" for s in steps)
    for threads in THREADS:
        assert_same_bits(model(x, n_threads=threads), expected, f"{threads} threads")
    return expected


@pytest.mark.parametrize("n_trees", [1, 7, 8, 9, 33])
@pytest.mark.parametrize("depth", [0, 1, 3, 9])
def test_sizes(n_trees, depth):
    random = np.random.RandomState(1)
    for width, n_features in ((1, 1), (1, 6), (3, 17), (5, 2)):
        model, trees, base = forest_of(n_trees, depth, width, n_features)
        for n in (0, 1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 100):
            x = some_rows(random, n, n_features)
            y = check(model, x)
            if n == 17:
                total = sum(by_hand(*t[:3], x).astype(np.float32).astype(float) for t in trees)
                np.testing.assert_allclose(y, base + total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("modes", [MODES[:4], MODES], ids=["ordered", "all"])
def test_every_comparison_sends_every_value_where_it_belongs(modes):
    random = np.random.RandomState(2)
    for width in (1, 2):
        model, trees, base = forest_of(12, 6, width, 5, seed=3, modes=modes)
        x = some_rows(random, 203, 5)
        total = sum(by_hand(*t[:3], x).astype(np.float32).astype(float) for t in trees)
        np.testing.assert_allclose(check(model, x), base + total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("aggregate", ["sum", "mean", "minimum", "maximum"])
def test_aggregates_and_targets(aggregate):
    x = some_rows(np.random.RandomState(4), 77, 4)
    for width, outputs in ((1, 1), (1, 3), (2, 2)):
        model, trees, base = forest_of(9, 4, width, 4, outputs=outputs, aggregate=aggregate)
        y = check(model, x)
        given = [(by_hand(*t[:3], x).astype(np.float32), t[3]) for t in trees]
        for j in range(outputs):
            column = [v[:, j - at] for v, at in given if at <= j < at + width]
            combine = {"minimum": np.min, "maximum": np.max}.get(aggregate, np.sum)
            expected = combine(np.array(column, float), axis=0)
            expected = expected / len(trees) if aggregate == "mean" else expected
            np.testing.assert_allclose(y[:, j], base[j] + expected, rtol=1e-6, atol=1e-6)


def test_categories():
    random, ensemble = np.random.RandomState(5), Ensemble()
    for _ in range(9):
        tree = random_tree(random, 5, 1, 3)
        n = len(tree[0])
        known = random.randint(0, 256, (n, 32)).astype(np.uint8)
        left = known & random.randint(0, 256, (n, 32)).astype(np.uint8)
        asks = random.rand(n) < 0.6
        ensemble.add(
            *tree, missing_left=random.rand(n) < 0.5, asks_category=asks, left_sets=left,
            known_sets=known,
        )  # fmt: skip
    b = Builder()
    y = ensemble.node(b, "x")
    model = CompressedModel(
        b.graph([Value("x", "float32", ("N", 3))], [(Value("y", "float32", ("N", 1)), y)])
    )
    x = random.randint(-3, 260, (150, 3)).astype(np.float32)
    x[::5] += np.float32(0.5)
    x[::7, 1], x[1::7, 2], x[2::7, 0] = np.nan, np.inf, -1e30
    check(model, x)


def test_a_row_alone_gives_the_same_bits():
    model, _, _ = forest_of(50, 8, 3, 11, modes=MODES[:4])
    x = some_rows(np.random.RandomState(6), 150, 11)
    y = model(x)
    for i in range(0, 150, 7):
        assert_same_bits(model(x[i : i + 1]), y[i : i + 1])
        assert_same_bits(model(x[i:]), y[i:])


def test_words_that_are_too_short():
    """Features and nodes that 32 bits cannot tell apart: the definition runs."""
    n_features = 1 << 26
    forest = trees.Forest(
        np.array([0]), np.array([3, *[5] * 62, *[-1] * 64]), np.zeros(127, np.float32),
        np.zeros((64, 1), np.float32), np.zeros(1),
    )  # fmt: skip
    assert trees._Packed(forest, n_features).nodes is None
    assert trees._Packed(forest, 1000).nodes is not None


def good():
    """A tree of three nodes: its constants."""
    return {
        "roots": np.array([0], np.int32),
        "feature": np.array([1, -1, -1], np.int16),
        "threshold": np.array([0.5, 0, 0], np.float32),
        "values": np.array([[1], [2]], np.float32),
        "base": np.zeros(1),
        "target": np.zeros(1, np.int32),
        "test": np.zeros(3, np.uint8),
        "categories": np.zeros((1, 32), np.uint8),
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"roots": np.array([1], np.int32)}, "roots"),
        ({"roots": np.array([0, 0], np.int32), "target": np.zeros(2, np.int32)}, "roots"),
        ({"roots": np.array([0, 2], np.int32), "target": np.zeros(2, np.int32)}, "tree 0"),
        ({"feature": np.array([2, -1, -1], np.int16)}, "feature 2 of 2"),
        ({"feature": np.array([-1, 1, -1], np.int16)}, "breadth|tree 0"),
        ({"feature": np.array([1, 1, -1], np.int16)}, "leaves"),
        ({"values": np.zeros((3, 1), np.float32)}, "leaves"),
        ({"target": np.array([1], np.int32)}, "targets"),
        ({"target": np.array([-1], np.int32)}, "targets"),
        ({"test": np.array([4, 0, 0], np.uint8)}, "tests"),
        ({"test": np.array([3, 0, 0], np.uint8), "threshold": np.float32([1, 0, 0])}, "set"),
        ({"test": np.array([3, 0, 0], np.uint8), "threshold": np.float32([np.nan, 0, 0])}, "set"),
        ({"threshold": np.zeros(2, np.float32)}, "thresholds"),
        ({"categories": np.zeros((1, 31), np.uint8)}, "32 bytes"),
    ],
)
def test_forests_that_are_none(changed, message):
    constants = good() | changed
    with pytest.raises((GraphError, ValueError), match=message):
        model = _model(constants)
        model(np.zeros((3, 2), np.float32))


def _model(constants):
    from fastvq.runtime import Node
    from fastvq.runtime.encoding import Raw

    node = Node("TreeEnsemble", ("x", *constants), ("y",))
    return CompressedModel(
        Graph(
            [node],
            [Value("x", "float32", ("N", 2))],
            [Value("y", "float32", ("N", 1))],
            {name: Raw(a) for name, a in constants.items()},
        )
    )


def test_the_smallest_forest():
    x = np.array([[0, 0], [0, 0.5], [0, 1], [0, np.nan]], np.float32)
    np.testing.assert_array_equal(_model(good())(x)[:, 0], [1, 1, 2, 2])
