"""The examples of the site: Python runs, commands exist with the options that are shown."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from maskaudit.cli import cli
from maskaudit.gate.config import read_config
from maskaudit.pytest_plugin import Auditor
from maskaudit.settings import Request

from .pages import DOCS, ROOT, blocks, pages, read, without_code

PYTHON_PAGES = ("index", "python-api", "extending")


def run_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Execute the Python blocks of a page one after the other, as one module; its names."""
    path = DOCS / f"{name}.md"
    module = ModuleType(f"maskaudit_docs_{name.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = blocks(path, "python")
    assert found
    for block in found:
        source = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the page
        exec(compile(source, str(path), "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.heavy
@pytest.mark.parametrize("name", PYTHON_PAGES)
def test_python_examples_run(name: str, zoo_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = run_blocks(name, monkeypatch)
    if name == "index":
        assert names["audit"].report.verdict.label == "clear", "the first audit that anyone makes cannot say"


def test_no_other_page_has_python_that_nobody_runs() -> None:
    assert [p.stem for p in DOCS.glob("*.md") if blocks(p, "python") and p.stem not in (*PYTHON_PAGES, "gate")] == []


def command_lines() -> list[tuple[str, str]]:
    """(page, command) of every `maskaudit …` shown in a shell block or a code span."""
    found = []
    for path in pages():
        for block in (b for language in ("sh", "yaml") for b in blocks(path, language)):
            lines = block.text.replace("\\\n", " ").splitlines()
            found += [(path.name, line.strip().removeprefix("$ ").removeprefix("- run: ")) for line in lines]
        text = re.sub(r"^```.*?^```$", "", read(path), flags=re.DOTALL | re.MULTILINE)
        found += [(path.name, span) for span in re.findall(r"`(maskaudit [^`\n]+)`", text)]
    return [(page, line) for page, line in found if line.startswith("maskaudit ")]


@pytest.mark.parametrize(("page", "line"), command_lines(), ids=lambda value: value)
def test_commands_exist_with_the_options_shown(page: str, line: str) -> None:
    """Parse each line with click itself: commands, options, choices and numbers of arguments."""
    words = shlex.split(line.partition(" #")[0])[1:]
    command: click.Command = cli
    name = "maskaudit"
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        name = f"{name} {words[0]}"
        command = command.commands[words.pop(0)]
    if isinstance(command, click.Group):
        assert words in ([], ["--help"], ["--version"]) or "[OPTIONS]" in words, f"no such command in {page}: {line}"
        return
    if words and page != "commands.md" and "-o" not in words[-1:]:
        command.make_context(name, words, resilient_parsing=False)


def test_the_commands_of_the_pages_were_found() -> None:
    assert len(command_lines()) > 20


def test_configuration_examples_are_valid(tmp_path: Path) -> None:
    found = blocks(DOCS / "gate.md", "toml")
    assert found
    for block in found:
        name = "pyproject.toml" if "[tool." in block.text else "maskaudit.toml"
        (tmp_path / name).write_text(block.text, encoding="utf-8")
        assert read_config(tmp_path / name).entries


def test_the_example_of_a_test_is_a_call_that_the_fixture_takes() -> None:
    namespace: dict[str, Any] = {}
    for block in blocks(DOCS / "gate.md", "python"):
        exec(compile(block.text, "gate.md", "exec"), namespace)
    called = []

    class Fixture:
        def assert_not_masked(self, *arguments: Any, **settings: Any) -> None:
            bound = inspect.signature(Auditor.assert_not_masked).bind(self, *arguments, **settings)
            called.append(Request.of("m", bound.arguments["options"]))

    namespace["test_claim"](Fixture())
    assert len(called) == 1
    assert Request.of("m", namespace["pytestmark"].kwargs)  # the options of the marker exist as well


def test_pages_name_no_place_of_one_machine() -> None:
    for path in (*DOCS.glob("*.md"), *DOCS.glob("*.py")):
        assert str(ROOT) not in read(path), path.name
        assert not re.search(r"(?<![\w.])/(home|tmp|root|Users|mnt)/", read(path)), path.name


def test_prose_stays_inside_a_readable_width() -> None:
    for path in DOCS.glob("*.md"):
        if "Written by docs/generate.py" in read(path) or path.name == "verdict.md":
            continue
        text = re.sub(r"<!-- begin generated.*?<!-- end generated -->", "", without_code(path), flags=re.DOTALL)
        long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
        assert long == [], path.name
