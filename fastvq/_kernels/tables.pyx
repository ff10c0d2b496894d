"""Rows of floats times weights that are sums of codewords, by tables; see tables.h."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint8_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "tables.h" nogil:
    int64_t TABLE_CHUNK, TABLE_OUTPUTS, TABLE_STEP, TABLE_PANELS
    ctypedef struct Sums:
        const float *tables
        const uint8_t *codes
        const float *scale
        const float *bias
        int64_t entries, room, panels, columns
        float low, high
        float *y
    void table_of_block(const float *, int64_t, const float *, int64_t, float *)
    void table_panels(const Sums *, int64_t, int64_t)

# Entries whose codes lie together, outputs of a panel, what the room of a table is a multiple of.
CHUNK, OUTPUTS, STEP = TABLE_CHUNK, TABLE_OUTPUTS, TABLE_STEP


cdef void fill_block(const Call *call, int64_t row, int64_t block) noexcept nogil:
    cdef int64_t width = call.size[1], d = call.size[2], stages = call.size[3], room = call.size[4]
    cdef int64_t blocks = (width + d - 1) // d, stage
    cdef const float *x = <const float *> call.operand[0] + row * width + block * d
    cdef float *table = <float *> call.operand[2] + (row * blocks + block) * stages * room
    for stage in range(stages):
        table_of_block(x, min(d, width - block * d),
                       <const float *> call.operand[1] + stage * d * room, room,
                       table + stage * room)


cdef int fill(const Call *call) noexcept nogil:
    """Products of the blocks of rows with all codewords.

    operands: x IN (rows, width), codewords IN (stages, d, room), tables OUT (rows, blocks, stages,
    room), float32.
    sizes: rows, width, d, stages, room.
    """
    cdef int64_t d = call.size[2], blocks = (call.size[1] + d - 1) // d, i
    for i in prange(call.size[0] * blocks, num_threads=call.threads, schedule="static"):
        fill_block(call, i // blocks, i % blocks)
    return 0


cdef void one_task(const Call *call, int64_t row, int64_t task) noexcept nogil:
    cdef Sums job
    job.entries, job.room, job.columns = call.size[1], call.size[2], call.size[3]
    job.panels = (job.columns + TABLE_OUTPUTS - 1) // TABLE_OUTPUTS
    job.tables = <const float *> call.operand[0] + row * job.entries * job.room
    job.codes = <const uint8_t *> call.operand[1]
    job.scale, job.bias = <const float *> call.operand[2], <const float *> call.operand[3]
    job.low, job.high = <float> call.value[0], <float> call.value[1]
    job.y = <float *> call.operand[4] + row * job.columns
    table_panels(&job, task * call.size[4], min(job.panels, (task + 1) * call.size[4]))


cdef int add(const Call *call) noexcept nogil:
    """Sums of what codes find in the tables that `fill` has made.

    operands: tables, codes, scale, bias IN as struct Sums has them; y OUT (rows, columns) float32.
    sizes: rows, entries, room, columns, panels of a task, at most 256.
    values: low, high.
    """
    cdef int64_t panels = (call.size[3] + TABLE_OUTPUTS - 1) // TABLE_OUTPUTS, i
    cdef int64_t tasks = (panels + call.size[4] - 1) // call.size[4]
    for i in prange(call.size[0] * tasks, num_threads=call.threads, schedule="dynamic"):
        one_task(call, i // tasks, i % tasks)
    return 0


PANELS = TABLE_PANELS
entries = {"fill": entry(fill), "add": entry(add)}
