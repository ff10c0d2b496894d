/* Arithmetic that every level rounds alike. */
#ifndef FASTVQ_ROUNDED_H
#define FASTVQ_ROUNDED_H

#include "lanes.h"

/* a * b, rounded, whatever is done to it next. */
INLINE f32_lanes product(f32_lanes a, f32_lanes b)
{
    f32_lanes rounded = a * b;
    OPAQUE(rounded);
    return rounded;
}

/* To the nearest integer, of two to the even one, for |x| below 2^22: adding 1.5 * 2^23 leaves no
 * bits for a fraction. The same instructions on every level. */
INLINE i32_lanes nearest(f32_lanes x)
{
    const float shift = 12582912.0f;
    f32_lanes moved = x + shift;
    OPAQUE(moved);
    return (i32_lanes)moved - 0x4B400000;
}

INLINE f32_lanes clamped(f32_lanes x, float low, float high)
{
    /* the bound comes second: a NaN becomes the bound on x86; callers keep NaN away */
    return f32_min(f32_max(x, (f32_lanes){0} + low), (f32_lanes){0} + high);
}

INLINE float rounded_product(float a, float b)
{
    float rounded = a * b;
    OPAQUE(rounded);
    return rounded;
}

/* x within bounds; NaN stays: a bound replaces a value only where it is beaten. */
INLINE f32_lanes bounded(f32_lanes x, float low, float high)
{
#if defined(__SSE2__) /* whose minimum of two gives the second where one is NaN, or both are 0 */
    return f32_min((f32_lanes){0} + high, f32_max((f32_lanes){0} + low, x));
#endif
    i32_lanes under = x < low, over = x > high;
    return (f32_lanes)((under & (i32_lanes)((f32_lanes){0} + low)) |
                       (over & (i32_lanes)((f32_lanes){0} + high)) |
                       (~(under | over) & (i32_lanes)x));
}

#endif
