"""Ensembles of decision trees: rows walk down in eights, and leaves are added up in tree order."""

from cython.parallel cimport prange
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from fastvq._kernels.call cimport Call, entry

cdef extern from "pack.h" nogil:
    void f32_transpose(const float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, float *)

cdef extern from "trees.h" nogil:
    enum:
        WALKS
        AGGREGATE_MEAN
        AGGREGATE_MINIMUM
        AGGREGATE_MAXIMUM
    ctypedef struct TreeNode:
        pass
    ctypedef struct Walk:
        const uint8_t *sets
        uint32_t mask
        int shift
        uint32_t nan_column
        int kinds
    void walk_rows(const Walk *, const TreeNode **, const float *, int) noexcept
    void walk_trees(const Walk *, const TreeNode **, const float *, int) noexcept
    void take_leaf(
        const TreeNode *, const float *, int64_t width, int aggregate, double *) noexcept

cdef struct Forest:
    const TreeNode *nodes
    const int64_t *roots
    const int32_t *depths
    const int32_t *targets
    const float *values
    const double *base
    int64_t n_features, n_columns, n_trees, n_outputs, width
    int aggregate
    Walk walk


cdef int trees(const Call *call) noexcept nogil:
    """operands: x IN (n, F), y OUT (n, K), scratch (threads, scratch_bytes), nodes IN (n_nodes,),
    roots IN (T,) int64, depths IN (T,) int32, targets IN (T,) int32, values IN (n_leaves, width),
    base IN (K,) float64, sets IN (n_sets, 32) or NULL.

    sizes: n, F, columns, T, K, width, aggregate, mask, shift, kinds, groups of a block,
    bytes of scratch that each thread has: those of `groups` x WALKS rows of columns, and totals.
    """
    cdef Forest forest
    cdef int64_t n = call.size[0], rows = call.size[10] * WALKS, room = call.size[11], b
    cdef const float *x = <const float *> call.operand[0]
    cdef float *y = <float *> call.operand[1]
    cdef char *scratch = <char *> call.operand[2]
    cdef int64_t n_blocks = (n + rows - 1) // rows
    cdef int t, n_threads = call.threads
    forest.n_features, forest.n_columns, forest.n_trees = call.size[1], call.size[2], call.size[3]
    forest.n_outputs, forest.width, forest.aggregate = call.size[4], call.size[5], call.size[6]
    forest.nodes = <const TreeNode *> call.operand[3]
    forest.roots = <const int64_t *> call.operand[4]
    forest.depths = <const int32_t *> call.operand[5]
    forest.targets = <const int32_t *> call.operand[6]
    forest.values = <const float *> call.operand[7]
    forest.base = <const double *> call.operand[8]
    forest.walk.sets = <const uint8_t *> call.operand[9]
    forest.walk.mask, forest.walk.shift = call.size[7], call.size[8]
    forest.walk.kinds, forest.walk.nan_column = call.size[9], call.size[1]
    if n_threads == 1:
        for b in range(n_blocks):
            one_block(&forest, x, y, n, b, rows, scratch)
        return 0
    for t in prange(n_threads, schedule="static", chunksize=1, num_threads=n_threads):
        share(&forest, x, y, n, n_blocks * t // n_threads, n_blocks * (t + 1) // n_threads, rows,
              scratch + room * t)
    return 0


cdef void share(
    const Forest *forest, const float *x, float *y, int64_t n, int64_t first, int64_t last,
    int64_t rows, char *scratch,
) noexcept nogil:
    cdef int64_t b
    for b in range(first, last):
        one_block(forest, x, y, n, b, rows, scratch)


cdef void one_block(
    const Forest *forest, const float *x, float *y, int64_t n, int64_t b, int64_t rows,
    char *scratch,
) noexcept nogil:
    """Rows b * rows .. of x. Whole eights, and a last one of at least three rows filled up, go
    through each tree while it is in the cache; what is left goes row by row."""
    cdef int64_t start = b * rows, count = min(rows, n - start), g, i
    cdef int64_t left = count % WALKS, n_groups = count // WALKS + (left > 2)
    cdef float *columns = <float *> scratch
    cdef double *totals = <double *> (columns + rows * forest.n_columns)
    begin_totals(forest, totals, max(n_groups * WALKS, 1))
    if n_groups:
        for g in range(n_groups):
            pack_rows(forest, x + (start + g * WALKS) * forest.n_features,
                      min(<int64_t> WALKS, count - g * WALKS),
                      columns + g * WALKS * forest.n_columns)
        rows_through_trees(forest, columns, n_groups, totals)
        put(forest, totals, min(count, n_groups * WALKS), y + start * forest.n_outputs)
    for i in range(n_groups * WALKS, count):
        begin_totals(forest, totals, 1)
        pack_row(forest, x + (start + i) * forest.n_features, columns)
        row_through_trees(forest, columns, totals)
        put(forest, totals, 1, y + (start + i) * forest.n_outputs)


cdef void begin_totals(const Forest *forest, double *totals, int64_t rows) noexcept nogil:
    cdef int64_t i
    cdef double begin = 0
    if forest.aggregate == AGGREGATE_MINIMUM:
        begin = INFINITY
    elif forest.aggregate == AGGREGATE_MAXIMUM:
        begin = -INFINITY
    for i in range(rows * forest.n_outputs):
        totals[i] = begin


cdef void pack_rows(
    const Forest *forest, const float *x, int64_t count, float *columns,
) noexcept nogil:
    """columns[c * WALKS + r]; the last row again where there are fewer than WALKS."""
    cdef int64_t d = forest.n_features, i, f
    if count == WALKS:
        f32_transpose(x, d, WALKS, d, columns)
    else:
        for i in range(WALKS):
            for f in range(d):
                columns[f * WALKS + i] = x[min(i, count - 1) * d + f]
    for i in range(WALKS):
        columns[d * WALKS + i] = NAN
    if forest.n_columns > d + 1:
        for i in range(d * WALKS):
            columns[(d + 1) * WALKS + i] = -columns[i]


cdef void pack_row(const Forest *forest, const float *x, float *columns) noexcept nogil:
    cdef int64_t d = forest.n_features, f
    for f in range(d):
        columns[f] = x[f]
    columns[d] = NAN
    if forest.n_columns > d + 1:
        for f in range(d):
            columns[d + 1 + f] = -x[f]


cdef void rows_through_trees(
    const Forest *forest, const float *columns, int64_t n_groups, double *totals,
) noexcept nogil:
    cdef const TreeNode *at[8]
    cdef const TreeNode *root
    cdef int64_t t, g, i
    cdef double *total
    for t in range(forest.n_trees):
        root = forest.nodes + forest.roots[t]
        for g in range(n_groups):
            for i in range(WALKS):
                at[i] = root
            walk_rows(&forest.walk, at, columns + g * WALKS * forest.n_columns, forest.depths[t])
            total = totals + g * WALKS * forest.n_outputs + forest.targets[t]
            for i in range(WALKS):
                take_leaf(at[i], forest.values, forest.width, forest.aggregate,
                          total + i * forest.n_outputs)


cdef void row_through_trees(
    const Forest *forest, const float *columns, double *totals,
) noexcept nogil:
    cdef const TreeNode *at[8]
    cdef int64_t group, first, t, count
    cdef int i, depth
    for group in range((forest.n_trees + WALKS - 1) // WALKS):
        first = group * WALKS
        count = min(<int64_t> WALKS, forest.n_trees - first)
        depth = 0
        for i in range(WALKS):
            t = first + min(<int64_t> i, count - 1)
            at[i] = forest.nodes + forest.roots[t]
            depth = max(depth, forest.depths[t])
        walk_trees(&forest.walk, at, columns, depth)
        for i in range(count):
            take_leaf(at[i], forest.values, forest.width, forest.aggregate,
                      totals + forest.targets[first + i])


cdef void put(
    const Forest *forest, const double *totals, int64_t rows, float *y,
) noexcept nogil:
    cdef int64_t i, j, k = forest.n_outputs
    cdef double total
    for i in range(rows):
        for j in range(k):
            total = totals[i * k + j]
            if forest.aggregate == AGGREGATE_MEAN:
                total = total / <double> forest.n_trees
            y[i * k + j] = <float> (forest.base[j] + total)


entries = {"trees": entry(trees)}
