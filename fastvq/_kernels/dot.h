/* Exact products of 8-bit integers, summed in 32 bits: the one primitive of the integer kernels.
 *
 * `dot` adds to each 32-bit lane the products of one group: the 4 bytes of the left operand that
 * all lanes share, and a group of the right operand for each lane. Every level has its own way,
 * and all give the same integers:
 *
 *   VNNI       4 products u8 x s8 (vpdpbusd, which wraps and never saturates). What is signed on
 *              the left is raised by 128; column sums take that back.
 *   dotprod    4 products s8 x s8 (SDOT).
 *   elsewhere  2 products s16 x s16 of widened values (pmaddwd; on Arm multiplied long and added
 *              in pairs). The right operand stays in bytes in memory and is widened on its way in.
 *
 * AVX2 has a second way for most weights. vpmaddubsw makes 4 products u8 x s8 of a lane and adds
 * them two by two in 16 bits, where 255 * 127 + 255 * 127 has no room and saturates. But
 * 255 * (a + b) has, as long as |a + b| <= 128, and so has each product alone. So of a weight it is
 * enough to know which values stand beside each other:
 *
 *   DOT_PAIRED  all neighbours may be added: weights of few bits.
 *   DOT_PICKED  groups pick their values among 32, in an order that was found for their panel, in
 *               which all neighbours may be added in all columns (pairing.h). Of models' weights 1
 *               to 6 % of pairs are too large, so that of 16 columns hardly any group would be left
 *               as it is; but among 32 values there are many ways to make 16 pairs, and one goes.
 *               The rows of a tile are brought into that order 32 values at a time. And some of the
 *               pairs have room for each other: two groups of such are added in 16 bits before they
 *               are in 32, three multiplications instead of four. Of groups, so go 12 % in a trained
 *               MLP, 47 % in MobileNetV2, 78 % in MiniLM.
 *
 * Either is exact for every left operand. Zen 3, 1024 rows times 512 x 784 with all that belongs to
 * it, of 207 GOP/s (two multiplications a cycle): 147 widened, 183 paired, 165 picked.
 */
#ifndef FASTVQ_DOT_H
#define FASTVQ_DOT_H

#include <string.h>

#include "lanes.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define DOT_VNNI 1
#elif defined(__ARM_FEATURE_DOTPROD)
#define DOT_SDOT 1
#elif defined(__AVX2__)
#define DOT_HAS_PAIRED 1
#endif

/* How a weight is multiplied: as its level does, or in pairs that are known to be exact. */
enum { DOT_WHOLE, DOT_PAIRED, DOT_PICKED };

/* Values that groups of DOT_PICKED pick from; groups of those, at most: two pairs in each, and a
 * value without a partner is a pair. */
enum { DOT_CHOICE = 32, DOT_MOST_GROUPS = DOT_CHOICE / 2 };

#if DOT_VNNI
enum { DOT_ROWS = 8, DOT_VECTORS = 3 };
#elif DOT_SDOT
enum { DOT_ROWS = 6, DOT_VECTORS = 4 };
#else
enum { DOT_ROWS = 6, DOT_VECTORS = 2 };
#endif

/* Few rows take weights as fast as memory gives them: Zen 3's own prefetching stops at a page. With
 * these 4 KB ahead a row times 4096 x 4096 took 482 us, with 1 KB 636, without 822. */
enum { DOT_FEW_ROWS = 4, DOT_AHEAD = 4096 };

/* Columns of a panel. */
enum { DOT_COLUMNS = DOT_VECTORS * F32_LANES };

/* Values of a group, of 4 bytes on the left; bytes of a panel's group. */
#if DOT_VNNI || DOT_SDOT
INLINE int dot_group(int form) { return 4; }
#else
INLINE int dot_group(int form) { return form == DOT_WHOLE ? 2 : 4; }
#endif
INLINE int dot_step(int form) { return dot_group(form) * DOT_COLUMNS; }

/* What is added to a left operand, so that it has no sign. */
#if DOT_VNNI
INLINE int dot_offset(int form) { return 128; }
#else
INLINE int dot_offset(int form) { return form == DOT_WHOLE ? 0 : 128; }
#endif

typedef int8_t i8_lanes __attribute__((vector_size(LANE_BYTES)));

/* The right groups of as many columns as there are lanes. */
INLINE i32_lanes dot_right(int form, const int8_t *right)
{
#if DOT_HAS_PAIRED
    if (form == DOT_WHOLE)
        return (i32_lanes)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)right));
#endif
#if DOT_VNNI || DOT_SDOT || DOT_HAS_PAIRED
    i32_lanes value;
    memcpy(&value, right, sizeof value);
    return value;
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
INLINE i32_lanes dot_spread(const uint8_t *left)
{
    int32_t group;
    memcpy(&group, left, sizeof group);
    return (i32_lanes){0} + group;
}

INLINE i32_lanes dot(int form, i32_lanes sum, i32_lanes left, i32_lanes right)
{
#if DOT_VNNI
    return (i32_lanes)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)left, (__m512i)right);
#elif DOT_SDOT
    return (i32_lanes)vdotq_s32((int32x4_t)sum, (int8x16_t)left, (int8x16_t)right);
#elif defined(__AVX2__)
    if (form == DOT_WHOLE) return sum + (i32_lanes)_mm256_madd_epi16((__m256i)left, (__m256i)right);
    __m256i pairs = _mm256_maddubs_epi16((__m256i)left, (__m256i)right);
    return sum + (i32_lanes)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__SSE2__)
    return sum + (i32_lanes)_mm_madd_epi16((__m128i)left, (__m128i)right);
#elif defined(__aarch64__)
    int16x8_t a = (int16x8_t)left, b = (int16x8_t)right;
    return sum + (i32_lanes)vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)),
                                       vmull_high_s16(a, b));
#endif
}

/* Whether left operands are bytes, or else of 16 bits. */
INLINE int dot_left_bytes(int form) { return dot_group(form) == 4; }

/* Bytes of a left operand for each of its values. */
INLINE int dot_left_size(int form) { return dot_left_bytes(form) ? 1 : 2; }

/* Values that are made left operands at once. */
enum { DOT_RUN = 16 };
typedef int8_t i8_run __attribute__((vector_size(DOT_RUN)));
typedef int16_t i16_run __attribute__((vector_size(2 * DOT_RUN)));

/* `count` signed bytes as left operands. Nothing is read from `end` on; behind what is asked for up
 * to DOT_RUN - 1 values are written: whoever comes next, or a weight of 0, makes them forgotten. */
INLINE void dot_left_run(int form, const int8_t *from, int64_t count, const int8_t *end,
                         uint8_t *left)
{
    for (int64_t f = 0; f < count; f += DOT_RUN, left += DOT_RUN * dot_left_size(form)) {
        i8_run bytes = {0};
        if (end - from - f >= DOT_RUN)
            memcpy(&bytes, from + f, sizeof bytes);
        else
            memcpy(&bytes, from + f, (size_t)(count - f));
        if (dot_left_bytes(form)) {
            bytes ^= (int8_t)dot_offset(form);
            memcpy(left, &bytes, sizeof bytes);
        } else {
            i16_run wide = __builtin_convertvector(bytes, i16_run);
            memcpy(left, &wide, sizeof wide);
        }
    }
}

/* The same value `count` times. */
INLINE void dot_left_fill(int form, int8_t value, int64_t count, uint8_t *left)
{
    const i8_run same = (i8_run){0} + value;
    for (int64_t f = 0; f < count; f += DOT_RUN)
        dot_left_run(form, (const int8_t *)&same, DOT_RUN, (const int8_t *)(&same + 1),
                     left + f * dot_left_size(form));
}

/* sums += products of left rows, `stride` bytes apart, with the groups of a panel, of which so many
 * vectors count. */
INLINE void dot_groups(int form, int rows, int vectors, const uint8_t *left, int64_t stride,
                       const int8_t *panel, int64_t groups, i32_lanes (*sum)[DOT_VECTORS])
{
    for (int64_t group = 0; group < groups; group++, left += 4, panel += dot_step(form)) {
        i32_lanes right[DOT_VECTORS];
        if (rows <= DOT_FEW_ROWS) __builtin_prefetch(panel + DOT_AHEAD);
        UNROLL for (int v = 0; v < vectors; v++)
            right[v] = dot_right(form, panel + v * dot_group(form) * F32_LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            i32_lanes spread = dot_spread(left + i * stride);
            UNROLL for (int v = 0; v < vectors; v++)
                sum[i][v] = dot(form, sum[i][v], spread, right[v]);
        }
    }
}

/* The groups that one shuffle picks, and how a pick begins: with how many of them there are, how many
 * twos of them may be added in 16 bits, and by how many values the next one lies further on. Then come
 * the numbers of their values, in bytes. */
enum { DOT_PICK = 8, DOT_PICK_COUNT = 0xFF, DOT_PICK_DOUBLES = 8, DOT_PICK_ADVANCE = 16 };

#if DOT_HAS_PAIRED
/* dot_groups of groups two by two, whose sums of pairs have room for each other in 16 bits. */
INLINE void dot_doubles(int rows, int vectors, const uint8_t *left, int64_t stride,
                        const int8_t *panel, int64_t doubles, i32_lanes (*sum)[DOT_VECTORS])
{
    const int step = dot_step(DOT_PAIRED);
    for (; doubles > 0; doubles--, left += 8, panel += 2 * step) {
        if (rows <= DOT_FEW_ROWS) {
            __builtin_prefetch(panel + DOT_AHEAD);
            __builtin_prefetch(panel + DOT_AHEAD + step);
        }
        UNROLL for (int i = 0; i < rows; i++) {
            __m256i one = (__m256i)dot_spread(left + i * stride);
            __m256i other = (__m256i)dot_spread(left + i * stride + 4);
            const int8_t *right = panel;
            __asm__ volatile("" : "+r"(right)); /* read anew, or sums are kept in memory instead */
            UNROLL for (int v = 0; v < vectors; v++, right += 4 * F32_LANES) {
                __m256i a = _mm256_maddubs_epi16(one, (__m256i)dot_right(DOT_PAIRED, right));
                __m256i b = _mm256_maddubs_epi16(other, (__m256i)dot_right(DOT_PAIRED, right + step));
                __m256i both = _mm256_add_epi16(a, b);
                sum[i][v] += (i32_lanes)_mm256_madd_epi16(both, _mm256_set1_epi16(1));
            }
        }
    }
}

/* picked OUT (rows, 4 * DOT_PICK): of each row's DOT_CHOICE values those that orders name. */
INLINE void dot_pick(int rows, const uint8_t *left, int64_t stride, const uint32_t *orders,
                     uint8_t *picked)
{
    const __m256i order = _mm256_loadu_si256((const __m256i *)orders);
    /* A shuffle takes from 16 bytes, and 0 where bit 7 is set: so each half for itself. */
    const __m256i low = _mm256_add_epi8(order, _mm256_set1_epi8(0x70));
    const __m256i high = _mm256_sub_epi8(order, _mm256_set1_epi8(0x10));
    UNROLL for (int i = 0; i < rows; i++) {
        const __m128i *at = (const __m128i *)(left + i * stride);
        __m256i first = _mm256_broadcastsi128_si256(_mm_loadu_si128(at));
        __m256i second = _mm256_broadcastsi128_si256(_mm_loadu_si128(at + 1));
        first = _mm256_or_si256(_mm256_shuffle_epi8(first, low), _mm256_shuffle_epi8(second, high));
        _mm256_store_si256((__m256i *)(picked + i * 4 * DOT_PICK), first);
    }
}
#else
INLINE void dot_doubles(int rows, int vectors, const uint8_t *left, int64_t stride,
                        const int8_t *panel, int64_t doubles, i32_lanes (*sum)[DOT_VECTORS])
{
    (void)rows, (void)vectors, (void)left, (void)stride, (void)panel, (void)doubles, (void)sum;
}

INLINE void dot_pick(int rows, const uint8_t *left, int64_t stride, const uint32_t *orders,
                     uint8_t *picked)
{
    (void)rows, (void)left, (void)stride, (void)orders, (void)picked; /* for no one */
}
#endif

/* sums (rows, DOT_COLUMNS) OUT, of each row so many vectors, and 0 behind them: products of left rows, `stride` bytes
 * apart, with a panel of so many groups; DOT_PICKED: of so many picks, orders IN. Then DOT_CHOICE
 * values from the last pick's on are read of a row. */
INLINE void dot_tile(int form, int rows, int vectors, const uint8_t *left, int64_t stride,
                     const int8_t *panel, const uint32_t *orders, int64_t steps, int32_t *sums)
{
    i32_lanes sum[DOT_ROWS][DOT_VECTORS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = (i32_lanes){0};
    if (form == DOT_PICKED) {
        /* Always one pick ahead: what has just been written can be read only some cycles later. */
        uint8_t picked[2][DOT_ROWS][4 * DOT_PICK] __attribute__((aligned(32)));
        dot_pick(rows, left, stride, orders + 1, picked[0][0]);
        for (int64_t step = 0; step < steps; step++) {
            const uint32_t groups = *orders & DOT_PICK_COUNT;
            const uint32_t doubles = *orders >> DOT_PICK_DOUBLES & DOT_PICK_COUNT;
            const uint8_t *first = picked[step & 1][0];
            left += *orders >> DOT_PICK_ADVANCE;
            orders += 1 + groups;
            if (step + 1 < steps)
                dot_pick(rows, left, stride, orders + 1, picked[~step & 1][0]);
            dot_doubles(rows, vectors, first, sizeof **picked, panel, doubles, sum);
            dot_groups(DOT_PAIRED, rows, vectors, first + 8 * doubles, sizeof **picked,
                       panel + 2 * doubles * dot_step(form), groups - 2 * doubles, sum);
            panel += groups * dot_step(form);
        }
    } else
        dot_groups(form, rows, vectors, left, stride, panel, steps, sum);
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int v = vectors; v < DOT_VECTORS; v++) sum[i][v] = (i32_lanes){0};
        UNROLL for (int v = 0; v < DOT_VECTORS; v++)
            memcpy(sums + i * DOT_COLUMNS + v * F32_LANES, &sum[i][v], sizeof sum[i][v]);
    }
}

/* Bytes of four vectors of integers, in order; what does not fit becomes the nearest that does. */
INLINE i8_lanes narrow(const i32_lanes *q)
{
#if defined(__AVX512F__)
    __m512i bytes = _mm512_castsi128_si512(_mm512_cvtsepi32_epi8((__m512i)q[0]));
    bytes = _mm512_inserti32x4(bytes, _mm512_cvtsepi32_epi8((__m512i)q[1]), 1);
    bytes = _mm512_inserti32x4(bytes, _mm512_cvtsepi32_epi8((__m512i)q[2]), 2);
    return (i8_lanes)_mm512_inserti32x4(bytes, _mm512_cvtsepi32_epi8((__m512i)q[3]), 3);
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
    for (int i = 0; i < 4 * F32_LANES; i++) {
        int32_t value = q[i / F32_LANES][i % F32_LANES];
        bytes[i] = (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value);
    }
    return bytes;
#endif
}

/* The same of 16 bits, of as many vectors as a panel has. */
INLINE void narrow_to_16(const i32_lanes *q, int16_t *out)
{
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m256i pairs = _mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]);
    _mm256_storeu_si256((__m256i *)out, _mm256_permute4x64_epi64(pairs, 0xD8));
#elif defined(__SSE2__) && !defined(__AVX512F__)
    _mm_storeu_si128((__m128i *)out, _mm_packs_epi32((__m128i)q[0], (__m128i)q[1]));
#else
    for (int c = 0; c < DOT_COLUMNS; c++) {
        int32_t value = q[c / F32_LANES][c % F32_LANES];
        out[c] = (int16_t)(value < -32768 ? -32768 : value > 32767 ? 32767 : value);
    }
#endif
}

#endif
