"""Values that move: strided copies, rows by their indices, blends of neighbours along an axis."""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastvq._kernels.call cimport Call, entry

cdef extern from "lanes.h" nogil:
    float f32_multiply_add(float, float, float)

ctypedef fused unit:
    uint8_t
    uint16_t
    uint32_t
    uint64_t

# The sizes of `copy`, in order: three vectors of RANK, then where x and y start, and a task.
cdef enum:
    RANK = 8
    SHAPE = 1
    FROM = SHAPE + RANK
    TO = FROM + RANK
    START = TO + RANK
    TASK_PLANES = START + 2
    TASK_ROWS
    TILE = 16  # the side of a transposed tile: both of its pictures stay in the first cache
    COLOURS = 3  # of pictures, whose planes become points as often as models are asked


def rank():
    """Axes that `copy` knows."""
    return RANK


cdef inline int64_t parts(int64_t whole, int64_t part) noexcept nogil:
    return (whole + part - 1) // part


cdef int copy(const Call *call) noexcept nogil:
    """y[y_start + i · y_strides] = x[x_start + i · x_strides] for all i of a shape.

    operands: x IN, y OUT. sizes: bytes of a value, shape (8), strides of x (8), strides of y (8),
    starts of x and y, all in values; planes and rows of a task. The last two axes are a plane, the
    first of its two being that along which x lies together where it is not the last.
    """
    cdef int64_t n_planes = 1, n_tasks, t
    cdef int axis
    for axis in range(RANK - 2):
        n_planes *= call.size[SHAPE + axis]
    n_tasks = parts(n_planes, call.size[TASK_PLANES])
    n_tasks *= parts(call.size[SHAPE + RANK - 2], call.size[TASK_ROWS])
    if call.threads == 1:
        for t in range(n_tasks):
            copy_task(call, t, n_planes)
    else:
        for t in prange(n_tasks, num_threads=call.threads, schedule="dynamic"):
            copy_task(call, t, n_planes)
    return 0


cdef void copy_task(const Call *call, int64_t task, int64_t n_planes) noexcept nogil:
    """Some planes, or some rows of one."""
    cdef int64_t rows = call.size[SHAPE + RANK - 2], each = call.size[TASK_ROWS]
    cdef int64_t row_tasks = parts(rows, each)
    cdef int64_t first_row = task % row_tasks * each
    cdef int64_t first = task // row_tasks * call.size[TASK_PLANES], plane, rest, x, y, i
    cdef void *from_x = call.operand[0]
    cdef void *to_y = call.operand[1]
    cdef int axis
    for plane in range(first, min(first + call.size[TASK_PLANES], n_planes)):
        x, y, rest = call.size[START], call.size[START + 1], plane
        for axis in range(RANK - 3, -1, -1):
            i = rest % call.size[SHAPE + axis]
            rest = rest // call.size[SHAPE + axis]
            x += i * call.size[FROM + axis]
            y += i * call.size[TO + axis]
            if not rest:
                break
        rest = min(each, rows - first_row)
        if call.size[0] == 4:
            copy_plane(call, <uint32_t *> from_x + x, <uint32_t *> to_y + y, first_row, rest)
        elif call.size[0] == 8:
            copy_plane(call, <uint64_t *> from_x + x, <uint64_t *> to_y + y, first_row, rest)
        elif call.size[0] == 1:
            copy_plane(call, <uint8_t *> from_x + x, <uint8_t *> to_y + y, first_row, rest)
        else:
            copy_plane(call, <uint16_t *> from_x + x, <uint16_t *> to_y + y, first_row, rest)


cdef inline void copy_plane(
    const Call *call, const unit *x, unit *y, int64_t first, int64_t rows
) noexcept nogil:
    """Rows of the plane that starts at x and y."""
    cdef const int64_t *size = &call.size[0]
    cdef int64_t columns = size[SHAPE + RANK - 1], i, j, ii, jj
    cdef int64_t x_row = size[FROM + RANK - 2], x_column = size[FROM + RANK - 1]
    cdef int64_t y_row = size[TO + RANK - 2], y_column = size[TO + RANK - 1]
    x += first * x_row
    y += first * y_row
    if x_column == 1 and y_column == 1:
        for i in range(rows):
            copy_run(y + i * y_row, x + i * x_row, columns * <int64_t> sizeof(unit))
    elif x_row == 1 and y_column == 1 and columns == y_row == COLOURS:
        interleave(x, x_column, rows, y)
    elif x_row == 1 and y_column == 1:
        for ii in range(parts(rows, TILE)):
            for jj in range(parts(columns, TILE)):
                for i in range(ii * TILE, min((ii + 1) * TILE, rows)):
                    for j in range(jj * TILE, min((jj + 1) * TILE, columns)):
                        y[i * y_row + j] = x[i + j * x_column]
    elif x_column == 0 and y_column == 1:
        for i in range(rows):
            for j in range(columns):
                y[i * y_row + j] = x[i * x_row]
    else:
        for i in range(rows):
            for j in range(columns):
                y[i * y_row + j * y_column] = x[i * x_row + j * x_column]


cdef inline void interleave(const unit *x, int64_t plane, int64_t n, unit *y) noexcept nogil:
    """Values of COLOURS planes side by side; told one by one, so that the compiler makes vectors."""
    cdef const unit *green = x + plane
    cdef const unit *blue = green + plane
    cdef int64_t i
    for i in range(n):
        y[COLOURS * i] = x[i]
        y[COLOURS * i + 1] = green[i]
        y[COLOURS * i + 2] = blue[i]


cdef inline void copy_run(void *y, const void *x, int64_t nbytes) noexcept nogil:
    """memcpy, spared the call where it is one value."""
    if nbytes == 4:
        (<uint32_t *> y)[0] = (<const uint32_t *> x)[0]
    elif nbytes == 8:
        (<uint64_t *> y)[0] = (<const uint64_t *> x)[0]
    else:
        memcpy(y, x, nbytes)


cdef int fill(const Call *call) noexcept nogil:
    """Every value of y is that of x. operands: x IN (1,), y OUT. sizes: bytes of a value, count."""
    if call.size[0] == 4:
        fill_with(<const uint32_t *> call.operand[0], <uint32_t *> call.operand[1], call.size[1])
    elif call.size[0] == 8:
        fill_with(<const uint64_t *> call.operand[0], <uint64_t *> call.operand[1], call.size[1])
    elif call.size[0] == 1:
        fill_with(<const uint8_t *> call.operand[0], <uint8_t *> call.operand[1], call.size[1])
    else:
        fill_with(<const uint16_t *> call.operand[0], <uint16_t *> call.operand[1], call.size[1])
    return 0


cdef inline void fill_with(const unit *x, unit *y, int64_t count) noexcept nogil:
    cdef unit value = x[0]
    cdef int64_t i
    for i in range(count):
        y[i] = value


# ---- along an axis -------------------------------------------------------------------------------

# The sizes of `take` and `blend`: x is (OUTER, LENGTH, INNER), y (OUTER, COUNT, INNER).
cdef enum:
    OUTER, LENGTH, COUNT, INNER, KIND, TASK


cdef inline int64_t index(const Call *call, int64_t i) noexcept nogil:
    """The i-th index, counted from the start; -1 where it is out of range."""
    cdef int64_t found, length = call.size[LENGTH]
    if call.size[KIND] == 4:
        found = (<const int32_t *> call.operand[1])[i]
    else:
        found = (<const int64_t *> call.operand[1])[i]
    found += length if found < 0 else 0
    return found if 0 <= found < length else -1


cdef int take(const Call *call) noexcept nogil:
    """y[o, i] = x[o, indices[i]]; 1 + i for the first i that is out of range.

    operands: x IN, indices IN int32 or int64, y OUT. sizes: outer, length, count, bytes of what
    lies within, bytes of an index, rows of a task.
    """
    cdef int64_t n = call.size[OUTER] * call.size[COUNT], i, t
    for i in range(call.size[COUNT]):
        if index(call, i) < 0:
            return <int> min(i + 1, 0x7fffffff)
    if call.threads == 1:
        take_task(call, 0, n)
    else:
        for t in prange(parts(n, call.size[TASK]), num_threads=call.threads, schedule="dynamic"):
            take_task(call, t * call.size[TASK], min((t + 1) * call.size[TASK], n))
    return 0


cdef void take_task(const Call *call, int64_t first, int64_t last) noexcept nogil:
    cdef const char *x = <const char *> call.operand[0]
    cdef char *y = <char *> call.operand[2]
    cdef int64_t count = call.size[COUNT], inner = call.size[INNER], row, outer, i
    outer, i = first // count, first % count
    for row in range(first, last):
        copy_run(y + row * inner, x + (outer * call.size[LENGTH] + index(call, i)) * inner, inner)
        i += 1
        if i == count:
            outer, i = outer + 1, 0


cdef int blend(const Call *call) noexcept nogil:
    """y[o, i] = sum over t of weights[i, t] * x[o, at[i, t]], in the order of t.

    operands: x IN float32, at IN int64 (count, taps), weights IN float32 (count, taps), y OUT.
    sizes: outer, length, count, values within, taps, rows of a task.
    """
    cdef int64_t n = call.size[OUTER] * call.size[COUNT], row, t
    if call.threads == 1:
        for row in range(n):
            blend_row(call, row)
    else:
        for t in prange(parts(n, call.size[TASK]), num_threads=call.threads, schedule="dynamic"):
            for row in range(t * call.size[TASK], min((t + 1) * call.size[TASK], n)):
                blend_row(call, row)
    return 0


cdef inline void blend_row(const Call *call, int64_t row) noexcept nogil:
    cdef int64_t inner = call.size[INNER], taps = call.size[KIND], i = row % call.size[COUNT], c, t
    cdef const float *x = <const float *> call.operand[0]
    cdef const int64_t *at = <const int64_t *> call.operand[1] + i * taps
    cdef const float *weight = <const float *> call.operand[2] + i * taps
    cdef float *y = <float *> call.operand[3] + row * inner
    cdef const float *a
    cdef const float *b
    cdef float p = weight[0], q
    x += row // call.size[COUNT] * call.size[LENGTH] * inner
    a = x + at[0] * inner
    if taps == 1:
        memcpy(y, a, inner * sizeof(float))
        return
    b, q = x + at[1] * inner, weight[1]
    for c in range(inner):
        y[c] = f32_multiply_add(b[c], q, a[c] * p)
    for t in range(2, taps):
        a, p = x + at[t] * inner, weight[t]
        for c in range(inner):
            y[c] = f32_multiply_add(a[c], p, y[c])


entries = {"copy": entry(copy), "fill": entry(fill), "take": entry(take), "blend": entry(blend)}
