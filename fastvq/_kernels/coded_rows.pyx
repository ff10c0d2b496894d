"""Rows of a matrix of codes, taken at indices and decoded: an embedding that stays in few bits.

Of what runtime/coded.py has: rows are blocks of d values, a block the sum of a codeword of every
stage; (sum - origin) * scale, one operation after the other, gives the bits that NumPy gives.
"""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t

from fastvq._kernels.call cimport Call, entry
from fastvq._kernels.rows cimport float16_value

cdef extern from "rounded.h" nogil:
    float rounded_product(float, float)

cdef enum:
    COUNT, INDEX_BYTES, ROWS, WIDTH, BITS, CODEWORDS, D, STAGES, GROUPS, GROUP, SCALE_BYTES
    SCALE_ROWS


cdef inline int64_t index(const Call *call, int64_t i) noexcept nogil:
    """The i-th index, counted from the start; -1 where it is out of range."""
    cdef int64_t found, length = call.size[ROWS]
    if call.size[INDEX_BYTES] == 4:
        found = (<const int32_t *> call.operand[0])[i]
    else:
        found = (<const int64_t *> call.operand[0])[i]
    found += length if found < 0 else 0
    return found if 0 <= found < length else -1


cdef inline int64_t code_at(const uint8_t *codes, int64_t bit, int bits) noexcept nogil:
    """Up to 16 bits from `bit` on; no byte beyond theirs is touched."""
    cdef int64_t at = bit >> 3, last = (bit + bits - 1) >> 3
    cdef int64_t word = codes[at]
    if last > at:
        word |= <int64_t> codes[at + 1] << 8
    if last > at + 1:
        word |= <int64_t> codes[at + 2] << 16
    return word >> (bit & 7) & ((1 << bits) - 1)


cdef inline float scale_of(const Call *call, int64_t row, int64_t group) noexcept nogil:
    cdef int64_t place = (row if call.size[SCALE_ROWS] > 1 else 0) * call.size[GROUPS] + group
    if call.size[SCALE_BYTES] == 2:
        return rounded_product(float16_value((<const uint16_t *> call.operand[3])[place]),
                               <float> call.value[0])
    return rounded_product((<const float *> call.operand[3])[place], <float> call.value[0])


cdef inline void eight_codes(const uint8_t *codes, int bits, uint8_t *found) noexcept nogil:
    """Eight codes of up to 8 bits, which begin at a byte."""
    cdef uint64_t word = 0, mask = (1 << bits) - 1
    cdef int i
    for i in range(bits):
        word |= <uint64_t> codes[i] << 8 * i
    for i in range(8):
        found[i] = <uint8_t> (word >> bits * i & mask)


cdef void take_single_values(const Call *call, int64_t i) noexcept nogil:
    """A row whose codes of up to 8 bits stand for a value each, group after group."""
    cdef int64_t row = index(call, i), width = call.size[WIDTH], size = call.size[GROUP]
    cdef int64_t start = 0, stop, j, k, group, first = row * width
    cdef int bits = <int> call.size[BITS]
    cdef const uint8_t *codes = <const uint8_t *> call.operand[1]
    cdef const float *table = <const float *> call.operand[2]
    cdef const uint8_t *points = <const uint8_t *> call.operand[4]
    cdef float *y = <float *> call.operand[5] + i * width
    cdef float origin = <float> call.value[1], scale = 1
    cdef uint8_t found[8]
    for group in range(call.size[GROUPS]):
        stop = min(start + size, width)
        if call.operand[3]:
            scale = scale_of(call, row, group)
        if points:
            origin = points[row * call.size[GROUPS] + group]
        j = start
        while j < stop:
            if (first + j) % 8 == 0 and j + 8 <= stop:
                eight_codes(codes + ((first + j) >> 3) * bits, bits, found)
                for k in range(8):
                    y[j + k] = table[found[k]] - origin
                j += 8
            else:
                y[j] = table[code_at(codes, (first + j) * bits, bits)] - origin
                j += 1
        if call.operand[3]:
            for j in range(start, stop):
                y[j] = rounded_product(y[j], scale)
        start = stop


cdef void take_row(const Call *call, int64_t i) noexcept nogil:
    cdef int64_t row = index(call, i), width = call.size[WIDTH], d = call.size[D]
    cdef int64_t stages = call.size[STAGES], words = call.size[CODEWORDS], group = -1, j = 0
    cdef int64_t blocks = (width + d - 1) // d, b, s, f, size = call.size[GROUP]
    cdef int bits = <int> call.size[BITS]
    cdef int64_t bit = row * blocks * stages * bits
    cdef const uint8_t *codes = <const uint8_t *> call.operand[1]
    cdef const float *table = <const float *> call.operand[2]
    cdef const uint8_t *points = <const uint8_t *> call.operand[4]
    cdef const float *word[8]
    cdef float *y = <float *> call.operand[5] + i * width
    cdef float origin = <float> call.value[1], scale = 1, total
    for b in range(blocks):
        for s in range(stages):
            word[s] = table + (s * words + code_at(codes, bit, bits)) * d
            bit += bits
        for f in range(min(d, width - j)):
            total = word[0][f]
            for s in range(1, stages):
                total += word[s][f]
            if j // size != group:
                group = j // size
                if call.operand[3]:
                    scale = scale_of(call, row, group)
                if points:
                    origin = points[row * call.size[GROUPS] + group]
            total -= origin
            y[j] = rounded_product(total, scale) if call.operand[3] else total
            j += 1


cdef int take(const Call *call) noexcept nogil:
    """y[i] = row number indices[i]; 1 + i for the first i that is out of range.

    operands: indices IN int32 or int64; codes IN, packed; codewords IN float32 (stages, codewords,
    d); scales IN float16 or float32 (scale rows, groups) or NULL; origins IN uint8 (rows, groups)
    or NULL; y OUT float32 (count, width).
    sizes: count, bytes of an index, rows, width, bits, codewords, d, stages (up to 8), groups,
    columns of a group, bytes of a scale, rows of scales. values: what scales are multiplied by;
    the origin where there are no origins.
    """
    cdef int64_t i, count = call.size[COUNT]
    for i in range(count):
        if index(call, i) < 0:
            return <int> min(i + 1, 0x7fffffff)
    cdef bint single = call.size[D] == 1 and call.size[STAGES] == 1 and call.size[BITS] <= 8
    for i in prange(count, num_threads=call.threads, schedule="static"):
        if single:
            take_single_values(call, i)
        else:
            take_row(call, i)
    return 0


entries = {"take": entry(take)}
