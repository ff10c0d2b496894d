"""What each ONNX operator is in operators of fastvq: the table :data:`OPERATORS`.

A row is a function of the graph in the making (`b`, a Builder) and the node; it returns the value,
or values, that the node gives. Whatever hangs on constants alone is computed on the way.
"""

from fastvq.compress.importers.onnx_operators import (  # noqa: F401 - they enter their importers
    movement,
    pointwise,
    products,
    recurrent,
    reductions,
)
from fastvq.compress.importers.onnx_operators._table import (
    ELEMENTS,
    OPERATORS,
    as_array,
    element,
    imports,
)
from fastvq.compress.importers.onnx_operators.pointwise import binary, cast

__all__ = ["ELEMENTS", "OPERATORS", "as_array", "binary", "cast", "element", "imports"]
