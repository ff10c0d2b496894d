"""Three autoencoders trained on Fashion-MNIST: what they restore, invent, and how they see it.

Each leaves three pictures - garments above their reconstructions, samples, and a map of its latent
space - and its decoder as a file, which is tried in a process with NumPy alone.
"""

import os
import time
import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import fastvq
from fastvq import images
from fastvq.demo._alone import run_alone
from fastvq.demo.fashion import _torch, load_fashion_mnist

__all__ = ["run"]

ROWS = 20_000
EPOCHS = {"autoencoder": 6, "vae": 10, "vqvae": 3}
SHOWN, SAMPLES, SIDE = 16, 64, 24  # pictures in a row; sampled; along the sides of a map
CLUSTERS = 30  # Gaussians, of the density of an autoencoder's latents


def run(output_dir, *, n_threads=None, random_state=0, echo=print):
    """See `fastvq.demo`."""
    _torch()
    images.require_pillow()
    (train, _), (test, _) = load_fashion_mnist(), load_fashion_mnist("t10k")
    train, test = (p.reshape(-1, 784) / np.float32(255) for p in (train[:ROWS], test))
    os.makedirs(output_dir, exist_ok=True)
    for name, estimator in estimators(random_state, n_threads).items():
        began = time.perf_counter()
        estimator.fit(train)
        echo(f"{name}: {len(train):,} pictures, {time.perf_counter() - began:.0f} s of training")
        echo(
            f"  squared error       {estimator.distortion(test):.2f} a picture, {_size(estimator)}"
        )
        _pictures(name, estimator, train, test, output_dir, random_state)
        _decoder(name, estimator, test, output_dir, echo)
    echo(f"Files: {os.path.abspath(output_dir)}")


def estimators(random_state, n_threads):
    """The autoencoders, by name, not yet fitted."""
    from fastvq.neural import VQVAE, AutoencoderCompressor, VariationalAutoencoder

    shared = dict(random_state=random_state, n_threads=n_threads)
    return {
        "autoencoder": AutoencoderCompressor(16, max_epochs=EPOCHS["autoencoder"], **shared),
        "vae": VariationalAutoencoder(16, max_epochs=EPOCHS["vae"], **shared),
        "vqvae": VQVAE(
            256, architecture="convolutional", hidden=(64, 64, 64), code_features=24,
            learning_rate=2e-3, max_epochs=EPOCHS["vqvae"], prior_epochs=10, **shared,
        ),
    }  # fmt: skip


def _size(estimator):
    if hasattr(estimator, "code_size_"):
        return f"{estimator.code_size_} bytes of codes"
    return f"{estimator.n_components} numbers"


def _pictures(name, estimator, train, test, folder, random_state):
    shown = test[:SHOWN]
    pairs = np.concatenate([shown, estimator.reconstruct(shown)])
    _write(folder, f"{name}-reconstructions.png", pairs, SHOWN)
    _write(folder, f"{name}-samples.png", _samples(estimator, train, random_state), 8)
    _write(folder, f"{name}-latent-space.png", _map(_latents(estimator, test), test), SIDE)


def _samples(estimator, train, random_state):
    """New pictures: of the model's own density, or of one that is fitted to its latents.

    Nothing has kept these together: one Gaussian would have its middle where no garment is.
    """
    if hasattr(estimator, "sample"):
        return estimator.sample(SAMPLES, random_state=random_state)
    mixture = GaussianMixture(CLUSTERS, random_state=random_state, max_iter=30)
    latents = estimator.transform(train).astype(np.float64)  # in float32 NumPy doubts covariances
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough to look at
        drawn, _ = mixture.fit(latents).sample(SAMPLES)
    return estimator.inverse_transform(drawn.astype(np.float32))


def _latents(estimator, rows):
    """What stands for rows in the middle, as numbers."""
    latents = estimator.transform(rows)
    if hasattr(estimator, "code_size_"):
        latents = _codewords(estimator, latents).reshape(len(rows), -1)
    return latents


def _codewords(estimator, codes):
    import torch

    with torch.no_grad():
        return estimator.network_.quantizer.decode(torch.from_numpy(codes.astype("int64"))).numpy()


def _map(latents, rows):
    """For each place of a square the row whose latents lie nearest to it, in ranks of two axes."""
    plane = PCA(2, random_state=0).fit_transform(latents)
    ranks = plane.argsort(axis=0).argsort(axis=0) / (len(plane) - 1)
    places = (np.arange(SIDE) + 0.5) / SIDE
    down, across = np.meshgrid(places, places, indexing="ij")
    wanted = np.stack([across.ravel(), down.ravel()], axis=1)
    distances = ((ranks[None] - wanted[:, None]) ** 2).sum(axis=2)
    return rows[distances.argmin(axis=1)]


def _write(folder, name, rows, n_across):
    """Pictures of 28 x 28 side by side, white on black."""
    pixels = images.round_codebook(255 * rows)
    tiled = pixels.reshape(-1, n_across, 28, 28).swapaxes(1, 2)
    images.write_picture(os.path.join(folder, name), tiled.reshape(-1, 28 * n_across, 1))


def _decoder(name, estimator, test, folder, echo):
    """The decoder as a file, and what it gives where there is nothing but NumPy."""
    latents = estimator.transform(test[:200])
    wanted = estimator.inverse_transform(latents)
    if hasattr(estimator, "code_size_"):
        latents = _codewords(estimator, latents)
    path = os.path.join(folder, f"{name}-decoder.fvq")
    fastvq.compress(estimator.decoder_, latents[:2]).save(path)
    found, _ = run_alone(path, latents)
    size, difference = os.path.getsize(path), np.abs(found - wanted).max()
    echo(f"  decoder             {size:,} bytes; with NumPy alone it differs by {difference:.0e}")
