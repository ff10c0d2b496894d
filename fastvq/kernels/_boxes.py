"""Rows in boxes: codewords that a box rules out need not be compared with its rows."""

import numpy as np

from fastvq._kernels import load
from fastvq.kernels._call import Source, aligned, calls, thread_count

# Rows of a box, about: fewer make boxes small, and each costs a pass over the codebook.
_BOX_ROWS = 96
# Features that rows are ordered by, at most.
_ORDERING = 4
_TAKEN_ROWS = 1 << 16


class Boxes:
    """Rows of few features grouped into boxes of neighbours, to be assigned many times.

    Parameters
    ----------
    X : ndarray of shape (n, d), d <= 12
        Finite. Copied, in the order of the boxes.
    codes : ndarray of int32, shape (n,)
        A first grouping, such as the codes of some codebook. It and the boxes decide how much is
        skipped, never the codes.
    dtype : float32 or float64
        Precision of the arithmetic.
    n_threads : int, optional

    Notes
    -----
    Made in O(n log n). Keeps the copy, 4 bytes a row, and 2 d values a box. An assignment takes
    5 k d operations a box of some 96 rows, and compares its rows with the codewords that the box
    does not rule out, as Kanungo et al. ("An efficient k-means clustering algorithm", PAMI 24,
    2002) do in the cells of a tree.
    """

    def __init__(self, X, codes, *, dtype, n_threads=None):
        kernel, dtype, d = load("boxes"), np.dtype(dtype), X.shape[1]
        if d > kernel.most_features():
            raise ValueError(f"X must have at most {kernel.most_features()} features, got {d}")
        width = kernel.block_rows(d, dtype.itemsize)
        order = _neighbours(X, codes)
        self.dtype, self._order, self._n_threads = dtype, order, n_threads
        self._starts = _starts(codes[order], width * max(1, round(_BOX_ROWS / width)))
        self._X = _in_order(X, order, dtype)
        self._source = Source(self._X, d)
        n_boxes = len(self._starts) - 1
        self._centres = aligned((n_boxes, d), dtype)
        self._reaches = aligned((n_boxes, d), dtype)
        threads = thread_count(n_threads, len(codes) * d)
        kernel.enclose(
            self._source.fields, self._starts, self._centres, self._reaches,
            self._workspace(1, threads), threads,
        )  # fmt: skip

    def assign(self, codebook, codes, distances):
        """What :func:`assign` and :func:`distances` give, for all rows in their own order.

        Parameters
        ----------
        codebook : ndarray of shape (k, d), of the dtype of the boxes
            Of values whose squares neither overflow nor vanish.
        codes : ndarray of int32, shape (n,)
        distances : ndarray of the same dtype as the codebook, shape (n,)
            Both are filled.

        Returns
        -------
        float
            Codewords that a row was compared with, on average.
        """
        k, d = codebook.shape
        for out, dtype in ((codes, np.int32), (distances, self.dtype)):
            if out.shape != self._order.shape or out.dtype != dtype:
                raise ValueError(f"expected {len(self._order)} values of {np.dtype(dtype)}")
        kernel, codebook = load("boxes"), np.ascontiguousarray(codebook, self.dtype)
        step = kernel.step(self.dtype.itemsize)
        features = aligned((d, -(-k // step) * step), self.dtype)
        features[:, :k], features[:, k:] = codebook.T, codebook[-1:].T
        threads = thread_count(self._n_threads, len(self._centres) * k * d * 4)
        workspace = self._workspace(features.shape[1], threads)
        compared = 0
        for first, last in calls(len(self._centres), _BOX_ROWS * k * d):
            compared += kernel.assign(
                self._source.fields, self._starts, self._centres, self._reaches, first, last,
                codebook, features, self._order, codes, distances, workspace, threads,
            )  # fmt: skip
        return compared / max(1, len(codes))

    def _workspace(self, k, threads):
        size = load("boxes").workspace_bytes(self._X.shape[1], self.dtype.itemsize, k)
        return aligned((threads, size), np.dtype(np.uint8))


def _neighbours(X, codes):
    """Positions in an order in which neighbours are close: by code, then along a Z-order curve.

    The curve (Morton 1966) takes the bits of a few features in turn, those that vary most.
    """
    sample = X[:: max(1, len(X) // 1024)].astype(np.float64)
    leading = np.argsort(-sample.var(axis=0), kind="stable")[:_ORDERING]
    code_bits = int(codes.max(initial=0)).bit_length()
    n_bits = min(8, (32 - code_bits) // len(leading))
    spread = _spread_bits(n_bits, len(leading))
    key = codes.astype(np.uint32) << np.uint32(n_bits * len(leading) % 32)
    for place, feature in enumerate(leading):
        values = X[:, feature].astype(np.float32)
        low, high = values.min(), values.max()
        if low < high:
            values -= low
            values *= (len(spread) - 1) / (high - low)
            key |= spread[values.astype(np.uint8)] << np.uint32(place)
    values = None  # sorting needs the room
    order = np.argsort(key)
    key = None
    return order.astype(np.int32)


def _spread_bits(n_bits, apart):
    """For each number of so many bits, these so far apart that those of others fit in between."""
    places = np.arange(n_bits, dtype=np.uint32)
    bits = (np.arange(1 << n_bits, dtype=np.uint32)[:, None] >> places) & np.uint32(1)
    return (bits << (places * np.uint32(apart))).sum(axis=1, dtype=np.uint32)


def _in_order(X, order, dtype):
    """Rows in this order, without an array of wide indices beside them."""
    taken = np.empty((len(order), X.shape[1]), dtype)
    for start in range(0, len(order), _TAKEN_ROWS):
        span = slice(start, start + _TAKEN_ROWS)
        taken[span] = X[order[span]]
    return taken


def _starts(codes, most):
    """Where boxes of equal codes and at most so many rows begin, and the end."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
    boxes = -(-np.diff(edges) // most)
    within = np.arange(boxes.sum()) - np.repeat(np.cumsum(boxes) - boxes, boxes)
    return np.append(np.repeat(edges[:-1], boxes) + within * most, len(codes)).astype(np.int64)
