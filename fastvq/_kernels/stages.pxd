# How kernels see the codebooks of several stages, and a row's unary values; see stages.h.

from libc.stdint cimport int32_t, uint8_t, uint16_t

from fastvq._kernels.rows cimport Rows, copy_rows, real, within_range

cdef extern from "stages.h" nogil:
    enum:
        STAGE_STEP
        STAGE_ROWS
        WIDE_CODEWORDS
        WIDE_VECTORS
        F32_LANES
        F64_LANES
    void f32_block_products(const float *, const float *, Py_ssize_t, Py_ssize_t, float *,
                            Py_ssize_t)
    void f64_block_products(const double *, const double *, Py_ssize_t, Py_ssize_t, double *,
                            Py_ssize_t)

cdef enum:
    # Numbers of codewords are rounded up to this: a multiple of a block and of STAGE_STEP at every
    # level, so that the layout does not depend on it.
    STAGE_UNIT = 48

cdef struct Stages:
    Py_ssize_t n
    const Py_ssize_t *first  # number of a stage's first codeword
    const Py_ssize_t *size  # its codewords
    Py_ssize_t width  # codewords of all stages, padded: values that a row has


cdef inline Stages stages_of(
    const Py_ssize_t[::1] first, const Py_ssize_t[::1] size, Py_ssize_t width,
) noexcept:
    return Stages(first.shape[0], &first[0], &size[0], width)


cdef inline Py_ssize_t padded(Py_ssize_t size) noexcept nogil:
    """Codewords of a stage together with those that fill it up."""
    return (size + STAGE_STEP - 1) // STAGE_STEP * STAGE_STEP


cdef inline Py_ssize_t most_padded(const Stages *stages) noexcept nogil:
    cdef Py_ssize_t m, largest = 0
    for m in range(stages.n):
        largest = max(largest, padded(stages.size[m]))
    return largest


cdef inline Py_ssize_t block_codewords(real like) noexcept nogil:
    return WIDE_VECTORS * (F32_LANES if sizeof(real) == 4 else F64_LANES)


cdef inline Py_ssize_t panel_values(Py_ssize_t n_rows, Py_ssize_t d) noexcept nogil:
    """Values of so many packed rows: whole groups, each row with a leading factor."""
    return (n_rows + WIDE_CODEWORDS - 1) // WIDE_CODEWORDS * WIDE_CODEWORDS * (d + 1)


cdef inline void multiply_blocks(
    const real *blocks, Py_ssize_t n_codewords, const real *panels, Py_ssize_t n_rows,
    Py_ssize_t d, real *out, Py_ssize_t step,
) noexcept nogil:
    """out[r * step + c], products of packed rows with whole blocks of packed codewords."""
    cdef Py_ssize_t per_block = block_codewords(<real> 0), b
    cdef Py_ssize_t groups = (n_rows + WIDE_CODEWORDS - 1) // WIDE_CODEWORDS
    for b in range(n_codewords // per_block):
        if real is float:
            f32_block_products(blocks + b * per_block * (d + 1), panels, groups, d + 1,
                               out + b * per_block, step)
        else:
            f64_block_products(blocks + b * per_block * (d + 1), panels, groups, d + 1,
                               out + b * per_block, step)


cdef inline int pack_panels(
    const Rows *rows, Py_ssize_t start, Py_ssize_t count, real scale, const real *shift,
    real lead, real *panels,
) noexcept nogil:
    """Groups of rows x * scale - shift, feature-major, `lead` before the features; 1 where a row is
    out of range. What fills the last group is its last row again. No shift where it is NULL."""
    cdef Py_ssize_t d = rows.n_features, g, first, f, i
    cdef int bad = 0
    for g in range((count + WIDE_CODEWORDS - 1) // WIDE_CODEWORDS):
        first = g * WIDE_CODEWORDS
        for i in range(WIDE_CODEWORDS):
            panels[i] = lead
        panels += WIDE_CODEWORDS
        copy_rows(rows, start + first, min(<Py_ssize_t> WIDE_CODEWORDS, count - first),
                  WIDE_CODEWORDS, panels, 1, WIDE_CODEWORDS)
        if scale != 1:
            for i in range(WIDE_CODEWORDS * d):
                panels[i] *= scale
        bad |= not within_range(panels, WIDE_CODEWORDS * d)
        if shift != NULL:
            for f in range(d):
                for i in range(WIDE_CODEWORDS):
                    panels[f * WIDE_CODEWORDS + i] -= shift[f]
        panels += WIDE_CODEWORDS * d
    return bad


cdef inline void put_code(
    char *codes, int itemsize, Py_ssize_t place, int32_t code,
) noexcept nogil:
    if itemsize == 1:
        (<uint8_t *> codes)[place] = <uint8_t> code
    elif itemsize == 2:
        (<uint16_t *> codes)[place] = <uint16_t> code
    else:
        (<int32_t *> codes)[place] = code
