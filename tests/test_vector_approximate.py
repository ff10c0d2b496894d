"""Approximate codes of large codebooks: their recall, and what they promise all the same."""

import pickle

import numpy as np
import pytest
from oracles import THREADS, assert_same_bits, layouts

from fastvq import VectorQuantizer, kernels, load, reference
from fastvq.vq._probes import Probes, group_codewords
from fastvq.vq._rows import Rows


def blobs(n=4000, d=8, n_blobs=60, seed=0):
    rng = np.random.RandomState(seed)
    centres = 2 * rng.standard_normal((n_blobs, d))
    return (centres[rng.randint(n_blobs, size=n)] + rng.standard_normal((n, d))).astype(np.float32)


def fitted(X, **parameters):
    parameters = {"n_codewords": 400, "random_state": 0, "init": "random", **parameters}
    return VectorQuantizer(assign="approximate", **parameters).fit(X)


@pytest.mark.parametrize("recall", [0.8, 0.95, 1.0])
def test_recall_is_what_was_asked_for(recall):
    X, Y = np.split(blobs(8000), 2)
    vq = fitted(X, assign_recall=recall)
    exact = VectorQuantizer.from_codebook(vq.codebook_).predict(Y)
    found = np.mean(vq.predict(Y) == exact)
    assert vq.assign_recall_ > recall - 0.03  # 1000 rows: two deviations
    assert found > recall - 0.05
    assert 1 <= vq.n_probes_ <= 20 and len(vq.groups_) == 400


def test_codes_are_the_nearest_of_the_probed_groups():
    X = blobs(500)
    codebook = blobs(300, seed=2)
    groups = group_codewords(codebook)
    probes = Probes(codebook, groups)
    codes = probes.assign(Rows(X, dtype=np.float32), 3)
    near = np.argsort(reference.pairwise(X, probes.centres), axis=1)[:, :3]
    table = reference.pairwise(X, codebook.astype(np.float64))
    probed = (probes.place[None, :, None] == near[:, None, :]).any(axis=2)
    assert np.mean(codes == np.where(probed, table, np.inf).argmin(axis=1)) > 0.999  # rounding


def test_all_groups_are_exact():
    X = blobs(700)
    codebook = np.repeat(blobs(100, seed=2), 2, axis=0)  # ties: the lowest code wins
    probes = Probes(codebook, group_codewords(codebook))
    codes = probes.assign(Rows(X, dtype=np.float32), 1000)
    assert_same_bits(codes, kernels.assign(X, codebook))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_code_depends_on_its_row_alone(metric, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    X = blobs(1500)
    vq = fitted(X, metric=metric, max_iter=3)
    codes = vq.transform(X)
    for threads in THREADS:
        assert_same_bits(vq.set_params(n_threads=threads).transform(X), codes)
        again = fitted(X, metric=metric, max_iter=3, n_threads=threads)
        assert_same_bits(again.codebook_, vq.codebook_)
    order = np.random.RandomState(0).permutation(1500)
    assert_same_bits(vq.transform(X[order]), codes[order])
    assert_same_bits(np.concatenate([vq.transform(X[i : i + 1]) for i in range(60)]), codes[:60])
    for name, rows in layouts(X[:200], tmp_path).items():
        assert_same_bits(vq.transform(rows), codes[:200], name)


def test_the_inertia_never_rises_in_the_fit():
    history = fitted(blobs(), assign_recall=0.7, tol=0, max_iter=20).inertia_history_[:-1]
    assert (np.diff(history) <= 1e-6 * history[:-1]).all()


def test_nearly_as_good_as_exact():
    X = blobs(8000)
    exact = VectorQuantizer(400, random_state=0, init="random").fit(X)
    assert fitted(X).distortion(X) < 1.03 * exact.distortion(X)


def test_inertia_counts_and_files(tmp_path):
    X = blobs()
    vq = fitted(X, max_iter=3)
    codes = vq.transform(X)
    assert np.array_equal(vq.counts_, np.bincount(codes[:, 0], minlength=400))
    assert vq.inertia_ / len(X) == pytest.approx(vq.distortion(X), rel=1e-6)
    assert_same_bits(vq.fit_transform(X), vq.transform(X))
    assert_same_bits(pickle.loads(pickle.dumps(vq)).transform(X), codes)
    vq.save(tmp_path / "vq")
    assert_same_bits(load(tmp_path / "vq").transform(X), codes)


def test_exact_again():
    X = blobs()
    vq = fitted(X, max_iter=2, assign_recall=0.5)
    exact = VectorQuantizer.from_codebook(vq.codebook_).transform(X)
    assert_same_bits(vq.set_params(assign="exact").transform(X), exact)


def test_bad_settings():
    X = blobs(500)
    for bad in (0, 1.5, -1):
        with pytest.raises(ValueError, match="assign_recall"):
            fitted(X, assign_recall=bad)
    with pytest.raises(ValueError, match="assign must be"):
        VectorQuantizer(8, assign="some").fit(X)
    with pytest.raises(ValueError, match="rate_weight"):
        fitted(X, rate_weight=1.0)
    with pytest.raises(ValueError, match="algorithm"):
        fitted(X, algorithm="growing")
    vq = fitted(X, n_codewords=20)
    vq.codebook_ = vq.codebook_[:-1].copy()
    with pytest.raises(ValueError, match="groups_ must have the length"):
        vq.transform(X)
