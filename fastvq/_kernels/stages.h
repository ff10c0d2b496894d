/* What beam search and local search over several codebooks have in common.
 *
 * The reconstruction of a row x is a sum of codewords, one of each codebook (stage), and
 *
 *   |x - sum_m c_m|^2 = |x|^2 + sum_m u_m(c_m) + sum_{j<m} t(c_j, c_m),
 *   u(c) = |c|^2 - 2 x.c  (unary),   t(c, c') = 2 c.c'  (cross),
 *
 * so once a row's products with all codewords are known, any choice of codes costs additions only.
 * Codewords lie in lanes here and rows are broadcast, the other way round than in assign.pyx: the
 * unary values of a row lie side by side then, as the rows of the table of cross terms do.
 *
 * Codewords of all stages are numbered through, each stage padded to a multiple of STAGE_STEP with
 * codewords of huge norm, which are never chosen. All sums run in an order of their own, whatever
 * the width of a vector: features in order, then stages in order.
 */
#ifndef FASTVQ_STAGES_H
#define FASTVQ_STAGES_H

#include "tile.h"

/* Codewords that a stage is padded to a multiple of, and those whose sums are taken at once: eight
 * vectors of AVX2, so that loads of table rows do not wait for one another. */
enum { STAGE_STEP = 16, STAGE_CHUNK = 64 };

/* Rows whose unary values are kept at a time: divisible by the tile's codewords at every level,
 * and with 8 stages of 256 codewords few enough for the second-level cache. */
enum { STAGE_ROWS = 24 };

/* Codewords in a packed block: the tile's rows. */
#define BLOCK_CODEWORDS(lanes) (WIDE_VECTORS * lanes)

/* The best candidates so far, ascending by value and then by place, which says who they are. */
typedef struct {
    void *values; /* of the type of the arithmetic */
    int32_t *places;
    ptrdiff_t count, width;
    double limit; /* only values up to here can be among the best */
} Beam;

INLINE void stages_fetch(const char *line) { __builtin_prefetch(line, 0, 2); }

#define REAL float
#define LANES f32_lanes
#define INTS i32_lanes
#define LANE_COUNT F32_LANES
#define TYPED(name) JOIN(f32_, name)
#include "stages_body.h"
#undef REAL
#undef LANES
#undef INTS
#undef LANE_COUNT
#undef TYPED

#define REAL double
#define LANES f64_lanes
#define INTS i64_lanes
#define LANE_COUNT F64_LANES
#define TYPED(name) JOIN(f64_, name)
#include "stages_body.h"
#undef REAL
#undef LANES
#undef INTS
#undef LANE_COUNT
#undef TYPED

#endif
