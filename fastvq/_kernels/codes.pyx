"""Rows of floats times weights of few bits; see codes.h."""

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "codes.h" nogil:
    enum:
        CODES_BLOCK
        CODES_SHUFFLE
        CODES_LANES
    ctypedef struct Codes:
        const int8_t *x
        const float *row_scale
        const int32_t *row_sum
        const uint8_t *panels
        const uint8_t *table
        const uint16_t *scales
        const uint8_t *points
        const float *bias
        int64_t rows, groups, blocks, columns, stride
        int bits, depth
        int32_t origin
        float unit, low, high
        float *y
    int32_t codes_quantize(const float *, int64_t, int64_t, int8_t *, float *)
    void codes_panels(const Codes *, int64_t, int64_t)

# Columns of a block, outputs of a panel, whether codes can be looked up in registers.
BLOCK, COLUMNS, SHUFFLE = CODES_BLOCK, CODES_LANES, bool(CODES_SHUFFLE)

# Panels of a task: a few KB of weights each.
cdef enum:
    TASK_PANELS = 4


cdef int quantize(const Call *call) noexcept nogil:
    """Rows as bytes, group by group.

    operands: x IN (rows, width) float32; codes OUT int8 (rows, groups, room), rows `stride` apart,
    scales OUT float32 and sums OUT int32 (rows, groups).
    sizes: rows, width, groups, columns of a group, room of a group, stride.
    """
    cdef int64_t i, groups = call.size[2]
    for i in prange(call.size[0] * groups, num_threads=call.threads, schedule="static"):
        quantize_group(call, i // groups, i % groups)
    return 0


cdef void quantize_group(const Call *call, int64_t row, int64_t group) noexcept nogil:
    cdef int64_t width = call.size[1], groups = call.size[2], size = call.size[3]
    cdef int64_t room = call.size[4], first = group * size, place = row * groups + group
    cdef const float *x = <const float *> call.operand[0] + row * width + first
    cdef int8_t *codes = <int8_t *> call.operand[1] + row * call.size[5] + group * room
    (<int32_t *> call.operand[3])[place] = codes_quantize(
        x, min(size, width - first), room, codes, <float *> call.operand[2] + place)


cdef int multiply(const Call *call) noexcept nogil:
    """What `quantize` made of rows, times a weight.

    operands: codes, scales, sums IN; panels, table, weight scales, points, bias IN, as struct Codes
    has them; y OUT (rows, columns) float32.
    sizes: rows, groups, blocks of a group, columns, stride of codes, bits, depth, origin.
    values: unit, low, high.
    """
    cdef Codes job
    cdef int64_t task, panels = (call.size[3] + CODES_LANES - 1) // CODES_LANES
    job.x, job.row_scale = <const int8_t *> call.operand[0], <const float *> call.operand[1]
    job.row_sum, job.panels = <const int32_t *> call.operand[2], <const uint8_t *> call.operand[3]
    job.table, job.scales = <const uint8_t *> call.operand[4], <const uint16_t *> call.operand[5]
    job.points, job.bias = <const uint8_t *> call.operand[6], <const float *> call.operand[7]
    job.y = <float *> call.operand[8]
    job.rows, job.groups, job.blocks = call.size[0], call.size[1], call.size[2]
    job.columns, job.stride = call.size[3], call.size[4]
    job.bits, job.depth = <int> call.size[5], <int> call.size[6]
    job.origin = <int32_t> call.size[7]
    job.unit, job.low, job.high = <float> call.value[0], <float> call.value[1], <float> call.value[2]
    if call.threads == 1:
        codes_panels(&job, 0, panels)
        return 0
    for task in prange((panels + TASK_PANELS - 1) // TASK_PANELS, num_threads=call.threads,
                       schedule="dynamic"):
        codes_panels(&job, task * TASK_PANELS, min(panels, (task + 1) * TASK_PANELS))
    return 0


entries = {"quantize": entry(quantize), "multiply": entry(multiply)}
