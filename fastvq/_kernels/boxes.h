/* Which codewords can be nearest to a row of a box, and which cannot.
 *
 * A box holds rows x with |x_f - m_f| <= h_f. Let c_i be the codeword nearest to its centre m. For
 * any other c_j and any of these rows
 *
 *   |x - c_j|^2 - |x - c_i|^2  >=  |m - c_j|^2 - |m - c_i|^2 - 2 sum_f h_f |c_jf - c_if|
 *
 * and where that is positive c_j cannot win in all of the box: the test by which Kanungo et al.
 * ("An efficient k-means clustering algorithm", PAMI 24, 2002) prune candidates in cells of a
 * k-d tree.
 *
 * It has to exceed what rounding can explain: of these sums, and of the sums |x - c|^2 of which a
 * code is defined to be the least (assign.pyx), each within (d + 2) eps of itself, and of those
 * |x - c|^2 <= 2 |m - c|^2 + 2 |h|^2. MARGIN (d + 8) eps of their total is more than all together.
 */
#ifndef FASTVQ_BOXES_H
#define FASTVQ_BOXES_H

#include "tile.h"

#include <float.h>

/* Codewords lie in lanes; as many vectors of them at a time as there are registers for. */
enum { BOX_VECTORS = 4, MARGIN = 8 };

#define DEFINE_CANDIDATES(REAL, LANES, INTS, SIGNLESS, COUNT, EPSILON, TYPED)                   \
    INLINE ptrdiff_t TYPED##_box_step(void) { return BOX_VECTORS * COUNT; }                     \
                                                                                                \
    /* The place of the least of k values. */                                                   \
    INLINE ptrdiff_t TYPED##_box_nearest(const REAL *far, ptrdiff_t k)                          \
    {                                                                                           \
        LANES best = *(const LANES *)far;                                                       \
        INTS place = {0};                                                                       \
        for (ptrdiff_t j = COUNT; j < k; j += COUNT)                                            \
            TYPED##_keep_nearest(*(const LANES *)(far + j), (INTS){0} + (int)(j / COUNT), &best, \
                                 &place);                                                       \
        ptrdiff_t least = 0;                                                                    \
        UNROLL for (int i = 1; i < COUNT; i++) if (best[i] < best[least]) least = i;            \
        return place[least] * COUNT + least;                                                    \
    }                                                                                           \
                                                                                                \
    /* n codewords, filled up to k, a multiple of the step, with the last: at[f * k + j] = c_jf. \
     * Writes those that may win, ascending, and gives their number. */                         \
    static ptrdiff_t TYPED##_box_candidates(const REAL *at, ptrdiff_t k, ptrdiff_t n, ptrdiff_t d, \
                                            const REAL *centre, const REAL *reach,              \
                                            REAL *far, int32_t *candidates)                     \
    {                                                                                           \
        const REAL unsure = (REAL)(MARGIN * (d + 8) * EPSILON);                                 \
        ptrdiff_t count = 0;                                                                    \
        for (ptrdiff_t j = 0; j < k; j += BOX_VECTORS * COUNT) {                                \
            LANES sum[BOX_VECTORS] = {{0}};                                                     \
            for (ptrdiff_t f = 0; f < d; f++)                                                   \
                UNROLL for (int v = 0; v < BOX_VECTORS; v++)                                    \
                {                                                                               \
                    const LANES gap = *(const LANES *)(at + f * k + j + v * COUNT) - centre[f]; \
                    sum[v] += gap * gap;                                                        \
                }                                                                               \
            UNROLL for (int v = 0; v < BOX_VECTORS; v++) *(LANES *)(far + j + v * COUNT) = sum[v]; \
        }                                                                                       \
        const ptrdiff_t nearest = TYPED##_box_nearest(far, k);                                  \
        const REAL least = far[nearest];                                                        \
        REAL known = least;                                                                     \
        for (ptrdiff_t f = 0; f < d; f++) known += reach[f] * reach[f];                         \
        for (ptrdiff_t j = 0; j < k; j += BOX_VECTORS * COUNT) {                                \
            LANES across[BOX_VECTORS] = {{0}};                                                  \
            for (ptrdiff_t f = 0; f < d; f++) {                                                 \
                const REAL own = at[f * k + nearest];                                           \
                UNROLL for (int v = 0; v < BOX_VECTORS; v++)                                    \
                {                                                                               \
                    const LANES gap = *(const LANES *)(at + f * k + j + v * COUNT) - own;       \
                    across[v] += (LANES)((INTS)gap & SIGNLESS) * reach[f];                      \
                }                                                                               \
            }                                                                                   \
            UNROLL for (int v = 0; v < BOX_VECTORS; v++)                                        \
            {                                                                                   \
                const LANES further = *(const LANES *)(far + j + v * COUNT);                    \
                const LANES lead = further - least - unsure * (further + known + across[v]);    \
                const uint32_t beyond = TYPED##_below(2 * across[v], lead);                     \
                uint32_t may_win = ~beyond & ((1u << COUNT) - 1);                               \
                for (; may_win; may_win &= may_win - 1)                                         \
                    candidates[count++] = (int32_t)(j + v * COUNT + __builtin_ctz(may_win));    \
            }                                                                                   \
        }                                                                                       \
        while (count && candidates[count - 1] >= n) count--;                                    \
        return count;                                                                           \
    }

DEFINE_CANDIDATES(float, f32_lanes, i32_lanes, INT32_MAX, F32_LANES, FLT_EPSILON, f32)
DEFINE_CANDIDATES(double, f64_lanes, i64_lanes, INT64_MAX, F64_LANES, DBL_EPSILON, f64)

#endif
