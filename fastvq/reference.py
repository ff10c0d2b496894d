"""The executable specification: a plain NumPy twin of every function in :mod:`fastvq.kernels`.

Same names, same arguments (less ``n_threads``), same results up to rounding: each twin says in
a few lines of float64 arithmetic what the kernel of that name computes. The tests hold every
instruction-set level to these; read them first when a kernel is unclear.

Distances are squared and Euclidean, ``|x - c|^2 = sum_f (x_f - c_f)^2``, always from the
differences and never from the expansion ``|c|^2 - 2 x.c``, so that nothing cancels.
"""

import numpy as np

__all__ = [
    "assign",
    "assign_subspaces",
    "assign_two",
    "beam_search",
    "decode_even",
    "decode_levels",
    "decode_subspaces",
    "decode_sums",
    "distances",
    "distances_to_sums",
    "encode_even",
    "encode_levels",
    "extremes",
    "gemm_dynamic",
    "gemm_int8",
    "local_search",
    "nearest_by_bits",
    "nearest_by_short_tables",
    "nearest_by_tables",
    "optimal_codebook",
    "pack_codes",
    "pack_short",
    "pairwise",
    "quantize_rows",
    "rans_decode",
    "rans_encode",
    "rotate",
    "row_norms",
    "seed_gains",
    "seed_update",
    "stage_values",
    "subspace_tables",
    "sums",
    "symbol_counts",
    "unpack_codes",
]

_BLOCK = 1 << 22  # elements of a temporary difference tensor: 32 MB of float64
_STATES, _LOWEST = 8, 1 << 31  # of rANS: how many take turns, the least that each may be


def compute_dtype(X, codebook=None):
    """The dtype a kernel works in: the codebook's, else float64 for float64 rows only."""
    kind = X.dtype if codebook is None else codebook.dtype
    return np.dtype(np.float64 if kind == np.float64 else np.float32)


def pairwise(X, codebook):
    """Squared distance of every row to every codeword, (n, k)."""
    X, codebook = np.asarray(X), np.asarray(codebook)
    X = np.pad(X, ((0, 0), (0, codebook.shape[1] - X.shape[1])))  # see kernels.prepare
    out = np.empty((len(X), len(codebook)), compute_dtype(X, codebook))
    codebook = codebook.astype(np.float64)
    step = max(1, _BLOCK // max(1, codebook.size))
    for start in range(0, len(X), step):
        rows = X[start : start + step].astype(np.float64)
        difference = rows[:, None, :] - codebook[None, :, :]
        out[start : start + step] = np.einsum("nkd,nkd->nk", difference, difference)
    return out


def assign(X, codebook, *, rows=None, codes=None):
    """Index of the nearest codeword of each row, (m,) int32; the lowest index wins a tie."""
    X = _take(X, rows)
    nearest = _exact_pairwise(X, codebook).argmin(axis=1)
    if codes is None:
        return nearest.astype(np.int32)
    codes[...] = nearest
    return codes


def assign_two(X, codebook, *, rows=None):
    """Indices (m, 2) int32 of the two nearest codewords, nearest first, and their distances."""
    X = _take(X, rows)
    exact = _exact_pairwise(X, codebook)
    codes = np.argsort(exact, axis=1, kind="stable")[:, :2]
    nearest = np.take_along_axis(exact, codes, axis=1)
    return codes.astype(np.int32), nearest.astype(compute_dtype(X, codebook))


def assign_subspaces(X, codebooks, *, codes=None):
    """Index of the nearest codeword of each row in every block of features, (n, M) int32."""
    columns, first = [], 0
    for codebook in codebooks:
        columns.append(assign(X[:, first : first + codebook.shape[1]], codebook))
        first += codebook.shape[1]
    nearest = np.stack(columns, axis=1)
    if codes is None:
        return nearest
    codes[...] = nearest
    return codes


def decode_subspaces(codes, codebooks, *, out=None):
    """The codewords of a row's codes side by side, (n, d)."""
    rows = np.hstack([codebook[codes[:, m]] for m, codebook in enumerate(codebooks)])
    if out is None:
        return rows
    out[...] = rows
    return out


def rotate(X, matrix, *, span=None, out=None):
    """Rows times a matrix, (m, D), in the matrix's dtype."""
    rows = np.asarray(X)[span or slice(None)]
    result = (rows.astype(np.float64) @ matrix.astype(np.float64)).astype(matrix.dtype)
    if out is None:
        return result
    out[...] = result
    return out


def distances(X, codebook, codes, *, rows=None, out=None):
    """Squared distance of each row to the codeword that its code names, (m,)."""
    X = _take(X, rows)
    X = np.pad(X, ((0, 0), (0, codebook.shape[1] - X.shape[1])))
    difference = X.astype(np.float64) - codebook[codes].astype(np.float64)
    result = np.einsum("nd,nd->n", difference, difference)
    if out is None:
        return result.astype(compute_dtype(X, codebook))
    out[...] = result
    return out


def sums(X, codes, n_codewords, *, sample_weight=None, rows=None):
    """Weighted sum (k, d) and total weight (k,) of the rows of each codeword, both float64."""
    X = _take(X, rows)
    weight = _weights(X, sample_weight)
    totals = np.zeros((n_codewords, X.shape[1]))
    np.add.at(totals, codes, weight[:, None] * X.astype(np.float64))
    return totals, np.bincount(codes, weights=weight, minlength=n_codewords)


def stage_values(X, stages):
    """|c|^2 - 2 x.c of every row and codeword, each centred: a list of (n, k_m), one a stage."""
    X, codebooks = _centred(X, stages)
    return [(c * c).sum(axis=1) - 2 * X @ c.T for c in codebooks]


def beam_search(X, stages, *, beam_width=1, n_out=1, rows=None):
    """Codes (m, n_out, n_stages) of the best entries of each row's last beam, best first."""
    X, codebooks = _centred(_take(X, rows), stages)
    codes, residuals = np.zeros((len(X), 1, 0), np.int32), X[:, None, :]
    for codebook in codebooks:
        difference = residuals[:, :, None, :] - codebook
        values = np.einsum("nbkd,nbkd->nbk", difference, difference).reshape(len(X), -1)
        best = np.argsort(values, axis=1, kind="stable")[:, :beam_width]
        entry, code = np.divmod(best, len(codebook))
        before = np.take_along_axis(codes, entry[:, :, None], axis=1)
        codes = np.concatenate([before, code[:, :, None].astype(np.int32)], axis=2)
        residuals = np.take_along_axis(residuals, entry[:, :, None], axis=1) - codebook[code]
    return codes[:, :n_out]


def local_search(X, stages, codes, jumps, *, sweeps=4, rows=None):
    """Better codes, in place, by conditional modes from where they are and after each jump."""
    X, codebooks = _centred(_take(X, rows), stages)
    for x, best in zip(X, codes, strict=True):
        least = _square(x - _sum_of(codebooks, best))
        for jump in [np.empty((0, 2), int), *jumps]:
            found = best.copy()
            for stage, code in jump:
                found[stage] = code
            _settle(x, codebooks, found, sweeps)
            value = _square(x - _sum_of(codebooks, found))
            if value < least:
                least, best[:] = value, found
    return codes


def _settle(x, codebooks, codes, sweeps):
    unchanged = 0
    for step in range(sweeps * len(codes)):
        stage = step % len(codes)
        left = x - _sum_of(codebooks, codes) + codebooks[stage][codes[stage]]
        code = np.square(left - codebooks[stage]).sum(axis=1).argmin()
        unchanged = unchanged + 1 if code == codes[stage] else 1
        codes[stage] = code
        if unchanged >= len(codes):
            return


def decode_sums(codes, codebooks):
    """Sums of one codeword of each codebook, in the codebooks' precision."""
    return _sum_of(codebooks, np.asarray(codes).T)


def distances_to_sums(X, codebooks, codes, *, rows=None):
    """Squared distance of each row to the sum that its codes stand for, (m,)."""
    codebooks = [np.asarray(codebook, np.float64) for codebook in codebooks]
    difference = _take(X, rows).astype(np.float64) - _sum_of(codebooks, np.asarray(codes).T)
    return np.einsum("nd,nd->n", difference, difference)


def _centred(X, stages):
    """Rows and codebooks in float64, less the means of the codebooks."""
    codebooks = [codebook.astype(np.float64) for codebook in stages.codebooks]
    means = [codebook.mean(axis=0) for codebook in codebooks]
    rows = X.astype(stages.dtype).astype(np.float64) - np.sum(means, axis=0)
    return rows, [codebook - mean for codebook, mean in zip(codebooks, means, strict=True)]


def _sum_of(codebooks, codes):
    total = codebooks[0][codes[0]].copy()
    for codebook, code in zip(codebooks[1:], codes[1:], strict=False):
        total += codebook[code]
    return total


def _square(x):
    return (x * x).sum()


def row_norms(X, *, squared=False, rows=None):
    """Euclidean norm of each row, (m,), or its square."""
    X = _take(X, rows)
    exact = X.astype(np.float64)
    norms = np.einsum("nd,nd->n", exact, exact)
    return (norms if squared else np.sqrt(norms)).astype(compute_dtype(X))


def seed_gains(X, candidates, closest, *, nearer=None, sample_weight=None, rows=None):
    """By how much each candidate would lower the potential: sum_i w_i max(closest_i - d_i, 0).

    Fills ``nearer`` (ceil(L / 8), m) with bits that say to which rows it would be nearer.
    """
    X = _take(X, rows)
    gains = np.asarray(closest, np.float64)[:, None] - _exact_pairwise(X, candidates)
    if nearer is not None:
        for group, marks in enumerate(nearer):
            some = gains[:, 8 * group : 8 * group + 8] > 0
            marks[:] = np.packbits(some, axis=1, bitorder="little")[:, 0]
    return _weights(X, sample_weight) @ np.maximum(gains, 0)


def seed_update(
    X, candidate, closest, *, nearer=None, bit=0, nearest=None, code=0, rows=None
):  # fmt: skip
    """Lower ``closest`` by the distances to a new codeword, in place, where ``bit`` is set."""
    distances = pairwise(_take(X, rows), candidate[None, :])[:, 0]
    lower = distances < closest
    if nearer is not None:
        lower &= nearer & (1 << bit) != 0
    closest[lower] = distances[lower]
    if nearest is not None:
        nearest[lower] = code


def extremes(X, *, rows=None):
    """Least and largest value of each feature, two arrays of shape (d,)."""
    X = _take(X, rows).astype(compute_dtype(X))
    return X.min(axis=0), X.max(axis=0)


def encode_even(X, steps):
    """Codes (n, d) uint16 among the even levels of kernels.Steps; the kernel's arithmetic."""
    origin, inverse, first, last = steps.encoding[:, : X.shape[1]]
    with np.errstate(over="ignore"):
        place = (X.astype(steps.dtype) - origin) * inverse
    return np.rint(np.clip(place, first, last)).astype(np.uint16)


def decode_even(codes, steps):
    """The even levels that codes stand for, (n, d)."""
    origin, scale = steps.decoding[:, : codes.shape[1]].astype(np.float64)
    return (codes * scale + origin).astype(steps.dtype)


def encode_levels(X, levels):
    """Codes (n, d) uint16 of the nearest levels of kernels.Levels; the lower one wins a tie."""
    codes = np.empty(X.shape, np.uint16)
    for f, g in enumerate(levels.group):
        column = X[:, f].astype(levels.dtype).astype(np.float64)
        codes[:, f] = np.abs(column[:, None] - levels.levels[g].astype(np.float64)).argmin(axis=1)
    return codes


def decode_levels(codes, levels):
    """The levels that codes stand for, (n, d)."""
    return levels.levels[levels.group, codes]


def optimal_codebook(values, n_codewords, *, sample_weight=None):
    """The best codewords for numbers, (k,): dynamic programming over all cuts, O(k m²)."""
    values = np.asarray(values)
    x, place = np.unique(values, return_inverse=True)
    w = np.bincount(place, _weights(values, sample_weight))
    x, w = x[w > 0].astype(np.float64), w[w > 0]
    if len(x) <= n_codewords:
        return np.pad(x, (0, n_codewords - len(x)), mode="edge").astype(values.dtype)
    m = len(x)
    mean, cost = np.zeros((m + 1, m + 1)), np.full((m + 1, m + 1), np.inf)
    for i in range(m):
        for j in range(i + 1, m + 1):
            mean[i, j] = x[i] + w[i:j] @ (x[i:j] - x[i]) / w[i:j].sum()
            cost[i, j] = w[i:j] @ (x[i:j] - mean[i, j]) ** 2
    best, before = cost[0], []
    for _ in range(n_codewords - 1):
        total = best[:, None] + cost
        before.append(total.argmin(axis=0))
        best = total.min(axis=0)
    codebook, j = [], m
    for previous in [*before[::-1], np.zeros(m + 1, int)]:
        codebook.append(mean[previous[j], j])
        j = previous[j]
    return np.array(codebook[::-1], values.dtype)


def pack_codes(codes, widths):
    """Codes as rows of bits, each lowest bit first: (n, ceil(sum(widths) / 8)) uint8."""
    planes = [codes[:, [c]] >> np.arange(width) & 1 for c, width in enumerate(widths)]
    return np.packbits(np.concatenate(planes, axis=1).astype(np.uint8), axis=1, bitorder="little")


def unpack_codes(packed, widths, dtype):
    """The codes (n, m) in such rows of bits."""
    bits = np.unpackbits(packed, axis=1, bitorder="little").astype(np.int64)
    ends = np.cumsum(widths)
    columns = [
        bits[:, end - width : end] @ (1 << np.arange(width))
        for width, end in zip(widths, ends, strict=True)
    ]
    return np.stack(columns, axis=1).astype(dtype)


def subspace_tables(queries, codebooks, places, *, products=False):
    """Squared distances of queries to the codewords of each subspace, or products with them."""
    tables, start = [], 0
    for first, d, k in places:
        codebook = codebooks[start : start + k * d].reshape(k, d).astype(np.float64)
        query = queries[:, first : first + d].astype(np.float64)
        tables.append(query @ codebook.T if products else _exact_pairwise(query, codebook))
        start += k * d
    return np.concatenate(tables, axis=1).astype(np.float32)


def nearest_by_tables(codes, tables, sizes, k, *, scale=None, offset=None):
    """The k least values scale·Σ_m t_m[code_m] + offset of each query, t_m side by side."""
    places = np.cumsum([0, *sizes[:-1]])
    exact = tables.astype(np.float64)
    values = sum(exact[:, place + codes[:, m].astype(np.intp)] for m, place in enumerate(places))
    if scale is not None:
        values = values * scale.astype(np.float64) + offset
    values, rows = _least(values, k)
    return values.astype(np.float32), rows


def nearest_by_short_tables(packed, n, tables, k):
    """The same for tables (n_queries, M, 16) and codes as `pack_short` packs them."""
    pairs = np.stack([packed & 15, packed >> 4], axis=2).transpose(0, 3, 1, 2)
    codes = pairs.reshape(-1, 2 * packed.shape[1])[:n, : tables.shape[1]]
    return nearest_by_tables(codes, tables.reshape(len(tables), -1), [16] * tables.shape[1], k)


def pack_short(codes):
    """4-bit codes as packed[row // 32, m // 2, row % 32], odd m in the upper half of a byte."""
    n, n_columns = codes.shape
    whole = np.zeros((-(-n // 32) * 32, n_columns + n_columns % 2), np.uint8)
    whole[:n, :n_columns] = codes
    low, high = (whole[:, half::2].reshape(-1, 32, whole.shape[1] // 2) for half in (0, 1))
    return (low | high << 4).transpose(0, 2, 1)


def nearest_by_bits(codes, queries, k):
    """The k rows that differ from each query in the fewest bits, and in how many."""
    different = np.unpackbits(queries[:, None] ^ codes[None], axis=2).sum(axis=2)
    return _least(different.astype(np.int32), k)


def _least(values, k):
    """The k least values of each row, ascending, the lower index first where they are equal."""
    rows = np.argsort(values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, rows, axis=1), rows


def _exact_pairwise(X, codebook):
    return pairwise(X, np.asarray(codebook).astype(np.float64))


def _take(X, rows):
    X = np.asarray(X)
    return X if rows is None else X[rows]


def _weights(X, sample_weight):
    if sample_weight is None:
        return np.ones(len(X))
    return np.asarray(sample_weight, dtype=np.float64)


def symbol_counts(symbols, n_symbols):
    """How often each symbol occurs, (n_symbols,) int64."""
    return np.bincount(symbols, minlength=n_symbols).astype(np.int64)


def rans_encode(symbols, frequencies, *, block):
    """Words (uint32) of the blocks of symbols, and how many each block has: rANS, eight states."""
    bits = int(frequencies.sum()).bit_length() - 1
    first = [int(each) for each in np.cumsum(frequencies) - frequencies]
    words, lengths = [], []
    for start in range(0, len(symbols), block):
        states, backwards = [_LOWEST] * _STATES, []
        part = [int(symbol) for symbol in symbols[start : start + block]]
        for i in reversed(range(len(part))):
            symbol, x, frequency = part[i], states[i % _STATES], int(frequencies[part[i]])
            if x >= frequency << (63 - bits):
                backwards.append(x % 2**32)
                x >>= 32
            states[i % _STATES] = (x // frequency << bits) + first[symbol] + x % frequency
        for x in reversed(states):
            backwards += [x >> 32, x % 2**32]
        words += reversed(backwards)
        lengths.append(len(backwards))
    return np.array(words, np.uint32), np.array(lengths, np.int64)


def rans_decode(words, lengths, frequencies, symbols, *, block):
    """The symbols that `rans_encode` made these words of, written into `symbols`.

    All states of all blocks take their turn at once: where nothing is compiled, models are read so.
    """
    bits, ends = int(frequencies.sum()).bit_length() - 1, np.cumsum(frequencies)
    mask, lowest = np.uint64((1 << bits) - 1), np.uint64(_LOWEST)
    counts, starts = frequencies.astype(np.uint64), (ends - frequencies).astype(np.uint64)
    n_words = np.asarray(lengths, np.int64)
    last = np.cumsum(n_words)
    if len(symbols) and (last[-1] != len(words) or (n_words < 2 * _STATES).any()):
        raise ValueError("words are damaged: they do not decode to symbols")
    at = (last - n_words)[:, None]
    pairs = words[at + np.arange(2 * _STATES)].astype(np.uint64).reshape(-1, _STATES, 2)
    states, at = pairs[:, :, 0] | pairs[:, :, 1] << np.uint64(32), at + 2 * _STATES
    firsts = np.arange(len(n_words))[:, None] * block + np.arange(_STATES)
    for i in range(0, min(block, len(symbols)), _STATES):
        here = (np.arange(i, i + _STATES) < block) & (firsts + i < len(symbols))
        slots = states & mask
        found = np.searchsorted(ends, slots.astype(np.int64), "right")
        symbols[(firsts + i)[here]] = found[here]
        following = counts[found] * (states >> np.uint64(bits)) + slots - starts[found]
        short = here & (following < lowest)
        places = at + np.cumsum(short, axis=1) - short
        if (places[short] >= len(words)).any():
            raise ValueError("words are damaged: they do not decode to symbols")
        more = words[np.where(short, places, 0)].astype(np.uint64)
        states = np.where(
            here, np.where(short, following << np.uint64(32) | more, following), states
        )
        at = at + short.sum(axis=1, keepdims=True)
    return symbols


def integer_matmul(a, b):
    """a (..., m, k) times b (..., k, n), integers of 9 bits and 8 bits, as int32, exactly.

    In float32, which BLAS is fast at: 256 products of 2^9 · 2^7 stay below 2^24, and so are
    exact in any order.
    """
    total = None
    for start in range(0, a.shape[-1], 256):
        part = np.matmul(
            a[..., start : start + 256].astype(np.float32),
            b[..., start : start + 256, :].astype(np.float32),
        ).astype(np.int32)
        total = part if total is None else total + part
    if total is None:
        total = np.zeros(np.matmul(a, b).shape, np.int32)
    return total


def requantize(sums, multiplier, zero_point, low=-128, high=127):
    """clamp(rne(float32(sums) · multiplier) + zero_point), int8."""
    with np.errstate(over="ignore"):
        q = np.rint(sums.astype(np.float32) * np.asarray(multiplier, np.float32)) + np.float32(
            zero_point
        )
    return np.clip(q, max(low, -128), min(high, 127)).astype(np.int8)


def gemm_int8(
    X, weight, *, zero_point=0, bias=None, multiplier=None, out_zero_point=0, low=None, high=None,
    table=None, dtype=None,
):  # fmt: skip
    """Exact sums; requantized, looked up, or scaled to float32."""
    sums = integer_matmul(X.astype(np.int32) - zero_point, weight.T)
    sums = sums if bias is None else sums + np.asarray(bias, np.int32)
    dtype = dtype or ("int32" if multiplier is None else "int8")
    if dtype == "int32":
        return sums
    if dtype == "float32":
        low, high = (-np.inf if low is None else low), (np.inf if high is None else high)
        return np.clip(sums.astype(np.float32) * np.float32(multiplier), low, high)
    low, high = (-128 if low is None else low), (127 if high is None else high)
    q = requantize(sums, multiplier, out_zero_point, low, high)
    return q if table is None else table[q.astype(np.int32) + 128]


def quantize_rows(X):
    """Rows as int8: codes, scale and zero point, from the range of each with zero in it."""
    finite = np.isfinite(X).all(axis=1)
    X = np.where(finite[:, None], X, np.float32(0))
    low, high = X.min(axis=1, initial=0), X.max(axis=1, initial=0)
    scale = np.maximum(high / np.float32(255) - low / np.float32(255), np.float32(2.0**-126))
    inverse = np.float32(1) / scale
    zero_point = np.where(finite, -128 - np.rint(low * inverse).astype(np.int32), 0)
    q = np.rint(X * inverse[:, None]) + zero_point[:, None]
    codes = np.where(finite[:, None], np.clip(q, -128, 127), 0).astype(np.int8)
    return codes, np.where(finite, scale, np.float32(np.nan)), zero_point.astype(np.int32)


def gemm_dynamic(X, weight, scale, *, bias=None, low=-np.inf, high=np.inf):
    """Quantized rows, exact sums, and back: one float32 operation after the other."""
    codes, row_scale, zero_point = quantize_rows(X)
    sums = integer_matmul(codes.astype(np.int32) - zero_point[:, None], weight.T)
    y = sums.astype(np.float32) * np.asarray(scale, np.float32) * row_scale[:, None]
    y = y if bias is None else y + np.asarray(bias, np.float32)
    return np.clip(y, np.float32(low), np.float32(high))
