"""Errors of sums of codewords beside faiss's, on the mean of five seeds.

Both fit on the same rows with as many bits, iterations and the same beam. The error is told on the
rows fitted on, where more freedom to fit looks better, and on as many others, where it does not.
Below 1 is better than faiss.
"""

from __future__ import annotations

import statistics

import numpy as np

from bench import data, report, timing
from bench.bench_residual import fitted
from bench.options import Options

SEEDS, ROWS = 5, 10_000

#: of faiss's error on the rows fitted on
MOST_ERROR = 1.0

METHODS = {"RQ beam 1": ("RQ", 1), "RQ beam 5": ("RQ", 5), "LSQ": ("LSQ", 5)}


def cases(options: Options) -> dict:
    """Name of the data to a function of the seed, which makes rows for fitting and others."""
    n = 2 * options.rows(ROWS)

    def of_fashion(seed):
        X = data.fashion_mnist()[:, ::4]
        return X[np.random.default_rng(seed).permutation(len(X))[:n]].astype(np.float32)

    return {
        "sines ×32": lambda seed: data.sines(n, 32, seed=seed),
        "power law ×64": lambda seed: data.power_law(n, 64, seed=seed),
        "Fashion-MNIST ×196": of_fashion,
    }


def measure(options: Options) -> dict:
    records = []
    n_threads = options.threads[-1]
    with timing.thread_limit(n_threads):
        for name, make in cases(options).items():
            for method, (kind, beam_width) in METHODS.items():
                case = f"{method}, {name}"
                if options.only.lower() in case.lower():
                    records += _measure_case(case, kind, beam_width, make, n_threads, options)
    return {"records": records}


def _measure_case(case, kind, beam_width, make, n_threads, options) -> list[dict]:
    ratios: dict = {"fitted": [], "others": []}
    for seed in range(1 if options.quick else SEEDS):
        X = make(seed)
        parts = dict(zip(ratios, np.split(X, 2), strict=True))
        coders = fitted(kind, beam_width, parts["fitted"], n_threads, options.quick)
        for part, rows in parts.items():
            errors = {
                name: np.square(rows - decode(encode(rows))).sum(dtype=np.float64)
                for name, (encode, decode) in coders.items()
            }
            ratios[part].append(errors["fastvq"] / errors["faiss"])
    record = {"case": case, "threads": n_threads, "name": "fastvq"}
    for part, found in ratios.items():
        record[part] = statistics.mean(found)
        record[f"{part} most"] = max(found)
    print(f"{case}: {record['fitted']:.4f} of faiss's error, {record['others']:.4f} on other rows")
    return [record]


def tables(measured: dict) -> str:
    rows, notes = [], []
    for record in measured["records"]:
        columns = [
            f"{record[part]:.3f} (at most {record[f'{part} most']:.3f})"
            for part in ("fitted", "others")
        ]
        rows.append([record["case"], *columns])
        if record["fitted"] > MOST_ERROR:
            notes.append(record["case"])
    text = report.table(["error / faiss's", "on the rows fitted on", "on other rows"], rows)
    return text + ("\n\nA LARGER ERROR than faiss's: " + "; ".join(notes) + "." if notes else "")
