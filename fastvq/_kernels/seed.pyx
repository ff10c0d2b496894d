"""The steps of greedy k-means++: what each candidate would gain, and adopting one.

Gains are sums over rows in float64, taken in order within blocks of TASK_ROWS rows and then over
the blocks: the same bits at any number of threads. A row to which no candidate is nearer adds
nothing, so leaving it out does not show. To which rows one is nearer is noted, a bit a candidate:
adopting it need not read the others again.
"""

from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memset

from fastvq._kernels.pair cimport squared_distance
from fastvq._kernels.rows cimport Rows, copy_rows, lies_plain, real, row_at, rows_of

cdef extern from "eight.h" nogil:
    enum:
        EIGHT
        CHAINS
    int f32_gains(const float *const *, Py_ssize_t, const float *, const float *, const double *,
                  Py_ssize_t, uint8_t *, double *)
    int f64_gains(const double *const *, Py_ssize_t, const double *, const double *,
                  const double *, Py_ssize_t, uint8_t *, double *)

cdef enum:
    TASK_ROWS = 256
    BLOCK_ROWS = 64  # rows compared, and where they must be converted, at a time


def task_rows():
    return TASK_ROWS


def workspace_bytes(Py_ssize_t d, int itemsize):
    """Scratch memory of one thread: a block of rows converted."""
    return (BLOCK_ROWS * d * itemsize + 63) // 64 * 64


def gains(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[:, ::1] candidates,  # IN (d, 8), times scale, aligned; padded with any
    const real[::1] closest,  # IN (stop - start,): distance to the nearest codeword so far
    const double[::1] weight,  # IN (stop - start,) or (0,): all 1
    const int32_t[::1] nearest,  # IN (stop - start,) or (0,): which codeword that is
    const real[::1] reach,  # IN (codewords,): a row with no larger `closest` is left out
    uint8_t[::1] nearer,  # OUT (stop - start,): bit j is set where candidate j is nearer
    double[:, ::1] out,  # OUT (tasks, 8): sum of w max(closest - |x - candidate|^2, 0)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """0, or 1 where the distance of a row that was not left out is not finite."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + TASK_ROWS - 1) // TASK_ROWS, t
    cdef const double *weight_data = &weight[0] if weight.shape[0] else NULL
    cdef const int32_t *nearest_data = &nearest[0] if nearest.shape[0] else NULL
    cdef const real *reach_data = &reach[0] if nearest.shape[0] else NULL
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= gains_task(
                &rows, start, t * TASK_ROWS, min((t + 1) * TASK_ROWS, stop - start), <real> scale,
                &candidates[0, 0], &closest[0], weight_data, nearest_data, reach_data, &nearer[0],
                &out[t, 0], <real *> &workspace[threadid(), 0])
    return bad


cdef int gains_task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, real scale,
    const real *candidates, const real *closest, const double *weight, const int32_t *nearest,
    const real *reach, uint8_t *nearer, double *out, real *scratch,
) noexcept nogil:
    """Rows are numbered from `origin` on, as the arrays are that go with them."""
    cdef Py_ssize_t some[TASK_ROWS]  # the rows that are looked at
    cdef Py_ssize_t n_some = 0, step = rows_at_once(rows, scale), r, b, first
    cdef int bad = 0
    memset(out, 0, EIGHT * sizeof(double))
    memset(nearer + start, 0, stop - start)
    for r in range(start, stop):
        some[n_some] = r
        n_some += nearest == NULL or closest[r] > reach[nearest[r]]
    for b in range((n_some + step - 1) // step):
        first = b * step
        bad |= gains_of(
            rows, origin, some + first, min(step, n_some - first), scale, candidates, closest,
            weight, nearer, out, scratch)
    return bad


cdef int gains_of(
    const Rows *rows, Py_ssize_t origin, const Py_ssize_t *some, Py_ssize_t count, real scale,
    const real *candidates, const real *closest, const double *weight, uint8_t *nearer,
    double *out, real *scratch,
) noexcept nogil:
    """Adds the gains of some rows."""
    cdef const real *block[TASK_ROWS]
    cdef real near[TASK_ROWS]
    cdef double factor[TASK_ROWS]
    cdef uint8_t marks[TASK_ROWS]
    cdef Py_ssize_t i
    cdef int bad
    point_at(rows, origin, some, count, scale, block, scratch)
    for i in range(count):
        near[i] = closest[some[i]]
        factor[i] = 1 if weight == NULL else weight[some[i]]
    for i in range(count, padded(count)):
        block[i] = block[count - 1]
        near[i] = 0
    if real is float:
        bad = f32_gains(block, rows.n_features, candidates, near, factor, count, marks, out)
    else:
        bad = f64_gains(block, rows.n_features, candidates, near, factor, count, marks, out)
    for i in range(count):
        nearer[some[i]] = marks[i]
    return bad


def update(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[::1] candidate,  # IN (d,), times scale
    const uint8_t[::1] nearer, int bit,  # IN (stop - start,) or (0,): rows with this bit, or all
    real[::1] closest,  # INOUT (stop - start,): lowered to |x - candidate|^2
    int32_t[::1] nearest, int code,  # INOUT (stop - start,) or (0,): the code where that is lower
    uint8_t[:, ::1] workspace, int n_threads,
):
    """0, or 1 where a distance is not finite."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + TASK_ROWS - 1) // TASK_ROWS, t
    cdef const uint8_t *nearer_data = &nearer[0] if nearer.shape[0] else NULL
    cdef int32_t *nearest_data = &nearest[0] if nearest.shape[0] else NULL
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= update_task(
                &rows, start, t * TASK_ROWS, min((t + 1) * TASK_ROWS, stop - start), <real> scale,
                &candidate[0], nearer_data, 1 << bit, &closest[0], nearest_data, code,
                <real *> &workspace[threadid(), 0])
    return bad


cdef int update_task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, real scale,
    const real *candidate, const uint8_t *nearer, int mask, real *closest, int32_t *nearest,
    int code, real *scratch,
) noexcept nogil:
    cdef const real *block[TASK_ROWS]
    cdef Py_ssize_t some[TASK_ROWS]
    cdef Py_ssize_t n_some = 0, step = rows_at_once(rows, scale), r, b, i, first, count
    cdef real distance
    cdef int bad = 0
    for r in range(start, stop):
        some[n_some] = r
        n_some += nearer == NULL or (nearer[r] & mask) != 0
    for b in range((n_some + step - 1) // step):
        first = b * step
        count = min(step, n_some - first)
        point_at(rows, origin, some + first, count, scale, block, scratch)
        for i in range(count):
            r = some[first + i]
            distance = squared_distance(block[i], candidate, rows.n_features)
            bad |= not distance - distance == 0
            if distance < closest[r]:
                closest[r] = distance
                if nearest != NULL:
                    nearest[r] = code
    return bad


cdef inline Py_ssize_t padded(Py_ssize_t count) noexcept nogil:
    return (count + CHAINS - 1) // CHAINS * CHAINS


cdef inline bint in_place(const Rows *rows, real scale) noexcept nogil:
    cdef Rows all_rows = rows[0]
    all_rows.index = NULL  # a list of rows is no reason to copy: each is pointed at
    return scale == 1 and lies_plain(&all_rows, scale)


cdef inline Py_ssize_t rows_at_once(const Rows *rows, real scale) noexcept nogil:
    return TASK_ROWS if in_place(rows, scale) else BLOCK_ROWS


cdef inline void point_at(
    const Rows *rows, Py_ssize_t origin, const Py_ssize_t *some, Py_ssize_t count, real scale,
    const real **block, real *scratch,
) noexcept nogil:
    """block[i] = the row origin + some[i], where it lies or, converted, in scratch."""
    cdef Py_ssize_t index[BLOCK_ROWS]
    cdef Py_ssize_t i, d = rows.n_features
    cdef Rows listed = rows[0]
    if in_place(rows, scale):
        for i in range(count):
            block[i] = <const real *> row_at(rows, origin + some[i])
        return
    if some[count - 1] - some[0] == count - 1:  # Fortran order is read by columns then
        copy_rows(rows, origin + some[0], count, count, scratch, d, 1)
    else:
        for i in range(count):
            index[i] = origin + some[i] if rows.index == NULL else rows.index[origin + some[i]]
        listed.index = index
        copy_rows(&listed, 0, count, count, scratch, d, 1)
    if scale != 1:
        for i in range(count * d):
            scratch[i] *= scale
    for i in range(count):
        block[i] = scratch + i * d
