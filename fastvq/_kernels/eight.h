/* Rows against eight candidates at once: candidates in lanes, rows read where they lie.
 *
 * k-means++ looks at all rows for a handful of candidates. Packing rows feature-major, as the
 * tile wants them, would cost as much as the arithmetic; with the candidates packed instead
 * (candidates[f * 8 + j]) a row's feature is broadcast and nothing of the rows is moved.
 */
#ifndef FASTVQ_EIGHT_H
#define FASTVQ_EIGHT_H

#include "lanes.h"

/* CHAINS: rows at a time; fewer chains of multiply-adds would wait for one another. STRETCH:
 * features between two looks at whether any candidate can still be nearer to any of these rows.
 * AHEAD: rows from those compared to those asked for from memory, which no hardware foresees where
 * rows are left out (20k x 128 rows in the third-level cache: 2.1 ms without, 1.0 with; Zen 3). */
enum { EIGHT = 8, CHAINS = 8, STRETCH = 32, AHEAD = 16 };

/* A vector type may span several registers, so these are eight lanes at every level. */
typedef float f32_eight __attribute__((vector_size(32)));
typedef double f64_eight __attribute__((vector_size(64)));

/* NAME: for `count` rows (the list padded to a multiple of CHAINS with any), which candidates are
 * nearer than `closest`, bit j of nearer[i] for candidate j; and by how much, gains[j] += weight *
 * (closest - |row - candidate j|^2) over those, rows in order. Returns 1 where a distance is not
 * finite.
 *
 * Squares only add up, also rounded, so the sums of a group of rows are given up where all have
 * reached `closest`: the answer is the same. */
#define DEFINE_GAINS(REAL, EIGHT_T, LANES, BELOW, NAME)                                         \
    /* Bit j is set where (*a)[j] < b. */                                                       \
    INLINE uint32_t NAME##_below(const EIGHT_T *a, REAL b)                                      \
    {                                                                                           \
        enum { SIZE = sizeof(LANES) < sizeof *a ? sizeof(LANES) : sizeof *a };                  \
        uint32_t bits = 0;                                                                      \
        UNROLL for (int part = 0; part < (int)sizeof *a / SIZE; part++)                         \
        {                                                                                       \
            LANES limit = (LANES){0} + b, some = limit;                                         \
            __builtin_memcpy(&some, (const char *)a + part * SIZE, SIZE);                       \
            bits |= BELOW(some, limit) << part * (SIZE / (int)sizeof(REAL));                    \
        }                                                                                       \
        return bits;                                                                            \
    }                                                                                           \
    /* Adds the squared differences of `n` features from f on, a constant. */                   \
    INLINE void NAME##_add(const REAL *const *row, ptrdiff_t f, const int n,                    \
                           const REAL *candidates, EIGHT_T *sums)                               \
    {                                                                                           \
        const EIGHT_T *candidate = (const EIGHT_T *)candidates + f;                             \
        UNROLL for (int r = 0; r < CHAINS; r++)                                                 \
            UNROLL for (int g = 0; g < n; g++)                                                  \
            {                                                                                   \
                EIGHT_T difference = row[r][f + g] - candidate[g];                              \
                sums[r] += difference * difference;                                             \
            }                                                                                   \
    }                                                                                           \
    static int NAME(const REAL *const *rows, ptrdiff_t d, const REAL *candidates,               \
                    const REAL *closest, const double *weight, ptrdiff_t count,                 \
                    uint8_t *nearer, double *gains)                                             \
    {                                                                                           \
        EIGHT_T not_finite = {0};                                                               \
        for (ptrdiff_t first = 0; first < count; first += CHAINS) {                             \
            const REAL *const *coming = rows + (first + AHEAD < count ? first + AHEAD : first); \
            const REAL *row[CHAINS];                                                            \
            EIGHT_T sums[CHAINS];                                                               \
            uint32_t below[CHAINS], any = 1;                                                    \
            UNROLL for (int r = 0; r < CHAINS; r++)                                             \
                sums[r] = (EIGHT_T){0}, row[r] = rows[first + r];                               \
            for (ptrdiff_t f = 0; f < d && any;) {                                              \
                ptrdiff_t stop = d - f < STRETCH ? d : f + STRETCH;                             \
                UNROLL for (int r = 0; r < CHAINS; r++)                                         \
                    for (int i = 0; i < STRETCH; i += 64 / (int)sizeof(REAL))                   \
                        __builtin_prefetch(coming[r] + f + i);                                  \
                for (; f + 4 <= stop; f += 4) NAME##_add(row, f, 4, candidates, sums);          \
                for (; f < stop; f++) NAME##_add(row, f, 1, candidates, sums);                  \
                any = 0;                                                                        \
                UNROLL for (int r = 0; r < CHAINS; r++)                                         \
                    any |= below[r] = NAME##_below(sums + r, closest[first + r]);               \
            }                                                                                   \
            UNROLL for (int r = 0; r < CHAINS; r++) not_finite += sums[r] - sums[r];            \
            for (int r = 0; r < CHAINS && first + r < count; r++) {                             \
                nearer[first + r] = (uint8_t)below[r];                                          \
                if (!below[r]) continue;                                                        \
                f64_eight gain = (double)closest[first + r]                                     \
                                 - __builtin_convertvector(sums[r], f64_eight);                 \
                for (int j = 0; j < EIGHT; j++)                                                 \
                    gains[j] = f64_multiply_add(gain[j] > 0 ? gain[j] : 0, weight[first + r],   \
                                                gains[j]);                                      \
            }                                                                                   \
        }                                                                                       \
        return NAME##_below(&not_finite, 1) != 0xff;                                            \
    }

DEFINE_GAINS(float, f32_eight, f32_lanes, f32_below, f32_gains)
DEFINE_GAINS(double, f64_eight, f64_lanes, f64_below, f64_gains)

#endif
