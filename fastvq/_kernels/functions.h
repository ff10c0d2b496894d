/* Functions of one value, on vectors: polynomials of our own in a fixed order, no libm.
 *
 * What a lane gets depends on that lane alone, and each multiply-add is asked for by name, so that
 * bits do not depend on where a value lies in an array, nor, where there is a fused one, on the
 * level. No product may meet a sum outside of `fused`: the compiler would be free to contract it.
 *
 * Errors against the true value are at most 4 units in the last place, 8 of gelu and more in its far
 * tails, where the rounding of x² counts (tests/test_kernel_pointwise.py). Infinity and NaN pass as IEEE says; subnormal results come right. Coefficients are minimax
 * by Remez' exchange; tests/minimax.py computes them.
 *
 * A minimum or maximum gives its second operand where one is NaN: that is how NaN passes bounds.
 */
#ifndef FASTVQ_FUNCTIONS_H
#define FASTVQ_FUNCTIONS_H

#include "lanes.h"

/* ---- parts ---------------------------------------------------------------------------------- */

#define fused f32_lanes_multiply_add

INLINE f32_lanes f32_all(float value) { return (f32_lanes){0} + value; }

INLINE f32_lanes f32_choose(i32_lanes condition, f32_lanes a, f32_lanes b)
{
#if defined(__AVX512F__)
    return (f32_lanes)_mm512_mask_mov_ps((__m512)b, _mm512_movepi32_mask((__m512i)condition),
                                         (__m512)a);
#elif defined(__AVX__)
    return (f32_lanes)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)condition);
#else
    return (f32_lanes)((condition & (i32_lanes)a) | (~condition & (i32_lanes)b));
#endif
}

INLINE f32_lanes f32_sqrt(f32_lanes x)
{
#if defined(__AVX512F__)
    return (f32_lanes)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
    return (f32_lanes)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
    return (f32_lanes)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
    return (f32_lanes)vsqrtq_f32((float32x4_t)x);
#endif
}

INLINE f32_lanes f32_abs(f32_lanes x) { return (f32_lanes)((i32_lanes)x & 0x7fffffff); }

INLINE f32_lanes f32_with_sign_of(f32_lanes x, f32_lanes sign)
{
    return (f32_lanes)((i32_lanes)x | ((i32_lanes)sign & (int32_t)0x80000000));
}

/* 2^k for k in -126 .. 127. */
INLINE f32_lanes f32_power_of_two(i32_lanes k) { return (f32_lanes)((k + 127) << 23); }

/* coefficient[0] + x (coefficient[1] + x (...)), for a literal number of them. */
INLINE f32_lanes f32_polynomial(f32_lanes x, const int n, const float *coefficient)
{
    f32_lanes y = f32_all(coefficient[n - 1]);
    UNROLL for (int i = n - 2; i >= 0; i--) y = fused(x, y, f32_all(coefficient[i]));
    return y;
}

#define POLYNOMIAL(x, ...)                                                                      \
    f32_polynomial(x, sizeof((const float[]){__VA_ARGS__}) / 4, (const float[]){__VA_ARGS__})

/* exp(x) = 2^k (1 + r): r is returned. The upper part of ln 2 has 9 bits, so that its multiples are
 * exact without a fused multiply-add too. 1.5 * 2^23 added and taken away rounds to a whole number,
 * which stands in the lowest bits in between. */
INLINE f32_lanes f32_exp_parts(f32_lanes x, i32_lanes *k)
{
    const f32_lanes rounder = f32_all(0x1.8p23f);
    f32_lanes shifted = fused(x, f32_all(1.44269504f), rounder), n = shifted - rounder;
    *k = (i32_lanes)shifted - (i32_lanes)rounder;
    f32_lanes f = fused(n, f32_all(-0.693359375f), x);
    f = fused(n, f32_all(2.12194440e-4f), f);
    f32_lanes q = POLYNOMIAL(f, 0.5f, 0.16666543f, 0.0416662824f, 0.00836657868f, 0.00139464224f);
    return fused(f * f, q, f);
}

/* exp(x) for x <= 0, and NaN. Powers are kept 2^64 too large until the last product, so that results
 * below the smallest normal number are rounded once; from -104 on they are 0. */
INLINE f32_lanes f32_exp_below(f32_lanes x)
{
    i32_lanes k;
    f32_lanes y = f32_exp_parts(f32_max(f32_all(-104), x), &k) + 1;
    return y * f32_power_of_two(k + 64) * 0x1p-64f;
}

/* exp(x) - 1 for x in -80 .. 80, and NaN. */
INLINE f32_lanes f32_expm1_inside(f32_lanes x)
{
    i32_lanes k;
    f32_lanes r = f32_exp_parts(x, &k), power = f32_power_of_two(k);
    return fused(power, r, power - 1);
}

/* Φ(-z) = part * exp(-z²/2) for z >= 0, Φ being the normal distribution. */
INLINE f32_lanes f32_normal_tail_part(f32_lanes z)
{
    f32_lanes t = 4 / (z + 4);
    return t * POLYNOMIAL(t, 0.0997449901f, 0.0995463433f, 0.0950896214f, 0.0739025546f,
                          0.0813679217f, 0.0222120982f, 0.0173861156f, 0.059691925f,
                          -0.0661186308f, 0.0171770655f);
}

INLINE f32_lanes f32_hard(f32_lanes x, f32_lanes slope, f32_lanes offset)
{
    return f32_min(f32_all(1), f32_max(f32_all(0), fused(x, slope, offset)));
}

/* ---- the functions: of_<name>(x, alpha, beta) ------------------------------------------------- */

#define FUNCTION(name) INLINE f32_lanes of_##name(f32_lanes x, f32_lanes alpha, f32_lanes beta)
#define OF(name, x) of_##name(x, (f32_lanes){0}, (f32_lanes){0})
#define UNUSED (void)alpha, (void)beta

FUNCTION(identity) { return UNUSED, x; }

FUNCTION(relu) { return UNUSED, f32_max(f32_all(0), x); }

FUNCTION(clip) { return f32_min(beta, f32_max(alpha, x)); }

FUNCTION(leaky_relu) { return UNUSED, f32_choose(x >= 0, x, x * alpha); }

FUNCTION(thresholded_relu) { return UNUSED, f32_choose(x <= alpha, f32_all(0), x); }

FUNCTION(exp)
{
    UNUSED;
    i32_lanes k;
    /* From 89 on all is infinite, below -104 all is 0, and in two steps both come by themselves. */
    x = f32_min(f32_all(89), f32_max(f32_all(-104), x));
    f32_lanes y = f32_exp_parts(x, &k) + 1;
    i32_lanes half = k >> 1;
    return y * f32_power_of_two(half) * f32_power_of_two(k - half);
}

FUNCTION(log)
{
    UNUSED;
    const f32_lanes infinity = f32_all(__builtin_inff());
    i32_lanes tiny = x < 0x1p-126f;
    i32_lanes bits = (i32_lanes)f32_choose(tiny, x * 0x1p23f, x);
    i32_lanes power = (bits - 0x3f3504f3) >> 23; /* so that the rest is in √½ .. √2 */
    f32_lanes f = (f32_lanes)(bits - (power << 23)) - 1, square = f * f;
    f32_lanes n = __builtin_convertvector(power + (tiny & -23), f32_lanes);
    f32_lanes y = POLYNOMIAL(f, 0.333333167f, -0.250008103f, 0.200022863f, -0.16624556f,
                             0.141811924f, -0.131287472f, 0.128816463f, -0.0785961513f);
    y = fused(n, f32_all(-2.12194440e-4f), square * f * y);
    y = fused(square, f32_all(-0.5f), y) + f;
    y = fused(n, f32_all(0.693359375f), y);
    y = f32_choose(x < infinity, y, x);
    f32_lanes bottom = f32_choose(x == 0, -infinity, f32_all(__builtin_nanf("")));
    return f32_choose(x > 0, y, bottom);
}

FUNCTION(elu)
{
    UNUSED;
    f32_lanes below = alpha * f32_expm1_inside(f32_min(f32_all(0), f32_max(f32_all(-20), x)));
    return f32_choose(x > 0, x, below);
}

FUNCTION(selu) { return beta * of_elu(x, alpha, beta); }

FUNCTION(celu)
{
    f32_lanes below = alpha * of_elu(f32_min(f32_all(0), x) / alpha, f32_all(1), beta);
    return f32_choose(x > 0, x, below);
}

FUNCTION(softplus)
{
    UNUSED;
    f32_lanes e = f32_exp_below(-f32_abs(x)), sum = 1 + e;
    /* log(1 + e), with what the sum has lost of e. */
    f32_lanes log1p = OF(log, sum) + (e - (sum - 1)) / sum;
    return f32_max(f32_all(0), x) + log1p;
}

FUNCTION(softsign) { return UNUSED, x / (1 + f32_abs(x)); }

FUNCTION(hard_sigmoid) { return f32_hard(x, alpha, beta); }

FUNCTION(hard_swish) { return UNUSED, x * f32_hard(x, f32_all(1.0f / 6), f32_all(0.5f)); }

FUNCTION(sigmoid)
{
    UNUSED;
    f32_lanes e = f32_exp_below(-f32_abs(x));
    return f32_choose(x >= 0, f32_all(1), e) / (1 + e);
}

FUNCTION(silu) { return UNUSED, x * OF(sigmoid, x); }

/* tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2); from 20 on it is 1. */
FUNCTION(mish)
{
    UNUSED;
    f32_lanes e = OF(exp, f32_min(f32_all(20), x)), n = fused(e, e, e + e);
    return x * (n / (n + 2));
}

/* tanh(z) = n / (n + 2) with n = exp(2z) - 1; from 9.02 on it is 1. */
FUNCTION(tanh)
{
    UNUSED;
    f32_lanes z = f32_min(f32_all(10), f32_abs(x)), n = f32_expm1_inside(z + z);
    return f32_with_sign_of(n / (n + 2), x);
}

FUNCTION(erf)
{
    UNUSED;
    f32_lanes z = f32_abs(x), square = x * x;
    f32_lanes near = x * POLYNOMIAL(square, 1.12837917f, -0.376126271f, 0.112836002f,
                                    -0.0268544442f, 0.00518953459f, -0.00080208343f,
                                    7.88909551e-5f);
    f32_lanes part = -2 * f32_normal_tail_part(z * 1.41421356f);
    f32_lanes far = fused(part, f32_exp_below(-square), f32_all(1));
    return f32_choose(z < 1, near, f32_with_sign_of(far, x));
}

FUNCTION(gelu)
{
    UNUSED;
    f32_lanes part = f32_normal_tail_part(f32_abs(x)), e = f32_exp_below(x * x * -0.5f);
    return x * f32_choose(x >= 0, fused(-part, e, f32_all(1)), part * e);
}

/* (1 + tanh(u)) / 2 = sigmoid(2u), which keeps its digits where u is negative. */
FUNCTION(gelu_tanh)
{
    UNUSED;
    f32_lanes inner = fused(x * x, f32_all(0.0713548163f), f32_all(1.59576912f));
    return x * OF(sigmoid, x * inner);
}

FUNCTION(sqrt) { return UNUSED, f32_sqrt(x); }

FUNCTION(reciprocal) { return UNUSED, 1 / x; }

FUNCTION(abs) { return UNUSED, f32_abs(x); }

FUNCTION(negative) { return UNUSED, -x; }

FUNCTION(sign)
{
    UNUSED;
    return f32_choose(x > 0, f32_all(1), f32_choose(x < 0, f32_all(-1), x));
}

/* To the nearest whole number, even ones at ties; from 2^23 on all numbers are whole. */
FUNCTION(round)
{
    UNUSED;
    f32_lanes z = f32_abs(x), rounded = (z + 0x1p23f) - 0x1p23f;
    return f32_choose(z < 0x1p23f, f32_with_sign_of(rounded, x), x);
}

FUNCTION(floor)
{
    UNUSED;
    f32_lanes y = OF(round, x);
    return f32_choose(y > x, y - 1, y);
}

FUNCTION(ceil)
{
    UNUSED;
    f32_lanes y = OF(round, x);
    return f32_choose(y < x, y + 1, y);
}

/* ---- by number, over arrays ------------------------------------------------------------------- */

/* Their numbers, the cheap ones first (`is_cheap`); kernels hand out the names (`functions` of
 * pointwise.pyx) for the lowerings. */
#define FUNCTIONS(EACH)                                                                         \
    EACH(identity) EACH(relu) EACH(clip) EACH(leaky_relu) EACH(thresholded_relu) EACH(exp)      \
    EACH(log) EACH(elu) EACH(selu) EACH(celu) EACH(softplus) EACH(softsign) EACH(hard_sigmoid)  \
    EACH(hard_swish) EACH(sigmoid) EACH(silu) EACH(mish) EACH(tanh) EACH(erf) EACH(gelu)        \
    EACH(gelu_tanh) EACH(sqrt) EACH(reciprocal) EACH(abs) EACH(negative) EACH(sign) EACH(round) \
    EACH(floor) EACH(ceil)

#define NUMBER_OF(name) FUNCTION_##name,
enum { FUNCTIONS(NUMBER_OF) N_FUNCTIONS };
#undef NUMBER_OF

/* y[i] = function(x[i]) for i < n; y may be x. */
#define APPLY(name)                                                                             \
    static void apply_##name(const float *x, float *y, ptrdiff_t n, float alpha, float beta)    \
    {                                                                                           \
        const f32_lanes a = f32_all(alpha), b = f32_all(beta);                                  \
        ptrdiff_t i = 0;                                                                        \
        for (; i + F32_LANES <= n; i += F32_LANES)                                              \
            f32_store(y + i, of_##name(f32_load(x + i), a, b));                                \
        if (i < n) f32_store_part(y + i, of_##name(f32_load_part(x + i, n - i), a, b), n - i); \
    }
FUNCTIONS(APPLY)
#undef APPLY

INLINE void apply(int function, const float *x, float *y, ptrdiff_t n, float alpha, float beta)
{
#define ADDRESS_OF(name) apply_##name,
    static void (*const table[])(const float *, float *, ptrdiff_t, float, float) = {
        FUNCTIONS(ADDRESS_OF)};
#undef ADDRESS_OF
    table[function](x, y, n, alpha, beta);
}

#undef FUNCTION
#undef UNUSED

/* ---- behind a product ------------------------------------------------------------------------- */

typedef struct {
    int function;
    float alpha, beta;
} Activation;

/* What costs an instruction or three is applied to sums in registers; the rest, by `finish`, to what
 * was stored of them a moment ago: as it were inside of a tile it would spill all of its registers. */
INLINE int is_cheap(const Activation *activation)
{
    return activation->function <= FUNCTION_leaky_relu;
}

/* A cheap function of all values, which are an array of vectors with literal bounds. */
#define ACTIVATE(activation, n, values)                                                         \
    do {                                                                                        \
        const f32_lanes alpha_ = f32_all((activation)->alpha);                                  \
        const f32_lanes beta_ = f32_all((activation)->beta);                                    \
        switch ((activation)->function) {                                                       \
            ACTIVATE_CASE(relu, n, values)                                                      \
            ACTIVATE_CASE(clip, n, values)                                                      \
            ACTIVATE_CASE(leaky_relu, n, values)                                                \
        }                                                                                       \
    } while (0)
#define ACTIVATE_CASE(name, n, values)                                                          \
    case FUNCTION_##name:                                                                       \
        UNROLL for (int i_ = 0; i_ < (n); i_++)                                                 \
            (values)[i_] = of_##name((values)[i_], alpha_, beta_);                              \
        break;

/* A function that is not cheap, of n values where they lie. */
INLINE void finish(const Activation *activation, float *y, ptrdiff_t n)
{
    if (!is_cheap(activation))
        apply(activation->function, y, y, n, activation->alpha, activation->beta);
}

#endif
