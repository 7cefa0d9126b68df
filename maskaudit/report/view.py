"""What a report says, in the order it says it: the document read once for all formats.

`read` turns the parsed JSON into frozen records whose texts are harmless single
lines. Formats only lay them out, so that no fact is worded or sorted twice.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

from maskaudit.errors import InputError
from maskaudit.report import coerce, words
from maskaudit.report.facts import Fact, FactGroup, audited, reproduction
from maskaudit.results import Rate, check_document

_CONFIDENCE = {"high": 0, "medium": 1, "low": 2}


@dataclass(frozen=True)
class Place:
    """Where in the model; empty strings and None where unknown."""

    module: str = ""
    op: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        source = f"{self.file}:{self.line}" if self.file and self.line else self.file
        spot = words.joined((self.op, self.module and f"in {self.module}"), " ")
        return f"{spot} ({source})" if spot and source else spot or source


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
    """One row of the attack table."""

    name: str
    title: str
    kind: str
    role: str
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


@dataclass(frozen=True)
class Indicator:
    """One indicator of the screen."""

    name: str
    value: str
    limit: str
    fired: bool


@dataclass(frozen=True)
class View:
    """The whole report."""

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
    screen_reasons: tuple[str, ...]
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
    tool: str
    threat: str
    eps: float | None
    evidence_file: str
    evidence_hash: str
    evidence_count: int
    fail_on: str
    seconds: float | None
    notes: tuple[str, ...]

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
        order = ("masked", "suspect", "inconclusive")
        return self.fail_on in order and self.label in order[: order.index(self.fail_on) + 1]

    @property
    def attacks_run(self) -> tuple[AttackView, ...]:
        """The attacks that ran."""
        return tuple(attack for attack in self.attacks if attack.status == "ran")

    @property
    def attacks_not_run(self) -> tuple[AttackView, ...]:
        """The attacks that did not run or did not finish."""
        return tuple(attack for attack in self.attacks if attack.status != "ran")


def read(document: Any) -> View:
    """Read a parsed JSON document.

    Raises:
        InputError: not a maskaudit report, a newer schema, or without a known verdict.
    """
    document = check_document(document)
    section = {name: coerce.mapping(document[name]) for name in _SECTIONS}
    verdict, target, settings = section["verdict"], section["target"], section["settings"]
    label = verdict.get("label")
    if not isinstance(label, str) or label not in words.HEALTH:
        raise InputError(
            f"The report's verdict must be masked, suspect, clear or inconclusive, got {coerce.text(label)!r}: "
            "it was edited or is damaged; run the audit again."
        )
    mechanisms = tuple(_mechanism(item) for item in coerce.mappings(verdict.get("mechanisms")))
    probes = [_probe(item) for item in coerce.mappings(document["probes"])]
    eps = coerce.number(section["threat"].get("eps"))
    model = coerce.text(target.get("source")) or coerce.text(target.get("name"), "the model")
    claim, screen = section["claim"], coerce.mapping(section["masking"].get("screen"))
    return View(
        label=label,
        sentence=coerce.text(verdict.get("sentence")) or words.LABEL_MEANING[label],
        mechanisms=tuple(sorted(mechanisms, key=lambda m: _CONFIDENCE.get(m.confidence, 3))),
        reasons=coerce.texts(verdict.get("reasons")),
        claimed=coerce.number(claim.get("claimed")),
        claim=words.CLAIM.get(coerce.text(claim.get("status")), "no claim"),
        accuracy={key: coerce.rate(section["accuracy"].get(key)) for key, _, _ in words.ACCURACY},
        gradient_level=coerce.rate(section["masking"].get("gradient_level")),
        loss_level=coerce.rate(section["masking"].get("loss_level")),
        screen_fired=_flag(screen.get("fired")),
        screen_reasons=coerce.texts(screen.get("reasons")),
        indicators=tuple(_indicator(k, v) for k, v in coerce.mapping(screen.get("indicators")).items()),
        power=coerce.text(section["power"].get("sentence")),
        power_passed=_flag(section["power"].get("passed")),
        power_method=coerce.text(section["power"].get("method")),
        power_rate=coerce.rate(section["power"]),
        probes=tuple(sorted(probes, key=lambda probe: _weight(probe, mechanisms))),
        attacks=_attacks(document["attacks"]),
        facts=audited(target, section["threat"], settings, section["accuracy"]),
        reproduce=reproduction(document),
        command=coerce.text(settings.get("command")),
        verify=_verify_command(target, section["evidence"]),
        model=model,
        tool=words.joined(("maskaudit", coerce.text(section["tool"].get("version"))), " "),
        threat=words.joined((coerce.text(section["threat"].get("norm")), f"ε = {words.radius(eps)}"), ", "),
        eps=eps,
        evidence_file=coerce.text(section["evidence"].get("file")),
        evidence_hash=coerce.text(section["evidence"].get("sha256")),
        evidence_count=coerce.count(section["evidence"].get("count")),
        fail_on=coerce.text(settings.get("fail_on"), "masked"),
        seconds=coerce.number(coerce.mapping(document.get("timing")).get("total_seconds")),
        notes=coerce.texts(document.get("notes")),
    )


_SECTIONS = (
    *("tool", "environment", "target", "threat", "settings", "verdict", "claim"),
    *("accuracy", "masking", "power", "points", "evidence"),
)


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _place(value: Any) -> Place:
    fields = coerce.mapping(value)
    line = coerce.integer(fields.get("line"))
    names = (coerce.text(fields.get(key)) for key in ("module", "op", "file"))
    return Place(*names, line if line and line > 0 else None)


def _mechanism(item: dict[str, Any]) -> MechanismView:
    name = coerce.text(item.get("id"))
    places = tuple(_place(place) for place in coerce.mappings(item.get("locations")))
    return MechanismView(
        name,
        coerce.text(item.get("title")) or name or "unnamed mechanism",
        coerce.text(item.get("confidence"), "unknown"),
        tuple(place for place in places if str(place)),
    )


def _probe(item: dict[str, Any]) -> ProbeView:
    unit, value = coerce.text(item.get("unit")), coerce.number(item.get("value"))
    share = coerce.rate(item) if words.is_share(unit) or coerce.number(item.get("low")) is not None else None
    threshold = coerce.number(item.get("threshold"))
    n, rule = coerce.count(item.get("n")), coerce.text(item.get("rule"))
    return ProbeView(
        rule=rule or "unnamed",
        title=coerce.text(item.get("title")) or rule or "Unnamed probe",
        status=coerce.text(item.get("status"), "error"),
        figure=words.quantity(value, unit, share is not None),
        share=share,
        limit=words.quantity(threshold, unit, share is not None),
        limit_share=threshold if share is not None and threshold is not None and 0 <= threshold <= 1 else None,
        n=n,
        reason=coerce.text(item.get("reason")),
        meaning=coerce.text(item.get("meaning")),
        remedy=coerce.text(item.get("remedy")),
        sources=coerce.texts(item.get("sources")),
        observations=tuple(
            Observation(coerce.text(found.get("message")), _place(found.get("location")))
            for found in coerce.mappings(item.get("findings"))
        ),
        details=_pairs(item.get("details")),
        seconds=coerce.number(item.get("seconds")) or 0.0,
        excess=_excess(value, threshold),
    )


def _excess(value: float | None, threshold: float | None) -> float:
    """How far beyond its limit a figure lies, in decades, so that different units can be ranked together."""
    if value is None or threshold is None:
        return 0.0
    tiny = 1e-12
    return abs(math.log10(max(abs(value), tiny)) - math.log10(max(abs(threshold), tiny)))


def _weight(probe: ProbeView, mechanisms: tuple[MechanismView, ...]) -> tuple[int, int, float, str]:
    """Worst first: findings that explain the verdict, by confidence; then by distance from the limit."""
    status = ("finding", "error", "not_applicable", "pass")
    rank = status.index(probe.status) if probe.status in status else len(status)
    named = {mechanism.id: _CONFIDENCE.get(mechanism.confidence, 3) for mechanism in mechanisms}
    return rank, named.get(probe.rule, len(_CONFIDENCE) + 1), -probe.excess, probe.rule


def _attacks(value: Any) -> tuple[AttackView, ...]:
    """Rows by role, the strongest first within a role, those that did not run last."""
    rows = [_attack(item) for item in coerce.mappings(value)]
    roles = list(words.ROLES)
    return tuple(
        sorted(
            rows,
            key=lambda row: (
                roles.index(row.role),
                row.status != "ran",
                row.accuracy.value if row.accuracy else 2.0,
                -row.broken,
                row.name,
            ),
        )
    )


def _attack(item: dict[str, Any]) -> AttackView:
    role, name = coerce.text(item.get("role")), coerce.text(item.get("name"), "unnamed")
    curve = []
    for pair in coerce.items(item.get("curve")):
        step, broken = (*map(coerce.number, coerce.items(pair)[:2]), None, None)[:2]
        if step is not None and broken is not None and step >= 0:
            curve.append((step, int(broken)))
    return AttackView(
        name=name,
        title=coerce.text(item.get("title")) or name,
        kind=coerce.text(item.get("kind")),
        role=role if role in words.ROLES else "other",
        accuracy=coerce.rate(item.get("robust_accuracy")),
        broken=coerce.count(item.get("broken")),
        attempted=coerce.count(item.get("attempted")),
        new=coerce.count(item.get("new")),
        queries=coerce.count(item.get("queries")),
        seconds=coerce.number(item.get("seconds")) or 0.0,
        status=coerce.text(item.get("status"), "ran"),
        reason=coerce.text(item.get("reason")),
        settings=_pairs(item.get("settings")),
        sources=coerce.texts(item.get("sources")),
        curve=tuple(sorted(curve)),
    )


def _indicator(name: str, value: Any) -> Indicator:
    fields = coerce.mapping(value)
    figures = (coerce.number(fields.get(key)) for key in ("value", "threshold"))
    shown = ["" if figure is None else words.number(figure) for figure in figures]
    return Indicator(coerce.text(name).replace("_", " "), shown[0], shown[1], fields.get("fired") is True)


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """Names and short values of an object, for people; nested values are left to the JSON."""
    shown = []
    for key, item in coerce.mapping(value).items():
        figure = coerce.number(item)
        words_for_it = coerce.text(item) if figure is None else words.number(figure)
        if words_for_it:
            shown.append((coerce.text(key).replace("_", " "), words_for_it))
    return tuple(shown)


def _verify_command(target: dict[str, Any], evidence: dict[str, Any]) -> str:
    source = coerce.text(target.get("source"))
    if not source or not coerce.text(evidence.get("file")):
        return ""
    parts = ["maskaudit", "verify", "audit.json", source]
    if arch := coerce.text(target.get("arch")):
        parts += ["--arch", arch]
    return shlex.join(parts)
