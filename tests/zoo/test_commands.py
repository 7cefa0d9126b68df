"""`maskaudit zoo`: list, train, check, truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maskaudit import zoo
from maskaudit.cli import cli
from maskaudit.command import zoo as commands
from maskaudit.zoo.establish import Subject
from maskaudit.zoo.truth import Truth, read_truths, truth_of
from tests.zoo.test_truth import record


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["zoo", *arguments])


def test_the_list_names_truth_and_cause_of_every_model() -> None:
    lines = call("list").output.splitlines()
    assert len(lines) == len(zoo.ZOO) + 1
    row = next(line for line in lines if line.startswith("quantised "))
    assert row.split()[:3] == ["quantised", "digits", "masked"]
    assert "shattered" in row
    assert "root: round" in row
    known = truth_of("quantised")
    assert known is not None
    assert f"{known.best_known:.3f}" in row


def test_the_list_as_json() -> None:
    rows = json.loads(call("list", "--json").output)
    assert [row["name"] for row in rows] == list(zoo.ZOO)
    row = next(row for row in rows if row["name"] == "logits-x1e4")
    assert (row["masked"], row["level"], row["mechanisms"], row["part"]) == (True, "loss", ["logit-scale"], "tune")
    assert row["truth"]["best_known"] <= row["truth"]["clean"]


def test_a_network_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def network(key: str) -> None:
        trained.append(key)

    monkeypatch.setattr(commands, "network", network)
    monkeypatch.setattr(commands, "cache_path", lambda key: tmp_path / ("there" if key == "pgd-at" else key))
    (tmp_path / "there").touch()
    result = call("train", "quantised", "standard", "pgd-at-x100")
    assert result.exit_code == 0
    assert trained == ["standard", "pgd-at"]
    assert "1 of 2  standard trained" in result.output
    assert "2 of 2  pgd-at was in the cache" in result.output


@pytest.mark.parametrize("verb", ["train", "check", "truth"])
def test_an_unknown_name_is_refused(verb: str) -> None:
    result = call(verb, "nonsense")
    assert result.exit_code != 0
    assert "zoo list" in str(result.exception)


def test_a_check_is_right_or_says_what_is_wrong(zoo_cache: Path) -> None:
    result = call("check", "standard", "--budget", "quick")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("right  standard")


def test_a_wrong_verdict_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {
        "verdict": {"label": "clear", "mechanisms": []},
        "accuracy": {key: {"value": 0.9} for key in ("clean", "reference", "best_known")},
        "masking": {"gradient_level": {"value": 0.0}, "loss_level": {"value": 0.0}},
        "settings": {"samples": 10}, "timing": {"total_seconds": 1.0},
        "points": {"index": list(range(10)), "correct": [True] * 10, "broken_by": [[]] * 10}, "target": {"sha256": ""},
    }  # fmt: skip
    monkeypatch.setattr(commands, "audit_entry", lambda entry, settings: document)
    monkeypatch.setattr(commands, "truth_of", lambda name: record(name))
    result = call("check", "quantised")
    assert result.exit_code == 1
    assert result.output.startswith("WRONG (label, best known)  quantised")


def test_truth_is_established_once_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo_cache: Path
) -> None:
    path = tmp_path / "truth.json"
    established: list[str] = []

    def establish(one: Subject) -> Truth:
        established.append(one.entry.name)
        return record(one.entry.name, recipe=one.recipe)

    monkeypatch.setattr(commands, "establish", establish)
    assert call("truth", "quantised", "--out", str(path)).exit_code == 0
    second = call("truth", "quantised", "hard-labels", "--out", str(path))
    assert established == ["quantised", "hard-labels"]
    assert "unchanged" in second.output.splitlines()[0]
    assert sorted(read_truths(path)) == ["hard-labels", "quantised"]


def test_truth_says_where_an_entry_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo_cache: Path) -> None:
    monkeypatch.setattr(commands, "establish", lambda one: record(one.entry.name, recipe=one.recipe))
    result = call("truth", "standard", "--out", str(tmp_path / "truth.json"))
    assert "standard is entered as not masked; measured" in result.output
