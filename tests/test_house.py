"""What holds for the package as a whole."""

from __future__ import annotations

import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
MOST_LOOSE_MODULES = 14
MOST_ROOMS = 29
#: Most files that must be read to follow one audit.
MOST_FILES = 12
#: Folders of tests that belong to no single room of the package.
ACROSS = {"setups", "benchmarks", "docs", "hostile", "second_device"}


def test_the_wheel_holds_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "maskaudit").rglob("__init__.py")}
    assert set(listed) == there | {"maskaudit.report.templates"}


def test_few_modules_lie_loose_in_the_root() -> None:
    assert len(list((ROOT / "maskaudit").glob("*.py"))) <= MOST_LOOSE_MODULES


def test_a_drawing_of_the_imports_has_few_rooms_and_no_circle() -> None:
    graph = grimp.build_graph("maskaudit", cache_dir=None)
    graph.remove_import(importer="maskaudit", imported="maskaudit.api")  # only when it is asked for
    TopologicalSorter({one: graph.find_modules_directly_imported_by(one) for one in graph.modules}).prepare()
    rooms = {module.split(".")[1] for module in graph.modules if "." in module} - {"__main__"}  # a door to cli
    assert len(rooms) <= MOST_ROOMS


def test_the_files_to_follow_an_audit_are_few_and_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"^\d+\. `([\w/.]+)`:", page, flags=re.MULTILINE)
    assert named
    assert len(named) <= MOST_FILES
    assert [name for name in named if not (ROOT / "maskaudit" / name).is_file()] == []


def test_tests_mirror_the_package() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").is_file()}
    rooms = {path.name for path in (ROOT / "maskaudit").iterdir() if (path / "__init__.py").is_file()}
    assert folders - ACROSS <= rooms
