"""Layers with a state: LSTM, GRU, and plain recurrence.

Sequences are (N, T, C), one direction after the other: direction d of "reverse" and the second of
"bidirectional" walk from the end. A row n ends after lengths[n] steps: it starts there where it is
walked from the end, its outputs beyond are 0, and its last state is that of its last step.

LSTM and GRU also multiply in integers of 8 bits, as "DynamicLSTM" and "DynamicGRU": each row of an
input and each state is cut into 255 steps as it comes, and the sums become floats again, of which
gates and states are made (as in Google's "hybrid" layers of TensorFlow Lite). "CodedLSTM" and
"CodedGRU" are the same for weights of few bits, whose rows become bytes when the model starts.
"""

from __future__ import annotations

import numpy as np

from fastvq.runtime import functions
from fastvq.runtime.definitions.integers import integer_product
from fastvq.runtime.definitions.products import row_by_row
from fastvq.runtime.ops import Form, operator

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@operator("LSTM", weights=(1, 2), n_outputs=3)
def lstm(
    x, weight, recurrent, bias=None, lengths=None, h0=None, c0=None, *, direction="forward"
):  # fmt: skip
    """Long short-term memory (Hochreiter and Schmidhuber, 1997), gates in the order i, o, f, c.

    x (N, T, C), weight (D, 4H, C), recurrent (D, 4H, H), bias (D, 4H), lengths (N,), h0 and c0
    (N, D, H) to y (N, T, D, H), h (N, D, H), c (N, D, H)::

        i, o, f = sigmoid(W x + R h + b), g = tanh(W x + R h + b)
        c = f · c + i · g,  h = o · tanh(c)
    """

    def multiply(d, h, gates):
        return row_by_row(h, recurrent[d, gates].T)

    return _lstm(_projection(x, weight, bias), multiply, x, lengths, h0, c0, direction)


def _lstm(projection, multiply, x, lengths, h0, c0, direction):
    def step(d, projected, h, c):
        gates = projected + multiply(d, h, slice(None))
        i, o, f, g = np.split(gates, 4, axis=-1)
        c = functions.sigmoid(f) * c + functions.sigmoid(i) * np.tanh(g)
        return functions.sigmoid(o) * np.tanh(c), c

    return _walk(x, projection, lengths, [h0, c0], direction, 4, step)


@operator("GRU", weights=(1, 2), n_outputs=2)
def gru(
    x, weight, recurrent, bias=None, recurrent_bias=None, lengths=None, h0=None, *,
    direction="forward", linear_before_reset=False,
):  # fmt: skip
    """Gated recurrent unit (Cho et al., 2014), gates in the order z, r, h.

    x (N, T, C), weight (D, 3H, C), recurrent (D, 3H, H), bias and recurrent_bias (D, 3H), lengths
    (N,), h0 (N, D, H) to y (N, T, D, H), h (N, D, H)::

        z, r = sigmoid(W x + b + R h + b')
        g = tanh(W x + b + R (r · h) + b'), or tanh(W x + b + r · (R h + b')), the linear first
        h = (1 - z) · g + z · h
    """

    def multiply(d, h, gates):
        y = row_by_row(h, recurrent[d, gates].T)
        return y if recurrent_bias is None else y + recurrent_bias[d, gates]

    projection = _projection(x, weight, bias)
    return _gru(projection, multiply, x, lengths, h0, direction, linear_before_reset)


def _gru(projection, multiply, x, lengths, h0, direction, linear_before_reset):
    def step(d, projected, h):
        H = h.shape[-1]
        both, third = slice(2 * H), slice(2 * H, None)
        z, r = np.split(functions.sigmoid(projected[:, both] + multiply(d, h, both)), 2, axis=-1)
        inner = r * multiply(d, h, third) if linear_before_reset else multiply(d, r * h, third)
        return ((1 - z) * np.tanh(projected[:, third] + inner) + z * h,)

    return _walk(x, projection, lengths, [h0], direction, 3, step)


@operator("RNN", weights=(1, 2), n_outputs=2)
def rnn(
    x, weight, recurrent, bias=None, lengths=None, h0=None, *,
    direction="forward", activation="tanh",
):  # fmt: skip
    """Plain recurrence (Elman, 1990): h = activation(W x + R h + b), "tanh" or "relu".

    x (N, T, C), weight (D, H, C), recurrent (D, H, H), bias (D, H), lengths (N,), h0 (N, D, H) to
    y (N, T, D, H), h (N, D, H).
    """

    def step(d, projected, h):
        return (functions.apply(activation, projected + row_by_row(h, recurrent[d].T)),)

    return _walk(x, _projection(x, weight, bias), lengths, [h0], direction, 1, step)


def _projection(x, weight, bias):
    """What each direction's weight makes of all steps, (N, T, gates · H), as a function of it."""

    def projected(d):
        y = np.matmul(x, weight[d].T)
        return y if bias is None else y + bias[d]

    return projected


def _walk(x, projection, lengths, states, direction, gates, step):
    """All directions of a layer: y, and the last of each state."""
    N, T, _ = x.shape
    inputs = [projection(d) for d in range(len(DIRECTIONS[direction]))]
    H = inputs[0].shape[-1] // gates
    backward = DIRECTIONS[direction]
    lengths = np.full(N, T) if lengths is None else np.clip(lengths, 0, T)
    y = np.zeros((N, T, len(backward), H), x.dtype)
    states = [
        np.zeros((N, len(backward), H), x.dtype) if s is None else s.astype(x.dtype) for s in states
    ]
    for d, from_the_end in enumerate(backward):
        projected = inputs[d]
        for t in reversed(range(T)) if from_the_end else range(T):
            rows = np.flatnonzero(t < lengths)
            found = step(d, projected[rows, t], *(s[rows, d] for s in states))
            for state, after in zip(states, found, strict=True):
                state[rows, d] = after
            y[rows, t, d] = found[0]
    return [y, *states]


def _shapes(x, weight, recurrent, n_gates, direction, optional, n_states):
    """The rule of all three: what goes in fits together; the shapes of y and of the states."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}, not one of {', '.join(DIRECTIONS)}")
    if np.dtype(x.dtype).kind != "f" or len(x.shape) != 3:
        raise ValueError(f"x is {x.dtype} {x.shape}, wanted floats (N, T, C)")
    N, T, C = x.shape
    D, H = len(DIRECTIONS[direction]), recurrent.shape[-1] if recurrent.shape else 0
    wanted = {
        "weight": (weight, (D, n_gates * H, C)),
        "recurrent": (recurrent, (D, n_gates * H, H)),
    }
    sizes = {"bias": (D, n_gates * H), "state": (N, D, H), "lengths": (N,)}
    wanted |= {name: (form, sizes[kind]) for name, (form, kind) in optional.items()}
    for name, (form, shape) in wanted.items():
        if form is None:
            continue
        if tuple(form.shape) != shape:
            raise ValueError(f"{name} is {tuple(form.shape)}, wanted {shape}")
        if np.dtype(form.dtype).kind != ("i" if name == "lengths" else "f"):
            raise ValueError(f"{name} is {form.dtype}")
    return [((N, T, D, H), x.dtype)] + [((N, D, H), x.dtype)] * n_states


@lstm.shape
def _(x, weight, recurrent, bias=None, lengths=None, h0=None, c0=None, *, direction):
    optional = {
        "bias": (bias, "bias"),
        "lengths": (lengths, "lengths"),
        "h0": (h0, "state"),
        "c0": (c0, "state"),
    }
    return _shapes(x, weight, recurrent, 4, direction, optional, 2)


@gru.shape
def _(
    x, weight, recurrent, bias=None, recurrent_bias=None, lengths=None, h0=None, *, direction, **_
):
    optional = {
        "bias": (bias, "bias"),
        "recurrent_bias": (recurrent_bias, "bias"),
        "lengths": (lengths, "lengths"),
        "h0": (h0, "state"),
    }
    return _shapes(x, weight, recurrent, 3, direction, optional, 1)


@rnn.shape
def _(
    x, weight, recurrent, bias=None, lengths=None, h0=None, *, direction, activation
):  # fmt: skip
    if activation not in ("tanh", "relu"):
        raise ValueError(f"activation is {activation!r}, not 'tanh' or 'relu'")
    optional = {
        "bias": (bias, "bias"),
        "lengths": (lengths, "lengths"),
        "h0": (h0, "state"),
    }
    return _shapes(x, weight, recurrent, 1, direction, optional, 1)


# ---- in integers ------------------------------------------------------------------------------


@operator("DynamicLSTM", weights=(1, 2), n_outputs=3)
def dynamic_lstm(
    x, weight, recurrent, scale, recurrent_scale, bias=None, lengths=None, h0=None, c0=None, *,
    direction="forward",
):  # fmt: skip
    """LSTM whose matrices are integers: weight (D · 4H, C) and recurrent (D · 4H, H) int8.

    Their rows stand for weight · scale[:, None] and recurrent · recurrent_scale[:, None], scales
    (D · 4H,) float32. Every row of x and of the state is multiplied as DynamicDense does; all else
    is as in LSTM.
    """
    projection, multiply = _integers(x, weight, recurrent, scale, recurrent_scale, bias, direction)
    return _lstm(projection, multiply, x, lengths, h0, c0, direction)


@operator("DynamicGRU", weights=(1, 2), n_outputs=2)
def dynamic_gru(
    x, weight, recurrent, scale, recurrent_scale, bias=None, recurrent_bias=None, lengths=None,
    h0=None, *, direction="forward", linear_before_reset=False,
):  # fmt: skip
    """GRU whose matrices are integers: weight (D · 3H, C), recurrent (D · 3H, H) as DynamicLSTM's.

    Where the third gate reads r · h, this is cut into steps of its own.
    """
    projection, multiply = _integers(
        x, weight, recurrent, scale, recurrent_scale, bias, direction, recurrent_bias
    )
    return _gru(projection, multiply, x, lengths, h0, direction, linear_before_reset)


@operator("CodedLSTM", weights=(1, 2), n_outputs=3)
def coded_lstm(
    x, weight, recurrent, bias=None, lengths=None, h0=None, c0=None, *, direction="forward"
):  # fmt: skip
    """What LSTM takes, as DynamicLSTM of its matrices as `byte_rows`."""
    matrices = _as_bytes(weight, recurrent)
    return dynamic_lstm.compute(x, *matrices, bias, lengths, h0, c0, direction=direction)


@operator("CodedGRU", weights=(1, 2), n_outputs=2)
def coded_gru(
    x, weight, recurrent, bias=None, recurrent_bias=None, lengths=None, h0=None, *,
    direction="forward", linear_before_reset=False,
):  # fmt: skip
    """What GRU takes, as DynamicGRU of its matrices as `byte_rows`."""
    return dynamic_gru.compute(
        x, *_as_bytes(weight, recurrent), bias, recurrent_bias, lengths, h0,
        direction=direction, linear_before_reset=linear_before_reset,
    )  # fmt: skip


def byte_rows(weight):
    """Rows (..., k) as int8 from -127 to 127, (n, k), and what they are multiplied by, (n,).

    Of weights of few bits this takes little: 0.6 % of normal numbers in four bits and groups of 64,
    which stand for them up to 9 %.
    """
    rows = weight.reshape(-1, weight.shape[-1])
    scales = np.maximum(np.abs(rows).max(axis=1, initial=0) / np.float32(127), 2.0**-126)
    scales = scales.astype(np.float32)
    # In float64: a quotient by a rounded scale is at most 127 and a little.
    return np.rint(rows / scales[:, None].astype(np.float64)).astype(np.int8), scales


def _as_bytes(*matrices):
    """What DynamicLSTM takes in their place: integers, then scales."""
    return [part for parts in zip(*map(byte_rows, matrices), strict=True) for part in parts]


def _integers(
    x, weight, recurrent, scale, recurrent_scale, bias, direction, recurrent_bias=None
):  # fmt: skip
    """What stands for the two products of a layer of floats."""
    D = len(DIRECTIONS[direction])
    weight, recurrent = (w.reshape(D, -1, w.shape[1]) for w in (weight, recurrent))
    scale, recurrent_scale = scale.reshape(D, -1), recurrent_scale.reshape(D, -1)

    def projection(d):
        y = integer_product(x.reshape(-1, x.shape[-1]), weight[d], scale[d])
        y = y.reshape(*x.shape[:2], y.shape[-1])
        return y if bias is None else y + bias[d]

    def multiply(d, h, gates):
        y = integer_product(h, recurrent[d, gates], recurrent_scale[d, gates])
        return y if recurrent_bias is None else y + recurrent_bias[d, gates]

    return projection, multiply


def _integer_shapes(
    x, weight, recurrent, scales, n_gates, direction, optional, n_states
):  # fmt: skip
    """The rule of both: that of floats, for weights which lie in rows."""
    for name, form in {"weight": weight, "recurrent": recurrent}.items():
        if form.dtype != np.int8 or len(form.shape) != 2 or form.shape[1] > 1 << 15:
            raise ValueError(f"{name} must be int8 rows of at most {1 << 15} values")
    for form in scales:
        if form.dtype != np.float32 or form.shape != weight.shape[:1]:
            raise ValueError(f"scales must be float32 of shape {weight.shape[:1]}")
    D = len(DIRECTIONS.get(direction, "?"))
    if x.dtype != np.float32 or weight.shape[0] % D or recurrent.shape[0] % D:
        raise ValueError(f"x must be float32, and weights have rows for {D} directions")
    as_floats = [
        Form((D, form.shape[0] // D, form.shape[1]), x.dtype) for form in (weight, recurrent)
    ]
    return _shapes(x, *as_floats, n_gates, direction, optional, n_states)


@dynamic_lstm.shape
def _(
    x, weight, recurrent, scale, recurrent_scale, bias=None, lengths=None, h0=None, c0=None, *,
    direction,
):  # fmt: skip
    optional = {
        "bias": (bias, "bias"),
        "lengths": (lengths, "lengths"),
        "h0": (h0, "state"),
        "c0": (c0, "state"),
    }
    scales = scale, recurrent_scale
    return _integer_shapes(x, weight, recurrent, scales, 4, direction, optional, 2)


coded_lstm.shape(lstm.shape_rule)
coded_gru.shape(gru.shape_rule)


@dynamic_gru.shape
def _(
    x, weight, recurrent, scale, recurrent_scale, bias=None, recurrent_bias=None, lengths=None,
    h0=None, *, direction, **_,
):  # fmt: skip
    optional = {
        "bias": (bias, "bias"),
        "recurrent_bias": (recurrent_bias, "bias"),
        "lengths": (lengths, "lengths"),
        "h0": (h0, "state"),
    }
    scales = scale, recurrent_scale
    return _integer_shapes(x, weight, recurrent, scales, 3, direction, optional, 1)
