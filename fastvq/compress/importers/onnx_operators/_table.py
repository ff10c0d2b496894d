"""The table of operators, and what all importers of them share."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import numpy_helper

__all__ = ["ELEMENTS", "OPERATORS", "as_array", "element", "imports"]

ELEMENTS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float32",
    onnx.TensorProto.BFLOAT16: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.BOOL: "bool",
}


def element(data_type):
    """Our dtype, by name, for an element type of ONNX; a ValueError where there is none."""
    if data_type not in ELEMENTS:
        name = onnx.TensorProto.DataType.Name(data_type)
        raise ValueError(f"values of type {name} are not supported")
    return ELEMENTS[data_type]


def as_array(tensor):
    """The array of an ONNX tensor, 16-bit floats as float32."""
    return numpy_helper.to_array(tensor).astype(element(tensor.data_type), copy=False)


# The table: (domain, operator) -> function.
OPERATORS: dict[tuple[str, str], Callable] = {}


def imports(*names, domain=""):
    """Decorator that enters a function for these operators of ONNX."""

    def enter(function):
        OPERATORS.update({(domain, name): function for name in names})
        return function

    return enter
