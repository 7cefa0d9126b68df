"""A black box: asked, counted, kept to a limit and a rate; it has no gradient."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from maskaudit.errors import MaskauditError, ModelError

#: Operations of torch that only carry data to another runtime and back.
_CARRIES = frozenset([
    "detach", "_to_copy", "clone", "lift_fresh", "lift_fresh_copy", "view", "reshape", "alias", "_unsafe_view",
    "_local_scalar_dense", "slice", "select", "unsqueeze", "squeeze", "permute", "transpose", "contiguous", "copy_",
    "empty", "stack", "cat", "flatten", "t", "expand",
])  # fmt: skip


#: Types of class numbers.
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class QueriesSpentError(MaskauditError):
    """The queries that were allowed are spent."""

    exit_code = 3


class BlackBox:
    """A model that is only asked.

    Args:
        ask: from inputs (N, …), float32 on the CPU, to what the model returns.
        limit: most points that it is asked, none for any number.
        rate: most points per second, none for any number.
        shared: whether processes forked from this one count with it, so that limit and rate are those of all together.
        classes: number of classes, for a model that answers with class numbers instead of scores.

    Attributes:
        black_box: marks it for code that would look for gradients.
    """

    black_box = True

    def __init__(
        self, ask: Callable[[Tensor], Any], *, limit: int | None = None, rate: float | None = None,
        shared: bool = False, classes: int = 0,
        sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.ask, self.limit, self.rate, self.classes = ask, limit, rate, classes
        self._sleep, self._clock = sleep, clock
        self._asked: Any = multiprocessing.RawValue("q", 0) if shared else SimpleNamespace(value=0)
        self._free_at: Any = multiprocessing.RawValue("d", 0.0) if shared else SimpleNamespace(value=0.0)
        self._lock: Any = multiprocessing.Lock() if shared else contextlib.nullcontext()

    @property
    def queries(self) -> int:
        """Points that it was asked so far."""
        return int(self._asked.value)

    def __call__(self, x: Tensor) -> Any:
        """Ask about points (N, …); class numbers become votes (N, K).

        Raises:
            QueriesSpentError: when that would be more than the limit; nothing is asked then.
            ModelError: for class numbers that the data do not have.
        """
        with self._lock:
            if self.limit is not None and self.queries + len(x) > self.limit:
                raise QueriesSpentError(f"{self.queries} of {self.limit} allowed queries are spent (--queries).")
            self._asked.value += len(x)
            pause = self._pause(len(x))
        if pause > 0:
            self._sleep(pause)
        with torch.no_grad():
            return self._votes(self.ask(x.detach().cpu()))

    def _votes(self, answer: Any) -> Any:
        """Whole numbers (N,) as one vote each (N, K), anything else as it is."""
        whole = isinstance(answer, Tensor) and answer.dim() == 1 and answer.dtype in WHOLE
        if not (whole and self.classes and len(answer)):
            return answer
        low, high = int(answer.min()), int(answer.max())
        if low < 0 or high >= self.classes:
            raise ModelError(
                f"The model answers class numbers from {low} to {high}, and the data have {self.classes} classes, "
                "counted from 0; --first-label tells where counting begins."
            )
        return functional.one_hot(answer.long(), self.classes).float()

    def _pause(self, points: int) -> float:
        """Seconds to wait so that the rate is kept."""
        if self.rate is None:
            return 0.0
        now, free = self._clock(), float(self._free_at.value)
        self._free_at.value = max(now, free) + points / self.rate
        return free - now


class _Ops(TorchDispatchMode):
    """Names of the operations of torch that run inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def computes_elsewhere(model: Callable[[Any], Any], x: Tensor) -> bool:
    """Whether a function answers points (N, …) without computing in torch: there is no gradient that could be cut.

    It does where it returns no tensor, takes arrays only, or has torch do nothing but carry data. A function that
    fails on both is not called a black box.
    """
    seen = _Ops()
    try:
        with torch.no_grad(), seen:
            answer = model(x.clone())
    except (Exception, SystemExit):  # it may want an array
        return _answers_arrays(model, x)
    return isinstance(answer, (np.ndarray, list)) or seen.names <= _CARRIES


def _answers_arrays(model: Callable[[Any], Any], x: Tensor) -> bool:
    try:
        return isinstance(model(x.detach().cpu().numpy()), (np.ndarray, list))
    except (Exception, SystemExit):  # reported elsewhere
        return False
