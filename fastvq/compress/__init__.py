"""A model in, a smaller one out: ``fastvq.compress(model)``.

The package and its function have the same name, and importing a module of a package binds the
package's name in its parent. So that `fastvq.compress` means one thing whatever has been imported
before, the package can be called: it is the function.
"""

import sys
import types

from fastvq.compress._compress import SCHEMES, compress

__all__ = ["SCHEMES", "compress"]


class _CallablePackage(types.ModuleType):
    __call__ = staticmethod(compress)


sys.modules[__name__].__class__ = _CallablePackage
