"""ResidualQuantizer and AdditiveQuantizer: quality, promises, input, state."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import layouts
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastvq import AdditiveQuantizer, ResidualQuantizer

BOTH = [ResidualQuantizer, AdditiveQuantizer]
both = pytest.mark.parametrize("kind", BOTH)


def synthetic(seed, n, d=32):
    """As faiss's SyntheticDataset: 10 Gaussian dimensions, a linear map, a scale each, the sine."""
    rng = np.random.RandomState(seed)
    X = rng.normal(size=(n, 10)) @ rng.rand(10, d)
    return np.sin(X * (rng.rand(d) * 4 + 0.1)).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return synthetic(1338, 1000)


def small(kind, **options):
    if kind is AdditiveQuantizer:
        options = {"max_iter": 4, **options}
    return kind(3, 4, random_state=0, **options)


def expected_failures(_):
    return {
        "check_sample_weight_equivalence_on_dense_data": "rows are drawn at random as first "
        "codewords, and others are drawn where rows are weighted than where they are repeated"
    }


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [kind(2, 2, **extra) for kind, extra in zip(BOTH, ({}, {"max_iter": 2}), strict=True)],
    expected_failed_checks=expected_failures,
)
def test_estimator_checks(estimator, check):
    check(estimator)


def test_late_stages_are_shared_out():
    """Codewords that begin as rows end with one row each where all rows are equally far."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    X = (rng.standard_normal((4000, 64)) * np.arange(1, 65) ** -0.5 @ turn).astype(np.float32)
    errors = {}
    for init in ("auto", "k-means++"):
        rq = ResidualQuantizer(6, 7, beam_width=1, init=init, random_state=0).fit(X)
        errors[init] = rq.inertia_
        lonely = [np.mean(np.bincount(column) == 1) for column in rq.transform(X).T]
        assert max(lonely) < 0.05 or init != "auto", lonely
    assert errors["auto"] < 0.95 * errors["k-means++"]


def test_reestimation_is_worth_it():
    """At least 5 % on the rows fitted on, as faiss asks of itself, mean of five seeds."""
    before, after = [], []
    for seed in range(5):
        X = synthetic(seed, 1000)
        for iterations, errors in ((0, before), (5, after)):
            rq = ResidualQuantizer(3, 4, beam_width=5, refine_iter=iterations, random_state=seed)
            errors.append(rq.fit(X).inertia_)
    assert np.mean(before) > 1.05 * np.mean(after)


@both
def test_stages_lower_the_error(kind, rows):
    q = small(kind).fit(rows)
    codes = q.transform(rows)
    assert q.inertia_ == pytest.approx(q.distortion(rows) * len(rows), rel=1e-5)
    if kind is ResidualQuantizer:
        errors = [np.square(rows - q.inverse_transform(codes[:, :m])).sum() for m in range(1, 4)]
        assert errors[0] > errors[1] > errors[2]
        assert (np.diff(q.inertia_history_) < 0).all()


def test_local_search_is_never_worse_than_its_start(rows):
    aq = small(AdditiveQuantizer).fit(rows)
    rq = small(ResidualQuantizer, max_iter=4).fit(rows)
    assert aq.inertia_ < rq.inertia_ == aq.inertia_history_[0]
    for options in ({"max_iter": 1, "n_jumps": 0}, {"shake": 100.0}):
        aq = small(AdditiveQuantizer, **options).fit(rows)
        assert aq.inertia_ <= aq.inertia_history_[0]


@both
@pytest.mark.parametrize("weighted", [False, True])
def test_the_promises(kind, weighted, rows):
    weight = np.random.RandomState(0).gamma(1, size=len(rows)) if weighted else None
    found = {
        small(kind, n_threads=threads).fit(rows, sample_weight=weight).codebooks_.tobytes()
        for threads in (1, 2, 5)
    }
    assert len(found) == 1
    q = small(kind, n_threads=1).fit(rows, sample_weight=weight)
    expected = q.transform(rows)
    for threads in (2, 5):
        np.testing.assert_array_equal(q.set_params(n_threads=threads).transform(rows), expected)
    np.testing.assert_array_equal(q.transform(rows[::-1]), expected[::-1])
    for size in (1, 7, 49):
        np.testing.assert_array_equal(q.transform(rows[5 : 5 + size]), expected[5 : 5 + size])


@both
def test_bits_of_each_stage(kind, rows):
    q = kind(3, [5, 1, 9], random_state=0).fit(rows)
    assert [len(book) for book in q.codebooks_] == [32, 2, 512] and q.code_size_ == 2
    codes = q.transform(rows)
    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(q.unpack(q.pack(codes)), codes)
    again = pickle.loads(pickle.dumps(q))
    np.testing.assert_array_equal(again.transform(rows), codes)


@both
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int8"])
def test_rows_of_every_type_and_layout(kind, dtype, tmp_path):
    X = (40 * np.random.RandomState(0).rand(200, 6)).astype(dtype)
    expected = small(kind).fit(X)
    assert expected.codebooks_.dtype == (np.float64 if dtype == "float64" else np.float32)
    for name, same in layouts(X, tmp_path).items():
        q = small(kind).fit(same)
        assert q.codebooks_.tobytes() == expected.codebooks_.tobytes(), name
        np.testing.assert_array_equal(q.transform(same), expected.transform(X), name)


@both
def test_weights_that_are_zero_are_rows_left_out(kind, rows):
    weight = np.r_[np.ones(500), np.zeros(500)]
    q = small(kind).fit(rows, sample_weight=weight)
    assert q.distortion(rows[:500]) < q.distortion(rows[500:])
    assert q.inertia_ == pytest.approx(500 * q.distortion(rows[:500]), rel=1e-5)


@both
@pytest.mark.parametrize("exponent", [-600, -40, 40, 400])
def test_values_of_any_size(kind, exponent, rows):
    X = rows.astype(np.float64)
    expected = small(kind).fit(X)
    q = small(kind).fit(np.ldexp(X, exponent))
    np.testing.assert_array_equal(q.transform(np.ldexp(X, exponent)), expected.transform(X))


@both
def test_bad_input(kind, rows):
    name = "n_stages" if kind is ResidualQuantizer else "n_codebooks"
    for bits in (0, 17, [4, 4], [4, 4, 17]):
        with pytest.raises(ValueError, match="n_bits"):
            kind(3, bits).fit(rows)
    with pytest.raises(ValueError, match=name):
        kind(0, 4).fit(rows)
    with pytest.raises(TypeError, match="n_bits"):
        kind(3, 4.5).fit(rows)
    with pytest.raises(ValueError, match="beam_width"):
        kind(3, 4, beam_width=0).fit(rows)
    X = rows.copy()
    X[7, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        small(kind).fit(X)
    q = small(kind).fit(rows)
    with pytest.raises(ValueError, match="NaN"):
        q.transform(X)
    codes = q.transform(rows)
    with pytest.raises(ValueError, match="codes must have the shape"):
        q.inverse_transform(np.c_[codes, codes])
    with pytest.raises(ValueError, match="from 0 to 15"):
        q.inverse_transform(codes + 16)
    with pytest.raises(ValueError, match="features"):
        q.transform(rows[:, :5])


@both
def test_fewer_rows_than_codewords(kind, rows):
    with pytest.warns(UserWarning, match="fewer than a codebook"):
        q = kind(2, 5, random_state=0).fit(rows[:20])
    assert q.distortion(rows[:20]) == pytest.approx(0, abs=1e-9)


@both
def test_an_interruption_leaves_it_as_it_was(kind, rows, monkeypatch):
    q = small(kind).fit(rows)
    before = dict(vars(q))
    monkeypatch.setattr(
        "fastvq.vq.residual.least_squares", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        q.fit(rows[:500])
    assert vars(q) == before


def test_without_a_table_it_is_the_same_quantizer(rows):
    """Codebooks whose table would be too large."""
    from fastvq import kernels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels._stages, "CROSSED_BYTES", 0)
        plain = {kind: small(kind).fit(rows) for kind in BOTH}
    for kind in BOTH:
        assert plain[kind].inertia_ == pytest.approx(small(kind).fit(rows).inertia_, rel=0.02)


def test_equations_of_many_unknowns(rows, monkeypatch):
    expected = small(ResidualQuantizer).fit(rows)
    monkeypatch.setattr("fastvq.vq._stages._MOST_UNKNOWNS", 0)
    assert small(ResidualQuantizer).fit(rows).inertia_ == pytest.approx(expected.inertia_, rel=0.02)


@settings(max_examples=40, deadline=None)
@given(
    X=st.tuples(st.integers(1, 40), st.integers(1, 9)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.floats(-1e3, 1e3, width=32))
    ),
    bits=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    kind=st.sampled_from(BOTH),
)
@pytest.mark.filterwarnings("ignore:X has")
def test_properties(X, bits, kind):
    q = kind(len(bits), bits, random_state=0, max_iter=3).fit(X)
    codes = q.transform(X)
    np.testing.assert_array_equal(q.unpack(q.pack(codes)), codes)
    total = sum(book[code] for book, code in zip(q.codebooks_, codes.T, strict=True))
    np.testing.assert_allclose(q.inverse_transform(codes), total, rtol=1e-5, atol=1e-3)
    mean = np.square(X - X.mean(axis=0)).sum()
    assert q.inertia_ <= mean * (1 + 1e-4) + 1e-2
