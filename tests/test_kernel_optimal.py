"""The exact one-dimensional codebook: against exhaustive search, in exact fractions where costs
are small differences, and in what must hold for any values."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastvq import _optimal, kernels, reference


def exact_inertia(values, codebook, weight=None):
    """Σ w·min (x − c)² in fractions."""
    weight = [1] * len(values) if weight is None else weight
    levels = [Fraction(float(c)) for c in codebook]
    return sum(
        Fraction(float(w)) * min((Fraction(float(x)) - c) ** 2 for c in levels)
        for x, w in zip(values, weight, strict=True)
    )


def least_inertia(values, k, weight=None):
    """The same of the best codebook: every way to cut the values is tried, in fractions."""
    weight = [1] * len(values) if weight is None else weight
    pairs = sorted(
        (Fraction(float(x)), Fraction(float(w))) for x, w in zip(values, weight, strict=True)
    )
    best = None
    for inner in itertools.combinations(range(1, len(pairs)), min(k, len(pairs)) - 1):
        total = Fraction(0)
        for start, stop in itertools.pairwise([0, *inner, len(pairs)]):
            part = [(x, w) for x, w in pairs[start:stop] if w]
            if part:
                mean = sum(x * w for x, w in part) / sum(w for _, w in part)
                total += sum(w * (x - mean) ** 2 for x, w in part)
        best = total if best is None else min(best, total)
    return best


def assert_best(values, k, weight=None):
    codebook = kernels.optimal_codebook(values, k, sample_weight=weight)
    assert codebook.shape == (k,) and codebook.dtype == values.dtype
    assert (np.diff(codebook) >= 0).all()
    best = least_inertia(values, k, weight)
    # Rounding a codeword costs the square of what it moves by: of a few units in its last place.
    ulp = Fraction(float(np.spacing(np.abs(values).max())))
    total = Fraction(len(values)) if weight is None else Fraction(float(np.sum(weight)))
    slack = best * Fraction(1, 10**12) + 4 * ulp**2 * total
    assert exact_inertia(values, codebook, weight) <= best + slack


DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "uniform": lambda rng, n: rng.random(n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "skewed": lambda rng, n: rng.lognormal(0, 3, n),
    "integers": lambda rng, n: rng.integers(0, 12, n).astype(float),
    "evenly spaced": lambda rng, n: np.arange(n, dtype=float),
    "far from the origin": lambda rng, n: rng.standard_normal(n) * 1e-3 + 1e9,
    "tight groups": lambda rng, n: rng.integers(0, 3, n) * 1e6 + rng.standard_normal(n) * 1e-3,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_exhaustive(name):
    rng = np.random.default_rng(0)
    for n, k in [(1, 1), (2, 1), (2, 2), (5, 2), (9, 3), (9, 4), (10, 5), (11, 8), (12, 11)]:
        for dtype in (np.float64, np.float32):
            values = DISTRIBUTIONS[name](rng, n).astype(dtype)
            assert_best(values, k)
            weight = rng.integers(0, 4, n) / 2.0
            weight[0] = 0.25
            assert_best(values, k, weight)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("k", [1, 2, 3, 7, 16, 31, 60])
def test_dynamic_programming(name, k):
    """The twin, at sizes that exhaust nobody."""
    values = DISTRIBUTIONS[name](np.random.default_rng(k), 97)
    weight = np.random.default_rng(1).uniform(0.1, 3, 97)
    for w in (None, weight):
        ours = kernels.optimal_codebook(values, k, sample_weight=w)
        twin = reference.optimal_codebook(values, k, sample_weight=w)
        best, found = exact_inertia(values, twin, w), exact_inertia(values, ours, w)
        assert found <= best * (1 + Fraction(1, 10**9)) + Fraction(1, 10**24)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_price_is_a_certificate(name):
    """At larger sizes: no cut into k segments can cost less than Lagrange's lower bound, the least
    cost of any cut at some price per segment, less the price of k; and ours costs no more."""
    values = np.unique(DISTRIBUTIONS[name](np.random.default_rng(0), 30_000))
    held = _optimal.Values(values)
    search = _optimal._Search(held)
    for k in {2, 5, 32, 257, 4000} & set(range(len(values))):
        cut = _optimal.optimal_cut(held, k)
        assert cut.n == k == len(cut.starts) and (np.diff(cut.starts) > 0).all()
        fewer, more = (_optimal.optimal_cut(held, n).cost for n in (k - 1, k + 1))
        assert fewer >= cut.cost >= more
        price = (fewer - more) / 2
        bound = search.cheapest(price)
        assert cut.cost + price * k <= (bound.cost + price * bound.n) * (1 + 1e-13)


def test_where_no_price_buys_the_number():
    """Evenly spaced values, alone or in pairs: the cost is straight over long stretches of k."""
    for values in (np.arange(64.0), np.repeat(np.arange(20.0) * 10, 3) + np.tile([0, 1, 2], 20)):
        held = _optimal.Values(values)
        for k in range(1, len(values) + 1):
            cut = _optimal.optimal_cut(held, k)
            assert cut.n == k
            sizes = [len(part) for part in np.split(values, cut.starts[1:])]
            if values[1] == 1 and values[3] == 3:
                # Lengths that differ by more than one would cost more.
                assert max(sizes) - min(sizes) <= 1
            elif k <= 20:
                continue
            else:
                # Groups of three: each cut off value saves 1.5, the next one 0.5.
                expected = max(20 * 2 - 1.5 * (k - 20), 0) if k <= 40 else (60 - k) * 0.5
                assert np.ldexp(cut.cost, 2 * held.exponent) == pytest.approx(expected)


def test_clusters_of_equal_cost():
    """All cuts between the same: every number between the fewest and the most must come out."""
    values = np.sort(np.concatenate([np.arange(50) * 1e3, np.arange(50) * 1e3 + 1]))
    for k in range(50, 101):
        codebook = kernels.optimal_codebook(values, k)
        assert len(np.unique(codebook)) == k
        assert float(exact_inertia(values, codebook)) == pytest.approx((100 - k) * 0.5, abs=1e-12)


def test_few_distinct_values():
    values = np.float32([3, 1, 1, 2, 3])
    np.testing.assert_array_equal(kernels.optimal_codebook(values, 5), [1, 2, 3, 3, 3])
    np.testing.assert_array_equal(kernels.optimal_codebook(values[:1], 3), [3, 3, 3])
    weight = np.array([1, 1, 1, 0, 1.0])
    np.testing.assert_array_equal(
        kernels.optimal_codebook(values, 3, sample_weight=weight), [1, 3, 3]
    )


@pytest.mark.parametrize("scale", [1e-310, 1e-150, 1e150, 1e290])
def test_values_of_any_size(scale):
    values = np.random.default_rng(0).standard_normal(300)
    usual = kernels.optimal_codebook(values, 9)
    found = kernels.optimal_codebook(values * scale, 9)
    np.testing.assert_allclose(found / scale, usual, rtol=0, atol=1e-10)


@given(
    st.integers(1, 60).flatmap(lambda n: arrays(np.float64, n, elements=st.floats(-1e6, 1e6))),
    st.integers(1, 20),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_properties(values, k, data):
    counts = data.draw(arrays(np.int64, len(values), elements=st.integers(0, 3)))
    counts[0] += 1
    codebook = kernels.optimal_codebook(values, k, sample_weight=counts.astype(float))
    repeated = kernels.optimal_codebook(values.repeat(counts), k)
    np.testing.assert_array_equal(codebook, repeated)
    kept = values[counts > 0]
    assert kept.min() <= codebook[0] and codebook[-1] <= kept.max()
    weight = counts.astype(float)
    found, more = (
        exact_inertia(values, book, weight)
        for book in (codebook, kernels.optimal_codebook(values, k + 1, sample_weight=weight))
    )
    slack = Fraction(float(np.spacing(np.abs(values).max()))) ** 2 * 4 * int(counts.sum())
    assert more <= found * (1 + Fraction(1, 10**12)) + slack


def test_memory_is_linear(monkeypatch):
    import tracemalloc

    values = np.random.default_rng(0).standard_normal(200_000)
    tracemalloc.start()
    kernels.optimal_codebook(values, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * len(values)


def test_calls_do_not_show(monkeypatch):
    values = np.random.default_rng(0).standard_normal(3000)
    expected = kernels.optimal_codebook(values, 50)
    monkeypatch.setattr(_optimal, "_CALL", 7)
    np.testing.assert_array_equal(kernels.optimal_codebook(values, 50), expected)


def test_arguments_are_checked():
    good = np.arange(4.0)
    for bad in (good[None], good[:0], good.astype(int), np.array([np.nan]), np.array([1e305])):
        with pytest.raises(ValueError, match="values must"):
            kernels.optimal_codebook(bad, 2)
    for weight in (-good, good * 0, np.full(4, np.inf)):
        with pytest.raises(ValueError, match="sample_weight must"):
            kernels.optimal_codebook(good, 2, sample_weight=weight)
    with pytest.raises(ValueError, match="sample_weight must have shape"):
        kernels.optimal_codebook(good, 2, sample_weight=good[:2])
