/* Vectors of the level being built: as many lanes as its registers hold.
 *
 * GCC and Clang give arithmetic on vector types; what they lack in C, or turn into long
 * sequences, is here: the minimum and the choice under a comparison, one instruction each where
 * the level has it. With plain vector operators GCC 12 makes a minimum out of a comparison and
 * two blends, and assignment at d = 4, k = 256 takes 1.3 to 1.5 times as long.
 */
#ifndef FASTVQ_LANES_H
#define FASTVQ_LANES_H

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX512F__)
#define LANE_BYTES 64
#define LANE_REGISTERS 32
#elif defined(__AVX__)
#define LANE_BYTES 32
#define LANE_REGISTERS 16
#elif defined(__aarch64__)
#define LANE_BYTES 16
#define LANE_REGISTERS 32
#else
#define LANE_BYTES 16
#define LANE_REGISTERS 16
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

enum { F32_LANES = LANE_BYTES / 4, F64_LANES = LANE_BYTES / 8 };

typedef float f32_lanes __attribute__((vector_size(LANE_BYTES)));
typedef double f64_lanes __attribute__((vector_size(LANE_BYTES)));
typedef int32_t i32_lanes __attribute__((vector_size(LANE_BYTES)));
typedef int64_t i64_lanes __attribute__((vector_size(LANE_BYTES)));

/* a * b + c, rounded once where the level can: told, because a compiler left to itself fuses or
 * does not, and fuses the one or the other product of a sum, as registers and loops suggest. */
#if defined(__FMA__) || defined(__aarch64__)
#define f32_multiply_add __builtin_fmaf
#define f64_multiply_add __builtin_fma
#else
INLINE float f32_multiply_add(float a, float b, float c) { return a * b + c; }
INLINE double f64_multiply_add(double a, double b, double c) { return a * b + c; }
#endif

INLINE f32_lanes f32_lanes_multiply_add(f32_lanes a, f32_lanes b, f32_lanes c)
{
#if defined(__AVX512F__)
    return (f32_lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (f32_lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (f32_lanes)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* Vectors at any address, and their first `count` lanes alone: what lies behind is not touched. */
typedef float f32_loose __attribute__((vector_size(LANE_BYTES), aligned(4), may_alias));

INLINE f32_lanes f32_load(const float *at) { return *(const f32_loose *)at; }

INLINE void f32_store(float *at, f32_lanes value) { *(f32_loose *)at = value; }

#if defined(__AVX512F__)
INLINE f32_lanes f32_load_part(const float *at, ptrdiff_t count)
{
    return (f32_lanes)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), at);
}

INLINE void f32_store_part(float *at, f32_lanes value, ptrdiff_t count)
{
    _mm512_mask_storeu_ps(at, (__mmask16)((1u << count) - 1), (__m512)value);
}
#elif defined(__AVX2__)
INLINE __m256i f32_first(ptrdiff_t count)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE f32_lanes f32_load_part(const float *at, ptrdiff_t count)
{
    return (f32_lanes)_mm256_maskload_ps(at, f32_first(count));
}

INLINE void f32_store_part(float *at, f32_lanes value, ptrdiff_t count)
{
    _mm256_maskstore_ps(at, f32_first(count), (__m256)value);
}
#else
INLINE f32_lanes f32_load_part(const float *at, ptrdiff_t count)
{
    f32_lanes value = {0};
    __builtin_memcpy(&value, at, (size_t)count * sizeof(float));
    return value;
}

INLINE void f32_store_part(float *at, f32_lanes value, ptrdiff_t count)
{
    __builtin_memcpy(at, &value, (size_t)count * sizeof(float));
}
#endif

/* Hides from the compiler that a value is zero: it would drop the first sum of 0 + a * a + b * b
 * and be free then to fuse either product. */
#if defined(__x86_64__)
#define OPAQUE(value) __asm__("" : "+x"(value))
#elif defined(__aarch64__)
#define OPAQUE(value) __asm__("" : "+w"(value))
#endif

/* min(a, b); where a < b also index = candidate. NaN never wins: it compares false. */
#define PLAIN_KEEP_NEAREST(type, ints, lanes)                                                   \
    lanes m_ = (lanes)(value < *best);                                                          \
    *index = (ints)((m_ & (lanes)candidate) | (~m_ & (lanes) * index));                         \
    *best = (type)((m_ & (lanes)value) | (~m_ & (lanes) * best));

INLINE void f32_keep_nearest(f32_lanes value, i32_lanes candidate, f32_lanes *best,
                             i32_lanes *index)
{
#if defined(__AVX512F__)
    __mmask16 less = _mm512_cmp_ps_mask((__m512)value, (__m512)*best, _CMP_LT_OQ);
    *index = (i32_lanes)_mm512_mask_mov_epi32((__m512i)*index, less, (__m512i)candidate);
    *best = (f32_lanes)_mm512_min_ps((__m512)value, (__m512)*best);
#elif defined(__AVX__)
    __m256 less = _mm256_cmp_ps((__m256)value, (__m256)*best, _CMP_LT_OQ);
    *index = (i32_lanes)_mm256_blendv_ps((__m256)*index, (__m256)candidate, less);
    *best = (f32_lanes)_mm256_min_ps((__m256)value, (__m256)*best);
#else
    PLAIN_KEEP_NEAREST(f32_lanes, i32_lanes, i32_lanes)
#endif
}

INLINE void f64_keep_nearest(f64_lanes value, i64_lanes candidate, f64_lanes *best,
                             i64_lanes *index)
{
#if defined(__AVX512F__)
    __mmask8 less = _mm512_cmp_pd_mask((__m512d)value, (__m512d)*best, _CMP_LT_OQ);
    *index = (i64_lanes)_mm512_mask_mov_epi64((__m512i)*index, less, (__m512i)candidate);
    *best = (f64_lanes)_mm512_min_pd((__m512d)value, (__m512d)*best);
#elif defined(__AVX__)
    __m256d less = _mm256_cmp_pd((__m256d)value, (__m256d)*best, _CMP_LT_OQ);
    *index = (i64_lanes)_mm256_blendv_pd((__m256d)*index, (__m256d)candidate, less);
    *best = (f64_lanes)_mm256_min_pd((__m256d)value, (__m256d)*best);
#else
    PLAIN_KEEP_NEAREST(f64_lanes, i64_lanes, i64_lanes)
#endif
}

INLINE f32_lanes f32_min(f32_lanes a, f32_lanes b)
{
#if defined(__AVX512F__)
    return (f32_lanes)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (f32_lanes)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (f32_lanes)_mm_min_ps((__m128)a, (__m128)b);
#elif defined(__aarch64__)
    return (f32_lanes)vminq_f32((float32x4_t)a, (float32x4_t)b);
#else
    i32_lanes less = a < b;
    return (f32_lanes)((less & (i32_lanes)a) | (~less & (i32_lanes)b));
#endif
}

INLINE f64_lanes f64_min(f64_lanes a, f64_lanes b)
{
#if defined(__AVX512F__)
    return (f64_lanes)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX__)
    return (f64_lanes)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
    return (f64_lanes)_mm_min_pd((__m128d)a, (__m128d)b);
#elif defined(__aarch64__)
    return (f64_lanes)vminq_f64((float64x2_t)a, (float64x2_t)b);
#else
    i64_lanes less = a < b;
    return (f64_lanes)((less & (i64_lanes)a) | (~less & (i64_lanes)b));
#endif
}

/* max(a, b) = -min(-a, -b); the negations would cost two instructions, so by name again. */
INLINE f32_lanes f32_max(f32_lanes a, f32_lanes b)
{
#if defined(__AVX512F__)
    return (f32_lanes)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (f32_lanes)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (f32_lanes)_mm_max_ps((__m128)a, (__m128)b);
#elif defined(__aarch64__)
    return (f32_lanes)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
    return -f32_min(-a, -b);
#endif
}

INLINE f64_lanes f64_max(f64_lanes a, f64_lanes b)
{
#if defined(__AVX512F__)
    return (f64_lanes)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX__)
    return (f64_lanes)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
    return (f64_lanes)_mm_max_pd((__m128d)a, (__m128d)b);
#elif defined(__aarch64__)
    return (f64_lanes)vmaxq_f64((float64x2_t)a, (float64x2_t)b);
#else
    return -f64_min(-a, -b);
#endif
}

/* Bit i is set where a[i] < b[i]. */
INLINE uint32_t f32_below(f32_lanes a, f32_lanes b)
{
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
#elif defined(__AVX__)
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ));
#elif defined(__SSE2__)
    return (uint32_t)_mm_movemask_ps(_mm_cmplt_ps((__m128)a, (__m128)b));
#else
    i32_lanes less = a < b;
    uint32_t bits = 0;
    for (int lane = 0; lane < F32_LANES; lane++) bits |= (uint32_t)(less[lane] & 1) << lane;
    return bits;
#endif
}

INLINE uint32_t f64_below(f64_lanes a, f64_lanes b)
{
#if defined(__AVX512F__)
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ);
#elif defined(__AVX__)
    return (uint32_t)_mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_LT_OQ));
#elif defined(__SSE2__)
    return (uint32_t)_mm_movemask_pd(_mm_cmplt_pd((__m128d)a, (__m128d)b));
#else
    i64_lanes less = a < b;
    uint32_t bits = 0;
    for (int lane = 0; lane < F64_LANES; lane++) bits |= (uint32_t)(less[lane] & 1) << lane;
    return bits;
#endif
}

#endif
