"""Codes of any widths as rows of bits, lowest bit first, and back."""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef fused code_type:
    uint8_t
    uint16_t
    uint32_t

cdef enum:
    TASK_ROWS = 512  # rows that a thread takes at a time


def pack(
    const code_type[:, ::1] codes,  # IN (n, m): column c below 2^widths[c]
    const int32_t[::1] widths,  # IN (m,): from 1 to 32
    uint8_t[:, ::1] packed,  # OUT (n, ceil(sum of widths / 8))
    int n_threads,
):
    cdef Py_ssize_t n = codes.shape[0], t
    cdef Py_ssize_t n_tasks = (n + TASK_ROWS - 1) // TASK_ROWS
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            pack_rows(&codes[t * TASK_ROWS, 0], &widths[0], codes.shape[1],
                      &packed[t * TASK_ROWS, 0], packed.shape[1],
                      min(<Py_ssize_t> TASK_ROWS, n - t * TASK_ROWS))


cdef void pack_rows(
    const code_type *codes, const int32_t *widths, Py_ssize_t m,
    uint8_t *packed, Py_ssize_t row_bytes, Py_ssize_t n_rows,
) noexcept nogil:
    cdef Py_ssize_t _r, c, at
    cdef uint64_t bits  # those not written yet: up to 31 from before, 32 of a code
    cdef int filled
    for _r in range(n_rows):
        bits = filled = at = 0
        for c in range(m):
            bits |= <uint64_t> codes[c] << filled
            filled += widths[c]
            if filled >= 32:
                write_word(packed + at, <uint32_t> bits)
                at += 4
                bits >>= 32
                filled -= 32
        while at < row_bytes:
            packed[at] = <uint8_t> bits
            bits >>= 8
            at += 1
        codes += m
        packed += row_bytes


def unpack(
    const uint8_t[:, ::1] packed,  # IN (n, ceil(sum of widths / 8))
    const int32_t[::1] widths,  # IN (m,): from 1 to 32
    code_type[:, ::1] codes,  # OUT (n, m)
    int n_threads,
):
    cdef Py_ssize_t n = codes.shape[0], t
    cdef Py_ssize_t n_tasks = (n + TASK_ROWS - 1) // TASK_ROWS
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            unpack_rows(&packed[t * TASK_ROWS, 0], packed.shape[1], &widths[0], codes.shape[1],
                        &codes[t * TASK_ROWS, 0], min(<Py_ssize_t> TASK_ROWS, n - t * TASK_ROWS))


cdef void unpack_rows(
    const uint8_t *packed, Py_ssize_t row_bytes, const int32_t *widths, Py_ssize_t m,
    code_type *codes, Py_ssize_t n_rows,
) noexcept nogil:
    cdef Py_ssize_t _r, c, at
    cdef uint64_t bits
    cdef int filled
    for _r in range(n_rows):
        bits = filled = at = 0
        for c in range(m):
            if filled < widths[c]:
                if at + 4 <= row_bytes:
                    bits |= <uint64_t> read_word(packed + at) << filled
                    at += 4
                    filled += 32
                else:
                    while at < row_bytes:
                        bits |= <uint64_t> packed[at] << filled
                        at += 1
                        filled += 8
            codes[c] = <code_type> (bits & ((<uint64_t> 1 << widths[c]) - 1))
            bits >>= widths[c]
            filled -= widths[c]
        codes += m
        packed += row_bytes


# Little-endian words, in any memory and on any machine; compilers make one instruction of each.
cdef inline void write_word(uint8_t *to, uint32_t word) noexcept nogil:
    to[0] = <uint8_t> word
    to[1] = <uint8_t> (word >> 8)
    to[2] = <uint8_t> (word >> 16)
    to[3] = <uint8_t> (word >> 24)


cdef inline uint32_t read_word(const uint8_t *at) noexcept nogil:
    return (<uint32_t> at[0] | <uint32_t> at[1] << 8 | <uint32_t> at[2] << 16
            | <uint32_t> at[3] << 24)
