"""Tables and pictures of the study of gradient adversarial training, from its committed records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "great"


def write_pictures(records: Sequence[Mapping[str, Any]]) -> None:
    """Curves and saliency maps of every setting."""
