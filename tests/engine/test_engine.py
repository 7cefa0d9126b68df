"""Engines: the same results from any number of workers, and no worker's death is a hang."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskaudit import accelerator
from maskaudit.attacker import Attacker
from maskaudit.attacks.interface import AttackSpec, AttackUnavailable, Attempt
from maskaudit.attacks.registry import BUDGETS, battery
from maskaudit.engine import engine_for
from maskaudit.engine.interface import SHARD_POINTS, EngineError, Job, divisible
from maskaudit.engine.local import Local
from maskaudit.engine.processes import Processes
from maskaudit.errors import ModelError, UsageError
from maskaudit.ledger import Ledger
from maskaudit.rng import PointRNG
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

THREAT = ThreatModel("Linf", 0.2, (0.0, 1.0))
SPECS = {spec.name: spec for spec in battery(BUDGETS["quick"])}


def job(spec: AttackSpec, x: Tensor, y: Tensor, **settings: Any) -> Job:
    return Job(spec, x, y, THREAT, PointRNG.create(3, spec.name, torch.arange(len(x))), {**spec.settings, **settings})


def attack_of(run: Any, **changes: Any) -> AttackSpec:
    return AttackSpec(**{"name": "mine", "title": "", "kind": "random", "role": "challenger", "run": run} | changes)


def still(target: Target, x: Tensor, y: Tensor, **_: Any) -> Attempt:
    target.scores(x)
    never = torch.full((len(x),), -1)
    return Attempt(x, never, torch.ones_like(never))


@pytest.mark.parametrize("name", ["pgd", "apgd-margin", "square", "noise"])
def test_results_do_not_depend_on_the_number_of_workers(
    name: str, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    x, y = points
    settings = {"queries": 60} if name == "square" else {}
    outcomes = []
    for workers in (1, 2):
        with Target(net) as target:
            attempt = Processes(workers).run(job(SPECS[name], x, y, **settings), target)
            outcomes.append((attempt, target.ledger))
    (one, spent_one), (two, spent_two) = outcomes
    assert len(x) > SHARD_POINTS
    assert torch.equal(one.examples, two.examples)
    assert torch.equal(one.first_success, two.first_success)
    assert torch.equal(one.queries, two.queries)
    assert spent_one == spent_two
    assert spent_one.forwards >= len(x)
    with Target(net) as target:
        alone = Local().run(job(SPECS[name], x, y, **settings), target)
    assert torch.allclose(one.examples, alone.examples, atol=1e-5)


def test_passes_of_workers_are_counted(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    with Target(net) as target:
        Processes(2).run(job(attack_of(still), x, y), target)
        assert (target.ledger.forwards, target.ledger.backwards) == (len(x), 0)


def test_settings_that_belong_to_points_are_cut_with_them(points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    shards = job(attack_of(still), x, y, start=x + 1, pool=x, steps=3).shards()
    assert [len(shard.x) for shard in shards] == [SHARD_POINTS, len(x) - SHARD_POINTS]
    assert torch.equal(torch.cat([shard.settings["start"] for shard in shards]), x + 1)
    assert torch.equal(torch.cat([shard.rng.points for shard in shards]), torch.arange(len(x)))
    assert all(shard.settings["pool"] is x and shard.settings["steps"] == 3 for shard in shards)


def dies(target: Target, x: Tensor, y: Tensor, *, rng: PointRNG, **_: Any) -> Attempt:
    if 0 in rng.points:
        os.kill(os.getpid(), signal.SIGKILL)
    return still(target, x, y)


def test_a_killed_worker_becomes_an_error_row(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    ledger, said = Ledger(), []
    right = torch.ones(len(x), dtype=torch.bool)
    ledger.add_points(torch.arange(len(x)), x, y, right, y)
    with Target(net) as target:
        attacker = Attacker(
            target, ledger, THREAT, AuditSettings(workers=2), pool=x, surrogates=(), journal=None, on_event=said.append
        )
        spec = attack_of(dies)
        attacker.run(spec, torch.arange(len(x)))
        attacker.run(SPECS["fgsm"], torch.arange(len(x)))
    dead, alive = ledger.rows()
    assert dead.status == "error"
    assert "signal 9" in dead.reason
    assert alive.status == "ran"


def test_a_job_runs_on_the_targets_device_and_comes_home(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    seen: dict[str, Any] = {}

    def looks(target: Target, x: Tensor, y: Tensor, *, rng: PointRNG, **settings: Any) -> Attempt:
        seen.update(x=x, y=y, rng=rng.points, start=settings["start"])
        never = torch.full((len(x),), -1, device="cpu")
        return Attempt(torch.zeros(x.shape), never, never)

    x, y = points
    away = Target(net, device="meta")  # has shapes and no values
    with pytest.raises((RuntimeError, NotImplementedError)):  # what nobody may look at cannot be settled
        job(attack_of(looks), x, y, start=x, surrogates=[Target(net)]).run(away)
    assert {name: tensor.device.type for name, tensor in seen.items()} == dict.fromkeys(seen, "meta")
    with Target(net) as target:
        attempt = job(attack_of(looks), x, y, start=x).run(target)
    assert seen["x"] is x
    assert attempt.examples.device == x.device


def test_nan_from_a_surrogate_is_refused_at_the_end(
    monkeypatch: pytest.MonkeyPatch, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    monkeypatch.setattr(accelerator, "asking_is_free", lambda _device: False)
    other, passed = Target(lambda x: net(x) * torch.nan), []

    def asks(target: Target, x: Tensor, y: Tensor, *, surrogates: Any, **_: Any) -> Attempt:
        surrogates[0].scores(x)
        passed.append(True)
        return still(target, x, y)

    with Target(net) as target, pytest.raises(ModelError, match=f"NaN for {len(points[0])}"):
        job(attack_of(asks), *points, surrogates=[other]).run(target)
    assert passed


FAILURES = {
    "model": (ModelError, "out of luck"),
    "unavailable": (AttackUnavailable, "no library"),
    "crash": (EngineError, "KeyError: 'x'"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_keep_their_kind(name: str, net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    kind, words = FAILURES[name]

    def fails(*_: Any, **__: Any) -> Attempt:
        raise KeyError("x") if kind is EngineError else kind(words)

    with Target(net) as target, pytest.raises(kind, match=words):
        Processes(2).run(job(attack_of(fails), *points), target)


def test_what_is_random_otherwise_stays_whole(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    seen: list[int] = []

    def counts(target: Target, x: Tensor, y: Tensor, **_: Any) -> Attempt:
        seen.append(len(x))
        return still(target, x, y)

    with Target(net, draws=3) as target:
        Processes(2).run(job(attack_of(counts), *points), target)
    assert seen == [len(points[0])]
    with Target(net) as target:
        assert not divisible(job(attack_of(still, kind="repaired"), *points), target)
        assert divisible(job(attack_of(still), *points), target)


REFUSED = {
    "no worker": ({"workers": 0}, "at least 1"),
    "both": ({"workers": 2, "ray": "auto"}, "not both"),
    "cuda": ({"workers": 2, "device": "cuda"}, "CPU processes"),
    "no ray": ({"ray": "auto"}, r"maskaudit\[ray\]"),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_engines_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], words: str) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=words):
        engine_for(AuditSettings(**given))


def test_a_system_without_fork_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(UsageError, match="forked safely"):
        Processes(2)


class StubRay(types.ModuleType):
    """A cluster of one that pickles what it is given, as the real one does."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.tasks = 0

    def init(self, address: str, **_: Any) -> None:
        if address != "auto":
            raise ConnectionError("nobody there")

    def put(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def get(self, values: list[Any]) -> list[Any]:
        return [pickle.loads(value) for value in values]

    def remote(self, function: Any) -> Any:
        def call(held: bytes, shard: Job) -> bytes:
            self.tasks += 1
            return pickle.dumps(function(pickle.loads(held), pickle.loads(pickle.dumps(shard))))

        return types.SimpleNamespace(remote=call)


def test_ray_gives_what_processes_give(
    monkeypatch: pytest.MonkeyPatch, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    stub = StubRay()
    monkeypatch.setitem(sys.modules, "ray", stub)
    with pytest.raises(UsageError, match="No Ray cluster answers at 'head:1'"):
        engine_for(AuditSettings(ray="head:1"))
    engine = engine_for(AuditSettings(ray="auto"))
    with Target(net) as target:
        afar = engine.run(job(SPECS["pgd"], *points), target)
        spent = target.ledger.copy()
    with Target(net) as target:
        here = Processes(2).run(job(SPECS["pgd"], *points), target)
        assert target.ledger == spent
        assert torch.equal(afar.examples, here.examples)
        assert stub.tasks == 2
        engine.run(job(attack_of(lambda target, x, y, **_: still(target, x, y)), *points), target)
    assert stub.tasks == 3, "what cannot travel runs here, whole"
