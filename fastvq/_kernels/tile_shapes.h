/* Both shapes of the tile for one element type; see tile.h. Included once for each type. */

#define VECTORS NARROW_VECTORS
#define CODEWORDS NARROW_CODEWORDS
#define DIRECT NARROW_DIRECT
#define NAME(name) TYPED(JOIN(narrow_, name))
#define MANY_FEATURES 0
#define BLOCKS 1
#ifdef TYPED_NARROW_CASES
#define SIZES
#endif
#include "tile_body.h"
#undef VECTORS
#undef CODEWORDS
#undef DIRECT
#undef NAME
#undef MANY_FEATURES
#undef BLOCKS
#undef SIZES

#define VECTORS WIDE_VECTORS
#define CODEWORDS WIDE_CODEWORDS
#define DIRECT WIDE_CODEWORDS
#define NAME(name) TYPED(JOIN(wide_, name))
#define MANY_FEATURES 1
#define BLOCKS WIDE_BLOCKS
#include "tile_body.h"
#undef VECTORS
#undef CODEWORDS
#undef DIRECT
#undef NAME
#undef MANY_FEATURES
#undef BLOCKS

/* The shape that goes with d. Everything above is reached through these. */

INLINE ptrdiff_t TYPED(block_rows)(ptrdiff_t d)
{
    return (d <= NARROW_FEATURES ? NARROW_VECTORS : WIDE_VECTORS) * LANE_COUNT;
}

#define BY_SHAPE(name, ...)                                                                     \
    if (d <= NARROW_FEATURES)                                                                   \
        TYPED(narrow_##name)(__VA_ARGS__);                                                      \
    else                                                                                        \
        TYPED(wide_##name)(__VA_ARGS__);

INLINE void TYPED(centre)(const REAL *rows, ptrdiff_t d, REAL scale, const REAL *shift,
                          REAL *centred, REAL *norms)
{
    BY_SHAPE(centre, rows, d, scale, shift, centred, norms)
}

/* How many blocks of rows `expand` takes at once. */
INLINE ptrdiff_t TYPED(blocks_together)(ptrdiff_t d)
{
    if (d <= NARROW_FEATURES) return 1;
    ptrdiff_t fit = BLOCKS_BYTES / (ptrdiff_t)(sizeof(REAL) * TYPED(block_rows)(d) * d);
    return fit < 1 ? 1 : fit < WIDE_BLOCKS ? fit : WIDE_BLOCKS;
}

/* The three least values of every row and the codes of two; see NAME(expand) in tile_body.h. */
INLINE void TYPED(expand)(const REAL *rows, ptrdiff_t blocks, const REAL *panels, ptrdiff_t groups,
                          ptrdiff_t d, REAL *best, REAL *second, REAL *third, int32_t *codes,
                          int32_t *runners_up)
{
    BY_SHAPE(expand, rows, blocks, panels, groups, d, best, second, third, codes, runners_up)
}

INLINE void TYPED(direct)(const REAL *rows, const REAL *codebook, ptrdiff_t k, ptrdiff_t d,
                          REAL *best, int32_t *codes)
{
    BY_SHAPE(direct, rows, codebook, k, d, best, codes)
}

INLINE void TYPED(direct_two)(const REAL *rows, const REAL *codebook, ptrdiff_t k, ptrdiff_t d,
                              REAL *best, REAL *second, int32_t *codes)
{
    BY_SHAPE(direct_two, rows, codebook, k, d, best, second, codes)
}
#undef BY_SHAPE
