"""Modules and functions that pages and docstrings name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Names in the form of a module that are none: files, options, groups of entry points, and examples.
NO_MODULES = re.compile(r"maskaudit\.(toml|sarif|check|baseline|models|formats|report\.templates)")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
SOURCES = sorted((ROOT / "maskaudit").rglob("*.py"))


def _missing(text: str) -> Iterator[str]:
    for found in re.finditer(r"\bmaskaudit((?:\.[a-z_]\w*)+)", text):
        place = ROOT / "maskaudit"
        for part in [] if NO_MODULES.match(found[0]) else found[1][1:].split("."):
            if (place / part).is_dir():
                place = place / part
            elif (place / f"{part}.py").is_file():
                place = place / f"{part}.py"
            else:
                source = place if place.is_file() else place / "__init__.py"
                if not re.search(rf"\b{part}\b", source.read_text(encoding="utf-8")):
                    yield found[0]
                break
    for path in re.findall(r"`(maskaudit/[\w/]+\.py)`", text):
        if not (ROOT / path).is_file() and "gradient_sparsity" not in path:  # the example of docs/extending.md
            yield path


@pytest.mark.parametrize("file", [*PAGES, *SOURCES], ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_named_is_there(file: Path) -> None:
    assert list(_missing(file.read_text(encoding="utf-8"))) == []
