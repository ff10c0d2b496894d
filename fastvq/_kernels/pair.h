/* Squared distance of two vectors in memory, |a - b|^2.
 *
 * PARTS partial sums, feature f into part f mod PARTS, in order, then folded in halves: what the
 * sum is depends on d alone, not on the width of a register, and four vectors of AVX2 keep the
 * multiply-add units busy. Fewer features than the folding would cost are summed in order.
 */
#ifndef FASTVQ_PAIR_H
#define FASTVQ_PAIR_H

#include "lanes.h"

enum { PARTS = 32, IN_ORDER = 12 };

#define ADD_SQUARES(p, x, y)                                                                    \
    {                                                                                           \
        LANES_ difference = *(const unaligned *)(x) - *(const unaligned *)(y);                  \
        sums[p] += difference * difference;                                                     \
    }

/* The definition of a code compares these: one sum, features in order. */
#define DEFINE_IN_ORDER(REAL, MULTIPLY_ADD, NAME)                                               \
    INLINE REAL NAME(const REAL *a, const REAL *b, ptrdiff_t d)                                 \
    {                                                                                           \
        REAL sum = 0;                                                                           \
        for (ptrdiff_t f = 0; f < d; f++) {                                                     \
            REAL difference = a[f] - b[f];                                                      \
            sum = MULTIPLY_ADD(difference, difference, sum);                                    \
        }                                                                                       \
        return sum;                                                                             \
    }

#define DEFINE_SQUARED_DISTANCE(REAL, LANES, COUNT, IN_ORDER_NAME, NAME)                        \
    INLINE REAL NAME(const REAL *a, const REAL *b, ptrdiff_t d)                                 \
    {                                                                                           \
        typedef LANES LANES_;                                                                   \
        typedef LANES unaligned __attribute__((aligned(sizeof(REAL))));                         \
        ptrdiff_t f = 0;                                                                        \
        if (d <= IN_ORDER) return IN_ORDER_NAME(a, b, d);                                       \
        LANES sums[PARTS / COUNT];                                                              \
        UNROLL for (int p = 0; p < PARTS / COUNT; p++) sums[p] = (LANES){0};                    \
        for (; f + PARTS <= d; f += PARTS)                                                      \
            UNROLL for (int p = 0; p < PARTS / COUNT; p++)                                      \
                ADD_SQUARES(p, a + f + p * COUNT, b + f + p * COUNT)                            \
        if (f < d) {                                                                            \
            /* What is less than a vector is filled up with zeros, whose squares add nothing. */ \
            ptrdiff_t whole = (d - f) / COUNT, rest = (d - f) % COUNT;                          \
            REAL x[COUNT] = {0}, y[COUNT] = {0};                                                \
            for (ptrdiff_t i = 0; i < rest; i++) x[i] = a[d - rest + i], y[i] = b[d - rest + i]; \
            UNROLL for (int p = 0; p < PARTS / COUNT; p++)                                      \
            {                                                                                   \
                if (p < whole) ADD_SQUARES(p, a + f + p * COUNT, b + f + p * COUNT)             \
                if (p == whole && rest) ADD_SQUARES(p, x, y)                                    \
            }                                                                                   \
        }                                                                                       \
        UNROLL for (int half = PARTS / COUNT / 2; half > 0; half /= 2)                          \
            UNROLL for (int p = 0; p < half; p++) sums[p] += sums[p + half];                    \
        typedef REAL four __attribute__((vector_size(4 * sizeof(REAL))));                       \
        four part[COUNT > 4 ? COUNT / 4 : 1];                                                   \
        if (COUNT >= 4) {                                                                       \
            __builtin_memcpy(part, sums, COUNT * sizeof(REAL));                                 \
            UNROLL for (int half = COUNT / 8; half > 0; half /= 2)                              \
                UNROLL for (int p = 0; p < half; p++) part[p] += part[p + half];                \
            part[0] += __builtin_shufflevector(part[0], part[0], 2, 3, 0, 1);                   \
            return part[0][0] + part[0][1];                                                     \
        }                                                                                       \
        return sums[0][0] + sums[0][1];                                                         \
    }                                                                                           \
    /* out[r] = |rows[r] - b|^2 for rows one after another. */                                  \
    INLINE void NAME##s(const REAL *rows, const REAL *b, ptrdiff_t d, ptrdiff_t n, REAL *out)   \
    {                                                                                           \
        switch (d) { /* loops whose length the compiler knows */                                \
        case 1: for (ptrdiff_t r = 0; r < n; r++) out[r] = NAME(rows + r, b, 1); return;        \
        case 2: for (ptrdiff_t r = 0; r < n; r++) out[r] = NAME(rows + 2 * r, b, 2); return;    \
        case 3: for (ptrdiff_t r = 0; r < n; r++) out[r] = NAME(rows + 3 * r, b, 3); return;    \
        case 4: for (ptrdiff_t r = 0; r < n; r++) out[r] = NAME(rows + 4 * r, b, 4); return;    \
        case 8: for (ptrdiff_t r = 0; r < n; r++) out[r] = NAME(rows + 8 * r, b, 8); return;    \
        default: for (ptrdiff_t r = 0; r < n; r++) out[r] = NAME(rows + r * d, b, d);           \
        }                                                                                       \
    }

DEFINE_IN_ORDER(float, f32_multiply_add, f32_in_order)
DEFINE_IN_ORDER(double, f64_multiply_add, f64_in_order)
DEFINE_SQUARED_DISTANCE(float, f32_lanes, F32_LANES, f32_in_order, f32_squared_distance)
DEFINE_SQUARED_DISTANCE(double, f64_lanes, F64_LANES, f64_in_order, f64_squared_distance)

#endif
