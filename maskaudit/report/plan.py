"""The adaptive attack for the report: its stages with what each gained, and what repairs did alone and together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maskaudit.report import coerce, words

#: Most stages that the page shows; a plan may have hundreds.
MAX_STAGES = 40

#: Losses in words; any other is shown by its name.
_LOSSES = {"ce": "cross-entropy", "margin-decomposition": "terms of the margin one at a time", "dlr": "DLR"}


@dataclass(frozen=True)
class StageView:
    """One stage in words; `ran` tells whether it met any point."""

    what: str
    how: str
    ran: bool
    reason: str
    attempted: int
    broken: int
    new: int
    queries: int


@dataclass(frozen=True)
class PlanView:
    """The plan: stages that met a point, sentences on which repair confirmed which mechanism,
    where the plan came from, how many stages are left out, and why, where one reason holds for all."""

    stages: tuple[StageView, ...]
    confirmed: tuple[str, ...]
    given: bool
    hidden: int
    reasons: tuple[str, ...] = ()


def read(document: dict[str, Any]) -> PlanView | None:
    """The plan of a report; None where nothing was planned."""
    plan = coerce.mapping(document.get("plan"))
    stages = [_stage(item) for item in coerce.mappings(plan.get("stages"))]
    if not stages:
        return None
    verdict = coerce.mapping(document.get("verdict"))
    confirmed = [
        sentence for mechanism in coerce.mappings(verdict.get("mechanisms")) for sentence in _confirmations(mechanism)
    ]
    confirmed = list(dict.fromkeys(confirmed))
    shown = tuple(stage for stage in stages if stage.ran)[:MAX_STAGES]
    reasons = dict.fromkeys(stage.reason for stage in stages if not stage.ran and stage.reason)
    return PlanView(shown, tuple(confirmed), plan.get("source") == "file", len(stages) - len(shown), tuple(reasons))


def _stage(item: dict[str, Any]) -> StageView:
    repairs = coerce.texts(item.get("sentences"))
    step = coerce.number(item.get("step"))
    draws = coerce.count(item.get("draws"))
    how = [
        f"{_loss(item)} from a {coerce.text(item.get('start'), 'unknown')} start",
        words.plural(coerce.count(item.get("steps")), "step"),
        "" if step is None else f"of {step:g} ε",
        "" if draws == 0 else f"up to {draws} draws per gradient",
    ]
    attempted = coerce.count(item.get("attempted"))
    return StageView(
        what=" ".join(repairs) or "Nothing: the attack follows the model's gradients.",
        how=", ".join(part for part in how if part),
        ran=attempted > 0,
        reason=coerce.text(item.get("reason")),
        attempted=attempted,
        broken=coerce.count(item.get("broken")),
        new=coerce.count(item.get("new")),
        queries=coerce.count(item.get("queries")),
    )


def _loss(item: dict[str, Any]) -> str:
    name = coerce.text(item.get("loss"), "unknown loss")
    return _LOSSES.get(name, name)


def _confirmations(mechanism: dict[str, Any]) -> list[str]:
    sentences = []
    for note in coerce.mappings(mechanism.get("confirmed_by")):
        points = coerce.count(note.get("points"))
        counts = [
            f"{through} broke {coerce.count(note.get(key))}"
            for key, through in (("alone", "attacks through this repair alone"), ("together", "through all repairs"))
            if coerce.integer(note.get(key)) is not None
        ]
        if points and counts:
            sentences.append(
                f"{coerce.text(note.get('repair'))} Of {words.plural(points, 'point')} that white-box attacks left "
                f"unbroken, {', '.join(counts)}."
            )
    return sentences
