"""How much a trace looks at before it is sure, and what that costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.auditing.inspection import inspection
from maskaudit.errors import ModelError
from maskaudit.target import PassLedger, Target
from maskaudit.target.form import Form
from maskaudit.trace import MAX_POINTS, trace_model
from maskaudit.trace.differences import Differences, clear_side
from maskaudit.trace.health import deciding_pair, margin_gradient, surely_common
from maskaudit.trace.model import FEW_POINTS
from maskaudit.trace.passes import AGAIN_POINTS
from maskaudit.zoo.masks import inputs
from tests.trace import masked_models as zoo

Points = tuple[Tensor, Tensor]
Build = Callable[[nn.Module], nn.Module]

#: Points of an audited batch, and the share of one forward–backward pass over it that a trace may cost.
BATCH, GOAL = 256, 0.25


def linear(net: nn.Module) -> nn.Module:
    """A model of two classes that count, whose gradient agrees with every difference."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.bias[2:] = -100
    return nn.Sequential(nn.Flatten(), layer)


def honest_quantiser(net: nn.Module) -> nn.Module:
    """A poor gradient that a straight-through estimator explains."""
    return zoo.Front(net, zoo.Apply(zoo.round_ste))


def zigzag(net: nn.Module) -> nn.Module:
    """A poor gradient that no op explains: 64 teeth made of straight pieces."""
    teeth = torch.arange(64.0)
    signs = torch.where(teeth % 2 == 0, 2.0, -2.0)
    signs[0] = 1.0
    return zoo.Front(net, zoo.Apply(lambda x: ((64 * x.unsqueeze(-1) - teeth).relu() * signs).sum(dim=-1)))


def random_input(net: nn.Module) -> nn.Module:
    return zoo.ForgottenDropout(net)


LOOKS: list[tuple[Build, int]] = [
    (linear, FEW_POINTS),
    (lambda net: inputs.QuantisedInput(net, 4), FEW_POINTS),
    (lambda net: inputs.SineInput(net), FEW_POINTS),
    (honest_quantiser, FEW_POINTS),
    (zigzag, MAX_POINTS),
    (random_input, MAX_POINTS),
]


@pytest.mark.parametrize(("build", "points_seen"), LOOKS)
def test_a_second_look_is_taken_only_where_the_first_leaves_a_doubt(
    build: Build, points_seen: int, net: nn.Module, points: Points
) -> None:
    with Target(build(net).eval()) as target:
        x = points[0]
        y = target.predict(target.scores(x))
        target.ledger = PassLedger()
        found = trace_model(target, x, y, eps=0.2)
        spent = target.ledger.forwards + target.ledger.backwards
    assert found.points == points_seen
    if points_seen == FEW_POINTS:
        assert spent <= GOAL * 2 * BATCH


@pytest.mark.parametrize(
    ("build", "followed"),
    [
        (lambda net: inputs.QuantisedInput(net, 4), 1),
        (honest_quantiser, 1),
        (lambda net: inputs.SineInput(net), 2),
    ],
)
def test_what_moves_is_looked_at_only_where_nothing_else_tells(
    build: Build, followed: int, net: nn.Module, points: Points
) -> None:
    """By how often the model is asked with a gradient: once where the points lie, and once more where they have moved.

    Scores that differences need are asked for without.
    """
    model, given = build(net).eval(), list[Tensor]()
    model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with Target(model) as target:
        trace_model(target, *points, eps=0.2)
    traced = [x for x in given if x.requires_grad]
    assert len(traced) == followed
    assert torch.equal(traced[0], points[0][: len(traced[0])])
    assert all(float((x - traced[0]).detach().abs().max()) == pytest.approx(0.2) for x in traced[1:])


def test_parallel_runs_of_a_line_are_no_loop(net: nn.Module, points: Points) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            views = [self.net(x.roll(shift, dims=-1)) * 500 for shift in range(5)]
            return torch.stack([view.softmax(dim=1) for view in views]).mean(dim=0)

    with Target(Views(), outputs="probabilities") as target:
        found = trace_model(target, *points, eps=0.2)
    assert "jagged-surface" not in {culprit.mechanism for culprit in found.culprits}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_layers_that_share_a_line_are_no_loop(shared: bool, packed: bool, points: Points) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = 1 if shared else 6
    packs = 3 * torch.linalg.qr(torch.randn(kinds, 64, 64, generator=generator)).Q
    weights = [packs[0] if shared else packs[turn] for turn in range(6)]
    last = torch.randn(64, 10, generator=generator) / 4

    def plain(x: Tensor) -> Tensor:
        h = x.flatten(1) - 0.5
        for turn in range(6):
            h = F.leaky_relu(h @ (packs[turn % kinds] if packed else weights[turn]), 0.9)
        return 100 * torch.tanh(h @ last)

    with Target(plain) as target:
        x = points[0]
        found = trace_model(target, x, target.predict(target.scores(x)), eps=0.2)
    assert ("jagged-surface" in {culprit.mechanism for culprit in found.culprits}) == shared, found.culprits


def test_weights_that_are_computed_of_themselves_again_and_again_cost_no_more(points: Points) -> None:
    generator = torch.Generator().manual_seed(0)
    raw, last = torch.randn(64, 64, generator=generator), torch.randn(64, 10, generator=generator) / 4

    def plain(x: Tensor) -> Tensor:
        weight = raw / 16
        for _ in range(40):
            weight = (weight * weight).abs().sqrt()
        h = x.flatten(1)
        for _ in range(6):
            h = F.leaky_relu(h @ (weight + 3 * torch.eye(64)), 0.9)
        return 100 * torch.tanh(h @ last)

    with Target(plain) as target:
        x = points[0]
        found = trace_model(target, x, target.predict(target.scores(x)), eps=0.2)
    assert "jagged-surface" in {culprit.mechanism for culprit in found.culprits}


@pytest.mark.parametrize("mapped", [False, True])
def test_the_pass_that_shows_a_phase_ends_with_the_last_periodic_op(
    mapped: bool, net: nn.Module, points: Points
) -> None:
    class Rippled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.begun = self.ended = 0

        def forward(self, x: Tensor) -> Tensor:
            self.begun += 1
            bent = torch.func.vmap(lambda one: (200 * one).sin() * 0.2)(x) if mapped else (200 * x).sin() * 0.2
            answer: Tensor = self.net(x + bent)
            self.ended += 1
            return answer

    model = Rippled()
    with Target(model) as target:
        found = trace_model(target, *points, eps=0.2)
        assert model.begun == model.ended + 1  # on leaving the counts are put back
    assert [culprit.mechanism for culprit in found.culprits] == ["jagged-surface"]


def test_a_dead_gradient_is_compared_with_nothing(net: nn.Module, points: Points) -> None:
    with Target(inputs.QuantisedInput(net, 4).eval()) as target:
        target.ledger = PassLedger()
        health = trace_model(target, *points, eps=0.2).health
        assert target.ledger.forwards == FEW_POINTS + AGAIN_POINTS
    assert health.pairs == (0, 0)
    assert health.poor


def test_what_comes_from_the_input_is_told_from_what_does_not(net: nn.Module, points: Points) -> None:
    class Weighted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weight = torch.full((64, 10), 0.1).cumsum(dim=0)
            image = torch.from_numpy(x.detach().numpy() * 2.0)
            return (image.flatten(1).floor() + x.flatten(1)) @ weight

    with Target(Weighted()) as target:
        found = trace_model(target, *points, eps=0.2)
    carries = {op.location.op: op.carries for op in found.ops}
    assert not carries["full"]
    assert not carries["cumsum"]
    assert carries["floor"]
    assert carries["matmul"]


def test_a_second_look_keeps_the_differences_of_the_first(net: nn.Module, points: Points) -> None:
    x, y = points[0][:6], points[1][:6]
    with Target(net) as target:

        def seen(rows: int) -> tuple[Target, Tensor, Tensor, Tensor]:
            leaf = x[:rows].clone().requires_grad_(True)
            scores = target.differentiable_scores(leaf)
            pair = deciding_pair(target, scores, y[:rows])
            grad = margin_gradient(target, leaf, scores, pair)
            assert grad is not None
            return target, leaf.detach(), pair, grad

        grown, fresh = Differences(0.2), Differences(0.2)
        grown.extend(*seen(4), 1, grown.scales[:1], together=True)
        fresh.extend(*seen(6), 2, fresh.scales, together=True)
        before = target.ledger.forwards
        grown.extend(*seen(6), 2, grown.scales, together=True)
        assert target.ledger.forwards - before == 6 + 2 * (24 - 4)
    for a, b in zip(grown.scales, fresh.scales, strict=True):
        assert len(a.predicted) == 12
        assert a.correlation == pytest.approx(b.correlation, rel=1e-4)


def test_a_step_size_that_is_surely_poor_ends_the_comparison() -> None:
    many = torch.ones(16, dtype=torch.float64)
    against = many * torch.tensor([1.0, -1.0]).repeat(8)
    half_against = torch.cat([many[:12], -many[:4]])
    differences = Differences(0.2)
    coarse, fine = differences.scales
    assert differences.unclear(4.0) == [coarse, fine]
    coarse.add(many, half_against, 0 * many)
    assert differences.unclear(4.0) == [coarse]  # likely poor: that is pursued, and nothing else
    fine.add(many, against, 0 * many)
    assert differences.unclear(4.0) == []


@pytest.mark.parametrize(
    ("correlation", "pairs", "side"),
    [
        (0.96, 16, 1), (0.94, 16, 0), (0.7, 16, 0), (0.6, 16, -1), (0.96, 8, 0), (0.98, 8, 1), (0.9, 64, 0),
        (0.92, 64, 1), (0.87, 10_000, 0), (-1.0, 8, -1), (1.0, 3, 0),
    ],
)  # fmt: skip
def test_a_correlation_is_clear_of_the_limit_by_its_own_error(correlation: float, pairs: int, side: int) -> None:
    assert clear_side(correlation, pairs) == side


@pytest.mark.parametrize(("zero", "points", "sure"), [(0, 8, False), (2, 8, False), (3, 8, True), (3, 16, False)])
def test_few_points_without_a_gradient_may_be_luck(zero: int, points: int, sure: bool) -> None:
    assert surely_common(zero / points, points) is sure


def test_directions_are_added_only_at_the_step_size_in_doubt() -> None:
    """Linear within 0.02 of the points, which ε/16 does not leave; another slope beyond, which ε/4 sees."""

    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            u = x.flatten(1) - 0.5
            other = torch.arange(64) % 2 * 2 - 1
            margin = (u + other * (u - u.clamp(-0.02, 0.02))).sum(dim=1)
            return torch.stack([torch.zeros_like(margin), margin], dim=1)

    x, y = torch.full((MAX_POINTS, 1, 8, 8), 0.5), torch.zeros(MAX_POINTS, dtype=torch.int64)
    with Target(Bent().eval()) as target:
        health = trace_model(target, x, y, eps=0.2).health
    _, (_, fine) = health.agreement
    assert fine == pytest.approx(1)
    assert health.pairs[0] > health.pairs[1]


def test_points_with_infinite_gradient_are_counted_and_the_rest_is_measured() -> None:
    model = nn.Sequential(nn.Flatten(), zoo.Apply(torch.sqrt), nn.Linear(64, 3, bias=False)).eval()
    x = torch.full((4, 1, 8, 8), 0.25)
    x[1, 0, 0, 0] = 0
    with Target(model) as target:
        found = trace_model(target, x, torch.zeros(4, dtype=torch.int64), eps=0.05)
    flow = next(op.flow for op in found.ops if op.location.op == "sqrt")
    assert flow is not None
    assert flow.nonfinite_share == 0.25
    assert 0 < flow.norm_out < float("inf")


def test_tracing_imports_nothing_large() -> None:
    """`torch.autograd.grad` with cotangents imports sympy, which takes longer than the trace of a small network."""
    program = (
        "import sys, torch\n"
        "from maskaudit.target import Target\n"
        "from maskaudit.trace import trace_model\n"
        "model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()\n"
        "before = set(sys.modules)\n"
        "with Target(model) as target:\n"
        "    trace_model(target, torch.rand(16, 1, 2, 2), torch.zeros(16, dtype=torch.int64))\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert 'sympy' not in new, new\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_a_third_class_that_comes_level_is_no_fault_of_the_gradient() -> None:
    """Two runners-up with opposite gradients, level at every point: the margin has a kink there, each lead has none."""

    class Level(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            along = (x.flatten(1) - 0.5) @ torch.linspace(-1, 1, 64)
            return torch.stack([along, -along, along.new_full(along.shape, 3.0)], dim=1)

    x = 0.5 + torch.zeros(MAX_POINTS, 1, 8, 8)
    y = torch.full((MAX_POINTS,), 2)
    with Target(Level()) as target:
        found = trace_model(target, x, y, eps=0.2)
    assert found.healthy
    assert min(value for _, value in found.health.agreement) > 0.999


class Drowned(nn.Module):
    """Scores whose changes are smaller than the rounding of the float32 that it computes in, whatever it is given."""

    def __init__(self, sign: float = 1.0, size: float = 1e-6) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.sign, self.size = sign, size

    def forward(self, x: Tensor) -> Tensor:
        score = self.layer(x.flatten(1).float()) * self.size
        wrong = self.sign * score + (score - self.sign * score).detach()
        return (wrong + torch.tensor([2.0, 1.0, -1.0])).to(x.dtype)


def test_rounding_inside_a_network_accuses_no_gradient() -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 1, 8, 8)
    y = torch.zeros(16, dtype=torch.int64)
    with Target(Drowned(), bounds=(0.0, 1.0)) as target:
        assert not trace_model(target, x, y).health.poor
    with Target(Drowned(sign=-1.0, size=1.0), bounds=(0.0, 1.0)) as target:  # one that lies, where it can be seen
        assert trace_model(target, x, y).health.poor


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_below_the_normal_numbers_accuse_no_gradient_but_one_that_lies(sign: float) -> None:
    """Random weights of deep networks give scores around 1e-41, of which float32 keeps a few digits."""
    torch.manual_seed(0)
    tanh, last = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh()), nn.Linear(32, 3, bias=False)
    lie = zoo.Apply(lambda h: sign * h + (h - sign * h).detach())
    x = torch.rand(16, 1, 8, 8)
    model = nn.Sequential(tanh, lie, zoo.Apply(lambda h: h * 1e-20), last, zoo.Apply(lambda z: z * 3e-21))
    with Target(model, bounds=(0.0, 1.0)) as target:
        scores = target.scores(x)
        assert 0 < float(scores.abs().max()) < 1e-40
        trace = trace_model(target, x, target.predict(scores))
    assert trace.health.poor is (sign < 0)


def test_a_model_that_ignores_its_input_is_called_constant() -> None:
    layer = nn.Linear(64, 3)
    nn.init.zeros_(layer.weight)
    x = torch.rand(16, 1, 8, 8)
    y = torch.zeros(16, dtype=torch.int64)
    with Target(nn.Sequential(nn.Flatten(), layer), bounds=(0.0, 1.0)) as target:
        trace = trace_model(target, x, y)
    assert trace.health.constant
    assert "the very same scores" in inspection(trace)["sentence"]


class OneAtATime(nn.Module):
    """A model with its batch size written into it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(1, 1, 8, 8)).reshape(1, 10)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_fixed_batch_size_is_traced(hidden: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model = OneAtATime(zoo.Front(net, zoo.Apply(torch.round)) if hidden else net)
    x = torch.rand(16, 1, 8, 8)
    with Target(model, bounds=(0.0, 1.0), form=Form(most=1)) as target:
        trace = trace_model(target, x, target.predict(target.scores(x)))
    assert trace.healthy is not hidden


def faint(net: nn.Module) -> nn.Module:
    """A model whose signal is lost in float32: it goes through a factor of 1e-30, twice."""
    return nn.Sequential(net, zoo.Apply(lambda scores: scores * 1e-30), zoo.Apply(lambda scores: scores * 1e-30))


class RoundedToNothing(nn.Module):
    """Scores of a network, rounded to tens: all are zero, in any number type."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, K)."""
        return (self.net(x) / 1e3).round()


def test_a_signal_below_the_number_type_accuses_no_op_and_a_rounded_one_does(net: nn.Module, points: Points) -> None:
    found = {}
    for build in (faint, RoundedToNothing):
        with Target(build(net).eval()) as target:
            assert float(target.scores(points[0]).abs().max()) == 0
            trace = trace_model(target, *points, eps=0.2)
        found[build] = [culprit.location.op for culprit in trace.culprits], inspection(trace)["sentence"]
    assert found[faint][0] == []
    assert "too small for its number type" in found[faint][1]
    assert found[RoundedToNothing][0] == ["round"]


@pytest.mark.parametrize("raised", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize("build", [linear, honest_quantiser, random_input])
def test_where_memory_runs_out_fewer_points_are_traced(
    net: nn.Module, points: Points, build: Build, raised: Exception
) -> None:
    """The same is found on them, and passes that ran out do not count."""

    class Cramped(nn.Module):
        """Holds at most five points with their graph."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = build(net), list[int]()

        def forward(self, x: Tensor) -> Tensor:
            """Scores (N, K)."""
            if x.requires_grad and len(x) > 5:
                raise raised
            scores: Tensor = self.net(x)
            return scores

    with Target(build(net)) as free, Target(Cramped()) as target:
        roomy, trace = trace_model(free, *points, eps=0.2), trace_model(target, *points, eps=0.2)
        spent = target.ledger.backwards
    assert trace.points == 4 < roomy.points
    assert [culprit.mechanism for culprit in trace.culprits] == [culprit.mechanism for culprit in roomy.culprits]
    assert 0 < spent <= free.ledger.backwards


def test_memory_for_not_even_one_point_is_an_error(points: Points) -> None:
    def full(x: Tensor) -> Tensor:
        raise MemoryError

    with Target(full) as target, pytest.raises(ModelError, match="MemoryError"):
        trace_model(target, *points, eps=0.2)
