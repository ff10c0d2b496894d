"""The door: what comes from outside is checked here, once, and nowhere else.

Behind it every function may rely on what these return. Rows become a 2-D ndarray of a dtype that
the kernels read (`KERNEL_DTYPES`), without a copy wherever NumPy can express the same memory:
Fortran order, slices, read-only and memory-mapped arrays pass as they are. Whether rows are finite
is not asked here: that would be one more pass over them, and the kernels see every value anyway
while they pack, and raise.

NumPy only: what needs scikit-learn (feature names, tags) is in `fastvq.vq._base`.
"""

from numbers import Integral, Real

import numpy as np

__all__ = [
    "KERNEL_DTYPES",
    "allocate",
    "as_bytes",
    "as_codebook",
    "as_codes",
    "as_count",
    "as_labels",
    "as_nonnegative",
    "as_out",
    "as_rows",
    "as_weights",
    "as_word",
]

KERNEL_DTYPES = tuple(np.dtype(name) for name in ("float32", "float64", "float16", "uint8", "int8"))

_LEAST_WEIGHT = 1e-100  # of the sum of all weights
_FAINT = 1e-150  # of a weight, in shares of the sum


def as_rows(X, name="X"):
    """Vectors, one a row, as a 2-D array that the kernels read.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        An array of numbers or bools, a DataFrame, a list of rows, numeric objects.
    name : str
        What to call it in an error.

    Returns
    -------
    rows : ndarray of shape (n_samples, n_features)
        Of a dtype in `KERNEL_DTYPES`: the same memory where `X` has one of them (bool counts as
        uint8), else a copy: float32 for 16-bit integers, float64 for all else.

    Raises
    ------
    TypeError
        For sparse input, and for values that are not numbers.
    ValueError
        For input that is not 2-D, is empty, ragged, complex, or text.
    """
    array = _as_numbers(X, name)
    if array.ndim != 2:
        raise ValueError(_not_two_d(array, X, name))
    for axis, what in enumerate(("sample(s)", "feature(s)")):
        if array.shape[axis] == 0:
            raise ValueError(
                f"Found array with 0 {what} (shape={array.shape}) while a minimum of 1 is "
                f"required: {name} is empty"
            )
    return array


def as_weights(sample_weight, n_rows):
    """Weights of the rows, (n_rows,) float64, or None for equal weights.

    Those of less than 1e-150 of the sum count as zero: no product with them loses digits.

    Raises ValueError where the shape is another, where a weight is negative, NaN or infinite, or
    where they add up to less than 1e-100 or more than 1e100; TypeError where they are not numbers.
    """
    if sample_weight is None:
        return None
    weight = _as_numbers(sample_weight, "sample_weight")
    if weight.ndim == 0:
        weight = np.full(n_rows, weight)
    if weight.shape != (n_rows,):
        raise ValueError(
            f"sample_weight must have one number a row, shape ({n_rows},), got shape {weight.shape}"
        )
    weight = np.ascontiguousarray(weight, dtype=np.float64)
    with np.errstate(over="ignore"):
        least, total = weight.min(), weight.sum()
    if not (least >= 0 and np.isfinite(total)):
        problem = "negative" if least < 0 else "NaN or infinite (or their sum is)"
        raise ValueError(f"sample_weight must be finite and not negative, got weights {problem}")
    if total == 0:
        raise ValueError("sample_weight is zero in every row: at least one weight must not be zero")
    if not _LEAST_WEIGHT <= total <= 1 / _LEAST_WEIGHT:
        raise ValueError(
            f"sample_weight adds up to {total:g}: multiply the weights by a common factor that "
            "brings their sum near 1 or to the number of rows"
        )
    if least < _FAINT * total:
        weight = np.where(weight < _FAINT * total, 0, weight)
    return weight


def as_codes(codes, n_codewords, n_columns=1, name="codes"):
    """Codes as an integer array of shape (n, n_columns), each in [0, n_codewords).

    Takes any integer dtype, (n,) where there is one column, a DataFrame, a list. `n_codewords` is
    one number, or one for each column.
    """
    array = _as_array(codes, name)
    if array.dtype.kind == "O":
        array = _codes_from_objects(array, name)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.ndim == 1 and n_columns == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != n_columns:
        raise ValueError(
            f"{name} must have the shape (n, {n_columns})"
            f"{' or (n,)' if n_columns == 1 else ''}, got {array.shape}"
        )
    if not array.size:
        return array.astype(np.intp)
    limits = np.broadcast_to(n_codewords, n_columns)
    if array.dtype.kind == "u" and np.iinfo(array.dtype).max < limits.min():
        return array  # any number of this dtype is a code
    for column in range(n_columns) if limits.min() < limits.max() else [slice(None)]:
        least, most = array[:, column].min(), array[:, column].max()
        limit = limits[column] if isinstance(column, int) else limits[0]
        if not (least >= 0 and most < limit):
            where = f" in column {column}" if isinstance(column, int) else ""
            raise ValueError(
                f"{name} must be from 0 to {limit - 1}{where}, got values from {least} to {most}"
            )
    return array


def as_labels(codes, n_codewords, name="codes"):
    """Codes of one column as (n,) integers: from codes, or from one-hot rows, sparse or dense."""
    if hasattr(codes, "tocsr"):
        return _labels_from_sparse(codes.tocsr(copy=True), n_codewords, name)
    array = _as_array(codes, name)
    wide = array.ndim == 2 and array.shape[1] == n_codewords
    if wide and (n_codewords > 1 or array.dtype.kind == "f"):
        hot = _as_numbers(array, name) == 1
        if np.count_nonzero(array) != len(array) or not (hot.sum(axis=1) == 1).all():
            raise ValueError(
                f"{name} of shape (n, n_codewords) must be one-hot: a single 1 in each row, zeros "
                "else. Distances cannot be inverted"
            )
        return hot.argmax(axis=1)
    return as_codes(array, n_codewords, name=name)[:, 0]


def as_codebook(codewords, n_codewords, n_features, dtype, name="init"):
    """Codewords that a user gives, as a C-contiguous copy of shape (n_codewords, n_features)."""
    rows = as_rows(codewords, name)
    if rows.shape != (n_codewords, n_features):
        raise ValueError(
            f"{name} must have the shape (n_codewords, n_features) = "
            f"({n_codewords}, {n_features}), got {rows.shape}"
        )
    with np.errstate(over="ignore"):
        codebook = np.array(rows, dtype=dtype, order="C")
    if not np.isfinite(codebook).all():
        raise ValueError(f"{name} contains NaN, infinity or a value too large for {dtype}")
    return codebook


def as_bytes(packed, row_bytes, name="packed"):
    """Packed codes as a uint8 array of shape (n, row_bytes): from such an array, or from bytes."""
    if isinstance(packed, (bytes, bytearray, memoryview)):
        packed = np.frombuffer(packed, dtype=np.uint8)
        if packed.size % row_bytes:
            raise ValueError(
                f"{name} must hold a multiple of {row_bytes} bytes (code_size_), got {packed.size}"
            )
        return packed.reshape(-1, row_bytes)
    array = _as_array(packed, name)
    if array.dtype != np.uint8:
        raise TypeError(f"{name} must be bytes or a uint8 array, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] != row_bytes:
        raise ValueError(f"{name} must have the shape (n, {row_bytes}), got {array.shape}")
    return array


def as_out(out, shape, dtype, name="out"):
    """An array of the caller's to write a result into, or a new one where `out` is None.

    A one-column result may be given as (n,); it comes back as (n, 1), of the same memory.
    """
    if out is None:
        return allocate(shape, dtype, "the result")
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(out).__name__}")
    if shape[1:] == (1,) and out.shape == shape[:1]:
        out = out.reshape(shape)
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"{name} must have shape {shape} and dtype {np.dtype(dtype)}, "
            f"got {out.shape} and {out.dtype}"
        )
    if not (out.flags.c_contiguous and out.flags.writeable and out.dtype.isnative):
        raise ValueError(f"{name} must be a writeable array in C order")
    return out


def as_count(value, name, minimum=1):
    """An integer of at least `minimum`."""
    if not isinstance(value, Integral) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def as_nonnegative(value, name):
    """A finite number of at least 0."""
    if not isinstance(value, Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a number of at least 0, got {value!r}")
    if not 0 <= value < np.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return float(value)


def as_word(value, name, words, otherwise=""):
    """One of `words`, however it is spelled: case, spaces, "-" and "_" do not matter.

    `words` maps each word to its other spellings; `otherwise` says, for the error, what else than
    a word the parameter takes.
    """
    if isinstance(value, str):
        if value in words:
            return value
        for word, spellings in words.items():
            if _folded(value) in {_folded(spelling) for spelling in (word, *spellings)}:
                return word
    choices = ", ".join(repr(word) for word in words) + otherwise
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name} must be one of {choices}, got {value!r}")


def allocate(shape, dtype, what):
    """An uninitialised array, or a MemoryError that says what it was for and how large."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:  # ValueError: more bytes than there are addresses
        size = float(np.prod(np.array(shape, dtype=float))) * np.dtype(dtype).itemsize
        raise MemoryError(
            f"{what}, {' x '.join(map(str, shape))} numbers of {np.dtype(dtype)}, "
            f"needs {size / 1e9:,.1f} GB, which cannot be had"
        ) from error


# ---- arrays of numbers --------------------------------------------------------------------


def _as_numbers(X, name):
    """`X` as an ndarray of a dtype in KERNEL_DTYPES, of any shape."""
    array = _as_array(X, name)
    if array.dtype.kind == "O":
        array = _from_objects(array, X, name)
    kind, itemsize = array.dtype.kind, array.dtype.itemsize
    if array.dtype in KERNEL_DTYPES:
        return array if array.flags.aligned else array.copy()
    if kind == "b":
        return array.view(np.uint8)
    if kind in "iu":
        return array.astype(np.float32 if itemsize <= 2 else np.float64)
    if kind == "f":  # long double, or another byte order
        native = array.dtype.newbyteorder("=")
        with np.errstate(over="ignore"):
            return array.astype(native if native in KERNEL_DTYPES else np.float64)
    if kind == "c":
        raise ValueError(f"Complex data not supported: {name} has dtype {array.dtype}")
    if kind in "USTV":
        raise ValueError(f"{name} must hold numbers, got text or bytes of dtype {array.dtype}")
    raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}")


def _as_array(X, name):
    if type(X) is np.ndarray:
        return X
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise TypeError(
            f"Sparse input is not supported, got {name} of type {type(X).__name__}: use "
            f"{name}.toarray() where it fits in memory, or reduce it first with "
            "sklearn.decomposition.TruncatedSVD"
        )
    if np.ma.is_masked(X):
        raise ValueError(f"{name} has masked values: fill them or drop their rows")
    try:
        return np.asarray(X)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(f"{name} is ragged: its rows differ in length ({error})") from error


def _from_objects(array, X, name):
    """Numbers held as Python objects (Decimal, Fraction, pandas' nullable columns), as float64."""
    if any(isinstance(value, (str, bytes)) for value in array.flat):
        raise ValueError(f"{name} must hold numbers, got text among its objects")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        if _has_missing(X):
            raise ValueError(f"Input {name} contains NaN (missing values)") from error
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} must hold numbers, got objects that are not: {error}") from error


def _has_missing(X):
    """Whether a DataFrame marks values as missing."""
    return hasattr(X, "isna") and bool(np.any(X.isna()))


def _not_two_d(array, X, name):
    if array.ndim == 0:
        return f"Expected 2D array, got a scalar instead: {name} is of type {type(X).__name__}"
    if array.ndim > 2:
        return (
            f"Expected 2D array, got {array.ndim}D array instead: {name} has shape {array.shape}. "
            f"Reshape your data to one vector a row, {name}.reshape(-1, n_features)"
        )
    return (
        f"Expected 2D array, got 1D array instead: {name} has shape {array.shape}. "
        f"Reshape your data with {name}.reshape(-1, 1) if it has a single feature, or "
        f"{name}.reshape(1, -1) if it is a single sample"
    )


# ---- codes and words ----------------------------------------------------------------------


def _codes_from_objects(array, name):
    if not all(isinstance(value, Integral) for value in array.flat):
        raise TypeError(f"{name} must be integers, got other objects")
    try:
        return array.astype(np.int64)
    except OverflowError as error:
        raise ValueError(f"{name} must be codes, got integers of more than 64 bits") from error


def _labels_from_sparse(codes, n_codewords, name):
    codes.sum_duplicates()
    codes.eliminate_zeros()
    single = np.array_equal(codes.indptr, np.arange(codes.shape[0] + 1))
    if codes.shape[1] != n_codewords or not single or not (codes.data == 1).all():
        raise ValueError(
            f"sparse {name} must be one-hot of shape (n, {n_codewords}): a single 1 in each row, "
            f"got shape {codes.shape} with {codes.nnz} values"
        )
    return codes.indices


def _folded(word):
    return word.lower().translate({ord(sign): None for sign in " -_"})
