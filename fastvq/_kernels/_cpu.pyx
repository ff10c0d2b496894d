"""What this CPU can run. Built for the baseline level, so that it can be imported anywhere."""

cdef extern from "_cpu.h" nogil:
    const char *cpu_machine()
    unsigned cpu_n_features()
    const char *cpu_feature_name(unsigned i)
    bint cpu_has(unsigned i)


def machine():
    """The machine that this build is for, as in `Level.machine`."""
    return cpu_machine().decode()


def known_features():
    """Every feature that can be asked for on this machine, by its name in /proc/cpuinfo."""
    return frozenset(cpu_feature_name(i).decode() for i in range(cpu_n_features()))


def features():
    """Those of `known_features` that the CPU has and the operating system has switched on."""
    return frozenset(cpu_feature_name(i).decode() for i in range(cpu_n_features()) if cpu_has(i))
