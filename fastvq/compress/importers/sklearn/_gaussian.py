"""Gaussian processes: kernels made of kernels."""

from __future__ import annotations

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as gp

from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    name_of,
    predictor,
    regressor,
)

# Length of the weights of training rows, for targets of variance 1: values of a kernel are right to
# some 1e-7 of its largest, and so a mean is to 1e-3.
_MOST_WEIGHT = 1e4


@predictor(GaussianProcessRegressor)
def gaussian_process(b, est, columns):
    """The mean: values of the kernel between a row and the training rows, times `alpha_`."""
    if est.kernel_ is None or not hasattr(est, "alpha_"):
        raise UnsupportedEstimator("GaussianProcessRegressor that was not fitted")
    columns = Columns(b.plain(columns), columns.n)
    alpha = np.asarray(est.alpha_)
    if np.linalg.norm(alpha, axis=0).max() * est.kernel_.diag(est.X_train_).max() > _MOST_WEIGHT:
        raise UnsupportedEstimator(
            "GaussianProcessRegressor whose weights cancel beyond float32: more noise is needed"
        )
    weight = alpha.reshape(len(alpha), -1).T * np.reshape(est._y_train_std, (-1, 1))
    points = np.asarray(est.X_train_, np.float64)
    values = _kernel(b, columns, est.kernel_, points)
    shift = np.broadcast_to(est._y_train_mean, len(weight))
    if isinstance(values, float):  # a kernel that does not look at its rows
        values = b.matrix(columns.value, np.zeros((len(points), columns.n)), [values] * len(points))
    y = b.matrix(values, weight, shift)
    return regressor(b.flat(y) if len(weight) == 1 else y)


def _kernel(b, columns, kernel, points):
    """A kernel's values between rows and points (N, n_points), or the number that they all are."""
    function = _KERNELS.get(type(kernel))
    if function is None:
        known = ", ".join(cls.__name__ for cls in _KERNELS)
        raise UnsupportedEstimator(f"the kernel {name_of(kernel)}; known are {known}")
    return function(b, columns, kernel, points)


def _combined(function):
    def combine(b, columns, kernel, points):
        parts = [_kernel(b, columns, k, points) for k in (kernel.k1, kernel.k2)]
        if all(isinstance(part, float) for part in parts):
            return float(getattr(np, function)(*parts))
        return b.binary(function, *(b.real(p) if isinstance(p, float) else p for p in parts))

    return combine


def _power(b, columns, kernel, points):
    base = _kernel(b, columns, kernel.kernel, points)
    if isinstance(base, float):
        return base**kernel.exponent
    return b.binary("power", base, b.real(float(kernel.exponent)))


def _distances(b, columns, kernel, points, metric):
    scale = b.real(1 / np.broadcast_to(kernel.length_scale, (1, columns.n)), "scale")
    return b.add("Distances", columns.value, b.real(points, "points"), scale, metric=metric)


def _times(b, value, factor):
    return b.binary("multiply", value, b.real(factor))


def _rbf(b, columns, kernel, points):
    return b.unary("exp", _times(b, _distances(b, columns, kernel, points, "squared"), -0.5))


def _matern(b, columns, kernel, points):
    """Closed forms for nu = 1/2, 3/2, 5/2 and infinity."""
    if kernel.nu == np.inf:
        return _rbf(b, columns, kernel, points)
    if kernel.nu not in (0.5, 1.5, 2.5):
        raise UnsupportedEstimator(f"the kernel Matern with nu={kernel.nu}")
    distance = _distances(b, columns, kernel, points, "euclidean")
    k = _times(b, distance, np.sqrt(2 * kernel.nu))
    decay = b.unary("exp", b.unary("negative", k))
    if kernel.nu == 0.5:
        return decay
    factor = b.binary("add", k, b.real(1.0))
    if kernel.nu == 2.5:
        factor = b.binary("add", factor, _times(b, b.binary("multiply", k, k), 1 / 3))
    return b.binary("multiply", factor, decay)


def _rational_quadratic(b, columns, kernel, points):
    """(1 + d² / 2αl²)^-α, as an exponential."""
    squared = _distances(b, columns, kernel, points, "squared")
    base = b.binary("add", _times(b, squared, 1 / (2 * kernel.alpha)), b.real(1.0))
    return b.unary("exp", _times(b, b.unary("log", base), -kernel.alpha))


def _dot_product(b, columns, kernel, points):
    return b.dense(columns, points, kernel.sigma_0**2)


_KERNELS = {
    gp.Sum: _combined("add"),
    gp.Product: _combined("multiply"),
    gp.Exponentiation: _power,
    gp.ConstantKernel: lambda b, columns, kernel, points: float(kernel.constant_value),
    gp.WhiteKernel: lambda b, columns, kernel, points: 0.0,  # of other rows than those fitted on
    gp.RBF: _rbf,
    gp.Matern: _matern,
    gp.RationalQuadratic: _rational_quadratic,
    gp.DotProduct: _dot_product,
}
