"""Scalar quantization: encoding and decoding beside faiss and a copy, the optimum beside kmeans1d.

Everyone writes into memory that is there already where it can (faiss's encoder cannot). A copy of
the float rows is the measure of speed of memory. kmeans1d takes n · k · 16 bytes and minutes where
fastvq takes seconds: it is run at sizes that it can do, and what it costs at n = 1M, k = 256 was
measured once (95 s and 4.1 GB on a Zen 4).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bench import data, report, timing
from bench.options import Options

#: ratio to faiss's 8-bit encoder, to copying, and to kmeans1d, to be reached
WANTED_ENCODE = 5.0
WANTED_COPY = 0.7
WANTED_OPTIMAL = 10.0

#: rows × features of encoding and decoding
CASES = {"500k×128": (500_000, 128), "10M×3": (10_000_000, 3)}

#: values and codewords of the optimal codebook; the product up to which the peer is asked
OPTIMA = {"20k, 256": (20_000, 256), "1M, 256": (1_000_000, 256), "1M, 65536": (1_000_000, 65_536)}
PEER_MOST = 6_000_000

#: relative difference of two inertias that is rounding
INERTIA_TOLERANCE = 1e-9


def coders(X, n_threads, options) -> dict:
    """Name to what is timed: encoders and decoders of the same rows."""
    import faiss

    n, d = X.shape
    copy, decoded = np.empty_like(X), np.empty_like(X)
    theirs = faiss.ScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit)
    theirs.train(X[:100_000])
    their_codes = theirs.compute_codes(X)
    found = {
        "copy": lambda: np.copyto(copy, X),
        "faiss encode": lambda: theirs.compute_codes(X),
        "faiss decode": lambda: theirs.decode(their_codes),
    }
    if not options.peers_only:
        from fastvq import ScalarQuantizer

        best = ScalarQuantizer(8, scheme="optimal", n_threads=n_threads).fit(X[:20_000])
        ours = ScalarQuantizer(8, n_threads=n_threads).fit(X)
        codes, their_out = np.empty((n, d), np.uint8), np.empty((n, d), np.uint8)
        ours.transform(X, out=codes)
        best.transform(X, out=their_out)
        found |= {
            "fastvq encode": lambda: ours.transform(X, out=codes),
            "fastvq decode": lambda: ours.inverse_transform(codes, out=decoded),
            "fastvq encode, optimal": lambda: best.transform(X, out=their_out),
            "fastvq decode, optimal": lambda: best.inverse_transform(their_out, out=decoded),
            "fastvq pack": lambda: ours.pack(codes),
        }
    return found


def optima(values, n_codewords, options) -> dict:
    """Name to a function that finds the codebook."""
    found = {}
    if len(values) * n_codewords <= PEER_MOST:
        import kmeans1d

        found["kmeans1d"] = lambda: np.array(kmeans1d.cluster(values, n_codewords).centroids)
    if not options.peers_only:
        from fastvq import kernels

        found["fastvq"] = lambda: kernels.optimal_codebook(values, n_codewords)
    return found


def measure(options: Options) -> dict:
    records = []
    cases = {case: lambda size=size: _rows(*size, options) for case, size in CASES.items()}
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for case, X in data.available(cases, options.only):
                timings = _take_turns(coders(X, n_threads, options), n_threads, options)
                records += [
                    report.record(case, n_threads, name, taken) for name, taken in timings.items()
                ]
                report.progress(records[-len(timings) :])
    cases = {f"optimal {case}": lambda size=size: _values(*size, options)
             for case, size in OPTIMA.items()}  # fmt: skip
    for case, values, k in data.available(cases, options.only):
        timings = _take_turns(optima(values, k, options), 1, options)
        new = [
            report.record(case, 1, name, taken, inertia=_inertia(values, taken.answer))
            for name, taken in timings.items()
        ]
        report.progress(new)
        records += new
    return {"records": records}


def _rows(n, d, options):
    return (data.white(options.rows(n), d, 1)[0],)


def _values(n, k, options):
    return np.random.default_rng(0).standard_normal(options.rows(n)), min(k, options.rows(n) // 2)


def _take_turns(contestants, n_threads, options):
    return timing.take_turns(
        contestants,
        **timing.as_told(options, n_threads),
    )


def _inertia(values, codebook) -> float:
    """Σ (x − c)² with the nearest codeword."""
    edges = (codebook[1:] + codebook[:-1]) / 2
    return float(((values - codebook[np.searchsorted(edges, values)]) ** 2).sum())


def tables(measured: dict) -> str:
    rows, best, notes = [], [], []
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        where = f"{case}, {report.threads_text(n_threads)}"
        if case.startswith("optimal"):
            best.append(_optimum_row(where, by_name, notes))
        else:
            rows += _coder_rows(where, by_name, notes)
    text = report.table(["n×d", "copy", "faiss", "fastvq", "to faiss", "to copying"], rows)
    header = ["n, k", "kmeans1d", "fastvq", "ratio", "inertia"]
    text += "\n\n" + report.table(header, best)
    return text + report.below(notes)


def _coder_rows(where, by_name, notes):
    copy = by_name["copy"]["median"]
    jobs = [("encode", "encode"), ("decode", "decode"), ("encode", "encode, optimal")]
    jobs += [("decode", "decode, optimal"), (None, "pack")]
    for peer_job, job in jobs:
        mine = by_name.get(f"fastvq {job}")
        peer = by_name.get(f"faiss {job}")
        if mine is None:
            continue
        to_faiss = peer and peer["median"] / mine["median"]
        to_copy = copy / mine["median"]
        if job == "encode" and to_faiss < WANTED_ENCODE:
            notes.append(f"{where}, {job}: {to_faiss:.2f}× of {WANTED_ENCODE}×")
        if job == peer_job and to_copy < WANTED_COPY:
            notes.append(f"{where}, {job}: {to_copy:.2f} of the speed of copying")
        yield [
            f"{where}, {job}",
            report.seconds_text(copy),
            report.seconds_text(peer["median"] if peer else None),
            report.seconds_text(mine["median"]),
            report.ratio_text(to_faiss),
            report.ratio_text(to_copy),
        ]


def _optimum_row(where, by_name, notes):
    peer, mine = by_name.get("kmeans1d"), by_name.get("fastvq")
    if not peer or not mine:
        one = mine or peer
        return [where, *(report.seconds_text(x and x["median"]) for x in (peer, mine)), None,
                f"{one['inertia']:.9g}"]  # fmt: skip
    ratio = peer["median"] / mine["median"]
    if ratio < WANTED_OPTIMAL:
        notes.append(f"{where}: {ratio:.2f}× of {WANTED_OPTIMAL}×")
    if mine["inertia"] > peer["inertia"] * (1 + INERTIA_TOLERANCE):
        notes.append(f"{where}: a WORSE CODEBOOK than kmeans1d's")
    return [
        where,
        report.seconds_text(peer["median"]),
        report.seconds_text(mine["median"]),
        report.ratio_text(ratio),
        f"{mine['inertia'] / peer['inertia']:.9f}",
    ]


# -- pytest-benchmark ---------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _case_coders(case, n_threads):
    return coders(_rows(*CASES[case], Options())[0], n_threads, Options())


def pytest_generate_tests(metafunc):
    if "coder" in metafunc.fixturenames:
        names = ["copy", "faiss encode", "faiss decode", "fastvq encode", "fastvq decode"]
        metafunc.parametrize("coder", names)
        metafunc.parametrize("case", CASES, ids=report.id_text)
    else:
        metafunc.parametrize("case", OPTIMA, ids=report.id_text)


def test_coders(benchmark, case, coder, n_threads):
    benchmark.group = f"scalar {case}, {report.threads_text(n_threads)}"
    with timing.thread_limit(n_threads):
        benchmark.pedantic(_case_coders(case, n_threads)[coder], rounds=5)


def test_optima(benchmark, case):
    values, k = _values(*OPTIMA[case], Options())
    codebook = benchmark.pedantic(optima(values, k, Options())["fastvq"], rounds=2)
    assert codebook.shape == (k,)
