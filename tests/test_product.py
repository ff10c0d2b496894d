"""ProductQuantizer: what it fits, encodes and decodes; its promises; what it refuses."""

import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROW_DTYPES, layouts
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastvq import ProductQuantizer, VectorQuantizer
from fastvq.vq import _opq

ROTATIONS = [None, "random", "opq"]
rotations = pytest.mark.parametrize("rotation", ROTATIONS)


def correlated(n, d, seed=0):
    """Gaussian rows of which any block of features tells something about the others."""
    rng = np.random.RandomState(seed)
    mixed = rng.standard_normal((d, d)) * np.arange(1, d + 1)[:, None] ** -0.7
    return (rng.standard_normal((n, d)) @ mixed + rng.standard_normal(d)).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return correlated(3001, 22)


def fitted(X, rotation=None, n_subspaces=4, n_bits=5, **parameters):
    parameters = {"max_iter": 4, "random_state": 0, **parameters}
    return ProductQuantizer(n_subspaces, n_bits, rotation=rotation, **parameters).fit(X)


def error(X, pq):
    difference = X - pq.inverse_transform(pq.transform(X)).astype(np.float64)
    return np.square(difference).sum(axis=1).mean()


# What it is --------------------------------------------------------------------------------------


@rotations
def test_shapes_and_types(rotation, rows):
    pq = fitted(rows, rotation)
    assert [c.shape for c in pq.codebooks_] == [(32, 6), (32, 6), (32, 5), (32, 5)]
    assert pq.subspaces_ == [slice(0, 6), slice(6, 12), slice(12, 17), slice(17, 22)]
    assert isinstance(pq.codebooks_, list) and pq.code_size_ == 3
    assert all(c.dtype == np.float32 and not c.flags.writeable for c in pq.codebooks_)
    codes = pq.transform(rows)
    assert codes.shape == (3001, 4) and codes.dtype == np.uint8
    back = pq.inverse_transform(codes)
    assert back.shape == rows.shape and back.dtype == np.float32
    np.testing.assert_array_equal(pq.unpack(pq.pack(codes)), codes)
    assert list(pq.get_feature_names_out()) == [f"productquantizer{m}" for m in range(4)]
    even = fitted(rows[:, :20], rotation)
    assert even.codebooks_.shape == (4, 32, 5) and even.counts_.shape == (4, 32)
    wide = fitted(rows, rotation, 2, (9, 3))
    assert wide.transform(rows).dtype == np.uint16 and wide.code_size_ == 2
    assert [len(c) for c in wide.codebooks_] == [512, 8]


def test_the_attributes_of_a_rotation(rows):
    pq = fitted(rows, "opq")
    np.testing.assert_allclose(pq.rotation_ @ pq.rotation_.T, np.eye(22), atol=1e-5)
    assert pq.rotation_.dtype == np.float32 and not hasattr(pq, "feature_scale_")
    pq.set_params(rotation=None, feature_weight=np.full(22, 4.0)).fit(rows)
    assert not hasattr(pq, "rotation_")
    np.testing.assert_array_equal(pq.feature_scale_, np.full(22, 2, np.float32))


def test_subspaces_are_fitted_as_vector_quantizers(rows):
    starts = np.stack([rows[:16, m * 11 : m * 11 + 11] for m in range(2)])
    pq = ProductQuantizer(2, 4, init=starts, tol=0).fit(rows)
    for m, features in enumerate(pq.subspaces_):
        vq = VectorQuantizer(16, init=starts[m], max_iter=25, tol=0).fit(rows[:, features])
        np.testing.assert_array_equal(pq.codebooks_[m], vq.codebook_)
        np.testing.assert_array_equal(pq.transform(rows)[:, m], vq.predict(rows[:, features]))
        np.testing.assert_array_equal(pq.counts_[m], vq.counts_)


@rotations
def test_inertia_is_the_error_on_the_rows(rotation, rows):
    pq = fitted(rows, rotation, tol=0)
    assert pq.inertia_ == pytest.approx(error(rows, pq) * len(rows), rel=1e-4)
    assert pq.distortion(rows) == pytest.approx(error(rows, pq), rel=1e-6)
    assert pq.score(rows) == -pq.distortion(rows)
    history = pq.inertia_history_
    assert len(history) > 4 and (np.diff(history) <= 1e-5 * history[0]).all()
    assert history[-1] == pq.inertia_


def test_a_rotation_pays_where_features_depend_on_each_other(rows):
    plain, random, opq = (fitted(rows, rotation, max_iter=20) for rotation in ROTATIONS)
    assert opq.inertia_ < 0.9 * min(plain.inertia_, random.inertia_)


def test_turns_lower_the_error_below_the_parametric_start(rows, monkeypatch):
    opq = fitted(rows, "opq", max_iter=30)
    monkeypatch.setattr(
        _opq, "_alternate", lambda fit, scale, rotation, books: (rotation, books, [])
    )
    parametric = fitted(rows, "opq", max_iter=30)
    assert opq.inertia_ < parametric.inertia_


def test_dealing_directions():
    variances = np.array([16.0, 8.0, 4.0, 2.0])
    order = _opq.balanced(variances, [2, 2])
    products = [variances[order[:2]].prod(), variances[order[2:]].prod()]
    assert products == [32, 32]
    assert sorted(_opq.balanced(np.zeros(5), [2, 2, 1])) == [0, 1, 2, 3, 4]


def test_important_features_are_kept_better(rows):
    weight = np.ones(22)
    weight[:4] = 50
    for rotation in ROTATIONS:
        plain, weighted = (
            fitted(rows, rotation, feature_weight=each, max_iter=10) for each in (None, weight)
        )
        errors = [
            np.square(rows - pq.inverse_transform(pq.transform(rows))).mean(axis=0)
            for pq in (plain, weighted)
        ]
        assert errors[1][:4].sum() < 0.8 * errors[0][:4].sum()
        assert weighted.inertia_ == pytest.approx(errors[1] @ weight * len(rows), rel=1e-4)
        assert errors[1] @ weight < errors[0] @ weight


@rotations
def test_from_codebooks(rotation, rows):
    pq = fitted(rows, rotation)
    made = ProductQuantizer.from_codebooks(pq.codebooks_, getattr(pq, "rotation_", None))
    assert made.n_subspaces == 4 and made.n_bits == 5 and made.code_size_ == pq.code_size_
    assert made.rotation == (rotation and "opq")
    assert made.transform(rows).tobytes() == pq.transform(rows).tobytes()
    assert made.distortion(rows) == pq.distortion(rows)
    assert not np.shares_memory(made.codebooks_[0], pq.codebooks_[0])
    assert pickle.loads(pickle.dumps(made)).distortion(rows) == pq.distortion(rows)
    assert made.fit(rows).inertia_ > 0
    mixed = ProductQuantizer.from_codebooks([rows[:4, :2], rows[:8, 2:].astype(np.float64)])
    assert mixed.n_bits == [2, 3] and mixed.codebooks_[0].dtype == np.float64
    assert mixed.transform(rows).shape == (len(rows), 2)


def test_codebooks_that_cannot_be(rows):
    for codebooks, why in (
        ([], "got none"),
        ([rows[:4], rows[:3]], "2, 4, 8"),
        ([rows[:1]], "n_bits"),
        ([rows[:4] * np.nan], "NaN"),
    ):
        with pytest.raises(ValueError, match=why):
            ProductQuantizer.from_codebooks(codebooks)
    with pytest.raises(ValueError, match="orthogonal"):
        ProductQuantizer.from_codebooks([rows[:4]], np.ones((22, 22)))
    with pytest.raises(ValueError, match="shape"):
        ProductQuantizer.from_codebooks([rows[:4]], np.eye(21))
    with pytest.raises(TypeError, match="feature_weight"):
        ProductQuantizer.from_codebooks([rows[:4]], feature_weight=np.ones(22))


@pytest.mark.parametrize(
    ("n", "d", "dtype", "parameters"),
    [
        (60_000, 32, "float32", {}),
        (60_000, 32, "float64", {"rotation": "random"}),
        (60_000, 30, "float32", {"n_subspaces": 3, "n_bits": 10}),
        (30_000, 128, "uint8", {"n_subspaces": 16, "n_bits": 6, "rotation": "opq"}),
        (3_000, 200, "float64", {"n_subspaces": 4, "rotation": "opq"}),
        (100_000, 16, "float32", {"n_bits": 4, "max_samples": 0.1}),
        (60_000, 32, "float32", {"feature_weight": np.ones(32)}),
    ],
)
def test_memory_estimate(n, d, dtype, parameters):
    X = (np.random.RandomState(0).rand(n, d) * 200).astype(dtype)
    pq = ProductQuantizer(max_iter=2, random_state=0, n_threads=2).set_params(**parameters)
    estimate = pq.memory_estimate(n, d, dtype)
    for call, most in ((pq.fit, estimate.fit), (pq.transform, estimate.transform)):
        tracemalloc.start()
        call(X)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= most <= 2 * peak + 6 * 2**20


@rotations
def test_a_replaced_codebook_counts(rotation, rows):
    pq = fitted(rows[:, :20], rotation)
    codes = pq.transform(rows[:, :20])
    pq.codebooks_ = pq.codebooks_[:, ::-1].copy()
    np.testing.assert_array_equal(pq.transform(rows[:, :20]), 31 - codes)


@rotations
def test_pickles_and_clones(rotation, rows):
    pq = fitted(rows, rotation, feature_weight=np.arange(1, 23))
    assert "_compiled" not in pq.__getstate__()
    again = pickle.loads(pickle.dumps(pq))
    assert again.transform(rows).tobytes() == pq.transform(rows).tobytes()
    assert clone(pq).fit(rows).inertia_ == pq.inertia_


# The promises ------------------------------------------------------------------------------------


@rotations
@pytest.mark.parametrize("weighted", [False, True])
def test_the_code_of_a_row_depends_on_that_row_alone(rotation, weighted, rows):
    pq = fitted(rows, rotation, feature_weight=np.arange(1, 23) if weighted else None, n_threads=1)
    expected = pq.transform(rows)
    back = pq.inverse_transform(expected)
    for threads in (2, 5):
        pq.set_params(n_threads=threads)
        assert pq.transform(rows).tobytes() == expected.tobytes()
        assert pq.inverse_transform(expected).tobytes() == back.tobytes()
    assert pq.transform(rows[::-1]).tobytes() == expected[::-1].tobytes()
    for size in (1, 7, 48, 49, 1000):
        assert pq.transform(rows[5 : 5 + size]).tobytes() == expected[5 : 5 + size].tobytes()
        again = pq.inverse_transform(expected[5 : 5 + size])
        assert again.tobytes() == back[5 : 5 + size].tobytes()
    for i in range(0, len(rows), 100):
        assert pq.transform(rows[i : i + 1]).tobytes() == expected[i : i + 1].tobytes()


@rotations
def test_a_fit_does_not_depend_on_the_number_of_threads(rotation):
    X = correlated(12_000, 24)
    weight = np.random.RandomState(0).gamma(1, size=len(X))
    found = {
        (
            fitted(X, rotation, n_threads=threads, max_iter=3)
            .fit(X, sample_weight=weight)
            .codebooks_.tobytes()
        )
        for threads in (1, 2, 5)
    }
    assert len(found) == 1


@pytest.mark.parametrize("rotation", [None, "opq"])
def test_many_blocks_of_rows(rotation, monkeypatch):
    """As many as a large input has."""
    X = correlated(900, 10)
    whole = fitted(X, rotation)
    monkeypatch.setattr(_opq, "_BLOCK_BYTES", 4 * 10 * 70)
    assert whole.transform(X).tobytes() == fitted(X, rotation).transform(X).tobytes()


# Input -------------------------------------------------------------------------------------------


@rotations
@pytest.mark.parametrize("dtype", ROW_DTYPES)
def test_rows_of_every_type_and_layout(dtype, rotation, tmp_path):
    X = (correlated(300, 9) * 8).clip(-100, 100).astype(dtype)
    pq = fitted(X, rotation, 3, 4)
    assert pq.codebooks_.dtype == (np.float64 if dtype == "float64" else np.float32)
    codes = pq.transform(X)
    for name, same in layouts(X, tmp_path).items():
        again = fitted(same, rotation, 3, 4)
        assert again.codebooks_.tobytes() == pq.codebooks_.tobytes(), name
        assert again.transform(same).tobytes() == codes.tobytes(), name


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_magnitudes(magnitude, dtype):
    X = correlated(500, 8).astype(dtype)
    plain = fitted(X, None, 2, 4)
    scaled = fitted((X * magnitude).astype(dtype), None, 2, 4)
    assert scaled.inertia_ == pytest.approx(plain.inertia_ * magnitude**2, rel=0.05)
    assert scaled.transform(X * magnitude).std() > 1


def test_weights_are_repetitions(rows):
    counts = np.random.RandomState(0).randint(0, 4, len(rows))
    starts = np.stack([rows[:8, m * 11 : m * 11 + 11] for m in range(2)])
    for rotation in (None, "random"):
        pq = ProductQuantizer(2, 3, init=starts, rotation=rotation, random_state=0, tol=0)
        weighted = clone(pq).fit(rows, sample_weight=counts)
        repeated = clone(pq).fit(rows.repeat(counts, axis=0))
        np.testing.assert_allclose(weighted.codebooks_, repeated.codebooks_, atol=1e-5)
        assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-5)


def test_max_samples_alone_subsamples(rows):
    assert fitted(rows).counts_[0].sum() == len(rows)
    assert fitted(rows, max_samples=500).counts_[0].sum() == 500
    assert fitted(rows, "opq", max_samples=0.5).counts_[0].sum() == 1500


@rotations
def test_fewer_rows_than_codewords(rotation, rows):
    few = rows[:20]
    with pytest.warns(ConvergenceWarning, match="fewer distinct rows than codewords in 4 of 4"):
        pq = fitted(few, rotation)
    np.testing.assert_allclose(pq.inverse_transform(pq.transform(few)), few, atol=1e-4)


@rotations
def test_constant_rows_and_one_feature(rotation):
    with pytest.warns(ConvergenceWarning):
        pq = fitted(np.ones((50, 4), np.float32), rotation, 2, 3)
    np.testing.assert_allclose(pq.inverse_transform(pq.transform(np.ones((2, 4)))), 1, atol=1e-5)
    single = fitted(correlated(500, 1), rotation, 1, 3)
    assert single.codebooks_.shape == (1, 8, 1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_subspaces": 23}, "n_subspaces must be at most n_features=22"),
        ({"n_subspaces": 0}, "n_subspaces"),
        ({"n_bits": 0}, "n_bits"),
        ({"n_bits": 17}, "n_bits must be from 1 to 16"),
        ({"n_bits": (4, 5)}, "n_bits must be one number or one for each"),
        ({"n_bits": (4, 5, 17, 2)}, "n_bits must be from 1 to 16"),
        ({"rotation": "pca"}, "rotation must be one of 'opq', 'random'"),
        ({"init": "nothing"}, "init must be one of"),
        ({"init": [np.zeros((32, 5))]}, "init must be a word or 4 codebooks"),
        ({"init": [np.zeros((32, 5))] * 4}, r"init\[0\] must have the shape"),
        ({"init": [np.zeros((32, 5))] * 4, "rotation": "opq"}, "init must be a word"),
        ({"max_iter": 0}, "max_iter"),
        ({"tol": -1}, "tol"),
        ({"max_samples": 2.0}, "max_samples"),
        ({"feature_weight": np.ones(21)}, "feature_weight must have shape"),
        ({"feature_weight": np.zeros(22)}, "feature_weight must be finite and above 0"),
        ({"feature_weight": -np.ones(22)}, "feature_weight must be finite and above 0"),
        ({"feature_weight": np.full(22, np.nan)}, "feature_weight must be finite and above 0"),
    ],
)
def test_parameters_that_cannot_be(parameters, message, rows):
    pq = ProductQuantizer(**{"n_subspaces": 4, "n_bits": 5, **parameters})
    with pytest.raises(ValueError, match=message):
        pq.fit(rows)
    assert not hasattr(pq, "codebooks_") and not hasattr(pq, "n_features_in_")


@rotations
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_cannot_be(value, rotation, rows):
    pq = fitted(rows, rotation)
    before = vars(pq).copy()
    bad = rows.copy()
    bad[2500, 17] = value
    with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
        pq.fit(bad)
    assert vars(pq) == before
    with pytest.raises(ValueError, match=r"\(row 2500, feature 17\)"):
        pq.transform(bad)


def test_codes_that_cannot_be(rows):
    pq = fitted(rows)
    with pytest.raises(ValueError, match="codes must be from 0 to 31"):
        pq.inverse_transform([[0, 0, 32, 0]])
    with pytest.raises(ValueError, match="shape"):
        pq.inverse_transform(np.zeros((3, 5), int))


def test_an_interruption_leaves_the_estimator_as_it_was(rows, monkeypatch):
    pq = fitted(rows, n_threads=2)
    before = vars(pq).copy()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvq.vq.product.fit_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pq.fit(rows + 1)
    assert vars(pq) == before


# Among scikit-learn's estimators -----------------------------------------------------------------


DRAWN = {
    "check_sample_weight_equivalence_on_dense_data": "rows are drawn at random as first codewords; "
    "from the same start weighting is repeating (test_weights_are_repetitions)"
}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [ProductQuantizer(1, 2), ProductQuantizer(2, 5), ProductQuantizer(2, 3, rotation="opq")],
    expected_failed_checks=lambda pq: DRAWN if pq.n_bits < 5 else {},
)
def test_estimator_checks(estimator, check):
    check(estimator)


def test_a_pipeline_back_into_the_input_s_units(rows):
    pipeline = make_pipeline(StandardScaler(), ProductQuantizer(11, 6, random_state=0)).fit(rows)
    back = pipeline.inverse_transform(pipeline.transform(rows))
    assert np.square(back - rows).mean() < 0.1 * rows.var(axis=0).mean()


# Properties --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 90),
    d=st.integers(1, 12),
    data=st.data(),
    n_bits=st.integers(1, 6),
    rotation=st.sampled_from(ROTATIONS),
)
def test_what_is_decoded_is_in_the_span_of_the_codebooks(n, d, data, n_bits, rotation):
    X = correlated(n, d, seed=n)
    pq = ProductQuantizer(data.draw(st.integers(1, d)), n_bits, rotation=rotation, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pq.fit(X)
    codes = pq.transform(X)
    back = pq.inverse_transform(codes)
    coordinates = back if rotation is None else back @ pq.rotation_
    for m, features in enumerate(pq.subspaces_):
        np.testing.assert_allclose(
            coordinates[:, features], pq.codebooks_[m][codes[:, m]], atol=1e-4
        )
    np.testing.assert_array_equal(pq.unpack(pq.pack(codes)), codes)


@pytest.mark.parametrize("rotation", [None, "opq"])
def test_more_bits_are_better_on_the_mean_of_five_seeds(rotation):
    X = correlated(2000, 12)
    errors = [
        np.mean([fitted(X, rotation, 3, bits, random_state=seed).inertia_ for seed in range(5)])
        for bits in range(1, 8)
    ]
    assert (np.diff(errors) < 0).all()


class TestPartialFit:
    def batches(self, n=6, size=700, d=10):
        rng = np.random.default_rng(5)
        centres = rng.standard_normal((60, d)) * 4
        for _ in range(n):
            yield (centres[rng.integers(60, size=size)] + rng.standard_normal((size, d))).astype(
                "f4"
            )

    def streamed(self, n_threads=None, **parameters):
        pq = ProductQuantizer(3, 5, random_state=0, n_threads=n_threads, **parameters)
        for batch in self.batches():
            pq.partial_fit(batch)
        return pq

    @pytest.mark.parametrize("rotation", [None, "random", "opq"])
    def test_the_same_at_any_number_of_threads(self, rotation):
        one = self.streamed(1, rotation=rotation)
        for n_threads in (2, 5):
            other = self.streamed(n_threads, rotation=rotation)
            for a, b in zip(one.codebooks_, other.codebooks_, strict=True):
                np.testing.assert_array_equal(a, b, strict=True)

    @pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2, 10)])
    def test_nearly_as_good_as_all_at_once(self, weights):
        X = np.concatenate([*self.batches()])
        first = ProductQuantizer(3, 5, random_state=0, feature_weight=weights)
        start = first.fit(X[:700]).distortion(X)
        whole = ProductQuantizer(3, 5, random_state=0, feature_weight=weights).fit(X)
        streamed = self.streamed(feature_weight=weights)
        assert streamed.distortion(X) < start
        assert streamed.distortion(X) < 1.05 * whole.distortion(X)
        np.testing.assert_allclose([each.sum() for each in streamed.counts_], len(X))
        assert len(streamed.inertia_history_) == streamed.n_iter_ + 1

    def test_each_codeword_is_the_mean_of_its_rows(self):
        books = [np.array([[0.0], [10.0]]), np.array([[0.0], [10.0]])]
        pq = ProductQuantizer.from_codebooks(books)
        pq.partial_fit([[1.0, 9.0], [2.0, 12.0]]).partial_fit([[3.0, 0.0], [9.0, 9.0]])
        np.testing.assert_allclose(pq.codebooks_[0][:, 0], [2, 9])
        np.testing.assert_allclose(pq.codebooks_[1][:, 0], [0, 10])
        np.testing.assert_array_equal(pq.counts_, [[3, 1], [1, 3]])

    def test_bad_batches_leave_it_as_it_was(self):
        pq = self.streamed()
        before = pq.codebooks_
        with pytest.raises(ValueError, match="NaN"):
            pq.partial_fit(np.full((3, 10), np.nan))
        with pytest.raises(ValueError, match="features"):
            pq.partial_fit(np.zeros((3, 9)))
        assert pq.codebooks_ is before
