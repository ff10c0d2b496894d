"""How fastvq is asked to do the work: one function a job, the only ones that name its internals."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.timing import seconds_of

#: names under which fastvq takes part in an assignment
TRANSFORM = "fastvq"
KERNEL = "kernel"

PEAK_SECONDS = 0.1
PEAK_TRIES = 5

#: times the rate of a large matrix product, which reaches more than half of the peak
IMPLAUSIBLE = 4


def load() -> None:
    """Import fastvq and its kernels; an ImportError says how to build them."""
    import fastvq.kernels
    import fastvq.vq  # noqa: F401


# -- assignment ---------------------------------------------------------------------------------


def quantizer(codebook: np.ndarray, n_threads: int):
    """A VectorQuantizer with the codebook given: fitted on it, so that every mean is itself."""
    from fastvq import VectorQuantizer

    model = VectorQuantizer(len(codebook), init=codebook, max_iter=1, n_threads=n_threads)
    model.fit(codebook)
    if not np.array_equal(model.codebook_, codebook):
        raise RuntimeError("a fit on its own codewords changed them")
    return model


def assigners(codebook: np.ndarray, n_threads: int) -> dict[str, Callable]:
    """`transform` as users call it, and the kernel beneath it with the codebook prepared."""
    from fastvq import kernels

    prepared = kernels.prepare(codebook)
    return {
        TRANSFORM: quantizer(codebook, n_threads).transform,
        KERNEL: lambda X: kernels.assign(X, prepared, n_threads=n_threads),
    }


def plain_assigner(codebook: np.ndarray, n_threads: int) -> Callable:
    """Assignment by the plain tile: every distance in full, nothing pruned."""
    from fastvq import kernels

    prepared = kernels.prepare(codebook)
    return lambda X: kernels.assign(X, prepared, n_threads=n_threads)


# -- seeding and fit ----------------------------------------------------------------------------


def seeding(X: np.ndarray, n_codewords: int, seed: int, n_threads: int) -> np.ndarray:
    """Greedy k-means++ alone: the codewords a fit would start from."""
    from fastvq.vq._rows import Rows
    from fastvq.vq._seeding import seed as choose

    rows = Rows(X, dtype=np.float32, n_threads=n_threads)
    return choose(rows, n_codewords, "k-means++", np.random.RandomState(seed))


def fit(X, start, *, n_threads, max_iter=300, tol=0.0, algorithm="auto"):
    """The fitted VectorQuantizer."""
    from fastvq import VectorQuantizer

    model = VectorQuantizer(
        len(start),
        init=start,
        algorithm=algorithm,
        max_iter=max_iter,
        tol=tol,
        random_state=0,
        n_threads=n_threads,
    )
    return model.fit(X)


def fit_as_it_comes(X, n_codewords, *, n_threads, seed=0, **parameters):
    """The fitted VectorQuantizer with every default but the seed and the threads."""
    from fastvq import VectorQuantizer

    return VectorQuantizer(n_codewords, random_state=seed, n_threads=n_threads, **parameters).fit(X)


# -- product quantization -----------------------------------------------------------------------


def product_quantizer(codebooks: np.ndarray, n_threads: int):
    """A ProductQuantizer with the codebooks given."""
    from fastvq import ProductQuantizer

    return ProductQuantizer.from_codebooks(codebooks, n_threads=n_threads)


def product_error(X, n_subspaces, n_bits, rotation, seed, n_threads) -> tuple[float, float]:
    """Seconds of training, and the mean squared error of the rows trained on."""
    from fastvq import ProductQuantizer

    model = ProductQuantizer(
        n_subspaces, n_bits, rotation=rotation, random_state=seed, n_threads=n_threads
    )
    seconds, _ = seconds_of(lambda: model.fit(X))
    return seconds, model.distortion(X)


def signs(X: np.ndarray, n_bits: int, n_threads: int):
    """A BinaryQuantizer of random planes."""
    from fastvq import BinaryQuantizer

    return BinaryQuantizer(n_bits, random_state=0, n_threads=n_threads).fit(X[:65_536])


# -- the machine --------------------------------------------------------------------------------


def build() -> dict[str, str]:
    """Version of fastvq, level in use, and the compiler of the kernels."""
    import fastvq

    config = fastvq.show_config(mode="dict")
    return {key: config[key] for key in ("version", "level_active", "compiler")}


def multiply_add_peak(n_threads: int) -> tuple[float, str]:
    """float32 operations a second that this machine's cores can do, and how that was measured.

    By a kernel of independent multiply-adds in registers, on every thread at once. Where fastvq is
    not built, or the compiler has dropped the kernel's arithmetic (a rate that no matrix product
    comes near), by a large matrix product, which is a lower bound.
    """
    product = _matrix_product_rate(n_threads)
    rate = _kernel_rate(n_threads)
    if rate is None:
        return product, "NumPy's matrix product: a lower bound"
    if rate > IMPLAUSIBLE * product:
        return (
            product,
            f"NumPy's matrix product; the kernel's {rate / 1e9:.0f} is not to be believed",
        )
    return rate, "independent multiply-adds in registers"


def _kernel_rate(n_threads: int) -> float | None:
    try:
        from fastvq._kernels import load

        peak = load("peak").multiply_add_peak
    except ImportError:
        return None
    with ThreadPoolExecutor(n_threads) as pool:
        tries = [
            pool.map(peak, [PEAK_SECONDS] * n_threads, "f" * n_threads) for _ in range(PEAK_TRIES)
        ]
        return max(sum(rates) for rates in tries)


def _matrix_product_rate(n_threads: int, size: int = 1024) -> float:
    """Operations a second of float32 `matmul`, by the process's own time: others may be busy."""
    square = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    seconds = min(seconds_of(lambda: square @ square, "cpu")[0] for _ in range(PEAK_TRIES))
    return 2 * size**3 / (seconds / n_threads)
