"""What a probe is: it measures, it never judges.

A probe is one file with one registered `Probe`. Its module docstring is what
`maskaudit explain RULE` prints (raised when / what it means / what to do /
source). Limits that turn a measurement into a finding live in
`maskaudit.verdict.limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from maskaudit.results import AttackRow, ProbeFinding
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

Need = Literal["gradients", "module", "attacks"]


@dataclass(frozen=True)
class AttackOutcome:
    """Re-scored outcome of one attack on the probe's points: `broken` is bool (N,).

    `attempted` is bool (N,), None for all: challengers are spared most points that white-box attacks broke.
    """

    row: AttackRow
    broken: Tensor
    attempted: Tensor | None = None


@dataclass(frozen=True)
class ProbeContext:
    """What a probe may look at.

    Attributes:
        target: the open target.
        x, y: correctly classified points (N, …) and labels (N,).
        threat: threat model of the audit.
        rng: random numbers for these points.
        attacks: outcomes by attack name on the same points; empty for probes that run before the attacks.
        strong: bool (N,), broken by white-box attacks (G*); None before the attacks.
    """

    target: Target
    x: Tensor
    y: Tensor
    threat: ThreatModel
    rng: PointRNG
    attacks: Mapping[str, AttackOutcome] = field(default_factory=dict)
    strong: Tensor | None = None

    def part(self, rows: slice | Tensor) -> ProbeContext:
        """The same for some of the points, each with the random numbers it has among all; without attacks."""
        return ProbeContext(self.target, self.x[rows], self.y[rows], self.threat, self.rng.select(rows))


@dataclass(frozen=True)
class Measurement:
    """A probe's figure.

    Attributes:
        value: headline figure in `unit`.
        n: points (or units) it was measured on.
        count: for a rate, how many of the `n` (gives the exact interval); else None.
        findings: places worth naming, worst first.
        details: further figures, JSON types only.
        per_point: optional figure per point (N,) for figures in the report.
        graded: False when the headline is not the figure that the rule's limit is about (informative only).
    """

    value: float
    unit: str
    n: int
    count: int | None = None
    findings: tuple[ProbeFinding, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    per_point: tuple[float, ...] = ()
    graded: bool = True


class NotApplicable(Exception):
    """Raised by a probe that cannot run on this model; the message is the reason."""


@dataclass(frozen=True)
class Probe:
    """A registered probe.

    Attributes:
        rule: stable identifier, kebab-case.
        title: one line.
        needs: what it depends on; "attacks" probes run after the attacks.
        measure: the function.
        sources: citations.
    """

    rule: str
    title: str
    needs: frozenset[Need]
    measure: Callable[[ProbeContext], Measurement]
    sources: tuple[str, ...]
