"""The page and the text of `maskaudit inspect`: every finding shown, well formed, deaf to what a model is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maskaudit.cli import cli
from maskaudit.report.inspection import FORMATS, PAGE_ROWS, TEXT_ROWS, html, place, text

from .test_html import Page

HOSTILE = '<script>alert(1)</script>"\x1b[31m&'


def location(module: str = "front", op: str = "round", line: int | None = 3) -> dict[str, Any]:
    return {"module": module, "op": op, "file": "models/net.py" if line else None, "line": line}


def row(name: str, blamed: bool = False) -> dict[str, Any]:
    return {"location": location(name), "blamed": blamed, "index": 0, "points": 8, "norm_in": 1.0, "norm_out": 0.0,
            "zero_share": 0.25, "nonfinite_share": 0.0, "blocked_share": None}  # fmt: skip


def inspection(name: str = "front", rows: int = 3) -> dict[str, Any]:
    """A document with something in every section; all names of the model are `name`."""
    where = location(name)
    return {
        "schema_version": 1, "tool": "maskaudit 1", "source": name, "format": "state dict", "sha256": "0" * 64,
        "notes": [], "threat": {"norm": "Linf", "eps": 0.2, "bounds": [0, 1]}, "kind": "module", "points": 16,
        "output_kind": "logits", "ops": rows, "sentence": f"Suspect: shattered in {name}.",
        "gradient": {"connected": False, "zero_share": 1.0, "ce_zero_share": 0.5, "agreement": [[0.05, 0.5]],
                     "pairs": [8]},
        "culprits": [{"mechanism": "shattered", "location": where, "confidence": "high", "sentence": f"{name} stops."}],
        "repairs": [{"remedy": "straight-through", "location": where, "sentence": "Pass it on."}],
        "flow": [row(name, blamed=i == 0) for i in range(rows)],
        "cuts": [{"location": where, "op": 1, "revived": True, "sentence": "detach drops it"}],
        "estimators": [where],
        "functions": [{"name": name, "location": where, "agreement": 0.1, "kind": "lying", "smooth": True}],
        "randomness": {"sources": ["torch"], "location": where, "logit_spread": 1.5, "flips": 0.25},
        "optimises": [where], "batch_dependent": where,
        "forks": [{"join": where, "branches": ["mixed.b1", "mixed.b5"], "unnamed": 1}],
    }  # fmt: skip


SECTIONS = ("Suspects", "Would be repaired", "Cuts", "Straight-through estimators", "Custom backward functions",
            "Randomness", "Optimisation inside the forward pass", "Depends on the rest of the batch")  # fmt: skip


@pytest.mark.parametrize("render", [html, text])
def test_everything_found_is_shown(render: Any) -> None:
    shown = render(inspection())
    assert all(title in shown for title in SECTIONS)
    for fragment in (
        "front.round (net.py:3)",
        "Pass it on.",
        "revived downstream",
        "lying",
        "of decisions flip",
        "mixed.b1, mixed.b5 and 1 way without a module",
        "0.05",
    ):
        assert fragment in shown


@pytest.mark.parametrize("render", [html, text])
def test_sections_without_findings_are_left_out(render: Any) -> None:
    document = inspection()
    for key in ("culprits", "repairs", "cuts", "estimators", "functions", "optimises", "flow"):
        document[key] = []
    document["randomness"] = document["batch_dependent"] = None
    document["forks"] = []
    shown = render(document)
    assert not any(title in shown for title in (*SECTIONS, "Gradient flow"))


@pytest.mark.parametrize("render", [html, text])
def test_a_line_that_is_suspected_in_several_runs_is_told_once(render: Any) -> None:
    document = inspection()
    document["culprits"] *= 3
    assert "The same in 2 other runs of this line." in render(document)


@pytest.mark.parametrize("render", [html, text])
def test_a_gradient_that_was_compared_with_nothing_has_no_agreement(render: Any) -> None:
    document = inspection()
    document["gradient"]["pairs"] = [0]
    assert "not compared" in render(document)


@pytest.mark.parametrize("name", ["front", HOSTILE])
def test_the_page_is_well_formed_and_self_contained(name: str) -> None:
    source = html(inspection(name))
    page = Page(source)
    assert not page.attributes("script")
    assert not page.attributes("link")
    assert "http" not in source.split("</style>")[1]
    assert "<script" not in source
    assert len(page.attributes("tr")) == 1 + 3
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)


def test_the_page_is_valid() -> None:
    html5lib = pytest.importorskip("html5lib")
    html5lib.HTMLParser(strict=True).parse(html(inspection(HOSTILE)))


def test_the_text_cannot_steer_a_terminal() -> None:
    shown = text(inspection(HOSTILE))
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_long_tables_are_cut() -> None:
    document = inspection(rows=PAGE_ROWS + 7)
    assert len(Page(html(document)).attributes("tr")) == 1 + PAGE_ROWS
    assert "The JSON lists 7 further ops" in html(document)
    assert f"… and {PAGE_ROWS + 7 - TEXT_ROWS} more" in text(document)


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        (location(), "front.round (net.py:3)"),
        (location(line=None), "front.round"),
        (location("", "", None), "the model"),
        (location("", "softmax"), "softmax (net.py:3)"),
    ],
)
def test_places(where: dict[str, Any], shown: str) -> None:
    assert place(where) == shown


def test_the_command_writes_what_is_asked(standard_file: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "out", tmp_path / "page.html"
    result = CliRunner().invoke(cli, ["inspect", str(standard_file), "--out", str(folder), "-o", f"html={other}"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Nothing hides the gradient")
    assert sorted(path.name for path in folder.iterdir()) == ["inspection.html", "inspection.json"]
    assert other.read_bytes() == (folder / "inspection.html").read_bytes()
    document = json.loads((folder / "inspection.json").read_text())
    assert document["source"] == str(standard_file)
    assert document["flow"]
    assert FORMATS["text"](document) == "".join(f"{line}\n" for line in result.output.splitlines()[:-3])


def test_json_is_one_document(standard_file: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(standard_file), "--json"])
    assert json.loads(result.stdout)["schema_version"] == 1


@pytest.mark.parametrize("option", ["md=x.md", "html", "html="])
def test_other_formats_are_refused(option: str, standard_file: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(standard_file), "-o", option])
    assert result.exit_code != 0
    assert "html, json, text" in str(result.exception)
