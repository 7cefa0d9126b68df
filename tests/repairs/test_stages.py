"""Stages: losses, starts and steps do what they say; random models are averaged over as many draws as they need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.attacks.losses import build_objective
from maskaudit.repairs import Stage
from maskaudit.repairs.expectation import FIRST_LOOK, Expectation, expected
from maskaudit.repairs.stages import StandIns, ascend, diversified, run_stage
from maskaudit.rng import PointRNG
from maskaudit.settings.plan import PLAN_LOSSES, STARTS
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

LINF = ThreatModel("Linf", 0.2)
Points = tuple[Tensor, Tensor]


def rng(n: int) -> PointRNG:
    return PointRNG.create(0, "test", torch.arange(n))


def run(target: Target, x: Tensor, y: Tensor, stage: Stage, **more: Tensor) -> Tensor:
    stand_ins = StandIns(target, x, threat=LINF, seed=0)
    attempt = run_stage(
        target, x, y, stage, threat=LINF, rng=rng(len(x)), stand_ins=stand_ins.learnt(stage.repairs), **more
    )
    assert bool(LINF.admissible(attempt.examples, x).all())
    assert bool((attempt.queries > 0).all())
    return attempt.examples


@pytest.mark.parametrize("loss", PLAN_LOSSES)
def test_every_loss_breaks_an_open_model(loss: str, net: nn.Module, points: Points) -> None:
    x, y = points[0][:24], points[1][:24]
    target = Target(net)
    examples = run(target, x, y, Stage(loss=loss, steps=20, targets=2, restarts=2))  # type: ignore[arg-type]
    assert float((target.raw(examples).argmax(1) == y).double().mean()) <= 0.1


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("step", [None, 0.1])
def test_every_start_and_step(start: str, step: float | None, net: nn.Module, points: Points) -> None:
    x, y = points[0][:24], points[1][:24]
    target = Target(net)
    stage = Stage(start=start, step=step, steps=20)  # type: ignore[arg-type]
    examples = run(target, x, y, stage, candidates=(x + 0.05).clamp(0, 1))
    assert float((target.raw(examples).argmax(1) == y).double().mean()) <= 0.1
    assert torch.equal(examples, run(target, x, y, stage, candidates=(x + 0.05).clamp(0, 1)))


def test_a_stage_begins_at_the_candidates(net: nn.Module, points: Points) -> None:
    """One step too short to matter: what comes back is the candidate."""
    x, y = points[0][:8], points[1][:8]
    candidates = (x + 0.05).clamp(0, 1)
    target = Target(net)
    examples = run(target, x, y, Stage(start="challenger", step=1e-6, steps=1), candidates=candidates)
    assert float((examples - candidates).abs().max()) <= 1e-6


def test_diversified_starts_differ_in_their_scores(pgd_trained: object, points: Points) -> None:
    """Starts spread the answers of a robust model further than random points do (Tashiro et al. 2020, section 4)."""
    model = pgd_trained.module  # type: ignore[attr-defined]
    target, x = Target(model), points[0][:1].expand(48, -1, -1, -1)
    uniform = LINF.project(x + 0.2 * (2 * rng(48).uniform(x.shape[1:]) - 1), x)
    spread = target.scores(diversified(target, x, uniform, threat=LINF, rng=rng(48))).std(dim=0).mean()
    assert float(spread) > 1.5 * float(target.scores(uniform).std(dim=0).mean())


def test_ascent_follows_one_term_of_the_margin(net: nn.Module, points: Points) -> None:
    """What the first part of a margin decomposition does: the score of the label falls, whatever the others do."""
    x, y = points[0][:16], points[1][:16]
    target = Target(net)
    objective = build_objective("label-term", y, target.scores(x))
    moved = ascend(target, x, x, objective, [0.02] * 5, LINF)
    before, after = (target.scores(at).gather(1, y[:, None]) for at in (x, moved))
    assert bool((after < before).all())


class Noisy(nn.Module):
    def __init__(self, net: nn.Module, noise: float) -> None:
        super().__init__()
        self.net, self.noise = net, noise

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.noise * torch.randn_like(x))


class ResizeAndPad(nn.Module):
    """Random resize and random padding (Xie et al. 2018)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        side = int(torch.randint(6, 9, ()))
        small = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
        left, top = (int(torch.randint(0, 9 - side, ())) for _ in range(2))
        return self.net(F.pad(small, (left, 8 - side - left, top, 8 - side - top)))


def test_draws_stop_when_the_sign_is_stable(net: nn.Module, points: Points) -> None:
    x, y = points[0][:16], points[1][:16]
    spent = {}
    for noise in (1e-4, 2.0):
        target = expected(Target(Noisy(net, noise), draws=8), 64, 7)
        assert isinstance(target.averaging, Expectation)
        target.value_and_grad(x, build_objective("margin", y, target.scores(x)))
        spent[noise] = target.averaging.spent
    assert spent[1e-4] == 2 * FIRST_LOOK
    assert spent[1e-4] < spent[2.0] <= 64


def test_common_numbers_repeat_and_leave_the_generator_alone(net: nn.Module, points: Points) -> None:
    x, y = points[0][:8], points[1][:8]
    target = expected(Target(Noisy(net, 0.3), draws=8), 16, 7)
    state = torch.get_rng_state()
    first, second = (target.value_and_grad(x, lambda s, rows: target.margin(s, y[rows])) for _ in range(2))
    assert torch.equal(first.grad, second.grad)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(target.averaging, Expectation)
    assert target.ledger.backwards == 2 * target.averaging.spent * len(x)


def test_certain_models_are_not_averaged(net: nn.Module) -> None:
    target = Target(net)
    assert expected(target, 64, 0) is target
    random = Target(Noisy(net, 0.1), draws=8)
    assert expected(random, 0, 0) is random


@pytest.mark.parametrize("build", [lambda n: Noisy(n, 0.25), ResizeAndPad], ids=["noise", "resize-and-pad"])
def test_random_models_fall_to_the_expected_gradient(build: object, net: nn.Module, points: Points) -> None:
    target = Target(build(net).eval(), draws=8)  # type: ignore[operator]
    with target:
        right = target.scores(points[0]).argmax(1) == points[1]
        x, y = points[0][right][:24], points[1][right][:24]
        examples = run(target, x, y, Stage(steps=10, draws=32))
        votes = torch.stack([(target.raw(examples).argmax(1) != y).double() for _ in range(51)]).mean(dim=0)
    assert float((votes > 0.5).double().mean()) >= 0.85
