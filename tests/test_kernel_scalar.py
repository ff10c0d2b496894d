"""Kernels on single values: extremes, even steps, levels of any spacing."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import (
    FUSED,
    PRECISIONS,
    ROW_DTYPES,
    SIZES,
    THREADS,
    assert_same_bits,
    layouts,
    multiply_add,
    random_rows,
)

from fastvq import _threads, kernels, reference

kinds = pytest.mark.parametrize("dtype", ROW_DTYPES)
SHAPES = [(n, SIZES[(5 * i + 3) % len(SIZES)]) for i, n in enumerate(SIZES)] + [
    (700, 40),
    (9000, 1),
]


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


def some_steps(X, dtype, last=255):
    """Ranges narrower than the rows', so that some values are clamped, and rarely an equal step."""
    low, high = X.min(axis=0).astype(float) * 0.7, X.max(axis=0).astype(float) * 0.8 + 1e-3
    scale = np.maximum(high - low, 1e-3) / last
    first = np.arange(X.shape[1]) % 3
    return kernels.Steps(scale, -low / scale, first, np.full(X.shape[1], last), dtype)


def some_levels(rng, n_groups, k, dtype):
    levels = np.sort(rng.standard_normal((n_groups, k)) * 40, axis=1).astype(dtype)
    levels[:, k // 2 :: 7] = levels[:, k // 2 : k // 2 + 1]
    return np.sort(levels, axis=1)


@kinds
def test_extremes(dtype):
    for n, d in SHAPES:
        X = random_rows(np.random.RandomState(n), n, d, dtype)
        rows = np.arange(n)[:: max(1, n // 7)]
        for threads in THREADS:
            found = kernels.extremes(X, n_threads=threads)
            assert_same_bits(found, reference.extremes(X), f"{n, d}")
            assert_same_bits(
                kernels.extremes(X, rows=rows, n_threads=threads), reference.extremes(X, rows=rows)
            )


@kinds
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("last", [1, 255, 4095, 65535])
def test_even_steps(last, precision, dtype):
    """The same bits as NumPy's, whatever the level: nothing in there can be fused."""
    for n, d in SHAPES:
        X = random_rows(np.random.RandomState(n), n, d, dtype)
        steps = some_steps(X, precision, last)
        expected = reference.encode_even(X, steps)
        code_dtype = np.uint8 if last < 256 else np.uint16
        for threads in THREADS:
            codes = kernels.encode_even(X, steps, codes=np.empty((n, d), code_dtype),
                                        n_threads=threads)  # fmt: skip
            np.testing.assert_array_equal(codes, expected, f"{n, d}")
            values = kernels.decode_even(codes, steps, n_threads=threads)
            origin, scale = steps.decoding[:, :d]
            as_built = multiply_add(codes.astype(precision), scale, np.tile(origin, (n, 1)))
            assert_same_bits(values, as_built, f"{n, d}")
            if FUSED and precision == "float32":
                assert_same_bits(values, reference.decode_even(codes, steps))


def test_halves_go_to_the_even_code():
    steps = kernels.Steps([1.0], [0.0], [0], [255], np.float32)
    X = (np.arange(256, dtype=np.float32) + 0.5)[:, None]
    codes = kernels.encode_even(X, steps)[:, 0]
    np.testing.assert_array_equal(codes, np.minimum(np.rint(X[:, 0]), 255))
    assert codes[0] == 0 and codes[1] == 2 and codes[2] == 2


@kinds
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("k", [1, 2, 3, 16, 256, 1000])
def test_levels(k, precision, dtype):
    for n, d in SHAPES:
        rng = np.random.RandomState(n)
        X = random_rows(rng, n, d, dtype)
        group = np.arange(d) // 3
        levels = kernels.Levels(some_levels(rng, group[-1] + 1, k, precision), group)
        X.flat[:: max(1, X.size // 9)] = levels.levels[0, 0].astype(dtype)
        expected = reference.encode_levels(X, levels)
        code_dtype = np.uint8 if k <= 256 else np.uint16
        for threads in THREADS:
            codes = kernels.encode_levels(X, levels, codes=np.empty((n, d), code_dtype),
                                          n_threads=threads)  # fmt: skip
            np.testing.assert_array_equal(codes, expected, f"{n, d}")
            values = kernels.decode_levels(codes, levels, n_threads=threads)
            assert_same_bits(values, reference.decode_levels(codes, levels))


finite = {
    "float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "float64": st.floats(-(2.0**999), 2.0**999),
}
few = st.integers(-3, 3).map(float)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_levels_by_definition(precision):
    """Nearest in exact arithmetic, ties to the lower, of equal ones the first: for any numbers,
    thresholds themselves and their neighbours among them."""

    @given(
        st.integers(2, 20).flatmap(
            lambda k: arrays(precision, k, elements=finite[precision] | few)
        ),
        arrays(precision, 20, elements=finite[precision] | few),
    )
    @settings(max_examples=150, deadline=None)
    def check(levels, values):
        levels = kernels.Levels(np.sort(levels)[None], [0])
        edges = levels.thresholds[0][np.isfinite(levels.thresholds[0])]
        with np.errstate(over="ignore"):
            near = [np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf)]
        values = np.concatenate([values, levels.levels[0], edges, *near])
        values = values[np.isfinite(values)]
        codes = kernels.encode_levels(values[:, None], levels)[:, 0]
        exact = [Fraction(float(level)) for level in levels.levels[0]]
        for value, code in zip(values, codes, strict=True):
            distances = [abs(Fraction(float(value)) - level) for level in exact]
            assert code == distances.index(min(distances)), value

    check()


def test_outliers_among_levels():
    """All but one threshold in one bucket: as many halvings as for a search without buckets."""
    rng = np.random.RandomState(0)
    levels = np.sort(np.append(rng.standard_normal(255), 1e30)).astype(np.float32)
    levels = kernels.Levels(levels[None], [0, 0])
    assert levels.halvings[0] == 8
    X = random_rows(rng, 500, 2)
    np.testing.assert_array_equal(
        kernels.encode_levels(X, levels), reference.encode_levels(X, levels)
    )


@kinds
@pytest.mark.parametrize("shape", [(97, 1), (65, 8), (49, 65), (33, 200)])
def test_layouts(shape, dtype, tmp_path):
    rng = np.random.RandomState(0)
    X = random_rows(rng, *shape, dtype)
    steps = some_steps(X, np.float32)
    levels = kernels.Levels(some_levels(rng, 1, 50, np.float32), np.zeros(shape[1], int))
    expected = kernels.encode_even(X, steps), kernels.encode_levels(X, levels), *kernels.extremes(X)
    for name, same in layouts(X, tmp_path).items():
        found = kernels.encode_even(same, steps), kernels.encode_levels(same, levels)
        assert_same_bits((*found, *kernels.extremes(same)), expected, name)


def test_calls_do_not_show(monkeypatch):
    rng = np.random.RandomState(0)
    X = random_rows(rng, 5000, 6)
    steps, levels = (
        some_steps(X, np.float32),
        kernels.Levels(some_levels(rng, 6, 9, "f4"), range(6)),
    )
    codes = kernels.encode_even(X, steps), kernels.encode_levels(X, levels)
    values = kernels.decode_even(codes[0], steps), kernels.decode_levels(codes[1], levels)
    monkeypatch.setattr(kernels._call, "CALL_WORK", 1)
    assert_same_bits((kernels.encode_even(X, steps), kernels.encode_levels(X, levels)), codes)
    again = kernels.decode_even(codes[0], steps), kernels.decode_levels(codes[1], levels)
    assert_same_bits(again, values)
    assert_same_bits(kernels.extremes(X), reference.extremes(X))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_not_finite(dtype, bad):
    rng = np.random.RandomState(0)
    X = random_rows(rng, 300, 7, dtype)
    calls = [
        kernels.extremes,
        lambda X: kernels.encode_even(X, some_steps(np.ones((1, 7)), np.float32)),
        lambda X: kernels.encode_levels(X, kernels.Levels(some_levels(rng, 1, 9, "f4"), [0] * 7)),
    ]
    for row in (0, 150, 299):
        Y = X.copy()
        Y[row, 5] = bad
        for call in calls:
            with pytest.raises(
                ValueError, match=rf"contains (NaN|infinity) \(row {row}, feature 5"
            ):
                call(Y)


def test_values_that_float32_cannot_hold():
    X = np.full((3, 1), 1e300)
    steps = kernels.Steps([1.0], [0.0], [0], [255], np.float32)
    with pytest.raises(ValueError, match="too large .* float32"):
        kernels.encode_even(X, steps)


@given(st.integers(1, 200), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_distinct_values(n, seed):
    rng = np.random.default_rng(seed)
    values, weight = rng.integers(-5, 5, n) / np.float32(2), rng.integers(0, 3, n).astype(float)
    distinct, counts = np.unique(values, return_counts=True)
    assert_same_bits(kernels.distinct_values(values), (distinct, counts.astype(float)))
    distinct, counts = np.unique(values.repeat(weight.astype(int)), return_counts=True)
    assert_same_bits(kernels.distinct_values(values, weight), (distinct, counts.astype(float)))


def test_arguments_are_checked():
    steps = kernels.Steps([1.0, 1.0], [0.0, 0.0], [0, 0], [255, 255], np.float32)
    levels = kernels.Levels(np.float32([[1, 2, 3]]), [0, 0])
    X, codes = np.zeros((4, 2), np.float32), np.zeros((4, 2), np.uint8)
    for encode, decode, prepared in (
        (kernels.encode_even, kernels.decode_even, steps),
        (kernels.encode_levels, kernels.decode_levels, levels),
    ):
        with pytest.raises(ValueError, match="X must have shape"):
            encode(X[:, :1], prepared)
        for wrong in (codes[:3], codes.astype(np.int32)):
            with pytest.raises(ValueError, match="codes must have shape"):
                encode(X, prepared, codes=wrong)
        for wrong in (codes[:, :1], codes.astype(np.int32)):
            with pytest.raises(ValueError, match="codes must have shape"):
                decode(wrong, prepared)
        with pytest.raises(ValueError, match="out must have shape"):
            decode(codes, prepared, out=X[:2])
    with pytest.raises(ValueError, match="codes must be below 3"):
        kernels.decode_levels(codes + np.uint8(3), levels)
