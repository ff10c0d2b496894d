/* Rows of floats times weights that are sums of codewords, by tables: the products of a row's blocks
 * with all codewords come first, and then an output is a sum of looked-up numbers, one for each block
 * and stage, in order (Jégou, Douze and Schmid, "Product quantization for nearest neighbor search",
 * 2011, have distances so).
 *
 * Codes lie for TABLE_CHUNK entries at a time, whose tables stay in the first-level cache while all
 * outputs pass by; there 8 outputs by 8. Plain code: Zen 4, 4096 x 4096, blocks of 8, takes 0.43 ms so
 * and 1.03 ms by AVX-512's gathers.
 */
#ifndef FASTVQ_TABLES_H
#define FASTVQ_TABLES_H

#include <string.h>

#include "rounded.h"

enum { TABLE_CHUNK = 16, TABLE_OUTPUTS = 8, TABLE_STEP = 64 };
/* Panels of a task: their sums take 8 KB. */
enum { TABLE_PANELS = 256 };

/* table OUT (room, a multiple of TABLE_STEP): products of a block of `count` values with the codewords
 * (d, room). */
static void table_of_block(const float *x, int64_t count, const float *words, int64_t room,
                           float *table)
{
    enum { VECTORS = 4 };
    for (int64_t k = 0; k < room; k += VECTORS * F32_LANES) {
        f32_lanes sum[VECTORS] = {{0}};
        for (int64_t i = 0; i < count; i++)
            UNROLL for (int v = 0; v < VECTORS; v++)
                sum[v] = f32_lanes_multiply_add((f32_lanes){0} + x[i],
                                                f32_load(words + i * room + k + v * F32_LANES), sum[v]);
        UNROLL for (int v = 0; v < VECTORS; v++) f32_store(table + k + v * F32_LANES, sum[v]);
    }
}

typedef struct {
    const float *tables;  /* of a row: (entries, room) */
    const uint8_t *codes; /* (chunks, panels, TABLE_CHUNK, TABLE_OUTPUTS) */
    const float *scale;   /* (columns) or NULL */
    const float *bias;    /* the same */
    int64_t entries, room, panels, columns;
    float low, high;
    float *y; /* of a row: (columns) */
} Sums;

/* Adds to the sums of a panel what `count` entries give. The codes of an entry come in one load. */
INLINE void table_sums(const float *tables, int64_t room, const uint8_t *codes, int64_t count,
                       float *sums)
{
    float sum[TABLE_OUTPUTS];
    UNROLL for (int i = 0; i < TABLE_OUTPUTS; i++) sum[i] = sums[i];
    for (int64_t e = 0; e < count; e++, codes += TABLE_OUTPUTS, tables += room) {
        uint64_t all;
        memcpy(&all, codes, sizeof all);
        UNROLL for (int i = 0; i < TABLE_OUTPUTS; i++, all >>= 8) {
            sum[i] += tables[all & 255];
            OPAQUE(sum[i]); /* numbers one by one: to make vectors of them costs more */
        }
    }
    UNROLL for (int i = 0; i < TABLE_OUTPUTS; i++) sums[i] = sum[i];
}

INLINE float table_finish(const Sums *job, int64_t column, float y)
{
    if (job->scale) y = rounded_product(y, job->scale[column]);
    if (job->bias) y += job->bias[column];
    y = y < job->low ? job->low : y;
    return y > job->high ? job->high : y;
}

/* The outputs of up to TABLE_PANELS panels. */
static void table_panels(const Sums *job, int64_t first, int64_t last)
{
    float sums[TABLE_PANELS * TABLE_OUTPUTS];
    const int64_t size = TABLE_CHUNK * TABLE_OUTPUTS;
    memset(sums, 0, (size_t)((last - first) * TABLE_OUTPUTS) * sizeof *sums);
    for (int64_t entry = 0; entry < job->entries; entry += TABLE_CHUNK) {
        const int64_t rest = job->entries - entry, count = rest < TABLE_CHUNK ? rest : TABLE_CHUNK;
        const uint8_t *codes = job->codes + (entry / TABLE_CHUNK * job->panels + first) * size;
        for (int64_t panel = 0; panel < last - first; panel++, codes += size)
            table_sums(job->tables + entry * job->room, job->room, codes, count,
                       sums + panel * TABLE_OUTPUTS);
    }
    const int64_t begin = first * TABLE_OUTPUTS, end = last * TABLE_OUTPUTS;
    for (int64_t column = begin; column < end && column < job->columns; column++)
        job->y[column] = table_finish(job, column, sums[column - begin]);
}

#endif
