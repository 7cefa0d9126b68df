"""What a repair is: it leaves every forward value as it is and changes only what the backward pass returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from maskaudit.results import Location, plain
from maskaudit.trace.records import Remedy


@dataclass(frozen=True)
class Repair:
    """One repair at one place.

    Attributes:
        remedy: what is done, see `maskaudit.trace.records.Remedy`.
        location: the op it is done to: module path, op name, source line.
        mechanism: what it is to cure.
        sentence: one sentence for reports.
        scale: temperature or divisor, where the remedy has one.
        by_node: whether it works on autograd nodes by name (TorchScript and in-place ops), not on calls.
    """

    remedy: Remedy
    location: Location
    mechanism: str
    sentence: str
    scale: float = 1.0
    by_node: bool = False

    @property
    def changes_scores(self) -> bool:
        """Whether scores are read elsewhere or rescaled; decisions stay the same."""
        return self.remedy in ("tap", "rescale")

    def to_dict(self) -> dict[str, Any]:
        """Plain form for reports."""
        return plain(dataclasses.asdict(self))
