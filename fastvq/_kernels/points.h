/* Distances of rows to points, by the differences: Σ ((x - p) · scale)² and its relatives.
 *
 * Points lie in lanes: a panel holds POINTS of them, for each feature their values, and behind these
 * their scales where there are any. Features are added in order, in whatever company a row comes.
 */
#ifndef FASTVQ_POINTS_H
#define FASTVQ_POINTS_H

#include "lanes.h"

enum { POINT_VECTORS = 2, POINTS = POINT_VECTORS * F32_LANES, POINT_ROWS = 4 };
enum { METRIC_SQUARED, METRIC_EUCLIDEAN, METRIC_MANHATTAN, METRIC_CHEBYSHEV };

INLINE f32_lanes distance_step(const int metric, f32_lanes t, f32_lanes sum)
{
    if (metric == METRIC_SQUARED) return f32_lanes_multiply_add(t, t, sum);
    t = (f32_lanes)((i32_lanes)t & 0x7fffffff);
    if (metric == METRIC_MANHATTAN) return sum + t;
    const i32_lanes takes = (t > sum) | (t != t); /* NaN is larger than anything */
    return (f32_lanes)(((i32_lanes)t & takes) | ((i32_lanes)sum & ~takes));
}

/* Rows x (rows, d) beside a panel: sums of `rows` by POINTS. */
INLINE void panel_distances(const int rows, const int metric, const int scaled, const float *x,
                            ptrdiff_t d, const float *panel, f32_lanes sums[][POINT_VECTORS])
{
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < POINT_VECTORS; v++) sums[r][v] = (f32_lanes){0};
    for (ptrdiff_t f = 0; f < d; f++, panel += (1 + scaled) * POINTS) {
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < POINT_VECTORS; v++)
            {
                f32_lanes t = x[r * d + f] - f32_load(panel + v * F32_LANES);
                if (scaled) t *= f32_load(panel + POINTS + v * F32_LANES);
                sums[r][v] = distance_step(metric, t, sums[r][v]);
            }
    }
}

INLINE void rows_to_panel(const int rows, int metric, int scaled, const float *x, ptrdiff_t d,
                          const float *panel, ptrdiff_t count, float *y, ptrdiff_t k)
{
    f32_lanes sums[POINT_ROWS][POINT_VECTORS];
    float found[POINTS];
    if (metric <= METRIC_EUCLIDEAN && scaled)
        panel_distances(rows, METRIC_SQUARED, 1, x, d, panel, sums);
    else if (metric <= METRIC_EUCLIDEAN)
        panel_distances(rows, METRIC_SQUARED, 0, x, d, panel, sums);
    else if (metric == METRIC_MANHATTAN)
        panel_distances(rows, METRIC_MANHATTAN, scaled, x, d, panel, sums);
    else
        panel_distances(rows, METRIC_CHEBYSHEV, scaled, x, d, panel, sums);
    for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < POINT_VECTORS; v++) f32_store(found + v * F32_LANES, sums[r][v]);
        for (ptrdiff_t i = 0; i < count; i++)
            y[r * k + i] = metric == METRIC_EUCLIDEAN ? __builtin_sqrtf(found[i]) : found[i];
    }
}

#endif
