"""The instruction-set levels: the one table of what is built and what it needs to run.

Every kernel is compiled once per level of the target machine, into `fastvq._kernels.<level>`, and
the best level that the CPU can run is chosen when fastvq is imported. To add a level, add a row
(and, where it needs a CPU feature that no other level needs, a row to the table in `_cpu.h`).

Standard library only: setup.py reads this file by its path, before anything is built.
"""

from typing import NamedTuple

# -ffast-math (and -Ofast) stay out: they switch the whole process to flush-to-zero when the module
# is loaded, let the compiler assume that NaN and infinity do not occur, which removes the checks
# for them, and reorder sums, so that the bits of a result would depend on the level. What is left
# of it below changes no value: errno, floating-point traps and the sign of zero are never read.
# Contraction to fused multiply-add is wanted, and the same on all levels that have it.
COMMON_FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-ffp-contract=fast",
)


class Level(NamedTuple):
    """One instruction-set build of the kernels.

    `features` are the CPU features that `flags` let the compiler use beyond what every CPU of the
    `machine` has: all of them and no more, under the names that Linux gives them in /proc/cpuinfo.
    """

    name: str
    machine: str
    flags: tuple[str, ...]
    features: tuple[str, ...] = ()
    defines: tuple[tuple[str, str], ...] = ()


# pni is SSE3, abm is LZCNT.
_V3 = (
    *("pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm"),
    *("xsave", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"),
)
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

# In ascending order within a machine: the first is the baseline, which every CPU of it runs, and
# the last one that is built and runnable is chosen.
LEVELS = (
    Level("x86_64_v1", "x86_64", ("-march=x86-64",)),
    Level("x86_64_v3", "x86_64", ("-march=x86-64-v3",), _V3),
    Level(
        "x86_64_v4_vnni",
        "x86_64",
        # GCC and Clang use only 256 of the 512 bits of a register unless told.
        ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"),
        (*_V4, "avx512_vnni"),
    ),
    Level("aarch64_v8", "aarch64", ("-march=armv8-a",)),
    Level(
        "aarch64_dotprod",
        "aarch64",
        ("-march=armv8.2-a+dotprod",),
        ("crc32", "atomics", "asimdrdm", "asimddp"),
    ),
)


def levels_of(machine):
    """The levels of a machine ("x86_64", "aarch64"), ascending."""
    return tuple(level for level in LEVELS if level.machine == machine)
