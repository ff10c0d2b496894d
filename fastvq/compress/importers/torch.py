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
    module, example_inputs, *, input_names=None, output_names=None, dimensions=None
) -> tuple[Graph, dict]:
    """A graph for a torch.nn.Module, and what its export says besides.

    The module is exported as for evaluation, its mode is what it was before.

    Parameters
    ----------
    module : torch.nn.Module
    example_inputs : tensor or array, or a tuple of them
        What the module is called with.
    input_names, output_names : sequences of str, optional
        "x", or "x0", "x1", ..., and "y", or "y0", "y1", ... where left out.
    dimensions : sequence of tuples of str or None, optional
        For each input the names of its dimensions that stay free, None for one that is fixed to
        that of the example: ``[("N", "T"), ("N", "T")]`` for sequences of any length. By default
        the first of each is the number of rows, "N", and the others are fixed.

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
            model = export(module, examples, dynamo, input_names, output_names, dimensions)
            return from_onnx(model)
        except UnsupportedModel:
            raise
        except Exception as error:  # whatever the exporters raise: theirs is no closed list
            errors.append(f"{'new' if dynamo else 'old'} exporter: {_first_line(error)}")
    raise ValueError(f"torch cannot export {type(module).__name__}: {'; '.join(errors)}")


def export(
    module,
    example_inputs,
    dynamo=False,
    input_names=None,
    output_names=None,
    dimensions=None,
) -> bytes:
    """A module as the bytes of an ONNX model, its number of rows free.

    Parameters
    ----------
    module, example_inputs, input_names, output_names, dimensions : as for :func:`from_torch`
    dynamo : bool
        Which of torch's exporters: the new one is slow and needs onnxscript; the old one traces,
        and is deprecated.
    """
    examples = tuple(map(_two_rows, _as_tensors(example_inputs)))
    inputs = input_names or _names("x", len(examples))
    free = _free(examples, dimensions)
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
            return run(module, examples, [*inputs], outputs, free)
    finally:
        module.train(training)
        torch.backends.mha.set_fastpath_enabled(fast)


def _free(examples, dimensions):
    """For each input {axis: name} of the dimensions that stay free."""
    if dimensions is None:
        dimensions = [("N",)[: x.ndim] for x in examples]
    if len(dimensions) != len(examples):
        raise ValueError(f"dimensions must name those of {len(examples)} inputs: {dimensions}")
    return [{i: name for i, name in enumerate(names) if name} for names in dimensions]


def _by_trace(module, examples, inputs, outputs, free):
    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        examples,
        buffer,
        dynamo=False,
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=dict(zip(inputs, free, strict=True)),
        opset_version=_OPSET,
    )
    return buffer.getvalue()


def _with_dynamo(module, examples, inputs, outputs, free):
    names = {name: torch.export.Dim(name) for names in free for name in names.values()}
    shapes = tuple({i: names[name] for i, name in each.items()} or None for each in free)
    program = torch.onnx.export(
        module,
        examples,
        dynamo=True,
        external_data=False,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=shapes,
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
