/* Writing past the caches what is larger than they are.
 *
 * An ordinary store first reads its line from memory; one that does not, and leaves in the caches
 * what is there, takes half the traffic. For results that nobody can find in a cache anyway
 * (256 MB of decoded rows, one thread of a Zen 3: 15 ms, where ordinary stores take 28).
 */
#ifndef FASTVQ_STREAM_H
#define FASTVQ_STREAM_H

#include <stddef.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* Copies `bytes`, a multiple of 16, to an address that is one too. */
static inline void stream_copy(void *to, const void *from, ptrdiff_t bytes)
{
#if defined(__SSE2__)
    for (ptrdiff_t i = 0; i < bytes; i += 16)
        _mm_stream_si128((__m128i *)((char *)to + i),
                         _mm_loadu_si128((const __m128i *)((const char *)from + i)));
#else
    memcpy(to, from, (size_t)bytes);
#endif
}

/* To be called by the thread that has streamed before others read. */
static inline void stream_end(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
