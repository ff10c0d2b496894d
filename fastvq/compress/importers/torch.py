"""Modules of PyTorch as graphs of fastvq, by way of ONNX."""

from __future__ import annotations

import io
import warnings

try:
    import torch
except ImportError as error:
    raise ImportError(
        "PyTorch modules need the torch package: pip install fastvq[torch]", name=error.name
    ) from error

import numpy as np

from fastvq.compress.importers.onnx import UnsupportedModel, from_onnx
from fastvq.runtime.graph import Graph

__all__ = ["export", "from_torch"]

_OPSET = 17  # the oldest with LayerNormalization; both exporters know it
_DYNAMO_OPSET = 20


def from_torch(
    module, example_inputs, *, input_names=None, output_names=None
) -> tuple[Graph, dict]:
    """A graph for a torch.nn.Module, and what its export says besides.

    The module is exported as for evaluation, its mode is what it was before.

    Parameters
    ----------
    module : torch.nn.Module
    example_inputs : tensor or array, or a tuple of them
        What the module is called with. Of each that has dimensions, the first is the number of rows
        and stays free; the others are fixed to those of the example.
    input_names, output_names : sequences of str, optional
        "x", or "x0", "x1", ..., and "y", or "y0", "y1", ... where left out.

    Returns
    -------
    graph, metadata
        As :func:`fastvq.compress.importers.onnx.from_onnx` gives them.

    Raises
    ------
    UnsupportedModel
        If the module uses operators that fastvq lacks.
    ValueError
        If torch cannot export the module.
    """
    examples = _as_tensors(example_inputs)
    errors = []
    for dynamo in (False, True):
        try:
            model = export(module, examples, dynamo, input_names, output_names)
            return from_onnx(model)
        except UnsupportedModel:
            raise
        except Exception as error:  # whatever the exporters raise: theirs is no closed list
            errors.append(f"{'new' if dynamo else 'old'} exporter: {_first_line(error)}")
    raise ValueError(f"torch cannot export {type(module).__name__}: {'; '.join(errors)}")


def export(module, example_inputs, dynamo=False, input_names=None, output_names=None) -> bytes:
    """A module as the bytes of an ONNX model, its number of rows free.

    Parameters
    ----------
    module, example_inputs, input_names, output_names : as for :func:`from_torch`
    dynamo : bool
        Which of torch's exporters: the new one is slow and needs onnxscript; the old one traces,
        and is deprecated.
    """
    examples = tuple(map(_two_rows, _as_tensors(example_inputs)))
    inputs = input_names or _names("x", len(examples))
    training, fast = module.training, torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # encoder layers as one call have no export
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = module(*examples)
            n_outputs = len(found) if isinstance(found, (tuple, list)) else 1
            outputs = output_names or (_names("y", n_outputs) if _flat(found) else None)
            run = _with_dynamo if dynamo else _by_trace
            return run(module, examples, [*inputs], outputs)
    finally:
        module.train(training)
        torch.backends.mha.set_fastpath_enabled(fast)


def _by_trace(module, examples, inputs, outputs):
    buffer = io.BytesIO()
    free = {name: {0: "N"} for name, x in zip(inputs, examples, strict=True) if x.ndim}
    torch.onnx.export(
        module,
        examples,
        buffer,
        dynamo=False,
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=free,
        opset_version=_OPSET,
    )
    return buffer.getvalue()


def _with_dynamo(module, examples, inputs, outputs):
    rows = torch.export.Dim("N")
    free = tuple({0: rows} if x.ndim else None for x in examples)
    program = torch.onnx.export(
        module,
        examples,
        dynamo=True,
        external_data=False,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=free,
        opset_version=_DYNAMO_OPSET,
        verbose=False,
    )
    return program.model_proto.SerializeToString()


def _as_tensors(inputs):
    inputs = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    return tuple(
        x if isinstance(x, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(x))
        for x in inputs
    )


def _two_rows(x):
    """An example with at least two rows: torch takes a single one for a number that stays so."""
    return torch.cat([x, x]) if x.ndim and len(x) == 1 else x


def _flat(found):
    """Whether outputs are tensors, not structures of them."""
    found = found if isinstance(found, (tuple, list)) else [found]
    return all(isinstance(y, torch.Tensor) for y in found)


def _names(letter, n):
    return [letter] if n == 1 else [f"{letter}{i}" for i in range(n)]


def _first_line(error):
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
