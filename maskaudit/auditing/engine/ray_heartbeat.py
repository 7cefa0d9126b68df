"""Signs of life from the workers of a cluster, so that one that hangs is noticed, and not only one that dies.

While a worker holds a parcel, a thread of it tells every second which call of foreign code it is at. An actor keeps the
last word of each; the audit asks it and ends what has fallen silent, or stays in one call for too long.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from maskaudit import foreign

#: Seconds between two signs of a worker, and between two looks at them.
BEAT = 1.0
#: Seconds of silence beyond the time that a call may take: what holds up a whole process for a while, or the network.
GRACE = 30.0


class Sign(NamedTuple):
    """The last word of a worker on a parcel: number of it, the call in progress (0: none), and where it runs."""

    number: int
    call: int
    node: str
    process: int


class Signs:
    """The actor: the last sign of each parcel that is being worked on, numbered through."""

    def __init__(self) -> None:
        self._number, self._last = 0, dict[str, Sign]()

    def note(self, parcel: str, call: int, node: str, process: int) -> None:
        """Note a sign of life from the worker that holds a parcel."""
        self._number += 1
        self._last[parcel] = Sign(self._number, call, node, process)

    def forget(self, parcel: str) -> None:
        """Drop the signs of a parcel that is done."""
        self._last.pop(parcel, None)

    def last(self) -> tuple[int, dict[str, Sign]]:
        """The number of signs so far, and the last of each."""
        return self._number, dict(self._last)


@contextlib.contextmanager
def beating(signs: Any, parcel: str) -> Iterator[None]:
    """Within, this process gives signs of life, and what foreign code prints leads nowhere: no one reads it here."""
    ray: Any = importlib.import_module("ray")
    board, node, ended = foreign.Board(), ray.get_runtime_context().get_node_id(), threading.Event()

    def beat() -> None:
        while True:
            signs.note.remote(parcel, board.lasting().get(os.getpid(), 0), node, os.getpid())
            if ended.wait(BEAT):
                break
        signs.forget.remote(parcel)

    thread = threading.Thread(target=beat, daemon=True)
    with foreign.marked_calls(board), _silent():
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    kept = os.dup(1), os.dup(2)
    foreign.fall_silent()
    try:
        yield
    finally:
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


class ParcelWatch:
    """Follows the signs of parcels from look to look.

    Args:
        limit: seconds that one call may take; None adapts to the calls seen, 0 allows any time.
    """

    def __init__(self, limit: float | None) -> None:
        self._asked, self._longest, self._stopwatch = limit, 0.0, foreign.Stopwatch()
        self._late = 0  # parcels so far: what is done about one may take as long

    @property
    def limit(self) -> float:
        """Seconds that a call may take now; 0 for any time."""
        return foreign.longest_call(self._asked, self._longest)

    def late(self, number: int, last: Mapping[str, Sign]) -> list[str]:
        """Parcels that are at one call, or have given no sign, for too long; "" where nothing moves at all.

        Args:
            number: of the signs of all parcels so far; 0 while the cluster has no room for any.
            last: those of the parcels that are watched.
        """
        calls = {(parcel, "at call", sign.call): parcel for parcel, sign in last.items() if sign.call}
        quiet = {(parcel, "silent since", sign.number): parcel for parcel, sign in last.items()}
        nothing = ("nothing since", number, self._late)
        lasted, limit = self._stopwatch.seen([*calls, *quiet, nothing]), self.limit
        if not limit:
            return []
        late = {parcel for call, parcel in calls.items() if lasted[call] > limit}
        late |= {parcel for sign, parcel in quiet.items() if lasted[sign] > limit + GRACE}
        self._longest = max([self._longest, *(lasted[call] for call in calls if calls[call] not in late)])
        self._late += len(late)
        return sorted(late) or [""] * (number > 0 and lasted[nothing] > limit + GRACE)
