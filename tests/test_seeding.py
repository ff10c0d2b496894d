"""Where a fit starts: right chances, as good as scikit-learn's, the same at any thread count."""

import numpy as np
import pytest
from scipy.stats import chisquare
from sklearn.cluster import kmeans_plusplus
from sklearn.datasets import make_blobs

from fastvq import kernels
from fastvq.vq import _seeding
from fastvq.vq._rows import Rows, draw_positions, rows_of
from fastvq.vq._seeding import draw_by_potential, seed

WORDS = ["k-means++", "k-means||", "random", "grouped", "principal"]


def rows(X, weight=None, dtype=np.float32, n_threads=1, metric="euclidean"):
    if weight is not None:
        weight = np.asarray(weight, dtype=np.float64)
    X = np.asarray(X, dtype=dtype)
    return rows_of(X, None, weight, metric=metric, dtype=dtype, n_threads=n_threads)


def potential(X, codebook):
    X = X.astype(codebook.dtype)
    return kernels.distances(X, codebook, kernels.assign(X, codebook)).sum(dtype=np.float64)


def position(X, codewords):
    """Which row each codeword is."""
    return np.array([np.flatnonzero((codeword == X).all(axis=1))[0] for codeword in codewords])


@pytest.fixture(scope="module")
def blobs():
    return make_blobs(3000, 6, centers=40, cluster_std=0.7, random_state=0)[0].astype(np.float32)


class TestDraws:
    @pytest.mark.parametrize("n", [7, 1024, 5000])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_by_weight_times_distance(self, n, weighted):
        rng = np.random.RandomState(0)
        closest = rng.gamma(0.5, size=n).astype(np.float32)
        closest[rng.random_sample(n) < 0.3] = 0
        weight = rng.randint(4, size=n).astype(float) if weighted else None
        chance = closest * (1 if weight is None else weight)
        drawn = draw_by_potential(
            rng.random_sample(15_000), rows(np.zeros((n, 1)), weight), closest
        )
        assert (chance[drawn] > 0).all()
        # About equally likely bins of consecutive rows, so that each expects enough draws.
        order = np.cumsum(chance) / chance.sum()
        bins = np.minimum((order * 50).astype(int), 49)
        expected = np.bincount(bins, chance, 50)
        observed = np.bincount(bins[drawn], minlength=50)
        some = expected > 0
        expected = expected[some] / expected.sum() * len(drawn)
        assert chisquare(observed[some], expected).pvalue > 1e-3

    @pytest.mark.parametrize("uniform", [0.0, np.nextafter(1, 0), 1.0])
    def test_ends_of_the_range(self, uniform):
        closest = np.zeros(3000, np.float32)
        closest[[5, 2990]] = 1e-3, 7
        drawn = draw_by_potential(np.array([uniform]), rows(np.zeros((3000, 1))), closest)
        assert drawn.tolist() == [5 if uniform == 0 else 2990]

    def test_each_row_on_its_own(self):
        rng = np.random.RandomState(0)
        closest = np.repeat(np.float32([0, 1, 3]), 1000)
        data = rows(np.zeros((3000, 1)))
        counts = np.zeros(3000)
        for _ in range(50):
            drawn = _seeding._draw_each(200, data, closest, rng)
            assert (np.diff(drawn) > 0).all()
            counts[drawn] += 1
        means = counts.reshape(3, 1000).mean(axis=1)
        assert means[0] == 0
        np.testing.assert_allclose(means[1:], [50 * 200 / 4000, 50 * 600 / 4000], rtol=0.05)

    def test_positions_are_a_set(self):
        drawn = draw_positions(100, 60, np.random.RandomState(0))
        assert (np.diff(drawn) > 0).all() and drawn.dtype == np.intp


class TestWeights:
    @pytest.mark.parametrize("init", WORDS)
    def test_the_first_codeword_goes_by_weight(self, init):
        X, weight = np.arange(6)[:, None], np.array([1, 0, 2, 3, 0, 4.0])
        found = [
            position(X, seed(rows(X, weight), 1, init, np.random.RandomState(i)))[0]
            for i in range(600)
        ]
        observed = np.bincount(found, minlength=6)
        assert observed[1] == observed[4] == 0
        some = weight > 0
        expected = weight[some] / weight.sum() * len(found)
        if init == "k-means||":  # the pool's weights decide, and they are the same
            assert (observed[some] > 0).all()
        else:
            assert chisquare(observed[some], expected).pvalue > 1e-3

    @pytest.mark.parametrize("init", WORDS)
    def test_rows_without_weight_are_never_chosen(self, init, blobs):
        weight = np.zeros(len(blobs))
        weight[::7] = 0.3
        codebook = seed(rows(blobs, weight), 50, init, np.random.RandomState(0))
        assert (position(blobs, codebook) % 7 == 0).all()

    def test_random_rows_by_weight(self):
        """Two of three rows without replacement: the chances are those of drawing in turn."""
        weight, X = np.array([1, 2, 3.0]), np.arange(3)[:, None]
        found = [
            tuple(position(X, seed(rows(X, weight), 2, "random", np.random.RandomState(i))))
            for i in range(2000)
        ]
        pairs = [(0, 1), (0, 2), (1, 2)]
        share = weight / weight.sum()
        expected = [
            share[i] * share[j] * (1 / (1 - share[i]) + 1 / (1 - share[j])) for i, j in pairs
        ]
        observed = [found.count(pair) for pair in pairs]
        assert chisquare(observed, np.array(expected) * len(found)).pvalue > 1e-3

    def test_weight_is_repetition(self, blobs):
        """With weights 0..3 and on rows repeated as often, potentials are alike on average."""
        weight = np.random.RandomState(1).randint(4, size=1000)
        X = blobs[:1000]
        repeated = X.repeat(weight, axis=0)
        potentials = np.array(
            [
                [
                    potential(repeated, seed(data, 30, "k-means++", np.random.RandomState(i)))
                    for i in range(30)
                ]
                for data in (rows(X, weight), rows(repeated))
            ]
        )
        spread = potentials.std(axis=1, ddof=1).max() / np.sqrt(30)
        assert abs(np.diff(potentials.mean(axis=1)))[0] < 4 * spread


class TestQuality:
    def test_k_means_plus_plus_is_no_worse_than_scikit_learn_s(self, blobs):
        ours, theirs = np.array(
            [
                [
                    potential(blobs, seed(rows(blobs), 40, "k-means++", np.random.RandomState(i))),
                    potential(blobs, kmeans_plusplus(blobs, 40, random_state=i)[0]),
                ]
                for i in range(25)
            ]
        ).T
        spread = np.hypot(ours.std(ddof=1), theirs.std(ddof=1)) / np.sqrt(25)
        assert ours.mean() < theirs.mean() + 3 * spread

    def test_k_means_parallel_is_nearly_as_good(self, blobs):
        greedy, parallel, random = (
            np.mean(
                [
                    potential(blobs, seed(rows(blobs), 60, init, np.random.RandomState(i)))
                    for i in range(8)
                ]
            )
            for init in ("k-means++", "k-means||", "random")
        )
        assert parallel < 1.1 * greedy < 0.8 * random

    def test_outliers_of_any_size_do_not_starve_k_means_parallel(self):
        """Each round sees only the largest distances; there must be enough rounds."""
        X = np.concatenate([np.random.RandomState(0).randn(500), 10.0 ** np.arange(1, 15)])
        X = X[:, None].astype(np.float64)
        codebook = seed(rows(X, dtype=np.float64), 40, "k-means||", np.random.RandomState(0))
        assert len(np.unique(codebook)) == 40

    @pytest.mark.parametrize("init", WORDS)
    def test_codewords_are_distinct_rows(self, init, blobs):
        codebook = seed(rows(blobs), 300, init, np.random.RandomState(0))
        assert len(np.unique(position(blobs, codebook))) == 300

    def test_leaving_out_rows_out_of_reach_changes_nothing(self, blobs, monkeypatch):
        """Rows that no candidate can serve better: the same draws, the same choices."""
        weight = np.random.RandomState(0).gamma(1, size=len(blobs))
        for data in (rows(blobs), rows(blobs, weight), rows(blobs, metric="cosine")):
            pruned = seed(data, 120, "k-means++", np.random.RandomState(0))
            with monkeypatch.context() as patch:
                patch.setattr(_seeding, "_reach", lambda *_: None)
                full = seed(data, 120, "k-means++", np.random.RandomState(0))
            np.testing.assert_array_equal(pruned, full)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_tiny_candidates_beside_large_codewords(self, dtype):
        X = np.array([[1.0], *([[2e-35], [3e-35], [0]] * 5)], dtype=dtype)
        codebook = seed(rows(X, dtype=dtype), 2, "k-means++", np.random.RandomState(0))
        assert codebook.max() == 1 and codebook.min() < 1e-30

    @pytest.mark.parametrize("init", WORDS)
    def test_all_rows(self, init):
        X = np.random.RandomState(0).permutation(64)[:, None]
        codebook = seed(rows(X), 64, init, np.random.RandomState(1))
        assert sorted(codebook[:, 0]) == list(range(64))

    @pytest.mark.parametrize("init", WORDS)
    @pytest.mark.parametrize("weighted", [False, True])
    def test_more_codewords_than_distinct_rows(self, init, weighted):
        X = np.repeat([[1.0, 2], [3, 4], [5, 6]], 10, axis=0)
        data = rows(X, np.ones(30) if weighted else None)
        codebook = seed(data, 8, init, np.random.RandomState(0))
        assert codebook.shape == (8, 2)
        if init != "random":
            assert len(np.unique(codebook, axis=0)) == 3


class TestAuto:
    def test_is_greedy_for_small_codebooks(self, blobs):
        found = [seed(rows(blobs), 20, i, np.random.RandomState(0)) for i in ("auto", "k-means++")]
        np.testing.assert_array_equal(*found)

    def test_is_parallel_on_a_sample_for_large_ones(self, blobs, monkeypatch):
        monkeypatch.setattr(_seeding, "GREEDY_LIMIT", 16)
        sizes = []
        parallel = _seeding._parallel

        def spy(data, n_codewords, rng):
            sizes.append(len(data))
            return parallel(data, n_codewords, rng)

        monkeypatch.setitem(_seeding._WAYS, "k-means||", spy)
        codebook = seed(rows(blobs), 20, "auto", np.random.RandomState(0))
        assert sizes == [32 * 20] and len(np.unique(position(blobs, codebook))) == 20
        seed(rows(blobs), 20, "k-means||", np.random.RandomState(0))
        assert sizes[1] == len(blobs)

    def test_the_sample_has_weight(self, blobs, monkeypatch):
        monkeypatch.setattr(_seeding, "GREEDY_LIMIT", 16)
        weight = np.zeros(len(blobs))
        weight[:25] = 1
        codebook = seed(rows(blobs, weight), 20, "auto", np.random.RandomState(0))
        found = position(blobs, codebook)
        assert (found < 25).all() and len(np.unique(found)) == 20


class TestGiven:
    def test_an_array(self, blobs):
        codebook = seed(rows(blobs), 3, blobs[:3].astype(np.float64), None)
        assert codebook.dtype == np.float32 and not np.shares_memory(codebook, blobs)
        np.testing.assert_array_equal(codebook, blobs[:3])

    def test_a_callable(self, blobs):
        def first_rows(X, n_codewords, random_state):
            assert X is blobs and isinstance(random_state, np.random.RandomState)
            return X[:n_codewords].tolist()

        codebook = seed(rows(blobs), 3, first_rows, np.random.RandomState(0))
        np.testing.assert_array_equal(codebook, blobs[:3])

    def test_a_callable_sees_only_the_rows_of_a_sample(self, blobs):
        sample = Rows(blobs, np.arange(0, 100, 2), dtype=np.float32)
        codebook = seed(sample, 2, lambda X, k, random_state: X[:k], np.random.RandomState(0))
        np.testing.assert_array_equal(codebook, blobs[[0, 2]])

    @pytest.mark.parametrize("returned", [np.zeros((2, 6)), np.full((3, 6), np.nan), None, "abc"])
    def test_what_a_callable_returns_is_checked(self, blobs, returned):
        with pytest.raises((ValueError, TypeError), match="init"):
            seed(rows(blobs), 3, lambda *_, **__: returned, np.random.RandomState(0))


class TestEverywhereTheSame:
    @pytest.mark.parametrize("init", WORDS)
    @pytest.mark.parametrize("weighted", [False, True])
    def test_at_any_number_of_threads(self, init, weighted):
        rng = np.random.RandomState(0)
        X = rng.randn(20_000, 8).astype(np.float32)
        weight = rng.random_sample(len(X)) if weighted else None
        found = [
            seed(rows(X, weight, n_threads=threads), 40, init, np.random.RandomState(3)).tobytes()
            for threads in (1, 2, 5)
        ]
        assert len(set(found)) == 1

    @pytest.mark.parametrize("init", WORDS)
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_on_a_sample_as_on_a_copy_of_it(self, init, metric, blobs):
        """Rows that are gathered or changed block by block give what whole arrays give."""
        positions = np.arange(1, len(blobs), 3)
        sample = rows(blobs, metric=metric).subset(positions)
        copy = rows(blobs[positions], metric=metric)
        found = [seed(data, 30, init, np.random.RandomState(5)) for data in (sample, copy)]
        np.testing.assert_array_equal(*found)

    @pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int8"])
    def test_on_any_dtype(self, dtype):
        X = np.random.RandomState(0).randint(100, size=(500, 3))
        as_float = seed(rows(X), 20, "k-means++", np.random.RandomState(0))
        given = X.astype(dtype)
        kept = np.float64 if dtype == "float64" else np.float32
        data = Rows(given, dtype=kept, n_threads=1)
        np.testing.assert_array_equal(
            seed(data, 20, "k-means++", np.random.RandomState(0)), as_float
        )

    @pytest.mark.parametrize("init", WORDS)
    def test_cosine_gives_unit_codewords(self, init, blobs):
        codebook = seed(rows(blobs, metric="cosine"), 20, init, np.random.RandomState(0))
        np.testing.assert_allclose(np.linalg.norm(codebook, axis=1), 1, rtol=1e-6)


# ---- in groups ------------------------------------------------------------------------------


def test_grouped_is_the_same_at_any_number_of_threads():
    X = blobs_of_different_size()
    books = [
        seed(Rows(X, dtype=np.float32, n_threads=n), 500, "grouped", np.random.RandomState(3))
        for n in (1, 2, 5)
    ]
    assert all(np.array_equal(book, books[0]) for book in books)
    assert len(np.unique(books[0], axis=0)) == 500
    rows = {row.tobytes() for row in X}
    assert all(word.tobytes() in rows for word in books[0])


def test_grouped_is_far_better_than_random_rows_and_near_the_best():
    X = blobs_of_different_size()
    rows = Rows(X, dtype=np.float32)

    def inertia(init):
        books = [seed(rows, 300, init, np.random.RandomState(s)) for s in range(3)]
        return np.mean([rows.inertia(rows.distances(b, rows.assign(b))) for b in books])

    best = inertia("k-means++")
    # The shares are for groups of many codewords, and a group has a dozen here: 1.21 times.
    assert inertia("grouped") < min(1.3 * best, 0.75 * inertia("random"))


@pytest.mark.parametrize("limit", [0, _seeding._TABLE_ROWS])
def test_grouped_never_draws_rows_without_weight(limit, monkeypatch):
    monkeypatch.setattr(_seeding, "_TABLE_ROWS", limit)
    X = blobs_of_different_size()
    weight = (np.arange(len(X)) % 2).astype(np.float64)
    rows = Rows(X, None, weight, dtype=np.float32)
    book = seed(rows, 100, "grouped", np.random.RandomState(0))
    heavy = {row.tobytes() for row in X[1::2]}
    assert all(word.tobytes() in heavy for word in book)


@pytest.mark.parametrize("limit", [0, _seeding._TABLE_ROWS])
def test_grouped_repeats_where_rows_repeat(limit, monkeypatch):
    monkeypatch.setattr(_seeding, "_TABLE_ROWS", limit)
    X = np.repeat(blobs_of_different_size()[:50], 20, axis=0)
    book = seed(Rows(X, dtype=np.float32), 120, "grouped", np.random.RandomState(0))
    assert {row.tobytes() for row in book} <= {row.tobytes() for row in X}
    assert len(np.unique(book, axis=0)) > 40


def test_shares_add_up_and_keep_their_limits():
    rng = np.random.default_rng(0)
    for _ in range(50):
        most = rng.integers(0, 30, 40)
        total = int(rng.integers((most > 0).sum(), most.sum() + 1))
        shares = _seeding._shares(rng.random(40) ** 3, most, total)
        assert shares.sum() == total and (shares <= most).all()
        assert ((shares > 0) == (most > 0)).all()
    assert _seeding._shares(np.array([1.0, 3.0]), [100, 100], 80).tolist() == [20, 60]
    assert _seeding._shares(np.zeros(2), [3, 1], 6).sum() == 6  # more than there are rows


def blobs_of_different_size(n=6000, d=6):
    rng = np.random.default_rng(0)
    scale = rng.exponential(size=(40, 1))
    centres = rng.standard_normal((40, d)) * 8
    which = rng.integers(40, size=n)
    return (centres[which] + scale[which] * rng.standard_normal((n, d))).astype(np.float32)
