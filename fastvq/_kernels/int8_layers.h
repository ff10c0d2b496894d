/* Loops over values for int8_layers.pyx. Plain loops: the compiler makes vectors of them. */
#ifndef FASTVQ_INT8_LAYERS_H
#define FASTVQ_INT8_LAYERS_H

#include <string.h>

#include "dot.h"

/* To the nearest integer, of two to the even one, for |x| below 2^22. */
INLINE int32_t nearest_integer(float x)
{
    float moved = x + 12582912.0f;
    int32_t bits;
    OPAQUE(moved);
    memcpy(&bits, &moved, sizeof bits);
    return bits - 0x4B400000;
}

enum { RUN = 4 * F32_LANES };

/* RUN values; what is not a number becomes 0 steps. */
INLINE void quantize_run(const f32_lanes *x, const f32_lanes *scale, const i32_lanes *zero_point,
                         int8_t *q)
{
    i32_lanes steps[4];
    UNROLL for (int v = 0; v < 4; v++) {
        f32_lanes real = x[v] / scale[v];
        i32_lanes number = real == real;
        real = (f32_lanes)((i32_lanes)real & number);
        f32_lanes zero = __builtin_convertvector(zero_point[v], f32_lanes);
        real = f32_min(f32_max(real, -128.0f - zero), 127.0f - zero);
        f32_lanes moved = real + 12582912.0f;
        OPAQUE(moved);
        steps[v] = (i32_lanes)moved - 0x4B400000 + zero_point[v];
    }
    i8_lanes bytes = narrow(steps);
    memcpy(q, &bytes, sizeof bytes);
}

/* Vector by vector: GCC copies arrays by 16 bytes, and what is read by 32 then waits. */
INLINE void load_run(const void *from, void *run)
{
    UNROLL for (int v = 0; v < 4; v++)
        memcpy((char *)run + v * LANE_BYTES, (const char *)from + v * LANE_BYTES, LANE_BYTES);
}

static void quantize_values(const float *x, int64_t n, float scale, int32_t zero_point, int8_t *q)
{
    f32_lanes values[4], scales[4];
    i32_lanes zeros[4];
    for (int v = 0; v < 4; v++) {
        scales[v] = (f32_lanes){0} + scale;
        zeros[v] = (i32_lanes){0} + zero_point;
    }
    for (; n >= RUN; n -= RUN, x += RUN, q += RUN) {
        load_run(x, values);
        quantize_run(values, scales, zeros, q);
    }
    int8_t rest[RUN];
    memset(values, 0, sizeof values);
    memcpy(values, x, (size_t)n * sizeof(float));
    quantize_run(values, scales, zeros, rest);
    memcpy(q, rest, (size_t)n);
}

static void quantize_channels(const float *x, int64_t n, const float *scale,
                              const int32_t *zero_point, int8_t *q)
{
    f32_lanes values[4], scales[4];
    i32_lanes zeros[4];
    for (; n >= RUN; n -= RUN, x += RUN, scale += RUN, zero_point += RUN, q += RUN) {
        load_run(x, values);
        load_run(scale, scales);
        load_run(zero_point, zeros);
        quantize_run(values, scales, zeros, q);
    }
    int8_t rest[RUN];
    memset(values, 0, sizeof values);
    memset(zeros, 0, sizeof zeros);
    for (int v = 0; v < 4; v++) scales[v] = (f32_lanes){0} + 1.0f;
    memcpy(values, x, (size_t)n * sizeof *x);
    memcpy(scales, scale, (size_t)n * sizeof *scale);
    memcpy(zeros, zero_point, (size_t)n * sizeof *zero_point);
    quantize_run(values, scales, zeros, rest);
    memcpy(q, rest, (size_t)n);
}

static void dequantize_values(const int8_t *x, int64_t n, float scale, int32_t zero_point, float *y)
{
    for (int64_t i = 0; i < n; i++) y[i] = (float)(x[i] - zero_point) * scale;
}

static void dequantize_channels(const int8_t *x, int64_t n, const float *scale,
                                const int32_t *zero_point, float *y)
{
    for (int64_t i = 0; i < n; i++) y[i] = (float)(x[i] - zero_point[i]) * scale[i];
}

/* ---- sums of two ---------------------------------------------------------------------------- */

typedef struct {
    int32_t a_multiplier, b_multiplier, shift, a_zero_point, b_zero_point, y_zero_point;
    int32_t low, high;
} Sum;

/* The zero points, the half that rounds and y's are one constant: integers, so nothing is lost,
 * and what does not fit wraps there and back. */
#define DEFINE_ADD(name, A, B, Y)                                                               \
    static void name(const A *a, const B *b, int64_t n, const Sum *sum, Y *y)                   \
    {                                                                                           \
        int32_t ma = sum->a_multiplier, mb = sum->b_multiplier, shift = sum->shift;             \
        int32_t start = (1 << (shift - 1)) - sum->a_zero_point * ma - sum->b_zero_point * mb;   \
        int32_t zero = sum->y_zero_point, low = sum->low, high = sum->high;                     \
        for (int64_t i = 0; i < n; i++) {                                                       \
            int32_t q = ((a[i] * ma + b[i] * mb + start) >> shift) + zero;                      \
            q = q < low ? low : q;                                                              \
            y[i] = (Y)(q > high ? high : q);                                                    \
        }                                                                                       \
    }
DEFINE_ADD(add_8_8_8, int8_t, int8_t, int8_t)
DEFINE_ADD(add_8_8_16, int8_t, int8_t, int16_t)
DEFINE_ADD(add_16_8_8, int16_t, int8_t, int8_t)
DEFINE_ADD(add_16_8_16, int16_t, int8_t, int16_t)
DEFINE_ADD(add_16_16_8, int16_t, int16_t, int8_t)
DEFINE_ADD(add_16_16_16, int16_t, int16_t, int16_t)

/* ---- pools ---------------------------------------------------------------------------------- */

typedef struct {
    int64_t height, width, channels, out_height, out_width, kernel_height, kernel_width;
    int64_t stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;
    int average, count_padding;
    double multiplier;
    int32_t x_zero_point, y_zero_point;
} Pool;

INLINE void finish_mean(const Pool *pool, int64_t count, const int32_t *sums, int8_t *y)
{
    int64_t divisor = pool->count_padding ? pool->kernel_height * pool->kernel_width : count;
    float factor = (float)(pool->multiplier / (double)(divisor > 1 ? divisor : 1));
    float low = -128.0f - (float)pool->y_zero_point, high = 127.0f - (float)pool->y_zero_point;
    int32_t zero = pool->x_zero_point * (int32_t)count;
    for (int64_t c = 0; c < pool->channels; c++) {
        float real = (float)(sums[c] - zero) * factor;
        real = real > low ? real : low;
        y[c] = (int8_t)(nearest_integer(real < high ? real : high) + pool->y_zero_point);
    }
}

/* One place of the output, all channels; sums: scratch (channels). */
static void pool_place(const Pool *pool, const int8_t *x, int64_t place, int32_t *sums, int8_t *y)
{
    int64_t channels = pool->channels, count = 0;
    int64_t out_x = place % pool->out_width, out_y = place / pool->out_width % pool->out_height;
    x += place / (pool->out_width * pool->out_height) * pool->height * pool->width * channels;
    if (pool->average)
        memset(sums, 0, (size_t)channels * sizeof *sums);
    else
        memset(y, -128, (size_t)channels);
    for (int64_t ky = 0; ky < pool->kernel_height; ky++) {
        int64_t at_y = out_y * pool->stride_y - pool->pad_y + ky * pool->dilation_y;
        if (at_y < 0 || at_y >= pool->height) continue;
        for (int64_t kx = 0; kx < pool->kernel_width; kx++) {
            int64_t at_x = out_x * pool->stride_x - pool->pad_x + kx * pool->dilation_x;
            if (at_x < 0 || at_x >= pool->width) continue;
            const int8_t *row = x + (at_y * pool->width + at_x) * channels;
            count++;
            if (pool->average)
                for (int64_t c = 0; c < channels; c++) sums[c] += row[c];
            else
                for (int64_t c = 0; c < channels; c++) y[c] = row[c] > y[c] ? row[c] : y[c];
        }
    }
    if (pool->average) finish_mean(pool, count, sums, y);
}

#endif
