/* What scores become: curves of columns, and probabilities of classes from those of pairs.
 *
 * In float64, each value or row by itself; every multiply-add is asked for by name, so that bits are
 * the same wherever there is a fused one.
 */
#ifndef FASTVQ_SCORES_H
#define FASTVQ_SCORES_H

#include "lanes.h"

/* ---- curves ----------------------------------------------------------------------------------- */

/* The value at x of the line through n points, in ascending order, and their values. */
INLINE float on_curve(float x, int64_t n, const float *point, const float *value)
{
    int64_t at = 0; /* the last point not above x, of `left` that are still in question */
    for (int64_t left = n; left > 1;) {
        const int64_t half = left / 2;
        at += point[at + half] <= x ? half : 0;
        left -= half;
    }
    if (x != x) return x;
    if (at == n - 1 || x <= point[0]) return value[at];
    const double rise = (double)value[at + 1] - value[at];
    const double slope = rise / ((double)point[at + 1] - point[at]);
    return (float)f64_multiply_add(slope, (double)x - point[at], value[at]);
}

/* One row of values; the points of column c are first[c] .. first[c + 1]. */
INLINE void row_on_curves(const float *x, int64_t columns, const int64_t *first, const float *point,
                          const float *value, float *y)
{
    for (int64_t c = 0; c < columns; c++)
        y[c] = on_curve(x[c], first[c + 1] - first[c], point + first[c], value + first[c]);
}

/* ---- pairs ------------------------------------------------------------------------------------ */

/* The p that minimises p'Qp with Σ p = 1, as near to it as LIBSVM comes: see the operator's
 * definition. pair (k (k - 1) / 2,), p (k,); room for (k + 2) k numbers. */
static void couple_row(const float *pair, int64_t k, float *y, double *room)
{
    double *Q = room, *Qp = Q + k * k, *p = Qp + k;
    for (int64_t i = 0; i < k; i++) Q[i * k + i] = 0, p[i] = 1.0 / (double)k;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = i + 1; j < k; j++) {
            const double r = *pair++, s = 1 - r; /* that it is i, that it is j */
            Q[i * k + i] = f64_multiply_add(s, s, Q[i * k + i]);
            Q[j * k + j] = f64_multiply_add(r, r, Q[j * k + j]);
            Q[i * k + j] = Q[j * k + i] = -s * r;
        }
    for (int64_t round = 0; round < (k > 100 ? k : 100); round++) {
        double pQp = 0, worst = 0;
        for (int64_t i = 0; i < k; i++) {
            Qp[i] = 0;
            for (int64_t j = 0; j < k; j++) Qp[i] = f64_multiply_add(Q[i * k + j], p[j], Qp[i]);
            pQp = f64_multiply_add(p[i], Qp[i], pQp);
        }
        for (int64_t i = 0; i < k; i++) {
            const double error = __builtin_fabs(Qp[i] - pQp);
            worst = error > worst ? error : worst;
        }
        if (worst < 0.005 / (double)k) break;
        for (int64_t i = 0; i < k; i++) {
            const double *row = Q + i * k, step = (pQp - Qp[i]) / row[i], total = 1 + step;
            p[i] += step;
            const double gain = f64_multiply_add(step, row[i], 2 * Qp[i]);
            pQp = f64_multiply_add(step, gain, pQp) / total / total;
            for (int64_t j = 0; j < k; j++) {
                Qp[j] = f64_multiply_add(step, row[j], Qp[j]) / total;
                p[j] /= total;
            }
        }
    }
    for (int64_t i = 0; i < k; i++) y[i] = (float)p[i];
}

#endif
