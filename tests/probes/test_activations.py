"""Saturation and dead ReLU on activations set by hand, and the observer beneath them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.errors import ModelError
from maskaudit.files import shown_path
from maskaudit.probes.interface import ProbeContext
from maskaudit.probes.observe import ActivationSite, observe
from maskaudit.probes.run import run_probe
from maskaudit.probes.saturation import saturated_softmax
from maskaudit.results import Location, ProbeResult
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.chunks import FixedBatch
from maskaudit.target.form import Form
from maskaudit.threat import ThreatModel
from maskaudit.trace.rectifiers import ActivationCall

from .toys import Linear, Through, context, get, points

#: One unit each side of every threshold of the table below.
GRID = torch.linspace(-10, 10, 401)


class Shaped(nn.Module):
    """Sends the fixed GRID through an activation, tied to the input so that every point has its own row."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(GRID + 0 * x[:, :1])
        return torch.stack([h.sum(dim=1), x[:, 0]], dim=1)


class Call1(nn.Module):
    """A functional activation as a module of ours, so that the call has a line in this file."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


def run(rule: str, model: nn.Module | object, x: Tensor | None = None) -> ProbeResult:
    with context(model, points(6, 3) if x is None else x) as ctx:  # type: ignore[arg-type]
        return run_probe(get(rule), ctx)


# shares of GRID outside the region where the slope reaches 1/1000 of its maximum, from the closed forms
TANH = (GRID.abs() > 4.1467).double().mean()  # arccosh(sqrt(1000))
SIGMOID = (GRID.abs() > 8.2934).double().mean()  # twice that
FLAT_CASES = [
    (nn.Tanh(), TANH),
    (Call1(torch.tanh), TANH),
    (Call1(lambda x: x.clone().tanh_()), TANH),
    (nn.Sigmoid(), SIGMOID),
    (Call1(torch.special.expit), SIGMOID),
    (Call1(lambda x: F.softsign(10 * x)), (GRID.abs() > 3.0623).double().mean()),  # (1 + |10x|)² > 1000
    (nn.Hardtanh(), (GRID.abs() > 1).double().mean()),
    (nn.Hardtanh(-2.0, 3.0, inplace=True), ((GRID > 3) | (GRID < -2)).double().mean()),
    (nn.Hardsigmoid(), (GRID.abs() > 3).double().mean()),
    (nn.ReLU6(), (GRID > 6).double().mean()),
    (Call1(F.relu6), (GRID > 6).double().mean()),
    (Call1(lambda x: x.clamp(-1, 5)), ((GRID > 5) | (GRID < -1)).double().mean()),
    (Call1(lambda x: torch.clip(x, max=2.0)), (GRID > 2).double().mean()),
    (Call1(lambda x: torch.clamp(x, torch.tensor(0.0), torch.tensor(1.0))), ((GRID > 1) | (GRID < 0)).double().mean()),
]


@pytest.mark.parametrize(("activation", "share"), FLAT_CASES)
def test_flat_share_has_its_closed_form(activation: nn.Module, share: Tensor) -> None:
    result = run("saturation", Shaped(activation))
    assert result.value == pytest.approx(float(share), abs=1e-9)
    assert len(result.details["layers"]) == 1  # nn.Tanh and the torch.tanh inside it are one place
    assert result.status == ("finding" if share > 0.5 else "pass")


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), Call1(lambda x: x.clamp_min(1e-12)), nn.LeakyReLU()])
def test_unbounded_activations_leave_only_the_softmax(activation: nn.Module) -> None:
    result = run("saturation", Shaped(activation))
    assert result.details["layers"] == []
    assert result.threshold is None
    assert result.status == "pass"
    assert "softmax" in result.details["note"]


class TwoLayers(nn.Module):
    """One healthy and one flat tanh, the flat one called on a line of this file."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Linear(3, 8), nn.Tanh())
        self.head = Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(0.01 * x)
        flat = torch.tanh(1e6 * (h + 0.5))  # the line that is asked for
        return self.head(flat)


def test_the_worst_layer_is_located_by_module_and_line() -> None:
    result = run("saturation", TwoLayers())
    assert result.status == "finding"
    assert result.value == 1.0
    where = result.findings[0].location
    source = Path(__file__).read_text().splitlines()
    assert where.file == shown_path(__file__)
    assert where.line is not None
    assert "the line that is asked for" in source[where.line - 1]
    assert where.op == "tanh"
    healthy = result.details["layers"][1]
    assert healthy["flat_share"] == 0
    assert healthy["place"].startswith("tanh in body.1 (test_activations.py:")  # the line that calls the Sequential


def test_a_layer_used_twice_is_counted_call_by_call() -> None:
    shared = nn.Tanh()
    net = nn.Sequential(Linear(3, 4), shared, Through(nn.Identity(), lambda x: 1e6 * (x + 2)), shared, Linear(4, 2))
    result = run("saturation", net)
    assert [(layer["call"], layer["flat_share"]) for layer in result.details["layers"]] == [(1, 1.0), (0, 0.0)]


def test_softmax_saturation_is_float32s() -> None:
    gaps = torch.tensor([10.0, 16.0, 18.0, 80.0, 120.0])
    scores = torch.stack([gaps, torch.zeros(5)], dim=1)
    certain, dead = saturated_softmax(scores, torch.zeros(5, dtype=torch.int64))
    assert certain.tolist() == [False, False, True, True, True]  # 1 − p < 2⁻²⁵ from a gap of 17.3
    assert dead.tolist() == [False, False, False, False, True]  # exp(−gap) = 0 from a gap of 104


def test_saturated_softmax_is_reported_when_nothing_else_can_be_seen() -> None:
    model = torch.jit.script(Linear(3, 2, scale=1e5))
    result = run("saturation", model)
    assert result.value == 1.0
    assert result.low is not None
    assert "TorchScript" in result.details["note"]
    assert result.status == "pass"


# --- dead ReLU ---------------------------------------------------------------------------------------


class KnownReLU(nn.Module):
    """Four units: always on, always off, on for half of the points by construction, always off."""

    def __init__(self, activation: object) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0]
        one = torch.ones_like(first)
        h = self.activation(torch.stack([one, -one, first - 0.5, 0 * one], dim=1))  # type: ignore[operator]
        return torch.stack([h.sum(dim=1), x[:, 1]], dim=1)


RELUS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), torch.relu, F.relu, F.relu6, nn.Threshold(0.0, 0.0),
    lambda x: x.clamp(min=0), lambda x: torch.clamp_min(x, 0), lambda x: x.relu_(),
]  # fmt: skip


@pytest.mark.parametrize("activation", RELUS)
def test_dead_units_are_counted_exactly(activation: object) -> None:
    x = points(10, 3)
    x[:, 0] = torch.tensor([0.2, 0.8] * 5)
    result = run("dead-relu", KnownReLU(activation), x)
    assert result.value == 0.5
    assert (result.n, result.details["worst_units_dead"]) == (4, 2)
    assert result.details["per_point"] == [0.75, 0.5] * 5
    assert result.details["points_with_a_zero_layer"] == 0
    assert result.status == "pass"


def test_a_dead_layer_is_found_and_located() -> None:
    net = nn.Sequential(Linear(3, 8), nn.ReLU(), Through(nn.ReLU(), lambda x: -x - 1), Linear(8, 2))
    with torch.no_grad():
        net[0].weight.abs_()  # type: ignore[operator]
    result = run("dead-relu", net)
    assert result.status == "finding"
    assert result.value == 1.0
    assert result.findings[0].location.module == "2.base"
    assert result.details["points_with_a_zero_layer"] == 6


@pytest.mark.parametrize(
    "other",
    [nn.Hardtanh(0.0, 1.0), lambda x: x.clamp(0, 1), lambda x: x.clamp(min=-1), nn.Tanh(), nn.Threshold(0.0, 3.0)],
)
def test_other_functions_are_no_relu(other: object) -> None:
    result = run("dead-relu", KnownReLU(other))
    assert result.status == "not_applicable"


def test_conv_units_are_positions() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    result = run("dead-relu", net, points(5, 1, 6, 6))
    assert result.n == 48


# --- the observer ------------------------------------------------------------------------------------


def test_hooks_are_removed_when_the_model_raises() -> None:
    class Explodes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("boom")

    net = nn.Sequential(nn.Linear(3, 3), Explodes())
    target_context = context(nn.Identity(), points(2, 3))
    with target_context as ctx:
        ctx.target.model = net
        with pytest.raises(ModelError, match="boom"):
            observe(ctx, frozenset({"tanh"}), lambda site, call, rows: None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_module_paths_recover_after_an_exception_inside_the_model() -> None:
    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad = Call1(self._raise)
            self.act = nn.Tanh()

        @staticmethod
        def _raise(x: Tensor) -> Tensor:
            raise RuntimeError("caught")

        def forward(self, x: Tensor) -> Tensor:
            with contextlib.suppress(RuntimeError):
                self.bad(x)
            return self.act(x)

    seen: list[ActivationSite] = []
    with context(Catches(), points(4, 3), batch_size=2) as ctx:
        observe(ctx, frozenset({"tanh"}), lambda site, call, rows: seen.append(site))
    assert [(site.location.module, site.ordinal) for site in seen] == [("act", 0), ("act", 0)]


def test_observed_values_and_answers_are_those_of_the_plain_model() -> None:
    net = nn.Sequential(Linear(3, 4), nn.ReLU(inplace=True), Linear(4, 2))
    calls: list[ActivationCall] = []
    x = points(5, 3)
    with context(net, x) as ctx:
        plain_scores = ctx.target.raw(x)
        observe(
            ctx,
            frozenset({"relu"}),
            lambda site, call, rows: calls.append(ActivationCall(call.op, call.x.clone(), (), {})),
        )
        assert torch.equal(ctx.target.raw(x), plain_scores)
    assert torch.equal(calls[0].x, net[0](x))
    assert bool((calls[0].x < 0).any())


def test_places_read_well() -> None:
    assert Location("layers.1", "tanh", "/a/net.py", 14).words == "tanh in layers.1 (net.py:14)"
    assert Location("", "clamp").words == "clamp"


# --- models that take points in other numbers --------------------------------------------------------


class ThreeAtATime(nn.Module):
    """A network with its batch size written into it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(Linear(3, 8), nn.ReLU(), Linear(8, 4), nn.Tanh(), Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(3, 3)).reshape(3, 2)


@pytest.mark.parametrize("rule", ["dead-relu", "saturation"])
def test_every_point_counts_once_whatever_the_batch_size(rule: str) -> None:
    """Seven points, in threes that are filled up, and each alone: what a probe measures stays the same."""
    model, x = ThreeAtATime(), points(7, 3)
    y = torch.zeros(7, dtype=torch.int64)
    found = []
    ways = (model.net, Form()), (model, Form(most=3)), (FixedBatch(model, 3), None), (model.net, Form(alone=True))
    for asked, form in ways:
        with Target(asked, bounds=(-10.0, 10.0), form=form) as target:
            rng = PointRNG.create(0, "test", torch.arange(7))
            done = run_probe(get(rule), ProbeContext(target, x, y, ThreatModel("Linf", 0.1, (-10.0, 10.0)), rng))
        layers = [
            (layer["place"].partition(" in ")[0], layer.get("dead"), layer.get("flat_share"))
            for layer in done.details["layers"]
        ]
        found.append((done.value, done.n, done.details.get("points_with_a_zero_layer"), layers))
    assert found[0][0] is not None
    assert found == [found[0]] * 4
