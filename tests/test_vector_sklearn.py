"""VectorQuantizer among scikit-learn's estimators: its checks, pipelines, searches, routing."""

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastvq import VectorQuantizer

OUTPUTS = ["codes", "onehot", "onehot-dense", "distances", "reconstruction"]


def expected_failures(vq):
    if vq.n_codewords == 4:
        return {
            "check_sample_weight_equivalence_on_dense_data": "rows are drawn at random as first "
            "codewords, and others are drawn where rows are weighted than where they are repeated; "
            "from the same start weighting is repeating (test_weighting_is_repeating)"
        }
    return {}  # more codewords than the checks have rows: nothing is drawn


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [VectorQuantizer(output=output) for output in OUTPUTS]
    + [VectorQuantizer(4, output=output) for output in OUTPUTS]
    + [VectorQuantizer(4, algorithm="growing"), VectorQuantizer(4, algorithm="minibatch")],
    expected_failed_checks=expected_failures,
)
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X, y


def test_tags():
    tags = get_tags(VectorQuantizer())
    assert not tags.input_tags.sparse and not tags.input_tags.allow_nan
    assert tags.estimator_type is None and not tags.target_tags.required
    assert get_tags(VectorQuantizer(output="distances")).transformer_tags.preserves_dtype


def test_a_pipeline_with_a_classifier(digits):
    X, y = digits
    pipeline = make_pipeline(
        StandardScaler(),
        VectorQuantizer(200, output="onehot", random_state=0),
        LogisticRegression(max_iter=200),
    )
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.85


def test_a_pipeline_back_into_the_input_s_units(digits):
    X, _ = digits
    pipeline = make_pipeline(StandardScaler(), VectorQuantizer(100, random_state=0)).fit(X)
    for output in ("codes", "onehot", "reconstruction"):
        pipeline.set_params(vectorquantizer__output=output)
        back = pipeline.inverse_transform(pipeline.transform(X))
        assert back.shape == X.shape and np.abs(back - X).mean() < 2.5


def test_a_grid_search(digits):
    X, _ = digits
    search = GridSearchCV(
        make_pipeline(StandardScaler(), VectorQuantizer(random_state=0)),
        {"vectorquantizer__n_codewords": [4, 64, 16], "vectorquantizer__init": ["random", "auto"]},
        cv=3,
    ).fit(X)
    assert search.best_params_["vectorquantizer__n_codewords"] == 64
    assert search.best_score_ == pytest.approx(search.cv_results_["mean_test_score"].max())


def test_parameters_are_kept_as_given():
    init = np.zeros((4, 2))
    vq = VectorQuantizer(4, init=init, metric="L2", n_threads=2)
    assert vq.get_params()["init"] is init and vq.metric == "L2"
    assert clone(vq).get_params()["n_threads"] == 2
    assert repr(VectorQuantizer(8, tol=0)) == "VectorQuantizer(n_codewords=8, tol=0)"


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("output", ["codes", "onehot-dense", "distances", "reconstruction"])
def test_set_output(output, library, digits):
    frames = pytest.importorskip(library)
    X = frames.DataFrame(digits[0][:300, :5], **({"columns": [*"abcde"]} if library == "pandas" else
                                                 {"schema": [*"abcde"]}))  # fmt: skip
    vq = VectorQuantizer(9, output=output, random_state=0).set_output(transform=library)
    for frame in (vq.fit_transform(X), vq.transform(X)):
        assert type(frame) is frames.DataFrame
        assert list(frame.columns) == list(vq.get_feature_names_out())
        if output == "codes":
            np.testing.assert_array_equal(vq.inverse_transform(frame).shape, X.shape)
        if output == "reconstruction":
            assert list(frame.columns) == [*"abcde"]
    if library == "pandas":
        labelled = vq.transform(X.set_index(np.arange(300) + 7))
        assert labelled.index[0] == 7


def test_set_output_cannot_hold_sparse(digits):
    pytest.importorskip("pandas")
    vq = VectorQuantizer(9, output="onehot").set_output(transform="pandas")
    with pytest.raises(ValueError, match="sparse"):
        vq.fit_transform(digits[0])


class TestMetadataRouting:
    @pytest.fixture(autouse=True)
    def enabled(self):
        with sklearn.config_context(enable_metadata_routing=True):
            yield

    def test_only_weights_are_metadata(self):
        requests = VectorQuantizer().get_metadata_routing()
        for method in ("fit", "partial_fit", "score"):
            assert set(getattr(requests, method).requests) == {"sample_weight"}, method
        for method in ("transform", "inverse_transform", "predict"):
            assert not getattr(requests, method).requests, method

    def test_weights_reach_a_pipeline_s_step(self, digits):
        X, _ = digits
        weight = np.r_[np.ones(50), np.zeros(len(X) - 50)]
        vq = VectorQuantizer(20, random_state=0).set_fit_request(sample_weight=True)
        vq.set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, vq).fit(X, sample_weight=weight)
        assert pipeline[-1].counts_.sum() == 50
        score = pipeline.score(X, sample_weight=weight)
        assert score == pytest.approx(-pipeline[-1].inertia_ / 50)

    def test_weights_reach_a_search(self, digits):
        X, _ = digits
        vq = VectorQuantizer(random_state=0).set_fit_request(sample_weight=True)
        vq.set_score_request(sample_weight=True)
        search = GridSearchCV(vq, {"n_codewords": [4, 8]}, cv=2)
        search.fit(X, sample_weight=np.full(len(X), 2.0))
        assert search.best_estimator_.counts_.sum() == 2 * len(X)
