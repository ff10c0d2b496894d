"""Layers with a state: what the tests of their kernels, in float32 and in integers, share."""

import numpy as np
import pytest
from nodes import compiled
from oracles import THREADS

from fastvq.runtime.definitions.recurrent import DIRECTIONS

# Rows, steps, features, units: one of each, and around tiles, blocks and vectors.
SIZES = [(1, 1, 1, 1), (3, 4, 5, 7), (2, 9, 16, 8), (5, 3, 31, 17), (35, 4, 9, 33), (16, 2, 3, 64)]


def each_of(*layers):
    """Decorator: once for each (operator, gates, attributes)."""
    return pytest.mark.parametrize(("operator", "gates", "attributes"), layers)


def case(operator, gates, sizes, direction, optional=True, lengths=np.int32):
    """Inputs in the operator's order, and which of them a model has as constants."""
    n, t, k, units = sizes
    rng = np.random.default_rng(n + t + k + units)
    d = len(DIRECTIONS[direction])

    def some(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    make = rows_of_integers if operator.startswith("Dynamic") else rows_of_reals
    arrays = [some(n, t, k), *make(rng, d, gates * units, (k, units))]
    if not optional:
        return arrays, list(range(1, len(arrays)))
    biases = [some(d, gates * units) / units**0.5 for _ in range(2 if "GRU" in operator else 1)]
    states = [some(n, d, units) for _ in range(2 if "LSTM" in operator else 1)]
    row_lengths = None if lengths is None else rng.integers(0, t + 2, n).astype(lengths)
    known = list(range(1, len(arrays) + len(biases)))
    return [*arrays, *biases, row_lengths, *states], known


def rows_of_reals(rng, d, rows, widths):
    """Weights of both sides, (d, rows, width)."""
    return [(rng.standard_normal((d, rows, w)) / w**0.5).astype(np.float32) for w in widths]


def rows_of_integers(rng, d, rows, widths):
    """Weights of both sides, (d * rows, width) int8, then the scales of their rows."""
    weights = [rng.integers(-128, 128, (d * rows, w), dtype=np.int8) for w in widths]
    scales = [(rng.random(d * rows) / 60 / w**0.5).astype(np.float32) for w in widths]
    return [*weights, *scales]


def agree(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


def a_row_alone_gets_the_same_bits(operator, gates, attributes):
    """And so does each at any number of threads."""
    attributes = {**attributes, "direction": "bidirectional"}
    arrays, known = case(operator, gates, (37, 5, 9, 19), "bidirectional")
    whole = compiled(operator, arrays, known, **attributes)
    for threads in THREADS:
        again = compiled(operator, arrays, known, threads, **attributes)
        assert [a.tobytes() for a in again] == [a.tobytes() for a in whole]
    for first, last in [(0, 1), (5, 7), (30, 37)]:
        part = [a if i in known else a[first:last] for i, a in enumerate(arrays)]
        found = compiled(operator, part, known, **attributes)
        for a, b in zip(found, whole, strict=True):
            assert a.tobytes() == b[first:last].tobytes()
