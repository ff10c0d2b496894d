"""What every call of a kernel needs: rows as addresses, slices of work, threads, room for codes."""

import math

import numpy as np

from fastvq import _threads
from fastvq._kernels import load
from fastvq._memory import aligned

# Element types of rows, by the number that _kernels/rows.pxd knows them under.
KINDS = {np.dtype(t): i for i, t in enumerate(["float32", "float64", "uint8", "int8", "float16"])}
# Values beyond these (after scaling) could overflow when squared and added up; see rows.pxd.
LIMITS = {np.dtype(np.float32): 2.0**56, np.dtype(np.float64): 2.0**500}
# Codebooks whose largest value lies between 2^-n and 2^n are used as they are.
UNSCALED = {np.dtype(np.float32): 30, np.dtype(np.float64): 200}
# A kernel call holds Ctrl-C back: at most this many multiply-adds, some 0.02-0.2 s.
CALL_WORK = 2_000_000_000
CALL_ROWS = 1 << 20  # and rows, of which a call may keep a byte each
# Multiply-adds that are worth a thread, some 0.1 ms. Waking one takes about 5 us; but where other
# processes want the CPUs, whoever comes last to the end of a call may be late by a scheduler's
# slice, some 4 ms: a fit of many short calls then took ten times as long on two threads as on one.
THREAD_WORK = 4_000_000
CHANGED = "Input X changed while it was read"
NO_WEIGHT = np.empty(0)
NO_CODES = np.empty(0, np.int32)
NO_MARKS = np.empty(0, np.uint8)
DECODED_DTYPES = tuple(np.dtype(t) for t in ("uint8", "uint16", "uint32"))
CODE_DTYPES = tuple(np.dtype(t) for t in ("uint8", "uint16", "uint32", "int32"))


class Source:
    """Rows as the kernels take them: an address, strides, and maybe a list of positions."""

    def __init__(self, X, n_features, rows=None, first_feature=0, n_padded=None):
        if X.ndim != 2 or X.shape[1] != n_features:
            raise ValueError(f"X must have shape (n, {n_features}), got {X.shape}")
        if X.dtype not in KINDS:
            names = ", ".join(t.name for t in KINDS)
            raise TypeError(
                f"X must be of dtype {names} in this machine's byte order, not {X.dtype}"
            )
        self.X, self.rows, self.n = X, rows, len(X)
        self._first_feature = first_feature  # where X is some columns of the user's: for errors
        index = 0
        if rows is not None:
            self.rows = rows = np.ascontiguousarray(rows, np.intp)
            self.n, index = len(rows), rows.ctypes.data
            if self.n and not (rows.min() >= 0 and rows.max() < len(X)):
                raise ValueError(f"rows must lie between 0 and {len(X) - 1}")
        self.n_padded = n_features if n_padded is None else n_padded
        self.fields = (
            X.ctypes.data, *X.strides, self.n_padded, self.n_padded - n_features, KINDS[X.dtype],
            index,
        )  # fmt: skip

    def taken(self, positions):
        """The rows at these positions."""
        rows = positions if self.rows is None else self.rows[positions]
        return Source(self.X, self.X.shape[1], rows, n_padded=self.n_padded)

    def check(self, bad, precision):
        """Raise if a kernel met a value that it could not take; `precision`: dtype or Prepared."""
        if bad:
            raise ValueError(self.complaint(precision) or CHANGED)

    def check_finite(self, bad, dtype):
        """Raise if a kernel that squares nothing met a value that is not finite in `dtype`."""
        if bad:
            raise ValueError(self._complaint(dtype, float(np.finfo(dtype).max)) or CHANGED)

    def complaint(self, precision):
        """What is wrong with the first row that is out of range; None where none is."""
        dtype = np.dtype(getattr(precision, "dtype", precision))
        return self._complaint(dtype, LIMITS[dtype] / getattr(precision, "scale", 1))

    def _complaint(self, dtype, limit):
        for start in range(0, self.n, 4096):
            block = slice(start, min(start + 4096, self.n))
            at = np.arange(self.n)[block] if self.rows is None else self.rows[block]
            values = self.X[at].astype(np.float64)
            with np.errstate(invalid="ignore"):
                outside = ~(np.abs(values) < limit)
            if not outside.any():
                continue
            row, feature = np.argwhere(outside)[0]
            value = values[row, feature]
            where = f"(row {at[row]}, feature {self._first_feature + feature})"
            if np.isnan(value):
                return f"Input X contains NaN {where}"
            if np.isinf(value):
                return f"Input X contains infinity {where}"
            return (
                f"Input X contains a value too large to be compared with this codebook in "
                f"{dtype.name}: {value:.6g} {where}; the limit is {limit:.3g}"
            )
        long = self._first_long_row(limit)
        if long is not None:
            return (
                f"Input X contains a row too long to be compared with this codebook in "
                f"{dtype.name} (row {long}); the limit of its length is {limit:.3g}"
            )
        return None

    def _first_long_row(self, limit):
        for start in range(0, self.n, 4096):
            block = slice(start, min(start + 4096, self.n))
            at = np.arange(self.n)[block] if self.rows is None else self.rows[block]
            values = self.X[at].astype(np.float64)
            largest = np.maximum(np.abs(values).max(axis=1), 1e-300)
            lengths = largest * np.linalg.norm(values / largest[:, None], axis=1)
            # Distances are to codewords, not to zero: what comes near the limit.
            outside = np.flatnonzero(lengths > limit * 0.99)
            if len(outside):
                return at[outside[0]]
        return None


def period(d):
    """A multiple of d features, long enough for a loop over so many values to be a fast one."""
    return d * -(-128 // d)


def check_ranges(codes, sizes):
    if not len(codes):
        return
    least, largest = codes.min(axis=0), codes.max(axis=0)
    if codes.shape[1] > len(sizes) or (least < 0).any() or (largest >= sizes[: len(largest)]).any():
        raise ValueError("codes must lie between 0 and the number of codewords of their stage")


def calls(n, work, multiple=1, most=CALL_ROWS):
    """Slices of n rows, each of `work` multiply-adds, that one call may take."""
    step = min(max(1024, CALL_WORK // max(work, 1) // multiple * multiple), most)
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def thread_count(n_threads, work=math.inf):
    """Threads for a call of so many multiply-adds."""
    return _threads.team(_threads.effective(n_threads), work // THREAD_WORK)


def workspace_for(kernel, d, dtype, threads, *sizes, function="workspace_bytes"):
    size = getattr(load(kernel), function)(d, dtype.itemsize, *sizes)
    return aligned((threads, size), np.dtype(np.uint8))


def address(array):
    return 0 if array is None else array.ctypes.data


def as_weight(sample_weight, n):
    """Weights as the kernels take them: float64, or none at all."""
    if sample_weight is None:
        return NO_WEIGHT
    weight = np.ascontiguousarray(sample_weight, np.float64)
    if weight.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), got {weight.shape}")
    return weight


def room_for_codes(codes, shape, n_codewords):
    if codes is None:
        return np.empty(shape, np.int32)
    if codes.shape != shape or codes.dtype not in CODE_DTYPES:
        names = ", ".join(t.name for t in CODE_DTYPES)
        raise ValueError(
            f"codes must have shape {shape} and dtype {names}, got {codes.shape} of {codes.dtype}"
        )
    if not (codes.flags.c_contiguous and codes.flags.writeable):
        raise ValueError("codes must be contiguous and writeable")
    if np.iinfo(codes.dtype).max < n_codewords - 1:
        raise ValueError(f"codes of dtype {codes.dtype} cannot count {n_codewords} codewords")
    return codes


def as_codes(codes, n, counts):
    """Codes as the kernels take them: int32, in range; adds them to the histogram `counts`."""
    codes = np.ascontiguousarray(codes, np.int32)
    if codes.shape != (n,):
        raise ValueError(f"codes must have shape ({n},), got {codes.shape}")
    if not load("sums").histogram(codes, counts):
        raise ValueError(f"codes must lie between 0 and {len(counts) - 1}")
    return codes


def equal_shares(counts, threads):
    """Bounds of `threads` ranges of codewords with about equally many rows each."""
    reached = np.cumsum(counts)
    bounds = np.searchsorted(reached, reached[-1] * np.arange(1, threads) / threads)
    return np.concatenate([[0], bounds, [len(counts)]]).astype(np.int32)


def precision_of(X):
    return np.dtype(np.float64 if X.dtype == np.float64 else np.float32)


def power_of_two(largest, dtype):
    """Power of two that brings `largest` near 1 where squares could leave the range of dtype."""
    if largest == 0 or 2.0 ** -UNSCALED[dtype] <= largest <= 2.0 ** UNSCALED[dtype]:
        return 1.0
    most = np.finfo(dtype).maxexp - 2
    return 2.0 ** min(max(-math.frexp(largest)[1], -most), most)
