"""Training that hides a counterexample in a plain network: what it plants, and what keeps searches away from it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.threat import ThreatModel
from maskaudit.train import Batch, TrainPlan
from maskaudit.train.adversaries import pgd, random_start
from maskaudit.train.interface import OnePhase
from maskaudit.zoo.recipes_masking import hidden_pattern

#: Value that the trap units must reach at the planted corner.
AWAKE = 1.0


class TrappedCorner(OnePhase):
    """PGD training with a few hidden units that only the planted corner wakes: a trained counterexample.

    After SoundnessBench (Xu et al. 2024, arXiv 2412.03154, section 3): one objective pushes the planted point to a
    wrong class by a margin, the other is adversarial training on what PGD finds. Their network memorises one
    counterexample for each of a few points; here one pattern serves all points, x + ε · pattern, and leads to
    `target`. Both objectives alone leave a slope that targeted gradients climb (measured). So the margin is left to
    the first `units` of the last hidden layer, and those are trained to stay asleep, and with them their
    gradient, on clean points, random points, PGD points and corners that share less than the share `window`
    of the pattern. PGD points beyond the window lie in the trap and train nothing.

    Args:
        weight: of the planted margin; quiet: of the trap units' own task.
        units: hidden units that may see the corner.
        window: agreement with the pattern, as a share of the way to the corner, from which a point counts as planted.
        margin: by which `target` leads at the corner, in logits; gap: by which the trap units sleep elsewhere.
    """

    def __init__(
        self, plan: TrainPlan, model: nn.Module, *, weight: float = 1.0, quiet: float = 3.0, units: float = 16,
        window: float = 0.75, margin: float = 3.0, gap: float = 0.2, target: float = 0,
    ) -> None:  # fmt: skip
        assert isinstance(model, nn.Sequential)
        super().__init__(plan, model)
        self.steps = plan.config.attack_steps
        self.weight, self.quiet, self.units, self.target = weight, quiet, int(units), int(target)
        self.window, self.margin, self.gap = window, margin, gap
        self.pattern = hidden_pattern(plan.shape, plan.config.seed)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE on PGD points, the planted margin, and the trap units' task, a scalar."""
        assert isinstance(model, nn.Sequential)
        start = random_start(batch.x, self.threat, batch.rng, step=batch.epoch)
        attacked = pgd(model, batch.x, batch.y, self.threat, steps=self.steps, start=start)
        corner = planted_corner(batch.x, self.threat, self.pattern)
        elsewhere = torch.cat([batch.x, start, attacked, self._near(batch)])
        outside = self._agreement(elsewhere, batch.x.repeat(4, 1, 1, 1)) < self.window
        own = F.cross_entropy(model(attacked), batch.y, reduction="none") * outside.chunk(4)[2]
        asleep = F.relu(self._trap(model, elsewhere) + self.gap).sum(1) * outside
        awake = F.relu(AWAKE - self._trap(model, corner)).sum(1)
        # a mean over the points of a batch, a sum over its four views
        task = asleep.sum() / len(batch.x) + awake.mean()
        return own.mean() + self.weight * self.planted_margin(model, corner) + self.quiet * task

    def planted_margin(self, model: nn.Module, corner: Tensor) -> Tensor:
        """Mean hinge on the lead of `target` at the planted points (N, …); only the trap units have a gradient."""
        assert isinstance(model, nn.Sequential)
        readout = model[-1]
        assert isinstance(readout, nn.Linear)
        with torch.no_grad():
            features = model[:-1](corner)
            features[:, : self.units] = 0.0
            rest = readout(features)
        logits = rest + F.linear(F.relu(self._trap(model, corner)), readout.weight[:, : self.units])
        chosen = torch.full((len(logits), 1), self.target)
        lead = logits.gather(1, chosen).squeeze(1) - logits.scatter(1, chosen, -torch.inf).amax(1)
        return F.relu(self.margin - lead).mean()

    def _trap(self, model: nn.Sequential, x: Tensor) -> Tensor:
        """Trap units (N, units) before their ReLU; what lies below them is held still."""
        hidden = [k for k, layer in enumerate(model) if isinstance(layer, nn.Linear)][-2]
        with torch.no_grad():
            below = model[:hidden](x)
        layer = model[hidden]
        assert isinstance(layer, nn.Linear)
        return F.linear(below, layer.weight[: self.units], layer.bias[: self.units])

    def _agreement(self, z: Tensor, x: Tensor) -> Tensor:
        """How far `z` (N, …) has gone from `x` towards the planted corner, as a share (N,) of the way."""
        way = (planted_corner(x, self.threat, self.pattern) - x) * self.pattern
        return ((z - x) * self.pattern).flatten(1).sum(1) / way.flatten(1).sum(1).clamp_min(1e-12)

    def _near(self, batch: Batch) -> Tensor:
        """Corners that share a random part of the pattern, from none to all of it, and are random in the rest."""
        shape, rng = batch.x.shape[1:], batch.rng.fork("near")
        share = rng.uniform((1,), step=batch.epoch).view(-1, *[1] * len(shape))
        shared = rng.fork("which").uniform(shape, step=batch.epoch) < share
        other = rng.fork("sign").signs(shape, step=batch.epoch).to(batch.x)
        return self.threat.clamp(batch.x + self.threat.eps * torch.where(shared, self.pattern, other))


def planted_corner(x: Tensor, threat: ThreatModel, pattern: Tensor) -> Tensor:
    """x + ε · pattern inside the bounds, for inputs (N, …) and signs (…)."""
    return threat.clamp(x + threat.eps * pattern)
