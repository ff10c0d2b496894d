"""Projections, components, features of kernels: columns that are made of all columns."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import FeatureAgglomeration
from sklearn.cross_decomposition import CCA, PLSSVD, PLSCanonical, PLSRegression
from sklearn.decomposition import (
    PCA,
    FactorAnalysis,
    FastICA,
    IncrementalPCA,
    KernelPCA,
    MiniBatchSparsePCA,
    SparsePCA,
    TruncatedSVD,
)
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_approximation import Nystroem, RBFSampler, SkewedChi2Sampler
from sklearn.neighbors import NeighborhoodComponentsAnalysis
from sklearn.neural_network import BernoulliRBM
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    transformer,
)


@transformer(PCA, IncrementalPCA)
def principal_components(b, est, columns):
    components = est.components_
    if est.whiten:
        scale = np.sqrt(est.explained_variance_)
        components = components / np.maximum(scale, np.finfo(scale.dtype).eps)[:, None]
    return _projected(b, columns.affine(est.mean_), components)


@transformer(TruncatedSVD)
def truncated_svd(b, est, columns):
    return _projected(b, columns, est.components_)


@transformer(FastICA)
def independent_components(b, est, columns):
    centre = est.mean_ if est.whiten else None
    return _projected(b, columns.affine(centre), est.components_)


@transformer(GaussianRandomProjection, SparseRandomProjection)
def random_projection(b, est, columns):
    components = est.components_
    dense = components.toarray() if hasattr(components, "toarray") else components
    return _projected(b, columns, dense)


@transformer(SparsePCA, MiniBatchSparsePCA)
def sparse_components(b, est, columns):
    """A ridge regression on the components, which is linear in the row."""
    gram = est.components_ @ est.components_.T + est.ridge_alpha * np.eye(len(est.components_))
    return _projected(b, columns.affine(est.mean_), np.linalg.solve(gram, est.components_))


@transformer(FactorAnalysis)
def factors(b, est, columns):
    """What is expected of the latent variables (Barber, "Bayesian Reasoning", 21.2.33)."""
    scaled = est.components_ / est.noise_variance_
    gram = np.eye(len(scaled)) + scaled @ est.components_.T
    return _projected(b, columns.affine(est.mean_), np.linalg.solve(gram, scaled))


@transformer(NeighborhoodComponentsAnalysis)
def neighbourhood_components(b, est, columns):
    return _projected(b, columns, est.components_)


@transformer(FeatureAgglomeration)
def agglomerated_features(b, est, columns):
    if est.pooling_func is not np.mean:
        raise UnsupportedEstimator(f"FeatureAgglomeration with pooling_func={est.pooling_func}")
    member = np.unique(est.labels_)[:, None] == est.labels_
    return _projected(b, columns, member / member.sum(axis=1, keepdims=True))


@transformer(BernoulliRBM)
def hidden_units(b, est, columns):
    y = b.dense(columns, est.components_, est.intercept_hidden_, activation="sigmoid")
    return Columns(y, len(est.components_))


@transformer(PLSRegression, PLSCanonical, PLSSVD, CCA)
def partial_least_squares(b, est, columns):
    rotations = est.x_rotations_ if hasattr(est, "x_rotations_") else est.x_weights_
    return _projected(b, columns.affine(est._x_mean, 1 / est._x_std), rotations.T)


@transformer(LinearDiscriminantAnalysis)
def discriminants(b, est, columns):
    centre = est.xbar_ if est.solver == "svd" else None
    return _projected(b, columns.affine(centre), est.scalings_[:, : est._max_components].T)


@transformer(RBFSampler)
def random_fourier_features(b, est, columns):
    angles = b.dense(columns, est.random_weights_.T, est.random_offset_)
    scaled = Columns(b.unary("cos", angles), len(est.random_offset_))
    return scaled.affine(scale=np.sqrt(2.0 / est.n_components))


@transformer(SkewedChi2Sampler)
def skewed_fourier_features(b, est, columns):
    shifted = columns.affine(shift=est.skewedness)
    logarithms = Columns(b.unary("log", b.plain(shifted)), columns.n)
    angles = b.dense(logarithms, est.random_weights_.T, est.random_offset_)
    scaled = Columns(b.unary("cos", angles), len(est.random_offset_))
    return scaled.affine(scale=np.sqrt(2.0 / est.n_components))


@transformer(KernelPCA)
def kernel_components(b, est, columns):
    """A projection of kernel values, which are centred as those of the training rows were."""
    from fastvq.compress.importers.sklearn._neighbours import kernel

    points = np.asarray(est.X_fit_)
    gamma = est.gamma_ if hasattr(est, "gamma_") else est.gamma
    parameters = {"gamma": gamma, "degree": est.degree, "coef0": est.coef0}
    values = kernel(b, columns, est.kernel, points, **parameters)
    used = est.eigenvalues_ > 0
    weight = np.zeros_like(est.eigenvectors_)
    weight[:, used] = est.eigenvectors_[:, used] / np.sqrt(est.eigenvalues_[used])
    # (k - mean of k - means of columns + their mean) @ weight, the row's mean worked into weight.
    centred = weight - weight.mean(axis=0)
    return _projected(b, Columns(values, len(points)).affine(est._centerer.K_fit_rows_), centred.T)


@transformer(Nystroem)
def nystroem(b, est, columns):
    from fastvq.compress.importers.sklearn._neighbours import kernel

    parameters = {"gamma": est.gamma, "degree": est.degree, "coef0": est.coef0}
    values = kernel(b, columns, est.kernel, est.components_, **parameters)
    return _projected(b, Columns(values, len(est.components_)), est.normalization_)


def _projected(b, columns, components):
    return Columns(b.dense(columns, components), len(components))
