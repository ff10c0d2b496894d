"""Products of 8-bit integers beside onnxruntime, torch and numkong, and beside the machine's peak.

Two jobs: integers to integers (int8 rows, int32 sums), and floats to floats (rows quantized as they
come, multiplied, scaled back). Without VNNI onnxruntime saturates sums of two products, so weights
here stay within 64, where it does not, and integer answers are compared for equality. Answers of
floats differ by how each library cuts a range into steps: their error is measured. Weights over the
whole range, as evenly spread as they never are in a model, make our sums of two products take
another way, too: "any weight" is that.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bench import bench_runtime, data, report, sessions, timing
from bench.options import Options

#: ratio to the fastest peer: of each case, and the geometric mean
WANTED, WANTED_MEAN = 0.95, 1.1
#: share of the peak, from so many operations on
WANTED_PEAK, LARGE = 0.88, 2 * 128 * 768 * 3072

#: rows, columns, width
CASES = {
    f"{m}×{n}×{k}": (m, n, k)
    for m, n, k in [
        (1, 768, 768), (1, 4096, 4096), (8, 1024, 1024), (32, 1024, 1024), (128, 768, 3072),
        (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (3136, 64, 576), (784, 128, 1152),
    ]
}  # fmt: skip
JOBS = ("integers", "floats")
COLUMNS = ("onnxruntime", "numkong", "torch", "fastvq", "fastvq, any weight")

#: weights within this and rows of any value: no sum of two products leaves 16 bits
LARGEST_WEIGHT = 64


class Case:
    """Rows and a weight, as integers and as what those stand for."""

    def __init__(self, m, n, k):
        rng = np.random.default_rng(m + n + k)
        self.X = rng.integers(-128, 128, (m, k), dtype=np.int8)
        self.weight = rng.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT, (n, k), dtype=np.int8)
        self.any_weight = rng.integers(-128, 128, (n, k), dtype=np.int8)
        self.scale = np.full(n, 0.01, np.float32)
        self.real = rng.standard_normal((m, k), np.float32)
        self.operations = 2 * m * n * k


# -- contestants -----------------------------------------------------------------------------------


def onnxruntime_integers(case, n_threads):
    """MatMulInteger of u8 rows and an s8 weight, its fastest pair."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"])]
    constants = {"w": np.ascontiguousarray(case.weight.T), "z": np.array(128, np.uint8)}
    kinds = TensorProto.UINT8, TensorProto.INT32
    run = sessions.onnxruntime_product(nodes, kinds, constants, n_threads)
    raised = (case.X.astype(np.int16) + 128).astype(np.uint8)
    return lambda: run(raised)


def onnxruntime_floats(case, n_threads):
    """DynamicQuantizeLinear, MatMulInteger and the scales, which it fuses."""
    from onnx import TensorProto, helper

    node = helper.make_node
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "w", "z"], ["sums"]),
        node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        node("Mul", ["s", "scale"], ["scales"]),
        node("Mul", ["real", "scales"], ["y"]),
    ]
    constants = {"w": np.ascontiguousarray(case.weight.T), "scale": case.scale}
    kinds = TensorProto.FLOAT, TensorProto.FLOAT
    run = sessions.onnxruntime_product(nodes, kinds, constants, n_threads)
    return lambda: run(case.real)


def numkong_integers(case, n_threads):
    import numkong

    packed = numkong.dots_pack(case.weight, dtype="int8")
    return lambda: np.asarray(numkong.dots_packed(case.X, packed))


def torch_floats(case, n_threads):
    """fbgemm's dynamic linear layer."""
    import torch

    torch.set_num_threads(n_threads)
    weight = torch._make_per_channel_quantized_tensor(
        torch.from_numpy(case.weight), torch.from_numpy(case.scale.astype(np.float64)),
        torch.zeros(len(case.scale), dtype=torch.int64), 0,
    )  # fmt: skip
    packed = torch.ops.quantized.linear_prepack(weight, None)
    X = torch.from_numpy(case.real)
    return lambda: torch.ops.quantized.linear_dynamic(X, packed, False).numpy()


def fastvq_integers(case, n_threads):
    from fastvq import kernels

    weight = kernels.Int8Weight(case.weight)
    out = np.empty((len(case.X), len(case.weight)), np.int32)
    return lambda: kernels.gemm_int8(case.X, weight, out=out, n_threads=n_threads)


def fastvq_any_weight(case, n_threads):
    from fastvq import kernels

    weight = kernels.Int8Weight(case.any_weight)
    out = np.empty((len(case.X), len(case.weight)), np.int32)
    return lambda: kernels.gemm_int8(case.X, weight, out=out, n_threads=n_threads)


def fastvq_floats(case, n_threads):
    from fastvq import kernels

    weight = kernels.Int8Weight(case.weight)
    out = np.empty((len(case.X), len(case.weight)), np.float32)
    return lambda: kernels.gemm_dynamic(case.real, weight, case.scale, out=out, n_threads=n_threads)


CONTESTANTS = {
    "integers": {
        "onnxruntime": onnxruntime_integers,
        "numkong": numkong_integers,
        "fastvq": fastvq_integers,
        "fastvq, any weight": fastvq_any_weight,
    },
    "floats": {
        "onnxruntime": onnxruntime_floats,
        "torch": torch_floats,
        "fastvq": fastvq_floats,
    },
}


def contestants(job, case, n_threads, options) -> dict:
    """Name to what is timed; who is not installed, or single-threaded, is left out."""
    several = {name for name in CONTESTANTS[job] if name != "numkong" or n_threads == 1}
    makers = {name: make for name, make in CONTESTANTS[job].items() if name in several}
    return installed(makers, case, n_threads, options)


def installed(makers, case, n_threads, options) -> dict:
    """Name to what is timed, of those who are here and wanted."""
    found = {}
    for name, make in makers.items():
        if name.startswith("fastvq") and options.peers_only:
            continue
        try:
            found[name] = make(case, n_threads)
        except ImportError:
            continue
    return found


# -- measuring -------------------------------------------------------------------------------------


def measure(options: Options) -> dict:
    records = []
    cases = {name: lambda size=size: (Case(*size),) for name, size in CASES.items()}
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for name, case in data.available(cases, options.only):
                for job in JOBS:
                    records += _measure_one(f"{name} {job}", job, case, n_threads, options)
    return {"peak": _peak(options), "records": records}


def _measure_one(label, job, case, n_threads, options):
    calls = bench_runtime.repeated(contestants(job, case, n_threads, options))
    taken = timing.take_turns(
        {name: loop for name, (loop, _) in calls.items()},
        **timing.as_told(options, n_threads, repeats=20, budget=1 / 8),
    )
    new = [
        report.record(
            label, n_threads, name, _of_a_call(one, calls[name][1]), operations=case.operations,
            error=_error(one.answer, case, job, case.any_weight if "any" in name else case.weight),
        )
        for name, one in taken.items()
    ]  # fmt: skip
    report.progress(new)
    return new


def _of_a_call(loops, calls):
    return timing.Timing([seconds / calls for seconds in loops.seconds], loops.answer)


def _error(answer, case, job, weight):
    exact = case.X if job == "integers" else case.real
    exact = exact.astype(np.float64) @ weight.T.astype(np.float64)
    exact = exact if job == "integers" else exact * case.scale
    return float(np.linalg.norm(answer - exact) / np.linalg.norm(exact))


def _peak(options) -> float | None:
    """Operations a second that the level's exact products could reach on one core.

    Four times what float32 multiply-adds reach with VNNI. Elsewhere twice: 16 products of 16 bits
    to an instruction, or with AVX2 32 of 8 bits to two (vpmaddubsw, vpmaddwd).
    """
    if options.peers_only:
        return None
    from fastvq._kernels import load

    return load("peak").multiply_add_peak() * (4 if _has_dot_of_four() else 2)


def _has_dot_of_four():
    from fastvq._kernels import load

    kernel = load("int8")
    return kernel.group(kernel.WHOLE) == 4


def tables(measured: dict) -> str:
    rows, notes, peak = [], [], measured["peak"]
    ratios: dict[str, list[float]] = {}
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        mine = by_name.get("fastvq")
        peers = {name: one for name, one in by_name.items() if not name.startswith("fastvq")}
        if mine is None or not peers:
            continue
        where = f"{case}, {report.threads_text(n_threads)}"
        best = min(peers, key=lambda name: peers[name]["median"])
        ratio = peers[best]["median"] / mine["median"]
        share = mine["operations"] / mine["median"] / (peak * n_threads)
        ratios.setdefault(case.split()[-1], []).append(ratio)
        if ratio < WANTED:
            notes.append(f"{where}: {ratio:.2f}× {best}")
        if mine["operations"] >= LARGE and share < WANTED_PEAK:
            notes.append(f"{where}: {share:.0%} of the peak")
        other = by_name.get("fastvq, any weight")
        if case.endswith("integers") and (mine["error"] or other["error"]):
            notes.append(f"{where}: a WRONG ANSWER")
        rows.append([
            where,
            *(report.seconds_text(one and one["median"])
              for one in map(by_name.get, COLUMNS)),
            report.ratio_text(ratio),
            report.share_text(share),
        ])  # fmt: skip
    header = ["M×N×K", *COLUMNS, "to the fastest", "of the peak"]
    text = report.table(header, rows)
    for job, found in ratios.items():
        text += f"\n\n{job}: geometric mean {report.geometric_mean(found):.2f}× the fastest peer"
        text += f" (wanted: {WANTED_MEAN}×)"
    return text + report.below(notes)


# -- pytest-benchmark ---------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _case(name):
    return Case(*CASES[name])


def pytest_generate_tests(metafunc):
    metafunc.parametrize("job", JOBS)
    metafunc.parametrize("case", CASES, ids=report.id_text)


def test_products(benchmark, case, job, n_threads):
    benchmark.group = f"int8 {case} {job}, {report.threads_text(n_threads)}"
    with timing.thread_limit(n_threads):
        benchmark.pedantic(contestants(job, _case(case), n_threads, Options())["fastvq"], rounds=5)
