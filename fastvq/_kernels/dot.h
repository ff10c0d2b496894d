/* Exact products of 8-bit integers, summed in 32 bits: the one primitive of the integer kernels.
 *
 * `dot` adds to each 32-bit lane the products of one group: the 4 bytes of the left operand that
 * all lanes share, and a group of the right operand for each lane. Every level has its own way,
 * and all give the same integers:
 *
 *   VNNI       4 products u8 x s8 (vpdpbusd, which wraps and never saturates). What is signed on
 *              the left is raised by DOT_OFFSET = 128; column sums take that back.
 *   dotprod    4 products s8 x s8 (SDOT).
 *   elsewhere  2 products s16 x s16 of widened values (pmaddwd; on Arm multiplied long and added
 *              in pairs). The right operand stays in bytes in memory and is widened on its way in.
 *
 * vpmaddubsw takes 4 bytes a lane without VNNI, but saturates: 255*127 + 255*127 has no room in 16
 * bits. Kept exact by halving an operand it needs two multiplications where pmaddwd needs two, and
 * where it would be safe its sums must be widened by another multiplication. If Zen 3 starts two of
 * any of these in a cycle, as is published (not measured here), 64 operations a cycle are the most
 * for all of these. Seen there, clock 3.23 GHz by the rate of float32 multiply-adds, so 207 GOP/s,
 * on a busy machine, 6 x 16 tile, K = 1024, best of 8000: 165 as here, widening on the way in; 165
 * from a panel widened before; 166 as 4 x 24; 199 saturating. Why not more than 165 is not known;
 * perhaps as four vector instructions stand here where that has three.
 */
#ifndef FASTVQ_DOT_H
#define FASTVQ_DOT_H

#include <string.h>

#include "lanes.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
enum { DOT_GROUP = 4, DOT_OFFSET = 128, DOT_ROWS = 8, DOT_VECTORS = 3 };
#define DOT_EIGHT_ROWS 1
typedef uint8_t dot_left;
#elif defined(__ARM_FEATURE_DOTPROD)
enum { DOT_GROUP = 4, DOT_OFFSET = 0, DOT_ROWS = 6, DOT_VECTORS = 4 };
typedef int8_t dot_left;
#else
enum { DOT_GROUP = 2, DOT_OFFSET = 0, DOT_ROWS = 6, DOT_VECTORS = 2 };
typedef int16_t dot_left;
#endif

/* Columns of a panel; bytes of a panel's group. */
enum { DOT_COLUMNS = DOT_VECTORS * F32_LANES, DOT_STEP = DOT_GROUP * DOT_COLUMNS };

typedef int8_t i8_lanes __attribute__((vector_size(LANE_BYTES)));

/* The right groups of as many columns as there are lanes. */
INLINE i32_lanes dot_right(const int8_t *right)
{
#if defined(__ARM_FEATURE_DOTPROD) || \
    (defined(__AVX512VNNI__) && defined(__AVX512F__))
    i32_lanes value;
    memcpy(&value, right, sizeof value);
    return value;
#elif defined(__AVX2__)
    return (i32_lanes)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)right));
#elif defined(__SSE2__)
    __m128i bytes = _mm_loadl_epi64((const __m128i *)right);
    return (i32_lanes)_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
#elif defined(__aarch64__)
    return (i32_lanes)vmovl_s8(vld1_s8(right));
#else
#error "no exact dot product for this level"
#endif
}

/* The group of the left operand, in all lanes. */
INLINE i32_lanes dot_spread(const dot_left *left)
{
    int32_t group;
    memcpy(&group, left, sizeof group);
    return (i32_lanes){0} + group;
}

INLINE i32_lanes dot(i32_lanes sum, i32_lanes left, i32_lanes right)
{
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
    return (i32_lanes)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)left, (__m512i)right);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (i32_lanes)vdotq_s32((int32x4_t)sum, (int8x16_t)left, (int8x16_t)right);
#elif defined(__AVX2__)
    return sum + (i32_lanes)_mm256_madd_epi16((__m256i)left, (__m256i)right);
#elif defined(__SSE2__)
    return sum + (i32_lanes)_mm_madd_epi16((__m128i)left, (__m128i)right);
#elif defined(__aarch64__)
    int16x8_t a = (int16x8_t)left, b = (int16x8_t)right;
    return sum + (i32_lanes)vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)),
                                       vmull_high_s16(a, b));
#endif
}

/* A row of signed bytes as the left operand; the room ends at a multiple of 64 values. */
INLINE void dot_left_row(const int8_t *row, int64_t width, dot_left *left)
{
    for (int64_t f = 0; f < width; f++) left[f] = (dot_left)(row[f] + DOT_OFFSET);
    for (int64_t f = width; f < width + DOT_GROUP - 1; f++) left[f] = 0;
}

/* sums (rows, DOT_COLUMNS) OUT: products of left rows, `stride` apart, with one panel. */
INLINE void dot_tile(int rows, const dot_left *left, int64_t stride, const int8_t *panel,
                     int64_t groups, int32_t *sums)
{
    i32_lanes sum[DOT_ROWS][DOT_VECTORS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < DOT_VECTORS; v++) sum[i][v] = (i32_lanes){0};
    for (int64_t group = 0; group < groups; group++) {
        i32_lanes right[DOT_VECTORS];
        UNROLL for (int v = 0; v < DOT_VECTORS; v++)
            right[v] = dot_right(panel + v * DOT_GROUP * F32_LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            i32_lanes spread = dot_spread(left + i * stride);
            UNROLL for (int v = 0; v < DOT_VECTORS; v++)
                sum[i][v] = dot(sum[i][v], spread, right[v]);
        }
        left += DOT_GROUP;
        panel += DOT_STEP;
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < DOT_VECTORS; v++)
            memcpy(sums + i * DOT_COLUMNS + v * F32_LANES, &sum[i][v], sizeof sum[i][v]);
}

/* Bytes of four vectors of integers that fit in them, in order. */
INLINE i8_lanes narrow(const i32_lanes *q)
{
#if defined(__AVX512F__)
    __m512i bytes = _mm512_castsi128_si512(_mm512_cvtepi32_epi8((__m512i)q[0]));
    bytes = _mm512_inserti32x4(bytes, _mm512_cvtepi32_epi8((__m512i)q[1]), 1);
    bytes = _mm512_inserti32x4(bytes, _mm512_cvtepi32_epi8((__m512i)q[2]), 2);
    return (i8_lanes)_mm512_inserti32x4(bytes, _mm512_cvtepi32_epi8((__m512i)q[3]), 3);
#elif defined(__AVX2__)
    __m256i low = _mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]);
    __m256i high = _mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]);
    __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return (i8_lanes)_mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
#elif defined(__SSE2__)
    return (i8_lanes)_mm_packs_epi16(_mm_packs_epi32((__m128i)q[0], (__m128i)q[1]),
                                     _mm_packs_epi32((__m128i)q[2], (__m128i)q[3]));
#else
    i8_lanes bytes;
    for (int i = 0; i < 4 * F32_LANES; i++) bytes[i] = (int8_t)q[i / F32_LANES][i % F32_LANES];
    return bytes;
#endif
}

#endif
