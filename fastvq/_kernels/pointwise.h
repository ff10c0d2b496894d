/* Element by element, with broadcasting: one row of a walk at a time.
 *
 * A walk is over the places of the result, whose last dimension is a row. Along it an operand
 * either moves on or stays (its step is 1 or 0), as whoever is broadcast lies in memory without
 * gaps. A row is plain loops, which the compiler makes vectors of; no value meets another, so that
 * bits depend on nothing else.
 */
#ifndef FASTVQ_POINTWISE_H
#define FASTVQ_POINTWISE_H

#include "functions.h"

/* Element types, in the order that runtime/lowering/pointwise.py knows. */
#define TYPES(EACH) EACH(float, f32) EACH(int64_t, i64) EACH(int32_t, i32) EACH(uint8_t, u8)
#define TYPE_NUMBER(T, NAME) TYPE_##NAME,
enum { TYPES(TYPE_NUMBER) N_TYPES };

/* ---- walks ------------------------------------------------------------------------------------ */

enum { WALK_DIMENSIONS = 6, WALK_OPERANDS = 3, WALK_PART = 1 << 14 };

typedef struct {
    int64_t dimensions, parts; /* parts that a row is cut into, of WALK_PART values */
    const int64_t *size;                  /* (dimensions,) */
    const int64_t *stride[WALK_OPERANDS]; /* (dimensions,) of each operand, in values */
    int64_t n;                            /* parts in all */
} Walk;

/* Where a part of a walk lies: in the result, in each operand, and how many values it has. */
typedef struct {
    int64_t result, at[WALK_OPERANDS], count;
} Part;

/* sizes of a call: dimensions, then size (WALK_DIMENSIONS,), then strides of each operand. */
INLINE Walk walk_of(const int64_t *sizes)
{
    Walk walk = {.dimensions = sizes[0], .size = sizes + 1};
    for (int i = 0; i < WALK_OPERANDS; i++)
        walk.stride[i] = sizes + 1 + (i + 1) * WALK_DIMENSIONS;
    walk.parts = (walk.size[walk.dimensions - 1] + WALK_PART - 1) / WALK_PART;
    walk.n = walk.parts;
    for (int i = 0; i < walk.dimensions - 1; i++) walk.n *= walk.size[i];
    return walk;
}

INLINE Part part_of(const Walk *walk, int64_t number)
{
    const int64_t last = walk->dimensions - 1, row = walk->size[last];
    const int64_t first = number % walk->parts * WALK_PART;
    Part part = {.count = row - first < WALK_PART ? row - first : WALK_PART};
    int64_t index = number / walk->parts;
    part.result = index * row + first;
    for (int i = 0; i < WALK_OPERANDS; i++) part.at[i] = first * walk->stride[i][last];
    for (int64_t d = last - 1; d >= 0; index /= walk->size[d], d--)
        for (int i = 0; i < WALK_OPERANDS; i++)
            part.at[i] += index % walk->size[d] * walk->stride[i][d];
    return part;
}

/* ---- functions of two values ------------------------------------------------------------------ */

/* p and q are the two values. Of a number and NaN the extremes are NaN. */
#define ARITHMETIC(EACH, T, NAME)                                                               \
    EACH(add, T, T, NAME, p + q)                                                                \
    EACH(subtract, T, T, NAME, p - q)                                                           \
    EACH(multiply, T, T, NAME, p *q)                                                            \
    EACH(minimum, T, T, NAME, p < q || p != p ? p : q)                                          \
    EACH(maximum, T, T, NAME, p > q || p != p ? p : q)                                          \
    EACH(prelu, T, T, NAME, p < 0 ? p * q : p)
#define COMPARING(EACH, T, NAME)                                                                \
    EACH(equal, T, uint8_t, NAME, p == q)                                                       \
    EACH(less, T, uint8_t, NAME, p < q)                                                         \
    EACH(less_equal, T, uint8_t, NAME, p <= q)                                                  \
    EACH(greater, T, uint8_t, NAME, p > q)                                                      \
    EACH(greater_equal, T, uint8_t, NAME, p >= q)
/* Whole numbers are cut towards zero; by zero they give 0, by -1 what does not overflow. */
#define WHOLE(EACH, T, NAME)                                                                    \
    EACH(divide, T, T, NAME, q == 0 ? 0 : q == -1 ? -p : p / q)                                 \
    EACH(bit_and, T, T, NAME, p &q)                                                             \
    EACH(bit_or, T, T, NAME, p | q)                                                             \
    EACH(bit_xor, T, T, NAME, p ^ q)
#define LOGICAL(EACH)                                                                           \
    EACH(and, uint8_t, uint8_t, u8, p &q)                                                       \
    EACH(or, uint8_t, uint8_t, u8, p | q)                                                       \
    EACH(xor, uint8_t, uint8_t, u8, p ^ q)                                                      \
    EACH(equal, uint8_t, uint8_t, u8, p == q)
#define BINARY(EACH)                                                                            \
    ARITHMETIC(EACH, float, f32) COMPARING(EACH, float, f32) EACH(divide, float, float, f32, p / q) \
    ARITHMETIC(EACH, int64_t, i64) COMPARING(EACH, int64_t, i64) WHOLE(EACH, int64_t, i64)      \
    ARITHMETIC(EACH, int32_t, i32) COMPARING(EACH, int32_t, i32) WHOLE(EACH, int32_t, i32)      \
    LOGICAL(EACH)

typedef void (*BinaryRow)(const void *, int64_t, const void *, int64_t, void *, int64_t);

#define BINARY_ROW(FUNCTION, T, R, NAME, VALUE)                                                 \
    static void FUNCTION##_##NAME(const void *a_, int64_t a_step, const void *b_, int64_t b_step, \
                                  void *y_, int64_t n)                                          \
    {                                                                                           \
        const T *a = a_, *b = b_;                                                               \
        R *y = y_;                                                                              \
        if (a_step && b_step) {                                                                 \
            for (int64_t i = 0; i < n; i++) {                                                   \
                const T p = a[i], q = b[i];                                                     \
                y[i] = (R)(VALUE);                                                              \
            }                                                                                   \
        } else if (a_step) {                                                                    \
            const T q = *b;                                                                     \
            for (int64_t i = 0; i < n; i++) {                                                   \
                const T p = a[i];                                                               \
                y[i] = (R)(VALUE);                                                              \
            }                                                                                   \
        } else {                                                                                \
            const T p = *a;                                                                     \
            for (int64_t i = 0; i < n; i++) {                                                   \
                const T q = b[i];                                                               \
                y[i] = (R)(VALUE);                                                              \
            }                                                                                   \
        }                                                                                       \
    }
BINARY(BINARY_ROW)
#undef BINARY_ROW

/* By name and element type: the lowering looks a row up in `binaries` of pointwise.pyx. */
typedef struct {
    const char *function;
    int type;
    BinaryRow row;
    int64_t size, result_size; /* bytes of a value */
} BinaryEntry;

#define BINARY_ENTRY(FUNCTION, T, R, NAME, VALUE)                                               \
    {#FUNCTION, TYPE_##NAME, FUNCTION##_##NAME, sizeof(T), sizeof(R)},
static const BinaryEntry binary_entries[] = {BINARY(BINARY_ENTRY)};
#undef BINARY_ENTRY
enum { N_BINARY = sizeof binary_entries / sizeof *binary_entries };

INLINE void binary_part(const BinaryEntry *entry, const Walk *walk, int64_t number,
                        const char *a, const char *b, char *y)
{
    const Part part = part_of(walk, number);
    const int64_t last = walk->dimensions - 1;
    entry->row(a + part.at[0] * entry->size, walk->stride[0][last], b + part.at[1] * entry->size,
               walk->stride[1][last], y + part.result * entry->result_size, part.count);
}

/* ---- choice ----------------------------------------------------------------------------------- */

#define WHERE_ROW(T, NAME)                                                                      \
    INLINE void where_steps_##NAME(const uint8_t *condition, const int c, const T *a,           \
                                   const int p, const T *b, const int q, T *y, int64_t n)       \
    {                                                                                           \
        for (int64_t i = 0; i < n; i++) {                                                       \
            const T yes = a[p * i], no = b[q * i];                                              \
            y[i] = condition[c * i] ? yes : no;                                                 \
        }                                                                                       \
    }                                                                                           \
    static void where_##NAME(const uint8_t *condition, const void *a_, const void *b_, void *y_, \
                             int steps, int64_t n)                                              \
    {                                                                                           \
        const T *a = a_, *b = b_;                                                               \
        T *y = y_;                                                                              \
        switch (steps) {                                                                        \
        case 7: where_steps_##NAME(condition, 1, a, 1, b, 1, y, n); break;                      \
        case 6: where_steps_##NAME(condition, 1, a, 1, b, 0, y, n); break;                      \
        case 5: where_steps_##NAME(condition, 1, a, 0, b, 1, y, n); break;                      \
        case 4: where_steps_##NAME(condition, 1, a, 0, b, 0, y, n); break;                      \
        case 3: where_steps_##NAME(condition, 0, a, 1, b, 1, y, n); break;                      \
        case 2: where_steps_##NAME(condition, 0, a, 1, b, 0, y, n); break;                      \
        default: where_steps_##NAME(condition, 0, a, 0, b, 1, y, n); break;                     \
        }                                                                                       \
    }
WHERE_ROW(int64_t, 8)
WHERE_ROW(int32_t, 4)
WHERE_ROW(uint8_t, 1)
#undef WHERE_ROW

/* Values of 8, 4 or 1 bytes. */
INLINE void where_part(const Walk *walk, int64_t number, int64_t bytes, const char *condition,
                       const char *a, const char *b, char *y)
{
    const Part part = part_of(walk, number);
    const int64_t last = walk->dimensions - 1;
    const int steps = (int)(4 * walk->stride[0][last] + 2 * walk->stride[1][last] +
                            walk->stride[2][last]);
    const uint8_t *c = (const uint8_t *)condition + part.at[0];
    a += part.at[1] * bytes, b += part.at[2] * bytes, y += part.result * bytes;
    (bytes == 8 ? where_8 : bytes == 4 ? where_4 : where_1)(c, a, b, y, steps, part.count);
}

/* ---- from one type to another ----------------------------------------------------------------- */

#define TO(T, R, FROM, INTO, VALUE)                                                             \
    static void cast_##FROM##_##INTO(const void *x_, void *y_, int64_t n)                       \
    {                                                                                           \
        const T *x = x_;                                                                        \
        R *y = y_;                                                                              \
        for (int64_t i = 0; i < n; i++) y[i] = (R)(VALUE);                                      \
    }
/* Bytes that come out are truth values; uint8 and bool go in alike. */
#define FROM(T, NAME)                                                                           \
    TO(T, float, NAME, f32, x[i])                                                               \
    TO(T, int64_t, NAME, i64, x[i])                                                             \
    TO(T, int32_t, NAME, i32, x[i])                                                             \
    TO(T, uint8_t, NAME, u8, x[i] != 0)
TYPES(FROM)
#undef FROM
#undef TO

INLINE void cast_part(int from, int into, const void *x, void *y, int64_t n)
{
    typedef void (*Row)(const void *, void *, int64_t);
#define ROW(T, NAME) {cast_##NAME##_f32, cast_##NAME##_i64, cast_##NAME##_i32, cast_##NAME##_u8},
    static const Row rows[N_TYPES][N_TYPES] = {TYPES(ROW)};
#undef ROW
    rows[from][into](x, y, n);
}

/* ---- questions about numbers ------------------------------------------------------------------ */

static void is_nan(const float *x, uint8_t *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = x[i] != x[i];
}

static void is_infinite(const float *x, uint8_t *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = __builtin_fabsf(x[i]) == __builtin_inff();
}

static void is_false(const uint8_t *x, uint8_t *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = !x[i];
}

#endif
