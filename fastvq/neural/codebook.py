"""A codebook that learns inside a network.

Either by moving averages of its members (van den Oord et al., NeurIPS 2017, appendix A): with n_k
members of sum s_k in a batch,

    N_k ← γ N_k + (1 − γ) n_k,    m_k ← γ m_k + (1 − γ) s_k,    c_k = m_k / N_k,

or by the gradient of |sg[x] − c|², as the other parameters do. Moving counts N_k are kept in both
cases: codewords that nobody chooses any more are set to rows of the batch, drawn with probability
proportional to their squared error, as k-means++ would.

What is random is drawn from torch's global generator, so that `torch.manual_seed` repeats it.
"""

import contextlib
import math
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.nn import functional as F

from fastvq import kernels
from fastvq._validation import as_count, as_nonnegative, as_word
from fastvq.neural.gradients import look_up, on_cpu
from fastvq.vq import VectorQuantizer

__all__ = ["Codebook", "NotFiniteError", "naming_what_is_not_finite"]

UPDATES = {"average": ("ema", "moving average"), "gradient": ("sgd",)}
METRICS = {"euclidean": ("l2",), "cosine": ("cos", "spherical")}
INITS = {"k-means": ("kmeans",), "principal": ("pca",), "random": ("normal",)}

START_ITERATIONS = 20  # of k-means; the encoder moves on meanwhile, so the optimum is of no use
_START_ROWS = 16  # a codeword, by default: k-means on fewer fits their noise


class NotFiniteError(ValueError):
    """A layer was given NaN or infinity: training has diverged, or the data are at fault."""


class Codebook(nn.Module):
    """Codewords that learn, and the nearest of them: what all layers are built of.

    Parameters
    ----------
    n_codewords, n_features : int
    update : {"average", "gradient"}, default="average"
    decay : float, default=0.99
        γ of the moving averages.
    commitment : float, default=0.25
        Weight of |x − sg[c]|² in the loss.
    metric : {"euclidean", "cosine"}, default="euclidean"
        With "cosine" rows are divided by their length and codewords have length 1.
    init : {"k-means", "principal", "random"} or tensor (n_codewords, n_features), default="k-means"
        "k-means": fitted on the rows of the first batches of training. "principal": the same, begun
        among the principal directions of these rows: for what other codebooks leave over, in which
        k-means++ finds single rows that lie far out.
    start_rows : int, optional
        Rows that k-means waits for; until then it is started again whenever twice as many rows have
        been seen. By default 16 for each codeword.
    dead_below : float, default=0.03
        A codeword is dead when its moving count is below this share of the mean count. 0: none is
        ever replaced.

    Attributes
    ----------
    codebook : Parameter or Tensor of shape (n_codewords, n_features)
    counts : Tensor of shape (n_codewords,)
        Moving average of the members in a batch.
    """

    def __init__(
        self,
        n_codewords,
        n_features,
        *,
        update="average",
        decay=0.99,
        commitment=0.25,
        metric="euclidean",
        init="k-means",
        start_rows=None,
        dead_below=0.03,
    ):
        super().__init__()
        self.n_codewords = k = as_count(n_codewords, "n_codewords")
        self.n_features = d = as_count(n_features, "n_features")
        self.update = as_word(update, "update", UPDATES)
        self.metric = as_word(metric, "metric", METRICS)
        self.commitment = as_nonnegative(commitment, "commitment")
        self.dead_below = as_nonnegative(dead_below, "dead_below")
        self.decay = as_nonnegative(decay, "decay")
        if not self.decay < 1:
            raise ValueError(f"decay must be below 1, got {decay}")
        self.start_rows = (
            _START_ROWS * k if start_rows is None else as_count(start_rows, "start_rows")
        )
        codewords = self._first(init)
        if self.update == "gradient":
            self.codebook = nn.Parameter(codewords)
        else:
            self.register_buffer("codebook", codewords)
            self.register_buffer("totals", torch.zeros(k, d))
        self.register_buffer("counts", torch.zeros(k))
        # Rows that k-means has seen so far; None: the codebook has started.
        fitted = self.init in ("k-means", "principal")
        self._waiting = torch.empty(0, d) if fitted else None
        self._started_on = 0
        self._packed = self._made_of = None

    def _first(self, init):
        k, d = self.n_codewords, self.n_features
        if isinstance(init, str):
            self.init = as_word(init, "init", INITS, " or a tensor")
            codewords = torch.randn(k, d)
        else:
            self.init = "given"
            codewords = torch.as_tensor(init).detach().clone()
            if codewords.shape != (k, d) or not codewords.is_floating_point():
                raise ValueError(
                    f"init must be of shape (n_codewords, n_features) = {k, d} and floating point, "
                    f"got {tuple(codewords.shape)} of {codewords.dtype}"
                )
        return F.normalize(codewords, dim=1) if self.metric == "cosine" else codewords

    # ---- state -----------------------------------------------------------------------------

    def get_extra_state(self):
        return {"waiting": self._waiting, "started_on": self._started_on}

    def set_extra_state(self, state):
        self._waiting, self._started_on = state["waiting"], state["started_on"]
        self._packed = None

    def __getstate__(self):
        return {**self.__dict__, "_packed": None, "_made_of": None}  # made for this CPU

    # ---- what layers use -------------------------------------------------------------------

    @property
    def codewords(self):
        """The codewords as they are used, (n_codewords, n_features), with their gradient."""
        learns = self.metric == "cosine" and self.update == "gradient"
        return F.normalize(self.codebook, dim=1) if learns else self.codebook

    @property
    def dead_share(self):
        """Share of the codewords that are dead by their moving counts; NaN before any batch."""
        mean = self.counts.mean()
        if mean == 0:
            return math.nan
        return float((self.counts < self.dead_below * mean).float().mean())

    def admit(self, rows):
        """Rows as this codebook compares them: of length 1 for the cosine."""
        return F.normalize(rows, dim=1) if self.metric == "cosine" else rows

    def prepared(self):
        """The codebook packed for the kernels; again where it has changed since."""
        codebook = self.codebook
        made_of = (codebook.data_ptr(), codebook._version)
        if self._packed is None or self._made_of != made_of:
            with naming_what_is_not_finite(codebook):
                self._packed = kernels.prepare(on_cpu(self.codewords))
            self._made_of = made_of
        return self._packed

    @property
    def starting(self):
        """Whether k-means waits for more rows to start on."""
        return self._waiting is not None

    def nearest(self, rows):
        """Codes of admitted rows, ndarray of int32; of equally near codewords the lowest."""
        codebook = self.prepared()
        with naming_what_is_not_finite(rows):
            return kernels.assign(on_cpu(rows), codebook, n_threads=torch.get_num_threads())

    def forward(self, rows, codes=None):
        """Quantize rows, and learn from them in training.

        Parameters
        ----------
        rows : Tensor of shape (n, n_features)
        codes : ndarray of int32 of shape (n,), optional
            What rows are quantized to, where it is not the nearest.

        Returns
        -------
        rows : Tensor of shape (n, n_features)
            As `admit` gives them.
        codewords : Tensor of shape (n, n_features)
            Without a gradient.
        codes : ndarray of int32 of shape (n,)
        loss : Tensor, a scalar
            commitment·mean (x − sg[c])², and mean (sg[x] − c)² where the codebook learns by it.
        """
        rows = self.admit(rows)
        if self.training:
            self._start(rows)
        codes = self.nearest(rows) if codes is None else codes
        chosen = look_up(self.codewords, codes).to(rows.dtype)
        fixed = chosen.detach()
        loss = self.commitment * _mean_square(rows - fixed)
        if self.update == "gradient":
            loss = loss + _mean_square(rows.detach() - chosen)
        if self.training and len(rows):
            self._learn(rows.detach(), codes, fixed)
        return rows, fixed, codes, loss

    def perplexity(self, codes):
        """exp of the entropy of these codes: as how many equally likely codewords they are."""
        shares = np.bincount(codes, minlength=1) / max(1, len(codes))
        shares = shares[shares > 0]
        return float(np.exp(-shares @ np.log(shares)))

    # ---- learning --------------------------------------------------------------------------

    def _start(self, rows):
        """Gather the rows of the first batches; k-means on them, as they grow."""
        if self._waiting is None:
            return
        rows = rows.detach()
        if self.metric == "cosine":
            rows = rows[rows.any(dim=1)]  # what has no direction is of no use
        seen = torch.cat([self._waiting, rows.to(self._waiting)])
        enough = len(seen) >= self.start_rows
        if len(seen) and (enough or len(seen) >= 2 * self._started_on):
            self._write(torch.from_numpy(self._k_means(seen)))
            self.counts.zero_()
            self._started_on = len(seen)
        self._waiting = None if enough else seen

    def _k_means(self, rows):
        quantizer = VectorQuantizer(
            self.n_codewords,
            max_iter=START_ITERATIONS,
            metric=self.metric,
            init="principal" if self.init == "principal" else "auto",
            random_state=int(torch.randint(2**31, ())),
            n_threads=torch.get_num_threads(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # too few rows: they repeat for now
            with naming_what_is_not_finite(rows):
                return quantizer.fit(on_cpu(rows)).codebook_.copy()

    @torch.no_grad()
    def _learn(self, rows, codes, chosen):
        counts = torch.from_numpy(np.bincount(codes, minlength=self.n_codewords)).to(self.counts)
        if not self.counts.any():  # the first batch: as if all had had their fair share before it,
            # or hardly anything where the codewords are random: they are to move at once.
            trust = 1 - self.decay if self.init == "random" else 1.0
            self.counts.fill_(trust * len(rows) / self.n_codewords)
            if self.update == "average":
                self.totals.copy_(self.codebook * self.counts[:, None])
        self.counts.lerp_(counts, 1 - self.decay)
        if self.update == "average":
            self._average(rows, codes, counts)
        if self.dead_below:
            self._replace_dead(rows, chosen, counts)

    def _average(self, rows, codes, counts):
        sums, _ = kernels.sums(
            on_cpu(rows), codes, self.n_codewords, n_threads=torch.get_num_threads()
        )
        self.totals.lerp_(torch.from_numpy(sums).to(self.totals), 1 - self.decay)
        moved = self.totals / self.counts[:, None]
        if self.metric == "cosine":
            moved = F.normalize(moved, dim=1)
        self._write(torch.where(counts[:, None] > 0, moved, self.codebook))

    def _replace_dead(self, rows, chosen, counts):
        """Codewords without members go to rows that are far from their codeword."""
        mean = self.counts.mean()
        # Those that had members just now are spared: their gradient is still to be computed.
        dead = ((self.counts < self.dead_below * mean) & (counts == 0)).nonzero()[:, 0]
        if not len(dead):
            return
        error = (rows - chosen).square().sum(1).double()
        dead = dead[: int((error > 0).sum())]
        if not len(dead):
            return  # every row is a codeword: there is nothing to gain
        drawn = rows[torch.multinomial(error.cpu(), len(dead)).to(rows.device)]
        codebook = self.codebook.data.clone()
        codebook[dead] = drawn.to(codebook)
        self._write(codebook)
        self.counts[dead] = mean
        if self.update == "average":
            self.totals[dead] = codebook[dead] * mean

    def _write(self, codewords):
        # Not a change that autograd is to know of: what it has saved belongs to living codewords.
        self.codebook.data.copy_(codewords)
        self._packed = None

    def extra_repr(self):
        return (
            f"{self.n_codewords}, {self.n_features}, update={self.update!r}, metric={self.metric!r}"
        )


def _mean_square(difference):
    return difference.square().sum() / max(1, difference.numel())


@contextlib.contextmanager
def naming_what_is_not_finite(values):
    """The kernels see every value and say ValueError; the trainer wants to know this one."""
    try:
        yield
    except ValueError as error:
        if torch.isfinite(values).all():
            raise
        raise NotFiniteError(str(error)) from None
