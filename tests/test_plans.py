"""The plans of a fit: each gives the bits of the plain one, whatever it skips."""

import itertools

import numpy as np
import pytest
from oracles import assert_nearest, assert_same_bits, decaying
from sklearn.datasets import load_digits, make_blobs

from fastvq import _screen, _threads, kernels
from fastvq.vq import VectorQuantizer, _plans
from fastvq.vq._plans import (
    BoundedAssigner,
    BoxedAssigner,
    PlainAssigner,
    ScreenedAssigner,
    choose,
)
from fastvq.vq._rows import Rows


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; else one."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


@pytest.fixture
def assigned(monkeypatch):
    """How many rows each call of kernels.assign was asked for."""
    numbers = []
    assign = kernels.assign

    def count(*args, **options):
        codes = assign(*args, **options)
        numbers.append(len(codes))
        return codes

    monkeypatch.setattr(kernels, "assign", count)
    return numbers


# Data of every kind ------------------------------------------------------------------------------


def digits(dtype):
    return load_digits().data.astype(dtype)


def blobs(dtype):
    return make_blobs(3000, 24, centers=40, cluster_std=0.5, random_state=0)[0].astype(dtype)


def white(dtype):
    return np.random.RandomState(1).standard_normal((2000, 20)).astype(dtype)


def decaying_spectrum(dtype):
    return decaying(np.random.RandomState(2), 2000, 64, 0.8).astype(dtype)


def tight_ties(dtype):
    """Integers with hundreds of rows equally near to several codewords."""
    return np.random.RandomState(3).randint(0, 3, (2000, 6)).astype(dtype)


def far_from_origin(dtype):
    return (1e4 + white(np.float64)).astype(dtype)


def two_groups(dtype):
    X = white(np.float64)
    X[::2] += 2e3
    return X.astype(dtype)


def colours(dtype):
    """Few features, values repeated, and codewords that lie close together."""
    rng = np.random.RandomState(4)
    return np.rint(rng.gamma(2, 20, (3000, 3)) @ rng.rand(3, 3)).astype(dtype)


def plane(dtype):
    X = np.random.RandomState(5).standard_normal((3001, 2)) * [100, 1e-3] + [0, 5]
    return X.astype(dtype)


FEW_FEATURES = [colours, plane, tight_ties]
DATA = [*FEW_FEATURES, digits, blobs, white, decaying_spectrum, far_from_origin, two_groups]
each_kind = pytest.mark.parametrize("make", DATA, ids=lambda make: make.__name__)


def some_of(X, k, seed=0):
    return X[np.random.RandomState(seed).choice(len(X), k, replace=False)].copy()


def lloyd(rows, codebook, *plans, n_iter=12):
    """Lloyd's iterations by the first plan; the others must give its bits in each of them. The last
    codebook, and in how many iterations a code changed."""
    changes, before = 0, None
    for iteration in range(n_iter):
        codes, distances = plans[0].step(codebook)
        for plan in plans[1:]:
            note = f"{type(plan).__name__} in iteration {iteration}"
            assert_same_bits(plan.step(codebook), (codes, distances), note)
        changes += before is not None and (codes != before).any()
        before = codes.copy()
        codebook = rows.centroids(*rows.sums(codes, len(codebook)), codebook)
    return codebook, changes


def all_plans(rows):
    plans = [PlainAssigner(rows), BoundedAssigner(rows)]
    if rows.n_features <= 12:
        plans.append(BoxedAssigner(rows))
    if rows.dtype == np.float32 and rows.n_features >= _screen.FEATURES:
        sample = rows.take(np.arange(0, len(rows), 3))
        plans.append(ScreenedAssigner(rows, _screen.Directions(sample)))
    return plans


# Each plan gives the plain one's bits -------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_in_every_iteration(make, dtype):
    X = make(dtype)
    rows = Rows(X, dtype=dtype)
    plans = all_plans(rows)
    screened = dtype == "float32" and X.shape[1] == 64
    assert len(plans) == 2 + screened + (X.shape[1] <= 12)
    _, changes = lloyd(rows, some_of(X, 40), *plans)
    assert changes >= 5  # else the iterations would repeat the first


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("make", [digits, decaying_spectrum, colours])
def test_subsets_weights_and_threads(make, threads):
    X = make("float32")
    weight = np.random.RandomState(4).uniform(0, 2, len(X))
    rows = Rows(X, weight=weight, dtype=np.float32, n_threads=threads)
    some = rows.subset(np.arange(1, len(X), 2))
    codebook = some_of(X, 40)
    last, changes = lloyd(some, codebook, *all_plans(some))
    assert changes >= 5
    alone = Rows(X[1::2].copy(), weight=weight[1::2].copy(), dtype=np.float32, n_threads=1)
    assert_same_bits(lloyd(alone, codebook, *all_plans(alone))[0], last)


@pytest.mark.parametrize("make", [digits, tight_ties])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16"])
def test_other_types_of_rows(make, dtype):
    X = make("float32").astype(dtype)
    rows = Rows(np.asfortranarray(X), dtype=np.float32)
    lloyd(rows, some_of(X, 40).astype(np.float32), *all_plans(rows))


@pytest.mark.parametrize("make", [digits, two_groups, *FEW_FEATURES])
def test_codewords_that_jump(make):
    """Codewords come from nowhere, double another, leave for good and come back, as they do when
    empty ones are seeded again: bounds must not outlive what they were made for."""
    X = make("float32")
    rows, rng = Rows(X, dtype=np.float32), np.random.RandomState(5)
    plans = all_plans(rows)
    first = codebook = some_of(X, 40)
    for iteration in range(15):
        expected = plans[0].step(codebook)
        for plan in plans[1:]:
            note = f"{type(plan).__name__} in iteration {iteration}"
            assert_same_bits(plan.step(codebook), expected, note)
        assert_nearest(expected[0], X, codebook)
        codebook = codebook.copy()
        which = rng.randint(0, 40, 2)
        if iteration % 5 == 4:
            codebook = first
        elif iteration % 5 == 3:
            codebook[which[0]] = codebook[which[1]]
        elif iteration % 5 == 2:
            codebook[which[0]] += 1e4
        else:
            codebook[which] = X[rng.randint(0, len(X), 2)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_codewords_that_hardly_move(dtype):
    """By units in the last place, about rows on the middle between two of them."""
    rng = np.random.RandomState(6)
    eps = np.finfo(dtype).eps
    codebook = rng.standard_normal((40, 16)).astype(dtype)
    i, j = rng.randint(0, 40, (2, 2000))
    X = ((codebook[i] + codebook[j]) / 2).astype(dtype)
    near = 0.9 * codebook + 0.1 * X[:40]
    X = np.concatenate([X, codebook + (codebook - near) * 1e-3, near]).astype(dtype)
    rows = Rows(X, dtype=dtype)
    plans, changes, before = all_plans(rows), 0, None
    for iteration in range(12):
        expected = plans[0].step(codebook)
        for plan in plans[1:]:
            assert_same_bits(plan.step(codebook), expected, f"iteration {iteration}")
        changes += before is not None and (before != expected[0]).any()
        before = expected[0].copy()
        steps = rng.randint(-2, 3, codebook.shape) * eps * np.abs(codebook)
        codebook = (codebook + steps).astype(dtype)
    assert changes > 5


# That they skip, and notice ----------------------------------------------------------------------


def test_bounds_keep_rows(assigned, monkeypatch):
    monkeypatch.setattr(_plans, "perf_counter", lambda: 0)  # they always pay
    X = blobs("float32")
    rows = Rows(X, dtype=np.float32)
    lloyd(rows, some_of(X, 40), BoundedAssigner(rows))
    assert assigned[0] == len(X)
    assert 0 < sum(assigned[6:]) < 0.3 * len(X) * 6


@pytest.mark.parametrize("make", [digits, blobs, tight_ties])
def test_bounds_that_do_not_pay_are_left_alone(make, assigned, monkeypatch):
    """A clock by which looking at bounds takes ever longer: ever more iterations go without."""
    clock = itertools.count()
    monkeypatch.setattr(_plans, "perf_counter", lambda: next(clock) ** 2)
    X = make("float32")
    rows = Rows(X, dtype=np.float32)
    lloyd(rows, some_of(X, 40), PlainAssigner(rows), BoundedAssigner(rows), n_iter=25)
    by_bounds = [numbers for numbers in assigned if numbers < len(X)]
    assert len(by_bounds) < 8


def test_bounds_with_pauses_of_every_length(monkeypatch):
    rng = np.random.RandomState(8)
    clock = iter(rng.uniform(0, 1, 1000).cumsum())
    monkeypatch.setattr(_plans, "perf_counter", lambda: next(clock))
    X = digits("float32")
    rows = Rows(X, dtype=np.float32)
    lloyd(rows, some_of(X, 40), PlainAssigner(rows), BoundedAssigner(rows), n_iter=30)


def test_boxes_replace_assigning_and_give_way_where_they_do_not_pay(assigned, monkeypatch):
    X = colours("float32")
    rows = Rows(X, dtype=np.float32)
    monkeypatch.setattr(_plans, "perf_counter", lambda: 0)
    lloyd(rows, some_of(X, 40), BoxedAssigner(rows), n_iter=12)
    assert len(assigned) <= _plans._BEFORE_BOXES
    del assigned[:]
    clock = itertools.count()
    monkeypatch.setattr(_plans, "perf_counter", lambda: next(clock) ** 2)
    lloyd(rows, some_of(X, 40), PlainAssigner(rows), BoxedAssigner(rows), n_iter=20)
    assert len(assigned) > 20 + _plans._BEFORE_BOXES


def test_screening_replaces_assigning(assigned):
    X = decaying_spectrum("float32")
    rows = Rows(X, dtype=np.float32)
    plan = ScreenedAssigner(rows, _screen.Directions(X))
    lloyd(rows, some_of(X, 40), plan)
    assert not assigned


def test_a_bound_that_is_too_high_would_be_noticed(monkeypatch):
    monkeypatch.setattr(_plans, "_moved_by_others", lambda before, after: np.zeros(len(after)))
    X = digits("float32")
    rows = Rows(X, dtype=np.float32)
    with pytest.raises(AssertionError, match="BoundedAssigner in iteration"):
        lloyd(rows, some_of(X, 40), PlainAssigner(rows), BoundedAssigner(rows))


def test_how_far_others_moved():
    before = np.zeros((4, 2), np.float32)
    after = np.float32([[3, 4], [0, 1], [0, 0], [0, 2]])
    np.testing.assert_array_equal(_plans._moved_by_others(before, after), [2, 5, 5, 5])
    same = after[[1, 1, 2, 2]]
    np.testing.assert_array_equal(_plans._moved_by_others(before, same), [1, 1, 1, 1])


def test_a_single_codeword_has_no_others():
    one = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(_plans._moved_by_others(one, 2 * one), [0])
    X = digits("float32")
    rows = Rows(X, dtype=np.float32)
    lloyd(rows, some_of(X, 1), PlainAssigner(rows), BoundedAssigner(rows))


def test_bounds_hold_in_every_iteration():
    """What a plan keeps for a row never exceeds the distance to any codeword but its own."""
    X = digits("float32")
    rows = Rows(X, dtype=np.float32)
    plan, codebook, positive = BoundedAssigner(rows), some_of(X, 40), 0
    for _ in range(12):
        codes, _ = plan.step(codebook)
        exact = np.linalg.norm(X[:, None].astype(np.float64) - codebook, axis=2)
        exact[np.arange(len(X)), codes] = np.inf
        assert (plan._lower <= exact.min(axis=1)).all()
        positive += (plan._lower > 0).mean()
        codebook = rows.centroids(*rows.sums(codes, 40), codebook)
    assert positive > 0.5 * 12


# The choice --------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("k", [2, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_some_plan_for_everything(make, k, dtype, monkeypatch):
    monkeypatch.setattr(_plans, "_SCREEN_WORK", 1)
    X = make(dtype)
    rows = Rows(X, dtype=dtype)
    codebook = some_of(X, k)
    plan = choose(rows, codebook)
    assert isinstance(plan, PlainAssigner)
    assert type(plan) is PlainAssigner or k >= 32
    assert_same_bits(plan.step(codebook), PlainAssigner(rows).step(codebook))


@pytest.mark.parametrize(("wins", "kind"), [(True, ScreenedAssigner), (False, BoundedAssigner)])
def test_the_trial_decides(wins, kind, monkeypatch):
    monkeypatch.setattr(_plans, "_SCREEN_WORK", 1)
    monkeypatch.setattr(_plans, "_screening_wins", lambda *args: wins)
    X = decaying_spectrum("float32")
    assert type(choose(Rows(X, dtype=np.float32), some_of(X, 40))) is kind
    # Where screening is of no use it is not tried.
    white_rows = np.random.RandomState(0).standard_normal((3000, 64)).astype(np.float32)
    assert type(choose(Rows(white_rows, dtype=np.float32), white_rows[:40])) is BoundedAssigner
    assert type(choose(Rows(X, dtype=np.float32), some_of(X, 20))) is PlainAssigner


@each_kind
@pytest.mark.parametrize(
    ("dtype", "wins"), [("float32", True), ("float32", False), ("float64", False)]
)
def test_auto_ends_with_the_codebook_of_lloyd(make, dtype, wins, monkeypatch):
    monkeypatch.setattr(_plans, "_SCREEN_WORK", 1)
    monkeypatch.setattr(_plans, "_screening_wins", lambda *args: wins)
    X = make(dtype)
    fits = []
    for algorithm in ("lloyd", "auto"):
        quantizer = VectorQuantizer(
            40, init=some_of(X, 40), algorithm=algorithm, max_iter=15, tol=0
        )
        fits.append(quantizer.fit(X, sample_weight=np.arange(len(X)) % 5 + 0.25))
    plain, auto = fits
    assert plain.n_iter_ >= 5
    assert_same_bits(auto.codebook_, plain.codebook_)
    assert auto.inertia_ == plain.inertia_
    assert_same_bits(auto.transform(X), plain.transform(X))


def test_auto_where_codewords_have_no_rows():
    """Ones that start out of the way are seeded again; that must not depend on the plan either."""
    X = digits("float32")
    init = some_of(X, 40)
    init[::4] += 1000
    fits = [
        VectorQuantizer(40, init=init, algorithm=algorithm, max_iter=20, tol=0).fit(X)
        for algorithm in ("lloyd", "auto")
    ]
    assert np.abs(fits[0].codebook_).max() < 100
    assert_same_bits(fits[1].codebook_, fits[0].codebook_)
