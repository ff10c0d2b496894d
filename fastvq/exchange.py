"""Quantizers to and from faiss, with their codebooks and codes.

faiss (https://github.com/facebookresearch/faiss) is needed only here, and loaded when a function is
called. Codebooks and codes are copied, never fitted again, and the bytes of packed codes are those
of faiss: what one library encoded, the other decodes.

====================  ====================================================================
VectorQuantizer       its codewords as the vectors of an IndexFlatL2, or of an IndexFlatIP
                      where the metric is "cosine"; from a faiss.Kmeans too
ProductQuantizer      IndexPQ, behind an IndexPreTransform where it rotates; from a
                      faiss.ProductQuantizer too
ResidualQuantizer     IndexResidualQuantizer; from a faiss.ResidualQuantizer too
AdditiveQuantizer     IndexLocalSearchQuantizer; from a faiss.LocalSearchQuantizer too
ScalarQuantizer       evenly spaced levels of 4, 6 and 8 bits as an IndexScalarQuantizer;
                      from a faiss.ScalarQuantizer too
====================  ====================================================================

faiss computes in float32 and by another arithmetic: where two codewords are equally near a row up
to rounding, the two may choose differently. Sums of codewords are found by different searches (here
among centred codebooks, for one thing): codes may differ that stand for almost the same.
"""

import functools

import numpy as np

from fastvq.vq import (
    AdditiveQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    ScalarQuantizer,
    VectorQuantizer,
)

__all__ = ["from_faiss", "to_faiss"]


@functools.singledispatch
def to_faiss(quantizer):
    """A faiss index that holds what a fitted quantizer does.

    Parameters
    ----------
    quantizer : VectorQuantizer, ProductQuantizer, ResidualQuantizer, AdditiveQuantizer or \
            ScalarQuantizer

    Returns
    -------
    index : faiss.Index
        For a VectorQuantizer, a flat index of the codewords: ``index.search(X, 1)[1]`` are the
        codes of rows X. For the others a trained, empty index: ``index.sa_encode(X)`` are the
        packed codes, and ``index.sa_decode(quantizer.pack(codes))`` is what they stand for.

    Raises
    ------
    ImportError
        Where faiss is not installed.
    NotFittedError
        Where the quantizer is not fitted.
    TypeError
        For what has no like in faiss.
    ValueError
        For a quantizer whose settings faiss has no like of: subspaces that differ in features or
        bits, a `feature_weight`; additive codebooks that differ in bits; levels that are not
        evenly spaced, symmetric ones, other widths than 4, 6 and 8 bits.
    """
    raise TypeError(f"there is nothing in faiss like a {type(quantizer).__name__}")


@to_faiss.register
def _(quantizer: VectorQuantizer):
    faiss = _faiss()
    _check_is_fitted(quantizer)
    codebook = np.ascontiguousarray(quantizer.codebook_, np.float32)
    flat = faiss.IndexFlatIP if quantizer._metric() == "cosine" else faiss.IndexFlatL2
    index = flat(codebook.shape[1])
    index.add(codebook)
    return index


@to_faiss.register
def _(quantizer: ProductQuantizer):
    faiss = _faiss()
    _check_is_fitted(quantizer)
    codebooks = quantizer.codebooks_
    if isinstance(codebooks, list):
        raise ValueError("faiss has no subspaces that differ in features or bits")
    if "feature_scale_" in vars(quantizer):
        raise ValueError("faiss cannot decode what a feature_weight was fitted with")
    n_subspaces, n_codewords, size = codebooks.shape
    index = faiss.IndexPQ(n_subspaces * size, n_subspaces, n_codewords.bit_length() - 1)
    faiss.copy_array_to_vector(
        np.ascontiguousarray(codebooks, np.float32).ravel(), index.pq.centroids
    )
    index.is_trained = True
    if "rotation_" not in vars(quantizer):
        return index
    turn = faiss.LinearTransform(index.d, index.d, False)
    matrix = np.ascontiguousarray(quantizer.rotation_.T, np.float32)  # faiss multiplies columns
    faiss.copy_array_to_vector(matrix.ravel(), turn.A)
    turn.is_orthonormal = turn.is_trained = True
    turned = faiss.IndexPreTransform(turn, index)
    turned.is_trained = True
    return turned


@to_faiss.register
def _(quantizer: ResidualQuantizer):
    faiss = _faiss()
    _check_is_fitted(quantizer)
    bits = faiss.UInt64Vector()
    faiss.copy_array_to_vector(np.array(quantizer._code_bits, np.uint64), bits)
    index = faiss.IndexResidualQuantizer(
        quantizer.n_features_in_, bits, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_decompress
    )
    index.rq.max_beam_size = quantizer.beam_width
    return _with_codebooks(faiss, index, index.rq, quantizer)


@to_faiss.register
def _(quantizer: AdditiveQuantizer):
    faiss = _faiss()
    _check_is_fitted(quantizer)
    bits = quantizer._code_bits
    if len(set(bits)) > 1:
        raise ValueError("faiss has no local search among codebooks that differ in bits")
    index = faiss.IndexLocalSearchQuantizer(
        quantizer.n_features_in_, len(bits), bits[0], faiss.METRIC_L2,
        faiss.AdditiveQuantizer.ST_decompress,
    )  # fmt: skip
    index.lsq.encode_ils_iters = quantizer.n_jumps
    index.lsq.nperts = min(quantizer.n_replaced, len(bits))
    return _with_codebooks(faiss, index, index.lsq, quantizer)


def _with_codebooks(faiss, index, inner, quantizer):
    """The index of a faiss.AdditiveQuantizer, with these codebooks."""
    codewords = np.concatenate([*quantizer.codebooks_]).astype(np.float32)
    faiss.copy_array_to_vector(codewords.ravel(), inner.codebooks)
    inner.set_derived_values()
    if isinstance(inner, faiss.ResidualQuantizer):
        inner.compute_codebook_tables()
    inner.is_trained = index.is_trained = True
    return index


# Level q of faiss is low + (q + 1/2) · span / (2^b − 1), and a value's code what its place in the
# span is, times 2^b − 1, rounded down: with low half a step below the first level that is the
# nearest level, as here. A span of 0 gives every value the code 0.


@to_faiss.register
def _(quantizer: ScalarQuantizer):
    faiss = _faiss()
    _check_is_fitted(quantizer)
    if "codebooks_" in vars(quantizer):
        raise ValueError("faiss has evenly spaced levels only, scheme='uniform'")
    n_bits, d = quantizer.n_bits_, quantizer.n_features_in_
    if n_bits not in (4, 6, 8):
        raise ValueError(f"faiss has levels of 4, 6 and 8 bits, not of {n_bits}")
    constant = quantizer.range_[:, 0] == quantizer.range_[:, 1]
    first = -quantizer.scale_ * quantizer.zero_point_
    if not np.allclose(quantizer.range_[:, 0], first, rtol=0, atol=0.1 * quantizer.scale_.min()):
        raise ValueError("faiss uses all codes of the width: symmetric=True does not use code 0")
    low = np.where(constant, first, first - quantizer.scale_ / 2)
    span = np.where(constant, 0, quantizer.scale_ * ((1 << n_bits) - 1))
    uniform = len(low) == 1 and n_bits != 6 and d > 1
    if not uniform:
        group = np.arange(d) // quantizer.group_size_
        low, span = low[group], span[group]
    kind = getattr(faiss.ScalarQuantizer, f"QT_{n_bits}bit{'_uniform' * uniform}")
    index = faiss.IndexScalarQuantizer(d, kind)
    faiss.copy_array_to_vector(np.concatenate([low, span]).astype(np.float32), index.sq.trained)
    index.is_trained = True
    return index


def from_faiss(index):
    """The quantizer that holds what a trained object of faiss does.

    Parameters
    ----------
    index : faiss.IndexFlatL2, IndexFlatIP, Kmeans, IndexPQ, ProductQuantizer, \
            IndexResidualQuantizer, ResidualQuantizer, IndexLocalSearchQuantizer, \
            LocalSearchQuantizer, IndexScalarQuantizer, ScalarQuantizer, or IndexPreTransform
        A transform before an IndexPQ must be a rotation alone (OPQMatrix, RandomRotationMatrix).
        Of scalar quantizers those with evenly spaced levels, of 4, 6 or 8 bits.

    Returns
    -------
    quantizer : VectorQuantizer
        Of the vectors of the index, or the centroids, as codewords. Vectors of an IndexFlatIP (and
        the centroids of a spherical Kmeans) must have length 1; the metric is then "cosine".
    quantizer : ProductQuantizer, ResidualQuantizer, AdditiveQuantizer, ScalarQuantizer
        With the packed codes of faiss; the vectors that an index may hold are not read.

    Raises
    ------
    ImportError
        Where faiss is not installed.
    ValueError
        For one that holds nothing yet, or whose vectors are not of length 1 where they must be; for
        a residual or local search quantizer that stores norms beside its codes.
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
    for kinds, convert in (
        ((faiss.IndexPQ, faiss.ProductQuantizer), _product),
        (faiss.IndexPreTransform, _rotated),
        ((faiss.IndexAdditiveQuantizer, faiss.AdditiveQuantizer), _sums),
        ((faiss.IndexScalarQuantizer, faiss.ScalarQuantizer), _scalar),
    ):
        if isinstance(view, kinds):
            return convert(faiss, view)
    raise TypeError(f"there is nothing in fastvq like a {type(view).__name__} of faiss")


def _product(faiss, index, rotation=None):
    product = index.pq if isinstance(index, faiss.IndexPQ) else index
    centroids = faiss.vector_to_array(product.centroids)
    if not centroids.any():  # room for them is there before they are
        raise ValueError(f"the faiss.{type(index).__name__} is not trained yet")
    codebooks = centroids.reshape(product.M, product.ksub, product.dsub)
    return ProductQuantizer.from_codebooks(codebooks, rotation)


def _rotated(faiss, index):
    inner = faiss.downcast_index(index.index)
    chain = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
    if not isinstance(inner, faiss.IndexPQ) or len(chain) != 1:
        raise TypeError(
            "there is nothing in fastvq like a faiss.IndexPreTransform but one transform before an "
            f"IndexPQ, got {len(chain)} before a {type(inner).__name__}"
        )
    turn = chain[0]
    if not (isinstance(turn, faiss.LinearTransform) and turn.d_in == turn.d_out):
        raise TypeError(f"there is no rotation in fastvq like a {type(turn).__name__} of faiss")
    if not turn.is_trained:
        raise ValueError("the faiss.IndexPreTransform is not trained yet")
    if turn.have_bias and faiss.vector_to_array(turn.b).any():
        raise ValueError("a rotation in fastvq has no bias, but that of faiss does")
    matrix = faiss.vector_to_array(turn.A).reshape(turn.d_out, turn.d_in)
    return _product(faiss, inner, matrix.T)


def _sums(faiss, index):
    inner = index
    if isinstance(index, faiss.IndexAdditiveQuantizer):
        inner = faiss.downcast_AdditiveQuantizer(index.aq)
    name = f"faiss.{type(inner).__name__}"
    if isinstance(inner, faiss.ResidualQuantizer):
        kind, parameters = ResidualQuantizer, {"beam_width": inner.max_beam_size}
    elif isinstance(inner, faiss.LocalSearchQuantizer):
        kind = AdditiveQuantizer
        parameters = {"n_jumps": inner.encode_ils_iters, "n_replaced": inner.nperts}
    else:
        raise TypeError(f"there is nothing in fastvq like a {name}")
    codewords = faiss.vector_to_array(inner.codebooks).reshape(-1, inner.d)
    if not inner.is_trained or not len(codewords):
        raise ValueError(f"the {name} is not trained yet")
    if inner.norm_bits:
        raise ValueError(f"the {name} stores norms beside its codes, which fastvq does not")
    sizes = 2 ** faiss.vector_to_array(inner.nbits).astype(np.intp)
    return kind.from_codebooks(np.split(codewords, np.cumsum(sizes)[:-1]), **parameters)


def _scalar(faiss, index):
    scalar = index.sq if isinstance(index, faiss.IndexScalarQuantizer) else index
    kinds = {
        getattr(faiss.ScalarQuantizer, f"QT_{n_bits}bit{uniform}"): (n_bits, bool(uniform))
        for n_bits, uniform in ((4, ""), (6, ""), (8, ""), (4, "_uniform"), (8, "_uniform"))
    }
    if scalar.qtype not in kinds:
        raise TypeError("there is nothing in fastvq like this type of a faiss.ScalarQuantizer")
    n_bits, uniform = kinds[scalar.qtype]
    trained = faiss.vector_to_array(scalar.trained).astype(np.float64)
    if not len(trained):
        raise ValueError(f"the faiss.{type(index).__name__} is not trained yet")
    low, span = trained.reshape(2, -1)
    scale = np.where(span > 0, span / ((1 << n_bits) - 1), 1)
    first = np.where(span > 0, low + scale / 2, low)
    ends = np.column_stack([first, np.where(span > 0, first + span, first)])
    granularity = "tensor" if uniform else "feature"
    return ScalarQuantizer._of_steps(
        scale, -first / scale, ends.astype(np.float32), scalar.d, n_bits, granularity
    )


def _check_is_fitted(quantizer):
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(quantizer)


def _faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError('this needs faiss: pip install "fastvq[faiss]"') from error
    return faiss
