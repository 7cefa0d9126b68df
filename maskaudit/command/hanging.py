"""Notice calls of foreign code that never return."""

from __future__ import annotations

import os
import time

from maskaudit.foreign import Board

#: Seconds that a call may last where no number is given, and how many times the longest one before it.
USUAL_LIMIT, TIMES_LONGEST = 300.0, 20.0
#: Longest step between two looks that counts: past it this process was suspended, and the calls with it.
LONGEST_STEP = 5.0


class Watch:
    """Follows the calls on a board from look to look.

    Attributes:
        limit: seconds that one call may last; None adapts to the calls seen, 0 allows any time.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self.limit: float | None = None
        self._longest, self._looked = 0.0, time.monotonic()
        self._lasted: dict[tuple[int, int], float] = {}

    def overdue(self) -> float | None:
        """Seconds that a call in progress has taken, if that is past the limit."""
        now = time.monotonic()
        step, self._looked = min(now - self._looked, LONGEST_STEP), now
        calls = [(process, number) for process, number in self.board.lasting().items() if _alive(process)]
        self._lasted = {call: self._lasted.get(call, -step) + step for call in calls}
        limit = self.limit if self.limit is not None else max(USUAL_LIMIT, TIMES_LONGEST * self._longest)
        late = max(self._lasted.values(), default=0.0)
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
