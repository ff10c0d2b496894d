"""Models in 8-bit integers beside onnxruntime and openvino: time of a call.

Every contestant is made of the same trained model and the same examples. onnxruntime's are those of
its own tools: static (QDQ, unsigned activations, signed weights for each channel) and dynamic;
openvino runs the static one. Ours are static and dynamic, and our own float32, than which integers
must not be slower. Answers are integers of different steps, so their agreement with the float model
is told beside the time: who rounds more must not win by it unseen.

Weights have to be trained: fresh ones are spread evenly over their range, which no model's are.
"""

from __future__ import annotations

import tempfile
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench import bench_runtime, report, sessions, timing
from bench.options import Options

#: the best peer's time over our best that is wanted, by the model and the rows in a call
WANTED = {
    ("MLP", 1): 1.4,
    ("MLP", 32): 1.1,
    ("MLP", 1024): 1.1,
    ("LeNet", 1): 1.1,
    ("LeNet", 32): 1.1,
    ("LeNet", 1024): 1.1,
    ("MobileNetV2", 1): 0.9,
    ("MiniLM", 1): 0.9,
}
EXAMPLES = {"MLP": 512, "LeNet": 512, "MobileNetV2": 24, "MiniLM": 32}
PHOTOGRAPHS = ("coffee.png", "astronaut.png", "motorcycle_left.png", "chelsea.png")


# -- models: each gives a module of torch, and examples of so many rows --------------------------


@cache
def _pictures():
    from fastvq.demo.fashion import as_input, load_fashion_mnist

    pictures, labels = load_fashion_mnist()
    return as_input(pictures[:20_000]), labels[:20_000].astype(np.int64)


def _trained(model, x, y):
    """An epoch: enough for weights to look like those of a model."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x, y = torch.tensor(x), torch.tensor(y)
    for batch in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


@cache
def mlp():
    x, y = _pictures()
    x = x.reshape(len(x), -1)
    return _trained(bench_runtime.fresh_mlp(), x, y), lambda n: (x[:n],)


@cache
def lenet():
    x, y = _pictures()
    return _trained(bench_runtime.fresh_lenet(), x, y), lambda n: (x[:n],)


@cache
def mobilenet():
    from fastvq.demo.mobilenet import load_mobilenet

    return load_mobilenet(), _crops


def _crops(n):
    """Pieces of photographs as the network takes them."""
    from fastvq.demo.mobilenet import load_photograph

    rng = np.random.default_rng(0)
    crops = []
    for i in range(n):
        picture = load_photograph(PHOTOGRAPHS[i % len(PHOTOGRAPHS)])
        top, left = (rng.integers(0, side - 223) for side in picture.shape[:2])
        crops.append(picture[top : top + 224, left : left + 224, :3])
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (np.stack(crops) / 255 - mean) / deviation
    return (np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32),)


MODELS = {
    "MLP": mlp,
    "LeNet": lenet,
    "MobileNetV2": mobilenet,
    "MiniLM": bench_runtime.minilm,
}


@cache
def examples(name):
    return MODELS[name]()[1](EXAMPLES[name])


# -- contestants ---------------------------------------------------------------------------------


@cache
def onnx_bytes(name) -> bytes:
    model, inputs = MODELS[name]()
    return sessions.torch_onnx(model, inputs(2))


@cache
def quantized_onnx(name, kind) -> bytes:
    """What onnxruntime's own tools make of a model."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        model = onnx.load_from_string(onnx_bytes(name))
        quant_pre_process(model, str(before), skip_symbolic_shape=True)
        if kind == "dynamic":
            quantization.quantize_dynamic(before, after, per_channel=True)
        else:
            quantization.quantize_static(
                before, after, _Reader(name), per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        return after.read_bytes()


class _Reader:
    """The examples, one row at a time, as onnxruntime's calibration reads them."""

    def __init__(self, name):
        arrays = examples(name)
        rows = range(min(len(arrays[0]), 64))
        self._rows = iter([{f"x{i}": a[r : r + 1] for i, a in enumerate(arrays)} for r in rows])

    def get_next(self):
        return next(self._rows, None)


def onnxruntime_contestant(kind, name, n_threads):
    session = sessions.onnxruntime_session(quantized_onnx(name, kind), n_threads)
    names = [each.name for each in session.get_inputs()]
    return lambda *x: session.run(None, dict(zip(names, x, strict=True)))[0]


def openvino_contestant(name, n_threads):
    return sessions.openvino_call(quantized_onnx(name, "static"), n_threads)


@cache
def compressed_model(kind, name):
    """Ours, made once for all numbers of threads."""
    import fastvq

    model, inputs = MODELS[name]()
    if kind == "float32":
        return fastvq.compress(model, inputs(2))
    return fastvq.compress(model, examples(name), scheme="int8", activations=kind)


def fastvq_contestant(kind, name, n_threads):
    compressed = compressed_model(kind, name)
    return lambda *x: compressed(*x, n_threads=n_threads)


CONTESTANTS = {
    "onnxruntime static": partial(onnxruntime_contestant, "static"),
    "onnxruntime dynamic": partial(onnxruntime_contestant, "dynamic"),
    "openvino": openvino_contestant,
    "fastvq float32": partial(fastvq_contestant, "float32"),
    "fastvq static": partial(fastvq_contestant, "static"),
    "fastvq dynamic": partial(fastvq_contestant, "dynamic"),
}


def contestants(name, n_threads, options) -> dict:
    """Whoever is installed and can run this model."""
    found = {}
    for who, make in CONTESTANTS.items():
        if find_spec(who.split()[0]) is None or (options.peers_only and who.startswith("fastvq")):
            continue
        try:
            found[who] = make(name, n_threads)
        except (RuntimeError, NotImplementedError) as error:
            print(f"{who} cannot run {name}: {str(error).splitlines()[0]}")
    return found


# -- measuring -------------------------------------------------------------------------------------


def measure(options: Options) -> dict:
    return {"records": bench_runtime.measured_models(MODELS, _measure_model, options)}


def _measure_model(name, n_threads, options) -> list[dict]:
    import torch

    runs = contestants(name, n_threads, options)
    model, inputs = MODELS[name]()
    records = []
    for n in (n for which, n in WANTED if which == name):
        x = inputs(n)
        with torch.inference_mode():
            exact = model(*map(torch.from_numpy, x)).numpy()
        calls = bench_runtime.repeated({who: partial(run, *x) for who, run in runs.items()})
        timings = timing.take_turns(
            {who: call for who, (call, _) in calls.items()},
            **timing.as_told(options, n_threads, budget=1 / 4),
        )
        some = [
            report.record(
                f"{name}, {n} rows" if n > 1 else f"{name}, 1 row",
                n_threads, who, one, calls=calls[who][1], rows=n, model=name,
                noise=_decibels(one.answer, exact),
            )
            for who, one in timings.items()
        ]  # fmt: skip
        report.progress(some)
        records += some
    return records


def _decibels(found, exact):
    """How far the answer's noise lies below it."""
    noise = np.square(found.astype(np.float64) - exact).sum()
    return float(10 * np.log10(np.square(exact, dtype=np.float64).sum() / max(noise, 1e-300)))


def tables(measured: dict) -> str:
    names = [who for who in CONTESTANTS if any(r["name"] == who for r in measured["records"])]
    rows, notes = [], []
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        times = {who: r["median"] / r["calls"] for who, r in by_name.items()}
        peers = [time for who, time in times.items() if not who.startswith("fastvq")]
        if not peers or "fastvq static" not in times:
            continue
        ours = min(times["fastvq static"], times["fastvq dynamic"])
        ratio, gain = min(peers) / ours, times["fastvq float32"] / ours
        what = f"{case}, {report.threads_text(n_threads)}"
        cells = [_cell(by_name.get(who)) for who in names]
        rows.append([what, *cells, report.ratio_text(ratio), report.ratio_text(gain)])
        record = by_name["fastvq static"]
        wanted = WANTED[record["model"], record["rows"]]
        if ratio < wanted:
            notes.append(f"{what}: {ratio:.2f}× of {wanted}×")
        if gain < 1:
            notes.append(f"{what}: slower than our float32, {gain:.2f}×")
    header = ["call: µs (dB)", *names, "to the best peer", "to our float32"]
    text = report.table(header, rows)
    return text + report.below(notes)


def _cell(record):
    if record is None:
        return None
    return f"{1e6 * record['median'] / record['calls']:,.1f} ({record['noise']:.0f})"
