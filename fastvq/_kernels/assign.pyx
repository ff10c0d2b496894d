"""Nearest codewords.

The code of a row is the first index k that minimises sum_f (x_f - c_kf)^2, each sum taken over
features in order in the codebook's precision: that, the *direct* value, is the definition, and it
depends on the row and the codebook alone. The *expanded* value |c|^2 - 2 x.c costs half the
arithmetic but loses digits; it serves where best and second best differ by more than both kinds
of rounding together can explain, and marks the other rows as doubtful for the direct tile. So
every plan gives the same codes.
"""

from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, uint8_t

from fastvq._kernels.codes_out cimport put_codes
from fastvq._kernels.rows cimport Rows, pack_block, real, rows_of, scaled_rows

cdef extern from "tile.h" nogil:
    enum:
        NARROW_FEATURES
        NARROW_CODEWORDS
        WIDE_CODEWORDS
        MOST_ROWS
        MOST_TOGETHER
    Py_ssize_t f32_block_rows(Py_ssize_t)
    Py_ssize_t f64_block_rows(Py_ssize_t)
    void f32_centre(const float *, Py_ssize_t, float, const float *, float *, float *)
    void f64_centre(const double *, Py_ssize_t, double, const double *, double *, double *)
    Py_ssize_t f32_blocks_together(Py_ssize_t)
    Py_ssize_t f64_blocks_together(Py_ssize_t)
    void f32_expand(const float *, Py_ssize_t, const float *, Py_ssize_t, Py_ssize_t, float *,
                    float *, float *, int32_t *, int32_t *)
    void f64_expand(const double *, Py_ssize_t, const double *, Py_ssize_t, Py_ssize_t, double *,
                    double *, double *, int32_t *, int32_t *)
    void f32_direct(const float *, const float *, Py_ssize_t, Py_ssize_t, float *, int32_t *)
    void f64_direct(const double *, const double *, Py_ssize_t, Py_ssize_t, double *, int32_t *)
    void f32_direct_two(const float *, const float *, Py_ssize_t, Py_ssize_t, float *, float *,
                        int32_t *)
    void f64_direct_two(const double *, const double *, Py_ssize_t, Py_ssize_t, double *,
                        double *, int32_t *)

cdef extern from "pair.h" nogil:
    float f32_in_order(const float *, const float *, Py_ssize_t)
    double f64_in_order(const double *, const double *, Py_ssize_t)

cdef enum:
    TASK_BLOCKS = 32  # blocks in a unit of work that a thread takes


def panel_codewords(Py_ssize_t d):
    """Codewords in a group of a packed codebook of d features; see tile_body.h."""
    return NARROW_CODEWORDS if d <= NARROW_FEATURES else WIDE_CODEWORDS


def workspace_bytes(Py_ssize_t d, int itemsize):
    """Scratch memory of one thread: the packed blocks that it works on."""
    return (rows_together(d, itemsize) * d * itemsize + 63) // 64 * 64


cdef inline Py_ssize_t rows_together(Py_ssize_t d, int itemsize) noexcept nogil:
    cdef Py_ssize_t blocks = f32_blocks_together(d) if itemsize == 4 else f64_blocks_together(d)
    return blocks * block_rows(d, itemsize)


cdef inline Py_ssize_t block_rows(Py_ssize_t d, int itemsize) noexcept nogil:
    return f32_block_rows(d) if itemsize == 4 else f64_block_rows(d)


cdef struct Codes:
    char *data  # where the code of position 0 goes
    int itemsize
    Py_ssize_t step  # codes from that of a position to that of the next


cdef inline void put(
    Codes codes, Py_ssize_t position, const int32_t *code, Py_ssize_t count,
) noexcept nogil:
    put_codes(codes.data + position * codes.step * codes.itemsize, codes.itemsize, codes.step, code,
              count)


def assign_expanded(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[::1] shift,  # IN (d,): rows become x * scale - shift
    const real[:, ::1] codebook,  # IN (k, d), multiplied by scale already
    const real[::1] panels,  # IN: the same, centred and packed; see tile_body.h
    double radius, double rounding,  # IN: largest |c - centre|, unit of rounding error
    size_t codes, int itemsize,  # OUT (stop - start,): address and size of an unsigned code
    uint8_t[::1] doubtful,  # OUT (stop - start,): 1 where the direct tile must decide
    real[::1] others,  # OUT (stop - start,) or (0,): lower bound of |x - c|^2, c not the code
    uint8_t[:, ::1] workspace,  # (n_threads, workspace_bytes), aligned to 64 bytes
    int n_threads,
):
    """Codes from the expanded values; 0, or 1 where a row is out of range (see rows.pxd)."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t d = rows.n_features
    cdef Py_ssize_t together = rows_together(d, sizeof(real))
    cdef Py_ssize_t blocks = together // block_rows(d, sizeof(real))
    cdef Py_ssize_t task = TASK_BLOCKS // blocks * together
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef Codes out = Codes(<char *> codes, itemsize, 1)
    cdef real *others_data = &others[0] if others.shape[0] else NULL
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= expand_task(
                &rows, start, start + t * task, min(start + (t + 1) * task, stop),
                <real> scale, &shift[0], &codebook[0, 0], codebook.shape[0], &panels[0], radius,
                rounding,
                out, &doubtful[0], others_data, <real *> &workspace[threadid(), 0])
    return bad


cdef int expand_task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop,
    real scale, const real *shift, const real *codebook, Py_ssize_t k, const real *panels,
    double radius, double rounding, Codes codes, uint8_t *doubtful, real *others, real *block,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, width = block_rows(d, sizeof(real))
    cdef Py_ssize_t together = rows_together(d, sizeof(real))
    cdef Py_ssize_t per_group = NARROW_CODEWORDS if d <= NARROW_FEATURES else WIDE_CODEWORDS
    cdef Py_ssize_t groups = (k + per_group - 1) // per_group
    cdef Py_ssize_t i, b, blocks, first, count, r, place
    cdef real best[MOST_TOGETHER]
    cdef real second[MOST_TOGETHER]
    cdef real third[MOST_TOGETHER]
    cdef real norm[MOST_TOGETHER]
    cdef real margin[MOST_TOGETHER]
    cdef int32_t code[MOST_TOGETHER]
    cdef int32_t runner_up[MOST_TOGETHER]
    cdef real *packed
    cdef real of_codebook = <real> (radius * radius * 4 * rounding)
    cdef real of_norm = <real> (1.001 * 4 * rounding)
    cdef int bad = 0
    for i in range((stop - start + together - 1) // together):
        first = start + i * together
        place = first - origin
        count = min(together, stop - first)
        blocks = (count + width - 1) // width
        for b in range(blocks):
            packed = block + b * width * d
            pack_block(rows, first + b * width, min(width, count - b * width), width, packed)
            if real is float:
                f32_centre(packed, d, scale, shift, packed, norm + b * width)
            else:
                f64_centre(packed, d, scale, shift, packed, norm + b * width)
        if real is float:
            f32_expand(block, blocks, panels, groups, d, best, second, third, code,
                       runner_up)
        else:
            f64_expand(block, blocks, panels, groups, d, best, second, third, code,
                       runner_up)
        bad |= out_of_range(norm, count)
        for r in range(count):
            # Twice the error of a value: rounding * ((|x| + R)^2 + |x - c|^2) at most, the first
            # part from the expansion, the second from the differences; see Prepared.rounding.
            margin[r] = 2 * (of_codebook + of_norm * norm[r])
        if others != NULL:
            for r in range(count):
                others[place + r] = max(<real> 0, second[r] + norm[r] - margin[r])
        for r in range(count):
            doubtful[place + r] = not (second[r] - best[r] > margin[r])
        for r in range(count):
            if doubtful[place + r] and third[r] - best[r] > margin[r]:
                doubtful[place + r] = 0
                code[r] = nearer(rows, first + r, scale, codebook, code[r], runner_up[r], block)
                if others != NULL:
                    others[place + r] = max(<real> 0, best[r] + norm[r] - margin[r])
        put(codes, place, code, count)
    return bad


cdef inline int32_t nearer(
    const Rows *rows, Py_ssize_t position, real scale, const real *codebook,
    int32_t a, int32_t b, real *scratch,
) noexcept nogil:
    """Which of two codewords is nearer to a row by definition; the lower of equally near ones."""
    cdef Py_ssize_t d = rows.n_features
    cdef const real *row = scaled_rows(rows, position, 1, scale, scratch)
    cdef real of_a, of_b
    if b < a:
        a, b = b, a
    if real is float:
        of_a, of_b = f32_in_order(row, codebook + a * d, d), f32_in_order(row, codebook + b * d, d)
    else:
        of_a, of_b = f64_in_order(row, codebook + a * d, d), f64_in_order(row, codebook + b * d, d)
    return b if of_b < of_a else a


cdef inline int out_of_range(const real *squares, Py_ssize_t n) noexcept nogil:
    """Whether a square or sum of squares is NaN, infinite or beyond the limit of rows.pxd; a row
    with such a value has such a norm, and such a distance to every codeword."""
    cdef real limit = <real> (2.0 ** 112) if real is float else <real> (2.0 ** 1000)
    cdef Py_ssize_t i
    cdef int outside = 0
    for i in range(n):
        outside |= not (squares[i] < limit)
    return outside


def assign_direct(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[:, ::1] codebook,  # IN (k, d), multiplied by scale already
    size_t codes, int itemsize,  # OUT (stop - start,)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Codes by definition; 0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t task = TASK_BLOCKS * block_rows(rows.n_features, sizeof(real))
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef Codes out = Codes(<char *> codes, itemsize, 1)
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= direct_task(
                &rows, start, start + t * task, min(start + (t + 1) * task, stop), <real> scale,
                &codebook[0, 0], codebook.shape[0], out, NULL, NULL,
                <real *> &workspace[threadid(), 0])
    return bad


def assign_two(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[:, ::1] codebook,  # IN (k, d), multiplied by scale already; k >= 2
    int32_t[:, ::1] codes, real[:, ::1] distances,  # OUT (stop - start, 2), nearest first
    uint8_t[:, ::1] workspace, int n_threads,
):
    """The two nearest codewords by definition; 0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t task = TASK_BLOCKS * block_rows(rows.n_features, sizeof(real))
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef Codes out = Codes(NULL, 0, 0)
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= direct_task(
                &rows, start, start + t * task, min(start + (t + 1) * task, stop), <real> scale,
                &codebook[0, 0], codebook.shape[0], out, &codes[0, 0], &distances[0, 0],
                <real *> &workspace[threadid(), 0])
    return bad


cdef int direct_task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, real scale,
    const real *codebook, Py_ssize_t k, Codes codes, int32_t *two_codes, real *two_distances,
    real *block,
) noexcept nogil:
    """Codes of the nearest into `codes`, or of the two nearest where `two_codes` is given."""
    cdef Py_ssize_t d = rows.n_features, width = block_rows(d, sizeof(real))
    cdef Py_ssize_t b, first, place, count, r, i
    cdef real best[MOST_ROWS]
    cdef real second[MOST_ROWS]
    cdef int32_t code[2 * MOST_ROWS]
    cdef int bad = 0
    for b in range((stop - start + width - 1) // width):
        first = start + b * width
        place = first - origin
        count = min(width, stop - first)
        pack_block(rows, first, count, width, block)
        if scale != 1:
            for i in range(d * width):
                block[i] *= scale
        if two_codes == NULL:
            if real is float:
                f32_direct(block, codebook, k, d, best, code)
            else:
                f64_direct(block, codebook, k, d, best, code)
            put(codes, place, code, count)
        else:
            if real is float:
                f32_direct_two(block, codebook, k, d, best, second, code)
            else:
                f64_direct_two(block, codebook, k, d, best, second, code)
            for r in range(2 * count):
                two_codes[2 * place + r] = code[r]
            for r in range(count):
                two_distances[2 * (place + r)] = best[r]
                two_distances[2 * (place + r) + 1] = second[r]
        bad |= out_of_range(best, count)
    return bad


cdef enum:
    # Bytes of a unit of work of assign_subspaces: rows stay in the second-level cache while all
    # subspaces pass by. Codebooks are read once for each such unit.
    SUBSPACES_TASK_BYTES = 131072


# One of the subspaces, as assign_subspaces reads it from its arguments.
cdef struct Subspace:
    Py_ssize_t first, n_features, n_codewords
    size_t codebook, panels, shift  # addresses; no panels: differences only
    double scale, radius, rounding  # see kernels.Prepared


cdef inline Py_ssize_t subspaces_task_rows(Py_ssize_t d, int itemsize) noexcept nogil:
    """So many rows that they are whole blocks of either shape."""
    cdef Py_ssize_t narrow = block_rows(1, itemsize)
    cdef Py_ssize_t wide = block_rows(NARROW_FEATURES + 1, itemsize)
    cdef Py_ssize_t whole = narrow
    while whole % wide:
        whole += narrow
    return whole * max(<Py_ssize_t> 1, SUBSPACES_TASK_BYTES // (whole * d * itemsize))


def assign_subspaces(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    const real[::1] like,  # its type is that of all codebooks
    const Py_ssize_t[:, ::1] places,  # IN (M, 3): first feature, features, codewords
    const size_t[:, ::1] addresses,  # IN (M, 3): codebook, panels or 0, shift
    const double[:, ::1] numbers,  # IN (M, 3): scale, radius, rounding
    size_t codes, int itemsize,  # OUT (stop - start, M)
    uint8_t[:, ::1] doubtful,  # OUT (M, stop - start): 1 where the direct tile must decide
    uint8_t[:, ::1] workspace,  # (n_threads, most workspace_bytes of a subspace)
    int n_threads,
):
    """Codes in each of several subspaces; 0, or 1 where a row is out of range.

    The rows of a task are read from memory once and all subspaces pass by them; one subspace after
    the other, as many calls, would read the cache lines of every row as often.
    """
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t M = places.shape[0], m
    cdef Py_ssize_t task = subspaces_task_rows(rows.n_features, sizeof(real))
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef char *out = <char *> codes
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            for m in range(M):
                bad |= subspace_task(
                    rows, start, start + t * task, min(start + (t + 1) * task, stop),
                    subspace_of(&places[m, 0], &addresses[m, 0], &numbers[m, 0]),
                    Codes(out + m * itemsize, itemsize, M), &doubtful[m, 0],
                    <real *> &workspace[threadid(), 0])
    return bad


cdef inline Subspace subspace_of(
    const Py_ssize_t *places, const size_t *addresses, const double *numbers,
) noexcept nogil:
    cdef Subspace subspace
    subspace.first, subspace.n_features, subspace.n_codewords = places[0], places[1], places[2]
    subspace.codebook, subspace.panels, subspace.shift = addresses[0], addresses[1], addresses[2]
    subspace.scale, subspace.radius, subspace.rounding = numbers[0], numbers[1], numbers[2]
    return subspace


cdef int subspace_task(
    Rows rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, Subspace subspace,
    Codes codes, uint8_t *doubtful, real *block,
) noexcept nogil:
    """`rows` is a copy, made narrower here: the features of the subspace alone."""
    cdef Py_ssize_t r
    rows.data += subspace.first * rows.feature_stride
    rows.n_features = subspace.n_features
    if subspace.panels:
        return expand_task(
            &rows, origin, start, stop, <real> subspace.scale, <const real *> subspace.shift,
            <const real *> subspace.codebook, subspace.n_codewords,
            <const real *> subspace.panels, subspace.radius, subspace.rounding, codes, doubtful,
            <real *> NULL, block)
    for r in range(start - origin, stop - origin):
        doubtful[r] = 0
    return direct_task(
        &rows, origin, start, stop, <real> subspace.scale, <const real *> subspace.codebook,
        subspace.n_codewords, codes, NULL, <real *> NULL, block)
