"""Learn what a model is before auditing it: its classes, its kind of output, and whether it answers at random."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from maskaudit.errors import InputError, ModelError, UsageError
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.target.dependence import Dependence, measure_dependence
from maskaudit.target.diagnose import TRIED_POINTS, Diagnosis, diagnose
from maskaudit.target.fit import FEW, fit
from maskaudit.target.form import SHARES, SINGLE, Form
from maskaudit.target.kinds import AnswerKind, recognise_outputs
from maskaudit.target.rescore import PROOF


class Points(Protocol):
    """What is asked of a data set here, see `maskaudit.data.Dataset`."""

    @property
    def y(self) -> Tensor:
        """Labels (N,)."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    def __len__(self) -> int: ...

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Index (n,), inputs (n, …) and labels (n,) of the first `n` points in the order of the seed."""
        ...


#: Forward passes averaged per evaluation of a random model.
RANDOM_DRAWS = 8

#: Points on which a model is asked before its audit.
ASKED_POINTS = 64

#: Outputs that are looked through where the first has more columns than there are classes.
MOST_OUTPUTS = 4

_READ = {
    "log-probabilities": "they serve as scores as they are",
    "probabilities": "their logarithms are the scores",
    "votes": "the logarithms of their shares are the scores",
    "sigmoids": "each is read as the log-odds of its class, and the largest wins",
    "one-logit": "above {threshold:g} it means class 1",
    "one-probability": "above {threshold:g} it means class 1, and its log-odds are the score",
}


@dataclass(frozen=True)
class Recognised:
    """What was found: notes for the report, as sentences, and what answers depend on."""

    notes: list[str] = field(default_factory=list)
    dependence: Dependence = field(default_factory=Dependence)
    diagnosis: Diagnosis | None = None

    @property
    def caveats(self) -> tuple[str, ...]:
        """The limits that the verdict must state of itself."""
        chance = [PROOF.sentence] if self.dependence.random else []
        return (*self.dependence.sentences(), *chance)

    @property
    def hopeless(self) -> str:
        """Why no attack can say anything; "" where one can."""
        return self.diagnosis.sentence if self.diagnosis is not None and self.diagnosis.hopeless else ""


def recognise(target: Target, data: Points, settings: AuditSettings) -> Recognised:
    """Ask the model about a few points and set `target.form` and `target.draws` accordingly.

    Raises:
        UsageError: for a refusal class that the model does not have, or outputs that it cannot return.
        InputError: when the labels do not fit the model's classes, or a point may belong to several.
        ModelError: when the model fails.
    """
    few = settings.black_box and settings.queries is not None
    _, x, _ = data.sample(min(settings.effort.points if few else ASKED_POINTS, len(data)), settings.seed)
    target.remember()
    notes = meet(target, x, settings)
    answers = target.answers(x)
    if not settings.output_key and answers.shape[1] > data.num_classes:
        notes += _further_output(target, x, data.num_classes)
        answers = target.answers(x)
    notes += _outputs(target, answers, settings)
    _check_classes(data, target.raw(x), settings)
    found = measure_dependence(target, x)
    notes += found.sentences()
    if found.random:
        target.draws = RANDOM_DRAWS
        notes.append(
            f"The model answers at random: scores and gradients are means over {RANDOM_DRAWS} draws, and every example "
            "is judged by fresh draws."
        )
    diagnosis = _diagnosed(target, data, settings)
    if diagnosis.sentence:
        notes.append(diagnosis.sentence)
    return Recognised(notes, found, diagnosis)


def _diagnosed(target: Target, data: Points, settings: AuditSettings) -> Diagnosis:
    """Clean accuracy on a few points; what is no better than guessing and has a remedy is refused."""
    few = settings.black_box and settings.queries is not None
    _, x, y = data.sample(min(settings.effort.points if few else TRIED_POINTS, len(data)), settings.seed)
    diagnosis = diagnose(target, x, y, settings, labels_only=settings.black_box)
    if diagnosis.hopeless and diagnosis.remedy is not None:
        raise InputError(diagnosis.sentence)
    return diagnosis


def meet(target: Target, x: Tensor, settings: AuditSettings) -> list[str]:
    """Take over what the user stated about the inputs, find the rest, and say so; see `maskaudit.target.fit`."""
    target.form = target.form.changed(swap=settings.swap_channels, output_key=settings.output_key)
    return fit(target, x, settings.layout)


def _further_output(target: Target, x: Tensor, classes: int) -> list[str]:
    """Read the scores from a later output of several, where that has one column per class; says so."""
    first = target.form
    for key in map(str, range(1, MOST_OUTPUTS)):
        target.form = first.changed(output_key=key)
        try:
            if target.answers(x[:FEW]).shape[1] == classes:
                return [f"Of the model's outputs number {key} (from 0) has one column per class and is read as scores "
                        "(--output-key)."]  # fmt: skip
        except ModelError:
            continue
    target.form = first
    return []


def _outputs(target: Target, answers: Tensor, settings: AuditSettings) -> list[str]:
    """Settle how answers (N, K) are read; returns the note about it."""
    found = recognise_outputs(answers)
    form = found.form if settings.outputs == "auto" else _told(found, settings, answers.shape[1])
    if form.outputs == "sigmoids" and settings.outputs == "auto":
        raise InputError(
            f"The model returns independent sigmoids ({found.evidence}), so that a point may belong to several classes "
            "at once, which an audit of one class per point cannot judge. Where the largest output alone decides, give "
            "--outputs sigmoids; else audit one label at a time: return its logit (--outputs one-logit) with labels 0 "
            "and 1."
        )
    if form.outputs in SINGLE and settings.threshold is not None:
        form = form.changed(threshold=settings.threshold)
    elif settings.threshold is not None:
        raise UsageError(f"--threshold is for models with a single output; this one has {answers.shape[1]}.")
    target.form = target.form.changed(**_reading(form))
    return _sentences(form, found if settings.outputs == "auto" else None)


def _told(found: AnswerKind, settings: AuditSettings, width: int) -> Form:
    """The form that the user named, with the unit that the answers show."""
    assert settings.outputs != "auto"
    outputs, form = settings.outputs, found.form
    if (width == 1) != (outputs in SINGLE):
        has = "a single output" if width == 1 else f"{width} outputs"
        fits = "one-logit or one-probability" if width == 1 else "logits or probabilities"
        raise UsageError(f"--outputs {outputs} does not fit a model with {has}; give {fits}, or leave it out.")
    if form.outputs == outputs or (form.outputs in SHARES and outputs in SHARES):
        return form.changed(outputs=outputs)
    return Form(outputs, threshold=0.5 if outputs == "one-probability" else 0.0)


def _reading(form: Form) -> dict[str, object]:
    """Those values of a form that say how answers are read."""
    return {name: getattr(form, name) for name in ("outputs", "scale", "offset", "smallest", "threshold")}


def _sentences(form: Form, found: AnswerKind | None) -> list[str]:
    """How answers are read, for the report; nothing where they are plain logits."""
    if form.outputs == "logits":
        return []
    unit = f" times {form.scale:g}" if form.outputs in SHARES and form.scale != 1 else ""
    why = f" ({found.evidence})" if found else " (as stated)"
    name = form.outputs.replace("one-logit", "one logit").replace("one-probability", "one probability")
    return [f"The model returns {name}{unit}{why}: {_READ[form.outputs].format(**dataclasses.asdict(form))}."]


def _check_classes(data: Points, answers: Tensor, settings: AuditSettings) -> None:
    """Refuse labels and a refusal class that the model, with answers (N, K) to the first points, has no output for."""
    classes, refused = answers.shape[1], settings.reject_class
    if refused is not None and not 0 <= refused < classes:
        raise UsageError(f"--reject-class must be an output of the model, 0 to {classes - 1}; got {refused}.")
    low, high = int(data.y.min()), int(data.y.max())
    if high < classes and (refused is None or not bool((data.y == refused).any())):
        return
    if low == 1 and high == classes and settings.first_label == 0:
        y = data.sample(len(answers), settings.seed)[2]
        right = float((answers.argmax(dim=1) == y - 1).double().mean())
        raise InputError(
            f"The labels run from 1 to {high}, the model's classes from 0 to {classes - 1}: give --first-label 1; "
            f"{right:.0%} of the first points are answered rightly then."
        )
    counted = f" after --first-label {settings.first_label}" if settings.first_label else ""
    raise InputError(
        f"The data have labels up to {high}{counted}, which do not fit the model's {classes} classes"
        f"{'' if refused is None else f' with class {refused} as refusal'}: "
        "give the data set that the model was trained for (--data)."
    )
