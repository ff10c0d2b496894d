"""Distances of rows to points that stay: nearest codewords, neighbours, support vectors."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "points.h" nogil:
    enum:
        POINTS
        POINT_ROWS
        METRIC_SQUARED
        METRIC_EUCLIDEAN
        METRIC_MANHATTAN
        METRIC_CHEBYSHEV
    void rows_to_panel(
        int rows, int metric, int scaled, const float *x, Py_ssize_t d, const float *panel,
        Py_ssize_t count, float *y, Py_ssize_t k)


cdef int distances(const Call *call) noexcept nogil:
    """operands: x IN (n, d), panels IN (ceil(k / POINTS), d, 1 or 2, POINTS): points, and scales if
    there are two; y OUT (n, k). sizes: n, d, k, whether there are scales, metric."""
    cdef int64_t panels = (call.size[2] + POINTS - 1) // POINTS
    cdef int64_t tasks = panels * ((call.size[0] + POINT_ROWS - 1) // POINT_ROWS)
    cdef int t, n_threads = call.threads
    if n_threads == 1:
        share(call, 0, tasks)
        return 0
    for t in prange(n_threads, schedule="static", chunksize=1, num_threads=n_threads):
        share(call, tasks * t // n_threads, tasks * (t + 1) // n_threads)
    return 0


cdef void share(const Call *call, int64_t first, int64_t last) noexcept nogil:
    """Some of the tasks, all rows beside one panel after those beside the panel before."""
    cdef int64_t n = call.size[0], d = call.size[1], k = call.size[2]
    cdef int scaled = <int> call.size[3], metric = <int> call.size[4]
    cdef int64_t blocks = (n + POINT_ROWS - 1) // POINT_ROWS, i, panel, row, count, r
    cdef const float *x
    cdef const float *points
    cdef float *y
    for i in range(first, last):
        panel, row = i // blocks, i % blocks * POINT_ROWS
        x = <const float *> call.operand[0] + row * d
        points = <const float *> call.operand[1] + panel * d * (1 + scaled) * POINTS
        y = <float *> call.operand[2] + row * k + panel * POINTS
        count = min(<int64_t> POINTS, k - panel * POINTS)
        if n - row >= POINT_ROWS:
            rows_to_panel(POINT_ROWS, metric, scaled, x, d, points, count, y, k)
            continue
        for r in range(n - row):
            rows_to_panel(1, metric, scaled, x + r * d, d, points, count, y + r * k, k)


entries = {"distances": entry(distances)}
width = POINTS
METRICS = {
    "squared": METRIC_SQUARED,
    "euclidean": METRIC_EUCLIDEAN,
    "manhattan": METRIC_MANHATTAN,
    "chebyshev": METRIC_CHEBYSHEV,
}
