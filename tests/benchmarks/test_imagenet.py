"""The benchmark of networks of the size of ImageNet, made small: subjects answer rightly, rows name what it took."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import imagenet


def test_the_last_layer_is_fitted_to_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "SIDE", 16)
    monkeypatch.setattr(imagenet, "POINTS", 24)
    torch.manual_seed(0)
    x, y = imagenet.images() / 255, imagenet.labels()
    assert (len(y.unique()), int(y.max()) < imagenet.CLASSES, x.shape) == (24, True, (24, 3, 16, 16))
    network = nn.Sequential(
        nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, imagenet.CLASSES),
    )  # fmt: skip
    scores = imagenet.fitted(network, x, y)(x).detach()
    assert torch.equal(scores.argmax(1), y)
    assert float(scores.sum(1).std()) > 1  # not rows of one sum, which would be read as probabilities


def test_a_row_names_what_an_audit_took() -> None:
    record = {
        "model": "net", "budget": "quick", "commit": "abc", "machine": "here", "label": "clear", "mechanisms": [],
        "points": 56, "parameters": 2_500_000, "forwards": 3_000, "backwards": 1_000, "peak": 2**31, "html": 2**17,
        "json": 2**17, "evidence": 2**26, "cpu_seconds": 40.0,
    }  # fmt: skip
    row = imagenet.render([record]).splitlines()[-1]
    cells = "| net | 2.5 M | quick | **clear** |  | 56 | 4,000 | 40 | 10 | 2,048 MiB | 0.1 MiB | 0.1 MiB | 64.0 MiB |"
    assert row == cells
