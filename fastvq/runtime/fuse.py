"""Graph -> Graph: what follows a product goes into it.

A bias that is added afterwards becomes its bias, factors of its outputs (as a batch norm leaves
them) become part of its weights, and an activation its last step, all while sums are in registers.
A matrix product with a constant becomes a dense layer. Results differ by rounding only.
"""

from __future__ import annotations

import numpy as np

from fastvq.runtime.graph import Graph, Node
from fastvq.runtime.rewrite import Rewriting

__all__ = ["ACTIVATIONS", "fused"]

# What a product may do to its sums: functions for which all kernels of products have a number.
ACTIVATIONS = (
    *("relu", "clip", "leaky_relu", "thresholded_relu", "elu", "selu", "softplus", "softsign"),
    *("hard_sigmoid", "hard_swish", "sigmoid", "silu", "mish", "tanh", "erf", "gelu", "gelu_tanh"),
    *("exp", "log", "sqrt", "reciprocal", "abs", "negative", "sign", "round", "floor", "ceil"),
)
_PRODUCTS = frozenset(["Dense", "Conv", "ConvTranspose"])


def fused(graph: Graph) -> Graph:
    """The graph with biases, factors and activations inside of the products that they follow."""
    work = _Fusing(graph)
    for node in graph.nodes:
        work.take(node)
    return work.finished()


class _Fusing(Rewriting):
    def __init__(self, graph):
        super().__init__(graph)
        users = graph.users()
        kept = {value.name for value in graph.outputs}
        # Values that one node reads, once, and nobody outside: they may disappear.
        self._private = {
            name for name, nodes in users.items() if len(nodes) == 1 and name not in kept
        }
        self._products: dict[str, int] = {}  # the number of the product that makes a value

    def take(self, node):
        """Add a node, or put it into the product before it."""
        if node.operator == "MatMul":
            node = self._as_dense(node)
        merged = self._merged(node)
        if merged is not None:
            number, product = merged
            self.nodes[number] = product
            self._products[product.outputs[0]] = number
            return
        if node.operator in _PRODUCTS:
            self._products[node.outputs[0]] = len(self.nodes)
        self.nodes.append(node)

    def _as_dense(self, node):
        matrix = self.constants.get(node.inputs[1])
        attributes = node.attributes
        if matrix is None or len(matrix.shape) != 2 or attributes.get("transpose_a", False):
            return node
        name = node.inputs[1]
        if not attributes.get("transpose_b", False):
            if not self.is_raw(name):
                return node
            name = self.derive(name, matrix.shape[::-1], np.transpose)
        return Node("Dense", (node.inputs[0], name), node.outputs, {}, node.name)

    def _merged(self, node):
        """(number of a product, the product with this node inside), or None."""
        merge = {"Unary": self._with_activation, "Binary": self._with_constant}.get(node.operator)
        for value in node.inputs if merge else ():
            number = self._products.get(value)
            if number is not None and value in self._private:
                product = self.nodes[number]
                if product.attributes.get("activation", "identity") == "identity":
                    changed = merge(product, node)
                    if changed is not None:
                        return number, changed
        return None

    def _with_activation(self, product, node):
        if node.attributes["function"] not in ACTIVATIONS:
            return None
        given = {k: v for k, v in node.attributes.items() if k in ("alpha", "beta")}
        attributes = {**product.attributes, "activation": node.attributes["function"], **given}
        return Node(product.operator, product.inputs, node.outputs, attributes, product.name)

    def _with_constant(self, product, node):
        """y + b, y - b, b + y, y · s, s · y, y / s for one number, or one for each output."""
        first = node.inputs[0] == product.outputs[0]
        function, other = node.attributes["function"], node.inputs[1 if first else 0]
        weight = self.constants.get(product.inputs[1])
        values = None if weight is None else self._per_output(other, weight, product)
        if values is None or not (first or function in ("add", "multiply")):
            return None
        bias = np.zeros(weight.shape[0], np.float32)
        if len(product.inputs) > 2 and product.inputs[2]:
            bias = self.raw(product.inputs[2])
        if bias is None:
            return None
        name = product.inputs[1]
        if function in ("add", "subtract"):
            bias = bias + values if function == "add" else bias - values
        elif function in ("multiply", "divide"):
            # In float64, and rounded once: a batch norm is several of these in a row.
            wide = values.astype(np.float64)
            with np.errstate(divide="ignore"):
                factor = wide if function == "multiply" else 1 / wide
            if not (self.is_raw(name) and np.isfinite(factor).all()):
                return None
            by_output = factor.reshape(-1, *[1] * (len(weight.shape) - 1))
            name = self.derive(name, weight.shape, lambda matrix: matrix * by_output)
            bias = (bias * factor).astype(np.float32)
        else:
            return None
        inputs = product.inputs[0], name, self.new_constant(f"{product.name} bias", bias)
        return Node(product.operator, inputs, node.outputs, product.attributes, product.name)

    def _per_output(self, name, weight, product):
        """The constant as one value for each output, where it is that; else None."""
        values = self.raw(name)
        if values is None or values.dtype != np.float32 or weight.dtype != np.float32:
            return None
        # Of a dense layer nobody knows here how many dimensions its outputs have.
        most = 1 if product.operator == "Dense" else len(weight.shape)
        n_out = weight.shape[0]
        if values.ndim > most or values.size not in (1, n_out):
            return None
        if values.size == n_out and values.ndim and values.shape[-1] != n_out:
            return None
        return np.broadcast_to(values.ravel(), (n_out,))
