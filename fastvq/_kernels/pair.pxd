# Squared distance of two vectors, for any kernel; see pair.h.

from fastvq._kernels.rows cimport real

cdef extern from "pair.h" nogil:
    float f32_squared_distance(const float *, const float *, Py_ssize_t)
    double f64_squared_distance(const double *, const double *, Py_ssize_t)
    void f32_squared_distances(const float *, const float *, Py_ssize_t, Py_ssize_t, float *)
    void f64_squared_distances(const double *, const double *, Py_ssize_t, Py_ssize_t, double *)


cdef inline real squared_distance(const real *a, const real *b, Py_ssize_t d) noexcept nogil:
    if real is float:
        return f32_squared_distance(a, b, d)
    else:
        return f64_squared_distance(a, b, d)


cdef inline void squared_distances(
    const real *rows, const real *b, Py_ssize_t d, Py_ssize_t n, real *out,
) noexcept nogil:
    if real is float:
        f32_squared_distances(rows, b, d, n, out)
    else:
        f64_squared_distances(rows, b, d, n, out)
