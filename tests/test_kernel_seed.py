"""The two passes of k-means++: what candidates would gain, and adopting one."""

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
    monkeypatch.setattr(kernels, "_THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def case(seed, n, d, n_candidates, dtype="float32", precision="float32"):
    """Rows, candidates and what a first codeword has left; one of the rows lies on it."""
    X, candidates = random_case(seed, n, d, n_candidates, dtype, precision)
    first = X[n // 2].astype(precision)
    return X, candidates, reference.pairwise(X.astype(precision), first[None])[:, 0]


def tolerance(n, d, precision):
    """Relative: of the distances, and of n sums of what is not negative, here and in the twin."""
    return rounding(d, precision) + 2 * n * np.finfo(np.float64).eps


@bits
@kinds
def test_potentials_at_awkward_sizes(dtype, precision):
    for n, d, n_candidates in SHAPES[::4]:  # numbers of candidates around multiples of eight
        X, candidates, closest = case(n + d, n, d, n_candidates, dtype, precision)
        weight = np.random.RandomState(0).uniform(0, 3, n)
        before = closest.copy()
        for sample_weight in (None, weight):
            result = kernels.seed_potentials(X, candidates, closest, sample_weight=sample_weight)
            expected = reference.seed_potentials(
                X.astype(precision), candidates, closest, sample_weight=sample_weight
            )
            assert result.dtype == np.float64
            np.testing.assert_allclose(
                result, expected, tolerance(n, d, precision), err_msg=f"{n, d, n_candidates}"
            )
        assert_same_bits(closest, before)


@bits
@kinds
def test_update_at_awkward_sizes(dtype, precision):
    for n, d, _ in SHAPES[::2]:
        X, candidates, closest = case(n + d, n, d, 1, dtype, precision)
        weight = np.random.RandomState(0).uniform(0, 3, n)
        for sample_weight in (None, weight):
            lowered, expected = closest.copy(), closest.copy()
            left = kernels.seed_update(X, candidates[0], lowered, sample_weight=sample_weight)
            expected_left = reference.seed_update(
                X.astype(precision), candidates[0], expected, sample_weight=sample_weight
            )
            note = f"{n, d}"
            np.testing.assert_allclose(lowered, expected, rounding(d, precision), err_msg=note)
            np.testing.assert_allclose(left, expected_left, tolerance(n, d, precision))
            assert (lowered <= closest).all()
            if sample_weight is None and n > 20:
                assert (lowered < closest).any(), note


@bits
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 9, 12, 13, 33])
def test_the_first_codeword(d, precision):
    """From infinity, `closest` becomes the distances, with the bits of `pairwise`."""
    X, candidates, _ = case(d, 65, d, 1, precision, precision)
    closest = np.full(65, np.inf, precision)
    left = kernels.seed_update(X, candidates[0], closest)
    assert_same_bits(closest, squared_in_parts(X - candidates[0]))
    assert_same_bits(closest, kernels.pairwise(X, candidates)[:, 0])
    # The sum of 65 float64 in order.
    assert left == closest.astype(np.float64).cumsum()[-1]


@bits
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("d", [1, 2, 4, 13])
def test_potentials_to_the_last_bit(d, weighted, precision):
    """Features in order, then rows in order, fused where the level has that."""
    X, candidates, closest = case(d, 67, d, 3, precision, precision)
    weight = np.random.RandomState(0).uniform(0, 3, 67) if weighted else None
    distances = squared_in_order(X[:, None] - candidates[None])
    expected, left, lowered = np.zeros(3), np.zeros(1), closest.copy()
    for i, gain in enumerate(np.minimum(distances, closest[:, None]).astype(np.float64)):
        expected = multiply_add(gain, np.array(weight[i] if weighted else 1.0), expected)
    assert_same_bits(
        kernels.seed_potentials(X, candidates, closest, sample_weight=weight), expected
    )
    result = kernels.seed_update(X, candidates[0], lowered, sample_weight=weight)
    for i, gain in enumerate(lowered.astype(np.float64)):
        left = multiply_add(np.array(gain), np.array(weight[i] if weighted else 1.0), left)
    assert result == left[0]


@bits
@pytest.mark.parametrize("d", [2, 8, 33])
def test_threads_and_calls_do_not_show(d, precision, monkeypatch):
    """Rows enough for several units of work of 1024, whose sums are added in order."""
    X, candidates, closest = case(d, 5000, d, 9, precision, precision)
    weight = np.random.RandomState(0).uniform(0, 3, 5000)

    def both(threads):
        lowered = closest.copy()
        options = {"sample_weight": weight, "n_threads": threads}
        left = kernels.seed_update(X, candidates[0], lowered, **options)
        return kernels.seed_potentials(X, candidates, closest, **options), lowered, [left]

    expected = both(1)
    np.testing.assert_allclose(
        expected[0],
        reference.seed_potentials(X, candidates, closest, sample_weight=weight),
        tolerance(5000, d, precision),
    )
    for call_work in (kernels._CALL_WORK, 1):
        monkeypatch.setattr(kernels, "_CALL_WORK", call_work)
        for threads in THREADS:
            assert_same_bits(both(threads), expected, f"{threads} threads")


@bits
def test_a_candidate_s_potential_does_not_depend_on_its_company(precision):
    X, candidates, closest = case(0, 200, 7, 17, precision, precision)
    together = kernels.seed_potentials(X, candidates, closest)
    for first in (1, 5, 8, 16):
        assert_same_bits(kernels.seed_potentials(X, candidates[first:], closest), together[first:])
    reverse = kernels.seed_potentials(X, candidates[::-1], closest)
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
    expected, expected_closest = kernels.seed_potentials(X, candidates, closest), closest.copy()
    left = kernels.seed_update(X, candidates[0], expected_closest)
    for name, same in layouts(X, tmp_path).items():
        assert_same_bits(kernels.seed_potentials(same, candidates, closest), expected, name)
        lowered = closest.copy()
        assert kernels.seed_update(same, candidates[0], lowered) == left, name
        assert_same_bits(lowered, expected_closest, name)
        np.testing.assert_array_equal(same, X, name)
    for same in (np.asfortranarray(candidates), np.repeat(candidates, 2, axis=0)[::2]):
        assert_same_bits(kernels.seed_potentials(X, same, closest), expected)
        lowered = closest.copy()
        assert kernels.seed_update(X, same[0], lowered) == left


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
    left = kernels.seed_update(X, candidates[0], closest, scale=scale)
    assert left == kernels.seed_update(small, small_candidates[0], expected)
    assert_same_bits(closest, expected)
    assert_same_bits(
        kernels.seed_potentials(X, candidates, closest, scale=scale),
        kernels.seed_potentials(small, small_candidates, closest),
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
            kernels.seed_potentials(bad, candidates, closest)
        with pytest.raises(ValueError, match=rf"X contains.*{what}.*row {row}, feature 4"):
            kernels.seed_update(bad, candidates[0], closest.copy())


def test_no_rows():
    X, candidates, closest = case(5, 9, 5, 3)
    np.testing.assert_array_equal(kernels.seed_potentials(X[:0], candidates, closest[:0]), 0)
    assert kernels.seed_update(X[:0], candidates[0], closest[:0]) == 0


def test_arguments_are_checked():
    X, candidates, closest = case(5, 9, 5, 3)
    for call in (
        lambda **options: kernels.seed_potentials(X, candidates, closest, **options),
        lambda **options: kernels.seed_update(X, candidates[0], closest, **options),
    ):
        with pytest.raises(ValueError, match="sample_weight must have shape"):
            call(sample_weight=np.ones(8))
    with pytest.raises(ValueError, match="X must have shape"):
        kernels.seed_potentials(X, candidates[:, :4], closest)
    with pytest.raises(ValueError, match="X must have shape"):
        kernels.seed_update(X, candidates[0, :4], closest)


@pytest.mark.parametrize("length", [8, 10])
def test_length_of_closest_is_checked(length):
    """A shorter array would be read, and written, past its end."""
    X, candidates, _ = case(5, 9, 5, 3)
    memory = np.full(20, 1e9, np.float32)
    with pytest.raises(ValueError, match="closest"):
        kernels.seed_potentials(X, candidates, memory[:length])
    with pytest.raises(ValueError, match="closest"):
        kernels.seed_update(X, candidates[0], memory[:length])


@pytest.mark.parametrize(("dtype", "order"), [("uint8", "C"), ("float16", "F")])
def test_rows_are_never_copied_whole(dtype, order):
    X = np.zeros((1 << 14, 2048), dtype, order=order)
    closest, candidates = np.ones(len(X), np.float32), np.ones((8, 2048), np.float32)
    tracemalloc.start()
    kernels.seed_potentials(X, candidates, closest, n_threads=1)
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
    potentials = kernels.seed_potentials(X, candidates, closest)
    assert (potentials <= closest.sum(dtype=np.float64)).all()
    for candidate, potential in zip(candidates, potentials, strict=True):
        lowered = closest.copy()
        # Integers are exact: what a candidate promised is what it leaves.
        assert kernels.seed_update(X, candidate, lowered) == potential == lowered.sum()
        assert kernels.seed_update(X, candidate, lowered) == potential  # and only once
