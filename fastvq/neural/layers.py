"""Layers that quantize: vectors by one codebook, by blocks, in stages; numbers by fixed levels.

All take (..., n_features), or (N, n_features, ...) with ``channels="first"``, and return a
`Quantized`. They may project rows into fewer features first and back afterwards (Yu et al.,
"Vector-quantized image modeling with improved VQGAN", ICLR 2022), and leave positions that a mask
excludes as they are.

The gradient passes by one of the estimators in `gradients`; for residual and product layers it is
taken once, for the sum or the whole row: a straight-through of each of N stages would give the
encoder N times the gradient.
"""

import operator
import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from fastvq import kernels
from fastvq._validation import as_codes, as_count, as_nonnegative, as_word
from fastvq.neural.codebook import (
    START_ITERATIONS,
    Codebook,
    NotFiniteError,
    naming_what_is_not_finite,
)
from fastvq.neural.gradients import look_up, on_cpu, rotate, straight_through
from fastvq.vq import ResidualQuantizer

__all__ = [
    "AtPositions",
    "FiniteScalarQuantize",
    "Frozen",
    "NotFiniteError",
    "ProductResidualVectorQuantize",
    "ProductVectorQuantize",
    "Quantized",
    "ResidualVectorQuantize",
    "VectorQuantize",
]

CHANNELS = {"last": (), "first": ()}
ESTIMATORS = {
    "straight-through": ("ste", "straight through"),
    "rotation": ("rotation trick",),
}
_ESTIMATES = {"straight-through": straight_through, "rotation": rotate}


class Quantized(NamedTuple):
    """What a quantizing layer returns."""

    values: torch.Tensor  # of the input's shape; with a gradient
    codes: torch.Tensor  # int64: (...) for one code a position, else (..., n_codes); −1: masked
    loss: torch.Tensor  # a scalar, to be added to the network's
    perplexity: torch.Tensor  # (n_codes,): as how many equally likely codewords this batch uses
    dead_share: float  # of the codewords, by their moving counts; NaN where none are kept


class _Layer(nn.Module):
    """Layout, projection and mask around ``_quantize(rows)``, which a layer defines.

    It returns admitted rows, what they are quantized to, codes (n, n_codes), loss, perplexities and
    the share of dead codewords; ``_decode(codes)`` makes rows of codes; ``_ranges`` are the numbers
    of values that the codes have.
    """

    _code_axis = True

    def __init__(self, n_features, inner, channels, gradient):
        super().__init__()
        self.n_features = as_count(n_features, "n_features")
        self.channels = as_word(channels, "channels", CHANNELS)
        self.gradient = as_word(gradient, "gradient", ESTIMATORS)
        inner = self.n_features if inner is None else as_count(inner, "code_features")
        projects = inner != self.n_features
        self.project_in = nn.Linear(self.n_features, inner) if projects else nn.Identity()
        self.project_out = nn.Linear(inner, self.n_features) if projects else nn.Identity()

    @property
    def bits(self):
        """Bits of the codes of a position: the sum of log2 of their ranges."""
        return float(np.log2(self._ranges).sum())

    def forward(self, x, mask=None):
        """Quantize; in training the codebooks learn from `x` as well.

        Parameters
        ----------
        x : Tensor of shape (..., n_features) or (N, n_features, ...)
            Floating point, by `channels`.
        mask : bool Tensor of the shape of `x` without features, optional
            False: the position comes back as it is, has the codes −1 and teaches nothing.

        Returns
        -------
        Quantized

        Raises
        ------
        ValueError, TypeError
            For another shape or dtype; `NotFiniteError` (a ValueError) for NaN and infinity.
        """
        x = self._features_last(x)
        places = x.shape[:-1]
        all_rows = rows = x.reshape(-1, self.n_features)
        if mask is not None:
            kept = self._mask(mask, places).reshape(-1)
            rows = all_rows[kept]
        rows, chosen, codes, loss, perplexity, dead = self._quantize(self.project_in(rows))
        values = self.project_out(_ESTIMATES[self.gradient](rows, chosen))
        codes = torch.from_numpy(codes.astype(np.int64)).to(x.device)
        if mask is not None:
            values = all_rows.masked_scatter(kept[:, None], values.to(x.dtype))
            codes = codes.new_full((len(kept), codes.shape[1]), -1).index_put((kept,), codes)
        return Quantized(
            self._features_back(values.reshape(x.shape)),
            self._shaped(codes, places),
            loss,
            torch.tensor(perplexity, device=x.device),
            dead,
        )

    @classmethod
    @torch.no_grad()
    def fitted(cls, features, *sizes, **options):
        """A layer whose codebooks start from these rows, all of them: by k-means.

        Parameters
        ----------
        features : Tensor of shape (n, n_features)
        *sizes, **options
            What the class wants besides `n_features`; no `init`, no `start_rows`.

        Returns
        -------
        A layer of this class, which has not learnt anything else yet.
        """
        sizes = features.shape[1], *sizes
        starting = cls(*sizes, **options, start_rows=1)
        starting(features)
        return cls(*sizes, **options, init=starting._codewords())

    @torch.no_grad()
    def encode(self, x):
        """Codes of `x`, as `forward` gives them; nothing is learnt, in training neither."""
        was_training = self.training
        try:
            return self.eval()(x).codes
        finally:
            self.train(was_training)

    def decode(self, codes):
        """What codes stand for, in the layout of the input.

        Parameters
        ----------
        codes : integer Tensor, as `encode` gives them

        Returns
        -------
        Tensor of shape (..., n_features) or (N, n_features, ...)
        """
        places = codes.shape[:-1] if self._code_axis else codes.shape
        codes = codes.reshape(-1, len(self._ranges))
        as_codes(self._checkable(codes.cpu().numpy()), self._ranges, len(self._ranges))
        values = self.project_out(self._decode(codes))
        return self._features_back(values.reshape(*places, self.n_features))

    def _checkable(self, codes):
        return codes

    def _features_last(self, x):
        axis = -1 if self.channels == "last" else 1
        least = 1 if axis == -1 else 2
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        if x.ndim < least or x.shape[axis] != self.n_features:
            wanted = f"(..., {self.n_features})" if axis == -1 else f"(N, {self.n_features}, ...)"
            raise ValueError(f"x must have the shape {wanted}, got {tuple(x.shape)}")
        return x.movedim(axis, -1)

    def _features_back(self, x):
        return x if self.channels == "last" else x.movedim(-1, 1)

    def _mask(self, mask, places):
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be of bool, got {mask.dtype}")
        if mask.shape != places:
            raise ValueError(f"mask must have the shape {tuple(places)}, got {tuple(mask.shape)}")
        return mask

    def _shaped(self, codes, places):
        return codes.reshape(*places, codes.shape[1]) if self._code_axis else codes.reshape(places)


class VectorQuantize(_Layer):
    """Each position by the nearest of a codebook that learns.

    Parameters
    ----------
    n_features, n_codewords : int
    update : {"average", "gradient"}, default="average"
        How codewords learn: moving averages of their members, or the gradient of (sg[x] − c)²,
        which is then part of the loss.
    gradient : {"straight-through", "rotation"}, default="straight-through"
        What the encoder gets.
    code_features : int, optional
        Features of the codewords, where rows are projected in and out by a learnt linear map.
    channels : {"last", "first"}, default="last"
    decay, commitment, metric, init, start_rows, dead_below
        As of `Codebook`.

    Attributes
    ----------
    codebook : Codebook
        ``layer.codebook.codewords`` are the codewords.

    Notes
    -----
    The kernels take n·k·d multiply-adds to find codes, nothing else comes near that. Tensors on
    another device than the CPU are copied there and back.

    References
    ----------
    A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural discrete representation learning",
    NeurIPS 2017.
    C. Fifty et al., "Restructuring vector quantization with the rotation trick", arXiv:2410.06424.

    Examples
    --------
    >>> import torch
    >>> from fastvq.neural import VectorQuantize
    >>> seed = torch.manual_seed(0)
    >>> layer = VectorQuantize(8, 16, channels="first")
    >>> x = torch.randn(10, 8, 5, 5, requires_grad=True)
    >>> out = layer(x)
    >>> out.values.shape, out.codes.shape, layer.bits
    (torch.Size([10, 8, 5, 5]), torch.Size([10, 5, 5]), 4.0)
    >>> (out.values.square().mean() + out.loss).backward()
    >>> x.grad.shape
    torch.Size([10, 8, 5, 5])
    >>> layer = layer.eval()
    >>> bool((layer.decode(layer.encode(x)) == layer(x).values).all())
    True
    """

    _code_axis = False

    def __init__(
        self,
        n_features,
        n_codewords,
        *,
        update="average",
        gradient="straight-through",
        code_features=None,
        channels="last",
        **codebook,
    ):
        super().__init__(n_features, code_features, channels, gradient)
        inner = n_features if code_features is None else code_features
        self.codebook = Codebook(n_codewords, inner, update=update, **codebook)

    def _codewords(self):
        return self.codebook.codewords.clone()

    @property
    def _ranges(self):
        return [self.codebook.n_codewords]

    def _quantize(self, rows):
        rows, chosen, codes, loss = self.codebook(rows)
        perplexity = [self.codebook.perplexity(codes)]
        return rows, chosen, codes[:, None], loss, perplexity, self.codebook.dead_share

    def _decode(self, codes):
        return self.codebook.codewords[codes[:, 0]]


class ProductVectorQuantize(_Layer):
    """Each block of features by a codebook of its own.

    Parameters
    ----------
    n_features : int
    n_subspaces : int
        Blocks; must divide `n_features` (or `code_features`).
    n_codewords : int
        Of each codebook.
    update, gradient, code_features, channels
        As of `VectorQuantize`.
    decay, commitment, metric, init, start_rows, dead_below
        As of `Codebook`; an `init` tensor has the shape (n_subspaces, n_codewords, n_features /
        n_subspaces).

    Attributes
    ----------
    codebooks : ModuleList of Codebook

    References
    ----------
    H. Jégou, M. Douze, C. Schmid, "Product quantization for nearest neighbor search", TPAMI 33
    (2011).

    Examples
    --------
    >>> import torch
    >>> layer = ProductVectorQuantize(8, n_subspaces=4, n_codewords=16)
    >>> out = layer(torch.randn(100, 8))
    >>> out.codes.shape, out.perplexity.shape, layer.bits
    (torch.Size([100, 4]), torch.Size([4]), 16.0)
    """

    def __init__(
        self,
        n_features,
        n_subspaces,
        n_codewords,
        *,
        update="average",
        gradient="straight-through",
        code_features=None,
        channels="last",
        init="k-means",
        **codebook,
    ):
        super().__init__(n_features, code_features, channels, gradient)
        inner = n_features if code_features is None else code_features
        if inner % as_count(n_subspaces, "n_subspaces"):
            raise ValueError(f"n_subspaces must divide {inner} features, got {n_subspaces}")
        self.codebooks = nn.ModuleList(
            Codebook(n_codewords, inner // n_subspaces, update=update, init=one, **codebook)
            for one in _each(init, n_subspaces, "n_subspaces")
        )

    def _codewords(self):
        return torch.stack([book.codewords for book in self.codebooks])

    @property
    def _ranges(self):
        return [codebook.n_codewords for codebook in self.codebooks]

    def _quantize(self, rows):
        rows, chosen, codes, loss = _side_by_side(self.codebooks, rows)
        perplexity = [book.perplexity(c) for book, c in zip(self.codebooks, codes.T, strict=True)]
        return rows, chosen, codes, loss, perplexity, _mean_dead(self.codebooks)

    def _decode(self, codes):
        parts = [book.codewords[codes[:, m]] for m, book in enumerate(self.codebooks)]
        return torch.cat(parts, dim=1)


class ResidualVectorQuantize(_Layer):
    """A sum of codewords, each chosen for what the ones before it left over.

    Parameters
    ----------
    n_features, n_stages, n_codewords : int
    beam_width : int, default=1
        Choices that are kept from stage to stage. 1: the nearest codeword of each stage, for what
        those before it leave over. More of them find better sums, and a codeword then learns from
        what the others of its sum leave over.
    quantizer_dropout : float, default=0
        Probability that a batch in training uses only the first s stages, s drawn from 1 to
        `n_stages`: prefixes of the codes are then good codes (the others are −1, and decode to
        nothing).
    update, gradient, code_features, channels
        As of `VectorQuantize`.
    decay, commitment, init, start_rows, dead_below
        As of `Codebook`, but for `init`, which is "principal"; a tensor has the shape (n_stages,
        n_codewords, n_features).

    Attributes
    ----------
    codebooks : ModuleList of Codebook

    References
    ----------
    N. Zeghidour et al., "SoundStream: an end-to-end neural audio codec", arXiv:2107.03312.

    Examples
    --------
    >>> import torch
    >>> seed = torch.manual_seed(0)
    >>> layer = ResidualVectorQuantize(8, n_stages=3, n_codewords=16)
    >>> x = torch.randn(500, 8)
    >>> codes = layer(x).codes
    >>> layer = layer.eval()
    >>> first = codes.clone()
    >>> first[:, 1:] = -1  # the first stage alone
    >>> bool((layer.decode(first) - x).norm() > (layer.decode(codes) - x).norm())
    True
    """

    def __init__(
        self,
        n_features,
        n_stages,
        n_codewords,
        *,
        beam_width=1,
        quantizer_dropout=0.0,
        update="average",
        gradient="straight-through",
        code_features=None,
        channels="last",
        init="principal",
        **codebook,
    ):
        super().__init__(n_features, code_features, channels, gradient)
        if "metric" in codebook:
            raise TypeError("ResidualVectorQuantize has no metric: what is left over has a length")
        inner = n_features if code_features is None else code_features
        self.beam_width = as_count(beam_width, "beam_width")
        self._stages = None
        self.quantizer_dropout = as_nonnegative(quantizer_dropout, "quantizer_dropout")
        if self.quantizer_dropout > 1:
            raise ValueError(f"quantizer_dropout must be at most 1, got {quantizer_dropout}")
        self.codebooks = nn.ModuleList(
            Codebook(n_codewords, inner, update=update, init=one, **codebook)
            for one in _each(init, as_count(n_stages, "n_stages"), "n_stages")
        )

    @classmethod
    @torch.no_grad()
    def fitted(cls, features, n_stages, n_codewords, *, beam_width=1, **options):
        """A layer whose codebooks start from these rows, as those of a `ResidualQuantizer`.

        Parameters
        ----------
        features : Tensor of shape (n, n_features)
        n_stages, n_codewords, beam_width : int
            Where `n_codewords` is no power of 2, stages start by k-means, one after the other.
        **options
            As of the class.

        Returns
        -------
        ResidualVectorQuantize
        """
        sizes, options = (n_stages, n_codewords), {"beam_width": beam_width, **options}
        n_bits = n_codewords.bit_length() - 1
        if n_codewords != 2**n_bits or n_bits < 1:
            return super().fitted(features, *sizes, **options)
        quantizer = ResidualQuantizer(
            n_stages,
            n_bits,
            beam_width=beam_width,
            max_iter=START_ITERATIONS,
            random_state=int(torch.randint(2**31, ())),
            n_threads=torch.get_num_threads(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # too few rows: codewords repeat
            books = quantizer.fit(on_cpu(features)).codebooks_
        return cls(features.shape[1], *sizes, **options, init=torch.tensor(books))

    def _codewords(self):
        return torch.stack([book.codewords for book in self.codebooks])

    @property
    def _ranges(self):
        return [codebook.n_codewords for codebook in self.codebooks]

    def _n_used(self):
        n = len(self.codebooks)
        if self.training and self.quantizer_dropout and torch.rand(()) < self.quantizer_dropout:
            return int(torch.randint(1, n + 1, ()))
        return n

    def _quantize(self, rows):
        books = self.codebooks[: self._n_used()]
        starting = self.training and any(book.starting for book in books)
        pass_through = self._greedily if self.beam_width == 1 or starting else self._searching
        total, found, losses = pass_through(rows, books)
        n_left = len(self.codebooks) - len(books)
        perplexity = [book.perplexity(codes) for book, codes in zip(books, found, strict=True)]
        codes = np.full((len(rows), len(self.codebooks)), -1, np.int32)
        codes[:, : len(books)] = np.stack(found, axis=1)
        loss = sum(losses) / len(books)
        return rows, total, codes, loss, perplexity + [1.0] * n_left, _mean_dead(self.codebooks)

    def _greedily(self, rows, books):
        """Stage by stage the nearest codeword: their sum, codes and losses."""
        total, found, losses = torch.zeros_like(rows).detach(), [], []
        for book in books:
            _, chosen, codes, loss = book(rows - total)
            total = total + chosen
            found.append(codes), losses.append(loss)
        return total, found, losses

    def _searching(self, rows, books):
        """The same by beam search; a codebook sees what all others leave over."""
        found = self._search(rows, books)
        chosen = [look_up(b.codewords, c).detach() for b, c in zip(books, found, strict=True)]
        total = sum(chosen).to(rows.dtype)
        parts = zip(books, chosen, found, strict=True)
        losses = [book(rows - (total - own), codes)[3] for book, own, codes in parts]
        return total, found, losses

    def _search(self, rows, books):
        """Codes of each stage, by a search prepared for the codebooks as they are now."""
        prepared = [book.prepared() for book in books]
        if self._stages is None or not _same(prepared, self._stages[0]):
            stages = kernels.Stages([on_cpu(book.codewords) for book in books])
            self._stages = prepared, stages
        with naming_what_is_not_finite(rows):
            codes = kernels.beam_search(
                on_cpu(rows), self._stages[1], beam_width=self.beam_width,
                n_threads=torch.get_num_threads(),
            )  # fmt: skip
        return list(np.ascontiguousarray(codes[:, 0].T))

    def __getstate__(self):
        return {**self.__dict__, "_stages": None}  # made for this CPU

    def _checkable(self, codes):
        return np.maximum(codes, 0)  # −1: a stage that is left out

    def _decode(self, codes):
        total = 0.0
        for stage, codebook in enumerate(self.codebooks):
            code = codes[:, stage]
            part = codebook.codewords[code.clamp_min(0)]
            total = total + part * (code >= 0)[:, None]
        return total


class ProductResidualVectorQuantize(_Layer):
    """Each block of features by a sum of codewords of its own.

    Between a product, whose blocks know nothing of each other, and one long sum, each of whose
    many stages is searched in all features.

    Parameters
    ----------
    n_features : int
    n_subspaces : int
        Blocks; must divide `n_features` (or `code_features`).
    n_stages, n_codewords : int
        Of each block.
    beam_width, quantizer_dropout
        As of `ResidualVectorQuantize`, for each block by itself.
    update, gradient, code_features, channels
        As of `VectorQuantize`.
    decay, commitment, init, start_rows, dead_below
        As of `ResidualVectorQuantize`; an `init` tensor has the shape (n_subspaces, n_stages,
        n_codewords, n_features / n_subspaces).

    Attributes
    ----------
    blocks : ModuleList of ResidualVectorQuantize

    References
    ----------
    M. Douze et al., "The Faiss library", arXiv:2401.08281: product residual quantizers.

    Examples
    --------
    >>> import torch
    >>> layer = ProductResidualVectorQuantize(8, n_subspaces=2, n_stages=3, n_codewords=16)
    >>> out = layer(torch.randn(500, 8))
    >>> out.codes.shape, layer.bits
    (torch.Size([500, 6]), 24.0)
    """

    def __init__(
        self,
        n_features,
        n_subspaces,
        n_stages,
        n_codewords,
        *,
        gradient="straight-through",
        code_features=None,
        channels="last",
        init="principal",
        **options,
    ):
        super().__init__(n_features, code_features, channels, gradient)
        inner = n_features if code_features is None else code_features
        if inner % as_count(n_subspaces, "n_subspaces"):
            raise ValueError(f"n_subspaces must divide {inner} features, got {n_subspaces}")
        self.blocks = nn.ModuleList(
            ResidualVectorQuantize(inner // n_subspaces, n_stages, n_codewords, init=one, **options)
            for one in _each(init, n_subspaces, "n_subspaces")
        )

    @classmethod
    @torch.no_grad()
    def fitted(cls, features, n_subspaces, *sizes, **options):
        """A layer whose blocks start as `ResidualVectorQuantize.fitted` makes them of theirs."""
        parts = features.tensor_split(n_subspaces, dim=1)
        blocks = [ResidualVectorQuantize.fitted(part, *sizes, **options) for part in parts]
        books = torch.stack([block._codewords() for block in blocks])
        return cls(features.shape[1], n_subspaces, *sizes, **options, init=books)

    @property
    def _ranges(self):
        return [size for block in self.blocks for size in block._ranges]

    def _quantize(self, rows):
        passes = [block._quantize for block in self.blocks]
        rows, chosen, codes, loss, perplexities, dead = _side_by_side(passes, rows)
        perplexity = [one for block in perplexities for one in block]
        return rows, chosen, codes, loss, perplexity, float(np.mean(dead))

    def _checkable(self, codes):
        return self.blocks[0]._checkable(codes)

    def _decode(self, codes):
        parts = codes.tensor_split(len(self.blocks), dim=1)
        decoded = [block._decode(part) for block, part in zip(self.blocks, parts, strict=True)]
        return torch.cat(decoded, dim=1)


class FiniteScalarQuantize(_Layer):
    """Each feature rounded to a few levels: a codebook that is a grid, and never learns.

    A feature is bounded by tanh so that rounding it gives one of L whole numbers, centred on zero
    and divided by ⌊L/2⌋; for an even L the grid is shifted by a half. All features together are one
    code, with the first feature counting fastest. There is no loss, and no codeword can die.

    Parameters
    ----------
    n_features : int
    levels : sequence of int of at least 2
        Levels of each feature; where there are fewer or more of them than `n_features`, rows are
        projected. The paper suggests (8, 6, 5) for 8 bits, (8, 5, 5, 5) for 10, (7, 5, 5, 5, 5)
        for 12.
    channels : {"last", "first"}, default="last"

    References
    ----------
    F. Mentzer et al., "Finite scalar quantization: VQ-VAE made simple", ICLR 2024.

    Examples
    --------
    >>> import torch
    >>> layer = FiniteScalarQuantize(3, (8, 6, 5))
    >>> out = layer(torch.tensor([[0.0, 9.0, -9.0]]))
    >>> out.values, out.codes
    (tensor([[ 0.0000,  0.6667, -1.0000]]), tensor([44]))
    >>> layer.decode(out.codes)
    tensor([[ 0.0000,  0.6667, -1.0000]])
    """

    _code_axis = False

    def __init__(self, n_features, levels, *, channels="last"):
        levels = [as_count(level, "levels", minimum=2) for level in levels]
        if not levels or np.prod(levels, dtype=float) >= 2**31:
            raise ValueError(f"levels must have from 1 to 2^31 combinations, got {levels}")
        super().__init__(n_features, len(levels), channels, "straight-through")
        self.levels = tuple(levels)
        counts = torch.tensor(levels)
        self.register_buffer("_levels", counts, persistent=False)
        steps = torch.cat([counts.new_ones(1), counts.cumprod(0)[:-1]])
        self.register_buffer("_steps", steps, persistent=False)

    @property
    def _ranges(self):
        return [int(np.prod(self.levels))]

    def _bound(self, rows):
        """Rows between the halves beyond the outermost levels, exclusively."""
        half = (self._levels - 1) * (1 + 1e-3) / 2
        offset = (self._levels % 2 == 0) * 0.5
        return torch.tanh(rows + torch.atanh(offset / half)) * half - offset

    def _quantize(self, rows):
        if not torch.isfinite(rows).all():
            raise NotFiniteError("x contains NaN or infinity")
        middle = self._levels // 2
        bounded = self._bound(rows)
        whole = bounded.detach().round()
        codes = ((whole + middle).long() * self._steps).sum(1, keepdim=True).cpu().numpy()
        counts = np.unique(codes, return_counts=True)[1] / max(1, len(codes))
        perplexity = [float(np.exp(-counts @ np.log(counts)))]
        return bounded / middle, whole / middle, codes, rows.new_zeros(()), perplexity, float("nan")

    def _decode(self, codes):
        middle = self._levels // 2
        return (codes // self._steps % self._levels - middle) / middle


class AtPositions(nn.Module):
    """One quantizing layer for all positions of a row, which lie side by side.

    Parameters
    ----------
    quantizer : Module
        One of the layers above, with the features last.
    n_positions : int

    Examples
    --------
    >>> import torch
    >>> layer = AtPositions(ResidualVectorQuantize(8, n_stages=2, n_codewords=16), n_positions=3)
    >>> layer(torch.randn(100, 24)).codes.shape
    torch.Size([100, 6])
    """

    def __init__(self, quantizer, n_positions):
        super().__init__()
        self.quantizer, self.n_positions = quantizer, as_count(n_positions, "n_positions")

    def forward(self, x, mask=None):
        """As of the layer; a mask is of the shape (n, n_positions)."""
        found = self.quantizer(x.unflatten(1, (self.n_positions, -1)), mask)
        return found._replace(values=found.values.flatten(1), codes=found.codes.flatten(1))

    def encode(self, x):
        """Codes (n, n_codes): those of the first position, of the second, ..."""
        return self.quantizer.encode(x.unflatten(1, (self.n_positions, -1))).flatten(1)

    def decode(self, codes):
        """Rows of codes."""
        n_each = codes.shape[1] // self.n_positions
        if self.quantizer._code_axis:
            codes = codes.unflatten(1, (self.n_positions, n_each))
        return self.quantizer.decode(codes).flatten(1)


class Frozen(nn.Module):
    """A quantizing layer that stays as it is, in training too: its codebooks do not move.

    Parameters
    ----------
    quantizer : Module
        One of the layers above.
    """

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer.eval().requires_grad_(False)

    def train(self, mode=True):
        self.training = mode
        return self

    def forward(self, x, mask=None):
        return self.quantizer(x, mask)

    def encode(self, x):
        return self.quantizer.encode(x)

    def decode(self, codes):
        return self.quantizer.decode(codes)


def _each(init, n, name):
    """The `init` of each of n codebooks: a word for all, or a tensor's parts."""
    if isinstance(init, str):
        return [init] * n
    if len(init) != n:
        raise ValueError(f"init must have a codebook for each of {name} = {n}, got {len(init)}")
    return list(init)


def _side_by_side(passes, rows):
    """What each of several makes of its block of the features, put together.

    Parameters
    ----------
    passes : sequence of callable
        Of a block: rows, what they are quantized to, codes, loss, and more.
    rows : Tensor of shape (n, n_features)

    Returns
    -------
    rows, chosen, codes, loss
        Of all blocks; then one tuple for each of the rest.
    """
    blocks = rows.tensor_split(len(passes), dim=1)
    found = [quantize(block) for quantize, block in zip(passes, blocks, strict=True)]
    rows, chosen, codes, losses, *more = zip(*found, strict=True)
    loss = sum(losses) / len(losses)  # each is a mean over a share of the features
    return torch.cat(rows, dim=1), torch.cat(chosen, dim=1), np.column_stack(codes), loss, *more


def _same(some, others):
    """Whether two lists are of the same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _mean_dead(codebooks):
    return float(np.mean([codebook.dead_share for codebook in codebooks]))
