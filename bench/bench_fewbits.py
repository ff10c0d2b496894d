"""Dense layers of few bits beside 8-bit integers, floats, and MatMulNBits of onnxruntime.

One row reads every weight once, so bytes decide; rows in batches are bound by arithmetic. All take
float32 rows and give float32, by a call of a whole model. Answers are compared with those of the
weights that each has, in float64: what is left is the rounding of rows to bytes.

LSTMs of few bits multiply integers as those of 8 bits do, or decoded weights in float32: few bits
are to cost no time there.
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
#: rows of a classifier of 28 steps of 28 numbers, 128 units
LSTM_CASES = {f"LSTM, {n} row{'s' * (n > 1)}": n for n in (1, 32, 256)}
STEPS, FEATURES, UNITS, CLASSES = 28, 28, 128, 10
#: for one row; for more
WANTED = {
    "int4 to int8": 1.8, "codebook4 to int8": 1.8, "int4 to MatMulNBits": 1.0, "int4 to AQLM": 5.0,
    "2 bits to 4": 1.3, "6 bits to int8": 1.0,
    "product8 to float32": 1.0, "product4 to float32": 1.0,
}  # fmt: skip
WANTED_ROWS = {"int4 to int8": 0.8, "codebook4 to int8": 0.8, "6 bits to int8": 0.8}
GROUP = 64
OURS_FEW = ("int4", "codebook4", "codebook2", "codebook6", "product8", "product4")
INT8_PEERS = ("onnxruntime int8", "torch int8", "fastvq int8")


class Case:
    """Rows, and a weight of random codes in each form."""

    def __init__(self, m, n, k):
        from fastvq.runtime.codebook import Codebook
        from fastvq.runtime.grouped import Grouped
        from fastvq.runtime.product import Product

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
        for d in (8, 4):
            words = rng.standard_normal((1, 256, d)).astype(np.float16)
            codes, heights = _codes(rng, n, k // d, 8)[:, :, None], scales[:, :1].astype(np.float32)
            self.weights[f"product{d}"] = Product.of((n, k), codes, words, scales=heights)
        words = rng.standard_normal((4, 256, 8)).astype(np.float32)
        codes = rng.integers(0, 256, (n, k // 8, 4), dtype=np.uint8)
        self.weights["AQLM"] = Product.of((n, k), codes, words, scales=heights)

    @property
    def codes(self):
        return self.weights["int4"].row_codes(0, len(self.weights["int4"].scales))

    def exact(self, name):
        """What a contestant should give; who has no weight of its own has that of "int4"."""
        name = name.removeprefix("fastvq ")
        values = self.weights.get(name, self.weights["int4"]).decode()
        return self.real.astype(np.float64) @ values.T.astype(np.float64)


class LstmCase:
    """Rows of steps, and a model of random weights that reads them."""

    def __init__(self, n):
        from fastvq import CompressedModel
        from fastvq.runtime import Graph, Node, Value
        from fastvq.runtime.encoding import Raw

        rng = np.random.default_rng(n)
        shapes = {
            "w": (1, 4 * UNITS, FEATURES), "r": (1, 4 * UNITS, UNITS), "b": (1, 4 * UNITS),
            "dense": (CLASSES, UNITS),
        }  # fmt: skip
        constants = {
            name: Raw((rng.standard_normal(shape) / np.sqrt(UNITS)).astype(np.float32))
            for name, shape in shapes.items()
        }
        nodes = [
            Node("LSTM", ("x", "w", "r", "b"), ("y", "h", "c")),
            Node("Dense", ("h", "dense"), ("classes",)),
        ]
        self.real = rng.standard_normal((n, STEPS, FEATURES), np.float32)
        self.whole = CompressedModel(Graph(
            nodes, [Value("x", "float32", ("N", STEPS, FEATURES))],
            [Value("classes", "float32", ("N", 1, CLASSES))], constants,
        ))  # fmt: skip
        self.operations = 2 * n * STEPS * 4 * UNITS * (FEATURES + UNITS)
        self.quantizers = {}

    def compressed(self, name, settings):
        """The model made smaller; the whole one where there are no settings."""
        from fastvq.compress import ModelQuantizer

        if not settings:
            return self.whole
        self.quantizers[name] = ModelQuantizer(**settings).fit(self.whole, self.real)
        return self.quantizers[name].transform(self.whole)

    def exact(self, name):
        """In float32, of the weights that each has."""
        quantizer = self.quantizers.get(name)
        if quantizer is None:
            return self.whole(self.real)
        return quantizer.inverse_transform(quantizer.transform(self.whole))(self.real)


def lstm(name, **settings):
    def make(case, n_threads):
        model = case.compressed(name, settings)
        return lambda: model(case.real, n_threads=n_threads)

    return make


LSTMS = {
    "fastvq float32": lstm("fastvq float32"),
    "fastvq int8": lstm("fastvq int8", scheme="int8"),
    "fastvq int4, floats": lstm("fastvq int4, floats", scheme="int4", activations="float"),
    "fastvq int4": lstm("fastvq int4", scheme="int4"),
    "fastvq codebook4": lstm("fastvq codebook4", scheme="codebook"),
    "fastvq codebook2": lstm("fastvq codebook2", scheme="codebook", bits=2),
}


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


def aqlm(case, n_threads):
    """AQLM's kernel for CPUs, compiled by numba: four codebooks for 8 values, 4 bits a weight."""
    import numba
    import torch
    from aqlm.inference_kernels.numba_kernel import numba_gemm_lut

    numba.set_num_threads(n_threads)
    weight = case.weights["AQLM"]
    n, k = weight.shape
    codes = weight.row_codes(0, n).reshape(n, k // 8, 4).swapaxes(0, 1)
    codes = torch.from_numpy(np.ascontiguousarray(codes).view(np.int8))
    words = torch.from_numpy(weight.codewords[:, :, None])
    scales = torch.from_numpy(weight.float_scales().reshape(n, 1, 1, 1))
    x = torch.from_numpy(case.real)
    return lambda: numba_gemm_lut(x, codes, words, scales, None).numpy()


CONTESTANTS = {
    "onnxruntime int8": onnxruntime_int8,
    "torch int8": torch_int8,
    "MatMulNBits": onnxruntime_nbits,
    "AQLM": aqlm,
    "fastvq float32": fastvq_float32,
    "fastvq int8": fastvq_int8,
    **{f"fastvq {name}": fastvq_few(name) for name in OURS_FEW},
}


# -- measuring -------------------------------------------------------------------------------------


def measure(options: Options) -> dict:
    records = []
    cases = {name: lambda size=size: (_case(*size),) for name, size in CASES.items()}
    cases |= {name: lambda n=n: (LstmCase(n),) for name, n in LSTM_CASES.items()}
    for n_threads in options.threads:
        with timing.thread_limit(n_threads):
            for name, case in data.available(cases, options.only):
                makers = LSTMS if name in LSTM_CASES else _contestants(n_threads)
                records += _measure_one(name, case, makers, n_threads, options)
    return {"records": records}


def _contestants(n_threads):
    """All, on one thread; on more numba's, which go on spinning, would hold the others' cores."""
    return {name: make for name, make in CONTESTANTS.items() if n_threads == 1 or name != "AQLM"}


def _measure_one(label, case, makers, n_threads, options):
    taken = timing.take_turns(
        bench_int8.installed(makers, case, n_threads, options),
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
    """A table of the dense layers and one of the LSTM, and what is less than is wanted."""
    found = report.by_case(measured["records"])
    dense = {key: each for key, each in found.items() if key[0] in CASES}
    parts = [_table(dense, [*CONTESTANTS], _ratios, "M×N×K")] if dense else []
    lstms = {key: each for key, each in found.items() if key[0] in LSTM_CASES}
    parts += [_table(lstms, [*LSTMS], _lstm_ratios, "")] if lstms else []
    notes = [note for (case, n), by_name in dense.items() for note in _missed(case, n, by_name)]
    return "\n\n".join(parts) + report.below(notes)


def _table(found, names, ratios, first):
    rows = [
        [
            f"{case}, {report.threads_text(n_threads)}",
            *(report.seconds_text(one and one["median"]) for one in map(by_name.get, names)),
            *(report.ratio_text(ratio) if ratio else "" for ratio in ratios(by_name).values()),
        ]
        for (case, n_threads), by_name in found.items()
    ]
    return report.table([first, *names, *ratios({})], rows)


def _ratio(by_name, others, mine):
    """Time of the fastest of others to that of ours; None where one is missing."""
    times = [by_name[name]["median"] for name in others if name in by_name]
    return min(times) / by_name[mine]["median"] if times and mine in by_name else None


def _ratios(by_name):
    return {
        "int4 to int8": _ratio(by_name, INT8_PEERS, "fastvq int4"),
        "codebook4 to int8": _ratio(by_name, INT8_PEERS, "fastvq codebook4"),
        "int4 to MatMulNBits": _ratio(by_name, ["MatMulNBits"], "fastvq int4"),
        "int4 to AQLM": _ratio(by_name, ["AQLM"], "fastvq int4"),
        "2 bits to 4": _ratio(by_name, ["fastvq codebook4"], "fastvq codebook2"),
        "6 bits to int8": _ratio(by_name, INT8_PEERS, "fastvq codebook6"),
        "product8 to float32": _ratio(by_name, ["fastvq float32"], "fastvq product8"),
        "product4 to float32": _ratio(by_name, ["fastvq float32"], "fastvq product4"),
    }


def _lstm_ratios(by_name):
    return {"int4 to int8": _ratio(by_name, ["fastvq int8"], "fastvq int4")}


def _missed(case, n_threads, by_name):
    where = f"{case}, {report.threads_text(n_threads)}"
    wanted = WANTED if case.startswith("1×") else WANTED_ROWS
    for what, ratio in _ratios(by_name).items():
        if ratio and ratio < wanted.get(what, 0):
            yield f"{where}: {what} {ratio:.2f}× of {wanted[what]}×"


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
