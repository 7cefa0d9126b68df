"""Level set traversal on models whose level sets are known: planes, ignored coordinates, spheres."""

from __future__ import annotations

import base64

import pytest
import torch
from torch import Tensor, nn

from maskaudit.probes.blind_spots import LOSS_OF_CONFIDENCE, MAX_POINTS, STEPS, STRIDE, traverse
from maskaudit.probes.run import run_probe
from maskaudit.threat import ThreatModel

from .toys import Linear, Through, context, get, points

WIDE = ThreatModel("L2", 0.5, (-100.0, 100.0))


class Plane(nn.Module):
    """Two classes: z = (0, wᵀx)."""

    def __init__(self, w: list[float], scale: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(scale * torch.tensor(w))

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_on_a_linear_model_the_walk_ends_at_the_projection_of_the_goal_on_the_level_plane() -> None:
    w = torch.tensor([3.0, 4.0, 0.0])
    x, goals = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 1.0]]), torch.tensor([[-4.0, 2.0, 5.0], [0.0, -9.0, -3.0]])
    with context(Plane(w.tolist()), x, threat=WIDE) as ctx:
        walk = traverse(ctx, goals, correction=0.0)
    normal = w / w.norm()
    across = (goals - x) - ((goals - x) @ normal)[:, None] * normal
    expected = x + (1 - (1 - STRIDE) ** STEPS) * across
    assert torch.allclose(walk.end, expected, atol=1e-3)
    assert torch.allclose(walk.left, (goals - expected).norm(dim=1) / (goals - x).norm(dim=1), atol=1e-4)
    assert torch.allclose(walk.path[1], walk.path[1][:1].expand(STEPS + 1, 2), atol=1e-6)  # the confidence is kept


def test_what_a_model_ignores_is_given_up_wholly() -> None:
    x, goals = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 30.0, -40.0]])
    with context(Plane([1.0, 0.0, 0.0]), x, threat=WIDE) as ctx:
        walk = traverse(ctx, goals)
    assert float(walk.left) < 0.01
    assert float((walk.end - goals)[:, 1:].norm()) < 0.5


class Sphere(nn.Module):
    """Class 1 outside of the sphere of radius 1 about the middle of the box."""

    def forward(self, x: Tensor) -> Tensor:
        score = 4 * ((x - 0.5).square().sum(dim=1) - 0.05)
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_on_curved_levels_the_confidence_stays_within_what_may_be_lost() -> None:
    x = torch.tensor([[0.9, 0.5, 0.5], [0.5, 0.1, 0.5]])
    with context(Sphere(), x) as ctx:
        start = traverse(ctx, 1 - x, steps=0).path[1][0]
        walk = traverse(ctx, torch.tensor([[0.5, 0.9, 0.5], [0.9, 0.5, 0.5]]))
        answers = ctx.target.scores(walk.end).argmax(dim=1)
    assert bool((walk.path[1] >= start - LOSS_OF_CONFIDENCE - 1e-9).all())
    assert torch.equal(answers, ctx.y)
    assert bool((walk.left < 0.5).all())
    assert bool((walk.path[0].diff(dim=0) <= 0.05).all())


def test_the_report_gets_paths_and_images_and_the_price_is_small() -> None:
    with context(Through(Linear(64), before=lambda x: x - 0.5), points(40, 1, 8, 8)) as ctx:
        before = ctx.target.ledger.copy()
        result = run_probe(get("blind-spots"), ctx)
        spent = ctx.target.ledger.since(before)
    assert result.status == "pass"
    assert result.threshold is None
    assert result.n == MAX_POINTS
    assert spent.forwards <= MAX_POINTS * (STEPS + 12)
    assert spent.backwards <= MAX_POINTS * (STEPS + 2)
    walks = result.details["walks"]
    assert len(walks) == MAX_POINTS
    for walk in walks:
        assert walk["label"] != walk["goal_label"]
        assert walk["path"][0][0] == pytest.approx(0)
        assert walk["path"][-1][0] == pytest.approx(1 - walk["left"])
        assert walk["lowest_on_line"] <= walk["confidence"] + 1e-6
        assert [len(base64.b64decode(walk[name])) for name in ("source", "end", "goal")] == [64, 64, 64]


def test_what_cannot_be_walked_says_why() -> None:
    for model, y, reason in (
        (Linear(6), torch.zeros(4, dtype=torch.int64), "one class"),
        (lambda x: x.detach()[:, :3] * 1.0, None, "no gradient"),
        (nn.Sequential(Linear(6), Round()), None, "no gradient"),
    ):
        with context(model, points(4, 6, seed=3), y) as ctx:
            labels = torch.arange(4) % 2 if y is None else y
            result = run_probe(get("blind-spots"), type(ctx)(ctx.target, ctx.x, labels, ctx.threat, ctx.rng))
        assert result.status == "not_applicable"
        assert reason in result.reason


class Round(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()
