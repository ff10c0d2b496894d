"""Seeding: greedy k-means++ beside scikit-learn's, with as many trials a codeword (2 + ln k).

Draws are random, so the codewords differ; what is compared is the potential Σ min |x − c|² that
they leave, over a few seeds. faiss's k-means++ has one trial a codeword: less work for a worse
start, shown for orientation and not in the ratio. SciPy's compares every row with every codeword
again at each draw and is left out.
"""

from __future__ import annotations

import statistics
from functools import lru_cache

from bench import answers, data, ours, peers, report, timing
from bench.options import Options

#: ratio to scikit-learn's to be reached
WANTED = 3.0

#: seeds over which potentials are compared; a library whose first one takes long gets no more
SEEDS = 3

#: how much larger a potential than scikit-learn's is more than chance, at `SEEDS` seeds
POTENTIAL_TOLERANCE = 0.02

CASES = {
    "blobs 100k×64, 256": lambda rows=lambda n: n: (data.blobs(rows(100_000), 64, 256), 256),
    "blobs 20k×128, 1000": lambda rows=lambda n: n: (data.blobs(rows(20_000), 128, 1000), 1000),
}


def contestants(X, n_codewords, n_threads, options) -> dict:
    """Name to function of the seed."""
    found = {
        "sklearn": lambda seed: peers.sklearn_seeding(X, n_codewords, seed),
        "faiss, 1 trial": lambda seed: peers.faiss_seeding(X, n_codewords, seed),
    }
    if not options.peers_only:
        found["fastvq"] = lambda seed: ours.seeding(X, n_codewords, seed, n_threads)
    return found


def measure(options: Options) -> dict:
    records = []
    cases = {case: lambda make=make: make(options.rows) for case, make in CASES.items()}
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for case, X, k in data.available(cases, options.only):
                records += _measure_case(case, X, min(k, len(X) // 40), n_threads, options)
    return {"records": records}


def _measure_case(case, X, k, n_threads, options) -> list[dict]:
    seeders = contestants(X, k, n_threads, options)
    timings = timing.take_turns(
        {name: lambda seeder=seeder: seeder(0) for name, seeder in seeders.items()},
        **timing.as_told(options, n_threads),
    )
    records = []
    for name, seeder in seeders.items():
        more = range(1, SEEDS) if timings[name].fastest < timing.LONG_RUN else ()
        codebooks = [timings[name].answer, *(seeder(seed) for seed in more)]
        potential = statistics.mean(answers.inertia(X, codebook) for codebook in codebooks)
        records.append(report.record(case, n_threads, name, timings[name], potential=potential))
    report.progress(records)
    return records


def tables(measured: dict) -> str:
    rows, notes = [], []
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        peer, mine = by_name["sklearn"], by_name.get("fastvq")
        row = [f"{case}, {report.threads_text(n_threads)}"]
        for each in (by_name["faiss, 1 trial"], peer, mine):
            row += [
                report.seconds_text(each["median"]) if each else None,
                f"{each['potential'] / peer['potential']:.3f}" if each else None,
            ]
        if mine:
            ratio = peer["median"] / mine["median"]
            row += [report.ratio_text(ratio), report.ratio_text(peer["min"] / mine["min"])]
            if ratio < WANTED:
                notes.append(f"{row[0]}: {ratio:.2f}× of {WANTED}×")
            if mine["potential"] > (1 + POTENTIAL_TOLERANCE) * peer["potential"]:
                notes.append(f"{row[0]}: a WORSE START than scikit-learn's")
        rows.append(row + [None] * (9 - len(row)))
    header = ["n×d, k", "faiss, 1 trial", "potential", "sklearn", "potential"]
    header += ["fastvq", "potential", "ratio", "of minima"]
    text = report.table(header, rows)
    return text + report.below(notes)


# -- pytest-benchmark ---------------------------------------------------------------------------


def pytest_generate_tests(metafunc):
    metafunc.parametrize("name", ["sklearn", "fastvq"])
    metafunc.parametrize("case", CASES, ids=report.id_text)


@lru_cache(maxsize=1)
def _case_data(case):
    return CASES[case]()


def test_seeding(benchmark, case, name, n_threads):
    X, k = _case_data(case)
    benchmark.group = f"seeding {case}, {report.threads_text(n_threads)}"
    with timing.thread_limit(n_threads):
        seeder = contestants(X, k, n_threads, Options())[name]
        codebook = benchmark.pedantic(seeder, (0,), rounds=1 if name == "sklearn" else 3)
    assert codebook.shape == (k, X.shape[1])
