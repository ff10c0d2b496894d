/* Walks down decision trees, eight at a time, without branches.
 *
 * One walk waits for memory at every step; eight that know nothing of each other wait together.
 * They are eight rows in one tree, or eight trees for one row. A leaf leads to itself, so all eight
 * take the same number of steps, and now and then it is asked whether all have arrived.
 *
 * A node is 8 bytes. Its `word` is, from the lowest bit: two bits of `kind` (only in a forest that
 * has kinds), the column to look at, and how many nodes further on the second child is. The first
 * child stands before the second. Columns of a row: its features, NaN, and, where a node asks for
 * "above", the features negated: v > t is -v <= s for the greatest s below -t. A leaf looks at NaN,
 * which passes no test, and is its own second child; in place of a threshold it holds its value,
 * or where its values are.
 */
#ifndef FASTVQ_TREES_H
#define FASTVQ_TREES_H

#include "lanes.h"

enum { WALKS = 8, STEPS = 4, KIND_BITS = 2 };
enum { KIND_NOT_ABOVE, KIND_EQUAL, KIND_CATEGORY };

typedef union {
    float value;
    int32_t number;
} Payload;

typedef struct {
    Payload threshold;
    uint32_t word;
} TreeNode;

typedef struct {
    const uint8_t *sets; /* (n_sets, 32) */
    uint32_t mask;       /* of the column, once kinds are shifted out */
    int shift;           /* from there to the distance of the second child */
    uint32_t nan_column;
    int kinds;
} Walk;

INLINE int is_member(const uint8_t *set, float v)
{
    if (!(v >= 0 && v < 256)) return 0;
    int c = (int)v;
    return (float)c == v && (set[c >> 3] >> (c & 7) & 1);
}

INLINE int holds(const Walk *walk, const TreeNode *node, float v, int kinds)
{
    uint32_t kind = node->word & ((1 << KIND_BITS) - 1);
    if (kinds && kind == KIND_EQUAL) return v == node->threshold.value;
    if (kinds && kind == KIND_CATEGORY)
        return is_member(walk->sets + 32 * (ptrdiff_t)node->threshold.number, v);
    return v <= node->threshold.value;
}

INLINE int has_arrived(const Walk *walk, const TreeNode *node, int kinds)
{
    return (node->word >> (kinds ? KIND_BITS : 0) & walk->mask) == walk->nan_column;
}

/* Each of the walks goes on for `depth` steps. Column c of walk i is x[c * step + i * (step > 1)]:
 * step is WALKS for rows of their own, 1 for one row. */
INLINE void walk_on(const Walk *walk, const TreeNode *at[WALKS], const float *x, int step,
                    int kinds, int depth)
{
    const uint32_t mask = walk->mask;
    const int shift = walk->shift;
    const TreeNode *node[WALKS];
    UNROLL for (int i = 0; i < WALKS; i++) node[i] = at[i];
    while (depth > 0) {
        for (int s = depth < STEPS ? depth : STEPS; s > 0; s--) {
            UNROLL for (int i = 0; i < WALKS; i++)
            {
                uint32_t word = node[i]->word >> (kinds ? KIND_BITS : 0);
                float v = x[(size_t)(word & mask) * step + (step > 1 ? i : 0)];
                node[i] += (size_t)(word >> shift) - holds(walk, node[i], v, kinds);
            }
        }
        depth -= STEPS;
        int arrived = 1;
        UNROLL for (int i = 0; i < WALKS; i++) arrived &= has_arrived(walk, node[i], kinds);
        if (arrived) break;
    }
    UNROLL for (int i = 0; i < WALKS; i++) at[i] = node[i];
}

static void walk_rows(const Walk *walk, const TreeNode *at[WALKS], const float *x, int depth)
{
    if (walk->kinds) walk_on(walk, at, x, WALKS, 1, depth);
    else walk_on(walk, at, x, WALKS, 0, depth);
}

static void walk_trees(const Walk *walk, const TreeNode *at[WALKS], const float *x, int depth)
{
    if (walk->kinds) walk_on(walk, at, x, 1, 1, depth);
    else walk_on(walk, at, x, 1, 0, depth);
}

enum { AGGREGATE_SUM, AGGREGATE_MEAN, AGGREGATE_MINIMUM, AGGREGATE_MAXIMUM };

/* total[j] = what a leaf gives, added or compared. */
INLINE void take_leaf(const TreeNode *leaf, const float *values, int64_t width, int aggregate,
                      double *total)
{
    const float *given = width == 1 ? &leaf->threshold.value
                                    : values + width * (ptrdiff_t)leaf->threshold.number;
    if (aggregate == AGGREGATE_MINIMUM) {
        for (int64_t j = 0; j < width; j++) total[j] = given[j] < total[j] ? given[j] : total[j];
    } else if (aggregate == AGGREGATE_MAXIMUM) {
        for (int64_t j = 0; j < width; j++) total[j] = given[j] > total[j] ? given[j] : total[j];
    } else {
        for (int64_t j = 0; j < width; j++) total[j] += given[j];
    }
}

#endif
