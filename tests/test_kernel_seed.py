"""The steps of k-means++: what candidates would gain and where, and adopting one."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    PRECISIONS,
    ROW_DTYPES,
    SHAPES,
    THREADS,
    assert_same_bits,
    layouts,
    multiply_add,
    random_case,
    rounding,
    squared_in_order,
    squared_in_parts,
)

from fastvq import _threads, kernels, reference

bits = pytest.mark.parametrize("precision", PRECISIONS)
kinds = pytest.mark.parametrize("dtype", ROW_DTYPES)


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; else one."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def case(seed, n, d, n_candidates, dtype="float32", precision="float32"):
    """Rows, candidates and what a first codeword has left; one of the rows lies on it."""
    X, candidates = random_case(seed, n, d, n_candidates, dtype, precision)
    first = X[n // 2].astype(precision)
    return X, candidates, reference.pairwise(X.astype(precision), first[None])[:, 0]


def assert_gains(result, X, candidates, closest, weight=None):
    """Equal to the twin's, up to the rounding of each distance and of n sums in float64."""
    precision = candidates.dtype
    X = X.astype(precision)
    expected = reference.seed_gains(X, candidates, closest, sample_weight=weight)
    distances = reference.pairwise(X, candidates).astype(np.float64)
    sums = (1 if weight is None else weight[:, None]) * (distances + closest[:, None])
    error = rounding(X.shape[1], precision) + 2 * len(X) * np.finfo(np.float64).eps
    assert result.dtype == np.float64
    np.testing.assert_array_less(abs(result - expected), error * sums.sum(axis=0) + 1e-300)


def assert_marks(nearer, X, candidates, closest):
    """Bits are set where a candidate is nearer, for certain; not where rounding can decide."""
    precision = candidates.dtype
    distances = reference.pairwise(X.astype(precision), candidates).astype(np.float64)
    n_candidates = len(candidates)
    found = np.unpackbits(nearer, axis=0, bitorder="little").reshape(len(nearer), 8, -1)
    found = found.reshape(-1, len(X))[:n_candidates].T.astype(bool)
    certain = abs(distances - closest[:, None]) > 2 * rounding(X.shape[1], precision) * distances
    np.testing.assert_array_equal(found[certain], (distances < closest[:, None])[certain])


@bits
@kinds
def test_gains_at_awkward_sizes(dtype, precision):
    for n, d, n_candidates in SHAPES[::4]:  # numbers of candidates around multiples of eight
        X, candidates, closest = case(n + d, n, d, n_candidates, dtype, precision)
        weight = np.random.RandomState(0).uniform(0, 3, n)
        before = closest.copy()
        for sample_weight in (None, weight):
            nearer = np.full((-(-n_candidates // 8), n), 0xAA, np.uint8)
            result = kernels.seed_gains(
                X, candidates, closest, nearer=nearer, sample_weight=sample_weight
            )
            assert_gains(result, X, candidates, closest, sample_weight)
            assert_marks(nearer, X, candidates, closest)
        assert_same_bits(closest, before)


@bits
@kinds
def test_update_at_awkward_sizes(dtype, precision):
    for n, d, _ in SHAPES[::2]:
        X, candidates, closest = case(n + d, n, d, 1, dtype, precision)
        lowered, expected = closest.copy(), closest.copy()
        nearest = np.full(n, 4, np.int32)
        kernels.seed_update(X, candidates[0], lowered, nearest=nearest, code=7)
        reference.seed_update(X.astype(precision), candidates[0], expected)
        note = f"{n, d}"
        np.testing.assert_allclose(lowered, expected, rounding(d, precision), err_msg=note)
        np.testing.assert_array_equal(nearest, np.where(lowered < closest, 7, 4), err_msg=note)
        if n > 20:
            assert (lowered < closest).any(), note


@bits
@pytest.mark.parametrize("bit", [0, 5, 7])
def test_update_of_marked_rows(bit, precision):
    X, candidates, closest = case(bit, 1500, 9, 1, precision, precision)
    nearer = np.random.RandomState(0).randint(256, size=1500).astype(np.uint8)
    lowered, everywhere = closest.copy(), closest.copy()
    kernels.seed_update(X, candidates[0], everywhere)
    kernels.seed_update(X, candidates[0], lowered, nearer=nearer, bit=bit)
    assert_same_bits(lowered, np.where(nearer >> bit & 1, everywhere, closest))
    expected = closest.copy()
    reference.seed_update(X, candidates[0], expected, nearer=nearer, bit=bit)
    np.testing.assert_allclose(lowered, expected, rounding(9, precision))


@bits
@pytest.mark.parametrize("d", [3, 40, 100])
@pytest.mark.parametrize("share", [0, 0.03, 0.5, 1])
def test_rows_out_of_reach_do_not_show(share, d, precision):
    """Clusters, so that sums are given up early too; the reach is what is known to be true."""
    rng = np.random.RandomState(d)
    X = (rng.standard_normal((3000, d)) + 9 * rng.randint(3, size=(3000, 1))).astype(precision)
    candidates = X[::400] + np.array(0.1, precision)
    nearest = rng.randint(5, size=3000).astype(np.int32)
    smallest = kernels.pairwise(X, candidates).min(axis=1)
    closest = smallest * np.where(rng.random_sample(3000) < share, 1.5, 0.5).astype(precision)
    closest[nearest == 2] = 1e-9
    reach = np.array([0, 0, closest[nearest == 2].max(), 0, 0], precision)
    marks = np.empty((2, 1, 3000), np.uint8)
    options = {"sample_weight": rng.uniform(0, 3, 3000)}
    plain = kernels.seed_gains(X, candidates, closest, nearer=marks[0], **options)
    pruned = kernels.seed_gains(
        X, candidates, closest, nearest=nearest, reach=reach, nearer=marks[1], **options
    )
    assert_same_bits(pruned, plain)
    assert_same_bits(marks[1], marks[0])
    assert_gains(plain, X, candidates, closest, options["sample_weight"])
    assert_marks(marks[0], X, candidates, closest)
    assert bool(marks.any()) == (share > 0)


def test_rows_out_of_reach_are_not_read():
    X, candidates, closest = case(7, 300, 5, 3)
    nearest = np.arange(300, dtype=np.int32) % 2
    X[nearest == 1] = np.nan
    reach = np.array([0, np.inf], np.float32)
    closest = np.nan_to_num(closest, nan=1.0)
    result = kernels.seed_gains(X, candidates, closest, nearest=nearest, reach=reach)
    assert_gains(result, X[::2], candidates, closest[::2])


@bits
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 9, 12, 13, 33])
def test_the_first_codeword(d, precision):
    """From infinity, `closest` becomes the distances, with the bits of `pairwise`."""
    X, candidates, _ = case(d, 65, d, 1, precision, precision)
    closest = np.full(65, np.inf, precision)
    kernels.seed_update(X, candidates[0], closest)
    assert_same_bits(closest, squared_in_parts(X - candidates[0]))
    assert_same_bits(closest, kernels.pairwise(X, candidates)[:, 0])


@bits
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("d", [1, 2, 4, 13])
def test_gains_to_the_last_bit(d, weighted, precision):
    """Features in order, then rows in order, fused where the level has that."""
    X, candidates, closest = case(d, 67, d, 3, precision, precision)
    weight = np.random.RandomState(0).uniform(0, 3, 67) if weighted else None
    distances = squared_in_order(X[:, None] - candidates[None]).astype(np.float64)
    expected = np.zeros(3)
    for i, gain in enumerate(np.maximum(closest[:, None].astype(np.float64) - distances, 0)):
        expected = multiply_add(gain, np.array(weight[i] if weighted else 1.0), expected)
    assert_same_bits(kernels.seed_gains(X, candidates, closest, sample_weight=weight), expected)


@bits
@pytest.mark.parametrize("d", [2, 8, 33])
def test_threads_and_calls_do_not_show(d, precision, monkeypatch):
    """Rows enough for many units of work, whose sums are added in order."""
    X, candidates, closest = case(d, 5000, d, 9, precision, precision)
    weight = np.random.RandomState(0).uniform(0, 3, 5000)

    def both(threads):
        lowered, nearest = closest.copy(), np.zeros(5000, np.int32)
        nearer = np.empty((2, 5000), np.uint8)
        gains = kernels.seed_gains(
            X, candidates, closest, nearer=nearer, sample_weight=weight, n_threads=threads
        )
        kernels.seed_update(
            X, candidates[8], lowered, nearer=nearer[1], nearest=nearest, code=3,
            n_threads=threads,
        )  # fmt: skip
        return gains, nearer, lowered, nearest

    expected = both(1)
    assert_gains(expected[0], X, candidates, closest, weight)
    for call_work in (kernels._call.CALL_WORK, 1):
        monkeypatch.setattr(kernels._call, "CALL_WORK", call_work)
        for threads in THREADS:
            assert_same_bits(both(threads), expected, f"{threads} threads")


@bits
def test_a_candidate_s_gain_does_not_depend_on_its_company(precision):
    X, candidates, closest = case(0, 200, 7, 17, precision, precision)
    together = kernels.seed_gains(X, candidates, closest)
    for first in (1, 5, 8, 16):
        assert_same_bits(kernels.seed_gains(X, candidates[first:], closest), together[first:])
    reverse = kernels.seed_gains(X, candidates[::-1], closest)
    assert_same_bits(reverse[::-1].copy(), together)


@bits
def test_a_row_alone_is_lowered_alike(precision):
    X, candidates, closest = case(1, 97, 20, 1, precision, precision)
    lowered = closest.copy()
    kernels.seed_update(X, candidates[0], lowered)
    for row in range(0, 97, 8):
        alone = closest[row : row + 1].copy()
        kernels.seed_update(X[row : row + 1], candidates[0], alone)
        assert_same_bits(alone, lowered[row : row + 1])


@kinds
@pytest.mark.parametrize("shape", [(97, 1), (65, 8), (49, 65)])
def test_layouts(shape, dtype, tmp_path):
    X, candidates, closest = case(sum(shape), *shape, 9, dtype)
    expected, expected_closest = kernels.seed_gains(X, candidates, closest), closest.copy()
    kernels.seed_update(X, candidates[0], expected_closest)
    some = np.flatnonzero(np.random.RandomState(0).randint(3, size=len(X)))
    nearest, reach = np.zeros(len(X), np.int32), np.sort(closest)[len(X) // 3 :][:1]
    pruning = {"nearest": nearest, "reach": reach}
    pruned = kernels.seed_gains(X, candidates, closest, **pruning)
    of_some = kernels.seed_gains(X[some], candidates, closest[some])
    for name, same in layouts(X, tmp_path).items():
        assert_same_bits(kernels.seed_gains(same, candidates, closest), expected, name)
        assert_same_bits(kernels.seed_gains(same, candidates, closest, **pruning), pruned, name)
        assert_same_bits(
            kernels.seed_gains(same, candidates, closest[some], rows=some), of_some, name
        )
        lowered = closest.copy()
        kernels.seed_update(same, candidates[0], lowered)
        assert_same_bits(lowered, expected_closest, name)
        lowered = closest[some]
        kernels.seed_update(same, candidates[0], lowered, rows=some)
        assert_same_bits(lowered, expected_closest[some], name)
        np.testing.assert_array_equal(same, X, name)
    for same in (np.asfortranarray(candidates), np.repeat(candidates, 2, axis=0)[::2]):
        assert_same_bits(kernels.seed_gains(X, same, closest), expected)
        lowered = closest.copy()
        kernels.seed_update(X, same[0], lowered)
        assert_same_bits(lowered, expected_closest)


@pytest.mark.parametrize(("precision", "factor"), [("float32", 1e30), ("float64", 1e200)])
def test_scaled_by_a_power_of_two(precision, factor):
    """Rows whose squares would overflow: the answers of rows that are near 1, in scaled units."""
    X, candidates, _ = case(3, 200, 9, 5, precision, precision)
    X, candidates = X * np.array(factor, precision), candidates * np.array(factor, precision)
    scale = kernels.safe_scale(X)
    assert scale != 1
    small, small_candidates = (
        (a.astype(np.float64) * scale).astype(precision) for a in (X, candidates)
    )
    closest, expected = np.full(200, np.inf, precision), np.full(200, np.inf, precision)
    kernels.seed_update(X, candidates[0], closest, scale=scale)
    kernels.seed_update(small, small_candidates[0], expected)
    assert_same_bits(closest, expected)
    assert_same_bits(
        kernels.seed_gains(X, candidates, closest, scale=scale),
        kernels.seed_gains(small, small_candidates, closest),
    )


@pytest.mark.parametrize(
    ("dtype", "value", "what"),
    [("float32", np.nan, "NaN"), ("float32", np.inf, "infinity"), ("float32", 1e20, "too large"),
     ("float64", 1e200, "too large"), ("float16", np.inf, "infinity")],
)  # fmt: skip
def test_values_that_cannot_be_squared(dtype, value, what):
    precision = "float64" if dtype == "float64" else "float32"
    X, candidates, closest = case(4, 2100, 5, 3, dtype, precision)
    for row in (0, 63, 2099):
        bad = X.copy()
        bad[row:, 4] = value
        with pytest.raises(ValueError, match=rf"X contains.*{what}.*row {row}, feature 4"):
            kernels.seed_gains(bad, candidates, closest)
        with pytest.raises(ValueError, match=rf"X contains.*{what}.*row {row}, feature 4"):
            kernels.seed_update(bad, candidates[0], closest.copy())


def test_no_rows():
    X, candidates, closest = case(5, 9, 5, 3)
    np.testing.assert_array_equal(kernels.seed_gains(X[:0], candidates, closest[:0]), 0)
    kernels.seed_update(X[:0], candidates[0], closest[:0])


def test_arguments_are_checked():
    X, candidates, closest = case(5, 9, 5, 3)
    with pytest.raises(ValueError, match="sample_weight must have shape"):
        kernels.seed_gains(X, candidates, closest, sample_weight=np.ones(8))
    with pytest.raises(ValueError, match="nearer must have shape"):
        kernels.seed_gains(X, candidates, closest, nearer=np.empty((1, 8), np.uint8))
    with pytest.raises(ValueError, match="nearer must have shape"):
        kernels.seed_update(X, candidates[0], closest, nearer=np.empty(8, np.uint8))
    with pytest.raises(ValueError, match="nearest must have shape"):
        kernels.seed_update(X, candidates[0], closest, nearest=np.empty(8, np.int32))
    reach = np.zeros(2, np.float32)
    for nearest, what in ((np.zeros(8, int), "shape"), (np.full(9, 2), "lie between")):
        with pytest.raises(ValueError, match=f"nearest must .*{what}"):
            kernels.seed_gains(X, candidates, closest, nearest=nearest, reach=reach)
    with pytest.raises(ValueError, match="X must have shape"):
        kernels.seed_gains(X, candidates[:, :4], closest)
    with pytest.raises(ValueError, match="X must have shape"):
        kernels.seed_update(X, candidates[0, :4], closest)


@pytest.mark.parametrize("length", [8, 10])
def test_length_of_closest_is_checked(length):
    """A shorter array would be read, and written, past its end."""
    X, candidates, _ = case(5, 9, 5, 3)
    memory = np.full(20, 1e9, np.float32)
    with pytest.raises(ValueError, match="closest"):
        kernels.seed_gains(X, candidates, memory[:length])
    with pytest.raises(ValueError, match="closest"):
        kernels.seed_update(X, candidates[0], memory[:length])


@pytest.mark.parametrize(("dtype", "order"), [("uint8", "C"), ("float16", "F")])
def test_rows_are_never_copied_whole(dtype, order):
    X = np.zeros((1 << 14, 2048), dtype, order=order)
    closest, candidates = np.ones(len(X), np.float32), np.ones((8, 2048), np.float32)
    tracemalloc.start()
    kernels.seed_gains(X, candidates, closest, n_threads=1)
    kernels.seed_update(X, candidates[0], closest, n_threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 64 converted rows, and the candidates packed.
    assert peak < (64 + 8) * 2048 * 4 + 50_000


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_properties(n, d, n_candidates, seed):
    rng = np.random.RandomState(seed)
    X, candidates = rng.randint(-9, 10, (n, d)), rng.randint(-9, 10, (n_candidates, d))
    X, candidates = X.astype(np.float32), candidates.astype(np.float32)
    closest = rng.randint(0, 999, n).astype(np.float32)
    gains = kernels.seed_gains(X, candidates, closest)
    assert (gains >= 0).all()
    for candidate, gain in zip(candidates, gains, strict=True):
        lowered = closest.copy()
        # Integers are exact: what a candidate promised is what it takes away.
        kernels.seed_update(X, candidate, lowered)
        assert closest.sum() - lowered.sum() == gain
        assert kernels.seed_gains(X, candidate[None], lowered)[0] == 0  # and only once
