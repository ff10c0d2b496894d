"""Which importer reads a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module

from fastvq.runtime import CompressedModel, Graph

__all__ = ["imported"]


def imported(model, X=None, dimensions=None):
    """The model as a graph, and what is known beside it."""
    if isinstance(model, CompressedModel):
        return model.graph, model.metadata
    if isinstance(model, Mapping):
        found = _importer("mapping").from_mapping(model)
    elif isinstance(model, (str, os.PathLike)) or _is_of(model, "onnx", "ModelProto"):
        found = _importer("onnx").from_onnx(model)
    elif _is_of(model, "torch", "Module"):
        if X is None:
            raise ValueError("a module of PyTorch is traced with examples of its inputs: give X")
        found = _importer("torch").from_torch(model, X, dimensions=dimensions)
    elif hasattr(model, "get_params") and hasattr(model, "fit"):
        found = _importer("sklearn").from_sklearn(model)
    else:
        raise TypeError(
            "model must be a scikit-learn estimator, an ONNX model or its path, a torch.nn.Module "
            f"or a mapping of names to arrays, got {type(model).__name__}"
        )
    return (found, {}) if isinstance(found, Graph) else found


def _importer(name):
    return import_module(f"fastvq.compress.importers.{name}")


def _is_of(model, package, name):
    """Whether a model is of a class of that name of a package, which need not be installed."""
    return any(
        cls.__name__ == name and cls.__module__.partition(".")[0] in (package, f"{package}_ml_pb2")
        for cls in type(model).__mro__
    )
