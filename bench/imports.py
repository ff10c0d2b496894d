"""Import time beyond NumPy's, in fresh processes, alternating; and what is loaded besides."""

from __future__ import annotations

import subprocess
import sys

from bench import report, timing
from bench.options import Options

#: seconds that importing fastvq may take beyond NumPy
WANTED = 0.15

PROGRAMS = {
    "numpy": "import numpy",
    "fastvq": "import numpy, fastvq",
    "fastvq.kernels": "import numpy, fastvq.kernels",
    "fastvq.VectorQuantizer": "import numpy; from fastvq import VectorQuantizer",
    "sklearn.cluster": "import numpy, sklearn.cluster",
    "faiss": "import numpy, faiss",
}

QUICK_PROGRAMS = ("numpy", "fastvq")

#: exits with 1 where importing fastvq alone has loaded scikit-learn
LAZY = "import sys, fastvq; sys.exit('sklearn' in sys.modules)"


def measure(options: Options) -> dict:
    programs = {
        name: text
        for name, text in PROGRAMS.items()
        if not (options.peers_only and "fastvq" in name)
        and (name in QUICK_PROGRAMS or not options.quick)
    }
    timings = timing.take_turns(
        {name: lambda text=text: _run(text) for name, text in programs.items()},
        repeats=3 if options.quick else 15,
        budget=4.0 if options.quick else 60.0,
    )
    base = timings["numpy"]
    records = []
    for name, each in timings.items():
        paired = [mine - numpy for mine, numpy in zip(each.seconds, base.seconds, strict=False)]
        beyond = timing.Timing(paired)
        records.append(report.record("import", 1, name, each, beyond=beyond.median))
    lazy = None if options.peers_only else _run(LAZY, check=False) == 0
    return {"records": records, "lazy": lazy}


def _run(program: str, check: bool = True) -> int:
    return subprocess.run([sys.executable, "-c", program], check=check).returncode


def tables(measured: dict) -> str:
    rows = [
        [
            each["name"],
            report.seconds_text(each["median"]),
            report.seconds_text(each["min"]),
            f"{1e3 * each['beyond']:.0f} ms",
        ]
        for each in measured["records"]
    ]
    text = report.table(["import", "whole process", "at its fastest", "beyond NumPy"], rows)
    beyond = {each["name"]: each["beyond"] for each in measured["records"]}
    notes = []
    if beyond.get("fastvq", 0) > WANTED:
        notes.append(f"fastvq takes {beyond['fastvq']:.2f} s of {WANTED} s allowed.")
    if measured["lazy"] is False:
        notes.append("Importing fastvq LOADS scikit-learn.")
    return "\n\n".join([text, *notes])
