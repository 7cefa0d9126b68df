"""Which repairs a trace calls for."""

from __future__ import annotations

from maskaudit.repairs.interface import Repair
from maskaudit.results import Location
from maskaudit.trace.records import Culprit, Op, Remedy, Trace

_SENTENCES: dict[Remedy, str] = {
    "straight-through": "Let the gradient pass {op} as if it were the identity.",
    "reattach": "Tie the result of {op} to its input with a soft stand-in.",
    "enable-grad": "Record the ops under no_grad after all.",
    "function-identity": "Replace the backward of {op} by the identity.",
    "entry": "Tie the tensor that comes back from outside torch to the one that left.",
    "soften": "Give {op} a tempered or leaky backward.",
    "mute": "Send no gradient through {op}.",
    "gate-identity": "Let the gradient pass {op} as if its mask were open.",
    "ignore-hook": "Do not register the hook that rewrites the gradient.",
    "tap": "Read the scores before {op}.",
    "rescale": "Divide the logits by {scale:.3g}.",
}


def propose(trace: Trace) -> tuple[Repair, ...]:
    """One repair for each culprit that has a remedy, most certain first; nothing for a healthy model."""
    repairs: list[Repair] = []
    for culprit in trace.culprits:
        if culprit.remedy == "none":
            continue
        repair = _repair(culprit, trace.ops[culprit.op] if culprit.op >= 0 else None)
        if not any((repair.remedy, repair.location) == (other.remedy, other.location) for other in repairs):
            repairs.append(repair)
    return tuple(repairs)


def _repair(culprit: Culprit, op: Op | None) -> Repair:
    where: Location = culprit.location
    by_node = False
    if op is not None:
        by_node = op.kind == "node" or (op.location.op.endswith("_") and culprit.remedy == "straight-through")
        if culprit.remedy not in ("function-identity", "enable-grad"):
            where = op.location
    return Repair(
        remedy=culprit.remedy,
        location=where,
        mechanism=culprit.mechanism,
        sentence=_SENTENCES[culprit.remedy].format(op=where.op, scale=culprit.scale),
        scale=culprit.scale,
        by_node=by_node,
    )
