"""Screening by leading coordinates: the codes of `assign` and the bits of `distances`, always."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROW_DTYPES, THREADS, assert_same_bits, decaying, layouts

from fastvq import _screen, _threads, kernels

# Broken blocks of 16 and 48 rows, broken groups of 6 and 8 codewords; odd numbers of features.
SHAPES = [(1, 64, 32), (15, 65, 33), (17, 97, 35), (16, 64, 48), (49, 70, 61), (47, 80, 64),
          (200, 64, 40), (97, 128, 97)]  # fmt: skip


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do; else one."""
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    monkeypatch.setattr(_threads, "_setting", 1)


@pytest.fixture
def settled(monkeypatch):
    """How many rows screening left to differences, one number a call."""
    numbers = []
    settle = kernels._assign.settle

    def count(*args):
        numbers.append(len(rows := settle(*args)))
        return rows

    monkeypatch.setattr(kernels._assign, "settle", count)
    return numbers


def screen_of(codebook, sample=None):
    return _screen.Screen(codebook, _screen.Directions(codebook if sample is None else sample))


def assert_screened_is_assigned(X, codebook, screen, note="", **options):
    """Codes are those of `assign`, and distances, guesses or not, those of `distances`."""
    expected = kernels.assign(X, codebook)
    near = kernels.distances(X, codebook, expected)
    found = np.full(len(X), np.nan, np.float32)
    codes = kernels.assign_screened(X, codebook, screen, distances=found, **options)
    assert_same_bits((codes, found), (expected, near), note)


# Data of every kind ------------------------------------------------------------------------------


def white(rng, n, d):
    return rng.standard_normal((n, d))


def decaying_fast(rng, n, d):
    return decaying(rng, n, d, 0.7)


def decaying_slowly(rng, n, d):
    return decaying(rng, n, d, 0.97)


def integers(rng, n, d):
    return rng.randint(-1, 2, (n, d)) * (np.arange(d) < 6)  # many equal rows, many ties


def far_from_origin(rng, n, d):
    return 1e4 + decaying(rng, n, d)


def two_groups(rng, n, d):
    return 1e3 * np.where(np.arange(n) % 2, 1, -1)[:, None] + decaying(rng, n, d)


def a_line(rng, n, d):
    """All in the first direction: nothing is left for the others."""
    return rng.standard_normal((n, 1)) * np.linspace(1, 2, d)


def a_point(rng, n, d):
    return np.ones((n, d))


def wide_range(rng, n, d):
    return decaying(rng, n, d) * 10.0 ** rng.randint(-4, 5, (n, 1))


DATA = [white, decaying_fast, decaying_slowly, integers, far_from_origin, two_groups, a_line,
        a_point, wide_range]  # fmt: skip
each_kind = pytest.mark.parametrize("make", DATA, ids=lambda make: make.__name__)


@each_kind
def test_awkward_sizes(make):
    for n, d, k in SHAPES if make is decaying_fast else SHAPES[::2]:
        rng = np.random.RandomState(n + d + k)
        values = make(rng, n + k, d).astype(np.float32)
        X, codebook = values[:n], values[n:]
        assert_screened_is_assigned(X, codebook, screen_of(codebook), (n, d, k))
        if n > 1:  # directions of the rows instead; with few of them, most directions are arbitrary
            assert_screened_is_assigned(X, codebook, screen_of(codebook, X), (n, d, k))


@each_kind
def test_guesses_and_kept_coordinates(make):
    rng = np.random.RandomState(7)
    values = make(rng, 250, 72).astype(np.float32)
    X, codebook = values[:200], values[200:]
    screen = screen_of(codebook, X)
    right = kernels.assign(X, codebook)
    kept = kernels.project(X, screen.directions)
    assert kept.shape == (200, screen.directions.n_all + 2)
    for guesses in (
        None,
        right,
        np.where(np.arange(200) % 3, right, 0).astype(np.int32),
        rng.randint(0, 50, 200).astype(np.int32),
        np.full(200, 49, np.int32),
    ):
        for short_rows in (None, kept):
            options = {"guesses": guesses, "short_rows": short_rows}
            assert_screened_is_assigned(X, codebook, screen, options, **options)
    # As a fit does it: codes are written over the guesses they come from.
    codes = rng.randint(0, 50, 200).astype(np.int32)
    kernels.assign_screened(X, codebook, screen, short_rows=kept, guesses=codes, codes=codes)
    assert_same_bits(codes, right)


@each_kind
def test_near_ties(make):
    """Rows on the middle between codewords and codewords that are there twice."""
    rng = np.random.RandomState(3)
    codebook = make(rng, 60, 64).astype(np.float32)
    codebook[40:] = codebook[:20]
    i, j = rng.randint(0, 60, (2, 300))
    X = ((codebook[i] + codebook[j]) / 2).astype(np.float32)
    X += (rng.randint(-1, 2, X.shape) * np.abs(X) * 6e-8).astype(np.float32)
    assert_screened_is_assigned(X, codebook, screen_of(codebook))
    assert kernels.assign(X, codebook).max() < 40


def test_rows_at_the_centre():
    """Rows that are the centre itself have coordinates of zero, and no error to divide by."""
    half = decaying(np.random.RandomState(4), 40, 64).round(2)
    X = np.concatenate([half, -half, np.zeros((20, 64), np.float32)])
    codebook = np.concatenate([X[:60], X[-1:] + np.float32(0.01)])
    screen = screen_of(codebook, X)
    screen.directions.shift[:] = 0  # as the mean of X is, but for rounding
    screen = _screen.Screen(codebook, screen.directions)
    for guess in (None, 0, 59, 60):
        guesses = None if guess is None else np.full(len(X), guess, np.int32)
        assert_screened_is_assigned(X, codebook, screen, f"guess {guess}", guesses=guesses)


@pytest.mark.parametrize("dtype", ROW_DTYPES)
def test_rows_of_other_types_and_layouts(dtype, tmp_path):
    rng = np.random.RandomState(5)
    values = decaying(rng, 150, 66, 0.8) * 20
    X, codebook = values[:97].astype(dtype), values[97:]
    screen = screen_of(codebook)
    for name, same in layouts(X, tmp_path).items():
        assert_screened_is_assigned(same, codebook, screen, name)
        np.testing.assert_array_equal(same, X, name)
    one_row = np.broadcast_to(X[0], X.shape)
    assert_screened_is_assigned(one_row, codebook, screen)


def test_coordinates_of_a_row_alone():
    rng = np.random.RandomState(6)
    X = decaying(rng, 97, 70)
    directions = _screen.Directions(X)
    expected = kernels.project(X, directions, n_threads=1)
    for threads in THREADS:
        assert_same_bits(kernels.project(X, directions, n_threads=threads), expected)
        for rows in (np.arange(97)[::-1], np.array([5, 5, 96]), np.array([33])):
            part = kernels.project(X, directions, rows=rows, n_threads=threads)
            assert_same_bits(part, expected[rows])


def test_rows_codes_threads_and_calls(monkeypatch):
    rng = np.random.RandomState(8)
    values = decaying(rng, 3040, 64)
    X, codebook = values[:3000], values[3000:]
    screen = screen_of(codebook)
    expected = kernels.assign(X, codebook)
    near = kernels.distances(X, codebook, expected)
    rows = rng.randint(0, 3000, 2500)
    for call_work in (kernels._call.CALL_WORK, 1):
        monkeypatch.setattr(kernels._call, "CALL_WORK", call_work)
        for threads in THREADS:
            for dtype in ("uint8", "uint16", "uint32", "int32"):
                codes, found = np.empty(2500, dtype), np.empty(2500, np.float32)
                result = kernels.assign_screened(
                    X, codebook, screen, rows=rows, codes=codes, distances=found, n_threads=threads
                )
                assert result is codes
                np.testing.assert_array_equal(codes, expected[rows])
                assert_same_bits(found, near[rows])
            options = {
                "short_rows": kernels.project(X, screen.directions, n_threads=threads),
                "guesses": expected[::-1].copy(),
                "n_threads": threads,
            }
            assert_screened_is_assigned(X, codebook, screen, **options)


# That it screens ---------------------------------------------------------------------------------


def test_few_rows_are_left_to_differences(settled):
    """Else the codes would be right whatever the bounds were, and these tests worth nothing."""
    rng = np.random.RandomState(9)
    values = decaying(rng, 1100, 64)
    kernels.assign_screened(values[:1000], values[1000:], screen_of(values[1000:]))
    assert sum(settled) < 10
    twice = np.concatenate([values[1000:]] * 2)
    kernels.assign_screened(values[:1000], twice, screen_of(twice))
    assert settled[-1] == 1000


def test_a_bound_that_is_too_high_would_be_noticed(settled):
    """Coordinates that claim to be farther off than they are: nearest codewords are missed."""
    rng = np.random.RandomState(10)
    values = decaying(rng, 1100, 64)
    X, codebook = values[:1000], values[1000:]
    screen = screen_of(codebook)
    wrong = kernels.project(X, screen.directions) * np.float32(1.5)
    codes = kernels.assign_screened(X, codebook, screen, short_rows=wrong)
    assert (codes != kernels.assign(X, codebook)).any()


# The claims that the bounds stand on, in float64 -------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1, 1e6])
@each_kind
def test_errors_of_coordinates(make, scale):
    """|z - B(x - m)| <= projection |x - m|, and the squares of the rests within four times that."""
    rng = np.random.RandomState(11)
    values = (make(rng, 260, 80) * scale).astype(np.float32)
    X, codebook = values[:200], values[200:]
    directions = _screen.Directions(X)
    basis, n_first, n_all = directions.basis, directions.n_first, directions.n_all
    np.testing.assert_allclose(basis @ basis.T, np.eye(n_all), atol=1e-14)
    short = kernels.project(X, directions).astype(np.float64)
    centred = X.astype(np.float64) - directions.shift
    length = np.linalg.norm(centred, axis=1)
    exact = centred @ basis.T
    error = np.linalg.norm(short[:, :n_all] - exact, axis=1)
    assert (error <= directions.projection * length).all()
    for n, column in ((n_all, n_all), (n_first, n_all + 1)):
        rest = length**2 - np.square(exact[:, :n]).sum(axis=1)
        error = np.abs(short[:, column] ** 2 - rest)
        assert (error <= 4 * directions.projection * length**2).all()
    # The bound itself: short vectors are never farther apart than the vectors, but for rounding.
    screen = _screen.Screen(codebook, directions)
    distance = np.linalg.norm(X[:, None].astype(np.float64) - codebook, axis=2)
    apart = np.linalg.norm(short[:, None, : n_all + 1] - screen.short_codebook, axis=2)
    rest = np.maximum(short[:, n_all], np.sqrt(4 * directions.projection) * length)
    reach = directions.projection * length + 4 * directions.projection * length**2 / np.where(
        rest > 0, rest, 1
    )
    assert (apart <= distance + 1.03 * reach[:, None] + screen.slack).all()


@given(
    st.integers(0, 10**6), st.integers(64, 100), st.integers(32, 60), st.floats(0.5, 1),
    st.floats(-3, 6), st.floats(0, 2.4), st.booleans(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_no_nearest_is_missed(seed, d, k, ratio, magnitude, offset, of_rows):
    """Random spectra at scales of 1e-3 to 1e6, centred or far from the origin (but not so far that
    the codebook would be scaled)."""
    rng = np.random.RandomState(seed)
    values = decaying(rng, 97 + k, d, ratio) + 10**offset - 1
    values = (values * 10**magnitude).astype(np.float32)
    X, codebook = values[:97], values[97:]
    screen = screen_of(codebook, X if of_rows else None)
    assert_screened_is_assigned(X, codebook, screen)
    assert_screened_is_assigned(X, codebook, screen, guesses=np.zeros(97, np.int32))


# In assign ---------------------------------------------------------------------------------------


@pytest.fixture
def tried(monkeypatch):
    """Screening is tried however few the rows."""
    monkeypatch.setattr(kernels._assign, "_TRIAL_WORK", 1)


@pytest.mark.parametrize("n", [1, 100, 300, 600, 3000])
@pytest.mark.parametrize("threads", THREADS)
def test_a_trial_stays_within_the_rows(n, threads, tried):
    """The trial takes the first rows, as many as there are; what follows in memory is not its."""
    rng = np.random.RandomState(12)
    values = decaying(rng, 6000, 64)
    codebook, X = values[:40], values[40 : 40 + n]
    memory = np.full(6000, -7, np.int32)
    kernels.assign(X, kernels.prepare(codebook, screen=True), codes=memory[:n], n_threads=threads)
    assert (memory[n:] == -7).all()
    assert_same_bits(memory[:n], kernels.assign(X, codebook))


@pytest.mark.parametrize("quicker", ["plain", "screened"])
def test_either_outcome_of_the_trial(quicker, tried, monkeypatch):
    rng = np.random.RandomState(13)
    values = decaying(rng, 5040, 64)
    X, codebook = values[:5000], values[5000:]
    clock = iter([0, 1, 1, 3] if quicker == "plain" else [0, 3, 3, 4])
    monkeypatch.setattr(kernels._assign, "perf_counter", lambda: next(clock))
    runs = []
    for plan in (kernels._assign._Plain, kernels._assign._Screened):
        run = plan.run

        def spy(self, first, last, run=run):
            runs.append((type(self).__name__, first, last))
            run(self, first, last)

        monkeypatch.setattr(plan, "run", spy)
    codes = kernels.assign(X, kernels.prepare(codebook, screen=True), n_threads=1)
    assert runs[-1][0] == {"plain": "_Plain", "screened": "_Screened"}[quicker]
    # Every row once.
    assert [first for _, first, _ in runs] == [0, *(last for _, _, last in runs[:-1])]
    assert runs[-1][2] == 5000
    assert_same_bits(codes, kernels.assign(X, codebook))


def test_no_trial_where_it_cannot_pay(tried, monkeypatch):
    """On white data, in float64, for few features or codewords: the plain tile from the first."""
    monkeypatch.setattr(kernels._assign, "_quicker", lambda *plans: pytest.fail("tried"))
    rng = np.random.RandomState(14)
    good = decaying(rng, 640, 64, 0.8)
    for values in (white(rng, 640, 64).astype(np.float32), good.astype(np.float64), good[:, :40]):
        kernels.assign(values, kernels.prepare(values[:600], screen=True))
    kernels.assign(good, kernels.prepare(good[:20], screen=True))
    kernels.assign(good, kernels.prepare(good[:40]))
    others = np.empty(640, np.float32)
    kernels.assign(good, kernels.prepare(good[:40], screen=True), others=others)


# Numbers out of range ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "NaN"), (-np.inf, "infinity"), (1e20, "large")]
)
@pytest.mark.parametrize("guessed", [False, True])
def test_values_that_cannot_be_compared(guessed, value, what):
    rng = np.random.RandomState(15)
    values = decaying(rng, 140, 64)
    X, codebook = values[:100], values[100:]
    screen = screen_of(codebook)
    guesses = np.zeros(100, np.int32) if guessed else None
    for row in (0, 17, 99):
        bad = X.copy()
        bad[row:, 63] = value
        with pytest.raises(ValueError, match=rf"X contains.*{what}.*row {row}, feature 63"):
            kernels.assign_screened(bad, codebook, screen, guesses=guesses)


@pytest.mark.parametrize("factor", [1e-20, 1e-10, 1e10, 1e15])
def test_a_codebook_that_is_scaled(factor):
    """Codebooks whose squares could leave the range: refused, or the right codes; never others."""
    rng = np.random.RandomState(16)
    values = decaying(rng, 140, 64) * np.float32(factor)
    X, codebook = values[:100], values[100:]
    book = kernels.prepare(codebook)
    assert book.scale != 1
    for screen in (screen_of(codebook), screen_of(book.codebook)):
        for rows in (X, (X / np.float32(factor)).astype(np.float32)):
            try:
                codes = kernels.assign_screened(rows, book, screen)
            except ValueError:
                continue
            assert_same_bits(codes, kernels.assign(rows, book))


def test_threads_share_a_codebook_that_is_screened_at_its_first_use(tried):
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.RandomState(17)
    values = decaying(rng, 5040, 64)
    X, codebook = values[:5000], values[5000:]
    expected = kernels.assign(X, codebook)
    for _ in range(5):
        book = kernels.prepare(codebook, screen=True)
        with ThreadPoolExecutor(4) as pool:
            for codes in pool.map(lambda _, book=book: kernels.assign(X, book), range(4)):
                assert_same_bits(codes, expected)


def test_directions_are_the_same_every_time():
    """Their random start is fixed: what is skipped may not change from run to run."""
    X = decaying(np.random.RandomState(18), 300, 64, 0.7)
    first = _screen.Directions(X)
    assert_same_bits(_screen.Directions(X).basis, first.basis)
    assert 0.99 < first.energy <= 1.0001
