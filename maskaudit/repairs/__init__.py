"""Repairs: the forward value stays, the backward changes; chosen from a trace, attacked through."""

from maskaudit.repairs.attack import repair_sets, repaired_attacks
from maskaudit.repairs.interface import Repair
from maskaudit.repairs.mode import RepairedModel
from maskaudit.repairs.propose import fallbacks, propose
from maskaudit.repairs.target import repaired_target

__all__ = ["Repair", "RepairedModel", "fallbacks", "propose", "repair_sets", "repaired_attacks", "repaired_target"]
