"""What screening by leading coordinates needs beside the codebook; see _kernels/screen.pyx.

The directions come from the codebook (or a sample of rows) by randomised subspace iteration
(Halko, Martinsson & Tropp 2011, algorithm 4.4). They decide how much is skipped, never the codes.
"""

import math

import numpy as np

from fastvq import _threads
from fastvq._kernels import load
from fastvq._panels import pack_panels

# Fewer features or codewords than these, and the plain tile is as fast.
FEATURES, CODEWORDS = 64, 32
# Scratch memory holds a value for each codeword and row of a block.
MOST_CODEWORDS = 16384
# Directions that hold less than this share of the energy cannot tell codewords apart.
_ENERGY = 0.4
SAMPLE = 1024
_AT_ONCE = 128  # rows in float64
_EPS = np.finfo(np.float32).eps / 2


def suits(codebook):
    """Whether screening is to be had for a codebook of this shape and dtype, and might pay."""
    n_codewords, n_features = codebook.shape
    return (
        codebook.dtype == np.float32
        and n_features >= FEATURES
        and CODEWORDS <= n_codewords <= MOST_CODEWORDS
    )


class Directions:
    """A centre and an orthonormal basis of a few leading directions, for float32 rows.

    Attributes
    ----------
    shift : (d,) float32
    basis : (n_all, d) float64, orthonormal rows, leading first
    panels : the basis packed for the tile
    n_first, n_all : coordinates of the first and of the second screen
    projection : bound of the relative error of a row's coordinates
    energy : share of the sample's variance that the n_all coordinates hold
    """

    def __init__(self, sample):
        d = sample.shape[1]
        self.n_first, self.n_all = max(8, d // 32), max(16, d // 8)
        step = max(1, len(sample) // SAMPLE)
        sample = np.ascontiguousarray(sample[::step], np.float32)
        self.shift = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = sample - self.shift
        with _threads.one_blas_thread():
            self.basis = _leading(centred, self.n_all)
        total = np.einsum("nd,nd->", centred, centred, dtype=np.float64)
        held = np.square(centred @ self.basis.T.astype(np.float32)).sum(dtype=np.float64)
        self.energy = held / total if total > 0 else 0.0
        self.panels = _pack(self.basis, np.zeros(self.n_all))
        # d roundings of a sum of products, in each of n_all coordinates; the basis is rounded to
        # float32 and the row when it is centred, which is within the twelve.
        self.projection = _EPS * (d + 12) * math.sqrt(self.n_all)

    @property
    def worth_trying(self):
        return self.energy > _ENERGY

    def workspace_bytes(self, n_features, n_codewords):
        """Scratch memory of one thread."""
        return load("screen").workspace_bytes(n_features, n_codewords, self.n_all)

    def project(self, source, start, stop, out, workspace, threads):
        """Short rows of positions start .. stop of a source."""
        load("screen").project(
            source.fields, start, stop, self.shift, self.panels, self.n_first, self.n_all, out,
            workspace, threads,
        )  # fmt: skip


class Screen:
    """A codebook seen from some directions."""

    def __init__(self, codebook, directions):
        self.directions = directions
        self.codebook = codebook
        n_first, n_all = directions.n_first, directions.n_all
        short, norms = _short_codewords(codebook, directions)
        rest = np.sqrt(np.maximum(norms - np.einsum("kp,kp->k", short, short), 0))
        held = np.einsum("kp,kp->k", short[:, :n_first], short[:, :n_first])
        first = np.column_stack([short[:, :n_first], np.sqrt(np.maximum(norms - held, 0))])
        self.short_codebook = np.column_stack([short, rest]).astype(np.float32)
        first = first.astype(np.float32)
        starts = np.einsum("kp,kp->k", first, first, dtype=np.float64)
        self.panels = _pack(-2.0 * first, starts)
        self.radius = math.sqrt(norms.max()) * 1.0001
        # Rounding of the short codewords to float32, of their lengths' squares in float64 (where
        # sqrt can make 1e-8 of 1e-16), and of the basis.
        self.slack = self.radius * (_EPS * 2 * (math.sqrt(n_all) + 2) + 1e-7)
        self.rounding = _EPS * (codebook.shape[1] + 16)

    def assign(
        self,
        source,
        start,
        stop,
        short_rows,
        guesses,
        codes,
        doubtful,
        distances,
        workspace,
        threads,
    ):
        """Codes of positions start .. stop, the doubtful marked; nonzero where out of range."""
        directions = self.directions
        return load("screen").screened(
            source.fields, start, stop, directions.shift, directions.panels, directions.n_first,
            directions.n_all, directions.projection, self.panels, self.short_codebook,
            self.codebook, self.radius, self.slack, self.rounding,
            _NO_ROWS if short_rows is None else short_rows,
            _NO_CODES if guesses is None else guesses[start:stop],
            codes.ctypes.data, codes.itemsize, doubtful,
            _NO_DISTANCES if distances is None else distances, workspace, threads,
        )  # fmt: skip


_NO_ROWS = np.empty((0, 0), np.float32)
_NO_CODES = np.empty(0, np.int32)
_NO_DISTANCES = np.empty(0, np.float32)


def _short_codewords(codebook, directions):
    """Coordinates and squared lengths of the centred codewords, float64; few at a time, for the
    sake of memory."""
    short = np.empty((len(codebook), directions.n_all))
    norms = np.empty(len(codebook))
    for some in _parts(codebook):
        centred = codebook[some].astype(np.float64) - directions.shift
        np.einsum("kd,kd->k", centred, centred, out=norms[some])
        np.matmul(centred, directions.basis.T, out=short[some])
    return short, norms


def _parts(rows):
    return [slice(start, start + _AT_ONCE) for start in range(0, len(rows), _AT_ONCE)]


def _leading(centred, n_directions):
    """Orthonormal rows that span about the leading directions, leading first; float64."""
    rng = np.random.RandomState(0)
    start = rng.standard_normal((centred.shape[1], n_directions + 8)).astype(np.float32)
    span = np.linalg.qr(centred.T @ (centred @ start))[0]
    span = np.linalg.qr((centred.T @ (centred @ span)).astype(np.float64))[0]
    image = np.concatenate([centred[some].astype(np.float64) @ span for some in _parts(centred)])
    _, order = np.linalg.eigh(image.T @ image)
    basis = span @ order[:, ::-1][:, :n_directions]
    return np.linalg.qr(basis)[0].T


def _pack(factors, starts):
    return pack_panels(factors.astype(np.float32), starts, load("screen").group_codewords())
