"""Operators of the domain ai.onnx.ml, which models converted from scikit-learn are made of.

Words do not run: a constant of words is the numbers 0, 1, ..., and the words are remembered beside
the value (``node.words``), so that labels come out as numbers with their words in the metadata.
"""

from __future__ import annotations

import numpy as np

from fastvq.compress.importers._ensemble import Ensemble
from fastvq.compress.importers.onnx_operators import as_array, imports

_ML = "ai.onnx.ml"


def _float32(b, node, number=0):
    x = node.input(number)
    return x if node.dtype(number) == "float32" else b.add("Cast", x, dtype="float32")


def _vector(values):
    return np.array(values, np.float32)


@imports("Scaler", domain=_ML)
def scaler(b, node):
    offset, scale = (b.constant(_vector(node.attributes[n])) for n in ("offset", "scale"))
    return b.binary("multiply", b.binary("subtract", _float32(b, node), offset), scale)


@imports("Normalizer", domain=_ML)
def normalizer(b, node):
    """Rows of length 1; a row of zeros stays as it is."""
    x = _float32(b, node)
    if node.attributes["norm"] == "MAX":
        norm = b.reduce("max", b.unary("abs", x), [-1])
    else:
        norm = b.reduce(node.attributes["norm"].lower(), x, [-1])
    zero, one = b.constant(np.float32(0)), b.constant(np.float32(1))
    return b.binary("divide", x, b.add("Where", b.binary("equal", norm, zero), one, norm))


@imports("Binarizer", domain=_ML)
def binarizer(b, node):
    threshold = b.constant(np.float32(node.attributes["threshold"]))
    return b.add("Cast", b.binary("greater", _float32(b, node), threshold), dtype="float32")


@imports("Imputer", domain=_ML)
def imputer(b, node):
    x, given = node.input(0), node.attributes
    whole = bool(given.get("imputed_value_int64s"))
    kind = "int64" if whole else "float32"
    values = given["imputed_value_int64s" if whole else "imputed_value_floats"]
    replaced = given.get("replaced_value_int64" if whole else "replaced_value_float", 0)
    if np.isnan(replaced):
        gone = b.unary("isnan", x)
    else:
        gone = b.binary("equal", x, b.constant(np.array(replaced, kind)))
    return b.add("Where", gone, b.constant(np.array(values, kind)), x)


@imports("FeatureVectorizer", domain=_ML)
def feature_vectorizer(b, node):
    return b.concat([_float32(b, node, i) for i in range(len(node.inputs))], 1)


@imports("OneHotEncoder", domain=_ML)
def one_hot_encoder(b, node):
    categories = node.attributes.get("cats_int64s")
    if not categories:
        raise ValueError("categories that are words (cats_strings) are not supported")
    x = node.input(0)
    x = x if node.dtype(0) == "int64" else b.add("Cast", x, dtype="int64")
    same = b.binary("equal", b.add("Unsqueeze", x, axes=(-1,)), b.integers(*categories))
    return b.add("Cast", same, dtype="float32")


@imports("ArrayFeatureExtractor", domain=_ML)
def array_feature_extractor(b, node):
    indices = b.reshape(node.input(1), -1)
    x = node.input(0)
    if len(node.shape(0) or ()) == 1:
        x = b.reshape(x, 1, -1)
    return b.add("Gather", x, indices, axis=-1)


@imports("ZipMap", domain=_ML)
def zip_map(b, node):
    """The probabilities as they are: a list of dictionaries is no tensor."""
    return node.input(0)


@imports("LabelEncoder", domain=_ML)
def label_encoder(b, node):
    keys, values, default = _mapping(node)
    words = values if isinstance(values[0], str) else None
    if words:
        values = np.arange(len(words) + 1)
    table = np.concatenate([values, [len(words) if words else default]])
    table = b.constant(table.astype(np.float32 if table.dtype.kind == "f" else np.int64))
    if isinstance(keys[0], str):
        given = node.words(0)
        if given is None:
            raise ValueError("inputs that are words are not supported")
        place = {key: i for i, key in enumerate(keys)}
        places = b.integers(*(place.get(word, len(keys)) for word in given))
        found = b.add("Gather", places, node.input(0))
    else:
        found = _place(b, node.input(0), b.constant(np.array(keys, node.dtype(0))), len(keys))
    y = b.add("Gather", table, found)
    if words:
        node.label(y, [*words, default])
    return y


def _mapping(node):
    """Keys, values, and the value of what is no key."""
    given = node.attributes
    sides = []
    for side in ("keys", "values"):
        name = next(n for n in given if n.startswith(side + "_"))
        values = given[name]
        if name == side + "_tensor":
            values = as_array(values).ravel().tolist()
        sides.append(values)
    kind = {str: "default_string", int: "default_int64", float: "default_float"}
    return *sides, given.get(kind[type(sides[1][0])])


def _place(b, x, keys, n):
    """Where each value stands among the keys; n where it does not."""
    same = b.binary("equal", b.add("Unsqueeze", x, axes=(-1,)), keys)
    same = b.add("Cast", same, dtype="int32")
    place = b.add("ArgMax", same, axis=-1, keep=False)
    some = b.add("Cast", b.reduce("max", same, [-1], keep=False), dtype="bool")
    return b.add("Where", some, place, b.constant(np.int64(n)))


# ---- linear models -------------------------------------------------------------------------------


@imports("LinearRegressor", domain=_ML)
def linear_regressor(b, node):
    y = _linear(b, node, node.attributes["targets"])
    return _transformed(b, y, node.attributes["post_transform"])


@imports("LinearClassifier", domain=_ML)
def linear_classifier(b, node):
    n_labels = len(_labels(node))
    n = len(node.attributes.get("intercepts") or [0] * n_labels)
    scores = _linear(b, node, n)
    kind = node.attributes["post_transform"]
    if n > 1:
        best = b.add("ArgMax", scores, axis=1, keep=False)
        return [_labelled(b, node, best), _transformed(b, scores, kind)]
    scores = _transformed(b, scores, kind)
    middle = 0.5 if kind == "LOGISTIC" else 0.0
    return _of_one_score(b, node, scores, middle, _one_less(b, scores))


def _linear(b, node, n):
    weight = _vector(node.attributes["coefficients"]).reshape(n, -1)
    bias = node.attributes.get("intercepts")
    names = [b.constant(weight, f"{node.name}.coefficients")]
    names += [b.constant(_vector(bias), f"{node.name}.intercepts")] if bias else []
    return b.add("Dense", _float32(b, node), *names)


def _transformed(b, scores, kind):
    if kind == "NONE":
        return scores
    if kind == "LOGISTIC":
        return b.unary("sigmoid", scores)
    if kind == "SOFTMAX":
        return b.add("Softmax", scores, axis=-1)
    raise ValueError(f"post_transform {kind} is not supported")


def _labels(node):
    """Class labels, numbers or words."""
    numbers = node.attributes.get("classlabels_ints") or node.attributes.get("classlabels_int64s")
    return numbers or node.attributes["classlabels_strings"]


def _labelled(b, node, best):
    """The labels of classes by their number."""
    labels = _labels(node)
    if isinstance(labels[0], str):
        node.label(best, labels)
        return best
    if labels == [*range(len(labels))]:
        return best
    return b.add("Gather", b.integers(*labels), best)


def _of_one_score(b, node, score, middle, other):
    """Label and scores of two classes where one score decides."""
    above = b.binary("greater", score, b.constant(np.float32(middle)))
    best = b.reshape(b.add("Cast", above, dtype="int64"), -1)
    return [_labelled(b, node, best), b.concat([other, score], 1)]


def _one_less(b, score):
    return b.binary("subtract", b.constant(np.float32(1)), score)


# ---- trees ---------------------------------------------------------------------------------------


@imports("TreeEnsembleRegressor", domain=_ML)
def tree_regressor(b, node):
    n = node.attributes["n_targets"]
    aggregate = {"SUM": "sum", "AVERAGE": "mean", "MIN": "minimum", "MAX": "maximum"}
    y = _trees(b, node, "target", n, aggregate[node.attributes["aggregate_function"]])
    return _transformed(b, y, node.attributes["post_transform"])


@imports("TreeEnsembleClassifier", domain=_ML)
def tree_classifier(b, node):
    n, kind = len(_labels(node)), node.attributes["post_transform"]
    ids, weights = node.attributes["class_ids"], _weights(node, "class")
    if n == 2 and len(set(ids)) == 1:
        scores = _trees(b, node, "class", 1, "sum")
        if weights.min() >= 0:
            return _of_one_score(b, node, scores, 0.5, _one_less(b, scores))
        label, _ = _of_one_score(b, node, scores, 0.0, scores)
        both = b.concat([b.unary("negative", scores), scores], 1)
        return [label, _transformed(b, both, kind if kind == "LOGISTIC" else "NONE")]
    scores = _trees(b, node, "class", n, "sum")
    best = b.add("ArgMax", scores, axis=1, keep=False)
    return [_labelled(b, node, best), _transformed(b, scores, kind)]


_MODES = {
    "BRANCH_LEQ": "<=",
    "BRANCH_LT": "<",
    "BRANCH_GTE": ">=",
    "BRANCH_GT": ">",
    "BRANCH_EQ": "==",
    "BRANCH_NEQ": "!=",
    "LEAF": "<=",  # of no meaning there
}


def _weights(node, prefix):
    return _numbers(node, f"{prefix}_weights")


def _numbers(node, name):
    """An attribute of numbers, which may come as a tensor instead."""
    tensor = node.attributes.get(f"{name}_as_tensor")
    given = node.attributes.get(name) or []
    return np.asarray(given if tensor is None else as_array(tensor), np.float32).ravel()


def _trees(b, node, prefix, n_outputs, aggregate):
    """All trees as one TreeEnsemble."""
    given = node.attributes
    trees, ids = (np.array(given[f"nodes_{name}"], np.int64) for name in ("treeids", "nodeids"))
    if unknown := set(given["nodes_modes"]) - set(_MODES):
        raise ValueError(f"mode {', '.join(sorted(unknown))} is not supported")
    names = np.array(given["nodes_modes"])
    mode, inner = np.array([_MODES[name] for name in names]), names != "LEAF"
    feature, limit = np.array(given["nodes_featureids"]), _numbers(node, "nodes_values")
    missing_true = np.array(given.get("nodes_missing_value_tracks_true") or [0] * len(ids), bool)
    place = _Places(trees, ids)
    children = np.full((2, len(ids)), -1)
    for child, side in zip(children, ("true", "false"), strict=True):
        child[inner] = place(trees[inner], np.array(given[f"nodes_{side}nodeids"])[inner])
    values = np.zeros((len(ids), n_outputs), np.float32)
    leaves = place(*(np.array(given[f"{prefix}_{name}"]) for name in ("treeids", "nodeids")))
    outputs = np.array(given[f"{prefix}_ids"]) if n_outputs > 1 else 0
    np.add.at(values, (leaves, outputs), _weights(node, prefix))
    base = _numbers(node, "base_values")
    if len(base) not in (0, n_outputs):
        raise ValueError(f"base_values are {len(base)}, wanted: {n_outputs}")
    ensemble = Ensemble()
    for rows in place.of_trees():
        inside = np.where(children[:, rows] < 0, -1, np.searchsorted(rows, children[:, rows]))
        ensemble.add(
            *inside, feature[rows], limit[rows], values[rows],
            mode=mode[rows], missing_left=missing_true[rows] & inner[rows],
        )  # fmt: skip
    x = _float32(b, node)
    return ensemble.node(b, x, base if len(base) else np.zeros(n_outputs), aggregate=aggregate)


class _Places:
    """Where the nodes of trees are, by the numbers of tree and node."""

    def __init__(self, trees, ids):
        self._trees, self._width = trees, int(ids.max(initial=0)) + 1
        self._keys, self._first = np.unique(trees * self._width + ids, return_index=True)
        if len(self._keys) < len(ids):
            raise ValueError("a node that comes twice")

    def __call__(self, trees, ids):
        wanted = trees * self._width + ids
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        if not ((self._keys[at] == wanted) & (ids >= 0) & (ids < self._width)).all():
            raise ValueError("a tree names a node that it does not have")
        return self._first[at]

    def of_trees(self):
        """The places of each tree's nodes, in order: the root is written down first."""
        order = np.argsort(self._trees, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self._trees[order])) + 1)
