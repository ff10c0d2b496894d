"""The data sets. All are float32, C-contiguous, and the same on every machine (fixed seeds).

None is fetched: Fashion-MNIST comes in Debian's package dataset-fashion-mnist, the photograph with
scikit-learn, and the rest is drawn.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


class MissingData(Exception):
    """A data set's package is not installed; the message says which one."""


def available(cases: Mapping[object, Callable[[], tuple]], only: str = "") -> Iterator[tuple]:
    """(case, *what it makes) of each case whose data are installed; says once what is not.

    `only` selects the cases whose name it is part of.
    """
    told = set()
    for case, make in cases.items():
        if only.lower() not in str(case).lower():
            continue
        try:
            made = make()
        except MissingData as error:
            if str(error) not in told:
                print(f"left out: {error}", file=sys.stderr)
            told.add(str(error))
            continue
        yield (case, *made)


def white(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and codewords, all white Gaussian: nothing for any method to exploit."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    return X, rng.standard_normal((k, d), dtype=np.float32)


@lru_cache(maxsize=1)
def blobs(n: int, d: int, n_blobs: int) -> np.ndarray:
    """Round clusters, centres twice as wide as the clusters: they touch, as real groups do."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((n_blobs, d), dtype=np.float32)
    X = rng.standard_normal((n, d), dtype=np.float32)
    X += centres[rng.integers(0, n_blobs, n)]
    return X


@lru_cache(maxsize=1)
def fashion_mnist(n: int = 60_000) -> np.ndarray:
    """First n training pictures, (n, 784), values 0 … 255."""
    if not FASHION_MNIST.exists():
        raise MissingData(f"{FASHION_MNIST} is not there: apt install dataset-fashion-mnist")
    with gzip.open(FASHION_MNIST) as file:
        pixels = np.frombuffer(file.read(16 + n * 784), np.uint8, offset=16)
    return pixels.reshape(-1, 784).astype(np.float32)


@lru_cache(maxsize=1)
def power_law(n: int, d: int, exponent: float = 1.0, seed: int = 0) -> np.ndarray:
    """Gaussian with a power-law spectrum, turned at random, as word vectors are.

    The variance of principal direction j is j ** -exponent. GloVe's 50-dimensional vectors have a
    spectrum of about this slope, text encoders a steeper one.
    """
    rng = np.random.default_rng(seed)
    deviations = np.arange(1, d + 1, dtype=np.float32) ** (-exponent / 2)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    return (rng.standard_normal((n, d), dtype=np.float32) * deviations) @ turn


@lru_cache(maxsize=1)
def sines(n: int, d: int, seed: int = 1338) -> np.ndarray:
    """Ten dimensions folded into many: the construction of faiss's SyntheticDataset.

    Gaussian rows in ten dimensions, a random linear map, a random scale of each dimension, the
    sine of that.
    """
    rng = np.random.RandomState(seed)
    X = rng.normal(size=(n, 10)) @ rng.rand(10, d)
    return np.sin(X * (rng.rand(d) * 4 + 0.1)).astype(np.float32)


@lru_cache(maxsize=1)
def photograph() -> np.ndarray:
    """Pixels of scikit-learn's picture of a Chinese temple, (273280, 3), values 0 … 255."""
    from sklearn.datasets import load_sample_images

    return load_sample_images().images[0].reshape(-1, 3).astype(np.float32)


def trained_codebook(X: np.ndarray, n_codewords: int, *, iterations: int = 3) -> np.ndarray:
    """A codebook such as a fit would leave: a few Lloyd iterations of NumPy on a sample of X.

    On structured data the codewords decide what can be pruned, so random ones would not do.
    """
    from bench.peers import numpy_assigner

    rng = np.random.default_rng(0)
    n_sample = min(len(X), max(20_000, 4 * n_codewords))
    sample = X[np.sort(rng.choice(len(X), n_sample, replace=False))]
    codebook = sample[rng.choice(n_sample, n_codewords, replace=False)].copy()
    for _ in range(iterations):
        codes = numpy_assigner(codebook)(sample)
        order = np.argsort(codes, kind="stable")
        used, first = np.unique(codes[order], return_index=True)
        counts = np.diff(np.append(first, n_sample))
        sums = np.add.reduceat(sample[order].astype(np.float64), first)
        codebook[used] = sums / counts[:, None]
    return codebook
