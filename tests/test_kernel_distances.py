"""Distances to a row's codeword and to all, norms, the safe scale: twins and promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    PRECISIONS,
    ROW_DTYPES,
    SHAPES,
    THREADS,
    assert_depends_on_row_alone,
    assert_same_bits,
    layouts,
    random_case,
    rounding,
    squared_in_order,
    squared_in_parts,
)

from fastvq import _threads, kernels, reference

bits = pytest.mark.parametrize("precision", PRECISIONS)
kinds = pytest.mark.parametrize("dtype", ROW_DTYPES)


@pytest.fixture
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; else one."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def some_codes(n, k, seed=0):
    return np.random.RandomState(seed).randint(0, k, n).astype(np.int32)


@bits
@kinds
def test_distances_at_awkward_sizes(dtype, precision):
    for n, d, k in SHAPES:
        X, codebook = random_case(n + d + k, n, d, k, dtype, precision)
        codes = some_codes(n, k)
        result = kernels.distances(X, codebook, codes)
        assert result.dtype == precision
        expected = reference.distances(X.astype(precision), codebook, codes)
        np.testing.assert_allclose(result, expected, rounding(d, precision), err_msg=f"{n, d, k}")
        every = kernels.pairwise(X, codebook)
        expected = reference.pairwise(X.astype(precision), codebook)
        assert every.dtype == precision
        np.testing.assert_allclose(every, expected, rounding(d, precision), err_msg=f"{n, d, k}")
        # One definition: the distance to a codeword is the same number in both.
        assert_same_bits(np.take_along_axis(every, codes[:, None], 1)[:, 0], result)


@bits
@pytest.mark.parametrize("d", [*range(1, 18), 31, 32, 33, 45, 64, 97])
def test_distances_to_the_last_bit(d, precision):
    """Sums that depend on d alone: the same on all levels with fused multiply-add."""
    X, codebook = random_case(d, 33, d, 3, precision, precision)
    expected = squared_in_parts(X[:, None] - codebook[None])
    assert_same_bits(kernels.pairwise(X, codebook), expected)
    codes = some_codes(33, 3)
    near = kernels.distances(X, codebook, codes)
    assert_same_bits(near, expected[np.arange(33), codes])


@bits
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 33])
def test_norms_to_the_last_bit(d, precision):
    X, _ = random_case(d, 33, d, 3, precision)
    total = squared_in_order(X.astype(np.float64))
    assert_same_bits(kernels.row_norms(X, squared=True), total.astype(precision))
    assert_same_bits(kernels.row_norms(X), np.sqrt(total).astype(precision))


@bits
@pytest.mark.parametrize("d", range(1, 100, 2))  # each way to the end of a sum by 32 parts
def test_distances_of_integers_are_exact(d, precision):
    rng = np.random.RandomState(d)
    X, codebook = (rng.randint(-50, 51, (40, d)).astype(precision) for _ in range(2))
    assert_same_bits(kernels.pairwise(X, codebook), reference.pairwise(X, codebook))


@kinds
def test_norms_at_awkward_sizes(dtype):
    for n, d, _ in SHAPES:
        X, _ = random_case(n + d, n, d, 1, dtype)
        for squared in (False, True):
            result = kernels.row_norms(X, squared=squared)
            expected = reference.row_norms(X, squared=squared)
            assert result.dtype == (np.float64 if dtype == "float64" else np.float32)
            # Summed in float64; float32 rounds the result once, and so does the twin.
            tolerance = max(rounding(d, np.float64), np.finfo(result.dtype).eps)
            np.testing.assert_allclose(result, expected, tolerance, err_msg=f"{n, d}")


@kinds
@pytest.mark.parametrize("shape", [(97, 1, 4), (65, 8, 16), (97, 17, 9), (49, 65, 33)])
def test_layouts(shape, dtype, tmp_path):
    X, codebook = random_case(sum(shape), *shape, dtype)
    n, _, k = shape
    codes, rows = some_codes(n, k), np.random.RandomState(1).randint(0, n, 40)
    near, every = kernels.distances(X, codebook, codes), kernels.pairwise(X, codebook)
    norms, scale = kernels.row_norms(X), kernels.safe_scale(X)
    for name, same in layouts(X, tmp_path).items():
        assert_same_bits(kernels.distances(same, codebook, codes), near, name)
        part = kernels.distances(same, codebook, codes[rows], rows=rows)
        assert_same_bits(part, near[rows], name)
        assert_same_bits(kernels.pairwise(same, codebook), every, name)
        assert_same_bits(kernels.row_norms(same), norms, name)
        assert_same_bits(kernels.row_norms(same, rows=rows), norms[rows], name)
        assert kernels.safe_scale(same) == scale
        np.testing.assert_array_equal(same, X, name)


def test_broadcast_rows():
    X, codebook = random_case(0, 65, 8, 17)
    codes = some_codes(65, 17)
    for rows in (np.broadcast_to(X[0], X.shape), np.broadcast_to(X[:, :1], X.shape)):
        copy = rows.copy()
        assert_same_bits(
            kernels.distances(rows, codebook, codes), kernels.distances(copy, codebook, codes)
        )
        assert_same_bits(kernels.row_norms(rows), kernels.row_norms(copy))


@bits
@kinds
@pytest.mark.parametrize("shape", [(97, 3, 7), (65, 40, 9)])
def test_row_alone(shape, dtype, precision, threads_at_once):
    X, codebook = random_case(sum(shape), *shape, dtype, precision)
    book, codes = kernels.prepare(codebook), some_codes(shape[0], shape[2])

    def near_and_norms(rows, threads):
        near = kernels.distances(X, book, codes[rows], rows=rows, n_threads=threads)
        every = kernels.pairwise(X[rows], book, n_threads=threads)
        return near, every, kernels.row_norms(X, rows=rows, n_threads=threads)

    assert_depends_on_row_alone(near_and_norms, len(X))


@bits
def test_calls_and_threads_do_not_show(precision, threads_at_once, monkeypatch):
    X, codebook = random_case(3, 3000, 13, 6, precision, precision)
    codes = some_codes(len(X), 6)

    def everything(threads):
        return (
            kernels.distances(X, codebook, codes, n_threads=threads),
            kernels.pairwise(X, codebook, n_threads=threads),
            kernels.row_norms(X, n_threads=threads),
            kernels.safe_scale(X, n_threads=threads),
        )

    expected = everything(1)
    np.testing.assert_allclose(
        expected[0], reference.distances(X, codebook, codes), rounding(13, precision)
    )
    for call_work in (kernels._call.CALL_WORK, 1):
        monkeypatch.setattr(kernels._call, "CALL_WORK", call_work)
        for threads in THREADS:
            assert_same_bits(everything(threads), expected)


def test_output_array():
    X, codebook = random_case(4, 30, 20, 9)
    codes = some_codes(30, 9)
    out = np.full(32, -1, np.float32)
    result = kernels.distances(X, codebook, codes, out=out[1:-1])
    assert result.base is out
    assert_same_bits(result, kernels.distances(X, codebook, codes))
    assert out[0] == out[-1] == -1


@pytest.mark.parametrize("factor", [1, 1e-30, 1e30])
def test_output_array_where_the_codebook_is_scaled(factor):
    X, codebook = random_case(4, 30, 20, 9)
    X, codebook = X * np.float32(factor), codebook * np.float32(factor)
    expected = kernels.distances(X, codebook, some_codes(30, 9))
    out = np.empty_like(expected)
    assert kernels.distances(X, codebook, some_codes(30, 9), out=out) is out
    assert_same_bits(out, expected)


@pytest.mark.parametrize(
    "out", [np.empty(29, "f4"), np.empty(30, "f8"), np.empty((30, 1), "f4"),
            np.empty(60, "f4")[::2], np.broadcast_to(np.float32(0), 30)],
)  # fmt: skip
def test_output_array_is_checked(out):
    X, codebook = random_case(4, 30, 20, 9)
    with pytest.raises(ValueError, match="out must"):
        kernels.distances(X, codebook, some_codes(30, 9), out=out)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "uint32"])
def test_dtypes_of_codes(dtype):
    X, codebook = random_case(4, 30, 20, 9)
    codes = some_codes(30, 9)
    expected = kernels.distances(X, codebook, codes)
    assert_same_bits(kernels.distances(X, codebook, codes.astype(dtype)), expected)
    assert_same_bits(kernels.distances(X, codebook, np.repeat(codes, 2)[::2]), expected)


@pytest.mark.parametrize("wrong", [-1, 9, 2**31 - 1, -(2**31)])
def test_codes_out_of_range(wrong):
    X, codebook = random_case(4, 30, 20, 9)
    codes = some_codes(30, 9)
    codes[29] = wrong
    with pytest.raises(ValueError, match="codes must lie between 0 and 8"):
        kernels.distances(X, codebook, codes)
    with pytest.raises(ValueError, match="codes must have shape"):
        kernels.distances(X, codebook, codes[:-1])


def test_no_rows_and_one_codeword():
    X, codebook = random_case(4, 30, 20, 9)
    assert kernels.distances(X[:0], codebook, np.empty(0, np.int32)).shape == (0,)
    assert kernels.pairwise(X[:0], codebook).shape == (0, 9)
    assert kernels.row_norms(X[:0]).shape == (0,)
    assert kernels.safe_scale(X[:0]) == 1
    one = kernels.pairwise(X, codebook[:1])
    assert_same_bits(one[:, 0], kernels.distances(X, codebook[:1], np.zeros(30, np.int32)))


@pytest.mark.parametrize(
    ("dtype", "value", "what"),
    [("float32", np.nan, "NaN"), ("float32", -np.inf, "infinity"), ("float32", 1e20, "too large"),
     ("float64", np.nan, "NaN"), ("float64", 1e200, "too large"), ("float16", np.nan, "NaN"),
     ("float16", np.inf, "infinity")],
)  # fmt: skip
def test_values_that_cannot_be_squared(dtype, value, what):
    precision = "float64" if dtype == "float64" else "float32"
    X, codebook = random_case(1, 97, 6, 5, dtype, precision)
    for row in (0, 17, 96):
        bad = X.copy()
        bad[row:, 5] = value
        message = rf"X contains.*{what}.*row {row}, feature 5"
        with pytest.raises(ValueError, match=message):
            kernels.distances(bad, codebook, some_codes(97, 5))
        with pytest.raises(ValueError, match=message):
            kernels.distances(bad, codebook, np.zeros(2, int), rows=np.array([row, 96]))
        with pytest.raises(ValueError, match=message):
            kernels.pairwise(bad, codebook)
        with pytest.raises(ValueError, match=message):
            kernels.row_norms(bad)
        if what != "too large":  # which is what the scale is for
            with pytest.raises(ValueError, match=message):
                kernels.safe_scale(bad)


# Extremes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 13, 40])
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_squares_beyond_float32_come_in_float64(factor, d):
    X, codebook = random_case(d, 50, d, 7)
    X, codebook = X * np.float32(factor), codebook * np.float32(factor)
    codes = some_codes(50, 7)
    result = kernels.distances(X, codebook, codes)
    assert result.dtype == np.float64
    expected = reference.pairwise(X, codebook.astype(np.float64))
    np.testing.assert_allclose(result, expected[np.arange(50), codes], rounding(d, np.float32))
    np.testing.assert_allclose(kernels.pairwise(X, codebook), expected, rounding(d, np.float32))
    _, near = kernels.assign_two(X, codebook)
    np.testing.assert_allclose(near, np.sort(expected)[:, :2], rounding(d, np.float32))


def test_codebook_of_subnormal_values():
    X, codebook = np.float32([[1e-40], [3e-40]]), np.float32([[0], [3e-40]])
    distances = kernels.distances(X, codebook, np.array([0, 0]))
    # The float32 nearest to 1e-40 is off by up to 7e-46, which is 7e-6 of it.
    np.testing.assert_allclose(distances, [1e-80, 9e-80], rtol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_safe_scale(dtype):
    tiny, huge = {"float32": (-130, 120), "float64": (-1000, 1000)}[dtype]
    X = np.random.RandomState(0).uniform(0.5, 1, (300, 7)).astype(dtype)
    X[:, 3] *= -1
    for exponent in (-20, 0, 20):
        assert kernels.safe_scale(np.ldexp(X, exponent)) == 1
    for exponent in (tiny, huge):
        scaled = np.ldexp(X, exponent)
        scale = kernels.safe_scale(scaled)
        mantissa, _ = np.frexp(scale)
        assert mantissa == 0.5  # a power of two
        most = 2.0 ** (np.finfo(dtype).maxexp - 2)  # a larger factor is not to be had
        assert scale == most or 0.5 <= np.abs(scaled).max() * scale <= 1
        squares = kernels.row_norms(scaled * scaled.dtype.type(scale), squared=True)
        assert (np.isfinite(squares) & (squares > 0)).all()
    assert kernels.safe_scale(np.zeros((3, 3), dtype)) == 1


def test_norms_where_a_square_would_overflow_in_float32_are_summed_in_float64():
    X = np.full((3, 4000), 2.0**55, np.float32)
    np.testing.assert_allclose(kernels.row_norms(X), 2.0**55 * np.sqrt(4000), 1e-7)


# Properties --------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 99), st.sampled_from(PRECISIONS))
@settings(max_examples=25, deadline=None)
def test_properties(n, d, seed, precision):
    X, codebook = random_case(seed, n, d, 5, precision, precision)
    every = kernels.pairwise(X, codebook)
    assert (every >= 0).all()
    assert_same_bits(kernels.pairwise(codebook, X), np.ascontiguousarray(every.T))
    assert not kernels.distances(X, X, np.arange(n)).any()
    # Powers of two are exact.
    assert_same_bits(kernels.pairwise(X * 4, codebook * 4), every * 16)
    codes = kernels.assign(X, codebook)
    least = kernels.distances(X, codebook, codes)
    assert (least <= every.min(axis=1) * (1 + 2 * rounding(d, precision))).all()
