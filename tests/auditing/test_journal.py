"""Resuming: what is reused, what is not, and what a damaged or full disk does."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.attacks.interface import AttackSpec, Attempt
from maskaudit.attacks.pgd import pgd
from maskaudit.auditing import journal as module
from maskaudit.auditing.catalogue import catalogue
from maskaudit.auditing.digest import IndescribableError, content_digest, program_digest
from maskaudit.auditing.engine.interface import Job
from maskaudit.auditing.journal import Journal, Kept
from maskaudit.errors import InputError
from maskaudit.probes.interface import Measurement, Probe, ProbeContext
from maskaudit.probes.run import ProbeTask
from maskaudit.results import Location, ProbeFinding
from maskaudit.rng import PointRNG
from maskaudit.settings import BUDGETS
from maskaudit.settings.plan import Stage
from maskaudit.target import PassLedger, Target
from maskaudit.threat import ThreatModel

TENSORS = {"examples": torch.rand(3, 1, 2, 2), "first_success": torch.tensor([4, -1, 9])}
KEPT = Kept(TENSORS, PassLedger(7, 5), 1.25, {"value": 0.1 + 0.2, "odd": float("inf")})
PRINT: dict[str, str | int | float | None] = {"the model": "abc", "--eps": 0.1, "--surrogate": "a.pt 3fa2"}


def journal(tmp_path: Path, *, resume: bool = True, **changes: str | int | float | None) -> Journal:
    return Journal(tmp_path / "out" / ".journal", {**PRINT, **changes}, resume=resume)


def test_finished_work_comes_back_bit_for_bit(tmp_path: Path) -> None:
    journal(tmp_path).write("200-square", "content", KEPT)
    again = journal(tmp_path).read("200-square", "content")
    assert again is not None
    assert again.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(again.tensors[name], TENSORS[name]) for name in TENSORS)
    assert (again.spent, again.seconds, again.plain) == (KEPT.spent, KEPT.seconds, KEPT.plain)


def test_an_attack_may_return_one_tensor_twice(tmp_path: Path) -> None:
    counts = torch.ones(3, dtype=torch.int64)
    one = journal(tmp_path)
    one.write("a", "content", dataclasses.replace(KEPT, tensors={"first_success": counts, "queries": counts}))
    kept = one.read("a", "content")
    assert kept is not None
    assert torch.equal(kept.tensors["queries"], counts)


def test_work_of_other_content_or_name_is_not_reused(tmp_path: Path) -> None:
    one = journal(tmp_path)
    one.write("200-square", "content", KEPT)
    assert one.read("200-square", "another") is None
    assert one.read("400-square", "content") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--eps": 0.2}, r"--eps differs: 0.1 then, 0.2 now"),
        ({"--surrogate": "b.pt 77aa"}, r"--surrogate differs: a.pt 3fa2 then, b.pt 77aa now"),
        ({"the model": "x", "--seed": 1}, r"the model differs: abc then, x now; --seed differs: unknown then, 1 now"),
    ],
)
def test_resuming_another_audit_is_refused_by_name_and_loses_nothing(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    journal(tmp_path).write("a", "content", KEPT)
    with pytest.raises(InputError, match=rf"another model, data or settings \({words}\).*--resume"):
        journal(tmp_path, **changes)
    assert journal(tmp_path).read("a", "content") is not None


@pytest.mark.parametrize(
    "stamp", [b"", b"{", b"[1]", b"3fa2" * 16, b'{"--eps": {"x": 1}}', b"[" * 100_000, b"\xff\xfe"]
)
def test_a_damaged_fingerprint_is_another_audit(tmp_path: Path, stamp: bytes) -> None:
    journal(tmp_path)
    (tmp_path / "out" / ".journal" / "fingerprint").write_bytes(stamp)
    with pytest.raises(InputError, match=r"--eps differs: un(known|readable) then, 0.1 now"):
        journal(tmp_path)


def test_without_resume_one_starts_afresh(tmp_path: Path) -> None:
    journal(tmp_path).write("a", "content", KEPT)
    assert journal(tmp_path, resume=False).read("a", "content") is None


def test_work_of_unknown_origin_is_not_reused(tmp_path: Path) -> None:
    journal(tmp_path).write("a", "content", KEPT)
    (tmp_path / "out" / ".journal" / "fingerprint").unlink()
    assert journal(tmp_path).read("a", "content") is None


def _recorded(**changes: object) -> bytes:
    record = {"content": "content", "forwards": 1, "backwards": 1, "seconds": 1.0, "plain": {}, **changes}
    return saved({"record": torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)})


def saved(tensors: dict[str, Tensor]) -> bytes:
    return module.sealed(module.save(tensors))


DAMAGE = {
    "endless passes": lambda _: _recorded(forwards=math.inf),
    "endless seconds": lambda _: _recorded(seconds=10**400),
    "truncated": lambda content: content[:-3],
    "one bit of an example": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "empty": lambda _: b"",
    "foreign": lambda _: saved({"other": torch.zeros(1)}),
    "no record": lambda _: saved({"record": torch.zeros(2, 2)}),
    "deep record": lambda _: saved({"record": torch.full((100_000,), ord("["), dtype=torch.uint8)}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_work_is_done_again(tmp_path: Path, damage: Any) -> None:
    one = journal(tmp_path)
    one.write("a", "content", KEPT)
    (path,) = (tmp_path / "out" / ".journal").glob("*.entry")
    path.write_bytes(damage(path.read_bytes()))
    assert one.read("a", "content") is None


def test_a_full_disk_costs_the_journal_not_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = journal(tmp_path)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    one.write("a", "content", KEPT)
    assert one.read("a", "content") is None


def test_an_interrupted_write_keeps_the_old_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = journal(tmp_path)
    one.write("a", "content", KEPT)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        one.write("a", "content", dataclasses.replace(KEPT, seconds=9.0))
    kept = one.read("a", "content")
    assert kept is not None
    assert kept.seconds == KEPT.seconds


@pytest.mark.parametrize("key", ["../../escape", "torchattacks:PGD", "/etc/x", "a b"])
def test_keys_stay_in_the_folder(tmp_path: Path, key: str) -> None:
    one = journal(tmp_path)
    one.write(key, "content", KEPT)
    assert one.read(key, "content") is not None
    assert {path.parent for path in tmp_path.rglob("*.entry")} == {tmp_path / "out" / ".journal"}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        journal(tmp_path)


def test_it_is_removed_when_the_reports_are_safe(tmp_path: Path) -> None:
    journal(tmp_path).write("a", "content", KEPT)
    api.discard_journal(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    api.discard_journal(tmp_path / "out")


# --- what an attempt depends on -------------------------------------------------------------------

X, Y = torch.rand(4, 6), torch.tensor([0, 1, 0, 1])
RNG = PointRNG.create(0, "mine", torch.arange(4))
SPEC = AttackSpec("mine", "", "gradient", "strong", pgd, {"steps": 3})


def surrogate(seed: int, **settings: Any) -> Target:
    torch.manual_seed(seed)
    return Target(nn.Linear(6, 2), **settings)


def work(**changes: Any) -> str:
    settings = {"pool": X, "stage": Stage(), "surrogates": [surrogate(0)]} | changes.pop("settings", {})
    return content_digest(dataclasses.replace(Job(SPEC, X, Y, ThreatModel(), RNG, settings, {"starts": X}), **changes))


CHANGES: dict[str, dict[str, Any]] = {
    "points": {"x": X + 1e-7},
    "labels": {"y": 1 - Y},
    "type": {"x": X.double()},
    "threat model": {"threat": ThreatModel(eps=0.1)},
    "random numbers": {"rng": PointRNG.create(1, "mine", torch.arange(4))},
    "starts": {"per_point": {"starts": X + 1e-7}},
    "attack": {"spec": dataclasses.replace(SPEC, run=functools.partial(pgd, loss="ce"))},
    "pool": {"settings": {"pool": X[:3]}},
    "stage of the plan": {"settings": {"stage": Stage(steps=51)}},
    "weights of a surrogate": {"settings": {"surrogates": [surrogate(1)]}},
    "another surrogate": {"settings": {"surrogates": [surrogate(0), surrogate(0)]}},
    "how a surrogate is asked": {"settings": {"surrogates": [surrogate(0, mean=(0.5,))]}},
    "a setting": {"settings": {"steps": 4}},
    "its kind": {"settings": {"steps": 4.0}},
}


def test_the_same_work_has_the_same_content() -> None:
    assert work() == work()
    assert len({work(), *(work(**change) for change in CHANGES.values())}) == 1 + len(CHANGES)


@pytest.mark.parametrize("value", [lambda: 0, object(), functools.partial(lambda: 0), {"deep": [object()]}])
def test_what_cannot_be_described_has_no_content(value: object) -> None:
    with pytest.raises(IndescribableError):
        content_digest(value)


def test_an_attempt_on_other_points_is_not_taken() -> None:
    never = torch.full((4,), -1)
    job = Job(SPEC, X, Y, ThreatModel(), RNG, {})
    tensors, plain = job.packed(Attempt(X, never, never))
    assert torch.equal(job.unpacked(tensors, plain).examples, X)
    for wrong in ({"examples": X[:3]}, {"examples": X.double()}, {"queries": never[:2]}, {"first_success": X[:, 0]}):
        with pytest.raises(ValueError, match="other points"):
            job.unpacked({**tensors, **wrong}, plain)


def measures(context: ProbeContext) -> Measurement:
    drawn = float(torch.rand(()))
    return Measurement(
        drawn, "share", len(context.x), 3, (ProbeFinding("here", Location("net", "relu", "f.py", 3)),),
        {"scales": [0.25, 1.0]}, (0.1, float("nan")),
    )  # fmt: skip


def test_the_probes_and_attacks_of_the_catalogue_can_be_described() -> None:
    known = catalogue(BUDGETS["quick"])
    contents = {content_digest(item) for item in (*known.probes, *known.attacks)}
    assert len(contents) == len(known.probes) + len(known.attacks)


def test_a_probe_gives_the_same_whatever_was_drawn_before_and_comes_back_whole(tmp_path: Path) -> None:
    probe = Probe("mine", "Mine", frozenset(), measures, ("Somebody 2020",))
    task = ProbeTask(probe, X, Y, ThreatModel(), RNG)
    with Target(nn.Linear(6, 2)) as target:
        first = task.run(target)
        torch.rand(3)
        again = task.run(target)
    assert dataclasses.replace(again, seconds=first.seconds) == first
    one = journal(tmp_path)
    one.write("probe", "content", Kept({}, PassLedger(), 0.5, task.packed(first)[1]))
    kept = one.read("probe", "content")
    assert kept is not None
    assert task.unpacked(kept.tensors, kept.plain) == first


def test_tensors_of_any_layout_are_described() -> None:
    square: Tensor = torch.arange(6.0).view(2, 3)
    assert content_digest(square.T) == content_digest(square.T.contiguous())
    assert content_digest(torch.tensor(True)) != content_digest(torch.tensor(1, dtype=torch.uint8))


def test_the_program_is_all_of_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("maskaudit.auditing.digest.content_digest", lambda sources: str(seen.append(sources)))
    program_digest.__wrapped__()
    names = {name for name, _ in seen[0]}
    assert {"attacks/pgd.py", "auditing/digest.py", "target/model.py", "rng.py"} <= names
