"""The trainer: Adam under a schedule, one loss for the model and the method's auxiliary networks.

Deterministic: the order of the points, random starts and whatever the model draws itself
(dropout) in an epoch are functions of the seed and the number of the epoch. A run that
was interrupted and resumed therefore ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.errors import ModelError, UsageError, describe_error
from maskaudit.rng import PointRNG
from maskaudit.target.preserve import preserved_random_state, seed_generators
from maskaudit.target.process_state import threads
from maskaudit.train import checkpoint
from maskaudit.train.adversaries import evaluating
from maskaudit.train.augmentation import augmented
from maskaudit.train.interface import Batch, Meter, Method, TrainEvent, TrainingInterrupted, TrainPlan, rate_multiplier
from maskaudit.train.picture import write_picture

#: Training points on which the accuracy of a progress event is taken, evenly spaced.
ACCURACY_POINTS = 2000
#: Points per forward pass when accuracy is measured.
ACCURACY_BATCH = 500

Listener = Callable[[TrainEvent], None]


@contextlib.contextmanager
def isolated(seed: int, number: int) -> Iterator[None]:
    """Gradients on, generators seeded, `number` CPU threads inside; the caller's state afterwards, come what may."""
    with preserved_random_state(), torch.enable_grad(), threads(number):
        seed_stream(seed, "initial")
        yield


class Trainer:
    """One run of a method on a model; `run` leaves the trained weights in the model."""

    def __init__(
        self, plan: TrainPlan, model: nn.Module, method: Method, x: Tensor, y: Tensor, *,
        on_event: Listener | None = None, partial: Path | None = None, picture: Path | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Set up a run on inputs `x` (N, …) and labels `y` (N,) int64.

        Args:
            plan: settings.
            model: trained in place.
            method: what is minimised.
            x: training inputs.
            y: their labels.
            on_event: hears of every finished epoch.
            partial: where progress is kept after every epoch; nowhere if None.
            picture: where the course of the training is drawn after every epoch.
            settings: what must agree before the progress of another run is taken up.
        """
        self.plan, self.model, self.method = plan, model, method
        self.x, self.y = x, y
        self.on_event, self.partial, self.settings = on_event, partial, settings or {}
        self.picture = picture
        self.history: list[TrainEvent] = []
        self.epochs = plan.epochs * method.phases
        self.device = device_of(plan.config.device)
        self.meter = Meter()
        model.to(self.device)
        method.auxiliary.to(self.device)
        parameters = [*model.parameters(), *method.auxiliary.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=plan.lr, foreach=False)
        self.started = time.monotonic()

    def run(self, *, resume: bool = False) -> None:
        """Train to the end, from the kept progress if `resume` and there is any.

        Raises:
            ModelError: when the loss stops being a finite number.
            TrainingInterrupted: on Ctrl-C; the progress file holds the last whole epoch.
            MaskauditError: when the progress file cannot be read or written, or belongs to another run.
        """
        first = self._restore() if resume else 0
        done = first
        try:
            for epoch in range(first, self.epochs):
                loss = self._epoch(epoch)
                self.history.append(self._event(epoch + 1, epoch + 1 - first, loss))
                if self.partial is not None:
                    checkpoint.write(self.partial, self._progress(epoch + 1))
                done = epoch + 1
                self._report()
        except KeyboardInterrupt as interrupt:
            raise TrainingInterrupted(self._interruption(done)) from interrupt
        self.model.eval().cpu()

    def _epoch(self, epoch: int) -> float:
        """One pass over the data; the mean loss."""
        seed_stream(self.plan.config.seed, f"epoch {epoch}")
        points = torch.arange(len(self.x))
        order = torch.argsort(PointRNG.create(self.plan.config.seed, "train.order", points).integers(2**53, step=epoch))
        batches = batches_of(order, self.plan.config.batch_size)
        self.meter = Meter()
        self.model.train()
        self.method.auxiliary.train()
        total = 0.0
        for number, index in enumerate(batches):
            self._set_learning_rate(self.plan.lr * self._rate(epoch % self.plan.epochs, number / len(batches)))
            total += self._step(index, epoch) * len(index)
        return total / len(self.x)

    def _rate(self, epoch: int, within: float) -> float:
        """Multiplier of the step size in a phase's epoch, of which the share `within` is done."""
        if self.plan.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * ((epoch + within) / self.plan.epochs)))
        return rate_multiplier(epoch, self.plan.epochs) if self.plan.schedule == "poly" else 1.0

    def _step(self, index: Tensor, epoch: int) -> float:
        """One optimiser step on the points `index` (N,), in parts if asked; their mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for part in torch.split(index, math.ceil(len(index) / self.plan.config.accumulate)):
            share = len(part) / len(index)
            loss = self._loss(part, epoch)
            value += share * self._finite(float(loss.detach()), epoch)
            (loss if share == 1 else share * loss).backward()
        self.optimizer.step()
        return value

    def _loss(self, index: Tensor, epoch: int) -> Tensor:
        """The method's loss on the points `index` (N,), a scalar."""
        rng = PointRNG.create(self.plan.config.seed, "train.noise", index)
        x = augmented(self.x[index], self.plan.augment, rng, step=epoch, fill=self.plan.threat.bounds[0])
        x, y = x.to(self.device), self.y[index].to(self.device)
        batch = Batch(x, y, epoch, self.plan.epochs, rng, self.meter)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.config.precision == "bfloat16"):
            try:
                return self.method.loss(self.model, batch)
            except ValueError as error:  # batch normalisation on a single value per channel
                raise UsageError(
                    f"The model cannot learn from {len(index)} points: {describe_error(error)}."
                ) from error

    def _finite(self, value: float, epoch: int) -> float:
        if not math.isfinite(value):
            raise ModelError(
                f"Training by {self.plan.config.method} failed in epoch {epoch + 1} of {self.epochs}: "
                f"the loss became {value}. Use fewer epochs, a smaller learning rate or smaller weights."
            )
        return value

    def _set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _progress(self, epoch: int) -> checkpoint.Checkpoint:
        return checkpoint.Checkpoint(
            self.settings,
            epoch,
            self.model.state_dict(),
            self.method.auxiliary.state_dict(),
            self.optimizer.state_dict(),
            [asdict(event) for event in self.history],
        )

    def _restore(self) -> int:
        """Take up the kept progress; the number of epochs that are done."""
        progress = checkpoint.read(self.partial, self.settings) if self.partial is not None else None
        if progress is None:
            return 0
        try:
            self.model.load_state_dict(progress.model)
            self.method.auxiliary.load_state_dict(progress.auxiliary)
            self.optimizer.load_state_dict(progress.optimizer)
            self.history = [TrainEvent(**event) for event in progress.history]
        except Exception as error:  # whatever content that fits neither network nor optimizer leads to
            raise checkpoint.unusable(self.partial, error) from error
        return progress.epoch

    def _report(self) -> None:
        if self.picture is not None:
            write_picture(self.picture, self.history)
        if self.on_event is not None:
            self.on_event(self.history[-1])

    def _event(self, done: int, done_here: int, loss: float) -> TrainEvent:
        """What there is to tell after an epoch."""
        seconds = time.monotonic() - self.started
        stride = math.ceil(len(self.x) / ACCURACY_POINTS)
        learner = self.model if self.meter.learner is None else self.meter.learner
        scores = answers(learner, self.x[::stride])
        return TrainEvent(
            method=self.plan.config.method,
            epoch=done,
            epochs=self.epochs,
            loss=loss,
            accuracy=share_right(scores, self.y[::stride]),
            seconds=seconds,
            eta_seconds=seconds / done_here * (self.epochs - done),
            logit_scale=scale_of(scores),
            auxiliary_accuracy=self.meter.accuracy,
        )

    def _interruption(self, done: int) -> str:
        state = f"Training was interrupted after epoch {done} of {self.epochs}"
        if self.partial is None or not self.partial.exists():
            return f"{state}; nothing was kept."
        return f"{state}; progress is in {self.partial}. Run the same command again with --resume to go on."


def batches_of(order: Tensor, size: int) -> list[Tensor]:
    """Points (N,) in batches of `size`; a last single one, which batch normalisation refuses, joins those before."""
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1 < size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of points (N, …) that the model classifies as `y` (N,) in evaluation mode; the mode is put back."""
    return share_right(answers(model, x), y)


def share_right(scores: Tensor, y: Tensor) -> float:
    """Share of scores (N, K) whose largest is that of `y` (N,)."""
    return int((scores.argmax(1) == y).sum()) / len(y)


def scale_of(scores: Tensor) -> float:
    """Mean over points of the largest magnitude among their scores (N, K)."""
    return float(scores.abs().amax(1).double().mean())


@torch.no_grad()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    """Scores (N, K) on the CPU, in evaluation mode; the mode is put back."""
    device = next((parameter.device for parameter in model.parameters()), x.device)
    with evaluating(model):
        return torch.cat([model(inputs.to(device)).cpu() for inputs in torch.split(x, ACCURACY_BATCH)])


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one.

    Raises:
        UsageError: for one that torch does not know or that is not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except Exception as error:  # each backend refuses in its own way
        raise UsageError(f"The device {name!r} cannot be used here: {describe_error(error)}.") from error


def seed_stream(seed: int, stream: str) -> None:
    """Seed the global generators of torch, numpy and `random`, differently for every stream."""
    derived = int.from_bytes(hashlib.blake2b(f"{seed}\0{stream}".encode(), digest_size=4).digest(), "little")
    seed_generators(derived)
