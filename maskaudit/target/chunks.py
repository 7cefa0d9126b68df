"""Points in portions: what is worked out per point need not lie in memory for all of them at once."""

from __future__ import annotations

from collections.abc import Iterator

#: Numbers of the largest tensor that is made at once: 64 MB in float32.
MOST_ELEMENTS = 2**24


def chunks(points: int, elements: int) -> Iterator[slice]:
    """Slices of `points` rows in order; where a row takes `elements` numbers, none takes above `MOST_ELEMENTS`.

    A row that takes more by itself is a slice of its own.
    """
    size = max(1, MOST_ELEMENTS // max(1, elements))
    for start in range(0, points, size):
        yield slice(start, min(start + size, points))
