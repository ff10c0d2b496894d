"""Nearest codewords of rows that lie together in boxes: see boxes.h for what a box rules out.

Rows are compared with the few candidates of their box, by the definition (assign.pyx).
"""

from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

from fastvq._kernels.candidates cimport candidates_in, filled_up_to, nearest_of, rows_at_once
from fastvq._kernels.rows cimport Rows, pack_block, real, rows_of
from fastvq._kernels.scratch cimport room, whole_lines

cdef extern from "boxes.h" nogil:
    enum:
        MOST_ROWS

cdef extern from "pair.h" nogil:
    enum:
        IN_ORDER

cdef enum:
    TASK_BOXES = 16  # that a thread takes at a time


def block_rows(Py_ssize_t d, int itemsize):
    """Rows that are compared with a codeword at once."""
    return rows_at_once(d, itemsize)


def most_features():
    """Up to which a distance is one sum with the features in order, as `distances` has it."""
    return IN_ORDER


def step(int itemsize):
    """What the number of codewords is filled up to a multiple of."""
    return filled_up_to(itemsize)


def workspace_bytes(Py_ssize_t d, int itemsize, Py_ssize_t k):
    """Scratch memory of one thread: distances, candidates and their codewords, rows packed."""
    return (whole_lines(k * itemsize) + whole_lines(k * 4) + whole_lines(k * d * itemsize)
            + whole_lines(block_rows(d, itemsize) * d * itemsize))


def enclose(
    tuple source, const int64_t[::1] starts,  # IN (n + 1,): box b has positions starts[b] .. [b+1]
    real[:, ::1] centres, real[:, ::1] reaches,  # OUT (n, d)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Boxes around rows that are known to be finite."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n = centres.shape[0], b
    with nogil:
        for b in prange(n, schedule="dynamic", chunksize=TASK_BOXES, num_threads=n_threads):
            enclose_box(&rows, starts[b], starts[b + 1], &centres[b, 0], &reaches[b, 0],
                        <real *> &workspace[threadid(), 0])


cdef void enclose_box(
    const Rows *rows, Py_ssize_t start, Py_ssize_t stop, real *centre, real *reach, real *block,
) noexcept nogil:
    """The reach is rounded up."""
    cdef Py_ssize_t d = rows.n_features, width = rows_at_once(d, sizeof(real)), f, r, b, first, count
    cdef real eps = 1.2e-7 if real is float else 2.3e-16
    cdef real least
    for f in range(d):
        centre[f], reach[f] = INFINITY, -INFINITY  # the least and the largest value, for now
    for b in range((stop - start + width - 1) // width):
        first = start + b * width
        count = min(width, stop - first)
        pack_block(rows, first, count, width, block)
        for f in range(d):
            for r in range(count):
                centre[f] = min(centre[f], block[f * width + r])
                reach[f] = max(reach[f], block[f * width + r])
    for f in range(d):
        least = centre[f]
        centre[f] = least / 2 + reach[f] / 2
        reach[f] = max(reach[f] - centre[f], centre[f] - least) * (1 + 4 * eps)


def assign(
    tuple source, const int64_t[::1] starts,  # IN: rows of the boxes, as for `enclose`
    const real[:, ::1] centres, const real[:, ::1] reaches,  # IN
    Py_ssize_t first_box, Py_ssize_t last_box,  # the boxes to be done
    const real[:, ::1] codebook,  # IN (k, d)
    const real[:, ::1] features,  # IN (d, k filled up to a multiple of `step`): the same
    const int32_t[::1] order,  # IN: the place in `codes` of each position
    int32_t[::1] codes,  # OUT
    real[::1] distances,  # OUT: |x - c|^2, features added in order
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Codes of all rows of the boxes; how many candidates their boxes had, in all rows' total."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t b, compared = 0
    with nogil:
        for b in prange(first_box, last_box, schedule="dynamic", chunksize=TASK_BOXES,
                        num_threads=n_threads):
            compared += assign_box(
                &rows, starts[b], starts[b + 1], &centres[b, 0], &reaches[b, 0],
                &codebook[0, 0], codebook.shape[0], &features[0, 0], features.shape[1], &order[0], &codes[0],
                &distances[0], &workspace[threadid(), 0])
    return compared


cdef Py_ssize_t assign_box(
    const Rows *rows, Py_ssize_t start, Py_ssize_t stop, const real *centre, const real *reach,
    const real *codebook, Py_ssize_t n, const real *features, Py_ssize_t k,
    const int32_t *order, int32_t *codes, real *distances, uint8_t *scratch,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, i, r, b, first, count, n_candidates
    cdef Py_ssize_t width = rows_at_once(d, sizeof(real))
    cdef char *memory = <char *> scratch
    cdef real *far = <real *> room(&memory, k * sizeof(real))
    cdef int32_t *candidates = <int32_t *> room(&memory, k * 4)
    cdef real *chosen = <real *> room(&memory, k * d * sizeof(real))
    cdef real *block = <real *> memory
    cdef real best[MOST_ROWS]
    cdef int32_t code[MOST_ROWS]
    n_candidates = candidates_in(features, k, n, d, centre, reach, far, candidates)
    for i in range(n_candidates):
        memcpy(chosen + i * d, codebook + candidates[i] * d, d * sizeof(real))
    for b in range((stop - start + width - 1) // width):
        first = start + b * width
        count = min(width, stop - first)
        pack_block(rows, first, count, width, block)
        nearest_of(block, chosen, n_candidates, d, best, code)
        for r in range(count):
            codes[order[first + r]] = candidates[code[r]]
            distances[order[first + r]] = best[r]
    return n_candidates * (stop - start)
