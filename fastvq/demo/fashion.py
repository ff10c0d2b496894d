"""A LeNet trained on Fashion-MNIST by PyTorch, as a file that runs with NumPy alone."""

import gzip
import os

import numpy as np

import fastvq
from fastvq import _threads
from fastvq.demo._alone import run_alone, seconds_per_call

__all__ = ["load_fashion_mnist", "run", "trained"]

FOLDERS = ("/usr/share/datasets/fashion-mnist", "/usr/share/dataset/fashion-mnist")
EPOCHS = 2


def load_fashion_mnist(part="train"):
    """Pictures (n, 28, 28) uint8 and labels (n,) uint8 of "train" or "t10k"."""
    folder = next((folder for folder in FOLDERS if os.path.isdir(folder)), None)
    if folder is None:
        raise FileNotFoundError(
            "Fashion-MNIST is not here: apt install dataset-fashion-mnist (Debian, 31 MB)"
        )
    arrays = []
    for name, offset in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(os.path.join(folder, f"{part}-{name}-ubyte.gz")) as file:
            arrays.append(np.frombuffer(file.read(), np.uint8, offset=offset))
    return arrays[0].reshape(-1, 28, 28), arrays[1]


def trained(random_state=0, n_threads=None):
    """A LeNet after `EPOCHS` epochs of Adam over the training pictures."""
    torch = _torch()
    from fastvq.demo.networks import LeNet

    torch.manual_seed(random_state)
    torch.set_num_threads(_threads.effective(n_threads))
    pictures, labels = load_fashion_mnist()
    x, y = torch.tensor(as_input(pictures)), torch.tensor(labels, dtype=torch.int64)
    model = LeNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def as_input(pictures):
    """uint8 pictures as the network takes them: float32 (n, 1, 28, 28), about -1 to 1."""
    return (pictures[:, None].astype(np.float32) - 128) / 128


def run(output_dir, *, n_threads=None, random_state=0, echo=print):
    """See `fastvq.demo`."""
    torch = _torch()
    pictures, labels = load_fashion_mnist("t10k")
    echo(f"training a LeNet for {EPOCHS} epochs on 60,000 pictures ...")
    model = trained(random_state=random_state, n_threads=n_threads)
    os.makedirs(output_dir, exist_ok=True)
    path = os.path.join(output_dir, "fashion-lenet.fvq")
    x = as_input(pictures)
    compressed = fastvq.compress(model, x[:2])
    compressed.save(path)
    with torch.no_grad():
        wanted = model(torch.tensor(x)).numpy()
    answer, seconds = run_alone(path, x)
    weights = sum(p.numel() for p in model.parameters())
    size = os.path.getsize(path)
    theirs, ours = (np.mean(logits.argmax(1) == labels) for logits in (wanted, answer))
    largest = np.abs(answer - wanted).max() / np.abs(wanted).max()
    echo(f"weights             {weights:,}, as float32 {4 * weights:,} bytes; file {size:,}")
    echo(f"accuracy            PyTorch {theirs:.2%}, fastvq {ours:.2%}")
    echo(f"largest difference  {largest:.1e} of the largest value")
    echo(f"10,000 pictures in a process with NumPy alone, start included: {seconds:.2f} s")
    for n in (1, 32):
        rows = x[:n]
        with torch.no_grad():
            theirs = seconds_per_call(model, torch.tensor(rows))
        ours = seconds_per_call(lambda rows: compressed(rows, n_threads=n_threads), rows)
        echo(f"batch of {n:<3}        PyTorch {1e6 * theirs:.0f} us, fastvq {1e6 * ours:.0f} us")


def _torch():
    try:
        import torch
    except ImportError:
        raise ImportError('this demo trains with PyTorch: pip install "fastvq[torch]"') from None
    return torch
