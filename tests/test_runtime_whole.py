"""Whole models: the promises, levels beside each other, and what a call costs besides its sums."""

import os
import subprocess
import sys
import tracemalloc
from functools import cache

import numpy as np
import pytest

import fastvq
from fastvq import _kernels
from fastvq.runtime.registry import compiled

torch = pytest.importorskip("torch", reason="pip install torch")

needs_kernels = pytest.mark.skipif(
    not compiled(), reason="FASTVQ_LEVEL=numpy or a build without kernels: layers run in NumPy"
)

RUN = """
import sys, numpy, fastvq
model, stored = fastvq.load(sys.argv[1]), numpy.load(sys.argv[2])
inputs = [stored[name] for name in stored.files]
y = model(*inputs)
for part in (slice(0, 1), slice(3, 4), slice(1, 4)):
    numpy.testing.assert_array_equal(model(*[x[part] for x in inputs]), y[part])
numpy.save(sys.argv[3], y)
"""


class Recurrent(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers = getattr(torch.nn, kind)(7, 20, batch_first=True, bidirectional=True)
        self.classify = torch.nn.Linear(40, 3)

    def forward(self, x):
        return self.classify(self.layers(x)[0][:, -1])


def rows_of(*shape):
    return lambda n: (np.random.default_rng(n).standard_normal((n, *shape)).astype("f4"),)


def words(n):
    rng = np.random.default_rng(n)
    ids, lengths = rng.integers(0, 100, (n, 9)), rng.integers(1, 10, n)
    return ids, (np.arange(9) < lengths[:, None]).astype(np.int64)


def torch_models():
    from fastvq.demo.networks import LeNet, MobileNetV2, SentenceEncoder

    mlp = torch.nn.Sequential(
        torch.nn.Linear(33, 70), torch.nn.GELU(), torch.nn.Linear(70, 70), torch.nn.Tanh(),
        torch.nn.LayerNorm(70), torch.nn.Linear(70, 10), torch.nn.Softmax(-1),
    )  # fmt: skip
    encoder = SentenceEncoder(100, width=48, n_layers=2, n_heads=3, inner=96, longest=16)
    return {
        "MLP": (mlp, rows_of(33)),
        "LeNet": (LeNet(), rows_of(1, 28, 28)),
        "MobileNetV2": (MobileNetV2(n_classes=20), rows_of(3, 64, 64)),
        "transformer": (encoder, words),
        "LSTM": (Recurrent("LSTM"), rows_of(5, 7)),
        "GRU": (Recurrent("GRU"), rows_of(5, 7)),
    }


NAMES = ("MLP", "LeNet", "MobileNetV2", "transformer", "LSTM", "GRU")


@cache
def made(name):
    """The module, its model, and what makes inputs of so many rows."""
    torch.manual_seed(0)
    module, inputs = torch_models()[name]
    return module.eval(), fastvq.compress(module, inputs(2)), inputs


@pytest.mark.parametrize("name", NAMES)
def test_as_pytorch(name):
    module, model, inputs = made(name)
    for n in (1, 3, 8):
        with torch.no_grad():
            wanted = module(*map(torch.tensor, inputs(n))).numpy()
        found = model(*inputs(n))
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_alone_in_any_batch_and_at_any_thread_count(name):
    _, model, inputs = made(name)
    whole = inputs(9)
    wanted = model(*whole, n_threads=1)
    for n_threads in (2, 5):
        np.testing.assert_array_equal(model(*whole, n_threads=n_threads), wanted)
    for part in (slice(0, 1), slice(4, 5), slice(2, 8)):
        np.testing.assert_array_equal(model(*[x[part] for x in whole]), wanted[part])


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
def test_no_python_between_layers(name):
    _, model, inputs = made(name)
    kernels = [row["kernel"] for row in model.profile(*inputs(2), seconds=0.01).rows]
    assert "numpy" not in kernels


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_allocated_but_the_output(name):
    _, model, inputs = made(name)
    arrays = inputs(64)
    size = model(*arrays).nbytes
    tracemalloc.start()
    try:
        for _ in range(3):
            model(*arrays)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(3):
            model(*arrays)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 500
    assert peak - before < 2 * size + 4000  # two outputs, while a name goes from one to the next


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", ["numpy", *_kernels.levels_runnable()[:-1]])
def test_other_levels(name, level, tmp_path):
    _, model, inputs = made(name)
    arrays, wanted = inputs(5), model(*inputs(5))
    model.save(tmp_path / "model.fvq")
    np.savez(tmp_path / "x.npz", *arrays)
    command = [sys.executable, "-c", RUN, *(str(tmp_path / n) for n in ("model.fvq", "x.npz", "y"))]
    subprocess.run(command, check=True, env={**os.environ, "FASTVQ_LEVEL": level})
    found = np.load(tmp_path / "y.npy")
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
