"""This process: one task after the other."""

from __future__ import annotations

from collections.abc import Sequence

from maskaudit.auditing.engine.interface import Done, OnDone, Result, Task, ignore, run_counted
from maskaudit.target import Target


class Local:
    """The engine that runs tasks in this process."""

    def run(
        self, tasks: Sequence[Task[Result]], target: Target, on_done: OnDone[Result] = ignore
    ) -> list[Done[Result]]:
        """Run the tasks one after the other, as `Engine.run` asks."""
        before, done = target.ledger.copy(), list[Done[Result]]()
        try:
            for number, task in enumerate(tasks):
                done.append(run_counted(task, target))
                on_done(number, done[-1])
        except BaseException:
            target.ledger.forwards, target.ledger.backwards = before.forwards, before.backwards
            raise
        return done

    def close(self) -> None:
        """Do nothing: this engine holds no processes."""
