/* The nearest of many coded rows: tables added up, 4-bit codes screened in registers, bits counted.
 *
 * Every way finds the k smallest (value, row) pairs, compared as pairs: so what is found does not
 * depend on the order of the rows or on how they are shared among threads. Values are float32,
 * added in the order of the codes: the same bits whichever function finds them.
 */
#ifndef FASTVQ_SEARCH_H
#define FASTVQ_SEARCH_H

#include "lanes.h"

/* Vectors wider than registers are passed to functions, which are inlined: there is no ABI. */
#pragma GCC diagnostic ignored "-Wpsabi"

/* ---- the best so far: a heap with the worst on top --------------------------------------- */

typedef struct {
    float *values; /* (k,), at first infinity */
    int64_t *rows; /* (k,), at first INT64_MAX */
    ptrdiff_t k;
} Best;

INLINE int best_worse(const Best *best, ptrdiff_t i, float value, int64_t row)
{
    return best->values[i] > value || (best->values[i] == value && best->rows[i] > row);
}

/* Put a pair that is better than the worst into its place. */
static void best_keep(const Best *best, float value, int64_t row)
{
    ptrdiff_t at = 0;
    for (;;) {
        ptrdiff_t child = 2 * at + 1;
        if (child >= best->k) break;
        if (child + 1 < best->k
            && best_worse(best, child + 1, best->values[child], best->rows[child]))
            child++;
        if (!best_worse(best, child, value, row)) break;
        best->values[at] = best->values[child];
        best->rows[at] = best->rows[child];
        at = child;
    }
    best->values[at] = value;
    best->rows[at] = row;
}

/* Rows come in ascending order, so that of equal values the first one stays. */
INLINE float best_offer(const Best *best, float value, int64_t row)
{
    if (value < best->values[0]) best_keep(best, value, row);
    return best->values[0];
}

/* ---- tables of any size ---------------------------------------------------------------------
 *
 * Eight queries at a time have their tables interleaved: one code then costs one load and one
 * addition for all eight, where alone each takes two loads and an addition. 1M rows of 16 codes
 * of 8 bits, Zen 3 with other work beside it, one thread: 2.1 ms a query of 64, 6.2 ms alone.
 */
enum { QUERIES = 8, ROWS_TOGETHER = 4, ROWS_ALONE = 8 };

typedef float f32_queries __attribute__((vector_size(32)));
typedef int32_t i32_queries __attribute__((vector_size(32)));

INLINE int queries_any(i32_queries mask)
{
#if defined(__AVX__)
    return _mm256_movemask_ps((__m256)mask);
#else
    uint64_t parts[4];
    __builtin_memcpy(parts, &mask, sizeof parts);
    return (parts[0] | parts[1] | parts[2] | parts[3]) != 0;
#endif
}

/* What codes are looked up in: column m has the entries from places[m] on. */
typedef struct {
    const float *entries;    /* one query: (total,); eight: (total, QUERIES) */
    const ptrdiff_t *places; /* (n_columns,) */
    ptrdiff_t n_columns;
    const float *scale, *offset; /* (n_rows,): value = scale * sum + offset; or both NULL */
} Tables;

#define DEFINE_SCAN(CODE, NAME)                                                                 \
    INLINE void NAME##_together(const CODE *codes, const Tables *tables, const int count,       \
                                f32_queries *sums)                                              \
    {                                                                                           \
        ptrdiff_t n_columns = tables->n_columns;                                                \
        UNROLL for (int r = 0; r < count; r++) sums[r] = (f32_queries){0};                      \
        for (ptrdiff_t m = 0; m < n_columns; m++) {                                             \
            const float *column = tables->entries + QUERIES * tables->places[m];                \
            UNROLL for (int r = 0; r < count; r++) sums[r] +=                                   \
                *(const f32_queries *)(column + QUERIES * (ptrdiff_t)codes[r * n_columns + m]); \
        }                                                                                       \
    }                                                                                           \
    INLINE void NAME##_some_together(const CODE *codes, ptrdiff_t row, const Tables *tables,    \
                                     const int count, const Best *best, f32_queries *limits)    \
    {                                                                                           \
        f32_queries sums[ROWS_TOGETHER];                                                        \
        i32_queries below = {0};                                                                \
        NAME##_together(codes + row * tables->n_columns, tables, count, sums);                  \
        UNROLL for (int r = 0; r < count; r++)                                                  \
        {                                                                                       \
            if (tables->scale)                                                                  \
                sums[r] = sums[r] * tables->scale[row + r] + tables->offset[row + r];           \
            below |= sums[r] < *limits;                                                         \
        }                                                                                       \
        if (!queries_any(below)) return;                                                        \
        for (int r = 0; r < count; r++)                                                         \
            for (int q = 0; q < QUERIES; q++)                                                   \
                if (sums[r][q] < (*limits)[q])                                                  \
                    (*limits)[q] = best_offer(best + q, sums[r][q], row + r);                   \
    }                                                                                           \
    /* Offer the rows from start to stop to `n_queries` <= QUERIES queries. */                  \
    static void NAME##_scan_together(const CODE *codes, ptrdiff_t start, ptrdiff_t stop,        \
                                     const Tables *tables, ptrdiff_t n_queries,                 \
                                     const Best *best)                                          \
    {                                                                                           \
        f32_queries limits = (f32_queries){0} - __builtin_inff();                               \
        for (ptrdiff_t q = 0; q < n_queries; q++) limits[q] = best[q].values[0];                \
        ptrdiff_t row = start;                                                                  \
        for (; row + ROWS_TOGETHER <= stop; row += ROWS_TOGETHER)                               \
            NAME##_some_together(codes, row, tables, ROWS_TOGETHER, best, &limits);             \
        for (; row < stop; row++) NAME##_some_together(codes, row, tables, 1, best, &limits);   \
    }                                                                                           \
    INLINE void NAME##_some_alone(const CODE *codes, ptrdiff_t row, const Tables *tables,       \
                                  const int count, const Best *best)                            \
    {                                                                                           \
        ptrdiff_t n_columns = tables->n_columns;                                                \
        float sums[ROWS_ALONE];                                                                 \
        codes += row * n_columns;                                                               \
        UNROLL for (int r = 0; r < count; r++) sums[r] = 0;                                     \
        for (ptrdiff_t m = 0; m < n_columns; m++) {                                             \
            const float *column = tables->entries + tables->places[m];                          \
            UNROLL for (int r = 0; r < count; r++) sums[r] += column[codes[r * n_columns + m]]; \
        }                                                                                       \
        UNROLL for (int r = 0; r < count; r++)                                                  \
        {                                                                                       \
            if (tables->scale)                                                                  \
                sums[r] = f32_multiply_add(sums[r], tables->scale[row + r],                     \
                                           tables->offset[row + r]);                            \
            best_offer(best, sums[r], row + r);                                                 \
        }                                                                                       \
    }                                                                                           \
    static void NAME##_scan_alone(const CODE *codes, ptrdiff_t start, ptrdiff_t stop,           \
                                  const Tables *tables, const Best *best)                       \
    {                                                                                           \
        ptrdiff_t row = start;                                                                  \
        for (; row + ROWS_ALONE <= stop; row += ROWS_ALONE)                                     \
            NAME##_some_alone(codes, row, tables, ROWS_ALONE, best);                            \
        for (; row < stop; row++) NAME##_some_alone(codes, row, tables, 1, best);               \
    }

DEFINE_SCAN(uint8_t, u8)
DEFINE_SCAN(uint16_t, u16)
DEFINE_SCAN(uint32_t, u32)

/* ---- 4-bit codes, screened in registers -----------------------------------------------------
 *
 * Sixteen entries of one byte fit a register, and a byte shuffle looks up 32 codes at once (Andre,
 * Kermarrec & Le Scouarnec, "Cache locality is not enough: high-performance nearest neighbor
 * search with product quantization fast scan", VLDB 2015). Entries are rounded down to whole steps
 * above the least of their column, and a step is chosen so that a row must stay within so many of
 * them to be better than the worst that is kept. Bytes are added with saturation: what a row
 * reaches is a lower bound. Rows within it are added up exactly, so that the screen decides what is
 * skipped and never what is found.
 *
 * Up to FEW_COLUMNS a row must stay within 254 steps, and one byte is enough. Of more columns,
 * chunks of eight are added up in 16 bits; 96 steps for each leave room in a byte for chunks that
 * are worse than their share (with 254 a single good chunk among saturated ones would let a row
 * pass), and rounding down costs half a step in twelve.
 */
enum { BLOCK_ROWS = 32, BLOCKS_TOGETHER = 128, SHORT_QUERIES = 4 };
enum { FEW_COLUMNS = 16, FEW_STEPS = 254, CHUNK_PAIRS = 4, CHUNK_STEPS = 96, MOST_PAIRS = 1024 };

typedef uint8_t u8_block __attribute__((vector_size(BLOCK_ROWS)));
typedef uint16_t u16_half __attribute__((vector_size(BLOCK_ROWS))); /* every other row */

INLINE u8_block u8_look_up(const uint8_t *table, u8_block codes)
{
#if defined(__AVX2__)
    __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return (u8_block)_mm256_shuffle_epi8(entries, (__m256i)codes);
#elif defined(__aarch64__)
    uint8x16_t half[2], entries = vld1q_u8(table);
    __builtin_memcpy(half, &codes, sizeof half);
    half[0] = vqtbl1q_u8(entries, half[0]);
    half[1] = vqtbl1q_u8(entries, half[1]);
    __builtin_memcpy(&codes, half, sizeof half);
    return codes;
#else
    for (int r = 0; r < BLOCK_ROWS; r++) codes[r] = table[codes[r]];
    return codes;
#endif
}

INLINE u8_block u8_add_saturated(u8_block a, u8_block b)
{
#if defined(__AVX2__)
    return (u8_block)_mm256_adds_epu8((__m256i)a, (__m256i)b);
#else
    u8_block sum = a + b;
    return sum | (u8_block)(sum < a);
#endif
}

/* Bit r is set where a[r] <= b. */
INLINE uint32_t u8_within(u8_block a, uint8_t b)
{
#if defined(__AVX2__)
    __m256i limit = _mm256_set1_epi8((char)b);
    __m256i least = _mm256_min_epu8((__m256i)a, limit);
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(least, (__m256i)a));
#else
    uint32_t bits = 0;
    for (int r = 0; r < BLOCK_ROWS; r++) bits |= (uint32_t)(a[r] <= b) << r;
    return bits;
#endif
}

/* The same of 16-bit sums: those of even rows, and of odd ones. */
INLINE uint32_t u16_within(u16_half even, u16_half odd, uint16_t b)
{
    u16_half outside = ((u16_half)(even > b) & 0xff) | ((u16_half)(odd > b) << 8);
    return u8_within((u8_block)outside, 0);
}

/* What is known of one query. */
typedef struct {
    const float *entries; /* (n_columns, 16) */
    ptrdiff_t n_columns;
    double base;   /* sum over the columns of their least entry */
    double slack;  /* what rounding can make of a sum */
    double screened; /* the value that the steps were made for; infinity where there are none */
    uint8_t *steps; /* (n_columns made even, 16) */
} Short;

INLINE ptrdiff_t short_pairs(ptrdiff_t n_columns) { return (n_columns + 1) / 2; }
INLINE int short_limit(ptrdiff_t n_pairs)
{
    if (n_pairs <= FEW_COLUMNS / 2) return FEW_STEPS;
    return (int)((n_pairs + CHUNK_PAIRS - 1) / CHUNK_PAIRS) * CHUNK_STEPS;
}

static void short_begin(Short *query)
{
    double largest = 0;
    query->base = 0;
    for (ptrdiff_t m = 0; m < query->n_columns; m++) {
        const float *entries = query->entries + 16 * m;
        float least = entries[0], most = 0;
        for (int c = 0; c < 16; c++) {
            least = entries[c] < least ? entries[c] : least;
            most = __builtin_fabsf(entries[c]) > most ? __builtin_fabsf(entries[c]) : most;
        }
        query->base += least;
        largest += most;
    }
    query->slack = (double)(query->n_columns + 2) * 0x1p-23 * largest;
    query->screened = __builtin_inf();
}

/* Entries in steps, for a screen that keeps every row whose sum is below `limit`. The factor makes
 * up for the rounding of these lines themselves. */
static void short_quantize(Short *query, float limit)
{
    double room = (double)limit + query->slack - query->base;
    double n_steps = short_limit(short_pairs(query->n_columns));
    float per_unit = room > 0x1p-100 ? (float)(n_steps / room * (1 - 1e-6)) : 0x1p100f;
    for (ptrdiff_t m = 0; m < query->n_columns; m++) {
        const float *entries = query->entries + 16 * m;
        float least = entries[0];
        for (int c = 1; c < 16; c++) least = entries[c] < least ? entries[c] : least;
        for (int c = 0; c < 16; c++) {
            float steps = (entries[c] - least) * per_unit;
            query->steps[16 * m + c] = steps < 255 ? (uint8_t)steps : 255;
        }
    }
    query->screened = limit;
}

/* packed[block][pair][r]: codes 2 * pair (low half of the byte) and 2 * pair + 1 of 32 rows. */
INLINE float short_sum(const uint8_t *packed, int r, const Short *query)
{
    float sum = 0;
    for (ptrdiff_t m = 0; m < query->n_columns; m++) {
        uint8_t both = packed[m / 2 * BLOCK_ROWS + r];
        sum += query->entries[16 * m + (m % 2 ? both >> 4 : both & 15)];
    }
    return sum;
}

/* Steps of the pairs from first to last, at most 255. */
INLINE void short_steps(const uint8_t *packed, ptrdiff_t first, ptrdiff_t last,
                        const Short *queries, const int count, u8_block *sums)
{
    UNROLL for (int q = 0; q < count; q++) sums[q] = (u8_block){0};
    for (ptrdiff_t pair = first; pair < last; pair++) {
        u8_block both;
        __builtin_memcpy(&both, packed + pair * BLOCK_ROWS, BLOCK_ROWS);
        u8_block low = both & 15, high = both >> 4;
        UNROLL for (int q = 0; q < count; q++)
        {
            const uint8_t *steps = queries[q].steps + 32 * pair;
            sums[q] = u8_add_saturated(sums[q], u8_look_up(steps, low));
            sums[q] = u8_add_saturated(sums[q], u8_look_up(steps + 16, high));
        }
    }
}

/* Rows of one block that may be good enough, as bits, for each of `count` queries. */
INLINE void short_screen(const uint8_t *packed, const Short *queries, const int count,
                         ptrdiff_t n_pairs, uint32_t *bits)
{
    u8_block sums[SHORT_QUERIES];
    u16_half even[SHORT_QUERIES], odd[SHORT_QUERIES];
    if (n_pairs <= FEW_COLUMNS / 2) {
        short_steps(packed, 0, n_pairs, queries, count, sums);
        UNROLL for (int q = 0; q < count; q++) bits[q] = u8_within(sums[q], FEW_STEPS);
        return;
    }
    UNROLL for (int q = 0; q < count; q++) even[q] = odd[q] = (u16_half){0};
    for (ptrdiff_t first = 0; first < n_pairs; first += CHUNK_PAIRS) {
        ptrdiff_t last = first + CHUNK_PAIRS < n_pairs ? first + CHUNK_PAIRS : n_pairs;
        short_steps(packed, first, last, queries, count, sums);
        UNROLL for (int q = 0; q < count; q++)
        {
            even[q] += (u16_half)sums[q] & 0xff;
            odd[q] += (u16_half)sums[q] >> 8;
        }
    }
    UNROLL for (int q = 0; q < count; q++)
        bits[q] = u16_within(even[q], odd[q], (uint16_t)short_limit(n_pairs));
}

/* Blocks from first to last, of which rows below n_rows are offered to `count` queries. */
INLINE void short_scan_(const uint8_t *packed, ptrdiff_t first, ptrdiff_t last, ptrdiff_t n_rows,
                        Short *queries, const int count, const Best *best)
{
    ptrdiff_t n_pairs = short_pairs(queries[0].n_columns);
    for (ptrdiff_t b = first; b < last; b++) {
        const uint8_t *block = packed + b * n_pairs * BLOCK_ROWS;
        ptrdiff_t here = n_rows - b * BLOCK_ROWS;
        uint32_t real = here < BLOCK_ROWS ? ((uint32_t)1 << here) - 1 : ~(uint32_t)0;
        uint32_t bits[SHORT_QUERIES];
        if ((b - first) % BLOCKS_TOGETHER == 0)
            UNROLL for (int q = 0; q < count; q++)
                if (best[q].values[0] < queries[q].screened)
                    short_quantize(&queries[q], best[q].values[0]);
        short_screen(block, queries, count, n_pairs, bits);
        UNROLL for (int q = 0; q < count; q++)
        {
            /* No steps yet: all rows, until k are known. */
            uint32_t left = real & (queries[q].screened < __builtin_inf() ? bits[q] : ~0u);
            for (; left; left &= left - 1) {
                int r = __builtin_ctz(left);
                best_offer(best + q, short_sum(block, r, &queries[q]), b * BLOCK_ROWS + r);
            }
            if (queries[q].screened == __builtin_inf() && best[q].values[0] < __builtin_inff())
                short_quantize(&queries[q], best[q].values[0]);
        }
    }
}

static void short_scan(const uint8_t *packed, ptrdiff_t first, ptrdiff_t last, ptrdiff_t n_rows,
                       Short *queries, ptrdiff_t count, const Best *best)
{
    if (count == SHORT_QUERIES)
        short_scan_(packed, first, last, n_rows, queries, SHORT_QUERIES, best);
    else
        for (ptrdiff_t q = 0; q < count; q++)
            short_scan_(packed, first, last, n_rows, queries + q, 1, best + q);
}

/* ---- bits counted ------------------------------------------------------------------------ */

enum { BIT_QUERIES = 4 };

INLINE int count_bits(uint64_t x)
{
#if defined(__POPCNT__) || defined(__aarch64__)
    return __builtin_popcountll(x);
#else /* what GCC calls there is a loop over bytes */
    x -= x >> 1 & 0x5555555555555555;
    x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f;
    return (int)(x * 0x0101010101010101 >> 56);
#endif
}

INLINE void bits_scan_(const uint64_t *codes, ptrdiff_t n_words, ptrdiff_t start, ptrdiff_t stop,
                       const uint64_t *queries, const int count, const Best *best)
{
    float limits[BIT_QUERIES];
    UNROLL for (int q = 0; q < count; q++) limits[q] = best[q].values[0];
    for (ptrdiff_t row = start; row < stop; row++) {
        const uint64_t *code = codes + row * n_words;
        UNROLL for (int q = 0; q < count; q++)
        {
            int64_t distance = 0;
            for (ptrdiff_t w = 0; w < n_words; w++)
                distance += count_bits(code[w] ^ queries[q * n_words + w]);
            if ((float)distance < limits[q])
                limits[q] = best_offer(best + q, (float)distance, row);
        }
    }
}

/* Offer rows to `count` <= BIT_QUERIES queries; a code is n_words words. */
static void bits_scan(const uint64_t *codes, ptrdiff_t n_words, ptrdiff_t start, ptrdiff_t stop,
                      const uint64_t *queries, ptrdiff_t count, const Best *best)
{
#define CASE(WORDS)                                                                             \
    case WORDS:                                                                                 \
        if (count == BIT_QUERIES)                                                               \
            bits_scan_(codes, WORDS, start, stop, queries, BIT_QUERIES, best);                  \
        else                                                                                    \
            for (ptrdiff_t q = 0; q < count; q++)                                               \
                bits_scan_(codes, WORDS, start, stop, queries + q * WORDS, 1, best + q);        \
        return;
    switch (n_words) { /* loops whose length the compiler knows */
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(8)
    default:
        for (ptrdiff_t q = 0; q < count; q++)
            bits_scan_(codes, n_words, start, stop, queries + q * n_words, 1, best + q);
    }
#undef CASE
}

#endif
