/* Packing plain C-ordered rows feature-major: out[f * n + r] = rows[r * step + f], n divisible by 4
 * for float.
 *
 * Element by element this takes about three cycles each, a tenth of assignment at d = 64, k = 256;
 * four rows by four features at a time, in registers, a third of one. Few features get a loop
 * whose length the compiler knows.
 */
#ifndef FASTVQ_PACK_H
#define FASTVQ_PACK_H

#include "lanes.h"

#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)

typedef float f32_four __attribute__((vector_size(16), aligned(4)));

INLINE void f32_transpose_few(const float *rows, ptrdiff_t step, ptrdiff_t n, ptrdiff_t d,
                              float *out)
{
    for (ptrdiff_t r = 0; r < n; r++)
        UNROLL for (ptrdiff_t f = 0; f < d; f++) out[f * n + r] = rows[r * step + f];
}

static __attribute__((unused)) void f32_transpose(const float *rows, ptrdiff_t step, ptrdiff_t n, ptrdiff_t d, float *out)
{
    switch (d) {
    case 1: f32_transpose_few(rows, step, n, 1, out); return;
    case 2: f32_transpose_few(rows, step, n, 2, out); return;
    case 3: f32_transpose_few(rows, step, n, 3, out); return;
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
