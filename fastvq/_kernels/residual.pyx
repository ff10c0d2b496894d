"""Beam search for a sum of codewords, one of each stage; decoding such sums.

A beam holds the best choices for the first stages. Every entry is extended by every codeword of
the next stage, and the best of all extensions are the next beam (Babenko & Lempitsky 2014). Of
equal values that of the better entry counts as smaller, then that of the lower codeword.

There are two ways to the values. `search` takes the products of a row with all codewords at once
and adds what a table says about the codewords chosen before (stages.h): additions only, once per
entry. `search_plain` subtracts codewords and compares residuals: a product with every codeword for
every entry, but no table, whose size is that of all codewords squared, and no digits lost where
residuals are far shorter than rows. Which it is, is decided by the codebooks alone.
"""

from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcpy, memset

from fastvq._kernels.pair cimport squared_distance
from fastvq._kernels.rows cimport Rows, copy_rows, real, rows_of, scaled_rows, within_range
from fastvq._kernels.scratch cimport room
from fastvq._kernels.stages cimport (
    STAGE_ROWS, STAGE_STEP, STAGE_UNIT, WIDE_CODEWORDS, Stages, block_codewords, most_padded,
    multiply_blocks, pack_panels, padded, panel_values, put_code, stages_of,
)

cdef extern from "stages.h" nogil:
    ctypedef struct Beam:
        void *values
        int32_t *places
        Py_ssize_t count, width
        double limit
    void stages_fetch(const char *)
    void f32_extend(Beam *, const float *, const float **, int, Py_ssize_t, float, int32_t, float *)
    void f64_extend(Beam *, const double *, const double **, int, Py_ssize_t, double, int32_t,
                    double *)

cdef enum:
    TASK_BLOCKS = 4  # blocks in a unit of work that a thread takes
    TASK_ROWS = 256  # rows of a task, where codes are read back
    CHUNK = 8 * STAGE_UNIT  # codewords that search_plain looks at together


def layout(int itemsize):
    """Codewords in a packed block; what the number of all, and of a stage's, is rounded up to."""
    cdef Py_ssize_t single = block_codewords(<float> 0), double_ = block_codewords(<double> 0)
    return (single if itemsize == 4 else double_), STAGE_UNIT, STAGE_STEP


# ---- unary values ------------------------------------------------------------------------------


def unaries_bytes(Py_ssize_t d, int itemsize, Py_ssize_t width):
    """Scratch memory of one thread of `unaries`."""
    return (panel_values(STAGE_ROWS, d) + STAGE_ROWS * width + 64) * itemsize


def unaries(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[::1] shift,  # IN (d,): rows become x * scale - shift
    double lead,  # IN: factor of the codewords' leading values, |c|^2
    const real[::1] blocks,  # IN: codewords packed as kernels.Stages says
    real[:, ::1] out,  # OUT (stop - start, width): lead |c|^2 - 2 x.c
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Values of rows for all codewords; 0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n_tasks = (stop - start + STAGE_ROWS - 1) // STAGE_ROWS, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= unaries_block(
                &rows, start + t * STAGE_ROWS,
                min(<Py_ssize_t> STAGE_ROWS, stop - start - t * STAGE_ROWS), <real> scale,
                &shift[0], <real> lead, &blocks[0], out.shape[1],
                <char *> &workspace[threadid(), 0], &out[t * STAGE_ROWS, 0])
    return bad


cdef int unaries_block(
    const Rows *rows, Py_ssize_t start, Py_ssize_t count, real scale, const real *shift, real lead,
    const real *blocks, Py_ssize_t width, char *memory, real *out,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features
    cdef real *values = <real *> room(&memory, STAGE_ROWS * width * sizeof(real))
    cdef real *panels = <real *> memory
    cdef int bad = pack_panels(rows, start, count, scale, shift, lead, panels)
    multiply_blocks(blocks, width, panels, count, d, values, width)
    memcpy(out, values, count * width * sizeof(real))
    return bad


# ---- beam search -------------------------------------------------------------------------------

# What a search keeps of `n` rows at a time. Entry b of row r is number r * beam_width + b.
cdef struct Scratch:
    int32_t *codes  # (n, beam_width, n_stages) of the beams
    int32_t *next_codes  # and of those that follow
    char *values  # (n, beam_width)
    char *next_values
    int32_t *places  # (n, beam_width): which extension of the beam an entry of the next one is
    Beam *beams  # (n,) the beams that follow, while they are being filled
    char *extended  # (codewords,)
    char *crossed  # (n_stages,) pointers
    char *residuals  # (n, beam_width, d), without tables
    char *next_residuals
    char *panels  # packed rows
    char *unary  # what panels give
    char *end


cdef inline Scratch scratch_of(
    char *memory, const Stages *stages, Py_ssize_t d, Py_ssize_t beam_width, bint plain,
    int itemsize,
) noexcept nogil:
    cdef Scratch s
    cdef Py_ssize_t n = plain_rows(beam_width) if plain else STAGE_ROWS, entries = n * beam_width
    s.codes = <int32_t *> room(&memory, 4 * entries * stages.n)
    s.next_codes = <int32_t *> room(&memory, 4 * entries * stages.n)
    s.values = room(&memory, itemsize * entries)
    s.next_values = room(&memory, itemsize * entries)
    s.places = <int32_t *> room(&memory, 4 * entries)
    s.beams = <Beam *> room(&memory, n * sizeof(Beam))
    s.extended = room(&memory, itemsize * (CHUNK if plain else most_padded(stages)))
    s.crossed = room(&memory, sizeof(char *) * stages.n)
    s.residuals = room(&memory, itemsize * entries * d if plain else 0)
    s.next_residuals = room(&memory, itemsize * entries * d if plain else 0)
    s.panels = room(&memory, itemsize * panel_values(entries if plain else n, d))
    s.unary = room(&memory, itemsize * (
        panel_values(entries, 0) * CHUNK if plain else n * stages.width))
    s.end = memory
    return s


cdef inline Py_ssize_t plain_rows(Py_ssize_t beam_width) noexcept nogil:
    """Rows that `search_plain` takes at a time, so that their beams fill the tile."""
    return max(<Py_ssize_t> 1, STAGE_ROWS // beam_width)


def search_bytes(
    Py_ssize_t d, int itemsize, const Py_ssize_t[::1] first, const Py_ssize_t[::1] size,
    Py_ssize_t width, Py_ssize_t beam_width, bint plain,
):
    """Scratch memory of one thread of `search` or `search_plain`."""
    cdef Stages stages = stages_of(first, size, width)
    return <size_t> scratch_of(NULL, &stages, d, beam_width, plain, itemsize).end


def search(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[::1] shift,  # IN (d,): rows become x * scale - shift
    const real[::1] blocks,  # IN: codewords packed as kernels.Stages says
    const real[:, ::1] crossed,  # IN (width, width): 2 c.c'
    const Py_ssize_t[::1] first, const Py_ssize_t[::1] size,  # IN (n_stages,)
    Py_ssize_t beam_width, Py_ssize_t n_out,
    size_t codes, int itemsize,  # OUT (stop - start, n_out, n_stages): address, size of a code
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Codes of the n_out best entries of each row's last beam, best first; 0, or 1 where a row is
    out of range."""
    cdef Rows rows = rows_of(source)
    cdef Stages stages = stages_of(first, size, crossed.shape[1])
    cdef Py_ssize_t task = TASK_BLOCKS * STAGE_ROWS
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= search_task(
                &rows, start, start + t * task, min(start + (t + 1) * task, stop), <real> scale,
                &shift[0], &blocks[0], &crossed[0, 0], &stages, beam_width, n_out, <char *> codes,
                itemsize, <char *> &workspace[threadid(), 0])
    return bad


cdef int search_task(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, real scale,
    const real *shift, const real *blocks, const real *crossed, const Stages *stages,
    Py_ssize_t beam_width, Py_ssize_t n_out, char *codes, int itemsize, char *memory,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, block, at, count, m, n_entries
    cdef Scratch s = scratch_of(memory, stages, d, beam_width, False, sizeof(real))
    cdef int bad = 0
    for block in range((stop - start + STAGE_ROWS - 1) // STAGE_ROWS):
        at = start + block * STAGE_ROWS
        count = min(<Py_ssize_t> STAGE_ROWS, stop - at)
        bad |= pack_panels(rows, at, count, scale, shift, <real> 1, <real *> s.panels)
        multiply_blocks(blocks, stages.width, <real *> s.panels, count, d, <real *> s.unary,
                        stages.width)
        n_entries = 1
        memset(s.values, 0, count * beam_width * sizeof(real))
        for m in range(stages.n):
            n_entries = next_beams(count, crossed, stages, m, beam_width, n_entries, &s)
        put_codes(count, stages.n, beam_width, n_out, at - origin, codes, itemsize, &s)
    return bad


cdef Py_ssize_t next_beams(
    Py_ssize_t n_rows, const real *crossed, const Stages *stages, Py_ssize_t m,
    Py_ssize_t beam_width, Py_ssize_t count, Scratch *s,
) noexcept nogil:
    """Extend the beams of all rows of a block by stage m; how many entries they have then.

    Table rows lie far apart, beyond the second-level cache (with all rows the same, a beam of five
    took half the time), so those of the next row are asked for while this one is at work.
    """
    cdef Py_ssize_t r, b, e, n = padded(stages.size[m]), first = stages.first[m]
    cdef const real **rows = <const real **> s.crossed
    cdef const real *unary
    cdef Beam beam = Beam(NULL, NULL, 0, 0, INFINITY)
    for r in range(n_rows):
        e = r * beam_width
        beam = Beam(s.next_values + e * sizeof(real), s.places + e, 0,
                    min(beam_width, count * stages.size[m]), INFINITY)
        unary = <real *> s.unary + r * stages.width + first
        for b in range(count):
            if r + 1 < n_rows:
                find_rows(crossed, stages, m, s.codes + (e + beam_width + b) * stages.n, rows)
                fetch(rows, m, n)
            find_rows(crossed, stages, m, s.codes + (e + b) * stages.n, rows)
            extend(&beam, unary, rows, m, n, (<real *> s.values)[e + b], b * n,
                   <real *> s.extended)
        next_codes(s.codes + e * stages.n, s.places + e, stages, m, beam.count,
                   s.next_codes + e * stages.n)
    swap_beams(s)
    return beam.count


cdef inline void find_rows(
    const real *crossed, const Stages *stages, Py_ssize_t m, const int32_t *codes,
    const real **rows,
) noexcept nogil:
    """What the table says about stage m and each of the codes of the stages before it."""
    cdef Py_ssize_t j
    crossed += stages.first[m]
    for j in range(m):
        rows[j] = crossed + (stages.first[j] + codes[j]) * stages.width


cdef inline void fetch(const real **rows, Py_ssize_t n_rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t j, at
    for j in range(n_rows):
        for at in range(n * <Py_ssize_t> sizeof(real) // 64):
            stages_fetch(<const char *> rows[j] + 64 * at)


cdef inline void put_codes(
    Py_ssize_t n_rows, Py_ssize_t n_stages, Py_ssize_t beam_width, Py_ssize_t n_out,
    Py_ssize_t place, char *codes, int itemsize, const Scratch *s,
) noexcept nogil:
    """The best entries of the beams, which go to positions `place` .. of the result."""
    cdef Py_ssize_t r, i, n = n_out * n_stages
    for r in range(n_rows):
        for i in range(n):
            put_code(codes, itemsize, (place + r) * n + i, s.codes[r * beam_width * n_stages + i])


cdef inline void extend(
    Beam *beam, const real *unary, const real **crossed, Py_ssize_t n_crossed, Py_ssize_t n,
    real base, Py_ssize_t place, real *scratch,
) noexcept nogil:
    if real is float:
        f32_extend(beam, unary, crossed, <int> n_crossed, n, base, <int32_t> place, scratch)
    else:
        f64_extend(beam, unary, crossed, <int> n_crossed, n, base, <int32_t> place, scratch)


cdef inline void next_codes(
    const int32_t *codes, const int32_t *places, const Stages *stages, Py_ssize_t m,
    Py_ssize_t count, int32_t *out,
) noexcept nogil:
    """Codes of a row's next beam; place b * n + code extends entry b, n codewords padded."""
    cdef Py_ssize_t i, n = padded(stages.size[m]), entry
    for i in range(count):
        entry = places[i] // n
        memcpy(out + i * stages.n, codes + entry * stages.n, m * sizeof(int32_t))
        out[i * stages.n + m] = <int32_t> (places[i] - entry * n)


cdef inline void swap_beams(Scratch *s) noexcept nogil:
    s.codes, s.next_codes = s.next_codes, s.codes
    s.values, s.next_values = s.next_values, s.values
    s.residuals, s.next_residuals = s.next_residuals, s.residuals


# ---- beam search without tables ----------------------------------------------------------------


def search_plain(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale, const real[::1] shift,  # IN (d,): rows become x * scale - shift
    const real[::1] blocks,  # IN: codewords packed as kernels.Stages says
    const real[:, ::1] codewords,  # IN (width, d): the same, one after the other
    const Py_ssize_t[::1] first, const Py_ssize_t[::1] size,  # IN (n_stages,)
    Py_ssize_t beam_width, Py_ssize_t n_out,
    size_t codes, int itemsize,  # OUT (stop - start, n_out, n_stages): address, size of a code
    uint8_t[:, ::1] workspace, int n_threads,
):
    """What `search` finds, from residuals; 0, or 1 where a row is out of range."""
    cdef Rows rows = rows_of(source)
    cdef Stages stages = stages_of(first, size, codewords.shape[0])
    cdef Py_ssize_t task = plain_rows(beam_width)
    cdef Py_ssize_t n_tasks = (stop - start + task - 1) // task, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bad |= plain_block(
                &rows, start, start + t * task, min(start + (t + 1) * task, stop), <real> scale,
                &shift[0], &blocks[0], &codewords[0, 0], &stages, beam_width, n_out,
                <char *> codes, itemsize, <char *> &workspace[threadid(), 0])
    return bad


cdef int plain_block(
    const Rows *rows, Py_ssize_t origin, Py_ssize_t start, Py_ssize_t stop, real scale,
    const real *shift, const real *blocks, const real *codewords, const Stages *stages,
    Py_ssize_t beam_width, Py_ssize_t n_out, char *codes, int itemsize, char *memory,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, n_rows = stop - start, r, i, m, count = 1
    cdef Scratch s = scratch_of(memory, stages, d, beam_width, True, sizeof(real))
    cdef int bad = first_residuals(rows, start, n_rows, scale, shift, beam_width, &s)
    for m in range(stages.n):
        offer_extensions(n_rows, d, blocks, stages, m, beam_width, count, <real> 0, &s)
        count = s.beams[0].count
        for r in range(n_rows):
            i = r * beam_width
            next_codes(s.codes + i * stages.n, s.places + i, stages, m, count,
                       s.next_codes + i * stages.n)
            next_residuals(codewords, stages, m, d, count, i, <real> 0, &s)
        swap_beams(&s)
    put_codes(n_rows, stages.n, beam_width, n_out, start - origin, codes, itemsize, &s)
    return bad


cdef int first_residuals(
    const Rows *rows, Py_ssize_t start, Py_ssize_t n_rows, real scale, const real *shift,
    Py_ssize_t beam_width, Scratch *s,
) noexcept nogil:
    """Each row is the residual of a beam of one entry, in which nothing has been chosen."""
    cdef Py_ssize_t d = rows.n_features, step = beam_width * d, r, f
    cdef real *residuals = <real *> s.residuals
    cdef int bad = 0
    copy_rows(rows, start, n_rows, n_rows, residuals, step, 1)
    for r in range(n_rows):
        if scale != 1:
            for f in range(d):
                residuals[r * step + f] *= scale
        bad |= not within_range(residuals + r * step, d)
        for f in range(d):
            residuals[r * step + f] -= shift[f]
        (<real *> s.values)[r * beam_width] = squared_norm(residuals + r * step, d)
    return bad


cdef void offer_extensions(
    Py_ssize_t n_rows, Py_ssize_t d, const real *blocks, const Stages *stages, Py_ssize_t m,
    Py_ssize_t beam_width, Py_ssize_t count, real _, Scratch *s,
) noexcept nogil:
    """Fill the beams that follow with the best extensions of all entries by stage m."""
    cdef Py_ssize_t first = stages.first[m], n = padded(stages.size[m]), e, r, b, low, high
    cdef Py_ssize_t chunk = first // STAGE_UNIT * STAGE_UNIT
    cdef real *unary = <real *> s.unary
    for r in range(n_rows):
        s.beams[r] = Beam(s.next_values + r * beam_width * sizeof(real), s.places + r * beam_width,
                          0, min(beam_width, count * stages.size[m]), INFINITY)
    pack_entries(n_rows, d, beam_width, count, <real *> s.residuals, <real *> s.panels)
    while chunk < first + n:
        multiply_blocks(blocks + chunk * (d + 1), min(<Py_ssize_t> CHUNK, stages.width - chunk),
                        <real *> s.panels, n_rows * count, d, unary, CHUNK)
        low, high = max(chunk, first), min(chunk + CHUNK, first + n)
        for e in range(n_rows * count):
            r, b = e // count, e % count
            extend(&s.beams[r], unary + e * CHUNK + low - chunk, NULL, 0, high - low,
                   (<real *> s.values)[r * beam_width + b], b * n + low - first,
                   <real *> s.extended)
        chunk += CHUNK


cdef void pack_entries(
    Py_ssize_t n_rows, Py_ssize_t d, Py_ssize_t beam_width, Py_ssize_t count, real *residuals,
    real *panels,
) noexcept nogil:
    """Residuals of the first `count` entries of each beam, packed as rows are."""
    cdef Py_ssize_t e, f, n = n_rows * count
    cdef real *panel
    cdef real *residual
    for e in range((n + WIDE_CODEWORDS - 1) // WIDE_CODEWORDS * WIDE_CODEWORDS):
        panel = panels + e // WIDE_CODEWORDS * WIDE_CODEWORDS * (d + 1) + e % WIDE_CODEWORDS
        residual = residuals + (min(e, n - 1) // count * beam_width + min(e, n - 1) % count) * d
        panel[0] = 1
        for f in range(d):
            panel[(f + 1) * WIDE_CODEWORDS] = residual[f]


cdef void next_residuals(
    const real *codewords, const Stages *stages, Py_ssize_t m, Py_ssize_t d, Py_ssize_t count,
    Py_ssize_t first_entry, real _, Scratch *s,
) noexcept nogil:
    """Residuals of a row's next beam, and their squared lengths as its values."""
    cdef Py_ssize_t i, f, entry, n = padded(stages.size[m])
    cdef const real *residual
    cdef const real *codeword
    cdef real *out
    for i in range(first_entry, first_entry + count):
        entry = first_entry + s.places[i] // n
        residual = <real *> s.residuals + entry * d
        codeword = codewords + (stages.first[m] + s.places[i] % n) * d
        out = <real *> s.next_residuals + i * d
        for f in range(d):
            out[f] = residual[f] - codeword[f]
        (<real *> s.next_values)[i] = squared_norm(out, d)


cdef extern from "lanes.h" nogil:
    float f32_multiply_add(float, float, float)
    double f64_multiply_add(double, double, double)


cdef inline real squared_norm(const real *values, Py_ssize_t n) noexcept nogil:
    """In parts, feature f in part f mod 8, so that additions need not wait for one another."""
    cdef real parts[8]
    cdef Py_ssize_t i, p
    for p in range(8):
        parts[p] = 0
    for i in range(n // 8):
        for p in range(8):
            parts[p] = multiply_add(values[8 * i + p], parts[p])
    for p in range(n % 8):
        parts[p] = multiply_add(values[n - n % 8 + p], parts[p])
    return ((parts[0] + parts[1]) + (parts[2] + parts[3])) \
        + ((parts[4] + parts[5]) + (parts[6] + parts[7]))


cdef inline real multiply_add(real value, real total) noexcept nogil:
    if real is float:
        return f32_multiply_add(value, value, total)
    else:
        return f64_multiply_add(value, value, total)


# ---- reading codes back ------------------------------------------------------------------------


def decode(
    const int32_t[:, ::1] codes,  # IN (n, n_stages): a prefix of the stages will do
    const real[:, ::1] codewords, const Py_ssize_t[::1] first,  # IN: codewords (*, d) of all stages
    real[:, ::1] out,  # OUT (n, d): the sum of the codewords, stages in order
    int n_threads,
):
    """What codes stand for."""
    cdef Py_ssize_t n = codes.shape[0], n_tasks = (n + TASK_ROWS - 1) // TASK_ROWS, t
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            decode_rows(
                &codes[t * TASK_ROWS, 0], codes.shape[1],
                min(<Py_ssize_t> TASK_ROWS, n - t * TASK_ROWS),
                &codewords[0, 0], &first[0], codewords.shape[1], &out[t * TASK_ROWS, 0])


cdef void decode_rows(
    const int32_t *codes, Py_ssize_t n_stages, Py_ssize_t n, const real *codewords,
    const Py_ssize_t *first, Py_ssize_t d, real *out,
) noexcept nogil:
    cdef Py_ssize_t _r, m, f
    cdef const real *codeword
    for _r in range(n):
        memcpy(out, codewords + (first[0] + codes[0]) * d, d * sizeof(real))
        for m in range(1, n_stages):
            codeword = codewords + (first[m] + codes[m]) * d
            for f in range(d):
                out[f] += codeword[f]
        codes += n_stages
        out += d


def errors_bytes(Py_ssize_t d, int itemsize):
    """Scratch memory of one thread of `errors`: a row, and what its codes stand for."""
    return (2 * d * itemsize + 63) // 64 * 64


def errors(
    tuple source, Py_ssize_t start, Py_ssize_t stop,  # IN: positions start .. stop of the rows
    double scale,
    const int32_t[:, ::1] codes,  # IN (stop - start, n_stages)
    const real[:, ::1] codewords, const Py_ssize_t[::1] first,  # IN (*, d), times scale already
    real[::1] out,  # OUT (stop - start,): |x * scale - sum of codewords|^2
    uint8_t[:, ::1] workspace, int n_threads,
):
    """Squared distances of rows to what their codes stand for; 0, or 1 where a row is out of
    range."""
    cdef Rows rows = rows_of(source)
    cdef Py_ssize_t n = stop - start, n_tasks = (n + TASK_ROWS - 1) // TASK_ROWS, t
    cdef int bad = 0
    with nogil:
        for t in prange(n_tasks, schedule="static", num_threads=n_threads):
            bad |= errors_task(
                &rows, start + t * TASK_ROWS, min(<Py_ssize_t> TASK_ROWS, n - t * TASK_ROWS),
                <real> scale, &codes[t * TASK_ROWS, 0], codes.shape[1], &codewords[0, 0],
                &first[0], &out[t * TASK_ROWS], <real *> &workspace[threadid(), 0])
    return bad


cdef int errors_task(
    const Rows *rows, Py_ssize_t start, Py_ssize_t count, real scale, const int32_t *codes,
    Py_ssize_t n_stages, const real *codewords, const Py_ssize_t *first, real *out, real *scratch,
) noexcept nogil:
    cdef Py_ssize_t d = rows.n_features, r
    cdef const real *row
    cdef int bad = 0
    for r in range(count):
        row = scaled_rows(rows, start + r, 1, scale, scratch)
        bad |= not within_range(row, d)
        decode_rows(codes + r * n_stages, n_stages, 1, codewords, first, d, scratch + d)
        out[r] = squared_distance(row, scratch + d, d)
    return bad
