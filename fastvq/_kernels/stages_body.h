/* For one element type; see stages.h. No include guard: included once for each type. */

/* out[r * step + c] = sum_f panel_rf * codeword_cf for a block of codewords, packed feature-major,
 * and `groups` groups of WIDE_CODEWORDS rows, packed group by group; both of d features. */
static void TYPED(block_products)(const REAL *codewords, const REAL *panels, ptrdiff_t groups,
                                  ptrdiff_t d, REAL *out, ptrdiff_t step)
{
    typedef LANES unaligned __attribute__((aligned(sizeof(REAL))));
    LANES zero = {0};
    OPAQUE(zero);
    for (ptrdiff_t g = 0; g < groups; g++, panels += WIDE_CODEWORDS * d) {
        LANES values[WIDE_CODEWORDS][WIDE_VECTORS];
        UNROLL for (int r = 0; r < WIDE_CODEWORDS; r++)
            UNROLL for (int v = 0; v < WIDE_VECTORS; v++) values[r][v] = zero;
        TYPED(wide_multiply)(codewords, panels, d, values);
        UNROLL for (int r = 0; r < WIDE_CODEWORDS; r++, out += step)
            UNROLL for (int v = 0; v < WIDE_VECTORS; v++)
                *(unaligned *)(out + v * LANE_COUNT) = values[r][v];
    }
}

/* sums[v] = unary + crossed[0] + ... + crossed[n - 1] for `vectors` vectors from `at` on. */
INLINE void TYPED(add_crossed)(const REAL *unary, const REAL *const *crossed, int n, ptrdiff_t at,
                               const int vectors, LANES *sums)
{
    typedef LANES unaligned __attribute__((aligned(sizeof(REAL))));
    UNROLL for (int v = 0; v < vectors; v++)
        sums[v] = *(const unaligned *)(unary + at + v * LANE_COUNT);
    for (int j = 0; j < n; j++) {
        const REAL *row = crossed[j] + at;
        UNROLL for (int v = 0; v < vectors; v++)
            sums[v] += *(const unaligned *)(row + v * LANE_COUNT);
    }
}

/* ---- beam search ---------------------------------------------------------------------------- */

INLINE int TYPED(before)(REAL value, int32_t place, REAL other, int32_t other_place)
{
    return value < other || (value == other && place < other_place);
}

INLINE void TYPED(offer)(Beam *beam, REAL value, int32_t place)
{
    REAL *values = (REAL *)beam->values;
    int32_t *places = beam->places;
    ptrdiff_t i = beam->count, last = beam->width - 1;
    if (i > last) {
        if (!TYPED(before)(value, place, values[last], places[last])) return;
        i = last;
    }
    for (; i > 0 && TYPED(before)(value, place, values[i - 1], places[i - 1]); i--)
        values[i] = values[i - 1], places[i] = places[i - 1];
    values[i] = value;
    places[i] = place;
    if (beam->count <= last) beam->count++;
    if (beam->count > last && values[last] < beam->limit) beam->limit = values[last];
}

/* Offer base + values[i] at place + i, for as many vectors. */
INLINE void TYPED(offer_vectors)(Beam *beam, const LANES *values, const int vectors, REAL base,
                                 int32_t place)
{
    const uint32_t all = (1u << LANE_COUNT) - 1;
    LANES limit = (LANES){0} + (REAL)beam->limit;
    UNROLL for (int v = 0; v < vectors; v++)
    {
        LANES candidates = values[v] + base;
        uint32_t bits = all & ~TYPED(below)(limit, candidates);
        if (!bits) continue;
        for (; bits; bits &= bits - 1) {
            int lane = __builtin_ctz(bits);
            TYPED(offer)(beam, candidates[lane], place + v * LANE_COUNT + lane);
        }
        limit = (LANES){0} + (REAL)beam->limit;
    }
}

/* Lower the limit to the width-th smallest of the minima of 16 parts of these values: as many
 * candidates are no larger. It saves most of what is offered in vain before a beam has settled. */
static void TYPED(first_limit)(Beam *beam, const REAL *values, ptrdiff_t n, REAL base)
{
    enum { PARTS_ = STAGE_STEP / LANE_COUNT };
    if (beam->width > STAGE_STEP) return;
    LANES least[PARTS_];
    UNROLL for (int v = 0; v < PARTS_; v++) least[v] = ((const LANES *)values)[v];
    for (ptrdiff_t at = STAGE_STEP; at < n; at += STAGE_STEP)
        UNROLL for (int v = 0; v < PARTS_; v++)
            least[v] = TYPED(min)(least[v], *(const LANES *)(values + at + v * LANE_COUNT));
    REAL found[STAGE_STEP], sorted[STAGE_STEP];
    __builtin_memcpy(found, least, sizeof found);
    for (int i = 0; i < beam->width; i++) sorted[i] = (REAL)__builtin_inf();
    for (int p = 0; p < STAGE_STEP; p++) {
        REAL value = found[p];
        for (int i = 0; i < beam->width; i++) {
            REAL smaller = value < sorted[i] ? value : sorted[i];
            value = value < sorted[i] ? sorted[i] : value;
            sorted[i] = smaller;
        }
    }
    REAL limit = sorted[beam->width - 1] + base;
    if (limit < beam->limit) beam->limit = limit;
}

/* Offer all extensions by one of n codewords of an entry whose value is `base`. */
static __attribute__((unused)) void TYPED(extend)(Beam *beam, const REAL *unary,
                                                  const REAL *const *crossed, int n_crossed,
                                                  ptrdiff_t n, REAL base, int32_t place,
                                                  REAL *scratch)
{
    enum { FEW = STAGE_STEP / LANE_COUNT, MANY = STAGE_CHUNK / LANE_COUNT };
    LANES sums[MANY];
    ptrdiff_t at = 0;
    if (place == 0) { /* the best entry: its extensions tell where the limit is */
        for (; at + STAGE_CHUNK <= n; at += STAGE_CHUNK) {
            TYPED(add_crossed)(unary, crossed, n_crossed, at, MANY, sums);
            UNROLL for (int v = 0; v < MANY; v++)
                *(LANES *)(scratch + at + v * LANE_COUNT) = sums[v];
        }
        for (; at < n; at += STAGE_STEP) {
            TYPED(add_crossed)(unary, crossed, n_crossed, at, FEW, sums);
            UNROLL for (int v = 0; v < FEW; v++)
                *(LANES *)(scratch + at + v * LANE_COUNT) = sums[v];
        }
        TYPED(first_limit)(beam, scratch, n, base);
        for (at = 0; at < n; at += STAGE_STEP)
            TYPED(offer_vectors)(beam, (const LANES *)(scratch + at), FEW, base, (int32_t)at);
        return;
    }
    for (; at + STAGE_CHUNK <= n; at += STAGE_CHUNK) {
        TYPED(add_crossed)(unary, crossed, n_crossed, at, MANY, sums);
        TYPED(offer_vectors)(beam, sums, MANY, base, place + (int32_t)at);
    }
    for (; at < n; at += STAGE_STEP) {
        TYPED(add_crossed)(unary, crossed, n_crossed, at, FEW, sums);
        TYPED(offer_vectors)(beam, sums, FEW, base, place + (int32_t)at);
    }
}

/* ---- local search --------------------------------------------------------------------------- */

/* The first of n codewords for which unary + crossed is smallest. */
static __attribute__((unused)) ptrdiff_t TYPED(condition)(const REAL *unary,
                                                          const REAL *const *crossed,
                                                          int n_crossed, ptrdiff_t n)
{
    enum { FEW = STAGE_STEP / LANE_COUNT, MANY = STAGE_CHUNK / LANE_COUNT };
    LANES sums[MANY], best = (LANES){0} + (REAL)__builtin_inf();
    INTS index = {0}, candidate = {0};
    ptrdiff_t at = 0;
    for (; at + STAGE_CHUNK <= n; at += STAGE_CHUNK) {
        TYPED(add_crossed)(unary, crossed, n_crossed, at, MANY, sums);
        UNROLL for (int v = 0; v < MANY; v++, candidate += 1)
            TYPED(keep_nearest)(sums[v], candidate, &best, &index);
    }
    for (; at < n; at += STAGE_STEP) {
        TYPED(add_crossed)(unary, crossed, n_crossed, at, FEW, sums);
        UNROLL for (int v = 0; v < FEW; v++, candidate += 1)
            TYPED(keep_nearest)(sums[v], candidate, &best, &index);
    }
    REAL least = best[0];
    ptrdiff_t found = (ptrdiff_t)index[0] * LANE_COUNT;
    for (int lane = 1; lane < LANE_COUNT; lane++) {
        ptrdiff_t place = (ptrdiff_t)index[lane] * LANE_COUNT + lane;
        if (best[lane] < least || (best[lane] == least && place < found))
            least = best[lane], found = place;
    }
    return found;
}
