/* Convolution of bytes with a filter for each channel, lanes over channels.
 *
 * Taps are added two by two: those of a column of the window in two of its rows. Output places beside
 * each other see the same columns, so that a pair is widened once and serves up to PIXELS of them.
 * What lies outside of the picture is a row of zero points.
 */
#ifndef FASTVQ_INT8_DEPTHWISE_H
#define FASTVQ_INT8_DEPTHWISE_H

#include "int8.h"

/* Places of a row of the picture that share what they see. */
enum { PIXELS = 4 };

/* On x86 without VNNI both taps of a pair are in one word of 32 bits, and pmaddwd multiplies and adds
 * the two; elsewhere each is a word of its own. */
#if defined(__SSE2__) && !DOT_VNNI
enum { TAPS_OF_WORD = 2 };
#else
enum { TAPS_OF_WORD = 1 };
#endif

/* Vectors of the pairs of a panel's channels. */
enum { PAIR_VECTORS = 2 / TAPS_OF_WORD * DOT_VECTORS };

INLINE int64_t row_pairs(int64_t kernel_height) { return (kernel_height + 1) / 2; }

/* Words of the packed taps of so many channels: (panels, row pairs, columns, 2 / TAPS_OF_WORD,
 * DOT_COLUMNS). */
INLINE int64_t tap_words(int64_t kernel_height, int64_t kernel_width, int64_t channels)
{
    return padded(channels, DOT_COLUMNS) * row_pairs(kernel_height) * kernel_width * 2 / TAPS_OF_WORD;
}

/* Enter the weight of row y and column x into packed taps, which are 0 before. */
INLINE void put_tap(int64_t kernel_height, int64_t kernel_width, int64_t y, int64_t x,
                    int64_t channel, int8_t weight, int32_t *packed)
{
    int64_t panel = channel / DOT_COLUMNS * row_pairs(kernel_height) * kernel_width;
    int64_t row = (panel + y / 2 * kernel_width + x) * 2 / TAPS_OF_WORD;
    uint32_t word = (uint32_t)(int32_t)weight;
    if (TAPS_OF_WORD == 2)
        word = (word & 0xFFFF) << y % 2 * 16;
    else
        row += y % 2;
    packed[row * DOT_COLUMNS + channel % DOT_COLUMNS] |= (int32_t)word;
}

/* pair OUT: the bytes of a panel's channels at a, and those at b beside them. */
#if DOT_HAS_PAIRED
INLINE void widen_pair(const int8_t *a, const int8_t *b, i32_lanes *pair)
{
    __m128i x = _mm_loadu_si128((const __m128i *)a), y = _mm_loadu_si128((const __m128i *)b);
    pair[0] = (i32_lanes)_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, y));
    pair[1] = (i32_lanes)_mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, y));
}
#elif defined(__SSE2__) && !DOT_VNNI
INLINE void widen_pair(const int8_t *a, const int8_t *b, i32_lanes *pair)
{
    __m128i x = _mm_loadl_epi64((const __m128i *)a), y = _mm_loadl_epi64((const __m128i *)b);
    __m128i both = _mm_unpacklo_epi8(x, y);
    pair[0] = (i32_lanes)_mm_srai_epi16(_mm_unpacklo_epi8(both, both), 8);
    pair[1] = (i32_lanes)_mm_srai_epi16(_mm_unpackhi_epi8(both, both), 8);
}
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

INLINE void widen_pair(const int8_t *a, const int8_t *b, i32_lanes *pair)
{
    UNROLL for (int v = 0; v < DOT_VECTORS; v++) {
        pair[v] = widened(a + v * F32_LANES);
        pair[DOT_VECTORS + v] = widened(b + v * F32_LANES);
    }
}
#endif

/* sum INOUT of a panel's channels: a pair times its weights. */
INLINE void add_pair(const i32_lanes *pair, const int32_t *weight, i32_lanes *sum)
{
    UNROLL for (int v = 0; v < PAIR_VECTORS; v++) {
        i32_lanes w;
        memcpy(&w, weight + v * F32_LANES, sizeof w);
#if DOT_HAS_PAIRED
        sum[v] += (i32_lanes)_mm256_madd_epi16((__m256i)pair[v], (__m256i)w);
#elif defined(__SSE2__) && !DOT_VNNI
        sum[v] += (i32_lanes)_mm_madd_epi16((__m128i)pair[v], (__m128i)w);
#else
        sum[v % DOT_VECTORS] += pair[v] * w;
#endif
        OPAQUE(sum[v % DOT_VECTORS]); /* GCC 12 keeps all products to add them in another order */
    }
}

/* What a thread needs for itself: where taps lie, and a row of zero points. */
INLINE int64_t most_taps(int64_t kernel_height, int64_t kernel_width, int64_t stride)
{
    return padded(2 * row_pairs(kernel_height) * ((PIXELS - 1) * stride + kernel_width), 8);
}

INLINE int64_t depthwise_bytes(int64_t kernel_height, int64_t kernel_width, int64_t channels,
                               int64_t stride)
{
    return most_taps(kernel_height, kernel_width, stride) * (int64_t)sizeof(void *)
           + padded(padded(channels, DOT_COLUMNS), 64);
}

/* tap OUT (row pairs, columns, 2): where channels lie that are seen from a place on in so many columns;
 * outside of the picture, the row `outside`. A row without a partner stands beside itself: its
 * partner's weight is 0. */
INLINE void find_taps(const Job *job, const Place *place, int64_t columns, const int8_t *outside,
                      const int8_t **tap)
{
    const Window *w = &job->window;
    const int64_t by_column = w->dilation_x * w->channels;
    const int within = place->left >= 0 && place->left + (columns - 1) * w->dilation_x < w->width;
    for (int64_t ky = 0; ky < 2 * row_pairs(w->kernel_height); ky++) {
        int64_t y = place->top + (ky < w->kernel_height ? ky : ky - 1) * w->dilation_y;
        int64_t x = place->left;
        const int8_t **at = tap + ky / 2 * columns * 2 + ky % 2;
        const int8_t *row = place->picture + (y * w->width + x) * w->channels;
        if (y < 0 || y >= w->height) {
            for (int64_t c = 0; c < columns; c++, at += 2) *at = outside;
        } else if (within) {
            for (int64_t c = 0; c < columns; c++, at += 2, row += by_column) *at = row;
        } else {
            for (int64_t c = 0; c < columns; c++, at += 2, x += w->dilation_x, row += by_column)
                *at = x >= 0 && x < w->width ? row : outside;
        }
    }
}

/* Whether all that is seen from a place on in so many columns lies in the picture. */
INLINE int is_inner(const Window *w, const Place *place, int64_t columns)
{
    return place->left >= 0 && place->left + (columns - 1) * w->dilation_x < w->width &&
           place->top >= 0 && place->top + (w->kernel_height - 1) * w->dilation_y < w->height;
}

/* sum INOUT of `pixels` places: what column `c` of their windows adds, which are `width` columns wide
 * and lie `stride` columns apart; of a pair of rows. tap: of the first column. */
INLINE void add_column(int pixels, int64_t width, int64_t stride, int64_t c,
                       const int8_t *const *tap, int64_t channel, int64_t count,
                       const int32_t *weight, i32_lanes (*sum)[DOT_VECTORS])
{
    const int8_t *a = tap[2 * c] + channel, *b = tap[2 * c + 1] + channel;
    int8_t rest[2][DOT_COLUMNS];
    i32_lanes pair[PAIR_VECTORS];
    if (count < DOT_COLUMNS) { /* nothing is read behind the last picture */
        memcpy(rest[0], a, (size_t)count);
        memcpy(rest[1], b, (size_t)count);
        a = rest[0], b = rest[1];
    }
    widen_pair(a, b, pair);
    UNROLL for (int p = 0; p < pixels; p++) {
        const int64_t x = c - p * stride;
        if (x >= 0 && x < width) add_pair(pair, weight + x * PAIR_VECTORS * F32_LANES, sum[p]);
    }
}

/* sums (pixels, DOT_COLUMNS) OUT of the channels from `channel` on, `count` of which there are, where
 * windows have `pairs` pairs of rows. */
INLINE void depthwise_tile(int pixels, int64_t pairs, int64_t width, int64_t stride,
                           const int8_t *const *tap, int64_t channel, int64_t count,
                           const int32_t *weight, int32_t *sums)
{
    i32_lanes sum[PIXELS][DOT_VECTORS];
    const int64_t columns = (pixels - 1) * stride + width;
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int v = 0; v < DOT_VECTORS; v++) sum[p][v] = (i32_lanes){0};
    for (int64_t pair = 0; pair < pairs; pair++, tap += 2 * columns) {
        if (__builtin_constant_p(columns)) {
            UNROLL for (int64_t c = 0; c < columns; c++)
                add_column(pixels, width, stride, c, tap, channel, count, weight, sum);
        } else {
            for (int64_t c = 0; c < columns; c++)
                add_column(pixels, width, stride, c, tap, channel, count, weight, sum);
        }
        weight += width * PAIR_VECTORS * F32_LANES;
    }
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int v = 0; v < DOT_VECTORS; v++)
            memcpy(sums + p * DOT_COLUMNS + v * F32_LANES, &sum[p][v], sizeof sum[p][v]);
}

/* All channels of some places of a row, the first of which is number `row`. */
INLINE void depthwise_places(int pixels, int64_t pairs, int64_t width, int64_t stride,
                             const Job *job, int64_t row, const int8_t *const *tap, RowScale scale)
{
    RowScale scales[PIXELS] = {scale, scale, scale, scale};
    const int32_t *weight = (const int32_t *)job->panels;
    const Ends ends = ends_of(job);
    for (int64_t panel = 0; panel < job_panels(job); panel++) {
        int32_t sums[PIXELS * DOT_COLUMNS] __attribute__((aligned(64)));
        int64_t channel = panel * DOT_COLUMNS, count = job->columns - channel;
        if (count >= DOT_COLUMNS) /* a constant, so that the compiler drops what is for others */
            depthwise_tile(pixels, pairs, width, stride, tap, channel, DOT_COLUMNS, weight, sums);
        else
            depthwise_tile(pixels, pairs, width, stride, tap, channel, count, weight, sums);
        weight += pairs * width * PAIR_VECTORS * F32_LANES;
        finish_sums(job, ends, sums, pixels, row, 0, panel, scales);
    }
}

/* The usual windows, 3 x 3 with steps of 1 and 2, in functions of their own. */
#define DEFINE_PLACES(name, pixels, pairs, width, stride)                                       \
    static __attribute__((noinline)) void name(const Job *job, int64_t row,                     \
                                               const int8_t *const *tap, RowScale scale)        \
    {                                                                                           \
        depthwise_places(pixels, pairs, width, stride, job, row, tap, scale);                   \
    }
#define PAIRS_OF_WINDOW row_pairs(job->window.kernel_height)
DEFINE_PLACES(places_4_by_1, 4, 2, 3, 1)
DEFINE_PLACES(places_4_by_2, 4, 2, 3, 2)
DEFINE_PLACES(places_2_by_1, 2, 2, 3, 1)
DEFINE_PLACES(places_2_by_2, 2, 2, 3, 2)
DEFINE_PLACES(one_place, 1, PAIRS_OF_WINDOW, job->window.kernel_width, 1)
DEFINE_PLACES(some_places, 4, PAIRS_OF_WINDOW, job->window.kernel_width, job->window.stride_x)

typedef void Places(const Job *, int64_t, const int8_t *const *, RowScale);

/* How many of the next `rest` places are taken together, and by whom. */
INLINE Places *places_of(const Window *w, int64_t rest, int64_t *pixels)
{
    const int small = w->kernel_height == 3 && w->kernel_width == 3 && w->stride_x <= 2;
    *pixels = w->dilation_x != 1 ? 1 : rest >= PIXELS ? PIXELS : rest >= 2 && small ? 2 : 1;
    if (*pixels == 1) return one_place;
    if (*pixels == 2) return w->stride_x == 1 ? places_2_by_1 : places_2_by_2;
    return !small ? some_places : w->stride_x == 1 ? places_4_by_1 : places_4_by_2;
}

/* Output places first .. first + count. job: groups 1, columns the channels, width the taps, panels
 * the taps as `put_tap` lays them out. */
static void depthwise_block(const Job *job, int64_t first, int64_t count, char *scratch)
{
    const Window *w = &job->window;
    const int8_t **tap = (const int8_t **)scratch;
    int8_t *outside = (int8_t *)(tap + most_taps(w->kernel_height, w->kernel_width, w->stride_x));
    int32_t filled = 256;
    int64_t pixels, known = 0; /* known: columns, where the places before saw nothing outside */
    Place place = place_of(job, first);
    for (int64_t row = first; row < first + count; row += pixels) {
        const int64_t left = first + count - row, rest = place.rest < left ? place.rest : left;
        Places *run = places_of(w, rest, &pixels);
        if (filled != place.scale.zero_point) {
            filled = place.scale.zero_point;
            memset(outside, filled, (size_t)padded(job->columns, DOT_COLUMNS));
        }
        const int64_t columns = (pixels - 1) * w->stride_x + w->kernel_width;
        const int inner = is_inner(w, &place, columns);
        if (inner && known == columns && place.rest < w->out_width)
            for (int64_t i = 0; i < 2 * row_pairs(w->kernel_height) * columns; i++)
                tap[i] += pixels * w->stride_x * w->channels;
        else
            find_taps(job, &place, columns, outside, tap);
        known = inner ? columns : 0;
        run(job, row, tap, (RowScale){place.scale.scale, filled});
        advance(job, &place, pixels, row + pixels);
    }
}

#endif
