"""Residual and additive quantizers beside faiss's: encoding, and the error that it leaves.

Both encode with codebooks of their own, fitted alike: on the same rows, with as many bits, the same
beam and, for local search, as many iterations. Errors are per row; below 1 is better than faiss.
faiss's beam search is given its tables where it is faster with them.
"""

from __future__ import annotations

import numpy as np

from bench import data, report, timing
from bench.options import Options

#: ratios to faiss's to be reached, residual and additive
WANTED = {"RQ": 3.0, "LSQ": 2.0}

N_STAGES, N_BITS = 8, 8
TRAINED_ON = 20_000

# Method, width of the beam, data, rows to encode.
CASES = {
    "RQ beam 1, power law 128": ("RQ", 1, lambda n: data.power_law(n, 128), 20_000),
    "RQ beam 5, power law 128": ("RQ", 5, lambda n: data.power_law(n, 128), 20_000),
    "LSQ, power law 128": ("LSQ", 5, lambda n: data.power_law(n, 128), 4_000),
}


def fitted(method, beam_width, X, n_threads, quick) -> dict:
    """Name to (encode, decode) of a fitted quantizer."""
    iterations = 2 if quick else 10
    return {
        "faiss": _faiss(method, beam_width, X, iterations),
        "fastvq": _fastvq(method, beam_width, X, iterations, n_threads),
    }


def _fastvq(method, beam_width, X, iterations, n_threads):
    from fastvq import AdditiveQuantizer, ResidualQuantizer

    kind = ResidualQuantizer if method == "RQ" else AdditiveQuantizer
    model = kind(
        N_STAGES, N_BITS, beam_width=beam_width, max_iter=iterations, random_state=0,
        n_threads=n_threads,
    ).fit(X)  # fmt: skip
    return model.transform, model.inverse_transform


def _faiss(method, beam_width, X, iterations):
    import faiss

    d = X.shape[1]
    if method == "RQ":
        model = faiss.ResidualQuantizer(d, N_STAGES, N_BITS)
        model.train_type = faiss.ResidualQuantizer.Train_default
        model.cp.niter = iterations
        model.max_beam_size = beam_width
        model.use_beam_LUT = int(beam_width > 1)
    else:
        model = faiss.LocalSearchQuantizer(d, N_STAGES, N_BITS)
        model.train_iters = iterations
    model.train(X)
    return model.compute_codes, model.decode


def measure(options: Options) -> dict:
    records = []
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for case, (method, beam_width, make, n) in CASES.items():
                if options.only.lower() in case.lower():
                    X = make(options.rows(n) + options.rows(TRAINED_ON))
                    records += _measure_case(
                        case, method, beam_width, X, options.rows(n), n_threads, options
                    )
    return {"records": records}


def _measure_case(case, method, beam_width, X, n, n_threads, options) -> list[dict]:
    coders = fitted(method, beam_width, X[n:], n_threads, options.quick)
    rows = np.ascontiguousarray(X[:n])
    timings = timing.take_turns(
        {name: lambda encode=encode: encode(rows) for name, (encode, _) in coders.items()},
        **timing.as_told(options, n_threads),
    )
    records = []
    for name, (_, decode) in coders.items():
        error = float(np.square(rows - decode(timings[name].answer)).sum(axis=1).mean())
        records.append(
            report.record(case, n_threads, name, timings[name], error=error, rows=n, method=method)
        )
    report.progress(records)
    return records


def tables(measured: dict) -> str:
    rows, notes = [], []
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        peer, mine = by_name["faiss"], by_name["fastvq"]
        ratio, error = peer["median"] / mine["median"], mine["error"] / peer["error"]
        what = f"{case}, {report.threads_text(n_threads)}"
        per_row = [f"{1e6 * each['median'] / each['rows']:.1f} µs" for each in (peer, mine)]
        rows.append([what, *per_row, report.ratio_text(ratio), f"{error:.3f}"])
        if ratio < WANTED[mine["method"]]:
            notes.append(f"{what}: {ratio:.2f}× of {WANTED[mine['method']]}×")
        if error > 1:
            notes.append(f"{what}: a LARGER ERROR than faiss's")
    text = report.table(["case", "faiss", "fastvq", "ratio", "error / faiss's"], rows)
    return text + report.below(notes)
