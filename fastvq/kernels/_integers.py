"""Products of 8-bit integers on plain arrays, and rows of floats as such integers."""

import numpy as np

from fastvq._dots import Packed, check_sums
from fastvq._kernels import load
from fastvq.kernels._call import CALL_WORK, thread_count

try:
    from fastvq._kernels._program import run_once
except ImportError:  # built without kernels: models are read all the same; `load` tells of it
    run_once = None

# By dtypes and not their names, which take NumPy a microsecond to tell.
_INT8, _FLOAT32 = np.dtype(np.int8), np.dtype(np.float32)
_FROM = {_INT8: 0, _FLOAT32: 1}
_DTYPES = {"int32": np.dtype(np.int32), "int8": _INT8, "float32": _FLOAT32}
_TO = {"int32": 0, "int8": 1, "float32": 2}
_ENDS = {"int32": (0, 0), "int8": (-128, 127), "float32": (-np.inf, np.inf)}


class Int8Weight:
    """A weight of 8-bit integers, packed once for many products.

    Parameters
    ----------
    weight : ndarray of int8, shape (n, k)
        k up to 65536: more products could overflow the 32 bits of a sum.

    Notes
    -----
    Keeps the weight itself to check biases against, and the packed copy: 2 n k bytes.
    """

    __slots__ = ("packed", "shape", "values")

    def __init__(self, weight):
        self.values = np.asarray(weight)
        self.packed = Packed(self.values)
        if self.values.ndim != 2:
            raise ValueError(f"weight must have shape (n, k), got {self.values.shape}")
        self.shape = self.values.shape


def gemm_int8(
    X,
    weight,
    *,
    zero_point=0,
    bias=None,
    multiplier=None,
    out_zero_point=0,
    low=None,
    high=None,
    table=None,
    dtype=None,
    out=None,
    n_threads=None,
):
    """Rows of int8 times a weight of int8, exact, and what is made of the sums.

    The sum of row i and column j is s = Σ_f (X[i, f] − zero_point) · weight[j, f] + bias[j], the
    same integer on every level. It becomes, by `dtype`:

    - int32 (without a multiplier): s;
    - int8 (with one, by default): clamp(rne(float32(s) · multiplier[j]) + out_zero_point), rounded
      to the nearest integer, of two to the even one, and looked up in `table` where there is one;
    - float32: float32(s) · multiplier[j], between low and high.

    There is one float32 multiplication and nothing to fuse it with, so these are the same bits on
    every level too.

    Parameters
    ----------
    X : ndarray of int8, shape (m, k)
        Values of a row beside each other; rows any number of bytes apart.
    weight : Int8Weight, or ndarray of int8 of shape (n, k), which is packed anew for each call
    zero_point : int from -128 to 127
    bias : array of int32, shape (n,), optional
    multiplier : float32 array of shape (n,), or a number
    out_zero_point : int from -128 to 127
    low, high : bounds of the result: -128 and 127, infinite for float32
    table : ndarray of int8, shape (256,), optional
        What becomes of q, at q + 128: an activation function.
    dtype : "int32", "int8" or "float32"
    out : C-contiguous ndarray of that dtype, shape (m, n), optional
    n_threads : int, optional

    Returns
    -------
    ndarray of shape (m, n)

    Raises
    ------
    ValueError
        If k exceeds 65536, or bias and products together could overflow 32 bits.

    Notes
    -----
    m n k multiply-adds; scratch of up to 0.2 MB a thread.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq import kernels
    >>> X = np.array([[100, -100], [127, 127]], np.int8)
    >>> weight = np.array([[127, -127], [1, 0]], np.int8)
    >>> kernels.gemm_int8(X, weight)
    array([[25400,   100],
           [    0,   127]], dtype=int32)
    >>> kernels.gemm_int8(X, weight, multiplier=0.005)
    array([[127,   0],
           [  0,   1]], dtype=int8)
    """
    weight = weight if isinstance(weight, Int8Weight) else Int8Weight(weight)
    X = _rows(X, weight, _INT8)
    dtype = dtype or ("int32" if multiplier is None else "int8")
    _check_result(dtype, multiplier, table, zero_point, out_zero_point)
    if bias is not None:
        bias = np.asarray(bias)
        if bias.shape != weight.shape[:1] or bias.dtype.kind not in "iu":
            raise ValueError(f"bias must be whole numbers of shape ({weight.shape[0]},)")
        check_sums(weight.values, bias)
    packed = weight.packed
    least, most = _ENDS[dtype]
    bounds = least if low is None else low, most if high is None else high
    return _product(
        X, weight, dtype, n_threads, start=packed.start(zero_point, bias), multiplier=multiplier,
        table=table, out_zero_point=out_zero_point, bounds=bounds, out=out,
    )  # fmt: skip


def gemm_dynamic(
    X, weight, scale, *, bias=None, low=-np.inf, high=np.inf, out=None, n_threads=None
):
    """Rows of floats times a weight of int8: each row quantized as it comes, multiplied exactly.

    With q, s, z of :func:`quantize_rows`: y = (float32(Σ_f (q[i, f] − z[i]) · weight[j, f]) · s[i])
    · scale[j] + bias[j], between low and high, each step rounded to float32: the same bits on
    every level, in any batch. Rows are quantized while they are packed.

    Parameters
    ----------
    X : ndarray of float32, shape (m, k)
        Values of a row beside each other; rows any number of bytes apart.
    weight : Int8Weight, or ndarray of int8 of shape (n, k)
    scale : array of float32, shape (n,), or a number
        Of the weight: its rows stand for weight[j] · scale[j].
    bias : array of float32, shape (n,), optional
    low, high : float
    out : C-contiguous ndarray of float32, shape (m, n), optional
    n_threads : int, optional

    Returns
    -------
    ndarray of float32, shape (m, n)
        NaN in all columns of a row with NaN or infinity.
    """
    weight = weight if isinstance(weight, Int8Weight) else Int8Weight(weight)
    X = _rows(X, weight, _FLOAT32)
    return _product(
        X, weight, "float32", n_threads, multiplier=scale, bias=bias, bounds=(low, high), out=out
    )


def quantize_rows(X, *, n_threads=None):
    """Rows of floats as int8, each with a scale and a zero point of its own.

    The range of a row, zero included, is cut into 255 steps: scale = max/255 − min/255 (at least
    2⁻¹²⁶), zero_point = −128 − rne(min · (1/scale)), q = clamp(rne(x · (1/scale)) + zero_point), in
    float32. Zero is met exactly. With a zero point a row that has no negative values, as after a
    ReLU, gets steps half as wide as with a symmetric range, at the price of one multiplication for
    each output.

    Parameters
    ----------
    X : ndarray of float32, shape (m, k)
        Values of a row beside each other; rows any number of bytes apart.
    n_threads : int, optional

    Returns
    -------
    codes : ndarray of int8, shape (m, k)
    scale : ndarray of float32, shape (m,)
        NaN for a row with NaN or infinity, whose codes are 0.
    zero_point : ndarray of int32, shape (m,)
    """
    X = _rows(X, None, _FLOAT32)
    m, k = X.shape
    codes, scale = np.empty((m, k), np.int8), np.empty(m, np.float32)
    zero_point = np.empty(m, np.int32)
    if m:
        sizes = m, k, X.strides[0] // 4
        threads = thread_count(n_threads, 8 * X.size)
        entry = load("int8").entries["quantize_rows"]
        run_once(entry, (X, codes, scale, zero_point), sizes, (), threads)
    return codes, scale, zero_point


def _product(
    X, weight, dtype, n_threads, *, start=None, multiplier=None, bias=None, table=None,
    out_zero_point=0, bounds, out=None,
):  # fmt: skip
    (m, k), n, packed = X.shape, weight.shape[0], weight.packed
    y = np.empty((m, n), _DTYPES[dtype]) if out is None else out
    good, flags = y.shape == (m, n) and y.dtype == _DTYPES[dtype], y.flags
    if not (good and flags.c_contiguous and flags.writeable):
        raise ValueError(f"out must be contiguous {dtype} of shape {(m, n)}")
    multiplier, bias = _per_column(packed, multiplier), _per_column(packed, bias)
    threads = thread_count(n_threads, m * n * k // 4)
    step = max(64, CALL_WORK // (n * k))
    kernel = load("int8")
    scratch = np.empty(threads * packed.scratch_bytes(min(m, step)), np.uint8)
    table = None if table is None else np.ascontiguousarray(table)
    for first in range(0, m, step):
        rows, part = (X, y) if m <= step else (X[first : first + step], y[first:])
        operands = (
            rows, *packed.operands, packed.column_sums, start, multiplier, bias, table, part,
            scratch,
        )  # fmt: skip
        stride = X.strides[0] // X.itemsize
        sizes = (
            _FROM[X.dtype],
            _TO[dtype],
            len(rows),
            k,
            n,
            1,
            stride,
            n,
            out_zero_point,
            0,
            packed.form,
        )
        run_once(kernel.entries["rows"], operands, sizes, bounds, threads)
    return y


def _per_column(packed, values):
    if values is None:
        return None
    return packed.per_column(np.asarray(values, np.float32), np.float32)


def _rows(X, weight, dtype):
    X = np.asarray(X)
    if X.dtype != dtype or X.ndim != 2 or (weight and X.shape[1] != weight.shape[1]):
        k = weight.shape[1] if weight else "k"
        raise ValueError(f"X must be {dtype} of shape (m, {k}), got {X.shape} of {X.dtype}")
    row, value = X.strides
    if (value != X.itemsize and X.shape[1] > 1) or row % X.itemsize:
        return np.ascontiguousarray(X)
    return X


def _check_result(dtype, multiplier, table, zero_point, out_zero_point):
    if dtype not in _TO:
        raise ValueError(f"dtype must be one of {', '.join(_TO)}, got {dtype!r}")
    if (dtype == "int32") != (multiplier is None):
        raise ValueError("int8 and float32 need a multiplier, int32 has none")
    if multiplier is not None and not np.isfinite(multiplier).all():
        raise ValueError("multiplier must be finite")
    if table is not None and (dtype != "int8" or table.shape != (256,) or table.dtype != np.int8):
        raise ValueError("table must be int8 of shape (256,), for a result of int8")
    if not -128 <= zero_point <= 127:
        raise ValueError(f"zero_point must lie between -128 and 127, got {zero_point}")
    if not -128 <= out_zero_point <= 127:
        raise ValueError(f"out_zero_point must lie between -128 and 127, got {out_zero_point}")
