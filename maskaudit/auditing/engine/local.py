"""This process: one task after the other."""

from __future__ import annotations

from collections.abc import Sequence

from maskaudit.auditing.engine.interface import Done, OnDone, Result, Task, ignore, run_here
from maskaudit.target import Target


class Local:
    """Runs tasks here."""

    def run(
        self, tasks: Sequence[Task[Result]], target: Target, on_done: OnDone[Result] = ignore
    ) -> list[Done[Result]]:
        """As `Engine.run`."""
        return run_here(tasks, target, on_done)

    def close(self) -> None:
        """Nothing is held."""
