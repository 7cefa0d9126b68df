"""Resuming: what is reused, what is not, and what a damaged or full disk does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from maskaudit import api
from maskaudit import journal as module
from maskaudit.attacks.interface import Attempt
from maskaudit.errors import InputError
from maskaudit.journal import Journal

ROWS = torch.tensor([0, 2, 5])
ATTEMPT = Attempt(torch.rand(3, 1, 2, 2), torch.tensor([4, -1, 9]), torch.tensor([4, 50, 9]))
PRINT = {"model": "abc", "eps": 0.1}


def journal(tmp_path: Path, *, resume: bool = True, **changes: object) -> Journal:
    return Journal(tmp_path / "out" / ".journal", {**PRINT, **changes}, resume=resume)


def test_a_finished_attempt_comes_back_bit_for_bit(tmp_path: Path) -> None:
    journal(tmp_path).write("200-square", ROWS, ATTEMPT)
    again = journal(tmp_path).read("200-square", ROWS)
    assert again is not None
    for name in ("examples", "first_success", "queries"):
        assert torch.equal(getattr(again, name), getattr(ATTEMPT, name))


def test_other_points_or_another_attack_are_not_reused(tmp_path: Path) -> None:
    one = journal(tmp_path)
    one.write("200-square", ROWS, ATTEMPT)
    assert one.read("200-square", ROWS.flip(0)) is None
    assert one.read("200-square", ROWS[:2]) is None
    assert one.read("400-square", ROWS) is None


def test_resuming_another_audit_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    journal(tmp_path).write("a", ROWS, ATTEMPT)
    with pytest.raises(InputError, match=r"another model, data or settings.*--resume"):
        journal(tmp_path, eps=0.2)
    assert journal(tmp_path).read("a", ROWS) is not None


def test_without_resume_one_starts_afresh(tmp_path: Path) -> None:
    journal(tmp_path).write("a", ROWS, ATTEMPT)
    assert journal(tmp_path, resume=False).read("a", ROWS) is None


def test_attempts_of_unknown_origin_are_not_reused(tmp_path: Path) -> None:
    journal(tmp_path).write("a", ROWS, ATTEMPT)
    (tmp_path / "out" / ".journal" / "fingerprint").unlink()
    assert journal(tmp_path).read("a", ROWS) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_attempt_is_made_again(tmp_path: Path, damage: str) -> None:
    one = journal(tmp_path)
    one.write("a", ROWS, ATTEMPT)
    (path,) = (tmp_path / "out" / ".journal").glob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[:-3], "empty": b"", "foreign": module.save({"other": torch.zeros(1)})}[damage]
    )
    assert one.read("a", ROWS) is None


def test_a_full_disk_costs_the_journal_not_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = journal(tmp_path)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    one.write("a", ROWS, ATTEMPT)
    assert one.read("a", ROWS) is None


def test_an_interrupted_write_keeps_the_old_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = journal(tmp_path)
    one.write("a", ROWS, ATTEMPT)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        one.write("a", ROWS, Attempt(ATTEMPT.examples + 1, ATTEMPT.first_success, ATTEMPT.queries))
    kept = one.read("a", ROWS)
    assert kept is not None
    assert torch.equal(kept.examples, ATTEMPT.examples)


@pytest.mark.parametrize("key", ["../../escape", "torchattacks:PGD", "/etc/x", "a b"])
def test_keys_stay_in_the_folder(tmp_path: Path, key: str) -> None:
    one = journal(tmp_path)
    one.write(key, ROWS, ATTEMPT)
    assert one.read(key, ROWS) is not None
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path / "out" / ".journal"}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        journal(tmp_path)


def test_it_is_removed_when_the_reports_are_safe(tmp_path: Path) -> None:
    journal(tmp_path).write("a", ROWS, ATTEMPT)
    api.discard_journal(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    api.discard_journal(tmp_path / "out")
