"""Training steps of a quantizing layer beside vector-quantize-pytorch's.

Both start from the same codewords and learn by moving averages from the same rows. A step is
forward and backward, the update of the codebook included. The loss that each ends with, after
equally many steps, is shown beside the time: whoever learns less is quicker.
"""

from __future__ import annotations

from bench import report, timing
from bench.options import Options

#: ratio to vector-quantize-pytorch to be reached
WANTED = 3.0

#: rows, features, codewords
CASES = {"4096×64, k=1024": (4096, 64, 1024)}

#: steps to learn, before the clock runs; with averages this short they come to rest in them
STEPS, DECAY = 30, 0.8


def _layers(x, start):
    from vector_quantize_pytorch import VectorQuantize as Peer

    from fastvq.neural import VectorQuantize

    n, (k, d) = len(x), start.shape
    peer = Peer(
        dim=d, codebook_size=k, decay=DECAY, commitment_weight=0.25, rotation_trick=False,
        threshold_ema_dead_code=0,
    )  # fmt: skip
    peer.codebook = start.clone()
    peer._codebook.cluster_size.fill_(n / k)  # ours takes its codewords for means of so many rows
    peer._codebook.embed_avg.copy_(start * n / k)
    shared = dict(decay=DECAY, commitment=0.25, init=start, dead_below=0)
    return {
        "vector-quantize-pytorch": peer,
        "fastvq": VectorQuantize(d, k, **shared),
        "fastvq, rotation": VectorQuantize(d, k, gradient="rotation", **shared),
    }


def _step(layer, x):
    x = x.clone().requires_grad_()
    values, _, loss, *_ = layer(x)
    (values.square().mean() + loss.sum()).backward()
    return loss.item()


def measure(options: Options) -> dict:
    import torch

    records = []
    for n_threads in options.threads:
        torch.set_num_threads(n_threads)
        for case, (n, d, k) in CASES.items():
            torch.manual_seed(0)
            x = torch.randn(options.rows(n), d)
            layers = _layers(x, x[torch.randperm(len(x))[:k]].clone())
            losses = {
                name: [_step(layer, x) for _ in range(STEPS)] for name, layer in layers.items()
            }
            for job in ("step", "evaluation"):
                for layer in layers.values():
                    layer.train(job == "step")
                records += _job(case, job, layers, x, losses, n_threads, options)
    return {"records": records}


def _job(case, job, layers, x, losses, n_threads, options):
    import torch

    def run(layer):
        if job == "step":
            return _step(layer, x)
        with torch.no_grad():
            return layer(x)

    timings = timing.take_turns(
        {name: lambda layer=layer: run(layer) for name, layer in layers.items()},
        **timing.as_told(options, n_threads),
    )
    records = [
        report.record(f"{case}, {job}", n_threads, name, measured, loss=losses[name][-1])
        for name, measured in timings.items()
    ]
    report.progress(records)
    return records


def tables(measured: dict) -> str:
    rows = []
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        peer = by_name["vector-quantize-pytorch"]
        for name in ("fastvq", "fastvq, rotation"):
            mine = by_name[name]
            rows.append(
                [
                    f"{case}, {report.threads_text(n_threads)}",
                    name,
                    report.seconds_text(mine["median"]),
                    report.seconds_text(peer["median"]),
                    report.ratio_text(peer["median"] / mine["median"]),
                    f"{mine['loss']:.5f}",
                    f"{peer['loss']:.5f}",
                ]
            )
    columns = ["case", "what", "fastvq", "vector-quantize-pytorch", "ratio", "loss", "its loss"]
    return report.table(columns, rows)
