"""Files of entropy coded codes, as `fastvq encode --entropy` writes them.

A container (`fastvq.container`) of kind "codes": its tensors ``rows.0``, ``rows.1``, ... are what
`entropy.encode` makes of consecutive blocks of rows, so that codes may be more than fit in memory;
its attributes tell how many they are. A block holds some millions of codes: the frequencies that
each brings along are a fraction of a per mille then.
"""

import numpy as np

from fastvq import container, entropy
from fastvq.container import FileFormatError

__all__ = ["KIND", "read", "write"]

KIND = "codes"
_BLOCK_CODES = 1 << 24


def write(path, blocks, *, n_threads=None):
    """Write codes, given as consecutive blocks of rows of shape (n, n_codes)."""
    tensors, shape, dtype = {}, (0, 0), None
    for codes in _joined(blocks):
        data = entropy.encode(codes, n_threads=n_threads)
        tensors[f"rows.{len(tensors)}"] = np.frombuffer(data, np.uint8)
        shape, dtype = (shape[0] + len(codes), codes.shape[1]), codes.dtype.name
    attributes = {"n_rows": shape[0], "n_codes": shape[1], "dtype": dtype}
    container.write(path, KIND, tensors, attributes)


def read(path, *, n_threads=None):
    """Blocks of the codes in a file, in order, each of shape (n, n_codes).

    Raises FileFormatError for any other file, and for blocks that do not fit together.
    """
    contents = container.read(path)
    if contents.kind != KIND:
        raise FileFormatError(f"{path}: holds a {contents.kind!r}, no codes")
    try:
        left, n_codes = contents.attributes["n_rows"], contents.attributes["n_codes"]
        for i in range(len(contents.tensors)):
            data = contents.tensors[f"rows.{i}"]
            codes = entropy.decode(data, max_codes=left * n_codes, n_threads=n_threads)
            if codes.dtype.name != contents.attributes["dtype"] or codes.shape[1:] != (n_codes,):
                raise ValueError(f"block {i} holds codes of another shape or dtype")
            left -= len(codes)
            yield codes
        if left:
            raise ValueError(f"{left} rows are missing")
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path}: damaged: {error}") from error


def _joined(blocks):
    """The same rows in blocks of about `_BLOCK_CODES` codes."""
    parts = []
    for block in blocks:
        parts.append(block)
        if sum(part.size for part in parts) >= _BLOCK_CODES:
            yield np.concatenate(parts)
            parts = []
    if parts:
        yield np.concatenate(parts)
