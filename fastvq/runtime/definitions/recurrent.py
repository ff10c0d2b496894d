"""Layers with a state: LSTM, GRU, and plain recurrence.

Sequences are (N, T, C), one direction after the other: direction d of "reverse" and the second of
"bidirectional" walk from the end. A row n ends after lengths[n] steps: it starts there where it is
walked from the end, its outputs beyond are 0, and its last state is that of its last step.
"""

from __future__ import annotations

import numpy as np

from fastvq.runtime import functions
from fastvq.runtime.definitions.products import row_by_row
from fastvq.runtime.ops import operator

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

    def step(d, projected, h, c):
        gates = projected + row_by_row(h, recurrent[d].T)
        i, o, f, g = np.split(gates, 4, axis=-1)
        c = functions.sigmoid(f) * c + functions.sigmoid(i) * np.tanh(g)
        return functions.sigmoid(o) * np.tanh(c), c

    return _walk(x, weight, bias, lengths, [h0, c0], direction, recurrent.shape[-1], step)


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
    H = recurrent.shape[-1]

    def step(d, projected, h):
        R = recurrent[d]
        b = np.zeros(3 * H, x.dtype) if recurrent_bias is None else recurrent_bias[d]
        gates = functions.sigmoid(
            projected[:, : 2 * H] + (row_by_row(h, R[: 2 * H].T) + b[: 2 * H])
        )
        z, r = np.split(gates, 2, axis=-1)
        if linear_before_reset:
            inner = r * (row_by_row(h, R[2 * H :].T) + b[2 * H :])
        else:
            inner = row_by_row(r * h, R[2 * H :].T) + b[2 * H :]
        return ((1 - z) * np.tanh(projected[:, 2 * H :] + inner) + z * h,)

    return _walk(x, weight, bias, lengths, [h0], direction, H, step)


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

    return _walk(x, weight, bias, lengths, [h0], direction, recurrent.shape[-1], step)


def _walk(x, weight, bias, lengths, states, direction, H, step):
    """All directions of a layer: y, and the last of each state."""
    N, T, _ = x.shape
    backward = DIRECTIONS[direction]
    lengths = np.full(N, T) if lengths is None else np.clip(lengths, 0, T)
    y = np.zeros((N, T, len(backward), H), x.dtype)
    states = [
        np.zeros((N, len(backward), H), x.dtype) if s is None else s.astype(x.dtype) for s in states
    ]
    for d, from_the_end in enumerate(backward):
        projected = np.matmul(x, weight[d].T)
        if bias is not None:
            projected = projected + bias[d]
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
