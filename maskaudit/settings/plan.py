"""The plan of an adaptive attack: which repairs, losses, starts and steps, in which order.

A repair leaves every forward value as it is and changes only what the backward pass returns. A plan is plain data. It
is made from a trace (`maskaudit.repairs.planner`) or read from a file (`maskaudit.repairs.plan_file`), and run stage by
stage on the points still unbroken (`maskaudit.repairs.stages`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from maskaudit.results import Location, plain

PLAN_VERSION = 1

Remedy = Literal[
    "straight-through",  # zero-derivative op: gradient passes as through the identity
    "reattach",  # detach, .data, casts, argmax, comparisons: a soft stand-in carries the gradient
    "enable-grad",  # ops under no_grad are recorded after all
    "function-forward",  # custom autograd Function: its backward becomes the derivative of its own forward
    "entry",  # numpy, PIL: the tensor that comes back is tied to the one that left
    "soften",  # saturated activation: tempered or leaky backward
    "keep-saved",  # in-place changes: what an op kept for its backward pass is copied before it is written over
    "mute",  # op whose slope is noise: no gradient through it
    "gate-identity",  # mask computed from the data: gradient passes as if the gate were open
    "ignore-hook",  # tensor hooks on the forward pass are not registered
    "tap",  # scores are read before the op that destroys them
    "boundary",  # a whole module of equal input and output shape passes the gradient as the identity
    "rescale",  # scores are divided by a constant
    "carry",  # every hard choice, comparison, rounding and cut of the model gets a soft stand-in
    "prefix",  # what comes before a module passes the gradient straight to the model's input
    "open",  # rectifier units that fire on no audited point: gradient passes as if they were on
    "stand-in",  # a learned network carries the gradient past a module, or past the whole model
    "none",
]

PlanLoss = Literal[
    "ce", "margin", "dlr", "rescaled", "targeted-margin", "targeted-dlr",
    "margin-decomposition",  # each term of the margin alone, then their sum (Ma et al. 2020)
]  # fmt: skip
Start = Literal[
    "clean",
    "random",  # uniform in the ball
    "diversified",  # random, then steps along random directions in score space (Tashiro et al. 2020)
    "challenger",  # the best candidate that any earlier attack found for the point; random where there is none
]
Purpose = Literal[
    "attack",  # on points that this row of the report has not broken yet
    "confirm",  # on a sample of the points that white-box attacks left, to tell mechanisms apart
]
PLAN_LOSSES: tuple[str, ...] = get_args(PlanLoss)
STARTS: tuple[str, ...] = get_args(Start)
PURPOSES: tuple[str, ...] = get_args(Purpose)


@dataclass(frozen=True)
class Repair:
    """One repair at one place.

    Attributes:
        remedy: what is done, see `Remedy`.
        location: the op it is done to: module path, op name, source line.
        mechanism: what it is to cure.
        sentence: one sentence for reports.
        scale: temperature or divisor, where the remedy has one.
        by_node: whether it works on autograd nodes by name (TorchScript and in-place ops), not on calls.
    """

    remedy: Remedy
    location: Location
    mechanism: str
    sentence: str
    scale: float = 1.0
    by_node: bool = False

    @property
    def changes_scores(self) -> bool:
        """Whether scores are read elsewhere or rescaled; decisions stay the same."""
        return self.remedy in ("tap", "rescale")

    def to_dict(self) -> dict[str, Any]:
        """Plain form for reports."""
        return plain(dataclasses.asdict(self))


@dataclass(frozen=True)
class Stage:
    """One attack of the plan.

    Attributes:
        repairs: what is repaired while it runs; nothing: the model's gradients.
        loss: what it ascends.
        start: where it starts.
        steps: gradient steps per run.
        step: fixed step size in units of ε; None for Auto-PGD, which sets its own.
        restarts: runs per point.
        targets: wrong classes tried in turn, for targeted losses.
        draws: most draws averaged per gradient of a random model, with common random numbers; 0 for the
            target's own fixed number. No effect on a deterministic model.
        purpose: which points it attacks.
    """

    repairs: tuple[Repair, ...] = ()
    loss: PlanLoss = "margin"
    start: Start = "random"
    steps: int = 50
    step: float | None = None
    restarts: int = 1
    targets: int = 1
    draws: int = 0
    purpose: Purpose = "attack"

    @property
    def row(self) -> str:
        """The attack of the ledger that it is booked under. Only an actual repair counts as repaired."""
        if self.repairs:
            return "repaired"
        return "adaptive-ce" if self.loss == "ce" else "adaptive"

    @property
    def opens(self) -> bool:
        """Whether it looks behind units that no audited point fires, which takes no fault of the model."""
        return any(repair.remedy == "open" for repair in self.repairs)

    @property
    def cost(self) -> int:
        """Gradient steps that the stage makes per point."""
        runs = self.targets if self.loss.startswith("targeted") else 1
        return self.steps * self.restarts * runs * max(1, self.draws)

    def to_dict(self) -> dict[str, Any]:
        """Plain form, as in a plan file."""
        return {**vars(self), "repairs": [repair_to_dict(repair) for repair in self.repairs]}


@dataclass(frozen=True)
class Plan:
    """Stages in the order they run; `source` says where they come from: "trace" or "file"."""

    stages: tuple[Stage, ...] = ()
    source: Literal["trace", "file"] = "trace"

    @property
    def repairs(self) -> tuple[Repair, ...]:
        """Every repair that any stage makes, in order, once."""
        found: dict[tuple[Any, ...], Repair] = {}
        for stage in self.stages:
            for repair in stage.repairs:
                found.setdefault(repair_key(repair), repair)
        return tuple(found.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain form: the plan file."""
        return {"plan_version": PLAN_VERSION, "stages": [stage.to_dict() for stage in self.stages]}

    def with_repairs(self, known: dict[tuple[Any, ...], Repair]) -> Plan:
        """The same plan with every repair replaced by its namesake in `known` (see `repair_key`)."""
        stages = tuple(
            replace(stage, repairs=tuple(known.get(repair_key(r), r) for r in stage.repairs)) for stage in self.stages
        )
        return replace(self, stages=stages)


def repair_key(repair: Repair) -> tuple[Any, ...]:
    """What tells one repair from another in a model, wherever its source file lies."""
    return repair.remedy, repair.location.module, repair.location.op, repair.location.line


def repair_to_dict(repair: Repair) -> dict[str, Any]:
    """What a plan file says of a repair: enough to find it again on a fresh trace."""
    return {
        "remedy": repair.remedy,
        "module": repair.location.module,
        "op": repair.location.op,
        "line": repair.location.line,
        "scale": repair.scale,
    }
