"""HopSkipJump: the normal of the boundary from random probes, a step along it, back to the boundary.

J. Chen, M. Jordan, M. Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", 2020 (Algorithm 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.attacks.decision.boundary_search import Proposals, Search, Terrain
from maskaudit.rng import PointRNG
from maskaudit.target import accelerator
from maskaudit.threat import per_point_norm

#: The radius is searched down to this share of itself: the gradient is taken close to the boundary.
BOUNDARY_TOLERANCE = 1 / 100
#: Directions in the first gradient estimate, √t times as many in round t (section 4.3), at most …
FIRST_DIRECTIONS, MOST_DIRECTIONS = 30, 200
#: Length of a probing step as a share of the radius; the paper's 1/D is too short on rounded inputs and this is
#: used when it is larger.
PROBE_SHARE = 1 / 20
#: Halvings of the step along the estimated gradient before a new estimate is made.
HALVINGS = 8


@dataclass
class BoundaryWalk(Proposals):
    """Per slot: the estimate of the normal so far.

    Attributes:
        rng: of all points (N,); ids: which of them, int64 (b,).
        block: turns whose directions are drawn at once.
        round: estimates begun; probes: probes of this one; halvings: of the step along it.
        probed: probes of all rounds; drawn: the number of the first of `directions` among them.
        directions: unit vectors of the next probes, (b, block, …).
        probe_sum, crossed_sum: sums of the probes, plain and signed by their answers (b, …); crossed_count: of the
            signs (b,).
        pending: the probes made last (b, …).
    """

    rng: PointRNG
    terrain: Terrain
    block: int
    ids: Tensor
    round: Tensor
    probes: Tensor
    halvings: Tensor
    probed: Tensor
    drawn: Tensor
    directions: Tensor
    probe_sum: Tensor
    crossed_sum: Tensor
    crossed_count: Tensor
    pending: Tensor

    @classmethod
    def begin(cls, terrain: Terrain, ids: Tensor, clean: Tensor, block: int) -> BoundaryWalk:
        """Points (b,) that have probed nothing yet."""
        none = torch.zeros_like(ids)
        walk = cls(
            terrain.rng.fork("probes"), terrain, block, ids, none + 1, none.clone(), none.clone(), none.clone(),
            none.clone(), clean, torch.zeros_like(clean), torch.zeros_like(clean),
            torch.zeros(len(ids), device=clean.device), clean.clone(),
        )  # fmt: skip
        walk.directions = walk._drawn(clean)
        return walk

    def refresh(self) -> None:
        self.drawn = self.probed.clone()
        self.directions = self._drawn(self.pending)

    def aim(self, search: Search) -> tuple[Tensor, Tensor]:
        return search.anchor, search.radius

    def leave(self, search: Search, on_path: Tensor) -> Tensor:
        column, threat = self.terrain.column, self.terrain.threat
        now = (self.probed - self.drawn).clamp_max(self.block - 1)
        direction = self.directions[torch.arange(len(now), device=now.device), now]
        share = max(PROBE_SHARE, 1 / self.terrain.dims)
        length = share * column(per_point_norm(on_path - search.clean))
        probe = threat.clamp(on_path + length * direction)
        self.pending = (probe - on_path) / length.clamp_min(1e-12)
        stepping = self._stepping()
        if not accelerator.perhaps(stepping):
            return probe
        mean = column(self.crossed_count / self.probes.clamp_min(1))
        normal = threat.step_direction(self.crossed_sum - mean * self.probe_sum)
        size = column(search.radius) / column((self.round.double().sqrt() * (1 << self.halvings)).to(search.radius))
        step = threat.clamp(on_path + size * normal)
        return torch.where(column(stepping), step, probe)

    def learn(self, search: Search, exploring: Tensor, crossed: Tensor) -> Tensor:
        column, stepping = self.terrain.column, self._stepping()
        probing, stepping = exploring & ~stepping, exploring & stepping
        phi = torch.where(crossed, 1.0, -1.0).to(self.pending) * probing
        self.crossed_sum += column(phi) * self.pending
        self.probe_sum += column(probing) * self.pending
        self.crossed_count += phi
        self.probes += probing
        self.probed += probing
        if accelerator.perhaps(stepping):
            self.halvings += stepping & ~crossed
            over = stepping & (crossed | (self.halvings >= HALVINGS))
            self.round += over
            for counter in (self.probes, self.halvings, self.crossed_count):
                counter.masked_fill_(over, 0)
            for total in (self.probe_sum, self.crossed_sum):
                total.masked_fill_(column(over), 0)
        return stepping & crossed

    def replace(self, search: Search, exploring: Tensor, crossed: Tensor) -> None:
        """Nothing beyond what `learn` named."""

    def tolerance(self, radius: Tensor) -> Tensor:
        return BOUNDARY_TOLERANCE * radius.masked_fill(radius == torch.inf, 0.0)

    def _drawn(self, like: Tensor) -> Tensor:
        """Unit vectors (b, block, …) of the probes from `probed` on."""
        steps = self.probed[:, None] + torch.arange(self.block, device=self.probed.device)
        draws = self.rng.select(self.ids).normal(self.terrain.shape, step=steps).to(like)
        flat = draws.flatten(0, 1)
        return (flat / self.terrain.column(per_point_norm(flat))).view_as(draws)

    def _stepping(self) -> Tensor:
        """Whether the estimate is complete and the next query goes along it, bool (b,)."""
        wanted = (FIRST_DIRECTIONS * self.round.double().sqrt()).long().clamp_max(MOST_DIRECTIONS)
        return self.probes >= wanted
