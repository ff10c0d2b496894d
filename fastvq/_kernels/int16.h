/* Loops over values for int16.pyx. Those without vectors by name are plain: the compiler makes vectors
 * of them. */
#ifndef FASTVQ_INT16_H
#define FASTVQ_INT16_H

#include <string.h>

#include "dot.h"

/* To the nearest integer, of two to the even one, for |x| up to 2^21: adding 1.5 * 2^23 leaves no
 * bits for a fraction. What is cut off first lies beyond 16 bits, zero point included; and a cut
 * between a product and a sum keeps the two from being fused. NaN becomes 0. */
INLINE int32_t nearest_step(float real)
{
    const float most = 2097152.0f;
    real = real == real ? real : 0.0f;
    real = real > -most ? real : -most;
    real = real < most ? real : most;
    float moved = real + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &moved, sizeof bits);
    return bits - 0x4B400000;
}

/* x, multiplier, zero point and y are read and written side by side. */
INLINE void requantize_one(const int16_t *x, int32_t x_zero_point, const float *multiplier,
                           const int32_t *zero_point, int8_t *y)
{
    int32_t q = nearest_step((float)(*x - x_zero_point) * *multiplier) + *zero_point;
    q = q > -128 ? q : -128;
    *y = (int8_t)(q < 127 ? q : 127);
}

/* As many values as there are lanes, as numbers of 32 bits. */
INLINE i32_lanes widened_16(const int16_t *x)
{
#if defined(__AVX512F__)
    return (i32_lanes)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)x));
#elif defined(__AVX2__)
    return (i32_lanes)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)x));
#else
    i32_lanes value;
    for (int lane = 0; lane < F32_LANES; lane++) value[lane] = x[lane];
    return value;
#endif
}

/* Four vectors at once, as `narrow` takes them, which keeps to 8 bits. What is no number is none of a
 * product of integers with a finite multiplier. */
static void requantize_16_8(const int16_t *x, int64_t n, int32_t x_zero_point,
                            const float *multiplier, const int32_t *zero_point, int8_t *y)
{
    const f32_lanes most = (f32_lanes){0} + 2097152.0f;
    int64_t i = 0;
    for (; i + 4 * F32_LANES <= n; i += 4 * F32_LANES) {
        i32_lanes q[4];
        UNROLL for (int v = 0; v < 4; v++) {
            const int64_t at = i + v * F32_LANES;
            i32_lanes zero;
            memcpy(&zero, zero_point + at, sizeof zero);
            f32_lanes real = __builtin_convertvector(widened_16(x + at) - x_zero_point, f32_lanes);
            real = f32_min(f32_max(real * f32_load(multiplier + at), -most), most);
            q[v] = (i32_lanes)(real + 12582912.0f) - 0x4B400000 + zero;
        }
        i8_lanes bytes = narrow(q);
        memcpy(y + i, &bytes, sizeof bytes);
    }
    for (; i < n; i++) requantize_one(x + i, x_zero_point, multiplier + i, zero_point + i, y + i);
}

/* real = scale * (q - zero_point), both ways. */
static void quantize_16(const float *x, int64_t n, const float *scale, const int32_t *zero_point,
                        int16_t *y)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t q = nearest_step(x[i] / scale[i]) + zero_point[i];
        q = q > -32768 ? q : -32768;
        y[i] = (int16_t)(q < 32767 ? q : 32767);
    }
}

static void dequantize_16(const int16_t *x, int64_t n, const float *scale,
                          const int32_t *zero_point, float *y)
{
    for (int64_t i = 0; i < n; i++) y[i] = (float)(x[i] - zero_point[i]) * scale[i];
}

#endif
