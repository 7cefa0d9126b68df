"""PGD with its whole trace: the attack that several peers look at.

A. Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, section 2.1; written
here apart from the attacks of the audit, so that no peer leans on what it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.peers.interface import CountingModel
from maskaudit.threat import ThreatModel, per_point_norm

#: Steps, and step as a share of ε, of the attack that claims are usually computed with.
STEPS = 40
STEP_SHARE = 0.25

#: What torch says of an output, or an op, that has no derivative.
_NO_DERIVATIVE = ("does not require grad", "not implemented")


@dataclass(frozen=True, eq=False)
class Trace:
    """What PGD did.

    Attributes:
        last: final iterates (N, …); best: the iterates of the first success, else the final ones.
        loss: cross-entropy at every iterate, start and end included, (steps + 1, N).
        wrong: whether each iterate was misclassified, (steps + 1, N).
    """

    last: Tensor
    best: Tensor
    loss: Tensor
    wrong: Tensor

    @property
    def broken(self) -> Tensor:
        """Points with a misclassified iterate, bool (N,)."""
        return self.wrong.any(dim=0)


def input_gradient(model: CountingModel, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (N, K), cross-entropy (N,) and its input gradient (N, …), zero where the model gives none."""
    leaf = x.detach().clone().requires_grad_(True)
    scores = model(leaf)
    loss = cross_entropy(scores, y, reduction="none")
    try:
        (gradient,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
    except RuntimeError as error:
        if not any(text in str(error) for text in _NO_DERIVATIVE):
            raise
        gradient = None
    gradient = torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0.0)
    return scores.detach(), loss.detach(), gradient


def uniform_noise(x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """Points (N, …) drawn from the ball: uniform in the cube (Linf), or direction times U^(1/d) (L2); clipped."""
    if threat.norm == "Linf":
        noise = threat.eps * (2 * torch.rand(x.shape, generator=generator) - 1)
    else:
        noise = torch.randn(x.shape, generator=generator)
        radius = threat.eps * torch.rand(len(x), generator=generator) ** (1 / x[0].numel())
        noise = noise * (radius / per_point_norm(noise).clamp_min(1e-12)).view(-1, *[1] * (x.dim() - 1))
    return threat.project(x + noise, x)


def descend(
    model: CountingModel, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, steps: int = STEPS,
    step_share: float = STEP_SHARE, random_start: bool = True,
) -> Trace:  # fmt: skip
    """Run PGD on cross-entropy without early stop and keep the trace.

    Args:
        step_share: step size over ε; `steps` = 1, `step_share` = 1 from the clean point is FGSM.
    """
    generator = torch.Generator().manual_seed(seed)
    at = uniform_noise(x, threat, generator) if random_start else x.clone()
    best, found = at.clone(), torch.zeros(len(x), dtype=torch.bool)
    losses, wrongs = [], []
    for step in range(steps + 1):
        if step < steps:
            scores, loss, gradient = input_gradient(model, at, y)
        else:
            with torch.no_grad():
                scores = model(at)
                loss = cross_entropy(scores, y, reduction="none")
        wrong = scores.argmax(dim=1) != y
        best[~found] = at[~found]
        found |= wrong
        losses.append(loss)
        wrongs.append(wrong)
        if step < steps:
            at = threat.project(at + step_share * threat.eps * threat.step_direction(gradient), x)
    return Trace(at, best, torch.stack(losses), torch.stack(wrongs))
