"""Products of rows with packed matrices: dense layers, convolutions, attention; see gemm.h."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from fastvq._kernels.call cimport Call, entry

cdef extern from "gemm.h" nogil:
    enum:
        TILE_ROWS
        BLOCK_ROWS
        PANEL_COLUMNS
        BLOCK_FEATURES
    ctypedef struct Activation:
        int function
        float alpha, beta
    ctypedef struct Run:
        pass
    ctypedef struct Product:
        const float *panels
        const Run *runs
        Py_ssize_t columns, k, n_runs
        Activation activation
    void product_block(
        const Product *, const float **, float **, Py_ssize_t, Py_ssize_t, Py_ssize_t)
    void pack_panel(
        const float *, Py_ssize_t, Py_ssize_t, const float *, Py_ssize_t, Py_ssize_t, float *)

# The sizes of `product`, in order.
cdef enum:
    PLACES, N, HEIGHT, WIDTH, X_N, X_ROW, X_COLUMN, Y_N, Y_ROW, Y_COLUMN
    COLUMNS, FEATURES, RUNS, FUNCTION, TASK_ROWS, TASK_PANELS


def shapes():
    """Rows of a tile, rows of a block at most, columns of a panel, features of a block."""
    return TILE_ROWS, BLOCK_ROWS, PANEL_COLUMNS, BLOCK_FEATURES


cdef inline int64_t parts(int64_t whole, int64_t part) noexcept nogil:
    return (whole + part - 1) // part


cdef int product(const Call *call) noexcept nogil:
    """y = activation(x times matrix + bias), for rows that form pictures, in several places.

    operands: x IN, panels IN, runs IN (n_runs, 2), places IN (n_places, 3), y OUT. Each place has
    its own x, panels and y, from these offsets on: the groups of a convolution, a batch of
    matrices. In it, row (i, r, c) of (n, height, width) lies at the given strides in x and in y.
    sizes: n_places, n, height, width, three strides in x, three in y, columns, features, n_runs,
    activation, rows and panels of a task. values: alpha, beta.
    """
    cdef const int64_t *size = &call.size[0]
    cdef int64_t row_tasks = parts(size[N] * size[HEIGHT] * size[WIDTH], size[TASK_ROWS])
    cdef int64_t panel_tasks = parts(parts(size[COLUMNS], PANEL_COLUMNS), size[TASK_PANELS])
    cdef int64_t n_tasks = size[PLACES] * row_tasks * panel_tasks, t
    if call.threads == 1:  # without the quarter of a microsecond that a parallel region takes
        for t in range(n_tasks):
            product_task(call, t, row_tasks, panel_tasks)
        return 0
    for t in prange(n_tasks, schedule="dynamic", num_threads=call.threads):
        product_task(call, t, row_tasks, panel_tasks)
    return 0


cdef void product_task(
    const Call *call, int64_t task, int64_t row_tasks, int64_t panel_tasks
) noexcept nogil:
    cdef const int64_t *size = &call.size[0]
    cdef int64_t place = task // (row_tasks * panel_tasks)
    cdef int64_t row = task // panel_tasks % row_tasks * size[TASK_ROWS]
    cdef int64_t panel = task % panel_tasks * size[TASK_PANELS]
    cdef int64_t stop = min(row + size[TASK_ROWS], size[N] * size[HEIGHT] * size[WIDTH])
    cdef const int64_t *offset = <const int64_t *> call.operand[3] + 3 * place
    cdef Product product
    cdef int64_t last = min(panel + size[TASK_PANELS], parts(size[COLUMNS], PANEL_COLUMNS)), end
    cdef const float *x[BLOCK_ROWS]
    cdef float *y[BLOCK_ROWS]
    product.panels = <const float *> call.operand[1] + offset[1]
    product.runs = <const Run *> call.operand[2]
    product.columns, product.k, product.n_runs = size[COLUMNS], size[FEATURES], size[RUNS]
    product.activation.function = <int> size[FUNCTION]
    product.activation.alpha = <float> call.value[0]
    product.activation.beta = <float> call.value[1]
    while row < stop:
        end = min(row + BLOCK_ROWS, stop)
        find_rows(size, <const float *> call.operand[0] + offset[0],
                  <float *> call.operand[4] + offset[2], row, end, x, y)
        product_block(&product, x, y, end - row, panel, last)
        row = end


cdef void find_rows(
    const int64_t *size, const float *x, float *y, int64_t row, int64_t stop,
    const float **x_rows, float **y_rows,
) noexcept nogil:
    """Addresses of the rows row .. stop."""
    cdef int64_t column = row % size[WIDTH], line = row // size[WIDTH], i, in_picture, picture
    in_picture, picture = line % size[HEIGHT], line // size[HEIGHT]
    for i in range(stop - row):
        x_rows[i] = x + picture * size[X_N] + in_picture * size[X_ROW] + column * size[X_COLUMN]
        y_rows[i] = y + picture * size[Y_N] + in_picture * size[Y_ROW] + column * size[Y_COLUMN]
        column += 1
        if column == size[WIDTH]:
            column = 0
            in_picture += 1
            if in_picture == size[HEIGHT]:
                in_picture = 0
                picture += 1


cdef int pack(const Call *call) noexcept nogil:
    """Matrices that come with the data, as panels.

    operands: matrices IN, bias IN (columns,) or NULL, places IN (n, 1): where each begins, panels
    OUT (n, ceil(columns / PANEL_COLUMNS), 1 + features, PANEL_COLUMNS).
    sizes: n, columns, features, stride from column to column, from feature to feature.
    """
    cdef int64_t n_panels = parts(call.size[1], PANEL_COLUMNS), t
    for t in prange(call.size[0] * n_panels, num_threads=call.threads):
        pack_task(call, t // n_panels, t % n_panels, n_panels)
    return 0


cdef void pack_task(
    const Call *call, int64_t place, int64_t panel, int64_t n_panels
) noexcept nogil:
    cdef int64_t columns = call.size[1], k = call.size[2], first = panel * PANEL_COLUMNS
    cdef const float *matrix = <const float *> call.operand[0]
    cdef const float *bias = <const float *> call.operand[1]
    matrix += (<const int64_t *> call.operand[2])[place] + first * call.size[3]
    pack_panel(
        matrix, call.size[3], call.size[4], bias + first if bias else bias,
        min(columns - first, PANEL_COLUMNS), k,
        <float *> call.operand[3] + (place * n_panels + panel) * (k + 1) * PANEL_COLUMNS)


cdef int turn(const Call *call) noexcept nogil:
    """Matrices with rows and columns exchanged.

    operands: x IN (n, k, rows), y OUT (n, rows, k). sizes: n, k, rows.
    """
    cdef int64_t rows = call.size[2], t
    for t in prange(call.size[0] * rows, num_threads=call.threads):
        turn_row(call, t // rows, t % rows)
    return 0


cdef void turn_row(const Call *call, int64_t matrix, int64_t row) noexcept nogil:
    cdef int64_t k = call.size[1], rows = call.size[2], f
    cdef const float *x = <const float *> call.operand[0] + matrix * k * rows + row
    cdef float *y = <float *> call.operand[1] + (matrix * rows + row) * k
    for f in range(k):
        y[f] = x[f * rows]


cdef int pad(const Call *call) noexcept nogil:
    """Pictures with a border of zeros.

    operands: x IN (n, height, width, channels), y OUT (n, height + 2 borders, ...).
    sizes: n, height, width, channels, top, left, bottom, right; a border is never negative.
    """
    cdef int64_t height = call.size[1] + call.size[4] + call.size[6], t
    for t in prange(call.size[0] * height, num_threads=call.threads):
        pad_row(call, t // height, t % height)
    return 0


cdef void pad_row(const Call *call, int64_t picture, int64_t row) noexcept nogil:
    cdef const int64_t *size = &call.size[0]
    cdef int64_t channels = size[3], inner = size[2] * channels
    cdef int64_t left = size[5] * channels, right = size[7] * channels
    cdef int64_t from_row = row - size[4]
    cdef const float *x = <const float *> call.operand[0]
    cdef float *y = <float *> call.operand[1]
    y += (picture * (size[1] + size[4] + size[6]) + row) * (left + inner + right)
    if not 0 <= from_row < size[1]:
        memset(y, 0, (left + inner + right) * sizeof(float))
        return
    memset(y, 0, left * sizeof(float))
    memcpy(y + left, x + (picture * size[1] + from_row) * inner, inner * sizeof(float))
    memset(y + left + inner, 0, right * sizeof(float))


entries = {
    "product": entry(product), "pack": entry(pack), "turn": entry(turn), "pad": entry(pad),
}
