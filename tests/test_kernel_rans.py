"""The entropy coder's kernels: the twin's very words, every type and stride, damaged words."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import SIZES, THREADS, assert_same_bits

from fastvq import _threads, kernels, reference

DTYPES = ("uint8", "uint16", "uint32")
kinds = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; else one."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def some_frequencies(k, bits, seed=0):
    """Frequencies of which some are 0, one is large, and many are 1."""
    rng = np.random.RandomState(seed)
    frequencies = np.ones(k, np.int64)
    frequencies[rng.uniform(size=k) < 0.3] = 0
    frequencies[k // 2] = 0
    frequencies[k // 2] = (1 << bits) - frequencies.sum()
    return frequencies


def some_symbols(frequencies, n, dtype, seed=0):
    rng = np.random.RandomState(seed)
    return rng.choice(len(frequencies), n, p=frequencies / frequencies.sum()).astype(dtype)


@kinds
def test_coding_at_awkward_sizes(dtype):
    for n in (*SIZES, 300):
        for k, bits, block in ((1, 0, 7), (2, 1, 16), (5, 5, 100), (97, 12, 64), (256, 28, 33)):
            frequencies = some_frequencies(k, bits, n)
            symbols = some_symbols(frequencies, n, dtype, n)
            expected = reference.rans_encode(symbols, frequencies, block=block)
            for threads in THREADS:
                coded = kernels.rans_encode(symbols, frequencies, block=block, n_threads=threads)
                assert_same_bits(coded, expected, f"{n, k, bits, block}, {threads} threads")
                out = np.full(n, 255, dtype)
                kernels.rans_decode(*coded, frequencies, out, block=block, n_threads=threads)
                assert_same_bits(out, symbols, f"{n, k, bits, block}, {threads} threads")
            out = np.full(n, 255, dtype)
            reference.rans_decode(*expected, frequencies, out, block=block)
            assert_same_bits(out, symbols)
            counts = kernels.symbol_counts(symbols, k)
            assert_same_bits(counts, reference.symbol_counts(symbols, k))


def test_no_symbols():
    words, lengths = kernels.rans_encode(np.empty(0, np.uint8), np.array([1, 1]), block=5)
    assert len(words) == len(lengths) == 0
    assert (
        len(kernels.rans_decode(words, lengths, np.array([2]), np.empty(0, np.uint8), block=5)) == 0
    )


@kinds
def test_columns_of_a_table(dtype):
    """Symbols are read and written where they are, neighbours left alone."""
    frequencies = some_frequencies(200, 10)
    table = some_symbols(frequencies, 3 * 501, dtype).reshape(501, 3)
    words, lengths = kernels.rans_encode(table[::-1, 1], frequencies, block=100)
    out = np.zeros_like(table)
    kernels.rans_decode(words, lengths, frequencies, out[:, 1], block=100)
    assert_same_bits(out[:, 1].copy(), table[::-1, 1].copy())
    assert not out[:, ::2].any()


def test_calls_are_cut(monkeypatch):
    frequencies = some_frequencies(50, 9)
    symbols = some_symbols(frequencies, 1000, "uint8")
    whole = kernels.rans_encode(symbols, frequencies, block=64)
    monkeypatch.setattr(kernels._coding, "_CALL_SYMBOLS", 130)
    assert_same_bits(kernels.rans_encode(symbols, frequencies, block=64), whole)
    out = kernels.rans_decode(*whole, frequencies, np.empty_like(symbols), block=64)
    assert_same_bits(out, symbols)
    assert_same_bits(kernels.symbol_counts(symbols, 50), np.bincount(symbols, minlength=50))


def test_a_large_alphabet():
    """More symbols than places to look them up, most of them rare: the search walks."""
    k = 1 << 16
    frequencies = np.ones(k, np.int64)
    frequencies[0] = (1 << 28) - k + 1
    symbols = np.concatenate([np.arange(k), np.zeros(1000, int)]).astype(np.uint32)
    words, lengths = kernels.rans_encode(symbols, frequencies, block=10_000)
    assert abs(len(words) * 32 - 28 * k) < 1e4
    out = kernels.rans_decode(words, lengths, frequencies, np.empty_like(symbols), block=10_000)
    assert_same_bits(out, symbols)


@settings(deadline=None)
@given(st.data())
def test_damaged_words_are_refused_or_decode_to_symbols(data):
    """Never a crash, never a symbol of frequency 0, whatever the words are. (Words that stand for
    other symbols are no damage that the coder could notice.)"""
    frequencies = some_frequencies(40, 8)
    symbols = some_symbols(frequencies, 500, "uint8")
    words, lengths = kernels.rans_encode(symbols, frequencies, block=128)
    words = words.copy()
    at = data.draw(st.integers(0, len(words) - 1))
    words[at] ^= data.draw(st.integers(1, 2**32 - 1))
    out = np.full(500, 255, np.uint8)
    with contextlib.suppress(ValueError):
        kernels.rans_decode(words, lengths, frequencies, out, block=128)
    used = np.flatnonzero(frequencies)
    assert np.isin(out[out != 255], used).all()


def test_words_of_random_bits():
    frequencies = some_frequencies(40, 8)
    rng = np.random.RandomState(0)
    for n_words in (0, 1, 15, 16, 17, 40):
        words = rng.randint(0, 2**32, n_words, np.uint64).astype(np.uint32)
        with pytest.raises(ValueError, match="damaged"):
            kernels.rans_decode(
                words, np.array([n_words]), frequencies, np.empty(99, np.uint8), block=99
            )


@pytest.mark.parametrize("lengths", [[16], [16, 17], [33, -1], [16, 16, 0], []])
def test_lengths_that_do_not_fit(lengths):
    words = np.zeros(32, np.uint32)
    with pytest.raises(ValueError, match="belong together"):
        kernels.rans_decode(
            words, np.array(lengths, int), np.array([1, 1]), np.empty(9, np.uint8), block=5
        )


def test_bad_arguments():
    symbols = np.array([0, 1, 2], np.uint8)
    with pytest.raises(ValueError, match="power of two"):
        kernels.rans_encode(symbols, np.array([1, 1, 1]), block=8)
    with pytest.raises(ValueError, match="power of two"):
        kernels.rans_encode(symbols, np.array([3, 2, -1]), block=8)
    for frequencies in ([2, 2], [2, 2, 0]):
        with pytest.raises(ValueError, match="must have a frequency"):
            kernels.rans_encode(symbols, np.array(frequencies), block=8)
    with pytest.raises(ValueError, match="symbols must be below 2, got 2"):
        kernels.symbol_counts(symbols, 2)
    for bad in (symbols.astype(np.int32), symbols[:, None]):
        with pytest.raises(ValueError, match="1-D array of uint8, uint16 or uint32"):
            kernels.symbol_counts(bad, 3)
    with pytest.raises(ValueError, match="uint8 cannot hold 299"):
        frequencies = np.zeros(300, int)
        frequencies[299] = 2
        kernels.rans_decode(
            np.empty(0, np.uint32), np.empty(0, int), frequencies, symbols[:0], block=8
        )
