"""Search among codes: what an index finds is what the decoded rows would say, and nothing else."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import THREADS, assert_same_bits

from fastvq import (
    AdditiveQuantizer,
    BinaryQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    ScalarQuantizer,
    VectorQuantizer,
    kernels,
)
from fastvq.vq._search import Index, Parts

METRICS = ("l2", "ip", "cosine")
QUANTIZERS = {
    "one codebook": VectorQuantizer(300, random_state=0),
    "cosine codebook": VectorQuantizer(40, metric="cosine", random_state=0),
    "subspaces": ProductQuantizer(5, 6, random_state=0, max_iter=5),
    "short codes": ProductQuantizer(5, 4, random_state=0, max_iter=5),
    "shorter codes": ProductQuantizer(3, [3, 4, 2], random_state=0, max_iter=5),
    "rotated": ProductQuantizer(6, 4, rotation="random", random_state=0, max_iter=5),
    "weighted": ProductQuantizer(4, 5, feature_weight=np.arange(1, 25), max_iter=5, random_state=0),
    "weighted, rotated": ProductQuantizer(
        4, 4, rotation="random", feature_weight=np.arange(1, 25), max_iter=5, random_state=0
    ),
    "scalar": ScalarQuantizer(5),
    "scalar, 4 bits": ScalarQuantizer(4, scheme="optimal"),
    "residual": ResidualQuantizer(4, 5, random_state=0),
    "additive": AdditiveQuantizer(3, 4, random_state=0, max_iter=3),
    "signs": BinaryQuantizer(60, random_state=0),
    "itq": BinaryQuantizer(13, rotation="itq", random_state=0),
}


@pytest.fixture(scope="module")
def X():
    rng = np.random.RandomState(0)
    return (rng.standard_normal((3000, 8)) @ rng.standard_normal((8, 24)) + 3).astype(np.float32)


@pytest.fixture(params=QUANTIZERS, scope="module")
def fitted(request, X):
    """A fitted quantizer, the codes of X, and its index."""
    quantizer = QUANTIZERS[request.param].fit(X)
    codes = quantizer.transform(X)
    return quantizer, codes, quantizer.build_index(codes)


def measured(queries, rows, metric):
    queries, rows = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "l2":
        return np.sqrt(np.square(queries[:, None] - rows).sum(axis=2))
    if metric == "ip":
        return queries @ rows.T
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    return 1 - queries @ rows.T / lengths


@pytest.mark.parametrize("metric", METRICS)
def test_finds_what_decoded_rows_say(fitted, X, metric):
    quantizer, codes, index = fitted
    queries = X[:9] + 0.1
    exact = measured(queries, quantizer.inverse_transform(codes), metric)
    distances, indices = index.search(queries, 12, metric)
    assert distances.shape == indices.shape == (9, 12)
    assert (distances.dtype, indices.dtype) == (np.float32, np.int64)
    best = np.sort(exact, axis=1)
    best = best[:, ::-1][:, :12] if metric == "ip" else best[:, :12]
    tolerance = {"atol": 2e-5, "rtol": 2e-6}
    np.testing.assert_allclose(distances, best, **tolerance)
    np.testing.assert_allclose(np.take_along_axis(exact, indices, 1), best, **tolerance)


@pytest.mark.parametrize("metric", METRICS)
def test_results_depend_on_the_query_alone(fitted, X, metric):
    _, _, index = fitted
    expected = index.search(X[:20], 7, metric)
    for threads in THREADS:
        assert_same_bits(index.search(X[:20], 7, metric, n_threads=threads), expected)
    for some in ([3], [1, 0], [5, 19, 5, 2, 8, 8, 8, 8, 1]):
        part = index.search(X[some], 7, metric)
        assert_same_bits(part, tuple(array[some] for array in expected))
    fewer = index.search(X[:20], 3, metric)
    assert_same_bits(fewer, tuple(array[:, :3] for array in expected))


def test_queries_of_any_layout_and_type(fitted, X):
    _, _, index = fitted
    queries = np.round(X[:6]).astype(np.uint8)
    expected = index.search(queries.astype(np.float32), 5)
    for same in (queries, queries.astype(np.float16), np.asfortranarray(queries), queries.tolist()):
        distances, indices = index.search(same, 5)
        np.testing.assert_array_equal(indices, expected[1])
        np.testing.assert_allclose(distances, expected[0], rtol=1e-5)


def test_the_one_shot_form(fitted, X):
    quantizer, codes, index = fitted
    assert_same_bits(quantizer.search(X[:3], codes, 4), index.search(X[:3], 4))
    assert_same_bits(
        quantizer.search(X[:3], codes, 4, metric="ip"), index.search(X[:3], 4, metric="ip")
    )


@pytest.mark.parametrize("metric", METRICS)
def test_reranking_with_all_rows_is_exact(fitted, X, metric):
    _, _, index = fitted
    distances, indices = index.search(X[:5] + 0.1, 6, metric, rerank=X, n_candidates=len(X))
    exact = measured(X[:5] + 0.1, X, metric)
    order = np.argsort(-exact if metric == "ip" else exact, axis=1)[:, :6]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(distances, np.take_along_axis(exact, order, 1), rtol=1e-5, atol=1e-6)


def test_reranking_finds_more(fitted, X, tmp_path):
    _, _, index = fitted
    rows = np.memmap(tmp_path / "rows", np.float32, "w+", shape=X.shape)
    rows[:] = X
    truth = np.argsort(measured(X[:50], X, "l2"), axis=1)[:, :5]

    def recall(found):
        return np.mean([len({*a} & {*b}) / 5 for a, b in zip(found, truth, strict=True)])

    plain, ranked = index.search(X[:50], 5)[1], index.search(X[:50], 5, rerank=rows)[1]
    assert recall(ranked) > recall(plain)


def test_equal_rows_come_in_order(fitted, X):
    quantizer, codes, _ = fitted
    index = quantizer.build_index(np.repeat(codes[:1], 500, axis=0))
    for metric in METRICS:
        distances, indices = index.search(X[:9], 500, metric)
        assert (indices == np.arange(500)).all() and (distances == distances[:, :1]).all()


def test_an_index_has_codes_of_its_own(fitted, X):
    quantizer, codes, index = fitted
    own = codes.copy()
    other = quantizer.build_index(own)
    own[:] = 0
    for metric in METRICS:
        assert_same_bits(other.search(X[:4], 5, metric), index.search(X[:4], 5, metric))


def test_threads_may_share_an_index(fitted, X):
    quantizer, codes, _ = fitted
    index, found = quantizer.build_index(codes), []
    work = [threading.Thread(target=lambda: found.append(index.search(X[:5], 5, "cosine")))] * 1
    work += [threading.Thread(target=lambda: found.append(index.search(X[:5], 5, "cosine")))
             for _ in range(3)]  # fmt: skip
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    for other in found[1:]:
        assert_same_bits(other, found[0])


class TestBadInput:
    @pytest.mark.parametrize(
        "change, error, words",
        [
            (lambda q: {"queries": q[:, :23]}, ValueError, "24 features"),
            (lambda q: {"queries": q[0]}, ValueError, "2D"),
            (lambda q: {"queries": np.where(q > 3, np.nan, q)}, ValueError, "NaN"),
            (lambda q: {"queries": np.where(q > 3, np.inf, q)}, ValueError, "infinity|large"),
            (lambda q: {"queries": q * np.float32(1e37)}, ValueError, "large|long"),
            (lambda q: {"k": 0}, ValueError, "k must be"),
            (lambda q: {"k": 2.0}, TypeError, "k must be"),
            (lambda q: {"k": 3001}, ValueError, "at most 3000"),
            (lambda q: {"metric": "l1"}, ValueError, "metric must be one of"),
            (lambda q: {"queries": q * 0, "metric": "cosine"}, ValueError, "zero"),
            (lambda q: {"n_candidates": 9}, ValueError, "rerank"),
            (lambda q: {"rerank": q}, ValueError, "3000, 24"),
        ],
    )
    def test_of_a_search(self, fitted, X, change, error, words):
        _, _, index = fitted
        with pytest.raises(error, match=words):
            index.search(**{"queries": X[:5], "k": 5, "metric": "l2", **change(X[:5])})
        with pytest.raises(ValueError, match="n_candidates must be"):
            index.search(X[:5], 5, rerank=X, n_candidates=4)

    def test_codes_of_another_quantizer(self, fitted):
        quantizer, codes, _ = fitted
        with pytest.raises(ValueError, match="codes must have the shape"):
            quantizer.build_index(np.zeros((5, codes.shape[1] + 1), int))
        with pytest.raises(ValueError, match="codes must be from 0"):
            quantizer.build_index(codes[:5].astype(int) + 1000)
        with pytest.raises(TypeError, match="integers"):
            quantizer.build_index(codes[:5] * 0.5)
        with pytest.raises(ValueError, match="empty"):
            quantizer.build_index(codes[:0])


class TestExtremes:
    @pytest.mark.parametrize("power", [-140, -40, 0, 40, 120])
    def test_any_scale(self, power):
        rng = np.random.RandomState(0)
        X = np.ldexp(rng.standard_normal((300, 6)), power)
        pq = ProductQuantizer(3, 3, random_state=0).fit(X)
        codes = pq.transform(X)
        for metric in METRICS:
            distances, _ = pq.search(X[:5], codes, 4, metric=metric)
            exact = np.sort(measured(X[:5], pq.inverse_transform(codes), metric), axis=1)
            best = exact[:, ::-1][:, :4] if metric == "ip" else exact[:, :4]
            np.testing.assert_allclose(distances, best, rtol=1e-4, atol=1e-6 * np.abs(exact).max())

    def test_far_from_zero(self):
        rng = np.random.RandomState(0)
        books = [1000 + rng.standard_normal((16, 8)), rng.standard_normal((16, 8))]
        codes = rng.randint(0, 16, (500, 2))
        rows = books[0][codes[:, 0]] + books[1][codes[:, 1]]
        distances, _ = Index(Parts(books), codes).search(rows[:9], 3)
        exact = np.sort(measured(rows[:9], rows, "l2"), axis=1)[:, :3]
        np.testing.assert_allclose(distances, exact, atol=3e-3)

    def test_codes_that_stand_for_zero(self):
        books = [np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])]
        for parts in (Parts(books), Parts(books, [slice(0, 2)])):
            index = Index(parts, np.array([[0], [1], [2]]))
            distances, indices = index.search([[1.0, -0.5]], 3, "cosine")
            assert indices.tolist() == [[1, 0, 2]] and distances[0, 1] == 1

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=9),
        st.integers(1, 200),
        st.booleans(),
        st.integers(0, 2**32 - 1),
    )
    def test_any_parts(self, shapes, n, shared, seed):
        rng = np.random.RandomState(seed)
        d = shapes[0][1] if shared else sum(width for _, width in shapes)
        books = [rng.standard_normal((k, d if shared else width)) for k, width in shapes]
        ends = np.cumsum([width for _, width in shapes])
        places = [slice(end - w, end) for end, (_, w) in zip(ends, shapes, strict=True)]
        codes = np.stack([rng.randint(0, len(book), n) for book in books], axis=1)
        decoded = [book[column] for book, column in zip(books, codes.T, strict=True)]
        rows = sum(decoded) if shared else np.concatenate(decoded, axis=1)
        index = Index(Parts(books, None if shared else places), codes)
        queries, k = rng.standard_normal((1 + seed % 11, d)), 1 + seed % n
        for metric in METRICS:
            exact = np.sort(measured(queries, rows, metric), axis=1)
            best = exact[:, ::-1][:, :k] if metric == "ip" else exact[:, :k]
            distances, _ = index.search(queries, k, metric)
            np.testing.assert_allclose(distances, best, atol=3e-3 if metric == "l2" else 1e-4)


class TestHamming:
    def test_it_counts_bits_that_differ(self, X):
        bq = BinaryQuantizer(37, random_state=0).fit(X)
        codes = bq.transform(X)
        bits = np.unpackbits(codes, axis=1)
        exact = (bits[:20, None] != bits[None]).sum(axis=2)
        distances, indices = bq.build_index(codes).search(X[:20], 9)
        order = np.argsort(exact, axis=1, kind="stable")[:, :9]
        assert distances.dtype == np.int32
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_array_equal(distances, np.take_along_axis(exact, order, 1))

    def test_threads_change_nothing(self, X, monkeypatch):
        monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
        bq = BinaryQuantizer(100, random_state=0).fit(X)
        index = bq.build_index(bq.transform(X))
        expected = index.search(X[:7], 50, n_threads=1)
        for threads in THREADS[1:]:
            assert_same_bits(index.search(X[:7], 50, n_threads=threads), expected)

    def test_reranked_by_euclidean_distances(self, X):
        bq = BinaryQuantizer(40, random_state=0).fit(X)
        distances, indices = bq.search(X[:9], bq.transform(X), 3, rerank=X, n_candidates=50)
        assert (indices[:, 0] == np.arange(9)).all() and (distances[:, 0] == 0).all()
