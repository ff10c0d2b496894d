"""Values of 16 bits between layers of 8: sums that keep their precision where layers are added.

Integers exactly as fastvq/runtime/definitions/integers.py says. What belongs to a channel comes
with the call side by side, as often repeated as it takes to fill vectors (`span` values): value i
of x has the constants i modulo span.
"""

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "int16.h" nogil:
    void requantize_16_8(
        const int16_t *x, int64_t n, int32_t x_zero_point, const float *multiplier,
        const int32_t *zero_point, int8_t *y)
    void quantize_16(const float *x, int64_t n, const float *scale, const int32_t *zero_point,
                     int16_t *y)
    void dequantize_16(const int16_t *x, int64_t n, const float *scale, const int32_t *zero_point,
                       float *y)

# Values of a task: a few microseconds.
cdef enum:
    SHARE = 16384

# What there is to do, the first of `size`.
cdef enum:
    NARROW
    QUANTIZE
    DEQUANTIZE


cdef void run_span(const Call *call, int64_t first, int64_t n) noexcept nogil:
    """n values from `first` on, which has the constants from 0 on."""
    cdef const float *factor = <const float *> call.operand[1]
    cdef const int32_t *zero = <const int32_t *> call.operand[2]
    if call.size[0] == NARROW:
        requantize_16_8(<const int16_t *> call.operand[0] + first, n, <int32_t> call.size[3],
                        factor, zero, <int8_t *> call.operand[3] + first)
    elif call.size[0] == QUANTIZE:
        quantize_16(<const float *> call.operand[0] + first, n, factor, zero,
                    <int16_t *> call.operand[3] + first)
    else:
        dequantize_16(<const int16_t *> call.operand[0] + first, n, factor, zero,
                      <float *> call.operand[3] + first)


cdef void run_share(const Call *call, int64_t first, int64_t last) noexcept nogil:
    cdef int64_t span = call.size[2]
    while first < last:
        run_span(call, first, min(span, last - first))
        first += span


cdef int steps(const Call *call) noexcept nogil:
    """operands: x IN, multiplier or scale IN float32 (span,), zero point IN int32 (span,), y OUT.

    sizes: what (NARROW int16 to int8, QUANTIZE float32 to int16, DEQUANTIZE int16 to float32),
    values, span, x's zero point, which the first has.
    """
    cdef int64_t n = call.size[1], span = call.size[2]
    cdef int64_t share = max(1, SHARE // span) * span, task
    for task in prange((n + share - 1) // share, num_threads=call.threads, schedule="static"):
        run_share(call, task * share, min(n, (task + 1) * share))
    return 0


entries = {"steps": entry(steps)}
