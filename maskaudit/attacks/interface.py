"""What an attack is, what it returns, and the best candidates that it keeps.

An attack is a plain function

    attack(target, x, y, *, threat, rng, …) -> Attempt

for points `x` (N, …) that the target classifies as `y` (N,). It never decides
whether a point is broken: it returns its best candidate per point, and code that
did not make it scores the candidate afresh (`maskaudit.target.rescore`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from maskaudit.results import Family, Part, Role
from maskaudit.sums import column

#: What an attack asks of the model: gradients, scores, answered classes, or nothing but a score of what it was given.
Kind = Literal["gradient", "score", "decision", "transfer", "random", "universal", "exact", "repaired"]

#: What a running audit gives to the attacks that ask for it, as keyword arguments: inputs (M, …) of the data, and open
#: targets that were trained on the model's answers.
Shared = Literal["pool", "surrogates"]

#: The phases of an audit that run attacks.
Phase = Literal[
    "sanity", "white_box", "challengers", "repaired", "shared", "second_opinion", "near_misses", "bounds"
]  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """What an attack brings home.

    Attributes:
        examples: the best candidate per point, admissible, shape of `x` (N, …).
        first_success: step at which the attack itself first saw the point broken, int64 (N,), −1 if never;
            steps count the attack's own unit (gradient steps or queries).
        queries: model evaluations spent per point, int64 (N,).
    """

    examples: Tensor
    first_success: Tensor
    queries: Tensor


class AttackUnavailable(Exception):
    """Raised by an attack that cannot run here, for example without its library; the message says what to do."""


@dataclass(frozen=True)
class AttackSpec:
    """A registered attack with fixed settings.

    Attributes:
        name: identifier in reports and for `--attack`.
        title: one line for people.
        kind: what it asks of the model.
        role: what it counts for: R₀ (`reference`), G* (`strong`), C (`challenger`, `repaired`), best known only
            (`second_opinion`, `exact`), or nothing, since it leaves the ball on purpose (`sanity`).
        run: the attack function.
        settings: keyword arguments passed to `run`.
        family: of a white-box attack the loss whose gradient it follows, untargeted cross-entropy (CE*) or another;
            None for attacks that do not follow the gradient of the model.
        sources: citations.
        effort: the setting that limits what it spends on a point, by which the audit may shorten it; "" for none.
        sparing: settings added where nothing is suspected of the model, to spend less on points beyond reach.
        shared: keyword arguments that a running audit adds to the settings.
        everywhere: it meets every correctly classified point, broken or not, since others are compared with it.
        second_chance: it attacks only points that another loss broke and cross-entropy did not.
        frugal: whether it is worth its queries where a model may be asked a few times only.
        phase: when an audit runs it, see `maskaudit.auditing.phases`.
        part: the essential part of the search that it belongs to, if any.
        decisive: whether an error of it leaves the verdict open, since no one knows what it would have found.
        whole: it must meet all its points at once; else it runs on some of them at a time, wherever there is a worker.

    Raises:
        ValueError: when `effort` names no whole number among the settings.
    """

    name: str
    title: str
    kind: Kind
    role: Role
    run: Callable[..., Attempt]
    settings: dict[str, Any] = field(default_factory=dict)
    family: Family | None = None
    sources: tuple[str, ...] = ()
    effort: str = ""
    sparing: dict[str, float] = field(default_factory=dict)
    shared: tuple[Shared, ...] = ()
    everywhere: bool = False
    second_chance: bool = False
    frugal: bool = True
    phase: Phase = "challengers"
    whole: bool = False
    part: Part = ""
    decisive: bool = True

    def __post_init__(self) -> None:
        if self.effort and not isinstance(self.settings.get(self.effort), int):
            raise ValueError(f"{self.name} names {self.effort!r} as its effort, but no whole number in its settings")


class BestCandidates:
    """Per point the candidate with the largest breaking margin seen so far."""

    def __init__(self, x: Tensor):
        self.examples = x.clone()
        self.margin = torch.full((len(x),), -torch.inf, device=x.device)

    @classmethod
    def of(cls, examples: Tensor, margin: Tensor) -> BestCandidates:
        """Candidates (N, …) held already, with their margins (N,); both are taken over."""
        held = cls(examples[:0])
        held.examples, held.margin = examples, margin
        return held

    def offer(self, rows: Tensor, examples: Tensor, margin: Tensor) -> None:
        """Keep `examples` (len(rows), …) where their `margin` (len(rows),) beats what is held."""
        held = self.margin[rows]
        better = margin > held
        self.examples[rows] = torch.where(column(better, examples), examples, self.examples[rows])
        self.margin[rows] = torch.where(better, margin, held)
