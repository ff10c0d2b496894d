"""What compares rows with points: nearest neighbours, k-means, codebooks, support vectors."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import AffinityPropagation, Birch, KMeans, MeanShift, MiniBatchKMeans
from sklearn.kernel_ridge import KernelRidge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid
from sklearn.svm import SVC, SVR, NuSVC, NuSVR

from fastvq.compress.importers.sklearn._parts import (
    Columns,
    Prediction,
    UnsupportedEstimator,
    classifier,
    name_of,
    one_against_one,
    predictor,
    regressor,
    transformer,
    votes,
)
from fastvq.vq import VectorQuantizer

# ---- codebooks -----------------------------------------------------------------------------------


def nearest(b, distances):
    return b.add("ArgMax", distances, axis=1, keep=False, least=True)


@predictor(KMeans, MiniBatchKMeans)
def k_means(b, est, columns):
    squared = b.squared_distances(columns, est.cluster_centers_)
    methods = {"predict": nearest(b, squared), "transform": b.unary("sqrt", squared)}
    return Prediction("", methods)


@predictor(MeanShift, AffinityPropagation)
def nearest_centre(b, est, columns):
    squared = b.squared_distances(columns, est.cluster_centers_)
    return Prediction("", {"predict": nearest(b, squared)})


@predictor(Birch)
def birch(b, est, columns):
    squared = b.squared_distances(columns, est.subcluster_centers_)
    labels = b.constant(np.asarray(est.subcluster_labels_, np.int64), "labels")
    label = b.add("Gather", labels, nearest(b, squared), axis=0)
    return Prediction("", {"predict": label, "transform": b.unary("sqrt", squared)})


@transformer(KMeans, MiniBatchKMeans)
def k_means_distances(b, est, columns):
    distances = b.unary("sqrt", b.squared_distances(columns, est.cluster_centers_))
    return Columns(distances, len(est.cluster_centers_))


@transformer(VectorQuantizer)
def vector_quantizer(b, est, columns):
    if est.metric != "euclidean":
        raise UnsupportedEstimator(f"VectorQuantizer with metric={est.metric!r}")
    squared, n = b.squared_distances(columns, est.codebook_), len(est.codebook_)
    if est.output == "distances":
        return Columns(b.unary("sqrt", squared), n)
    code = nearest(b, squared)
    if est.output == "reconstruction":
        return Columns(b.add("Gather", b.real(est.codebook_, "codebook"), code, axis=0), columns.n)
    if est.output == "codes":
        return Columns(b.as_real(b.reshape(code, -1, 1)), 1)
    row = b.constant(np.arange(n, dtype=np.int64), "codes")
    return Columns(b.as_real(b.binary("equal", b.reshape(code, -1, 1), row)), n)


@predictor(VectorQuantizer)
def vector_codes(b, est, columns):
    code = nearest(b, b.squared_distances(columns, est.codebook_))
    if est.output == "codes":
        return Prediction("", {"predict": code, "transform": b.reshape(code, -1, 1)})
    return Prediction(
        "", {"predict": code, "transform": b.plain(vector_quantizer(b, est, columns))}
    )


@predictor(NearestCentroid)
def nearest_centroid(b, est, columns):
    if est.metric not in ("euclidean", "manhattan"):
        raise UnsupportedEstimator(f"NearestCentroid with metric={est.metric!r}")
    metric = {"euclidean": "squared"}.get(est.metric, est.metric)
    distances = b.add(
        "Distances", b.plain(columns), b.real(est.centroids_, "centroids"), metric=metric
    )
    return classifier(est.classes_, nearest(b, distances))


# ---- nearest neighbours --------------------------------------------------------------------------

_METRICS = {1: "manhattan", 2: "euclidean", np.inf: "chebyshev"}


def nearest_points(b, est, columns, k):
    """Distances of the k nearest of the points that an estimator was fitted on, and their numbers,
    each (N, k)."""
    metric = est.effective_metric_
    if metric == "minkowski":
        metric = _METRICS.get(est.effective_metric_params_.get("p", 2))
    if metric not in _METRICS.values() or est.effective_metric_params_.get("w") is not None:
        raise UnsupportedEstimator(f"{name_of(est)} with metric={est.effective_metric_!r}")
    if hasattr(est._fit_X, "toarray"):
        raise UnsupportedEstimator(f"{name_of(est)} fitted on sparse data")
    points = b.real(est._fit_X, "points")
    distances = b.add("Distances", b.plain(columns), points, metric=metric)
    return b.add("TopK", distances, b.integers(k), axis=1, largest=False, n_outputs=2)


def _neighbours(b, est, columns):
    """Numbers of the nearest points, and their shares in an answer, each (N, k)."""
    if est.weights not in (None, "uniform", "distance"):
        raise UnsupportedEstimator(f"{name_of(est)} with weights of its own")
    nearest_, which = nearest_points(b, est, columns, est.n_neighbors)
    if est.weights != "distance":
        return which, None
    # Where a distance is 0, the points at 0 share the answer.
    zero = b.as_real(b.binary("equal", nearest_, b.real(0.0)))
    any_zero = b.reduce("max", zero, [1])
    inverse = b.unary("reciprocal", b.binary("add", nearest_, zero))
    inverse = b.binary("multiply", inverse, b.binary("subtract", b.real(1.0), any_zero))
    weight = b.binary("add", inverse, b.binary("multiply", zero, any_zero))
    return which, b.binary("divide", weight, b.reduce("sum", weight, [1]))


def _average(b, which, share, table, k):
    """Rows of a table (n_points, m), averaged over neighbours: (N, m)."""
    taken = b.add("Gather", b.real(table, "answers"), which, axis=0)  # (N, k, m)
    if share is None:
        total = b.reduce("sum", taken, [1], keep=False)
        return b.binary("divide", total, b.real(float(k)))
    taken = b.binary("multiply", taken, b.add("Unsqueeze", share, axes=(2,)))
    return b.reduce("sum", taken, [1], keep=False)


@predictor(KNeighborsClassifier)
def neighbours_classifier(b, est, columns):
    which, share = _neighbours(b, est, columns)
    several = isinstance(est.classes_, list)
    found = []
    for i, classes in enumerate(est.classes_ if several else [est.classes_]):
        codes = est._y[:, i] if several else np.ravel(est._y)
        votes = np.eye(len(classes))[codes]
        found.append(_average(b, which, share, votes, est.n_neighbors))
    if not several:
        return classifier(est.classes_, b.largest(found[0]), found[0])
    labels = [b.reshape(b.largest(p), -1, 1) for p in found]
    return classifier(est.classes_, b.concat(labels, axis=1), found)


@predictor(KNeighborsRegressor)
def neighbours_regressor(b, est, columns):
    which, share = _neighbours(b, est, columns)
    y = np.asarray(est._y, np.float64)
    found = _average(b, which, share, y.reshape(len(y), -1), est.n_neighbors)
    return regressor(b.flat(found) if y.ndim == 1 else found)


# ---- support vectors -----------------------------------------------------------------------------


def kernel(b, columns, name, points, *, gamma=None, degree=None, coef0=None):
    """Values of a kernel between rows and points: (N, n_points)."""
    gamma = 1.0 / points.shape[1] if gamma is None else gamma
    degree, coef0 = 3 if degree is None else degree, 1 if coef0 is None else coef0
    if name == "linear":
        return b.dense(columns, points)
    if name == "rbf":
        squared = b.squared_distances(columns, points)
        return b.unary("exp", b.binary("multiply", squared, b.real(-gamma)))
    if name in ("poly", "polynomial"):
        inner = b.dense(columns, gamma * points, coef0)
        return b.binary("power", inner, b.real(float(degree)))
    if name == "sigmoid":
        return b.dense(columns, gamma * points, coef0, activation="tanh")
    raise UnsupportedEstimator(f"the kernel {name!r}")


def _expansion(b, columns, name, points, dual, intercept=None, **parameters):
    """dual @ kernel(points, row) + intercept for each row; of a linear kernel, one layer."""
    points = _dense(points)
    if name == "linear":
        return b.dense(columns, dual @ points, intercept)
    return b.matrix(kernel(b, columns, name, points, **parameters), dual, intercept)


def support(b, est, columns, dual):
    """dual @ kernel(support vectors, row) + intercept."""
    return _expansion(
        *(b, columns, est.kernel, est.support_vectors_, _dense(dual), est._intercept_),
        **{"gamma": est._gamma, "degree": est.degree, "coef0": est.coef0},
    )


def _dense(array):
    return array.toarray() if hasattr(array, "toarray") else np.asarray(array)


@predictor(SVR, NuSVR)
def support_vector_regressor(b, est, columns):
    return regressor(b.flat(support(b, est, columns, est._dual_coef_)))


@predictor(SVC, NuSVC)
def support_vector_classifier(b, est, columns):
    """One against one: each pair of classes has a decision, and gives its winner a vote.

    (Chang and Lin, "LIBSVM: a library for support vector machines", 2011)
    """
    if est.break_ties and est.decision_function_shape == "ovr" and len(est.classes_) > 2:
        raise UnsupportedEstimator(f"{name_of(est)} with break_ties=True")
    n = len(est.classes_)
    dual, ends = _dense(est._dual_coef_), np.cumsum(est._n_support)
    spans = [slice(end - size, end) for end, size in zip(ends, est._n_support, strict=True)]
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    weight = np.zeros((len(pairs), dual.shape[1]))
    for p, (i, j) in enumerate(pairs):
        weight[p, spans[i]] = dual[j - 1, spans[i]]
        weight[p, spans[j]] = dual[i, spans[j]]
    one = support(b, est, columns, weight)  # above 0: the first of the pair wins
    probabilities = _coupled(b, est, one) if len(est._probA) else None
    if n == 2:
        decision = b.flat(b.unary("negative", one))
        return classifier(est.classes_, b.above(decision), probabilities, decision)
    lost = b.as_real(b.binary("less_equal", one, b.real(0.0)))
    label = b.largest(votes(b, lost, n))
    if est.decision_function_shape == "ovo":
        return classifier(est.classes_, label, probabilities, one)
    decision = one_against_one(b, lost, b.unary("negative", one), n)
    return classifier(est.classes_, label, probabilities, decision)


def _coupled(b, est, one):
    """Probabilities of classes from the decisions of pairs, each by its sigmoid (Platt)."""
    pairs = b.matrix(one, np.diag(-est._probA), -est._probB, activation="sigmoid")
    return b.add("Couple", b.add("Unary", pairs, function="clip", alpha=1e-7, beta=1 - 1e-7))


@predictor(KernelRidge)
def kernel_ridge(b, est, columns):
    parameters = {"gamma": est.gamma, "degree": est.degree, "coef0": est.coef0}
    dual = np.asarray(est.dual_coef_)
    weight = dual.reshape(len(dual), -1).T
    y = _expansion(b, columns, est.kernel, est.X_fit_, weight, **parameters)
    return regressor(b.flat(y) if dual.ndim == 1 else y)
