/* Functions of one value that are worked out in float64 and rounded once: trigonometry, hyperbolic
 * functions and their inverses, quantiles of the normal distribution.
 *
 * Reduced arguments cancel, and float64 has the digits for that. Plain loops, of which GCC makes
 * vectors; each multiply-add is asked for by name, as in functions.h, so that bits depend neither on
 * the place of a value nor, where there is a fused one, on the level. Results are within a unit in
 * the last place (tests/test_kernel_pointwise.py). NaN passes every comparison here as false.
 * Coefficients: tests/minimax.py.
 */
#ifndef FASTVQ_FUNCTIONS_WIDE_H
#define FASTVQ_FUNCTIONS_WIDE_H

#include "lanes.h"

#define wide_fused f64_multiply_add
#define WIDE(name) INLINE double wide_##name(double x)

/* ---- parts ------------------------------------------------------------------------------------ */

/* coefficient[0] + x (coefficient[1] + x (...)), for a literal number of them. */
INLINE double wide_polynomial(double x, const int n, const double *coefficient)
{
    double y = coefficient[n - 1];
    UNROLL for (int i = n - 2; i >= 0; i--) y = wide_fused(x, y, coefficient[i]);
    return y;
}

#define WIDE_POLYNOMIAL(x, ...)                                                                 \
    wide_polynomial(x, sizeof((const double[]){__VA_ARGS__}) / 8, (const double[]){__VA_ARGS__})

INLINE uint64_t bits_of(double x)
{
    uint64_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE double of_bits(uint64_t bits)
{
    double x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE double wide_abs(double x) { return of_bits(bits_of(x) & ~(1ull << 63)); }

INLINE double wide_with_sign_of(double x, double sign)
{
    return of_bits(bits_of(x) | (bits_of(sign) & 1ull << 63));
}

/* 1.5 * 2^52 added and taken away rounds to a whole number, which stands in the lowest bits in
 * between. */
static const double WIDE_ROUNDER = 0x1.8p52;

/* exp(x) - 1 for x in -100 .. 100, and NaN: 2^k (1 + q) - 1 with exp(r) = 1 + q. */
WIDE(expm1)
{
    const double shifted = wide_fused(x, 1.4426950408889634, WIDE_ROUNDER);
    const double k = shifted - WIDE_ROUNDER;
    const double r = wide_fused(k, -0x1.abc9e3b39803fp-56, wide_fused(k, -0x1.62e42fefa39efp-1, x));
    const double p = WIDE_POLYNOMIAL(r, 0.49999999999910193, 0.16666666719017918,
                                     0.041666666853581234, 0.0083332984769575317,
                                     0.0013888824164732703, 0.00019899278486120413,
                                     2.4876165909124044e-5);
    const double q = wide_fused(r * r, p, r);
    const double power = of_bits((bits_of(shifted) - bits_of(WIDE_ROUNDER) + 1023) << 52);
    return wide_fused(power, q, power - 1);
}

/* log(x) for normal x > 0: n ln 2 + 2 atanh(s), the rest being in √½ .. √2. */
WIDE(log)
{
    const uint64_t bits = bits_of(x), one = 1023ull << 52, root = bits_of(0x1.6a09e667f3bcdp-1);
    const uint64_t exponent = (bits - root + one) >> 52; /* plus 1023 */
    const double n = of_bits(exponent | bits_of(0x1p52)) - (0x1p52 + 1023);
    const double f = of_bits(bits - (exponent << 52) + one) - 1, s = f / (f + 2), u = s * s;
    const double p = WIDE_POLYNOMIAL(u, 0.33333333276535509, 0.20000061357465211,
                                     0.14275370698756312, 0.11666133875614649);
    return wide_fused(n, 0x1.62e42fefa39efp-1, 2 * wide_fused(s * u, p, s));
}

/* log(1 + x) for 0 <= x < 2^1023, with what the sum has lost of x. */
WIDE(log1p)
{
    const double sum = 1 + x;
    return wide_log(sum) + (x - (sum - 1)) / sum;
}

/* ---- trigonometry ----------------------------------------------------------------------------- */

static const double HALF_PI = 1.5707963267948966;

/* x = quarter π/2 + rest; of quarter the lowest two bits count. */
typedef struct {
    double rest;
    uint64_t quarter;
} Turns;

/* Up to here a multiple of the 33 upper bits of π/2 is exact (Cody and Waite, "Software Manual for
 * the Elementary Functions", 1980). */
static const float FEW_TURNS = 0x1p19f;

INLINE Turns few_turns(double x)
{
    const double shifted = wide_fused(x, 0.63661977236758134, WIDE_ROUNDER);
    const double n = shifted - WIDE_ROUNDER;
    const double upper = wide_fused(n, -0x1.921fb544p0, x);
    return (Turns){wide_fused(n, -0x1.0b4611a626331p-34, upper), bits_of(shifted)};
}

/* Beyond, x = m 2^k is multiplied by those bits of 2/π that do not make it a multiple of 4, exactly
 * (Payne and Hanek, "Radian Reduction for Trigonometric Functions", 1983). */
static Turns many_turns(float x)
{
    static const uint32_t two_over_pi[] = {0,          0xa2f9836e, 0x4e441529, 0xfc2757d1,
                                           0xf534ddc0, 0xdb629599, 0x3c439041, 0xfe5163ab};
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    const int exponent = bits >> 23 & 255, first = exponent - 150 + 30; /* the first bit that counts */
    if (exponent == 255) return (Turns){x - x, 0};
    const uint32_t *word = two_over_pi + first / 32;
    const uint64_t mantissa = (bits & 0x7fffff) | 0x800000;
    uint64_t part[3];
    for (int i = 0; i < 3; i++)
        part[i] = ((uint64_t)word[i] << 32 | word[i + 1]) << first % 32 >> 32;
    /* Units of 2^-62: what is beyond four quarters falls off the top. */
    uint64_t product = mantissa * part[0] << 32;
    product += mantissa * part[1] + (mantissa * part[2] >> 32);
    const uint64_t quarter = (product + (1ull << 61)) >> 62;
    const double rest = (double)(int64_t)(product - (quarter << 62)) * (0x1p-62 * HALF_PI);
    return bits >> 31 ? (Turns){-rest, -quarter} : (Turns){rest, quarter};
}

INLINE double sine_of_rest(double r)
{
    const double u = r * r;
    const double p = WIDE_POLYNOMIAL(u, -0.1666666666666389, 0.0083333333310813411,
                                     -0.00019841266918702553, 2.7555991374773313e-6,
                                     -2.4805672326476333e-8);
    return wide_fused(r * u, p, r);
}

INLINE double cosine_of_rest(double r)
{
    const double u = r * r;
    const double p = WIDE_POLYNOMIAL(u, 0.041666666664325177, -0.0013888887673175884,
                                     2.4800600878147758e-5, -2.7301013343170885e-7);
    return wide_fused(u * u, p, wide_fused(u, -0.5, 1));
}

INLINE double sine_of(Turns t)
{
    const double y = t.quarter & 1 ? cosine_of_rest(t.rest) : sine_of_rest(t.rest);
    return of_bits(bits_of(y) ^ (t.quarter & 2) << 62);
}

INLINE double cosine_of(Turns t)
{
    t.quarter += 1;
    return sine_of(t);
}

INLINE double tangent_of(Turns t)
{
    const double sine = sine_of_rest(t.rest), cosine = cosine_of_rest(t.rest);
    return t.quarter & 1 ? -cosine / sine : sine / cosine;
}

WIDE(atan)
{
    const double z = wide_abs(x), a = z > 1 ? 1 / z : z, u = a * a;
    const double p = WIDE_POLYNOMIAL(u, -0.33333333332573216, 0.19999999727657023,
                                     -0.14285698096728956, 0.11110731407225874,
                                     -0.090862462184536114, 0.076578065859138328,
                                     -0.064996383875158123, 0.053240663435859676,
                                     -0.039234454499303091, 0.023734948499479345,
                                     -0.010578519100357065, 0.0029974543578924126,
                                     -0.00039814615897547993);
    const double y = wide_fused(a * u, p, a);
    return wide_with_sign_of(z > 1 ? HALF_PI - y : y, x);
}

/* asin(x) for x in 0 .. 1/2. */
INLINE double arcsine_near(double x)
{
    const double u = x * x;
    const double p = WIDE_POLYNOMIAL(u, 0.16666666665336812, 0.075000006614364361,
                                     0.04464231817217629, 0.030398606283046072,
                                     0.022121290118590953, 0.019371904859577214,
                                     0.0052517056831593783, 0.029524576282793725);
    return wide_fused(x * u, p, x);
}

/* asin(z) = π/2 - 2 asin(√((1 - z) / 2)), whose root is of a negative number beyond 1: NaN. */
WIDE(asin)
{
    const double z = wide_abs(x);
    const double y = arcsine_near(z > 0.5 ? __builtin_sqrt((1 - z) * 0.5) : z);
    return wide_with_sign_of(z > 0.5 ? HALF_PI - 2 * y : y, x);
}

WIDE(acos)
{
    const double z = wide_abs(x);
    const double y = arcsine_near(z > 0.5 ? __builtin_sqrt((1 - z) * 0.5) : z);
    const double near = HALF_PI - wide_with_sign_of(y, x);
    return z > 0.5 ? (x < 0 ? 2 * HALF_PI - 2 * y : 2 * y) : near;
}

/* ---- hyperbolic functions --------------------------------------------------------------------- */

/* exp(|x|) - 1; 100 is beyond what float32 holds of any of them. */
INLINE double wide_growth(double x)
{
    const double z = wide_abs(x);
    return wide_expm1(z > 100 ? 100 : z);
}

WIDE(sinh)
{
    const double e = wide_growth(x);
    return wide_with_sign_of(0.5 * (e + e / (e + 1)), x);
}

WIDE(cosh)
{
    const double power = wide_growth(x) + 1;
    return 0.5 * (power + 1 / power);
}

WIDE(asinh)
{
    const double z = wide_abs(x), root = __builtin_sqrt(wide_fused(z, z, 1));
    const double y = wide_log1p(z + z * z / (1 + root));
    return z < __builtin_inf() ? wide_with_sign_of(y, x) : x;
}

WIDE(acosh)
{
    const double t = x - 1, y = wide_log1p(t + __builtin_sqrt(wide_fused(t, t, 2 * t)));
    return x < __builtin_inf() ? (x >= 1 ? y : __builtin_nan("")) : x;
}

WIDE(atanh)
{
    const double z = wide_abs(x), y = 0.5 * wide_log1p(2 * z / (1 - z));
    const double edge = z == 1 ? __builtin_inf() : __builtin_nan("");
    return wide_with_sign_of(z < 1 ? y : edge, x);
}

/* ---- the normal distribution ------------------------------------------------------------------ */

/* z with Φ(z) = x: (2x - 1) times a function of w = -log(4x (1 - x)), or, in the tails, of 1 / √w
 * (as Giles has it, "Approximating the erfinv function", 2010). */
WIDE(normal_quantile)
{
    const double w = -wide_log(4 * x * (1 - x)), root = __builtin_sqrt(w), t = 1 / root;
    const double near = WIDE_POLYNOMIAL(w, 1.253314143794973, 0.32811654626358566,
                                        0.016335926713810147, -0.003310848048550955,
                                        -0.00016737057854538097, 5.312365445232573e-05,
                                        1.0239983770848082e-05, -4.117649125418188e-06,
                                        5.413362279367311e-07, -3.427891120887828e-08,
                                        8.84602454140271e-10);
    const double far = root * WIDE_POLYNOMIAL(t, 1.4139926871142077, 0.007394318192660879,
                                              -3.123336718071808, 30.91832336211263,
                                              -285.7059438742081, 2028.1145567989531,
                                              -10258.320926518578, 36175.82283571683,
                                              -86543.79028695908, 133318.3909731042,
                                              -118812.143468904, 46403.23675167414);
    const double y = (2 * x - 1) * (w < 6 ? near : far);
    const double edge = x == 0 ? -__builtin_inf() : x == 1 ? __builtin_inf() : __builtin_nan("");
    return x > 0 ? (x < 1 ? y : edge) : edge;
}

/* ---- by number, over arrays ------------------------------------------------------------------- */

#define TURNING(EACH) EACH(sin, sine_of) EACH(cos, cosine_of) EACH(tan, tangent_of)
#define WIDE_FUNCTIONS(EACH)                                                                    \
    EACH(asin) EACH(acos) EACH(atan) EACH(sinh) EACH(cosh) EACH(asinh) EACH(acosh) EACH(atanh)  \
    EACH(normal_quantile)

typedef void (*WideFunction)(const float *, float *, ptrdiff_t);

#define APPLY(name)                                                                             \
    static void apply_wide_##name(const float *x, float *y, ptrdiff_t n)                        \
    {                                                                                           \
        for (ptrdiff_t i = 0; i < n; i++) y[i] = (float)wide_##name(x[i]);                      \
    }
WIDE_FUNCTIONS(APPLY)
#undef APPLY

/* By chunks: of one in which no value is large the loop has no branch. y may be x. */
enum { TURNING_CHUNK = 256 };

#define APPLY(name, of_turns)                                                                   \
    static void apply_wide_##name(const float *x, float *y, ptrdiff_t n)                        \
    {                                                                                           \
        for (ptrdiff_t first = 0; first < n; first += TURNING_CHUNK) {                          \
            const ptrdiff_t stop = first + TURNING_CHUNK < n ? first + TURNING_CHUNK : n;       \
            int large = 0;                                                                      \
            for (ptrdiff_t i = first; i < stop; i++)                                            \
                large |= !(__builtin_fabsf(x[i]) < FEW_TURNS);                                  \
            if (large)                                                                          \
                for (ptrdiff_t i = first; i < stop; i++)                                        \
                    y[i] = (float)of_turns(__builtin_fabsf(x[i]) < FEW_TURNS                    \
                                               ? few_turns(x[i])                                \
                                               : many_turns(x[i]));                             \
            else                                                                                \
                for (ptrdiff_t i = first; i < stop; i++)                                        \
                    y[i] = (float)of_turns(few_turns(x[i]));                                    \
        }                                                                                       \
    }
TURNING(APPLY)
#undef APPLY

#define NAME_OF(name, ...) #name,
static const char *const wide_function_names[] = {TURNING(NAME_OF) WIDE_FUNCTIONS(NAME_OF)};
#undef NAME_OF
#define ADDRESS_OF(name, ...) apply_wide_##name,
static const WideFunction wide_functions[] = {TURNING(ADDRESS_OF) WIDE_FUNCTIONS(ADDRESS_OF)};
#undef ADDRESS_OF
enum { N_WIDE_FUNCTIONS = sizeof wide_functions / sizeof *wide_functions };

#undef WIDE
#endif
