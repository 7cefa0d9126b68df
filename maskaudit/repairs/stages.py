"""Run one stage of a plan on some points."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.ball import finite
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.losses import Loss, build_objective
from maskaudit.attacks.pgd import pgd, random_start
from maskaudit.repairs.dormant import DormantUnits, dormant_units
from maskaudit.repairs.expectation import expected
from maskaudit.repairs.sequence import Relay
from maskaudit.repairs.stand_in import fit_stand_in
from maskaudit.repairs.target import repaired_target
from maskaudit.rng import PointRNG
from maskaudit.settings.plan import Repair, Stage
from maskaudit.target import Objective, Target
from maskaudit.threat import ThreatModel

#: Steps along a random direction in score space before the attack, each of length ε (Tashiro et al. 2020, section 4).
DIVERSIFYING_STEPS = 2
#: Share of the steps of a margin decomposition that climb one term alone (Ma et al. 2020, section 4).
SINGLE_TERM_SHARE = 0.5
#: First step of those in units of ε; it falls to zero along half a cosine.
SINGLE_TERM_STEP = 2.0
TERMS: tuple[Loss, ...] = ("label-term", "other-term")


@dataclass(frozen=True)
class Learnt:
    """What some repairs need: stand-ins of blocks by module path, and the dormant units if they are to be opened."""

    stand_ins: dict[str, nn.Module]
    dormant: DormantUnits | None = None


class StandIns:
    """What repairs learn from the audited points, each when it is first asked for: stand-ins of blocks, dormant units.

    Args:
        target: the open target; x: points (N, …) to learn from.
    """

    def __init__(self, target: Target, x: Tensor, *, threat: ThreatModel, seed: int) -> None:
        self._target, self._x, self._threat, self._seed = target, x.to(target.device), threat, seed
        self._fitted: dict[str, nn.Module] = {}
        self._dormant: DormantUnits | None = None

    def dormant(self) -> DormantUnits:
        """Units that are off on all of the points."""
        if self._dormant is None:
            self._dormant = dormant_units(self._target, self._x)
        return self._dormant

    def learnt(self, repairs: tuple[Repair, ...]) -> Learnt:
        """What these repairs need.

        Raises:
            AttackUnavailable: a block cannot be learnt.
        """
        wanted = {}
        for repair in repairs:
            path = repair.location.module
            if repair.remedy == "stand-in":
                if path not in self._fitted:
                    self._fitted[path] = fit_stand_in(
                        self._target, self._x, repair, threat=self._threat, seed=self._seed
                    )  # fmt: skip
                wanted[path] = self._fitted[path]
        return Learnt(wanted, self.dormant() if any(repair.remedy == "open" for repair in repairs) else None)


def run_stage(
    target: Target, x: Tensor, y: Tensor, stage: Stage, *, threat: ThreatModel, rng: PointRNG, stand_ins: Learnt,
    candidates: Tensor | None = None,
) -> Attempt:  # fmt: skip
    """One stage of the adaptive plan: a loss, a step size and repairs, as a trace of the first points suggests them.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        stage: with repairs that fit this model.
        stand_ins: what its repairs have learnt.
        candidates: the best example (N, …) that earlier attacks found per point, for stages that start there.

    Returns:
        The best candidate per point by the margin of the original model.
    """
    relay = Relay(target, x, y)
    mean = expected(target, stage.draws, abs(rng.key) % 2**31)
    with _attacked(mean, stage.repairs, stand_ins) as attacked:
        for restart in range(stage.restarts):
            unbroken = relay.unbroken
            if not len(unbroken):
                break
            here = rng.select(unbroken).fork(f"restart {restart}")
            begun = None if candidates is None else candidates[unbroken]
            relay.book(_run(attacked, x[unbroken], y[unbroken], stage, restart, threat, here, begun))
    return relay.finish()


@contextlib.contextmanager
def _attacked(target: Target, repairs: tuple[Repair, ...], stand_ins: Learnt) -> Iterator[Target]:
    if not repairs:
        yield target
        return
    with repaired_target(target, repairs, stand_ins.stand_ins, stand_ins.dormant) as repaired:
        yield repaired


def _run(
    target: Target, x: Tensor, y: Tensor, stage: Stage, restart: int, threat: ThreatModel, rng: PointRNG,
    candidates: Tensor | None,
) -> Attempt:  # fmt: skip
    """One run from the stage's start, with its loss and steps."""
    starts = _starts(target, x, y, stage, threat, rng, candidates if restart == 0 else None)
    spent = DIVERSIFYING_STEPS if stage.start == "diversified" else 0
    steps = stage.steps
    loss: Loss
    if stage.loss == "margin-decomposition":
        alone = max(1, math.floor(stage.steps * SINGLE_TERM_SHARE))
        term = build_objective(TERMS[restart % 2], y, target.scores(x), reject_class=target.reject_class)
        sizes = [SINGLE_TERM_STEP * threat.eps * (1 + math.cos(math.pi * k / alone)) / 2 for k in range(alone)]
        starts = ascend(target, x, starts, term, sizes, threat)
        spent, steps, loss = spent + alone, max(1, stage.steps - alone), "margin"
    else:
        loss = stage.loss
    if stage.step is None:
        attempt = apgd(
            target, x, y, threat=threat, rng=rng, loss=loss, steps=steps, targets=stage.targets, starts=starts
        )
    else:
        attempt = pgd(
            target, x, y, threat=threat, rng=rng, loss=loss, steps=steps, relative_step=stage.step, starts=starts
        )
    first = torch.where(attempt.first_success >= 0, attempt.first_success + spent, attempt.first_success)
    return Attempt(attempt.examples, first, attempt.queries + spent)


def _starts(
    target: Target, x: Tensor, y: Tensor, stage: Stage, threat: ThreatModel, rng: PointRNG, candidates: Tensor | None
) -> Tensor:
    if stage.start == "clean":
        return x.clone()
    if stage.start == "challenger" and candidates is not None:
        return threat.project(candidates, x)
    start = random_start(x, threat=threat, rng=rng)
    return start if stage.start != "diversified" else diversified(target, x, start, threat=threat, rng=rng)


def diversified(target: Target, x: Tensor, start: Tensor, *, threat: ThreatModel, rng: PointRNG) -> Tensor:
    """Points (N, …) that differ in their scores: steps along ∇(wᵀ scores), w uniform in [−1, 1] per point and class
    (Tashiro et al. 2020, "Diversity can be transferred", eq. 2)."""
    classes = target.scores(x[:1]).shape[1]
    weights = (2 * rng.fork("directions").uniform((classes,)) - 1).to(x)

    def along(scores: Tensor, rows: Tensor) -> Tensor:
        return (weights[rows] * scores).sum(dim=1)

    return ascend(target, x, start, along, [threat.eps] * DIVERSIFYING_STEPS, threat)


def ascend(
    target: Target, x: Tensor, start: Tensor, objective: Objective, sizes: list[float], threat: ThreatModel
) -> Tensor:
    """The last iterate (N, …) of projected ascent from `start` with the given step sizes in input units."""
    iterate = start
    for size in sizes:
        gradient = finite(target.value_and_grad(iterate, objective).grad)
        iterate = threat.project(iterate + size * threat.step_direction(gradient), x)
    return iterate
