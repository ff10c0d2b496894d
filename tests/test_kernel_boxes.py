"""Rows in boxes get the codes and distances that comparing them with all codewords gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PRECISIONS, ROW_DTYPES, THREADS, assert_same_bits, random_case

from fastvq import _threads, kernels, reference


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; else one."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def by_boxes(X, codebook, grouping=None, n_threads=None):
    """Codes and distances, and how many codewords a row was compared with."""
    n = len(X)
    codes, distances = np.full(n, -1, np.int32), np.full(n, np.nan, codebook.dtype)
    grouping = np.zeros(n, np.int32) if grouping is None else grouping
    boxes = kernels.Boxes(X, grouping, dtype=codebook.dtype, n_threads=n_threads)
    compared = boxes.assign(codebook, codes, distances)
    return (codes, distances), compared


def by_all(X, codebook):
    codes = kernels.assign(X, codebook)
    return codes, kernels.distances(X, codebook, codes)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ROW_DTYPES)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 12])
def test_same_bits_as_without(d, dtype, precision):
    for seed, (n, k) in enumerate([(1, 1), (1, 9), (23, 31), (97, 32), (500, 33), (1031, 257)]):
        X, codebook = random_case(seed, n, d, k, dtype, precision)
        expected = by_all(X, codebook)
        for grouping in (None, expected[0], np.arange(n, dtype=np.int32) % 7):
            assert_same_bits(by_boxes(X, codebook, grouping)[0], expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_twin(precision):
    X, codebook = random_case(0, 700, 3, 50, precision, precision)
    (codes, distances), _ = by_boxes(X, codebook)
    np.testing.assert_array_equal(codes, reference.assign(X, codebook))
    np.testing.assert_allclose(distances, reference.distances(X, codebook, codes), rtol=1e-5)


@pytest.mark.parametrize("threads", THREADS)
def test_threads_and_strides(threads):
    X, codebook = random_case(1, 3000, 4, 60)
    expected = by_all(X, codebook)
    for same in (X, np.asfortranarray(X), X[::-1][::-1], np.repeat(X, 2, axis=0)[::2]):
        assert_same_bits(by_boxes(same, codebook, expected[0], threads)[0], expected)


def test_most_codewords_are_ruled_out():
    rng = np.random.RandomState(0)
    X, codebook = rng.rand(40_000, 3).astype(np.float32), rng.rand(256, 3).astype(np.float32)
    found, compared = by_boxes(X, codebook, kernels.assign(X, codebook))
    assert 1 <= compared < 0.1 * 256
    assert_same_bits(found, by_all(X, codebook))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 5),
    offset=st.sampled_from([0, 1, 1e3, -1e6]),
    spread=st.sampled_from([1e-12, 1e-3, 1, 1e5]),
    integers=st.booleans(),
    precision=st.sampled_from(PRECISIONS),
)
def test_ties_and_rounding(seed, d, offset, spread, integers, precision):
    """Rows and codewords that coincide, lie far from the origin, or are told apart by an ulp."""
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((400, d))
    X = ((np.rint(X) if integers else X) * spread + offset).astype(precision)
    codebook = X[rng.randint(0, 400, 40)]
    codebook[::3] = np.nextafter(codebook[::3], codebook[::3].dtype.type(np.inf))
    if kernels.prepare(codebook).scale == 1:
        assert_same_bits(by_boxes(X, codebook)[0], by_all(X, codebook))


def test_bad_input():
    X = np.zeros((5, 13), np.float32)
    with pytest.raises(ValueError, match="at most 12 features, got 13"):
        kernels.Boxes(X, np.zeros(5, np.int32), dtype=np.float32)
    boxes = kernels.Boxes(X[:, :2], np.zeros(5, np.int32), dtype=np.float32)
    with pytest.raises(ValueError, match="5 values of int32"):
        boxes.assign(X[:3, :2], np.zeros(4, np.int32), np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="5 values of float32"):
        boxes.assign(X[:3, :2], np.zeros(5, np.int32), np.zeros(5))
