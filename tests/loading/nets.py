"""A small net and its writers, shared by the tests of this folder."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

ARCH = f"{__name__}:make"
X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Net(nn.Module):
    """Four inputs, three classes, with batch norm so that buffers matter."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, 3)

    @property
    def norm(self) -> nn.BatchNorm1d:
        layer = self.body[1]
        assert isinstance(layer, nn.BatchNorm1d)
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(x))
        return scores


def make(width: int = 5) -> Net:
    return Net(width)


def plain() -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x * 2


def nothing() -> None:
    return None


def legacy(content: object, path: Path) -> None:
    """Write as torch before 1.6 did."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def script(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)
