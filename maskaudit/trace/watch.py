"""The one watcher of torch calls in a forward pass: it knows where a call is made, who uses it what to do with it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from maskaudit.results import Location
from maskaudit.target import Target
from maskaudit.trace.calls import op_name
from maskaudit.trace.scope import Frame, ModuleScope, PostHook, PreHook, as_written, user_site

Arguments = tuple[Any, ...]
Named = dict[str, Any]
#: Makes a call, given as (function, name, positional arguments, named ones), and returns what the model gets from it.
Handler = Callable[[Callable[..., Any], str, Arguments, Named], Any]


class CallWatcher(TorchFunctionMode):
    """Leaves every call of torch in a forward pass to `handle`; calls and modules that this runs are not watched.

    Args:
        model: the module whose paths are used.
        handle: see `Handler`.
        before, after: what is done on the way into a module and out of it, as `ModuleScope` has it.
    """

    def __init__(
        self, model: object, handle: Handler, *, before: PreHook | None = None, after: PostHook | None = None
    ) -> None:
        super().__init__()
        self.scope = ModuleScope(model, before=self._unless_busy(before), after=self._unless_busy(after))
        self._handle = handle
        self._busy = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch one forward pass while the context is open."""
        with self.scope.watching(), self:
            yield

    def place(self, name: str, site: Frame) -> Location:
        """Module path and line of a call made at `site`."""
        return Location(self.scope.path if site.module is None else site.module, name, site.file, site.line)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Arguments = (), kwargs: Named | None = None
    ) -> Any:
        """Have the call handled."""
        if self._busy:
            return func(*args, **(kwargs or {}))
        return self._alone(self._handle, func, op_name(func), args, kwargs or {})

    def _alone(self, do: Callable[..., Any], *args: Any) -> Any:
        self._busy = True
        try:
            return do(*args)
        finally:
            self._busy = False

    def _unless_busy(self, hook: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Any] | None:
        if hook is None:
            return None
        return lambda module, data: None if self._busy else self._alone(hook, module, data)


@dataclass(frozen=True)
class WatchedCall:
    """A call about to be made, in a forward pass of so many points, the first `meant` of which are no copies."""

    name: str
    args: Arguments
    kwargs: Named
    points: int
    meant: int


def watch_points(
    target: Target, x: Tensor, name_of: Callable[[WatchedCall], str | None],
    tell: Callable[[Location, int, WatchedCall], None], *, own: bool = False,
) -> None:  # fmt: skip
    """Tell of calls in forward passes over points.

    Args:
        target: the open target.
        x: points (N, …), pass by pass.
        name_of: the name by which a call is told of, if it is.
        tell: given the place, the number of the call there within the pass, and the call.
        own: leave out what the target does itself, and what runs inside custom Functions.
    """
    numbers: Counter[Location] = Counter()
    points = meant = 0

    def handle(func: Callable[..., Any], name: str, args: Arguments, kwargs: Named) -> Any:
        call = WatchedCall(name, args, kwargs, points, meant)
        known = name_of(call)
        if known is not None:
            site = user_site()
            if not (own and (site.outside or site.function is not None)):
                place = watcher.place(known, site)
                numbers[place] += 1
                tell(place, numbers[place] - 1, call)
        return func(*args, **kwargs)

    watcher = CallWatcher(as_written(target.model), handle)
    form = target.form
    size = 1 if form.alone else form.most or target.batches.size
    for start in range(0, len(x), size):
        batch = x[start : start + size]
        meant = len(batch)
        points = max(meant, form.most or form.least)
        numbers.clear()
        with watcher.watching():
            target.raw(batch)
