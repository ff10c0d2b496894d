"""Codebooks and codes to and from faiss."""

import sys

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError

import fastvq
from fastvq import VectorQuantizer

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
