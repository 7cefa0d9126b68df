"""Diagnose, repair, attack again on tensors: the stages of a plan, run as an audit runs them but without its ledger."""

from __future__ import annotations

from torch import Tensor

from maskaudit.attacks.interface import AttackUnavailable, Attempt
from maskaudit.repairs import make_plan
from maskaudit.repairs.blame import traced
from maskaudit.repairs.propose import openings
from maskaudit.repairs.sequence import Relay
from maskaudit.repairs.stages import StandIns, run_stage
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel


def repaired_attacks(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, steps: int = 50, targets: int = 3
) -> Attempt:
    """Attack points x (N, …) with labels y (N,) through the repairs that a trace of them suggests."""
    stand_ins, relay = StandIns(target, x, threat=threat, seed=target.seed), Relay(target, x, y)
    trace = traced(target, x, y, eps=threat.per_coordinate(x))
    dormant = openings(stand_ins.dormant(), trace)
    plan = make_plan(trace, steps=steps, targets=targets, random=target.random, dormant=dormant)
    for number, stage in enumerate(plan.stages):
        unbroken = relay.unbroken
        if stage.row != "repaired" or stage.purpose != "attack" or not len(unbroken):
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
