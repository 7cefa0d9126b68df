"""Output kind and randomness."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaudit.probes.output_kind import output_kind
from maskaudit.probes.run import run_probe
from maskaudit.results import ProbeResult
from maskaudit.target.kinds import recognise_outputs
from maskaudit.verdict.mechanisms import name_mechanisms

from .toys import Linear, Through, context, get, points


def run(rule: str, model: object, n: int = 24) -> ProbeResult:
    with context(model, points(n, 6)) as ctx:  # type: ignore[arg-type]
        return run_probe(get(rule), ctx)


def after(function: object, scale: float = 1.0) -> nn.Module:
    return Through(Linear(6, scale=scale), after=function)  # type: ignore[arg-type]


KINDS = [
    (Linear(6), "logits", 0.0),
    (Linear(6, classes=2), "logits", 0.0),
    (after(lambda z: z - z[:, :1]), "logits", 0.0),  # one class fixed at 0 is no clip
    (after(lambda z: z.softmax(1)), "probabilities", 0.0),
    (after(lambda z: z.log_softmax(1)), "log-probabilities", 0.0),
    (after(lambda z: nn.functional.one_hot(z.argmax(1), 3).float()), "one-hot", 1.0),
    (after(lambda z: 0 * z + torch.tensor([1.0, 2.0, 3.0])), "constant", 1.0),
    (after(lambda z: (1e4 * z).clamp(-5, 5)), "clipped logits", 1.0),
    (Linear(6, scale=1e5), "scaled logits", 1.0),
    (after(lambda z: (1e5 * z).softmax(1)), "one-hot", 1.0),
]


@pytest.mark.parametrize(("model", "kind", "share"), KINDS)
def test_kind_and_share_of_unusable_outputs(model: nn.Module, kind: str, share: float) -> None:
    result = run("output-kind", model)
    assert result.details["kind"] == kind
    assert result.value == pytest.approx(share, abs=0.05)
    assert result.status == ("finding" if share else "pass")


def test_probabilities_that_are_nearly_saturated_are_counted_point_by_point() -> None:
    raw = torch.tensor([[0.9, 0.1], [1.0, 1e-30], [1.0, 1e-42], [0.5, 0.5]])
    assert output_kind(raw) == "probabilities"
    with context(lambda x: raw[: len(x)], points(4, 6)) as ctx:
        assert run_probe(get("output-kind"), ctx).value == 0.25


def test_rounded_probabilities_accuse_the_rounding_and_not_the_logits() -> None:
    model = after(lambda z: (z.softmax(1) * 100).round() / 100)
    with context(model, points(40, 6)) as ctx:
        ctx.target.form = recognise_outputs(ctx.target.raw(ctx.x)).form
        result = run_probe(get("output-kind"), ctx)
    assert result.details["kind"] == "rounded probabilities"
    saturated = dataclasses.replace(result, status="finding")
    assert [m.id for m in name_mechanisms((saturated,), by_loss=False)] == ["output-hides-loss"]


def test_one_point_is_neither_constant_nor_clipped() -> None:
    assert output_kind(torch.tensor([[0.3, 2.0, -1.0]])) == "logits"


# --- randomness --------------------------------------------------------------------------------------

PRIVATE = torch.Generator().manual_seed(1)

SOURCES = {
    "torch": lambda x: x + torch.randn_like(x),
    "numpy": lambda x: x + float(np.random.rand()),
    "random": lambda x: x * random.random(),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_source_is_told_by_its_generator(name: str) -> None:
    result = run("randomness", Through(Linear(6), SOURCES[name]))
    assert result.details["generators"] == [name]
    assert result.details["private_source"] is False
    assert result.details["largest_score_change"] > 0
    assert result.status == "pass"


def test_private_generators_are_noticed() -> None:
    result = run("randomness", Through(Linear(6), lambda x: x + torch.randn(x.shape, generator=PRIVATE)))
    assert result.details["generators"] == []
    assert result.details["private_source"] is True
    assert result.value is not None
    assert result.value > 0.3


def test_steady_models_do_not_change() -> None:
    result = run("randomness", Linear(6))
    assert (result.value, result.details["largest_score_change"], result.details["generators"]) == (0.0, 0.0, [])
    assert result.details["private_source"] is False


def test_unused_draws_do_not_make_a_model_random() -> None:
    def draws(x: Tensor) -> Tensor:
        torch.rand(1)
        return x

    result = run("randomness", Through(Linear(6), draws))
    assert result.value == 0
    assert result.details["generators"] == ["torch"]
