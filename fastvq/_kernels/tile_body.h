/* The tile itself, for one element type and one shape; see tile.h. No include guard: included
 * once for every type and shape.
 *
 * rows    packed block, feature-major: rows[f * ROWS + r], aligned
 * panels  packed codebook, `groups` groups of CODEWORDS codewords; a group is its CODEWORDS
 *         starting values, then for each feature its CODEWORDS factors. The value of a row for
 *         a codeword is start + sum_f row_f * factor_f, features in order.
 */
#define ROWS (VECTORS * LANE_COUNT)

/* values[c][v] += rows . factors[c]: the loop in which the time goes. */
INLINE void NAME(multiply)(const REAL *rows, const REAL *factor, ptrdiff_t d,
                           LANES values[CODEWORDS][VECTORS])
{
#define STEP                                                                                    \
    {                                                                                           \
        LANES x[VECTORS];                                                                       \
        UNROLL for (int v = 0; v < VECTORS; v++) x[v] = ((const LANES *)rows)[v];               \
        UNROLL for (int c = 0; c < CODEWORDS; c++)                                              \
        {                                                                                       \
            LANES y = (LANES){0} + factor[c];                                                   \
            UNROLL for (int v = 0; v < VECTORS; v++) values[c][v] += x[v] * y;                  \
        }                                                                                       \
        rows += ROWS;                                                                           \
        factor += CODEWORDS;                                                                    \
    }
    if (__builtin_constant_p(d)) {
        UNROLL for (ptrdiff_t f = 0; f < d; f++) STEP
    } else {
        for (ptrdiff_t f = 0; f < d; f++) STEP
    }
#undef STEP
}

/* values[c][v] = sum_f (row_f - codeword_f)^2 for DIRECT codewords from `first` on; past the
 * last codeword that one is repeated, which never wins because only a smaller value does. */
INLINE void NAME(differences)(const REAL *rows, const REAL *codebook, ptrdiff_t first,
                              ptrdiff_t k, ptrdiff_t d, LANES values[DIRECT][VECTORS])
{
    const REAL *codeword[DIRECT];
    LANES zero = {0};
    OPAQUE(zero);
    UNROLL for (int c = 0; c < DIRECT; c++)
    {
        codeword[c] = codebook + (first + c < k ? first + c : k - 1) * d;
        UNROLL for (int v = 0; v < VECTORS; v++) values[c][v] = zero;
    }
#define STEP                                                                                    \
    {                                                                                           \
        LANES x[VECTORS];                                                                       \
        UNROLL for (int v = 0; v < VECTORS; v++) x[v] = ((const LANES *)rows)[v];               \
        UNROLL for (int c = 0; c < DIRECT; c++)                                                 \
        {                                                                                       \
            LANES y = (LANES){0} + codeword[c][f];                                              \
            UNROLL for (int v = 0; v < VECTORS; v++)                                            \
            {                                                                                   \
                LANES difference = x[v] - y;                                                    \
                values[c][v] += difference * difference;                                        \
            }                                                                                   \
        }                                                                                       \
        rows += ROWS;                                                                           \
    }
    if (__builtin_constant_p(d)) {
        UNROLL for (ptrdiff_t f = 0; f < d; f++) STEP
    } else {
        for (ptrdiff_t f = 0; f < d; f++) STEP
    }
#undef STEP
}

INLINE void NAME(put)(const LANES values[VECTORS], REAL *out)
{
    for (int v = 0; v < VECTORS; v++) __builtin_memcpy(out + v * LANE_COUNT, &values[v], LANE_BYTES);
}

INLINE void NAME(put_codes)(const INTS index[VECTORS], int32_t *codes)
{
    for (int v = 0; v < VECTORS; v++) {
        if (sizeof(REAL) == sizeof(int32_t)) {
            __builtin_memcpy(codes + v * LANE_COUNT, &index[v], LANE_BYTES);
            continue;
        }
        for (int lane = 0; lane < LANE_COUNT; lane++)
            codes[v * LANE_COUNT + lane] = (int32_t)index[v][lane];
    }
}

/* A packed block centred, row * scale - shift, and the squared norms of its rows then. */
INLINE void NAME(centre)(const REAL *rows, ptrdiff_t d, REAL scale, const REAL *shift,
                         REAL *centred, REAL *norms)
{
    LANES sums[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) sums[v] = (LANES){0};
    for (ptrdiff_t f = 0; f < d; f++, rows += ROWS, centred += ROWS)
        UNROLL for (int v = 0; v < VECTORS; v++)
        {
            LANES x = ((const LANES *)rows)[v] * scale - shift[f];
            ((LANES *)centred)[v] = x;
            sums[v] += x * x;
        }
    NAME(put)(sums, norms);
}

INLINE void NAME(start)(const REAL *group, LANES values[CODEWORDS][VECTORS])
{
    UNROLL for (int c = 0; c < CODEWORDS; c++)
        UNROLL for (int v = 0; v < VECTORS; v++) values[c][v] = (LANES){0} + group[c];
}

/* Groups outside, blocks of rows inside: a group stays in the first-level cache while the blocks,
 * which stay in the second, pass by. What is known of each block is kept in `best` and so on. */
INLINE void NAME(expand_)(const int keep_two, const REAL *rows, ptrdiff_t blocks,
                          const REAL *panels, ptrdiff_t groups, ptrdiff_t d, REAL *best_out,
                          REAL *second_out, REAL *third_out, int32_t *codes, int32_t *runners_up)
{
    LANES best[BLOCKS][VECTORS], second[BLOCKS][VECTORS], third[BLOCKS][VECTORS];
    INTS index[BLOCKS][VECTORS], runner_up[BLOCKS][VECTORS];
    if (BLOCKS == 1) blocks = 1; /* so that all of it stays in registers */
    for (ptrdiff_t b = 0; b < blocks; b++)
        UNROLL for (int v = 0; v < VECTORS; v++)
        {
            best[b][v] = second[b][v] = third[b][v] = (LANES){0} + (REAL)__builtin_inf();
            index[b][v] = runner_up[b][v] = (INTS){0};
        }
    for (ptrdiff_t g = 0; g < groups; g++, panels += CODEWORDS * (d + 1)) {
        INTS candidate = (INTS){0} + (int32_t)(g * CODEWORDS);
        for (ptrdiff_t b = 0; b < blocks; b++) {
            LANES values[CODEWORDS][VECTORS];
            NAME(start)(panels, values);
            NAME(multiply)(rows + b * ROWS * d, panels + CODEWORDS, d, values);
            /* Vectors outside: what belongs to one of them stays in registers meanwhile. */
            UNROLL for (int v = 0; v < VECTORS; v++)
            {
                /* Later codewords seldom are among the nearest of any row: look at the least of a
                 * group first. With few features that look is as long as what it saves. */
                if (MANY_FEATURES) {
                    LANES least = values[0][v];
                    UNROLL for (int c = 1; c < CODEWORDS; c++)
                        least = TYPED(min)(least, values[c][v]);
                    if (!TYPED(below)(least, keep_two ? third[b][v] : second[b][v])) continue;
                }
                UNROLL for (int c = 0; c < CODEWORDS; c++)
                {
                    LANES value = values[c][v], loser = TYPED(max)(best[b][v], value);
                    if (keep_two) {
                        INTS less = value < best[b][v], code = candidate + c;
                        INTS losing = (less & index[b][v]) | (~less & code);
                        third[b][v] = TYPED(min)(third[b][v], TYPED(max)(second[b][v], loser));
                        TYPED(keep_nearest)(loser, losing, &second[b][v], &runner_up[b][v]);
                    } else {
                        second[b][v] = TYPED(min)(second[b][v], loser);
                    }
                    TYPED(keep_nearest)(value, candidate + c, &best[b][v], &index[b][v]);
                }
            }
        }
    }
    for (ptrdiff_t b = 0; b < blocks; b++) {
        NAME(put)(best[b], best_out + b * ROWS);
        NAME(put)(second[b], second_out + b * ROWS);
        NAME(put)(keep_two ? third[b] : second[b], third_out + b * ROWS);
        NAME(put_codes)(index[b], codes + b * ROWS);
        NAME(put_codes)(runner_up[b], runners_up + b * ROWS);
    }
}

INLINE void NAME(direct_)(const REAL *rows, const REAL *codebook, ptrdiff_t k, ptrdiff_t d,
                          REAL *best_out, int32_t *codes)
{
    LANES best[VECTORS];
    INTS index[VECTORS], candidate = {0};
    UNROLL for (int v = 0; v < VECTORS; v++)
    {
        best[v] = (LANES){0} + (REAL)__builtin_inf();
        index[v] = (INTS){0};
    }
    for (ptrdiff_t first = 0; first < k; first += DIRECT) {
        LANES values[DIRECT][VECTORS];
        NAME(differences)(rows, codebook, first, k, d, values);
        UNROLL for (int v = 0; v < VECTORS; v++)
            UNROLL for (int c = 0; c < DIRECT; c++)
                TYPED(keep_nearest)(values[c][v], candidate + c, &best[v], &index[v]);
        candidate += DIRECT;
    }
    NAME(put)(best, best_out);
    NAME(put_codes)(index, codes);
}

#ifdef SIZES
#define EACH_SIZE(CASE)                                                                         \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)                             \
    CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14) CASE(15) CASE(16)
#else
#define EACH_SIZE(CASE)
#endif

/* The three least values of every row of `blocks` packed blocks, at most BLOCKS, one after another,
 * and the codes of the least and the second. Up to RUNNER_UP_FEATURES, where that would cost time,
 * the third is not looked for: it is the second then, and the runner-up 0. */
static void NAME(expand)(const REAL *rows, ptrdiff_t blocks, const REAL *panels, ptrdiff_t groups,
                         ptrdiff_t d, REAL *best, REAL *second, REAL *third, int32_t *codes,
                         int32_t *runners_up)
{
    switch (d) {
#define CASE(D) \
    case D:                                                                                 \
        NAME(expand_)(0, rows, blocks, panels, groups, D, best, second, third, codes, runners_up); \
        return;
        EACH_SIZE(CASE)
#undef CASE
    default:
        if (MANY_FEATURES && d > RUNNER_UP_FEATURES)
            NAME(expand_)(1, rows, blocks, panels, groups, d, best, second, third, codes, runners_up);
        else
            NAME(expand_)(0, rows, blocks, panels, groups, d, best, second, third, codes, runners_up);
    }
}

/* Smallest distance of every row and its code, from the differences; codebook row-major. */
static void NAME(direct)(const REAL *rows, const REAL *codebook, ptrdiff_t k, ptrdiff_t d,
                         REAL *best, int32_t *codes)
{
    switch (d) {
#define CASE(D) case D: NAME(direct_)(rows, codebook, k, D, best, codes); return;
        EACH_SIZE(CASE)
#undef CASE
    default: NAME(direct_)(rows, codebook, k, d, best, codes);
    }
}
#undef EACH_SIZE

/* Every value, out[c * ROWS + r]: itself a packed block of `groups * CODEWORDS` features. */
static __attribute__((unused)) void NAME(products)(const REAL *rows, const REAL *panels,
                                                   ptrdiff_t groups, ptrdiff_t d, REAL *out)
{
    for (ptrdiff_t g = 0; g < groups; g++, panels += CODEWORDS * (d + 1)) {
        LANES values[CODEWORDS][VECTORS];
        NAME(start)(panels, values);
        NAME(multiply)(rows, panels + CODEWORDS, d, values);
        UNROLL for (int c = 0; c < CODEWORDS; c++)
            UNROLL for (int v = 0; v < VECTORS; v++, out += LANE_COUNT)
                *(LANES *)out = values[c][v];
    }
}

/* The two smallest distances of every row and their codes, nearest first. */
static __attribute__((unused)) void NAME(direct_two)(const REAL *rows, const REAL *codebook,
                                                     ptrdiff_t k, ptrdiff_t d, REAL *best,
                                                     REAL *second, int32_t *codes)
{
    for (int r = 0; r < ROWS; r++) {
        best[r] = second[r] = (REAL)__builtin_inf();
        codes[2 * r] = codes[2 * r + 1] = 0;
    }
    for (ptrdiff_t first = 0; first < k; first += DIRECT) {
        LANES values[DIRECT][VECTORS];
        NAME(differences)(rows, codebook, first, k, d, values);
        for (int c = 0; c < DIRECT && first + c < k; c++) {
            const REAL *value = (const REAL *)values[c];
            for (int r = 0; r < ROWS; r++) {
                if (value[r] < best[r]) {
                    second[r] = best[r];
                    codes[2 * r + 1] = codes[2 * r];
                    best[r] = value[r];
                    codes[2 * r] = (int32_t)(first + c);
                } else if (value[r] < second[r]) {
                    second[r] = value[r];
                    codes[2 * r + 1] = (int32_t)(first + c);
                }
            }
        }
    }
}
#undef ROWS
