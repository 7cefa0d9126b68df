"""What a report says, as frozen records that every format lays out.

All texts are harmless single lines (`maskaudit.report.coerce.text`); probes and
attacks are in the order in which they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from maskaudit.report.facts import Fact, FactGroup
from maskaudit.results import Rate, place_in_words
from maskaudit.settings import FAIL_ON, fails


@dataclass(frozen=True)
class Place:
    """Where in the model; empty strings and None where unknown."""

    module: str = ""
    op: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        source = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return place_in_words(self.op, self.module, source)


@dataclass(frozen=True)
class MechanismView:
    """How the gradients are blinded, and where."""

    id: str
    title: str
    confidence: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Observation:
    """One thing a probe saw at one place."""

    message: str
    place: Place


@dataclass(frozen=True)
class ProbeView:
    """One probe: `figure` is the headline figure in words, `share` the same as a rate where it is one."""

    rule: str
    title: str
    status: str
    figure: str
    share: Rate | None
    limit: str
    limit_share: float | None
    n: int
    reason: str
    meaning: str
    remedy: str
    sources: tuple[str, ...]
    observations: tuple[Observation, ...]
    details: tuple[tuple[str, str], ...]
    seconds: float
    excess: float


@dataclass(frozen=True)
class AttackView:
    """One row of the attack table; `accuracy` is None unless the attack met every correctly classified point."""

    name: str
    title: str
    kind: str
    role: str
    family: str
    accuracy: Rate | None
    broken: int
    attempted: int
    new: int
    queries: int
    seconds: float
    status: str
    reason: str
    settings: tuple[tuple[str, str], ...]
    sources: tuple[str, ...]
    curve: tuple[tuple[float, int], ...]


#: A probe or an attack.
Row = TypeVar("Row", ProbeView, AttackView)


def by_reason(rows: Iterable[Row]) -> list[tuple[str, str, list[Row]]]:
    """Those that did not run: status, reason, and all that have both in common, in order of appearance."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status not in ("ran", "pass", "finding"):
            groups.setdefault((row.status, row.reason), []).append(row)
    return [(status, reason, group) for (status, reason), group in groups.items()]


@dataclass(frozen=True)
class Indicator:
    """One indicator of the screen."""

    rule: str
    value: str
    limit: str
    fired: bool


@dataclass(frozen=True)
class View:
    """The whole report; `partial` says why the audit ended before it was finished, and is empty where it did not.

    `left_out` names probes and attacks that were left out on request.
    """

    label: str
    sentence: str
    mechanisms: tuple[MechanismView, ...]
    reasons: tuple[str, ...]
    claimed: float | None
    claim: str
    accuracy: dict[str, Rate | None]
    gradient_level: Rate | None
    loss_level: Rate | None
    screen_fired: bool | None
    indicators: tuple[Indicator, ...]
    power: str
    power_passed: bool | None
    power_method: str
    power_rate: Rate | None
    probes: tuple[ProbeView, ...]
    attacks: tuple[AttackView, ...]
    facts: tuple[FactGroup, ...]
    reproduce: tuple[Fact, ...]
    command: str
    verify: str
    model: str
    source: str
    tool: str
    threat: str
    eps: float | None
    evidence_file: str
    evidence_hash: str
    evidence_count: int
    confidence: str
    fail_on: str
    seconds: float | None
    peak_memory: float | None
    notes: tuple[str, ...]
    partial: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[ProbeView, ...]:
        """Findings, worst first."""
        return self.with_status("finding")

    def with_status(self, *status: str) -> tuple[ProbeView, ...]:
        """The probes that ended with one of the given statuses."""
        return tuple(probe for probe in self.probes if probe.status in status)

    @property
    def failed(self) -> bool:
        """Whether the verdict is at or above the `--fail-on` of the audit (default: masked)."""
        return self.fail_on in FAIL_ON and fails(self.label, "", self.fail_on)

    @property
    def attacks_run(self) -> tuple[AttackView, ...]:
        """The attacks that ran."""
        return tuple(attack for attack in self.attacks if attack.status == "ran")

    @property
    def attack_groups(self) -> list[tuple[str, list[AttackView], list[tuple[str, str, list[AttackView]]]]]:
        """Of each role, in the order of the table, the attacks that ran, and those that did not by reason."""
        roles = [(role, list(rows)) for role, rows in groupby(self.attacks, key=lambda row: row.role)]
        return [(role, [row for row in rows if row.status == "ran"], by_reason(rows)) for role, rows in roles]

    @property
    def attacks_not_run(self) -> tuple[AttackView, ...]:
        """The attacks that did not run or did not finish."""
        return tuple(attack for attack in self.attacks if attack.status != "ran")
