"""Entries that were trained into masking: nothing is wrapped around them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from maskaudit.threat import ThreatModel
from maskaudit.zoo.interface import Level, ZooEntry
from maskaudit.zoo.planted import HiddenCorner
from maskaudit.zoo.recipes_masking import hidden_pattern
from maskaudit.zoo.unmasked import FASHION

_DRIFT = ("logit-scale",)


def _masked(name: str, title: str, level: Level, mechanisms: tuple[str, ...], **more: Any) -> ZooEntry:
    return ZooEntry(name, title, True, level, more.pop("network", name), mechanisms=mechanisms, **more)


def _hidden_corner(x: Tensor, threat: ThreatModel) -> Tensor:
    """The counterexamples that `planted` was trained to have."""
    return threat.clamp(x + threat.eps * hidden_pattern(tuple(x.shape[1:]), seed=0))


ENTRIES = (
    _masked("great+ce", "GRE(AT+CE), no batch norm", "loss", _DRIFT, family="great", part="tune"),
    _masked("greace", "GREACE, no batch norm", "loss", _DRIFT, family="great", part="tune"),
    _masked("greace-weak", "GREACE, β = 0.001", "loss", _DRIFT, family="great"),
    _masked("greace-strong", "GREACE, β = 0.01", "loss", _DRIFT, family="great"),
    _masked("great+ce-weak", "GRE(AT+CE), α = 0.003, β = 0.001", "loss", _DRIFT, family="great"),
    _masked("great+ce-strong", "GRE(AT+CE), α = 0.03, β = 0.01", "loss", _DRIFT, family="great"),
    _masked("distilled", "Defensive distillation, T = 100", "loss", _DRIFT),
    _masked("pcl", "Prototype conformity loss", "loss", _DRIFT),
    _masked("hidden-corner", "PGD-trained, a counterexample planted out of sight", "gradient", ("unknown",),
            network="pgd-at", wrap=HiddenCorner, module="", ops=("relu",)),
    _masked("fashion-distilled", "Fashion-MNIST: defensive distillation, T = 100", "loss", _DRIFT, **FASHION),
    _masked("fashion-great+ce", "Fashion-MNIST: GRE(AT+CE), no batch norm", "loss", _DRIFT, family="great", **FASHION),
)  # fmt: skip
