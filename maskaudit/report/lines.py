"""Text for a terminal: wrapped lines, and cells in columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

#: Columns of the output.
WIDTH = 100


def wrapped(text: str, first: str = "", rest: str = "", *, width: int = WIDTH) -> list[str]:
    """A text in lines of at most `width`, in which words stay whole; `first` and `rest` indent them."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def columns(cells: Sequence[str], widths: Sequence[int], align: str = "") -> str:
    """Cells side by side; `align` has "l" or "r" for each, all are on the left without it."""
    sides = align or "l" * len(cells)
    padded = (c.ljust(w) if side == "l" else c.rjust(w) for c, w, side in zip(cells, widths, sides, strict=True))
    return "  ".join(padded).rstrip()
