/* The first k of a row in order: a heap of the k best so far, the worst on top.
 *
 * A value and its place are one number, which sorts as both do: equal values by their places, NaN
 * above all. So no two are equal, and the answer does not depend on how they are sorted.
 */
#ifndef FASTVQ_SELECT_H
#define FASTVQ_SELECT_H

#include "lanes.h"

INLINE uint64_t rank_of(float value, int64_t place, const int largest)
{
    int32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    bits = bits == INT32_MIN ? 0 : bits;           /* -0 is 0 */
    bits ^= bits >> 31 & INT32_MAX;                /* ascending as whole numbers */
    bits = value != value ? INT32_MAX : bits;
    const uint32_t order = (uint32_t)bits ^ 0x80000000u;
    return (uint64_t)(largest ? ~order : order) << 32 | (uint64_t)place;
}

/* Let the number at `at` sink to where none below it is larger. */
INLINE void sink(uint64_t *heap, int64_t size, int64_t at)
{
    const uint64_t value = heap[at];
    for (int64_t below; (below = 2 * at + 1) < size; at = below) {
        if (below + 1 < size && heap[below + 1] > heap[below]) below++;
        if (heap[below] <= value) break;
        heap[at] = heap[below];
    }
    heap[at] = value;
}

/* Of n < 2^32 values `step` apart the k <= n least, or largest, and their places, `step` apart too;
 * heap: room for k numbers. */
static void select_first(const float *x, int64_t n, int64_t step, int64_t k, int largest,
                         uint64_t *heap, float *values, int64_t *places)
{
    for (int64_t i = 0; i < k; i++) heap[i] = rank_of(x[i * step], i, largest);
    for (int64_t i = k / 2 - 1; i >= 0; i--) sink(heap, k, i);
    for (int64_t i = k; i < n; i++) {
        const uint64_t rank = rank_of(x[i * step], i, largest);
        if (rank < *heap) *heap = rank, sink(heap, k, 0);
    }
    for (int64_t left = k - 1; left > 0; left--) {
        const uint64_t worst = *heap;
        *heap = heap[left], heap[left] = worst;
        sink(heap, left, 0);
    }
    for (int64_t i = 0; i < k; i++) {
        const int64_t place = (int64_t)(heap[i] & UINT32_MAX);
        values[i * step] = x[place * step], places[i * step] = place;
    }
}

#endif
