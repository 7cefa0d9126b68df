"""What answers are: one classifier in many units, rounded and cut, and what only looks like one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskaudit.target.form import TINY, Form
from maskaudit.target.kinds import recognise_outputs

GENERATOR = torch.Generator().manual_seed(3)
LOGITS = 6 * torch.randn(64, 7, generator=GENERATOR)
P = LOGITS.softmax(1)
VOTES = torch.distributions.Multinomial(31, probs=P, validate_args=False)
torch.manual_seed(0)
COUNTS = VOTES.sample()

UNITS: dict[str, tuple[Tensor, str, float]] = {
    "logits": (LOGITS, "logits", 1),
    "large logits": (300 * LOGITS, "logits", 1),
    "logits of one sum": (LOGITS - LOGITS.mean(1, True), "logits", 1),
    "positive logits": (LOGITS - LOGITS.min(), "logits", 1),
    "rounded logits": (LOGITS.round(decimals=1), "logits", 1),
    "log-probabilities": (LOGITS.log_softmax(1), "log-probabilities", 1),
    "probabilities": (P, "probabilities", 1),
    "percent": (100 * P, "probabilities", 100),
    "bytes": (255 * P, "probabilities", 255),
    "per ten thousand": (1e4 * P, "probabilities", 1e4),
    "tenths": (0.1 * P, "probabilities", 0.1),
    "an odd whole": (37.4 * P, "probabilities", 37.4),
    "bfloat16": (P.bfloat16(), "probabilities", 1),
    "half": (P.half(), "probabilities", 1),
    "percent of bfloat16": (100 * P.bfloat16().float(), "probabilities", 100),
    "two decimals": (P.round(decimals=2), "probabilities", 1),
    "four decimals": (P.round(decimals=4), "probabilities", 1),
    "whole percents": ((100 * P).round(), "probabilities", 100),
    "rounded bytes": ((255 * P).round(), "probabilities", 255),
    "from minus one to one": (2 * P - 1, "probabilities", 2),
    "votes": (COUNTS, "votes", 31),
    "shares of votes": (COUNTS / 31, "votes", 1),
    "sigmoids": (LOGITS.sigmoid(), "sigmoids", 1),
    "a logit": (LOGITS[:, :1], "one-logit", 1),
    "a probability": (LOGITS[:, :1].sigmoid(), "one-probability", 1),
    "a percentage": (100 * LOGITS[:, :1].sigmoid(), "one-probability", 100),
}


@pytest.mark.parametrize(("raw", "kind", "scale"), UNITS.values(), ids=UNITS)
def test_the_kind_of_output_is_told(raw: Tensor, kind: str, scale: float) -> None:
    form = recognise_outputs(raw).form
    assert (form.outputs, form.scale) == (kind, pytest.approx(scale, rel=0.01))


@pytest.mark.parametrize("name", [name for name, (_, kind, _) in UNITS.items() if kind == "probabilities"])
def test_probabilities_of_any_unit_give_the_same_scores(name: str) -> None:
    """Differences of scores are those of the logits, as far as the figures tell them apart."""
    raw = UNITS[name][0].float()
    form = recognise_outputs(raw).form
    distinct = 20 * max(form.smallest, 1e-6) < P
    error = (form.scores(raw) - LOGITS.log_softmax(1))[distinct].abs()
    assert float(error.max()) < 0.12
    assert torch.equal(form.scores(raw).argmax(1), raw.argmax(1))
    assert bool(torch.isfinite(form.scores(raw)).all())


def test_what_half_precision_rounds_to_zero_keeps_its_gradient() -> None:
    logits = torch.tensor([[20.0, 0.0, -1.0]], requires_grad=True)
    raw = logits.softmax(1).half()
    assert raw[0, 1:].count_nonzero() == 0
    form = recognise_outputs(P.half()).form
    (grad,) = torch.autograd.grad((form.scores(raw.float())[:, 1] - form.scores(raw.float())[:, 0]).sum(), logits)
    assert form.smallest > TINY
    assert float(grad[0, 1]) > 0


@pytest.mark.parametrize("rows", [1, 4])
def test_few_rows_between_0_and_1_are_not_called_sigmoids(rows: int) -> None:
    assert recognise_outputs(LOGITS[:rows].sigmoid()).form.outputs == "logits"


CLIPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "clipped to 0 and 1": lambda z: z.clamp(0, 1),
    "hard labels": lambda z: torch.nn.functional.one_hot(z.argmax(1), 7).float(),
    "all the same": lambda z: torch.full_like(z, 0.7),
}


@pytest.mark.parametrize("cut", CLIPPED.values(), ids=CLIPPED)
def test_clipped_and_hard_outputs_are_no_sigmoids_and_no_votes(cut: Callable[[Tensor], Tensor]) -> None:
    assert recognise_outputs(cut(LOGITS)).form.outputs in ("logits", "probabilities")


@pytest.mark.parametrize(
    ("form", "raw", "one"),
    [
        (Form("one-logit"), 0.1, True),
        (Form("one-logit", threshold=0.2), 0.1, False),
        (Form("one-probability", threshold=0.5), 0.6, True),
        (Form("one-probability", threshold=0.7), 0.6, False),
        (Form("one-probability", 100, threshold=50), 49.0, False),
        (Form("one-probability", 100, threshold=30), 49.0, True),
    ],
)
def test_one_output_becomes_two_classes_at_its_threshold(form: Form, raw: float, one: bool) -> None:
    scores = form.two_classes(torch.tensor([[raw], [form.threshold]]))
    assert (scores.shape, bool(scores[0].argmax() == 1)) == ((2, 2), one)
    assert float(scores[1, 1] - scores[1, 0]) == pytest.approx(0, abs=1e-5)


def test_a_form_survives_as_json() -> None:
    form = Form("probabilities", 255.0, -1.0, 1e-4, 0.5)
    assert Form.from_dict(form.to_dict()) == form
