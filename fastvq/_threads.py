"""How many threads a call uses: the one place that decides.

In order: the argument `n_threads`, what `set_num_threads` was given, the environment variable
FASTVQ_NUM_THREADS, and OpenMP's own maximum, which OMP_NUM_THREADS and threadpoolctl set. The last
one is capped by the CPUs that this process may use (its affinity mask and the CPU quotas of its
cgroups): OpenMP does not see the quotas. A number that a caller states is taken as it stands.

One thread always: inside a parallel region, in a build without OpenMP, and in a forked child.
GCC's OpenMP library keeps its pool of threads across a fork, but the threads themselves do not
survive it: the child waits for them for ever at its first region with more than one.
"""

import functools
import math
import os
from contextlib import nullcontext
from operator import index
from pathlib import Path

try:
    from fastvq._kernels import _openmp  # type: ignore[attr-defined]
except ImportError:  # nothing is compiled: nothing runs on threads

    class _openmp:
        enabled = False
        max_threads = staticmethod(lambda: 1)
        in_parallel = staticmethod(lambda: False)


# OpenMP libraries end the process when they cannot start a thread: an absurd number must not.
_MOST = 1024
_VARIABLE = "FASTVQ_NUM_THREADS"
# Shares of work for which the largest team is woken.
_ENOUGH_SHARES = 4

_setting: int | None = None
_forked = False


def one_blas_thread():
    """A context in which BLAS and LAPACK stay on one thread.

    The bits of their results depend on their threads; and for matrices of some hundred columns
    their threads cost more than they bring. Where another process holds a CPU, LAPACK may wait for
    its own threads a hundred times as long as it computes.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # where only NumPy is installed
        return nullcontext()
    return threadpool_limits(1, user_api="blas")


def set_num_threads(n_threads: int | None) -> None:
    """Set the number of threads used where the argument `n_threads` is not given.

    Parameters
    ----------
    n_threads : int or None
        A number of threads; a negative number counts back from the CPUs available to the process
        (-1: all of them, -2: all but one). None goes back to the default: the environment variable
        FASTVQ_NUM_THREADS, else OpenMP's maximum (OMP_NUM_THREADS, threadpoolctl) capped by the
        CPUs available.

    Raises
    ------
    TypeError, ValueError
        If `n_threads` is not an integer, or is zero or absurdly large.

    Examples
    --------
    >>> import fastvq
    >>> fastvq.set_num_threads(1)
    >>> fastvq.get_num_threads()
    1
    >>> fastvq.set_num_threads(None)
    """
    global _setting
    _setting = None if n_threads is None else _resolve(n_threads, "n_threads")


def get_num_threads() -> int:
    """Number of threads that a call without `n_threads` uses here and now.

    Returns
    -------
    n_threads : int
        At least 1. It is 1 inside an OpenMP parallel region, in a forked child process, and where
        fastvq was built without OpenMP.
    """
    return effective()


def effective(n_threads: int | None = None) -> int:
    """Number of threads to hand to a kernel, from a caller's `n_threads` (None: the default)."""
    if n_threads.__class__ is int and n_threads == 1:
        return 1  # before anything is asked: some calls take a few microseconds
    if n_threads is not None:
        wanted = _resolve(n_threads, "n_threads")
    elif _setting is not None:
        wanted = _setting
    elif text := os.environ.get(_VARIABLE):
        wanted = _from_environment(text)
    else:
        wanted = _openmp.max_threads()
        wanted = min(wanted, available_cpus()) if wanted > 1 else 1
    if _forked or not _openmp.enabled or _openmp.in_parallel():
        return 1
    return wanted


def team(threads: int, shares: float) -> int:
    """All of `threads` for work that is worth waking `shares` of them, or one where that is few.

    Nothing between: GCC's OpenMP ends the threads that a smaller team leaves out, and a larger one
    starts them anew. Where teams of 4 and of 2 took turns, a region took 3.5 ms in place of 0.06.
    """
    return threads if shares >= min(threads, _ENOUGH_SHARES) else 1


def available_cpus() -> int:
    """CPUs that this process may use: its affinity mask, capped by its cgroups' quotas."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # A quota of 1.5 CPUs keeps two threads busy for most of the time.
    return math.ceil(min(cpus or 1, max(1, _cgroup_cpus())))


def _resolve(n_threads, name):
    if isinstance(n_threads, bool) or not hasattr(n_threads, "__index__"):
        raise TypeError(f"{name} must be an integer or None, got {n_threads!r}")
    n_threads = index(n_threads)
    if n_threads == 0 or n_threads > _MOST:
        raise ValueError(
            f"{name} must be from 1 to {_MOST}, negative to count back from the available CPUs, "
            f"or None, got {n_threads}"
        )
    return n_threads if n_threads > 0 else max(1, available_cpus() + 1 + n_threads)


def _from_environment(text):
    name = f"environment variable {_VARIABLE}"
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f"{name} must be an integer, got {text!r}") from None
    return _resolve(number, name)


@functools.cache  # reads a dozen files, which costs more than a small call
def _cgroup_cpus(root=Path("/")):
    """CPUs' worth of time that the cgroups of this process allow; infinity without a quota.

    A quota binds all groups below it, so that the smallest on the way up counts. Inside a
    container /proc/self/cgroup may name a path of the host that is not visible: the way up ends
    at the mount point, which then is the container's own group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    mounts = root / "sys/fs/cgroup"
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            read, mount = _quota_v2, mounts
        elif "cpu" in controllers.split(","):
            # Mounted under the names of all its controllers, with a link from "cpu".
            read, mount = _quota_v1, mounts / "cpu"
        else:
            continue
        group = mount / path.strip("/")
        quotas += [read(g) for g in (group, *group.parents) if g.is_relative_to(mount)]
    return min(quotas)


def _quota_v2(group):
    """`cpu.max` holds "<quota> <period>" in microseconds, or "max <period>"."""
    return _ratio(*_words(group / "cpu.max"))


def _quota_v1(group):
    """Two files of one number each; the quota is -1 where there is none."""
    return _ratio(*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us"))


def _words(path):
    try:
        return path.read_text().split()
    except OSError:
        return []


def _ratio(quota="max", period="0", *_):
    try:
        quota, period = int(quota), int(period)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _after_fork_in_child():
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
