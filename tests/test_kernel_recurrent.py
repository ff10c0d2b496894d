"""LSTM, GRU and plain recurrence by kernels: against definitions, onnxruntime, and the promises."""

import numpy as np
import pytest
from nodes import compiled, defined, level, plan_of  # noqa: F401 - a fixture
from recurrent import SIZES, a_row_alone_gets_the_same_bits, agree, case, each_of

from fastvq.runtime.definitions.recurrent import DIRECTIONS
from fastvq.runtime.lowering import recurrent

each_layer = each_of(
    ("LSTM", 4, {}),
    ("GRU", 3, {}),
    ("GRU", 3, {"linear_before_reset": True}),
    ("RNN", 1, {}),
    ("RNN", 1, {"activation": "relu"}),
)


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(recurrent, "WORK", 1)


@each_layer
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_layers_agree_with_their_definitions(operator, gates, attributes, direction, level):  # noqa: F811
    attributes = {**attributes, "direction": direction}
    for sizes in SIZES:
        for optional, lengths in [(True, np.int32), (True, np.int64), (True, None), (False, None)]:
            arrays, known = case(operator, gates, sizes, direction, optional, lengths)
            found = compiled(operator, arrays, known, 2, **attributes)
            agree(found, defined(operator, arrays, **attributes))


@each_layer
def test_a_row_alone_gets_the_same_bits(operator, gates, attributes):
    a_row_alone_gets_the_same_bits(operator, gates, attributes)


def test_steps_one_by_one_are_the_whole():
    """A state that is handed on: the same bits as in one call."""
    arrays, known = case("LSTM", 4, (3, 6, 5, 9), "forward", lengths=None)
    y, h, c = compiled("LSTM", arrays, known)
    states = arrays[5:]
    for t in range(6):
        step = [np.ascontiguousarray(arrays[0][:, t : t + 1]), *arrays[1:5], *states]
        one, *states = compiled("LSTM", step, known)
        assert one.tobytes() == np.ascontiguousarray(y[:, t : t + 1]).tobytes()
    assert [s.tobytes() for s in states] == [h.tobytes(), c.tobytes()]


def test_nan_stays_in_its_row():
    arrays, known = case("GRU", 3, (4, 5, 3, 6), "forward", lengths=None)
    clean = compiled("GRU", arrays, known)[0]
    arrays[0][2, 1, 0] = np.nan
    y = compiled("GRU", arrays, known)[0]
    assert np.isnan(y[2, 1:]).all()
    np.testing.assert_array_equal(np.delete(y, 2, 0), np.delete(clean, 2, 0))


def test_nothing_comes_of_nothing():
    for sizes in [(0, 3, 2, 4), (2, 0, 2, 4)]:
        arrays, known = case("LSTM", 4, sizes, "forward", lengths=None)
        agree(compiled("LSTM", arrays, known), defined("LSTM", arrays))


# Beside onnxruntime ------------------------------------------------------------------------------


def session(operator, arrays, gates, direction, **attributes):
    """onnxruntime's answers, in the layout of the definitions."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    x, weight, recurrent_weight, bias, extra, lengths, *states = arrays
    d, rows, units = recurrent_weight.shape
    extra = np.zeros((d, rows), np.float32) if extra is None else extra
    given = {
        "X": x.transpose(1, 0, 2),
        "W": weight,
        "R": recurrent_weight,
        "B": np.concatenate([bias, extra], 1),
        "L": lengths,
        "h": states[0].transpose(1, 0, 2),
    }
    if operator == "LSTM":
        given["c"] = states[1].transpose(1, 0, 2)
    outputs = ["Y", "Yh", "Yc"][: len(states) + 1]
    node = onnx.helper.make_node(
        operator, [*given], outputs, hidden_size=units, direction=direction, **attributes
    )
    of = onnx.helper.np_dtype_to_tensor_dtype
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [onnx.helper.make_tensor_value_info(k, of(v.dtype), v.shape) for k, v in given.items()],
        [onnx.helper.make_tensor_value_info(name, 1, None) for name in outputs],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8
    )
    made = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *last = made.run(None, {k: np.ascontiguousarray(v) for k, v in given.items()})
    return [y.transpose(2, 0, 1, 3), *(s.transpose(1, 0, 2) for s in last)]


@each_layer
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_layers_agree_with_onnxruntime(operator, gates, attributes, direction):
    arrays, known = case(operator, gates, (4, 6, 5, 7), direction, lengths=None)
    lengths = np.array([6, 3, 1, 5], np.int32)
    at = 5 if operator == "GRU" else 4
    arrays[at] = lengths
    theirs = {"linear_before_reset": 1} if attributes.get("linear_before_reset") else {}
    if operator == "RNN":
        theirs = {"activations": [attributes.get("activation", "tanh").title()]}
        theirs["activations"] *= len(DIRECTIONS[direction])
    given = arrays if operator == "GRU" else [*arrays[:4], None, *arrays[4:]]
    wanted = session(operator, given, gates, direction, **theirs)
    attributes = {**attributes, "direction": direction}
    for found in (
        defined(operator, arrays, **attributes),
        compiled(operator, arrays, known, **attributes),
    ):
        agree(found, wanted)
