"""Float32 models beside onnxruntime, torch, openvino and scikit-learn: time of a call.

Every contestant runs the same model on the same rows: fastvq imports what the peers are given.
Peers that are not installed are left out. Answers are compared with onnxruntime's; a difference of
more than 1e-4 of the largest value is told.
"""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from time import perf_counter

import numpy as np

from bench import report, sessions, timing
from bench.options import Options

#: the best peer's time over ours that is wanted, by the model and the rows in a call
WANTED = {
    ("MLP", 1): 1.3,
    ("MLP", 32): 0.9,
    ("MLP", 1024): 0.9,
    ("LeNet", 1): 0.9,
    ("LeNet", 32): 0.9,
    ("MobileNetV2", 1): 0.6,
    ("MiniLM", 1): 0.6,
    ("forest", 1): 1.0,
    ("forest", 1000): 1.0,
}
#: of the largest value: answers that differ by more are told
ALIKE = 1e-4
LOOP = 0.02  # seconds of calls that are timed together
WORDS = 32  # a sentence's length in MiniLM


# -- models: each gives what torch or scikit-learn runs, and inputs for n rows -------------------


def fresh_mlp():
    import torch

    torch.manual_seed(0)
    layers = []
    for n_in, n_out in pairwise((784, 512, 512, 10)):
        layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def fresh_lenet():
    import torch

    from fastvq.demo.networks import LeNet

    torch.manual_seed(0)
    return LeNet()


@cache
def mlp():
    return fresh_mlp().eval(), lambda n: (normal(n, 784),)


@cache
def lenet():
    return fresh_lenet().eval(), lambda n: (normal(n, 1, 28, 28),)


@cache
def mobilenet():
    from fastvq.demo.mobilenet import load_mobilenet

    return load_mobilenet(), lambda n: (normal(n, 3, 224, 224),)


@cache
def minilm():
    from fastvq.demo.minilm import load_minilm

    def inputs(n):
        words = np.random.default_rng(n).integers(1000, 30000, (n, WORDS))
        return words, np.ones((n, WORDS), np.int64)

    return load_minilm(), inputs


@cache
def forest():
    from sklearn.ensemble import RandomForestClassifier

    X, y = normal(20_000, 20), np.random.default_rng(1).integers(0, 3, 20_000)
    y = np.where(X[:, 0] * X[:, 1] > 0.2, 0, y)
    model = RandomForestClassifier(100, max_depth=12, random_state=0, n_jobs=-1).fit(X, y)
    return model.set_params(n_jobs=1), lambda n: (normal(n, 20),)


MODELS = {
    "MLP": mlp,
    "LeNet": lenet,
    "MobileNetV2": mobilenet,
    "MiniLM": minilm,
    "forest": forest,
}


def normal(*shape):
    return np.random.default_rng(shape[0]).standard_normal(shape).astype(np.float32)


# -- contestants ---------------------------------------------------------------------------------


@cache
def onnx_bytes(name) -> bytes:
    model, inputs = MODELS[name]()
    if name == "forest":
        from skl2onnx import to_onnx

        options = {id(model): {"zipmap": False}}
        return to_onnx(model, inputs(1)[0], options=options).SerializeToString()
    return sessions.torch_onnx(model, inputs(2))


def fastvq_contestant(name, n_threads):
    import fastvq

    model, inputs = MODELS[name]()
    if name == "forest":
        compressed = fastvq.compress(model)
        return lambda x: compressed.predict_proba(x, n_threads=n_threads)
    compressed = fastvq.compress(model, inputs(2))
    return lambda *x: compressed(*x, n_threads=n_threads)


def onnxruntime_contestant(name, n_threads):
    session = sessions.onnxruntime_session(onnx_bytes(name), n_threads)
    names = [each.name for each in session.get_inputs()]
    output = [session.get_outputs()[-1].name]
    return lambda *x: session.run(output, dict(zip(names, x, strict=True)))[0]


def torch_contestant(name, n_threads):
    import torch

    model, _ = MODELS[name]()
    torch.set_num_threads(n_threads)

    def run(*x):
        with torch.inference_mode():
            return model(*map(torch.from_numpy, x)).numpy()

    return None if name == "forest" else run


def openvino_contestant(name, n_threads):
    if name == "forest":
        return None
    return sessions.openvino_call(onnx_bytes(name), n_threads, INFERENCE_PRECISION_HINT="f32")


def sklearn_contestant(name, n_threads):
    return MODELS[name]()[0].predict_proba if name == "forest" else None


CONTESTANTS = {
    "onnxruntime": onnxruntime_contestant,
    "torch": torch_contestant,
    "openvino": openvino_contestant,
    "sklearn": sklearn_contestant,
    "fastvq": fastvq_contestant,
}


def contestants(name, n_threads) -> dict:
    """Whoever is installed and has this model, ready to run."""
    here = {who: make for who, make in CONTESTANTS.items() if find_spec(who)}
    made = {who: make(name, n_threads) for who, make in here.items()}
    return {who: run for who, run in made.items() if run is not None}


def measure(options: Options) -> dict:
    return {"records": measured_models(MODELS, _measure_model, options)}


def measured_models(models, measure_model, options) -> list[dict]:
    records = []
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for name in models:
                if options.only.lower() in name.lower():
                    records += measure_model(name, n_threads, options)
    return records


def _measure_model(name, n_threads, options) -> list[dict]:
    runs = contestants(name, n_threads)
    records = []
    for n in (n for which, n in WANTED if which == name):
        x = MODELS[name]()[1](n)
        calls = repeated({who: partial(run, *x) for who, run in runs.items()})
        timings = timing.take_turns(
            {who: call for who, (call, _) in calls.items()},
            **timing.as_told(options, n_threads, budget=1 / 4),
        )
        expected = timings["onnxruntime"].answer
        some = [
            report.record(
                f"{name}, {n} rows" if n > 1 else f"{name}, 1 row",
                n_threads, who, timings[who], calls=calls[who][1], rows=n, model=name,
                error=float(np.abs(timings[who].answer - expected).max() / np.abs(expected).max()),
            )
            for who in runs
        ]  # fmt: skip
        report.progress(some)
        records += some
    return records


def repeated(runs):
    """Each as a loop over enough calls for a clock to see, and how many calls those are."""
    looped = {}
    for who, run in runs.items():
        calls = _calls_in(LOOP, run)

        def loop(run=run, calls=calls):
            for _ in range(calls):
                answer = run()
            return answer

        looped[who] = loop, calls
    return looped


def _calls_in(seconds, run) -> int:
    """Calls that fit into so many seconds, after as long again: the first ones are slow."""
    for _ in range(2):
        calls, end = 0, perf_counter() + seconds
        while not calls or perf_counter() < end:
            run()
            calls += 1
    return calls


def tables(measured: dict) -> str:
    names = [who for who in CONTESTANTS if any(r["name"] == who for r in measured["records"])]
    rows, notes = [], []
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        times = {who: r["median"] / r["calls"] for who, r in by_name.items()}
        ours = times["fastvq"]
        best = min(time for who, time in times.items() if who != "fastvq")
        what = f"{case}, {report.threads_text(n_threads)}"
        rows.append(
            [what, *[_micro(times.get(who)) for who in names], report.ratio_text(best / ours)]
        )
        wanted = WANTED[by_name["fastvq"]["model"], by_name["fastvq"]["rows"]]
        if best / ours < wanted:
            notes.append(f"{what}: {best / ours:.2f}× of {wanted}×")
        if by_name["fastvq"]["error"] > ALIKE:
            notes.append(f"{what}: ANSWERS DIFFER by {by_name['fastvq']['error']:.1e}")
    text = report.table(["call", *names, "ratio"], rows)
    return text + report.below(notes)


def _micro(seconds):
    return None if seconds is None else f"{1e6 * seconds:,.1f} µs"
