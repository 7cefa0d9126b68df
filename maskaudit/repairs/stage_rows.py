"""The rows of the report that stages of a plan are booked under.

Only stages through an actual repair are `repaired`. White-box stages count for
G*, and those on cross-entropy for CE* as well, whatever start or number of
draws they use.
"""

from __future__ import annotations

from maskaudit.attacks.interface import AttackSpec
from maskaudit.repairs.stages import run_stage

_TASHIRO = "Tashiro et al. 2020, Diversity can be transferred: output diversification for white- and black-box attacks"
_MA = "Ma et al. 2020, Imbalanced gradients: a subtle cause of overestimated adversarial robustness"
_ATHALYE = "Athalye et al. 2018, section 4.1, Backward pass differentiable approximation"


def plan_specs(steps: int, targets: int) -> tuple[AttackSpec, ...]:
    """One spec per row; steps and wrong classes per run are what a plan made from a trace uses.

    What runs under them is `run_stage`, once for each stage of a plan.
    """
    settings = {"steps": steps, "targets": targets}
    return (
        AttackSpec(
            "adaptive-ce", "Adaptive attack on cross-entropy, where probes or trace hint at a fault", "gradient",
            "strong", run_stage, settings, "cross_entropy", (_TASHIRO,),
            phase="repaired",
        ),
        AttackSpec(
            "adaptive", "Adaptive attack on decomposed margins, where probes or trace hint at a fault", "gradient",
            "strong", run_stage, settings, "other_loss", (_MA, _TASHIRO),
            phase="repaired",
        ),
        AttackSpec(
            "repaired", "Planned attack through the repaired gradient", "repaired", "repaired", run_stage,
            settings, None, (_ATHALYE,), phase="repaired",
        ),
    )  # fmt: skip
