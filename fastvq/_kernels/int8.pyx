"""Products of 8-bit integers: dense layers and convolutions; see int8.h and dot.h."""

from cython.parallel cimport prange, threadid
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memset

from fastvq._kernels.call cimport Call, entry
from fastvq._kernels.jobs cimport (
    DOT_CHOICE, DOT_COLUMNS, DOT_MOST_GROUPS, DOT_PAIRED, DOT_PICK, DOT_PICK_ADVANCE,
    DOT_PICK_COUNT, DOT_PICK_DOUBLES, DOT_PICKED, DOT_ROWS, DOT_WHOLE, TO_FLOAT, Job, RowScale, Span, Window,
    block_bytes, dot_group, dot_offset, dot_step, int8_fill, int8_multiply, job_panels,
    quantize_row, row_scale,
)

cdef extern from "int8_depthwise.h" nogil:
    int64_t depthwise_bytes(int64_t height, int64_t width, int64_t channels, int64_t stride)
    void depthwise_block(const Job *, int64_t, int64_t, char *)
    int64_t tap_count "tap_words"(int64_t height, int64_t width, int64_t channels)
    void put_tap(int64_t height, int64_t width, int64_t y, int64_t x, int64_t channel,
                 int8_t weight, int32_t *packed)

# Left operands of a block stay in the second-level cache beside a panel.
cdef enum:
    BLOCK_BYTES = 192 * 1024

# Output places of a depthwise task.
cdef enum:
    PLACES = 64

cdef extern from *:
    """
    #if DOT_HAS_PAIRED
    enum { HAS_PAIRED = 1 };
    #else
    enum { HAS_PAIRED = 0 };
    #endif
    """
    enum:
        HAS_PAIRED

cdef extern from "pairing.h" nogil:
    enum:
        ALONE
    int find_orders(const int8_t *weight, int64_t step, int columns, int count, uint32_t *orders,
                    int8_t *doubles)

# The forms of a weight, and whether this level has more than the first; columns of a panel, values
# that groups pick from, and how many groups there can be of these; the groups of a pick, and where
# in its first word the number of doubles and the step to the next one's values stand.
WHOLE, PAIRED, PICKED, CAN_PAIR = DOT_WHOLE, DOT_PAIRED, DOT_PICKED, bool(HAS_PAIRED)
COLUMNS, CHOICE, GROUPS = DOT_COLUMNS, DOT_CHOICE, DOT_MOST_GROUPS
PICK, DOUBLES, ADVANCE = DOT_PICK, DOT_PICK_DOUBLES, DOT_PICK_ADVANCE


def group(int form):
    """Values of a group."""
    return dot_group(form)


def offset(int form):
    """What is added to a left operand."""
    return dot_offset(form)


cdef int64_t rows_of_block(int form, int64_t rows, int64_t width) noexcept nogil:
    cdef int64_t most = BLOCK_BYTES // block_bytes(form, 1, width) // DOT_ROWS * DOT_ROWS
    return max(1, min(rows, max(most, <int64_t> DOT_ROWS)))


def scratch_bytes(int form, int64_t rows, int64_t width):
    """What a thread needs for itself."""
    return (block_bytes(form, rows_of_block(form, rows, width), width) + 63) // 64 * 64


# ---- packing -------------------------------------------------------------------------------------


cdef void pack_weight(
    int form, const int8_t *weight, int64_t n, int64_t k, int64_t n_step, int64_t k_step, int8_t *panels,
    int32_t *sums,
) noexcept nogil:
    """weight IN, rows n_step and values k_step apart; panels OUT; sums OUT (n,), of each row."""
    cdef int64_t size = dot_group(form), steps = (k + size - 1) // size, j, f
    cdef int8_t *panel
    cdef int32_t total
    memset(panels, 0, (n + DOT_COLUMNS - 1) // DOT_COLUMNS * steps * dot_step(form))
    for j in range(n):
        panel = panels + (j // DOT_COLUMNS * steps * DOT_COLUMNS + j % DOT_COLUMNS) * size
        total = 0
        for f in range(k):
            panel[f // size * size * DOT_COLUMNS + f % size] = weight[j * n_step + f * k_step]
            total += weight[j * n_step + f * k_step]
        sums[j] = total


def pack(int form, const int8_t[:, :] weight, int8_t[::1] panels, int32_t[::1] column_sums):
    """The weight as the tile reads it, and the sum of each of its rows.

    weight IN (n, k); panels OUT (ceil(n / COLUMNS) * ceil(k / group) * group * COLUMNS);
    column_sums OUT (n,).
    """
    with nogil:
        pack_weight(form, &weight[0, 0], weight.shape[0], weight.shape[1], weight.strides[0],
                    weight.strides[1], &panels[0], &column_sums[0])


def plan_pairs(
    const int8_t[:, ::1] weight, uint32_t[:, :, ::1] orders, int8_t[:, ::1] counts,
    int8_t[:, ::1] doubles,
):
    """Groups of a picked weight.

    weight IN (n, k); orders OUT (ceil(n / COLUMNS), ceil(k / CHOICE), GROUPS): the numbers of their
    values; counts OUT: how many groups there are; doubles OUT: how many twos of them come first
    that are added in 16 bits.
    """
    cdef int64_t n = weight.shape[0], k = weight.shape[1], panel, block, j, f
    with nogil:
        for panel in range(counts.shape[0]):
            for block in range(counts.shape[1]):
                j, f = panel * DOT_COLUMNS, block * DOT_CHOICE
                counts[panel, block] = find_orders(
                    &weight[j, f], k, <int> min(n - j, <int64_t> DOT_COLUMNS),
                    <int> min(k - f, <int64_t> DOT_CHOICE), &orders[panel, block, 0],
                    &doubles[panel, block])


def pack_picked(
    const int8_t[:, ::1] weight, const int64_t[:, ::1] spans, const uint32_t[::1] orders,
    int8_t[::1] panels, int32_t[::1] column_sums,
):
    """weight IN (n, k); spans IN (panels, 3), orders IN: as in struct Job; panels OUT of all
    weights of a layer, 0 before; column_sums OUT (n,)."""
    cdef int64_t j
    cdef const Span *span
    with nogil:
        for j in range(weight.shape[0]):
            span = <const Span *> &spans[j // DOT_COLUMNS, 0]
            column_sums[j] = pack_column(
                &weight[j, 0], span.steps, &orders[span.word],
                &panels[(span.group * DOT_COLUMNS + j % DOT_COLUMNS) * 4])


cdef int32_t pack_column(
    const int8_t *column, int64_t picks, const uint32_t *orders, int8_t *panel,
) noexcept nogil:
    """The sum of the column; panel: its first group."""
    cdef const uint8_t *order
    cdef int64_t group, i
    cdef int32_t total = 0
    for _ in range(picks):
        for group in range(orders[0] & DOT_PICK_COUNT):
            order = <const uint8_t *> (orders + 1 + group)
            for i in range(4):
                if order[i] != ALONE:
                    panel[i] = column[order[i]]
                    total += panel[i]
            panel += 4 * DOT_COLUMNS
        column += orders[0] >> DOT_PICK_ADVANCE
        orders += 1 + (orders[0] & DOT_PICK_COUNT)
    return total


def depthwise_scratch(int64_t height, int64_t width, int64_t channels, int64_t stride):
    """What a thread needs for itself; of windows, which lie `stride` apart along a row."""
    return depthwise_bytes(height, width, channels, stride)


def tap_words(int64_t height, int64_t width, int64_t channels):
    """How many words packed taps take."""
    return tap_count(height, width, channels)


def pack_taps(const int8_t[:, :, ::1] weight, int32_t[::1] packed):
    """weight IN (channels, height, width); packed OUT (tap_words,)."""
    cdef int64_t c, y, x, height = weight.shape[1], width = weight.shape[2]
    packed[:] = 0
    for c in range(weight.shape[0]):
        for y in range(height):
            for x in range(width):
                put_tap(height, width, y, x, c, weight[c, y, x], &packed[0])


cdef void one_task(
    const Job *job, int64_t task, int64_t blocks, int64_t per_block, int64_t chunks, char *scratch,
) noexcept nogil:
    """A block of rows and a share of the panels of one group."""
    cdef int64_t chunk = task % chunks, block = task // chunks % blocks
    cdef int64_t group = task // (chunks * blocks), panels = job_panels(job)
    cdef int64_t first = block * per_block
    cdef int64_t count = min(per_block, job.rows - first)
    int8_fill(job, first, count, group, scratch)
    int8_multiply(job, first, count, group, panels * chunk // chunks,
                  panels * (chunk + 1) // chunks, scratch)


cdef void run_job(const Job *job, int threads, char *scratch) noexcept nogil:
    """Tasks of any order: none shares an output with another."""
    cdef int64_t per_block = rows_of_block(job.form, job.rows, job.width)
    cdef int64_t blocks, chunks = 1, task
    cdef int64_t room = (block_bytes(job.form, per_block, job.width) + 63) // 64 * 64
    # Smaller blocks where threads would be idle; then panels are shared out, and packing repeated.
    while threads > 1 and job.groups * ((job.rows + per_block - 1) // per_block) < 2 * threads \
            and per_block > 2 * DOT_ROWS:
        per_block = (per_block // 2 + DOT_ROWS - 1) // DOT_ROWS * DOT_ROWS
    blocks = (job.rows + per_block - 1) // per_block
    if threads > 1 and blocks * job.groups < 2 * threads:
        chunks = max(1, min(job_panels(job), 2 * threads // (blocks * job.groups)))
    if threads == 1:
        for task in range(job.groups * blocks * chunks):
            one_task(job, task, blocks, per_block, chunks, scratch)
        return
    for task in prange(job.groups * blocks * chunks, num_threads=threads, schedule="dynamic"):
        one_task(job, task, blocks, per_block, chunks, scratch + threadid() * room)


cdef void take_job(Job *job, const Call *call) noexcept nogil:
    cdef const int64_t *size = &call.size[0]
    job.x, job.panels = call.operand[0], <const int8_t *> call.operand[1]
    job.spans = <const Span *> call.operand[2]
    job.orders = <const uint32_t *> call.operand[3]
    job.column_sums = <const int32_t *> call.operand[4]
    job.start = <const int32_t *> call.operand[5]
    job.multiplier = <const float *> call.operand[6]
    job.bias = <const float *> call.operand[7]
    job.table = <const int8_t *> call.operand[8]
    job.y = call.operand[9]
    job.input, job.to = <int> size[0], <int> size[1]
    job.rows, job.width, job.columns = size[2], size[3], size[4]
    job.groups, job.stride, job.out_stride = size[5], size[6], size[7]
    job.zero_point, job.padding = <int32_t> size[8], <int8_t> size[9]
    job.form = <int> size[10]
    job.offset = dot_offset(job.form)
    job.low, job.high = <float> call.value[0], <float> call.value[1]


cdef void take_window(Job *job, const Call *call) noexcept nogil:
    cdef const int64_t *size = &call.size[11]
    job.window = Window(
        size[0], size[1], size[2], size[3], size[4], size[5], size[6], size[7], size[8],
        size[9], size[10], size[11], size[12])
    job.picture_scale = <const float *> call.operand[11]
    job.picture_zero_point = <const int32_t *> call.operand[12]


cdef int rows(const Call *call) noexcept nogil:
    """Rows times a weight: int8 to int32, int8 or float32, or float32 by way of int8 to float32.

    operands: x IN (rows, width) int8 or float32; panels, spans and orders (or NULL), column sums,
    start, multiplier, bias, table IN as in struct Job; y OUT; scratch (threads, scratch_bytes).
    sizes: from, to, rows, width, columns, groups, stride, out stride, zero point, padding, form.
    values: low, high.
    """
    cdef Job job
    take_job(&job, call)
    run_job(&job, call.threads, <char *> call.operand[10])
    return 0


cdef int patches(const Call *call) noexcept nogil:
    """A convolution of pictures (N, H, W, C) in int8, in groups: `rows` are output places.

    As `rows`, and sizes from 11: height, width, channels of x, then of y height and width, of the
    kernel height and width, strides, dilations, pads at the top and the left. Operands 11, 12: scale
    float32 and zero point int32 IN of each picture, or NULL.
    """
    cdef Job job
    take_job(&job, call)
    take_window(&job, call)
    run_job(&job, call.threads, <char *> call.operand[10])
    return 0


cdef int depthwise(const Call *call) noexcept nogil:
    """A convolution with a filter for each channel: as `patches`, with the panels of `pack_taps`.

    width: the taps; columns: the channels; scratch (threads, depthwise_scratch).
    """
    cdef Job job
    cdef int64_t block, room
    cdef char *scratch = <char *> call.operand[10]
    take_job(&job, call)
    take_window(&job, call)
    job.offset = 0  # taps are no left operands
    room = depthwise_bytes(job.window.kernel_height, job.window.kernel_width, job.columns,
                           job.window.stride_x)
    for block in prange((job.rows + PLACES - 1) // PLACES, num_threads=call.threads,
                        schedule="dynamic"):
        depthwise_block(&job, block * PLACES, min(<int64_t> PLACES, job.rows - block * PLACES),
                        scratch + threadid() * room)
    return 0


cdef void one_product(const Call *call, int64_t number, char *scratch) noexcept nogil:
    """One pair of matrices: the right one is packed, then it is a weight."""
    cdef const int64_t *size = &call.size[0]
    cdef int64_t n = size[4], k = size[3]
    cdef int64_t n_padded = (n + DOT_COLUMNS - 1) // DOT_COLUMNS * DOT_COLUMNS
    cdef int64_t j, item = 4 if size[1] == TO_FLOAT else 1
    cdef const int8_t *b = <const int8_t *> call.operand[1] + call_places(call, number)[1] * n * k
    cdef int32_t *start = <int32_t *> scratch
    cdef int8_t *panels = <int8_t *> (start + n_padded)
    cdef Job job
    take_job(&job, call)
    memset(start, 0, n_padded * sizeof(int32_t))
    pack_weight(DOT_WHOLE, b, n, k, size[11], size[12], panels, start)
    for j in range(n):
        start[j] *= -<int32_t> (size[13] + job.offset)
    job.x = <const int8_t *> call.operand[0] + call_places(call, number)[0] * job.rows * k
    job.panels, job.start = panels, start
    job.y = <char *> call.operand[9] + number * job.rows * n * item
    run_job(&job, 1, scratch + product_bytes(n, k))


cdef const int64_t *call_places(const Call *call, int64_t number) noexcept nogil:
    """Which matrix of a and which of b: operand 11, (batch, 2)."""
    return <const int64_t *> call.operand[11] + 2 * number


cdef int64_t product_bytes(int64_t n, int64_t k) noexcept nogil:
    cdef int64_t columns = (n + DOT_COLUMNS - 1) // DOT_COLUMNS * DOT_COLUMNS
    return (columns * (4 + (k + 4) // 4 * 4) + 127) // 64 * 64


def matmul_scratch(int64_t rows, int64_t n, int64_t k):
    """What a thread needs for itself."""
    return product_bytes(n, k) + scratch_bytes(DOT_WHOLE, rows, k)


cdef int matmul(const Call *call) noexcept nogil:
    """Products of pairs of int8 matrices, a (rows, k) and b, which lies as (k, n) or (n, k).

    operands: as `rows`, b in place of panels; operand 11 IN int64 (batch, 2): number of a and of b.
    sizes: as `rows`, the form being WHOLE; from 11: steps of b from a column to the next and along k, zero point of a,
    the batch, scratch of a thread.
    """
    cdef int64_t number
    for number in prange(call.size[14], num_threads=call.threads, schedule="dynamic"):
        one_product(call, number, <char *> call.operand[10] + threadid() * call.size[15])
    return 0


cdef void quantize_one(
    const float *x, int64_t width, int8_t *codes, float *scale, int32_t *zero_point,
) noexcept nogil:
    cdef RowScale by = row_scale(x, width)
    quantize_row(x, width, by, 0, codes)
    scale[0], zero_point[0] = by.scale, by.zero_point


cdef int quantize_rows(const Call *call) noexcept nogil:
    """operands: x IN (rows, width) float32, codes OUT int8, scale, zero_point OUT (rows,).

    sizes: rows, width, stride of x.
    """
    cdef int64_t n = call.size[0], width = call.size[1], stride = call.size[2], i
    cdef const float *x = <const float *> call.operand[0]
    cdef int8_t *codes = <int8_t *> call.operand[1]
    cdef float *scale = <float *> call.operand[2]
    cdef int32_t *zero_point = <int32_t *> call.operand[3]
    for i in prange(n, num_threads=call.threads, schedule="static"):
        quantize_one(x + i * stride, width, codes + i * width, scale + i, zero_point + i)
    return 0


entries = {
    "rows": entry(rows), "patches": entry(patches), "depthwise": entry(depthwise),
    "matmul": entry(matmul), "quantize_rows": entry(quantize_rows),
}
