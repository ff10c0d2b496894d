"""LSTM and GRU of 8-bit integers: each step as the definition has it, and the promises."""

import numpy as np
import pytest
from nodes import compiled, defined, level, plan_of  # noqa: F401 - a fixture
from oracles import THREADS

from fastvq.runtime.definitions.recurrent import DIRECTIONS
from fastvq.runtime.lowering import integers

LAYERS = [
    ("DynamicLSTM", 4, {}),
    ("DynamicGRU", 3, {}),
    ("DynamicGRU", 3, {"linear_before_reset": True}),
]
# Rows, steps, features, units: one of each, and around tiles, blocks and vectors.
SIZES = [(1, 1, 1, 1), (3, 4, 5, 7), (2, 9, 16, 8), (5, 3, 31, 17), (35, 4, 9, 33), (16, 2, 3, 64)]
each_layer = pytest.mark.parametrize(("operator", "gates", "attributes"), LAYERS)


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(integers, "_THREAD_PRODUCTS", 1)


def case(operator, gates, sizes, direction, optional=True, lengths=np.int32):
    """Inputs in the operator's order, and which of them a model has as constants."""
    n, t, k, units = sizes
    rng = np.random.default_rng(n + t + k + units)
    d = len(DIRECTIONS[direction])

    def some(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def rows(width):
        return rng.integers(-128, 128, (d * gates * units, width), dtype=np.int8)

    def scales(width):
        return (rng.random(d * gates * units) / 60 / width**0.5).astype(np.float32)

    arrays = [some(n, t, k), rows(k), rows(units), scales(k), scales(units)]
    biases = [some(d, gates * units) for _ in range(2 if operator == "DynamicGRU" else 1)]
    if not optional:
        return arrays, [1, 2, 3, 4]
    states = [some(n, d, units) for _ in range(2 if operator == "DynamicLSTM" else 1)]
    row_lengths = None if lengths is None else rng.integers(0, t + 2, n).astype(lengths)
    return [*arrays, *biases, row_lengths, *states], list(range(1, 5 + len(biases)))


def agree(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


@each_layer
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_single_steps_agree_with_their_definitions(operator, gates, attributes, direction, level):  # noqa: F811
    """One step: a state that differs in its last bit could be cut into other integers next."""
    attributes = {**attributes, "direction": direction}
    for n, _, k, units in SIZES:
        for optional, lengths in [(True, np.int32), (True, np.int64), (False, None)]:
            arrays, known = case(operator, gates, (n, 1, k, units), direction, optional, lengths)
            found = compiled(operator, arrays, known, 2, **attributes)
            agree(found, defined(operator, arrays, **attributes))


@each_layer
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_steps_one_by_one_are_the_whole(operator, gates, attributes, direction, level):  # noqa: F811
    """The same bits as with the state handed on; so all of a layer is what its steps are."""
    attributes = {**attributes, "direction": direction}
    for sizes in SIZES:
        arrays, known = case(operator, gates, sizes, direction)
        y, *last = compiled(operator, arrays, known, **attributes)
        *constants, lengths = arrays[1 : len(known) + 2]
        states = arrays[len(known) + 2 :]
        for t in reversed(range(sizes[1])) if direction == "reverse" else range(sizes[1]):
            x = np.ascontiguousarray(arrays[0][:, t : t + 1])
            now = np.clip(lengths - t, 0, 1).astype(np.int32)
            one, *states = compiled(operator, [x, *constants, now, *states], known, **attributes)
            assert one.tobytes() == np.ascontiguousarray(y[:, t : t + 1]).tobytes()
        assert [s.tobytes() for s in states] == [s.tobytes() for s in last]


@each_layer
def test_a_row_alone_gets_the_same_bits(operator, gates, attributes):
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


def test_many_steps_stay_near_the_definition():
    arrays, known = case("DynamicLSTM", 4, (4, 50, 30, 40), "forward", lengths=None)
    found, wanted = compiled("DynamicLSTM", arrays, known), defined("DynamicLSTM", arrays)
    for a, b in zip(found, wanted, strict=True):
        assert np.abs(a - b).max() < 0.02
        assert np.abs(a - b).mean() < 1e-4


def test_nan_stays_in_its_row():
    arrays, known = case("DynamicGRU", 3, (4, 5, 3, 6), "forward", lengths=None)
    clean = compiled("DynamicGRU", arrays, known)[0]
    arrays[0][2, 1, 0] = np.nan
    y = compiled("DynamicGRU", arrays, known)[0]
    assert np.isnan(y[2, 1:]).all()
    np.testing.assert_array_equal(np.delete(y, 2, 0), np.delete(clean, 2, 0))


def test_nothing_comes_of_nothing():
    for sizes in [(0, 3, 2, 4), (2, 0, 2, 4)]:
        arrays, known = case("DynamicLSTM", 4, sizes, "forward", lengths=None)
        found = plan_of("DynamicLSTM", arrays, known).run([arrays[0], *arrays[7:]])
        agree(found, [np.zeros((*sizes[:2], 1, 4), np.float32), *arrays[7:]])


@pytest.mark.parametrize(
    ("place", "array", "message"),
    [
        (1, np.zeros((16, 3), np.float32), "int8"),
        (2, np.zeros((17, 4), np.int8), "recurrent"),
        (3, np.zeros(5, np.float32), "scales"),
    ],
)
def test_refused(place, array, message):
    arrays, known = case("DynamicLSTM", 4, (2, 3, 3, 4), "forward", lengths=None)
    arrays[place] = array
    with pytest.raises(ValueError, match=message):
        compiled("DynamicLSTM", arrays, known)
