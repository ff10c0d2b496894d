# Codes written as integers of 1, 2 or 4 bytes, one after another, in steps, or here and there.

from libc.stdint cimport int32_t, uint8_t, uint16_t

ctypedef fused code_type:
    uint8_t
    uint16_t
    int32_t


cdef inline void put_codes_as(
    code_type *target, Py_ssize_t step, const int32_t *code, Py_ssize_t count,
) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        for i in range(count):
            target[i] = <code_type> code[i]
    else:
        for i in range(count):
            target[i * step] = <code_type> code[i]


cdef inline void put_codes(
    char *target, int itemsize, Py_ssize_t step, const int32_t *code, Py_ssize_t count,
) noexcept nogil:
    """Codes from `target` on, each `step` codes behind the last."""
    if itemsize == 1:
        put_codes_as(<uint8_t *> target, step, code, count)
    elif itemsize == 2:
        put_codes_as(<uint16_t *> target, step, code, count)
    else:
        put_codes_as(<int32_t *> target, step, code, count)


cdef inline void put_codes_at_as(
    code_type *target, const int32_t *places, const int32_t *code, Py_ssize_t count,
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        target[places[i]] = <code_type> code[i]


cdef inline void put_codes_at(
    char *target, int itemsize, const int32_t *places, const int32_t *code, Py_ssize_t count,
) noexcept nogil:
    """Each code at its place, counted in codes."""
    if itemsize == 1:
        put_codes_at_as(<uint8_t *> target, places, code, count)
    elif itemsize == 2:
        put_codes_at_as(<uint16_t *> target, places, code, count)
    else:
        put_codes_at_as(<int32_t *> target, places, code, count)
