"""What a peer is given, what it answers, and how its passes through the model are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from maskaudit.threat import ThreatModel


class PeerUnavailableError(Exception):
    """The peer cannot run here: a package is missing, or it is not made for such a model. The text says which."""


class CountingModel(nn.Module):
    """The audited model with its passes counted in points; nothing else about it changes.

    A backward pass is counted when a gradient reaches the input. Where the model cuts the graph no gradient
    does, and nothing is counted.

    Args:
        model: maps inputs (N, …) to scores (N, K).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """What the model answers, (N, K)."""
        self.forwards += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)
            x.register_hook(self._count)
        return self.model(x)

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@dataclass(frozen=True, eq=False)
class PeerTask:
    """One model on the points of an audit.

    Attributes:
        model: in evaluation mode, counting its passes.
        x, y: clean points (N, …) in the bounds and labels (N,).
        threat: ball and bounds.
        seed: of everything random.
        random: whether the model answers at random.
    """

    model: CountingModel
    x: Tensor
    y: Tensor
    threat: ThreatModel
    seed: int
    random: bool = False


@dataclass(frozen=True, eq=False)
class PeerAnswer:
    """What a peer says about a model.

    Attributes:
        indicators: each sign of masking by name, and whether it fired; empty for a peer that gives none.
        figures: what was measured, for readers.
        examples: its adversarial examples (N, …), the clean point where it has none; None where the peer claims no
            robust accuracy.
    """

    indicators: Mapping[str, bool] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    examples: Tensor | None = None


@dataclass(frozen=True)
class Peer:
    """One row of the comparison.

    Attributes:
        name: column in the tables; title: one line; source: paper.
        run: the peer itself.
        detects: whether it gives signs of masking at all.
        lenient: indicators that are left out in its second, more lenient row; empty if there is none.
    """

    name: str
    title: str
    source: str
    run: Callable[[PeerTask], PeerAnswer]
    detects: bool = True
    lenient: tuple[str, ...] = ()
