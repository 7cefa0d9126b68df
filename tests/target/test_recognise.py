"""What is found about a model before its audit, what is reported of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.data import Dataset
from maskaudit.errors import InputError, UsageError
from maskaudit.results import AuditReport
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.target.recognise import recognise

torch.manual_seed(1)
NET = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)).requires_grad_(False)
X = torch.rand(240, 6)
Y = NET(X).argmax(1)
DATA = Dataset("points", X, Y, 4, (0.0, 1.0))
QUICK = AuditSettings(budget="quick", samples=64, ignore=("torchattacks-pgd", "torchattacks-square", "transfer"))


def met(model: Callable[[Tensor], Tensor], data: Dataset = DATA, **settings: object) -> tuple[Target, list[str]]:
    """The target after the handshake, and its notes."""
    asked = AuditSettings(**settings)  # type: ignore[arg-type]
    with Target(model, reject_class=asked.reject_class) as target:
        return target, recognise(target, data, asked).notes


def test_plain_logits_need_no_words() -> None:
    target, notes = met(NET)
    assert (target.outputs, notes) == ("logits", [])


def test_the_unit_is_reported_with_its_evidence() -> None:
    target, notes = met(lambda x: 100 * (8 * NET(x)).softmax(1))
    assert target.outputs == "probabilities"
    assert any("probabilities times 100 (non-negative rows that sum to 100)" in note for note in notes)


@pytest.mark.parametrize(("unit", "whole"), [("probabilities", 1.0), ("logits", 1.0)])
def test_what_the_user_says_goes_before_what_is_seen(unit: str, whole: float) -> None:
    target, _ = met(lambda x: (8 * NET(x)).softmax(1), outputs=unit)
    assert (target.form.outputs, target.form.scale) == (unit, whole)


def test_multi_label_outputs_are_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match=r"several classes .* --outputs sigmoids"):
        met(lambda x: (8 * NET(x)).sigmoid())
    target, notes = met(lambda x: (8 * NET(x)).sigmoid(), outputs="sigmoids")
    assert target.outputs == "sigmoids"
    assert "log-odds" in notes[0]
    assert torch.allclose(target.scores(X[:9]), 8 * NET(X[:9]), atol=1e-2)


BINARY = Dataset("points", X, (Y > 1).long(), 2, (0.0, 1.0))
LOGIT = (4 * NET(X))[:, 1]


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_a_single_logit_is_two_classes(shape: tuple[int, ...]) -> None:
    target, notes = met(lambda x: (4 * NET(x))[:, 1].reshape(shape), BINARY)
    assert target.raw(X).shape == (len(X), 2)
    assert torch.equal(target.predict(target.scores(X)), (LOGIT > 0).long())
    assert "above 0 it means class 1" in notes[0]


def test_a_single_probability_has_its_own_threshold() -> None:
    target, notes = met(lambda x: (4 * NET(x))[:, 1:2].sigmoid(), BINARY, threshold=0.8)
    assert torch.equal(target.predict(target.scores(X)), (LOGIT.sigmoid() > 0.8).long())
    assert "above 0.8" in notes[0]


def test_options_that_do_not_fit_the_outputs_are_refused() -> None:
    with pytest.raises(UsageError, match="a model with 4 outputs"):
        met(NET, outputs="one-logit")
    with pytest.raises(UsageError, match="a single output"):
        met(lambda x: NET(x)[:, :1], BINARY, outputs="probabilities")
    with pytest.raises(UsageError, match="--threshold is for models with a single output"):
        met(NET, threshold=0.3)


UNITS: dict[str, Callable[[Tensor], Tensor]] = {
    "percent": lambda z: 100 * z.softmax(1),
    "bytes": lambda z: 255 * z.softmax(1),
    "bfloat16": lambda z: z.softmax(1).bfloat16(),
    "percent of half": lambda z: 100 * z.softmax(1).half(),
}


@pytest.fixture(scope="module")
def plain() -> AuditReport:
    """The audit of a network that answers with logits."""
    return api.audit(lambda x: 8 * NET(x), DATA, eps=0.1, settings=QUICK).report


@pytest.mark.heavy
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_no_honest_network_is_masked_for_its_unit(unit: Callable[[Tensor], Tensor], plain: AuditReport) -> None:
    report = api.audit(lambda x: unit(8 * NET(x)), DATA, eps=0.1, settings=QUICK).report
    assert plain.verdict.label == "clear", plain.verdict
    assert report.verdict.label == "clear", report.verdict
    best, other = report.accuracy["best_known"], plain.accuracy["best_known"]
    assert best is not None
    assert other is not None
    assert abs(best.value - other.value) <= 0.05


@pytest.mark.heavy
def test_a_binary_network_with_one_logit_is_audited_like_the_same_with_two() -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NET(x)[:, 1] - 0.1

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = NET(x)[:, 1:2] - 0.1
            return torch.cat([-z / 2, z / 2], 1)

    data = Dataset("points", X, (NET(X)[:, 1] > 0.1).long(), 2, (0.0, 1.0))
    one, two = (api.audit(model(), data, eps=0.05, settings=QUICK).report for model in (One, Two))
    assert one.verdict.label == two.verdict.label == "clear", one.verdict
    assert one.accuracy == two.accuracy
    assert one.trace["sentence"] == two.trace["sentence"]


def test_of_several_outputs_that_with_one_column_per_class_is_read() -> None:
    x, net = torch.rand(40, 6), nn.Linear(6, 3)

    def model(points: Tensor) -> tuple[Tensor, Tensor]:
        return points.repeat(1, 2), net(points)

    data = Dataset("points", x, net(x).argmax(1), 3, (0.0, 1.0))
    with Target(model) as target:
        notes = recognise(target, data, AuditSettings()).notes
        assert torch.equal(target.scores(x), net(x).detach())
    assert any("outputs number 1 (from 0) has one column per class" in note for note in notes)
