"""The k nearest of many coded rows: by tables, by tables in registers, by counting bits.

A task is some queries against a share of the rows. Each keeps its own best k, which the caller
brings together; they are the smallest pairs of value and row, however the rows are shared. What is
kept goes on from call to call, so that a call need not take all rows.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastvq._kernels.pair cimport squared_distances

cdef extern from "lanes.h" nogil:
    float f32_multiply_add(float, float, float)

cdef extern from "search.h" nogil:
    enum:
        QUERIES
        BLOCK_ROWS
        MOST_PAIRS
        SHORT_QUERIES
        BIT_QUERIES
    ctypedef struct Best:
        float *values
        int64_t *rows
        Py_ssize_t k
    ctypedef struct Tables:
        const float *entries
        const Py_ssize_t *places
        Py_ssize_t n_columns
        const float *scale
        const float *offset
    ctypedef struct Short:
        const float *entries
        Py_ssize_t n_columns
        uint8_t *steps
    void u8_scan_together(const uint8_t *, Py_ssize_t, Py_ssize_t, const Tables *, Py_ssize_t,
                          const Best *)
    void u16_scan_together(const uint16_t *, Py_ssize_t, Py_ssize_t, const Tables *, Py_ssize_t,
                           const Best *)
    void u32_scan_together(const uint32_t *, Py_ssize_t, Py_ssize_t, const Tables *, Py_ssize_t,
                           const Best *)
    void u8_scan_alone(const uint8_t *, Py_ssize_t, Py_ssize_t, const Tables *, const Best *)
    void u16_scan_alone(const uint16_t *, Py_ssize_t, Py_ssize_t, const Tables *, const Best *)
    void u32_scan_alone(const uint32_t *, Py_ssize_t, Py_ssize_t, const Tables *, const Best *)
    void short_begin(Short *)
    void short_scan(const uint8_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Short *, Py_ssize_t,
                    const Best *)
    void bits_scan(const uint64_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t, const uint64_t *,
                   Py_ssize_t, const Best *)

ctypedef fused code_type:
    uint8_t
    uint16_t
    uint32_t


def queries_together():
    """Queries whose tables are interleaved."""
    return QUERIES


def block_rows():
    """Rows in a block of packed 4-bit codes."""
    return BLOCK_ROWS


def most_short_columns():
    """4-bit codes of a row, at most."""
    return 2 * MOST_PAIRS


cdef inline Best best_of(
    float[:, :, ::1] values, int64_t[:, :, ::1] rows, Py_ssize_t share, Py_ssize_t query,
) noexcept nogil:
    cdef Best best
    best.values, best.rows = &values[share, query, 0], &rows[share, query, 0]
    best.k = values.shape[2]
    return best


cdef inline Py_ssize_t share_of(
    Py_ssize_t start, Py_ssize_t stop, Py_ssize_t share, Py_ssize_t n_shares,
) noexcept nogil:
    """Where the `share`-th of `n_shares` parts begins."""
    return start + (stop - start) * share // n_shares


def subspace_tables(
    const float[:, ::1] queries,  # IN (n_queries, d)
    const float[::1] codebooks,  # IN: one after another
    const Py_ssize_t[:, ::1] places,  # IN (M, 3): first feature, features, codewords
    bint products,
    float[:, ::1] out,  # OUT (n_queries, codewords of all)
    int n_threads,
):
    """Squared distances of queries to all codewords of each subspace, or products with them."""
    cdef Py_ssize_t q
    with nogil:
        for q in prange(queries.shape[0], schedule="static", num_threads=n_threads):
            tables_of(&queries[q, 0], &codebooks[0], places, products, &out[q, 0])


cdef void tables_of(
    const float *query, const float *codeword, const Py_ssize_t[:, ::1] places, bint products,
    float *out,
) noexcept nogil:
    cdef Py_ssize_t m, f, _k, first, d
    cdef float total
    for m in range(places.shape[0]):
        first, d = places[m, 0], places[m, 1]
        if not products:
            squared_distances(codeword, query + first, d, places[m, 2], out)
            codeword += d * places[m, 2]
            out += places[m, 2]
            continue
        for _k in range(places[m, 2]):
            total = 0
            for f in range(d):
                total = f32_multiply_add(codeword[f], query[first + f], total)
            out[0] = total
            codeword += d
            out += 1


def by_tables(
    const code_type[:, ::1] codes,  # IN (n, M)
    Py_ssize_t start, Py_ssize_t stop,  # rows
    const float[:, :, ::1] entries,  # IN (groups, total, QUERIES or 1): tables, queries in lanes
    const Py_ssize_t[::1] places,  # IN (M,): where the entries of each column begin
    const float[::1] scale, const float[::1] offset,  # IN (n,) or both empty
    Py_ssize_t n_queries,
    float[:, :, ::1] values, int64_t[:, :, ::1] rows,  # INOUT (shares, n_queries, k): heaps
    int n_threads,
):
    """Offer rows to queries, by value = scale * sum over m of entries[m, code] + offset."""
    cdef Py_ssize_t lanes = entries.shape[2], n_shares = values.shape[0], t
    cdef Py_ssize_t n_tasks = entries.shape[0] * n_shares
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            tables_task(
                codes, start, stop, entries, places, scale, offset, n_queries, values, rows,
                t // n_shares * lanes, t % n_shares)


cdef void tables_task(
    const code_type[:, ::1] codes, Py_ssize_t start, Py_ssize_t stop,
    const float[:, :, ::1] entries, const Py_ssize_t[::1] places,
    const float[::1] scale, const float[::1] offset, Py_ssize_t n_queries,
    float[:, :, ::1] values, int64_t[:, :, ::1] rows, Py_ssize_t query, Py_ssize_t share,
) noexcept nogil:
    cdef Py_ssize_t lanes = entries.shape[2], q
    cdef Py_ssize_t count = min(lanes, n_queries - query)
    cdef Py_ssize_t first = share_of(start, stop, share, values.shape[0])
    cdef Py_ssize_t last = share_of(start, stop, share + 1, values.shape[0])
    cdef Best[QUERIES] best
    cdef Tables tables
    tables.entries, tables.places = &entries[query // lanes, 0, 0], &places[0]
    tables.n_columns = places.shape[0]
    tables.scale = &scale[0] if scale.shape[0] else NULL
    tables.offset = &offset[0] if offset.shape[0] else NULL
    for q in range(count):
        best[q] = best_of(values, rows, share, query + q)
    if code_type is uint8_t:
        if lanes == 1:
            u8_scan_alone(&codes[0, 0], first, last, &tables, best)
        else:
            u8_scan_together(&codes[0, 0], first, last, &tables, count, best)
    elif code_type is uint16_t:
        if lanes == 1:
            u16_scan_alone(&codes[0, 0], first, last, &tables, best)
        else:
            u16_scan_together(&codes[0, 0], first, last, &tables, count, best)
    else:
        if lanes == 1:
            u32_scan_alone(&codes[0, 0], first, last, &tables, best)
        else:
            u32_scan_together(&codes[0, 0], first, last, &tables, count, best)


def by_short_tables(
    const uint8_t[:, :, ::1] packed,  # IN (blocks, pairs, BLOCK_ROWS)
    Py_ssize_t start, Py_ssize_t stop, Py_ssize_t n_rows,  # IN: blocks start .. stop
    const float[:, :, ::1] entries,  # IN (n_queries, M, 16)
    float[:, :, ::1] values, int64_t[:, :, ::1] rows,  # INOUT (shares, n_queries, k): heaps
    uint8_t[:, :, ::1] steps,  # scratch (shares, n_queries, 32 * pairs), zeros
    int n_threads,
):
    """What `by_tables` does for 4-bit codes without row terms, most rows screened out."""
    cdef Py_ssize_t n_shares = values.shape[0], n_queries = entries.shape[0], t
    cdef Py_ssize_t n_tasks = (n_queries + SHORT_QUERIES - 1) // SHORT_QUERIES * n_shares
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            short_task(
                packed, start, stop, n_rows, entries, values, rows, steps,
                t // n_shares * SHORT_QUERIES, t % n_shares)


cdef void short_task(
    const uint8_t[:, :, ::1] packed, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t n_rows,
    const float[:, :, ::1] entries, float[:, :, ::1] values, int64_t[:, :, ::1] rows,
    uint8_t[:, :, ::1] steps, Py_ssize_t query, Py_ssize_t share,
) noexcept nogil:
    cdef Py_ssize_t count = min(<Py_ssize_t> SHORT_QUERIES, entries.shape[0] - query), q
    cdef Best[SHORT_QUERIES] best
    cdef Short[SHORT_QUERIES] queries
    for q in range(count):
        best[q] = best_of(values, rows, share, query + q)
        queries[q].entries, queries[q].n_columns = &entries[query + q, 0, 0], entries.shape[1]
        queries[q].steps = &steps[share, query + q, 0]
        short_begin(&queries[q])
    short_scan(
        &packed[0, 0, 0], share_of(start, stop, share, values.shape[0]),
        share_of(start, stop, share + 1, values.shape[0]), n_rows, queries, count, best)


def pack_short(
    const uint8_t[:, ::1] codes,  # IN (n, M), below 16
    uint8_t[:, :, ::1] packed,  # OUT (blocks, pairs, BLOCK_ROWS), zeros
):
    """4-bit codes, two in a byte, 32 rows side by side."""
    cdef Py_ssize_t row, m, at
    with nogil:
        for row in range(codes.shape[0]):
            for m in range(codes.shape[1]):
                at = row % BLOCK_ROWS
                packed[row // BLOCK_ROWS, m // 2, at] |= codes[row, m] << (4 * (m % 2))


def by_bits(
    const uint64_t[:, ::1] codes, Py_ssize_t start, Py_ssize_t stop,  # IN (n, words)
    const uint64_t[:, ::1] queries,  # IN (n_queries, words)
    float[:, :, ::1] values, int64_t[:, :, ::1] rows,  # INOUT (shares, n_queries, k): heaps
    int n_threads,
):
    """Offer rows to queries, by the number of bits in which they differ."""
    cdef Py_ssize_t n_shares = values.shape[0], t
    cdef Py_ssize_t n_tasks = (queries.shape[0] + BIT_QUERIES - 1) // BIT_QUERIES * n_shares
    with nogil:
        for t in prange(n_tasks, schedule="dynamic", num_threads=n_threads):
            bits_task(codes, start, stop, queries, values, rows,
                      t // n_shares * BIT_QUERIES, t % n_shares)


cdef void bits_task(
    const uint64_t[:, ::1] codes, Py_ssize_t start, Py_ssize_t stop,
    const uint64_t[:, ::1] queries, float[:, :, ::1] values, int64_t[:, :, ::1] rows,
    Py_ssize_t query, Py_ssize_t share,
) noexcept nogil:
    cdef Py_ssize_t count = min(<Py_ssize_t> BIT_QUERIES, queries.shape[0] - query), q
    cdef Best[BIT_QUERIES] best
    for q in range(count):
        best[q] = best_of(values, rows, share, query + q)
    bits_scan(
        &codes[0, 0], codes.shape[1], share_of(start, stop, share, values.shape[0]),
        share_of(start, stop, share + 1, values.shape[0]), &queries[query, 0], count, best)
