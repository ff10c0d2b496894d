/* Packing plain C-ordered rows feature-major: out[f * n + r] = rows[r * step + f], n divisible by 4
 * for float.
 *
 * Element by element this takes about three cycles each, a tenth of assignment at d = 64, k = 256;
 * four rows by four features at a time, in registers, a third of one.
 */
#ifndef FASTVQ_PACK_H
#define FASTVQ_PACK_H

#include "lanes.h"

#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)

typedef float f32_four __attribute__((vector_size(16), aligned(4)));

/* Rows of one, two and three features, one after another: four rows at a time. */
INLINE void f32_unzip_two(const float *rows, ptrdiff_t n, float *out)
{
    for (ptrdiff_t r = 0; r < n; r += 4, rows += 8, out += 4) {
        f32_four a = *(const f32_four *)rows, b = *(const f32_four *)(rows + 4);
        *(f32_four *)out = SHUFFLE(a, b, 0, 2, 4, 6);
        *(f32_four *)(out + n) = SHUFFLE(a, b, 1, 3, 5, 7);
    }
}

INLINE void f32_unzip_three(const float *rows, ptrdiff_t n, float *out)
{
    for (ptrdiff_t r = 0; r < n; r += 4, rows += 12, out += 4) {
        f32_four a = *(const f32_four *)rows, b = *(const f32_four *)(rows + 4);
        f32_four c = *(const f32_four *)(rows + 8);
        f32_four x = SHUFFLE(a, b, 0, 3, 6, 6), y = SHUFFLE(a, b, 1, 4, 7, 7);
        f32_four z = SHUFFLE(a, b, 2, 5, 5, 5);
        *(f32_four *)out = SHUFFLE(x, c, 0, 1, 2, 5);
        *(f32_four *)(out + n) = SHUFFLE(y, c, 0, 1, 2, 6);
        *(f32_four *)(out + 2 * n) = SHUFFLE(z, c, 0, 1, 4, 7);
    }
}

static __attribute__((unused)) void f32_transpose(const float *rows, ptrdiff_t step, ptrdiff_t n,
                                                  ptrdiff_t d, float *out)
{
    if (d == step && d == 2) {
        f32_unzip_two(rows, n, out);
        return;
    }
    if (d == step && d == 3) {
        f32_unzip_three(rows, n, out);
        return;
    }
    ptrdiff_t f = 0;
    for (; f + 4 <= d; f += 4)
        for (ptrdiff_t r = 0; r < n; r += 4) {
            const float *at = rows + r * step + f;
            f32_four a = *(const f32_four *)at, b = *(const f32_four *)(at + step);
            f32_four c = *(const f32_four *)(at + 2 * step), e = *(const f32_four *)(at + 3 * step);
            f32_four ab = SHUFFLE(a, b, 0, 4, 1, 5), AB = SHUFFLE(a, b, 2, 6, 3, 7);
            f32_four ce = SHUFFLE(c, e, 0, 4, 1, 5), CE = SHUFFLE(c, e, 2, 6, 3, 7);
            float *to = out + f * n + r;
            *(f32_four *)to = SHUFFLE(ab, ce, 0, 1, 4, 5);
            *(f32_four *)(to + n) = SHUFFLE(ab, ce, 2, 3, 6, 7);
            *(f32_four *)(to + 2 * n) = SHUFFLE(AB, CE, 0, 1, 4, 5);
            *(f32_four *)(to + 3 * n) = SHUFFLE(AB, CE, 2, 3, 6, 7);
        }
    for (; f < d; f++)
        for (ptrdiff_t r = 0; r < n; r++) out[f * n + r] = rows[r * step + f];
}

static __attribute__((unused)) void f64_transpose(const double *rows, ptrdiff_t step, ptrdiff_t n, ptrdiff_t d,
                          double *out)
{
    for (ptrdiff_t f = 0; f < d; f++)
        for (ptrdiff_t r = 0; r < n; r++) out[f * n + r] = rows[r * step + f];
}

#endif
