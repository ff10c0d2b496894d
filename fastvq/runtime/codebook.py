"""Weights as the numbers of codewords: real = codebook[code], times a scale where there are any."""

from __future__ import annotations

import numpy as np

from fastvq.runtime.coded import Coded, packed
from fastvq.runtime.encoding import ENCODINGS

__all__ = ["Codebook"]

_PER = ("tensor", "row", "group")


class Codebook(Coded):
    """Codes of 1 to 16 bits and codebooks of single values.

    Parameters
    ----------
    shape, codes, bits, group, scales, exponent, leading
        As :class:`fastvq.runtime.coded.Coded` takes them; :meth:`of` packs codes.
    codewords : ndarray, shape (n_codebooks, n_codewords)
        float32 or float64, which is then the dtype of the values; or int8, and there are scales.
        Up to 2**bits in each codebook.
    per : {"tensor", "row", "group"}
        What has a codebook of its own: nothing, each row, or each group of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.runtime.codebook import Codebook
    >>> weight = Codebook.of([[0, 1, 1], [2, 0, 1]], np.array([[-1.0, 0.25, 2.0]], np.float32))
    >>> weight.decode()
    array([[-1.  ,  0.25,  0.25],
           [ 2.  , -1.  ,  0.25]], dtype=float32)
    >>> weight.bits, weight.parts()["codes"].nbytes
    (2, 2)
    """

    kind = "codebook"
    _own_attributes = ("per",)
    _part_names = ("codes", "codewords", "scales")

    def __init__(self, shape, codes, codewords, *, bits, per="tensor", **rest):
        self.codewords, self.per = np.ascontiguousarray(codewords), per
        if self.codewords.dtype == np.float64:
            self.dtype = np.dtype(np.float64)
        super().__init__(shape, codes, bits=bits, **rest)
        self._check_codewords()
        self._check_range(self.codewords.shape[1])

    @classmethod
    def of(cls, codes, codewords, *, bits=None, **settings) -> Codebook:
        """The tensor with these codes, an array of whole numbers of its shape.

        `bits` are by default as many as the number of codewords needs.
        """
        codewords = np.asarray(codewords)
        bits = max(1, int(codewords.shape[-1] - 1).bit_length()) if bits is None else bits
        return cls(*packed(codes, bits), codewords, bits=bits, **settings)

    @classmethod
    def of_values(cls, values) -> Codebook:
        """The tensor of these values, each kept as it is: a codebook of all that there are.

        Parameters
        ----------
        values : array of float32 or float64, of up to 65536 distinct values
            Values are told apart by their bits: -0.0, infinity and NaN come back too.
        """
        values = np.asarray(values)
        whole = values.astype(values.dtype, order="C").view(f"u{values.dtype.itemsize}")
        found, codes = np.unique(whole, return_inverse=True)
        return cls.of(codes.reshape(values.shape), found.view(values.dtype)[None])

    @property
    def _form(self):
        per = "" if self.per == "tensor" else f" per {self.per}"
        group = f", groups of {self.group}" if self.group else ""
        return f"codebook {self.bits} bit{per}{group}"

    @property
    def n_codebooks(self) -> int:
        """How many there have to be."""
        return {"tensor": 1, "row": self.n_rows, "group": self.n_groups}[self.per]

    def _levels(self, codes, first):
        books = self.codewords
        if books.dtype == np.int8:
            books = books.astype(np.float32)
        if self.per == "tensor":
            return books[0][codes] if codes.size else np.empty(codes.shape, self.dtype)
        if self.per == "row":
            return np.take_along_axis(books[first : first + len(codes)], codes.astype(np.intp), 1)
        of_column = np.minimum(np.arange(self.width) // (self.group or self.width or 1), len(books))
        return books[of_column, codes]

    def _check_codewords(self):
        if self.per not in _PER:
            raise ValueError(f"per must be one of {', '.join(_PER)}, got {self.per!r:.20}")
        books, most = self.codewords, 1 << self.bits
        if books.dtype not in (np.float32, np.float64, np.int8) or books.ndim != 2:
            raise ValueError(
                "codewords must be float32, float64 or int8 of two dimensions, got "
                f"{books.shape} of {books.dtype}"
            )
        if len(books) != self.n_codebooks or not 1 <= books.shape[1] <= most:
            raise ValueError(
                f"codewords must be {self.n_codebooks} codebooks of up to {most}, got {books.shape}"
            )
        if books.dtype != np.float32 and (books.dtype == np.int8) == (self.scales is None):
            raise ValueError("int8 codewords have scales, and float64 ones have none")


ENCODINGS[Codebook.kind] = Codebook
