"""Nearest codewords in few features, by a grid of cells: see boxes.h for what a cell rules out.

A row in a cell where only one codeword can win has its code by looking it up. The others are put
in the order of their cells, some hundred thousand at a time, and compared with the candidates of
their cell by the definition (assign.pyx). Rows outside of the grid are compared with all codewords.
"""

from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memset

from fastvq._kernels.candidates cimport candidates_in, filled_up_to, nearest_of, rows_at_once
from fastvq._kernels.codes_out cimport put_codes, put_codes_at
from fastvq._kernels.rows cimport Rows, contiguous_rows, real, rows_of, within_range
from fastvq._kernels.scratch cimport room, whole_lines

cdef extern from "grid.h" nogil:
    enum:
        MOST_ROWS
        GATHER_AHEAD
    void f32_cells(const float *, Py_ssize_t, Py_ssize_t, const float *, const float *,
                   const int32_t *, int32_t, int32_t *)
    void f64_cells(const double *, Py_ssize_t, Py_ssize_t, const double *, const double *,
                   const int32_t *, int32_t, int32_t *)
    void f32_gather(const float *, const int32_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t, float *)
    void f64_gather(const double *, const int32_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t, double *)
    void f32_transpose(const float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, float *)
    void f64_transpose(const double *, Py_ssize_t, Py_ssize_t, Py_ssize_t, double *)

cdef extern from * nogil:
    int __builtin_ctz(uint32_t)

cdef enum:
    TASK_CELLS = 64  # that a thread fills at a time
    UNDECIDED = -1  # in place of the only codeword of a cell


def step(int itemsize):
    """What the number of codewords is filled up to a multiple of."""
    return filled_up_to(itemsize)


def workspace_bytes(
    Py_ssize_t d, int itemsize, Py_ssize_t k, Py_ssize_t n_cells, Py_ssize_t task_rows,
):
    """Scratch memory of one thread."""
    cdef Py_ssize_t width = rows_at_once(d, itemsize)
    return (whole_lines(task_rows * d * itemsize)  # rows, where they do not lie plain
            # those that wait, their cells, and those in order of cells
            + 3 * whole_lines((task_rows + GATHER_AHEAD) * 4)
            + whole_lines(n_cells * 4)
            + whole_lines(max(width * d, k) * itemsize) + whole_lines(k * 4)
            + whole_lines(k * d * itemsize))


def fill(
    const double[::1] low, const double[::1] side, const int32_t[::1] axis,  # IN (d,)
    const real[::1] reach,  # IN (d,): how far a row may be from the centre of its cell
    const real[:, ::1] features,  # IN (d, k filled up to a multiple of `step`)
    Py_ssize_t n_codewords,
    const int32_t[::1] cells,  # IN (n,): which to fill
    uint32_t[:, ::1] masks,  # OUT (n, words): a bit for each codeword that may win there
    int32_t[::1] counts,  # OUT (n,): how many may
    int32_t[::1] only,  # OUT (n,): the one that may, or UNDECIDED
    uint8_t[:, ::1] workspace, int n_threads,
):
    """What cells rule out."""
    cdef Py_ssize_t n = cells.shape[0], i
    with nogil:
        for i in prange(n, schedule="dynamic", chunksize=TASK_CELLS, num_threads=n_threads):
            fill_cell(
                cells[i], &low[0], &side[0], &axis[0], &reach[0], &features[0, 0],
                features.shape[1], n_codewords, axis.shape[0], &masks[i, 0], masks.shape[1],
                &counts[i], &only[i], <char *> &workspace[threadid(), 0])


cdef void fill_cell(
    Py_ssize_t cell, const double *low, const double *side, const int32_t *axis,
    const real *reach, const real *features, Py_ssize_t k, Py_ssize_t n, Py_ssize_t d,
    uint32_t *mask, Py_ssize_t n_words, int32_t *counted, int32_t *only, char *memory,
) noexcept nogil:
    cdef real *far = <real *> room(&memory, k * sizeof(real))
    cdef int32_t *candidates = <int32_t *> room(&memory, k * 4)
    cdef real *centre = <real *> memory
    cdef Py_ssize_t f, i, count
    for f in range(d - 1, -1, -1):
        centre[f] = <real> (low[f] + (cell % axis[f] + 0.5) * side[f])
        cell //= axis[f]
    count = candidates_in(features, k, n, d, centre, reach, far, candidates)
    memset(mask, 0, n_words * 4)
    for i in range(count):
        mask[candidates[i] // 32] |= <uint32_t> 1 << (candidates[i] % 32)
    counted[0] = <int32_t> count
    only[0] = candidates[0] if count == 1 else UNDECIDED


cdef struct Grid:
    const void *low  # in the rows' type, as `per_unit`
    const void *per_unit
    const int32_t *axis
    const uint32_t *masks
    const int32_t *only
    const void *codebook
    Py_ssize_t n_cells, n_words, n_codewords  # cells with the one for rows outside, the last


def assign(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    const real[::1] low, const real[::1] per_unit, const int32_t[::1] axis,  # IN (d,)
    const uint32_t[:, ::1] masks, const int32_t[::1] only,  # IN: one cell more than of the grid
    const real[:, ::1] codebook,  # IN (k, d)
    Py_ssize_t task_rows,
    size_t codes, int itemsize,  # OUT (stop - start,): address and size of an unsigned code
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Codes by definition; 0, or 1 where a row is out of range (see rows.pxd)."""
    cdef Rows rows = rows_of(source)
    cdef Grid grid
    cdef Py_ssize_t n_tasks = (stop - start + task_rows - 1) // task_rows, t
    cdef int bad = 0
    grid.low, grid.per_unit, grid.axis = &low[0], &per_unit[0], &axis[0]
    grid.masks, grid.only, grid.codebook = &masks[0, 0], &only[0], &codebook[0, 0]
    grid.n_cells, grid.n_words, grid.n_codewords = only.shape[0], masks.shape[1], codebook.shape[0]
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= assign_task(
                &rows, &grid, start + t * task_rows, min(task_rows, stop - start - t * task_rows),
                task_rows, <char *> codes + t * task_rows * itemsize, itemsize,
                <char *> &workspace[threadid(), 0], <real> 0)
    return bad


cdef int assign_task(
    const Rows *source, const Grid *grid, Py_ssize_t start, Py_ssize_t n, Py_ssize_t task_rows,
    char *codes, int itemsize, char *memory, real like,
) noexcept nogil:
    cdef Py_ssize_t d = source.n_features, width = rows_at_once(d, sizeof(real))
    cdef Py_ssize_t listed = (task_rows + GATHER_AHEAD) * 4
    cdef const real *rows = contiguous_rows(
        source, start, n, <real *> room(&memory, task_rows * d * sizeof(real)))
    cdef int32_t *waiting = <int32_t *> room(&memory, listed)
    cdef int32_t *cells = <int32_t *> room(&memory, listed)
    cdef int32_t *ordered = <int32_t *> room(&memory, listed)
    cdef int32_t *ends = <int32_t *> room(&memory, grid.n_cells * 4)
    cdef real *block = <real *> memory
    cdef Py_ssize_t n_waiting = 0, b, at, c, i, begin = 0
    memset(ends, 0, grid.n_cells * 4)
    for b in range((n + width - 1) // width):
        at = b * width
        n_waiting = look_up(grid, rows, at, min(width, n - at), d, block, codes, itemsize, waiting,
                            cells, n_waiting, ends)
    for c in range(grid.n_cells):  # counts become where each cell begins, and soon where it ends
        begin += ends[c]
        ends[c] = <int32_t> (begin - ends[c])
    for i in range(n_waiting):
        ordered[ends[cells[i]]] = waiting[i]
        ends[cells[i]] += 1
    begin = 0
    for c in range(grid.n_cells):
        if ends[c] > begin:
            # Rows inside of the grid are in range, as it is.
            if c == grid.n_cells - 1 and not all_within(rows, ordered + begin, ends[c] - begin, d):
                return 1
            compare(grid, c, rows, ordered + begin, ends[c] - begin, d, codes, itemsize, block)
        begin = ends[c]
    return 0


cdef inline Py_ssize_t look_up(
    const Grid *grid, const real *rows, Py_ssize_t first, Py_ssize_t count, Py_ssize_t d,
    real *block, char *codes, int itemsize, int32_t *waiting, int32_t *cells,
    Py_ssize_t n_waiting, int32_t *counts,
) noexcept nogil:
    """Codes where one codeword alone can win; the other rows wait, and are counted by cell."""
    cdef Py_ssize_t width = rows_at_once(d, sizeof(real)), r
    cdef int32_t cell[MOST_ROWS]
    cdef int32_t code[MOST_ROWS]
    cdef bint waits
    pack(rows + first * d, count, d, width, block)
    if real is float:
        f32_cells(block, width, d, <const float *> grid.low, <const float *> grid.per_unit,
                  grid.axis, <int32_t> (grid.n_cells - 1), cell)
    else:
        f64_cells(block, width, d, <const double *> grid.low, <const double *> grid.per_unit,
                  grid.axis, <int32_t> (grid.n_cells - 1), cell)
    for r in range(width):
        code[r] = grid.only[cell[r]]
    put_codes(codes + first * itemsize, itemsize, 1, code, count)
    for r in range(count):  # without branches: which rows wait cannot be foreseen
        waits = code[r] == UNDECIDED
        waiting[n_waiting] = <int32_t> (first + r)
        cells[n_waiting] = cell[r]
        counts[cell[r]] += waits
        n_waiting += waits
    return n_waiting


cdef inline void pack(
    const real *rows, Py_ssize_t count, Py_ssize_t d, Py_ssize_t width, real *block,
) noexcept nogil:
    """A block of rows feature-major, filled up with the last."""
    cdef Py_ssize_t r, f
    if count < width:
        for f in range(d):
            for r in range(width):
                block[f * width + r] = rows[min(r, count - 1) * d + f]
    elif real is float:
        f32_transpose(rows, d, width, d, block)
    else:
        f64_transpose(rows, d, width, d, block)


cdef bint all_within(
    const real *rows, const int32_t *places, Py_ssize_t n, Py_ssize_t d,
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if not within_range(rows + places[i] * d, d):
            return False
    return True


cdef void compare(
    const Grid *grid, Py_ssize_t cell, const real *rows, const int32_t *places, Py_ssize_t n,
    Py_ssize_t d, char *codes, int itemsize, real *block,
) noexcept nogil:
    """Compare the rows of a cell, n of them at these places, with its candidates."""
    cdef Py_ssize_t width = rows_at_once(d, sizeof(real)), k = grid.n_codewords
    cdef Py_ssize_t b, first, r, f, here, word, count = 0
    cdef char *memory = <char *> block + whole_lines(width * d * sizeof(real))
    cdef int32_t *candidates = <int32_t *> room(&memory, k * 4)
    cdef real *chosen = <real *> memory
    cdef const real *codebook = <const real *> grid.codebook
    cdef const uint32_t *mask = grid.masks + cell * grid.n_words
    cdef uint32_t bits
    cdef real best[MOST_ROWS]
    cdef int32_t code[MOST_ROWS]
    for word in range(grid.n_words):
        bits = mask[word]
        while bits:
            candidates[count] = <int32_t> (word * 32 + __builtin_ctz(bits))
            for f in range(d):
                chosen[count * d + f] = codebook[candidates[count] * d + f]
            count += 1
            bits &= bits - 1
    for b in range((n + width - 1) // width):
        first = b * width
        here = min(width, n - first)
        if real is float:
            f32_gather(rows, places + first, here, d, width, block)
        else:
            f64_gather(rows, places + first, here, d, width, block)
        nearest_of(block, chosen, count, d, best, code)
        for r in range(here):
            code[r] = candidates[code[r]]
        put_codes_at(codes, itemsize, places + first, code, here)
