"""What a kernel of the runtime takes; see call.h. `entry` makes the capsule of one."""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t

cdef extern from "call.h":
    enum:
        CALL_OPERANDS
        CALL_SIZES
        CALL_VALUES
    ctypedef struct Call:
        void *operand[16]
        int64_t size[48]
        double value[8]
        int threads
    ctypedef int (*Kernel)(const Call *) noexcept nogil
    const char *KERNEL_CAPSULE


cdef inline object entry(Kernel kernel):
    return PyCapsule_New(<void *> kernel, KERNEL_CAPSULE, NULL)
