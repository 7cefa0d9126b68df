"""Company, order, state and chance are distinguished, reported, and respected when points are asked."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit import api
from maskaudit.auditing.evidence import read_evidence, verify_audit
from maskaudit.errors import InputError
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.target.dependence import Dependence, measure_dependence

torch.manual_seed(2)
NET = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)).requires_grad_(False)
X = torch.rand(64, 6)


class Wrapped(nn.Module):
    """A network with a state, and a way to answer."""

    def __init__(self, answer: Callable[[Wrapped, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.answer, self.calls = copy.deepcopy(NET), answer, 0
        self.register_buffer("drift", torch.zeros(()))
        self.own, self.numpy = torch.Generator().manual_seed(0), np.random.default_rng(0)
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self, x)


def counting(net: Wrapped, x: Tensor) -> Tensor:
    net.calls += 1
    return net.net(x + 0.01 * net.calls)


def drifting(net: Wrapped, x: Tensor) -> Tensor:
    net.drift += 0.1
    return net.net(x) + net.drift * torch.arange(4.0)


def by_the_batch(net: Wrapped, x: Tensor) -> Tensor:
    """Batch normalisation over six places, as over the pixels of an image."""
    return net.net(net.norm(x[:, :, None].repeat(1, 1, 2) * torch.tensor([1.0, 0.5])).mean(2))


def dynamic(net: Wrapped, x: Tensor) -> Tensor:
    scale = x.abs().max() / 7
    return net.net((x / scale).round() * scale)


def positional(net: Wrapped, x: Tensor) -> Tensor:
    return net.net(x) * (1 + torch.arange(len(x))[:, None] % 3)


def previous(net: Wrapped, x: Tensor) -> Tensor:
    return net.net(x + 0.3 * x.roll(1, 0))


MODELS: dict[str, tuple[Callable[[Wrapped, Tensor], Tensor], tuple[bool, bool, bool]]] = {
    "plain": (lambda net, x: net.net(x), (False, False, False)),
    "hard stairs": (lambda net, x: net.net((7 * x).round() / 7), (False, False, False)),
    "batch statistics": (by_the_batch, (True, False, False)),
    "less the mean of the batch": (lambda net, x: net.net(x - 0.3 * x.mean(0)), (True, False, False)),
    "quantised by the batch": (dynamic, (True, False, False)),
    "softmax over the batch": (lambda net, x: net.net(x).softmax(0), (True, False, False)),
    "the neighbour's input": (previous, (True, False, False)),
    "the place in the batch": (positional, (True, False, False)),
    "a counter": (counting, (False, True, False)),
    "a buffer that drifts": (drifting, (False, True, False)),
    "dropout": (lambda net, x: F.dropout(net.net(x), 0.2, True), (False, False, True)),
    "a generator of numpy": (
        lambda net, x: net.net(x) + torch.from_numpy(np.random.rand(len(x), 4)).float(), (False, False, True),
    ),
    "a generator of its own": (
        lambda net, x: net.net(x) + torch.rand(len(x), 4, generator=net.own), (False, False, True),
    ),
    "a generator of numpy of its own": (
        lambda net, x: net.net(x) + float(net.numpy.random()), (False, False, True),
    ),
    "dropout over batch statistics": (
        lambda net, x: F.dropout(net.net(3 * (x - x.mean(0))), 0.2, True), (True, False, True),
    ),
    "a counter and dropout": (lambda net, x: F.dropout(counting(net, x), 0.2, True), (False, True, True)),
}  # fmt: skip


def found(model: nn.Module) -> tuple[Dependence, Target]:
    with Target(model) as target:
        target.remember()
        return measure_dependence(target, X), target


@pytest.mark.parametrize(("answer", "expected"), MODELS.values(), ids=MODELS)
def test_what_answers_depend_on_is_told_apart(
    answer: Callable[[Wrapped, Tensor], Tensor], expected: tuple[bool, bool, bool]
) -> None:
    dependence, target = found(Wrapped(answer))
    assert (dependence.batch, dependence.state, dependence.random) == expected
    assert (target.form.alone, target.form.fresh) == expected[:2]


def test_dynamic_quantisation_is_found_by_asking() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(NET).eval(), {nn.Linear})
    assert found(quantised)[0].batch


def test_half_precision_that_rounds_otherwise_in_other_batches_depends_on_nothing() -> None:
    net = copy.deepcopy(NET).bfloat16()
    with Target(lambda x: net(x.bfloat16())) as target:
        assert measure_dependence(target, X) == Dependence(change=pytest.approx(0, abs=0.05))


def test_points_are_asked_alone_where_company_counts() -> None:
    model = Wrapped(MODELS["less the mean of the batch"][0])
    with Target(model) as target:
        measure_dependence(target, X)
        assert torch.allclose(target.raw(X), model.net(0.7 * X), atol=1e-5)
        gradient = target.value_and_grad(X[:5], lambda scores, rows: scores[:, 0]).grad
        alone = torch.cat([target.value_and_grad(X[i : i + 1], lambda s, rows: s[:, 0]).grad for i in range(5)])
    assert torch.allclose(gradient, alone)


def test_a_state_is_put_back_before_every_call() -> None:
    model = Wrapped(counting)
    with Target(model) as target:
        target.remember()
        measure_dependence(target, X)
        answers = [target.raw(X) for _ in range(3)]
    assert all(torch.allclose(answer, NET(X + 0.01), atol=1e-6) for answer in answers)
    assert model.calls == 0


def test_a_network_that_fails_on_one_point_is_asked_with_company_of_itself() -> None:
    with Target(lambda x: NET(x.squeeze()).log_softmax(1)) as target:
        assert measure_dependence(target, X) == Dependence(change=pytest.approx(0, abs=1e-5))
        assert target.form.least == 2
        assert torch.allclose(target.raw(X[:1]), NET(X[:1]).log_softmax(1), atol=1e-5)
        assert len(target.value_and_grad(X[:1], lambda scores, rows: scores[:, 0]).grad) == 1


def test_points_without_an_answer_of_their_own_are_refused() -> None:
    model = Wrapped(lambda net, x: net.net(net.norm(x)))
    with (
        Target(model) as target,
        pytest.raises(InputError, match=r"answer of its own.*running statistics"),
    ):
        measure_dependence(target, X)


QUICK = AuditSettings(budget="quick", samples=24, select=("pgd", "noise", "square"))
AUDITED = {
    "less the mean of the batch": MODELS["less the mean of the batch"],
    "a counter": MODELS["a counter"],
    "a generator of its own": (
        lambda net, x: net.net(x) + 0.05 * torch.rand(len(x), 4, generator=net.own), (False, False, True),
    ),
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("name", AUDITED)
def test_what_was_found_is_in_verdict_and_notes_and_every_example_holds(name: str) -> None:
    answer, (batch, state, random) = AUDITED[name]
    model = Wrapped(answer)
    with Target(model) as target:
        target.remember()
        measure_dependence(target, X)
        labels = target.raw(X).argmax(1)
    report = (audit := api.audit(model, (X, labels), eps=0.1, settings=QUICK)).report
    phrases = {"alone": batch, "state that it keeps": state, "fresh draws, which": random}
    for words, there in phrases.items():
        assert any(words in reason for reason in report.verdict.reasons) is there
    assert report.target["depends_on"] == {"batch": batch, "state": state, "random": random}
    assert not (batch or state) or any("asked alone" in note or "put back" in note for note in report.notes)
    evidence = read_evidence(audit.evidence, "evidence")
    checks = verify_audit(report.to_dict(), evidence, model, report.target["sha256"])
    assert all(check.holds for check in checks if check.name not in ("misclassified", "points") or not random), checks
    assert len(evidence.tensors["examples"]) > 10
    if random:
        assert bool((evidence.tensors["example_won"] >= evidence.metadata["proof"]["wins"]).all())
