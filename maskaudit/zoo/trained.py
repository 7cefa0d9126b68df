"""Entries that were trained into masking: nothing is wrapped around them."""

from __future__ import annotations

from typing import Any

from maskaudit.zoo.interface import Level, ZooEntry
from maskaudit.zoo.planted import HiddenCorner, hidden_corner, trapped_corner
from maskaudit.zoo.unmasked import FASHION

_DRIFT = ("logit-scale",)


def _masked(name: str, title: str, level: Level, mechanisms: tuple[str, ...], **more: Any) -> ZooEntry:
    return ZooEntry(name, title, True, level, more.pop("network", name), mechanisms=mechanisms, **more)


ENTRIES = (
    _masked("great+ce", "GRE(AT+CE), no batch norm", "loss", _DRIFT, family="great", part="tune"),
    _masked("greace", "GREACE, no batch norm", "loss", _DRIFT, family="great", part="tune"),
    _masked("greace-strong", "GREACE, β = 0.01", "loss", _DRIFT, family="great"),
    _masked("great+ce-strong", "GRE(AT+CE), α = 0.03, β = 0.01", "loss", _DRIFT, family="great"),
    _masked("distilled", "Defensive distillation, T = 100", "loss", _DRIFT),
    _masked("pcl", "Prototype conformity loss", "loss", _DRIFT),
    _masked("hidden-corner", "PGD-trained, a counterexample planted out of sight", "gradient", ("saturation",),
            network="pgd-at", wrap=HiddenCorner, known=hidden_corner, module="", ops=("relu",)),
    _masked("trapped-corner", "PGD-trained, a counterexample trained out of sight", "gradient", ("saturation",),
            known=trapped_corner, module="2", ops=("relu",)),
    _masked("fashion-distilled", "Fashion-MNIST: defensive distillation, T = 100", "loss", _DRIFT, **FASHION),
    _masked("fashion-great+ce-strong", "Fashion-MNIST: GRE(AT+CE), β = 0.02", "loss", _DRIFT, family="great",
            **FASHION),
)  # fmt: skip
