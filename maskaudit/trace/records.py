"""What a trace found, as frozen dataclasses that turn into JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from maskaudit.results import Confidence, Location, plain
from maskaudit.settings.plan import Remedy
from maskaudit.target.kinds import OutputKind
from maskaudit.verdict.limits import TRACE_AGREEMENT, ZERO_GRADIENT_SHARE

ModelKind = Literal["module", "torchscript", "callable"]


@dataclass(frozen=True)
class Flow:
    """Gradient through one op, over the points at which a gradient arrives.

    Attributes:
        points: how many points have a non-zero gradient arriving at the op's output.
        norm_in: median Euclidean norm of the gradient arriving.
        norm_out: median Euclidean norm of the gradient that leaves towards the input.
        zero_share: share of those points where what leaves is exactly zero.
        nonfinite_share: share of all points where what leaves is not finite.
        blocked_share: for activations, rounding and custom Functions, share of units whose arriving gradient shrinks
            by more than `maskaudit.verdict.limits.BLOCKED_SLOPE`; else None.
    """

    points: int
    norm_in: float
    norm_out: float
    zero_share: float
    nonfinite_share: float
    blocked_share: float | None


@dataclass(frozen=True)
class Op:
    """One op of the forward pass, in execution order.

    Attributes:
        index: position in the forward pass.
        location: module path (as in `named_modules`, "" for the root), op name and the user's source line.
        nodes: names of its autograd nodes.
        shape: shape of its first tensor output.
        in_shape: shape of its first tensor input, None if unknown.
        live_in: whether an input was connected to the model's input in the autograd graph.
        live_out: whether its output is.
        carries: whether its data come from the model's input; also where they may, because data left torch before.
        parents: indices of the ops that made its inputs.
        kind: "torch" for an observed call, "function" for a custom autograd Function, "node" for an autograd
            node without a visible call, "entry" for a tensor from outside torch, "escape" for data that leave it.
        grad_mode: whether gradients were recorded when it ran.
        flow: gradient flow; None where no gradient was traced through it.
    """

    index: int
    location: Location
    nodes: tuple[str, ...]
    shape: tuple[int, ...] | None
    in_shape: tuple[int, ...] | None
    live_in: bool
    live_out: bool
    carries: bool
    parents: tuple[int, ...]
    kind: Literal["torch", "function", "node", "entry", "escape"]
    grad_mode: bool = True
    flow: Flow | None = None


@dataclass(frozen=True)
class Cut:
    """A place where data pass and the gradient does not; `revived` when it joins a live path downstream."""

    location: Location
    op: int
    revived: bool
    sentence: str


@dataclass(frozen=True)
class FunctionCheck:
    """A custom autograd Function against central differences of its own forward.

    Attributes:
        agreement: largest correlation between backward and differences over the scales; None if undefined.
        kind: "honest", "zero" (backward returns nothing), "lying" (something else), "unchecked".
        smooth: whether the forward itself has a derivative worth the name at the finest scale.
    """

    name: str
    location: Location
    agreement: float | None
    kind: Literal["honest", "zero", "lying", "unchecked"]
    smooth: bool


@dataclass(frozen=True)
class Randomness:
    """Where random answers come from, and what they do.

    Attributes:
        sources: generators consumed ("torch", "torch.cuda", "random", "numpy"), or "private" (a generator of its own),
            or "state" (the model changes itself from one answer to the next).
        location: first op whose output differs between two draws.
        logit_spread: median over points of the largest score change between draws.
        flips: share of points whose decision changes between draws.
    """

    sources: tuple[str, ...]
    location: Location
    logit_spread: float
    flips: float


@dataclass(frozen=True)
class GradientHealth:
    """The input gradient of the logit margin as a whole.

    Attributes:
        connected: whether the output depends on the input in the autograd graph.
        zero_share: share of points with an exactly zero margin gradient.
        ce_zero_share: the same for cross-entropy.
        agreement: (step size, correlation of directional derivatives with central differences) per scale.
        pairs: how many directional derivatives were compared, per scale.
        constant: whether the gradient is zero everywhere and all points have the very same scores.
    """

    connected: bool
    zero_share: float
    ce_zero_share: float
    agreement: tuple[tuple[float, float], ...]
    pairs: tuple[int, ...] = ()
    constant: bool = False

    @property
    def poor(self) -> bool:
        """Whether it is of little use: cut, zero on too many points, or at odds with central differences."""
        disagrees = min(value for _, value in self.agreement) < TRACE_AGREEMENT
        return not self.connected or self.zero_share > ZERO_GRADIENT_SHARE or disagrees


@dataclass(frozen=True)
class Culprit:
    """A suspect: mechanism id of `maskaudit.verdict.mechanisms.TITLES`, place, confidence, one sentence.

    `remedy` says which repair fits, `op` is the index in `Trace.ops` (−1 for the output as a whole) and
    `scale` a figure that the repair needs (temperature or divisor).
    """

    mechanism: str
    location: Location
    confidence: Confidence
    sentence: str
    remedy: Remedy = "none"
    op: int = -1
    scale: float = 1.0


@dataclass(frozen=True)
class Fork:
    """Branches that run side by side and meet at `join`: the modules that end them, and how many have none."""

    join: Location
    branches: tuple[str, ...]
    unnamed: int


@dataclass(frozen=True)
class Trace:
    """Everything a trace found; `to_dict` has JSON types only.

    `parallel` are cuts parallel to a path that stays live, where the gradient is poor: faults or not, which only
    their repair shows. `estimators` are the places of straight-through estimators, which are none. `identities` are the
    paths of modules (the root excepted) whose input and output have equal shapes. `batch_dependent` is the op by which
    the answer to a point depends on the other points of its batch, if one does. `forks` are the places where branches
    meet again. `shrinks` is the op that brings the scores so close together that cross-entropy follows all classes: no
    suspect, but a cause where its attacks miss what others find.
    """

    kind: ModelKind
    points: int
    ops: tuple[Op, ...]
    cuts: tuple[Cut, ...]
    functions: tuple[FunctionCheck, ...]
    randomness: Randomness | None
    output_kind: OutputKind
    health: GradientHealth
    optimises: tuple[Location, ...]
    culprits: tuple[Culprit, ...]
    parallel: tuple[Culprit, ...] = ()
    estimators: tuple[Location, ...] = ()
    identities: tuple[str, ...] = ()
    batch_dependent: Location | None = None
    forks: tuple[Fork, ...] = ()
    shrinks: Location | None = None

    @property
    def healthy(self) -> bool:
        """Whether no suspect was found."""
        return not self.culprits

    def to_dict(self) -> dict[str, Any]:
        """Plain form for reports."""
        return plain(dataclasses.asdict(self))
