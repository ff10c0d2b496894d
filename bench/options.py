"""What one run of the benchmarks was asked for, and the command line that says it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench import environment

WORDS = ("clock", "only", "peers-level", "seeds")

SUITES = (
    "assign",
    "structured",
    "seeding",
    "prune",
    "fit",
    "neural",
    "scalar",
    "product",
    "coding",
    "residual",
    "errors",
    "search",
    "int8",
    "int8models",
    "fewbits",
    "fewquality",
    "quality",
    "runtime",
    "training",
    "memory",
    "import",
)

#: suites that take hours, and are measured only where they are named
LONG = ("fewquality", "training")


@dataclass(frozen=True)
class Options:
    """What the suites read of the command line.

    Attributes
    ----------
    threads : tuple of int
        Thread counts, each measured by itself.
    quick : bool
        Reduced sizes and few repeats: shows that everything runs, not what it can do.
    peers_only : bool
        Leave fastvq out: for a checkout without built kernels.
    peers_level : {"best", "avx2"}
        "avx2" holds the peers to AVX2 and fastvq to its x86_64_v3 level.
    only : str
        Part of the names of the cases to be measured; "" for all.
    clock : {"wall", "cpu"}
        "cpu" counts the process's own time, which other processes disturb less; one thread only.
    seeds : int
        Of each part of the suite "training".
    """

    threads: tuple[int, ...] = (1,)
    quick: bool = False
    peers_only: bool = False
    peers_level: str = "best"
    only: str = ""
    clock: str = "wall"
    seeds: int = 5

    @property
    def repeats(self) -> int:
        return 3 if self.quick else 9

    @property
    def budget(self) -> float:
        """Seconds for the measured runs of one case."""
        return 0.3 if self.quick else 20.0

    def rows(self, n: int) -> int:
        """A case's number of rows, reduced in a quick run."""
        return max(2_000, n // 100) if self.quick else n

    def as_arguments(self) -> list[str]:
        """Words of the command line for another process; the thread counts apart."""
        flags = [f"--{name}={getattr(self, name.replace('-', '_'))}" for name in WORDS]
        flags += ["--quick"] if self.quick else []
        return flags + (["--peers-only"] if self.peers_only else [])


def parser() -> argparse.ArgumentParser:
    cores = environment.core_count()
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description="fastvq beside faiss, scikit-learn, scikit-learn-intelex, SciPy and NumPy.",
        epilog="example: python -m bench assign fit --threads 1",
    )
    made.add_argument(
        "suites",
        nargs="*",
        metavar="suite",
        help=f"{', '.join(SUITES)} (all but {', '.join(LONG)} where none is named); or: "
        "table [suite ...], which prints the kept results and measures nothing",
    )
    made.add_argument(
        "--threads",
        type=_counts,
        help=f"thread counts, as 1,2 (by default 1 and all cores, here {cores}; in a quick run 1)",
    )
    made.add_argument("--quick", action="store_true", help="reduced sizes; nothing is kept")
    made.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="only cases with this in their name; others stay as they are kept",
    )
    made.add_argument("--seeds", type=int, help="of the suite training (5; in a quick run 1)")
    made.add_argument("--peers-only", action="store_true", help="leave fastvq out")
    made.add_argument(
        "--peers-level",
        choices=("best", "avx2"),
        default="best",
        help="avx2 holds the peers to AVX2 and fastvq to x86_64_v3",
    )
    made.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts the process's own time, for a busy machine; with --threads 1",
    )
    made.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="keep (or read) the results there, not in bench/results/<cpu>.json",
    )
    return made


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(word) for word in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"thread counts are at least 1, got {text}")
    return counts


def options_of(parsed: argparse.Namespace) -> Options:
    cores = environment.core_count()
    threads = parsed.threads or ((1,) if parsed.quick else tuple(sorted({1, cores})))
    if parsed.clock == "cpu" and threads != (1,):
        raise SystemExit("bench: --clock cpu adds up all threads' time: use it with --threads 1")
    return Options(
        threads=threads,
        quick=parsed.quick,
        peers_only=parsed.peers_only,
        peers_level=parsed.peers_level,
        only=parsed.only,
        clock=parsed.clock,
        seeds=parsed.seeds or (1 if parsed.quick else 5),
    )
