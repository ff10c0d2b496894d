/* Convolution of bytes with a filter for each channel, lanes over channels.
 *
 * Places beside each other share the loads of their weights, and taps are added two by two. At
 * borders places are taken one by one, and taps outside of the picture see a row of zero points.
 */
#ifndef FASTVQ_INT8_DEPTHWISE_H
#define FASTVQ_INT8_DEPTHWISE_H

#include "int8.h"

/* Places of a row of the picture that share the loads of their weights. */
enum { PIXELS = 4 };

/* Taps are added two by two. On x86 without VNNI both are in one word of 32 bits, and pmaddwd
 * multiplies and adds the two; elsewhere each is a word of its own. */
#if defined(__SSE2__) && !DOT_VNNI
enum { TAPS_OF_WORD = 2 };
#else
enum { TAPS_OF_WORD = 1 };
#endif

INLINE int64_t tap_pairs(int64_t taps) { return (taps + 1) / 2; }

/* Words of the packed taps of so many channels: (panels, pairs, 2 / TAPS_OF_WORD, DOT_COLUMNS). */
INLINE int64_t tap_words(int64_t taps, int64_t channels)
{
    return padded(channels, DOT_COLUMNS) * tap_pairs(taps) * 2 / TAPS_OF_WORD;
}

/* Enter a weight into packed taps, which are 0 before. */
INLINE void put_tap(int64_t taps, int64_t tap, int64_t channel, int8_t weight, int32_t *packed)
{
    int64_t column = channel % DOT_COLUMNS;
#if defined(__AVX2__) && !DOT_VNNI
    /* As the halves of registers interleave: 0-3, 8-11, 4-7, 12-15. */
    column = (column & ~12) | (column & 4) << 1 | (column & 8) >> 1;
#endif
    int64_t row = channel / DOT_COLUMNS * tap_pairs(taps) * 2 / TAPS_OF_WORD + tap / TAPS_OF_WORD;
    uint32_t word = TAPS_OF_WORD == 2 ? (uint32_t)(uint16_t)weight << tap % 2 * 16
                                      : (uint32_t)(int32_t)weight;
    packed[row * DOT_COLUMNS + column] |= (int32_t)word;
}

#if defined(__AVX2__) && !DOT_VNNI
/* sums of DOT_COLUMNS channels INOUT, lanes as in put_tap: taps at a and b times their weights. */
INLINE void add_taps(const int8_t *a, const int8_t *b, const i32_lanes *weight, i32_lanes *sum)
{
    __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)a));
    __m256i y = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)b));
    sum[0] += (i32_lanes)_mm256_madd_epi16(_mm256_unpacklo_epi16(x, y), (__m256i)weight[0]);
    sum[1] += (i32_lanes)_mm256_madd_epi16(_mm256_unpackhi_epi16(x, y), (__m256i)weight[1]);
}

INLINE void in_order(i32_lanes *sum)
{
    __m256i low = (__m256i)sum[0], high = (__m256i)sum[1];
    sum[0] = (i32_lanes)_mm256_permute2x128_si256(low, high, 0x20);
    sum[1] = (i32_lanes)_mm256_permute2x128_si256(low, high, 0x31);
}
#elif defined(__SSE2__) && !DOT_VNNI
INLINE void add_taps(const int8_t *a, const int8_t *b, const i32_lanes *weight, i32_lanes *sum)
{
    __m128i x = (__m128i)dot_right(DOT_WHOLE, a), y = (__m128i)dot_right(DOT_WHOLE, b);
    sum[0] += (i32_lanes)_mm_madd_epi16(_mm_unpacklo_epi16(x, y), (__m128i)weight[0]);
    sum[1] += (i32_lanes)_mm_madd_epi16(_mm_unpackhi_epi16(x, y), (__m128i)weight[1]);
}

INLINE void in_order(i32_lanes *sum) { (void)sum; }
#else
/* As many bytes as there are lanes, as numbers of 32 bits. By name: GCC 12 makes a conversion of
 * vectors one by one of 8 bytes. */
INLINE i32_lanes widened(const int8_t *bytes)
{
#if defined(__AVX512F__)
    return (i32_lanes)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes));
#else
    i32_lanes value;
    for (int lane = 0; lane < F32_LANES; lane++) value[lane] = bytes[lane];
    return value;
#endif
}

INLINE void add_taps(const int8_t *a, const int8_t *b, const i32_lanes *weight, i32_lanes *sum)
{
    UNROLL for (int v = 0; v < DOT_VECTORS; v++)
        sum[v] += widened(a + v * F32_LANES) * weight[v]
                  + widened(b + v * F32_LANES) * weight[DOT_VECTORS + v];
}

INLINE void in_order(i32_lanes *sum) { (void)sum; }
#endif

/* A row of zero points, as long as PIXELS places read from. */
INLINE int64_t outside_bytes(int64_t channels, int64_t stride)
{
    return padded((PIXELS - 1) * stride * channels + padded(channels, DOT_COLUMNS), 64);
}

/* What scratch a thread needs for so many taps and channels, and this step along a row. */
INLINE int64_t depthwise_bytes(int64_t taps, int64_t channels, int64_t stride)
{
    return padded(2 * tap_pairs(taps) * (int64_t)sizeof(void *), 64)
           + outside_bytes(channels, stride);
}

/* Where each tap's channels lie for one output place; those outside see the row `outside`. What
 * has no partner stands beside itself: its partner's weight is 0. */
INLINE void find_taps(const Job *job, const Place *place, const int8_t *outside, const int8_t **tap)
{
    const Window *w = &job->window;
    for (int64_t ky = 0; ky < w->kernel_height; ky++) {
        int64_t y = place->top + ky * w->dilation_y;
        for (int64_t kx = 0; kx < w->kernel_width; kx++) {
            int64_t x = place->left + kx * w->dilation_x;
            int inside = y >= 0 && y < w->height && x >= 0 && x < w->width;
            *tap++ = inside ? place->picture + (y * w->width + x) * w->channels : outside;
        }
    }
    *tap = tap[-1];
}

/* Whether this place and the next ones of its row see nothing to the left or right of the picture:
 * above and below they all do, or none does. */
INLINE int inside_of_width(const Window *w, const Place *place)
{
    int64_t last = (PIXELS - 1) * w->stride_x + (w->kernel_width - 1) * w->dilation_x;
    return place->left >= 0 && place->left + last < w->width;
}

/* sums (pixels, DOT_COLUMNS) OUT of the channels from `channel` on, `count` of which there are;
 * what the next pixel sees lies by_pixel bytes on. */
INLINE void depthwise_tile(int pixels, const int8_t *const *tap, int64_t pairs, int64_t by_pixel,
                           int64_t channel, int64_t count, const int32_t *weight, int32_t *sums)
{
    i32_lanes sum[PIXELS][DOT_VECTORS];
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int v = 0; v < DOT_VECTORS; v++) sum[p][v] = (i32_lanes){0};
    for (int64_t pair = 0; pair < pairs; pair++, tap += 2) {
        i32_lanes both[2 / TAPS_OF_WORD * DOT_VECTORS];
        UNROLL for (int v = 0; v < 2 / TAPS_OF_WORD * DOT_VECTORS; v++, weight += F32_LANES)
            memcpy(&both[v], weight, sizeof both[v]);
        UNROLL for (int p = 0; p < pixels; p++) {
            const int8_t *a = tap[0] + channel + p * by_pixel;
            const int8_t *b = tap[1] + channel + p * by_pixel;
            int8_t rest[2][DOT_COLUMNS];
            if (count < DOT_COLUMNS) { /* nothing is read behind the last picture */
                memcpy(rest[0], a, (size_t)count);
                memcpy(rest[1], b, (size_t)count);
                a = rest[0], b = rest[1];
            }
            add_taps(a, b, both, sum[p]);
        }
    }
    UNROLL for (int p = 0; p < pixels; p++) {
        in_order(sum[p]);
        UNROLL for (int v = 0; v < DOT_VECTORS; v++)
            memcpy(sums + p * DOT_COLUMNS + v * F32_LANES, &sum[p][v], sizeof sum[p][v]);
    }
}

/* All channels of some places of a row, the first of which is number `row`. */
INLINE void depthwise_places(int pixels, const Job *job, int64_t row, const int8_t *const *tap,
                             RowScale scale)
{
    int64_t pairs = tap_pairs(job->width), step = pairs * 2 / TAPS_OF_WORD * DOT_COLUMNS;
    int64_t by_pixel = job->window.stride_x * job->window.channels;
    RowScale scales[PIXELS] = {scale, scale, scale, scale};
    const int32_t *weight = (const int32_t *)job->panels;
    for (int64_t panel = 0; panel < job_panels(job); panel++, weight += step) {
        int32_t sums[PIXELS * DOT_COLUMNS] __attribute__((aligned(64)));
        int64_t channel = panel * DOT_COLUMNS, count = job->columns - channel;
        if (count >= DOT_COLUMNS) /* a constant, so that the compiler drops what is for others */
            depthwise_tile(pixels, tap, pairs, by_pixel, channel, DOT_COLUMNS, weight, sums);
        else
            depthwise_tile(pixels, tap, pairs, by_pixel, channel, count, weight, sums);
        finish_sums(job, sums, pixels, row, 0, panel, scales);
    }
}

/* Output places first .. first + count. job: groups 1, columns the channels, width the taps, panels
 * the taps as `put_tap` lays them out. */
static void depthwise_block(const Job *job, int64_t first, int64_t count, char *scratch)
{
    const Window *w = &job->window;
    const int8_t **tap = (const int8_t **)scratch;
    int8_t *outside = (int8_t *)(tap + padded(2 * tap_pairs(job->width), 8));
    int32_t filled = 256;
    int64_t pixels;
    Place place = place_of(job, first);
    for (int64_t row = first; row < first + count; row += pixels) {
        if (filled != place.scale.zero_point) {
            filled = place.scale.zero_point;
            memset(outside, filled, (size_t)outside_bytes(job->columns, w->stride_x));
        }
        pixels = place.rest >= PIXELS && first + count - row >= PIXELS && inside_of_width(w, &place)
                     ? PIXELS : 1;
        find_taps(job, &place, outside, tap);
        RowScale scale = {place.scale.scale, filled};
        if (pixels == PIXELS)
            depthwise_places(PIXELS, job, row, tap, scale);
        else
            depthwise_places(1, job, row, tap, scale);
        advance(job, &place, pixels, row + pixels);
    }
}

#endif
