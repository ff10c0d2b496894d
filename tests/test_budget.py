"""fit_to_budget: what it finds meets the budget, and what it measured is told."""

import sys

import numpy as np
import pytest
from sklearn.base import clone

from fastvq import (
    ProductQuantizer,
    ScalarQuantizer,
    VectorQuantizer,
    fit_to_budget,
    load,
    plot_curve,
)
from fastvq.vq._curve import RateCurve


def correlated(n=6000, d=16, seed=0):
    rng = np.random.RandomState(seed)
    turn = np.linalg.qr(np.random.RandomState(9).standard_normal((d, d)))[0]
    return ((rng.standard_normal((n, d)) * 0.7 ** np.arange(d)) @ turn).astype(np.float32)


FEW = [
    ScalarQuantizer(2),
    ScalarQuantizer(4),
    ProductQuantizer(4, max_iter=5),
    ProductQuantizer(4, rotation="opq", max_iter=5),
    VectorQuantizer(64, max_iter=5),
]


def test_the_best_for_bytes():
    X, Y = correlated(), correlated(seed=1)
    best = fit_to_budget(X, bytes_per_vector=4, candidates=FEW, random_state=0)
    assert best.code_size_ <= 4

    def usual(candidate):
        seeds = range(3)
        fits = [clone(candidate).set_params(random_state=seed).fit(X) for seed in seeds]
        return np.mean([each.distortion(Y) for each in fits])

    others = [usual(each) for each in FEW if not isinstance(each, ScalarQuantizer)]
    assert best.distortion(Y) <= 1.02 * min(others)
    assert best.rotation == "opq"


def test_the_smallest_for_a_distortion():
    X = correlated()
    target = VectorQuantizer(64, max_iter=5, random_state=0).fit(X).distortion(X) * 1.3
    best = fit_to_budget(X, distortion=target, candidates=FEW, random_state=0)
    assert best.code_size_ == 1
    best = fit_to_budget(X, distortion=target / 20, candidates=FEW, random_state=0)
    assert best.code_size_ > 1 and best.distortion(correlated(seed=1)) <= target / 20 * 1.05


def test_the_default_candidates():
    best = fit_to_budget(correlated(2500, 8), bytes_per_vector=4, random_state=0)
    kinds = set(best.curve_["kind"])
    assert kinds == {f"{kind}Quantizer" for kind in ("Scalar", "Product", "Residual", "Additive")}
    assert best.code_size_ <= 4


def test_the_curve_and_files(tmp_path):
    X = correlated()
    best = fit_to_budget(X, bytes_per_vector=8, candidates=FEW, random_state=0)
    curve = best.curve_
    n = len(curve["kind"])
    assert {len(values) for values in curve.values()} == {n}
    assert n > len(FEW)  # the better half twice
    assert curve["rows"][:5] == [4096] * 5 and curve["rows"][-1] == 4500
    assert min(curve["seconds"]) > 0
    again = fit_to_budget(X, bytes_per_vector=8, candidates=FEW, random_state=0, n_threads=2)
    assert again.curve_["distortion"] == curve["distortion"]
    assert np.array_equal(again.transform(X), best.transform(X))
    best.save(tmp_path / "best")
    assert load(tmp_path / "best").curve_ == curve


def test_candidates_are_left_alone():
    candidate = ScalarQuantizer(4)
    fit_to_budget(correlated(500), bytes_per_vector=8, candidates=[candidate])
    assert not hasattr(candidate, "code_size_")


def test_a_budget_that_cannot_be_met():
    X = correlated(500)
    with pytest.raises(ValueError, match="smallest candidate takes 8"):
        fit_to_budget(X, bytes_per_vector=2, candidates=[ScalarQuantizer(4)])
    with pytest.raises(ValueError, match="the best candidate reaches"):
        fit_to_budget(X, distortion=1e-9, candidates=[ScalarQuantizer(4)])
    with pytest.raises(ValueError, match="no candidates"):
        fit_to_budget(X, bytes_per_vector=0.5)


@pytest.mark.parametrize("targets", [{}, {"bytes_per_vector": 1, "distortion": 1.0}])
def test_exactly_one_target(targets):
    with pytest.raises(ValueError, match="exactly one"):
        fit_to_budget(correlated(100), **targets)


def test_plot(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    best = fit_to_budget(correlated(1000), bytes_per_vector=8, candidates=FEW[:2])
    axes = best.curve_.plot()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ScalarQuantizer"]
    assert plot_curve(best, axes) is axes
    best.save(tmp_path / "best")
    assert load(tmp_path / "best").curve_.plot(axes) is axes


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install"):
        RateCurve().plot()


class Failing(ScalarQuantizer):
    """Fits as the other does, but fails on more than `most` rows."""

    def __init__(self, most=0):
        super().__init__(8)
        self.most = most

    def fit(self, X, y=None, sample_weight=None):
        if len(X) > self.most:
            raise MemoryError(f"{len(X)} rows are too many")
        return super().fit(X)


@pytest.mark.parametrize("most", [0, 4096])
def test_candidates_that_fail_are_left_out(most):
    best = fit_to_budget(
        correlated(), bytes_per_vector=16, candidates=[Failing(most), *FEW], random_state=0
    )
    curve = best.curve_
    (failed,) = [i for i, error in enumerate(curve["error"]) if error is not None]
    assert curve["kind"][failed] == "Failing" and type(best) is not Failing
    assert curve["error"][failed] == f"MemoryError: {curve['rows'][failed]} rows are too many"
    assert curve["bytes"][failed] is curve["distortion"][failed] is None
    assert failed == 0 if most == 0 else curve["rows"][failed] == 4500


def test_where_all_candidates_fail_the_first_tells_why():
    with pytest.raises(MemoryError, match="4096 rows are too many"):
        fit_to_budget(correlated(), bytes_per_vector=8, candidates=[Failing(7), Failing(3)])


def test_large_codebooks_join_when_there_are_rows_for_them():
    candidates = [VectorQuantizer(16, max_iter=3), VectorQuantizer(600, max_iter=3)]
    best = fit_to_budget(correlated(), bytes_per_vector=2, candidates=candidates, random_state=0)
    rows = dict(zip(best.curve_["parameters"], best.curve_["rows"], strict=True))
    assert best.n_codewords == 600 and min(best.curve_["rows"]) == 4096
    (alone,) = [n for text, n in rows.items() if "600" in text]
    assert alone == 4500


def test_default_vector_quantizers_by_bytes():
    from fastvq.vq.budget import CANDIDATES

    sizes = {
        size: [vq.n_codewords for vq in CANDIDATES["vector"](8, size)] for size in (1, 2, 3, 4)
    }
    assert sizes == {1: [256], 2: [4096, 65536], 3: [1 << 20], 4: []}
    best = fit_to_budget(correlated(3000, 4), bytes_per_vector=2, random_state=0)
    assert "VectorQuantizer" not in best.curve_["kind"]  # 3000 rows are too few for 4096 codewords
