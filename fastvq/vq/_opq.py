"""Optimised product quantization: the rotation under which a product of codebooks serves best.

Let rows x be coded, and c be the codewords of their codes. The error Σ w·|x·R − c|² is then least
over the codewords at the means of the rotated rows, and least over rotations R at the orthogonal
matrix nearest to A = Σ w·xᵀc (Procrustes): R = U Vᵀ where A = U S Vᵀ. For codewords and R given, it
is least where rows have the nearest codewords. In turns of these three the error falls (Ge, He, Ke
& Sun, "Optimized product quantization", TPAMI 2014: the non-parametric form). They start from the
parametric solution of that paper: eigenvectors of the covariance, dealt to the subspaces so that
the products of the variances are alike.

What follows encoding needs the rows through S_k alone, the sums of the unrotated rows of each
codeword: means are S_k·R / n_k, and A is Σ_k S_kᵀ c_k. So a turn is one pass over the rows, in
which they are rotated block by block and never kept, n·M·d additions in float64, in row order, and
some products of small matrices.
"""

import numpy as np

from fastvq import _threads, kernels
from fastvq.vq._base import code_dtype
from fastvq.vq._rows import ordered_sum, spans

__all__ = ["Frame", "balanced", "opq", "random_rotation", "start_bytes"]

# Lloyd iterations for the codebooks to begin with.
_FIRST_ITERATIONS = 4
# Rows whose covariance the start is taken from, at least; and for each feature.
_COVARIANCE_ROWS = 16384
_COVARIANCE_ROWS_PER_FEATURE = 8
_BLOCK_BYTES = 1 << 21  # of rotated rows: they stay in the second-level cache, or the third


class Frame:
    """The coordinates that codebooks live in: features scaled, then rotated.

    Parameters
    ----------
    rotation : (d, d) array, orthogonal, or None
    scale : (d,) array, or None
    """

    def __init__(self, rotation, scale):
        self.rotation, self.scale = rotation, scale
        self.plain = rotation is None and scale is None
        if rotation is not None:
            self._matrix = rotation if scale is None else scale[:, None] * rotation
            back = rotation.T if scale is None else rotation.T / scale
            self._forth, self._back = kernels.Rotation(self._matrix), kernels.Rotation(back)

    def subspace(self, X, features, dtype, n_threads):
        """Some coordinates of all rows, side by side in memory where that is no copy of all."""
        if self.rotation is not None:
            return kernels.rotate(X, self._matrix[:, features], n_threads=n_threads)
        if self.scale is not None:
            return np.multiply(X[:, features], self.scale[features], dtype=dtype)
        whole = features.stop - features.start == X.shape[1]
        return X if whole else np.ascontiguousarray(X[:, features])

    def blocks(self, X, dtype, n_threads):
        """Consecutive (slice, coordinates of these rows); valid until the next is asked for."""
        if self.plain:
            yield slice(0, len(X)), X
            return
        for span, block in self.scratch(len(X), X.shape[1], dtype):
            if self.rotation is not None:
                kernels.rotate(X, self._forth, span=span, out=block, n_threads=n_threads)
            else:
                np.multiply(X[span], self.scale, out=block, dtype=dtype)
            yield span, block

    def back(self, block, out, n_threads):
        """Features of a block of coordinates."""
        if self.rotation is not None:
            kernels.rotate(block, self._back, out=out, n_threads=n_threads)
        else:
            np.divide(block, self.scale, out=out)

    @staticmethod
    def scratch(n_rows, n_features, dtype):
        """Slices that cover so many rows, each with a block of memory for them."""
        step = max(64, _BLOCK_BYTES // (n_features * dtype.itemsize))
        memory = np.empty((min(step, n_rows), n_features), dtype)
        for span in spans(n_rows, step):
            yield span, memory[: span.stop - span.start]


def random_rotation(n_features, rng):
    """An orthogonal matrix, each as likely as any other (Stewart 1980), float64."""
    Q, R = np.linalg.qr(rng.standard_normal((n_features, n_features)))
    return Q * np.copysign(1.0, np.diag(R))


def opq(fit, scale):
    """The frame that the rows of a fit are best coded in, and the inertia after each turn.

    Leaves in ``fit.subspaces`` the codebooks from which to go on. (A copy of its settings: the
    parameters are those of the estimator.)
    """
    # Results of LAPACK and BLAS depend on their threads.
    with _threads.one_blas_thread():
        rotation = _parametric_start(fit, scale)
        codebooks = [
            outcome.codebook
            for outcome in fit.run(
                Frame(rotation.astype(fit.dtype), scale), max_iter=_FIRST_ITERATIONS
            )
        ]
        rotation, codebooks, history = _alternate(fit, scale, rotation, codebooks)
    fit.subspaces = [
        subspace._replace(
            settings=subspace.settings._replace(init=codebook.astype(fit.dtype), n_init=1)
        )
        for subspace, codebook in zip(fit.subspaces, codebooks, strict=True)
    ]
    return Frame(rotation.astype(fit.dtype), scale), history


def _alternate(fit, scale, rotation, codebooks):
    """Encode; update codebooks and rotation; again, until that lowers the inertia no more."""
    slices = [subspace.features for subspace in fit.subspaces]
    settings = fit.subspaces[0].settings
    power = _power(fit, scale)
    codes = np.empty((len(fit.X), len(slices)), code_dtype([len(codebooks[0]).bit_length() - 1]))
    history = []
    for _ in range(settings.max_iter):
        _encode(fit, Frame(rotation.astype(fit.dtype), scale), codebooks, codes)
        sums, counts = _sums(fit, scale, codes, codebooks)
        nearest = np.concatenate(
            [total.T @ codebook for total, codebook in zip(sums, codebooks, strict=True)], axis=1
        )
        U, _, Vt = np.linalg.svd(nearest)
        rotation = U @ Vt
        explained = 0.0
        for m, features in enumerate(slices):
            filled = counts[m] > 0
            rotated = sums[m][filled] @ rotation[:, features]
            codebooks[m] = codebooks[m].astype(np.float64)
            codebooks[m][filled] = rotated / counts[m][filled, None]
            explained += float(np.einsum("kd,kd->", rotated, codebooks[m][filled]))
        history.append(power - explained)
        if len(history) > 1 and history[-2] - history[-1] < settings.tol * history[-2]:
            break
    return rotation, codebooks, history


def _encode(fit, frame, codebooks, codes):
    books = kernels.prepare_subspaces([codebook.astype(fit.dtype) for codebook in codebooks])
    for span, block in frame.blocks(fit.X, fit.dtype, fit.n_threads):
        kernels.assign_subspaces(block, books, codes=codes[span], n_threads=fit.n_threads)


def _sums(fit, scale, codes, codebooks):
    """Sums (k, d) of scaled rows and their weight (k,), for each subspace."""
    sums, counts = [], []
    for m, codebook in enumerate(codebooks):
        total, count = kernels.sums(
            fit.X,
            codes[:, m],
            len(codebook),
            sample_weight=fit.weight,
            n_threads=fit.n_threads,
        )
        sums.append(total if scale is None else total * scale)
        counts.append(count)
    return sums, counts


def _power(fit, scale):
    """Σ w·|x|² of scaled rows."""
    squares = np.empty(len(fit.X))
    for span, block in _float64_blocks(fit.X, scale):
        squares[span] = np.einsum("nd,nd->n", block, block)
    return ordered_sum(squares, fit.weight)


def _parametric_start(fit, scale):
    """Eigenvectors of the covariance as columns, dealt to the subspaces."""
    sizes = [subspace.features.stop - subspace.features.start for subspace in fit.subspaces]
    variances, directions = np.linalg.eigh(_covariance(fit, scale))
    return directions[:, balanced(variances, sizes)]


def start_bytes(n_rows, n_features):
    """Memory that the start takes: rows as they were given, the covariance and eigenvectors."""
    sample = min(n_rows, max(_COVARIANCE_ROWS, _COVARIANCE_ROWS_PER_FEATURE * n_features))
    return 8 * n_features * (sample + 4 * n_features) + 24 * n_rows


def balanced(variances, sizes):
    """The order of the directions in which subspaces of these sizes have products alike.

    The largest variance first, each goes to the subspace with the least product so far that has
    room (the paper's greedy allocation).
    """
    logs = np.log(np.maximum(variances, max(variances.max() * 1e-12, np.finfo(np.float64).tiny)))
    # So that what is left over is large: with small ones, "least product" would be the emptiest
    # subspace in one unit of measurement and the fullest in another.
    logs -= logs.min()
    dealt = [[] for _ in sizes]
    products = np.zeros(len(sizes))
    for direction in np.argsort(-variances, kind="stable"):
        room = [len(own) < size for own, size in zip(dealt, sizes, strict=True)]
        m = int(np.argmin(np.where(room, products, np.inf)))
        dealt[m].append(direction)
        products[m] += logs[direction]
    return np.concatenate(dealt).astype(np.intp)


def _covariance(fit, scale):
    """Covariance (d, d) of rows evenly spaced among those that have weight, float64."""
    n_features = fit.X.shape[1]
    weight = np.ones(len(fit.X)) if fit.weight is None else fit.weight
    positions = np.flatnonzero(weight)
    most = max(_COVARIANCE_ROWS, _COVARIANCE_ROWS_PER_FEATURE * n_features)
    positions = positions[:: -(-len(positions) // most)]
    X, weight = fit.X[positions], weight[positions] / weight[positions].sum()
    mean = sum(weight[span] @ block for span, block in _float64_blocks(X, scale))
    covariance = np.zeros((n_features, n_features))
    for span, block in _float64_blocks(X, scale):
        block = block - mean
        covariance += (block * weight[span, None]).T @ block
    return covariance


def _float64_blocks(X, scale):
    for span in spans(len(X), max(64, _BLOCK_BYTES // (8 * X.shape[1]))):
        block = X[span].astype(np.float64)
        yield span, block if scale is None else block * scale
