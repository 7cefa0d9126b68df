"""Recount a report: what it states of its points must follow from them, by the same judge that judged the audit.

Pure, and without torch: a document whose fields were checked when it was read (`maskaudit.report.reading`) goes in,
one check per section comes out. Whether the recorded points are true of the model is for the evidence to show.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskaudit.errors import InputError
from maskaudit.results import AttackRow, ProbeResult, plain
from maskaudit.verdict.limits import LIMITS
from maskaudit.verdict.mechanisms import located
from maskaudit.verdict.recorded import Families, Recorded, observations, recorded_in
from maskaudit.verdict.rules import Judgement, judge
from maskaudit.verdict.statistics import rate

#: How far two figures may be apart that were computed from the same counts by other builds of the same libraries.
_SAME = 1e-9
#: Differences that are listed; the rest is counted.
_SHOWN = 2


@dataclass(frozen=True)
class Check:
    """One thing that `verify` checked: what, whether it holds, and the detail."""

    name: str
    holds: bool
    detail: str


def recount(document: Mapping[str, Any]) -> list[Check]:
    """Attack rows, probes, power, accuracy, levels, claim and verdict of a report against its recorded points.

    Raises:
        InputError: when points or accuracy are damaged, or a section lacks what the judge needs.
    """
    _whole(document)
    try:
        recorded = recorded_in(document)
        judgement = judge(observations(recorded))
        return [
            _attacks(recorded),
            _probes(recorded.probes),
            _power(document, recorded),
            _trace(document, recorded),
            _accuracy(document, recorded, judgement),
            _levels(document, judgement),
            _claim(document, judgement),
            _verdict(document, judgement),
        ]
    except ValueError as error:
        return [Check("points", False, f"what is recorded of them contradicts itself: {error}")]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The report lacks what its verdict is judged by ({type(error).__name__}: {error})."
        ) from error


def _whole(document: Mapping[str, Any]) -> None:
    points, accuracy = document.get("points"), document.get("accuracy")
    try:
        index, named = points["index"], points["broken_by"]  # type: ignore[index]
        lengths = {len(index), len(named), len(points["correct"]), len(points["label"])}  # type: ignore[index]
        whole = len(lengths) == 1 and len(set(index)) == len(index) > 0
        best = accuracy["best_known"]  # type: ignore[index]
        assert best is None or math.isfinite(float(best["value"]))
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise InputError("The report's points or accuracy section is damaged.") from error
    if not whole:
        raise InputError("The report's points or accuracy section is damaged.")


def _attacks(recorded: Recorded) -> Check:
    """Every row's counts and accuracy, as far as the points show them."""
    names = [row.name for row in recorded.attacks]
    wrong = [name for row in recorded.attacks for name in _row(row, recorded)]
    unknown = {name for by in recorded.broken_by for name in by} - set(names)
    wrong += [f"{name} broke points and has no row" for name in sorted(unknown)]
    if len(set(names)) < len(names):
        wrong.append("an attack has two rows")
    counted = [row for row in recorded.attacks if row.role != "sanity"]
    best = sum(recorded.broken(Families.of(counted).every))
    if sum(row.new for row in counted) != best:
        wrong.append(f"the rows are the first to break {sum(row.new for row in counted)} points, {best} are broken")
    return Check("attacks", not wrong, _told(wrong, f"the figures of {len(names)} attacks follow from the points"))


def _row(row: AttackRow, recorded: Recorded) -> list[str]:
    correct, n = sum(recorded.correct), len(recorded.correct)
    broken = row.broken if row.role == "sanity" else sum(recorded.broken({row.name}))
    wrong = []
    if row.broken != broken:
        wrong.append(f"{row.name} broke {broken} points, its row says {row.broken}")
    if not broken <= row.attempted <= correct or row.new > row.broken:
        wrong.append(f"{row.name} cannot have met {row.attempted} points")
    if row.status == "ran" and not row.attempted:
        wrong.append(f"{row.name} ran on no point")
    whole = row.status == "ran" and row.attempted == correct
    expected = rate(correct - broken, n) if whole else None
    stated = None if row.interval is None else dataclasses.asdict(row.interval)
    if not _alike(row.robust_accuracy, expected and expected.value) or not _alike(
        stated, expected and dataclasses.asdict(expected)
    ):
        wrong.append(f"{row.name} states an accuracy that its points do not give")
    return wrong


def _probes(probes: Sequence[ProbeResult]) -> Check:
    """Every grade against the value and the limit of its rule."""
    wrong = []
    for probe in probes:
        limit = LIMITS.get(probe.rule)
        if probe.status not in ("pass", "finding") or limit is None:
            continue
        graded = probe.threshold is not None and probe.value is not None
        raised = graded and limit.exceeded(probe.value or 0.0, probe.low)
        if raised != (probe.status == "finding") or (graded and not _alike(probe.threshold, limit.value)):
            wrong.append(f"{probe.rule} is graded {probe.status} at {probe.value} with the limit {probe.threshold}")
    return Check("probes", not wrong, _told(wrong, "every grade follows from its value"))


def _power(document: Mapping[str, Any], recorded: Recorded) -> Check:
    """The grade against what was found; known points are of those that white-box attacks broke, and found by search."""
    power, families = recorded.power, Families.of(recorded.attacks)
    pairs = zip(recorded.broken(families.strong), recorded.broken(families.challengers), strict=True)
    again = [found for known, found in pairs if known]
    if power.method == "recapture" and (power.known > len(again) or power.found > sum(again)):
        detail = f"states {power.found} of {power.known} known points, the points show {sum(again)} of {len(again)}"
        return Check("power", False, detail)
    return _section("power", document["power"], plain(power.to_dict()), "follows from what the search found")


def _trace(document: Mapping[str, Any], recorded: Recorded) -> Check:
    """The mechanisms that the judge was given, against the places that the trace names; or opened dormant units."""
    try:
        seen = {(one.id, one.locations) for one in located(document.get("trace") or {})}
    except (KeyError, TypeError, AttributeError):
        seen = set()
    stages = (document.get("plan") or {}).get("stages") or ()
    opened = any(repair.get("remedy") == "open" for stage in stages for repair in stage.get("repairs", ()))
    odd = [
        f"the trace names no {one.id} where the report does" for one in recorded.traced
        if (one.id, one.locations) not in seen and not (opened and one.id == "saturation")
    ]  # fmt: skip
    return Check("trace", not odd, _told(odd, f"mechanisms whose places it names: {len(recorded.traced)}"))


def _accuracy(document: Mapping[str, Any], recorded: Recorded, judgement: Judgement) -> Check:
    stated, found = document["accuracy"], plain({k: v and dataclasses.asdict(v) for k, v in judgement.accuracy.items()})
    best = "no accuracy, since no attack ran"
    if stated["best_known"] is not None:
        best = f"best known {float(stated['best_known']['value']):.1%}"
    unbroken = sum(right and not by for right, by in zip(recorded.correct, recorded.broken_by, strict=True))
    detail = f"{best}, {unbroken} of {len(recorded.correct)} points withstand every attack"
    odd = [f"correct is {n} of {len(recorded.correct)}" for n in [sum(recorded.correct)] if _misjudged(document)]
    odd += _miscertified(document, recorded)
    drawn = document["settings"].get("samples", len(recorded.correct))
    odd += [f"settings name {drawn} points of {len(recorded.correct)}"] if drawn != len(recorded.correct) else []
    return Check("accuracy", not odd and _alike(stated, found), _told(odd + _differences(stated, found), detail))


def _miscertified(document: Mapping[str, Any], recorded: Recorded) -> list[str]:
    """What contradicts the points that bounds prove robust, where they are listed."""
    proven = document["points"].get("certified")
    if proven is None:
        return []
    broken = sum(bool(sure and by) for sure, by in zip(proven, recorded.broken_by, strict=True))
    share = sum(map(bool, proven)) / len(proven)
    odd = [f"{broken} points are proven robust and broken"] if broken else []
    return odd if _alike(recorded.certified, share) else [*odd, f"certified is {recorded.certified}, not {share:.3g}"]


def _misjudged(document: Mapping[str, Any]) -> bool:
    """Whether `correct` contradicts labels and answers; a random model decides by more draws than that one answer."""
    points = document["points"]
    if document["target"].get("random") or "predicted" not in points:
        return False
    answers = zip(points["label"], points["predicted"], points["correct"], strict=True)
    return any((label == answer) is not bool(right) for label, answer, right in answers)


def _levels(document: Mapping[str, Any], judgement: Judgement) -> Check:
    found = plain({name: _plain(part) for name, part in judgement.masking.items()})
    stated = {name: document["masking"].get(name) for name in found}
    rates = {name: found[f"{name}_level"] for name in ("gradient", "loss")}
    shares = [f"{rate['value']:.1%} at {name} level" for name, rate in rates.items() if rate["n"]]
    return _section("levels", stated, found, f"hidden are {', '.join(shares)}" if shares else "none was measured")


def _claim(document: Mapping[str, Any], judgement: Judgement) -> Check:
    found = dataclasses.asdict(judgement.claim)
    stated = {name: document["claim"].get(name) for name in found}
    return _section("claim", stated, found, found["status"].replace("_", " "))


def _verdict(document: Mapping[str, Any], judgement: Judgement) -> Check:
    found = plain(dataclasses.asdict(judgement.verdict))
    stated = {name: document["verdict"].get(name) for name in found}
    if stated["label"] != found["label"]:
        detail = f"the points give {found['label']}, the report says {stated['label']}"
        return Check("verdict", False, detail)
    return _section("verdict", stated, found, f"{found['label']} follows from the points")


def _plain(part: Any) -> Any:
    return dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part


def _section(name: str, stated: Any, found: Any, detail: str) -> Check:
    return Check(name, _alike(stated, found), _told(_differences(stated, found), detail))


def _told(wrong: Sequence[str], otherwise: str) -> str:
    if not wrong:
        return otherwise
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return "; ".join(wrong[:_SHOWN]) + more


def _alike(first: Any, second: Any) -> bool:
    """Whether two plain values are the same, figures up to rounding."""
    return not _differences(first, second)


def _differences(stated: Any, found: Any, path: str = "") -> list[str]:
    """Where a stated value departs from what was found, in words."""
    if isinstance(stated, dict) and isinstance(found, dict):
        names = dict.fromkeys([*found, *stated])
        return [
            d for name in names for d in _differences(stated.get(name), found.get(name), f"{path}.{name}".strip("."))
        ]
    if isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        pairs = enumerate(zip(stated, found, strict=True))
        return [d for n, (one, other) in pairs for d in _differences(one, other, f"{path}[{n}]")]
    if _number(stated) and _number(found) and math.isclose(stated, found, rel_tol=0, abs_tol=_SAME):
        return []
    same = type(stated) is type(found) and stated == found
    return [] if same else [f"{path or 'it'} is {_short(stated)}, the points give {_short(found)}"]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"
