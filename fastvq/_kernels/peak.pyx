"""The machine's multiply-add rate, to hold the other kernels against. For benchmarks only."""

cdef extern from *:
    """
    #include "lanes.h"
    /* Twelve chains: more than latency times units, fewer than registers. The empty asm makes each
       sum look changed, so that the compiler cannot work out several rounds at once. */
    #if defined(__x86_64__)
    #define TOUCH(vector) __asm__ volatile("" : "+x"(vector))
    #else
    #define TOUCH(vector) __asm__ volatile("" : "+w"(vector))
    #endif
    #define DEFINE_ROUNDS(REAL, LANES, NAME)                                                    \\
        static double NAME(long rounds)                                                         \\
        {                                                                                       \\
            LANES sums[12], factor = (LANES){0} + (REAL)0.999, term = (LANES){0} + (REAL)1e-3;  \\
            UNROLL for (int i = 0; i < 12; i++) sums[i] = term * (REAL)i;                       \\
            for (long round = 0; round < rounds; round++) {                                     \\
                UNROLL for (int i = 0; i < 12; i++)                                             \\
                {                                                                               \\
                    sums[i] = sums[i] * factor + term;                                          \\
                    TOUCH(sums[i]);                                                             \\
                }                                                                               \\
            }                                                                                   \\
            for (int i = 1; i < 12; i++) sums[0] += sums[i];                                    \\
            return (double)sums[0][0];                                                          \\
        }
    DEFINE_ROUNDS(float, f32_lanes, f32_rounds)
    DEFINE_ROUNDS(double, f64_lanes, f64_rounds)
    """
    enum:
        F32_LANES
        F64_LANES
    double f32_rounds(long) noexcept nogil
    double f64_rounds(long) noexcept nogil


def multiply_add_peak(double seconds=0.2, str dtype="f"):
    """Best multiply-add rate seen in about `seconds` on the calling thread, in FLOP/s.

    `dtype` is "f" for float32 or "d" for float64. A multiply-add counts as two operations.
    The GIL is released, so that Python threads can measure several cores.
    """
    from time import perf_counter
    cdef long rounds = 200_000
    cdef int lanes = F32_LANES if dtype == "f" else F64_LANES
    end = perf_counter() + seconds
    best = 0.0
    while best == 0 or perf_counter() < end:
        began = perf_counter()
        with nogil:
            if lanes == F32_LANES:
                f32_rounds(rounds)
            else:
                f64_rounds(rounds)
        best = max(best, 2.0 * 12 * lanes * rounds / (perf_counter() - began))
    return best
