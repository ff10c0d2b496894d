"""Codes in subspaces, decoding and rotating: against the NumPy twins, and the promises."""

import numpy as np
import pytest
from oracles import (
    PRECISIONS,
    ROW_DTYPES,
    SIZES,
    THREADS,
    assert_nearest,
    layouts,
    multiply_add,
    random_rows,
)

from fastvq import _threads, kernels, reference

bits = pytest.mark.parametrize("precision", PRECISIONS)
kinds = pytest.mark.parametrize("dtype", ROW_DTYPES)

# Features of the subspaces, and codewords: narrow and wide ones, too few features to be expanded,
# one feature, one codeword, and subspaces longer than the parts in which sums are taken.
CASES = [
    ([8, 8, 8], [16, 16, 16]),
    ([7, 6, 6], [33, 5, 64]),
    ([1, 2, 3, 4, 17], [2, 3, 7, 1, 25]),
    ([16, 17], [97, 31]),
    ([385, 5], [6, 256]),
    ([24], [48]),
]
cases = pytest.mark.parametrize(("sizes", "counts"), CASES)


@pytest.fixture
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def make_case(sizes, counts, n=97, dtype="float32", precision="float32", seed=0):
    rng = np.random.RandomState(seed)
    X = random_rows(rng, n, sum(sizes), dtype)
    codebooks = [
        random_rows(rng, k, d, dtype).astype(precision)
        + (0.25 * rng.standard_normal((k, d))).astype(precision)
        for d, k in zip(sizes, counts, strict=True)
    ]
    return X, codebooks


def slices_of(sizes):
    return [slice(sum(sizes[:m]), sum(sizes[: m + 1])) for m in range(len(sizes))]


# Codes -------------------------------------------------------------------------------------------


@bits
@kinds
@cases
def test_codes_are_those_of_each_subspace(sizes, counts, dtype, precision):
    for n in (1, 24, 97):
        X, codebooks = make_case(sizes, counts, n, dtype, precision)
        codes = kernels.assign_subspaces(X, codebooks)
        assert codes.dtype == np.int32 and codes.shape == (n, len(sizes))
        for m, features in enumerate(slices_of(sizes)):
            assert_nearest(codes[:, m].copy(), X[:, features], codebooks[m])
            alone = kernels.assign(X[:, features], codebooks[m])
            np.testing.assert_array_equal(codes[:, m], alone)
        twin = reference.assign_subspaces(X.astype(precision), codebooks)
        assert (codes == twin).mean() > 0.98  # all but ties within rounding


def test_every_number_of_rows():
    X, codebooks = make_case([4, 3, 20], [17, 16, 40], 200)
    expected = kernels.assign_subspaces(X, codebooks)
    for n in SIZES:
        np.testing.assert_array_equal(kernels.assign_subspaces(X[:n], codebooks), expected[:n])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32"])
def test_codes_of_any_type(dtype):
    X, codebooks = make_case([4, 4, 20], [255, 16, 40])
    codes = np.empty((len(X), 3), dtype)
    assert kernels.assign_subspaces(X, codebooks, codes=codes) is codes
    np.testing.assert_array_equal(codes, kernels.assign_subspaces(X, codebooks))


@kinds
def test_rows_in_any_layout(dtype, tmp_path):
    sizes, counts = [5, 4, 18], [9, 31, 12]
    X, codebooks = make_case(sizes, counts, 61, dtype)
    matrix = np.linalg.qr(np.random.RandomState(1).standard_normal((27, 27)))[0].astype("f4")
    codes, rotated = kernels.assign_subspaces(X, codebooks), kernels.rotate(X, matrix)
    for name, rows in layouts(X, tmp_path).items():
        found = kernels.assign_subspaces(rows, codebooks)
        np.testing.assert_array_equal(found, codes, name)
        assert kernels.rotate(rows, matrix).tobytes() == rotated.tobytes(), name


@bits
@cases
def test_codes_depend_on_the_row_alone(sizes, counts, precision, threads_at_once):
    X, codebooks = make_case(sizes, counts, 1501, "float32", precision)
    X[::7] = (X[1] + X[2]) / 2
    books = kernels.prepare_subspaces(codebooks)
    expected = kernels.assign_subspaces(X, books, n_threads=1)
    for threads in THREADS:
        found = kernels.assign_subspaces(X, books, n_threads=threads)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(kernels.assign_subspaces(X[::-1], books), expected[::-1])
    for i in range(0, 1501, 100):
        np.testing.assert_array_equal(kernels.assign_subspaces(X[i : i + 1], books)[0], expected[i])


def test_doubtful_rows_are_settled_by_differences():
    """Midpoints between codewords, duplicates of codewords, and an offset that cancels digits."""
    rng = np.random.RandomState(0)
    codebook = rng.standard_normal((64, 8)).astype(np.float32)
    codebook[40:] = codebook[:24]
    pairs = rng.randint(64, size=(2, 500))
    X = np.tile((codebook[pairs[0]] + codebook[pairs[1]]) / 2, (1, 3))
    for offset in (0, 1000):
        codebooks = [codebook + np.float32(offset)] * 3
        books = kernels.prepare_subspaces(codebooks)
        codes = kernels.assign_subspaces(X + np.float32(offset), books)
        for book in books.books:
            book.panels = None
        direct = kernels.assign_subspaces(X + np.float32(offset), kernels.Subspaces(books.books))
        np.testing.assert_array_equal(codes, direct)
        assert codes.max() < 40


def test_subspaces_of_different_magnitude():
    """Each is scaled for itself where squares would leave the range of float32."""
    X, codebooks = make_case([4, 5], [16, 16])
    scaled = np.hstack([X[:, :4] * np.float32(1e-25), X[:, 4:] * np.float32(1e15)])
    books = [codebooks[0] * np.float32(1e-25), codebooks[1] * np.float32(1e15)]
    codes = kernels.assign_subspaces(scaled, books)
    expected = kernels.assign_subspaces(X, codebooks)
    assert (codes == expected).mean() > 0.99
    decoded = kernels.decode_subspaces(codes, books)
    np.testing.assert_array_equal(decoded[:, :4], books[0][codes[:, 0]])
    np.testing.assert_array_equal(decoded[:, 4:], books[1][codes[:, 1]])


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "NaN"), (np.inf, "infinity"), (1e20, "large")]
)
def test_what_cannot_be_compared_is_named(value, what):
    X, codebooks = make_case([4, 5], [16, 16], 300)
    X[211, 6] = value
    with pytest.raises(ValueError, match=rf"{what}.*\(row 211, feature 6\)"):
        kernels.assign_subspaces(X, codebooks)
    with pytest.raises(ValueError, match=rf"{what}.*\(row 211, feature 6\)"):
        kernels.rotate(X, np.eye(9, dtype=np.float32), span=slice(100, None))


def test_wrong_arguments():
    X, codebooks = make_case([4, 5], [16, 16])
    with pytest.raises(ValueError, match="shape"):
        kernels.assign_subspaces(X[:, :8], codebooks)
    with pytest.raises(ValueError, match="codes must have shape"):
        kernels.assign_subspaces(X, codebooks, codes=np.empty((97, 3), np.uint8))
    with pytest.raises(ValueError, match="one dtype"):
        kernels.assign_subspaces(X, [codebooks[0], codebooks[1].astype(np.float64)])


# Decoding ----------------------------------------------------------------------------------------


@bits
@cases
def test_decoding(sizes, counts, precision):
    rng = np.random.RandomState(0)
    _, codebooks = make_case(sizes, counts, precision=precision)
    for n in (0, 1, 97, 2100):
        codes = np.stack([rng.randint(k, size=n) for k in counts], axis=1)
        expected = reference.decode_subspaces(codes, codebooks)
        for dtype in ("uint16", "uint32", "int64", "int16"):
            found = kernels.decode_subspaces(codes.astype(dtype), codebooks)
            assert found.dtype == precision
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            kernels.decode_subspaces(np.asfortranarray(codes), codebooks, n_threads=2), expected
        )


@bits
@pytest.mark.parametrize("sizes", [[8, 8], [12, 4], [7, 9]])
def test_decoding_of_more_than_caches_hold(sizes, precision):
    """From 32 MB on it is written past them, where it lies at multiples of 16 bytes."""
    _, codebooks = make_case(sizes, [16, 16], precision=precision)
    n = (1 << 25) // (16 * np.dtype(precision).itemsize) + 1
    codes = np.random.RandomState(0).randint(16, size=(n, 2)).astype(np.uint8)
    expected = reference.decode_subspaces(codes, codebooks)
    memory = np.empty(16 * n + 1, precision)
    for out, n_threads in ((memory[:-1], 1), (memory[:-1], 2), (memory[1:], 2)):
        out[:] = np.nan
        kernels.decode_subspaces(codes, codebooks, out=out.reshape(n, 16), n_threads=n_threads)
        np.testing.assert_array_equal(out.reshape(n, 16), expected)
    codes[n // 2, 1] = 16
    with pytest.raises(ValueError, match="codes must name"):
        kernels.decode_subspaces(codes, codebooks)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "uint64"])
def test_decoding_refuses_what_is_no_code(dtype):
    _, codebooks = make_case([4, 5], [16, 9])
    codes = np.zeros((50, 2), dtype)
    for place, code in (((49, 1), 9), ((0, 0), 16), ((7, 1), np.iinfo(dtype).max)):
        bad = codes.copy()
        bad[place] = code
        with pytest.raises(ValueError, match="codes must name"):
            kernels.decode_subspaces(bad, codebooks)
    if np.dtype(dtype).kind == "i":
        with pytest.raises(ValueError, match="codes must name"):
            kernels.decode_subspaces(codes - 1, codebooks)
    with pytest.raises(ValueError, match="shape"):
        kernels.decode_subspaces(codes[:, :1], codebooks)


# Rotating ----------------------------------------------------------------------------------------


@bits
@kinds
def test_rotating(dtype, precision):
    for n, d, width in ((1, 1, 1), (7, 16, 3), (97, 33, 33), (50, 384, 6), (49, 20, 128)):
        rng = np.random.RandomState(n)
        X = random_rows(rng, n, d, dtype)
        matrix = rng.standard_normal((d, width)).astype(precision)
        found = kernels.rotate(X, matrix)
        assert found.dtype == precision and found.shape == (n, width)
        exact = reference.rotate(X, matrix.astype(np.float64))
        reach = np.abs(X.astype(np.float64)) @ np.abs(matrix.astype(np.float64))
        assert (np.abs(found - exact) <= (d + 2) * np.finfo(precision).eps * reach + 1e-30).all()


@bits
def test_the_bits_of_a_rotation(precision):
    """Products added in the order of the features, fused where the level can."""
    rng = np.random.RandomState(0)
    X, matrix = (rng.standard_normal(shape).astype(precision) for shape in ((30, 12), (12, 9)))
    expected = np.zeros((30, 9), precision)
    for f in range(12):
        expected = multiply_add(X[:, [f]], matrix[f], expected)
    assert kernels.rotate(X, matrix).tobytes() == expected.tobytes()


@bits
def test_a_rotated_row_depends_on_it_alone(precision, threads_at_once):
    rng = np.random.RandomState(0)
    for d, width in ((12, 12), (40, 23)):
        X, matrix = rng.standard_normal((500, d)).astype("f4"), rng.standard_normal((d, width))
        rotation = kernels.Rotation(matrix.astype(precision))
        expected = kernels.rotate(X, rotation, n_threads=1)
        for threads in THREADS:
            assert kernels.rotate(X, rotation, n_threads=threads).tobytes() == expected.tobytes()
        for span in (slice(3, 4), slice(17, 66), slice(490, None)):
            assert kernels.rotate(X, rotation, span=span).tobytes() == expected[span].tobytes()
        some = slice(3, 11)  # a part of the columns: the same bits
        part = kernels.rotate(X, matrix[:, some].astype(precision))
        assert part.tobytes() == expected[:, some].tobytes()
