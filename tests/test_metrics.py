"""Recall, intervals and rate–distortion points, against what they are by definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fastvq import VectorQuantizer, metrics
from fastvq.metrics import mean_interval, rate_distortion, recall_at_k


class TestRecall:
    @given(data=st.data())
    def test_is_the_share_of_the_intersection(self, data):
        n, columns, n_true = (data.draw(st.integers(1, 6)) for _ in range(3))
        k = data.draw(st.integers(1, columns))
        rng = np.random.RandomState(data.draw(st.integers(0, 99)))
        found = np.array([rng.permutation(12)[:columns] for _ in range(n)]) - 2  # some are none
        truth = np.array([rng.permutation(12)[:n_true] for _ in range(n)])
        pairs = zip(found[:, :k].tolist(), truth[:, :k].tolist(), strict=True)
        shares = [len({i for i in f if i >= 0} & {*t}) / min(k, n_true) for f, t in pairs]
        assert recall_at_k(found, truth, k) == pytest.approx(np.mean(shares), abs=1e-12)

    def test_in_blocks(self, monkeypatch):
        rng = np.random.RandomState(0)
        found, truth = rng.randint(0, 50, (2, 101, 10))
        whole = recall_at_k(found, truth, 7)
        monkeypatch.setattr(metrics, "_BLOCK_PAIRS", 300)
        assert recall_at_k(found, truth, 7) == whole

    def test_extremes(self):
        truth = np.arange(20).reshape(4, 5)
        assert recall_at_k(truth[:, ::-1], truth, 5) == 1
        assert recall_at_k(truth + 100, truth, 5) == 0
        assert recall_at_k(np.full((4, 5), -1), truth, 3) == 0
        assert recall_at_k(truth.astype(np.uint8), truth[:, 0].astype(np.int64), 1) == 1
        assert recall_at_k([[3, 3]], [[3, 4]], 2) == 0.5  # one found twice is found once

    @pytest.mark.parametrize(
        ("found", "truth", "k", "error", "said"),
        [
            ([[1, 2]], [[1]], 3, ValueError, "k must be from 1 to the 2"),
            ([[1, 2]], [[1]], 0, ValueError, "k must be"),
            ([[1, 2]], [[1], [2]], 1, ValueError, "a row for each query"),
            (np.empty((0, 2), int), np.empty((0, 2), int), 1, ValueError, "a row for each query"),
            ([[1.5, 2]], [[1]], 1, TypeError, "found must be integers"),
            ([[1, 2]], [["a"]], 1, TypeError, "truth must be integers"),
            ([[1, 2]], [[-1]], 1, ValueError, "truth must not be negative"),
            ([[[1, 2]]], [[1]], 1, ValueError, "found must have a row"),
        ],
    )
    def test_bad_input(self, found, truth, k, error, said):
        with pytest.raises(error, match=said):
            recall_at_k(found, truth, k)


class TestInterval:
    @pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
    @pytest.mark.parametrize("n", [2, 5, 40])
    def test_is_that_of_scipy(self, n, confidence):
        values = np.random.RandomState(n).gamma(3, size=n)
        low, high = stats.t.interval(confidence, n - 1, values.mean(), stats.sem(values))
        assert mean_interval(values, confidence) == pytest.approx((values.mean(), low, high))

    def test_covers_the_mean_as_often_as_it_says(self):
        samples = np.random.RandomState(0).randn(4000, 5)
        covered = [low <= 0 <= high for _, low, high in map(mean_interval, samples)]
        assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # over 4 standard errors

    @pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan], [[1.0, 2.0]]])
    def test_bad_values(self, values):
        with pytest.raises(ValueError, match="values must be"):
            mean_interval(values)

    @pytest.mark.parametrize("confidence", [0, 1, -1, 95])
    def test_bad_confidence(self, confidence):
        with pytest.raises(ValueError, match="confidence must be"):
            mean_interval([1, 2], confidence)


class TestRateDistortion:
    X = np.random.RandomState(0).randn(400, 5).astype(np.float32)

    def test_each_seed_is_a_fit_of_its_own(self):
        quantizer = VectorQuantizer(8, max_iter=4)
        (point,) = rate_distortion([quantizer], self.X[:300], self.X[300:], seeds=[3, 1])
        fits = [VectorQuantizer(8, max_iter=4, random_state=s).fit(self.X[:300]) for s in (3, 1)]
        assert point.distortions == tuple(fit.distortion(self.X[300:]) for fit in fits)
        assert point.distortion == mean_interval(point.distortions)
        assert point.quantizer is quantizer and "codebook_" not in vars(quantizer)
        assert quantizer.random_state is None

    def test_more_bytes_lose_less(self):
        sizes = (16, 300)
        points = rate_distortion([VectorQuantizer(k, max_iter=5) for k in sizes], self.X, seeds=3)
        assert [point.bytes_per_vector for point in points] == [1, 2]
        assert points[1].distortion.high < points[0].distortion.low
        assert all(len(point.distortions) == 3 for point in points)

    def test_one_seed_has_no_interval(self):
        with pytest.raises(ValueError, match="at least two"):
            rate_distortion([VectorQuantizer(2)], self.X, seeds=1)
