"""What an audit or a training is asked to do, and who hears of its steps. Knows no torch."""

from maskaudit.settings.audit import FAIL_ON, OPTIONS, AuditSettings, FailOn, Layout, Outputs, Request, fails
from maskaudit.settings.budget import (
    BUDGETS,
    CORRECT_POINTS,
    FIRST_LOOKS,
    LOOK_GROWTH,
    MOST_DRAWN,
    Allowance,
    Budget,
    allowance,
    looks_up_to,
)
from maskaudit.settings.events import AuditEvent, Listener, ignore_events
from maskaudit.settings.kinds import BUILT_IN_DATA, WORDS
from maskaudit.settings.training import TRAIN_OPTIONS, Augment, Schedule, TrainSettings, Weighting

__all__ = [
    "BUDGETS",
    "BUILT_IN_DATA",
    "CORRECT_POINTS",
    "FAIL_ON",
    "FIRST_LOOKS",
    "LOOK_GROWTH",
    "MOST_DRAWN",
    "OPTIONS",
    "TRAIN_OPTIONS",
    "WORDS",
    "Allowance",
    "AuditEvent",
    "AuditSettings",
    "Augment",
    "Budget",
    "FailOn",
    "Layout",
    "Listener",
    "Outputs",
    "Request",
    "Schedule",
    "TrainSettings",
    "Weighting",
    "allowance",
    "fails",
    "ignore_events",
    "looks_up_to",
]
