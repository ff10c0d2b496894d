/* Loops over values for int16.pyx. Plain loops: the compiler makes vectors of them. */
#ifndef FASTVQ_INT16_H
#define FASTVQ_INT16_H

#include <stdint.h>
#include <string.h>

/* To the nearest integer, of two to the even one, for |x| up to 2^21: adding 1.5 * 2^23 leaves no
 * bits for a fraction. What is cut off first lies beyond 16 bits, zero point included; and a cut
 * between a product and a sum keeps the two from being fused. NaN becomes 0. */
static inline int32_t nearest_step(float real)
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
static void requantize_16_8(const int16_t *x, int64_t n, int32_t x_zero_point,
                            const float *multiplier, const int32_t *zero_point, int8_t *y)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t q = nearest_step((float)(x[i] - x_zero_point) * multiplier[i]) + zero_point[i];
        q = q > -128 ? q : -128;
        y[i] = (int8_t)(q < 127 ? q : 127);
    }
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
