"""Local search for the codes of a sum of codewords (LSQ, Martinez et al. 2016, 2018).

Conditional modes: with the other codes held fast, the best code of one codebook is found by looking
at all its codewords; going through the codebooks until no code changes ends in a local optimum.
Some codes are then replaced and the search goes on from there; a row keeps the best that it met.
What replaces them is the same for all rows, so that what a row finds depends on it alone, and the
table rows that all of them need stay in cache. Values are those of stages.h: additions only.
"""

from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcpy

from fastvq._kernels.rows cimport Rows, real, rows_of
from fastvq._kernels.scratch cimport room
from fastvq._kernels.stages cimport (
    STAGE_ROWS, Stages, multiply_blocks, pack_panels, padded, panel_values, stages_of,
)

cdef extern from "stages.h" nogil:
    Py_ssize_t f32_condition(const float *, const float **, int, Py_ssize_t)
    Py_ssize_t f64_condition(const double *, const double **, int, Py_ssize_t)


# What a thread keeps.
cdef struct Scratch:
    char *unary  # (STAGE_ROWS, width)
    char *panels  # packed rows
    char *crossed  # (n_stages,) pointers
    int32_t *codes  # (n_stages,) that are being changed
    char *end


cdef inline Scratch scratch_of(
    char *memory, const Stages *stages, Py_ssize_t d, int itemsize,
) noexcept nogil:
    cdef Scratch s
    s.unary = room(&memory, itemsize * STAGE_ROWS * stages.width)
    s.panels = room(&memory, itemsize * panel_values(STAGE_ROWS, d))
    s.crossed = room(&memory, sizeof(char *) * stages.n)
    s.codes = <int32_t *> room(&memory, 4 * stages.n)
    s.end = memory
    return s


def search_bytes(
    Py_ssize_t d, int itemsize, const Py_ssize_t[::1] first, const Py_ssize_t[::1] size,
    Py_ssize_t width,
):
    """Scratch memory of one thread of `local_search`."""
    cdef Stages stages = stages_of(first, size, width)
    return <size_t> scratch_of(NULL, &stages, d, itemsize).end


def local_search(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[::1] shift,  # IN (d,): rows become x * scale - shift
    const real[::1] blocks,  # IN: codewords packed as kernels.Stages says
    const real[:, ::1] crossed,  # IN (width, width): 2 c.c'
    const Py_ssize_t[::1] first, const Py_ssize_t[::1] size,  # IN (n_stages,)
    const int32_t[:, :, ::1] jumps,  # IN (n_jumps, n_replaced, 2): stage and code to put there
    Py_ssize_t sweeps,
    int32_t[:, ::1] codes,  # INOUT (stop - start, n_stages)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Better codes of rows, or the same; 0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Stages stages = stages_of(first, size, crossed.shape[1])
    cdef Py_ssize_t n_tasks = (stop - start + STAGE_ROWS - 1) // STAGE_ROWS, t
    cdef Py_ssize_t n_jumps = jumps.shape[0], n_replaced = jumps.shape[1]
    cdef const int32_t *jump = &jumps[0, 0, 0] if n_jumps and n_replaced else NULL
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= search_block(
                &rows, start + t * STAGE_ROWS,
                min(<Py_ssize_t> STAGE_ROWS, stop - start - t * STAGE_ROWS), <real> scale,
                &shift[0], &blocks[0], &crossed[0, 0], &stages, jump, n_jumps, n_replaced, sweeps,
                &codes[t * STAGE_ROWS, 0], <char *> &workspace[threadid(), 0])
    return bad


cdef int search_block(
    const Rows *rows, Py_ssize_t start, Py_ssize_t count, real scale, const real *shift,
    const real *blocks, const real *crossed, const Stages *stages, const int32_t *jumps,
    Py_ssize_t n_jumps, Py_ssize_t n_replaced, Py_ssize_t sweeps, int32_t *codes, char *memory,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, r
    cdef Scratch s = scratch_of(memory, stages, d, sizeof(real))
    cdef real *unary = <real *> s.unary
    cdef int bad = pack_panels(rows, start, count, scale, shift, <real> 1, <real *> s.panels)
    multiply_blocks(blocks, stages.width, <real *> s.panels, count, d, unary, stages.width)
    for r in range(count):
        search_row(unary + r * stages.width, crossed, stages, jumps, n_jumps, n_replaced, sweeps,
                   codes + r * stages.n, &s)
    return bad


cdef void search_row(
    const real *unary, const real *crossed, const Stages *stages, const int32_t *jumps,
    Py_ssize_t n_jumps, Py_ssize_t n_replaced, Py_ssize_t sweeps, int32_t *best, Scratch *s,
) noexcept nogil:
    cdef Py_ssize_t jump, _i, n_bytes = stages.n * sizeof(int32_t)
    cdef int32_t *codes = s.codes
    cdef const real **rows = <const real **> s.crossed
    cdef real least = value_of(unary, crossed, stages, best), value
    for jump in range(-1, n_jumps):
        memcpy(codes, best, n_bytes)
        if jump >= 0:
            for _i in range(n_replaced):
                codes[jumps[0]] = jumps[1]
                jumps += 2
        settle(unary, crossed, stages, sweeps, codes, rows)
        value = value_of(unary, crossed, stages, codes)
        if value < least:
            least = value
            memcpy(best, codes, n_bytes)


cdef inline void settle(
    const real *unary, const real *crossed, const Stages *stages, Py_ssize_t sweeps,
    int32_t *codes, const real **rows,
) noexcept nogil:
    """Conditional modes, until no code changes or for so many sweeps."""
    cdef Py_ssize_t _step, m = 0, j, at, unchanged = 0, n = stages.n
    cdef int32_t code
    for _step in range(sweeps * n):
        at = 0
        for j in range(n):
            if j != m:
                rows[at] = (crossed + (stages.first[j] + codes[j]) * stages.width
                            + stages.first[m])
                at += 1
        code = condition(unary + stages.first[m], rows, n - 1, padded(stages.size[m]))
        unchanged = unchanged + 1 if code == codes[m] else 1
        codes[m] = code
        if unchanged >= n:  # this one was the best, given all others as they still are
            return
        m = m + 1 if m + 1 < n else 0


cdef inline int32_t condition(
    const real *unary, const real **rows, Py_ssize_t n_rows, Py_ssize_t n,
) noexcept nogil:
    if real is float:
        return <int32_t> f32_condition(unary, rows, <int> n_rows, n)
    else:
        return <int32_t> f64_condition(unary, rows, <int> n_rows, n)


cdef inline real value_of(
    const real *unary, const real *crossed, const Stages *stages, const int32_t *codes,
) noexcept nogil:
    """|x - sum|^2 - |x|^2"""
    cdef Py_ssize_t m, j
    cdef const real *row
    cdef real total = 0, part
    for m in range(stages.n):
        part = unary[stages.first[m] + codes[m]]
        row = crossed + (stages.first[m] + codes[m]) * stages.width
        for j in range(m):
            part += row[stages.first[j] + codes[j]]
        total += part
    return total
