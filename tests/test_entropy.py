"""Entropy coded codes: the same codes come back, near their entropy, and damage is noticed."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from oracles import THREADS

from fastvq import entropy

DTYPES = ("uint8", "uint16", "uint32")


def resealed(data):
    """With the checksum that these bytes should have."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def skewed(n, k, skew, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(k, n, p=rng.dirichlet(np.full(k, skew)))


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(
            dtype, arrays.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=300)
        )
    )
)
def test_what_is_decoded_is_what_was_encoded(codes):
    decoded = entropy.decode(entropy.encode(codes))
    assert decoded.dtype == codes.dtype and decoded.shape == codes.shape
    assert np.array_equal(decoded, codes)


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(64, 3000),
    k=st.integers(1, 2000),
    skew=st.floats(0.001, 10),
    dtype=st.sampled_from(["uint16", "uint32", "int64", ">u2", ">i4"]),
)
def test_skewed_codes(n, k, skew, dtype):
    codes = skewed(n, k, skew, n).astype(dtype)
    assert np.array_equal(entropy.decode(entropy.encode(codes)), codes)


@pytest.mark.parametrize(
    ("n", "k", "skew"),
    [
        (200_000, 2, 0.1),
        (200_000, 16, 1),
        (200_000, 256, 0.05),
        (200_000, 256, 100),
        (200_000, 1000, 0.01),
        (1_000_000, 60_000, 0.05),
    ],
)
def test_size_is_near_the_entropy(n, k, skew):
    """Half a percent, 200 bytes, and of every symbol what its frequency takes: log2 n bits at most
    for what is rare, and so half of log2 n on average."""
    codes = skewed(n, k, skew).astype(np.uint16)
    least = entropy.entropy(codes) * n / 8
    table = len(np.unique(codes)) * np.log2(n) / 2 / 8
    size = len(entropy.encode(codes))
    assert least < size < 1.005 * least + 200 + table


def test_never_much_longer_than_packed():
    for n in (1, 63, 64, 65, 1000, 10_000):
        codes = np.random.default_rng(0).integers(0, 256, n).astype(np.uint8)
        assert len(entropy.encode(codes)) <= n + 40


def test_rare_exceptions_cost_little():
    codes = np.zeros(3_000_000, np.uint8)
    codes[::100_000] = 1 + np.arange(30)
    assert len(entropy.encode(codes)) < 64 + 30 + 8 + 250  # states, table, entropy, header
    assert np.array_equal(entropy.decode(entropy.encode(codes)), codes)


@pytest.mark.parametrize("skew", [0.01, 1])
def test_beside_constriction(skew):
    """No more than another coder's words and our header."""
    constriction = pytest.importorskip("constriction")
    codes = skewed(300_000, 200, skew).astype(np.int32)
    counts = np.bincount(codes)
    symbols = np.flatnonzero(counts)
    model = constriction.stream.model.Categorical(
        (counts[symbols] / len(codes)).astype(np.float64), perfect=False
    )
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(np.searchsorted(symbols, codes).astype(np.int32), model)
    theirs = 4 * len(coder.get_compressed())
    assert len(entropy.encode(codes.astype(np.uint8))) < 1.003 * theirs + 500


def test_columns_have_their_own_frequencies():
    rng = np.random.default_rng(0)
    codes = np.stack([np.full(50_000, 7), rng.integers(0, 2, 50_000)], axis=1).astype(np.uint8)
    assert entropy.entropy(codes) == pytest.approx(1, abs=1e-3)
    assert len(entropy.encode(codes)) < 50_000 / 8 + 400


@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_bytes_do_not_depend_on_threads_or_memory(order, monkeypatch):
    monkeypatch.setattr("fastvq.kernels._call.THREAD_WORK", 1)
    monkeypatch.setattr(entropy, "_BLOCK_BITS", 1 << 10)
    codes = skewed(30_000, 100, 0.1).astype(np.uint16).reshape(-1, 3)
    given_codes = {
        "C": codes,
        "F": np.asfortranarray(codes),
        "strided": np.repeat(codes, 2, 0)[::2],
    }
    expected = entropy.encode(codes, n_threads=1)
    for threads in THREADS:
        data = entropy.encode(given_codes[order], n_threads=threads)
        assert data == expected
        assert np.array_equal(entropy.decode(data, n_threads=threads), codes)


def test_these_bytes_for_ever():
    """What was written once is read by later versions and on all machines."""
    codes = (np.arange(2000) ** 2 % 7 * (np.arange(2000) % 3)).astype(np.uint8)
    assert zlib.crc32(entropy.encode(codes)) == 558161692


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_kinds_of_bytes(wrap):
    assert entropy.decode(wrap(entropy.encode([1, 2, 3]))).tolist() == [1, 2, 3]


def sample_data():
    codes = skewed(2000, 30, 0.3).astype(np.uint8)
    return codes, entropy.encode(codes)


def test_every_truncation_is_noticed():
    _, data = sample_data()
    for size in range(len(data)):
        with pytest.raises(ValueError):
            entropy.decode(data[:size])
    with pytest.raises(ValueError):
        entropy.decode(data + b"\0")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damage_is_noticed(data):
    _, coded = sample_data()
    damaged = bytearray(coded)
    at = data.draw(st.integers(0, len(coded) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError):
        entropy.decode(bytes(damaged))


@settings(deadline=None, max_examples=500)
@given(st.data())
def test_damage_under_a_right_checksum_does_no_harm(data):
    """An error, or some codes: no crash, and no memory for codes that are not there."""
    _, coded = sample_data()
    damaged = bytearray(coded)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(coded) - 5))] = data.draw(st.integers(0, 255))
    try:
        codes = entropy.decode(resealed(bytes(damaged)), max_codes=1 << 20)
    except ValueError:
        return
    assert codes.size <= 1 << 20


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_under_a_right_header_do_no_harm(tail):
    header = b"FVQE\1\1\1\0" + struct.pack("<QQ", 1000, 1)
    try:
        codes = entropy.decode(resealed(header + tail + b"\0\0\0\0"))
    except ValueError:
        return
    assert codes.shape == (1000,)


def test_claims_of_many_codes_allocate_nothing():
    _, coded = sample_data()
    for place, value in ((8, 1 << 60), (8, 1 << 33), (16, 1 << 60), (16, 1 << 31)):
        damaged = bytearray(coded)
        damaged[7 if place == 16 else 6] = 0 if place == 16 else 1
        damaged[6] = 2 if place == 16 else 1
        damaged[place : place + 8] = struct.pack("<Q", value)
        tracemalloc.start()
        with pytest.raises(ValueError, match="damaged"):
            entropy.decode(resealed(bytes(damaged)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_what_is_no_data_of_ours():
    with pytest.raises(ValueError, match="begins otherwise"):
        entropy.decode(b"PK\3\4" + bytes(50))
    with pytest.raises(ValueError, match="begins otherwise"):
        entropy.decode(b"")
    with pytest.raises(TypeError, match="bytes, got str"):
        entropy.decode("FVQE")
    newer = bytearray(entropy.encode([1]))
    newer[4] = 2
    with pytest.raises(ValueError, match="version 2"):
        entropy.decode(resealed(bytes(newer)))
    with pytest.raises(ValueError, match="more than max_codes=2"):
        entropy.decode(entropy.encode([1, 2, 3]), max_codes=2)


def test_what_are_no_codes():
    with pytest.raises(TypeError, match="integers, got dtype float64"):
        entropy.encode([0.5])
    with pytest.raises(ValueError, match="from 0 to"):
        entropy.encode([-1])
    with pytest.raises(ValueError, match="from 0 to"):
        entropy.encode([1 << 32])
    with pytest.raises(ValueError, match="dimensions"):
        entropy.encode(np.zeros((1, 1, 1), int))


def test_codes_of_large_numbers_take_fixed_bits():
    codes = np.array([1 << 31, 5, (1 << 32) - 1] * 50, np.uint32)
    data = entropy.encode(codes)
    assert len(data) == 24 + 2 + 600 + 4
    assert np.array_equal(entropy.decode(data), codes)
