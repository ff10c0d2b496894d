"""Estimators of estimators: several outputs, several classes, calibrated ones."""

from __future__ import annotations

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
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

from fastvq.compress.importers.sklearn._compose import always, made_once, mean_of, side_by_side
from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    classifier,
    name_of,
    one_against_one,
    predict,
    predictor,
    regressor,
)

# ---- several outputs, several classes ------------------------------------------------------------


@predictor(_ConstantPredictor)
def always_one_class(b, est, columns):
    """What stands for a classifier where all labels were the same."""
    y = float(np.ravel(est.y_)[0])
    decision = always(b, columns, [y])
    label = b.add("Cast", b.flat(decision), dtype="int64")
    return classifier(np.arange(2), label, b.both(decision), b.flat(decision))


@predictor(MultiOutputRegressor)
def multi_output_regressor(b, est, columns):
    columns = made_once(b, columns)
    found = [predict(b, each, columns).methods["predict"] for each in est.estimators_]
    return regressor(b.concat([b.reshape(y, -1, 1) for y in found], axis=1))


@predictor(MultiOutputClassifier)
def multi_output_classifier(b, est, columns):
    columns = made_once(b, columns)
    found = [predict(b, each, columns) for each in est.estimators_]
    label = b.concat([b.reshape(p.methods["predict"], -1, 1) for p in found], axis=1)
    given = [p.methods.get("predict_proba") for p in found]
    probabilities = given if all(isinstance(p, str) for p in given) else None
    return classifier([p.classes for p in found], label, probabilities)


def _chained(b, est, columns):
    """What each link predicts, given what those before it did, in the order of the outputs."""
    columns, found = made_once(b, columns), []
    method = getattr(est, "chain_method_", "predict")
    before = []
    for each in est.estimators_:
        if isinstance(method, list):
            raise UnsupportedEstimator(f"{name_of(est)} with several chain methods")
        link = predict(b, each, side_by_side(b, [columns, *before]))
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
    columns, n = made_once(b, columns), len(est.classes_)
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
    columns = made_once(b, columns)
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
    columns = made_once(b, columns)
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
    columns = made_once(b, columns)
    found = [_calibrated(b, each, columns) for each in est.calibrated_classifiers_]
    mean = mean_of(b, found)
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
