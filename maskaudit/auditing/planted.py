"""Planted examples: problems on the model's own scores whose answer is known to lie inside the ball.

After Zimmermann et al. 2022. For each of some clean points, random corners of the
ball are scored by the model; the corner whose scores differ most from the others
is planted: a linear readout of the (standardised) scores is chosen that puts it, and
none of the other corners, on the far side; of a random model also when it is asked
again. An attack that cannot find that side of a ball which is known to reach it
would also have missed a hidden example.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.noise import surface_noise
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.rescore import rescore
from maskaudit.threat import ThreatModel

#: Random corners scored per point; random search then succeeds in about one draw of these.
CORNERS = 256

#: How far towards the planted corner, from the next best one, the decision threshold lies.
THRESHOLD_POSITION = 0.5

#: Ridge on the covariance of the scores, relative to its trace: they are often collinear.
RIDGE = 1e-4


@dataclass(frozen=True)
class PlantedOutcome:
    """Planted problems and how many each search solved."""

    problems: int
    found: int
    random_found: int


class PlantedModel(nn.Module):
    """Two classes per anchor: 0 where the clean point lies, 1 beyond the planted threshold.

    Args:
        target: the audited model, asked for scores with their graph.
        anchors: clean points (M, …), pairwise further apart than 2ε, so that every input belongs to one.
        readout: (M, K) weights on the scores; `offset`: (M,).
    """

    def __init__(self, target: Target, anchors: Tensor, readout: Tensor, offset: Tensor, threat: ThreatModel):
        super().__init__()
        self.target, self.anchors, self.readout, self.offset, self.threat = target, anchors, readout, offset, threat

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 2) of the planted problem each input belongs to."""
        order = torch.inf if self.threat.norm == "Linf" else 2.0
        nearest = torch.cdist(x.detach().flatten(1), self.anchors.flatten(1), p=order).argmin(dim=1)
        scores = self.target.differentiable_scores(x).double()
        value = (scores * self.readout[nearest]).sum(dim=1) - self.offset[nearest]
        return torch.stack([torch.zeros_like(value), value], dim=1).float()


def plant(
    target: Target, x: Tensor, *, threat: ThreatModel, rng: PointRNG, problems: int
) -> tuple[PlantedModel, Tensor]:
    """Build up to `problems` planted problems on points `x` (N, …).

    Returns:
        The planted model and the rows of `x` (M,) that serve as anchors; M may be 0 when scores never vary.
    """
    rows = _far_apart(x, threat, most=2 * problems)
    clean = x[rows]
    drawn = torch.stack(
        [target.scores(surface_noise(clean, threat=threat, rng=rng.select(rows), step=step)) for step in range(CORNERS)]
    ).double()  # (CORNERS, M, K)
    centred = drawn - drawn.mean(dim=0)
    covariance = torch.einsum("cmi,cmj->mij", centred, centred) / CORNERS
    spread = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)
    usable = (spread > 0) & torch.isfinite(spread)
    k = drawn.shape[2]
    ridge = (RIDGE * spread.clamp_min(1e-300))[:, None, None] * torch.eye(k, dtype=torch.float64)
    whitened = torch.linalg.solve((covariance + ridge), centred.permute(1, 2, 0))  # (M, K, CORNERS)
    outlyingness = (centred.permute(1, 2, 0) * whitened).sum(dim=1)  # (M, CORNERS)
    planted = outlyingness.argmax(dim=1)
    readout = whitened[torch.arange(len(rows)), :, planted]  # (M, K)
    values = torch.einsum("cmk,mk->mc", drawn, readout)
    best = values.gather(1, planted[:, None]).squeeze(1)
    others = values.scatter(1, planted[:, None], -torch.inf).amax(dim=1)
    own = (target.scores(clean).double() * readout).sum(dim=1)
    threshold = others + THRESHOLD_POSITION * (best - others)
    if target.random:  # what noise alone put there is no answer: the corner has to hold when it is asked again
        for step in planted.unique().tolist():
            there = (planted == step).nonzero().squeeze(1)
            corner = surface_noise(clean[there], threat=threat, rng=rng.select(rows[there]), step=step)
            best[there] = torch.minimum(best[there], (target.scores(corner).double() * readout[there]).sum(dim=1))
    usable &= (best > threshold) & (own < threshold)
    keep = usable.nonzero().squeeze(1)[:problems]
    scale = 1 / (best - own)[keep].clamp_min(1e-300)
    model = PlantedModel(target, clean[keep], readout[keep] * scale[:, None], threshold[keep] * scale, threat)
    return model, rows[keep]


def solve_planted(
    target: Target, x: Tensor, specs: tuple[AttackSpec, ...], *, threat: ThreatModel, rng: PointRNG, problems: int = 32,
) -> PlantedOutcome:  # fmt: skip
    """Run attacks on planted problems.

    Args:
        x: correctly classified points (N, …).
        specs: the attacks whose power is asked; a problem counts as found when any of them solves it.
        rng: random numbers for these points.
    """
    model, rows = plant(target, x, threat=threat, rng=rng.fork("plant"), problems=problems)
    if not len(rows):
        return PlantedOutcome(0, 0, 0)
    anchors, labels = x[rows], torch.zeros(len(rows), dtype=torch.int64)
    stream = rng.select(rows)
    with Target(model, bounds=target.bounds, batch_size=target.batch_size, seed=target.seed) as planted:
        fresh = torch.zeros(len(rows), dtype=torch.bool)
        for step in range(CORNERS, 2 * CORNERS):
            fresh |= (
                planted.raw(surface_noise(anchors, threat=threat, rng=stream.fork("fresh"), step=step)).argmax(1) == 1
            )
        found = torch.zeros(len(rows), dtype=torch.bool)
        for spec in specs:
            unbroken = (~found).nonzero().squeeze(1)
            if not len(unbroken):
                break
            with target.snapping():
                attempt = spec.run(
                    planted, anchors[unbroken], labels[unbroken], threat=threat,
                    rng=stream.select(unbroken).fork(spec.name), **spec.settings,
                )  # fmt: skip
            examples = threat.settle(attempt.examples, anchors[unbroken])
            score = rescore(planted.raw, examples, anchors[unbroken], labels[unbroken], threat=threat)
            found[unbroken] |= score.broken
    return PlantedOutcome(len(rows), int(found.sum()), int(fresh.sum()))


def _far_apart(x: Tensor, threat: ThreatModel, *, most: int) -> Tensor:
    """At most `most` rows of `x`, greedily chosen, that are pairwise further apart than 2ε in the threat norm."""
    chosen: list[int] = []
    for row in range(len(x)):
        if len(chosen) == most:
            break
        if not chosen or bool((threat.distance(x[chosen], x[row].expand_as(x[chosen])) > 2 * threat.eps).all()):
            chosen.append(row)
    return torch.tensor(chosen, dtype=torch.int64)
