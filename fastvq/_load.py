"""`fastvq.load`: what a file of fastvq holds, whatever its kind."""

from fastvq import container
from fastvq.runtime.file import KIND

__all__ = ["load"]


def load(path):
    """Load what `save` wrote: a quantizer or a model.

    A model needs NumPy alone. Its large weights stay on the disk and are mapped into memory, and
    all of the file is read once to compare its checksums. A quantizer needs scikit-learn.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    quantizer or model : BaseQuantizer or CompressedModel
        A quantizer encodes and decodes as the one that was saved, bit for bit, and goes on with
        `partial_fit` where that one stood; its fitted arrays are read-only. A model gives the
        outputs of the one that was saved, bit for bit on the same level.

    Raises
    ------
    FileFormatError
        A ValueError: for a file that is damaged, cut short, of another kind, of a later version,
        or hostile. No file makes `load` run code.
    ImportError
        For a quantizer where scikit-learn or the compiled kernels are missing.
    OSError
        Where there is no such file, or it cannot be read.
    MemoryError
        Where what it holds does not fit in memory.

    Examples
    --------
    >>> import numpy as np
    >>> import fastvq
    >>> X = np.random.RandomState(0).randn(1000, 8)
    >>> vq = fastvq.VectorQuantizer(16, random_state=0).fit(X)
    >>> vq.save("vq.fvq")
    >>> again = fastvq.load("vq.fvq")
    >>> again
    VectorQuantizer(n_codewords=16, random_state=0)
    >>> bool((again.transform(X) == vq.transform(X)).all())
    True
    """
    if container.inspect(path).kind == KIND:
        from fastvq.runtime import CompressedModel

        return CompressedModel.load(path)
    try:
        from fastvq import vq
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{path} holds a quantizer, which needs scikit-learn: pip install scikit-learn"
        ) from error
    return vq.load(path)
