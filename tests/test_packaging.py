"""The package: what an import costs, what sdist and wheel hold, and what the build does.

The build is tested on a small tree: the project's own build files with one kernel of a few lines.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest

import fastvq
from fastvq import _kernels
from fastvq._kernels import _cpu
from fastvq._kernels._levels import levels_of

CHECKOUT = Path(__file__).parent.parent
KERNELS = CHECKOUT / "fastvq" / "_kernels"
BASELINE = {"_cpu", "_cyutility", "_openmp", "_program"}
LEVELS = [level.name for level in levels_of(_cpu.machine())]


# --- Import -------------------------------------------------------------------------------------


def test_import_is_quick(run_python):
    """Beyond NumPy, and in the best of a few tries: other processes may be in the way."""
    code = """
import numpy, time
start = time.perf_counter()
import fastvq, fastvq.kernels
fastvq.show_config("dict")
print(time.perf_counter() - start)
"""
    seconds = [float(run_python(code).stdout) for _ in range(4)]
    assert min(seconds) < 0.15, seconds


def test_scikit_learn_is_not_imported(run_python):
    code = """
import fastvq, sys
print("numpy" in sys.modules)
from fastvq import kernels, reference, show_config, set_num_threads
set_num_threads(show_config("dict")["threads"])
print(sorted({"sklearn", "scipy", "pandas", "tqdm", "PIL"} & {*sys.modules}))
from fastvq import VectorQuantizer
print("sklearn" in sys.modules)
"""
    assert run_python(code).stdout.splitlines() == ["False", "[]", "True"]


def test_public_names():
    assert set(fastvq.__all__) <= set(dir(fastvq))
    for name in fastvq.__all__:
        value = getattr(fastvq, name)
        assert getattr(value, "__name__", f"fastvq.{name}").rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="module 'fastvq' has no attribute 'nonsense'"):
        fastvq.nonsense  # noqa: B018


def test_version_is_the_installed_one():
    try:
        installed = importlib.metadata.version("fastvq")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs fastvq installed, not only built in place")
    assert installed == fastvq.__version__


def test_package_is_typed():
    assert (Path(fastvq.__file__).parent / "py.typed").exists()


# --- Build --------------------------------------------------------------------------------------

needs_build_tools = pytest.mark.skipif(
    not (importlib.util.find_spec("Cython") and importlib.util.find_spec("build")),
    reason="needs the packages Cython and build",
)
needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None or not Path("/proc").exists(), reason="needs Linux and gcc"
)

TOY = """
from cython.parallel cimport prange

cdef extern from "toy.h" nogil:
    long toy_square(long i)

def total(Py_ssize_t n, int n_threads):
    cdef Py_ssize_t i
    cdef long s = 0
    for i in prange(n, nogil=True, num_threads=n_threads):
        s += toy_square(i)
    return s
"""
TOY_TWO = "def two():\n    return 2\n"
USE_TOY = """
import json, fastvq
from fastvq import _kernels
print(json.dumps([fastvq.show_config("dict"), _kernels.load("toy").total(10, 2)]))
"""


def copy_sources(tree, kernels=True):
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, tree)
    for name in ("fastvq", "tests"):
        ignored = ["*.so", "_build.json", "__pycache__"]
        if not kernels:
            ignored += ["[a-z]*.pyx", "[a-z]*.pxd", "[a-z]*.h"]
        shutil.copytree(CHECKOUT / name, tree / name, ignore=shutil.ignore_patterns(*ignored))
    for name in ("call.h", "call.pxd", "habit.h"):  # what the baseline module _program is made of
        shutil.copy(CHECKOUT / "fastvq" / "_kernels" / name, tree / "fastvq" / "_kernels")


@pytest.fixture
def toy_tree(tmp_path):
    tree = tmp_path / "tree"
    copy_sources(tree, kernels=False)
    kernels = tree / "fastvq" / "_kernels"
    (kernels / "toy.pyx").write_text(TOY)
    (kernels / "toy.h").write_text('#include "toy_types.h"\nSQUARE\n')
    (kernels / "toy_types.h").write_text(
        "#define SQUARE static long toy_square(long i) { return i * i; }\n"
    )
    (kernels / "toy_two.pyx").write_text(TOY_TWO)
    return tree


def run(tree, *arguments, **environment):
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def build_in_place(tree, **environment):
    return run(tree, "setup.py", "-q", "build_ext", "--inplace", **environment)


def use_toy(tree, **environment):
    """What the tree's fastvq says of itself, once its toy kernel has added up squares."""
    output = run(tree, "-c", USE_TOY, **{"FASTVQ_LEVEL": "", **environment})
    config, total = json.loads(output)
    assert total == 285
    return config


def compiler_that_refuses(directory, flags):
    """A gcc that does not know some flags."""
    path = directory / "some-gcc"
    path.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        for argument; do
            case "$argument" in {"|".join(flags)})
                echo "some-gcc: error: unrecognized option '$argument'" >&2; exit 1 ;;
            esac
        done
        exec gcc "$@"
        """)
    )
    path.chmod(0o755)
    return {"CC": str(path), "LDSHARED": f"{path} -shared"}


@needs_build_tools
@needs_compiler
@pytest.mark.parametrize("kernel", sorted(path.stem for path in KERNELS.glob("*.pyx")))
def test_the_compiler_has_nothing_to_say(kernel, tmp_path):
    build = json.loads(Path(_kernels.__file__).with_name("_build.json").read_text())
    directives = [f"-X{name}={value}" for name, value in build["directives"].items()]
    translated = tmp_path / f"{kernel}.c"
    source = KERNELS / f"{kernel}.pyx"
    output = run(CHECKOUT, "-m", "cython", *directives, source, "-o", translated)
    assert output == ""
    includes = [f"-I{KERNELS}", f"-I{sysconfig.get_path('include')}"]
    command = ["gcc", "-fsyntax-only", "-Wall", *build["flags"], *includes, translated]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@needs_build_tools
@needs_compiler
def test_build_in_place_and_again(toy_tree):
    """All levels; then nothing; then only what a changed header touches; then what CC changes."""
    build_in_place(toy_tree)
    config = use_toy(toy_tree)
    assert config["levels_built"] == LEVELS
    assert config["openmp"]
    assert config["compiler"].startswith("GCC ")

    def built():
        # The staged modules: those among the sources are copied again each time.
        modules = (toy_tree / "build" / "inplace" / "lib").rglob("*.so")
        return {str(path): path.stat().st_mtime_ns for path in modules}

    def rebuilt(**environment):
        before = built()
        build_in_place(toy_tree, **environment)
        after = built()
        return {Path(path).name.split(".")[0] for path in after if after[path] != before[path]}

    assert rebuilt() == set()
    header = toy_tree / "fastvq" / "_kernels" / "toy_types.h"
    os.utime(header, ns=(max(built().values()) + 10**9,) * 2)
    assert rebuilt() == {"toy"}
    os.utime(header)
    assert rebuilt(CFLAGS="-DNEW") == {*BASELINE, "toy", "toy_two"}


@needs_build_tools
@needs_compiler
def test_build_with_a_compiler_without_openmp_that_does_not_know_a_level(toy_tree, tmp_path):
    baseline, *_, best = levels_of(_cpu.machine())
    refused = [flag for flag in best.flags if flag not in baseline.flags]
    output = build_in_place(toy_tree, **compiler_that_refuses(tmp_path, ["-fopenmp", *refused]))
    assert re.search("no OpenMP, .*one thread: .*unrecognized option '-fopenmp'", output)
    assert re.search(f"level {best.name} is left out: .*unrecognized option", output)
    config = use_toy(toy_tree)
    assert config["openmp"] is False
    assert config["threads"] == 1
    assert config["levels_built"] == LEVELS[:-1]


@needs_build_tools
@needs_compiler
def test_build_with_clang(toy_tree):
    if shutil.which("clang") is None:
        pytest.skip("needs clang")
    build_in_place(toy_tree, CC="clang", LDSHARED="clang -shared")
    config = use_toy(toy_tree)
    assert "clang" in config["compiler"].lower()
    assert config["levels_built"] == LEVELS


@needs_build_tools
@needs_compiler
def test_wheel_holds_what_was_built_and_nothing_stale(toy_tree):
    first = build_wheel(toy_tree)
    suffix = EXTENSION_SUFFIXES[0]
    modules = {f"fastvq/_kernels/{name}{suffix}" for name in BASELINE}
    modules |= {
        f"fastvq/_kernels/{level}/{kernel}{suffix}"
        for level in LEVELS
        for kernel in ("toy", "toy_two")
    }
    assert {name for name in first if name.endswith(".so")} == modules
    assert {"fastvq/py.typed", "fastvq/_kernels/_build.json"} <= first
    sources = {str(path.relative_to(toy_tree)) for path in (toy_tree / "fastvq").rglob("*.py")}
    metadata = {name for name in first if ".dist-info/" in name}
    assert first == modules | sources | metadata | {
        "fastvq/py.typed",
        "fastvq/_kernels/_build.json",
    }

    (toy_tree / "fastvq" / "_kernels" / "toy_two.pyx").unlink()
    (toy_tree / "fastvq" / "images.py").unlink()
    gone = {name for name in first if "toy_two" in name or name == "fastvq/images.py"}
    assert build_wheel(toy_tree) == first - gone


def build_wheel(tree):
    run(tree, "-m", "build", "--wheel", "--no-isolation", "--outdir", "wheels")
    (wheel,) = (tree / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wheel.unlink()
    return names


@needs_build_tools
def test_sdist_holds_sources_and_tests_and_nothing_generated(tmp_path):
    tree = tmp_path / "tree"
    copy_sources(tree)
    (tree / "fastvq" / "_kernels" / "stale.so").touch()
    run(tree, "-m", "build", "--sdist", "--no-isolation", "--outdir", "sdist")
    (sdist,) = (tree / "sdist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"}
    expected.add("fastvq/compress/exporters/device.h")
    for folder, pattern in [("fastvq", "*.py"), ("tests", "*.py")]:
        expected |= {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / folder).rglob(pattern)}
    for pattern in ("*.pyx", "*.pxd", "*.h"):
        expected |= {
            str(path.relative_to(CHECKOUT))
            for path in (CHECKOUT / "fastvq" / "_kernels").glob(pattern)
        }
    assert expected <= names
    assert not [name for name in names if name.endswith((".c", ".so", ".pyc", "_build.json"))]


def test_installed_levels_hold_every_kernel_of_the_sources():
    sources = {path.stem for path in (CHECKOUT / "fastvq" / "_kernels").glob("[!_]*.pyx")}
    for level in _kernels.levels_built():
        folder = Path(_kernels.__file__).parent / level
        assert {path.name.split(".")[0] for path in folder.glob("*.so")} == sources


# --- Where only NumPy is ------------------------------------------------------------------------


def bare_environment(folder):
    """A virtual environment of NumPy and nothing else: its interpreter and its site-packages."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = (folder / "lib").glob("python*/site-packages")
    for part in Path(np.__file__).parent.parent.glob("numpy*"):
        (packages / part.name).symlink_to(part)
    return python, packages


USE_MODELS = """
import sys
import numpy as np
import fastvq
model = fastvq.load("model.fvq")
np.save("y.npy", model(np.load("x.npy")))
np.save("w.npy", fastvq.load("coded.fvq")(np.ones((2, 7), "f4")))
print(list(model.predict(np.load("x.npy"))))
outside = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(sorted(name for name in outside if name in ("fastvq", "numpy", "sklearn", "scipy", "onnx")))
print(fastvq.show_config("dict")["level_active"])
try:
    fastvq.VectorQuantizer(2).fit(np.ones((5, 2)))
except ImportError as error:
    print(error)
"""


def use_models(python, folder, **environment):
    """Run a model in a bare environment; what it prints."""
    from golden import make as golden

    model = golden.MODELS["mlp_1"]()
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    model.save(folder / "model.fvq")
    np.save(folder / "x.npy", rows)
    coded = golden.MODELS["entropy_coded_1"]()
    coded.save(folder / "coded.fvq")
    environment = {"PATH": os.environ["PATH"], **environment}
    arguments = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    result = subprocess.run([python, "-c", USE_MODELS], **arguments)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(folder / "y.npy"), model(rows), rtol=1e-5)
    np.testing.assert_allclose(np.load(folder / "w.npy"), coded(np.ones((2, 7), "f4")), rtol=1e-5)
    command = [python, "-m", "fastvq", "run", "model.fvq", "x.npy", "-o", "z.npy"]
    result_of_command = subprocess.run(command, **arguments)
    assert result_of_command.returncode == 0, result_of_command.stderr
    np.testing.assert_array_equal(np.load(folder / "z.npy"), np.load(folder / "y.npy"))
    labels, outside, level, *said = result.stdout.splitlines()
    assert labels == str(list(model.predict(rows))) and outside == "['fastvq', 'numpy']"
    return level, said


needs_venv = pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")


@needs_venv
def test_the_compiled_package_runs_models_with_numpy_alone(tmp_path):
    python, packages = bare_environment(tmp_path / "bare")
    (packages / "fastvq").symlink_to(Path(fastvq.__file__).parent)
    assert use_models(python, tmp_path)[0] == _kernels.levels_runnable()[-1]
    assert use_models(python, tmp_path, FASTVQ_LEVEL="numpy")[0] == "numpy"


@needs_venv
@needs_build_tools
def test_a_wheel_without_compiled_parts_runs_models(tmp_path):
    tree = tmp_path / "tree"
    copy_sources(tree)
    run(tree, "-m", "build", "--wheel", "--no-isolation", FASTVQ_PURE="1")
    (wheel,) = (tree / "dist").glob("fastvq-*-py3-none-any.whl")
    python, packages = bare_environment(tmp_path / "bare")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert not [name for name in names if name.endswith((".so", ".pyx", ".pxd"))]
        headers = [name for name in names if name.endswith(".h")]
        assert headers == ["fastvq/compress/exporters/device.h"]  # of models in C, not of kernels
        archive.extractall(packages)
    level, said = use_models(python, tmp_path)
    assert level == "numpy"
    assert any("sklearn" in line or "compiled kernels" in line for line in said)
