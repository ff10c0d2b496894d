"""Layers with a state."""

from __future__ import annotations

from fastvq.compress.importers.onnx_operators._table import imports

_DEFAULT_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


@imports("LSTM", "GRU", "RNN")
def recurrent(b, node):
    time_first = not node.attributes.get("layout")
    x, weight, hidden, bias, lengths, *states = (node.input(i) for i in range(8))
    direction = node.attributes["direction"]
    states, peepholes = states[: 2 if node.operator == "LSTM" else 1], states[2]
    if peepholes:
        raise ValueError("peepholes (P) are not supported")
    attributes = {"direction": direction, **_cell(node, 2 if direction == "bidirectional" else 1)}
    if time_first:
        x = b.transpose(x, (1, 0, 2))
        states = [state and b.transpose(state, (1, 0, 2)) for state in states]
    biases = _biases(b, node, bias, node.shape(2)[-1])
    found = b.add(
        node.operator, x, weight, hidden, *biases, lengths, *states,
        n_outputs=1 + (2 if node.operator == "LSTM" else 1), **attributes,
    )  # fmt: skip
    if not time_first:
        return found
    return [b.transpose(found[0], (1, 2, 0, 3)), *(b.transpose(s, (1, 0, 2)) for s in found[1:])]


def _cell(node, directions):
    """What kind of cell it is, as attributes; a ValueError for those that are none of ours."""
    if node.attributes.get("clip"):
        raise ValueError("clipped cells (clip) are not supported")
    if node.attributes.get("input_forget"):
        raise ValueError("coupled input and forget gates (input_forget) are not supported")
    default = _DEFAULT_ACTIVATIONS.get(node.operator, ["tanh"])
    given = [name.lower() for name in node.attributes.get("activations") or default * directions]
    if node.operator == "RNN" and len(set(given)) == 1 and given[0] in ("tanh", "relu"):
        return {"activation": given[0]}
    if given != default * directions:
        raise ValueError(f"activations {node.attributes['activations']} are not supported")
    if node.operator == "GRU" and node.attributes["linear_before_reset"]:
        return {"linear_before_reset": True}
    return {}


def _biases(b, node, bias, n_hidden):
    """Those of input and state, which ONNX keeps in one: added up, but for a GRU."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.operator] * n_hidden
    if not bias:
        return ["", ""] if node.operator == "GRU" else [""]
    axis = b.integers(1)
    of_input = b.add("Slice", bias, b.integers(0), b.integers(gates), axis)
    of_state = b.add("Slice", bias, b.integers(gates), b.integers(2 * gates), axis)
    if node.operator == "GRU":
        return [of_input, of_state]
    return [b.binary("add", of_input, of_state)]
