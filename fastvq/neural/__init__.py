"""Quantization inside neural networks that learn, on PyTorch (extra "torch").

Layers that quantize by a codebook and pass a gradient, a small trainer, autoencoders with
scikit-learn's interface. Nearest codewords are found by fastvq's kernels, on the CPU.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError('fastvq.neural needs PyTorch: pip install "fastvq[torch]"') from error

from fastvq.neural.autoencoders import AutoencoderCompressor
from fastvq.neural.classifier import VQClassifier
from fastvq.neural.codebook import Codebook
from fastvq.neural.conversion import convert
from fastvq.neural.distill import (
    DistilledClassifier,
    distillation_loss,
    feature_loss,
    logit_loss,
    soft_target_loss,
)
from fastvq.neural.integers import simulate_exact
from fastvq.neural.layers import (
    FiniteScalarQuantize,
    Frozen,
    NotFiniteError,
    ProductResidualVectorQuantize,
    ProductVectorQuantize,
    Quantized,
    ResidualVectorQuantize,
    VectorQuantize,
)
from fastvq.neural.lstm import CodebookLinear, VQLSTMClassifier, stored_numbers
from fastvq.neural.optim import EightBit, IntegerSGD
from fastvq.neural.pruning import GradualPruning, group_lasso, l1
from fastvq.neural.qat import (
    FakeQuantize,
    IntegerLayer,
    QATSpec,
    integer_layers,
    prepare_qat,
)
from fastvq.neural.trainer import (
    Diverged,
    Trainer,
    TrainState,
    classification_loss,
    regression_loss,
)
from fastvq.neural.variational import VariationalAutoencoder
from fastvq.neural.vqvae import VQVAE

__all__ = [
    "VQVAE",
    "AutoencoderCompressor",
    "Codebook",
    "CodebookLinear",
    "DistilledClassifier",
    "Diverged",
    "EightBit",
    "FakeQuantize",
    "FiniteScalarQuantize",
    "Frozen",
    "GradualPruning",
    "IntegerLayer",
    "IntegerSGD",
    "NotFiniteError",
    "ProductResidualVectorQuantize",
    "ProductVectorQuantize",
    "QATSpec",
    "Quantized",
    "ResidualVectorQuantize",
    "TrainState",
    "Trainer",
    "VQClassifier",
    "VQLSTMClassifier",
    "VariationalAutoencoder",
    "VectorQuantize",
    "classification_loss",
    "convert",
    "distillation_loss",
    "feature_loss",
    "group_lasso",
    "integer_layers",
    "l1",
    "logit_loss",
    "prepare_qat",
    "regression_loss",
    "simulate_exact",
    "soft_target_loss",
    "stored_numbers",
]
