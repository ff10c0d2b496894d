"""fastvq: vector quantization at the speed of the machine.

Names are loaded when they are first used: importing fastvq costs little more than NumPy, and
scikit-learn is imported with the first estimator.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# Chooses the level: a FASTVQ_LEVEL that cannot be had is an error here, not at the first fit.
from fastvq import _kernels  # noqa: F401

if TYPE_CHECKING:
    from fastvq import container, entropy, kernels, metrics, reference
    from fastvq._config import show_config
    from fastvq._load import load
    from fastvq._threads import get_num_threads, set_num_threads
    from fastvq.compress import compress
    from fastvq.compress.estimators import CompressedClassifier, CompressedRegressor
    from fastvq.compress.quantizer import ModelQuantizer
    from fastvq.container import FileFormatError
    from fastvq.exchange import from_faiss, to_faiss
    from fastvq.runtime import CompressedModel
    from fastvq.vq import (
        AdditiveQuantizer,
        BinaryQuantizer,
        ProductQuantizer,
        ResidualQuantizer,
        ScalarQuantizer,
        VectorQuantizer,
        fit_to_budget,
        plot_curve,
    )

__version__ = "0.1.0"

__all__ = [
    "AdditiveQuantizer",
    "BinaryQuantizer",
    "CompressedClassifier",
    "CompressedModel",
    "CompressedRegressor",
    "FileFormatError",
    "ModelQuantizer",
    "ProductQuantizer",
    "ResidualQuantizer",
    "ScalarQuantizer",
    "VectorQuantizer",
    "__version__",
    "compress",
    "container",
    "entropy",
    "fit_to_budget",
    "from_faiss",
    "get_num_threads",
    "kernels",
    "load",
    "metrics",
    "plot_curve",
    "reference",
    "set_num_threads",
    "show_config",
    "to_faiss",
]

# The module that each lazy name comes from; a module's own name stands for the module.
_ORIGIN = {
    "AdditiveQuantizer": "fastvq.vq",
    "BinaryQuantizer": "fastvq.vq",
    "CompressedClassifier": "fastvq.compress.estimators",
    "CompressedModel": "fastvq.runtime",
    "CompressedRegressor": "fastvq.compress.estimators",
    "FileFormatError": "fastvq.container",
    "ModelQuantizer": "fastvq.compress.quantizer",
    "ProductQuantizer": "fastvq.vq",
    "ResidualQuantizer": "fastvq.vq",
    "ScalarQuantizer": "fastvq.vq",
    "VectorQuantizer": "fastvq.vq",
    "compress": "fastvq.compress",
    "container": "fastvq.container",
    "entropy": "fastvq.entropy",
    "fit_to_budget": "fastvq.vq",
    "from_faiss": "fastvq.exchange",
    "get_num_threads": "fastvq._threads",
    "kernels": "fastvq.kernels",
    "load": "fastvq._load",
    "metrics": "fastvq.metrics",
    "plot_curve": "fastvq.vq",
    "reference": "fastvq.reference",
    "set_num_threads": "fastvq._threads",
    "show_config": "fastvq._config",
    "to_faiss": "fastvq.exchange",
}


def __getattr__(name):
    if name not in _ORIGIN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_ORIGIN[name])
    value = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
