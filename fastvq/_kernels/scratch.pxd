# Scratch memory cut into pieces, each of which begins a cache line.


cdef inline Py_ssize_t whole_lines(Py_ssize_t n_bytes) noexcept nogil:
    return (n_bytes + 63) // 64 * 64


cdef inline char *room(char **memory, Py_ssize_t n_bytes) noexcept nogil:
    """The next so many bytes of scratch memory, aligned. From NULL on, the end is their sum."""
    cdef char *found = memory[0]
    memory[0] = found + whole_lines(n_bytes)
    return found
