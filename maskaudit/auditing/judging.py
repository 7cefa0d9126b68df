"""What the judge is shown: counts of points, probe results, what is missing; and the power check it may ask for."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from maskaudit.auditing.ledger import Ledger
from maskaudit.auditing.planted import solve_planted
from maskaudit.auditing.state import AuditState
from maskaudit.results import Mechanism
from maskaudit.settings import AuditEvent
from maskaudit.verdict.levels import Level, LevelName, Observations, exceeds, fired_at, levels_of, slack_of
from maskaudit.verdict.limits import MIN_KNOWN
from maskaudit.verdict.mechanisms import located
from maskaudit.verdict.power import NOT_CHECKED, Power, check_power
from maskaudit.verdict.recorded import Recorded
from maskaudit.verdict.recorded import observations as observed
from maskaudit.verdict.rules import Judgement, judge


def judged(state: AuditState) -> Judgement:
    """The verdict on what has been seen; the power of the search is checked where the judge asks for it."""
    seen = replace(observations(state), power=state.power if state.power.passed else NOT_CHECKED)
    judgement = judge(seen)
    if judgement.needs != "power":
        return judgement
    state.power = _checked_power(state)
    return judge(replace(seen, power=state.power))


def judged_so_far(state: AuditState, broken_off: str = "") -> Judgement:
    """The verdict on what has been seen, with the power that is known; the model is not asked.

    Args:
        broken_off: why the audit ended before its verdict was decided, if it did.
    """
    return judge(replace(observations(state, broken_off), power=state.power))


def proven(state: AuditState) -> bool:
    """Whether what was found so far proves masking, so that nothing further can change the verdict.

    Asked after every phase: all that the judge sees is gathered only where enough points are hidden at a level.
    """
    ledger = state.ledger
    strong = ledger.strong()
    hidden: dict[LevelName, tuple[Tensor, int]] = {
        "gradient": (ledger.challengers() & ~strong, state.searched),
        "loss": (strong & ~ledger.cross_entropy(), state.matched),
    }
    fired = fired_at(state.probe_results(), located(state.trace))
    enough = any(
        exceeds(int(broken[:points].sum()), points, slack_of(fired[name])) for name, (broken, points) in hidden.items()
    )
    return enough and judge(observations(state)).verdict.label == "masked"


def points_to_decide(state: AuditState, most: int) -> int | None:
    """The fewest points, up to `most`, that may well decide all open levels; None if so many hardly do."""
    levels = levels_of(observations(state))
    further = range(len(state.ledger) + 1, most + 1)
    return next((n for n in further if all(levels[name].decided_at(n) for name in state.undecided)), None)


def withstanding(state: AuditState) -> Level:
    """The gradient level as if every point that withstands white-box attacks were hidden.

    Where it is bounded, nothing is left that a search could reveal.
    """
    ledger = state.ledger
    unbroken = int((ledger.correct & ~ledger.strong()).sum())
    fired = fired_at(state.probe_results())["gradient"]
    return Level(unbroken, int(ledger.correct.sum()), len(ledger), fired)


def observations(state: AuditState, broken_off: str = "") -> Observations:
    """The audit so far in counts of points.

    Args:
        broken_off: why it ended before its verdict was decided, if it did.
    """
    settings, ledger, recognised = state.settings, state.ledger, state.recognised
    return observed(
        Recorded(
            correct=ledger.correct.tolist(),
            broken_by=broken_by(ledger),
            attacks=ledger.rows(),
            probes=state.probe_results(),
            traced=traced_mechanisms(state),
            searched=state.searched,
            matched=state.matched,
            left_out=state.left_out(),
            claimed=settings.claim,
            certified=certified_share(state),
            broken_off=broken_off,
            hopeless=recognised.hopeless,
            caveats=recognised.caveats,
            black_box=settings.black_box,
        )
    )


def certified_share(state: AuditState) -> float | None:
    """The lower bound of robust accuracy: what bounds prove of the drawn points, else what was given."""
    if state.certified is None:
        return state.settings.certified
    return int(state.certified.sum()) / len(state.certified)


def traced_mechanisms(state: AuditState) -> tuple[Mechanism, ...]:
    """The mechanisms that the trace located, with what their repair broke."""
    found = located(state.trace)
    return state.adaptive.confirmed(found) if state.adaptive else found


def broken_by(ledger: Ledger) -> list[list[str]]:
    """Per drawn point the names of the attacks that broke it, in the order they ran."""
    return [[name for name, _ in ledger.examples_of(row)] for row in range(len(ledger))]


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
