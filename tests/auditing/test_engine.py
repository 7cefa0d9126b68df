"""Engines: the same results from any number of workers, and no worker's death is a hang."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
from maskaudit.auditing.digest import machine
from maskaudit.auditing.engine import EngineError, engine_for, ray_heartbeat, ray_node
from maskaudit.auditing.engine import ray as ray_engine
from maskaudit.auditing.engine.interface import MOST_SHARD, Engine, Job, TaskError, UnfitError, joined, shard_points
from maskaudit.auditing.engine.local import Local
from maskaudit.auditing.engine.processes import TRIES, Processes
from maskaudit.auditing.engine.ray import CRASHES, LOSSES
from maskaudit.auditing.engine.ray_messages import Packer, parcel_tasks
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


def killed(marks: Path, times: int, signum: int = signal.SIGKILL) -> Any:
    """An attack that ends the process it runs in, or stops it, so many times when it meets the first point."""

    def dies(target: Target, x: Tensor, y: Tensor, *, rng: PointRNG, **_: Any) -> Attempt:
        if 0 in rng.points and len(list(marks.iterdir())) < times:
            (marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signum)
        return still(target, x, y)

    return dies


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_worker_held_that_is_killed_or_stopped_is_done_again(
    workers: int, signum: int, tmp_path: Path, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    with Target(net) as target:
        attempt = run(Processes(workers), job(attack_of(killed(tmp_path, TRIES - 1, signum)), *points), target)
        assert target.ledger.forwards == len(points[0]), "what was lost is not counted, what was done is, once"
    assert torch.equal(attempt.examples, points[0])
    assert len(list(tmp_path.iterdir())) == TRIES - 1


@pytest.mark.usefixtures("small_shards")
def test_what_ends_every_worker_is_given_up_and_no_later_success_hides_it(
    tmp_path: Path, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    x, y = points
    ledger, events = Ledger(), list[AuditEvent]()
    ledger.add_points(torch.arange(len(x)), x, y, torch.ones(len(x), dtype=torch.bool), y)
    settings = AuditSettings(workers=2)
    with Target(net) as target:
        attacker = Attacker(
            target, ledger, THREAT, settings, pool=x, surrogates=(), journal=None, on_event=events.append
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
    reported = []
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
        reported.append((row.status, row.reason, ledger.entries["mine"].lost))
    assert reported == [("error", "KeyError: 'x'", False)] * 2


@pytest.mark.heavy
def test_an_audit_whose_search_was_lost_cannot_be_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    settings = AuditSettings(budget="quick", samples=56, workers=2, ignore=("transfer", "finite-differences"))
    label = api.audit(net, points, eps=0.05, settings=settings).report.verdict.label
    square = dataclasses.replace(SPECS["square"], run=killed(tmp_path, 99))
    quick = tuple(square if spec.name == "square" else spec for spec in battery(BUDGETS["quick"]))
    monkeypatch.setattr("maskaudit.auditing.catalogue.battery", lambda _effort: quick)
    verdict = api.audit(net, points, eps=0.05, settings=settings).report.verdict
    assert (label, verdict.label) == ("clear", "inconclusive")
    assert any("square" in reason and "signal 9" in reason for reason in verdict.reasons)


def test_no_worker_outlives_its_parent(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    def waits(*_: Any, **__: Any) -> Attempt:
        os.write(reported, struct.pack("<i", os.getpid()))
        time.sleep(600)
        raise AssertionError

    heard, reported = os.pipe()
    parent = os.fork()
    if not parent:
        with Target(net) as target:
            run(Processes(1), job(attack_of(waits), *points), target)
    (worker,) = struct.unpack("<i", os.read(heard, 4))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    os.close(reported)
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
    with pytest.raises((RuntimeError, NotImplementedError)):  # what may not be read cannot be settled
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
    "cuda afar": ({"ray": "auto", "device": "cuda"}, "among CPUs"),
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


class Lost(Exception):
    """What a cluster says of a task that never came back."""


class Crashed(Lost):
    """The same, where its worker ended."""


class Hung(Lost):
    """The same, where no one says anything."""


class StubRay(types.ModuleType):
    """A cluster of one CPU that pickles what it is given, as the real one does, and loses what it is told to lose."""

    def __init__(self, *losses: Lost) -> None:
        super().__init__("ray")
        self.losses, self.parcels, self.puts, self.connected = list(losses), 0, 0, False
        self.signs = ray_heartbeat.Signs()
        self.exceptions = types.SimpleNamespace(
            RayError=Lost, RayTaskError=KeyError, WorkerCrashedError=Crashed, OutOfMemoryError=Crashed
        )
        self.util = types.SimpleNamespace(scheduling_strategies=types.SimpleNamespace(
            NodeAffinitySchedulingStrategy=lambda node, soft: node
        ))  # fmt: skip
        self.loose: list[str] = []
        self.cloudpickle = types.SimpleNamespace(
            CloudPickler=pickle.Pickler, list_registry_pickle_by_value=lambda: set(self.loose),
            register_pickle_by_value=lambda module: self.loose.append(module.__name__),
            unregister_pickle_by_value=lambda module: self.loose.remove(module.__name__),
        )  # fmt: skip

    def init(self, address: str = "", **_: Any) -> None:
        if address not in ("", "auto"):
            raise ConnectionError("nobody there")
        self.connected = True

    def shutdown(self) -> None:
        self.connected = False

    def is_initialized(self) -> bool:
        return self.connected

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 1}, "NodeID": "abcdefghij", "NodeName": "10.0.0.7"}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def put(self, value: bytes) -> Place:
        self.puts += 1
        return Place(value)

    def get(self, value: Any, timeout: float = 0) -> Any:
        if isinstance(value, Exception):
            raise value
        return value.content if isinstance(value, Place) else pickle.loads(value)

    def get_runtime_context(self) -> Any:
        return types.SimpleNamespace(get_node_id=lambda: "abcdefghij")

    def wait(self, values: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        ready = [value for value in values if not isinstance(value, Hung)][:num_returns]
        return ready, [value for value in values if value not in ready]

    def cancel(self, value: Any, force: bool) -> None:
        pass

    def remote(self, **_: Any) -> Callable[[Any], Any]:
        return lambda what: types.SimpleNamespace(
            remote=functools.partial(self._actor if isinstance(what, type) else self._call, what)
        )

    def _actor(self, _: type) -> Any:
        methods = {
            name: functools.partial(self._call, getattr(self.signs, name)) for name in ("note", "forget", "last")
        }
        return types.SimpleNamespace(**{name: types.SimpleNamespace(remote=call) for name, call in methods.items()})

    def _call(self, function: Any, *given: Any) -> Any:
        if function is ray_node.work:
            self.parcels += 1
            if self.losses:
                self.signs.note(given[3], 1 if str(self.losses[-1]) == "in a call" else 0, "abcdefghij", 4711)
                return self.losses.pop()
        return pickle.dumps(function(*given))


class Place:
    """Where something lies in the store."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def hex(self) -> str:
        return str(id(self))


def stubbed(monkeypatch: pytest.MonkeyPatch, *losses: Lost) -> StubRay:
    stub = StubRay(*losses)
    monkeypatch.setitem(sys.modules, "ray", stub)
    return stub


def bare(target: Target, x: Tensor, y: Tensor, **_: Any) -> Attempt:
    raise KeyError("x")


def test_code_of_the_users_own_travels_by_value_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = stubbed(monkeypatch)
    packer = Packer(stub.cloudpickle, stub.put)
    monkeypatch.setitem(sys.modules, "another_name", sys.modules[__name__])
    mine = [module.__name__ for module in packer.modules()]
    assert mine.count(__name__) == 1
    assert not {"torch", "maskaudit.api", "__main__", "json"} & set(mine)
    stub.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # by the user
    assert __name__ not in [module.__name__ for module in packer.modules()]
    packer.whole(functools.partial(int))
    assert stub.loose == [__name__]


@pytest.mark.usefixtures("small_shards")
def test_ray_gives_what_one_process_gives(
    monkeypatch: pytest.MonkeyPatch, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    stub = stubbed(monkeypatch)
    with pytest.raises(UsageError, match="No Ray cluster answers at 'head:1'"):
        engine_for(AuditSettings(ray="head:1"))
    other = Target(net)
    with Target(net) as target, contextlib.closing(engine_for(AuditSettings(ray="auto"))) as engine:
        afar = run(engine, job(SPECS["pgd"], *points), target)
        spent = target.ledger.copy()
        assert (stub.parcels, stub.puts) == (3, 1), "three parcels, and one model for all of them"
        run(engine, job(attack_of(still), *points, surrogates=[other], pool=points[0]), target)
        assert (stub.parcels, stub.puts) == (6, 2), "the surrogate is the same model, the pool goes once"
        alone = job(attack_of(lambda target, x, y, **_: still(target, x, y)), *points)
        assert len(run(engine, alone, target).examples) == len(points[0])
        assert stub.parcels == 6, "what cannot travel runs here"
        with pytest.raises(TaskError, match="'x'"):
            run(engine, job(attack_of(bare), *points), target)
    assert not stub.connected
    with Target(net) as target:
        here = run(Local(), job(SPECS["pgd"], *points), target)
        assert target.ledger == spent
    assert torch.equal(afar.examples, here.examples)


@pytest.mark.parametrize("loss", [Lost, Crashed])
def test_ray_does_again_what_is_lost_and_gives_up_what_ends_every_worker(
    loss: type[Lost], monkeypatch: pytest.MonkeyPatch, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    most = CRASHES if loss is Crashed else LOSSES
    for losses in (most - 1, most):
        stub = stubbed(monkeypatch, *[loss("it died") for _ in range(losses)])
        engine = engine_for(AuditSettings(ray="local"))
        with Target(net) as target:
            if losses < most:
                assert torch.equal(run(engine, job(attack_of(still), *points), target).examples, points[0])
                assert target.ledger.forwards == len(points[0]), "what was lost is not counted"
            else:
                with pytest.raises(EngineError, match="it died"):
                    run(engine, job(attack_of(still), *points), target)
                assert target.ledger == PassLedger()
        assert stub.parcels == most


@pytest.mark.parametrize("where", ["in a call", "between two calls"])
def test_ray_ends_a_worker_that_hangs_and_gives_up_what_hangs_twice(
    where: str, monkeypatch: pytest.MonkeyPatch, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    monkeypatch.setattr(ray_engine, "BEAT", 0.01)
    monkeypatch.setattr(ray_heartbeat, "GRACE", 0.0)
    ended: list[int] = []
    monkeypatch.setattr(ray_engine, "end_process", ended.append)
    for times in (1, 2):
        stubbed(monkeypatch, *[Hung(where) for _ in range(times)])
        engine = engine_for(AuditSettings(ray="local", call_timeout=0.2))
        with Target(net) as target:
            if times == 1:
                assert torch.equal(run(engine, job(attack_of(still), *points), target).examples, points[0])
            else:
                with pytest.raises(ModelError, match=r"did not answer within 0 s; allow.*--call-timeout"):
                    run(engine, job(attack_of(still), *points), target)
    assert ended == [4711, 4711]


class Moments:
    """A clock by hand, for a watch over a cluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: float | None) -> None:
        self.now = 0.0
        monkeypatch.setattr("maskaudit.foreign.time.monotonic", lambda: self.now)
        self.watch = ray_heartbeat.ParcelWatch(limit)

    def late(self, seconds: int, number: int, **calls: tuple[int, int]) -> list[str]:
        """What is late after so many seconds of the same; for each parcel the number of its sign and its call."""
        signs = {name: ray_heartbeat.Sign(*pair, "node", 1) for name, pair in calls.items()}
        found = self.watch.late(number, signs)
        for _ in range(seconds):
            self.now += 1
            found = self.watch.late(number, signs)
        return found


def test_a_parcel_is_late_in_one_call_in_silence_and_where_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, silence = 10, 10 + int(ray_heartbeat.GRACE)
    assert Moments(monkeypatch, limit).late(limit + 1, 1, a=(1, 3), b=(1, 0)) == ["a"]
    assert Moments(monkeypatch, limit).late(silence + 1, 1, b=(1, 0)) == ["b"]
    assert Moments(monkeypatch, limit).late(silence + 1, 1) == [""]
    assert Moments(monkeypatch, limit).late(silence + 1, 0) == [], "no room in the cluster yet"
    assert Moments(monkeypatch, 0).late(10 * silence, 1, a=(1, 3)) == []
    moments = Moments(monkeypatch, None)
    assert moments.late(200, 1, a=(1, 3)) == []
    assert moments.late(1000, 1, a=(1, 5)) == [], "two hundred seconds had been seen"
    moments = Moments(monkeypatch, limit)
    moments.late(1, 1, a=(1, 3))
    moments.now += 3600
    assert moments.late(0, 1, a=(1, 3)) == [], "this process was suspended"


def test_ray_refuses_machines_that_differ_and_models_that_cannot_travel(
    monkeypatch: pytest.MonkeyPatch, net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    stubbed(monkeypatch)
    engine = engine_for(AuditSettings(ray="auto"))
    with Target(lambda x: net(x)) as target, pytest.raises(UnfitError, match="cannot be sent"):
        run(engine, job(attack_of(still), *points), target)
    here = machine()
    monkeypatch.setattr(ray_engine, "what_it_is", lambda: {**here, "processor": "x86_64 AVX9"})
    with pytest.raises(UsageError, match=r"node 10\.0\.0\.7 \(abcdefgh\) has processor x86_64 AVX9, and here it is"):
        engine_for(AuditSettings(ray="auto"))
    other = {**here, "torch": "1.0"}
    _, failed = ray_node.work(other, None, ray_engine.import_ray().remote()(ray_heartbeat.Signs).remote(), "x", [], [])
    assert failed is not None
    assert "results would differ" in failed[2]


@pytest.mark.parametrize(("tasks", "workers", "most"), [(3, 1, 1), (9, 1, 2), (78_125, 1000, 19), (10, 1000, 1)])
def test_parcels_leave_several_for_every_worker(tasks: int, workers: int, most: int) -> None:
    assert parcel_tasks(tasks, workers) == most
