"""Small models by onnxruntime's tools: integers of 8 bits, MatMulNBits, and its GPTQ.

MatMulNBits stores the weights of MatMul nodes, and with GatherBlockQuantized tables, in 4 bits with
a scale for each block; convolutions and recurrence have no such form there. Its GPTQ rounds the
weights of MatMul nodes by examples, one node at a time, for blocks as MatMulNBits has them.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import intpeers, sessions

BLOCK = 32  # of MatMulNBits: its smallest but one, the best of its usual ones


class Peer(NamedTuple):
    """A model of another library: a call that takes arrays and gives the first output, its size."""

    call: Callable[..., np.ndarray]
    nbytes: int

    def __call__(self, *arrays):
        return self.call(*arrays)


def small_peers(model: bytes, batches):
    """(name, Peer) of each way in which onnxruntime makes the model smaller.

    Parameters
    ----------
    model : bytes
        ONNX, in float32.
    batches : list of tuple of ndarray
        Examples, as the model's inputs take them.
    """
    model = _named(model)
    with tempfile.TemporaryDirectory() as folder:
        whole, out = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        whole.write_bytes(model)
        intpeers.dynamic(whole, out)
        yield "onnxruntime int8", _peer(out.read_bytes())
    if not _multiplied(model):
        return
    for symmetric in (True, False):
        kind = "symmetric" if symmetric else "with zero points"
        yield f"MatMulNBits, {kind}", _peer(_nbits(model, ("MatMul", "Gather"), symmetric))
    yield "MatMulNBits by GPTQ", _peer(_nbits(_gptq(model, batches), ("Gather",), False))


def _named(model):
    """Its nodes with names: the tool looks them up by these."""
    import onnx

    loaded = onnx.load_model_from_string(model)
    for number, node in enumerate(loaded.graph.node):
        node.name = f"{node.op_type} {number}"
    return loaded.SerializeToString()


def _peer(model):
    return Peer(sessions.call_of(model), len(model))


def _multiplied(model):
    """Whether there is a MatMul by a weight: what MatMulNBits could take the place of."""
    import onnx

    graph = onnx.load_model_from_string(model).graph
    weights = {tensor.name for tensor in graph.initializer}
    return any(n.op_type == "MatMul" and n.input[1] in weights for n in graph.node)


def _nbits(model, operators, symmetric):
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as tool

    settings = tool.DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=symmetric, op_types_to_quantize=operators,
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )  # fmt: skip
    return _processed(tool, onnx.load_model_from_string(model), settings, BLOCK, symmetric)


def _gptq(model, batches):
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as tool
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    loaded = onnx.load_model_from_string(model)
    names = [value.name for value in loaded.graph.input]

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._left = [dict(zip(names, arrays, strict=True)) for arrays in batches]

        def get_next(self):
            return self._left.pop(0) if self._left else None

    settings = tool.GPTQWeightOnlyQuantConfig(calibration_data_reader=Reader(), actorder=False)
    return _processed(tool, loaded, settings, BLOCK, False)


def _processed(tool, loaded, settings, block, symmetric):
    with intpeers.silent(), contextlib.redirect_stdout(io.StringIO()):
        quantizer = tool.MatMulNBitsQuantizer(
            loaded, block_size=block, is_symmetric=symmetric, algo_config=settings
        )
        quantizer.process()
    return quantizer.model.model.SerializeToString()


def rows_of(arrays, n=32):
    """Batches of n rows of arrays of the same length."""
    return [tuple(np.asarray(a[i : i + n]) for a in arrays) for i in range(0, len(arrays[0]), n)]
