"""Dense layers of few bits beside 8-bit integers, floats, and MatMulNBits of onnxruntime.

One row reads every weight once, so bytes decide; rows in batches are bound by arithmetic. All take
float32 rows and give float32, by a call of a whole model. Answers are compared with those of the
weights that each has, in float64: what is left is the rounding of rows to bytes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bench import bench_int8, data, report, sessions, timing
from bench.options import Options

#: rows, outputs, inputs
CASES = {
    f"{m}×{n}×{k}": (m, n, k)
    for m, n, k in [(1, 4096, 4096), (1, 4096, 16384), (8, 4096, 4096), (64, 4096, 4096)]
}
#: of our 4 bits for one row: to the best peer with 8 bits, to MatMulNBits
WANTED_INT8, WANTED_NBITS = 1.8, 1.0
GROUP = 64
OURS_FEW = ("int4", "codebook4", "codebook2", "codebook6")
INT8_PEERS = ("onnxruntime int8", "torch int8", "fastvq int8")


class Case:
    """Rows, and a weight of random codes in each form."""

    def __init__(self, m, n, k):
        from fastvq.runtime.codebook import Codebook
        from fastvq.runtime.grouped import Grouped

        rng = np.random.default_rng(m + n + k)
        self.real = rng.standard_normal((m, k), np.float32)
        self.operations = 2 * m * n * k
        scales = rng.uniform(0.01, 0.02, (n, k // GROUP)).astype(np.float16)
        settings = {"scales": scales, "group": GROUP}
        self.weights = {"int4": Grouped.of(_codes(rng, n, k, 4), bits=4, **settings)}
        for bits in (2, 4, 6):
            most = 15 if bits == 2 else 63
            words = np.linspace(-most, most, 1 << bits) ** 3 / most**2
            words = np.rint(words).astype(np.int8)[None]
            self.weights[f"codebook{bits}"] = Codebook.of(
                _codes(rng, n, k, bits), words, **settings
            )

    @property
    def codes(self):
        return self.weights["int4"].row_codes(0, len(self.weights["int4"].scales))

    def exact(self, name):
        """What a contestant should give; the peers have the weight of "int4"."""
        name = name.removeprefix("fastvq ")
        values = self.weights[name if name in OURS_FEW else "int4"].decode()
        return self.real.astype(np.float64) @ values.T.astype(np.float64)


def _codes(rng, n, k, bits):
    return rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)


# -- contestants -----------------------------------------------------------------------------------


def _fastvq(weight, operator, n_threads, x, *more):
    from fastvq import CompressedModel
    from fastvq.runtime import Graph, Node, Value

    constants = {"w": weight, **{f"more{i}": each for i, each in enumerate(more)}}
    graph = Graph(
        [Node(operator, ("x", *constants), ("y",))],
        [Value("x", "float32", ("N", x.shape[1]))],
        [Value("y", "float32", ("N", weight.shape[0]))],
        constants,
    )
    model = CompressedModel(graph, n_threads=n_threads)
    return lambda: model(x)


def fastvq_few(name):
    def make(case, n_threads):
        return _fastvq(case.weights[name], "CodedDense", n_threads, case.real)

    return make


def fastvq_float32(case, n_threads):
    return _fastvq(case.weights["int4"], "Dense", n_threads, case.real)


def _int8_of(case):
    """The weight as 8-bit integers: of 4 bits times scales that differ, so not the same values."""
    from fastvq.compress.schemes.int8 import rounded_rows

    return rounded_rows(case.weights["int4"].decode())


def fastvq_int8(case, n_threads):
    from fastvq.runtime.encoding import Raw

    values, scales = _int8_of(case)
    return _fastvq(Raw(values), "DynamicDense", n_threads, case.real, Raw(scales))


class _Int8Case:
    """What bench_int8's contestants take."""

    def __init__(self, case):
        self.weight, self.scale = _int8_of(case)
        self.real = case.real


def onnxruntime_int8(case, n_threads):
    return bench_int8.onnxruntime_floats(_Int8Case(case), n_threads)


def torch_int8(case, n_threads):
    return bench_int8.torch_floats(_Int8Case(case), n_threads)


def onnxruntime_nbits(case, n_threads):
    """MatMulNBits with rows as bytes (accuracy_level 4), its fastest."""
    from onnx import TensorProto, helper

    codes, weight = case.codes, case.weights["int4"]
    n, k = codes.shape
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(n, k // GROUP, GROUP // 2)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=k, N=n, bits=4, block_size=GROUP, accuracy_level=4,
    )  # fmt: skip
    constants = {"w": packed, "s": weight.scales.astype(np.float32).ravel()}
    kinds = TensorProto.FLOAT, TensorProto.FLOAT
    opsets = [("com.microsoft", 1)]
    run = sessions.onnxruntime_product([node], kinds, constants, n_threads, opsets)
    return lambda: run(case.real)


CONTESTANTS = {
    "onnxruntime int8": onnxruntime_int8,
    "torch int8": torch_int8,
    "MatMulNBits": onnxruntime_nbits,
    "fastvq float32": fastvq_float32,
    "fastvq int8": fastvq_int8,
    **{f"fastvq {name}": fastvq_few(name) for name in OURS_FEW},
}


# -- measuring -------------------------------------------------------------------------------------


def measure(options: Options) -> dict:
    records = []
    cases = {name: lambda size=size: (_case(*size),) for name, size in CASES.items()}
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for name, case in data.available(cases, options.only):
                records += _measure_one(name, case, n_threads, options)
    return {"records": records}


def _measure_one(label, case, n_threads, options):
    taken = timing.take_turns(
        bench_int8.installed(CONTESTANTS, case, n_threads, options),
        **timing.as_told(options, n_threads, repeats=10, budget=1 / 4),
    )
    new = []
    for name, one in taken.items():
        exact = case.exact(name)
        error = float(np.linalg.norm(one.answer - exact) / np.linalg.norm(exact))
        new.append(
            report.record(label, n_threads, name, one, operations=case.operations, error=error)
        )
    report.progress(new)
    return new


def tables(measured: dict) -> str:
    rows, notes = [], []
    names = [*CONTESTANTS]
    for (case, n_threads), by_name in report.by_case(measured["records"]).items():
        mine = by_name.get("fastvq int4")
        if mine is None:
            continue
        where = f"{case}, {report.threads_text(n_threads)}"
        peers = [by_name[name]["median"] for name in INT8_PEERS if name in by_name]
        to_int8 = min(peers) / mine["median"]
        nbits = by_name.get("MatMulNBits")
        to_nbits = nbits and nbits["median"] / mine["median"]
        if case.startswith("1×") and to_int8 < WANTED_INT8:
            notes.append(f"{where}: {to_int8:.2f}× the best 8-bit integers")
        if case.startswith("1×") and nbits and to_nbits < WANTED_NBITS:
            notes.append(f"{where}: {to_nbits:.2f}× MatMulNBits")
        rows.append([
            where,
            *(report.seconds_text(one and one["median"]) for one in map(by_name.get, names)),
            report.ratio_text(to_int8),
            report.ratio_text(to_nbits) if nbits else "",
        ])  # fmt: skip
    header = ["M×N×K", *names, "int4 to int8", "int4 to MatMulNBits"]
    text = report.table(header, rows)
    return text + report.below(notes)


# -- pytest-benchmark ---------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _case(m, n, k):
    return Case(m, n, k)


def pytest_generate_tests(metafunc):
    metafunc.parametrize("name", OURS_FEW)
    metafunc.parametrize("case", CASES, ids=report.id_text)


def test_few_bits(benchmark, name, case, n_threads):
    benchmark.group = f"few bits {case}, {report.threads_text(n_threads)}"
    with timing.thread_limit(n_threads):
        found = fastvq_few(name)(_case(*CASES[case]), n_threads)
        benchmark.pedantic(found, rounds=5)
