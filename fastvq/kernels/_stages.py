"""Sums of codewords: beam search, local search, decoding."""

from typing import NamedTuple

import numpy as np

from fastvq._kernels import load
from fastvq.kernels._call import (
    LIMITS,
    Source,
    aligned,
    calls,
    check_ranges,
    power_of_two,
    room_for_codes,
    thread_count,
    workspace_for,
)

# A table of the cross terms of all codewords: what it may take, and the least share that a stage
# has of all stages' squared lengths, for fewer digits are lost in them than that.
CROSSED_BYTES = 1 << 28
_CROSSED_DIGITS = 2.0**8


class JoinedCodebooks(NamedTuple):
    """All codewords of several codebooks in one array, as kernels read them."""

    codewords: np.ndarray  # (sum of size, d)
    first: np.ndarray  # (n_codebooks,) intp: where each begins
    size: np.ndarray  # (n_codebooks,) intp: codewords of each


def join_codebooks(codebooks):
    """Put codebooks one after the other, for repeated use: a list is copied.

    Parameters
    ----------
    codebooks : (M, k, d) array, list of (k_m, d) arrays of one dtype, or JoinedCodebooks

    Returns
    -------
    JoinedCodebooks
        Not to be written into: it may share the memory of what was given.
    """
    if isinstance(codebooks, JoinedCodebooks):
        return codebooks
    if isinstance(codebooks, np.ndarray):  # they lie so already
        codewords = codebooks.reshape(-1, codebooks.shape[2])
    else:
        codewords = np.concatenate(codebooks)
    size = np.array([len(book) for book in codebooks], np.intp)
    return JoinedCodebooks(codewords, np.cumsum(size) - size, size)


class Stages:
    """Codebooks of which a row is to be the sum, one codeword of each, as the kernels want them.

    Codewords are centred stage by stage, and rows on the sum of the centres, so that little cancels
    in values such as |c|^2 - 2 x.c; they are numbered through, each stage padded.

    Attributes
    ----------
    codebooks : list of (k_m, d) arrays, as given
    joined : JoinedCodebooks, the same
    scale : power of two that keeps squares from overflowing and underflowing; mostly 1
    first, size : (n_stages,) intp, number of a stage's first codeword, and of its codewords
    shift : (d,) sum of the centres, of scaled codewords
    codewords : (width, d) scaled and centred
    blocks : the same times -2 behind |c|^2, packed feature-major in blocks of `per_block`
    crossed : (width, width) table of 2 c.c', or None where it would be too large, or where the
        codewords of some stage are so short beside others that it would not have the digits
    """

    def __init__(self, codebooks):
        given = codebooks
        codebooks = [np.ascontiguousarray(codebook) for codebook in codebooks]
        dtype, d = codebooks[0].dtype, codebooks[0].shape[1]
        if any(book.dtype != dtype or book.shape[1:] != (d,) for book in codebooks):
            raise ValueError("codebooks must have the same dtype and number of features")
        if dtype not in LIMITS or not all(np.isfinite(book).all() for book in codebooks):
            raise ValueError("codebooks must be finite, of dtype float32 or float64")
        self.joined = join_codebooks(given if isinstance(given, np.ndarray) else codebooks)
        self.codebooks = np.split(self.joined.codewords, self.joined.first[1:])
        self.dtype, self.n_features = dtype, d
        self.scale = power_of_two(max(np.abs(book).max() for book in codebooks), dtype)
        per_block, unit, step = load("residual").layout(dtype.itemsize)
        self.size = self.joined.size
        ends = np.cumsum(-(-self.size // step) * step)
        self.first = np.concatenate([[0], ends[:-1]]).astype(np.intp)
        self.width = int(-(-ends[-1] // unit) * unit)
        self._centre()
        self._pack(per_block)
        self.crossed = self._cross() if self._crossed_pays() else None

    def _places(self):
        """The slice of the numbers of each stage's codewords."""
        return [slice(f, f + k) for f, k in zip(self.first, self.size, strict=True)]

    def _centre(self):
        scaled = [book.astype(np.float64) * self.scale for book in self.codebooks]
        self.shift = np.zeros(self.n_features)
        self.codewords = np.zeros((self.width, self.n_features), self.dtype)
        self.energy = []
        for place, book in zip(self._places(), scaled, strict=True):
            centre = book.mean(axis=0)
            self.codewords[place] = book - centre
            self.shift += centre
            self.energy.append(np.square(book - centre).sum(axis=1).mean())
        self.shift = self.shift.astype(self.dtype)

    def _pack(self, per_block):
        d = self.n_features
        packed = np.empty((self.width, 1 + d), self.dtype)
        packed[:, 0] = np.finfo(self.dtype).max / 4  # what fills a stage is never chosen
        exact = self.codewords.astype(np.float64)
        norms = np.einsum("kd,kd->k", exact, exact)
        for place in self._places():
            packed[place, 0] = norms[place]
        packed[:, 1:] = self.codewords * self.dtype.type(-2)
        self.blocks = aligned((self.width * (1 + d),), self.dtype)
        blocks = self.blocks.reshape(-1, 1 + d, per_block)
        blocks[...] = packed.reshape(-1, per_block, 1 + d).transpose(0, 2, 1)

    def _crossed_pays(self):
        energy = np.array(self.energy)
        short = energy[energy > 0].min(initial=np.inf)
        digits = short / energy.sum() / np.finfo(self.dtype).eps if len(energy) > 1 else np.inf
        return self.width**2 * self.dtype.itemsize <= CROSSED_BYTES and not digits < _CROSSED_DIGITS

    def _cross(self):
        crossed = aligned((self.width, self.width), self.dtype)
        nothing = np.zeros(self.n_features, self.dtype)
        _unaries(Source(-self.codewords, self.n_features), self, crossed, 1, 1.0, nothing, 0.0)
        return crossed


def stage_values(X, stages, *, n_threads=None):
    """|c|^2 - 2 x.c of every row and codeword, all centred as :class:`Stages` says.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    stages : Stages
    n_threads : int, optional

    Returns
    -------
    list of ndarray of shape (n, k_m), one for each stage
    """
    source = Source(X, stages.n_features)
    out = np.empty((source.n, stages.width), stages.dtype)
    threads = thread_count(n_threads, source.n * stages.codewords.size)
    _unaries(source, stages, out, threads, stages.scale, stages.shift, 1.0)
    return [out[:, place] for place in stages._places()]


def beam_search(X, stages, *, beam_width=1, n_out=1, rows=None, codes=None, n_threads=None):
    """Codes of each row, found stage by stage while the best so many choices are kept.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    stages : Stages
    beam_width : int
    n_out : int
        Entries of the last beam to return, best first: not more than it has,
        min(beam_width, product of the sizes).
    rows : ndarray of intp, shape (m,), optional
        Rows to take, in this order; all by default.
    codes : C-contiguous ndarray of uint8, uint16, uint32 or int32, shape (n, n_stages), optional
        Where to write, with n_out = 1; int32 by default.
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (n, n_out, n_stages), or what `codes` is

    Notes
    -----
    With a table, d multiply-adds for each codeword, and an addition for each entry, codeword and
    earlier stage; without, d multiply-adds for each entry and codeword.
    """
    source = Source(X, stages.n_features, rows)
    n_stages, d = len(stages.size), stages.n_features
    if codes is None:
        codes = np.empty((source.n, n_out, n_stages), np.int32)
    flat = room_for_codes(codes.reshape(-1), (codes.size,), int(stages.size.max()))
    if codes.size != source.n * n_out * n_stages:
        raise ValueError(f"codes must have shape ({source.n}, {n_stages}), got {codes.shape}")
    plain = stages.crossed is None
    work = stages.width * (beam_width * d if plain else d + beam_width * n_stages)
    threads = thread_count(n_threads, source.n * work)
    search = load("residual").search_plain if plain else load("residual").search
    workspace = workspace_for(
        "residual", d, stages.dtype, threads, stages.first, stages.size, stages.width, beam_width,
        plain, function="search_bytes",
    )  # fmt: skip
    for start, stop in calls(source.n, work):
        part = flat[start * n_out * n_stages :]
        bad = search(
            source.fields, start, stop, stages.scale, stages.shift, stages.blocks,
            stages.codewords if plain else stages.crossed, stages.first, stages.size, beam_width,
            n_out, part.ctypes.data, part.itemsize, workspace, threads,
        )  # fmt: skip
        source.check(bad, stages)
    return codes


def local_search(X, stages, codes, jumps, *, sweeps=4, rows=None, n_threads=None):
    """Better codes, by conditional modes from where they are and after each of a list of jumps.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    stages : Stages
        With a table.
    codes : C-contiguous ndarray of int32, shape (n, n_stages)
        Changed in place.
    jumps : ndarray of int32, shape (n_jumps, n_replaced, 2)
        Stages, and the codes to put there before the search goes on.
    sweeps : int
        Conditional modes go through all stages so often at most.
    rows : ndarray of intp, shape (m,), optional
        Row of each code; by default those of place i belong to row i.
    n_threads : int, optional
    """
    source = Source(X, stages.n_features, rows)
    n_stages, d = len(stages.size), stages.n_features
    _check_stage_codes(codes, source.n, stages)
    jumps = np.ascontiguousarray(jumps, np.int32)
    stage, code = jumps[..., 0], jumps[..., 1]
    if jumps.size and not (
        stage.min() >= 0 and stage.max() < n_stages and (code >= 0).all()
        and (code < stages.size[stage]).all()
    ):  # fmt: skip
        raise ValueError("jumps must hold stages and codes of theirs")
    work = stages.width * (d + (1 + len(jumps)) * sweeps * n_stages // 4)
    threads = thread_count(n_threads, source.n * work)
    workspace = workspace_for(
        "additive", d, stages.dtype, threads, stages.first, stages.size, stages.width,
        function="search_bytes",
    )  # fmt: skip
    for start, stop in calls(source.n, work):
        bad = load("additive").local_search(
            source.fields, start, stop, stages.scale, stages.shift, stages.blocks, stages.crossed,
            stages.first, stages.size, jumps, sweeps, codes[start:stop], workspace, threads,
        )  # fmt: skip
        source.check(bad, stages)
    return codes


def decode_sums(codes, codebooks, *, columns=None, out=None, n_threads=None):
    """Sums of one codeword of each codebook, in order and in the codebooks' precision.

    Parameters
    ----------
    codes : ndarray of integers, shape (n, m)
        Codes of the first m codebooks, in range.
    codebooks : (M, k, d) array, list of (k_m, d) arrays of one dtype, or JoinedCodebooks
        A list is copied by each call.
    columns : sequence of m integers, optional
        Codebooks that the columns of `codes` belong to, if not the first m.
    out : C-contiguous ndarray of the codebooks' dtype, shape (n, d), optional
    n_threads : int, optional
    """
    flat, first, size = join_codebooks(codebooks)
    if columns is not None:
        first, size = first[columns], size[columns]
    codes = np.ascontiguousarray(codes, np.int32)
    if out is None:
        out = np.empty((len(codes), flat.shape[1]), flat.dtype)
    check_ranges(codes, size)
    threads = thread_count(n_threads, codes.size * flat.shape[1])
    for start, stop in calls(len(codes), codes.shape[1] * flat.shape[1]):
        load("residual").decode(codes[start:stop], flat, first, out[start:stop], threads)
    return out


def distances_to_sums(X, codebooks, codes, *, rows=None, scale=1.0, n_threads=None):
    """Squared distance of each row to the sum that its codes stand for, from the differences.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    codebooks : (M, k, d) array, list of (k_m, d) arrays of one dtype, or JoinedCodebooks
        Their dtype is the precision of the arithmetic. A list is copied by each call.
    codes : ndarray of int32, shape (n, m)
    rows : ndarray of intp, shape (n,), optional
        Row of each code; by default those of place i belong to row i.
    scale : float
        Power of two that rows and codebooks are multiplied by.
    n_threads : int, optional

    Returns
    -------
    ndarray of the codebooks' dtype, shape (n,)
        In units of ``scale`` squared.
    """
    flat, first, size = join_codebooks(codebooks)
    if scale != 1:
        flat = flat * flat.dtype.type(scale)
    source = Source(X, flat.shape[1], rows)
    codes = np.ascontiguousarray(codes, np.int32)
    check_ranges(codes, size)
    out = np.empty(source.n, flat.dtype)
    threads = thread_count(n_threads, codes.size * flat.shape[1])
    workspace = workspace_for(
        "residual", flat.shape[1], flat.dtype, threads, function="errors_bytes"
    )
    for start, stop in calls(source.n, codes.shape[1] * flat.shape[1]):
        bad = load("residual").errors(
            source.fields, start, stop, scale, codes[start:stop], flat, first, out[start:stop],
            workspace, threads,
        )  # fmt: skip
        source.check(bad, flat)
    return out


def _unaries(source, stages, out, threads, scale, shift, lead):
    d = stages.n_features
    workspace = workspace_for(
        "residual", d, stages.dtype, threads, stages.width, function="unaries_bytes"
    )
    for start, stop in calls(source.n, stages.codewords.size):
        bad = load("residual").unaries(
            source.fields, start, stop, scale, shift, lead, stages.blocks, out[start:stop],
            workspace, threads,
        )  # fmt: skip
        source.check(bad, stages)


def _check_stage_codes(codes, n, stages):
    shape = (n, len(stages.size))
    if codes.shape != shape or codes.dtype != np.int32 or not codes.flags.c_contiguous:
        raise ValueError(
            f"codes must be a C-contiguous int32 array of shape {shape}, got {codes.shape} of "
            f"{codes.dtype}"
        )
    check_ranges(codes, stages.size)
