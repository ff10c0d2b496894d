"""Optimizers that remember in bytes, and weights that are whole numbers."""

import functools
import io

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "fastvq[torch]"')

from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402

from fastvq.neural import EightBit, IntegerSGD, Trainer, classification_loss  # noqa: E402
from fastvq.neural.optim import _Grid  # noqa: E402

RULES = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "momentum": functools.partial(torch.optim.SGD, lr=0.03, momentum=0.9),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.03),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=3e-3, momentum=0.5),
    "adam": functools.partial(torch.optim.Adam, lr=5e-3, amsgrad=True),
}


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return torch.from_numpy(X / 16).float(), torch.from_numpy(y)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def accuracy(optimizer, digits, **options):
    x, y = digits
    trainer = Trainer(
        network(), classification_loss, optimizer=optimizer, max_epochs=12, batch_size=64, **options
    ).fit(x[:1300], y[:1300])
    return trainer.evaluate(x[1300:], y[1300:])["accuracy"], trainer


# ---- bytes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 255, 256, 1000])
def test_numbers_as_bytes(n, power):
    x = torch.randn(n) * torch.logspace(-3, 0, n)
    if power == 4:
        x = x.square()
    nearest = _Grid.of(x, power, 256, "nearest")
    fine = _Grid.of(x, power, 256, "feedback")
    assert nearest.codes.dtype == torch.int8 and nearest.codes.shape == (n,)
    coarse_error = (nearest.read(power, 256, x) - x).abs()
    fine_error = (fine.read(power, 256, x) - x).abs()
    assert fine_error.max() <= coarse_error.max() / 50 + 1e-7
    largest = nearest.scales.repeat_interleave(256)[:n]
    assert (coarse_error <= power * largest / 254 + 1e-7).all()
    nothing = torch.zeros(n)
    assert (_Grid.of(nothing, power, 256, "feedback").read(power, 256, nothing) == 0).all()


@pytest.mark.parametrize("power", [1, 2])
def test_random_rounding_has_the_number_as_its_mean(power):
    x = torch.randn(64)
    drawn = [_Grid.of(x, power, 64, "random").read(power, 64, x) for _ in range(2000)]
    torch.testing.assert_close(torch.stack(drawn).mean(0), x, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_bytes_train_as_floats_do(rule, feedback, digits):
    wanted, _ = accuracy(RULES[rule], digits)
    found, trainer = accuracy(lambda p: EightBit(RULES[rule](p), feedback=feedback), digits)
    assert found > wanted - 0.02, (found, wanted)
    numbers = sum(p.numel() for p in trainer.model.parameters())
    kept = {"sgd": 0, "momentum": 1, "adagrad": 1, "rmsprop": 2, "adam": 3}[rule]
    most = kept * (2 if feedback else 1) + (1 if feedback else 0)
    assert trainer.optimizer.state_bytes() <= (most + 0.3) * numbers


def test_feedback_keeps_what_rounding_takes_off():
    """Gradients too small for their block's grid: lost without feedback, summed up with it."""
    gradient = torch.cat([torch.ones(1), torch.full((99,), 1e-3)])
    moved = {}
    for feedback in (True, False):
        w = nn.Parameter(torch.zeros(100))
        optimizer = EightBit(torch.optim.SGD([w], lr=1.0), feedback=feedback)
        for _ in range(200):
            w.grad = gradient.clone()
            optimizer.step()
        moved[feedback] = -w.detach()
    torch.testing.assert_close(moved[True], 200 * gradient, atol=8e-3, rtol=0.01)
    assert (moved[False][1:] == 0).all()


def test_schedules_and_states(digits):
    """Rates fall for the optimizer inside; a saved state goes on in the same bits."""
    x, y = digits

    def make():
        net = network()
        optimizer = EightBit(torch.optim.Adam(net.parameters(), lr=1e-2))
        return net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)

    def steps(net, optimizer, schedule, n):
        for _ in range(n):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[:300]), y[:300]).backward()
            optimizer.step()
            schedule.step()

    one = make()
    steps(*one, 4)
    assert one[1].inner.param_groups[0]["lr"] == 5e-3
    file = io.BytesIO()
    torch.save([part.state_dict() for part in one], file)
    other = make()
    file.seek(0)
    for part, state in zip(other, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert any(t.dtype == torch.int8 for s in other[1].state.values() for t in s.values())
    steps(*one, 5)
    steps(*other, 5)
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)


# ---- whole numbers -------------------------------------------------------------------------


def test_steps_of_integers_have_the_mean_of_gradient_descent():
    w = nn.Parameter(torch.zeros(20_000))
    optimizer = IntegerSGD([w], lr=0.1, scale=0.5, clip=8)
    w.grad = torch.linspace(-9, 9, 20_000)
    optimizer.step()
    assert (w % 0.5 == 0).all()
    found = w.detach().reshape(20, -1).mean(1)
    torch.testing.assert_close(found, -0.1 * w.grad.reshape(20, -1).mean(1), atol=0.05, rtol=0.06)


def test_clipping_is_random_with_the_mean_that_is_asked_for():
    w = nn.Parameter(torch.zeros(10_000))
    optimizer = IntegerSGD([w], lr=1.0, scale=1.0, clip=4, bits=8)
    w.grad = torch.full_like(w, -1e3)
    optimizer.step()
    moved = w.detach().unique()
    assert moved.tolist() == list(range(1, 9)) and abs(w.mean() - 4.5) < 0.1
    for _ in range(200):
        optimizer.step()
    assert w.max() == 127  # the largest multiple of 8 bits


def test_the_best_point_of_the_grid():
    """A convex quadratic: close to its least value on the grid, as an enumeration finds it."""
    A = torch.tensor([[2.0, 0.3], [0.3, 1.0]])
    target = torch.tensor([1.37, -0.81])

    def f(w):
        return ((w - target) @ A * (w - target)).sum(-1)

    grid = torch.cartesian_prod(torch.arange(-16, 16), torch.arange(-16, 16)) * 0.25
    w = nn.Parameter(torch.zeros(2))
    optimizer = IntegerSGD([w], lr=0.05, scale=0.25)
    best = float("inf")
    for _ in range(300):
        optimizer.zero_grad()
        value = f(w)
        best = min(best, value.item())
        value.backward()
        optimizer.step()
    assert best == pytest.approx(f(grid).min().item())
    assert (w.detach() / 0.25 == optimizer.integers(w)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_networks_of_whole_numbers(bits, digits):
    found, trainer = accuracy(lambda p: IntegerSGD(p, lr=0.05, momentum=0.9, bits=bits), digits)
    assert found > (0.85 if bits == 8 else 0.6)
    for weight in trainer.model.parameters():
        multiples = trainer.optimizer.integers(weight)
        scale = trainer.optimizer.state[weight]["scale"]
        assert torch.equal(multiples * scale, weight)
        assert multiples.min() >= -(2 ** (bits - 1)) and multiples.max() < 2 ** (bits - 1)


def test_wrong_settings_are_named():
    w = [nn.Parameter(torch.zeros(2))]
    for options in (dict(bits=1), dict(momentum=1.0), dict(scale=0.0), dict(clip=0), dict(lr=-1.0)):
        with pytest.raises(ValueError, match=next(iter(options))):
            IntegerSGD(w, **options)
    with pytest.raises(ValueError, match="block"):
        EightBit(torch.optim.SGD(w), block=0)
