"""Pictures as 49 codes of 8 bits: a VQ-VAE beside the quantizers of `fastvq.vq` on patches.

All spend 392 bits on a picture. The quantizers see squares of 4 × 4 pixels, one codebook for all or
a codebook for each place; or strips of 4 × 28 as sums of seven codewords, as the VQ-VAE does.
"frozen": its codebooks and encoder stay as they start, and its decoder alone learns, equally long.
"""

from __future__ import annotations

import numpy as np

from bench.training import Target, pictures

TITLE = "VQ-VAE: squared error of a picture at 392 bits"

# As many rows as codebooks start from: so all start from the same. Of pictures that no one was
# trained on (50,000 to 53,000 of the training part) the error still falls after five epochs.
ROWS, EPOCHS = 8_000, 10
STRIPS = dict(image_shape=(28, 28), n_positions=7, n_stages=7, shared=True, code_features=112)
TRAINING = dict(hidden=(512,), learning_rate=1e-3, decay=0.995)

QUANTIZERS = ("one codebook for all patches", "a codebook for each patch", "strips, residual")

TARGETS = [
    Target("codewords out of use, percent", lambda figures: figures["dead, percent"], 10.0),
    Target(
        "VQ-VAE less the best quantizer on patches",
        lambda figures: figures["VQ-VAE"] - min(figures[name] for name in QUANTIZERS),
        0.0,
    ),
    Target("joint less frozen", lambda figures: figures["VQ-VAE"] - figures["frozen"], 0.0),
]


def run(seed: int, quick: bool) -> dict[str, float]:
    """Mean over the test pictures of Σ (x − x̂)², pixels from 0 to 1."""
    from fastvq.neural import VQVAE

    train, test = (pictures(part)[0].reshape(-1, 784) for part in ("train", "t10k"))
    train = train[: 2000 if quick else ROWS]
    options = dict(
        STRIPS | TRAINING, max_epochs=1 if quick else EPOCHS, prior="positions",
        random_state=seed, n_threads=1,
    )  # fmt: skip
    joint = VQVAE(256, **options).fit(train)
    frozen = VQVAE(256, codebook="frozen", **options).fit(train)
    return {
        "VQ-VAE": error(joint.reconstruct(test), test),
        "dead, percent": 100 * joint.dead_share_,
        "perplexity": joint.perplexity_,
        "bits by the prior": joint.bits(test),
        "frozen": error(frozen.reconstruct(test), test),
        **_of_quantizers(train, test, seed),
    }


def error(found, wanted):
    return float(((found / 255.0 - wanted / 255.0) ** 2).sum(axis=1).mean())


def _of_quantizers(train, test, seed):
    from fastvq.vq import ProductQuantizer, ResidualQuantizer, VectorQuantizer

    train, test = (as_patches(rows.astype(np.float32)) for rows in (train, test))

    def of_patches(quantizer, n):
        """One quantizer for n patches that lie side by side."""
        rows = train.reshape(-1, 16 * n)
        quantizer.fit(rows[:: -(-len(rows) // 300_000)])
        return there_and_back(quantizer, test.reshape(-1, 16 * n)).reshape(len(test), -1)

    whole = ProductQuantizer(49, 8, random_state=seed, n_threads=1).fit(train)
    found = (
        of_patches(VectorQuantizer(256, random_state=seed, n_threads=1), 1),
        there_and_back(whole, test),
        of_patches(ResidualQuantizer(7, 8, random_state=seed, n_threads=1), 7),
    )
    return {name: error(one, test) for name, one in zip(QUANTIZERS, found, strict=True)}


def there_and_back(quantizer, rows):
    return quantizer.inverse_transform(quantizer.transform(rows))


def as_patches(rows):
    """Pictures (n, 784) with the pixels of each square of 4 × 4 side by side."""
    return rows.reshape(-1, 7, 4, 7, 4).swapaxes(2, 3).reshape(-1, 784)
