"""Files: named arrays and a few plain values, whole or refused.

A file is a safetensors file (https://huggingface.co/docs/safetensors): 8 bytes, little-endian, with
the length of the header; the header, a JSON object that gives dtype, shape and place of every
tensor; the tensors' bytes, little-endian and in C order, without gaps. Any safetensors reader opens
it. The format is read and written here: a loaded model needs nothing but NumPy, and the library
would leave open what matters here, which is noticing damage.

What makes such a file ours is its ``__metadata__``, strings by the format's rules:

================== =====================================================================
format             "fastvq"
format_version     a whole number: a file of a later one than `FORMAT_VERSION` is refused
fastvq_version     of the fastvq that wrote it; only told, never acted upon
kind               what the file holds: the name of a class, for those who know classes
attributes         a JSON object of whatever the writer wants
checksums          a JSON object: for each tensor, SHA-256 of its dtype, shape and bytes
checksum           SHA-256 of all of the metadata above
================== =====================================================================

Every bit that means something is under a checksum. What is read is checked before it is believed,
and sizes are compared with the file's before anything is allocated: a damaged, truncated, foreign
or hostile file is a `FileFormatError`. Nothing in a file is ever run. (Checksums find accidents;
whoever can write a file can also write its checksums.)

This module knows neither quantizers nor models.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
import stat
import sys
from typing import NamedTuple

import numpy as np

from fastvq._files import replacing

__all__ = [
    "FORMAT_VERSION",
    "LINE",
    "Contents",
    "FileFormatError",
    "Summary",
    "TensorInfo",
    "as_array",
    "as_name",
    "find_damage",
    "inspect",
    "nbytes_of",
    "parse_json",
    "read",
    "read_mapped",
    "write",
]

FORMAT_VERSION = 1
LINE = 64  # bytes: tensors begin at a multiple of it where the format, which has no gaps, lets them

# The names of the format for what NumPy has too, always little-endian.
_DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# Parsed JSON takes up to some 30 times its length: this bounds what a hostile header costs. A
# header has about 200 bytes a tensor.
_MOST_HEADER = 1 << 24
_MOST_DIMENSIONS = 32  # NumPy 1's limit
_MOST_NAME = 256
_BLOCK_BYTES = 1 << 20

# What other files begin with, so that an error can say what the file is.
_OTHERS = {
    b"\x93NUMPY": "a NumPy .npy array",
    b"PK\x03\x04": "a zip archive, as .npz files and PyTorch's are",
    b"\x89HDF\r\n": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x80": "a Python pickle, as joblib and PyTorch write",
}


class FileFormatError(ValueError):
    """A file that is no whole file of fastvq: damaged, cut short, foreign, hostile or too new."""


class Contents(NamedTuple):
    """What a file holds."""

    kind: str
    tensors: dict[str, np.ndarray]
    attributes: dict


class TensorInfo(NamedTuple):
    """What a header says of a tensor."""

    dtype: np.dtype  # as it lies in the file: little-endian
    shape: tuple[int, ...]
    start: int  # in the file, in bytes
    nbytes: int
    checksum: str


class Summary(NamedTuple):
    """What a header says of a file."""

    kind: str
    attributes: dict
    tensors: dict[str, TensorInfo]
    format_version: int
    fastvq_version: str
    nbytes: int  # of the whole file


def write(path, kind, tensors, attributes):
    """Write a file, all of it or nothing.

    It is written under a temporary name in the same folder, brought to the disk and renamed: a
    crash, Ctrl-C or a full disk leaves what was there before.

    Parameters
    ----------
    path : str or path
    kind : str
    tensors : dict of str to ndarray
        Bools, integers and floats of 16, 32 or 64 bits, in any byte order and memory layout. Names
        have no path separators, "..", or characters that cannot be printed.
    attributes : dict
        What JSON keeps as it is: str, int, finite float, bool, None, and lists and dicts of them.

    Raises
    ------
    TypeError, ValueError
        For what the format cannot hold.
    OSError
        Where the file cannot be written.
    """
    stored = {name: _as_stored(name, array) for name, array in tensors.items()}
    names, text = _layout(kind, stored, attributes, lambda array: _digest(array).hexdigest())
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(_bytes_of(stored[name]))


def nbytes_of(kind, tensors, attributes):
    """The bytes of the file that `write` would make of these."""
    stored = {name: _as_stored(name, array) for name, array in tensors.items()}
    _, text = _layout(kind, stored, attributes, lambda array: hashlib.sha256().hexdigest())
    return 8 + len(text) + sum(array.nbytes for array in stored.values())


def read(path):
    """Read a file and check all of it.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    contents : Contents
        Arrays are read-only, in C order and of this machine's byte order.

    Raises
    ------
    FileFormatError
        For anything but a whole file that `write` made; it says which tensor is damaged.
    OSError
        Where there is no such file, or it cannot be read.
    MemoryError
        Where its tensors do not fit in memory.
    """
    with _opened(path) as file:
        summary = _read_header(file)
        tensors = {name: _read_tensor(file, name, info) for name, info in summary.tensors.items()}
    return Contents(summary.kind, tensors, summary.attributes)


def read_mapped(path):
    """Read a file as `read` does, but leave its tensors on the disk until they are used.

    All of the file is read once, in little memory, to compare the checksums; then the arrays are
    views of one memory map. The header has to be spelled as `write` does it, so that not one byte
    can differ from what was written. Whoever changes the file in place later changes the arrays:
    replace files, as `write` does.

    Returns
    -------
    contents : Contents
        Arrays are read-only and in C order; on a machine of another byte order they are copies.

    Raises
    ------
    FileFormatError, OSError, MemoryError
        As `read` does.
    """
    with _opened(path) as file:
        summary = _read_header(file, exactly=True)
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        tensors = {}
        for name, info in summary.tensors.items():
            if _digest_in_file(file, info) != info.checksum:
                raise FileFormatError(f"damaged: tensor {name!r} does not match its checksum")
            place = whole[info.start : info.start + info.nbytes]
            tensors[name] = as_array(name, place, info.dtype, info.shape)
    return Contents(summary.kind, tensors, summary.attributes)


def inspect(path):
    """What the header says: kind, attributes, names, dtypes and shapes; tensors are not read.

    Raises `FileFormatError` and OSError as `read` does. See `find_damage` for the tensors.
    """
    with _opened(path) as file:
        return _read_header(file)


def find_damage(path):
    """The names of the tensors whose bytes are not those that were written.

    Reads the whole file, in little memory. Raises as `inspect` does.
    """
    with _opened(path) as file:
        summary = _read_header(file)
        return [
            name
            for name, info in summary.tensors.items()
            if _digest_in_file(file, info) != info.checksum
        ]


# ---- the header ----------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path):
    """The file at `path`; errors about what it holds begin with its name."""
    path = os.fspath(path)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder has its own error in `open`
        raise FileFormatError(f"{path}: not a plain file")
    with open(path, "rb") as file:
        try:
            yield file
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from None


def _read_header(file, exactly=False):
    """Read and check all that comes before the tensors; how large the file is, too.

    With `exactly` it also has to be spelled as `write` spells it.
    """
    nbytes = os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > nbytes - 8 or length > _MOST_HEADER:
        raise FileFormatError(_what_else(first, nbytes, length))
    text = _exactly(file, length)
    header = parse_json(text, "header")
    respelled = exactly and text != _header_text(header)
    metadata = header.pop("__metadata__", None)
    _check_format(header, metadata)
    if metadata.get("checksum") != _metadata_digest(metadata):
        raise FileFormatError("damaged: the metadata does not match its checksum")
    if respelled:
        raise FileFormatError("damaged, or written anew by another program: its header is changed")
    checksums = parse_json(_text(metadata, "checksums"), "checksums")
    if not _all_strings(checksums) or checksums.keys() != header.keys():
        raise FileFormatError("damaged: the tensors are not those that there are checksums of")
    start = 8 + length
    tensors = {
        name: _tensor_info(name, entry, start, checksums[name]) for name, entry in header.items()
    }
    _check_places(tensors, start, nbytes)
    return Summary(
        kind=as_name(_text(metadata, "kind"), "kind"),
        attributes=parse_json(_text(metadata, "attributes"), "attributes"),
        tensors=tensors,
        format_version=int(metadata["format_version"]),
        fastvq_version=_text(metadata, "fastvq_version"),
        nbytes=nbytes,
    )


def _layout(kind, stored, attributes, digest):
    """The names of the tensors in the order of the file, and the text of its header."""
    # First those that fill whole lines, then large items: so each tensor of the former lies at a
    # multiple of a line, and each of the others at a multiple of the size of its items.
    names = sorted(
        stored, key=lambda name: (stored[name].nbytes % LINE > 0, -stored[name].itemsize, name)
    )
    metadata = {
        "format": "fastvq",
        "format_version": str(FORMAT_VERSION),
        "fastvq_version": _version(),
        "kind": as_name(kind, "kind", TypeError),
        "attributes": _as_json(attributes),
        "checksums": json.dumps(
            {name: digest(stored[name]) for name in names}, separators=(",", ":")
        ),
    }
    header = {"__metadata__": {**metadata, "checksum": _metadata_digest(metadata)}}
    end = 0
    for name in names:
        array = stored[name]
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": array.shape,
            "data_offsets": [start, end],
        }
    text = _header_text(header)
    if len(text) > _MOST_HEADER:
        raise ValueError(
            f"attributes and tensors need a header of {len(text):,} bytes; {_MOST_HEADER:,} is the "
            "limit: store long lists as arrays"
        )
    return names, text


def _header_text(header):
    """A header as its bytes lie in a file: the tensors behind it begin at a multiple of a line."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-(8 + len(text)) % LINE)


def _what_else(first, nbytes, length):
    """What to say of a file whose first 8 bytes are no length of a header."""
    for start, what in _OTHERS.items():
        if first.startswith(start):
            return f"not a fastvq file but {what}"
    if nbytes < 8:
        return f"not a fastvq file, or cut short: it has {nbytes} bytes"
    return (
        f"not a fastvq file, or damaged or cut short: it has {nbytes:,} bytes and would need a "
        f"header of {length:,} (at most {_MOST_HEADER:,} are read)"
    )


def _check_format(header, metadata):
    if not _all_strings(metadata) or metadata.get("format") != "fastvq":
        about = f", whose metadata is {str(metadata)[:80]!r}" if metadata else ""
        raise FileFormatError(
            f"a safetensors file of {len(header)} tensors that fastvq did not write{about}"
        )
    version = metadata.get("format_version", "")
    if not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise FileFormatError(f"damaged: the format's version is {version[:20]!r}")
    if int(version) > FORMAT_VERSION:
        raise FileFormatError(
            f"written by fastvq {metadata.get('fastvq_version', '?')[:40]!r} in version {version} "
            f"of the format; fastvq {_version()} reads up to version {FORMAT_VERSION}: "
            "pip install --upgrade fastvq"
        )


def _tensor_info(name, entry, start, checksum):
    """A tensor's entry in the header, checked by itself."""
    as_name(name, "the name of a tensor")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"tensor {name!r} needs a dtype, a shape, data_offsets: no more")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FileFormatError(
            f"tensor {name!r} has dtype {str(dtype)[:20]!r}, which NumPy does not have"
        )
    if not _all_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise FileFormatError(f"tensor {name!r} has no proper shape: {str(shape)[:80]}")
    if not _all_counts(place) or len(place) != 2:
        raise FileFormatError(f"tensor {name!r} has no proper data_offsets: {str(place)[:80]}")
    dtype = _DTYPES[dtype]
    # An axis of length 0 must not hide absurd ones beside it.
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 1 << 63:
        raise FileFormatError(f"tensor {name!r} has an absurd shape: {str(shape)[:80]}")
    nbytes = math.prod(shape) * dtype.itemsize
    if place[1] - place[0] != nbytes:
        raise FileFormatError(
            f"tensor {name!r} of shape {tuple(shape)} and dtype {dtype} takes {nbytes:,} bytes, "
            f"its place has {place[1] - place[0]:,}"
        )
    return TensorInfo(dtype, tuple(shape), start + place[0], nbytes, checksum)


def _check_places(tensors, start, nbytes):
    """Tensors follow each other without gap or overlap, and fill the file to its end."""
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if info.start != start:
            how = "overlaps the one before it" if info.start < start else "follows a gap"
            raise FileFormatError(f"tensor {name!r} {how}")
        start += info.nbytes
    if start != nbytes:
        what = "cut short" if nbytes < start else "longer than it says"
        raise FileFormatError(f"{what}: it has {nbytes:,} bytes and should have {start:,}")


# ---- tensors -------------------------------------------------------------------------------


def _as_stored(name, array):
    """An array as its bytes lie in a file: little-endian, C order, without gaps."""
    as_name(name, "the name of a tensor", TypeError)
    if name == "__metadata__":
        raise ValueError("a tensor cannot have the name '__metadata__', which the format needs")
    array = np.asarray(array)
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _NAMES:
        hint = ": view it as uint16, or convert it to float32" if "bfloat16" in str(dtype) else ""
        raise TypeError(f"tensor {name!r} has dtype {array.dtype}, which files do not hold{hint}")
    if array.ndim > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {array.ndim} dimensions, of {_MOST_DIMENSIONS}")
    return np.asarray(array, dtype, order="C")


def _read_tensor(file, name, info):
    """One tensor, straight into the array that is returned."""
    content = np.empty(info.nbytes, np.uint8)
    file.seek(info.start)
    if file.readinto(content) != info.nbytes:
        raise FileFormatError(f"cut short while it was read, in tensor {name!r}")
    if _digest(content.view(info.dtype).reshape(info.shape)).hexdigest() != info.checksum:
        raise FileFormatError(f"damaged: tensor {name!r} does not match its checksum")
    return as_array(name, content, info.dtype, info.shape)


def as_array(name, content, dtype, shape):
    """Bytes of a file as the array that they are: read-only, of this machine's byte order."""
    if dtype.kind == "b" and content.max(initial=0) > 1:
        raise FileFormatError(f"tensor {name!r} of bools holds other bytes than 0 and 1")
    stored = content.view(dtype).reshape(shape)
    array = stored.astype(dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


def _digest_in_file(file, info):
    """The checksum of a tensor's bytes, block by block."""
    digest = _new_digest(info.dtype, info.shape)
    file.seek(info.start)
    for start in range(0, info.nbytes, _BLOCK_BYTES):
        digest.update(_exactly(file, min(_BLOCK_BYTES, info.nbytes - start)))
    return digest.hexdigest()


def _digest(stored):
    digest = _new_digest(stored.dtype, stored.shape)
    digest.update(_bytes_of(stored))
    return digest


def _new_digest(dtype, shape):
    """The same bytes as another dtype or in another shape are another tensor."""
    return hashlib.sha256(json.dumps([_NAMES[dtype], *shape]).encode())


def _bytes_of(stored):
    return stored.reshape(-1).view(np.uint8)


def _exactly(file, size):
    content = file.read(size)
    if len(content) != size:
        raise FileFormatError("cut short while it was read")
    return content


# ---- text ----------------------------------------------------------------------------------


def _metadata_digest(metadata):
    """Of what it says, not of how JSON spells it."""
    meant = {key: text for key, text in metadata.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()


def _as_json(attributes):
    """Attributes as text, from which they come back equal."""
    try:
        text = json.dumps(attributes, separators=(",", ":"), allow_nan=False)
        kept = type(attributes) is dict and json.loads(text) == attributes
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"attributes cannot be written as JSON: {error}") from None
    if not kept:
        raise TypeError("attributes must be a dict that JSON keeps: str as keys, lists for tuples")
    return text


def parse_json(text, what):
    """A JSON object, by strict rules: each key once, and finite numbers only."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_number,
            parse_float=_finite,
        )
    except (
        ValueError,
        RecursionError,
    ) as error:  # what json raises are ValueErrors
        raise FileFormatError(f"not a fastvq file, or damaged: its {what}: {error}") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"not a fastvq file, or damaged: its {what} is no JSON object")
    return value


def _without_duplicates(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse_number(text):
    raise ValueError(f"{text} is not a number")


def _finite(text):
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text[:20])


def as_name(name, what, error=FileFormatError):
    """A name that could be shown, and be the name of a file, without doing harm."""
    if not (isinstance(name, str) and 0 < len(name) <= _MOST_NAME and name.isprintable()):
        raise error(f"{what} must be 1 to {_MOST_NAME} printable characters, got {name!r:.80}")
    if ".." in name or "/" in name or "\\" in name:
        raise error(f"{what} must have no '..', '/' and '\\', got {name!r:.80}")
    return name


def _text(metadata, key):
    if key not in metadata:
        raise FileFormatError(f"damaged: the metadata has no {key!r}")
    return metadata[key]


def _all_strings(metadata):
    return isinstance(metadata, dict) and all(type(text) is str for text in metadata.values())


def _all_counts(numbers):
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)


def _version():
    # Not imported: this floor does not lean on the package's front door.
    return sys.modules["fastvq"].__version__
