"""What is lost in 8-bit integers: networks beside themselves in float32, and beside onnxruntime.

MobileNetV2 on crops of photographs, in two halves: ranges are found on the photographs of one half,
and the model is judged by those of the other, so that none is seen by both. There are no labels:
what counts is how often the most likely class is that of the float network (agreement), in all and
where that is confident, and the noise of the logits. Crops of a photograph are alike, so intervals
come from drawing photographs anew.

MiniLM on short English texts (Debian's fortunes): how near its vectors stay, and whether the
nearest of the other texts is the same. Fashion-MNIST: accuracy of networks trained here.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from bench import report, sessions
from bench.options import Options

#: what is to be reached, by case and contestant: measure to (comparison, value)
WANTED = {
    ("MobileNetV2", "fastvq static"): {"agreement": 0.86, "confident": 0.98, "SQNR dB": 18.0},
    ("MobileNetV2", "fastvq dynamic"): {"agreement": 0.90, "SQNR dB": 18.0},
    ("MiniLM", "fastvq dynamic"): {"cosine": 0.999, "nearest": 0.94, "clear nearest": 0.995},
    ("MiniLM", "fastvq static"): {"cosine": 0.999, "nearest": 0.94, "clear nearest": 0.995},
}
#: agreement that static is to have above onnxruntime's best static
WANTED_LEAD = 0.02
#: of accuracy, mean of the seeds
WANTED_DROP = 0.003

PHOTOGRAPHS = {
    "skimage": (
        "data/astronaut.png data/brick.png data/camera.png data/chelsea.png data/coffee.png "
        "data/coins.png data/grass.png data/gravel.png data/hubble_deep_field.jpg data/ihc.png "
        "data/moon.png data/motorcycle_left.png data/retina.jpg data/rocket.jpg"
    ),  # of the stereo pair one
    "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
}
CROPS, CALIBRATION_CROPS = 64, 8  # of each photograph
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures
CONFIDENT, CLEAR = 0.5, 0.02  # probability of the likeliest class; lead in cosine
SENTENCES, CALIBRATION_SENTENCES = 1000, 200
SEEDS = 5


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


# -- MobileNetV2 ---------------------------------------------------------------------------------


def measure_mobilenet(options) -> list[dict]:
    import fastvq
    from fastvq.demo.mobilenet import load_mobilenet

    n, n_calibration = (4, 2) if options.quick else (CROPS, CALIBRATION_CROPS)
    whole = fastvq.compress(load_mobilenet(), np.zeros((2, 3, 224, 224), np.float32))
    logits: dict = {}
    sizes: dict = {}
    for ours, others in (halves(), halves()[::-1]):
        calibration = np.concatenate([crops(name, n_calibration, 0) for name in ours])
        tests = {name: crops(name, n, 1) for name in others}
        models = dict(_ours(whole, calibration, sizes))
        models |= dict(_onnxruntime("mobilenet", whole, calibration, sizes, options))
        for name, x in tests.items():
            logits.setdefault("float", {})[name] = _batches(whole, x)
            for who, model in models.items():
                logits.setdefault(who, {})[name] = _batches(model, x)
            _say(f"MobileNetV2 on {name}: {_progress(logits, name)}")
    wanted = logits.pop("float")
    return [
        {
            "case": "MobileNetV2",
            "name": who,
            "threads": 1,
            **agreement(found, wanted),
            "size": round(sizes[who], 4),
        }
        for who, found in logits.items()
    ]


def _progress(logits, name):
    """What the models gave on one photograph, in words: a run takes long."""
    wanted = {name: logits["float"][name]}
    found = {
        who: agreement({name: given[name]}, wanted)
        for who, given in logits.items()
        if who != "float"
    }
    return ", ".join(f"{who} {r['agreement']} {r['SQNR dB']} dB" for who, r in found.items())


def _ours(whole, calibration, sizes):
    import fastvq

    for activations in ("dynamic", "static"):
        small = fastvq.compress(whole, calibration, scheme="int8", activations=activations)
        who = f"fastvq {activations}"
        sizes[who] = small.nbytes / whole.nbytes
        _say(f"{who}: calibrated")
        yield who, small


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


def _batches(model, x, n=32):
    return np.concatenate([np.asarray(model(x[i : i + n])) for i in range(0, len(x), n)])


# -- onnxruntime ---------------------------------------------------------------------------------


#: its static kinds: calibration methods. Weights are u8, each channel with its zero point: on a CPU
#: without VNNI onnxruntime adds pairs of u8 x s8 in 16 bits and saturates, of u8 x u8 it does not
STATIC = {f"onnxruntime static, {method}": method for method in ("MinMax", "Entropy", "Percentile")}


def _onnxruntime(case, whole, calibration, sizes, options):
    """onnxruntime's models of the same network, ready to run, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        path.write_bytes(_exported(case))
        prepared = Path(folder) / "prepared.onnx"
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with _silent():
            quant_pre_process(str(path), str(prepared))
        out = Path(folder) / "small.onnx"
        kinds = [*STATIC.items()][: 1 if options.quick else None]
        for who, method in kinds:
            _static(prepared, out, method, calibration)
            sizes[who] = out.stat().st_size / path.stat().st_size
            _say(f"{who}: calibrated")
            yield who, _session(out)
        _dynamic(prepared, out)
        who = "onnxruntime dynamic"
        sizes[who] = out.stat().st_size / path.stat().st_size
        yield who, _session(out)


def _static(path, out, method, calibration):
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(range(0, len(calibration), 8))

        def get_next(self):
            start = next(self.rows, None)
            return None if start is None else {"x0": calibration[start : start + 8]}

    with _silent():
        quantize_static(
            str(path), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8,
            calibrate_method=getattr(CalibrationMethod, method),
        )  # fmt: skip


def _dynamic(path, out):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _silent():
        quantize_dynamic(str(path), str(out), per_channel=True, weight_type=QuantType.QUInt8)


@cache
def _exported(case) -> bytes:
    from fastvq.demo.minilm import load_minilm
    from fastvq.demo.mobilenet import load_mobilenet

    if case == "mobilenet":
        picture = np.zeros((2, 3, 224, 224), np.float32)
        return sessions.torch_onnx(load_mobilenet(), (picture,))
    words = np.ones((2, 8), np.int64)
    return sessions.torch_onnx(load_minilm(), (words, words), ("N", "T"))


def _session(path):
    session = sessions.onnxruntime_session(path.read_bytes(), os.cpu_count())
    names = [value.name for value in session.get_inputs()]
    return lambda *x: session.run(None, dict(zip(names, x, strict=True)))[0]


class _silent:
    """No logging of onnxruntime's tools, which warn of what is meant."""

    def __enter__(self):
        import logging

        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_):
        import logging

        logging.disable(self._level)


# -- MiniLM --------------------------------------------------------------------------------------


@cache
def sentences() -> list[str]:
    """Short texts of Debian's fortunes, each once, in the order of files."""
    folder = Path("/usr/share/games/fortunes")
    if not folder.is_dir():
        raise FileNotFoundError("texts are not here: apt install fortunes")
    found = {}
    for path in sorted(p for p in folder.iterdir() if not p.suffix and p.name != "ascii-art"):
        for text in path.read_text("utf-8").split("\n%\n"):
            text = " ".join(text.replace("\b", "").split())
            if 20 <= len(text) <= 250 and text.isascii():
                found[text] = None
    return [*found]


def measure_minilm(options) -> list[dict]:
    import fastvq
    from fastvq.demo.minilm import compressed
    from fastvq.runtime import preprocess

    texts = sentences()
    n, n_calibration = (100, 40) if options.quick else (SENTENCES, CALIBRATION_SENTENCES)
    places = np.arange(n + n_calibration) * len(texts) // (n + n_calibration)
    every = n // n_calibration + 1
    seen = [texts[p] for i, p in enumerate(places) if i % every == 0][:n_calibration]
    judged = [texts[p] for i, p in enumerate(places) if i % every][:n]
    whole = compressed()
    how = whole.metadata["preprocess"]

    def vectors(model):
        parts = []
        for start in range(0, len(judged), 50):
            inputs = preprocess.prepare(how, judged[start : start + 50])
            parts.append(model(*(inputs[name] for name in whole.input_names)))
        return np.concatenate(parts)

    wanted = vectors(whole)
    inputs = preprocess.prepare(how, seen)
    calibration = tuple(inputs[name] for name in whole.input_names)
    models, sizes = {}, {}
    for activations in ("dynamic", "static"):
        small = fastvq.compress(whole, calibration, scheme="int8", activations=activations)
        models[f"fastvq {activations}"] = small
        sizes[f"fastvq {activations}"] = small.nbytes / whole.nbytes
        _say(f"MiniLM, {activations}: calibrated")
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "float.onnx", Path(folder) / "small.onnx"
        path.write_bytes(_exported("minilm"))
        _dynamic(path, out)
        models["onnxruntime dynamic"] = _session(out)
        sizes["onnxruntime dynamic"] = out.stat().st_size / path.stat().st_size
    return [
        {
            "case": "MiniLM",
            "name": who,
            "threads": 1,
            **likeness(vectors(model), wanted),
            "size": round(sizes[who], 4),
        }
        for who, model in models.items()
    ]


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


# -- Fashion-MNIST -------------------------------------------------------------------------------


def measure_fashion(options) -> list[dict]:
    import fastvq
    from fastvq.demo.fashion import as_input, load_fashion_mnist

    pictures, labels = load_fashion_mnist("t10k")
    seen = as_input(load_fashion_mnist()[0][:: 60_000 // 512])
    tests = as_input(pictures)
    records = []
    for case in ("MLP", "LeNet"):
        drops: dict = {"fastvq dynamic": [], "fastvq static": []}
        sizes, scores = {}, []
        for seed in range(1 if options.quick else SEEDS):
            whole = fastvq.compress(_trained(case, seed, 1 if options.quick else 2), seen[:2])
            scores.append(_accuracy(whole, tests, labels))
            for who, found in drops.items():
                activations = who.split()[1]
                small = fastvq.compress(whole, seen, scheme="int8", activations=activations)
                found.append(_accuracy(small, tests, labels) - scores[-1])
                sizes[who] = small.nbytes / whole.nbytes
            _say(f"Fashion-MNIST {case}, seed {seed}: {scores[-1]:.4f}")
        records += [
            {
                "case": f"Fashion-MNIST {case}",
                "name": who,
                "threads": 1,
                "accuracy": round(float(np.mean(scores)), 4),
                "change": round(float(np.mean(found)), 5),
                "worst": round(float(np.min(found)), 5),
                "size": round(sizes[who], 4),
                "seeds": len(found),
            }
            for who, found in drops.items()
        ]
    return records


def _trained(case, seed, epochs):
    import torch

    from fastvq.demo.fashion import as_input, load_fashion_mnist
    from fastvq.demo.networks import LeNet

    torch.manual_seed(seed)
    pictures, labels = load_fashion_mnist()
    x, y = torch.tensor(as_input(pictures)), torch.tensor(labels, dtype=torch.int64)
    if case == "LeNet":
        model = LeNet()
    else:
        layers = [torch.nn.Flatten()]
        for n_in, n_out in pairwise((784, 300, 100, 10)):
            layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def _accuracy(model, x, labels):
    return float((_batches(model, x, 1000).argmax(axis=1) == labels).mean())


# -- the suite -----------------------------------------------------------------------------------


CASES = {
    "MobileNetV2": measure_mobilenet,
    "MiniLM": measure_minilm,
    "Fashion-MNIST": measure_fashion,
}


def measure(options: Options) -> dict:
    records = []
    for case, run in CASES.items():
        if options.only.lower() in case.lower():
            records += run(options)
    return {"records": records}


def _say(text):
    print(text, file=sys.stderr)


def tables(measured: dict) -> str:
    records = measured["records"]
    parts = []
    crops = [r for r in records if r["case"] == "MobileNetV2"]
    if crops:
        columns = ["MobileNetV2", "agreement", "95 %, by photograph", "confident", "SQNR", "size"]
        rows = [
            [
                r["name"], f"{r['agreement']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}",
                f"{r['confident']:.3f}", f"{r['SQNR dB']:.1f} dB", f"{r['size']:.3f}",
            ]
            for r in crops
        ]  # fmt: skip
        about = f"{crops[0]['crops']} crops; float confident on {crops[0]['confident crops']}."
        parts += [f"{report.table(columns, rows)}\n\n{about}"]
    texts = [r for r in records if r["case"] == "MiniLM"]
    if texts:
        columns = ["MiniLM", "mean cosine", "same nearest", "where clear", "size"]
        rows = [
            [
                r["name"], f"{r['cosine']:.5f}", f"{r['nearest']:.3f}",
                f"{r['clear nearest']:.4f}", f"{r['size']:.3f}",
            ]
            for r in texts
        ]  # fmt: skip
        about = f"{texts[0]['texts']} texts; {texts[0]['clear texts']} clear by over {CLEAR}."
        parts += [f"{report.table(columns, rows)}\n\n{about}"]
    trained = [r for r in records if "change" in r]
    if trained:
        columns = ["Fashion-MNIST", "in", "float32", "change, mean", "worst seed", "size"]
        rows = [
            [
                r["case"].split()[1], r["name"], f"{r['accuracy']:.2%}",
                f"{100 * r['change']:+.2f} points", f"{100 * r['worst']:+.2f}", f"{r['size']:.3f}",
            ]
            for r in trained
        ]  # fmt: skip
        parts.append(report.table(columns, rows))
    missed = [*_missed(records)]
    parts += [f"Below what is wanted: {'; '.join(missed)}."] if missed else []
    return "\n\n".join(parts)


def _missed(records):
    """What was not reached, in words."""
    for r in records:
        for what, least in WANTED.get((r["case"], r["name"]), {}).items():
            if r[what] < least:
                yield f"{r['case']}, {r['name']}: {what} {r[what]} of {least}"
        if r.get("change", 0) < -WANTED_DROP:
            yield f"{r['case']}, {r['name']}: {r['change']:+.4f}"
    by_name = {r["name"]: r for r in records if r["case"] == "MobileNetV2"}
    peers = [r["agreement"] for name, r in by_name.items() if name in STATIC]
    if peers and by_name["fastvq static"]["agreement"] < max(peers) + WANTED_LEAD:
        yield f"MobileNetV2: {max(peers)} of onnxruntime's best static, + {WANTED_LEAD}"
