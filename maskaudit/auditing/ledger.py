"""The ledger: which attack broke which point, with the examples that prove it.

Families (design, section 1): the reference R₀ is the attack with the role
`reference`; CE* holds every attack of the family `cross_entropy`; G* every attack
with the role `reference` or `strong`; C every `challenger` or `repaired`
attack. Best known is the union of all, the second opinion included. Attacks of
the role `sanity` leave the ball on purpose and count nowhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskaudit.attacks.interface import AttackSpec
from maskaudit.results import AttackRow
from maskaudit.verdict.recorded import Families
from maskaudit.verdict.statistics import rate

#: Why an attack that found nothing to do did not run.
ALL_BROKEN = "every point had been broken"


@dataclass
class AttackEntry:
    """What one attack did; masks over all drawn points (P,), tensors over the points broken."""

    spec: AttackSpec
    attempted: Tensor
    broken: Tensor
    new: int = 0
    examples: dict[int, Tensor] = field(default_factory=dict)
    first_success: dict[int, int] = field(default_factory=dict)
    won: dict[int, int] = field(default_factory=dict)  # draws of a random model that an example won in its proof
    queries: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    status: str = "ran"
    reason: str = ""
    lost: bool = False  # workers were lost with some of its points, and none could do these
    settings: dict[str, float] = field(default_factory=dict)  # what the audit settled while it ran, besides the spec's


class Ledger:
    """Points drawn so far (P of them) and every attack's re-scored outcome on them."""

    def __init__(self) -> None:
        self.index: list[int] = []
        self.x = torch.empty(0)
        self.y = torch.empty(0, dtype=torch.int64)
        self.correct = torch.empty(0, dtype=torch.bool)
        self.predicted = torch.empty(0, dtype=torch.int64)
        self.entries: dict[str, AttackEntry] = {}

    def __len__(self) -> int:
        return len(self.index)

    def add_points(self, index: Tensor, x: Tensor, y: Tensor, correct: Tensor, predicted: Tensor) -> None:
        """Append drawn points: data set index (n,), inputs (n, …), labels, clean correctness and clean answer."""
        self.x = x.clone() if not self.index else torch.cat([self.x, x])
        self.y = torch.cat([self.y, y])
        self.correct = torch.cat([self.correct, correct])
        self.predicted = torch.cat([self.predicted, predicted])
        self.index += index.tolist()
        for entry in self.entries.values():
            pad = torch.zeros(len(x), dtype=torch.bool)
            entry.attempted = torch.cat([entry.attempted, pad])
            entry.broken = torch.cat([entry.broken, pad])

    def entry(self, spec: AttackSpec) -> AttackEntry:
        """The attack's entry, opened on first use."""
        if spec.name not in self.entries:
            blank = torch.zeros(len(self), dtype=torch.bool)
            self.entries[spec.name] = AttackEntry(spec, blank.clone(), blank.clone())
        return self.entries[spec.name]

    def record(
        self, spec: AttackSpec, rows: Tensor, examples: Tensor, broken: Tensor, first_success: Tensor,
        won: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Book the re-scored outcome for points `rows` (n,): candidates (n, …), broken and first success (n,).

        `won` (n,) are the draws of a random model that the candidates won in their proof.
        """
        before = self.best_known()
        entry = self.entry(spec)
        entry.attempted[rows] = True
        entry.broken[rows] |= broken
        if spec.role != "sanity":
            entry.new += int((broken & ~before[rows]).sum())
        for position in broken.nonzero().squeeze(1).tolist():
            row = int(rows[position])
            entry.examples[row] = examples[position].clone()
            entry.first_success[row] = int(first_success[position])
            if won is not None:
                entry.won[row] = int(won[position])

    @property
    def families(self) -> Families:
        """The names of the attacks so far, by family."""
        return Families.of(entry.spec for entry in self.entries.values())

    def _broken_by(self, names: Collection[str]) -> Tensor:
        broken = torch.zeros(len(self), dtype=torch.bool)
        for name in names:
            broken |= self.entries[name].broken
        return broken

    def reference(self) -> Tensor:
        """Points broken by the reference attack R₀, bool (P,)."""
        return self._broken_by(self.families.reference)

    def cross_entropy(self) -> Tensor:
        """Points broken by white-box attacks on cross-entropy (CE*), bool (P,)."""
        return self._broken_by(self.families.cross_entropy)

    def strong(self) -> Tensor:
        """Points broken by white-box attacks on any loss (G*), bool (P,)."""
        return self._broken_by(self.families.strong)

    def challengers(self) -> Tensor:
        """Points broken by challengers (C), bool (P,)."""
        return self._broken_by(self.families.challengers)

    def best_known(self) -> Tensor:
        """Broken by anything, bool (P,)."""
        return self._broken_by(self.families.every)

    def examples_of(self, row: int) -> list[tuple[str, Tensor]]:
        """Attacks that broke a point, with their examples, in the order they ran."""
        return [
            (entry.spec.name, entry.examples[row])
            for entry in self.entries.values()
            if entry.spec.role != "sanity" and row in entry.examples
        ]

    def rows(self) -> tuple[AttackRow, ...]:
        """One row per attack, in the order they first ran."""
        return tuple(self._row(entry) for entry in self.entries.values())

    def why_idle(self) -> str:
        """Why an attack that could have run met no point."""
        if bool((self.correct & ~self.best_known()).any()):
            return "the verdict was decided before it met a point"
        return ALL_BROKEN

    def _row(self, entry: AttackEntry) -> AttackRow:
        spec, n = entry.spec, len(self)
        idle = entry.status == "ran" and not bool(entry.attempted.any())
        status, reason = ("skipped", self.why_idle()) if idle else (entry.status, entry.reason)
        whole = bool((entry.attempted | ~self.correct).all()) and status == "ran" and n > 0
        robust = int((self.correct & ~entry.broken).sum())
        steps = sorted(step for step in entry.first_success.values() if step >= 0)
        return AttackRow(
            name=spec.name,
            title=spec.title,
            kind=spec.kind,
            role=spec.role,
            family=spec.family,
            robust_accuracy=robust / n if whole else None,
            interval=rate(robust, n) if whole else None,
            broken=int(entry.broken.sum()),
            attempted=int(entry.attempted.sum()),
            new=entry.new,
            queries=entry.queries,
            forwards=entry.forwards,
            backwards=entry.backwards,
            seconds=round(entry.seconds, 3),
            status=status,  # type: ignore[arg-type]
            reason=reason,
            settings={
                key: value
                for key, value in {**spec.settings, **entry.settings}.items()
                if isinstance(value, (int, float, str, bool))
            },
            sources=spec.sources,
            curve=tuple(_curve(steps)),
            part=spec.part,
            decisive=spec.decisive and (spec.phase != "repaired" or entry.lost),
        )


def _curve(steps: list[int]) -> list[tuple[int, int]]:
    """[(step, points broken by then)], at most 40 support points."""
    if not steps:
        return []
    support = sorted(set(steps))
    if len(support) > 40:
        support = [support[round(i * (len(support) - 1) / 39)] for i in range(40)]
    return [(step, sum(1 for s in steps if s <= step)) for step in support]
