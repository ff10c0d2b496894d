"""What a product quantizer does beside assignment: rotating rows, and decoding.

A product of rows with a matrix, here, depends for each row on that row alone: rows lie in lanes and
every sum runs over the features in order (tile.h), as codes do that are taken from it. Codes in the
subspaces are the work of assign.pyx.
"""

from cython.parallel cimport prange, threadid
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from fastvq._kernels.rows cimport Rows, pack_block, real, rows_of, within_range

cdef extern from "pack.h" nogil:
    void f32_transpose(const float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, float *)

cdef extern from "tile.h" nogil:
    enum:
        WIDE_VECTORS
        WIDE_CODEWORDS
        F32_LANES
        F64_LANES
    void f32_wide_products(const float *, const float *, Py_ssize_t, Py_ssize_t, float *)
    void f64_wide_products(const double *, const double *, Py_ssize_t, Py_ssize_t, double *)

cdef extern from "stream.h" nogil:
    void stream_copy(void *, const void *, Py_ssize_t)
    void stream_end()

ctypedef fused code_type:
    uint8_t
    uint16_t
    uint32_t

cdef enum:
    ROTATE_BLOCKS = 8  # blocks in a unit of work that a thread takes
    DECODE_ROWS = 1024  # rows in one
    STREAM_BYTES = 33554432  # from so many on, decoded rows are written past the caches
    ALIGN = 16


def panel_columns():
    """Columns in a group of a packed matrix; see tile_body.h."""
    return WIDE_CODEWORDS


def workspace_bytes(Py_ssize_t d, int itemsize, Py_ssize_t n_columns):
    """Scratch memory of one thread: a packed block, and its products."""
    cdef Py_ssize_t rows = WIDE_VECTORS * (F32_LANES if itemsize == 4 else F64_LANES)
    return (rounded(rows * d) + rounded(rows * (n_columns + WIDE_CODEWORDS))) * itemsize


cdef inline Py_ssize_t rounded(Py_ssize_t values) noexcept nogil:
    """So many values that what follows is aligned again."""
    return (values + ALIGN - 1) // ALIGN * ALIGN


def rotate(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    const real[::1] panels,  # IN: the columns of the matrix as codewords; see tile_body.h
    real[:, ::1] out,  # OUT (stop - start, n_columns)
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Rows times a matrix; 0, or 1 where a row is out of range, or what became of it."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t width = WIDE_VECTORS * (F32_LANES if sizeof(real) == 4 else F64_LANES)
    cdef Py_ssize_t task = ROTATE_BLOCKS * width, n_columns = out.shape[1]
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= rotate_task(
                &rows, start + t * task, min(start + (t + 1) * task, stop), width, &panels[0],
                n_columns, &out[t * task, 0], <real *> &workspace[threadid(), 0])
    return bad


cdef int rotate_task(
    const Rows *rows, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t width, const real *panels,
    Py_ssize_t n_columns, real *out, real *block,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, first, count, b
    cdef Py_ssize_t groups = (n_columns + WIDE_CODEWORDS - 1) // WIDE_CODEWORDS
    cdef real *products = block + rounded(width * d)
    cdef int bad = 0
    for b in range((stop - start + width - 1) // width):
        first = start + b * width
        count = min(width, stop - first)
        pack_block(rows, first, count, width, block)
        if real is float:
            f32_wide_products(block, panels, groups, d, products)
        else:
            f64_wide_products(block, panels, groups, d, products)
        # NaN and infinity reach every product with a column that is not zero; the features are
        # asked as well for columns that are.
        bad |= not within_range(block, width * d) or not within_range(products, width * n_columns)
        put_rows(products, width, count, n_columns, out + b * width * n_columns)
    return bad


cdef inline void put_rows(
    const real *block, Py_ssize_t width, Py_ssize_t count, Py_ssize_t n_columns, real *out,
) noexcept nogil:
    """out[r, j] = block[j * width + r]"""
    cdef Py_ssize_t r, j
    if real is float:
        if count == width and n_columns % 4 == 0:  # packing, seen from the other side
            f32_transpose(block, width, n_columns, width, out)
            return
    for r in range(count):
        for j in range(n_columns):
            out[r * n_columns + j] = block[j * width + r]


def decode(
    const code_type[:, ::1] codes,  # IN (n, M)
    const Py_ssize_t[:, ::1] places,  # IN (M, 3): first feature, features, codewords
    const size_t[::1] codebooks,  # IN (M,): their addresses
    real[:, ::1] out,  # OUT (n, d)
    int n_threads,
):
    """Codewords side by side; 0, or 1 where a code names none (its row is not to be used)."""
    cdef Py_ssize_t n = codes.shape[0], M = codes.shape[1], d = out.shape[1], t
    cdef Py_ssize_t n_tasks = (n + DECODE_ROWS - 1) // DECODE_ROWS
    cdef Py_ssize_t m
    cdef int bad = 0
    cdef bint stream = (n * d * <Py_ssize_t> sizeof(real) >= STREAM_BYTES
                        and <size_t> &out[0, 0] % 16 == 0)
    for m in range(M):
        stream = stream and places[m, 1] * sizeof(real) % 16 == 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= decode_task(
                &codes[t * DECODE_ROWS, 0], min(<Py_ssize_t> DECODE_ROWS, n - t * DECODE_ROWS), M,
                &places[0, 0], &codebooks[0], d, &out[t * DECODE_ROWS, 0], stream)
    return bad


cdef int decode_task(
    const code_type *codes, Py_ssize_t count, Py_ssize_t M, const Py_ssize_t *places,
    const size_t *codebooks, Py_ssize_t d, real *out, bint stream,
) noexcept nogil:
    cdef Py_ssize_t r, m, size
    cdef const real *codebook
    cdef Py_ssize_t code, k
    cdef int bad = 0
    for r in range(count):
        for m in range(M):
            size, k = places[3 * m + 1], places[3 * m + 2]
            codebook = <const real *> codebooks[m]
            code = <Py_ssize_t> codes[r * M + m]
            if code >= k:
                bad, code = 1, 0
            if stream:
                stream_codeword(codebook + code * size, size, out)
            else:
                copy_codeword(codebook + code * size, size, out)
            out += size
    if stream:
        stream_end()
    return bad


cdef inline void stream_codeword(const real *codeword, Py_ssize_t size, real *out) noexcept nogil:
    if size == 8:
        stream_copy(out, codeword, 8 * sizeof(real))
    else:
        stream_copy(out, codeword, size * sizeof(real))


cdef inline void copy_codeword(const real *codeword, Py_ssize_t size, real *out) noexcept nogil:
    """Of the usual few features in a register or two: with a size that the compiler knows memcpy is
    no call, and no loop that must expect `out` to change the codeword."""
    cdef Py_ssize_t f
    if size == 8:
        memcpy(out, codeword, 8 * sizeof(real))
    elif size == 4:
        memcpy(out, codeword, 4 * sizeof(real))
    elif size == 16:
        memcpy(out, codeword, 16 * sizeof(real))
    else:
        for f in range(size):
            out[f] = codeword[f]
