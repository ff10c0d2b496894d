/* The maximum or the average of each window, channel by channel; channels lie in lanes.
 *
 * NaN is larger than anything: the maximum of a window that holds one is NaN.
 */
#ifndef FASTVQ_POOL_H
#define FASTVQ_POOL_H

#include "windows.h"

/* The larger, or NaN: of two operands, max gives the second where one is NaN (on x86). */
INLINE f32_lanes larger(f32_lanes best, f32_lanes x)
{
    i32_lanes nan = best != best;
    f32_lanes most = f32_max(best, x);
    return (f32_lanes)((nan & (i32_lanes)best) | (~nan & (i32_lanes)most));
}

INLINE void pool_pixel(const int average, const int vectors, const Windows *w, const float *x,
                       Taps rows, Taps columns, ptrdiff_t count, float divisor, float *y)
{
    const ptrdiff_t by_row = w->dilation[0] * w->width * w->channels;
    const ptrdiff_t by_column = w->dilation[1] * w->channels;
    f32_lanes value[4], channel[4];
    const float nothing = average ? 0 : -__builtin_inff();
    UNROLL for (int v = 0; v < vectors; v++) value[v] = (f32_lanes){0} + nothing;
    for (ptrdiff_t i = rows.first; i < rows.stop; i++)
        for (ptrdiff_t j = columns.first; j < columns.stop; j++) {
            load_channels(vectors, x + i * by_row + j * by_column, count, channel);
            UNROLL for (int v = 0; v < vectors; v++)
                value[v] = average ? value[v] + channel[v] : larger(value[v], channel[v]);
        }
    if (average) UNROLL for (int v = 0; v < vectors; v++) value[v] = value[v] / divisor;
    store_channels(vectors, value, count, y);
}

INLINE void pool_channels(const int average, const int vectors, const Windows *w,
                          const float *picture, ptrdiff_t row, ptrdiff_t count,
                          const float *divisors, float *y)
{
    const Taps rows = row_taps(w, row);
    for (ptrdiff_t column = 0; column < w->columns; column++, y += w->channels)
        pool_pixel(average, vectors, w, window_at(w, picture, row, column), rows,
                   column_taps(w, column), count, average ? divisors[column] : 0, y);
}

INLINE void pool_row_of(const int average, const Windows *w, const float *picture, ptrdiff_t row,
                        const float *divisors, float *y)
{
    const ptrdiff_t step = 4 * F32_LANES;
    ptrdiff_t c = 0;
    for (; c + step <= w->channels; c += step)
        pool_channels(average, 4, w, picture + c, row, step, divisors, y + c);
    for (; c < w->channels; c += F32_LANES)
        pool_channels(average, 1, w, picture + c, row,
                      w->channels - c < F32_LANES ? w->channels - c : F32_LANES, divisors, y + c);
}

/* A row of windows: averages where there are divisors, else maxima. */
static void pool_row(const Windows *w, const float *picture, ptrdiff_t row, const float *divisors,
                     float *y)
{
    if (divisors)
        pool_row_of(1, w, picture, row, divisors, y);
    else
        pool_row_of(0, w, picture, row, divisors, y);
}

#endif
