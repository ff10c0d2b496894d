"""A recurrent classifier that is stored in codewords and remembers in codes.

Both matrices of an LSTM (Hochreiter & Schmidhuber, Neural Computation 9, 1997) are cut into short
pieces, each of which is one of a few codewords; and after each step the hidden state is replaced by
the nearest vectors of its own codebooks, so that what is carried from step to step - or sent, where
the steps are done in different places - is a few codes.

A float network is trained first. k-means then makes codewords of its weights and its states, and
all learns on together: codewords of weights by gradient, the sum over the pieces that they stand
for (Han et al., "Deep compression", ICLR 2016), those of states as `ProductVectorQuantize` has it.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral

import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn import functional as F

from fastvq._validation import as_count, as_word
from fastvq.neural.distill import Standardised
from fastvq.neural.estimators import NetworkClassifier
from fastvq.neural.gradients import look_up, on_cpu
from fastvq.neural.layers import ProductVectorQuantize
from fastvq.neural.trainer import as_tensor, classification_loss
from fastvq.vq import VectorQuantizer
from fastvq.vq._base import code_bits

__all__ = ["CodebookLinear", "VQLSTMClassifier", "stored_numbers"]

CODEBOOKS = {"joint": (), "none": ()}

_STATE_ROWS = 512  # rows whose states at all steps the codebooks of states are fitted to
_WORD = 32  # bits of a number


class CodebookLinear(nn.Module):
    """A linear layer whose weight consists of codewords.

    Parameters
    ----------
    layer : Linear
    n_codewords, block : int
        Codewords, and the numbers in each.

    Attributes
    ----------
    codewords : Parameter of shape (n_codewords, block)
    codes : Tensor of int32, (pieces,)
        Of the weight, row by row; the last piece is cut to what there is.

    Examples
    --------
    >>> import torch
    >>> from fastvq.neural import CodebookLinear, stored_numbers
    >>> seed = torch.manual_seed(0)
    >>> linear = torch.nn.Linear(64, 128)
    >>> small = CodebookLinear(linear, n_codewords=64, block=4)
    >>> bool((small.weight - linear.weight).norm() < 0.6 * linear.weight.norm())
    True
    >>> stored_numbers(linear), stored_numbers(small)
    (8320, 768.0)
    """

    def __init__(self, layer, n_codewords=256, block=4):
        super().__init__()
        weight = layer.weight.detach()
        self.shape, block = tuple(weight.shape), as_count(block, "block")
        pieces = F.pad(weight.reshape(-1), (0, -weight.numel() % block)).reshape(-1, block)
        if len(pieces) <= as_count(n_codewords, "n_codewords"):
            raise ValueError(
                f"n_codewords must be below the {len(pieces)} pieces of the weight, "
                f"got {n_codewords}"
            )
        quantizer = VectorQuantizer(
            n_codewords,
            random_state=int(torch.randint(2**31 - 1, ())),
            n_threads=torch.get_num_threads(),
        )
        codes = quantizer.fit_predict(on_cpu(pieces))
        self.codewords = nn.Parameter(torch.from_numpy(quantizer.codebook_.copy()))
        self.register_buffer("codes", torch.from_numpy(codes.astype("int32")))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    @property
    def weight(self):
        """The matrix, with its gradient: that of a codeword is the sum over its pieces."""
        whole = look_up(self.codewords, self.codes.numpy())
        return whole.reshape(-1)[: math.prod(self.shape)].reshape(self.shape)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


def stored_numbers(module: nn.Module) -> float:
    """Numbers of 32 bits that a module's parameters take, codes by their bits."""
    numbers = sum(parameter.numel() for parameter in module.parameters())
    for part in module.modules():
        if isinstance(part, CodebookLinear):
            numbers += part.codes.numel() * code_bits(len(part.codewords)) / _WORD
        elif isinstance(part, ProductVectorQuantize):  # buffers, where averages move them
            numbers += sum(c.codebook.numel() for c in part.codebooks if c.update == "average")
    return numbers


@dataclass(eq=False, repr=False)
class VQLSTMClassifier(NetworkClassifier):
    """An LSTM over the steps of a row, with vector-quantized weights and hidden states.

    Parameters
    ----------
    n_steps : int, default=1
        A row is so many steps of equally many features, one after the other: 28 for the lines of a
        picture of 28 × 28.
    n_units : int, default=64
        Of the hidden state.
    n_codewords, block : int, default=256 and 4
        Codewords of each matrix, and numbers in each. A matrix with fewer than four pieces a
        codeword stays as it is.
    n_positions, n_state_codewords : int, default=16 and 64
        Codes of a hidden state, each of a codebook of its own, and its codewords.
    codebook : {"joint", "none"}, default="joint"
        "none": nothing is quantized, and the network trains as long.
    max_epochs : int, default=10
        Of each half of the training, before codewords are there and with them.
    batch_size, learning_rate, random_state, n_threads, verbose
        As of `TrainedEstimator`; `hidden` are the widths of ReLU layers between state and classes.

    Attributes
    ----------
    stored_numbers_ : float
        Numbers of 32 bits that the network takes, codes by their bits.
    float_numbers_ : int
        The same of the float network.
    state_bits_ : int
        Bits of the hidden state between steps.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fastvq.neural import VQLSTMClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> lstm = VQLSTMClassifier(8, 32, n_codewords=64, max_epochs=8, learning_rate=0.01,
    ...                         random_state=0).fit(X[:1400], y[:1400])
    >>> bool(lstm.score(X[1400:], y[1400:]) > 0.8), lstm.state_bits_
    (True, 96)
    >>> lstm.stored_numbers_ < 0.7 * lstm.float_numbers_
    True
    """

    n_steps: int = 1
    n_units: int = 64
    _: KW_ONLY
    n_codewords: int = 256
    block: int = 4
    n_positions: int = 16
    n_state_codewords: int = 64
    codebook: str = "joint"
    hidden: Sequence[int] = ()
    max_epochs: int = 10

    def fit(self, X: ArrayLike, y: ArrayLike) -> "VQLSTMClassifier":
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)

        Returns
        -------
        self : VQLSTMClassifier
        """
        codebook = as_word(self.codebook, "codebook", CODEBOOKS)
        X, classes, labels = self._rows_and_labels(X, y)
        if not isinstance(self.n_steps, Integral) or X.shape[1] % as_count(self.n_steps, "n_steps"):
            raise ValueError(f"n_steps must divide the {X.shape[1]} features, got {self.n_steps!r}")
        with self._training() as seed:
            n_units = as_count(self.n_units, "n_units")
            network = _Recurrent(X, self.n_steps, n_units, self._widths(), len(classes))
            n_numbers = stored_numbers(network)
            history = self._train(network, _loss, X, labels, seed=seed)
            if codebook == "joint":
                self._quantize(network, X)
            history += self._train(network, _loss, X, labels, seed=seed + 1)
        self.network_, self.classes_, self.history_ = network.eval(), classes, history
        self.float_numbers_, self.stored_numbers_ = n_numbers, stored_numbers(network)
        bits = _WORD * n_units if network.quantizer is None else int(network.quantizer.bits)
        self.state_bits_ = bits
        return self

    def encode_states(self, X: ArrayLike):
        """Codes of the hidden states, (n_samples, n_steps, n_positions)."""
        check_is_fitted(self)
        if self.network_.quantizer is None:
            raise ValueError("there are no codes with codebook='none'")
        network = self.network_
        return self._by_blocks(
            lambda x: network.quantizer.encode(network.states(x)[0]), self._checked(X)
        )

    def _quantize(self, network, X):
        """Codewords in place of the network's matrices, and for its states."""
        with torch.no_grad():
            states, _ = network.eval().states(as_tensor(X[:_STATE_ROWS]))
        network.quantizer = ProductVectorQuantize.fitted(
            states.reshape(-1, states.shape[2]),
            as_count(self.n_positions, "n_positions"),
            as_count(self.n_state_codewords, "n_state_codewords"),
        )
        for name in ("input", "recurrent"):
            layer = getattr(network, name)
            if layer.weight.numel() >= 4 * self.n_codewords * self.block:
                setattr(network, name, CodebookLinear(layer, self.n_codewords, self.block))


class _Recurrent(nn.Module):
    """Rows to logits, by way of the hidden state after the last step."""

    def __init__(self, X, n_steps, n_units, hidden, n_classes):
        super().__init__()
        self.n_steps, self.n_units = n_steps, n_units
        self.scaling = Standardised(X)
        self.input = nn.Linear(X.shape[1] // n_steps, 4 * n_units)
        self.recurrent = nn.Linear(n_units, 4 * n_units, bias=False)
        with torch.no_grad():  # gates open to the past at first
            self.input.bias[n_units : 2 * n_units] += 1
        self.quantizer = None
        widths = [n_units, *hidden]
        layers = [
            part
            for wide, next_wide in zip(widths, hidden, strict=False)
            for part in (nn.Linear(wide, next_wide), nn.ReLU())
        ]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], n_classes))

    def forward(self, x):
        return self.head(self.states(x)[0][:, -1])

    def loss(self, x, y):
        states, extra = self.states(x)
        plain, facts = classification_loss(lambda _: self.head(states[:, -1]), x, y)
        return plain + extra, facts

    def states(self, x):
        """Hidden states (n, n_steps, n_units), as they are handed on, and the quantizer's loss."""
        rows = self.scaling(x).reshape(len(x), self.n_steps, -1)
        given, recurrent = self.input(rows), self.recurrent.weight
        state = memory = rows.new_zeros(len(x), self.n_units)
        states, loss = [], 0.0
        for step in range(self.n_steps):
            gates = given[:, step] + F.linear(state, recurrent)
            enter, keep, new, leave = gates.chunk(4, dim=1)
            memory = keep.sigmoid() * memory + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * memory.tanh()
            if self.quantizer is not None:
                found = self.quantizer(state)
                state, loss = found.values, loss + found.loss / self.n_steps
            states.append(state)
        return torch.stack(states, dim=1), loss


def _loss(network, x, y):
    return network.loss(x, y)
