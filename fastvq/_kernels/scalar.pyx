"""Scalar quantization: every value by itself, in even steps or to the nearest of given levels.

All of this runs at the speed of memory or of the first-level cache, so rows are read where they lie
if they can be, and parameters come once for every feature. Rows of few features are handled several
at a time: parameters are repeated to a `period`, a multiple of the features, and a block of rows is
one long run of values.
"""

from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t

from fastvq._kernels.rows cimport Rows, contiguous_rows, real, rows_of

cdef extern from "scalar.h" nogil:
    int f32_encode_u8(const float *, Py_ssize_t, const float *, const float *, const float *,
                      const float *, uint8_t *)
    int f32_encode_u16(const float *, Py_ssize_t, const float *, const float *, const float *,
                       const float *, uint16_t *)
    int f64_encode_u8(const double *, Py_ssize_t, const double *, const double *, const double *,
                      const double *, uint8_t *)
    int f64_encode_u16(const double *, Py_ssize_t, const double *, const double *,
                       const double *, const double *, uint16_t *)
    void f32_decode_u8(const uint8_t *, Py_ssize_t, const float *, const float *, float *)
    void f32_decode_u16(const uint16_t *, Py_ssize_t, const float *, const float *, float *)
    void f64_decode_u8(const uint8_t *, Py_ssize_t, const double *, const double *, double *)
    void f64_decode_u16(const uint16_t *, Py_ssize_t, const double *, const double *, double *)
    int f32_extremes(const float *, Py_ssize_t, float *, float *)
    int f64_extremes(const double *, Py_ssize_t, double *, double *)
    int f32_finite(const float *, Py_ssize_t)
    int f64_finite(const double *, Py_ssize_t)
    void f32_search_u8(const float *, Py_ssize_t, Py_ssize_t, float, float, float,
                       const uint16_t *, const float *, int, uint8_t *)
    void f32_search_u16(const float *, Py_ssize_t, Py_ssize_t, float, float, float,
                        const uint16_t *, const float *, int, uint16_t *)
    void f64_search_u8(const double *, Py_ssize_t, Py_ssize_t, double, double, double,
                       const uint16_t *, const double *, int, uint8_t *)
    void f64_search_u16(const double *, Py_ssize_t, Py_ssize_t, double, double, double,
                        const uint16_t *, const double *, int, uint16_t *)

ctypedef fused code_type:
    uint8_t
    uint16_t

cdef enum:
    BLOCK_VALUES = 8192  # values converted at a time: they stay in the first-level cache
    TASK_BLOCKS = 8  # blocks that a thread takes at a time


cdef inline Py_ssize_t block_rows(Py_ssize_t d) noexcept nogil:
    return max(<Py_ssize_t> 1, BLOCK_VALUES // d)


def workspace_bytes(Py_ssize_t d, int itemsize):
    """Scratch memory of one thread: a block of rows converted."""
    return (block_rows(d) * d * itemsize + 63) // 64 * 64


def extremes(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    real[:, ::1] least, real[:, ::1] most,  # INOUT (n_threads, period)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Least and largest value of each feature; 0, or 1 where a value is not finite."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t task = block_rows(rows.n_features) * TASK_BLOCKS
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= extremes_task(
                &rows, start + t * task, min(start + (t + 1) * task, stop), least.shape[1],
                &least[threadid(), 0], &most[threadid(), 0], <real *> &workspace[threadid(), 0])
    return bad


cdef int extremes_task(
    const Rows *rows, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t period,
    real *least, real *most, real *scratch,
) noexcept nogil:
    cdef Py_ssize_t first, count, at, n
    cdef const real *block
    cdef int bad = 0
    first = start
    while first < stop:
        count = min(block_rows(rows.n_features), stop - first)
        block = contiguous_rows(rows, first, count, scratch)
        at = 0
        while at < count * rows.n_features:
            n = min(period, count * rows.n_features - at)
            if real is float:
                bad |= f32_extremes(block + at, n, least, most)
            else:
                bad |= f64_extremes(block + at, n, least, most)
            at += period
        first += count
    return bad


def encode_even(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    const real[:, ::1] parameters,  # IN (4, period): value of code 0, 1 / step, first, last code
    code_type[:, ::1] codes,  # OUT (stop - start, d)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Codes of the nearest of evenly spaced levels; 0, or 1 where a value is not finite."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t task = block_rows(rows.n_features) * TASK_BLOCKS
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= encode_even_task(
                &rows, start + t * task, min(start + (t + 1) * task, stop), parameters.shape[1],
                &parameters[0, 0], &codes[t * task, 0], <real *> &workspace[threadid(), 0])
    return bad


cdef int encode_even_task(
    const Rows *rows, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t period,
    const real *parameters, code_type *codes, real *scratch,
) noexcept nogil:
    cdef Py_ssize_t first, count, at, n
    cdef const real *inverse = parameters + period
    cdef const real *least = parameters + 2 * period
    cdef const real *most = parameters + 3 * period
    cdef const real *block
    cdef int bad = 0
    first = start
    while first < stop:
        count = min(block_rows(rows.n_features), stop - first)
        block = contiguous_rows(rows, first, count, scratch)
        at = 0
        while at < count * rows.n_features:
            n = min(period, count * rows.n_features - at)
            if real is float and code_type is uint8_t:
                bad |= f32_encode_u8(block + at, n, parameters, inverse, least, most, codes + at)
            elif real is float:
                bad |= f32_encode_u16(block + at, n, parameters, inverse, least, most, codes + at)
            elif code_type is uint8_t:
                bad |= f64_encode_u8(block + at, n, parameters, inverse, least, most, codes + at)
            else:
                bad |= f64_encode_u16(block + at, n, parameters, inverse, least, most, codes + at)
            at += period
        first += count
        codes += count * rows.n_features
    return bad


def decode_even(
    const code_type[:, ::1] codes,  # IN (n, d)
    const real[:, ::1] parameters,  # IN (2, period): value of code 0, step
    real[:, ::1] out,  # OUT (n, d)
    int n_threads,
):
    cdef Py_ssize_t period = parameters.shape[1], n = codes.shape[0] * codes.shape[1]
    # As many periods as come near a task of the other kernels.
    cdef Py_ssize_t task = max(<Py_ssize_t> 1, BLOCK_VALUES * TASK_BLOCKS // period) * period
    cdef Py_ssize_t n_tasks = (n + task - 1) // task, t
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            decode_even_task(
                &codes[0, 0] + t * task, min(task, n - t * task), period, &parameters[0, 0],
                &out[0, 0] + t * task)


cdef void decode_even_task(
    const code_type *codes, Py_ssize_t size, Py_ssize_t period, const real *parameters, real *out,
) noexcept nogil:
    cdef Py_ssize_t at = 0, n
    cdef const real *scale = parameters + period
    while at < size:
        n = min(period, size - at)
        if real is float and code_type is uint8_t:
            f32_decode_u8(codes + at, n, parameters, scale, out + at)
        elif real is float:
            f32_decode_u16(codes + at, n, parameters, scale, out + at)
        elif code_type is uint8_t:
            f64_decode_u8(codes + at, n, parameters, scale, out + at)
        else:
            f64_decode_u16(codes + at, n, parameters, scale, out + at)
        at += period


def encode_levels(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    const real[:, ::1] thresholds,  # IN (n_groups, *): ascending, filled up with infinity
    const uint16_t[:, ::1] below,  # IN (n_groups, n_buckets): thresholds in earlier buckets
    const real[:, ::1] buckets,  # IN (n_groups, 2): where they begin, how many per unit
    const int32_t[::1] halvings,  # IN (n_groups,)
    const int32_t[::1] group,  # IN (d,): group of each feature
    code_type[:, ::1] codes,  # OUT (stop - start, d)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """How many thresholds lie below each value; 0, or 1 where one is not finite."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t task = block_rows(rows.n_features) * TASK_BLOCKS
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= encode_levels_task(
                &rows, start + t * task, min(start + (t + 1) * task, stop),
                &thresholds[0, 0], thresholds.shape[1], &below[0, 0], below.shape[1],
                &buckets[0, 0], &halvings[0], &group[0], &codes[t * task, 0],
                <real *> &workspace[threadid(), 0])
    return bad


cdef int encode_levels_task(
    const Rows *rows, Py_ssize_t start, Py_ssize_t stop,
    const real *thresholds, Py_ssize_t n_thresholds, const uint16_t *below, Py_ssize_t n_buckets,
    const real *buckets, const int32_t *halvings, const int32_t *group,
    code_type *codes, real *scratch,
) noexcept nogil:
    """Feature by feature within a block, so that one group's tables are in use at a time."""
    cdef Py_ssize_t first, count, f, g, d = rows.n_features
    cdef const real *block
    cdef const real *edges
    cdef const uint16_t *starts
    cdef real last = n_buckets - 1
    cdef int bad = 0
    first = start
    while first < stop:
        count = min(block_rows(d), stop - first)
        block = contiguous_rows(rows, first, count, scratch)
        if real is float:
            bad |= not f32_finite(block, count * d)
        else:
            bad |= not f64_finite(block, count * d)
        for f in range(d):
            g = group[f]
            edges = thresholds + g * n_thresholds
            starts = below + g * n_buckets
            if real is float and code_type is uint8_t:
                f32_search_u8(block + f, count, d, buckets[2 * g], buckets[2 * g + 1],
                              last, starts, edges, halvings[g], codes + f)
            elif real is float:
                f32_search_u16(block + f, count, d, buckets[2 * g], buckets[2 * g + 1],
                               last, starts, edges, halvings[g], codes + f)
            elif code_type is uint8_t:
                f64_search_u8(block + f, count, d, buckets[2 * g], buckets[2 * g + 1],
                              last, starts, edges, halvings[g], codes + f)
            else:
                f64_search_u16(block + f, count, d, buckets[2 * g], buckets[2 * g + 1],
                               last, starts, edges, halvings[g], codes + f)
        first += count
        codes += count * d
    return bad


def decode_levels(
    const code_type[:, ::1] codes,  # IN (n, d): below k
    const real[:, ::1] levels,  # IN (n_groups, k)
    const int64_t[::1] base,  # IN (period,): where the levels of each value's group begin
    real[:, ::1] out,  # OUT (n, d)
    int n_threads,
):
    cdef Py_ssize_t period = base.shape[0], n = codes.shape[0] * codes.shape[1]
    cdef Py_ssize_t task = max(<Py_ssize_t> 1, BLOCK_VALUES * TASK_BLOCKS // period) * period
    cdef Py_ssize_t n_tasks = (n + task - 1) // task, t
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            decode_levels_task(
                &codes[0, 0] + t * task, min(task, n - t * task), period, &levels[0, 0],
                &base[0], &out[0, 0] + t * task)


cdef void decode_levels_task(
    const code_type *codes, Py_ssize_t size, Py_ssize_t period, const real *levels,
    const int64_t *base, real *out,
) noexcept nogil:
    cdef Py_ssize_t at = 0, i
    while at < size:
        for i in range(min(period, size - at)):
            out[at + i] = levels[base[i] + codes[at + i]]
        at += period
