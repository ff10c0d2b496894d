"""What must hold for any rows and any codebook, and the promises on bits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import make_blobs

from fastvq import VectorQuantizer
from fastvq._validation import as_weights

OUTPUTS = ["codes", "onehot-dense", "distances", "reconstruction"]
METRICS = ["euclidean", "cosine"]


def tables(dtype, elements, min_rows=1, columns=None):
    shapes = st.tuples(st.integers(min_rows, 40), columns or st.integers(1, 9))
    return shapes.flatmap(lambda shape: arrays(dtype, shape, elements=elements))


ROWS = st.one_of(
    tables(np.float32, st.floats(-1e6, 1e6, width=32)),
    # Smaller ones beside 1 are zero: test_vector_input.py has values of all sizes.
    tables(np.float64, st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-50)),
    tables(np.float16, st.floats(-100, 100, width=16)),
    tables(np.uint8, st.integers(0, 255)),
    tables(np.int8, st.integers(-3, 3)),
)


@pytest.mark.filterwarnings("ignore:X has .* distinct rows")
class TestProperties:
    @settings(max_examples=150, deadline=None)
    @given(X=ROWS, k=st.integers(1, 12), seed=st.integers(0, 3), data=st.data())
    def test_of_any_fit(self, X, k, seed, data):
        algorithm = data.draw(st.sampled_from(["auto", "lloyd", "growing", "minibatch"]))
        init = data.draw(st.sampled_from(["auto", "random", "k-means||"]))
        weight = data.draw(
            st.none() | arrays(np.float64, len(X), elements=st.floats(0, 1e3)).filter(np.any)
        )
        vq = VectorQuantizer(k, algorithm=algorithm, init=init, random_state=seed)
        if weight is not None and weight.sum() < 1e-100:
            with pytest.raises(ValueError, match="adds up to"):
                vq.fit(X, sample_weight=weight)
            return
        codes = vq.fit_predict(X, sample_weight=weight)
        weight = np.ones(len(X)) if weight is None else as_weights(weight, len(X))
        X = X.astype(np.float64)
        heavy = X[weight > 0]

        assert vq.codebook_.shape == (k, X.shape[1]) and np.isfinite(vq.codebook_).all()
        # Codewords are means of rows: within their range, but for rounding.
        slack = 1e-6 * np.abs(heavy).max() + 1e-30
        assert (vq.codebook_ >= heavy.min(axis=0) - slack).all()
        assert (vq.codebook_ <= heavy.max(axis=0) + slack).all()
        # Codes are those of the nearest codewords, of all as of the codebook alone.
        np.testing.assert_array_equal(codes, vq.predict(X.astype(vq.codebook_.dtype)))
        exact = ((X[:, None] - vq.codebook_.astype(np.float64)) ** 2).sum(axis=2)
        rounding = 1e-5 if vq.codebook_.dtype == np.float32 else 1e-12
        vanishing = X.shape[1] * np.finfo(vq.codebook_.dtype).tiny  # squares below are zero
        nearest = exact.min(axis=1)
        assert (exact[np.arange(len(X)), codes] <= nearest * (1 + rounding) + vanishing).all()
        zero = vanishing * weight.sum()
        assert vq.inertia_ == pytest.approx(weight @ nearest, rel=rounding, abs=zero)
        np.testing.assert_allclose(vq.counts_, np.bincount(codes, weight, k), rtol=1e-12)
        # Never worse than one codeword for all, and exact where there are enough codewords.
        mean = np.average(heavy, axis=0, weights=weight[weight > 0])
        spread = weight[weight > 0] @ ((heavy - mean) ** 2).sum(axis=1)
        if algorithm != "minibatch" and k == 1:
            assert vq.inertia_ == pytest.approx(spread, rel=1e-4, abs=slack**2 * weight.sum())
        if len(np.unique(heavy, axis=0)) < k:
            assert vq.inertia_ == 0
            back = vq.inverse_transform(codes)[weight > 0]
            np.testing.assert_allclose(back, heavy, rtol=0, atol=np.sqrt(vanishing))

    @settings(max_examples=60, deadline=None)
    @given(X=ROWS, k=st.integers(1, 300), seed=st.integers(0, 3))
    def test_of_packing(self, X, k, seed):
        vq = VectorQuantizer(k, random_state=seed).fit(X)
        codes = vq.transform(X)
        packed = vq.pack(codes)
        assert packed.shape == (len(X), vq.code_size_)
        np.testing.assert_array_equal(vq.unpack(packed), codes)

    @settings(max_examples=60, deadline=None)
    @given(X=ROWS, k=st.integers(1, 12), size=st.integers(1, 15), data=st.data())
    def test_of_any_stream(self, X, k, size, data):
        """Any split into batches: every row counts once, codewords stay among the rows."""
        vq = VectorQuantizer(k, random_state=0)
        for start in range(0, len(X), size):
            vq.partial_fit(X[start : start + size])
            assert vq.codebook_.shape == (k, X.shape[1]) and np.isfinite(vq.codebook_).all()
        assert vq.counts_.sum() == pytest.approx(len(X), rel=0.1)
        X = X.astype(np.float64)
        slack = 1e-5 * np.abs(X).max() + 1e-30
        assert (vq.codebook_ >= X.min(axis=0) - slack).all()
        assert (vq.codebook_ <= X.max(axis=0) + slack).all()

    @settings(max_examples=60, deadline=None)
    @given(
        X=tables(np.float32, st.floats(-1e3, 1e3, width=32), min_rows=5),
        k=st.integers(1, 5),
        data=st.data(),
    )
    def test_weighting_is_repeating(self, X, k, data):
        counts = data.draw(arrays(np.int64, len(X), elements=st.integers(0, 3)))
        counts[:k] += 1
        X = X.astype(np.float64)
        weighted = VectorQuantizer(k, init=X[:k], max_iter=3).fit(X, sample_weight=counts)
        repeated = VectorQuantizer(k, init=X[:k], max_iter=3).fit(X.repeat(counts, axis=0))
        scale = np.abs(X).max() + 1e-30
        np.testing.assert_allclose(
            weighted.inertia_, repeated.inertia_, rtol=1e-6, atol=1e-12 * scale**2
        )


@pytest.fixture(scope="module", params=[2, 3, 5, 8, 17, 40])
def rows(request):
    X, _ = make_blobs(3001, request.param, centers=40, cluster_std=2.0, random_state=0)
    return X.astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 5, 64, 300])
def test_the_code_of_a_row_depends_on_it_and_the_codebook_alone(k, metric, rows):
    """Promise 1: in any batch, at any place of it, at any number of threads, bit for bit."""
    vq = VectorQuantizer(k, init=rows[:k], max_iter=2, metric=metric).fit(rows)
    some = np.random.RandomState(0).permutation(len(rows))[:60]
    for output in OUTPUTS:
        vq.set_params(output=output, n_threads=1)
        expected = vq.transform(rows)
        for threads in (2, 5):
            vq.set_params(n_threads=threads)
            assert vq.transform(rows).tobytes() == expected.tobytes()
        assert vq.transform(rows[::-1]).tobytes() == expected[::-1].tobytes()
        for size in (1, 7, 48, 49, 1000):
            batch = rows[5 : 5 + size]
            assert vq.transform(batch).tobytes() == expected[5 : 5 + size].tobytes()
        alone = np.concatenate([vq.transform(rows[i : i + 1]) for i in some])
        assert alone.tobytes() == expected[some].tobytes()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("algorithm", ["auto", "lloyd", "growing", "minibatch"])
def test_the_codebook_does_not_depend_on_the_number_of_threads(algorithm, metric):
    """Promise 3. Enough rows for several threads to be used."""
    X, _ = make_blobs(30_000, 7, centers=60, cluster_std=2.0, random_state=0)
    X = X.astype(np.float32)
    weight = np.random.RandomState(0).gamma(1, size=len(X))
    found = set()
    for threads, weights in itertools.product((1, 2, 5), (None, weight)):
        vq = VectorQuantizer(
            50, algorithm=algorithm, metric=metric, random_state=7, n_threads=threads, max_iter=8
        ).fit(X, sample_weight=weights)
        vq.partial_fit(X[:5000])
        found.add((weights is None, vq.codebook_.tobytes(), vq.inertia_history_.tobytes()))
    assert len(found) == 2


def test_fit_predict_is_predict(rows):
    for algorithm in ("auto", "lloyd", "growing", "minibatch"):
        vq = VectorQuantizer(80, algorithm=algorithm, random_state=0)
        np.testing.assert_array_equal(vq.fit_predict(rows), vq.predict(rows))
