"""Beam search and decoding of sums: the twin, ties, both ways, bits that depend on a row alone."""

import tracemalloc

import numpy as np
import pytest
from oracles import (
    PRECISIONS,
    ROW_DTYPES,
    assert_depends_on_row_alone,
    assert_same_bits,
    layouts,
    random_rows,
)

from fastvq import _threads, kernels, reference

# d, and the sizes of the stages: around the steps of 16 and 64 and blocks of 48 codewords.
CASES = [
    (1, [2]),
    (7, [2, 4, 2, 1]),
    (15, [16, 15, 17]),
    (16, [64, 63, 65, 8]),
    (33, [97, 3, 48]),
    (64, [1, 256]),
    (97, [31, 400]),
]
WIDTHS = (1, 2, 7, 16, 17, 40)


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def random_stages(seed, d, sizes, precision="float32", shrink=0.7):
    """Codebooks whose codewords shrink from stage to stage, off the origin."""
    rng = np.random.RandomState(seed)
    return kernels.Stages(
        [
            (shrink**m * rng.standard_normal((k, d)) + 0.3).astype(precision)
            for m, k in enumerate(sizes)
        ]
    )


def both_ways(stages):
    """The same stages with their table, and without."""
    plain = kernels.Stages(stages.codebooks)
    plain.crossed = None
    assert stages.crossed is not None
    return {"table": stages, "plain": plain}


def entries(sizes, width):
    return int(min(width, np.prod(sizes)))


@pytest.mark.parametrize("n", [1, 5, 23, 24, 25, 97])
@pytest.mark.parametrize(("d", "sizes"), CASES)
def test_in_float64_it_is_the_twin(n, d, sizes):
    X = np.random.RandomState(n).standard_normal((n, d)) + 0.5
    for name, stages in both_ways(random_stages(d, d, sizes, "float64")).items():
        for width in WIDTHS:
            options = {"beam_width": width, "n_out": entries(sizes, width)}
            found = kernels.beam_search(X, stages, **options)
            expected = reference.beam_search(X, stages, **options)
            np.testing.assert_array_equal(found, expected, f"{name}, beam of {width}")


@pytest.mark.parametrize("dtype", ROW_DTYPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_ties_go_to_the_better_entry_and_the_lower_code(dtype, precision):
    """Small integers: all values are exact, and many are equal."""
    rng = np.random.RandomState(0)
    X = rng.randint(0 if dtype == "uint8" else -2, 3, (49, 5)).astype(dtype)
    books = [rng.randint(-2, 3, (k, 5)).astype(precision) for k in (8, 16, 64)]
    books[1][8:] = books[1][:8]
    for name, stages in both_ways(kernels.Stages(books)).items():
        for width in WIDTHS:
            options = {"beam_width": width, "n_out": width if width < 8 else 8}
            found = kernels.beam_search(X, stages, **options)
            np.testing.assert_array_equal(found, reference.beam_search(X, stages, **options), name)


@pytest.mark.parametrize("dtype", ROW_DTYPES)
def test_in_float32_it_is_as_good(dtype):
    """Near ties may fall the other way, after which the beam is another: errors are compared."""
    rng = np.random.RandomState(1)
    X = random_rows(rng, 97, 33, dtype)
    scale = 60.0 if X.dtype.kind != "f" else 1.0
    books = [(scale * 0.7**m * rng.standard_normal((64, 33))).astype(np.float32) for m in range(4)]
    for stages in both_ways(kernels.Stages(books)).values():
        codes = kernels.beam_search(X, stages, beam_width=4)[:, 0]
        expected = reference.beam_search(X, stages, beam_width=4)[:, 0]
        assert (codes == expected).all(axis=1).mean() > 0.95
        found, wanted = (reference.distances_to_sums(X, books, c) for c in (codes, expected))
        assert found.sum() == pytest.approx(wanted.sum(), rel=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("way", ["table", "plain"])
def test_codes_depend_on_the_row_alone(way, precision):
    X = np.random.RandomState(0).standard_normal((131, 17)).astype(precision)
    stages = both_ways(random_stages(3, 17, [64, 30, 17], precision))[way]
    for width in (1, 5):
        assert_depends_on_row_alone(
            lambda rows, threads, width=width: (
                kernels.beam_search(X, stages, beam_width=width, rows=rows, n_threads=threads),
            ),
            len(X),
        )


@pytest.mark.parametrize("dtype", ROW_DTYPES)
def test_layouts(dtype, tmp_path):
    X = random_rows(np.random.RandomState(0), 50, 9, dtype)
    for stages in both_ways(random_stages(0, 9, [16, 20])).values():
        expected = kernels.beam_search(X, stages, beam_width=3)
        for name, same in layouts(X, tmp_path).items():
            assert_same_bits(kernels.beam_search(same, stages, beam_width=3), expected, name)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32"])
def test_codes_of_every_type(dtype):
    X = np.random.RandomState(0).standard_normal((50, 9)).astype(np.float32)
    stages = random_stages(0, 9, [16, 20])
    codes = np.empty((50, 2), dtype)
    assert kernels.beam_search(X, stages, codes=codes) is codes
    np.testing.assert_array_equal(codes, kernels.beam_search(X, stages)[:, 0])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("d", "sizes"), CASES)
def test_values_of_stages(d, sizes, precision):
    X = np.random.RandomState(0).standard_normal((29, d)).astype(precision)
    stages = random_stages(d, d, sizes, precision)
    for found, expected in zip(
        kernels.stage_values(X, stages), reference.stage_values(X, stages), strict=True
    ):
        scale = 4 * (np.square(X).sum(axis=1).max() + np.abs(expected).max())
        assert np.abs(found - expected).max() <= (d + 9) * np.finfo(precision).eps * scale


@pytest.mark.parametrize("precision", PRECISIONS)
def test_decoding(precision):
    for d, sizes in CASES:
        books = random_stages(d, d, sizes, precision).codebooks
        rng = np.random.RandomState(0)
        codes = np.stack([rng.randint(0, k, 300) for k in sizes], axis=1)
        for m in range(1, len(sizes) + 1):
            expected = reference.decode_sums(codes[:, :m], books)
            for threads in (1, 2, 5):
                found = kernels.decode_sums(codes[:, :m], books, n_threads=threads)
                assert_same_bits(found, expected)


@pytest.mark.parametrize("dtype", ROW_DTYPES)
def test_distances_to_sums(dtype):
    for d, sizes in CASES:
        books = random_stages(d, d, sizes).codebooks
        rng = np.random.RandomState(0)
        X = random_rows(rng, 300, d, dtype)
        codes = np.stack([rng.randint(0, k, 300) for k in sizes], axis=1).astype(np.int32)
        expected = reference.distances_to_sums(X, books, codes)
        bound = (d + 3 + 2 * len(sizes)) * np.finfo(np.float32).eps
        length = np.square(X.astype(np.float64)).sum(axis=1) + 9.0 * d
        found = kernels.distances_to_sums(X, books, codes)
        assert (np.abs(found - expected) <= bound * (expected + length)).all()
        for threads in (2, 5):
            again = kernels.distances_to_sums(X, books, codes, n_threads=threads)
            assert_same_bits(again, found)


def test_short_residuals_get_no_table():
    """Where they are so short beside rows that float32 loses them in a table's sums."""
    assert random_stages(0, 4, [16, 16, 16], shrink=0.1).crossed is not None
    assert random_stages(0, 4, [16, 16, 16], shrink=0.001).crossed is None
    assert random_stages(0, 4, [16, 16, 16], "float64", shrink=0.001).crossed is not None


@pytest.mark.parametrize("exponent", [-100, -40, 40, 100])
def test_values_of_any_size(exponent):
    """Powers of two change no code."""
    X = np.random.RandomState(0).standard_normal((50, 6)).astype(np.float32)
    stages = random_stages(0, 6, [16, 16])
    expected = kernels.beam_search(X, stages, beam_width=3)
    scaled = kernels.Stages([np.ldexp(book, exponent) for book in stages.codebooks])
    found = kernels.beam_search(np.ldexp(X, exponent), scaled, beam_width=3)
    np.testing.assert_array_equal(found, expected)


def test_bad_input():
    stages = random_stages(0, 4, [16, 16])
    X = np.ones((30, 4), np.float32)
    X[17, 2] = np.nan
    for each in both_ways(stages).values():
        with pytest.raises(ValueError, match=r"NaN \(row 17, feature 2\)"):
            kernels.beam_search(X, each)
    with pytest.raises(ValueError, match="codes must have shape"):
        kernels.beam_search(X[:5], stages, codes=np.empty((4, 2), np.uint8))
    with pytest.raises(ValueError, match="codes must lie"):
        kernels.decode_sums(np.array([[16, 0]]), stages.codebooks)
    with pytest.raises(ValueError, match="same dtype"):
        kernels.Stages([np.ones((2, 3)), np.ones((2, 4))])


def test_codebooks_in_one_array_are_read_where_they_lie():
    rng = np.random.RandomState(0)
    books = rng.standard_normal((6, 256, 128)).astype(np.float32)
    books.flags.writeable = False
    X = rng.standard_normal((9, 128)).astype(np.float32)
    codes = rng.randint(0, 256, (9, 4)).astype(np.int32)
    tracemalloc.start()
    decoded = kernels.decode_sums(codes, books[:4])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < books[0].nbytes
    np.testing.assert_array_equal(decoded, kernels.decode_sums(codes, list(books[:4])))
    for scale in (1.0, 0.5):
        np.testing.assert_array_equal(
            kernels.distances_to_sums(X, books[:4], codes, scale=scale),
            kernels.distances_to_sums(X, list(books[:4]), codes, scale=scale),
        )
