"""Dormant units: rectifier units that fire on none of the audited points, and what opens them.

Where a unit is off at every point, it hands back no gradient, and no attack on own
gradients can see what it would do once it fires. Trained networks have many such
units and hide nothing, so they are no suspects; but an attack that sees through
them tells whether something waits behind. Only a gradient of the units that are
off everywhere is added: elsewhere it stays as it is.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maskaudit.results import Location
from maskaudit.target import Target
from maskaudit.trace.calls import op_name
from maskaudit.trace.functorch import bare, below
from maskaudit.trace.scope import ModuleScope, as_written, user_site

#: Slope below the floor up to which a leaky rectifier counts as shut: what leaks is this part of what would pass.
TINY_SLOPE = 0.1

RECTIFIERS = frozenset({
    "relu", "relu6", "threshold", "leaky_relu", "hardtanh", "clamp", "clip", "clamp_min", "maximum",
})  # fmt: skip

#: Per place, for each call there within one forward pass: which units (one point's shape) are off at every point;
#: None where the units of different points cannot be separated.
DormantUnits = Mapping[Location, tuple[Tensor | None, ...]]


def is_rectifier(name: str) -> bool:
    """Whether a call of this name may cut its argument off from below."""
    return name.strip("_") in RECTIFIERS


def off(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Which units of a rectifier's argument are below its floor, bool of its shape; None where it has no floor.

    Args:
        name: of the call, `is_rectifier`; args, kwargs: what it is called with.
    """
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    floor = _floor(name.strip("_"), args[1:], kwargs)
    if isinstance(floor, Tensor):
        alike = not floor.requires_grad and torch.broadcast_shapes(x.shape, floor.shape) == x.shape
        return x.detach() <= floor if alike else None
    return x.detach() <= floor if isinstance(floor, (int, float)) else None


def _floor(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def argument(key: str, usual: Any = None) -> Any:
        return args[0] if args else kwargs.get(key, usual)

    if name in ("relu", "relu6"):
        return 0.0
    if name == "leaky_relu":
        slope = argument("negative_slope", 0.01)
        return 0.0 if isinstance(slope, (int, float)) and abs(slope) < TINY_SLOPE else None
    names = {"hardtanh": ("min_val", -1.0), "threshold": ("threshold", None), "maximum": ("other", None)}
    return argument(*names.get(name, ("min", None)))


def dormant_units(target: Target, x: Tensor) -> DormantUnits:
    """Units that are off on all points `x` (N, …), by the place of their rectifier; places without any are left out.

    One forward pass per point.
    """
    watch = _Watch(as_written(target.model))
    for start in range(0, len(x), target.batch_size):
        batch = x[start : start + target.batch_size]
        with watch.over(len(batch)):
            target.raw(batch)
    return {place: tuple(units) for place, units in watch.units.items() if any(_count(unit) for unit in units)}


def _count(unit: Tensor | None) -> int:
    return 0 if unit is None else int(unit.count_nonzero())


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
        shut = off(name, args, kwargs)
        dormant = calls[number] if number < len(calls) else None
        if shut is None or dormant is None or bare(shut).shape[1:] != dormant.shape:
            return None
        x = args[0] if args else kwargs["input"]
        if not bare(x).requires_grad:
            return None
        with torch.enable_grad():
            return torch.where(shut & dormant.to(shut.device), x, torch.zeros_like(x))


class _Watch(TorchFunctionMode):
    """Keeps, per rectifier call, the units that have been off at every point so far."""

    def __init__(self, model: nn.Module | Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.units: dict[Location, list[Tensor | None]] = {}
        self._scope = ModuleScope(model)
        self._calls: Counter[Location] = Counter()
        self._points = 1
        self._busy = False

    @contextlib.contextmanager
    def over(self, points: int) -> Iterator[None]:
        """Watch one forward pass of that many points."""
        self._points = points
        self._calls.clear()
        with self._scope.watching(), self:
            yield

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = op_name(func)
        if self._busy or not is_rectifier(name):
            return func(*args, **kwargs)
        self._busy = True
        try:
            self._note(name, args, kwargs)
            return func(*args, **kwargs)
        finally:
            self._busy = False

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        site = user_site()
        if site.outside or site.function is not None:
            return
        place = Location(self._scope.path if site.module is None else site.module, name, site.file, site.line)
        number = self._calls[place]
        self._calls[place] += 1
        shut = off(name, args, kwargs)
        with below():
            here = None if shut is None else self._shut_everywhere(bare(shut))
        calls = self.units.setdefault(place, [])
        if number == len(calls):
            calls.append(here)
            return
        before = calls[number]
        same = before is not None and here is not None and before.shape == here.shape
        calls[number] = before & here if same and before is not None and here is not None else None

    def _shut_everywhere(self, shut: Tensor) -> Tensor | None:
        """Units off at every point; None where the units (N, …) of different points cannot be separated."""
        return shut.all(dim=0) if shut.dim() >= 2 and shut.shape[0] % self._points == 0 else None
