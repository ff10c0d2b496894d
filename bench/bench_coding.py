"""Codes: the entropy coder beside constriction's, and approximate codes of large codebooks beside
faiss's inverted file over the codewords, at equal recall.

The coder's cases are bytes and 16-bit codes of geometric distributions. Approximate assignment:
clustered rows and codewords; faiss gets the probes that reach the recall of ours.
"""

from __future__ import annotations

import numpy as np

from bench import report, timing
from bench.options import Options

CODES = {"8 bits, 4M codes": (256, "uint8"), "16 bits, 4M codes": (20_000, "uint16")}
CODEBOOKS = {"200k×64, k=65536": (200_000, 64, 65_536)}


def measure(options: Options) -> dict:
    records = []
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for case, (k, dtype) in CODES.items():
                records += _coder(case, k, dtype, n_threads, options)
            for case, (n, d, k) in CODEBOOKS.items():
                records += _approximate(case, options.rows(n), d, k, n_threads, options)
    return {"records": records}


def _coder(case, k, dtype, n_threads, options):
    from fastvq import entropy

    rng = np.random.default_rng(0)
    n = options.rows(4_000_000)
    codes = np.minimum(rng.geometric(40 / k, n) - 1, k - 1).astype(dtype)
    data = entropy.encode(codes)
    runs = {
        "fastvq encode": lambda: entropy.encode(codes, n_threads=n_threads),
        "fastvq decode": lambda: entropy.decode(data, n_threads=n_threads),
        **_constriction(codes),
    }
    size = len(data) / (entropy.entropy(codes) * n / 8)
    return _records(case, runs, n_threads, options, size=size)


def _constriction(codes):
    import constriction

    symbols, counts = np.unique(codes, return_counts=True)
    model = constriction.stream.model.Categorical(counts / len(codes), perfect=False)
    places = np.searchsorted(symbols, codes).astype(np.int32)

    def encode():
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(places, model)
        return coder.get_compressed()

    words = encode()
    return {
        "constriction encode": encode,
        "constriction decode": lambda: constriction.stream.stack.AnsCoder(words).decode(
            model, len(codes)
        ),
    }


def _approximate(case, n, d, k, n_threads, options):
    import faiss

    from fastvq import kernels
    from fastvq.vq._probes import Probes, group_codewords, probes_for
    from fastvq.vq._rows import Rows

    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((k // 16, d), dtype=np.float32)

    def draw(size):
        chosen = centres[rng.integers(len(centres), size=size)]
        return chosen + rng.standard_normal((size, d), dtype=np.float32)

    codebook, X = draw(k), draw(n)
    rows = Rows(X, dtype=np.float32, n_threads=n_threads)
    probes = Probes(codebook, group_codewords(codebook), n_threads)
    n_probes, _ = probes_for(probes, rows, codebook, 0.95)
    exact = kernels.assign(X[:2000], codebook)
    quantizer = faiss.IndexFlatL2(d)
    index = faiss.IndexIVFFlat(quantizer, d, round(k**0.5))
    index.train(codebook)
    index.add(codebook)
    for n_lists in range(1, index.nlist + 1):
        index.nprobe = n_lists
        if np.mean(index.search(X[:2000], 1)[1][:, 0] == exact) >= 0.95:
            break
    runs = {
        "fastvq": lambda: probes.assign(rows, n_probes),
        "faiss IVFFlat": lambda: index.search(X, 1)[1],
    }
    recall = np.mean(probes.assign(rows.subset(np.arange(2000)), n_probes) == exact)
    return _records(case, runs, n_threads, options, recall=float(recall))


def _records(case, runs, n_threads, options, **more):
    timings = timing.take_turns(
        runs,
        **timing.as_told(options, n_threads),
    )
    records = [
        report.record(case, n_threads, name, measured, **more) for name, measured in timings.items()
    ]
    report.progress(records)
    return records


def tables(measured: dict) -> str:
    rows = []
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        for name, peer in (
            ("fastvq encode", "constriction encode"),
            ("fastvq decode", "constriction decode"),
            ("fastvq", "faiss IVFFlat"),
        ):
            if name not in by_name:
                continue
            mine, theirs = by_name[name], by_name[peer]
            note = (
                f"recall {mine['recall']:.3f}" if "recall" in mine else f"size {mine['size']:.4f}"
            )
            rows.append(
                [
                    f"{case}, {report.threads_text(n_threads)}",
                    name,
                    report.seconds_text(mine["median"]),
                    report.seconds_text(theirs["median"]),
                    report.ratio_text(theirs["median"] / mine["median"]),
                    note,
                ]
            )
    return report.table(["case", "what", "fastvq", "peer", "ratio", "quality"], rows)
