"""Programs: lists of kernel calls, run one after the other in one call without the GIL."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastvq._kernels.call cimport (
    CALL_OPERANDS, CALL_SIZES, CALL_VALUES, KERNEL_CAPSULE, Call, Kernel,
)

cdef extern from * nogil:
    """
    #include <time.h>
    static double seconds_now(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    }
    """
    double seconds_now()

cdef extern from "habit.h" nogil:
    ctypedef struct Habit:
        int threads
    void habit_begin(Habit *, int threads)
    int habit_threads(const Habit *)
    void habit_note(Habit *, double seconds)


cdef class Program:
    """Calls with their operands filled in, for one arena: one thread at a time may run it.

    Parameters
    ----------
    steps : list of (capsule, operands, sizes, values, threads)
        An operand is an address, or None, or the number -1 - i of the i-th of what `run` is given.
        Threads are those that the work may be worth; whether they pay is learnt (habit.h).
    """

    cdef Call *calls
    cdef Kernel *kernels
    cdef Habit *habits
    cdef int n_calls, n_moving
    cdef int *moving  # (n_moving, 3): call, operand, which address

    def __cinit__(self, steps):
        self.n_calls = len(steps)
        moving = []
        for number, (_, operands, sizes, values, _) in enumerate(steps):
            if (
                len(operands) > CALL_OPERANDS or len(sizes) > CALL_SIZES
                or len(values) > CALL_VALUES
            ):
                raise ValueError("a call with more operands, sizes or values than there is room for")
            moving += [
                (number, i, -1 - at)
                for i, at in enumerate(operands) if at is not None and at < 0
            ]
        self.n_moving = len(moving)
        self.calls = <Call *> calloc(self.n_calls + 1, sizeof(Call))
        self.kernels = <Kernel *> calloc(self.n_calls + 1, sizeof(Kernel))
        self.habits = <Habit *> calloc(self.n_calls + 1, sizeof(Habit))
        self.moving = <int *> calloc(3 * self.n_moving + 1, sizeof(int))
        if not (self.calls and self.kernels and self.habits and self.moving):
            raise MemoryError
        for number, triple in enumerate(moving):
            for i in range(3):
                self.moving[3 * number + i] = triple[i]
        for number, step in enumerate(steps):
            capsule, operands, sizes, values, threads = step
            self.fill(number, capsule, operands, sizes, values, threads)

    cdef fill(self, int number, capsule, operands, sizes, values, int threads):
        cdef Call *call = &self.calls[number]
        self.kernels[number] = <Kernel> PyCapsule_GetPointer(capsule, KERNEL_CAPSULE)
        call.threads = threads
        habit_begin(&self.habits[number], threads)
        for i, address in enumerate(operands):
            call.operand[i] = <void *> <uintptr_t> (address if address and address > 0 else 0)
        for i, size in enumerate(sizes):
            call.size[i] = size
        for i, value in enumerate(values):
            call.value[i] = value

    def __dealloc__(self):
        free(self.calls)
        free(self.kernels)
        free(self.habits)
        free(self.moving)

    def bind(self, list arrays):
        """Say where the operands that move are now: inputs and outputs, contiguous arrays."""
        cdef int number
        cdef Py_buffer view
        for number in range(self.n_moving):
            PyObject_GetBuffer(arrays[self.moving[3 * number + 2]], &view, PyBUF_SIMPLE)
            self.calls[self.moving[3 * number]].operand[self.moving[3 * number + 1]] = view.buf
            PyBuffer_Release(&view)  # the caller holds the arrays until the run has ended

    def run(self, int first, int last, double[::1] seconds=None):
        """Run calls first .. last; (-1, 0), or the number of the call that failed and its answer.

        Parameters
        ----------
        seconds : (n_calls,), INOUT: the time of each call is added, where given
        """
        cdef int number, answer = 0
        cdef double began = 0, taken
        cdef bint timed = seconds is not None, learns
        with nogil:
            for number in range(first, last):
                learns = self.habits[number].threads > 1
                if learns:
                    self.calls[number].threads = habit_threads(&self.habits[number])
                if timed or learns:
                    began = seconds_now()
                answer = self.kernels[number](&self.calls[number])
                if timed or learns:
                    taken = seconds_now() - began
                if learns:
                    habit_note(&self.habits[number], taken)
                if timed:
                    seconds[number] += taken
                if answer:
                    break
        if answer:
            return number, answer
        return -1, 0


cdef class Threads:
    """What a call learns about its threads, for tests: see habit.h."""

    cdef Habit habit

    def __cinit__(self, int threads):
        habit_begin(&self.habit, threads)

    def next(self):
        return habit_threads(&self.habit)

    def note(self, double seconds):
        habit_note(&self.habit, seconds)


def run_once(capsule, operands, sizes, values, int threads):
    """One call of a kernel on arrays, strided ones by their first value, or None: its answer.

    For calls of a few microseconds: nothing is kept, and no array is asked for its address.
    """
    cdef Kernel kernel = <Kernel> PyCapsule_GetPointer(capsule, KERNEL_CAPSULE)
    cdef Call call
    cdef Py_buffer view
    cdef int answer
    if len(operands) > CALL_OPERANDS or len(sizes) > CALL_SIZES or len(values) > CALL_VALUES:
        raise ValueError("a call with more operands, sizes or values than there is room for")
    memset(&call, 0, sizeof(Call))
    call.threads = threads
    for i, array in enumerate(operands):
        if array is not None:
            PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
            call.operand[i] = view.buf
            PyBuffer_Release(&view)  # the caller holds the arrays until this returns
    for i, size in enumerate(sizes):
        call.size[i] = size
    for i, value in enumerate(values):
        call.value[i] = value
    with nogil:
        answer = kernel(&call)
    return answer
