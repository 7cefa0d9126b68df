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
    "boundary": "Let the gradient pass the whole module {module} as if it were the identity.",
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
        in_place = op.location.op.endswith("_") and not op.location.op.endswith("__")
        by_node = op.kind == "node" or (in_place and culprit.remedy == "straight-through")
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


def fallbacks(trace: Trace) -> tuple[Repair, ...]:
    """For each culprit, the identity across the smallest enclosing module of equal input and output shape."""
    paths: list[str] = []
    for culprit in trace.culprits:
        if culprit.remedy == "none":
            continue
        module = trace.ops[culprit.op].location.module if culprit.op >= 0 else culprit.location.module
        around = [p for p in trace.identities if module == p or module.startswith(f"{p}.")]
        if around and max(around, key=len) not in paths:
            paths.append(max(around, key=len))
    return tuple(
        Repair("boundary", Location(path, "module"), "", _SENTENCES["boundary"].format(module=path)) for path in paths
    )
