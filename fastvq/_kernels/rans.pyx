"""Entropy coding of symbols by asymmetric numeral systems (rANS, Duda 2013).

A state x takes a symbol of frequency f out of M = 2^bits, whose slots begin at b, by becoming
(x // f) M + b + x mod f, and gives it back from the slot x mod M. It grows by log2(M / f) bits;
before it would reach 2^63 its low word is written out, and read again when it falls below 2^31.
What is encoded last is decoded first, so the encoder walks backwards, from the end of its memory.

Symbol i belongs to state i mod STATES: the states do not wait for each other (Giesen 2014, who
lets them share one stream of words). Blocks of symbols are independent of each other: threads take
one each.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef fused symbol:
    uint8_t
    uint16_t
    uint32_t

cdef extern from "rans.h" nogil:
    enum:
        STATES
    uint64_t LOWEST
    ctypedef struct Slots:
        const uint64_t *entries
        const uint32_t *buckets
        int shift
        int bits
    uint64_t rans_step(uint64_t, const Slots *, uint32_t *)
    Py_ssize_t u8_run(const uint32_t **, const uint32_t *, const Slots *, uint64_t *, char *,
                      Py_ssize_t, Py_ssize_t)
    Py_ssize_t u16_run(const uint32_t **, const uint32_t *, const Slots *, uint64_t *, char *,
                       Py_ssize_t, Py_ssize_t)
    Py_ssize_t u32_run(const uint32_t **, const uint32_t *, const Slots *, uint64_t *, char *,
                       Py_ssize_t, Py_ssize_t)

cdef struct Column:
    char *data
    Py_ssize_t stride  # bytes
    int itemsize


def block_words(Py_ssize_t n, int bits):
    """Words that n symbols can take: a symbol is `bits` bits at most, a state two words."""
    return (n * bits + 31) // 32 + 3 * STATES


cdef inline Column column_of(tuple column) noexcept:
    cdef size_t data = column[0]
    cdef Py_ssize_t stride = column[1]
    cdef int itemsize = column[2]
    return Column(<char *> data, stride, itemsize)


def histogram(
    tuple column, Py_ssize_t n,  # IN: address, stride and size of unsigned symbols
    int64_t[::1] counts,  # INOUT (k,)
):
    """Counts the symbols; 0, or 1 where one of them is k or more."""
    cdef Column symbols = column_of(column)
    cdef Py_ssize_t k = counts.shape[0]
    cdef int bad
    with nogil:
        if symbols.itemsize == 1:
            bad = count(<uint8_t> 0, symbols, n, &counts[0], k)
        elif symbols.itemsize == 2:
            bad = count(<uint16_t> 0, symbols, n, &counts[0], k)
        else:
            bad = count(<uint32_t> 0, symbols, n, &counts[0], k)
    return bad


cdef int count(
    symbol _, Column symbols, Py_ssize_t n, int64_t *counts, Py_ssize_t k,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef symbol value
    for i in range(n):
        value = (<symbol *> (symbols.data + i * symbols.stride))[0]
        if value >= k:
            return 1
        counts[value] += 1
    return 0


def encode(
    tuple column, Py_ssize_t n,  # IN: n symbols
    Py_ssize_t block,  # IN: symbols in a block
    const uint32_t[:, ::1] slots, int bits,  # IN (k, 2): first slot and frequency of each symbol
    uint32_t[:, ::1] words, int64_t[::1] used,  # OUT (n_blocks, block_words), (n_blocks,)
    int n_threads,
):
    """Blocks as words, at the end of each row of `words`; 0, or 1 where a frequency is 0."""
    cdef Column symbols = column_of(column)
    cdef Py_ssize_t n_blocks = words.shape[0], room = words.shape[1], t
    cdef int bad = 0
    with nogil:
        for t in prange(n_blocks, schedule="dynamic", num_threads=n_threads):
            bad |= encode_any(symbols, t * block, min(n, (t + 1) * block), &slots[0, 0],
                              slots.shape[0], bits, &words[t, 0], room, &used[t])
    return bad


cdef int encode_any(
    Column symbols, Py_ssize_t start, Py_ssize_t stop, const uint32_t *slots, Py_ssize_t k,
    int bits, uint32_t *words, Py_ssize_t room, int64_t *used,
) noexcept nogil:
    if symbols.itemsize == 1:
        return encode_block(<uint8_t> 0, symbols, start, stop, slots, k, bits, words, room, used)
    if symbols.itemsize == 2:
        return encode_block(<uint16_t> 0, symbols, start, stop, slots, k, bits, words, room, used)
    return encode_block(<uint32_t> 0, symbols, start, stop, slots, k, bits, words, room, used)


cdef int encode_block(
    symbol _, Column symbols, Py_ssize_t start, Py_ssize_t stop, const uint32_t *slots,
    Py_ssize_t k, int bits, uint32_t *words, Py_ssize_t room, int64_t *used,
) noexcept nogil:
    cdef uint64_t states[STATES]
    cdef uint64_t x, quotient
    cdef uint32_t first, frequency
    cdef uint32_t *word = words + room
    cdef Py_ssize_t i, j, n = stop - start
    cdef symbol value
    for j in range(STATES):
        states[j] = LOWEST
    for i in range(n - 1, -1, -1):
        value = (<symbol *> (symbols.data + (start + i) * symbols.stride))[0]
        if value >= k or slots[2 * <Py_ssize_t> value + 1] == 0:
            return 1
        first, frequency = slots[2 * <Py_ssize_t> value], slots[2 * <Py_ssize_t> value + 1]
        x = states[i % STATES]
        if x >= <uint64_t> frequency << (63 - bits):
            word -= 1
            word[0] = <uint32_t> x
            x >>= 32
        quotient = x / frequency
        states[i % STATES] = (quotient << bits) + first + (x - quotient * frequency)
    for j in range(STATES - 1, -1, -1):
        word -= 2
        word[0] = <uint32_t> states[j]
        word[1] = <uint32_t> (states[j] >> 32)
    used[0] = words + room - word
    return 0


def decode(
    const uint32_t[::1] words, const int64_t[::1] ends,  # IN (n_blocks + 1,): block t is
    # words[ends[t] : ends[t + 1]], checked to lie inside
    const uint64_t[::1] entries,  # IN: of each symbol, in the order of slots, its first slot << 32
    # | its value; one more begins at 2^bits
    const uint32_t[::1] buckets, int shift,  # IN: the entry of slot b << shift, for each b
    int bits,
    tuple column, Py_ssize_t n,  # OUT: n symbols
    Py_ssize_t block,  # IN: symbols in a block
    int n_threads,
):
    """Symbols from words; 0, or 1 where the words are none that `encode` writes."""
    cdef Column symbols = column_of(column)
    cdef Py_ssize_t n_blocks = ends.shape[0] - 1, t
    cdef const uint32_t *stream = &words[0] if words.shape[0] else NULL
    cdef Slots slots = Slots(&entries[0], &buckets[0], shift, bits)
    cdef int bad = 0
    with nogil:
        for t in prange(n_blocks, schedule="dynamic", num_threads=n_threads):
            bad |= decode_any(stream + ends[t], stream + ends[t + 1], &slots, symbols, t * block,
                              min(n, (t + 1) * block))
    return bad


cdef int decode_any(
    const uint32_t *word, const uint32_t *end, const Slots *slots, Column symbols,
    Py_ssize_t start, Py_ssize_t stop,
) noexcept nogil:
    if symbols.itemsize == 1:
        return decode_block(<uint8_t> 0, word, end, slots, symbols, start, stop)
    if symbols.itemsize == 2:
        return decode_block(<uint16_t> 0, word, end, slots, symbols, start, stop)
    return decode_block(<uint32_t> 0, word, end, slots, symbols, start, stop)


cdef int decode_block(
    symbol _, const uint32_t *word, const uint32_t *end, const Slots *slots, Column symbols,
    Py_ssize_t start, Py_ssize_t stop,
) noexcept nogil:
    cdef uint64_t states[STATES]
    cdef Py_ssize_t i, j, n = stop - start, stride = symbols.stride
    cdef char *out = symbols.data + start * stride
    cdef uint32_t value = 0
    cdef int wrong
    if end - word < 2 * STATES:
        return 1
    for j in range(STATES):
        states[j] = word[0] | <uint64_t> word[1] << 32
        word += 2
    if symbol is uint8_t:
        i = u8_run(&word, end, slots, states, out, stride, n)
    elif symbol is uint16_t:
        i = u16_run(&word, end, slots, states, out, stride, n)
    else:
        i = u32_run(&word, end, slots, states, out, stride, n)
    for i in range(i, n):
        j = i % STATES
        states[j] = rans_step(states[j], slots, &value)
        (<symbol *> (out + i * stride))[0] = <symbol> value
        if states[j] < LOWEST:
            if word == end:
                return 1
            states[j] = states[j] << 32 | word[0]
            word += 1
    # What was written is read, and every state is where the encoder began.
    wrong = word != end
    for j in range(STATES):
        wrong |= states[j] != LOWEST
    return wrong
