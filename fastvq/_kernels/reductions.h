/* Sums and extremes, softmax and layer normalisation, in an order that only lengths decide.
 *
 * A row's sum has 32 partial sums, whatever the width of a vector: partial sum i takes the values
 * i, i + 32, ... of a block of 4096, blocks are added up, and in the end the upper half to the lower
 * one until one is left. So bits depend neither on the level, where it fuses, nor on the batch, and
 * at most 128 values, or length / 4096 blocks, are added up one after the other, which is what
 * rounding grows with. Columns (lanes over what stays) have one sum each, in blocks of 128.
 */
#ifndef FASTVQ_REDUCTIONS_H
#define FASTVQ_REDUCTIONS_H

#include "functions.h"

enum {
    SUMS = 32,
    SUM_VECTORS = SUMS / F32_LANES,
    ROW_BLOCK = 128 * SUMS,
    COLUMN_BLOCK = 128,
    COLUMN_VECTORS = 4, /* of neighbouring columns at once */
};

/* What is added up, or compared; their order is known to runtime/lowering/reductions.py. */
enum { REDUCE_SUM, REDUCE_SUM_SQUARE, REDUCE_L1, REDUCE_MAX, REDUCE_MIN };

typedef struct {
    f32_lanes part[SUM_VECTORS];
} Sums;

/* The sum of 32 partial sums: i and i + 16, then i and i + 8, ... */
INLINE float f32_total(const Sums *sums)
{
    f32_lanes vector[SUM_VECTORS];
    UNROLL for (int p = 0; p < SUM_VECTORS; p++) vector[p] = sums->part[p];
    UNROLL for (int half = SUM_VECTORS / 2; half; half /= 2)
        UNROLL for (int p = 0; p < half; p++) vector[p] += vector[p + half];
    float value[F32_LANES];
    __builtin_memcpy(value, vector, sizeof value);
    UNROLL for (int half = F32_LANES / 2; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++) value[i] += value[i + half];
    return value[0];
}

/* Σ of the row x (n,) as above. VALUE is the partial sum s with the vector v, which stands `at` x,
 * added; of its last vector only `left` lanes are there, and of the others VALUE is not taken. One
 * macro, as each use has its own VALUE. */
#define SUM_ROW(x, n, VALUE)                                                                    \
    ({                                                                                          \
        Sums all_ = {0};                                                                        \
        for (ptrdiff_t first_ = 0; first_ < (n); first_ += ROW_BLOCK) {                         \
            Sums block_ = {0};                                                                  \
            const ptrdiff_t stop_ = first_ + ROW_BLOCK < (n) ? first_ + ROW_BLOCK : (n);        \
            ptrdiff_t i_ = first_;                                                              \
            for (; i_ + SUMS <= stop_; i_ += SUMS)                                              \
                UNROLL for (int p_ = 0; p_ < SUM_VECTORS; p_++)                                 \
                {                                                                               \
                    const ptrdiff_t at = i_ + p_ * F32_LANES, left = F32_LANES;                 \
                    const f32_lanes v = f32_load((x) + at), s = block_.part[p_];                \
                    (void)at, (void)left;                                                       \
                    block_.part[p_] = (VALUE);                                                  \
                }                                                                               \
            for (int p_ = 0; i_ < stop_; p_++, i_ += F32_LANES) {                               \
                const ptrdiff_t at = i_, left = stop_ - i_ < F32_LANES ? stop_ - i_ : F32_LANES; \
                const f32_lanes v = f32_load_part((x) + at, left), s = block_.part[p_];         \
                (void)at;                                                                       \
                const f32_lanes sum_ = (VALUE);                                                 \
                block_.part[p_] = f32_choose(f32_lane_numbers() < (int32_t)left, sum_, s);      \
            }                                                                                   \
            UNROLL for (int p_ = 0; p_ < SUM_VECTORS; p_++) all_.part[p_] += block_.part[p_];   \
        }                                                                                       \
        f32_total(&all_);                                                                       \
    })

INLINE i32_lanes f32_lane_numbers(void)
{
    i32_lanes numbers;
    UNROLL for (int i = 0; i < F32_LANES; i++) numbers[i] = i;
    return numbers;
}

/* The largest of a row; a row of which nothing is larger than `least` has that. NaN is passed over
 * unless `nan_wins`. */
INLINE float row_max(const float *x, ptrdiff_t n, float least, const int nan_wins)
{
    f32_lanes best[4];
    i32_lanes lost = {0};
    ptrdiff_t i = 0;
    UNROLL for (int p = 0; p < 4; p++) best[p] = f32_all(least);
    for (; i + 4 * F32_LANES <= n; i += 4 * F32_LANES)
        UNROLL for (int p = 0; p < 4; p++)
        {
            const f32_lanes v = f32_load(x + i + p * F32_LANES);
            if (nan_wins) lost |= v != v;
            best[p] = f32_max(v, best[p]);
        }
    f32_lanes most = f32_max(f32_max(best[0], best[1]), f32_max(best[2], best[3]));
    float value, lane[F32_LANES];
    __builtin_memcpy(lane, &most, sizeof lane);
    UNROLL for (int half = F32_LANES / 2; half; half /= 2)
        UNROLL for (int j = 0; j < half; j++)
            lane[j] = lane[j] > lane[j + half] ? lane[j] : lane[j + half];
    value = lane[0];
    int nan = 0;
    if (nan_wins)
        for (int j = 0; j < F32_LANES; j++) nan |= lost[j];
    for (; i < n; i++) {
        value = x[i] > value ? x[i] : value;
        nan |= x[i] != x[i];
    }
    return nan_wins && nan ? __builtin_nanf("") : value;
}

INLINE float row_min(const float *x, ptrdiff_t n)
{
    float value = __builtin_inff();
    int nan = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        value = x[i] < value ? x[i] : value;
        nan |= x[i] != x[i];
    }
    return nan ? __builtin_nanf("") : value;
}

INLINE float reduce_row(int function, const float *x, ptrdiff_t n)
{
    switch (function) {
    case REDUCE_SUM: return SUM_ROW(x, n, s + v);
    case REDUCE_SUM_SQUARE: return SUM_ROW(x, n, fused(v, v, s));
    case REDUCE_L1: return SUM_ROW(x, n, s + f32_abs(v));
    case REDUCE_MAX: return row_max(x, n, -__builtin_inff(), 1);
    default: return row_min(x, n);
    }
}

/* y[0 .. vectors * lanes) of n rows of x that lie `step` apart; `width` values are in use. One
 * vector alone would wait for its own sum, and fetch half a cache line. */
INLINE void reduce_columns(const int function, const int vectors, const float *x, ptrdiff_t n,
                           ptrdiff_t step, ptrdiff_t width, float *y)
{
    const int extreme = function == REDUCE_MAX || function == REDUCE_MIN;
    const float start = function == REDUCE_MAX ? -__builtin_inff() : __builtin_inff();
    f32_lanes all[COLUMN_VECTORS];
    i32_lanes lost[COLUMN_VECTORS] = {{0}};
    UNROLL for (int v = 0; v < vectors; v++) all[v] = f32_all(extreme ? start : 0);
    for (ptrdiff_t first = 0; first < n; first += COLUMN_BLOCK) {
        const ptrdiff_t stop = first + COLUMN_BLOCK < n ? first + COLUMN_BLOCK : n;
        f32_lanes block[COLUMN_VECTORS] = {{0}};
        for (ptrdiff_t i = first; i < stop; i++)
            UNROLL for (int v = 0; v < vectors; v++)
            {
                const float *at = x + i * step + v * F32_LANES;
                const f32_lanes value =
                    width >= F32_LANES ? f32_load(at) : f32_load_part(at, width);
                if (extreme) {
                    all[v] = function == REDUCE_MAX ? f32_max(value, all[v])
                                                    : f32_min(value, all[v]);
                    lost[v] |= value != value;
                } else if (function == REDUCE_SUM_SQUARE) {
                    block[v] = fused(value, value, block[v]);
                } else {
                    block[v] += function == REDUCE_L1 ? f32_abs(value) : value;
                }
            }
        if (!extreme) UNROLL for (int v = 0; v < vectors; v++) all[v] += block[v];
    }
    UNROLL for (int v = 0; v < vectors; v++)
    {
        all[v] = f32_choose(lost[v], f32_all(__builtin_nanf("")), all[v]);
        if (width >= F32_LANES)
            f32_store(y + v * F32_LANES, all[v]);
        else
            f32_store_part(y, all[v], width);
    }
}

/* x (n, inner) to y (inner,). A sum is divided by `divisor`; of the result the root is taken. */
static void reduce_part(int function, const float *x, ptrdiff_t n, ptrdiff_t inner, float *y,
                        float divisor, int root)
{
    if (inner == 1) {
        *y = reduce_row(function, x, n);
    } else {
        const ptrdiff_t wide = COLUMN_VECTORS * F32_LANES;
        ptrdiff_t j = 0;
#define COLUMNS(which)                                                                          \
    for (; j + wide <= inner; j += wide)                                                        \
        reduce_columns(which, COLUMN_VECTORS, x + j, n, inner, wide, y + j);                    \
    for (; j < inner; j += F32_LANES)                                                           \
        reduce_columns(which, 1, x + j, n, inner, inner - j, y + j);                            \
    break;
        switch (function) {
        case REDUCE_SUM: COLUMNS(REDUCE_SUM)
        case REDUCE_SUM_SQUARE: COLUMNS(REDUCE_SUM_SQUARE)
        case REDUCE_L1: COLUMNS(REDUCE_L1)
        case REDUCE_MAX: COLUMNS(REDUCE_MAX)
        default: COLUMNS(REDUCE_MIN)
        }
#undef COLUMNS
    }
    for (ptrdiff_t j = 0; j < inner; j++) y[j] /= divisor;
    if (root) apply_sqrt(y, y, inner, 0, 0);
}

/* ---- softmax ---------------------------------------------------------------------------------- */

INLINE f32_lanes exp_into(float *y, f32_lanes value, ptrdiff_t left)
{
    const f32_lanes e = f32_exp_below(value);
    if (left == F32_LANES)
        f32_store(y, e);
    else
        f32_store_part(y, e, left);
    return e;
}

/* y may be x. */
static void softmax_row(const float *x, ptrdiff_t n, float *y)
{
    const float most = row_max(x, n, -__FLT_MAX__, 0);
    const float factor = 1 / SUM_ROW(x, n, s + exp_into(y + at, v - most, left));
    for (ptrdiff_t i = 0; i < n; i++) y[i] *= factor;
}

static void log_softmax_row(const float *x, ptrdiff_t n, float *y)
{
    const float most = row_max(x, n, -__FLT_MAX__, 0);
    const float log_total = OF(log, f32_all(SUM_ROW(x, n, s + f32_exp_below(v - most))))[0];
    for (ptrdiff_t i = 0; i < n; i++) y[i] = x[i] - most - log_total;
}

/* Down the columns of x (n, inner), a vector of them at a time. */
static void softmax_columns(const float *x, ptrdiff_t n, ptrdiff_t inner, float *y, int log)
{
    for (ptrdiff_t j = 0; j < inner; j += F32_LANES) {
        const ptrdiff_t width = inner - j < F32_LANES ? inner - j : F32_LANES;
        f32_lanes most = f32_all(-__FLT_MAX__), total = {0};
        for (ptrdiff_t i = 0; i < n; i++)
            most = f32_max(f32_load_part(x + i * inner + j, width), most);
        for (ptrdiff_t i = 0; i < n; i++) {
            const f32_lanes v = f32_load_part(x + i * inner + j, width) - most, e = f32_exp_below(v);
            f32_store_part(y + i * inner + j, log ? v : e, width);
            total += e;
        }
        const f32_lanes factor = log ? OF(log, total) : 1 / total;
        for (ptrdiff_t i = 0; i < n; i++) {
            const f32_lanes v = f32_load_part(y + i * inner + j, width);
            f32_store_part(y + i * inner + j, log ? v - factor : v * factor, width);
        }
    }
}

/* ---- layer normalisation ---------------------------------------------------------------------- */

/* (x - mean) / √(variance + epsilon) · scale + bias; y may be x. */
static void layer_norm_row(const float *x, ptrdiff_t n, const float *scale, const float *bias,
                           float epsilon, float *y)
{
    const f32_lanes mean = f32_all(SUM_ROW(x, n, s + v) / (float)n);
    const float squares = SUM_ROW(x, n, fused(v - mean, v - mean, s));
    const f32_lanes inverse = 1 / f32_sqrt(f32_all(squares / (float)n + epsilon));
    for (ptrdiff_t i = 0; i < n; i += F32_LANES) {
        const ptrdiff_t left = n - i;
#define AT(from) (left >= F32_LANES ? f32_load((from) + i) : f32_load_part((from) + i, left))
        const f32_lanes centred = (AT(x) - mean) * inverse;
        const f32_lanes factor = scale ? AT(scale) : f32_all(1);
        const f32_lanes value = fused(centred, factor, bias ? AT(bias) : f32_all(0));
#undef AT
        if (left >= F32_LANES)
            f32_store(y + i, value);
        else
            f32_store_part(y + i, value, left);
    }
}

/* ---- where the largest is --------------------------------------------------------------------- */

/* The first place, or the last, of the largest or least of n values `step` apart; NaN is that. */
static int64_t place_of_extreme(const float *x, ptrdiff_t n, ptrdiff_t step, int last, int least)
{
    int64_t place = last ? n - 1 : 0;
    const float sign = least ? -1.0f : 1.0f;
    float best = sign * x[place * step];
    for (int64_t at = 1; at < n && best == best; at++) {
        const int64_t i = last ? n - 1 - at : at;
        const float value = sign * x[i * step];
        if (value > best || value != value) best = value, place = i;
    }
    return place;
}

#endif
