"""What a model answers, as class scores: found, checked, and how far they are from breaking a point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskaudit.errors import MaskauditError, ModelError, describe_error
from maskaudit.settings import Outputs
from maskaudit.target.form import SINGLE, Form
from maskaudit.target.kinds import recognise_outputs

#: How answers are read where nothing is known of them.
PLAIN = Form()

#: What an infinite score becomes: differences of two such scores are still finite.
LARGEST_SCORE = torch.finfo(torch.float32).max / 4


@dataclass
class Unchecked:
    """Scores on an accelerator that have not been read yet.

    Attributes:
        bad: inputs with NaN among their scores so far, int64 (), on the device.
        asked: inputs so far.
    """

    bad: Tensor
    asked: int = 0

    def add(self, scores: Tensor) -> None:
        """Count the scores (n, K) of one pass."""
        self.bad += torch.isnan(scores.detach()).any(dim=1).sum()
        self.asked += len(scores)

    def settle(self) -> None:
        """Look.

        Raises:
            ModelError: when there was a NaN.
        """
        refuse_nan(int(self.bad), self.asked)


def breaking_margin(scores: Tensor, y: Tensor, reject_class: int | None = None) -> Tensor:
    """max over wrong classes of the score, minus the score of the true (or the reject) class; shape (N,)."""
    held = scores.gather(1, y[:, None])
    wrong = scores.scatter(1, y[:, None], -torch.inf)
    if reject_class is not None:
        held = torch.maximum(held, scores[:, reject_class : reject_class + 1])
        wrong[:, reject_class] = -torch.inf
    return wrong.amax(dim=1) - held.squeeze(1)


#: Names under which records and dictionaries hold class scores, the likeliest first.
SCORE_NAMES = ("logits", "scores", "class_logits", "prediction_logits", "predictions", "pred", "out", "output", "probs")


def answer_in(output: object, key: str = "") -> object:
    """What of a model's output holds the class scores: what `key` names, else the likeliest of several.

    Raises:
        ModelError: when nothing in it has that name, or several outputs are as likely.
    """
    if isinstance(output, Tensor):
        return output
    parts = _parts(output)
    if key:
        if key not in parts:
            raise ModelError(f"The model has no output {key!r} (--output-key); it has {', '.join(parts) or 'none'}.")
        return parts[key]
    for name in SCORE_NAMES:
        if name in parts:
            return parts[name]
    if isinstance(output, (tuple, list)) and parts:
        return parts.get("0", output)
    if len(parts) > 1:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in list(parts.items())[:6])
        raise ModelError(f"The model returns several outputs ({shapes}); say with --output-key which holds the scores.")
    return next(iter(parts.values()), output)


def _parts(output: object) -> dict[str, Tensor]:
    """The tensors in an output, by name or position."""
    named: list[tuple[object, object]]
    if isinstance(output, Mapping):
        named = list(output.items())
    elif isinstance(output, (tuple, list)):
        fields = getattr(output, "_fields", ())
        named = [*enumerate(output), *zip(fields, output, strict=False)]
    else:
        named = list(vars(output).items()) if hasattr(output, "__dict__") else []
    return {str(name): part for name, part in named if isinstance(part, Tensor)}


def columns(output: object, n: int, key: str = "", *, unseen: bool = False) -> Tensor:
    """The model's answer to n inputs as (n, K), K ≥ 1; a missing axis of a single output or of a single input is added.

    With `unseen` the answer may lie where its values cannot be seen yet.

    Raises:
        ModelError: when it is something else.
    """
    try:
        return _table(answer_in(output, key), n, unseen)
    except MaskauditError:
        raise
    except Exception as error:  # a property, or a type of tensor, of the model's own
        raise ModelError(
            f"What the model returned cannot be read as class scores ({describe_error(error)})."
        ) from error


def _table(output: object, n: int, unseen: bool) -> Tensor:
    if not isinstance(output, Tensor):
        remedy = "; --black-box audits a model that answers with arrays" if isinstance(output, np.ndarray) else ""
        raise ModelError(
            f"The model returned {type(output).__name__}; expected a tensor of class scores (N, K){remedy}."
        )
    if output.layout != torch.strided or (output.is_meta and not unseen) or output.is_quantized or output.is_complex():
        raise ModelError(
            f"The model returned a tensor of {output.dtype} and {output.layout} on {output.device}; expected plain "
            "real numbers, one score per class."
        )
    if output.dim() == 1 and len(output) == n and not output.is_floating_point():
        raise ModelError(
            "The model answers class numbers: let it return its scores (N, K), or audit it with --black-box."
        )
    if output.dim() == 1 and len(output) == n:
        return output[:, None]
    if n == 1 and output.dim() in (0, 1):
        return output.reshape(1, -1)
    if output.dim() == 2 and not output.shape[1]:
        raise ModelError("The model returns no score; at least 2 classes, or one score for two, are needed.")
    if output.dim() != 2 or output.shape[0] != n:
        raise ModelError(
            f"The model returned shape {tuple(output.shape)} for {n} inputs; expected one score per class, ({n}, K)."
        )
    return output


def checked_scores(output: object, n: int, unchecked: Unchecked | None = None, form: Form = PLAIN) -> Tensor:
    """The model's answer as (N, K), K ≥ 2, infinities made finite, or a ModelError that says what is wrong with it.

    The scores are float32, float64 for a model that computes in it.

    With `unchecked` NaN is only counted there. A single output becomes two classes as `form` says.
    """
    scores = columns(output, n, form.output_key, unseen=unchecked is not None).to(form.score_type)
    if scores.shape[1] == 1:
        if form.outputs not in SINGLE:
            raise ModelError(
                "The model returns a single score: give --outputs one-logit or one-probability (with --threshold), "
                "or return one score per class."
            )
        scores = form.two_classes(scores)
    if unchecked is not None:
        unchecked.add(scores)
        return scores.clamp(-LARGEST_SCORE, LARGEST_SCORE)
    if not torch.isfinite(scores.detach().sum()):  # or merely too large a sum
        refuse_nan(int(torch.isnan(scores).any(dim=1).sum()), n)
        if torch.isinf(scores).any():
            scores = scores.clamp(-LARGEST_SCORE, LARGEST_SCORE)
    return scores


def refuse_nan(bad: int, n: int) -> None:
    """Raise a ModelError where `bad` of `n` answers hold NaN."""
    if bad:
        raise ModelError(f"The model returned NaN for {bad} of {n} inputs inside the bounds; repair the model first.")


def detect_outputs(raw: Tensor) -> Outputs:
    """The kind of answers (N, K), from their values on clean inputs."""
    return recognise_outputs(raw).form.outputs
