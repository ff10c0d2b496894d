/* The register tile: a block of rows against all codewords, nothing but multiply-adds inside.
 *
 * Rows lie in lanes. A block of TILE_ROWS = VECTORS * lanes rows is packed feature-major, so one
 * vector holds one feature of many rows; a codeword's feature is broadcast. Every accumulator
 * belongs to one codeword, so the minimum and its index are kept lane by lane: no horizontal
 * sum, no distance matrix in memory, and each row adds its features in the same order whatever
 * the width of a vector.
 *
 * Two shapes for each of float and double (tile_body.h is the code, once):
 *   narrow  d <= 16: few features, so the epilogue (minimum, index) weighs most
 *   wide    d > 16: as many accumulators as registers allow
 * Measured on Zen 3 (16 registers): wide 2x6 92-95 % of the multiply-add peak at d = 64..384,
 * 3x4 88-92 %, 2x4 73-84 %; narrow at d = 4, k = 256: 3x4 33 ms, 2x6 39 ms, 2x1 43 ms.
 */
#ifndef FASTVQ_TILE_H
#define FASTVQ_TILE_H

#include "lanes.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

enum { NARROW_FEATURES = 16 };

/* Blocks of rows that pass a group of codewords together, in the wide shape: so many, and of so
 * many bytes, at most. One by one, each would stream the whole codebook from the third-level cache
 * or from memory. */
enum { WIDE_BLOCKS = 8, BLOCKS_BYTES = 1 << 18 };

/* From more features on it pays to know the runner-up of each row. Rounding then leaves more rows
 * in doubt (white data: 0.4 % at d = 128, 2.7 % at d = 768), which two distances settle where it
 * took all; to keep it takes 4 % at d = 32, 2 % at 128, nothing at 768. */
enum { RUNNER_UP_FEATURES = 128 };

#if LANE_REGISTERS == 32
#define WIDE_VECTORS 3
#define WIDE_CODEWORDS 8
#define NARROW_VECTORS 4
#define NARROW_CODEWORDS 4
#define NARROW_DIRECT 4
#else
#define WIDE_VECTORS 2
#define WIDE_CODEWORDS 6
#define NARROW_VECTORS 3
#define NARROW_CODEWORDS 4
#define NARROW_DIRECT 2
#endif

/* Rows in a block, and in the blocks that `expand` takes together, at any level, shape and type. */
enum { MOST_ROWS = 4 * F32_LANES, MOST_TOGETHER = WIDE_BLOCKS * MOST_ROWS };

#define REAL float
#define LANES f32_lanes
#define INTS i32_lanes
#define LANE_COUNT F32_LANES
#define TYPED(name) JOIN(f32_, name)
#define TYPED_NARROW_CASES /* float32 is what small d is used with: sizes known at compile time */
#include "tile_shapes.h"
#undef REAL
#undef LANES
#undef INTS
#undef LANE_COUNT
#undef TYPED
#undef TYPED_NARROW_CASES

#define REAL double
#define LANES f64_lanes
#define INTS i64_lanes
#define LANE_COUNT F64_LANES
#define TYPED(name) JOIN(f64_, name)
#include "tile_shapes.h"
#undef REAL
#undef LANES
#undef INTS
#undef LANE_COUNT
#undef TYPED

#endif
