"""Runs compressed models: needs NumPy and fastvq's kernels, and without kernels NumPy alone."""

from fastvq.runtime import (  # noqa: F401 - enter encodings
    affine,
    codebook,
    grouped,
    patched,
    product,
)
from fastvq.runtime.graph import Graph, GraphError, Node, Value
from fastvq.runtime.model import CompressedModel

__all__ = ["CompressedModel", "Graph", "GraphError", "Node", "Value"]
