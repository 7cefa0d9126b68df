"""Reading a report once for all formats, so that no fact is worded or sorted twice.

`read` turns the parsed JSON into the records of `maskaudit.report.records`.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from typing import Any

from maskaudit.errors import InputError
from maskaudit.report import coerce, words
from maskaudit.report.facts import audited, reproduction
from maskaudit.report.records import AttackView, Indicator, MechanismView, Observation, Place, ProbeView, View
from maskaudit.results import REQUIRED_SECTIONS, Rate, check_document
from maskaudit.verdict.limits import SMALL_LOGITS

_CONFIDENCE = {"high": 0, "medium": 1, "low": 2}


def read(document: Any, file: str | None = "") -> View:
    """Read a parsed JSON document, which lies in `file` if that is known; None where its evidence was not written.

    Raises:
        InputError: not a maskaudit report, a newer schema, or without a known verdict.
    """
    document = check_document(document)
    section = {name: coerce.mapping(document[name]) for name in REQUIRED_SECTIONS}
    verdict, target, settings = section["verdict"], section["target"], section["settings"]
    label = verdict.get("label")
    if not isinstance(label, str) or label not in words.HEALTH:
        raise InputError(
            f"The report's verdict must be masked, suspect, clear or inconclusive, got {coerce.text(label)!r}: "
            "it was edited or is damaged; run the audit again."
        )
    mechanisms = _mechanisms(verdict.get("mechanisms"))
    probes = [_probe(item) for item in coerce.mappings(document["probes"])]
    eps = coerce.number(section["threat"].get("eps"))
    model = coerce.text(target.get("source")) or coerce.text(target.get("name"), "the model")
    claim, screen = section["claim"], coerce.mapping(section["masking"].get("screen"))
    indicators = tuple(_indicator(k, v) for k, v in coerce.mapping(screen.get("indicators")).items())
    evidence = section["evidence"]
    return View(
        label=label,
        sentence=coerce.text(verdict.get("sentence")) or words.LABEL_MEANING[label],
        mechanisms=tuple(sorted(mechanisms, key=lambda m: _CONFIDENCE.get(m.confidence, 3))),
        reasons=coerce.texts(verdict.get("reasons")),
        claimed=coerce.number(claim.get("claimed")),
        claim=words.CLAIM.get(coerce.text(claim.get("status")), "no claim"),
        accuracy={key: coerce.rate(section["accuracy"].get(key)) for key, _, _ in words.ACCURACY},
        gradient_level=_compared(section["masking"].get("gradient_level")),
        loss_level=_compared(section["masking"].get("loss_level")),
        screen_fired=_flag(screen.get("fired")),
        indicators=indicators,
        power=coerce.text(section["power"].get("sentence")),
        power_passed=_flag(section["power"].get("passed")),
        power_method=coerce.text(section["power"].get("method")),
        power_rate=coerce.rate(section["power"]),
        probes=tuple(sorted(probes, key=lambda probe: _weight(probe, mechanisms, indicators))),
        attacks=_attacks(document["attacks"]),
        facts=audited(target, section["threat"], settings, section["accuracy"]),
        reproduce=reproduction(document),
        command=coerce.text(settings.get("command")),
        verify=_verify_command(target, evidence, file) if file is not None else "",
        model=model,
        source=coerce.text(target.get("source")),
        tool=words.joined(("maskaudit", coerce.text(section["tool"].get("version"))), " "),
        threat=words.joined((coerce.text(section["threat"].get("norm")), f"ε = {words.radius(eps)}"), ", "),
        eps=eps,
        evidence_file=coerce.text(evidence.get("file")) if file is not None else "",
        evidence_hash=coerce.text(evidence.get("sha256")),
        evidence_count=coerce.count(evidence.get("count")) or _broken(section["points"]),
        confidence=_confidence(settings, section["masking"]),
        fail_on=coerce.text(settings.get("fail_on"), "masked"),
        seconds=coerce.number(coerce.mapping(document.get("timing")).get("total_seconds")),
        peak_memory=coerce.number(coerce.mapping(document.get("timing")).get("peak_memory")),
        notes=coerce.texts(document.get("notes")),
        partial=_partial(document.get("partial")),
        left_out=tuple(map(coerce.text, coerce.mapping(settings.get("left_out")))),
    )


def _partial(value: Any) -> str:
    """One sentence for a report that is marked as partial."""
    if value is None:
        return ""
    reason = coerce.text(coerce.mapping(value).get("reason"))
    return f"Partial report, of what was measured before the audit ended: {reason or 'no reason given'}"


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _confidence(settings: dict[str, Any], masking: dict[str, Any]) -> str:
    """Confidence of the intervals in words, `99%`; empty where the document does not say."""
    alpha = coerce.number(coerce.mapping(masking.get("rule")).get("alpha"))
    alpha = coerce.number(settings.get("alpha")) if alpha is None else alpha
    return f"{100 * (1 - alpha):g}%" if alpha is not None and 0 < alpha < 1 else ""


def _place(value: Any) -> Place:
    fields = coerce.mapping(value)
    line = coerce.integer(fields.get("line"))
    return Place(
        module=coerce.text(fields.get("module")),
        op=coerce.text(fields.get("op")),
        file=coerce.text(fields.get("file")),
        line=line if line and line > 0 else None,
    )


def _mechanisms(value: Any) -> tuple[MechanismView, ...]:
    """The mechanisms, those that differ in their place only as one with several places."""
    merged: dict[tuple[str, str, str], MechanismView] = {}
    for found in map(_mechanism, coerce.mappings(value)):
        key = (found.id, found.title, found.confidence)
        places = (*merged[key].places, *found.places) if key in merged else found.places
        merged[key] = replace(found, places=places)
    return tuple(merged.values())


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


def _weight(
    probe: ProbeView, mechanisms: tuple[MechanismView, ...], indicators: tuple[Indicator, ...]
) -> tuple[int, int, float, str]:
    """Worst first: findings at the place of a named mechanism, then those of the screen, then the furthest off."""
    status = ("finding", "error", "not_applicable", "pass")
    rank = status.index(probe.status) if probe.status in status else len(status)
    named = {mechanism.id for mechanism in mechanisms}
    modules = {place.module for mechanism in mechanisms for place in mechanism.places if place.module}
    if probe.rule in named or modules & {seen.place.module for seen in probe.observations}:
        weight = 0
    else:
        weight = 1 if any(item.fired and item.rule == probe.rule for item in indicators) else 2
    return rank, weight, -probe.excess, probe.rule


def _attacks(value: Any) -> tuple[AttackView, ...]:
    """Rows by role, the strongest first within a role, those that did not run last."""
    rows = [_attack(item) for item in coerce.mappings(value)]
    roles = list(words.ROLES)
    return tuple(sorted(rows, key=lambda row: (
        roles.index(row.role), row.status != "ran", row.accuracy.value if row.accuracy else 2.0, -row.broken, row.name,
    )))  # fmt: skip


def _attack(item: dict[str, Any]) -> AttackView:
    name, kind = coerce.text(item.get("name"), "unnamed"), coerce.text(item.get("kind"))
    role = "sanity" if kind == "sanity" else coerce.text(item.get("role"))  # `kind` in reports before 2027
    curve = []
    for pair in coerce.items(item.get("curve")):
        step, broken = (*map(coerce.number, coerce.items(pair)[:2]), None, None)[:2]
        if step is not None and broken is not None and step >= 0:
            curve.append((step, int(broken)))
    return AttackView(
        name=name,
        title=coerce.text(item.get("title")) or name,
        kind=kind,
        role=role if role in words.ROLES else "other",
        family=_family(item),
        accuracy=coerce.rate(item.get("interval")) or coerce.rate({"value": item.get("robust_accuracy")}),
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


def _family(item: dict[str, Any]) -> str:
    """The loss that a white-box attack follows; reports before 2027 have it among the settings only."""
    if "family" in item:
        return coerce.text(item["family"])
    loss = coerce.text(coerce.mapping(item.get("settings")).get("loss"), "ce")
    return "cross_entropy" if loss in ("ce", "cross-entropy") else "other_loss"


def _indicator(name: str, value: Any) -> Indicator:
    fields = coerce.mapping(value)
    if name == SMALL_LOGITS:  # no measurement: the trace named an operation
        return Indicator(name, "named by the trace", "", fields.get("fired") is True)
    figures = (coerce.number(fields.get(key)) for key in ("value", "threshold"))
    shown = ["" if figure is None else words.number(figure) for figure in figures]
    return Indicator(coerce.text(name), shown[0], shown[1], fields.get("fired") is True)


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """Names and short values of an object, for people; nested values are left to the JSON."""
    shown = []
    for key, item in coerce.mapping(value).items():
        figure = coerce.number(item)
        words_for_it = coerce.text(item) if figure is None else words.number(figure)
        if words_for_it:
            shown.append((coerce.text(key).replace("_", " "), words_for_it))
    return tuple(shown)


def _broken(points: dict[str, Any]) -> int:
    """Points that some attack broke, for documents that do not count their examples."""
    return sum(bool(coerce.items(names)) for names in coerce.items(points.get("broken_by")))


def _verify_command(target: dict[str, Any], evidence: dict[str, Any], file: str) -> str:
    source = coerce.text(target.get("source"))
    if not source or not coerce.text(evidence.get("file")):
        return ""
    parts = ["maskaudit", "verify", file or "audit.json", "MODEL" if source.startswith("in memory: ") else source]
    for name in ("arch", "weights"):
        if given := coerce.text(target.get(name)):
            parts += [f"--{name}", given]
    if any(coerce.text(code).startswith("--trust-pickle") for code in coerce.items(target.get("trusted_code"))):
        parts.append("--trust-pickle")
    return shlex.join(parts)


def _compared(value: Any) -> Rate | None:
    """The hidden share at a level; None where no point was compared at it."""
    return None if coerce.mapping(value).get("n") == 0 else coerce.rate(value)
