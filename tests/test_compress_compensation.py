"""Compensated rounding: against the textbook form, on data of every kind, and what is refused."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fastvq.compress.compensation import Gram, compensated, compensated_groups, output_error

RNG = np.random.default_rng(0)


def correlated(n_rows, k, rank=None):
    mixing = RNG.normal(size=(rank or k, k)) * np.exp(RNG.normal(size=k))
    return (RNG.normal(size=(n_rows, rank or k)) @ mixing).astype("f4")


def steps_of(weight, bits=4):
    scale = np.abs(weight).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    return lambda values, columns: np.rint(values / scale) * scale


def by_surgeon(weight, hessian, rounding, order):
    """Optimal Brain Surgeon as it is written: the inverse of what is left, at every step."""
    weight, rounded, left = weight.copy(), np.empty_like(weight), list(order)
    for j in order:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        at = left.index(j)
        rounded[:, j] = rounding(weight[:, [j]], np.array([j]))[:, 0]
        error = (weight[:, j] - rounded[:, j]) / inverse[at, at]
        weight[:, left] -= np.outer(error, inverse[at])
        left.remove(j)
    return rounded


@pytest.mark.parametrize("k", [1, 7, 150])
def test_as_optimal_brain_surgeon(k):
    x = correlated(2 * k + 5, k)
    gram, weight = x.T.astype("f8") @ x, RNG.normal(size=(6, k))
    rounding = steps_of(weight)
    damped = gram + 0.1 * np.diagonal(gram).mean() * np.eye(k)
    order = np.argsort(-np.diagonal(gram), kind="stable")
    wanted = by_surgeon(weight, damped, rounding, order)
    np.testing.assert_allclose(compensated(weight, gram, rounding), wanted, rtol=1e-6)
    wanted = by_surgeon(weight, damped, rounding, np.arange(k))
    found = compensated(weight, gram, rounding, ordered=False)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("rank", [3, 64])
@pytest.mark.parametrize("n_rows", [1, 20, 500])
def test_better_than_rounding(n_rows, rank):
    """Also of data that spans less than all directions."""
    x, weight = correlated(n_rows, 64, rank), RNG.normal(size=(16, 64))
    gram = x.T.astype("f8") @ x / n_rows
    rounding = steps_of(weight)
    plain = output_error(weight, rounding(weight, None), gram).sum()
    found = output_error(weight, compensated(weight, gram, rounding), gram).sum()
    assert found < 0.7 * plain


def test_parts():
    """Columns that are rounded together: to the nearest of a few codewords."""
    x, weight = correlated(400, 24), RNG.normal(size=(50, 24))
    gram = x.T.astype("f8") @ x
    parts = np.arange(24).reshape(6, 4)
    codewords = RNG.normal(size=(1000, 4), scale=1.5)
    seen = []

    def nearest(values, columns):
        seen.append(tuple(columns))
        return codewords[((values[:, None] - codewords) ** 2).sum(axis=2).argmin(axis=1)]

    found = compensated(weight, gram, nearest, parts=parts)
    assert sorted(seen) == [tuple(part) for part in parts]
    assert all(any((row == c).all() for c in codewords) for row in found[:, parts[2]])
    plain = np.hstack([nearest(weight[:, part], part) for part in parts])
    better = output_error(weight, found, gram).sum()
    assert better < 0.9 * output_error(weight, plain, gram).sum()
    one_by_one = compensated(weight, gram, steps_of(weight), parts=np.arange(24)[:, None])
    np.testing.assert_array_equal(one_by_one, compensated(weight, gram, steps_of(weight)))


def test_groups():
    """Each group as by itself, also where some of its inputs are dead."""
    grams = np.stack([(x := correlated(50, 9)).T.astype("f8") @ x for _ in range(7)])
    grams[3], grams[4, 2], grams[4, :, 2] = 0, 0, 0
    weights = RNG.normal(size=(7, 2, 9))
    found = compensated_groups(weights, grams, lambda values, columns: np.rint(4 * values) / 4)
    for weight, gram, one in zip(weights, grams, found, strict=True):
        alone = compensated(weight, gram, lambda values, columns: np.rint(4 * values) / 4)
        np.testing.assert_array_equal(one, alone)
    alone = compensated_groups(weights[:1], grams[:1], lambda values, columns: np.rint(values))
    wanted = compensated(weights[0], grams[0], lambda values, columns: np.rint(values))
    np.testing.assert_array_equal(alone[0], wanted)
    with pytest.raises(ValueError, match="do not go together"):
        compensated_groups(weights, grams[:2], lambda values, columns: values)


def test_dead_inputs():
    x, weight = correlated(100, 20), RNG.normal(size=(5, 20))
    x[:, ::4] = 0
    gram, rounding = x.T.astype("f8") @ x, steps_of(weight)
    found = compensated(weight, gram, rounding)
    np.testing.assert_array_equal(found[:, ::4], rounding(weight, None)[:, ::4])
    alive = np.arange(20) % 4 > 0
    alone = compensated(
        weight[:, alive], gram[np.ix_(alive, alive)], lambda v, c: rounding(v, c), damping=0.0
    )
    np.testing.assert_array_equal(compensated(weight, gram, rounding, damping=0.0)[:, alive], alone)
    nothing = compensated(weight, np.zeros((20, 20)), rounding)
    np.testing.assert_array_equal(nothing, rounding(weight, None))


def test_the_same_at_any_number_of_threads():
    x, weight = correlated(3000, 200), RNG.normal(size=(300, 200))
    found = []
    for threads in (1, 2, 5):
        with threadpool_limits(threads, user_api="blas"):
            gram = Gram(np.abs(x).max(axis=0))
            gram.add(x[:1700])
            gram.add(x[1700:])
            found.append(compensated(weight, gram.mean(), steps_of(weight)).tobytes())
    assert len({*found}) == 1


def test_gram():
    x = correlated(5000, 30)
    x[:, 3] = 0
    whole, parts = Gram(np.abs(x).max(axis=0)), Gram(np.abs(x).max(axis=0))
    whole.add(x)
    for start in range(0, len(x), 333):
        parts.add(x[start : start + 333])
    np.testing.assert_array_equal(parts.mean(), whole.mean())
    exact = x.T.astype("f8") @ x / len(x)
    size = np.sqrt(np.outer(np.diagonal(exact), np.diagonal(exact)))
    np.testing.assert_allclose(whole.mean(), exact, atol=2e-3 * size.max())
    assert (Gram(np.ones(4)).mean() == 0).all()


@pytest.mark.parametrize(
    ("weight", "gram", "parts", "message"),
    [
        (np.ones((2, 3)), np.eye(4), None, "do not go together"),
        (np.ones(3), np.eye(3), None, "do not go together"),
        (np.full((2, 3), np.nan), np.eye(3), None, "must be finite"),
        (np.ones((2, 3)), np.full((3, 3), np.inf), None, "must be finite"),
        (np.ones((2, 3)), np.eye(3), [[0, 1]], "each of 3 columns once"),
        (np.ones((2, 3)), np.eye(3), [[0, 1], [1, 2]], "each of 3 columns once"),
        (np.ones((2, 3)), np.eye(3), [[0, 1], [3]], "each of 3 columns once"),
    ],
)
def test_refused(weight, gram, parts, message):
    with pytest.raises(ValueError, match=message):
        compensated(weight, gram, lambda values, columns: values, parts=parts)
