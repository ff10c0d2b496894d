/* The loops of scalar.pyx over values that lie side by side, for every pair of types.
 *
 * In C, because they are to be vectorised from floats of four or eight bytes to codes of one or
 * two: Cython's minimum and comparison become branches, which are not.
 */
#ifndef FASTVQ_SCALAR_H
#define FASTVQ_SCALAR_H

#include <float.h>
#include "lanes.h"

/* 1.5 * 2^23: added to a number from 0 to 2^16, it rounds that to an integer, ties to even, and
 * leaves the integer in the lowest bits. No rounding instruction, which the first level lacks. */
#define F32_ROUNDER 12582912.0f
#define F64_ROUNDER 6755399441055744.0

/* One row of parameters for each value: of a period of features, repeated by the caller. */
#define DEFINE_ENCODE(NAME, REAL, BITS, CODE, ROUNDER, ABS, LARGEST)                            \
    static __attribute__((unused)) int NAME(                                                    \
        const REAL *restrict x, ptrdiff_t n, const REAL *restrict origin,                       \
        const REAL *restrict inverse, const REAL *restrict least, const REAL *restrict most,    \
        CODE *restrict codes)                                                                   \
    {                                                                                           \
        BITS outside = 0;                                                                       \
        for (ptrdiff_t i = 0; i < n; i++) {                                                     \
            REAL level = (x[i] - origin[i]) * inverse[i];                                       \
            BITS bits;                                                                          \
            level = level > least[i] ? level : least[i];                                        \
            level = level < most[i] ? level : most[i];                                          \
            level += ROUNDER;                                                                   \
            __builtin_memcpy(&bits, &level, sizeof bits);                                       \
            codes[i] = (CODE)bits;                                                              \
            outside |= !(ABS(x[i]) <= LARGEST);                                                 \
        }                                                                                       \
        return outside != 0;                                                                    \
    }

DEFINE_ENCODE(f32_encode_u8, float, int32_t, uint8_t, F32_ROUNDER, __builtin_fabsf, FLT_MAX)
DEFINE_ENCODE(f32_encode_u16, float, int32_t, uint16_t, F32_ROUNDER, __builtin_fabsf, FLT_MAX)
DEFINE_ENCODE(f64_encode_u8, double, int64_t, uint8_t, F64_ROUNDER, __builtin_fabs, DBL_MAX)
DEFINE_ENCODE(f64_encode_u16, double, int64_t, uint16_t, F64_ROUNDER, __builtin_fabs, DBL_MAX)

#define DEFINE_DECODE(NAME, REAL, CODE, MULTIPLY_ADD)                                           \
    static __attribute__((unused)) void NAME(                                                   \
        const CODE *restrict codes, ptrdiff_t n, const REAL *restrict origin,                   \
        const REAL *restrict scale, REAL *restrict x)                                           \
    {                                                                                           \
        for (ptrdiff_t i = 0; i < n; i++)                                                       \
            x[i] = MULTIPLY_ADD((REAL)codes[i], scale[i], origin[i]);                           \
    }

DEFINE_DECODE(f32_decode_u8, float, uint8_t, f32_multiply_add)
DEFINE_DECODE(f32_decode_u16, float, uint16_t, f32_multiply_add)
DEFINE_DECODE(f64_decode_u8, double, uint8_t, f64_multiply_add)
DEFINE_DECODE(f64_decode_u16, double, uint16_t, f64_multiply_add)

/* Least and largest of each of n running features; NaN is kept out of them and reported. */
#define DEFINE_EXTREMES(NAME, REAL, BITS, ABS, LARGEST)                                         \
    static __attribute__((unused)) int NAME(                                                    \
        const REAL *restrict x, ptrdiff_t n, REAL *restrict least, REAL *restrict most)         \
    {                                                                                           \
        BITS outside = 0;                                                                       \
        for (ptrdiff_t i = 0; i < n; i++) {                                                     \
            least[i] = x[i] < least[i] ? x[i] : least[i];                                       \
            most[i] = x[i] > most[i] ? x[i] : most[i];                                          \
            outside |= !(ABS(x[i]) <= LARGEST);                                                 \
        }                                                                                       \
        return outside != 0;                                                                    \
    }

DEFINE_EXTREMES(f32_extremes, float, int32_t, __builtin_fabsf, FLT_MAX)
DEFINE_EXTREMES(f64_extremes, double, int64_t, __builtin_fabs, DBL_MAX)

#define DEFINE_FINITE(NAME, REAL, BITS, ABS, LARGEST)                                           \
    static __attribute__((unused)) int NAME(const REAL *x, ptrdiff_t n)                         \
    {                                                                                           \
        BITS outside = 0;                                                                       \
        for (ptrdiff_t i = 0; i < n; i++) outside |= !(ABS(x[i]) <= LARGEST);                   \
        return outside == 0;                                                                    \
    }

DEFINE_FINITE(f32_finite, float, int32_t, __builtin_fabsf, FLT_MAX)
DEFINE_FINITE(f64_finite, double, int64_t, __builtin_fabs, DBL_MAX)

/* How many of the thresholds lie below each of n values that are `step` apart.
 *
 * A value's bucket says how many lie below the bucket; which of the next 2^halvings - 1 do is
 * found by halving. The bucket is a rising function of the value, rounding included, and the
 * thresholds' buckets were found by the same one: thresholds of lower buckets are smaller than the
 * value, those of higher ones are not.
 */
#define DEFINE_SEARCH(NAME, REAL, CODE)                                                         \
    INLINE void NAME##_by(const REAL *x, ptrdiff_t n, ptrdiff_t step, REAL origin,              \
                          REAL inverse, REAL last, const uint16_t *below,                       \
                          const REAL *thresholds, int halvings, CODE *codes)                    \
    {                                                                                           \
        for (ptrdiff_t i = 0; i < n; i++, x += step, codes += step) {                           \
            REAL value = *x, bucket = (value - origin) * inverse;                               \
            bucket = bucket > 0 ? bucket : 0;                                                   \
            bucket = bucket < last ? bucket : last;                                             \
            uint32_t code = below[(int)bucket];                                                 \
            for (int h = halvings - 1; h >= 0; h--)                                             \
                code += (uint32_t)(thresholds[code + (1u << h) - 1] < value) << h;              \
            *codes = (CODE)code;                                                                \
        }                                                                                       \
    }                                                                                           \
    /* Not inlined: within its callers' loops there are too few registers. */                   \
    static __attribute__((unused, noinline)) void NAME(                                         \
        const REAL *x, ptrdiff_t n, ptrdiff_t step, REAL origin, REAL inverse, REAL last,       \
        const uint16_t *below, const REAL *thresholds, int halvings, CODE *codes)               \
    {                                                                                           \
        switch (halvings) { /* mostly one to three: unrolled */                                 \
        case 1:                                                                                 \
            NAME##_by(x, n, step, origin, inverse, last, below, thresholds, 1, codes);          \
            break;                                                                              \
        case 2:                                                                                 \
            NAME##_by(x, n, step, origin, inverse, last, below, thresholds, 2, codes);          \
            break;                                                                              \
        case 3:                                                                                 \
            NAME##_by(x, n, step, origin, inverse, last, below, thresholds, 3, codes);          \
            break;                                                                              \
        default:                                                                                \
            NAME##_by(x, n, step, origin, inverse, last, below, thresholds, halvings, codes);   \
        }                                                                                       \
    }

DEFINE_SEARCH(f32_search_u8, float, uint8_t)
DEFINE_SEARCH(f32_search_u16, float, uint16_t)
DEFINE_SEARCH(f64_search_u8, double, uint8_t)
DEFINE_SEARCH(f64_search_u16, double, uint16_t)

#endif
