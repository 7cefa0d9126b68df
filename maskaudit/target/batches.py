"""Points in batches that memory and the model allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from maskaudit.target.memory import give_back
from maskaudit.target.passes import PassLedger, failed_itself, out_of_memory
from maskaudit.target.process_state import RandomState

Part = TypeVar("Part")


class Batches:
    """Work on points, a batch at a time.

    Args:
        size: points of a batch at most.

    Attributes:
        size: the same, halved whenever memory did not suffice or the model failed on so many points.
        refusal: a sentence on how many points the model fails on, though it answers fewer; empty where it does not.
    """

    def __init__(self, size: int) -> None:
        self.size, self.refusal = size, ""
        self._answered = 0

    def run(
        self, n: int, do: Callable[[slice], Part], ledger: PassLedger, device: torch.device, *,
        random: bool, before: Callable[[], None] | None,
    ) -> list[Part]:  # fmt: skip
        """What is done to every batch of `n` points; passes of an attempt that failed do not count.

        Args:
            ledger: counts the passes; put back, like the random state of a model that draws (`random`), where a batch
                is begun again.
            before: called before every batch; what it raises ends the work.
            device: where memory is given back to before a smaller batch is tried.
        """
        parts, start, refused = list[Part](), 0, None
        while start < n:
            rows = slice(start, min(start + self.size, n))
            size = rows.stop - rows.start
            begun, drawn = ledger.copy(), RandomState() if random else None
            if before is not None:
                before()
            try:
                parts.append(do(rows))
            except Exception as error:
                if size == 1 or not (out_of_memory(error) or self._takes_fewer(error, size)):
                    if refused is None:
                        raise
                    raise refused  # noqa: B904 - the failure at the size that was asked for, with its own cause
                refused = refused or (None if out_of_memory(error) else error)
            else:
                start, self._answered = rows.stop, max(self._answered, size)
                if refused is not None:
                    why = str(refused).removesuffix(".")
                    self.refusal = f"The model is asked at most {size} points at once (--batch-size). {why}."
                    refused = None
                continue
            self.size = size // 2  # outside the clause, which holds what ran out
            ledger.forwards, ledger.backwards = begun.forwards, begun.backwards
            if drawn is not None:
                drawn.restore()
            give_back(device)
        return parts

    def _takes_fewer(self, error: Exception, size: int) -> bool:
        """Whether a batch may have been too large: the code of a model raised that answered smaller ones alone."""
        return 0 < self._answered < size and failed_itself(error)
