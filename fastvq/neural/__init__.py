"""Quantization inside neural networks that learn, on PyTorch (extra "torch").

Layers that quantize by a codebook and pass a gradient, a small trainer, autoencoders with
scikit-learn's interface. Nearest codewords are found by fastvq's kernels, on the CPU.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError('fastvq.neural needs PyTorch: pip install "fastvq[torch]"') from error

from fastvq.neural.autoencoders import VQVAE, AutoencoderCompressor, VariationalAutoencoder
from fastvq.neural.codebook import Codebook
from fastvq.neural.layers import (
    FiniteScalarQuantize,
    NotFiniteError,
    ProductVectorQuantize,
    Quantized,
    ResidualVectorQuantize,
    VectorQuantize,
)
from fastvq.neural.qat import (
    FakeQuantize,
    IntegerLayer,
    QATSpec,
    convert,
    integer_layers,
    prepare_qat,
    simulate_exact,
)
from fastvq.neural.trainer import (
    Diverged,
    Trainer,
    TrainState,
    classification_loss,
    regression_loss,
)

__all__ = [
    "VQVAE",
    "AutoencoderCompressor",
    "Codebook",
    "Diverged",
    "FakeQuantize",
    "FiniteScalarQuantize",
    "IntegerLayer",
    "NotFiniteError",
    "ProductVectorQuantize",
    "QATSpec",
    "Quantized",
    "ResidualVectorQuantize",
    "TrainState",
    "Trainer",
    "VariationalAutoencoder",
    "VectorQuantize",
    "classification_loss",
    "convert",
    "integer_layers",
    "prepare_qat",
    "regression_loss",
    "simulate_exact",
]
