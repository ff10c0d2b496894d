"""Outliers, which are the class -1, not 1, of a classifier here; mixtures, which may tell them."""

from __future__ import annotations

import numpy as np
from scipy.special import digamma
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import SGDOneClassSVM
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from fastvq.compress.importers._ensemble import Ensemble
from fastvq.compress.importers.sklearn._neighbours import nearest_points, support
from fastvq.compress.importers.sklearn._parts import (
    Columns,
    Prediction,
    UnsupportedEstimator,
    classifier,
    predictor,
)
from fastvq.compress.importers.sklearn._trees import add_tree


def _outliers(b, score, offset, label=None):
    """-1 where a score lies below the offset, else 1."""
    decision = b.binary("subtract", score, b.real(offset)) if offset else score
    if label is None:
        within = b.binary("greater_equal", decision, b.real(0.0))
        label = b.add("Cast", within, dtype="int64")
    found = classifier(np.array([-1, 1]), label, decision=decision)
    found.methods["score_samples"] = score
    return found


@predictor(IsolationForest)
def isolation_forest(b, est, columns):
    """-2^(-depth / expected depth) of the mean depth of the leaves that a row comes to; those that
    were not split to the end count with the depth expected of them.

    (Liu, Ting, Zhou, "Isolation Forest", 2008)
    """
    ensemble = Ensemble()
    trees = zip(est.estimators_, est.estimators_features_, strict=True)
    for i, (tree, features) in enumerate(trees):
        depth = est._decision_path_lengths[i] + est._average_path_length_per_tree[i] - 1.0
        chosen = features if len(features) < columns.n else None
        add_tree(ensemble, tree.tree_, depth[:, None], features=chosen)
    depth = ensemble.node(b, b.plain(columns), aggregate="mean")
    expected = _expected_depth(est._max_samples)
    power = b.flat(b.binary("multiply", depth, b.real(-np.log(2) / expected)))
    return _outliers(b, b.unary("negative", b.unary("exp", power)), est.offset_)


def _expected_depth(n):
    """Of an unsuccessful search in a binary tree of n random numbers."""
    if n <= 2:
        return max(n - 1.0, np.finfo(np.float64).tiny)
    return 2.0 * (np.log(n - 1.0) + np.euler_gamma) - 2.0 * (n - 1.0) / n


@predictor(OneClassSVM)
def one_class_support_vectors(b, est, columns):
    decision = b.flat(support(b, est, columns, est._dual_coef_))
    score = b.binary("add", decision, b.real(est.offset_))
    found = _outliers(b, decision, 0.0, b.above(decision))
    found.methods["score_samples"] = score
    return found


@predictor(SGDOneClassSVM)
def linear_one_class(b, est, columns):
    decision = b.flat(b.dense(columns, est.coef_, -est.offset_))
    found = _outliers(b, decision, 0.0)
    found.methods["score_samples"] = b.binary("add", decision, b.real(est.offset_))
    return found


@predictor(EllipticEnvelope)
def elliptic_envelope(b, est, columns):
    values, vectors = np.linalg.eigh(est.get_precision())
    root = vectors * np.sqrt(np.maximum(values, 0))
    distance = b.dense(columns.affine(est.location_), root.T)
    squared = b.reduce("sum_square", distance, [1], keep=False)
    return _outliers(b, b.unary("negative", squared), est.offset_)


@predictor(LocalOutlierFactor)
def local_outlier_factor(b, est, columns):
    """-(mean density where the neighbours are) / density here; a density is one over the mean
    distance to neighbours, that of a neighbour being at least the one to its own k-th.

    (Breunig, Kriegel, Ng, Sander, "LOF: Identifying Density-Based Local Outliers", 2000)
    """
    if not est.novelty:
        raise UnsupportedEstimator("LocalOutlierFactor with novelty=False")
    k = est.n_neighbors_
    distance, which = nearest_points(b, est, columns, k)
    farthest = b.real(est._distances_fit_X_[:, k - 1], "farthest")
    reach = b.binary("maximum", distance, b.add("Gather", farthest, which, axis=0))
    spread = b.binary("add", b.reduce("mean", reach, [1], keep=False), b.real(1e-10))
    density = b.add("Gather", b.real(est._lrd, "density"), which, axis=0)
    mean = b.reduce("mean", density, [1], keep=False)
    score = b.unary("negative", b.binary("multiply", mean, spread))
    return _outliers(b, score, est.offset_)


# ---- mixtures ------------------------------------------------------------------------------------


@predictor(GaussianMixture, BayesianGaussianMixture)
def gaussian_mixture(b, est, columns):
    n, k = columns.n, len(est.means_)
    whitening = _whitenings(est, n)
    log_det = np.log(np.abs([np.diag(w) for w in whitening])).sum(axis=1)
    constant = log_det - 0.5 * n * np.log(2 * np.pi) + _log_weights(est, n)
    plain = Columns(b.plain(columns), n)
    parts = [
        b.reduce("sum_square", b.dense(plain.affine(mean), w.T), [1])
        for mean, w in zip(est.means_, whitening, strict=True)
    ]
    scores = b.matrix(b.concat(parts, axis=1), -0.5 * np.eye(k), constant)
    methods = {
        "predict": b.largest(scores),
        "predict_proba": b.add("Softmax", scores, axis=1),
        "score_samples": b.reduce("log_sum_exp", scores, [1], keep=False),
    }
    return Prediction("", methods)


def _whitenings(est, n):
    """What makes each component's covariance the identity, from the right: (k, n, n)."""
    found, k = est.precisions_cholesky_, len(est.means_)
    if est.covariance_type == "full":
        return found
    if est.covariance_type == "tied":
        return np.broadcast_to(found, (k, n, n))
    each = found if est.covariance_type == "diag" else np.repeat(found[:, None], n, axis=1)
    return each[:, :, None] * np.eye(n)


def _log_weights(est, n):
    """Logarithms of the components' weights; of a Bayesian mixture, what is expected of them and of
    its precisions."""
    weights = est._estimate_log_weights()
    if isinstance(est, GaussianMixture):
        return weights
    freedom = est.degrees_of_freedom_
    wishart = digamma(0.5 * (freedom - np.arange(n)[:, None])).sum(axis=0) + n * np.log(2.0)
    return weights - 0.5 * n * np.log(freedom) + 0.5 * (wishart - n / est.mean_precision_)
