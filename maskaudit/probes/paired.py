"""Paired shares of points for the probes that compare attacks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskaudit.probes.interface import AttackOutcome, Measurement, NotApplicable, ProbeContext
from maskaudit.results import ProbeFinding

#: Kinds of attacks, as people call what goes by them.
_CALLED = {"score": "that uses scores only", "random": "by random noise", "transfer": "by transfer"}


def of_kind(context: ProbeContext, kind: str) -> dict[str, AttackOutcome]:
    """Attacks of one kind that ran on the model as it is.

    Attacks through repaired gradients and second opinions are left out: they answer other questions.

    Raises:
        NotApplicable: when there is none.
    """
    chosen = {
        name: outcome
        for name, outcome in context.attacks.items()
        if outcome.row.kind == kind and outcome.row.status == "ran"
        and outcome.row.role not in ("repaired", "second_opinion", "exact", "sanity")
    }  # fmt: skip
    if not chosen:
        raise NotApplicable(f"No attack {_CALLED[kind]} ran on these points.")
    return chosen


def reference(context: ProbeContext) -> AttackOutcome:
    """The reference attack (R₀).

    Raises:
        NotApplicable: when it did not run.
    """
    for outcome in context.attacks.values():
        if outcome.row.role == "reference" and outcome.row.status == "ran":
            return outcome
    raise NotApplicable("The reference attack did not run, or the audit ended before it was compared.")


def named(context: ProbeContext, name: str) -> AttackOutcome:
    """One attack by name.

    Raises:
        NotApplicable: when it did not run.
    """
    outcome = context.attacks.get(name)
    if outcome is None or outcome.row.status != "ran":
        raise NotApplicable(f"The attack {name!r} did not run on these points.")
    return outcome


def strong_gap(context: ProbeContext, attacks: Mapping[str, AttackOutcome], what: str) -> Measurement:
    """Share of points that one of `attacks` breaks and no white-box attack (G*) does."""
    if context.strong is None:
        raise NotApplicable("It compares attacks, and no attack has run.")
    broken = torch.stack([outcome.broken for outcome in attacks.values()]).any(dim=0)
    gap = paired_gap(broken, context.strong, f"{what} broke", "no white-box attack")
    gap.details["attacks"] = {name: int(outcome.broken.sum()) for name, outcome in attacks.items()}
    try:
        base = reference(context).broken
    except NotApplicable:
        return gap
    gap.details["broken_by_reference"] = int(base.sum())
    gap.details["raw_gap_to_reference"] = (_would_break(broken, attacks, context.strong) - int(base.sum())) / len(
        broken
    )
    return gap


def _would_break(broken: Tensor, attacks: Mapping[str, AttackOutcome], strong: Tensor) -> float:
    """Points that the attacks break, or would: of those spared as many as of similar ones that were attacked."""
    tried = torch.ones_like(broken)
    for outcome in attacks.values():
        tried &= torch.ones_like(broken) if outcome.attempted is None else outcome.attempted
    known = int((strong & tried).sum())
    spared = int((~tried).sum())
    share = int((broken & strong & tried).sum()) / known if known else 0.0
    return int((broken & tried).sum()) + spared * share


def paired_gap(broken: Tensor, other: Tensor, subject: str, rival: str) -> Measurement:
    """Share of points in `broken` and not in `other` (bool (N,) each), with both counts."""
    only = broken & ~other
    count, n = int(only.sum()), len(only)
    return Measurement(
        count / n, "share of points", n, count=count,
        findings=(ProbeFinding(f"{subject} {count} of {n} points that {rival} did."),),
        details={
            "broken": int(broken.sum()),
            "broken_by_rival": int(other.sum()),
            "only_rival": int((other & ~broken).sum()),
        },
        per_point=tuple(only.double().tolist()),
    )  # fmt: skip
