"""Codebooks and codes to and from faiss."""

import sys

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError

import fastvq
from fastvq import (
    AdditiveQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    ScalarQuantizer,
    VectorQuantizer,
)

X = np.random.RandomState(0).randn(500, 12).astype(np.float32)


@pytest.fixture(scope="module")
def faiss():
    return pytest.importorskip("faiss", reason="exchange with faiss needs faiss-cpu")


class TestVectorQuantizer:
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_faiss_finds_the_same_codes(self, faiss, metric):
        vq = VectorQuantizer(40, metric=metric, random_state=0).fit(X)
        index = fastvq.to_faiss(vq)
        np.testing.assert_array_equal(index.reconstruct_n(0, 40), vq.codebook_)
        np.testing.assert_array_equal(index.search(X, 1)[1][:, 0], vq.predict(X))

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_there_and_back(self, faiss, metric):
        vq = VectorQuantizer(40, metric=metric, random_state=0).fit(X)
        again = fastvq.from_faiss(fastvq.to_faiss(vq))
        assert again.metric == metric and again.n_codewords == 40
        np.testing.assert_array_equal(again.codebook_, vq.codebook_, strict=True)
        np.testing.assert_array_equal(again.transform(X), vq.transform(X), strict=True)

    @pytest.mark.parametrize("spherical", [False, True])
    def test_from_kmeans(self, faiss, spherical):
        rows = X / np.linalg.norm(X, axis=1, keepdims=True) if spherical else X
        kmeans = faiss.Kmeans(12, 10, niter=5, seed=1, spherical=spherical)
        with pytest.raises(ValueError, match="not trained"):
            fastvq.from_faiss(kmeans)
        kmeans.train(rows)
        vq = fastvq.from_faiss(kmeans)
        np.testing.assert_array_equal(vq.predict(rows), kmeans.index.search(rows, 1)[1][:, 0])

    @pytest.mark.parametrize("bits", [1, 2, 3, 7, 8, 9])
    def test_packed_codes_are_the_bytes_of_faiss(self, faiss, bits):
        """One codebook is a product quantizer of one part."""
        codebook = np.random.RandomState(1).randn(2**bits, 12).astype(np.float32)
        vq = VectorQuantizer.from_codebook(codebook)
        pq = faiss.ProductQuantizer(12, 1, bits)
        faiss.copy_array_to_vector(vq.codebook_.ravel(), pq.centroids)
        codes = vq.transform(X)
        np.testing.assert_array_equal(pq.compute_codes(X), vq.pack(codes), strict=True)
        np.testing.assert_array_equal(pq.decode(vq.pack(codes)), vq.inverse_transform(codes))
        np.testing.assert_array_equal(vq.unpack(pq.compute_codes(X)), codes, strict=True)

    def test_what_came_can_go_on(self, faiss, tmp_path):
        index = faiss.IndexFlatL2(12)
        index.add(X[:20])
        vq = fastvq.from_faiss(faiss.clone_index(index))
        vq.save(tmp_path / "vq")
        assert vq.distortion(X) == fastvq.load(tmp_path / "vq").distortion(X)
        before = vq.distortion(X)
        assert vq.partial_fit(X).distortion(X) < before
        assert vq.counts_.sum() == len(X)

    def test_float64_is_rounded_once(self, faiss):
        vq = VectorQuantizer(9, random_state=0).fit(X.astype(np.float64))
        index = fastvq.to_faiss(vq)
        np.testing.assert_array_equal(index.reconstruct_n(0, 9), vq.codebook_.astype(np.float32))

    def test_what_cannot_come(self, faiss):
        with pytest.raises(ValueError, match="holds no vectors"):
            fastvq.from_faiss(faiss.IndexFlatL2(3))
        index = faiss.IndexFlatIP(12)
        index.add(X[:5])
        with pytest.raises(ValueError, match="length 1"):
            fastvq.from_faiss(index)
        for other in (faiss.IndexFlat(12, faiss.METRIC_L1), faiss.IndexLSH(12, 8), 3):
            with pytest.raises(TypeError, match="nothing in fastvq like"):
                fastvq.from_faiss(other)

    def test_what_cannot_go(self, faiss):
        with pytest.raises(NotFittedError):
            fastvq.to_faiss(VectorQuantizer())
        with pytest.raises(TypeError, match="nothing in faiss like a KMeans"):
            fastvq.to_faiss(KMeans())


class TestProductQuantizer:
    @pytest.mark.parametrize("rotation", [None, "random", "opq"])
    @pytest.mark.parametrize("bits", [1, 3, 4, 6, 8, 9])
    def test_packed_codes_are_the_bytes_of_faiss(self, faiss, rotation, bits):
        pq = ProductQuantizer(3, bits, rotation=rotation, max_iter=3, random_state=0)
        codes = pq.fit(np.concatenate([X, X + 1])).transform(X)
        index = fastvq.to_faiss(pq)
        assert index.is_trained and index.ntotal == 0 and index.d == 12
        theirs = index.sa_encode(X)
        same = pq.unpack(theirs) == codes
        if rotation is None:
            np.testing.assert_array_equal(theirs, pq.pack(codes), strict=True)
        else:  # a BLAS rotates there: rows between two codewords may fall to the other side
            assert same.mean() > 0.999
            rows = same.all(axis=1)
            np.testing.assert_array_equal(theirs[rows], pq.pack(codes)[rows])
        decoded = index.sa_decode(pq.pack(codes))
        np.testing.assert_allclose(decoded, pq.inverse_transform(codes), rtol=1e-5, atol=1e-5)
        index.add(X)
        assert index.ntotal == len(X)

    @pytest.mark.parametrize("rotation", [None, "opq"])
    def test_there_and_back(self, faiss, rotation):
        pq = ProductQuantizer(4, 4, rotation=rotation, max_iter=3, random_state=0).fit(X)
        again = fastvq.from_faiss(fastvq.to_faiss(pq))
        assert (again.n_subspaces, again.n_bits, again.rotation) == (4, 4, rotation)
        np.testing.assert_array_equal(again.codebooks_, pq.codebooks_, strict=True)
        np.testing.assert_array_equal(again.transform(X), pq.transform(X), strict=True)
        assert again.distortion(X) == pq.distortion(X)

    def test_what_faiss_has_trained(self, faiss, tmp_path):
        product = faiss.ProductQuantizer(12, 3, 5)
        product.cp.min_points_per_centroid = 1
        with pytest.raises(ValueError, match="not trained"):
            fastvq.from_faiss(product)
        product.train(X)
        pq = fastvq.from_faiss(product)
        np.testing.assert_array_equal(pq.pack(pq.transform(X)), product.compute_codes(X))
        pq.save(tmp_path / "pq")
        assert fastvq.load(tmp_path / "pq").distortion(X) == pq.distortion(X)
        index = faiss.index_factory(12, "OPQ3,PQ3x4")
        with pytest.raises(ValueError, match="not trained"):
            fastvq.from_faiss(index)
        index.train(X)
        pq = fastvq.from_faiss(index)
        codes = pq.unpack(index.sa_encode(X))
        assert (codes == pq.transform(X)).mean() > 0.999
        np.testing.assert_allclose(
            pq.inverse_transform(codes), index.sa_decode(index.sa_encode(X)), atol=1e-5
        )

    def test_what_cannot_go(self, faiss):
        with pytest.raises(NotFittedError):
            fastvq.to_faiss(ProductQuantizer())
        for pq in (ProductQuantizer(5, 2), ProductQuantizer(2, (2, 3))):
            with pytest.raises(ValueError, match="differ in features or bits"):
                fastvq.to_faiss(pq.fit(X))
        with pytest.raises(ValueError, match="feature_weight"):
            fastvq.to_faiss(ProductQuantizer(2, 2, feature_weight=np.arange(1, 13)).fit(X))

    def test_what_cannot_come(self, faiss):
        for description in ("OPQ3,Flat", "PCA6,PQ3x4", "OPQ3,PCAR12,PQ3x4"):
            index = faiss.index_factory(12, description)
            with pytest.raises(TypeError, match="nothing in fastvq like|no rotation in fastvq"):
                fastvq.from_faiss(index)
        with pytest.raises(ValueError, match="orthogonal"):
            linear = faiss.LinearTransform(12, 12, False)
            faiss.copy_array_to_vector(np.ones(144, np.float32), linear.A)
            linear.is_trained = True
            product = fastvq.to_faiss(ProductQuantizer(3, 2).fit(X))
            fastvq.from_faiss(faiss.IndexPreTransform(linear, product))


class TestScalarQuantizer:
    @pytest.mark.parametrize("granularity", ["feature", "tensor", "group"])
    @pytest.mark.parametrize("bits", [4, 6, 8])
    def test_packed_codes_are_the_bytes_of_faiss(self, faiss, granularity, bits):
        groups = {"group_size": 5} if granularity == "group" else {}
        sq = ScalarQuantizer(bits, granularity=granularity, **groups).fit(X)
        index, codes = fastvq.to_faiss(sq), sq.transform(2 * X)  # some beyond the range
        assert index.is_trained and index.code_size == sq.code_size_
        theirs = sq.unpack(index.sa_encode(2 * X)).astype(int)
        assert (theirs == codes).mean() > 0.999 and abs(theirs - codes).max() <= 1
        decoded = sq.inverse_transform(codes)
        np.testing.assert_allclose(index.sa_decode(sq.pack(codes)), decoded, atol=1e-5)
        # Levels themselves are in no doubt.
        np.testing.assert_array_equal(index.sa_encode(decoded), sq.pack(codes), strict=True)

    @pytest.mark.parametrize("granularity", ["feature", "tensor"])
    def test_there_and_back(self, faiss, granularity):
        sq = ScalarQuantizer(8, granularity=granularity).fit(X)
        again = fastvq.from_faiss(fastvq.to_faiss(sq))
        assert again.granularity == granularity and again.n_bits_ == 8
        np.testing.assert_allclose(again.scale_, sq.scale_, rtol=1e-6)
        np.testing.assert_allclose(again.range_, sq.range_, rtol=1e-6)
        codes = sq.transform(X)
        np.testing.assert_array_equal(again.transform(sq.inverse_transform(codes)), codes)

    @pytest.mark.parametrize("kind", ["8bit", "6bit", "4bit", "8bit_uniform", "4bit_uniform"])
    def test_what_faiss_has_trained(self, faiss, tmp_path, kind):
        index = faiss.IndexScalarQuantizer(12, getattr(faiss.ScalarQuantizer, f"QT_{kind}"))
        with pytest.raises(ValueError, match="not trained"):
            fastvq.from_faiss(index)
        index.train(X)
        for trained in (index, index.sq):
            sq = fastvq.from_faiss(trained)
            theirs = index.sa_encode(X)
            codes = sq.unpack(theirs)
            # faiss puts the largest value right between its last two levels.
            largest = X.max() if kind.endswith("uniform") else X.max(axis=0)
            same = (codes == sq.transform(X)) | (largest == X)
            assert same.mean() > 0.999
            np.testing.assert_allclose(
                sq.inverse_transform(codes), index.sa_decode(theirs), atol=1e-5
            )
        sq.save(tmp_path / "sq")
        np.testing.assert_array_equal(fastvq.load(tmp_path / "sq").transform(X), sq.transform(X))

    def test_a_feature_of_one_value(self, faiss):
        rows = X.copy()
        rows[:, 3] = 7
        sq = ScalarQuantizer(8).fit(rows)
        index = fastvq.to_faiss(sq)
        rows[:9, 3] = [-5, 6, 6.9, 7.4, 7.6, 8, 100, 1e6, 7]
        np.testing.assert_array_equal(sq.transform(rows)[:, 3], 0)
        np.testing.assert_array_equal(index.sa_encode(rows)[:, 3], 0)
        np.testing.assert_array_equal(index.sa_decode(index.sa_encode(rows))[:, 3], 7)
        again = fastvq.from_faiss(index)
        np.testing.assert_array_equal(again.inverse_transform(again.transform(rows))[:, 3], 7)

    def test_what_cannot_go_or_come(self, faiss):
        with pytest.raises(NotFittedError):
            fastvq.to_faiss(ScalarQuantizer())
        for sq, why in (
            (ScalarQuantizer(8, symmetric=True), "symmetric"),
            (ScalarQuantizer(4, scheme="quantile"), "evenly spaced"),
            (ScalarQuantizer(5), "4, 6 and 8 bits, not of 5"),
        ):
            with pytest.raises(ValueError, match=why):
                fastvq.to_faiss(sq.fit(X))
        half = faiss.IndexScalarQuantizer(12, faiss.ScalarQuantizer.QT_fp16)
        with pytest.raises(TypeError, match="nothing in fastvq like"):
            fastvq.from_faiss(half)


@pytest.mark.parametrize("call", [fastvq.from_faiss, fastvq.to_faiss])
def test_without_faiss_the_extra_is_named(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "fastvq\[faiss\]"'):
        call(VectorQuantizer(2).fit(X))


class TestFromCodebook:
    @pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "u1"])
    def test_types(self, dtype):
        codebook = (X[:7] * 10 + 50).astype(dtype)
        vq = VectorQuantizer.from_codebook(codebook, n_threads=1)
        expected = np.float64 if dtype == "f8" else np.float32
        np.testing.assert_array_equal(vq.codebook_, codebook.astype(expected), strict=True)
        assert vq.n_codewords == 7 and vq.n_threads == 1 and vq.code_size_ == 1
        np.testing.assert_array_equal(vq.predict(codebook), np.arange(7))
        assert not np.shares_memory(vq.codebook_, codebook)

    def test_a_stream_goes_on_as_from_init(self):
        vq = VectorQuantizer.from_codebook(X[:9], init=X[:9]).partial_fit(X)
        other = VectorQuantizer(9, init=X[:9]).partial_fit(X)
        np.testing.assert_array_equal(vq.codebook_, other.codebook_)
        np.testing.assert_array_equal(vq.counts_, other.counts_)
        assert vq.inertia_ == other.inertia_ and vq.n_iter_ == other.n_iter_ == 1

    def test_bad_codebooks(self):
        for codebook in (X[0], X[:0], np.full((2, 3), np.nan), [["a"]]):
            with pytest.raises(ValueError, match="codebook"):
                VectorQuantizer.from_codebook(codebook)
        with pytest.raises(ValueError, match="length 1"):
            VectorQuantizer.from_codebook(X[:4], metric="cosine")
        with pytest.raises(TypeError):
            VectorQuantizer.from_codebook(X[:4], taste="sweet")


SUMS = {
    "residual": ResidualQuantizer(5, 4, max_iter=4, random_state=0),
    "residual, bits of each": ResidualQuantizer(3, [5, 3, 6], max_iter=4, random_state=0),
    "additive": AdditiveQuantizer(5, 4, max_iter=3, random_state=0),
}


class TestSums:
    @pytest.mark.parametrize("name", SUMS)
    def test_packed_codes_are_the_bytes_of_faiss(self, faiss, name):
        q = SUMS[name].fit(X)
        index = fastvq.to_faiss(q)
        assert index.is_trained and index.sa_code_size() == q.code_size_
        codes = q.transform(X)
        np.testing.assert_array_equal(index.sa_decode(q.pack(codes)), q.inverse_transform(codes))
        theirs = index.sa_encode(X)
        assert np.array_equal(q.pack(q.unpack(theirs)), theirs)
        errors = [
            np.square(X - q.inverse_transform(some)).sum() for some in (codes, q.unpack(theirs))
        ]
        assert errors[0] <= 1.05 * errors[1]

    @pytest.mark.parametrize("name", SUMS)
    def test_there_and_back(self, faiss, name):
        q = SUMS[name].fit(X)
        again = fastvq.from_faiss(fastvq.to_faiss(q))
        assert type(again) is type(q) and again.n_features_in_ == 12
        for a, b in zip(again.codebooks_, q.codebooks_, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
        np.testing.assert_array_equal(again.transform(X), q.transform(X), strict=True)

    @pytest.mark.parametrize("kind", ["ResidualQuantizer", "LocalSearchQuantizer"])
    @pytest.mark.parametrize("index", [False, True])
    def test_from_what_faiss_trained(self, faiss, kind, index):
        decompress = faiss.AdditiveQuantizer.ST_decompress
        metric = [faiss.METRIC_L2, decompress] if index else []
        theirs = getattr(faiss, f"Index{kind}" if index else kind)(12, 3, 5, *metric)
        with pytest.raises(ValueError, match="not trained"):
            fastvq.from_faiss(theirs)
        theirs.train(X)
        q = fastvq.from_faiss(theirs)
        codes = theirs.sa_encode(X) if index else theirs.compute_codes(X)
        decoded = theirs.sa_decode(codes) if index else theirs.decode(codes)
        assert type(q).__name__ == {"R": "ResidualQuantizer", "L": "AdditiveQuantizer"}[kind[0]]
        np.testing.assert_array_equal(q.inverse_transform(q.unpack(codes)), decoded)
        np.testing.assert_array_equal(q.pack(q.unpack(codes)), codes, strict=True)

    def test_what_has_no_like(self, faiss):
        uneven = AdditiveQuantizer(2, [3, 4], max_iter=1, random_state=0).fit(X)
        with pytest.raises(ValueError, match="differ in bits"):
            fastvq.to_faiss(uneven)
        norms = faiss.AdditiveQuantizer.ST_norm_float
        index = faiss.IndexResidualQuantizer(12, 3, 4, faiss.METRIC_L2, norms)
        index.train(X)
        with pytest.raises(ValueError, match="norms"):
            fastvq.from_faiss(index)
        with pytest.raises(TypeError, match="ProductResidualQuantizer"):
            fastvq.from_faiss(faiss.ProductResidualQuantizer(12, 2, 2, 4))
        with pytest.raises(NotFittedError):
            fastvq.to_faiss(ResidualQuantizer())

    @pytest.mark.parametrize("kind", [ResidualQuantizer, AdditiveQuantizer])
    def test_from_codebooks(self, kind):
        books = [np.random.RandomState(m).randn(2 ** (m + 1), 3) for m in range(3)]
        q = kind.from_codebooks(books, n_threads=1)
        assert q.n_bits == [1, 2, 3] and q.n_threads == 1 and q.codebooks_[0].dtype == np.float64
        assert q.code_size_ == 1 and np.isfinite(q.distortion(X[:, :3]))
        for bad, message in {
            "none": ([], "at least one"),
            "sizes": ([np.zeros((3, 2))], "2, 4, 8"),
            "features": ([np.zeros((2, 2)), np.zeros((2, 3))], "shape"),
        }.values():
            with pytest.raises(ValueError, match=message):
                kind.from_codebooks(bad)
