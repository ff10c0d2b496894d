"""Entropy-constrained codebooks: the cost falls, the rate is what an entropy coder pays."""

import pickle

import numpy as np
import pytest
from oracles import ROW_DTYPES, THREADS, assert_same_bits, layouts, random_case

from fastvq import VectorQuantizer, entropy, kernels, reference
from fastvq.vq._rate import at_a_price

RATE = 0.3


def blobs(n=3000, d=6, seed=0):
    rng = np.random.RandomState(seed)
    sizes = np.array([50, 30, 10, 5, 3, 2])
    centres = 4 * rng.standard_normal((len(sizes), d))
    labels = rng.choice(len(sizes), n, p=sizes / 100)
    return (centres[labels] + rng.standard_normal((n, d))).astype(np.float32)


def fitted(X, rate_weight=RATE, **parameters):
    parameters = {"n_codewords": 64, "random_state": 0, **parameters}
    return VectorQuantizer(rate_weight=rate_weight, **parameters).fit(X)


def cost_of(vq, X):
    """What is minimised, by definition, and by whom: (cost, codes)."""
    table = reference.pairwise(X, vq.codebook_.astype(np.float64))
    table = table + vq.rate_weight * vq.code_lengths_
    return table.min(axis=1), table.argmin(axis=1)


def test_codes_are_of_least_cost():
    X = blobs()
    vq = fitted(X)
    costs, codes = cost_of(vq, X)
    assert np.mean(vq.predict(X) == codes) > 0.999  # rounding of ties
    assert vq.inertia_ == pytest.approx(costs.sum(), rel=1e-5)
    ours = cost_of(vq, X)[0].sum()
    assert np.isclose(
        vq.distortion(X) + RATE * vq.code_lengths_[vq.predict(X)].mean(), ours / len(X)
    )


def test_the_cost_never_rises():
    history = fitted(blobs(), tol=0, max_iter=50).inertia_history_
    assert len(history) > 3
    assert (np.diff(history) <= 1e-6 * history[:-1]).all()


def test_better_than_plain_at_the_same_rate():
    """Chou, Lookabaugh & Gray: less distortion than a plain codebook of equal entropy."""
    X, Y = blobs(20_000), blobs(20_000, seed=0)
    rated = fitted(X, 1.0, n_codewords=256)
    rate, distortion = entropy.entropy(rated.transform(Y)), rated.distortion(Y)
    plain = [fitted(X, 0.0, n_codewords=k) for k in (2, 4, 8, 16, 32, 64)]
    rates = [entropy.entropy(vq.transform(Y)) for vq in plain]
    assert rates[0] < rate < rates[-1]
    assert distortion < np.interp(rate, rates, [vq.distortion(Y) for vq in plain])


def test_a_higher_price_lowers_the_rate():
    X = blobs()
    found = [fitted(X, price) for price in (0.01, 0.1, 1, 10, 1e4)]
    rates = [vq.entropy_ for vq in found]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0 and len(found[-1].codebook_) == 1
    assert found[-1].codebook_[0] == pytest.approx(X.mean(axis=0), abs=1e-4)


def test_the_rate_is_what_the_coder_pays(tmp_path):
    X = blobs(50_000)
    vq = fitted(X, 1.0)
    codes = vq.transform(X)
    path = tmp_path / "codes"
    path.write_bytes(entropy.encode(codes))
    assert vq.entropy_ == pytest.approx(entropy.entropy(codes))
    least = len(X) * vq.entropy_ / 8
    assert least < path.stat().st_size < 1.005 * least + 200
    assert np.array_equal(entropy.decode(path.read_bytes()), codes)
    shares = vq.counts_ / vq.counts_.sum()
    taken = shares @ vq.code_lengths_  # lengths are those of the update before: nearly the same
    assert vq.entropy_ <= taken < vq.entropy_ + 1e-3


def test_codewords_vanish():
    vq = fitted(blobs(), 5.0, n_codewords=200)
    k = len(vq.codebook_)
    assert 1 < k < 100
    assert vq.code_lengths_.shape == vq.counts_.shape == (k,)
    assert vq.code_size_ == 1 and vq.transform(blobs()).dtype == np.uint8
    assert vq.pack(vq.transform(blobs())).shape == (3000, 1)
    assert (2.0**-vq.code_lengths_).sum() == pytest.approx(1)


@pytest.mark.parametrize("algorithm", ["auto", "lloyd", "growing", "minibatch"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_at_any_number_of_threads(algorithm, metric, monkeypatch):
    monkeypatch.setattr(kernels._call, "THREAD_WORK", 1)
    X = blobs()
    price = RATE if metric == "euclidean" else 0.01
    first = None
    for threads in THREADS:
        vq = fitted(X, price, algorithm=algorithm, metric=metric, n_threads=threads)
        found = vq.codebook_, vq.code_lengths_, vq.transform(X)
        first = first or found
        assert_same_bits(found, first)
    for i in range(0, 300, 37):
        assert vq.transform(X[i : i + 1]) == found[2][i]


def test_auto_is_lloyd():
    X = blobs()
    auto, lloyd = fitted(X), fitted(X, algorithm="lloyd")
    assert_same_bits(auto.codebook_, lloyd.codebook_)


def test_fit_transform_and_pickles():
    X = blobs()
    vq = VectorQuantizer(64, rate_weight=RATE, random_state=0)
    codes = vq.fit_transform(X)
    assert_same_bits(codes, vq.transform(X))
    assert_same_bits(pickle.loads(pickle.dumps(vq)).transform(X), codes)


def test_sample_weight_counts_as_repetition():
    X = np.repeat(np.arange(6.0)[:, None] * 3, 2, axis=1)
    weight = np.array([8, 8, 4, 4, 4, 4.0])
    vq = VectorQuantizer(6, rate_weight=0.01, init=X).fit(X, sample_weight=weight)
    assert vq.code_lengths_ == pytest.approx([2, 2, 3, 3, 3, 3])
    assert vq.entropy_ == pytest.approx(2.5)


def test_extreme_values():
    X, power = blobs(500).astype(np.float64), 2.0**160
    plain = fitted(X, 1.0, n_codewords=16)
    scaled = fitted(X * power, power**2, n_codewords=16)
    assert scaled.codebook_ / power == pytest.approx(plain.codebook_, rel=1e-9)
    assert scaled.code_lengths_ == pytest.approx(plain.code_lengths_)


def test_other_outputs_speak_of_distances():
    X = blobs()
    vq = fitted(X)
    distances = vq.set_params(output="distances").transform(X[:50])
    assert distances**2 == pytest.approx(reference.pairwise(X[:50], vq.codebook_), rel=1e-3)


def test_a_stream_has_no_lengths():
    with pytest.raises(ValueError, match="rate_weight must be 0"):
        VectorQuantizer(4, rate_weight=1.0).partial_fit(blobs())
    vq = fitted(blobs()).set_params(rate_weight=0.0).partial_fit(blobs())
    assert not hasattr(vq, "code_lengths_") and not hasattr(vq, "entropy_")


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, "much", True])
def test_bad_prices(bad):
    with pytest.raises((ValueError, TypeError), match="rate_weight"):
        fitted(blobs(), bad)


def test_lengths_of_another_codebook():
    vq = fitted(blobs())
    vq.codebook_ = vq.codebook_[:-1].copy()
    with pytest.raises(ValueError, match="code_lengths_ must have the length"):
        vq.transform(blobs())


@pytest.mark.parametrize("dtype", ROW_DTYPES)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_kernels_on_rows_that_lack_features(dtype, precision, tmp_path):
    """Codes and distances are those of rows with a column of zeros: the same bits."""
    for n, d, k in [(1, 1, 1), (97, 3, 33), (49, 16, 64), (65, 17, 7), (130, 70, 40)]:
        X, codebook = random_case(n + d, n, d, k, dtype, precision)
        price = np.random.RandomState(0).uniform(0, 3, k)
        priced = at_a_price(codebook, price)
        book = kernels.prepare(priced, n_row_features=d)
        wide = np.column_stack([X, np.zeros(n, dtype)])
        expected = kernels.assign(wide, priced)
        assert_same_bits(expected, reference.assign(X, priced))
        near = kernels.distances(wide, priced, expected)
        for name, rows in layouts(X, tmp_path).items():
            assert_same_bits(kernels.assign(rows, book), expected, name)
            assert_same_bits(kernels.distances(rows, book, expected), near, name)
        assert_same_bits(kernels.pairwise(X, book), kernels.pairwise(wide, priced))


def test_bad_widths():
    for bad in (0, 4):
        with pytest.raises(ValueError, match="n_row_features must be from 1 to 3"):
            kernels.prepare(np.ones((2, 3)), n_row_features=bad)
    with pytest.raises(ValueError, match=r"X must have shape \(n, 2\)"):
        kernels.assign(np.ones((5, 3)), kernels.prepare(np.ones((2, 3)), n_row_features=2))
