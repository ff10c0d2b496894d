"""An LSTM in codewords and codes."""

import pickle

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "fastvq[torch]"')

from sklearn.datasets import load_digits  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402
from torch import nn  # noqa: E402

from fastvq.neural import CodebookLinear, VQLSTMClassifier, stored_numbers  # noqa: E402
from fastvq.neural.lstm import _Recurrent  # noqa: E402

QUICK = dict(
    n_codewords=64, n_positions=16, n_state_codewords=32, max_epochs=4, batch_size=32, n_threads=1
)


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


@pytest.fixture(scope="module")
def fitted(digits):
    X, y = digits
    lstm = VQLSTMClassifier(8, 32, learning_rate=0.01, random_state=0, **QUICK)
    return lstm.fit(X[:1300], y[:1300])


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [VQLSTMClassifier(1, 8, n_positions=2, n_state_codewords=8, max_epochs=8, batch_size=16,
                      learning_rate=0.05)]
)  # fmt: skip
def test_estimator_checks(estimator, check):
    check(estimator)


def test_steps_are_those_of_torch(digits):
    """Without codebooks: PyTorch's own LSTM with the same weights."""
    X = digits[0]
    network = _Recurrent(X, 8, 12, (), 10)
    wanted = nn.LSTM(8, 12, batch_first=True)
    with torch.no_grad():
        # i, f, g, o here as there
        wanted.weight_ih_l0.copy_(network.input.weight)
        wanted.weight_hh_l0.copy_(network.recurrent.weight)
        wanted.bias_ih_l0.copy_(network.input.bias)
        wanted.bias_hh_l0.zero_()
        x = torch.from_numpy(X[:50])
        expected, _ = wanted(network.scaling(x).reshape(50, 8, 8))
        torch.testing.assert_close(network.states(x)[0], expected)


def test_codes_lose_little_and_save_much(fitted, digits):
    X, y = digits
    plain = VQLSTMClassifier(
        8, 32, codebook="none", learning_rate=0.01, random_state=0, **QUICK
    ).fit(X[:1300], y[:1300])
    assert plain.stored_numbers_ == plain.float_numbers_ == fitted.float_numbers_
    assert fitted.stored_numbers_ < 0.7 * fitted.float_numbers_
    assert fitted.state_bits_ == 16 * 5 and plain.state_bits_ == 32 * 32
    assert fitted.score(X[1300:], y[1300:]) > plain.score(X[1300:], y[1300:]) - 0.06
    with pytest.raises(ValueError, match="codebook='none'"):
        plain.encode_states(X)


def test_states_are_codewords(fitted, digits):
    X = digits[0][:40]
    codes = fitted.encode_states(X)
    assert codes.shape == (40, 8, 16) and codes.min() >= 0 and codes.max() < 32
    network = fitted.network_
    with torch.no_grad():
        states, _ = network.states(torch.from_numpy(X))
        torch.testing.assert_close(network.quantizer.decode(torch.from_numpy(codes)), states)


def test_gradient_of_codewords_is_the_sum_over_their_pieces():
    linear = nn.Linear(10, 12)
    small = CodebookLinear(linear, n_codewords=5, block=4)
    assert small.weight.shape == (12, 10) and small.codes.max() < 5
    x, upstream = torch.randn(7, 10), torch.randn(7, 12)
    (small(x) * upstream).sum().backward()
    whole = (upstream.T @ x).reshape(30, 4)
    wanted = torch.zeros(5, 4).index_add(0, small.codes.long(), whole)
    torch.testing.assert_close(small.codewords.grad, wanted)
    assert stored_numbers(small) == 5 * 4 + 12 + 30 * 3 / 32
    uneven = CodebookLinear(nn.Linear(3, 5, bias=False), n_codewords=2, block=4)
    assert uneven.weight.shape == (5, 3) and uneven.codes.shape == (4,)
    with pytest.raises(ValueError, match="below the 30 pieces"):
        CodebookLinear(linear, n_codewords=30, block=4)


def test_pickles_and_repeats(fitted, digits):
    X, y = digits
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.predict_proba(X[:50]) == fitted.predict_proba(X[:50])).all()
    options = dict(learning_rate=0.01, random_state=0, **{**QUICK, "max_epochs": 1})
    one, two = (VQLSTMClassifier(8, 32, **options).fit(X[:300], y[:300]) for _ in range(2))
    assert (one.predict_proba(X) == two.predict_proba(X)).all()


def test_wrong_settings_are_named(digits):
    X, y = digits
    for options in (dict(n_steps=7), dict(n_units=0), dict(codebook="some"), dict(n_positions=3)):
        match = "n_subspaces" if "n_positions" in options else next(iter(options))
        with pytest.raises(ValueError, match=match):
            VQLSTMClassifier(**{**QUICK, "n_steps": 8, "max_epochs": 1, **options}).fit(X, y)
