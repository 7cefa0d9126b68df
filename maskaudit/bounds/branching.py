"""Branch and bound for counterexamples: rectifiers are fixed on or off, sigmoids and tanh to one half of what enters
them, and where bounds leave a gap the inputs that the bounds point at are tried.

H. Zhang et al., "A branch and bound framework for stronger adversarial attacks of ReLU networks" (BaB-Attack), ICML
2022; bounds of the parts are those of S. Wang et al., "Beta-CROWN", 2021, the rectifiers to split are chosen as by
R. Bunel et al., "Branch and bound for piecewise linear neural network verification" (BaBSR), 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.bounds.linear import Intervals, Region, Relaxation, backward, relaxation
from maskaudit.bounds.network import Network

#: Parts bounded together, and steps in which their multipliers and slopes are fitted.
PARTS, FITTING = 64, 5
#: Step size of the fitting (Adam), and its decay per step.
RATE, DECAY = 0.15, 0.93


@dataclass
class Parts:
    """Parts of a region, by what is fixed of each unit (D, U): 1 on (the upper half), −1 off (the lower), 0 open.

    Attributes:
        goal: number of the class that could win there (D,).
        duals: multipliers ≥ 0 of what is fixed; slopes: of the lower lines of the open ones, in [0, 1]; both (D, U).
        bound: lower bound of the margin (D,); gain: what fixing a rectifier may improve, (D, U); inputs (D, …): where
            the bound is reached.
    """

    goal: Tensor
    signs: Tensor
    duals: Tensor
    slopes: Tensor
    bound: Tensor
    gain: Tensor
    inputs: Tensor

    def rows(self, chosen: Tensor) -> Parts:
        """The parts of the chosen rows, all their fields cut alike."""
        return Parts(*(value[chosen] for value in vars(self).values()))

    @classmethod
    def joined(cls, several: list[Parts]) -> Parts:
        """The parts of several, one after the other."""
        return cls(*(torch.cat([vars(parts)[name] for parts in several]) for name in vars(several[0])))


class Margins:
    """The margins of one point over other classes, lower-bounded on parts of its region.

    Args:
        network: the network.
        region: of the one point; found: its intervals; rows: coefficients (C, K) of the margins; offsets: what they
            have to exceed to count (C,).
    """

    def __init__(self, network: Network, region: Region, found: Intervals, rows: Tensor, offsets: Tensor) -> None:
        self.network, self.region, self.goals, self.offsets = network, region, rows, offsets
        self.numbers = network.activations
        reads = [network.steps[number].reads[0] for number in self.numbers]
        self.shapes = [network.steps[number].shape for number in self.numbers]
        self.low = torch.cat([found.low[read].flatten() for read in reads])
        self.high = torch.cat([found.high[read].flatten() for read in reads])
        inside = (self.low < 0) & (self.high > 0)
        smooth = [(found.high[n] > found.low[n]).flatten() & (network.steps[n].name != "relu") for n in self.numbers]
        self.open = inside | torch.cat(smooth)
        self.middle = torch.where(inside, 0.0, (self.low + self.high) / 2)

    def whole(self) -> Parts:
        """The region as one part for each class."""
        zeros = torch.zeros(len(self.goals), len(self.low), dtype=torch.float64)
        slopes = (self.high > -self.low).double().expand_as(zeros)
        return self.bounded(torch.arange(len(zeros)), zeros, zeros, slopes)

    def bounded(self, goal: Tensor, signs: Tensor, duals: Tensor, slopes: Tensor) -> Parts:
        """Parts with these goals (D,) and signs (D, U), their bounds fitted from these multipliers and slopes on."""
        duals, slopes = duals.clone().requires_grad_(True), slopes.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([duals, slopes], lr=RATE)
        best: Parts | None = None
        for step in range(FITTING):
            now, value = self._bound(goal, signs, duals, slopes)
            best = now if best is None else _better(best, now)
            if step == FITTING - 1 or bool((best.bound > 0).all()):
                break
            (-value.clamp_max(0).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] *= DECAY
            with torch.no_grad():
                duals.clamp_(min=0)
                slopes.clamp_(0, 1)
        assert best is not None
        return best

    def _bound(self, goal: Tensor, signs: Tensor, duals: Tensor, slopes: Tensor) -> tuple[Parts, Tensor]:
        low, high = torch.where(signs > 0, self.middle, self.low), torch.where(signs < 0, self.middle, self.high)
        relaxed = {
            number: relaxation(self.network.steps[number], *parts)
            for number, *parts in zip(self.numbers, *map(self._split, (low, high, slopes)), strict=True)
        }
        multipliers = dict(zip(self.numbers, self._split(duals * signs), strict=True))
        rows = self.goals[goal].unsqueeze(1)
        seen: dict[int, Tensor] = {}
        last = len(self.network.steps) - 1
        slope, constant = backward(self.network, last, rows, relaxed, multipliers, seen)
        lowest, inputs = self.region.lowest(slope)
        value = (lowest + constant).squeeze(1) + (duals * signs) @ self.middle - self.offsets[goal]
        with torch.no_grad():
            gain = self._gain(relaxed, seen, low, high)
            gain[(signs != 0) | ~self.open] = -1.0
        fitted, sloped, bound = (held.detach().clone() for held in (duals, slopes, value))
        parts = Parts(goal, signs, fitted, sloped, bound, gain, inputs.detach().squeeze(1))
        return parts, value

    def _gain(self, relaxed: dict[int, Relaxation], seen: dict[int, Tensor], low: Tensor, high: Tensor) -> Tensor:
        """How far the lines of each open unit are from it where the bound uses them, (D, U)."""
        gains = []
        for number, below, above in zip(self.numbers, self._split(low), self._split(high), strict=True):
            lines = relaxed[number]
            arrived = seen[number].squeeze(1) if number in seen else torch.zeros_like(below)
            if isinstance(lines.lower_at, Tensor):
                apart = [(lines.upper - lines.lower) * end - lines.lower_at + lines.upper_at for end in (below, above)]
                gains.append((arrived.abs() * torch.maximum(*apart)).flatten(1))
                continue
            under = torch.maximum(-lines.lower * below, (1 - lines.lower) * above)
            gains.append((arrived.clamp_min(0) * under - arrived.clamp_max(0) * lines.upper_at).flatten(1))
        return torch.cat(gains, dim=1)

    def _split(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([shape.numel() for shape in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def children(self, parts: Parts, levels: int) -> Parts:
        """Each part split at the `levels` rectifiers that gain most, bounded; what is decided stays as it is."""
        for _ in range(levels):
            most, unit = parts.gain.max(dim=1)
            splits = (most >= 0).nonzero().squeeze(1)
            chosen, unit = parts.rows(splits), unit[splits]
            on, off = chosen.rows(torch.arange(len(splits))), chosen.rows(torch.arange(len(splits)))
            each = torch.arange(len(splits))
            for side, sign in ((on, 1.0), (off, -1.0)):
                side.signs[each, unit] = sign
                side.gain[each, unit] = -1.0
            parts = Parts.joined([on, off])
        return self.bounded(parts.goal, parts.signs, parts.duals, parts.slopes)


def _better(held: Parts, now: Parts) -> Parts:
    """Per part the one with the higher bound."""

    def chosen(name: str) -> Tensor:
        old, new = vars(held)[name], vars(now)[name]
        return torch.where(better.view(-1, *[1] * (old.dim() - 1)), new, old)

    better = now.bound > held.bound
    return Parts(*(chosen(name) for name in vars(held)))
