"""VectorQuantizer: what a fit finds, and what comes out of it."""

import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from threadpoolctl import threadpool_limits

from fastvq import VectorQuantizer
from fastvq.vq.vector import FitState

OUTPUTS = ["codes", "onehot", "onehot-dense", "distances", "reconstruction"]
ALGORITHMS = ["auto", "lloyd", "growing", "minibatch"]


@pytest.fixture(scope="module")
def blobs():
    X, _ = make_blobs(4000, 5, centers=30, cluster_std=1.5, random_state=0)
    return X.astype(np.float32)


@pytest.fixture(scope="module")
def fitted(blobs):
    return VectorQuantizer(30, random_state=0).fit(blobs)


def exact_distances(X, codebook):
    difference = X[:, None].astype(np.float64) - codebook.astype(np.float64)
    return (difference**2).sum(axis=2)


def check_agreement(vq, X, weight=None):
    """What the fitted attributes say is true of the codebook and these rows."""
    weight = np.ones(len(X)) if weight is None else weight
    if vq.metric == "cosine":
        X = X / np.linalg.norm(X, axis=1, keepdims=True)
    distances = exact_distances(X, vq.codebook_)
    nearest = distances.min(axis=1)
    codes = vq.predict(X)
    np.testing.assert_allclose(distances[np.arange(len(X)), codes], nearest, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(vq.inertia_, weight @ nearest, rtol=1e-5)
    np.testing.assert_allclose(vq.counts_, np.bincount(codes, weight, len(vq.codebook_)))
    assert vq.inertia_history_[-1] == vq.inertia_


class TestLloyd:
    def test_is_k_means(self, blobs):
        """The same codebook as scikit-learn's, from the same start."""
        start = blobs[:30].astype(np.float64)
        X = blobs.astype(np.float64)
        ours = VectorQuantizer(30, init=start, tol=0, algorithm="lloyd").fit(X)
        theirs = KMeans(30, init=start, tol=0, n_init=1, algorithm="lloyd").fit(X)
        np.testing.assert_allclose(ours.codebook_, theirs.cluster_centers_, rtol=1e-9)
        np.testing.assert_array_equal(ours.predict(X), theirs.labels_)
        np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol=1e-9)

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("weighted", [False, True])
    def test_attributes_agree(self, algorithm, metric, weighted, blobs):
        weight = np.random.RandomState(0).gamma(1, size=len(blobs)) if weighted else None
        vq = VectorQuantizer(30, algorithm=algorithm, metric=metric, random_state=0)
        check_agreement(vq.fit(blobs, sample_weight=weight), blobs, weight)
        assert vq.codebook_.shape == (30, 5) and vq.codebook_.dtype == np.float32
        assert vq.codebook_.flags.c_contiguous and not vq.codebook_.flags.writeable
        assert vq.n_features_in_ == 5 and vq.code_size_ == 1 and vq.n_iter_ >= 1

    def test_history_falls_to_the_inertia(self, blobs):
        vq = VectorQuantizer(30, init="random", random_state=0, algorithm="lloyd", tol=0).fit(blobs)
        assert len(vq.inertia_history_) == vq.n_iter_ + 1
        assert (np.diff(vq.inertia_history_) < 1e-6 * vq.inertia_).all()

    @pytest.mark.parametrize("max_iter", [1, 2, 5])
    def test_max_iter_counts_updates(self, max_iter, blobs):
        vq = VectorQuantizer(30, init=blobs[:30], tol=0, max_iter=max_iter).fit(blobs)
        assert vq.n_iter_ == max_iter and len(vq.inertia_history_) == max_iter + 1
        check_agreement(vq, blobs)

    def test_tol_is_relative_to_the_inertia(self, blobs):
        full = VectorQuantizer(30, init=blobs[:30], tol=0).fit(blobs)
        falls = -np.diff(full.inertia_history_) / full.inertia_history_[:-1]
        for tol in (1e-1, 1e-2, 1e-3):
            vq = VectorQuantizer(30, init=blobs[:30], tol=tol).fit(blobs)
            assert vq.n_iter_ == np.argmax(falls < tol) + 1
            scaled = VectorQuantizer(30, init=blobs[:30] * 1024, tol=tol).fit(blobs * 1024)
            assert scaled.n_iter_ == vq.n_iter_

    def test_tol_0_ends_when_no_code_changes(self, blobs):
        vq = VectorQuantizer(30, init=blobs[:30], tol=0).fit(blobs)
        again = VectorQuantizer(30, init=vq.codebook_, tol=0).fit(blobs)
        np.testing.assert_array_equal(again.codebook_, vq.codebook_)

    def test_n_init_keeps_the_best_run(self, blobs):
        runs = []
        vq = VectorQuantizer(30, init="random", n_init=5, random_state=0)
        vq.fit(blobs, callback=lambda state: runs.append((state.run, state.inertia)))
        last = dict(runs)  # the last iteration of each run
        assert sorted(last) == list(range(5)) and len(set(last.values())) > 1
        assert vq.inertia_ == min(last.values())

    def test_random_state_decides(self, blobs):
        def codebook(random_state):
            vq = VectorQuantizer(20, init="random", max_iter=2, random_state=random_state)
            return vq.fit(blobs).codebook_.tobytes()

        assert codebook(0) == codebook(0) != codebook(1)
        assert codebook(np.random.RandomState(0)) == codebook(0)
        assert codebook(np.random.default_rng(0)) == codebook(np.random.default_rng(0))
        generator = np.random.default_rng(0)
        assert codebook(generator) != codebook(generator)

    def test_strings_in_any_spelling(self, blobs):
        loose = VectorQuantizer(
            10, init="kmeans++", algorithm="Lloyd", metric="L2", output="one hot", random_state=0
        )
        strict = VectorQuantizer(10, init="k-means++", output="onehot", random_state=0)
        assert (loose.fit_transform(blobs) != strict.fit_transform(blobs)).nnz == 0

    def test_one_codeword_is_the_mean(self, blobs):
        for algorithm in ("auto", "lloyd", "growing"):
            vq = VectorQuantizer(1, algorithm=algorithm, random_state=0).fit(blobs)
            mean = blobs.mean(axis=0, dtype=np.float64)
            np.testing.assert_allclose(vq.codebook_[0], mean, rtol=1e-6)
            np.testing.assert_allclose(vq.distortion(blobs), blobs.var(axis=0).sum(), rtol=1e-5)

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("init", ["auto", "random", "k-means||"])
    def test_auto_is_lloyd_bit_for_bit(self, init, metric, blobs):
        a, b = (
            VectorQuantizer(64, init=init, metric=metric, algorithm=algorithm, random_state=3)
            for algorithm in ("auto", "lloyd")
        )
        np.testing.assert_array_equal(a.fit_predict(blobs), b.fit_predict(blobs))
        assert a.codebook_.tobytes() == b.codebook_.tobytes()
        assert a.inertia_history_.tolist() == b.inertia_history_.tolist()


class TestOtherAlgorithms:
    def test_growing_ends_where_lloyd_does(self):
        X, _ = make_blobs(20_000, 4, centers=50, cluster_std=2.0, random_state=1)
        X = X.astype(np.float32)
        inertias = {}
        for algorithm in ("lloyd", "growing"):
            runs = [
                VectorQuantizer(32, algorithm=algorithm, random_state=i).fit(X) for i in range(5)
            ]
            inertias[algorithm] = np.array([vq.inertia_ for vq in runs])
        check_agreement(runs[0], X)
        # Inertias on samples are given for all rows, so that they compare.
        assert runs[0].inertia_history_.max() < 2 * runs[0].inertia_
        assert inertias["growing"].mean() < 1.02 * inertias["lloyd"].mean()

    @threadpool_limits.wrap(limits=1)
    def test_minibatch_is_as_good_as_scikit_learn_s(self, blobs):
        ours, theirs = np.array(
            [
                [
                    VectorQuantizer(30, algorithm="minibatch", random_state=i).fit(blobs).inertia_,
                    MiniBatchKMeans(30, n_init=1, random_state=i).fit(blobs).inertia_,
                ]
                for i in range(10)
            ]
        ).T
        spread = np.hypot(ours.std(ddof=1), theirs.std(ddof=1)) / np.sqrt(len(ours))
        assert ours.mean() < theirs.mean() + 3 * spread

    def test_minibatch_goes_over_the_rows_max_iter_times_at_most(self, blobs):
        vq = VectorQuantizer(
            30, algorithm="minibatch", batch_size=100, max_iter=1, tol=0, random_state=0
        )
        assert vq.fit(blobs).n_iter_ <= 40

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_few_rows_have_weight(self, algorithm):
        rng = np.random.RandomState(0)
        X = rng.randn(50_000, 3).astype(np.float32)
        weight = np.zeros(len(X))
        some = rng.choice(len(X), 40, replace=False)
        weight[some] = rng.gamma(1, size=40)
        vq = VectorQuantizer(8, algorithm=algorithm, random_state=0).fit(X, sample_weight=weight)
        heavy = X[some]
        assert (vq.codebook_ <= heavy.max(axis=0)).all()
        assert (vq.codebook_ >= heavy.min(axis=0)).all()
        np.testing.assert_allclose(vq.counts_.sum(), weight.sum())


class TestEmptyCodewords:
    @pytest.mark.parametrize("algorithm", ["auto", "lloyd", "growing"])
    def test_are_moved_to_where_rows_are_badly_served(self, algorithm, blobs):
        start = np.repeat(blobs[:1], 30, axis=0)  # 29 of them win nothing
        vq = VectorQuantizer(30, init=start, algorithm=algorithm).fit(blobs)
        assert vq.counts_.all() and len(np.unique(vq.codebook_, axis=0)) == 30
        good = VectorQuantizer(30, random_state=0).fit(blobs)
        assert vq.inertia_ < 1.5 * good.inertia_

    def test_far_away_codewords_come_back(self, blobs):
        start = np.concatenate([blobs[:20], blobs[:10] + 1e4])
        vq = VectorQuantizer(30, init=start).fit(blobs)
        assert vq.counts_.all() and np.abs(vq.codebook_).max() < 100

    def test_a_single_one_goes_where_it_lowers_the_inertia_most(self):
        """Not to one of the many rows that are as far from their codeword as noise is."""
        rng = np.random.RandomState(0)
        centres = rng.normal(scale=20, size=(30, 16)).astype(np.float32)
        centres[1] = centres[0] + 2  # 8 away from it
        X = np.repeat(centres, 200, axis=0) + rng.normal(size=(6000, 16)).astype(np.float32)
        start = centres.copy()
        start[0], start[1] = (centres[0] + centres[1]) / 2, 1e4
        good = VectorQuantizer(30, init=centres).fit(X)
        assert VectorQuantizer(30, init=start).fit(X).inertia_ < 1.001 * good.inertia_

    @pytest.mark.parametrize("tol", [0, 1e-4])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_duplicates_are_no_endless_loop(self, tol, dtype):
        """As in scikit-learn's issue 28055: more codewords than places, means off by an ulp."""
        places = np.random.RandomState(0).rand(12, 3).astype(dtype)
        X = np.repeat(places, 1001, axis=0)
        for init in ("random", X[:12], X[::1001], X[::1001] + dtype(1e-3)):
            vq = VectorQuantizer(12, init=init, tol=tol, max_iter=1000, random_state=0).fit(X)
            assert vq.n_iter_ < 20 and vq.counts_.tolist() == [1001] * 12
            np.testing.assert_allclose(
                np.sort(vq.codebook_[:, 0]), np.sort(places[:, 0]), rtol=1e-6
            )

    def test_rows_without_weight_do_not_attract_them(self, blobs):
        X = np.concatenate([blobs, blobs[:50] + 1000])
        weight = np.r_[np.ones(len(blobs)), np.zeros(50)]
        vq = VectorQuantizer(30, init=np.repeat(X[:1], 30, axis=0)).fit(X, sample_weight=weight)
        assert np.abs(vq.codebook_).max() < 100


class TestFewRows:
    def check(self, vq, X, distinct, **fit):
        with pytest.warns(ConvergenceWarning, match=f"{len(distinct)} distinct rows, fewer than"):
            vq.fit(X, **fit)
        k = vq.n_codewords
        np.testing.assert_array_equal(vq.codebook_, np.resize(distinct, (k, X.shape[1])))
        assert vq.inertia_ == 0 == vq.distortion(X) and vq.n_iter_ == 1
        np.testing.assert_array_equal(vq.inverse_transform(vq.transform(X)), X)
        assert vq.predict(X).max() < len(distinct)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("init", ["auto", "random", "k-means||", "array"])
    def test_fewer_rows(self, algorithm, init):
        X = np.array([[3, 1], [2, 9], [2, 4.0]])
        init = np.zeros((8, 2)) if init == "array" else init
        vq = VectorQuantizer(8, algorithm=algorithm, init=init)
        self.check(vq, X, X[[2, 1, 0]])
        assert vq.counts_.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int8"])
    def test_fewer_distinct_rows(self, dtype):
        X = np.array([[5, 0], [1, 2], [5, 0], [1, 1]] * 2000, dtype=dtype)
        self.check(VectorQuantizer(4), X, np.array([[1, 1], [1, 2], [5, 0]], dtype=float))

    def test_all_rows_equal(self):
        self.check(VectorQuantizer(4), np.full((100, 3), 0.1), np.full((1, 3), 0.1))

    def test_zeros_of_either_sign_are_one_row(self):
        self.check(VectorQuantizer(2), np.array([[0.0, -0.0], [-0.0, 0.0]]), np.zeros((1, 2)))

    def test_rows_without_weight_do_not_count(self):
        X = np.arange(5.0)[:, None]
        vq = VectorQuantizer(3)
        with pytest.warns(ConvergenceWarning, match="2 distinct rows"):
            vq.fit(X, sample_weight=[0, 1, 0, 2, 0])
        assert vq.codebook_[:, 0].tolist() == [1, 3, 1] and vq.counts_.tolist() == [1, 2, 0]

    def test_as_many_as_codewords_is_enough(self):
        X = np.random.RandomState(0).randn(50, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            vq = VectorQuantizer(50, random_state=0).fit(X)
        assert vq.inertia_ == 0 and vq.counts_.tolist() == [1] * 50

    def test_cosine(self):
        X = np.array([[1.0, 1], [2, 2], [0, 3]])
        vq = VectorQuantizer(5, metric="cosine")
        with pytest.warns(ConvergenceWarning, match="2 distinct rows"):
            vq.fit(X)
        np.testing.assert_allclose(vq.codebook_[:2], [[0, 1], [0.5**0.5, 0.5**0.5]])


class TestMaxSamples:
    @pytest.mark.parametrize(("max_samples", "expected"), [(500, 500), (0.25, 1000), (1.0, 4000)])
    def test_rows_fitted_on(self, max_samples, expected, blobs):
        vq = VectorQuantizer(10, max_samples=max_samples, random_state=0).fit(blobs)
        assert vq.counts_.sum() == expected
        assert vq.inertia_ < vq.distortion(blobs) * expected * 1.2

    def test_more_than_there_are(self, blobs):
        vq = VectorQuantizer(10, max_samples=10**9, random_state=0).fit(blobs)
        assert vq.counts_.sum() == len(blobs)

    def test_all_rows_are_transformed(self, blobs):
        vq = VectorQuantizer(10, max_samples=100, random_state=0)
        codes = vq.fit_predict(blobs)
        np.testing.assert_array_equal(codes, vq.predict(blobs))

    def test_weights_go_along(self, blobs):
        weight = np.random.RandomState(0).gamma(1, size=len(blobs))
        vq = VectorQuantizer(10, max_samples=1000, random_state=0).fit(blobs, sample_weight=weight)
        assert 0.5 < vq.counts_.sum() / weight.sum() * 4 < 1.5

    @pytest.mark.parametrize("bad", [0, -5, 0.0, 1.5, np.nan, "all", True])
    def test_refused(self, bad, blobs):
        with pytest.raises((ValueError, TypeError), match="max_samples"):
            VectorQuantizer(10, max_samples=bad).fit(blobs)


class TestWeights:
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_weighting_is_repeating(self, metric, dtype, blobs):
        X = blobs[:1000].astype(dtype)
        weight = np.random.RandomState(0).randint(4, size=len(X))
        weight[:20] = 1
        settings = {"init": X[:20], "metric": metric, "tol": 0}
        weighted = VectorQuantizer(20, **settings).fit(X, sample_weight=weight)
        repeated = VectorQuantizer(20, **settings).fit(X.repeat(weight, axis=0))
        np.testing.assert_allclose(weighted.codebook_, repeated.codebook_, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(weighted.counts_, repeated.counts_)
        np.testing.assert_allclose(weighted.inertia_, repeated.inertia_, rtol=1e-6)
        np.testing.assert_array_equal(weighted.predict(X), repeated.predict(X))

    def test_a_common_factor_changes_nothing(self, blobs):
        weight = np.random.RandomState(0).gamma(1, size=len(blobs))
        found = [
            VectorQuantizer(20, random_state=0).fit(blobs, sample_weight=weight * factor).codebook_
            for factor in (1, 2.0**-20, 2.0**30)
        ]
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])

    def test_score_is_weighted(self, fitted, blobs):
        weight = np.zeros(len(blobs))
        weight[:100] = 3
        assert fitted.score(blobs, sample_weight=weight) == pytest.approx(fitted.score(blobs[:100]))


class TestCosine:
    def test_is_k_means_on_unit_rows_with_unit_codewords(self, blobs):
        X = blobs.astype(np.float64) * np.logspace(-3, 3, len(blobs))[:, None]
        unit = X / np.linalg.norm(X, axis=1, keepdims=True)
        codebook = unit[:10]
        vq = VectorQuantizer(10, init=X[:10], metric="cosine", tol=0, max_iter=4).fit(X)
        for _ in range(vq.n_iter_):
            codes = (unit @ codebook.T).argmax(axis=1)
            sums = np.array([unit[codes == j].sum(axis=0) for j in range(10)])
            codebook = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        np.testing.assert_allclose(vq.codebook_, codebook, rtol=1e-9)
        np.testing.assert_array_equal(vq.predict(X), (unit @ codebook.T).argmax(axis=1))

    def test_codewords_are_unit_and_lengths_do_not_matter(self, blobs):
        vq = VectorQuantizer(20, metric="cosine", random_state=0).fit(blobs)
        np.testing.assert_allclose(np.linalg.norm(vq.codebook_, axis=1), 1, rtol=1e-6)
        scaled = blobs * np.float32(2) ** np.random.RandomState(0).randint(-30, 30, (len(blobs), 1))
        np.testing.assert_array_equal(vq.predict(scaled), vq.predict(blobs))

    def test_distances_are_1_minus_cos(self, blobs):
        vq = VectorQuantizer(20, metric="cosine", output="distances", random_state=0).fit(blobs)
        unit = blobs / np.linalg.norm(blobs, axis=1, keepdims=True)
        np.testing.assert_allclose(vq.transform(blobs), 1 - unit @ vq.codebook_.T, atol=1e-6)

    @pytest.mark.parametrize(
        ("dtype", "scale"),
        [("f4", 1e-40), ("f4", 1e-30), ("f4", 1e30), ("f8", 1e-295), ("f8", 1e250)],
    )
    def test_any_length(self, dtype, scale, blobs):
        X = (blobs[:500].astype(np.float64) * scale).astype(dtype)
        usual = VectorQuantizer(5, metric="cosine", init=blobs[:5]).fit(blobs[:500])
        vq = VectorQuantizer(5, metric="cosine", init=X[:5]).fit(X)
        np.testing.assert_allclose(vq.codebook_, usual.codebook_, atol=1e-3)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_lengths_of_other_rows_change_no_bit(self, dtype, blobs):
        """Rows of extreme length are scaled first, and with them their neighbours."""
        X = blobs[:200].astype(dtype)
        vq = VectorQuantizer(20, metric="cosine", output="distances", init=X[:20]).fit(X)
        expected = vq.transform(X)
        for extreme in (2.0**-140, 2.0**100):
            mixed = X.copy()
            mixed[50] *= dtype(extreme)
            found = vq.transform(mixed)
            others = np.arange(200) != 50
            assert found[others].tobytes() == expected[others].tobytes()
            np.testing.assert_allclose(found[50], expected[50], atol=1e-3)

    def test_a_row_of_zeros_has_no_direction(self, blobs):
        X = blobs.copy()
        X[1234] = 0
        vq = VectorQuantizer(5, metric="cosine")
        with pytest.raises(ValueError, match="row of zeros.*cosine.*row 1234"):
            vq.fit(X)
        vq.fit(blobs)
        for method in (vq.transform, vq.predict, vq.score, vq.partial_fit):
            with pytest.raises(ValueError, match="row of zeros"):
                method(X)

    def test_rows_that_cancel_leave_their_codeword(self):
        X = np.array([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
        vq = VectorQuantizer(1, metric="cosine", init=[[0, 1.0]]).fit(X)
        np.testing.assert_allclose(vq.codebook_, [[0, 1]])
        assert vq.inertia_ == pytest.approx(8)


class TestOutputs:
    def test_codes(self, fitted, blobs):
        codes = fitted.transform(blobs)
        assert codes.shape == (len(blobs), 1) and codes.dtype == np.uint8
        predicted = fitted.predict(blobs)
        assert predicted.shape == (len(blobs),) and predicted.dtype == np.int32
        np.testing.assert_array_equal(codes[:, 0], predicted)

    @pytest.mark.parametrize(
        ("n_codewords", "dtype", "size"),
        [
            (1, np.uint8, 1),
            (2, np.uint8, 1),
            (256, np.uint8, 1),
            (257, np.uint16, 2),
            (65536, np.uint16, 2),
            (65537, np.uint32, 3),
        ],
    )
    def test_code_dtype(self, n_codewords, dtype, size):
        X = np.arange(n_codewords, dtype=np.float32)[:, None]
        vq = VectorQuantizer(n_codewords, init=X, max_iter=1).fit(X)
        codes = vq.transform(X)
        assert codes.dtype == dtype and vq.code_size_ == size
        assert codes.max() == n_codewords - 1
        np.testing.assert_array_equal(vq.unpack(vq.pack(codes)), codes)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("output", OUTPUTS)
    def test_shapes_dtypes_and_fit_transform(self, output, dtype, blobs):
        X = blobs.astype(dtype)
        vq = VectorQuantizer(30, output=output, random_state=0)
        at_once = vq.fit_transform(X)
        later = clone(vq).fit(X).transform(X)
        columns = {"codes": 1, "reconstruction": 5}.get(output, 30)
        assert at_once.shape == later.shape == (len(X), columns)
        assert at_once.dtype == later.dtype == (np.uint8 if output == "codes" else dtype)
        if output == "onehot":
            assert sparse.issparse(later) and later.format == "csr"
            at_once, later = at_once.toarray(), later.toarray()
        np.testing.assert_array_equal(at_once, later)

    def test_they_say_the_same(self, fitted, blobs):
        codes = fitted.predict(blobs)
        given = {}
        for output in OUTPUTS:
            vq = copy.deepcopy(fitted).set_params(output=output)
            given[output] = vq.transform(blobs)
        np.testing.assert_array_equal(given["onehot"].indices, codes)
        np.testing.assert_array_equal(given["onehot"].toarray(), given["onehot-dense"])
        np.testing.assert_array_equal(given["onehot-dense"], np.eye(30)[codes])
        np.testing.assert_array_equal(given["reconstruction"], fitted.codebook_[codes])
        expected = np.sqrt(exact_distances(blobs, fitted.codebook_))
        np.testing.assert_allclose(given["distances"], expected, rtol=1e-5)

    @pytest.mark.parametrize("output", ["codes", "onehot-dense", "distances", "reconstruction"])
    def test_out(self, output, fitted, blobs):
        vq = copy.deepcopy(fitted).set_params(output=output)
        expected = vq.transform(blobs)
        out = np.empty_like(expected)
        assert vq.transform(blobs, out=out) is out
        np.testing.assert_array_equal(out, expected)
        with pytest.raises(ValueError, match="out must have shape"):
            vq.transform(blobs[:-1], out=out)

    def test_out_as_a_vector_and_as_a_file(self, fitted, blobs, tmp_path):
        expected = fitted.transform(blobs)
        vector = np.empty(len(blobs), np.uint8)
        assert fitted.transform(blobs, out=vector).shape == expected.shape
        np.testing.assert_array_equal(vector, expected[:, 0])
        file = np.memmap(tmp_path / "codes", np.uint8, "w+", shape=expected.shape)
        fitted.transform(blobs, out=file)
        np.testing.assert_array_equal(np.fromfile(tmp_path / "codes", np.uint8), expected[:, 0])

    def test_out_cannot_be_sparse(self, fitted, blobs):
        vq = copy.deepcopy(fitted).set_params(output="onehot")
        with pytest.raises(ValueError, match="out cannot hold a sparse result"):
            vq.transform(blobs, out=np.empty((len(blobs), 30), np.float32))

    @pytest.mark.parametrize("output", OUTPUTS)
    def test_feature_names(self, output, blobs):
        vq = VectorQuantizer(3, output=output).fit(blobs)
        names = vq.get_feature_names_out()
        if output == "reconstruction":
            assert names.tolist() == ["x0", "x1", "x2", "x3", "x4"]
            assert vq.get_feature_names_out([*"abcde"]).tolist() == [*"abcde"]
        else:
            columns = 1 if output == "codes" else 3
            assert names.tolist() == [f"vectorquantizer{i}" for i in range(columns)]

    def test_score_is_minus_the_distortion(self, fitted, blobs):
        nearest = exact_distances(blobs, fitted.codebook_).min(axis=1)
        assert fitted.distortion(blobs) == pytest.approx(nearest.mean(), rel=1e-6)
        assert fitted.score(blobs) == -fitted.distortion(blobs)
        assert isinstance(fitted.score(blobs), float)

    def test_unfitted(self, blobs):
        vq = VectorQuantizer(3)
        for call in (
            lambda: vq.transform(blobs),
            lambda: vq.predict(blobs),
            lambda: vq.score(blobs),
            lambda: vq.inverse_transform([0]),
            lambda: vq.pack([0]),
            lambda: vq.unpack(b"0"),
            lambda: vq.encode_blocks([blobs]),
            lambda: vq.get_feature_names_out(),
        ):
            with pytest.raises(NotFittedError):
                call()


class TestInverseTransform:
    @pytest.mark.parametrize("dtype", [*"bhilBHIL"])
    def test_any_integers(self, dtype, fitted):
        codes = np.array([3, 0, 29], dtype)
        for form in (codes, codes[:, None], codes.tolist(), codes[:, None].tolist()):
            np.testing.assert_array_equal(fitted.inverse_transform(form), fitted.codebook_[codes])

    def test_frames(self, fitted):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"code": np.array([3, 0], np.uint8)})
        np.testing.assert_array_equal(fitted.inverse_transform(frame), fitted.codebook_[[3, 0]])

    @pytest.mark.parametrize("output", ["codes", "onehot", "onehot-dense", "reconstruction"])
    def test_round_trip(self, output, fitted, blobs):
        vq = copy.deepcopy(fitted).set_params(output=output)
        back = vq.inverse_transform(vq.transform(blobs))
        np.testing.assert_array_equal(back, fitted.codebook_[fitted.predict(blobs)])

    def test_a_result_of_its_own(self, fitted):
        fitted.inverse_transform([0])[:] = 0
        assert fitted.codebook_[0].any()

    @pytest.mark.parametrize("bad", [[30], [-1], [[0, 1]], [[[0]]]])
    def test_no_codes_of_this_codebook(self, bad, fitted):
        with pytest.raises(ValueError, match="codes must"):
            fitted.inverse_transform(bad)

    @pytest.mark.parametrize("bad", [[0.0], [[1.5]], ["0"], [True], [None]])
    def test_no_codes_at_all(self, bad, fitted):
        with pytest.raises(TypeError, match="codes must be integers"):
            fitted.inverse_transform(bad)

    def test_distances_cannot_be_inverted(self, fitted, blobs):
        vq = copy.deepcopy(fitted).set_params(output="distances")
        with pytest.raises(ValueError, match="Distances cannot be inverted"):
            vq.inverse_transform(vq.transform(blobs))


class TestPacking:
    @pytest.mark.parametrize("n_codewords", [1, 2, 3, 30, 256, 257, 1000])
    def test_round_trip(self, n_codewords):
        X = np.arange(2000, dtype=np.float32)[:, None]
        vq = VectorQuantizer(n_codewords, init=X[:n_codewords], max_iter=1).fit(X)
        codes = vq.transform(X)
        packed = vq.pack(codes)
        assert packed.shape == (2000, vq.code_size_) and packed.dtype == np.uint8
        # One code, lowest bits first: its little-endian bytes.
        expected = codes.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : vq.code_size_]
        np.testing.assert_array_equal(packed, expected)
        for form in (packed, packed.tobytes()):
            unpacked = vq.unpack(form)
            assert unpacked.dtype == codes.dtype
            np.testing.assert_array_equal(unpacked, codes)

    def test_as_faiss(self):
        faiss = pytest.importorskip("faiss")
        X = np.arange(2000, dtype=np.float32)[:, None]
        vq = VectorQuantizer(1000, init=X[:1000], max_iter=1).fit(X)
        codes = vq.transform(X)
        theirs = faiss.pack_bitstrings(codes.astype(np.int32), 10)
        np.testing.assert_array_equal(vq.pack(codes), theirs)

    def test_bytes_that_are_no_codes(self, fitted):
        with pytest.raises(ValueError, match="packed codes must be from 0 to 29"):
            fitted.unpack(b"\x1e")
        with pytest.raises(ValueError, match="from 0 to 29"):
            fitted.pack([30])

    def test_nothing(self, fitted):
        assert fitted.pack([]).shape == (0, 1) and fitted.unpack(b"").shape == (0, 1)


class TestEncodeBlocks:
    def test_an_array_and_a_file(self, fitted, blobs, tmp_path):
        expected = fitted.transform(blobs)
        blobs.tofile(tmp_path / "rows")
        mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=blobs.shape)
        for rows in (blobs, mapped):
            codes = fitted.encode_blocks(rows)
            assert codes.dtype == np.uint8
            np.testing.assert_array_equal(codes, expected)

    @pytest.mark.parametrize("step", [1, 999, 10_000])
    def test_an_iterable(self, step, fitted, blobs):
        blocks = (blobs[i : i + step] for i in range(0, len(blobs) if step > 1 else 50, step))
        codes = fitted.encode_blocks(blocks)
        np.testing.assert_array_equal(codes, fitted.transform(blobs)[: len(codes)])

    def test_out_may_be_longer(self, fitted, blobs):
        out = np.full((5000, 1), 255, np.uint8)
        codes = fitted.encode_blocks([blobs[:1000], blobs[:0], blobs[1000:]], out=out)
        assert np.shares_memory(codes, out) and codes.shape == (4000, 1)
        np.testing.assert_array_equal(codes, fitted.transform(blobs))
        assert (out[4000:] == 255).all()

    def test_out_too_short(self, fitted, blobs):
        with pytest.raises(ValueError, match="out has 1500 rows, fewer than the blocks"):
            fitted.encode_blocks([blobs[:1000]] * 2, out=np.empty((1500, 1), np.uint8))

    def test_nothing_at_all(self, fitted):
        with pytest.raises(ValueError, match="blocks is empty"):
            fitted.encode_blocks(iter([]))


class TestCallback:
    def test_is_called_after_every_iteration(self, blobs):
        states = []
        vq = VectorQuantizer(30, random_state=0).fit(blobs, callback=states.append)
        assert all(isinstance(state, FitState) for state in states)
        assert [state.iteration for state in states] == list(range(vq.n_iter_ + 1))
        assert [state.inertia for state in states] == vq.inertia_history_.tolist()
        np.testing.assert_array_equal(states[-1].codebook, vq.codebook_)
        with pytest.raises(ValueError, match="read-only"):
            states[0].codebook[:] = 0
        for before, after in itertools.pairwise(states):
            assert (before.codebook != after.codebook).any()  # none was overwritten

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_may_end_the_fit(self, algorithm):
        X, _ = make_blobs(40_000, 3, centers=20, cluster_std=3, random_state=0)
        vq = VectorQuantizer(20, algorithm=algorithm, random_state=0, tol=0)
        seen = []

        def enough(state):
            seen.append(state)
            return state.iteration == 2

        vq.fit(X, callback=enough)
        assert len(seen) == 3
        check_agreement(vq, X)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_an_error_in_it_leaves_the_estimator_as_it_was(self, algorithm, blobs):
        class Stop(BaseException):
            pass

        def fail(state):
            raise Stop

        generator = np.random.RandomState(0)
        drawn = generator.get_state()[2]
        vq = VectorQuantizer(5, algorithm=algorithm, random_state=generator)
        before = dict(vars(vq))
        with pytest.raises(Stop):
            vq.fit(blobs, callback=fail)
        assert vars(vq) == before and generator.get_state()[2] == drawn
        vq.fit(blobs[:, :2])
        before = dict(vars(vq))
        with pytest.raises(Stop):
            vq.fit(blobs, callback=fail)
        assert vars(vq) == before
        assert vq.transform(blobs[:, :2]).shape == (len(blobs), 1)

    @pytest.mark.parametrize("bar", [True, False])
    def test_verbose_shows_progress(self, bar, blobs, capfd, monkeypatch):
        if bar:
            pytest.importorskip("tqdm")
        else:
            monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
        VectorQuantizer(5, verbose=1).fit(blobs)
        out, err = capfd.readouterr()
        assert out == "" and "fit" in err and "inertia=" in err
        VectorQuantizer(5, verbose=0).fit(blobs)
        assert capfd.readouterr() == ("", "")


class TestState:
    def test_pickle_keeps_every_bit(self, fitted, blobs):
        again = pickle.loads(pickle.dumps(fitted))
        for name in ("codebook_", "counts_", "inertia_history_"):
            assert getattr(again, name).tobytes() == getattr(fitted, name).tobytes()
        assert not again.codebook_.flags.writeable
        np.testing.assert_array_equal(again.transform(blobs), fitted.transform(blobs))

    def test_pickle_has_the_version_and_nothing_of_this_cpu(self, fitted):
        state = fitted.__getstate__()
        assert state["_fastvq_version"] == __import__("fastvq").__version__
        assert "_compiled" not in state
        assert len(pickle.dumps(fitted)) < fitted.codebook_.nbytes + fitted.counts_.nbytes + 3000

    def test_another_version_is_said(self, fitted):
        state = {**fitted.__getstate__(), "_fastvq_version": "99.0"}
        with pytest.warns(UserWarning, match="pickled by fastvq 99.0"):
            VectorQuantizer().__setstate__(state)

    def test_unfitted_pickle(self):
        vq = pickle.loads(pickle.dumps(VectorQuantizer(7, metric="cosine")))
        assert vq.get_params() == VectorQuantizer(7, metric="cosine").get_params()

    def test_copies_share_nothing_that_changes(self, fitted, blobs):
        other = copy.deepcopy(fitted).partial_fit(blobs[:100])
        assert (other.codebook_ != fitted.codebook_).any()

    def test_clone_is_unfitted(self, fitted):
        assert not hasattr(clone(fitted), "codebook_")

    def test_a_codebook_of_the_user_s(self, fitted, blobs):
        vq = copy.deepcopy(fitted)
        with pytest.raises(ValueError, match="read-only"):
            vq.codebook_[0] = 0
        vq.codebook_ = vq.codebook_[::-1].copy()
        np.testing.assert_array_equal(vq.predict(blobs), 29 - fitted.predict(blobs))
        again = pickle.loads(pickle.dumps(vq))
        np.testing.assert_array_equal(again.predict(blobs), vq.predict(blobs))

    def test_fit_forgets_the_fit_before(self, blobs):
        vq = VectorQuantizer(10, random_state=0).fit(blobs[:, :2])
        vq.partial_fit(blobs[:100, :2])
        again = VectorQuantizer(10, random_state=0).fit(blobs)
        vq.fit(blobs)
        assert vq.codebook_.tobytes() == again.codebook_.tobytes()
        assert vq.n_iter_ == again.n_iter_ and vq.n_features_in_ == 5
