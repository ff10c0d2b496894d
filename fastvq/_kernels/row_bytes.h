/* Rows of floats as rows of bytes: their range in steps. */
#ifndef FASTVQ_ROW_BYTES_H
#define FASTVQ_ROW_BYTES_H

#include "dot.h"
#include "rounded.h"

typedef struct {
    float scale;        /* real = scale * (q - zero_point) */
    int32_t zero_point;
} RowScale;

/* What is looked for in a row: four chains, as one would wait for its own sums. */
enum { CHAINS = 4 };

/* Range of a row, zero included, in 255 steps. A row with NaN or infinity has the scale NaN. */
INLINE RowScale row_scale(const float *row, int64_t width)
{
    f32_lanes low[CHAINS] = {{0}}, high[CHAINS] = {{0}}, bad[CHAINS] = {{0}}, zero = {0};
    int64_t f = 0;
    OPAQUE(zero); /* GCC 12 takes x * 0 for 0, infinity or not, where it is told of the 0 */
    for (; f + CHAINS * F32_LANES <= width; f += CHAINS * F32_LANES)
        UNROLL for (int c = 0; c < CHAINS; c++) {
            f32_lanes x = f32_load(row + f + c * F32_LANES);
            low[c] = f32_min(x, low[c]);
            high[c] = f32_max(x, high[c]);
            bad[c] = f32_lanes_multiply_add(x, zero, bad[c]); /* 0, or NaN */
        }
    float least = 0, most = 0, wrong = 0;
    for (; f < width; f++) {
        least = row[f] < least ? row[f] : least;
        most = row[f] > most ? row[f] : most;
        wrong += row[f] - row[f];
    }
    UNROLL for (int c = 1; c < CHAINS; c++) {
        low[0] = f32_min(low[c], low[0]);
        high[0] = f32_max(high[c], high[0]);
        bad[0] += bad[c];
    }
    for (int lane = 0; lane < F32_LANES; lane++) {
        least = low[0][lane] < least ? low[0][lane] : least;
        most = high[0][lane] > most ? high[0][lane] : most;
        wrong += bad[0][lane];
    }
    if (wrong != 0) return (RowScale){__builtin_nanf(""), 0}; /* NaN differs from 0 */
    float scale = most / 255.0f - least / 255.0f;
    if (scale < 0x1p-126f) scale = 0x1p-126f; /* whose inverse is finite */
    f32_lanes lowest = product((f32_lanes){0} + least, (f32_lanes){0} + 1.0f / scale);
    return (RowScale){scale, -128 - nearest(lowest)[0]};
}

/* Four vectors of values, as steps raised by an offset: 0, or 128 without a sign. */
INLINE i8_lanes quantized(const float *x, float inverse, int32_t zero_point, int offset)
{
    i32_lanes q[4];
    /* No value is 256 steps away from 0 or more, as steps are made for its row. */
    UNROLL for (int v = 0; v < 4; v++)
        q[v] = nearest(product(f32_load(x + v * F32_LANES), (f32_lanes){0} + inverse)) + zero_point;
    return narrow(q) ^ (int8_t)offset;
}

/* codes OUT (width). */
INLINE void quantize_row(const float *row, int64_t width, RowScale by, int offset, int8_t *codes)
{
    if (by.scale != by.scale) {
        memset(codes, 0, (size_t)width);
        return;
    }
    float inverse = 1.0f / by.scale;
    int64_t f = 0;
    for (; f + LANE_BYTES <= width; f += LANE_BYTES) {
        i8_lanes bytes = quantized(row + f, inverse, by.zero_point, offset);
        memcpy(codes + f, &bytes, sizeof bytes);
    }
    if (f < width) {
        float rest[LANE_BYTES] = {0};
        memcpy(rest, row + f, (size_t)(width - f) * sizeof(float));
        i8_lanes bytes = quantized(rest, inverse, by.zero_point, offset);
        memcpy(codes + f, &bytes, (size_t)(width - f));
    }
}

#endif
