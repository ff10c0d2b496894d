"""What scores become: curves of columns, and probabilities of classes from those of pairs."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "scores.h" nogil:
    void row_on_curves(
        const float *x, int64_t columns, const int64_t *first, const float *point,
        const float *value, float *y)
    void couple_row(const float *pair, int64_t k, float *y, double *room)


cdef int interpolate(const Call *call) noexcept nogil:
    """operands: x IN (n, columns), first IN (columns + 1,) int64, points IN, values IN, y OUT (n,
    columns). sizes: n, columns."""
    cdef const float *x = <const float *> call.operand[0]
    cdef const int64_t *first = <const int64_t *> call.operand[1]
    cdef const float *points = <const float *> call.operand[2]
    cdef const float *values = <const float *> call.operand[3]
    cdef float *y = <float *> call.operand[4]
    cdef int64_t columns = call.size[1], i
    for i in prange(call.size[0], num_threads=call.threads, schedule="static"):
        row_on_curves(x + i * columns, columns, first, points, values, y + i * columns)
    return 0


cdef int couple(const Call *call) noexcept nogil:
    """operands: pairs IN (n, k (k - 1) / 2), y OUT (n, k), room (threads, k + 2, k) float64. sizes:
    n, k."""
    cdef const float *pairs = <const float *> call.operand[0]
    cdef float *y = <float *> call.operand[1]
    cdef double *room = <double *> call.operand[2]
    cdef int64_t n = call.size[0], k = call.size[1], m = k * (k - 1) // 2, i
    cdef int thread, threads = call.threads
    for thread in prange(threads, num_threads=threads, schedule="static"):
        for i in range(n * thread // threads, n * (thread + 1) // threads):
            couple_row(pairs + i * m, k, y + i * k, room + thread * (k + 2) * k)
    return 0


entries = {"interpolate": entry(interpolate), "couple": entry(couple)}
