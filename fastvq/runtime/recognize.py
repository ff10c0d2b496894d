"""Graph -> Graph: functions that exporters have taken apart are put together again.

ONNX had no GELU before opset 20, and has no SiLU yet: models hold them as products of x with
functions of x. As one function they pass memory once, and may go into the product before them.
"""

from __future__ import annotations

from math import isclose, sqrt

from fastvq.runtime.graph import Graph, Node
from fastvq.runtime.rewrite import Rewriting

__all__ = ["recognized"]


def recognized(graph: Graph) -> Graph:
    """The graph with `gelu`, `silu`, `hard_swish` and `mish` where it says so in more words."""
    work = _Recognizing(graph)
    for node in graph.nodes:
        function = work.function_of(node)
        if function is not None:
            x, name = function
            node = Node("Unary", (x,), node.outputs, {"function": name}, node.name)
        work.add(node)
    return work.done()


class _Recognizing(Rewriting):
    def __init__(self, graph):
        super().__init__(graph)
        self._makers: dict[str, Node] = {}

    def add(self, node):
        self.nodes.append(node)
        self._makers.update(dict.fromkeys(node.outputs, node))

    def function_of(self, node):
        """(x, name of a function) where the node completes a product that is that; else None."""
        if not _is(node, "Binary", "multiply"):
            return None
        factors = [f for name in node.inputs for f in self._factors(name)]
        for x in factors:
            others = list(factors)
            others.remove(x)
            if len(others) == 1 and (name := self._gate(others[0], x)):
                return x, name
            if len(others) == 2 and any(
                self._number(a) == 0.5 and self._is_one_and_erf(b, x)
                for a, b in (others, others[::-1])
            ):
                return x, "gelu"
        return None

    def done(self):
        """Without the nodes that only served those which are replaced."""
        read = {value.name for value in self._graph.outputs}
        kept = []
        for node in reversed(self.nodes):
            if read.intersection(node.outputs):
                read.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        return self.finished()

    def _factors(self, name):
        """The value itself, or what it is the product of."""
        node = self._makers.get(name)
        return list(node.inputs) if node and _is(node, "Binary", "multiply") else [name]

    def _gate(self, name, x):
        """The function that x times this value is, if any."""
        node = self._makers.get(name)
        if node is None or node.operator != "Unary":
            return None
        of, about = node.inputs[0], node.attributes
        if about["function"] == "sigmoid" and of == x:
            return "silu"
        if about["function"] == "hard_sigmoid" and of == x:
            usual = isclose(about["alpha"], 1 / 6, rel_tol=1e-6) and about["beta"] == 0.5
            return "hard_swish" if usual else None
        inner = self._makers.get(of)
        if about["function"] == "tanh" and inner and _is(inner, "Unary", "softplus"):
            return "mish" if inner.inputs[0] == x else None
        return None

    def _is_one_and_erf(self, name, x):
        """Whether this is 1 + erf(x / √2)."""
        node = self._makers.get(name)
        if node is None or not _is(node, "Binary", "add"):
            return False
        for one, of in (node.inputs, node.inputs[::-1]):
            erf = self._makers.get(of)
            if self._number(one) == 1 and erf and _is(erf, "Unary", "erf"):
                return self._is_over_root(erf.inputs[0], x)
        return False

    def _is_over_root(self, name, x):
        node = self._makers.get(name)
        if node is None or node.operator != "Binary":
            return False
        for first, second in (node.inputs, node.inputs[::-1]):
            number = self._number(second)
            if first == x and number and _is(node, "Binary", "multiply"):
                return isclose(number, sqrt(0.5), rel_tol=1e-6)
        number = self._number(node.inputs[1])
        divided = _is(node, "Binary", "divide") and node.inputs[0] == x and number
        return bool(divided) and isclose(number, sqrt(2), rel_tol=1e-6)

    def _number(self, name):
        """The constant that is one number, whatever the shape beside it; else None."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.shape != () or not self.is_raw(name):
            return None
        return float(self.raw(name))


def _is(node, operator, function):
    return node.operator == operator and node.attributes["function"] == function
