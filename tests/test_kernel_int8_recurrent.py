"""LSTM and GRU of 8-bit integers: each step as the definition has it, and the promises."""

import numpy as np
import pytest
from nodes import compiled, defined, level, plan_of  # noqa: F401 - a fixture
from recurrent import SIZES, a_row_alone_gets_the_same_bits, agree, case, each_of

from fastvq.runtime.definitions.recurrent import DIRECTIONS, byte_rows
from fastvq.runtime.lowering import integers

each_layer = each_of(
    ("DynamicLSTM", 4, {}),
    ("DynamicGRU", 3, {}),
    ("DynamicGRU", 3, {"linear_before_reset": True}),
    ("CodedLSTM", 4, {}),
    ("CodedGRU", 3, {}),
    ("CodedGRU", 3, {"linear_before_reset": True}),
)


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(integers, "_THREAD_PRODUCTS", 1)


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
    a_row_alone_gets_the_same_bits(operator, gates, attributes)


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


def test_rows_of_bytes():
    rows = np.array([[[1, -2.54, 0], [0, 0, 0]], [[3e38, -3e38, 1], [1e-40, 0, 0]]], "f4")
    values, scales = byte_rows(rows)
    assert values.dtype == np.int8 and scales.dtype == np.float32
    np.testing.assert_array_equal(values, [[50, -127, 0], [0, 0, 0], [127, -127, 0], [0, 0, 0]])
    np.testing.assert_allclose(scales[[0, 2]], [0.02, 3e38 / 127], rtol=1e-6)
