"""The trainer: runs that repeat, stop, resume and fail as they say."""

import functools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "fastvq[torch]"')

from torch import nn  # noqa: E402

from fastvq.neural import (  # noqa: E402
    Diverged,
    Trainer,
    VectorQuantize,
    classification_loss,
    regression_loss,
)

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=400)
    X = rng.standard_normal((400, 4)) + 2 * np.eye(4)[y]
    return X.astype(np.float32), y


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    )


class Quantized(nn.Module):
    """With a codebook that starts, learns, and replaces what is dead, by random numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.quantize = VectorQuantize(8, 32, start_rows=900, dead_below=0.5)

    def forward(self, x):
        return self.head(self.quantize(self.body(x)).values)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    tensors = [name for name in a if torch.is_tensor(a[name])]
    return tensors and all(torch.equal(a[name], b[name]) for name in tensors)


def test_learns(blobs):
    trainer = Trainer(network(), classification_loss, max_epochs=15, batch_size=32)
    history = trainer.fit(*blobs).history_
    assert len(history) == 15 and history[-1]["loss"] < history[0]["loss"] / 1.5
    assert history[-1]["accuracy"] > 0.8 and history[0]["rate"] == 1e-3
    found = trainer.evaluate(*blobs)
    assert found["accuracy"] > 0.8 and not trainer.model.training


@pytest.mark.parametrize("make", [network, Quantized])
def test_a_seed_repeats_whatever_was_drawn_before(make, blobs):
    runs = []
    for drawn in (1, 2):
        model = make()
        torch.manual_seed(drawn)
        state = torch.get_rng_state()
        runs.append(Trainer(model, classification_loss, max_epochs=3).fit(*blobs))
        assert torch.equal(torch.get_rng_state(), state)  # the user's generator is the user's
    assert same(runs[0].model, runs[1].model) and runs[0].history_ == runs[1].history_
    other = Trainer(make(), classification_loss, max_epochs=3, random_state=1).fit(*blobs)
    assert not same(runs[0].model, other.model)


SCHEDULERS = {
    "none": None,
    "cosine": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6),
    "plateau": functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
}


class CountedMask:
    """A constraint with a memory."""

    def __init__(self):
        self.steps = 0

    def __call__(self, model):
        self.steps += 1
        weight = next(model.parameters())
        weight[:, 0] *= 1 / self.steps

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("make", [network, Quantized])
def test_interrupted_and_resumed_is_uninterrupted(make, scheduler, blobs, tmp_path):
    X, y = blobs
    calls = 0

    def loss(model, X, y):
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return classification_loss(model, X, y)

    def trainer(name):
        return Trainer(
            make(),
            loss,
            optimizer=SGD,
            scheduler=SCHEDULERS[scheduler],
            max_epochs=6,
            batch_size=64,
            after_step=[CountedMask()],
            checkpoint=tmp_path / name,
        )

    def fit(trainer, **options):
        return trainer.fit(X[:300], y[:300], validation=(X[300:], y[300:]), **options)

    stop_at = None
    straight = fit(trainer("straight"))
    calls, stop_at = 0, 21
    with pytest.raises(KeyboardInterrupt):
        fit(trainer("broken"))
    stop_at = None
    resumed = fit(trainer("broken"), resume=True)
    assert resumed.history_ == straight.history_ and same(resumed.model, straight.model)
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("straight", "broken"))
    assert str(a["optimizer"]) == str(b["optimizer"]) and torch.equal(a["random"], b["random"])
    assert not list(tmp_path.glob("*.part"))


def test_resuming_what_has_ended_changes_nothing(blobs, tmp_path):
    options = dict(max_epochs=2, checkpoint=tmp_path / "kept")
    first = Trainer(network(), classification_loss, **options).fit(*blobs)
    again = Trainer(network(3), classification_loss, **options).fit(*blobs, resume=True)
    assert same(first.model, again.model) and len(again.history_) == 2


def test_more_epochs_go_on(blobs, tmp_path):
    path = tmp_path / "kept"
    Trainer(network(), classification_loss, max_epochs=2, checkpoint=path).fit(*blobs)
    more = Trainer(network(), classification_loss, max_epochs=5, checkpoint=path)
    at_once = Trainer(network(), classification_loss, max_epochs=5).fit(*blobs)
    assert same(more.fit(*blobs, resume=True).model, at_once.model)


def test_resume_from_nothing_begins(blobs, tmp_path):
    trainer = Trainer(network(), classification_loss, max_epochs=1, checkpoint=tmp_path / "none")
    assert len(trainer.fit(*blobs, resume=True).history_) == 1
    with pytest.raises(ValueError, match="resume needs a checkpoint"):
        Trainer(network(), classification_loss).fit(*blobs, resume=True)


def test_a_checkpoint_of_another_model(blobs, tmp_path):
    path = tmp_path / "kept"
    Trainer(network(), classification_loss, max_epochs=1, checkpoint=path).fit(*blobs)
    other = Trainer(nn.Linear(4, 3), classification_loss, checkpoint=path)
    with pytest.raises(ValueError, match="of another model"):
        other.fit(*blobs, resume=True)


def test_early_stopping_keeps_the_best(blobs):
    X, y = blobs
    rng = np.random.default_rng(1)
    noise = rng.integers(3, size=40)  # nothing to learn but by heart
    trainer = Trainer(
        network(),
        classification_loss,
        optimizer=functools.partial(torch.optim.Adam, lr=0.03),
        max_epochs=200,
        patience=4,
    )
    trainer.fit(X[:40], noise, validation=(X[200:], y[200:]))
    losses = [epoch["validation_loss"] for epoch in trainer.history_]
    assert len(losses) == trainer.best_epoch_ + 5 < 200
    assert min(losses) == losses[trainer.best_epoch_]
    assert trainer.evaluate(X[200:], y[200:])["loss"] == pytest.approx(min(losses))


def test_a_callback_ends_it(blobs):
    seen = []

    def callback(state):
        seen.append(state.history[-1]["loss"])
        return state.epoch == 2

    trainer = Trainer(network(), classification_loss, callback=callback).fit(*blobs)
    assert seen == [epoch["loss"] for epoch in trainer.history_] and len(seen) == 3


def test_constraints_hold_after_every_step(blobs):
    mask = torch.rand(16, 4) < 0.5

    def constrain(model):
        model[0].weight *= mask

    trainer = Trainer(network(), classification_loss, after_step=[constrain], max_epochs=2)
    weight = trainer.fit(*blobs).model[0].weight
    assert (weight[~mask] == 0).all() and (weight[mask] != 0).all()


@pytest.mark.parametrize("kept", [False, True])
def test_a_loss_that_is_nan(kept, blobs, tmp_path):
    path = tmp_path / "kept" if kept else None
    calls = 0

    def loss(model, X, y):
        nonlocal calls
        calls += 1
        factor = math.nan if calls == 11 else 1.0
        return factor * classification_loss(model, X, y)[0]

    trainer = Trainer(network(), loss, batch_size=100, checkpoint=path)
    with pytest.raises(Diverged, match="loss is nan in epoch 2, step 2") as caught:
        trainer.fit(*blobs)
    assert (caught.value.epoch, caught.value.step, caught.value.checkpoint) == (2, 2, path)
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    if kept:
        assert str(path) in str(caught.value)
        assert len(torch.load(path, weights_only=True)["history"]) == 2


def test_weights_that_are_not_finite_are_never_kept(blobs, tmp_path):
    """A finite loss with an infinite gradient, in the last step of an epoch."""
    calls = 0

    def loss(model, X, y):
        nonlocal calls
        calls += 1
        value = classification_loss(model, X, y)[0]
        return (
            value
            if calls < 8
            else value + (model[4].bias - model[4].bias.detach()).abs().sqrt().sum()
        )

    path = tmp_path / "kept"
    with pytest.raises(Diverged, match="epoch 1, step 3"):
        Trainer(network(), loss, batch_size=100, checkpoint=path).fit(*blobs)
    kept = torch.load(path, weights_only=True)
    assert len(kept["history"]) == 1
    assert all(torch.isfinite(value).all() for value in kept["model"].values())


def test_what_a_layer_finds_not_finite(blobs):
    class Model(Quantized):
        def forward(self, x):
            return super().forward(x * (math.inf if x.shape[0] == 16 else 1.0))

    with pytest.raises(Diverged, match="(NaN|infinity).* in epoch 0, step 3"):
        Trainer(Model(), classification_loss).fit(*blobs)


def test_clipped_gradients(blobs):
    before = network()
    model = network()
    trainer = Trainer(
        model, classification_loss, optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        max_gradient=1e-3, max_epochs=1, batch_size=400,
    )  # fmt: skip
    trainer.fit(*blobs)
    moved = [(a - b).detach() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert math.sqrt(sum(m.square().sum() for m in moved)) == pytest.approx(1e-3, rel=1e-3)


def test_threads_are_given_back(blobs):
    seen = []

    def loss(model, X, y):
        seen.append(torch.get_num_threads())
        return classification_loss(model, X, y)

    Trainer(network(), loss, max_epochs=1, n_threads=2).fit(*blobs)
    assert set(seen) == {2} and torch.get_num_threads() == 1


def test_tensorboard(blobs, tmp_path):
    pytest.importorskip("tensorboard", reason='needs: pip install "fastvq[tensorboard]"')
    Trainer(network(), classification_loss, max_epochs=2, log_dir=tmp_path).fit(*blobs)
    assert b"accuracy" in next(tmp_path.glob("events*")).read_bytes()


def test_without_tensorboard(blobs, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "fastvq\[tensorboard\]"'):
        Trainer(network(), classification_loss, log_dir=tmp_path).fit(*blobs)


def test_progress(blobs, capsys):
    Trainer(network(), classification_loss, max_epochs=2, verbose=1).fit(*blobs)
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda X, y: (X, y[:-1]), r"equally many rows.*\[400, 399\]"),
        (lambda X, y: (X[:0], y[:0]), "at least one row"),
        (lambda X, y: (X[:, :3], y), "mat1 and mat2"),
        (lambda X, y: (X, y + 1), "from 0 to 2.*labels from 1 to 3"),
        (lambda X, y: (X, y - 1), "from 0 to 2.*labels from -1 to 1"),
        (lambda X, y: (X, y[:, None]), r"y must have the shape \(128,\), got \(128, 1\)"),
    ],
)
def test_wrong_data_are_named(data, message, blobs):
    with pytest.raises((ValueError, RuntimeError), match=message):
        Trainer(network(), classification_loss).fit(*data(*blobs))


def test_other_wrong_things_are_named(blobs):
    X, y = blobs
    with pytest.raises(TypeError, match="y must be integers"):
        Trainer(network(), classification_loss).fit(X, y.astype(float))
    with pytest.raises(ValueError, match="logits of shape"):
        Trainer(nn.Sequential(network(), nn.Flatten(0)), classification_loss).evaluate(X, y)
    with pytest.raises(ValueError, match=r"y must have the shape .*\(128, 3\), got \(128,\)"):
        Trainer(network(), regression_loss).fit(X, y)
    with pytest.raises(ValueError, match="validation must have 2 arrays"):
        Trainer(network(), classification_loss).fit(X, y, validation=(X,))
    with pytest.raises(ValueError, match="loss must be a scalar"):
        Trainer(network(), lambda model, X: model(X)).fit(X)
    for name in ("max_epochs", "batch_size", "patience"):
        with pytest.raises(ValueError, match=name):
            Trainer(network(), classification_loss, **{name: 0})


def test_a_schedule_by_steps(blobs, tmp_path):
    """The rate of every step, and the same bits after an interruption."""

    def trainer(model, epochs, path):
        return Trainer(
            model, classification_loss, max_epochs=epochs, batch_size=32, checkpoint=path,
            scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.9),
            schedule_by="step",
        )  # fmt: skip

    X, y = blobs
    n_steps = -(-len(X) // 32)
    whole = trainer(network(), 3, tmp_path / "whole").fit(X, y)
    rates = [entry["rate"] for entry in whole.history_]
    assert rates == pytest.approx([1e-3 * 0.9 ** (n_steps * (i + 1)) for i in range(3)])
    trainer(network(), 1, tmp_path / "part").fit(X, y)
    resumed = trainer(network(), 3, tmp_path / "part").fit(X, y, resume=True)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="schedule_by"):
        Trainer(network(), classification_loss, schedule_by="hour")
