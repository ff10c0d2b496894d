"""What OpenMP says about threads. Built for the baseline level, with the kernels' OpenMP flags."""

cdef extern from * nogil:
    """
    #if defined(_OPENMP)
    #include <omp.h>
    #define HAVE_OPENMP 1
    #else
    #define HAVE_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    static int omp_in_parallel(void) { return 0; }
    #endif
    """
    bint HAVE_OPENMP
    int omp_get_max_threads()
    int omp_in_parallel()


enabled = bool(HAVE_OPENMP)


def max_threads():
    """Threads that the next parallel region would use: counts OMP_NUM_THREADS and threadpoolctl."""
    return omp_get_max_threads()


def in_parallel():
    """Whether the caller runs inside a parallel region already."""
    return bool(omp_in_parallel())
