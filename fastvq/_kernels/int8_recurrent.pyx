"""LSTM and GRU whose recurrent weights are 8-bit integers; see int8_recurrent.h and int8.h.

The input of all steps is projected before, by `rows` of int8.pyx. Here a block of rows walks through
its steps in one direction: at each, the states are quantized row by row, multiplied exactly, and the
gates made of the sums. So a row's bits do not depend on the rows beside it.
"""

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int32_t, int64_t, uint32_t
from libc.string cimport memcpy, memset

from fastvq._kernels.call cimport Call, entry
from fastvq._kernels.jobs cimport (
    DOT_COLUMNS, FROM_FLOAT, TO_FLOAT, Job, Span, block_bytes, dot_group, dot_offset, dot_step,
    int8_fill, int8_multiply, job_panels,
)

cdef extern from "int8_recurrent.h" nogil:
    enum:
        LSTM_LAYER
        GRU_LAYER
    ctypedef struct Row:
        Py_ssize_t units
        const float *projected
        const float *added
        float *state
        float *cell
        float *reset
    void reset_row(const Row *)
    void step_row(int layer, const Row *)

cdef float INFINITY = float("inf")

# Rows of a block, at most.
cdef enum:
    BLOCK_ROWS = 32
block_rows = BLOCK_ROWS

# The sizes of `recur`, in order.
cdef enum:
    LAYER, N, T, UNITS, DIRECTIONS, GATES, BACKWARD, BLOCK, WIDE_LENGTHS, ROOM, FORM

# Its operands.
cdef enum:
    PROJECTED, PANELS, SPANS, ORDERS, SUMS, SCALE, BIAS, LENGTHS, H0, C0, Y, H, C, SCRATCH


def recur_scratch(int form, int64_t rows, int64_t units, int64_t gates):
    """What a task needs for itself."""
    return block_room(form, rows, units) + (4 * rows * units * (3 + gates) + 63) // 64 * 64


cdef int64_t block_room(int form, int64_t rows, int64_t units) noexcept nogil:
    return (block_bytes(form, rows, units) + 63) // 64 * 64


cdef int recur(const Call *call) noexcept nogil:
    """operands: projected IN (n, t, directions, gates, units), bias included; panels, spans and
    orders (or NULL), column sums, scale, bias (or NULL) IN of the recurrent weight, with
    directions * gates groups, as in struct Job; lengths IN (n,) or NULL; h0, c0 IN (n, directions,
    units) or NULL; y OUT (n, t, directions, units); h, c OUT like h0, c NULL for a GRU; scratch
    (tasks, room).
    sizes: layer (see int8_recurrent.h), n, t, units, directions, gates, whether the first direction
    is backward, rows of a block (block_rows at most), whether lengths are int64, or int32; room, form of
    the weight."""
    cdef const int64_t *size = &call.size[0]
    cdef int64_t blocks = (size[N] + size[BLOCK] - 1) // size[BLOCK], t
    for t in prange(size[DIRECTIONS] * blocks, num_threads=call.threads, schedule="dynamic"):
        recur_block(call, t // blocks, t % blocks * size[BLOCK],
                    <char *> call.operand[SCRATCH] + t * size[ROOM])
    return 0


cdef Job job_of(const Call *call, int64_t direction, int64_t count) noexcept nogil:
    """States times the recurrent weight of a direction, each gate a group."""
    cdef int64_t units = call.size[UNITS], gates = call.size[GATES], panels
    cdef Job job
    memset(&job, 0, sizeof(Job))
    job.input, job.to = FROM_FLOAT, TO_FLOAT
    job.rows, job.width, job.columns, job.stride = count, units, units, units
    job.groups, job.out_stride = gates, gates * units
    job.low, job.high = -INFINITY, INFINITY
    panels = direction * gates * job_panels(&job)
    job.panels = <const int8_t *> call.operand[PANELS]
    job.spans = <const Span *> call.operand[SPANS]
    job.orders = <const uint32_t *> call.operand[ORDERS]
    job.form = <int> call.size[FORM]
    job.offset = dot_offset(job.form)
    if job.spans:
        job.spans += panels
    else:
        job.panels += (panels * ((units + dot_group(job.form) - 1) // dot_group(job.form))
                       * dot_step(job.form))
    job.column_sums = <const int32_t *> call.operand[SUMS] + panels * DOT_COLUMNS
    job.multiplier = <const float *> call.operand[SCALE] + panels * DOT_COLUMNS
    if call.operand[BIAS]:
        job.bias = <const float *> call.operand[BIAS] + panels * DOT_COLUMNS
    return job


cdef void recur_block(
    const Call *call, int64_t direction, int64_t first, char *scratch
) noexcept nogil:
    """All steps of a block of rows in one direction."""
    cdef const int64_t *size = &call.size[0]
    cdef int64_t units = size[UNITS], count = min(size[N] - first, size[BLOCK]), r, s, t
    cdef int64_t longest = 0
    cdef int64_t length[BLOCK_ROWS]
    cdef Job job = job_of(call, direction, count)
    cdef float *state = <float *> (scratch + block_room(job.form, count, units))
    cdef float *reset = state + count * units
    cdef float *cell = reset + count * units
    cdef float *added = cell + count * units
    cdef Row row
    row.units = units
    job.y = added
    for r in range(count):
        length[r] = length_of(call, first + r)
        longest = max(longest, length[r])
        take_state(call, H0, first + r, direction, state + r * units)
        take_state(call, C0, first + r, direction, cell + r * units)
    for s in range(longest):
        multiply(&job, state, 0, 2 if size[LAYER] == GRU_LAYER else size[GATES], scratch)
        if size[LAYER] == GRU_LAYER:
            for r in range(count):
                if s < length[r]:
                    find_row(call, &row, first + r, direction, step_of(call, direction, length[r], s))
                    place_row(&row, r, size[GATES], state, cell, reset, added)
                    reset_row(&row)
                else:
                    memset(reset + r * units, 0, units * sizeof(float))
            multiply(&job, reset, 2, 3, scratch)
        for r in range(count):
            if s < length[r]:
                t = step_of(call, direction, length[r], s)
                find_row(call, &row, first + r, direction, t)
                place_row(&row, r, size[GATES], state, cell, reset, added)
                step_row(<int> size[LAYER], &row)
                memcpy(y_at(call, first + r, t, direction), row.state, units * sizeof(float))
    for r in range(count):
        finish_row(call, first + r, direction, length[r], state + r * units, cell + r * units)


cdef void multiply(
    Job *job, const float *rows, int64_t first, int64_t last, char *scratch
) noexcept nogil:
    """Rows of states times some gates of the weight."""
    cdef int64_t gate
    job.x = rows
    int8_fill(job, 0, job.rows, 0, scratch)
    for gate in range(first, last):
        int8_multiply(job, 0, job.rows, gate, 0, job_panels(job), scratch)


cdef inline int64_t step_of(
    const Call *call, int64_t direction, int64_t length, int64_t s
) noexcept nogil:
    return length - 1 - s if direction == 1 or call.size[BACKWARD] else s


cdef inline void find_row(
    const Call *call, Row *row, int64_t number, int64_t direction, int64_t t
) noexcept nogil:
    cdef const int64_t *size = &call.size[0]
    row.projected = (<const float *> call.operand[PROJECTED]
                     + ((number * size[T] + t) * size[DIRECTIONS] + direction)
                     * size[GATES] * size[UNITS])


cdef inline void place_row(
    Row *row, int64_t r, int64_t gates, float *state, float *cell, float *reset, float *added
) noexcept nogil:
    cdef int64_t at = r * row.units
    row.state, row.cell, row.reset = state + at, cell + at, reset + at
    row.added = added + at * gates


cdef inline float *y_at(const Call *call, int64_t row, int64_t t, int64_t direction) noexcept nogil:
    cdef const int64_t *size = &call.size[0]
    return (<float *> call.operand[Y]
            + ((row * size[T] + t) * size[DIRECTIONS] + direction) * size[UNITS])


cdef inline int64_t length_of(const Call *call, int64_t row) noexcept nogil:
    cdef int64_t length = call.size[T]
    if call.operand[LENGTHS] and call.size[WIDE_LENGTHS]:
        length = (<const int64_t *> call.operand[LENGTHS])[row]
    elif call.operand[LENGTHS]:
        length = (<const int32_t *> call.operand[LENGTHS])[row]
    return max(0, min(length, call.size[T]))


cdef inline void take_state(
    const Call *call, int operand, int64_t row, int64_t direction, float *state
) noexcept nogil:
    cdef int64_t units = call.size[UNITS]
    cdef const float *given = <const float *> call.operand[operand]
    if given:
        memcpy(state, given + (row * call.size[DIRECTIONS] + direction) * units,
               units * sizeof(float))
    else:
        memset(state, 0, units * sizeof(float))


cdef void finish_row(
    const Call *call, int64_t row, int64_t direction, int64_t length, const float *state,
    const float *cell,
) noexcept nogil:
    """The last state, and zeros where the row has ended before."""
    cdef int64_t units = call.size[UNITS], t
    cdef int64_t at = (row * call.size[DIRECTIONS] + direction) * units
    memcpy(<float *> call.operand[H] + at, state, units * sizeof(float))
    if call.operand[C]:
        memcpy(<float *> call.operand[C] + at, cell, units * sizeof(float))
    for t in range(length, call.size[T]):
        memset(y_at(call, row, t, direction), 0, units * sizeof(float))


entries = {"recur": entry(recur)}
