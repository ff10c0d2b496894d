"""VectorQuantizer on every kind of input: layouts, dtypes, awkward numbers, and what is refused."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import make_blobs

from fastvq import VectorQuantizer

OUTPUTS = ["codes", "onehot", "onehot-dense", "distances", "reconstruction"]


@pytest.fixture(scope="module")
def grid():
    """Small integers: every dtype holds them exactly."""
    X, _ = make_blobs(600, 4, centers=12, center_box=(10, 90), cluster_std=3, random_state=0)
    return X.clip(0, 100).round().astype(np.float32)


def layouts(X, folder):
    """The same rows in memory of other shapes."""
    wide = np.zeros((2 * len(X), 3 * X.shape[1]), X.dtype)
    wide[1::2, 2::3] = X
    frozen = X.copy()
    frozen.flags.writeable = False
    X.tofile(folder / "rows")
    return {
        "Fortran": np.asfortranarray(X),
        "strided": wide[1::2, 2::3],
        "reversed": X[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": frozen,
        "mapped": np.memmap(folder / "rows", X.dtype, "r", shape=X.shape),
        "list": X.tolist(),
    }


class TestLayouts:
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("algorithm", ["lloyd", "growing", "minibatch"])
    def test_give_the_same_bits(self, algorithm, metric, grid, tmp_path):
        X = grid.astype(np.float64)
        settings = {"algorithm": algorithm, "metric": metric, "random_state": 0}
        usual = VectorQuantizer(12, **settings).fit(X)
        for name, form in layouts(X, tmp_path).items():
            vq = VectorQuantizer(12, **settings).fit(form)
            assert vq.codebook_.tobytes() == usual.codebook_.tobytes(), name
            np.testing.assert_array_equal(vq.transform(form), usual.transform(X), name)
            assert vq.score(form) == usual.score(X), name

    @pytest.mark.parametrize("output", OUTPUTS)
    def test_in_every_output(self, output, grid, tmp_path):
        vq = VectorQuantizer(12, output=output, random_state=0).fit(grid)
        expected = vq.transform(grid)
        for name, form in layouts(grid, tmp_path).items():
            found = vq.transform(form)
            if output == "onehot":
                assert (found != expected).nnz == 0, name
            else:
                np.testing.assert_array_equal(found, expected, name)

    def test_a_mapped_transpose(self, grid, tmp_path):
        grid.T.copy().tofile(tmp_path / "columns")
        mapped = np.memmap(tmp_path / "columns", grid.dtype, "r", shape=grid.T.shape).T
        usual = VectorQuantizer(12, random_state=0).fit(grid)
        vq = VectorQuantizer(12, random_state=0).fit(mapped)
        np.testing.assert_array_equal(vq.codebook_, usual.codebook_)


class TestDtypes:
    @pytest.mark.parametrize("dtype", ["float16", "uint8", "int8", "int16", "uint16", ">f4"])
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_narrow_ones_are_float32(self, dtype, metric, grid):
        usual = VectorQuantizer(12, metric=metric, random_state=0).fit(grid)
        X = grid.astype(dtype)
        vq = VectorQuantizer(12, metric=metric, random_state=0).fit(X)
        assert vq.codebook_.dtype == np.float32
        np.testing.assert_array_equal(vq.codebook_, usual.codebook_)
        np.testing.assert_array_equal(vq.transform(X), usual.transform(grid))

    @pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64", "longdouble", object])
    def test_wide_ones_are_float64(self, dtype, grid):
        usual = VectorQuantizer(12, random_state=0).fit(grid.astype(np.float64))
        vq = VectorQuantizer(12, random_state=0).fit(grid.astype(int).astype(dtype))
        assert vq.codebook_.dtype == np.float64
        np.testing.assert_array_equal(vq.codebook_, usual.codebook_)

    def test_bools(self):
        X = np.random.RandomState(0).rand(200, 6) < 0.5
        usual = VectorQuantizer(8, random_state=0).fit(X.astype(np.float32))
        np.testing.assert_array_equal(VectorQuantizer(8, random_state=0).fit(X).codebook_,
                                      usual.codebook_)  # fmt: skip

    @pytest.mark.parametrize("fitted_on", ["float32", "float64"])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64"])
    def test_rows_are_converted_to_the_codebook_s(self, dtype, fitted_on, grid):
        vq = VectorQuantizer(12, output="distances", random_state=0).fit(grid.astype(fitted_on))
        distances = vq.transform(grid.astype(dtype))
        assert distances.dtype == fitted_on
        np.testing.assert_array_equal(distances, vq.transform(grid.astype(fitted_on)))

    @pytest.mark.parametrize("library", ["pandas", "polars"])
    def test_frames(self, library, grid):
        frames = pytest.importorskip(library)
        names = [*"abcd"]
        frame = frames.DataFrame(dict(zip(names, grid.T, strict=True)))
        vq = VectorQuantizer(12, random_state=0)
        codes = vq.fit_transform(frame)
        usual = VectorQuantizer(12, random_state=0)
        np.testing.assert_array_equal(codes, usual.fit_transform(grid))
        assert vq.feature_names_in_.tolist() == names
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            vq.transform(grid)
        with pytest.raises(ValueError, match="feature names should match"):
            vq.transform(frame[names[::-1]])


class TestNumerics:
    @pytest.mark.parametrize("offset", [1e4, -1e5])
    def test_far_from_the_origin(self, offset):
        """As float64 would assign, to 1e-5 of the best distance."""
        rng = np.random.RandomState(0)
        X = (rng.randn(3000, 8) + offset).astype(np.float32)
        vq = VectorQuantizer(64, random_state=0).fit(X)
        self.check(vq, X)
        centred = VectorQuantizer(64, init=vq.codebook_.astype(np.float64) - offset)
        assert vq.inertia_ < 1.05 * centred.fit(X.astype(np.float64) - offset).inertia_

    def test_two_groups_far_apart(self):
        rng = np.random.RandomState(0)
        X = np.concatenate([rng.randn(1500, 8) + 1e4, rng.randn(1500, 8) - 1e4]).astype(np.float32)
        vq = VectorQuantizer(64, random_state=0).fit(X)
        assert (vq.codebook_[:, 0] > 0).sum() > 10 < (vq.codebook_[:, 0] < 0).sum()
        self.check(vq, X)

    def check(self, vq, X):
        difference = X[:, None].astype(np.float64) - vq.codebook_.astype(np.float64)
        exact = (difference**2).sum(axis=2)
        best = exact.min(axis=1)
        found = exact[np.arange(len(X)), vq.predict(X)]
        np.testing.assert_allclose(found, best, rtol=1e-5)
        assert vq.inertia_ == pytest.approx(best.sum(), rel=1e-5)
        assert vq.distortion(X) == pytest.approx(best.mean(), rel=1e-5)

    @pytest.mark.parametrize("algorithm", ["auto", "lloyd", "growing", "minibatch"])
    @pytest.mark.parametrize(
        ("dtype", "scale"),
        [
            (np.float32, 1e30),
            (np.float32, 1e-30),
            (np.float32, 1e-41),  # subnormal
            (np.float64, 1e30),
            (np.float64, 1e140),
            (np.float64, 1e-140),
            (np.float64, 1e-310),  # subnormal
        ],
    )
    def test_any_size_of_values(self, dtype, scale, algorithm):
        """Scaled by powers of two in effect: the codebook of ordinary values, times the scale."""
        groups = np.random.RandomState(0).randn(6, 1, 3) * 10
        X = (groups + np.random.RandomState(1).randn(6, 50, 3)).reshape(300, 3)
        usual = VectorQuantizer(6, algorithm=algorithm, random_state=0).fit(X)
        tiny = (X * scale).astype(dtype)
        vq = VectorQuantizer(6, algorithm=algorithm, random_state=0)
        codes = vq.fit_predict(tiny)
        assert vq.codebook_.dtype == dtype
        np.testing.assert_array_equal(codes, vq.predict(tiny))
        rounding = 0.02 if scale in (1e-41, 1e-310) else 1e-4
        ordered = np.sort(vq.codebook_.astype(np.float64) / scale, axis=0)
        np.testing.assert_allclose(ordered, np.sort(usual.codebook_, axis=0), atol=rounding * 10)
        expected = usual.inertia_ * scale**2
        assert vq.inertia_ == pytest.approx(expected, rel=rounding)
        assert vq.distortion(tiny) == pytest.approx(expected / 300, rel=rounding)
        # The attributes are those of the codebook as it is kept, not of one in more digits.
        assert vq.inertia_ == pytest.approx(vq.distortion(tiny) * 300, rel=1e-9, abs=1e-300)
        np.testing.assert_array_equal(vq.counts_, np.bincount(codes, minlength=6))
        vq.set_params(output="distances")
        distances = vq.transform(tiny).astype(np.float64) / scale
        expected = usual.set_params(output="distances").transform(X)
        assert distances.max() == pytest.approx(expected.max(), rel=0.02)

    @pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e12, 1e30])
    def test_rows_of_another_size_than_the_codebook(self, scale):
        """The nearest codeword of any float32 row is found, whatever else is in the batch."""
        rng = np.random.RandomState(0)
        vq = VectorQuantizer(8, random_state=0).fit((rng.randn(300, 5) * scale).astype("f4"))
        sizes = [0, 1e-44, 1e-30, 1, scale, 1e12, 1e20, 1e38]
        rows = np.concatenate([rng.uniform(-1, 1, (9, 5)) * size for size in sizes]).astype("f4")
        wide = vq.codebook_.astype(np.float64)
        exact = ((rows[:, None].astype(np.float64) - wide) ** 2).sum(axis=2)
        codes = vq.transform(rows)
        found = np.take_along_axis(exact, codes.astype(int), axis=1)[:, 0]
        np.testing.assert_allclose(found, exact.min(axis=1), rtol=1e-12)
        np.testing.assert_array_equal(np.concatenate([vq.transform(r[None]) for r in rows]), codes)
        assert vq.distortion(rows) == pytest.approx(found.mean())
        distances = vq.set_params(output="distances").transform(rows)
        np.testing.assert_allclose(distances, np.sqrt(exact), rtol=1e-6)

    def test_rows_too_large_for_a_codebook_of_ordinary_size(self):
        vq = VectorQuantizer(2).fit(np.eye(2, dtype=np.float32))
        X = np.float32([[0, 0], [0, 1e20]])
        message = "too large to be compared with this codebook in float32: 1e[+]20 .row 1, feature"
        with pytest.raises(ValueError, match=message):
            vq.transform(X)

    def test_values_whose_squares_overflow_are_refused(self):
        X = np.random.RandomState(0).randn(100, 3) * 1e200
        with pytest.raises(ValueError, match="X holds values of .* overflow"):
            VectorQuantizer(4).fit(X)

    def test_values_of_all_sizes_together(self):
        X = np.repeat([[1e30], [1.0], [-1e30], [1e-30]], 50, axis=0).astype(np.float32)
        vq = VectorQuantizer(3, random_state=0).fit(X)
        np.testing.assert_allclose(np.sort(vq.codebook_[:, 0]), [-1e30, 0.5, 1e30], rtol=1e-6)

    @pytest.mark.parametrize("k", [1, 40])
    @pytest.mark.parametrize("d", [1, 8, 64])
    @pytest.mark.parametrize(("dtype", "tiny"), [("f4", 1e-20), ("f8", 1e-100), ("f8", 1e-300)])
    def test_tiny_codewords_beside_large_rows(self, dtype, tiny, d, k):
        """A fit that starts near zero: the codebook of the first iteration is no measure."""
        rng = np.random.RandomState(0)
        X = np.concatenate([rng.randn(500, d) * tiny, rng.randn(500, d) * 100]).astype(dtype)
        usual = VectorQuantizer(k, init=X[-k:]).fit(X)
        for algorithm in ("lloyd", "auto"):
            vq = VectorQuantizer(k, init=X[:k], algorithm=algorithm).fit(X)
            assert vq.counts_.all() and vq.inertia_ < 3 * usual.inertia_
        if dtype == "f4":
            vq.codebook_ = X[:k]
            np.testing.assert_allclose(vq.distortion(X[500:]), (X[500:] ** 2).sum(axis=1).mean())

    def test_constant_columns(self, grid):
        X = np.c_[grid, np.full(len(grid), 7.0), np.zeros(len(grid))].astype(np.float32)
        vq = VectorQuantizer(12, random_state=0).fit(X)
        assert (vq.codebook_[:, 4] == 7).all() and (vq.codebook_[:, 5] == 0).all()
        usual = VectorQuantizer(12, random_state=0).fit(grid)
        np.testing.assert_array_equal(vq.codebook_[:, :4], usual.codebook_)

    @pytest.mark.parametrize("d", [1, 2, 3, 15, 16, 17, 31, 64, 97, 300])
    @pytest.mark.parametrize("k", [1, 2, 7, 33])
    def test_awkward_sizes(self, d, k):
        X = np.random.RandomState(d).randn(97, d).astype(np.float32)
        self.check(VectorQuantizer(k, random_state=0).fit(X), X)

    def test_a_large_count_does_not_saturate(self):
        """Beyond 2**24 a float32 count stands still."""
        X = np.tile(np.uint8([[0], [1]]), (2**23 + 5, 1))
        vq = VectorQuantizer(1, init=[[0]], max_iter=1).fit(X)
        assert vq.counts_.tolist() == [2**24 + 10] and vq.codebook_[0, 0] == 0.5


class TestRefused:
    """Each error names the parameter, what came and what is wanted; the estimator is unchanged."""

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_not_finite(self, bad, dtype, metric, grid):
        X = grid.astype(dtype)
        X[321, 2] = bad
        vq = VectorQuantizer(12, metric=metric, random_state=0)
        for call in (vq.fit, vq.fit_transform, vq.partial_fit):
            with pytest.raises(ValueError, match="Input X contains .*(NaN|infinity).*row 321"):
                call(X)
            assert "codebook_" not in vars(vq) and "n_features_in_" not in vars(vq)
        vq.fit(grid)
        for output in OUTPUTS:
            vq.set_params(output=output)
            with pytest.raises(ValueError, match="Input X contains .*(NaN|infinity).*row 321"):
                vq.transform(X)
        for call in (vq.predict, vq.score, vq.distortion, vq.encode_blocks):
            with pytest.raises(ValueError, match="Input X contains .*(NaN|infinity).*row 321"):
                call(X)

    @pytest.mark.parametrize("output", OUTPUTS)
    def test_the_row_is_one_of_all_rows(self, output):
        """Not one of the block that was at work."""
        X = np.random.RandomState(0).randn(200_000, 6).astype(np.float32)
        vq = VectorQuantizer(20, output=output, init=X[:20], max_iter=1).fit(X)
        X[187_654, 3] = np.nan
        for call in (vq.transform, vq.score, vq.encode_blocks):
            with pytest.raises(ValueError, match="NaN.*row 187654"):
                call(X)

    def test_not_finite_where_there_are_few_rows(self):
        with pytest.raises(ValueError, match="Input X contains NaN"):
            VectorQuantizer(8).fit([[1.0, 2.0], [np.nan, 1.0]])

    def test_not_finite_in_rows_without_weight(self, grid):
        X = grid.copy()
        X[3] = np.nan
        with pytest.raises(ValueError, match="Input X contains NaN"):
            VectorQuantizer(8).fit(X, sample_weight=np.r_[np.ones(3), 0, np.ones(596)])

    @pytest.mark.parametrize(
        ("X", "words"),
        [
            (np.zeros((0, 4)), r"0 sample\(s\)"),
            (np.zeros((9, 0)), r"0 feature\(s\)"),
            (np.zeros(9), "1D array.*Reshape your data"),
            (np.zeros((3, 3, 3)), "3D array"),
            ([[1, 2], [1]], "ragged"),
            (np.zeros((9, 2), complex), "Complex data not supported"),
            (np.array([["a", "b"]], dtype=object), "text"),
            ("rows", "text"),
        ],
        ids=["no rows", "no features", "1-D", "3-D", "ragged", "complex", "objects", "text"],
    )
    def test_no_rows_of_numbers(self, X, words, grid):
        vq = VectorQuantizer(2)
        fitted = VectorQuantizer(2).fit(grid)
        for call in (vq.fit, vq.partial_fit, fitted.transform, fitted.predict, fitted.score):
            with pytest.raises(ValueError, match=words):
                call(X)

    def test_sparse(self, grid):
        fitted = VectorQuantizer(2).fit(grid)
        for call in (VectorQuantizer(2).fit, fitted.partial_fit, fitted.transform, fitted.predict):
            with pytest.raises(TypeError, match=r"Sparse.*toarray\(\).*TruncatedSVD"):
                call(sparse.csr_matrix(grid))

    def test_another_number_of_features(self, grid):
        vq = VectorQuantizer(2).fit(grid)
        for call in (vq.transform, vq.predict, vq.score, vq.partial_fit, vq.encode_blocks):
            with pytest.raises(ValueError, match="X has 3 features, but .* expecting 4"):
                call(grid[:, :3])

    @pytest.mark.parametrize(
        ("weight", "words"),
        [
            (-1, "negative"),
            (np.nan, "NaN"),
            (np.inf, "infinite"),
            (0, "zero in every row"),
        ],
    )
    def test_weights(self, weight, words, grid):
        weights = np.full(len(grid), weight, dtype=float)
        vq = VectorQuantizer(2).fit(grid)
        before = dict(vars(vq))
        for call in (vq.fit, vq.partial_fit, vq.score, vq.fit_transform):
            with pytest.raises(ValueError, match=f"sample_weight.*{words}"):
                call(grid, sample_weight=weights)
            with pytest.raises(ValueError, match=r"sample_weight.*shape \(600,\)"):
                call(grid, sample_weight=np.ones(3))
        assert vars(vq) == before

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n_codewords", 0),
            ("n_codewords", -3),
            ("n_init", 0),
            ("max_iter", 0),
            ("batch_size", 0),
            ("tol", -1e-3),
            ("tol", np.nan),
            ("tol", np.inf),
            ("init", "best"),
            ("algorithm", "elkan"),
            ("metric", "manhattan"),
            ("output", "labels please"),
            ("n_threads", 0),
            ("random_state", -1),
        ],
    )
    def test_parameters_out_of_range(self, name, value, grid):
        with pytest.raises(ValueError, match=name if name != "random_state" else "eed"):
            VectorQuantizer(**{name: value}).fit(grid)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n_codewords", "8"),
            ("n_codewords", 2.5),
            ("n_codewords", None),
            ("n_init", "auto"),
            ("max_iter", 1e3),
            ("batch_size", 10.0),
            ("tol", "0"),
            ("algorithm", None),
            ("metric", 2),
            ("output", None),
            ("n_threads", 1.5),
        ],
    )
    def test_parameters_of_another_type(self, name, value, grid):
        with pytest.raises(TypeError, match=name):
            VectorQuantizer(**{name: value}).fit(grid)

    @pytest.mark.parametrize(
        "init", [np.zeros((2, 4)), np.zeros((3, 5)), np.zeros(12), np.full((3, 4), np.inf)]
    )
    def test_an_array_of_other_codewords(self, init, grid):
        with pytest.raises(ValueError, match="init"):
            VectorQuantizer(3, init=init).fit(grid)

    def test_memory_that_cannot_be_had(self, grid):
        vq = VectorQuantizer(10).fit(grid)
        before = dict(vars(vq))
        vq.n_codewords = 10**13
        with pytest.raises(MemoryError, match=r"codebook_.*needs 160,000\.0 GB"):
            vq.fit(grid)
        vq.n_codewords = 10
        assert vars(vq) == before
        assert vq.transform(grid).shape == (600, 1)

    def test_nothing_is_said_about_good_input(self, grid):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for algorithm in ("auto", "growing", "minibatch"):
                vq = VectorQuantizer(12, algorithm=algorithm, random_state=0).fit(grid)
                vq.partial_fit(grid).score(grid)
