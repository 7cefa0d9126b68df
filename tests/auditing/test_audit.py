"""Whole audits: the verdicts that must hold, what an audit leaves untouched, and what it may depend on."""

from __future__ import annotations

import copy
import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskaudit import api, zoo
from maskaudit.auditing.evidence import read_evidence, verify_audit
from maskaudit.auditing.runner import Audit
from maskaudit.data import load_data
from maskaudit.errors import InputError, ModelError
from maskaudit.loading import LoadedModel
from maskaudit.settings import BUDGETS, AuditEvent, AuditSettings

pytestmark = pytest.mark.heavy

#: Verdicts at the standard budget, with what must also hold; the whole zoo is a benchmark.
CLEAR = ("standard", "pgd-at", "standard-softmax")
MASKED = {
    "quantised": "gradient",
    "logits-x1e4": "loss",
    "zero-backward": "gradient",
    "saturated-tanh": "gradient",
    "hard-labels": "gradient",
    "pgd-at-x100": "loss",
}
QUICK = AuditSettings(budget="quick")

_done: dict[str, Audit] = {}


def standard_audit(name: str) -> Audit:
    """The audit of a zoo model at the standard budget, made once."""
    if name not in _done:
        _done[name] = api.run(api.prepare(api.Request(f"zoo:{name}")))
    return _done[name]


@pytest.mark.usefixtures("zoo_cache")
class TestVerdicts:
    @pytest.mark.parametrize("name", CLEAR)
    def test_healthy_models_are_clear(self, name: str) -> None:
        report = standard_audit(name).report
        assert report.verdict.label == "clear", report.verdict

    @pytest.mark.parametrize("name", MASKED)
    def test_masked_models_are_masked_at_their_level(self, name: str) -> None:
        report = standard_audit(name).report
        assert report.verdict.label == "masked", report.verdict
        levels = {level: report.masking[f"{level}_level"].value for level in ("gradient", "loss")}
        assert max(levels, key=levels.__getitem__) == MASKED[name]

    @pytest.mark.parametrize("name", [*CLEAR, *MASKED])
    def test_every_example_holds(self, name: str) -> None:
        audit = standard_audit(name)
        loaded = zoo.load(name)
        checks = verify_audit(
            audit.report.to_dict(), read_evidence(audit.evidence, "evidence"), loaded.module, loaded.sha256
        )
        assert all(check.holds for check in checks), checks

    def test_scaling_the_logits_hides_nothing_from_the_best_known_accuracy(self) -> None:
        plain = broken_points(standard_audit("pgd-at"))
        scaled = broken_points(standard_audit("pgd-at-x100"))
        both = plain.keys() & scaled.keys()
        assert len(both) >= 40
        assert abs(sum(plain[i] - scaled[i] for i in both)) <= 0.02 * len(both)

    def test_the_saturated_layer_is_named_with_file_and_line(self) -> None:
        mechanism = standard_audit("saturated-tanh").report.verdict.mechanisms[0]
        assert mechanism.id == "saturation"
        assert mechanism.locations[0].file is not None
        assert mechanism.locations[0].file.endswith("layers.py")


def broken_points(audit: Audit) -> dict[int, bool]:
    """Which points of the data set have been broken, of those that the audit drew and the model gets right."""
    points = audit.report.to_dict()["points"]
    return {index: bool(by) for index, by in zip(points["index"], points["broken_by"], strict=True)}


def comparable(audit: Audit) -> dict[str, Any]:
    """The report without what a rerun may change: times, batch size and the digests that cover them."""
    document = audit.report.to_dict()
    for name in ("timing", "evidence", "environment", "figures"):
        del document[name]
    document["settings"].pop("batch_size")
    for row in [*document["attacks"], *document["probes"]]:
        row.pop("seconds")
        for name in ("forwards", "backwards"):
            row.pop(name, None)
    return document


def attacks_of(audit: Audit) -> list[tuple[str, int, list[list[int]]]]:
    """Outcome of our own attacks (those of torchattacks share one random stream per batch)."""
    rows = audit.report.to_dict()["attacks"]
    return [(r["name"], r["broken"], r["curve"]) for r in rows if r["role"] != "second_opinion"]


class TestDependence:
    def test_the_same_seed_gives_the_same_report(self, standard: LoadedModel) -> None:
        first, second = (api.audit(standard.module, settings=QUICK) for _ in range(2))
        assert comparable(first) == comparable(second)
        assert first.report.figures == second.report.figures

    def test_the_batch_size_changes_no_attack(self, pgd_trained: LoadedModel) -> None:
        settings = dataclasses.replace(QUICK, samples=10, ignore=("transfer",))
        large = api.audit(pgd_trained.module, settings=settings)
        small = api.audit(pgd_trained.module, settings=dataclasses.replace(settings, batch_size=5))
        assert attacks_of(large) == attacks_of(small)

    def test_vectors_and_two_classes(self) -> None:
        torch.manual_seed(0)
        x = torch.rand(120, 6)
        model = nn.Linear(6, 2)
        audit = api.audit(model, (x, model(x).argmax(1)), eps=0.05, settings=QUICK)
        assert audit.report.verdict.label == "clear", audit.report.verdict
        assert {row.name for row in audit.report.attacks if row.status != "ran"} == {
            "repaired", "universal", "branch-and-bound",
        }  # fmt: skip

    def test_l2_and_other_bounds(self, standard: LoadedModel) -> None:
        class Centred(nn.Module):
            def __init__(self, network: nn.Module) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Tensor) -> Tensor:
                return self.network((x + 1) / 2)

        assert isinstance(standard.module, nn.Module)
        audit = api.audit(Centred(standard.module), "digits", norm="L2", eps=3.0, bounds=(-1.0, 1.0), settings=QUICK)
        assert audit.report.verdict.label == "clear", audit.report.verdict
        best = audit.report.accuracy["best_known"]
        assert best is not None
        assert best.value < 0.05


class Spy(nn.Module):
    """A network with everything that an audit could leave changed, and a switch to fail."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.norm = nn.BatchNorm2d(1)
        self.register_buffer("calls", torch.zeros(()))
        self.fail_after: int | None = None
        self.norm.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.calls, Tensor)
        self.calls += 1
        if self.fail_after is not None and int(self.calls) > self.fail_after:
            raise RuntimeError("out of luck")
        return self.network(self.norm(x))


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),  # type: ignore[union-attr,index]
        random.getstate(),
    )


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


@pytest.mark.parametrize("fail_after", [None, 300])
def test_model_and_random_state_are_as_before(standard: LoadedModel, fail_after: int | None) -> None:
    assert isinstance(standard.module, nn.Module)
    model = Spy(copy.deepcopy(standard.module)).train()
    model.network.eval()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    model.fail_after = fail_after
    before = snapshot(model)
    audit = api.audit(model, settings=dataclasses.replace(QUICK, samples=48))
    assert same(before, snapshot(model))
    if fail_after is not None:
        assert isinstance(audit.failure, ModelError)
        assert audit.report.verdict.label == "inconclusive"
        assert audit.report.accuracy["clean"] is not None


def test_wrong_answers_need_no_further_points(standard: LoadedModel) -> None:
    """Hidden shares are of all points: by how much the accuracy is overstated."""
    data = load_data("digits", split="test")
    wrong = torch.rand(len(data.y), generator=torch.Generator().manual_seed(0)) < 0.6
    labels = torch.where(wrong, (data.y + 1 + torch.arange(len(data.y)) % 9) % 10, data.y)
    report = api.audit(standard.module, (data.x, labels), eps=0.2, settings=QUICK).report.to_dict()
    assert report["verdict"]["label"] == "clear", report["verdict"]
    assert len(report["points"]["index"]) <= BUDGETS["quick"].points


def test_further_points_are_drawn_where_only_the_loss_level_is_open() -> None:
    """Logits far below 1: cross-entropy leads away from the near class 1 of every twentieth point, and to class 2."""
    net, mean = nn.Linear(41, 3), torch.full((40,), 1e-3 / 40)
    with torch.no_grad():
        net.weight.zero_()
        net.weight[1, :40], net.weight[2, :40], net.weight[2, 40] = mean, -2 * mean, 1e-2
        net.bias.copy_(torch.tensor([0.0, -0.6e-3, -9.5e-3]))
    kind = torch.arange(600) % 100
    near, broken = torch.where(kind < 6, 0.55, 0.3), torch.where(kind >= 50, 0.9, 0.0)
    x = torch.cat([near[:, None].expand(-1, 40), broken[:, None]], 1)
    x = x + 0.002 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    settings = AuditSettings(budget="quick", ignore=("transfer", "torchattacks-pgd", "torchattacks-square"))
    report = api.audit(net, (x, net(x).argmax(1)), eps=0.1, settings=settings).report.to_dict()
    assert report["verdict"]["label"] == "clear", report["verdict"]
    assert report["settings"]["looks"][-1] == len(report["points"]["index"]) > BUDGETS["quick"].points
    assert report["masking"]["searched"] < report["masking"]["matched"]
    assert report["masking"]["loss_level"]["value"] > 0


class Interrupted(Exception):
    pass


def test_an_interrupted_audit_resumes_to_the_same_report(standard_file: Path, tmp_path: Path) -> None:
    request = api.Request(str(standard_file), settings=dataclasses.replace(QUICK, samples=48))
    whole = api.run(api.prepare(request))

    def stop_at_square(event: AuditEvent) -> None:
        if event.step == "square" and event.finished:
            raise Interrupted

    with pytest.raises(Interrupted):
        api.run(api.prepare(request), out=tmp_path, on_event=stop_at_square)
    kept = {path.stem for path in (tmp_path / ".journal").glob("*.entry")}
    assert "32-pgd_0" in kept
    resumed = api.run(api.prepare(request), out=tmp_path, resume=True)
    assert comparable(resumed) == comparable(whole)
    assert (tmp_path / ".journal").exists(), "it stays until the reports are safe"


def test_resuming_another_audit_is_refused(standard_file: Path, tmp_path: Path) -> None:
    request = api.Request(str(standard_file), settings=dataclasses.replace(QUICK, samples=48))

    def stop(event: AuditEvent) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        api.run(api.prepare(request), out=tmp_path, on_event=stop)
    other = dataclasses.replace(request, eps=0.1)
    with pytest.raises(InputError, match="another model, data or settings"):
        api.run(api.prepare(other), out=tmp_path, resume=True)


def test_a_crippled_search_is_not_clear(pgd_trained: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weak = dataclasses.replace(BUDGETS["quick"], queries=1, decision_queries=1, noise_draws=1)
    monkeypatch.setitem(BUDGETS, "quick", weak)
    audit = api.audit(
        pgd_trained.module, settings=dataclasses.replace(QUICK, ignore=("transfer", "finite-differences"))
    )
    assert audit.report.verdict.label == "inconclusive", audit.report.verdict
    assert audit.report.power["passed"] is False


def test_without_gradient_free_attacks_there_is_no_verdict(standard: LoadedModel) -> None:
    left_out = ("square", "finite-differences", "decision", "transfer", "noise")
    audit = api.audit(standard.module, settings=dataclasses.replace(QUICK, samples=48, ignore=left_out))
    assert audit.report.verdict.label == "inconclusive"
    assert any("gradient-free" in reason for reason in audit.report.verdict.reasons)


def test_a_random_model_is_judged_by_majority(standard: LoadedModel) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(standard.module, nn.Module)
            return standard.module(x + 0.05 * torch.randn_like(x))

    audit = api.audit(Noisy(), settings=dataclasses.replace(QUICK, samples=16, ignore=("transfer", "decision")))
    assert audit.report.target["random"] is True
    best = audit.report.accuracy["best_known"]
    assert best is not None
    assert best.value < 0.3


def test_assert_not_masked(standard: LoadedModel) -> None:
    data = load_data("digits")
    settings = dataclasses.replace(QUICK, samples=64)
    api.assert_not_masked(standard.module, data, settings=settings)
    with pytest.raises(AssertionError, match="overstated"):
        api.assert_not_masked(zoo.load("logits-x1e4").module, data, settings=settings)  # type: ignore[arg-type]


def test_a_refused_answer_does_not_break_a_point(standard: LoadedModel) -> None:
    """A detector that refuses everything off the clean points leaves nothing to break."""

    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(standard.module, nn.Module)
            scores = standard.module(x)
            return torch.cat(
                [scores, torch.full_like(scores[:, :1], 1e3) * (x * 16 % 1 > 1e-3).flatten(1).any(1, True)], 1
            )

    settings = dataclasses.replace(QUICK, samples=24, reject_class=10, ignore=("transfer", "decision"))
    report = api.audit(Refuses(), settings=settings).report
    clean, best = report.accuracy["clean"], report.accuracy["best_known"]
    assert clean is not None
    assert best is not None
    assert best.value >= clean.value - 0.2


def test_a_model_with_reentrant_checkpoints_is_audited_like_the_same_without() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.reentrant = nn.Linear(6, 16), nn.Linear(16, 3), reentrant

        def forward(self, x: Tensor) -> Tensor:
            if self.reentrant is None:
                hidden = self.first(x)
            else:
                hidden = checkpoint(self.first, x, use_reentrant=self.reentrant)
            scores: Tensor = self.second(torch.relu(hidden))
            return scores

    x = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
    left_out = ("transfer", "decision", "finite-differences", "torchattacks-pgd", "torchattacks-square")
    settings = AuditSettings(budget="quick", samples=56, ignore=left_out)
    reports = []
    for reentrant in (None, True, False):
        model = Checkpointed(reentrant)
        reports.append(api.audit(model, (x, model(x).argmax(1)), eps=0.1, settings=settings).report)
        assert all(parameter.grad is None for parameter in model.parameters())
    for report in reports:
        assert 0.1 < report.accuracy["best_known"].value < 0.9
        assert report.accuracy == reports[0].accuracy
        assert report.verdict.label == reports[0].verdict.label
