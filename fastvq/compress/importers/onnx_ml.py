"""Operators of the domain ai.onnx.ml, which models converted from scikit-learn are made of.

Words do not run: a constant of words is the numbers 0, 1, ..., and the words are remembered beside
the value (``node.words``), so that labels come out as numbers with their words in the metadata.
"""

from __future__ import annotations

import numpy as np

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


def _weights(node, prefix):
    tensor = node.attributes.get(f"{prefix}_weights_as_tensor")
    given = node.attributes.get(f"{prefix}_weights") or []
    return np.asarray(given if tensor is None else as_array(tensor), np.float32).ravel()


def _trees(b, node, prefix, n_outputs, aggregate):
    """All trees as one TreeEnsemble: each written down anew, breadth first."""
    forest = _Forest(node.attributes, _weights(node, prefix), prefix, n_outputs)
    names = ("roots", "feature", "threshold", "values", "base", "target", "test")
    arrays = [forest.roots, forest.feature, forest.threshold, forest.values, forest.base]
    tests = forest.tests if any(forest.tests) else None
    arrays += [None, tests] if tests else []
    kinds = (np.int32, np.int32, np.float32, np.float32, np.float32, np.int32, np.uint8)
    constants = [
        "" if array is None else b.constant(np.array(array, kind), f"{node.name}.{name}")
        for name, array, kind in zip(names, arrays, kinds, strict=False)
    ]
    return b.add("TreeEnsemble", _float32(b, node), *constants, aggregate=aggregate)


# Test of a node -> whether it is "above" (else "not above"), and whether of the float before the
# threshold: v >= t is v > the float before t.
_BRANCHES = {
    "BRANCH_LEQ": (False, False),
    "BRANCH_LT": (False, True),
    "BRANCH_GT": (True, False),
    "BRANCH_GTE": (True, True),
}


class _Forest:
    """The arrays of a TreeEnsemble, out of the attributes of an ONNX node."""

    def __init__(self, given, weights, prefix, n_outputs):
        self._given, self._n_outputs = given, n_outputs
        thresholds = given.get("nodes_values_as_tensor")
        values = given.get("nodes_values") or []
        self._thresholds = np.asarray(
            values if thresholds is None else as_array(thresholds), np.float32
        ).ravel()
        keys = [*zip(given["nodes_treeids"], given["nodes_nodeids"], strict=True)]
        self._place = {key: i for i, key in enumerate(keys)}
        self._missing_true = given.get("nodes_missing_value_tracks_true") or [0] * len(keys)
        self._leaves = self._leaf_values(weights, prefix)
        self.roots, self.feature, self.threshold, self.tests, self.values = [], [], [], [], []
        base = given.get("base_values") or []
        tensor = given.get("base_values_as_tensor")
        base = np.asarray(base if tensor is None else as_array(tensor), np.float32).ravel()
        self.base = base if len(base) else np.zeros(n_outputs, np.float32)
        if len(self.base) != n_outputs:
            raise ValueError(f"base_values are {len(self.base)}, wanted: {n_outputs}")
        for tree in dict.fromkeys(given["nodes_treeids"]):
            self._add_tree(tree, next(node for t, node in keys if t == tree))

    def _leaf_values(self, weights, prefix):
        """What each leaf gives, by tree and node."""
        ids = [self._given[f"{prefix}_{name}"] for name in ("treeids", "nodeids", "ids")]
        leaves: dict = {}
        for tree, node, output, weight in zip(*ids, weights, strict=True):
            values = leaves.setdefault((tree, node), np.zeros(self._n_outputs, np.float32))
            values[output if self._n_outputs > 1 else 0] += weight
        return leaves

    def _add_tree(self, tree, root):
        given = self._given
        self.roots.append(len(self.feature))
        waiting = [root]
        for node in waiting:  # grows while it is walked: breadth first
            if len(waiting) > len(self._place):
                raise ValueError(f"tree {tree} has a cycle")
            i = self._place[tree, node]
            if given["nodes_modes"][i] == "LEAF":
                nothing = np.zeros(self._n_outputs, np.float32)
                self._add(-1, 0.0, 0)
                self.values.append(self._leaves.get((tree, node), nothing))
                continue
            children = [given["nodes_truenodeids"][i], given["nodes_falsenodeids"][i]]
            threshold, test, swap = self._test(i)
            self._add(given["nodes_featureids"][i], threshold, test)
            waiting += children[::-1] if swap else children

    def _add(self, feature, threshold, test):
        self.feature.append(feature)
        self.threshold.append(threshold)
        self.tests.append(test)

    def _test(self, i):
        """Threshold, number of the test, and whether the false child comes first.

        NaN passes no test and goes to the second child: where it has to count as true, the opposite
        is asked, and the children are swapped.
        """
        mode, threshold = self._given["nodes_modes"][i], self._thresholds[i]
        to_true = bool(self._missing_true[i])
        if mode in ("BRANCH_EQ", "BRANCH_NEQ"):
            if to_true and mode == "BRANCH_EQ":
                raise ValueError("missing values that pass BRANCH_EQ are not supported")
            return threshold, 2, mode == "BRANCH_NEQ"
        if mode not in _BRANCHES:
            raise ValueError(f"mode {mode} is not supported")
        above, smaller = _BRANCHES[mode]
        if smaller:
            threshold = np.nextafter(threshold, np.float32(-np.inf))
        return threshold, int(above != to_true), to_true
