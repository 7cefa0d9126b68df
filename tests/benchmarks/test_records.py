"""The file of finished runs, what is skipped on a rerun, and the hard time limit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records, running, verdict
from benchmarks.records import RecordFile, key_of, latest
from benchmarks.running import Job

JOB = Job("peer", "standard", "w", 0, "quick", "code", "gradient-alignment", 8)


def record(**changes: Any) -> dict[str, Any]:
    return {**vars(JOB), "status": "ran", **changes}


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "deep" / "runs.jsonl")
    assert file.read() == []
    file.append(record())
    file.append(record(seed=1))
    assert [r["seed"] for r in file.read()] == [0, 1]


def test_a_line_that_was_cut_off_is_left_out_and_replaced(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "runs.jsonl")
    file.append(record())
    with file.path.open("a") as handle:
        handle.write('{"kind": "pe')
    assert len(file.read()) == 1
    file.append(record(seed=1))
    assert [r["seed"] for r in file.read()] == [0, 1]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "runs.jsonl")
    file.path.write_text("nonsense\n{}\n")
    with pytest.raises(ValueError, match="Line 1"):
        file.read()


def test_the_newest_record_of_a_run_counts() -> None:
    old, new, other = record(code="old"), record(code="new", status="crash"), record(seed=1)
    assert latest([old, other, new]) == [other, new]
    assert latest([new, record(status="failed"), record(status="timeout")]) == [new]
    assert latest([record(status="failed"), new]) == [new]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, False), ({"status": "crash"}, False), ({"status": "failed"}, False),
        ({"status": "timeout"}, True), ({"status": "unavailable"}, True),
        ({"weights": "other"}, True), ({"code": "older"}, True), ({"budget": "standard"}, True),
        ({"points": 4}, True), ({"seed": 1}, True), ({"peer": "binarization"}, True),
    ],
)  # fmt: skip
def test_a_rerun_skips_what_is_there(change: dict[str, Any], again: bool) -> None:
    assert verdict.missing([JOB], [record(**change)]) == ([JOB] if again else [])
    assert key_of(vars(JOB)) == key_of(record())


def test_the_digest_follows_the_rooms_that_decide_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROOT", tmp_path)
    for name in ("maskaudit/verdict/rules.py", "maskaudit/threat/a.py", "maskaudit/report/html.py", "maskaudit/cli.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    before = records.sources_digest(*verdict.AUDIT_SOURCES)
    for name in ("maskaudit/report/html.py", "maskaudit/cli.py"):
        (tmp_path / name).write_text("a = 2\n")
    assert records.sources_digest(*verdict.AUDIT_SOURCES) == before
    for name in ("maskaudit/verdict/rules.py", "maskaudit/threat/a.py"):
        (tmp_path / name).write_text("a = 2\n")
        changed = records.sources_digest(*verdict.AUDIT_SOURCES)
        assert changed != before
        before = changed


def test_what_says_nothing_to_python_leaves_the_digest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROOT", tmp_path)
    file, ray = tmp_path / "room/a.py", tmp_path / "room/ray.py"
    file.parent.mkdir()
    ray.write_text("b = 1\n")
    file.write_text('"""Text."""\n\ndef f(x):\n    """Twice."""\n    return 2 * x  # why\n')
    before = records.sources_digest("room", but=["room/ray.py"])
    ray.write_text("b = 2\n")
    file.write_text('"""Other."""\n\n\ndef f(x):\n    return (2 * x)\n\n"""And more."""\n')
    assert records.sources_digest("room", but=["room/ray.py"]) == before
    file.write_text("def f(x):\n    return 3 * x\n")
    assert records.sources_digest("room", but=["room/ray.py"]) != before


def test_what_decides_nothing_is_there() -> None:
    assert all((records.ROOT / name).is_file() for name in records.UNDECIDING)


def test_every_room_either_decides_verdicts_or_does_not() -> None:
    only_ask_and_show = {
        "__init__.py", "__main__.py", "api.py", "cli.py", "command", "declared", "errors.py", "files.py", "foreign.py",
        "gate", "loading", "pytest_plugin.py", "report", "results.py", "sources.py", "train",
    }  # fmt: skip
    rooms = {path.name for path in (records.ROOT / "maskaudit").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__pycache__"} == only_ask_and_show | set(records.DECIDING)


def test_a_table_names_the_commits_of_its_figures() -> None:
    assert records.figures_of(["a", None, "b", "a"]) == "Figures of commits a, b."
    assert records.figures_of(["a"]) == "Figures of commit a."
    assert records.figures_of([""]) == "Figures of commit unknown."


def test_what_is_archived_is_read_first_and_goes_on_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "ARCHIVE", tmp_path / "records.zip")
    path, other = tmp_path / "runs.jsonl", tmp_path / "others.jsonl"
    RecordFile(path).append(record(seconds=1.0))
    RecordFile(path).append(record(seconds=2.0))
    RecordFile(other).append({"key": "a"})
    RecordFile(other).append({"key": "b"})
    records.archive([path, other])
    assert not path.exists()
    assert [r["seconds"] for r in RecordFile(path).read()] == [2.0]
    assert RecordFile(other).read() == [{"key": "a"}, {"key": "b"}]
    again, content = RecordFile(path), (tmp_path / "records.zip").read_bytes()
    again.append(record(seconds=3.0))
    assert [r["seconds"] for r in again.read()] == [2.0, 3.0]
    records.archive([other])
    assert (tmp_path / "records.zip").read_bytes() == content


def _hangs(job: Job) -> dict[str, Any]:
    time.sleep(60)
    return {}


def _raises(job: Job) -> dict[str, Any]:
    raise IndexError("index 9 is out of bounds")


def _ends(job: Job) -> dict[str, Any]:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("does", "limit", "status", "reason"),
    [
        (_hangs, 0.2, "timeout", "not finished after 0.2 s"),
        (_raises, 30, "crash", "IndexError: index 9 is out of bounds"),
        (_ends, 30, "crash", "ended without an answer"),
    ],
)
def test_a_run_that_hangs_or_breaks_is_a_record(
    does: Any, limit: float, status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing

    monkeypatch.setattr(running, "perform", does)  # a forked child sees it
    found = running.run_limited(JOB, limit, multiprocessing.get_context("fork"))
    assert (found["status"], found["model"]) == (status, "standard")
    assert reason in found["reason"]


def test_a_real_peer_leaves_a_whole_record(zoo_cache: Path) -> None:
    found = running.perform(JOB)
    assert found["status"] == "ran"
    assert found["forwards"] == found["backwards"] == 8 * 5  # the clean points and four draws of noise
    assert found["indicators"] == {"low alignment": False}
    assert len(found["index"]) == 8


def test_a_peer_that_attacks_is_scored_on_the_model(zoo_cache: Path) -> None:
    pytest.importorskip("torchattacks")
    found = running.perform(Job("peer", "standard", "w", 0, "quick", "code", "torchattacks-autoattack", 8))
    assert len(found["unbroken"]) == 8
    assert sum(found["unbroken"]) <= 1  # it breaks a standard network nearly everywhere
