"""The course of a training as a picture: loss, accuracies and logit scale against the epoch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskaudit.errors import InputError, UsageError, describe_error
from maskaudit.files import write_atomically
from maskaudit.train.interface import TrainEvent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: File types that are written, by what follows the last dot.
TYPES = ("svg", "png", "pdf")


def check_picture(path: Path) -> None:
    """Raise UsageError for a file type that is not written."""
    if path.suffix.removeprefix(".") not in TYPES:
        raise UsageError(f"The picture must end in .{', .'.join(TYPES)}; found {path.name!r}.")


def write_picture(path: Path, history: Sequence[TrainEvent]) -> None:
    """Draw the epochs so far; the file is replaced as a whole.

    Raises:
        InputError: when the file cannot be written.
    """
    import matplotlib.style  # takes a second, which only a picture is worth

    with matplotlib.style.context(["default", {"svg.hashsalt": "maskaudit"}]):
        figure = _drawn(history)
        stream = io.BytesIO()
        kind = path.suffix.removeprefix(".")
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    try:
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise InputError(f"The picture {str(path)!r} cannot be written: {describe_error(error)}.") from error


def _drawn(history: Sequence[TrainEvent]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 3), layout="constrained")
    loss, shares, scale = figure.subplots(1, 3)
    epochs = [event.epoch for event in history]
    loss.plot(epochs, [event.loss for event in history], marker=".")
    loss.set_title("mean loss")
    shares.plot(epochs, [event.accuracy for event in history], marker=".", label="model, training points")
    known = [(event.epoch, event.auxiliary_accuracy) for event in history if event.auxiliary_accuracy is not None]
    if known:
        shares.plot(*zip(*known, strict=True), marker=".", ls="--", label="auxiliary network, gradients")
        shares.legend()
    shares.set_ylim(0, 1.02)
    shares.set_title("accuracy")
    scale.plot(epochs, [max(event.logit_scale, 1e-9) for event in history], marker=".")
    scale.set_yscale("log")
    scale.set_title("mean largest |logit|")
    for axes in (loss, shares, scale):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{history[0].method}: {len(history)} of {history[0].epochs} epochs")
    return figure
