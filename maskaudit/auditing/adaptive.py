"""The adaptive part of an audit: run a plan on the points not broken yet, and book what every stage gained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from maskaudit.attacks.interface import AttackSpec
from maskaudit.auditing.attacker import Attacker
from maskaudit.repairs.planner import make_plan
from maskaudit.repairs.propose import openings, resolve
from maskaudit.repairs.stages import StandIns
from maskaudit.results import Confirmation, Mechanism, ProbeResult
from maskaudit.settings import AuditEvent, AuditSettings
from maskaudit.settings.plan import PLAN_VERSION, Plan, Repair, Stage, repair_key
from maskaudit.target import Target
from maskaudit.trace.records import Trace
from maskaudit.verdict.levels import fired_indicators
from maskaudit.verdict.limits import GROSS_SLACK
from maskaudit.verdict.mechanisms import TITLES

#: Points, of those that withstand white-box attacks, on which repairs are tried alone and together, per look.
CONFIRM_POINTS = 64


@dataclass
class StageOutcome:
    """What one stage did so far; `met` and `broken` are rows of the ledger."""

    met: set[int] = field(default_factory=set)
    broken: set[int] = field(default_factory=set)
    new: int = 0
    queries: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    status: str = "ran"
    reason: str = ""

    def to_dict(self, idle: str) -> dict[str, Any]:
        """Plain form; `idle` is why it met no point, where no other reason is known."""
        return {
            "status": self.status if self.met or self.status != "ran" else "skipped",
            "reason": self.reason or ("" if self.met else idle),
            "attempted": len(self.met),
            "broken": len(self.broken),
            "new": self.new,
            "queries": self.queries,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "seconds": round(self.seconds, 3),
        }


def planned(
    trace: Trace | None, probes: Sequence[ProbeResult], settings: AuditSettings, target: Target, stand_ins: StandIns
) -> Plan:
    """The plan that was given, its repairs found again on this trace; else the one that trace and probes suggest.

    Args:
        stand_ins: knows which units fire on none of the points.

    Raises:
        UsageError: when the given plan repairs a place that the model does not have.
    """
    if settings.plan is not None:
        given = settings.plan
        if trace is None:
            return replace(given, stages=tuple(stage for stage in given.stages if not stage.repairs))
        return given.with_repairs({repair_key(repair): resolve(repair, trace) for repair in given.repairs})
    if trace is None:
        return Plan()
    hinted = bool(fired_indicators(probes))
    effort = settings.effort
    dormant = openings(stand_ins.dormant(), trace)
    return make_plan(
        trace, steps=effort.steps, targets=effort.targets, hinted=hinted, random=target.random, dormant=dormant
    )


class AdaptiveAttack:
    """A plan being run.

    Args:
        attacker: runs and books attacks; it also remembers the best candidate per point.
        specs: the rows of the ledger that stages are booked under; stages of other rows are left out.
        stand_ins: where learned stand-ins come from.
        nothing: why no stage attacks through a repair, where none does.
    """

    def __init__(
        self, attacker: Attacker, plan: Plan, specs: Sequence[AttackSpec], stand_ins: StandIns, nothing: str
    ) -> None:
        self.attacker, self.plan, self.stand_ins, self.nothing = attacker, plan, stand_ins, nothing
        self.specs = {spec.name: spec for spec in specs}
        self.outcomes = [StageOutcome() for _ in plan.stages]
        self.sampled: set[int] = set()

    def run(self, rows: Tensor, *, late: bool = False, useful: bool = False) -> None:
        """The stages on points `rows` of the ledger, in order, each on the points it is for.

        Args:
            late: those that start from the challengers' candidates; else all others.
            useful: only those for the attack, not for its explanation, that have broken something before.
        """
        sample: Tensor | None = None
        for number, stage in enumerate(self.plan.stages):
            if (stage.start == "challenger") is not late:
                continue
            if useful and (stage.purpose == "confirm" or not self.outcomes[number].new):
                continue
            spec = self.specs.get(stage.row)
            if spec is None:
                self.outcomes[number].status = "skipped"
                self.outcomes[number].reason = f"{stage.row} was left out"
                continue
            if stage.repairs and sample is None and not (late or useful):
                sample = rows[~self.attacker.ledger.strong()[rows]][:CONFIRM_POINTS]
                self.sampled |= set(sample.tolist())
            if stage.opens and stage.purpose == "confirm" and not self._revealed():
                self.outcomes[number].reason = "nothing was found behind dormant units"
                continue
            chosen = sample if stage.purpose == "confirm" else self._unbroken(stage, spec, rows)
            if chosen is not None and len(chosen):
                self._stage(number, stage, spec, chosen)
        for name, spec in self.specs.items():
            if spec.role == "repaired" and not late and not any(stage.row == name for stage in self.plan.stages):
                self.attacker.skip(spec, self.nothing)
        self._tell(rows)

    def to_dict(self) -> dict[str, Any]:
        """The plan with what each stage gained, plain."""
        idle = self.attacker.ledger.why_idle()
        stages = [
            {
                **stage.to_dict(), "row": stage.row,
                "sentences": list(dict.fromkeys(repair.sentence for repair in stage.repairs)), **outcome.to_dict(idle),
            }
            for stage, outcome in zip(self.plan.stages, self.outcomes, strict=True)
        ]  # fmt: skip
        return {"plan_version": PLAN_VERSION, "source": self.plan.source, "stages": stages}

    def confirmed(self, mechanisms: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
        """The mechanisms, each with what its repair broke alone and together with the others.

        Dormant units are named here, and only where opening them broke more points that white-box attacks left
        unbroken than healthy models show: every network has such units.
        """
        known = tuple(self._confirm(mechanism) for mechanism in mechanisms)
        ledger = self.attacker.ledger
        if len(self._revealed()) <= GROSS_SLACK * len(ledger):
            return known
        return (*known, self._dormant())

    # --- one stage --------------------------------------------------------------------------------

    def _unbroken(self, stage: Stage, spec: AttackSpec, rows: Tensor) -> Tensor:
        """Points broken neither by white-box attacks nor by this row; from candidates only what nothing broke."""
        ledger = self.attacker.ledger
        done = ledger.best_known() if stage.start == "challenger" else ledger.strong() | ledger.entry(spec).broken
        return rows[~done[rows]]

    def _stage(self, number: int, stage: Stage, spec: AttackSpec, rows: Tensor) -> None:
        outcome, attacker = self.outcomes[number], self.attacker
        known = attacker.ledger.best_known()
        candidates = {"candidates": attacker.candidates.of(rows)} if stage.start == "challenger" else {}
        result = attacker.carry_out(
            spec, rows, f"{spec.name} stage {number + 1}",
            settings=lambda: {"stage": stage, "stand_ins": self.stand_ins.learnt(stage.repairs)}, per_point=candidates,
        )  # fmt: skip
        if isinstance(result, str):
            outcome.status, outcome.reason = "skipped", result
            return
        broken = set(rows[result.broken].tolist())
        if outcome.status == "ran":  # an earlier look had no use for the stage, or it had failed there, which stays
            outcome.reason = ""
        outcome.met |= set(rows.tolist())
        outcome.broken |= broken
        outcome.new += sum(not bool(known[row]) for row in broken)
        outcome.queries += result.queries
        outcome.forwards += result.forwards
        outcome.backwards += result.backwards
        outcome.seconds += result.seconds

    def _tell(self, rows: Tensor) -> None:
        for name in self.specs:
            mine = [o for s, o in zip(self.plan.stages, self.outcomes, strict=True) if s.row == name and o.met]
            met = set[int]().union(*(outcome.met for outcome in mine)) & set(rows.tolist())
            broken = set[int]().union(*(outcome.broken for outcome in mine)) & met
            message = f"broke {len(broken)} of {len(met)}" if met else "nothing to do"
            self.attacker.tell(AuditEvent(name, len(met), True, message))

    # --- which repair did it ----------------------------------------------------------------------

    def _broken_by(self, chosen: Callable[[tuple[Repair, ...]], bool]) -> int | None:
        """Points of the sample broken by stages whose set of repairs is chosen; None where none of them met it."""
        pairs = [(s, o) for s, o in zip(self.plan.stages, self.outcomes, strict=True) if s.repairs and o.met]
        mine = [outcome for stage, outcome in pairs if chosen(stage.repairs)]
        met = set[int]().union(*(outcome.met for outcome in mine))
        if not self.sampled or not self.sampled <= met:
            return None
        return len(set[int]().union(*(outcome.broken for outcome in mine)) & self.sampled)

    def _revealed(self) -> set[int]:
        """Points that withstand white-box attacks and were broken once dormant units were opened."""
        pairs = zip(self.plan.stages, self.outcomes, strict=True)
        broken = set[int]().union(*(outcome.broken for stage, outcome in pairs if stage.opens))
        strong = self.attacker.ledger.strong()
        return {row for row in broken if not bool(strong[row])}

    def _dormant(self) -> Mechanism:
        """The rectifiers whose dormant units hide something: those that break most of it alone, else all of them."""
        pairs = [(s, o) for s, o in zip(self.plan.stages, self.outcomes, strict=True) if s.opens and o.met]
        together = set[int]().union(*(o.broken for s, o in pairs if s.purpose == "attack")) & self.sampled
        places = [repair for repair in self.plan.repairs if repair.remedy == "open"]
        alone = {
            place: max(
                (len(o.broken & self.sampled) for s, o in pairs if s.repairs[0] == place and _single(s)), default=0
            )
            for place in places
        }
        if len(places) == 1:
            alone = {places[0]: len(together)}
        by_itself = [place for place in places if alone[place] > len(together) / 2]
        guilty = by_itself or places
        notes = tuple(Confirmation(p.sentence, alone[p], len(together), len(self.sampled)) for p in guilty)
        return Mechanism(
            "saturation", TITLES["saturation"], "high" if by_itself else "medium",
            tuple(place.location for place in guilty), notes,
        )  # fmt: skip

    def _confirm(self, mechanism: Mechanism) -> Mechanism:
        cures = [r for r in self.plan.repairs if r.mechanism == mechanism.id and _at(mechanism, r)]
        whole = max((s.repairs for s in self.plan.stages if s.repairs and not s.opens), key=_curing, default=())
        if not cures or not self.sampled:
            return mechanism
        cure = cures[0]
        alone = self._broken_by(lambda repairs: len(repairs) == 1 and repair_key(repairs[0]) == repair_key(cure))
        together = self._broken_by(lambda repairs: repairs == whole) if len(whole) > 1 and cure in whole else None
        if alone is None and together is None:
            return mechanism
        note = Confirmation(cure.sentence, alone, together, len(self.sampled))
        return replace(mechanism, confirmed_by=(note,))


def _single(stage: Stage) -> bool:
    """Whether it opens the dormant units of one place only."""
    return sum(repair.remedy == "open" for repair in stage.repairs) == 1


def _curing(repairs: tuple[Repair, ...]) -> int:
    return sum(bool(repair.mechanism) for repair in repairs)


def _at(mechanism: Mechanism, repair: Repair) -> bool:
    """Whether a repair is at a place of the mechanism: the same line, or the same op of the same module."""
    where = repair.location
    return any(
        repair.remedy in ("boundary", "prefix")
        or (place.module == where.module and (place.line == where.line or place.op == where.op))
        for place in mechanism.locations
    )
