"""One-dimensional k-means for a price per codeword: the inner loop of the exact codebook.

Values in ascending order are cut into segments, each served by its mean. The cheapest way to cut
them at `price` a segment (a least-weight subsequence, Hirschberg & Larmore 1987) is found from left
to right: the costs have Monge's property, so that of two places for the last cut the later one is
the better from some position on, for ever. A queue holds the places that will still be best
somewhere, each with the position from which it is. `fastvq._optimal` chooses the prices.

The cost of a segment is a small difference of large sums, so these are kept in pairs of float64
(Dekker 1971): about 100 bits. Every fused multiply-add is called by name and no other product is
added to anything: the bits are the same on every level.
"""

from libc.math cimport fma
from libc.stdint cimport int32_t

# Sums of w, w·x and w·x² over the first values, each as the unevaluated sum of two float64.
cdef struct Sums:
    double w, w_low
    double s, s_low
    double q, q_low


cdef inline double two_sum(double a, double b, double *error) noexcept nogil:
    """a + b, and what rounding took from it."""
    cdef double total = a + b, part = total - a
    error[0] = (a - (total - part)) + (b - part)
    return total


cdef inline void add_pair(double *high, double *low, double a, double a_low) noexcept nogil:
    """(high, low) += (a, a_low)."""
    cdef double error, total = two_sum(high[0], a, &error)
    error += low[0] + a_low
    high[0] = total + error
    low[0] = error - (high[0] - total)


cdef inline double segment(const Sums *a, const Sums *b, double *cost) noexcept nogil:
    """Mean of the values between two prefixes; also their cost, Σ w·(x − mean)².

    With m the rounded mean and t = m·Σw − Σwx what it is off by, that is Σwx² − m·Σwx + m·t.
    """
    cdef double w_low, s_low, q_low
    cdef double w = two_sum(b.w, -a.w, &w_low)
    cdef double s = two_sum(b.s, -a.s, &s_low)
    cdef double q = two_sum(b.q, -a.q, &q_low)
    cdef double m = s / w, t, p
    w_low += b.w_low - a.w_low
    s_low += b.s_low - a.s_low
    q_low += b.q_low - a.q_low
    t = fma(m, w_low, fma(m, w, -s)) - s_low
    p = m * s
    cost[0] = (q - p) + fma(m, t - s_low, q_low - fma(m, s, -p))
    return m - t / w


cdef inline double cost_of(const Sums *a, const Sums *b) noexcept nogil:
    cdef double cost
    segment(a, b, &cost)
    return cost if cost > 0 else 0


def prefix_sums(
    const double[::1] values,  # IN (n,): ascending
    const double[::1] weight,  # IN (n,): positive, or (0,): all 1
    double[:, ::1] sums,  # OUT (n + 1, 6): `Sums` of the first 0 .. n values
):
    cdef Py_ssize_t i
    cdef double w = 1, p, p_low, q
    cdef Sums total
    cdef Sums *out = <Sums *> &sums[0, 0]
    with nogil:
        total.w = total.w_low = total.s = total.s_low = total.q = total.q_low = 0
        out[0] = total
        for i in range(values.shape[0]):
            if weight.shape[0]:
                w = weight[i]
            p = w * values[i]
            p_low = fma(w, values[i], -p)
            q = p * values[i]
            add_pair(&total.w, &total.w_low, w, 0)
            add_pair(&total.s, &total.s_low, p, p_low)
            add_pair(&total.q, &total.q_low, q, fma(p_low, values[i], fma(p, values[i], -q)))
            out[i + 1] = total


def cut(
    const double[:, ::1] sums,  # IN (n + 1, 6)
    double price,
    Py_ssize_t start, Py_ssize_t stop,  # positions to go on with; from 1 to n + 1 in all
    double[::1] best,  # INOUT (n + 1,): cost of the cheapest cut of the first j values
    int32_t[::1] before,  # INOUT (n + 1,): where the last segment of that cut begins
    int32_t[::1] place, int32_t[::1] since,  # INOUT (n + 1,): the queue
    int32_t[::1] ends,  # INOUT (2,): its first and last entry
):
    cdef Py_ssize_t n = sums.shape[0] - 1
    with nogil:
        cut_on(<const Sums *> &sums[0, 0], n, price, start, stop, &best[0], &before[0],
               &place[0], &since[0], &ends[0])


cdef void cut_on(
    const Sums *sums, Py_ssize_t n, double price, Py_ssize_t start, Py_ssize_t stop,
    double *best, int32_t *before, int32_t *place, int32_t *since, int32_t *ends,
) noexcept nogil:
    cdef Py_ssize_t j, i, first = ends[0], last = ends[1], low, high, middle, step
    if start == 1:
        first = last = place[0] = since[0] = 0
        best[0] = before[0] = 0
    for j in range(start, stop):
        while first < last and since[first + 1] <= j:
            first += 1
        i = place[first]
        best[j] = best[i] + cost_of(sums + i, sums + j) + price
        before[j] = i
        if j == n:
            break
        # From where on is j the better place? Those that it beats from their start are out.
        while last >= first:
            low = max(<Py_ssize_t> since[last], j + 1)
            if not beats(sums, best, j, place[last], low):
                break
            last -= 1
        if last < first:
            low = j + 1
        else:
            # It is beaten at `low`; neighbours take over at neighbouring positions, mostly.
            step = 1
            high = low + 1
            while high <= n and not beats(sums, best, j, place[last], high):
                low = high
                step *= 2
                high = low + step
            if high > n:
                if low == n or not beats(sums, best, j, place[last], n):
                    continue
                high = n
            while high - low > 1:
                middle = (low + high) // 2
                if beats(sums, best, j, place[last], middle):
                    high = middle
                else:
                    low = middle
            low = high
        last += 1
        place[last] = j
        since[last] = low
    ends[0] = first
    ends[1] = last


cdef inline bint beats(
    const Sums *sums, const double *best, Py_ssize_t j, Py_ssize_t i, Py_ssize_t position,
) noexcept nogil:
    """Whether j > i is no worse than i as the last place to cut the values before `position`."""
    return (best[j] + cost_of(sums + j, sums + position)
            <= best[i] + cost_of(sums + i, sums + position))


def path(const int32_t[::1] before, int32_t[::1] cuts):
    """Where the segments of the cheapest cut begin, into the end of `cuts` (n,); their number."""
    cdef Py_ssize_t j = before.shape[0] - 1, k = cuts.shape[0]
    with nogil:
        while j > 0:
            j = before[j]
            k -= 1
            cuts[k] = j
    return cuts.shape[0] - k


def measure(
    const double[:, ::1] sums,  # IN (n + 1, 6)
    const int32_t[::1] cuts,  # IN (k,): where segments begin, ascending from 0
    double[::1] means,  # OUT (k,)
):
    """Mean of every segment; the sum of their costs."""
    cdef Py_ssize_t t, k = cuts.shape[0], stop
    cdef double cost, low = 0, total = 0
    cdef const Sums *at = <const Sums *> &sums[0, 0]
    with nogil:
        for t in range(k):
            stop = cuts[t + 1] if t + 1 < k else sums.shape[0] - 1
            means[t] = segment(at + cuts[t], at + stop, &cost)
            add_pair(&total, &low, cost if cost > 0 else 0, 0)
    return total
