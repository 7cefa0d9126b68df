"""Entries that were trained into masking: nothing is wrapped around them."""

from __future__ import annotations

from maskaudit.zoo.interface import ZooEntry

_DRIFT = ("logit-scale",)

ENTRIES = (
    ZooEntry("great+ce", "GRE(AT+CE), no batch norm", True, "loss", "great+ce", family="great", part="tune",
             mechanisms=_DRIFT),
    ZooEntry("greace", "GREACE, no batch norm", True, "loss", "greace", family="great", part="tune",
             mechanisms=_DRIFT),
)  # fmt: skip
