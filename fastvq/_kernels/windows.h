/* Windows that slide over pictures whose channels lie in lanes: depthwise convolution, pooling. */
#ifndef FASTVQ_WINDOWS_H
#define FASTVQ_WINDOWS_H

#include "lanes.h"

/* In the order in which the lowering gives them. */
typedef struct {
    int64_t n, height, width, channels, rows, columns; /* pictures in; rows and columns out */
    int64_t kernel[2], stride[2], dilation[2], begin[2];
} Windows;

/* Which taps of a window lie inside of the picture: first .. stop. */
typedef struct {
    ptrdiff_t first, stop;
} Taps;

INLINE Taps taps_inside(ptrdiff_t place, ptrdiff_t kernel, ptrdiff_t dilation, ptrdiff_t size)
{
    Taps taps = {0, kernel};
    if (place < 0) taps.first = (-place + dilation - 1) / dilation;
    ptrdiff_t reach = size - place > 0 ? (size - place + dilation - 1) / dilation : 0;
    if (taps.stop > reach) taps.stop = reach;
    if (taps.first > taps.stop) taps.first = taps.stop;
    return taps;
}

INLINE Taps row_taps(const Windows *w, ptrdiff_t row)
{
    return taps_inside(row * w->stride[0] - w->begin[0], w->kernel[0], w->dilation[0], w->height);
}

INLINE Taps column_taps(const Windows *w, ptrdiff_t column)
{
    return taps_inside(column * w->stride[1] - w->begin[1], w->kernel[1], w->dilation[1],
                       w->width);
}

/* Windows from `column` on, at most `most`, that all lie inside of the picture's width; else 1. */
INLINE ptrdiff_t whole_windows(const Windows *w, ptrdiff_t column, ptrdiff_t most)
{
    ptrdiff_t last = column + most - 1;
    ptrdiff_t begin = column * w->stride[1] - w->begin[1];
    ptrdiff_t end = last * w->stride[1] - w->begin[1] + (w->kernel[1] - 1) * w->dilation[1];
    return last < w->columns && begin >= 0 && end < w->width ? most : 1;
}

/* Where the window at (row, column) of a picture begins; may lie outside. */
INLINE const float *window_at(const Windows *w, const float *picture, ptrdiff_t row,
                              ptrdiff_t column)
{
    return picture
           + ((row * w->stride[0] - w->begin[0]) * w->width + column * w->stride[1] - w->begin[1])
                 * w->channels;
}

/* `vectors` vectors, of which `count` values are there. */
INLINE void load_channels(const int vectors, const float *at, ptrdiff_t count, f32_lanes *out)
{
    const int whole = count >= vectors * F32_LANES;
    UNROLL for (int v = 0; v < vectors; v++)
        out[v] = whole || v < vectors - 1 ? f32_load(at + v * F32_LANES)
                                          : f32_load_part(at + v * F32_LANES, count - v * F32_LANES);
}

INLINE void store_channels(const int vectors, const f32_lanes *value, ptrdiff_t count, float *at)
{
    const int whole = count >= vectors * F32_LANES;
    UNROLL for (int v = 0; v < vectors; v++)
        if (whole || v < vectors - 1)
            f32_store(at + v * F32_LANES, value[v]);
        else
            f32_store_part(at + v * F32_LANES, value[v], count - v * F32_LANES);
}

#endif
