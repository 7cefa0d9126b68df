"""Points proven robust: no admissible input around them is answered otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskaudit.bounds.linear import COARSE_UNIT, UNIT, Intervals, Region, backward, intervals, levels, relaxations
from maskaudit.bounds.network import Network
from maskaudit.threat import ThreatModel

#: Most rectifiers of a network whose inner bounds are found by CROWN; of larger ones by intervals (CROWN-IBP).
MOST_RECTIFIERS = 10_000
#: Points bounded together.
TOGETHER = 16


def certified(
    network: Network, x: Tensor, y: Tensor, threat: ThreatModel, *, coarse: bool = False,
    before: Callable[[], None] = lambda: None,
) -> Tensor:  # fmt: skip
    """Which points (N,) are proven robust, by interval bounds, CROWN on these, and CROWN throughout where affordable.

    A margin counts where it exceeds what float32 rounding may do to it.

    Args:
        x: inputs (N, …); y: labels (N,).
        coarse: whether the model may compute in TF32.
        before: called before every batch of points; may raise to end the work.
    """
    proven = torch.zeros(len(x), dtype=torch.bool)
    for tighten in (False, True) if network.rectifiers <= MOST_RECTIFIERS else (False,):
        for rows in (~proven).nonzero().squeeze(1).split(1 if tighten else TOGETHER):
            if not len(rows):
                return proven
            before()
            region = Region.around(x[rows], threat)
            with torch.no_grad():
                found = intervals(network, region, tighten=tighten, unit=COARSE_UNIT if coarse else UNIT)
                proven[rows] = (margins(network, region, found, y[rows]) > 0).all(dim=1)
    return proven


def margins(network: Network, region: Region, found: Intervals, y: Tensor) -> Tensor:
    """Lower bounds (D, K − 1) of the score of class y less that of every other class, less what rounding may do.

    The better of interval bounds, with the readout folded into the differences, and CROWN bounds.
    """
    rows, last = differences(found.low[-1].shape[1], y), len(network.steps) - 1
    bounds = []
    for lines in (levels(network, found), relaxations(network, found)):
        slopes, constant = backward(network, last, rows, lines)
        bounds.append(region.lowest(slopes)[0] + constant)
    return torch.maximum(*bounds) - slack(found, y)


def differences(classes: int, y: Tensor) -> Tensor:
    """Rows (D, K − 1, K) that subtract every other class's score from that of y (D,), in the order of the classes."""
    one = torch.eye(classes, dtype=torch.float64)
    return torch.stack([one[label] - one[torch.arange(classes) != label] for label in y.tolist()])


def slack(found: Intervals, y: Tensor) -> Tensor:
    """What rounding may do to each difference, (D, K − 1)."""
    drift = found.drift[-1]
    return torch.einsum("dsk,dk->ds", differences(drift.shape[1], y).abs(), drift)
