"""Search among codes beside faiss: 1M coded rows, each library's answers held to the true ones.

Product codes are of faiss's codebooks on both sides, so that what is found differs by rounding
alone: IndexPQ adds up tables as fastvq does; IndexPQFastScan rounds tables to bytes and returns
what comes of that, where fastvq leaves rows out by such tables and then adds up exactly. So recall
is compared too. Queries come many at a time ("batch") and one by one ("alone").
"""

from __future__ import annotations

import numpy as np

from bench import data, ours, peers, report, timing
from bench.options import Options

N_ROWS, N_FEATURES, N_SUBSPACES, K = 1_000_000, 128, 16, 10
N_QUERIES = 64
N_BITS_OF_SIGNS = 64

#: name of a case: (index, bits of a code, ratio to faiss to be reached)
CASES = {
    "IndexPQ": (8, 1.0),
    "IndexPQFastScan": (4, 0.7),
    "IndexBinaryFlat": (1, 1.0),
}

#: how much lower recall may be than faiss's
RECALL_TOLERANCE = 0.002


def measure(options: Options) -> dict:
    n = options.rows(N_ROWS)
    X = data.power_law(n + N_QUERIES, N_FEATURES)
    X, queries = X[:n], np.ascontiguousarray(X[n:])
    truth = peers.faiss_nearest(X, queries, K)
    records = []
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for name in CASES:
                if options.only.lower() in name.lower():
                    records += _measure_case(name, X, queries, truth, n_threads, options)
    return {"records": records}


def contestants(name, X, n_threads, options) -> dict:
    """Name to function of queries, which returns the indices of the nearest rows."""
    bits, _ = CASES[name]
    if name == "IndexBinaryFlat":
        codes = ours.signs(X, N_BITS_OF_SIGNS, n_threads)
        found = {"faiss": peers.faiss_hamming(codes.transform(X), codes.transform, K)}
        searcher = codes
    else:
        index, codebooks = peers.faiss_product_index(name, X, N_SUBSPACES, bits)
        found = {"faiss": lambda queries: index.search(queries, K)[1]}
        searcher = None if options.peers_only else ours.product_quantizer(codebooks, n_threads)
    if not options.peers_only:
        mine = searcher.build_index(searcher.transform(X))
        found["fastvq"] = lambda queries: mine.search(queries, K)[1]
    return found


def _measure_case(name, X, queries, truth, n_threads, options) -> list[dict]:
    searchers = contestants(name, X, n_threads, options)
    records = []
    for job, some in (("batch", queries), ("alone", queries[:1])):
        timings = timing.take_turns(
            {
                who: lambda search=search, some=some: search(some)
                for who, search in searchers.items()
            },
            **timing.as_told(options, n_threads),
        )
        records += [
            report.record(
                f"{name}, {job}",
                n_threads,
                who,
                each,
                recall=recall(searchers[who](queries), truth),
            )
            for who, each in timings.items()
        ]
    report.progress(records)
    return records


def recall(found, truth) -> float:
    """Share of the true nearest rows that are found."""
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len({*some} & {*true}) / len(true) for some, true in pairs]))


def tables(measured: dict) -> str:
    rows, notes = [], []
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        name = f"{case}, {report.threads_text(n_threads)}"
        faiss, mine = by_name["faiss"], by_name.get("fastvq")
        row = [name, report.seconds_text(faiss["median"]), f"{faiss['recall']:.3f}", *[None] * 4]
        if mine:
            ratio, wanted = faiss["median"] / mine["median"], CASES[case.split(",")[0]][1]
            row[3:] = [
                report.seconds_text(mine["median"]),
                f"{mine['recall']:.3f}",
                report.ratio_text(ratio),
                report.ratio_text(faiss["min"] / mine["min"]),
            ]
            if ratio < wanted:
                notes.append(f"{name}: {ratio:.2f}× of {wanted}×")
            if mine["recall"] < faiss["recall"] - RECALL_TOLERANCE:
                notes.append(f"{name}: a LOWER RECALL than faiss's")
        rows.append(row)
    header = [f"1M×128, {N_QUERIES} queries or one", "faiss", f"recall@{K}", "fastvq"]
    header += [f"recall@{K}", "ratio", "of minima"]
    text = report.table(header, rows)
    return text + report.below(notes)


# -- pytest-benchmark ---------------------------------------------------------------------------


def pytest_generate_tests(metafunc):
    metafunc.parametrize("name", ["faiss", "fastvq"])
    metafunc.parametrize("case", CASES, ids=report.id_text)


def test_search(benchmark, case, name, n_threads):
    X = data.power_law(100_000 + N_QUERIES, N_FEATURES)
    benchmark.group = f"search {case}, {report.threads_text(n_threads)}"
    with timing.thread_limit(n_threads):
        search = contestants(case, X[:-N_QUERIES], n_threads, Options())[name]
        found = benchmark(search, np.ascontiguousarray(X[-N_QUERIES:]))
    assert found.shape == (N_QUERIES, K)
