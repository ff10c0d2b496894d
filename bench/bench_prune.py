"""Exact pruning: fastvq's chosen plan beside its own plain tile, which computes every distance.

Both must give the same answers, bit for bit: codes of a transform, codebook of a fit. Where there
is structure (Fashion-MNIST) pruning is to win by the factors in `CASES`; where there is none (white
noise) the choice, which is made by measurement, must not cost more than 3 %.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bench import data, ours, report, timing
from bench.options import Options

#: plain time over chosen time that is always to be reached: 3 % at most is lost to choosing
NEVER_BELOW = 1 / 1.03

FIT_ITERATIONS = 12

#: "data, k": ratios wanted of a transform and inside a fit
CASES = {
    "Fashion-MNIST 60k×784, 1024": (2.0, 3.0),
    "Fashion-MNIST 60k×784, 4096": (4.0, 6.0),
    "power law 50k×384, 1024": (NEVER_BELOW, NEVER_BELOW),
    "power law 200k×50, 1024": (NEVER_BELOW, NEVER_BELOW),
    "blobs 100k×64, 256": (NEVER_BELOW, NEVER_BELOW),
    "white 1M×8, 256": (NEVER_BELOW, NEVER_BELOW),
    "white 100k×128, 1024": (NEVER_BELOW, NEVER_BELOW),
    "white 20k×768, 1024": (NEVER_BELOW, NEVER_BELOW),
}

SOURCES = {
    "Fashion-MNIST 60k×784": lambda rows: data.fashion_mnist(rows(60_000)),
    "power law 50k×384": lambda rows: data.power_law(rows(50_000), 384),
    "power law 200k×50": lambda rows: data.power_law(rows(200_000), 50),
    "blobs 100k×64": lambda rows: data.blobs(rows(100_000), 64, 256),
    "white 1M×8": lambda rows: data.white(rows(1_000_000), 8, 1)[0],
    "white 100k×128": lambda rows: data.white(rows(100_000), 128, 1)[0],
    "white 20k×768": lambda rows: data.white(rows(20_000), 768, 1)[0],
}


def measure(options: Options) -> dict:
    records = []
    cases = {case: lambda case=case: _case_data(case, options) for case in CASES}
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for case, X, codebook in data.available(cases, options.only):
                for job in JOBS:
                    records += _measure_case(case, job, X, codebook, n_threads, options)
    return {"records": records}


def _case_data(case: str, options: Options):
    source, k = case.split(", ")
    X = SOURCES[source](options.rows)
    return X, data.trained_codebook(X, min(int(k), len(X) // 8))


def transforms(X, codebook, n_threads) -> dict:
    chosen = ours.quantizer(codebook, n_threads)
    plain = ours.plain_assigner(codebook, n_threads)
    return {"plain": lambda: plain(X), "chosen": lambda: chosen.transform(X)}


def fits(X, codebook, n_threads) -> dict:
    def fit(algorithm):
        return ours.fit(
            X, codebook, n_threads=n_threads, max_iter=FIT_ITERATIONS, algorithm=algorithm
        ).codebook_

    return {"plain": lambda: fit("lloyd"), "chosen": lambda: fit("auto")}


JOBS = {"transform": transforms, "fit": fits}


def _measure_case(case, job, X, codebook, n_threads, options) -> list[dict]:
    timings = timing.take_turns(
        JOBS[job](X, codebook, n_threads),
        **timing.as_told(options, n_threads),
    )
    same = same_answer(timings["plain"].answer, timings["chosen"].answer)
    records = [
        report.record(f"{case}, {job}", n_threads, name, each, same=same)
        for name, each in timings.items()
    ]
    report.progress(records)
    return records


def same_answer(plain: np.ndarray, chosen: np.ndarray) -> bool:
    return np.array_equal(plain.ravel(), chosen.ravel())


def tables(measured: dict) -> str:
    rows, notes = [], []
    wanted = {
        f"{case}, {job}": ratio
        for case, ratios in CASES.items()
        for job, ratio in zip(JOBS, ratios, strict=True)
    }
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        plain, chosen = by_name["plain"], by_name["chosen"]
        ratio = plain["median"] / chosen["median"]
        name = f"{case}, {report.threads_text(n_threads)}"
        rows.append(
            [
                name,
                report.seconds_text(plain["median"]),
                report.seconds_text(chosen["median"]),
                report.ratio_text(ratio),
                report.ratio_text(plain["min"] / chosen["min"]),
                "same" if chosen["same"] else "DIFFERENT",
            ]
        )
        if ratio < wanted[case]:
            notes.append(f"{name}: {ratio:.2f}× of {wanted[case]:.2f}×")
    header = ["n×d, k, job", "plain tile", "chosen plan", "ratio", "of minima", "answers"]
    text = report.table(header, rows)
    return text + report.below(notes)


# -- pytest-benchmark ---------------------------------------------------------------------------


def pytest_generate_tests(metafunc):
    metafunc.parametrize("plan", ["plain", "chosen"])
    metafunc.parametrize("job", JOBS)
    metafunc.parametrize("case", CASES, ids=report.id_text)


@lru_cache(maxsize=1)
def _cached_data(case):
    return _case_data(case, Options())


def test_prune(benchmark, case, job, plan, n_threads):
    import pytest

    benchmark.group = f"prune {case}, {job}, {report.threads_text(n_threads)}"
    with timing.thread_limit(n_threads):
        try:
            X, codebook = _cached_data(case)
        except data.MissingData as error:
            pytest.skip(str(error))
        runs = JOBS[job](X, codebook, n_threads)
        answer = benchmark.pedantic(runs[plan], rounds=3, warmup_rounds=1)
        if plan == "chosen":
            assert same_answer(runs["plain"](), answer)
