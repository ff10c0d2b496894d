"""LSTM, GRU and plain recurrence by kernels: against definitions, onnxruntime, and the promises."""

import numpy as np
import pytest
from nodes import compiled, defined, level, plan_of  # noqa: F401 - a fixture
from oracles import THREADS

from fastvq.runtime.definitions.recurrent import DIRECTIONS
from fastvq.runtime.lowering import recurrent

LAYERS = [
    ("LSTM", 4, {}),
    ("GRU", 3, {}),
    ("GRU", 3, {"linear_before_reset": True}),
    ("RNN", 1, {}),
    ("RNN", 1, {"activation": "relu"}),
]
# Rows, steps, features, units: one of each, and around tiles, blocks and vectors.
SIZES = [(1, 1, 1, 1), (3, 4, 5, 7), (2, 9, 16, 8), (5, 3, 31, 17), (33, 6, 9, 33), (16, 2, 3, 64)]
each_layer = pytest.mark.parametrize(("operator", "gates", "attributes"), LAYERS)


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(recurrent, "WORK", 1)


def case(operator, gates, sizes, direction, optional=True, lengths=np.int32):
    """Inputs in the operator's order, and which of them a model has as constants."""
    n, t, k, units = sizes
    rng = np.random.default_rng(n + t + k + units)
    d = len(DIRECTIONS[direction])

    def some(*shape):
        return (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)

    x = rng.standard_normal((n, t, k)).astype(np.float32)
    arrays = [x, some(d, gates * units, k), some(d, gates * units, units)]
    biases = [some(d, gates * units) for _ in range(2 if operator == "GRU" else 1)]
    known = list(range(1, 3 + len(biases))) if optional else [1, 2]
    if not optional:
        return arrays, known
    states = [some(n, d, units) for _ in range(2 if operator == "LSTM" else 1)]
    row_lengths = None if lengths is None else rng.integers(0, t + 2, n).astype(lengths)
    return [*arrays, *biases, row_lengths, *states], known


def agree(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


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
