"""What an audit was asked to do, and who is told how it goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from maskaudit.errors import UsageError

if TYPE_CHECKING:
    from maskaudit.repairs.plan import Plan

#: What a model gives out.
Outputs = Literal["logits", "probabilities"]
BudgetName = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True)
class Budget:
    """How much an audit may spend.

    Attributes:
        looks: numbers of drawn points at which the verdict is looked at; the last is the most it draws.
        steps: gradient steps of one Auto-PGD run.
        targets: wrong classes tried by the targeted attack.
        queries: forward passes per point of the score-based search.
        decision_queries: of the decision-based attack.
        noise_draws: random-sign draws per point.
        surrogate_rounds: training rounds of the surrogate.
        probe_points: points that probes measure.
        second_opinion: points that torchattacks attacks.
        curve_points: points of the figure of accuracy against ε.
    """

    looks: tuple[int, ...]
    steps: int
    targets: int
    queries: int
    decision_queries: int
    noise_draws: int
    surrogate_rounds: int
    probe_points: int
    second_opinion: int
    curve_points: int


BUDGETS: dict[BudgetName, Budget] = {
    "quick": Budget(
        looks=(64, 128), steps=25, targets=2, queries=400, decision_queries=400, noise_draws=100,
        surrogate_rounds=2, probe_points=64, second_opinion=16, curve_points=16,
    ),
    "standard": Budget(
        looks=(200, 400, 800), steps=50, targets=4, queries=1500, decision_queries=1000, noise_draws=300,
        surrogate_rounds=2, probe_points=128, second_opinion=32, curve_points=32,
    ),
    "thorough": Budget(
        looks=(400, 800, 1600), steps=100, targets=9, queries=5000, decision_queries=4000, noise_draws=1000,
        surrogate_rounds=4, probe_points=256, second_opinion=96, curve_points=64,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class AuditSettings:
    """Settings of one audit.

    Attributes:
        budget: name of the effort, see `BUDGETS`.
        samples: most points to draw; None leaves it to the budget.
        seed: seed of everything random.
        claim: claimed robust accuracy in [0, 1], if any.
        outputs: what the model returns; "auto" looks at its answers to clean inputs.
        mean, std: normalisation applied before the model, if it is not part of it.
        reject_class: index of a refusal output, if the model has one.
        device: where the model runs.
        batch_size: largest number of points per pass; None leaves it to the size of an input.
        call_timeout: seconds that one pass may last, where the command line supervises it; None adapts to the passes
            seen, 0 allows any time.
        workers: worker processes that share the attacks; None runs them in this process.
        ray: address of a Ray cluster that runs them instead, if any.
        select: if given, only these probes and attacks run (the reference attack always does).
        ignore: probes and attacks left out.
        extra_attacks: attacks added to the battery, `torchattacks:NAME`.
        certified: certified lower bound of robust accuracy, if known.
        arch: SPEC of the module that the user gave for a state dict, for the report.
        fail_on: what fails the build, for the report.
        defaults: names of settings the user did not choose, for the report.
        command: the command line that asked for the audit, for the report.
        plan: the stages of the adaptive attack; None leaves them to trace and probes.

    Raises:
        UsageError: for values out of range.
    """

    budget: BudgetName = "standard"
    samples: int | None = None
    seed: int = 0
    claim: float | None = None
    outputs: Outputs | Literal["auto"] = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    reject_class: int | None = None
    device: str = "cpu"
    batch_size: int | None = None
    call_timeout: float | None = None
    workers: int | None = None
    ray: str = ""
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    extra_attacks: tuple[str, ...] = ()
    certified: float | None = None
    arch: str = ""
    fail_on: str = "masked"
    defaults: tuple[str, ...] = ()
    command: str = ""
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise UsageError(f"The budget must be one of {', '.join(BUDGETS)}, got {self.budget!r}.")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"The number of samples must be at least 1, got {self.samples}.")
        if self.claim is not None and not 0 <= self.claim <= 1:
            raise UsageError(f"A claimed robust accuracy is a fraction between 0 and 1, got {self.claim:g}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"The batch size must be at least 1, got {self.batch_size}.")
        if self.call_timeout is not None and not 0 <= self.call_timeout < math.inf:
            raise UsageError(f"The time limit of a call must be 0 (none) or more seconds, got {self.call_timeout:g}.")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"The number of workers must be at least 1, got {self.workers}.")
        if self.workers is not None and self.ray:
            raise UsageError("Give either --workers or --ray, not both.")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"The seed must be a whole number from 0 to 2^63 - 1, got {self.seed}.")

    @property
    def effort(self) -> Budget:
        """The figures behind the budget's name."""
        return BUDGETS[self.budget]

    def looks(self, available: int) -> tuple[int, ...]:
        """Numbers of points at which the verdict is looked at, given how many the data set has.

        Past the looks of the budget each doubles the one before, so that no audit draws more than twice the points
        that its verdict needs.
        """
        most = min(available, self.samples or self.effort.looks[-1])
        looks = list(self.effort.looks)
        while 2 * looks[-1] < most:
            looks.append(2 * looks[-1])
        return (*(n for n in looks if n < most), most)


@dataclass(frozen=True)
class AuditEvent:
    """One step of an audit: what, how many points, whether it is done, and how it ended.

    `total` above 0 announces that many steps to come, so that a listener can estimate the time left.
    """

    step: str
    points: int = 0
    finished: bool = False
    outcome: str = ""
    seconds: float = 0.0
    total: int = 0


Listener = Callable[[AuditEvent], None]


def ignore_events(event: AuditEvent) -> None:
    """The listener for callers who want silence."""
