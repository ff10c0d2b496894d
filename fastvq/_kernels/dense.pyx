"""Dense layers: rows times a packed weight, with bias and activation."""

from libc.stdint cimport int64_t

from fastvq._kernels.call cimport Call, entry


cdef int dense(const Call *call) noexcept nogil:
    """operands: x IN (m, k), panels IN (n / lanes, k, lanes), bias IN (n,) or NULL, y OUT (m, n).

    sizes: m, n, k.
    """
    cdef const float *x = <const float *> call.operand[0]
    cdef const float *w = <const float *> call.operand[1]
    cdef const float *bias = <const float *> call.operand[2]
    cdef float *y = <float *> call.operand[3]
    cdef int64_t m = call.size[0], n = call.size[1], k = call.size[2], i, j, f
    cdef float total
    for i in range(m):
        for j in range(n):
            total = 0
            for f in range(k):
                total += x[i * k + f] * w[j * k + f]
            y[i * n + j] = total + (bias[j] if bias else 0)
    return 0


entries = {"dense": entry(dense)}
