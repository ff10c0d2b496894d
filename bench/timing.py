"""Timing several ways of doing one job so that the ratios mean something on a shared machine.

The contestants take turns in one process: what slows the machine for a second slows them all. Each
runs once unmeasured (it loads, allocates, and its answer is the one checked), then in turns until
the repeats or the budget are used up. Medians are compared; minima are kept beside them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

#: a first run this long (s) counts as a measured one: its warm-up is lost in it
LONG_RUN = 5.0

#: contestants this many times slower than the fastest stop after so many runs, or one that is long
HOPELESS = 3.0
FEWEST_RUNS = 3

#: between threaded runs (s): OpenBLAS's and OpenMP's idle workers spin for up to 30 ms after a
#: parallel region and would hold a core of whoever runs next
SPIN_PAUSE = 0.05


Contestants = Mapping[str, Callable[[], object]]


@dataclass
class Timing:
    """Seconds of each measured run of one contestant, and the answer it gave."""

    seconds: list[float] = field(default_factory=list)
    answer: object = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        return min(self.seconds)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds_of(run: Callable[[], object], clock: str = "wall") -> tuple[float, object]:
    """Seconds of one call, with the garbage collector off, and what it returned."""
    now = CLOCKS[clock]
    was_on = gc.isenabled()
    gc.disable()
    try:
        start = now()
        answer = run()
        return now() - start, answer
    finally:
        if was_on:
            gc.enable()


def first_runs(contestants: Contestants, *, pause: float = 0.0, clock: str = "wall"):
    """Run each once, for its answer; dict of name to `Timing`."""
    timings = {}
    for name, run in contestants.items():
        time.sleep(pause)
        seconds, answer = seconds_of(run, clock)
        timings[name] = Timing([seconds] if seconds > LONG_RUN else [], answer)
    return timings


def take_turns(
    contestants: Contestants,
    *,
    repeats: int = 7,
    budget: float = 20.0,
    pause: float = 0.0,
    clock: str = "wall",
    timings: dict[str, Timing] | None = None,
) -> dict[str, Timing]:
    """Run the contestants alternately.

    Parameters
    ----------
    contestants : mapping of name to callable without arguments
    repeats : int
        Measured runs of each, at most.
    budget : float
        Seconds after which no further round begins.
    pause : float
        Seconds of rest before every run.
    clock : {"wall", "cpu"}
    timings : dict, optional
        What `first_runs` gave, where it has been called already.
    """
    timings = timings or first_runs(contestants, pause=pause, clock=clock)
    begin = time.perf_counter()
    for round_number in range(repeats):
        for name, run in contestants.items():
            if _has_run_enough(timings[name], timings.values(), round_number):
                continue
            time.sleep(pause)
            timings[name].seconds.append(seconds_of(run, clock)[0])
        if time.perf_counter() - begin > budget:
            break
    return timings


def as_told(options, n_threads: int, *, repeats: int = 1, budget: float = 1.0) -> dict:
    """What `take_turns` takes, by the command line; so many times its repeats and its budget."""
    return {
        "repeats": repeats * options.repeats,
        "budget": budget * options.budget,
        "pause": pause_for(n_threads),
        "clock": options.clock,
    }


def _has_run_enough(timing: Timing, everyone, round_number: int) -> bool:
    if len(timing.seconds) > round_number:  # its first run was long and has been counted
        return True
    if not timing.seconds:
        return False
    best = min(other.fastest for other in everyone if other.seconds)
    enough = len(timing.seconds) >= FEWEST_RUNS or timing.fastest > LONG_RUN
    return enough and timing.fastest > HOPELESS * best


@contextmanager
def thread_limit(n_threads: int) -> Iterator[None]:
    """Hold every BLAS and OpenMP library that is loaded by now to `n_threads`."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=n_threads):
        yield


def pause_for(n_threads: int) -> float:
    return 0.0 if n_threads == 1 else SPIN_PAUSE
