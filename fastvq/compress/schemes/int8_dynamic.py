"""Layers of 8-bit integers that find the steps of their inputs as they run; see `int8`."""

from __future__ import annotations

from fastvq.compress.schemes.int8 import (
    ACTIVATION,
    Quantized,
    Writing,
    window,
)

__all__ = ["dynamic", "write_dynamic"]


def dynamic(graph, integer, stored=(), granularity="channel", known=None) -> Quantized:
    """The graph with these layers in integers that find the steps of their inputs as they run."""
    work = Writing(graph, integer, stored, granularity, known)
    for node in graph.nodes:
        if node.outputs[0] in work._integer:
            write_dynamic(work, node)
        else:
            work.pass_on(node)
    return work.quantized()


def write_dynamic(work, node):
    """A layer that reads and gives floats, and finds the steps of its input as it runs."""
    weight, _, scales, bias = work.weight_of(node)
    inputs = [node.inputs[0], weight, work.constant(f"{node.inputs[1]} scales", scales)]
    inputs.append("" if bias is None else work.constant(f"{node.name} bias", bias))
    attributes = window(node, work._forms)
    attributes |= {k: node.attributes[k] for k in ACTIVATION if k in node.attributes}
    work.add(f"Dynamic{node.operator}", inputs, node.outputs, attributes, node.name)
