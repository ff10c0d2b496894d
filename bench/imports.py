"""Import time beyond NumPy's, in fresh processes, alternating; and what is loaded besides.

Also from the start of a process to the first answer of a model, an MLP 784-512-512-10 in a file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

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


ANSWERS = {
    "fastvq, first answer": (
        "import numpy, fastvq; fastvq.load({fvq!r})(numpy.zeros((1, 784), 'f'))"
    ),
    "onnxruntime, first answer": (
        "import numpy, onnxruntime as ort; s = ort.InferenceSession({onnx!r}); "
        "s.run(None, {{'x': numpy.zeros((1, 784), 'f')}})"
    ),
}


def measure(options: Options) -> dict:
    if options.peers_only:
        return _measure(options, {})
    with tempfile.TemporaryDirectory() as folder:
        return _measure(options, _answers(Path(folder)))


def _answers(folder: Path) -> dict[str, str]:
    """Programs that load a model and run it once."""
    import numpy as np

    from fastvq import CompressedModel
    from fastvq.runtime import Graph, Node, Value
    from fastvq.runtime.encoding import Raw

    sizes, nodes, constants = (784, 512, 512, 10), [], {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        constants[f"w{i}"] = Raw(np.full((n_out, n_in), 1 / n_in, np.float32))
        activation = {"activation": "relu"} if i < 2 else {}
        nodes.append(Node("Dense", (f"h{i}" if i else "x", f"w{i}"), (f"h{i + 1}",), activation))
    ends = [Value(name, "float32", ("N", n)) for name, n in (("x", 784), ("h3", 10))]
    model = CompressedModel(Graph(nodes, ends[:1], ends[1:], constants))
    paths = {kind: str(folder / f"mlp.{kind}") for kind in ("fvq", "onnx")}
    model.save(paths["fvq"])
    found = {"fastvq, first answer": ANSWERS["fastvq, first answer"]}
    if find_spec("onnx") and find_spec("onnxruntime"):
        model.to_onnx(paths["onnx"])
        found = ANSWERS
    return {name: text.format(**paths) for name, text in found.items()}


def _measure(options: Options, answers: dict[str, str]) -> dict:
    programs = {
        name: text
        for name, text in PROGRAMS.items()
        if not (options.peers_only and "fastvq" in name)
        and (name in QUICK_PROGRAMS or not options.quick)
    } | answers
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
