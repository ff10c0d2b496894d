/* In which cell of a grid rows lie; see grid.pyx. */
#ifndef FASTVQ_GRID_H
#define FASTVQ_GRID_H

#include "boxes.h"

/* Cells of the rows of a packed block, the last axis the fastest; `outside` for rows in none, those
 * with a NaN included. A row lies in a cell by this arithmetic, whatever it rounds. */
#define DEFINE_CELLS(REAL, TYPED)                                                               \
    static void TYPED##_cells(const REAL *block, ptrdiff_t width, ptrdiff_t d, const REAL *low, \
                              const REAL *per_unit, const int32_t *axis, int32_t outside,       \
                              int32_t *cell)                                                    \
    {                                                                                           \
        int32_t within[MOST_ROWS];                                                              \
        for (ptrdiff_t r = 0; r < width; r++) within[r] = 1, cell[r] = 0;                       \
        for (ptrdiff_t f = 0; f < d; f++, block += width) {                                     \
            const REAL first = low[f], scale = per_unit[f], end = (REAL)axis[f];                \
            const int32_t count = axis[f];                                                      \
            for (ptrdiff_t r = 0; r < width; r++) {                                             \
                const REAL at = (block[r] - first) * scale;                                     \
                const int32_t in = (at >= 0) & (at < end);                                      \
                within[r] &= in;                                                                \
                cell[r] = cell[r] * count + (int32_t)(in ? at : 0);                             \
            }                                                                                   \
        }                                                                                       \
        for (ptrdiff_t r = 0; r < width; r++) cell[r] = within[r] ? cell[r] : outside;          \
    }

DEFINE_CELLS(float, f32)
DEFINE_CELLS(double, f64)

/* n rows of a task, wherever they lie in it, as a packed block. What will be wanted GATHER_AHEAD
 * rows later is fetched: each lies in a cache line of its own. */
enum { GATHER_AHEAD = 48 };

#define GATHER(D)                                                                               \
    case D:                                                                                     \
        for (ptrdiff_t r = 0; r < n; r++) {                                                     \
            __builtin_prefetch(rows + (ptrdiff_t)places[r + GATHER_AHEAD] * D);                 \
            UNROLL for (ptrdiff_t f = 0; f < D; f++)                                            \
                block[f * width + r] = rows[(ptrdiff_t)places[r] * D + f];                      \
        }                                                                                       \
        return;

#define DEFINE_GATHER(REAL, TYPED)                                                              \
    INLINE void TYPED##_gather(const REAL *rows, const int32_t *places, ptrdiff_t n,            \
                               ptrdiff_t d, ptrdiff_t width, REAL *block)                       \
    {                                                                                           \
        switch (d) { GATHER(1) GATHER(2) GATHER(3) GATHER(4) }                                  \
    }

DEFINE_GATHER(float, f32)
DEFINE_GATHER(double, f64)

#endif
