"""Estimators of estimators: pipelines, columns, searches, votes and averages."""

from __future__ import annotations

import numpy as np
from sklearn import ensemble as en
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import RANSACRegressor
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.semi_supervised import SelfTrainingClassifier

from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    classifier,
    inverse_transform,
    name_of,
    predict,
    predictor,
    regressor,
    transform,
    transformer,
)

# ---- in a row, and side by side ------------------------------------------------------------------


@transformer(Pipeline)
def pipeline_transform(b, est, columns):
    for _, step in est.steps:
        columns = transform(b, step, columns)
    return columns


@predictor(Pipeline)
def pipeline(b, est, columns):
    for _, step in est.steps[:-1]:
        columns = transform(b, step, columns)
    return predict(b, est.steps[-1][1], columns)


@transformer(FeatureUnion)
def feature_union(b, est, columns):
    columns = Columns(b.plain(columns), columns.n)
    weights = est.transformer_weights or {}
    parts = [
        transform(b, step, columns).affine(scale=weights.get(name))
        for name, step in est.transformer_list
        if step != "drop"
    ]
    return side_by_side(b, parts)


@transformer(ColumnTransformer)
def column_transformer(b, est, columns):
    x, parts = b.plain(columns), []
    weights = est.transformer_weights or {}
    for name, step, _ in est.transformers_:
        which = est._transformer_to_input_indices[name]
        if (isinstance(step, str) and step == "drop") or not len(which):
            continue
        part = Columns(b.pick(x, which, columns.n), len(which))
        parts.append(transform(b, step, part).affine(scale=weights.get(name)))
    return side_by_side(b, parts)


def side_by_side(b, parts):
    return Columns(b.concat([b.plain(p) for p in parts], axis=1), sum(p.n for p in parts))


def _chosen(est):
    """The estimator that one of these found, or holds."""
    return est.best_estimator_ if hasattr(est, "best_estimator_") else est.estimator


@predictor(GridSearchCV, RandomizedSearchCV, FrozenEstimator)
def search(b, est, columns):
    return predict(b, _chosen(est), columns)


@transformer(GridSearchCV, RandomizedSearchCV, FrozenEstimator)
def search_transform(b, est, columns):
    return transform(b, _chosen(est), columns)


@predictor(RANSACRegressor, SelfTrainingClassifier)
def fitted_inside(b, est, columns):
    return predict(b, est.estimator_, columns)


@predictor(FixedThresholdClassifier, TunedThresholdClassifierCV)
def with_threshold(b, est, columns):
    """Labels of two classes by a threshold of their own; all else is the classifier's."""
    found = predict(b, est.estimator_, columns)
    tuned = isinstance(est, TunedThresholdClassifierCV)
    wanted = est._curve_scorer._get_pos_label() if tuned else est.pos_label
    methods = est._get_response_method()
    methods = [methods] if isinstance(methods, str) else methods
    method = next(m for m in methods if m in found.methods)
    threshold = est.best_threshold_ if tuned else est.threshold
    if threshold == "auto":
        threshold = 0.5 if method == "predict_proba" else 0.0
    positive = 1 if wanted is None else int(np.flatnonzero(found.classes == wanted)[0])
    score = found.methods[method]
    if method == "predict_proba":
        score = b.flat(b.pick(score, [positive], 2))
    elif not positive:
        score = b.unary("negative", score)
    label = b.binary("greater_equal", score, b.real(threshold))
    label = label if positive else b.unary("not", label)
    found.methods["predict"] = b.add("Cast", label, dtype="int64")
    return found


@predictor(DummyClassifier)
def dummy_classifier(b, est, columns):
    if est.n_outputs_ > 1 or est._strategy not in ("prior", "most_frequent", "constant"):
        raise UnsupportedEstimator(f"DummyClassifier with strategy={est._strategy!r}, or outputs")
    share = est.class_prior_
    if est._strategy != "prior":
        place = np.flatnonzero(est.classes_ == np.ravel(est.constant)[0])
        share = np.eye(len(share))[share.argmax() if est._strategy == "most_frequent" else place[0]]
    probabilities = always(b, columns, share)
    return classifier(est.classes_, b.largest(probabilities), probabilities)


@predictor(DummyRegressor)
def dummy_regressor(b, est, columns):
    y = always(b, columns, np.ravel(est.constant_))
    return regressor(b.flat(y) if est.n_outputs_ == 1 else y)


def always(b, columns, row):
    """The same for every row, whatever is in it."""
    nothing = b.add("Unary", b.plain(columns), function="clip", alpha=0.0, beta=0.0)
    nothing = b.add("Where", b.unary("isnan", nothing), b.real(0.0), nothing)
    return b.matrix(nothing, np.zeros((len(row), columns.n)), row)


@predictor(TransformedTargetRegressor)
def transformed_target(b, est, columns):
    found = predict(b, est.regressor_, columns).methods["predict"]
    flat = est._training_dim == 1
    n = 1 if flat else est.transformer_.n_features_in_
    y = b.plain(inverse_transform(b, est.transformer_, Columns(b.reshape(found, -1, n), n)))
    return regressor(b.flat(y) if flat else y)


# ---- votes and averages --------------------------------------------------------------------------


def mean_of(b, values, weights=None):
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    total = None
    for value, weight in zip(values, weights / weights.sum(), strict=True):
        part = b.binary("multiply", value, b.real(weight))
        total = part if total is None else b.binary("add", total, part)
    return total


def made_once(b, columns):
    """The columns made once, for several estimators."""
    return Columns(b.plain(columns), columns.n)


def _votes(b, label, n):
    """Labels (N,) as rows with a 1: (N, n)."""
    row = b.constant(np.arange(n, dtype=np.int64), "codes")
    return b.as_real(b.binary("equal", b.reshape(label, -1, 1), row))


@predictor(en.VotingClassifier)
def voting_classifier(b, est, columns):
    columns = made_once(b, columns)
    found = [predict(b, each, columns) for each in est.estimators_]
    weights = est._weights_not_none
    if est.voting == "soft":
        mean = mean_of(b, [_probabilities(p, est) for p in found], weights)
        return classifier(est.classes_, b.largest(mean), mean)
    votes = [_votes(b, p.methods["predict"], len(est.classes_)) for p in found]
    return classifier(est.classes_, b.largest(mean_of(b, votes, weights)))


@predictor(en.VotingRegressor)
def voting_regressor(b, est, columns):
    columns = made_once(b, columns)
    found = [predict(b, each, columns).methods["predict"] for each in est.estimators_]
    return regressor(mean_of(b, found, est._weights_not_none))


def _subsets(b, est, columns):
    """What each estimator of a bag predicts, from the features that it was given."""
    columns = made_once(b, columns)
    for each, features in zip(est.estimators_, est.estimators_features_, strict=True):
        part = Columns(b.pick(columns.value, features, columns.n), len(features))
        yield each, predict(b, each, part)


@predictor(en.BaggingClassifier)
def bagging_classifier(b, est, columns):
    n, shares = len(est.classes_), []
    for each, found in _subsets(b, est, columns):
        share = found.methods.get("predict_proba")
        classes = np.asarray(each.classes_, int)  # the bag numbers its classes
        if share is None:
            share = _votes(b, found.methods["predict"], len(classes))
        if len(classes) < n:
            share = b.matrix(share, np.arange(n)[:, None] == classes)
        shares.append(share)
    mean = mean_of(b, shares)
    return classifier(est.classes_, b.largest(mean), mean)


@predictor(en.BaggingRegressor)
def bagging_regressor(b, est, columns):
    found = [p.methods["predict"] for _, p in _subsets(b, est, columns)]
    return regressor(mean_of(b, found))


def _probabilities(prediction, est):
    probabilities = prediction.methods.get("predict_proba")
    if not isinstance(probabilities, str):
        raise UnsupportedEstimator(f"{name_of(est)} of a classifier without probabilities")
    return probabilities


@predictor(en.StackingClassifier, en.StackingRegressor)
def stacking(b, est, columns):
    columns, parts = made_once(b, columns), []
    for each, method in zip(est.estimators_, est.stack_method_, strict=True):
        found = predict(b, each, columns)
        value = found.methods[method]
        n_classes = len(found.classes) if found.classes is not None else 1
        if method == "predict" and found.task == "classifier":
            raise UnsupportedEstimator(f"{name_of(est)} on labels")
        if method == "predict_proba" and n_classes == 2:
            value, n = b.pick(value, [1], 2), 1
        elif method == "predict" or n_classes == 2:
            value, n = b.reshape(value, -1, 1), 1
        else:
            n = n_classes
        parts.append(Columns(value, n))
    if est.passthrough:
        parts.append(columns)
    final = predict(b, est.final_estimator_, side_by_side(b, parts))
    if final.task == "classifier":
        final.classes = est.classes_
    return final
