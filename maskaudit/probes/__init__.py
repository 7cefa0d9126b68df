"""The registered probes, in the order they run and are listed. Adding one is one file and one line here."""

from __future__ import annotations

from maskaudit.errors import UsageError
from maskaudit.probes import (
    blind_spots,
    curvature,
    dead_relu,
    finite_differences,
    gradient_free_gap,
    gradient_ratio,
    imbalanced_margin,
    layer_flow,
    one_step,
    output_kind,
    random_beats_gradient,
    randomness,
    saturation,
    transfer_gap,
    unbounded_attack,
    zero_gradient,
)
from maskaudit.probes.interface import Probe

__all__ = ["PROBES", "get"]

PROBES: tuple[Probe, ...] = (
    output_kind.PROBE,
    randomness.PROBE,
    zero_gradient.PROBE,
    gradient_ratio.PROBE,
    imbalanced_margin.PROBE,
    finite_differences.PROBE,
    saturation.PROBE,
    dead_relu.PROBE,
    layer_flow.PROBE,
    curvature.PROBE,
    blind_spots.PROBE,
    unbounded_attack.PROBE,
    random_beats_gradient.PROBE,
    one_step.PROBE,
    gradient_free_gap.PROBE,
    transfer_gap.PROBE,
)


def get(rule: str) -> Probe:
    """The registered probe `rule`.

    Raises:
        UsageError: when there is none.
    """
    for probe in PROBES:
        if probe.rule == rule:
            return probe
    raise UsageError(f"There is no probe {rule!r}; there are {', '.join(probe.rule for probe in PROBES)}.")
