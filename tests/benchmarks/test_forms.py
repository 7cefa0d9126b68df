"""The benchmark of other forms of a pass: forms that need no compiler, a search judged by the network, the table."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from benchmarks import forms


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


@pytest.mark.parametrize(("form", "tolerance"), [("eager float32", 0), ("channels-last", 1e-5), ("bfloat16", 0.05)])
def test_a_form_scores_like_the_network_in_float32(form: str, tolerance: float) -> None:
    plain, x = convolution(), torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        scores = forms.FORMS[form](copy.deepcopy(plain))(x)
        assert scores.dtype is torch.float32
        torch.testing.assert_close(scores, plain(x), rtol=0, atol=tolerance)
    leaf = x.clone().requires_grad_(True)
    forms.FORMS[form](copy.deepcopy(plain))(leaf).sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.abs().sum() > 0)


def test_a_search_on_a_form_is_judged_by_the_network_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_seen_broken(target: object, x: torch.Tensor, y: torch.Tensor, **settings: object) -> forms.Attempt:
        return forms.Attempt(x, torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x), dtype=torch.int64))

    monkeypatch.setattr(forms, "POINTS", 20)
    monkeypatch.setattr(forms, "SEARCHES", {"none": (all_seen_broken, {})})
    for row in forms.searched("standard"):
        assert (row.left, row.refuted) == (row.points, row.points), "clean points break nothing"


def test_the_table_gives_ratios_over_the_plain_form() -> None:
    rows = [
        forms.Row("net", 8, 1, "eager float32", 1.0, 2.0, 4.0, 1.0),
        forms.Row("net", 8, 1, "compiled", 21.0, 1.0, 3.0, 0.5),
        forms.Row("net", 8, 1, "bfloat16", 1.0, 3.0, 5.0, 0.5),
    ]
    strengths = [
        forms.Strength("zoo", "walk", "eager float32", 10, 5, 0, 2.0),
        forms.Strength("zoo", "walk", "bfloat16", 10, 6, 1, 1.0),
    ]
    text = forms.table(rows, strengths, "command", "machine")
    assert "| net | 8 | 1 | compiled | 0.50 | 0.75 | 21.0 | 20 | 0.500 |" in text
    assert "| net | 8 | 1 | bfloat16 | 1.50 | 1.25 | 1.0 | never | 0.500 |" in text
    assert "| zoo | walk | bfloat16 | 10 | 6 | 1 | 0.50 |" in text
