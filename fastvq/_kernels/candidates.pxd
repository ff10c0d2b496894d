# Rows against a few of the codewords: which of them can win in a box (boxes.h), and which does
# (tile.h). For kernels that choose the codewords.

from libc.stdint cimport int32_t

from fastvq._kernels.rows cimport real

cdef extern from "boxes.h" nogil:
    Py_ssize_t f32_block_rows(Py_ssize_t)
    Py_ssize_t f64_block_rows(Py_ssize_t)
    Py_ssize_t f32_box_step()
    Py_ssize_t f64_box_step()
    Py_ssize_t f32_box_candidates(
        const float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, const float *, float *,
        int32_t *)
    Py_ssize_t f64_box_candidates(
        const double *, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, const double *, double *,
        int32_t *)
    void f32_direct(const float *, const float *, Py_ssize_t, Py_ssize_t, float *, int32_t *)
    void f64_direct(const double *, const double *, Py_ssize_t, Py_ssize_t, double *, int32_t *)


cdef inline Py_ssize_t rows_at_once(Py_ssize_t d, int itemsize) noexcept nogil:
    """Rows that are compared with a codeword at once: those of a packed block."""
    return f32_block_rows(d) if itemsize == 4 else f64_block_rows(d)


cdef inline Py_ssize_t filled_up_to(int itemsize) noexcept nogil:
    """What the number of codewords is filled up to a multiple of for `candidates_in`."""
    return f32_box_step() if itemsize == 4 else f64_box_step()


cdef inline Py_ssize_t candidates_in(
    const real *features, Py_ssize_t k, Py_ssize_t n, Py_ssize_t d,
    const real *centre, const real *reach, real *far, int32_t *candidates,
) noexcept nogil:
    """Writes the codewords that may win in a box, and gives their number."""
    if real is float:
        return f32_box_candidates(features, k, n, d, centre, reach, far, candidates)
    else:
        return f64_box_candidates(features, k, n, d, centre, reach, far, candidates)


cdef inline void nearest_of(
    const real *block, const real *codewords, Py_ssize_t n, Py_ssize_t d, real *best,
    int32_t *place,
) noexcept nogil:
    """Of each row of a packed block the nearest of n codewords, by definition (assign.pyx)."""
    if real is float:
        f32_direct(block, codewords, n, d, best, place)
    else:
        f64_direct(block, codewords, n, d, best, place)
