"""Squared distances from the differences: to a row's own codeword, to all codewords; norms.

These are what is reported (inertia, distances), so they never come from an expansion.
"""

from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, sqrt
from libc.stdint cimport int32_t, uint8_t

from fastvq._kernels.pair cimport squared_distance
from fastvq._kernels.rows cimport Rows, contiguous_rows, real, rows_of, scaled_rows, within_range

cdef extern from "lanes.h" nogil:
    double f64_multiply_add(double, double, double)

cdef enum:
    TASK_ROWS = 256  # rows that a thread takes at a time
    BLOCK_ROWS = 16  # rows converted at a time
    CHAINS = 8  # rows squared at a time: each sum waits four cycles for every one of its features


def workspace_bytes(Py_ssize_t d, int itemsize):
    """Scratch memory of one thread: a block of rows converted."""
    return (BLOCK_ROWS * d * itemsize + 63) // 64 * 64


def to_codewords(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[:, ::1] codebook,  # IN (k, d), multiplied by scale already
    const int32_t[::1] codes,  # IN (stop - start,)
    real[::1] out,  # OUT (stop - start,): |x * scale - c|^2
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Distance of each row to its codeword; 0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + TASK_ROWS - 1) // TASK_ROWS, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= task(
                &rows, start, start + t * TASK_ROWS, min(start + (t + 1) * TASK_ROWS, stop),
                <real> scale,
                &codebook[0, 0], codebook.shape[0], &codes[0], &out[0],
                <real *> &workspace[threadid(), 0])
    return bad


def to_all(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[:, ::1] codebook,  # IN (k, d), multiplied by scale already
    real[:, ::1] out,  # OUT (stop - start, k)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Distance of each row to every codeword; 0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + TASK_ROWS - 1) // TASK_ROWS, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= task(
                &rows, start, start + t * TASK_ROWS, min(start + (t + 1) * TASK_ROWS, stop),
                <real> scale,
                &codebook[0, 0], codebook.shape[0], NULL, &out[0, 0],
                <real *> &workspace[threadid(), 0])
    return bad


cdef int task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, real scale,
    const real *codebook, Py_ssize_t k, const int32_t *codes, real *out, real *scratch,
) noexcept nogil:
    """Distances to the codes' codewords, or to all where `codes` is NULL."""
    cdef Py_ssize_t d = rows.n_features, b, first, count, r, c
    cdef const real *block
    cdef int bad = 0
    for b in range((stop - start + BLOCK_ROWS - 1) // BLOCK_ROWS):
        first = start + b * BLOCK_ROWS
        count = min(<Py_ssize_t> BLOCK_ROWS, stop - first)
        block = scaled_rows(rows, first, count, scale, scratch)
        bad |= not within_range(block, count * d)
        for r in range(first - origin, first - origin + count):
            if codes != NULL:
                out[r] = to_codeword(block, codebook + codes[r] * d, d)
            else:
                for c in range(k):
                    out[r * k + c] = squared_distance(block, codebook + c * d, d)
            block += d
    return bad


cdef inline real to_codeword(const real *row, const real *codeword, Py_ssize_t d) noexcept nogil:
    """Of few features by loops whose length the compiler knows."""
    if d == 4:
        return squared_distance(row, codeword, 4)
    if d == 8:
        return squared_distance(row, codeword, 8)
    return squared_distance(row, codeword, d)


def norms(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, bint squared,
    real[::1] out,  # OUT (stop - start,)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Euclidean norm of each row, or its square; 0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + TASK_ROWS - 1) // TASK_ROWS, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= norms_task(
                &rows, start, start + t * TASK_ROWS, min(start + (t + 1) * TASK_ROWS, stop),
                <real> scale,
                squared, &out[0], <real *> &workspace[threadid(), 0])
    return bad


cdef int norms_task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, real scale,
    bint squared, real *out, real *scratch,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, b, first, count, r
    cdef const real *block
    cdef double squares[BLOCK_ROWS]
    cdef int bad = 0
    for b in range((stop - start + BLOCK_ROWS - 1) // BLOCK_ROWS):
        first = start + b * BLOCK_ROWS
        count = min(<Py_ssize_t> BLOCK_ROWS, stop - first)
        block = scaled_rows(rows, first, count, scale, scratch)
        bad |= not within_range(block, count * d)
        add_squares(block, d, count, squares)
        for r in range(count):
            out[first - origin + r] = <real> (
                squares[r] if squared else sqrt(squares[r]) / scale)
    return bad


cdef inline void add_squares(
    const real *block, Py_ssize_t d, Py_ssize_t count, double *squares,
) noexcept nogil:
    """squares[r] = |row r|^2, its features in order."""
    cdef Py_ssize_t group, r, f, c
    cdef double sums[CHAINS]
    for group in range(count // CHAINS):
        for c in range(CHAINS):
            sums[c] = 0
        for f in range(d):
            for c in range(CHAINS):
                sums[c] = f64_multiply_add(block[c * d + f], block[c * d + f], sums[c])
        for c in range(CHAINS):
            squares[group * CHAINS + c] = sums[c]
        block += CHAINS * d
    for r in range(count // CHAINS * CHAINS, count):
        squares[r] = 0
        for f in range(d):
            squares[r] = f64_multiply_add(block[f], block[f], squares[r])
        block += d


def largest(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    const real[::1] like,  # its type is the one in which rows are read
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Largest absolute value of the rows; infinity where one is not finite."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + TASK_ROWS - 1) // TASK_ROWS, t
    cdef double[:] found
    from array import array
    found = array("d", [0.0]) * max(n_tasks, 1)
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            found[t] = largest_task(
                &rows, start + t * TASK_ROWS, min(start + (t + 1) * TASK_ROWS, stop),
                <real *> &workspace[threadid(), 0])
    return max(found)


cdef double largest_task(
    const Rows *rows, Py_ssize_t start, Py_ssize_t stop, real *scratch,
) noexcept nogil:
    cdef Py_ssize_t b, first, count, i
    cdef const real *block
    cdef real x, most = 0
    cdef int finite = 1
    for b in range((stop - start + BLOCK_ROWS - 1) // BLOCK_ROWS):
        first = start + b * BLOCK_ROWS
        count = min(<Py_ssize_t> BLOCK_ROWS, stop - first)
        block = contiguous_rows(rows, first, count, scratch)
        for i in range(count * rows.n_features):
            x = block[i] if block[i] > 0 else -block[i]
            most = x if x > most else most
            finite &= x - x == 0  # false for infinity and NaN
    return <double> most if finite else INFINITY
