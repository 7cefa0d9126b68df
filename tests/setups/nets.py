"""The code that people have beside such files: factories for `--arch`, and a black box."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

#: Where `make.py` puts the trees.
FOREST = Path(__file__).resolve().parent / "files" / "forest.ubj"


def cnn(width: int = 8) -> nn.Module:
    """For images (N, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * width, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    """For vectors (N, 64)."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class OneLogit(nn.Module):
    """One score (N,), trained with BCE."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The logit."""
        score: Tensor = self.body(x).squeeze()
        return score


def one_logit() -> nn.Module:
    """See `OneLogit`."""
    return OneLogit()


def signal() -> nn.Module:
    """For signals (N, 1, 64)."""
    return nn.Sequential(
        nn.Conv1d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv1d(8, 16, 5, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 13, 10),
    )  # fmt: skip


def forest() -> Any:
    """The trees of XGBoost."""
    model = importlib.import_module("xgboost").XGBClassifier()
    model.load_model(FOREST)
    return model
