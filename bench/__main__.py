"""``python -m bench``: the command. See the package's docstring, or ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path

from bench import environment
from bench.options import LONG, SUITES, Options, options_of, parser

TITLES = {
    "assign": "Assignment, white Gaussian float32",
    "structured": "Assignment, structured float32",
    "seeding": "Greedy k-means++ seeding",
    "prune": "Exact pruning beside the plain tile",
    "fit": "Fit",
    "neural": "Quantizing layers",
    "scalar": "Scalar quantization",
    "int8": "Products of 8-bit integers",
    "int8models": "Models in 8-bit integers, time of a call",
    "fewbits": "Weights of few bits",
    "fewquality": "Networks in few bits: what is lost",
    "quality": "Networks in 8-bit integers: what is lost",
    "product": "Product quantization",
    "coding": "Entropy coding, approximate assignment",
    "residual": "Residual and additive quantizers, encoding",
    "errors": "Residual and additive quantizers, errors over five seeds",
    "search": "Search among codes",
    "runtime": "Models in float32, time of a call",
    "training": "Training",
    "memory": "Peak memory beyond input and output",
    "import": "Import time",
}


def main(arguments: list[str]) -> None:
    options = options_of(parsed := parser().parse_args(arguments))
    wants_table = parsed.suites[:1] == ["table"]
    everything = wants_table or options.quick
    usual = [suite for suite in SUITES if everything or suite not in LONG]
    suites = parsed.suites[wants_table:] or usual
    if unknown := set(suites) - set(SUITES):
        raise SystemExit(
            f"bench: no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}"
        )
    if wants_table:
        print_kept(parsed.json, suites)
        return
    environment.restart_with(environment.wanted(options.peers_level), arguments)
    path = parsed.json or _own_results()
    measured = run(suites, options)
    if (options.quick or options.peers_only) and parsed.json is None:
        print("A run of less than everything: nothing is kept.")
        return

    from bench import report

    if options.only:
        kept = report.load(path).get("suites", {})
        for key, entry in measured.items():
            merged = getattr(_suite(key.split("@")[0]), "merged", report.merged)
            entry |= merged(entry, kept.get(key, {}))
    report.keep(path, environment.cpu_name(), measured)
    print(f"Kept in {path}.")


def run(suites, options: Options) -> dict:
    """Measure the suites, print their tables, and return {key: entry} to be kept."""
    from bench import ours, peers, report

    peers.load()
    if not options.peers_only:
        _load_fastvq()
    libraries = environment.blas_libraries()
    environment.refuse_slow_blas(libraries)
    print(heading(libraries, options))
    build = None if options.peers_only else ours.build()
    measured = {}
    for suite in suites:
        found = _suite(suite).measure(options, **_which(suite))
        entry = report.entry(
            found,
            fastvq=build,
            peers=environment.versions(),
            peers_level=options.peers_level,
            clock=options.clock,
        )
        measured[_key(suite, options)] = entry
        print(f"\n## {TITLES[suite]}\n\n{_suite(suite).tables(entry)}", flush=True)
    return measured


def heading(libraries: list[dict], options: Options) -> str:
    names = environment.versions()
    lines = [
        f"{environment.cpu_name()}, {environment.core_count()} cores; peers' level: "
        f"{options.peers_level}; clock: {options.clock}",
        ", ".join(f"{name} {version}" for name, version in names.items()),
    ]
    lines += [
        f"BLAS of {lib['owner']}: {lib['library']} {lib['version']}, {lib['architecture']}, "
        f"{lib['threads']}"
        for lib in libraries
    ]
    return "\n".join(lines)


def print_kept(path: Path | None, suites) -> None:
    """The kept results of every CPU, or of one file, as markdown."""
    from bench import report

    paths = [path] if path else sorted(report.RESULTS.glob("*.json"))
    if not paths or not paths[0].exists():
        raise SystemExit(f"bench: no results in {path or report.RESULTS}; run a suite first")
    for each in paths:
        kept = report.load(each)
        print(f"# {kept['cpu']}")
        for suite in suites:
            for key, entry in kept["suites"].items():
                if key.split("@")[0] == suite:
                    print(f"\n## {TITLES[suite]}\n\n{_provenance(entry)}\n")
                    print(_suite(suite).tables(entry))


def _provenance(entry: dict) -> str:
    build = entry["fastvq"]
    parts = [entry["date"]]
    if build:
        parts.append(f"fastvq {build['version']} ({build['level_active']}, {build['compiler']})")
    parts += ["peers held to AVX2"] if entry["peers_level"] == "avx2" else []
    parts += ["the process's own time"] if entry["clock"] == "cpu" else []
    parts += ["cases measured one by one"] if entry.get("in_parts") else []
    parts += [f"{name} {version}" for name, version in entry["peers"].items()]
    return ", ".join(parts) + "."


def _suite(name: str):
    from bench import (
        bench_assign,
        bench_coding,
        bench_errors,
        bench_fewbits,
        bench_fewquality,
        bench_fit,
        bench_int8,
        bench_int8_models,
        bench_neural,
        bench_product,
        bench_prune,
        bench_quality,
        bench_residual,
        bench_runtime,
        bench_scalar,
        bench_search,
        bench_seeding,
        bench_training,
        imports,
        memory,
    )

    return {
        "assign": bench_assign,
        "structured": bench_assign,
        "seeding": bench_seeding,
        "prune": bench_prune,
        "fit": bench_fit,
        "neural": bench_neural,
        "scalar": bench_scalar,
        "int8": bench_int8,
        "int8models": bench_int8_models,
        "fewbits": bench_fewbits,
        "fewquality": bench_fewquality,
        "quality": bench_quality,
        "product": bench_product,
        "coding": bench_coding,
        "residual": bench_residual,
        "errors": bench_errors,
        "search": bench_search,
        "runtime": bench_runtime,
        "training": bench_training,
        "memory": memory,
        "import": imports,
    }[name]


def _which(suite: str) -> dict:
    return {"suite": suite} if suite in ("assign", "structured") else {}


def _key(suite: str, options: Options) -> str:
    return suite if options.peers_level == "best" else f"{suite}@{options.peers_level}"


def _own_results() -> Path:
    from bench import report

    return report.RESULTS / f"{environment.cpu_slug()}.json"


def _load_fastvq() -> None:
    from bench import ours

    try:
        ours.load()
    except ImportError as error:
        raise SystemExit(f"bench: {error}\n(--peers-only measures the peers alone)") from error


if __name__ == "__main__":
    main(sys.argv[1:])
