"""Quantization-aware training: grids, their gradients, networks, and integers that agree."""

import copy
import math
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "fastvq[torch]"')

from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402

from fastvq import load  # noqa: E402
from fastvq.neural import (  # noqa: E402
    FakeQuantize,
    QATSpec,
    Trainer,
    classification_loss,
    convert,
    integer_layers,
    prepare_qat,
    simulate_exact,
)

METHODS = ["minmax", "average", "lsq", "pact"]


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
    return torch.from_numpy(X / 16).float().reshape(-1, 1, 8, 8), torch.from_numpy(y)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(256, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    X, y = digits
    trainer = Trainer(network(), classification_loss, max_epochs=10, batch_size=64, n_threads=1)
    return trainer.fit(X[:1300], y[:1300]).model


# ---- grids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("method", METHODS)
def test_a_grid_has_its_codes(method, bits):
    grid = FakeQuantize(bits, method)
    x = torch.rand(4000)
    grid(x)
    codes = grid.codes(x)
    assert codes.min() >= grid.least and codes.max() <= grid.most == 2 ** (bits - 1) - 1
    assert len(codes.unique()) == 2**bits if method in ("minmax", "pact") else True
    torch.testing.assert_close(grid(x), (codes - grid.zero_point) * grid.scale)
    assert grid(torch.zeros(1)) == 0  # zero is on every grid: padding is exact


def test_ranges():
    smallest, moving = FakeQuantize(8, "minmax"), FakeQuantize(8, "average", decay=0.5)
    for top in (1.0, 3.0, 2.0):
        for grid in (smallest, moving):
            grid(torch.tensor([-0.5, top]))
    assert smallest.high == 3 and moving.high == 2 and smallest.low == moving.low == -0.5
    smallest.eval()(torch.tensor([9.0]))
    assert smallest.high == 3
    assert smallest(torch.tensor([9.0])) == pytest.approx(3.0, abs=0.02)  # clipped


@pytest.mark.parametrize("channels", [None, 5])
def test_gradient_of_a_learnt_scale(channels):
    """Equation (3) of the paper, times 1 / √(n · Q): that is how plain descent moves the scale."""
    grid = FakeQuantize(3, "lsq", channels=channels, weights=True)
    v = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)
    grid.double()(v)
    upstream = torch.randn_like(v)
    grid(v).backward(upstream)
    s = grid.scale.detach().reshape(-1, 1)
    ratio = v.detach() / s
    inside = (ratio > -4) & (ratio < 3)
    local = torch.where(inside, ratio.round() - ratio, ratio.clamp(-4, 3))
    factor = 1 / math.sqrt((200 if channels is None else 40) * 3)
    wanted = (factor * local * upstream).reshape(len(s), -1).sum(1)
    before = grid.scale.detach().clone()
    torch.optim.SGD(grid.parameters(), lr=1e-3).step()
    torch.testing.assert_close((before - grid.scale.detach()) / 1e-3, wanted)
    torch.testing.assert_close(v.grad, upstream * inside)


@pytest.mark.parametrize("layer", [nn.Linear(9, 5), nn.Conv2d(3, 4, 3, padding=1, bias=False)])
@pytest.mark.parametrize("bits", [2, 8])
def test_the_first_layer_learns_the_scale_of_its_input_as_others_do(layer, bits):
    torch.manual_seed(0)
    x = torch.randn(6, *((9,) if isinstance(layer, nn.Linear) else (3, 8, 7)))
    first = prepare_qat(layer, QATSpec(bits, bits))
    later = copy.deepcopy(first)
    outputs = [first(x), later(x.clone().requires_grad_())]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    wanted = torch.randn_like(outputs[0])
    gradients = [
        torch.autograd.grad(output, list(network.parameters()), wanted)
        for output, network in zip(outputs, (first, later), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert all(bool((g != 0).any()) for g in gradients[0])


def test_gradient_of_a_learnt_clip():
    grid = FakeQuantize(4, "pact")
    grid(torch.tensor([2.0]))
    x = torch.tensor([-1.0, 0.5, 1.9, 3.0, 4.0], requires_grad=True)
    grid(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0, 0]
    assert grid(x)[-1] == 2
    torch.optim.SGD(grid.parameters(), lr=0.25).step()
    assert grid(x)[-1] == 1.5  # two of the upstream gradients belong to the clip
    with pytest.raises(ValueError, match="negative"):
        FakeQuantize(4, "pact")(torch.tensor([-1.0]))


def test_all_zero_weights():
    grid = FakeQuantize(4, "minmax", channels=3, weights=True)
    assert (grid(torch.zeros(3, 2)) == 0).all()


# ---- networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("activations", METHODS)
@pytest.mark.parametrize("weights", ["minmax", "lsq"])
def test_eight_bits_change_little(weights, activations, granularity, trained, digits):
    """Batch norm is folded, and nothing of the model that was given changes."""
    before = copy.deepcopy(trained.state_dict())
    spec = QATSpec(weights=weights, activations=activations, granularity=granularity)
    quantized = prepare_qat(trained, spec)
    quantized(digits[0][:500])
    x = digits[0][500:900]
    with torch.no_grad():
        found, wanted = quantized.eval()(x), trained(x)
    assert (found - wanted).norm() < 0.04 * wanted.norm()
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in quantized.modules())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("weights", "activations"), [("lsq", "lsq"), ("minmax", "average"), ("lsq", "pact")]
)
def test_integers_agree_with_training(weights, activations, bits, trained, digits):
    """Rounding of float32 apart: few codes differ, and those by one."""
    X, y = digits
    spec = QATSpec(bits, bits, weights=weights, activations=activations)
    quantized = prepare_qat(trained, spec).train()
    Trainer(quantized, classification_loss, max_epochs=1, batch_size=64).fit(X[:640], y[:640])
    with torch.no_grad():
        wanted = quantized(X[1300:])
    found = simulate_exact(quantized, X[1300:])
    assert found.dtype == torch.float32
    assert (found.argmax(1) == wanted.argmax(1)).float().mean() > 0.98
    close = torch.isclose(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    assert close.float().mean() > 0.9
    layers = integer_layers(quantized)
    assert list(layers) == ["0", "4", "8"]
    for layer in layers.values():
        assert layer.weight.dtype == torch.int8 and layer.bias.dtype == torch.int32
        assert -(2 ** (bits - 1)) <= layer.weight.int().min()
        assert layer.weight.int().max() < 2 ** (bits - 1)


def test_integers_are_those_of_plain_numpy(trained, digits):
    """The rule of requantization written out for two linear layers."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 5))
    quantized = prepare_qat(net, QATSpec(5, 6, activations="average"))
    x = digits[0].flatten(1)
    quantized(x)
    found = simulate_exact(quantized, x).numpy()
    a, b = integer_layers(quantized).values()
    codes = np.rint(x.numpy() / np.float32(a.input_scale)) + a.input_zero_point
    codes = codes.clip(-32, 31).astype(np.int64)
    acc = (codes - a.input_zero_point) @ a.weight.numpy().astype(np.int64).T + a.bias.numpy()
    m = (a.weight_scale.numpy().astype(np.float64) * a.input_scale / b.input_scale).astype(
        np.float32
    )
    q = np.rint(acc.astype(np.float32) * m).astype(np.int64) + b.input_zero_point
    q = q.clip(max(-32, b.input_zero_point), 31)  # ReLU: nothing below the code of zero
    acc = (q - b.input_zero_point) @ b.weight.numpy().astype(np.int64).T + b.bias.numpy()
    worth = (b.weight_scale.numpy().astype(np.float64) * b.input_scale).astype(np.float32)
    assert (found == acc.astype(np.float32) * worth).all()


def test_training_helps_and_learnt_scales_help_most(trained, digits):
    """At two bits."""
    X, y = digits
    accuracy = {}
    for weights, activations in (("minmax", "average"), ("lsq", "lsq")):
        spec = QATSpec(2, 2, weights=weights, activations=activations)
        quantized = prepare_qat(trained, spec).train()
        quantized(X[:500])
        trainer = Trainer(quantized, classification_loss, max_epochs=6, batch_size=64)
        before = trainer.evaluate(X[1300:], y[1300:])["accuracy"]
        trainer.fit(X[:1300], y[:1300])
        accuracy[weights] = trainer.evaluate(X[1300:], y[1300:])["accuracy"]
        assert accuracy[weights] > before
    assert accuracy["lsq"] > accuracy["minmax"] and accuracy["lsq"] > 0.75


def test_mixed_bits(trained):
    spec = QATSpec(4, 4, outer_bits=8, layers={"4": {"weight_bits": 2, "activations": "pact"}})
    quantized = prepare_qat(trained, spec)
    bits = [(quantized[i].weight_grid.bits, quantized[i].input_grid.bits) for i in (0, 4, 8)]
    assert bits == [(8, 8), (2, 4), (8, 8)] and quantized[4].input_grid.method == "pact"
    left = prepare_qat(trained, QATSpec(layers={"8": None}))
    assert isinstance(left[8], nn.Linear)


def test_states_resume(trained, digits):
    first, second = prepare_qat(trained), prepare_qat(network())
    first(digits[0][:100])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(digits[0]), second.eval()(digits[0]))


def test_wrong_things_are_named(trained, digits):
    for options in (dict(weight_bits=1), dict(activation_bits=9), dict(weights="pact")):
        with pytest.raises(ValueError, match=next(iter(options))):
            QATSpec(**options)
    with pytest.raises(ValueError, match="no linear or convolutional"):
        prepare_qat(nn.ReLU())
    with pytest.raises(ValueError, match="fit no layer.*head.*there are.*'0', '4', '8'"):
        prepare_qat(trained, QATSpec(layers={"head*": {}}))
    with pytest.raises(ValueError, match="must come from prepare_qat"):
        simulate_exact(trained, digits[0])
    with pytest.raises(ValueError, match="'0' has seen no batch"):
        simulate_exact(prepare_qat(trained), digits[0])


def test_functions_and_a_single_layer(digits):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(36, 3, bias=False)

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.a(x)), 2)
            return self.b(x.flatten(1))

    quantized = prepare_qat(Net())
    quantized(digits[0])
    with torch.no_grad():
        wanted = quantized.eval()(digits[0])
    torch.testing.assert_close(simulate_exact(quantized, digits[0]), wanted, atol=0.02, rtol=0.05)
    alone = prepare_qat(nn.Linear(8, 2))
    alone(torch.randn(50, 8))
    assert simulate_exact(alone, torch.randn(4, 8)).shape == (4, 2)


# ---- what runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        QATSpec(),
        QATSpec(4, 4),
        QATSpec(2, 3, activations="average", weights="minmax", outer_bits=8),
    ],
    ids=str,
)
def test_the_runtime_gives_what_was_simulated(spec, trained, digits, tmp_path, run_python):
    """Bit for bit: compiled, from a file, and where every operator runs in NumPy."""
    X, y = digits
    quantized = prepare_qat(trained, spec).train()
    Trainer(quantized, classification_loss, max_epochs=1, batch_size=64).fit(X[:640], y[:640])
    wanted = simulate_exact(quantized, X[1300:]).numpy()
    compressed = convert(quantized, X[:1])
    assert (compressed(X[1300:].numpy()) == wanted).all()
    assert (compressed(X[1300:1301].numpy()) == wanted[:1]).all()
    compressed.save(tmp_path / "model.fvq")
    np.save(tmp_path / "x.npy", X[1300:].numpy())
    np.save(tmp_path / "y.npy", wanted)
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np, fastvq\n"
        "y = fastvq.load('model.fvq')(np.load('x.npy')); assert (y == np.load('y.npy')).all()"
    )
    run_python(code, FASTVQ_LEVEL="numpy")


def test_convolutions_of_all_kinds(digits):
    """Padding, strides, groups, dilation, pooling with a step, and a ReLU at the end."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(1, 6, (3, 2), padding=(2, 1), stride=(1, 2))
            self.b = nn.Conv2d(6, 12, 3, groups=3, dilation=2, padding=2)
            self.c, self.d = nn.Linear(24, 7), nn.Linear(7, 3, bias=False)

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.a(x)), 3, 2, padding=1)
            x = nn.functional.max_pool2d(self.b(x), 2).flatten(1)
            return self.d(self.c(x)).relu()

    quantized = prepare_qat(Net(), QATSpec(6, 5))
    quantized(digits[0])
    wanted = simulate_exact(quantized, digits[0]).numpy()
    assert (convert(quantized, digits[0])(digits[0].numpy()) == wanted).all() and wanted.any()


# ---- networks that are no chain --------------------------------------------------------------


class Residual(nn.Module):
    """Two residual blocks, the second with a convolution in its skip, and a mean of all places."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.norm_a = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c, self.norm_c = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.skip, self.norm_skip = nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        inner = torch.relu(self.norm_a(self.a(x)))
        x = torch.relu(x + self.norm_b(self.b(inner)))
        x = (self.norm_skip(self.skip(x)) + self.norm_c(self.c(x))).relu()
        return self.head(self.pool(x).flatten(1))


def separable():
    """As MobileNet: depthwise and pointwise convolutions in turn, cut off at 6."""
    layers, width = [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()], 8
    for wide, stride in ((12, 2), (16, 1)):
        layers += [
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
            nn.BatchNorm2d(width), nn.ReLU6(),
            nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
        ]  # fmt: skip
        width = wide
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


class Inception(nn.Module):
    """What begins with pooling, is joined, and read by layers with grids of their own."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 4, 3, 2, 1), nn.Conv2d(8, 6, 1, 2)
        self.mean, self.head = nn.AvgPool2d(3, 2, padding=1), nn.Linear(40, 10)

    def forward(self, x):
        x = self.pool(x)
        x = nn.functional.relu(torch.cat([self.a(x), self.b(x)], dim=1))
        x = torch.cat([self.c(x), self.d(x)], 1)
        return self.head(self.mean(x).reshape(x.size(0), -1)).relu()


class Averages(nn.Module):
    """Means that are read as numbers: added, and given."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
        self.mean = nn.AvgPool2d(2)

    def forward(self, x):
        return self.mean(self.a(x)) + self.mean(self.b(x))


NETWORKS = {
    "residual": Residual, "separable": separable, "inception": Inception, "averages": Averages,
}  # fmt: skip


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_branches_in_integers(name, bits, digits, tmp_path, run_python):
    """The runtime, compiled and in NumPy alone, gives what was simulated, bit for bit."""
    x, y = digits
    net = NETWORKS[name]()
    if name != "averages":
        Trainer(net, classification_loss, max_epochs=1, batch_size=64).fit(x[:640], y[:640])
    quantized = prepare_qat(net, QATSpec(bits, bits, outer_bits=8)).train()
    with torch.no_grad():
        quantized(x[:640])
        close = quantized.eval()(x[1300:])
    wanted = simulate_exact(quantized, x[1300:]).numpy()
    difference = np.abs(wanted - close.numpy())
    assert np.quantile(difference, 0.9) < 0.02 * np.abs(close.numpy()).max() and wanted.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing stays in float32
        compressed = convert(quantized, x[:1])
    assert (compressed(x[1300:].numpy()) == wanted).all()
    compressed.save(tmp_path / "model.fvq")
    np.save(tmp_path / "x.npy", x[1300:].numpy())
    np.save(tmp_path / "y.npy", wanted)
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np, fastvq\n"
        "y = fastvq.load('model.fvq')(np.load('x.npy')); assert (y == np.load('y.npy')).all()"
    )
    run_python(code, FASTVQ_LEVEL="numpy")


def test_batch_norms_are_folded_wherever_they_stand():
    """Found by tracing in any network; those of a layer that is read elsewhere too stay."""
    folded = prepare_qat(Residual())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            x = self.a(x)
            return x + self.norm(x)

    kept = prepare_qat(Shared())
    assert isinstance(kept.norm, nn.BatchNorm1d)


def test_what_has_no_twin_stays_in_float32_and_is_named(digits):
    """A layer left alone, a function, and a mean over an axis: close to what was simulated."""
    pytest.importorskip("onnx", reason="float layers come in by way of ONNX")

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
            self.head = nn.Linear(6, 10)

        def forward(self, x):
            x = torch.sigmoid(self.first(x))
            return self.head(nn.functional.gelu(self.second(x)).mean((2, 3)))

    x = digits[0]
    quantized = prepare_qat(Mixed(), QATSpec(layers={"first": None}))
    quantized(x[:640])
    wanted = simulate_exact(quantized, x).numpy()
    with pytest.warns(UserWarning, match="there is no first, gelu, mean, sigmoid"):
        compressed = convert(quantized, x)
    found = compressed(x.numpy())
    assert np.quantile(np.abs(found - wanted), 0.99) < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", "valid", (2, 1)])
def test_padding_in_words_and_of_all_modes(padding, mode, digits):
    """An even kernel: "same" has more to put behind than before."""
    first = nn.Conv2d(1, 6, (4, 3), padding=padding, padding_mode=mode)
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1), nn.Flatten())
    quantized = prepare_qat(net, QATSpec(6, 5))
    quantized(digits[0])
    wanted = simulate_exact(quantized, digits[0]).numpy()
    assert (convert(quantized, digits[0])(digits[0].numpy()) == wanted).all() and wanted.any()


def test_sequences_of_the_same_length(digits):
    net = nn.Sequential(nn.Conv1d(8, 6, 4, padding="same", dilation=2), nn.MaxPool1d(3, 2))
    rows = digits[0][:, 0]
    quantized = prepare_qat(net)
    quantized(rows)
    wanted = simulate_exact(quantized, rows).numpy()
    assert wanted.shape[2] == 3 and (convert(quantized, rows)(rows.numpy()) == wanted).all()


@pytest.mark.parametrize("window", [(3, 2, 0), (3, 2, 1), (2, 3, 0), ((3, 2), (3, 2), (1, 0))])
def test_pooling_that_rounds_sizes_up(window, digits):
    """Of codes, and of numbers."""
    pool = nn.MaxPool2d(*window, ceil_mode=True)
    net = nn.Sequential(nn.Conv2d(1, 5, 2), pool, nn.Conv2d(5, 3, 1), pool)
    quantized = prepare_qat(net, QATSpec(4, 4))
    wanted = quantized(digits[0])
    found = simulate_exact(quantized, digits[0])
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0.05)
    assert (convert(quantized, digits[0])(digits[0].numpy()) == found.numpy()).all()


def test_several_outputs(digits, tmp_path):
    """What is given twice, as it came, and what other layers read too."""

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(144, 5), nn.Linear(144, 2)

        def forward(self, x):
            inner = self.body(x).relu()
            flat = inner.flatten(1)
            a = self.a(flat)
            return {"a": a, "others": [inner, (self.b(flat), a)], "x": x}

    x = digits[0]
    quantized = prepare_qat(Many(), QATSpec(4, 4))
    quantized(x)
    found = simulate_exact(quantized, x)
    assert list(found) == ["a", "others", "x"] and torch.equal(found["x"], x)
    inner, (b, a) = found["others"]
    wanted = found["a"], inner, b, a, x
    compressed = convert(quantized, x)
    assert compressed.output_names == ["y0", "y1", "y2", "y3", "y4"]
    compressed.save(tmp_path / "model.fvq")
    for model in (compressed, load(tmp_path / "model.fvq")):
        for one, other in zip(model(x.numpy()), wanted, strict=True):
            assert (one == other.numpy()).all()


def test_several_inputs(tmp_path):
    """A skip from one of them, both in one layer, and one that is given back as it came."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (
                nn.Conv2d(1, 3, 3, padding=1),
                nn.Linear(5, 48),
                nn.Linear(5, 2),
            )

        def forward(self, picture, more):
            seen = self.a(picture).relu() + self.b(more).unflatten(1, (3, 4, 4))
            return torch.cat([seen.mean((2, 3)), self.c(more)], 1), more

    torch.manual_seed(0)
    x = torch.randn(30, 1, 4, 4), torch.randn(30, 5)
    quantized = prepare_qat(Two(), QATSpec(4, 4))
    quantized(*x)
    with pytest.warns(UserWarning, match="there is no"):
        compressed = convert(quantized, x)
    assert compressed.input_names == ["x0", "x1"]
    compressed.save(tmp_path / "model.fvq")
    wanted = simulate_exact(quantized, x)
    for model in (compressed, load(tmp_path / "model.fvq")):
        joined, more = model(*(one.numpy() for one in x))
        np.testing.assert_allclose(joined, wanted[0].numpy(), rtol=1e-5, atol=1e-6)
        assert (joined[:, 3:] == wanted[0][:, 3:].numpy()).all() and (more == x[1].numpy()).all()
    with pytest.raises(ValueError, match="as many tensors as the network takes, 2, got 1"):
        convert(quantized, x[0])


def test_networks_that_integers_cannot_follow_are_named(digits):
    class Net(nn.Module):
        def __init__(self, forward):
            super().__init__()
            self.a, self.run = nn.Linear(8, 4), forward

        def forward(self, x):
            return self.run(self, x)

    rows = torch.randn(9, 8)
    for forward in (lambda net, x: (), lambda net, x: net.a(x).chunk(2)):
        odd = prepare_qat(Net(forward))
        odd.a(rows)
        with pytest.raises(NotImplementedError, match="integers give tensors"):
            convert(odd, rows)
    places = prepare_qat(nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, return_indices=True)))
    places(digits[0][:50])
    with pytest.raises(NotImplementedError, match="tensors|places of maxima"):
        convert(places, digits[0])
    solid = prepare_qat(nn.Sequential(nn.Conv3d(1, 2, 3)))
    solid(torch.randn(9, 1, 4, 4, 4))
    with pytest.raises(NotImplementedError, match="three axes, as 0"):
        convert(solid, torch.randn(9, 1, 4, 4, 4))
    with pytest.raises(ValueError, match="'2' has seen no batch"):
        untouched = prepare_qat(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2)))
        untouched[0](digits[0][:50])
        simulate_exact(untouched, digits[0])
