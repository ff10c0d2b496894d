"""What the suites that judge networks share: photographs, texts, and how near answers stay.

There are no labels: what counts is what the network gives in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from bench.data import MissingData
from bench.options import Options

PHOTOGRAPHS = {
    "skimage": (
        "data/astronaut.png data/brick.png data/camera.png data/chelsea.png data/coffee.png "
        "data/coins.png data/grass.png data/gravel.png data/hubble_deep_field.jpg data/ihc.png "
        "data/moon.png data/motorcycle_left.png data/retina.jpg data/rocket.jpg"
    ),  # of the stereo pair one
    "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures
CONFIDENT, CLEAR = 0.5, 0.02  # probability of the likeliest class; lead in cosine


# -- photographs ---------------------------------------------------------------------------------


@cache
def photographs() -> dict[str, np.ndarray]:
    """All photographs, (height, width, 3) uint8, by name."""
    from fastvq import images
    from fastvq.demo.mobilenet import file_of

    found = {}
    for module, names in PHOTOGRAPHS.items():
        for name in names.split():
            picture = images.read_picture(file_of(module, name, module))
            picture = picture if picture.shape[-1] >= 3 else np.repeat(picture, 3, axis=-1)
            found[Path(name).stem] = picture[..., :3]
    return dict(sorted(found.items()))


def crops(name, n, seed) -> np.ndarray:
    """Random squares of a photograph as ImageNet's networks take them: (n, 3, 224, 224)."""
    from PIL import Image

    picture, rng = photographs()[name], np.random.default_rng([seed, *name.encode()])
    height, width = picture.shape[:2]
    found = np.empty((n, 224, 224, 3), np.float32)
    for out in found:
        side = int(min(height, width) * rng.uniform(0.35, 1))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        square = np.ascontiguousarray(picture[top : top + side, left : left + side])
        out[:] = np.asarray(Image.fromarray(square).resize((224, 224), Image.Resampling.BILINEAR))
        if rng.random() < 0.5:
            out[:] = out[:, ::-1].copy()
    found = (found / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(found.transpose(0, 3, 1, 2))


def halves():
    """Two lists of names: every other photograph, so that both have some of each kind."""
    names = [*photographs()]
    return names[::2], names[1::2]


def agreement(found, wanted) -> dict:
    """How near logits of photographs, {name: (n, classes)}, are to those of the float network."""
    names = [*wanted]
    same = [(found[n].argmax(axis=1) == wanted[n].argmax(axis=1)) for n in names]
    sure = [_probability(wanted[n]) >= CONFIDENT for n in names]
    noise = sum(((np.float64(found[n]) - wanted[n]) ** 2).sum() for n in names)
    signal = sum((np.float64(wanted[n]) ** 2).sum() for n in names)
    low, high = interval(same)
    all_same, all_sure = np.concatenate(same), np.concatenate(sure)
    return {
        "agreement": round(float(all_same.mean()), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "confident": round(float(all_same[all_sure].mean()), 4) if all_sure.any() else None,
        "SQNR dB": round(float(10 * np.log10(signal / noise)), 2),
        "crops": len(all_same),
        "confident crops": int(all_sure.sum()),
        "by photograph": " ".join(f"{n}:{s.mean():.3f}" for n, s in zip(names, same, strict=True)),
    }


def _probability(logits):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return 1 / odds.sum(axis=1)


def interval(groups, draws=5000):
    """95 % interval of the mean of all values, groups (photographs) drawn anew with replacement."""
    rng = np.random.default_rng(0)
    sums, counts = np.array([[g.sum(), len(g)] for g in groups], np.float64).T
    chosen = rng.integers(len(sums), size=(draws, len(sums)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


# -- texts ---------------------------------------------------------------------------------------


@cache
def sentences() -> list[str]:
    """Short texts of Debian's fortunes, each once, in the order of files."""
    folder = Path("/usr/share/games/fortunes")
    if not folder.is_dir():
        raise MissingData(f"{folder} is not there: apt install fortunes")
    found = {}
    for path in sorted(p for p in folder.iterdir() if not p.suffix and p.name != "ascii-art"):
        for text in path.read_text("utf-8").split("\n%\n"):
            text = " ".join(text.replace("\b", "").split())
            if 20 <= len(text) <= 250 and text.isascii():
                found[text] = None
    return [*found]


def texts(n_judged, n_seen):
    """Texts to be judged by, and others to calibrate with: evenly spread over all there are."""
    found, n = sentences(), n_judged + n_seen
    chosen = [found[i * len(found) // n] for i in range(n)]
    seen = range(0, n, n // n_seen)[:n_seen]
    return [text for i, text in enumerate(chosen) if i not in seen], [chosen[i] for i in seen]


def as_read(whole, texts):
    """The inputs of a model that reads texts."""
    from fastvq.runtime import preprocess

    found = preprocess.prepare(whole.metadata["preprocess"], texts)
    return tuple(found[name] for name in whole.input_names)


def vectors(model, whole, texts):
    """What a model gives for texts, prepared as `whole` reads them."""
    parts = (texts[i : i + 50] for i in range(0, len(texts), 50))
    return np.concatenate([model(*as_read(whole, part)) for part in parts])


def likeness(found, wanted) -> dict:
    """How near vectors of unit length are to wanted ones, and their nearest neighbours."""
    near, lead = _nearest(wanted)
    same = _nearest(found)[0] == near
    cosine = (found * wanted).sum(axis=1) / np.linalg.norm(found, axis=1)
    return {
        "cosine": round(float((cosine / np.linalg.norm(wanted, axis=1)).mean()), 6),
        "nearest": round(float(same.mean()), 4),
        "clear nearest": round(float(same[lead > CLEAR].mean()), 4),
        "texts": len(same),
        "clear texts": int((lead > CLEAR).sum()),
    }


def _nearest(vectors):
    """The nearest other vector of each, and its lead in cosine on the second."""
    vectors = np.float64(vectors)
    products = vectors @ vectors.T
    np.fill_diagonal(products, -np.inf)
    two = np.sort(np.partition(products, -2, axis=1)[:, -2:], axis=1)
    return products.argmax(axis=1), two[:, 1] - two[:, 0]


# -- any model -----------------------------------------------------------------------------------


def batches(model, x, n=32):
    return np.concatenate([np.asarray(model(x[i : i + n])) for i in range(0, len(x), n)])


def measured(cases: Mapping[str, Callable[[Options], list[dict]]], options: Options) -> dict:
    """The records of the cases that are asked for."""
    records = []
    for case, run in cases.items():
        if options.only.lower() not in case.lower():
            continue
        try:
            records += run(options)
        except MissingData as error:
            say(f"{case}: left out: {error}")
    return {"records": records}


def say(text):
    print(text, file=sys.stderr, flush=True)
