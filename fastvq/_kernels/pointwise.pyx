"""Element by element: functions of one value and of two, choice, and change of type."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint8_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "functions.h" nogil:
    """
    #define NAME_OF(name) #name,
    static const char *const function_names[] = {FUNCTIONS(NAME_OF)};
    #undef NAME_OF
    """
    enum: N_FUNCTIONS
    const char *function_names[1]
    void apply(int function, const float *x, float *y, Py_ssize_t n, float alpha, float beta)

cdef extern from "functions_wide.h" nogil:
    enum: N_WIDE_FUNCTIONS
    const char *wide_function_names[1]
    ctypedef void (*WideFunction)(const float *x, float *y, Py_ssize_t n) noexcept nogil
    const WideFunction wide_functions[1]

cdef extern from "pointwise.h" nogil:
    enum:
        N_BINARY
        WALK_DIMENSIONS
        WALK_PART
    ctypedef struct Walk:
        int64_t n
    ctypedef struct BinaryEntry:
        const char *function
        int type
    BinaryEntry binary_entries[1]
    Walk walk_of(const int64_t *sizes)
    void binary_part(
        const BinaryEntry *, const Walk *, int64_t number, const char *a, const char *b, char *y)
    void where_part(
        const Walk *, int64_t number, int64_t size,
        const char *condition, const char *a, const char *b, char *y)
    void cast_part(int origin, int into, const void *x, void *y, int64_t n)
    void is_nan(const float *x, uint8_t *y, int64_t n)
    void is_infinite(const float *x, uint8_t *y, int64_t n)
    void is_false(const uint8_t *x, uint8_t *y, int64_t n)


cdef inline int64_t share(int64_t n, int64_t thread, int64_t threads) noexcept nogil:
    """Where the share of a thread begins, and that of the one before it ends."""
    return n * thread // threads


cdef int unary(const Call *call) noexcept nogil:
    """operands: x IN (n,) float32, y OUT (n,) float32. sizes: n, function. values: alpha, beta."""
    cdef const float *x = <const float *> call.operand[0]
    cdef float *y = <float *> call.operand[1]
    cdef int64_t n = call.size[0], first
    cdef int function = <int> call.size[1], thread, threads = call.threads
    cdef float alpha = <float> call.value[0], beta = <float> call.value[1]
    for thread in prange(threads, num_threads=threads, schedule="static"):
        first = share(n, thread, threads)
        apply(function, x + first, y + first, share(n, thread + 1, threads) - first, alpha, beta)
    return 0


cdef int wide(const Call *call) noexcept nogil:
    """operands: x IN (n,) float32, y OUT (n,) float32. sizes: n, number in `functions_wide`."""
    cdef const float *x = <const float *> call.operand[0]
    cdef float *y = <float *> call.operand[1]
    cdef int64_t n = call.size[0], first
    cdef WideFunction function = wide_functions[call.size[1]]
    cdef int thread, threads = call.threads
    for thread in prange(threads, num_threads=threads, schedule="static"):
        first = share(n, thread, threads)
        function(x + first, y + first, share(n, thread + 1, threads) - first)
    return 0


cdef int question(const Call *call) noexcept nogil:
    """operands: x IN (n,) float32, for "not" bool, y OUT (n,) bool. sizes: n, which: 0 isnan,
    1 isinf, 2 not."""
    cdef uint8_t *y = <uint8_t *> call.operand[1]
    cdef int64_t n = call.size[0]
    if call.size[1] == 0:
        is_nan(<const float *> call.operand[0], y, n)
    elif call.size[1] == 1:
        is_infinite(<const float *> call.operand[0], y, n)
    else:
        is_false(<const uint8_t *> call.operand[0], y, n)
    return 0


cdef int binary(const Call *call) noexcept nogil:
    """operands: a IN, b IN, y OUT. sizes: number in `binaries`, then those of a walk."""
    cdef const BinaryEntry *which = &binary_entries[call.size[0]]
    cdef Walk walk = walk_of(call.size + 1)
    cdef const char *a = <const char *> call.operand[0]
    cdef const char *b = <const char *> call.operand[1]
    cdef char *y = <char *> call.operand[2]
    cdef int64_t number
    cdef int thread, threads = call.threads
    for thread in prange(threads, num_threads=threads, schedule="static"):
        for number in range(share(walk.n, thread, threads), share(walk.n, thread + 1, threads)):
            binary_part(which, &walk, number, a, b, y)
    return 0


cdef int where(const Call *call) noexcept nogil:
    """operands: condition IN bool, a IN, b IN, y OUT. sizes: bytes of a value, those of a walk."""
    cdef Walk walk = walk_of(call.size + 1)
    cdef const char *condition = <const char *> call.operand[0]
    cdef const char *a = <const char *> call.operand[1]
    cdef const char *b = <const char *> call.operand[2]
    cdef char *y = <char *> call.operand[3]
    cdef int64_t number, size = call.size[0]
    cdef int thread, threads = call.threads
    for thread in prange(threads, num_threads=threads, schedule="static"):
        for number in range(share(walk.n, thread, threads), share(walk.n, thread + 1, threads)):
            where_part(&walk, number, size, condition, a, b, y)
    return 0


cdef int cast(const Call *call) noexcept nogil:
    """operands: x IN (n,), y OUT (n,). sizes: n, type of x, type of y."""
    cast_part(<int> call.size[1], <int> call.size[2], call.operand[0], call.operand[1],
              call.size[0])
    return 0


entries = {
    "unary": entry(unary),
    "wide": entry(wide),
    "question": entry(question),
    "binary": entry(binary),
    "where": entry(where),
    "cast": entry(cast),
}
# Numbers by which kernels know the functions of functions.h, those of functions_wide.h, which no
# product has behind it, and those of two values by type.
functions = {function_names[i].decode(): i for i in range(N_FUNCTIONS)}
functions_wide = {wide_function_names[i].decode(): i for i in range(N_WIDE_FUNCTIONS)}
binaries = {
    (binary_entries[i].function.decode(), binary_entries[i].type): i for i in range(N_BINARY)
}
most_dimensions = WALK_DIMENSIONS
