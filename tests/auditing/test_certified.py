"""`--certify`: the share proven robust beside the best known accuracy, and a broken proof, which ends the audit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

import maskaudit
from maskaudit.errors import ModelError
from tests.bounds.networks import detector, mlp


def _data() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = mlp(6, 12, 2), torch.rand(40, 6)
    return model, x, model(x).argmax(1)


SMALL = {"budget": "quick", "samples": 40, "outputs": "logits", "norm": "Linf", "select": ("pgd", "apgd-margin")}


def test_certified_and_best_known_enclose_robust_accuracy() -> None:
    model, x, y = _data()
    report = maskaudit.audit(model, (x, y), eps=0.05, certify=True, **SMALL).report
    certified, best = report.accuracy["certified"], report.accuracy["best_known"]
    assert certified is not None
    assert best is not None
    assert 0 < certified.value <= best.value < 1
    proven = report.points["certified"]
    assert sum(proven) / len(proven) == certified.value
    assert not any(p and by for p, by in zip(proven, report.points["broken_by"], strict=True))


def test_what_cannot_be_bounded_is_said() -> None:
    model, x, y = _data()
    report = maskaudit.audit(nn.Sequential(model, nn.GELU()), (x, y), eps=0.05, certify=True, **SMALL).report
    assert report.accuracy["certified"] is None
    assert any("No point was certified" in note and "gelu" in note for note in report.notes)


class _Lying(nn.Module):
    """Shows its recorder a steadier network than the one it computes away from the data."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model, self.x = model, x

    def forward(self, x: Tensor) -> Tensor:
        if get_proxy_mode() is not None:  # recorded
            return self.model(x)
        asked = torch.cat([self.x, 0.9 * self.x, 0.8 * self.x])  # where the recording is held against the model
        known = ((x.unsqueeze(1) - asked).abs().amax(2) < 1e-6).any(1)
        return torch.where(known.unsqueeze(1), self.model(x), -self.model(x))


def test_a_broken_proof_ends_the_audit() -> None:
    model, x, y = _data()
    outcome = maskaudit.audit(_Lying(model, x), (x, y), eps=0.05, certify=True, **SMALL)
    assert isinstance(outcome.failure, ModelError)
    assert "Bounds prove point" in str(outcome.failure)
    assert outcome.failure.exit_code == 4
    assert outcome.report.partial is not None


@pytest.mark.parametrize("budget", ["quick", "standard"])
def test_what_the_search_finds_counts_for_accuracy_and_for_no_level(budget: str) -> None:
    torch.manual_seed(0)
    model, x, y, _ = detector(20)
    settings = {"budget": budget, "select": ("pgd", "branch-and-bound"), "outputs": "logits", "norm": "Linf"}
    report = maskaudit.audit(model, (x, y), eps=0.2, **settings).report
    row = next(row for row in report.attacks if row.name == "branch-and-bound")
    best = report.accuracy["best_known"]
    assert best is not None
    assert (row.status, row.role) == ("ran" if budget == "standard" else "skipped", "exact")
    if budget == "standard":
        assert report.points["broken_by"] == [["branch-and-bound"]]
        assert best.value == 0
        assert report.masking["gradient_level"].value == 0
    else:
        assert best.value == 1


@pytest.mark.parametrize(("affordable", "status", "rounds"), [(0, "skipped", 256), (2, "ran", 1), (10, "ran", 8)])
def test_every_point_has_a_first_round_and_what_is_left_the_rest(
    affordable: int, status: str, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskaudit.auditing.phases.bounds.effort", lambda network, passes: affordable)
    torch.manual_seed(0)
    model, x, y, corner = detector(20)
    points = torch.cat([x, x - 2 * (corner - x)])
    settings = {"budget": "standard", "select": ("pgd", "branch-and-bound"), "outputs": "logits", "norm": "Linf"}
    report = maskaudit.audit(model, (points, y.repeat(2)), eps=0.2, **settings).report
    row = next(row for row in report.attacks if row.name == "branch-and-bound")
    assert (row.status, row.settings["rounds"]) == (status, rounds)
    found = [["branch-and-bound"], []] if affordable else [[], []]
    assert report.points["broken_by"] == found
