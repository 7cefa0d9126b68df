"""What a training run is made of: settings, one batch, a method, progress events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from maskaudit.errors import UsageError
from maskaudit.rng import PointRNG
from maskaudit.settings import Augment, Schedule, TrainSettings
from maskaudit.threat import ThreatModel, customary_eps


@dataclass(frozen=True)
class TrainConfig(TrainSettings):
    """Everything that determines a trained model: the options of `maskaudit train`, and two more.

    Attributes:
        threat: threat model of adversarial training, and the one recorded with the model.
        threads: CPU threads while training. Fixed rather than taken from the machine, because
            the order of summation, and with it the last bits of the result, depends on it.
    """

    threat: ThreatModel | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 1:
            raise UsageError(f"threads must be a whole number ≥ 1, got {self.threads}.")

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)

    def chosen(self) -> dict[str, Any]:
        """The settings that are not at their default: an option added later changes nothing here."""
        plain = TrainConfig().as_dict()
        return {key: value for key, value in self.as_dict().items() if value != plain[key]}


@dataclass
class Meter:
    """What the auxiliary network got right in an epoch, and the network that learned in it, if not the model."""

    right: int = 0
    seen: int = 0
    learner: nn.Module | None = None

    def count(self, logits: Tensor, labels: Tensor) -> None:
        """Count the answers `logits` (N, K) to `labels` (N,)."""
        self.right += int((logits.detach().argmax(1) == labels).sum())
        self.seen += len(labels)

    @property
    def accuracy(self) -> float | None:
        """Share that was right; None where nothing was counted."""
        return self.right / self.seen if self.seen else None


@dataclass(frozen=True)
class TrainPlan:
    """A `TrainConfig` with every default filled in, ready to run."""

    config: TrainConfig
    model: str
    epochs: int
    lr: float
    threat: ThreatModel
    num_classes: int
    shape: tuple[int, ...]
    schedule: Schedule = "cosine"
    augment: Augment = "none"
    alpha: float = 0.0
    beta: float = 0.0
    temperature: float = 100.0


@dataclass(frozen=True)
class Batch:
    """One optimiser step's worth of data.

    Attributes:
        x: inputs (N, …) inside the bounds.
        y: labels (N,) int64.
        epoch: passes already completed, from 0, counted over all phases.
        epochs: passes of one phase.
        rng: random numbers tied to (seed, point); draw with `step=epoch`, so that
            they depend neither on the batch nor on where a run was interrupted.
        meter: counts the auxiliary network's answers over an epoch, and is told which network learns.
    """

    x: Tensor
    y: Tensor
    epoch: int
    epochs: int
    rng: PointRNG
    meter: Meter = field(default_factory=Meter)


class Method(Protocol):
    """One way to train.

    Attributes:
        phases: how often the `epochs` passes are run, the learning rate starting anew each time.
        auxiliary: networks trained together with the model by the same loss; kept in checkpoints, not in the result.
    """

    phases: int
    auxiliary: nn.ModuleDict

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar whose gradient updates the model and the auxiliary networks."""


class OnePhase:
    """What most methods share: one phase, no networks besides the model, ball and options of the plan."""

    phases = 1

    def __init__(self, plan: TrainPlan, model: nn.Module) -> None:
        self.auxiliary = nn.ModuleDict()
        self.threat, self.config = plan.threat, plan.config


@dataclass(frozen=True)
class TrainEvent:
    """Progress after one epoch.

    Attributes:
        method: name of the method.
        epoch: epochs completed, from 1, over all phases.
        epochs: epochs in total, over all phases.
        loss: mean training loss over the epoch.
        accuracy: of the model in evaluation mode on (a sample of) the training points, in [0, 1]; of the teacher while
            `distill` trains that.
        seconds: spent in this process so far.
        eta_seconds: estimate of the time still needed.
        logit_scale: mean over those points of the largest magnitude among their logits.
        auxiliary_accuracy: share of gradients that the auxiliary network classified rightly in the epoch.
    """

    method: str
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    seconds: float
    eta_seconds: float
    logit_scale: float = 0.0
    auxiliary_accuracy: float | None = None


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says what was kept and how to go on."""


#: Exponent of the paper's learning-rate policy (Sinha et al. 2018, supplement).
RATE_POWER = 0.9


def rate_multiplier(epoch: int, epochs: int) -> float:
    """(1 − e/e_max)^0.9 in epoch `epoch`, from 0."""
    return float((1 - epoch / epochs) ** RATE_POWER)


def default_threat(shape: Sequence[int], bounds: tuple[float, float]) -> ThreatModel:
    """The customary Linf ball for inputs of `shape` (C, H, W) or (D,): the one `check` would assume."""
    return ThreatModel("Linf", customary_eps("Linf", shape, bounds), bounds)
