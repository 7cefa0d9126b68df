"""Diagnose, repair, attack again: the attack that the trace suggests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.interface import Attempt, BestCandidates
from maskaudit.attacks.losses import Loss
from maskaudit.repairs.interface import Repair
from maskaudit.repairs.propose import fallbacks, propose
from maskaudit.repairs.target import repaired_target
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from maskaudit.trace import trace_model

#: Losses in the order they are tried on the points still standing.
LOSSES: tuple[Loss, ...] = ("margin", "rescaled", "targeted-margin")


def repaired_attacks(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    rng: PointRNG,
    steps: int = 50,
    targets: int = 3,
    losses: Sequence[Loss] = LOSSES,
    repairs: Sequence[Repair] | None = None,
) -> Attempt:
    """Auto-PGD through the repaired model: all repairs together, then each alone, then the identity
    across whole modules, each on the points still standing.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        steps: gradient steps per run; targets: wrong classes of the targeted loss.
        repairs: what to repair; by default what a trace of the first points proposes.

    Returns:
        The best candidate per point by the margin of the original model. Without any repair to make, the
        clean points at no cost beyond the trace.
    """
    last_resorts: tuple[Repair, ...] = ()
    if repairs is None and len(x):
        trace = trace_model(target, x, y, eps=per_coordinate(threat, x))
        repairs, last_resorts = propose(trace), fallbacks(trace)
    best = BestCandidates(x)
    queries = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    first = torch.full_like(queries, -1)
    standing = torch.arange(len(x), device=x.device)
    for number, chosen in enumerate(repair_sets(repairs or (), last_resorts)):
        for loss in losses:
            if not len(standing):
                return Attempt(best.examples, first, queries)
            with repaired_target(target, chosen) as repaired:
                attempt = apgd(
                    repaired, x[standing], y[standing], threat=threat, loss=loss, steps=steps, targets=targets,
                    rng=rng.select(standing).fork(f"repaired {number} {loss}"),
                )  # fmt: skip
            reached = target.margin(target.scores(attempt.examples), y[standing])
            best.offer(standing, attempt.examples, reached)
            hit = (attempt.first_success >= 0) & (reached > 0) & (first[standing] < 0)
            first[standing[hit]] = queries[standing[hit]] + attempt.first_success[hit]
            queries[standing] += attempt.queries
            if target.stop_early:
                standing = standing[~(reached > 0)]
    return Attempt(best.examples, first, queries)


def repair_sets(repairs: Sequence[Repair], last_resorts: Sequence[Repair] = ()) -> tuple[tuple[Repair, ...], ...]:
    """All repairs together, then each alone, then whole modules with the output repairs; nothing for nothing."""
    if not repairs:
        return ()
    alone = tuple((repair,) for repair in repairs) if len(repairs) > 1 else ()
    output = tuple(repair for repair in repairs if repair.changes_scores)
    modules = ((*last_resorts, *output),) if last_resorts else ()
    return (tuple(repairs), *alone, *modules)


def per_coordinate(threat: ThreatModel, x: Tensor) -> float:
    """Radius per coordinate at which the gradient ought to be useful: ε, or ε/√d for L2."""
    return threat.eps if threat.norm == "Linf" else threat.eps / float(x[0].numel()) ** 0.5
