"""What is asked of training, measured: quantization-aware, autoencoders, smaller networks.

``python -m bench training --only qat`` measures one part, ``--seeds 5`` sets the number of seeds.
Parts are kept separately, so that they can be measured at different times. A target is met where
the mean over seeds of paired differences is within its bound; beside it stands the standard error
of that mean. The parts themselves are in `bench.training`.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module

import numpy as np

from bench import data, report
from bench.options import Options

PARTS = ("qat", "vqvae", "vae", "distill", "prune", "classifier", "optimizers")


def measure(options: Options) -> dict:
    import torch

    torch.set_num_threads(1)
    records = []
    for part in chosen(options.only):
        try:
            for seed in range(options.seeds):
                records.append(_seed(part, seed, options.quick))
        except data.MissingData as error:
            print(f"left out: {error}", file=sys.stderr)
    return {"records": records}


def chosen(only: str) -> list[str]:
    """The part of this name, or else those that have it in their name."""
    return [only] if only in PARTS else [part for part in PARTS if only.lower() in part]


def _seed(part, seed, quick):
    began = time.perf_counter()
    figures = import_module(f"bench.training.{part}").run(seed, quick)
    found = {"part": part, "seed": seed, "seconds": round(time.perf_counter() - began)}
    found |= {name: round(float(value), 4) for name, value in figures.items()}
    print(found, file=sys.stderr, flush=True)
    return found


def merged(measured: dict, kept: dict) -> dict:
    """The records of both; of a part that was measured now, the new ones alone."""
    new = {record["part"] for record in measured["records"]}
    old = [record for record in kept.get("records", []) if record["part"] not in new]
    records = sorted(old + measured["records"], key=lambda r: (PARTS.index(r["part"]), r["seed"]))
    return {"records": records}


def tables(measured: dict) -> str:
    texts = []
    for part in PARTS:
        figures = [record for record in measured["records"] if record["part"] == part]
        if figures:
            module = import_module(f"bench.training.{part}")
            texts.append(f"### {module.TITLE}\n\n{_means(figures)}\n\n{_targets(module, figures)}")
    return "\n\n".join(texts)


def _means(figures):
    names = [name for name in figures[0] if name not in ("part", "seed")]
    rows = [[name, *_mean_text([each[name] for each in figures])] for name in names]
    return report.table(["figure", f"mean of {len(figures)} seeds", "standard error"], rows)


def _targets(module, figures):
    rows = []
    for target in module.TARGETS:
        values = [target.value(each) for each in figures]
        met = "yes" if np.mean(values) <= target.most else "NO"
        rows.append([target.text, *_mean_text(values), f"{target.most:g}", met])
    return report.table(["target", "is", "standard error", "at most", "met"], rows)


def _mean_text(values):
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.3f}", f"{error:.3f}"
