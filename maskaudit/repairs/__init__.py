"""Repairs: the forward value stays, the backward changes; chosen from a trace, attacked through by a plan."""

from maskaudit.repairs.planner import make_plan, repair_sets
from maskaudit.repairs.propose import fallbacks, propose
from maskaudit.repairs.repaired import RepairedModel
from maskaudit.repairs.target import repaired_target
from maskaudit.settings.plan import Plan, Repair, Stage

__all__ = [
    "Plan",
    "Repair",
    "RepairedModel",
    "Stage",
    "fallbacks",
    "make_plan",
    "propose",
    "repair_sets",
    "repaired_target",
]
