"""What a training run is made of: settings, one batch, a method, progress events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from maskaudit.errors import UsageError
from maskaudit.rng import PointRNG
from maskaudit.threat import ThreatModel, customary_eps


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a trained model. `None` takes the default of the method or of the data.

    Attributes:
        method: a key of `maskaudit.train.METHODS`.
        data: data source, as in `maskaudit check --data`.
        model: architecture; a built-in one is completed to fit the data, by default `small_cnn` or `mlp`.
        epochs: passes over the data in each phase of the method (distillation has two).
        seed: determines initial weights, order of the data and random starts.
        batch_size: points per optimiser step; a last batch that is smaller is kept.
        lr: Adam's initial step size, annealed to zero along a cosine over each phase.
        threat: threat model of adversarial training, and the one recorded with the model.
        attack_steps: gradient steps per training attack (pgd-at, trades).
        trades_beta: weight of the robustness term of TRADES (1/λ in the paper).
        alpha: final weight of the gradient-reversed auxiliary loss (great, great+ce).
        beta: final weight of the GREACE term (greace, great+ce).
        temperature: softmax temperature T of defensive distillation.
        threads: CPU threads while training. Fixed rather than taken from the machine, because
            the order of summation, and with it the last bits of the result, depends on it.
    """

    method: str = "standard"
    data: str = "digits"
    model: str | None = None
    epochs: int | None = None
    seed: int = 0
    batch_size: int = 64
    lr: float | None = None
    threat: ThreatModel | None = None
    attack_steps: int = 7
    trades_beta: float = 6.0
    alpha: float = 0.01
    beta: float = 0.003
    temperature: float = 100.0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "attack_steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be a whole number ≥ 1, got {value}.")
        for name in ("lr", "temperature"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be a positive number, got {value:g}.")
        for name in ("alpha", "beta", "trades_beta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be a number ≥ 0, got {value:g}.")

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """A `TrainConfig` with every default filled in, ready to run."""

    config: TrainConfig
    model: str
    epochs: int
    lr: float
    threat: ThreatModel
    num_classes: int
    shape: tuple[int, ...]


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
    """

    x: Tensor
    y: Tensor
    epoch: int
    epochs: int
    rng: PointRNG


class Method(Protocol):
    """One way to train.

    Attributes:
        phases: how often the `epochs` passes are run, the learning rate starting anew each time.
        auxiliary: networks trained beside the model by the same loss; kept in checkpoints, not in the result.
    """

    phases: int
    auxiliary: nn.ModuleDict

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar whose gradient updates the model and the auxiliary networks."""


@dataclass(frozen=True)
class TrainEvent:
    """Progress after one epoch.

    Attributes:
        method: name of the method.
        epoch: epochs completed, from 1, over all phases.
        epochs: epochs in total, over all phases.
        loss: mean training loss over the epoch.
        accuracy: of the model in evaluation mode on (a sample of) the training points, in [0, 1].
        seconds: spent in this process so far.
        eta_seconds: estimate of the time still needed.
    """

    method: str
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    seconds: float
    eta_seconds: float


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says what was kept and how to go on."""


def default_threat(shape: Sequence[int], bounds: tuple[float, float]) -> ThreatModel:
    """The customary Linf ball for inputs of `shape` (C, H, W) or (D,): the one `check` would assume."""
    return ThreatModel("Linf", customary_eps("Linf", shape, bounds), bounds)
