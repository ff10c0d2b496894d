/* Rows against eight candidates at once: candidates in lanes, rows read where they lie.
 *
 * k-means++ looks at all rows for a handful of candidates. Packing rows feature-major, as the
 * tile wants them, would cost as much as the arithmetic; with the candidates packed instead
 * (candidates[f * 8 + j]) a row's feature is broadcast and nothing of the rows is moved.
 */
#ifndef FASTVQ_EIGHT_H
#define FASTVQ_EIGHT_H

#include "lanes.h"

/* Rows at a time: fewer chains of multiply-adds would wait for one another. */
enum { EIGHT = 8, CHAINS = 8 };

/* A vector type may span several registers, so these are eight lanes at every level. */
typedef float f32_eight __attribute__((vector_size(32)));
typedef double f64_eight __attribute__((vector_size(64)));
typedef int32_t i32_eight __attribute__((vector_size(32)));
typedef int64_t i64_eight __attribute__((vector_size(64)));

/* totals[j] += sum over `count` rows of weight * min(closest, |row - candidate j|^2), rows in order;
 * `weight` may be NULL. The distances of `count` rows are independent chains. */
#define DEFINE_GAIN(REAL, EIGHT_T, INTS, NAME)                                                  \
    INLINE void NAME##_some(const REAL *rows, ptrdiff_t d, const REAL *candidates,              \
                            const REAL *closest, const double *weight, const int count,         \
                            f64_eight *totals)                                                  \
    {                                                                                           \
        EIGHT_T sums[CHAINS];                                                                \
        UNROLL for (int r = 0; r < count; r++) sums[r] = (EIGHT_T){0};                          \
        for (ptrdiff_t f = 0; f < d; f++) {                                                     \
            EIGHT_T candidate = *(const EIGHT_T *)(candidates + f * EIGHT);                     \
            UNROLL for (int r = 0; r < count; r++)                                              \
            {                                                                                   \
                EIGHT_T difference = rows[r * d + f] - candidate;                               \
                sums[r] += difference * difference;                                             \
            }                                                                                   \
        }                                                                                       \
        UNROLL for (int r = 0; r < count; r++)                                                  \
        {                                                                                       \
            EIGHT_T near = (EIGHT_T){0} + closest[r];                                           \
            INTS less = sums[r] < near;                                                         \
            near = (EIGHT_T)((less & (INTS)sums[r]) | (~less & (INTS)near));                    \
            f64_eight gain = __builtin_convertvector(near, f64_eight);                          \
            if (weight)                                                                         \
                *totals += gain * weight[r];                                                    \
            else                                                                                \
                *totals += gain;                                                                \
        }                                                                                       \
    }                                                                                           \
    static void NAME(const REAL *rows, ptrdiff_t d, const REAL *candidates,                     \
                     const REAL *closest, const double *weight, ptrdiff_t n, double *totals)    \
    {                                                                                           \
        f64_eight sums;                                                                         \
        __builtin_memcpy(&sums, totals, sizeof sums);                                           \
        ptrdiff_t i = 0;                                                                        \
        for (; i + CHAINS <= n; i += CHAINS)                                              \
            NAME##_some(rows + i * d, d, candidates, closest + i, weight ? weight + i : weight, \
                        CHAINS, &sums);                                                      \
        for (; i < n; i++)                                                                      \
            NAME##_some(rows + i * d, d, candidates, closest + i, weight ? weight + i : weight, \
                        1, &sums);                                                              \
        __builtin_memcpy(totals, &sums, sizeof sums);                                           \
    }

DEFINE_GAIN(float, f32_eight, i32_eight, f32_gain)
DEFINE_GAIN(double, f64_eight, i64_eight, f64_gain)

#endif
