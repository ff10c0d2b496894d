"""Codebook estimators, with scikit-learn's interface: one quantizer a file."""

from fastvq.vq._saving import load
from fastvq.vq.additive import AdditiveQuantizer
from fastvq.vq.binary import BinaryQuantizer
from fastvq.vq.budget import fit_to_budget, plot_curve
from fastvq.vq.product import ProductQuantizer
from fastvq.vq.residual import ResidualQuantizer
from fastvq.vq.scalar import ScalarQuantizer
from fastvq.vq.vector import VectorQuantizer

__all__ = [
    "AdditiveQuantizer",
    "BinaryQuantizer",
    "ProductQuantizer",
    "ResidualQuantizer",
    "ScalarQuantizer",
    "VectorQuantizer",
    "fit_to_budget",
    "load",
    "plot_curve",
]
