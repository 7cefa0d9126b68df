"""What the judge is shown: counts of points, probe results, what is missing; and the power check it may ask for."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from maskaudit.auditing.planted import solve_planted
from maskaudit.auditing.state import AuditState
from maskaudit.settings import AuditEvent
from maskaudit.verdict.limits import MIN_KNOWN, SCREEN
from maskaudit.verdict.mechanisms import located
from maskaudit.verdict.power import NOT_CHECKED, Power, check_power
from maskaudit.verdict.rules import Judgement, Observations, bounded, gradient_limit, judge


def judged(state: AuditState) -> Judgement:
    """The verdict on what has been seen; the power of the search is checked where the judge asks for it."""
    seen = replace(observations(state), power=state.power if state.power.passed else NOT_CHECKED)
    judgement = judge(seen)
    if judgement.needs != "power":
        return judgement
    state.power = _checked_power(state)
    return judge(replace(seen, power=state.power))


def proven(state: AuditState) -> bool:
    """Whether what was found so far proves masking, so that nothing further can change the verdict."""
    return judge(observations(state)).verdict.label == "masked"


def nothing_left(state: AuditState) -> bool:
    """Whether the gradient level is bounded even if every point that withstands white-box attacks were hidden."""
    ledger = state.ledger
    unbroken = int((ledger.correct & ~ledger.strong()).sum())
    return bounded(unbroken, int(ledger.correct.sum()), gradient_limit(state.probe_results()))


def observations(state: AuditState, broken_off: str = "") -> Observations:
    """The audit so far in counts of points.

    Args:
        broken_off: why it ended before its verdict was decided, if it did.
    """
    ledger, settings = state.ledger, state.settings
    strong, challengers, loss = ledger.strong(), ledger.challengers(), ledger.cross_entropy()
    searched, matched = ledger.correct[: state.searched], ledger.correct[: state.matched]
    rows = [row for row in ledger.rows() if row.role != "sanity"]
    ran = [row for row in rows if row.status == "ran"]
    traced = located(state.trace)
    return Observations(
        drawn=len(ledger),
        correct=int(ledger.correct.sum()),
        reference=int(ledger.reference().sum()),
        cross_entropy=int(loss.sum()),
        strong=int(strong.sum()),
        challengers=int(challengers.sum()),
        best=int(ledger.best_known().sum()),
        hidden_by_gradients=int((searched & (challengers & ~strong)[: state.searched]).sum()),
        hidden_by_loss=int((matched & (strong & ~loss)[: state.matched]).sum()),
        searched=int(searched.sum()),
        matched=int(matched.sum()),
        unbroken=int((searched & ~strong[: state.searched]).sum()),
        probes=state.probe_results(),
        traced=state.adaptive.confirmed(traced) if state.adaptive else traced,
        repaired=_repaired(state, strong),
        missing=_missing(state, broken_off),
        unfinished=bool(broken_off),
        attacks_run=len(ran),
        attacks_left_out=len(rows) - len(ran),
        claimed=settings.claim,
        certified=settings.certified,
    )


def _repaired(state: AuditState, strong: Tensor) -> int | None:
    """Points that evaded white-box attacks and fell through the repaired gradient."""
    entry = state.ledger.entries.get("repaired")
    return None if entry is None or entry.status != "ran" else int((entry.broken & ~strong).sum())


def _missing(state: AuditState, broken_off: str) -> tuple[str, ...]:
    """Why an essential part of the search did not run, though points were left for it."""
    reasons = [f"The audit is not finished: {broken_off}"] if broken_off else []
    met = [entry for entry in state.ledger.entries.values() if entry.status == "ran" and entry.attempted.any()]
    ran = [entry.spec for entry in met if entry.spec.phase != "near_misses"]
    families = {
        "the reference attack": any(spec.role == "reference" for spec in ran),
        "white-box attacks on other losses": any(s.role == "strong" and s.family == "other_loss" for s in ran)
        or not bool((state.ledger.correct & ~state.ledger.cross_entropy()).any()),
        "gradient-free attacks": any(s.role == "challenger" and s.kind in ("score", "decision") for s in ran)
        or nothing_left(state),
    }
    return (
        *reasons,
        *(f"Essential part left out or failed: {name}." for name, there in families.items() if not there),
        *(f"Essential part failed: {name}: {reason}." for name, reason in _failed(state)),
    )


def _failed(state: AuditState) -> list[tuple[str, str]]:
    """Parts of the search that ended in an error, with the reason: what they would have found nobody knows."""
    names = {spec.name for spec in state.catalogue.attacks if spec.name not in state.catalogue.foreign}
    own = [
        entry for name, entry in state.ledger.entries.items()
        if (name in names or entry.spec.role == "sanity") and entry.spec.role != "second_opinion"
    ]  # fmt: skip
    attacks = [e for e in own if e.lost or (e.status == "error" and e.spec.phase != "repaired")]
    screen = [probe for probe in state.probe_results() if probe.rule in SCREEN and probe.status == "error"]
    return [(e.spec.name, e.reason) for e in attacks] + [(probe.rule, probe.reason) for probe in screen]


def _checked_power(state: AuditState) -> Power:
    """Recapture of what white-box attacks broke; planted problems where that is too little."""
    challenge = state.challenge
    known = challenge.tried() if challenge else None
    if challenge is not None and known is not None and int(known.sum()) >= MIN_KNOWN:
        return challenge.recaptured(known)
    rows = state.ledger.correct.nonzero().squeeze(1)
    specs = tuple(
        spec
        for spec in state.attacks("challengers")
        if spec.kind in ("score", "random") and spec.name not in state.catalogue.foreign
    )
    state.tell(AuditEvent("power check", len(rows)))
    state.attacker.settle("power check")
    outcome = solve_planted(
        state.target, state.ledger.x[rows], specs, threat=state.threat, rng=state.attacker.rng("planted", rows)
    )
    power = check_power("planted", outcome.found, outcome.problems, outcome.random_found)
    state.tell(AuditEvent("power check", outcome.problems, True, power.sentence))
    return power
