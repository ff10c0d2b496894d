"""Product quantization beside faiss: training, encoding, decoding, and the error that is left.

Both train on the same rows, all of them, with 25 updates of the codebooks at most (faiss's
default); OPQ in faiss takes its 50 rotations with 4 updates each and 25 after them, in fastvq at
most 25 of both together and 25 after them. So the times of training are those of the errors beside
them. Encoding and decoding are of faiss's codebooks on both sides, and codes are checked.

nanopq is left out: it takes the same steps, in NumPy and SciPy.
"""

from __future__ import annotations

import statistics

import numpy as np

from bench import data, ours, peers, report, timing
from bench.options import Options

N_SUBSPACES = {"white 500k×128": 16, "power law 65536×128": 16, "blobs 65536×64": 8}
N_SUBSPACES |= {"Fashion-MNIST 60k×784": 16, "sines 3000×32": 4}
N_BITS = 8

#: ratios to faiss to be reached
WANTED = {"encode": 4.0, "decode": 1.0, "train": 2.0, "train OPQ": 4.0}

#: error, as a share of faiss's, on the mean over the seeds
MOST_ERROR = 1.002
SEEDS = {None: 5, "opq": 2}

#: Without OPQ, which faiss would take longest for by far: 50 rotations of 784 features a seed.
PLAIN_ONLY = {"Fashion-MNIST 60k×784"}


def coding_cases(options: Options) -> dict:
    return {"white 500k×128": lambda: data.white(options.rows(500_000), 128, 1)[0]}


def training_cases(options: Options) -> dict:
    rows = options.rows
    return {
        "power law 65536×128": lambda: data.power_law(rows(65_536), 128),
        "blobs 65536×64": lambda: data.blobs(rows(65_536), 64, 500),
        "Fashion-MNIST 60k×784": lambda: data.fashion_mnist(rows(60_000)),
        "sines 3000×32": lambda: data.sines(3000, 32),
    }


def measure(options: Options) -> dict:
    records = []
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for case, X in data.available(_single(coding_cases(options)), options.only):
                records += _measure_coding(case, X, n_threads, options)
            for case, X in data.available(_single(training_cases(options)), options.only):
                for rotation in (None,) if case in PLAIN_ONLY else (None, "opq"):
                    records += _measure_training(case, X, rotation, n_threads, options)
    return {"records": records}


def _single(cases):
    """`data.available` unpacks what a case makes."""
    return {case: lambda make=make: (make(),) for case, make in cases.items()}


def _measure_coding(case, X, n_threads, options) -> list[dict]:
    theirs = peers.faiss_product(X[:65_536], N_SUBSPACES[case], N_BITS, seed=0)
    codebooks = peers.faiss_codebooks(theirs)
    mine = None if options.peers_only else ours.product_quantizer(codebooks, n_threads)
    encoders = {"faiss": lambda: theirs.compute_codes(X)}
    codes = theirs.compute_codes(X)
    decoders = {"faiss": lambda: theirs.decode(codes)}
    if mine is not None:
        encoders["fastvq"] = lambda: mine.transform(X)
        decoders["fastvq"] = lambda: mine.inverse_transform(codes)
    records = []
    for job, contestants in (("encode", encoders), ("decode", decoders)):
        timings = _timed(contestants, n_threads, options)
        agreed = {
            name: float((np.asarray(each.answer) == np.asarray(timings["faiss"].answer)).mean())
            for name, each in timings.items()
        }
        records += [
            report.record(f"{job}, {case}", n_threads, name, each, agreed=agreed[name], job=job)
            for name, each in timings.items()
        ]
    report.progress(records[:2])
    return records


def _measure_training(case, X, rotation, n_threads, options) -> list[dict]:
    job = "train" if rotation is None else "train OPQ"
    arguments = (X, N_SUBSPACES[case], N_BITS, rotation)
    trainers = {"faiss": lambda seed: peers.faiss_product_error(*arguments, seed=seed)}
    if not options.peers_only:
        trainers["fastvq"] = lambda seed: ours.product_error(*arguments, seed, n_threads)
    errors = {name: [] for name in trainers}
    timings = {name: timing.Timing() for name in trainers}
    for seed in range(1 if options.quick else SEEDS[rotation]):
        for name, train in trainers.items():
            seconds, error = train(seed)
            timings[name].seconds.append(seconds)
            errors[name].append(error)
    records = [
        report.record(
            f"{job}, {case}", n_threads, name, each, error=statistics.mean(errors[name]), job=job
        )
        for name, each in timings.items()
    ]
    report.progress(records)
    return records


def _timed(contestants, n_threads, options):
    return timing.take_turns(
        contestants,
        **timing.as_told(options, n_threads),
    )


def tables(measured: dict) -> str:
    rows, notes = [], []
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        name = f"{case}, {report.threads_text(n_threads)}"
        faiss, mine = by_name["faiss"], by_name.get("fastvq")
        row = [name, report.seconds_text(faiss["median"]), *[None] * 4]
        if mine:
            ratio = faiss["median"] / mine["median"]
            row[2:5] = [
                report.seconds_text(mine["median"]),
                report.ratio_text(ratio),
                report.ratio_text(faiss["min"] / mine["min"]),
            ]
            if ratio < WANTED[mine["job"]]:
                notes.append(f"{name}: {ratio:.2f}× of {WANTED[mine['job']]}×")
            if "error" in mine:
                row[5] = f"{mine['error'] / faiss['error']:.4f}"
                if mine["error"] > MOST_ERROR * faiss["error"]:
                    notes.append(f"{name}: a LARGER ERROR than faiss's")
            elif mine["agreed"] < 0.9999:
                notes.append(f"{name}: NOT THE SAME ANSWER ({mine['agreed']:.4%} agree)")
        rows.append(row)
    text = report.table(["job", "faiss", "fastvq", "ratio", "of minima", "error"], rows)
    return text + report.below(notes)
