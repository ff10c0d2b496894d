"""What a fair comparison needs before anything loads: which CPU this is, what each BLAS is told.

OpenBLAS chooses its kernels when it is loaded. Wheels carry several copies of it, some older than
the CPU they run on: faiss's takes a new AVX-512 CPU for a "Barcelona" of 2007 and runs five times
slower than it can (24 against 128 GFLOP/s on a Zen 5). So the variables are set from the CPU's own
features before NumPy or faiss is imported, and every BLAS is asked afterwards what it took the CPU
for.

This module imports nothing but the standard library at its top.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata

#: kernels for CPUs without AVX: a peer that runs them is not the peer that people use
REFUSED_ARCHITECTURES = {"barcelona", "prescott"}

#: set to another thread count than the run's, each of these would tie a library's hands
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "MKL_NUM_THREADS",
    "FASTVQ_NUM_THREADS",
)

PACKAGES = (
    "numpy",
    "faiss-cpu",
    "scikit-learn",
    "scikit-learn-intelex",
    "scipy",
    "onnxruntime",
    "openvino",
    "torch",
    "threadpoolctl",
)


def cpu_fields() -> dict[str, str]:
    """First processor's fields of /proc/cpuinfo; empty where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def cpu_flags() -> set[str]:
    return set(cpu_fields().get("flags", "").split())


def cpu_name() -> str:
    """Name of the CPU with its family and model: "AMD EPYC" alone names a dozen of them."""
    fields = cpu_fields()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return name


def cpu_slug() -> str:
    """`cpu_name` as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")


def core_count() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wanted(peers_level: str = "best") -> dict[str, str | None]:
    """Variables the libraries must find when they load; None means that it must be absent.

    Parameters
    ----------
    peers_level : {"best", "avx2"}
        "avx2" holds the peers to AVX2 and fastvq to its x86_64_v3 level.
    """
    variables: dict[str, str | None] = dict.fromkeys((*THREAD_VARIABLES, "OPENBLAS_L2_SIZE"))
    flags = cpu_flags()
    if peers_level == "avx2":
        variables["OPENBLAS_CORETYPE"] = "Haswell"
        variables["FAISS_SIMD_LEVEL"] = "AVX2"
        variables["FASTVQ_LEVEL"] = "x86_64_v3"
    elif {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        variables["OPENBLAS_CORETYPE"] = "SkylakeX"
    elif "avx2" in flags:
        variables["OPENBLAS_CORETYPE"] = "Haswell"
    else:
        variables["OPENBLAS_CORETYPE"] = None
    return variables


def in_force(variables: dict[str, str | None]) -> bool:
    return all(os.environ.get(name) == value for name, value in variables.items())


def put_in_force(variables: dict[str, str | None]) -> None:
    """Set the variables in this process: for use before NumPy loads."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def restart_with(variables: dict[str, str | None], arguments: list[str]) -> None:
    """Replace this process by ``python -m bench`` under the variables, unless they are in force.

    A restart, since an interpreter's start-up hooks may already have loaded NumPy.
    """
    if in_force(variables):
        return
    if os.environ.get("FASTVQ_BENCH_RESTARTED"):
        raise SystemExit(f"bench: the variables {variables} did not survive the restart")
    put_in_force(variables)
    os.environ["FASTVQ_BENCH_RESTARTED"] = "1"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "bench", *arguments])


def blas_libraries() -> list[dict[str, str]]:
    """Each BLAS that NumPy, SciPy and faiss load, with the architecture it took the CPU for."""
    import faiss  # noqa: F401
    import numpy  # noqa: F401
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    return [
        {
            "owner": os.path.basename(os.path.dirname(info["filepath"])).removesuffix(".libs"),
            "library": info["prefix"],
            "version": str(info["version"]),
            "architecture": str(info.get("architecture")),
            "threads": info.get("threading_layer", ""),
        }
        for info in threadpool_info()
        if info["user_api"] == "blas"
    ]


def refuse_slow_blas(libraries: list[dict[str, str]]) -> None:
    slow = [lib for lib in libraries if lib["architecture"].lower() in REFUSED_ARCHITECTURES]
    if slow:
        found = ", ".join(f"{lib['owner']}: {lib['architecture']}" for lib in slow)
        raise SystemExit(
            f"bench: refusing to measure against a BLAS that took this CPU for an old one: {found};"
            " set OPENBLAS_CORETYPE to SkylakeX (AVX-512) or Haswell (AVX2)"
        )


def versions() -> dict[str, str]:
    """Versions of Python and of every peer that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
