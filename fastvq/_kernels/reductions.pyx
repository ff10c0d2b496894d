"""Along an axis: sums and extremes, softmax, layer normalisation, the largest and their places."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint32_t, uint64_t

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

cdef extern from "select.h" nogil:
    void select_first(
        const float *x, int64_t n, int64_t step, int64_t k, int largest, uint64_t *heap,
        float *values, int64_t *places)

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


cdef int top_k(const Call *call) noexcept nogil:
    """operands: x IN (outer, n, inner), values OUT (outer, k, inner), places OUT like them, int64;
    room (threads, k) uint64. sizes: outer, n, inner, k, whether the largest."""
    cdef const float *x = <const float *> call.operand[0]
    cdef float *values = <float *> call.operand[1]
    cdef int64_t *places = <int64_t *> call.operand[2]
    cdef uint64_t *room = <uint64_t *> call.operand[3]
    cdef int64_t n = call.size[1], inner = call.size[2], k = call.size[3], i, y
    cdef int64_t rows = call.size[0] * inner
    cdef int thread, threads = call.threads
    for thread in prange(threads, num_threads=threads, schedule="static"):
        for i in range(rows * thread // threads, rows * (thread + 1) // threads):
            y = i // inner * k * inner + i % inner
            select_first(x + i // inner * n * inner + i % inner, n, inner, k, <int> call.size[4],
                         room + thread * k, values + y, places + y)
    return 0


# Whole numbers without a sign: beyond their range they start again, as NumPy's do.
ctypedef fused number:
    float
    uint32_t
    uint64_t


cdef inline void add_up(
    const number *x, number *y, int64_t n, int64_t inner, bint exclusive, bint reverse
) noexcept nogil:
    cdef int64_t row, before = 0, i, j
    for i in range(n):
        row = n - 1 - i if reverse else i
        for j in range(inner):
            if i == 0:
                y[row * inner + j] = <number> 0 if exclusive else x[row * inner + j]
            else:
                y[row * inner + j] = (
                    y[before * inner + j] + x[(before if exclusive else row) * inner + j])
        before = row


cdef int running_sum(const Call *call) noexcept nogil:
    """operands: x IN (outer, n, inner), y OUT like x. sizes: outer, n, inner, bytes of a whole
    number, or 0 for float32; whether without the value itself, whether from the end."""
    cdef int64_t n = call.size[1], inner = call.size[2], kind = call.size[3], i
    cdef bint exclusive = call.size[4], reverse = call.size[5]
    for i in prange(call.size[0], num_threads=call.threads, schedule="static"):
        if kind == 0:
            add_up(<const float *> call.operand[0] + i * n * inner,
                   <float *> call.operand[1] + i * n * inner, n, inner, exclusive, reverse)
        elif kind == 4:
            add_up(<const uint32_t *> call.operand[0] + i * n * inner,
                   <uint32_t *> call.operand[1] + i * n * inner, n, inner, exclusive, reverse)
        else:
            add_up(<const uint64_t *> call.operand[0] + i * n * inner,
                   <uint64_t *> call.operand[1] + i * n * inner, n, inner, exclusive, reverse)
    return 0


entries = {
    "reduce": entry(reduce),
    "softmax": entry(softmax),
    "layer_norm": entry(layer_norm),
    "arg_max": entry(arg_max),
    "top_k": entry(top_k),
    "running_sum": entry(running_sum),
}
