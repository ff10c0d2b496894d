"""Lowerings of layers of 8-bit integers."""

from __future__ import annotations

import math

import numpy as np

from fastvq._dots import Packed
from fastvq.runtime.definitions.integers import window
from fastvq.runtime.definitions.recurrent import byte_rows
from fastvq.runtime.registry import KernelCall, lowering, module, workers

# As in _kernels/int8.h.
_FROM_INT8, _FROM_FLOAT, _FROM_PATCHES = range(3)
_TO = {"int32": 0, "int8": 1, "float32": 2, "int16": 3}
# Multiply-adds, or values of pointwise work, that a second thread must bring (waking one: 5 us).
_THREAD_PRODUCTS, _THREAD_VALUES = 1 << 20, 1 << 16
# As in _kernels/int16.pyx: what becomes what, and values that constants are repeated for.
_WIDE = {("int16", "int8"): 0, ("float32", "int16"): 1, ("int16", "float32"): 2}
_SPAN = 512


def _known(*tensors):
    return all(t is None or t.known for t in tensors)


def _value(tensor):
    return None if tensor is None else tensor.value


def _padded(inputs, n):
    return [*inputs, *[None] * n][:n]


class _Layer:
    """What a layer's kernel reads beside its input."""

    def __init__(self, weight, groups, zero_point, multiplier, bias, table):
        self.packed = packed = Packed(weight.reshape(groups, len(weight) // groups, -1))
        self.form = packed.form
        # A layer that quantizes its input has no zero point before it runs, and a float bias.
        self.start = None if zero_point is None else packed.start(zero_point, bias)
        bias = None if bias is None or zero_point is not None else bias
        self.operands = [
            *packed.operands,
            packed.column_sums,
            self.start,
            packed.per_column(multiplier, np.float32),
            None if bias is None else packed.per_column(bias, np.float32),
            table,
        ]


class _Depthwise:
    """The same for a filter a channel: taps in rows, nothing raised by an offset."""

    def __init__(self, weight, zero_point, multiplier, bias, table):
        kernel = module("int8")
        self.form = kernel.WHOLE
        channels = len(weight)
        taps = weight.reshape(channels, *_height_and_width(weight.shape[1:-1]))
        room = -(-channels // kernel.COLUMNS) * kernel.COLUMNS
        packed = np.empty(kernel.tap_words(*taps.shape[1:], channels), np.int32)
        kernel.pack_taps(np.ascontiguousarray(taps), packed)
        sums = taps.sum(axis=(1, 2), dtype=np.int64)

        def per_channel(values, dtype):
            out = np.zeros(room, dtype)
            out[:channels] = values
            return out

        start = None
        if zero_point is not None:
            total = (0 if bias is None else bias.astype(np.int64)) - zero_point * sums
            start = per_channel(total.astype(np.uint32).view(np.int32), np.int32)
            bias = None
        self.operands = [
            *(packed, None, None),
            per_channel(sums, np.int32),
            start,
            per_channel(multiplier, np.float32),
            None if bias is None else per_channel(bias, np.float32),
            table,
        ]


def _height_and_width(kernel):
    """Of a window; one dimension is a picture of height 1."""
    return kernel if len(kernel) == 2 else (1, *kernel)


def _bounds(attributes, dtype=np.int8):
    """Bounds of what a layer gives: steps of dtype, or values where an activation cuts them off."""
    activation = attributes.get("activation", "identity")
    if activation == "relu":
        return [0.0, math.inf]
    if activation == "clip":
        return [attributes.get("alpha", 0.0), attributes.get("beta", 0.0)]
    if "activation" in attributes or attributes.get("dtype") == "float32":
        return [-math.inf, math.inf]
    return _step_bounds(attributes, dtype)


def _step_bounds(attributes, dtype):
    limits = np.iinfo(dtype)
    low, high = attributes.get("low", limits.min), attributes.get("high", limits.max)
    return [max(low, limits.min), min(high, limits.max)]


def _layer_of(plan, node, inputs, dynamic, groups=1, depthwise=False):
    """The packed layer of a node; None where a constant is none."""
    _, weight, multiplier, bias, table = _padded(inputs, 5)
    if not _known(weight, multiplier, bias, table):
        return None
    zero_point = None if dynamic else node.attributes.get("x_zero_point", 0)
    settings = zero_point, _value(multiplier), _value(bias), _value(table)

    def make(tensor):
        values = tensor.value
        return _Depthwise(values, *settings) if depthwise else _Layer(values, groups, *settings)

    return plan.packed(weight, f"int8 for {node.name}", make)


@lowering("QDense", "DynamicDense")
def dense(node, inputs, outputs, plan):
    dynamic = node.operator == "DynamicDense"
    x, weight = inputs[:2]
    if 0 in (*x.shape, *weight.shape):
        return None
    layer = _layer_of(plan, node, inputs, dynamic)
    if layer is None:
        return None
    n, k = weight.shape
    return [_rows_call(node, x, outputs[0], layer, plan, [x.size // k, k, n], dynamic)]


def _rows_call(node, x, y, layer, plan, sizes, dynamic=False):
    m, k, n = sizes
    threads = workers(plan, m * n * k, _THREAD_PRODUCTS)
    size = module("int8").scratch_bytes(layer.form, m, k)
    start = _FROM_FLOAT if dynamic else _FROM_INT8
    return KernelCall(
        "int8.rows",
        [x, *layer.operands, y, plan.scratch(threads * size)],
        [
            *(
                start,
                _TO[y.dtype.name],
                m,
                k,
                n,
                1,
                k,
                n,
                node.attributes.get("y_zero_point", 0),
                0,
            ),
            layer.form,
        ],
        _bounds_of(node, y),
        threads,
    )


def _bounds_of(node, y):
    if node.operator.startswith("Dynamic"):
        return _bounds({"activation": "identity", **node.attributes})
    return _bounds(node.attributes, y.dtype if y.dtype.kind == "i" else np.int8)


def _wide_steps(plan, x, factor, zero_point, y, x_zero_point=0):
    """A call of int16.steps: factor and zero point are one for all, or one for each channel."""
    channels = max(np.size(factor), np.size(zero_point))
    span = channels * max(1, _SPAN // channels)
    return KernelCall(
        "int16.steps",
        [
            x,
            np.resize(np.broadcast_to(np.ravel(factor), channels), span).astype(np.float32),
            np.resize(np.broadcast_to(np.ravel(zero_point), channels), span).astype(np.int32),
            y,
        ],
        [_WIDE[x.dtype.name, y.dtype.name], y.size, span, x_zero_point],
        threads=workers(plan, y.size, _THREAD_VALUES),
    )


@lowering("QConv", "DynamicConv")
def convolution(node, inputs, outputs, plan):
    dynamic = node.operator == "DynamicConv"
    (x, weight), y = inputs[:2], outputs[0]
    attributes = node.attributes
    groups = attributes.get("groups", 1)
    if 0 in (*x.shape, *weight.shape, *y.shape):
        return None
    depthwise = weight.shape[-1] == 1 and groups == weight.shape[0]
    layer = _layer_of(plan, node, inputs, dynamic, groups, depthwise)
    if layer is None:
        return None
    places, columns = y.size // weight.shape[0], weight.shape[0] // groups
    width = math.prod(weight.shape[1:])
    calls, pictures = [], [None, None]
    if dynamic:
        x, calls, pictures = _quantized(x, plan)
    if not depthwise and not dynamic and _is_dense(x, weight, attributes, groups):
        return [_rows_call(node, x, y, layer, plan, [places, width, columns])]
    threads = workers(plan, y.size * width, _THREAD_PRODUCTS)
    kernel = module("int8")
    if depthwise:
        columns, groups = weight.shape[0], 1
        stride = [1, *attributes.get("strides", ())][-1]
        size = kernel.depthwise_scratch(*_height_and_width(weight.shape[1:-1]), columns, stride)
    else:
        size = kernel.scratch_bytes(layer.form, places, width)
    padding = 0 if dynamic else attributes.get("x_zero_point", 0)
    sizes = [_FROM_PATCHES, _TO[y.dtype.name], places, width, columns, groups, 0, weight.shape[0]]
    calls.append(
        KernelCall(
            "int8.depthwise" if depthwise else "int8.patches",
            [x, *layer.operands, y, plan.scratch(threads * size), *pictures],
            [
                *sizes,
                attributes.get("y_zero_point", 0),
                padding,
                layer.form,
                *_window_sizes(x.shape, y.shape, weight.shape[1:-1], attributes),
            ],
            _bounds_of(node, y),
            threads,
        )
    )
    return calls


def _is_dense(x, weight, attributes, groups):
    """Whether a convolution is the same product at every place."""
    return (
        math.prod(weight.shape[1:-1]) == groups == 1
        and set(attributes.get("strides", ())) <= {1}
        and not any(attributes.get("pads", ()))
    )


def _quantized(x, plan):
    """Pictures of floats as int8: where they will lie, the calls for it, scale and zero point."""
    n = x.shape[0]
    codes = plan.scratch(x.size)
    scale, zero_point = plan.scratch(4 * n), plan.scratch(4 * n)
    codes.shape = x.shape  # so many bytes as there are values
    call = KernelCall(
        "int8.quantize_rows",
        [x, codes, scale, zero_point],
        [n, x.size // n, x.size // n],
        threads=workers(plan, x.size, _THREAD_VALUES, tasks=n),
    )
    return codes, [call], [scale, zero_point]


def _window_sizes(shape, out_shape, kernel, attributes):
    """struct Window of _kernels/int8.h; one dimension is a picture of height 1."""
    strides, dilations, pads, _ = window(
        shape, kernel, *(attributes.get(name, ()) for name in ("strides", "dilations", "pads"))
    )
    n = len(kernel)
    first = pads[:n]
    inner, out = shape[1:-1], out_shape[1:-1]
    if n == 1:
        inner, out, kernel = (1, *inner), (1, *out), (1, *kernel)
        strides, dilations, first = (1, *strides), (1, *dilations), (0, *first)
    return [*inner, shape[-1], *out, *kernel, *strides, *dilations, *first]


@lowering("QMatMul")
def matmul(node, inputs, outputs, plan):
    (a, b), y, attributes = inputs, outputs[0], node.attributes
    if attributes.get("b_zero_point", 0) or 0 in (*a.shape, *b.shape, *y.shape):
        return None  # the sums of a's rows would be needed
    m, k, n = a.shape[-2], a.shape[-1], y.shape[-1]
    batch = y.shape[:-2]
    pairs = [
        np.broadcast_to(np.arange(math.prod(t.shape[:-2])).reshape(t.shape[:-2]), batch).ravel()
        for t in (a, b)
    ]
    pairs = np.ascontiguousarray(np.stack(pairs, axis=1), np.int64)
    columns = module("int8").COLUMNS
    multiplier = np.full(-(-n // columns) * columns, attributes["multiplier"], np.float32)
    threads = workers(plan, len(pairs) * m * n * k, _THREAD_PRODUCTS, len(pairs))
    room = module("int8").matmul_scratch(m, n, k)
    steps = [k, 1] if attributes.get("transpose_b", False) else [1, n]
    return [
        KernelCall(
            "int8.matmul",
            [a, b, *[None] * 4, multiplier, None, None, y, plan.scratch(threads * room), pairs],
            [
                *(_FROM_INT8, _TO[y.dtype.name], m, k, n, 1, k, n),
                *(attributes.get("y_zero_point", 0), 0, module("int8").WHOLE, *steps),
                *(attributes.get("a_zero_point", 0), len(pairs), room),
            ],
            _bounds(attributes),
            threads,
        )
    ]


@lowering("Quantize", "Dequantize")
def quantize(node, inputs, outputs, plan):
    x, scale, zero_point = _padded(inputs, 3)
    y, name = outputs[0], node.operator.lower()
    if not _known(scale, zero_point) or not x.size:
        return None
    if np.int16 in (x.dtype, y.dtype):
        zeros = 0 if zero_point is None else zero_point.value
        return [_wide_steps(plan, x, scale.value, zeros, y)]
    wanted = (np.float32, np.int8) if name == "quantize" else (np.int8, np.float32)
    if (x.dtype, y.dtype) != wanted:
        return None
    channels = max(scale.size, 1 if zero_point is None else zero_point.size)
    scales = np.full(channels, scale.value.ravel(), np.float32)
    zeros = np.full(channels, 0 if zero_point is None else zero_point.value.ravel(), np.int32)
    if channels > 1:  # side by side as often as fills vectors: three colours leave them empty
        most, rows = max(1, _SPAN // channels), x.size // channels
        repeats = next(n for n in range(most, 0, -1) if rows % n == 0)
        scales, zeros, channels = (
            np.tile(scales, repeats),
            np.tile(zeros, repeats),
            repeats * channels,
        )
    return [
        KernelCall(
            f"int8_layers.{name}",
            [x, scales, zeros, y],
            [x.size // channels, channels],
            threads=workers(plan, x.size, _THREAD_VALUES),
        )
    ]


@lowering("Requantize")
def requantize(node, inputs, outputs, plan):
    x, multiplier, zero_point = _padded(inputs, 3)
    if not _known(multiplier, zero_point):
        return None
    zeros = 0 if zero_point is None else zero_point.value
    point = node.attributes.get("x_zero_point", 0)
    return [_wide_steps(plan, x, multiplier.value, zeros, outputs[0], point)]


@lowering("QTable")
def table(node, inputs, outputs, plan):
    x, values = inputs
    if values.dtype != np.int8:
        return None
    threads = workers(plan, x.size, _THREAD_VALUES)
    return [KernelCall("int8_layers.table", [x, values, outputs[0]], [x.size], threads=threads)]


@lowering("QAdd")
def add(node, inputs, outputs, plan):
    operands = [
        (t, node.attributes[f"{name}_multiplier"], node.attributes.get(f"{name}_zero_point", 0))
        for name, t in zip("ab", inputs, strict=True)
    ]
    # Which comes first makes no difference, and the kernel takes a wide one first.
    (a, ma, za), (b, mb, zb) = sorted(operands, key=lambda operand: -operand[0].dtype.itemsize)
    y = outputs[0]
    bounds = _step_bounds(node.attributes, y.dtype)
    sizes = [y.size, ma, mb, node.attributes["shift"], za, zb]
    sizes += [node.attributes.get("y_zero_point", 0), *bounds]
    sizes += [int(t.dtype == np.int16) for t in (a, b, y)]
    threads = workers(plan, y.size, _THREAD_VALUES)
    return [KernelCall("int8_layers.add", [a, b, y], sizes, threads=threads)]


@lowering("QPool")
def pool(node, inputs, outputs, plan):
    x, y, attributes = inputs[0], outputs[0], node.attributes
    kernel = tuple(attributes.get("kernel", ())) or x.shape[1:-1]
    places = y.size // y.shape[-1] if y.size else 0
    if not places:
        return None
    work = places * math.prod(kernel) * x.shape[-1]
    threads = workers(plan, work, _THREAD_VALUES, tasks=places)
    tasks = 1 if threads == 1 else min(places, 4 * threads)
    return [
        KernelCall(
            "int8_layers.pool",
            [x, y, plan.scratch(4 * tasks * x.shape[-1])],
            [
                *_window_sizes(x.shape, y.shape, kernel, attributes),
                int(attributes["function"] == "average"),
                int(attributes.get("count_padding", False)),
                attributes.get("x_zero_point", 0),
                attributes.get("y_zero_point", 0),
                *(places, tasks),
            ],
            [attributes.get("multiplier", 1.0)],
            threads,
        )
    ]


# As in _kernels/int8_recurrent.h.
_LSTM, _GRU, _GRU_LINEAR = range(3)


@lowering("DynamicLSTM")
def lstm(node, inputs, outputs, plan):
    x, weight, recurrent, scale, recurrent_scale, bias, lengths, h0, c0 = _padded(inputs, 9)
    matrices = weight, recurrent, scale, recurrent_scale, bias, None
    return _recurrent(node, _LSTM, 4, x, matrices, lengths, (h0, c0), outputs, plan)


@lowering("CodedLSTM")
def coded_lstm(node, inputs, outputs, plan):
    x, weight, recurrent, bias, lengths, h0, c0 = _padded(inputs, 7)
    matrices = weight, recurrent, None, None, bias, None
    return _recurrent(node, _LSTM, 4, x, matrices, lengths, (h0, c0), outputs, plan)


@lowering("DynamicGRU")
def gru(node, inputs, outputs, plan):
    x, *matrices, lengths, h0 = _padded(inputs, 9)
    return _recurrent(node, _gru(node), 3, x, matrices, lengths, (h0, None), outputs, plan)


@lowering("CodedGRU")
def coded_gru(node, inputs, outputs, plan):
    x, weight, recurrent, *biases, lengths, h0 = _padded(inputs, 7)
    matrices = weight, recurrent, None, None, *biases
    return _recurrent(node, _gru(node), 3, x, matrices, lengths, (h0, None), outputs, plan)


def _gru(node):
    return _GRU_LINEAR if node.attributes.get("linear_before_reset", False) else _GRU


def _byte_rows(weight, scale):
    """int8 rows and their scales; of floats those that they are rounded to."""
    return byte_rows(weight.value) if scale is None else (weight.value, scale.value)


class _Gates:
    """A recurrent weight (D · gates · H, H), each gate a group of its own."""

    def __init__(self, weight, scale, groups, bias):
        self.packed = packed = Packed(weight.reshape(groups, -1, weight.shape[1]))
        self.operands = [
            *packed.operands,
            packed.column_sums,
            packed.per_column(scale, np.float32),
            None if bias is None else packed.per_column(bias, np.float32),
        ]


def _projection(weight, scale, bias):
    return _Layer(weight, 1, None, scale, bias, None)


def _recurrent(node, layer, gates, x, matrices, lengths, states, outputs, plan):
    """All inputs projected as by a dense layer, and the walk through the steps."""
    weight, recurrent, scale, recurrent_scale, bias, recurrent_bias = matrices
    if not _known(*matrices) or 0 in (*x.shape, *weight.shape, *recurrent.shape):
        return None
    if lengths is not None and lengths.dtype not in (np.int32, np.int64):
        return None
    if any(t is not None and t.dtype != np.float32 for t in states):
        return None
    (n, t, k), units = x.shape, recurrent.shape[-1]
    rows = recurrent.size // units
    directions = rows // (gates * units)
    projection = plan.packed(
        weight, f"int8 for {node.name}",
        lambda w: _projection(*_byte_rows(w, scale), _value(bias)),
    )  # fmt: skip
    of_state = plan.packed(
        recurrent, f"int8 gates for {node.name}",
        lambda w: _Gates(
            *_byte_rows(w, recurrent_scale), directions * gates, _value(recurrent_bias)
        ),
    )  # fmt: skip
    kernel, projected = module("int8"), plan.scratch(4 * n * t * rows)
    threads = workers(plan, n * t * k * rows, _THREAD_PRODUCTS)
    size = kernel.scratch_bytes(projection.form, n * t, k)
    project = KernelCall(
        "int8.rows",
        [x, *projection.operands, projected, plan.scratch(threads * size)],
        [_FROM_FLOAT, _TO["float32"], n * t, k, rows, 1, k, rows, 0, 0, projection.form],
        [-math.inf, math.inf],
        threads,
    )
    kernel = module("int8_recurrent")
    threads = workers(plan, n * t * units * rows, _THREAD_PRODUCTS)
    block = min(kernel.block_rows, max(1, -(-n * directions // threads)))
    tasks = directions * -(-n // block)
    room = kernel.recur_scratch(of_state.packed.form, block, units, gates)
    y, h, c = _padded(outputs, 3)
    backward = node.attributes.get("direction", "forward") == "reverse"
    recur = KernelCall(
        "int8_recurrent.recur",
        [
            *(projected, *of_state.operands, lengths, *states),
            *(y, h, c if layer == _LSTM else None, plan.scratch(tasks * room)),
        ],
        [
            *(layer, n, t, units, directions, gates, int(backward), block),
            *(int(lengths is not None and lengths.dtype == np.int64), room),
            of_state.packed.form,
        ],
        threads=threads if tasks > 1 else 1,
    )
    return [project, recur]
