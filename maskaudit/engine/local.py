"""This process: the attack meets all points at once, and refills its batches from all of them."""

from __future__ import annotations

from maskaudit.attacks.interface import Attempt
from maskaudit.engine.interface import Job
from maskaudit.target import Target


class Local:
    """Runs a job here."""

    def run(self, job: Job, target: Target) -> Attempt:
        """The attack's own result."""
        return job.run(target)
