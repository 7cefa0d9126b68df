"""An audit that is killed and resumed, or shared by workers, ends in the very report of one that is not."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.growth import state
from benchmarks.kills import differences
from maskaudit import api
from maskaudit.auditing.journal import Journal, Kept
from maskaudit.data import Dataset
from maskaudit.errors import InputError
from maskaudit.results import RUN_FIELDS, without_run_fields
from maskaudit.settings import AuditEvent, AuditSettings
from maskaudit.threat import ThreatModel

pytestmark = pytest.mark.heavy

SELECT = (
    "zero-gradient", "output-kind", "unbounded-attack", "pgd", "apgd-margin", "noise", "transfer", "square",
    "repaired",
)  # fmt: skip


class Coarse(nn.Module):
    """A linear model on rounded inputs; with `jitter` it answers at random."""

    def __init__(self, jitter: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.jitter = nn.Linear(6, 3), jitter

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head((x * 16).round() / 16)
        return scores + self.jitter * torch.randn_like(scores) if self.jitter else scores


def prepared(jitter: float = 0.0, surrogates: tuple[nn.Module, ...] = (), **settings: Any) -> api.Prepared:
    model = Coarse(jitter).eval()
    x = torch.rand(24, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        data = Dataset("in memory", x, model.head(x).argmax(1), 3, (0.0, 1.0), split="all")
    chosen = AuditSettings(**{"budget": "quick", "samples": 24, "select": SELECT, **settings})
    names = tuple(f"{number}.pt" for number in range(len(surrogates)))
    return api.Prepared(api.in_memory(model), data, ThreatModel("Linf", 0.1, (0.0, 1.0)), chosen, x, surrogates, names)


def killed_after(writes: int, out: Path, **settings: Any) -> int:
    """The exit status of an audit in a process of its own that kills itself once the journal has so many more entries;
    it leaves its report in `report.json`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        left, write = [writes], Journal.write

        def kills(journal: Journal, key: str, content: str, kept: Kept) -> None:
            write(journal, key, content, kept)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.write = kills  # type: ignore[method-assign]
        audit = api.run(prepared(**settings), out=out, resume=True)
        (out / "report.json").write_text(json.dumps(audit.report.to_dict()))
    except BaseException:
        os._exit(9)
    os._exit(0)


#: Jitter of the model, what runs, and after how many entries of the journal it is killed, again and again.
KILLED: dict[str, tuple[float, tuple[str, ...], tuple[int, ...]]] = {
    "certain": (0.0, SELECT, (2, 3, 2)),
    "random": (0.01, ("output-kind", "pgd", "noise"), (1, 2)),
}


@pytest.mark.parametrize("name", KILLED)
def test_kills_and_workers_leave_no_mark(name: str, tmp_path: Path) -> None:
    jitter, select, kills = KILLED[name]
    whole = without_run_fields(api.run(prepared(jitter, select=select)).report.to_dict())
    for writes in kills:
        assert killed_after(writes, tmp_path, jitter=jitter, select=select) == -signal.SIGKILL
    assert killed_after(999, tmp_path, jitter=jitter, select=select, workers=2) == 0
    resumed = without_run_fields(json.loads((tmp_path / "report.json").read_text()))
    assert list(differences(resumed, whole)) == []
    ran = {row["name"] for row in whole["attacks"] if row["status"] == "ran"}
    assert ran >= {"pgd", "repaired" if "repaired" in select else "noise"}
    assert whole["target"]["random"] is (jitter > 0)
    assert whole["timing"]["backwards"] > 0


#: Of how many points the model is asked at most to score the examples of an attack: those of all points, twice.
SCORED = 2 * 24

Watched = Callable[[api.Prepared, Path, bool], tuple[dict[str, Any], Counter[str]]]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Runs an audit; gives its report, and of how many points the model was asked from each step on to the next."""

    def run(audit: api.Prepared, out: Path, resume: bool) -> tuple[dict[str, Any], Counter[str]]:
        asked, step, forward = Counter[str](), ["before"], Coarse.forward

        def counted(model: Coarse, x: Tensor) -> Tensor:
            asked[step[0]] += len(x)
            return forward(model, x)

        def hear(event: AuditEvent) -> None:
            step[0] = f"after {event.step}" if event.finished else event.step

        with monkeypatch.context() as patch:
            patch.setattr(Coarse, "forward", counted)
            return api.run(audit, out=out, resume=resume, on_event=hear).report.to_dict(), asked

    return run


def test_a_finished_journal_saves_the_work_and_not_the_count(tmp_path: Path, watched: Watched) -> None:
    whole, first = watched(prepared(), tmp_path, False)
    again, second = watched(prepared(), tmp_path, True)
    assert list(differences(without_run_fields(again), without_run_fields(whole))) == []
    assert first["probes"] > 0
    assert second["probes"] == second["after output-kind"] == 0
    saved = {step for step in first if step in SELECT or step.startswith("repaired stage")} | {"unbounded"}
    assert saved >= {"unbounded", "pgd", "apgd-margin", "noise", "transfer", "square"}
    for step in saved:
        assert second[step] < first[step], step
        if step in SELECT:
            assert first[step] > SCORED >= second[step], step
    stages = [sum(asked[step] for step in saved if step not in SELECT) for asked in (first, second)]
    assert stages[1] < stages[0] / 2


def test_another_surrogate_is_refused_by_name(tmp_path: Path) -> None:
    mine, other = nn.Linear(6, 3), nn.Linear(6, 3)
    api.run(prepared(surrogates=(mine,), select=("pgd",)), out=tmp_path)
    with pytest.raises(InputError, match=r"--surrogate differs: 0\.pt \w+ then, 0\.pt \w+ now"):
        api.run(prepared(surrogates=(other,), select=("pgd",)), out=tmp_path, resume=True)
    with pytest.raises(InputError, match=r"--surrogate differs: 0\.pt \w+ then, none now"):
        api.run(prepared(select=("pgd",)), out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 1}, "--seed differs: 0 then, 1 now"),
        ({"samples": 20}, "--samples differs: 24 then, 20 now"),
        ({"mean": (0.1,)}, "--mean differs: None then"),
        ({"batch_size": 8}, "--batch-size differs: None then, 8 now"),
    ],
)
def test_other_settings_are_refused_by_name(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    before = prepared(select=("pgd",))
    Journal(tmp_path / ".journal", api.fingerprint(before), resume=False)
    with pytest.raises(InputError, match=re.escape(words)):
        api.run(prepared(select=("pgd",), **settings), out=tmp_path, resume=True)


def test_whatever_else_differs_is_refused_by_name(tmp_path: Path) -> None:
    audit = prepared(select=("pgd",))
    now = api.fingerprint(audit)
    assert {"the model", "--arch", "--data", "the threat model", "--surrogate", "--plan", "maskaudit"} < set(now)
    for name in now:
        Journal(tmp_path / ".journal", {**now, name: "other"}, resume=False)
        with pytest.raises(InputError, match=re.escape(f"{name} differs: other then")):
            api.run(audit, out=tmp_path, resume=True)


def test_one_changed_bit_of_the_data_is_another_audit() -> None:
    before = prepared()
    x = before.data.x.clone()
    x[0, 0], x[1, 0] = x[1, 0].clone(), x[0, 0].clone()  # every sum is what it was
    moved = dataclasses.replace(before, data=dataclasses.replace(before.data, x=x))
    first, second = api.fingerprint(before), api.fingerprint(moved)
    assert [name for name in first if first[name] != second[name]] == ["--data"]


def test_an_attack_with_other_settings_is_run_again(tmp_path: Path, watched: Watched) -> None:
    few = ("pgd", "square")
    first = watched(prepared(select=few), tmp_path, False)[1]
    again, asked = watched(prepared(select=(*few, "apgd-margin")), tmp_path, True)
    alone = api.run(prepared(select=(*few, "apgd-margin"))).report
    assert asked["apgd-margin"] > SCORED
    assert asked["square"] > SCORED, "it meets other points than before"
    assert first["pgd"] > SCORED >= asked["pgd"] > 0
    assert list(differences(without_run_fields(again), without_run_fields(alone.to_dict()))) == []


def test_only_how_it_was_run_is_left_out_of_comparisons() -> None:
    document = {"seconds": 1, "timing": {"total_seconds": 2, "forwards": 3}, "rows": [{"seconds": 4, "queries": 5}]}
    assert without_run_fields(document) == {"timing": {"forwards": 3}, "rows": [{"queries": 5}]}
    assert {"seconds", "total_seconds", "command", "memory", "peak_memory", "points_per_pass"} == RUN_FIELDS


def test_a_process_that_audits_again_and_again_does_not_grow(tmp_path: Path) -> None:
    held = []
    for number in range(5):
        api.run(prepared(samples=8, select=("pgd", "noise", "zero-gradient")), out=tmp_path / str(number))
        held.append(state())
    assert {(now.files, now.tensors, now.threads) for now in held[2:]} == {
        (held[1].files, held[1].tensors, held[1].threads)
    }
