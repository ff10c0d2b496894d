"""Sum and weight of the rows of each codeword: the centroid half of Lloyd's iteration.

Every thread owns a range of codewords, scans all codes and adds the rows that are its own in
their order, in float64. The result has the same bits at any number of threads, and needs neither
a sorted copy of the codes nor a table of sums for each thread.
"""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uint8_t

from fastvq._kernels.rows cimport Rows, contiguous_rows, lies_plain, real, rows_of

cdef enum:
    BLOCK = 1024  # positions scanned for owned rows at a time


def workspace_bytes(Py_ssize_t d, int itemsize):
    """Scratch memory of one thread: one row converted."""
    return (d * itemsize + 63) // 64 * 64


def add(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    const real[::1] like,  # its type is the one in which rows are read
    const int32_t[::1] codes,  # IN (stop - start,)
    const double[::1] weight,  # IN (stop - start,) or (0,): all 1
    const int32_t[::1] owner,  # IN (n_threads + 1,): thread t owns codewords owner[t] .. [t + 1]
    double[:, ::1] totals, double[::1] weights,  # INOUT (k, d), (k,)
    uint8_t[:, ::1] workspace,
):
    cdef Rows rows = rows_of(source)
    cdef const double *weight_data = &weight[0] if weight.shape[0] else NULL
    cdef int n_threads = owner.shape[0] - 1, t
    with nogil:
        for t in prange(n_threads, schedule="static", chunksize=1, num_threads=n_threads):
            add_owned(
                &rows, start, stop, &codes[0], weight_data, owner[t], owner[t + 1],
                &totals[0, 0], &weights[0], <real *> &workspace[t, 0])


cdef void add_owned(
    const Rows *rows, Py_ssize_t start, Py_ssize_t stop, const int32_t *codes,
    const double *weight, int32_t low, int32_t high, double *totals, double *weights, real *scratch,
) noexcept nogil:
    cdef Py_ssize_t b, first, count, i, position, d = rows.n_features
    cdef bint plain = lies_plain(rows, <real> 0)
    cdef Py_ssize_t owned[BLOCK]
    cdef Py_ssize_t n_owned
    cdef const real *row
    cdef double w
    for b in range((stop - start + BLOCK - 1) // BLOCK):
        first = b * BLOCK
        count = min(<Py_ssize_t> BLOCK, stop - start - first)
        n_owned = 0
        for i in range(first, first + count):
            owned[n_owned] = i
            n_owned += (codes[i] >= low) & (codes[i] < high)  # no branch: it would be a coin toss
        for i in range(n_owned):
            position = owned[i]
            if plain:
                row = <const real *> (rows.data + (start + position) * rows.row_stride)
            else:
                row = contiguous_rows(rows, start + position, 1, scratch)
            w = 1 if weight == NULL else weight[position]
            weights[codes[position]] += w
            add_row(row, w, d, totals + codes[position] * d)


cdef inline void add_row(const real *row, double w, Py_ssize_t d, double *total) noexcept nogil:
    """For few features a loop of unknown length costs more than its sums."""
    if d == 3:  # pixels
        add_features(row, w, 3, total)
    elif d == 4:
        add_features(row, w, 4, total)
    elif d == 8:
        add_features(row, w, 8, total)
    else:
        add_features(row, w, d, total)


cdef inline void add_features(
    const real *row, double w, Py_ssize_t d, double *total,
) noexcept nogil:
    cdef Py_ssize_t f
    for f in range(d):
        total[f] += w * row[f]


def histogram(const int32_t[::1] codes, int64_t[::1] counts):
    """counts[c] += number of codes that are c; False where one lies outside of the counts."""
    cdef Py_ssize_t i
    cdef int64_t k = counts.shape[0]
    cdef int valid = 1
    with nogil:
        for i in range(codes.shape[0]):
            valid &= 0 <= codes[i] < k
        if valid:
            for i in range(codes.shape[0]):
                counts[codes[i]] += 1
    return bool(valid)
