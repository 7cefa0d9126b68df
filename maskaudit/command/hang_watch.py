"""Notice calls of foreign code that never return, and a child that was stopped between two of them."""

from __future__ import annotations

import os

from maskaudit.foreign import Board, Stopwatch, longest_call, stopped


class Watch:
    """Follows the calls on a board from look to look.

    Attributes:
        limit: seconds that one call may last; None adapts to the calls seen, 0 allows any time.
    """

    def __init__(self, board: Board, child: int) -> None:
        self.board, self.child = board, child
        self.limit: float | None = None
        self._longest, self._stopwatch = 0.0, Stopwatch()

    def overdue(self) -> float | None:
        """Seconds that a call in progress may take, if it, or a stop of the child, has taken more."""
        calls = [call for call in self.board.lasting().items() if _alive(call[0])]
        lasted = self._stopwatch.seen([*calls, *["stopped"] * stopped(self.child)])
        limit, late = longest_call(self.limit, self._longest), max(lasted.values(), default=0.0)
        if limit and late > limit:
            return limit
        self._longest = max(self._longest, late)
        return None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True
