"""Sums of the rows of each codeword: the twin, the row order, the memory of 2^24 rows."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    ROW_DTYPES,
    SHAPES,
    THREADS,
    assert_same_bits,
    layouts,
    multiply_add,
    random_case,
    random_rows,
)

from fastvq import _threads, kernels, reference

kinds = pytest.mark.parametrize("dtype", ROW_DTYPES)


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; else one."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def some_codes(n, k, seed=0):
    return np.random.RandomState(seed).randint(0, k, n).astype(np.int32)


@kinds
def test_sums_at_awkward_sizes(dtype):
    """The twin adds in the same order and the same float64, so that all bits are the same."""
    for n, d, k in SHAPES:
        X, _ = random_case(n + d, n, d, 1, dtype)
        codes = some_codes(n, k)
        expected = reference.sums(X, codes, k)
        assert expected[1].sum() == n
        for threads in THREADS:
            result = kernels.sums(X, codes, k, n_threads=threads)
            assert_same_bits(result, expected, f"{n, d, k}, {threads} threads")


@kinds
def test_weighted_sums(dtype):
    for n, d, k in SHAPES[::3]:
        X, _ = random_case(n + d, n, d, 1, dtype)
        codes, weight = some_codes(n, k), np.random.RandomState(1).uniform(0, 3, n)
        weight[::7] = 0
        expected, weights = reference.sums(X, codes, k, sample_weight=weight)
        largest, _ = reference.sums(np.abs(X.astype(np.float64)), codes, k, sample_weight=weight)
        result = kernels.sums(X, codes, k, sample_weight=weight, n_threads=1)
        # Products are rounded by the twin and may be fused here: half a unit each, and n sums.
        error = (n + 2) * np.finfo(np.float64).eps * largest
        assert (np.abs(result[0] - expected) <= error).all(), (n, d, k)
        assert_same_bits(result[1], weights)
        for threads in THREADS[1:]:
            again = kernels.sums(X, codes, k, sample_weight=weight, n_threads=threads)
            assert_same_bits(again, result, f"{n, d, k}, {threads} threads")


@pytest.mark.parametrize("d", [1, 3, 4, 8, 19])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weighted_sums_to_the_last_bit(dtype, d):
    """In row order, fused where the level has that: the same on all levels that do."""
    X, _ = random_case(d, 97, d, 1, dtype)
    codes, weight = some_codes(97, 4), np.random.RandomState(1).uniform(0, 3, 97)
    expected = np.zeros((4, d))
    for row, code, w in zip(X, codes, weight, strict=True):
        expected[code] = multiply_add(row, np.full(d, w), expected[code])
    assert_same_bits(kernels.sums(X, codes, 4, sample_weight=weight)[0], expected)


def test_row_order_decides_the_bits():
    """Numbers whose sum depends on the order: whoever adds them otherwise gets other bits."""
    rng = np.random.RandomState(0)
    X = (rng.standard_normal((5000, 3)) * 10.0 ** rng.randint(-8, 9, (5000, 1))).astype(np.float64)
    codes = some_codes(5000, 4)
    expected = reference.sums(X, codes, 4)
    shuffled = rng.permutation(5000)
    assert (reference.sums(X[shuffled], codes[shuffled], 4)[0] != expected[0]).any()
    for threads in (1, 2, 3, 4, 5, 8):
        assert_same_bits(kernels.sums(X, codes, 4, n_threads=threads), expected)


def test_calls_do_not_show(monkeypatch):
    X, codes = random_rows(np.random.RandomState(0), 5000, 6, "float64"), some_codes(5000, 9)
    expected = reference.sums(X, codes, 9)
    monkeypatch.setattr(kernels._call, "CALL_WORK", 1)
    for threads in THREADS:
        assert_same_bits(kernels.sums(X, codes, 9, n_threads=threads), expected)


@pytest.mark.parametrize("spread", ["one codeword", "first and last", "most empty"])
def test_codewords_unevenly_used(spread):
    """Threads share the codewords by their rows; some get none."""
    k, n = 50, 3000
    X = random_rows(np.random.RandomState(0), n, 5)
    codes = {
        "one codeword": np.full(n, 17),
        "first and last": np.where(np.arange(n) % 3, 0, k - 1),
        "most empty": some_codes(n, 3) + 20,
    }[spread].astype(np.int32)
    for threads in THREADS:
        result = kernels.sums(X, codes, k, n_threads=threads)
        assert_same_bits(result, reference.sums(X, codes, k), f"{threads} threads")


@kinds
@pytest.mark.parametrize("shape", [(97, 1), (65, 8), (49, 65)])
def test_layouts(shape, dtype, tmp_path):
    X, _ = random_case(sum(shape), *shape, 1, dtype)
    codes = some_codes(len(X), 6)
    rows = np.random.RandomState(1).randint(0, len(X), 40)
    expected, part = reference.sums(X, codes, 6), reference.sums(X[rows], codes[rows], 6)
    for name, same in layouts(X, tmp_path).items():
        assert_same_bits(kernels.sums(same, codes, 6), expected, name)
        assert_same_bits(kernels.sums(same, codes[rows], 6, rows=rows), part, name)
        np.testing.assert_array_equal(same, X, name)
    one_row = np.broadcast_to(X[0], X.shape)
    assert_same_bits(kernels.sums(one_row, codes, 6), reference.sums(one_row, codes, 6))


def test_weights_belong_to_positions():
    """With a list of rows, weight i goes with code i."""
    X, rows = np.float32([[1], [10], [100]]), np.array([2, 0, 2])
    sums, weights = kernels.sums(
        X, np.array([0, 1, 0]), 3, sample_weight=np.array([1, 2, 4.0]), rows=rows
    )
    np.testing.assert_array_equal(sums, [[500], [2], [0]])
    np.testing.assert_array_equal(weights, [5, 2, 0])


def test_more_rows_than_float32_can_count():
    n = (1 << 24) + 3
    X = np.broadcast_to(np.uint8(1), (n, 1))
    sums, weights = kernels.sums(X, np.zeros(n, np.int32), 1, n_threads=1)
    assert sums[0, 0] == weights[0] == n


def test_no_rows():
    sums, weights = kernels.sums(np.empty((0, 4), np.float32), np.empty(0, np.int32), 3)
    assert sums.shape == (3, 4)
    assert weights.shape == (3,)
    assert not sums.any()
    assert not weights.any()


def test_arguments_are_checked():
    X, codes = random_rows(np.random.RandomState(0), 9, 4), some_codes(9, 3)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="codes must lie between 0 and 2"):
            kernels.sums(X, np.where(np.arange(9) == 8, wrong, codes), 3)
    with pytest.raises(ValueError, match="codes must have shape"):
        kernels.sums(X, codes[:8], 3)
    with pytest.raises(ValueError, match="sample_weight must have shape"):
        kernels.sums(X, codes, 3, sample_weight=np.ones(8))
    with pytest.raises(ValueError, match="rows must lie between"):
        kernels.sums(X, codes, 3, rows=np.full(9, 9))


@pytest.mark.parametrize(("dtype", "order"), [("uint8", "C"), ("float16", "F")])
def test_rows_are_never_copied_whole(dtype, order):
    X = np.zeros((1 << 14, 2048), dtype, order=order)
    codes = np.zeros(len(X), np.int32)
    tracemalloc.start()
    kernels.sums(X, codes, 2, n_threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The sums, a converted row, and small change.
    assert peak < 2 * 2048 * 8 + 2048 * 4 + 50_000


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_properties(n, d, k, seed):
    X, _ = random_case(seed, n, d, 1, "int8")
    codes, weight = some_codes(n, k, seed), np.random.RandomState(seed).randint(0, 5, n) / 4
    sums, weights = kernels.sums(X, codes, k)
    np.testing.assert_array_equal(sums.sum(axis=0), X.sum(axis=0))  # integers: exact
    np.testing.assert_array_equal(weights, np.bincount(codes, minlength=k))
    sums, weights = kernels.sums(X, codes, k, sample_weight=weight)
    # Weighting is repeating, exactly so for quarters of integers.
    times = (4 * weight).astype(int)
    again = kernels.sums(np.repeat(X, times, axis=0), np.repeat(codes, times), k)
    assert_same_bits((4 * sums, 4 * weights), again)
