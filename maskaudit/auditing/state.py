"""What one audit knows while it runs; phases read and extend it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from maskaudit.attacks.interface import AttackSpec, Phase
from maskaudit.auditing.adaptive import AdaptiveAttack
from maskaudit.auditing.attacker import Attacker
from maskaudit.auditing.catalogue import Catalogue, wanted
from maskaudit.auditing.challenge import Challenge
from maskaudit.auditing.ledger import Ledger
from maskaudit.data import Dataset
from maskaudit.loading.interface import LoadedModel
from maskaudit.probes.interface import Probe
from maskaudit.results import BranchRow, ProbeResult
from maskaudit.settings import AuditSettings, Listener
from maskaudit.target import Target
from maskaudit.target.recognise import Recognised
from maskaudit.threat import ThreatModel
from maskaudit.verdict.levels import LevelName, fired_indicators
from maskaudit.verdict.power import NOT_CHECKED, Power
from maskaudit.verdict.rules import Judgement


@dataclass
class AuditState:
    """State of one audit.

    Attributes:
        target, loaded, data, threat, settings: what is audited, on what, and how.
        attacker: runs attacks and books them in `ledger`; `tell` is called with every step.
        catalogue, specs: everything there is to run, and the attacks that this audit runs, in order.
        looks: numbers of drawn points at which the verdict is looked at.
        notes: sentences for the report.
        recognised: what was found about the model at the start.
        first_probes, attack_probes: results of the probes of the model, and of those that compare attacks.
        probed: whether the probes of the model were begun.
        trace: the plain form of the trace, empty before it; `adaptive` the plan made from it.
        challenge: how the challengers divide their effort; made by their phase.
        branches: what was found of each branch that the user named.
        power: the power check; `figures`: data for figures.
        certified: per drawn point whether bounds prove it robust; None where that was not asked, or cannot be known.
        judgement: the verdict on the looks that are finished; None while one is under way.
        decided: whether the verdict is, so that further points serve the accuracy alone.
        undecided: levels at which attacks are still compared.
        matched: drawn points on which cross-entropy has had the effort of all losses; `searched`: those on which the
            challengers have searched wherever they could reveal something; `repaired`: those that met the repaired
            gradient. All count from the first point.
        started: when the audit began, on the clock of `time.perf_counter`.
    """

    target: Target
    loaded: LoadedModel
    data: Dataset
    threat: ThreatModel
    settings: AuditSettings
    attacker: Attacker
    catalogue: Catalogue
    specs: tuple[AttackSpec, ...]
    looks: tuple[int, ...]
    tell: Listener
    notes: list[str]
    recognised: Recognised = field(default_factory=Recognised)
    first_probes: list[ProbeResult] = field(default_factory=list)
    probed: bool = False
    attack_probes: list[ProbeResult] = field(default_factory=list)
    trace: dict[str, Any] = field(default_factory=dict)
    adaptive: AdaptiveAttack | None = None
    challenge: Challenge | None = None
    branches: dict[str, BranchRow] = field(default_factory=dict)
    power: Power = NOT_CHECKED
    figures: dict[str, Any] = field(default_factory=dict)
    judgement: Judgement | None = None
    certified: Tensor | None = None
    decided: bool = False
    undecided: frozenset[LevelName] = frozenset({"gradient", "loss"})
    matched: int = 0
    searched: int = 0
    repaired: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def ledger(self) -> Ledger:
        """Which attack broke which point."""
        return self.attacker.ledger

    def attacks(self, phase: Phase) -> list[AttackSpec]:
        """The attacks of one phase, in order."""
        return [spec for spec in self.specs if spec.phase == phase]

    def probes(self, *, comparing_attacks: bool) -> list[Probe]:
        """The probes that this audit runs: those of the model, or those that compare attacks."""
        return [
            probe
            for probe in self.catalogue.probes
            if wanted(self.settings, probe.rule) and ("attacks" in probe.needs) is comparing_attacks
        ]

    def left_out(self) -> dict[str, str]:
        """Attacks and probes that the user left out, with the essential part that each belongs to, if any."""
        attacks = {spec.name: spec.part for spec in self.catalogue.attacks if spec.role != "reference"}
        parts = {**attacks, **{probe.rule: "" for probe in self.catalogue.probes}}
        return {name: part for name, part in parts.items() if not wanted(self.settings, name)}

    def probe_results(self) -> tuple[ProbeResult, ...]:
        """All results so far, in the order of the catalogue."""
        order = {probe.rule: number for number, probe in enumerate(self.catalogue.probes)}
        return tuple(sorted([*self.first_probes, *self.attack_probes], key=lambda result: order[result.rule]))

    def suspected(self) -> bool:
        """Whether a probe of the screen fired or the trace located a fault."""
        return bool(self.trace.get("culprits") or fired_indicators((*self.first_probes, *self.attack_probes)))
