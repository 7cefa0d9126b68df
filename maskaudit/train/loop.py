"""The trainer: Adam with a cosine schedule, one loss for the model and the method's auxiliary networks.

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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.errors import ModelError
from maskaudit.rng import PointRNG
from maskaudit.target.preserve import preserved_random_state, seed_generators
from maskaudit.train import checkpoint
from maskaudit.train.interface import Batch, Method, Plan, TrainEvent, TrainingInterrupted

#: Training points on which the accuracy of a progress event is taken, evenly spaced.
ACCURACY_POINTS = 2000
#: Points per forward pass when accuracy is measured.
ACCURACY_BATCH = 500

Listener = Callable[[TrainEvent], None]


@contextlib.contextmanager
def isolated(seed: int, threads: int) -> Iterator[None]:
    """Gradients on, generators seeded, CPU threads fixed inside; the caller's state afterwards, come what may."""
    before = torch.get_num_threads()
    with preserved_random_state(), torch.enable_grad():
        seed_stream(seed, "initial")
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class Trainer:
    """One run of a method on a model; `run` leaves the trained weights in the model."""

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        method: Method,
        x: Tensor,
        y: Tensor,
        *,
        on_event: Listener | None = None,
        partial: Path | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Set up a run on inputs `x` (N, …) and labels `y` (N,) int64.

        Args:
            plan: settings.
            model: trained in place.
            method: what is minimised.
            x: training inputs.
            y: their labels.
            on_event: hears of every finished epoch.
            partial: where progress is kept after every epoch; nowhere if None.
            settings: what must agree before the progress of another run is taken up.
        """
        self.plan, self.model, self.method = plan, model, method
        self.x, self.y = x, y
        self.on_event, self.partial, self.settings = on_event, partial, settings or {}
        self.epochs = plan.epochs * method.phases
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
                if self.partial is not None:
                    checkpoint.write(self.partial, self._progress(epoch + 1))
                done = epoch + 1
                self._report(done, done - first, loss)
        except KeyboardInterrupt as interrupt:
            raise TrainingInterrupted(self._interruption(done)) from interrupt
        self.model.eval()

    def _epoch(self, epoch: int) -> float:
        """One pass over the data; the mean loss."""
        seed_stream(self.plan.config.seed, f"epoch {epoch}")
        points = torch.arange(len(self.x))
        order = torch.argsort(PointRNG.create(self.plan.config.seed, "train.order", points).integers(2**53, step=epoch))
        batches = torch.split(order, self.plan.config.batch_size)
        self.model.train()
        self.method.auxiliary.train()
        total = 0.0
        for number, index in enumerate(batches):
            progress = (epoch % self.plan.epochs + number / len(batches)) / self.plan.epochs
            self._set_learning_rate(0.5 * self.plan.lr * (1 + math.cos(math.pi * progress)))
            total += self._step(index, epoch) * len(index)
        return total / len(self.x)

    def _step(self, index: Tensor, epoch: int) -> float:
        rng = PointRNG.create(self.plan.config.seed, "train.noise", index)
        batch = Batch(self.x[index], self.y[index], epoch, self.plan.epochs, rng)
        loss = self.method.loss(self.model, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(
                f"Training by {self.plan.config.method} failed in epoch {epoch + 1} of {self.epochs}: "
                f"the loss became {value}. Use fewer epochs, a smaller learning rate or smaller weights."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return value

    def _set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _progress(self, epoch: int) -> checkpoint.Progress:
        return checkpoint.Progress(
            self.settings,
            epoch,
            self.model.state_dict(),
            self.method.auxiliary.state_dict(),
            self.optimizer.state_dict(),
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
        except Exception as error:  # whatever content that fits neither network nor optimizer leads to
            raise checkpoint.unusable(self.partial, error) from error
        return progress.epoch

    def _report(self, done: int, done_here: int, loss: float) -> None:
        if self.on_event is None:
            return
        seconds = time.monotonic() - self.started
        stride = math.ceil(len(self.x) / ACCURACY_POINTS)
        score = accuracy(self.model, self.x[::stride], self.y[::stride])
        eta = seconds / done_here * (self.epochs - done)
        self.on_event(TrainEvent(self.plan.config.method, done, self.epochs, loss, score, seconds, eta))

    def _interruption(self, done: int) -> str:
        state = f"Training was interrupted after epoch {done} of {self.epochs}"
        if self.partial is None or not self.partial.exists():
            return f"{state}; nothing was kept."
        return f"{state}; progress is in {self.partial}. Run the same command again with --resume to go on."


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of points (N, …) that the model classifies as `y` (N,) in evaluation mode; the mode is put back."""
    training = model.training
    model.eval()
    try:
        right = 0
        for inputs, labels in zip(torch.split(x, ACCURACY_BATCH), torch.split(y, ACCURACY_BATCH), strict=True):
            right += int((model(inputs).argmax(1) == labels).sum())
    finally:
        model.train(training)
    return right / len(x)


def seed_stream(seed: int, stream: str) -> None:
    """Seed the global generators of torch, numpy and `random`, differently for every stream."""
    derived = int.from_bytes(hashlib.blake2b(f"{seed}\0{stream}".encode(), digest_size=4).digest(), "little")
    seed_generators(derived)
