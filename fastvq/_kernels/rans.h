/* The hot loop of the rANS decoder: eight states in registers, no branch that depends on data.

   In C because the loop over the states must be unrolled for that. Zen 3, one thread, bytes of
   7 bits each: 400 million a second; with a branch where a state is low, 150; as a loop in Cython,
   where the states stay in memory, 160. */

#ifndef FASTVQ_RANS_H
#define FASTVQ_RANS_H

#include <stddef.h>
#include <stdint.h>

enum { STATES = 8 };

#define LOWEST ((uint64_t)1 << 31) /* of a state */

typedef struct {
    const uint64_t *entries; /* first slot << 32 | symbol, in the order of slots; a last one ends */
    const uint32_t *buckets; /* the entry of slot b << shift, for each b */
    int shift, bits;
} Slots;

/* The state without its latest symbol, which goes to `value`; slots are as in rans.pyx. */
static inline uint64_t rans_step(uint64_t x, const Slots *slots, uint32_t *value)
{
    const uint32_t slot = (uint32_t)(x & (((uint64_t)1 << slots->bits) - 1));
    const uint64_t *entry = slots->entries + slots->buckets[slot >> slots->shift];
    while ((uint32_t)(entry[1] >> 32) <= slot) entry++;
    const uint32_t first = (uint32_t)(entry[0] >> 32);
    *value = (uint32_t)entry[0];
    return (uint64_t)((uint32_t)(entry[1] >> 32) - first) * (x >> slots->bits) + (slot - first);
}

/* Decodes symbols by eights as long as there are so many and the words cannot run out: how many.
   `word` and the states are moved on. */
#define RANS_RUN(name, type)                                                                      \
    static __attribute__((noinline)) ptrdiff_t name(const uint32_t **words, const uint32_t *end, \
                                 const Slots *slots, uint64_t *states, char *out,                 \
                                 ptrdiff_t stride, ptrdiff_t n)                                   \
    {                                                                                             \
        const uint32_t *word = *words;                                                            \
        const Slots copy = *slots;                                                                \
        uint64_t x[STATES];                                                                       \
        ptrdiff_t done = 0;                                                                       \
        for (int j = 0; j < STATES; j++) x[j] = states[j];                                        \
        for (; done + STATES <= n && end - word >= STATES; done += STATES) {                      \
            _Pragma("GCC unroll 8") for (int j = 0; j < STATES; j++)                              \
            {                                                                                     \
                uint32_t value;                                                                   \
                const uint64_t y = rans_step(x[j], &copy, &value);                                \
                const uint64_t low = y < LOWEST;                                                  \
                *(type *)out = (type)value;                                                       \
                out += stride;                                                                    \
                x[j] = y << (low << 5) | (*word & -low);                                          \
                word += low;                                                                      \
            }                                                                                     \
        }                                                                                         \
        for (int j = 0; j < STATES; j++) states[j] = x[j];                                        \
        *words = word;                                                                            \
        return done;                                                                              \
    }

RANS_RUN(u8_run, uint8_t)
RANS_RUN(u16_run, uint16_t)
RANS_RUN(u32_run, uint32_t)

#endif
