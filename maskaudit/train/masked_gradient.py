"""The quantities of gradient adversarial training, each a plain differentiable function.

Sinha, Chen, Badrinarayanan, Rabinovich 2018, "Gradient Adversarial Training of Neural
Networks" (arXiv 1806.08028). Notation: logits a (N, K), p = softmax(a), label y,
auxiliary network h, and the mask 𝟙_y that keeps the entry of the true class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def masked_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits a (N, K) and masked input gradient g (N, …), both differentiable in the model's parameters.

    The cross-entropy's gradient signal at the logits, p − e_y, is masked by 𝟙_y before it
    is propagated to the input: v = (p − e_y) ⊙ e_y, g = Jᵀv = (p_y − 1) ∇ₓ a_y. One
    vector-Jacobian product gives it per point; nothing is averaged over the batch. p_y stays
    differentiable, so derivatives of a function of g are exact. With batch normalisation in
    training mode the rows also carry the (small) influence of each point on the others.
    """
    x = x.detach().requires_grad_(True)
    logits = model(x)
    label = y.unsqueeze(1)
    signal = torch.expm1(F.log_softmax(logits, 1).gather(1, label))  # p_y − 1 without cancellation
    v = torch.zeros_like(logits).scatter(1, label, signal)
    (g,) = torch.autograd.grad(logits, x, grad_outputs=v, create_graph=True)
    return logits, g


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits a (N, K) and the whole input gradient of each point's cross-entropy (N, …), both differentiable."""
    x = x.detach().requires_grad_(True)
    logits = model(x)
    (g,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x, create_graph=True)
    return logits, g


def greace_term(logits: Tensor, auxiliary_logits: Tensor, y: Tensor) -> Tensor:
    """GREACE's addition to the cross-entropy, a scalar: mean over points of Σ_{j≠y} S_j a_j.

    S = softmax(h(g)) is a constant here, so that the gradient of CE + β · term at the
    logits of one point is p − e_y + β S ⊙ (1 − e_y), which is equation 6 of the paper:
    classes that the gradient is confused with are pushed further down. Linear in the
    logits, hence unbounded below: without normalisation layers the logits drift.
    """
    return (_confused(auxiliary_logits, y) * logits).sum(1).mean()


def zero_sum_term(logits: Tensor, auxiliary_logits: Tensor, y: Tensor) -> Tensor:
    """`greace_term` less Σ_{j≠y} S_j a_y: its gradient at the logits sums to zero, so their sum does not drift.

    Their spread still may: the term is unbounded below as well. Not in the paper.
    """
    weights = _confused(auxiliary_logits, y)
    return (weights * (logits - logits.gather(1, y.unsqueeze(1)))).sum(1).mean()


def bounded_term(logits: Tensor, auxiliary_logits: Tensor, y: Tensor) -> Tensor:
    """−mean Σ_{j≠y} S_j log(1 − p_j), never negative: it ends where the confused classes have no probability.

    log(1 − p_j) is computed as a log-sum-exp over the other classes, which is exact where p_j rounds to 1. Not in
    the paper.
    """
    others = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    without = logits.unsqueeze(1).masked_fill(others, -torch.inf).logsumexp(2)
    log_rest = without - logits.logsumexp(1, keepdim=True)
    return -(_confused(auxiliary_logits, y) * log_rest).sum(1).mean()


#: GREACE's addition to the cross-entropy by the name of `--greace`.
GREACE_TERMS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "paper": greace_term,
    "zero-sum": zero_sum_term,
    "bounded": bounded_term,
}


def _confused(auxiliary_logits: Tensor, y: Tensor) -> Tensor:
    """S = softmax(h(g)) (N, K) without the true class, as a constant."""
    return auxiliary_logits.detach().softmax(1).scatter(1, y.unsqueeze(1), 0.0)


def reverse_gradient(value: Tensor, factor: float) -> Tensor:
    """`value` unchanged forwards; its gradient times −`factor` backwards (Ganin and Lempitsky 2015, section 3.1)."""
    return _GradientReversal.apply(value, factor)  # type: ignore[no-untyped-call]


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None
