"""The two passes of greedy k-means++: what each candidate would gain, and adopting one.

Potentials are sums over rows in float64, taken in order within blocks of TASK_ROWS rows and then
over the blocks: the same bits at any number of threads.
"""

from cython.parallel cimport prange, threadid
from libc.stdint cimport uint8_t

from fastvq._kernels.pair cimport squared_distances
from fastvq._kernels.rows cimport Rows, real, rows_of, scaled_rows, within_range

cdef extern from "eight.h" nogil:
    enum:
        EIGHT
    void f32_gain(const float *, Py_ssize_t, const float *, const float *, const double *,
                  Py_ssize_t, double *)
    void f64_gain(const double *, Py_ssize_t, const double *, const double *, const double *,
                  Py_ssize_t, double *)
    double f64_multiply_add(double, double, double)

cdef enum:
    TASK_ROWS = 1024
    BLOCK_ROWS = 64  # rows converted at a time


def task_rows():
    return TASK_ROWS


def workspace_bytes(Py_ssize_t d, int itemsize):
    """Scratch memory of one thread: a block of rows converted."""
    return (BLOCK_ROWS * d * itemsize + 63) // 64 * 64


def potentials(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[:, ::1] candidates,  # IN (d, 8), times scale, aligned; padded with any
    const real[::1] closest,  # IN (stop - start,): distance to the nearest codeword so far
    const double[::1] weight,  # IN (stop - start,) or (0,): all 1
    double[:, ::1] out,  # OUT (tasks, 8): sum of w min(closest, |x - candidate|^2)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + TASK_ROWS - 1) // TASK_ROWS, t
    cdef const double *weight_data = &weight[0] if weight.shape[0] else NULL
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= potentials_task(
                &rows, start, start + t * TASK_ROWS, min(start + (t + 1) * TASK_ROWS, stop), <real> scale,
                &candidates[0, 0], &closest[0], weight_data, &out[t, 0],
                <real *> &workspace[threadid(), 0])
    return bad


cdef int potentials_task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, real scale,
    const real *candidates, const real *closest, const double *weight, double *out, real *scratch,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, b, first, count, j
    cdef const real *block
    cdef const real *near
    cdef const double *block_weight = NULL
    cdef int bad = 0
    for j in range(EIGHT):
        out[j] = 0
    for b in range((stop - start + BLOCK_ROWS - 1) // BLOCK_ROWS):
        first = start + b * BLOCK_ROWS
        count = min(<Py_ssize_t> BLOCK_ROWS, stop - first)
        block = scaled_rows(rows, first, count, scale, scratch)
        bad |= not within_range(block, count * d)
        near = closest + first - origin
        if weight != NULL:
            block_weight = weight + first - origin
        if real is float:
            f32_gain(block, d, candidates, near, block_weight, count, out)
        else:
            f64_gain(block, d, candidates, near, block_weight, count, out)
    return bad


def update(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[::1] candidate,  # IN (d,), times scale
    real[::1] closest,  # INOUT (stop - start,): lowered to |x - candidate|^2
    const double[::1] weight,  # IN (stop - start,) or (0,): all 1
    double[::1] out,  # OUT (tasks,): sum of w closest
    uint8_t[:, ::1] workspace, int n_threads,
):
    """0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + TASK_ROWS - 1) // TASK_ROWS, t
    cdef const double *weight_data = &weight[0] if weight.shape[0] else NULL
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= update_task(
                &rows, start, start + t * TASK_ROWS, min(start + (t + 1) * TASK_ROWS, stop), <real> scale,
                &candidate[0], &closest[0], weight_data, &out[t],
                <real *> &workspace[threadid(), 0])
    return bad


cdef int update_task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, real scale,
    const real *candidate, real *closest, const double *weight, double *out, real *scratch,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, b, first, count, r
    cdef const real *block
    cdef real distance[BLOCK_ROWS]
    cdef real *near
    cdef double total = 0
    cdef int bad = 0
    for b in range((stop - start + BLOCK_ROWS - 1) // BLOCK_ROWS):
        first = start + b * BLOCK_ROWS
        count = min(<Py_ssize_t> BLOCK_ROWS, stop - first)
        block = scaled_rows(rows, first, count, scale, scratch)
        bad |= not within_range(block, count * d)
        squared_distances(block, candidate, d, count, distance)
        near = closest + first - origin
        for r in range(count):
            near[r] = distance[r] if distance[r] < near[r] else near[r]
        if weight == NULL:
            for r in range(count):
                total += near[r]
        else:
            for r in range(count):
                total = f64_multiply_add(near[r], weight[first - origin + r], total)
    out[0] = total
    return bad
