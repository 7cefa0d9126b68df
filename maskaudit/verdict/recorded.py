"""From what an audit recorded to what the judge sees: points, attacks, probes and power as plain data; knows no torch.

An audit and the verification of its report count with the same functions, so that a report says what the judge
would say of its own points.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from maskaudit.results import AttackRow, Family, Mechanism, ProbeResult, Role, revived
from maskaudit.verdict.levels import Observations, bounded, gradient_limit
from maskaudit.verdict.limits import SCREEN
from maskaudit.verdict.power import NOT_CHECKED, Power, check_power

#: What no verdict can do without, by the name in `AttackRow.part`.
PARTS: Mapping[str, str] = {
    "reference": "the reference attack",
    "cross_entropy": "further white-box attacks on cross-entropy",
    "other_loss": "white-box attacks on other losses",
    "gradient_free": "gradient-free attacks",
}

#: Why an attack did not run that could have changed nothing any more.
SPARED = "masking had been proven before it"

#: The parts without which points that withstand seem hidden at a level for want of attacks only.
PROOF: Mapping[str, tuple[str, ...]] = {
    "gradient": ("reference", "cross_entropy", "other_loss"),
    "loss": ("reference", "cross_entropy"),
}


@dataclass(frozen=True)
class Recorded:
    """What an audit recorded.

    Attributes:
        correct: per drawn point whether the clean answer is right.
        broken_by: per drawn point the names of the attacks that broke it; those of the role `sanity` are not named.
        attacks, probes, traced, power: as in the report.
        searched, matched: drawn points, counted from the first, on which challengers searched wherever they could
            reveal something, and on which cross-entropy had the effort of all losses; None for all.
        left_out: attacks and probes that the user left out, with the essential part that each belongs to.
        claimed, certified: robust accuracies that were given.
        broken_off: why the audit ended before its verdict was decided, if it did.
        hopeless: why no attack can say anything, where the audit stopped at once.
        caveats, black_box: what answers depend on, as sentences, and whether the model was only asked.
    """

    correct: Sequence[bool]
    broken_by: Sequence[Collection[str]]
    attacks: Sequence[AttackRow]
    probes: tuple[ProbeResult, ...] = ()
    traced: tuple[Mechanism, ...] = ()
    power: Power = NOT_CHECKED
    searched: int | None = None
    matched: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    claimed: float | None = None
    certified: float | None = None
    broken_off: str = ""
    hopeless: str = ""
    caveats: tuple[str, ...] = ()
    black_box: bool = False

    def broken(self, names: Collection[str]) -> list[bool]:
        """Per drawn point whether one of these attacks broke it."""
        return [not set(by).isdisjoint(names) for by in self.broken_by]


class Named(Protocol):
    """An attack, as a row of a report or as it is registered."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def family(self) -> Family | None: ...


@dataclass(frozen=True)
class Families:
    """The names of the attacks of each family: R₀, CE*, G*, C, and all that count."""

    reference: frozenset[str]
    cross_entropy: frozenset[str]
    strong: frozenset[str]
    challengers: frozenset[str]
    every: frozenset[str]

    @classmethod
    def of(cls, attacks: Iterable[Named]) -> Families:
        """The attacks sorted into families; the sanity check belongs to none."""
        rows = [row for row in attacks if row.role != "sanity"]
        strong = [row for row in rows if row.role in ("reference", "strong")]
        return cls(
            _names(row for row in rows if row.role == "reference"),
            _names(row for row in strong if row.family == "cross_entropy"),
            _names(strong),
            _names(row for row in rows if row.role in ("challenger", "repaired")),
            _names(rows),
        )


def _names(rows: Iterable[Named]) -> frozenset[str]:
    return frozenset(row.name for row in rows)


def observations(recorded: Recorded) -> Observations:
    """What was recorded, in counts of points."""
    families = Families.of(recorded.attacks)
    reference, loss, strong, challengers, best = (
        recorded.broken(names)
        for names in (
            families.reference, families.cross_entropy, families.strong, families.challengers, families.every
        )
    )  # fmt: skip
    rows = [row for row in recorded.attacks if row.role != "sanity"]
    ran = [row for row in rows if row.status == "ran"]
    met = [row for row in ran if row.attempted and row.name in families.strong]
    missing, without = _missing(recorded)
    hidden = [c and not s for c, s in zip(challengers, strong, strict=True)]
    by_loss = [s and not c for s, c in zip(strong, loss, strict=True)]
    compared = 0 if recorded.black_box else recorded.searched
    searched, matched = recorded.correct[:compared], recorded.correct[: recorded.matched]
    return Observations(
        drawn=len(recorded.correct),
        correct=sum(recorded.correct),
        reference=sum(reference),
        cross_entropy=sum(loss),
        strong=sum(strong),
        challengers=sum(challengers),
        best=sum(best),
        hidden_by_gradients=sum(hidden[:compared]),
        hidden_by_loss=sum(by_loss[: recorded.matched]),
        searched=sum(searched),
        matched=sum(matched),
        searched_drawn=len(searched),
        matched_drawn=len(matched),
        unbroken=sum(right and not s for right, s in zip(searched, strong, strict=False)),
        probes=recorded.probes,
        power=recorded.power,
        traced=recorded.traced,
        repaired=_repaired(recorded, strong),
        missing=missing,
        without=without,
        spared=_spared(recorded),
        unproven=_unproven(recorded),
        attacks_run=len(ran),
        attacks_left_out=len(rows) - len(ran),
        white_box_run=len(met),
        cross_entropy_run=sum(row.name in families.cross_entropy for row in met),
        deselected=len(recorded.left_out),
        claimed=recorded.claimed,
        certified=recorded.certified,
        caveats=recorded.caveats,
        black_box=recorded.black_box,
        unmeasured=_unmeasured(recorded, families),
    )


def _unmeasured(recorded: Recorded, families: Families) -> frozenset[str]:
    """The accuracies under attacks of which none met a point, though some could have been met."""
    met = {row.name for row in recorded.attacks if row.status == "ran" and row.attempted}
    named = {
        "reference": families.reference, "strong_reference": families.strong, "best_known": families.every,
    }  # fmt: skip
    return frozenset(key for key, names in named.items() if any(recorded.correct) and met.isdisjoint(names))


def _repaired(recorded: Recorded, strong: Sequence[bool]) -> int | None:
    """Points compared at gradient level that evade white-box attacks and were broken through the repaired gradient."""
    if not any(row.role == "repaired" and row.status == "ran" for row in recorded.attacks):
        return None
    names = _names(row for row in recorded.attacks if row.role == "repaired")
    pairs = zip(recorded.broken(names), strong, strict=True)
    return sum(hit and not strong for hit, strong in islice(pairs, recorded.searched))


def _present(recorded: Recorded) -> set[str]:
    """The essential parts of which an attack ran; restarts on the few points of another loss make no cross-entropy."""
    strong = recorded.broken(Families.of(recorded.attacks).strong)
    left = sum(right and not hit for right, hit in zip(recorded.correct, strong, strict=True))
    least = {"cross_entropy": max(left, 1)}
    return {row.part for row in recorded.attacks if row.status == "ran" and row.attempted >= least.get(row.part, 1)}


def _failed(recorded: Recorded) -> list[tuple[str, str]]:
    """Parts of the search that ended in an error, with the reason: what they would have found is unknown."""
    attacks = [row for row in recorded.attacks if row.decisive and row.status == "error"]
    screen = [probe for probe in recorded.probes if probe.rule in SCREEN and probe.status == "error"]
    return [(row.name, row.reason) for row in attacks] + [(probe.rule, probe.reason) for probe in screen]


def _needed(recorded: Recorded) -> set[str]:
    """The essential parts that had points left which they could break, or were left out on request."""
    families, correct = Families.of(recorded.attacks), recorded.correct

    def left(names: Collection[str]) -> int:
        return sum(right and not hit for right, hit in zip(correct, recorded.broken(names), strict=True))

    open_for_search = left(families.every) or "gradient_free" in recorded.left_out.values()
    searched = open_for_search and not bounded(
        left(families.strong), sum(correct), len(correct), gradient_limit(recorded.probes)
    )
    return {
        "reference",
        *(["cross_entropy", "other_loss"] if left(families.cross_entropy) else []),
        *(["gradient_free"] if searched else []),
    }


def _left_out(name: str) -> str:
    return f"Essential part left out or failed: {name}."


def _spared(recorded: Recorded) -> dict[str, str]:
    """The essential parts that did not run because masking had been proven without them, each with its sentence."""
    spared = {row.part for row in recorded.attacks if row.reason == SPARED}
    return {name: _left_out(name) for part, name in PARTS.items() if part in spared}


def _missing(recorded: Recorded) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Why essential parts of the search did not run, as sentences, and the names of these parts."""
    if recorded.hopeless:
        return (f"The audit stopped at once. {recorded.hopeless}",), ()
    if recorded.black_box:
        return ((f"The audit is not finished: {recorded.broken_off}",) if recorded.broken_off else ()), ()
    present, failed = _present(recorded), _failed(recorded)
    needed = _needed(recorded)
    absent = [name for part, name in PARTS.items() if part in needed and part not in present]
    absent += [rule for rule in SCREEN if rule in recorded.left_out]
    unfinished = [f"The audit is not finished: {recorded.broken_off}"] if recorded.broken_off else []
    sentences = (
        *unfinished,
        *map(_left_out, absent),
        *(f"Essential part failed: {name}: {reason}." for name, reason in failed),
    )
    return sentences, (*absent, *(name for name, _ in failed))


def _unproven(recorded: Recorded) -> dict[str, str]:
    """Per level why hidden points prove nothing: attacks that might have broken them did not run.

    At loss level every attack on cross-entropy counts, since the slack was measured with matched budgets.
    """
    if recorded.broken_off or recorded.hopeless:
        return dict.fromkeys(PROOF, "the audit is not finished")
    present = _present(recorded) | (set(PARTS) - _needed(recorded))
    families = Families.of(recorded.attacks)
    failed = {row.name for row in recorded.attacks if row.decisive and row.status == "error"}
    found: dict[str, str] = {}
    for level, parts in PROOF.items():
        lacking = [PARTS[part] for part in parts if part not in present]
        lacking += sorted(failed & (families.strong if level == "gradient" else families.cross_entropy))
        if level == "loss":
            lacking += [name for name, part in recorded.left_out.items() if part == "cross_entropy"]
        if lacking:
            found[level] = f"it lacks {', '.join(dict.fromkeys(lacking))}"
    return found


def recorded_in(document: Mapping[str, Any]) -> Recorded:
    """What a report holds, whose fields were checked when it was read (`maskaudit.report.reading`).

    Raises:
        KeyError, TypeError, ValueError: when what is needed is not there.
    """
    points, settings = document["points"], document["settings"]
    masking = document["masking"]
    certified = document["accuracy"].get("certified")
    return Recorded(
        correct=[bool(right) for right in points["correct"]],
        broken_by=[tuple(by) for by in points["broken_by"]],
        attacks=revived(tuple[AttackRow, ...], document["attacks"]),
        probes=revived(tuple[ProbeResult, ...], document["probes"]),
        traced=revived(tuple[Mechanism, ...], masking.get("traced", ())),
        power=power_in(document["power"]),
        searched=masking.get("searched"),
        matched=masking.get("matched"),
        left_out=settings.get("left_out") or {},
        claimed=document["claim"]["claimed"],
        certified=certified["value"] if certified else None,
        broken_off=masking.get("unfinished", ""),
        hopeless=document["target"].get("hopeless", ""),
        caveats=tuple(document["target"].get("caveats", ())),
        black_box=bool(settings.get("black_box")),
    )


def power_in(section: Mapping[str, Any]) -> Power:
    """The power check as a report holds it, graded again."""
    known = section["n"]
    if section["method"] == "none":
        return NOT_CHECKED
    found = round(section["value"] * known) if known else 0
    return check_power(section["method"], found, known, section.get("random_search_found"))
