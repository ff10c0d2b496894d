"""Encodings of a few bits: what is written down is what comes back, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvq import entropy
from fastvq.runtime.bits import pack, packed_size, unpack
from fastvq.runtime.codebook import Codebook
from fastvq.runtime.coded import float16_scales
from fastvq.runtime.encoding import ENCODINGS
from fastvq.runtime.grouped import Grouped, Signs
from fastvq.runtime.patched import Patched
from fastvq.runtime.product import Product

SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)
GROUPS, SEEDS = st.integers(0, 5), st.integers(0, 2**32 - 1)
FEW = settings(max_examples=60, deadline=None)


def again(encoded):
    """The tensor after a journey through a file's parts and attributes."""
    parts = {name: part.copy() for name, part in encoded.parts().items()}
    found = ENCODINGS[encoded.kind].from_parts(parts, encoded.attributes())
    assert found.attributes() == encoded.attributes() and found.shape == encoded.shape
    return found


def assert_decodes(encoded, wanted):
    """To these values, whole, by rows, and after a journey through a file."""
    for tensor in (encoded, again(encoded)):
        values = tensor.decode()
        np.testing.assert_array_equal(values, wanted, strict=True)
        assert values.flags.c_contiguous and not values.flags.writeable
        step = 3 + len(wanted) // 20
        for first in range(0, len(wanted), step):
            rows = tensor.rows(first, first + step + 1)
            np.testing.assert_array_equal(rows, wanted[first : first + step + 1], strict=True)


class TestBits:
    @pytest.mark.parametrize("bits", range(1, 17))
    @pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 17, 64, 1001])
    def test_codes_come_back(self, bits, n):
        codes = np.random.default_rng(n).integers(0, 1 << bits, n)
        packed = pack(codes, bits)
        assert packed.dtype == np.uint8 and packed.shape == (packed_size(n, bits),)
        for first, stop in [(0, n), (n // 3, n), (n // 3, n // 2), (n, n)]:
            np.testing.assert_array_equal(unpack(packed, bits, first, stop), codes[first:stop])

    def test_the_lowest_bit_comes_first(self):
        np.testing.assert_array_equal(pack([1, 2, 7], 3), [0b11010001, 0b1])

    def test_as_the_kernel_packs_rows(self):
        from fastvq import kernels

        codes = np.random.default_rng(0).integers(0, 32, (1, 77)).astype(np.uint8)
        np.testing.assert_array_equal(kernels.pack_codes(codes, [5] * 77)[0], pack(codes, 5))

    @pytest.mark.parametrize("codes", [[4], [-1]])
    def test_codes_that_do_not_fit(self, codes):
        with pytest.raises(ValueError, match="0 to 3"):
            pack(codes, 2)

    def test_more_codes_than_are_unpacked_at_once(self):
        codes = np.random.default_rng(0).integers(0, 8, (1 << 20) + 13)
        packed = pack(codes, 3)
        np.testing.assert_array_equal(unpack(packed, 3, 5, len(codes)), codes[5:])


class TestScales:
    @pytest.mark.parametrize("size", [1e-37, 1e-9, 1.0, 1e9, 1e37])
    def test_of_any_size(self, size):
        scales = np.random.default_rng(0).uniform(1e-4, 1, (5, 3)) * size
        halves, exponent = float16_scales(scales)
        found = np.ldexp(halves.astype(np.float32), exponent)
        np.testing.assert_allclose(found, scales, rtol=2**-11)

    def test_zeros(self):
        halves, exponent = float16_scales(np.zeros((2, 2)))
        assert not halves.any() and exponent == 0


class TestCodebook:
    @FEW
    @given(SHAPES, st.integers(1, 9), st.sampled_from(["tensor", "row", "group"]), GROUPS,
           st.sampled_from(["f4", "f8", "i1"]), SEEDS)  # fmt: skip
    def test_values(self, shape, bits, per, group, dtype, seed):
        rng = np.random.default_rng(seed)
        width = int(np.prod(shape[1:]))
        groups = -(-width // group) if group and width else 1
        n_books = {"tensor": 1, "row": shape[0], "group": groups}[per]
        n_words = int(rng.integers(1, (1 << bits) + 1))
        books = (rng.normal(size=(n_books, n_words)) * 40).astype(dtype)
        codes = rng.integers(0, n_words, shape)
        scales = rng.uniform(size=(shape[0], groups)).astype("f2") if dtype == "i1" else None
        encoded = Codebook.of(
            codes, books, bits=bits, per=per, group=group, scales=scales, exponent=-3
        )
        wanted = np.empty((shape[0], width), "f8" if dtype == "f8" else "f4")
        flat = codes.reshape(wanted.shape)
        for i, j in np.ndindex(wanted.shape):
            g = j // group if group else 0
            wanted[i, j] = books[{"tensor": 0, "row": i, "group": g}[per], flat[i, j]]
            if scales is not None:
                wanted[i, j] *= np.float32(scales[i, g]) / 8
        assert_decodes(encoded, wanted.reshape(shape))

    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    @pytest.mark.parametrize("n", [1, 2, 1000, 65536])
    def test_any_values_of_one_dimension_are_kept_as_they_are(self, n, dtype):
        values = np.random.default_rng(0).normal(size=n).astype(dtype)
        values[:: 2 * n // 3 + 1] = [np.inf, -0.0][n % 2]
        encoded = Codebook.of_values(np.concatenate([values, values[::-1]]))
        assert_decodes(encoded, np.concatenate([values, values[::-1]]))
        assert encoded.decode().tobytes() == np.concatenate([values, values[::-1]]).tobytes()
        assert encoded.bits <= 16

    def test_rows_of_several_axes(self):
        """Such as the gates of a recurrent layer: each has a scale of its own."""
        rng = np.random.default_rng(0)
        codes, books = rng.integers(0, 8, (2, 5, 7)), rng.integers(-9, 9, (1, 8)).astype("i1")
        scales = rng.uniform(size=(10, 3)).astype("f4")
        encoded = Codebook.of(codes, books, scales=scales, group=3, leading=2)
        spread = np.repeat(scales.reshape(2, 5, 3), 3, axis=2)[:, :, :7]
        assert_decodes(encoded, books[0].astype("f4")[codes] * spread)

    def test_sizes(self):
        codes = np.zeros((64, 100), int)
        encoded = Codebook.of(codes, np.zeros((1, 16), "f4"))
        assert encoded.nbytes == 64 * 100 // 2 + 64
        assert encoded.scheme == "codebook 4 bit"

    @pytest.mark.parametrize(
        "change",
        [
            {"bits": 0}, {"bits": 17}, {"bits": True}, {"bits": 5}, {"shape": [3, 4]},
            {"shape": [1 << 60, 0]}, {"shape": [-2, 4]}, {"shape": 8}, {"shape": []},
            {"group": -1}, {"group": 1.0}, {"per": "moon"}, {"per": []}, {"exponent": 1000},
            {"leading": 0}, {"leading": 3}, {"leading": True},
            {"codes": np.zeros(5, np.uint8)}, {"codes": np.zeros(4, np.int8)},
            {"codewords": np.zeros((1, 17), "f4")}, {"codewords": np.zeros((1, 0), "f4")},
            {"codewords": np.zeros((2, 16), "f4")}, {"codewords": np.zeros(16, "f4")},
            {"codewords": np.zeros((1, 16), "i1")}, {"codewords": np.zeros((1, 16), "f2")},
            {"codes": np.full(4, 255, np.uint8), "codewords": np.zeros((1, 15), "f4")},
            {"scales": np.ones((3, 1), "f4")}, {"scales": np.full((2, 1), np.nan, "f4")},
            {"scales": np.ones((2, 1), "f8")},
        ],
    )  # fmt: skip
    def test_what_does_not_fit_together(self, change):
        parts = {"codes": np.zeros(4, np.uint8), "codewords": np.zeros((1, 16), "f4")}
        attributes = {
            "shape": [2, 4],
            "bits": 4,
            "group": 0,
            "exponent": 0,
            "leading": 1,
            "per": "tensor",
        }
        Codebook.from_parts(parts, attributes)
        for name, value in change.items():
            (attributes if name in attributes else parts)[name] = value
        with pytest.raises((ValueError, TypeError)):
            Codebook.from_parts(parts, attributes)


def form_of(rng, shape, group):
    """Width, number of groups, and scales of a tensor."""
    width = int(np.prod(shape[1:]))
    groups = -(-width // group) if group and width else 1
    return width, groups, rng.uniform(0.1, 1, (shape[0], groups)).astype("f2")


class TestGrouped:
    @FEW
    @given(SHAPES, st.integers(1, 8), st.booleans(), GROUPS, SEEDS)
    def test_values(self, shape, bits, symmetric, group, seed):
        rng = np.random.default_rng(seed)
        width, groups, scales = form_of(rng, shape, group)
        codes = rng.integers(0, 1 << bits, shape)
        zeros = rng.integers(0, 1 << bits, (shape[0], groups))
        encoded = Grouped.of(
            codes, scales, None if symmetric else zeros, bits=bits, group=group, exponent=2
        )
        if symmetric:
            zeros[:] = 1 << (bits - 1)
        flat = codes.reshape(shape[0], width)
        wanted = np.empty(flat.shape, "f4")
        for i, j in np.ndindex(wanted.shape):
            g = j // group if group else 0
            wanted[i, j] = np.float32(flat[i, j] - zeros[i, g]) * (np.float32(scales[i, g]) * 4)
        assert_decodes(encoded, wanted.reshape(shape))

    def test_sizes(self):
        scales = np.ones((64, 4), "f2")
        encoded = Grouped.of(np.zeros((64, 128), int), scales, bits=4, group=32)
        assert encoded.nbytes == 64 * 128 // 2 + 64 * 4 * 2
        assert encoded.scheme == "int4, groups of 32"
        zeros = np.zeros((64, 4), int)
        other = Grouped.of(np.zeros((64, 128), int), scales, zeros, bits=4, group=32)
        assert other.nbytes == encoded.nbytes + 64 * 4 // 2

    @pytest.mark.parametrize(
        "change",
        [
            {"bits": 9}, {"scales": np.ones((2, 1), "f2")}, {"scales": None},
            {"zero_points": np.zeros(3, np.uint8)}, {"zero_points": np.zeros(2, np.int8)},
            {"group": 2}, {"codes": np.zeros(6, np.uint8)},
        ],
    )  # fmt: skip
    def test_what_does_not_fit_together(self, change):
        parts = {"codes": np.zeros(7, np.uint8), "scales": np.ones((2, 2), "f2")}
        parts["zero_points"] = np.zeros(2, np.uint8)
        attributes = {"shape": [2, 7], "bits": 4, "group": 4, "exponent": 0, "leading": 1}
        Grouped.from_parts(parts, attributes)
        for name, value in change.items():
            (attributes if name in attributes else parts)[name] = value
        parts = {name: part for name, part in parts.items() if part is not None}
        with pytest.raises((ValueError, TypeError)):
            Grouped.from_parts(parts, attributes)


class TestSigns:
    @FEW
    @given(SHAPES, GROUPS, SEEDS)
    def test_values(self, shape, group, seed):
        rng = np.random.default_rng(seed)
        width, _, scales = form_of(rng, shape, group)
        values = rng.normal(size=shape)
        encoded = Signs.of(values, scales, group=group)
        spread = np.repeat(scales.astype("f4"), group or max(width, 1), axis=1)[:, :width]
        wanted = np.where(values.reshape(len(values), width) < 0, -spread, spread)
        assert_decodes(encoded, wanted.reshape(shape))
        assert encoded.parts()["codes"].nbytes == -(-values.size // 8)


class TestProduct:
    @FEW
    @given(SHAPES, st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), GROUPS,
           st.sampled_from(["f2", "f4", "i1"]), SEEDS)  # fmt: skip
    def test_values(self, shape, bits, d, n_stages, group, dtype, seed):
        rng = np.random.default_rng(seed)
        width, _, scales = form_of(rng, shape, group)
        n_words = int(rng.integers(1, (1 << bits) + 1))
        books = (rng.normal(size=(n_stages, n_words, d)) * 30).astype(dtype)
        blocks = -(-width // d)
        codes = rng.integers(0, n_words, (shape[0], blocks, n_stages))
        encoded = Product.of(shape, codes, books, bits=bits, scales=scales, group=group)
        wanted = np.zeros((shape[0], blocks * d), "f4")
        for i, b, s in np.ndindex(codes.shape):
            wanted[i, b * d : (b + 1) * d] += books[s, codes[i, b, s]].astype("f4")
        spread = np.repeat(scales.astype("f4"), group or max(width, 1), axis=1)[:, :width]
        assert_decodes(encoded, (wanted[:, :width] * spread).reshape(shape))

    def test_without_scales(self):
        books = np.arange(8, dtype="f4").reshape(1, 2, 4)
        encoded = Product.of((2, 6), np.array([[[0], [1]], [[1], [0]]]), books)
        assert_decodes(encoded, np.array([[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 0, 1]], "f4"))
        assert encoded.nbytes == 1 + 32 and encoded.scheme == "product 4 x 1 bit"

    @pytest.mark.parametrize(
        "change",
        [
            {"codewords": np.zeros((1, 5, 4), "f4")}, {"codewords": np.zeros((5, 4), "f4")},
            {"codewords": np.zeros((2, 4, 4), "f4")}, {"codewords": np.zeros((1, 4, 0), "f4")},
            {"codewords": np.zeros((1, 4, 4), "i4")}, {"codewords": np.zeros((1, 4, 4), "i1")},
            {"codewords": np.zeros((0, 4, 4), "f4")}, {"codewords": np.zeros((1, 3, 4), "f4")},
            {"codewords": np.zeros((1, 4, 2), "f4")}, {"scales": np.ones(2, "f4")},
        ],
    )  # fmt: skip
    def test_what_does_not_fit_together(self, change):
        parts = {"codes": np.full(1, 255, np.uint8), "codewords": np.zeros((1, 4, 4), "f4")}
        attributes = {"shape": [2, 6], "bits": 2, "group": 0, "exponent": 0, "leading": 1}
        Product.from_parts(parts, attributes)
        with pytest.raises(ValueError):
            Product.from_parts(parts | change, attributes)


class TestPatched:
    @FEW
    @given(SHAPES, GROUPS, st.sampled_from(["f2", "f4"]), SEEDS)
    def test_values(self, shape, group, dtype, seed):
        rng = np.random.default_rng(seed)
        width = int(np.prod(shape[1:]))
        groups = -(-width // group) if group and width else 1
        scales = rng.uniform(size=(shape[0], groups)).astype("f2")
        base = Grouped.of(rng.integers(0, 8, shape), scales, bits=3, group=group)
        size = shape[0] * width
        places = np.sort(rng.permutation(size)[: rng.integers(0, size + 1)])
        patches = rng.normal(size=len(places)).astype(dtype)
        wanted = np.array(base.decode())
        wanted.reshape(-1)[places] = patches
        assert_decodes(Patched.of(base, places, patches), wanted)

    def test_far_apart(self):
        base = Grouped.of(np.ones((3, 70_000), int), np.ones((3, 1), "f2"), bits=2)
        encoded = Patched.of(base, [5, 200_000], np.float16([7, 8]))
        assert encoded.gaps.dtype == np.uint32
        wanted = np.full((3, 70_000), -1, "f4")
        wanted[0, 5], wanted[2, 60_000] = 7, 8
        assert_decodes(encoded, wanted)
        assert encoded.nbytes == base.nbytes + 2 * 6 and "0.00% kept" in encoded.scheme

    @pytest.mark.parametrize(
        ("gaps", "patches", "said"),
        [
            (np.uint16([1, 0]), np.float16([1, 2]), "one place"),
            (np.uint16([3, 5]), np.float16([1, 2]), "beyond"),
            (np.uint8([1]), np.float16([1]), "gaps"),
            (np.uint16([[1]]), np.float16([[1]]), "gaps"),
            (np.uint16([1]), np.float64([1]), "patches"),
            (np.uint16([1]), np.float16([1, 2]), "patches"),
        ],
    )
    def test_what_cannot_be(self, gaps, patches, said):
        base = Grouped.of(np.ones((2, 4), int), np.ones((2, 1), "f2"), bits=2)
        with pytest.raises(ValueError, match=said):
            Patched(base, gaps, patches)
        good = Patched.of(base, [1], np.float16([2]))
        for attributes in ({}, {"encoding": "patched", "of": {}}, {"encoding": 5, "of": {}}):
            with pytest.raises(ValueError, match="patched values"):
                Patched.from_parts(good.parts(), attributes)


def skewed(rng, shape, n_levels):
    """Codes of which those in the middle are likely."""
    return np.clip(np.rint(rng.normal(n_levels / 2, n_levels / 12, shape)), 0, n_levels - 1)


def entropy_coded(rng, shape=(40, 50), bits=6):
    codes = skewed(rng, shape, 1 << bits).astype(int)
    scales = rng.uniform(size=(shape[0], 1)).astype("f2")
    return Grouped.of(codes, scales, bits=bits), codes


class TestEntropyCoded:
    @FEW
    @given(SHAPES, st.integers(1, 8), SEEDS)
    def test_values(self, shape, bits, seed):
        tensor, _ = entropy_coded(np.random.default_rng(seed), shape, bits)
        assert_decodes(tensor.with_coder("rans"), tensor.decode())

    @pytest.mark.parametrize("kind", ["grouped", "codebook", "product", "patched"])
    def test_fewer_bytes_and_the_same_values(self, kind):
        rng = np.random.default_rng(0)
        tensor, codes = entropy_coded(rng)
        if kind == "codebook":
            tensor = Codebook.of(codes, rng.normal(size=(1, 64)).astype("f4"))
        if kind == "product":
            words = rng.normal(size=(1, 64, 4)).astype("f4")
            tensor = Product.of((40, 200), codes[:, :, None], words)
        if kind == "patched":
            tensor = Patched.of(tensor, [3, 77], np.float16([40, -50]))
        small = tensor.with_coder("rans")
        assert small.coder == "rans" and small.nbytes < 0.9 * tensor.nbytes
        assert small.with_coder("raw").nbytes == tensor.nbytes
        assert_decodes(small, tensor.decode())

    @pytest.mark.parametrize("n_levels", [1, 64])
    def test_never_more_bytes(self, n_levels):
        """Nor so few that a file could stand for anything."""
        codes = np.random.default_rng(0).integers(0, n_levels, (300, 100))
        tensor = Grouped.of(codes, np.ones((300, 1), "f2"), bits=6).with_coder("rans")
        assert tensor.coder == "raw"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"coder": "huffman"}, "coder"),
            ({"coder": "rans", "bits": 5}, "0 to 31"),
            ({"coder": "rans", "bits": "6"}, "bits"),
            ({"coder": "rans", "shape": [40, 51]}, "codes must be"),
            ({"coder": "rans", "shape": [1 << 40, 50]}, "codes must be"),
            ({"coder": None}, "coder"),
        ],
    )
    def test_what_does_not_fit_together(self, change, said):
        small = entropy_coded(np.random.default_rng(0))[0].with_coder("rans")
        with pytest.raises(ValueError, match=said):
            Grouped.from_parts(small.parts(), {**small.attributes(), **change})

    def test_damaged_bytes(self):
        small = entropy_coded(np.random.default_rng(0))[0].with_coder("rans")
        parts, attributes = small.parts(), small.attributes()
        for codes in (
            parts["codes"][:-5], parts["codes"][::-1].copy(), parts["codes"][None],
            parts["codes"].view("i1"), np.empty(0, np.uint8),
        ):  # fmt: skip
            with pytest.raises(ValueError):
                Grouped.from_parts({**parts, "codes": codes}, attributes)

    def test_a_few_bytes_that_stand_for_billions_of_codes(self):
        constant = np.frombuffer(entropy.encode(np.zeros(1 << 24, np.uint8)), np.uint8)
        parts = {"codes": constant, "scales": np.ones((1 << 12, 1), "f2")}
        attributes = {"shape": [1 << 12, 1 << 12], "bits": 4, "group": 0, "exponent": 0,
                      "leading": 1, "coder": "rans"}  # fmt: skip
        with pytest.raises(ValueError, match="max_codes"):
            Grouped.from_parts(parts, attributes)
