/* Layers with a state whose matrices are 8-bit integers: what one step makes of a row's sums.
 *
 * Both the projection of the input and what the state adds lie gate by gate, (gates, units); units
 * are in lanes here. The products themselves are those of int8.h, each gate a group of the weight.
 */
#ifndef FASTVQ_INT8_RECURRENT_H
#define FASTVQ_INT8_RECURRENT_H

#include "functions.h"
#include "int8.h"

enum { LSTM_LAYER, GRU_LAYER, GRU_LINEAR_LAYER };

/* What belongs to one row. */
typedef struct {
    ptrdiff_t units;
    const float *projected, *added; /* (gates, units): of the input, of the state */
    float *state, *cell;            /* (units): INOUT; no cell in a GRU */
    float *reset;                   /* (units): of a GRU whose third gate waits for it */
} Row;

INLINE f32_lanes some(const float *at, ptrdiff_t count)
{
    return count >= F32_LANES ? f32_load(at) : f32_load_part(at, count);
}

INLINE void put(float *at, f32_lanes value, ptrdiff_t count)
{
    if (count >= F32_LANES)
        f32_store(at, value);
    else
        f32_store_part(at, value, count);
}

/* The argument of a gate. */
INLINE f32_lanes gate(const Row *row, int number, ptrdiff_t unit, ptrdiff_t count)
{
    ptrdiff_t at = number * row->units + unit;
    return some(row->projected + at, count) + some(row->added + at, count);
}

/* fn(row, unit, count) for each vector of units. */
#define FOR_UNITS(fn)                                                                           \
    for (ptrdiff_t unit = 0; unit < row->units; unit += F32_LANES) fn(row, unit, row->units - unit);

INLINE void lstm_units(const Row *row, ptrdiff_t unit, ptrdiff_t count)
{
    float *cell = row->cell + unit;
    f32_lanes news = OF(sigmoid, gate(row, 0, unit, count)) * OF(tanh, gate(row, 3, unit, count));
    f32_lanes c = fused(OF(sigmoid, gate(row, 2, unit, count)), some(cell, count), news);
    put(cell, c, count);
    put(row->state + unit, OF(sigmoid, gate(row, 1, unit, count)) * OF(tanh, c), count);
}

INLINE void reset_units(const Row *row, ptrdiff_t unit, ptrdiff_t count)
{
    f32_lanes r = OF(sigmoid, gate(row, 1, unit, count));
    put(row->reset + unit, r * some(row->state + unit, count), count);
}

/* (1 - z) g + z h. */
INLINE void update_units(const Row *row, ptrdiff_t unit, ptrdiff_t count, f32_lanes third)
{
    f32_lanes z = OF(sigmoid, gate(row, 0, unit, count)), g = OF(tanh, third);
    f32_lanes h = some(row->state + unit, count);
    put(row->state + unit, fused(z, h - g, g), count);
}

INLINE void gru_units(const Row *row, ptrdiff_t unit, ptrdiff_t count)
{
    update_units(row, unit, count, gate(row, 2, unit, count));
}

INLINE void gru_linear_units(const Row *row, ptrdiff_t unit, ptrdiff_t count)
{
    ptrdiff_t at = 2 * row->units + unit;
    f32_lanes r = OF(sigmoid, gate(row, 1, unit, count));
    f32_lanes third = fused(r, some(row->added + at, count), some(row->projected + at, count));
    update_units(row, unit, count, third);
}

static void reset_row(const Row *row) { FOR_UNITS(reset_units) }

static void step_row(int layer, const Row *row)
{
    switch (layer) {
    case LSTM_LAYER: FOR_UNITS(lstm_units) break;
    case GRU_LAYER: FOR_UNITS(gru_units) break;
    default: FOR_UNITS(gru_linear_units) break;
    }
}

#endif
