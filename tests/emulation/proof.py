"""Run every kernel on fixed rows, hold it to its promises, and print a digest of the results.

    python proof.py [LEVEL]

LEVEL is the level that must have been chosen. Needs NumPy and fastvq only. Every line printed is
`digest NAME SHA-256`, the last one `proved LEVEL`: all levels with fused multiply-add must print
the same digests. The rows are made from integers, so that they are the same everywhere. They have
digits enough for every product to be rounded, so that a missing or a surplus fusion shows. What the
results *should* be is the business of tests/test_kernel_*.py.
"""

import hashlib
import itertools
import sys

import numpy as np

from fastvq import entropy, kernels
from fastvq._kernels import active_level
from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.codebook import Codebook
from fastvq.runtime.encoding import Raw
from fastvq.runtime.fuse import ACTIVATIONS
from fastvq.runtime.grouped import Grouped
from fastvq.runtime.ops import Form, operators

# n, d, k: full and broken blocks of rows, full and broken groups of codewords, at each tile.
SHAPES = [
    *[(97, 1, 5), (97, 2, 16), (97, 3, 17), (97, 5, 63), (49, 8, 256), (65, 13, 31), (50, 16, 33)],
    *[(95, 17, 100), (31, 33, 64), (49, 65, 97), (1, 100, 2), (98, 128, 130)],
]
# Large enough for several threads.
LARGE_SHAPES = [(20_000, 4, 32), (900, 128, 97), (60_000, 16, 3)]
ROW_DTYPES = ["float32", "float64", "float16", "uint8", "int8"]
PRECISIONS = ["float32", "float64"]
LAYOUTS = ["plain", "offset", "groups"]
THREADS = [2, 5]
# Functions that are worked out in float64.
WIDE = (
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
    "normal_quantile",
)


def main(expected=None):
    level = active_level()
    if expected not in (None, level):
        sys.exit(f"level {level} was chosen, not {expected}")
    same_type = [(p, p, layout) for p in PRECISIONS for layout in LAYOUTS]
    mixed = [(t, p, "plain") for t in ROW_DTYPES for p in PRECISIONS if t != p]
    plain = [(p, p, "plain") for p in PRECISIONS]
    for shapes, kinds in [(SHAPES, same_type + mixed), (LARGE_SHAPES, plain)]:
        for shape in shapes:
            print_digests(shape, kinds)
    print_integers()
    print_codes()
    print_layers()
    print("proved", level, flush=True)


def print_integers():
    """Products of 8-bit integers: these digests are the same on every level, fused or not."""
    digest = hashlib.sha256()
    for n, d, k in SHAPES:
        X = (np.arange(n * d).reshape(n, d) * 2654435761 >> 7).astype(np.int8)
        weight = (np.arange(k * d).reshape(k, d) * 40503 >> 3).astype(np.int8)
        real = X.astype(np.float32) / np.float32(7) + np.arange(d, dtype=np.float32)
        scale = np.float32(1) / np.arange(3, k + 3, dtype=np.float32)
        for threads in [1, *THREADS]:
            results = [
                kernels.gemm_int8(X, weight, zero_point=-3, n_threads=threads),
                kernels.gemm_int8(X, weight // 2, zero_point=5, n_threads=threads),
                kernels.gemm_int8(X, weight, multiplier=scale / 999, n_threads=threads),
                kernels.gemm_dynamic(real, weight, scale, bias=scale, n_threads=threads),
            ]
            alone = kernels.gemm_dynamic(real[-1:], weight, scale, bias=scale)
            if alone.tobytes() != results[-1][-1:].tobytes():
                sys.exit(f"integers: a row alone differs, {n, d, k}, {threads} threads")
            for array in results:
                digest.update(array.tobytes())
    print("digest int8", digest.hexdigest(), flush=True)
    print("digest int16", sixteen_bits().hexdigest(), flush=True)


def sixteen_bits():
    """A layer to 16 bits, added to itself, and back to 8: the same on every level, too."""
    constants = {
        "w": (np.arange(37 * 19).reshape(37, 19) * 40503 >> 3).astype(np.int8),
        "m": np.float32(3) / np.arange(5, 42, dtype=np.float32),
        "f": np.float32(1) / np.arange(100, 137, dtype=np.float32),
        "z": np.arange(-18, 19).astype(np.int8),
        "s": np.float32(0.37),
    }
    add = {"a_multiplier": 8191, "b_multiplier": -4000, "shift": 13, "dtype": "int16"}
    nodes = [
        Node("QDense", ["x", "w", "m"], ["a"], {"dtype": "int16", "x_zero_point": -3}),
        Node("QDense", ["x", "w", "m"], ["b"], {"dtype": "int16", "low": 0}),
        Node("QAdd", ["a", "b"], ["c"], add),
        Node("Requantize", ["c", "f", "z"], ["y"]),
        Node("Dequantize", ["c", "s"], ["d"]),
        Node("Quantize", ["d", "m"], ["e"], {"dtype": "int16"}),
    ]
    kinds = {"y": "int8", "d": "float32", "e": "int16"}
    outputs = [Value(name, kind, ("N", 37)) for name, kind in kinds.items()]
    graph = Graph(
        nodes, [Value("x", "int8", ("N", 19))], outputs, {n: Raw(a) for n, a in constants.items()}
    )
    x = (np.arange(501 * 19).reshape(501, 19) * 2654435761 >> 7).astype(np.int8)
    model, digest = CompressedModel(graph), hashlib.sha256()
    for threads in [1, *THREADS]:
        for array in model.run({"x": x}, n_threads=threads):
            digest.update(array.tobytes())
    return digest


def print_codes():
    """Layers and tables of few bits: they, too, multiply integers, and are the same everywhere."""
    products, rows, rng = hashlib.sha256(), hashlib.sha256(), np.random.default_rng(0)
    x, indices = numbers(7, 150), np.arange(-37, 37, 5).reshape(5, 3)
    for weight in codes_of_few_bits(rng, 37, 150):
        dense = layer("CodedDense", (150,), [weight, numbers(37)], {})
        taken = Graph(
            [Node("Gather", ("table", "x"), ("y",))],
            [Value("x", "int64", ("N", 3))],
            [Value("y", "float32", ("N", 3, 150))],
            {"table": weight},
        )
        for graph, inputs, digest in ((dense, x, products), (taken, indices, rows)):
            model = CompressedModel(graph)
            for threads in [1, *THREADS]:
                digest.update(model.run({"x": inputs}, n_threads=threads)[0].tobytes())
    print("digest codes", products.hexdigest(), flush=True)
    print("digest coded-rows", rows.hexdigest(), flush=True)


def codes_of_few_bits(rng, n, width):
    """Of every number of bits that is looked up in registers: even steps, and codewords."""
    for bits in range(1, 8):
        for group in (0, 32):
            groups = -(-width // group) if group else 1
            scales = (rng.integers(1, 99, (n, groups)) / 64).astype(np.float16)
            codes = rng.integers(0, 1 << bits, (n, width))
            zeros = rng.integers(0, 1 << bits, (n, groups)) if group else None
            yield Grouped.of(codes, scales, zeros, bits=bits, group=group, exponent=-2)
            words = np.sort(rng.integers(-42, 86, (1, 1 << bits))).astype(np.int8)
            yield Codebook.of(codes, words, bits=bits, group=group, scales=scales)


def print_layers():
    """Layers of float32 models: each kernel of the runtime at a size with broken tiles."""
    for name, operator, shape, constants, attributes in layers():
        graph = layer(operator, shape, constants, attributes)
        model = CompressedModel(graph)
        x = numbers(7, *shape)
        results = model.run({"x": x}, n_threads=1)
        for threads in THREADS:
            require_same(results, model.run({"x": x}, n_threads=threads), f"{name}, {threads}")
        for row in (0, 6):
            alone = model.run({"x": x[row : row + 1]}, n_threads=1)
            require_same([y[row : row + 1] for y in results], alone, f"{name} of row {row} alone")
        # One NaN for all: its sign is that of the processor.
        canonical = (
            np.where(np.isnan(y), y.dtype.type(np.nan), y) if y.dtype.kind == "f" else y
            for y in results
        )
        digest = hashlib.sha256(b"".join(y.tobytes() for y in canonical))
        print("digest", f"layer-{name}", digest.hexdigest(), flush=True)


def layers():
    """(name, operator, shape of a row, constants, attributes)"""
    for function in ACTIVATIONS:
        yield function, "Unary", (37,), [], {"function": function, "alpha": 0.75, "beta": 1.5}
    dense = [numbers(45, 401), numbers(45)]
    yield "dense", "Dense", (401,), dense, {"activation": "gelu"}
    conv = [numbers(21, 3, 3, 5), numbers(21)]
    yield "conv", "Conv", (9, 11, 5), conv, {"strides": (2, 1), "pads": (1, 1, 1, 1)}
    depthwise = [numbers(19, 3, 3, 1), numbers(19)]
    yield "depthwise", "Conv", (9, 11, 19), depthwise, {"groups": 19, "activation": "sigmoid"}
    yield "pool", "Pool", (9, 11, 19), [], {"function": "average", "kernel": (3, 3)}
    for function in ("sum", "mean", "l1", "l2", "max", "min"):
        for axis in (1, 2):
            name, axes = f"{function}-{axis}", [np.array([axis])]
            yield name, "Reduce", (131, 45), axes, {"function": function}
    for axis in (1, 2):
        yield f"softmax-{axis}", "Softmax", (13, 45), [], {"axis": axis}
    yield "layer-norm", "LayerNorm", (13, 45), [numbers(45), numbers(45)], {}
    for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weights = [numbers(2, gates * 13, 9) / 8, numbers(2, gates * 13, 13) / 8]
        yield name, name, (6, 9), weights, {"direction": "bidirectional"}
        if name != "RNN":
            rows = [(64 * w).reshape(-1, w.shape[-1]).astype(np.int8) for w in weights]
            scales = [np.abs(numbers(2 * gates * 13)) / 64] * 2
            both = {"direction": "bidirectional"}
            yield f"{name}-int8", f"Dynamic{name}", (6, 9), [*rows, *scales], both
    yield "matmul", "MatMul", (13, 45), [numbers(45, 21)], {}
    for metric in ("squared", "euclidean", "manhattan", "chebyshev"):
        yield f"distances-{metric}", "Distances", (45,), [numbers(37, 45)], {"metric": metric}
    yield "transpose", "Transpose", (9, 11, 19), [], {"order": (0, 3, 1, 2)}
    for function in WIDE:
        yield function, "Unary", (37,), [], {"function": function}
    ends, points = np.array([0, 7, 8, 45]), np.sort(numbers(45))
    yield "curves", "Interpolate", (3,), [ends, points, numbers(45)], {}
    yield "pairs", "Couple", (15,), [], {}  # no probabilities, but every step of the descent
    yield "top-k", "TopK", (13, 45), [np.array([7])], {"axis": 1}
    yield "running-sum", "CumSum", (13, 45), [np.array(1)], {"exclusive": True}
    pads = np.array([0, 2, 1, 0, 0, 3, 0, 0])
    yield "reflected", "Pad", (9, 11, 19), [pads], {"mode": "reflect"}


def layer(operator, shape, constants, attributes):
    """A graph of one node on rows x of that shape."""
    names = [f"c{i}" for i in range(len(constants))]
    inputs = [np.empty((2, *shape), np.float32), *constants]
    coded = [not isinstance(a, np.ndarray) for a in inputs]
    forms = operators()[operator].forms(
        [
            Form(a.shape, a.dtype, a if i and not c else None)
            for i, (a, c) in enumerate(zip(inputs, coded, strict=True))
        ],
        attributes,
    )
    outputs = [f"y{i}" for i in range(len(forms))]
    return Graph(
        [Node(operator, ("x", *names), outputs, attributes)],
        [Value("x", "float32", ("N", *shape))],
        [Value(n, f.dtype.name, ("N", *f.shape[1:])) for n, f in zip(outputs, forms, strict=True)],
        {
            name: Raw(a) if isinstance(a, np.ndarray) else a
            for name, a in zip(names, constants, strict=True)
        },
    )


def numbers(*shape):
    """float32 with all of their digits, the same everywhere."""
    count = int(np.prod(shape))
    whole = np.random.default_rng([count, *shape]).integers(-(2**23), 2**23, shape)
    return (whole / 2**21).astype(np.float32)


def print_digests(shape, kinds):
    digests = {}
    for dtype, precision, layout in kinds:
        X, codebook = data(*shape, dtype, precision, layout)
        where = f"{shape}, {dtype} rows, {precision} codebook, {layout}"
        for kernel, results in itertools.chain(
            run_by_row(X, codebook, where),
            run_over_rows(X, codebook, where),
            run_search(X, codebook, where),
        ):
            digest = digests.setdefault(kernel, hashlib.sha256())
            for array in results:
                digest.update(array.tobytes())
    for kernel, digest in digests.items():
        print("digest", "-".join([kernel, *map(str, shape)]), digest.hexdigest(), flush=True)


def data(n, d, k, dtype, precision, layout):
    """Rows, and a codebook that holds one codeword twice and is near by or on some rows."""
    rng = np.random.default_rng([n, d, k])
    if dtype.startswith("float"):
        # Far from the origin, or in two groups far apart, an expansion of squares would cancel.
        far = {"plain": 0, "offset": 2048, "groups": 2048 * (-1) ** np.arange(n + k)}[layout]
        X = rng.integers(-(2**52), 2**52, (n + k, d)) / 2**50 + np.reshape(far, (-1, 1))
    else:
        limits = np.iinfo(dtype)
        X = rng.integers(limits.min, limits.max + 1, (n + k, d))
    X = X.astype(dtype)
    codebook = X[n:].astype(precision)
    codebook[-1] = codebook[0]
    X[:n:11] = X[n]
    return X[:n], codebook


def run_by_row(X, codebook, where):
    """Name and results of kernels whose result for a row must depend on the row alone."""
    prepared = kernels.prepare(codebook)
    codes = kernels.assign(X, prepared)
    everything = np.arange(len(X))
    low, high = (ends.astype(np.float64) for ends in kernels.extremes(X))
    scale = np.maximum(high - low, 1) / 1000
    features = np.arange(X.shape[1])
    steps = kernels.Steps(scale, -low / scale, 0 * features, 0 * features + 1000, codebook.dtype)
    levels = kernels.Levels(np.sort(codebook.T), features)
    middle = max(1, X.shape[1] // 3)
    halves = kernels.prepare_subspaces(
        [part for part in (codebook[:, :middle], codebook[:, middle:]) if part.size]
    )
    stages = kernels.Stages(stage_codebooks(codebook))
    for name, kernel in {
        "assign": lambda rows, **options: (kernels.assign(X, prepared, rows=rows, **options),),
        "assign_two": lambda rows, **options: kernels.assign_two(X, prepared, rows=rows, **options),
        "distances": lambda rows, **options: (
            kernels.distances(X, prepared, codes[rows], rows=rows, **options),
        ),
        "row_norms": lambda rows, **options: (kernels.row_norms(X, rows=rows, **options),),
        "scalar": lambda rows, **options: scalar(X[rows], steps, levels, **options),
        "rotate": lambda rows, **options: (kernels.rotate(X[rows], codebook.T, **options),),
        "assign_subspaces": lambda rows, **options: (
            kernels.assign_subspaces(X[rows], halves, **options),
        ),
        "sums_of_codewords": lambda rows, **options: sums_of_codewords(X[rows], stages, **options),
    }.items():
        results = kernel(everything, n_threads=1)
        for threads in THREADS:
            others = kernel(everything, n_threads=threads)
            require_same(results, others, f"{name} with {threads} threads: {where}")
        backwards = [array[::-1] for array in kernel(everything[::-1], n_threads=1)]
        require_same(results, backwards, f"{name} of rows in another order: {where}")
        for row in {0, len(X) // 3, len(X) - 1}:
            alone = kernel(np.array([row]), n_threads=1)
            row_of_batch = [array[[row]] for array in results]
            require_same(row_of_batch, alone, f"{name} of row {row} alone: {where}")
        yield name, results


def scalar(X, steps, levels, **options):
    """Codes and values of even steps and of levels, and codes as bits."""
    even = kernels.encode_even(X, steps, **options)
    nearest = kernels.encode_levels(X, levels, **options)
    return (
        even,
        kernels.decode_even(even, steps, **options),
        nearest,
        kernels.decode_levels(nearest, levels, **options),
        kernels.pack_codes(even, [11] * X.shape[1], **options),
    )


def stage_codebooks(codebook):
    """Three codebooks of so few digits that what NumPy makes of them is exact everywhere."""
    size = 1 << (len(codebook).bit_length() - 1)
    book = np.round(codebook[:size] * 4) / 4
    return [book, book[::-1] / 4, book[: max(2, size // 4)] / 16]


def sums_of_codewords(X, stages, **options):
    """Codes by beam search and by local search, what they stand for, and how far that is."""
    codes = kernels.beam_search(X, stages, beam_width=3, n_out=2, **options)
    better = codes[:, 0].copy()
    if stages.crossed is not None:
        jumps = np.array([[[0, 1], [2, 0]], [[1, 1], [0, 0]]], np.int32)
        better = kernels.local_search(X, stages, better, jumps, **options)
    return (
        codes,
        better,
        np.stack(kernels.stage_values(X, stages, **options)[:2], axis=1),
        kernels.decode_sums(better, stages.joined, **options),
        kernels.distances_to_sums(X, stages.joined, better, scale=stages.scale, **options),
    )


def entropy_coded(codes, **options):
    """Bytes of rANS, and the symbols again."""
    data = entropy.encode(codes, **options)
    return np.frombuffer(data, np.uint8), entropy.decode(data, **options)


def run_over_rows(X, codebook, where):
    """Name and results of kernels that add up rows, in an order that threads must not change."""
    codes = kernels.assign(X, codebook)
    closest = kernels.pairwise(X, codebook[:1])[:, 0]
    weight = np.random.default_rng(len(X)).integers(0, 2**53, len(X)) / 2**53

    def seed_update(**options):
        lowered = closest.copy()
        codes = np.zeros(len(X), np.int32)
        kernels.seed_update(X, codebook[1], lowered, nearest=codes, code=1, **options)
        return lowered, codes

    for name, kernel in {
        "pairwise": lambda **options: (kernels.pairwise(X[:2000], codebook[:40], **options),),
        "sums": lambda **options: kernels.sums(
            X, codes, len(codebook), sample_weight=weight, **options
        ),
        "seed_gains": lambda **options: (
            kernels.seed_gains(X, codebook[:9], closest, sample_weight=weight, **options),
        ),
        "seed_update": seed_update,
        "rans": lambda **options: entropy_coded(codes, **options),
        "extremes": lambda **options: kernels.extremes(X, **options),
        # Its sums are kept in pairs of float64, so that every level cuts alike.
        "optimal_codebook": lambda **options: (
            kernels.optimal_codebook(
                np.ascontiguousarray(X[:3000, 0], codebook.dtype), len(codebook)
            ),
        ),
    }.items():
        results = kernel(n_threads=1)
        for threads in THREADS:
            others = kernel(n_threads=threads)
            require_same(results, others, f"{name} with {threads} threads: {where}")
        yield name, results


def run_search(X, codebook, where):
    """Name and results of the kernels of search: threads and company must not change them."""
    rng = np.random.default_rng(X.shape)
    queries = np.ascontiguousarray(X[:11], np.float32)
    values = np.ascontiguousarray(codebook, np.float32).ravel()
    places = np.array([[0, X.shape[1], len(codebook)]])
    tables = {
        products: kernels.subspace_tables(queries, values, places, products=products)
        for products in (False, True)
    }
    codes = rng.integers(0, 16, (3000, 21)).astype(np.uint8)
    entries = rng.integers(-(2**23), 2**23, (len(queries), 21, 16)).astype(np.float32) / 2**20
    scale, offset = (rng.integers(1, 2**23, (2, 3000)) / 2**22).astype(np.float32)
    packed, words = kernels.pack_short(codes), codes[:, :16] * np.uint8(17)
    for name, kernel in {
        "nearest_by_tables": lambda some, **options: kernels.nearest_by_tables(
            codes, entries[some].reshape(-1, 336), [16] * 21, 20, scale=scale, offset=offset,
            **options,
        ),
        "nearest_by_short_tables": lambda some, **options: kernels.nearest_by_short_tables(
            packed, 3000, entries[some], 20, **options
        ),
        "nearest_by_bits": lambda some, **options: kernels.nearest_by_bits(
            words, words[some], 20, **options
        ),
    }.items():  # fmt: skip
        everything = np.arange(len(queries))
        results = kernel(everything, n_threads=1)
        for threads in THREADS:
            others = kernel(everything, n_threads=threads)
            require_same(results, others, f"{name} with {threads} threads: {where}")
        alone = kernel(everything[-1:], n_threads=1)
        require_same([part[-1:] for part in results], alone, f"{name} of one query: {where}")
        yield name, results
    yield "subspace_tables", tuple(tables.values())


def require_same(results, others, what):
    """Fail unless all arrays are the same, bit for bit."""
    if [array.tobytes() for array in results] != [array.tobytes() for array in others]:
        sys.exit(f"other bits from {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
