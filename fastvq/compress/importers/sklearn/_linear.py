"""Linear models, naive Bayes, discriminants, multi-layer perceptrons."""

from __future__ import annotations

import numpy as np
from sklearn import linear_model as lm
from sklearn import naive_bayes as nb
from sklearn.cross_decomposition import CCA, PLSCanonical, PLSRegression
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import LinearSVC, LinearSVR

from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    classifier,
    predictor,
    regressor,
)

_LINEAR_REGRESSORS = [
    *(lm.LinearRegression, lm.Ridge, lm.RidgeCV, lm.Lasso, lm.LassoCV, lm.ElasticNet),
    *(lm.ElasticNetCV, lm.Lars, lm.LarsCV, lm.LassoLars, lm.LassoLarsCV, lm.LassoLarsIC),
    *(lm.OrthogonalMatchingPursuit, lm.OrthogonalMatchingPursuitCV, lm.BayesianRidge),
    *(lm.ARDRegression, lm.HuberRegressor, lm.TheilSenRegressor, lm.QuantileRegressor),
    *(lm.SGDRegressor, lm.MultiTaskLasso, lm.MultiTaskLassoCV, lm.MultiTaskElasticNet),
    *(lm.MultiTaskElasticNetCV, LinearSVR),
]
_LOGARITHMIC_REGRESSORS = lm.PoissonRegressor, lm.GammaRegressor, lm.TweedieRegressor
_LINEAR_CLASSIFIERS = [lm.Perceptron, lm.RidgeClassifier, lm.RidgeClassifierCV, LinearSVC]
for _name in ("PassiveAggressiveClassifier", "PassiveAggressiveRegressor"):  # leave in 1.10
    if hasattr(lm, _name):
        (_LINEAR_CLASSIFIERS if "Classifier" in _name else _LINEAR_REGRESSORS).append(
            getattr(lm, _name)
        )

# ---- regressors ----------------------------------------------------------------------------------


@predictor(*_LINEAR_REGRESSORS)
def linear_regressor(b, est, columns):
    coef = np.asarray(est.coef_)
    y = b.dense(columns, coef.reshape(-1, columns.n), np.ravel(est.intercept_))
    # SGD and SVR keep an intercept of one value for one target; others a number.
    single = coef.ndim == 1
    return regressor(b.flat(y) if single else y)


@predictor(*_LOGARITHMIC_REGRESSORS)
def logarithmic_regressor(b, est, columns):
    y = b.dense(columns, est.coef_[None], est.intercept_)
    power = getattr(est, "power", 1)
    link = getattr(est, "link", "log")
    if link == "log" or (link == "auto" and power > 0):
        y = b.unary("exp", y)
    return regressor(b.flat(y))


@predictor(PLSRegression, PLSCanonical, CCA)
def partial_least_squares(b, est, columns):
    y = b.dense(columns.affine(est._x_mean), est.coef_, est.intercept_)
    return regressor(b.flat(y) if est._predict_1d else y)


# ---- classifiers ---------------------------------------------------------------------------------


def decide(b, est, columns):
    """Decision of a linear classifier, as a matrix, and its label."""
    coef = np.asarray(est.coef_)
    scores = b.dense(columns, coef.reshape(-1, columns.n), np.ravel(est.intercept_))
    if len(coef.reshape(-1, columns.n)) == 1:
        return scores, b.above(b.flat(scores))
    return scores, b.largest(scores)


@predictor(*_LINEAR_CLASSIFIERS)
def linear_classifier(b, est, columns):
    if getattr(getattr(est, "_label_binarizer", None), "y_type_", "").startswith("multilabel"):
        raise UnsupportedEstimator(f"{type(est).__name__} of several labels at once")
    scores, label = decide(b, est, columns)
    decision = b.flat(scores) if len(est.classes_) == 2 else scores
    return classifier(est.classes_, label, decision=decision)


@predictor(lm.LogisticRegression, lm.LogisticRegressionCV, LinearDiscriminantAnalysis)
def logistic_regression(b, est, columns):
    scores, label = decide(b, est, columns)
    if len(est.classes_) == 2:
        return classifier(est.classes_, label, b.both_sigmoids(scores), b.flat(scores))
    one_by_one = getattr(est, "multi_class", "") == "ovr" or _is_one_vs_rest(est)
    if one_by_one:
        probabilities = b.normalised(b.unary("sigmoid", scores), len(est.classes_))
    else:
        probabilities = b.add("Softmax", scores, axis=1)
    return classifier(est.classes_, label, probabilities, scores)


def _is_one_vs_rest(est):
    """Whether probabilities are those of one logistic regression for each class.

    scikit-learn before 1.8 fitted "liblinear" so for any number of classes.
    """
    return isinstance(est, lm.LogisticRegression) and est.solver == "liblinear"


@predictor(lm.SGDClassifier)
def sgd_classifier(b, est, columns):
    scores, label = decide(b, est, columns)
    binary, n = len(est.classes_) == 2, len(est.classes_)
    probabilities = None
    if est.loss == "log_loss":
        probabilities = (
            b.both_sigmoids(scores) if binary else b.normalised(b.unary("sigmoid", scores), n)
        )
    elif est.loss == "modified_huber":
        clipped = b.add("Unary", scores, function="clip", alpha=-1.0, beta=1.0)
        half = np.eye(1 if binary else n) / 2
        share = b.matrix(clipped, half, np.full(len(half), 0.5))
        probabilities = b.both(share) if binary else b.normalised(share, n)
    return classifier(est.classes_, label, probabilities, b.flat(scores) if binary else scores)


# ---- likelihoods ---------------------------------------------------------------------------------


def of_likelihoods(b, est, scores):
    """A classifier by logarithms of the classes' likelihoods."""
    return classifier(est.classes_, b.largest(scores), b.add("Softmax", scores, axis=1))


@predictor(nb.GaussianNB)
def gaussian_bayes(b, est, columns):
    distances = b.squared_distances(columns, est.theta_, 1 / np.sqrt(est.var_))
    constant = np.log(est.class_prior_) - 0.5 * np.log(2 * np.pi * est.var_).sum(axis=1)
    scores = b.matrix(distances, -0.5 * np.eye(len(constant)), constant)
    return of_likelihoods(b, est, scores)


@predictor(nb.MultinomialNB)
def multinomial_bayes(b, est, columns):
    return of_likelihoods(
        b, est, _compared(b, columns, est.feature_log_prob_, est.class_log_prior_)
    )


@predictor(nb.ComplementNB)
def complement_bayes(b, est, columns):
    prior = est.class_log_prior_ if len(est.classes_) == 1 else None
    return of_likelihoods(b, est, _compared(b, columns, est.feature_log_prob_, prior))


@predictor(nb.BernoulliNB)
def bernoulli_bayes(b, est, columns):
    if est.binarize is not None:
        values = b.binary("greater", b.plain(columns), b.real(est.binarize))
        columns = Columns(b.as_real(values), columns.n)
    absent = np.log1p(-np.exp(est.feature_log_prob_))
    constant = est.class_log_prior_ + absent.sum(axis=1)
    return of_likelihoods(b, est, _compared(b, columns, est.feature_log_prob_ - absent, constant))


@predictor(nb.CategoricalNB)
def categorical_bayes(b, est, columns):
    sizes = [table.shape[1] for table in est.feature_log_prob_]
    features = np.repeat(np.arange(columns.n), sizes)
    categories = np.concatenate([np.arange(size) for size in sizes])
    value = b.pick(b.plain(columns), features, columns.n)
    hits = Columns(b.as_real(b.binary("equal", value, b.real(categories))), len(features))
    tables = np.hstack(est.feature_log_prob_)
    return of_likelihoods(b, est, _compared(b, hits, tables, est.class_log_prior_))


def _compared(b, columns, weight, constant):
    """Likelihoods of classes, less what all have in common: it says nothing about which is larger,
    and is so much of each that few bits would be left for what they differ in."""
    return b.dense(columns, weight - weight.mean(axis=0), constant)


@predictor(QuadraticDiscriminantAnalysis)
def quadratic_discriminant(b, est, columns):
    x = b.plain(columns)
    parts, constants = [], []
    for mean, rotation, scaling, prior in zip(
        est.means_, est.rotations_, est.scalings_, est.priors_, strict=True
    ):
        whitened = b.dense(Columns(x, columns.n).affine(mean), (rotation / np.sqrt(scaling)).T)
        parts.append(b.reduce("sum_square", whitened, [1]))
        constants.append(np.log(prior) - 0.5 * np.log(scaling).sum())
    n = len(constants)
    scores = b.matrix(b.concat(parts, axis=1), -0.5 * np.eye(n), np.array(constants))
    prediction = of_likelihoods(b, est, scores)
    decision = b.flat(b.matrix(scores, [[-1.0, 1.0]])) if n == 2 else scores
    prediction.methods["decision_function"] = decision
    return prediction


# ---- perceptrons ---------------------------------------------------------------------------------

_ACTIVATIONS = {
    "identity": "identity",
    "logistic": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
    "exp": "exp",
}


def layers(b, est, columns):
    """Value before the last layer's activation."""
    last = len(est.coefs_) - 1
    for i, (coef, intercept) in enumerate(zip(est.coefs_, est.intercepts_, strict=True)):
        activation = "identity" if i == last else _ACTIVATIONS[est.activation]
        given = {} if activation == "identity" else {"activation": activation}
        y = b.dense(columns, coef.T, intercept, **given)
        columns = Columns(y, coef.shape[1])
    return y


@predictor(MLPRegressor)
def mlp_regressor(b, est, columns):
    y = layers(b, est, columns)
    if est.out_activation_ != "identity":
        y = b.unary(_ACTIVATIONS[est.out_activation_], y)
    return regressor(b.flat(y) if est.n_outputs_ == 1 else y)


@predictor(MLPClassifier)
def mlp_classifier(b, est, columns):
    scores = layers(b, est, columns)
    if est.out_activation_ == "softmax":
        return classifier(est.classes_, b.largest(scores), b.add("Softmax", scores, axis=1))
    if est._label_binarizer.y_type_.startswith("multilabel"):
        probabilities = b.unary("sigmoid", scores)
        label = b.above(probabilities, 0.5)
        return classifier([np.arange(2)] * est.n_outputs_, label, probabilities)
    return classifier(est.classes_, b.above(b.flat(scores)), b.both_sigmoids(scores))
