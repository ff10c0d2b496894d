"""The nearest codeword, and the two nearest: against the NumPy twins, and the promises."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import (
    LONG_SHAPES,
    PRECISIONS,
    ROW_DTYPES,
    SHAPES,
    SIZES,
    THREADS,
    assert_depends_on_row_alone,
    assert_nearest,
    assert_same_bits,
    exact_distances,
    layouts,
    random_case,
    random_rows,
    rounding,
    squared_in_order,
)

from fastvq import _threads, kernels, reference

bits = pytest.mark.parametrize("precision", PRECISIONS)
kinds = pytest.mark.parametrize("dtype", ROW_DTYPES)


@pytest.fixture
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; else one."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


@pytest.fixture
def expanded(monkeypatch):
    """Expanded values wherever there are two codewords, even if they leave every row in doubt."""
    monkeypatch.setattr(kernels._codebook, "EXPAND_FEATURES", 1)
    monkeypatch.setattr(kernels.Prepared, "_separation", lambda self, unscaled: np.inf)


def by_differences(codebook):
    """A prepared codebook that is compared by differences only, which is the definition."""
    book = kernels.prepare(codebook)
    book.panels = None
    return book


# The comparator ----------------------------------------------------------------------------------


def test_comparator_tells_wrong_codes_from_near_ties():
    X, codebook = np.float32([[0], [1], [5]]), np.float32([[0], [2], [5]])
    assert_nearest(np.int32([0, 0, 2]), X, codebook)
    assert_nearest(np.int32([0, 1, 2]), X, codebook)  # row 1 lies between two codewords
    for wrong in ([0, 2, 2], [1, 0, 2], [0, 0, 3], [-1, 0, 2], [0, 0]):
        with pytest.raises(AssertionError):
            assert_nearest(np.int32(wrong), X, codebook)
    with pytest.raises(AssertionError):
        assert_nearest(np.float32([0, 0, 2]), X, codebook)
    nearly = np.float32([[1 + 1e-7]])  # nearer to 2 by 2e-7 of the distance: rounding explains it
    assert_nearest([0], nearly, codebook)
    with pytest.raises(AssertionError):
        assert_nearest([0], nearly + np.float32(1e-5), codebook)
    with pytest.raises(AssertionError):
        assert_nearest([0], np.float64([[1 + 1e-7]]), codebook.astype(np.float64))


def test_comparator_of_bits():
    a = np.float32([1, 2])
    assert_same_bits((a, a), (a.copy(), a.copy()))
    for other in (np.nextafter(a, np.float32(9)), a.astype(np.float64), a[:1], a[None]):
        with pytest.raises(AssertionError):
            assert_same_bits((a, a), (a, other))


# Against the twins -------------------------------------------------------------------------------


@bits
@kinds
def test_nearest_at_awkward_sizes(dtype, precision):
    for n, d, k in SHAPES + LONG_SHAPES:
        X, codebook = random_case(n + d + k, n, d, k, dtype, precision)
        codes = kernels.assign(X, codebook)
        assert codes.dtype == np.int32
        assert_nearest(codes, X, codebook, note=f"{n, d, k}")
        exact = exact_distances(X, codebook)
        if k > 1:
            first, second = np.partition(exact, 1)[:, :2].T
            clear = second > first * (1 + 2 * rounding(d, precision))
            assert clear.mean() > 0.9  # else the next line would compare little
            expected = reference.assign(X.astype(precision), codebook)
            np.testing.assert_array_equal(codes[clear], expected[clear], f"{n, d, k}")


@bits
@pytest.mark.parametrize("d", range(1, 19))  # the sizes known at compile time, and two beyond
def test_every_small_number_of_features(d, precision):
    for k in (2, 3, 4, 5, 16, 33):
        X, codebook = random_case(d, 97, d, k, precision, precision)
        assert_nearest(kernels.assign(X, codebook), X, codebook, note=f"k={k}")


@bits
@kinds
def test_two_nearest(dtype, precision):
    for n, d, k in SHAPES:
        if k == 1:
            continue
        X, codebook = random_case(n * d, n, d, k, dtype, precision)
        codes, near = kernels.assign_two(X, codebook)
        assert codes.dtype == np.int32
        assert near.dtype == precision
        np.testing.assert_array_equal(codes[:, 0], kernels.assign(X, codebook), f"{n, d, k}")
        assert (codes[:, 0] != codes[:, 1]).all()
        expected_codes, expected = reference.assign_two(X.astype(precision), codebook)
        np.testing.assert_allclose(near, expected, rounding(d, precision), err_msg=f"{n, d, k}")
        exact = exact_distances(X, codebook)
        chosen = np.take_along_axis(exact, codes, axis=1)
        np.testing.assert_allclose(chosen, expected, 2 * rounding(d, precision))
        assert (codes == expected_codes).mean() > 0.95


def test_two_nearest_of_equals_lowest_first():
    codebook = np.float32([[5, 5], [1, 0], [5, 5], [1, 0], [1, 0]])
    codes, near = kernels.assign_two(np.float32([[1, 0], [5, 5], [9, 9]]), codebook)
    np.testing.assert_array_equal(codes, [[1, 3], [0, 2], [0, 2]])
    np.testing.assert_array_equal(near, [[0, 0], [0, 0], [32, 32]])
    with pytest.raises(ValueError, match="at least two codewords"):
        kernels.assign_two(codebook, codebook[:1])


@bits
@pytest.mark.parametrize("d", [1, 3, 4, 16, 17, 64, 150])
def test_ties_go_to_the_lowest_index(d, precision):
    """Small integers, for which both precisions are exact: the twin's codes and no others."""
    rng = np.random.RandomState(d)
    X = rng.randint(-3, 4, (500, d)).astype(precision)
    codebook = rng.randint(-3, 4, (97, d)).astype(precision)
    codebook[50:60] = codebook[:10]
    exact = reference.pairwise(X, codebook)
    assert ((exact == exact.min(axis=1)[:, None]).sum(axis=1) > 1).mean() > 0.05
    np.testing.assert_array_equal(kernels.assign(X, codebook), exact.argmin(axis=1))


@bits
@pytest.mark.parametrize("d", [*range(1, 19), 33, 150])
def test_definition_to_the_last_bit(d, precision):
    """Rows about the middle between two codewords, where the last bit of a sum decides: `assign`
    and `assign_two` compare sums of squares in the order of features, fused where the level has
    that. So all such levels give the same codes."""
    rng = np.random.RandomState(d)
    codebook = rng.standard_normal((3, d)).astype(precision)
    codebook[2] += 9
    X = np.empty((400 if precision == "float32" else 80, d), precision)  # fractions take time
    X[:] = codebook[:2].mean(axis=0)
    X += (rng.randint(-3, 4, X.shape) * np.finfo(precision).eps).astype(precision)
    expected = squared_in_order(X[:, None] - codebook[None])
    assert 0.2 < (expected[:, 0] <= expected[:, 1]).mean() < 1 or d == 1
    codes, near = kernels.assign_two(X, codebook)
    assert_same_bits(near, np.sort(expected)[:, :2])
    np.testing.assert_array_equal(codes[:, 0], expected.argmin(axis=1))
    np.testing.assert_array_equal(kernels.assign(X, codebook), expected.argmin(axis=1))


# How the rows lie --------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("shape", [(97, 1, 4), (97, 3, 5), (65, 8, 16), (97, 17, 9), (49, 65, 33)])
def test_layouts(shape, dtype, tmp_path):
    X, codebook = random_case(sum(shape), *shape, dtype)
    rows = np.random.RandomState(0).randint(0, len(X), 40)
    expected, expected_two = kernels.assign(X, codebook), kernels.assign_two(X, codebook)
    for name, same in layouts(X, tmp_path).items():
        assert_same_bits(kernels.assign(same, codebook), expected, name)
        assert_same_bits(kernels.assign(same, codebook, rows=rows), expected[rows], name)
        assert_same_bits(kernels.assign_two(same, codebook), expected_two, name)
        np.testing.assert_array_equal(same, X, name)  # rows are only read


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("d", [3, 8, 33])
def test_broadcast_rows(d, dtype):
    """Strides of zero, along rows, features and both."""
    X, codebook = random_case(d, 65, d, 17, dtype)
    one_row = np.broadcast_to(X[0], X.shape)
    one_feature = np.broadcast_to(X[:, :1], X.shape)
    one_value = np.broadcast_to(X[0, 0], X.shape)
    for rows in (one_row, one_feature, one_value):
        assert 0 in rows.strides
        assert_same_bits(kernels.assign(rows, codebook), kernels.assign(rows.copy(), codebook))


@bits
def test_layouts_of_the_codebook(precision):
    X, codebook = random_case(0, 65, 20, 31, precision, precision)
    expected = kernels.assign(X, codebook)
    frozen = codebook.copy()
    frozen.flags.writeable = False
    for same in (np.asfortranarray(codebook), codebook[::-1].copy()[::-1], frozen):
        assert_same_bits(kernels.assign(X, same), expected)
        np.testing.assert_array_equal(same, codebook)


@bits
@pytest.mark.parametrize("d", [2, 20])  # by differences, by expansion
def test_a_prepared_codebook_is_its_own(d, precision):
    X, codebook = random_case(0, 65, d, 31, precision, precision)
    expected = kernels.assign(X, codebook)
    frozen = codebook.view()
    frozen.flags.writeable = False
    books = [kernels.prepare(codebook), kernels.prepare(frozen)]
    codebook[:] = codebook[::-1].copy()
    for book in books:
        assert_same_bits(kernels.assign(X, book), expected)


def test_a_codebook_that_cannot_change_is_not_copied():
    codebook = np.ones((3, 2), np.float32)
    codebook.flags.writeable = False
    assert kernels.prepare(codebook).codebook is codebook


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32"])
@pytest.mark.parametrize("d", [2, 20])  # by differences, by expansion
def test_dtypes_of_codes(d, dtype):
    X, codebook = random_case(d, 97, d, 256)
    codebook[255] = 50
    X[::9] = 50
    codes = np.zeros(len(X) + 2, dtype)
    result = kernels.assign(X, codebook, codes=codes[1:-1])
    assert result.base is codes
    np.testing.assert_array_equal(result, kernels.assign(X, codebook))
    assert result.max() == 255
    assert codes[0] == codes[-1] == 0


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros(4, np.int32),
        np.zeros((5, 1), np.int32),
        np.zeros(5, np.int64),
        np.zeros(5, np.float32),
        np.zeros(10, np.int32)[::2],
        np.zeros(5, np.dtype(np.int32).newbyteorder()),
        np.broadcast_to(np.int32(0), 5),
    ],
)
def test_room_for_codes_is_checked(codes):
    with pytest.raises(ValueError, match="codes must"):
        kernels.assign(np.zeros((5, 2), np.float32), np.ones((3, 2), np.float32), codes=codes)


def test_codes_that_are_read_only():
    codes = np.zeros(5, np.int32)
    codes.flags.writeable = False
    with pytest.raises(ValueError):
        kernels.assign(np.ones((5, 1), np.float32), np.float32([[0], [1]]), codes=codes)
    assert not codes.any()


@pytest.mark.parametrize(("dtype", "k"), [("uint8", 257), ("uint16", 65_537)])
def test_codes_that_do_not_fit_their_dtype(dtype, k):
    X, codebook = random_case(0, 5, 2, k)
    codes = np.zeros(5, dtype)
    assert kernels.assign(X, codebook[:-1], codes=codes) is codes
    with pytest.raises(ValueError, match=f"{dtype} cannot count {k} codewords"):
        kernels.assign(X, codebook, codes=codes)


def test_more_than_65536_codewords():
    rng = np.random.RandomState(0)
    codebook = rng.standard_normal((65_600, 4)).astype(np.float32)
    codebook[[65_536, 65_599]] += 20
    X = np.concatenate([codebook[[65_599, 65_536, 0]], random_rows(rng, 20, 4)])
    codes = kernels.assign(X, codebook, codes=np.empty(len(X), np.uint32))
    assert codes.dtype == np.uint32
    np.testing.assert_array_equal(codes[:3], [65_599, 65_536, 0])
    assert_nearest(codes, X, codebook)


@bits
@pytest.mark.parametrize("d", [1, 4, 33])
def test_one_codeword_and_no_rows(d, precision):
    X, codebook = random_case(d, 33, d, 5, precision, precision)
    assert not kernels.assign(X, codebook[:1]).any()
    assert kernels.assign(X[:0], codebook).shape == (0,)
    assert kernels.assign(X, codebook, rows=np.empty(0, np.intp)).shape == (0,)
    codes, near = kernels.assign_two(X[:0], codebook)
    assert codes.shape == near.shape == (0, 2)


# A row's code depends on the row and the codebook alone ------------------------------------------


@bits
@kinds
@pytest.mark.parametrize("shape", [(97, 2, 16), (97, 20, 25), (65, 400, 7)])
def test_row_alone(shape, dtype, precision, threads_at_once):
    X, codebook = random_case(sum(shape), *shape, dtype, precision)
    book = kernels.prepare(codebook)
    n = len(X)
    assert_depends_on_row_alone(
        lambda rows, threads: (kernels.assign(X, book, rows=rows, n_threads=threads),), n
    )
    assert_depends_on_row_alone(
        lambda rows, threads: kernels.assign_two(X, book, rows=rows, n_threads=threads), n
    )


@bits
@pytest.mark.parametrize("d", [3, 12, 40])
def test_calls_and_threads_do_not_show(d, precision, threads_at_once, monkeypatch):
    """Rows enough for several calls and, in each, for several units of work."""
    X, codebook = random_case(d, 5000, d, 7, precision, precision)
    expected = kernels.assign(X, codebook, n_threads=1)
    expected_two = kernels.assign_two(X, codebook, n_threads=1)
    assert_nearest(expected, X, codebook)
    for call_work in (kernels._call.CALL_WORK, 1):  # one call, and as many as can be
        monkeypatch.setattr(kernels._call, "CALL_WORK", call_work)
        for threads in THREADS:
            assert_same_bits(kernels.assign(X, codebook, n_threads=threads), expected)
            assert_same_bits(kernels.assign_two(X, codebook, n_threads=threads), expected_two)


def test_threads_of_the_caller_share_a_codebook():
    X, codebook = random_case(0, 3000, 20, 40)
    book = kernels.prepare(codebook)
    expected = kernels.assign(X, book)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: kernels.assign(X, book, n_threads=2), range(12)):
            assert_same_bits(result, expected)


# Expanded values and differences give the same codes ---------------------------------------------


def gaussian(rng, n, d):
    return rng.standard_normal((n, d))


def integers(rng, n, d):
    return rng.randint(-2, 3, (n, d))


def far_from_origin(rng, n, d):
    return 1e4 + rng.standard_normal((n, d))


def two_groups(rng, n, d):
    return 1e4 * np.where(np.arange(n) % 2, 1, -1)[:, None] + rng.standard_normal((n, d))


def close_together(rng, n, d):
    """All rows and codewords within a few roundings of each other."""
    return 1 + 1e-6 * rng.randint(-4, 5, (n, d))


def wide_range(rng, n, d):
    return rng.standard_normal((n, d)) * 10.0 ** rng.randint(-6, 7, (n, 1))


GEOMETRIES = [gaussian, integers, far_from_origin, two_groups, close_together, wide_range]


@bits
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.__name__)
@pytest.mark.parametrize("d", [1, 4, 16, 17, 64, 385])
def test_expansion_gives_the_codes_of_differences(d, geometry, precision, expanded):
    """Also on the worst: rows on the middle between codewords, and codewords that come twice."""
    rng = np.random.RandomState(d)
    values = geometry(rng, 800, d).astype(precision)
    codebook = values[:49].copy()
    codebook[40:49] = codebook[:9]
    middles = (values[rng.randint(0, 40, 200)] + values[rng.randint(0, 40, 200)]) / 2
    X = np.concatenate([values, middles.astype(precision)])
    book = kernels.prepare(codebook)
    assert book.panels is not None
    codes = kernels.assign(X, book)
    assert_same_bits(codes, kernels.assign(X, by_differences(codebook)))
    assert codes.max() < 40  # of two equal codewords the first
    assert_nearest(codes, X, codebook)


@pytest.mark.parametrize("dtype", ["float16", "uint8", "int8", "float64"])
def test_expansion_of_other_rows(dtype, expanded):
    X, codebook = random_case(1, 500, 24, 50, dtype)
    assert_same_bits(kernels.assign(X, codebook), kernels.assign(X, by_differences(codebook)))


def test_few_rows_are_left_to_differences():
    """Else expansion would cost more than it saves, and the tests above would compare nothing."""
    X, codebook = random_case(3, 2000, 64, 100)
    others = np.empty(len(X), np.float32)
    kernels.assign(X, codebook, others=others)
    assert (others == 0).mean() < 0.01
    X[:50] = (codebook[:50] + codebook[50:]) / 2
    kernels.assign(X, np.concatenate([codebook, codebook]), others=others)
    assert (others == 0).all()


def test_differences_where_expansion_would_leave_doubt():
    rng = np.random.RandomState(0)
    assert kernels.prepare(gaussian(rng, 50, 32).astype(np.float32)).panels is not None
    assert kernels.prepare(two_groups(rng, 50, 32).astype(np.float32)).panels is None
    assert kernels.prepare(two_groups(rng, 50, 32)).panels is not None  # float64 has the digits


@bits
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.__name__)
@pytest.mark.parametrize("d", [4, 17, 64, 385])
def test_lower_bound_for_the_others(d, geometry, precision, expanded):
    rng = np.random.RandomState(d)
    X, codebook = geometry(rng, 400, d).astype(precision), geometry(rng, 33, d).astype(precision)
    others = np.full(len(X), np.nan, precision)
    codes = kernels.assign(X, codebook, others=others)
    assert_same_bits(codes, kernels.assign(X, codebook))
    exact = exact_distances(X, codebook)
    exact[np.arange(len(X)), codes] = np.inf
    second = exact.min(axis=1)
    assert (others >= 0).all()
    # In float64 the oracle's own rounding counts.
    assert (others <= second * (1 + rounding(d, np.float64))).all()
    if geometry is gaussian:
        assert np.median(others / second) > 0.99


@pytest.mark.parametrize("factor", [1e-25, 1e-22, 1e-12, 1e12, 1e15, 1e25])
def test_lower_bound_of_a_scaled_codebook(factor):
    X, codebook = random_case(5, 300, 20, 33)
    X, codebook = X * np.float32(factor), codebook * np.float32(factor)
    others = np.empty(len(X), np.float32)
    codes = kernels.assign(X, codebook, others=others)
    exact = exact_distances(X, codebook)
    exact[np.arange(len(X)), codes] = np.inf
    assert (others.astype(np.float64) <= exact.min(axis=1)).all()
    if 1e-18 < factor < 1e18:  # squares beyond leave the range of float32
        assert np.median(others / exact.min(axis=1)) > 0.99


def test_lower_bound_where_there_is_none():
    X, codebook = random_case(6, 50, 2, 9)  # few features: differences, which keep one minimum
    others = np.full(len(X), np.nan, np.float32)
    assert_nearest(kernels.assign(X, codebook, others=others), X, codebook)
    assert not others.any()


@bits
@pytest.mark.parametrize("d", [1, 2, 3])
def test_lower_bound_on_demand_for_few_features(d, precision):
    X, codebook = random_case(d, 300, d, 33, precision, precision)
    others = np.empty(len(X), precision)
    book = kernels.prepare(codebook, bounds=True)
    codes = kernels.assign(X, book, others=others)
    assert_same_bits(codes, kernels.assign(X, codebook))
    exact = exact_distances(X, codebook)
    exact[np.arange(len(X)), codes] = np.inf
    assert (others <= exact.min(axis=1) * (1 + rounding(d, np.float64))).all()
    assert (others > 0.9 * exact.min(axis=1)).mean() > 0.5


# Numbers far apart and out of range --------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 4, 8, 16, 17, 64, 97])
@pytest.mark.parametrize("k", [2, 16, 97])
@pytest.mark.parametrize("geometry", [far_from_origin, two_groups])
def test_float32_decides_as_float64_would(geometry, d, k):
    rng = np.random.RandomState(d + k)
    X = geometry(rng, 400, d).astype(np.float32)
    codebook = geometry(rng, k, d).astype(np.float32)
    # What issue 2 asks for. Rounding explains 2 (d + 3) 2^-24 at most, and in fact far less.
    assert_nearest(kernels.assign(X, codebook), X, codebook, 1e-5)
    assert_nearest(kernels.assign_two(X, codebook)[0][:, 0], X, codebook, 1e-5)


@pytest.mark.parametrize("d", [1, 4, 40])
@pytest.mark.parametrize(
    ("factor", "precision"),
    [*((f, "float32") for f in (1e-40, 1e-30, 1e-12, 1e12, 1e30)), (1e-300, "float64"),
     (1e-160, "float64"), (1e160, "float64"), (1e300, "float64")],
)  # fmt: skip
def test_values_whose_squares_leave_the_range(factor, precision, d):
    """A codebook scaled by a power of two: exact, as the oracle is when both are scaled to 1."""
    X, codebook = random_case(d, 200, d, 24, precision, precision)
    X *= np.array(factor, precision)  # 1e-40 is subnormal
    codebook *= np.array(factor, precision)
    codes = kernels.assign(X, codebook)
    assert_nearest(codes, X.astype(np.float64) / factor, codebook.astype(np.float64) / factor,
                   2 * rounding(d, precision))  # fmt: skip
    assert len(np.unique(codes)) > 8


def test_powers_of_two_change_no_code():
    X, codebook = random_case(9, 300, 24, 31)
    expected = kernels.assign(X, codebook)
    for exponent in (-100, -60, -31, -5, 5, 31, 60, 100):
        factor = np.float32(2.0) ** exponent
        assert_same_bits(kernels.assign(X * factor, codebook * factor), expected)


WRONG = [
    ("float32", np.nan, "NaN"),
    ("float32", np.inf, "infinity"),
    ("float32", -np.inf, "infinity"),
    ("float32", 2.0**57, "too large"),
    ("float32", -3e38, "too large"),
    ("float64", np.nan, "NaN"),
    ("float64", 1e300, "too large"),
    ("float16", np.nan, "NaN"),
    ("float16", -np.inf, "infinity"),
]


@pytest.mark.parametrize(("dtype", "value", "what"), WRONG)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("d", "k"), [(2, 5), (20, 5), (20, 1)])
def test_values_that_cannot_be_compared(d, k, precision, dtype, value, what):
    if precision == "float64" and what == "too large" and dtype == "float32":
        pytest.skip("float64 has room for all values of float32")
    X, codebook = random_case(1, 97, d, k, dtype, precision)
    for row in (0, 17, 96):
        bad = X.copy()
        bad[row:, d - 1] = value
        for same in (bad, np.asfortranarray(bad)):
            message = rf"X contains.*{what}.*row {row}, feature {d - 1}"
            with pytest.raises(ValueError, match=message):
                kernels.assign(same, codebook)
        rows = np.array([0, row, 50]) if row else np.array([row, 1])
        with pytest.raises(ValueError, match=rf"{what}.*row {row},"):
            kernels.assign(bad, codebook, rows=rows)
        if k > 1:
            with pytest.raises(ValueError, match=rf"{what}.*row {row},"):
                kernels.assign_two(bad, codebook)
        good = kernels.assign(bad, codebook, rows=np.arange(row))  # the others do not matter
        assert_same_bits(good, kernels.assign(X[:row], codebook))


def test_values_that_cannot_be_compared_in_a_later_call(monkeypatch):
    monkeypatch.setattr(kernels._call, "CALL_WORK", 1)
    X, codebook = random_case(1, 3000, 8, 5)
    X[2500, 3] = np.nan
    with pytest.raises(ValueError, match="row 2500, feature 3"):
        kernels.assign(X, codebook)


@pytest.mark.parametrize("d", [3, 1000])
def test_many_values_just_within_the_range(d):
    """Each value is allowed, their squares add up to more than a single one's limit: such a row is
    accepted, or named."""
    X = np.full((5, d), 1, np.float32)
    X[3] = 2.0**55
    codebook = np.stack([np.zeros(d), np.ones(d)]).astype(np.float32)
    for call in (
        lambda: kernels.assign(X, codebook),
        lambda: kernels.assign(X, by_differences(codebook)),
        lambda: kernels.assign_two(X, codebook),
        lambda: kernels.distances(X, codebook, np.zeros(5, np.int32)),
    ):
        try:
            call()
        except ValueError as error:
            assert "row 3" in str(error)


def test_every_float16_value_and_nothing_else():
    """Bit patterns with the top exponent are infinity or NaN, all others numbers."""
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = values[np.isfinite(values)][:, None]
    squares = kernels.distances(finite, np.zeros((1, 1), np.float32), np.zeros(len(finite), int))
    np.testing.assert_array_equal(squares, finite[:, 0].astype(np.float32) ** 2)
    kernels.assign(finite, np.float32([[0], [1]]))
    for pattern in (0x7C00, 0x7C01, 0x7DFF, 0x7E00, 0x7FFF, 0xFC00, 0xFC01, 0xFFFF):
        with pytest.raises(ValueError, match="NaN|infinity"):
            kernels.assign(values[pattern : pattern + 1, None], np.float32([[0], [1]]))


# The arguments -----------------------------------------------------------------------------------


def test_arguments_are_checked():
    X, codebook = random_case(0, 9, 4, 3)
    for wrong in (X[:, :3], X[0], X[None]):
        with pytest.raises(ValueError, match="X must have shape"):
            kernels.assign(wrong, codebook)
    for dtype in (np.int32, bool, complex, object, np.dtype(np.float32).newbyteorder()):
        with pytest.raises(TypeError, match="X must be of dtype"):
            kernels.assign(X.astype(dtype), codebook)
    for wrong in (codebook[0], codebook[:0], codebook[:, :0], codebook.astype(np.float16)):
        with pytest.raises(ValueError, match="codebook must be"):
            kernels.prepare(wrong)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="codebook contains"):
            kernels.prepare(np.full((2, 2), value))
    for rows in ([-1], [9], [0, 1, 2, 100]):
        with pytest.raises(ValueError, match="rows must lie between 0 and 8"):
            kernels.assign(X, codebook, rows=np.array(rows))


# Memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "order"), [("uint8", "C"), ("float16", "C"), ("float32", "F"), ("float32", "C")]
)
def test_rows_are_never_copied_whole(dtype, order):
    """64 MB of rows; a copy of a single feature of float32 would be 128 kB already."""
    itemsize = np.dtype(dtype).itemsize
    X = np.zeros((1 << 15, 2048 // itemsize), dtype, order=order)  # lazily, all one page of zeros
    assert X.nbytes == 64 << 20
    codebook = np.arange(4, dtype=np.float32)[:, None] + np.zeros(X.shape[1], np.float32)
    book = kernels.prepare(codebook)
    codes = np.ones(len(X), np.uint8)
    tracemalloc.start()
    kernels.assign(X, book, codes=codes, n_threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not codes.any()
    # A byte for each row, and a packed block of 64 rows at most of 2048 features: half a megabyte.
    assert peak < (1 << 15) + 64 * 2048 * 4 + 50_000


# Properties --------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.floats(-8, 8, width=32, allow_subnormal=False), st.integers(-3, 3).map(float)
)


@st.composite
def cases(draw):
    n, d, k = (draw(st.integers(1, most)) for most in (40, 20, 14))
    precision = draw(st.sampled_from(PRECISIONS))
    # Drawn as float32, so that it means the same in both precisions.
    X = draw(arrays(np.float32, (n, d), elements=NUMBERS))
    codebook = draw(arrays(np.float32, (k, d), elements=NUMBERS))
    return X.astype(precision), codebook.astype(precision)


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_properties(case, random):
    X, codebook = case
    codes = kernels.assign(X, codebook)
    # 1e-5 of the best, or where squares of small differences vanish in float32, their resolution.
    exact = exact_distances(X, codebook)
    chosen = exact[np.arange(len(X)), codes]
    assert (chosen <= exact.min(axis=1) * (1 + 1e-5) + X.shape[1] * 1e-44).all()
    order = list(range(len(X)))
    random.shuffle(order)
    assert_same_bits(kernels.assign(X[order], codebook), codes[order])
    assert_same_bits(kernels.assign(X, by_differences(codebook)), codes)
    twice = np.concatenate([codebook, codebook[:: -1 if random.random() < 0.5 else 1]])
    assert_same_bits(kernels.assign(X, twice), codes)  # never the higher index of two equals


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_integers_are_exact(data):
    d, k = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 14))
    element = st.integers(-9, 9).map(float)
    X = data.draw(arrays(np.float32, (20, d), elements=element))
    codebook = data.draw(arrays(np.float32, (k, d), elements=element))
    np.testing.assert_array_equal(kernels.assign(X, codebook), reference.assign(X, codebook))


def test_sizes_are_what_they_claim():
    """SHAPES covers every size in every place, so that no test above lost some."""
    for place in range(3):
        assert {shape[place] for shape in SHAPES} == set(SIZES)
