"""Weights of few bits in which some values, far from the others, are kept as they are.

A few large values cost the others their precision where all share a scale; written down beside the
codes, they take 32 bits each and the scale is that of the rest (Dettmers et al., "SpQR: A
sparse-quantized representation for near-lossless LLM weight compression", ICLR 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fastvq.runtime.encoding import ENCODINGS, EncodedTensor

__all__ = ["Patched"]


class Patched(EncodedTensor):
    """Another encoding, with some of its values replaced.

    Parameters
    ----------
    base : EncodedTensor
        Of float32, and not of this kind.
    gaps : ndarray of uint16 or uint32, shape (n,)
        Where values are, in C order: from the beginning, and then each from the last.
    patches : ndarray of float16 or float32, shape (n,)

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.runtime.grouped import Grouped
    >>> from fastvq.runtime.patched import Patched
    >>> base = Grouped.of(np.array([[8, 9, 7, 8]]), np.ones((1, 1), np.float16), bits=4)
    >>> Patched.of(base, [0, 3], np.float16([40, -50])).decode()
    array([[ 40.,   1.,  -1., -50.]], dtype=float32)
    """

    kind = "patched"
    dtype = np.dtype(np.float32)

    def __init__(self, base, gaps, patches):
        self.base, self.gaps, self.patches = base, gaps, patches
        self.shape = base.shape
        self._check()

    @classmethod
    def of(cls, base, places, patches) -> Patched:
        """The tensor with these values at these places (n,), which rise."""
        gaps = np.diff(np.asarray(places, np.int64), prepend=0)
        small = gaps.max(initial=0) <= np.iinfo(np.uint16).max
        return cls(base, gaps.astype(np.uint16 if small else np.uint32), np.asarray(patches))

    @property
    def scheme(self):
        share = len(self.gaps) / max(math.prod(self.shape), 1)
        return f"{self.base.scheme}, {share:.2%} kept"

    @property
    def coder(self):
        return self.base.coder

    def with_coder(self, coder):
        return Patched(self.base.with_coder(coder), self.gaps, self.patches)

    @property
    def places(self) -> np.ndarray:
        """Where the patches are, (n,) of int64."""
        return np.cumsum(self.gaps, dtype=np.int64)

    def parts(self):
        return {**self.base.parts(), "gaps": self.gaps, "patches": self.patches}

    def attributes(self):
        return {"encoding": self.base.kind, "of": self.base.attributes()}

    @classmethod
    def from_parts(cls, parts, attributes):
        if not isinstance(attributes, Mapping) or set(attributes) != {"encoding", "of"}:
            raise ValueError("patched values have the attributes encoding, of")
        kind = attributes["encoding"]
        if not isinstance(kind, str) or kind not in ENCODINGS or kind == cls.kind:
            raise ValueError(f"patched values cannot be in the encoding {kind!r:.80}")
        if not {"gaps", "patches"} <= set(parts):
            raise ValueError(f"patched values have other parts than {sorted(parts)}")
        own = {name: part for name, part in parts.items() if name not in ("gaps", "patches")}
        base = ENCODINGS[kind].from_parts(own, attributes["of"])
        return cls(base, parts["gaps"], parts["patches"])

    def decode(self):
        values = np.array(self.base.decode())
        values.reshape(-1)[self.places] = self.patches
        values.flags.writeable = False
        return values

    def rows(self, first, stop):
        values = self.base.rows(first, stop)
        if values is None:
            return None
        first, stop, _ = slice(first, stop).indices(self.shape[0])
        width, places = math.prod(self.shape[1:]), self.places
        here = slice(*np.searchsorted(places, (first * width, stop * width)))
        values.reshape(-1)[places[here] - first * width] = self.patches[here]
        return values

    def release(self):
        self.base.release()

    def _check(self):
        gaps, patches = self.gaps, self.patches
        if self.base.dtype != np.float32 or not self.shape:
            raise ValueError(f"there have to be rows of float32, got {self.base.dtype}")
        if gaps.dtype not in (np.uint16, np.uint32) or gaps.ndim != 1:
            raise ValueError(f"gaps must be uint16 or uint32 (n,), got {gaps.shape} {gaps.dtype}")
        if patches.dtype not in (np.float16, np.float32) or patches.shape != gaps.shape:
            raise ValueError(
                f"patches must be float16 or float32 {gaps.shape}, got {patches.shape} of "
                f"{patches.dtype}"
            )
        if len(gaps) and not gaps[1:].all():
            raise ValueError("two patches are at one place")
        if len(gaps) and self.places[-1] >= math.prod(self.shape):
            raise ValueError(f"a patch is at {self.places[-1]}, beyond the values")


ENCODINGS[Patched.kind] = Patched
