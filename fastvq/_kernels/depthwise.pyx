"""Depthwise convolutions; see depthwise.h."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "depthwise.h" nogil:
    ctypedef struct Activation:
        int function
        float alpha, beta
    ctypedef struct Windows:
        int64_t n, height, width, channels, rows, columns
    void depthwise_row(
        const Windows *, const float *, const float *, Py_ssize_t, const Activation *, float *)


cdef int convolve(const Call *call) noexcept nogil:
    """operands: x IN (n, height, width, channels), weights IN (1 + taps, channels), y OUT.

    sizes: those of `Windows` (windows.h), activation. values: alpha, beta.
    """
    cdef const Windows *windows = <const Windows *> &call.size[0]
    cdef int64_t t
    for t in prange(windows.n * windows.rows, num_threads=call.threads):
        convolve_row(call, t // windows.rows, t % windows.rows)
    return 0


cdef void convolve_row(const Call *call, int64_t picture, int64_t row) noexcept nogil:
    cdef const Windows *w = <const Windows *> &call.size[0]
    cdef const float *x = <const float *> call.operand[0]
    cdef float *y = <float *> call.operand[2]
    cdef Activation activation
    activation.function = <int> call.size[14]
    activation.alpha, activation.beta = <float> call.value[0], <float> call.value[1]
    x += picture * w.height * w.width * w.channels
    y += (picture * w.rows + row) * w.columns * w.channels
    depthwise_row(w, <const float *> call.operand[1], x, row, &activation, y)


entries = {"convolve": entry(convolve)}
