"""Estimators of estimators: pipelines, columns, votes, several outputs, searches."""

from __future__ import annotations

import numpy as np
from sklearn import ensemble as en
from sklearn.calibration import CalibratedClassifierCV
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
from sklearn.multiclass import (
    OneVsOneClassifier,
    OneVsRestClassifier,
    OutputCodeClassifier,
    _ConstantPredictor,
)
from sklearn.multioutput import (
    ClassifierChain,
    MultiOutputClassifier,
    MultiOutputRegressor,
    RegressorChain,
)
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.semi_supervised import SelfTrainingClassifier

from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    classifier,
    inverse_transform,
    name_of,
    one_against_one,
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
    probabilities = _always(b, columns, share)
    return classifier(est.classes_, b.largest(probabilities), probabilities)


@predictor(_ConstantPredictor)
def always_one_class(b, est, columns):
    """What stands for a classifier where all labels were the same."""
    y = float(np.ravel(est.y_)[0])
    decision = _always(b, columns, [y])
    label = b.add("Cast", b.flat(decision), dtype="int64")
    return classifier(np.arange(2), label, b.both(decision), b.flat(decision))


@predictor(DummyRegressor)
def dummy_regressor(b, est, columns):
    y = _always(b, columns, np.ravel(est.constant_))
    return regressor(b.flat(y) if est.n_outputs_ == 1 else y)


def _always(b, columns, row):
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


def _chained(b, est, columns):
    """What each link predicts, given what those before it did, in the order of the outputs."""
    columns, found = _plain(b, columns), []
    method = getattr(est, "chain_method_", "predict")
    before = []
    for each in est.estimators_:
        if isinstance(method, list):
            raise UnsupportedEstimator(f"{name_of(est)} with several chain methods")
        link = predict(b, each, _side_by_side(b, [columns, *before]))
        value = link.methods.get(method)
        if not isinstance(value, str) or (link.task == "classifier" and len(link.classes) != 2):
            raise UnsupportedEstimator(f"{name_of(est)} of {name_of(each)} by {method}")
        if method == "predict_proba":
            value = b.pick(value, [1], 2)
        elif link.task == "classifier" and method == "predict":
            numbers = np.asarray(link.classes, np.float64)
            value = b.add("Gather", b.real(numbers, "classes"), value, axis=0)
        before.append(Columns(b.reshape(value, -1, 1), 1))
        found.append(link)
    return [found[i] for i in np.argsort(est.order_)]


@predictor(RegressorChain)
def regressor_chain(b, est, columns):
    found = [p.methods["predict"] for p in _chained(b, est, columns)]
    return regressor(b.concat([b.reshape(y, -1, 1) for y in found], axis=1))


@predictor(ClassifierChain)
def classifier_chain(b, est, columns):
    """Probabilities are those of the second class of each output, side by side."""
    found = _chained(b, est, columns)
    label = b.concat([b.reshape(p.methods["predict"], -1, 1) for p in found], axis=1)
    probabilities = None
    if all(isinstance(p.methods.get("predict_proba"), str) for p in found):
        second = [b.pick(p.methods["predict_proba"], [1], 2) for p in found]
        probabilities = b.concat(second, axis=1)
    return classifier([p.classes for p in found], label, probabilities)


@predictor(OneVsOneClassifier)
def one_vs_one(b, est, columns):
    if est.pairwise_indices_ is not None:
        raise UnsupportedEstimator("OneVsOneClassifier on a precomputed kernel")
    columns, n = _plain(b, columns), len(est.classes_)
    found = [predict(b, each, columns) for each in est.estimators_]
    scores = [b.reshape(_binary_score(b, p), -1, 1) for p in found]
    score = b.concat(scores, axis=1)
    won = [b.as_real(b.reshape(p.methods["predict"], -1, 1)) for p in found]
    decision = one_against_one(b, b.concat(won, axis=1), score, n)
    if n > 2:
        return classifier(est.classes_, b.largest(decision), None, decision)
    decision = b.flat(b.pick(decision, [1], 2))
    limit = 0.0 if "decision_function" in found[0].methods else 0.5
    return classifier(est.classes_, b.above(decision, limit), None, decision)


def _binary_score(b, prediction):
    """A decision about the second of two classes, else its probability."""
    if "decision_function" in prediction.methods:
        return prediction.methods["decision_function"]
    if "predict_proba" in prediction.methods:
        return b.flat(b.pick(prediction.methods["predict_proba"], [1], 2))
    raise UnsupportedEstimator("several classes by a classifier without decisions")


@predictor(OutputCodeClassifier)
def output_code(b, est, columns):
    """The class whose code lies nearest to what the classifiers of its places say."""
    columns = _plain(b, columns)
    found = [predict(b, each, columns) for each in est.estimators_]
    scores = [b.reshape(_binary_score(b, p), -1, 1) for p in found]
    answers = Columns(b.concat(scores, axis=1), len(scores))
    distances = b.squared_distances(answers, est.code_book_)
    label = b.add("ArgMax", distances, axis=1, keep=False, least=True)
    return classifier(est.classes_, label)


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
    """Probabilities of one classifier: by its sigmoids (Platt), isotonic curves, or temperature."""
    found, n = predict(b, est.estimator, columns), len(est.classes)
    if len(found.classes) != n:
        raise UnsupportedEstimator("CalibratedClassifierCV of folds that lack a class")
    score = found.methods.get("decision_function")
    decided = score is not None
    if n == 2 and not (est.method == "temperature" and not decided):
        score = score if decided else b.pick(found.methods["predict_proba"], [1], 2)
        score = b.reshape(score, -1, 1)
    elif not decided:
        score = found.methods["predict_proba"]
    if est.method == "temperature":
        return _at_temperature(b, score, n, decided, est.calibrators[0].beta_)
    if est.method == "isotonic":
        steps = [(c.X_thresholds_, c.y_thresholds_) for c in est.calibrators]
        each = b.curves(score, steps)
    else:
        slopes = np.array([c.a_ for c in est.calibrators])
        offsets = np.array([c.b_ for c in est.calibrators])
        if n == 2:
            both = np.array([[1.0], [-1.0]])
            return b.matrix(score, both * slopes, both[:, 0] * offsets, activation="sigmoid")
        each = b.matrix(score, np.diag(-slopes), -offsets, activation="sigmoid")
    return b.both(each) if n == 2 else b.normalised(each, n)


def _at_temperature(b, score, n, decided, beta):
    """Softmax of decisions, or of logarithms of probabilities, times beta."""
    if decided and n == 2:
        score = b.matrix(score, [[-beta], [beta]])
        return b.add("Softmax", score, axis=1)
    if not decided:
        score = b.unary("log", b.binary("add", score, b.real(1e-12)))
    return b.add("Softmax", b.binary("multiply", score, b.real(beta)), axis=1)
