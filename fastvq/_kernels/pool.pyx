"""Pooling: the maximum or average of windows; see pool.h."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "pool.h" nogil:
    ctypedef struct Windows:
        int64_t n, height, width, channels, rows, columns
    void pool_row(const Windows *, const float *, Py_ssize_t, const float *, float *)


cdef int pool(const Call *call) noexcept nogil:
    """operands: x IN (n, height, width, channels), divisors IN (rows, columns), y OUT.

    Averages are sums over the divisors; without these (NULL), y are maxima.
    sizes: those of `Windows` (windows.h).
    """
    cdef const Windows *windows = <const Windows *> &call.size[0]
    cdef int64_t t
    for t in prange(windows.n * windows.rows, num_threads=call.threads):
        one_row(call, t // windows.rows, t % windows.rows)
    return 0


cdef void one_row(const Call *call, int64_t picture, int64_t row) noexcept nogil:
    cdef const Windows *w = <const Windows *> &call.size[0]
    cdef const float *x = <const float *> call.operand[0]
    cdef const float *divisors = <const float *> call.operand[1]
    cdef float *y = <float *> call.operand[2]
    x += picture * w.height * w.width * w.channels
    y += (picture * w.rows + row) * w.columns * w.channels
    pool_row(w, x, row, divisors + row * w.columns if divisors else divisors, y)


entries = {"pool": entry(pool)}
