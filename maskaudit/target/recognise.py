"""Learn what a model is before auditing it: its classes, its kind of output, and whether it answers at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from maskaudit.errors import InputError, UsageError
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs

if TYPE_CHECKING:
    from maskaudit.data import Dataset

#: Forward passes averaged per evaluation of a random model.
RANDOM_DRAWS = 8

#: Points on which a model is asked twice to see whether it answers at random.
RANDOMNESS_POINTS = 64


def recognise(target: Target, data: Dataset, settings: AuditSettings) -> list[str]:
    """Ask the model about a few points and set `target.outputs` and `target.draws` accordingly.

    Returns:
        Notes for the report, as sentences.

    Raises:
        UsageError: for a refusal class that the model does not have.
        InputError: when the labels do not fit the model's classes.
        ModelError: when the model fails.
    """
    _, x, _ = data.sample(min(RANDOMNESS_POINTS, len(data)), settings.seed)
    first = target.raw(x)
    classes, refused = first.shape[1], settings.reject_class
    if refused is not None and not 0 <= refused < classes:
        raise UsageError(f"--reject-class must be an output of the model, 0 to {classes - 1}; got {refused}.")
    if int(data.y.max()) >= classes or (refused is not None and bool((data.y == refused).any())):
        raise InputError(
            f"The data have labels up to {int(data.y.max())}, which do not fit the model's {classes} classes"
            f"{'' if refused is None else f' with class {refused} as refusal'}: "
            "give the data set that the model was trained for (--data)."
        )
    target.outputs = detect_outputs(first) if settings.outputs == "auto" else settings.outputs
    if torch.equal(first, target.raw(x)):
        return []
    target.draws = RANDOM_DRAWS
    return [
        f"The model answers at random: scores and gradients are means over {RANDOM_DRAWS} draws, and every example "
        "is judged by the majority of fresh draws."
    ]
