"""A variational autoencoder as an estimator: a density over rows, to sample, score and complete."""

import math
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from fastvq import kernels
from fastvq._validation import as_count, as_nonnegative, as_rows, as_word
from fastvq.neural.autoencoders import GenerativeAutoencoder
from fastvq.neural.estimators import LAST_RATE
from fastvq.neural.networks import Scaling, VariationalNetwork, draw

__all__ = ["VariationalAutoencoder"]

LIKELIHOODS = {"bernoulli": (), "gaussian": ("normal",)}

# Of `impute`. Squared error of a missing pixel, lower halves of 300 pictures of Fashion-MNIST:
# 0.0377 (PCA 0.0404); trusting at once 0.0409 after 300 steps, 0.0520 after 100 at half the rate.
_ASCENT_STEPS, _ASCENT_RATE, _GUESSES = 200, 0.1, 16
_FIRST_TRUST = 0.05  # in what was seen, at first; all of it in the second half of the steps


@dataclass(eq=False, repr=False)
class VariationalAutoencoder(GenerativeAutoencoder):
    """A probability density over rows, with a few latent numbers; to sample, score and complete.

    Parameters
    ----------
    n_components : int, default=16
    likelihood : {"bernoulli", "gaussian"}, default="bernoulli"
        Of a feature given the latents. "bernoulli": features from 0 to 1; for values between, the
        cross entropy stands for a density, as is usual. "gaussian": any numbers, and one variance
        that is learnt.
    beta : float, default=1.0
        Weight of the divergence; 1 gives the bound itself.
    architecture, image_shape
        As of `Autoencoder`.
    hidden, max_epochs, batch_size, learning_rate, random_state, n_threads, verbose
        As of `TrainedEstimator`.

    Attributes
    ----------
    network_ : VariationalNetwork
    encoder_ : Module
        To means and log variances, (n, 2 n_components).

    Notes
    -----
    `transform` gives the posterior means; `score` is the evidence lower bound in nats a row.

    References
    ----------
    D. P. Kingma, M. Welling, "Auto-encoding variational Bayes", ICLR 2014.
    D. J. Rezende, S. Mohamed, D. Wierstra, "Stochastic backpropagation and approximate inference in
    deep generative models", ICML 2014.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fastvq.neural import VariationalAutoencoder
    >>> X = load_digits().data / 16
    >>> vae = VariationalAutoencoder(8, hidden=(64,), max_epochs=10, random_state=0).fit(X)
    >>> vae.sample(3).shape
    (3, 64)
    >>> bool(vae.score(X) <= vae.log_likelihood(X, n_samples=20).mean())
    True
    """

    n_components: int = 16
    _: KW_ONLY
    likelihood: str = "bernoulli"
    beta: float = 1.0

    def score(self, X: ArrayLike, y: object = None, n_samples: int = 1) -> float:
        """Evidence lower bound in nats, mean over the rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        n_samples : int, default=1
            Latents drawn for a row, from the same seed in every call.

        Returns
        -------
        elbo : float
        """
        n_samples = as_count(n_samples, "n_samples")

        def bound(x):
            parts = [self.network_.bound(x) for _ in range(n_samples)]
            return torch.stack([likelihood - kl for likelihood, kl in parts]).double().mean(0)

        return float(self._seeded(bound, self._unit(self._checked(X))).mean())

    def log_likelihood(self, X: ArrayLike, n_samples: int = 100) -> NDArray[np.float64]:
        """log p of each row in nats, by importance sampling: a tighter bound than `score`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        n_samples : int, default=100

        Returns
        -------
        log_p : ndarray of float64 of shape (n_samples,)

        References
        ----------
        Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.
        """
        n_samples = as_count(n_samples, "n_samples")

        def bound(x):
            weights = torch.stack([self.network_.importance(x) for _ in range(n_samples)])
            return weights.double().logsumexp(0) - math.log(n_samples)

        return self._seeded(bound, self._unit(self._checked(X)))

    def impute(self, X: ArrayLike) -> NDArray[np.float32]:
        """Rows with what is missing filled in.

        The encoder knows whole rows only. So its q(z|x), of the row with averages in the gaps, is
        where gradient ascent starts for each row, on E_q[log p(seen features|z)] − KL(q ‖ p(z));
        what is missing is then the mean over draws of z (Y. Kim et al., "Semi-amortized variational
        autoencoders", ICML 2018, with the features that are there). The likelihood counts little at
        first and wholly in the end: a wrong guess of what a row is would be hard to leave otherwise
        (S. Mandt et al., "Variational tempering", AISTATS 2016).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            NaN: missing.

        Returns
        -------
        X : ndarray of float32 of shape (n_samples, n_features)
            What was seen is returned as it came.
        """
        check_is_fitted(self)
        rows = as_rows(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        rows = rows.astype(np.float32)
        missing = np.isnan(rows)
        filled = np.where(missing, self.mean_, rows)
        kernels.extremes(filled)
        return self._seeded(self._complete, self._unit(filled), ~missing)

    def _complete(self, x, seen):
        network = self.network_
        posterior = [part.requires_grad_() for part in network.posterior(x)]
        ascent = torch.optim.Adam(posterior, lr=_ASCENT_RATE)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
            ascent, _ASCENT_STEPS, LAST_RATE * _ASCENT_RATE
        )
        trust = np.linspace(_FIRST_TRUST, 2 - _FIRST_TRUST, _ASCENT_STEPS).clip(max=1)
        with torch.enable_grad():
            for share in trust:
                z, divergence = draw(*posterior)
                loss = (divergence - share * network.log_likelihood(x, z, seen)).sum()
                gradients = torch.autograd.grad(loss, posterior)
                for part, gradient in zip(posterior, gradients, strict=True):
                    part.grad = gradient
                ascent.step(), cosine.step()
        guesses = [network.decode(draw(*posterior)[0]) for _ in range(_GUESSES)]
        return torch.where(seen, x, torch.stack(guesses).mean(0))

    @property
    def decoder_(self) -> nn.Module:
        """From latents to means of rows."""
        check_is_fitted(self)
        if self.network_.likelihood == "bernoulli":
            return nn.Sequential(self.network_.decoder, nn.Sigmoid()).eval()
        return super().decoder_

    def _drawn(self, n):
        return torch.randn(n, self.n_components)

    def _check(self, rows):
        super()._check(rows)
        as_word(self.likelihood, "likelihood", LIKELIHOODS)
        as_nonnegative(self.beta, "beta")

    def _scaling(self, rows, least, most):
        if as_word(self.likelihood, "likelihood", LIKELIHOODS) == "gaussian":
            return super()._scaling(rows, least, most)
        self._within(least.min(), most.max())
        return Scaling()

    def _within(self, least, most):
        if not (least >= 0 and most <= 1):
            raise ValueError(
                "X must be from 0 to 1 for the Bernoulli likelihood, got values from "
                f"{least:.6g} to {most:.6g}: divide by the largest, or use likelihood='gaussian'"
            )

    def _unit(self, rows):
        if self.network_.likelihood == "bernoulli":
            self._within(rows.min(), rows.max())
        return rows

    def _network(self, rows, scaling):
        n_latents = as_count(self.n_components, "n_components")
        halves = self._halves(rows.shape[1], n_latents, 2 * n_latents)
        likelihood = as_word(self.likelihood, "likelihood", LIKELIHOODS)
        return VariationalNetwork(*halves, scaling, likelihood, float(self.beta))

    def _finish(self, network, rows, seed):
        return {"mean_": np.mean(rows, axis=0, dtype=np.float64).astype(np.float32)}
