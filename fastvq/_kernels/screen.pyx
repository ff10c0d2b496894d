"""Exact assignment that skips most of the arithmetic: screening by leading coordinates.

Let B have orthonormal rows, z = B (x - m) the coordinates of a row in a few leading directions and
rho = |x - m - B'z| the length of what they leave out; the same for codewords. By Cauchy-Schwarz

    |x - c|^2  >=  |z_x - z_c|^2 + (rho_x - rho_c)^2,

so the squared distance of the short vectors (z, rho) is a lower bound, and a codeword whose bound
exceeds a distance already known is out. The first screen takes `n_first` coordinates for every
codeword, in the register tile; what is left is screened again with all `n_all` coordinates, pair
by pair; what is left then is measured in full. Rounding is allowed for: every bound is lowered by
what it may be too high. Rows whose two best are too close to tell are left to the direct tile, so
the codes are those of `assign`, whatever the directions. Data with a decaying spectrum (pictures,
embeddings) keep about one codeword in a hundred.

This is the partial-distance search of Bei and Gray (1985) behind a rotation, with the length of
the rest as one more coordinate.
"""

from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, sqrt
from libc.stdint cimport int32_t, uint8_t, uint64_t

from fastvq._kernels.pair cimport squared_distance
from fastvq._kernels.rows cimport Rows, contiguous_rows, pack_block, rows_of

cdef extern from "screen.h" nogil:
    enum:
        SCREEN_ROWS
        WIDE_CODEWORDS
    void f32_wide_products(const float *, const float *, Py_ssize_t, Py_ssize_t, float *)
    void f32_wide_centre(const float *, Py_ssize_t, float, const float *, float *, float *)
    void screen_smallest(const float *, Py_ssize_t, int32_t *)
    uint64_t screen_below(const float *, const float *)
    int lowest_bit(uint64_t)

cdef enum:
    TASK_BLOCKS = 4  # blocks in a unit of work that a thread takes
    ALIGN = 64


def group_codewords():
    """Codewords in a group of the packed panels; see tile_body.h."""
    return WIDE_CODEWORDS


def workspace_bytes(Py_ssize_t d, Py_ssize_t k, Py_ssize_t n_all):
    """Scratch memory of one thread: see Scratch."""
    return 4 * (
        rounded(SCREEN_ROWS * d) + rounded(SCREEN_ROWS * d)
        + rounded(SCREEN_ROWS * (n_all + 2 + WIDE_CODEWORDS))
        + rounded(SCREEN_ROWS * (n_all + 2)) + rounded(SCREEN_ROWS * (n_all + 2))
        + rounded(SCREEN_ROWS * (k + WIDE_CODEWORDS))
    )


cdef inline Py_ssize_t rounded(Py_ssize_t floats) noexcept nogil:
    return (floats + ALIGN // 4 - 1) // (ALIGN // 4) * (ALIGN // 4)


cdef struct Scratch:
    float *rows  # (SCREEN_ROWS, d), where rows cannot be read in place
    float *packed  # (d, SCREEN_ROWS)
    float *products  # (n_all rounded up, SCREEN_ROWS)
    float *short_rows  # (SCREEN_ROWS, n_all + 2)
    float *screen  # (n_first + 1, SCREEN_ROWS)
    float *values  # (k rounded up, SCREEN_ROWS)


cdef inline Scratch scratch_of(
    float *memory, Py_ssize_t d, Py_ssize_t n_all,
) noexcept nogil:
    cdef Scratch scratch
    scratch.rows = memory
    scratch.packed = scratch.rows + rounded(SCREEN_ROWS * d)
    scratch.products = scratch.packed + rounded(SCREEN_ROWS * d)
    scratch.short_rows = scratch.products + rounded(SCREEN_ROWS * (n_all + 2 + WIDE_CODEWORDS))
    scratch.screen = scratch.short_rows + rounded(SCREEN_ROWS * (n_all + 2))
    scratch.values = scratch.screen + rounded(SCREEN_ROWS * (n_all + 2))
    return scratch


# What does not change from row to row.
cdef struct Plan:
    const float *shift  # (d,) the centre m
    const float *basis  # packed panels of B: n_all rows of d features
    Py_ssize_t n_first, n_all
    double projection  # relative error of a coordinate vector, |error| <= projection * |x - m|
    const float *panels  # packed panels of the short codewords: k of n_first + 1 features
    const float *short_codebook  # (k, n_all + 1)
    const float *codebook  # (k, d)
    Py_ssize_t k
    double radius  # largest |c - m|
    double slack  # error of the short codewords, as a length
    double rounding  # relative error of a distance of d features


cdef Plan plan_of(
    const float[::1] shift, const float[::1] basis, Py_ssize_t n_first, Py_ssize_t n_all,
    double projection, const float[::1] panels, const float[:, ::1] short_codebook,
    const float[:, ::1] codebook, double radius, double slack, double rounding,
):
    cdef Plan plan
    plan.shift = &shift[0]
    plan.basis = &basis[0]
    plan.n_first, plan.n_all, plan.projection = n_first, n_all, projection
    plan.panels = &panels[0]
    plan.short_codebook, plan.codebook = &short_codebook[0, 0], &codebook[0, 0]
    plan.k = codebook.shape[0]
    plan.radius, plan.slack, plan.rounding = radius, slack, rounding
    return plan


def project(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    const float[::1] shift, const float[::1] basis, Py_ssize_t n_first, Py_ssize_t n_all,
    float[:, ::1] out,  # OUT (stop - start, n_all + 2): coordinates, rho, rho of the first ones
    uint8_t[:, ::1] workspace, int n_threads,
):
    """The short rows, to be kept between the iterations of a fit."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + SCREEN_ROWS - 1) // SCREEN_ROWS, t
    cdef Plan plan
    plan.shift, plan.basis, plan.n_first, plan.n_all = &shift[0], &basis[0], n_first, n_all
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            project_block(
                &rows, start + t * SCREEN_ROWS,
                min(<Py_ssize_t> SCREEN_ROWS, stop - start - t * SCREEN_ROWS),
                &plan, scratch_of(<float *> &workspace[threadid(), 0], rows.n_features, n_all),
                &out[t * SCREEN_ROWS, 0])


cdef void project_block(
    const Rows *rows, Py_ssize_t start, Py_ssize_t count, const Plan *plan, Scratch scratch,
    float *out,
) noexcept nogil:
    """Short rows of one block: the tile's products with the basis, transposed, and two lengths."""
    cdef Py_ssize_t r, f, d = rows.n_features, width = plan.n_all + 2
    cdef Py_ssize_t groups = (plan.n_all + WIDE_CODEWORDS - 1) // WIDE_CODEWORDS
    cdef float norm[SCREEN_ROWS]
    cdef double rest
    cdef float z
    pack_block(rows, start, count, SCREEN_ROWS, scratch.packed)
    f32_wide_centre(scratch.packed, d, 1, plan.shift, scratch.packed, norm)
    f32_wide_products(scratch.packed, plan.basis, groups, d, scratch.products)
    for r in range(count):
        rest = norm[r]
        for f in range(plan.n_all):
            if f == plan.n_first:
                out[r * width + width - 1] = <float> sqrt(rest if rest > 0 else 0)
            z = scratch.products[f * SCREEN_ROWS + r]
            out[r * width + f] = z
            rest -= <double> z * z
        out[r * width + plan.n_all] = <float> sqrt(rest if rest > 0 else 0)


def screened(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    const float[::1] shift, const float[::1] basis, Py_ssize_t n_first, Py_ssize_t n_all,
    double projection, const float[::1] panels, const float[:, ::1] short_codebook,
    const float[:, ::1] codebook, double radius, double slack, double rounding,  # IN: see Plan
    const float[:, ::1] short_rows,  # IN (stop, n_all + 2), by position; or (0, 0): made here
    const int32_t[::1] guesses,  # IN (stop - start,): a code near the best, or (0,): found here
    size_t codes, int itemsize,  # OUT (stop - start,)
    uint8_t[::1] doubtful,  # OUT (stop - start,): 1 where the direct tile must decide
    float[::1] distances,  # OUT (stop - start,) or (0,): what distances.to_codewords gives
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Codes; 0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t task = TASK_BLOCKS * SCREEN_ROWS
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef Plan plan = plan_of(shift, basis, n_first, n_all, projection, panels, short_codebook,
                             codebook, radius, slack, rounding)
    cdef const float *kept = &short_rows[0, 0] if short_rows.shape[0] else NULL
    cdef const int32_t *guess = &guesses[0] if guesses.shape[0] else NULL
    cdef char *out = <char *> codes
    cdef float *near = &distances[0] if distances.shape[0] else NULL
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= screen_task(
                &rows, start, start + t * task, min(start + (t + 1) * task, stop), &plan, kept,
                guess, out, itemsize, &doubtful[0], near, <float *> &workspace[threadid(), 0])
    return bad


cdef int screen_task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, const Plan *plan,
    const float *kept, const int32_t *guesses, char *codes, int itemsize, uint8_t *doubtful,
    float *distances, float *memory,
) noexcept nogil:
    cdef Scratch scratch = scratch_of(memory, rows.n_features, plan.n_all)
    cdef Py_ssize_t b, first, place, count, r, width = plan.n_all + 2
    cdef int32_t code[SCREEN_ROWS]
    cdef float best[SCREEN_ROWS]
    cdef const float *short_rows
    cdef const int32_t *guess = NULL
    cdef int bad = 0
    for b in range((stop - start + SCREEN_ROWS - 1) // SCREEN_ROWS):
        first = start + b * SCREEN_ROWS
        place = first - origin
        count = min(<Py_ssize_t> SCREEN_ROWS, stop - first)
        if kept == NULL:
            project_block(rows, first, count, plan, scratch, scratch.short_rows)
            short_rows = scratch.short_rows
        else:
            short_rows = kept + first * width
        if guesses != NULL:
            guess = guesses + place
        bad |= screen_block(
            contiguous_rows(rows, first, count, scratch.rows), short_rows, rows.n_features, count,
            plan, guess, code, best, doubtful + place, &scratch)
        if distances != NULL:
            for r in range(count):
                distances[place + r] = best[r]
        for r in range(count):
            if itemsize == 1:
                (<uint8_t *> codes)[place + r] = <uint8_t> code[r]
            elif itemsize == 2:
                (<unsigned short *> codes)[place + r] = <unsigned short> code[r]
            else:
                (<int32_t *> codes)[place + r] = code[r]
    return bad


# How near the known best a codeword must come to be looked at, for each row of a block.
cdef struct Limits:
    double reach[SCREEN_ROWS]  # what bounds may be too high by, as a length
    double offset[SCREEN_ROWS]  # squared length of the first short row, less rounding of values
    float first[SCREEN_ROWS]  # limit of the values of the first screen
    float second[SCREEN_ROWS]  # limit of the squared distances of the second


cdef inline void set_limits(
    Limits *limits, Py_ssize_t r, double best, const Plan *plan,
) noexcept nogil:
    cdef double length = sqrt(best * (1 + 4 * plan.rounding)) + limits.reach[r]
    # More than nothing, so that a codeword at no distance is looked at where the best has none.
    cdef double square = length * length * (1 + 1e-6) + 1e-37
    limits.second[r] = <float> (square * (1 + 2 * plan.rounding))
    limits.first[r] = <float> (square - limits.offset[r])


cdef int screen_block(
    const float *rows, const float *short_rows, Py_ssize_t d, Py_ssize_t count, const Plan *plan,
    const int32_t *guesses, int32_t *codes, float *best, uint8_t *doubtful, const Scratch *scratch,
) noexcept nogil:
    cdef Py_ssize_t width = plan.n_all + 2, first_width = plan.n_first + 1, r, f, c
    cdef Py_ssize_t groups = (plan.k + WIDE_CODEWORDS - 1) // WIDE_CODEWORDS
    cdef float second[SCREEN_ROWS]
    cdef Limits limits
    cdef float *screen = scratch.screen
    cdef const float *values
    cdef double norm, norm_first, length, error, scale
    cdef float distance, x
    cdef uint64_t bits
    cdef int bad = 0

    for r in range(SCREEN_ROWS):
        # Past the end the last row again.
        values = short_rows + (r if r < count else count - 1) * width
        norm_first = 0
        for f in range(plan.n_first):
            screen[f * SCREEN_ROWS + r] = values[f]
            norm_first += <double> values[f] * values[f]
        x = values[width - 1]
        screen[plan.n_first * SCREEN_ROWS + r] = x
        norm_first += <double> x * x
        norm = 0
        for f in range(plan.n_all + 1):
            norm += <double> values[f] * values[f]
        # Error of the coordinates, and of rho: that of rho^2 is at most `error`, so that of rho
        # error / rho or sqrt(error), whichever is less.
        length = sqrt(norm) * 1.01
        error = 4 * plan.projection * length * length
        x = min(values[width - 1], values[plan.n_all])
        scale = sqrt(error)
        limits.reach[r] = plan.projection * length + plan.slack
        if error > 0:
            limits.reach[r] += error / (x if x > scale else scale)
        # The tile's value is |c|^2 - 2 z.c, rounded in n_first + 2 steps.
        length += plan.radius
        limits.offset[r] = norm_first - 6e-8 * 2 * (plan.n_first + 4) * length * length

    f32_wide_products(screen, plan.panels, groups, first_width, scratch.values)
    if guesses == NULL:
        screen_smallest(scratch.values, plan.k, codes)
    else:
        for r in range(count):
            codes[r] = guesses[r]
    for r in range(SCREEN_ROWS):
        if r < count:
            best[r] = squared_distance(rows + r * d, plan.codebook + codes[r] * d, d)
            second[r] = INFINITY
            set_limits(&limits, r, best[r], plan)
            bad |= not (best[r] < <float> (2.0 ** 112))
        else:
            limits.first[r] = -INFINITY

    values = scratch.values
    for c in range(plan.k):
        bits = screen_below(values, limits.first)
        while bits:
            r = lowest_bit(bits)
            bits &= bits - 1
            if c == codes[r] or not (values[r] < limits.first[r]):
                continue
            distance = squared_distance(
                short_rows + r * width, plan.short_codebook + c * (plan.n_all + 1), plan.n_all + 1)
            if distance > limits.second[r]:
                continue
            distance = squared_distance(rows + r * d, plan.codebook + c * d, d)
            if distance < best[r]:
                second[r] = best[r]
                best[r] = distance
                codes[r] = <int32_t> c
                set_limits(&limits, r, distance, plan)
            elif distance < second[r]:
                second[r] = distance
        values += SCREEN_ROWS
    for r in range(count):
        doubtful[r] = not (second[r] > best[r] * (1 + 4 * plan.rounding))
    return bad
