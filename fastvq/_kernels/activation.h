/* Activations that a product applies to its sums while they are still in registers.
 *
 * Only what costs an instruction or three is here. NaN passes: a minimum or maximum gives its second
 * operand where one is NaN.
 */
#ifndef FASTVQ_ACTIVATION_H
#define FASTVQ_ACTIVATION_H

#include "lanes.h"

/* Their order is known to runtime/lowering/products.py. */
enum { IDENTITY, RELU, CLIP, LEAKY_RELU };

typedef struct {
    int function;
    float alpha, beta;
} Activation;

INLINE f32_lanes leaky(f32_lanes x, f32_lanes slope)
{
    i32_lanes keep = x >= (f32_lanes){0};
    return (f32_lanes)((keep & (i32_lanes)x) | (~keep & (i32_lanes)(x * slope)));
}

/* The function of all values, which are an array of vectors with literal bounds. */
#define ACTIVATE(activation, n, values)                                                         \
    do {                                                                                        \
        f32_lanes alpha_ = (f32_lanes){0} + (activation)->alpha;                                \
        f32_lanes beta_ = (f32_lanes){0} + (activation)->beta;                                  \
        switch ((activation)->function) {                                                       \
        case RELU:                                                                              \
            UNROLL for (int i_ = 0; i_ < (n); i_++)                                             \
                (values)[i_] = f32_max((f32_lanes){0}, (values)[i_]);                           \
            break;                                                                              \
        case CLIP:                                                                              \
            UNROLL for (int i_ = 0; i_ < (n); i_++)                                             \
                (values)[i_] = f32_min(beta_, f32_max(alpha_, (values)[i_]));                   \
            break;                                                                              \
        case LEAKY_RELU:                                                                        \
            UNROLL for (int i_ = 0; i_ < (n); i_++) (values)[i_] = leaky((values)[i_], alpha_); \
            break;                                                                              \
        }                                                                                       \
    } while (0)

#endif
