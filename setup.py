"""Builds every kernel once per instruction-set level; all other metadata is in pyproject.toml.

Which levels are built follows from the compiler: those of its target machine whose flags it knows.
The CPU of the machine that builds plays no part, and NumPy is not needed. With OpenMP where a test
program compiles and links, else single-threaded. What was found is written beside the kernels as
`_build.json` (`fastvq.show_config()` prints it), and a change in it rebuilds everything.

With FASTVQ_PURE=1 in the environment nothing is compiled, and the wheel is one for any machine
(py3-none-any): it runs models, by NumPy alone, and has no quantizers.
"""

import json
import logging as log
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import Cython
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import PlatformError
from setuptools.modified import newer_group

PURE = os.environ.get("FASTVQ_PURE", "0") not in ("", "0")
SOURCES = Path("fastvq/_kernels")
SHARED = "fastvq._kernels._cyutility"
TABLE = runpy.run_path(str(SOURCES / "_levels.py"))
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}
# Compiler and linker flags to try in turn; the second is Apple's Clang with Homebrew's libomp.
OPENMP_FLAGS = [
    (["-fopenmp"], ["-fopenmp"]),
    (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),
]
OPENMP_PROGRAM = """
#include <omp.h>
int probe(void) {
    int n = 0;
    #pragma omp parallel reduction(+:n)
    n += omp_get_num_threads();
    return n;
}
"""


def extensions():
    """One extension per level and kernel, and the baseline modules, whose names begin with _."""
    for path in sorted(SOURCES.glob("*.pyx")):
        baseline = path.name.startswith("_")
        for level in [None] if baseline else TABLE["LEVELS"]:
            name = ".".join(["fastvq._kernels", *([] if baseline else [level.name]), path.stem])
            extension = Extension(name, [str(path)], include_dirs=[str(SOURCES)])
            extension.depends = ["setup.py", *includes_of(path)]
            extension.level = level
            yield extension
    # Cython writes this one: what all kernels share, compiled once instead of into each of them.
    shared = Extension(SHARED, [], depends=["setup.py"])
    shared.level = None
    yield shared


def includes_of(path, seen=()):
    """The headers and .pxd files of the project that a source names, directly or through others."""
    text = Path(path).read_text(encoding="utf-8")
    names = re.findall(r'"(\w+\.h)"', text)
    for line in re.findall(r".*\bcimport\b.*", text):
        names += [f"{word}.pxd" for word in re.findall(r"\w+", line)]
    for name in names:
        include = str(SOURCES / name)
        if include not in seen and os.path.exists(include):
            seen = includes_of(include, [*seen, include])
    return list(seen)


class BuildExt(build_ext):
    """Builds the extensions of the levels that the compiler knows, in parallel."""

    def run(self):
        if self.inplace:
            # A fixed place also for editable installs, which would start afresh every time.
            self.build_lib, self.build_temp = "build/inplace/lib", "build/inplace/temp"
        super().run()

    def build_extensions(self):
        macros = self.predefined_macros()
        levels = self.usable_levels(macros)
        openmp_compile, openmp_link = self.openmp_flags()
        common_flags = [*TABLE["COMMON_FLAGS"], *openmp_compile]
        self.extensions = [e for e in self.extensions if e.level in (None, *levels)]
        for extension in self.extensions:
            level = extension.level or levels[0]
            # -g0: Python's own flags ask for debug information, nine tenths of the size of a wheel.
            extension.extra_compile_args = ["-g0", *common_flags, *level.flags]
            if extension.level is None:
                # Nothing in the baseline modules is hot, and one of them is large.
                extension.extra_compile_args.append("-O1")
            extension.extra_link_args = openmp_link
            extension.define_macros = list(level.defines)

        record = {
            "compiler": compiler_name(macros),
            "command": " ".join(self.compiler.compiler_so),
            "link_command": " ".join(self.compiler.linker_so),
            "cython": Cython.__version__,
            "directives": DIRECTIVES,
            "flags": common_flags,
            "levels": {level.name: level._asdict() for level in levels},
            "openmp": bool(openmp_compile),
        }
        record = json.dumps(record, indent=1) + "\n"
        path = Path(self.record_path())
        self.force = self.force or not path.exists() or path.read_text() != record
        self.parallel = self.parallel or n_cpus()
        self.stale = [extension for extension in self.extensions if self.is_stale(extension)]
        self.cythonize(levels)
        super().build_extensions()
        # Last, so that a build that fails half-way is not taken for one with these settings.
        path.write_text(record)

    def build_extension(self, extension):
        if extension in self.stale:
            super().build_extension(extension)

    def is_stale(self, extension):
        """Whether a module is older than what it is made of.

        Asked here and not of Cython, which counts its own files too: pip installs them anew for
        each isolated build.
        """
        sources = [*extension.sources, *extension.depends]
        return self.force or newer_group(sources, self.get_ext_fullpath(extension.name))

    def cythonize(self, levels):
        """Translate to C: one call per level, because one call takes a source only once."""
        for level in (None, *levels):
            group = [e for e in self.stale if e.level == level]
            translated = cythonize(
                group,
                build_dir=os.path.join(self.build_temp, level.name if level else "baseline"),
                compiler_directives=DIRECTIVES,
                shared_utility_qualified_name=SHARED,
                nthreads=self.parallel,
                force=True,
                quiet=True,
            )
            for extension, result in zip(group, translated, strict=True):
                extension.sources = result.sources

    def predefined_macros(self):
        """What the compiler defines by itself: its version and its target machine."""
        if not hasattr(self.compiler, "compiler_so"):
            raise PlatformError("fastvq needs GCC or Clang")
        listing = try_tool(self.compiler.compiler_so, "-dM", "-E", "-x", "c", os.devnull)
        if listing.returncode:
            raise PlatformError(f"fastvq needs GCC or Clang (set CC): {listing.stderr}")
        return dict(re.findall(r"^#define (\w+) (.*)$", listing.stdout, re.MULTILINE))

    def usable_levels(self, macros):
        """Levels of the target machine whose flags the compiler knows, baseline first."""
        machines = {level.machine for level in TABLE["LEVELS"]}
        machine = next((m for m in machines if f"__{m}__" in macros), None)
        if machine is None:
            raise PlatformError(f"fastvq has kernels for {' and '.join(sorted(machines))} only")
        baseline, *others = TABLE["levels_of"](machine)
        usable = [baseline]
        for level in others:
            answer = self.compiles("int probe;", level.flags)
            if answer.returncode == 0:
                usable.append(level)
            else:
                log.warning("level %s is left out: %s", level.name, answer.stderr.strip())
        return usable

    def openmp_flags(self):
        """Compiler and linker flags of OpenMP, both empty where it cannot be had."""
        errors = []
        for compile_flags, link_flags in OPENMP_FLAGS:
            answer = self.compiles(OPENMP_PROGRAM, compile_flags, link_flags)
            if answer.returncode == 0:
                return compile_flags, link_flags
            errors.append(answer.stderr.strip())
        log.warning("no OpenMP, kernels will run on one thread: %s", errors[0])
        return [], []

    def compiles(self, program, compile_flags, link_flags=None):
        """Compile a program, and link it if link_flags are given; the process that ended it."""
        with tempfile.TemporaryDirectory() as directory:
            source, object_, library = (os.path.join(directory, n) for n in ("p.c", "p.o", "p.so"))
            Path(source).write_text(program)
            compiler, linker = self.compiler.compiler_so, self.compiler.linker_so
            answer = try_tool(compiler, *compile_flags, "-c", source, "-o", object_)
            if answer.returncode or link_flags is None:
                return answer
            # A shared object links with symbols missing (another compiler's OpenMP) unless told.
            complete = [] if sys.platform == "darwin" else ["-Wl,--no-undefined"]
            return try_tool(linker, object_, "-o", library, *link_flags, *complete)

    def record_path(self):
        directory = os.path.dirname(self.get_ext_fullpath("fastvq._kernels._cpu"))
        return os.path.join(directory, "_build.json")

    def get_outputs(self):
        return [*super().get_outputs(), self.record_path()]

    def copy_extensions_to_source(self):
        for level in {e.level for e in self.extensions if e.level}:
            self.mkpath(str(SOURCES / level.name))
        super().copy_extensions_to_source()
        suffix = self.get_ext_filename("")
        modules = {os.path.normpath(self.get_ext_fullpath(e.name)) for e in self.extensions}
        for path in SOURCES.rglob(f"*{suffix}"):
            if os.path.abspath(path) not in modules:
                path.unlink()  # of a level or kernel that is no more
        built = os.path.join(self.build_lib, SOURCES, "_build.json")
        self.copy_file(built, str(SOURCES / "_build.json"))


class PureBuildPy(build_py):
    """Notes beside the sources that nothing was compiled, and that so it is meant to be."""

    def run(self):
        super().run()
        record = {"compiler": "none", "flags": [], "levels": {}, "openmp": False}
        Path(self.record_path()).write_text(json.dumps(record) + "\n")

    def record_path(self):
        return os.path.join(self.build_lib, SOURCES, "_build.json")

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), self.record_path()]


class Build(build):
    """Clears what earlier builds left in build/lib, which would get into the wheel."""

    def run(self):
        super().run()
        commands = [self.get_finalized_command(name) for name in self.get_sub_commands()]
        outputs = {os.path.normpath(path) for c in commands for path in c.get_outputs()}
        for path in Path(self.build_lib).rglob("*"):
            if path.is_file() and os.path.normpath(path) not in outputs:
                path.unlink()


def compiler_name(macros):
    version = macros["__VERSION__"].strip('"')
    return version if "__clang__" in macros else f"GCC {version}"


def try_tool(command, *arguments):
    """Run a compiler or linker; its failure is an answer, its absence an error."""
    try:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise PlatformError(f"fastvq needs GCC or Clang (set CC): {error}") from error


def n_cpus():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# Translating in parallel starts processes, which import this file again on some systems.
if __name__ == "__main__":
    if PURE:
        setup(cmdclass={"build": Build, "build_py": PureBuildPy})
    else:
        setup(ext_modules=list(extensions()), cmdclass={"build": Build, "build_ext": BuildExt})
