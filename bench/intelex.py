"""scikit-learn-intelex, in a process of its own for each thread count.

It brings its own BLAS and thread pool (oneTBB), which would sit beside the others' and can only be
held to a number of threads before they start. fastvq and scikit-learn run beside it there, so that
it has a ratio of its own, and so that "no effect" can be told: on some CPUs it runs scikit-learn's
own code.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

from bench import ours, report, timing
from bench.options import options_of, parser

NAME = "sklearnex"

#: its time over scikit-learn's in the same process, from which on it has no effect
NO_EFFECT = 0.95


def records(suite: str, n_threads: int, options, task=None) -> list[dict]:
    """Its records for a suite; none, with a line on stderr, where it is not installed or fails.

    `task` is what the suite's `measure_intelex` is to be told, anything JSON can carry.
    """
    if importlib.util.find_spec("sklearnex") is None:
        print("scikit-learn-intelex is not installed: left out", file=sys.stderr)
        return []
    arguments = [suite, f"--threads={n_threads}", *options.as_arguments()]
    child = subprocess.run(
        [sys.executable, "-m", "bench.intelex", *arguments],
        input=json.dumps(task),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if child.returncode:
        print(f"scikit-learn-intelex failed on {suite}: left out", file=sys.stderr)
        return []
    return json.loads(child.stdout.splitlines()[-1])


def hold_to(n_threads: int) -> None:
    """Before anything is loaded: oneTBB takes its threads from the cores the process may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_threads])


def joined(records: list[dict]) -> dict:
    """Its record of a case, with the times of those that ran beside it as fields."""
    by_name = {record["name"]: record for record in records}
    own = by_name.pop(NAME)
    for name, record in by_name.items():
        own |= {f"{name}_median": record["median"], f"{name}_min": record["min"]}
    return own


def ratios(record: dict | None, kind: str) -> list[float]:
    """[its time over fastvq's in the same process], or nothing."""
    if record is None or f"fastvq_{kind}" not in record:
        return []
    return [record[kind] / record[f"fastvq_{kind}"]]


def has_no_effect(record: dict) -> bool:
    return record["min"] >= NO_EFFECT * record["sklearn_min"]


def cell(record: dict | None) -> str | None:
    if record is None:
        return None
    mark = " ⁼" if has_no_effect(record) else ""
    return report.seconds_text(record["median"]) + mark


def footnotes(found: list[dict | None]) -> list[str]:
    if any(record and has_no_effect(record) for record in found):
        return ["⁼ No effect here: no faster than plain scikit-learn in the same process."]
    return []


def main(arguments: list[str]) -> None:
    """Measure one suite on one thread count and print its records as one line of JSON."""
    options = options_of(parsed := parser().parse_args(arguments))
    (suite,), (n_threads,) = parsed.suites, options.threads
    hold_to(n_threads)

    import sklearnex.cluster  # noqa: F401

    from bench import bench_assign, bench_fit

    if not options.peers_only:
        ours.load()
    with timing.thread_limit(n_threads):
        if suite == "fit":
            records = bench_fit.measure_intelex(json.load(sys.stdin), n_threads, options)
        else:
            records = bench_assign.measure_intelex(suite, n_threads, options)
    print(json.dumps(records))


if __name__ == "__main__":
    main(sys.argv[1:])
