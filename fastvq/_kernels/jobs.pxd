# Products of 8-bit integers as kernels ask for them; see int8.h and dot.h.

from libc.stdint cimport int8_t, int32_t, int64_t, uint32_t

cdef extern from "int8.h" nogil:
    enum:
        DOT_WHOLE
        DOT_PAIRED
        DOT_PICKED
        DOT_CHOICE
        DOT_MOST_GROUPS
        DOT_PICK
        DOT_PICK_ADVANCE
        DOT_PICK_COUNT
        DOT_PICK_DOUBLES
        DOT_ROWS
        DOT_COLUMNS
        FROM_FLOAT
        TO_FLOAT
    int dot_group(int form)
    int dot_step(int form)
    int dot_offset(int form)
    ctypedef struct RowScale:
        float scale
        int32_t zero_point
    ctypedef struct Span:
        int64_t group, word, steps
    ctypedef struct Window:
        int64_t height, width, channels, out_height, out_width, kernel_height, kernel_width
        int64_t stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x
    ctypedef struct Job:
        int input "from"
        int to
        const void *x
        int64_t rows, width, columns, stride, groups, out_stride
        int form, offset
        const int8_t *panels
        const Span *spans
        const uint32_t *orders
        const int32_t *column_sums
        const int32_t *start
        const float *multiplier
        const float *bias
        const int8_t *table
        float low, high
        int32_t zero_point
        int8_t padding
        const float *picture_scale
        const int32_t *picture_zero_point
        Window window
        void *y
    int64_t job_panels(const Job *)
    int64_t block_bytes(int form, int64_t rows, int64_t width)
    void int8_fill(const Job *, int64_t, int64_t, int64_t, char *)
    void int8_multiply(const Job *, int64_t, int64_t, int64_t, int64_t, int64_t, char *)
    RowScale row_scale(const float *, int64_t)
    void quantize_row(const float *, int64_t, RowScale, int, int8_t *)
