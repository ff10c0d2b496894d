"""Estimators of estimators: pipelines, columns, votes, several outputs, searches."""

from __future__ import annotations

import numpy as np
from sklearn import ensemble as en
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import FeatureUnion, Pipeline

from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    classifier,
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
    return _side_by_side(b, parts)


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
    return _side_by_side(b, parts)


def _side_by_side(b, parts):
    return Columns(b.concat([b.plain(p) for p in parts], axis=1), sum(p.n for p in parts))


@predictor(GridSearchCV, RandomizedSearchCV)
def search(b, est, columns):
    return predict(b, est.best_estimator_, columns)


@transformer(GridSearchCV, RandomizedSearchCV)
def search_transform(b, est, columns):
    return transform(b, est.best_estimator_, columns)


# ---- votes and averages --------------------------------------------------------------------------


def _mean(b, values, weights=None):
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    total = None
    for value, weight in zip(values, weights / weights.sum(), strict=True):
        part = b.binary("multiply", value, b.real(weight))
        total = part if total is None else b.binary("add", total, part)
    return total


def _plain(b, columns):
    """The columns made once, for several estimators."""
    return Columns(b.plain(columns), columns.n)


def _votes(b, label, n):
    """Labels (N,) as rows with a 1: (N, n)."""
    row = b.constant(np.arange(n, dtype=np.int64), "codes")
    return b.as_real(b.binary("equal", b.reshape(label, -1, 1), row))


@predictor(en.VotingClassifier)
def voting_classifier(b, est, columns):
    columns = _plain(b, columns)
    found = [predict(b, each, columns) for each in est.estimators_]
    weights = est._weights_not_none
    if est.voting == "soft":
        mean = _mean(b, [_probabilities(p, est) for p in found], weights)
        return classifier(est.classes_, b.largest(mean), mean)
    votes = [_votes(b, p.methods["predict"], len(est.classes_)) for p in found]
    return classifier(est.classes_, b.largest(_mean(b, votes, weights)))


@predictor(en.VotingRegressor)
def voting_regressor(b, est, columns):
    columns = _plain(b, columns)
    found = [predict(b, each, columns).methods["predict"] for each in est.estimators_]
    return regressor(_mean(b, found, est._weights_not_none))


def _subsets(b, est, columns):
    """What each estimator of a bag predicts, from the features that it was given."""
    columns = _plain(b, columns)
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
    mean = _mean(b, shares)
    return classifier(est.classes_, b.largest(mean), mean)


@predictor(en.BaggingRegressor)
def bagging_regressor(b, est, columns):
    found = [p.methods["predict"] for _, p in _subsets(b, est, columns)]
    return regressor(_mean(b, found))


def _probabilities(prediction, est):
    probabilities = prediction.methods.get("predict_proba")
    if not isinstance(probabilities, str):
        raise UnsupportedEstimator(f"{name_of(est)} of a classifier without probabilities")
    return probabilities


@predictor(en.StackingClassifier, en.StackingRegressor)
def stacking(b, est, columns):
    columns, parts = _plain(b, columns), []
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
    final = predict(b, est.final_estimator_, _side_by_side(b, parts))
    if final.task == "classifier":
        final.classes = est.classes_
    return final


# ---- several outputs, several classes ------------------------------------------------------------


@predictor(MultiOutputRegressor)
def multi_output_regressor(b, est, columns):
    columns = _plain(b, columns)
    found = [predict(b, each, columns).methods["predict"] for each in est.estimators_]
    return regressor(b.concat([b.reshape(y, -1, 1) for y in found], axis=1))


@predictor(MultiOutputClassifier)
def multi_output_classifier(b, est, columns):
    columns = _plain(b, columns)
    found = [predict(b, each, columns) for each in est.estimators_]
    label = b.concat([b.reshape(p.methods["predict"], -1, 1) for p in found], axis=1)
    given = [p.methods.get("predict_proba") for p in found]
    probabilities = given if all(isinstance(p, str) for p in given) else None
    return classifier([p.classes for p in found], label, probabilities)


@predictor(OneVsRestClassifier)
def one_vs_rest(b, est, columns):
    if est.multilabel_ or any(type(e).__name__ == "_ConstantPredictor" for e in est.estimators_):
        raise UnsupportedEstimator("OneVsRestClassifier of several labels, or of a class alone")
    columns = _plain(b, columns)
    found = [predict(b, each, columns) for each in est.estimators_]
    n, shares = len(est.classes_), []
    if all(isinstance(p.methods.get("predict_proba"), str) for p in found):
        shares = [b.pick(p.methods["predict_proba"], [1], 2) for p in found]
    if "decision_function" in found[0].methods:
        scores = [b.reshape(p.methods["decision_function"], -1, 1) for p in found]
        limit = 0.0
    else:
        scores, limit = shares, 0.5
    score = b.concat(scores, axis=1)
    if n == 2:
        label = b.above(b.flat(score), limit)
        return classifier(
            est.classes_,
            label,
            b.both(shares[0]) if shares else None,
            b.flat(score) if limit == 0 else None,
        )
    probabilities = b.normalised(b.concat(shares, axis=1), n) if shares else None
    return classifier(est.classes_, b.largest(score), probabilities, score if limit == 0 else None)


@predictor(CalibratedClassifierCV)
def calibrated(b, est, columns):
    columns = _plain(b, columns)
    found = [_calibrated(b, each, columns) for each in est.calibrated_classifiers_]
    mean = _mean(b, found)
    return classifier(est.classes_, b.largest(mean), mean)


def _calibrated(b, est, columns):
    """Probabilities of one classifier with its sigmoids (Platt)."""
    if est.method != "sigmoid":
        raise UnsupportedEstimator(f"CalibratedClassifierCV with method={est.method!r}")
    found, n = predict(b, est.estimator, columns), len(est.classes)
    if len(found.classes) != n:
        raise UnsupportedEstimator("CalibratedClassifierCV of folds that lack a class")
    slopes = np.array([c.a_ for c in est.calibrators])
    offsets = np.array([c.b_ for c in est.calibrators])
    score = found.methods.get("decision_function")
    if n == 2:
        score = b.pick(found.methods["predict_proba"], [1], 2) if score is None else score
        score = b.reshape(score, -1, 1)
        return b.matrix(
            score, [[slopes[0]], [-slopes[0]]], [offsets[0], -offsets[0]], activation="sigmoid"
        )
    score = found.methods["predict_proba"] if score is None else score
    each = b.matrix(score, np.diag(-slopes), -offsets, activation="sigmoid")
    return b.normalised(each, n)
