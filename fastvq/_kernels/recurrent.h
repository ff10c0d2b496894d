/* Layers with a state: what a block of rows does in one direction, from the first step to the last.
 *
 * Units lie in lanes, and the gates of a vector of units side by side: a panel of weights is, for
 * each of the k features that come in, one vector for each gate. So all gates of these units are in
 * registers when their sums are complete, and the state is made from them there and then. Every sum
 * starts with the projection of the step's input (bias included, made before for all steps by
 * `project_rows`) and takes the features of the state in order by fused multiply-add: its bits do
 * not depend on the rows beside it, nor on threads.
 *
 * The state of the step before is read where it was written, in y.
 */
#ifndef FASTVQ_RECURRENT_H
#define FASTVQ_RECURRENT_H

#include "functions.h"

enum { LSTM_LAYER, GRU_LAYER, GRU_LINEAR_LAYER, TANH_LAYER, RELU_LAYER };

enum {
    STATE_ROWS = 16, /* in a block, at most */
    TILE_ROWS = 4,   /* in registers together, at most */
    MOST_GATES = 4,
};

typedef struct {
    f32_lanes of[TILE_ROWS][MOST_GATES];
} Gates;

/* sums of rows x gates += x . panel, where the vectors of a feature lie `gates` apart. */
INLINE void add_products(const int rows, const int gates, const float *const *x,
                         const float *panel, ptrdiff_t k, Gates *sums)
{
    Gates all = *sums;
    for (ptrdiff_t f = 0; f < k; f++, panel += gates * F32_LANES) {
        /* 3 rows and 4 gates: 12 sums, 3 values and a weight fill 16 registers. */
        f32_lanes value[TILE_ROWS];
        UNROLL for (int r = 0; r < rows; r++) value[r] = f32_all(x[r][f]);
        UNROLL for (int g = 0; g < gates; g++)
        {
            const f32_lanes weight = f32_load(panel + g * F32_LANES);
            UNROLL for (int r = 0; r < rows; r++)
                all.of[r][g] = fused(value[r], weight, all.of[r][g]);
        }
    }
    *sums = all;
}

INLINE f32_lanes load_units(const float *at, ptrdiff_t width)
{
    return width >= F32_LANES ? f32_load(at) : f32_load_part(at, width);
}

INLINE void store_units(float *at, f32_lanes value, ptrdiff_t width)
{
    if (width >= F32_LANES)
        f32_store(at, value);
    else
        f32_store_part(at, value, width);
}

INLINE void load_gates(const int rows, const int gates, const float *const *from, ptrdiff_t at,
                       Gates *sums)
{
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int g = 0; g < gates; g++)
        sums->of[r][g] = f32_load(from[r] + at + g * F32_LANES);
}

/* TILE(rows, first, ...) for tiles of up to `most` of n rows, each number of rows a literal. */
#define FOR_TILES(n, most, TILE, ...)                                                           \
    for (ptrdiff_t first_ = 0; first_ < (n);) {                                                 \
        const ptrdiff_t left_ = (n) - first_;                                                   \
        if ((most) >= 4 && left_ >= 4) {                                                        \
            TILE(4, first_, __VA_ARGS__);                                                       \
            first_ += 4;                                                                        \
        } else if ((most) >= 3 && left_ >= 3) {                                                 \
            TILE(3, first_, __VA_ARGS__);                                                       \
            first_ += 3;                                                                        \
        } else if (left_ >= 2) {                                                                \
            TILE(2, first_, __VA_ARGS__);                                                       \
            first_ += 2;                                                                        \
        } else {                                                                                \
            TILE(1, first_, __VA_ARGS__);                                                       \
            first_ += 1;                                                                        \
        }                                                                                       \
    }

/* ---- inputs ----------------------------------------------------------------------------------- */

typedef struct {
    const float *x, *panel, *bias; /* panel and bias of a group */
    float *y;                      /* where a group of the first row is */
    ptrdiff_t k, step;             /* step: from row to row of y */
} Projection;

INLINE void project_tile(const int rows, ptrdiff_t first, const int gates, const Projection *part)
{
    Gates sums;
    const float *from[TILE_ROWS], *start[TILE_ROWS];
    UNROLL for (int r = 0; r < rows; r++)
        from[r] = part->x + (first + r) * part->k, start[r] = part->bias;
    load_gates(rows, gates, start, 0, &sums);
    add_products(rows, gates, from, part->panel, part->k, &sums);
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int g = 0; g < gates; g++)
        f32_store(part->y + (first + r) * part->step + g * F32_LANES, sums.of[r][g]);
}

/* y (n, groups, gates, lanes) = bias + x (n, k) . panels (groups, k, gates, lanes). */
static void project_rows(int gates, const float *x, ptrdiff_t n, ptrdiff_t k, const float *panels,
                         const float *bias, ptrdiff_t groups, float *y)
{
    const ptrdiff_t width = gates * F32_LANES;
    for (ptrdiff_t group = 0; group < groups; group++) {
        const Projection part = {x, panels + group * k * width, bias + group * width,
                                 y + group * width, k, groups * width};
        switch (gates) {
        case 4: FOR_TILES(n, 3, project_tile, 4, &part) break;
        case 3: FOR_TILES(n, 3, project_tile, 3, &part) break;
        default: FOR_TILES(n, 4, project_tile, 1, &part) break;
        }
    }
}

/* ---- steps ------------------------------------------------------------------------------------ */

/* One step of n rows: for each, its projections, its state before and after, its cell; and room. */
typedef struct {
    ptrdiff_t n, units, groups;
    const float *projected[STATE_ROWS], *before[STATE_ROWS];
    float *after[STATE_ROWS], *cell[STATE_ROWS];
    const float *panels;   /* of the recurrent weights */
    const float *panels_h; /* of those of a GRU's third gate, where they wait for the second */
    const float *bias;     /* (groups, lanes), of a GRU's third gate alone */
    float *update[STATE_ROWS], *reset[STATE_ROWS]; /* room: z, and r times the state */
} Step;

/* A tile of rows in one group of units, which begins at `unit`. */
#define TILE(name)                                                                              \
    INLINE void name(const int rows, ptrdiff_t first, const Step *step, ptrdiff_t unit,         \
                     const float *panel)

/* All groups of units, whose panels have so many gates. */
#define FOR_GROUPS(most, TILE, gates, panels)                                                   \
    for (ptrdiff_t group_ = 0; group_ < step->groups; group_++) {                               \
        const float *panel_ = (panels) + group_ * step->units * (gates) * F32_LANES;            \
        FOR_TILES(step->n, most, TILE, step, group_ * F32_LANES, panel_)                        \
    }

TILE(lstm_tile)
{
    Gates s;
    load_gates(rows, 4, step->projected + first, 4 * unit, &s);
    add_products(rows, 4, step->before + first, panel, step->units, &s);
    const ptrdiff_t width = step->units - unit;
    UNROLL for (int r = 0; r < rows; r++)
    {
        float *cell = step->cell[first + r] + unit;
        const f32_lanes news = OF(sigmoid, s.of[r][0]) * OF(tanh, s.of[r][3]);
        const f32_lanes c = fused(OF(sigmoid, s.of[r][2]), load_units(cell, width), news);
        store_units(cell, c, width);
        store_units(step->after[first + r] + unit, OF(sigmoid, s.of[r][1]) * OF(tanh, c), width);
    }
}

/* (1 - z) g + z h. */
INLINE f32_lanes between(f32_lanes z, f32_lanes g, f32_lanes h) { return fused(z, h - g, g); }

/* The third gate of a GRU reads the reset states of all units: these are made first. */
TILE(gru_first_tile)
{
    Gates s;
    load_gates(rows, 2, step->projected + first, 3 * unit, &s);
    add_products(rows, 2, step->before + first, panel, step->units, &s);
    UNROLL for (int r = 0; r < rows; r++)
    {
        const f32_lanes h = load_units(step->before[first + r] + unit, step->units - unit);
        f32_store(step->update[first + r] + unit, OF(sigmoid, s.of[r][0]));
        f32_store(step->reset[first + r] + unit, OF(sigmoid, s.of[r][1]) * h);
    }
}

TILE(gru_second_tile)
{
    Gates s;
    load_gates(rows, 1, step->projected + first, 3 * unit + 2 * F32_LANES, &s);
    add_products(rows, 1, (const float *const *)step->reset + first, panel, step->units, &s);
    const ptrdiff_t width = step->units - unit;
    UNROLL for (int r = 0; r < rows; r++)
    {
        const f32_lanes h = load_units(step->before[first + r] + unit, width);
        const f32_lanes z = f32_load(step->update[first + r] + unit);
        store_units(step->after[first + r] + unit, between(z, OF(tanh, s.of[r][0]), h), width);
    }
}

TILE(gru_linear_tile)
{
    Gates s;
    load_gates(rows, 2, step->projected + first, 3 * unit, &s);
    UNROLL for (int r = 0; r < rows; r++) s.of[r][2] = f32_load(step->bias + unit);
    add_products(rows, 3, step->before + first, panel, step->units, &s);
    const ptrdiff_t width = step->units - unit;
    UNROLL for (int r = 0; r < rows; r++)
    {
        const f32_lanes h = load_units(step->before[first + r] + unit, width);
        const f32_lanes x = f32_load(step->projected[first + r] + 3 * unit + 2 * F32_LANES);
        const f32_lanes g = OF(tanh, fused(OF(sigmoid, s.of[r][1]), s.of[r][2], x));
        store_units(step->after[first + r] + unit, between(OF(sigmoid, s.of[r][0]), g, h), width);
    }
}

INLINE void plain_tile(const int rows, ptrdiff_t first, const Step *step, ptrdiff_t unit,
                       const float *panel, const int relu)
{
    Gates s;
    load_gates(rows, 1, step->projected + first, unit, &s);
    add_products(rows, 1, step->before + first, panel, step->units, &s);
    UNROLL for (int r = 0; r < rows; r++)
        store_units(step->after[first + r] + unit,
                    relu ? OF(relu, s.of[r][0]) : OF(tanh, s.of[r][0]), step->units - unit);
}

TILE(tanh_tile) { plain_tile(rows, first, step, unit, panel, 0); }

TILE(relu_tile) { plain_tile(rows, first, step, unit, panel, 1); }

static void take_step(int layer, const Step *step)
{
    switch (layer) {
    case LSTM_LAYER: FOR_GROUPS(3, lstm_tile, 4, step->panels) break;
    case GRU_LAYER:
        FOR_GROUPS(4, gru_first_tile, 2, step->panels)
        FOR_GROUPS(4, gru_second_tile, 1, step->panels_h)
        break;
    case GRU_LINEAR_LAYER: FOR_GROUPS(3, gru_linear_tile, 3, step->panels) break;
    case TANH_LAYER: FOR_GROUPS(4, tanh_tile, 1, step->panels) break;
    default: FOR_GROUPS(4, relu_tile, 1, step->panels) break;
    }
}

#undef TILE

#endif
