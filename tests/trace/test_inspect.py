"""The inspection as a dictionary and as text."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from maskaudit.auditing.inspection import inspect_model
from maskaudit.report.inspection import text
from maskaudit.target import Target
from maskaudit.zoo.masks import inputs


def test_worst_op_first(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    target = Target(inputs.QuantisedInput(net, 4).eval())
    with target:
        found = inspect_model(target, *points, eps=0.2)
    json.dumps(found, allow_nan=False)
    assert found["flow"][0]["location"]["op"] == "round"
    assert found["flow"][0]["zero_share"] == 1.0
    assert [repair["remedy"] for repair in found["repairs"]] == ["straight-through"]
    shown = text(found)
    assert "round (inputs.py:" in shown.splitlines()[0]
    assert "Would be repaired" in shown
    assert "Suspects (an audit confirms or clears them)" in shown


def test_healthy_model_says_so(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    found = inspect_model(Target(net), *points, eps=0.2)
    assert found["repairs"] == []
    assert text(found).startswith("Nothing hides the gradient")


def test_randomness_is_printed(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    noisy = nn.Sequential(nn.Dropout(0.5), net)
    noisy[0].train()
    shown = text(inspect_model(Target(noisy), *points, eps=0.2))
    assert "Randomness:" in shown
    assert torch.is_grad_enabled()
