/* Products of rows with weights of few bits, looked up in registers and multiplied as bytes.
 *
 * A row of floats becomes bytes from -127 to 127, a scale for each group of columns. Of the weights
 * a panel is as many outputs as CODES_VECTORS vectors have 32-bit lanes; in a block of CODES_BLOCK
 * columns each lane has 8 quads of codes, and the vectors of a panel hold 1, 2 or 4 quads of every
 * lane, in the bits of their bytes from the lowest on. A byte shuffle turns codes into levels, which are not negative and
 * within 7 bits; their origin is taken back with the sum of the row's bytes. So one memory-bound
 * row reads half a byte a weight and spends three or four instructions on 32 of them.
 *
 * Sums of a group are exact; what is made of them is rounded the same on every level:
 *
 *     y = (sum over groups, in order, of (float(sum) * (weight scale * unit)) * row scale) + bias
 *
 * The row's scale comes last: what comes before it stays in range for any row.
 *
 * Exact without VNNI: levels up to L and bytes up to 127 give sums of two products (vpmaddubsw) of
 * at most 254 L in 16 bits, of which 32767 / (254 L) may be added before they are widened.
 */
#ifndef FASTVQ_CODES_H
#define FASTVQ_CODES_H

#include <string.h>

#include "row_bytes.h"

enum { CODES_BLOCK = 32, CODES_QUADS = CODES_BLOCK / 4 };

/* How far ahead panels of packed codes are fetched, as a core's own prefetching ends with every page.
 * Zen 3, one row, (4096, 4096) in 4 bits, 8.9 MB: 735 us without, 497 us so, beside 1.2 ms of 8-bit
 * integers; Zen 4, 8 rows: 1.38 ms and 0.86. Of bytes one row took 0.76 ms without, 1.00 so. */
enum { CODES_AHEAD = 4096 };
/* Vectors of a panel: what a row's bytes, scales and sums cost is shared by them. SSE2 spends its
 * registers on widening. */
#if defined(__SSE2__) && !defined(__AVX2__)
enum { CODES_VECTORS = 1 };
#else
enum { CODES_VECTORS = 2 };
#endif
/* Rows that share what is looked up, as many as registers hold the sums of. */
#if defined(__AVX512F__)
enum { CODES_ROWS = 8 };
#else
enum { CODES_ROWS = 4 };
#endif
/* Loads of a block, one by one where sums need no unrolled loop: a core's own prefetching follows a few
 * loads, not dozens. */
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define CODES_UNROLL _Pragma("GCC unroll 1")
#else
#define CODES_UNROLL UNROLL
#endif
enum { CODES_BYTES = CODES_VECTORS * LANE_BYTES, CODES_LANES = CODES_VECTORS * F32_LANES };
#if defined(__AVX2__) || defined(__aarch64__)
enum { CODES_SHUFFLE = 1 };
#else
enum { CODES_SHUFFLE = 0 }; /* panels hold levels, a byte each */
#endif

typedef uint8_t u8_lanes __attribute__((vector_size(LANE_BYTES)));
typedef uint16_t u16_lanes __attribute__((vector_size(LANE_BYTES)));

typedef struct {
    const int8_t *x;        /* (rows, groups * blocks * CODES_BLOCK), `stride` bytes apart */
    const float *row_scale; /* (rows, groups) */
    const int32_t *row_sum; /* (rows, groups): of the bytes of x */
    const uint8_t *panels;  /* (panels, groups, blocks, CODES_QUADS * CODES_BYTES * bits / 8) */
    const uint8_t *table;   /* (2, 16): levels of a code of 4 bits, in its first row, or of the lower
                             * and the upper of two codes of 2; NULL: a code is its own level */
    const uint16_t *scales; /* (panels, groups, CODES_LANES): float16 */
    const uint8_t *points;  /* the same: origins of levels; NULL where it is `origin` */
    const float *bias;      /* (panels, CODES_LANES) or NULL */
    int64_t rows, groups, blocks, columns, stride;
    int bits;               /* of a code in a panel: 2, 4 or 8 */
    int depth;              /* vpmaddubsw that may be added in 16 bits: 1, 2, 4, 8 */
    int32_t origin;
    float unit, low, high;
    float *y;               /* (rows, columns) */
} Codes;

/* ---- the primitives of each level ----------------------------------------------------------- */

INLINE u8_lanes codes_lookup(u8_lanes table, u8_lanes codes)
{
#if defined(__AVX512BW__)
    return (u8_lanes)_mm512_shuffle_epi8((__m512i)table, (__m512i)codes);
#elif defined(__AVX2__)
    return (u8_lanes)_mm256_shuffle_epi8((__m256i)table, (__m256i)codes);
#elif defined(__aarch64__)
    return (u8_lanes)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)codes);
#else
    return codes;
#endif
}

#if defined(__AVX2__) && !(defined(__AVX512VNNI__) && defined(__AVX512F__))
/* Products of levels with the quads of a row: sums of two, in 16 bits. */
INLINE i32_lanes codes_pairs(u8_lanes levels, i32_lanes quad)
{
    return (i32_lanes)_mm256_maddubs_epi16((__m256i)levels, (__m256i)quad);
}
#endif

/* sum + the products of levels with the quads of a row, four to a lane. `pairs` keeps what is not
 * in the sum yet, up to `depth` of them. */
INLINE void codes_dot(i32_lanes *sum, i32_lanes *pairs, u8_lanes levels, i32_lanes quad, int number,
                      int depth)
{
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
    *sum = (i32_lanes)_mm512_dpbusd_epi32((__m512i)*sum, (__m512i)levels, (__m512i)quad);
    return;
#elif defined(__AVX2__)
    i32_lanes two = codes_pairs(levels, quad);
    *pairs = number % depth ? (i32_lanes)_mm256_add_epi16((__m256i)*pairs, (__m256i)two) : two;
    if (depth > 1) OPAQUE(*pairs);
    if ((number + 1) % depth) return;
    *sum += (i32_lanes)_mm256_madd_epi16((__m256i)*pairs, _mm256_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
    *sum = (i32_lanes)vdotq_s32((int32x4_t)*sum, (int8x16_t)levels, (int8x16_t)quad);
#elif defined(__aarch64__)
    int8x16_t a = (int8x16_t)levels, b = (int8x16_t)quad;
    int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
    *sum += (i32_lanes)vpaddq_s32(low, high);
#elif defined(__SSE2__)
    __m128i a = (__m128i)levels, b = (__m128i)quad, zero = _mm_setzero_si128();
    __m128i sign = _mm_cmpgt_epi8(zero, b);
    __m128i low = _mm_madd_epi16(_mm_unpacklo_epi8(a, zero), _mm_unpacklo_epi8(b, sign));
    __m128i high = _mm_madd_epi16(_mm_unpackhi_epi8(a, zero), _mm_unpackhi_epi8(b, sign));
    __m128 even = _mm_shuffle_ps((__m128)low, (__m128)high, 0x88);
    __m128 odd = _mm_shuffle_ps((__m128)low, (__m128)high, 0xdd);
    *sum += (i32_lanes)even + (i32_lanes)odd;
#endif
    /* Added one by one: GCC 12 makes trees of sums, and those of four rows leave the registers. */
    OPAQUE(*sum);
}

INLINE f32_lanes codes_scales(const uint16_t *at)
{
#if defined(__AVX512F__)
    return (f32_lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
#elif defined(__F16C__)
    return (f32_lanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
#elif defined(__aarch64__)
    return (f32_lanes)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at)));
#else
    f32_lanes values;
    for (int lane = 0; lane < F32_LANES; lane++) {
        /* exponent and digits to their places, then out of float16's range into float32's */
        uint32_t bits = (uint32_t)(at[lane] & 0x7fff) << 13;
        float value;
        memcpy(&value, &bits, sizeof value);
        value *= 0x1p112f;
        values[lane] = at[lane] & 0x8000 ? -value : value;
    }
    return values;
#endif
}

/* ---- rows ----------------------------------------------------------------------------------- */

/* The largest size in a row, NaN being larger than any: of bits without the sign, whose order is that
 * of the sizes. Of integers a compiler makes vectors of the loop; of floats it may not. */
INLINE float largest_size(const float *x, int64_t width)
{
    int32_t largest = 0;
    float size;
    for (int64_t i = 0; i < width; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    memcpy(&size, &largest, sizeof size);
    return size;
}

/* A group of a row: codes OUT (room, a multiple of CODES_BLOCK, zeros after `width`), and what they
 * count in, at least 2^-126; NaN where a value is NaN or infinite. The sum of the codes. */
INLINE int32_t codes_quantize(const float *x, int64_t width, int64_t room, int8_t *codes,
                              float *scale)
{
    const float largest = largest_size(x, width);
    float step = largest / 127.0f;
    if (step < 0x1p-126f) step = 0x1p-126f;
    *scale = largest - largest != 0 ? __builtin_nanf("") : step;
    quantize_row(x, width, (RowScale){*scale, 0}, 0, codes);
    memset(codes + width, 0, (size_t)(room - width));
    int32_t sum = 0;
    for (int64_t i = 0; i < width; i++) sum += codes[i];
    return sum;
}

/* ---- a panel -------------------------------------------------------------------------------- */

INLINE i32_lanes codes_quad(const int8_t *x)
{
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return (i32_lanes){0} + quad;
}

/* Levels of a vector of codes: those in the bits from `shift` on of its bytes. */
INLINE u8_lanes codes_levels(const uint8_t *at, int bits, int shift, int lookup,
                             const u8_lanes *table)
{
    u8_lanes codes;
    memcpy(&codes, at, sizeof codes);
    if (bits < 8) /* shifted in 16 bits: what comes in from the neighbour is masked away */
        codes = (u8_lanes)((u16_lanes)codes >> (shift & 4)) & 15;
    return lookup ? codes_lookup(table[shift % 4 / 2], codes) : codes;
}

/* Sums of a block for `rows` rows, whose bytes lie `stride` apart; what lies `ahead` is fetched. */
INLINE void codes_block(int rows, int bits, int depth, int lookup, const u8_lanes *table,
                        const uint8_t *panel, int64_t ahead, const int8_t *x, int64_t stride,
                        i32_lanes sum[][CODES_VECTORS])
{
    const int parts = 8 / bits;
    i32_lanes pairs[CODES_ROWS][CODES_VECTORS];
    CODES_UNROLL for (int load = 0; load < CODES_QUADS / parts; load++) {
        const uint8_t *at = panel + load * CODES_BYTES;
        UNROLL for (int line = 0; line < CODES_BYTES; line += 64)
            if (bits < 8 && (load * CODES_BYTES + line) % 64 == 0)
                __builtin_prefetch(at + line + ahead, 0, 3);
        UNROLL for (int part = 0; part < parts; part++) {
            const int number = load * parts + part;
            u8_lanes levels[CODES_VECTORS];
            UNROLL for (int v = 0; v < CODES_VECTORS; v++)
                levels[v] = codes_levels(at + v * LANE_BYTES, bits, part * bits, lookup, table);
            UNROLL for (int i = 0; i < rows; i++) {
                i32_lanes quad = codes_quad(x + i * stride + 4 * number);
                UNROLL for (int v = 0; v < CODES_VECTORS; v++)
                    codes_dot(&sum[i][v], &pairs[i][v], levels[v], quad, number, depth);
            }
        }
    }
}

/* What the sums of a group stand for, added to the totals. */
INLINE void codes_group(int rows, const Codes *job, int64_t panel, int64_t row, int64_t g,
                        i32_lanes sum[][CODES_VECTORS], f32_lanes total[][CODES_VECTORS])
{
    const int64_t first = (panel * job->groups + g) * CODES_LANES;
    UNROLL for (int v = 0; v < CODES_VECTORS; v++) {
        f32_lanes scale = codes_scales(job->scales + first + v * F32_LANES);
        scale = product(scale, (f32_lanes){0} + job->unit);
        UNROLL for (int i = 0; i < rows; i++) {
            const int64_t place = (row + i) * job->groups + g;
            i32_lanes exact = sum[i][v];
            if (job->points) {
                i32_lanes origin;
                for (int lane = 0; lane < F32_LANES; lane++)
                    origin[lane] = job->points[first + v * F32_LANES + lane];
                exact -= origin * job->row_sum[place];
            }
            f32_lanes real = product(__builtin_convertvector(exact, f32_lanes), scale);
            total[i][v] += product(real, (f32_lanes){0} + job->row_scale[place]);
        }
    }
}

INLINE void codes_store(const Codes *job, int64_t row, int64_t first, f32_lanes y)
{
    const int64_t count = job->columns - first;
    if (job->bias) y += f32_load(job->bias + first);
    y = bounded(y, job->low, job->high);
    float *to = job->y + row * job->columns + first;
    if (count >= F32_LANES)
        f32_store(to, y);
    else if (count > 0)
        f32_store_part(to, y, count);
}

/* One panel by `rows` rows from `row` on. */
INLINE void codes_panel(int rows, int bits, int depth, int lookup, const Codes *job, int64_t panel,
                        int64_t row)
{
    const int64_t groups = job->groups, blocks = job->blocks;
    const int64_t ahead = row == 0 ? CODES_AHEAD : 0; /* later rows find the panel in a cache */
    const int64_t step = CODES_QUADS * CODES_BYTES * bits / 8;
    const uint8_t *at = job->panels + panel * groups * blocks * step;
    const int8_t *x = job->x + row * job->stride;
    f32_lanes total[CODES_ROWS][CODES_VECTORS];
    u8_lanes table[2] = {{0}, {0}};
    if (lookup)
        for (int i = 0; i < LANE_BYTES; i++) {
            table[0][i] = job->table[i % 16];
            table[1][i] = job->table[16 + i % 16];
        }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < CODES_VECTORS; v++) total[i][v] = (f32_lanes){0};
    for (int64_t g = 0; g < groups; g++) {
        i32_lanes sum[CODES_ROWS][CODES_VECTORS];
        UNROLL for (int i = 0; i < rows; i++) {
            const int32_t start = -job->origin * job->row_sum[(row + i) * groups + g];
            UNROLL for (int v = 0; v < CODES_VECTORS; v++) sum[i][v] = (i32_lanes){0} + start;
        }
        for (int64_t block = 0; block < blocks; block++) {
            codes_block(rows, bits, depth, lookup, table, at, ahead, x, job->stride, sum);
            at += step;
            x += CODES_BLOCK;
        }
        codes_group(rows, job, panel, row, g, sum, total);
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < CODES_VECTORS; v++)
            codes_store(job, row + i, panel * CODES_LANES + v * F32_LANES, total[i][v]);
}

/* ---- which of the tiles --------------------------------------------------------------------- */

#define CODES_ROWS_CASE(rows, bits, depth, lookup)                                              \
    case rows: codes_panel(rows, bits, depth, lookup, job, panel, row); break;
#if defined(__AVX512F__)
#define CODES_MORE_ROWS(...)                                                                    \
    CODES_ROWS_CASE(5, __VA_ARGS__) CODES_ROWS_CASE(6, __VA_ARGS__)                             \
    CODES_ROWS_CASE(7, __VA_ARGS__) CODES_ROWS_CASE(8, __VA_ARGS__)
#else
#define CODES_MORE_ROWS(...)
#endif
/* All rows, in tiles of about equal height. */
#define CODES_CASE(bits, depth, lookup)                                                         \
    static void codes_##bits##_##depth##_##lookup(const Codes *job, int64_t panel)              \
    {                                                                                           \
        int64_t tiles = (job->rows + CODES_ROWS - 1) / CODES_ROWS;                              \
        for (int64_t row = 0, rows; tiles > 0; tiles--, row += rows) {                          \
            rows = (job->rows - row + tiles - 1) / tiles;                                       \
            switch (rows) {                                                                     \
                CODES_ROWS_CASE(1, bits, depth, lookup) CODES_ROWS_CASE(2, bits, depth, lookup) \
                CODES_ROWS_CASE(3, bits, depth, lookup) CODES_ROWS_CASE(4, bits, depth, lookup) \
                CODES_MORE_ROWS(bits, depth, lookup)                                            \
            }                                                                                   \
        }                                                                                       \
    }

#if defined(__AVX2__) || defined(__aarch64__)
CODES_CASE(2, 8, 1)
CODES_CASE(2, 1, 1)
CODES_CASE(2, 4, 1)
CODES_CASE(4, 8, 0)
CODES_CASE(4, 1, 1)
CODES_CASE(4, 2, 1)
#endif
CODES_CASE(8, 1, 0)
CODES_CASE(8, 4, 0)

/* Panels first .. last of all rows. */
static void codes_panels(const Codes *job, int64_t first, int64_t last)
{
    void (*run)(const Codes *, int64_t) = job->depth >= 4 ? codes_8_4_0 : codes_8_1_0;
#if defined(__AVX2__) || defined(__aarch64__)
    if (job->bits == 2)
        run = job->depth >= 8 ? codes_2_8_1 : job->depth >= 4 ? codes_2_4_1 : codes_2_1_1;
    if (job->bits == 4)
        run = !job->table ? codes_4_8_0 : job->depth >= 2 ? codes_4_2_1 : codes_4_1_1;
#endif
    for (int64_t panel = first; panel < last; panel++) run(job, panel);
}

#endif
