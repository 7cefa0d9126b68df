"""Generated pages and regions are those that the program gives today, and leave nothing out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from maskaudit.cli import cli
from maskaudit.command.rules import list_rules
from maskaudit.data import PREFIXES
from maskaudit.gate.config import BASELINE, MODEL
from maskaudit.report import FORMATS
from maskaudit.sources import NAMED

from .pages import DOCS, ROOT, anchors, generator, read

AGAIN = "run: python docs/generate.py"


def test_generated_parts_are_up_to_date() -> None:
    stale = [path.name for path, content in generator().generated().items() if read(path) != content]
    assert not stale, AGAIN


@pytest.mark.parametrize("page", ["probes", "attacks"])
def test_every_probe_and_attack_has_its_section(page: str) -> None:
    names = {name for kind, name, _ in list_rules() if f"{kind}s" == page}
    assert names
    assert names <= anchors(DOCS / f"{page}.md"), AGAIN


def commands() -> Iterator[tuple[str, click.Command]]:
    def descend(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                yield from descend(f"{path} {name}", child)

    return descend("maskaudit", cli)


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda value: str(value))
def test_a_command_is_documented_as_its_help_says(path: str, command: click.Command) -> None:
    page = read(DOCS / "commands.md")
    section = re.search(rf"^## {re.escape(path)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert section is not None, AGAIN
    result = CliRunner().invoke(cli, [*path.split()[1:], "--help"], prog_name="maskaudit", terminal_width=200)
    offered = set(re.findall(r"^ +(?:(-\w), )?(--[\w-]+)|^ +(-\w)\b", result.output, re.MULTILINE))
    names = {name for group in offered for name in group if name} - {"-h", "--help"}
    documented = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", "\n".join(re.findall(r"^- `(.*?)`", section[1], re.M))))
    assert documented == names
    assert section[1].split("\n```\n")[0].rpartition("\n")[2] == result.output.splitlines()[0].removeprefix("Usage: ")


@pytest.mark.parametrize("name", list(generator().SAMPLES))
def test_every_field_of_a_real_report_is_described(name: str) -> None:
    notes: Any = generator()
    for section, content in notes.sample(name).items():
        described = notes.SECTIONS.get(section)
        if described is not None:
            assert set(content) <= set(described), f"describe it in docs/json_fields.py: {section}"
        else:
            assert section in notes.TOP or section in ("verdict", "claim", "probes", "attacks")


def test_sample_reports_are_free_of_the_machine_they_came_from() -> None:
    for path in (DOCS / "samples").glob("*.json"):
        assert json.loads(read(path))["schema_version"] == 1
        assert not re.search(r'"(/|[A-Z]:\\)', read(path)), f"{path.name} holds an absolute path"


@pytest.mark.parametrize("name", list(generator().SAMPLES))
def test_a_sample_shows_the_verdict_that_it_is_named_for(name: str) -> None:
    assert generator().sample(name)["verdict"]["label"] == name


def test_the_masked_sample_is_what_the_program_says_today(zoo_cache: Path) -> None:
    """A fresh audit: same verdict, same cause, same rows, and rates inside each other's intervals."""
    notes: Any = generator()
    stored, fresh = notes.sample("masked"), notes.run_sample("masked")
    again = "run: python docs/generate.py --audits"
    for document in (stored, fresh):
        document["causes"] = [mechanism["id"] for mechanism in document["verdict"]["mechanisms"]]
        document["rows"] = sorted((row["name"], row["role"]) for row in document["attacks"])
        document["rules"] = [probe["rule"] for probe in document["probes"]]
    assert stored["rows"] == fresh["rows"], again
    assert stored["rules"] == fresh["rules"], again
    assert stored["verdict"]["label"] == fresh["verdict"]["label"]
    assert stored["causes"] == fresh["causes"], again
    for name in ("clean", "reference", "best_known"):
        old, new = stored["accuracy"][name], fresh["accuracy"][name]
        assert old["low"] <= new["value"] <= old["high"], again
    assert stored.keys() == fresh.keys(), again


def test_every_key_of_the_gate_is_documented() -> None:
    page = read(DOCS / "gate.md")
    for key in {*MODEL, *BASELINE}:
        assert f"| `{key}` |" in page, AGAIN


def test_inputs_of_the_action_and_the_hook_are_documented() -> None:
    page = read(DOCS / "gate.md")
    inputs, outputs = re.findall(r"^(?:in|out)puts:\n(.*?)^(?=\S)", read(ROOT / "action.yml"), re.DOTALL | re.MULTILINE)
    for name in re.findall(r"^  ([\w-]+):$", inputs + outputs, re.MULTILINE):
        assert f"`{name}`" in page, name
    (hook,) = re.findall(r"^- id: (\S+)", read(ROOT / ".pre-commit-hooks.yaml"), re.MULTILINE)
    assert f"id: {hook}" in page


def test_every_source_and_format_is_on_the_page() -> None:
    page = read(DOCS / "formats.md")
    for name in (*FORMATS, "evidence"):
        assert f"| `{name}` |" in page, name
    for prefix in ("zoo", *NAMED, *PREFIXES):
        assert f"{prefix}:" in page, prefix
