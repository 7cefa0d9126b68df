"""What a model answers, as class scores: found, checked, told apart, and how far they are from breaking a point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.errors import MaskauditError, ModelError, describe_error
from maskaudit.settings import Outputs

#: Rows that sum to 1 within this tolerance, with no negative entry, are probabilities.
PROBABILITY_TOLERANCE = 1e-3

#: What an infinite score becomes: differences of two such scores are still finite.
LARGEST_SCORE = torch.finfo(torch.float32).max / 4


@dataclass
class Unchecked:
    """Scores on an accelerator that nobody has looked at yet.

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
        _refuse_nan(int(self.bad), self.asked)


def breaking_margin(scores: Tensor, y: Tensor, reject_class: int | None = None) -> Tensor:
    """max over wrong classes of the score, minus the score of the true (or the reject) class; shape (N,)."""
    held = scores.gather(1, y[:, None])
    wrong = scores.scatter(1, y[:, None], -torch.inf)
    if reject_class is not None:
        held = torch.maximum(held, scores[:, reject_class : reject_class + 1])
        wrong[:, reject_class] = -torch.inf
    return wrong.amax(dim=1) - held.squeeze(1)


def answer_in(output: object) -> object:
    """What of a model's output holds the class scores: the first of several, `logits` of a record or dictionary."""
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output


def checked_scores(output: object, n: int, unchecked: Unchecked | None = None) -> Tensor:
    """The model's answer as float32 (N, K), infinities made finite, or a ModelError that says what is wrong with it.

    With `unchecked` NaN is only counted there.
    """
    try:
        scores = _real_numbers(answer_in(output), n)
    except MaskauditError:
        raise
    except Exception as error:  # a property, or a type of tensor, of the model's own
        raise ModelError(
            f"What the model returned cannot be read as class scores ({describe_error(error)})."
        ) from error
    if unchecked is not None:
        unchecked.add(scores)
        return scores.clamp(-LARGEST_SCORE, LARGEST_SCORE)
    if not torch.isfinite(scores.detach().sum()):  # or merely too large a sum
        _refuse_nan(int(torch.isnan(scores).any(dim=1).sum()), n)
        if torch.isinf(scores).any():
            scores = scores.clamp(-LARGEST_SCORE, LARGEST_SCORE)
    return scores


def _real_numbers(output: object, n: int) -> Tensor:
    """An answer to `n` inputs as float32 (n, K)."""
    if not isinstance(output, Tensor):
        raise ModelError(f"The model returned {type(output).__name__}; expected a tensor of class scores (N, K).")
    if output.layout != torch.strided or output.is_meta or output.is_quantized or output.is_complex():
        raise ModelError(
            f"The model returned a tensor of {output.dtype} and {output.layout} on {output.device}; expected plain "
            "real numbers, one score per class."
        )
    if output.dim() != 2 or output.shape[0] != n:
        raise ModelError(
            f"The model returned shape {tuple(output.shape)} for {n} inputs; expected one score per class, ({n}, K)."
        )
    if output.shape[1] < 2:
        raise ModelError("The model returns a single score; at least 2 classes are needed: return one score per class.")
    return output.float()


def _refuse_nan(bad: int, n: int) -> None:
    if bad:
        raise ModelError(f"The model returned NaN for {bad} of {n} inputs inside the bounds; repair the model first.")


def detect_outputs(raw: Tensor) -> Outputs:
    """Tell probabilities from logits by the values on clean inputs (N, K): non-negative rows that sum to 1."""
    sums_to_one = (raw.sum(dim=1) - 1).abs().max() <= PROBABILITY_TOLERANCE
    return "probabilities" if bool(sums_to_one) and bool((raw >= 0).all()) else "logits"
