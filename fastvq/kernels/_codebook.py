"""A codebook packed once for many calls."""

import math
from threading import Lock

import numpy as np

from fastvq import _screen
from fastvq._kernels import load
from fastvq._panels import pack_panels
from fastvq.kernels._call import LIMITS, Source, power_of_two, workspace_for
from fastvq.kernels._grid import Grid, grid_may_pay, sampled

# The expanded value pays from this many features on; below, differences are as cheap.
EXPAND_FEATURES = 4
# ... and while rounding, relative to the gaps between codewords, leaves few rows in doubt.
_EXPAND_DOUBT = 0.03
_GEOMETRY_SAMPLE = 32


class Prepared:
    """A codebook as the kernels want it: made once by :func:`prepare`; threads may share it.

    Attributes
    ----------
    codebook : (k, d) C-contiguous array, multiplied by ``scale``
    n_row_features : features that rows have; where d is more, they count as 0 in the others
    scale : power of two that keeps squares from overflowing and underflowing; mostly 1
    shift : (d,) centre of the scaled codebook, subtracted from rows for the expanded values
    panels : the centred codebook packed for the tile, or None where differences serve better
    radius : largest distance of a codeword to the centre
    rounding : what rounding can add to an expanded and a direct value, relative to (|x| + R)^2
    """

    __slots__ = (
        "_grid",
        "_lock",
        "_screen",
        "_screen_wanted",
        "codebook",
        "n_row_features",
        "panels",
        "radius",
        "rounding",
        "scale",
        "shift",
    )

    def __init__(self, codebook, screen=False, bounds=False, n_row_features=None):
        codebook = _own(codebook)
        self.n_row_features = codebook.shape[1] if n_row_features is None else n_row_features
        self.scale = power_of_two(np.abs(codebook).max(), codebook.dtype)
        self.codebook = codebook
        if self.scale != 1:
            self.codebook = codebook * codebook.dtype.type(self.scale)
        self.panels = self.shift = None
        self.radius = self.rounding = 0.0
        n_codewords, n_features = codebook.shape
        if (bounds or n_features >= EXPAND_FEATURES) and n_codewords > 1:
            self._expand(codebook)
        self._screen, self._screen_wanted, self._lock = None, screen, Lock()
        self._grid = None

    @property
    def n_codewords(self):
        return len(self.codebook)

    @property
    def dtype(self):
        return self.codebook.dtype

    def source(self, X, rows=None):
        """Rows as kernels that compare them with this codebook take them."""
        return Source(X, self.n_row_features, rows, n_padded=self.codebook.shape[1])

    def _expand(self, unscaled):
        """Make the panels, unless rounding would leave too many rows in doubt."""
        dtype, n_features = self.dtype, self.codebook.shape[1]
        self.shift = self.codebook.mean(axis=0, dtype=np.float64).astype(dtype)
        centred = self.codebook - self.shift
        norms = np.einsum("kd,kd->k", centred, centred, dtype=np.float64)
        self.radius = math.sqrt(norms.max()) * 1.0001
        self.rounding = np.finfo(dtype).eps / 2 * (n_features + 8)
        if 12 * self.rounding * self.radius**2 > _EXPAND_DOUBT * self._separation(unscaled):
            return
        per_group = load("assign").panel_codewords(n_features)
        centred *= -2
        self.panels = pack_panels(centred, norms, per_group)

    def screen(self):
        """What screening needs, made at its first use; None where it is not wanted or no use."""
        with self._lock:
            if self._screen_wanted:
                self._screen_wanted = False
                if self.scale == 1 and _screen.suits(self.codebook):
                    directions = _screen.Directions(self.codebook)
                    if directions.worth_trying:
                        self._screen = _screen.Screen(self.codebook, directions)
        return self._screen

    def grid(self, source, n_threads):
        """A grid in which these rows are found sooner than by comparing them; None where not."""
        if not grid_may_pay(self, source):
            return None
        sample = sampled(source)
        if not len(sample):
            return None
        with self._lock:
            if self._grid is None:
                self._grid = Grid.where_it_pays(self, source.n, sample, n_threads) or False
        return self._grid if self._grid and self._grid.pays(sample) else None

    def _separation(self, unscaled):
        """Median squared distance of a codeword to its nearest neighbour, from a sample."""
        step = max(1, self.n_codewords // _GEOMETRY_SAMPLE)
        sample = unscaled[::step]
        nearest = np.empty((len(sample), 2), self.dtype)
        codes = np.empty((len(sample), 2), np.int32)
        source = Source(sample, sample.shape[1])
        two_nearest(source, self, 0, len(sample), codes, nearest, 1)
        return np.median(nearest[:, 1])


def prepare(codebook, *, screen=False, bounds=False, n_row_features=None):
    """Pack a codebook for repeated use.

    Parameters
    ----------
    codebook : ndarray of shape (k, d), float32 or float64
    screen : bool
        Whether :func:`assign` may try screening by leading coordinates on large inputs, which
        skips most of the arithmetic where variance lies in few directions. What that needs is
        made at its first use and costs about as much as assigning a few hundred rows.
    bounds : bool
        Whether :func:`assign` shall give lower bounds (``others``) for few features too, where
        it would take differences otherwise, as being no slower.
    n_row_features : int, optional
        Features that rows have, where the codebook has more: rows are 0 in those. One more feature
        of √r turns |x − c|² into |x − c|² + r: codewords at a price each.

    Returns
    -------
    Prepared
        To be passed in place of the codebook, which may change afterwards. Threads may share it.
    """
    if isinstance(codebook, Prepared):
        return codebook
    if codebook.ndim != 2 or 0 in codebook.shape or codebook.dtype not in LIMITS:
        raise ValueError(
            f"codebook must be a non-empty 2-D float32 or float64 array, got shape "
            f"{codebook.shape} of {codebook.dtype}"
        )
    if not np.isfinite(codebook).all():
        raise ValueError("codebook contains NaN or infinity")
    if n_row_features is not None and not 0 < n_row_features <= codebook.shape[1]:
        raise ValueError(
            f"n_row_features must be from 1 to {codebook.shape[1]}, got {n_row_features}"
        )
    return Prepared(codebook, screen, bounds, n_row_features)


def widened(book):
    """A prepared codebook of float32 that is scaled, in float64; any other one as it is.

    Scaling makes room for the codebook's squares, not for those of rows of another size. In float64
    the squares of all float32 values fit.
    """
    if book.scale == 1 or book.dtype == np.float64:
        return book
    wide = book.codebook.astype(np.float64) / book.scale
    return prepare(wide, n_row_features=book.n_row_features)


def _own(codebook):
    """The codebook as a C-contiguous array that nobody will write into."""
    flags = codebook.flags
    shared = flags.writeable or not flags.owndata
    return np.array(codebook, order="C", copy=True) if shared else np.ascontiguousarray(codebook)


def two_nearest(source, book, start, stop, codes, nearest, threads):
    return load("assign").assign_two(
        source.fields, start, stop, book.scale, book.codebook, codes, nearest,
        workspace_for("assign", book.codebook.shape[1], book.dtype, threads), threads,
    )  # fmt: skip


def unscaled_codebook(book):
    return book.codebook if book.scale == 1 else book.codebook / book.dtype.type(book.scale)


def unscaled_squares(squares, book):
    if book.scale == 1:
        return squares
    return squares.astype(np.float64) / book.scale / book.scale
