"""Assignment: the nearest codeword of each row, fastvq beside the peers.

Two suites. `assign` is white Gaussian data, where no method can skip anything: it measures the
tile. `structured` is data with structure (clusters, pictures, a power-law spectrum), in a table of
its own, because there an exact method may skip most of the arithmetic.

Timed is what a user calls: `VectorQuantizer.transform` against `KMeans.predict`,
`IndexFlatL2.search` and so on, with everything that can be prepared from the codebook prepared. The
plain tile beneath it, `kernels.assign`, has a column of its own but takes no part in the ratio.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bench import answers, data, intelex, ours, peers, report, timing
from bench.options import Options

#: (n, d, k) and the ratio to the fastest peer to be reached on one thread and on two
SHAPES = {
    (1_000_000, 2, 16): 8.0,
    (1_000_000, 3, 16): 8.0,
    (1_000_000, 4, 256): 4.0,
    (1_000_000, 8, 256): 1.1,
    (1_000_000, 16, 256): 1.1,
    (200_000, 32, 1024): 1.1,
    (200_000, 64, 1024): 1.1,
    (100_000, 100, 1000): 1.1,
    (100_000, 128, 1024): 1.1,
    (100_000, 128, 4096): 1.1,
    (50_000, 384, 4096): 1.1,
    (20_000, 768, 1024): 1.1,
}
GEOMETRIC_MEAN = 2.5

#: peers held to AVX2 against the x86_64_v3 level
AVX2_RATIO = 1.0

PEERS = ("numpy", "faiss", "sklearn", "scipy", intelex.NAME)


# -- cases --------------------------------------------------------------------------------------


def white_cases(options: Options) -> dict:
    """{case: function giving (X, codebook)}; X is made when its turn comes."""
    return {case_name(*shape): lambda shape=shape: _white(options, *shape) for shape in SHAPES}


def _white(options: Options, n: int, d: int, k: int):
    n = options.rows(n)
    return data.white(n, d, min(k, n))


def case_name(n: int, d: int, k: int) -> str:
    return f"{report.count_text(n)}×{d}, {k}"


def structured_cases(options: Options) -> dict:
    rows = options.rows
    sources = {
        "blobs 100k×64": (lambda: data.blobs(rows(100_000), 64, 256), (256, 1024)),
        "Fashion-MNIST 60k×784": (lambda: data.fashion_mnist(rows(60_000)), (256, 1024, 4096)),
        "power law 200k×50": (lambda: data.power_law(rows(200_000), 50), (1024,)),
        "power law 50k×384": (lambda: data.power_law(rows(50_000), 384), (1024, 4096)),
    }
    return {
        f"{name}, {k}": lambda make=make, k=k: _with_codebook(make(), k)
        for name, (make, sizes) in sources.items()
        for k in sizes
    }


def _with_codebook(X, n_codewords):
    return X, data.trained_codebook(X, min(n_codewords, len(X) // 8))


SUITES = {"assign": white_cases, "structured": structured_cases}


# -- measuring ----------------------------------------------------------------------------------


def measure(options: Options, suite: str = "assign") -> dict:
    """Times of every contestant in every case, and the machine's peak."""
    records, peaks = [], {}
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            rate, source = ours.multiply_add_peak(n_threads)
            for case, X, codebook in data.available(SUITES[suite](options), options.only):
                assigners = contestants(len(X), codebook, n_threads, options)
                records += measure_case(case, X, codebook, n_threads, options, assigners)
            rate = max(rate, ours.multiply_add_peak(n_threads)[0])
        peaks[str(n_threads)] = {"rate": float(f"{rate:.4g}"), "source": source}
        records += intelex.records(suite, n_threads, options)
    return {"records": records, "peak": peaks}


def measure_intelex(suite: str, n_threads: int, options: Options) -> list[dict]:
    """scikit-learn-intelex's records, to be called in its own process."""
    records = []
    for case, X, codebook in data.available(SUITES[suite](options), options.only):
        assigners = {
            intelex.NAME: peers.sklearnex_assigner(codebook),
            "sklearn": peers.sklearn_assigner(codebook),
        }
        if not options.peers_only:
            mine = ours.assigners(codebook, n_threads)
            assigners[ours.TRANSFORM] = mine[ours.TRANSFORM]
        measured = measure_case(case, X, codebook, n_threads, options, assigners)
        records.append(intelex.joined(measured))
    return records


def contestants(n_rows, codebook, n_threads, options) -> dict:
    """Everyone who shares the main process."""
    found = peers.assigners(n_rows, codebook, n_threads)
    if not options.peers_only:
        found.update(ours.assigners(codebook, n_threads))
    return found


def measure_case(case, X, codebook, n_threads, options, assigners) -> list[dict]:
    timings = timing.take_turns(
        {name: lambda assign=assign: assign(X) for name, assign in assigners.items()},
        **timing.as_told(options, n_threads),
    )
    excess = answers.excesses(X, codebook, {name: t.answer for name, t in timings.items()})
    shape = [*X.shape, len(codebook)]
    records = [
        report.record(case, n_threads, name, each, excess=excess[name], shape=shape)
        for name, each in timings.items()
    ]
    report.progress(records)
    return records


# -- reporting ----------------------------------------------------------------------------------


def tables(measured: dict) -> str:
    return "\n\n".join(
        _table(measured, n_threads) for n_threads in report.thread_counts(measured["records"])
    )


def _table(measured: dict, n_threads: int) -> str:
    cases = {
        case: by_name
        for (case, threads), by_name in report.by_case(measured["records"]).items()
        if threads == n_threads
    }
    peak = measured["peak"][str(n_threads)]
    rows, ratios, missed = [], [], []
    for case, by_name in cases.items():
        ratio = ratio_to_fastest(by_name)
        wanted = _wanted(by_name["numpy"]["shape"], measured.get("peers_level"))
        if ratio is not None:
            ratios.append(ratio["median"])
            if wanted and ratio["median"] < wanted:
                missed.append(f"{case} ({ratio['median']:.2f}× of {wanted}×)")
        rows.append(_row(case, by_name, ratio, peak["rate"]))
    header = ["n×d, k", *PEERS, "fastvq", "kernel", "ratio", "of minima", "peer of peak", "of peak"]
    lines = [
        f"{report.threads_text(n_threads)}; multiply-add peak {peak['rate'] / 1e9:.0f} GFLOP/s "
        f"({peak['source']})",
        "",
        report.table(header, rows),
    ]
    if ratios:
        lines += ["", f"Geometric mean of the ratios: {report.geometric_mean(ratios):.2f}×."]
    if missed:
        lines += ["", "Below what is wanted: " + "; ".join(missed) + "."]
    return "\n".join([*lines, *_footnotes(cases)])


def _wanted(shape, peers_level) -> float | None:
    if tuple(shape) not in SHAPES:
        return None
    return AVX2_RATIO if peers_level == "avx2" else SHAPES[tuple(shape)]


def _row(case, by_name, ratio, peak) -> list:
    def time_of(name):
        return report.seconds_text(by_name[name]["median"]) if name in by_name else None

    cells = [case, *(time_of(name) for name in PEERS)]
    cells[PEERS.index(intelex.NAME) + 1] = intelex.cell(by_name.get(intelex.NAME))
    fastest = min(by_name[name]["median"] for name in PEERS if name in by_name)
    shares = [share_of_peak(by_name["numpy"]["shape"], fastest, peak)]
    if ratio is None:
        return [*cells, None, None, None, None, report.share_text(shares[0]), None]
    mine = by_name[ours.TRANSFORM]
    shares.append(share_of_peak(mine["shape"], mine["median"], peak))
    return [
        *cells,
        time_of(ours.TRANSFORM),
        time_of(ours.KERNEL),
        report.ratio_text(ratio["median"]),
        report.ratio_text(ratio["min"]),
        *map(report.share_text, shares),
    ]


def ratio_to_fastest(by_name: dict) -> dict[str, float] | None:
    """How many times faster than the fastest peer, by medians and by minima; None without fastvq.

    scikit-learn-intelex ran in another process, so it is compared with fastvq's time there.
    """
    if ours.TRANSFORM not in by_name:
        return None
    ratios = {}
    for kind in ("median", "min"):
        beside = [
            by_name[name][kind] / by_name[ours.TRANSFORM][kind]
            for name in PEERS
            if name in by_name and name != intelex.NAME
        ]
        ratios[kind] = min([*beside, *intelex.ratios(by_name.get(intelex.NAME), kind)])
    return ratios


def share_of_peak(shape, seconds: float, peak: float) -> float:
    """Share of the peak that n·d·k multiply-adds (two operations each) in this time are."""
    n, d, k = shape
    return 2 * n * d * k / seconds / peak


def _footnotes(cases: dict) -> list[str]:
    notes = []
    wrong = [
        f"{name} at {case} ({each['excess']:.1e})"
        for case, by_name in cases.items()
        for name, each in by_name.items()
        if each["excess"] > answers.TOLERANCE
    ]
    if wrong:
        notes.append(
            "NOT THE SAME ANSWER (a codeword farther than the nearest, in units of |x|² + |c|²): "
            + "; ".join(wrong)
        )
    notes += intelex.footnotes([by_name.get(intelex.NAME) for by_name in cases.values()])
    return [line for note in notes for line in ("", note)]


# -- pytest-benchmark ---------------------------------------------------------------------------


def pytest_generate_tests(metafunc):
    names = [*peers.ASSIGNERS, ours.TRANSFORM, ours.KERNEL]
    metafunc.parametrize("name", names)
    metafunc.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


@lru_cache(maxsize=1)
def _shape_data(shape):
    return data.white(*shape)


def test_assign(benchmark, shape, name, n_threads):
    X, codebook = _shape_data(shape)
    benchmark.group = f"assign {case_name(*shape)}, {report.threads_text(n_threads)}"
    with timing.thread_limit(n_threads):
        assign = contestants(len(X), codebook, n_threads, Options())[name]
        codes = benchmark.pedantic(assign, (X,), rounds=5, warmup_rounds=1)
        reference = peers.numpy_assigner(codebook)(X)
    excess = answers.excesses(X, codebook, {name: np.asarray(codes), "reference": reference})
    assert excess[name] <= answers.TOLERANCE
