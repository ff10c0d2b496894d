/* Products of 8-bit rows with packed weights, and what is made of the sums.
 *
 * A block of rows becomes left operands (dot.h) in scratch: int8 rows as they are, float rows
 * quantized row by row, or the patches of a convolution, gathered. Panels of the weight then pass
 * by, each met by all rows of the block, and the sums of a tile are finished while they are warm.
 * What depends on the form of the weight (dot.h) takes it as a literal.
 *
 * All integers are exact, and so are the bits of what is finished: `product` keeps a product from
 * being fused with what is added to it, so that every level rounds alike.
 */
#ifndef FASTVQ_INT8_H
#define FASTVQ_INT8_H

#include "dot.h"
#include "row_bytes.h"

enum { TO_INT32, TO_INT8, TO_FLOAT, TO_INT16 };
enum { FROM_INT8, FROM_FLOAT, FROM_PATCHES };

/* ---- the job -------------------------------------------------------------------------------- */

/* Where a window of a picture (N, H, W, C) lies. */
typedef struct {
    int64_t height, width, channels; /* of the picture, all groups */
    int64_t out_height, out_width;
    int64_t kernel_height, kernel_width;
    int64_t stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;
} Window;

/* Where a panel lies: the first of its groups, of its orders if it is picked, and how many groups or
 * picks (dot.h) it has. */
typedef struct {
    int64_t group, word, steps;
} Span;

typedef struct {
    int from, to;
    const void *x;
    int64_t rows, width, columns; /* of one group */
    int64_t stride;               /* elements from a row of x to the next */
    int64_t groups, out_stride;   /* elements from a row of y to the next */
    int form, offset;             /* of the weight (dot.h); what a left operand is raised by */
    const int8_t *panels;         /* (groups, panels, steps, dot_step) */
    const Span *spans;            /* DOT_PICKED: (groups, panels), where they lie */
    const uint32_t *orders;       /* of all such panels; see dot_tile */
    const int32_t *column_sums;   /* (groups, columns, padded): of the weight */
    const int32_t *start;         /* the same: bias, less what zero point and offset add; NULL where
                                   * rows have zero points of their own */
    const float *multiplier;      /* the same; not TO_INT32 */
    const float *bias;            /* the same, TO_FLOAT, or NULL */
    const int8_t *table;          /* (256,), TO_INT8, or NULL: what becomes of q, at q + 128 */
    float low, high;              /* TO_INT8, TO_INT16: bounds of q; TO_FLOAT: of y */
    int32_t zero_point;           /* of y */
    /* FROM_PATCHES: what lies outside of the picture; or, where the pictures were quantized as they
     * came, the scale and zero point (pictures,) of each, and start is NULL. */
    int8_t padding;
    const float *picture_scale;
    const int32_t *picture_zero_point;
    Window window;
    void *y;
} Job;

INLINE int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
INLINE int64_t job_panels(const Job *job) { return (job->columns + DOT_COLUMNS - 1) / DOT_COLUMNS; }

/* Bytes from a left row to the next; multiples of 64, and odd ones, as rows a power of two apart
 * would share a few sets of the cache. */
INLINE int64_t left_stride(int form, int64_t width)
{
    int64_t room = width + (form == DOT_PICKED ? 2 * DOT_CHOICE : DOT_RUN);
    return (padded(room * dot_left_size(form), 64) / 64 | 1) * 64;
}

INLINE int64_t block_bytes(int form, int64_t rows, int64_t width)
{
    return rows * (left_stride(form, width) + (int64_t)sizeof(RowScale)) + padded(width, 64) + 64;
}

/* Where the window of an output place begins. */
typedef struct {
    const int8_t *picture;
    int64_t top, left, rest; /* rest: places up to the end of its row, itself included */
    RowScale scale; /* zero point: what lies outside */
} Place;

INLINE Place place_of(const Job *job, int64_t row)
{
    const Window *w = &job->window;
    int64_t out_x = row % w->out_width, out_y = row / w->out_width % w->out_height;
    int64_t number = row / (w->out_width * w->out_height);
    Place place = {(const int8_t *)job->x + number * w->height * w->width * w->channels,
                   out_y * w->stride_y - w->pad_y, out_x * w->stride_x - w->pad_x,
                   w->out_width - out_x, {1.0f, job->padding}};
    if (job->picture_scale)
        place.scale = (RowScale){job->picture_scale[number], job->picture_zero_point[number]};
    return place;
}

/* The place `steps` further on, which is number `row`; without divisions but at the end of a row. */
INLINE void advance(const Job *job, Place *place, int64_t steps, int64_t row)
{
    place->left += steps * job->window.stride_x;
    place->rest -= steps;
    if (place->rest == 0 && row < job->rows) *place = place_of(job, row);
}

/* Rows of a window inside of the picture, each short enough for one load. */
INLINE void gather_short(int form, const int8_t *from, int64_t rows, int64_t by_row, int64_t run,
                         uint8_t *left)
{
    for (int64_t ky = 0; ky < rows; ky++, from += by_row, left += run * dot_left_size(form))
        dot_left_run(form, from, DOT_RUN, from + DOT_RUN, left);
}

/* The patch of an output place, of one group, as a left operand: kernel_height * kernel_width * its
 * channels. */
INLINE void gather_patch(int form, const Job *job, const Place *place, int64_t group, uint8_t *left)
{
    const Window *w = &job->window;
    const int64_t channels = w->channels / job->groups, run = w->kernel_width * channels;
    const int size = dot_left_size(form);
    const int8_t outside = (int8_t)place->scale.zero_point;
    const int8_t *picture = place->picture + group * channels;
    const int8_t *end = place->picture + w->height * w->width * w->channels;
    const int joined = w->dilation_x == 1 && job->groups == 1;
    /* Of columns side by side those from `first` to `last` are inside. */
    const int64_t rest = w->width - place->left;
    const int64_t last = rest < 0 ? 0 : rest < w->kernel_width ? rest : w->kernel_width;
    const int64_t first = place->left >= 0 ? 0 : -place->left < last ? -place->left : last;
    const int64_t by_row = w->dilation_y * w->width * w->channels;
    const int64_t bottom = place->top + (w->kernel_height - 1) * w->dilation_y;
    const int8_t *from = picture + (place->top * w->width + place->left) * w->channels;
    if (joined && last - first == w->kernel_width && run <= DOT_RUN && place->top >= 0 &&
        bottom < w->height && end - from - (w->kernel_height - 1) * by_row >= DOT_RUN) {
        gather_short(form, from, w->kernel_height, by_row, run, left);
        return;
    }
    for (int64_t ky = 0; ky < w->kernel_height; ky++, from += by_row) {
        const int64_t y = place->top + ky * w->dilation_y;
        const int inside = y >= 0 && y < w->height;
        if (joined && inside) {
            const int64_t before = first * channels, there = (last - first) * channels;
            dot_left_fill(form, outside, before, left);
            dot_left_run(form, from + before, there, end, left + before * size);
            dot_left_fill(form, outside, run - before - there, left + (before + there) * size);
            left += run * size;
            continue;
        }
        for (int64_t kx = 0; kx < w->kernel_width; kx++, left += channels * size) {
            const int64_t x = place->left + kx * w->dilation_x;
            if (inside && x >= 0 && x < w->width)
                dot_left_run(form, picture + (y * w->width + x) * w->channels, channels, end, left);
            else
                dot_left_fill(form, outside, channels, left);
        }
    }
}

INLINE void fill_integers(int form, const Job *job, int64_t first, int64_t count, uint8_t *left,
                          int64_t stride)
{
    const int8_t *x = (const int8_t *)job->x + first * job->stride;
    const int8_t *end = (const int8_t *)job->x + (job->rows - 1) * job->stride + job->width;
    for (int64_t i = 0; i < count; i++, x += job->stride, left += stride)
        dot_left_run(form, x, job->width, end, left);
}

INLINE void fill_patches(int form, const Job *job, int64_t first, int64_t count, int64_t group,
                         uint8_t *left, int64_t stride, RowScale *scales)
{
    Place place = place_of(job, first);
    for (int64_t i = 0; i < count; i++, left += stride) {
        scales[i] = place.scale;
        gather_patch(form, job, &place, group, left);
        advance(job, &place, 1, first + i + 1);
    }
}

/* bytes: scratch (width). */
INLINE void fill_floats(int form, const Job *job, int64_t first, int64_t count, uint8_t *left,
                        int64_t stride, RowScale *scales, int8_t *bytes)
{
    const float *x = (const float *)job->x + first * job->stride;
    for (int64_t i = 0; i < count; i++, x += job->stride, left += stride) {
        scales[i] = row_scale(x, job->width);
        if (dot_left_bytes(form)) {
            quantize_row(x, job->width, scales[i], dot_offset(form), (int8_t *)left);
            continue;
        }
        quantize_row(x, job->width, scales[i], 0, bytes);
        dot_left_run(form, bytes, job->width, bytes + padded(job->width, DOT_RUN), left);
    }
}

/* Rows first .. first + count as left operands. */
INLINE void fill_block(int form, const Job *job, int64_t first, int64_t count, int64_t group,
                       uint8_t *left, RowScale *scales, int8_t *bytes)
{
    int64_t stride = left_stride(form, job->width);
    if (job->from == FROM_INT8)
        fill_integers(form, job, first, count, left, stride);
    else if (job->from == FROM_PATCHES)
        fill_patches(form, job, first, count, group, left, stride, scales);
    else
        fill_floats(form, job, first, count, left, stride, scales, bytes);
}

/* ---- what is made of the sums of a tile ----------------------------------------------------- */

/* `count` values of `size` bytes, part of what a panel's columns become: in a few pieces, without a
 * call. */
INLINE void copy_part(size_t size, void *to, const void *from, size_t count)
{
    size_t at = 0;
    UNROLL for (size_t piece = 128; piece > 0; piece /= 2)
        if (piece < size * DOT_COLUMNS && (size * count & piece)) {
            memcpy((char *)to + at, (const char *)from + at, piece);
            at += piece;
        }
}

/* `count` integers of a panel's columns. */
INLINE void put_steps(int to, const i32_lanes *q, const int8_t *table, size_t count, void *y)
{
    if (to == TO_INT16) {
        int16_t wide[DOT_COLUMNS];
        narrow_to_16(q, count == DOT_COLUMNS ? y : wide);
        if (count != DOT_COLUMNS) copy_part(2, y, wide, count);
        return;
    }
    i8_lanes bytes = narrow(q);
    if (table) {
        int8_t found[LANE_BYTES];
        memcpy(found, &bytes, sizeof found);
        for (int j = 0; j < DOT_COLUMNS; j++) found[j] = table[found[j] + 128];
        memcpy(&bytes, found, sizeof found);
    }
    if (count == DOT_COLUMNS)
        memcpy(y, &bytes, DOT_COLUMNS);
    else
        copy_part(1, y, &bytes, count);
}

/* What belongs to all steps of a job, in registers: a job itself is read anew after each byte that is
 * written, which might be one of its own. */
typedef struct {
    f32_lanes low, high; /* bounds of what is rounded */
    i32_lanes zero_point;
#if DOT_HAS_PAIRED
    __m256i zero_point_16, bottom; /* bottom: the lower bound of bytes */
#endif
} Ends;

INLINE Ends ends_of(const Job *job)
{
    const float low = job->low - (float)job->zero_point;
    const float high = job->high - (float)job->zero_point;
    Ends ends = {(f32_lanes){0} + low, (f32_lanes){0} + high, (i32_lanes){0} + job->zero_point};
#if DOT_HAS_PAIRED
    const int least = _mm_cvtss_si32(_mm_set_ss(low > -256 ? low : -256)) + job->zero_point;
    ends.zero_point_16 = _mm256_set1_epi16((short)job->zero_point);
    ends.bottom = _mm256_set1_epi8((char)(least > -128 ? least : -128));
#endif
    return ends;
}

/* What becomes of the sums of a panel as int8 or int16: y OUT (rows, count), out_stride apart. What
 * belongs to a column stays in registers while the rows pass by: with few inputs this is most of the
 * work. */
INLINE void finish_steps(int to, const Job *job, Ends ends, const int32_t *sums, int rows,
                         int64_t at, size_t count, char *y)
{
    const int8_t *table = job->table;
    const int64_t stride = job->out_stride * (to == TO_INT16 ? 2 : 1);
    i32_lanes start[DOT_VECTORS];
    f32_lanes multiplier[DOT_VECTORS];
    /* Vector by vector: GCC copies arrays by 16 bytes, and what is read by 32 then waits. */
    UNROLL for (int v = 0; v < DOT_VECTORS; v++) {
        memcpy(&start[v], job->start + at + v * F32_LANES, sizeof start[v]);
        memcpy(&multiplier[v], job->multiplier + at + v * F32_LANES, sizeof multiplier[v]);
    }
    for (int i = 0; i < rows; i++, sums += DOT_COLUMNS, y += stride) {
        i32_lanes q[4] = {{0}, {0}, {0}, {0}};
        UNROLL for (int v = 0; v < DOT_VECTORS; v++) {
            i32_lanes sum;
            memcpy(&sum, sums + v * F32_LANES, sizeof sum);
            f32_lanes real = __builtin_convertvector(sum + start[v], f32_lanes);
            real = f32_min(f32_max(product(real, multiplier[v]), ends.low), ends.high);
            q[v] = nearest(real) + ends.zero_point;
        }
        put_steps(to, q, table, count, y);
    }
}

#if DOT_HAS_PAIRED
/* finish_steps to int8, two rows at once, where an instruction rounds and packing keeps to 16 and 8
 * bits: so only the upper bound has to come before, of what does not fit in 32 bits and would become
 * the least number. */
INLINE void finish_bytes(const Job *job, Ends ends, const int32_t *sums, int rows, int64_t at,
                         size_t count, int8_t *y)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const int64_t stride = job->out_stride;
    i32_lanes start[DOT_VECTORS];
    f32_lanes multiplier[DOT_VECTORS];
    UNROLL for (int v = 0; v < DOT_VECTORS; v++) {
        memcpy(&start[v], job->start + at + v * F32_LANES, sizeof start[v]);
        memcpy(&multiplier[v], job->multiplier + at + v * F32_LANES, sizeof multiplier[v]);
    }
    for (int i = 0; i < rows; i += 2, sums += 2 * DOT_COLUMNS, y += 2 * stride) {
        const int two = i + 1 < rows;
        __m256i wide[2], bytes;
        UNROLL for (int r = 0; r < 2; r++) {
            __m256i q[DOT_VECTORS];
            UNROLL for (int v = 0; v < DOT_VECTORS; v++) {
                i32_lanes sum;
                memcpy(&sum, sums + (r && two ? DOT_COLUMNS : 0) + v * F32_LANES, sizeof sum);
                f32_lanes real = __builtin_convertvector(sum + start[v], f32_lanes);
                q[v] = _mm256_cvtps_epi32((__m256)f32_min(real * multiplier[v], ends.high));
            }
            wide[r] = _mm256_adds_epi16(_mm256_packs_epi32(q[0], q[1]), ends.zero_point_16);
        }
        bytes = _mm256_max_epi8(_mm256_packs_epi16(wide[0], wide[1]), ends.bottom);
        bytes = _mm256_permutevar8x32_epi32(bytes, order);
        const __m128i row[2] = {_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)};
        UNROLL for (int r = 0; r < 2; r++) {
            if (r && !two) break;
            if (count == DOT_COLUMNS)
                _mm_storeu_si128((__m128i *)(y + r * stride), row[r]);
            else
                copy_part(1, y + r * stride, &row[r], count);
        }
    }
}
#endif

/* The same as float32; scales: of the rows, where job->start is NULL. */
INLINE void finish_floats(const Job *job, const int32_t *sums, int rows, int64_t at, size_t count,
                          const RowScale *scales, float *y)
{
    const int32_t *of_columns = job->start ? job->start : job->column_sums;
    i32_lanes other[DOT_VECTORS];
    f32_lanes multiplier[DOT_VECTORS], bias[DOT_VECTORS];
    UNROLL for (int v = 0; v < DOT_VECTORS; v++) {
        int64_t place = at + v * F32_LANES;
        memcpy(&other[v], of_columns + place, sizeof other[v]);
        memcpy(&multiplier[v], job->multiplier + place, sizeof multiplier[v]);
        bias[v] = (f32_lanes){0};
        if (job->bias) memcpy(&bias[v], job->bias + place, sizeof bias[v]);
    }
    for (int i = 0; i < rows; i++, sums += DOT_COLUMNS, y += job->out_stride) {
        float room[DOT_COLUMNS], *out = count == DOT_COLUMNS ? y : room;
        UNROLL for (int v = 0; v < DOT_VECTORS; v++) {
            i32_lanes sum;
            f32_lanes real;
            memcpy(&sum, sums + v * F32_LANES, sizeof sum);
            if (job->start) {
                real = product(__builtin_convertvector(sum + other[v], f32_lanes), multiplier[v]);
            } else {
                sum -= other[v] * (scales[i].zero_point + job->offset);
                /* The row's scale last: what comes before it stays in range for any row (see the
                 * definition of DynamicDense). */
                real = product(__builtin_convertvector(sum, f32_lanes), multiplier[v]);
                real = product(real, (f32_lanes){0} + scales[i].scale);
            }
            if (job->bias) real += bias[v]; /* not always: -0 + 0 is 0 */
            real = bounded(real, job->low, job->high);
            memcpy(out + v * F32_LANES, &real, sizeof real);
        }
        if (count != DOT_COLUMNS) copy_part(4, y, room, count);
    }
}

INLINE void finish_int32(const Job *job, const int32_t *sums, int64_t at, int32_t *out)
{
    UNROLL for (int v = 0; v < DOT_VECTORS; v++) {
        i32_lanes sum, start;
        memcpy(&sum, sums + v * F32_LANES, sizeof sum);
        memcpy(&start, job->start + at + v * F32_LANES, sizeof start);
        sum += start;
        memcpy(out + v * F32_LANES, &sum, sizeof sum);
    }
}

/* The sums (rows, DOT_COLUMNS) of rows `row`.. and columns `column`.. of a group, to y. */
INLINE void finish_sums(const Job *job, Ends ends, const int32_t *sums, int rows, int64_t row,
                        int64_t group, int64_t panel, const RowScale *scales)
{
    int64_t column = panel * DOT_COLUMNS, n = job->columns - column;
    int64_t at = group * job_panels(job) * DOT_COLUMNS + column;
    int64_t place = row * job->out_stride + group * job->columns + column;
    int whole = n >= DOT_COLUMNS;
    size_t count = (size_t)(whole ? DOT_COLUMNS : n);
#if DOT_HAS_PAIRED
    if (job->to == TO_INT8 && !job->table) {
        int8_t *y = (int8_t *)job->y + place;
        if (whole) /* a constant, so that the compiler drops what is for others */
            finish_bytes(job, ends, sums, rows, at, DOT_COLUMNS, y);
        else
            finish_bytes(job, ends, sums, rows, at, count, y);
        return;
    }
#endif
    if (job->to == TO_INT8) {
        finish_steps(TO_INT8, job, ends, sums, rows, at, count, (char *)job->y + place);
        return;
    }
    if (job->to == TO_INT16) {
        finish_steps(TO_INT16, job, ends, sums, rows, at, count, (char *)job->y + 2 * place);
        return;
    }
    if (job->to == TO_FLOAT) {
        finish_floats(job, sums, rows, at, count, scales, (float *)job->y + place);
        return;
    }
    for (int i = 0; i < rows; i++, sums += DOT_COLUMNS, place += job->out_stride) {
        int32_t room[DOT_COLUMNS], *y = (int32_t *)job->y + place;
        finish_int32(job, sums, at, whole ? y : room);
        if (!whole) copy_part(4, y, room, count);
    }
}

/* name: tiles of one form, in a function of their own. Among other code GCC 12 keeps its constants in
 * registers and a sum in memory, which made widened tiles take 1.35 times as long. */
#define TILE_CASE(form, n, vectors)                                                             \
    case n: dot_tile(form, n, vectors, left, stride, panel, orders, steps, sums); break;
#if DOT_VNNI
#define TALL_TILES(form, vectors) TILE_CASE(form, 7, vectors) TILE_CASE(form, 8, vectors)
#else
#define TALL_TILES(form, vectors)
#endif
#define DEFINE_TILES(name, form, vectors)                                                       \
    static __attribute__((noinline)) void name(                                                 \
        int rows, const uint8_t *left, int64_t stride, const int8_t *panel,                     \
        const uint32_t *orders, int64_t steps, int32_t *sums)                                   \
    {                                                                                           \
        switch (rows) {                                                                         \
            TILE_CASE(form, 1, vectors) TILE_CASE(form, 2, vectors) TILE_CASE(form, 3, vectors) \
            TILE_CASE(form, 4, vectors) TILE_CASE(form, 5, vectors) TILE_CASE(form, 6, vectors) \
            TALL_TILES(form, vectors)                                                           \
        }                                                                                       \
    }
/* A last panel of few columns is multiplied by its first vector alone. */
#define DEFINE_TILES_OF(name, form)                                                             \
    DEFINE_TILES(name##_tile, form, DOT_VECTORS)                                                \
    DEFINE_TILES(name##_part, form, 1)
DEFINE_TILES_OF(whole, DOT_WHOLE)
#if DOT_HAS_PAIRED
DEFINE_TILES_OF(paired, DOT_PAIRED)
DEFINE_TILES_OF(picked, DOT_PICKED)
#endif

typedef void Tile(int, const uint8_t *, int64_t, const int8_t *, const uint32_t *, int64_t,
                  int32_t *);

INLINE Tile *tile_of(int form, int64_t columns)
{
    const int few = columns <= F32_LANES;
#if DOT_HAS_PAIRED
    if (form == DOT_PAIRED) return few ? paired_part : paired_tile;
    if (form == DOT_PICKED) return few ? picked_part : picked_tile;
#endif
    return few ? whole_part : whole_tile;
}

INLINE Span span_of(int form, const Job *job, int64_t panel)
{
    int64_t groups = (job->width + dot_group(form) - 1) / dot_group(form);
    return form == DOT_PICKED ? job->spans[panel] : (Span){panel * groups, 0, groups};
}

/* What a block of rows needs for itself, in scratch of block_bytes. */
typedef struct {
    uint8_t *left;
    int64_t stride;
    RowScale *scales;
    int8_t *bytes;
} Block;

INLINE Block block_at(int form, const Job *job, int64_t count, char *scratch)
{
    int64_t stride = left_stride(form, job->width);
    RowScale *scales = (RowScale *)(scratch + count * stride);
    return (Block){(uint8_t *)scratch, stride, scales, (int8_t *)(scales + count)};
}

/* Panels that stay in the second-level cache while all tiles of a block meet them. */
enum { CHUNK_BYTES = 192 * 1024 };

INLINE void multiply_tile(int form, const Job *job, int rows, int64_t first, int64_t row,
                          int64_t group, int64_t first_panel, int64_t last_panel,
                          const Block *block)
{
    const Ends ends = ends_of(job);
    int32_t sums[DOT_ROWS * DOT_COLUMNS] __attribute__((aligned(64)));
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        Span span = span_of(form, job, group * job_panels(job) + panel);
        Tile *tile = tile_of(form, job->columns - panel * DOT_COLUMNS);
        tile(rows, block->left + row * block->stride, block->stride,
             job->panels + span.group * dot_step(form), job->orders + span.word, span.steps, sums);
        finish_sums(job, ends, sums, rows, first + row, group, panel, block->scales + row);
    }
}

INLINE void multiply_block(int form, const Job *job, int64_t first, int64_t count, int64_t group,
                           int64_t first_panel, int64_t last_panel, const Block *block)
{
    /* Tiles of about equal height: 8 rows are better served as 4 + 4 than as 6 + 2. A tile goes
     * along its rows of y, which are written in order. */
    int64_t tiles = (count + DOT_ROWS - 1) / DOT_ROWS;
    int64_t step = CHUNK_BYTES / (padded(job->width, 4) * DOT_COLUMNS) + 1;
    for (int64_t panel = first_panel; panel < last_panel; panel += step) {
        int64_t last = panel + step < last_panel ? panel + step : last_panel;
        for (int64_t tile = 0, row = 0; tile < tiles; tile++) {
            int rows = (int)((count - row + tiles - tile - 1) / (tiles - tile));
            multiply_tile(form, job, rows, first, row, group, panel, last, block);
            row += rows;
        }
    }
}

#if DOT_HAS_PAIRED
#define IN_ITS_FORM(CALL)                                                                       \
    if (job->form == DOT_PAIRED) {                                                              \
        CALL(DOT_PAIRED);                                                                       \
    } else if (job->form == DOT_PICKED) {                                                       \
        CALL(DOT_PICKED);                                                                       \
    } else {                                                                                    \
        CALL(DOT_WHOLE);                                                                        \
    }
#else
#define IN_ITS_FORM(CALL) CALL(DOT_WHOLE);
#endif

/* Rows first .. first + count as left operands, in scratch of block_bytes(form, count, width). */
static void int8_fill(const Job *job, int64_t first, int64_t count, int64_t group, char *scratch)
{
#define FILL(form)                                                                              \
    Block block = block_at(form, job, count, scratch);                                          \
    fill_block(form, job, first, count, group, block.left, block.scales, block.bytes)
    IN_ITS_FORM(FILL)
#undef FILL
}

/* Those rows times some panels of a group. */
static void int8_multiply(const Job *job, int64_t first, int64_t count, int64_t group,
                          int64_t first_panel, int64_t last_panel, char *scratch)
{
#define MULTIPLY(form)                                                                          \
    Block block = block_at(form, job, count, scratch);                                          \
    multiply_block(form, job, first, count, group, first_panel, last_panel, &block)
    IN_ITS_FORM(MULTIPLY)
#undef MULTIPLY
}

#endif
