/* Orders in which neighbours of a weight may be added in 16 bits after a multiplication by 255.
 *
 * For each panel and each 32 of its values: which two of them may stand beside each other in all
 * columns, and as many pairs of those as are found, those with the fewest chances first. A value
 * that finds no partner is alone in its pair, which costs half of a group.
 */
#ifndef FASTVQ_PAIRING_H
#define FASTVQ_PAIRING_H

#include "dot.h"

enum { ALONE = 0x80 }; /* in an order: no value; whatever is picked meets a weight of 0 */

/* may OUT: bit j of may[i] is set where values i and j may stand beside each other. values IN
 * (count, DOT_COLUMNS). */
INLINE void find_partners(int16_t (*values)[DOT_COLUMNS], int count, uint32_t *may)
{
    for (int i = 0; i < count; i++) may[i] = 0;
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count; j++) {
            int16_t largest = 0;
            for (int c = 0; c < DOT_COLUMNS; c++) {
                int16_t sum = (int16_t)(values[i][c] + values[j][c]);
                int16_t size = (int16_t)(sum < 0 ? -sum : sum);
                largest = size > largest ? size : largest;
            }
            if (largest > 128) continue;
            may[i] |= 1u << j;
            may[j] |= 1u << i;
        }
}

/* The value among `some` that has the fewest partners among `free`. */
INLINE int loneliest(const uint32_t *may, uint32_t some, uint32_t free)
{
    int found = -1, fewest = DOT_CHOICE + 1;
    for (int i = 0; i < DOT_CHOICE; i++) {
        int partners = __builtin_popcount(may[i] & free);
        if ((some >> i & 1) && partners < fewest) found = i, fewest = partners;
    }
    return found;
}

/* order OUT (2 * DOT_CHOICE): the values, two by two; how many pairs. */
INLINE int pair_up(const uint32_t *may, int count, uint8_t *order)
{
    uint32_t free = (uint32_t)((UINT64_C(1) << count) - 1);
    int pairs = 0, natural = 1;
    for (int i = 0; i + 1 < count; i += 2) natural &= (int)(may[i] >> (i + 1) & 1);
    while (free) {
        int first = natural ? __builtin_ctz(free) : loneliest(may, free, free), second = ALONE;
        uint32_t partners = may[first] & free;
        free &= ~(1u << first);
        if (partners) {
            second = natural ? first + 1 : loneliest(may, partners, free);
            free &= ~(1u << second);
        }
        order[2 * pairs] = (uint8_t)first;
        order[2 * pairs + 1] = (uint8_t)second;
        pairs++;
    }
    return pairs;
}

/* orders OUT (DOT_MOST_GROUPS): the groups of `count` values of some columns, the last of which may
 * be half empty; how many. weight IN: columns `step` apart. */
static int find_orders(const int8_t *weight, int64_t step, int columns, int count, uint32_t *orders)
{
    int16_t values[DOT_CHOICE][DOT_COLUMNS] = {{0}};
    uint32_t may[DOT_CHOICE] = {0};
    uint8_t order[2 * DOT_CHOICE + 2];
    for (int c = 0; c < columns; c++)
        for (int i = 0; i < count; i++) values[i][c] = weight[c * step + i];
    find_partners(values, count, may);
    int pairs = pair_up(may, count, order);
    order[2 * pairs] = order[2 * pairs + 1] = ALONE;
    memcpy(orders, order, (size_t)((pairs + 1) / 2) * sizeof *orders);
    return (pairs + 1) / 2;
}

#endif
