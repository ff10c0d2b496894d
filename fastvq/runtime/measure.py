"""What a model tells of itself: where its time goes, how near it is to another, what it holds."""

from __future__ import annotations

import math
from time import perf_counter

import numpy as np

from fastvq.runtime.ops import operators
from fastvq.runtime.registry import KernelCall
from fastvq.runtime.tables import Table

__all__ = ["compare", "profile", "report"]


def profile(model, inputs, n_threads=None, seconds=0.3) -> Table:
    """See :meth:`CompressedModel.profile`; `inputs` are the model's, by name."""
    arrays = model._checked(inputs)
    plan = model.plan([a.shape for a in arrays], n_threads)
    plan.run(arrays)  # the first run makes what the others find made
    spent = []
    until = perf_counter() + seconds
    while len(spent) < 3 or perf_counter() < until:
        times = np.zeros(len(plan.steps))
        began = perf_counter()
        plan.run(arrays, times)
        spent.append([perf_counter() - began, *times])
    whole, *steps = np.median(spent, axis=0).tolist()
    rows = []
    for step, node, time in zip(plan.steps, plan.labels, steps, strict=True):
        weights = sum(_weights(model.graph, node))
        kernel = step.kernel if isinstance(step, KernelCall) else "numpy"
        rows.append((node.name, node.operator, kernel, 1e6 * time, time / whole, weights))
    columns = {"layer": "", "operator": "", "kernel": "", "us": ",.1f", "share": ".1%"}
    totals = {
        "microseconds": 1e6 * whole,
        "microseconds outside of layers": 1e6 * (whole - sum(steps)),
        "threads": plan.threads,
        "runs": len(spent),
        "bytes of the arena": plan.arena_bytes,
    }
    return Table({**columns, "weight bytes": ","}, rows, totals)


def compare(outputs, names, reference) -> Table:
    """See :meth:`CompressedModel.compare`."""
    if len(reference) != len(outputs):
        raise ValueError(f"{len(outputs)} outputs, and a reference of {len(reference)}")
    rows = []
    for name, found, wanted in zip(names, outputs, map(np.asarray, reference), strict=True):
        if found.shape != wanted.shape:
            raise ValueError(f"output {name!r} is {found.shape}, the reference {wanted.shape}")
        rows.append((name, found.shape, *_difference(found, wanted)))
    columns = {"output": "", "shape": "", "max |difference|": ".3g", "of max |reference|": ".3g"}
    return Table({**columns, "SQNR dB": ".2f", "agreement": ".4f"}, rows)


def report(model) -> Table:
    """See :meth:`CompressedModel.report`."""
    graph, whole = model.graph, model.nbytes
    users = graph.users()
    made = model.metadata.get("compression", {})
    tensors, layers = made.get("tensors", {}), made.get("layers", {})
    rows = []
    for name, encoded in graph.constants.items():
        node = next(iter(users.get(name, [])), None)
        size = math.prod(encoded.shape)
        row = (
            node.name if node else None,
            node.operator if node else None,
            name,
            tuple(encoded.shape),
            encoded.scheme,
            8 * encoded.nbytes / size if size else None,
            encoded.nbytes,
            encoded.nbytes / whole,
        )
        if made:
            before, rounding, key = tensors.get(name, (encoded.nbytes, None, None))
            if node and name in [node.inputs[i] for i in operators()[node.operator].weights]:
                key = key or node.outputs[0]
            _, reason, noise = layers.get(key, (None, None, None))
            row += before, rounding, noise, reason
        rows.append(row)
    values = sum(math.prod(encoded.shape) for encoded in graph.constants.values())
    weights = sum(encoded.nbytes for encoded in graph.constants.values())
    totals = {
        "values": values,
        "bytes of weights": weights,
        "bytes of the file": whole,
        "bits a value, all in": 8 * whole / values if values else None,
    }
    columns = {"layer": "", "operator": "", "tensor": "", "shape": "", "scheme": ""}
    columns |= {"bits": ".4g", "bytes": ",", "share": ".1%"}
    if made:
        columns |= {"bytes before": ",", "weights dB": ".1f", "layer dB": ".1f", "why": ""}
        totals |= _compression(made, whole, model.latencies)
    return Table(columns, rows, totals)


def _compression(made, whole, latencies):
    """Totals of a model that was quantized: size, score and latency before and after."""
    schemes = [scheme for scheme, *_ in made.get("layers", {}).values()]
    found = {f"layers in {scheme}": schemes.count(scheme) for scheme in sorted({*schemes})}
    found |= {name: value for name, value in made.get("settings", {}).items() if value is not None}
    before = made.get("bytes before")
    if before:
        found |= {"bytes of float32": before, "of float32": whole / before}
    score = made.get("score") or {}
    if score:
        found |= {
            f"{score['score']} before": score["before"],
            f"{score['score']} after": score["after"],
            "SQNR dB of outputs": score["SQNR dB"],
        }
    for rows, times in latencies.items():
        found[f"us, {rows} rows, before and after"] = f"{times['before']:.1f}, {times['after']:.1f}"
    return found


def _weights(graph, node):
    """Bytes of each constant that a node reads as weights."""
    places = operators()[node.operator].weights
    for place, name in enumerate(node.inputs):
        if name in graph.constants and (place in places or graph.constants[name].nbytes > 64):
            yield graph.constants[name].nbytes


def _difference(found, wanted):
    """Largest difference, the same in shares of the largest value, SQNR in dB, and agreement."""
    if found.dtype.kind not in "fiub" or wanted.dtype.kind not in "fiub":
        return None, None, None, float(np.mean(found == wanted)) if found.size else None
    agreement = _agreement(found, wanted)
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, found - wanted)
    largest = float(np.max(abs(error), initial=0))
    scale = float(np.max(abs(wanted[np.isfinite(wanted)]), initial=0))
    noise, signal = float((error**2).sum()), float((wanted[np.isfinite(wanted)] ** 2).sum())
    if noise and signal:
        sqnr = 10 * math.log10(signal / noise) if math.isfinite(noise) else -math.inf
    else:
        sqnr = -math.inf if noise else math.inf
    return largest, largest / scale if scale else math.inf if largest else 0.0, sqnr, agreement


def _agreement(found, wanted):
    """The share of rows with the same largest value; of labels that are equal."""
    if not found.size:
        return None
    if found.dtype.kind != "f":
        return float(np.mean(found == wanted))
    if found.ndim < 2 or found.shape[-1] < 2:
        return None
    return float(np.mean(found.argmax(axis=-1) == wanted.argmax(axis=-1)))
