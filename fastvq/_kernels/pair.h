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

#define DEFINE_SQUARED_DISTANCE(REAL, LANES, COUNT, NAME)                                       \
    INLINE REAL NAME(const REAL *a, const REAL *b, ptrdiff_t d)                                 \
    {                                                                                           \
        typedef LANES unaligned __attribute__((aligned(sizeof(REAL))));                         \
        REAL part[PARTS] __attribute__((aligned(64)));                                          \
        ptrdiff_t f = 0;                                                                        \
        if (d <= IN_ORDER) {                                                                    \
            REAL sum = 0;                                                                       \
            for (; f < d; f++) {                                                                \
                REAL difference = a[f] - b[f];                                                  \
                sum += difference * difference;                                                 \
            }                                                                                   \
            return sum;                                                                         \
        }                                                                                       \
        LANES sums[PARTS / COUNT];                                                              \
        UNROLL for (int p = 0; p < PARTS / COUNT; p++) sums[p] = (LANES){0};                    \
        for (; f + PARTS <= d; f += PARTS) {                                                    \
            UNROLL for (int p = 0; p < PARTS / COUNT; p++)                                      \
            {                                                                                   \
                LANES difference = *(const unaligned *)(a + f + p * COUNT) -                    \
                                   *(const unaligned *)(b + f + p * COUNT);                     \
                sums[p] += difference * difference;                                             \
            }                                                                                   \
        }                                                                                       \
        UNROLL for (int p = 0; p < PARTS / COUNT; p++)                                          \
        {                                                                                       \
            if (f + (p + 1) * COUNT <= d) {                                                     \
                LANES difference = *(const unaligned *)(a + f + p * COUNT) -                    \
                                   *(const unaligned *)(b + f + p * COUNT);                     \
                sums[p] += difference * difference;                                             \
            }                                                                                   \
            *(LANES *)(part + p * COUNT) = sums[p];                                             \
        }                                                                                       \
        ptrdiff_t whole = f + (d - f) / COUNT * COUNT;                                          \
        for (ptrdiff_t g = whole; g < d; g++) {                                                 \
            REAL difference = a[g] - b[g];                                                      \
            part[g - f] += difference * difference;                                             \
        }                                                                                       \
        UNROLL for (int half = PARTS / 2; half > 0; half /= 2)                                  \
            for (int p = 0; p < half; p++) part[p] += part[p + half];                           \
        return part[0];                                                                         \
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

DEFINE_SQUARED_DISTANCE(float, f32_lanes, F32_LANES, f32_squared_distance)
DEFINE_SQUARED_DISTANCE(double, f64_lanes, F64_LANES, f64_squared_distance)

#endif
