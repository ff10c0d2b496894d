"""Products of 8-bit integers: the same integers, and the same bits of what is made of them."""

import numpy as np
import pytest
from oracles import SIZES, THREADS, assert_same_bits

from fastvq import _kernels, _threads, kernels, reference

# Around the rows and columns of tiles on every level, and odd widths.
SHAPES = [(n, SIZES[(5 * i + 3) % len(SIZES)], SIZES[(7 * i + 2) % len(SIZES)])
          for i, n in enumerate(SIZES)] + [(1, 200, 999), (5, 3, 4099), (700, 30, 257)]  # fmt: skip


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def some_bytes(rng, *shape):
    """The whole range, its ends more often than chance has them."""
    values = rng.integers(-128, 128, shape, dtype=np.int8)
    ends = rng.random(shape)
    values[ends < 0.1], values[ends > 0.9] = -128, 127
    return values


def some_rows(rng, m, k):
    """Rows of very different ranges: of one sign, zero, tiny, huge, or with what is no number."""
    X = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 3, (m, 1))).astype(np.float32)
    X[1::7] = np.maximum(X[1::7], 0)
    X[2::7] = 0
    X[3::7] *= np.float32(1e-40)
    X[4::7] *= np.float32(1e34)
    X[5::7, k // 2] = [np.nan, np.inf, -np.inf][m % 3]
    return X


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape):
    m, n, k = shape
    rng = np.random.default_rng(m * n * k)
    X, weight = some_bytes(rng, m, k), some_bytes(rng, n, k)
    packed = kernels.Int8Weight(weight)
    table = some_bytes(rng, 256)
    bias = rng.integers(-(1 << 20), 1 << 20, n, dtype=np.int32)
    multiplier = (rng.random(n) * 0.02 / np.sqrt(k)).astype(np.float32)
    for settings in (
        {},
        {"zero_point": -128, "bias": bias},
        {"multiplier": multiplier, "zero_point": 127, "out_zero_point": -9},
        {"multiplier": 0.001, "bias": bias, "low": 3, "high": 90, "out_zero_point": 3},
        {"multiplier": multiplier, "table": table},
        {"multiplier": multiplier, "dtype": "float32", "bias": bias, "zero_point": 5, "low": 0.0},
    ):
        expected = reference.gemm_int8(X, weight, **settings)
        for threads in THREADS:
            found = kernels.gemm_int8(X, packed, **settings, n_threads=threads)
            assert_same_bits(found, expected, str(settings))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_floats(shape):
    m, n, k = shape
    rng = np.random.default_rng(m + n + k)
    X, weight = some_rows(rng, m, k), some_bytes(rng, n, k)
    scale = rng.random(n, np.float32) * np.float32(0.01)
    bias = rng.standard_normal(n, np.float32)
    quantized = reference.quantize_rows(X)
    for threads in THREADS:
        for found, expected in zip(
            kernels.quantize_rows(X, n_threads=threads), quantized, strict=True
        ):
            assert_same_bits(found, expected)
        for settings in (
            {},
            {"bias": bias},
            {"bias": bias, "low": 0.0},
            {"low": -0.5, "high": 6.0},
        ):
            found = kernels.gemm_dynamic(X, weight, scale, **settings, n_threads=threads)
            with np.errstate(all="ignore"):
                expected = reference.gemm_dynamic(X, weight, scale, **settings)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [1e-34, 3e38])
def test_rows_at_the_ends_of_float32(size):
    """What a layer gives is in range, and so is all on the way to it."""
    rng = np.random.default_rng(0)
    X, weight = rng.uniform(-1, 1, (9, 70)).astype(np.float32), some_bytes(rng, 30, 70)
    X *= np.float32(size)
    scale = np.full(30, 1 / (127 * 70), np.float32)
    expected = reference.gemm_dynamic(X, weight, scale)
    found = kernels.gemm_dynamic(X, kernels.Int8Weight(weight), scale)
    assert_same_bits(found, expected)
    exact = (np.float64(X) / size) @ (weight.T * np.float64(scale))
    np.testing.assert_allclose(np.float64(found) / size, exact, atol=0.01)


def pairs_of(rng, n, k, share):
    """Weights of which about so many neighbours are as large as can be together."""
    weight = rng.integers(-64, 65, (n, k), dtype=np.int8)
    ends = np.array([[127, 127], [-128, -128], [65, 64], [-65, -64], [127, -128]], np.int8)
    pairs = weight[:, : k // 2 * 2].reshape(n, -1, 2)
    chosen = rng.random(pairs.shape[:2]) < share
    pairs[chosen] = ends[rng.integers(0, len(ends), chosen.sum())]
    return weight


@pytest.mark.parametrize("share", [0, 1e-4, 2e-3, 0.02, 1])
def test_pairs_that_sixteen_bits_cannot_hold(share):
    """Sums of neighbours never saturate, whichever way a level multiplies them."""
    rng = np.random.default_rng(5)
    forms = set()
    for m, n, k in [(1, 1, 1), (5, 17, 2), (9, 33, 67), (2, 16, 259), (13, 50, 1030)]:
        weight = kernels.Int8Weight(pairs_of(rng, n, k, share))
        forms.add(weight.packed.form)
        X = some_bytes(rng, m, k)
        for rows in (X, np.full_like(X, 127), np.full_like(X, -128)):
            assert_same_bits(
                kernels.gemm_int8(rows, weight), reference.gemm_int8(rows, weight.values)
            )
        real = some_rows(rng, m, k)
        with np.errstate(all="ignore"):
            expected = reference.gemm_dynamic(real, weight.values, 0.01)
        np.testing.assert_array_equal(kernels.gemm_dynamic(real, weight, 0.01), expected)
    kernel = _kernels.load("int8")
    if kernel.CAN_PAIR:
        wanted = {0: kernel.PAIRED, 1e-4: kernel.PICKED, 2e-3: kernel.PICKED, 0.02: kernel.PICKED}
        assert wanted.get(share, kernel.WHOLE) in forms


@pytest.mark.parametrize("width", [1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 303])
def test_any_order_of_values(width):
    """Weights like those of models, whose groups pick their values, and the worst of all rows."""
    rng = np.random.default_rng(width)
    for n in (1, 15, 16, 17, 40):
        values = np.clip(np.rint(40 * rng.standard_normal((n, width))), -128, 127).astype(np.int8)
        weight = kernels.Int8Weight(values)
        # Of each column, the row that makes its sums as large and as small as can be.
        X = np.concatenate([np.where(values > 0, 127, -128), np.where(values > 0, -128, 127)])
        X = X.astype(np.int8)
        assert_same_bits(kernels.gemm_int8(X, weight), reference.gemm_int8(X, values))


@pytest.mark.parametrize("width", [1, 8, 31, 32, 100])
def test_what_groups_pick_has_room(width):
    """Each value once; parts of pairs, and of two pairs that are added in 16 bits, within 128."""
    kernel = _kernels.load("int8")
    if not kernel.CAN_PAIR:
        pytest.skip("this level adds no pairs")
    rng = np.random.default_rng(width)
    weight = np.clip(np.rint(25 * rng.standard_normal((33, width))), -128, 127).astype(np.int8)
    shape = -(-len(weight) // kernel.COLUMNS), -(-width // kernel.CHOICE)
    orders = np.zeros((*shape, kernel.GROUPS), np.uint32)
    counts, doubles = np.empty((2, *shape), np.int8)
    kernel.plan_pairs(weight, orders, counts, doubles)
    for panel, block in np.ndindex(shape):
        columns = weight[panel * kernel.COLUMNS :][: kernel.COLUMNS]
        values = columns[:, block * kernel.CHOICE :][:, : kernel.CHOICE].astype(int)
        order = orders[panel, block, : counts[panel, block]].view(np.uint8)
        assert sorted(order[order < kernel.CHOICE]) == list(range(values.shape[1]))
        alone = np.zeros((len(values), 256 - values.shape[1]), int)  # no value: a weight of 0
        picked = np.hstack([values, alone])[:, order].reshape(len(values), -1, 2, 2)
        twice = picked[:, : 2 * doubles[panel, block]].reshape(len(values), -1, 2, 2, 2)
        for added, axes in (picked, 3), (twice, (2, 4)):
            assert np.maximum(added, 0).sum(axis=axes).max(initial=0) <= 128
            assert np.minimum(added, 0).sum(axis=axes).min(initial=0) >= -128
    assert width < kernel.CHOICE or doubles.any()


def test_a_row_alone_and_in_a_batch():
    rng = np.random.default_rng(0)
    X, weight = some_rows(rng, 61, 130), kernels.Int8Weight(some_bytes(rng, 75, 130))
    whole = kernels.gemm_dynamic(X, weight, 0.01)
    for i in range(len(X)):
        np.testing.assert_array_equal(kernels.gemm_dynamic(X[i : i + 1], weight, 0.01)[0], whole[i])


def test_largest_sums():
    """Nothing saturates or wraps: every product the largest, as many as are allowed."""
    k = 65536
    X, weight = np.full((2, k), -128, np.int8), np.full((17, k), -128, np.int8)
    X[1] = 127
    assert (kernels.gemm_int8(X, weight) == [[k << 14], [-127 * 128 * k]]).all()
    assert (kernels.gemm_int8(X, weight, zero_point=127)[0] == 255 * 128 * k).all()
    with pytest.raises(ValueError, match="65536"):
        kernels.gemm_int8(np.zeros((1, k + 1), np.int8), np.zeros((1, k + 1), np.int8))
    with pytest.raises(ValueError, match="overflow"):
        kernels.gemm_int8(X, weight, bias=np.full(17, 1 << 24))


def test_layouts_of_rows():
    rng = np.random.default_rng(1)
    whole, weight = some_bytes(rng, 40, 90), some_bytes(rng, 20, 33)
    for X in (whole[::2, 5:38], whole[::-1, 50:83], np.asfortranarray(whole[:, :33]),
              np.broadcast_to(whole[:1, :33], (9, 33)), whole[:0, :33]):  # fmt: skip
        assert_same_bits(kernels.gemm_int8(X, weight), reference.gemm_int8(X, weight))
    F = rng.standard_normal((40, 90), np.float32)
    for X in (F[::2, 5:38], np.asfortranarray(F[:, :33]), F[:, ::2][:, :33]):
        np.testing.assert_array_equal(
            kernels.gemm_dynamic(X, weight, 1.0), reference.gemm_dynamic(X, weight, 1.0)
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int16"}, "dtype"),
        ({"dtype": "int8"}, "multiplier"),
        ({"multiplier": np.nan}, "finite"),
        ({"zero_point": 200}, "zero_point"),
        ({"multiplier": 1.0, "table": np.zeros(9, np.int8)}, "table"),
        ({"bias": np.zeros(3, np.int32)}, "bias"),
    ],
)
def test_bad_settings(settings, message):
    X, weight = np.zeros((2, 4), np.int8), np.zeros((5, 4), np.int8)
    with pytest.raises(ValueError, match=message):
        kernels.gemm_int8(X, weight, **settings)


def test_bad_arrays():
    X, weight = np.zeros((2, 4), np.int8), np.zeros((5, 4), np.int8)
    for bad in (X.astype(np.uint8), X[:, :3], X[0]):
        with pytest.raises(ValueError, match="X must"):
            kernels.gemm_int8(bad, weight)
    with pytest.raises(ValueError, match="weight"):
        kernels.gemm_int8(X, weight.astype(np.int16))
    with pytest.raises(ValueError, match="X must"):
        kernels.gemm_dynamic(X, weight, 1.0)
