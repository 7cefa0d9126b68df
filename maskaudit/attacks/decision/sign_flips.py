"""RayS: anchors are corners of the box; blocks of coordinates go to the opposite side, coarse blocks first.

J. Chen, Q. Gu, "RayS: a ray searching method for hard-label adversarial attack", 2020 (Algorithms 2 and 3),
with a drift: half of the proposals must cross at a radius below the one held, so that one query decides (RayS).
The other half may cross at the radius held and then replace the anchor without bringing it nearer: greedy flips
alone get stuck (digits, one-hot output, 1000 queries: 9 % of the points left, 3 % with the drift; RayS has none).
After the finest blocks the sequence starts again with the blocks displaced.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.attacks.decision.boundary_search import Proposals, Search, Terrain
from maskaudit.attacks.resident import keep
from maskaudit.rng import PointRNG
from maskaudit.target import accelerator

#: The radius is searched down to this share of ε.
RADIUS_TOLERANCE = 1 / 16
#: Share of the proposals that may change the anchor without bringing it nearer.
DRIFT = 0.5
#: Turns whose blocks and coins are drawn at once.
BLOCK = 64


@dataclass
class SignFlips(Proposals):
    """Per slot: how many proposals were made, and what the next ones are.

    Attributes:
        rng: of all points (N,); ids: which of them, int64 (b,).
        turn: proposals so far; drawn: the turn of the first column of `plan`.
        plan: for each of `BLOCK` turns where the block begins, how long it is, and whether the proposal may
            drift, int64 (b, BLOCK, 3).
        pending: the anchors proposed last; sideways: those among them that drift, bool (b,).
    """

    rng: PointRNG
    terrain: Terrain
    ids: Tensor
    turn: Tensor
    drawn: Tensor
    plan: Tensor
    pending: Tensor
    sideways: Tensor

    @classmethod
    def begin(cls, terrain: Terrain, ids: Tensor, clean: Tensor) -> SignFlips:
        """Points (b,) that have proposed nothing yet."""
        none = torch.zeros_like(ids)
        rng = terrain.rng.fork("blocks")
        walk = cls(rng, terrain, ids, none, none.clone(), none, clean.clone(), none.bool())
        walk.plan = walk._planned()
        return walk

    def refresh(self) -> None:
        self.drawn = self.turn.clone()
        self.plan = self._planned()

    def aim(self, search: Search) -> tuple[Tensor, Tensor]:
        now = (self.turn - self.drawn).clamp_max(BLOCK - 1).view(-1, 1, 1).expand(-1, 1, 3)
        begin, size, drifts = self.plan.gather(1, now).squeeze(1).unbind(1)
        self.sideways = drifts.bool()
        self.pending = self._flipped(search, begin, size)
        nearer = (search.radius - self.tolerance(search.radius)).clamp_min(self.terrain.threat.eps)
        return self.pending, torch.where(self.sideways, search.radius, nearer)

    def leave(self, search: Search, on_path: Tensor) -> Tensor:
        return on_path

    def learn(self, search: Search, exploring: Tensor, crossed: Tensor) -> Tensor:
        self.turn += exploring
        return exploring & crossed & ~self.sideways

    def replace(self, search: Search, exploring: Tensor, crossed: Tensor) -> None:
        keep(exploring & crossed, self.pending, search.anchor)

    def tolerance(self, radius: Tensor) -> float:
        return RADIUS_TOLERANCE * self.terrain.threat.eps

    def _planned(self) -> Tensor:
        """The `plan` from the turn of each slot on.

        Level l cuts the coordinates into 2^l blocks, displaced by the same random number for a whole lap.
        """
        dims = self.terrain.dims
        cycle = 2 * 2 ** max(0, (dims - 1).bit_length()) - 1
        turn = self.turn[:, None] + torch.arange(BLOCK, device=self.turn.device)
        rng = self.rng.select(self.ids)
        position, lap = turn % cycle + 1, turn // cycle
        level = torch.log2(position.double() + 0.5).floor().long()
        index = position - 2**level
        shift = torch.where(lap > 0, rng.integers(dims, step=-lap), 0)
        first, past = (-(-edge * dims // 2**level) for edge in (index, index + 1))
        drifts = (rng.uniform((), step=turn) < DRIFT) & (turn > 0)
        return torch.stack([(shift - first) % dims, past - first, drifts.long()], dim=2)

    def _flipped(self, search: Search, begin: Tensor, size: Tensor) -> Tensor:
        """The anchor with its current block turned to the other side of the box (b, …).

        The first proposal flips nothing: it moves every coordinate of the start to its side of the box.
        """
        low, high = self.terrain.threat.bounds
        anchor, x = search.anchor.flatten(1), search.clean.flatten(1)
        dims = self.terrain.dims
        place, start = torch.arange(dims, device=x.device), ((dims - begin) % dims)[:, None]
        end = start + size[:, None]
        block = ((place >= start) & (place < end)) | (place < end - dims)
        up = (anchor > x) | (anchor >= high)
        flipped = torch.where(block, torch.where(up, low, high).to(x.dtype), anchor)
        first = self.turn == 0
        if accelerator.perhaps(first):
            still = (anchor == x) & (anchor < high) & (anchor > low)
            settled = torch.where(still, anchor, torch.where(up, high, low).to(x.dtype))
            flipped = torch.where(first[:, None], settled, flipped)
        return flipped.view_as(search.clean)
