"""Memory that a transform or a fit takes beyond its input and output, at its peak.

Each case runs in a process of its own, which makes the input, warms up on a few rows (libraries
load, threads start), sets the kernel's record of its largest size back, runs the job once and reads
the record: the growth of the resident size, less the output. A memory-mapped input has been read
through once before, so that its pages count as input. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import data, ours, peers, report, timing
from bench.options import Options, options_of, parser

MEGABYTE = 1_000_000

#: bytes that are allowed: a transform's, for each thread, besides one packed copy of the codebook
TRANSFORM_PER_THREAD = 8 * MEGABYTE
#: a fit's, for each row, besides the codebook; a fit whose plan is accelerated may keep a share of
#: the input besides
FIT_PER_ROW = 32
FIT_SHARE_OF_INPUT = 0.25

#: float32 copies of the codebook within the limit. A fit has the start, the packed one, the sums in
#: float64, the new one, and the one it returns.
CODEBOOK_COPIES = {"transform": 1, "fit": 6}

FIT_ITERATIONS = 5
WARM_UP_ROWS, WARM_UP_CODEWORDS = 512, 8

DTYPES = ("float32", "float64", "float16", "uint8")
LAYOUTS = ("C", "Fortran", "strided", "memmap")


class Case(NamedTuple):
    job: str
    n: int
    d: int
    k: int
    dtype: str = "float32"
    layout: str = "C"
    name: str = "fastvq"

    def __str__(self):
        size = f"{report.count_text(self.n)}×{self.d}, {self.k}"
        return f"{self.job} {size}, {self.dtype}, {self.layout}"


def all_cases(options: Options) -> list[Case]:
    """Each dtype and each layout at one shape, float32 at others, and scikit-learn beside them."""
    base = (200_000, 64, 256)
    kinds = [(dtype, "C") for dtype in DTYPES]
    kinds += [("float32", layout) for layout in LAYOUTS[1:]] + [("uint8", "memmap")]
    others = [(1_000_000, 4, 256), (100_000, 128, 4096), (60_000, 784, 1024)]
    if options.quick:
        base, kinds, others = (50_000, 64, 64), [("float16", "Fortran")], []
    cases = []
    for job in ("transform", "fit"):
        cases += [Case(job, *base, *kind) for kind in kinds]
        cases += [Case(job, *shape) for shape in others]
        if not options.quick:
            cases += [Case(job, *shape, name="sklearn") for shape in [base, *others]]
    return [
        case
        for case in cases
        if options.only.lower() in str(case).lower()
        and (case.name == "sklearn" or not options.peers_only)
    ]


def measure(options: Options) -> dict:
    if not Path("/proc/self/clear_refs").exists():
        print("memory: left out: it is measured through Linux's /proc", file=sys.stderr)
        return {"records": []}
    records = []
    for n_threads in options.threads:
        for case in all_cases(options):
            arguments = ["memory", f"--threads={n_threads}", *options.as_arguments()]
            child = subprocess.run(
                [sys.executable, "-m", "bench.memory", *arguments],
                input=json.dumps(case),
                capture_output=True,
                text=True,
                check=False,
            )
            if child.returncode:
                raise RuntimeError(f"memory of {case} ({case.name}) failed:\n{child.stderr}")
            extra = json.loads(child.stdout.splitlines()[-1])
            told = {"case": str(case), "threads": n_threads, "extra": extra}
            records.append(case._asdict() | told)
            print(f"{case}, {case.name}: {extra / MEGABYTE:.1f} MB", file=sys.stderr)
    return {"records": records}


# -- in the process of a case -------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    (n_threads,) = options_of(parser().parse_args(arguments)).threads
    case = Case(*json.load(sys.stdin))
    if case.name == "fastvq":
        ours.load()
    else:
        import sklearn.cluster  # noqa: F401
    with tempfile.TemporaryDirectory() as folder, timing.thread_limit(n_threads):
        X = make_input(case, Path(folder))
        job = JOBS[case.job]
        few = case._replace(k=WARM_UP_CODEWORDS)
        job(few, n_threads, X)(X[:WARM_UP_ROWS])
        run = job(case, n_threads, X)
        print(growth_of(lambda: run(X)) - output_bytes(case))


def make_input(case: Case, folder: Path) -> np.ndarray:
    """Clustered rows, 0 … 255 so that every dtype holds them, in the layout asked for."""
    X = 16 * data.blobs(case.n, case.d, min(256, case.n)) + 128
    X = np.clip(X, 0, 255).astype(case.dtype)
    if case.layout == "Fortran":
        return np.asfortranarray(X)
    if case.layout == "strided":
        wide = np.zeros((case.n, 2 * case.d), case.dtype)
        wide[:, ::2] = X
        return wide[:, ::2]
    if case.layout == "memmap":
        np.save(folder / "X.npy", X)
        mapped = np.load(folder / "X.npy", mmap_mode="r")
        mapped.max()
        return mapped
    return X


def _transform(case: Case, n_threads: int, X):
    codebook = _some_rows(case, X)
    if case.name == "sklearn":
        return peers.sklearn_assigner(codebook)
    return ours.quantizer(codebook, n_threads).transform


def _fit(case: Case, n_threads: int, X):
    start = _some_rows(case, X)
    if case.name == "sklearn":
        return lambda X: peers.sklearn_fit(X, start, algorithm="lloyd", max_iter=FIT_ITERATIONS)
    return lambda X: ours.fit(X, start, n_threads=n_threads, max_iter=FIT_ITERATIONS)


JOBS = {"transform": _transform, "fit": _fit}


def _some_rows(case: Case, X) -> np.ndarray:
    rows = np.random.default_rng(0).choice(case.n, case.k, replace=False)
    return X[rows].astype(np.float32)


def output_bytes(case: Case) -> int:
    if case.job == "fit":
        return 4 * case.k * case.d
    a_code = 4 if case.name == "sklearn" else np.min_scalar_type(case.k - 1).itemsize
    return a_code * case.n


def growth_of(run) -> int:
    """Bytes by which the resident size rose at most while it ran."""
    import gc

    gc.collect()
    _give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the record of the largest size starts anew
    before = _status("VmRSS")
    answer = run()
    peak = _status("VmHWM")
    del answer
    return peak - before


def _give_back_freed_memory() -> None:
    """Or a job would find it again and seem to need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


# -- reporting ----------------------------------------------------------------------------------


def limit_of(case: Case, n_threads: int) -> float:
    """Bytes allowed for the plain plan; an accelerated fit's share of the input is told apart."""
    codebook = CODEBOOK_COPIES[case.job] * case.k * case.d * 4
    if case.job == "transform":
        return n_threads * TRANSFORM_PER_THREAD + codebook
    return FIT_PER_ROW * case.n + codebook


def tables(measured: dict) -> str:
    fields = Case._fields
    found = [(Case(*(r[f] for f in fields)), r["threads"], r["extra"]) for r in measured["records"]]
    sklearn = {(case[:6], t): extra for case, t, extra in found if case.name == "sklearn"}
    rows, notes = [], []
    for case, n_threads, extra in found:
        if case.name == "sklearn" and any(c[:6] == case[:6] and c != case for c, *_ in found):
            continue
        mine = extra if case.name == "fastvq" else None
        limit = limit_of(case, n_threads)
        input_bytes = case.n * case.d * np.dtype(case.dtype).itemsize
        name = f"{case}, {report.threads_text(n_threads)}"
        rows.append(
            [
                name,
                _megabytes(input_bytes),
                _megabytes(sklearn.get((case[:6], n_threads))),
                _megabytes(mine),
                _megabytes(limit),
                None if mine is None or case.job == "transform" else f"{mine / case.n:.0f}",
            ]
        )
        share = FIT_SHARE_OF_INPUT * input_bytes if case.job == "fit" else 0
        if mine is not None and mine > limit:
            within = "accelerated plan" if mine <= limit + share else "TOO MUCH"
            notes.append(f"{name}: {_megabytes(mine)} of {_megabytes(limit)} ({within})")
    header = ["job, n×d, k, dtype, layout", "input", "sklearn", "fastvq", "limit", "bytes a row"]
    text = report.table(header, rows)
    return text + ("\n\nAbove the limit: " + "; ".join(notes) + "." if notes else "")


def _megabytes(n_bytes: float | None) -> str | None:
    return None if n_bytes is None else f"{n_bytes / MEGABYTE:.1f} MB"


if __name__ == "__main__":
    main(sys.argv[1:])
