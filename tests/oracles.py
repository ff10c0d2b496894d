"""What the kernels' tests share: awkward sizes, rows of every kind and layout, and comparators.

The float64 oracles are the NumPy twins of fastvq.reference on rows that were converted first as
the kernels convert them. A squared distance from differences has no cancellation, so its error is
relative, and `rounding` bounds it; nothing here needs a tolerance that was found by trying.
"""

import itertools
from fractions import Fraction

import numpy as np

from fastvq import reference
from fastvq._kernels import active_level

# x86-64 got fused multiply-add with the level after the first.
FUSED = active_level() != "x86_64_v1"

# Around the widths of registers and of tiles: 16, 24, 32, 48 and 64 rows, 4, 6 and 8 codewords.
SIZES = (1, 7, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97)
# Each size twice as n, as d and as k, in different companies.
SHAPES = [
    (SIZES[i], SIZES[(step * i + 5) % len(SIZES)], SIZES[(7 * step * i + 2) % len(SIZES)])
    for step in (5, 11)
    for i in range(len(SIZES))
]
# Features enough for sums that are taken in parts of 256, and just too few.
LONG_SHAPES = [(50, 384, 7), (49, 385, 13), (97, 640, 4), (33, 700, 25), (17, 1025, 9)]
PRECISIONS = ("float32", "float64")
ROW_DTYPES = ("float32", "float64", "float16", "uint8", "int8")
THREADS = (1, 2, 5)


def random_rows(rng, n, d, dtype="float32"):
    """Rows over the whole range of an integer type, or Gaussian; some of float16 are subnormal."""
    dtype = np.dtype(dtype)
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        return rng.randint(limits.min, limits.max + 1, (n, d)).astype(dtype)
    X = rng.standard_normal((n, d))
    if dtype == np.float16:
        X[::5] *= 2e-5  # the smallest normal float16 is 6.1e-5
    return X.astype(dtype)


def random_case(seed, n, d, k, row_dtype="float32", precision="float32"):
    """Rows and a codebook that looks like them."""
    rng = np.random.RandomState(seed)
    X = random_rows(rng, n, d, row_dtype)
    codebook = random_rows(rng, k, d, row_dtype).astype(precision)
    return X, codebook + (0.25 * rng.standard_normal((k, d))).astype(precision)


def decaying(rng, n, d, ratio=0.9):
    """Gaussian rows whose variance lies in few directions, which are not those of the axes."""
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return ((rng.standard_normal((n, d)) * ratio ** np.arange(d)) @ rotation).astype(np.float32)


def layouts(X, directory):
    """The same values in memory of every kind, by name."""
    n, d = X.shape
    wide = np.zeros((n, d + 5), X.dtype)
    wide[:, 3 : 3 + d] = X
    sparse = np.zeros((3 * n, 2 * d), X.dtype)
    sparse[::3, ::2] = X
    read_only = X.copy()
    read_only.flags.writeable = False
    memory = np.zeros(X.nbytes + 1, np.uint8)
    unaligned = memory[1:].view(X.dtype).reshape(n, d)
    unaligned[:] = X
    path = directory / f"{n}-{d}-{X.dtype}.bin"
    path.write_bytes(b"header!" + X.tobytes())
    return {
        "C": X.copy(),
        "Fortran": np.asfortranarray(X),
        "columns of a wider array": wide[:, 3 : 3 + d],
        "columns of a wider Fortran array": np.asfortranarray(wide)[:, 3 : 3 + d],
        "every third row, every second feature": sparse[::3, ::2],
        "rows backwards": X[::-1].copy()[::-1],
        "features backwards": X[:, ::-1].copy()[:, ::-1],
        "both backwards, Fortran": np.asfortranarray(X[::-1, ::-1])[::-1, ::-1],
        "read-only": read_only,
        "unaligned": unaligned,
        "memory map": np.memmap(path, X.dtype, "r", 7, (n, d)),
    }


def rounding(d, precision):
    """Relative error of a sum of d squared differences: d sums, a difference, a square, each
    within half a unit in the last place, doubled for second-order terms and the oracle's own."""
    return (d + 3) * np.finfo(precision).eps


def exact_distances(X, codebook):
    """Squared distances in float64, of rows rounded to the codebook's dtype first."""
    return reference.pairwise(X.astype(codebook.dtype), codebook.astype(np.float64))


def multiply_add(a, b, total):
    """total + a * b in the dtype of `total`, rounded as the active level rounds it: once where it
    has fused multiply-add, else twice. What kernels add up is thereby known to the last bit."""
    dtype = total.dtype
    if not FUSED:
        return total + a.astype(dtype) * b.astype(dtype)
    if dtype == np.float32:  # a product of two float32 is exact in float64
        return (total.astype(np.float64) + a.astype(np.float64) * b).astype(np.float32)
    a, b, total = (_fractions(x) for x in np.broadcast_arrays(a, b, total))
    return (total + a * b).astype(np.float64)


_fractions = np.frompyfunc(lambda x: Fraction(float(x)), 1, 1)


def squared_in_order(difference):
    """Sums over the last axis of squares, feature after feature: what `assign` compares."""
    total = np.zeros_like(difference[..., 0])
    for column in np.moveaxis(difference, -1, 0):
        total = multiply_add(column, column, total)
    return total


def squared_in_parts(difference):
    """The sums that _kernels/pair.h makes: 32 parts, feature f in part f mod 32, then halves."""
    d = difference.shape[-1]
    if d <= 12:
        return squared_in_order(difference)
    parts = np.zeros((*difference.shape[:-1], 32), difference.dtype)
    for first in range(0, d, 32):
        some = difference[..., first : first + 32]
        part = parts[..., : some.shape[-1]]
        part[...] = multiply_add(some, some, part)
    for half in (16, 8, 4, 2, 1):
        parts = parts[..., :half] + parts[..., half:]
    return parts[..., 0]


def assert_nearest(codes, X, codebook, tolerance=None, note=""):
    """The distance to the code's codeword is within `tolerance` of the smallest; by default what
    rounding can explain, so that codes are equal up to near ties."""
    if tolerance is None:
        tolerance = 2 * rounding(X.shape[1], codebook.dtype)
    codes = np.asarray(codes)
    assert codes.shape == (len(X),), note
    assert codes.dtype.kind in "iu", note
    assert ((codes >= 0) & (codes < len(codebook))).all(), f"codes out of range {note}"
    exact = exact_distances(X, codebook)
    chosen = exact[np.arange(len(X)), codes]
    worst = np.flatnonzero(~(chosen <= exact.min(axis=1) * (1 + tolerance)))
    assert not len(worst), (
        f"{len(worst)} of {len(X)} codes are not the nearest, first in row {worst[0]}: "
        f"{chosen[worst[0]]} instead of {exact[worst[0]].min()} {note}"
    )


def assert_same_bits(results, expected, note=""):
    """Arrays, or tuples of arrays, have the same dtype, shape and bits."""
    if not isinstance(results, tuple):
        results, expected = (results,), (expected,)
    assert len(results) == len(expected), note
    for result, other in zip(results, expected, strict=True):
        result, other = np.asarray(result), np.asarray(other)
        assert (result.dtype, result.shape) == (other.dtype, other.shape), note
        if result.tobytes() != other.tobytes():
            different = np.flatnonzero((result != other).reshape(len(result), -1).any(axis=1))
            raise AssertionError(f"{len(different)} rows differ, first {different[:5]} {note}")


def assert_depends_on_row_alone(call, n):
    """`call(rows, n_threads)` gives for each row the same bits in any batch, place and order, and
    with any number of threads."""
    everything = np.arange(n)
    expected = call(everything, 1)
    for threads in THREADS[1:]:
        assert_same_bits(call(everything, threads), expected, f"{threads} threads")
    rng = np.random.RandomState(n)
    lists = [
        everything[::-1],
        rng.permutation(n),
        rng.randint(0, n, 2 * n),  # repeats
        everything[n // 3 :],
        everything[1::2],
        *([row] for row in {0, 1, n // 2, n - 1}),
    ]
    for rows, threads in zip(lists, itertools.cycle(THREADS)):
        part = tuple(array[rows] for array in expected)
        assert_same_bits(call(np.asarray(rows), threads), part, f"rows {rows}, {threads} threads")
