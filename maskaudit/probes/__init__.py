"""The registered probes, in the order they run and are listed. Adding one is one file and one line here."""

from __future__ import annotations

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

__all__ = ["PROBES"]

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
