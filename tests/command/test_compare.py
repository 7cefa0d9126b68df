"""Comparing two audits: what changed, paired where the points are the same, refused where the data are not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maskaudit.cli import cli
from maskaudit.command.compare import compare, text
from maskaudit.errors import InputError
from maskaudit.report.lines import WIDTH
from maskaudit.verdict.statistics import mcnemar

from ..report import sample

Document = dict[str, Any]


def report(lost: dict[str, range], *, points: range = range(100), wrong: range = range(0)) -> Document:
    """A clear report over `points`, in which each attack of `lost` broke a range of points."""
    document = sample.clear().to_dict()
    n = len(points)
    document["points"] = {
        "index": list(points),
        "label": [i % 10 for i in points],
        "correct": [i not in wrong for i in points],
        "broken_by": [[name for name, broken in lost.items() if i in broken] for i in points],
    }
    for row in document["attacks"]:
        if row["status"] == "ran":
            row["attempted"] = sum(i not in wrong for i in points)
    unbroken = sum(i not in wrong and not any(i in broken for broken in lost.values()) for i in points)
    document["accuracy"]["best_known"] = {"value": unbroken / n, "low": 0.0, "high": 1.0, "n": n}
    return document


def test_what_changed_between_masked_and_clear() -> None:
    found = compare(sample.masked().to_dict(), sample.clear().to_dict())
    assert (found["a"]["verdict"], found["b"]["verdict"]) == ("masked", "clear")
    assert found["a"]["claim"] == {"claimed": 0.7, "status": "refuted"}
    assert found["mechanisms"] == {"gone": ["logit-scale"], "new": []}
    changed = {one["rule"]: (one["a"], one["b"]) for one in found["probes"]}
    rules = ("loss-decision-gradient-ratio", "unbounded-attack", "zero-gradient")
    assert changed == dict.fromkeys(rules, ("finding", "pass"))
    assert found["accuracy"]["reference"]["a"]["value"] == pytest.approx(0.715)
    assert found["accuracy"]["certified"]["a"] is None
    shown = text(found)
    assert "verdict    masked -> clear" in shown
    assert "claim      70.0% refuted -> none" in shown
    assert "72.4% of points -> 1.0% of points" in shown
    assert max(map(len, shown.splitlines())) <= WIDTH


def test_paired_figures_are_those_of_mcnemar() -> None:
    a, b = report({"square": range(10, 30)}, wrong=range(5)), report({"square": range(20, 70)}, wrong=range(5))
    best = compare(a, b)["best_known"]
    assert (best["lost_only_by_a"], best["lost_only_by_b"], best["n"]) == (10, 40, 100)
    assert (best["a"], best["b"]) == (pytest.approx(0.75), pytest.approx(0.45))
    assert best["p"] == pytest.approx(2 * mcnemar(40, 10))
    assert "B is broken more" in text(compare(a, b))
    mirrored = compare(b, a)["best_known"]
    assert (mirrored["lost_only_by_a"], mirrored["p"]) == (40, best["p"])


def test_attacks_are_compared_one_by_one_with_holm() -> None:
    a = report({"square": range(0), "noise": range(3)})
    b = report({"square": range(40), "noise": range(3)})
    b["attacks"] = [row for row in b["attacks"] if row["name"] != "decision"]
    a["attacks"] = [row for row in a["attacks"] if row["name"] != "apgd-dlr"]
    found = compare(a, b)["attacks"]
    assert (found["only_a"], found["only_b"]) == (["decision"], ["apgd-dlr"])
    tests = {test["name"]: test for test in found["common"]}
    assert tests["square"]["lost_only_by_b"] == 40
    assert tests["noise"]["p_holm"] == 1.0
    assert tests["square"]["p"] < tests["square"]["p_holm"] <= len(tests) * tests["square"]["p"] * (1 + 1e-9)


def test_attacks_on_a_sample_are_not_paired() -> None:
    a, b = report({"square": range(10)}), report({"square": range(10)})
    next(row for row in b["attacks"] if row["name"] == "square")["attempted"] = 16
    assert "square" not in [test["name"] for test in compare(a, b)["attacks"]["common"]]


def test_the_same_audit_has_no_difference() -> None:
    document = report({"square": range(10)})
    found = compare(document, copy.deepcopy(document))
    assert found["settings"] == found["probes"] == []
    assert found["best_known"]["p"] == 1.0
    assert any("same model" in note for note in found["notes"])
    assert "verdict    clear in both" in text(found)


def test_settings_and_threat_that_differ_are_named() -> None:
    a, b = report({}), report({})
    b["settings"]["budget"] = "thorough"
    b["threat"]["eps"] = 0.1
    found = compare(a, b)
    assert found["settings"] == [
        {"name": "eps", "a": 0.2, "b": 0.1},
        {"name": "budget", "a": "standard", "b": "thorough"},
    ]
    assert any("threat models differ" in note for note in found["notes"])


def test_overlapping_points_are_paired_on_what_they_share() -> None:
    found = compare(report({}, points=range(100)), report({"square": range(60, 100)}, points=range(50, 150)))
    assert found["points"] == {"common": 50, "only_a": 50, "only_b": 50}
    assert (found["best_known"]["n"], found["best_known"]["lost_only_by_b"]) == (50, 40)
    assert any("share 50 points" in note for note in found["notes"])


def test_other_points_are_compared_unpaired_and_it_says_so() -> None:
    a, b = report({}, points=range(100)), report({"square": range(200)}, points=range(100, 200))
    found = compare(a, b)
    assert found["paired"] is False
    assert found["best_known"]["test"] == "fisher"
    assert found["best_known"]["p"] < 1e-9
    assert any("unpaired" in note for note in found["notes"])
    assert "Unpaired" in text(found)


def test_different_data_are_refused() -> None:
    a, b = report({}), report({})
    b["settings"]["data"] = "other.npz"
    with pytest.raises(InputError, match=r"different data \(data: digits and other.npz\)"):
        compare(a, b)
    b = report({})
    b["points"]["label"][3] = 9
    with pytest.raises(InputError, match="other labels"):
        compare(a, b)


@pytest.mark.parametrize("damage", [{"index": [1, 2]}, {"index": [1] * 100}, {"index": ["x"] * 100}])
def test_damaged_points_are_refused(damage: Document) -> None:
    a, b = report({}), report({})
    b["points"].update(damage)
    with pytest.raises(InputError, match="damaged"):
        compare(a, b)


def test_little_and_hostile_documents() -> None:
    found = compare(sample.inconclusive().to_dict(), sample.masked().to_dict())
    assert found["best_known"] is None
    assert text(found)
    shown = text(compare(sample.hostile(), sample.hostile()))
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "audit.json").write_text(sample.masked().to_json(), encoding="utf-8")
    (tmp_path / "b.json").write_text(sample.clear().to_json(), encoding="utf-8")
    files = [str(tmp_path / "a"), str(tmp_path / "b.json")]
    plain = CliRunner().invoke(cli, ["compare", *files])
    assert plain.exit_code == 0
    assert plain.stdout.startswith("A  maskaudit-out/gre_at_ce.safetensors")
    document = json.loads(CliRunner().invoke(cli, ["compare", *files, "--json"]).stdout)
    assert document["kind"] == "comparison"
    assert document["a"]["verdict"] == "masked"
    missing = CliRunner().invoke(cli, ["compare", files[0], str(tmp_path / "none.json")])
    assert isinstance(missing.exception, InputError)
