"""LSTM, GRU and plain recurrence: inputs of all steps at once, then step by step; see recurrent.h."""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from fastvq._kernels.call cimport Call, entry

cdef extern from "recurrent.h" nogil:
    enum:
        F32_LANES
        STATE_ROWS
        GRU_LAYER
    ctypedef struct Step:
        Py_ssize_t n, units, groups
        const float *projected[1]
        const float *before[1]
        float *after[1]
        float *cell[1]
        const float *panels
        const float *panels_h
        const float *bias
        float *update[1]
        float *reset[1]
    void project_rows(
        int gates, const float *x, Py_ssize_t n, Py_ssize_t k, const float *panels,
        const float *bias, Py_ssize_t groups, float *y)
    void take_step(int layer, const Step *)

lanes = F32_LANES
state_rows = STATE_ROWS
cdef enum:
    PROJECTED_ROWS = 32  # of a task: enough to read a panel from the first-level cache mostly


cdef int project(const Call *call) noexcept nogil:
    """operands: x IN (n, k), panels IN (directions, groups, k, gates, lanes), bias IN (directions,
    groups, gates, lanes), y OUT (directions, n, groups, gates, lanes).
    sizes: n, k, directions, groups, gates."""
    cdef int64_t n = call.size[0], k = call.size[1], groups = call.size[3], gates = call.size[4]
    cdef int64_t tasks = (n + PROJECTED_ROWS - 1) // PROJECTED_ROWS, width = gates * F32_LANES
    cdef int64_t t, first, direction
    for t in prange(call.size[2] * tasks, num_threads=call.threads, schedule="static"):
        direction = t // tasks
        first = t % tasks * PROJECTED_ROWS
        project_rows(
            <int> gates, <const float *> call.operand[0] + first * k,
            min(n - first, PROJECTED_ROWS), k,
            <const float *> call.operand[1] + direction * groups * k * width,
            <const float *> call.operand[2] + direction * groups * width, groups,
            <float *> call.operand[3] + (direction * n + first) * groups * width)
    return 0


# The sizes of `recur`, in order.
cdef enum:
    LAYER, N, T, UNITS, DIRECTIONS, GATES, BACKWARD, BLOCK, WIDE_LENGTHS


cdef int recur(const Call *call) noexcept nogil:
    """operands: projected IN (directions, n, t, groups, gates, lanes), panels IN of recurrent
    weights (directions, groups, units, gates, lanes), panels of a GRU's third gate IN or NULL, its
    bias IN (directions, groups, lanes) or NULL, lengths IN (n,) or NULL, h0, c0 IN (n, directions,
    units) or NULL, zeros IN (units,), y OUT (n, t, directions, units), h, c OUT like h0 or NULL,
    room (tasks, 2, BLOCK, groups, lanes) for a GRU or NULL.
    sizes: layer (see recurrent.h), n, t, units, directions, gates, whether the first direction is
    backward, rows of a block (STATE_ROWS at most), whether lengths are int64, or int32."""
    cdef const int64_t *size = &call.size[0]
    cdef int64_t blocks = (size[N] + size[BLOCK] - 1) // size[BLOCK], t
    for t in prange(size[DIRECTIONS] * blocks, num_threads=call.threads, schedule="dynamic"):
        recur_block(call, t, t // blocks, t % blocks * size[BLOCK])
    return 0


cdef void recur_block(
    const Call *call, int64_t task, int64_t direction, int64_t first
) noexcept nogil:
    """All steps of a block of rows in one direction."""
    cdef const int64_t *size = &call.size[0]
    cdef int64_t units = size[UNITS], groups = (units + F32_LANES - 1) // F32_LANES
    cdef int64_t count = min(size[N] - first, size[BLOCK]), padded = groups * F32_LANES, r, s
    cdef int64_t longest = 0
    cdef int64_t length[32]  # STATE_ROWS and more
    cdef const float *state[32]
    cdef float *room = <float *> call.operand[11]
    cdef Step step
    cdef bint backward = direction == 1 or size[BACKWARD]
    step.units, step.groups = units, groups
    find_weights(call, direction, groups, &step)
    for r in range(count):
        length[r] = length_of(call, first + r)
        longest = max(longest, length[r])
        state[r] = first_state(call, first + r, direction)
        if room:
            step.update[r] = room + (2 * task * size[BLOCK] + r) * padded
            step.reset[r] = room + ((2 * task + 1) * size[BLOCK] + r) * padded
    for s in range(longest):
        step.n = 0
        for r in range(count):
            if s < length[r]:
                add_row(call, first + r, direction, length[r] - 1 - s if backward else s, groups,
                        &state[r], &step)
        take_step(<int> size[LAYER], &step)
    for r in range(count):
        finish_row(call, first + r, direction, length[r], state[r])


cdef void find_weights(
    const Call *call, int64_t direction, int64_t groups, Step *step
) noexcept nogil:
    cdef int64_t units = call.size[UNITS], gates = call.size[GATES], matrix
    matrix = direction * groups * units * F32_LANES  # of one gate
    if call.size[LAYER] == GRU_LAYER:
        gates = 2
    step.panels = <const float *> call.operand[1] + matrix * gates
    if call.operand[2]:
        step.panels_h = <const float *> call.operand[2] + matrix
    if call.operand[3]:
        step.bias = <const float *> call.operand[3] + direction * groups * F32_LANES


cdef inline int64_t length_of(const Call *call, int64_t row) noexcept nogil:
    cdef int64_t length = call.size[T]
    if call.operand[4] and call.size[WIDE_LENGTHS]:
        length = (<const int64_t *> call.operand[4])[row]
    elif call.operand[4]:
        length = (<const int32_t *> call.operand[4])[row]
    return max(0, min(length, call.size[T]))


cdef const float *first_state(const Call *call, int64_t row, int64_t direction) noexcept nogil:
    """The state before the first step; the first cell is put where cells are kept."""
    cdef int64_t units = call.size[UNITS], at = (row * call.size[DIRECTIONS] + direction) * units
    if call.operand[10]:
        memcpy(
            <float *> call.operand[10] + at,
            <const float *> call.operand[6] + at if call.operand[6] else
            <const float *> call.operand[7], units * sizeof(float))
    return (<const float *> call.operand[5] + at if call.operand[5]
            else <const float *> call.operand[7])


cdef inline void add_row(
    const Call *call, int64_t row, int64_t direction, int64_t t, int64_t groups,
    const float **state, Step *step,
) noexcept nogil:
    """One more row to a step; its state will be the one that the step writes."""
    cdef const int64_t *size = &call.size[0]
    cdef int64_t units = size[UNITS], i = step.n
    step.projected[i] = (<const float *> call.operand[0]
                         + ((direction * size[N] + row) * size[T] + t)
                         * groups * size[GATES] * F32_LANES)
    step.before[i] = state[0]
    step.after[i] = (<float *> call.operand[8]
                     + ((row * size[T] + t) * size[DIRECTIONS] + direction) * units)
    step.cell[i] = (<float *> call.operand[10]
                    + (row * size[DIRECTIONS] + direction) * units if call.operand[10] else NULL)
    state[0] = step.after[i]
    step.n += 1


cdef void finish_row(
    const Call *call, int64_t row, int64_t direction, int64_t length, const float *state
) noexcept nogil:
    """The last state, and zeros where the row has ended before."""
    cdef const int64_t *size = &call.size[0]
    cdef int64_t units = size[UNITS], t
    memcpy(<float *> call.operand[9] + (row * size[DIRECTIONS] + direction) * units, state,
           units * sizeof(float))
    for t in range(length, size[T]):
        memset(<float *> call.operand[8]
               + ((row * size[T] + t) * size[DIRECTIONS] + direction) * units,
               0, units * sizeof(float))


entries = {"project": entry(project), "recur": entry(recur)}
