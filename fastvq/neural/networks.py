"""Encoders and decoders for rows that are vectors or images, and the autoencoders made of them.

Rows are flat, (n, n_features), on both sides of every network; what is an image is given its shape
inside. Decoders enlarge by repeating pixels and convolve afterwards, which leaves no chequered
pattern (Odena et al., "Deconvolution and checkerboard artifacts", Distill 2016).
"""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastvq.vq._opq import balanced

__all__ = [
    "AutoencoderNetwork",
    "CodePrior",
    "VQNetwork",
    "VariationalNetwork",
    "convolutional",
    "dense",
]

_LOG_2PI = math.log(2 * math.pi)
_KNOWN = 0.3  # deviation of a prior's vectors at first, of which up to all positions are summed


def dense(n_features, hidden, n_latents, n_out=None):
    """A perceptron down to `n_out` numbers (by default `n_latents`), and one back from `n_latents`.

    Parameters
    ----------
    n_features : int
    hidden : sequence of int
        Widths of the layers between, as the encoder has them.
    n_latents, n_out : int

    Returns
    -------
    encoder, decoder : Sequential
    """
    down = [n_features, *hidden, n_latents if n_out is None else n_out]
    up = [n_latents, *reversed(hidden), n_features]
    return _perceptron(down), _perceptron(up)


def convolutional(image_shape, channels, n_latents, n_out=None):
    """Convolutions of stride 2 down to a small image and a linear layer; and back.

    Parameters
    ----------
    image_shape : (channels, height, width)
    channels : sequence of int
        Of each convolution; each halves height and width.
    n_latents, n_out : int
        As for `dense`.

    Returns
    -------
    encoder, decoder : Sequential
    """
    down, up, grid = _convolutions(image_shape, channels)
    encoder = [nn.Unflatten(1, tuple(image_shape)), *down, nn.Flatten()]
    encoder.append(nn.Linear(math.prod(grid), n_latents if n_out is None else n_out))
    decoder = [nn.Linear(n_latents, math.prod(grid)), nn.Unflatten(1, grid), nn.ReLU()]
    return nn.Sequential(*encoder), nn.Sequential(*decoder, *up, nn.Flatten())


def convolutional_codes(image_shape, channels, code_features):
    """As `dense_codes` for pictures: squares as cosines, corrected by what lies around them.

    All convolutions look at the small image whose pixels are the squares.

    Parameters
    ----------
    image_shape : (channels, height, width)
    channels : sequence of int
        Of the convolutions of a correction; a square has the side 2^len(channels).
    code_features : int

    Returns
    -------
    encoder, decoder : Sequential
        From (n, n_features) to (n, n_positions · code_features), and back.
    n_positions : int
    """
    patches = _Patches(image_shape, 2 ** len(channels), code_features)
    grid = tuple(-(-size // patches.side) for size in image_shape[1:])
    n_positions = math.prod(grid)
    encoder = nn.Sequential(
        nn.Unflatten(1, tuple(image_shape)), patches, _corrected(code_features, channels),
        nn.Flatten(2), _Swapped(), nn.Flatten(),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Unflatten(1, (n_positions, code_features)), _Swapped(), nn.Unflatten(2, grid),
        _corrected(code_features, tuple(reversed(channels))), patches.back(), nn.Flatten(),
    )  # fmt: skip
    return encoder, decoder, n_positions


def _corrected(n_features, channels):
    """An image and what convolutions add to it: at first nothing."""
    layers = []
    for n_in, n_out in pairwise([n_features, *channels]):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()]
    layers.append(_nothing_yet(nn.Conv2d(channels[-1], n_features, 1)))
    return _Sum(nn.Identity(), nn.Sequential(*layers))


def dense_codes(start, hidden):
    """Encoder and decoder between rows and the vectors of all positions, side by side.

    The encoder corrects a row and maps it linearly; the decoder maps back and corrects. The maps
    are orthonormal and stay as they are, and the corrections are nothing at first: training starts
    where a product quantizer is, and has only to gain from there.

    Parameters
    ----------
    start : (matrix of shape (n_out, n_features), mean of shape (n_features,))
        As of `principal_directions` or `rectangles`.
    hidden : sequence of int
        Widths of the layers of a correction; the decoder has them in reverse.

    Returns
    -------
    encoder, decoder : Sequential
        From (n, n_features) to (n, n_out), and back.
    """
    matrix, mean = start
    n_out, n_features = matrix.shape
    into, back = nn.Linear(n_features, n_out), nn.Linear(n_out, n_features)
    with torch.no_grad():
        into.weight.copy_(matrix), into.bias.copy_(-matrix @ mean)
        back.weight.copy_(matrix.T), back.bias.copy_(mean)
    for layer in (into, back):  # steps that suit the corrections would soon turn them about
        layer.requires_grad_(False)

    def corrected(widths):
        layers = _perceptron([n_features, *widths, n_features])
        _nothing_yet(layers[-1])
        return _Sum(nn.Identity(), layers)

    encoder = nn.Sequential(corrected(hidden), into)
    return encoder, nn.Sequential(back, corrected(tuple(reversed(hidden))))


def principal_directions(rows, n_positions, code_features):
    """The principal directions of rows, dealt to the positions so that all have as much to say.

    Ge et al., "Optimized product quantization", TPAMI 2014: the parametric solution.

    Parameters
    ----------
    rows : Tensor of shape (n, n_features)
    n_positions, code_features : int

    Returns
    -------
    matrix : Tensor of shape (n_positions · code_features, n_features)
        Orthonormal rows; zeros where there are more than there are features.
    mean : Tensor of shape (n_features,)
    """
    rows = rows.double().numpy()
    mean = rows.mean(axis=0)
    variances, directions = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    n = min(len(variances), n_positions * code_features)
    sizes = [n // n_positions + (i < n % n_positions) for i in range(n_positions)]
    dealt = balanced(variances[-n:], sizes)
    matrix = np.zeros((n_positions, code_features, len(variances)))
    ends = np.cumsum([0, *sizes])
    for own, first, size in zip(matrix, ends, sizes, strict=False):
        own[:size] = directions[:, -n:].T[dealt[first : first + size]]
    matrix = torch.from_numpy(matrix.reshape(-1, len(variances))).float()
    return matrix, torch.from_numpy(mean).float()


def rectangles(image_shape, n_positions, code_features, mean):
    """Equal parts of a picture, each as its slowest cosines; as `principal_directions`.

    Of the ways to cut it so, that whose parts are nearest to squares; of two, that with wide ones.

    Of the mean there is only what the cosines do not keep. The rest stays with the rows: parts that
    share codebooks would have less in common without it, as empty ones have that are all alike (a
    sum of seven codewords for each strip of a garment: error 3.65 with it, 3.86 without).
    """
    planes, height, width = image_shape
    ways = [
        (height // down, width * down // n_positions)
        for down in range(1, n_positions + 1)
        if n_positions % down == height % down == width % (n_positions // down) == 0
    ]
    if not ways:
        raise ValueError(
            f"n_positions must cut {height} × {width} pixels into equal parts, got {n_positions}"
        )
    size = min(ways, key=lambda way: (max(way) / min(way), way[0]))
    pixels = torch.arange(planes * height * width).reshape(image_shape)
    places = F.unfold(pixels.float()[None], size, stride=size)[0].T.long()
    matrix = torch.zeros(n_positions, code_features, pixels.numel())
    waves = _waves(planes, *size, code_features).flatten(1)
    matrix.scatter_(
        2, places[:, None].expand(-1, code_features, -1), waves.expand(n_positions, -1, -1)
    )
    matrix = matrix.flatten(0, 1)
    return matrix, mean - matrix.T @ (matrix @ mean)


def _perceptron(widths):
    layers = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _convolutions(image_shape, channels):
    """Layers down and up between an image and a small one, and the shape of that."""
    planes, *size = image_shape
    down, up = [], []
    for wide in channels:
        down += [nn.Conv2d(planes, wide, 3, stride=2, padding=1), nn.ReLU()]
        up = [nn.Upsample(tuple(size)), nn.Conv2d(wide, planes, 3, padding=1), nn.ReLU(), *up]
        planes, size = wide, [-(-side // 2) for side in size]
    return down, up[:-1], (planes, *size)


def _nothing_yet(layer):
    """The layer, giving zeros until it has learnt."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def cosines(height, width, n):
    """The n slowest of the orthonormal cosines on a rectangle, (n, height, width)."""
    down, across = (
        np.cos(np.pi * np.arange(side)[:, None] * (np.arange(side) + 0.5) / side)
        * np.sqrt(np.where(np.arange(side)[:, None] == 0, 1, 2) / side)
        for side in (height, width)
    )
    rates = np.add.outer(np.arange(height) * width, np.arange(width) * height).ravel()
    i, j = np.divmod(np.argsort(rates, kind="stable")[:n], width)
    return torch.from_numpy(down[i][:, :, None] * across[j][:, None, :]).float()


def _waves(planes, height, width, n):
    """n patterns on a rectangle of several planes, the slowest of each plane first; then zeros."""
    patterns = torch.zeros(n, planes, height, width)
    waves = cosines(height, width, -(-n // planes))
    for i in range(min(n, planes * len(waves))):
        patterns[i, i % planes] = waves[i // planes]
    return patterns


class _Patches(nn.Module):
    """Each square of an image as a few numbers, linearly; `back` makes squares of them.

    Sides that the squares do not fill are filled up, and cut off again on the way back.
    """

    def __init__(self, image_shape, side, n_features):
        super().__init__()
        planes, *self.size = image_shape
        self.side, self.n_features = side, n_features
        self.map = nn.Conv2d(planes, n_features, side, side, bias=False)
        self.missing = [-size % side for size in self.size]
        with torch.no_grad():
            self.map.weight.copy_(_waves(planes, side, side, n_features))
        self.map.requires_grad_(False)

    def forward(self, x):
        down, right = self.missing
        return self.map(F.pad(x, (0, right, 0, down)) if down or right else x)

    def back(self):
        layer = nn.ConvTranspose2d(
            self.n_features, self.map.in_channels, self.side, self.side, bias=False
        )
        with torch.no_grad():
            layer.weight.copy_(self.map.weight)
        return nn.Sequential(layer.requires_grad_(False), _Cut(self.size))


class _Cut(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.height, self.width = size

    def forward(self, x):
        return x[:, :, : self.height, : self.width]


class _Sum(nn.Module):
    """The sum of what two modules make of one thing."""

    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x):
        return self.one(x) + self.other(x)


class _Swapped(nn.Module):
    """(n, a, b) to (n, b, a)."""

    def forward(self, x):
        return x.transpose(1, 2)


class Scaling(nn.Module):
    """(x − offset) / scale, by numbers that are kept with the network; `back` undoes it."""

    def __init__(self, offset=0.0, scale=1.0):
        super().__init__()
        self.register_buffer("offset", torch.tensor(float(offset)))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, x):
        return (x.float() - self.offset) / self.scale

    def back(self):
        """The inverse, as a module."""
        return Scaling(-self.offset / self.scale, 1 / self.scale)


class AutoencoderNetwork(nn.Module):
    """An encoder and a decoder, trained for the squared error.

    Parameters
    ----------
    encoder, decoder : Module
        Between rows that are scaled and latents.
    scaling : Scaling
        Of rows as they are given.
    """

    def __init__(self, encoder, decoder, scaling):
        super().__init__()
        self.encoder, self.decoder, self.scaling = encoder, decoder, scaling

    def encode(self, x):
        """Latents (n, n_latents) of rows (n, n_features)."""
        return self.encoder(self.scaling(x))

    def decode(self, z):
        """Rows (n, n_features), in their own units, of latents."""
        return self.decoder(z) * self.scaling.scale + self.scaling.offset

    def loss(self, x):
        """Mean squared error over all numbers, in units of the scale."""
        x = self.scaling(x)
        return F.mse_loss(self.decoder(self.encoder(x)), x)


class VariationalNetwork(nn.Module):
    """A variational autoencoder: q(z|x) = N(μ(x), diag σ²(x)), p(z) = N(0, I).

    The bound E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)) on log p(x) is estimated with z = μ + σ·ε and
    ε ~ N(0, I), which has a gradient in μ and σ; the divergence is known in closed form,
    ½ Σ (μ² + σ² − 1 − log σ²) (Kingma & Welling, "Auto-encoding variational Bayes", ICLR 2014).

    Parameters
    ----------
    encoder : Module
        (n, n_features) to (n, 2 n_latents): μ, then log σ².
    decoder : Module
        (n, n_latents) to (n, n_features): logits, or means.
    scaling : Scaling
    likelihood : {"bernoulli", "gaussian"}
        Gaussian: one variance for all, learnt.
    beta : float
        Weight of the divergence in the loss (Higgins et al., "beta-VAE", ICLR 2017).
    """

    def __init__(self, encoder, decoder, scaling, likelihood, beta=1.0):
        super().__init__()
        self.encoder, self.decoder, self.scaling = encoder, decoder, scaling
        self.likelihood, self.beta = likelihood, beta
        if likelihood == "gaussian":
            self.log_variance = nn.Parameter(torch.zeros(()))

    def posterior(self, x):
        """μ and log σ² of rows, (n, n_latents) each."""
        mean, log_variance = self.encoder(self.scaling(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 20)  # so that no exp overflows on strange rows

    def encode(self, x):
        return self.posterior(x)[0]

    def decode(self, z):
        """Means of rows, in their own units."""
        out = self.decoder(z)
        if self.likelihood == "bernoulli":
            return torch.sigmoid(out)
        return out * self.scaling.scale + self.scaling.offset

    def log_likelihood(self, x, z, seen=None):
        """log p(x|z) in nats, (n,), of rows in their own units; `seen`: of these features only."""
        x, out = self.scaling(x), self.decoder(z)
        if self.likelihood == "bernoulli":
            each = -F.binary_cross_entropy_with_logits(out, x, reduction="none")
        else:
            variance = self.log_variance.exp()
            each = -0.5 * ((x - out) ** 2 / variance + self.log_variance + _LOG_2PI)
            each = each - self.scaling.scale.log()
        return each.sum(1) if seen is None else torch.where(seen, each, 0).sum(1)

    def bound(self, x):
        """log p(x|z) for one z drawn from q(z|x), and KL(q(z|x) ‖ p(z)): (n,) each, in nats."""
        z, divergence = draw(*self.posterior(x))
        return self.log_likelihood(x, z), divergence

    def importance(self, x):
        """log p(x, z) − log q(z|x) for one z drawn from q(z|x), (n,)."""
        mean, log_variance = self.posterior(x)
        noise = torch.randn_like(mean)
        z = mean + (0.5 * log_variance).exp() * noise
        return self.log_likelihood(x, z) + 0.5 * (noise**2 + log_variance - z**2).sum(1)

    def loss(self, x):
        """−E log p(x|z) + β KL, mean over rows; beside it "elbo" (β = 1) and "kl"."""
        likelihood, divergence = (part.mean() for part in self.bound(x))
        facts = {"elbo": (likelihood - divergence).item(), "kl": divergence.item()}
        return self.beta * divergence - likelihood, facts


def draw(mean, log_variance):
    """z drawn from N(μ, diag σ²), with its gradient, and KL(N(μ, diag σ²) ‖ N(0, I)), (n,)."""
    z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    return z, 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)


class VQNetwork(nn.Module):
    """An autoencoder whose latents are codewords at several positions.

    Parameters
    ----------
    encoder : Module
        (n, n_features) to (n, positions, code_features).
    quantizer : Module
        Returns a `Quantized`.
    decoder : Module
    scaling : Scaling

    References
    ----------
    A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural discrete representation learning",
    NeurIPS 2017.
    """

    def __init__(self, encoder, quantizer, decoder, scaling):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.scaling = scaling

    def encode(self, x):
        """Codes (n, positions)."""
        return self.quantizer.encode(self.encoder(self.scaling(x)))

    def decode(self, codes):
        """Rows of codes, in their own units."""
        out = self.decoder(self.quantizer.decode(codes))
        return out * self.scaling.scale + self.scaling.offset

    def loss(self, x):
        """Squared error and the quantizer's loss; beside it "error" and "perplexity"."""
        x = self.scaling(x)
        found = self.quantizer(self.encoder(x))
        error = F.mse_loss(self.decoder(found.values), x)
        facts = {"error": error.item(), "perplexity": found.perplexity.mean().item()}
        return error + found.loss, facts


class CodePrior(nn.Module):
    """p(codes) = Π p(c_i | c_1 … c_{i−1}), by a network over what the codes before add up to.

    A code that is known adds a vector v of its own, for its position and value. The sum goes
    through two layers that each position i has for itself,

        s_i = relu(b_i + Σ_{j<i} v_j(c_j)),    h_i = s_i + relu(A_i s_i + a_i),

    and a linear one gives the logits: one pass for all positions of a row, where a recurrent
    network takes them one by one. Inside, positions are the first axis, so that the rows of one lie
    together for products and softmax.

    Parameters
    ----------
    n_codewords, n_positions : int
    width : int, default=128

    References
    ----------
    H. Larochelle, I. Murray, "The neural autoregressive distribution estimator", AISTATS 2011.
    """

    def __init__(self, n_codewords, n_positions, width=128):
        super().__init__()
        self.n_codewords, self.n_positions = n_codewords, n_positions
        self.known = nn.Embedding((n_positions - 1) * n_codewords, width)
        nn.init.normal_(self.known.weight, std=_KNOWN)
        self.starts = nn.Parameter(torch.zeros(n_positions, 1, width))
        self.inner = nn.Parameter(torch.randn(n_positions, width, width) / math.sqrt(width))
        self.inner_biases = nn.Parameter(torch.zeros(n_positions, 1, width))
        self.heads = nn.Parameter(torch.randn(n_positions, width, n_codewords) / width)
        self.biases = nn.Parameter(torch.zeros(n_positions, 1, n_codewords))

    def forward(self, codes):
        """Logits (n, positions, n_codewords) of each code, given those before it."""
        return self._logits(self._sums(codes.T)).transpose(0, 1)

    def nats(self, codes):
        """−log p of codes, (n, positions)."""
        codes = codes.T
        logits = self._logits(self._sums(codes)).flatten(0, 1)
        return F.cross_entropy(logits, codes.flatten(), reduction="none").reshape(codes.shape).T

    def loss(self, codes):
        return self.nats(codes.long()).mean()

    def draw(self, n):
        """Codes (n, positions) from PyTorch's global generator, position by position."""
        sums, drawn = self.known.weight.new_zeros(1, n, self.known.embedding_dim), []
        for place in range(self.n_positions):
            if place:
                sums = sums + self.known(drawn[-1].T + (place - 1) * self.n_codewords)
            logits = self._logits(sums, slice(place, place + 1))[0]
            drawn.append(torch.multinomial(logits.softmax(1), 1))
        return torch.cat(drawn, dim=1)

    def _sums(self, codes):
        """What is known at each position, (positions, n, width), of codes (positions, n)."""
        firsts = self.n_codewords * torch.arange(len(codes) - 1)  # vectors of each position
        vectors = self.known(codes[:-1] + firsts[:, None])
        nothing = vectors.new_zeros(1, *vectors.shape[1:])
        return torch.cat([nothing, vectors.cumsum(0)])

    def _logits(self, sums, places=slice(None)):
        """Logits (positions, n, n_codewords) at these places, of what is known there."""
        first = (sums + self.starts[places]).relu()
        second = torch.baddbmm(self.inner_biases[places], first, self.inner[places]).relu()
        return torch.baddbmm(self.biases[places], first + second, self.heads[places])
