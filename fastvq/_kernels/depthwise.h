/* Depthwise convolution: every channel has a kernel of its own.
 *
 * Channels lie in lanes. PIXELS neighbours in a row share the loads of their weights; at the borders
 * they are taken one by one, and taps outside of the picture are left out. Every output adds its
 * taps in order, whichever way it is taken.
 *
 * weights  (1 + kernel height * width, channels): starting values, then each tap's
 */
#ifndef FASTVQ_DEPTHWISE_H
#define FASTVQ_DEPTHWISE_H

#include "functions.h"
#include "windows.h"

#define PIXELS 4
#define CHANNEL_VECTORS 2

INLINE void depthwise_pixels(const int pixels, const int vectors, const Windows *w,
                             const float *weights, const float *x, Taps rows, Taps columns,
                             ptrdiff_t count, const Activation *activation, float *y)
{
    const ptrdiff_t by_row = w->dilation[0] * w->width * w->channels;
    const ptrdiff_t by_column = w->dilation[1] * w->channels;
    const ptrdiff_t by_pixel = w->stride[1] * w->channels;
    f32_lanes values[PIXELS][CHANNEL_VECTORS];
    load_channels(vectors, weights, count, values[0]);
    UNROLL for (int p = 1; p < pixels; p++)
        UNROLL for (int v = 0; v < vectors; v++) values[p][v] = values[0][v];
    for (ptrdiff_t i = rows.first; i < rows.stop; i++) {
        const float *from = x + i * by_row + columns.first * by_column;
        const float *tap = weights + (1 + i * w->kernel[1] + columns.first) * w->channels;
        for (ptrdiff_t j = columns.first; j < columns.stop; j++) {
            f32_lanes weight[CHANNEL_VECTORS], channel[CHANNEL_VECTORS];
            load_channels(vectors, tap, count, weight);
            UNROLL for (int p = 0; p < pixels; p++)
            {
                load_channels(vectors, from + p * by_pixel, count, channel);
                UNROLL for (int v = 0; v < vectors; v++)
                    values[p][v] = f32_lanes_multiply_add(channel[v], weight[v], values[p][v]);
            }
            from += by_column;
            tap += w->channels;
        }
    }
    UNROLL for (int p = 0; p < pixels; p++)
    {
        ACTIVATE(activation, vectors, values[p]);
        store_channels(vectors, values[p], count, y + p * w->channels);
    }
}

/* Neighbouring windows of a row, in all channels, from the picture's place x on. */
INLINE void depthwise_windows(const int pixels, const Windows *w, const float *weights,
                              const float *x, Taps rows, Taps columns,
                              const Activation *activation, float *y)
{
    const ptrdiff_t step = CHANNEL_VECTORS * F32_LANES;
    ptrdiff_t c = 0;
    /* Told that the count is that of whole vectors, the compiler drops what is for the last. */
    for (; c + step <= w->channels; c += step)
        depthwise_pixels(pixels, CHANNEL_VECTORS, w, weights + c, x + c, rows, columns, step,
                         activation, y + c);
    for (; c < w->channels; c += F32_LANES)
        depthwise_pixels(pixels, 1, w, weights + c, x + c, rows, columns,
                         w->channels - c < F32_LANES ? w->channels - c : F32_LANES, activation,
                         y + c);
}

/* All channels of some windows before the next ones: so memory is read in its order. */
static void depthwise_row(const Windows *w, const float *weights, const float *picture,
                          ptrdiff_t row, const Activation *activation, float *y)
{
    const Taps rows = row_taps(w, row), all = {0, w->kernel[1]};
    for (ptrdiff_t column = 0; column < w->columns;) {
        const float *x = window_at(w, picture, row, column);
        const ptrdiff_t whole = whole_windows(w, column, PIXELS);
        if (whole == PIXELS)
            depthwise_windows(PIXELS, w, weights, x, rows, all, activation, y);
        else
            depthwise_windows(1, w, weights, x, rows, column_taps(w, column), activation, y);
        finish(activation, y, whole * w->channels);
        column += whole;
        y += whole * w->channels;
    }
}

#endif
