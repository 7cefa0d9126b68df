"""Dormant units: rectifier units that fire on none of the audited points, and what opens them.

Where a unit is off at every point, it hands back no gradient, and no white-box
attack can see what it would do once it fires. Trained networks have many such
units and hide nothing, so they are no suspects; but an attack that sees through
them tells whether something waits behind. Only a gradient of the units that are
off everywhere is added: elsewhere it stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskaudit.results import Location
from maskaudit.target import Target
from maskaudit.trace.functorch import bare, below
from maskaudit.trace.rectifiers import activation, is_rectifier, off_everywhere
from maskaudit.trace.watch import WatchedCall, watch_points

#: Per place, for each call there within one forward pass: which units (one point's shape) are off at every point;
#: None where the units of different points cannot be told apart.
DormantUnits = Mapping[Location, tuple[Tensor | None, ...]]


def dormant_units(target: Target, x: Tensor) -> DormantUnits:
    """Units that are off on all points `x` (N, …), by the place of their rectifier; places without any are left out.

    One forward pass per point.
    """
    found: dict[Location, list[Tensor | None]] = {}

    def note(place: Location, number: int, call: WatchedCall) -> None:
        rectifier = activation(call.name, call.args, call.kwargs)
        off = None if rectifier is None else rectifier.off()
        calls = found.setdefault(place, [])
        before = calls[number : number + 1]
        here = None
        if off is not None and before != [None] and bare(off).dim() >= 2 and bare(off).shape[0] % call.points == 0:
            with below():
                here = off_everywhere(bare(off), *before)
        calls[number : number + 1] = [here]

    watch_points(target, x, lambda call: call.name if is_rectifier(call.name) else None, note, own=True)
    return {
        place: tuple(units) for place, units in found.items()
        if any(unit is not None and bool(unit.any()) for unit in units)
    }  # fmt: skip


class Opener:
    """Opens the dormant units of one forward pass, call by call.

    Args:
        units: as `dormant_units` returns them.
    """

    def __init__(self, units: DormantUnits) -> None:
        self._units = units
        self._calls: Counter[Location] = Counter()

    def added(self, place: Location, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What the call, about to run, is to be given a gradient of on top of its own; None for nothing.

        It carries the argument's gradient where a dormant unit is still off, so that a unit which
        fires by now counts once. To be asked before the call, which may overwrite its argument.
        """
        calls = self._units.get(place, ())
        number = self._calls[place]
        self._calls[place] += 1
        dormant = calls[number] if number < len(calls) else None
        call = activation(name, args, kwargs)
        shut = None if call is None else call.off()
        if call is None or shut is None or dormant is None or bare(shut).shape[1:] != dormant.shape:
            return None
        if not bare(call.x).requires_grad:
            return None
        with torch.enable_grad():
            return torch.where(shut & dormant.to(shut.device), call.x, torch.zeros_like(call.x))
