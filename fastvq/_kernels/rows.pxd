# How a kernel reads the caller's rows: any strides, any of five element types, all rows or a list
# of them, converted block by block. Header only: every kernel inlines its own copy.

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t

ctypedef fused real:
    float
    double

ctypedef fused sample:
    float
    double
    uint8_t
    int8_t
    uint16_t  # float16, as its bits: C has no portable type for it

cdef struct Rows:
    const char *data
    Py_ssize_t row_stride  # bytes
    Py_ssize_t feature_stride  # bytes
    Py_ssize_t n_features
    Py_ssize_t n_missing  # the last features, not in memory: they are 0
    int kind  # place of the dtype in kernels.KINDS
    const Py_ssize_t *index  # positions -> rows, or NULL: position i is row i


cdef inline Rows rows_of(tuple source):
    """The struct of what `kernels.source` made of an array (whose owner stays alive there)."""
    cdef Rows rows
    cdef size_t data = source[0], index = source[6]
    rows.data = <const char *> data
    rows.row_stride = source[1]
    rows.feature_stride = source[2]
    rows.n_features = source[3]
    rows.n_missing = source[4]
    rows.kind = source[5]
    rows.index = <const Py_ssize_t *> index
    return rows


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    /* float16 to float32 in plain integer arithmetic, the same on every level: shift the fields
       into place, then multiply by 2^112 to correct the exponent (subnormals come right by
       themselves); what had the top exponent is infinity or NaN. */
    static inline float float16_value(uint16_t bits)
    {
        uint32_t shifted = (uint32_t)(bits & 0x7fff) << 13;
        float value;
        memcpy(&value, &shifted, 4);
        value *= 0x1p112f;
        memcpy(&shifted, &value, 4);
        shifted |= ((bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u) | (uint32_t)(bits & 0x8000) << 16;
        memcpy(&value, &shifted, 4);
        return value;
    }
    """
    float float16_value(uint16_t bits) noexcept nogil


cdef inline real value_of(sample x, real like) noexcept nogil:
    if sample is uint16_t:
        return <real> float16_value(x)
    else:
        return <real> x


cdef inline const char *row_at(const Rows *rows, Py_ssize_t position) noexcept nogil:
    cdef Py_ssize_t row = position if rows.index == NULL else rows.index[position]
    return rows.data + row * rows.row_stride


cdef inline void copy_as(
    sample _, const Rows *rows, Py_ssize_t start, Py_ssize_t count,
    Py_ssize_t padded, real *target, Py_ssize_t row_step, Py_ssize_t feature_step,
) noexcept nogil:
    cdef Py_ssize_t r, f, d = rows.n_features - rows.n_missing, stride = rows.feature_stride
    cdef const char *source
    if rows.index == NULL and -stride < rows.row_stride < stride:
        # Fortran order: neighbours in memory are rows of one feature.
        for f in range(d):
            source = rows.data + start * rows.row_stride + f * stride
            for r in range(count):
                target[r * row_step + f * feature_step] = value_of(
                    (<const sample *> (source + r * rows.row_stride))[0], <real> 0)
    elif stride == sizeof(sample):
        for r in range(count):
            source = row_at(rows, start + r)
            if feature_step == 1:
                for f in range(d):
                    target[r * row_step + f] = value_of((<const sample *> source)[f], <real> 0)
            else:
                for f in range(d):
                    target[r * row_step + f * feature_step] = value_of(
                        (<const sample *> source)[f], <real> 0)
    else:
        for r in range(count):
            source = row_at(rows, start + r)
            for f in range(d):
                target[r * row_step + f * feature_step] = value_of(
                    (<const sample *> (source + f * stride))[0], <real> 0)
    for r in range(count):
        for f in range(d, rows.n_features):
            target[r * row_step + f * feature_step] = 0
    for r in range(count, padded):
        for f in range(rows.n_features):
            target[r * row_step + f * feature_step] = \
                target[(count - 1) * row_step + f * feature_step]


cdef extern from "pack.h" nogil:
    void f32_transpose(const float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, float *)
    void f64_transpose(const double *, Py_ssize_t, Py_ssize_t, Py_ssize_t, double *)


cdef inline bint lies_plain(const Rows *rows, real like) noexcept nogil:
    """Whether rows can be read in place: of the type wanted, complete, side by side, aligned."""
    return (rows.kind == (0 if sizeof(real) == 4 else 1) and rows.index == NULL
            and rows.n_missing == 0
            and rows.feature_stride == sizeof(real)
            and (<size_t> rows.data | <size_t> rows.row_stride) % sizeof(real) == 0)


cdef inline void pack_block(
    const Rows *rows, Py_ssize_t start, Py_ssize_t count, Py_ssize_t width, real *target,
) noexcept nogil:
    """target[f * width + r] = rows[start + r][f] for r < count; beyond, the last row again."""
    if count == width and lies_plain(rows, <real> 0):
        if real is float:
            f32_transpose(<const float *> row_at(rows, start), rows.row_stride // 4, width,
                          rows.n_features, target)
        else:
            f64_transpose(<const double *> row_at(rows, start), rows.row_stride // 8, width,
                          rows.n_features, target)
    else:
        copy_rows(rows, start, count, width, target, 1, width)


cdef inline void copy_rows(
    const Rows *rows, Py_ssize_t start, Py_ssize_t count, Py_ssize_t padded,
    real *target, Py_ssize_t row_step, Py_ssize_t feature_step,
) noexcept nogil:
    """target[r * row_step + f * feature_step] = rows[start + r][f] for r < count; from there to
    `padded` the last row is repeated. Steps are in elements."""
    if rows.kind == 0:
        copy_as(<float> 0, rows, start, count, padded, target, row_step, feature_step)
    elif rows.kind == 1:
        copy_as(<double> 0, rows, start, count, padded, target, row_step, feature_step)
    elif rows.kind == 2:
        copy_as(<uint8_t> 0, rows, start, count, padded, target, row_step, feature_step)
    elif rows.kind == 3:
        copy_as(<int8_t> 0, rows, start, count, padded, target, row_step, feature_step)
    else:
        copy_as(<uint16_t> 0, rows, start, count, padded, target, row_step, feature_step)


cdef inline const real *contiguous_rows(
    const Rows *rows, Py_ssize_t start, Py_ssize_t count, real *scratch,
) noexcept nogil:
    """Rows start .. start + count as a (count, d) C-contiguous block: in place where they lie so
    already, else converted into `scratch`."""
    if lies_plain(rows, <real> 0) and (
            count == 1 or rows.row_stride == <Py_ssize_t> (rows.n_features * sizeof(real))):
        return <const real *> row_at(rows, start)
    copy_rows(rows, start, count, count, scratch, rows.n_features, 1)
    return scratch


cdef inline const real *scaled_rows(
    const Rows *rows, Py_ssize_t start, Py_ssize_t count, real scale, real *scratch,
) noexcept nogil:
    """contiguous_rows, multiplied by scale."""
    cdef const real *block = contiguous_rows(rows, start, count, scratch)
    cdef Py_ssize_t i
    if scale == 1:
        return block
    for i in range(count * rows.n_features):
        scratch[i] = block[i] * scale
    return scratch


cdef extern from *:
    """
    /* In C because Cython's chained comparison becomes branches, which do not vectorise. */
    static inline int f32_within(const float *values, ptrdiff_t n, float limit)
    {
        int outside = 0;
        for (ptrdiff_t i = 0; i < n; i++) outside |= !(__builtin_fabsf(values[i]) < limit);
        return !outside;
    }
    static inline int f64_within(const double *values, ptrdiff_t n, double limit)
    {
        int64_t outside = 0;
        for (ptrdiff_t i = 0; i < n; i++) outside |= !(__builtin_fabs(values[i]) < limit);
        return !outside;
    }
    """
    int f32_within(const float *, Py_ssize_t, float) noexcept nogil
    int f64_within(const double *, Py_ssize_t, double) noexcept nogil


cdef inline bint within_range(const real *values, Py_ssize_t n) noexcept nogil:
    """Whether all values are finite and so small that d squares of them add up to a finite sum
    (NaN compares false). The limits are kernels.LIMITS."""
    if real is float:
        return f32_within(values, n, <float> (2.0 ** 56))
    else:
        return f64_within(values, n, 2.0 ** 500)
