"""Binary quantization: the signs of a row's products with some directions.

"random": hyperplanes through the centre of the rows, drawn at random. Two rows lie on different
sides of one with probability angle / π, so that Hamming distances estimate angles (Charikar,
"Similarity estimation techniques from rounding algorithms", STOC 2002).

"itq": the leading principal directions, turned so that signs B tell most about the coordinates V:
|B − V·R|² is minimised by turns, over B = sign(V·R) and over the rotation R, which is U·Wᵀ where
Vᵀ·B = U S Wᵀ (Gong & Lazebnik, "Iterative quantization: a Procrustean approach to learning binary
codes", CVPR 2011).

Decoding is linear: the offset and the vector a bit that come closest to the rows of the fit, in the
sense of least squares, given their signs.
"""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from fastvq import _threads, kernels
from fastvq._progress import Progress
from fastvq._validation import as_count, as_nonnegative, as_weights, as_word
from fastvq.vq._base import BaseQuantizer, codebook_dtype, random_state_of
from fastvq.vq._rows import spans
from fastvq.vq._search import BinaryIndex, Parts

__all__ = ["BinaryQuantizer"]

ROTATIONS = {
    "random": ("lsh", "hyperplanes"),
    "itq": ("iterative quantization",),
}

_BLOCK_BYTES = 1 << 21
# Directions of the signs with less than this share of the largest variance are no directions: two
# planes that always agree, or one with all rows on one side.
_LEAST_VARIANCE = 1e-9


class BinaryQuantizer(BaseQuantizer):
    """Binary quantizer: a bit for each of some hyperplanes.

    Parameters
    ----------
    n_bits : int, default=64
        Hyperplanes. With "itq" not more than features.
    rotation : {"random", "itq"}, default="random"
        "random": planes drawn at random, orthogonal in groups of as many as there are features.
        "itq": planes fitted to the rows, better by far at the same number of bits.
    center : bool, default=True
        Whether planes go through the mean of the rows. Through the origin (False) Hamming distances
        estimate the angles of the rows as they are.
    max_iter : int, default=50
        Turns of "itq", at most.
    tol : float, default=1e-5
        "itq" ends when a turn lowers its error by less than this share of it.
    random_state : int, RandomState, Generator or None, default=None
    n_threads : int, optional
        By default what `fastvq.set_num_threads`, the environment or OpenMP say. Results do not
        depend on it.
    verbose : int, default=0
        Whether `fit` shows progress.

    Attributes
    ----------
    planes_ : ndarray of shape (n_bits, n_features)
        Normals, of length 1. float64 where fitted on float64 (and on integers of more than 16
        bits), else float32.
    mean_ : ndarray of shape (n_features,)
        What is subtracted from rows first. Bit j of a row x is set where
        ``planes_[j] @ (x - mean_) >= 0``.
    offset_ : ndarray of shape (n_features,)
    directions_ : ndarray of shape (n_bits, n_features)
        Signs s, −1 and 1, stand for ``offset_ + s @ directions_``.
    n_iter_ : int
        Turns of "itq"; 1 with "random".
    code_size_ : int
        Bytes of a row of codes.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Only where the rows came with names.

    Notes
    -----
    `transform` gives packed bits: (n, ceil(n_bits / 8)) bytes, bit j of a row in bit j % 8 of byte
    j // 8, unused bits zero. So codes are their own `pack`.

    The code of a row depends on that row and the planes alone, and a fit with a given
    `random_state` gives the same at any number of threads.

    Encoding takes n·n_bits·d multiply-adds; a fit n·n_bits·(n_bits + 2 d), with "itq" n·d² more,
    and 2 n·n_bits² for each turn, for which the n·n_bits coordinates are kept in memory.

    References
    ----------
    M. S. Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002.
    Y. Gong, S. Lazebnik, "Iterative quantization: a Procrustean approach to learning binary
    codes", CVPR 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq import BinaryQuantizer
    >>> X = np.random.default_rng(0).standard_normal((1000, 32)).astype(np.float32)
    >>> bq = BinaryQuantizer(n_bits=20, random_state=0).fit(X)
    >>> codes = bq.transform(X)
    >>> codes.shape, codes.dtype
    ((1000, 3), dtype('uint8'))
    >>> distances, indices = bq.build_index(codes).search(X[:2], k=3)
    >>> distances[:, 0], indices[:, 0]
    (array([0, 0], dtype=int32), array([0, 1]))
    """

    _compiled_of = ("planes_", "directions_")

    def __init__(
        self,
        n_bits: int = 64,
        *,
        rotation: str = "random",
        center: bool = True,
        max_iter: int = 50,
        tol: float = 1e-5,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        n_threads: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_bits = n_bits
        self.rotation = rotation
        self.center = center
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose

    def fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> "BinaryQuantizer":
        """Find the planes, and how to decode.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : BinaryQuantizer

        Raises
        ------
        ValueError, TypeError
            For input that is not a finite 2-D array of numbers, and for parameters out of range.
        """
        with self._all_or_nothing():
            rows = self._checked(X, reset=True)
            weight = as_weights(sample_weight, len(rows))
            n_bits = as_count(self.n_bits, "n_bits")
            word = as_word(self.rotation, "rotation", ROTATIONS)
            max_iter, tol = as_count(self.max_iter, "max_iter"), as_nonnegative(self.tol, "tol")
            d = rows.shape[1]
            if word == "itq" and n_bits > d:
                raise ValueError(
                    f"n_bits must be at most n_features={d} with rotation='itq', got {n_bits}"
                )
            dtype = codebook_dtype(rows)
            rows = _Centred(rows, weight, dtype, self.center, _threads.effective(self.n_threads))
            rng = random_state_of(self.random_state)
            # What BLAS and LAPACK make of a matrix depends on their threads.
            with _threads.one_blas_thread():
                if word == "random":
                    planes, n_iter = _random_planes(n_bits, d, rng), 1
                else:
                    with Progress("fit", max_iter, self.verbose) as progress:
                        planes, n_iter = _itq(rows, n_bits, max_iter, tol, rng, progress)
                planes = planes.astype(dtype)
                packed = kernels.Rotation(planes.T)
                offset, directions = _decoder(
                    rows, partial(_signs, packed, n_threads=rows.n_threads)
                )
            self.planes_, self.mean_ = planes, _read_only(rows.mean)
            self.offset_ = _read_only((offset + rows.mean).astype(dtype))
            self.directions_ = directions.astype(dtype)
            self.n_iter_ = n_iter
            self._settle()
        return self

    def _compile(self):
        """Planes and directions as a kernel multiplies by them."""
        return kernels.Rotation(self.planes_.T), kernels.Rotation(self.directions_)

    @property
    def _code_bits(self):
        whole, rest = divmod(len(self.planes_), 8)
        return (8,) * whole + ((rest,) if rest else ())

    @property
    def _code_range(self):
        return [2**bits for bits in self._code_bits]

    @property
    def _codebook_dtype(self):
        return self.planes_.dtype

    def _encode(self, rows, codes):
        planes, _ = self._ready()
        for span, block in _centred_blocks(rows, self.mean_, max(self.planes_.shape)):
            signs = _signs(planes, block, n_threads=self.n_threads)
            codes[span] = np.packbits(signs, axis=1, bitorder="little")

    def _decode(self, codes, out):
        _, directions = self._ready()
        for span in spans(len(codes), _block_rows(self.planes_)):
            bits = np.ascontiguousarray(codes[span], np.uint8)
            bits = np.unpackbits(bits, axis=1, count=len(self.planes_), bitorder="little")
            signs = bits.astype(np.int8) * np.int8(2) - np.int8(1)
            kernels.rotate(signs, directions, out=out[span], n_threads=self.n_threads)
            out[span] += self.offset_

    def _memory(self, n_rows, n_features, itemsize):
        n_bits = as_count(self.n_bits, "n_bits")
        widest = max(n_bits, n_features)
        block = max(64 * 8 * widest, 4 * _BLOCK_BYTES)  # rows, products, signs and weighted signs
        planes = 3 * n_bits * n_features * itemsize
        fit = planes + 4 * block + 8 * (n_rows + 4 * n_bits * (n_bits + n_features))
        if as_word(self.rotation, "rotation", ROTATIONS) == "itq":
            fit += n_rows * n_bits * itemsize + 24 * n_features**2
        return fit, planes + 2 * block + n_rows * -(-n_bits // 8)

    def _parts(self):
        """A codebook for each byte of a code: all sums of signed directions that it stands for."""
        bytes_ = np.arange(256, dtype=np.uint8)[:, None]
        signs = np.unpackbits(bytes_, axis=1, bitorder="little").astype(np.float64) * 2 - 1
        books = []
        for first, bits in zip(range(0, len(self.planes_), 8), self._code_bits, strict=True):
            directions = self.directions_[first : first + bits].astype(np.float64)
            books.append(np.einsum("kb,bd->kd", signs[: 2**bits, :bits], directions))
        books[0] += self.offset_
        return Parts([book.astype(self._codebook_dtype) for book in books])

    def _index(self, codes):
        return BinaryIndex(self._parts(), codes, self.transform, self.n_threads)


class _Centred:
    """The rows of a fit, less their mean, in blocks of float64 or float32."""

    def __init__(self, X, weight, dtype, center, n_threads):
        self.X, self.dtype, self.n_threads = X, dtype, n_threads
        self.weight = np.ones(len(X)) if weight is None else weight / weight.mean()
        self.total_weight = float(self.weight.sum())
        codes = np.zeros(len(X), np.int32)
        # Also where the mean is not wanted: the kernel checks the rows.
        mean = kernels.sums(X, codes, 1, sample_weight=self.weight, n_threads=n_threads)[0][0]
        kernels.row_norms(X, n_threads=n_threads)
        self.mean = (mean / self.total_weight * bool(center)).astype(dtype)

    @property
    def shape(self):
        return self.X.shape

    def blocks(self, width):
        """(weights, rows less the mean) of consecutive rows; `width`: values a row in flight."""
        for span, block in _centred_blocks(self.X, self.mean, width):
            yield span, self.weight[span], block

    def covariance(self):
        """Second moments around the mean, times the total weight."""
        total = np.zeros((self.shape[1],) * 2)
        for _, weight, block in self.blocks(self.shape[1]):
            block = block.astype(np.float64)
            total += (block * weight[:, None]).T @ block
        return total


def _centred_blocks(X, mean, width):
    """Consecutive (slice, rows less the mean) in the mean's precision."""
    for span in spans(len(X), max(64, _BLOCK_BYTES // (mean.itemsize * width))):
        yield span, np.subtract(X[span], mean, dtype=mean.dtype)


def _signs(planes, block, *, n_threads):
    """Whether centred rows lie on the upper side of each plane."""
    return kernels.rotate(block, planes, n_threads=n_threads) >= 0


def _block_rows(planes):
    return max(64, _BLOCK_BYTES // (planes.itemsize * max(planes.shape)))


def _random_planes(n_bits, d, rng):
    """Random directions, orthogonal in groups of d.

    Each is as likely as any other, and the estimate of an angle varies less than with independent
    ones (Ji et al., "Super-bit locality-sensitive hashing", NIPS 2012).
    """
    groups = []
    for first in range(0, n_bits, d):
        Q, R = np.linalg.qr(rng.standard_normal((d, d)))
        groups.append((Q * np.copysign(1.0, np.diag(R))).T[: n_bits - first])
    return np.concatenate(groups)


def _itq(rows, n_bits, max_iter, tol, rng, progress):
    """Planes of iterative quantization, and the turns it took."""
    _, vectors = np.linalg.eigh(rows.covariance())
    leading = vectors[:, ::-1][:, :n_bits]
    packed = kernels.Rotation(leading.astype(rows.dtype))
    coordinates = np.empty((len(rows.X), n_bits), rows.dtype)
    for span, _, block in rows.blocks(rows.shape[1]):
        kernels.rotate(block, packed, out=coordinates[span], n_threads=rows.n_threads)
    turn, errors = _random_planes(n_bits, n_bits, rng), [np.inf]
    while len(errors) <= max_iter:
        products, error = _meet(coordinates, rows, turn)
        errors.append(error)
        progress.step()
        if errors[-2] - error <= tol * errors[-2] < np.inf:
            break
        U, _, W = np.linalg.svd(products)
        turn = U @ W
    return (leading @ turn).T, len(errors) - 1


def _meet(coordinates, rows, turn):
    """Vᵀ·B for the signs B = sign(V·R), and the weighted error |B − V·R|² per value."""
    n_bits, packed = len(turn), kernels.Rotation(turn.astype(coordinates.dtype))
    products, error = np.zeros((n_bits, n_bits)), 0.0
    for span in spans(len(coordinates), max(64, _BLOCK_BYTES // (8 * n_bits))):
        block, weight = coordinates[span], rows.weight[span, None]
        turned = kernels.rotate(block, packed, n_threads=rows.n_threads).astype(np.float64)
        signs = np.where(turned >= 0, 1.0, -1.0)
        products += block.astype(np.float64).T @ (signs * weight)
        error += float(np.sum(np.square(signs - turned) * weight))
    return products, error


def _decoder(rows, signs_of):
    """Offset and directions of least squared error, given the signs.

    Their normal equations are solved in the directions in which signs vary.
    """
    n_bits, d = signs_of(np.zeros((1, rows.shape[1]), rows.dtype)).shape[1], rows.shape[1]
    mean_signs, mean_rows = np.zeros(n_bits), np.zeros(d)
    moments, products = np.zeros((n_bits, n_bits)), np.zeros((n_bits, d))
    for _, weight, block in rows.blocks(max(n_bits, d)):
        signs = np.where(signs_of(block), 1.0, -1.0)
        weighted, block = signs * weight[:, None], block.astype(np.float64)
        moments += weighted.T @ signs
        products += weighted.T @ block
        mean_signs += weighted.sum(axis=0)
        mean_rows += np.einsum("n,nd->d", weight, block)
    mean_signs, mean_rows = mean_signs / rows.total_weight, mean_rows / rows.total_weight
    moments = moments / rows.total_weight - np.outer(mean_signs, mean_signs)
    products = products / rows.total_weight - np.outer(mean_signs, mean_rows)
    directions = linalg.pinvh(moments, atol=n_bits * _LEAST_VARIANCE) @ products
    return mean_rows - mean_signs @ directions, directions


def _read_only(array):
    array.flags.writeable = False
    return array
