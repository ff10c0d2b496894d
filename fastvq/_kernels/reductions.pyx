"""Along an axis: sums and extremes, softmax, layer normalisation, the place of the largest."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "reductions.h" nogil:
    void reduce_part(
        int function, const float *x, Py_ssize_t n, Py_ssize_t inner, float *y, float divisor,
        int root)
    void softmax_row(const float *x, Py_ssize_t n, float *y)
    void log_softmax_row(const float *x, Py_ssize_t n, float *y)
    void softmax_columns(const float *x, Py_ssize_t n, Py_ssize_t inner, float *y, int log)
    void layer_norm_row(
        const float *x, Py_ssize_t n, const float *scale, const float *bias, float epsilon, float *y)
    int64_t place_of_extreme(
        const float *x, Py_ssize_t n, Py_ssize_t step, int last, int least)

# An array is (outer, n, inner) here: what is before the axis, along it, and behind it.


cdef int reduce(const Call *call) noexcept nogil:
    """operands: x IN (outer, n, inner), y OUT (outer, inner). sizes: outer, n, inner, function (see
    reductions.h), whether to take the root. values: what to divide by."""
    cdef const float *x = <const float *> call.operand[0]
    cdef float *y = <float *> call.operand[1]
    cdef int64_t outer = call.size[0], n = call.size[1], inner = call.size[2], i
    for i in prange(outer, num_threads=call.threads, schedule="static"):
        reduce_part(<int> call.size[3], x + i * n * inner, n, inner, y + i * inner,
                    <float> call.value[0], <int> call.size[4])
    return 0


cdef int softmax(const Call *call) noexcept nogil:
    """operands: x IN (outer, n, inner), y OUT like x. sizes: outer, n, inner, whether to take the
    logarithm."""
    cdef const float *x = <const float *> call.operand[0]
    cdef float *y = <float *> call.operand[1]
    cdef int64_t outer = call.size[0], n = call.size[1], inner = call.size[2], i
    cdef int log = <int> call.size[3]
    for i in prange(outer, num_threads=call.threads, schedule="static"):
        if inner > 1:
            softmax_columns(x + i * n * inner, n, inner, y + i * n * inner, log)
        elif log:
            log_softmax_row(x + i * n, n, y + i * n)
        else:
            softmax_row(x + i * n, n, y + i * n)
    return 0


cdef int layer_norm(const Call *call) noexcept nogil:
    """operands: x IN (outer, n), scale and bias IN (n,) or NULL, y OUT like x. sizes: outer, n.
    values: epsilon."""
    cdef const float *x = <const float *> call.operand[0]
    cdef const float *scale = <const float *> call.operand[1]
    cdef const float *bias = <const float *> call.operand[2]
    cdef float *y = <float *> call.operand[3]
    cdef int64_t outer = call.size[0], n = call.size[1], i
    for i in prange(outer, num_threads=call.threads, schedule="static"):
        layer_norm_row(x + i * n, n, scale, bias, <float> call.value[0], y + i * n)
    return 0


cdef int arg_max(const Call *call) noexcept nogil:
    """operands: x IN (outer, n, inner), y OUT (outer, inner) int64. sizes: outer, n, inner, whether
    the last of equal ones, whether the least."""
    cdef const float *x = <const float *> call.operand[0]
    cdef int64_t *y = <int64_t *> call.operand[1]
    cdef int64_t outer = call.size[0], n = call.size[1], inner = call.size[2], i, j
    for i in prange(outer, num_threads=call.threads, schedule="static"):
        for j in range(inner):
            y[i * inner + j] = place_of_extreme(
                x + i * n * inner + j, n, inner, <int> call.size[3], <int> call.size[4])
    return 0


entries = {
    "reduce": entry(reduce),
    "softmax": entry(softmax),
    "layer_norm": entry(layer_norm),
    "arg_max": entry(arg_max),
}
