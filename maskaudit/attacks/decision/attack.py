"""Decision-based attack: only the predicted class is looked at.

Saturated, rounded and one-hot outputs hide the way to the boundary from every attack that
compares scores; the boundary itself stays visible. The search starts from inputs that the
model puts into another class and moves towards the clean point until it is inside the ball.

L2: J. Chen, M. Jordan, M. Wainwright, "HopSkipJumpAttack: a query-efficient decision-based
attack", 2020 (Algorithm 2). Linf: J. Chen, Q. Gu, "RayS: a ray searching method for
hard-label adversarial attack", 2020 (Algorithms 2 and 3), with a drift towards signs that helped before: on the
digits it leaves fewer points than HopSkipJump after 1000 queries, in L2 it is the other way round.

Every point spends one query per turn, whatever it is doing.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskaudit.attacks.decision.boundary_search import Proposals, Search, Starts, Terrain
from maskaudit.attacks.decision.boundary_walk import BoundaryWalk
from maskaudit.attacks.decision.sign_flips import BLOCK as SIGN_FLIPS_BLOCK
from maskaudit.attacks.decision.sign_flips import SignFlips
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.resident import ResidentBatch
from maskaudit.errors import UsageError
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

Method = Literal["auto", "rays", "hopskipjump"]

#: Directions of HopSkipJump drawn at once: enough steps that drawing costs little each, in 1 MB at most.
MOST_STEPS_AT_ONCE, ELEMENTS_AT_ONCE = 32, 2**18


def decision_based(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, queries: int = 1000,
    pool: Tensor | None = None, starts: int = 8, method: Method = "auto",
) -> Attempt:  # fmt: skip
    """Proposals along the decision boundary from points of other classes into the ball.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        queries: evaluations per point.
        pool: inputs (M, …) of any class in the same bounds; the attack asks the model for their classes
            (M evaluations, not counted per point). Without it the search starts from uniform noise.
        starts: starting points tried: the nearest pool member of each of the `starts` nearest other classes.
        method: "rays", "hopskipjump", or "auto": RayS for Linf and for features, HopSkipJump for L2.

    Returns:
        The admissible candidate with the largest breaking margin (the margin ranks candidates, it never
        steers the search); `first_success` counts queries.

    Raises:
        UsageError: for an unknown method.
    """
    if method == "auto":
        method = "rays" if threat.norm == "Linf" or threat.features is not None else "hopskipjump"
    if method not in ("rays", "hopskipjump"):
        raise UsageError(f"The decision-based method must be auto, rays or hopskipjump, got {method!r}.")
    found = nearest_of_other_classes(target, x, y, pool, starts)
    terrain = Terrain(threat, found.pool, rng.fork("decision"), x.shape[1:])
    slots = max(1, min(len(x), target.batch_size))
    block = SIGN_FLIPS_BLOCK if method == "rays" else _directions_at_once(slots * terrain.dims)

    def enter(points: Tensor) -> Search:
        clean = x[points]
        walk: Proposals
        if method == "rays":
            walk = SignFlips.begin(terrain, points.clone(), clean)
        else:
            walk = BoundaryWalk.begin(terrain, points.clone(), clean, block)
        return Search.begin(terrain, points.clone(), clean, found.member[points], walk)

    batch = ResidentBatch.on(target, x, y, limit=queries, enter=enter)
    while len(batch):
        search, points = batch.state, batch.points
        if batch.ticks % block == 0 and batch.ticks:
            search.walk.refresh()
        candidate = search.ask(batch.number)
        margin = target.margin(target.scores(candidate), y[points])
        crossed = margin > 0
        length = threat.distance(candidate, search.clean)
        inside = length <= threat.reach  # and inside the bounds, where every candidate is
        batch.offer(candidate, torch.where(inside, margin, -torch.inf))
        search.learn(candidate, length.to(x.dtype), crossed)
        batch.advance(crossed & inside)
    return batch.finish()


def _directions_at_once(elements: int) -> int:
    """Steps whose directions of `elements` coordinates each are drawn at once."""
    return max(1, min(MOST_STEPS_AT_ONCE, ELEMENTS_AT_ONCE // elements))


def nearest_of_other_classes(target: Target, x: Tensor, y: Tensor, pool: Tensor | None, starts: int) -> Starts:
    """For each point the nearest (L2) pool member of each of the `starts` nearest other classes.

    Where the pool holds fewer other classes the nearest member is used again.
    """
    if pool is None or len(pool) == 0 or starts < 1:
        return Starts(x, torch.zeros(len(x), 0, dtype=torch.int64, device=x.device))
    scores = target.scores(pool)
    predicted = target.predict(scores)
    # by products of matrices the distance would depend on how many points are asked about
    distance = torch.cdist(x.flatten(1), pool.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = torch.full((len(x), scores.shape[1]), torch.inf, device=x.device)
    member = torch.zeros(len(x), scores.shape[1], dtype=torch.int64, device=x.device)
    for label in predicted.unique().tolist():
        if label == target.reject_class:
            continue
        members = (predicted == label).nonzero().squeeze(1)
        nearest[:, label], index = distance[:, members].min(dim=1)
        member[:, label] = members[index]
    nearest.scatter_(1, y[:, None], torch.inf)
    order = nearest.argsort(dim=1, stable=True)[:, :starts]
    found = torch.isfinite(nearest.gather(1, order))
    chosen = member.gather(1, order)
    return Starts(pool, torch.where(found, chosen, chosen[:, :1]))
