"""Weights as the numbers of short vectors: blocks of neighbours in a row, and sums of such.

Product quantization of a layer: Gong et al., "Compressing deep convolutional networks using vector
quantization", 2014; with a codebook that all blocks share and several stages, Egiazarian et al.,
"Extreme compression of large language models via additive quantization", ICML 2024.
"""

from __future__ import annotations

import numpy as np

from fastvq.runtime.bits import pack
from fastvq.runtime.coded import Coded
from fastvq.runtime.encoding import ENCODINGS

__all__ = ["Product"]


class Product(Coded):
    """Rows cut into blocks of d values, each the sum of a codeword of every stage.

    Parameters
    ----------
    shape, codes, bits, group, scales, exponent, leading
        As :class:`fastvq.runtime.coded.Coded` takes them. Codes of rows, of blocks, of stages; a
        row that does not fill its last block is cut off there.
    codewords : ndarray of float16, float32, or, where there are scales, int8
        (n_stages, n_codewords, d); all blocks of all rows share them.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.runtime.product import Product
    >>> codewords = np.array([[[1, 2], [3, 4]]], np.float32)
    >>> Product.of((1, 5), np.array([[[1], [0], [1]]]), codewords).decode()
    array([[3., 4., 1., 2., 3.]], dtype=float32)
    """

    kind = "product"
    _part_names = ("codes", "codewords", "scales")

    def __init__(self, shape, codes, codewords, *, bits, scales=None, **rest):
        self.codewords = np.ascontiguousarray(codewords)
        books = self.codewords
        if books.ndim != 3 or books.dtype not in (np.float16, np.float32, np.int8):
            raise ValueError(
                "codewords must be float16, float32 or int8 of three dimensions, got "
                f"{books.shape} of {books.dtype}"
            )
        if 0 in books.shape:
            raise ValueError(f"there must be stages, codewords and values, got {books.shape}")
        super().__init__(shape, codes, bits=bits, scales=scales, **rest)
        if books.shape[1] > 1 << self.bits or (books.dtype == np.int8 and scales is None):
            raise ValueError(
                f"codewords must be up to {1 << self.bits} of each stage, and where they are int8 "
                f"there are scales; got {books.shape} of {books.dtype}"
            )
        self._check_range(books.shape[1])

    @classmethod
    def of(cls, shape, codes, codewords, *, bits=None, **settings) -> Product:
        """The tensor of this shape with these codes (n_rows, n_blocks, n_stages)."""
        codewords = np.asarray(codewords)
        bits = max(1, int(codewords.shape[1] - 1).bit_length()) if bits is None else bits
        return cls(tuple(shape), pack(codes, bits), codewords, bits=bits, **settings)

    @property
    def _form(self):
        stages, _, d = self.codewords.shape
        return f"product {d} x {self.bits} bit" + (f", {stages} stages" if stages > 1 else "")

    @property
    def codes_per_row(self):
        stages, _, d = self.codewords.shape
        return -(-self.width // d) * stages

    def _levels(self, codes, first):
        stages, _, d = self.codewords.shape
        codes = codes.reshape(len(codes), codes.shape[1] // stages, stages)
        values = self.codewords[0].astype(np.float32)[codes[:, :, 0]]
        for stage in range(1, stages):
            values += self.codewords[stage].astype(np.float32)[codes[:, :, stage]]
        whole = values.reshape(len(codes), codes.shape[1] * d)
        return np.ascontiguousarray(whole[:, : self.width])


ENCODINGS[Product.kind] = Product
