"""BinaryQuantizer: signs of random and of fitted directions."""

import pickle

import numpy as np
import pytest
from oracles import ROW_DTYPES, THREADS, assert_depends_on_row_alone, decaying, layouts, random_rows
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastvq import BinaryQuantizer


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [BinaryQuantizer(), BinaryQuantizer(3), BinaryQuantizer(9, center=False)]
    + [BinaryQuantizer(n_bits, rotation="itq") for n_bits in (1, 2)]
)
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def X():
    return decaying(np.random.RandomState(0), 2000, 40) + np.float32(2)


EVERY = pytest.mark.parametrize(
    "bq",
    [
        BinaryQuantizer(50, random_state=0),
        BinaryQuantizer(24, center=False, random_state=0),
        BinaryQuantizer(21, rotation="itq", random_state=0),
    ],
    ids=["random", "through the origin", "itq"],
)


class TestCodes:
    @EVERY
    def test_are_packed_signs(self, bq, X):
        bq.fit(X)
        sides = (X.astype(float) - bq.mean_) @ bq.planes_.T.astype(float)
        bits = np.unpackbits(bq.transform(X), axis=1, bitorder="little")
        n_bits = len(bq.planes_)
        sure = np.abs(sides) > 1e-4
        assert ((bits[:, :n_bits] == (sides >= 0)) | ~sure).all() and sure.mean() > 0.99
        assert not bits[:, n_bits:].any()
        np.testing.assert_allclose(np.linalg.norm(bq.planes_, axis=1), 1, rtol=1e-5)

    @EVERY
    def test_packing_is_the_identity(self, bq, X):
        codes = bq.fit_transform(X)
        packed = bq.pack(codes)
        assert packed.shape == codes.shape == (2000, bq.code_size_)
        assert (packed == codes).all() and (bq.unpack(packed) == codes).all()
        if len(bq.planes_) % 8:
            with pytest.raises(ValueError, match="from 0 to"):
                bq.inverse_transform(np.full_like(codes, 255))

    @EVERY
    def test_depend_on_the_row_alone(self, bq, X):
        bq.fit(X)
        assert_depends_on_row_alone(
            lambda rows, n_threads: (bq.set_params(n_threads=n_threads).transform(X[rows]),), 300
        )
        bq.set_params(n_threads=None)

    @EVERY
    def test_of_every_layout(self, bq, X, tmp_path):
        bq.fit(X)
        expected = bq.transform(X[:300])
        for name, same in layouts(X[:300], tmp_path).items():
            assert (bq.transform(same) == expected).all(), name

    @pytest.mark.parametrize("dtype", ROW_DTYPES)
    def test_of_every_type(self, dtype):
        rows = random_rows(np.random.RandomState(0), 200, 30, dtype)
        bq = BinaryQuantizer(16, rotation="itq", random_state=0).fit(rows)
        assert bq.planes_.dtype == (np.float64 if dtype == "float64" else np.float32)
        assert (bq.transform(rows) == bq.transform(rows.astype(bq.planes_.dtype))).all()

    def test_angles(self):
        rng = np.random.RandomState(0)
        a, b = rng.standard_normal((2, 200, 16))
        b = a + 0.7 * b
        bq = BinaryQuantizer(4096, center=False, random_state=0).fit(np.concatenate([a, b]))
        bits = [np.unpackbits(bq.transform(rows), axis=1) for rows in (a, b)]
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        estimated = np.pi * (bits[0] != bits[1]).mean(axis=1)
        np.testing.assert_allclose(estimated, np.arccos(cosines), atol=0.12)


class TestFit:
    @EVERY
    def test_the_same_at_any_number_of_threads(self, bq, X):
        fits = [bq.set_params(n_threads=threads).fit(X) and pickle.dumps(
            [bq.planes_, bq.mean_, bq.offset_, bq.directions_]) for threads in THREADS]  # fmt: skip
        bq.set_params(n_threads=None)
        assert fits[0] == fits[1] == fits[2]

    @EVERY
    def test_decoding_is_least_squares(self, bq, X):
        codes = bq.fit_transform(X)
        bits = np.unpackbits(codes, axis=1, count=len(bq.planes_), bitorder="little")
        terms = np.column_stack([np.ones(len(X)), bits * 2.0 - 1])
        best = terms @ np.linalg.lstsq(terms, X.astype(float), rcond=None)[0]
        error = np.square(X - bq.inverse_transform(codes)).sum()
        assert error <= np.square(X - best).sum() * (1 + 1e-4)
        assert bq.distortion(X) == pytest.approx(error / len(X), rel=1e-4)

    def test_itq_tells_more(self, X):
        random = BinaryQuantizer(16, random_state=0).fit(X)
        itq = BinaryQuantizer(16, rotation="itq", random_state=0).fit(X)
        assert itq.distortion(X) < 0.8 * random.distortion(X)
        np.testing.assert_allclose(itq.planes_ @ itq.planes_.T, np.eye(16), atol=1e-5)
        unturned = BinaryQuantizer(16, rotation="itq", max_iter=1, random_state=0).fit(X)

        def agreement(bq):
            sides = (X - bq.mean_) @ bq.planes_.T
            return np.abs(sides).sum()

        assert agreement(itq) > agreement(unturned)
        assert 1 < itq.n_iter_ <= 50

    @pytest.mark.parametrize("rotation", ["random", "itq"])
    def test_weighting_is_repeating(self, X, rotation):
        weight = np.random.RandomState(0).randint(0, 4, len(X))
        bq = BinaryQuantizer(12, rotation=rotation, random_state=0, max_iter=5)
        weighted = bq.fit(X, sample_weight=weight)
        planes, offset, directions = weighted.planes_, weighted.offset_, weighted.directions_
        repeated = bq.fit(np.repeat(X, weight, axis=0))
        np.testing.assert_allclose(np.abs((planes * repeated.planes_).sum(1)), 1, atol=1e-3)
        np.testing.assert_allclose(offset, repeated.offset_, atol=1e-2)
        np.testing.assert_allclose(directions, repeated.directions_, atol=1e-2)

    def test_more_bits_tell_more(self, X):
        distortions = [
            BinaryQuantizer(b, random_state=0).fit(X).distortion(X) for b in (8, 40, 200)
        ]
        assert distortions == sorted(distortions, reverse=True)

    def test_one_row_and_constant_rows(self):
        for rows in (np.ones((1, 3)), np.full((10, 3), 7.0)):
            for bq in (BinaryQuantizer(5), BinaryQuantizer(2, rotation="itq")):
                codes = bq.fit_transform(rows)
                np.testing.assert_allclose(bq.inverse_transform(codes), rows)


class TestBadInput:
    @pytest.mark.parametrize(
        "parameters, error, words",
        [
            ({"n_bits": 0}, ValueError, "n_bits"),
            ({"n_bits": 8.0}, TypeError, "n_bits"),
            ({"n_bits": 41, "rotation": "itq"}, ValueError, "at most n_features=40"),
            ({"rotation": "pca"}, ValueError, "rotation must be one of"),
            ({"max_iter": 0}, ValueError, "max_iter"),
            ({"tol": -1}, ValueError, "tol"),
        ],
    )
    def test_parameters(self, X, parameters, error, words):
        bq = BinaryQuantizer(**parameters)
        with pytest.raises(error, match=words):
            bq.fit(X)
        assert not [name for name in vars(bq) if name.endswith("_")]

    @EVERY
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values(self, bq, X, value):
        bad = X.copy()
        bad[77, 3] = value
        bq.fit(X)
        planes = bq.planes_
        for call in (bq.fit, bq.transform):
            with pytest.raises(ValueError, match="NaN|infinity"):
                call(bad)
        assert bq.planes_ is planes

    @EVERY
    def test_weights(self, bq, X):
        for weight in (-np.ones(2000), np.zeros(2000), np.ones(3)):
            with pytest.raises(ValueError, match="sample_weight"):
                bq.fit(X, sample_weight=weight)


def test_interrupted_it_is_as_before(X, monkeypatch):
    bq = BinaryQuantizer(8, random_state=0).fit(X)
    before = {name: value for name, value in vars(bq).items()}

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvq.vq.binary._decoder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bq.set_params(n_bits=9).fit(X[:, :5])
    assert vars(bq) == {**before, "n_bits": 9}


def test_pickled(X):
    bq = BinaryQuantizer(20, random_state=0).fit(X)
    again = pickle.loads(pickle.dumps(bq))
    assert (again.transform(X) == bq.transform(X)).all()
