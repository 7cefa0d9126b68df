"""The right culprit at the right module and line; none in healthy models; nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from maskaudit.errors import ModelError
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs
from maskaudit.trace import Trace, trace_model
from maskaudit.trace.functions import check_function
from maskaudit.trace.op_notes import FunctionCall, function_location
from maskaudit.verdict.mechanisms import TITLES
from maskaudit.zoo.masks import inputs, outputs
from tests.trace import masked_models as zoo
from tests.trace.masked_models import HEALTHY, MASKED, Masked

Points = tuple[Tensor, Tensor]


def trace(model: object, points: Points) -> Trace:
    target = Target(model)  # type: ignore[arg-type]
    with target:
        target.outputs = detect_outputs(target.raw(points[0]))
        return trace_model(target, *points, eps=0.2)


@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.name)
def test_culprit_of_a_masked_model(case: Masked, net: nn.Module, points: Points) -> None:
    found = trace(case.build(net).eval(), points)
    culprit = found.culprits[0]
    assert culprit.mechanism == case.mechanism
    assert culprit.mechanism in TITLES
    assert culprit.location.module == case.module
    assert culprit.location.file is not None
    assert culprit.location.line is not None
    line = Path(culprit.location.file).read_text().splitlines()[culprit.location.line - 1]
    assert case.line in line
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("name", "build"), HEALTHY, ids=[name for name, _ in HEALTHY])
def test_no_culprit_in_a_healthy_model(name: str, build: object, net: nn.Module, points: Points) -> None:
    assert trace(build(net).eval(), points).culprits == ()  # type: ignore[operator]


def test_masks_in_series_are_both_named(net: nn.Module, points: Points) -> None:
    found = trace(outputs.SharpSoftmax(inputs.QuantisedInput(net, 4), 100.0).eval(), points)
    assert {c.mechanism for c in found.culprits} == {"shattered", "logit-scale"}


@pytest.mark.parametrize(
    ("build", "source", "line"),
    [
        (zoo.ForgottenDropout, "torch", "F.dropout"),
        (zoo.NumpyNoise, "numpy", "torch.from_numpy(noise)"),
        (zoo.PrivateNoise, "private", "torch.randn"),
    ],
)
def test_randomness_is_located(build: object, source: str, line: str, net: nn.Module, points: Points) -> None:
    found = trace(build(net).eval(), points)  # type: ignore[operator]
    assert found.randomness is not None
    assert found.randomness.sources == (source,)
    where = found.randomness.location
    assert line in Path(str(where.file)).read_text().splitlines()[int(where.line or 0) - 1]
    assert found.culprits[-1].mechanism == "stochastic"


@pytest.mark.parametrize(
    ("function", "kind"), [(zoo.RoundSTE, "honest"), (zoo.NoneBackward, "zero"), (zoo.Scrambled, "lying")]
)
def test_custom_functions_against_their_own_forward(function: type[torch.autograd.Function], kind: str) -> None:
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert check_function(FunctionCall(function, (x,), function_location(function, ""))).kind == kind


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.rand(2, 1, 8, 8))])
def test_torchscript(make: object, net: nn.Module, points: Points) -> None:
    class Quantised(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(torch.round(x * 3) / 3)

    found = trace(make(Quantised(net)), points)  # type: ignore[operator]
    assert [(c.mechanism, c.location.op) for c in found.culprits] == [("shattered", "round")]
    assert trace(make(net), points).culprits == ()  # type: ignore[operator]


def test_plain_callables(net: nn.Module, points: Points) -> None:
    assert trace(lambda x: net(x), points).culprits == ()
    found = trace(lambda x: net(torch.round(x * 3) / 3), points)
    assert [(c.mechanism, c.location.op) for c in found.culprits] == [("shattered", "round")]


def test_flow_of_a_linear_model(points: Points) -> None:
    """The margin's cotangent is e_j − e_y, so norms are √2 in and ‖W_j − W_y‖ out."""
    linear = nn.Linear(64, 10, bias=False)
    model = nn.Sequential(nn.Flatten(), linear).eval()
    x, y = points[0][:1], points[1][:1]
    flow = next(op.flow for op in trace(model, (x, y)).ops if op.location.op == "linear")
    with torch.no_grad():
        runner_up = int(model(x).scatter(1, y[:, None], -torch.inf).argmax())
        expected = float((linear.weight[runner_up] - linear.weight[int(y)]).norm())
    assert flow is not None
    assert flow.norm_in == pytest.approx(2**0.5)
    assert flow.norm_out == pytest.approx(expected, rel=1e-5)


def test_honest_detach_is_a_revived_cut(net: nn.Module, points: Points) -> None:
    found = trace(zoo.Front(net, zoo.Apply(zoo.round_ste)).eval(), points)
    assert any(cut.location.op == "detach" and cut.revived for cut in found.cuts)


def test_optimisation_inside_the_forward_pass(net: nn.Module, points: Points) -> None:
    def purify(x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_(True)
            (g,) = torch.autograd.grad(net(z).logsumexp(1).sum(), z)
        return x - 0.001 * g.sign()

    found = trace(zoo.Front(net, zoo.Apply(purify)).eval(), points)
    assert [(place.module, place.op) for place in found.optimises] == [("front", "grad")]


def test_op_without_derivative(net: nn.Module, points: Points) -> None:
    found = trace(zoo.Front(net, zoo.Apply(lambda x: x // 0.125 * 0.125)).eval(), points)
    (culprit,) = found.culprits
    assert (culprit.mechanism, culprit.location.module, culprit.location.op) == ("shattered", "front", "__floordiv__")


def test_output_kinds(net: nn.Module, points: Points) -> None:
    builds = {
        "logits": net,
        "probabilities": outputs.SoftmaxOutput(net),
        "log-probabilities": nn.Sequential(net, nn.LogSoftmax(1)),
        "one-hot": outputs.HardLabels(net),
        "scaled logits": outputs.ScaledLogits(net, 1e4),
        "clipped logits": nn.Sequential(net, nn.Hardtanh(-0.1, 0.1)),
    }
    assert {kind: trace(model.eval(), points).output_kind for kind, model in builds.items()} == {k: k for k in builds}


@pytest.mark.parametrize(("factor", "named"), [(0.01, True), (1.0, False), (0.9, False), (30.0, False)])
def test_what_brings_scores_close_together_is_no_suspect(
    factor: float, named: bool, net: nn.Module, points: Points
) -> None:
    def scaled(x: Tensor) -> Tensor:
        scores: Tensor = net(x)
        return scores * factor

    found = trace(scaled, points)
    assert found.healthy or factor > 1
    assert (found.shrinks is not None) == named
    if found.shrinks is not None:
        assert (found.shrinks.op, found.shrinks.line) == ("mul", scaled.__code__.co_firstlineno + 2)


def test_nothing_is_left_behind(net: nn.Module, points: Points) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            self.net(x)
            raise RuntimeError("no")

    state = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    trace_model(Target(zoo.ForgottenDropout(net).eval()), *points)
    with pytest.raises(ModelError):
        trace_model(Target(Fails().eval()), *points)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert not module_hooks._global_forward_hooks
    assert not module_hooks._global_forward_pre_hooks
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.overrides._get_current_function_mode() is None
