"""ScalarQuantizer: what it learns, what it promises, what it refuses."""

import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import layouts
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastvq import ScalarQuantizer

SCHEMES = [
    {},
    {"symmetric": True},
    {"calibration": "percentile"},
    {"calibration": "mse"},
    {"calibration": "mse", "symmetric": True},
    {"calibration": "percentile", "symmetric": True},
    {"scheme": "quantile"},
    {"scheme": "optimal"},
]
GRANULARITIES = [{}, {"granularity": "tensor"}, {"granularity": "group", "group_size": 4}]
schemes = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: "-".join(map(str, s.values())))
granularities = pytest.mark.parametrize(
    "granularity", GRANULARITIES, ids=["feature", "tensor", "group"]
)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3000, 6)) * [1, 1, 10, 0.1, 1, 100] + [0, 5, 0, 0, -3, 0]
    X[:, 4] = 7
    return X.astype(np.float32)


def levels_of(sq):
    """All levels of every group, (n_groups, 2**n_bits)."""
    if hasattr(sq, "codebooks_"):
        return sq.codebooks_.astype(np.float64)
    return sq.scale_[:, None] * (np.arange(2**sq.n_bits_) - sq.zero_point_[:, None])


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [ScalarQuantizer(**scheme) for scheme in SCHEMES]
    + [ScalarQuantizer(3, granularity="tensor"), ScalarQuantizer(12, scheme="optimal")]
)
def test_estimator_checks(estimator, check):
    check(estimator)


class TestLevels:
    @granularities
    @schemes
    @pytest.mark.parametrize("n_bits", [1, 2, 5, 8, 11])
    def test_codes_are_those_of_the_nearest_levels(self, n_bits, scheme, granularity, rows):
        sq = ScalarQuantizer(n_bits, **scheme, **granularity).fit(rows)
        codes = sq.transform(rows)
        assert codes.dtype == (np.uint8 if n_bits <= 8 else np.uint16) and codes.max() < 2**n_bits
        decoded = sq.inverse_transform(codes)
        assert decoded.dtype == np.float32
        group = np.arange(6) // sq.group_size_
        levels = levels_of(sq)[group]
        exact = np.take_along_axis(levels.T, codes.astype(int), axis=0)
        span = np.abs(levels).max(axis=1)
        np.testing.assert_allclose(decoded, exact, rtol=0, atol=2e-7 * span.max())
        for f in range(6):
            in_use = levels[f][int(sq.symmetric and n_bits > 1) :]
            best = np.abs(rows[:, [f]].astype(float) - in_use).min(axis=1)
            found = np.abs(rows[:, f] - exact[:, f])
            step = np.diff(levels[f]).max()
            assert (found <= best + 1e-5 * (span[f] + step) * (1 + 2**n_bits / 1e3)).all()
        assert sq.distortion(rows) == pytest.approx(
            ((rows.astype(float) - decoded) ** 2).sum(axis=1).mean(), rel=1e-12
        )

    def test_minmax(self, rows):
        sq = ScalarQuantizer().fit(rows)
        np.testing.assert_array_equal(sq.range_, np.column_stack([rows.min(0), rows.max(0)]))
        low, high = sq.range_.astype(float).T
        usual = low < high
        np.testing.assert_allclose(sq.scale_[usual], ((high - low) / 255)[usual])
        assert sq.scale_[4] == 1
        decoded = sq.inverse_transform(sq.transform(rows))
        np.testing.assert_array_equal(decoded.min(0), rows.min(0))
        np.testing.assert_allclose(decoded.max(0), rows.max(0), rtol=1e-6)
        assert (decoded[:, 4] == 7).all()
        assert (np.abs(decoded - rows) <= sq.scale_ * 0.5001).all()

    @pytest.mark.parametrize("n_bits", [1, 2, 8, 16])
    def test_symmetric(self, n_bits, rows):
        sq = ScalarQuantizer(n_bits, symmetric=True).fit(rows)
        np.testing.assert_array_equal(sq.range_[:, 0], -np.abs(rows).max(0))
        np.testing.assert_array_equal(sq.range_[:, 1], np.abs(rows).max(0))
        assert (sq.zero_point_ == (0.5 if n_bits == 1 else 2 ** (n_bits - 1))).all()
        codes = sq.transform(np.concatenate([rows, -rows, 10 * rows, -10 * rows]))
        first = int(n_bits > 1)
        assert codes.min() == first and codes.max() == 2**n_bits - 1
        if n_bits > 1:
            zero = np.zeros((1, 6), np.float32)
            assert (sq.inverse_transform(sq.transform(zero)) == 0).all()
            # Changing signs changes signs.
            half = len(rows)
            sums = codes[:half].astype(int) + codes[half : 2 * half]
            assert (sums == 2**n_bits).mean() > 0.99  # all but ties, as float32 sees them
            assert np.abs(sums - 2**n_bits).max() <= 1

    def test_values_outside_are_clamped(self, rows):
        for scheme in SCHEMES:
            sq = ScalarQuantizer(4, **scheme).fit(rows)
            far = np.float32([[1e30] * 6, [-1e30] * 6])
            decoded = sq.inverse_transform(sq.transform(far))
            kept = levels_of(sq) if "scheme" in scheme else sq.range_
            np.testing.assert_allclose(decoded, [kept.max(1), kept.min(1)], rtol=1e-5)

    def test_percentile(self):
        X = np.append(np.arange(1.0, 1001.0), [1e9, -1e9])[:, None]
        sq = ScalarQuantizer(calibration="percentile", percentile=98).fit(X)
        assert sq.range_.tolist() == [[10, 991]]
        sq = ScalarQuantizer(calibration="percentile", percentile=100).fit(X)
        assert sq.range_.tolist() == [[-1e9, 1e9]]
        sq = ScalarQuantizer(calibration="percentile", percentile=50, symmetric=True).fit(X)
        assert sq.range_.tolist() == [[-501, 501]]

    @granularities
    @pytest.mark.parametrize("n_bits", [1, 2, 3, 4, 6, 8])
    def test_the_order_of_errors(self, n_bits, granularity, rows):
        """Least squares beats the whole range, and the optimum beats all."""
        X = rows.astype(np.float64)
        error = {
            str(scheme): ScalarQuantizer(n_bits, **scheme, **granularity).fit(X).distortion(X)
            for scheme in SCHEMES
        }
        assert error["{'calibration': 'mse'}"] <= error["{}"] * (1 + 1e-9)
        symmetric = error["{'calibration': 'mse', 'symmetric': True}"]
        assert symmetric <= error["{'symmetric': True}"] * (1 + 1e-9)
        best = error["{'scheme': 'optimal'}"]
        assert all(best <= other * (1 + 1e-9) for other in error.values())

    @pytest.mark.parametrize("n_bits", [2, 3, 4])
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_least_squares_beside_a_grid(self, symmetric, n_bits):
        """No range of a fine grid is better than the one found, by more than a little."""
        rng = np.random.default_rng(1)
        for X in (
            rng.standard_normal((4000, 1)),
            rng.laplace(size=(4000, 1)),
            rng.random((4000, 1)),
        ):
            found = ScalarQuantizer(n_bits, calibration="mse", symmetric=symmetric).fit(X)
            sq = ScalarQuantizer(n_bits, symmetric=symmetric)
            best = np.inf
            ends = np.linspace(0.15, 1, 40)
            for low in ends:
                for high in [low] if symmetric else ends:
                    most = np.abs(X).max()
                    pair = (
                        [-low * most, high * most] if symmetric else [low * X.min(), high * X.max()]
                    )
                    best = min(best, sq.fit(np.reshape(pair, (2, 1))).distortion(X))
            assert found.distortion(X) <= best * 1.01

    def test_published_optima(self):
        """Lloyd-Max levels of a Gaussian (Max 1960): distortions 0.3634, 0.1175, 0.03454,
        0.009497 of the variance with 1 to 4 bits."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((400_000, 1))
        for n_bits, expected in [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)]:
            sq = ScalarQuantizer(n_bits, scheme="optimal").fit(X)
            assert sq.distortion(X) == pytest.approx(expected, rel=0.01)

    def test_quantile_levels(self):
        X = np.arange(1.0, 9.0)[:, None]
        sq = ScalarQuantizer(2, scheme="quantile").fit(X)
        assert sq.codebooks_.tolist() == [[1.5, 3.5, 5.5, 7.5]]
        assert np.bincount(sq.transform(X)[:, 0]).tolist() == [2, 2, 2, 2]
        sq.fit([[1.0], [4.0]], sample_weight=[3, 1])
        assert sq.codebooks_.tolist() == [[1, 1, 1, 4]]
        sq.fit([[0.0], [3.0], [6.0]])
        assert sq.codebooks_[0] == pytest.approx([0, 2, 4, 6])

    @granularities
    @schemes
    def test_few_values(self, scheme, granularity):
        for X in (
            np.float32([[1, 2, 3, 4, 5]]),
            np.full((9, 5), 3.5),
            np.zeros((9, 5)),
            np.full((3, 5), 1e30, np.float32),
            np.full((3, 5), -1e-42, np.float32),
        ):
            sq = ScalarQuantizer(3, **scheme, **granularity).fit(X)
            decoded = sq.inverse_transform(sq.transform(X))
            spread = X.max() - X.min()
            np.testing.assert_allclose(decoded, X, rtol=1e-6, atol=0.6 * spread)
            if granularity == {} and not scheme.get("symmetric"):
                np.testing.assert_array_equal(decoded, X)
            if "scheme" in scheme:
                assert (np.diff(sq.codebooks_) >= 0).all()
                assert sq.transform(X).max() <= (4 if scheme["scheme"] == "optimal" else 7)

    def test_groups(self, rows):
        sq = ScalarQuantizer(granularity="group", group_size=4).fit(rows)
        assert sq.scale_.shape == (2,) and sq.group_size_ == 4
        assert sq.range_[0].tolist() == [rows[:, :4].min(), rows[:, :4].max()]
        assert sq.range_[1].tolist() == [rows[:, 4:].min(), rows[:, 4:].max()]
        whole = ScalarQuantizer(granularity="group", group_size=99).fit(rows)
        tensor = ScalarQuantizer(granularity="tensor").fit(rows)
        np.testing.assert_array_equal(whole.transform(rows), tensor.transform(rows))

    @schemes
    @pytest.mark.parametrize(
        ("dtype", "scale"),
        [("f4", 1e30), ("f4", 3e37), ("f4", 1e-30), ("f4", 1e-41), ("f8", 1e140), ("f8", 1e-290),
         ("f8", 1e-310)],
    )  # fmt: skip
    def test_any_size_of_values(self, dtype, scale, scheme):
        X = np.random.default_rng(0).uniform(-4, 9, (400, 3))
        usual = ScalarQuantizer(4, **scheme).fit(X)
        sized = (X * scale).astype(dtype)
        sq = ScalarQuantizer(4, **scheme).fit(sized)
        assert sq._codebook_dtype == dtype
        codes = sq.transform(sized)
        # All but a few, at the edge between two levels, or where digits are lacking.
        assert (codes == usual.transform(X)).mean() > 0.98
        decoded = sq.inverse_transform(codes).astype(np.float64) / scale
        expected = usual.inverse_transform(codes)
        np.testing.assert_allclose(decoded, expected, atol=0.02)

    def test_far_from_the_origin(self):
        X = (np.random.default_rng(0).random((500, 2)) + 1e5).astype(np.float32)
        for scheme in SCHEMES[:1] + SCHEMES[3:4] + SCHEMES[-2:]:
            sq = ScalarQuantizer(6, **scheme).fit(X)
            decoded = sq.inverse_transform(sq.transform(X))
            assert np.abs(decoded.astype(float) - X).max() < 0.02 + (
                0.1 if "scheme" in scheme else 0
            )


class TestPromises:
    @granularities
    @schemes
    def test_a_code_depends_on_its_value_alone(self, scheme, granularity, rows):
        sq = ScalarQuantizer(5, **scheme, **granularity, n_threads=1).fit(rows)
        codes = sq.transform(rows)
        for n_threads in (2, 5):
            sq.set_params(n_threads=n_threads)
            np.testing.assert_array_equal(sq.transform(rows), codes)
        np.testing.assert_array_equal(sq.transform(rows[::-1]), codes[::-1])
        for i in (0, 1, 500, 2999):
            np.testing.assert_array_equal(sq.transform(rows[i : i + 1]), codes[i : i + 1])
        np.testing.assert_array_equal(sq.encode_blocks([rows[:7], rows[7:]]), codes)

    @granularities
    @schemes
    def test_a_fit_does_not_depend_on_threads(self, scheme, granularity, rows):
        weight = np.random.default_rng(0).gamma(1, size=len(rows))
        states = set()
        for n_threads in (1, 2, 5):
            sq = ScalarQuantizer(6, **scheme, **granularity, n_threads=n_threads)
            sq.fit(rows, sample_weight=weight)
            states.add(levels_of(sq).tobytes())
        assert len(states) == 1

    @schemes
    def test_weighting_is_repeating(self, scheme, rows):
        X = rows[:400].astype(np.float64)
        counts = np.random.default_rng(0).integers(0, 4, len(X))
        weighted = ScalarQuantizer(3, **scheme).fit(X, sample_weight=counts)
        repeated = ScalarQuantizer(3, **scheme).fit(X.repeat(counts, axis=0))
        np.testing.assert_allclose(levels_of(weighted), levels_of(repeated), rtol=1e-9, atol=1e-12)

    @schemes
    @pytest.mark.parametrize("dtype", ["float16", "uint8", "int8", "float32", "float64"])
    def test_layouts(self, dtype, scheme, tmp_path):
        X = np.random.default_rng(0).integers(0, 100, (65, 7)).astype(dtype)
        wide = X.astype(np.float64 if dtype == "float64" else np.float32)
        usual = ScalarQuantizer(4, **scheme).fit(wide)
        for name, same in layouts(X, tmp_path).items():
            sq = ScalarQuantizer(4, **scheme).fit(same)
            np.testing.assert_array_equal(levels_of(sq), levels_of(usual), name)
            np.testing.assert_array_equal(sq.transform(same), usual.transform(wide), name)
            assert sq._codebook_dtype == wide.dtype

    @pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_memory(self, order, dtype):
        """Small types are never copied; float32 neither where only ranges are wanted."""
        X = np.zeros((200_000, 40), dtype, order=order)
        X[::3] = 1
        cases = [{}] if dtype == "float32" else [*SCHEMES]
        for scheme in cases:
            sq = ScalarQuantizer(n_threads=1, granularity="tensor", **scheme)
            tracemalloc.start()
            sq.fit(X)
            out = np.empty(X.shape, np.uint8)
            before = tracemalloc.get_traced_memory()[0]
            sq.transform(X, out=out)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert before < out.nbytes + 2**20
            assert peak - out.nbytes < 24 * 2**20, scheme  # of 32 MB that a float32 copy takes

    @granularities
    @schemes
    def test_memory_estimate(self, scheme, granularity):
        X = np.random.default_rng(0).standard_normal((60_000, 6)).astype(np.float32)
        sq = ScalarQuantizer(8, **scheme, **granularity, n_threads=2)
        estimate = sq.memory_estimate(*X.shape)
        for call, most in ((sq.fit, estimate.fit), (sq.transform, estimate.transform)):
            tracemalloc.start()
            call(X)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < most + 2**20

    @pytest.mark.parametrize("n_bits", range(1, 17))
    def test_packing(self, n_bits, rows):
        for d in (1, 3, 6):
            sq = ScalarQuantizer(n_bits, granularity="tensor").fit(rows[:, :d])
            codes = sq.transform(rows[:, :d])
            packed = sq.pack(codes)
            assert packed.shape == (len(rows), sq.code_size_) and sq.code_size_ == -(
                -n_bits * d // 8
            )
            back = sq.unpack(packed)
            assert back.dtype == codes.dtype
            np.testing.assert_array_equal(back, codes)
            np.testing.assert_array_equal(sq.unpack(packed.tobytes()), codes)

    def test_rows_of_8_and_4_bits_are_faiss_s(self):
        """Trained by faiss on the same range, its codes are ours, bytes and all; its levels lie in
        the middle of cells, a little otherwise than ours, so that codes may differ by one."""
        faiss = pytest.importorskip("faiss")
        X = np.random.default_rng(0).random((1000, 16), dtype=np.float32)
        for n_bits, kind in [(8, "QT_8bit"), (4, "QT_4bit")]:
            theirs = faiss.ScalarQuantizer(16, getattr(faiss.ScalarQuantizer, kind))
            theirs.train(X)
            sq = ScalarQuantizer(n_bits).fit(X)
            codes = sq.transform(X).astype(int)
            packed = theirs.compute_codes(X)
            assert packed.shape == sq.pack(codes).shape
            assert np.abs(sq.unpack(packed).astype(int) - codes).max() <= 1

    @settings(max_examples=60, deadline=None)
    @given(
        X=st.tuples(st.integers(1, 60), st.integers(1, 4)).flatmap(
            lambda shape: arrays(np.float64, shape, elements=st.floats(-1e6, 1e6))
        ),
        n_bits=st.integers(1, 6),
    )
    def test_properties(self, X, n_bits):
        """More bits never worsen the best levels; what is decoded is a level; packing loses
        nothing."""
        errors = []
        for bits in (n_bits, n_bits + 1):
            sq = ScalarQuantizer(bits, scheme="optimal").fit(X)
            errors.append(sq.distortion(X))
            codes = sq.transform(X)
            decoded = sq.inverse_transform(codes)
            for f in range(X.shape[1]):
                assert np.isin(decoded[:, f], sq.codebooks_[f]).all()
            np.testing.assert_array_equal(sq.unpack(sq.pack(codes)), codes)
        rounding = 4 * np.spacing(np.abs(X).max()) ** 2 * X.shape[1]
        assert errors[1] <= errors[0] * (1 + 1e-9) + rounding


class TestStream:
    @granularities
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_is_a_fit_on_all_rows(self, symmetric, granularity, rows):
        whole = ScalarQuantizer(symmetric=symmetric, **granularity).fit(rows)
        stream = ScalarQuantizer(symmetric=symmetric, **granularity)
        for start in range(0, len(rows), 700):
            stream.partial_fit(rows[start : start + 700])
        for name in ("scale_", "zero_point_", "range_"):
            np.testing.assert_array_equal(getattr(stream, name), getattr(whole, name))
        np.testing.assert_array_equal(stream.transform(rows), whole.transform(rows))

    def test_goes_on_after_fit(self, rows):
        sq = ScalarQuantizer().fit(rows[:10]).partial_fit(rows)
        np.testing.assert_array_equal(sq.range_, ScalarQuantizer().fit(rows).range_)

    @pytest.mark.parametrize("scheme", SCHEMES[2:], ids=str)
    def test_only_ranges_can_grow(self, scheme):
        assert not hasattr(ScalarQuantizer(**scheme), "partial_fit")
        assert hasattr(ScalarQuantizer(), "partial_fit")

    def test_after_another_scheme(self, rows):
        sq = ScalarQuantizer(scheme="optimal").fit(rows)
        sq.set_params(scheme="uniform").partial_fit(rows)
        np.testing.assert_array_equal(sq.transform(rows), ScalarQuantizer().fit_transform(rows))

    def test_other_groups(self, rows):
        sq = ScalarQuantizer().fit(rows)
        with pytest.raises(ValueError, match="6 groups.*now make 1"):
            sq.set_params(granularity="tensor").partial_fit(rows)


class TestState:
    @schemes
    def test_pickles(self, scheme, rows):
        sq = ScalarQuantizer(4, **scheme).fit(rows)
        again = pickle.loads(pickle.dumps(sq))
        assert "_compiled" not in sq.__getstate__()
        np.testing.assert_array_equal(again.transform(rows), sq.transform(rows))

    @schemes
    def test_fitted_attributes_are_enough(self, scheme, rows):
        """What a file holds: parameters and public fitted attributes."""
        sq = ScalarQuantizer(4, **scheme, granularity="group", group_size=4).fit(rows)
        again = clone(sq)
        for name, value in vars(sq).items():
            if name.endswith("_") and not name.startswith("_"):
                setattr(again, name, value)
        np.testing.assert_array_equal(again.transform(rows), sq.transform(rows))
        codes = sq.transform(rows)
        np.testing.assert_array_equal(again.inverse_transform(codes), sq.inverse_transform(codes))

    def test_arrays_may_be_replaced_but_not_written_into(self, rows):
        sq = ScalarQuantizer(1, scheme="optimal").fit(rows)
        with pytest.raises(ValueError, match="read-only"):
            sq.codebooks_[0, 0] = 1
        sq.codebooks_ = np.float32([[-1, 0]] * 6)
        assert np.unique(sq.inverse_transform(sq.transform(rows))).tolist() == [-1, 0]

    def test_a_failed_fit_leaves_the_old_one(self, rows):
        sq = ScalarQuantizer().fit(rows)
        before = dict(vars(sq))
        for change in ({"n_bits": 17}, {"scheme": "optimal", "symmetric": True}):
            sq.set_params(**change)
            with pytest.raises(ValueError):
                sq.fit(rows)
            sq.set_params(n_bits=8, scheme="uniform", symmetric=False)
            assert vars(sq) == before

    def test_an_interrupted_fit(self, rows, monkeypatch):
        from fastvq.vq import scalar

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(scalar, "Distribution", interrupt)
        for n_threads in (1, 2):
            sq = ScalarQuantizer(scheme="optimal", n_threads=n_threads)
            with pytest.raises(KeyboardInterrupt):
                sq.fit(rows)
            assert not [name for name in vars(sq) if name.endswith("_")]

    def test_in_a_pipeline(self, rows):
        pipeline = make_pipeline(StandardScaler(), ScalarQuantizer(8)).fit(rows)
        back = pipeline.inverse_transform(pipeline.transform(rows))
        np.testing.assert_allclose(back, rows, atol=0.02 * np.abs(rows).max())
        assert pipeline[-1].get_feature_names_out()[0] == "scalarquantizer0"


class TestRefused:
    @schemes
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, bad, scheme, rows):
        X = rows.copy()
        X[321, 2] = bad
        sq = ScalarQuantizer(**scheme)
        with pytest.raises(ValueError, match="Input X contains (NaN|infinity) .row 321, feature 2"):
            sq.fit(X)
        assert "n_features_in_" not in vars(sq)
        weight = np.ones(len(X))
        weight[321] = 0
        with pytest.raises(ValueError, match="Input X contains (NaN|infinity) .row 321"):
            sq.fit(X, sample_weight=weight)
        sq.fit(rows)
        for call in (sq.transform, sq.distortion, sq.encode_blocks):
            with pytest.raises(ValueError, match="Input X contains (NaN|infinity) .row 321"):
                call(X)

    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("n_bits", 0, ValueError),
            ("n_bits", 17, ValueError),
            ("n_bits", 2.0, TypeError),
            ("scheme", "best", ValueError),
            ("scheme", None, TypeError),
            ("granularity", "row", ValueError),
            ("symmetric", 1, TypeError),
            ("group_size", 3, ValueError),
            ("calibration", "entropy", ValueError),
            ("percentile", 0, ValueError),
            ("percentile", 100.5, ValueError),
            ("percentile", "99", TypeError),
            ("n_threads", 0, ValueError),
        ],
    )
    def test_parameters(self, name, value, error, rows):
        with pytest.raises(error, match=name):
            ScalarQuantizer(**{name: value}).fit(rows)

    def test_group_size_is_needed(self, rows):
        for size, error in [(None, TypeError), (0, ValueError)]:
            with pytest.raises(error, match="group_size"):
                ScalarQuantizer(granularity="group", group_size=size).fit(rows)

    def test_codes_of_another_quantizer(self, rows):
        sq = ScalarQuantizer(4).fit(rows)
        with pytest.raises(ValueError, match="codes must be from 0 to 15"):
            sq.inverse_transform(np.full((2, 6), 16))
        with pytest.raises(ValueError, match=r"codes must have the shape \(n, 6\)"):
            sq.inverse_transform(np.zeros((2, 5), int))

    def test_values_whose_squares_overflow(self):
        with pytest.raises(ValueError, match="X holds values above .* overflow"):
            ScalarQuantizer().fit([[1e200], [0.0]])

    def test_nothing_is_said_about_good_input(self, rows):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for scheme in SCHEMES:
                ScalarQuantizer(**scheme).fit(rows).transform(rows)
