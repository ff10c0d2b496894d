"""What is lost in few bits: networks beside themselves in float32, and beside plain clustering.

Four examples, each a command: ``python -m bench fewquality --only MobileNetV2`` (or MiniLM, LSTM,
digits). Weights alone are written in few bits, by examples that the judged ones have no part in;
"bits" are those of the whole file for each weight. Plain clustering is what others do: k-means on
the values of each tensor, without scales, weights of values or compensation. "auto" is our budget:
its files hold codes entropy coded, "auto, raw" with a fixed number of bits. onnxruntime makes
models of 8 bits, and of 4 where there are products for MatMulNBits (fewpeers.py); what of these
lies above ours, of as many bytes and by more than chance, is told below the table.

MobileNetV2 and MiniLM are judged as in `judging`; the LSTM reads pictures of Fashion-MNIST
line by line, and scikit-learn's MLP the digits: their accuracy on pictures that were held out.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import chain

import numpy as np

from bench import intpeers, judging, report
from bench.fewpeers import Peer, rows_of, small_peers
from bench.options import Options

#: what is to be reached, by case and contestant
WANTED = {
    ("MobileNetV2", "auto 5.25 bits"): {"agreement": 0.85, "confident": 0.98},
    ("MobileNetV2", "auto 4.25 bits"): {"agreement": 0.72, "confident": 0.96},
    ("MiniLM", "auto 14 MB"): {"cosine": 0.992, "nearest": 0.83, "clear nearest": 0.97},
    ("MiniLM", "int4"): {"cosine": 0.985},
}
WANTED_DROP = {"LSTM": 0.003}  # of accuracy, mean of the seeds, 75 % smaller
MINILM_BYTES = 14_000_000
SEEDS, EPOCHS = 5, 2
CALIBRATION_CROPS, CROPS = 32, 128  # of each photograph
PEERS_CROPS = 8  # onnxruntime's histograms keep all values of all layers in memory
TEXTS, CALIBRATION_TEXTS = 1000, 200
PLAIN = "k-means"
SAMPLED = 1 << 20  # values of a tensor that plain clustering finds its codewords on


def clustered(whole, bits):
    """The model with each weight as plain k-means on its values leaves it."""
    from fastvq import kernels
    from fastvq.compress.weights import replaced, weights_of
    from fastvq.runtime import CompressedModel
    from fastvq.runtime.codebook import Codebook

    tensors = {}
    for weight in weights_of(whole.graph):
        values = weight.values.ravel()
        some = values[:: -(-len(values) // SAMPLED)]
        book = kernels.optimal_codebook(some, 1 << bits).astype(np.float32)
        codes = np.searchsorted((book[1:] + book[:-1]) / 2, weight.values)
        tensors[weight.name] = Codebook.of(codes, book[None], bits=bits)
    return CompressedModel(replaced(whole.graph, tensors), whole.metadata)


def small_models(whole, settings, *examples, budgets=None):
    """(name, model) of each contestant; `settings` are those of `compress`, by name, and `budgets`
    numbers of bytes."""
    import fastvq
    from fastvq.compress import WeightQuantizer

    for name, each in settings.items():
        yield name, fastvq.compress(whole, *examples, **each)
        judging.say(f"{name}: written")
    for coder in ("rans", "raw") if budgets else ():
        quantizer = WeightQuantizer("auto", coder=coder, size_budget=max(budgets.values()))
        quantizer.fit(whole, *examples)
        for name, size in budgets.items():
            name = name if coder == "rans" else f"{name}, raw"
            yield name, quantizer.resized(size)
            judging.say(f"{name}: written")
    for bits in (3, 4, 5):
        yield f"{PLAIN} {bits} bits", clustered(whole, bits)


def _record(case, name, model, whole, **measured):
    found = {
        "case": case, "name": name, "threads": 1, **measured, "bytes": model.nbytes,
        "bits": round(8 * model.nbytes / _count(whole), 3),
        "ours": not isinstance(model, Peer) and not name.startswith(PLAIN),
    }  # fmt: skip
    told = {column: found[column] for column in ("bits", *_COLUMNS[case])}
    judging.say(f"{case}, {name}: {', '.join(f'{k} {v}' for k, v in told.items())}")
    return found


def _as_onnx(whole):
    return whole.to_onnx().SerializeToString()


def _count(whole):
    """Weights of a model, and all its other floats."""
    floats = (c for c in whole.graph.constants.values() if np.dtype(c.dtype).kind == "f")
    return sum(int(np.prod(c.shape)) for c in floats)


# -- MobileNetV2 -----------------------------------------------------------------------------------


def measure_mobilenet(options) -> list[dict]:
    import fastvq
    from fastvq.demo.mobilenet import load_mobilenet

    n, n_seen = (2, 1) if options.quick else (CROPS, CALIBRATION_CROPS)
    whole = fastvq.compress(load_mobilenet(), np.zeros((2, 3, 224, 224), np.float32))
    ours, others = judging.halves()
    seen = np.concatenate([judging.crops(name, n_seen, 0) for name in ours])
    few = np.concatenate([judging.crops(name, min(n_seen, PEERS_CROPS), 0) for name in ours])
    tests = {name: judging.crops(name, n, 1) for name in others}
    bits = _count(whole) / 8
    settings: dict = {"int8": {"scheme": "int8"}, "int4": {"scheme": "int4", "group": 32}}
    budgets = {f"auto {each} bits": int(each * bits) for each in (5.25, 4.25, 3.1)}
    if options.quick:
        settings, budgets = {"int4": {"scheme": "int4", "compensate": False}}, {}
    wanted = {name: judging.batches(whole, x) for name, x in tests.items()}
    models = small_models(whole, settings, seen, budgets=budgets)
    return [
        _record("MobileNetV2", name, model, whole, **judging.agreement(
            {photograph: judging.batches(model, x) for photograph, x in tests.items()}, wanted
        ))
        for name, model in chain(models, _integer_peers(few, options))
    ]  # fmt: skip


def _integer_peers(seen, options):
    """onnxruntime's of 8 bits: it has no convolutions of fewer."""
    sizes, whole = {}, len(intpeers.exported("mobilenet"))
    for name, call in intpeers.models_of("mobilenet", seen, sizes, options.quick):
        yield name, Peer(call, round(sizes[name] * whole))


# -- MiniLM ----------------------------------------------------------------------------------------


def measure_minilm(options) -> list[dict]:
    from fastvq.demo.minilm import compressed

    n, n_seen = (60, 20) if options.quick else (TEXTS, CALIBRATION_TEXTS)
    judged, seen = judging.texts(n, n_seen)
    whole = compressed()
    wanted, seen = judging.vectors(whole, whole, judged), judging.as_read(whole, seen)
    settings: dict = {
        "int8": {"scheme": "int8"},
        "int4": {"scheme": "int4", "group": 32},
    }
    budgets = {"auto 14 MB": MINILM_BYTES, "auto 9 MB": 9 * MINILM_BYTES // 14}
    if options.quick:
        settings, budgets = {"int4": {"scheme": "int4", "compensate": False}}, {}
    models = small_models(whole, settings, seen, budgets=budgets)
    return [
        _record("MiniLM", name, model, whole, **judging.likeness(
            judging.vectors(model, whole, judged), wanted
        ))
        for name, model in chain(models, small_peers(_as_onnx(whole), rows_of(seen)))
    ]  # fmt: skip


# -- classifiers that are trained here -------------------------------------------------------------


def measure_lstm(options) -> list[dict]:
    """Accuracy over seeds, of an LSTM that reads the 28 lines of a picture."""
    from fastvq.demo.fashion import load_fashion_mnist

    pictures, labels = load_fashion_mnist("t10k")
    seen, seen_labels = (a[:: 60_000 // 512] for a in load_fashion_mnist())
    tests, seen = _lines(pictures), _lines(seen)
    if options.quick:
        tests, labels = tests[:500], labels[:500]
    found: dict = {}
    for seed in range(1 if options.quick else SEEDS):
        whole = _trained_lstm(seed, options.quick)
        quarter = whole.nbytes // 4
        settings = {
            "int8": {"scheme": "int8"},
            "int4": {"scheme": "int4"},
            "codebook 3 bits": {"scheme": "codebook", "bits": 3, "group": 32},
        }
        shares = {75: quarter, 85: int(0.6 * quarter), 90: int(0.4 * quarter)}
        budgets = {f"auto, {share} % smaller": size for share, size in shares.items()}
        examples = seen, seen_labels.astype(np.int64)
        models = small_models(whole, settings, *examples, budgets=budgets)
        peers = small_peers(_as_onnx(whole), rows_of(examples[:1]))
        _seed(found, whole, chain(models, peers), tests, labels)
        judging.say(f"LSTM, seed {seed}: {found[None][-1]:.4f}")
    return _over_seeds("LSTM", found)


def _lines(pictures):
    return np.ascontiguousarray(pictures.astype(np.float32) / 255)


@cache
def _trained_lstm(seed, quick):
    """A model of fastvq: 28 steps of 28 numbers, 128 units, ten classes."""
    import torch

    import fastvq
    from fastvq.demo.fashion import load_fashion_mnist

    class Reader(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.read = torch.nn.LSTM(28, 128, batch_first=True)
            self.classes = torch.nn.Linear(128, 10)

        def forward(self, x):
            return self.classes(self.read(x)[0][:, -1])

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    pictures, labels = (a[: 4000 if quick else None] for a in load_fashion_mnist())
    x, y = torch.tensor(_lines(pictures)), torch.tensor(labels, dtype=torch.int64)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(1 if quick else EPOCHS):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return fastvq.compress(model.eval(), x[:2].numpy())


def measure_digits(options) -> list[dict]:
    """scikit-learn's MLP on its 8 x 8 digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    import fastvq

    X, y = load_digits(return_X_y=True)
    found: dict = {}
    for seed in range(1 if options.quick else SEEDS):
        x_fit, tests, y_fit, labels = train_test_split(
            X.astype(np.float32) / 16, y, stratify=y, random_state=seed
        )
        model = MLPClassifier((128, 64), max_iter=60 if options.quick else 200, random_state=seed)
        whole = fastvq.compress(model.fit(x_fit, y_fit))
        settings = {
            "int8": {"scheme": "int8"},
            "int4": {"scheme": "int4"},
            "codebook 3 bits": {"scheme": "codebook", "bits": 3},
            "product 2 bits": {"scheme": "product", "group": 4, "bits": 8},
            "auto, 2 points": {
                "scheme": "auto", "coder": "rans", "max_drop": 0.02, "max_samples": None
            },
        }  # fmt: skip
        budgets = {f"auto, {share} % smaller": whole.nbytes * (100 - share) // 100
                   for share in (82, 90)}  # fmt: skip
        models = small_models(whole, settings, x_fit, y_fit, budgets=budgets)
        peers = small_peers(_as_onnx(whole), rows_of((x_fit,)))
        _seed(found, whole, chain(models, peers), tests, labels)
    return _over_seeds("digits", found)


def _seed(found, whole, models, tests, labels):
    """Add what one seed gave: [accuracy of the float model], and by name
    [(change, agreement, number of rows, model, float model)]."""
    wanted = _classes(whole, tests)
    before = np.mean(wanted == labels)
    found.setdefault(None, []).append(before)
    for name, model in models:
        classes = _classes(model, tests)
        change, agreement = np.mean(classes == labels) - before, np.mean(classes == wanted)
        found.setdefault(name, []).append((change, agreement, len(tests), model, whole))


def _classes(model, x):
    outputs = [_first_output(model, x[i : i + 1000]) for i in range(0, len(x), 1000)]
    found = np.concatenate(outputs)
    return found if found.ndim == 1 else found.argmax(axis=1)


def _first_output(model, x):
    return model(x) if isinstance(model, Peer) else model.run({model.input_names[0]: x})[0]


def _over_seeds(case, found):
    before = found.pop(None)
    records = []
    for name, seeds in found.items():
        changes, agreements, judged, *_ = zip(*seeds, strict=True)
        *_, model, whole = seeds[0]
        records.append(_record(
            case, name, model, whole, accuracy=round(float(np.mean(before)), 4),
            change=round(float(np.mean(changes)), 5), worst=round(float(np.min(changes)), 5),
            agreement=round(float(np.mean(agreements)), 5), judged=sum(judged),
            seeds=len(changes), share=round(model.nbytes / whole.nbytes, 4),
        ))  # fmt: skip
    return records


# -- the suite -------------------------------------------------------------------------------------


CASES = {
    "MobileNetV2": measure_mobilenet,
    "MiniLM": measure_minilm,
    "LSTM": measure_lstm,
    "digits": measure_digits,
}
_OF_CLASSIFIERS = {
    "accuracy": ".2%", "change": "+.2%", "worst": "+.2%", "agreement": ".2%", "share": ".1%"
}  # fmt: skip
_COLUMNS = {
    "MobileNetV2": {"agreement": ".3f", "confident": ".3f", "SQNR dB": ".1f"},
    "MiniLM": {"cosine": ".5f", "nearest": ".3f", "clear nearest": ".4f"},
    "LSTM": _OF_CLASSIFIERS,
    "digits": _OF_CLASSIFIERS,
}


def measure(options: Options) -> dict:
    return judging.measured(CASES, options)


def tables(measured: dict) -> str:
    parts, missed, above = [], [], []
    for case, columns in _COLUMNS.items():
        records = [r for r in measured["records"] if r["case"] == case]
        if not records:
            continue
        rows = [
            [
                r["name"],
                *("" if r[c] is None else format(r[c], form) for c, form in columns.items()),
                f"{r['bytes']:,}",
                f"{r['bits']:.2f}",
            ]
            for r in records
        ]
        parts.append(report.table([case, *columns, "bytes", "bits a weight"], rows))
        missed += _missed(records)
        above += _above(records)
    parts += [f"Below what is wanted: {'; '.join(missed)}."] if missed else []
    parts += [f"Above ours: {'; '.join(above)}."] if above else []
    return "\n\n".join(parts)


#: What counts as quality: how near a model is to what it was made of. Whether a class that it has
#: changed was right says less: of ten thousand pictures a few, either way.
_QUALITY = dict.fromkeys(_COLUMNS, "agreement") | {"MiniLM": "cosine"}


def _above(records):
    """Others that are better than ours at their size, ours lying on lines between its points."""
    what = _QUALITY[records[0]["case"]]
    points = sorted((r["bytes"], r[what]) for r in records if r.get("ours"))
    sizes = [size for size, _ in points]
    best = np.maximum.accumulate([quality for _, quality in points])
    for r in records:
        mine = float(np.interp(r["bytes"], sizes, best))
        if not r.get("ours", True) and r[what] > mine + _chance(r, what, mine):
            yield f"{r['case']}, {r['name']}: {what} {r[what]:.4f} where ours have {mine:.4f}"


def _chance(record, what, mine):
    """Two standard deviations of the difference of two agreements: changes of class are few, and
    their number is as uncertain as its root."""
    n = record.get("judged", record.get("crops"))
    return 2 * math.sqrt((2 - record[what] - mine) / n) if what == "agreement" else 0.0


def _missed(records):
    for r in records:
        for what, least in WANTED.get((r["case"], r["name"]), {}).items():
            if r[what] is not None and r[what] < least:
                yield f"{r['case']}, {r['name']}: {what} {r[what]} of {least}"
        if r["name"].startswith("auto, 75") and r["change"] < -WANTED_DROP[r["case"]]:
            yield f"{r['case']}, {r['name']}: {r['change']:+.4f}"
