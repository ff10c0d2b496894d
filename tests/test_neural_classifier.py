"""VQClassifier: classes through a few codes."""

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "fastvq[torch]"')

from sklearn.datasets import load_digits  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from fastvq.neural import VQClassifier  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [VQClassifier(2, 8, hidden=(8,), max_epochs=6, batch_size=32, learning_rate=0.05)]
)
def test_estimator_checks(estimator, check):
    check(estimator)


def test_training_jointly_beats_a_frozen_codebook(digits):
    """At 6 bits a row, over seeds; and not much is lost to no codebook."""
    X, y = digits
    options = dict(hidden=(64,), max_epochs=10, learning_rate=3e-3, n_threads=1)
    scores = {}
    for codebook in ("joint", "frozen", "none"):
        scores[codebook] = [
            VQClassifier(2, 8, codebook=codebook, random_state=seed, **options)
            .fit(X[:1300], y[:1300])
            .score(X[1300:], y[1300:])
            for seed in range(3)
        ]
    means = {codebook: np.mean(values) for codebook, values in scores.items()}
    assert means["joint"] > means["frozen"] and means["joint"] > means["none"] - 0.1, means


@pytest.mark.parametrize("codebook", ["joint", "frozen"])
def test_codes_are_enough(codebook, digits):
    X, names = digits[0], np.array([f"digit {label}" for label in digits[1]])
    options = dict(hidden=(32,), max_epochs=3, random_state=0)
    vq = VQClassifier(5, 6, codebook=codebook, **options).fit(X, names)
    codes = vq.encode(X)
    assert codes.shape == (len(X), 5) and codes.dtype == np.uint8 and codes.max() < 6
    assert vq.code_size_ == 2 and (vq.predict_codes(codes) == vq.predict(X)).all()
    assert set(vq.classes_) == set(names)
    again = pickle.loads(pickle.dumps(vq))
    assert (again.predict_proba(X) == vq.predict_proba(X)).all()
    other = VQClassifier(5, 6, codebook=codebook, **options).fit(X, names)
    assert (other.predict_proba(X) == vq.predict_proba(X)).all()


def test_a_frozen_codebook_does_not_move(digits):
    X, y = digits
    vq = VQClassifier(3, 8, codebook="frozen", max_epochs=2, random_state=0).fit(X, y)
    assert not vq.network_.quantizer.quantizer.codebooks[0].counts.any()
    assert len(vq.history_) == 4


def test_wrong_things_are_named(digits):
    X, y = digits
    for name in ("n_positions", "n_codewords", "code_features", "max_epochs"):
        with pytest.raises(ValueError, match=name):
            VQClassifier(**{name: 0}).fit(X, y)
    with pytest.raises(ValueError, match="codebook"):
        VQClassifier(codebook="some").fit(X, y)
    with pytest.raises(ValueError, match="one class"):
        VQClassifier().fit(X, np.zeros(len(X), int))
    plain = VQClassifier(codebook="none", max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="no codes"):
        plain.encode(X)
