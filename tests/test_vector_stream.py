"""VectorQuantizer.partial_fit: streams of batches."""

import warnings

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import make_blobs
from threadpoolctl import threadpool_limits

from fastvq import VectorQuantizer


@pytest.fixture(scope="module")
def blobs():
    X, _ = make_blobs(20_000, 5, centers=30, cluster_std=1.5, random_state=0)
    return X.astype(np.float32)


def stream(vq, X, size):
    for start in range(0, len(X), size):
        vq.partial_fit(X[start : start + size])
    return vq


def test_a_codeword_is_the_mean_of_the_rows_it_won(blobs):
    """The definition, row by row of each batch: counts kept, one step of n / count."""
    batches = blobs[:3000].reshape(6, 500, 5).astype(np.float64)
    codebook, counts = batches[0, :10].copy(), np.zeros(10)
    vq = VectorQuantizer(10, init=batches[0, :10])
    for batch in batches:
        inertia = 0
        codes = ((batch[:, None] - codebook) ** 2).sum(axis=2).argmin(axis=1)
        for j in range(10):
            won = batch[codes == j]
            inertia += ((won - codebook[j]) ** 2).sum()
            counts[j] += len(won)
            if len(won):
                codebook[j] += (won - codebook[j]).sum(axis=0) / counts[j]
        vq.partial_fit(batch)
        np.testing.assert_allclose(vq.codebook_, codebook, rtol=1e-9)
        np.testing.assert_allclose(vq.counts_, counts)
        assert vq.inertia_ == pytest.approx(inertia)
    assert vq.n_iter_ == 6 and len(vq.inertia_history_) == 6


@threadpool_limits.wrap(limits=1)
def test_is_as_good_as_scikit_learn_s(blobs):
    inertias = []
    for seed in range(8):
        X = np.random.RandomState(seed).permutation(blobs)
        ours = stream(VectorQuantizer(30, random_state=seed), X, 500)
        theirs = stream(MiniBatchKMeans(30, random_state=seed), X, 500)
        inertias.append([-ours.score(X), -theirs.score(X) / len(X)])
    ours, theirs = np.array(inertias).T
    spread = np.hypot(ours.std(ddof=1), theirs.std(ddof=1)) / np.sqrt(len(ours))
    assert ours.mean() < theirs.mean() + 3 * spread


@pytest.mark.parametrize("size", [1, 7, 29])
def test_first_batches_may_be_smaller_than_the_codebook(size, blobs):
    X = blobs[:1000]
    vq = VectorQuantizer(30, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = 0
        while seen + size <= 30:
            vq.partial_fit(X[seen : seen + size])
            seen += size
            # What was seen is all there, and can be used.
            assert vq.codebook_.shape == (30, 5) and vq.counts_.sum() == seen
            np.testing.assert_array_equal(vq.inverse_transform(vq.transform(X[:seen])), X[:seen])
        stream(vq, X[seen:], size)
    assert vq.counts_.sum() == pytest.approx(1000, rel=0.05)
    assert vq.distortion(X) < 2 * VectorQuantizer(30, random_state=0).fit(X).distortion(X)


def test_a_stream_of_few_distinct_rows_is_counted_and_takes_no_memory():
    rows = np.arange(12.0).reshape(4, 3)
    vq = VectorQuantizer(10)
    for _ in range(50):
        vq.partial_fit(np.repeat(rows, 25, axis=0), sample_weight=np.full(100, 0.5))
    np.testing.assert_array_equal(vq.codebook_, np.resize(rows, (10, 3)))
    assert vq.counts_.tolist() == [625.0] * 4 + [0.0] * 6


def test_gathering_weighs_what_came_before(blobs):
    """Rows seen often before the codebook is full pull their codeword as hard as they should."""
    vq = VectorQuantizer(2, init="auto", random_state=0)
    vq.partial_fit(np.zeros((99, 1)))
    vq.partial_fit([[1.0], [50.0]])
    np.testing.assert_allclose(np.sort(vq.codebook_[:, 0]), [0.01, 50])
    assert sorted(vq.counts_) == [1, 100]


def test_goes_on_after_fit(blobs):
    vq = VectorQuantizer(30, random_state=0).fit(blobs[:10_000])
    before, n_iter, history = vq.codebook_, vq.n_iter_, len(vq.inertia_history_)
    vq.partial_fit(blobs[10_000:])
    assert vq.counts_.sum() == 20_000 and vq.n_iter_ == n_iter + 1
    assert len(vq.inertia_history_) == history + 1
    # The counts of the fit hold: half as many rows again move no codeword far.
    assert 0 < np.abs(vq.codebook_ - before).max() < 1
    both = VectorQuantizer(30, init=before).fit(blobs)
    assert vq.distortion(blobs) < 1.02 * both.distortion(blobs)


def test_goes_on_after_a_fit_on_few_rows(blobs):
    vq = VectorQuantizer(30, random_state=0)
    with pytest.warns(UserWarning, match="distinct rows"):
        vq.fit(blobs[:10])
    vq.partial_fit(blobs[10:2000])
    assert vq.counts_.sum() == 2000 and len(np.unique(vq.codebook_, axis=0)) == 30


def test_the_codebook_keeps_its_dtype(blobs):
    single = VectorQuantizer(30, random_state=0).partial_fit(blobs[:20])
    single.partial_fit(blobs[20:1000].astype(np.float64)).partial_fit(blobs.astype(np.float16))
    assert single.codebook_.dtype == np.float32
    double = VectorQuantizer(30, random_state=0).partial_fit(blobs[:1000].astype(np.float64))
    assert double.partial_fit(blobs).codebook_.dtype == np.float64


def test_a_dead_codeword_moves(blobs):
    start = np.concatenate([blobs[:29], np.full((1, 5), 1e3, np.float32)])
    vq = stream(VectorQuantizer(30, init=start), blobs, 500)
    assert np.abs(vq.codebook_).max() < 100 and vq.counts_.min() > 0


def test_codewords_of_small_groups_stay():
    """One row in 300 comes from a group of its own: few, but not dead."""
    rng = np.random.RandomState(0)
    X = rng.randn(30_000, 2)
    X[::300] += 100
    vq = stream(VectorQuantizer(4, init=[[0, 1], [1, -1], [-1, -1], [100, 100]]), X, 300)
    np.testing.assert_allclose(vq.codebook_[3], [100, 100], atol=1)


def test_random_state_decides(blobs):
    found = {
        stream(VectorQuantizer(30, random_state=seed), blobs[:3000], 300).codebook_.tobytes()
        for seed in (0, 0, 1)
    }
    assert len(found) == 2


def test_cosine_keeps_codewords_unit(blobs):
    vq = stream(VectorQuantizer(30, metric="cosine", random_state=0), blobs, 500)
    np.testing.assert_allclose(np.linalg.norm(vq.codebook_, axis=1), 1, rtol=1e-6)
    whole = VectorQuantizer(30, metric="cosine", random_state=0).fit(blobs)
    assert vq.distortion(blobs) < 1.3 * whole.distortion(blobs)


@pytest.mark.parametrize("fitted", [False, True])
def test_a_bad_batch_leaves_the_estimator_as_it_was(fitted, blobs):
    vq = VectorQuantizer(30, random_state=0)
    if fitted:
        vq.partial_fit(blobs[:500])
    bad = blobs[:100].copy()
    bad[50, 2] = np.nan
    before = dict(vars(vq))
    for X, weight in ((bad, None), (blobs[:10], [-1] * 10), (blobs[:10, :0], None)):
        with pytest.raises(ValueError):
            vq.partial_fit(X, sample_weight=weight)
        assert vars(vq) == before


def test_the_number_of_features_stays(blobs):
    vq = VectorQuantizer(30).partial_fit(blobs[:10])
    with pytest.raises(ValueError, match="X has 3 features, but VectorQuantizer is expecting 5"):
        vq.partial_fit(blobs[:10, :3])


def test_values_beyond_the_codebook_s_dtype(blobs):
    vq = VectorQuantizer(30).partial_fit(blobs[:500])
    before = vq.codebook_
    with pytest.raises(ValueError, match="float32"):
        vq.partial_fit(np.full((10, 5), 1e60))
    assert vq.codebook_ is before
