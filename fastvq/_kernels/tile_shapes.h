/* Both shapes of the tile for one element type; see tile.h. Included once for each type. */

#define VECTORS NARROW_VECTORS
#define CODEWORDS NARROW_CODEWORDS
#define DIRECT NARROW_DIRECT
#define NAME(name) TYPED(JOIN(narrow_, name))
#define LOOK_FIRST 0
#ifdef TYPED_NARROW_CASES
#define SIZES
#endif
#include "tile_body.h"
#undef VECTORS
#undef CODEWORDS
#undef DIRECT
#undef NAME
#undef LOOK_FIRST
#undef SIZES

#define VECTORS WIDE_VECTORS
#define CODEWORDS WIDE_CODEWORDS
#define DIRECT WIDE_CODEWORDS
#define NAME(name) TYPED(JOIN(wide_, name))
#define LOOK_FIRST 1
#include "tile_body.h"
#undef VECTORS
#undef CODEWORDS
#undef DIRECT
#undef NAME
#undef LOOK_FIRST

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

/* Values of the best and the second best codeword of every row, and the code of the best. partial:
 * room for a sum for each row and codeword, or NULL not to take sums in parts. */
INLINE void TYPED(expand)(const REAL *rows, const REAL *panels, ptrdiff_t groups, ptrdiff_t d,
                          REAL *partial, REAL *best, REAL *second, int32_t *codes)
{
    BY_SHAPE(expand, rows, panels, groups, d, partial, best, second, codes)
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
