"""Quantizers to and from faiss, with their codebooks and codes.

faiss (https://github.com/facebookresearch/faiss) is needed only here, and loaded when a function is
called. Codebooks and codes are copied, never fitted again, and the bytes of packed codes are those
of faiss: what one library encoded, the other decodes.

====================  ====================================================================
VectorQuantizer       its codewords as the vectors of an IndexFlatL2, or of an IndexFlatIP
                      where the metric is "cosine"; from a faiss.Kmeans too
====================  ====================================================================

faiss computes in float32 and by another arithmetic: where two codewords are equally near a row up
to rounding, the two may choose differently.
"""

import functools

import numpy as np

from fastvq.vq import VectorQuantizer

__all__ = ["from_faiss", "to_faiss"]


@functools.singledispatch
def to_faiss(quantizer):
    """A faiss index that holds what a fitted quantizer does.

    Parameters
    ----------
    quantizer : VectorQuantizer

    Returns
    -------
    index : faiss.Index
        For a VectorQuantizer, a flat index of the codewords: ``index.search(X, 1)[1]`` are the
        codes of rows X.

    Raises
    ------
    ImportError
        Where faiss is not installed.
    NotFittedError
        Where the quantizer is not fitted.
    TypeError
        For what has no like in faiss.
    """
    raise TypeError(f"there is nothing in faiss like a {type(quantizer).__name__}")


@to_faiss.register
def _(quantizer: VectorQuantizer):
    from sklearn.utils.validation import check_is_fitted

    faiss = _faiss()
    check_is_fitted(quantizer)
    codebook = np.ascontiguousarray(quantizer.codebook_, np.float32)
    flat = faiss.IndexFlatIP if quantizer._metric() == "cosine" else faiss.IndexFlatL2
    index = flat(codebook.shape[1])
    index.add(codebook)
    return index


def from_faiss(index):
    """The quantizer that holds what a trained object of faiss does.

    Parameters
    ----------
    index : faiss.IndexFlatL2, faiss.IndexFlatIP or faiss.Kmeans

    Returns
    -------
    quantizer : VectorQuantizer
        Of the vectors of the index, or the centroids, as codewords. Vectors of an IndexFlatIP (and
        the centroids of a spherical Kmeans) must have length 1; the metric is then "cosine".

    Raises
    ------
    ImportError
        Where faiss is not installed.
    ValueError
        For one that holds nothing yet, or whose vectors are not of length 1 where they must be.
    TypeError
        For what has no like here.
    """
    faiss = _faiss()
    if isinstance(index, faiss.Kmeans):
        if index.centroids is None:
            raise ValueError("the faiss.Kmeans is not trained yet")
        metric = "cosine" if index.cp.spherical else "euclidean"
        return VectorQuantizer.from_codebook(index.centroids, metric=metric)
    # A view of the same object, which the name `index` keeps alive.
    view = faiss.downcast_index(index) if isinstance(index, faiss.Index) else index
    metrics = {faiss.METRIC_L2: "euclidean", faiss.METRIC_INNER_PRODUCT: "cosine"}
    if isinstance(view, faiss.IndexFlat) and view.metric_type in metrics:
        if view.ntotal == 0:
            raise ValueError(f"the faiss.{type(view).__name__} holds no vectors yet")
        codebook = view.reconstruct_n(0, view.ntotal)
        return VectorQuantizer.from_codebook(codebook, metric=metrics[view.metric_type])
    raise TypeError(f"there is nothing in fastvq like a {type(view).__name__} of faiss")


def _faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError('this needs faiss: pip install "fastvq[faiss]"') from error
    return faiss
