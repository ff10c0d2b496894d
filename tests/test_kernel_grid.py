"""Rows looked up in a grid get the codes that comparing them with all codewords gives."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PRECISIONS, ROW_DTYPES, THREADS, random_case

from fastvq import VectorQuantizer, _threads, kernels, reference
from fastvq.kernels import _codebook, _grid


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; else one."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


@pytest.fixture
def always(monkeypatch):
    """A grid for every codebook that may have one."""
    monkeypatch.setattr(_grid, "_WORTHWHILE", 0)
    monkeypatch.setattr(_grid, "_LEAD", 0)


def by_all(X, codebook, **arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_codebook, "grid_may_pay", lambda book, source: False)
        return kernels.assign(X, codebook, **arguments)


def by_grid(X, codebook, **arguments):
    book = kernels.prepare(codebook)
    codes = kernels.assign(X, book, **arguments)
    assert book._grid, "no grid was made"
    return codes


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ROW_DTYPES)
@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_same_codes_as_without(d, dtype, precision, always):
    for seed, (n, k) in enumerate([(1, 1), (1, 9), (23, 31), (97, 32), (500, 33), (1031, 257)]):
        X, codebook = random_case(seed, n, d, k, dtype, precision)
        np.testing.assert_array_equal(by_grid(X, codebook), by_all(X, codebook))


def test_twin(always):
    X, codebook = random_case(0, 3000, 3, 50)
    np.testing.assert_array_equal(by_grid(X, codebook), reference.assign(X, codebook))


@pytest.mark.parametrize("threads", THREADS)
def test_threads_strides_and_codes(threads, always):
    X, codebook = random_case(1, 5000, 4, 60)
    expected = by_all(X, codebook)
    for same in (X, np.asfortranarray(X), X[::-1][::-1], np.repeat(X, 2, axis=0)[::2]):
        for dtype in (np.uint8, np.uint16, np.uint32, np.int32):
            codes = np.empty(len(X), dtype)
            by_grid(same, codebook, codes=codes, n_threads=threads)
            np.testing.assert_array_equal(codes, expected)
    rows = np.arange(4999, 0, -3)
    np.testing.assert_array_equal(by_grid(X, codebook, rows=rows), expected[rows])


def test_several_tasks(always, monkeypatch):
    monkeypatch.setattr(_grid, "_TASK_ROWS", 1024)
    X, codebook = random_case(2, 5001, 3, 40)
    for n in (1023, 1024, 1025, 5001):
        np.testing.assert_array_equal(by_grid(X[:n], codebook), by_all(X[:n], codebook))


def test_rows_outside_of_the_grid(always):
    X, codebook = random_case(3, 4000, 2, 50)
    book = kernels.prepare(codebook)
    kernels.assign(X, book)
    far = X * 100
    np.testing.assert_array_equal(kernels.assign(far, book), by_all(far, codebook))
    assert book._grid


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("at", [0, 1, 2999])
def test_bad_values(bad, at, always):
    X, codebook = random_case(4, 3000, 2, 50)
    X = X.copy()
    X[at, 1] = bad
    with pytest.raises(ValueError, match=rf"Input X contains .*\(row {at}, feature 1\)"):
        by_grid(X, codebook)


def test_bad_values_alone(always):
    """No row tells where rows lie."""
    codebook = random_case(4, 10, 2, 50)[1]
    with pytest.raises(ValueError, match="Input X contains NaN"):
        kernels.assign(np.full((30, 2), np.nan, np.float32), codebook)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 4),
    offset=st.sampled_from([0, 1, 1e3, -1e6]),
    spread=st.sampled_from([0, 1e-12, 1e-3, 1, 1e5]),
    integers=st.booleans(),
    precision=st.sampled_from(PRECISIONS),
)
def test_ties_and_rounding(seed, d, offset, spread, integers, precision):
    """Rows and codewords that coincide, lie far from the origin, or are told apart by an ulp."""
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((400, d))
    X[:, 0] *= rng.choice([1e-9, 1, 1e3])
    X = ((np.rint(X) if integers else X) * spread + offset).astype(precision)
    codebook = X[rng.randint(0, 400, 40)]
    codebook[::3] = np.nextafter(codebook[::3], codebook[::3].dtype.type(np.inf))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_grid, "_WORTHWHILE", 0)
        patch.setattr(_grid, "_LEAD", 0)
        book = kernels.prepare(codebook)
        codes = kernels.assign(X, book)
    assert bool(book._grid) == (book.scale == 1)
    np.testing.assert_array_equal(codes, by_all(X, codebook))


def test_it_is_made_where_it_pays():
    rng = np.random.default_rng(0)
    X, book = (
        rng.random((300_000, 3), np.float32),
        kernels.prepare(rng.random((512, 3), np.float32)),
    )
    codes = kernels.assign(X, book)
    assert book._grid
    share = book._grid._counts[:-1].mean() / 512
    assert share < 0.1
    np.testing.assert_array_equal(codes, by_all(X, book.codebook))
    made = book._grid
    kernels.assign(X[::-1], book)
    assert book._grid is made


def test_it_is_not_made_where_cells_rule_out_little():
    """Codewords on a sphere: from its middle, where the rows are, all are equally far."""
    rng = np.random.default_rng(0)
    codebook = rng.standard_normal((256, 4))
    codebook = (codebook / np.linalg.norm(codebook, axis=1, keepdims=True)).astype(np.float32)
    X = (rng.standard_normal((300_000, 4)) * 1e-3).astype(np.float32)
    book = kernels.prepare(codebook)
    kernels.assign(X, book)
    assert book._grid is False


@pytest.mark.parametrize("d, k, n", [(5, 4096, 10**6), (4, 12, 10**6), (4, 256, 10_000)])
def test_it_is_not_looked_for_where_there_is_little_to_win(d, k, n):
    book = kernels.prepare(np.zeros((k, d), np.float32))
    source = book.source(np.broadcast_to(np.float32(0), (n, d)))
    assert not _grid.grid_may_pay(book, source)


def test_threads_share_it(always):
    X, codebook = random_case(5, 20_000, 3, 200)
    expected, book, found = by_all(X, codebook), kernels.prepare(codebook), []
    threads = [
        threading.Thread(target=lambda: found.append(kernels.assign(X, book))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for codes in found:
        np.testing.assert_array_equal(codes, expected)


def test_a_quantizer_gives_the_same(always):
    X = np.random.default_rng(0).standard_normal((4000, 3)).astype(np.float32)
    model = VectorQuantizer(64, random_state=0, max_iter=5).fit(X)
    codes = model.transform(X)
    np.testing.assert_array_equal(codes.ravel(), by_all(X, model.codebook_))
    np.testing.assert_array_equal(
        np.concatenate([model.transform(x[None]) for x in X[:50]]), codes[:50]
    )
