"""Files: .npy arrays larger than memory, and writing that is all or nothing.

Arrays are read as memory maps. They are written front to back through an ordinary file: a
memory-mapped output would meet a full disk as a bus error, which kills the process, where a
write meets it as an OSError.
"""

import contextlib
import os
import secrets
import stat

import numpy as np

__all__ = ["as_output", "open_npy", "replacing", "slices", "write_npy"]

BLOCK_BYTES = 1 << 25  # of rows in flight: large enough for a disk, small beside any memory


def open_npy(path, ndim=(2,)):
    """Map a .npy file into memory, read-only.

    Parameters
    ----------
    path : path
    ndim : tuple of int
        The numbers of dimensions that will do.

    Raises
    ------
    ValueError
        A damaged or truncated file, another format, an array of Python objects (a pickle, which
        could run code), or one of the wrong number of dimensions.
    """
    path = os.fspath(path)
    os.stat(path)  # reports a missing file as such
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # a damaged header ends in anything from ValueError to TokenError
        raise ValueError(
            f"{path}: not a whole .npy array (damaged, cut short or of another kind): {error}"
        ) from None
    if array.ndim not in ndim:
        wanted = " or ".join(f"{n}-D" for n in ndim)
        raise ValueError(f"{path}: array of shape {array.shape}; want {wanted}")
    return array


def slices(n_rows, row_bytes):
    """Cut ``n_rows`` into consecutive slices of about ``BLOCK_BYTES`` each."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def write_npy(file, shape, dtype, parts):
    """Write an array, given as consecutive blocks of rows, to an open file in .npy format."""
    dtype = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        file.write(np.ascontiguousarray(part, dtype))


def as_output(path, inputs=()):
    """Where a file that is to have this path goes: the path itself, links followed.

    Raises ValueError where no plain file can be there, or where one of `inputs` is.
    """
    for source in inputs:
        if os.path.exists(path) and os.path.samefile(path, source):
            raise ValueError(f"output {path} is also an input; give another name")
    target = os.path.realpath(path)  # follow links: replace the file, not the link
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise ValueError(f"output {path}: there is no folder {folder}")
    if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
        # A rename would put a plain file in the place of a folder or a device (/dev/null!).
        raise ValueError(f"output {path} exists and is not a plain file")
    return target


@contextlib.contextmanager
def replacing(path, inputs=()):
    """Open a new binary file that takes ``path``'s place once the block ends without an error.

    It is written under a temporary name in the same folder and removed on any error and on
    Ctrl-C, so ``path`` is always a whole file: the new one, the old one, or none.

    Parameters
    ----------
    path : path
    inputs : sequence of paths
        Files that are still being read: ``path`` may be none of them, by whatever name.
    """
    target = as_output(path, inputs)
    folder, name = os.path.split(target)
    # A name of its own: another thread, or a process that was killed, may have had the same path.
    temporary = os.path.join(folder, f".{name[:60]}.{secrets.token_hex(4)}.tmp")
    with open(temporary, "xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
