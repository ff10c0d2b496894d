/* Orders in which neighbours of a weight may be added in 16 bits after a multiplication by 255.
 *
 * What is added fits as long as the positive weights of a sum are at most 128 together, and so are the
 * negative ones: then no sum of a part of them leaves 16 bits, whatever they are multiplied by. For
 * each panel and each 32 of its values: which two may stand beside each other in all columns, as many
 * pairs as are found, those with the fewest chances first. Then which two pairs may be added once
 * more, by the same search. A value that finds no partner is alone in its pair, which costs half of a
 * group.
 */
#ifndef FASTVQ_PAIRING_H
#define FASTVQ_PAIRING_H

#include "dot.h"

enum { ALONE = 0x80 }; /* in an order: no value; whatever is picked meets a weight of 0 */

#if DOT_HAS_PAIRED
enum { ROOM = 128, TIGHTER = 16, TIGHTEST = 64 };

/* In each column what is positive of some weights, and what is negative. */
typedef __m256i Parts;

INLINE Parts parts_of(const int8_t *weight, int64_t step, int columns)
{
    uint8_t parts[2 * DOT_COLUMNS] = {0};
    for (int c = 0; c < columns; c++) {
        int w = weight[c * step];
        parts[w < 0 ? DOT_COLUMNS + c : c] = (uint8_t)(w < 0 ? -w : w);
    }
    return _mm256_loadu_si256((const __m256i *)parts);
}

INLINE int largest(Parts parts)
{
    __m256i rest = _mm256_xor_si256(parts, _mm256_set1_epi8(-1));
    __m128i least = _mm_min_epu8(_mm256_castsi256_si128(rest), _mm256_extracti128_si256(rest, 1));
    least = _mm_min_epu8(least, _mm_srli_epi16(least, 8)); /* in the lower byte of each two */
    least = _mm_minpos_epu16(_mm_and_si128(least, _mm_set1_epi16(0xFF)));
    return 255 - _mm_extract_epi16(least, 0);
}

/* How large the largest part is of each two together. */
typedef struct {
    int count;
    uint8_t load[DOT_CHOICE][DOT_CHOICE];
} Loads;

INLINE void find_loads(const Parts *parts, int count, Loads *loads)
{
    loads->count = count;
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count; j++)
            loads->load[i][j] = loads->load[j][i] =
                (uint8_t)largest(_mm256_adds_epu8(parts[i], parts[j]));
}

/* The value among `some` that has the fewest partners among `free`. */
INLINE int loneliest(const uint32_t *may, uint32_t some, uint32_t free)
{
    int found = -1, fewest = DOT_CHOICE + 1;
    for (; some; some &= some - 1) {
        int i = __builtin_ctz(some), partners = __builtin_popcount(may[i] & free);
        if (partners < fewest) found = i, fewest = partners;
    }
    return found;
}

/* Twos whose parts are at most `most`, and behind them those who found no partner. */
typedef struct {
    int couples, count;
    uint8_t first[DOT_CHOICE], second[DOT_CHOICE];
} Match;

static void match(const Loads *loads, int most, Match *found)
{
    uint32_t may[DOT_CHOICE] = {0}, alone = 0;
    uint32_t free = (uint32_t)((UINT64_C(1) << loads->count) - 1);
    for (int i = 0; i < loads->count; i++)
        for (int j = 0; j < loads->count; j++)
            may[i] |= (uint32_t)(i != j && loads->load[i][j] <= most) << j;
    found->count = 0;
    while (free) {
        int one = loneliest(may, free, free);
        uint32_t partners = may[one] & free;
        free &= ~(1u << one);
        if (!partners) {
            alone |= 1u << one;
            continue;
        }
        int other = loneliest(may, partners, free);
        free &= ~(1u << other);
        found->first[found->count] = (uint8_t)one;
        found->second[found->count++] = (uint8_t)other;
    }
    found->couples = found->count;
    for (; alone; alone &= alone - 1, found->count++) {
        found->first[found->count] = (uint8_t)__builtin_ctz(alone);
        found->second[found->count] = ALONE;
    }
}

/* The pairs of values, and of those pairs those that may be added once more. */
typedef struct {
    Match pairs, fours;
} Plan;

INLINE void plan_with(const Parts *parts, const Loads *loads, int most, Plan *plan)
{
    Parts sums[DOT_CHOICE];
    Loads of_pairs;
    match(loads, most, &plan->pairs);
    for (int p = 0; p < plan->pairs.count; p++) {
        int one = plan->pairs.first[p], other = plan->pairs.second[p];
        sums[p] = other == ALONE ? parts[one] : _mm256_adds_epu8(parts[one], parts[other]);
    }
    find_loads(sums, plan->pairs.count, &of_pairs);
    match(&of_pairs, ROOM, &plan->fours);
}

/* Pairs of small parts find others more often: as small as leaves no more values without a partner. */
INLINE void find_plan(const Parts *parts, int count, Plan *best)
{
    Loads loads;
    find_loads(parts, count, &loads);
    plan_with(parts, &loads, ROOM, best);
    for (int most = ROOM - TIGHTER; most >= TIGHTEST; most -= TIGHTER) {
        Plan plan;
        plan_with(parts, &loads, most, &plan);
        if (plan.pairs.count > best->pairs.count) break;
        if (plan.fours.couples > best->fours.couples) *best = plan;
    }
}

INLINE uint8_t *put_pair(const Match *pairs, int number, uint8_t *order)
{
    order[0] = pairs->first[number];
    order[1] = pairs->second[number];
    return order + 2;
}

/* orders OUT (DOT_MOST_GROUPS): the groups of `count` values of some columns, the last of which may
 * be half empty; how many. doubles OUT: so many twos of groups come first whose sums may be added.
 * weight IN: columns `step` apart. */
static int find_orders(const int8_t *weight, int64_t step, int columns, int count, uint32_t *orders,
                       int8_t *doubles)
{
    Parts parts[DOT_CHOICE];
    Plan plan;
    uint8_t order[2 * DOT_CHOICE + 2], *at = order;
    for (int i = 0; i < count; i++) parts[i] = parts_of(weight + i, step, columns);
    find_plan(parts, count, &plan);
    const Match *pairs = &plan.pairs, *fours = &plan.fours;
    *doubles = (int8_t)(fours->couples / 2);
    for (int four = 0; four + 1 < fours->couples; four += 2) {
        at = put_pair(pairs, fours->first[four], at);
        at = put_pair(pairs, fours->first[four + 1], at);
        at = put_pair(pairs, fours->second[four], at);
        at = put_pair(pairs, fours->second[four + 1], at);
    }
    for (int four = 2 * *doubles; four < fours->count; four++) {
        at = put_pair(pairs, fours->first[four], at);
        if (fours->second[four] != ALONE) at = put_pair(pairs, fours->second[four], at);
    }
    at[0] = at[1] = ALONE;
    const int groups = (pairs->count + 1) / 2;
    memcpy(orders, order, (size_t)groups * sizeof *orders);
    return groups;
}
#else
static int find_orders(const int8_t *weight, int64_t step, int columns, int count, uint32_t *orders,
                       int8_t *doubles)
{
    (void)weight, (void)step, (void)columns, (void)count, (void)orders, (void)doubles;
    return 0; /* for no one */
}
#endif

#endif
