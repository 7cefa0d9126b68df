"""Diagnose, repair, attack again: the attack that the trace suggests, outside an audit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from maskaudit.attacks.interface import AttackUnavailable, Attempt
from maskaudit.repairs.blame import traced
from maskaudit.repairs.plan import Stage
from maskaudit.repairs.planner import make_plan
from maskaudit.repairs.propose import openings
from maskaudit.repairs.relay import Relay
from maskaudit.repairs.stages import StandIns, run_stage
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel


def repaired_attacks(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, steps: int = 50, targets: int = 3
) -> Attempt:
    """The stages through repairs of the plan that a trace of the first points suggests.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        steps: gradient steps per run; targets: wrong classes of the targeted loss.

    Returns:
        The best candidate per point by the margin of the original model. Without any repair to make, the
        clean points at no cost beyond the trace.
    """
    return _planned(target, x, y, ("repaired",), threat=threat, rng=rng, steps=steps, targets=targets)


def adaptive_attacks(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, row: str = "adaptive",
    steps: int = 50, targets: int = 3,
) -> Attempt:  # fmt: skip
    """The white-box stages of the same plan: those on cross-entropy ("adaptive-ce") or the others."""
    return _planned(target, x, y, (row,), threat=threat, rng=rng, steps=steps, targets=targets)


def _planned(
    target: Target, x: Tensor, y: Tensor, rows: Sequence[str], *, threat: ThreatModel, rng: PointRNG, steps: int,
    targets: int,
) -> Attempt:  # fmt: skip
    stages: tuple[Stage, ...] = ()
    stand_ins = StandIns(target, x, threat=threat, seed=target.seed)
    if len(x):
        trace = traced(target, x, y, eps=per_coordinate(threat, x))
        dormant = openings(stand_ins.dormant(), trace)
        stages = make_plan(trace, steps=steps, targets=targets, random=target.random, dormant=dormant).stages
    relay = Relay(target, x, y)
    for number, stage in enumerate(stages):
        unbroken = relay.unbroken
        if stage.row not in rows or stage.purpose != "attack" or not len(unbroken):
            continue
        try:
            attempt = run_stage(
                target, x[unbroken], y[unbroken], stage, threat=threat, stand_ins=stand_ins.learnt(stage.repairs),
                rng=rng.select(unbroken).fork(f"stage {number}"), candidates=relay.best.examples[unbroken],
            )  # fmt: skip
        except AttackUnavailable:
            continue
        relay.book(attempt)
    return relay.finish()


def per_coordinate(threat: ThreatModel, x: Tensor) -> float:
    """Radius per coordinate at which the gradient ought to be useful: ε, or ε/√d for L2."""
    return threat.eps if threat.norm == "Linf" else threat.eps / float(x[0].numel()) ** 0.5
