"""How each other library is asked to do the same work: one function a library and job.

An assigner takes a codebook once and gives back a function of the rows, so that what a library can
prepare beforehand is not timed. Every one gets C-contiguous float32, which suits them all best.
Where a library has a choice, it gets the one measured fastest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

from bench.answers import mean_squared_error
from bench.timing import seconds_of

Assigner = Callable[[np.ndarray], np.ndarray]

#: scores of a block of rows that NumPy keeps at once. Best of 2**14 … 2**22 from (1e6, 2, 16) to
#: (100k, 100, 1000) on a Zen 3, one thread; the scores by columns were 1.2 to 6 times slower.
NUMPY_BLOCK_SCORES = 2**20

#: scipy.cluster.vq.vq holds all scores at once (n * k floats): left out above this many bytes
SCIPY_MOST_BYTES = 2**31

#: features below which faiss.SuperKMeans refuses to run (twice its d_prime_min)
SUPERKMEANS_FEWEST_FEATURES = 32

#: rows that faiss may use of each codeword's share: all of them (its default samples 256)
ALL_ROWS = 2**31 - 1


def load() -> None:
    """Import every library that shares the process: `timing.thread_limit` reaches no later one."""
    import faiss  # noqa: F401
    import sklearn.cluster  # noqa: F401


# -- assignment ---------------------------------------------------------------------------------


def numpy_assigner(codebook: np.ndarray, n_threads: int = 1) -> Assigner:
    """Blocked matrix product and argmin: the minimum over c of |c|² − 2 x·c.

    argmin knows no threads, so with several each takes a share of the rows and its own BLAS thread.
    """
    n_codewords = len(codebook)
    block = max(16, NUMPY_BLOCK_SCORES // n_codewords)
    weights = (-2 * codebook).T
    norms = np.einsum("ij,ij->i", codebook, codebook)
    buffers = [np.empty((block, n_codewords), codebook.dtype) for _ in range(n_threads)]
    libraries = ThreadpoolController()

    def assign_share(X, codes, scores):
        for start in range(0, len(X), block):
            rows = X[start : start + block]
            part = np.matmul(rows, weights, out=scores[: len(rows)])
            part += norms
            part.argmin(axis=1, out=codes[start : start + block])

    def assign(X):
        codes = np.empty(len(X), np.intp)
        shares = np.array_split(X, n_threads), np.array_split(codes, n_threads), buffers
        with libraries.limit(limits=1, user_api="blas"), ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(assign_share, *shares))
        return codes

    return assign


def faiss_assigner(codebook: np.ndarray, n_threads: int = 1) -> Assigner:
    import faiss

    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook)
    return lambda X: index.search(X, 1)[1].ravel()


def sklearn_assigner(codebook: np.ndarray, n_threads: int = 1) -> Assigner:
    from sklearn.cluster import KMeans

    return _fitted(KMeans, codebook).predict


def sklearnex_assigner(codebook: np.ndarray, n_threads: int = 1) -> Assigner:
    """For a process of its own: the import loads other thread pools and a BLAS of its own."""
    from sklearnex.cluster import KMeans

    return _fitted(KMeans, codebook).predict


def _fitted(kmeans, codebook):
    """A KMeans whose codebook is the one given.

    Two copies of it are the rows, because scikit-learn-intelex accelerates a fit only where there
    are fewer codewords than rows, and only a fitted oneDAL model predicts.
    """
    model = kmeans(n_clusters=len(codebook), init=codebook, n_init=1, max_iter=1, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ConvergenceWarning: one iteration is the intent
        model.fit(np.concatenate([codebook, codebook]))
    if not np.array_equal(model.cluster_centers_, codebook):
        model.cluster_centers_ = codebook
    return model


def scipy_assigner(codebook: np.ndarray, n_threads: int = 1) -> Assigner:
    from scipy.cluster.vq import vq

    return lambda X: vq(X, codebook, check_finite=False)[0]


ASSIGNERS = {
    "numpy": numpy_assigner,
    "faiss": faiss_assigner,
    "sklearn": sklearn_assigner,
    "scipy": scipy_assigner,
}


def assigners(n_rows: int, codebook: np.ndarray, n_threads: int) -> dict[str, Assigner]:
    """The peers that can do `n_rows` at once, each ready to assign.

    To be called, and the assigners used, under `timing.thread_limit(n_threads)`: that is where all
    but NumPy's take their threads from.
    """
    fits_scipy = n_rows * len(codebook) * 4 <= SCIPY_MOST_BYTES
    names = [name for name in ASSIGNERS if name != "scipy" or fits_scipy]
    return {name: ASSIGNERS[name](codebook, n_threads) for name in names}


# -- seeding ------------------------------------------------------------------------------------


def sklearn_seeding(X: np.ndarray, n_codewords: int, seed: int) -> np.ndarray:
    """Greedy k-means++ with 2 + ln k trials a codeword."""
    from sklearn.cluster import kmeans_plusplus

    return kmeans_plusplus(X, n_codewords, random_state=seed)[0]


def faiss_seeding(X: np.ndarray, n_codewords: int, seed: int) -> np.ndarray:
    """k-means++ with one trial a codeword: less work and a worse start than the greedy one."""
    import faiss

    codebook = np.empty((n_codewords, X.shape[1]), np.float32)
    seeding = faiss.ClusteringInitialization(X.shape[1], n_codewords)
    seeding.method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    seeding.seed = seed
    seeding.init_centroids(len(X), faiss.swig_ptr(X), faiss.swig_ptr(codebook))
    return codebook


# -- fit ----------------------------------------------------------------------------------------


def sklearn_fit(X, start, *, algorithm, max_iter, tol=0.0):
    """(codebook, iterations)."""
    from sklearn.cluster import KMeans

    model = KMeans(
        len(start), init=start, n_init=1, algorithm=algorithm, max_iter=max_iter, tol=tol
    )
    return _fit_quietly(model, X)


def sklearnex_fit(X, start, *, max_iter, tol=0.0):
    """(codebook, iterations). For a process of its own."""
    from sklearnex.cluster import KMeans

    model = KMeans(len(start), init=start, n_init=1, max_iter=max_iter, tol=tol)
    return _fit_quietly(model, X)


def sklearn_fit_seeded(X, n_codewords, *, seed):
    """(codebook, iterations) of KMeans as it comes: greedy k-means++, then Lloyd."""
    from sklearn.cluster import KMeans

    return _fit_quietly(KMeans(n_codewords, n_init=1, random_state=seed), X)


def _fit_quietly(model, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ConvergenceWarning: stopping early is the intent
        model.fit(X)
    return model.cluster_centers_, model.n_iter_


def faiss_fit(X, start, *, max_iter):
    """(codebook, inertia before each iteration), on all rows. It stops after `max_iter` alone."""
    import faiss

    model = faiss.Kmeans(
        X.shape[1],
        len(start),
        niter=max_iter,
        max_points_per_centroid=ALL_ROWS,
        min_points_per_centroid=1,  # only the threshold of a warning
    )
    model.train(X, init_centroids=start)
    return model.centroids, model.obj


def faiss_superkmeans_fit(X, n_codewords, *, seed, max_iter):
    """(codebook, inertia before each iteration). It takes a seed instead of a start."""
    import faiss

    model = faiss.SuperKmeans(
        X.shape[1],
        n_codewords,
        niter=max_iter,
        seed=seed,
        max_points_per_centroid=ALL_ROWS,
        min_points_per_centroid=1,
    )
    model.train(X)
    return model.centroids, model.obj


def faiss_start_rows(n: int, n_codewords: int, seed: int) -> np.ndarray:
    """Which rows faiss's clusterings start from when given this seed.

    `Clustering` and `SuperKMeans` take the first rows of a permutation drawn from seed + 1. Giving
    these rows to everyone is how a SuperKMeans fit gets the same start as the others.
    """
    import faiss

    order = np.empty(n, np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), n, seed + 1)
    return order[:n_codewords]


def scipy_fit(X, start, *, max_iter):
    """codebook. scipy.cluster.vq.kmeans2; it has no stopping rule."""
    from scipy.cluster.vq import kmeans2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "One of the clusters is empty"
        return kmeans2(X, start, iter=max_iter, minit="matrix", check_finite=False)[0]


# -- product quantization -----------------------------------------------------------------------


def faiss_product(X, n_subspaces, n_bits, *, seed):
    """The trained faiss.ProductQuantizer, on all rows."""
    import faiss

    product = faiss.ProductQuantizer(X.shape[1], n_subspaces, n_bits)
    product.cp.seed = 1234 + seed
    product.cp.max_points_per_centroid = ALL_ROWS
    product.cp.min_points_per_centroid = 1  # no warnings
    product.train(X)
    return product


def faiss_codebooks(product) -> np.ndarray:
    """(M, k, d / M)"""
    import faiss

    return faiss.vector_to_array(product.centroids).reshape(product.M, product.ksub, product.dsub)


def faiss_product_error(X, n_subspaces, n_bits, rotation, *, seed) -> tuple[float, float]:
    """Seconds of training, and the mean squared error of the rows trained on.

    faiss draws the start of OPQ from a generator of fixed seed: only its codebooks differ.
    """
    import faiss

    def train():
        turned = X
        if rotation == "opq":
            matrix = faiss.OPQMatrix(X.shape[1], n_subspaces)
            matrix.max_train_points = ALL_ROWS
            inner = faiss.ProductQuantizer(X.shape[1], n_subspaces, n_bits)
            inner.cp.min_points_per_centroid = 1
            inner.cp.max_points_per_centroid = ALL_ROWS
            matrix.pq = inner
            matrix.train(X)
            turned = matrix.apply(X)
        return turned, faiss_product(turned, n_subspaces, n_bits, seed=seed)

    seconds, (turned, product) = seconds_of(train)
    return seconds, mean_squared_error(turned, product.decode(product.compute_codes(turned)))


# -- search -------------------------------------------------------------------------------------


def faiss_nearest(X: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The true nearest rows."""
    import faiss

    return faiss.knn(queries, X, k)[1]


def faiss_product_index(name: str, X: np.ndarray, n_subspaces: int, n_bits: int):
    """A faiss.IndexPQ or IndexPQFastScan that holds the rows, and its codebooks."""
    import faiss

    index = getattr(faiss, name)(X.shape[1], n_subspaces, n_bits)
    index.train(X[:65_536])
    index.add(X)
    codebooks = faiss.vector_to_array(index.pq.centroids)
    return index, codebooks.reshape(n_subspaces, 2**n_bits, -1)


def faiss_hamming(codes: np.ndarray, encode: Callable, k: int) -> Callable:
    """Search by Hamming distances; queries are encoded as fastvq encodes them."""
    import faiss

    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)
    return lambda queries: index.search(encode(queries), k)[1]
