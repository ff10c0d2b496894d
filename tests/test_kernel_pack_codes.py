"""Packed codes: the twin, every width, any mixture of them, and faiss's own bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import THREADS, assert_same_bits

from fastvq import _threads, kernels, reference


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def random_codes(n, widths, dtype, seed=0):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, 1 << int(width), n, dtype=np.uint64) for width in widths]
    return np.stack(columns, axis=1).astype(dtype)


def check(codes, widths):
    expected = reference.pack_codes(codes.astype(np.int64), widths)
    for threads in THREADS:
        packed = kernels.pack_codes(codes, widths, n_threads=threads)
        assert_same_bits(packed, expected, f"{widths}, {threads} threads")
        unpacked = kernels.unpack_codes(packed, widths, codes.dtype, n_threads=threads)
        assert_same_bits(unpacked, codes, f"{widths}, {threads} threads")
    assert_same_bits(reference.unpack_codes(expected, widths, codes.dtype), codes)


@pytest.mark.parametrize("width", range(1, 33))
def test_one_width(width):
    for m in (1, 2, 3, 7, 8, 9, 16, 33):
        for dtype in ("uint8", "uint16", "uint32"):
            if width <= 8 * np.dtype(dtype).itemsize:
                check(random_codes(97, [width] * m, dtype), [width] * m)


@given(st.lists(st.integers(1, 32), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_any_widths(widths, n, seed):
    codes = random_codes(n, widths, "uint32", seed)
    packed = kernels.pack_codes(codes, widths)
    assert_same_bits(packed, reference.pack_codes(codes.astype(np.int64), widths))
    assert_same_bits(kernels.unpack_codes(packed, widths, "uint32"), codes)


def test_more_rows_than_a_task():
    check(random_codes(3001, [5, 11, 3], "uint16"), [5, 11, 3])


@pytest.mark.parametrize("width", [1, 3, 4, 5, 8, 11, 16])
def test_rows_are_faiss_s(width):
    faiss = pytest.importorskip("faiss")
    m = 13
    codes = random_codes(50, [width] * m, "uint16")
    packed = kernels.pack_codes(codes, [width] * m)
    theirs = np.zeros_like(packed)
    for row, to in zip(codes, theirs, strict=True):
        writer = faiss.BitstringWriter(faiss.swig_ptr(to), to.size)
        for code in row:
            writer.write(int(code), width)
    np.testing.assert_array_equal(packed, theirs)


def test_no_rows():
    assert kernels.pack_codes(np.empty((0, 3), np.uint8), [2, 2, 2]).shape == (0, 1)
    assert kernels.unpack_codes(np.empty((0, 1), np.uint8), [2, 2, 2], "uint8").shape == (0, 3)


def test_arguments_are_checked():
    for widths in ([0, 3], [33, 3], [3]):
        with pytest.raises(ValueError, match="widths must be"):
            kernels.pack_codes(np.zeros((2, 2), np.uint8), widths)
    with pytest.raises(ValueError, match="packed must have"):
        kernels.unpack_codes(np.zeros((2, 3), np.uint8), [4, 4], "uint8")
    with pytest.raises(ValueError, match="must fit uint8"):
        kernels.unpack_codes(np.zeros((2, 2), np.uint8), [12], "uint8")
