"""The kernels of search: by tables, by tables in registers, by counting bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import SIZES, THREADS, assert_same_bits, multiply_add

from fastvq import kernels, reference
from fastvq._kernels import load

CODE_DTYPES = ("uint8", "uint16", "uint32")
# Of each size n three companions: columns, queries, and how many to find.
CASES = [(n, SIZES[(5 * i + 3) % len(SIZES)], 1 + (7 * i) % 19) for i, n in enumerate(SIZES)]


def tables_for(rng, n_queries, sizes, signed=False):
    tables = rng.standard_normal((n_queries, sum(sizes))).astype(np.float32)
    return tables if signed else np.square(tables)


def codes_for(rng, n, sizes, dtype="uint8"):
    return np.stack([rng.randint(0, size, n) for size in sizes], axis=1).astype(dtype)


def in_order(codes, tables, sizes, scale=None, offset=None):
    """What values are defined to be, to the last bit."""
    total = np.zeros((len(tables), len(codes)), np.float32)
    for column, first in zip(codes.T, np.cumsum([0, *sizes[:-1]]), strict=True):
        total += tables[:, first + column.astype(int)]
    return total if scale is None else multiply_add(total, scale, offset + np.zeros_like(total))


def least(values, k):
    rows = np.argsort(values, axis=1, kind="stable")[:, :k].astype(np.int64)
    return np.take_along_axis(values, rows, axis=1) + np.float32(0), rows


def assert_close_to_twin(result, twin):
    np.testing.assert_allclose(result[0], twin[0], rtol=1e-4, atol=1e-4)
    assert result[1].shape == twin[1].shape


class TestTables:
    @pytest.mark.parametrize("dtype", CODE_DTYPES)
    @pytest.mark.parametrize("n, n_columns, n_queries", CASES)
    def test_finds_the_least_sums_to_the_last_bit(self, n, n_columns, n_queries, dtype):
        rng = np.random.RandomState(n)
        sizes = rng.randint(1, 300 if dtype == "uint16" else 257, n_columns)
        codes = codes_for(rng, n, sizes, dtype)
        tables = tables_for(rng, n_queries, sizes, signed=n % 2 == 0)
        k = 1 + n // 3
        result = kernels.nearest_by_tables(codes, tables, sizes, k)
        assert_same_bits(result, least(in_order(codes, tables, sizes), k))
        assert_close_to_twin(result, reference.nearest_by_tables(codes, tables, sizes, k))

    @pytest.mark.parametrize("n_queries", [1, 2, 3, 7, 8, 9, 17])
    def test_factors_and_summands_of_rows(self, n_queries):
        rng = np.random.RandomState(0)
        sizes = [256, 16, 100]
        codes, tables = codes_for(rng, 203, sizes), tables_for(rng, n_queries, sizes, signed=True)
        scale = rng.uniform(0, 3, 203).astype(np.float32)
        offset = rng.standard_normal(203).astype(np.float32)
        terms = {"scale": scale, "offset": offset}
        result = kernels.nearest_by_tables(codes, tables, sizes, 20, **terms)
        assert_same_bits(result, least(in_order(codes, tables, sizes, scale, offset), 20))
        assert_close_to_twin(result, reference.nearest_by_tables(codes, tables, sizes, 20, **terms))

    @pytest.mark.parametrize("n_queries", [1, 2, 3, 8, 30])
    def test_threads_and_company_change_nothing(self, n_queries, small_calls):
        rng = np.random.RandomState(1)
        sizes = [256] * 6
        codes, tables = codes_for(rng, 30_001, sizes), tables_for(rng, n_queries, sizes)
        codes[7000:9000] = codes[:2000]  # ties, far apart
        expected = least(in_order(codes, tables, sizes), 40)
        for threads in THREADS:
            assert_same_bits(
                kernels.nearest_by_tables(codes, tables, sizes, 40, n_threads=threads), expected
            )
        alone = kernels.nearest_by_tables(codes, tables[-1:], sizes, 40)
        assert_same_bits(alone, tuple(part[-1:] for part in expected))

    def test_of_equal_rows_the_first_are_found(self):
        codes = np.zeros((1000, 2), np.uint8)
        values, rows = kernels.nearest_by_tables(codes, np.ones((9, 6), np.float32), [3, 3], 7)
        assert (values == 2).all() and (rows == np.arange(7)).all()

    def test_all_rows_may_be_asked_for(self):
        rng = np.random.RandomState(2)
        codes, tables = codes_for(rng, 99, [16, 16]), tables_for(rng, 9, [16, 16])
        _, rows = kernels.nearest_by_tables(codes, tables, [16, 16], 99)
        assert (np.sort(rows, axis=1) == np.arange(99)).all()

    @pytest.mark.parametrize("make", [np.asfortranarray, lambda c: np.repeat(c, 2, axis=1)[:, ::2]])
    def test_codes_of_any_layout(self, make):
        rng = np.random.RandomState(3)
        codes, tables = codes_for(rng, 50, [40] * 5), tables_for(rng, 3, [40] * 5)
        expected = kernels.nearest_by_tables(codes, tables, [40] * 5, 5)
        assert_same_bits(kernels.nearest_by_tables(make(codes), tables, [40] * 5, 5), expected)
        assert_same_bits(
            kernels.nearest_by_tables(codes.astype(np.int64), tables, [40] * 5, 5), expected
        )
        coded = kernels.Coded(codes, [40] * 5)
        assert_same_bits(kernels.nearest_by_tables(coded, tables, [40] * 5, 5), expected)

    def test_bad_input(self):
        tables, sizes = np.zeros((2, 12), np.float32), [4, 4, 4]
        codes = np.zeros((5, 3), np.uint8)
        for k in (0, 6, -1):
            with pytest.raises(ValueError, match="k must be from 1 to 5"):
                kernels.nearest_by_tables(codes, tables, sizes, k)
        for bad in (codes + 4, codes.astype(np.int8) - 1):
            with pytest.raises(ValueError, match="from 0 to the size"):
                kernels.nearest_by_tables(bad, tables, sizes, 1)
        with pytest.raises(ValueError, match=r"shape \(n, 3\)"):
            kernels.nearest_by_tables(codes[:, :2], tables, sizes, 1)
        with pytest.raises(TypeError, match="integers"):
            kernels.nearest_by_tables(codes * 0.5, tables, sizes, 1)
        with pytest.raises(ValueError, match="entries"):
            kernels.nearest_by_tables(kernels.Coded(codes, [5] * 3), tables, sizes, 1)
        with pytest.raises(ValueError, match="12 entries"):
            kernels.nearest_by_tables(codes, tables[:, :11], sizes, 1)


class TestSubspaceTables:
    @pytest.mark.parametrize("products", [False, True])
    @pytest.mark.parametrize("n_queries", [1, 2, 17])
    def test_against_the_twin(self, products, n_queries):
        rng = np.random.RandomState(0)
        places = np.array([(0, 1, 7), (1, 16, 300), (40, 33, 2), (17, 23, 64)], np.intp)
        values = rng.standard_normal((places[:, 1] * places[:, 2]).sum()).astype(np.float32)
        queries = rng.standard_normal((n_queries, 73)).astype(np.float32)
        expected = reference.subspace_tables(queries, values, places, products=products)
        for threads in THREADS:
            tables = kernels.subspace_tables(
                queries, values, places, products=products, n_threads=threads
            )
            np.testing.assert_allclose(tables, expected, rtol=2e-5, atol=2e-5)
            alone = kernels.subspace_tables(queries[-1:], values, places, products=products)
            assert_same_bits(alone, tables[-1:])

    def test_bad_places(self):
        queries, values = np.zeros((1, 4), np.float32), np.zeros(8, np.float32)
        for place in ((3, 2, 4), (0, 2, 3), (-1, 2, 4)):
            with pytest.raises(ValueError, match="places"):
                kernels.subspace_tables(queries, values, np.array([place], np.intp))


class TestShortTables:
    @pytest.mark.parametrize("n, n_columns, n_queries", CASES)
    def test_packing(self, n, n_columns, n_queries):
        codes = codes_for(np.random.RandomState(n), n, [16] * n_columns)
        assert_same_bits(kernels.pack_short(codes), reference.pack_short(codes))

    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("n, n_columns, n_queries", CASES)
    def test_finds_what_plain_tables_find(self, n, n_columns, n_queries, signed):
        rng = np.random.RandomState(n)
        codes = codes_for(rng, n, [16] * n_columns)
        tables = tables_for(rng, n_queries, [16] * n_columns, signed)
        self.check(codes, tables, 1 + n // 5)

    def check(self, codes, tables, k, **options):
        n_columns = codes.shape[1]
        packed, stacked = kernels.pack_short(codes), tables.reshape(-1, n_columns, 16)
        result = kernels.nearest_by_short_tables(packed, len(codes), stacked, k, **options)
        assert_same_bits(result, kernels.nearest_by_tables(codes, tables, [16] * n_columns, k))
        twin = reference.nearest_by_short_tables(packed, len(codes), stacked, k)
        assert_close_to_twin(result, twin)

    # One byte holds the sums of 16 columns; more are added up in 16 bits.
    @pytest.mark.parametrize("n_columns", [1, 2, 15, 16, 17, 24, 25, 100])
    @pytest.mark.parametrize("threads", THREADS)
    def test_of_many_rows(self, n_columns, threads, small_calls):
        rng = np.random.RandomState(n_columns)
        codes = codes_for(rng, 20_011, [16] * n_columns)
        self.check(codes, tables_for(rng, 6, [16] * n_columns), 30, n_threads=threads)

    @pytest.mark.parametrize(
        "change",
        {
            "all alike": lambda t: np.ones_like(t),
            "all zero": lambda t: np.zeros_like(t),
            "far from zero": lambda t: t + np.float32(1e4),
            "far below zero": lambda t: t - np.float32(1e4),
            "tiny": lambda t: t * np.float32(1e-30),
            "huge": lambda t: t * np.float32(1e30),
            "few values": lambda t: np.round(t),
            "one large": lambda t: np.where(t > 2, np.float32(1e6), t),
        }.items(),
        ids=lambda change: change[0],
    )
    @pytest.mark.parametrize("n_columns", [5, 40])
    def test_tables_that_are_hard_to_round(self, change, n_columns):
        rng = np.random.RandomState(4)
        codes = codes_for(rng, 3000, [16] * n_columns)
        sizes = [16] * n_columns
        tables = change[1](tables_for(rng, 5, sizes, signed=True))
        stacked = tables.reshape(5, n_columns, 16)
        result = kernels.nearest_by_short_tables(kernels.pack_short(codes), 3000, stacked, 25)
        assert_same_bits(result, least(in_order(codes, tables, sizes), 25))

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 400), st.integers(1, 36), st.integers(1, 9), st.integers(0, 2**32 - 1))
    def test_any_shape(self, n, n_columns, n_queries, seed):
        rng = np.random.RandomState(seed)
        codes = codes_for(rng, n, [1 + seed % 16] * n_columns)
        tables = tables_for(rng, n_queries, [16] * n_columns, signed=seed % 2 == 0)
        self.check(codes, tables, rng.randint(1, n + 1))

    def test_bad_input(self):
        with pytest.raises(ValueError, match="from 0 to the size"):
            kernels.pack_short(np.full((3, 2), 16, np.uint8))
        packed, tables = kernels.pack_short(np.zeros((40, 3), np.uint8)), np.zeros((1, 3, 16), "f4")
        for n, table in ((64, tables[:, :2]), (65, tables), (40, tables[:, :, :8])):
            with pytest.raises(ValueError, match="does not fit"):
                kernels.nearest_by_short_tables(packed, n, table, 1)
        most = load("search").most_short_columns()
        wide = kernels.pack_short(np.zeros((1, most + 1), np.uint8))
        with pytest.raises(ValueError, match="at most"):
            kernels.nearest_by_short_tables(wide, 1, np.zeros((1, most + 1, 16), "f4"), 1)


class TestBits:
    @pytest.mark.parametrize("n_bytes", [1, 3, 7, 8, 9, 16, 24, 31, 32, 40, 64, 100])
    @pytest.mark.parametrize("n_queries", [1, 3, 4, 5, 9])
    def test_counts_bits(self, n_bytes, n_queries):
        rng = np.random.RandomState(n_bytes)
        codes = rng.randint(0, 256, (97, n_bytes)).astype(np.uint8)
        queries = rng.randint(0, 256, (n_queries, n_bytes)).astype(np.uint8)
        queries[0] = ~codes[0]  # all bits differ
        for k in (1, 10, 97):
            result = kernels.nearest_by_bits(codes, queries, k)
            assert_same_bits(result, reference.nearest_by_bits(codes, queries, k))

    @pytest.mark.parametrize("threads", THREADS)
    def test_of_many_rows(self, threads, small_calls):
        rng = np.random.RandomState(0)
        codes = rng.randint(0, 256, (30_001, 8)).astype(np.uint8)
        expected = reference.nearest_by_bits(codes, codes[:5], 50)
        assert_same_bits(kernels.nearest_by_bits(codes, codes[:5], 50, n_threads=threads), expected)

    def test_codes_of_any_layout(self):
        rng = np.random.RandomState(0)
        codes = rng.randint(0, 256, (60, 16)).astype(np.uint8)
        expected = reference.nearest_by_bits(codes, codes[:3], 4)
        memory = np.zeros(60 * 16 + 1, np.uint8)
        unaligned = memory[1:].reshape(60, 16)
        unaligned[:] = codes
        for layout in (np.asfortranarray(codes), np.repeat(codes, 2, axis=1)[:, ::2], unaligned):
            assert_same_bits(kernels.nearest_by_bits(layout, layout[:3], 4), expected)

    def test_bad_input(self):
        codes = np.zeros((5, 4), np.uint8)
        with pytest.raises(ValueError, match="4 bytes"):
            kernels.nearest_by_bits(codes, codes[:, :3], 1)
        with pytest.raises(ValueError, match="k must be"):
            kernels.nearest_by_bits(codes, codes, 6)


@pytest.fixture
def small_calls(monkeypatch):
    """Rows cut into many calls, and several threads also for small work."""
    monkeypatch.setattr(kernels._call, "CALL_WORK", 1)
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
