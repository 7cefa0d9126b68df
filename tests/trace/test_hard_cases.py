"""Hard cases: masks in unusual places, honest models that look masked, architectures that no rule was tuned on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.data import load_data
from maskaudit.repairs.blame import traced
from maskaudit.results import Location
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs
from maskaudit.trace import Trace, trace_model
from maskaudit.verdict.mechanisms import TITLES
from tests.trace import hard_cases as cases
from tests.trace.masked_models import Front, Masked

Points = tuple[Tensor, Tensor]


def trace(model: object, points: Points) -> Trace:
    target = Target(model)  # type: ignore[arg-type]
    with target:
        target.outputs = detect_outputs(target.raw(points[0]))
        return traced(target, *points, eps=0.2)


def source_line(location: Location) -> str:
    assert location.file is not None
    assert location.line is not None
    return Path(location.file).read_text().splitlines()[location.line - 1]


@pytest.mark.parametrize("case", cases.HARD, ids=lambda case: case.name)
def test_culprit_of_a_hard_case(case: Masked, net: nn.Module, points: Points) -> None:
    culprit = trace(case.build(net).eval(), points).culprits[0]
    assert (culprit.mechanism, culprit.location.module) == (case.mechanism, case.module)
    assert culprit.mechanism in TITLES
    lines = Path(str(culprit.location.file)).read_text().splitlines()
    line = int(culprit.location.line or 0)
    assert case.line in " ".join(lines[line - 1 : line + 1])  # a call over several lines starts above


@pytest.mark.parametrize(("name", "build", "expected"), cases.SERIES, ids=[name for name, _, _ in cases.SERIES])
def test_masks_in_series(
    name: str, build: Callable[[nn.Module], nn.Module], expected: dict[str, str], net: nn.Module, points: Points
) -> None:
    found = {(c.location.op, c.location.module) for c in trace(build(net).eval(), points).culprits}
    assert {op for op, _ in found} == set(expected)
    assert all(any(o == op and m.split(".")[0] == module.split(".")[0] for o, m in found)
               for op, module in expected.items())  # fmt: skip


@pytest.mark.parametrize("build", [cases.Reentrant, lambda n: Front(n, cases.QuantiseSTE())], ids=["reentrant", "ste"])
def test_honest_models(build: Callable[[nn.Module], nn.Module], net: nn.Module, points: Points) -> None:
    assert trace(build(net).eval(), points).culprits == ()


@pytest.mark.parametrize(("name", "build"), cases.ARCHITECTURES, ids=[name for name, _ in cases.ARCHITECTURES])
def test_no_culprit_in_other_architectures(name: str, build: Callable[[], nn.Module], points: Points) -> None:
    data = load_data("digits", split="train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(40):
            rows = torch.randint(len(data.x), (128,))
            optimiser.zero_grad()
            F.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            optimiser.step()
    assert trace(model.eval(), points).culprits == ()


def test_batch_statistics_are_named_and_no_fault(net: nn.Module, points: Points) -> None:
    found = trace(cases.BatchStatistics(net).eval(), points)
    assert found.culprits == ()
    assert found.batch_dependent is not None
    assert found.batch_dependent.op == "batch_norm"
    assert "F.batch_norm" in source_line(found.batch_dependent)
    assert trace(nn.Sequential(nn.BatchNorm2d(1), net).eval(), points).batch_dependent is None


@pytest.mark.parametrize(
    ("build", "source", "line"),
    [(cases.ResizePad, "random", "F.interpolate"), (cases.SelfModifying, "state", "self.seen.mul_")],
)
def test_randomness_of_hard_cases(
    build: Callable[[nn.Module], nn.Module], source: str, line: str, net: nn.Module, points: Points
) -> None:
    found = trace(build(net).eval(), points)
    assert found.randomness is not None
    assert found.randomness.sources == (source,)
    assert line in source_line(found.randomness.location)
    assert found.randomness.logit_spread > 0
    assert {c.mechanism for c in found.culprits} == {"stochastic"}


def test_a_dropout_module_left_in_training_mode(net: nn.Module, points: Points) -> None:
    """The target puts it right; outside the target it shows as random."""
    model = nn.Sequential(nn.Dropout(0.5), net)
    model[0].train()
    assert trace(model, points).randomness is None
    found = trace_model(Target(model), *points, eps=0.2)
    assert found.randomness is not None
    assert found.randomness.location.op == "dropout"
    assert 0 < found.randomness.flips <= 1


def test_optimisation_that_hides_nothing_is_no_fault(net: nn.Module, points: Points) -> None:
    class Watching(nn.Module):
        """Measures its own input gradient and answers as ever."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                z = x.detach().requires_grad_(True)
                (self.last,) = torch.autograd.grad(net(z).sum(), z)
            return self.inner(x)

    found = trace(Watching(net).eval(), points)
    assert [place.op for place in found.optimises] == ["grad"]
    assert found.culprits == ()
    quantised = trace(Watching(Front(net, cases.Quantise())).eval(), points)
    assert {culprit.mechanism for culprit in quantised.culprits} == {"shattered"}


def test_checkpoints_are_put_back(net: nn.Module, points: Points) -> None:
    from torch.utils.checkpoint import CheckpointFunction

    before = CheckpointFunction.apply
    trace(cases.Reentrant(net).eval(), points)
    assert CheckpointFunction.apply == before
    assert "apply" not in vars(CheckpointFunction)
