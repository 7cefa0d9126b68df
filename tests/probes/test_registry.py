"""The contract that every registered probe keeps."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaudit.probes import PROBES
from maskaudit.probes.docs import explanation, full_text
from maskaudit.probes.interface import Measurement, NotApplicable, Probe, ProbeContext
from maskaudit.probes.run import run_probe
from maskaudit.results import plain
from maskaudit.verdict.limits import INFORMATIVE, LIMITS

from .toys import LINF, Linear, context, norm_threat, outcome, points, relu_net

pytestmark = pytest.mark.heavy

every_probe = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.rule)


def with_attacks(ctx: ProbeContext) -> ProbeContext:
    n = len(ctx.x)
    attacks = [
        outcome("pgd", [1] * (n // 2) + [0] * (n - n // 2), role="reference"),
        outcome("fgsm", [0] * n, role="strong"),
        outcome("square", [1] * n, kind="score"),
        outcome("transfer", [0] * n, kind="transfer"),
        outcome("noise", [0] * n, kind="random"),
        outcome("unbounded", [1] * n, role="sanity"),
    ]
    return dataclasses.replace(
        ctx, attacks={item.row.name: item for item in attacks}, strong=attacks[0].broken | attacks[1].broken
    )


def scripted(inputs: int) -> nn.Module:
    return torch.jit.trace(relu_net(inputs), torch.rand(2, inputs), check_trace=False)


class Stateful(nn.Module):
    """Batch norm, dropout and a user's hook: everything that a careless observer would change."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        )
        self.calls = 0
        self.layers[2].register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


SUBJECTS: dict[str, tuple[Callable[[], nn.Module | Callable[[Tensor], Tensor]], tuple[int, ...]]] = {
    "vectors": (lambda: relu_net(6), (6,)),
    "images": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(64, 4)), (2, 6, 6)),
    "two classes": (lambda: Linear(6, classes=2), (6,)),
    "callable": (lambda: Linear(6).forward, (6,)),
    "lambda with activations": (lambda: lambda x: torch.stack([torch.tanh(x).sum(1), torch.relu(x).sum(1)], 1), (6,)),
    "torchscript": (lambda: scripted(6), (6,)),
    "probabilities": (lambda: nn.Sequential(Linear(6), nn.Softmax(dim=1)), (6,)),
    "no gradient at all": (lambda: lambda x: torch.from_numpy(x.detach().numpy()[:, :3].copy()), (6,)),
    "one-hot": (lambda: lambda x: nn.functional.one_hot(x.argmax(1), 6).float(), (6,)),
    "inference mode": (lambda: torch.inference_mode()(Linear(6).forward), (6,)),
}


def test_rules_are_unique_and_each_has_a_limit_or_a_reason_for_none() -> None:
    rules = [probe.rule for probe in PROBES]
    assert len(set(rules)) == len(rules) == 16
    assert set(LIMITS) | set(INFORMATIVE) == set(rules)
    assert not set(LIMITS) & set(INFORMATIVE)


@every_probe
def test_documentation_is_complete(probe: Probe) -> None:
    text = explanation(probe)
    assert text.title == probe.title
    assert not probe.title.endswith(".")
    assert all((text.definition, text.raised_when, text.meaning, text.remedy))
    assert probe.sources == text.sources
    assert probe.sources
    assert full_text(probe).startswith(probe.rule)
    assert probe.rule == probe.rule.lower()
    assert "_" not in probe.rule


@every_probe
@pytest.mark.parametrize("subject", SUBJECTS)
def test_runs_on_every_kind_of_model(probe: Probe, subject: str) -> None:
    build, shape = SUBJECTS[subject]
    with context(build(), points(12, *shape)) as ctx:
        result = run_probe(probe, with_attacks(ctx))
    assert result.status in ("pass", "finding", "not_applicable"), result.reason
    json.dumps(plain(dataclasses.asdict(result)), allow_nan=False)
    assert result.seconds >= 0
    if result.status == "not_applicable":
        assert result.reason.endswith((".", "output-kind", "zero-gradient")) or len(result.reason) > 20
        return
    assert result.value is not None
    assert result.unit
    assert result.n > 0
    assert result.meaning
    assert result.remedy
    if result.low is not None:
        assert result.high is not None
        assert result.low <= result.value <= result.high
    if result.status == "finding":
        assert result.findings


@every_probe
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_batch_size_does_not_change_the_figure(probe: Probe, norm: str) -> None:
    figures = []
    for batch_size in (256, 5):
        with context(relu_net(6), points(12, 6), threat=norm_threat(norm), batch_size=batch_size) as ctx:  # type: ignore[arg-type]
            figures.append(run_probe(probe, with_attacks(ctx)).value)
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)


@every_probe
def test_leaves_model_and_random_state_as_they_were(probe: Probe) -> None:
    model = Stateful().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with context(model, points(12, 6)) as ctx:
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
        run_probe(probe, with_attacks(ctx))
        assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
        assert random.getstate() == states[2]
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_probe
def test_a_model_that_fails_gives_an_error_result(probe: Probe) -> None:
    class Failing(Linear):
        broken = False

        def forward(self, x: Tensor) -> Tensor:
            if self.broken:
                raise ValueError("out of cheese")
            return super().forward(x)

    model = Failing(6)
    with context(model, points(12, 6)) as ctx:
        Failing.broken = True
        result = run_probe(probe, with_attacks(ctx))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if "attacks" in probe.needs:
        assert result.status in ("pass", "finding")
        return
    assert result.status == "error"
    assert "out of cheese" in result.reason
    assert "Traceback" not in result.reason


@every_probe
def test_no_points_and_no_attacks_are_not_applicable(probe: Probe) -> None:
    with context(Linear(6), points(4, 6)) as ctx:
        empty = dataclasses.replace(ctx, x=ctx.x[:0], y=ctx.y[:0])
        assert run_probe(probe, empty).status == "not_applicable"
        if "attacks" in probe.needs:
            assert run_probe(probe, ctx).status == "not_applicable"


@every_probe
def test_one_point_is_enough_not_to_crash(probe: Probe) -> None:
    with context(relu_net(6), points(1, 6)) as ctx:
        assert run_probe(probe, with_attacks(ctx)).status != "error"


def _own(measure: Callable[[ProbeContext], Measurement], *needs: str) -> Probe:
    return Probe("own", "A third party's probe", frozenset(needs), measure, ("nobody",))  # type: ignore[arg-type]


def test_runner_turns_exceptions_into_results_and_grades_nothing_without_a_limit() -> None:
    def fails(_: ProbeContext) -> Measurement:
        raise ZeroDivisionError("by zero\nand more")

    def refuses(_: ProbeContext) -> Measurement:
        raise NotApplicable("It is Tuesday.")

    def measures(_: ProbeContext) -> Measurement:
        return Measurement(
            0.25, "share of points", 8, count=2, details={"bad": float("nan")}, per_point=(1.0, float("nan"))
        )

    with context(Linear(6), points(4, 6), threat=LINF) as ctx:
        error = run_probe(_own(fails), ctx)
        assert (error.status, error.reason) == ("error", "ZeroDivisionError: by zero")
        refused = run_probe(_own(refuses), ctx)
        assert (refused.status, refused.reason) == ("not_applicable", "It is Tuesday.")
        measured = run_probe(_own(measures), ctx)
        assert (measured.status, measured.value, measured.threshold) == ("pass", 0.25, None)
        assert measured.low is not None
        assert 0 < measured.low < 0.25
        assert measured.details == {"bad": None, "per_point": [1.0, None]}
    with context(Linear(6).forward, points(4, 6)) as ctx:
        assert run_probe(_own(measures, "module"), ctx).status == "not_applicable"


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupted(_: ProbeContext) -> Measurement:
        raise KeyboardInterrupt

    with context(Linear(6), points(4, 6)) as ctx, pytest.raises(KeyboardInterrupt):
        run_probe(_own(interrupted), ctx)
