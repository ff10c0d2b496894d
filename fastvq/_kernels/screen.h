/* Looking over a block of screen values: values[c * SCREEN_ROWS + r], rows in lanes. */
#ifndef FASTVQ_SCREEN_H
#define FASTVQ_SCREEN_H

#include "tile.h"

enum { SCREEN_VECTORS = WIDE_VECTORS, SCREEN_ROWS = WIDE_VECTORS * F32_LANES };

/* Code of the smallest value of every row. */
static void screen_smallest(const float *values, ptrdiff_t k, int32_t *codes)
{
    f32_lanes best[SCREEN_VECTORS];
    i32_lanes index[SCREEN_VECTORS], candidate = {0};
    UNROLL for (int v = 0; v < SCREEN_VECTORS; v++)
    {
        best[v] = (f32_lanes){0} + __builtin_inff();
        index[v] = (i32_lanes){0};
    }
    for (ptrdiff_t c = 0; c < k; c++, values += SCREEN_ROWS, candidate += 1)
        UNROLL for (int v = 0; v < SCREEN_VECTORS; v++)
            f32_keep_nearest(((const f32_lanes *)values)[v], candidate, &best[v], &index[v]);
    for (int v = 0; v < SCREEN_VECTORS; v++)
        __builtin_memcpy(codes + v * F32_LANES, &index[v], LANE_BYTES);
}

/* Bit r is set where the value of row r lies below its limit. */
INLINE uint64_t screen_below(const float *values, const float *limits)
{
    uint64_t bits = 0;
    UNROLL for (int v = 0; v < SCREEN_VECTORS; v++)
        bits |= (uint64_t)f32_below(((const f32_lanes *)values)[v], ((const f32_lanes *)limits)[v])
                << (v * F32_LANES);
    return bits;
}

INLINE int lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }

#endif
