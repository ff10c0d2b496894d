"""Models of ONNX in the peers' runtimes."""

from __future__ import annotations

import io
import os
import warnings


def onnxruntime_session(model: bytes, n_threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def call_of(model: bytes):
    """A call of a model by onnxruntime on all inputs, in order, to the first output."""
    session = onnxruntime_session(model, os.cpu_count())
    names = [value.name for value in session.get_inputs()]
    return lambda *x: session.run(None, dict(zip(names, x, strict=True)))[0]


def onnxruntime_product(nodes, kinds, constants, n_threads, opsets=()):
    """A call of a graph of nodes from "x" to "y", whose element types are `kinds`; constants by
    name."""
    from onnx import helper, numpy_helper

    x, y = (helper.make_tensor_value_info(*each, None) for each in zip("xy", kinds, strict=True))
    graph = helper.make_graph(
        nodes,
        "product",
        [x],
        [y],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    opsets = [helper.make_opsetid(*each) for each in [("", 17), *opsets]]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    session = onnxruntime_session(model.SerializeToString(), n_threads)
    return lambda X: session.run(None, {"x": X})[0]


def openvino_call(model: bytes, n_threads: int, **properties):
    """A call on all inputs, in order, to the first output."""
    import openvino

    core = openvino.Core()
    told = {"INFERENCE_NUM_THREADS": n_threads, "PERFORMANCE_HINT": "LATENCY", **properties}
    core.set_property("CPU", told)
    request = core.compile_model(core.read_model(io.BytesIO(model))).create_infer_request()
    return lambda *x: next(iter(request.infer(list(x)).values()))


def torch_onnx(model, arrays, free=("N",)) -> bytes:
    """A module of torch as ONNX, its first dimensions free; its inputs are x0, x1, ..."""
    import torch

    file = io.BytesIO()
    names = [f"x{i}" for i in range(len(arrays))]
    axes = {name: dict(enumerate(free)) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, tuple(map(torch.tensor, arrays)), file, dynamo=False, opset_version=17,
            input_names=names, output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    return file.getvalue()
