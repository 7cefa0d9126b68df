"""Which repairs a trace calls for."""

from __future__ import annotations

import dataclasses

from maskaudit.errors import UsageError
from maskaudit.repairs.dormant import DormantUnits
from maskaudit.results import Location
from maskaudit.settings.plan import Remedy, Repair, repair_key
from maskaudit.trace.branches import modules_around
from maskaudit.trace.records import Culprit, Op, Trace
from maskaudit.trace.rectifiers import is_rectifier
from maskaudit.verdict.numerals import number

_SENTENCES: dict[Remedy, str] = {
    "straight-through": "Treat {op} as the identity in the backward pass.",
    "reattach": "Tie the result of {op} to its input with a soft stand-in.",
    "enable-grad": "Record the ops under no_grad after all.",
    "function-forward": "Replace the backward of {op} by the derivative of its own forward.",
    "entry": "Tie the tensor that comes back from outside torch to the one that left.",
    "soften": "Give {op} a tempered or leaky backward.",
    "keep-saved": "Keep a copy of what {op} writes over, or finds written over, for the backward pass.",
    "mute": "Send no gradient through {op}.",
    "gate-identity": "Let the gradient pass {op} as if its mask were open.",
    "ignore-hook": "Do not register the hook that rewrites the gradient.",
    "tap": "Read the scores before {op}.",
    "boundary": "Treat the whole module {module} as the identity in the backward pass.",
    "rescale": "Divide the logits by {scale}.",
    "carry": "Give every hard choice, comparison, rounding and cut a soft stand-in.",
    "prefix": "Treat everything before {module} as the identity in the backward pass.",
    "open": "Let the gradient pass the units of {op} that fire on none of the audited points, as if they were on.",
    "stand-in": "Let the gradient pass {module} through a small network that learnt what it does.",
}


def propose(trace: Trace) -> tuple[Repair, ...]:
    """One repair for each culprit that has a remedy, most certain first; nothing for a healthy model."""
    repairs: list[Repair] = []
    for culprit in trace.culprits:
        if culprit.remedy == "none":
            continue
        if culprit.remedy == "boundary":
            repair = _passed_by(culprit, trace)
        else:
            repair = _repair(culprit, trace.ops[culprit.op] if culprit.op >= 0 else None)
        if repair is not None and not any(
            (repair.remedy, repair.location) == (other.remedy, other.location) for other in repairs
        ):
            repairs.append(repair)
    return tuple(repairs)


def _passed_by(culprit: Culprit, trace: Trace) -> Repair | None:
    """The identity across the smallest module around the culprit; in the root itself, across all preprocessing."""
    path = _enclosing(culprit.location.module, trace)
    if path is not None:
        return dataclasses.replace(_on_module("boundary", path), mechanism=culprit.mechanism)
    first = _after_preprocessing(trace)
    return dataclasses.replace(_on_module("prefix", first[0]), mechanism=culprit.mechanism) if first else None


def _enclosing(module: str, trace: Trace) -> str | None:
    """The smallest module of equal input and output shape that is, or is around, the given one."""
    around = [p for p in trace.identities if module == p or module.startswith(f"{p}.")]
    return max(around, key=len) if around else None


def _repair(culprit: Culprit, op: Op | None) -> Repair:
    where: Location = culprit.location
    by_node = False
    if op is not None:
        in_place = op.location.op.endswith("_") and not op.location.op.endswith("__")
        by_node = op.kind == "node" or (in_place and culprit.remedy == "straight-through")
        if culprit.remedy not in ("function-forward", "enable-grad"):
            where = op.location
    return Repair(
        remedy=culprit.remedy,
        location=where,
        mechanism=culprit.mechanism,
        sentence=_SENTENCES[culprit.remedy].format(op=where.op, module=where.module, scale=number(culprit.scale)),
        scale=culprit.scale,
        by_node=by_node,
    )


def openings(units: DormantUnits, trace: Trace) -> tuple[Repair, ...]:
    """One repair per place with dormant units, in the order of the forward pass.

    They cure nothing that is known to be there, so they name no mechanism. Inside TorchScript units are not seen:
    there a rectifier is opened, by its autograd node, where it stops the gradient of every traced point.
    """
    shut = (
        op.location for op in trace.ops
        if op.kind == "node" and is_rectifier(op.location.op)
        and op.flow is not None and op.flow.points and op.flow.zero_share == 1
    )  # fmt: skip
    sentence = _SENTENCES["open"]
    return (
        *(Repair("open", place, "", sentence.format(op=place.op)) for place in units),
        *(Repair("open", place, "", sentence.format(op=place.op), by_node=True) for place in shut),
    )


def fallbacks(trace: Trace) -> tuple[Repair, ...]:
    """For each culprit, the identity across the smallest enclosing module of equal input and output shape."""
    paths: list[str] = []
    for culprit in trace.culprits:
        if culprit.remedy == "none":
            continue
        module = trace.ops[culprit.op].location.module if culprit.op >= 0 else culprit.location.module
        path = _enclosing(module, trace)
        if path is not None and path not in paths:
            paths.append(path)
    return tuple(_on_module("boundary", path) for path in paths)


def last_resorts(trace: Trace) -> tuple[Repair, ...]:
    """Repairs that need no culprit, in the order of trust, for a gradient that is poor all the same.

    Everything hard gets a stand-in; the gradient passes what comes before the first layer, then whole modules
    that the data enter and leave in the input's shape; last, a learned stand-in of the offending module, or of
    the whole model.
    """
    blamed = [c for c in trace.culprits if c.mechanism != "stochastic"]
    if not blamed and not trace.health.poor:
        return ()
    found = [_on_module("carry", "")]
    found += [_on_module("prefix", path) for path in _after_preprocessing(trace)]
    paths = dict.fromkeys([*(trace.ops[c.op].location.module for c in blamed if c.op >= 0), ""])
    return (*found, *(_on_module("stand-in", path) for path in paths))


def _after_preprocessing(trace: Trace) -> list[str]:
    """The last module that is given a tensor of the input's shape, if anything moves the data before it."""
    moving = [op for op in trace.ops if op.carries and op.in_shape is not None]
    if not moving or trace.kind == "torchscript":
        return []
    shape = moving[0].in_shape
    seen: dict[str, int] = {}
    for op in trace.ops:
        if op.location.module and op.location.module not in seen and op.carries:
            seen[op.location.module] = op.index
            if op.in_shape != shape:
                seen.pop(op.location.module)
                break
    later = [path for path, index in seen.items() if index > moving[0].index]
    return later[-1:]


def _on_module(remedy: Remedy, path: str) -> Repair:
    return Repair(remedy, Location(path, "module"), "", _SENTENCES[remedy].format(module=path or "the model"))


def resolve(repair: Repair, trace: Trace) -> Repair:
    """The repair of a plan, found again on a fresh trace: its source file, kind of node and mechanism.

    Raises:
        UsageError: when this model has no such place.
    """
    offered = (*propose(trace), *fallbacks(trace), *last_resorts(trace))
    where = repair.location
    for known in offered:
        if repair_key(known) == repair_key(repair):
            return dataclasses.replace(known, scale=repair.scale)
    if repair.remedy in ("boundary", "prefix", "stand-in", "carry"):
        inside = {"", *(part for op in trace.ops for part in modules_around(op.location.module))}
        if where.module in inside:
            return dataclasses.replace(_on_module(repair.remedy, where.module), scale=repair.scale)
    elif repair.remedy == "rescale":
        return dataclasses.replace(repair, sentence=_SENTENCES["rescale"].format(scale=number(repair.scale)))
    for op in trace.ops:
        here = op.location
        if (here.module, here.op) == (where.module, where.op) and where.line in (None, here.line):
            sentence = _SENTENCES[repair.remedy].format(op=here.op, module=here.module, scale=number(repair.scale))
            by_node = op.kind == "node"
            return dataclasses.replace(repair, location=here, sentence=sentence, by_node=by_node)
    line = "" if where.line is None else f", line {where.line}"
    raise UsageError(
        f"The plan repairs {where.op!r} in module {where.module!r}{line}, which this model does not have: "
        "`maskaudit inspect` lists what it has."
    )
