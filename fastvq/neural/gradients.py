"""Gradients through a step that has none.

The nearest codeword q of x does not change with x, so its derivative is zero almost everywhere. Two
estimators let an encoder learn all the same; in the forward direction both give q to the last bit.

- straight-through: ∂q/∂x := I (Bengio et al., arXiv:1308.3432; van den Oord et al., "Neural
  discrete representation learning", NeurIPS 2017);
- rotation: q = λ R x with λ = |q|/|x| and R the rotation of x onto q in their plane; both are taken
  as constants, so that ∂q/∂x := λ R, and the gradient keeps its angle to the codeword (Fifty et
  al., "Restructuring vector quantization with the rotation trick", arXiv:2410.06424).
"""

import torch
from torch.autograd import Function

from fastvq import kernels

__all__ = ["look_up", "rotate", "straight_through"]


def straight_through(x, q):
    """q, with the gradient of x: `x` and `q` of any one shape."""
    return q.detach() + (x - x.detach())


def rotate(x, q):
    """q, with the gradient of λ R x. Rows of length zero get that of `straight_through`.

    Parameters
    ----------
    x, q : Tensor of shape (n, d)

    Returns
    -------
    Tensor of shape (n, d)
    """
    return _Rotated.apply(x, q)


def look_up(codebook, codes):
    """Codewords by their codes; the gradient of a codeword is the sum over its members.

    That sum runs in float64 and in the order of rows: the same bits at any number of threads.

    Parameters
    ----------
    codebook : Tensor of shape (k, d)
    codes : ndarray of int32 of shape (n,)

    Returns
    -------
    Tensor of shape (n, d)
    """
    return _LookedUp.apply(codebook, codes)


class _Rotated(Function):
    @staticmethod
    def forward(ctx, x, q):
        ctx.save_for_backward(x, q)
        return q.clone()

    @staticmethod
    def backward(ctx, gradient):
        x, q = ctx.saved_tensors
        long_x, long_q = x.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True)
        tiny = torch.finfo(x.dtype).tiny
        unit_x, unit_q = x / long_x.clamp_min(tiny), q / long_q.clamp_min(tiny)
        # R = I − 2 r rᵀ + 2 q̂ x̂ᵀ with r halfway between: two reflections. Transposed here.
        # Where q̂ = −x̂ no r is better than another, and r = 0 leaves a reflection.
        middle = torch.nn.functional.normalize(unit_x + unit_q, dim=1)
        turned = gradient - 2 * middle * (middle * gradient).sum(1, keepdim=True)
        turned += 2 * unit_x * (unit_q * gradient).sum(1, keepdim=True)
        turned *= long_q / long_x.clamp_min(tiny)
        lost = (long_x <= tiny) | (long_q <= tiny)
        return torch.where(lost, gradient, turned), None


class _LookedUp(Function):
    @staticmethod
    def forward(ctx, codebook, codes):
        ctx.codes, ctx.n_codewords = codes, len(codebook)
        return codebook[torch.from_numpy(codes).long().to(codebook.device)]

    @staticmethod
    def backward(ctx, gradient):
        rows = on_cpu(gradient)
        sums, _ = kernels.sums(rows, ctx.codes, ctx.n_codewords, n_threads=torch.get_num_threads())
        return torch.from_numpy(sums).to(gradient), None


def on_cpu(rows):
    """A tensor's rows as an array that kernels read: the same memory where it is on the CPU."""
    rows = rows.detach()
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    return rows.cpu().numpy()
