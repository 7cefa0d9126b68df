"""The resident batch: the points under attack right now, with their state in contiguous tensors.

A point takes a slot, stays in it until it is broken or exhausted, and hands it to the
next waiting point; when none waits, the last slots move into the holes and the batch
shrinks. So a step costs its pass and a few operations on tensors that lie ready, and
what it costs to leave and to enter is paid per point that does so, not per step.

Nothing in a step waits for an accelerator: there the slots are looked through only every
`LOOK_EVERY` steps (this look waits), a point that broke in between keeps what it had reached
at its first success, and which slots are at which step of their schedule is known on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from maskaudit.attacks.confirm import Recheck, confirmation, look_after
from maskaudit.attacks.interface import Attempt, BestCandidates
from maskaudit.sums import column
from maskaudit.target import Target, accelerator

#: Steps between two looks at which slots are free, on an accelerator; a look waits for the device.
LOOK_EVERY = 8
#: Elements up to which a tensor on the CPU is rewritten whole rather than row by row.
FEW_ELEMENTS = 2**14


class SlotState:
    """Base of dataclasses whose tensors have one row per slot; parts may be `SlotState` themselves."""

    def parts(self) -> Iterator[tuple[SlotState, str, Tensor]]:
        """Every tensor with its owner and the owner's name for it, always in the same order."""
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, SlotState):
                yield from value.parts()
            elif isinstance(value, Tensor):
                yield self, item.name, value


@dataclasses.dataclass
class _Slots(SlotState):
    """What every attack keeps per slot."""

    points: Tensor
    number: Tensor
    first: Tensor
    sure: Tensor
    hopeless: Tensor
    best: Tensor | None
    best_margin: Tensor | None


State = TypeVar("State", bound=SlotState)


class ResidentBatch(Generic[State]):
    """Slots that points pass through.

    Args:
        best: where the best candidate of every point (N of them) is kept.
        limit: steps each point may take.
        batch_size: slots at most; fewer when that makes the batches even.
        stop_early: whether a point leaves as soon as it is broken.
        confirm: for random models, says now and then which points are broken beyond doubt; they leave.
        enter: state of points (n,) that are about to take a slot.
        candidates: best candidate and margin per slot, read from the state, for attacks whose iterate is their
            best candidate; others `offer` candidates.

    Attributes:
        state: the attack's tensors, one row per slot; the attack writes into them or swaps them.
        steps: int64 (N,), steps taken by points that have left; first_success: int64 (N,), −1 if never.
        settled: bool (N,), points that left before their time and need no further attempt.

    Use::

        while len(batch):
            …one step for batch.points, whose step numbers are batch.number…
            batch.offer(candidates, margins)
            batch.advance(margins > 0)
    """

    def __init__(
        self, best: BestCandidates, *, limit: int, batch_size: int, stop_early: bool, enter: Callable[[Tensor], State],
        confirm: Recheck | None = None, candidates: Callable[[State], tuple[Tensor, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        n, here = len(best.margin), best.margin.device
        self.steps = torch.zeros(n, dtype=torch.int64, device=here)
        self.first_success = torch.full((n,), -1, dtype=torch.int64, device=here)
        self.settled = torch.zeros(n, dtype=torch.bool, device=here)
        self.limit, self.stop_early = limit, stop_early
        self._confirm, self._looks = confirm, look_after(limit)
        self._all, self._enter, self._candidates = best, enter, candidates
        self._asking_is_free, self._given_up = accelerator.asking_is_free(here), False
        batches = -(-n // batch_size)
        points = torch.arange(0 if limit <= 0 or n == 0 else -(-n // batches), device=here)
        self._n, self._next, self._tick = n, len(points), 0
        self._joined = np.zeros(len(points), dtype=np.int64)  # tick at which each slot was taken, on the host
        self._first_joined = self._last_joined = 0
        self._slots = self._fresh(points)
        self.state = enter(points)

    @classmethod
    def on(
        cls, target: Target, x: Tensor, y: Tensor, *, limit: int, enter: Callable[[Tensor], State],
        best: BestCandidates | None = None, batch_size: int | None = None,
        candidates: Callable[[State], tuple[Tensor, Tensor]] | None = None,
    ) -> ResidentBatch[State]:  # fmt: skip
        """Points (N, …) with labels (N,) under an attack on a target, which says when they leave."""
        return cls(
            best or BestCandidates(x), limit=limit, batch_size=batch_size or target.batch_size,
            stop_early=target.stop_early, confirm=confirmation(target, x, y), enter=enter, candidates=candidates,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._slots.points)

    @property
    def points(self) -> Tensor:
        """The point in each slot, int64 (b,)."""
        return self._slots.points

    @property
    def number(self) -> Tensor:
        """Steps that each slot's point has taken, int64 (b,)."""
        return self._slots.number

    @property
    def alive(self) -> Tensor:
        """Slots whose point still changes, bool (b,)."""
        return self._slots.first < 0 if self.stop_early else torch.ones_like(self._slots.first, dtype=torch.bool)

    @property
    def youngest(self) -> int:
        """The smallest step number in the batch, known without asking the device."""
        return self._tick - self._last_joined

    @property
    def ticks(self) -> int:
        """Steps of the batch so far."""
        return self._tick

    @property
    def held(self) -> Tensor:
        """The best margin that each slot's point has reached, (b,)."""
        return self._held()[1]

    def any_at(self, marks: np.ndarray) -> bool:
        """Whether some slot is at a marked step, known without asking the device; `marks` is bool (limit + 1,)."""
        return bool(marks[self._tick - self._joined].any())

    def slots_at(self, marks: np.ndarray) -> Tensor | slice:
        """The slots at a marked step, as an index of tensors with one row per slot; nothing waits for it."""
        chosen = marks[self._tick - self._joined]
        if chosen.all():
            return slice(None)
        return torch.from_numpy(chosen.nonzero()[0]).to(self.points.device, non_blocking=True)

    def offer(self, examples: Tensor, margin: Tensor) -> None:
        """Keep `examples` (b, …) where their `margin` (b,) beats what the slot holds."""
        slots = self._slots
        assert slots.best is not None
        assert slots.best_margin is not None
        better = margin > slots.best_margin
        if self.stop_early and not self._asking_is_free:
            better &= slots.first < 0
        keep(better, examples, slots.best)
        keep(better, margin, slots.best_margin)

    def give_up(self, hopeless: Tensor) -> None:
        """Note whose slots are better spent on others (bool (b,)); they leave unsettled at the next look."""
        self._slots.hopeless |= hopeless
        self._given_up = self._asking_is_free and bool(hopeless.any())

    def advance(self, broken: Tensor) -> None:
        """Count a step and note who is broken now (bool (b,)); who is done leaves."""
        slots = self._slots
        slots.number += 1
        self._tick += 1
        exhausted = self._tick - self._first_joined >= self.limit
        if self._asking_is_free:
            news = bool(broken.any())
            look = (news and self.stop_early) or self._given_up
            self._given_up = False
        else:
            news = True
            look = self.stop_early and self._tick % LOOK_EVERY == 0
        if news:
            torch.where(broken & (slots.first < 0), slots.number, slots.first, out=slots.first)
        look |= self._confirmed()
        if exhausted or look:
            done = (slots.number >= self.limit) | slots.sure | slots.hopeless
            if self.stop_early:
                done |= slots.first >= 0
            gone = done.nonzero().squeeze(1)
            if len(gone):
                self._replace(done, gone)

    def finish(self) -> Attempt:
        """Best candidates, first successes and steps of all points."""
        return Attempt(self._all.examples, self.first_success, self.steps)

    def _held(self) -> tuple[Tensor, Tensor]:
        """The best candidate of each slot's point (b, …) and its margin (b,)."""
        if self._candidates:
            return self._candidates(self.state)
        assert self._slots.best is not None
        assert self._slots.best_margin is not None
        return self._slots.best, self._slots.best_margin

    def _confirmed(self) -> bool:
        """Note which points are broken beyond doubt, where it is time to ask; whether there are any."""
        if self._confirm is None or not self.any_at(self._looks):
            return False
        slots, (best, margin) = self._slots, self._held()
        rows = torch.arange(len(self), device=margin.device)[self.slots_at(self._looks)]
        rows = rows[margin[rows] > 0]
        if len(rows):
            slots.sure[rows] = self._confirm(best[rows], slots.points[rows])
        return bool(slots.sure.any())

    def _fresh(self, points: Tensor) -> _Slots:
        number, no = torch.zeros_like(points), torch.zeros_like(points, dtype=torch.bool)
        held = (None, None) if self._candidates else (self._all.examples[points], self._all.margin[points])
        return _Slots(points, number, number - 1, no, no.clone(), *held)

    def _replace(self, done: Tensor, gone: Tensor) -> None:
        """Book the points in slots `gone` (where `done`), and let waiting points or the last slots take over."""
        slots = self._slots
        points, first = slots.points[gone], slots.first[gone]
        self.first_success[points] = first
        stopped = (first >= 0) & self.stop_early
        self.steps[points] = torch.where(stopped, first, slots.number[gone])
        self.settled[points] = stopped | slots.sure[gone]
        best, margin = self._held()
        self._all.examples[points], self._all.margin[points] = best[gone], margin[gone]

        waiting = torch.arange(self._next, min(self._n, self._next + len(gone)), device=gone.device)
        self._next += len(waiting)
        taken, free = gone[: len(waiting)], gone[len(waiting) :]
        if len(waiting):
            for held, new in ((slots, self._fresh(waiting)), (self.state, self._enter(waiting))):
                for (_, _, old), (_, _, value) in zip(held.parts(), new.parts(), strict=True):
                    old.index_copy_(0, taken, value)
        if len(free):
            left = len(self) - len(free)
            movers = left + (~done[left:]).nonzero().squeeze(1)
            holes = free[free < left]
            for held in (slots, self.state):
                for owner, name, value in list(held.parts()):
                    if len(holes):
                        value.index_copy_(0, holes, value.index_select(0, movers))
                    setattr(owner, name, value[:left])
        if len(self):
            self._joined = self._tick - self._slots.number.cpu().numpy()
            self._first_joined, self._last_joined = int(self._joined.min()), int(self._joined.max())


def keep(mask: Tensor, new: Tensor, held: Tensor) -> None:
    """Write the rows of `new` (b, …) where `mask` (b,) into `held` (b, …), in place."""
    if held.numel() <= FEW_ELEMENTS or not accelerator.asking_is_free(held.device):
        torch.where(column(mask, held), new, held, out=held)
        return
    rows = mask.nonzero().squeeze(1)
    if len(rows) == len(mask):
        held.copy_(new)
    elif len(rows):
        held.index_copy_(0, rows, new.index_select(0, rows))
