"""`FILE.partial`: a training run that can be taken up again.

Holds tensors and plain values only, so it is read with torch's safe loader. No random
state is stored: every draw is a function of (seed, epoch, point), see `loop.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskaudit.errors import InputError, UsageError, describe_error
from maskaudit.files import write_atomically

VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """A run after some number of whole epochs.

    Attributes:
        settings: everything that determines the run, as plain JSON types.
        epoch: epochs completed.
        model: the model's state dict.
        auxiliary: the state dict of the method's networks.
        optimizer: the optimiser's state dict.
        history: the events of the epochs so far, as plain values.
    """

    settings: dict[str, Any]
    epoch: int
    model: dict[str, Any]
    auxiliary: dict[str, Any]
    optimizer: dict[str, Any]
    history: list[dict[str, Any]]


def partial_path(out: str | os.PathLike[str]) -> Path:
    """Where the run that will write `out` keeps its progress."""
    return Path(os.fspath(out) + ".partial")


def write(path: Path, progress: Checkpoint) -> None:
    """Replace the progress file; it is complete or absent, whenever the process is stopped.

    Raises:
        InputError: when the path cannot be written.
    """
    stream = io.BytesIO()
    torch.save({"version": VERSION, **vars(progress)}, stream)
    try:
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise InputError(f"The progress file {str(path)!r} cannot be written: {describe_error(error)}.") from error


def read(path: Path, settings: dict[str, Any]) -> Checkpoint | None:
    """The progress kept in `path`, or None when there is no such file.

    Raises:
        InputError: for a file that is damaged or not ours.
        UsageError: for one that was started with other settings than `settings`.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        progress = Checkpoint(**{key: value for key, value in content.items() if key != "version"})
        if not isinstance(progress.settings, dict) or type(progress.epoch) is not int or progress.epoch < 0:
            raise ValueError("settings or epoch are of the wrong kind")
    except Exception as error:  # torch.load raises many kinds for damaged bytes
        raise unusable(path, error) from error
    different = [key for key in settings if progress.settings.get(key) != settings[key]]
    if different:
        was = ", ".join(f"{key}={progress.settings.get(key)!r}" for key in different)
        now = ", ".join(f"{key}={settings[key]!r}" for key in different)
        raise UsageError(
            f"{path} was started with {was}, not {now}; give the same settings, or start without --resume."
        )
    return progress


def unusable(path: Path | None, error: Exception) -> InputError:
    """The sentence for progress that cannot be used."""
    return InputError(
        f"{path} is not a training run that can be resumed ({describe_error(error)}); "
        "delete it and start without --resume."
    )


def remove(path: Path) -> None:
    """Delete the progress file if it is there."""
    with contextlib.suppress(OSError):
        path.unlink()
