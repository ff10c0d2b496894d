"""Records into text, and into the JSON that is kept for each CPU.

A record is a plain dict of one contestant's time in one case: `case`, `threads`, `name`, `median`
and `min` in seconds, and what else its suite measured. Results are kept as
``bench/results/<cpu>.json``: one entry a suite, each with the date, versions and level it was
measured with, so that suites can be run at different times.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


# -- text ---------------------------------------------------------------------------------------


def below(notes: Sequence[str]) -> str:
    """A paragraph that tells what was missed; "" for nothing."""
    return f"\n\nBelow what is wanted: {'; '.join(notes)}." if notes else ""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table whose columns line up in a terminal too; None is an empty cell."""
    cells = [list(header), *(["" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    ruler = ["-" * (width - 1) + (":" if i else "-") for i, width in enumerate(widths)]
    lines = [_line(cells[0], widths), _line(ruler, widths), *(_line(r, widths) for r in cells[1:])]
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return "| " + " | ".join([first.strip().ljust(widths[0]), *rest]) + " |"


def seconds_text(seconds: float | None) -> str | None:
    """Three digits and a unit: "1.23 ms", "45.6 s"."""
    if seconds is None:
        return None
    if seconds < 1:
        return f"{_three_digits(1e3 * seconds)} ms"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    decimals = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{decimals}f}"


def ratio_text(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.2f}×"


def share_text(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def count_text(n: int) -> str:
    """1000000 as "1M", 60000 as "60k": how cases are named."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{letter}"
    return str(n)


def id_text(name: object) -> str:
    """A case's name for pytest: plain ASCII, so that -k can select it."""
    return "".join(letter if letter.isalnum() else "-" for letter in str(name).replace("×", "x"))


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


# -- records ------------------------------------------------------------------------------------


def record(case: str, threads: int, name: str, timing, **measured) -> dict:
    return {
        "case": case,
        "threads": threads,
        "name": name,
        "median": _rounded(timing.median),
        "min": _rounded(timing.fastest),
        "runs": len(timing.seconds),
        **{key: _rounded(value) for key, value in measured.items()},
    }


def _rounded(value):
    """Floats to four digits: what is kept should not differ in noise beyond them."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def progress(records: list[dict]) -> None:
    """One line on stderr: a case is done, and what it gave."""
    first = records[0]
    times = ", ".join(f"{each['name']} {seconds_text(each['median'])}" for each in records)
    print(f"{first['case']} ({threads_text(first['threads'])}): {times}", file=sys.stderr)


def by_case(records: Iterable[dict]) -> dict[tuple[str, int], dict[str, dict]]:
    """{(case, threads): {name: record}}, in the order measured."""
    cases: dict[tuple[str, int], dict[str, dict]] = {}
    for each in records:
        cases.setdefault((each["case"], each["threads"]), {})[each["name"]] = each
    return cases


def thread_counts(records: Iterable[dict]) -> list[int]:
    return sorted({each["threads"] for each in records})


def threads_text(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


# -- JSON ---------------------------------------------------------------------------------------


def entry(measured: dict, **circumstances) -> dict:
    """A suite's results with the date and what they were measured with."""
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"date": today, **circumstances, **measured}


def load(path: Path) -> dict:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def keep(path: Path, cpu: str, suites: dict) -> None:
    """Replace the entries of the suites measured; keep those of the others."""
    kept = load(path)
    everything = {"cpu": cpu, "suites": {**kept.get("suites", {}), **suites}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_compact(everything), "utf-8")


def merged(measured: dict, kept: dict) -> dict:
    """The records of both; of a case that was measured now, the new ones alone.

    Times by another clock do not go into one table: then the kept ones are dropped.
    """
    if kept.get("clock") != measured["clock"]:
        return measured
    new = {(each["case"], each["threads"]) for each in measured["records"]}
    old = [each for each in kept["records"] if (each["case"], each["threads"]) not in new]
    return {"records": old + measured["records"], "in_parts": True}


def _compact(results: dict) -> str:
    """JSON with sorted keys, a record a line: small, and a change shows as the lines it changes."""
    placeholders: dict[str, str] = {}

    def outlined(value):
        if isinstance(value, dict) and any(isinstance(v, (dict, list)) for v in value.values()):
            return {key: outlined(each) for key, each in sorted(value.items())}
        if isinstance(value, list):
            return [outlined(each) for each in value]
        if isinstance(value, dict):
            mark = f"@{len(placeholders)}@"
            placeholders[f'"{mark}"'] = json.dumps(value, sort_keys=True, ensure_ascii=False)
            return mark
        return value

    text = json.dumps(outlined(results), indent=1, ensure_ascii=False)
    for mark, line in placeholders.items():
        text = text.replace(mark, line, 1)
    return text + "\n"
