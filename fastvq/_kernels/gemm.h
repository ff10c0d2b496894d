/* Rows times a packed matrix: the register tile of dense layers, convolutions and attention.
 *
 * Columns lie in lanes. The matrix is packed in panels of PANEL_COLUMNS columns: their starting
 * values (the bias), then for each of the k features their weights. A tile of rows by one panel is
 * kept in registers; a feature of a row is broadcast. Every output has one accumulator, which takes
 * the features in order by fused multiply-add: so its bits do not depend on the tile that it falls
 * into, on the batch, or on threads. Where the features are taken in blocks, accumulators rest in y.
 *
 * A row is read where it lies, in runs that all rows share: run i is runs[i].length values, from
 * runs[i].offset of the row's address on. A dense layer's row is one run; the patch of a
 * convolution is a run for each row of its kernel, so that no patch is ever written down.
 */
#ifndef FASTVQ_GEMM_H
#define FASTVQ_GEMM_H

#include "functions.h"

/* 2 x 6 vectors of accumulators, 2 of weights, 1 broadcast: 15 of 16 registers; 2 x 12 of 32. */
#if LANE_REGISTERS == 32
#define TILE_ROWS 12
#else
#define TILE_ROWS 6
#endif
#define PANEL_VECTORS 2
#define WIDE_PANELS 4 /* that a single row passes at once, to have eight sums under way */

enum {
    PANEL_COLUMNS = PANEL_VECTORS * F32_LANES,
    BLOCK_ROWS = 96,    /* rows that pass a panel together, at most */
    BLOCK_FEATURES = 384, /* of a panel that they pass: it stays in the first-level cache */
    BAND_PANELS = 16, /* that are finished before the next: their sums stay in the second-level one */
    AHEAD = 4,        /* features for each line of the next panel that is fetched */
};

typedef struct {
    int64_t offset, length;
} Run;

typedef struct {
    const float *panels;
    const Run *runs;
    ptrdiff_t columns, k, n_runs;
    Activation activation;
} Product;

/* What a tile needs to know of its place: the runs it takes, from weights `panel` on. */
typedef struct {
    ptrdiff_t run, stop, column;
    const float *panel; /* of the first feature */
    const float *ahead; /* what will be read soon: a line of it is fetched with every few features */
} Part;

typedef f32_lanes Values[TILE_ROWS][WIDE_PANELS * PANEL_VECTORS];

/* values += feature f of the rows times its weights. */
INLINE void add_feature(const int rows, const int vectors, const int n, ptrdiff_t stride,
                        const float *panel, const float *const *from, ptrdiff_t f, Values values)
{
    f32_lanes weight[WIDE_PANELS * PANEL_VECTORS];
    UNROLL for (int v = 0; v < n; v++)
        weight[v] = f32_load(panel + v / vectors * stride + v % vectors * F32_LANES);
    UNROLL for (int r = 0; r < rows; r++)
    {
        const f32_lanes feature = f32_all(from[r][f]);
        UNROLL for (int v = 0; v < n; v++)
            values[r][v] = f32_lanes_multiply_add(feature, weight[v], values[r][v]);
    }
}

/* rows x panels, of which the last is `vectors` wide, with `width` columns in use. */
INLINE void tile(const int rows, const int panels, const int vectors, const Product *product,
                 const Part *part, const float *const *x, float *const *y)
{
    const ptrdiff_t stride = (product->k + 1) * PANEL_COLUMNS;
    const ptrdiff_t width = product->columns - part->column;
    const int whole = width >= panels * vectors * F32_LANES, n = panels * vectors;
    Values values;
    if (part->run == 0) {
        const float *start = product->panels + part->column / PANEL_COLUMNS * stride;
        UNROLL for (int v = 0; v < n; v++)
        {
            f32_lanes value = f32_load(start + v / vectors * stride + v % vectors * F32_LANES);
            UNROLL for (int r = 0; r < rows; r++) values[r][v] = value;
        }
    } else {
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < n; v++)
        {
            const float *at = y[r] + part->column + v * F32_LANES;
            values[r][v] = whole || v < n - 1 ? f32_load(at)
                                              : f32_load_part(at, width - v * F32_LANES);
        }
    }
    const float *panel = part->panel, *ahead = part->ahead;
    for (ptrdiff_t run = part->run; run < part->stop; run++) {
        const float *from[TILE_ROWS];
        UNROLL for (int r = 0; r < rows; r++) from[r] = x[r] + product->runs[run].offset;
        const ptrdiff_t length = product->runs[run].length;
        ptrdiff_t f = 0;
        for (; f + AHEAD <= length; f += AHEAD, ahead += PANEL_COLUMNS) {
            __builtin_prefetch(ahead, 0, 2);
            UNROLL for (int i = 0; i < AHEAD; i++, panel += PANEL_COLUMNS)
                add_feature(rows, vectors, n, stride, panel, from, f + i, values);
        }
        for (; f < length; f++, panel += PANEL_COLUMNS)
            add_feature(rows, vectors, n, stride, panel, from, f, values);
    }
    if (part->stop == product->n_runs)
        UNROLL for (int r = 0; r < rows; r++) ACTIVATE(&product->activation, n, values[r]);
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < n; v++)
    {
        float *at = y[r] + part->column + v * F32_LANES;
        if (whole || v < n - 1)
            f32_store(at, values[r][v]);
        else
            f32_store_part(at, values[r][v], width - v * F32_LANES);
    }
}

/* Up to TILE_ROWS rows by one panel. A panel that is at most half full is taken as one vector. */
static void tile_of(ptrdiff_t rows, const Product *product, const Part *part,
                    const float *const *x, float *const *y)
{
    const int half = product->columns - part->column <= F32_LANES;
#define CASE(R)                                                                                 \
    case R:                                                                                     \
        if (half)                                                                               \
            tile(R, 1, 1, product, part, x, y);                                                 \
        else                                                                                    \
            tile(R, 1, PANEL_VECTORS, product, part, x, y);                                     \
        return;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS == 12
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
#undef CASE
}

INLINE Part part_of(const Product *product, ptrdiff_t run, ptrdiff_t stop, ptrdiff_t before,
                    ptrdiff_t panel)
{
    const float *start = product->panels + panel * (product->k + 1) * PANEL_COLUMNS;
    start += (1 + before) * PANEL_COLUMNS;
    return (Part){run, stop, panel * PANEL_COLUMNS, start, start};
}

/* At most TILE_ROWS rows: nothing of a panel is used twice, so they pass it in one go, and one to
 * three rows several panels at once, since a sum alone would wait for itself. */
static void few_rows(const Product *product, const float *const *x, float *const *y,
                     ptrdiff_t rows, ptrdiff_t panel, ptrdiff_t stop)
{
    const ptrdiff_t full = product->columns / PANEL_COLUMNS < stop
                               ? product->columns / PANEL_COLUMNS : stop;
#define WIDE(R, PANELS)                                                                         \
    for (; rows == R && panel + PANELS <= full; panel += PANELS) {                              \
        Part part = part_of(product, 0, product->n_runs, 0, panel);                             \
        tile(R, PANELS, PANEL_VECTORS, product, &part, x, y);                                   \
    }
    WIDE(1, WIDE_PANELS)
    WIDE(1, 2)
    WIDE(2, 2)
    WIDE(3, 2)
#undef WIDE
    for (; panel < stop; panel++) {
        Part part = part_of(product, 0, product->n_runs, 0, panel);
        tile_of(rows, product, &part, x, y);
    }
}

/* More rows than a tile has: they pass the panels in blocks of features. While the first tiles pass a
 * panel, each fetches a share of the next one, as weights come from far away more often than not. */
static void many_rows(const Product *product, const float *const *x, float *const *y,
                      ptrdiff_t rows, ptrdiff_t panel, ptrdiff_t stop)
{
    ptrdiff_t run = 0, before = 0;
    do {
        ptrdiff_t end = run, features = 0;
        while (end < product->n_runs
               && (end == run || features + product->runs[end].length <= BLOCK_FEATURES))
            features += product->runs[end++].length;
        const ptrdiff_t share = features / AHEAD * PANEL_COLUMNS;
        for (ptrdiff_t p = panel; p < stop; p++) {
            Part part = part_of(product, run, end, before, p);
            const Part next = part_of(product, run, end, before, p + 1 < stop ? p + 1 : p);
            for (ptrdiff_t r = 0; r < rows; r += TILE_ROWS) {
                const ptrdiff_t number = r / TILE_ROWS;
                part.ahead = next.panel + (number < AHEAD ? number : 0) * share;
                tile_of(rows - r < TILE_ROWS ? rows - r : TILE_ROWS, product, &part, x + r, y + r);
            }
        }
        run = end;
        before += features;
    } while (run < product->n_runs);
}

/* Rows, at most BLOCK_ROWS, by the panels panel .. stop. */
static void product_block(const Product *product, const float *const *x, float *const *y,
                          ptrdiff_t rows, ptrdiff_t panel, ptrdiff_t stop)
{
    for (ptrdiff_t end; panel < stop; panel = end) {
        end = panel + BAND_PANELS < stop ? panel + BAND_PANELS : stop;
        (rows <= TILE_ROWS ? few_rows : many_rows)(product, x, y, rows, panel, end);
        const ptrdiff_t first = panel * PANEL_COLUMNS, last = end * PANEL_COLUMNS;
        const ptrdiff_t width = (last < product->columns ? last : product->columns) - first;
        for (ptrdiff_t r = 0; r < rows; r++) finish(&product->activation, y[r] + first, width);
    }
}

/* Columns as panels: column j's feature f lies at matrix[j * by_column + f * by_feature]; those
 * past the last are zero, and so are starting values without a bias. */
static void pack_panel(const float *matrix, ptrdiff_t by_column, ptrdiff_t by_feature,
                       const float *bias, ptrdiff_t columns, ptrdiff_t k, float *panel)
{
    for (ptrdiff_t j = 0; j < PANEL_COLUMNS; j++)
        panel[j] = j < columns && bias ? bias[j] : 0;
    panel += PANEL_COLUMNS;
    if (by_column == 1 && columns == PANEL_COLUMNS) {
        for (ptrdiff_t f = 0; f < k; f++, panel += PANEL_COLUMNS, matrix += by_feature)
            for (int v = 0; v < PANEL_VECTORS; v++)
                f32_store(panel + v * F32_LANES, f32_load(matrix + v * F32_LANES));
        return;
    }
    for (ptrdiff_t f = 0; f < k; f++)
        for (ptrdiff_t j = 0; j < PANEL_COLUMNS; j++)
            panel[f * PANEL_COLUMNS + j] =
                j < columns ? matrix[j * by_column + f * by_feature] : 0;
}

#endif
