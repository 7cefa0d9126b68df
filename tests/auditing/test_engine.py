"""Engines: the same results from any number of workers, and no worker's death is a hang."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import struct
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.attacks.interface import AttackSpec, AttackUnavailable, Attempt
from maskaudit.attacks.registry import battery
from maskaudit.auditing.attacker import Attacker
from maskaudit.auditing.engine import engine_for
from maskaudit.auditing.engine.interface import MOST_SHARD, Engine, Job, TaskError, joined, shard_points
from maskaudit.auditing.engine.local import Local
from maskaudit.auditing.engine.processes import TRIES, Processes
from maskaudit.auditing.ledger import Ledger
from maskaudit.errors import ModelError, UsageError
from maskaudit.rng import PointRNG
from maskaudit.settings import BUDGETS, AuditEvent, AuditSettings
from maskaudit.target import PassLedger, Target, accelerator
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


def run(engine: Engine, whole: Job, target: Target) -> Attempt:
    return joined([done.result for done in engine.run(whole.shards(target.device), target)])


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskaudit.auditing.engine.interface.MOST_SHARD", 24)


def jittery(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: net(x + 0.05 * torch.randn_like(x))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("draws", [1, 2], ids=["certain", "random"])
@pytest.mark.parametrize("name", ["pgd", "apgd-margin", "square", "noise"])
def test_results_and_passes_do_not_depend_on_the_number_of_workers(
    name: str, draws: int, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    x, y = points
    settings = {"square": {"queries": 12}, "noise": {"draws": 12}}.get(name, {"steps": 6})
    outcomes = []
    for engine in (Local(), Processes(1), Processes(3)):
        with Target(jittery(net) if draws > 1 else net, draws=draws, seed=len(outcomes)) as target:
            attempt = run(engine, job(SPECS[name], x, y, **settings), target)
            outcomes.append((attempt, target.ledger))
    assert len(job(SPECS[name], x, y).shards(torch.device("cpu"))) == 3
    alone, spent = outcomes[0]
    assert spent.forwards >= len(x)
    for attempt, also_spent in outcomes[1:]:
        for part in ("examples", "first_success", "queries"):
            assert torch.equal(getattr(attempt, part), getattr(alone, part))
        assert also_spent == spent


@pytest.mark.parametrize(("numbers", "most"), [(64, MOST_SHARD), (784, 83), (3 * 32 * 32, 32), (3 * 224 * 224, 32)])
def test_larger_inputs_come_in_smaller_shards_of_even_size(numbers: int, most: int) -> None:
    x = torch.zeros(200, numbers)
    shards = job(attack_of(still), x, torch.zeros(200).long()).shards(torch.device("cpu"))
    sizes = [len(shard.x) for shard in shards]
    assert shard_points(x) == most
    assert (sum(sizes), len(sizes)) == (200, -(-200 // most))
    assert max(sizes) - min(sizes) <= 1


def test_passes_of_workers_are_counted(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    with Target(net) as target:
        run(Processes(2), job(attack_of(still), x, y), target)
        assert (target.ledger.forwards, target.ledger.backwards) == (len(x), 0)


@pytest.mark.usefixtures("small_shards")
def test_settings_that_belong_to_points_are_cut_with_them(points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    whole = Job(
        attack_of(still), x, y, THREAT, PointRNG.create(3, "", torch.arange(len(x))), {"pool": x}, {"start": x + 1}
    )
    shards = whole.shards(torch.device("cpu"))
    assert len(shards) == 3
    assert torch.equal(torch.cat([shard.per_point["start"] for shard in shards]), x + 1)
    assert torch.equal(torch.cat([shard.rng.points for shard in shards]), torch.arange(len(x)))
    assert all(shard.settings["pool"] is x for shard in shards)


def test_what_must_meet_all_points_and_what_runs_on_an_accelerator_stays_whole(points: tuple[Tensor, Tensor]) -> None:
    x = torch.zeros(500, 4)
    y = torch.zeros(500).long()
    assert len(job(attack_of(still, whole=True), x, y).shards(torch.device("cpu"))) == 1
    assert len(job(attack_of(still), x, y).shards(torch.device("meta"))) == 1
    assert len(job(attack_of(still), x, y).shards(torch.device("cpu"))) > 1


def killed(marks: Path, times: int) -> Any:
    """An attack that ends the process it runs in, so many times, when it meets the first point; then it is `still`."""

    def dies(target: Target, x: Tensor, y: Tensor, *, rng: PointRNG, **_: Any) -> Attempt:
        if 0 in rng.points and len(list(marks.iterdir())) < times:
            (marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return still(target, x, y)

    return dies


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_killed_worker_held_is_done_again(
    workers: int, tmp_path: Path, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    with Target(net) as target:
        attempt = run(Processes(workers), job(attack_of(killed(tmp_path, TRIES - 1)), *points), target)
        assert target.ledger.forwards == len(points[0]), "what was lost is not counted, what was done is, once"
    assert torch.equal(attempt.examples, points[0])
    assert len(list(tmp_path.iterdir())) == TRIES - 1


@pytest.mark.usefixtures("small_shards")
def test_what_ends_every_worker_is_given_up_and_no_later_success_hides_it(
    tmp_path: Path, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    x, y = points
    ledger, said = Ledger(), list[AuditEvent]()
    ledger.add_points(torch.arange(len(x)), x, y, torch.ones(len(x), dtype=torch.bool), y)
    with Target(net) as target:
        attacker = Attacker(
            target, ledger, THREAT, AuditSettings(workers=2), pool=x, surrogates=(), journal=None, on_event=said.append
        )
        spec = attack_of(killed(tmp_path, 99))
        attacker.run(spec, torch.arange(len(x)))
        attacker.run(spec, torch.arange(1, len(x)))
        attacker.run(SPECS["fgsm"], torch.arange(len(x)))
    dead, alive = ledger.rows()
    assert dead.status == "error"
    assert "signal 9" in dead.reason
    assert alive.status == "ran"
    assert len(list(tmp_path.iterdir())) == TRIES


def test_a_crash_reads_the_same_wherever_it_happened(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    def fails(*_: Any, **__: Any) -> Attempt:
        raise KeyError("x")

    x, y = points
    told = []
    for workers in (None, 2):
        ledger = Ledger()
        ledger.add_points(torch.arange(len(x)), x, y, torch.ones(len(x), dtype=torch.bool), y)
        with Target(net) as target:
            attacker = Attacker(
                target, ledger, THREAT, AuditSettings(workers=workers), pool=x, surrogates=(), journal=None,
                on_event=lambda _event: None,
            )  # fmt: skip
            attacker.run(attack_of(fails), torch.arange(len(x)))
        (row,) = ledger.rows()
        told.append((row.status, row.reason, ledger.entries["mine"].lost))
    assert told == [("error", "KeyError: 'x'", False)] * 2


def test_an_audit_whose_search_was_lost_cannot_be_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    settings = AuditSettings(budget="quick", workers=2, select=("pgd", "apgd-margin", "square"))
    label = api.audit(net, points, eps=0.05, settings=settings).report.verdict.label
    square = dataclasses.replace(SPECS["square"], run=killed(tmp_path, 99))
    quick = tuple(square if spec.name == "square" else spec for spec in battery(BUDGETS["quick"]))
    monkeypatch.setattr("maskaudit.auditing.catalogue.battery", lambda _effort: quick)
    verdict = api.audit(net, points, eps=0.05, settings=settings).report.verdict
    assert (label, verdict.label) == ("clear", "inconclusive")
    assert any("square" in reason and "signal 9" in reason for reason in verdict.reasons)


def test_no_worker_outlives_its_parent(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    def waits(*_: Any, **__: Any) -> Attempt:
        os.write(told, struct.pack("<i", os.getpid()))
        time.sleep(600)
        raise AssertionError

    heard, told = os.pipe()
    parent = os.fork()
    if not parent:
        with Target(net) as target:
            run(Processes(1), job(attack_of(waits), *points), target)
    (worker,) = struct.unpack("<i", os.read(heard, 4))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    os.close(told)
    assert os.read(heard, 1) == b"", f"the end of the pipe that worker {worker} held is closed"
    os.close(heard)


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
    "crash": (TaskError, "'x'"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_keep_their_kind(name: str, net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    kind, words = FAILURES[name]

    def fails(target: Target, x: Tensor, *_: Any, **__: Any) -> Attempt:
        target.scores(x)
        raise KeyError("x") if kind is TaskError else kind(words)

    for engine in (Local(), Processes(2)):
        with Target(net) as target:
            with pytest.raises(KeyError if kind is TaskError and isinstance(engine, Local) else kind, match=words):
                run(engine, job(attack_of(fails), *points), target)
            assert target.ledger == PassLedger(), "a job counts as a whole or not at all"


REFUSED = {
    "no worker": ({"workers": 0}, "whole number from 1"),
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
        afar = run(engine, job(SPECS["pgd"], *points), target)
        spent = target.ledger.copy()
    with Target(net) as target:
        here = run(Local(), job(SPECS["pgd"], *points), target)
        assert target.ledger == spent
        assert torch.equal(afar.examples, here.examples)
        assert stub.tasks == 1
        run(engine, job(attack_of(lambda target, x, y, **_: still(target, x, y)), *points), target)
    assert stub.tasks == 2, "what cannot travel runs here"
