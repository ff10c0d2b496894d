"""A model in, a smaller one out: ``fastvq.compress(model)``.

The package and its function have the same name, and importing a module of a package binds the
package's name in its parent. So that `fastvq.compress` means one thing whatever has been imported
before, the package can be called: it is the function.
"""

import sys
import types
from importlib import import_module

from fastvq.compress._compress import SCHEMES, compress

__all__ = [
    "SCHEMES",
    "CompressedClassifier",
    "CompressedRegressor",
    "ModelQuantizer",
    "WeightQuantizer",
    "compress",
]

# Made of scikit-learn's classes, which take their time to import: loaded when they are used.
_ORIGIN = {
    "CompressedClassifier": "fastvq.compress.estimators",
    "CompressedRegressor": "fastvq.compress.estimators",
    "ModelQuantizer": "fastvq.compress.quantizer",
    "WeightQuantizer": "fastvq.compress.few_bits",
}


def __getattr__(name):
    if name not in _ORIGIN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ORIGIN[name]), name)


class _CallablePackage(types.ModuleType):
    __call__ = staticmethod(compress)


sys.modules[__name__].__class__ = _CallablePackage
