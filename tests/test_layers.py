"""Who may lean on whom: the imports of every module are read, and none may run the wrong way.

A new module or package of fastvq gets a row here: with that, its author has said where it stands.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

import fastvq

PACKAGE = Path(fastvq.__file__).parent
KERNELS = Path(__file__).parent.parent / "fastvq" / "_kernels"

# What each part of fastvq may import of fastvq. A part is a module or package directly under
# fastvq; "fastvq" as a value stands for the public names, which only the top may use.
FLOORS = {
    "_kernels": set(),
    "_validation": set(),
    "_files": set(),
    "_progress": set(),
    "_plot": set(),
    "_schemes": set(),
    "reference": set(),
    "images": set(),
    "metrics": set(),
    "container": {"_files"},
    "_threads": {"_kernels"},
    "_panels": set(),
    "_memory": set(),
    "_dots": {"_kernels", "_memory"},
    "_optimal": {"_kernels"},
    "_screen": {"_kernels", "_panels", "_threads"},
    "_config": {"fastvq", "_kernels", "_threads"},
    "kernels": {"_dots", "_kernels", "_memory", "_optimal", "_panels", "_screen", "_threads"},
    "entropy": {"_validation", "kernels"},
    "_coded": {"container", "entropy"},
}
FLOORS["kernels"] |= {"_validation", "reference"}
BASE = {"_validation", "_threads", "_kernels", "_progress", "kernels", "container", "entropy"}
FLOORS["vq"] = BASE | {"_plot", "_screen"}
FLOORS["runtime"] = BASE - {"_progress"} | {"_dots", "_memory"}
FLOORS["compress"] = BASE | {"_files", "_plot", "_schemes", "vq", "runtime"}
FLOORS["distributed"] = BASE | {"vq", "compress"}
FLOORS["neural"] = BASE | {"vq", "compress", "runtime"}
FLOORS["exchange"] = {"vq"}
FLOORS["_load"] = {"container", "vq", "runtime"}
FLOORS["demo"] = {"fastvq", *FLOORS}
FLOORS["cli_models"] = {"fastvq", *FLOORS}
FLOORS["cli"] = {"fastvq", *FLOORS}
FLOORS["__main__"] = {"cli"}
# The package itself chooses the level; its public names are loaded lazily (`_ORIGIN`).
FLOORS["fastvq"] = {"_kernels"}

# What runs upward all the same, and why. A model that runs needs nothing above it; one method of it
# writes ONNX, which is the trade of `compress`, and imports that when it is called.
UPWARD = {("fastvq.runtime.model", "fastvq.compress.exporters")}

# What each part may import from outside beside the standard library. "..." is anything.
OUTSIDE = {
    "_kernels": set(),
    "_threads": {"threadpoolctl"},  # where scikit-learn is installed
    "_progress": {"tqdm"},
    "images": {"numpy", "PIL"},
    "metrics": {"numpy", "scipy", "sklearn"},
    "_plot": {"matplotlib"},
    "vq": {"numpy", "scipy", "sklearn"},
    "compress": ...,
    "neural": ...,
    "distributed": ...,
    "demo": ...,
    "exchange": {"numpy", "sklearn", "faiss"},
    "cli_models": {"numpy", "joblib"},  # joblib comes with scikit-learn
    "fastvq": set(),
}
NUMPY_ONLY = {"numpy"}

# No kernel leans on another one, on Python's arrays, or on anything that holds the GIL.
CIMPORTS = re.compile(r"cython|cython\.parallel|libc\.\w+|openmp|cpython\.(buffer|pycapsule)")


def imports_of(source, module):
    """The absolute names of what a module imports at any depth, as (name, line) pairs.

    Imports for a type checker do not run and do not count.
    """
    package = module if module.endswith("__init__") else module.rpartition(".")[0]
    package = package.removesuffix(".__init__")
    skipped = set()
    for node in ast.walk(ast.parse(source)):
        if node in skipped:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(inner for child in node.body for inner in ast.walk(child))
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            # From the package itself, each name is a part of its own; from others, none is.
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "fastvq" else [base]
            yield from ((name, node.lineno) for name in names)


def wrong_imports(source, module):
    """What a module imports and may not, as messages."""
    part = "fastvq" if module == "fastvq.__init__" else module.split(".")[1]
    for name, line in imports_of(source, module):
        top, *rest = name.split(".")
        if top == "fastvq":
            # A name that is no part is one of the public names: fastvq.VectorQuantizer.
            target = rest[0] if rest and rest[0] in FLOORS else "fastvq"
            if target not in {part, *FLOORS[part]} and (module, name) not in UPWARD:
                yield f"{module}:{line} imports {name}: {part} may not lean on {target}"
        elif top not in sys.stdlib_module_names:
            allowed = OUTSIDE.get(part, NUMPY_ONLY)
            if allowed is not ... and top not in allowed:
                yield f"{module}:{line} imports {name} from outside"


def wrong_cimports(source, name):
    """What a Cython source takes from elsewhere and may not, or does that a kernel may not."""
    own = {path.stem for path in KERNELS.glob("*.pxd")} - {p.stem for p in KERNELS.glob("*.pyx")}
    for number, line in enumerate(source.splitlines(), 1):
        match = re.match(r"\s*(?:from\s+([\w.]+)\s+)?(c?import)\s+([\w.]+)", line)
        if match:
            module = match[1] or match[3]
            if match[2] == "import":
                right = module.split(".")[0] in sys.stdlib_module_names
            else:
                right = CIMPORTS.fullmatch(module) or module.removeprefix("fastvq._kernels.") in own
            if not right:
                yield f"{name}:{number} {line.strip()}"
        elif not name.startswith("_") and re.match(r"\s*raise\b", line):
            yield f"{name}:{number} raises: the Python side checks, a kernel returns"


MODULES = {
    ".".join(["fastvq", *path.relative_to(PACKAGE).with_suffix("").parts]): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    part = "fastvq" if module == "fastvq.__init__" else module.split(".")[1]
    assert part in FLOORS, f"{part} is new: give it a row in FLOORS of {Path(__file__).name}"
    assert not list(wrong_imports(MODULES[module].read_text(encoding="utf-8"), module))


@pytest.mark.parametrize(
    "path", sorted([*KERNELS.glob("*.pyx"), *KERNELS.glob("*.pxd")]), ids=lambda path: path.name
)
def test_kernels_lean_on_nothing(path):
    assert not list(wrong_cimports(path.read_text(encoding="utf-8"), path.name))


def test_floors_lean_downward_only():
    """The table itself has no way round in a circle."""
    parts = dict(FLOORS)
    parts.pop("fastvq")
    while parts:
        lowest = [part for part, below in parts.items() if not (below - {part}) & parts.keys()]
        assert lowest, f"a circle among {sorted(parts)}"
        for part in lowest:
            del parts[part]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("fastvq.kernels", "from fastvq.vq import VectorQuantizer"),
        ("fastvq.kernels", "from fastvq import VectorQuantizer"),
        ("fastvq.kernels", "import fastvq.vq.vector"),
        ("fastvq.kernels", "import sklearn"),
        ("fastvq.reference", "from fastvq import kernels"),
        ("fastvq.reference", "from . import kernels"),
        ("fastvq.reference", "from scipy import linalg"),
        ("fastvq.vq.vector", "from fastvq.compress import pruning"),
        ("fastvq.vq.vector", "from ..runtime.plan import Plan"),
        ("fastvq.vq.__init__", "from ..cli import main"),
        ("fastvq.runtime.program", "from fastvq.vq import VectorQuantizer"),
        ("fastvq.runtime.program", "def later():\n    import sklearn.base"),
        ("fastvq.__init__", "from fastvq import vq"),
        ("fastvq.__init__", "import numpy"),
        ("fastvq._kernels.__init__", "from fastvq import _threads"),
    ],
)
def test_a_wrong_import_is_caught(module, line):
    assert len(list(wrong_imports(line, module))) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("fastvq.kernels", "import math\nimport numpy as np\nfrom fastvq import _kernels"),
        ("fastvq.vq.vector", "from fastvq._validation import as_rows\nfrom ._base import x"),
        ("fastvq.vq.vector", "from . import _seeding\nfrom .. import kernels\nimport sklearn.base"),
        ("fastvq.cli", "from . import VectorQuantizer, demo\nfrom .vq import vector"),
        ("fastvq.__init__", "if TYPE_CHECKING:\n    from fastvq.vq import VectorQuantizer"),
    ],
)
def test_a_right_import_passes(module, line):
    assert not list(wrong_imports(line, module))


@pytest.mark.parametrize(
    "line",
    [
        "cimport numpy",
        "import numpy as np",
        "from fastvq._kernels.assign cimport tile",
        "from cpython.mem cimport PyMem_Malloc",
        "    raise ValueError(1)",
    ],
)
def test_a_wrong_cimport_is_caught(line):
    assert len(list(wrong_cimports(line, "some_kernel.pyx"))) == 1


@pytest.mark.parametrize(
    "line", ["from cython.parallel cimport prange", "cimport cython", "from libc.math cimport sqrt"]
)
def test_a_right_cimport_passes(line):
    assert not list(wrong_cimports(line, "some_kernel.pyx"))
