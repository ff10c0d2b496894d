"""Decision trees, forests, boosted trees."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreeClassifier,
    ExtraTreeRegressor,
)

from fastvq.compress.importers._ensemble import Ensemble
from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    classifier,
    predict,
    predictor,
    regressor,
    transform,
)

_TREES = DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor


def add_tree(ensemble, tree, values, *, missing=True, features=None, **where):
    """A fitted `tree_` with the values that each of its nodes gives, were it a leaf.

    `missing`: whether NaN follows the tree's own directions (else no matter which). `features`: the
    columns that it was fitted on; None for all.
    """
    feature = tree.feature
    ensemble.add(
        tree.children_left,
        tree.children_right,
        feature if features is None else np.where(feature < 0, -1, features[feature]),
        tree.threshold,
        values,
        missing_left=tree.missing_go_to_left.astype(bool) if missing else None,
        **where,
    )


# ---- averages of trees ---------------------------------------------------------------------------


@predictor(*_TREES, RandomForestClassifier, RandomForestRegressor)
@predictor(ExtraTreesClassifier, ExtraTreesRegressor)
def forest(b, est, columns):
    trees = [est] if isinstance(est, _TREES) else est.estimators_
    sizes = np.ravel(est.n_classes_).astype(int) if hasattr(est, "n_classes_") else None
    single_binary = sizes is not None and [*sizes] == [2]
    ensemble = Ensemble()
    for tree in trees:
        value = tree.tree_.value
        if sizes is not None:
            value = _shares(value, sizes)[:, 1:] if single_binary else _shares(value, sizes)
        add_tree(ensemble, tree.tree_, value.reshape(len(value), -1))
    y = ensemble.node(b, b.plain(columns), aggregate="mean" if len(trees) > 1 else "sum")
    if sizes is None:
        return regressor(b.flat(y) if est.n_outputs_ == 1 else y)
    if len(sizes) == 1:
        probabilities = b.both(y) if single_binary else y
        return classifier(est.classes_, b.largest(probabilities), probabilities)
    ends = np.cumsum(sizes)
    parts = [
        b.pick(y, range(end - size, end), ends[-1]) for size, end in zip(sizes, ends, strict=True)
    ]
    labels = [b.reshape(b.largest(part), -1, 1) for part in parts]
    return classifier(est.classes_, b.concat(labels, axis=1), parts)


def _shares(value, sizes):
    """Shares of classes in each node, output after output: (n_nodes, sum of sizes)."""
    parts = [value[:, i, :size] for i, size in enumerate(sizes)]
    return np.hstack([part / part.sum(axis=1, keepdims=True) for part in parts])


# ---- boosted trees -------------------------------------------------------------------------------


@predictor(GradientBoostingClassifier, GradientBoostingRegressor)
def gradient_boosting(b, est, columns):
    x = b.plain(columns)
    base = _constant_start(est)
    ensemble = Ensemble()
    for stage in est.estimators_:
        for k, tree in enumerate(stage):
            value = tree.tree_.value[:, 0, :] * est.learning_rate
            add_tree(ensemble, tree.tree_, value, missing=False, target=k)
    raw = ensemble.node(b, x, base)
    if isinstance(est, GradientBoostingRegressor):
        return regressor(b.flat(raw))
    return _boosted_classes(b, est, raw, factor=2.0 if est.loss == "exponential" else 1.0)


def _constant_start(est):
    """What boosting starts from, where that is the same for every row."""
    if est.init is not None and not isinstance(est.init_, str):
        raise UnsupportedEstimator(f"{type(est).__name__} with an estimator as init")
    return est._raw_predict_init(np.zeros((1, est.n_features_in_), np.float32))[0]


def _boosted_classes(b, est, raw, factor=1.0):
    """Classes from raw sums: one column of log-odds for two, else one for each."""
    if len(est.classes_) > 2:
        return classifier(est.classes_, b.largest(raw), b.add("Softmax", raw, axis=1), raw)
    decision = b.flat(raw)
    label = b.add("Cast", b.binary("greater_equal", decision, b.real(0.0)), dtype="int64")
    return classifier(est.classes_, label, b.both_sigmoids(raw, factor), decision)


@predictor(HistGradientBoostingClassifier, HistGradientBoostingRegressor)
def hist_gradient_boosting(b, est, columns):
    if est._preprocessor is not None:
        columns = transform(b, est._preprocessor, columns)
    known, place = est._bin_mapper.make_known_categories_bitsets()
    ensemble = Ensemble()
    for stage in est._predictors:
        for k, tree in enumerate(stage):
            nodes = tree.nodes
            sets = np.zeros((len(nodes), 32), np.uint8)
            asks = nodes["is_categorical"].astype(bool)
            left = tree.raw_left_cat_bitsets.view(np.uint8).reshape(-1, 32)
            sets[asks] = left[nodes["bitset_idx"][asks]]
            all_known = np.zeros_like(sets)
            if asks.any():
                all_known[asks] = known.view(np.uint8).reshape(-1, 32)[
                    place[nodes["feature_idx"][asks]]
                ]
            leaf = nodes["is_leaf"].astype(bool)
            ensemble.add(
                np.where(leaf, -1, nodes["left"].astype(np.int64)),
                np.where(leaf, -1, nodes["right"].astype(np.int64)),
                nodes["feature_idx"],
                nodes["num_threshold"],
                nodes["value"][:, None],
                missing_left=nodes["missing_go_to_left"].astype(bool),
                asks_category=asks,
                left_sets=sets,
                known_sets=all_known,
                target=k,
            )
    raw = ensemble.node(b, b.plain(columns), np.ravel(est._baseline_prediction))
    if isinstance(est, HistGradientBoostingClassifier):
        return _boosted_classes(b, est, raw)
    logarithmic = est.loss in ("poisson", "gamma")
    return regressor(b.flat(b.unary("exp", raw) if logarithmic else raw))


@predictor(AdaBoostClassifier)
def ada_boost(b, est, columns):
    """Votes (SAMME): each estimator gives its weight to the class that it predicts, and a share of
    minus that to all others."""
    n = len(est.classes_)
    weights = est.estimator_weights_[: len(est.estimators_)]
    votes = np.where(np.eye(n, dtype=bool), 1.0, -1.0 / (n - 1))
    if all(isinstance(e, _TREES) for e in est.estimators_):
        ensemble = Ensemble()
        for tree, weight in zip(est.estimators_, weights, strict=True):
            chosen = tree.tree_.value[:, 0, :].argmax(axis=1)
            classes = np.searchsorted(est.classes_, tree.classes_)
            add_tree(ensemble, tree.tree_, weight / weights.sum() * votes[classes[chosen]])
        decision = ensemble.node(b, b.plain(columns))
    else:
        decision = None
        plain = Columns(b.plain(columns), columns.n)
        for each, weight in zip(est.estimators_, weights, strict=True):
            classes = np.searchsorted(est.classes_, each.classes_)
            label = predict(b, each, plain).methods["predict"]
            given = b.real(weight / weights.sum() * votes[classes], "votes")
            part = b.add("Gather", given, label, axis=0)
            decision = part if decision is None else b.binary("add", decision, part)
    if n == 2:
        raw = b.matrix(decision, [[-1.0, 1.0]])
        probabilities = b.add("Softmax", b.matrix(raw, [[-0.5], [0.5]]), axis=1)
        raw = b.flat(raw)
        return classifier(est.classes_, b.above(raw), probabilities, raw)
    scaled = b.binary("multiply", decision, b.real(1.0 / (n - 1)))
    return classifier(est.classes_, b.largest(decision), b.add("Softmax", scaled, axis=1), decision)


@predictor(AdaBoostRegressor)
def ada_boost_regressor(b, est, columns):
    """The weighted median: the first of the ordered answers up to which half of all weight lies."""
    n = len(est.estimators_)
    weights = np.asarray(est.estimator_weights_[:n], np.float64)
    if all(isinstance(e, _TREES) for e in est.estimators_):
        ensemble = Ensemble()
        for k, tree in enumerate(est.estimators_):
            add_tree(ensemble, tree.tree_, tree.tree_.value[:, 0, :], target=k)
        answers = ensemble.node(b, b.plain(columns))
    else:
        plain = Columns(b.plain(columns), columns.n)
        found = [predict(b, each, plain).methods["predict"] for each in est.estimators_]
        answers = b.concat([b.reshape(y, -1, 1) for y in found], axis=1)
    ordered, which = b.add("TopK", answers, b.integers(n), axis=1, largest=False, n_outputs=2)
    taken = b.add("Gather", b.real(weights / weights.sum(), "weights"), which, axis=0)
    total = b.add("CumSum", taken, b.integers(1))
    enough = b.as_real(b.binary("greater_equal", total, b.real(0.5)))
    middle = b.add("ArgMax", enough, axis=1)
    return regressor(b.flat(b.add("GatherElements", ordered, middle, axis=1)))
