"""What stands between products in a network of 8-bit integers: adds, pools, tables, quantization.

Integers exactly as fastvq/runtime/definitions/integers.py says; float32 operations one by one,
rounded each, so that the bits are the same on every level.
"""

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "int8_layers.h" nogil:
    void quantize_values(const float *x, int64_t n, float scale, int32_t zero_point, int8_t *q)
    void quantize_channels(
        const float *x, int64_t n, const float *scale, const int32_t *zero_point, int8_t *q)
    void dequantize_values(const int8_t *x, int64_t n, float scale, int32_t zero_point, float *y)
    void dequantize_channels(
        const int8_t *x, int64_t n, const float *scale, const int32_t *zero_point, float *y)
    ctypedef struct Sum:
        int32_t a_multiplier, b_multiplier, shift, a_zero_point, b_zero_point, y_zero_point
        int32_t low, high
    void add_8_8_8(const int8_t *, const int8_t *, int64_t, const Sum *, int8_t *)
    void add_8_8_16(const int8_t *, const int8_t *, int64_t, const Sum *, int16_t *)
    void add_16_8_8(const int16_t *, const int8_t *, int64_t, const Sum *, int8_t *)
    void add_16_8_16(const int16_t *, const int8_t *, int64_t, const Sum *, int16_t *)
    void add_16_16_8(const int16_t *, const int16_t *, int64_t, const Sum *, int8_t *)
    void add_16_16_16(const int16_t *, const int16_t *, int64_t, const Sum *, int16_t *)
    ctypedef struct Pool:
        int64_t height, width, channels, out_height, out_width, kernel_height, kernel_width
        int64_t stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x
        int average, count_padding
        double multiplier
        int32_t x_zero_point, y_zero_point
    void pool_place(const Pool *, const int8_t *x, int64_t place, int32_t *sums, int8_t *y)

# Values of a task: a few microseconds.
cdef enum:
    SHARE = 16384
    PLACES = 16


cdef void quantize_share(const Call *call, int64_t share, int64_t rows, int64_t n) noexcept nogil:
    """Rows of all channels, or where one scale serves all a run of values."""
    cdef int64_t first = share * rows, i
    cdef const float *scale = <const float *> call.operand[1]
    cdef const int32_t *zero = <const int32_t *> call.operand[2]
    cdef int64_t channels = call.size[1]
    cdef const float *x = <const float *> call.operand[0]
    cdef int8_t *q = <int8_t *> call.operand[3]
    if channels == 1:
        quantize_values(x + first, min(rows, n - first), scale[0], zero[0], q + first)
        return
    for i in range(first, min(first + rows, n)):
        quantize_channels(x + i * channels, channels, scale, zero, q + i * channels)


cdef int quantize(const Call *call) noexcept nogil:
    """operands: x IN float32, scale IN (channels,) float32, zero point IN int32, q OUT int8.

    sizes: rows, channels; one channel where one scale serves all.
    """
    cdef int64_t n = call.size[0], rows = max(1, SHARE // call.size[1]), share
    for share in prange((n + rows - 1) // rows, num_threads=call.threads, schedule="static"):
        quantize_share(call, share, rows, n)
    return 0


cdef void dequantize_share(const Call *call, int64_t share, int64_t rows, int64_t n) noexcept nogil:
    cdef int64_t first = share * rows, i
    cdef const float *scale = <const float *> call.operand[1]
    cdef const int32_t *zero = <const int32_t *> call.operand[2]
    cdef int64_t channels = call.size[1]
    cdef const int8_t *x = <const int8_t *> call.operand[0]
    cdef float *y = <float *> call.operand[3]
    if channels == 1:
        dequantize_values(x + first, min(rows, n - first), scale[0], zero[0], y + first)
        return
    for i in range(first, min(first + rows, n)):
        dequantize_channels(x + i * channels, channels, scale, zero, y + i * channels)


cdef int dequantize(const Call *call) noexcept nogil:
    """As `quantize`, the other way: x int8, y float32."""
    cdef int64_t n = call.size[0], rows = max(1, SHARE // call.size[1]), share
    for share in prange((n + rows - 1) // rows, num_threads=call.threads, schedule="static"):
        dequantize_share(call, share, rows, n)
    return 0


cdef void look_up(const int8_t *x, int64_t n, const int8_t *table, int8_t *y) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        y[i] = table[x[i] + 128]


cdef int table(const Call *call) noexcept nogil:
    """operands: x IN int8, table IN int8 (256,), y OUT int8. sizes: values."""
    cdef int64_t n = call.size[0], share
    for share in prange((n + SHARE - 1) // SHARE, num_threads=call.threads, schedule="static"):
        look_up(<const int8_t *> call.operand[0] + share * SHARE,
                min(<int64_t> SHARE, n - share * SHARE), <const int8_t *> call.operand[1],
                <int8_t *> call.operand[2] + share * SHARE)
    return 0


cdef void add_share(const Call *call, const Sum *sum, int64_t first, int64_t n) noexcept nogil:
    cdef int wide_a = <int> call.size[9], wide_b = <int> call.size[10], wide_y = <int> call.size[11]
    cdef const int8_t *a = <const int8_t *> call.operand[0]
    cdef const int8_t *b = <const int8_t *> call.operand[1]
    cdef int8_t *y = <int8_t *> call.operand[2]
    a += first * (1 + wide_a)
    b += first * (1 + wide_b)
    y += first * (1 + wide_y)
    if not wide_a:  # the lowering puts a wide operand first
        if wide_y:
            add_8_8_16(a, b, n, sum, <int16_t *> y)
        else:
            add_8_8_8(a, b, n, sum, y)
    elif not wide_b:
        if wide_y:
            add_16_8_16(<const int16_t *> a, b, n, sum, <int16_t *> y)
        else:
            add_16_8_8(<const int16_t *> a, b, n, sum, y)
    elif wide_y:
        add_16_16_16(<const int16_t *> a, <const int16_t *> b, n, sum, <int16_t *> y)
    else:
        add_16_16_8(<const int16_t *> a, <const int16_t *> b, n, sum, y)


cdef int add(const Call *call) noexcept nogil:
    """operands: a IN, b IN, y OUT. sizes: values, the eight of struct Sum, whether a, b, y are wide
    (int16, else int8; b only where a is)."""
    cdef int64_t n = call.size[0], share
    cdef Sum sum = Sum(
        <int32_t> call.size[1], <int32_t> call.size[2], <int32_t> call.size[3],
        <int32_t> call.size[4], <int32_t> call.size[5], <int32_t> call.size[6],
        <int32_t> call.size[7], <int32_t> call.size[8])
    for share in prange((n + SHARE - 1) // SHARE, num_threads=call.threads, schedule="static"):
        add_share(call, &sum, share * SHARE, min(<int64_t> SHARE, n - share * SHARE))
    return 0


cdef void pool_share(const Pool *job, const Call *call, int64_t task) noexcept nogil:
    cdef int64_t place, places = call.size[17]
    cdef int32_t *sums = <int32_t *> call.operand[2] + task * job.channels
    for place in range(places * task // call.size[18], places * (task + 1) // call.size[18]):
        pool_place(job, <const int8_t *> call.operand[0], place, sums,
                   <int8_t *> call.operand[1] + place * job.channels)


cdef int pool(const Call *call) noexcept nogil:
    """operands: x IN int8 (N, H, W, C), y OUT int8, sums: scratch (tasks, C) of int32.

    sizes: the integers of struct Pool in order (17), places of y, tasks. values: multiplier.
    """
    cdef const int64_t *s = &call.size[0]
    cdef Pool job = Pool(
        s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12],
        <int> s[13], <int> s[14], call.value[0], <int32_t> s[15], <int32_t> s[16])
    cdef int64_t task
    for task in prange(call.size[18], num_threads=call.threads, schedule="static"):
        pool_share(&job, call, task)
    return 0


entries = {
    "quantize": entry(quantize), "dequantize": entry(dequantize), "table": entry(table),
    "add": entry(add), "pool": entry(pool),
}
