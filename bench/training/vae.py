"""A variational autoencoder beside the same one in plain PyTorch; missing halves of pictures.

The twin is written out below: the bound of Kingma and Welling with PyTorch's own distributions.
Pictures whose lower half is missing are completed by the density, by the mean picture, and by
what PCA of several sizes expects of the lower half, given the upper one.
"""

from __future__ import annotations

import numpy as np

from bench.training import BATCH, Target, pictures

TITLE = "VAE: evidence lower bound, and halves of pictures filled in"

ROWS, EPOCHS, RATE = 60_000, 8, 1e-3
LATENTS, HIDDEN = 16, (256, 128)
HOLES = 1000  # pictures that are completed
COMPONENTS = (8, 16, 32, 64)  # of PCA; the best one counts

TARGETS = [
    Target(
        "bound below the twin's, percent",
        lambda figures: 100 * (figures["bound, nats"] / figures["twin's bound, nats"] - 1),
        1.0,
    ),
    Target("imputed less mean picture", lambda f: f["imputed"] - f["mean picture"], 0.0),
    Target("imputed less PCA", lambda f: f["imputed"] - f["PCA"], 0.0),
]


def run(seed: int, quick: bool) -> dict[str, float]:
    """Bounds in nats a picture; errors are squared, means over the pixels that were missing."""
    from fastvq.neural import VariationalAutoencoder

    train, test = (
        (pictures(part)[0].reshape(-1, 784) / np.float32(255)) for part in ("train", "t10k")
    )
    train, epochs = train[: 2000 if quick else ROWS], 1 if quick else EPOCHS
    ours = VariationalAutoencoder(
        LATENTS, hidden=HIDDEN, max_epochs=epochs, batch_size=BATCH, learning_rate=RATE,
        random_state=seed, n_threads=1,
    ).fit(train)  # fmt: skip
    return {
        "bound, nats": ours.score(test),
        "twin's bound, nats": _twins_bound(train, test, epochs, seed),
        **_holes(ours, train, test[: 100 if quick else HOLES]),
    }


def _twins_bound(train, test, epochs, seed):
    import torch
    from torch import nn
    from torch.distributions import Bernoulli, Normal, kl_divergence

    torch.manual_seed(seed)
    wide, narrow = HIDDEN
    encoder = nn.Sequential(
        nn.Linear(784, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(),
        nn.Linear(narrow, 2 * LATENTS),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(LATENTS, narrow), nn.ReLU(), nn.Linear(narrow, wide), nn.ReLU(),
        nn.Linear(wide, 784),
    )  # fmt: skip
    train, test = torch.from_numpy(train), torch.from_numpy(test)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=RATE)
    n_steps = epochs * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps, 0.01 * RATE)

    def bound(x):
        mean, log_variance = encoder(x).chunk(2, dim=1)
        posterior = Normal(mean, (0.5 * log_variance).exp())
        seen = Bernoulli(logits=decoder(posterior.rsample()), validate_args=False).log_prob(x)
        return seen.sum(1) - kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)

    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(BATCH):
            optimizer.zero_grad()
            (-bound(train[rows]).mean()).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float(torch.cat([bound(block) for block in test.split(1000)]).mean())


def _holes(vae, train, test):
    from sklearn.decomposition import PCA

    holes = test.copy()
    holes[:, 392:] = np.nan

    def error(guess):
        return float(((guess - test[:, 392:]) ** 2).mean())

    by_pca = [
        error(_expected(PCA(n, random_state=0).fit(train[:20_000]), holes)) for n in COMPONENTS
    ]
    return {
        "imputed": error(vae.impute(holes)[:, 392:]),
        "mean picture": error(train[:, 392:].mean(0)),
        "PCA": min(by_pca),
    }


def _expected(pca, holes):
    """The lower half, given the upper, by the Gaussian that PCA stands for."""
    covariance, mean = pca.get_covariance(), pca.mean_
    slope = np.linalg.solve(covariance[:392, :392], covariance[:392, 392:])
    return (mean[392:] + (holes[:, :392] - mean[:392]) @ slope).clip(0, 1)
